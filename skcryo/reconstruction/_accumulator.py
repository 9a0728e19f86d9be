"""The sums that a volume is made of, and the volume that they make.

Images ``y_i = C_i P_i V + noise`` give the least-squares problem with normal equations
``sum_i P_i^T C_i W C_i P_i V + V / tau^2 = sum_i P_i^T C_i W y_i``, W one over the noise's power. In Fourier space its
right-hand side is the *numerator*, every ``C W y`` put where its frequency lies in three dimensions, and its left-hand
side the *denominator*, every ``C W C``. Both are summed on the grid of :mod:`skcryo.projection`: twice oversampled,
with a Kaiser-Bessel kernel.
"""

import functools

import joblib
import numpy as np
import scipy.fft

from .._ext._insertion import divide, insert, shell_sums
from .._gridding import OVERSAMPLING, deconvolution, kernel, kernel_table, kernel_transform
from ..ctf import evaluate_ctf
from ..fourier import half_plane, shell_index, shift_phases
from ..projection import _MARGIN

__all__ = ["FourierAccumulator", "half_plane", "slice_data", "spherical_mask"]

# From the denominator on the grid to samples per Fourier voxel (a cube of one cycle per box).
_NORM = float(kernel_transform(0.0)) ** 3 / OVERSAMPLING**3
_STEPS = np.linspace(-3, 3, 6001)
# Variance of numerator / denominator at a grid point, times samples per voxel, for noise of variance one.
_VARIANCE = (OVERSAMPLING * (kernel(_STEPS) ** 2).mean() * 6 / float(kernel_transform(0.0)) ** 2) ** 3


