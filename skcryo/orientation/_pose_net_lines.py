"""How far images disagree along the common lines that their poses predict (paper, section 3)."""

import numpy as np
import scipy.fft

from ..fourier import polar_lines, shift_phases

__all__ = ["LEAST_SINE", "common_line_loss", "line_bank", "sample_pairs"]

LEAST_SINE = 0.15  # of the angle between views: nearly parallel planes have no definite common line
_CHUNK = 500


def line_bank(images, filters, shifts, n_theta, max_ring):
    """Polar Fourier lines of images, filtered and centred.

    Parameters
    ----------
    images : FourierImages of n images
    filters : callable
        ``filters(part)`` gives factors (n or 1, n_points) for some of the images, those of a Wiener filter for example.
    shifts : ndarray of shape (n, 2)
        Pixels; undone.
    n_theta : int
        Rays on the full circle.
    max_ring : int
        Points on each, one cycle per box apart.

    Returns
    -------
    ndarray of shape (n, n_theta, max_ring), complex64
    """
    L, n_points = images.L, images.n_points(max_ring)
    column, row = images.points[:n_points].astype(int).T
    phase_y, phase_x = shift_phases(np.full((1, 2), L // 2), L)
    from_centre = phase_y[0, row] * phase_x[0, column]
    out = np.empty((len(images), n_theta, max_ring), dtype=np.complex64)
    for start in range(0, len(images), _CHUNK):
        part = images.take(slice(start, start + _CHUNK))
        values = part.values[:, :n_points] * filters(part)[:, :n_points]
        values = values * part.centred_phases(shifts[start : start + _CHUNK], n_points) * from_centre
        half = np.zeros((len(part), L, L // 2 + 1), dtype=np.complex64)
        edge = column == 0
        half[:, -row[edge] % L, 0] = values[:, edge].conj()
        half[:, row % L, column] = values
        out[start : start + _CHUNK] = polar_lines(scipy.fft.irfft2(half, s=(L, L)), n_theta, max_ring)
    return out


def sample_pairs(n, n_partners, random):
    """Each image with some others drawn by lot; (2, n * n_partners) int."""
    first = np.repeat(np.arange(n), n_partners)
    second = random.integers(max(n - 1, 1), size=len(first))
    return np.stack([first, second + (second >= first)]) if n > 1 else np.zeros((2, 0), dtype=int)


def common_line_loss(bank, rotations, pairs):
    """Equation 18, averaged over pairs, over what it is for lines that have nothing in common.

    Parameters
    ----------
    bank : ndarray of shape (n, n_theta, n_rings), complex64
        Rays at ``2 pi j / n_theta``.
    rotations : ndarray of shape (n, 3, 3)
    pairs : ndarray of shape (2, m)
        Indices of images; those of views less than 9 degrees apart, or from opposite, do not count.

    Returns
    -------
    float
        ``sum |F_i - F_j|^2 / sum (|F_i|^2 + |F_j|^2)`` along common lines, rays between two interpolated: 0 if they are
        the same, 1 if they have nothing in common. 1 without any pair.
    """
    i, j = pairs
    line = np.cross(rotations[i, :, 2], rotations[j, :, 2])
    definite = np.linalg.norm(line, axis=1) > LEAST_SINE
    i, j, line = i[definite], j[definite], line[definite]
    first, second = (_rays(bank, rotations, images, line) for images in (i, j))
    together = np.square(np.abs(first)).sum(dtype=np.float64) + np.square(np.abs(second)).sum(dtype=np.float64)
    if not together > 0:
        return 1.0
    return float(np.square(np.abs(first - second)).sum(dtype=np.float64) / together)


def _rays(bank, rotations, images, line):
    x, y = np.einsum("pak,pa->kp", rotations[images, :, :2], line)
    n_theta = bank.shape[1]
    place = np.mod(np.arctan2(y, x) * (n_theta / (2 * np.pi)), n_theta)
    low = np.floor(place).astype(int)
    share = (place - low)[:, None].astype(np.float32)
    return bank[images, low % n_theta] * (1 - share) + bank[images, (low + 1) % n_theta] * share
