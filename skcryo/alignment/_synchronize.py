"""Bring class averages to one common centre."""

import numpy as np

from ..fourier import shift_images
from ._in_plane import PolarMatcher
from ._polar_grid import disc_mask
from ._polar_search import turned

__all__ = ["recentred_shifts", "synchronize_averages"]

_ANCHOR = 0.3  # weight of a centre of mass, in units of one pair of averages
_ROBUST_SCALE = 0.5  # px: what disagrees by more counts by distance, not by its square
_N_REWEIGHTED = 10


def synchronize_averages(
    averages,
    counts=None,
    *,
    max_shift=None,
    n_neighbors=6,
    n_angles=96,
    lowpass="auto",
    n_rounds=2,
    n_jobs=None,
):
    """Offsets of class averages that have drifted off the particle's centre.

    A joint search of classes and shifts leaves every average with its own centre, because an average and its
    images may move together. Averages of similar views tie the centres to each other: if average k is average
    l, perhaps mirrored, then turned and moved by d, their offsets obey ``c_k - G c_l = d`` with G the turn
    with the mirror. Every pair is aligned, the nearest neighbours of each average are kept, and the equations
    are solved with pairs that disagree weighted down. What no view can tell, a shift of the particle in
    space, is held near the centres of mass of the averages.

    Parameters
    ----------
    averages : array-like of shape (k, L, L)
        Class averages, with light particles on a background near zero.
    counts : array-like of shape (k,), default=None
        Images in each class; those without images are left out, and pairs of small classes count less.
    max_shift : float, default=None
        Largest move searched between two averages whose centres of mass were aligned, px. None is L / 16.
    n_neighbors : int, default=6
        Pairs kept for each average, the best correlated ones.
    n_angles : int, default=96
        Angles searched.
    lowpass : float, "auto" or None, default="auto"
        As of :class:`PolarMatcher`.
    n_rounds : int, default=2
        Times that the averages are centred and aligned again.
    n_jobs : int, default=None
        Threads.

    Returns
    -------
    ndarray of shape (k, 2), float64
        (x, y), px: where the particle's centre lies in each average; zero for empty classes. The centred
        averages are ``shift_images(averages, -offsets)``, see :func:`recentred_shifts` for the images.

    Examples
    --------
    >>> import numpy as np
    >>> from skcryo.alignment import synchronize_averages
    >>> from skcryo.fourier import rotate_images, shift_images
    >>> x = np.arange(32) - 16
    >>> view = np.exp(-((x - 5) ** 2 + x[:, None] ** 2) / 9) + np.exp(-(x**2 + (x[:, None] - 3) ** 2) / 4)
    >>> views = rotate_images(np.stack([view] * 6), np.arange(6.0))
    >>> moved = shift_images(views, [[0, 0], [1, 0], [0, 1], [-1, 0], [0, -1], [1, 1]])
    >>> offsets = synchronize_averages(moved, n_neighbors=3)
    >>> centred = shift_images(moved, -offsets)  # centres now differ as one shift of all views explains
    >>> centred.shape
    (6, 32, 32)
    """
    averages = np.asarray(averages, dtype=np.float32)
    if averages.ndim != 3 or averages.shape[1] != averages.shape[2]:
        raise ValueError(f"averages must have shape (k, L, L), got {averages.shape}")
    k, L = len(averages), averages.shape[-1]
    counts = np.ones(k) if counts is None else np.asarray(counts, dtype=np.float64)
    if counts.shape != (k,):
        raise ValueError(f"counts must have shape ({k},), got {counts.shape}")
    if n_neighbors < 1:
        raise ValueError(f"n_neighbors must be positive, got {n_neighbors}")
    offsets = np.zeros((k, 2))
    alive = np.flatnonzero((counts > 0) & averages.any(axis=(1, 2)))
    if len(alive) == 0:
        return offsets
    used = averages[alive]
    anchor = centres_of_mass(used)
    if len(alive) == 1:
        offsets[alive] = anchor
        return offsets
    matcher = PolarMatcher(
        L,
        n_angles=n_angles,
        lowpass=lowpass,
        max_shift=L / 16 if max_shift is None else max_shift,
        n_refine=min(n_neighbors + 2, 2 * len(alive)),
    )
    centres = anchor
    for _ in range(n_rounds):
        pairs = _align_pairs(matcher, shift_images(used, -centres), min(n_neighbors, len(alive) - 1), n_jobs)
        centres = _solve(pairs, centres, anchor, np.sqrt(counts[alive] / counts[alive].mean()))
    offsets[alive] = centres
    return offsets


