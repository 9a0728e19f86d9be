"""k-means of particle images under distances that in-plane rotation, and shift, do not change."""

import functools
import warnings
from numbers import Integral, Real
from os import PathLike

import joblib
import numpy as np
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, ClusterMixin, TransformerMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state

from .._callback import CallbackSupportMixin, FitProgress
from .._ext._emd import max_threads
from .._validation import (
    Interval,
    StackTagsMixin,
    StrOptions,
    _fit_context,
    check_is_fitted,
    check_sample_weight,
    resolve_ctf,
    validate_lazy,
)
from ._images import Images
from ._lloyd import Lloyd
from ._search import join, make_search

_AUTO_SHIFT = 0.071  # of the box: 5 % in x and in y


class RotInvWassersteinKMeans(
    CallbackSupportMixin,
    StackTagsMixin,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    ClusterMixin,
    BaseEstimator,
):
    """k-means under rotation-invariant distances: 2-D classes of particle images.

    Algorithms 1 and 2 of [1]_: every image goes to the class average, turned by the in-plane angle, that it is closest
    to; every class average becomes the mean of its images, turned back. Beyond the paper, in-plane shifts are searched
    jointly, images may carry CTFs, classes can be kept even, and the search is exact but does not compute what bounds
    exclude.

    Parameters
    ----------
    n_clusters : int, default=8
        Number of classes.
    metric : {"l2", "w1", "sobolev"}, default="l2"
        Distance between two images, minimised over rotations (and shifts):

        * "l2": Euclidean, of images smoothed by `lowpass`. It handles every image's own CTF exactly and is the fastest;
          with k-means++ and `balance` its classes are the most homogeneous, with and without CTFs; hence the default.
          Images in coloured noise want :class:`skcryo.preprocessing.NoiseWhitener` first.
        * "w1": the wavelet earth mover's distance (equation 8 of [1]_: sym5, 6 levels), a fast equivalent of the
          Wasserstein-1 distance.
        * "sobolev": the norm of H^-1, to which Wasserstein distances of small moves reduce, of images smoothed by
          `lowpass`. On small images it follows the exact earth mover's distance closer than "w1" does. It looks at the
          lowest frequencies most, which CTFs take away and coloured noise drowns: for images without either.
    n_angles : int, default=200
        In-plane angles searched, equally spaced over a turn (the paper's number).
    max_shift : float or "auto", default="auto"
        Largest in-plane shift searched, in pixels, jointly with class and angle. "auto": 7.1 % of the box, that is 5 %
        in x and in y, as particles from automatic picking want ("w1" tries whole pixels only). 0 is for
        centred images, as in the paper, and many times faster.
    lowpass : float, "auto" or None, default="auto"
        Standard deviation in pixels of the Gaussian that images are smoothed with where distances are "sobolev" or "l2"
        ("w1" uses none). None: no smoothing. "auto": ``L / 128`` for "sobolev", ``L / 64`` for "l2", where images have
        L pixels; chosen on simulated molecules at SNR 1/16 and flat around the best.
    init : {"k-means++", "random"} or array-like of shape (n_clusters, L, L), default="k-means++"
        First class averages. "k-means++": rotation-invariant k-means++ on at most
        ``max(2000, 20 * n_clusters)`` images under the smoothed distance, the best of a few draws at each step (where
        shifts are searched: 1000 images, one draw), followed for "w1" by a few iterations under
        that distance, because distances between raw noisy images tell little. "random": distinct images.
    n_init : int, default=1
        Starts, of which the one of least inertia is kept.
    max_iter : int, default=50
        Most iterations of a start.
    tol : float, default=0.005
        The fit has converged when at most this share of the images changed class in an iteration.
    balance : float, default=0.5
        How far classes are kept even, 0 (not at all, as in the paper) to 1. Classes that attract more than their share
        carry a penalty, which counters that averages of large classes are less noisy and so attract still more images.
    checkpoint_dir : path, default=None
        Folder where the state is saved after every iteration; a fit that was killed, or stopped by a callback, goes on
        from there, to the same result, if data and parameters are the same.
    n_jobs : int, default=None
        Threads. None: all cores (OMP_NUM_THREADS is respected). Results do not depend on it.
    random_state : int, RandomState instance or None, default=None

    Attributes
    ----------
    cluster_centers_ : ndarray of shape (n_clusters, n_features_in_), float32 or float64
        The class averages as rows of pixels.
    class_averages_ : ndarray of shape (n_clusters, L, L)
        The class averages as images; of images with CTFs, Wiener averages.
    labels_ : ndarray of shape (n_images,), int32
        Class of each image.
    in_plane_angles_ : ndarray of shape (n_images,), float64
        Radians: an image is its class average turned by this angle (counter-clockwise from x to y), then shifted.
    shifts_ : ndarray of shape (n_images, 2), float64
        (x, y) in pixels: where the particle's centre lies relative to the image's.
    distances_ : ndarray of shape (n_images,)
        Distance of each image to its class average.
    class_biases_ : ndarray of shape (n_clusters,)
        Penalties of the classes that `balance` arrived at; zeros without.
    inertia_ : float
        Sum of squared distances of images to their class averages, weighted.
    n_iter_ : int
        Iterations of the start that was kept.
    converged_ : bool
        Whether it stopped by `tol`.
    inertia_curve_ : ndarray of shape (n_iter_,)
        Inertia before each iteration's update.
    n_features_in_ : int
        Pixels of an image.
    image_shape_ : tuple of two ints
        (height, width) of an image.

    Warns
    -----
    ConvergenceWarning
        If the classes have not settled after `max_iter` iterations, or some of them are empty.

    See Also
    --------
    skcryo.cluster.rotation_invariant_distances : The distances themselves.

    Notes
    -----
    Pixels farther from the centre than the largest disc in the box do not count. Rows that are no square image, and
    images below 8 pixels, are compared pixel by pixel, without rotations, shifts or mask.

    Where shifts are searched, iterations 1 to 4, 9, 33, ... and the last search them all, and the others only those
    near the shift that an image already has; in the first iterations class averages that wandered off centre are moved
    back.

    CTFs come from the argument `ctf`, else from the stack. For "sobolev" and "l2" the turned class average is
    multiplied by each image's own CTF, astigmatism included; for "w1" by the radial CTF of its group of images of
    nearly the same defocus. Class averages are Wiener averages with every image's own CTF.

    An empty class takes over half of the largest class.

    References
    ----------
    .. [1] R. Rao, A. Moscovich, A. Singer: Wasserstein k-means for clustering tomographic projections.
       Machine Learning for Structural Biology Workshop, NeurIPS 2020.

    Examples
    --------
    >>> import numpy as np
    >>> from skcryo.cluster import RotInvWassersteinKMeans
    >>> from skcryo.fourier import rotate_images
    >>> x = np.arange(24) - 12
    >>> bar = np.exp(-(x**2) / 4 - x[:, None] ** 2 / 40)
    >>> ring = np.exp(-((np.hypot(x, x[:, None]) - 6) ** 2) / 4)
    >>> X = rotate_images(np.stack([bar, ring] * 10), np.arange(20.0))
    >>> kmeans = RotInvWassersteinKMeans(2, metric="w1", n_angles=40, max_shift=0, random_state=0).fit(X)
    >>> len(set(kmeans.labels_[::2])), len(set(kmeans.labels_[1::2])), kmeans.class_averages_.shape
    (1, 1, (2, 24, 24))
    """

    _parameter_constraints: dict = {
        "n_clusters": [Interval(Integral, 1, None, closed="left")],
        "metric": [StrOptions({"w1", "l2", "sobolev"})],
        "n_angles": [Interval(Integral, 1, 4096, closed="both")],
        "max_shift": [Interval(Real, 0, None, closed="left"), StrOptions({"auto"})],
        "lowpass": [Interval(Real, 0, None, closed="left"), StrOptions({"auto"}), None],
        "init": [StrOptions({"k-means++", "random"}), "array-like"],
        "n_init": [Interval(Integral, 1, None, closed="left")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="left")],
        "balance": [Interval(Real, 0, 1, closed="both")],
        "checkpoint_dir": [str, PathLike, None],
        "n_jobs": [Integral, None],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        n_clusters=8,
        *,
        metric="l2",
        n_angles=200,
        max_shift="auto",
        lowpass="auto",
        init="k-means++",
        n_init=1,
        max_iter=50,
        tol=0.005,
        balance=0.5,
        checkpoint_dir=None,
        n_jobs=None,
        random_state=None,
    ):
        self.n_clusters = n_clusters
        self.metric = metric
        self.n_angles = n_angles
        self.max_shift = max_shift
        self.lowpass = lowpass
        self.init = init
        self.n_init = n_init
        self.max_iter = max_iter
        self.tol = tol
        self.balance = balance
        self.checkpoint_dir = checkpoint_dir
        self.n_jobs = n_jobs
        self.random_state = random_state

    # ------------------------------------------------------------------------------------------------- fit
    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y=None, *, ctf=None, sample_weight=None):
        """Find the classes.

        Parameters
        ----------
        X : ParticleStack or array-like of shape (n_images, L, L) or (n_images, n_pixels)
            Particle images.
        y : None
            Ignored.
        ctf : structured array of shape (n_images,), default=None
            CTFs (:data:`skcryo.ctf.CTF_DTYPE`). None: those that `X` carries, if any.
        sample_weight : array-like of shape (n_images,), default=None
            Images of weight zero take no part but get a label.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If `X` holds fewer images than `n_clusters`, pixels that are not finite, no square images; if `ctf`,
            `sample_weight` or `init` do not fit `X`; if `max_shift` reaches half the box.
        """
        dtype = _float_dtype(X)
        stack = validate_lazy(self, X, ensure_min_samples=1)
        data = Images(self, stack, resolve_ctf(stack, ctf), n_threads=_threads(self.n_jobs))
        weights = check_sample_weight(sample_weight, stack, dtype=np.float64)
        used = np.flatnonzero(weights > 0)
        if len(used) < self.n_clusters:
            raise ValueError(
                f"n_samples={len(used)} should be >= n_clusters={self.n_clusters}: so many classes need as many images"
                + ("" if len(used) == len(stack) else " of positive weight")
            )
        fitted = data if len(used) == len(stack) else data.select(used)
        # a generator of the fit's own: its state is saved in checkpoints and set again from them
        rng = np.random.RandomState(check_random_state(self.random_state).randint(np.iinfo(np.int32).max))
        search = self._make_search(data)
        make = functools.partial(self._make_search, data)
        with FitProgress(self, X, y, max_steps=self.n_init * self.max_iter, sample_weight=sample_weight) as progress:
            run = Lloyd(self, fitted, weights[used], make, rng, progress).run()
        self._keep(run, dtype)
        found = run.found if fitted is data else self._assign(search, data)
        self.labels_ = found.labels
        self.in_plane_angles_ = found.angles
        self.shifts_ = found.shifts
        costs = np.asarray(found.costs, np.float64)
        self.distances_ = (costs if search.power == 2 else np.sqrt(costs)).astype(dtype)
        self.inertia_ = float((weights * costs**search.power).sum())
        if not run.converged and not progress.stopped:
            warnings.warn(
                f"{type(self).__name__} did not settle in {run.n_iter} iterations (max_iter={self.max_iter}): "
                f"{run.moved:.1%} of the images changed class in the last one (tol={self.tol:.1%})",
                ConvergenceWarning,
                stacklevel=2,
            )
        n_empty = self.n_clusters - len(np.unique(self.labels_))
        if n_empty:
            warnings.warn(
                f"{n_empty} of the n_clusters={self.n_clusters} classes are empty: are there as many different images?",
                ConvergenceWarning,
                stacklevel=2,
            )
        return self

    def _keep(self, run, dtype):
        self.class_averages_ = run.averages.astype(dtype)
        self.cluster_centers_ = self.class_averages_.reshape(self.n_clusters, -1)[:, : self.n_features_in_].copy()
        self.class_biases_ = run.biases
        self.n_iter_ = run.n_iter
        self.converged_ = run.converged
        self.inertia_curve_ = np.array(run.curve)
        self._n_features_out = self.n_clusters

    def _make_search(self, data, **changes):
        """The search that the parameters describe, or one with some of them changed."""
        max_shift = _AUTO_SHIFT * data.size if self.max_shift == "auto" else self.max_shift
        if data.is_image and max_shift >= data.size / 2:
            raise ValueError(f"max_shift must be below half the box of {data.size} px, got {self.max_shift}")
        params = {"metric": self.metric, "n_angles": self.n_angles, "max_shift": max_shift, "lowpass": self.lowpass}
        return make_search(size=data.size, is_image=data.is_image, n_threads=_threads(self.n_jobs), **params | changes)

    # --------------------------------------------------------------------------------------------- use
    def _assign(self, search, data, return_all=False):
        parts = [
            search.find(features, self._averages(), bias=self.class_biases_, return_all=return_all)
            for _, features in data.features(search)
        ]
        return join(parts)

    def _averages(self):
        return np.asarray(self.class_averages_, np.float32 if self.class_averages_.shape[1] >= 8 else np.float64)

    def _search_new(self, X, ctf, return_all=False):
        check_is_fitted(self)
        stack = validate_lazy(self, X, reset=False)
        data = Images(self, stack, resolve_ctf(stack, ctf), n_threads=_threads(self.n_jobs))
        search = self._make_search(data)
        return self._assign(search, data, return_all), search

    def predict(self, X, *, ctf=None):
        """Class of each image.

        Parameters
        ----------
        X : ParticleStack or array-like of shape (n_images, L, L) or (n_images, n_pixels)
        ctf : structured array of shape (n_images,), default=None

        Returns
        -------
        labels : ndarray of shape (n_images,), int32
        """
        return self._search_new(X, ctf)[0].labels

    def align(self, X, *, ctf=None):
        """Class, in-plane angle and shift of each image.

        Parameters
        ----------
        X, ctf : as in :meth:`predict`

        Returns
        -------
        labels : ndarray of shape (n_images,), int32
        in_plane_angles : ndarray of shape (n_images,), float64
            Radians.
        shifts : ndarray of shape (n_images, 2), float64
            (x, y), pixels.
        """
        found = self._search_new(X, ctf)[0]
        return found.labels, found.angles, found.shifts

    def fit_predict(self, X, y=None, *, ctf=None, sample_weight=None):
        """Fit, and return the class of each image.

        Parameters
        ----------
        X, y, ctf, sample_weight : as in :meth:`fit`

        Returns
        -------
        labels : ndarray of shape (n_images,), int32
        """
        return self.fit(X, y, ctf=ctf, sample_weight=sample_weight).labels_

    def transform(self, X, *, ctf=None):
        """Distance of each image to every class average, at its best rotation and shift.

        Parameters
        ----------
        X, ctf : as in :meth:`predict`

        Returns
        -------
        distances : ndarray of shape (n_images, n_clusters)
        """
        dtype = _float_dtype(X)
        found, search = self._search_new(X, ctf, return_all=True)
        costs = found.all_costs if search.power == 2 else np.sqrt(found.all_costs)
        return costs.astype(dtype)

    def fit_transform(self, X, y=None, *, ctf=None, sample_weight=None):
        """Fit, and return the distances of the images to the class averages.

        Parameters
        ----------
        X, y, ctf, sample_weight : as in :meth:`fit`

        Returns
        -------
        distances : ndarray of shape (n_images, n_clusters)
        """
        return self.fit(X, y, ctf=ctf, sample_weight=sample_weight).transform(X, ctf=ctf)

    def score(self, X, y=None, *, ctf=None, sample_weight=None):
        """Minus the inertia of `X`: minus the sum of squared distances to the class averages, weighted.

        Parameters
        ----------
        X, ctf : as in :meth:`predict`
        y : None
            Ignored.
        sample_weight : array-like of shape (n_images,), default=None

        Returns
        -------
        score : float
        """
        found, search = self._search_new(X, ctf)
        weights = check_sample_weight(sample_weight, X, dtype=np.float64)
        return -float((weights * np.asarray(found.costs, np.float64) ** search.power).sum())


def _float_dtype(X):
    """float64 stays float64; all else is computed and returned in float32."""
    return np.float64 if getattr(X, "dtype", np.float64) == np.float64 else np.float32


def _threads(n_jobs):
    return max_threads() if n_jobs is None else joblib.effective_n_jobs(n_jobs)
