"""What images say before they are classified: mean, noise by Fourier ring, and the components that stand out of it."""

from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh
from scipy.sparse.linalg import eigsh

from ._sml_data import ring_sums

__all__ = ["SignalSpace", "find_signal_space"]

_RIDGE = 1e-3  # of the mean CTF^2, against its zeros
_DENSE = 600  # coordinates up to which all eigenvectors are computed
_NOISE_ROUNDS = 2
_DETECTED = 5.0  # standard deviations above what noise does
_ALIKE = 1e-12  # of all power
_LEAST_NOISE = 1e-3  # of all power: images without noise must not divide by zero


@dataclass
class SignalSpace:
    """Mean, noise and components of CTF-free images, in coordinates.

    Attributes
    ----------
    mean : ndarray of shape (n_coordinates,)
    noise : ndarray of shape (n_coordinates,)
        Variance of the noise.
    components : ndarray of shape (n_coordinates, n_components)
        Of coordinates divided by the noise's standard deviation. Multiplied by the root mean square CTF they are
        orthonormal; without CTFs they are so themselves.
    variances : ndarray of shape (n_components,)
        Of the images' coefficients of the components, descending.
    ring_variances : ndarray of shape (n_rings,)
        Mean variance of the images in a coordinate of each ring, in units of the noise.
    n_significant : int
        Components that stand out of the noise.
    """

    mean: np.ndarray
    noise: np.ndarray
    components: np.ndarray
    variances: np.ndarray
    ring_variances: np.ndarray
    n_significant: int


def find_signal_space(data, n_components):
    """Principal components of CTF-free, noise-free images, and the noise, from two passes over the images.

    The covariance is that which best predicts the second moments of the images through their CTFs: with c the CTF
    and y an image minus c times the mean, ``sum (c y)(c y)^T - sigma^2 diag(sum c^2)`` divided, element by element, by
    ``sum c^2 c^2T``. Noise by ring is what the components leave of the images' power; both are found in turn.

    Parameters
    ----------
    data : ParticleCoordinates
    n_components : int
        At most.

    Returns
    -------
    SignalSpace

    Raises
    ------
    ValueError
        If the images are all alike.

    Notes
    -----
    Where CTFs are small the covariance is mostly noise. Components are those of the covariance as it is seen,
    multiplied by the root mean square CTF on both sides, in which noise is even: what matters is what images can show.

    Components end at the last ring whose covariance with all rings within it exceeds that of noise (five standard
    deviations): all further ones would only add noise. Of a ribosome of 65 px that varies up to 14 cycles across the
    box, components of the whole band gave half as pure classes.

    Variances of a covariance from finitely many images are too large by what noise adds; this is taken off as for
    spiked covariances in white noise (Baik, Silverstein 2006). What lies within noise keeps a quarter of the least
    variance that would stand out.
    """
    coordinates, total = data.coordinates, data.weights.sum()
    filtered, squares, power = _first_moments(data)
    spread = squares[coordinates.groups]
    mean = filtered / (spread + _RIDGE * spread.mean())
    exact = filtered**2 / np.where(spread > 0, spread, 1)
    if (power - ring_sums(exact, coordinates)).sum() <= _ALIKE * power.sum():
        raise ValueError(f"the n_samples={len(data)} images are all alike: there is nothing to classify")
    power = power - ring_sums(mean * (2 * filtered - mean * spread), coordinates)
    power = np.maximum(power, 1e-6 * power.max())
    moments, overlap = _second_moments(data, mean)
    overlap += _RIDGE * np.diag(overlap).mean()
    noise = power / (total * coordinates.ring_sizes)
    seen = np.sqrt((spread + _RIDGE * spread.mean()) / total)
    scale = np.outer(seen, seen) / overlap[np.ix_(coordinates.groups, coordinates.groups)]
    n_kept = coordinates.n_coordinates
    for done in range(_NOISE_ROUNDS):
        sigma = np.sqrt(noise)[coordinates.rings]
        covariance = moments / np.outer(sigma, sigma)
        covariance[np.diag_indices_from(covariance)] -= spread
        covariance *= scale
        if done == 0:
            n_kept = _correlated(covariance, coordinates, total)
        values, vectors = _largest(covariance[:n_kept, :n_kept], min(n_components, n_kept))
        variances, n_significant = _shrunk(values, n_kept, total)
        components = np.zeros((coordinates.n_coordinates, len(values)))
        components[:n_kept] = vectors * (sigma / seen)[:n_kept, None]
        left = power - ring_sums(components**2 @ variances * spread, coordinates)
        noise = np.maximum(left, _LEAST_NOISE * power) / (total * coordinates.ring_sizes)
    components /= np.sqrt(noise)[coordinates.rings, None]
    ring_variances = ring_sums(components**2 @ variances, coordinates) / coordinates.ring_sizes
    return SignalSpace(mean, noise[coordinates.rings], components, variances, ring_variances, n_significant)


