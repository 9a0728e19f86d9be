"""Simulated particle images with ground truth, in memory or straight into a file."""

import contextlib
import numbers
from dataclasses import dataclass
from pathlib import Path

import mrcfile
import numpy as np
import scipy.fft
from mrcfile.dtypes import HEADER_DTYPE
from sklearn.utils import Bunch, check_random_state

from .._images import FileImages, ImageFile
from ..ctf import apply_ctf, make_ctf
from ..fourier import frequency_grid, radial_average, shift_images
from ..io import atomic_path
from ..particles import ParticleStack
from ..projection import VolumeProjector
from ..rotations import check_rotations, random_rotations
from ._spectrum import check_positive, check_volume

_BLOCK_PIXELS = 2**22  # images are made in blocks of this size, wherever they go: the same numbers every time
_N_RING_IMAGES = 1000
_MAIN_VIEW = np.array([0.36, 0.48, 0.8])
_JUNK_KINDS = ("noise", "broken", "overlap")
_MRC_HEADER_BYTES = 1024


@dataclass(frozen=True)
class ImagingConditions:
    """What happens to a projection on its way to an image; the presets of :func:`make_particles` are such.

    Parameters
    ----------
    max_shift : float, default=0.0
        Largest shift in x and in y, as a share of the box; shifts are uniform.
    ctf : bool, default=False
        Whether a CTF is applied: 300 kV, Cs 2.7 mm, amplitude contrast 0.1, mean defocus uniform in 1.0 to
        2.5 micrometre, astigmatism (U minus V over their mean) uniform up to 10 % at any angle.
    coloured_noise : bool, default=False
        Whether the noise power falls tenfold from frequency zero to Nyquist instead of being white.
    contrast_std : float, default=0.0
        Standard deviation of the contrast of the images about 1, held within 0.4 and 1.6.
    view_ratio : float, default=1.0
        Density of the most over that of the least frequent views: ``1 + (view_ratio - 1) cos^2`` of the angle
        to (0.36, 0.48, 0.8).
    junk_fraction : float, default=0.0
        Share of images that show no whole single particle: one third nothing but noise, one third a particle
        broken off along a line, one third two particles that overlap.

    Examples
    --------
    >>> from skcryo.datasets import ImagingConditions
    >>> ImagingConditions(ctf=True)
    ImagingConditions(max_shift=0.0, ctf=True, coloured_noise=False, contrast_std=0.0, view_ratio=1.0,
                      junk_fraction=0.0)
    """

    max_shift: float = 0.0
    ctf: bool = False
    coloured_noise: bool = False
    contrast_std: float = 0.0
    view_ratio: float = 1.0
    junk_fraction: float = 0.0

    def __post_init__(self):
        for name, low, high in (
            ("max_shift", 0, 0.5),
            ("contrast_std", 0, 1),
            ("view_ratio", 1, 1000),
            ("junk_fraction", 0, 0.9),
        ):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} is {getattr(self, name)}; a number from {low} to {high} is wanted")


PRESETS = {
    "paper": ImagingConditions(),
    "shifted": ImagingConditions(max_shift=0.05),
    "ctf": ImagingConditions(max_shift=0.05, ctf=True),
    "experimental": ImagingConditions(
        max_shift=0.05, ctf=True, coloured_noise=True, contrast_std=0.2, view_ratio=5.0, junk_fraction=0.05
    ),
}


