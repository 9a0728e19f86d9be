"""Fits from common lines that are killed at any of their saves, and go on to the same bits."""

import warnings

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning

from skcryo.datasets import make_molecule, make_particles
from skcryo.heterogeneity import CommonLinesMaxCut
from skcryo.io import _checkpoint
from skcryo.orientation import LUDRotations
from skcryo.orientation import _common_lines as lines_module

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
N = 60
CASES = {
    "lud": (LUDRotations, {"n_jobs": 1}, ("rotations_", "shifts_", "volume_", "noise_spectrum_", "residuals_")),
    "lud, shifts": (LUDRotations, {"n_jobs": 1, "max_shift": 1.0}, ("rotations_", "shifts_", "volume_")),
    "max-cut": (
        CommonLinesMaxCut,
        {"angular_step": 30, "n_init": 1, "max_iter": 3, "n_jobs": 1, "random_state": 0},
        ("rotations_", "labels_", "class_volumes_", "class_log_likelihood_", "separation_", "objective_path_"),
    ),
    "cuts": (
        CommonLinesMaxCut,
        {"refine": None, "angular_step": 30, "max_iter": 3, "n_jobs": 1, "random_state": 0},
        ("rotations_", "labels_", "class_volumes_", "objective_path_", "cut_value_"),
    ),
}


class Killed(BaseException):
    pass


@pytest.fixture(scope="module")
def images():
    states = [make_molecule(16, random_state=0), make_molecule(16, random_state=0, hinge=60)]
    return make_particles(states, N, snr=2.0, random_state=0)[0]


def dying(monkeypatch, count):
    """Die after so many saves."""
    save, saved = _checkpoint.save_checkpoint, []

    def save_and_die(*args):
        save(*args)
        saved.append(args[1])
        if len(saved) == count:
            raise Killed

    for module in (_checkpoint, lines_module):
        monkeypatch.setattr(module, "save_checkpoint", save_and_die)
    return saved


def assert_same(found, expected, names):
    for name in names:
        assert np.array_equal(getattr(found, name), getattr(expected, name)), name
    assert np.array_equal(found.common_lines_.angles, expected.common_lines_.angles)
    assert found.n_iter_ == expected.n_iter_ and found.converged_ == expected.converged_


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=[pytest.mark.slow] * (case in ("lud, shifts", "max-cut"))) for case in CASES],
)
def test_goes_on_from_a_save_to_the_same_bits(case, images, tmp_path, monkeypatch):
    kind, params, names = CASES[case]
    whole = kind(**params).fit(images)
    with monkeypatch.context() as patched:
        saved = dying(patched, 0)
        unbroken = kind(**params, checkpoint_dir=tmp_path / "whole").fit(images)
    assert_same(unbroken, whole, names)
    assert len(saved) > 2
    for count in np.unique(np.linspace(1, len(saved), 5).astype(int)):
        folder = tmp_path / f"{count}"
        with monkeypatch.context() as patched:
            dying(patched, count)
            with pytest.raises(Killed):
                kind(**params, checkpoint_dir=folder).fit(images)
        with monkeypatch.context() as patched:
            rest = dying(patched, 0)
            assert_same(kind(**params, checkpoint_dir=folder).fit(images), whole, names)
        assert len(rest) == len(saved) - count, "what was saved is not made again"


@pytest.mark.parametrize("case", CASES)
def test_another_fit_is_refused(case, images, tmp_path):
    kind, params, _ = CASES[case]
    kind(**params, checkpoint_dir=tmp_path).fit(images)
    files = {path: path.read_bytes() for path in tmp_path.rglob("*.npz")}
    assert files
    other = {"max_iter": params.get("max_iter", 200) - 1}
    for fit in (
        lambda: kind(**params | other, checkpoint_dir=tmp_path).fit(images),
        lambda: kind(**params, checkpoint_dir=tmp_path).fit(images[: N - 1]),
        lambda: kind(**params, checkpoint_dir=tmp_path).fit(images[np.r_[1, 0, 2:N]]),
    ):
        with pytest.raises(ValueError, match=r"checkpoint_dir=.* holds a (fit|search) of other images or parameters"):
            fit()
    assert files == {path: path.read_bytes() for path in tmp_path.rglob("*.npz")}


def test_a_fit_without_a_seed_goes_on_with_its_first_one(images, tmp_path, monkeypatch):
    params = CASES["max-cut"][1] | {"random_state": None, "checkpoint_dir": tmp_path}
    with monkeypatch.context() as patched:
        dying(patched, 3)
        with pytest.raises(Killed):
            CommonLinesMaxCut(**params).fit(images)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        first, second = (CommonLinesMaxCut(**params).fit(images) for _ in range(2))
    assert_same(second, first, CASES["max-cut"][2])
