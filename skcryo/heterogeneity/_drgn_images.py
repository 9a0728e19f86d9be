"""Images as the decoder is trained on them: Fourier images within a budget of memory, noise and model errors white."""

import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from ..alignment import FourierImages
from ..particles import as_stack
from ..preprocessing import noise_spectrum

__all__ = ["ImageUnits", "fourier_images", "noise_spectra", "part_of_stack", "with_tilt"]

_BUDGET = 2**30  # bytes of Fourier images; beyond, they lie in a temporary file
_CHUNK = 1000
MODEL_ERROR = 0.03  # share of the power of a ring that no decoder explains


class ImageUnits:
    """Units of the coefficients of each ring, learnt from the images that are fitted.

    No network is exact. What it leaves unexplained is taken to be 3 % of the signal's power in a ring and counted with
    the noise: so images without noise weigh all rings alike, and those with much of it as the noise wants it.

    Parameters
    ----------
    images : FourierImages
        In units of their noise.

    Attributes
    ----------
    factors : ndarray of shape (n_rings,), float64
        What coefficients are multiplied by.
    gain : ndarray of shape (n_rings,), float64
        One over the root mean square of the filters then: a slice in these units passes the filters unchanged.
    """

    def __init__(self, images):
        n_rings = int(images.rings.max()) + 1
        counts = np.bincount(images.rings, minlength=n_rings)
        power, squares = np.zeros(len(images.points)), np.zeros(len(images.points))
        for view in _views(images):
            for values, total in ((view.values, power), (view.filters, squares)):
                own = np.zeros(len(images.points))
                for start in range(0, len(values), _CHUNK):
                    own += np.square(np.abs(values[start : start + _CHUNK])).sum(axis=0, dtype=np.float64)
                total += own / len(values) / images.n_views

        def by_ring(values):
            means = np.bincount(images.rings, values, minlength=n_rings) / np.maximum(counts, 1)
            means[0] = means[1]
            return means

        excess = np.maximum(by_ring(power) - 1, 0)
        self.factors = 1 / np.sqrt(1 + MODEL_ERROR * excess)
        self.gain = 1 / (self.factors * np.sqrt(by_ring(squares)))

    def at(self, images):
        """Factor of each point of images, ndarray of shape (n_points,), float32."""
        return np.interp(images.radii, np.arange(len(self.factors)), self.factors).astype(np.float32)

    def apply(self, images):
        """Images in these units; in place, chunk by chunk, where they lie in a file."""
        factors = self.at(images)
        if not isinstance(images.values, np.memmap):
            return images.rescaled(factors)
        for view in _views(images):
            for array in (view.values, view.filters):
                for start in range(0, len(array), _CHUNK):
                    array[start : start + _CHUNK] *= factors
        return images


def _views(images):
    return [images] if images.tilted is None else [images, images.tilted]


def with_tilt(stack, tilt, tilt_angle):
    """A stack with its tilt images: those given, else those that it carries; their CTFs need a pixel size."""
    if tilt is not None or tilt_angle is not None:
        tilt = stack.tilt if tilt is None else tilt
        tilt_angle = stack.tilt_angle if tilt_angle is None else tilt_angle
        stack = stack.replace(tilt=tilt, tilt_angle=tilt_angle)
    if stack.tilt is not None and stack.tilt.ctf is not None and stack.pixel_size is None:
        raise ValueError("CTFs of tilt images need the pixel size; give X one")
    return stack


def noise_spectra(stack, radius):
    """Noise spectrum of the images, and of the tilt images if there are any, a list."""
    spectra = [noise_spectrum(stack.replace(tilt=None), radius=radius)]
    if stack.tilt is not None:
        with _of_tilt_images():
            spectra.append(noise_spectrum(stack.tilt, radius=radius))
    return spectra


@contextmanager
def _of_tilt_images():
    try:
        yield
    except ValueError as error:
        raise ValueError(f"of the tilt images: {error}") from error


def part_of_stack(stack, where, images):
    """Some images of a stack that were read, with their CTFs, pixel size and tilt images."""
    ctf = None if stack.ctf is None else stack.ctf[where]
    tilt = None if stack.tilt is None else stack.tilt[where]
    return as_stack(images).replace(pixel_size=stack.pixel_size, ctf=ctf, tilt=tilt, tilt_angle=stack.tilt_angle)


def fourier_images(stack, spectra, max_ring, budget=_BUDGET):
    """Fourier images of a stack, pairs if it has tilt images: see :func:`_fourier_images`, a spectrum for each."""
    if stack.tilt is None:
        return _fourier_images(stack, spectra[0], max_ring, budget)
    tilt = stack.tilt.replace(pixel_size=stack.pixel_size)
    first = _fourier_images(stack.replace(tilt=None), spectra[0], max_ring, budget // 2)
    with _of_tilt_images():
        second = _fourier_images(tilt, spectra[1], max_ring, budget // 2)
    turn = Rotation.from_rotvec(-stack.tilt_angle).as_matrix()
    pairs = FourierImages(first.values, first.filters, first.points, first.L, second, turn)
    pairs.folder = getattr(first, "folder", None)
    return pairs


def _fourier_images(stack, spectrum, max_ring, budget):
    """Fourier images of a stack with its CTFs, in a temporary file if they are larger than the budget.

    Parameters
    ----------
    stack : ParticleStack of shape (n_images, L, L)
    spectrum : ndarray of shape (L // 2 + 1,)
        The noise's power by ring.
    max_ring : float
        Cycles per box.
    budget : int
        Bytes.

    Returns
    -------
    FourierImages
        Whose file, if any, goes with it.
    """
    options = {"pixel_size": stack.pixel_size}
    n = len(stack)
    first = FourierImages.from_stack(stack[:1], spectrum, max_ring, ctf=_part(stack.ctf, slice(1)), **options)
    per_image = first.values.nbytes + (0 if stack.ctf is None else first.filters.nbytes)
    if n * per_image <= budget:
        return FourierImages.from_stack(stack, spectrum, max_ring, ctf=stack.ctf, **options)
    folder = tempfile.TemporaryDirectory(prefix="skcryo-")
    shape = (n, len(first.points))
    values = np.memmap(Path(folder.name) / "values", dtype=np.complex64, mode="w+", shape=shape)
    filters = first.filters
    if stack.ctf is not None:
        filters = np.memmap(Path(folder.name) / "filters", dtype=np.float32, mode="w+", shape=shape)
    size = max(1, min(_CHUNK, int(budget // (8 * per_image))))
    for start in range(0, n, size):
        where = slice(start, min(start + size, n))
        part = FourierImages.from_stack(stack[where], spectrum, max_ring, ctf=_part(stack.ctf, where), **options)
        values[where] = part.values
        if stack.ctf is not None:
            filters[where] = part.filters
    images = FourierImages(values, filters, first.points, first.L)
    images.folder = folder
    return images


def _part(array, where):
    return None if array is None else array[where]
