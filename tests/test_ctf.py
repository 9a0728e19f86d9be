"""The contrast transfer function against its formula written out, and its symmetries."""

import math
import subprocess
import sys

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from skcryo.ctf import (
    CTF_DTYPE,
    apply_ctf,
    electron_wavelength,
    evaluate_ctf,
    evaluate_ctf_polar,
    evaluate_ctf_radial,
    make_ctf,
    rotate_ctf,
    validate_ctf,
)
from skcryo.fourier import fft2c, frequency_grid, ifft2c, rotate_images


def varied(n, seed=0):
    """Parameters as they are met, all different."""
    rng = np.random.default_rng(seed)
    u = rng.uniform(8e3, 3e4, n)
    return make_ctf(
        n,
        defocus_u=u,
        defocus_v=u * rng.uniform(0.85, 1.0, n),
        defocus_angle=rng.uniform(-90, 180, n),
        voltage=rng.choice([120.0, 200.0, 300.0], n),
        cs=rng.uniform(0.01, 2.7, n),
        amplitude_contrast=rng.uniform(0.05, 0.2, n),
        phase_shift=rng.uniform(0, 120, n),
        b_factor=rng.choice([0.0, 30.0, 100.0], n),
        scale=rng.uniform(0.8, 1.2, n),
    )


def written_out(record, kx, ky, pixel_size):
    """RELION's CTF of one image at one frequency (cycles per pixel), in double precision."""
    volts = record["voltage"] * 1000
    wavelength = 12.2643247 / math.sqrt(volts * (1 + 0.978466e-6 * volts))
    s = math.hypot(kx, ky) / pixel_size
    theta, angle = math.atan2(ky, kx), math.radians(record["defocus_angle"])
    u, v, w = record["defocus_u"], record["defocus_v"], record["amplitude_contrast"]
    defocus = (u + v) / 2 + (u - v) / 2 * math.cos(2 * (theta - angle))
    gamma = (
        -math.pi * wavelength * defocus * s**2
        + math.pi / 2 * record["cs"] * 1e7 * wavelength**3 * s**4
        - math.radians(record["phase_shift"])
        - math.atan(w / math.sqrt(1 - w * w))
    )
    return -record["scale"] * math.sin(gamma) * math.exp(-record["b_factor"] * s**2 / 4)


@pytest.mark.parametrize("pixel_size", [0.7, 1.3, 5.0])
@pytest.mark.parametrize("L", [10, 11])
def test_equals_the_formula(L, pixel_size):
    ctf = varied(6)
    grid = frequency_grid(L)
    expected = [
        [[written_out(record, kx, ky, pixel_size) for kx, ky in row] for row in grid] for record in ctf
    ]
    values = evaluate_ctf(ctf, L, pixel_size)
    assert values.dtype == np.float32 and values.shape == (6, L, L)
    assert_allclose(values, expected, atol=5e-4 if pixel_size < 1 else 1e-4)


