"""A volume from images whose poses are known."""

import time
from numbers import Integral, Real
from os import PathLike

import joblib
import numpy as np
import scipy.fft
from sklearn.base import BaseEstimator
from sklearn.base import clone as clone_estimator
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
    is_stack_of_images,
    iter_finite_chunks,
    num_images,
    resolve_ctf,
    resolve_pixel_size,
    validate_lazy,
    validate_parameters,
)
from ..fourier import check_shifts
from ..io import load_checkpoint, save_checkpoint
from ..metrics import fsc, fsc_resolution
from ..particles import as_stack
from ..projection import VolumeProjector
from ..rotations import check_rotations
from ._accumulator import half_plane
from ._half_sets import HalfSets, chunk_size, fingerprint
from ._known_poses import known_poses
from ._priors import fsc_prior

_CHECKPOINT = "reconstruction"
_WEAK = 0.05  # prior of the half maps, of which the correlation matters, in mean samples per voxel


class FourierReconstructor(CallbackSupportMixin, StackTagsMixin, BaseEstimator):
    """Volume from images with known poses: CTF-corrected, with half maps, filtered by what they agree on.

    Two halves of the images are summed into Fourier space and the regularised least-squares problem of each, and of
    all, is solved. How much noise a shell holds is told by the Fourier shell correlation of the two half maps, and
    the Wiener filter that follows is always applied: without it a volume at the usual signal-to-noise ratios is
    mostly noise.

    Parameters
    ----------
    mask_radius : float or "auto", default="auto"
        Radius in pixels of the ball that holds the particle; beyond a soft edge of a tenth of it volumes are zero.
        "auto": 0.45 L, so that the edge ends where the box does. A tight ball takes noise away and raises the
        correlation of the half maps, as it should.
    max_frequency : float, default=0.5
        Cycles per pixel up to which images are used.
    n_iter : int, default=3
        Iterations of conjugate gradients with which the volume is refined, see :meth:`FourierAccumulator.solve`. They
        take out what division leaves in the lowest shells and where views are uneven; 3 are converged. 0 saves
        memory with boxes of hundreds of pixels. Half maps are made by division alone.
    missing_poses : {"error", "identity"}, default="error"
        What happens to images without rotations. "identity": they are taken as views along z with nothing turned, as
        one who averages aligned images of one view wants it, and scikit-learn's own tools, which know no poses.
    checkpoint_dir : path, default=None
        Folder where the sums are saved every 20 seconds; a fit that was killed goes on from there, to the same
        volume, if data and parameters are the same.
    n_jobs : int, default=None
        Threads. None: all cores (OMP_NUM_THREADS is respected). Results do not depend on it.
    random_state : int, RandomState instance or None, default=None
        Decides the half sets: of each two images that follow one another, chance sends one to either half.

    Attributes
    ----------
    volume_ : ndarray of shape (L, L, L), float32
        ``V[z, y, x]``, in units of the images per pixel.
    half_maps_ : ndarray of shape (2, L, L, L), float32
        Volumes of the half sets with the same mask but hardly filtered, as programs that sharpen maps want them:
        filtered first, they would seem to agree where the mask carries strong shells over into weak ones.
    fsc_ : ndarray of shape (L // 2 + 1,), float64
        Fourier shell correlation of the half maps.
    resolution_ : float
        Where `fsc_` falls below 0.143: in Angstrom if the pixel size is known, else in pixels; infinite if it never
        is above.
    resolution_pixels_ : float
        The same in pixels.
    prior_ : ndarray of shape (L // 2 + 1,), float64
        Noise over signal power in each shell, from `fsc_`: the filter, for :meth:`FourierAccumulator.solve`.
    noise_spectrum_ : ndarray of shape (L // 2 + 1,), float64
        Power of the noise in each ring, in units of the variance of a pixel: of the residuals of at most 256 images,
        evenly chosen, against the half map that they are not in.
    pixel_size_ : float or None
        Angstrom.
    n_images_ : int
        Images of positive weight that were used.
    n_features_in_ : int
        Pixels of an image.
    image_shape_ : tuple of two ints
        (height, width) of an image.

    See Also
    --------
    FourierAccumulator : The sums and their solution.
    reconstruct_classes : A volume for each class.
    skcryo.projection.project : Images of ``volume_`` at any poses.

    Notes
    -----
    Noise of one spectrum for all images needs no whitening here: within a shell it is a common factor of data and
    filter. Images of different noise are weighed by ``sample_weight``, one over the variance.

    Noise spectra from residuals do not suffer from signal outside the mask, as those from the border do
    (:func:`skcryo.preprocessing.noise_spectrum`).

    References
    ----------
    .. [1] Penczek: Fundamentals of three-dimensional reconstruction from projections. Methods in Enzymology 482
       (2010).
    .. [2] Scheres: RELION: implementation of a Bayesian approach to cryo-EM structure determination. Journal of
       Structural Biology 180 (2012).

    Examples
    --------
    >>> from skcryo.datasets import make_molecule, make_particles
    >>> from skcryo.metrics import fsc
    >>> from skcryo.reconstruction import FourierReconstructor
    >>> molecule = make_molecule(32, random_state=0)
    >>> stack, truth = make_particles(molecule, 300, preset="ctf", snr=0.5, random_state=0)
    >>> stack = stack.replace(rotations=truth.rotations, shifts=truth.shifts)
    >>> reconstructor = FourierReconstructor(random_state=0).fit(stack)
    >>> reconstructor.volume_.shape, reconstructor.half_maps_.shape
    ((32, 32, 32), (2, 32, 32, 32))
    >>> bool(fsc(reconstructor.volume_, molecule)[1:8].min() > 0.9)
    True
    """

    _parameter_constraints: dict = {
        "mask_radius": [Interval(Real, 0, None, closed="neither"), StrOptions({"auto"})],
        "max_frequency": [Interval(Real, 0, 0.5, closed="right")],
        "n_iter": [Interval(Integral, 0, None, closed="left")],
        "missing_poses": [StrOptions({"error", "identity"})],
        "checkpoint_dir": [str, PathLike, None],
        "n_jobs": [Integral, None],
        "random_state": ["random_state"],
    }
    _seconds_between_checkpoints = 20.0

    def __init__(
        self,
        *,
        mask_radius="auto",
        max_frequency=0.5,
        n_iter=3,
        missing_poses="error",
        checkpoint_dir=None,
        n_jobs=None,
        random_state=None,
    ):
        self.mask_radius = mask_radius
        self.max_frequency = max_frequency
        self.n_iter = n_iter
        self.missing_poses = missing_poses
        self.checkpoint_dir = checkpoint_dir
        self.n_jobs = n_jobs
        self.random_state = random_state

    # ------------------------------------------------------------------------------------------------- fit
    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y=None, *, rotations=None, shifts=None, ctf=None, half_sets=None, sample_weight=None):
        """Reconstruct, reading the images once, in chunks.

        Parameters
        ----------
        X : ParticleStack or array-like of shape (n_images, L, L) or (n_images, n_pixels)
            Particle images, light on dark.
        y : None
            Ignored.
        rotations : array-like of shape (n_images, 3, 3), default=None
            Poses. None: those that `X` carries; see `missing_poses` where it carries none.
        shifts : array-like of shape (n_images, 2), default=None
            (x, y) in pixels: where the particle's centre lies relative to the image's. None: those that `X` carries,
            else zero.
        ctf : structured array of shape (n_images,), default=None
            CTFs (:data:`skcryo.ctf.CTF_DTYPE`). None: those that `X` carries, if any.
        half_sets : array-like of shape (n_images,), default=None
            0 or 1: the half that each image belongs to, for example ``rlnRandomSubset - 1``. None: drawn by
            `random_state`.
        sample_weight : array-like of shape (n_images,), default=None
            Images of weight zero take no part.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If poses are missing, do not fit the images or are no rotations; if pixels are not finite; if fewer than
            two images remain, of which no half maps can be made; if the checkpoint is that of another fit.
        """
        stack = validate_lazy(self, X, ensure_min_samples=1)
        self._sums = None
        self._stream(stack, X, y, rotations, shifts, ctf, half_sets, sample_weight, resumable=True)
        self._sums = None
        return self

    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X, y=None, *, rotations=None, shifts=None, ctf=None, half_sets=None, sample_weight=None):
        """Add images to those of earlier calls and solve for the volume of all; for streams.

        The first call after :meth:`fit` begins anew. Calls on the parts of a stack give, up to rounding, the volume
        that :meth:`fit` gives on the whole. Between calls the sums are kept, 24 bytes for each sample of half a twice
        oversampled grid (31 MB at 64 pixels, 1.7 GB at 256).

        Parameters
        ----------
        X, y, rotations, shifts, ctf, half_sets, sample_weight : as in :meth:`fit`

        Returns
        -------
        self
        """
        first = getattr(self, "_sums", None) is None
        if first:
            self._sums = None
        stack = validate_lazy(self, X, reset=first, ensure_min_samples=1)
        self._stream(stack, X, y, rotations, shifts, ctf, half_sets, sample_weight, resumable=False)
        return self

    def _stream(self, stack, X, y, rotations, shifts, ctf, half_sets, sample_weight, *, resumable):
        L = self._box(stack)
        pixel_size = resolve_pixel_size(stack)
        if self._sums is not None and pixel_size != self.pixel_size_:
            raise ValueError(f"X has pixels of {pixel_size} A, but earlier calls had {self.pixel_size_} A")
        poses = self._poses(stack, rotations, shifts, ctf, pixel_size)
        half_sets = _check_half_sets(half_sets, len(stack))
        weights = check_sample_weight(sample_weight, stack, dtype=np.float64)
        used = np.flatnonzero(weights > 0)
        if len(used) < len(stack):
            stack, weights = stack[used], weights[used]
            poses = tuple(None if part is None else part[used] for part in poses)
            half_sets = None if half_sets is None else half_sets[used]
        if len(stack) + (0 if self._sums is None else self._sums.n_images) < 2:
            raise ValueError(
                f"n_samples={len(stack)} (images of positive weight): half maps need at least two images"
            )
        sums = self._sums
        if sums is None:
            seed = check_random_state(self.random_state).randint(np.iinfo(np.int32).max)
            sums = HalfSets(L, self.max_frequency, int(seed))
        checkpoint = _Checkpoint(self, stack, (*poses, weights, half_sets), sums, active=resumable)
        checkpoint.resume()
        start = sums.n_images if resumable else 0
        size = chunk_size(L)
        self.pixel_size_ = pixel_size
        n_jobs = _threads(self.n_jobs)

        def attributes():
            return self._solve(sums) | {"pixel_size_": pixel_size} if min(sums.counts) else {}

        chunks = iter_finite_chunks(stack[start:], chunk_size=size)
        with FitProgress(
            self, X, y, max_steps=-(-(len(stack) - start) // size), sample_weight=sample_weight
        ) as progress:
            for where, images in chunks:
                rows = slice(start + where.start, start + where.stop)
                with progress.step("chunk", attributes=attributes):
                    halves = sums.assign(len(images)) if half_sets is None else half_sets[rows]
                    part = tuple(None if values is None else values[rows] for values in poses)
                    sums.add(images, part, weights[rows], halves, pixel_size, n_jobs)
                    checkpoint.save()
                if progress.stopped:
                    checkpoint.save(now=True)
                    break
        if not min(sums.counts):
            raise ValueError(f"half_sets: half {int(np.argmin(sums.counts))} holds no image of positive weight")
        for name, value in self._solve(sums).items():
            setattr(self, name, value)
        self._sums = sums

    def _box(self, stack):
        L = stack.shape[1]
        if L < 2:
            raise ValueError("images of 1 x 1 pixels (n_features = 1) show no particle; at least 2 x 2 are wanted")
        return L

    def _poses(self, stack, rotations, shifts, ctf, pixel_size):
        """Rotations, shifts and CTFs of all images."""
        ctf = resolve_ctf(stack, ctf)
        if ctf is not None and pixel_size is None:
            raise ValueError("CTFs need the pixel size: give X as a ParticleStack with pixel_size in Angstrom")
        return *known_poses(stack, rotations, shifts, self.missing_poses), ctf

    def _solve(self, sums):
        """All fitted attributes that follow from the sums."""
        L = sums.L
        radius = 0.45 * L if self.mask_radius == "auto" else float(self.mask_radius)
        solution = {"mask_radius": radius, "max_frequency": self.max_frequency}
        density = (sums.halves[0].shell_density() + sums.halves[1].shell_density()) / 2
        half_maps = np.stack([accumulator.solve(_WEAK * density, **solution) for accumulator in sums.halves])
        curve = fsc(*half_maps)
        curve[int(np.ceil(self.max_frequency * L)) + 1 :] = 0.0
        prior = fsc_prior(curve, density)
        whole = sums.halves[0].copy()
        whole.merge(sums.halves[1])
        filtered = [accumulator.solve(prior, **solution) for accumulator in sums.halves]
        pixels = fsc_resolution(curve, 0.143, 1.0, box_size=L)
        return {
            "volume_": whole.solve(prior, n_iter=self.n_iter, **solution),
            "half_maps_": half_maps,
            "fsc_": curve,
            "prior_": prior,
            "resolution_pixels_": pixels,
            "resolution_": pixels * (self.pixel_size_ or 1.0),
            "noise_spectrum_": self._noise_spectrum(sums, filtered),
            "n_images_": sums.n_images,
        }

    def _noise_spectrum(self, sums, half_maps):
        power, n = 0.0, 0
        for half, volume in enumerate(half_maps):
            chosen = [kept for kept in sums.sample if kept[1] != half]
            if not chosen:
                continue
            _, _, images, rotations, shifts, ctf = (list(values) for values in zip(*chosen))
            ctf = None if ctf[0] is None else np.array(ctf)
            model = _Reprojector(volume, self.max_frequency).project(
                np.array(rotations), shifts=np.array(shifts), ctf=ctf, pixel_size=self.pixel_size_ or 1.0
            )
            power = power + _ring_power(np.array(images) - model).sum(axis=0)
            n += len(chosen)
        spectrum = power / n
        # The mean of a box, often set by normalisation, says nothing of the noise.
        spectrum[0] = spectrum[1]
        return np.maximum(spectrum, max(1e-12 * spectrum.max(), np.finfo(np.float32).tiny))

    # ------------------------------------------------------------------------------------------------- use
    def _models(self, X, rotations, shifts, ctf):
        """Yield (slice, images, reprojections, CTF-free poses) chunk by chunk."""
        check_is_fitted(self, "volume_")
        validate_parameters(self)
        stack = validate_lazy(self, X, reset=False)
        pixel_size = resolve_pixel_size(stack) or self.pixel_size_
        poses = self._poses(stack, rotations, shifts, ctf, pixel_size)
        projector = _Reprojector(self.volume_, self.max_frequency)
        n_jobs = _threads(self.n_jobs)

        def project(block):
            return projector.project(
                poses[0][block],
                shifts=poses[1][block],
                ctf=None if poses[2] is None else poses[2][block],
                pixel_size=pixel_size or 1.0,
            )

        for where, images in iter_finite_chunks(stack, chunk_size=chunk_size(stack.shape[1])):
            blocks = [slice(i, min(i + 16, where.stop)) for i in range(where.start, where.stop, 16)]
            parts = joblib.Parallel(n_jobs=n_jobs, require="sharedmem")(joblib.delayed(project)(b) for b in blocks)
            yield where, images, np.concatenate(parts)

    def predict(self, X, *, rotations=None, shifts=None, ctf=None):
        """Reprojections: what each image would show without noise.

        Parameters
        ----------
        X : ParticleStack or array-like of shape (n_images, L, L) or (n_images, n_pixels)
            Images, of which only the poses and CTFs that they carry matter.
        rotations, shifts, ctf : as in :meth:`fit`

        Returns
        -------
        images : ndarray of shape (n_images, L, L) or (n_images, n_pixels), float32
            Shaped as `X`. Images of the volume at other poses: :func:`skcryo.projection.project`.
        """
        parts = [model for _, _, model in self._models(X, rotations, shifts, ctf)]
        images = np.concatenate(parts)
        if is_stack_of_images(X):
            return images
        return images.reshape(len(images), -1)[:, : self.n_features_in_]

    def score_samples(self, X, *, rotations=None, shifts=None, ctf=None):
        """Correlation of each image with its reprojection, each ring weighed by one over its noise.

        Junk, and images of wrong pose, stand out by low values.

        Parameters
        ----------
        X, rotations, shifts, ctf : as in :meth:`predict`

        Returns
        -------
        correlations : ndarray of shape (n_images,), float64
            Between -1 and 1; the mean of an image does not count.
        """
        parts = []
        for _, images, model in self._models(X, rotations, shifts, ctf):
            L = images.shape[1]
            points, index = half_plane(L, self.max_frequency)
            rings = np.minimum(np.rint(np.hypot(*points.T)).astype(int), L // 2)
            weight = np.where(rings > 0, 1 / self.noise_spectrum_[rings], 0.0)
            spectra = [
                scipy.fft.rfft2(np.asarray(part, dtype=np.float64)).reshape(len(part), -1)[:, index]
                for part in (images, model)
            ]
            cross = (spectra[0] * spectra[1].conj()).real @ weight
            powers = [(np.abs(part) ** 2) @ weight for part in spectra]
            norm = np.sqrt(powers[0] * powers[1])
            parts.append(np.divide(cross, norm, out=np.zeros_like(cross), where=norm > 0))
        return np.concatenate(parts)

    def score(self, X, y=None, *, rotations=None, shifts=None, ctf=None, sample_weight=None):
        """Mean of :meth:`score_samples`, weighted: higher is better.

        Parameters
        ----------
        X, rotations, shifts, ctf : as in :meth:`predict`
        y : None
            Ignored.
        sample_weight : array-like of shape (n_images,), default=None

        Returns
        -------
        score : float
        """
        correlations = self.score_samples(X, rotations=rotations, shifts=shifts, ctf=ctf)
        return float(np.average(correlations, weights=check_sample_weight(sample_weight, X, dtype=np.float64)))


class _Reprojector:
    """VolumeProjector, for boxes of 2 pixels too."""

    def __init__(self, volume, max_frequency):
        self.cut = slice(None)
        if len(volume) == 2:
            volume, self.cut = np.pad(volume, 1), slice(1, 3)
        self.projector = VolumeProjector(volume, max_frequency=max_frequency)

    def project(self, rotations, **options):
        return self.projector.project(rotations, **options)[:, self.cut, self.cut]


class _Checkpoint:
    """Saves the sums of a fit now and then, and takes them up again."""

    def __init__(self, est, stack, arrays, sums, *, active):
        self.folder = est.checkpoint_dir if active else None
        self.sums = sums
        self.between = est._seconds_between_checkpoints
        self.last = time.monotonic()
        if self.folder is None:
            return
        params = est.get_params(deep=False)
        if isinstance(est.random_state, np.random.RandomState):
            params["random_state"] = "given"
        for name in ("n_jobs", "checkpoint_dir"):
            params.pop(name)
        self.key = fingerprint(params, stack, arrays)

    def resume(self):
        saved = None if self.folder is None else load_checkpoint(self.folder, _CHECKPOINT)
        if saved is None:
            return
        arrays, info = saved
        if info.pop("fingerprint") != self.key:
            raise ValueError(
                f"checkpoint_dir={self.folder!r} holds a fit of other images or parameters; name another folder or "
                "remove that one"
            )
        self.sums.restore(arrays, info)

    def save(self, *, now=False):
        if self.folder is None or not (now or time.monotonic() - self.last >= self.between):
            return
        arrays, info = self.sums.state()
        save_checkpoint(self.folder, _CHECKPOINT, arrays, info | {"fingerprint": self.key})
        self.last = time.monotonic()


def reconstruct_classes(
    X, labels, *, estimator=None, rotations=None, shifts=None, ctf=None, half_sets=None, sample_weight=None
):
    """One volume for each class of images.

    Parameters
    ----------
    X : ParticleStack or array-like of shape (n_images, L, L)
    labels : array-like of shape (n_images,), int
        Class of each image; images labelled -1 belong to none.
    estimator : FourierReconstructor, default=None
        With the parameters wanted; cloned for each class.
    rotations, shifts, ctf, half_sets, sample_weight : as in :meth:`FourierReconstructor.fit`

    Returns
    -------
    reconstructors : dict of int to FourierReconstructor
        Fitted, by label in increasing order.

    Raises
    ------
    ValueError
        If there is not one label for each image, or a class cannot be reconstructed; the message names it.

    Examples
    --------
    >>> import numpy as np
    >>> from skcryo.datasets import make_molecule, make_particles
    >>> from skcryo.reconstruction import reconstruct_classes
    >>> stack, truth = make_particles(make_molecule(16, random_state=0), 60, snr=1.0, random_state=0)
    >>> found = reconstruct_classes(stack, np.arange(60) % 2, rotations=truth.rotations)
    >>> np.stack([found[k].volume_ for k in found]).shape
    (2, 16, 16, 16)
    """
    stack = as_stack(X)
    labels = np.asarray(labels)
    n = num_images(stack)
    if labels.shape != (n,) or labels.dtype.kind not in "iu":
        raise ValueError(f"labels must be {n} integers, one for each image; got {labels.dtype} of {labels.shape}")
    given = {
        "rotations": None if rotations is None else check_rotations(rotations, n),
        "shifts": None if shifts is None else check_shifts(shifts, n),
        "ctf": resolve_ctf(stack, ctf),
        "half_sets": _check_half_sets(half_sets, n),
        "sample_weight": None if sample_weight is None else check_sample_weight(sample_weight, stack),
    }
    estimator = FourierReconstructor() if estimator is None else estimator
    found = {}
    for label in np.unique(labels[labels != -1]).tolist():
        rows = np.flatnonzero(labels == label)
        options = {name: value[rows] for name, value in given.items() if value is not None}
        try:
            found[label] = clone_estimator(estimator).fit(stack[rows], **options)
        except ValueError as error:
            raise ValueError(f"class {label} of {len(rows)} images: {error}") from error
    if not found:
        raise ValueError("labels names no class: all are -1")
    return found


def _check_half_sets(half_sets, n):
    if half_sets is None:
        return None
    half_sets = np.asarray(half_sets)
    if half_sets.shape != (n,):
        raise ValueError(f"half_sets must have shape ({n},), got {half_sets.shape}")
    bad = np.flatnonzero((half_sets != 0) & (half_sets != 1))
    if len(bad):
        raise ValueError(f"half_sets[{bad[0]}] is {half_sets[bad[0]]}; 0 or 1 is wanted")
    return half_sets.astype(np.int8)


def _ring_power(images):
    """Mean power over each ring, (n, L // 2 + 1), in units of the variance of a pixel."""
    L = images.shape[1]
    points, index = half_plane(L, 0.5)
    rings = np.rint(np.hypot(*points.T)).astype(int)
    power = np.abs(scipy.fft.rfft2(images).reshape(len(images), -1)[:, index]) ** 2 / L**2
    n_rings = L // 2 + 1
    counts = np.bincount(rings, minlength=n_rings)[:n_rings]
    sums = np.zeros((len(images), n_rings))
    for ring in range(n_rings):
        sums[:, ring] = power[:, rings == ring].sum(axis=1)
    means = sums / np.maximum(counts, 1)
    if n_rings > 1 and counts[-1] == 0:  # Nyquist of a small even box
        means[:, -1] = means[:, -2]
    return means


def _threads(n_jobs):
    return max_threads() if n_jobs is None else joblib.effective_n_jobs(n_jobs)
