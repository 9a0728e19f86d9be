"""Max-K-cut of a weighted graph: semidefinite relaxation, randomised rounding, flips, and a certified bound."""

import warnings
from dataclasses import dataclass
from numbers import Integral, Real

import joblib
import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state

from .._ext._emd import max_threads
from .._ext._max_cut import RANK_STEP, class_weights, flip, slack_product
from .._validation import Interval, StrOptions, validate_params
from ..alignment._polar_search import one_blas_thread
from ._max_k_cut_bound import positive_sum
from ._max_k_cut_sdp import padded_weights, solve_cvxpy, solve_low_rank

__all__ = []

_ROUNDINGS = 100
_ASYMMETRY = 1e-6  # of the largest weight: what rounding leaves of a matrix that is symmetric on paper


@dataclass(frozen=True)
class MaxKCut:
    """A K-cut of a graph, and how far it is from the best at most; what :func:`max_k_cut` returns.

    Attributes
    ----------
    labels : ndarray of shape (n,), int32
        Class of each vertex, 0 to K - 1, numbered as they appear. Classes may be empty.
    cut_value : float
        Sum of the weights of all pairs in different classes, each pair counted once.
    upper_bound : float
        No K-cut of this graph has a larger value: a fact proved in floating point, not an estimate.
    n_iter : int
        Sweeps of the relaxation over all vertices, and what polishing it took on small graphs.
    converged : bool
        Whether the bound is within `tol` of the relaxation's optimum; it is true in any case.
    """

    labels: np.ndarray
    cut_value: float
    upper_bound: float
    n_iter: int
    converged: bool

    @property
    def ratio(self):
        """cut_value / upper_bound, never above 1: at 1 the cut is the best there is."""
        return 1.0 if self.cut_value >= self.upper_bound else self.cut_value / self.upper_bound


