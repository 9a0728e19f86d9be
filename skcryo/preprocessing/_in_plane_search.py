"""Likelihood of images over class, in-plane angle and shift."""

import numpy as np

from .._ext._polar import fold_max
from .._products import row_products

__all__ = ["FINE_OFFSETS", "AngleSums", "ClassSearch", "best_angles", "shift_offsets"]

_N_ANGLES = 64
_COLUMNS = 2**16  # pairs of image, shift and class looked at together: what a cache holds
_TILE = 2048
_NEWTON_STEPS = 3


def shift_offsets(radius, step):
    """Square grid of shifts within `radius` of zero, the nearest first: (n, 2), px."""
    reach = int(np.floor(radius / step + 1e-9)) if radius > 0 else 0
    x, y = np.meshgrid(*[step * np.arange(-reach, reach + 1)] * 2)
    points = np.stack([x.ravel(), y.ravel()], axis=1)
    length = np.hypot(*points.T)
    order = np.lexsort((points[:, 1], points[:, 0], np.round(length, 9)))
    return points[order[length[order] <= radius + 1e-9]]


FINE_OFFSETS = shift_offsets(0.9, 0.6)  # nine: a square of 0.6 px


class AngleSums:
    """Largest sum over angular frequencies n of ``re_n cos(n angle) + im_n sin(n angle)`` among equal steps."""

    def __init__(self, frequencies, n_angles=_N_ANGLES):
        self.order = np.argsort(frequencies % 2, kind="stable")
        self.n_even = int(np.count_nonzero(frequencies % 2 == 0))
        phases = np.outer(np.arange(n_angles // 4 + 1) * (2 * np.pi / n_angles), frequencies[self.order])
        self.cosine, self.sine = np.cos(phases).astype(np.float32), np.sin(phases).astype(np.float32)
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
    offsets : ndarray of shape (n_offsets, 2)
        Shifts tried, relative to the images' own.
    """

    def __init__(self, span, averages, offsets):
        self.span, self.offsets = span, offsets
        self.table = span.table(offsets)
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
        return max(1, _COLUMNS // (len(self.offsets) * self.n_classes))

    def scores(self, values, squares):
        """Log-likelihood of every class at its best angle and offset, without what all classes share.

        Parameters
        ----------
        values : ndarray of shape (n, 2 n_points), float32
            Of :meth:`BandImages.centred`.
        squares : ndarray of shape (n, n_rings), float32

        Returns
        -------
        scores : ndarray of shape (n, k), float32
        offsets : ndarray of shape (n, k), int16
            Index of the best.
        """
        n, T, k, F = len(values), len(self.offsets), self.n_classes, len(self._products)
        b = row_products(values, self.table).reshape(n * T, -1)
        planes = np.empty((2, F, n * T * k), dtype=np.float32)
        for f, (where, real, imaginary) in enumerate(self._products):
            part = b[:, where]
            row_products(part, real, out=planes[0, f].reshape(n * T, k))
            row_products(part, imaginary, out=planes[1, f].reshape(n * T, k))
        best, index = np.empty(n * T * k, dtype=np.float32), np.empty(n * T * k, dtype=np.int32)
        self.sums.maximum(planes[0], planes[1], best, index)
        best = best.reshape(n, T, k)
        where = best.argmax(axis=1)
        top = np.take_along_axis(best, where[:, None], axis=1)[:, 0]
        return top - row_products(squares, self.half_power), where.astype(np.int16)


def best_angles(frequencies, products):
    """Angles at which ``sum Re(g_n exp(-i n angle))`` is largest, and its value there; products g (n, F)."""
    grid = np.arange(_N_ANGLES) * (2 * np.pi / _N_ANGLES)
    waves = np.exp(-1j * np.outer(frequencies, grid))
    angle = grid[(products @ waves).real.argmax(axis=1)]
    f = frequencies.astype(float)
    for _ in range(_NEWTON_STEPS):
        turned = products * np.exp(-1j * f * angle[:, None])
        slope = np.sum(f * turned.imag, axis=1)
        bend = -np.sum(f**2 * turned.real, axis=1)
        step = np.where(bend < 0, -slope / np.where(bend < 0, bend, -1), 0)
        angle = angle + np.clip(step, -grid[1], grid[1])
    value = np.sum((products * np.exp(-1j * f * angle[:, None])).real, axis=1)
    return np.mod(angle, 2 * np.pi), value
