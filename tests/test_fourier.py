"""Transforms, resizing, shifts, rotations and polar samples, against closed forms and slow sums."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from skcryo import fourier
from skcryo.fourier import (
    fft2c,
    fft3c,
    fourier_crop,
    fourier_pad,
    frequency_grid,
    ifft2c,
    ifft3c,
    polar_fourier,
    polar_lines,
    radial_average,
    rotate_images,
    shell_index,
    shift_images,
)

SIZES = [16, 17]


def gaussian(L, centre, sigma, pixel=1.0):
    """Sampled at the pixels' places, which are (index - L // 2) * pixel; centre is (x, y)."""
    place = (np.arange(L) - L // 2) * pixel
    x, y = place - centre[0], place - centre[1]
    return np.exp(-(y[:, None] ** 2 + x**2) / (2 * sigma**2))


def images_of(L, n=3, seed=0):
    return np.random.default_rng(seed).standard_normal((n, L, L)).astype(np.float32)


def direct_transform(images, kx, ky):
    place = np.arange(images.shape[-1]) - images.shape[-1] // 2
    wave_x, wave_y = (np.exp(-2j * np.pi * np.multiply.outer(k, place)) for k in (kx, ky))
    return np.einsum("nyx,...x,...y->n...", images.astype(float), wave_x, wave_y, optimize=True)


@pytest.mark.parametrize("L", SIZES)
def test_transforms_are_centred(L):
    images = images_of(L)
    grid = frequency_grid(L)
    assert_array_equal(grid[L // 2, L // 2], [0, 0])
    assert_allclose(fft2c(images), direct_transform(images, grid[..., 0], grid[..., 1]), atol=1e-3)
    assert_allclose(ifft2c(fft2c(images)).real, images, atol=1e-5)
    assert fft2c(images).dtype == np.complex64
    volume = np.random.default_rng(0).standard_normal((L, L, L))
    assert_allclose(ifft3c(fft3c(volume)), volume, atol=1e-12)
    # the slice at kz = 0 is the transform of the sum over z
    assert_allclose(fft3c(volume)[L // 2], fft2c(volume.sum(axis=0)), atol=1e-10)


@pytest.mark.parametrize("L", SIZES)
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_frequency_layouts(L, ndim):
    centred, corner, half = (
        frequency_grid(L, ndim),
        frequency_grid(L, ndim, centred=False),
        frequency_grid(L, ndim, half=True),
    )
    assert centred.shape == (L,) * ndim + (ndim,) and half.shape == (L,) * (ndim - 1) + (L // 2 + 1, ndim)
    assert_array_equal(np.fft.ifftshift(centred, axes=range(ndim)), corner)
    assert_array_equal(np.abs(half), np.abs(corner[..., : L // 2 + 1, :]))  # +1/2 rather than -1/2
    assert_array_equal(centred[..., 0], np.broadcast_to(np.fft.fftshift(np.fft.fftfreq(L)), (L,) * ndim))
    shells = shell_index(L, ndim)
    assert_array_equal(shells, np.rint(L * np.linalg.norm(centred, axis=-1)))
    assert shells.dtype == np.int64
    assert_array_equal(shell_index(L, ndim, half=True), np.rint(L * np.linalg.norm(half, axis=-1)))


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("L", SIZES)
def test_radial_average(L, ndim):
    values = np.random.default_rng(0).standard_normal((2, *(L,) * ndim))
    expected = np.array(
        [[v[shell_index(L, ndim) == s].mean() for s in range(L // 2 + 1)] for v in values]
    )
    assert_allclose(radial_average(values, ndim), expected, atol=1e-12)
    assert_allclose(radial_average(1j * values, ndim), 1j * expected, atol=1e-12)
    with pytest.raises(ValueError, match="same length"):
        radial_average(np.ones((4, 5)))


@pytest.mark.parametrize("old, new", [(33, 20), (33, 21), (32, 20), (32, 21), (32, 16), (33, 33), (32, 32)])
def test_crop_keeps_places_and_intensity(old, new):
    """A Gaussian well inside the kept band is the same Gaussian, sampled coarser about the new centre."""
    pixel, sigma = old / new, 0.11 * old
    centre = np.array([0.07, -0.05]) * old
    cropped = fourier_crop(gaussian(old, centre, sigma)[None], new)[0]
    assert_allclose(cropped, gaussian(new, centre, sigma, pixel), atol=5e-4)
    # half a pixel off would be wrong by
    assert np.abs(cropped - gaussian(new, centre + 0.5 * pixel, sigma, pixel)).max() > 0.1
    images = images_of(old)
    assert_allclose(fourier_crop(images, new).mean(axis=(1, 2)), images.mean(axis=(1, 2)), atol=1e-6)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("old, new", [(12, 13), (12, 18), (13, 14), (13, 19), (12, 24), (13, 26), (12, 12)])
def test_crop_undoes_pad(old, new, ndim):
    array = np.random.default_rng(0).standard_normal((2, *(old,) * ndim))
    padded = fourier_pad(array, new, ndim=ndim)
    assert padded.shape == (2, *(new,) * ndim)
    assert_allclose(fourier_crop(padded, old, ndim=ndim), array, atol=1e-12)
    assert_allclose(padded.mean(axis=tuple(range(1, ndim + 1))), array.mean(axis=tuple(range(1, ndim + 1))))
    if new == 2 * old:
        # interpolation: every second sample is an old one
        start = new // 2 - 2 * (old // 2)
        assert_allclose(padded[(slice(None), *(slice(start, None, 2),) * ndim)], array, atol=1e-12)


def test_resize_arguments():
    assert fourier_crop(np.ones((9, 9, 9), dtype=np.float32), 4, ndim=3).shape == (4, 4, 4)
    assert fourier_crop(np.ones((9, 9, 9), dtype=np.float32), 4).shape == (9, 4, 4)
    assert fourier_crop(np.ones((9, 9), dtype=np.int16), 4).dtype == np.float32
    with pytest.raises(ValueError, match="L_new=10 is larger than the box of 9"):
        fourier_crop(np.ones((9, 9)), 10)
    with pytest.raises(ValueError, match="L_new=8 is smaller than the box of 9"):
        fourier_pad(np.ones((9, 9)), 8)
    with pytest.raises(ValueError, match="the last 2 axes must have the same length"):
        fourier_crop(np.ones((9, 8)), 4)
    with pytest.raises(ValueError, match="ndim must be 2"):
        fourier_crop(np.ones((9, 9)), 4, ndim=1)


@pytest.mark.parametrize("L", [32, 33])
def test_shift_moves_content_forward(L):
    rng = np.random.default_rng(0)
    centres, shifts = rng.uniform(-3, 3, (5, 2)), rng.uniform(-4, 4, (5, 2))
    images = np.stack([gaussian(L, c, 2.0) for c in centres])
    moved = np.stack([gaussian(L, c, 2.0) for c in centres + shifts])
    assert_allclose(shift_images(images, shifts), moved, atol=2e-4)
    assert np.abs(shift_images(images, -shifts) - moved).max() > 0.3


@pytest.mark.parametrize("L", SIZES)
def test_shift_as_an_operator(L):
    images, others = images_of(L, 4), images_of(L, 4, seed=1)
    whole = np.array([[1, 0], [0, -2], [3, 5], [-4, 1]])
    for image, moved, (x, y) in zip(images, shift_images(images, whole), whole):
        assert_allclose(moved, np.roll(image, (y, x), axis=(0, 1)), atol=1e-5)
    shifts = np.random.default_rng(2).uniform(-3, 3, (4, 2))
    # The opposite shift is the adjoint, fractions of a pixel and the Nyquist frequency included.
    left = np.einsum("nij,nij->n", shift_images(images, shifts), others)
    right = np.einsum("nij,nij->n", images, shift_images(others, -shifts))
    assert_allclose(left, right, rtol=1e-4, atol=1e-3)
    # It commutes with turning the picture over.
    flip = (slice(None), slice(None, None, -1), slice(None, None, -1))
    assert_allclose(shift_images(images[flip], -shifts)[flip], shift_images(images, shifts), atol=1e-5)


@pytest.mark.parametrize("L", [48, 49])
@pytest.mark.parametrize("angle", [0.3, -1.1, 2.5, np.pi / 2])
def test_rotation_turns_x_towards_y(L, angle):
    centre = np.array([9.0, 4.0])
    turned = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ centre
    image, expected = gaussian(L, centre, 2.0)[None], gaussian(L, turned, 2.0)
    # linear interpolation errs by 0.05, turning the other way by 1
    assert_allclose(rotate_images(image, [angle])[0], expected, atol=2e-3)
    assert np.abs(rotate_images(image, [-angle])[0] - expected).max() > 0.5
    assert_allclose(rotate_images(image, angle, order=1)[0], expected, atol=0.08)


def test_quarter_turns_are_exact():
    images = images_of(17, 2)
    assert_allclose(rotate_images(images, np.pi / 2), np.rot90(images, -1, axes=(1, 2)), atol=1e-5)
    assert_allclose(rotate_images(images, -np.pi / 2), np.rot90(images, 1, axes=(1, 2)), atol=1e-5)
    assert_allclose(rotate_images(images, [np.pi, 0.0])[0], images[0, ::-1, ::-1], atol=1e-5)
    assert_allclose(rotate_images(images, [np.pi, 0.0])[1], images[1], atol=1e-6)


@pytest.mark.parametrize("n_theta", [10, 11])
@pytest.mark.parametrize("L", SIZES)
def test_polar_fourier_equals_the_sum(L, n_theta):
    """White noise fills the box to its edges, where an uncorrected or linear kernel is far off."""
    images = images_of(L, 4)
    radii = np.array([0.0, 0.07, 0.2, 0.41, 0.5])
    angles = 2 * np.pi * np.arange(n_theta) / n_theta
    kx, ky = np.multiply.outer(radii, np.cos(angles)), np.multiply.outer(radii, np.sin(angles))
    values, expected = polar_fourier(images, radii, n_theta), direct_transform(images, kx, ky)
    assert values.dtype == np.complex64 and values.shape == (4, 5, n_theta)
    assert np.abs(values - expected).max() < 1e-4 * np.abs(expected).mean()


def test_polar_lines():
    images = images_of(20, 2)
    lines = polar_lines(images, 12, 7)
    assert_allclose(lines, np.swapaxes(polar_fourier(images, np.arange(1, 8) / 20, 12), 1, 2))
    assert_allclose(lines[:, 6:], lines[:, :6].conj())
    with pytest.raises(ValueError, match=r"n_radial must lie in \[1, 10\]"):
        polar_lines(images, 12, 11)


@pytest.mark.parametrize("L", [40, 41])
def test_rotation_shifts_the_polar_transform(L):
    rng = np.random.default_rng(0)
    image = sum(gaussian(L, rng.uniform(-7, 7, 2), 2.0) for _ in range(4))[None]
    radii = np.linspace(0.01, 0.15, 8)
    turned = polar_fourier(rotate_images(image, 2 * np.pi * 5 / 36), radii, 36)
    expected = np.roll(polar_fourier(image, radii, 36), 5, axis=-1)
    assert np.linalg.norm(turned - expected) < 0.01 * np.linalg.norm(expected)


def test_blocks_change_nothing(monkeypatch):
    images, shifts = images_of(16, 9), np.random.default_rng(0).uniform(-2, 2, (9, 2))
    whole = shift_images(images, shifts), polar_fourier(images, [0.1, 0.3], 8), fourier_crop(images, 9)
    monkeypatch.setattr(fourier, "_BLOCK_BYTES", 2 * 8 * 16 * 16)
    parts = shift_images(images, shifts), polar_fourier(images, [0.1, 0.3], 8), fourier_crop(images, 9)
    for a, b in zip(whole, parts):
        assert_allclose(a, b, atol=1e-6)


def test_memmaps_are_read(tmp_path):
    images = images_of(16, 3)
    np.save(tmp_path / "images.npy", images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    assert_array_equal(rotate_images(mapped, 0.2), rotate_images(images, 0.2))
    assert_array_equal(shift_images(mapped, np.ones((3, 2))), shift_images(images, np.ones((3, 2))))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda x: shift_images(x[0], np.zeros((2, 2))), r"images must have shape \(n, L, L\), got \(8, 8\)"),
        (lambda x: shift_images(x[:, 1:], np.zeros((2, 2))), r"got \(2, 7, 8\)"),
        (lambda x: shift_images(x, np.zeros((3, 2))), r"shifts must have shape \(2, 2\).*got \(3, 2\)"),
        (lambda x: shift_images(x, [[0, 0], [np.nan, 0]]), r"shifts\[1\] is \[nan, 0.0\]"),
        (lambda x: rotate_images(x, [1, 2, 3]), r"angles must be a number or have shape \(2,\)"),
        (lambda x: polar_fourier(x, [0.1, 0.6], 8), r"radii must lie in \[0, 0.5\]"),
        (lambda x: polar_fourier(x, [0.1], 0), "n_theta must be positive"),
        (lambda x: fft3c(x[0]), "at least 3 dimensions"),
    ],
)
def test_errors_name_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.zeros((2, 8, 8)))
