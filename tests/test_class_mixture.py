"""Classes of images of known pose: likelihoods against projections, images judged unseen, evidence for classes."""

import numpy as np
import pytest
from sklearn.utils import Bunch

from skcryo.alignment import FourierImages
from skcryo.datasets import make_molecule, make_particles
from skcryo.heterogeneity._separation import classes_of_halves
from skcryo.metrics import partition_precision
from skcryo.preprocessing import noise_spectrum
from skcryo.projection import VolumeProjector
from skcryo.reconstruction._class_mixture import ClassMixture, log_sum, random_partition
from skcryo.rotations import geodesic_distance, in_plane_rotation

L, RADIUS, BAND = 24, 10.0, 9.0
MOLECULE = make_molecule(L, random_state=0)
STATES = np.stack([MOLECULE, make_molecule(L, random_state=0, hinge=60), make_molecule(L, random_state=0, ligand=0.3)])
OPTIONS = {"band": BAND, "mask_radius": RADIUS, "seed": 0}


def particles(volumes, n=300, snr=0.3, seed=0, **options):
    stack, truth = make_particles(volumes, n, snr=snr, random_state=seed, **options)
    images = FourierImages.from_stack(
        stack, noise_spectrum(stack), 11, ctf=stack.ctf, pixel_size=stack.pixel_size
    )
    return images, truth


def start(n, n_classes, seed=0):
    return random_partition(n, n_classes, np.random.RandomState(seed))


def fitted(images, truth, n_classes, seed=0, **options):
    mixture = ClassMixture(images, truth.rotations, truth.shifts, **OPTIONS | options)
    return mixture.fit(start(len(images), n_classes, seed))


# ---- the likelihood --------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["paper", "ctf"])
def test_log_likelihood_is_that_of_projections(preset):
    images, truth = particles(STATES[:2], 30, preset=preset, pixel_size=8.0)
    contrast = np.linspace(0.8, 1.2, 30)
    mixture = ClassMixture(images, truth.rotations, truth.shifts, contrast, **OPTIONS)
    mixture.fit(start(30, 2), max_iter=1)
    log, merged = mixture.judge(images, truth.rotations, truth.shifts, contrast)
    n_points = images.n_points(BAND)
    for k, difference in enumerate(mixture.differences):
        model = VolumeProjector(mixture.consensus + difference).slices(truth.rotations, images.points[:n_points])
        model = model * images.filters[:, :n_points] * contrast[:, None]
        model *= images.centred_phases(truth.shifts).conj()[:, :n_points]
        values = images.values[:, :n_points]
        expected = (np.abs(values) ** 2).sum(axis=1) - (np.abs(values - model) ** 2).sum(axis=1)
        assert log[:, k] == pytest.approx(expected, rel=1e-3, abs=1e-3 * np.abs(expected).max())
    assert np.array_equal(merged, merged.swapaxes(0, 1)) and np.isfinite(merged).all()


def test_no_image_is_judged_by_a_volume_that_it_is_in():
    images, truth = particles(MOLECULE, 200, snr=0.05)
    labels = np.random.RandomState(0).randint(2, size=200)
    mixture = ClassMixture(images, truth.rotations, truth.shifts, **OPTIONS).fit(np.eye(2)[labels], max_iter=1)

    def preference(log):  # for the class that an image was put in by lot
        gain = np.where(labels == 0, 1, -1) * (log[:, 0] - log[:, 1])
        return gain.mean() / (gain.std() / np.sqrt(len(gain)))

    mixture._maximize(np.eye(2)[labels], mixture._own)
    assert preference(mixture._judge(mixture._own, np.eye(2)[labels])) < 3
    # Volumes that the images are in know them again.
    assert preference(mixture.judge(images, truth.rotations, truth.shifts)[0]) > 10


# ---- classes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_classes", "proportions", "seed"), [(2, None, 0), (2, None, 1), (2, [0.85, 0.15], 1), (3, None, 0), (3, None, 1)]
)
def test_classes_of_any_size_are_found(n_classes, proportions, seed):
    images, truth = particles(STATES[:n_classes], proportions=proportions, seed=seed)
    mixture = fitted(images, truth, n_classes, seed)
    # By lot: 0.5, 0.15 and 0.33. Differences that are not scaled have 0.76 where classes are uneven.
    assert partition_precision(truth.labels, mixture.responsibilities.argmax(axis=1)) > 0.9
    assert mixture.converged and (np.diff(mixture.curve) > 0).all()
    assert np.sort(mixture.shares) == pytest.approx(np.sort(np.bincount(truth.labels) / len(images)), abs=0.03)
    weighted = mixture.log_likelihood + np.log(mixture.shares)
    assert mixture.responsibilities == pytest.approx(np.exp(weighted - log_sum(weighted)[:, None]), abs=0.02)


