"""Classes within classes: a coarse clustering of all images, then one of each coarse class by itself."""

import warnings
from numbers import Integral
from os import path

import numpy as np
from sklearn.base import BaseEstimator, ClusterMixin, clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.metaestimators import available_if

from .._callback import CallbackSupportMixin, FitProgress
from .._validation import (
    HasMethods,
    Interval,
    StackTagsMixin,
    _fit_context,
    check_is_fitted,
    check_sample_weight,
    validate_lazy,
)
from ._sml import SMLClustering

__all__ = ["DeepClustering", "apportion"]


def apportion(n_clusters, sizes, most):
    """Classes for each coarse class: one each, and every other one where a class has most to hold.

    Parameters
    ----------
    n_clusters : int
        In all; at least as many as coarse classes.
    sizes : ndarray of shape (n_coarse,)
        Images, or the sums of their weights.
    most : ndarray of shape (n_coarse,), int
        Classes that each can have; one in any case.

    Returns
    -------
    n_subclasses : ndarray of shape (n_coarse,), int
        They sum to `n_clusters` unless no coarse class can have more.

    Examples
    --------
    >>> import numpy as np
    >>> from skcryo.cluster._deep_clustering import apportion
    >>> apportion(10, np.array([60, 30, 20, 1]), np.array([60, 30, 20, 1]))
    array([5, 2, 2, 1])
    """
    found = np.ones(len(sizes), dtype=int)
    for _ in range(n_clusters - len(sizes)):
        loads = np.where(found < most, sizes / found, -1)
        if loads.max() < 0:
            break
        found[np.argmax(loads)] += 1
    return found


def _scores(self):
    """Whether the clusterers give likelihoods and probabilities."""
    estimators = [estimator for estimator in (self.estimator, self.coarse) if estimator is not None]
    return all(hasattr(estimator, name) for estimator in estimators for name in ("log_likelihoods", "predict_proba"))


