"""SMLClustering as an estimator: what it finds, how it stops, goes on, and refuses."""

import json
import re
import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from test_sml import PIXEL_SIZE, fit, particles

from skcryo.cluster import SMLClustering
from skcryo.ctf import make_ctf
from skcryo.datasets import make_molecule, make_particles
from skcryo.fourier import shift_images
from skcryo.io import load_checkpoint
from skcryo.io._checkpoint import StageCheckpoints
from skcryo.metrics import partition_precision
from skcryo.particles import ParticleStack


def assert_same_fit(a, b):
    """Bit for bit."""
    for name in ("labels_", "class_averages_", "latent_positions_", "noise_spectrum_", "lower_bound_curve_"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
    assert (a.n_iter_, a.converged_, a.alpha_) == (b.n_iter_, b.converged_, b.alpha_)
    assert (a.responsibilities_ != b.responsibilities_).nnz == 0


def ring_views(n, seed=0, tilted=20.0):
    """Views along a circle, in one in-plane frame, and the angle of each in degrees."""
    angles = np.random.default_rng(seed).uniform(0, 360, n)
    zyz = np.stack([angles, np.full(n, 90 - tilted), np.zeros(n)], axis=1)
    return Rotation.from_euler("ZYZ", zyz, degrees=True).as_matrix(), angles


@pytest.mark.parametrize("kind", ["none", "ctf"])
@pytest.mark.parametrize(("manifold", "params"), [("flat", {"latent_dim": 1}), ("sphere", {}), ("none", {})])
def test_classes_hold_similar_views(manifold, params, kind):
    rotations, angles = ring_views(400)
    molecule = make_molecule(20, random_state=3)
    X, _ = make_particles(molecule, 400, snr=None, rotations=rotations, pixel_size=PIXEL_SIZE)
    X = X if kind == "none" else X.replace(ctf=make_ctf(400, defocus_u=np.linspace(8e3, 2e4, 400)))
    images = np.asarray(X)
    if kind == "ctf":
        from skcryo.ctf import apply_ctf

        images = apply_ctf(images, X.ctf, PIXEL_SIZE)
    noise = np.random.default_rng(1).standard_normal(images.shape).astype(np.float32)
    X = ParticleStack(images + noise * images.std() / np.sqrt(0.3), pixel_size=PIXEL_SIZE, ctf=X.ctf)
    sml = fit(X, 20, manifold=manifold, random_state=0, n_components=12, **params)
    apart = np.abs((angles[:, None] - angles + 180) % 360 - 180)
    same = (sml.labels_[:, None] == sml.labels_) & ~np.eye(400, dtype=bool)
    # by chance 90 degrees; 20 perfect classes of 18 degrees have 5
    assert np.median(apart[same]) < 12
    assert sml.effective_n_clusters_ > 12
    assert sml.score(X) == pytest.approx(sml.log_likelihoods(X).mean())
    np.testing.assert_array_equal(sml.predict(X), sml.labels_)


def test_neighbours_on_the_manifold_are_neighbours_in_view():
    rotations, angles = ring_views(400)
    X, _ = make_particles(make_molecule(20, random_state=3), 400, snr=0.5, rotations=rotations)
    sml = fit(X, 24, manifold="flat", latent_dim=2, n_components=12)
    positions = sml.transform(X)
    apart = np.abs((angles[:, None] - angles + 180) % 360 - 180)
    near = np.argsort(((positions[:, None] - positions) ** 2).sum(axis=2), axis=1)[:, 1:6]
    assert np.median(np.take_along_axis(apart, near, axis=1)) < 20  # by chance 90


def test_rings_of_ten_eleven_and_twelve_subunits_are_told_apart():
    """The paper's figure 3, with views along the symmetry axis."""
    volumes = [make_molecule(48, symmetry=n, random_state=0) for n in (10, 11, 12)]
    labels = np.arange(360) % 3
    rotations = np.broadcast_to(np.eye(3), (360, 3, 3))
    X, _ = make_particles(volumes, 360, snr=0.05, labels=labels, rotations=rotations, random_state=0)
    sml = fit(X, 6, manifold="none", random_state=0)
    majority = [np.bincount(labels[sml.labels_ == k]).max() for k in np.unique(sml.labels_)]
    assert sum(majority) >= 0.95 * 360
    assert partition_precision(labels, fit(X, 3, manifold="none", random_state=0).labels_) > 0.9


def test_shifts_that_ride_on_the_stack_are_undone():
    X = particles(80)
    shifts = np.random.default_rng(0).integers(-2, 3, (80, 2)).astype(float)
    moved = ParticleStack(shift_images(X, shifts), shifts=shifts, pixel_size=PIXEL_SIZE)
    np.testing.assert_array_equal(fit(moved, 6).labels_, fit(X, 6).labels_)


@pytest.mark.parametrize("n_components", [10, None])
def test_alpha_is_estimated_within_bounds(n_components):
    X = particles(100)
    sml = fit(X, 12, alpha="auto", n_components=n_components, max_iter=20)
    assert 0.1 <= sml.alpha_ <= 10 and sml.alpha_ != 1
    assert sml.effective_n_clusters_ > 6


def test_noise_alone_is_a_warning():
    X = np.random.default_rng(0).standard_normal((300, 16, 16)).astype(np.float32)
    with pytest.warns(ConvergenceWarning, match="nothing that varies .* stands out"):
        SMLClustering(30).fit(X)


def test_too_few_iterations_are_a_warning():
    with pytest.warns(ConvergenceWarning, match=r"did not converge in 2 iterations \(max_iter=2\)"):
        sml = SMLClustering(6, max_iter=2).fit(particles())
    assert sml.n_iter_ == 2 and not sml.converged_ and len(sml.lower_bound_curve_) == 3


def test_resolution_is_the_band():
    sml = fit(particles(), 4, resolution=24.0)
    assert sml._coordinates.rings.max() + 1 <= 14 * PIXEL_SIZE / 24 + 0.5
    spectra = np.abs(np.fft.rfft2(sml.class_averages_))
    radius = np.hypot(np.fft.fftfreq(14)[:, None], np.fft.rfftfreq(14))
    assert spectra[:, radius > 0.26].max() < 1e-5 * spectra.max()


@pytest.mark.parametrize("change", [{}, {"n_components": None}, {"manifold": "none"}], ids=repr)
def test_class_averages_as_a_start(change):
    """A fit goes on from the class means of another; rows are images."""
    X = particles(200, snr=2.0)
    first = fit(X, 6, max_iter=40, random_state=0, **change)
    again = fit(X, 6, max_iter=5, init=first.class_averages_, **change)
    assert again.lower_bound_curve_[0] > first.lower_bound_curve_[0] + 0.3 * np.ptp(first.lower_bound_curve_)
    assert (again.labels_ == first.labels_).mean() > 0.8
    rows = fit(X, 6, max_iter=5, init=first.class_averages_.reshape(6, -1), **change)
    np.testing.assert_array_equal(rows.labels_, again.labels_)


def test_threads_change_nothing(monkeypatch):
    X = particles(kind="radial")
    monkeypatch.setattr("skcryo.cluster._sml_data._CHUNK_BYTES", 20000)
    one, three = (fit(X, 6, n_components=8, n_jobs=n, max_iter=8) for n in (1, 3))
    np.testing.assert_array_equal(one.lower_bound_curve_, three.lower_bound_curve_)
    np.testing.assert_array_equal(one.class_averages_, three.class_averages_)


# ------------------------------------------------------------------------------------------------ checkpoints
LONG = {"n_clusters": 8, "max_iter": 12, "tol": 0.0, "random_state": 3}
CHILD = """
import json, sys, time
import numpy as np
from skcryo.cluster import SMLClustering
from skcryo.io._checkpoint import StageCheckpoints
save = StageCheckpoints.save
def save_and_wait(*args):
    save(*args)
    time.sleep(0.2)
StageCheckpoints.save = save_and_wait
SMLClustering(**json.loads(sys.argv[2])).fit(np.load(sys.argv[1]))
"""


def test_a_killed_fit_goes_on_to_the_same_end(tmp_path):
    X = np.asarray(particles())
    np.save(tmp_path / "images.npy", X)
    params = LONG | {"checkpoint_dir": str(tmp_path / "state")}
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path / "images.npy"), json.dumps(params)])
    deadline, reached = time.monotonic() + 120, -1
    while reached < 3:
        assert time.monotonic() < deadline and child.poll() is None, "ended before it could be killed"
        time.sleep(0.01)
        saved = load_checkpoint(tmp_path / "state", "em")
        reached = -1 if saved is None else saved[1]["n_iter"]
    child.kill()
    assert child.wait() == -signal.SIGKILL and reached < 12
    unbroken = fit(X, **LONG)
    assert_same_fit(fit(X, **params), unbroken)
    assert_same_fit(fit(X, **params), unbroken)  # a checkpoint of the end gives the end


