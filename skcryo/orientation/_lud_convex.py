"""The convex relaxation of least unsquared deviations: a slow reference for few images."""

import warnings
from dataclasses import dataclass

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from .._torch import import_optional
from ._lud_solver import _orthonormal, check_pairs

__all__ = ["ConvexLUDResult", "solve_lud_convex"]

_SOLVERS = ("cvxpy", "admm")


@dataclass(frozen=True)
class ConvexLUDResult:
    """Solution of the convex relaxation.

    Parameters
    ----------
    rotations : ndarray of shape (n, 3, 3), float64
        From the three largest eigenvectors of `gram`.
    gram : ndarray of shape (2 n, 2 n), float64
        Estimate of all products ``R_i^T R_j`` of first two columns, block (i, j) at ``[2 i : 2 i + 2, 2 j : 2 j + 2]``.
    objective : float
        ``sum_{i<j} w_ij |c_ij - G_ij c_ji|``.
    n_iter : int
    converged : bool
    """

    rotations: np.ndarray
    gram: np.ndarray
    objective: float
    n_iter: int
    converged: bool


def solve_lud_convex(angles, *, weights=None, checked=None, alpha=2 / 3, solver="cvxpy", max_iter=2000, tol=1e-4):
    """Solve the convex relaxation of least unsquared deviations.

    Minimises ``sum_{i<j} w_ij |c_ij - G_ij c_ji|`` over positive semidefinite G of shape (2 n, 2 n) whose blocks on
    the diagonal are the identity and whose eigenvalues are at most ``alpha n``. If G has rank three, ``G_ij = R_i^T
    R_j`` of the first two columns of rotations. :func:`solve_lud` works on rotations themselves, for thousands of
    images; this is what it is held to.

    Parameters
    ----------
    angles, weights, checked, alpha
        As in :func:`solve_lud`. Time grows with the third power of n, cvxpy's interior points' with the sixth.
    solver : {"cvxpy", "admm"}, default="cvxpy"
        "cvxpy": an interior point method, exact (``pip install "skcryo[sdp]"``), up to some 30 images. "admm": the
        alternating direction method of multipliers, up to some 300.
    max_iter : int, default=2000
        Of "admm".
    tol : float, default=1e-4
        "admm" ends when the mean block of G is known to within this.

    Returns
    -------
    ConvexLUDResult

    Raises
    ------
    ValueError
        As :func:`solve_lud`, and if `solver` is unknown.
    ImportError
        If cvxpy is wanted and not installed.

    Warns
    -----
    ConvergenceWarning
        If the solver stops before it is done.

    Notes
    -----
    Reference [1]_ alternates on the dual problem; here it is done on the primal one, which takes the
    bound on eigenvalues without a further variable: in turn, all blocks of G in closed form, the distances by soft
    thresholds, and a matrix whose eigenvalues are cut to [0, alpha n].

    References
    ----------
    .. [1] Wang, Singer, Wen, "Orientation determination of cryo-EM images using least unsquared deviations", SIAM J.
       Imaging Sci. 6 (2013).

    Examples
    --------
    >>> import numpy as np
    >>> from skcryo.metrics import pose_error
    >>> from skcryo.orientation import solve_lud_convex
    >>> from skcryo.rotations import random_rotations
    >>> R = random_rotations(12, random_state=0)
    >>> lines = np.cross(R[:, None, :, 2], R[None, :, :, 2])
    >>> lines[np.tril_indices(12)] *= -1  # the same sign in both images
    >>> angles = np.arctan2(np.einsum("ia,ija->ij", R[:, :, 1], lines), np.einsum("ia,ija->ij", R[:, :, 0], lines))
    >>> found = solve_lud_convex(angles, alpha=1.0, solver="admm")
    >>> bool(pose_error(found.rotations, R).mean < 0.1)
    True
    """
    angles, weights, checked = check_pairs(angles, weights, checked)
    if solver not in _SOLVERS:
        raise ValueError(f"solver is {solver!r}; one of {_SOLVERS} is wanted")
    if not 2 / 3 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}; a number from 2/3 to 1 is wanted")
    n = len(angles)
    i, j = np.nonzero(np.triu(checked))
    w = np.ones(len(i)) if weights is None else weights[i, j].astype(np.float64)
    here, there = (np.stack([np.cos(a), np.sin(a)], axis=1) for a in (angles[i, j].astype(float), angles[j, i]))
    solve = _by_cvxpy if solver == "cvxpy" else _by_admm
    gram, n_iter, converged = solve(n, i, j, w, here, there, alpha * n, max_iter, tol)
    if not converged:
        warnings.warn(
            f"solve_lud_convex did not converge ({solver}, {n_iter} iterations)", ConvergenceWarning, stacklevel=2
        )
    values, vectors = np.linalg.eigh(gram)
    root = vectors[:, -3:] * np.sqrt(np.maximum(values[-3:], 0))
    rows = _orthonormal(np.concatenate([root[::2].T, root[1::2].T]))
    x, y = rows[:3].T, rows[3:].T
    blocks = gram.reshape(n, 2, n, 2)[i, :, j]
    misfit = np.linalg.norm(here - np.einsum("pab,pb->pa", blocks, there), axis=1)
    return ConvexLUDResult(
        rotations=np.stack([x, y, np.cross(x, y)], axis=2),
        gram=gram,
        objective=float(w @ misfit),
        n_iter=n_iter,
        converged=converged,
    )