@validate_params(
    {
        "W": ["array-like"],
        "K": [Interval(Integral, 2, None, closed="left")],
        "solver": [StrOptions({"low-rank", "cvxpy"})],
        "init": ["array-like", None],
        "n_init": [Interval(Integral, 1, _ROUNDINGS, closed="both")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, 1, closed="neither")],
        "n_jobs": [Integral, None],
        "random_state": ["random_state"],
    },
    prefer_skip_nested_validation=True,
)
def max_k_cut(W, K, *, solver="low-rank", init=None, n_init=20, max_iter=500, tol=1e-4, n_jobs=None, random_state=None):
    """Divide the vertices of a graph into K classes so that the weight between classes is large, and bound it.

    For K = 2 the algorithm of Goemans and Williamson [1]_, for K > 2 that of Frieze and Jerrum [2]_ with its pair
    constraints: unit vectors v_i maximise ``(K - 1) / K sum_{i<j} W_ij (1 - v_i . v_j)``, subject to
    ``v_i . v_j >= -1 / (K - 1)``; each vertex joins the class whose random vector is closest. The best of 100 such
    roundings are improved by moving single vertices as long as that gains (algorithm 3 of [3]_, any K), and the largest
    cut is returned. The multipliers of the relaxation, made feasible beyond doubt, prove the upper bound.

    Parameters
    ----------
    W : array-like of shape (n, n), float32 or float64
        Symmetric weights, zeros on the diagonal. An asymmetry below 1e-6 of the largest weight counts as rounding: the
        mean of both halves is taken.
    K : int
        Number of classes, 2 to n.
    solver : {"low-rank", "cvxpy"}, default="low-rank"
        Of the relaxation. "low-rank": coordinate descent, for thousands of vertices. "cvxpy": the reference by the
        package of that name, for up to about 200 (extra `sdp`).
    init : array-like of shape (n,), int, default=None
        Classes, 0 to K - 1, of a known cut. It is improved along with the roundings, so that the result is
        at least as good, as an alternating scheme needs that must not lose.
    n_init : int, default=20
        How many of the roundings are improved; where fewer differ, partitions at random beside them.
    max_iter : int, default=500
        Most sweeps of the low-rank solver over all vertices. Tens suffice for K = 2 and where K classes show; more
        classes than there are take hundreds, though after a hundred the bound is within some thousandths. Up to 500
        vertices, the dual is polished by dense matrices after 96 sweeps: its iterations count, too.
    tol : float, default=1e-4
        The relaxation is solved until the bound is as close to its optimum as this, relatively.
    n_jobs : int, default=None
        Threads. None: all cores (OMP_NUM_THREADS is respected). Results do not depend on it.
    random_state : int, RandomState instance or None, default=None

    Returns
    -------
    cut : MaxKCut
        `labels`, `cut_value`, `upper_bound`, `ratio` and how the relaxation went.

    Raises
    ------
    ValueError
        If `W` is no finite symmetric matrix with zeros on its diagonal, if K exceeds n, or `init` does not fit.
    ImportError
        If `solver` is "cvxpy" and that is not installed.

    Warns
    -----
    ConvergenceWarning
        If the relaxation is not solved to `tol` after `max_iter` sweeps. The bound still holds but may be loose.

    Notes
    -----
    Weights may be negative, as log-likelihoods are: bound and flips hold for any. Only the guarantee that the expected
    cut of a rounding is at least .878 (K = 2) times the best one needs weights >= 0. Where the best cut is near zero,
    the ratio says little; look at the difference.

    The relaxation is exact, and so is the cut, for K = 2 on a bipartite graph with weights >= 0 (lemma 2 of [3]_).

    Each pair counts once; equation 6 of [3]_ counts it once from either side.

    Examples
    --------
    >>> import numpy as np
    >>> from skcryo.heterogeneity import max_k_cut
    >>> truth = np.repeat([0, 1, 2], 20)
    >>> noise = np.random.default_rng(0).random((60, 60))
    >>> W = (truth[:, None] != truth) + 0.3 * np.triu(noise, 1) + 0.3 * np.triu(noise, 1).T
    >>> np.fill_diagonal(W, 0)
    >>> cut = max_k_cut(W, 3, random_state=0)
    >>> np.array_equal(cut.labels, truth), round(cut.ratio, 3)
    (True, 1.0)

    References
    ----------
    .. [1] M. X. Goemans, D. P. Williamson: Improved approximation algorithms for maximum cut and satisfiability
       problems using semidefinite programming. Journal of the ACM 42 (1995), 1115-1145.
    .. [2] A. Frieze, M. Jerrum: Improved approximation algorithms for MAX k-CUT and MAX BISECTION. Algorithmica 18
       (1997), 67-81.
    .. [3] Y. Aizenbud, Y. Shkolnisky: A max-cut approach to heterogeneity in cryo-electron microscopy. Journal of
       Mathematical Analysis and Applications 479 (2019), 1004-1029.
    """
    W = _check_weights(W)
    n = len(W)
    if n < K:
        raise ValueError(f"K={K} classes need at least as many vertices, but W has {n}")
    starts = [] if init is None else [_check_labels(init, n, K)]
    rng = check_random_state(random_state)
    largest = float(np.abs(W).max())
    if largest == 0:
        labels = starts[0] if starts else np.zeros(n, np.int32)
        return MaxKCut(_in_order(labels), 0.0, 0.0, n_iter=0, converged=True)
    scale = 2.0 ** np.ceil(np.log2(largest))
    n_threads = max_threads() if n_jobs is None else joblib.effective_n_jobs(n_jobs)
    with one_blas_thread():
        weights = padded_weights(W, scale)
        if solver == "cvxpy":
            relaxation = solve_cvxpy(W, K, scale=scale, tol=tol)
        else:
            relaxation = solve_low_rank(
                W, weights, K, scale=scale, rng=rng, tol=tol, max_iter=max_iter, n_threads=n_threads
            )
        starts += _roundings(weights, relaxation.vectors, K, n_init, rng, n_threads)
    del weights
    search = joblib.delayed(_improve)
    found = joblib.Parallel(n_threads, prefer="threads")(search(W, labels, K, largest) for labels in starts)
    cut_value, labels = max(found, key=lambda pair: pair[0])
    if not relaxation.converged:
        warnings.warn(
            f"max_k_cut: the relaxation is solved to {relaxation.gap:.1e} after {relaxation.n_iter} iterations "
            f"(tol={tol:g}, max_iter={max_iter}); the upper bound holds, but may be loose by that much",
            ConvergenceWarning,
            stacklevel=2,
        )
    upper_bound = max(min(relaxation.bound, positive_sum(W)), cut_value)
    return MaxKCut(_in_order(labels), cut_value, upper_bound, relaxation.n_iter, relaxation.converged)


