"""Volumes of discrete states at known poses: the likelihood by direct sums, states found, resumption, bad input."""

import json

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning

from skcryo.ctf import evaluate_ctf, make_ctf
from skcryo.datasets import make_molecule, make_particles
from skcryo.metrics import fsc, partition_precision
from skcryo.particles import ParticleStack
from skcryo.reconstruction import MulticlassReconstruction

L, N, PIXEL_SIZE = 16, 200, 12.0
STATES = np.stack([make_molecule(L, random_state=1, hinge=angle) for angle in (0, 45, 90)])
OPTIONS = {"n_jobs": 1, "random_state": 0}


def particles(n_states=2, n=N, preset="paper", snr=2.0, seed=0, **options):
    stack, truth = make_particles(
        STATES[[0, -1, 1][:n_states]], n, preset=preset, snr=snr, pixel_size=PIXEL_SIZE, random_state=seed, **options
    )
    return stack.replace(rotations=truth.rotations, shifts=truth.shifts), truth


@pytest.fixture(scope="module")
def two():
    stack, truth = particles(n=N + 100, preset="ctf", snr=3.0)
    return stack, truth, MulticlassReconstruction(2, **OPTIONS).fit(stack[:N])


# ---- the model -------------------------------------------------------------------------------------------
def direct_sum(volume, points):
    """Fourier transform of a volume at points (kx, ky, kz), cycles per box, counted from its centre."""
    box = len(volume)
    axis = np.arange(box) - box // 2
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    return np.array([(volume * np.exp(-2j * np.pi / box * (kx * x + ky * y + kz * z))).sum() for kx, ky, kz in points])


