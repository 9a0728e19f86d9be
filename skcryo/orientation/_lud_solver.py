"""Least unsquared deviations: rotations of images from the common lines of their pairs."""

import warnings
from dataclasses import dataclass

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from .._ext._lud import n_blocks, pack, weighted_sums
from ..rotations import check_rotations, random_rotations

__all__ = ["LUDResult", "check_pairs", "line_residuals", "rows_from_rotations", "solve_lud"]

_SMOOTHING = 0.05  # radians: misfits below some three degrees are errors of lines, not lines that are wrong
_COOLING = 0.7
_START_PASSES = 30
_START_ANGLE = 0.01  # radians by which the space of the start may still turn in a pass
_ROUNDS = 10  # of alternating projections, at most
_FEW = 12  # images; of fewer, one start may end anywhere
_MORE_STARTS, _SHORT = 20, 25  # and steps of each


@dataclass(frozen=True)
class LUDResult:
    """Rotations that common lines tell.

    Parameters
    ----------
    rotations : ndarray of shape (n, 3, 3), float64
    objective : float
        ``sum_{i<j} w_ij |R_i c_ij - R_j c_ji|`` of these rotations.
    objective_path : list of float
        The same before each step, smoothed: ``sum_{i<j} w_ij sqrt(|R_i c_ij - R_j c_ji|^2 + smoothing^2)``, up to where
        polishing begins, which follows another objective.
    residuals : ndarray of shape (n,), float64
        Of each image, the weighted mean of ``|R_i c_ij - R_j c_ji|`` over its pairs: 0 to 2, 1.27 for unrelated lines.
    n_iter : int
        Steps, both stages together.
    converged : bool
    """

    rotations: np.ndarray
    objective: float
    objective_path: list
    residuals: np.ndarray
    n_iter: int
    converged: bool