@pytest.mark.parametrize("change", [{}, {"n_components": None}, {"manifold": "none"}, {"alpha": "auto"}], ids=repr)
def test_every_checkpoint_leads_to_the_same_end(change, tmp_path, monkeypatch):
    X, params = particles(kind="radial"), LONG | {"max_iter": 8} | change
    unbroken = fit(X, **params)
    save, n_saves = StageCheckpoints.save, [0]

    def save_and_break(*args):
        save(*args)
        n_saves[0] += 1
        raise KeyboardInterrupt

    monkeypatch.setattr(StageCheckpoints, "save", save_and_break)
    for _ in range(20):
        try:
            again = fit(X, **params, checkpoint_dir=tmp_path)
            break
        except KeyboardInterrupt:
            continue
    assert n_saves[0] == 9
    assert_same_fit(again, unbroken)


@pytest.mark.parametrize(
    "change", [{"n_clusters": 7}, {"alpha": 2.0}, {"manifold": "flat"}, {"random_state": 4}, {"X": 59}], ids=str
)
def test_a_checkpoint_of_another_fit_is_refused(change, tmp_path):
    params = LONG | {"max_iter": 1, "checkpoint_dir": tmp_path}
    fit(particles(), **params)
    X = particles()[: change.pop("X", 60)]
    with pytest.raises(ValueError, match="checkpoint_dir=.*other images or parameters"):
        fit(X, **params | change)


