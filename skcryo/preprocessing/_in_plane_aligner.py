"""In-plane angles and shifts of raw particles, by classes that are found along with them."""

import warnings
from numbers import Integral, Real
from os import PathLike

import numpy as np
import scipy.fft
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state

from .._callback import CallbackSupportMixin, FitProgress
from .._ext._align import add_aligned
from .._validation import (
    Interval,
    StackTagsMixin,
    StrOptions,
    _fit_context,
    check_is_fitted,
    is_particle_stack,
    is_stack_of_images,
    iter_finite_chunks,
    padded_to,
    resolve_optics,
    validate_lazy,
)
from ..ctf import rotate_ctf
from ..decomposition._disc_basis import disc_basis
from ..io._checkpoint import StageCheckpoints
from ..rotations import in_plane_rotation
from ._geometry import ring_index
from ._in_plane_classes import class_sums, locate
from ._in_plane_fit import AlignerFit
from ._in_plane_images import BandImages, Coefficients
from ._in_plane_search import ShiftGrids
from ._whiten import noise_spectrum

__all__ = ["InPlaneAligner"]

_SMALLEST_BOX = 8
_AUTO_SHIFT = 0.071  # of the box: 5 % in x and in y
_AUTO_CLASS = 40  # images a class
_MOST_CLASSES = 300
_MOST_LEARNED = 20000
_MAX_ANGULAR_FREQUENCY = 16
_CHUNK = 4096
_LEAST_ALIVE = 0.2  # of the mean size of a class
_COLLAPSED = 0.75  # share of classes alive, or effective
_LEAST_POWER = 1e-6  # of a ring's noise, relative to the strongest


