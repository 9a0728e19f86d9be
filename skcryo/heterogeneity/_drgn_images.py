"""Images as the decoder is trained on them: Fourier images within a budget of memory, noise and model errors white."""

import tempfile
from pathlib import Path

import numpy as np

from ..alignment import FourierImages
from ..particles import as_stack

__all__ = ["ImageUnits", "fourier_images", "part_of_stack"]

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
        power = np.zeros(len(images.points))
        for start in range(0, len(images), _CHUNK):
            power += np.square(np.abs(images.values[start : start + _CHUNK])).sum(axis=0, dtype=np.float64)
        counts = np.bincount(images.rings, minlength=n_rings)

        def by_ring(values):
            means = np.bincount(images.rings, values, minlength=n_rings) / np.maximum(counts, 1)
            means[0] = means[1]
            return means

        excess = np.maximum(by_ring(power / len(images)) - 1, 0)
        self.factors = 1 / np.sqrt(1 + MODEL_ERROR * excess)
        squares = np.zeros(len(images.points))
        for start in range(0, len(images.filters), _CHUNK):
            squares += np.square(images.filters[start : start + _CHUNK]).sum(axis=0, dtype=np.float64)
        self.gain = 1 / (self.factors * np.sqrt(by_ring(squares / len(images.filters))))

    def at(self, images):
        """Factor of each point of images, ndarray of shape (n_points,), float32."""
        return np.interp(images.radii, np.arange(len(self.factors)), self.factors).astype(np.float32)

    def apply(self, images):
        """Images in these units; in place, chunk by chunk, where they lie in a file."""
        factors = self.at(images)
        if not isinstance(images.values, np.memmap):
            return images.rescaled(factors)
        for array in (images.values, images.filters):
            for start in range(0, len(array), _CHUNK):
                array[start : start + _CHUNK] *= factors
        return images


def part_of_stack(stack, where, images):
    """Some images of a stack that were read, with their CTFs and pixel size."""
    ctf = None if stack.ctf is None else stack.ctf[where]
    return as_stack(images).replace(pixel_size=stack.pixel_size, ctf=ctf)


def fourier_images(stack, spectrum, max_ring, budget=_BUDGET):
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
