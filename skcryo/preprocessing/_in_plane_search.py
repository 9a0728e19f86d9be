"""Likelihood of images over class, in-plane angle and shift."""

import numpy as np

from .._ext._polar import fold_max
from .._products import row_products

__all__ = ["AngleSums", "ClassSearch", "ShiftGrids", "best_angles", "grid_angles", "shift_offsets"]

_N_ANGLES = 64
_COLUMNS = 2**16  # pairs of image, shift and class looked at together: what a cache holds
_TILE = 2048
_COARSE, _CLOSE, _FINE = (1.4, 1.0, 0.6)  # steps of shifts, px, where the finest wavelength is
_WAVELENGTH = 65 / 16
_NEWTON_STEPS = 2
_LARGEST_STEP = np.pi / _N_ANGLES


def shift_offsets(radius, step):
    """Square grid of shifts within `radius` of zero, the nearest first: (n, 2), px."""
    reach = int(np.floor(radius / step + 1e-9)) if radius > 0 else 0
    x, y = np.meshgrid(*[step * np.arange(-reach, reach + 1)] * 2)
    points = np.stack([x.ravel(), y.ravel()], axis=1)
    length = np.hypot(*points.T)
    order = np.lexsort((points[:, 1], points[:, 0], np.round(length, 9)))
    return points[order[length[order] <= radius + 1e-9]]


class ShiftGrids:
    """Offsets at which shifts are tried, as fine as the images' finest wavelength wants them.

    Parameters
    ----------
    max_shift : float
        px.
    wavelength : float
        Of the highest frequency compared, px.

    Attributes
    ----------
    coarse, close, fine : ndarray of shape (n_offsets, 2)
        All shifts for the search of all classes, the same closer for one class, and nine about the best.
    """

    def __init__(self, max_shift, wavelength):
        unit = wavelength / _WAVELENGTH
        self.max_shift = max_shift
        self.coarse, self.close = (shift_offsets(max_shift, step * unit) for step in (_COARSE, _CLOSE))
        self.fine = shift_offsets(1.5 * _FINE * unit, _FINE * unit) if max_shift > 0 else self.coarse


class AngleSums:
    """Largest sum over angular frequencies n of ``re_n cos(n angle) + im_n sin(n angle)`` among equal steps."""

    def __init__(self, frequencies, n_angles=_N_ANGLES):
        self.order = np.argsort(frequencies % 2, kind="stable")
        self.n_even = int(np.count_nonzero(frequencies % 2 == 0))
        phases = np.outer(np.arange(n_angles // 4 + 1) * (2 * np.pi / n_angles), frequencies[self.order])
        self.cosine, self.sine = (np.cos(phases).astype(np.float32), np.sin(phases).astype(np.float32))
        self.step = 2 * np.pi / n_angles

    def maximum(self, re, im, best, index):
        """Into `best` and `index` (m,), from rows (n_frequencies, m) in this object's order."""
        e = self.n_even
        for start in range(0, re.shape[1], _TILE):
            tile = slice(start, min(start + _TILE, re.shape[1]))
            fold_max(
                row_products(self.cosine[:, :e], re[:e, tile]),
                row_products(self.cosine[:, e:], re[e:, tile]),
                row_products(self.sine[:, :e], im[:e, tile]),
                row_products(self.sine[:, e:], im[e:, tile]),
                best[tile],
                index[tile],
            )


class ClassSearch:
    """Best angle and offset of images in every class.

    Parameters
    ----------
    span : SteerableSpan
    averages : ndarray of shape (k, n_coefficients)
    n_offsets : int
        Shifts tried.
    """

    def __init__(self, span, averages, n_offsets):
        self.n_offsets = n_offsets
        self.half_power = np.ascontiguousarray(0.5 * span.ring_power(averages).T)
        self.sums = AngleSums(span.frequencies)
        averages = averages.astype(np.float32)
        self.n_classes = len(averages)
        self._products = []
        for columns in (span.columns[i] for i in self.sums.order):
            parts = [averages[:, part].T for part in columns]
            if len(parts) == 1:
                real, imaginary = parts[0], np.zeros_like(parts[0])
            else:
                real = np.concatenate(parts)
                imaginary = np.concatenate([parts[1], -parts[0]])
            where = slice(columns[0].start, columns[-1].stop)
            self._products.append((where, np.ascontiguousarray(real), np.ascontiguousarray(imaginary)))

    @property
    def block_size(self):
        """Images that are looked at together."""
        return max(1, _COLUMNS // (self.n_offsets * self.n_classes))

    def scores(self, coefficients, squares):
        """Log-likelihood of every class at its best angle and offset, without what all classes share.

        Parameters
        ----------
        coefficients : ndarray of shape (n, n_offsets, n_coefficients), float32
            Of the images, moved back by each offset.
        squares : ndarray of shape (n, n_rings), float32
            Squared filters.

        Returns
        -------
        scores : ndarray of shape (n, k), float32
        where : ndarray of shape (n, k), int16
            Index of the best offset.
        """
        n, T, J = coefficients.shape
        k, F = self.n_classes, len(self._products)
        b = coefficients.reshape(n * T, J)
        planes = np.empty((2, F, n * T * k), dtype=np.float32)
        for f, (where, real, imaginary) in enumerate(self._products):
            row_products(b[:, where], real, out=planes[0, f].reshape(n * T, k))
            row_products(b[:, where], imaginary, out=planes[1, f].reshape(n * T, k))
        best, index = (np.empty(n * T * k, dtype=np.float32), np.empty(n * T * k, dtype=np.int32))
        self.sums.maximum(planes[0], planes[1], best, index)
        best = best.reshape(n, T, k)
        where = best.argmax(axis=1)
        top = np.take_along_axis(best, where[:, None], axis=1)[:, 0]
        return top - row_products(squares, self.half_power), where.astype(np.int16)


def grid_angles(frequencies, products):
    """Of ``sum Re(g_n exp(-i n angle))``, products g (n, F), the largest value and its angle, by a parabola through
    the three best of equal steps."""
    grid = 2 * np.pi * np.arange(_N_ANGLES) / _N_ANGLES
    phases = np.outer(frequencies, grid)
    waves = np.concatenate([np.cos(phases), np.sin(phases)]).astype(np.float32)
    values = row_products(np.concatenate([products.real, products.imag], axis=1).astype(np.float32), waves)
    best, rows = values.argmax(axis=1), np.arange(len(values))
    top, before, after = (values[rows, (best + i) % _N_ANGLES].astype(np.float64) for i in (0, -1, 1))
    bend = np.maximum(2 * top - before - after, 1e-30)
    step = np.clip(0.5 * (after - before) / bend, -0.5, 0.5)
    return grid[1] * (best + step), top + 0.25 * (after - before) * step


def best_angles(frequencies, products):
    """Angles at which ``sum Re(g_n exp(-i n angle))`` is largest, and its value there; products g (n, F)."""
    angle, _ = grid_angles(frequencies, products)
    f = frequencies.astype(float)
    for _ in range(_NEWTON_STEPS):
        turned = products * np.exp(-1j * f * angle[:, None])
        slope = np.sum(f * turned.imag, axis=1)
        bend = -np.sum(f**2 * turned.real, axis=1)
        step = np.where(bend < 0, -slope / np.where(bend < 0, bend, -1), 0)
        angle = angle + np.clip(step, -_LARGEST_STEP, _LARGEST_STEP)
    value = np.sum((products * np.exp(-1j * f * angle[:, None])).real, axis=1)
    return np.mod(angle, 2 * np.pi), value