def make_particles(
    volumes,
    n_images,
    *,
    preset="paper",
    snr=0.1,
    snr_definition="variance",
    pixel_size=5.0,
    proportions=None,
    labels=None,
    rotations=None,
    path=None,
    overwrite=False,
    random_state=None,
):
    """Simulate particle images of one or several volumes.

    Parameters
    ----------
    volumes : array-like of shape (L, L, L) or (n_states, L, L, L), or list of volumes
        Densities ``V[z, y, x]``.
    n_images : int
        Number of images.
    preset : {"paper", "shifted", "ctf", "experimental"} or ImagingConditions, default="paper"
        "paper" is white noise on centred projections from uniform views; "shifted" adds shifts, uniform
        within 5 % of the box in x and in y; "ctf" adds to that a CTF; "experimental" adds to that coloured
        noise, 20 % of contrast variation, preferred views (5:1) and 5 % of junk images. See
        :class:`ImagingConditions` for the numbers.
    snr : float or None, default=0.1
        Power of the signal, after the CTF, over that of the noise. None leaves the noise out.
    snr_definition : {"variance", "power"}, default="variance"
        What the power of the signal is: "variance" over all pixels of all images that are not junk, or the
        mean square over them ("power", eq. 10 of the Wasserstein paper). Equal values compare under one power
        spectrum only: see `ring_snr` of the truth.
    pixel_size : float, default=5.0
        In Angstrom; that of the volumes too.
    proportions : array-like of shape (n_states,), default=None
        Shares of the states, equal by default; the numbers of images are exact up to rounding.
    labels : array-like of shape (n_images,), default=None
        State of each image, instead of `proportions`.
    rotations : array-like of shape (n_images, 3, 3), default=None
        Poses, instead of random ones.
    path : str or path, default=None
        An MRCS file to write the images to, in bounded memory; the stack then lies in that file. The images
        are the very same.
    overwrite : bool, default=False
        Whether `path` may exist already.
    random_state : int, RandomState instance or None, default=None
        Seed. With one seed, presets share labels and (but for preferred views) rotations, and "shifted" and
        what follows their shifts.

    Returns
    -------
    stack : ParticleStack of shape (n_images, L, L), float32
        In units of the projections (volume times pixels); with pixel size and, if there is one, the CTF.
        Poses are truth and stay out: ``stack.replace(rotations=truth.rotations, shifts=truth.shifts)`` puts
        them in.
    truth : Bunch
        ``labels`` (n,), ``rotations`` (n, 3, 3), ``shifts`` (n, 2) in pixels, ``ctf`` (n,) or None,
        ``contrast`` (n,), ``is_junk`` (n,) bool, ``junk_kind`` (n,) "" or one of "noise", "broken",
        "overlap", ``clean`` (n, L, L) the images without noise (None with `path`), ``noise_std``,
        ``ring_snr`` (L // 2 + 1,) the ratio of signal to noise in each ring ``round(|k|)`` over up to 1000
        images.

    Raises
    ------
    ValueError
        If an argument does not fit; the message says which.
    FileExistsError
        If `path` exists and `overwrite` is false.

    Examples
    --------
    >>> from skcryo.datasets import make_molecule, make_particles
    >>> states = [make_molecule(32), make_molecule(32, ligand=True)]
    >>> stack, truth = make_particles(states, 10, preset="ctf", pixel_size=10, proportions=[0.8, 0.2],
    ...                               random_state=0)
    >>> stack
    ParticleStack(shape=(10, 32, 32), dtype=float32, pixel_size=10, ctf)
    >>> [int((truth.labels == k).sum()) for k in (0, 1)]
    [8, 2]
    """
    volumes = _check_volumes(volumes)
    n_images = _check_count(n_images)
    conditions = _check_preset(preset)
    snr = None if snr is None or snr == np.inf else check_positive(snr, "snr")
    if snr_definition not in ("variance", "power"):
        raise ValueError(f'snr_definition is {snr_definition!r}; "variance" or "power" is wanted')
    pixel_size = check_positive(pixel_size, "pixel_size")
    L = volumes[0].shape[0]
    scene = _draw(len(volumes), n_images, L, conditions, proportions, labels, rotations, random_state)

    projectors = [VolumeProjector(volume) for volume in volumes]
    blocks = _blocks(n_images, L)
    statistics = _SignalStatistics(scene.is_junk, L)

    def write_signal(images, where):
        images[:] = _signal(projectors, scene, where, pixel_size)
        statistics.add(images, where)

    def noise_std():
        power = statistics.power(snr_definition)
        if snr is not None and not power > 0:
            raise ValueError("volumes give images without any signal, for which no snr can be had")
        return 0.0 if snr is None else float(np.sqrt(power / snr))

    if path is None:
        clean = np.empty((n_images, L, L), dtype=np.float32)
        for where in blocks:
            write_signal(clean[where], where)
        sigma = noise_std()
        images = clean.copy()
        for where in blocks:
            _add_noise(images[where], where, sigma, scene.noise_key, conditions.coloured_noise)
    else:
        clean = None
        with _new_stack_file(path, n_images, L, pixel_size, overwrite) as file:
            block_images = np.empty((blocks[0].stop, L, L), dtype=np.float32)
            for where in blocks:
                write_signal(block_images[: where.stop - where.start], where)
                file.write(where, block_images[: where.stop - where.start])
            sigma = noise_std()
            for where in blocks:
                noisy = file.read(where)
                _add_noise(noisy, where, sigma, scene.noise_key, conditions.coloured_noise)
                file.write(where, noisy, final=True)
        target = ImageFile(str(Path(path).resolve()), n_images, (L, L), "<f4", _MRC_HEADER_BYTES)
        images = FileImages([target], np.zeros(n_images, dtype=np.int64), np.arange(n_images))

    stack = ParticleStack(images, pixel_size=pixel_size, ctf=scene.ctf)
    truth = Bunch(
        labels=scene.labels,
        rotations=scene.rotations,
        shifts=scene.shifts,
        ctf=scene.ctf,
        contrast=scene.contrast,
        is_junk=scene.is_junk,
        junk_kind=scene.junk_kind,
        clean=clean,
        noise_std=sigma,
        ring_snr=statistics.ring_snr(sigma, conditions.coloured_noise),
    )
    return stack, truth


