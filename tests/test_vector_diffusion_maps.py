"""Vector diffusion maps: neighbours against brute force, spectra in closed form, poses, and poses of new images."""

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning

from skcryo.ctf import make_ctf
from skcryo.datasets import make_molecule, make_particles
from skcryo.decomposition import SteerablePCA
from skcryo.decomposition._invariant_neighbors import Neighbors, invariant_neighbors
from skcryo.fourier import rotate_images, shift_images
from skcryo.metrics import pose_error
from skcryo.orientation import VectorDiffusionMaps
from skcryo.orientation._connection_graph import connection_spectrum, poses_from_eigenvectors
from skcryo.rotations import geodesic_distance, in_plane_rotation, random_rotations


@pytest.fixture(scope="module")
def particles():
    return make_particles(make_molecule(32, random_state=2), 900, snr=0.3, random_state=1)


@pytest.fixture(scope="module")
def fitted(particles):
    return VectorDiffusionMaps(n_jobs=1).fit(particles[0][:800])


def some_coefficients(n, seed=0, sizes=(3, 4, 0, 2, 1, 1, 1)):
    rng = np.random.default_rng(seed)
    parts = [rng.standard_normal((n, s)) + 1j * rng.standard_normal((n, s)) * (k > 0) for k, s in enumerate(sizes)]
    return [part.astype(np.complex64) for part in parts]


def turned(parts, which, angle, mirrored):
    return [
        (np.conj(part[which]) if mirrored else part[which]) * np.exp(-1j * n * angle) for n, part in enumerate(parts)
    ]


@pytest.mark.parametrize("reflections", [True, False])
def test_neighbors_are_those_of_brute_force(reflections):
    images, references = some_coefficients(5), some_coefficients(6, seed=1)
    angles = 2 * np.pi * np.arange(360) / 360
    distances = np.empty((2, 5, 6))
    for mirrored in (0, 1):
        for j in range(6):
            turns = [turned(references, j, angle, mirrored) for angle in angles]
            for i in range(5):
                squares = [sum(np.sum(abs(a[i] - b) ** 2) for a, b in zip(images, turn)) for turn in turns]
                distances[mirrored, i, j] = np.sqrt(min(squares))
    expected = distances.min(axis=0) if reflections else distances[0]
    near = invariant_neighbors(images, references, 6, reflections=reflections)
    found = np.empty((5, 6))
    np.put_along_axis(found, near.indices, near.distances, axis=1)
    assert found == pytest.approx(expected, rel=1e-3)
    assert np.all(np.diff(near.distances, axis=1) >= 0)
    # What is said of angle and mirror holds.
    i, k = 3, 0
    best = turned(references, near.indices[i, k], near.angles[i, k], near.reflected[i, k])
    square = sum(np.sum(abs(a[i] - b) ** 2) for a, b in zip(images, best))
    assert np.sqrt(square) == pytest.approx(near.distances[i, k], rel=1e-5)


def test_a_turned_and_mirrored_image_is_its_own_neighbor():
    parts = some_coefficients(40)
    angles = np.random.default_rng(0).uniform(0, 2 * np.pi, 40)
    flips = np.arange(40) % 2 == 0
    copies = [
        np.where(flips[:, None], part.conj(), part) * np.exp(-1j * n * angles)[:, None] for n, part in enumerate(parts)
    ]
    near = invariant_neighbors(copies, parts, 1)
    assert np.array_equal(near.indices[:, 0], np.arange(40))
    assert np.array_equal(near.reflected[:, 0], flips)
    assert np.angle(np.exp(1j * (near.angles[:, 0] - angles))) == pytest.approx(0, abs=1e-4)
    assert near.distances == pytest.approx(0, abs=5e-3)


def test_neighbors_do_not_depend_on_batches_and_threads():
    images, references = some_coefficients(60), some_coefficients(600, seed=1)
    whole = invariant_neighbors(images, references, 5)
    alone = invariant_neighbors([part[17:18] for part in images], references, 5)
    threads = invariant_neighbors(images, references, 5, n_jobs=2)
    for name in ("indices", "angles", "reflected", "distances"):
        assert np.array_equal(getattr(alone, name)[0], getattr(whole, name)[17])
        assert np.array_equal(getattr(threads, name), getattr(whole, name))


def test_relative_rotations_of_true_neighbors(particles):
    stack, truth = make_particles(make_molecule(32, random_state=2), 400, snr=None, random_state=1)
    pca = SteerablePCA(noise_variance=0, max_frequency=0.2)
    parts = pca.complex_coefficients(pca.fit_transform(stack))
    near = invariant_neighbors(parts, parts, 1, exclude_self=True)
    predicted = truth.rotations[near.indices[:, 0]] @ near.relative_rotations()[:, 0]
    # Nearest views of 400 are some 4 degrees apart; wrong signs anywhere give 90.
    assert np.median(np.degrees(geodesic_distance(predicted, truth.rotations))) < 7


def exact_graph(rotations, k):
    """Neighbours by view, related as the poses say, but for the tilt from view to view."""
    cosines = rotations[:, :, 2] @ rotations[:, :, 2].T
    np.fill_diagonal(cosines, 0)
    indices = np.argsort(-abs(cosines), axis=1)[:, :k]
    reflected = np.take_along_axis(cosines, indices, 1) < 0
    references = rotations[indices] * np.where(reflected[..., None, None], np.array([1.0, -1.0, -1.0]), 1.0)
    relative = np.einsum("ikba,ibc->ikac", references, rotations)
    angles = -np.arctan2(relative[..., 1, 0] - relative[..., 0, 1], relative[..., 0, 0] + relative[..., 1, 1])
    return Neighbors(indices, np.mod(angles, 2 * np.pi), reflected, np.zeros_like(angles))


