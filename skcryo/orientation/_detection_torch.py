"""The search for common lines over all pairs of images, by torch."""

import numpy as np

from .._ext import _common_lines as _kernels
from .._torch import full_precision, import_torch
from ._detection import N_CANDIDATES, NARROW, PairSearch
from ._detection_reference import NEGLIGIBLE, STEEPEST
from ._radial_lines import FINE

__all__ = ["TorchPairSearch"]

_MAX_BYTES = {"cpu": 2**25, "cuda": 2**29}  # of one table of ratios; about six are alive at a time


class TorchPairSearch(PairSearch):
    """:class:`PairSearch` with tensors on a device; results are the same up to rounding.

    Parameters
    ----------
    lines : RadialLines
    max_shift : float
        Pixels.
    device : torch.device
    """

    def __init__(self, lines, max_shift, device):
        super().__init__(lines, max_shift)
        self.device = device
        self.torch = import_torch("detect_common_lines")

    def prepare(self, rows, shift=0.0):
        """Features of some images on the device."""
        return _Lines(
            *(self.torch.from_numpy(np.ascontiguousarray(x)).to(self.device) for x in self.lines.features(rows, shift))
        )

    def compare(self, first, second):
        """See :meth:`PairSearch.compare`; below the diagonal too."""
        found = np.empty((4, len(first), len(second)), dtype=np.float32)
        per_image = 8 * self.lines.n_lines**2 * len(second)
        step = max(1, _MAX_BYTES[self.device.type] // per_image)
        with full_precision(self.torch, self.device):
            for start in range(0, len(first), step):
                rows = slice(start, start + step)
                found[:, rows] = self._compare(first[rows], second).cpu().numpy()
        return found

    def _compare(self, first, second):
        n, n_rows, n_columns = self.lines.n_lines, len(first), len(second)
        i = self.torch.arange(n_rows, device=self.device).repeat_interleave(n_columns)
        j = self.torch.arange(n_columns, device=self.device).repeat(n_rows)
        scores = _products(self.torch, first.coarse, second.coarse)
        scores -= first.penalty[:, None, None, :, None] + second.penalty[None, :, None, None, :]
        scores = scores.reshape(n_rows * n_columns, -1)
        highest, place = scores.max(dim=1)
        if not self.lines.log_likelihood:
            turned, row, column = _split(place, n)
            row, column = _climb(self.torch, first, second, i, j, row * FINE, (column + turned * n) * FINE)
            found = self.torch.stack([row / FINE, column / FINE, highest, highest])
            return found.reshape(4, n_rows, n_columns)
        scores -= highest[:, None]
        ratios = self._ratios(scores, first, second)
        everything = ratios.sum(dim=1)
        row, column, mass, spread = self._best_window(ratios)
        (narrow,) = self.torch.nonzero(spread < NARROW, as_tuple=True)
        at = [self.torch.round(x[narrow] * FINE).long() for x in (row, column)]
        at = _climb(self.torch, first, second, i[narrow], j[narrow], *at)
        row[narrow], column[narrow] = at[0] / FINE, at[1] / FINE
        found = self.torch.stack([row, column, highest + self.torch.log(mass), highest + self.torch.log(everything)])
        return found.reshape(4, n_rows, n_columns)

    def _ratios(self, scores, first, second):
        """See :func:`reference_ratios`."""
        n, lanes = self.lines.n_lines, _kernels.LANES
        padded = self.torch.nn.functional.pad(scores.reshape(-1, n), (0, -n % lanes), value=-self.torch.inf)
        some = (padded.reshape(len(scores), 2, n, -1, lanes) > NEGLIGIBLE).any(dim=4).any(dim=1, keepdim=True)
        some = some.repeat_interleave(lanes, dim=3)[..., :n]
        cosh = _products(self.torch, first.slopes, second.slopes)
        cosh = 2 * self.torch.cosh(cosh.clamp_(-STEEPEST, STEEPEST))
        ratios = scores.clamp(min=NEGLIGIBLE).exp_().reshape(cosh.shape) * cosh
        ratios *= 1 + first.weights[:, None, None, :, None] * second.weights[None, :, None, None, :] * (cosh**2 - 3)
        return (ratios.reshape(-1, 2, n, n) * some).reshape(len(scores), -1)

    def _best_window(self, ratios):
        """Window of the largest sum around the largest ratios: its centre of mass, sum, and variance."""
        n, size = self.lines.n_lines, (2 * self.window + 1) ** 2
        best = None
        for _ in range(N_CANDIDATES):
            most, place = ratios.max(dim=1)
            turned, row, column = _split(place, n)
            found = self._window(ratios, row, column + turned * n)
            row, column = (self.torch.round(x).long() for x in found[:2])
            *found, cells = self._window(ratios, row, column, return_cells=True)
            if best is None:
                best = found
            else:
                better = (most * size >= best[2]) & (found[2] > best[2])
                best = [self.torch.where(better, new, old) for new, old in zip(found, best)]
            ratios.scatter_(1, cells, 0)
            ratios.scatter_(1, place[:, None], 0)
        return best

    def _window(self, ratios, row, column, return_cells=False):
        n = self.lines.n_lines
        steps = self.torch.arange(-self.window, self.window + 1, device=self.device)
        rows, columns = row[:, None] + steps, column[:, None] + steps
        turned = (rows.div(n, rounding_mode="floor")[:, :, None] + columns.div(n, rounding_mode="floor")[:, None]) % 2
        cells = ((turned * n + (rows % n)[:, :, None]) * n + (columns % n)[:, None]).flatten(1)
        values = ratios.gather(1, cells).reshape(turned.shape)
        mass = values.sum(dim=(1, 2))
        steps = steps.to(values.dtype)
        by_row, by_column = values.sum(dim=2) @ steps / mass, values.sum(dim=1) @ steps / mass
        squares = (values * (steps[:, None] ** 2 + steps**2)).sum(dim=(1, 2)) / mass
        found = row + by_row, column + by_column, mass, squares - by_row**2 - by_column**2
        return (*found, cells) if return_cells else found


class _Lines:
    """What :meth:`RadialLines.features` gives, as tensors."""

    def __init__(self, fine, fine_penalty, slopes, penalty, weights):
        self.fine, self.fine_penalty, self.slopes, self.penalty, self.weights = (
            fine,
            fine_penalty,
            slopes,
            penalty,
            weights,
        )
        self.coarse = fine[:, ::FINE]

    def __len__(self):
        return len(self.fine)

    def __getitem__(self, rows):
        return _Lines(*(x[rows] for x in (self.fine, self.fine_penalty, self.slopes, self.penalty, self.weights)))


def _products(torch, first, second):
    """Products of all lines of some images with all of others: (n_first, n_second, 2, n_lines, n_lines)."""
    m = first.shape[2] // 2
    even = torch.einsum("iak,jbk->ijab", first[:, :, :m], second[:, :, :m])
    odd = torch.einsum("iak,jbk->ijab", first[:, :, m:], second[:, :, m:])
    return torch.stack([even + odd, even - odd], dim=2)


def _split(place, n):
    """Whether turned, row and column of places in a table."""
    return place // n**2, place // n % n, place % n


def _climb(torch, first, second, i, j, row, column):
    """The nearest maximum among fine lines, by a parabola through its neighbours, of all pairs at once."""
    n, m = first.fine.shape[1], first.fine.shape[2] // 2
    steps = torch.tensor([(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1)], device=row.device)
    row, column = row.clone(), column.clone()
    scores = torch.zeros((len(row), 9), dtype=first.fine.dtype, device=row.device)
    moving = torch.arange(len(row), device=row.device)
    for _ in range(4 * FINE):
        if len(moving) == 0:
            break
        rows, columns = row[moving, None] + steps[:, 0], column[moving, None] + steps[:, 1]
        odd = (rows.div(n, rounding_mode="floor") + columns.div(n, rounding_mode="floor")) % 2
        rows, columns = rows % n, columns % n
        here, there = i[moving, None], j[moving, None]
        x, y = first.fine[here, rows], second.fine[there, columns]
        products = x * y
        found = products[..., :m].sum(dim=2) + (1 - 2 * odd) * products[..., m:].sum(dim=2)
        found -= first.fine_penalty[here, rows] + second.fine_penalty[there, columns]
        scores[moving] = found
        found[:, 4] = torch.where(found[:, 4] >= found.max(dim=1).values, torch.inf, found[:, 4])
        step = steps[found.argmax(dim=1)]
        row[moving] += step[:, 0]
        column[moving] += step[:, 1]
        moving = moving[(step != 0).any(dim=1)]
    s = scores.reshape(-1, 3, 3)
    by_row, by_column = (s[:, 2, 1] - s[:, 0, 1]) / 2, (s[:, 1, 2] - s[:, 1, 0]) / 2
    twice_row, twice_column = (s[:, 2, 1] + s[:, 0, 1] - 2 * s[:, 1, 1], s[:, 1, 2] + s[:, 1, 0] - 2 * s[:, 1, 1])
    mixed = (s[:, 2, 2] + s[:, 0, 0] - s[:, 2, 0] - s[:, 0, 2]) / 4
    determinant = twice_row * twice_column - mixed**2
    curved = (twice_row < 0) & (determinant > 0)
    determinant = torch.where(curved, determinant, 1)
    row_step = (mixed * by_column - twice_column * by_row) / determinant
    column_step = (mixed * by_row - twice_row * by_column) / determinant
    near = curved & (row_step.abs() <= 1) & (column_step.abs() <= 1)
    return row + torch.where(near, row_step, 0), column + torch.where(near, column_step, 0)