def solve_lud(angles, *, weights=None, checked=None, alpha=2 / 3, init=None, polish=True, max_iter=200, tol=1e-3):
    """Rotations that agree with common lines, by least unsquared deviations.

    The images' planes are turned such that ``sum_{i<j} w_ij |R_i c_ij - R_j c_ji|`` is small: wrong lines weigh by
    their distance, not its square. By iteratively reweighted least squares: a step takes each image to the rotation
    that is best for the lines of all others as they lie now, pair (i, j) weighing ``w_ij / |R_i c_ij - R_j c_ji|``.

    Parameters
    ----------
    angles : array-like of shape (n, n)
        Radians: the common line of images i and j as it lies in image i is ``(cos angles[i, j], sin angles[i, j])``.
        The joint sign of ``[i, j]`` and ``[j, i]`` is free.
    weights : array-like of shape (n, n), default=None
        Not negative, symmetric. A pair of weight 0 is left out.
    checked : array-like of shape (n, n), bool, default=None
        False for pairs that were not looked at, which are left out; the diagonal always is.
    alpha : float, default=2/3
        Bound on the largest eigenvalue of the Gram matrix of the first two columns of all rotations, over n; at least
        2/3, where views must be spread evenly, at most 1, which bounds nothing. Wrong lines draw views together, at a
        lower objective: without the bound many wrong lines end with all views in one plane.
    init : array-like of shape (n, 3, 3), default=None
        Rotations to start from instead of the spectral start.
    polish : bool, default=True
        Whether steps follow in which pair (i, j) weighs ``w_ij / |R_i c_ij - R_j c_ji|^2`` (the Cauchy distribution's
        likelihood): wrong lines hardly pull then. The bound gives way to 2/3 + 1 / sqrt(n), which views drawn evenly by
        chance exceed once in a hundred times.
    max_iter : int, default=200
        Steps at most, in each of the two stages.
    tol : float, default=1e-3
        A stage ends when images move by less than this in a step: root mean square in radians.

    Returns
    -------
    LUDResult

    Raises
    ------
    ValueError
        If there are fewer than three images, arrays are of the wrong shape, not finite or not symmetric, an image has
        lines with fewer than two others, or images fall into groups without a pair between them.

    Warns
    -----
    ConvergenceWarning
        If a stage takes `max_iter` steps.

    Notes
    -----
    Any solution may be turned as a whole, and reflected: all ``R_i`` become ``J R_i J``, ``J = diag(1, 1, -1)``.

    Choices: distances are smoothed by 0.05 radians, from 1.0 on the way there. With polishing, there is a second
    descent that does not know the bound before it is polished, and the lower objective wins: both ends keep the
    (loose) bound, which makes objectives comparable, and steps within the bound sometimes end with part of the images
    in another frame. `n_iter`, `converged` and `objective_path` are those of the descent that won. The start is the
    space of the three largest eigenvectors of the matrix of ``c_ij c_ji^T`` (after [2]_), corrected linearly.
    *Weights do not enter the start*, but for those that are 0: pairs that score best are those of nearly equal views,
    and with weight on them the largest eigenvectors are no longer coordinates of the sphere; steps from there ended
    with part of the images in another frame. Of fewer than 12 images, the best of 20 short descents from rotations by
    lot is another start. The bound is met by alternating projections. No matrix is formed: a step is one pass over
    the lines, and memory is 10 n^2 bytes beside the input.

    References
    ----------
    .. [1] Wang, Singer, Wen, "Orientation determination of cryo-EM images using least unsquared deviations", SIAM J.
       Imaging Sci. 6 (2013): the objective, the bound on the spectral norm, and the reweighting.
    .. [2] Singer, Shkolnisky, "Three-dimensional structure determination from common lines in cryo-EM by eigenvectors
       and semidefinite programming", SIAM J. Imaging Sci. 4 (2011).

    Examples
    --------
    >>> import numpy as np
    >>> from skcryo.metrics import pose_error
    >>> from skcryo.orientation import solve_lud
    >>> from skcryo.rotations import random_rotations
    >>> R = random_rotations(50, random_state=0)
    >>> lines = np.cross(R[:, None, :, 2], R[None, :, :, 2])
    >>> lines[np.tril_indices(50)] *= -1  # the same sign in both images
    >>> angles = np.arctan2(np.einsum("ia,ija->ij", R[:, :, 1], lines), np.einsum("ia,ija->ij", R[:, :, 0], lines))
    >>> bool(pose_error(solve_lud(angles).rotations, R).mean < 0.01)
    True
    """
    angles, weights, checked = check_pairs(angles, weights, checked)
    n = len(angles)
    if not 2 / 3 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}; a number from 2/3 to 1 is wanted")
    if max_iter < 1:
        raise ValueError(f"max_iter is {max_iter}; at least 1 is wanted")
    lines = _Lines(angles, weights, checked)
    if init is not None:
        starts, smoothing = [rows_from_rotations(check_rotations(init, n, name="init"))], _SMOOTHING
    else:
        starts, smoothing = [_spectral_start(lines if weights is None else _Lines(angles, None, checked))], 1.0
        if n < _FEW:
            starts.append(_best_of_many(lines, alpha))
    bounds = {alpha, 1.0} if polish and init is None else {alpha}
    ends = []
    for start in starts:
        for bound in sorted(bounds):
            path = []
            rows, n_iter, settled = _descend(lines, start, bound, smoothing, False, max_iter, tol, path)
            if polish:
                loose = min(1.0, max(alpha, 2 / 3 + 1 / np.sqrt(n)))
                rows, more, settled_again = _descend(lines, rows, loose, _SMOOTHING, True, max_iter, tol, [])
                n_iter, settled = n_iter + more, settled and settled_again
            misfit = lines.sums(rows, 1e-6, False)[6].copy()
            ends.append((misfit.sum() / 2, len(ends), rows, misfit, path, n_iter, settled))
    objective, _, rows, misfit, path, n_iter, settled = min(ends)
    if not settled:
        warnings.warn(
            f"solve_lud did not converge in {max_iter} steps (max_iter); try more steps or a larger tol",
            ConvergenceWarning,
            stacklevel=2,
        )
    x, y = rows[:3].T, rows[3:].T
    return LUDResult(
        rotations=np.stack([x, y, np.cross(x, y)], axis=2),
        objective=float(objective),
        objective_path=path,
        residuals=misfit / _total_weights(weights, checked),
        n_iter=n_iter,
        converged=settled,
    )


def line_residuals(angles, rotations, weights=None, checked=None):
    """How far lines are from meeting, image by image.

    Parameters
    ----------
    angles, weights, checked
        As in :func:`solve_lud`.
    rotations : array-like of shape (n, 3, 3)

    Returns
    -------
    residuals : ndarray of shape (n,), float64
        Weighted means of ``|R_i c_ij - R_j c_ji|``, as in :class:`LUDResult`.
    """
    angles, weights, checked = check_pairs(angles, weights, checked)
    rows = rows_from_rotations(check_rotations(rotations, len(angles)))
    return _Lines(angles, weights, checked).sums(rows, 1e-6, False)[6] / _total_weights(weights, checked)


def _total_weights(weights, checked):
    return checked.sum(axis=1) if weights is None else weights.sum(axis=1, dtype=np.float64)


