"""Least unsquared deviations on lines that are made, so that what is right is known."""

import sys

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning

from skcryo._ext._lud import n_blocks, pack, weighted_sums
from skcryo.metrics import pose_error
from skcryo.orientation import equalized_weights, solve_lud, solve_lud_convex
from skcryo.orientation._lud_solver import (
    _descend,
    _gram,
    _Lines,
    _orthonormal,
    _projected,
    _spectral_start,
    check_pairs,
    line_residuals,
    rows_from_rotations,
)
from skcryo.rotations import random_rotations


def make_lines(n, wrong=0.0, jitter=0.0, seed=0, rotations=None):
    """True lines, each turned a little, a share of pairs with lines by lot, joint signs by lot."""
    rng = np.random.default_rng(seed)
    R = random_rotations(n, 1000 + seed) if rotations is None else rotations
    space = np.cross(R[:, None, :, 2], R[None, :, :, 2])
    space[np.tril_indices(n)] *= -1
    angles = np.arctan2(np.einsum("ia,ija->ij", R[:, :, 1], space), np.einsum("ia,ija->ij", R[:, :, 0], space))
    angles = angles + jitter * rng.standard_normal((n, n))
    angles = np.where(symmetric(rng, n, wrong), rng.uniform(-np.pi, np.pi, (n, n)), angles)
    return (angles + np.pi * symmetric(rng, n, 0.5)).astype(np.float32), R


def symmetric(rng, n, share):
    upper = np.triu(rng.uniform(size=(n, n)) < share, 1)
    return upper | upper.T


def deviations(angles, R):
    u = np.cos(angles)[..., None] * R[:, None, :, 0] + np.sin(angles)[..., None] * R[:, None, :, 1]
    return np.linalg.norm(u - np.swapaxes(u, 0, 1), axis=2)


# ---------------------------------------------------------------------------------------------- the kernel


def sums_of_all_pairs(angles, weights, rows, smoothing, power):
    """What the kernel sums, written out in double precision."""
    x, y = np.cos(angles.astype(np.float64)), np.sin(angles.astype(np.float64))
    u = x[:, :, None] * rows[:3].T[:, None] + y[:, :, None] * rows[3:].T[:, None]
    v = np.swapaxes(u, 0, 1)
    r = np.sqrt(np.square(u - v).sum(axis=2) + smoothing**2)
    w = weights / r**power
    sums = [np.einsum("ij,ijk->ki", w * c, v) for c in (x, y)]
    return np.concatenate([*sums, (weights * r).sum(axis=1)[None]])


@pytest.mark.parametrize("n", [2, 3, 16, 17, 64, 65, 600])
@pytest.mark.parametrize("redescending", [False, True])
def test_kernel_against_sums_written_out(n, redescending):
    rng = np.random.default_rng(n)
    angles = rng.uniform(-7, 7, (n, n)).astype(np.float32)
    weights = rng.uniform(size=(n, n)).astype(np.float32)
    weights = weights + weights.T
    checked = symmetric(rng, n, 0.7)
    checked[0, 1] = checked[1, 0] = True
    angles[~checked] = np.nan  # must not be read
    lines = np.empty((n_blocks(n), 5, 16), np.float32)
    pack(angles, weights, checked.view(np.uint8), lines)
    rows = rng.standard_normal((6, n)).astype(np.float32)
    sums = np.full((7, n), np.nan)
    weighted_sums(lines, rows, 0.05, redescending, sums)
    expected = sums_of_all_pairs(
        np.where(checked, angles, 0), weights * checked, rows.astype(np.float64), 0.05, 1 + redescending
    )
    assert sums == pytest.approx(expected, abs=2e-6 * np.abs(expected).max())


# ---------------------------------------------------------------------------------------------- the solution


@pytest.mark.parametrize("n", [5, 6, 10, 40, 130])
def test_true_lines_give_true_rotations(n):
    for seed in range(3):
        angles, R = make_lines(n, seed=seed)
        found = solve_lud(angles, alpha=1.0, tol=1e-5, max_iter=1000)
        assert found.converged
        assert pose_error(found.rotations, R).errors.max() < 0.05
        assert found.residuals.max() < 1e-3


