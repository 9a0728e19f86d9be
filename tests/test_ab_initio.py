"""Volumes and poses from images alone, on small data whose truth is known."""

import pickle
import warnings

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, KFold

from skcryo.datasets import make_molecule, make_particles
from skcryo.metrics import pose_error
from skcryo.particles import ParticleStack, concatenate_stacks
from skcryo.projection import project
from skcryo.reconstruction import AbInitioVolume
from skcryo.reconstruction._ab_initio_fit import AbInitioFit, agreement
from skcryo.rotations import random_rotations

L = 24
MOLECULE = make_molecule(L, random_state=0)
PIXEL_SIZE = 320 / L
FULL = {"max_shift": 2, "n_jobs": 1, "random_state": 0}
# Finds the truth only where images are clear
QUICK = FULL | {"angular_step": 30}
# Where the truth does not matter
SHORT = QUICK | {"n_starts": 2, "max_epochs": 2, "max_rounds": 2}


def particles(n=250, preset="ctf", snr=4.0, seed=0, volumes=MOLECULE, **options):
    return make_particles(
        volumes, n, preset=preset, snr=snr, pixel_size=PIXEL_SIZE, random_state=seed, **options
    )


def quietly_fitted(estimator, X, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return estimator.fit(X, **options)


@pytest.fixture(scope="module")
def data():
    return particles(350)


@pytest.fixture(scope="module")
def fitted(data):
    """Fitted to the first 250 images; the last 100 are held out."""
    return AbInitioVolume(**FULL).fit(data[0][:250])


def likeness(model, stack, clean):
    """Correlation of clean images with the volume's projections at the fitted poses: free of frame and hand."""
    found = project(
        model.volume_, model.rotations_, shifts=model.shifts_, ctf=stack.ctf, pixel_size=stack.pixel_size
    )
    return np.corrcoef(found.ravel(), clean.ravel())[0, 1]


# ---- the truth is found ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "preset, snr, seed, degrees",
    [
        pytest.param("paper", None, 1, 2, marks=pytest.mark.slow),
        pytest.param("paper", 0.5, 2, 4, marks=pytest.mark.slow),
        ("shifted", 1.0, 1, 3),
    ],
)
def test_poses_are_found(preset, snr, seed, degrees):
    """Poses drawn by lot are 100 degrees off in the best frame; unrefined ones on this grid 10."""
    stack, truth = particles(preset=preset, snr=snr, seed=seed)
    model = AbInitioVolume(**QUICK | {"random_state": seed, "max_shift": 0 if preset == "paper" else 2}).fit(stack)
    assert model.converged_
    assert pose_error(model.rotations_, truth.rotations).median < degrees
    assert likeness(model, stack, truth.clean) > 0.93


def test_poses_are_found_through_ctfs(data, fitted):
    stack, truth = data[0][:250], data[1]
    assert fitted.converged_
    assert fitted.rotations_.shape == (250, 3, 3) and fitted.volume_.shape == (L, L, L)
    assert pose_error(fitted.rotations_, truth.rotations[:250]).p95 < 3
    assert likeness(fitted, stack, truth.clean[:250]) > 0.95


def test_shifts_are_found(data, fitted):
    """Up to the volume's own centre: a shift of d in it moves image i by the first two rows of R_i^T d."""
    truth = data[1].shifts[:250]
    rows = np.swapaxes(fitted.rotations_[:, :, :2], 1, 2)
    difference = fitted.shifts_ - truth
    origin = np.linalg.lstsq(rows.reshape(-1, 3), difference.ravel(), rcond=None)[0]
    errors = np.linalg.norm(difference - rows @ origin, axis=1)
    # Not searched for, they would be off by 0.9.
    assert np.median(errors) < 0.2