def recentred_shifts(labels, angles, shifts, offsets):
    """Shifts of images relative to centred averages.

    Parameters
    ----------
    labels : array-like of shape (n,), int
        Class of every image.
    angles : array-like of shape (n,)
        Radians.
    shifts : array-like of shape (n, 2)
        (x, y), px, relative to the averages as they were.
    offsets : array-like of shape (k, 2)
        As of :func:`synchronize_averages`.

    Returns
    -------
    ndarray of shape (n, 2), float64

    Examples
    --------
    >>> import numpy as np
    >>> from skcryo.alignment import recentred_shifts
    >>> recentred_shifts([0], [np.pi / 2], [[1.0, 0.0]], [[2.0, 0.0]]).round(6).tolist()
    [[1.0, 2.0]]
    """
    # image = shift(rotate(shift(centred, c), a), s) = shift(rotate(centred, a), s + Rot(a) c)
    return np.asarray(shifts, dtype=np.float64) + turned(
        np.asarray(offsets, dtype=np.float64)[np.asarray(labels)], np.asarray(angles, dtype=np.float64)
    )


def centres_of_mass(images, n_iter=3):
    """Centre of the positive part of every image inside a disc about it; (n, 2), (x, y) in px."""
    L = images.shape[-1]
    x = np.arange(L) - L // 2
    mask = disc_mask(L, 0.45 * L)
    centres = np.zeros((len(images), 2))
    for _ in range(n_iter):
        positive = np.maximum(shift_images(images, -centres), 0) * mask
        mass = np.maximum(positive.sum(axis=(1, 2), dtype=np.float64), 1e-30)
        centres = (
            centres + np.stack([positive.sum(axis=1) @ x, positive.sum(axis=2) @ x], axis=1) / mass[:, None]
        )
    return centres


def _align_pairs(matcher, averages, n_neighbors, n_jobs):
    """Best correlated neighbours: first, second, mirror (1 or -1), angle and shift of every pair kept."""
    k = len(averages)
    norm = np.sqrt(np.square(averages, dtype=np.float64).sum(axis=(1, 2), keepdims=True))
    averages = (averages / np.maximum(norm, 1e-30)).astype(np.float32)
    # a reversal about the centre L // 2: for even sizes the first row stays where it is
    mirrored = averages[:, ::-1]
    if averages.shape[1] % 2 == 0:
        mirrored = np.roll(mirrored, 1, axis=1)
    references = matcher.references(np.concatenate([averages, mirrored]))
    match = matcher.match(matcher.prepare(averages), references, return_all=True, n_jobs=n_jobs)
    # matched with unit norms up to the weights of the rings: divide those out
    size = np.sqrt(np.maximum(references.norms, 1e-30))
    correlation = (size[:k, None] ** 2 + size**2 - match.all_distances2) / (2 * size[:k, None] * size)
    correlation = correlation.reshape(k, 2, k)
    correlation[np.arange(k), :, np.arange(k)] = -np.inf
    best = correlation.argmax(axis=1)
    correlation = correlation.max(axis=1)
    first = np.repeat(np.arange(k), n_neighbors)
    second = np.argsort(-correlation, axis=1, kind="stable")[:, :n_neighbors].ravel()
    mirror = best[first, second]
    column = second + k * mirror
    return first, second, 1 - 2 * mirror, match.all_angles[first, column], match.all_shifts[first, column]


def _solve(pairs, centres, anchor, weights):
    """Offsets from pairs aligned after centring on `centres`: least squares, reweighted to be robust."""
    first, second, mirror, angle, shift = pairs
    k, m = len(anchor), len(first)
    c, s = np.cos(angle), np.sin(angle)
    turn = np.stack([np.stack([c, -s * mirror], axis=1), np.stack([s, c * mirror], axis=1)], axis=1)
    # Content: average k moved by -centres[k] is G of average l moved by -centres[l], then moved by the shift.
    wanted = centres[first] + shift - np.einsum("mij,mj->mi", turn, centres[second])
    pair_weight = weights[first] * weights[second]
    robust, held = np.ones(m), np.full(k, _ANCHOR)
    for _ in range(_N_REWEIGHTED):
        w = (pair_weight * robust)[:, None, None]
        normal = np.zeros((k, k, 2, 2))
        np.add.at(normal, (first, first), w * np.eye(2))
        np.add.at(normal, (second, second), w * np.eye(2))  # G is orthogonal
        np.add.at(normal, (first, second), -w * turn)
        np.add.at(normal, (second, first), -w * turn.transpose(0, 2, 1))
        normal[np.arange(k), np.arange(k)] += held[:, None, None] * np.eye(2)
        right = held[:, None] * anchor
        np.add.at(right, first, w[:, 0] * wanted)
        np.add.at(right, second, -w[:, 0] * np.einsum("mji,mj->mi", turn, wanted))
        system = normal.transpose(0, 2, 1, 3).reshape(2 * k, 2 * k)
        solution = np.linalg.solve(system, right.ravel()).reshape(k, 2)
        robust = _robust_weights(solution[first] - np.einsum("mij,mj->mi", turn, solution[second]) - wanted)
        held = _ANCHOR * _robust_weights(solution - anchor)
    return solution


def _robust_weights(residuals):
    return 1 / np.maximum(np.hypot(residuals[:, 0], residuals[:, 1]) / _ROBUST_SCALE, 1)
