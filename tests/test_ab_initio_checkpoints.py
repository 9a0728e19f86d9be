"""Ab initio fits that are killed or stopped, and go on to the same bits."""

import json
import os
import signal
import subprocess
import sys
import warnings

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning

from skcryo.datasets import make_molecule, make_particles
from skcryo.io import load_particles, save_images
from skcryo.reconstruction import AbInitioVolume
from skcryo.reconstruction import _ab_initio_fit as module

L, N = 16, 80
PARAMS = {"angular_step": 30, "max_shift": 1, "n_starts": 2, "max_epochs": 3, "max_rounds": 3, "n_classes": 2}
RESULTS = ("volume_", "half_maps_", "rotations_", "shifts_", "start_scores_", "class_volumes_", "responsibilities_")

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.fixture(scope="module")
def images():
    return make_particles(make_molecule(L, random_state=0), N, preset="shifted", snr=2.0, random_state=0)[0]


def fit(X, **params):
    return AbInitioVolume(**PARAMS | {"n_jobs": 1, "random_state": 0} | params).fit(X)


@pytest.fixture(scope="module")
def whole(images):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return fit(images)


def assert_same(found, expected):
    for name in RESULTS:
        assert np.array_equal(getattr(found, name), getattr(expected, name)), name
    assert found.start_curves_ == expected.start_curves_ and found.converged_ == expected.converged_


# Two starts of three epochs with a save after each and after the judgement, three rounds, two half sets: 13 saves.
N_SAVES = 13

KILLED = """
import json, os, signal, sys, warnings
import numpy as np
from skcryo.io import load_particles
from skcryo.reconstruction import AbInitioVolume, _ab_initio_fit as module

warnings.simplefilter("ignore")
AbInitioVolume._seconds_between_checkpoints = 0.0
save, saved = module.save_checkpoint, []
def save_and_die(*args):
    save(*args)
    saved.append(1)
    if len(saved) == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
module.save_checkpoint = save_and_die
found = AbInitioVolume(**json.loads(sys.argv[4]), checkpoint_dir=sys.argv[2], n_jobs=1).fit(load_particles(sys.argv[1]))
np.savez(sys.argv[2] + "/found.npz", saved=len(saved), **{name: getattr(found, name) for name in sys.argv[5:]})
"""


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
@pytest.mark.parametrize("seed", [pytest.param(0, marks=pytest.mark.slow), None])
def test_killed_fits_go_on_to_the_same_bits(seed, images, whole, tmp_path):
    """In the first start, between starts, in a round, between half sets; and without a seed, at the first save."""
    save_images(tmp_path / "x.mrcs", images)
    folder = tmp_path / "checkpoint"

    def run(after):
        params = json.dumps(PARAMS | {"random_state": seed})
        command = [sys.executable, "-c", KILLED, str(tmp_path / "x.mrcs"), str(folder), str(after), params, *RESULTS]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        return done.returncode

    # Each session goes on after the last save of the one before: 2 + 3 + 4 + 3 of them, one is left.
    for after in (2, 3, 4, 3) if seed == 0 else (6,):
        assert run(after) == -signal.SIGKILL
    drawn = module.load_checkpoint(folder, "ab_initio")[1]["seed"]
    assert run(99) == 0
    found = np.load(folder / "found.npz")
    assert found["saved"] == (1 if seed == 0 else N_SAVES - 6)
    if seed is None:

        class Seeded(np.random.RandomState):
            def randint(self, *args):
                return drawn

        whole = fit(load_particles(tmp_path / "x.mrcs"), random_state=Seeded(0))
    for name in RESULTS:
        assert np.array_equal(found[name], getattr(whole, name)), name


class StopAt:
    """Asks to stop at the end of the n-th task of this name."""

    def __init__(self, name, n):
        self.name, self.left, self.seen = name, n, []

    def setup(self, estimator, context):
        pass

    def teardown(self, estimator, context):
        pass

    def on_fit_task_begin(self, estimator, context):
        pass

    def on_fit_task_end(self, estimator, context):
        self.seen.append(context.task_name)
        self.left -= context.task_name == self.name
        return context.task_name == self.name and self.left == 0


@pytest.mark.parametrize(
    "name, n",
    [("epoch", 3), ("round", 1)]
    + [pytest.param(*at, marks=pytest.mark.slow) for at in (("epoch", 1), ("epoch", 5), ("start", 1))],
)
def test_a_callback_stops_and_the_checkpoint_goes_on(name, n, images, whole, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)  # who stops a fit need not be told that it did not end
        stopped = AbInitioVolume(
            **PARAMS | {"n_classes": 1}, n_jobs=1, random_state=0, checkpoint_dir=tmp_path
        ).set_callbacks(StopAt(name, n)).fit(images)
    assert not stopped.converged_
    assert stopped.volume_.shape == (L, L, L) and np.isfinite(stopped.volume_).all()
    assert stopped.predict(images[:5]).shape == (5, 3, 3) and np.isfinite(stopped.score(images[:5]))
    assert_same(fit(images, checkpoint_dir=tmp_path), whole)


@pytest.mark.slow
def test_tasks_are_told(images):
    callback = StopAt("nothing", 1)
    AbInitioVolume(**PARAMS, n_jobs=1, random_state=0).set_callbacks(callback).fit(images)
    start = ["epoch"] * 3 + ["start"]
    assert callback.seen == [*start, *start, *["round"] * 3, "half set", "half set", "fit"]


@pytest.mark.slow
def test_finished_fits_are_not_fitted_again(images, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(AbInitioVolume, "_seconds_between_checkpoints", 0.0)
    fit(images, checkpoint_dir=tmp_path)
    callback = StopAt("nothing", 1)
    again = AbInitioVolume(**PARAMS, n_jobs=2, random_state=0, checkpoint_dir=tmp_path)
    assert_same(again.set_callbacks(callback).fit(images), whole)
    assert callback.seen == ["fit"]


@pytest.mark.slow
def test_checkpoint_of_another_fit_is_refused(images, tmp_path, monkeypatch):
    monkeypatch.setattr(AbInitioVolume, "_seconds_between_checkpoints", 0.0)
    fit(images, checkpoint_dir=tmp_path)
    message = "holds a fit of other images or parameters; name another folder or remove"
    for X, params in (
        (images[1:], {}),
        (images.replace(pixel_size=9.0), {}),
        (images, {"max_shift": 2}),
        (images, {"random_state": 1}),
        (images, {"n_starts": 3}),
    ):
        with pytest.raises(ValueError, match=message):
            fit(X, checkpoint_dir=tmp_path, **params)
    # Classes come after all that is saved.
    other = fit(images, checkpoint_dir=tmp_path, n_classes=1, n_components=2)
    assert other.embedding_.shape == (N, 2)
