"""CryoDRGN with known poses: latents of images never seen, volumes, invariances, resumption, what it refuses."""

import json
import sys

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.exceptions import ConvergenceWarning

from skcryo.ctf import make_ctf
from skcryo.datasets import make_molecule, make_particles
from skcryo.heterogeneity import CryoDRGN
from skcryo.metrics import fsc
from skcryo.particles import ParticleStack

L, N, N_STATES = 32, 400, 12
SHORT = {"max_iter": 180, "n_jobs": 1, "device": "cpu", "random_state": 0}
TINY = SHORT | {"max_iter": 20}


def hinge(preset="paper", snr=2.0, n=N, seed=0):
    """Particles of a molecule that bends, with their poses: (states, stack, truth)."""
    states = np.stack([make_molecule(L, random_state=1, hinge=angle) for angle in np.linspace(0, 80, N_STATES)])
    labels = np.random.default_rng(seed).integers(N_STATES, size=n)
    stack, truth = make_particles(states, n, preset=preset, snr=snr, pixel_size=10, labels=labels, random_state=seed)
    return states, stack.replace(rotations=truth.rotations, shifts=truth.shifts), truth


@pytest.fixture(scope="module")
def particles():
    return hinge(n=N + 200)


@pytest.fixture(scope="module")
def fitted(particles):
    pytest.importorskip("torch", reason="CryoDRGN needs the extra skcryo[torch]")
    return CryoDRGN(1, **SHORT).fit(particles[1][:N])


@pytest.fixture
def few(particles):
    pytest.importorskip("torch", reason="CryoDRGN needs the extra skcryo[torch]")
    return particles[1][:80]


def rank_correlation(z, truth, where):
    return abs(spearmanr(z[:, 0], truth.labels[where])[0])


def test_construction_needs_no_torch_and_fit_says_what_to_install(particles, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"CryoDRGN needs torch.*skcryo\[torch\]"):
        CryoDRGN().fit(particles[1])


def test_latents_of_images_never_seen_follow_the_motion(fitted, particles):
    _, stack, truth = particles
    assert rank_correlation(fitted.embedding_, truth, slice(N)) > 0.95
    assert rank_correlation(fitted.transform(stack[N:]), truth, slice(N, None)) > 0.95
    assert fitted.n_iter_ == len(fitted.loss_curve_) == SHORT["max_iter"]
    assert np.mean(fitted.loss_curve_[-20:]) < 0.8 * np.mean(fitted.loss_curve_[:20])


def test_volumes_are_those_of_the_states(fitted, particles):
    states, _, truth = particles
    order = [np.median(fitted.embedding_[truth.labels[:N] == state, 0]) for state in (0, N_STATES - 1)]
    found = fitted.volumes_at(np.array(order)[:, None])
    own = [fsc(found[k], states[[0, -1][k]])[1:8].mean() for k in (0, 1)]
    other = [fsc(found[k], states[[-1, 0][k]])[1:8].mean() for k in (0, 1)]
    assert min(own) > 0.9 and np.min(np.subtract(own, other)) > 0.05
    # in the images' units
    scale = np.vdot(found[0], states[0]) / np.vdot(states[0], states[0])
    assert 0.75 < scale < 1.1
    assert np.array_equal(fitted.inverse_transform([[0.5]]), fitted.volumes_at([0.5]))


def test_latents_are_standardised_and_their_widths_honest(fitted, particles):
    z, covariance = fitted.embedding_, fitted.embedding_covariance_
    assert abs(z.mean()) < 1e-6 and abs(z.var() + covariance.mean() - 1) < 1e-6
    # each state's latents scatter about their median about as much as the posteriors are wide
    labels = particles[2].labels[:N]
    away = np.concatenate([z[labels == k, 0] - np.median(z[labels == k, 0]) for k in range(N_STATES)])
    assert 0.5 < np.sqrt(np.median(away**2) / 0.455 / np.median(covariance)) < 2.5


