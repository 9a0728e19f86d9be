"""The products behind the in-plane search: one block of images against one block of references."""

import contextlib
import functools
import threading

import numpy as np
import scipy.fft
import threadpoolctl

from .._ext._polar import fold_max
from .._products import row_products
from ._polar_grid import BATCH

__all__ = []

# Fixed shapes of the matrix products, so that no result depends on how the images were split.
IMAGE_BLOCK = 64
COLUMN_BLOCK = 256
_TILE = 2048


@functools.lru_cache(maxsize=1)
def _thread_pools():
    return threadpoolctl.ThreadpoolController()


class _OneBlasThread(contextlib.ContextDecorator):
    """The limit is the process's: of searches that overlap in threads the first sets it and the last lifts it."""

    def __init__(self):
        self._lock, self._depth, self._limiter = threading.Lock(), 0, None

    def __enter__(self):
        with self._lock:
            if self._depth == 0:
                self._limiter = _thread_pools().limit(limits=1, user_api="blas")
            self._depth += 1

    def __exit__(self, *exception):
        with self._lock:
            self._depth -= 1
            if self._depth == 0:
                self._limiter.restore_original_limits()


_one_blas_thread = _OneBlasThread()


def one_blas_thread():
    """BLAS on one thread: blocks of images run in parallel, and products do not change with the threads."""
    return _one_blas_thread


def turned(vectors, angles):
    """Rot(angle) @ vector; vectors (..., 2) as (x, y), angles (...) in radians."""
    c, s = np.cos(angles), np.sin(angles)
    x, y = vectors[..., 0], vectors[..., 1]
    return np.stack([c * x - s * y, s * x + c * y], axis=-1)


def filled_blocks(n, size):
    """Rows 0 to n - 1 in blocks of exactly `size` indices; the last row repeats to fill the last block."""
    for start in range(0, n, size):
        yield np.minimum(np.arange(start, start + size), n - 1)


def hexagonal_disc(radius, spacing):
    """Points of a hexagonal grid within `radius` of zero, nearest first; ndarray of shape (n_points, 2)."""
    reach = int(np.ceil(2 * radius / spacing)) + 1
    i, j = np.meshgrid(np.arange(-reach, reach + 1), np.arange(-reach, reach + 1), indexing="ij")
    points = spacing * np.stack([i + j / 2, np.sqrt(0.75) * j], axis=-1).reshape(-1, 2)
    distance = np.hypot(*points.T)
    order = np.lexsort((np.round(np.arctan2(points[:, 1], points[:, 0]), 6), np.round(distance, 6)))
    return points[order[distance[order] <= radius + 1e-9]]


def shift_phases(grid, shifts):
    """Cosine and sine of ``-2 pi k s`` on half of the polar grid; two (n_rings, n_theta / 2, n) float32."""
    along = np.cos(grid.half_angles)[:, None] * shifts[:, 0]
    along += np.sin(grid.half_angles)[:, None] * shifts[:, 1]
    phase = ((-2 * np.pi * grid.radii)[:, None, None] * along).astype(np.float32)
    return np.cos(phase), np.sin(phase)


def shift_hartley(hartley, cosine, sine):
    """Polar functions of images moved by the shifts of :func:`shift_phases`."""
    half = hartley.shape[1] // 2
    front, back = hartley[:, :half], hartley[:, half:]
    return np.concatenate([front * cosine + back * sine, back * cosine - front * sine], axis=1)


def power_orders(hartley, n_orders):
    """Harmonics 0, 2, 4 ... of the power of weighted polar functions; (n_orders, n_rings, k) complex64."""
    half = hartley.shape[1] // 2
    power = (np.square(hartley[:, :half]) + np.square(hartley[:, half:])) / 2
    return np.ascontiguousarray((scipy.fft.rfft(power, axis=1)[:, :n_orders] / half).transpose(1, 0, 2))


