"""``skcryo classify3d`` as a person meets it: are there really K classes, files, errors, runs that survive a kill."""

import numpy as np
import pytest

from skcryo._cli._evidence import held_out, numbered_alike
from skcryo.alignment import FourierImages
from skcryo.datasets import make_molecule, make_particles
from skcryo.preprocessing import noise_spectrum

L = 24
STATES = [make_molecule(L, random_state=0), make_molecule(L, random_state=0, hinge=50)]

# ---- the evidence ----------------------------------------------------------------------------------------


def judged(volumes, divide, n=300, snr=0.3, seed=0, n_classes=2):
    """Evidence for a division of particles of these volumes at their true poses."""
    stack, truth = make_particles(volumes, n, preset="ctf", snr=snr, pixel_size=8.0, random_state=seed)
    images = FourierImages.from_stack(stack, noise_spectrum(stack), 11, ctf=stack.ctf, pixel_size=stack.pixel_size)
    labels = divide(truth, np.random.default_rng(seed))
    halves = np.arange(n) // 2 % 2
    poses = truth.rotations, np.zeros((n, 2)) if truth.shifts is None else truth.shifts, None
    return held_out(images, *poses, labels, halves, n_classes, mask_radius=10), truth


def by_view(truth, rng):
    return (np.abs(truth.rotations[:, 2, 2]) > 0.5).astype(int)


def by_chance(truth, rng):
    return rng.integers(0, 2, len(truth.rotations))


def by_truth(truth, rng):
    return truth.labels


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_states_are_told_apart_and_other_divisions_are_not(seed):
    evidence, truth = judged(STATES, by_truth, seed=seed)
    assert evidence.distinct.all() and evidence.groups == [[0], [1]]
    assert np.mean(evidence.predicted == truth.labels) > 0.9
    # One molecule divided by views, or two by chance: the volumes differ, but not by what the other half shows.
    for volumes, divide in ((STATES[:1], by_view), (STATES[:1], by_chance), (STATES, by_chance)):
        evidence, _ = judged(volumes, divide, seed=seed)
        assert evidence.gains[0, 1] < evidence.errors[0, 1]
        assert not evidence.distinct[0, 1] and evidence.groups == [[0, 1]]


def test_a_third_class_of_two_states_is_found_out():
    def third(truth, rng):
        return np.where(truth.labels == 0, 0, 1 + by_chance(truth, rng))

    evidence, _ = judged(STATES, third, n_classes=3)
    assert evidence.groups == [[0], [1, 2]]
    assert np.allclose(evidence.gains, evidence.gains.T) and not np.diag(evidence.gains).any()


def test_a_class_without_particles_is_none():
    evidence, _ = judged(STATES, lambda truth, rng: 2 * truth.labels, n_classes=3)
    assert evidence.distinct[0, 2] and not evidence.distinct[0, 1] and not evidence.distinct[1, 2]


def test_numbers_of_the_same_partition_agree():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 50)
    names = np.array([2, 0, 3, 1])
    assert np.array_equal(numbered_alike(names[labels], labels, 4), labels)