@pytest.mark.parametrize("seed", range(3))
def test_many_wrong_lines(seed):
    angles, R = make_lines(300, wrong=0.6, jitter=0.05, seed=seed)
    found = solve_lud(angles)
    # Least squares (the spectral start) is 4 to 5 degrees off, chance 120.
    assert pose_error(found.rotations, R).mean < 0.8
    wrong = deviations(angles, R) > 0.5
    assert np.corrcoef(found.residuals, wrong.mean(axis=1))[0, 1] > 0.8


def test_half_of_the_pairs_left_out_is_no_loss():
    angles, R = make_lines(200, seed=1)
    rng = np.random.default_rng(1)
    checked = symmetric(rng, 200, 0.5)
    # What unchecked pairs hold is never read: as lines, it would leave tens of degrees of error.
    for garbage in (np.nan, -1.0, rng.uniform(-np.pi, np.pi, (200, 200))):
        found = solve_lud(np.where(checked, angles, garbage), checked=checked)
        assert pose_error(found.rotations, R).mean < 0.1
    by_weight = solve_lud(np.where(checked, angles, rng.uniform(-np.pi, np.pi, (200, 200))), weights=checked * 1.0)
    assert np.array_equal(by_weight.rotations, solve_lud(angles, checked=checked).rotations)


def test_weights_of_one_are_none_and_their_unit_does_not_matter():
    angles, _ = make_lines(60, wrong=0.3, jitter=0.1)
    plain = solve_lud(angles)
    weighted = solve_lud(angles, weights=np.full((60, 60), 4.0))
    assert np.array_equal(plain.rotations, weighted.rotations)
    assert weighted.objective == pytest.approx(4 * plain.objective)
    assert weighted.residuals == pytest.approx(plain.residuals)


def test_objective_and_residuals_are_what_they_are_called():
    angles, _ = make_lines(40, wrong=0.3, jitter=0.1)
    rng = np.random.default_rng(0)
    weights = rng.uniform(size=(40, 40))
    weights = np.triu(weights, 1) + np.triu(weights, 1).T
    found = solve_lud(angles, weights=weights)
    misfit = weights * deviations(angles, found.rotations)
    assert found.objective == pytest.approx(misfit.sum() / 2, rel=1e-5)
    assert found.residuals == pytest.approx(misfit.sum(axis=1) / weights.sum(axis=1), rel=1e-5)
    assert line_residuals(angles, found.rotations, weights) == pytest.approx(found.residuals)


def test_objective_path_falls():
    for seed in range(3):
        angles, _ = make_lines(100, wrong=0.5, jitter=0.1, seed=seed)
        path = np.array(solve_lud(angles, alpha=1.0, polish=False).objective_path)
        assert np.all(np.diff(path) < 1e-6 * path[:-1])


def test_weights_make_the_right_lines_count():
    # Of all lines 85 % are wrong, and the weights know most of them.
    angles, R = make_lines(150, wrong=0.85, jitter=0.05, seed=2)
    wrong = deviations(angles, R) > 0.5
    weights = np.where(wrong ^ symmetric(np.random.default_rng(0), 150, 0.1), 0.05, 1.0)
    assert pose_error(solve_lud(angles, weights=weights).rotations, R).mean < 2
    assert pose_error(solve_lud(angles, tol=0.01).rotations, R).mean > 4


# ---------------------------------------------------------------------------------------------- invariances


def test_joint_signs_and_whole_turns_do_not_matter():
    angles, _ = make_lines(50, wrong=0.3, jitter=0.1)
    flipped = angles + np.pi * symmetric(np.random.default_rng(1), 50, 0.5)
    plain = solve_lud(angles)
    for other in (flipped, angles + 2 * np.pi):
        assert pose_error(solve_lud(other).rotations, plain.rotations).errors.max() < 0.01


