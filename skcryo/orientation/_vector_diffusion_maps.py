"""Rotations of images from those that look alike: (multi-frequency) vector diffusion maps."""

import warnings
from numbers import Integral

import numpy as np
from sklearn.base import BaseEstimator, clone
from sklearn.exceptions import ConvergenceWarning

from .._callback import CallbackSupportMixin, FitProgress
from .._validation import (
    HasMethods,
    Interval,
    StackTagsMixin,
    StrOptions,
    _fit_context,
    check_is_fitted,
    resolve_ctf,
    resolve_pixel_size,
    validate_lazy,
)
from ..decomposition import SteerablePCA
from ..decomposition._invariant_neighbors import invariant_neighbors
from ..rotations import geodesic_distance
from ._connection_graph import connection_spectrum, multi_frequency_features, poses_from_eigenvectors

__all__ = ["VectorDiffusionMaps"]

_N_SPACES = 3
_OUTLIER = np.radians(40.0)
_N_MEAN_STEPS = 4
_SMALLEST_GAP = 1.5


class VectorDiffusionMaps(CallbackSupportMixin, StackTagsMixin, BaseEstimator):
    """Rotations of images from those that look alike, by vector diffusion maps on the projective plane.

    Images whose views differ by a turn in their plane, or by a mirror (seen from the other side), look alike up to
    that. Averaging over such neighbours, turned and mirrored accordingly, has three leading eigenvectors, whose
    values at an image are the axes of its plane [1]_. The same at higher frequencies tells true neighbours from
    false ones where noise is strong [2]_.

    Parameters
    ----------
    n_frequencies : int, default=5
        1: the poses that neighbours by likeness give (VDM). More: neighbours are also found by what is alike at all of
        1, ..., `n_frequencies` (MFVDM), and neighbours by likeness that disagree with the poses of these by more than
        40 degrees are left out, if that makes the three eigenvectors stand out more.
    n_neighbors : int or "auto", default="auto"
        Neighbours of each image. "auto": ``0.45 sqrt(n_images)``, 5 at least. With too many, poses collapse at low
        signal.
    pca : SteerablePCA, default=None
        What likeness is measured in: a clone is fitted. None: SteerablePCA with its defaults.
    n_jobs : int, default=None
        Threads. None: all cores (OMP_NUM_THREADS is respected). Results do not depend on it.

    Attributes
    ----------
    rotations_ : ndarray of shape (n_images, 3, 3), float64
        Poses, up to one rotation and hand of all.
    neighbors_ : Neighbors
        Neighbours by likeness: ``indices``, ``angles``, ``reflected``, ``distances``.
    weights_ : ndarray of shape (n_images, n_neighbors), float64
        1 for neighbours that were used, 0 for those left out.
    deviations_ : ndarray of shape (n_images,), float64
        Median angle in degrees between the pose of an image and those that its neighbours predict.
    eigenvalues_ : ndarray of shape (4,), float64
        Leading ones, at frequency 1.
    spectral_gap_ : float
        ``(1 - eigenvalues_[3]) / (1 - eigenvalues_[2])``: 5 in the limit of many clean images, 1 where no three
        vectors stand out.
    converged_ : bool
        Whether the gap is 1.5 at least.
    coefficients_ : list of ndarray, complex64
        Of the images that were fitted, by angular frequency.
    pca_ : SteerablePCA
        The fitted one.
    n_features_in_ : int
    image_shape_ : tuple of two ints

    See Also
    --------
    LUDRotations : Poses from common lines, refined.
    skcryo.decomposition.SteerablePCA : The coefficients.
    skcryo.cluster.NearestNeighborAverages : Averages of the images of nearest views.

    Notes
    -----
    Poses are accurate to some four degrees, hardly better for more or better images: neighbours are nearer in views
    where the molecule looks more alike, and the map of views is bent accordingly. They are what a refinement starts
    from. Views must be spread rather evenly. Off-centre images look unlike any other: centre them, or give shifts
    with `X`.

    Hand and frame are chance: all ``R_i`` and all ``J R_i J``, ``J = diag(1, 1, -1)``, are equivalent;
    :func:`skcryo.metrics.pose_error` tries both. Nothing is drawn by lot.

    All pairs of images are compared; time grows with the square of their number, memory with the number alone.

    References
    ----------
    .. [1] Singer, Wu, "Vector diffusion maps and the connection Laplacian", Comm. Pure Appl. Math. 65 (2012).
    .. [2] Cesa, Behboodi, Cohen, Welling, "On the symmetries of the synchronization problem in cryo-EM:
       multi-frequency vector diffusion maps on the projective plane", NeurIPS 35 (2022).

    Examples
    --------
    >>> from skcryo.datasets import make_molecule, make_particles
    >>> from skcryo.metrics import pose_error
    >>> from skcryo.orientation import VectorDiffusionMaps
    >>> stack, truth = make_particles(make_molecule(32, random_state=0), 600, snr=0.5, random_state=0)
    >>> vdm = VectorDiffusionMaps().fit(stack[:500])
    >>> bool(pose_error(vdm.rotations_, truth.rotations[:500]).mean < 10)
    True
    >>> vdm.predict(stack[500:]).shape
    (100, 3, 3)
    """

    _parameter_constraints: dict = {
        "n_frequencies": [Interval(Integral, 1, 20, closed="both")],
        "n_neighbors": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"})],
        "pca": [HasMethods(["fit", "transform", "complex_coefficients"]), None],
        "n_jobs": [Integral, None],
    }

    def __init__(self, n_frequencies=5, *, n_neighbors="auto", pca=None, n_jobs=None):
        self.n_frequencies = n_frequencies
        self.n_neighbors = n_neighbors
        self.pca = pca
        self.n_jobs = n_jobs

    @_fit_context(prefer_skip_nested_validation=False)
    def fit(self, X, y=None, *, ctf=None):
        """Find rotations.

        Parameters
        ----------
        X : ParticleStack or array-like of shape (n_images, L, L) or (n_images, n_pixels)
            Particle images, three at least. Shifts that it carries are undone; poses that it carries are not used.
        y : None
            Ignored.
        ctf : structured array of shape (n_images,), default=None
            CTFs (:data:`skcryo.ctf.CTF_DTYPE`). None: those that `X` carries, if any.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If images are not square and finite, or fewer than three; if there are not more images than neighbours.

        Warns
        -----
        ConvergenceWarning
            If no three eigenvectors stand out.
        """
        stack = self._stack(X, ctf, reset=True)
        n, k = len(stack), self._n_neighbors(len(stack))
        with FitProgress(self, X, y, max_steps=3) as progress:
            with progress.step("components"):
                self.pca_ = (SteerablePCA() if self.pca is None else clone(self.pca)).fit(stack)
                self.coefficients_ = self._coefficients(stack)
            with progress.step("neighbors"):
                self.neighbors_ = invariant_neighbors(
                    self.coefficients_, self.coefficients_, k, exclude_self=True, n_jobs=self.n_jobs
                )
            with progress.step("rotations"):
                self._solve(np.ones((n, k)))
                if self.n_frequencies > 1:
                    denoised = poses_from_eigenvectors(self._denoised_spectrum(k)[1])
                    self._solve((self._deviations(denoised) < _OUTLIER).astype(float))
        self.deviations_ = np.degrees(np.median(self._deviations(self.rotations_), axis=1))
        self.converged_ = self.spectral_gap_ >= _SMALLEST_GAP
        if not self.converged_:
            warnings.warn(
                f"VectorDiffusionMaps did not converge: the spectral gap is {self.spectral_gap_:.2f}, where "
                f"{_SMALLEST_GAP} is wanted; poses may be wrong: more or better images, or fewer neighbours "
                "(n_neighbors), are wanted",
                ConvergenceWarning,
                stacklevel=3,
            )
        return self

    def _solve(self, weights):
        """Poses by these weights of neighbours, unless those that are there have the larger gap."""
        values, vectors = connection_spectrum(self.neighbors_, 1, 4, weights)
        gap = float((1 - values[3]) / max(1 - values[2], 1e-12))
        if weights.all() or gap > self.spectral_gap_:
            self.weights_, self.eigenvalues_, self.spectral_gap_ = weights, values, gap
            self.rotations_ = poses_from_eigenvectors(vectors)

    def _denoised_spectrum(self, k):
        features = multi_frequency_features(self.neighbors_, self.n_frequencies, _N_SPACES)
        frequencies = range(1, self.n_frequencies + 1)
        denoised = invariant_neighbors(
            features, features, k, frequencies=frequencies, exclude_self=True, n_jobs=self.n_jobs
        )
        return connection_spectrum(denoised, 1, 3)

    def _deviations(self, rotations):
        """Angles (n, n_neighbors) between poses and what neighbours predict, in radians."""
        n, k = self.neighbors_.indices.shape
        predicted = (rotations[self.neighbors_.indices] @ self.neighbors_.relative_rotations()).reshape(-1, 3, 3)
        return geodesic_distance(predicted, np.repeat(rotations, k, axis=0)).reshape(n, k)

    def _n_neighbors(self, n):
        if isinstance(self.n_neighbors, str):
            return min(max(5, int(0.45 * np.sqrt(n))), n - 1)
        if self.n_neighbors >= n:
            raise ValueError(f"n_neighbors is {self.n_neighbors} but X has {n} images; fewer neighbours are wanted")
        return self.n_neighbors

    def _stack(self, X, ctf, *, reset):
        stack = validate_lazy(self, X, reset=reset, ensure_min_samples=3 if reset else 1)
        ctf = resolve_ctf(stack, ctf)
        if ctf is not None:
            resolve_pixel_size(stack, required_by="a CTF")
        return stack.replace(ctf=ctf)

    def _coefficients(self, stack):
        return self.pca_.complex_coefficients(self.pca_.transform(stack))

    def fit_predict(self, X, y=None, *, ctf=None):
        """Fit, and return the rotations of the images.

        Parameters
        ----------
        X, y, ctf : as in :meth:`fit`

        Returns
        -------
        rotations : ndarray of shape (n_images, 3, 3), float64
            ``rotations_``.
        """
        return self.fit(X, y, ctf=ctf).rotations_

    def predict(self, X, *, ctf=None):
        """Rotations of images, each by itself, from its neighbours among those that were fitted.

        Parameters
        ----------
        X : ParticleStack or array-like of shape (n_images, L, L) or (n_images, n_pixels)
            Shifts that it carries are undone.
        ctf : structured array of shape (n_images,), default=None
            None: those that `X` carries, if any.

        Returns
        -------
        rotations : ndarray of shape (n_images, 3, 3), float64
            Of each image the geodesic median of what its neighbours predict, in the frame of ``rotations_``.
        """
        return self._predict(X, ctf)[0]

    def score(self, X, y=None, *, ctf=None):
        """Minus the mean angle between poses and those that neighbours predict, in degrees.

        Parameters
        ----------
        X, ctf : as in :meth:`predict`
        y : None
            Ignored; for scores by true poses see :func:`skcryo.metrics.make_pose_scorer`.

        Returns
        -------
        score : float
        """
        return -float(np.degrees(self._predict(X, ctf)[1].mean()))

    def _predict(self, X, ctf):
        check_is_fitted(self, "rotations_")
        coefficients = self._coefficients(self._stack(X, ctf, reset=False))
        n, k = len(coefficients[0]), self.neighbors_.indices.shape[1]
        near = invariant_neighbors(coefficients, self.coefficients_, k, n_jobs=self.n_jobs)
        predicted = self.rotations_[near.indices] @ near.relative_rotations()
        weights = np.ones((n, k))
        for _ in range(_N_MEAN_STEPS):
            u, _, vt = np.linalg.svd(np.einsum("ij,ijab->iab", weights, predicted))
            u[:, :, 2] *= np.sign(np.linalg.det(u @ vt))[:, None]
            rotations = u @ vt
            angles = geodesic_distance(predicted.reshape(-1, 3, 3), np.repeat(rotations, k, axis=0)).reshape(n, k)
            weights = 1 / np.maximum(angles, 0.1)
        return rotations, angles
