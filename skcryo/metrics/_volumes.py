"""Fourier shell correlation of two volumes, the resolution that it means, and its area."""

import numpy as np
import scipy.fft

from ..fourier import shell_index


def fsc(volume1, volume2):
    """Fourier shell correlation of two volumes.

    Parameters
    ----------
    volume1, volume2 : array-like of shape (L, L, L)
        Densities in one frame: align them first, the correlation does not.

    Returns
    -------
    curve : ndarray of shape (L // 2 + 1,), float64
        Correlation in the shells ``round(|k|)`` = 0, 1, ..., ``L // 2`` (RELION's), k in cycles per box. 0 in
        a shell where a volume holds nothing.

    Raises
    ------
    ValueError
        If a volume is no cube, the shapes differ or a value is not finite.

    References
    ----------
    Harauz, van Heel, "Exact filters for general geometry three dimensional reconstruction", Optik 73 (1986).

    Examples
    --------
    >>> import numpy as np
    >>> from skcryo.metrics import fsc
    >>> volume = np.random.default_rng(0).normal(size=(8, 8, 8))
    >>> fsc(volume, 3 * volume).round(6).tolist()
    [1.0, 1.0, 1.0, 1.0, 1.0]
    """
    volumes = [_check_volume(volume1, "volume1"), _check_volume(volume2, "volume2")]
    if volumes[0].shape != volumes[1].shape:
        raise ValueError(f"volume1 has shape {volumes[0].shape} but volume2 has {volumes[1].shape}")
    L = len(volumes[0])
    first, second = (scipy.fft.rfftn(volume) for volume in volumes)
    shells = shell_index(L, 3, half=True).ravel()
    weights = np.full(L // 2 + 1, 2.0)  # a coefficient and its conjugate
    weights[0] = 1.0
    if L % 2 == 0:
        weights[-1] = 1.0
    inside = shells <= L // 2

    def shell_sums(values):
        return np.bincount(shells[inside], weights=(values * weights).ravel()[inside], minlength=L // 2 + 1)

    cross = shell_sums((first * second.conj()).real)
    power = np.sqrt(shell_sums(np.abs(first) ** 2) * shell_sums(np.abs(second) ** 2))
    return np.divide(cross, power, out=np.zeros_like(cross), where=power > 0)


def fsc_resolution(curve, threshold=0.143, voxel_size=1.0, *, box_size=None):
    """Resolution at which a Fourier shell correlation first falls below a threshold.

    Parameters
    ----------
    curve : array-like of shape (n_shells,)
        From :func:`fsc`.
    threshold : float, default=0.143
        0.143 between half maps, 0.5 against the truth.
    voxel_size : float, default=1.0
        In Angstrom. With 1 the result is in voxels.
    box_size : int, default=None
        L of the volumes. None takes the even one of the two that have this many shells, ``2 (n_shells - 1)``.

    Returns
    -------
    resolution : float
        ``L * voxel_size / k`` at the crossing k, between shells by linear interpolation; that of the last
        shell (Nyquist) if the curve stays above, infinite if it is below in the first shell. The mean, shell
        0, does not count.

    Raises
    ------
    ValueError
        If the curve is too short or holds a NaN, or `box_size` does not go with it.

    Examples
    --------
    >>> from skcryo.metrics import fsc_resolution
    >>> fsc_resolution([1, 1, 0.8, 0.2, 0], threshold=0.5, voxel_size=5)  # crosses at shell 2.5 of 8 voxels
    16.0
    """
    curve = _check_curve(curve)
    L = 2 * (len(curve) - 1) if box_size is None else box_size
    if L // 2 + 1 != len(curve):
        raise ValueError(
            f"box_size is {L} but the curve has {len(curve)} shells; {L // 2 + 1} are wanted for it"
        )
    if not 0 < voxel_size < np.inf:
        raise ValueError(f"voxel_size is {voxel_size}; a positive number of Angstrom is wanted")
    below = np.flatnonzero(curve[1:] < threshold)
    if not len(below):
        return float(L * voxel_size / (len(curve) - 1))
    if below[0] == 0:
        return np.inf
    k = below[0]  # the last shell above
    crossing = k + (curve[k] - threshold) / (curve[k] - curve[k + 1])
    return float(L * voxel_size / crossing)


def fsc_area(curve, max_shell=None):
    """Area under a Fourier shell correlation, as a share of that under a perfect one.

    Parameters
    ----------
    curve : array-like of shape (n_shells,)
        From :func:`fsc`.
    max_shell : int, default=None
        Last shell that counts: beyond a molecule's band the correlation means nothing. None goes to Nyquist.

    Returns
    -------
    area : float
        Mean over the shells 1, ..., `max_shell`; the volume's mean (shell 0) does not count.

    Raises
    ------
    ValueError
        If the curve is too short or holds a NaN, or `max_shell` is out of range.

    Examples
    --------
    >>> from skcryo.metrics import fsc_area
    >>> fsc_area([1, 1, 1, 0, 0]), fsc_area([1, 1, 1, 0, 0], max_shell=2)
    (0.5, 1.0)
    """
    curve = _check_curve(curve)
    max_shell = len(curve) - 1 if max_shell is None else max_shell
    if not 1 <= max_shell < len(curve):
        raise ValueError(f"max_shell is {max_shell}; 1 to {len(curve) - 1} is wanted for this curve")
    return float(curve[1 : max_shell + 1].mean())


def _check_volume(volume, name):
    volume = np.asarray(volume, dtype=np.float64)
    if volume.ndim != 3 or len(set(volume.shape)) != 1 or not volume.size:
        raise ValueError(f"{name} has shape {volume.shape}; (L, L, L) is wanted")
    if not np.isfinite(volume).all():
        raise ValueError(f"{name} holds NaN or infinity; finite densities are wanted")
    return volume


def _check_curve(curve):
    curve = np.asarray(curve, dtype=np.float64)
    if curve.ndim != 1 or len(curve) < 2:
        raise ValueError(f"curve has shape {curve.shape}; (n_shells,) with at least two shells is wanted")
    bad = np.flatnonzero(~np.isfinite(curve))
    if len(bad):
        raise ValueError(f"curve[{bad[0]}] is {curve[bad[0]]}; finite correlations are wanted")
    return curve
