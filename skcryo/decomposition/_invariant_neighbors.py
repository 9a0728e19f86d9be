"""Nearest images over all turns and mirror images, from steerable coefficients."""

from dataclasses import dataclass

import numpy as np
from joblib import Parallel, delayed

from .._ext._emd import max_threads
from .._products import row_products
from ..rotations import in_plane_rotation

__all__ = ["Neighbors", "invariant_neighbors"]

_ANGLES_PER_WAVE = 4  # of the highest angular frequency, at which likeness is looked at
_ROWS, _COLUMNS = 24, 512  # images that are compared at once: their scores at all angles stay in cache
_FINER = 4  # grid of angles for those that were chosen
_NEWTON_STEPS = 3
_PAIRS = 20_000


@dataclass(frozen=True)
class Neighbors:
    """Of every image, the references most like it: image i is about ``rotate(mirrored reference, angle)``.

    Attributes
    ----------
    indices : ndarray of shape (n, n_neighbors), int
        Nearest first.
    angles : ndarray of shape (n, n_neighbors), float64
        Radians, in [0, 2 pi).
    reflected : ndarray of shape (n, n_neighbors), bool
        Whether the reference is mirrored (about the x axis) before it is turned.
    distances : ndarray of shape (n, n_neighbors), float64
        Euclidean, at the best angle.
    """

    indices: np.ndarray
    angles: np.ndarray
    reflected: np.ndarray
    distances: np.ndarray

    def relative_rotations(self):
        """Matrices M (n, n_neighbors, 3, 3) with ``R_i`` about ``R_j @ M`` if image i and reference j show one view."""
        M = in_plane_rotation(-self.angles.ravel()).reshape(*self.angles.shape, 3, 3)
        M[..., 1:, :] *= np.where(self.reflected, -1.0, 1.0)[..., None, None]
        return M


