"""Scores of pairs of images at given lines, and the lines that rotations predict."""

import numpy as np

from .._ext import _common_lines as _kernels

__all__ = ["predicted_lines", "scores_at"]


def predicted_lines(rotations):
    """Common lines of images of known rotations.

    Parameters
    ----------
    rotations : ndarray of shape (n, 3, 3)

    Returns
    -------
    angles : ndarray of shape (n, n), float32
        As in :class:`CommonLines`, above the diagonal in [0, pi). NaN where the directions of view are one or opposite.
    cosines : ndarray of shape (n, n), float32
        Of the angles between the directions of view.
    """
    n = len(rotations)
    angles, cosines = np.empty((n, n), dtype=np.float32), np.empty((n, n), dtype=np.float32)
    views = rotations[:, :, 2]
    for i in range(n):
        line = np.cross(views[i], views[i:])
        length = np.linalg.norm(line, axis=1)
        here = line @ rotations[i, :, :2]
        there = np.einsum("jak,ja->jk", rotations[i:, :, :2], line)
        forth = np.arctan2(here[:, 1], here[:, 0]) % (2 * np.pi)
        back = np.arctan2(there[:, 1], there[:, 0])
        turned = forth >= np.pi
        angles[i, i:] = np.where(length > 1e-6, forth - np.pi * turned, np.nan)
        angles[i:, i] = np.where(length > 1e-6, (back - np.pi * turned) % (2 * np.pi), np.nan)
        cosines[i, i:] = cosines[i:, i] = views[i:] @ views[i]
    return angles, cosines


def scores_at(lines, angles, *, cosines=None, shifts=(0.0,), n_threads=1):
    """Scores of pairs at given lines, block by block; see :meth:`RadialLines.score_at`.

    Parameters
    ----------
    lines : RadialLines
    angles, cosines : as in :meth:`RadialLines.score_at`
    shifts : sequence of float, default=(0.0,)
        Relative shifts to try, in pixels: of the first image's line against the second's, along the direction that the
        first one's angle, taken modulo pi, has.
    n_threads : int, default=1

    Yields
    ------
    rows, columns : slice
        Of ``lines.blocks()``, columns not before rows.
    scores : ndarray of shape (n_shifts, n_rows, n_columns), float32
    """
    n = len(lines)
    angles = np.asarray(angles, dtype=np.float32)
    if angles.shape != (n, n):
        raise ValueError(f"angles has shape {angles.shape}; ({n}, {n}) is wanted, for {n} images")
    if cosines is not None:
        cosines = np.asarray(cosines, dtype=np.float32)
        if cosines.shape != (n, n):
            raise ValueError(f"cosines has shape {cosines.shape}; ({n}, {n}) is wanted, for {n} images")
        if not lines.log_likelihood:
            raise ValueError('cosines are given, but lines of score "correlation" have no slopes to compare')
    seconds = [_Features(lines, columns, cosines is not None, 0.0) for columns in lines.blocks()]
    for k, rows in enumerate(lines.blocks()):
        firsts = [_Features(lines, rows, cosines is not None, shift) if shift else seconds[k] for shift in shifts]
        for second in seconds[k:]:
            columns = second.rows
            forth, back = angles[rows, columns], angles[columns, rows].T
            none = ~(np.isfinite(forth) & np.isfinite(back))
            place = [_place(np.where(none, 0, angle), second.n_lines) for angle in (forth, back)]
            cosine = None if cosines is None else cosines[rows, columns]
            scores = np.stack([_scores(lines, first, second, place, cosine, n_threads) for first in firsts])
            scores[:, none] = 0
            yield rows, columns, scores


class _Features:
    def __init__(self, lines, rows, slopes, shift):
        self.rows = rows
        self.features, self.penalty = lines.line_features(rows, shift)
        self.n_lines = self.features.shape[1]
        if slopes:
            self.slopes, self.slope_penalty = lines.slope_features(rows, self.n_lines, shift)


def _place(angle, n_lines):
    """Index of the nearest line on the full circle."""
    return np.rint(angle * np.float32(n_lines / np.pi)).astype(np.int32) % (2 * n_lines)


def _scores(lines, first, second, place, cosine, n_threads):
    at = [part % first.n_lines for part in place]
    scores = np.empty(place[0].shape, dtype=np.float32)
    _kernels.products_at(first.features, second.features, *place, scores, n_threads)
    scores -= _taken(first.penalty, second.penalty, at)
    if cosine is not None:
        products = np.empty_like(scores)
        _kernels.products_at(first.slopes, second.slopes, *place, products, n_threads)
        scores += cosine * products - cosine**2 * _taken(first.slope_penalty, second.slope_penalty, at)
        grid = np.linspace(0, 1, 65)
        scores += np.interp(np.abs(cosine), grid, lines.slope_log_norm(grid)).astype(np.float32)
    return scores


def _taken(first, second, at):
    return np.take_along_axis(first, at[0], axis=1) + np.take_along_axis(second, at[1].T, axis=1).T