def _check_weights(W):
    """W as a symmetric C-ordered array of float32 or float64, or an error that says where it is not one."""
    W = np.asarray(W)
    if W.ndim != 2 or W.shape[0] != W.shape[1] or W.dtype.kind not in "fiub":
        raise ValueError(f"W has shape {W.shape} and dtype {W.dtype}; a square array (n, n) of real weights is wanted")
    W = np.ascontiguousarray(W, np.float32 if W.dtype == np.float32 else np.float64)
    if len(W) < 2:
        raise ValueError(f"W has shape {W.shape}; two vertices at least are wanted")
    bad = np.argwhere(~np.isfinite(W)) if not np.isfinite(W.sum()) else ()
    if len(bad):
        raise ValueError(f"W[{bad[0][0]}, {bad[0][1]}] is {W[tuple(bad[0])]}; finite weights are wanted")
    bad = np.flatnonzero(W.diagonal())
    if len(bad):
        raise ValueError(f"W[{bad[0]}, {bad[0]}] is {W[bad[0], bad[0]]}; zeros on the diagonal are wanted")
    asymmetry = W - W.T
    np.abs(asymmetry, out=asymmetry)
    if asymmetry.any():
        i, j = np.unravel_index(asymmetry.argmax(), W.shape)
        if asymmetry[i, j] > _ASYMMETRY * max(W.max(), -W.min()):
            raise ValueError(f"W[{i}, {j}] is {W[i, j]} but W[{j}, {i}] is {W[j, i]}; a symmetric matrix is wanted")
        W = 0.5 * W + 0.5 * W.T
    return W


def _check_labels(init, n, K):
    labels = np.asarray(init)
    if labels.shape != (n,) or labels.dtype.kind not in "iu":
        raise ValueError(f"init has shape {labels.shape} and dtype {labels.dtype}; one integer a vertex is wanted")
    bad = np.flatnonzero((labels < 0) | (labels >= K))
    if len(bad):
        raise ValueError(f"init[{bad[0]}] is {labels[bad[0]]}; classes 0 to {K - 1} are wanted")
    return labels.astype(np.int32)


def _roundings(weights, vectors, K, n_kept, rng, n_threads):
    """The best different ones of `_ROUNDINGS` roundings, and partitions at random where there are too few.

    Each vertex joins the class whose random vector is closest to its own. For K = 2 these are the two sides of a random
    hyperplane: it is orthogonal to the difference of both vectors.
    """
    n, rank = vectors.shape
    axes = rng.standard_normal((rank, K * _ROUNDINGS)).astype(np.float32)
    labels = (vectors @ axes).reshape(n, _ROUNDINGS, K).argmax(axis=2)
    # Weight within classes, from all but the last: what the vertices of that have in common with it, the rest have not.
    members = labels[:, :, None] == np.arange(K - 1)
    columns = -(-_ROUNDINGS * (K - 1) // RANK_STEP) * RANK_STEP
    sides = np.zeros((len(weights), columns), np.float32)
    sides[:n, : _ROUNDINGS * (K - 1)] = members.reshape(n, -1)
    attached = np.empty_like(sides)
    slack_product(weights, None, sides, attached, n_threads)
    attached = attached[:n, : _ROUNDINGS * (K - 1)].reshape(n, _ROUNDINGS, K - 1)
    degrees = weights[:n].sum(axis=1, dtype=np.float64)
    within = np.einsum("irk,irk->r", members, attached, dtype=np.float64)
    last = labels == K - 1
    within += np.einsum("ir,ir->r", last, degrees[:, None] - attached.sum(axis=2, dtype=np.float64))
    distinct = {}
    for rounding in within.argsort(kind="stable"):
        candidate = _in_order(labels[:, rounding])
        distinct.setdefault(candidate.tobytes(), candidate)
        if len(distinct) == n_kept:
            break
    found = list(distinct.values())
    return found + [rng.randint(K, size=n).astype(np.int32) for _ in range(n_kept - len(found))]


def _improve(W, labels, K, largest):
    """Move single vertices to their best class, in turn, until none gains (algorithm 3); cut value and labels."""
    labels = labels.copy()
    n = len(W)
    attached = np.empty((K, n))
    class_weights(W, _members(labels, K), attached, 1)
    least = 1e-12 * n * largest  # gains below are rounding
    while flip(W, labels, attached, least):
        pass
    class_weights(W, _members(labels, K), attached, 1)
    own = attached[labels, np.arange(n)]
    return 0.5 * float((attached.sum(axis=0) - own).sum()), labels


def _members(labels, K):
    return (labels == np.arange(K)[:, None]).astype(np.float64)


def _in_order(labels):
    """Number classes as they appear."""
    _, first, classes = np.unique(labels, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int32)
    rank[first.argsort()] = np.arange(len(first))
    return rank[classes]