class AnglePlan:
    """The sum over angular orders at every angle, as one or a few small matrices.

    Where the angles are a multiple of four, even and odd orders apart give the four quadrants from one.
    """

    def __init__(self, grid, n_ctf_orders):
        n = grid.spec.n_angles
        self.n_angles = n
        ctf_orders = [self.fold(2 * j)[0] for j in range(n_ctf_orders)]
        used = [mu for mu in range(n // 2 + 1) if grid.groups[mu] or mu in ctf_orders]
        self.folds = n % 4 == 0
        if self.folds:
            used.sort(key=lambda mu: (mu % 2, mu))
        self.slices = [grid.slices[mu] for mu in used]
        self.plane_of = {mu: i for i, mu in enumerate(used)}
        self.ctf_planes = [(self.plane_of[mu], *self.fold(2 * j)[1:]) for j, mu in enumerate(ctf_orders)]
        self.n_planes = len(used)
        self.n_even = sum(mu % 2 == 0 for mu in used) if self.folds else self.n_planes
        rows = n // 4 + 1 if self.folds else n
        phase = 2 * np.pi * (np.outer(np.arange(rows), used) % n) / n
        self.cosine, self.minus_sine = np.cos(phase).astype(np.float32), -np.sin(phase).astype(np.float32)

    def fold(self, order):
        """(group that looks like this order on the angles, whether conjugated, weight of the order)."""
        folded = order % self.n_angles
        mirrored = folded > self.n_angles // 2
        return (self.n_angles - folded if mirrored else folded), mirrored, 1.0 if order == 0 else 2.0

    def maximum(self, planes, best, index):
        """Largest value over the angles, and where, of planes (2, n_planes, m), into best and index (m,)."""
        m = planes.shape[2]
        even = self.n_even
        for start in range(0, m, _TILE):
            tile = slice(start, min(start + _TILE, m))
            re, im = planes[0, :, tile], planes[1, :, tile]
            if self.folds:
                fold_max(
                    row_products(self.cosine[:, :even], re[:even]),
                    row_products(self.cosine[:, even:], re[even:]),
                    row_products(self.minus_sine[:, :even], im[:even]),
                    row_products(self.minus_sine[:, even:], im[even:]),
                    best[tile],
                    index[tile],
                )
            else:
                values = row_products(self.cosine, re) + row_products(self.minus_sine, im)
                index[tile] = values.argmax(axis=0)
                best[tile] = values.max(axis=0)


class Columns:
    """References of a block of classes at every shift, laid out for the products.

    Columns are ordered by shift, then class; `phases` are the :func:`shift_phases` of all shifts.
    """

    def __init__(self, grid, plan, references, classes, phases):
        self.classes = classes
        self.n_classes = classes.stop - classes.start
        self.n_shifts = phases[0].shape[2]
        self.half_norms = references.norms[classes] / 2
        hartley = references.hartley[:, :, classes]
        if self.n_shifts == 1:
            values = references.values[classes]
        else:
            shift, label = (i.ravel() for i in np.mgrid[: self.n_shifts, : self.n_classes])
            values = np.empty((len(shift), grid.n_features), dtype=np.float32)
            for rows in filled_blocks(len(shift), BATCH):
                moved = shift_hartley(hartley[:, :, label[rows]], *(p[:, :, shift[rows]] for p in phases))
                values[rows] = grid.features(moved)
        self.real = np.ascontiguousarray(values.T)
        self.imaginary = np.empty_like(self.real)
        self.imaginary[0::2] = -self.real[1::2]
        self.imaginary[1::2] = self.real[0::2]
        self.power = power_orders(hartley, len(plan.ctf_planes)).conj() if plan.ctf_planes else None
        self._buffers = threading.local()

    def buffers(self, n_planes):
        """Arrays of this thread that hold one block's correlations."""
        if not hasattr(self._buffers, "planes"):
            columns = IMAGE_BLOCK * self.n_shifts * self.n_classes
            self._buffers.planes = np.empty((2, n_planes, columns), dtype=np.float32)
            self._buffers.best = np.empty(columns, dtype=np.float32)
            self._buffers.index = np.empty(columns, dtype=np.int32)
        return self._buffers.planes, self._buffers.best, self._buffers.index


def search_block(plan, columns, features, block, score, angle, shift):
    """Best angle and shift of the images of `block` in every class of `columns`.

    Writes into score, angle (index) and shift (index), (n, k): the score is half of (squared norm of the
    image minus squared distance).
    """
    count = block.stop - block.start
    values = _filled(features.values[block])
    planes, best, index = columns.buffers(plan.n_planes)
    shape = IMAGE_BLOCK, columns.n_shifts, columns.n_classes
    products = planes.reshape(2, plan.n_planes, IMAGE_BLOCK, -1)
    for plane, where in enumerate(plan.slices):
        if where.stop > where.start:
            row_products(values[:, where], columns.real[where], out=products[0, plane])
            row_products(values[:, where], columns.imaginary[where], out=products[1, plane])
        else:
            products[:, plane] = 0
    if features.ctf_squared is not None:
        squared = _filled(features.ctf_squared[block])
        by_shift = planes.reshape(2, plan.n_planes, *shape)
        for order, (plane, mirrored, weight) in enumerate(plan.ctf_planes):
            norm = np.ascontiguousarray(squared[:, :, order]) @ columns.power[order] * np.float32(weight / 2)
            by_shift[0, plane] -= norm.real[:, None]
            by_shift[1, plane] -= -norm.imag[:, None] if mirrored else norm.imag[:, None]
    plan.maximum(planes, best, index)
    best, index = best.reshape(shape)[:count], index.reshape(shape)[:count]
    top = best.max(axis=1)
    # of equal shifts the one with the lowest angle, then the first
    first_angle = np.where(best == top[:, None], index, plan.n_angles).min(axis=1)
    first_shift = ((best == top[:, None]) & (index == first_angle[:, None])).argmax(axis=1)
    if features.ctf_squared is None:
        top = top - columns.half_norms
    score[block, columns.classes] = top
    angle[block, columns.classes] = first_angle
    shift[block, columns.classes] = first_shift


def _filled(rows):
    """Rows with zeros appended up to the fixed size of a block."""
    if len(rows) == IMAGE_BLOCK:
        return rows
    out = np.zeros((IMAGE_BLOCK, *rows.shape[1:]), dtype=rows.dtype)
    out[: len(rows)] = rows
    return out
