"""Common lines of all pairs of images."""

from dataclasses import dataclass

import numpy as np

from ._radial_lines import RadialLines

__all__ = ["CommonLines", "detect_common_lines"]


@dataclass(frozen=True)
class CommonLines:
    """Common lines of pairs of images.

    Parameters
    ----------
    angles : ndarray of shape (n, n), float32
        Radians: the common line of images i and j as it lies in image i is ``(cos angles[i, j], sin angles[i, j])``.
        ``[i, j]`` and ``[j, i]`` may turn by pi together, not alone. Diagonal 0.
    scores : ndarray of shape (n, n), float32
        How good the best line is: log-likelihood ratio or correlation. Symmetric.
    confidences : ndarray of shape (n, n), float32
        How far a pair's line may be trusted, in [0, 1]. Symmetric, diagonal 0.
    checked : ndarray of shape (n, n), bool
        False where a pair was not looked at: its angles and scores mean nothing. Diagonal False.
    relative_shifts : ndarray of shape (n, n), float32, or None
        Where searched.
    """

    angles: np.ndarray
    scores: np.ndarray
    confidences: np.ndarray
    checked: np.ndarray
    relative_shifts: np.ndarray | None = None

    def __len__(self):
        return len(self.angles)


def detect_common_lines(X, *, score="likelihood", shifts=None):
    """Find the common line of every pair of images.

    Parameters
    ----------
    X : ParticleStack or array-like of shape (n_images, L, L), or RadialLines
    score : {"likelihood", "correlation"}, default="likelihood"
    shifts : array-like of shape (n_images, 2), default=None
        (x, y) in pixels; None takes those of `X`, if any.

    Returns
    -------
    CommonLines
    """
    lines = X if isinstance(X, RadialLines) else RadialLines.from_images(X, score=score, shifts=shifts)
    n, n_lines, m = lines.even.shape
    angles, scores = np.zeros((n, n), np.float32), np.zeros((n, n), np.float32)
    even, odd = lines.even.reshape(-1, m), lines.odd.reshape(-1, m)
    step = np.pi / n_lines
    for i in range(n - 1):
        rest = slice((i + 1) * n_lines, None)
        a = (lines.even[i] @ even[rest].T).reshape(n_lines, -1, n_lines)
        b = (lines.odd[i] @ odd[rest].T).reshape(n_lines, -1, n_lines)
        base = a - lines.penalty[i][:, None, None] - lines.penalty[None, i + 1 :]
        value = np.moveaxis(base + np.abs(b), 1, 0).reshape(n - 1 - i, -1)
        best = value.argmax(axis=1)
        row, column = np.divmod(best, n_lines)
        j = np.arange(n - 1 - i)
        sign = np.where(b[row, j, column] >= 0, 1.0, -1.0)

        def at(r, c, base=base, b=b, j=j, sign=sign):
            flip = np.where((r < 0) | (r >= n_lines), -1.0, 1.0) * np.where((c < 0) | (c >= n_lines), -1.0, 1.0)
            r, c = r % n_lines, c % n_lines
            return base[r, j, c] + sign * flip * b[r, j, c]

        centre = at(row, column)
        up, down, right, left = at(row + 1, column), at(row - 1, column), at(row, column + 1), at(row, column - 1)
        gx, gy = (up - down) / 2, (right - left) / 2
        hxx, hyy = up + down - 2 * centre, right + left - 2 * centre
        hxy = at(row + 1, column + 1) + at(row - 1, column - 1) - at(row + 1, column - 1) - at(row - 1, column + 1)
        hxy /= 4
        det = hxx * hyy - hxy**2
        safe = (det > 1e-12) & (hxx < 0)
        det = np.where(safe, det, 1)
        dr, dc = -(hyy * gx - hxy * gy) / det, -(hxx * gy - hxy * gx) / det
        safe &= (np.abs(dr) <= 1) & (np.abs(dc) <= 1)
        dr, dc = np.where(safe, dr, 0), np.where(safe, dc, 0)
        angles[i, i + 1 :] = (row + dr) * step
        angles[i + 1 :, i] = (column + dc) * step + np.where(sign < 0, np.pi, 0)
        scores[i, i + 1 :] = scores[i + 1 :, i] = centre + (gx * dr + gy * dc) / 2
    checked = ~np.eye(n, dtype=bool)
    above = scores[checked]
    confidences = np.clip((scores - np.quantile(above, 0.3)) / (3 * above.std()), 0, 1).astype(np.float32)
    np.fill_diagonal(confidences, 0)
    return CommonLines(angles, scores, confidences, checked)
