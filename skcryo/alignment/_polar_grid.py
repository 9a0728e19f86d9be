"""The polar Fourier grid of the in-plane search, and the angular basis that images are compressed to.

The squared distance of two images in a disc of the Fourier plane is an integral over radius and angle. Here
the radius has Gauss-Legendre nodes, exact for images inside the mask, and the angle equal steps. A real image
is held as the real polar function ``h = Re F + Im F``: it carries all of F because ``F(-k) = conj F(k)``, its
inner products are those of F, and rotating the image moves it along the angle. The Fourier coefficients of h
along the angle, of order m, restricted to what images inside the mask can have, are the *features*: an inner
product of two feature vectors is the weighted inner product of two images, and the correlation over all
angles needs one product for each order.
"""

import functools
from dataclasses import dataclass

import numpy as np
import scipy.fft
import scipy.sparse

from .._gridding import KERNEL_WIDTH, OVERSAMPLING, deconvolution, kernel
from .._products import row_products

__all__ = []

# Images are transformed in batches filled up to this size, so that no result depends on how they were split.
BATCH = 32
_MIN_ENERGY_BEYOND = 1e-3  # rings beyond which white noise has a smaller share of its energy are left out
_MIN_ENERGY = 1e-5  # directions of which the rings keep a smaller share of energy are left out


@dataclass(frozen=True)
class GridSpec:
    """What a grid is made from; hashable, so that equal grids are built once."""

    image_size: int
    n_angles: int
    mask_radius: float
    max_shift: float
    max_frequency: float
    ring_weights: tuple  # (radii, weights) of the table that w(r) is interpolated from


def ring_weights(image_size, metric, lowpass, order, weights):
    """Table of the weight of each frequency in the squared distance: (radii, weights), 0 to 0.5 cycles/px."""
    radii = np.linspace(0, 0.5, 1025)
    w = np.ones_like(radii)
    if metric == "sobolev":
        w *= (1 + (radii * image_size) ** 2) ** -order
    if lowpass:
        w *= np.exp(-((2 * np.pi * lowpass * radii) ** 2))
    if weights is not None:
        w *= np.interp(radii * image_size, np.arange(len(weights)), weights)
    return radii, w


def band_limit(radii, weights):
    """Frequency beyond which white noise leaves less than a thousandth of its weighted energy, cycles/px."""
    energy = np.cumsum(radii * weights)
    beyond = np.searchsorted(energy, (1 - _MIN_ENERGY_BEYOND) * energy[-1])
    return float(radii[min(beyond + 1, len(radii) - 1)])


