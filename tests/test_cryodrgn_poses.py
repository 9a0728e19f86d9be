"""CryoDRGN where poses are found by an estimator, or refined against its volumes; frames of volumes."""

import warnings

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import Bunch

from skcryo.datasets import make_molecule, make_particles
from skcryo.heterogeneity import CryoDRGN
from skcryo.heterogeneity._drgn_poses import frames
from skcryo.metrics import pose_error
from skcryo.projection import VolumeProjector
from skcryo.rotations import geodesic_distance

L, N = 32, 600
OPTIONS = {"max_iter": 150, "n_jobs": 1, "device": "cpu", "random_state": 0}


class Jittered(BaseEstimator):
    """Poses that are known but for 5 degrees, in place of an estimator that finds them."""

    def __init__(self, rotations=None):
        self.rotations = rotations

    def fit(self, X):
        assert X.rotations is None
        self.rotations_ = self.rotations
        return self

    def predict_poses(self, X):
        return Bunch(rotations=self.rotations[: len(X)], shifts=np.zeros((len(X), 2)))


@pytest.fixture(scope="module")
def particles():
    stack, truth = make_particles(make_molecule(L, random_state=1), N, snr=0.5, random_state=0)
    turns = Rotation.from_rotvec(np.random.default_rng(0).normal(size=(N, 3)) * np.deg2rad(3)).as_matrix()
    return stack, truth.rotations, turns @ truth.rotations


def test_poses_of_an_estimator_are_refined(particles):
    pytest.importorskip("torch", reason="CryoDRGN needs the extra skcryo[torch]")
    stack, truth, start = particles
    estimator = CryoDRGN(0, poses=Jittered(start), **OPTIONS).fit(
        stack.replace(rotations=np.tile(np.eye(3), (N, 1, 1)))
    )
    before, after = (np.median(pose_error(found, truth).errors) for found in (start, estimator.rotations_))
    assert before > 4 and after < 0.5 * before
    assert isinstance(estimator.pose_estimator_, Jittered)
    new = estimator.predict_poses(stack[:50])
    assert np.median(pose_error(new.rotations, truth[:50]).errors) < 0.6 * before
    fixed = CryoDRGN(0, poses=Jittered(start), refine_poses=False, **(OPTIONS | {"max_iter": 3})).fit(stack)
    assert np.array_equal(fixed.rotations_, start)


def test_an_estimator_without_poses_is_refused(particles):
    pytest.importorskip("torch")

    class Nothing(BaseEstimator):
        def fit(self, X):
            return self

    with pytest.raises(ValueError, match=f"Nothing.* has no rotations_ after fit; rotations_ of the {N} images"):
        CryoDRGN(0, poses=Nothing(), **OPTIONS).fit(particles[0])


def test_killed_after_poses_were_refined(particles, tmp_path, monkeypatch):
    pytest.importorskip("torch")
    from test_cryodrgn import KillAt, Killed

    import skcryo.heterogeneity._drgn_checkpoint as module

    monkeypatch.setattr(module, "_SECONDS_BETWEEN", 0.0)
    stack, _, start = particles
    options = OPTIONS | {"max_iter": 9, "refine_poses": True}
    unbroken = CryoDRGN(0, **options).fit(stack[:100], rotations=start[:100])
    with pytest.raises(Killed):
        estimator = CryoDRGN(0, checkpoint_dir=tmp_path, **options).set_callbacks(KillAt(7))
        estimator.fit(stack[:100], rotations=start[:100])
    resumed = CryoDRGN(0, checkpoint_dir=tmp_path, **options).fit(stack[:100], rotations=start[:100])
    assert np.array_equal(resumed.rotations_, unbroken.rotations_)
    assert resumed.loss_curve_ == unbroken.loss_curve_