def test_turning_an_image_turns_its_pose():
    angles, _ = make_lines(50, wrong=0.3, jitter=0.1)
    turn = np.random.default_rng(1).uniform(-np.pi, np.pi, 50)
    c, s = np.cos(turn), np.sin(turn)
    plain = solve_lud(angles).rotations
    turned = solve_lud(angles + turn[:, None]).rotations
    # c_ij turned by a is a line of the image turned by a: R becomes R times the turn by -a.
    back = np.zeros((50, 3, 3))
    back[:, 0, 0] = back[:, 1, 1] = c
    back[:, 0, 1], back[:, 1, 0], back[:, 2, 2] = s, -s, 1
    assert pose_error(turned, plain @ back).errors.max() < 0.01


def test_order_of_images_does_not_matter():
    angles, _ = make_lines(80, wrong=0.3, jitter=0.1)
    order = np.random.default_rng(1).permutation(80)
    shuffled = solve_lud(angles[np.ix_(order, order)], tol=1e-5).rotations
    assert pose_error(shuffled, solve_lud(angles, tol=1e-5).rotations[order]).errors.max() < 0.01


def test_mirrored_lines_are_the_other_hand():
    angles, R = make_lines(80, wrong=0.3, jitter=0.05)
    J = np.diag([1.0, 1.0, -1.0])
    found = solve_lud(angles)
    assert deviations(angles, J @ found.rotations @ J) == pytest.approx(deviations(angles, found.rotations), abs=1e-6)
    # Images reflected in x: lines at -angle; the pose is conjugate in the other hand.
    mirrored = solve_lud(-angles)
    flip = np.diag([1.0, -1.0, 1.0])
    error = pose_error(found.rotations, R).mean
    assert pose_error(flip @ mirrored.rotations @ flip, R).mean == pytest.approx(error, 0.01)


def test_the_same_lines_give_the_same_bits():
    angles, _ = make_lines(90, wrong=0.4, jitter=0.1)
    assert np.array_equal(solve_lud(angles).rotations, solve_lud(angles.copy()).rotations)


# ---------------------------------------------------------------------------------------------- traps


def favourite_lines(n, seed, wrong=0.5, spread=0.1):
    """Half of all lines wrong, not by lot: each image has a line that is taken for common with one after the other."""
    rng = np.random.default_rng(seed)
    angles, R = make_lines(n, jitter=0.1, seed=seed)
    drawn = rng.uniform(0, np.pi, n)[:, None] + spread * rng.standard_normal((n, n))
    return np.where(symmetric(rng, n, wrong), drawn, angles).astype(np.float32), R


def test_never_choose_by_the_objective_alone():
    """Without the bound all favourites fall into one line, at an objective below that of the truth."""
    angles, R = favourite_lines(200, 0)
    found = solve_lud(angles, alpha=1.0)
    assert found.objective < 0.9 * deviations(angles, R)[np.triu_indices(200, 1)].sum()
    assert pose_error(found.rotations, R).mean > 90
    assert largest_eigenvalue(found.rotations) > 0.95
    bounded = solve_lud(angles)
    assert bounded.objective > found.objective
    assert largest_eigenvalue(bounded.rotations) < 0.77  # 2/3 + 1 / sqrt(200), nearly


def largest_eigenvalue(rotations):
    return np.linalg.eigvalsh(_gram(rows_from_rotations(rotations)))[-1]


@pytest.mark.parametrize(("wrong", "spread"), [(0.7, 0.1), (0.6, 0.6)])
def test_equalized_weights_undo_favourites(wrong, spread):
    for seed in range(2):
        angles, R = favourite_lines(200, seed, wrong, spread)
        weights = equalized_weights(angles)
        assert weights.dtype == np.float32 and np.array_equal(weights, weights.T) and not weights.diagonal().any()
        assert pose_error(solve_lud(angles, tol=0.01).rotations, R).mean > 30
        assert pose_error(solve_lud(angles, weights=weights).rotations, R).mean < 4