def _first_moments(data):
    coordinates = data.coordinates
    filtered, squares = np.zeros(coordinates.n_coordinates), np.zeros(coordinates.n_groups)
    power = np.zeros(coordinates.n_rings)
    for where, y, factors in data.chunks():
        w = data.weights[where]
        weighted = factors * w[:, None] if len(factors) > 1 else factors
        if len(factors) > 1:
            filtered += np.einsum("ij,ij->j", weighted[:, coordinates.groups], y)
            squares += np.einsum("ij,ij->j", weighted, factors)
        else:
            filtered += (w @ y) * factors[0, coordinates.groups]
            squares += w.sum() * factors[0] ** 2
        power += ring_sums(w @ (y.astype(np.float64) ** 2), coordinates)
    return filtered, squares, power


def _second_moments(data, mean):
    """sum w (c y)(c y)^T of y = Y - c mean, and sum w c^2 c^2T by group."""
    coordinates = data.coordinates
    moments = np.zeros((coordinates.n_coordinates,) * 2)
    overlap = np.zeros((coordinates.n_groups,) * 2)
    for where, y, factors in data.chunks():
        roots = np.sqrt(data.weights[where])[:, None].astype(data.dtype)
        c = np.take(factors, coordinates.groups, axis=1)
        y = (y - c * mean.astype(data.dtype)) * (c * roots)
        moments += y.T @ y
        squares = factors**2 * roots if len(factors) > 1 else factors**2 * np.sqrt(data.weights[where].sum())
        overlap += (squares.T @ squares).astype(np.float64)
    return moments, overlap


def _correlated(covariance, coordinates, n_images):
    """Coordinates up to the last ring that varies together with what lies within it, more than noise would.

    Of independent noise the squares of ``n_images ** 0.5`` times the covariance of two coordinates have mean 1 and
    variance 2. All rings beyond would add noise to the components and nothing else.
    """
    squares = n_images * np.tril(covariance, -1) ** 2
    last = 0
    for ring in range(coordinates.n_rings):
        rows = np.flatnonzero(coordinates.rings == ring)
        n_pairs = float(rows.sum())
        if (squares[rows].sum() - n_pairs) > _DETECTED * np.sqrt(2 * n_pairs):
            last = ring
    return int(np.count_nonzero(coordinates.rings <= last))


def _largest(covariance, n):
    """Largest eigenvalues, descending, and their eigenvectors, of which the largest element is positive."""
    if len(covariance) <= _DENSE or n > len(covariance) // 4:
        values, vectors = eigh(covariance, subset_by_index=(len(covariance) - n, len(covariance) - 1))
    else:
        start = np.random.RandomState(0).standard_normal(len(covariance))
        values, vectors = eigsh(covariance, k=n, which="LA", v0=start, tol=1e-6)
    order = np.argsort(-values, kind="stable")
    order = order[: max(np.count_nonzero(values > 0), 1)]  # the others are noise of which too much was taken off
    values, vectors = values[order], vectors[:, order]
    return values, vectors * np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(len(order))])


def _shrunk(values, n_coordinates, n_images):
    """Variances of the signal from eigenvalues of a covariance with white noise of variance 1 taken off.

    And how many of them noise alone would not reach in 99 of 100 cases (Johnstone 2001, Tracy-Widom law).
    """
    ratio = n_coordinates / n_images
    inside = (values - ratio) ** 2 - 4 * ratio
    above = (values > ratio) & (inside > 0)
    signal = np.where(above, (values - ratio + np.sqrt(np.maximum(inside, 0))) / 2, 0)
    roots = np.sqrt(n_images) + np.sqrt(n_coordinates)
    width = roots / n_images * (1 / np.sqrt(n_images) + 1 / np.sqrt(n_coordinates)) ** (1 / 3)
    n_significant = int(np.count_nonzero(1 + values > roots**2 / n_images + 2 * width))
    return np.maximum(signal, np.sqrt(ratio) / 4), n_significant
