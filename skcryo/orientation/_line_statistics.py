"""What a common line is told by: second moments of radial lines, and the few coordinates that matter.

A radial line of an image's Fourier transform is a vector over radii; over the angle it is a stationary process, so
its angular frequencies q = 0, 1, ... have covariances of their own, and even (odd) ones make up the line's real
(imaginary) part.
"""

from dataclasses import dataclass

import numpy as np
import scipy.fft

__all__ = ["CanonicalLines", "LineStatistics", "noise_blocks", "whitening"]

_N_FOLDS = 8
# Variances, in units of the noise of a line: what is added to the signal's before it is inverted, and below which a
# direction of filtered lines is left out. Both keep directions that hold next to nothing from being believed.
_RIDGE, _LEAST = 0.05, 0.005
_LARGEST_CORRELATION = 0.995
# Share of the signal's mean power by which lines are taken to err even without noise (the mask cuts, lines are a few
# degrees apart, covariances are those of a sample), and the mean power from which on all of it is, in units of the
# noise: weak directions made of the strong ones' error are not believed. Of images of a signal-to-noise ratio of 5 or
# more a third of the lines was lost without it.
_MODEL_ERROR, _MUCH_SIGNAL = 0.01, 10.0
# Of fewer images covariances by angular frequency are not estimated well enough to filter by.
_FEWEST_FILTERED = 40


def noise_blocks(mask, n_theta, n_radial):
    """Covariance between radii of the lines of masked white noise, by angular frequency.

    ``E F(k) conj F(k') = sum_x m(x)^2 exp(-2 pi i (k - k') x)`` of transforms F depends for a round mask m on the
    length of ``k - k'`` alone.

    Parameters
    ----------
    mask : ndarray of shape (L, L)
    n_theta : int
        Lines on the full circle.
    n_radial : int
        Radii 1, ..., `n_radial` cycles per box.

    Returns
    -------
    ndarray of shape (n_theta // 2 + 1, n_radial, n_radial), float64
    """
    L = len(mask)
    row = np.square(mask, dtype=np.float64).sum(axis=0)
    x = np.arange(L) - L // 2
    radii = np.arange(1, n_radial + 1)
    cosines = np.cos(2 * np.pi * np.arange(n_theta) / n_theta)[:, None, None]
    distance = np.sqrt(np.maximum(radii[:, None] ** 2 + radii**2 - 2 * radii[:, None] * radii * cosines, 0))
    covariance = np.cos(2 * np.pi / L * distance[..., None] * x) @ row
    return scipy.fft.rfft(covariance, axis=0).real / n_theta


def whitening(noise):
    """Matrices to and from directions in which noise has variance 1; directions without noise are left out.

    Parameters
    ----------
    noise : ndarray of shape (..., K, K)

    Returns
    -------
    white, colour : ndarray of shape (..., K, K)
        ``white.T @ noise @ white`` is 1 on the diagonal, or 0 where left out; ``white @ colour.T`` projects.
    """
    values, vectors = np.linalg.eigh(noise)
    keep = values > 1e-6 * values[..., -1:]
    scale = np.sqrt(np.where(keep, values, 1))
    return vectors * (keep / scale)[..., None, :], vectors * (keep * scale)[..., None, :]


def _congruence(basis, matrix):
    return np.swapaxes(basis, -1, -2) @ matrix @ basis


@dataclass(frozen=True)
class CanonicalLines:
    """Coordinates of filtered lines that tell whether two images share a line; of one part (even or odd).

    Parameters
    ----------
    basis : ndarray of shape (K, n_coordinates)
        Coordinates are ``lines @ basis``, of variance 1.
    correlation : ndarray of shape (n_coordinates,)
        Of the coordinates of two images at their common line.
    """

    basis: np.ndarray
    correlation: np.ndarray