class StopAfter:
    """A callback of scikit-learn's protocol that asks to stop after some iterations."""

    def __init__(self, n_steps):
        self.wanted, self.n_steps = n_steps, 0

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


def test_a_callback_stops_the_fit():
    X = particles()
    sml = SMLClustering(**LONG).set_callbacks(StopAfter(2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sml.fit(X)
    assert sml.n_iter_ == 2 and not sml.converged_
    np.testing.assert_array_equal(sml.predict(X), sml.labels_)


# -------------------------------------------------------------------------------------------------- bad input
IMAGES = np.random.default_rng(0).standard_normal((12, 12, 12)).astype(np.float32)
BAD = {
    "no classes": (lambda: SMLClustering(0).fit(IMAGES), "'n_clusters' parameter"),
    "more classes than images": (lambda: SMLClustering(13).fit(IMAGES), "n_samples=12 should be >= n_clusters=13"),
    "more classes than images of positive weight": (
        lambda: SMLClustering(3).fit(IMAGES, sample_weight=[1, 1, *[0] * 10]),
        "n_samples=2 should be >= n_clusters=3.*positive weight",
    ),
    "larger grid than images": (
        lambda: SMLClustering(grid_shape=(4, 4), manifold="flat").fit(IMAGES),
        "n_samples=12 should be >= n_clusters=16",
    ),
    "grid on a sphere": (lambda: SMLClustering(2, grid_shape=(1, 2)).fit(IMAGES), "grid_shape.*manifold='flat'"),
    "grid of fractions": (
        lambda: SMLClustering(grid_shape=(1.5, 2), manifold="flat").fit(IMAGES),
        "one to three positive integers",
    ),
    "grid of four axes": (
        lambda: SMLClustering(grid_shape=(1, 1, 1, 2), manifold="flat").fit(IMAGES),
        "one to three positive integers",
    ),
    "sphere of three dimensions": (lambda: SMLClustering(2, latent_dim=3).fit(IMAGES), "sphere has latent_dim=2"),
    "four latent dimensions": (lambda: SMLClustering(2, latent_dim=4).fit(IMAGES), "'latent_dim' parameter"),
    "unknown manifold": (lambda: SMLClustering(2, manifold="torus").fit(IMAGES), "'manifold' parameter"),
    "no prior": (lambda: SMLClustering(2, alpha=0.0).fit(IMAGES), "'alpha' parameter"),
    "negative residual": (lambda: SMLClustering(2, residual=-1.0).fit(IMAGES), "'residual' parameter"),
    "no components": (lambda: SMLClustering(2, n_components=0).fit(IMAGES), "'n_components' parameter"),
    "start of other classes": (
        lambda: SMLClustering(2, init=IMAGES[:3]).fit(IMAGES),
        r"init has shape \(3, 12, 12\); class averages \(2, 12, 12\)",
    ),
    "start that is not finite": (
        lambda: SMLClustering(2, init=[IMAGES[0], IMAGES[1] * np.nan]).fit(IMAGES),
        r"init\[1\] is not finite",
    ),
    "unknown start": (lambda: SMLClustering(2, init="warm").fit(IMAGES), "'init' parameter"),
    "no mask": (lambda: SMLClustering(2, mask_radius=0).fit(IMAGES), "'mask_radius' parameter"),
    "unknown device": (lambda: SMLClustering(2, device="tpu").fit(IMAGES), "'device' parameter"),
    "resolution without a pixel size": (
        lambda: SMLClustering(2, resolution=20.0).fit(IMAGES),
        "resolution.*pixel size",
    ),
    "resolution beyond the box": (
        lambda: SMLClustering(2, resolution=100.0).fit(ParticleStack(IMAGES, pixel_size=2.0)),
        "coarser than the box of 24 Angstrom",
    ),
    "CTF without a pixel size": (lambda: SMLClustering(2).fit(IMAGES, ctf=make_ctf(12)), "pixel size"),
    "CTF of other images": (
        lambda: SMLClustering(2).fit(ParticleStack(IMAGES, pixel_size=2.0), ctf=make_ctf(9)),
        "CTF has 9 records but X has 12 images",
    ),
    "CTF of tiny images": (
        lambda: SMLClustering(2).fit(ParticleStack(IMAGES[:, :4, :4], pixel_size=2.0), ctf=make_ctf(12)),
        "square images of at least 8 px",
    ),
    "weights of other images": (
        lambda: SMLClustering(2).fit(IMAGES, sample_weight=np.ones(5)),
        "sample_weight has 5 entries but X has 12",
    ),
    "images all alike": (lambda: SMLClustering(2).fit(np.ones((12, 12, 12))), "images are all alike"),
    "one image many times": (lambda: SMLClustering(2).fit(IMAGES[[0] * 12]), "images are all alike"),
    "oblong images": (lambda: SMLClustering(2).fit(np.ones((3, 12, 10))), "needs square images"),
    "other box": (lambda: fit(IMAGES, 2).predict(IMAGES[:, :10, :10]), "10 x 10 pixels"),
    "folder that is a file": (lambda: SMLClustering(2, checkpoint_dir=__file__).fit(IMAGES), "Not a directory|exists"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input(kind):
    function, message = BAD[kind]
    with pytest.raises((ValueError, OSError), match=re.compile(message, re.DOTALL)):
        function()


@pytest.mark.parametrize(
    "method", ["predict", "predict_proba", "transform", "score", "score_samples", "log_likelihoods", "sample"]
)
def test_before_fit(method):
    with pytest.raises(NotFittedError):
        getattr(SMLClustering(), method)(*([] if method == "sample" else [IMAGES]))
