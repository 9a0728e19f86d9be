"""How strong the Wiener filter of a volume is, shell by shell: from half maps, or from the sums themselves."""

import numpy as np

__all__ = ["fsc_prior", "spectral_prior"]

_LEAST, _MOST = 1e-3, 0.9999


def fsc_prior(curve, density):
    """Prior of :meth:`FourierAccumulator.solve` from the Fourier shell correlation of two half maps.

    Two maps of the same signal with independent noise correlate as ``FSC = s / (s + n)``, so one half's noise over
    signal is ``(1 - FSC) / FSC``; that of the whole, with twice the data, follows, and its Wiener filter is
    ``2 FSC / (1 + FSC)``.

    Parameters
    ----------
    curve : array-like of shape (n_shells,)
        From :func:`skcryo.metrics.fsc`. Shell 0 says nothing and is taken as shell 1.
    density : array-like of shape (n_shells,)
        Mean samples per voxel of one half, :meth:`FourierAccumulator.shell_density`.

    Returns
    -------
    prior : ndarray of shape (n_shells,), float64
        Noise over signal power, for either half and for their sum. Correlations below 0.001 count as 0.001.

    References
    ----------
    Rosenthal, Henderson, "Optimal determination of particle orientation, absolute hand, and contrast loss in
    single-particle electron cryomicroscopy", J. Mol. Biol. 333 (2003); Scheres, "RELION", J. Struct. Biol. 180
    (2012), equations 9 and 10.

    Examples
    --------
    >>> from skcryo.reconstruction import fsc_prior
    >>> prior = fsc_prior([1.0, 0.5, 0.2], [10.0, 10.0, 10.0])
    >>> prior.round(6).tolist(), (20 / (20 + prior)).round(3).tolist()  # 2 FSC / (1 + FSC)
    ([10.0, 10.0, 40.0], [0.667, 0.667, 0.333])
    """
    curve = np.clip(np.array(curve, dtype=np.float64), _LEAST, _MOST)
    density = np.asarray(density, dtype=np.float64)
    if curve.shape != density.shape or curve.ndim != 1:
        raise ValueError(f"curve has shape {curve.shape} but density has {density.shape}; (n_shells,) both is wanted")
    if len(curve) > 1:
        curve[0] = curve[1]
    return density * (1 - curve) / curve


def spectral_prior(accumulator, noise=1.0, *, floor=1e-3):
    """Prior of :meth:`FourierAccumulator.solve` from the sums alone, without half sets.

    Noise over signal power, the signal's from :meth:`FourierAccumulator.signal_power`: what the numerator holds
    beyond noise.

    Parameters
    ----------
    accumulator : FourierAccumulator
    noise : float or array-like of shape (L // 2 + 1,), default=1.0
        Variance of a spectrum's noise in the sums' units: 1 if the weights hold one over the noise's power.
    floor : float, default=1e-3
        Least signal-to-noise ratio of a shell: one where less is found is filtered as strongly as this says. Shells
        that hold no data have prior 1.

    Returns
    -------
    prior : ndarray of shape (L // 2 + 1,), float64

    Examples
    --------
    >>> import numpy as np
    >>> from skcryo.reconstruction import FourierAccumulator, half_plane, slice_data, spectral_prior
    >>> from skcryo.rotations import random_rotations
    >>> images = np.random.default_rng(0).standard_normal((200, 16, 16))
    >>> accumulator = FourierAccumulator(16)
    >>> data = slice_data(images, noise=np.ones(9))
    >>> accumulator.add(*data, random_rotations(200, random_state=0), half_plane(16)[0])
    >>> prior = spectral_prior(accumulator)  # of noise alone: hardly anything passes
    >>> bool((accumulator.shell_density() / prior)[3:].max() < 0.3)
    True
    """
    noise = np.broadcast_to(np.asarray(noise, dtype=np.float64), accumulator.L // 2 + 1)
    density = accumulator.shell_density()
    if len(density) > 1:
        density[0] = density[1]
    power = accumulator.signal_power(noise)
    least = np.divide(floor * noise, density, out=np.zeros(len(density)), where=density > 0)
    power = np.maximum(power, least)
    return np.divide(noise, power, out=np.ones(len(power)), where=power > 0)
