"""Latent coordinates against the truth: invariances, chance, closed forms, bad input."""

import numpy as np
import pytest

from skcryo.metrics import neighborhood_similarity, per_image_fsc


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
        (lambda: per_image_fsc(np.ones((2, 4, 4, 4)), np.ones((1, 4, 4, 4))), "are not as many"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
