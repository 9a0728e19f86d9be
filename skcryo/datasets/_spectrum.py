"""The radial power spectrum of a volume, the project's standard one, and how to impose it.

The spectrum of a volume decides how hard its images are at a given signal-to-noise ratio: a density straight
from atoms holds nine tenths of its power in the mean and one blob, which tell nothing about orientation.
Molecules compare only under one spectrum.
"""

import numbers
import warnings

import numpy as np
import scipy.fft
from sklearn.exceptions import ConvergenceWarning

#: Box in Angstrom in which `STANDARD_SPECTRUM` counts cycles: 64 pixels of 5 Angstrom.
STANDARD_BOX = 320.0

#: Mean power of one Fourier coefficient in shell 0, 1, 2, ... (cycles in a box of `STANDARD_BOX`), scaled to
#: sum 1: that of a 70S ribosome map of 65 pixels; band-limited at about shell 14 (23 Angstrom) and
#: high-passed. No power beyond.
STANDARD_SPECTRUM = np.array(
    [
        9.8064e-02, 3.3571e-01, 1.6519e-01, 1.0309e-01, 9.9988e-02, 5.6869e-02, 4.0211e-02, 4.2728e-02,
        2.5458e-02, 1.4035e-02, 9.1034e-03, 5.6021e-03, 2.1010e-03, 8.8982e-04, 2.9828e-04, 1.1853e-04,
        9.4351e-05, 9.7536e-05, 7.8258e-05, 6.6281e-05, 4.8230e-05, 3.3115e-05, 2.7294e-05, 2.3092e-05,
        1.8288e-05, 1.4084e-05, 1.0888e-05, 8.9635e-06, 6.6691e-06, 5.0700e-06, 3.3627e-06, 2.5265e-06,
        1.7934e-06,
    ]
)  # fmt: skip
STANDARD_SPECTRUM.flags.writeable = False


def standard_power(radius):
    """`STANDARD_SPECTRUM` at real-valued radii (cycles per `STANDARD_BOX`); zero beyond its last shell."""
    shells = np.arange(len(STANDARD_SPECTRUM))
    radius = np.asarray(radius, dtype=np.float64)
    power = np.exp(np.interp(radius, shells, np.log(STANDARD_SPECTRUM)))
    return np.where(radius < len(STANDARD_SPECTRUM) - 0.5, power, 0.0)


def frequency_radius(L):
    """Distance from the origin, in cycles per box, of every coefficient of an uncentred ``fftn`` of an
    L-box."""
    k2 = np.fft.fftfreq(L, 1 / L) ** 2
    return np.sqrt(k2[:, None, None] + k2[None, :, None] + k2[None, None, :])


def check_volume(volume, name="volume"):
    """A finite cubic float32 array, or a ValueError that names the argument."""
    volume = np.asarray(volume)
    if volume.ndim != 3 or len(set(volume.shape)) != 1:
        raise ValueError(f"{name} has shape {volume.shape}; a cube of shape (L, L, L) is wanted")
    volume = volume.astype(np.float32, copy=False)
    if not np.isfinite(volume).all():
        raise ValueError(f"{name} holds NaN or infinity; finite densities are wanted")
    return volume


def _shell_means(power, shells, n_shells):
    inside = shells < n_shells
    total = np.bincount(shells[inside], weights=power[inside], minlength=n_shells)
    return total / np.maximum(np.bincount(shells[inside], minlength=n_shells), 1)