# -- what is drawn
# --------------------------------------------------------------------------------------------


def _draw(n_states, n, L, conditions, proportions, labels, rotations, random_state):
    """Everything random about the images but the noise; each kind from a stream of its own."""
    seed = random_state
    if not isinstance(seed, numbers.Integral) or isinstance(seed, bool):
        seed = check_random_state(random_state).randint(2**31)
    streams = [np.random.default_rng(child) for child in np.random.SeedSequence(int(seed)).spawn(7)]
    for_labels, for_views, for_shifts, for_ctf, for_contrast, for_junk, for_noise = streams

    ctf = None
    if conditions.ctf:
        defocus, ratio, angle = for_ctf.uniform(size=(3, n))
        defocus, half = 1.0e4 + 1.5e4 * defocus, 0.05 * ratio
        ctf = make_ctf(
            n,
            defocus_u=defocus * (1 + half),
            defocus_v=defocus * (1 - half),
            defocus_angle=180 * angle,
            voltage=300.0,
            cs=2.7,
            amplitude_contrast=0.1,
        )
    junk_kind = np.full(n, "", dtype="U7")
    n_junk = round(conditions.junk_fraction * n)
    junk_kind[for_junk.permutation(n)[:n_junk]] = np.resize(_JUNK_KINDS, n_junk)
    if rotations is None:
        rotations = _draw_rotations(n, conditions.view_ratio, for_views)
    else:
        rotations = check_rotations(rotations, n)
    contrast = 1.0 + conditions.contrast_std * for_contrast.standard_normal(n)
    return Bunch(
        labels=_draw_labels(n_states, n, proportions, labels, for_labels),
        rotations=rotations,
        shifts=conditions.max_shift * L * for_shifts.uniform(-1, 1, size=(n, 2)),
        ctf=ctf,
        contrast=np.clip(contrast, 0.4, 1.6),
        is_junk=junk_kind != "",
        junk_kind=junk_kind,
        junk_angle=for_junk.uniform(0, 2 * np.pi, n),
        junk_offset=for_junk.uniform(-1, 1, n),
        junk_rotations=random_rotations(n, int(for_junk.integers(2**31))),
        noise_key=int(for_noise.integers(2**63)),
    )


def _draw_labels(n_states, n, proportions, labels, rng):
    if labels is not None:
        if proportions is not None:
            raise ValueError("labels and proportions are both given; one of them is wanted")
        labels = np.asarray(labels)
        if labels.shape != (n,) or labels.dtype.kind not in "iu":
            raise ValueError(
                f"labels has shape {labels.shape}, dtype {labels.dtype}; {n} integers are wanted"
            )
        bad = np.flatnonzero((labels < 0) | (labels >= n_states))
        if len(bad):
            raise ValueError(f"labels[{bad[0]}] is {labels[bad[0]]}; 0 to {n_states - 1} is wanted")
        return labels.astype(np.int64)
    if proportions is None:
        proportions = np.ones(n_states)
    proportions = np.asarray(proportions, dtype=np.float64)
    if proportions.shape != (n_states,):
        raise ValueError(f"proportions has shape {proportions.shape} but there are {n_states} volumes")
    if not np.isfinite(proportions).all() or (proportions < 0).any() or not proportions.any():
        raise ValueError(f"proportions are {proportions.tolist()}; shares, none negative, are wanted")
    wanted = n * proportions / proportions.sum()
    counts = np.floor(wanted).astype(np.int64)
    rest = np.argsort(counts - wanted, kind="stable")[: n - counts.sum()]  # the largest remainders
    counts[rest] += 1
    return rng.permutation(np.repeat(np.arange(n_states), counts))