def test_transform_is_each_image_by_itself(fitted, particles):
    images = particles[1][N : N + 40]
    whole = fitted.transform(images)
    parts = np.concatenate([fitted.transform(images[i : i + 7]) for i in range(0, 40, 7)])
    assert np.abs(whole - parts).max() < 1e-4
    assert np.abs(fitted.transform(particles[1][:N]) - fitted.embedding_).max() < 1e-4


def test_same_seed_same_result_whatever_the_threads(few):
    first, again = (CryoDRGN(1, **(TINY | {"n_jobs": n})).fit(few) for n in (1, 2))
    assert np.array_equal(again.embedding_, first.embedding_)
    assert again.loss_curve_ == first.loss_curve_


def test_held_out_images_score_better_with_latents_than_without(fitted, particles):
    _, stack, _ = particles
    rigid = CryoDRGN(0, **SHORT).fit(stack[:N])
    assert rigid.embedding_.shape == (N, 0) and rigid.volumes_at(np.empty((1, 0))).shape == (1, L, L, L)
    assert fitted.score(stack[N:]) > rigid.score(stack[N:]) + 1
    assert fitted.score_samples(stack[N : N + 5]).shape == (5,)


def test_ctf_shifts_and_contrast_are_in_the_model():
    pytest.importorskip("torch")
    _, stack, truth = hinge("ctf", n=500)
    random = np.random.default_rng(0)
    contrast = random.uniform(0.6, 1.4, len(stack))
    stack = ParticleStack(
        np.asarray(stack) * contrast[:, None, None].astype(np.float32), pixel_size=10, ctf=stack.ctf,
        rotations=stack.rotations, shifts=stack.shifts,
    )  # fmt: skip
    estimator = CryoDRGN(1, **SHORT).fit(stack)
    assert rank_correlation(estimator.embedding_, truth, slice(None)) > 0.85
    assert np.corrcoef(estimator.contrast_, contrast)[0, 1] > 0.8
    # without the shifts nothing is where it should be
    assert estimator.score(stack, shifts=-stack.shifts) < estimator.score(stack) - 1


def test_several_latents_hold_one_motion(particles):
    pytest.importorskip("torch")
    _, stack, truth = particles
    estimator = CryoDRGN(3, **(SHORT | {"max_iter": 120})).fit(stack[:N])
    z = estimator.transform(stack[N:])
    best = max(abs(spearmanr(z[:, j], truth.labels[N:])[0]) for j in range(3))
    assert z.shape == (200, 3) and best > 0.75
    names = estimator.get_feature_names_out().tolist()
    assert names == ["cryodrgn0", "cryodrgn1", "cryodrgn2"]


def test_images_beyond_the_memory_budget_lie_in_a_file(few, monkeypatch):
    pytest.importorskip("torch")
    import skcryo.heterogeneity._cryodrgn as module
    from skcryo.heterogeneity._drgn_images import fourier_images

    kept = []

    def small(*args):
        kept.append(fourier_images(*args, budget=2**16))
        return kept[0]

    reference = CryoDRGN(1, **TINY).fit(few)
    monkeypatch.setattr(module, "fourier_images", small)
    again = CryoDRGN(1, **TINY).fit(few)
    assert isinstance(kept[0].values, np.memmap)
    assert np.abs(again.embedding_ - reference.embedding_).max() < 0.02


# ------------------------------------------------------------------------------------------------ interruption
class Killed(Exception):
    pass


class KillAt:
    """A callback that raises in the middle of a fit."""

    def __init__(self, n):
        self.n = n

    def setup(self, estimator, context):
        pass

    def teardown(self, estimator, context):
        pass

    def on_fit_task_begin(self, estimator, context):
        pass

    def on_fit_task_end(self, estimator, context):
        self.n -= 1
        if self.n == 0:
            raise Killed


@pytest.fixture(scope="module")
def unbroken(particles):
    pytest.importorskip("torch")
    return CryoDRGN(1, **TINY).fit(particles[1][:80])


