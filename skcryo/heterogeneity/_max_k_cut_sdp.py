"""Semidefinite relaxations of max-K-cut: Goemans-Williamson for K = 2, Frieze-Jerrum for K > 2."""

import math
from dataclasses import dataclass

import numpy as np

from .._ext._max_cut import RANK_STEP, SIZE_STEP, TILE, slack_product, sweep
from ._max_k_cut_bound import dual_bound, smallest_eigenvalue
from ._max_k_cut_polish import polish

__all__ = []

_OVERSHOOT = 0.7  # of moves without pair constraints: a third of the sweeps that moves to the optimum need
_POLISH = 12  # sweeps with the multipliers kept, before a bound is read off
_BATCH = 8
_SMALL = 500  # vertices for which all that is dense is quick: these are solved to half of `tol`
_SWEEPS = 96  # of them with K > 2, before `polish` goes on


@dataclass
class Relaxation:
    """Maximum of (K - 1) / (2 K) (sum(W) - <W, V V^T>) over unit rows v_i of V with v_i . v_j >= -1 / (K - 1).

    Attributes
    ----------
    vectors : ndarray of shape (n, rank), float32
    multipliers : ndarray of shape (padded, padded), float32, or None
        Z, of the pair constraints, in units of the scale; None for K = 2, where they hold by themselves.
    bound : float
        A proved upper bound of the maximum, and so of every cut.
    gap : float
        How far the vectors are below it, relative to the bound, or, where weights cancel, to its part that depends on
        the vectors. What broken pair constraints gain is taken off, as their multipliers price it.
    n_iter : int
    converged : bool
    """

    vectors: np.ndarray
    multipliers: np.ndarray | None
    bound: float
    gap: float
    n_iter: int
    converged: bool