def invariant_neighbors(
    images, references, n_neighbors, *, frequencies=None, reflections=True, exclude_self=False, n_jobs=None
):
    """Nearest references of every image, over all turns and mirror images.

    All pairs are compared: of each, products of coefficients by angular frequency, then their sums over it at all
    angles. Nothing is approximated but the angle, to a quarter of the highest frequency's wave, for the choice of
    neighbours; those that are chosen have it exactly.

    Parameters
    ----------
    images, references : list of ndarray of shape (n, n_components of the frequency), complex
        As of :meth:`SteerablePCA.complex_coefficients`.
    n_neighbors : int
    frequencies : sequence of int, default=None
        Angular frequency of each entry. None: 0, 1, 2, ...
    reflections : bool, default=True
        Whether references are compared mirrored as well.
    exclude_self : bool, default=False
        Whether image i is not compared with reference i.
    n_jobs : int, default=None
        Threads. None: all cores (OMP_NUM_THREADS is respected). The result does not depend on it, nor on the other
        images.

    Returns
    -------
    neighbors : Neighbors
    """
    frequencies = np.arange(len(images)) if frequencies is None else np.asarray(frequencies)
    used = [k for k in range(len(images)) if images[k].shape[1]]
    left, right = _Coefficients(images, used), _Coefficients(references, used)
    n, n_angles = left.n, 2 * _ANGLES_PER_WAVE * (int(frequencies[-1]) // 2 + 1)
    search = _Search(left, right, frequencies[used], n_angles, reflections)
    blocks = [slice(start, min(start + _ROWS, n)) for start in range(0, n, _ROWS)]
    found = Parallel(n_jobs=max_threads() if n_jobs is None else n_jobs, prefer="threads")(
        delayed(search.nearest)(rows, n_neighbors, exclude_self) for rows in blocks
    )
    indices = np.concatenate(found)
    reflected = np.zeros(indices.shape, dtype=bool)
    angles, products = search.best_angles(indices, reflected)
    if reflections:
        others, other_products = search.best_angles(indices, ~reflected)
        reflected = other_products > products
        angles, products = np.where(reflected, others, angles), np.maximum(products, other_products)
    squares = left.squares[:, None] + right.squares[indices] - 2 * products
    order = np.argsort(squares, axis=1, kind="stable")
    indices, angles, reflected, squares = (
        np.take_along_axis(values, order, 1) for values in (indices, angles, reflected, squares)
    )
    return Neighbors(indices, angles, reflected, np.sqrt(np.maximum(squares, 0)))


class _Coefficients:
    def __init__(self, parts, used):
        self.complex = [np.asarray(parts[k], dtype=np.complex64) for k in used]
        self.real = [np.ascontiguousarray(part.real) for part in self.complex]
        self.imaginary = [np.ascontiguousarray(part.imag) for part in self.complex]
        self.n = len(parts[0])
        self.squares = sum(np.sum(np.abs(part.astype(np.complex128)) ** 2, axis=1) for part in self.complex)
        self.squares = np.zeros(self.n) + self.squares


class _Search:
    def __init__(self, left, right, frequencies, n_angles, reflections):
        self.left, self.right, self.frequencies, self.reflections = left, right, frequencies, reflections
        self.grid = 2 * np.pi * np.arange(n_angles) / n_angles
        # Half a turn changes the sign of odd frequencies alone: half the angles do, by e + |o|.
        half = self.grid[: n_angles // 2]
        self.parity = [np.flatnonzero(frequencies % 2 == odd) for odd in (0, 1)]
        self.waves = [_waves(frequencies[which], half).astype(np.float32) for which in self.parity]
        self.transposed = [np.ascontiguousarray(np.concatenate([u, v]).T) for u, v in zip(right.real, right.imaginary)]

    def nearest(self, rows, n_neighbors, exclude_self):
        """Nearest references of the images `rows`, unsorted."""
        m, n = rows.stop - rows.start, self.right.n
        scores = np.empty((m, n), dtype=np.float32)
        both = [np.concatenate([x[rows], y[rows]]) for x, y in zip(self.left.real, self.left.imaginary)]
        for start in range(0, n, _COLUMNS):
            columns = slice(start, min(start + _COLUMNS, n))
            plain, flipped = self._products(both, columns)
            scores[:, columns] = self._best(plain, m)
            if self.reflections:
                np.maximum(scores[:, columns], self._best(flipped, m), out=scores[:, columns])
        scores -= (0.5 * self.right.squares).astype(np.float32)
        if exclude_self:
            scores[np.arange(m), np.arange(rows.start, rows.stop)] = -np.inf
        return np.argpartition(-scores, n_neighbors - 1, axis=1)[:, :n_neighbors]

    def _products(self, both, columns):
        """P and Q of all frequencies (2 n_frequencies, m * n_columns), with the references as they are and mirrored.

        The product at an angle is the sum over frequencies n of ``P cos(n angle) + Q sin(n angle)``.
        """
        m, c, n = len(both[0]) // 2, columns.stop - columns.start, self.right.n
        plain = np.empty((len(both), 2, m, c), dtype=np.float32)
        flipped = np.empty_like(plain) if self.reflections else None
        for k, (rows, references) in enumerate(zip(both, self.transposed)):
            real = row_products(rows, references[:, columns])
            imaginary = row_products(rows, references[:, n + columns.start : n + columns.stop])
            xu, yu, xv, yv = real[:m], real[m:], imaginary[:m], imaginary[m:]
            np.add(xu, yv, out=plain[k, 0])
            np.subtract(xv, yu, out=plain[k, 1])
            if self.reflections:
                np.subtract(xu, yv, out=flipped[k, 0])
                np.add(xv, yu, out=flipped[k, 1])
                np.negative(flipped[k, 1], out=flipped[k, 1])
        return plain, flipped

    def _best(self, products, m):
        even, odd = (
            row_products(waves, np.ascontiguousarray(products[which]).reshape(2 * len(which), products[0, 0].size))
            for which, waves in zip(self.parity, self.waves)
        )
        np.abs(odd, out=odd)
        return (even + odd).max(axis=0).reshape(m, -1)

    def best_angles(self, indices, reflected):
        """Angles of largest product of pairs, and those products: the best of a finer grid, then Newton's steps."""
        n, k = indices.shape
        angles, products = np.empty(n * k), np.empty(n * k)
        grid = 2 * np.pi * np.arange(_FINER * len(self.grid)) / (_FINER * len(self.grid))
        waves = _waves(self.frequencies, grid)
        f = self.frequencies.astype(float)
        for start in range(0, n * k, _PAIRS):
            pairs = slice(start, min(start + _PAIRS, n * k))
            i, j = np.arange(pairs.start, pairs.stop) // k, indices.ravel()[pairs]
            mirrored = reflected.ravel()[pairs, None]
            G = np.empty((len(i), len(f)), dtype=np.complex128)
            for q, (a, b) in enumerate(zip(self.left.complex, self.right.complex)):
                b = b[j]
                G[:, q] = np.einsum("pk,pk->p", a[i].conj(), np.where(mirrored, b.conj(), b))
            P, Q = G.real, G.imag
            on_grid = np.stack([P, Q], axis=2).reshape(len(i), -1) @ waves.T
            angle = grid[on_grid.argmax(axis=1)]
            for _ in range(_NEWTON_STEPS):
                c, s = np.cos(f * angle[:, None]), np.sin(f * angle[:, None])
                slope = np.sum(f * (Q * c - P * s), axis=1)
                bend = -np.sum(f**2 * (P * c + Q * s), axis=1)
                step = np.where(bend < 0, -slope / np.where(bend < 0, bend, -1), 0)
                angle = angle + np.clip(step, -grid[1], grid[1])
            angles[pairs] = np.mod(angle, 2 * np.pi)
            products[pairs] = np.sum(P * np.cos(f * angle[:, None]) + Q * np.sin(f * angle[:, None]), axis=1)
        return angles.reshape(n, k), products.reshape(n, k)


def _waves(frequencies, angles):
    """Cosines and sines (n_angles, 2 n_frequencies) of all frequencies in turn."""
    phases = np.multiply.outer(angles, frequencies)
    return np.ascontiguousarray(np.stack([np.cos(phases), np.sin(phases)], axis=2).reshape(len(angles), -1))