@pytest.mark.parametrize("moment", range(2, 12))
def test_killed_and_resumed_ends_where_the_unbroken_fit_ends(unbroken, few, moment, tmp_path, monkeypatch):
    import skcryo.heterogeneity._cryodrgn as estimator_module
    import skcryo.heterogeneity._drgn_checkpoint as module

    monkeypatch.setattr(module, "_SECONDS_BETWEEN", 0.0)
    monkeypatch.setattr(estimator_module, "_BETWEEN", 3)
    with pytest.raises(Killed):
        CryoDRGN(1, checkpoint_dir=tmp_path, **TINY).set_callbacks(KillAt(moment)).fit(few)
    resumed = CryoDRGN(1, checkpoint_dir=tmp_path, **TINY).fit(few)
    assert np.array_equal(resumed.embedding_, unbroken.embedding_)
    assert resumed.loss_curve_ == unbroken.loss_curve_
    for path in tmp_path.iterdir():
        with np.load(path, allow_pickle=False) as arrays:
            json.loads(arrays["__info__"].tobytes())


def test_checkpoint_of_another_fit_is_refused(particles, tmp_path):
    pytest.importorskip("torch")
    options = SHORT | {"max_iter": 3, "checkpoint_dir": tmp_path}
    CryoDRGN(0, **options).fit(particles[1][:50])
    with pytest.raises(ValueError, match="holds a fit of other images or parameters"):
        CryoDRGN(1, **options).fit(particles[1][:50])


def test_max_time_ends_the_training(particles):
    pytest.importorskip("torch")
    estimator = CryoDRGN(1, max_time=0.5, **(SHORT | {"max_iter": 10**6})).fit(particles[1][:100])
    assert 3 <= estimator.n_iter_ < 5000


# --------------------------------------------------------------------------------------------------- bad input
def with_pixel(stack, value):
    images = np.array(stack)
    images[7, 3, 4] = value
    return ParticleStack(images, pixel_size=10, rotations=stack.rotations, shifts=stack.shifts)