def slice_data(images, *, shifts=None, ctf=None, pixel_size=None, noise=None, sample_weight=None, max_frequency=0.5):
    """What images add to the sums of a :class:`FourierAccumulator`.

    Parameters
    ----------
    images : ndarray of shape (n, L, L)
    shifts : ndarray of shape (n, 2), default=None
        (x, y) in pixels: where the particle's centre lies relative to the image's. Undone here.
    ctf : structured array of shape (n,), default=None
        See :data:`skcryo.ctf.CTF_DTYPE`; needs `pixel_size` in Angstrom.
    pixel_size : float, default=None
    noise : ndarray of shape (L // 2 + 1,), default=None
        The noise's power by ring as :func:`skcryo.preprocessing.noise_spectrum` has it, in units of the variance of a
        pixel. None: ones, for noise of one power whatever it is.
    sample_weight : ndarray of shape (n,), default=None
    max_frequency : float, default=0.5
        Cycles per pixel.

    Returns
    -------
    values : ndarray of shape (n, n_points), complex64
        ``CTF * spectrum / noise * weight`` at the frequencies of :func:`half_plane`.
    weights : ndarray of shape (n, n_points), float32
        ``CTF^2 / noise * weight``.

    Notes
    -----
    Spectra are ``sum_x I(x) exp(-2 pi i k x)`` about the centre, so the variance of their noise is ``noise L^2``, and
    that is what they are divided by; with ``noise=None`` by 1.

    Examples
    --------
    >>> import numpy as np
    >>> from skcryo.reconstruction import slice_data
    >>> images = np.zeros((3, 5, 5))
    >>> images[:, 2, 3] = 1
    >>> values, weights = slice_data(images, shifts=np.tile([1.0, 0.0], (3, 1)))
    >>> bool(np.allclose(values, 1, atol=1e-6)), weights.shape
    (True, (3, 11))
    """
    n, L = len(images), images.shape[-1]
    points, index = half_plane(L, max_frequency)
    spectra = scipy.fft.rfft2(np.asarray(images, dtype=np.float32))
    # The phases also move the centre from L // 2 to pixel 0.
    phase_y, phase_x = shift_phases((np.zeros((n, 2)) if shifts is None else np.asarray(shifts)) + L // 2, L)
    spectra *= phase_y.conj()[:, :, None]
    spectra *= phase_x.conj()[:, None, :]
    values = spectra.reshape(n, -1)[:, index]
    scale = np.ones(len(index))
    if noise is not None:
        rings = np.minimum(np.rint(np.hypot(*points.T)).astype(np.int64), L // 2)
        scale /= L**2 * np.asarray(noise, dtype=np.float64)[rings]
    scale = scale.astype(np.float32)
    weights = np.repeat(scale[None], n, axis=0)
    if sample_weight is not None:
        weights *= np.asarray(sample_weight, dtype=np.float32)[:, None]
    if ctf is None:
        values *= weights
        return values, weights
    factor = evaluate_ctf(ctf, L, pixel_size, half=True).reshape(n, -1)[:, index]
    weights *= factor
    values *= weights
    weights *= factor
    return values, weights


@functools.lru_cache(maxsize=8)
def spherical_mask(L, radius, edge_width=None):
    """Soft ball about the centre of a volume.

    Parameters
    ----------
    L : int
    radius : float
        Pixels; 1 within.
    edge_width : float, default=None
        Over which it falls to 0, half a cosine, beyond `radius`. None: a tenth of the radius, at least 2 pixels.

    Returns
    -------
    ndarray of shape (L, L, L), float32
        Read-only.

    Examples
    --------
    >>> from skcryo.reconstruction import spherical_mask
    >>> spherical_mask(9, 2.0, 2.0)[4, 4].round(2).tolist()
    [0.0, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 0.5, 0.0]
    """
    edge_width = max(2.0, radius / 10) if edge_width is None else edge_width
    place = (np.arange(L) - L // 2).astype(np.float32) ** 2
    distance = np.sqrt(place[:, None, None] + place[:, None] + place)
    mask = 0.5 + 0.5 * np.cos(np.pi * np.clip((distance - radius) / max(edge_width, 1e-6), 0, 1), dtype=np.float32)
    mask.setflags(write=False)
    return mask


def _half_spectrum(grid, L):
    """The sums without margins, opposites included, as ``irfftn`` takes them; (2 L, 2 L, L + 1)."""
    m = _MARGIN

    def wrapped(part):
        for axis in (0, 1):
            part = part.swapaxes(0, axis)
            if L > m:
                out = np.concatenate([part[m + L : m + 2 * L], part[m : m + L]])
                out[L : L + m + 1] += part[m + 2 * L :]
                out[L - m : L] += part[:m]
            else:  # margins that go round a small box more than once
                out = np.zeros((2 * L, *part.shape[1:]), part.dtype)
                np.add.at(out, np.arange(-L - m, L + m + 1) % (2 * L), part)
            part = out.swapaxes(0, axis)
        return part

    half = wrapped(grid[:, :, m : m + L + 1])
    for i in range(1, m + 1):
        # F(-k) = conj F(k), and beyond Nyquist F repeats itself
        if i <= L:
            half[:, :, i] += wrapped(grid[::-1, ::-1, m - i]).conj()
            half[:, :, L - i] += wrapped(grid[::-1, ::-1, m + L + i]).conj()
    # irfftn counts the inner columns twice.
    half[:, :, 0] *= 2
    half[:, :, L] *= 2
    return half


class FourierAccumulator:
    """Numerator and denominator of a volume, to which slices are added and from which the volume is solved.

    Parameters
    ----------
    L : int
        Box size in pixels.

    Attributes
    ----------
    numerator : ndarray of shape (2 L + 7, 2 L + 7, L + 7), complex64
    denominator : ndarray of shape (2 L + 7, 2 L + 7, L + 7), float32
        The sums, for ``kx >= 0`` with a margin of three samples on every side.

    Notes
    -----
    Sums are in single precision, each sample in the order in which the images come. Results are the same to the last
    bit however images are cut into calls of :meth:`add` and whatever the number of threads.

    "Samples per voxel" is the unit of what :meth:`solve` takes as prior and of what :meth:`shell_density` returns: the
    sum of weights of the image frequencies (their opposites included) that fall into one voxel of the volume's
    Fourier transform, a cube of one cycle per box.

    Examples
    --------
    >>> import numpy as np
    >>> from skcryo.metrics import fsc
    >>> from skcryo.projection import project
    >>> from skcryo.reconstruction import FourierAccumulator, half_plane, slice_data
    >>> from skcryo.rotations import random_rotations
    >>> x = np.arange(16) - 8
    >>> volume = np.exp(-((x[:, None, None] - 1) ** 2 + x[:, None] ** 2 + (x / 2) ** 2) / 8)
    >>> rotations = random_rotations(200, random_state=0)
    >>> accumulator = FourierAccumulator(16)
    >>> accumulator.add(*slice_data(project(volume, rotations)), rotations, half_plane(16)[0])
    >>> bool(fsc(accumulator.solve(1e-3), volume)[:4].min() > 0.98)
    True
    """

    def __init__(self, L):
        L = int(L)
        if L < 1:
            raise ValueError(f"L must be at least 1 pixel, got {L}")
        n, n_x = 2 * (L + _MARGIN) + 1, L + 1 + 2 * _MARGIN
        self.L = L
        self.numerator = np.zeros((n, n, n_x), dtype=np.complex64)
        self.denominator = np.zeros((n, n, n_x), dtype=np.float32)

    def add(self, values, weights, rotations, points, *, n_jobs=1):
        """Add slices.

        Parameters
        ----------
        values : array-like of shape (n, n_points), complex64
            CTF times spectrum (times what weighs images and rings), the origin at the particle's centre: see
            :func:`slice_data`.
        weights : array-like of shape (n, n_points), float32
            CTF squared (times the same weights).
        rotations : array-like of shape (n, 3, 3)
        points : array-like of shape (n_points, 2)
            (kx, ky) in cycles per box. Each stands for itself and its opposite, so a pair is given once:
            see :func:`half_plane`. The origin, its own opposite, is taken at half its weight.
        n_jobs : int, default=1
            Threads; the sums do not depend on it.

        Returns
        -------
        None

        Raises
        ------
        ValueError
            If the shapes do not fit.
        """
        rotations = np.ascontiguousarray(rotations, dtype=np.float64)
        points = np.asarray(points, dtype=np.float64)
        values = np.ascontiguousarray(values, dtype=np.complex64)
        weights = np.ascontiguousarray(weights, dtype=np.float32)
        n = len(rotations)
        if rotations.shape != (n, 3, 3):
            raise ValueError(f"rotations must have shape (n, 3, 3), got {rotations.shape}")
        if points.ndim != 2 or points.shape[1] != 2:
            raise ValueError(f"points must have shape (n_points, 2), got {points.shape}")
        for name, array in (("values", values), ("weights", weights)):
            if array.shape != (n, len(points)):
                raise ValueError(
                    f"{name} has shape {array.shape}; one row for each of the {n} rotations and one column for each "
                    f"of the {len(points)} points is wanted"
                )
        origin = np.flatnonzero((points == 0).all(axis=1))
        if len(origin):
            values, weights = values.copy(), weights.copy()
            values[:, origin] *= 0.5
            weights[:, origin] *= 0.5
        n_half = self.L + _MARGIN
        arrays = (
            self.numerator.view(np.float32),
            self.denominator,
            rotations,
            np.ascontiguousarray(OVERSAMPLING * points),
            kernel_table(),
            _MARGIN,
            n_half,
            values.view(np.float32),
            weights,
        )
        n_planes = len(self.denominator)
        n_threads = min(joblib.effective_n_jobs(n_jobs), n_planes)
        if n_threads == 1:
            insert(*arrays, 0, n_planes)
            return
        # More slabs than threads, because a slab near the middle may hold more.
        edges = np.linspace(0, n_planes, 1 + min(4 * n_threads, n_planes)).astype(int)
        joblib.Parallel(n_jobs=n_threads, require="sharedmem")(
            joblib.delayed(insert)(*arrays, start, stop) for start, stop in zip(edges[:-1], edges[1:])
        )

    def scale(self, factor):
        """Multiply both sums in place, to forget what is old.

        Parameters
        ----------
        factor : float
        """
        self.numerator *= np.float32(factor)
        self.denominator *= np.float32(factor)

    def merge(self, other):
        """Add another accumulator's sums to this one's.

        Parameters
        ----------
        other : FourierAccumulator
            Of the same box.
        """
        if other.L != self.L:
            raise ValueError(f"boxes differ: {other.L} pixels cannot be merged into {self.L}")
        self.numerator += other.numerator
        self.denominator += other.denominator

    def copy(self):
        """Return an independent copy.

        Returns
        -------
        FourierAccumulator
        """
        new = object.__new__(type(self))
        new.L, new.numerator, new.denominator = self.L, self.numerator.copy(), self.denominator.copy()
        return new

    # ------------------------------------------------------------------------------------------- by shell
    def _shell_sums(self):
        out = np.zeros((self.L // 2 + 1, 4))
        shell_sums(
            self.numerator.view(np.float32), self.denominator, OVERSAMPLING, _MARGIN, self.L + _MARGIN, out
        )
        return out

    def shell_density(self):
        """Mean samples per voxel in each shell.

        Returns
        -------
        ndarray of shape (L // 2 + 1,), float64
        """
        sums = self._shell_sums()
        return sums[:, 1] / (sums[:, 0] * _NORM)

    def signal_power(self, noise=1.0):
        """Power of the volume's transform in each shell, from the sums alone.

        The numerator's power beyond what noise of the given power puts there, over the squared denominator: a
        weighted mean of ``|numerator / denominator|^2`` minus its noise, in which samples without data do not count.

        Parameters
        ----------
        noise : float or array-like of shape (L // 2 + 1,), default=1.0
            Variance of a spectrum's noise in the sums' units: 1 if the weights hold 1 / noise.

        Returns
        -------
        ndarray of shape (L // 2 + 1,), float64
            Not negative; 0 in shells without signal or data.
        """
        sums = self._shell_sums()
        noise = np.broadcast_to(np.asarray(noise, dtype=np.float64), len(sums))
        excess = sums[:, 3] - noise * _VARIANCE * _NORM * sums[:, 1]
        return np.maximum(np.divide(excess, sums[:, 2], out=np.zeros(len(sums)), where=sums[:, 2] > 0), 0.0)

    # --------------------------------------------------------------------------------------------- volume
    def _prior(self, prior):
        prior = np.asarray(prior, dtype=np.float64)
        if prior.ndim == 0:
            prior = np.full(self.L // 2 + 1, prior)
        if prior.ndim != 1 or len(prior) < 1:
            raise ValueError(f"prior must be a number or have shape (n_shells,), got {prior.shape}")
        bad = np.flatnonzero(~(prior >= 0))
        if len(bad):
            raise ValueError(f"prior[{bad[0]}] is {prior[bad[0]]}; noise over signal power, not negative, is wanted")
        return np.minimum(prior, 1e30)

    def solve(self, prior, *, mask_radius=None, max_frequency=0.5, n_iter=0):
        """The volume: numerator over denominator plus prior, and the interpolation kernel undone.

        Parameters
        ----------
        prior : float or array-like of shape (n_shells,)
            Noise over signal power in each Fourier shell (0, 1, ... cycles per box; the last value goes on beyond), in
            the weights' units: one over the signal's power if they hold one over the noise's. A Wiener filter;
            between shells by linear interpolation. Infinite: the shell is left out.
        mask_radius : float, default=None
            Radius in pixels of a soft ball (:func:`spherical_mask`) that the volume is multiplied by.
        max_frequency : float, default=0.5
            Cycles per pixel beyond which the volume has no content.
        n_iter : int, default=0
            Iterations of conjugate gradients on the normal equations, from and preconditioned by the division: see
            Notes.

        Returns
        -------
        volume : ndarray of shape (L, L, L), float32

        Notes
        -----
        The division alone treats frequencies as independent beyond the kernel's reach of three cycles per box. It is
        a local mean, biased where coverage changes within that reach: near the origin, and between few views. With
        ``n_iter`` the least-squares problem itself is solved, its normal operator being a convolution whose kernel is
        the transform of the denominator; this kernel is exact up to distances of 0.7 L and aliased beyond.

        References
        ----------
        Penczek, Renka, Schomberg, "Gridding-based direct Fourier inversion of the three-dimensional ray transform",
        J. Opt. Soc. Am. A 21 (2004), for division by a density; Wajer, Pruessmann, "Major speedup of reconstruction
        for sensitivity encoding with arbitrary trajectories", Proc. ISMRM 9 (2001), for the convolution.
        """
        prior = self._prior(prior)
        volume = self._divide(prior, max_frequency)
        if n_iter:
            volume = self._refine(volume, prior, max_frequency, n_iter)
        if mask_radius is not None:
            volume *= spherical_mask(self.L, float(mask_radius))
        return volume

    def _divide(self, prior, max_frequency):
        L = self.L
        M = OVERSAMPLING * L
        radius = min(OVERSAMPLING * max_frequency * L, float(L))
        ratio = np.empty((M, M, L + 1), dtype=np.complex64)
        divide(
            self.numerator.view(np.float32),
            self.denominator,
            np.ascontiguousarray(prior * _NORM),
            OVERSAMPLING,
            radius,
            _MARGIN,
            L + _MARGIN,
            ratio.view(np.float32),
        )
        # Frequencies run from -L: that is a factor (-1)^position, and each axis is transformed once all that is zero
        # before and all that is not wanted after it is cut away.
        place = (np.arange(L) - L // 2) % M
        reach = int(np.ceil(radius))
        low, high = L - reach, min(L + reach + 1, M)
        part = scipy.fft.ifft(np.ascontiguousarray(ratio[:, low:high, : reach + 1]), axis=0, overwrite_x=True)[place]
        padded = np.zeros((L, M, part.shape[2]), dtype=np.complex64)
        padded[:, low:high] = part
        part = scipy.fft.ifft(padded, axis=1, overwrite_x=True)[:, place]
        volume = scipy.fft.irfft(part, n=M, axis=2)[:, :, place]
        factors = (deconvolution(L) * float(kernel_transform(0.0))).astype(np.float32)
        signed = factors * np.where(place % 2, np.float32(-1), np.float32(1))
        volume *= signed[:, None, None]
        volume *= signed[:, None]
        volume *= factors
        return volume

    def normal_equations(self, prior, *, max_frequency=0.5):
        """Normal equations of the regularised least-squares problem, as a function and a right-hand side.

        Parameters
        ----------
        prior, max_frequency : as in :meth:`solve`

        Returns
        -------
        operator : callable
            From a volume of shape (L, L, L) to one: ``sum_i P_i^T C_i W C_i P_i V + prior V``.
        right : ndarray of shape (L, L, L), float32
            ``sum_i P_i^T C_i W y_i``.
        precondition : callable
            Approximate inverse of `operator`: symmetric and positive.
        """
        L = self.L
        M = OVERSAMPLING * L
        prior = self._prior(prior)
        place = (np.arange(L) - L // 2) % M
        right = scipy.fft.irfftn(_half_spectrum(self.numerator, L), s=(M, M, M), norm="forward", overwrite_x=True)
        right = right[np.ix_(place, place, place)]
        factors = deconvolution(L).astype(np.float32)
        for shape in ((-1, 1, 1), (-1, 1), (-1,)):
            right *= factors.reshape(shape)
        half = _half_spectrum(self.denominator, L)
        response = scipy.fft.irfftn(half, s=(M, M, M), norm="forward")
        distance = np.minimum(np.arange(M), M - np.arange(M))
        factors = (1 / kernel_transform(np.minimum(distance, 0.99 * L) / M)).astype(np.float32)
        response *= factors[:, None, None]
        response *= factors[:, None]
        response *= factors
        response[L] = response[:, L] = response[:, :, L] = 0  # a distance that two voxels cannot have
        multiplier = scipy.fft.rfftn(response, overwrite_x=True).real
        k = np.minimum(np.arange(M), M - np.arange(M)).astype(np.float64) ** 2
        shell = np.sqrt(k[:, None, None] + k[:, None] + k[: L + 1]) / OVERSAMPLING
        strength = np.interp(shell, np.arange(len(prior)), prior)
        # What is left out costs as much as the best data weigh: a higher wall, which no volume in a box can keep to
        # exactly, would only hinder.
        # In the corners beyond all data, where the last prior goes on, it is at least what data weigh before them.
        corner = shell > max(max_frequency * L, L // 2) * (1 + 1e-12)
        strength[corner] = np.maximum(prior[-1], self.shell_density()[-1])
        strength[(shell > max_frequency * L * (1 + 1e-12)) & (shell <= L // 2)] = np.inf
        strength = np.minimum(strength, max(float(multiplier.max()) / L**3, np.finfo(np.float32).tiny))
        strength = (L**3 * strength).astype(np.float32)
        smooth = (half * np.float32(L**3 / _NORM)) + strength
        inverse = np.divide(1, smooth, out=np.zeros_like(smooth), where=smooth > 0)
        multiplier += strength

        def apply(volume, factor):
            # Axis by axis, each padded just before it is transformed and cut right after.
            spectrum = scipy.fft.rfft(volume, n=M, axis=2)
            for axis in (1, 0):
                spectrum = scipy.fft.fft(spectrum, n=M, axis=axis, overwrite_x=True)
            spectrum *= factor
            spectrum = scipy.fft.ifft(spectrum, axis=0, overwrite_x=True)[:L]
            spectrum = scipy.fft.ifft(spectrum, axis=1)[:, :L]
            return scipy.fft.irfft(spectrum, n=M, axis=2)[:, :, :L]

        return (lambda v: apply(v, multiplier)), right, (lambda v: apply(v, inverse))

    def _refine(self, volume, prior, max_frequency, n_iter):
        """Preconditioned conjugate gradients."""
        operator, right, precondition = self.normal_equations(prior, max_frequency=max_frequency)
        residual = right - operator(volume)
        z = precondition(residual)
        direction, power = z.copy(), float(np.vdot(residual, z))
        for _ in range(n_iter):
            image = operator(direction)
            curvature = float(np.vdot(direction, image))
            if not curvature > 0 or not power > 0:
                break
            step = np.float32(power / curvature)
            volume = volume + step * direction
            residual = residual - step * image
            z = precondition(residual)
            previous, power = power, float(np.vdot(residual, z))
            direction = z + np.float32(power / previous) * direction
        kept = prior < 1e30
        if max_frequency < 0.5 or not kept.all():
            # Multiples of the preconditioner's range are zero there but for what cutting to the box put back.
            shells = shell_index(2 * self.L, 3, half=True) // 2
            kept = np.append(kept, kept[-1])[np.minimum(shells, len(kept))]
            kept &= shells <= max_frequency * self.L * (1 + 1e-12)
            spectrum = scipy.fft.rfftn(volume, s=(2 * self.L,) * 3) * kept
            volume = scipy.fft.irfftn(spectrum, s=(2 * self.L,) * 3)[: self.L, : self.L, : self.L]
        return volume