class PolarGrid:
    """Nodes, weights and operators for one :class:`GridSpec`; every array is read-only once made."""

    def __init__(self, spec):
        self.spec = spec
        L = spec.image_size
        K, reach = spec.max_frequency, spec.mask_radius + spec.max_shift
        n_rings = int(np.ceil(np.pi * reach * K)) + 8
        nodes, quadrature = np.polynomial.legendre.leggauss(n_rings)
        self.radii = K * (nodes + 1) / 2
        table_radii, table = spec.ring_weights
        # squared norm of an image = sum over rings of area * w * mean over the angle of |F|^2
        area = 2 * np.pi * self.radii * quadrature * K / 2
        self.weights = area * np.interp(self.radii, table_radii, table)
        self.n_rings = n_rings
        self.mask = disc_mask(L, spec.mask_radius)
        self._make_basis(reach)
        # Orders of an image inside the mask that reach beyond the last one kept are below the basis'
        # tolerance, so sampling for the last one and its neighbours keeps aliases out.
        self.n_theta = 2 * scipy.fft.next_fast_len(self.n_orders + 5)
        self.half_angles = 2 * np.pi * np.arange(self.n_theta // 2) / self.n_theta
        self._make_interpolation()

    # ------------------------------------------------------------------ basis
    def _make_basis(self, reach):
        """Per order m, an orthonormal basis of the ring profiles of functions inside a disc of radius reach.

        The profile of a function of angular order m is its Hankel transform. Singular values of that
        operator, from the disc to the weighted rings, fall off a cliff (Slepian's prolate functions): what
        lies below is left out.
        """
        n, K = self.spec.n_angles, self.spec.max_frequency
        nodes, quadrature = np.polynomial.legendre.leggauss(int(np.ceil(np.pi * reach * K)) + 8)
        rho = reach * (nodes + 1) / 2
        ring = np.sqrt(self.weights)[:, None]
        disc = np.sqrt(2 * np.pi * rho * quadrature * reach / 2)
        threshold = _MIN_ENERGY * max(self.spec.ring_weights[1])
        self.basis = []
        for bessel in bessel_orders(2 * np.pi * self.radii[:, None] * rho):
            operator = ring * bessel * disc
            lit = (
                np.square(operator).sum(axis=1) > 1e-3 * threshold
            )  # high orders are zero on the inner rings
            basis = np.zeros((self.n_rings, 0))
            if lit.any():
                energy, vectors = np.linalg.eigh(operator[lit] @ operator[lit].T)
                kept = np.flatnonzero(energy > threshold)[::-1]
                basis = np.zeros((self.n_rings, len(kept)))
                basis[lit] = vectors[:, kept]
            self.basis.append(basis)
        while self.basis[-1].shape[1] == 0:
            self.basis.pop()
        # Orders m, n - m, n + m ... look alike on n angles: they share a group, those of the mirrored kind
        # conjugated.
        self.groups = [[] for _ in range(n // 2 + 1)]
        for m, b in enumerate(self.basis):
            folded = m % n
            mirrored = folded > n // 2
            if b.shape[1]:
                self.groups[n - folded if mirrored else folded].append((m, mirrored))
        self.slices, start, self.layout = [], 0, []
        for group in self.groups:
            first = start
            for m, mirrored in group:
                width = 2 * self.basis[m].shape[1]
                self.layout.append((m, mirrored, slice(start, start + width)))
                start += width
            self.slices.append(slice(first, start))
        self.n_features = start
        self.n_orders = len(self.basis)
        # Order of every coefficient (pair of features), negative where it is conjugated.
        self.signed_orders = np.concatenate(
            [np.full((w.stop - w.start) // 2, -m if mirrored else m) for m, mirrored, w in self.layout]
        )

    @functools.cached_property
    def _projectors(self):
        """For each order, (D, n_rings): ring values of rfft(h) to features."""
        scale = [1.0 if m == 0 else np.sqrt(2.0) for m in range(self.n_orders)]
        return [
            np.ascontiguousarray(b.T * (s / self.n_theta), dtype=np.float32)
            for b, s in zip(self.basis, scale)
        ]

    # ---------------------------------------------------------- interpolation
    def _make_interpolation(self):
        L, half = self.spec.image_size, KERNEL_WIDTH // 2
        N = OVERSAMPLING * L
        reach = int(np.ceil(self.spec.max_frequency * N)) + half
        self._rows = np.arange(
            -half, reach + 1
        )  # ky of the half plane, with the margin that the kernel needs
        self._columns = np.arange(-reach, reach + 1)
        kx = N * (self.radii[:, None] * np.cos(self.half_angles)).ravel()
        ky = N * (self.radii[:, None] * np.sin(self.half_angles)).ravel()
        taps = np.arange(1 - half, half + 1)
        ix, iy = np.floor(kx)[:, None] + taps, np.floor(ky)[:, None] + taps
        wx, wy = kernel(kx[:, None] - ix), kernel(ky[:, None] - iy)
        values = (wy[:, :, None] * wx[:, None, :]).astype(np.float32)
        columns = (iy[:, :, None] + half) * len(self._columns) + ix[:, None, :] + reach
        n_points = len(kx)
        indptr = np.arange(n_points + 1, dtype=np.int32) * KERNEL_WIDTH**2
        self._interpolation = scipy.sparse.csr_matrix(
            (values.ravel(), columns.ravel().astype(np.int32), indptr),
            shape=(n_points, len(self._rows) * len(self._columns)),
        )
        correction = deconvolution(L)
        self._window = (self.mask * correction[:, None] * correction).astype(np.float32)

    def transform(self, images):
        """Fourier transforms of the masked images on half of the polar grid.

        Parameters
        ----------
        images : ndarray of shape (BATCH, L, L), float32

        Returns
        -------
        ndarray of shape (n_rings, n_theta / 2, BATCH), complex64
        """
        n, L = len(images), self.spec.image_size
        N, c = OVERSAMPLING * L, L // 2
        padded = np.zeros((n, N, L), dtype=np.float32)
        np.multiply(images[:, c:], self._window[c:], out=padded[:, : L - c])
        np.multiply(images[:, :c], self._window[:c], out=padded[:, N - c :])
        spectrum = scipy.fft.rfft(padded, axis=1)
        wide = np.zeros((n, len(self._rows), N), dtype=np.complex64)
        for to, ky in enumerate(self._rows):
            # the transform along y of a real image: negative and aliased frequencies are conjugates
            row = spectrum[:, ky] if 0 <= ky <= N // 2 else spectrum[:, -ky % N].conj()
            wide[:, to, : L - c] = row[:, c:]
            wide[:, to, N - c :] = row[:, :c]
        spectrum = scipy.fft.fft(wide, axis=2, overwrite_x=True)[:, :, self._columns % N]
        grid = np.ascontiguousarray(spectrum.reshape(n, -1).T).view(np.float32)
        return (self._interpolation @ grid).view(np.complex64).reshape(self.n_rings, self.n_theta // 2, n)

    def hartley(self, half_plane):
        """Weighted polar function ``sqrt(w) (Re F + Im F)`` on the circle; (n_rings, n_theta, n) float32."""
        weighted = half_plane * np.sqrt(self.weights).astype(np.float32)[:, None, None]
        re, im = weighted.real, weighted.imag
        return np.concatenate([re + im, re - im], axis=1)

    def features(self, hartley):
        """Features of weighted polar functions (n_rings, n_theta, n); (n, n_features) float32."""
        n = hartley.shape[2]
        orders = scipy.fft.rfft(hartley, axis=1)
        out = np.empty((self.n_features, n), dtype=np.float32)
        for m, mirrored, where in self.layout:
            ring_values = orders[:, m].view(np.float32)
            coefficients = row_products(self._projectors[m], ring_values).view(np.complex64)
            out[where][0::2] = coefficients.real
            out[where][1::2] = -coefficients.imag if mirrored else coefficients.imag
        return np.ascontiguousarray(out.T)

    def squared_norms(self, hartley):
        """Squared norms of weighted polar functions; ndarray of shape (n,), float64."""
        rings = np.einsum("rtn,rtn->rn", hartley, hartley)
        return rings.sum(axis=0, dtype=np.float64) / self.n_theta

    def synthesis(self, features, n_theta):
        """Weighted polar functions of features: inner products over rings, averaged over n_theta angles, are
        those of the features; ndarray of shape (n_rings, n_theta, n), float32."""
        n = len(features)
        orders = np.zeros((self.n_rings, n_theta // 2 + 1, n), dtype=np.complex64)
        columns = np.ascontiguousarray(features.T)
        for m, mirrored, where in self.layout:
            pairs = columns[where]
            coefficients = np.empty((len(pairs) // 2, n), dtype=np.complex64)
            coefficients.real = pairs[0::2]
            coefficients.imag = -pairs[1::2] if mirrored else pairs[1::2]
            ring_basis = self.basis[m] * (n_theta if m == 0 else n_theta / np.sqrt(2.0))
            ring_values = row_products(ring_basis.astype(np.float32), coefficients.view(np.float32))
            orders[:, m] = ring_values.view(np.complex64)
        return scipy.fft.irfft(orders, n=n_theta, axis=1)


def bessel_orders(z):
    """Bessel functions ``J_m(z)``, m = 0, 1, ... until all vanish; (n_orders, *z.shape) float64.

    From the generating function ``exp(i z sin t) = sum_m J_m(z) exp(i m t)``, all orders by one FFT.
    """
    largest = z.max()
    n_orders = int(largest + 6 * largest ** (1 / 3)) + 12
    n = scipy.fft.next_fast_len(2 * n_orders)
    sine = np.sin(2 * np.pi * np.arange(n) / n)
    out = np.empty((n_orders, *z.shape))
    for i, row in enumerate(z):
        out[:, i] = scipy.fft.fft(np.exp(1j * row[:, None] * sine), axis=1)[:, :n_orders].real.T / n
    return out


@functools.lru_cache(maxsize=8)
def polar_grid(spec):
    """The grid of a specification, built once."""
    return PolarGrid(spec)


def disc_mask(L, radius):
    """Pixels within `radius` of the centre ``L // 2``; ndarray of shape (L, L), bool."""
    x = np.arange(L) - L // 2
    return np.hypot(x[:, None], x) <= radius + 1e-9
