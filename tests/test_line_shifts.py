"""Shifts from common lines."""

from types import SimpleNamespace

import numpy as np
import pytest

from skcryo.datasets import ImagingConditions, make_molecule, make_particles
from skcryo.metrics import common_line_detection_rate
from skcryo.orientation import CommonLines, RadialLines, detect_common_lines, shifts_from_common_lines
from skcryo.orientation._line_scores import predicted_lines
from skcryo.orientation._line_shifts import _Equations
from skcryo.rotations import random_rotations


@pytest.fixture(scope="module")
def data():
    stack, truth = make_particles(
        make_molecule(65), 80, snr=1.0, preset=ImagingConditions(max_shift=0.025), random_state=0
    )
    return stack.replace(rotations=None, shifts=None), truth


def error(shifts, truth):
    """Root mean square after the best common shift in space."""
    axes = np.swapaxes(truth.rotations[:, :, :2], 1, 2).reshape(-1, 3)
    off = (shifts - truth.shifts).ravel()
    off = off - axes @ np.linalg.lstsq(axes, off, rcond=None)[0]
    return np.sqrt(2 * np.mean(off**2))


def common_lines(rotations, shifts, confidences=None):
    angles = np.nan_to_num(predicted_lines(rotations)[0])
    along = np.cos(angles) * shifts[:, :1] + np.sin(angles) * shifts[:, 1:]
    ones = ~np.eye(len(angles), dtype=bool)
    confidences = ones.astype(np.float32) if confidences is None else confidences
    return CommonLines(angles, confidences, confidences, ones, (along - along.T).astype(np.float32))


def test_equations_and_their_adjoint():
    rng = np.random.default_rng(0)
    angles, weights = rng.uniform(0, 6, (7, 7)), rng.uniform(0, 1, (7, 7))
    weights += weights.T
    system = _Equations(np.cos(angles), np.sin(angles))
    system.weigh(weights)
    x, y = rng.standard_normal((7, 2)), rng.standard_normal((7, 7))
    y -= y.T
    # each pair is there twice
    assert np.isclose(np.vdot(weights * system.forward(x), y), 2 * np.vdot(x, system.adjoint(y)), rtol=1e-5)


def test_exact_relative_shifts_give_exact_shifts():
    rng = np.random.default_rng(1)
    rotations, shifts = random_rotations(40, random_state=1), rng.uniform(-3, 3, (40, 2))
    axes = np.swapaxes(rotations[:, :, :2], 1, 2).reshape(-1, 3)
    shifts -= (axes @ np.linalg.lstsq(axes, shifts.ravel(), rcond=None)[0]).reshape(-1, 2)
    lines = common_lines(rotations, shifts)
    truth = SimpleNamespace(rotations=rotations, shifts=shifts)
    found = shifts_from_common_lines(lines)
    assert error(found, truth) < 1e-5
    assert np.abs(found - shifts).max() < 0.05  # nearly the solution next to zero
    # a tenth of the pairs are wrong by pixels; least squares without reweighting is .3 off
    wrong = np.triu(rng.uniform(size=(40, 40)) < 0.1, 1) * rng.uniform(-8, 8, (40, 40))
    lines.relative_shifts[:] += (wrong - wrong.T).astype(np.float32)
    assert error(shifts_from_common_lines(lines), truth) < 0.15


def test_unchecked_pairs_do_not_count():
    rng = np.random.default_rng(2)
    rotations, shifts = random_rotations(30, random_state=2), rng.uniform(-2, 2, (30, 2))
    lines = common_lines(rotations, shifts)
    half = np.triu(rng.uniform(size=(30, 30)) < 0.5, 1)
    half |= half.T
    lines.relative_shifts[~half] = 100
    lines.angles[~half] = np.nan
    lines.checked[:] = half
    assert error(shifts_from_common_lines(lines), SimpleNamespace(rotations=rotations, shifts=shifts)) < 1e-4


def test_shifts_are_found_and_lines_with_them(data):
    """Particles lie 1.3 pixels off."""
    stack, truth = data
    assert error(np.zeros((80, 2)), truth) > 1.2
    lines = RadialLines.from_images(stack)
    found = detect_common_lines(lines, max_shift=1)
    assert error(shifts_from_common_lines(found), truth) < 0.6
    shifts = shifts_from_common_lines(lines, truth.rotations)
    assert error(shifts, truth) < 0.25
    assert np.array_equal(shifts_from_common_lines(lines, truth.rotations, n_jobs=3), shifts)
    again = detect_common_lines(stack, shifts=shifts)
    rates = [common_line_detection_rate(x.angles, truth.rotations) for x in (found, again)]
    assert rates[1] > rates[0] + 0.1


def test_bad_input(data):
    stack, truth = data
    lines, rotations = RadialLines.from_images(stack[:10]), truth.rotations[:10]
    plain = RadialLines.from_images(stack[:10], score="correlation")
    found = detect_common_lines(lines)
    cases = [
        ((lines,), {}, "rotations are None"),
        ((lines, rotations[:9]), {}, "rotations"),
        ((lines, rotations * 2), {}, "rotations"),
        ((lines, rotations), {"max_shift": -1}, "max_shift is -1"),
        ((lines, rotations), {"max_shift": 33}, "max_shift is 33"),
        ((plain, rotations), {}, "no likelihood of shifts"),
        ((found,), {}, "no relative shifts"),
        ((detect_common_lines(lines, max_shift=1), rotations), {}, "rotations are given"),
        ((np.zeros((10, 10)),), {}, "lines are of type ndarray"),
    ]
    for arguments, parameters, message in cases:
        with pytest.raises(ValueError, match=message):
            shifts_from_common_lines(*arguments, **parameters)
