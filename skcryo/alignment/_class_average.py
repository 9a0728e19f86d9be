"""Averages of aligned images, with the CTF undone by a Wiener filter where there is one."""

import numpy as np
import scipy.fft
from joblib import effective_n_jobs
from scipy.ndimage import convolve1d

from .._ext._align import add_aligned
from ..ctf import evaluate_ctf, rotate_ctf, validate_ctf
from ..fourier import shell_index
from ._polar_grid import disc_mask

__all__ = ["class_averages"]

_CHUNK_BYTES = 32 * 2**20
_SMOOTHING = np.array([1.0, 2.0, 3.0, 2.0, 1.0])  # of ring statistics, over neighbouring rings
_SIGNAL_RANGE = 0.02, 50.0  # of the signal pooled over all classes


def class_averages(
    images,
    labels,
    angles,
    shifts,
    n_classes,
    *,
    ctf=None,
    pixel_size=None,
    sample_weight=None,
    tau="auto",
    mask_radius=None,
    n_jobs=None,
):
    """Average the images of every class after turning and moving them back.

    An image is ``ctf * shift(rotate(average, angle), shift)``, as :class:`PolarMatcher` finds it; it is
    interpolated once, by a cubic spline. Without CTF the result is the weighted mean. With CTFs it is, for
    every Fourier coefficient, ::

        sum_i w_i C_i y_i / (sum_i w_i C_i^2 + tau(ring))

    where the aligned CTFs C_i have their astigmatism turned along. Images are read in chunks, and those of a
    class are added in their order: the result depends on no chunk size and no number of threads.

    Parameters
    ----------
    images : array-like of shape (n, L, L)
        A :class:`~skcryo.particles.ParticleStack` in files is read chunk by chunk.
    labels : array-like of shape (n,), int
        Class of every image, 0 to ``n_classes - 1``; -1 leaves it out.
    angles : array-like of shape (n,)
        Radians.
    shifts : array-like of shape (n, 2) or None
        (x, y), px; None is no shift.
    n_classes : int
    ctf : structured array of shape (n,), default=None
    pixel_size : float, default=None
        Angstrom; needed with `ctf`.
    sample_weight : array-like of shape (n,), default=None
    tau : {"auto"}, float or array-like of shape (n_shells,), default="auto"
        Ratio of noise to signal power, by Fourier shell. "auto" is 0 without CTF, and with CTF is estimated
        from the images themselves: the noise from the difference between two halves of each class, the signal
        from what it leaves of the sum's power, pooled over all classes and scaled for each.
    mask_radius : float, default=None
        px; the averages are zero outside. None is the largest disc inside the box.
    n_jobs : int, default=None
        Threads, over classes.

    Returns
    -------
    averages : ndarray of shape (n_classes, L, L), float32
        Zero for classes without images.
    weights : ndarray of shape (n_classes,), float64
        Sum of the weights of the images in each class; 0 where it is empty.

    Examples
    --------
    >>> import numpy as np
    >>> from skcryo.alignment import class_averages
    >>> from skcryo.fourier import rotate_images
    >>> x = np.arange(32) - 16
    >>> blob = np.exp(-((x - 5) ** 2 + x[:, None] ** 2) / 8)
    >>> angles = np.array([0.5, 2.0, 4.0])
    >>> images = rotate_images(np.stack([blob] * 3), angles)
    >>> averages, weights = class_averages(images, [0, 0, 0], angles, None, 2)
    >>> bool(np.allclose(averages[0], blob, atol=0.02)), weights.tolist()
    (True, [3.0, 0.0])
    """
    if not hasattr(images, "shape"):
        images = np.asarray(images)
    n, L = len(images), images.shape[-1]
    if len(images.shape) != 3 or images.shape[1] != L:
        raise ValueError(f"images must have shape (n, L, L), got {tuple(images.shape)}")
    labels, angles, shifts, weights = _check(n, n_classes, labels, angles, shifts, sample_weight)
    radius = float((L - 1) // 2 if mask_radius is None else mask_radius)
    shells = shell_index(L, half=True)
    if not (isinstance(tau, str) and tau == "auto"):
        tau = _check_tau(tau, shells.max() + 1)
    if ctf is not None:
        ctf = rotate_ctf(validate_ctf(ctf, n), -angles)
        if pixel_size is None:
            raise ValueError("pixel_size is needed with ctf, got None")
    # With CTFs each class is two halves, every other image in each.
    halves = 1 if ctf is None else 2
    sums = np.zeros((n_classes * halves, L, L), dtype=np.float32)
    powers = np.zeros((n_classes * halves, L, L // 2 + 1)) if ctf is not None else None
    parts = labels if ctf is None else _alternate(labels, n_classes)
    size = max(1, _CHUNK_BYTES // (4 * L * L))
    n_threads = effective_n_jobs(n_jobs)
    for start in range(0, n, size):
        chunk = slice(start, min(start + size, n))
        block = np.ascontiguousarray(images[chunk], dtype=np.float32)
        if ctf is not None:
            block = _multiplied(block, ctf[chunk], angles[chunk], pixel_size)
            transfer = evaluate_ctf(ctf[chunk], L, pixel_size, half=True)
            np.square(transfer, out=transfer)
            for part, value, weight in zip(parts[chunk], transfer, weights[chunk]):
                if part >= 0:
                    powers[part] += np.float32(weight) * value
        members = np.argsort(parts[chunk], kind="stable")
        bounds = np.searchsorted(parts[chunk][members], np.arange(n_classes * halves + 1))
        add_aligned(
            block,
            members,
            bounds,
            angles[chunk],
            np.ascontiguousarray(shifts[chunk]),
            weights[chunk].astype(np.float32),
            radius if ctf is None else 2.0 * L,
            sums,
            n_threads,
        )
    total = np.bincount(labels[labels >= 0], weights=weights[labels >= 0], minlength=n_classes)
    if ctf is None:
        if isinstance(tau, str) or not np.any(tau):
            averages = sums / np.where(total > 0, total, 1)[:, None, None]
        else:
            power = total[:, None, None] + tau[shells]
            averages = scipy.fft.irfft2(scipy.fft.rfft2(sums) / np.where(power > 0, power, 1), s=(L, L))
    else:
        averages = _wiener(sums, powers, tau, shells, total)
    averages *= disc_mask(L, radius)
    return averages.astype(np.float32, copy=False), total


def _check(n, n_classes, labels, angles, shifts, sample_weight):
    """The alignment of n images as arrays of the right shapes and types."""
    labels, angles = np.asarray(labels), np.ascontiguousarray(angles, dtype=np.float64)
    shifts = np.zeros((n, 2)) if shifts is None else np.ascontiguousarray(shifts, dtype=np.float64)
    weights = np.ones(n) if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
    for name, value, wanted in (
        ("labels", labels, (n,)),
        ("angles", angles, (n,)),
        ("shifts", shifts, (n, 2)),
        ("sample_weight", weights, (n,)),
    ):
        if value.shape != wanted:
            raise ValueError(f"{name} must have shape {wanted}, got {value.shape}")
    if n and not (-1 <= labels.min() and labels.max() < n_classes):
        raise ValueError(f"labels must lie in [-1, {n_classes}), got {labels.min()} to {labels.max()}")
    if n and not weights.min() >= 0:
        raise ValueError(f"sample_weight must not be negative, got {weights.min():g}")
    return labels.astype(np.intp), angles, shifts, weights


def _check_tau(tau, n_shells):
    """tau for every shell."""
    tau = np.asarray(tau, dtype=np.float64)
    if tau.ndim > 1 or not np.all(tau >= 0):
        raise ValueError(f'tau must be "auto", a non-negative number or one for each shell, got {tau}')
    if tau.ndim == 0:
        return np.full(n_shells, float(tau))
    if len(tau) < 1:
        raise ValueError("tau must hold at least one shell, got none")
    # shells beyond those given, as in the corners of the box, take the last value
    return tau[np.minimum(np.arange(n_shells), len(tau) - 1)]


def _multiplied(images, turned_ctf, angles, pixel_size):
    """Images multiplied by their CTFs, which are given in the frame of the average."""
    L = images.shape[-1]
    transfer = evaluate_ctf(rotate_ctf(turned_ctf, angles), L, pixel_size, half=True)
    return scipy.fft.irfft2(scipy.fft.rfft2(images) * transfer, s=(L, L))


def _alternate(labels, n_classes):
    """Number of the half of its class that each image goes to, images taking turns; -1 stays."""
    order = np.argsort(labels, kind="stable")
    first = np.searchsorted(labels[order], np.arange(n_classes))
    rank = np.empty(len(labels), dtype=np.intp)
    known = labels[order] >= 0
    rank[order[known]] = np.arange(len(labels))[known] - first[labels[order[known]]]
    rank[labels < 0] = 0
    return np.where(labels < 0, -1, 2 * labels + rank % 2)


def _ring_means(values, shells):
    """Mean of each (k, L, L // 2 + 1) array over each shell of its non-negative half; (k, n_shells)."""
    count = np.bincount(shells.ravel())
    return np.stack([np.bincount(shells.ravel(), weights=v.ravel()) for v in values]) / count


def _wiener(sums, powers, tau, shells, total):
    """Averages from sums of C y and C^2 over the two halves of every class."""
    L = sums.shape[-1]
    spectra = scipy.fft.rfft2(sums).reshape(-1, 2, *shells.shape)
    powers = powers.reshape(spectra.shape)
    numerator, power = spectra.sum(axis=1), powers.sum(axis=1)
    if isinstance(tau, str):
        tau = _noise_to_signal(spectra, powers, shells)[:, shells]
    else:
        tau = tau[shells][None]
    denominator = power + tau
    # a coefficient that no image holds is zero; so is one whose CTFs are so small that it would be noise
    # alone
    floor = 1e-3 * np.maximum(total, 1e-30)[:, None, None]
    ratio = np.where(denominator > 0, numerator / np.maximum(denominator, floor), 0)
    return scipy.fft.irfft2(ratio.astype(np.complex64), s=(L, L))


def _noise_to_signal(spectra, powers, shells):
    """Power of the noise over that of the signal in every class and ring, estimated from two halves.

    With N_h = sum of C y and D_h = sum of C^2 over half h, the signal cancels in ``N_1 D_2 - N_2 D_1``, of
    mean square ``D_1 D_2 (D_1 + D_2) noise``; and that of ``N_1 + N_2`` is ``D^2 signal + D noise``. Spectra
    of classes differ little, so each class takes the one of all classes times a factor that varies slowly
    with the ring.
    """

    def smooth(rings):
        return convolve1d(rings, _SMOOTHING, axis=1, mode="nearest")

    tiny = np.finfo(np.float32).tiny
    (n1, n2), (d1, d2) = spectra.transpose(1, 0, 2, 3), powers.transpose(1, 0, 2, 3)
    both, power = n1 + n2, d1 + d2
    total, mean_power = _ring_means(np.abs(both) ** 2, shells), _ring_means(power, shells)
    difference = smooth(_ring_means(np.abs(n1 * d2 - n2 * d1) ** 2, shells))
    scale = smooth(_ring_means(d1 * d2 * power, shells))
    pooled = difference.sum(axis=0) / np.maximum(scale.sum(axis=0), tiny)
    noise = np.where(scale > 0, difference / np.maximum(scale, tiny), pooled)
    excess, squared_power = total - mean_power * noise, _ring_means(power**2, shells)
    pooled = np.maximum(excess.sum(axis=0), 0) / np.maximum(squared_power.sum(axis=0), tiny)
    weight = 1 / np.maximum(total, tiny)
    expected = smooth(pooled * squared_power * weight)
    factor = smooth(excess * weight) / np.maximum(expected, tiny)
    signal = pooled * np.clip(np.where(expected > 0, factor, 1.0), _SIGNAL_RANGE[0], _SIGNAL_RANGE[1])
    # where no class has any signal, the noise counts as a million times the signal
    ratio = noise / np.maximum(signal, tiny)
    return np.minimum(np.nan_to_num(ratio, posinf=np.inf), 1e6 * np.maximum(mean_power, tiny))