def check_pairs(angles, weights=None, checked=None):
    """Validate common lines, and that they can tell the pose of every image.

    Parameters
    ----------
    angles, weights, checked
        As in :func:`solve_lud`.

    Returns
    -------
    angles : ndarray of shape (n, n), float32
    weights : ndarray of shape (n, n), float32, or None
    checked : ndarray of shape (n, n), bool
        The pairs that count: False on the diagonal and where the weight is 0.

    Raises
    ------
    ValueError
        As :func:`solve_lud`.
    """
    angles = np.ascontiguousarray(angles, dtype=np.float32)
    n = len(angles) if angles.ndim else 0
    if angles.shape != (n, n) or n < 3:
        raise ValueError(f"angles has shape {angles.shape}; (n, n) is wanted, for three images or more")
    if checked is None:
        checked = np.ones((n, n), dtype=bool)
    else:
        checked = np.array(checked)
        if checked.shape != (n, n) or checked.dtype != bool:
            raise ValueError(
                f"checked has shape {checked.shape} and dtype {checked.dtype}; booleans ({n}, {n}) are wanted"
            )
        _refuse_asymmetric(checked, "checked")
    np.fill_diagonal(checked, False)
    if weights is not None:
        weights = np.ascontiguousarray(weights, dtype=np.float32)
        if weights.shape != (n, n):
            raise ValueError(f"weights has shape {weights.shape}; ({n}, {n}) is wanted")
        bad = checked & ~(np.isfinite(weights) & (weights >= 0))
        if bad.any():
            i, j = np.argwhere(bad)[0]
            raise ValueError(f"weights[{i}, {j}] is {weights[i, j]}; finite numbers, none negative, are wanted")
        weights = np.where(checked, weights, np.float32(0))
        _refuse_asymmetric(weights, "weights")
        checked &= weights > 0
    bad = checked & ~np.isfinite(angles)
    if bad.any():
        i, j = np.argwhere(bad)[0]
        raise ValueError(f"angles[{i}, {j}] is {angles[i, j]}; what was not found is to be False in checked")
    few = np.flatnonzero(checked.sum(axis=1) < 2)
    if len(few):
        raise ValueError(
            f"{_images(few)} common lines with fewer than two others, which do not tell a pose; leave "
            f"{'it' if len(few) == 1 else 'them'} out"
        )
    apart = ~_component(checked, 0)
    if apart.any():
        raise ValueError(
            f"{_images(np.flatnonzero(apart))} no chain of common lines to image 0, so that their frames have nothing "
            "to do with each other; solve each group by itself"
        )
    return angles, weights, checked


def _images(index):
    named = ", ".join(map(str, index[:5])) + (f" and {len(index) - 5} more" if len(index) > 5 else "")
    return f"image {named} has" if len(index) == 1 else f"images {named} have"


def _refuse_asymmetric(matrix, name):
    if not np.array_equal(matrix, matrix.T):
        i, j = np.argwhere(matrix != matrix.T)[0]
        raise ValueError(
            f"{name}[{i}, {j}] is {matrix[i, j]} but {name}[{j}, {i}] is {matrix[j, i]}; a symmetric matrix is wanted"
        )


def _component(checked, image):
    """Which images a chain of pairs leads to."""
    reached = np.zeros(len(checked), dtype=bool)
    reached[image] = True
    front = np.array([image])
    while len(front) and not reached.all():
        neighbours = np.zeros(len(checked), dtype=bool)
        for i in front:
            neighbours |= checked[i]
            if neighbours.all():
                break
        front = np.flatnonzero(neighbours & ~reached)
        reached |= neighbours
    return reached


def rows_from_rotations(rotations):
    """First two columns of rotations, (6, n): what common lines depend on."""
    return np.concatenate([rotations[:, :, 0].T, rotations[:, :, 1].T])


class _Lines:
    """The lines in the order of the kernel."""

    def __init__(self, angles, weights, checked):
        self.n = n = len(angles)
        if weights is None:
            weights = np.broadcast_to(np.float32(1), (n, n))
        self._lines = np.empty((n_blocks(n), 5, 16), dtype=np.float32)
        pack(angles, weights, checked.view(np.uint8), self._lines)
        self._sums = np.empty((7, n))

    def sums(self, rows, smoothing, redescending):
        weighted_sums(self._lines, np.ascontiguousarray(rows, dtype=np.float32), smoothing, redescending, self._sums)
        return self._sums


def _descend(lines, rows, alpha, smoothing, redescending, max_iter, tol, path):
    for step in range(1, max_iter + 1):
        sums = lines.sums(rows, smoothing, redescending)
        path.append(float(sums[6].sum() / 2))
        before, rows = rows, _projected(sums[:6], alpha)
        if smoothing <= _SMOOTHING and _moved(before, rows) < tol:
            return rows, step, True
        smoothing = max(_SMOOTHING, smoothing * _COOLING)
    return rows, max_iter, False


