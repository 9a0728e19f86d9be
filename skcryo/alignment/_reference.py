"""The search of :class:`skcryo.alignment.PolarMatcher` written out, for tests: slow and obvious."""

import numpy as np

from ..ctf import evaluate_ctf_polar
from ._in_plane import InPlaneMatch
from ._polar_search import turned as turn_vectors

__all__ = ["match_reference"]


def match_reference(matcher, images, class_averages, *, ctf=None, pixel_size=None, bias=None):
    """Best class, angle and shift of every image by explicit loops over all of them.

    Every turned and moved average is evaluated by summing its Fourier series at the turned nodes of the polar
    grid: no FFT, no interpolation, no angular harmonics. The fine search after the grid of shifts is left
    out, so compare with ``n_refine=0``.

    Parameters
    ----------
    matcher : PolarMatcher
    images : ndarray of shape (n, L, L)
    class_averages : ndarray of shape (k, L, L)
    ctf : structured array of shape (n,), default=None
    pixel_size : float, default=None
        Angstrom.
    bias : array-like of shape (k,), default=None

    Returns
    -------
    InPlaneMatch

    Examples
    --------
    >>> import numpy as np
    >>> from skcryo.alignment import PolarMatcher, match_reference
    >>> images = np.random.default_rng(0).normal(size=(3, 16, 16)).astype(np.float32)
    >>> matcher = PolarMatcher(16, n_angles=8, n_refine=0)
    >>> slow = match_reference(matcher, images, images)
    >>> fast = matcher.match(matcher.prepare(images), matcher.references(images))
    >>> slow.labels.tolist(), bool((slow.angles == fast.angles).all())
    ([0, 1, 2], True)
    """
    grid, L = matcher.grid, int(matcher.image_size)
    azimuths = 2 * np.pi * np.arange(grid.n_theta) / grid.n_theta
    weights = (grid.weights / grid.n_theta)[:, None]
    x = np.arange(L) - L // 2

    def transform(image, turned):
        kx = (grid.radii[:, None] * np.cos(azimuths - turned)).ravel()
        ky = (grid.radii[:, None] * np.sin(azimuths - turned)).ravel()
        along_y = np.exp(-2j * np.pi * ky[:, None] * x)
        along_x = np.exp(-2j * np.pi * kx[:, None] * x)
        return (((along_y @ (image * grid.mask)) * along_x).sum(axis=1)).reshape(grid.n_rings, grid.n_theta)

    n, k = len(images), len(class_averages)
    bias = np.zeros(k) if bias is None else np.asarray(bias, dtype=float)
    transfer = np.ones((n, 1, 1))
    if ctf is not None:
        transfer = evaluate_ctf_polar(ctf, grid.radii, azimuths, pixel_size).astype(np.float64)
    spectra = [transform(image, 0.0) for image in images]
    best, distances2 = [(np.inf,)] * n, np.full((n, k), np.inf)
    kx, ky = grid.radii[:, None] * np.cos(azimuths), grid.radii[:, None] * np.sin(azimuths)
    for label in range(k):
        for index in range(matcher.n_angles):
            angle = 2 * np.pi * index / matcher.n_angles
            turned = transform(class_averages[label], angle)
            for shift in turn_vectors(
                matcher.candidate_shifts, np.full(len(matcher.candidate_shifts), angle)
            ):
                moved = turned * np.exp(-2j * np.pi * (kx * shift[0] + ky * shift[1]))
                for i in range(n):
                    distance = float((weights * np.abs(spectra[i] - transfer[i] * moved) ** 2).sum())
                    distances2[i, label] = min(distances2[i, label], distance)
                    if distance + bias[label] < best[i][0]:
                        best[i] = (distance + bias[label], label, angle, shift, distance)
    return InPlaneMatch(
        np.array([b[1] for b in best], dtype=np.int32),
        np.array([b[2] for b in best]),
        np.array([b[3] for b in best]),
        np.array([b[4] for b in best], dtype=np.float32),
        distances2.astype(np.float32),
    )