def _draw_rotations(n, view_ratio, rng):
    seed = int(rng.integers(2**31))
    if view_ratio == 1:
        return random_rotations(n, seed)
    candidates = np.random.RandomState(seed)
    kept = []
    while sum(map(len, kept)) < n:
        drawn = random_rotations(2 * n + 16, candidates)
        density = 1 + (view_ratio - 1) * (drawn[:, :, 2] @ _MAIN_VIEW) ** 2
        kept.append(drawn[candidates.uniform(0, view_ratio, len(drawn)) < density])
    return np.concatenate(kept)[:n]


# -- images
# ---------------------------------------------------------------------------------------------------


def _blocks(n, L):
    size = max(1, _BLOCK_PIXELS // L**2)
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


def _signal(projectors, scene, where, pixel_size):
    """Images `where` without noise: projections with shift, junk, CTF and contrast."""
    rotations, shifts, labels = scene.rotations[where], scene.shifts[where], scene.labels[where]
    ctf = None if scene.ctf is None else scene.ctf[where]
    L = projectors[0].L
    images = np.empty((len(labels), L, L), dtype=np.float32)
    for k in np.unique(labels):
        members = np.flatnonzero(labels == k)
        own = None if ctf is None else ctf[members]
        images[members] = projectors[k].project(
            rotations[members], shifts=shifts[members], ctf=own, pixel_size=pixel_size
        )
    for i in np.flatnonzero(scene.is_junk[where]):
        own = projectors[labels[i]].project(rotations[i : i + 1], shifts=shifts[i : i + 1])
        own = _spoil(own, projectors[labels[i]], scene, where.start + i)
        images[i] = (own if ctf is None else apply_ctf(own, ctf[i : i + 1], pixel_size))[0]
    return images * scene.contrast[where, None, None].astype(np.float32)


def _spoil(image, projector, scene, i):
    """The junk that image i (1, L, L) becomes."""
    L = image.shape[-1]
    direction = np.array([np.cos(scene.junk_angle[i]), np.sin(scene.junk_angle[i])])
    if scene.junk_kind[i] == "noise":
        return np.zeros_like(image)
    if scene.junk_kind[i] == "broken":
        x = np.arange(L) - L // 2
        along = direction[0] * x[None, :] + direction[1] * x[:, None] - 0.08 * L * scene.junk_offset[i]
        return (image / (1 + np.exp(along / 0.02 / L))).astype(np.float32)
    apart = (0.2 + 0.05 * scene.junk_offset[i]) * L * direction
    other = projector.project(scene.junk_rotations[i : i + 1])
    return shift_images(np.concatenate([image, other]), np.stack([apart, -apart])).sum(0, keepdims=True)


def _noise_power(radius):
    """Power of coloured noise at radii in cycles per pixel: falls tenfold to Nyquist."""
    return 10.0 ** -np.minimum(radius / 0.5, 1.0)


def _noise_filter(L, coloured):
    """Amplitude of the noise in the layout of rfft2, such that its variance is 1; None if it is white."""
    if not coloured:
        return None
    power = _noise_power(np.linalg.norm(frequency_grid(L, centred=False), axis=-1))
    return np.sqrt(power / power.mean())[:, : L // 2 + 1].astype(np.float32)


def _add_noise(images, where, sigma, key, coloured):
    """Add noise in place; that of an image depends on the key and its number alone."""
    if not sigma:
        return
    shape = images.shape[1:]
    amplitude = _noise_filter(shape[0], coloured)
    for image, i in zip(images, range(where.start, where.stop)):
        generator = np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, i]))
        noise = generator.standard_normal(shape, dtype=np.float32)
        if amplitude is not None:
            noise = scipy.fft.irfft2(scipy.fft.rfft2(noise) * amplitude, s=shape)
        image += np.float32(sigma) * noise


