"""Pose errors, pose correlation, common lines, and the scorers made of them."""

import pickle

import numpy as np
import pytest
from sklearn.base import BaseEstimator
from sklearn.model_selection import GridSearchCV

from skcryo.metrics import (
    common_line_detection_rate,
    make_pose_scorer,
    make_view_coherence_scorer,
    pose_correlation,
    pose_error,
)
from skcryo.rotations import random_rotations

J = np.diag([1.0, 1.0, -1.0])


def small_turns(n, degrees, seed):
    """Rotations by exactly `degrees` about random axes."""
    axes = np.random.default_rng(seed).normal(size=(n, 3))
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    x, y, z = axes.T
    o = np.zeros(n)
    K = np.array([[o, -z, y], [z, o, -x], [-y, x, o]]).transpose(2, 0, 1)
    a = np.deg2rad(degrees)
    return np.eye(3) + np.sin(a) * K + (1 - np.cos(a)) * K @ K


@pytest.mark.parametrize("mirrored", [False, True], ids=["same hand", "other hand"])
@pytest.mark.parametrize("seed", [0, 1])
def test_perfect_poses_in_another_frame(seed, mirrored):
    truth = random_rotations(50, random_state=seed)
    frame = random_rotations(1, random_state=seed + 10)[0]
    estimated = frame @ (J @ truth @ J if mirrored else truth)
    result = pose_error(estimated, truth)
    assert result.p95 < 1e-4
    assert result.reflected == mirrored
    assert np.allclose(result.aligned, truth, atol=1e-6)
    assert pose_correlation(estimated, truth) == pytest.approx(1, abs=1e-9)
    if mirrored:  # without the other hand, half of every pose is wrong
        assert pose_error(estimated, truth, reflection=False).mean > 40
        assert pose_correlation(estimated, truth, reflection=False) < 0.8


@pytest.mark.parametrize("degrees", [0.01, 5.0, 20.0])
def test_known_errors(degrees):
    """Errors of one size about random axes; a gauge fitted to 2000 poses changes little."""
    truth = random_rotations(2000, random_state=0)
    estimated = truth @ small_turns(2000, degrees, 1)
    result = pose_error(estimated, truth)
    assert result.mean == pytest.approx(degrees, rel=0.01)
    assert result.median == pytest.approx(degrees, rel=0.05)
    assert result.p95 >= result.median
    # E[R Q^T] = R E[turn] R^T = (1 + 2 cos a) / 3
    expected = (1 + 2 * np.cos(np.deg2rad(degrees))) / 3
    assert pose_correlation(estimated, truth) == pytest.approx(expected, abs=0.01)


def test_a_minority_of_wrong_poses_does_not_move_the_frame():
    truth = random_rotations(200, random_state=0)
    estimated = random_rotations(1, random_state=5)[0] @ truth
    estimated[:60] = random_rotations(60, random_state=6)
    result = pose_error(estimated, truth)
    assert result.median < 0.1  # a least-squares frame is off by many degrees here
    assert np.all(result.errors[60:] < 0.1)
    assert result.p95 > 100


def test_random_poses():
    result = pose_error(random_rotations(1000, random_state=0), random_rotations(1000, random_state=1))
    assert 105 < result.mean < 130  # Haar mean: 126.5 degrees; the fit of the frame gains a little
    assert (
        pose_correlation(random_rotations(1000, random_state=0), random_rotations(1000, random_state=1)) < 0.1
    )


@pytest.mark.parametrize("metric", [pose_error, pose_correlation])
def test_pose_arguments(metric):
    R = random_rotations(4, random_state=0)
    with pytest.raises(ValueError, match="estimated has 3 rotations but true has 4"):
        metric(R[:3], R)
    with pytest.raises(ValueError, match="empty"):
        metric(R[:0], R[:0])
    broken = R.copy()
    broken[2] *= 2
    with pytest.raises(ValueError, match=r"true\[2\]"):
        metric(R, broken)


# -- common lines ------------------------------------------------------------------------------------------


def true_lines(R):
    """Angles of the common lines, (n, n), with the same sign in both images."""
    n = len(R)
    lines = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            if i != j:
                space = np.cross(R[min(i, j), :, 2], R[max(i, j), :, 2])
                x, y = R[i, :, :2].T @ space
                lines[i, j] = np.arctan2(y, x)
    return lines


def test_true_common_lines_are_all_found():
    """The definition R_i c_ij = R_j c_ji itself is checked, not only the metric's own formula."""
    R = random_rotations(12, random_state=0)
    lines = true_lines(R)
    vectors = np.stack([np.cos(lines), np.sin(lines), np.zeros_like(lines)], axis=-1)
    space = np.einsum("iab,ijb->ija", R, vectors)
    off = ~np.eye(12, dtype=bool)
    assert np.allclose(space[off], space.transpose(1, 0, 2)[off])
    assert common_line_detection_rate(lines, R) == 1.0
    assert common_line_detection_rate(vectors[..., :2], R) == 1.0
    i, j = np.triu_indices(12, 1)
    pairs = np.stack([i, j], axis=1)
    assert common_line_detection_rate(np.stack([lines[i, j], lines[j, i]], 1), R, pairs=pairs) == 1.0


def test_joint_sign_is_free_but_a_single_one_is_not():
    R = random_rotations(12, random_state=0)
    lines = true_lines(R)
    upper = np.triu(np.ones((12, 12), dtype=bool), 1)
    assert common_line_detection_rate(lines + np.pi, R) == 1.0
    assert common_line_detection_rate(lines + np.pi * upper, R) == 0.0


