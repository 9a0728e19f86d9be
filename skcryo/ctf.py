"""Contrast transfer function: its parameters as a structured array, and its values.

In RELION's sign, with the electron's wavelength ``lambda``, the spatial frequency ``s`` in 1/A and its
azimuth ``theta``::

    dF(theta) = (U + V) / 2 + (U - V) / 2 cos 2 (theta - angle)
    gamma     = -pi lambda dF s^2 + pi / 2 Cs lambda^3 s^4 - phase_shift - arcsin(w)
    CTF       = -scale sin(gamma) exp(-B s^2 / 4)

so that ``CTF(0) = +w`` (the amplitude contrast) without a phase plate, and positive defocus is underfocus.
"""

import numpy as np
import scipy.fft

from ._products import row_products
from .fourier import check_images, frequency_grid, iter_blocks

__all__ = [
    "CTF_DTYPE",
    "apply_ctf",
    "electron_wavelength",
    "evaluate_ctf",
    "evaluate_ctf_polar",
    "evaluate_ctf_radial",
    "make_ctf",
    "rotate_ctf",
    "validate_ctf",
]

#: One record per image: defocus in Angstrom and degrees, voltage in kV, Cs in mm, phase shift in degrees,
#: B factor in square Angstrom, scale without unit.
CTF_DTYPE = np.dtype(
    [
        ("defocus_u", "f8"),
        ("defocus_v", "f8"),
        ("defocus_angle", "f8"),
        ("voltage", "f8"),
        ("cs", "f8"),
        ("amplitude_contrast", "f8"),
        ("phase_shift", "f8"),
        ("b_factor", "f8"),
        ("scale", "f8"),
    ]
)
_DEFAULTS = {
    "defocus_u": 15000.0,
    "defocus_angle": 0.0,
    "voltage": 300.0,
    "cs": 2.7,
    "amplitude_contrast": 0.1,
    "phase_shift": 0.0,
    "b_factor": 0.0,
    "scale": 1.0,
}


def make_ctf(n, **fields):
    """CTF parameters of `n` images.

    Parameters
    ----------
    n : int
        Number of images.
    **fields : float or array-like of shape (n,)
        Fields of :data:`CTF_DTYPE`. What is not given is usual: defocus 15000 A, no astigmatism
        (`defocus_v` is `defocus_u`), 300 kV, Cs 2.7 mm, amplitude contrast 0.1, no phase shift, no B factor,
        scale 1.

    Returns
    -------
    ndarray of shape (n,), dtype CTF_DTYPE

    Examples
    --------
    >>> from skcryo.ctf import make_ctf
    >>> ctf = make_ctf(2, defocus_u=[10000, 20000])
    >>> ctf["defocus_v"].tolist(), ctf["voltage"].tolist()
    ([10000.0, 20000.0], [300.0, 300.0])
    """
    unknown = sorted(set(fields) - set(CTF_DTYPE.names))
    if unknown:
        raise ValueError(f"unknown CTF fields {unknown}; the fields are {list(CTF_DTYPE.names)}")
    values = {**_DEFAULTS, **fields}
    values.setdefault("defocus_v", values["defocus_u"])
    ctf = np.empty(n, dtype=CTF_DTYPE)
    for name in CTF_DTYPE.names:
        value = np.asarray(values[name], dtype=np.float64)
        if value.shape not in ((), (n,)):
            raise ValueError(f"{name} must be a number or have shape ({n},), got shape {value.shape}")
        ctf[name] = value
    return validate_ctf(ctf)


def validate_ctf(ctf, n=None):
    """Check CTF parameters.

    Parameters
    ----------
    ctf : structured array of shape (n,) or one record
        With the fields of :data:`CTF_DTYPE` in any order; further fields are dropped.
    n : int, default=None
        Number of images that it must belong to.

    Returns
    -------
    ndarray of shape (n,), dtype CTF_DTYPE

    Raises
    ------
    ValueError
        If fields are missing, the length is wrong, or a value is impossible; the message names field and
        index.

    Examples
    --------
    >>> from skcryo.ctf import make_ctf, validate_ctf
    >>> validate_ctf(make_ctf(90), 60)
    Traceback (most recent call last):
        ...
    ValueError: CTF has 90 records but there are 60 images
    """
    ctf = np.asarray(ctf)
    if ctf.dtype.names is None:
        raise ValueError(
            "ctf must be a structured array with the fields of CTF_DTYPE (see make_ctf), "
            f"got dtype {ctf.dtype}"
        )
    missing = [name for name in CTF_DTYPE.names if name not in ctf.dtype.names]
    if missing:
        raise ValueError(f"ctf lacks the fields {missing}")
    ctf = np.atleast_1d(ctf)
    if ctf.ndim != 1:
        raise ValueError(f"ctf must have one record per image, shape (n,), got shape {ctf.shape}")
    if n is not None and len(ctf) != n:
        raise ValueError(f"CTF has {len(ctf)} records but there are {n} images")
    if ctf.dtype != CTF_DTYPE:
        converted = np.empty(len(ctf), dtype=CTF_DTYPE)
        for name in CTF_DTYPE.names:
            converted[name] = ctf[name]
        ctf = converted
    for name in CTF_DTYPE.names:
        _refuse(~np.isfinite(ctf[name]), ctf, name, "a finite number")
    _refuse(ctf["voltage"] <= 0, ctf, "voltage", "positive (kV)")
    w = ctf["amplitude_contrast"]
    _refuse((w < 0) | (w > 1), ctf, "amplitude_contrast", "between 0 and 1")
    return ctf