def test_spectrum_of_exact_neighbors_is_that_of_the_projective_plane():
    rotations = random_rotations(1500, 0)
    near = exact_graph(rotations, 30)
    for frequency in (1, 2):
        first, second = 2 * frequency + 1, 2 * frequency + 3
        values, _ = connection_spectrum(near, frequency, first + second)
        # Eigenvalues of the Laplacian: j (j + 1) - frequency^2 for j = frequency, frequency + 1, ...
        expected = ((frequency + 1) * (frequency + 2) - frequency**2) / frequency
        gap = (1 - values[first:].mean()) / (1 - values[:first].mean())
        assert gap == pytest.approx(expected, rel=0.15)
    # Without what density and mirror do, 90 degrees.
    assert pose_error(poses_from_eigenvectors(connection_spectrum(near, 1, 3)[1]), rotations).mean < 4


def test_dense_and_sparse_spectra_agree(monkeypatch):
    near = exact_graph(random_rotations(150, 0), 8)
    dense, vectors = connection_spectrum(near, 1, 4)
    monkeypatch.setattr("skcryo.orientation._connection_graph._DENSE", 0)
    sparse, others = connection_spectrum(near, 1, 4)
    assert sparse == pytest.approx(dense, abs=1e-5)
    assert poses_from_eigenvectors(others) == pytest.approx(poses_from_eigenvectors(others), abs=1e-3)


def test_poses_of_simulated_particles(particles, fitted):
    error = pose_error(fitted.rotations_, particles[1].rotations[:800])
    assert error.mean < 11
    assert fitted.converged_
    # Random poses deviate by 120 degrees.
    assert np.median(fitted.deviations_) < 12


@pytest.mark.parametrize("seed", [0, 1])
def test_multiple_frequencies_see_through_noise(seed):
    stack, truth = make_particles(make_molecule(32, random_state=2), 1000, snr=0.2, random_state=seed)
    with pytest.warns(ConvergenceWarning, match="spectral gap"):
        single = VectorDiffusionMaps(1).fit(stack)
    several = VectorDiffusionMaps(5).fit(stack)
    assert not single.converged_
    assert several.converged_
    assert pose_error(several.rotations_, truth.rotations).mean < 20
    assert pose_error(several.rotations_, truth.rotations).mean < pose_error(single.rotations_, truth.rotations).mean
    assert several.weights_.mean() < 1


def test_noise_is_not_taken_for_a_molecule():
    images = np.random.default_rng(0).standard_normal((300, 32, 32)).astype(np.float32)
    with pytest.warns(ConvergenceWarning, match="did not converge"):
        assert not VectorDiffusionMaps().fit(images).converged_


def test_new_images_have_poses_in_the_same_frame(particles, fitted):
    both = np.concatenate([fitted.rotations_, fitted.predict(particles[0][800:])])
    errors = pose_error(both, particles[1].rotations).errors
    assert errors[800:].mean() < 1.15 * errors[:800].mean() + 0.5
    again = geodesic_distance(fitted.predict(particles[0][:50]), fitted.rotations_[:50])
    assert np.degrees(np.median(again)) < 5


@pytest.mark.parametrize("angle", [np.pi / 2, 1.0])
def test_turning_and_mirroring_new_images_turns_their_poses(particles, fitted, angle):
    images = particles[1].clean[800:840]
    poses = fitted.predict(images)
    found = fitted.predict(rotate_images(images, angle))
    turned_poses = poses @ in_plane_rotation(-angle)
    assert np.degrees(np.median(geodesic_distance(found, turned_poses))) < 0.2
    mirrored = np.roll(images[:, ::-1], 1, axis=1)
    found = fitted.predict(mirrored)
    assert np.degrees(np.median(geodesic_distance(found, poses * np.array([1.0, -1.0, -1.0])))) < 0.2


def test_predictions_do_not_depend_on_batches(particles, fitted):
    new = particles[0][800:830]
    parts = [fitted.predict(new[k : k + 7]) for k in range(0, 30, 7)]
    assert np.concatenate(parts) == pytest.approx(fitted.predict(new), abs=1e-6)


def test_known_shifts_are_undone(particles):
    stack, truth = particles
    shifts = np.random.default_rng(0).integers(-3, 4, (800, 2)).astype(float)
    moved = stack[:800].replace(data=shift_images(np.asarray(stack[:800]), shifts), shifts=shifts)
    vdm = VectorDiffusionMaps().fit(moved)
    assert pose_error(vdm.rotations_, truth.rotations[:800]).mean < 11


def test_bad_input(particles):
    stack = particles[0]
    with pytest.raises(ValueError, match="n_neighbors is 20 but X has 15 images"):
        VectorDiffusionMaps(n_neighbors=20).fit(stack[:15])
    with pytest.raises(ValueError, match="a CTF needs the pixel size"):
        VectorDiffusionMaps().fit(np.asarray(stack[:15]), ctf=make_ctf(15))
    with pytest.raises(ValueError, match="CTF has 2 records but X has 15 images"):
        VectorDiffusionMaps().fit(stack[:15], ctf=make_ctf(2))
