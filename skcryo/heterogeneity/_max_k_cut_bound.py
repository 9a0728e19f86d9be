"""Certified upper bounds of max-K-cut: a dual feasible point, its feasibility proved in floating point."""

import math

import numpy as np
import scipy.linalg

from .._ext._max_cut import RANK_STEP, slack_product

__all__ = []

_EPS = np.finfo(np.float64).eps
_DENSE = 500
_STEPS = 8
_NOISE = 1e-4
_KEPT = 4


def smallest_eigenvalue(weights, multipliers, diagonal, vectors, accuracy, *, rng, n_threads=1):
    """The smallest eigenvalue of W - Z + Diag(diagonal), nearly: no proof, but what to prove.

    Up to `_DENSE` rows by LAPACK, else by block Lanczos steps from the vectors of the relaxation. Coordinate descent
    damps what has positive eigenvalues, so the vectors' small components hold what is left, and a few steps find it
    among the many eigenvalues near zero; hence as little noise as keeps the block of full rank.

    Parameters
    ----------
    weights, multipliers : ndarray of shape (padded, padded), float32
        W and Z, which may be None; of both, the first n rows and columns count.
    diagonal : ndarray of shape (n,), float64
    vectors : ndarray of shape (n, rank), float32
    accuracy : float
        Stop when a step lowers the value by no more than this.
    rng : RandomState
    n_threads : int, default=1

    Returns
    -------
    estimate : float
        The smallest Ritz value, less what the last step lowered it by or half of `accuracy`.
    values : ndarray of shape (`_KEPT`,), float64
        The smallest Ritz values.
    axes : ndarray of shape (n, `_KEPT`), float64
        Their vectors.
    """
    n = len(diagonal)
    if n <= _DENSE:
        slack = weights[:n, :n].astype(np.float64)
        if multipliers is not None:
            slack -= multipliers[:n, :n]
        slack[np.diag_indices(n)] += diagonal
        values, axes = scipy.linalg.eigh(slack, subset_by_index=(0, min(_KEPT, n) - 1))
        return float(values[0]), values, axes
    width = max(vectors.shape[1], 2 * RANK_STEP)
    block = rng.standard_normal((n, width)) * (_NOISE / math.sqrt(width))
    block[:, : vectors.shape[1]] += vectors
    basis = np.empty((n, _STEPS * width))
    projected = np.zeros((_STEPS * width, _STEPS * width))
    padded = np.zeros((len(weights), width), np.float32)
    product = np.empty_like(padded)
    lowest = math.inf
    for step in range(_STEPS):
        done = (step + 1) * width
        block = scipy.linalg.qr(block, mode="economic", overwrite_a=True, check_finite=False)[0]
        basis[:, done - width : done] = padded[:n] = block
        slack_product(weights, multipliers, padded, product, n_threads)
        block = product[:n] + diagonal[:, None] * block
        known = basis[:, :done]
        projected[:done, done - width : done] = known.T @ block
        for _ in range(2):  # once is not enough in floating point
            block -= known @ (known.T @ block)
        values, ritz = scipy.linalg.eigh(projected[:done, :done], lower=False, subset_by_index=(0, _KEPT - 1))
        previous, lowest = lowest, values[0]
        if previous - lowest <= accuracy:
            break
    return float(lowest - max(previous - lowest, 0.5 * accuracy)), values, known @ ritz


def dual_bound(W, K, multipliers, diagonal, estimate, *, scale=1.0):
    """A proved upper bound of every K-cut of W.

    For every positive semidefinite X with ones on its diagonal and X_ij >= -1 / (K - 1), and so for every cut, ::

        <W, X> = <W - Z + Diag(d), X> + <Z, X> - sum(d) >= -sum(Z) / (K - 1) - sum(d)

    if Z >= 0 and W - Z + Diag(d) is positive semidefinite; the cut is (K - 1) / (2 K) (sum(W) - <W, X>). The Cholesky
    decomposition proves that it is: where that succeeds in floating point for the matrix less c times the identity, c
    a bound of the rounding errors, the matrix itself is positive semidefinite ([1]_, corollary 2.4; with twice the
    constant there, for libraries that multiply by reciprocals).

    Parameters
    ----------
    W : ndarray of shape (n, n), float32 or float64
        Symmetric weights, zeros on the diagonal.
    K : int
    multipliers : ndarray of shape (padded, padded), float32, or None
        Z in units of `scale`, symmetric, not negative; of it, the first n rows and columns count.
    diagonal : ndarray of shape (n,), float64
        d in units of `scale`, up to a shift that makes the matrix positive semidefinite.
    estimate : float
        Of the smallest eigenvalue of W / scale - Z + Diag(diagonal); a wrong one costs time, or tightness, never truth.
    scale : float, default=1.0
        A power of two, so that dividing by it is exact.

    Returns
    -------
    bound : float

    References
    ----------
    .. [1] S. M. Rump: Verification of positive definiteness. BIT Numerical Mathematics 46 (2006), 433-452.
    """
    n = len(W)
    slack = np.empty((n, n))
    margin = 1e-8 * max(np.abs(diagonal).mean(), abs(estimate))
    while True:
        np.divide(W, scale, out=slack)
        if multipliers is not None:
            # Rounding leaves W minus a multiplier that is not exactly Z, but not negative either.
            slack -= multipliers[:n, :n]
        shifted = diagonal + (margin - estimate)
        if margin > 1e6 * np.abs(diagonal).mean():  # never seen; diagonally dominant matrices need no decomposition
            shifted = np.abs(slack).sum(axis=1) * (1 + n * _EPS)
            break
        rounding = 2 * (n + 3) * _EPS * shifted.sum() + n * np.finfo(np.float64).tiny
        slack[np.diag_indices(n)] = shifted - rounding
        if scipy.linalg.lapack.dpotrf(slack.T, lower=1, clean=0, overwrite_a=1)[1] == 0:
            break
        margin *= 100  # a decomposition costs more than the digits that this gives away
    total, size = _sum(W, scale)
    pushed = _sum(multipliers[:n, :n])[0] / (K - 1) if multipliers is not None else 0.0
    bound = total + math.fsum(shifted) + pushed
    # Of the sums: each is exact to fewer than 64 roundings of its terms.
    return float((K - 1) / (2 * K) * (bound + 64 * _EPS * (size + math.fsum(shifted) + pushed)) * scale)


def _sum(matrix, scale=1.0):
    """Sum of all entries, and of their absolute values."""
    rows = [(row.sum(dtype=np.float64), np.abs(row).sum(dtype=np.float64)) for row in matrix]
    return math.fsum(row[0] / scale for row in rows), math.fsum(row[1] / scale for row in rows)


def positive_sum(W):
    """An upper bound of the sum of the positive weights of pairs, itself an upper bound of every cut."""
    total = math.fsum(np.maximum(row, 0).sum(dtype=np.float64) for row in W)
    return 0.5 * total * (1 + 64 * _EPS)
