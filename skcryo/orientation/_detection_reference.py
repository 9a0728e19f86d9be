"""The search for a common line, one pair of images at a time and one step after the other."""

import numpy as np

from .._ext import _common_lines as _kernels
from ._detection import N_CANDIDATES, NARROW
from ._radial_lines import FINE

__all__ = ["NEGLIGIBLE", "STEEPEST", "reference_line", "reference_ratios"]

# A likelihood ratio whose logarithm lies so far below the highest score counts for nothing, unless one of its
# neighbours in a group of lines does, as they are or turned; a slope's product beyond which single precision would end.
NEGLIGIBLE, STEEPEST = -10.0, 25.0


def reference_ratios(lines, i, j, shift=0.0):
    """Likelihood ratios of all lines of one image with all of another.

    With slopes' product z and cosines c_1 = 1/4 and c_2 = 3/4 between the planes, the ratio of two lines is multiplied
    by the mean over cosines of ``exp(-c^2 penalty) cosh(c z)``: what goes with c_1 is in the penalties, and ``cosh(3 x)
    = cosh(x) (4 cosh(x)^2 - 3)``.

    Parameters
    ----------
    lines : RadialLines
    i, j : int
        Images.
    shift : float, default=0.0
        Pixels by which the first is moved along its lines.

    Returns
    -------
    ratios : ndarray of shape (2, n_lines, n_lines), float64
        Over the exponential of `highest`; of lines as they are, and of those of the second image turned by pi. For
        `score` "correlation" the correlations.
    highest : float
        The largest score without slopes.
    """
    first, _, slopes, penalty, weights = (part[0].astype(np.float64) for part in lines.features([i], shift))
    second, _, other_slopes, other_penalty, other_weights = (part[0].astype(np.float64) for part in lines.features([j]))
    m = first.shape[1] // 2

    def products(x, y):
        even, odd = x[:, :m] @ y[:, :m].T, x[:, m:] @ y[:, m:].T
        return np.stack([even + odd, even - odd])

    scores = products(first[::FINE], second[::FINE]) - penalty[:, None] - other_penalty
    highest = scores.max()
    if not lines.log_likelihood:
        return scores, highest
    cosh = 2 * np.cosh(np.clip(products(slopes, other_slopes), -STEEPEST, STEEPEST))
    larger = 1 + weights[:, None] * other_weights * (cosh**2 - 3)
    ratios = np.exp(np.maximum(scores - highest, NEGLIGIBLE)) * cosh * larger
    for start in range(0, lines.n_lines, _kernels.LANES):
        group = slice(start, start + _kernels.LANES)
        ratios[:, :, group] *= (scores[:, :, group] > highest + NEGLIGIBLE).any(axis=(0, 2))[:, None]
    return ratios, highest


def reference_line(lines, i, j, window, shift=0.0):
    """The common line of two images, as :meth:`PairSearch.compare` finds it.

    Parameters
    ----------
    lines, i, j, shift : as in :func:`reference_ratios`
    window : int
        Lines to either side over which ratios are summed.

    Returns
    -------
    row, column : float
        Angles in lines.
    log_best, log_all : float
    """
    ratios, highest = reference_ratios(lines, i, j, shift)
    if not lines.log_likelihood:
        turned, row, column = _largest(ratios)
        row, column = _climb(lines, i, j, shift, row * FINE, (column + turned * lines.n_lines) * FINE)
        return row / FINE, column / FINE, highest, highest
    everything = ratios.sum()
    best = None
    for _ in range(N_CANDIDATES):
        turned, row, column = place = _largest(ratios)
        if best is not None and ratios[place] * (2 * window + 1) ** 2 < best[0]:
            break
        _, row_mean, column_mean, _ = _window(ratios, row, column + turned * lines.n_lines, window)
        row, column = int(np.rint(row_mean)), int(np.rint(column_mean))
        found = _window(ratios, row, column, window)
        if best is None or found[0] > best[0]:
            best = found
        ratios[_cells(ratios, row, column, window)] = 0
        ratios[place] = 0
    mass, row, column, spread = best
    if spread < NARROW:
        row, column = _climb(lines, i, j, shift, int(np.rint(row * FINE)), int(np.rint(column * FINE)))
        row, column = row / FINE, column / FINE
    return row, column, highest + np.log(mass), highest + np.log(everything)


def _largest(table):
    return np.unravel_index(np.argmax(table), table.shape)


def _cells(table, row, column, window):
    """Indices of a window; each step beyond half a circle turns a line."""
    n = table.shape[1]
    rows, columns = (at + np.arange(-window, window + 1) for at in (row, column))
    turned = (rows // n)[:, None] + columns // n
    return turned % 2, (rows % n)[:, None], (columns % n)[None, :]


def _window(table, row, column, window):
    """Sum, centre of mass, and variance about it."""
    mass = table[_cells(table, row, column, window)]
    steps = np.arange(-window, window + 1)
    total = mass.sum()
    by_row, by_column = mass.sum(axis=1) @ steps / total, mass.sum(axis=0) @ steps / total
    squares = (mass * (steps[:, None] ** 2 + steps**2)).sum() / total
    return total, row + by_row, column + by_column, squares - by_row**2 - by_column**2


def _climb(lines, i, j, shift, row, column):
    """The nearest maximum among fine lines, by a parabola through its neighbours."""
    (x,), (x_penalty,) = lines.line_features([i], shift)
    (y,), (y_penalty,) = lines.line_features([j])
    n, m = len(x), x.shape[1] // 2

    def score(a, b):
        sign = (-1) ** ((a // n + b // n) % 2)
        a, b = a % n, b % n
        return x[a, :m] @ y[b, :m] + sign * (x[a, m:] @ y[b, m:]) - x_penalty[a] - y_penalty[b]

    s = np.zeros((3, 3))
    for _ in range(4 * FINE):
        s = np.array([[score(row + a, column + b) for b in (-1, 0, 1)] for a in (-1, 0, 1)])
        if s[1, 1] >= s.max():
            break
        a, b = np.unravel_index(np.argmax(s), s.shape)
        row, column = row + a - 1, column + b - 1
    gradient = np.array([s[2, 1] - s[0, 1], s[1, 2] - s[1, 0]]) / 2
    mixed = (s[2, 2] + s[0, 0] - s[2, 0] - s[0, 2]) / 4
    hessian = np.array([[s[2, 1] + s[0, 1] - 2 * s[1, 1], mixed], [mixed, s[1, 2] + s[1, 0] - 2 * s[1, 1]]])
    if hessian[0, 0] < 0 and np.linalg.det(hessian) > 0:
        step = -np.linalg.solve(hessian, gradient)
        if np.abs(step).max() <= 1:
            return row + step[0], column + step[1]
    return row, column
