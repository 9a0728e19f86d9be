"""Images in units of the noise, against projections, shifts and spectra that are known."""

import numpy as np
import pytest

from skcryo.alignment import FourierImages
from skcryo.ctf import evaluate_ctf, make_ctf
from skcryo.datasets import make_molecule
from skcryo.projection import VolumeProjector, project
from skcryo.rotations import random_rotations

PIXEL_SIZE = 4.0


def coloured(L):
    return 2.0 + 30 / (1 + np.arange(L // 2 + 1))


def varied_ctf(n):
    return make_ctf(
        n, defocus_u=np.linspace(1e4, 2.5e4, n), defocus_v=np.linspace(0.9e4, 2.3e4, n), defocus_angle=25.0
    )


def white(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("L", [24, 25])
@pytest.mark.parametrize("max_ring", [0, 0.5, 1, 2.5, 5, np.hypot(3, 5), 11, 100])
def test_points_are_each_pair_once_from_low_to_high(L, max_ring):
    points = FourierImages.from_stack(white(1, L, L), np.ones(L // 2 + 1), max_ring).points
    both = {tuple(p) for p in points} | {tuple(-p) for p in points}
    last = (L - 1) // 2  # the Nyquist terms of an even box are no pairs
    k, top = np.arange(-last, last + 1), min(max_ring, L / 2)
    assert len(both) == 2 * len(points) == np.count_nonzero(np.hypot(*np.meshgrid(k, k)) <= top + 1e-9) - 1
    assert (np.diff(np.hypot(*points.T)) >= 0).all()


@pytest.mark.parametrize("max_ring", [1, 3.3, 8])
def test_smaller_discs_are_prefixes(max_ring):
    stack = white(3, 24, 24)
    few, many = (FourierImages.from_stack(stack, np.ones(13), ring) for ring in (max_ring, 11))
    n_points = many.n_points(max_ring)
    assert n_points == few.n_points(max_ring) == len(few.points)
    assert np.array_equal(few.points, many.points[:n_points])
    assert np.array_equal(few.values, many.values[:, :n_points])
    assert many.n_points(100) == len(many.points)
    assert many.n_points(0.5) == 0


@pytest.mark.parametrize("L", [20, 21])
@pytest.mark.parametrize("with_ctf", [False, True])
def test_clean_images_are_filtered_slices_times_phases(L, with_ctf):
    n = 7
    volume, rotations = make_molecule(L, random_state=1), random_rotations(n, random_state=0)
    shifts = np.random.default_rng(1).uniform(-3, 3, (n, 2))
    ctf = {"ctf": varied_ctf(n), "pixel_size": PIXEL_SIZE} if with_ctf else {}
    stack = project(volume, rotations, shifts=shifts, **ctf)
    images = FourierImages.from_stack(stack, coloured(L), L, **ctf)
    assert len(images) == n and images.L == L
    assert L // 2 < images.radii.max() + 0.1 <= L / 2 + 0.1 and np.abs(images.points).max() == (L - 1) // 2
    assert images.filters.shape == (n if with_ctf else 1, len(images.points))
    # filters and phases from their definitions
    kx, ky = images.points.T
    std = L * np.sqrt(coloured(L)[np.rint(np.hypot(kx, ky)).astype(int)])
    filters = np.ones((n, len(kx))) / std
    if with_ctf:
        filters *= evaluate_ctf(ctf["ctf"], L, PIXEL_SIZE)[:, (ky + L // 2).astype(int), (kx + L // 2).astype(int)]
    assert np.allclose(images.filters, filters, rtol=1e-5, atol=1e-9)
    phases = np.exp(-2j * np.pi / L * (shifts @ images.points.T))
    assert np.allclose(images.centred_phases(shifts), phases.conj(), atol=1e-6)
    assert np.allclose(images.centred_phases(shifts, 5), phases.conj()[:, :5], atol=1e-6)
    model = filters * phases * VolumeProjector(volume).slices(rotations, images.points)
    assert np.linalg.norm(images.values - model) < 1e-4 * np.linalg.norm(model)


@pytest.mark.parametrize("L", [24, 25])
@pytest.mark.parametrize("spectrum", [lambda L: np.full(L // 2 + 1, 9.0), coloured])
def test_noise_has_unit_variance_in_every_ring(L, spectrum):
    n, spectrum = 3000, spectrum(L)
    ring = np.minimum(np.rint(np.hypot(*np.meshgrid(np.fft.rfftfreq(L, 1 / L), np.fft.fftfreq(L, 1 / L)))), L // 2)
    amplitude = np.sqrt(spectrum[ring.astype(int)])
    stack = np.fft.irfft2(np.fft.rfft2(white(n, L, L)) * amplitude, s=(L, L)) + 5.0
    images = FourierImages.from_stack(stack, spectrum, L)
    power = np.square(np.abs(images.values)).mean(axis=0)
    for r in range(1, images.rings.max() + 1):
        ring = images.rings == r
        assert abs(power[ring].mean() - 1) < 5 / np.sqrt(n * np.count_nonzero(ring))
    # real and imaginary parts alike, and no correlation with the next point
    assert abs(np.square(images.values.real).mean() - 0.5) < 0.01
    assert abs((images.values[:, 1:] * images.values[:, :-1].conj()).mean()) < 0.01


def test_a_large_background_costs_no_digits():
    stack = white(5, 24, 24)
    plain = FourierImages.from_stack(stack, np.ones(13), 11)
    raised = FourierImages.from_stack(stack + np.float32(1024), np.ones(13), 11)
    # what the pixels themselves lose is 1024 * 2^-24 each; with the background in the transform it was ten times that
    assert np.abs(plain.values - raised.values).max() < 3e-4


def test_cut_into_chunks_or_not():
    ctf = varied_ctf(9)
    options = {"ctf": ctf, "pixel_size": PIXEL_SIZE}
    whole = FourierImages.from_stack(white(9, 24, 24), coloured(24), 8, **options)
    parts = FourierImages.from_stack(white(9, 24, 24), coloured(24), 8, chunk_size=2, **options)
    assert np.allclose(whole.values, parts.values, atol=1e-5)
    assert np.allclose(whole.filters, parts.filters, atol=1e-6)


def test_take_and_rescale():
    n = 6
    one = FourierImages.from_stack(white(n, 16, 16), np.ones(9), 7)
    own = FourierImages.from_stack(white(n, 16, 16), np.ones(9), 7, ctf=varied_ctf(n), pixel_size=PIXEL_SIZE)
    for images in (one, own):
        part = images.take(slice(1, 4))
        assert len(part) == 3 and np.shares_memory(part.values, images.values)
        some = images.take(np.array([4, 0]))
        assert np.array_equal(some.values, images.values[[4, 0]])
        assert len(images.take(slice(0, 0))) == 0
        by_point, by_image = np.linspace(1, 2, len(images.points)), np.linspace(1, 3, n)[:, None]
        for factors in (by_point, by_image):
            scaled = images.rescaled(factors)
            assert scaled.values.dtype == np.complex64 and scaled.filters.dtype == np.float32
            assert np.allclose(scaled.values, images.values * factors)
            assert np.allclose(np.broadcast_to(scaled.filters, scaled.values.shape), images.filters * factors)
    assert one.take(np.array([4, 0])).filters.shape == (1, len(one.points))
    assert np.array_equal(own.take(np.array([4, 0])).filters, own.filters[[4, 0]])


def test_no_images():
    for ctf in (None, varied_ctf(0)):
        images = FourierImages.from_stack(np.zeros((0, 16, 16)), np.ones(9), 7, ctf=ctf, pixel_size=PIXEL_SIZE)
        assert len(images) == 0 and images.values.shape == (0, len(images.points))


def test_bad_input():
    stack = white(4, 16, 16)
    with pytest.raises(ValueError, match=r"spectrum must have shape \(9,\)"):
        FourierImages.from_stack(stack, np.ones(8), 7)
    with pytest.raises(ValueError, match=r"spectrum\[3\]"):
        FourierImages.from_stack(stack, np.where(np.arange(9) == 3, 0.0, 1.0), 7)
    with pytest.raises(ValueError, match="5"):
        FourierImages.from_stack(stack, np.ones(9), 7, ctf=varied_ctf(5), pixel_size=PIXEL_SIZE)
    with pytest.raises(ValueError, match="pixel_size"):
        FourierImages.from_stack(stack, np.ones(9), 7, ctf=varied_ctf(4))
    stack[2, 3, 3] = np.nan
    with pytest.raises(ValueError, match="image 2"):
        FourierImages.from_stack(stack, np.ones(9), 7)
    with pytest.raises(ValueError, match="stack must have shape"):
        FourierImages.from_stack(stack[0], np.ones(9), 7)