def padded_weights(W, scale):
    """W / scale as the kernels take it: float32, with zeros up to a multiple of SIZE_STEP."""
    n = len(W)
    padded = -(-n // SIZE_STEP) * SIZE_STEP
    weights = np.zeros((padded, padded), np.float32)
    np.divide(W, scale, out=weights[:n, :n], casting="same_kind")
    return weights


def solve_low_rank(W, weights, K, *, scale, rng, tol=1e-4, max_iter=500, n_threads=1):
    """Solve the relaxation in low-rank form, X = V V^T, by coordinate descent.

    K = 2 is the mixing method [1]_, over-relaxed: v_i moves beyond the point where <W, V V^T> is least, the others
    staying, which still gains. For K > 2 the pair constraints enter by an augmented Lagrangian whose multipliers Z
    follow each visit of a row; the same moves, shortened by how the penalty bends. On small graphs `polish` goes on
    where 96 sweeps do not suffice, and the gap is brought below half of `tol`.

    Parameters
    ----------
    W : ndarray of shape (n, n), float32 or float64
        Symmetric, zeros on the diagonal.
    weights : ndarray of shape (padded, padded), float32
        `padded_weights(W, scale)`.
    K : int
    scale : float
        A power of two, about the largest weight.
    rng : RandomState
    tol : float, default=1e-4
        Converged when the gap is below.
    max_iter : int, default=500
        Most sweeps over all rows and iterations of `polish`.
    n_threads : int, default=1

    Returns
    -------
    relaxation : Relaxation

    References
    ----------
    .. [1] P.-W. Wang, W.-C. Chang, J. Z. Kolter: The mixing method. arXiv:1706.00476.
    """
    small = len(W) <= _SMALL
    if small:
        tol = 0.5 * tol
    sweeps = min(max_iter, _SWEEPS) if small and K > 2 else max_iter
    solver = _LowRank(weights, len(W), K, rng, n_threads)
    while True:
        solver.descend(sweeps)
        last = solver.n_iter == sweeps
        if not last and not solver.promises(tol):
            continue
        point = solver.check(tol)
        if last or point.gap <= tol:
            found = _proved(W, K, solver.vectors[: solver.n], solver.multipliers, point, scale, tol, solver.n_iter)
            if found.converged:
                return found
            if last:
                break
        solver.adapt_rank()
        solver.escape(point)
    if solver.n_iter == max_iter:
        return found
    point = polish(W, K, found.vectors, found.multipliers, scale=scale, tol=tol, max_iter=max_iter - sweeps)
    polished = _proved(W, K, point.vectors, point.multipliers, point, scale, tol, sweeps + point.n_iter)
    return min(found, polished, key=lambda relaxation: relaxation.bound)


def _proved(W, K, vectors, multipliers, point, scale, tol, n_iter):
    bound = dual_bound(W, K, multipliers, point.diagonal, point.estimate, scale=scale)
    gap = (bound / scale - point.attained) / point.size
    converged = bool(gap <= 1.1 * tol)  # else an eigenvalue was overlooked
    return Relaxation(vectors, multipliers, bound, gap, n_iter, converged)


@dataclass
class _DualPoint:
    """What vectors and multipliers say of each other; the bound that the gap promises is yet to be proved."""

    diagonal: np.ndarray
    estimate: float  # smallest eigenvalue of W - Z + Diag(diagonal)
    values: np.ndarray  # more of them, negative parts, relative to the mean of the diagonal
    axes: np.ndarray
    attained: float
    size: float
    gap: float
    stuck: bool  # vectors hardly move, and yet eigenvalues are negative: a saddle


class _LowRank:
    def __init__(self, weights, n, K, rng, n_threads):
        self.weights, self.n, self.K, self.rng, self.n_threads = weights, n, K, rng, n_threads
        self.total = float(self.weights.sum(dtype=np.float64))
        self.norms, self.moved = np.zeros(self.n), np.zeros(self.n)
        self.n_iter = 0
        self.next_check, self.caution = 4 * _BATCH, 1.0
        self.multipliers = None
        # There are solutions whose rank (rank + 1) / 2 is at most the number of active constraints: n for K = 2, where
        # most graphs need half the rank that this allows. Active pairs add to that; `adapt_rank` follows what is used.
        rank = _padded(0.9 * math.sqrt(self.n) if K == 2 else 2 * math.sqrt(self.n), RANK_STEP)
        self._set_vectors(rng.standard_normal((self.n, rank)))
        if K > 2:
            self._sweep(None, 0.0)  # more of these would split the graph in two, which takes long to undo
            self.multipliers = np.zeros_like(weights)
            self.bends = np.full(self.n, np.inf, np.float32)
            self.active = np.zeros(self.n, np.int32)
            self.force = self.norms.mean()
            self.sigma = 10 * self.force / self.n
            self.pace = 0.5

    def _set_vectors(self, vectors):
        self.vectors = np.zeros((len(self.weights), vectors.shape[1]), np.float32)
        self.vectors[: self.n] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        self.tiles = _tiles(self.vectors)
        self.directions = np.zeros_like(self.vectors)
        self.last_gain = math.inf

    def descend(self, max_iter):
        """Make some sweeps, the last ones without overshoot."""
        gain = 0.0
        for left in reversed(range(min(_BATCH, max_iter - self.n_iter))):
            self.n_iter += 1
            if self.K == 2:
                self._sweep(None, _OVERSHOOT if left > 1 else 0.0)
            else:
                self._constrained_sweep()
                gain += self.moved.sum()
        if self.K > 2:
            # Vectors that gain more than before are chasing multipliers that run ahead of them.
            if gain > self.last_gain:
                self.pace = max(0.8 * self.pace, 0.1)
            self.last_gain = gain

    def promises(self, tol):
        """Whether a check may find it converged: a check takes as long as several sweeps."""
        if self.K > 2 and self.n_iter >= self.next_check:
            return True
        length = self.norms.sum()
        # Where V still moves, the smallest eigenvalue goes with the root of what a sweep gains: as measured on random
        # graphs, the slowest to converge.
        return math.sqrt(self.moved.sum() * length) <= 4 * tol * max(abs(self.total + length), length) / self.caution

    def _sweep(self, multipliers, overshoot):
        sweep(
            self.weights, multipliers, self.vectors, self.tiles, self.n, self.norms, self.moved, overshoot,
            self.n_threads,
        )  # fmt: skip

    def _constrained_sweep(self):
        if self.n_iter == 2:
            self.bends[:] = 0  # until now moves were as short as if all active others bent alike
        # Where many others push, overshooting moves and their multipliers swing together.
        few = self.n_iter > 1 and self.active.mean() < 0.05 * self.n
        sweep(
            self.weights, self.multipliers, self.vectors, self.tiles, self.n, self.norms, self.moved,
            0.5 if few else 0.0, self.n_threads, directions=self.directions, bends=self.bends, active=self.active,
            bound=1 / (self.K - 1), sigma=self.sigma, step=self.pace * self.sigma, measure=self.n_iter % 2 == 0,
            decay=0.9, margin=1.5,
        )  # fmt: skip
        # All active others of a vertex together shall push about as hard as its weights do, and up to four times so
        # where they are few; slowly, as the number depends on sigma.
        active = max(self.active.mean(), 1.0)
        hardness = min(max(0.2 * self.n / active, 1.0), 4.0)
        self.sigma = math.sqrt(self.sigma * hardness * self.force / active)

    def check(self, tol):
        self.next_check, self.caution = 1.4 * self.n_iter, 1.5 * self.caution
        share = (self.K - 1) / (2 * self.K)
        value = lagrangian = self._inner(None)
        pushed = 0.0
        vectors = self.vectors
        if self.K > 2:
            pushed = float(self.multipliers.sum(dtype=np.float64)) / (self.K - 1)
            lagrangian = self._inner(self.multipliers) - pushed
            # The multipliers are better than the vectors tell: the bound is that of vectors that answer to them alone.
            self.vectors, self.tiles = self.vectors.copy(), self.tiles.copy()
            for step in range(_POLISH):
                self._sweep(self.multipliers, _OVERSHOOT if step < _POLISH - 2 else 0.0)
        diagonal = -self._row_products(self.multipliers)
        length = float(np.abs(diagonal).sum())
        size = max(abs(self.total + diagonal.sum() + pushed), length)
        estimate, values, axes = smallest_eigenvalue(
            self.weights, self.multipliers, diagonal, self.vectors[: self.n], 0.1 * tol * size / self.n,
            rng=self.rng, n_threads=self.n_threads,
        )  # fmt: skip
        if self.K > 2:
            self.vectors, self.tiles = vectors, _tiles(vectors)
        gap = diagonal.sum() + pushed - self.n * estimate + max(value, lagrangian)
        return _DualPoint(
            diagonal=diagonal,
            estimate=estimate,
            values=np.minimum(values, 0) * self.n / length,
            axes=axes,
            attained=share * (self.total - max(value, lagrangian)),
            size=share * size,
            gap=gap / size,
            stuck=bool(-self.n * estimate > max(0.5 * gap, 4 * math.sqrt(self.moved.sum() * length))),
        )

    def _row_products(self, multipliers):
        """v_i . sum_j (W - Z)_ij v_j."""
        products = np.empty_like(self.vectors)
        slack_product(self.weights, multipliers, self.vectors, products, self.n_threads)
        return np.einsum("ij,ij->i", products[: self.n], self.vectors[: self.n], dtype=np.float64)

    def _inner(self, multipliers):
        return float(self._row_products(multipliers).sum())

    def adapt_rank(self):
        """Leave room for the rank that is used, and not much more; columns are added as noise."""
        vectors = self.vectors[: self.n].astype(np.float64)
        powers, axes = np.linalg.eigh(vectors.T @ vectors)
        rank, used = len(powers), int((powers > 1e-3 * powers[-1]).sum())
        if used > 0.85 * rank:
            more = _padded(1.5 * rank, RANK_STEP) - rank
            noise = self.rng.standard_normal((self.n, more)) * (0.1 / math.sqrt(more))
            self._set_vectors(np.hstack([vectors, noise]))
        elif 2 * used + RANK_STEP < rank:
            fewer = _padded(1.5 * used, RANK_STEP)
            self._set_vectors(vectors @ axes[:, : -fewer - 1 : -1])

    def escape(self, point):
        """Where all vectors rest but a better solution is near, move them towards it."""
        if point.stuck:
            rank = self.vectors.shape[1]
            moves = point.axes * np.sqrt(-point.values * self.n)
            moves = moves @ self.rng.standard_normal((len(point.values), rank)) / math.sqrt(rank)
            self._set_vectors(self.vectors[: self.n] + moves)


def _padded(number, step):
    return max(1, math.ceil(number / step)) * step


def _tiles(vectors):
    n_tiles = -(-len(vectors) // TILE)
    tiles = np.zeros((n_tiles * TILE, vectors.shape[1]), np.float32)
    tiles[: len(vectors)] = vectors
    return np.ascontiguousarray(tiles.reshape(n_tiles, TILE, -1).transpose(0, 2, 1))


def solve_cvxpy(W, K, *, scale, tol=1e-4):
    """Solve the relaxation by cvxpy with SCS: the reference, for a few hundred vertices.

    Parameters
    ----------
    W, K, scale : as for :func:`solve_low_rank`
    tol : float, default=1e-4
        SCS runs with a hundredth of it.

    Returns
    -------
    relaxation : Relaxation

    Raises
    ------
    ImportError
        If cvxpy is not installed.
    """
    try:
        import cvxpy
    except ImportError as error:
        raise ImportError("solver='cvxpy' needs cvxpy, which is not installed: pip install 'skcryo[sdp]'") from error
    scaled, n = W.astype(np.float64) / scale, len(W)
    X = cvxpy.Variable((n, n), PSD=True)
    constraints = [cvxpy.diag(X) == 1]
    if K > 2:
        constraints.append(X >= -1 / (K - 1))
    problem = cvxpy.Problem(cvxpy.Minimize(cvxpy.sum(cvxpy.multiply(scaled, X))), constraints)
    problem.solve(solver=cvxpy.SCS, eps_abs=1e-2 * tol, eps_rel=1e-2 * tol, max_iters=100_000)
    powers, axes = np.linalg.eigh(X.value)
    vectors = axes * np.sqrt(np.maximum(powers, 0))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    multipliers, slack = None, scaled
    if K > 2:
        multipliers = np.maximum(constraints[1].dual_value, 0)
        multipliers = (0.5 * (multipliers + multipliers.T)).astype(np.float32)
        np.fill_diagonal(multipliers, 0)
        slack = scaled - multipliers
    diagonal = -(slack * X.value).sum(axis=1)
    estimate = float(np.linalg.eigvalsh(slack + np.diag(diagonal))[0])
    bound = dual_bound(W, K, multipliers, diagonal, estimate, scale=scale)
    attained = (K - 1) / (2 * K) * float(scaled.sum() - problem.value)
    size = max(bound / scale, (K - 1) / (2 * K) * np.abs(diagonal).sum())
    gap = (bound / scale - attained) / size
    converged = problem.status == cvxpy.OPTIMAL and gap <= 1.1 * tol
    return Relaxation(
        vectors.astype(np.float32), multipliers, bound, gap, problem.solver_stats.num_iters, bool(converged)
    )
