"""Fits of rotation-invariant k-means that are killed, stopped by callbacks, and go on."""

import json
import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
from common_kmeans import assert_same_fit, particles, quiet

from skcryo.cluster import RotInvWassersteinKMeans, _lloyd
from skcryo.ctf import make_ctf
from skcryo.io import load_checkpoint
from skcryo.particles import ParticleStack

CHILD = """
import json, sys, time
import numpy as np
from skcryo.cluster import RotInvWassersteinKMeans, _lloyd
save = _lloyd.save_checkpoint
def save_and_wait(*args):
    save(*args)
    time.sleep(0.2)
_lloyd.save_checkpoint = save_and_wait
X = np.load(sys.argv[1])
RotInvWassersteinKMeans(**json.loads(sys.argv[2])).fit(X)
"""
LONG = {"n_clusters": 6, "n_angles": 24, "max_shift": 0, "random_state": 3, "n_init": 2, "max_iter": 6, "tol": 0}


def test_a_killed_fit_goes_on_to_the_same_end(tmp_path):
    X = particles(60, noise=4.0).X
    np.save(tmp_path / "images.npy", X)
    children = {}
    for metric, state in {"w1": (0, 3), "sobolev": (1, 2)}.items():
        params = LONG | {"metric": metric, "checkpoint_dir": str(tmp_path / metric)}
        command = [sys.executable, "-c", CHILD, str(tmp_path / "images.npy"), json.dumps(params)]
        children[metric] = params, state, subprocess.Popen(command)
    for params, state, child in children.values():
        deadline = time.monotonic() + 60
        reached = None
        while reached is None or reached < state:
            assert time.monotonic() < deadline and child.poll() is None, "ended before it could be killed"
            time.sleep(0.01)
            saved = load_checkpoint(params["checkpoint_dir"], "kmeans")
            if saved is not None:
                info = saved[1]
                reached = info["start"], info["runs"].get("current", {"n_iter": -1})["n_iter"]
        child.kill()
        assert child.wait() == -signal.SIGKILL
        assert reached < (1, 6)
    for metric, (params, _, _) in children.items():
        again = quiet(RotInvWassersteinKMeans(**params), X)
        unbroken = quiet(RotInvWassersteinKMeans(**LONG, metric=metric), X)
        assert_same_fit(again, unbroken)
        # A checkpoint of the end gives the end.
        assert_same_fit(quiet(RotInvWassersteinKMeans(**params), X), unbroken)


@pytest.mark.parametrize("metric", ["w1", "sobolev"])
def test_every_checkpoint_leads_to_the_same_end(metric, tmp_path, monkeypatch):
    """Interrupted after each of its saves, by turns: balance, refilled classes, shifts and random state all go on."""
    X = particles(30, noise=4.0, shift=1).X
    params = LONG | {"metric": metric, "max_iter": 3, "max_shift": 1.5, "n_clusters": 8, "n_angles": 12}
    monkeypatch.setattr(_lloyd, "_FULL_SEARCHES", (0,))  # then near known shifts
    unbroken = quiet(RotInvWassersteinKMeans(**params), X)
    save, n_saves = _lloyd.save_checkpoint, [0]

    def save_and_break(*args):
        save(*args)
        n_saves[0] += 1
        raise KeyboardInterrupt

    monkeypatch.setattr(_lloyd, "save_checkpoint", save_and_break)
    model = RotInvWassersteinKMeans(**params, checkpoint_dir=tmp_path)
    for _ in range(30):
        try:
            quiet(model, X)
            break
        except KeyboardInterrupt:
            continue
    assert n_saves[0] >= 2 * (1 + model.n_iter_)
    assert_same_fit(model, unbroken)


def test_a_random_state_instance_can_go_on_too(tmp_path, monkeypatch):
    X = particles(30, noise=4.0).X
    params = LONG | {"max_iter": 2, "init": "random"}
    unbroken = quiet(RotInvWassersteinKMeans(**params | {"random_state": np.random.RandomState(5)}), X)
    stop = StopAfter(3)
    for callbacks in ([stop], []):
        model = RotInvWassersteinKMeans(**params | {"random_state": np.random.RandomState(5)}, checkpoint_dir=tmp_path)
        quiet(model.set_callbacks(*callbacks), X)
    assert stop.n_steps == 3
    assert_same_fit(model, unbroken)


@pytest.mark.parametrize(
    "change",
    [
        {"metric": "sobolev"},
        {"n_clusters": 3},
        {"random_state": 4},
        {"balance": 0.1},
        {"init": "random"},
        {"X": lambda X: X[:-1]},
        {"X": lambda X: X + 1e-3},
        {"ctf": make_ctf(30, defocus_u=1e4)},
        {"sample_weight": np.r_[2.0, np.ones(29)]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_checkpoint_of_another_fit_is_refused(change, tmp_path):
    X = particles(30).X
    params = LONG | {"max_iter": 1, "n_init": 1, "checkpoint_dir": tmp_path}
    quiet(RotInvWassersteinKMeans(**params), ParticleStack(X, pixel_size=4.0))
    X = change.get("X", lambda X: X)(X)
    others = {name: value for name, value in change.items() if name in ("ctf", "sample_weight")}
    changed = {name: value for name, value in change.items() if name in params or name in ("balance", "init", "metric")}
    model = RotInvWassersteinKMeans(**params | changed)
    with pytest.raises(ValueError, match="checkpoint_dir=.*other images or parameters"):
        quiet(model, ParticleStack(X, pixel_size=4.0), **others)
    # The number of threads may change.
    quiet(RotInvWassersteinKMeans(**params, n_jobs=2), ParticleStack(particles(30).X, pixel_size=4.0))


class StopAfter:
    """A callback of scikit-learn's protocol that asks to stop after some iterations."""

    def __init__(self, n_steps):
        self.wanted = n_steps
        self.n_steps = 0

    def setup(self, estimator, context):
        pass

    def teardown(self, estimator, context):
        pass

    def on_fit_task_begin(self, estimator, context):
        pass

    def on_fit_task_end(self, estimator, context):
        if context.parent is None:
            return False
        self.n_steps += 1
        return self.n_steps == self.wanted


def test_a_callback_stops_the_fit(tmp_path):
    X = particles(60, noise=4.0).X
    params = LONG | {"n_init": 1}
    unbroken = quiet(RotInvWassersteinKMeans(**params), X)
    assert unbroken.n_iter_ > 3
    model = RotInvWassersteinKMeans(**params, checkpoint_dir=tmp_path).set_callbacks(StopAfter(2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # who stops a fit need not be told that it has not settled
        model.fit(X)
    assert model.n_iter_ == 2 and not model.converged_
    np.testing.assert_array_equal(model.predict(X), model.labels_)
    # Fitted again without the callback, it goes on from there.
    assert_same_fit(quiet(RotInvWassersteinKMeans(**params, checkpoint_dir=tmp_path), X), unbroken)