def test_posterior_is_that_of_direct_sums(two):
    """Equation 5 at known poses, image by image, frequency by frequency."""
    stack, _, found = two
    images = np.asarray(stack[N : N + 4], dtype=np.float64)
    volumes = found._consensus + found._differences
    band = int(found._band)
    place = np.arange(L) - L // 2
    y, x = np.meshgrid(place, place, indexing="ij")
    ctf = evaluate_ctf(stack.ctf[N : N + 4], L, PIXEL_SIZE)
    contrast = found._contrasts(found._fourier_images(stack[N : N + 4], band), stack.rotations[N : N + 4],
                                stack.shifts[N : N + 4])
    log = np.zeros((4, 2))
    for i, image in enumerate(images):
        R, shift = stack.rotations[N + i], stack.shifts[N + i]
        half = [
            (kx, ky)
            for ky in range(-band, band + 1)
            for kx in range(band + 1)
            if 0 < np.hypot(kx, ky) <= band and (kx > 0 or ky > 0)
        ]
        slices = [direct_sum(volume, [kx * R[:, 0] + ky * R[:, 1] for kx, ky in half]) for volume in volumes]
        for number, (kx, ky) in enumerate(half):
            value = (image * np.exp(-2j * np.pi / L * (kx * x + ky * y))).sum()
            shifted = np.exp(-2j * np.pi / L * (kx * shift[0] + ky * shift[1]))
            ring = found.noise_spectrum_[int(np.rint(np.hypot(kx, ky)))]
            for k in range(2):
                model = contrast[i] * ctf[i, L // 2 + ky, L // 2 + kx] * shifted * slices[k][number]
                log[i, k] += (abs(value) ** 2 - abs(value - model) ** 2) / (ring * L**2)
    log += np.log(found.class_shares_)
    expected = np.log(np.exp(log - log.max(axis=1, keepdims=True)).sum(axis=1)) + log.max(axis=1)
    assert found.score_samples(stack[N : N + 4]) == pytest.approx(expected, rel=1e-2)
    posterior = np.exp(log - expected[:, None])
    assert np.abs(found.predict_proba(stack[N : N + 4]) - posterior).max() < 0.05


def test_ctf_shifts_and_contrast_are_in_the_model(two):
    stack, truth, found = two
    assert partition_precision(truth.labels[:N], found.labels_) > 0.95
    new = stack[N:]
    assert partition_precision(truth.labels[N:], found.predict(new)) > 0.95
    assert found.score(new, shifts=np.zeros((100, 2))) < found.score(new) - 1
    assert np.array_equal(found.predict(new), found.predict_proba(new).argmax(axis=1))
    assert np.allclose(found.predict_proba(new).sum(axis=1), 1)
    dim = ParticleStack(
        0.5 * np.asarray(new), pixel_size=PIXEL_SIZE, ctf=new.ctf, rotations=new.rotations, shifts=new.shifts
    )
    assert np.mean(found.predict(dim) == found.predict(new)) > 0.9


def test_volumes_are_those_of_the_states(two):
    _, truth, found = two
    own = [truth.labels[:N][found.labels_ == k] for k in (0, 1)]
    state = [np.bincount(labels).argmax() for labels in own]
    assert sorted(state) == [0, 1] and found.volumes_.shape == (2, L, L, L) and found.volumes_.dtype == np.float32
    for k, volume in enumerate(found.volumes_):
        right, wrong = (fsc(volume, STATES[[0, -1][s]])[1:7].mean() for s in (state[k], 1 - state[k]))
        assert right > 0.9 and right > wrong + 0.02
        scale = np.vdot(volume, STATES[[0, -1][state[k]]]) / np.vdot(*[STATES[[0, -1][state[k]]]] * 2)
        assert 0.55 < scale < 1.1  # what few images do not tell, the prior holds down


# ---- classes ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("init", ["components", "random"])
@pytest.mark.parametrize(
    ("n_states", "proportions"), [(2, [0.85, 0.15]), pytest.param(3, None, marks=pytest.mark.slow)]
)
def test_states_are_found(n_states, proportions, init):
    stack, truth = particles(n_states, proportions=proportions)
    found = MulticlassReconstruction(n_states, init=init, n_init=1 if init == "components" else 2, **OPTIONS).fit(stack)
    # By lot: 0.33 and, of classes as uneven, 0.15.
    assert partition_precision(truth.labels, found.labels_) > 0.9
    assert found.converged_ and (np.diff(found.log_likelihood_curve_) > 0).all()
    assert (np.diff(found.class_shares_) <= 0).all() and found.class_shares_.sum() == pytest.approx(1)
    assert np.allclose(np.sort(np.bincount(truth.labels) / N)[::-1], found.class_shares_, atol=0.04)


@pytest.mark.slow
def test_held_out_images_tell_how_many_classes():
    stack, _ = particles(2, 300)
    scores = [MulticlassReconstruction(k, **OPTIONS).fit(stack[:200]).score(stack[200:]) for k in (1, 2)]
    assert scores[1] > scores[0] + 1
    one, truth = make_particles(STATES[0], 300, snr=2.0, random_state=0)
    one = one.replace(rotations=truth.rotations)
    scores = [MulticlassReconstruction(k, **OPTIONS).fit(one[:200]).score(one[200:]) for k in (1, 2)]
    assert scores[1] < scores[0] + 0.5


def test_result_does_not_depend_on_threads_and_follows_the_seed():
    stack, _ = particles(2, 80)
    options = OPTIONS | {"init": "random"}
    first, again = (MulticlassReconstruction(2, **(options | {"n_jobs": n})).fit(stack) for n in (1, 2))
    assert np.array_equal(first.responsibilities_, again.responsibilities_)
    assert np.array_equal(first.volumes_, again.volumes_)
    other = MulticlassReconstruction(2, **(options | {"random_state": 1})).fit(stack)
    assert not np.array_equal(first.responsibilities_, other.responsibilities_)


def test_turned_poses_turn_nothing_but_the_volumes():
    stack, truth = particles(2, 120)
    turn = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    found, turned = (
        MulticlassReconstruction(2, **OPTIONS).fit(stack, rotations=poses)
        for poses in (truth.rotations, turn @ truth.rotations)
    )
    assert np.mean(found.labels_ == turned.labels_) > 0.97
    # x' = -y, y' = x
    back = np.pad(turned.volumes_[0][1:, 1:, 1:].swapaxes(1, 2)[:, ::-1], ((1, 0), (1, 0), (1, 0)))
    assert fsc(back, found.volumes_[0])[1:6].min() > 0.9


# ---- interruption ----------------------------------------------------------------------------------------
class Killed(Exception):
    pass


class AtEnd:
    """A callback that raises, or stops, at the end of some step."""

    def __init__(self, n, stop=False):
        self.n, self.stop = n, stop

    def setup(self, estimator, context):
        pass

    def teardown(self, estimator, context):
        pass

    def on_fit_task_begin(self, estimator, context):
        pass

    def on_fit_task_end(self, estimator, context):
        self.n -= 1
        if self.n == 0 and not self.stop:
            raise Killed
        return self.n == 0


SHORT = OPTIONS | {"init": "random", "n_init": 2, "max_iter": 3, "tol": 0.0}


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_killed_and_resumed_ends_where_the_unbroken_fit_ends(tmp_path, monkeypatch):
    monkeypatch.setattr("skcryo.reconstruction._multiclass._SECONDS_BETWEEN", 0.0)
    stack, _ = particles(2, 40)
    unbroken = MulticlassReconstruction(2, **SHORT).fit(stack)
    for moment in (1, 3, 6, 9):
        folder = tmp_path / str(moment)
        with pytest.raises(Killed):
            MulticlassReconstruction(2, checkpoint_dir=folder, **SHORT).set_callbacks(AtEnd(moment)).fit(stack)
        resumed = MulticlassReconstruction(2, checkpoint_dir=folder, **SHORT).fit(stack)
        assert np.array_equal(resumed.responsibilities_, unbroken.responsibilities_)
        assert np.array_equal(resumed.volumes_, unbroken.volumes_)
        assert resumed.log_likelihood_curve_ == unbroken.log_likelihood_curve_
        for path in folder.iterdir():
            with np.load(path, allow_pickle=False) as arrays:
                json.loads(arrays["__info__"].tobytes())
    with pytest.raises(ValueError, match="holds a fit of other images or parameters"):
        MulticlassReconstruction(3, checkpoint_dir=folder, **SHORT).fit(stack)


@pytest.mark.parametrize("n", [1, 3])
def test_stopped_it_is_fitted(n):
    stack, _ = particles(2, 60)
    found = MulticlassReconstruction(2, **SHORT).set_callbacks(AtEnd(n, stop=True)).fit(stack)
    assert found.n_iter_ == 1 and found.predict(stack).shape == (60,)


def test_what_has_not_settled_is_said():
    stack, _ = particles(2, 60)
    with pytest.warns(ConvergenceWarning, match="had not settled in max_iter=1"):
        MulticlassReconstruction(2, max_iter=1, init="random", **OPTIONS).fit(stack)


# ---- bad input -------------------------------------------------------------------------------------------
def with_pixel(stack, value):
    images = np.array(stack)
    images[7, 3, 4] = value
    return ParticleStack(images, pixel_size=10, rotations=stack.rotations, shifts=stack.shifts)


BAD = {
    "NaN pixel": (lambda s: (with_pixel(s, np.nan), {}), {}, "NaN: image 7"),
    "no poses": (lambda s: (np.asarray(s), {}), {}, "X carries no poses; give rotations"),
    "poses of another length": (lambda s: (s, {"rotations": s.rotations[:9]}), {}, "rotations has 9 matrices, 30 are"),
    "shifts of another length": (lambda s: (s, {"shifts": s.shifts[:9]}), {}, r"shifts must have shape \(30, 2\)"),
    "ctf of another length": (lambda s: (s, {"ctf": make_ctf(9)}), {}, "CTF has 9 records but X has 30 images"),
    "ctf without pixel size": (
        lambda s: (s.replace(pixel_size=None), {"ctf": make_ctf(30)}), {}, "CTFs need the pixel size",
    ),
    "too many classes": (lambda s: (s, {}), {"n_classes": 31}, "n_samples=30 images are fewer than n_classes=31"),
    "coarse": (lambda s: (s, {}), {"resolution": 400}, "resolution is 400, coarser than half the box of 192"),
    "large mask": (lambda s: (s, {}), {"mask_radius": 17}, "mask_radius is 17 pixels; at most the box of 16"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_is_named(kind):
    make, parameters, message = BAD[kind]
    X, options = make(particles(2, 30)[0])
    with pytest.raises(ValueError, match=message):
        MulticlassReconstruction(**(OPTIONS | parameters)).fit(X, **options)
