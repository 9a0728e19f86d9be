"""Weights of the graph whose maximum cut divides images into classes: how badly common lines and rotations agree."""

import numpy as np

__all__ = ["line_misfits", "objective", "predicted_angles"]

_ROWS = 512  # rows of a matrix at a time


def line_misfits(angles, rotations, checked=None):
    """Distance in space between the two images of each common line: equation 10 of the paper.

    Parameters
    ----------
    angles : ndarray of shape (n, n)
        Radians, as :class:`skcryo.orientation.CommonLines` has them.
    rotations : ndarray of shape (n, 3, 3)
    checked : ndarray of shape (n, n), bool, default=None
        False for pairs that were not looked at, whose weight is 0.

    Returns
    -------
    misfits : ndarray of shape (n, n), float32
        ``|R_i c_ij - R_j c_ji|``, symmetric, 0 to 2; 0 on the diagonal.

    Notes
    -----
    A line's sign is free for both images together, so that the order of a pair does not matter.
    """
    n = len(angles)
    rotations = np.asarray(rotations, dtype=np.float32)
    squares = np.empty((n, n), dtype=np.float32)
    for start in range(0, n, _ROWS):
        rows = slice(start, min(start + _ROWS, n))
        own, other = _directions(angles[rows]), _directions(angles[:, rows].T)
        squares[rows] = 0
        for axis in range(3):
            here = own[0] * rotations[rows, axis, 0, None] + own[1] * rotations[rows, axis, 1, None]
            there = other[0] * rotations[:, axis, 0] + other[1] * rotations[:, axis, 1]
            squares[rows] += np.square(here - there)
    misfits = np.sqrt(squares)
    misfits = (misfits + misfits.T) / 2
    if checked is not None:
        misfits[~checked] = 0
    np.fill_diagonal(misfits, 0)
    return misfits


def _directions(angles):
    return np.cos(angles, dtype=np.float32), np.sin(angles, dtype=np.float32)


def predicted_angles(rotations):
    """Common lines that rotations predict: equation 8 of the paper.

    Parameters
    ----------
    rotations : ndarray of shape (n, 3, 3)

    Returns
    -------
    angles : ndarray of shape (n, n), float32
        Radians, as :class:`skcryo.orientation.CommonLines` has them. Where two views are the same, any angle.
    """
    n = len(rotations)
    rotations = np.asarray(rotations, dtype=np.float32)
    views = rotations[:, :, 2]
    angles = np.empty((n, n), dtype=np.float32)
    for start in range(0, n, _ROWS):
        rows = slice(start, min(start + _ROWS, n))
        lines = np.cross(views[rows, None], views[None])
        # one sign of the line for both images
        lines[np.arange(start, rows.stop)[:, None] > np.arange(n)] *= -1
        x, y = (np.einsum("ia,ija->ij", rotations[rows, :, axis], lines) for axis in (0, 1))
        angles[rows] = np.arctan2(y, x)
    np.fill_diagonal(angles, 0)
    return angles


def objective(weights, labels):
    """Sum of the weights within classes: equation 12 of the paper, each pair counted once.

    Parameters
    ----------
    weights : ndarray of shape (n, n)
    labels : ndarray of shape (n,)

    Returns
    -------
    float
    """
    total = 0.0
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        total += float(weights[np.ix_(own, own)].sum(dtype=np.float64)) / 2
    return total