@pytest.mark.parametrize("degrees", [3, 12])
def test_frames_of_turned_volumes(degrees):
    volume = make_molecule(L, random_state=1)
    turn = Rotation.from_rotvec(np.deg2rad(degrees) * np.array([0.6, 0.0, 0.8])).as_matrix()
    # laid out anew in a turned frame: as images at turned poses show it
    from skcryo.reconstruction import FourierReconstructor
    from skcryo.rotations import random_rotations

    poses = random_rotations(300, random_state=0)
    images = VolumeProjector(volume).project(poses)
    turned = FourierReconstructor(n_jobs=1, random_state=0).fit(images, rotations=turn @ poses).volume_
    found = frames(np.stack([volume, turned]), volume, 12.0, 0)
    assert np.degrees(geodesic_distance(found[0], np.eye(3))) < 0.1
    assert np.degrees(geodesic_distance(found[1], turn)) < 0.3


# ---------------------------------------------------------------------------------------------- poses from nothing
SEARCH = {"poses": "search", "max_shift": 0, "max_iter": 12, "n_jobs": 1, "device": "cpu", "random_state": 0}


@pytest.fixture
def few_steps(monkeypatch):
    """Starts as short as tiny images allow."""
    import skcryo.heterogeneity._drgn_search as module

    for name, value in (("_EPOCHS", 11), ("_STARTS", 2), ("_STEP", 30)):
        monkeypatch.setattr(module, name, value)


@pytest.fixture(scope="module")
def small():
    return make_particles(make_molecule(16, random_state=1), 200, snr=4.0, random_state=0)


def test_poses_from_nothing(small, few_steps):
    pytest.importorskip("torch")
    stack, truth = small
    given = np.tile(np.eye(3), (len(stack), 1, 1))  # what images carry plays no part
    estimator = CryoDRGN(0, **SEARCH).fit(stack[:160].replace(rotations=given[:160]))
    assert np.median(pose_error(estimator.rotations_, truth.rotations[:160]).errors) < 10
    assert np.abs(estimator.shifts_).max() < 1.5 and not hasattr(estimator, "pose_estimator_")
    new = estimator.predict_poses(stack[160:]).rotations
    both = np.concatenate([estimator.rotations_, new])
    assert np.median(pose_error(both, truth.rotations).errors[160:]) < 10  # in one frame and hand


@pytest.mark.parametrize("moment", [3, 27])
def test_killed_search_resumed_ends_where_the_unbroken_fit_ends(small, few_steps, moment, tmp_path, monkeypatch):
    pytest.importorskip("torch")
    from test_cryodrgn import KillAt, Killed

    import skcryo.heterogeneity._drgn_checkpoint as module
    import skcryo.heterogeneity._drgn_search as search_module

    monkeypatch.setattr(module, "_SECONDS_BETWEEN", 0.0)
    monkeypatch.setattr(search_module, "_SECONDS_BETWEEN", 0.0)
    stack = small[0][:60]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        unbroken = CryoDRGN(0, **SEARCH).fit(stack)
        with pytest.raises(Killed):
            CryoDRGN(0, checkpoint_dir=tmp_path, **SEARCH).set_callbacks(KillAt(moment)).fit(stack)
        resumed = CryoDRGN(0, checkpoint_dir=tmp_path, **SEARCH).fit(stack)
    assert np.array_equal(resumed.rotations_, unbroken.rotations_)
    assert resumed.loss_curve_ == unbroken.loss_curve_


def test_starts_that_disagree_are_said(few_steps):
    pytest.importorskip("torch")
    noise = np.random.default_rng(0).normal(size=(60, 16, 16)).astype(np.float32)
    with pytest.warns(ConvergenceWarning, match="CryoDRGN did not converge: none of 2 starts agrees"):
        CryoDRGN(0, **SEARCH).fit(noise)
    with pytest.raises(ValueError, match="max_shift is 9 pixels; less than half of the box of 16"):
        CryoDRGN(0, **(SEARCH | {"max_shift": 9})).fit(noise)