BAD = {
    "NaN pixel": (lambda s: (with_pixel(s, np.nan), {}), "NaN: image 7"),
    "no poses": (lambda s: (np.asarray(s), {}), "X carries no poses; give rotations"),
    "poses of another length": (lambda s: (s, {"rotations": s.rotations[:9]}), "rotations has 9 matrices, 30 are"),
    "shifts of another length": (lambda s: (s, {"shifts": s.shifts[:9]}), r"shifts must have shape \(30, 2\)"),
    "not orthogonal": (
        lambda s: (s, {"rotations": s.rotations * np.where(np.arange(30) == 5, 2, 1)[:, None, None]}),
        r"rotations\[5\]",
    ),
    "shifts in Angstrom": (
        lambda s: (s, {"shifts": np.full((30, 2), [3.0, -170.0])}),
        r"shifts\[0\] is .*half the box of 32 pixels",
    ),
    "ctf of another length": (lambda s: (s, {"ctf": make_ctf(9)}), "CTF has 9 records but X has 30 images"),
    "ctf without pixel size": (
        lambda s: (s.replace(pixel_size=None), {"ctf": make_ctf(30)}),
        "CTFs need the pixel size",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_is_named(kind, particles):
    pytest.importorskip("torch")
    make, message = BAD[kind]
    X, options = make(particles[1][:30])
    with pytest.raises(ValueError, match=message):
        CryoDRGN(1, **TINY).fit(X, **options)


def test_bad_parameters_and_latents(fitted, particles):
    stack = particles[1][:30]
    with pytest.raises(ValueError, match="n_samples=30 images are too few for z_dim=30"):
        CryoDRGN(30, **SHORT).fit(stack)
    with pytest.raises(ValueError, match="resolution is 400, coarser than half the box of 320"):
        CryoDRGN(1, resolution=400, **SHORT).fit(stack)
    with pytest.raises(ValueError, match=r"z must have shape \(n, 1\), got \(1, 2\)"):
        fitted.volumes_at([0.0, 1.0])
    with pytest.raises(ValueError, match=r"z\[1\] is \[nan\]"):
        fitted.volumes_at([[0.0], [np.nan]])


def test_constant_image_is_named(particles):
    pytest.importorskip("torch")
    images = np.array(particles[1][:60])
    images[11] = 0
    with pytest.warns(UserWarning, match="image 11 is the first of 1 that are constant"):
        CryoDRGN(0, **(SHORT | {"max_iter": 3})).fit(images, rotations=particles[1].rotations[:60])


def test_collapse_is_said():
    pytest.importorskip("torch")
    stack, truth = make_particles(make_molecule(L, random_state=1), 200, snr=0.05, random_state=0)
    with pytest.warns(ConvergenceWarning, match="latent coordinates have collapsed"):
        CryoDRGN(1, **TINY).fit(stack, rotations=truth.rotations)


# --------------------------------------------------------------------------------------- the paper's networks
def test_the_papers_decoder_is_a_hartley_transform(few):
    torch = pytest.importorskip("torch")
    from skcryo.heterogeneity._drgn_paper import HartleyDecoder

    network = HartleyDecoder(2)
    weights = network.initial_weights(np.random.default_rng(0), 5.0, L)
    assert len(weights["waves"]) == round(0.9 * L / 2) and weights["layer.0"].shape == (128, 6 * len(weights["waves"]))
    # equation 7: from one cycle a box up, the highest tenth left out
    assert np.isclose(weights["waves"].min() * L, 2 * np.pi) and weights["waves"].max() < np.pi
    put = {name: torch.as_tensor(value) for name, value in weights.items()}
    points = torch.as_tensor(np.random.default_rng(1).uniform(-9, 9, (1, 50, 3)), dtype=torch.float32)
    z = torch.as_tensor([[0.3, -1.0]])
    there, back = (network(put, sign * points, z, torch.float32) for sign in (1, -1))
    assert torch.allclose(there[..., 0], back[..., 0]) and torch.allclose(there[..., 1], -back[..., 1])
    moved = network.move_latents(weights, np.array([0.5, 1.0]), np.array([[2.0, 0.0], [1.0, 1.0]]))
    put |= {name: torch.as_tensor(value) for name, value in moved.items()}
    inside = np.linalg.solve([[2.0, 0.0], [1.0, 1.0]], np.array([0.3, -1.0]) - [0.5, 1.0])
    again = network(put, points, torch.as_tensor(inside[None], dtype=torch.float32), torch.float32)
    assert torch.allclose(again, there, atol=1e-5)


def test_coordinates_of_principal_volumes(few, particles):
    estimator = CryoDRGN(1, inference="pca", **TINY).fit(few)
    assert np.abs(estimator.transform(few) - estimator.embedding_).max() < 1e-4
    assert rank_correlation(estimator.transform(particles[1][N:]), particles[2], slice(N, None)) > 0.7


def test_the_encoder_tells_that_it_learns_by_heart(few):
    options = SHORT | {"max_iter": 150, "precision": "float32"}
    with pytest.warns(ConvergenceWarning, match="learnt images by heart|collapsed"):
        estimator = CryoDRGN(1, inference="encoder", **options).fit(few)
    assert estimator.embedding_.shape == (80, 1)
    assert np.abs(estimator.transform(few[:20]) - estimator.embedding_[:20]).max() < 1e-3
    assert np.isfinite(estimator.score(few))


def test_the_papers_architecture_learns(few):
    estimator = CryoDRGN(1, architecture="paper", inference="encoder", **TINY).fit(few)
    assert estimator.volumes_at([0.0]).shape == (1, L, L, L)
    assert len(estimator.weights_) == 2 * 11 + 2 + 2 * 11
    assert np.mean(estimator.loss_curve_[-3:]) < np.mean(estimator.loss_curve_[:3])