def _refuse(bad, ctf, name, wanted):
    if bad.any():
        i = int(np.flatnonzero(bad)[0])
        raise ValueError(f"ctf[{i!r}][{name!r}] is {ctf[name][i]:g}, it must be {wanted}")


def check_pixel_size(pixel_size):
    """The pixel size as a float, refused unless it is positive."""
    if pixel_size is None or not np.isfinite(pixel_size) or not pixel_size > 0:
        raise ValueError(f"pixel_size must be positive (Angstrom), got {pixel_size}")
    return float(pixel_size)


def electron_wavelength(voltage):
    """Relativistic wavelength of the electron.

    Parameters
    ----------
    voltage : float or ndarray
        Acceleration voltage in kV.

    Returns
    -------
    float or ndarray
        Angstrom.

    Examples
    --------
    >>> from skcryo.ctf import electron_wavelength
    >>> round(float(electron_wavelength(300.0)), 5)
    0.01969
    """
    volts = 1e3 * np.asarray(voltage, dtype=np.float64)
    return 12.2643247 / np.sqrt(volts * (1 + 0.978466e-6 * volts))


def _coefficients(ctf, pixel_size):
    """gamma = c0 k^2 + c1 k^2 cos 2 theta + c2 k^2 sin 2 theta + c3 k^4 + c4, k in cycles per pixel."""
    wavelength = electron_wavelength(ctf["voltage"])
    mean = (ctf["defocus_u"] + ctf["defocus_v"]) / 2
    half_difference = (ctf["defocus_u"] - ctf["defocus_v"]) / 2
    twice = 2 * np.radians(ctf["defocus_angle"])
    front = -np.pi * wavelength / pixel_size**2
    return np.stack(
        [
            front * mean,
            front * half_difference * np.cos(twice),
            front * half_difference * np.sin(twice),
            np.pi / 2 * (ctf["cs"] * 1e7) * wavelength**3 / pixel_size**4,
            -np.radians(ctf["phase_shift"]) - np.arcsin(ctf["amplitude_contrast"]),
        ],
        axis=1,
    )


def _from_basis(ctf, basis, pixel_size):
    """CTF values (n, n_points), float32, from the five functions of frequency in gamma, (5, n_points)."""
    # One matrix product; float32 costs at most about 1e-4 at the largest phases met (a thousand radians).
    gamma = row_products(_coefficients(ctf, pixel_size).astype(np.float32), basis.astype(np.float32))
    values = np.sin(gamma, out=gamma)
    damped = ctf["b_factor"] != 0
    if damped.any():
        exponent = np.outer(ctf["b_factor"][damped] / (-4 * pixel_size**2), basis[0]).astype(np.float32)
        values[damped] *= np.exp(exponent)
    values *= -ctf["scale"][:, None].astype(np.float32)
    return values


def _basis(kx, ky):
    k2 = kx * kx + ky * ky
    return np.stack([k2, kx * kx - ky * ky, 2 * kx * ky, k2 * k2, np.ones_like(k2)])


def evaluate_ctf(ctf, L, pixel_size, *, half=False, centred=True):
    """CTF of each image on the Fourier grid of an L x L box.

    Parameters
    ----------
    ctf : structured array of shape (n,)
        See :data:`CTF_DTYPE`.
    L : int
        Box size.
    pixel_size : float
        Angstrom.
    half : bool, default=False
        The layout of ``scipy.fft.rfft2``: shape ``(n, L, L // 2 + 1)``, zero frequency first.
    centred : bool, default=True
        Zero frequency at ``L // 2`` (as :func:`skcryo.fourier.fft2c`) rather than first; no meaning with
        `half`.

    Returns
    -------
    ndarray of shape (n, L, L) or (n, L, L // 2 + 1), float32

    References
    ----------
    Rohou, Grigorieff, "CTFFIND4", J. Struct. Biol. 192 (2015), equations 1 to 4.

    Examples
    --------
    >>> from skcryo.ctf import evaluate_ctf, make_ctf
    >>> values = evaluate_ctf(make_ctf(3, amplitude_contrast=0.07), 64, 2.0)
    >>> values.shape, round(float(values[0, 32, 32]), 6)
    ((3, 64, 64), 0.07)
    """
    ctf = validate_ctf(ctf)
    pixel_size = check_pixel_size(pixel_size)
    grid = frequency_grid(L, half=half, centred=centred)
    values = _from_basis(ctf, _basis(grid[..., 0].ravel(), grid[..., 1].ravel()), pixel_size)
    return values.reshape(len(ctf), *grid.shape[:-1])


