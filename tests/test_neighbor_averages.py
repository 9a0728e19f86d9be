"""Averages of nearest neighbours: against plain means, turned and mirrored, with CTFs and shifts."""

import numpy as np
import pytest

from skcryo.cluster import NearestNeighborAverages
from skcryo.ctf import apply_ctf, make_ctf
from skcryo.datasets import make_molecule, make_particles
from skcryo.fourier import rotate_images, shift_images
from skcryo.particles import ParticleStack


@pytest.fixture(scope="module")
def particles():
    return make_particles(make_molecule(32, random_state=2), 600, snr=0.2, random_state=1)


def mirror(images):
    flipped = images[:, ::-1]
    return np.roll(flipped, 1, axis=1) if images.shape[1] % 2 == 0 else flipped


def relative_error(images, clean):
    return float(np.sum((np.asarray(images) - clean) ** 2) / np.sum((clean - clean.mean(axis=0)) ** 2))


@pytest.mark.parametrize("L", [32, 33])
def test_turned_and_mirrored_copies_average_to_the_image(L):
    clean = make_particles(make_molecule(L, random_state=1), 6, snr=None, random_state=0)[1].clean
    rng = np.random.default_rng(0)
    copies = [rotate_images(mirror(clean) if k % 2 else clean, rng.uniform(0, 2 * np.pi, 6)) for k in range(8)]
    averages = NearestNeighborAverages(8).fit(np.concatenate(copies))
    assert {frozenset(row % 6) for row in averages.neighbors_.indices} == {frozenset([k]) for k in range(6)}
    inside = np.hypot(*np.mgrid[: 2 * (L // 2), : 2 * (L // 2)] - L // 2) < L // 2 - 1
    found = averages.transform(clean)[:, : 2 * (L // 2), : 2 * (L // 2)][:, inside]
    # Copies that are not turned back agree to 100 %; what is left is spline interpolation.
    assert relative_error(found, clean[:, : 2 * (L // 2), : 2 * (L // 2)][:, inside]) < 0.02


@pytest.mark.slow
def test_one_neighbor_is_the_image_itself(particles):
    averages = NearestNeighborAverages(1).fit_transform(particles[0])
    inside = np.hypot(*np.mgrid[:32, :32] - 16) < 15
    assert np.asarray(averages)[:, inside] == pytest.approx(np.asarray(particles[0])[:, inside], abs=1e-3)


def test_averages_are_less_noisy_and_true_to_the_view(particles):
    stack, truth = particles
    averages = NearestNeighborAverages().fit(stack)
    assert averages.n_neighbors_ == 24
    found = averages.fit_transform(stack)
    error = relative_error(found, truth.clean)
    # The images themselves: 6; the mean over images that are drawn by chance: 1.
    assert error < 0.55
    assert isinstance(found, ParticleStack)
    assert np.array_equal(np.asarray(found), np.asarray(averages.transform(stack)))


def test_turning_a_new_image_turns_its_average(particles):
    averages = NearestNeighborAverages(10).fit(particles[0])
    images = particles[1].clean[:20]
    plain, turned = averages.transform(images), averages.transform(rotate_images(images, 1.0))
    inside = np.hypot(*np.mgrid[:32, :32] - 16) < 13
    expected = rotate_images(plain, 1.0)
    assert relative_error(turned[:, inside], expected[:, inside]) < 0.15


@pytest.mark.slow
def test_ctfs_are_undone(particles):
    clean = particles[1].clean
    rng = np.random.default_rng(0)
    n = len(clean)
    ctf = make_ctf(
        n,
        defocus_u=rng.uniform(8e3, 2e4, n),
        defocus_v=rng.uniform(8e3, 2e4, n),
        defocus_angle=rng.uniform(0, 180, n),
    )
    seen = apply_ctf(clean, ctf, 5.0)
    seen += np.float32(seen.std()) * rng.standard_normal(seen.shape, dtype=np.float32)
    stack = ParticleStack(seen, pixel_size=5.0, ctf=ctf)
    with_ctf = NearestNeighborAverages(20).fit_transform(stack)
    assert with_ctf.ctf is None
    without = NearestNeighborAverages(20).fit_transform(stack.replace(ctf=None))
    assert relative_error(with_ctf, clean) < 0.6 * relative_error(without, clean)
    by_keyword = NearestNeighborAverages(20).fit_transform(stack.replace(ctf=None), ctf=ctf)
    assert np.array_equal(np.asarray(by_keyword), np.asarray(with_ctf))


def test_known_shifts_are_undone(particles):
    stack = particles[0][:200]
    shifts = np.random.default_rng(0).integers(-3, 4, (200, 2)).astype(float)
    moved = stack.replace(data=shift_images(np.asarray(stack), shifts), shifts=shifts)
    found, expected = (NearestNeighborAverages(5).fit_transform(X) for X in (moved, stack))
    assert found.shifts is None
    inside = np.hypot(*np.mgrid[:32, :32] - 16) < 11
    assert relative_error(np.asarray(found)[:, inside], np.asarray(expected)[:, inside]) < 0.02


def test_bad_input(particles):
    with pytest.raises(ValueError, match="n_neighbors is 20 but X has 12 images"):
        NearestNeighborAverages(20).fit(particles[0][:12])
    with pytest.raises(ValueError, match="a CTF needs the pixel size"):
        NearestNeighborAverages().fit(np.asarray(particles[0][:12]), ctf=make_ctf(12))
