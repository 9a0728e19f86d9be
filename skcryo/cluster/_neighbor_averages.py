"""Averages of the images most like each image."""

from numbers import Integral

import numpy as np
import scipy.fft
from sklearn.base import BaseEstimator, TransformerMixin, clone

from .._ext._emd import max_threads
from .._validation import (
    HasMethods,
    Interval,
    StackTagsMixin,
    StrOptions,
    _fit_context,
    check_is_fitted,
    is_particle_stack,
    is_stack_of_images,
    resolve_ctf,
    resolve_pixel_size,
    validate_lazy,
)
from ..alignment import class_averages
from ..decomposition import SteerablePCA
from ..decomposition._invariant_neighbors import invariant_neighbors
from ..fourier import shell_index

__all__ = ["NearestNeighborAverages"]

_BLOCK_BYTES = 64 * 2**20
_N_SPECTRUM = 500  # denoised images whose power is looked at
_WEAKEST = 1e-4  # signal power in a ring, relative to the noise


class NearestNeighborAverages(StackTagsMixin, TransformerMixin, BaseEstimator, auto_wrap_output_keys=None):
    """Average of the images most like each image, turned and mirrored to match it.

    Every image is the centre of a class of its own: of the images that were fitted, the nearest over all turns and
    mirror images are looked for among steerable coefficients [1]_, and averaged with their CTFs undone.

    Parameters
    ----------
    n_neighbors : int or "auto", default="auto"
        Images in each average, an image that was fitted being its own first neighbour. "auto": the root of their
        number, 5 at least. More are less noisy, and more blurred: the furthest view is off by ``acos(1 - n_neighbors
        / n_images)``.
    pca : SteerablePCA, default=None
        What likeness is measured in: a clone is fitted. None: SteerablePCA with its defaults.
    n_jobs : int, default=None
        Threads. None: all cores (OMP_NUM_THREADS is respected). Results do not depend on it.

    Attributes
    ----------
    neighbors_ : Neighbors
        Of the images that were fitted among themselves: ``indices`` (n_images, n_neighbors), ``angles``,
        ``reflected``, ``distances``; nearest first.
    n_neighbors_ : int
    pca_ : SteerablePCA
        The fitted one.
    tau_ : ndarray of shape (n_rings,), float64
        Power of the noise over that of the signal in each Fourier ring, for the Wiener filter where there are CTFs.
    n_features_in_ : int
    image_shape_ : tuple of two ints

    See Also
    --------
    RotInvWassersteinKMeans : Few classes, each of many images.
    skcryo.alignment.class_averages : How images are averaged.

    Notes
    -----
    Images must be centred, or carry their shifts; shifts are not searched for. Without CTFs an average is the plain
    mean. The estimator keeps the images that it was fitted on, by reference: those in files stay there. Every
    average of k images reads k images; memory is bounded. Rows that are no square image, and images below 8 pixels,
    are padded with zeros for the comparison.

    References
    ----------
    .. [1] Zhao, Singer, "Rotationally invariant image representation for viewing direction classification in
       cryo-EM", J. Struct. Biol. 186 (2014): their neighbours by bispectrum, here by the distance itself.

    Examples
    --------
    >>> from skcryo.cluster import NearestNeighborAverages
    >>> from skcryo.datasets import make_molecule, make_particles
    >>> stack, truth = make_particles(make_molecule(32, random_state=0), 400, snr=0.2, random_state=0)
    >>> averages = NearestNeighborAverages(10).fit_transform(stack)
    >>> averages
    ParticleStack(shape=(400, 32, 32), dtype=float32, pixel_size=5)
    >>> bool(((averages - truth.clean) ** 2).mean() < 0.3 * ((stack - truth.clean) ** 2).mean())
    True
    """

    _parameter_constraints: dict = {
        "n_neighbors": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"})],
        "pca": [HasMethods(["fit", "transform", "complex_coefficients"]), None],
        "n_jobs": [Integral, None],
    }

    def __init__(self, n_neighbors="auto", *, pca=None, n_jobs=None):
        self.n_neighbors = n_neighbors
        self.pca = pca
        self.n_jobs = n_jobs

    @_fit_context(prefer_skip_nested_validation=False)
    def fit(self, X, y=None, *, ctf=None):
        """Find the neighbours of all images.

        Parameters
        ----------
        X : ParticleStack or array-like of shape (n_images, L, L) or (n_images, n_pixels)
            Centred images, or a stack with their shifts.
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
            If images are not square and finite, or fewer than two or than `n_neighbors`.
        """
        stack = self._checked(X, ctf, reset=True)
        n = len(stack)
        self.n_neighbors_ = min(max(5, int(np.sqrt(n))), n) if isinstance(self.n_neighbors, str) else self.n_neighbors
        if self.n_neighbors_ > n:
            raise ValueError(f"n_neighbors is {self.n_neighbors} but X has {n} images; no more neighbours than that")
        self._stack = stack
        self.pca_ = (SteerablePCA() if self.pca is None else clone(self.pca)).fit(stack)
        coefficients = self.pca_.transform(stack)
        self._coefficients = self.pca_.complex_coefficients(coefficients)
        self.neighbors_ = self._neighbors(self._coefficients)
        self.tau_ = self._noise_to_signal(coefficients[:_N_SPECTRUM])
        return self

    def kneighbors(self, X, *, ctf=None):
        """Nearest images among those that were fitted.

        Parameters
        ----------
        X, ctf : as in :meth:`transform`

        Returns
        -------
        neighbors : Neighbors
            As ``neighbors_``.
        """
        check_is_fitted(self, "neighbors_")
        stack = self._checked(X, ctf, reset=False)
        return self._neighbors(self.pca_.complex_coefficients(self.pca_.transform(stack)))

    def transform(self, X, *, ctf=None):
        """Average of the nearest fitted images, for every image.

        Parameters
        ----------
        X : ParticleStack or array-like of shape (n_images, L, L) or (n_images, n_pixels)
            Images to match; unless they were fitted, they are no part of their averages.
        ctf : structured array of shape (n_images,), default=None
            None: those that `X` carries, if any.

        Returns
        -------
        averages : ParticleStack or ndarray
            Centred, turned as the images are, without CTF. A stack for a stack, (n_images, L, L) for that, rows for
            rows; dtype as `X`.
        """
        return self._averaged(X, self.kneighbors(X, ctf=ctf))

    def fit_transform(self, X, y=None, *, ctf=None):
        """Fit, and average the neighbours of every image.

        Parameters
        ----------
        X, y, ctf : as in :meth:`fit`

        Returns
        -------
        averages : as of :meth:`transform`
        """
        self.fit(X, y, ctf=ctf)
        return self._averaged(X, self.neighbors_)

    def _checked(self, X, ctf, *, reset):
        stack = validate_lazy(self, X, reset=reset, ensure_min_samples=2 if reset else 1)
        ctf = resolve_ctf(stack, ctf)
        if ctf is not None:
            resolve_pixel_size(stack, required_by="a CTF")
        return stack.replace(ctf=ctf)

    def _neighbors(self, coefficients):
        return invariant_neighbors(coefficients, self._coefficients, self.n_neighbors_, n_jobs=self.n_jobs)

    def _noise_to_signal(self, coefficients):
        denoised = self.pca_.inverse_transform(coefficients)
        shells = shell_index(denoised.shape[1], half=True).ravel()
        power = np.mean(np.abs(scipy.fft.rfft2(denoised)) ** 2, axis=0).ravel() / denoised[0].size
        signal = np.bincount(shells, weights=power) / np.bincount(shells)
        noise = self.pca_.noise_variance_
        return noise / np.maximum(signal, max(_WEAKEST * noise, np.finfo(np.float32).tiny))

    def _averaged(self, X, neighbors):
        stack, (height, width) = self._stack, self.image_shape_
        n, k = neighbors.indices.shape
        is_stack = is_particle_stack(X)
        out = np.empty((n, height, width), dtype=np.float64 if _is_double(X) else np.float32)
        size = max(1, _BLOCK_BYTES // (4 * k * height * width))
        for start in range(0, n, size):
            block = slice(start, min(start + size, n))
            chosen = stack[neighbors.indices[block].ravel()]
            mirrored = neighbors.reflected[block].ravel()
            out[block] = class_averages(
                _mirrored(np.asarray(chosen, dtype=np.float32), mirrored),
                np.repeat(np.arange(block.stop - block.start), k),
                -neighbors.angles[block].ravel(),
                None if chosen.shifts is None else chosen.shifts * np.where(mirrored[:, None], (1, -1), (1, 1)),
                block.stop - block.start,
                ctf=_mirrored_ctf(chosen.ctf, mirrored),
                pixel_size=stack.pixel_size,
                tau="auto" if chosen.ctf is None else self.tau_,
                n_jobs=max_threads() if self.n_jobs is None else self.n_jobs,
            )[0]
        if is_stack:
            return X.replace(data=out, ctf=None, shifts=None)
        return out if is_stack_of_images(X) else out.reshape(n, -1)[:, : self.n_features_in_]


def _is_double(X):
    dtype = getattr(X, "dtype", np.dtype(np.float64))
    return np.dtype(dtype) not in [
        np.dtype(t) for t in (np.float32, np.float16, np.int8, np.uint8, np.int16, np.uint16)
    ]


def _mirrored(images, which):
    """Images, some of them mirrored about the x axis, y -> -y about the centre L // 2."""
    images, flipped = images.copy(), images[which, ::-1]
    images[which] = np.roll(flipped, 1, axis=1) if images.shape[1] % 2 == 0 else flipped
    return images


def _mirrored_ctf(ctf, which):
    if ctf is None:
        return None
    ctf = ctf.copy()
    ctf["defocus_angle"][which] *= -1
    return ctf
