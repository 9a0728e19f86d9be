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
# degrees apart): keeps strong directions before weak ones when all of them correlate perfectly.
_MODEL_ERROR = 0.001


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


def _shrunk(signal, white, colour, ratio):
    """Signal covariance by optimal shrinkage of the sample's eigenvalues in units of the noise.

    Of a sample covariance with K / n = `ratio` the eigenvalue l above ``(1 + sqrt(ratio))^2`` stands for
    ``((l + 1 - ratio) + sqrt((l + 1 - ratio)^2 - 4 l)) / 2 - 1`` (Donoho, Gavish, Johnstone, Ann. Statist. 46 (2018)),
    what is below for none.
    """
    found, axes = np.linalg.eigh(_congruence(white, signal))
    found = found + 1
    ratio = np.asarray(ratio)[..., None]
    y = found + 1 - ratio
    root = np.sqrt(np.maximum(y * y - 4 * found, 0))
    true = np.where(found > (1 + np.sqrt(ratio)) ** 2, (y + root) / 2 - 1, 0)
    basis = colour @ axes
    return (basis * true[..., None, :]) @ np.swapaxes(basis, -1, -2)


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

    Lines of images with transfer function h are ``h s + noise``. The signal's covariances are estimated, for each
    angular frequency, from all images; with them each image's lines are filtered (Wiener), which brings in what its
    other lines tell of a line. How the filtered lines of two images correlate at a common line follows from the
    covariance of filtered line and true line, ``M = sum_q A_q H S_q``. Filters that were made with a sample find in it
    signal that is not there, so M is measured by cross-validation: filters from some of the images, covariances from
    the others. Without that, weak directions spoil the search.

    Parameters
    ----------
    blocks : ndarray of shape (n, n_frequencies, K), complex64
        Fourier coefficients of the lines over the angle, ``q = 0, 1, ...``, the mean taken away.
    noise : ndarray of shape (n_frequencies, K, K)
        Of :func:`noise_blocks`.
    gains : ndarray of shape (n_groups, K)
        Transfer function of each group of images.
    groups : ndarray of shape (n,), int
    """

    def __init__(self, blocks, noise, gains, groups):
        n, n_frequencies, n_radial = blocks.shape
        self.noise, self.gains = noise, gains
        # a real signal's coefficients stand for those at -q too
        self.multiplicity = np.full(n_frequencies, 2.0)
        self.multiplicity[[0, -1]] = 1
        n_folds = min(_N_FOLDS, n)
        folds = np.arange(n) % n_folds
        shape = (n_folds, n_frequencies, n_radial, n_radial)
        sums, weights = np.zeros(shape), np.zeros((n_folds, n_radial, n_radial))
        for group, gain in enumerate(gains):
            both = np.outer(gain, gain)
            for fold in range(n_folds):
                chosen = np.swapaxes(blocks[(groups == group) & (folds == fold)], 0, 1)
                sample = np.swapaxes(chosen, 1, 2) @ chosen.conj()
                sums[fold] += both * (sample.real - chosen.shape[1] * noise)
                weights[fold] += chosen.shape[1] * both**2
        rms = np.sqrt(np.mean(gains[groups] ** 2, axis=0))
        self._white, self._colour = whitening(noise / np.outer(rms, rms))
        counts = np.bincount(folds)
        self._signal = self._estimate(sums.sum(axis=0) / weights.sum(axis=0), n)
        left_out = [
            self._estimate((sums.sum(axis=0) - sums[k]) / (weights.sum(axis=0) - weights[k]), n - counts[k])
            for k in range(n_folds)
        ]
        raw = sums / np.maximum(weights, 1e-12)[:, None]
        shares = weights / weights.sum(axis=0)
        self.filters = np.stack([self._wiener(self._signal, gain) for gain in gains])
        self._line = np.zeros((n_frequencies, n_radial, n_radial))
        self._cross = np.zeros((len(gains), n_frequencies, n_radial, n_radial))
        self._own = np.zeros_like(self._cross)
        for k in range(n_folds):
            self._line += shares[k] * raw[k]
            for group, gain in enumerate(gains):
                wiener = self._wiener(left_out[k], gain)
                seen = gain[:, None] * (shares[k] * raw[k])
                self._cross[group] += wiener @ seen
                own = wiener @ (seen * gain + shares[k] * noise) @ np.swapaxes(wiener, 1, 2)
                self._own[group] += own

    def _estimate(self, sample, n):
        ratio = np.full(len(sample), sample.shape[-1] / (2 * n))
        ratio[[0, -1]] *= 2
        return _shrunk(sample, self._white, self._colour, ratio)

    def _wiener(self, signal, gain):
        """``S H (H S H + N)^-1``, in the directions that hold noise."""
        seen = gain[:, None] * signal * gain
        white, colour = whitening(self.noise)
        found, axes = np.linalg.eigh(_congruence(white, seen))
        inverse = white @ axes
        inverse = (inverse / (1 + np.maximum(found, 0))[..., None, :]) @ np.swapaxes(inverse, -1, -2)
        return signal @ (gain[:, None] * inverse)

    def _total(self, blocks, part, derivative):
        """Sum over the angular frequencies of a part: covariance of a line, or of its derivative by the angle."""
        q = np.arange(len(self.multiplicity))
        weights = self.multiplicity * q**2 if derivative else self.multiplicity
        return np.tensordot(weights[part::2], blocks[part::2], axes=1)

    def line_noise(self, part, derivative=False):
        """Covariance of the noise of a line, before filtering; part 0 is even, 1 odd."""
        return self._total(self.noise, part, derivative)

    def line_signal(self, part):
        """Covariance of the signal of a line, as measured: not necessarily positive."""
        return self._total(self._line, part, False)

    def canonical(self, first, second, part, n_coordinates, *, derivative=False):
        """Coordinates in which filtered lines of two groups of images correlate most at common lines.

        With M, Q of each group, the covariance of filtered line and true line and of filtered line with itself, and
        C of the true line: singular vectors of ``Q_1^-1/2 M_1 C^-1 M_2^T Q_2^-1/2``.

        Parameters
        ----------
        first, second : int
            Groups.
        part : {0, 1}
            Even or odd.
        n_coordinates : int
        derivative : bool, default=False
            Of the lines' derivatives by the angle.

        Returns
        -------
        first, second : CanonicalLines
        """
        noise = self.line_noise(part, derivative)
        white, _ = whitening(noise)
        line = _congruence(white, self._total(self._line, part, derivative))
        values, vectors = np.linalg.eigh(line)
        inverse = (vectors * np.where(values > 0, 1 / (np.maximum(values, 0) + _RIDGE), 0)) @ vectors.T
        scaled, cross = [], []
        for group in (first, second):
            own = _congruence(white, self._total(self._own[group], part, derivative))
            own += _MODEL_ERROR * np.trace(line) / len(line) * np.eye(len(line))
            values, vectors = np.linalg.eigh(own)
            keep = values > _LEAST
            scaled.append(vectors[:, keep] / np.sqrt(values[keep]))
            whole = _congruence(white, self._total(self._cross[group], part, derivative))
            cross.append(scaled[-1].T @ whole)
        left, found, right = np.linalg.svd(cross[0] @ inverse @ cross[1].T, full_matrices=False)
        found = np.minimum(found[:n_coordinates], _LARGEST_CORRELATION)
        bases = [white @ scaled[0] @ left[:, : len(found)], white @ scaled[1] @ right[: len(found)].T]
        return tuple(CanonicalLines(basis.astype(np.float32), found) for basis in bases)