def test_equalized_weights_count_what_counts():
    angles, _ = favourite_lines(60, 0)
    checked = symmetric(np.random.default_rng(0), 60, 0.6)
    weights = equalized_weights(np.where(checked, angles, np.nan), checked=checked)
    assert np.array_equal(weights > 0, checked)
    # Weights and a mask say the same; pi more is the same line.
    assert np.array_equal(equalized_weights(angles + np.float32(0), weights=checked * 1.0), weights)
    flipped = angles + np.pi * symmetric(np.random.default_rng(1), 60, 0.5)
    turned = equalized_weights(flipped, checked=checked)
    assert turned == pytest.approx(weights, rel=0.5, abs=1e-3)
    # Lines that are spread evenly are left alone, but for chance.
    even = equalized_weights(np.random.default_rng(2).uniform(0, np.pi, (300, 300)))
    assert even[np.triu_indices(300, 1)].std() < 0.3


def test_the_better_of_two_descents_within_the_bound():
    angles, R = favourite_lines(200, 1, 0.6, 1.0)
    # Steps within the bound end with half of the images in another frame.
    lines = _Lines(*check_pairs(angles))
    rows, _, _ = _descend(lines, _spectral_start(lines), 2 / 3, 1.0, False, 200, 1e-3, [])
    assert pose_error(from_rows(rows), R).mean > 30
    assert pose_error(solve_lud(angles).rotations, R).mean < 2


def from_rows(rows):
    x, y = rows[:3].T, rows[3:].T
    return np.stack([x, y, np.cross(x, y)], axis=2)


@pytest.mark.parametrize("seed", range(3))
def test_weights_on_neighbours_do_not_split_the_frame(seed):
    """Lines of nearly equal views score best and say least. A start that counts them most is in no frame at all."""
    angles, R = make_lines(150, jitter=0.05, seed=seed)
    cosine = np.abs(np.einsum("ia,ja->ij", R[:, :, 2], R[:, :, 2]))
    weights = np.exp(-np.arccos(np.clip(cosine, 0, 1)) / np.radians(8))
    assert pose_error(solve_lud(angles, weights=weights).rotations, R).errors.max() < 10
    pairs = check_pairs(angles, weights)
    assert pose_error(from_rows(_spectral_start(_Lines(*pairs))), R).mean > 20


def test_bounded_rows_are_orthonormal_and_bounded():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((6, 500)) * np.array([1.5, 1.0, 0.5] * 2)[:, None]
    for alpha in (2 / 3, 0.7, 0.9):
        found = _projected(rows, alpha)
        blocks = found.reshape(2, 3, 500)
        assert np.einsum("kan,lan->nkl", blocks, blocks) == pytest.approx(np.tile(np.eye(2), (500, 1, 1)), abs=1e-9)
        # Unbounded, the largest is 0.86 here; alternating projections stop a little short.
        assert np.linalg.eigvalsh(_gram(found))[-1] < alpha + 0.02
    free = _projected(rows, 1.0)
    assert np.linalg.eigvalsh(_gram(free))[-1] > 0.85


def test_rows_without_a_direction_become_orthonormal_too():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((6, 5))
    rows[:, 1] = 0
    rows[3:, 2] = 2 * rows[:3, 2]
    rows[3:, 3] = rows[:3, 3] * (1 + 1e-9)
    blocks = _orthonormal(rows).reshape(2, 3, 5)
    assert np.einsum("kan,lan->nkl", blocks, blocks) == pytest.approx(np.tile(np.eye(2), (5, 1, 1)), abs=1e-9)
    u, _, vt = np.linalg.svd(rows[:, 0].reshape(2, 3), full_matrices=False)
    assert blocks[:, :, 0] == pytest.approx(u @ vt)


