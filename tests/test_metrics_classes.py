"""Views within classes, occupancies, precision of partitions."""

import itertools
import tracemalloc

import numpy as np
import pytest
from sklearn.base import BaseEstimator
from sklearn.metrics import make_scorer

from skcryo.metrics import (
    class_precisions,
    class_view_angles,
    effective_n_classes,
    occupancy_entropy,
    partition_precision,
    view_coherence,
)
from skcryo.rotations import in_plane_rotation, random_rotations


def test_random_classes_of_uniform_views():
    """The angle of two uniform directions has the density sin(t) / 2."""
    R = random_rotations(3000, random_state=0)
    coherence = view_coherence(np.random.default_rng(0).integers(0, 5, 3000), R)
    assert coherence.median == pytest.approx(90, abs=1)
    assert coherence.mean == pytest.approx(90, abs=1)
    for degrees in (15, 20, 90, 123.456):
        expected = (1 - np.cos(np.deg2rad(degrees))) / 2
        assert coherence.share_under(degrees) == pytest.approx(expected, abs=0.003)
    assert coherence.antipodal_share == pytest.approx((1 - np.cos(np.deg2rad(20))) / 2, abs=0.003)


@pytest.mark.parametrize("seed", [0, 1])
def test_against_a_slow_reference(seed):
    rng = np.random.default_rng(seed)
    R = random_rotations(60, random_state=seed)
    labels = rng.integers(-1, 6, 60)
    reference = []
    for i, j in itertools.combinations(range(60), 2):
        if labels[i] == labels[j] >= 0:
            reference.append(np.degrees(np.arccos(np.clip(R[i, :, 2] @ R[j, :, 2], -1, 1))))
    angles = class_view_angles(labels, R)
    assert angles.dtype == np.float32
    assert np.allclose(np.sort(angles), np.sort(reference), atol=1e-3)
    coherence = view_coherence(labels, R)
    assert coherence.n_pairs == len(reference)
    assert coherence.mean == pytest.approx(np.mean(reference))
    assert coherence.median == pytest.approx(np.median(reference), abs=1.0)  # a middle pair of even numbers
    assert coherence.share_under(20) == pytest.approx(np.mean(np.array(reference) < 20), abs=1e-9)


def test_classes_larger_than_a_block_lose_no_pair():
    R = random_rotations(2500, random_state=0)
    labels = np.zeros(2500, dtype=int)
    whole = view_coherence(labels, R)
    assert whole.n_pairs == 2500 * 2499 // 2
    order = np.random.default_rng(0).permutation(2500)
    assert np.array_equal(view_coherence(labels, R[order]).histogram.sum(), whole.histogram.sum())
    assert view_coherence(labels, R[order]).median == whole.median


def test_memory_is_bounded():
    """One class of 6000 images: its whole matrix would take 288 MB."""
    directions = random_rotations(6000, random_state=0)[:, :, 2]
    tracemalloc.start()
    view_coherence(np.zeros(6000, dtype=int), directions)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6


def test_in_plane_turns_do_not_count_and_opposite_views_are_seen():
    R = random_rotations(1, random_state=0) @ in_plane_rotation(np.linspace(0, 6, 20))
    assert view_coherence(np.zeros(20, dtype=int), R).median < 0.02
    opposite = np.concatenate([R[:10], R[:10] @ np.diag([1.0, -1.0, -1.0])])
    assert view_coherence(np.zeros(20, dtype=int), opposite).antipodal_share == pytest.approx(100 / 190)


@pytest.mark.parametrize(
    "labels, rotations, message",
    [
        ([0, 0], np.eye(3)[None], "labels has 2 entries but rotations has 1"),
        ([0, 1], np.stack([np.eye(3)] * 2), "no class with two images"),
        ([-1, -1], np.stack([np.eye(3)] * 2), "no class with two images"),
        ([0, 0], np.ones((2, 3)), r"rotations\[0\]"),
        ([0, 0], np.ones((2, 4)), r"rotations has shape \(2, 4\)"),
        ([[0, 0]], np.stack([np.eye(3)] * 2), r"labels has shape \(1, 2\)"),
        (["a", "b"], np.stack([np.eye(3)] * 2), "whole numbers"),
        ([0.5, 1], np.stack([np.eye(3)] * 2), "whole numbers"),
    ],
)
def test_view_arguments(labels, rotations, message):
    with pytest.raises(ValueError, match=message):
        view_coherence(labels, rotations)


