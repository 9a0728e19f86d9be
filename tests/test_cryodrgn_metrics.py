"""Latent coordinates against the truth: invariances, chance, closed forms, bad input."""

import numpy as np
import pytest
from scipy.stats import rankdata

from skcryo.metrics import information_imbalance, neighborhood_similarity, per_image_fsc


def test_invariant_under_similarities_and_one_for_the_truth():
    random = np.random.default_rng(0)
    truth = random.normal(size=(300, 2))
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])
    assert neighborhood_similarity(truth, 3 * truth @ turn + 5) == 1.0
    assert neighborhood_similarity(truth, truth + 0.05 * random.normal(size=truth.shape), n_neighbors=30) > 0.8


def test_chance():
    random = np.random.default_rng(0)
    values = random.normal(size=(2, 500, 2))
    assert abs(neighborhood_similarity(*values, n_neighbors=50) - 50 / 499) < 0.02


def test_a_circle_is_not_a_line():
    angle = np.linspace(0, 2 * np.pi, 200, endpoint=False)
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    assert neighborhood_similarity(circle, 2 * circle) == 1.0
    # cut open, the ends have each other no longer; laid flat, two arcs lie upon each other
    assert 0.9 < neighborhood_similarity(circle, angle) < 1.0
    assert neighborhood_similarity(circle, circle[:, :1]) < 0.7


def test_states_that_images_share_are_no_loss():
    labels = np.repeat(np.arange(5), 40)
    z = labels + 0.01 * np.random.default_rng(0).normal(size=200)
    assert neighborhood_similarity(labels, z, n_neighbors=10) == 1.0


def imbalance(first, second, n_neighbors=1):
    """Image by image, as the definition says."""
    n, found = len(first), []
    for i in range(n):
        others = np.delete(np.arange(n), i)
        near = np.linalg.norm(first[others] - first[i], axis=1)
        ranks = rankdata(np.linalg.norm(second[others] - second[i], axis=1))
        found.append(ranks[near <= np.sort(near)[n_neighbors - 1] + 1e-12].mean())
    return 2 / n * np.mean(found)


@pytest.mark.parametrize("n_neighbors", [1, 4])
def test_information_imbalance_is_its_definition(n_neighbors, monkeypatch):
    random = np.random.default_rng(0)
    first = random.normal(size=(60, 2))
    for second in (first[:, :1] ** 3, np.round(first), random.normal(size=(60, 3))):
        for pair in ((first, second), (second, first)):
            assert information_imbalance(*pair, n_neighbors=n_neighbors) == pytest.approx(imbalance(*pair, n_neighbors))
    whole = information_imbalance(first, second)
    monkeypatch.setattr("skcryo.metrics._latents._BLOCK", 7 * 60)
    assert information_imbalance(first, second) == whole


def test_information_imbalance_at_its_ends():
    random = np.random.default_rng(1)
    z, other = random.normal(size=(2, 500, 2))
    assert information_imbalance(z, 3 * z + 1) == pytest.approx(2 / 500)
    assert abs(information_imbalance(z, other) - 1) < 0.1
    # what has more in it tells the other, and is not told by it
    assert information_imbalance(z, z[:, 0]) < 0.1 < 0.3 < information_imbalance(z[:, 0], z)
    # equal states: no lower than one over their number, and still 1 by chance
    labels = random.integers(5, size=500)
    assert abs(information_imbalance(labels, labels) - 0.2) < 0.01
    assert abs(information_imbalance(z, labels) - 1) < 0.1


def test_per_image_fsc_of_scaled_and_of_unrelated_volumes():
    volumes = np.random.default_rng(0).normal(size=(2, 2, 12, 12, 12))
    assert np.allclose(per_image_fsc(volumes[0], 2 * volumes[0]), 1)
    assert np.abs(per_image_fsc(*volumes)).max() < 0.5
    assert np.allclose(per_image_fsc(volumes[0], -volumes[0], max_shell=3), -1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: neighborhood_similarity([1, 2, 3], [[1], [2]]), "embedding has 2 rows but truth has 3"),
        (lambda: neighborhood_similarity([1, np.nan], [1, 2]), r"truth\[1\] is \[nan\]"),
        (lambda: neighborhood_similarity([1, 2], [1, 2], n_neighbors=2), "n_neighbors is 2; 1 to 1"),
        (lambda: neighborhood_similarity(np.ones((2, 2, 2)), [1, 2]), r"truth has shape \(2, 2, 2\)"),
        (lambda: information_imbalance([1, 2, 3], [[1], [2]]), "second has 2 rows but first has 3"),
        (lambda: information_imbalance([1, 2], [1, np.inf]), r"second\[1\] is \[inf\]"),
        (lambda: information_imbalance([1, 2], [1, 2], n_neighbors=2), "n_neighbors is 2; 1 to 1"),
        (lambda: per_image_fsc(np.ones((2, 4, 4, 4)), np.ones((1, 4, 4, 4))), "are not as many"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
