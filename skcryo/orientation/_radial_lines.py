"""Radial lines of images' Fourier transforms, reduced to the few numbers that a common line is told by."""

from dataclasses import dataclass

import numpy as np
import scipy.fft

from .._validation import iter_finite_chunks
from ..fourier import polar_lines, shift_images
from ..particles import as_stack
from ..preprocessing import noise_spectrum, whiten_images
from ..preprocessing._geometry import soft_circle

__all__ = ["RadialLines"]

_LEAST_SIGNAL = 0.03  # variance in units of the noise below which a direction of lines tells nothing but false hits


@dataclass(frozen=True)
class RadialLines:
    """Lines through the centres of images' Fourier transforms.

    The score of line a of image i with line b of image j is ``even[i, a] . even[j, b] + odd[i, a] . odd[j, b] -
    penalty[i, a] - penalty[j, b]``; with the line b turned by half a turn the odd part changes sign.

    Parameters
    ----------
    even, odd : ndarray of shape (n_images, n_lines, n_coordinates), float32
        Of the lines at angles ``pi a / n_lines``, a = 0, ..., n_lines - 1: half of the circle.
    penalty : ndarray of shape (n_images, n_lines), float32
    coordinates : ndarray of shape (n_images, n_lines, 2 n_coordinates), float32
        The same lines in units of their noise (variance 1 each), even ones first, not filtered.
    signal_variance : ndarray of shape (2 n_coordinates,), float64
        Variance of the signal in each of these coordinates.
    """

    even: np.ndarray
    odd: np.ndarray
    penalty: np.ndarray
    coordinates: np.ndarray
    signal_variance: np.ndarray

    def __len__(self):
        return len(self.even)

    @property
    def n_lines(self):
        """Lines on half of the circle."""
        return self.even.shape[1]

    @classmethod
    def from_images(cls, X, *, score="likelihood", n_lines=48, n_coordinates=8, shifts=None, max_ring=20):
        """Lines of images, see :func:`skcryo.orientation.detect_common_lines`."""
        stack = as_stack(X)
        shifts = stack.shifts if shifts is None else shifts
        L = stack.shape[1]
        max_ring = min(max_ring, (L - 1) // 2)
        spectrum = noise_spectrum(stack)
        mask = soft_circle((L, L), 27 / 65 * L, 4 / 65 * L)
        lines = np.empty((len(stack), n_lines, max_ring), dtype=np.complex64)
        for where, chunk in iter_finite_chunks(stack):
            chunk = whiten_images(chunk, spectrum, remove_mean=True)
            if shifts is not None:
                chunk = shift_images(chunk, -np.asarray(shifts)[where])
            lines[where] = polar_lines((chunk * mask).astype(np.float32), 2 * n_lines, max_ring)[:, :n_lines]
        parts = [np.ascontiguousarray(lines.real), np.ascontiguousarray(lines.imag)]
        parts[0] -= parts[0].mean(axis=(0, 1))
        if score == "correlation":
            norm = np.sqrt(sum(np.square(part).sum(axis=2, keepdims=True) for part in parts))
            even, odd = (part / norm for part in parts)
            return cls(even, odd, np.zeros(even.shape[:2], np.float32), None, None)
        noise = _noise_blocks(mask, n_lines, max_ring)
        raw = [_whitened(part, noise[parity::2].sum(axis=0), n_coordinates) for parity, part in enumerate(parts)]
        reduced, penalty = [], 0
        for parity, part in enumerate(parts):
            filtered, posterior = _filtered(part, noise, parity, shrink=True)
            feature, own = _canonical(filtered, posterior, noise[parity::2].sum(axis=0), n_coordinates)
            reduced.append(feature)
            penalty = penalty + own
        coordinates = np.concatenate([r[0] for r in raw], axis=2)
        variance = np.concatenate([r[1] for r in raw])
        return cls(*reduced, penalty.astype(np.float32), coordinates, variance)

    def score_at(self, angles):
        """Scores of all pairs at given lines.

        Parameters
        ----------
        angles : ndarray of shape (n_images, n_images)
            As in :class:`CommonLines`; the nearest line is taken.

        Returns
        -------
        scores : ndarray of shape (n_images, n_images), float32
            Symmetric, diagonal 0.
        """
        n, n_lines, _ = self.even.shape
        index = np.rint(np.nan_to_num(np.asarray(angles)) * (n_lines / np.pi)).astype(np.int64) % (2 * n_lines)
        sign = np.where(index >= n_lines, -1.0, 1.0).astype(np.float32)
        index %= n_lines
        scores = np.zeros((n, n), dtype=np.float32)
        for i in range(n):
            a, b, j = index[i], index[:, i], np.arange(n)
            scores[i] = np.einsum("jk,jk->j", self.even[i, a], self.even[j, b])
            scores[i] += sign[i] * sign[:, i] * np.einsum("jk,jk->j", self.odd[i, a], self.odd[j, b])
            scores[i] -= self.penalty[i, a] + self.penalty[j, b]
        np.fill_diagonal(scores, 0)
        return scores


def _noise_blocks(mask, n_lines, n_radial):
    """Covariance of white noise behind a mask between radii, by angular frequency: (2 n_lines, K, K).

    ``E F(k) conj F(k') = sum_x m(x)^2 exp(-2 pi i (k - k') x)``, of the difference's length alone.
    """
    L = len(mask)
    row = (mask.astype(np.float64) ** 2).sum(axis=0)
    x = np.arange(L) - L // 2
    radii = np.arange(1, n_radial + 1)
    cosines = np.cos(np.pi * np.arange(2 * n_lines) / n_lines)[:, None, None]
    distance = np.sqrt(np.maximum(radii[:, None] ** 2 + radii**2 - 2 * radii[:, None] * radii * cosines, 0))
    covariance = np.tensordot(np.cos(2 * np.pi / L * distance[..., None] * x), row, axes=1)
    return scipy.fft.fft(covariance, axis=0).real / (2 * n_lines)


def _whitening(noise):
    """Matrices to and from directions in which noise has variance 1; those that hold hardly any are left out."""
    values, vectors = np.linalg.eigh(noise)
    keep = values > 1e-6 * values.max()
    vectors, scale = vectors[:, keep], np.sqrt(values[keep])
    return vectors / scale, vectors * scale


def _whitened(part, noise, n_coordinates):
    n, n_lines, n_radial = part.shape
    white, _ = _whitening(noise)
    flat = part.reshape(-1, n_radial)
    covariance = white.T @ (flat.T @ flat / len(flat)) @ white
    values, vectors = np.linalg.eigh(covariance)
    keep = np.argsort(-values)[:n_coordinates]
    basis = (white @ vectors[:, keep]).astype(np.float32)
    return (flat @ basis).reshape(n, n_lines, -1), np.maximum(values[keep] - 1, 0)


def _filtered(part, noise, parity, *, shrink):
    """Wiener filter by angular frequency; the filtered lines and the covariance of their error."""
    n, n_lines, n_radial = part.shape
    turn = np.exp(-1j * np.pi * parity * np.arange(n_lines) / n_lines).astype(np.complex64)[:, None]
    blocks = scipy.fft.fft(part * turn, axis=1)
    posterior = np.zeros((n_radial, n_radial))
    for p in range(n_lines):
        q = 2 * p + parity
        mirror = (-q) % (2 * n_lines) // 2
        if mirror < p:
            continue
        both = [p] if mirror == p else [p, mirror]
        samples = np.concatenate([blocks[:, k] for k in both])
        # a line's variance is the sum over its frequencies
        covariance = (samples.T @ samples.conj()).real.astype(np.float64) / len(samples) / n_lines**2
        white, colour = _whitening(noise[q])
        found, axes = np.linalg.eigh(white.T @ covariance @ white)
        signal = np.maximum(found - 1, 0)
        if shrink:
            ratio = n_radial / len(samples)
            inside = found > (1 + np.sqrt(ratio)) ** 2
            y = found + 1 - ratio
            signal = np.where(inside, (y + np.sqrt(np.maximum(y**2 - 4 * found, 0))) / 2 - 1, 0)
        gain = signal / (signal + 1)
        wiener = (colour @ axes * gain) @ axes.T @ white.T
        posterior += len(both) * (colour @ axes * gain) @ (colour @ axes).T
        for k in both:
            blocks[:, k] = blocks[:, k] @ wiener.T.astype(np.float32)
    return (scipy.fft.ifft(blocks, axis=1) * turn.conj()).real, posterior


def _canonical(part, posterior, noise, n_coordinates):
    n, n_lines, n_radial = part.shape
    white, _ = _whitening(noise)
    flat = part.reshape(-1, n_radial) @ white.astype(np.float32)
    posterior = white.T @ posterior @ white
    own = (flat.T @ flat).astype(np.float64) / len(flat)
    total = own + posterior
    values, vectors = np.linalg.eigh(own)
    keep = values > _LEAST_SIGNAL
    white = vectors[:, keep] / np.sqrt(values[keep])
    found, basis = np.linalg.eigh(total)
    found = np.maximum(found, 1e-9 * found.max())
    cross = white.T @ own @ ((basis / found) @ basis.T) @ own @ white
    rho, axes = np.linalg.eigh(cross)
    order = np.argsort(-rho)[:n_coordinates]
    rho = np.clip(rho[order], 0, 0.995)
    coordinates = (flat @ (white @ axes[:, order])).reshape(n, n_lines, -1)
    penalty = np.square(coordinates) @ (rho**2 / (2 * (1 - rho**2)))
    feature = np.zeros((n, n_lines, n_coordinates), np.float32)
    feature[:, :, : len(rho)] = coordinates * np.sqrt(rho / (1 - rho**2))
    return feature, penalty
