"""Projections of a volume, ``I(x, y) = integral V(R (x, y, z)^T) dz``, and their adjoint.

By the Fourier slice theorem the transform of a projection is a central slice of the volume's transform. The
volume is padded to twice its box, so that it may fill its box to the edges, and its transform is interpolated
with a Kaiser-Bessel kernel (see ``_gridding``). Lengths are in pixels: the projection of ones along z is L.
"""

import numpy as np
import scipy.fft

from ._ext._projection import gather, scatter
from ._gridding import KERNEL_WIDTH, OVERSAMPLING, deconvolution, kernel_table
from .ctf import check_pixel_size, evaluate_ctf, validate_ctf
from .fourier import check_images, check_shifts, iter_blocks, shift_phases
from .rotations import check_rotations

__all__ = ["VolumeProjector", "backproject", "central_slices", "project"]

_MARGIN = KERNEL_WIDTH // 2


class _Grid:
    """The oversampled half transform of a volume with margins, and the adjoint of making it."""

    def __init__(self, L):
        self.L = L
        self.M = M = OVERSAMPLING * L
        self.n_half = L + _MARGIN  # index of frequency zero along z and y
        index = np.arange(-self.n_half, self.n_half + 1)
        self._wrapped = index % M
        self._opposed = -index % M
        self.shape = (len(index), len(index), L + 1 + 2 * _MARGIN)
        factors = deconvolution(L)
        self._correction = [factors.reshape(shape) for shape in ((-1, 1, 1), (-1, 1), (-1,))]
        self._place = (np.arange(L) - L // 2) % M

    def from_volume(self, volume):
        L, M, m = self.L, self.M, _MARGIN
        padded = np.zeros((M, M, M), dtype=np.float32)
        corrected = np.asarray(volume, dtype=np.float32)
        for factors in self._correction:
            corrected = corrected * factors.astype(np.float32)
        padded[np.ix_(self._place, self._place, self._place)] = corrected
        half = scipy.fft.rfftn(padded)
        del padded
        grid = np.empty(self.shape, dtype=np.complex64)
        grid[:, :, m : m + L + 1] = half[np.ix_(self._wrapped, self._wrapped)]
        opposed = np.ix_(self._opposed, self._opposed)
        for i in range(1, m + 1):
            # F(-k) = conj F(k): beyond zero, and beyond the Nyquist frequency, where F repeats itself
            grid[:, :, m - i] = half[:, :, i][opposed].conj()
            grid[:, :, m + L + i] = half[:, :, L - i][opposed].conj()
        return grid

    def to_volume(self, grid):
        L, M, m = self.L, self.M, _MARGIN
        half = np.zeros((M, M, L + 1), dtype=grid.dtype)
        half += _fold(grid[:, :, m : m + L + 1], self._wrapped, M)
        for i in range(1, m + 1):
            half[:, :, i] += _fold(grid[:, :, m - i, None].conj(), self._opposed, M)[:, :, 0]
            half[:, :, L - i] += _fold(grid[:, :, m + L + i, None].conj(), self._opposed, M)[:, :, 0]
        # The real part of the sum over the half spectrum; irfftn counts the inner columns twice.
        half[:, :, 1:L] *= 0.5
        padded = scipy.fft.irfftn(half, s=(M, M, M), norm="forward")
        volume = padded[np.ix_(self._place, self._place, self._place)]
        for factors in self._correction:
            volume = volume * factors
        return volume.astype(np.float32)


def _fold(grid, index, M):
    """Adjoint of ``half[np.ix_(index, index)]``."""
    along_z = np.zeros((M, *grid.shape[1:]), dtype=grid.dtype)
    np.add.at(along_z, index, grid)
    out = np.zeros((M, M, grid.shape[2]), dtype=grid.dtype)
    np.add.at(out.swapaxes(0, 1), index, along_z.swapaxes(0, 1))
    return out


def _half_points(L, max_frequency):
    """Points of the half spectrum inside the disc: positions in grid steps, and flat indices."""
    kx, ky = np.meshgrid(np.arange(L // 2 + 1), scipy.fft.fftfreq(L, 1 / L), indexing="xy")
    inside = np.hypot(kx, ky) <= max_frequency * L * (1 + 1e-12)
    points = OVERSAMPLING * np.stack([kx[inside], ky[inside]], axis=1).astype(np.float64)
    return np.ascontiguousarray(points), np.flatnonzero(inside).astype(np.int64)


def _check_volume(volume):
    volume = np.asarray(volume)
    if volume.ndim != 3 or len(set(volume.shape)) != 1:
        raise ValueError(f"volume must have shape (L, L, L), got {volume.shape}")
    return volume


def _check_poses(rotations, shifts, ctf, pixel_size, n=None):
    rotations = check_rotations(rotations, n)
    n = len(rotations)
    shifts = np.zeros((n, 2)) if shifts is None else check_shifts(shifts, n)
    if ctf is not None:
        ctf = validate_ctf(ctf, n)
    if ctf is not None or pixel_size is not None:
        pixel_size = check_pixel_size(pixel_size)
    return rotations, shifts, ctf, pixel_size


def _check_max_frequency(max_frequency):
    if not 0 < max_frequency <= 1:
        raise ValueError(f"max_frequency must lie in (0, 1] cycles per pixel, got {max_frequency}")
    return float(max_frequency)


def _pairs(array, n):
    """A complex64 array as pairs of float32, one row per image."""
    return array.reshape(n, -1).view(np.float32)


class VolumeProjector:
    """A volume made ready for projection, for many calls with the same volume.

    Parameters
    ----------
    volume : array-like of shape (L, L, L)
    max_frequency : float, default=0.5
        Cycles per pixel beyond which the projections have no content.

    Examples
    --------
    >>> import numpy as np
    >>> from skcryo.projection import VolumeProjector
    >>> projector = VolumeProjector(np.ones((8, 8, 8)))
    >>> projector.project(np.eye(3)[None]).shape
    (1, 8, 8)
    """

    def __init__(self, volume, *, max_frequency=0.5):
        volume = _check_volume(volume)
        self.L = volume.shape[0]
        self.max_frequency = _check_max_frequency(max_frequency)
        self._layout = _Grid(self.L)
        # The oversampled transform as the kernels of `_ext` take it: frequency zero is at `n_half` along z and
        # y and at `margin` along x, complex numbers are pairs.
        self.grid = self._layout.from_volume(volume).view(np.float32)
        self.n_half, self.margin = self._layout.n_half, _MARGIN
        self._points, self._targets = _half_points(self.L, self.max_frequency)

    def half_spectra(self, rotations):
        """Central slices about the centre of the volume, in the layout of ``rfft2``.

        Parameters
        ----------
        rotations : array-like of shape (n, 3, 3)

        Returns
        -------
        spectra : ndarray of shape (n, L, L // 2 + 1), complex64
        """
        out = np.zeros((len(rotations), self.L, self.L // 2 + 1), dtype=np.complex64)
        gather(
            self.grid,
            np.ascontiguousarray(rotations, dtype=np.float64),
            self._points,
            self._targets,
            kernel_table(),
            self.margin,
            self.n_half,
            _pairs(out, len(rotations)),
        )
        return out

    def slices(self, rotations, points):
        """Central slices about the centre of the volume, at points of choice.

        Parameters
        ----------
        rotations : array-like of shape (n, 3, 3)
        points : array-like of shape (n_points, 2)
            (kx, ky) in cycles per box, not necessarily whole.

        Returns
        -------
        slices : ndarray of shape (n, n_points), complex64
            As values of ``fft2`` of the projections, with phases counted from their centres.
        """
        points = OVERSAMPLING * np.ascontiguousarray(points, dtype=np.float64)
        out = np.empty((len(rotations), len(points)), dtype=np.complex64)
        gather(
            self.grid,
            np.ascontiguousarray(rotations, dtype=np.float64),
            points,
            np.arange(len(points)),
            kernel_table(),
            self.margin,
            self.n_half,
            _pairs(out, len(rotations)),
        )
        return out

    def project(self, rotations, *, shifts=None, ctf=None, pixel_size=1.0):
        """Projections.

        Parameters
        ----------
        rotations, shifts, ctf, pixel_size : as in :func:`project`

        Returns
        -------
        images : ndarray of shape (n, L, L), float32
        """
        rotations, shifts, ctf, pixel_size = _check_poses(rotations, shifts, ctf, pixel_size)
        L = self.L
        out = np.empty((len(rotations), L, L), dtype=np.float32)
        for block in iter_blocks(len(rotations), L):
            spectra = self.half_spectra(rotations[block])
            # The phases also move the centre from pixel 0, where the transform has it, to L // 2.
            phase_y, phase_x = shift_phases(shifts[block] + L // 2, L)
            spectra *= phase_y[:, :, None]
            spectra *= phase_x[:, None, :]
            if ctf is not None:
                spectra *= evaluate_ctf(ctf[block], L, pixel_size, half=True)
            out[block] = scipy.fft.irfft2(spectra, s=(L, L), overwrite_x=True)
        return out


def project(volume, rotations, *, shifts=None, ctf=None, pixel_size=1.0, max_frequency=0.5):
    """Images of a volume: projected, then filtered by the CTF, then shifted.

    The images are periodic: where the corners of a volume that fills its box stick out of the image, they
    come in again at the opposite side.

    Parameters
    ----------
    volume : array-like of shape (L, L, L)
        ``V[z, y, x]``; it may fill the box.
    rotations : array-like of shape (n, 3, 3)
    shifts : array-like of shape (n, 2), default=None
        (x, y) in pixels: where the particle's centre lies relative to the image's.
    ctf : structured array of shape (n,), default=None
        See :data:`skcryo.ctf.CTF_DTYPE`.
    pixel_size : float, default=1.0
        Angstrom; matters for the CTF only.
    max_frequency : float, default=0.5
        Radius in cycles per pixel beyond which the images have no content. The default is the largest ball
        inside the volume's band; a smaller one is a low-pass filter and faster.

    Returns
    -------
    ndarray of shape (n, L, L), float32
        In units of the volume times pixels; about 1e-5 of relative error.

    Raises
    ------
    ValueError
        If shapes do not fit or a matrix is no rotation.

    Examples
    --------
    >>> import numpy as np
    >>> from skcryo.projection import project
    >>> from skcryo.rotations import random_rotations
    >>> volume = np.zeros((16, 16, 16))
    >>> volume[8, 8, 8] = 1
    >>> images = project(volume, random_rotations(3, random_state=0))
    >>> images.shape, images.sum(axis=(1, 2)).round(4).tolist()
    ((3, 16, 16), [1.0, 1.0, 1.0])
    """
    volume = _check_volume(volume)
    _check_poses(rotations, shifts, ctf, pixel_size)  # before the expensive part
    projector = VolumeProjector(volume, max_frequency=max_frequency)
    return projector.project(rotations, shifts=shifts, ctf=ctf, pixel_size=pixel_size)


def backproject(images, rotations, *, shifts=None, ctf=None, pixel_size=1.0, max_frequency=0.5):
    """Adjoint of :func:`project`: ``<project(V), I> = <V, backproject(I)>``.

    Not a reconstruction, but what every reconstruction is made of.

    Parameters
    ----------
    images : array-like of shape (n, L, L)
    rotations, shifts, ctf, pixel_size, max_frequency
        As :func:`project`.

    Returns
    -------
    ndarray of shape (L, L, L), float32

    Examples
    --------
    >>> import numpy as np
    >>> from skcryo.projection import backproject, project
    >>> from skcryo.rotations import random_rotations
    >>> rng, rotations = np.random.default_rng(0), random_rotations(4, random_state=0)
    >>> volume, images = rng.standard_normal((8, 8, 8)), rng.standard_normal((4, 8, 8))
    >>> left = (project(volume, rotations) * images).sum()
    >>> bool(np.isclose(left, (volume * backproject(images, rotations)).sum(), rtol=1e-4))
    True
    """
    images = check_images(images)
    rotations, shifts, ctf, pixel_size = _check_poses(rotations, shifts, ctf, pixel_size, len(images))
    L = images.shape[-1]
    layout = _Grid(L)
    points, targets = _half_points(L, _check_max_frequency(max_frequency))
    total = np.zeros(layout.shape, dtype=np.complex64)
    for block in iter_blocks(len(images), L):
        spectra = scipy.fft.rfft2(np.asarray(images[block], dtype=np.float32))
        # The transpose of irfft2: 1 / L^2, and every inner column stands for two.
        spectra[:, :, 1 : (L + 1) // 2] *= 2
        spectra *= 1 / L**2
        phase_y, phase_x = shift_phases(shifts[block] + L // 2, L)
        spectra *= phase_y.conj()[:, :, None]
        spectra *= phase_x.conj()[:, None, :]
        if ctf is not None:
            spectra *= evaluate_ctf(ctf[block], L, pixel_size, half=True)
        # A sum of sums: single precision does for any number of images.
        grid = np.zeros_like(total)
        scatter(
            grid.view(np.float32),
            np.ascontiguousarray(rotations[block]),
            points,
            targets,
            kernel_table(),
            _MARGIN,
            layout.n_half,
            _pairs(spectra, len(spectra)),
        )
        total += grid
    return layout.to_volume(total)


def central_slices(volume, rotations, *, max_frequency=0.5):
    """Central slices ``F2[I](kx, ky) = F3[V](kx R[:, 0] + ky R[:, 1])`` of a volume's Fourier transform.

    Parameters
    ----------
    volume : array-like of shape (L, L, L)
    rotations : array-like of shape (n, 3, 3)
    max_frequency : float, default=0.5
        Cycles per pixel; zero beyond.

    Returns
    -------
    ndarray of shape (n, L, L), complex64
        Centred, as :func:`skcryo.fourier.fft2c` of the projections.

    Examples
    --------
    >>> import numpy as np
    >>> from skcryo.projection import central_slices
    >>> slices = central_slices(np.ones((8, 8, 8)), np.eye(3)[None])
    >>> abs(slices[0, 4, 4]).round(2).item()
    512.0
    """
    rotations = check_rotations(rotations)
    projector = VolumeProjector(volume, max_frequency=max_frequency)
    L = projector.L
    out = np.empty((len(rotations), L, L), dtype=np.complex64)
    for block in iter_blocks(len(rotations), L, factor=2):
        half = projector.half_spectra(rotations[block])
        out[block, :, L // 2 :] = scipy.fft.fftshift(half, axes=1)[:, :, : L - L // 2]
        rows = -np.arange(-(L // 2), L - L // 2) % L
        out[block, :, : L // 2] = half[:, rows, L // 2 : 0 : -1].conj()
    return out
