"""Mean and covariance of images over all turns and mirror images, from sums that can be added up batch by batch."""

import numpy as np
from scipy.linalg import eigh

__all__ = ["SteerableMoments", "solve_covariance"]

_EDGE = 2.02  # quantile of 99 % of the Tracy-Widom law
_CG_TOLERANCE, _CG_ITERATIONS = 1e-4, 200
_NOTHING = 1e-6  # relative to the largest


class SteerableMoments:
    """Sums over images of all that mean and covariance need.

    An image y of x seen through a filter by ring (a CTF) and with white noise enters as ``z = A y``, A being the
    filter; coefficients are those of z, and ``d`` is the filter's square by ring. Then, for every angular frequency,
    in the basis::

        E[z] = A^2 E[x],    Cov[z] = E[A^2 Cov[x] A^2] + noise E[A^2]

    which is linear in mean and covariance of x. Sums over the filters are sums of ``d d^T`` over rings, since A^2 is
    ``P^T diag(d) P``: exact, and the same work for a million of different CTFs as for one.

    Parameters
    ----------
    basis : DiscBasis
    """

    def __init__(self, basis):
        self.basis, self.n_images = basis, 0
        n_rings = len(basis.ring_radii)
        self.second = [np.zeros((size, size)) for size in basis.sizes]
        self.first = np.zeros(basis.sizes[0])
        self.first_by_ring = np.zeros((n_rings, basis.sizes[0]))
        self.filters = np.zeros(n_rings)
        self.filter_pairs = np.zeros((n_rings, n_rings))

    def add(self, coefficients, squares):
        """Add images: coefficients (n, n_functions) of z and squared filters (n, n_rings), or None for none."""
        n_images, basis = len(coefficients), self.basis
        self.n_images += n_images
        for n, second in enumerate(self.second):
            for columns in basis.columns(n):
                if columns is not None:
                    part = coefficients[:, columns].astype(np.float64)
                    second += part.T @ part * (0.5 if n else 1.0)
        part = coefficients[:, basis.columns(0)[0]].astype(np.float64)
        self.first += part.sum(axis=0)
        if squares is None:
            self.first_by_ring += part.sum(axis=0)
            self.filters += n_images
            self.filter_pairs += n_images
        else:
            squares = squares.astype(np.float64)
            self.first_by_ring += squares.T @ part
            self.filters += squares.sum(axis=0)
            self.filter_pairs += squares.T @ squares

    def noise_variance(self):
        """Variance of white noise in a pixel: the median over all functions of their power over that of the filter.

        Molecules fill few of the functions; the median does not see them, and no background outside the disc is
        needed.
        """
        ratios, weights = [], []
        for n, second in enumerate(self.second):
            power = np.diag(self.basis.filter_matrix(n, self.filters))
            seen = power > 0.01 * self.n_images
            ratios.append(np.diag(second)[seen] / power[seen])
            weights.append(np.full(seen.sum(), 1 + (n > 0)))
        ratios, weights = np.concatenate(ratios), np.concatenate(weights)
        if not len(ratios):
            return 0.0
        order = np.argsort(ratios)
        middle = np.searchsorted(np.cumsum(weights[order]), weights.sum() / 2)
        return float(ratios[order[middle]])

    def mean(self):
        """Mean image: its coefficients of angular frequency 0, (sizes[0],)."""
        normal = self.basis.filter_matrix(0, self.filters)
        return np.linalg.lstsq(normal, self.first, rcond=_NOTHING)[0]

    def centred_second(self, n, mean):
        """Second moments of z of angular frequency `n` about the mean, per image."""
        second = self.second[n]
        if n == 0:
            P = self.basis.ring_values[0]
            ring_mean = P @ mean
            cross = P.T @ (ring_mean[:, None] * self.first_by_ring)
            seen = P.T @ (self.filter_pairs * np.outer(ring_mean, ring_mean)) @ P
            second = second - cross - cross.T + seen
        return second / self.n_images


def solve_covariance(moments, n, mean, noise_variance):
    """Covariance of noise-free images at one angular frequency, its eigenvalues shrunk, most of them to zero.

    In units of its noise, the sample covariance of noise alone has no eigenvalue above the edge of the
    Marchenko-Pastur law (exceeded by chance at one angular frequency in a hundred, by the law of Tracy and Widom);
    those above are biased upwards, which is undone [1]_. Then the filters are, by conjugate gradients.

    Parameters
    ----------
    moments : SteerableMoments
    n : int
        Angular frequency.
    mean : ndarray of shape (sizes[0],)
    noise_variance : float

    Returns
    -------
    covariance : ndarray of shape (sizes[n], sizes[n]), float64
    rank : int
        How many eigenvalues were above the noise.

    References
    ----------
    .. [1] Donoho, Gavish, Johnstone, "Optimal shrinkage of eigenvalues in the spiked covariance model", Ann.
       Statist. 46 (2018).
    """
    sample = moments.centred_second(n, mean)
    noise = noise_variance * moments.basis.filter_matrix(n, moments.filters / moments.n_images)
    largest = np.linalg.norm(sample, 2)
    if noise_variance > 0:
        values, vectors = eigh(noise)
        root = vectors * np.sqrt(np.maximum(values, _NOTHING * values[-1]))
        values, vectors = eigh(np.linalg.solve(root, np.linalg.solve(root, sample).T))
        values, kept = _above_noise(values, moments.n_images * (1 + (n > 0)))
        root = root @ vectors[:, kept]
    else:
        values, root = eigh(sample)
        kept = values > _NOTHING * largest
        values, root = values[kept], root[:, kept]
    P = moments.basis.ring_values[n]
    target = (root * values) @ root.T
    return _undo_filters(target, P, moments.filter_pairs / moments.n_images), int(kept.sum())


def _above_noise(values, n_samples):
    """Eigenvalues of the signal, the noise's being 1, of those that are above the noise, and which these are."""
    size = len(values)
    ratio = size / n_samples
    roots = np.sqrt(n_samples) + np.sqrt(size)
    edge = (roots**2 + _EDGE * roots * (1 / np.sqrt(n_samples) + 1 / np.sqrt(size)) ** (1 / 3)) / n_samples
    kept = values > edge
    shifted = values[kept] + 1 - ratio
    return (shifted + np.sqrt(np.maximum(shifted**2 - 4 * values[kept], 0))) / 2 - 1, kept


def _undo_filters(target, P, pairs):
    """X with ``P.T @ (pairs * (P @ X @ P.T)) @ P`` equal to `target`, by preconditioned conjugate gradients."""
    inverse = 1 / (pairs + 1e-3 * pairs.max())

    def weigh(X, by):
        return P.T @ (by * (P @ X @ P.T)) @ P

    X = np.zeros_like(target)
    residual = target.copy()
    direction = z = weigh(residual, inverse)
    rho = np.sum(residual * z)
    for _ in range(_CG_ITERATIONS):
        if np.linalg.norm(residual) <= _CG_TOLERANCE * np.linalg.norm(target):
            break
        step = weigh(direction, pairs)
        length = rho / np.sum(direction * step)
        X += length * direction
        residual -= length * step
        z = weigh(residual, inverse)
        rho, before = np.sum(residual * z), rho
        direction = z + rho / before * direction
    return (X + X.T) / 2
