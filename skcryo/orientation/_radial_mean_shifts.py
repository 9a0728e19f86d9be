"""Where particles lie in their images, each image by itself: correlation with the radial mean of all."""

from numbers import Real

import numpy as np
import scipy.fft

from .._validation import iter_finite_chunks, resolve_ctf, resolve_pixel_size
from ..ctf import evaluate_ctf
from ..fourier import shift_phases
from ..particles import as_stack
from ..preprocessing import noise_spectrum, ring_weights
from ..preprocessing._geometry import ring_index

__all__ = ["shifts_from_radial_mean"]


def shifts_from_radial_mean(X, max_shift, *, ctf=None):
    """Find where particles lie, roughly: the place that fits the radial mean of all images best.

    A matched filter: the correlation, in units of the noise and with each image's CTF, of the image with the mean over
    all images and angles as they came. Averaged over particles off centre, that mean holds low frequencies only, and
    with those the place is next to the centre of mass, which is the same point of the particle in all its
    projections. A mean of images centred so is sharper and leads further away from it.

    Parameters
    ----------
    X : ParticleStack or array-like of shape (n_images, L, L)
        Read in chunks, three times.
    max_shift : float
        Largest shift in x and in y, in pixels.
    ctf : structured array of shape (n_images,), default=None
        None takes that of `X`, if any.

    Returns
    -------
    shifts : ndarray of shape (n_images, 2), float64
        (x, y) in pixels.

    See Also
    --------
    shifts_from_common_lines : Ten times more exact, once there are common lines.

    Examples
    --------
    >>> import numpy as np
    >>> from skcryo.datasets import ImagingConditions, make_molecule, make_particles
    >>> from skcryo.orientation import shifts_from_radial_mean
    >>> conditions = ImagingConditions(max_shift=0.1)
    >>> stack, truth = make_particles(make_molecule(32), 50, snr=1, preset=conditions, random_state=0)
    >>> shifts = shifts_from_radial_mean(stack, max_shift=3.2)
    >>> bool(np.corrcoef(shifts.ravel(), truth.shifts.ravel())[0, 1] > 0.7)
    True
    """
    stack = as_stack(X)
    if len(stack) == 0 or stack.shape[1] != stack.shape[2]:
        raise ValueError(f"X has shape {tuple(stack.shape)}; at least one square image is wanted")
    n, L = stack.shape[:2]
    if not isinstance(max_shift, Real) or not 0 <= max_shift < (L - 1) / 2:
        raise ValueError(f"max_shift is {max_shift!r}; 0 or more and less than {(L - 1) / 2:g} pixels are wanted")
    ctf = resolve_ctf(stack, ctf)
    pixel_size = resolve_pixel_size(stack, required_by="a CTF" if ctf is not None else None)
    filters = _MatchedFilter(L, noise_spectrum(stack, radius=0 if L < 16 else None), ctf, pixel_size)
    rings = ring_index((L, L), half=True)
    cross, power = np.zeros(rings.shape), np.zeros(rings.shape)
    for where, chunk in iter_finite_chunks(stack, max_bytes=2**24):
        spectra, seen = filters(chunk, where)
        cross += (seen * spectra.real).sum(axis=0, dtype=np.float64)
        power += len(chunk) if ctf is None else np.square(seen).sum(axis=0, dtype=np.float64)
    # the columns of the half plane but the first stand for their mirror images too
    both = np.where(np.arange(rings.shape[1]) > 0, 2.0, 1.0) * np.ones(rings.shape)
    sums = [np.bincount(rings.ravel(), (both * part).ravel()) for part in (cross, power)]
    template = np.divide(*sums, out=np.zeros_like(sums[0]), where=sums[1] > 1e-6 * sums[1].max())[rings]
    shifts = np.empty((n, 2))
    for where, chunk in iter_finite_chunks(stack, max_bytes=2**24):
        spectra, seen = filters(chunk, where)
        correlation = scipy.fft.irfft2(spectra * (seen * template).astype(np.float32), s=(L, L))
        shifts[where] = _peaks(correlation, max_shift)
    return shifts


class _MatchedFilter:
    """Fourier transforms of images about their centre, noise made white, and their CTFs."""

    def __init__(self, L, spectrum, ctf, pixel_size):
        self.L, self.ctf, self.pixel_size = L, ctf, pixel_size
        phase_y, phase_x = shift_phases(np.full((1, 2), -(L // 2)), L)
        self.factors = np.sqrt(ring_weights(spectrum, L, half=True)) * phase_y[0][:, None] * phase_x[0]
        self.factors[0, 0] = 0

    def __call__(self, images, where):
        spectra = scipy.fft.rfft2(images - images.mean(axis=(1, 2), keepdims=True)) * self.factors
        if self.ctf is None:
            return spectra, np.ones((1, 1, 1), dtype=np.float32)
        return spectra, evaluate_ctf(self.ctf[where], self.L, self.pixel_size, half=True)


def _peaks(correlation, max_shift):
    """(x, y) of the largest value within the square of `max_shift`, zero shift at the first pixel, by parabolas."""
    reach = int(np.floor(max_shift))
    around = np.arange(-reach - 1, reach + 2)
    window = correlation[:, around[:, None], around]
    inner = window[:, 1:-1, 1:-1].reshape(len(window), -1)
    y, x = np.divmod(inner.argmax(axis=1), len(around) - 2)
    rows, y, x = np.arange(len(window)), y + 1, x + 1

    def offset(before, after):
        curvature = before - 2 * window[rows, y, x] + after
        found = np.divide(before - after, 2 * curvature, out=np.zeros(len(rows)), where=curvature < 0)
        return np.clip(found, -0.5, 0.5)

    found = np.stack(
        [
            around[x] + offset(window[rows, y, x - 1], window[rows, y, x + 1]),
            around[y] + offset(window[rows, y - 1, x], window[rows, y + 1, x]),
        ],
        axis=1,
    )
    return np.clip(found, -max_shift, max_shift)