class LineStatistics:
    """Filter of lines by angular frequency, and how well filtered lines of two images agree where they are common.

    The signal's covariance at each angular frequency is estimated from all images; with it lines are filtered (Wiener:
    ``A_q = S_q (S_q + N_q)^-1``), which brings in what an image's other lines tell of a line. How the filtered lines of
    two images correlate at a common line follows from the covariance of filtered and true line, ``M = sum_q A_q S_q``.
    Filters that were made from a sample find in it signal that is not there, so M is measured by cross-validation:
    filters from some of the images, covariances from the others. Without that, directions that hold next to no signal
    spoil the search. Fewer than 40 images are not filtered: the covariances of whole lines are all that they
    tell.

    Parameters
    ----------
    blocks : ndarray of shape (n, n_frequencies, K), complex64
        Fourier coefficients of the lines over the angle, ``q = 0, 1, ...``, the mean taken away.
    noise : ndarray of shape (n_frequencies, K, K)
        Of :func:`noise_blocks`.

    Attributes
    ----------
    filters : ndarray of shape (n_frequencies, K, K)
        A_q.
    """

    def __init__(self, blocks, noise):
        n, n_frequencies, n_radial = blocks.shape
        self.noise = noise
        # a real signal's coefficients stand for those at -q too
        self._multiplicity = np.full(n_frequencies, 2.0)
        self._multiplicity[[0, -1]] = 1
        self._white, self._colour = whitening(noise)
        n_folds = min(_N_FOLDS, n)
        folds = np.arange(n) % n_folds
        shares = np.bincount(folds) / n
        samples = np.empty((n_folds, *noise.shape))
        for k in range(n_folds):
            chosen = np.swapaxes(blocks[folds == k], 0, 1)
            samples[k] = (np.swapaxes(chosen, 1, 2) @ chosen.conj()).real / chosen.shape[1]
        sample = np.tensordot(shares, samples, axes=1)
        self._signal = sample - noise
        if n < _FEWEST_FILTERED:
            self.filters = np.broadcast_to(np.eye(n_radial), noise.shape)
            self._cross, self._own = self._signal, sample
            return
        self.filters = self._wiener(sample, n)
        self._cross, self._own = np.zeros_like(noise), np.zeros_like(noise)
        for k, share in enumerate(shares):
            wiener = self._wiener((sample - share * samples[k]) / (1 - share), n * (1 - share))
            self._cross += share * wiener @ (samples[k] - noise)
            self._own += share * wiener @ samples[k] @ np.swapaxes(wiener, 1, 2)

    def _wiener(self, sample, n):
        """Filters by optimal shrinkage of the eigenvalues of a sample of n images, in units of the noise.

        With K / n = `ratio`, the eigenvalue l above ``(1 + sqrt(ratio))^2`` stands for a signal of variance ``((l + 1 -
        ratio) + sqrt((l + 1 - ratio)^2 - 4 l)) / 2 - 1``, one below for none (Donoho, Gavish, Johnstone, "Optimal
        shrinkage of eigenvalues in the spiked covariance model", Ann. Statist. 46 (2018)).
        """
        ratio = np.full((len(sample), 1), sample.shape[-1] / (2 * n))
        ratio[[0, -1]] *= 2  # real coefficients
        found, axes = np.linalg.eigh(_congruence(self._white, sample))
        y = found + 1 - ratio
        signal = (y + np.sqrt(np.maximum(y * y - 4 * found, 0))) / 2 - 1
        signal = np.where(found > (1 + np.sqrt(ratio)) ** 2, signal, 0)
        gain = signal / (signal + 1)
        return (self._colour @ axes * gain[:, None, :]) @ np.swapaxes(axes, 1, 2) @ np.swapaxes(self._white, 1, 2)

    def _total(self, blocks, part, derivative):
        """Sum over the angular frequencies of a part: covariance of a line, or of its derivative by the angle."""
        weights = self._multiplicity
        if derivative:
            weights = weights * np.arange(len(weights)) ** 2
        return np.tensordot(weights[part::2], blocks[part::2], axes=1)

    def line_noise(self, part):
        """Covariance of the noise of a line before the filter; part 0 is even, 1 odd."""
        return self._total(self.noise, part, False)

    def line_signal(self, part):
        """Covariance of the signal of a line, as measured: not necessarily positive."""
        return self._total(self._signal, part, False)

    def canonical(self, part, n_coordinates, *, derivative=False):
        """Coordinates in which filtered lines of two images correlate most at their common line.

        With Q the covariance of filtered lines, C that of the signal: eigenvectors of ``Q^-1/2 M C^-1 M^T Q^-1/2``.

        Parameters
        ----------
        part : {0, 1}
            Even or odd.
        n_coordinates : int
        derivative : bool, default=False
            Of the lines' derivatives by the angle.

        Returns
        -------
        CanonicalLines
        """
        white, _ = whitening(self._total(self.noise, part, derivative))
        signal, cross, own = (
            _congruence(white, self._total(blocks, part, derivative))
            for blocks in (self._signal, self._cross, self._own)
        )
        power = max(np.trace(signal), 0) / len(signal)
        error = _MODEL_ERROR * power**2 / (power + _MUCH_SIGNAL)
        values, vectors = np.linalg.eigh(signal)
        inverse = (vectors * np.where(values > 0, 1 / (np.maximum(values, 0) + _RIDGE + error), 0)) @ vectors.T
        own = own + error * np.eye(len(signal))
        values, vectors = np.linalg.eigh(own)
        keep = values > _LEAST
        scaled = vectors[:, keep] / np.sqrt(values[keep])
        cross = scaled.T @ (cross + cross.T) / 2
        correlation, axes = np.linalg.eigh(cross @ inverse @ cross.T)
        best = np.argsort(-correlation)[:n_coordinates]
        correlation = np.clip(correlation[best], 0, _LARGEST_CORRELATION)
        return CanonicalLines((white @ scaled @ axes[:, best]).astype(np.float32), correlation)