@pytest.mark.parametrize("L", [10, 11])
def test_layouts_agree(L):
    ctf = varied(4)
    centred = evaluate_ctf(ctf, L, 2.0)
    corner = evaluate_ctf(ctf, L, 2.0, centred=False)
    half = evaluate_ctf(ctf, L, 2.0, half=True)
    assert_allclose(np.fft.ifftshift(centred, axes=(1, 2)), corner, atol=1e-6)
    assert half.shape == (4, L, L // 2 + 1)
    inner = (L + 1) // 2
    assert_allclose(half[:, :, :inner], corner[:, :, :inner], atol=1e-6)
    if L % 2 == 0:  # the Nyquist column is at +1/2 there; (1/2, -1/2) has no partner
        rows = np.setdiff1d(np.arange(L), [L // 2])
        assert_allclose(half[:, rows, inner], corner[:, -rows % L, inner], atol=1e-6)


def test_sign_and_limits():
    """RELION's sign: +w at zero, and the first extremum of an underfocused image has the same sign."""
    ctf = make_ctf(1, defocus_u=20000.0, amplitude_contrast=0.07)
    values = evaluate_ctf_radial(ctf, np.linspace(0, 0.1, 200), 2.0)[0]
    assert values[0] == pytest.approx(0.07, abs=1e-6)
    assert values[: np.flatnonzero(values < 0)[0]].max() > 0.999
    # the first zero is where pi lambda dF s^2 + arcsin(w) reaches pi, but for the small Cs term
    zero = np.interp(0, -values[50:], np.linspace(0, 0.1, 200)[50:] / 2)
    assert zero == pytest.approx(
        math.sqrt((math.pi - math.asin(0.07)) / (math.pi * 0.019687 * 20000)), rel=0.01
    )
    assert evaluate_ctf_radial(make_ctf(1, phase_shift=90.0, amplitude_contrast=0.0), [0.0], 2.0)[0, 0] == 1.0
    assert electron_wavelength(300.0) == pytest.approx(0.0196875, abs=2e-6)
    assert electron_wavelength(200.0) == pytest.approx(0.0250793, abs=2e-6)


@pytest.mark.parametrize("L", [16, 17])
def test_even_symmetry(L):
    values = evaluate_ctf(varied(3), L, 1.5)
    start = 1 - L % 2  # the Nyquist row of an even box has no opposite
    inner = values[:, start:, start:]
    assert_allclose(inner, inner[:, ::-1, ::-1], atol=1e-6)


@pytest.mark.parametrize("angle_deg", [0.0, 25.0, 120.0])
def test_defocus_u_is_met_along_the_angle(angle_deg):
    """Along defocus_angle the defocus is U, at right angles to it V; the angle runs from x to y."""
    astigmatic = make_ctf(1, defocus_u=24000.0, defocus_v=18000.0, defocus_angle=angle_deg)
    radii, along = np.linspace(0, 0.4, 30), math.radians(angle_deg)
    polar = evaluate_ctf_polar(astigmatic, radii, [along, along + math.pi / 2], 2.5)[0]
    u = evaluate_ctf_radial(make_ctf(1, defocus_u=24000.0), radii, 2.5)[0]
    v = evaluate_ctf_radial(make_ctf(1, defocus_u=18000.0), radii, 2.5)[0]
    assert_allclose(polar[:, 0], u, atol=1e-4)
    assert_allclose(polar[:, 1], v, atol=1e-4)
    assert np.abs(polar[:, 1] - u).max() > 1


def test_radial_uses_the_mean_defocus():
    ctf = varied(4)
    mean = ctf.copy()
    mean["defocus_u"] = mean["defocus_v"] = (ctf["defocus_u"] + ctf["defocus_v"]) / 2
    radii = np.linspace(0, 0.5, 20)
    expected = evaluate_ctf_polar(mean, radii, [0.4], 2.0)[:, :, 0]
    assert_allclose(evaluate_ctf_radial(ctf, radii, 2.0), expected, atol=1e-4)


def test_polar_equals_cartesian():
    ctf = varied(3)
    grid = frequency_grid(9).reshape(-1, 2)
    cartesian = evaluate_ctf(ctf, 9, 2.0).reshape(3, -1)
    for i, (kx, ky) in enumerate(grid):
        value = evaluate_ctf_polar(ctf, [math.hypot(kx, ky)], [math.atan2(ky, kx)], 2.0)
        assert_allclose(value[:, 0, 0], cartesian[:, i], atol=1e-4)


@pytest.mark.parametrize("L", [48, 49])
def test_ctf_of_a_rotated_image(L):
    """rotate(CTF * I) = CTF' * rotate(I), where CTF' has the defocus angle increased by the angle."""
    rng = np.random.default_rng(0)
    place = np.arange(L) - L // 2
    blobs = [
        np.exp(-((place[:, None] - y) ** 2 + (place - x) ** 2) / 8) for x, y in rng.uniform(-5, 5, (4, 2))
    ]
    image = np.sum(blobs, axis=0)[None]
    ctf = make_ctf(1, defocus_u=26000.0, defocus_v=12000.0, defocus_angle=20.0)
    a = 0.7
    left = rotate_images(apply_ctf(image, ctf, 5.0), a)
    right = apply_ctf(rotate_images(image, a), rotate_ctf(ctf, a), 5.0)
    wrong = apply_ctf(rotate_images(image, a), rotate_ctf(ctf, -a), 5.0)
    inside = np.hypot(place[:, None], place) < 16
    assert np.linalg.norm((left - right)[0, inside]) < 0.02 * np.linalg.norm(left[0, inside])
    assert np.linalg.norm((left - wrong)[0, inside]) > 0.1 * np.linalg.norm(left[0, inside])


@pytest.mark.parametrize("L", [16, 17])
def test_apply_is_a_product_in_fourier_space(L):
    rng = np.random.default_rng(0)
    images, ctf = rng.standard_normal((3, L, L)).astype(np.float32), varied(3)
    filtered = apply_ctf(images, ctf, 2.0)
    assert filtered.dtype == np.float32
    expected = ifft2c(fft2c(images) * evaluate_ctf(ctf, L, 2.0)).real
    # The Nyquist rows of an even box are real by force, and a half spectrum does that otherwise.
    difference = fft2c(filtered - expected)[:, 1 - L % 2 :, 1 - L % 2 :]
    assert np.abs(difference).max() < 1e-3
    # It is its own adjoint.
    others = rng.standard_normal((3, L, L)).astype(np.float32)
    left = np.einsum("nij,nij->n", filtered, others)
    assert_allclose(left, np.einsum("nij,nij->n", images, apply_ctf(others, ctf, 2.0)), rtol=1e-4, atol=1e-3)


def test_records_need_not_be_in_order():
    ctf = varied(3)
    shuffled = np.dtype([*reversed(CTF_DTYPE.descr), ("optics_group", "i4")])
    other = np.zeros(3, dtype=shuffled)
    for name in CTF_DTYPE.names:
        other[name] = ctf[name]
    assert_array_equal(validate_ctf(other, 3), ctf)
    assert validate_ctf(ctf[0]).shape == (1,)
    assert_array_equal(validate_ctf(ctf), ctf)


def test_make_ctf():
    ctf = make_ctf(3, defocus_u=[1e4, 2e4, 3e4], voltage=200)
    assert ctf.dtype == CTF_DTYPE
    assert_array_equal(ctf["defocus_v"], [1e4, 2e4, 3e4])
    assert_array_equal(ctf["voltage"], 200)
    assert len(make_ctf(0)) == 0


def with_value(name, value):
    ctf = make_ctf(3)
    ctf[name][1] = value
    return ctf


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: validate_ctf(make_ctf(90), 60), "CTF has 90 records but there are 60 images"),
        (lambda: apply_ctf(np.zeros((2, 4, 4)), make_ctf(3), 1.0), "CTF has 3 records but"),
        (lambda: validate_ctf(np.zeros((3, 9))), "must be a structured array"),
        (lambda: validate_ctf(np.zeros(3, dtype=CTF_DTYPE.descr[:-1])), r"ctf lacks the fields \['scale'\]"),
        (lambda: validate_ctf(make_ctf(4).reshape(2, 2)), r"one record per image.*\(2, 2\)"),
        (lambda: validate_ctf(with_value("defocus_u", np.nan)), r"ctf\[1\]\['defocus_u'\] is nan.*finite"),
        (lambda: validate_ctf(with_value("voltage", 0)), r"ctf\[1\]\['voltage'\] is 0, it must be positive"),
        (lambda: validate_ctf(with_value("amplitude_contrast", 1.5)), "between 0 and 1"),
        (lambda: make_ctf(2, defocus=1e4), r"unknown CTF fields \['defocus'\]"),
        (lambda: make_ctf(2, cs=[1, 2, 3]), r"cs must be a number or have shape \(2,\)"),
        (lambda: evaluate_ctf(make_ctf(1), 8, 0.0), "pixel_size must be positive.*got 0.0"),
        (lambda: evaluate_ctf_radial(make_ctf(1), [0.1], -1.0), "pixel_size must be positive"),
        (lambda: evaluate_ctf_polar(make_ctf(1), [0.1], [0.0], None), "positive.*got None"),
    ],
)
def test_errors_name_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_geometry_does_not_import_torch():
    code = "import sys, skcryo.projection; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