class _SignalStatistics:
    """Power of the signal over all images that are not junk, and by ring over the first of them."""

    def __init__(self, is_junk, L):
        self._is_junk = is_junk
        self._L = L
        self._sums = np.zeros((2, len(is_junk)))
        self._ring_power = np.zeros(L // 2 + 1)
        self._n_ring = 0

    def add(self, images, where):
        self._sums[0, where] = images.sum((1, 2), dtype=np.float64)
        self._sums[1, where] = np.einsum("nyx,nyx->n", images, images, dtype=np.float64)
        good = np.flatnonzero(~self._is_junk[where])[: _N_RING_IMAGES - self._n_ring]
        if len(good):
            spectra = scipy.fft.fftshift(scipy.fft.fft2(images[good]), axes=(1, 2))
            self._ring_power += radial_average((np.abs(spectra) ** 2).sum(0, dtype=np.float64))
            self._n_ring += len(good)

    def power(self, definition):
        total, squares = self._sums[:, ~self._is_junk].sum(1)
        n_pixels = max(np.count_nonzero(~self._is_junk), 1) * self._L**2
        return squares / n_pixels - (total / n_pixels) ** 2 * (definition == "variance")

    def ring_snr(self, sigma, coloured):
        noise = np.ones((self._L, self._L))
        if coloured:
            noise = _noise_power(np.linalg.norm(frequency_grid(self._L), axis=-1))
            noise /= noise.mean()
        noise = radial_average(noise) * sigma**2 * self._L**2
        signal = self._ring_power / max(self._n_ring, 1)
        return np.divide(signal, noise, out=np.full_like(signal, np.inf), where=noise > 0)


# -- file
# -----------------------------------------------------------------------------------------------------


class _StackFile:
    """An MRCS file that is written and read again in blocks, without mapping it."""

    def __init__(self, file, L):
        self._file = file
        self._L = L
        self._statistics = []

    def _seek(self, where):
        self._file.seek(_MRC_HEADER_BYTES + 4 * self._L**2 * where.start)

    def write(self, where, images, final=False):
        self._seek(where)
        self._file.write(np.ascontiguousarray(images, dtype="<f4").data)
        if final:
            sums = images.sum(dtype=np.float64), np.einsum("nyx,nyx->", images, images, dtype=np.float64)
            self._statistics.append((images.min(), images.max(), *sums))

    def read(self, where):
        shape = (where.stop - where.start, self._L, self._L)
        images = np.empty(shape, dtype="<f4")
        self._seek(where)
        if self._file.readinto(images) != images.nbytes:
            raise OSError(f"{self._file.name}: the file that is being written has been cut short")
        return images

    def write_statistics(self, n_pixels):
        low, high, total, squares = np.array(self._statistics).T
        mean = total.sum() / n_pixels
        self._file.seek(0)
        header = np.frombuffer(self._file.read(_MRC_HEADER_BYTES), dtype=HEADER_DTYPE).copy()
        header["dmin"], header["dmax"], header["dmean"] = low.min(), high.max(), mean
        header["rms"] = np.sqrt(max(squares.sum() / n_pixels - mean**2, 0.0))
        self._file.seek(0)
        self._file.write(header.tobytes())


@contextlib.contextmanager
def _new_stack_file(path, n, L, pixel_size, overwrite):
    """A new MRCS file, there completely or not at all."""
    if Path(path).suffix not in (".mrcs", ".mrc"):
        raise ValueError(f"path is {str(path)!r}; a name that ends in .mrcs is wanted")
    with atomic_path(path, overwrite=overwrite) as partial:
        with mrcfile.new_mmap(partial, (n, L, L), mrc_mode=2) as mrc:
            mrc.set_image_stack()
            mrc.voxel_size = pixel_size
        with open(partial, "r+b") as file:
            blocks = _StackFile(file, L)
            yield blocks
            blocks.write_statistics(n * L * L)


# -- arguments
# ------------------------------------------------------------------------------------------------


def _check_volumes(volumes):
    if isinstance(volumes, np.ndarray) and volumes.ndim == 3:
        volumes = [volumes]
    elif not isinstance(volumes, np.ndarray) and len(volumes) and np.ndim(volumes[0]) == 2:
        volumes = [np.asarray(volumes)]
    if not len(volumes):
        raise ValueError("volumes is empty; at least one is wanted")
    volumes = [check_volume(volume, f"volumes[{k}]") for k, volume in enumerate(volumes)]
    for k, volume in enumerate(volumes):
        if volume.shape != volumes[0].shape:
            raise ValueError(f"volumes[{k}] has shape {volume.shape} but volumes[0] has {volumes[0].shape}")
    return volumes


def _check_count(n_images):
    if isinstance(n_images, bool) or not isinstance(n_images, numbers.Integral) or n_images < 1:
        raise ValueError(f"n_images is {n_images!r}; a positive integer is wanted")
    return int(n_images)


def _check_preset(preset):
    if isinstance(preset, ImagingConditions):
        return preset
    if not isinstance(preset, str) or preset not in PRESETS:
        raise ValueError(f"preset is {preset!r}; one of {sorted(PRESETS)} or ImagingConditions is wanted")
    return PRESETS[preset]