def test_ctf_shifts_and_contrast_are_part_of_the_model():
    images, truth = particles(STATES[:2], preset="ctf", pixel_size=8.0)
    mixture = fitted(images, truth, 2)
    assert partition_precision(truth.labels, mixture.responsibilities.argmax(axis=1)) > 0.9
    centred = fitted(images, Bunch(**truth | {"shifts": np.zeros((len(images), 2))}), 2)
    assert centred.curve[-1] < mixture.curve[-1]


def test_poses_are_refined_as_members_of_each_class():
    images, truth = particles(STATES[:2], snr=1.0)
    off = truth.rotations @ in_plane_rotation(np.radians(np.random.default_rng(0).normal(0, 4, len(images))))
    mixture = fitted(images, Bunch(**truth | {"rotations": off}), 2)
    before = mixture.curve[-1]
    assert mixture.refine(refine_shifts=False) and mixture.curve[-1] > before
    labels = mixture.responsibilities.argmax(axis=1)
    own = mixture.rotations[np.arange(len(images)), labels]
    assert partition_precision(truth.labels, labels) > 0.97
    # From 3.2 degrees on average.
    assert np.degrees(geodesic_distance(own, truth.rotations)).mean() < 1.9
    assert not mixture.shifts.any()


def test_result_does_not_depend_on_threads():
    images, truth = particles(STATES[:2], 100)
    one, two = fitted(images, truth, 2), fitted(images, truth, 2, n_jobs=2)
    assert np.array_equal(one.log_likelihood, two.log_likelihood) and one.curve == two.curve
    assert np.array_equal(one.differences, two.differences)
    one.refine(refine_shifts=True)
    two.refine(refine_shifts=True)
    assert np.array_equal(one.rotations, two.rotations) and np.array_equal(one.shifts, two.shifts)


@pytest.mark.parametrize("n", [3, 9])
def test_a_few_images(n):
    images, truth = particles(STATES[:2], n, snr=10.0)
    mixture = fitted(images, truth, 2)
    assert np.isfinite(mixture.log_likelihood).all() and np.isfinite(mixture.differences).all()


# ---- evidence --------------------------------------------------------------------------------------------


def halves(images, truth, n_classes, seed=0):
    options = {"band": BAND, "mask_radius": RADIUS, "n_init": 2, "max_iter": 30, "n_jobs": 1}
    return classes_of_halves(images, truth.rotations, truth.shifts, None, n_classes, seed=seed, **options)


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_halves_tell_classes_from_none(seed):
    images, truth = particles(STATES[:2], seed=seed)
    found = halves(images, truth, 2, seed)
    evidence = found.separation(truth.labels)
    assert evidence.distinct.all() and evidence.gains[0, 1] > 6 * evidence.errors[0, 1]
    # Each image by the half that it is not in.
    assert partition_precision(truth.labels, found.responsibilities.argmax(axis=1)) > 0.9
    images, truth = particles(MOLECULE, seed=seed)
    evidence = halves(images, truth, 2, seed).separation(np.arange(300) % 2)
    # The same images, judged by volumes that they are in, gain by any division.
    assert not evidence.distinct[0, 1] and evidence.gains[0, 1] < 2 * evidence.errors[0, 1]


@pytest.mark.slow
def test_a_class_too_many_is_named():
    images, truth = particles(STATES[:2])
    mixture = fitted(images, truth, 3)
    labels = mixture.responsibilities.argmax(axis=1)
    evidence = halves(images, truth, 3).separation(labels)
    assert np.array_equal(evidence.gains, evidence.gains.T) and not np.diag(evidence.gains).any()
    # The two that hold most images of either state are told apart; the third from one of them at the most.
    table = np.array([np.bincount(truth.labels[labels == k], minlength=2) for k in range(3)])
    first, second = table.argmax(axis=0)
    assert evidence.distinct[first, second] and evidence.distinct.sum() < 9
