"""Tilt pairs, two images of a particle with the stage tilted between: on the stack, in the engines, in fits."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from scipy.stats import spearmanr

from skcryo.alignment import (
    FourierImages,
    expected_slices,
    pose_normal_equations,
    refine_poses,
    search_poses,
    shift_grid,
)
from skcryo.datasets import make_molecule
from skcryo.heterogeneity import CryoDRGN
from skcryo.particles import ParticleStack, concatenate_stacks
from skcryo.projection import VolumeProjector
from skcryo.rotations import geodesic_distance, random_rotations, so3_grid

L, ANGLE = 16, np.deg2rad(40)
TURN = Rotation.from_rotvec([-ANGLE, 0, 0]).as_matrix()


def tilted_images(projector, rotations, shifts, noise=0.0, seed=0):
    """Pairs as FourierImages, with both stacks."""
    random = np.random.default_rng(seed)
    stacks = []
    for turned, own in ((rotations, shifts[:, :2]), (rotations @ TURN, shifts[:, 2:])):
        clean = projector.project(turned, shifts=own)
        stacks.append(clean + noise * random.standard_normal(clean.shape).astype(np.float32))
    spectrum = np.full(L // 2 + 1, max(noise, 0.05) ** 2)
    first, second = (FourierImages.from_stack(stack, spectrum, max_ring=7) for stack in stacks)
    return FourierImages(first.values, first.filters, first.points, L, second, TURN), stacks


@pytest.fixture(scope="module")
def projector():
    return VolumeProjector(make_molecule(L, random_state=0))


def test_a_stack_carries_its_tilt_images():
    images = np.random.default_rng(0).normal(size=(2, 6, 8, 8)).astype(np.float32)
    stack = ParticleStack(images[0], pixel_size=2.0, tilt=images[1], tilt_angle=0.5)
    assert stack.tilt_angle.tolist() == [0.5, 0, 0]
    assert np.array_equal(np.asarray(stack[[4, 1]].tilt), images[1][[4, 1]])
    both = concatenate_stacks([stack[:2], stack[2:]])
    assert np.array_equal(np.asarray(both.tilt), images[1]) and both.tilt_angle[0] == 0.5
    assert stack.replace(tilt=None).tilt_angle is None
    assert "tilt" in repr(stack)
    with pytest.raises(ValueError, match="is not mapped as one"):
        stack.map(np.negative)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"tilt_angle": None}, "tilt is given but tilt_angle is not"),
        ({"tilt": np.zeros((5, 8, 8))}, r"tilt has shape \(5, 8, 8\) but the first images have \(6, 8, 8\)"),
        ({"tilt_angle": 45}, "an angle in radians"),
        ({"tilt_angle": 0.0}, "an angle in radians, not 0"),
        ({"tilt": ParticleStack(np.zeros((6, 8, 8)), pixel_size=3.0)}, "tilt has pixels of 3 A"),
    ],
)
def test_what_is_no_pair_is_refused(changes, message):
    options = {"tilt": np.zeros((6, 8, 8)), "tilt_angle": 0.5} | changes
    with pytest.raises(ValueError, match=message):
        ParticleStack(np.zeros((6, 8, 8)), pixel_size=2.0, **options)


def test_search_of_pairs_is_that_of_both_images(projector):
    grid, shifts = so3_grid(1, 12), shift_grid(1.5, 1.0)
    truth = grid[[3, 40, 77]], np.hstack([shifts[[0, 4, 8]], shifts[[8, 1, 5]]])
    images, _ = tilted_images(projector, *truth, noise=0.5)
    found = search_poses(images, projector, grid, shifts, band=6, n_best=3)
    both = 0
    for view, turned, _ in images.views(grid, np.zeros((1, 4))):
        alone = search_poses(view, projector, turned, shifts, band=6, n_best=len(grid))
        best = np.empty((3, len(grid)))
        np.put_along_axis(best, alone.rotation, alone.log_likelihood, axis=1)
        both = both + best
    assert np.array_equal(found.rotation, np.argsort(-both, axis=1)[:, :3])
    assert np.allclose(found.log_likelihood, -np.sort(-both, axis=1)[:, :3], atol=1e-2)
    assert found.rotation[:, 0].tolist() == [3, 40, 77]
    assert found.shift[:, 0].tolist() == [[0, 8], [4, 1], [8, 5]]


def test_expected_slices_of_pairs_are_weighted_by_both_images(projector):
    """Against sums written out: a weight for each rotation and both shifts."""
    grid, shifts = so3_grid(1, 6), shift_grid(1.0, 1.0)
    images, _ = tilted_images(projector, random_rotations(2, 1), np.zeros((2, 4)), noise=3.0)
    found = expected_slices(images, projector, grid, shifts, band=4)
    n_points = images.n_points(4)
    logs, values, squares = [], [], []
    for view, turned, _ in images.views(grid, np.zeros((1, 4))):
        slices = projector.slices(turned, images.points[:n_points])
        moved = view.values[:, None, :n_points] * view.centred_phases(shifts, n_points)
        model = slices * view.filters[:, :n_points]
        away = np.square(np.abs(moved[:, :, None] - model)).sum(axis=-1)
        nothing = np.square(np.abs(view.values[:, :n_points])).sum(axis=1)
        logs.append((nothing[:, None, None] - away).astype(float))
        values.append(moved * view.filters[:, :n_points])
        squares.append(np.square(view.filters[:, :n_points]))
    joint = logs[0][:, :, None] + logs[1][:, None]  # image, first shift, second shift, rotation
    top = joint.max(axis=(1, 2, 3), keepdims=True)
    weights = np.exp(joint - top)
    evidence = top[:, 0, 0, 0] + np.log(weights.mean(axis=(1, 2, 3)))
    weights /= weights.sum(axis=(1, 2, 3), keepdims=True)
    assert np.allclose(found.log_evidence, evidence, atol=1e-3)
    first = np.einsum("nstr,nsp->rp", weights, values[0])
    second = np.einsum("nstr,ntp->rp", weights, values[1])
    scale = np.abs(first).max()
    assert np.allclose(found.numerator, np.concatenate([first, second]), atol=2e-3 * scale)
    strength = weights.sum(axis=(0, 1, 2))[:, None] * squares[0][0]
    assert np.allclose(found.denominator, np.concatenate([strength, strength]), atol=2e-3 * strength.max())


def test_normal_equations_of_pairs_are_a_derivative(projector):
    truth = random_rotations(3, 0), np.random.default_rng(0).normal(size=(3, 4)) * 0.5
    images, _ = tilted_images(projector, *truth)
    rotations = truth[0] @ Rotation.from_rotvec([0.02, -0.01, 0.03]).as_matrix()
    _, gradient, sums = pose_normal_equations(images, projector, rotations, truth[1])
    step = 1e-4
    for j in range(7):
        away = np.eye(7)[j] * step
        ends = []
        for sign in (1, -1):
            turned = rotations @ Rotation.from_rotvec(sign * away[:3]).as_matrix()
            ends.append(pose_normal_equations(images, projector, turned, truth[1] + sign * away[3:])[2][:, 0])
        slope = (ends[0] - ends[1]) / (2 * step)
        least = 2e-2 * np.abs(gradient[:, j]).max() + 1e-3 * sums[:, 0].max()
        assert np.allclose(-2 * gradient[:, j], slope, atol=least)
    fit = refine_poses(images, projector, rotations, np.zeros((3, 4)), n_steps=10)
    assert np.degrees(geodesic_distance(fit.rotations, truth[0])).max() < 0.05
    assert np.abs(fit.shifts - truth[1]).max() < 0.01


# -------------------------------------------------------------------------------------------------------- CryoDRGN
OPTIONS = {"n_jobs": 1, "device": "cpu", "random_state": 0}


def bending(n, noise, seed=0, size=24):
    """Pairs of a molecule that bends: (stack with poses, labels)."""
    states = [VolumeProjector(make_molecule(size, random_state=1, hinge=angle)) for angle in (0, 25, 50, 75)]
    random = np.random.default_rng(seed)
    labels, rotations = random.integers(4, size=n), random_rotations(n, seed)
    views = []
    for turned in (rotations, rotations @ TURN):
        clean = np.empty((n, size, size), dtype=np.float32)
        for k, state in enumerate(states):
            clean[labels == k] = state.project(turned[labels == k])
        views.append(clean + noise * clean.std() * random.standard_normal(clean.shape).astype(np.float32))
    return ParticleStack(views[0], rotations=rotations, tilt=views[1], tilt_angle=ANGLE), labels


def test_pairs_tell_coordinates_better_than_single_images():
    pytest.importorskip("torch", reason="CryoDRGN needs the extra skcryo[torch]")
    stack, labels = bending(250, 1.5)
    found = {}
    for name, X in (("single", stack.replace(tilt=None)), ("pairs", stack)):
        estimator = CryoDRGN(1, inference="pca", max_iter=2, **OPTIONS).fit(X)
        found[name] = abs(spearmanr(estimator.embedding_[:, 0], labels)[0])
    assert found["pairs"] > found["single"] + 0.02 and found["pairs"] > 0.7


def test_coordinates_of_pairs_through_the_decoder():
    pytest.importorskip("torch")
    stack, labels = bending(80, 0.2, size=16)
    estimator = CryoDRGN(1, max_iter=30, **OPTIONS).fit(stack)
    assert abs(spearmanr(estimator.embedding_[:, 0], labels)[0]) > 0.8
    assert estimator.shifts_.shape == estimator.tilt_shifts_.shape == (80, 2)
    posterior = estimator.latent_posterior(stack[:20])
    assert np.abs(posterior.mean - estimator.embedding_[:20]).max() < 1e-4
    assert posterior.tilt_shifts.shape == (20, 2)
    # images alone do for what was learnt from pairs; explicit ones come first
    single = stack[:20].replace(tilt=None)
    given = estimator.transform(single, tilt=np.asarray(stack.tilt[:20]), tilt_angle=stack.tilt_angle)
    assert np.abs(given - posterior.mean).max() < 1e-5
    assert np.abs(estimator.transform(single) - given).max() > 1e-3


def test_pairs_tell_the_hand(monkeypatch):
    """Poses from nothing: with the wrong sign of the tilt, the mirrored molecule would come out."""
    pytest.importorskip("torch")
    from skcryo.heterogeneity import _drgn_search as module
    from skcryo.rotations import align_rotations

    for name, value in (("_EPOCHS", 11), ("_STARTS", 2), ("_STEP", 30)):
        monkeypatch.setattr(module, name, value)
    stack, _ = bending(150, 0.1, size=16)
    truth = stack.rotations
    estimator = CryoDRGN(0, poses="search", max_shift=0, max_iter=20, **OPTIONS).fit(stack)
    same = np.median(geodesic_distance(align_rotations(estimator.rotations_, truth, reflection=False)[0], truth))
    assert np.degrees(same) < 15


@pytest.mark.parametrize("inference", ["encoder", "pca"])
def test_pairs_with_other_inference(inference):
    pytest.importorskip("torch")
    stack, _ = bending(60, 0.5)
    estimator = CryoDRGN(1, inference=inference, max_iter=6, **OPTIONS).fit(stack)
    assert np.abs(estimator.transform(stack[:9]) - estimator.embedding_[:9]).max() < 1e-3


def test_bad_tilt_images_are_named():
    pytest.importorskip("torch")
    stack, _ = bending(30, 0.5)
    images = np.array(stack.tilt)
    images[7, 3, 4] = np.nan
    with pytest.raises(ValueError, match="of the tilt images: .*NaN: image 7"):
        CryoDRGN(0, max_iter=3, **OPTIONS).fit(stack, tilt=images, tilt_angle=ANGLE)