def test_a_step_is_the_best_turn_of_each_image():
    angles, R = make_lines(30, wrong=0.3, jitter=0.1)
    lines = _Lines(*check_pairs(angles))
    rows = rows_from_rotations(R)
    new, _, _ = _descend(lines, rows, 1.0, 0.05, False, 1, 0.0, [])
    w = 1 / np.sqrt(deviations(angles, R) ** 2 + 0.05**2)

    def weighted_squares(i, x, y):
        mine = np.cos(angles[i])[:, None] * x + np.sin(angles[i])[:, None] * y
        theirs = np.cos(angles[:, i])[:, None] * R[:, :, 0] + np.sin(angles[:, i])[:, None] * R[:, :, 1]
        return (np.delete(w[i], i) * np.delete(np.square(mine - theirs).sum(axis=1), i)).sum()

    trials = random_rotations(2000, 0)
    for i in (0, 7, 29):
        best = weighted_squares(i, new[:3, i], new[3:, i])
        assert best <= min(weighted_squares(i, Q[:, 0], Q[:, 1]) for Q in trials) + 1e-6
        assert best <= weighted_squares(i, R[i, :, 0], R[i, :, 1]) + 1e-6


def test_initial_rotations_are_used():
    angles, R = make_lines(60, wrong=0.3, jitter=0.05)
    found = solve_lud(angles, init=R)
    assert found.n_iter < solve_lud(angles).n_iter
    assert pose_error(found.rotations, R).mean < 1


# ---------------------------------------------------------------------------------------------- the convex problem


@pytest.mark.parametrize("wrong", [0.0, 0.1, 0.2])
def test_convex_solution_agrees(wrong):
    for seed in (1, 2):
        angles, R = make_lines(24, wrong=wrong, seed=seed)
        convex = solve_lud_convex(angles, alpha=1.0, solver="admm")
        found = solve_lud(angles, alpha=1.0, polish=False)
        assert pose_error(found.rotations, convex.rotations).mean < 2
        assert pose_error(convex.rotations, R).mean < 2
        # Both hold for any rotations, and bound what a better solver could find.
        assert convex.objective <= found.objective * (1 + 1e-3) + 0.05
        assert found.objective <= deviations(angles, convex.rotations)[np.triu_indices(24, 1)].sum() + 0.05
        again = solve_lud(angles, alpha=1.0, polish=False, init=convex.rotations)
        assert again.objective == pytest.approx(found.objective, rel=5e-3, abs=0.05)


def test_admm_solves_what_cvxpy_solves():
    pytest.importorskip("cvxpy", reason="the extra sdp is not installed")
    angles, _ = make_lines(10, wrong=0.2, jitter=0.05, seed=1)
    weights = np.random.default_rng(0).uniform(0.5, 1.5, (10, 10))
    weights = np.triu(weights, 1) + np.triu(weights, 1).T
    for alpha in (0.7, 1.0):
        exact = solve_lud_convex(angles, weights=weights, alpha=alpha)
        admm = solve_lud_convex(angles, weights=weights, alpha=alpha, solver="admm", tol=1e-5)
        assert exact.converged and admm.converged
        assert admm.objective == pytest.approx(exact.objective, rel=1e-3)
        assert admm.gram == pytest.approx(exact.gram, abs=0.02)
        assert np.linalg.eigvalsh(exact.gram)[[0, -1]] == pytest.approx([0, alpha * 10], abs=1e-3 + (alpha == 1) * 10)
        assert exact.gram.reshape(10, 2, 10, 2)[3, :, 3] == pytest.approx(np.eye(2), abs=1e-5)


def test_convex_problem_leaves_masked_pairs_out():
    angles, R = make_lines(14, seed=3)
    checked = symmetric(np.random.default_rng(0), 14, 0.7)
    found = solve_lud_convex(np.where(checked, angles, np.nan), checked=checked, alpha=1.0, solver="admm")
    assert pose_error(found.rotations, R).mean < 1


def test_without_cvxpy_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cvxpy", None)
    with pytest.raises(ImportError, match=r'needs cvxpy.*pip install "skcryo\[sdp\]"'):
        solve_lud_convex(make_lines(5)[0])


