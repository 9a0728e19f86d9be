"""Class averages brought to one centre: offsets of simulated averages, up to one shift in space."""

import numpy as np
import pytest

from skcryo.alignment import PolarMatcher, recentred_shifts, synchronize_averages
from skcryo.alignment._synchronize import _align_pairs
from skcryo.datasets import make_molecule
from skcryo.fourier import rotate_images, shift_images
from skcryo.projection import project
from skcryo.rotations import random_rotations

L = 48


@pytest.fixture(scope="module")
def molecule():
    return make_molecule(L)


def moved_averages(molecule, k, seed, *, noise=0.5, junk=0):
    """Noisy projections from random views, moved off-centre by 2 px (standard deviation)."""
    rng = np.random.default_rng(seed)
    rotations = random_rotations(k, seed)
    offsets = np.clip(rng.normal(0, 2, (k, 2)), -4, 4)
    views = project(molecule, rotations)
    views[k - junk :] = 0
    views = views + noise * views[: k - junk].std() * rng.standard_normal(views.shape)
    return shift_images(views, offsets), rotations, offsets


def residual(offsets, true, rotations):
    """Distances after the best common shift in space, which no average can tell."""
    basis = rotations[:, :, :2].transpose(0, 2, 1).reshape(-1, 3)
    error = (offsets - true).ravel()
    error = error - basis @ np.linalg.lstsq(basis, error, rcond=None)[0]
    return np.hypot(*error.reshape(-1, 2).T)


@pytest.mark.parametrize("seed", range(3))
def test_offsets_are_recovered(molecule, seed):
    """Raw offsets have a median of 2 px; a wrong sense of a mirror, a turn or a shift leaves as much."""
    averages, rotations, true = moved_averages(molecule, 80, seed)
    offsets = synchronize_averages(averages)
    assert np.median(residual(np.zeros_like(true), true, rotations)) > 1.5
    assert np.median(residual(offsets, true, rotations)) < 0.4
    assert np.quantile(residual(offsets, true, rotations), 0.9) < 0.9


@pytest.mark.slow
def test_pairs_alone_hold_the_offsets(molecule, monkeypatch):
    """Without the centres of mass, which are good for clean densities: here they are off by 2 px each."""
    averages, rotations, true = moved_averages(molecule, 60, 5, noise=0.1)
    monkeypatch.setattr("skcryo.alignment._synchronize.centres_of_mass", lambda a: np.zeros((60, 2)))
    monkeypatch.setattr("skcryo.alignment._synchronize._ANCHOR", 0.02)
    offsets = synchronize_averages(averages, max_shift=5.0, n_angles=72)
    assert np.median(residual(offsets, true, rotations)) < 0.8


def test_junk_and_empty_classes_do_no_harm(molecule):
    averages, rotations, true = moved_averages(molecule, 70, 1, junk=7)
    averages[3] = np.random.default_rng(0).standard_normal((L, L))
    counts = np.full(70, 30)
    counts[[3, 10]] = 0
    offsets = synchronize_averages(averages, counts)
    good = np.setdiff1d(np.arange(63), [3, 10])
    assert not offsets[[3, 10]].any() and np.all(np.isfinite(offsets))
    assert np.median(residual(offsets[good], true[good], rotations[good])) < 0.45


@pytest.mark.parametrize("size", [40, 41], ids=["even", "odd"])
def test_a_pair_tells_mirror_turn_and_shift(size):
    """average 1 is average 0 mirrored in y, turned by 0.3 of a turn, moved by (2, -1)."""
    rng = np.random.default_rng(0)
    x = np.arange(size) - size // 2
    view = np.zeros((1, size, size))
    for _ in range(9):
        u, v = rng.uniform(-9, 9, 2)
        view[0] += np.exp(-((x - u) ** 2 + (x[:, None] - v) ** 2) / 6)
    mirrored = view[:, np.abs((2 * (size // 2) - np.arange(size)) % size)]
    other = shift_images(rotate_images(mirrored, 0.3 * 2 * np.pi), [[2.0, -1.0]])
    matcher = PolarMatcher(size, n_angles=100, max_shift=3.0, n_refine=4)
    first, second, mirror, angle, shift = _align_pairs(matcher, np.concatenate([view, other]), 1, None)
    assert first.tolist() == [0, 1] and second.tolist() == [1, 0] and mirror.tolist() == [-1, -1]
    assert angle[1] == pytest.approx(0.3 * 2 * np.pi)
    assert shift[1] == pytest.approx([2, -1], abs=0.3)


def test_recentred_shifts_keep_the_images(molecule):
    """An image made from a moved average is the same image made from the centred one."""
    averages, _, true = moved_averages(molecule, 3, 0, noise=0.0)
    labels, angles = np.array([0, 1, 2, 0]), np.array([0.3, 1.9, 4.0, 5.5])
    shifts = np.array([[1.0, 0.5], [-1.0, 2.0], [0.0, 0.0], [2.0, -1.0]])
    images = shift_images(rotate_images(averages[labels], angles), shifts)
    centred = shift_images(averages, -true)
    again = shift_images(
        rotate_images(centred[labels], angles), recentred_shifts(labels, angles, shifts, true)
    )
    inside = slice(8, -8)
    scale = np.abs(images).max()
    assert np.abs(images - again)[:, inside, inside].max() < 0.03 * scale


def test_few_or_no_averages(molecule):
    averages, _, true = moved_averages(molecule, 2, 0, noise=0.0)
    assert synchronize_averages(averages[:0]).shape == (0, 2)
    assert np.abs(synchronize_averages(averages[:1]) - true[:1]).max() < 1.5
    assert synchronize_averages(averages).shape == (2, 2)
    assert not synchronize_averages(averages, [0, 0]).any()


def test_inputs_are_refused_by_name():
    with pytest.raises(ValueError, match=r"averages must have shape \(k, L, L\), got \(3, 8, 9\)"):
        synchronize_averages(np.ones((3, 8, 9)))
    with pytest.raises(ValueError, match=r"counts must have shape \(3,\), got \(2,\)"):
        synchronize_averages(np.ones((3, 8, 8)), [1, 2])
    with pytest.raises(ValueError, match="n_neighbors must be positive, got 0"):
        synchronize_averages(np.ones((3, 8, 8)), n_neighbors=0)