def _by_cvxpy(n, i, j, w, here, there, bound, max_iter, tol):
    cvxpy = import_optional("cvxpy", extra="sdp", caller='solve_lud_convex(solver="cvxpy")')
    gram = cvxpy.Variable((2 * n, 2 * n), PSD=True)
    # Row p of x is c_ij - G_ij c_ji of pair p; the entries of G are picked out by one sparse product.
    columns = [
        here[:, a]
        - cvxpy.multiply(gram[2 * i + a, 2 * j], there[:, 0])
        - cvxpy.multiply(gram[2 * i + a, 2 * j + 1], there[:, 1])
        for a in range(2)
    ]
    norms = cvxpy.norm(cvxpy.vstack(columns), axis=0)
    even = np.arange(n) * 2
    constraints = [
        gram[even, even] == 1,
        gram[even + 1, even + 1] == 1,
        gram[even, even + 1] == 0,
        bound * np.eye(2 * n) - gram >> 0,
    ]
    problem = cvxpy.Problem(cvxpy.Minimize(w @ norms), constraints)
    problem.solve(solver=cvxpy.CLARABEL)
    return (gram.value + gram.value.T) / 2, int(problem.solver_stats.num_iters), problem.status == cvxpy.OPTIMAL


def _by_admm(n, i, j, w, here, there, bound, max_iter, tol):
    """G and copies of it, x_ij = c_ij - G_ij c_ji and Z = G, drawn to each other by multipliers of unit weight."""
    gram = bounded = np.eye(2 * n)
    misfit = here.copy()
    for_misfit, for_bounded = np.zeros_like(misfit), np.zeros_like(gram)
    outer = np.einsum("pa,pb->pab", there, there)
    step = 1.0
    for n_iter in range(1, max_iter + 1):
        # Blocks (i, j): |x - c_ij + G_ij c_ji - u|^2 / 2 + |G_ij - M|^2, the latter twice a half: (i, j) and (j, i).
        gram = bounded - for_bounded
        gram = (gram + gram.T) / 2
        blocks = gram.reshape(n, 2, n, 2)
        target = blocks[i, :, j]
        right = 2 * target + np.einsum("pa,pb->pab", here - misfit + for_misfit, there)
        new = (right - np.einsum("pab,pbc->pac", right, outer) / 3) / 2
        blocks[i, :, j], blocks[j, :, i] = new, np.swapaxes(new, 1, 2)
        blocks[np.arange(n), :, np.arange(n)] = np.eye(2)
        image = here - np.einsum("pab,pb->pa", new, there)
        # Distances.
        raw = image + for_misfit
        size = np.linalg.norm(raw, axis=1, keepdims=True)
        misfit = raw * np.maximum(0, 1 - (w / step)[:, None] / np.maximum(size, 1e-300))
        # Eigenvalues.
        before = bounded
        values, vectors = np.linalg.eigh(gram + for_bounded)
        bounded = (vectors * np.clip(values, 0, bound)) @ vectors.T
        for_misfit += image - misfit
        for_bounded += gram - bounded
        primal = np.sqrt(np.square(gram - bounded).sum() + np.square(image - misfit).sum()) / n
        dual = np.linalg.norm(bounded - before) / n
        if primal < tol and dual < tol:
            return bounded, n_iter, True
        # Steps such that neither lags behind (Boyd et al. 2011, section 3.4.1); early ones only, so that they settle.
        if n_iter < max_iter // 2 and n_iter % 10 == 0 and not 0.1 < primal / dual < 10:
            factor = 2.0 if primal > dual else 0.5
            step *= factor
            for_misfit /= factor
            for_bounded /= factor
    return bounded, max_iter, False
