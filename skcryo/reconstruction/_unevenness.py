"""Whether an image shows all of the particle: the fit of its two halves, cut in any direction."""

import numpy as np
import scipy.fft

__all__ = ["unevenness"]

_DIRECTIONS, _EDGE, _CHUNK = 8, 1.0, 500


def unevenness(images, projector, rotations, shifts, band):
    """Log-likelihood that two halves of the projection gain by a contrast each, in place of one for the whole.

    The cut goes through the particle's centre, in the direction of eight where it gains most. Where part of a
    particle is missing, contrasts differ.

    Parameters
    ----------
    images : FourierImages of n images
    projector : VolumeProjector
    rotations, shifts : ndarray of shape (n, 3, 3) and (n, 2)
    band : float
        Cycles per box.

    Returns
    -------
    ndarray of shape (n,), float64
        Not negative. An even image's is the highest of eight dependent chi-squared variables.
    """
    L, n_points = images.L, images.n_points(band)
    points = images.points[:n_points]
    column, row = points[:, 0].astype(np.int64), points[:, 1].astype(np.int64)
    on_axis = column == 0
    halves = _halves(L)
    gain = np.zeros(len(images))
    for start in range(0, len(images), _CHUNK):
        where = slice(start, min(start + _CHUNK, len(images)))
        part = images.take(where)
        model = projector.slices(rotations[where], points) * part.filters[:, :n_points]
        values = part.values[:, :n_points] * part.centred_phases(shifts[where], n_points)
        pixels = []
        for spectra in (model, values):
            half = np.zeros((len(part), L, L // 2 + 1), dtype=np.complex64)
            half[:, row % L, column] = spectra
            half[:, -row[on_axis] % L, 0] = spectra[:, on_axis].conj()
            pixels.append(scipy.fft.fftshift(scipy.fft.irfft2(half, s=(L, L)), axes=(1, 2)).reshape(len(part), -1))
        # Sums over pixels are those over the half plane, up to this factor.
        scale = L**2 / 2
        cross, power = scale * pixels[0] * pixels[1], scale * np.square(pixels[0])
        all_cross, all_power = (x.sum(axis=1, dtype=np.float64)[:, None] for x in (cross, power))
        one_cross, one_power = (x @ halves for x in (cross, power))
        apart = _ratio(one_cross, one_power) + _ratio(all_cross - one_cross, all_power - one_power)
        gain[where] = np.maximum(apart - _ratio(all_cross, all_power), 0).max(axis=1)
    return gain


def _ratio(cross, power):
    return np.divide(cross**2, power, out=np.zeros(cross.shape), where=power > 1e-12)


def _halves(L):
    """Soft half planes through the centre, (L^2, n_directions)."""
    x = np.arange(L) - L // 2
    angles = np.pi * np.arange(_DIRECTIONS) / _DIRECTIONS
    distance = np.cos(angles) * x[None, :, None] + np.sin(angles) * x[:, None, None]
    return (1 / (1 + np.exp(-distance / _EDGE))).reshape(L * L, -1)