# -- occupancy ---------------------------------------------------------------------------------------------


def test_occupancies():
    even = np.arange(60) % 6
    assert occupancy_entropy(even) == pytest.approx(1)
    assert effective_n_classes(even) == pytest.approx(6)
    assert occupancy_entropy(np.zeros(60, int), n_classes=6) == 0
    assert occupancy_entropy(np.zeros(60, int)) == 1
    assert effective_n_classes(np.zeros(60, int)) == 1
    # Shares 1/2, 1/4, 1/4: 1.5 bits
    labels = np.array([5, 5, 7, 9])
    assert effective_n_classes(labels) == pytest.approx(2**1.5)
    assert occupancy_entropy(labels) == pytest.approx(1.5 / np.log2(3))
    assert occupancy_entropy(labels, n_classes=16) == pytest.approx(1.5 / 4)
    assert occupancy_entropy(np.append(labels, [-1] * 50)) == pytest.approx(1.5 / np.log2(3))
    with pytest.raises(ValueError, match="labels reach 9 but n_classes is 9"):
        occupancy_entropy(labels, n_classes=9)
    with pytest.raises(ValueError, match="no image to a class"):
        effective_n_classes([-1, -1])


# -- precision ---------------------------------------------------------------------------------------------


def slow_precision(true, pred, K):
    """Definition 7 as printed, over all permutations."""
    best = 0.0
    for permutation in itertools.permutations(range(K)):
        ratios = []
        for k in range(K):
            chosen = pred == permutation[k]
            ratios.append((true[chosen] == k).mean() if chosen.any() else 0.0)
        best = max(best, min(ratios))
    return best


@pytest.mark.parametrize("K", [2, 3, 4, 5])
def test_precision_is_definition_7(K):
    rng = np.random.default_rng(K)
    for noise in (0.0, 0.2, 0.6, 1.0):
        true = np.concatenate([np.arange(K), rng.integers(0, K, 60)])
        pred = np.where(rng.uniform(size=len(true)) < noise, rng.integers(0, K, len(true)), (true + 1) % K)
        assert partition_precision(true, pred) == pytest.approx(slow_precision(true, pred, K))
        assert class_precisions(true, pred).min() == partition_precision(true, pred)
        assert partition_precision(true * 10 + 3, 7 * pred) == partition_precision(true, pred)


def test_the_least_precision_is_maximised_not_the_sum():
    # Estimated class 0 holds 9 a and 1 b, class 1 holds 10 a and 2 b: either way one class fares badly.
    true = np.array([0] * 9 + [1] + [0] * 10 + [1] * 2)
    pred = np.array([0] * 10 + [1] * 12)
    assert class_precisions(true, pred).tolist() == pytest.approx([0.9, 2 / 12])
    assert partition_precision(true, pred) == pytest.approx(slow_precision(true, pred, 2))


def test_special_partitions():
    """The paper's confusion matrix at SNR .15 gives .960."""
    true = np.repeat([0, 0, 1, 1], [2397, 103, 12, 2488])
    pred = np.repeat([0, 1, 0, 1], [2397, 103, 12, 2488])
    assert partition_precision(true, pred) == pytest.approx(0.960, abs=5e-4)
    assert partition_precision(true, np.zeros_like(true)) == 0  # an empty class
    rng = np.random.default_rng(0)
    assert partition_precision(true, rng.integers(0, 2, 5000)) == pytest.approx(0.5, abs=0.03)
    with pytest.raises(ValueError, match="labels_pred holds 3 classes but labels_true 2"):
        partition_precision([0, 1, 1], [0, 1, 2])
    with pytest.raises(ValueError, match="labels_true has 3 entries but labels_pred has 2"):
        partition_precision([0, 1, 1], [0, 1])


def test_precision_as_a_scorer():
    class Echo(BaseEstimator):
        def predict(self, X):
            return 1 - X[:, 0]

    y = np.array([0, 1, 0, 1])
    assert make_scorer(partition_precision)(Echo(), y[:, None], y) == 1