def _best_of_many(lines, alpha):
    """Where the best of short descents from rotations by lot ends."""
    ends = []
    for k in range(_MORE_STARTS):
        rows = rows_from_rotations(random_rotations(lines.n, k))
        rows, _, _ = _descend(lines, rows, alpha, 1.0, False, _SHORT, 0.0, [])
        ends.append((lines.sums(rows, _SMOOTHING, False)[6].sum(), k, rows))
    return min(ends)[2]


def _moved(before, after):
    """Root mean square angle between rows, one turned as a whole to the other."""
    u, _, vt = np.linalg.svd(before[:3] @ after[:3].T + before[3:] @ after[3:].T)
    return np.sqrt(np.square(before - _turned(after, u @ vt)).sum() / (2 * before.shape[1]))


def _turned(rows, matrix):
    return np.concatenate([matrix @ rows[:3], matrix @ rows[3:]])


def _gram(rows):
    return (rows[:3] @ rows[:3].T + rows[3:] @ rows[3:].T) / rows.shape[1]


def _orthonormal(rows):
    """The nearest rows with two orthonormal vectors each: (A A^T)^(-1/2) A of each image's A (2, 3)."""
    a, b = rows[:3], rows[3:]
    aa, bb, ab = (a * a).sum(axis=0), (b * b).sum(axis=0), (a * b).sum(axis=0)
    root = np.sqrt(np.maximum(aa * bb - ab * ab, 0))
    degenerate = np.flatnonzero(~(root > 1e-6 * (aa + bb)))
    scale = 1 / np.where(root > 0, root * np.sqrt(aa + bb + 2 * root), 1)
    out = np.concatenate([((bb + root) * a - ab * b) * scale, ((aa + root) * b - ab * a) * scale])
    if len(degenerate):  # vectors that are parallel or zero: any second one will do
        u, _, vt = np.linalg.svd(rows.reshape(2, 3, -1)[:, :, degenerate].transpose(2, 0, 1), full_matrices=False)
        out[:, degenerate] = (u @ vt).transpose(1, 2, 0).reshape(6, -1)
    return out


def _projected(rows, alpha):
    """Orthonormal rows near `rows` whose Gram matrix has no eigenvalue beyond `alpha`, nearly."""
    rows = _orthonormal(rows)
    for _ in range(_ROUNDS):
        values, vectors = np.linalg.eigh(_gram(rows))
        if values[-1] <= alpha + 1e-4:
            break
        wanted = _bounded(values, alpha)
        rows = _orthonormal(_turned(rows, (vectors * np.sqrt(wanted / np.maximum(values, 1e-9))) @ vectors.T))
    return rows


def _bounded(values, alpha):
    """Eigenvalues of the same sum, 2, those beyond `alpha` cut to it, the others grown in proportion."""
    values = np.maximum(values, 1e-6)
    for _ in range(2):
        large = values >= alpha
        values = np.where(large, alpha, values)
        if large.all():
            break
        values[~large] *= (2 - alpha * large.sum()) / values[~large].sum()
    return np.minimum(values, alpha)


def _spectral_start(lines):
    """Rows from the three largest eigenvectors of the matrix of all c_ij c_ji^T, by subspace iteration."""
    n = lines.n
    flat = 1e4  # so much smoothing weighs all pairs alike
    space = np.linalg.qr(np.random.default_rng(0).standard_normal((2 * n, 3)))[0]
    for _ in range(_START_PASSES):
        sums = lines.sums(np.concatenate([space[:n].T, space[n:].T]) * np.sqrt(n), flat, False)
        new = np.linalg.qr(np.concatenate([sums[:3].T, sums[3:6].T]))[0]
        overlap = np.linalg.svd(space.T @ new, compute_uv=False)[-1]
        space = new
        if overlap > np.cos(_START_ANGLE):
            break
    a, b = space[:n].T, space[n:].T
    # The matrix M for which all |M a| = |M b| = 1 and M a . M b = 0, in the sense of least squares.
    pairs = [(0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2)]

    def products(p, q):
        return np.stack([p[i] * q[j] + (p[j] * q[i] if i != j else 0) for i, j in pairs], axis=1)

    system = np.concatenate([products(a, a), products(b, b), products(a, b)])
    found = np.linalg.lstsq(system, np.repeat([1.0, 0.0], [2 * n, n]), rcond=None)[0]
    square = np.empty((3, 3))
    for value, (i, j) in zip(found, pairs, strict=True):
        square[i, j] = square[j, i] = value
    values, vectors = np.linalg.eigh(square)
    root = (vectors * np.sqrt(np.maximum(values, 1e-3 * values.max()))) @ vectors.T
    return _orthonormal(_turned(np.concatenate([a, b]), root))
