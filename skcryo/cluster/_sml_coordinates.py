"""Images as rows of real coordinates in which noise is independent and the CTF is a factor."""

import numpy as np
import scipy.fft
from scipy.special import j1

from ..ctf import evaluate_ctf, evaluate_ctf_radial
from ..fourier import half_plane

__all__ = ["SMALLEST_BOX", "FourierCoordinates", "PixelCoordinates", "find_coordinates", "has_images"]

SMALLEST_BOX = 8
_MOST_CYCLES = 32  # of the band across the box, by default


class FourierCoordinates:
    """sqrt(2) times real and imaginary part of one frequency of each pair of the orthonormal Fourier transform.

    Distances of coordinates are those of images filtered to the band; there are no factors of two. The origin (the
    level of the background) and the Nyquist terms of an even box are left out.

    Parameters
    ----------
    L : int
        Box size.
    max_frequency : float
        Cycles per pixel.
    grouping : {"ring", "radius", "frequency"}
        Coordinates of a group share the factor of every image's CTF: all of a ring where there is no CTF, those of
        one radius for CTFs without astigmatism, else single frequencies.

    Attributes
    ----------
    n_coordinates, n_rings, n_groups : int
    rings : ndarray of shape (n_coordinates,)
        Ring of each, ``round(|k| L) - 1``.
    ring_sizes : ndarray of shape (n_rings,)
        Coordinates of each ring.
    groups : ndarray of shape (n_coordinates,)
        Ascending.
    starts : ndarray of shape (n_groups,)
        First coordinate of each group.
    """

    def __init__(self, L, max_frequency, grouping):
        points, index = half_plane(L, max_frequency)
        squares = (points**2).sum(axis=1)
        order = np.argsort(squares, kind="stable")[1:]
        squares = squares[order]
        self.L, self.max_frequency, self.grouping = L, max_frequency, grouping
        self._index, self._points = index[order], points[order]
        rings = np.rint(np.sqrt(squares)).astype(np.int64) - 1
        if grouping == "ring":
            groups = rings
        elif grouping == "radius":
            groups = np.unique(squares, return_inverse=True)[1]
        else:
            groups = np.arange(len(order))
        self._set(np.repeat(rings, 2), np.repeat(groups, 2))
        self._radii = np.sqrt(squares[self.starts // 2]) / L

    def _set(self, rings, groups):
        self.rings, self.groups = rings, groups
        self.n_coordinates, self.n_rings = len(rings), int(rings[-1]) + 1
        self.n_groups = int(groups[-1]) + 1
        self.ring_sizes = np.bincount(rings)
        self.starts = np.searchsorted(groups, np.arange(self.n_groups))

    def regrouped(self, grouping):
        """The same coordinates in other groups."""
        return self if grouping == self.grouping else FourierCoordinates(self.L, self.max_frequency, grouping)

    def analyze(self, images):
        """Coordinates (n, n_coordinates) of images (n, L, L), of their precision."""
        spectra = np.take(scipy.fft.rfft2(images).reshape(len(images), -1), self._index, axis=1)
        spectra *= np.sqrt(2).astype(images.dtype) / self.L
        return spectra.view(images.dtype)

    def synthesize(self, coordinates):
        """Images (n, L, L) of coordinates, the inverse of :meth:`analyze` for images within the band."""
        L = self.L
        coordinates = np.ascontiguousarray(coordinates)
        values = coordinates.view(np.result_type(coordinates.dtype, np.complex64)) * (L / np.sqrt(2))
        spectra = np.zeros((len(coordinates), L * (L // 2 + 1)), dtype=values.dtype)
        spectra[:, self._index] = values
        spectra = spectra.reshape(len(coordinates), L, L // 2 + 1)
        spectra[:, L - (L - 1) // 2 :, 0] = spectra[:, (L - 1) // 2 : 0 : -1, 0].conj()
        return scipy.fft.irfft2(spectra, s=(L, L))

    def disc_overlaps(self, radius, n):
        """Products of the first `n` coordinates' functions over a disc around the centre of the image.

        Parameters
        ----------
        radius : float
            Pixels.
        n : int
            Even.

        Returns
        -------
        ndarray of shape (n, n)
            Eigenvalues are shares of power within the disc, from 0 to 1.
        """
        k = self._points[: n // 2]
        phase = 2 * np.pi * (self.L // 2) * k.sum(axis=1) / self.L
        out = np.empty((n, n))
        differ = np.hypot(*(k[:, None] - k).transpose(2, 0, 1))
        same = _disc_transform(differ, radius, self.L)
        opposite = _disc_transform(np.hypot(*(k[:, None] + k).transpose(2, 0, 1)), radius, self.L)
        less, more = phase[:, None] - phase, phase[:, None] + phase
        out[::2, ::2] = np.cos(less) * same + np.cos(more) * opposite
        out[1::2, 1::2] = np.cos(less) * same - np.cos(more) * opposite
        out[::2, 1::2] = np.sin(less) * same - np.sin(more) * opposite
        out[1::2, ::2] = out[::2, 1::2].T
        return out

    def ctf_factors(self, ctf, pixel_size):
        """CTF of images in each group, (n, n_groups) float32."""
        if self.grouping == "frequency":
            values = evaluate_ctf(ctf, self.L, pixel_size, half=True)
            return np.take(values.reshape(len(ctf), -1), self._index, axis=1)
        return evaluate_ctf_radial(ctf, self._radii, pixel_size)


def _disc_transform(k, radius, L):
    """Fourier transform of a disc at |k| cycles per box, over the number of pixels of the box."""
    x = 2 * np.pi * radius / L * k
    with np.errstate(invalid="ignore"):
        return np.pi * (radius / L) ** 2 * np.where(x > 0, 2 * j1(x) / x, 1.0)


class PixelCoordinates:
    """Rows that are no image, or too small a one, as they are: no Fourier transform, one ring, no CTF.

    Parameters
    ----------
    n_pixels : int
        Pixels of a row; further ones of the padded image are left out.
    L : int
        Side of the padded image.
    """

    def __init__(self, n_pixels, L):
        self.n_coordinates, self.L = n_pixels, L
        self.n_rings = self.n_groups = 1
        self.rings = self.groups = np.zeros(n_pixels, dtype=np.int64)
        self.ring_sizes, self.starts = np.array([n_pixels]), np.array([0])
        self.grouping = "ring"

    def regrouped(self, grouping):
        """Itself: there is but one group."""
        return self

    def analyze(self, images):
        """Coordinates (n, n_pixels) of padded images (n, L, L)."""
        return images.reshape(len(images), -1)[:, : self.n_coordinates]

    def synthesize(self, coordinates):
        """Padded images (n, L, L)."""
        images = np.zeros((len(coordinates), self.L * self.L), dtype=coordinates.dtype)
        images[:, : self.n_coordinates] = coordinates
        return images.reshape(-1, self.L, self.L)


def has_images(stack, n_features):
    """Whether rows of `n_features` pixels, as a stack, are images that are large enough for Fourier coordinates."""
    return stack.shape[1] >= SMALLEST_BOX and n_features == stack.shape[1] ** 2


def find_coordinates(stack, n_features, pixel_size, resolution):
    """Coordinates for a stack, of a band up to `resolution` Angstrom (None: 32 cycles across the box)."""
    L = stack.shape[1]
    if not has_images(stack, n_features):
        return PixelCoordinates(n_features, L)
    band = min(0.5, _MOST_CYCLES / L)
    if resolution is not None:
        if pixel_size is None:
            raise ValueError("resolution needs the pixel size: give X as a ParticleStack with pixel_size in Angstrom")
        band = min(0.5, pixel_size / resolution)
        if band * L < 1:
            raise ValueError(f"resolution={resolution} Angstrom is coarser than the box of {L * pixel_size:g} Angstrom")
    return FourierCoordinates(L, band, "ring")
