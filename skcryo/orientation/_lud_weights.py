"""Weights of common lines."""

import numpy as np
from scipy.ndimage import gaussian_filter1d

__all__ = ["equalized_weights"]

_BINS = 36
_WIDTH = np.radians(7.5)


def equalized_weights(angles, weights=None, checked=None):
    """Weights under which the lines of each image are spread evenly over its angles.

    The lines of an image with images of all views lie at all angles. Where noise gives an image a favourite, a line
    that is taken for common with one image after the other, its wrong lines agree with each other better than right
    ones do, and least unsquared deviations follow them. So a pair's weight is divided by how many times more often
    than on average the line's angle occurs, in one image and in the other.

    Parameters
    ----------
    angles : array-like of shape (n, n)
        Radians: the common line of images i and j as it lies in image i is ``(cos angles[i, j], sin angles[i, j])``.
    weights : array-like of shape (n, n), default=None
        Symmetric; what is divided. They count the lines too. None: ones.
    checked : array-like of shape (n, n), bool, default=None
        False for pairs that do not count, which get the weight 0; the diagonal always does.

    Returns
    -------
    weights : ndarray of shape (n, n), float32
        Symmetric.

    Notes
    -----
    Frequencies are counted in 36 bins of half a turn and smoothed by a Gaussian of standard deviation 7.5 degrees.

    Examples
    --------
    >>> import numpy as np
    >>> from skcryo.orientation import equalized_weights
    >>> angles = np.random.default_rng(0).uniform(0, np.pi, (100, 100))
    >>> angles[0, :60] = 1.0  # image 0 has a favourite
    >>> weights = equalized_weights(angles)
    >>> bool(weights[0, 1:60].mean() < 0.3 * weights[1:, 1:].mean())
    True
    """
    angles = np.asarray(angles, dtype=np.float32)
    n = len(angles)
    counted = np.ones((n, n), dtype=bool) if checked is None else np.array(checked, dtype=bool)
    np.fill_diagonal(counted, False)
    weights = counted.astype(np.float32) if weights is None else np.where(counted, weights, 0).astype(np.float32)
    ratio = np.empty((n, n), dtype=np.float32)
    for i in range(n):
        place = np.mod(np.where(counted[i], angles[i], 0) * (_BINS / np.pi), _BINS).astype(np.int64) % _BINS
        density = np.bincount(place, weights[i], _BINS)
        density = gaussian_filter1d(density, _WIDTH * _BINS / np.pi, mode="wrap")
        mean = max(density.mean(), np.finfo(np.float32).tiny)
        ratio[i] = np.maximum(density[place] / mean, 1e-3)
    return weights / (ratio * ratio.T)
