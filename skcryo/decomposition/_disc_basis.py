"""Functions of one angular frequency each that are as good as confined to a disc and to a band of frequencies."""

from functools import lru_cache

import numpy as np
from scipy.special import jv

from .._products import row_products

__all__ = ["DiscBasis", "disc_basis"]

_CONCENTRATION = 0.999  # of a function's power, what lies in the disc: the rest is missing from sums over pixels
_SPARE_NODES = 24  # beyond one a half wave: Gauss quadrature is exact to 1e-12 with them


class DiscBasis:
    """Prolate spheroidal functions on the pixels of a disc.

    Of all functions ``psi(r) exp(i n phi)`` whose Fourier transform lies in a band, these have most of their power in
    the disc [1]_: they are the singular functions of the Fourier transform from disc to band. Confined to both, they
    are orthonormal on pixels just as they are in the plane, and turn as they do there. Fourier-Bessel functions end
    with a kink at the edge of the disc and are neither.

    Real functions stand for pairs: ``sqrt(2) Re`` and ``sqrt(2) Im`` of coefficients ``sum I psi(r) exp(-i n phi)``,
    so that Euclidean distances of coefficients are those of images.

    Parameters
    ----------
    L : int
        Pixels of a side, 8 at least; the centre is at ``L // 2``.
    max_frequency : float
        Cycles per pixel, at most 0.5.
    max_angular_frequency : int or None
        Highest angular frequency; None: all that there are.

    Attributes
    ----------
    radius : int
        Of the disc, in pixels: ``(L - 1) // 2``.
    sizes : list of int
        How many radial functions there are of each angular frequency.
    ring_radii : ndarray of shape (n_rings,), float64
        Nodes in the band, in cycles per pixel.
    ring_values : list of ndarray of shape (n_rings, sizes[n]), float64
        The functions' Fourier transforms at the nodes times roots of quadrature weights: orthonormal columns. A filter
        by ring F acts on coefficients as ``P.T @ diag(F) @ P``.

    References
    ----------
    .. [1] Slepian, "Prolate spheroidal wave functions, Fourier analysis and uncertainty IV", Bell Syst. Tech. J. 43
       (1964).
    """

    def __init__(self, L, max_frequency, max_angular_frequency=None):
        self.L, self.radius = L, (L - 1) // 2
        waves = 2 * np.pi * max_frequency * self.radius
        nodes, weights = np.polynomial.legendre.leggauss(int(waves / 2) + _SPARE_NODES)
        nodes, weights = (nodes + 1) / 2, weights / 2
        self.ring_radii = max_frequency * nodes
        x, y = np.meshgrid(np.arange(self.radius + 1), np.arange(self.radius + 1))
        squares = x**2 + y**2
        self._in_disc = squares <= self.radius**2
        present, where = np.unique(squares[self._in_disc], return_inverse=True)
        interpolation = _barycentric(nodes, np.sqrt(present) / self.radius)
        roots = np.sqrt(nodes * weights)
        self.sizes, self.ring_values, radial = [], [], []
        highest = int(waves) if max_angular_frequency is None else max_angular_frequency
        for n in range(highest + 1):
            transform = waves * np.outer(roots, roots) * jv(n, waves * np.outer(nodes, nodes))
            rings, values, functions = np.linalg.svd(transform)
            size = int(np.sum(values**2 > _CONCENTRATION))
            if size == 0:
                break
            self.sizes.append(size)
            self.ring_values.append(rings[:, :size])
            radial.append((interpolation @ (functions[:size] / roots).T / self.radius)[where])
        self._make_parts(radial, np.arctan2(y, x)[self._in_disc], x[self._in_disc], y[self._in_disc])

    def _make_parts(self, radial, phi, x, y):
        """Matrices of functions that are even or odd in x and in y, on a quarter of the disc."""
        self.starts = np.concatenate([[0], np.cumsum([size * (1 + (n > 0)) for n, size in enumerate(self.sizes)])])
        self._parts = []
        for odd_x in (False, True):
            for odd_y in (False, True):
                pixels = (x >= odd_x) & (y >= odd_y)
                columns, places = [], []
                for n, size in enumerate(self.sizes):
                    if (n % 2 == 1) != (odd_x ^ odd_y) or (n == 0 and odd_y):
                        continue
                    angular = (np.sin if odd_y else np.cos)(n * phi[pixels]) / np.sqrt(np.pi if n else 2 * np.pi)
                    columns.append(radial[n][pixels] * angular[:, None])
                    places.append(self.starts[n] + size * odd_y + np.arange(size))
                if columns:
                    matrix = np.ascontiguousarray(np.hstack(columns), dtype=np.float32)
                    self._parts.append((odd_x, odd_y, pixels, matrix, np.concatenate(places)))

    @property
    def n_functions(self):
        """Number of real functions."""
        return int(self.starts[-1])

    def columns(self, n):
        """Where coefficients of angular frequency `n` are: (of cosines, of minus sines or None)."""
        start, size = self.starts[n], self.sizes[n]
        return slice(start, start + size), slice(start + size, start + 2 * size) if n else None

    def analyze(self, images):
        """Coefficients of images: scalar products with all functions.

        Parameters
        ----------
        images : ndarray of shape (n, L, L)

        Returns
        -------
        coefficients : ndarray of shape (n, n_functions), float32
            Of each angular frequency in turn the cosines, then minus the sines: real and imaginary parts.
        """
        c, r = self.L // 2, self.radius
        window = np.asarray(images, dtype=np.float32)[:, c - r : c + r + 1, c - r : c + r + 1]
        out = np.empty((len(window), self.n_functions), dtype=np.float32)
        for odd_x, odd_y, pixels, matrix, places in self._parts:
            folded = _folded(_folded(window, r, odd_y, 1), r, odd_x, 2)[:, self._in_disc][:, pixels]
            out[:, places] = row_products(np.ascontiguousarray(folded), matrix) * np.float32(-1 if odd_y else 1)
        return out

    def synthesize(self, coefficients):
        """Images with these coefficients: the transpose of :meth:`analyze`.

        Parameters
        ----------
        coefficients : ndarray of shape (n, n_functions)

        Returns
        -------
        images : ndarray of shape (n, L, L), float32
            Zero outside the disc.
        """
        coefficients = np.asarray(coefficients, dtype=np.float32)
        n, c, r = len(coefficients), self.L // 2, self.radius
        window = np.zeros((n, 2 * r + 1, 2 * r + 1), dtype=np.float32)
        for odd_x, odd_y, pixels, matrix, places in self._parts:
            values = row_products(np.ascontiguousarray(coefficients[:, places]), np.ascontiguousarray(matrix.T))
            quarter = np.zeros((n, r + 1, r + 1), dtype=np.float32)
            inside = np.zeros_like(self._in_disc)
            inside[self._in_disc] = pixels
            quarter[:, inside] = -values if odd_y else values
            window += _unfolded(_unfolded(quarter, odd_x, 2), odd_y, 1)
        images = np.zeros((n, self.L, self.L), dtype=np.float32)
        images[:, c - r : c + r + 1, c - r : c + r + 1] = window
        return images

    def filter_matrix(self, n, values):
        """A filter by ring, `values` at ``ring_radii``, as it acts on coefficients of angular frequency `n`."""
        P = self.ring_values[n]
        return P.T @ (values[:, None] * P)


