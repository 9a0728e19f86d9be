"""The images of a fit or a predict of statistical manifold learning, chunk by chunk as coordinates."""

import numpy as np

from .._validation import iter_finite_chunks
from ..fourier import shift_images

__all__ = ["ParticleCoordinates", "ctf_grouping"]

_CHUNK_BYTES = 32 * 2**20


def ctf_grouping(ctf):
    """What of the Fourier plane shares the value of a CTF: a ring, a radius, or a single frequency."""
    if ctf is None:
        return "ring"
    return "radius" if np.array_equal(ctf["defocus_u"], ctf["defocus_v"]) else "frequency"


class ParticleCoordinates:
    """Images as coordinates, read anew each time.

    Parameters
    ----------
    stack : ParticleStack
        Shifts that it carries are undone.
    coordinates : FourierCoordinates or PixelCoordinates
        Their groups must be those that `ctf` wants.
    ctf : structured array of shape (n_images,) or None
    pixel_size : float or None
    weights : ndarray of shape (n_images,), float64
    dtype : dtype
    chunk_size : int, default=None
        Images at a time. None: as many as 32 MiB hold.
    """

    def __init__(self, stack, coordinates, ctf, pixel_size, weights, dtype, chunk_size=None):
        self.stack, self.coordinates = stack, coordinates
        self.ctf, self.pixel_size = ctf, pixel_size
        self.weights, self.dtype = weights, dtype
        # where all images share one CTF, its factors are one row
        self.shared = ctf is None or bool((ctf == ctf[0]).all())
        row = stack.shape[1] ** 2 + 2 * coordinates.n_coordinates
        self.chunk_size = chunk_size or max(1, int(_CHUNK_BYTES // (row * np.dtype(dtype).itemsize)))

    def __len__(self):
        return len(self.stack)

    def part(self, index):
        """The same of some images."""
        ctf = None if self.ctf is None else self.ctf[index]
        return ParticleCoordinates(
            self.stack[index], self.coordinates, ctf, self.pixel_size, self.weights[index], self.dtype, self.chunk_size
        )

    def chunks(self):
        """Yield (where, coordinates (n, n_coordinates), CTF factors (n or 1, n_groups))."""
        for where, images in iter_finite_chunks(self.stack, chunk_size=self.chunk_size, dtype=self.dtype):
            if self.stack.shifts is not None:
                images = shift_images(images, -self.stack.shifts[where]).astype(self.dtype, copy=False)
            yield where, self.coordinates.analyze(images), self._factors(where)

    def ctf_chunks(self):
        """Yield (where, CTF factors): as :meth:`chunks` without reading images."""
        for start in range(0, 1 if self.shared else len(self), self.chunk_size):
            where = slice(start, len(self) if self.shared else min(start + self.chunk_size, len(self)))
            yield where, self._factors(where)

    def _factors(self, where):
        if self.ctf is None:
            return np.ones((1, self.coordinates.n_groups), dtype=self.dtype)
        records = self.ctf[:1] if self.shared else self.ctf[where]
        return self.coordinates.ctf_factors(records, self.pixel_size).astype(self.dtype, copy=False)

    def whitened(self, space, modes=None):
        """Yield (where, filtered, squares, power) of the images relative to the mean, in units of the noise.

        Parameters
        ----------
        space : object with `mean` and `noise` by coordinate
            See :class:`~skcryo.cluster._sml_space.SignalSpace`.
        modes : ndarray of shape (n_groups, n_modes), default=None
            Orthonormal, of a space in which the squares of the CTFs lie: those are then told by as many numbers.

        Yields
        ------
        where : slice
        filtered : ndarray of shape (n, n_coordinates)
            c (Y - c mean) / sigma.
        squares : ndarray of shape (n or 1, n_groups) or (n or 1, n_modes)
            c^2.
        power : ndarray of shape (n, n_rings)
            Sum over each ring of (Y - c mean)^2 / sigma^2.
        """
        coordinates = self.coordinates
        scale = (1 / np.sqrt(space.noise)).astype(self.dtype)
        mean = (space.mean * scale).astype(self.dtype)
        for where, y, factors in self.chunks():
            c = np.take(factors, coordinates.groups, axis=1)
            y = y * scale
            y -= c * mean
            power = ring_sums(y * y, coordinates)
            y *= c
            squares = factors**2
            yield where, y, squares if modes is None else squares @ modes.astype(self.dtype), power


def ring_sums(values, coordinates):
    """Sums over the rings of (..., n_coordinates) values; rings are contiguous."""
    starts = np.searchsorted(coordinates.rings, np.arange(coordinates.n_rings))
    return np.add.reduceat(values, starts, axis=-1)