class DeepClustering(CallbackSupportMixin, StackTagsMixin, ClusterMixin, BaseEstimator):
    """Deep clustering class by class: images are classified coarsely, and each coarse class anew by itself.

    The second of the two strategies of [1]_. The first, all images at once, is the fine clusterer by itself. Class by
    class, mean, noise and components are those of one coarse class, and each fit is small; but an image in a wrong
    coarse class stays there, and neighbouring classes on either side of a border do not support each other. See Notes
    for how both compare.

    Parameters
    ----------
    estimator : clusterer, default=None
        Clusterer of a coarse class, with `n_clusters`, `predict` and `class_averages_`, such as
        :class:`SMLClustering`. A clone is fitted to each. None: ``SMLClustering()``.
    n_clusters : int, default=100
        Classes in all. Each coarse class gets one, every other one goes to the coarse class with most images to a
        class: numbers are in proportion to size.
    coarse : clusterer, default=None
        Clusterer of all images; a clone is fitted. None: as `estimator`, with as many classes as the square root of
        `n_clusters`.
    min_class_size : int, default=100
        Coarse classes of fewer images, or of less weight, are kept whole, each as one class: the clusterer finds mean,
        noise and components from the images of the class alone, and of few it cannot. What they might have had goes to
        the others.
    random_state : int, RandomState instance or None, default=None
        Seeds of all fits, in place of those that the clusterers have.

    Attributes
    ----------
    labels_ : ndarray of shape (n_images,), int32
        Class of each image. Classes of a coarse class follow each other.
    class_averages_ : ndarray of shape (n_clusters_, L, L)
        As the clusterers make them.
    n_clusters_ : int
        Classes there are: `n_clusters` unless too many coarse classes were kept whole.
    parents_ : ndarray of shape (n_clusters_,), int
        Coarse class of each class.
    n_subclasses_ : ndarray of shape (n_coarse,), int
        Classes of each coarse class; 1 of those that were kept whole.
    coarse_labels_ : ndarray of shape (n_images,), int32
        Coarse class of each image.
    coarse_ : clusterer
        That of all images, fitted.
    estimators_ : list of clusterer or None
        That of each coarse class, fitted; None of those that were kept whole.
    coarse_shares_ : ndarray of shape (n_coarse,), float64
        Share of the images, or of their weights, in each coarse class.
    n_features_in_ : int
        Pixels of an image.
    image_shape_ : tuple of two ints

    Warns
    -----
    ConvergenceWarning
        Once for all fits that gave one, with the first; and if there are fewer classes than `n_clusters`.

    See Also
    --------
    SMLClustering : All images at once.

    Notes
    -----
    Where all images are views of one molecule, all at once is better: of 2000 aligned images (32 px, CTFs, SNR 0.05) in
    100 classes, both as defaults are, the share of pairs in a class that are views within 15 degrees was, of two
    molecules, 0.30 and 0.20 all at once, 0.22 and 0.18 class by class (by chance 0.02). Held-out likelihood said the
    same without the truth (:meth:`score`). The paper uses class by class to look for different structures within
    selected classes, which has not been measured here.

    CTFs that `X` carries go to all fits.

    A callback may stop the fit after any coarse class; those that follow are kept whole. With `checkpoint_dir` set on a
    clusterer, each fit has a folder of its own in it.

    References
    ----------
    .. [1] J. Wu et al.: Unsupervised single-particle deep clustering via statistical manifold learning. PLoS ONE 12
       (2017), section 2.3 and figure 1b.

    Examples
    --------
    >>> from skcryo.cluster import DeepClustering, SMLClustering
    >>> from skcryo.datasets import make_molecule, make_particles
    >>> stack, truth = make_particles(make_molecule(24, random_state=0), 200, snr=1.0, random_state=0)
    >>> deep = DeepClustering(SMLClustering(n_components=8), n_clusters=12, min_class_size=20).fit(stack)
    >>> deep.class_averages_.shape, int(deep.n_subclasses_.sum()), len(deep.estimators_)
    ((12, 24, 24), 12, 3)
    """

    _parameter_constraints: dict = {
        "estimator": [HasMethods(["fit", "predict", "get_params", "set_params"]), None],
        "n_clusters": [Interval(Integral, 1, None, closed="left")],
        "coarse": [HasMethods(["fit", "predict", "get_params", "set_params"]), None],
        "min_class_size": [Interval(Integral, 1, None, closed="left")],
        "random_state": ["random_state"],
    }

    def __init__(self, estimator=None, *, n_clusters=100, coarse=None, min_class_size=100, random_state=None):
        self.estimator = estimator
        self.n_clusters = n_clusters
        self.coarse = coarse
        self.min_class_size = min_class_size
        self.random_state = random_state

    @_fit_context(prefer_skip_nested_validation=False)
    def fit(self, X, y=None, *, sample_weight=None):
        """Find the coarse classes, and the classes of each.

        Parameters
        ----------
        X : ParticleStack or array-like of shape (n_images, L, L) or (n_images, n_pixels)
            Particle images, as the clusterers want them.
        y : None
            Ignored.
        sample_weight : array-like of shape (n_images,), default=None
            Images of weight zero take no part but get a label.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If `X` holds fewer images than classes, or `n_clusters` is less than the number of coarse classes; if the
            clusterer has no `n_clusters`, or a `grid_shape` that would go before it; if a clusterer refuses its images.
        """
        stack = validate_lazy(self, X, ensure_min_samples=1)
        weights = check_sample_weight(sample_weight, stack, dtype=np.float64)
        if np.count_nonzero(weights) < self.n_clusters:
            raise ValueError(
                f"n_samples={np.count_nonzero(weights)} should be >= n_clusters={self.n_clusters}: so many classes "
                "need as many images" + ("" if weights.all() else " of positive weight")
            )
        fine, coarse = self._clusterers()
        n_coarse = _number_of_classes(coarse)
        if n_coarse > self.n_clusters:
            raise ValueError(
                f"n_clusters={self.n_clusters} should be >= {n_coarse}, the number of coarse classes: each has one "
                "class at least"
            )
        seeds = check_random_state(self.random_state).randint(np.iinfo(np.int32).max, size=n_coarse + 1)
        if sample_weight is None:
            weights = None
        self._told = []
        with FitProgress(self, X, y, max_steps=n_coarse + 1, sample_weight=sample_weight) as progress:
            with progress.step("coarse classes"):
                self.coarse_ = self._fitted(coarse, "coarse", seeds[-1], stack, slice(None), weights)
                self.coarse_labels_ = np.asarray(self.coarse_.labels_, dtype=np.int32)
                self._divide(stack, weights, n_coarse)
            for k in range(n_coarse):
                if progress.stopped:
                    self.n_subclasses_[k:] = 1
                    break
                with progress.step("class"):
                    if self.n_subclasses_[k] > 1:
                        part = clone(fine).set_params(n_clusters=int(self.n_subclasses_[k]))
                        members = np.flatnonzero(self.coarse_labels_ == k)
                        self.estimators_[k] = self._fitted(part, f"class{k}", seeds[k], stack, members, weights)
        self._keep(stack)
        self._warn(progress.stopped)
        return self

    def _clusterers(self):
        fine = clone(SMLClustering() if self.estimator is None else self.estimator)
        params = fine.get_params()
        if "n_clusters" not in params:
            raise ValueError(f"estimator={type(fine).__name__} has no n_clusters; a clusterer that has is wanted")
        if params.get("grid_shape") is not None:
            raise ValueError(
                f"estimator has grid_shape={params['grid_shape']}, but coarse classes differ in size: grid_shape=None "
                "is wanted"
            )
        if self.coarse is not None:
            return fine, clone(self.coarse)
        return fine, clone(fine).set_params(n_clusters=max(round(np.sqrt(self.n_clusters)), 1))

    def _fitted(self, estimator, name, seed, stack, members, weights):
        """The clusterer fitted to some images; convergence warnings are kept for later."""
        params = estimator.get_params()
        if "random_state" in params:
            estimator.set_params(random_state=int(seed))
        if params.get("checkpoint_dir") is not None:
            estimator.set_params(checkpoint_dir=path.join(params["checkpoint_dir"], name))
        given = {} if weights is None else {"sample_weight": weights[members]}
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            try:
                estimator.fit(self._images(stack[members]), **given)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
        for warning in told:
            if issubclass(warning.category, ConvergenceWarning):
                self._told.append((name, str(warning.message)))
            else:
                warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
        if not hasattr(estimator, "class_averages_"):
            raise ValueError(f"{type(estimator).__name__} has no class_averages_; a clusterer of images is wanted")
        return estimator

    def _images(self, stack):
        """What the clusterers are given: rows that are no images go on as such."""
        if self.n_features_in_ == stack.shape[1] * stack.shape[2]:
            return stack
        return np.asarray(stack).reshape(len(stack), -1)[:, : self.n_features_in_]

    def _divide(self, stack, weights, n_coarse):
        """How many classes each coarse class gets."""
        weights = np.ones(len(stack)) if weights is None else weights
        sizes = np.bincount(self.coarse_labels_, weights, minlength=n_coarse)
        n_images = np.bincount(self.coarse_labels_, weights > 0, minlength=n_coarse).astype(int)
        self.coarse_shares_ = sizes / sizes.sum()
        self.n_subclasses_ = apportion(self.n_clusters, sizes, np.where(sizes >= self.min_class_size, n_images, 1))
        self.estimators_ = [None] * n_coarse

    def _keep(self, stack):
        self.n_clusters_ = int(self.n_subclasses_.sum())
        self.parents_ = np.repeat(np.arange(len(self.n_subclasses_)), self.n_subclasses_)
        first = np.concatenate([[0], np.cumsum(self.n_subclasses_)[:-1]])
        averages = [
            self.coarse_.class_averages_[k : k + 1] if part is None else part.class_averages_
            for k, part in enumerate(self.estimators_)
        ]
        self.class_averages_ = np.concatenate(averages)
        self.labels_ = first[self.coarse_labels_].astype(np.int32)
        for k, part in enumerate(self.estimators_):
            if part is not None:
                self.labels_[self.coarse_labels_ == k] += part.labels_

    def _warn(self, stopped):
        told = self.__dict__.pop("_told")
        if told:
            n_fits = 1 + sum(part is not None for part in self.estimators_)
            names = sorted({name for name, _ in told})
            warnings.warn(
                f"{len(names)} of {n_fits} fits warned, the first of {told[0][0]}: {told[0][1]}",
                ConvergenceWarning,
                stacklevel=4,
            )
        if self.n_clusters_ < self.n_clusters and not stopped:
            n_whole = sum(part is None for part in self.estimators_)
            warnings.warn(
                f"there are {self.n_clusters_} classes instead of n_clusters={self.n_clusters}: {n_whole} of "
                f"{len(self.estimators_)} coarse classes were kept whole (min_class_size={self.min_class_size})",
                ConvergenceWarning,
                stacklevel=4,
            )

    def _by_class(self, X):
        """Yield (coarse class, its clusterer or None, members, their images); and the number of images first."""
        check_is_fitted(self)
        stack = validate_lazy(self, X, reset=False)
        yield len(stack)
        found = self.coarse_.predict(self._images(stack))
        for k in np.unique(found):
            members = np.flatnonzero(found == k)
            yield k, self.estimators_[k], members, self._images(stack[members])

    def predict(self, X):
        """Class of each image: that of its coarse class which is likeliest, or nearest.

        Parameters
        ----------
        X : ParticleStack or array-like of shape (n_images, L, L) or (n_images, n_pixels)

        Returns
        -------
        labels : ndarray of shape (n_images,), int32
        """
        parts = self._by_class(X)
        labels = np.empty(next(parts), dtype=np.int32)
        for k, part, members, images in parts:
            labels[members] = np.searchsorted(self.parents_, k)
            if part is not None:
                labels[members] += part.predict(images)
        return labels

    @available_if(_scores)
    def log_likelihoods(self, X):
        """Lower bound of the log-likelihood of each image, of clusterers that have one.

        Of the mixture of the models of all coarse classes, each with its share of the images: the term of the coarse
        class that the image is put into, which is all but the whole where that is certain. It compares with
        ``log_likelihoods`` of the fine clusterer fitted to all images at once.

        Parameters
        ----------
        X : as in :meth:`predict`

        Returns
        -------
        log_likelihoods : ndarray of shape (n_images,), float64
        """
        return self._mixture_scores(X, "log_likelihoods")

    @available_if(_scores)
    def score_samples(self, X):
        """:meth:`log_likelihoods` above that of no particle, by which particles are told from junk.

        No particle means noise as the coarse class of the image has it: compare images by it, not models.

        Parameters
        ----------
        X : as in :meth:`predict`

        Returns
        -------
        scores : ndarray of shape (n_images,), float64
        """
        return self._mixture_scores(X, "score_samples")

    def _mixture_scores(self, X, method):
        parts = self._by_class(X)
        scores = np.empty(next(parts))
        for k, part, members, images in parts:
            if part is None:
                share = np.maximum(self.coarse_.predict_proba(images)[:, k], np.finfo(np.float32).tiny)
                scores[members] = getattr(self.coarse_, method)(images) + np.log(share)
            else:
                scores[members] = getattr(part, method)(images) + np.log(self.coarse_shares_[k])
        return scores

    @available_if(_scores)
    def score(self, X, y=None, *, sample_weight=None):
        """Mean of :meth:`log_likelihoods`.

        Parameters
        ----------
        X : as in :meth:`predict`
        y : None
            Ignored.
        sample_weight : array-like of shape (n_images,), default=None

        Returns
        -------
        score : float
        """
        scores = self.log_likelihoods(X)
        return float(np.average(scores, weights=check_sample_weight(sample_weight, X, dtype=np.float64)))


def _number_of_classes(estimator):
    params = estimator.get_params()
    if params.get("grid_shape") is not None:
        return int(np.prod(params["grid_shape"]))
    if "n_clusters" not in params:
        raise ValueError(f"coarse={type(estimator).__name__} has no n_clusters; a clusterer that has is wanted")
    return int(params["n_clusters"])