@lru_cache(maxsize=2)
def disc_basis(L, max_frequency, max_angular_frequency=None):
    """A :class:`DiscBasis`, made once for the same parameters."""
    return DiscBasis(L, max_frequency, max_angular_frequency)


def _barycentric(nodes, points):
    """Matrix that interpolates polynomials from values at Gauss-Legendre nodes on (0, 1)."""
    x = 2 * nodes - 1
    weights = (-1.0) ** np.arange(len(x)) * np.sqrt((1 - x**2) * np.polynomial.legendre.leggauss(len(x))[1])
    difference = points[:, None] - nodes
    hit = np.isclose(difference, 0, atol=1e-14)
    matrix = weights / np.where(hit, 1, difference)
    rows = hit.any(axis=1)
    matrix[rows] = hit[rows]
    return matrix / matrix.sum(axis=1, keepdims=True)


def _folded(images, radius, odd, axis):
    """Sums (or differences, if `odd`) of what lies at x and -x, for x from 0; x = 0 counts once."""
    images = np.moveaxis(images, axis, 0)
    folded = images[radius:] + (-images[radius::-1] if odd else images[radius::-1])
    if not odd:
        folded[0] *= 0.5
    return np.moveaxis(folded, 0, axis)


def _unfolded(quarter, odd, axis):
    quarter = np.moveaxis(quarter, axis, 0)
    other = quarter[:0:-1]
    return np.moveaxis(np.concatenate([-other if odd else other, quarter]), 0, axis)