class InPlaneAligner(CallbackSupportMixin, StackTagsMixin, TransformerMixin, BaseEstimator, auto_wrap_output_keys=None):
    """Turn and centre raw particle images, by regularised maximum likelihood over many classes.

    Every image is one of `n_classes` class averages, turned, moved, and filtered by the image's CTF, in noise whose
    variance depends on the Fourier ring [1]_. Classes, angles and shifts are found together, starting from single
    images, and :meth:`transform` gives images that are turned back and centred: what
    :class:`~skcryo.cluster.SMLClustering` wants.

    Parameters
    ----------
    n_classes : int or "auto", default="auto"
        "auto": one for 40 images, 300 at most.
    max_shift : float or "auto", default="auto"
        Largest shift searched, px; 0: images are centred. "auto": 0.071 of the box, 5 % in x and in y. Shifts that
        images bring along are undone first, and this is how far off they may be.
    max_ring : int, default=16
        Highest frequency compared, in cycles per box.
    max_iter : int, default=50
        Most iterations of the last stage; those before it, which only find shifts, take 12 at most.
    tol : float, default=0.02
        The fit has converged when at most this share of the images changes class in an iteration.
    checkpoint_dir : path, default=None
        Folder where the state is saved after every iteration; a fit that was killed goes on from there to the same
        result, if data and parameters are the same.
    n_jobs : int, default=None
        Threads, as joblib understands it. Results do not depend on it.
    random_state : int, RandomState instance or None, default=None
        Of the images that classes start from.

    Attributes
    ----------
    labels_ : ndarray of shape (n_images,), int32
        Class of each image.
    angles_ : ndarray of shape (n_images,), float64
        Radians: an image shows its class average turned by this angle, as of
        :func:`skcryo.fourier.rotate_images`, then moved by its shift.
    shifts_ : ndarray of shape (n_images, 2), float64
        (x, y), px: where the particle's centre lies relative to the image's; of shifts that came with `X` and what
        was found beyond, the sum.
    class_averages_ : ndarray of shape (n_classes, L, L)
        Centred, with CTFs undone, of mean zero; all in one frame: those of similar views are turned alike, as far as
        a sphere of views lets them.
    class_biases_ : ndarray of shape (n_classes,), float64
        Added to log-likelihoods, nats: classes are of about one size.
    noise_spectrum_ : ndarray of shape (L // 2 + 1,), float64
        Variance of the noise by Fourier ring, of the background around the particles
        (:func:`skcryo.preprocessing.noise_spectrum`); where there is none, the power of the images.
    n_classes_ : int
    n_iter_ : int
        Iterations of all stages.
    converged_ : bool
    n_features_in_ : int
    image_shape_ : tuple of two ints

    Warns
    -----
    ConvergenceWarning
        If more images than `tol` still change class after `max_iter` iterations; if classes collapsed, that is a
        quarter of them hold less than a fifth of an equal share of the images.

    See Also
    --------
    skcryo.cluster.SMLClustering : Finer classes of the images that come out.
    skcryo.cluster.RotInvWassersteinKMeans : Classes that stay as they are.
    Centerer : Looks at one image at a time.

    Notes
    -----
    The CTF is in the likelihood: images are compared with filtered averages, and averages are Wiener estimates. Of
    an astigmatic CTF the images see all, the squares that weigh averages see the mean over directions.

    Averages lie in the span of the images' steerable components, CTFs undone, and have their variances for a prior.
    Each image is compared with the average of its own class without itself, or its noise would hold it where it is.
    Classes do not collapse: each starts from one image, and in every iteration biases make them equally large
    (Sinkhorn's iteration), which suits views that cover the sphere about evenly. Shifts are searched jointly with
    class and angle, first coarse, then fine, by 25 classes; averages that drifted off centre are brought back together
    by comparing them with each other (:func:`~skcryo.alignment.synchronize_averages`), and then the wanted classes are
    made anew at known shifts, three times, the shifts refined in between.

    Of a simulated ribosome (2000 images of 65 px, 50 classes, shifts within 3 px) angles within a class were off by
    1.2 degrees and shifts by 0.3 px at SNR 0.1 (median); 1.5 degrees and 0.4 px at 0.05; 2.6 degrees and 0.8 px at
    0.02; in half a minute on one thread.

    At most 20000 images, drawn by chance, take part in the learning; the others are aligned to what was found and
    take part in ``class_averages_``. Memory is bounded. Rows that are no square image, and images below 8 pixels, are
    padded with zeros for the comparison.

    ``transform`` turns images by cubic splines. Poses that a stack carries are turned along, and so are CTFs.

    References
    ----------
    .. [1] Scheres: A Bayesian view on cryo-EM structure determination. J. Mol. Biol. 415 (2012); with it J. Wu et al.,
       PLoS ONE 12 (2017), align before statistical manifold learning (ROME).

    Examples
    --------
    >>> from skcryo.datasets import make_molecule, make_particles
    >>> from skcryo.preprocessing import InPlaneAligner
    >>> stack, truth = make_particles(make_molecule(24, random_state=0), 80, preset="shifted", snr=2.0, random_state=0)
    >>> aligner = InPlaneAligner(4, max_shift=2, random_state=0)
    >>> aligned = aligner.fit_transform(stack)
    >>> aligned
    ParticleStack(shape=(80, 24, 24), dtype=float32, pixel_size=5, shifts)
    >>> aligner.class_averages_.shape, aligner.angles_.shape, aligner.shifts_.shape
    ((4, 24, 24), (80,), (80, 2))
    """

    _parameter_constraints: dict = {
        "n_classes": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"})],
        "max_shift": [Interval(Real, 0, None, closed="left"), StrOptions({"auto"})],
        "max_ring": [Interval(Integral, 1, None, closed="left")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, 1, closed="left")],
        "checkpoint_dir": [str, PathLike, None],
        "n_jobs": [Integral, None],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        n_classes="auto",
        *,
        max_shift="auto",
        max_ring=16,
        max_iter=50,
        tol=0.02,
        checkpoint_dir=None,
        n_jobs=None,
        random_state=None,
    ):
        self.n_classes = n_classes
        self.max_shift = max_shift
        self.max_ring = max_ring
        self.max_iter = max_iter
        self.tol = tol
        self.checkpoint_dir = checkpoint_dir
        self.n_jobs = n_jobs
        self.random_state = random_state

    # ------------------------------------------------------------------------------------------------- fit
    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y=None, *, ctf=None):
        """Find classes, angles and shifts.

        Parameters
        ----------
        X : ParticleStack or array-like of shape (n_images, L, L) or (n_images, n_pixels)
            Raw particles, brighter than their background.
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
            If `X` holds fewer images than classes, or images that are not square or not finite; if `ctf` does not fit
            `X` or the pixel size is not known; if `max_shift` is half of the box or more.
        """
        stack = validate_lazy(self, X, ensure_min_samples=1)
        pixel_size, ctf = resolve_optics(stack, ctf)
        n, L = len(stack), stack.shape[1]
        automatic = isinstance(self.n_classes, str)
        self.n_classes_ = min(max(n // _AUTO_CLASS, 1), _MOST_CLASSES) if automatic else int(self.n_classes)
        if n < self.n_classes_:
            raise ValueError(
                f"n_samples={n} should be >= n_classes={self.n_classes_}: so many classes need as many images"
            )
        box = max(L, _SMALLEST_BOX)
        max_shift = _AUTO_SHIFT * L if isinstance(self.max_shift, str) else float(self.max_shift)
        if max_shift >= box / 2:
            raise ValueError(f"max_shift must be below half the box of {box} px, got {self.max_shift}")
        ring = min(self.max_ring, (box - 1) // 2)
        self._band = (box, ring / box, _MAX_ANGULAR_FREQUENCY), ring
        self._grids = ShiftGrids(max_shift, box / ring)
        seed = check_random_state(self.random_state).randint(np.iinfo(np.int32).max)
        self.noise_spectrum_ = _noise_by_ring(stack)
        chosen = np.arange(n)
        if n > _MOST_LEARNED:
            chosen = np.sort(np.random.RandomState(seed).permutation(n)[:_MOST_LEARNED])
        saved = StageCheckpoints(self.checkpoint_dir, self._fingerprint(stack, ctf))
        with FitProgress(self, X, y) as progress:
            found = AlignerFit(
                self._read(stack[chosen], None if ctf is None else ctf[chosen], pixel_size),
                self._band[0],
                self.n_classes_,
                grids=self._grids,
                max_iter=self.max_iter,
                tol=self.tol,
                seed=seed,
                n_jobs=self.n_jobs,
                progress=progress,
                saved=saved,
            ).run()
        self._span, self._averages = found.span, found.averages
        self.n_classes_ = len(found.averages)  # of a fit that was stopped early, fewer than wanted
        self.class_biases_, self.n_iter_, self.converged_ = (found.biases, found.n_iter, found.converged)
        dtype = np.float64 if stack.dtype == np.float64 else np.float32
        self._assign_all(stack, ctf, pixel_size, dtype)
        self._warn(found, progress.stopped)
        return self

    @property
    def _basis(self):
        return disc_basis(*self._band[0])

    def _read(self, stack, ctf, pixel_size):
        return BandImages.from_stack(stack, self._spectrum, self._band[1], self._basis, ctf=ctf, pixel_size=pixel_size)

    @property
    def _spectrum(self):
        """Of the noise in the box of the basis."""
        wanted = self._band[0][0] // 2 + 1
        return np.pad(self.noise_spectrum_, (0, wanted - len(self.noise_spectrum_)), mode="edge")

    def _fingerprint(self, stack, ctf):
        if self.checkpoint_dir is None:
            return None
        from ..reconstruction._half_sets import fingerprint

        params = self.get_params(deep=False)
        if isinstance(self.random_state, np.random.RandomState):
            params["random_state"] = "given"
        for name in ("checkpoint_dir", "n_jobs"):
            params.pop(name)
        return fingerprint(params, stack, (ctf, stack.shifts))

    def _located(self, stack, ctf, pixel_size):
        """Of chunks of images: where, band coefficients, class, angle and shift."""
        for start in range(0, len(stack), _CHUNK):
            where = slice(start, min(start + _CHUNK, len(stack)))
            images = self._read(stack[where], None if ctf is None else ctf[where], pixel_size)
            yield (
                where,
                images,
                locate(self._span, images, self._averages, self.class_biases_, self._grids, self.n_jobs),
            )

    def _assign_all(self, stack, ctf, pixel_size, dtype):
        n, sums, filters = len(stack), 0.0, 0.0
        self.labels_, self.angles_ = np.empty(n, dtype=np.int32), np.empty(n)
        self.shifts_ = np.zeros((n, 2)) if stack.shifts is None else stack.shifts.copy()
        for where, images, (labels, angles, shifts) in self._located(stack, ctf, pixel_size):
            self.labels_[where], self.angles_[where] = labels, angles
            self.shifts_[where] += shifts
            more = class_sums(Coefficients(self._span, images, shifts), labels, angles, shifts, self.n_classes_)
            sums, filters = sums + more[0], filters + more[1]
        box, L = self._basis.L, stack.shape[1]
        images = self._span.images(self._span.posterior_means(sums, filters))
        first = box // 2 - L // 2
        self.class_averages_ = images[:, first : first + L, first : first + L].astype(dtype)

    def _warn(self, found, stopped):
        name = type(self).__name__
        if not found.converged and not stopped:
            warnings.warn(
                f"{name} did not converge in max_iter={self.max_iter} iterations: {found.moved:.1%} of the images "
                f"changed class in the last one (tol={self.tol:.1%})",
                ConvergenceWarning,
                stacklevel=3,
            )
        counts = np.bincount(self.labels_, minlength=self.n_classes_)
        n_alive = int(np.count_nonzero(counts >= _LEAST_ALIVE * counts.mean()))
        if n_alive < _COLLAPSED * self.n_classes_:
            warnings.warn(
                f"classes collapsed: {self.n_classes_ - n_alive} of the n_classes={self.n_classes_} hold less than "
                f"{_LEAST_ALIVE:.0%} of an equal share of the images; are there as many different views?",
                ConvergenceWarning,
                stacklevel=3,
            )

    # ------------------------------------------------------------------------------------------------- use
    def align(self, X, *, ctf=None):
        """Class, in-plane angle and shift of each image, each by itself.

        Parameters
        ----------
        X : ParticleStack or array-like of shape (n_images, L, L) or (n_images, n_pixels)
        ctf : structured array of shape (n_images,), default=None
            None: those that `X` carries, if any.

        Returns
        -------
        labels : ndarray of shape (n_images,), int32
        angles : ndarray of shape (n_images,), float64
            Radians, as ``angles_``.
        shifts : ndarray of shape (n_images, 2), float64
            (x, y), px, as ``shifts_``.
        """
        check_is_fitted(self, "labels_")
        stack = validate_lazy(self, X, reset=False)
        pixel_size, ctf = resolve_optics(stack, ctf)
        n = len(stack)
        labels, angles = np.empty(n, dtype=np.int32), np.empty(n)
        shifts = np.zeros((n, 2)) if stack.shifts is None else stack.shifts.copy()
        for where, _, (label, angle, shift) in self._located(stack, ctf, pixel_size):
            labels[where], angles[where] = label, angle
            shifts[where] += shift
        return labels, angles, shifts

    def transform(self, X, *, ctf=None):
        """Images turned into the frame of their class averages, and centred.

        Parameters
        ----------
        X, ctf : as in :meth:`align`

        Returns
        -------
        aligned : ParticleStack or ndarray
            A stack for a stack, (n_images, L, L) for that, rows for rows; dtype as `X`. A stack in files is turned as
            it is read. Its shifts are zero, for the images that it holds are centred; CTFs and poses that it carries
            are turned along. Angles and shifts that were undone are those of :meth:`align`.
        """
        return self._aligned(X, *self.align(X, ctf=ctf)[1:], ctf)

    def fit_transform(self, X, y=None, *, ctf=None):
        """Fit, and return the images turned and centred.

        Parameters
        ----------
        X, y, ctf : as in :meth:`fit`

        Returns
        -------
        aligned : as of :meth:`transform`
        """
        self.fit(X, y, ctf=ctf)
        return self._aligned(X, self.angles_, self.shifts_, ctf)

    def _aligned(self, X, angles, shifts, ctf):
        stack = validate_lazy(self, X, reset=False)
        mapped = turned_stack(stack, angles, shifts, ctf=resolve_optics(stack, ctf)[1])
        if is_particle_stack(X):
            return mapped.load() if stack.in_memory else mapped
        images = np.asarray(mapped)
        return images if is_stack_of_images(X) else images.reshape(len(images), -1)[:, : self.n_features_in_]


def turned_stack(stack, angles, shifts, *, ctf=None):
    """Images turned back and centred, as they are read; CTFs and poses that belong to them turned along.

    Parameters
    ----------
    stack : ParticleStack
    angles : ndarray of shape (n_images,)
        Radians, as `angles_` of :class:`InPlaneAligner`.
    shifts : ndarray of shape (n_images, 2)
        Px, as its `shifts_`.
    ctf : structured array of shape (n_images,), default=None

    Returns
    -------
    turned : ParticleStack
        Lazy; its shifts are zero.
    """
    changes = {"shifts": np.zeros_like(shifts)}
    if ctf is not None:
        changes["ctf"] = rotate_ctf(ctf, -angles)
    if stack.rotations is not None:
        changes["rotations"] = stack.rotations @ in_plane_rotation(angles)
    return stack.map(turn_back, per_image={"angles": angles, "shifts": shifts}, **changes)


def turn_back(images, angles, shifts):
    """Images moved by minus their shifts, then turned by minus their angles, by one interpolation."""
    n = len(images)
    out = np.zeros(images.shape, dtype=np.float32)
    add_aligned(
        np.ascontiguousarray(images, dtype=np.float32),
        np.arange(n),
        np.arange(n + 1),
        np.ascontiguousarray(angles),
        np.ascontiguousarray(shifts),
        np.ones(n, dtype=np.float32),
        2.0 * images.shape[-1],
        out,
        1,
    )
    return out.astype(images.dtype, copy=False)


def _noise_by_ring(stack):
    """Spectrum of the background; where there is none, of the images."""
    if stack.shape[1] >= _SMALLEST_BOX:
        try:
            return noise_spectrum(stack)
        except ValueError as error:
            if "background" not in str(error):
                raise
    stack = padded_to(stack, _SMALLEST_BOX)
    rings = ring_index(stack.image_shape)
    power = np.zeros(rings.shape)
    for _, images in iter_finite_chunks(stack):
        images = images - images.mean(axis=(1, 2), keepdims=True)
        power += np.square(np.abs(scipy.fft.fft2(images))).sum(axis=0, dtype=np.float64)
    power = np.bincount(rings.ravel(), power.ravel()) / np.bincount(rings.ravel()) / (len(stack) * rings.size)
    strongest = power.max()
    return np.maximum(power, _LEAST_POWER * strongest) if strongest > 0 else np.ones_like(power)