def test_half_maps_and_what_is_told_of_them(data, fitted):
    stack, truth = data[0][:250], data[1]
    assert fitted.half_maps_.shape == (2, L, L, L) and fitted.fsc_.shape == (L // 2 + 1,)
    assert np.bincount(fitted.half_sets_).tolist() == [125, 125]
    assert fitted.resolution_ == pytest.approx(fitted.resolution_pixels_ * PIXEL_SIZE)
    assert 2 <= fitted.resolution_pixels_ < 4
    assert fitted.pixel_size_ == pytest.approx(PIXEL_SIZE)
    assert fitted.contrast_.mean() == pytest.approx(1)
    # The noise is white; its variance is known.
    assert fitted.noise_spectrum_[1:10] == pytest.approx(truth.noise_std**2, rel=0.15)
    assert stack.rotations is None


@pytest.mark.slow
def test_contrast_is_found():
    stack, truth = particles(200, "shifted")
    contrast = np.where(np.arange(200) % 2, 0.7, 1.3)
    scaled = stack.replace(data=np.asarray(stack) + (contrast - 1)[:, None, None] * truth.clean)
    model = AbInitioVolume(**QUICK).fit(scaled)
    # Not fitted, or fitted to noise alone, it would be about 0.
    assert np.corrcoef(model.contrast_, contrast)[0, 1] > 0.9
    assert np.ptp(quietly_fitted(AbInitioVolume(**SHORT, contrast_std=None), scaled).contrast_) == 0


def test_poses_and_scale_of_the_stack_do_not_matter(data, tmp_path):
    """Nor does it matter that images lie in a file; a power of two leaves all digits as they are."""
    stack = data[0][:100]
    expected = quietly_fitted(AbInitioVolume(**SHORT), stack)
    path = tmp_path / "images.npy"
    np.save(path, 1024 * np.asarray(stack))
    other = ParticleStack(
        np.load(path, mmap_mode="r"),
        pixel_size=stack.pixel_size,
        ctf=stack.ctf,
        rotations=random_rotations(100, random_state=9),
        shifts=np.full((100, 2), 7.0),
    )
    found = quietly_fitted(AbInitioVolume(**SHORT), other)
    assert found.rotations_ == pytest.approx(expected.rotations_, abs=1e-6)
    assert found.volume_ == pytest.approx(1024 * expected.volume_, rel=1e-4, abs=0.1)


# ---- the verdict -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_noise_has_no_volume(seed):
    noise = np.random.default_rng(seed).standard_normal((200, L, L)).astype(np.float32)
    model = AbInitioVolume(**QUICK | {"random_state": seed, "n_starts": 3})
    with pytest.warns(ConvergenceWarning, match="none of 3 starts agrees with the best one in more than 60%"):
        model.fit(noise)
    assert not model.converged_ and len(model.start_scores_) == 3
    assert np.sort(model.start_agreement_)[:-1].max() < 0.5
    # Half sets share the start, and what it took for signal at low frequency; beyond that nothing may agree.
    assert np.abs(model.fsc_[-4:]).max() < 0.3


def test_one_start_is_not_enough(data):
    with pytest.warns(ConvergenceWarning, match="one start cannot be confirmed by another"):
        model = AbInitioVolume(**SHORT | {"n_starts": 1}).fit(data[0][:100])
    assert not model.converged_ and model.start_agreement_.tolist() == [1.0]


def test_one_round_has_not_settled():
    stack, _ = particles(preset="paper", snr=None, seed=1)
    with pytest.warns(ConvergenceWarning, match="poses had not settled"):
        model = AbInitioVolume(**QUICK | {"max_shift": 0, "random_state": 1, "max_rounds": 1}).fit(stack)
    assert not model.converged_


def test_starts_end_when_two_agree(fitted):
    assert fitted.converged_ and 2 <= len(fitted.start_scores_) < 5
    best = int(fitted.start_scores_.argmax())
    assert fitted.start_agreement_[best] == 1.0
    assert np.delete(fitted.start_agreement_, best).max() > 0.6
    assert [len(curve) >= 11 for curve in fitted.start_curves_] == [True] * len(fitted.start_scores_)


def test_the_likelihood_ranks_starts_as_the_truth_does():
    """Three starts, and one that was stopped after its first epoch: it must not win."""
    stack, truth = particles(200, "paper", snr=2.0)
    options = {
        "max_shift": 0.0, "mask_radius": 0.42 * L, "max_ring": 11, "n_starts": 4, "max_epochs": 30,
        "contrast_std": 0.2, "angular_step": 30,
    }
    fit = AbInitioFit(stack, stack.ctf, stack.pixel_size, options, 3, 1)
    for n_epochs in (1, 30, 30, 30):
        start = fit.begin_start()
        while not start.finished and start.epoch < n_epochs:
            start.run_epoch()
        fit.end_start(start)
    errors = [pose_error(poses, truth.rotations).median for poses in fit.poses]
    assert errors[fit.best] == pytest.approx(min(errors), abs=2)
    assert np.argmin(fit.scores) == np.argmax(errors) == 0
    assert fit.start_agreement()[fit.best] == 1


def test_agreement_is_free_of_frame_and_hand():
    poses, frame = random_rotations(200, random_state=0), random_rotations(1, random_state=1)[0]
    mirror = np.diag([1.0, 1.0, -1.0])
    assert agreement(poses, frame @ poses) == 1
    assert agreement(mirror @ poses @ mirror, frame @ poses) == 1
    # By chance a few per cent lie within 20 degrees.
    assert agreement(poses, random_rotations(200, random_state=2)) < 0.2


# ---- the same result -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_seed_decides_and_threads_do_not(data):
    stack = data[0][:60]
    expected = quietly_fitted(AbInitioVolume(**SHORT, n_classes=2), stack)
    again = quietly_fitted(AbInitioVolume(**SHORT | {"n_jobs": 2}, n_classes=2), stack)
    for name in vars(expected):
        if name.endswith("_") and isinstance(getattr(expected, name), np.ndarray):
            assert np.array_equal(getattr(again, name), getattr(expected, name)), name
    other = quietly_fitted(AbInitioVolume(**SHORT | {"random_state": 5}), stack)
    assert not np.array_equal(other.volume_, expected.volume_)


@pytest.mark.slow
def test_a_generator_decides_too(data):
    def fit():
        return quietly_fitted(AbInitioVolume(**SHORT | {"random_state": np.random.RandomState(4)}), data[0][:100])

    assert np.array_equal(fit().volume_, fit().volume_)


# ---- new images ------------------------------------------------------------------------------------------


def test_held_out_images_are_posed_as_well_as_fitted_ones(data, fitted):
    stack, truth = data
    gauge = pose_error(fitted.rotations_, truth.rotations[:250])
    held_out = pose_error(
        np.concatenate([fitted.rotations_, fitted.predict(stack[250:])]), truth.rotations
    ).errors[250:]
    assert np.median(held_out) < 1.1 * gauge.median + 0.2
    poses = fitted.predict_poses(stack[250:])
    assert poses.shifts.shape == (100, 2) and np.abs(poses.shifts).max() < 3
    assert poses.contrast == pytest.approx(1, abs=0.5)


def test_predict_is_independent_of_the_batch(data, fitted):
    some = data[0][250:262]
    together = fitted.predict_poses(some)
    alone = [fitted.predict_poses(some[i : i + 1]) for i in range(len(some))]
    for name in ("rotations", "shifts", "contrast", "correlation", "log_likelihood"):
        one_by_one = np.concatenate([poses[name] for poses in alone])
        assert one_by_one == pytest.approx(together[name], rel=1e-6, abs=1e-6), name
    assert fitted.predict(some[::-1]) == pytest.approx(together.rotations[::-1], abs=1e-6)


@pytest.mark.slow
def test_junk_has_low_scores(data, fitted):
    stack, truth = data
    noise = stack[250:].replace(data=np.asarray(stack[250:]) - truth.clean[250:])
    other = particles(100, volumes=make_molecule(L, random_state=3), seed=9)[0]
    right = fitted.score_samples(stack[250:])
    for wrong, least in ((noise, 0.99), (other, 0.9)):
        scores = np.concatenate([right, fitted.score_samples(wrong)])
        # Scores that tell nothing give 0.5.
        assert roc_auc_score(np.arange(200) < 100, scores) > least
    assert fitted.score(stack[250:]) > fitted.score(noise)
    assert fitted.score(stack[250:]) > fitted.score(other)


# ---- classes ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_states():
    states = [MOLECULE, make_molecule(L, random_state=0, hinge=60)]
    stack, truth = particles(300, "paper", snr=2.0, volumes=states, proportions=[0.6, 0.4])
    return stack, truth, AbInitioVolume(n_classes=2, **QUICK | {"max_shift": 0}).fit(stack)


@pytest.mark.slow
def test_two_states_are_told_apart(two_states):
    stack, truth, model = two_states
    assert model.labels_.shape == (300,) and model.responsibilities_.shape == (300, 2)
    assert np.bincount(model.labels_)[0] >= np.bincount(model.labels_)[1]
    assert model.responsibilities_.sum(axis=1) == pytest.approx(1)
    right = np.mean(model.labels_ == truth.labels)
    # By chance 0.6 at most.
    assert right > 0.93
    # The volumes differ as the states do: by what turns, not by noise.
    first, second = model.class_volumes_
    assert 0.3 < np.corrcoef(first.ravel(), second.ravel())[0, 1] < 0.97


@pytest.mark.slow
def test_coordinates(two_states):
    stack, truth, model = two_states
    assert model.embedding_.shape == (300, 1) and model.components_.shape[0] == 1
    found = model.transform(stack[:150])
    assert found.shape == (150, 1) and found.dtype == np.float32
    assert list(model.get_feature_names_out()) == ["abinitiovolume0"]
    # The states lie apart on the axis; coordinates that tell nothing give 0.5.
    for coordinates, labels in ((found[:, 0], truth.labels[:150]), (model.embedding_[:, 0], truth.labels)):
        area = roc_auc_score(labels, coordinates)
        assert max(area, 1 - area) > 0.95
    assert np.corrcoef(found[:, 0], model.embedding_[:150, 0])[0, 1] > 0.95


def test_without_components_there_is_no_transform(fitted):
    assert not hasattr(fitted, "transform") and not hasattr(fitted, "fit_transform")
    assert not hasattr(AbInitioVolume(), "transform")
    assert hasattr(AbInitioVolume(n_components=1), "transform")
    assert hasattr(AbInitioVolume(n_classes=2), "transform")


# ---- scikit-learn ----------------------------------------------------------------------------------------


def test_pickle_and_clone(data, fitted):
    some = data[0][250:270]
    assert np.array_equal(pickle.loads(pickle.dumps(fitted)).predict(some), fitted.predict(some))
    assert not hasattr(clone(fitted), "volume_")


@pytest.mark.slow
def test_grid_search_with_ctfs(data):
    """The right largest shift wins: centred images do not fit what was moved by up to 1.2 pixels."""
    model = AbInitioVolume(**SHORT | {"n_starts": 1, "max_epochs": 8})
    search = GridSearchCV(model, {"max_shift": [0, 2]}, cv=KFold(2), error_score="raise", refit=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        search.fit(data[0][:160])
    assert search.best_params_ == {"max_shift": 2}


def test_a_batch_of_two_kinds_keeps_its_order(data, fitted):
    both = concatenate_stacks([data[0][250:260], data[0][:10]])
    expected = np.concatenate([fitted.predict(data[0][250:260]), fitted.predict(data[0][:10])])
    assert fitted.predict(both) == pytest.approx(expected, abs=1e-6)