def power_spectrum(volume):
    """Mean power of one Fourier coefficient in each shell of a volume.

    Parameters
    ----------
    volume : array-like of shape (L, L, L)
        A density.

    Returns
    -------
    spectrum : ndarray of shape (L // 2 + 1,), float64
        Mean of ``|F|^2`` over the coefficients with ``round(|k|) = 0, 1, ..., L // 2``, k in cycles per box.

    Raises
    ------
    ValueError
        If the volume is no cube or holds a NaN or an infinity.

    Examples
    --------
    >>> import numpy as np
    >>> from skcryo.datasets import power_spectrum
    >>> impulse = np.zeros((8, 8, 8))
    >>> impulse[4, 4, 4] = 1
    >>> power_spectrum(impulse)
    array([1., 1., 1., 1., 1.])
    """
    volume = check_volume(volume)
    L = len(volume)
    power = np.abs(scipy.fft.fftn(volume.astype(np.float64))) ** 2
    return _shell_means(power.ravel(), np.rint(frequency_radius(L)).astype(np.intp).ravel(), L // 2 + 1)


def shell_gains(power, radius, target, *, n_iter=60, tol=1e-6):
    """Amplitude gains at shell 0, 1, ..., which, linear in between, give each shell the mean power `target`.

    A gain that steps from shell to shell would ring through the whole box; a piecewise linear one does not,
    at the price of a short fixed-point iteration. Shells that hold no power get gain 0.
    """
    n_shells = len(target)
    power, radius = np.ravel(power), np.ravel(radius)
    shells = np.rint(radius).astype(np.intp)
    inside = (shells < n_shells) & (power > 0)
    power, radius, shells = power[inside], radius[inside], shells[inside]
    actual = _shell_means(power, shells, n_shells)
    usable = (actual > 1e-14 * actual.max(initial=0.0)) & (target > 0)
    gains = np.where(usable, np.sqrt(target / np.where(usable, actual, 1.0)), 0.0)
    for _ in range(n_iter):
        actual = _shell_means(power * apply_gains(radius, gains) ** 2, shells, n_shells)
        ratio = np.sqrt(np.where(usable, target / np.where(actual > 0, actual, 1.0), 1.0))
        gains = gains * ratio
        error = np.abs(ratio[usable] - 1).max(initial=0.0)
        if error < tol:
            return gains
    if error > 1e-3:
        message = f"the power spectrum is met only to {2 * error:.1%} after {n_iter} iterations"
        warnings.warn(message, ConvergenceWarning, stacklevel=3)
    return gains


def apply_gains(radius, gains):
    """The gains at real-valued radii, linear between shells that have one, zero in other shells."""
    nearest = np.minimum(np.rint(radius).astype(np.intp), len(gains))
    positive = np.flatnonzero(gains > 0)
    if not len(positive):
        return np.zeros(np.shape(radius))
    # Towards a shell without a gain the last one is held: a fall to zero would take what the shell must have.
    return np.where(np.append(gains, 0.0)[nearest] > 0, np.interp(radius, positive, gains[positive]), 0.0)


def match_power_spectrum(volume, spectrum="standard", *, voxel_size=None):
    """Give a volume another radial power spectrum and leave its phases alone.

    Parameters
    ----------
    volume : array-like of shape (L, L, L)
        A density.
    spectrum : {"standard"}, array-like of shape (n_shells,) or of shape (m, m, m), default="standard"
        The wanted mean power of one coefficient in shells ``round(|k|)`` = 0, 1, ...; shells that are not
        given get none. A volume stands for its own `power_spectrum`. Only the shape of the spectrum matters.
    voxel_size : float, default=None
        In Angstrom. With it, the standard spectrum is taken at the physical frequency, and every box shows
        the molecule at one resolution; without it, at the frequency in cycles per box. Ignored unless
        `spectrum` is "standard".

    Returns
    -------
    matched : ndarray of shape (L, L, L), float32
        Its sum of squares is that of `volume`. A shell in which `volume` holds nothing stays empty.

    Raises
    ------
    ValueError
        If `volume` is no finite cube, or `spectrum` is none of the above, negative or without any power in
        the shells.

    Examples
    --------
    >>> import numpy as np
    >>> from skcryo.datasets import STANDARD_SPECTRUM, match_power_spectrum, power_spectrum
    >>> noise = np.random.default_rng(0).normal(size=(16, 16, 16))
    >>> matched = power_spectrum(match_power_spectrum(noise))
    >>> np.allclose(matched / matched[1], STANDARD_SPECTRUM[:9] / STANDARD_SPECTRUM[1], rtol=1e-3)
    True
    """
    volume = check_volume(volume)
    L = len(volume)
    if isinstance(spectrum, str):
        if spectrum != "standard":
            raise ValueError(
                f'spectrum is {spectrum!r}; "standard", an array of shells or a volume is wanted'
            )
        scale = 1.0 if voxel_size is None else STANDARD_BOX / (L * check_positive(voxel_size, "voxel_size"))
        target = standard_power(np.arange(L // 2 + 1) * scale)
    else:
        target = np.asarray(spectrum, dtype=np.float64)
        if target.ndim == 3:
            target = power_spectrum(target)
        if target.ndim != 1:
            raise ValueError(f"spectrum has shape {target.shape}; (n_shells,) or a cube is wanted")
        target = np.pad(target, (0, max(0, L // 2 + 1 - len(target))))[: L // 2 + 1]
    if not np.isfinite(target).all() or (target < 0).any() or not target.any():
        raise ValueError("spectrum must be finite, not negative, and positive in some shell of the volume")

    transform = scipy.fft.fftn(volume.astype(np.float64))
    radius = frequency_radius(L)
    power = np.abs(transform) ** 2
    if not power.any():
        raise ValueError("volume is zero everywhere; a density with some power is wanted")
    transform *= apply_gains(radius, shell_gains(power, radius, target / target.sum() * power.sum()))
    kept = (np.abs(transform) ** 2).sum()
    if not kept:
        raise ValueError("volume holds no power in the shells where spectrum has some")
    matched = scipy.fft.ifftn(transform * np.sqrt(power.sum() / kept)).real
    return np.ascontiguousarray(matched, dtype=np.float32)


def check_positive(value, name):
    """`value` as a positive finite float, or an error that names the argument."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} is {value!r}; a positive number is wanted")
    if not 0 < value < np.inf:
        raise ValueError(f"{name} is {value}; a positive number is wanted")
    return float(value)