def evaluate_ctf_radial(ctf, radii, pixel_size):
    """CTF at the mean defocus, as a function of the radius alone.

    Parameters
    ----------
    ctf : structured array of shape (n,)
    radii : array-like of shape (n_radii,)
        Cycles per pixel.
    pixel_size : float
        Angstrom.

    Returns
    -------
    ndarray of shape (n, n_radii), float32

    Examples
    --------
    >>> from skcryo.ctf import evaluate_ctf_radial, make_ctf
    >>> evaluate_ctf_radial(make_ctf(1), [0.0, 0.1], 2.0).shape
    (1, 2)
    """
    ctf = validate_ctf(ctf)
    k2 = np.asarray(radii, dtype=np.float64).ravel() ** 2
    zero = np.zeros_like(k2)
    return _from_basis(ctf, np.stack([k2, zero, zero, k2 * k2, zero + 1]), check_pixel_size(pixel_size))


def evaluate_ctf_polar(ctf, radii, angles, pixel_size):
    """CTF on a polar grid.

    Parameters
    ----------
    ctf : structured array of shape (n,)
    radii : array-like of shape (n_radii,)
        Cycles per pixel.
    angles : array-like of shape (n_theta,)
        Azimuths in radians, from x (columns) towards y (rows).
    pixel_size : float
        Angstrom.

    Returns
    -------
    ndarray of shape (n, n_radii, n_theta), float32

    Examples
    --------
    >>> from skcryo.ctf import evaluate_ctf_polar, make_ctf
    >>> evaluate_ctf_polar(make_ctf(4), [0.1, 0.2], [0.0, 1.0, 2.0], 2.0).shape
    (4, 2, 3)
    """
    ctf = validate_ctf(ctf)
    radii = np.asarray(radii, dtype=np.float64).reshape(-1, 1)
    angles = np.asarray(angles, dtype=np.float64).reshape(1, -1)
    basis = _basis((radii * np.cos(angles)).ravel(), (radii * np.sin(angles)).ravel())
    return _from_basis(ctf, basis, check_pixel_size(pixel_size)).reshape(len(ctf), radii.size, angles.size)


def rotate_ctf(ctf, angles):
    """CTF parameters of images after rotation: the axis of astigmatism turns with the image.

    Parameters
    ----------
    ctf : structured array of shape (n,)
    angles : float or array-like of shape (n,)
        Radians, in the sense of :func:`skcryo.fourier.rotate_images`.

    Returns
    -------
    ndarray of shape (n,), dtype CTF_DTYPE

    Examples
    --------
    >>> import numpy as np
    >>> from skcryo.ctf import make_ctf, rotate_ctf
    >>> rotate_ctf(make_ctf(1, defocus_angle=10.0), np.pi / 2)["defocus_angle"].tolist()
    [100.0]
    """
    ctf = validate_ctf(ctf).copy()
    ctf["defocus_angle"] += np.degrees(angles)
    return ctf


def apply_ctf(images, ctf, pixel_size):
    """Filter images by their CTFs.

    The box is treated as periodic, as every Fourier filter does.

    Parameters
    ----------
    images : array-like of shape (n, L, L)
    ctf : structured array of shape (n,)
    pixel_size : float
        Angstrom.

    Returns
    -------
    ndarray of shape (n, L, L), float32

    Examples
    --------
    >>> import numpy as np
    >>> from skcryo.ctf import apply_ctf, make_ctf
    >>> apply_ctf(np.ones((2, 16, 16)), make_ctf(2), 2.0).mean().item()  # doctest: +ELLIPSIS
    0.1000...
    """
    images = check_images(images)
    ctf = validate_ctf(ctf, len(images))
    L = images.shape[-1]
    out = np.empty(images.shape, dtype=np.float32)
    for block in iter_blocks(len(images), L):
        spectrum = scipy.fft.rfft2(np.asarray(images[block], dtype=np.float32))
        spectrum *= evaluate_ctf(ctf[block], L, pixel_size, half=True)
        out[block] = scipy.fft.irfft2(spectrum, s=(L, L))
    return out