def test_threshold_holds_in_both_images():
    R = random_rotations(12, random_state=0)
    lines = true_lines(R)
    upper = np.triu(np.ones((12, 12)), 1)
    assert common_line_detection_rate(lines + np.deg2rad(9.9), R) == 1.0
    assert common_line_detection_rate(lines + np.deg2rad(10.1) * upper, R) == 0.0
    assert common_line_detection_rate(lines - np.deg2rad(10.1) * upper.T, R) == 0.0
    assert common_line_detection_rate(lines + np.deg2rad(10.1), R, threshold=11) == 1.0


def test_guessing_and_missing_lines():
    n = 150
    R = random_rotations(n, random_state=0)
    guessed = np.random.default_rng(0).uniform(0, 2 * np.pi, (n, n))
    assert common_line_detection_rate(guessed, R) == pytest.approx(2 * (10 / 180) ** 2, abs=0.003)
    lines = true_lines(R[:20])
    lines[0, 1:] = np.nan  # 19 of 190 pairs were not found
    assert common_line_detection_rate(lines, R[:20]) == pytest.approx(171 / 190)


def test_only_pairs_of_one_class_count():
    R = random_rotations(10, random_state=0)
    lines = true_lines(R)
    labels = np.arange(10) % 2
    lines[labels[:, None] != labels[None, :]] += 1.0  # wrong between the classes
    assert common_line_detection_rate(lines, R, labels=labels) == 1.0
    assert common_line_detection_rate(lines, R) == pytest.approx(20 / 45)


def test_equal_views_have_no_line():
    R = random_rotations(1, random_state=0)
    with pytest.raises(ValueError, match="no pair"):
        common_line_detection_rate(np.zeros((2, 2)), np.concatenate([R, R]))


@pytest.mark.parametrize(
    "lines, arguments, message",
    [
        (np.zeros((4, 5)), {}, r"common_lines has shape \(4, 5\); \(5, 5\)"),
        (np.zeros((3, 2)), {"pairs": np.zeros((2, 2), int)}, r"common_lines has shape \(3, 2\); \(2, 2\)"),
        (np.zeros((1, 2)), {"pairs": [[0, 5]]}, "from 0 to 5 but there are 5"),
        (np.zeros((1, 2)), {"pairs": [[0.0, 1.0]]}, "integers"),
        (np.zeros((5, 5)), {"labels": [0, 1]}, r"labels has shape \(2,\)"),
    ],
)
def test_common_line_arguments(lines, arguments, message):
    with pytest.raises(ValueError, match=message):
        common_line_detection_rate(lines, random_rotations(5, random_state=0), **arguments)


# -- scorers -----------------------------------------------------------------------------------------------


class PretendedPoses(BaseEstimator):
    """X holds the true poses as rows; predicts them with an error of some degrees, in a frame of its own."""

    def __init__(self, degrees=0.0):
        self.degrees = degrees

    def fit(self, X, y=None):
        self.n_features_in_ = X.shape[1]
        return self

    def predict(self, X):
        R = np.asarray(X).reshape(-1, 3, 3) @ small_turns(len(X), self.degrees, 0)
        return J @ (random_rotations(1, random_state=9)[0] @ R) @ J


class PretendedClasses(PretendedPoses):
    """Classes of nearby views if `degrees` is zero, else at random."""

    def predict(self, X):
        views = np.asarray(X).reshape(-1, 3, 3)[:, :, 2]
        seeds = random_rotations(8, random_state=0)[:, :, 2]
        labels = (views @ seeds.T).argmax(1)
        return np.random.default_rng(0).permutation(labels) if self.degrees else labels


@pytest.mark.parametrize(
    "metric", ["median", *(pytest.param(name, marks=pytest.mark.slow) for name in ("mean", "p95", "correlation"))]
)
def test_pose_scorer_in_a_search(metric):
    R = random_rotations(60, random_state=0)
    scorer = make_pose_scorer(metric)
    assert repr(pickle.loads(pickle.dumps(scorer))) == f"PoseScorer(metric={metric!r}, reflection=True)"
    search = GridSearchCV(PretendedPoses(), {"degrees": [10.0, 1.0, 5.0]}, scoring=scorer, cv=2, n_jobs=2)
    search.fit(R.reshape(60, 9), R)
    assert search.best_params_ == {"degrees": 1.0}
    if metric != "correlation":
        assert search.best_score_ == pytest.approx(-1.0, abs=0.3)


def test_view_coherence_scorer_in_a_search():
    R = random_rotations(300, random_state=0)
    for threshold in (20.0, None):
        scorer = make_view_coherence_scorer(threshold)
        search = GridSearchCV(PretendedClasses(), {"degrees": [1.0, 0.0]}, scoring=scorer, cv=2)
        search.fit(R.reshape(300, 9), R)
        assert search.best_params_ == {"degrees": 0.0}


def test_scorer_arguments():
    R = random_rotations(6, random_state=0)
    X = R.reshape(6, 9)
    with pytest.raises(ValueError, match="metric is 'best'"):
        make_pose_scorer("best")
    with pytest.raises(ValueError, match="threshold is -1"):
        make_view_coherence_scorer(-1)
    with pytest.raises(ValueError, match="y is None"):
        make_pose_scorer()(PretendedPoses(), X, None)
    with pytest.raises(ValueError, match="gave 6 entries but y has 5"):
        make_pose_scorer()(PretendedPoses(), X, R[:5])
    with pytest.raises(ValueError, match=r"PretendedClasses.predict gave shape \(6,\)"):
        make_pose_scorer()(PretendedClasses(), X, R)