# ---------------------------------------------------------------------------------------------- bad input


def lines_and(**changed):
    angles, _ = make_lines(6)
    return {"angles": angles, **changed}


def mask(*pairs, n=6, value=False):
    checked = np.full((n, n), not value)
    for i, j in pairs:
        checked[i, j] = checked[j, i] = value
    return checked


BAD = {
    "angles of no square": (lambda: lines_and(angles=np.zeros((4, 5))), r"angles has shape \(4, 5\)"),
    "two images": (lambda: lines_and(angles=np.zeros((2, 2))), "three images or more"),
    "a number": (lambda: lines_and(angles=np.float32(3)), r"angles has shape \(1,\)"),
    "NaN in a checked pair": (
        lambda: lines_and(angles=np.where(mask((2, 4)), make_lines(6)[0], np.nan)),
        r"angles\[2, 4\] is nan.*checked",
    ),
    "weights of another shape": (lambda: lines_and(weights=np.ones(6)), r"weights has shape \(6,\); \(6, 6\)"),
    "a negative weight": (lambda: lines_and(weights=np.where(mask((1, 3)), 1.0, -2.0)), r"weights\[1, 3\] is -2.0"),
    "an infinite weight": (lambda: lines_and(weights=np.where(mask((1, 3)), 1.0, np.inf)), r"weights\[1, 3\] is inf"),
    "weights that are not symmetric": (
        lambda: lines_and(weights=np.triu(np.ones((6, 6))) + 1),
        r"weights\[0, 1\] is 2.0 but weights\[1, 0\] is 1.0",
    ),
    "a mask of numbers": (lambda: lines_and(checked=np.ones((6, 6))), "checked has .* dtype float64; booleans"),
    "a mask that is not symmetric": (
        lambda: lines_and(checked=np.triu(np.ones((6, 6), bool))),
        r"checked\[0, 1\] is True but checked\[1, 0\] is False",
    ),
    "an image without lines": (
        lambda: lines_and(checked=mask(*[(2, j) for j in range(6)])),
        "image 2 has common lines with fewer than two others",
    ),
    "images with one line each": (
        lambda: lines_and(checked=mask(*[(i, j) for i in (1, 4) for j in range(6) if j != 0])),
        "images 1, 4 have common lines with fewer than two others.*leave them out",
    ),
    "two groups": (
        lambda: lines_and(checked=mask(*[(i, j) for i in range(3) for j in range(3, 6)])),
        "images 3, 4, 5 have no chain of common lines to image 0.*by itself",
    ),
    "two groups by weights": (
        lambda: lines_and(weights=1.0 * mask(*[(i, j) for i in range(3) for j in range(3, 6)])),
        "images 3, 4, 5 have no chain",
    ),
    "alpha too small": (lambda: lines_and(alpha=0.5), "alpha is 0.5; a number from 2/3 to 1"),
    "no steps": (lambda: lines_and(max_iter=0), "max_iter is 0"),
    "too few initial rotations": (lambda: lines_and(init=np.tile(np.eye(3), (5, 1, 1))), "init has 5 matrices, 6"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_is_named(kind):
    make, message = BAD[kind]
    with pytest.raises(ValueError, match=message):
        solve_lud(**make())


def test_bad_solver_of_the_convex_problem_is_named():
    with pytest.raises(ValueError, match="solver is 'mosek'"):
        solve_lud_convex(make_lines(5)[0], solver="mosek")
    with pytest.raises(ValueError, match="alpha is 2"):
        solve_lud_convex(make_lines(5)[0], alpha=2)


def test_too_few_steps_are_told():
    angles, _ = make_lines(50, wrong=0.5, jitter=0.1)
    with pytest.warns(ConvergenceWarning, match="did not converge in 2 steps"):
        found = solve_lud(angles, max_iter=2)
    assert not found.converged and found.n_iter == 4
    with pytest.warns(ConvergenceWarning, match="admm, 3 iterations"):
        solve_lud_convex(angles, solver="admm", max_iter=3)
