"""Steerable components: turning and mirroring, orthonormality, noise, CTFs, and streams of images."""

import numpy as np
import pytest

from skcryo.ctf import apply_ctf, make_ctf
from skcryo.datasets import make_molecule, make_particles
from skcryo.decomposition import SteerablePCA
from skcryo.decomposition._disc_basis import DiscBasis
from skcryo.decomposition._steerable_covariance import SteerableMoments, solve_covariance
from skcryo.fourier import rotate_images
from skcryo.particles import ParticleStack


def blobs(L, angle=0.0, mirror=False, seed=0, n_images=3):
    """Sums of Gaussians, turned and mirrored in closed form."""
    rng = np.random.default_rng(seed)
    x, y = np.meshgrid(np.arange(L) - L // 2, np.arange(L) - L // 2)
    images = np.zeros((n_images, L, L))
    for image in images:
        for _ in range(6):
            r, phi = 0.25 * L * np.sqrt(rng.uniform()), rng.uniform(0, 2 * np.pi)
            width, phi = rng.uniform(1.3, 2.5), (-phi if mirror else phi) + angle
            image += rng.normal() * np.exp(-((x - r * np.cos(phi)) ** 2 + (y - r * np.sin(phi)) ** 2) / (2 * width**2))
    return images.astype(np.float32)


@pytest.fixture(scope="module")
def noisy():
    return make_particles(make_molecule(40, random_state=3), 600, snr=0.2, random_state=5)


@pytest.mark.parametrize("L", [32, 33])
def test_basis_is_orthonormal_on_pixels(L):
    basis = DiscBasis(L, 0.5)
    images = basis.synthesize(np.eye(basis.n_functions))
    # Fourier-Bessel functions miss by 1e-2.
    assert basis.analyze(images) == pytest.approx(np.eye(basis.n_functions), abs=1e-3)
    # Nearly as many as there are pixels in the disc times the share of the band.
    assert basis.n_functions > 0.7 * np.pi * basis.radius**2 * np.pi / 4


@pytest.mark.parametrize("L", [24, 25])
def test_fast_transforms_are_plain_sums(L):
    basis = DiscBasis(L, 0.4, max_angular_frequency=7)
    rng = np.random.default_rng(0)
    images, coefficients = rng.standard_normal((2, L, L)), rng.standard_normal((2, basis.n_functions))
    dense = basis.synthesize(np.eye(basis.n_functions))
    assert basis.analyze(images) == pytest.approx(np.einsum("iyx,kyx->ik", images, dense), abs=1e-5)
    assert basis.synthesize(coefficients) == pytest.approx(np.einsum("ik,kyx->iyx", coefficients, dense), abs=1e-5)


@pytest.mark.parametrize("L", [40, 41])
@pytest.mark.parametrize("angle", [np.pi / 2, np.pi / 7, 2.5])
def test_turning_an_image_turns_its_coefficients(L, angle):
    pca = SteerablePCA(noise_variance=0).fit(blobs(L, n_images=60, seed=1))
    found = pca.transform(blobs(L, angle))
    expected = pca.rotate(pca.transform(blobs(L)), angle)
    scale = np.linalg.norm(expected, axis=1, keepdims=True)
    assert found / scale == pytest.approx(expected / scale, abs=1e-3)
    # Phases, as complex numbers.
    for n, (turned, unturned) in enumerate(zip(pca.complex_coefficients(found), pca.complex_coefficients(expected))):
        assert turned / scale == pytest.approx(unturned / scale, abs=1e-3), n


def test_quarter_turns_of_pixels_are_exact():
    image = np.random.default_rng(0).standard_normal((40, 33, 33)).astype(np.float32)
    pca = SteerablePCA(noise_variance=0).fit(image)
    Y = pca.transform(image)
    turned = pca.transform(rotate_images(image, np.pi / 2))
    assert turned == pytest.approx(pca.rotate(Y, np.pi / 2), abs=1e-4 * float(np.abs(Y).max()))


@pytest.mark.parametrize("L", [40, 41])
def test_mirroring_an_image_mirrors_its_coefficients(L):
    pca = SteerablePCA(noise_variance=0).fit(blobs(L, n_images=60, seed=1))
    Y = pca.transform(blobs(L))
    assert pca.transform(blobs(L, mirror=True)) == pytest.approx(pca.reflect(Y), abs=1e-3 * float(np.linalg.norm(Y)))
    assert np.array_equal(pca.reflect(pca.reflect(Y)), Y)


def test_components_are_orthonormal_and_coefficients_keep_distances(noisy):
    stack, _ = noisy
    pca = SteerablePCA().fit(stack)
    assert pca.components_ @ pca.components_.T == pytest.approx(np.eye(pca.n_components_), abs=1e-5)
    Y = pca.transform(stack[:20])
    images = pca.inverse_transform(Y).reshape(20, -1)
    between = np.linalg.norm(images[:, None] - images, axis=2)
    assert np.linalg.norm(Y[:, None] - Y, axis=2) == pytest.approx(between, rel=2e-3, abs=1e-3 * float(between.max()))


def test_covariance_is_that_of_all_turned_and_mirrored_copies():
    images = blobs(25, n_images=30, seed=4)
    pca = SteerablePCA(noise_variance=0, max_frequency=0.3).fit(images)
    Y = pca.transform(images)
    copies = [pca.rotate(Z, 2 * np.pi * k / 64) for Z in (Y, pca.reflect(Y)) for k in range(64)]
    covariance = np.cov(np.concatenate(copies).T, bias=True)
    strength = pca.explained_variance_.max()
    assert covariance == pytest.approx(np.diag(pca.explained_variance_), abs=1e-4 * strength)


def test_noise_alone_has_no_components():
    images = np.random.default_rng(0).standard_normal((500, 33, 33))
    pca = SteerablePCA().fit(images)
    assert pca.noise_variance_ == pytest.approx(1, rel=0.02)
    # Fifty angular frequencies: one of them passes by chance every other time. Without an edge there were 700 columns.
    assert pca.n_components_ <= 5
    assert pca.explained_variance_.max() < 0.5


def test_denoising_beats_the_plain_projection_and_knows_its_noise(noisy):
    stack, truth = noisy
    signal = np.sum(truth.clean**2)
    pca = SteerablePCA().fit(stack)
    assert pca.noise_variance_ == pytest.approx(truth.noise_std**2, rel=0.05)
    error = np.sum((pca.inverse_transform(pca.transform(stack)) - truth.clean) ** 2) / signal
    plain = SteerablePCA(pca.n_components_, noise_variance=0).fit(stack)
    plain_error = np.sum((plain.inverse_transform(plain.transform(stack)) - truth.clean) ** 2) / signal
    assert error < 0.8 * plain_error
    assert plain_error < 0.15 * np.sum((np.asarray(stack) - truth.clean) ** 2) / signal


def test_most_variance_first_within_n_components(noisy):
    everything, few = SteerablePCA().fit(noisy[0]), SteerablePCA(30).fit(noisy[0])
    assert 28 <= few.n_components_ <= 30
    assert sorted(few.explained_variance_) == pytest.approx(
        sorted(everything.explained_variance_)[-few.n_components_ :]
    )
    assert SteerablePCA(max_angular_frequency=3).fit(noisy[0]).angular_frequencies_.max() == 3
    n = everything.angular_frequencies_
    assert np.array_equal(np.sort(n[n > 0]), np.sort(-n[n < 0]))


def test_moments_undo_known_filters():
    """Second moments of images through many CTFs, without noise, give the covariance of the images without."""
    basis = DiscBasis(33, 0.4, 4)
    rng = np.random.default_rng(0)
    moments, plain = SteerableMoments(basis), SteerableMoments(basis)
    scales = np.linspace(2, 0.2, basis.n_functions) * (np.arange(basis.n_functions) % 3 == 0)
    x = rng.standard_normal((4000, basis.n_functions)) * scales
    squares = np.cos(10 * basis.ring_radii * rng.uniform(2, 6, (4000, 1))) ** 2
    z = np.empty_like(x)
    for n in range(len(basis.sizes)):
        for columns in basis.columns(n):
            if columns is not None:
                rings = x[:, columns] @ basis.ring_values[n].T
                z[:, columns] = (squares * rings) @ basis.ring_values[n]
    moments.add(z, squares)
    plain.add(x, None)
    assert moments.mean() == pytest.approx(plain.mean(), abs=0.1)
    for n in range(len(basis.sizes)):
        found, _ = solve_covariance(moments, n, moments.mean(), 0.0)
        expected, _ = solve_covariance(plain, n, plain.mean(), 0.0)
        # Taking the CTFs for their mean misses by 50 %.
        assert np.linalg.norm(found - expected) < 0.12 * np.linalg.norm(expected)


def test_ctfs_are_undone(noisy):
    clean = noisy[1].clean
    rng = np.random.default_rng(0)
    ctf = make_ctf(len(clean), defocus_u=rng.uniform(8e3, 25e3, len(clean)))
    seen = apply_ctf(clean, ctf, 5.0)
    seen += np.float32(1.5 * seen.std()) * rng.standard_normal(seen.shape, dtype=np.float32)
    stack = ParticleStack(seen, pixel_size=5.0, ctf=ctf)
    varying = np.sum((clean - clean.mean(axis=0)) ** 2)

    def error(stack):
        pca = SteerablePCA().fit(stack)
        return np.sum((pca.inverse_transform(pca.transform(stack)) - clean) ** 2) / varying

    assert error(stack) < 0.35
    # Without knowledge of the CTFs nothing is left of the likeness.
    assert error(stack.replace(ctf=None)) > 2 * error(stack)


def test_partial_fit_in_any_batches(noisy):
    stack = noisy[0]
    whole = SteerablePCA().fit(stack)
    streamed = SteerablePCA()
    for batch in (stack[:100], stack[100:101], stack[101:]):
        streamed.partial_fit(batch)
    assert streamed.n_images_seen_ == len(stack)
    assert streamed.n_components_ == whole.n_components_
    assert streamed.explained_variance_ == pytest.approx(whole.explained_variance_, rel=1e-4)
    Y = whole.transform(stack[:9])
    assert streamed.transform(stack[:9]) == pytest.approx(Y, abs=1e-3 * float(np.abs(Y).max()))
    assert SteerablePCA().fit(stack[:100]).fit(stack).n_images_seen_ == len(stack)


def test_transform_does_not_depend_on_batches(noisy):
    pca = SteerablePCA().fit(noisy[0])
    Y = pca.transform(noisy[0][:50])
    assert np.array_equal(np.concatenate([pca.transform(noisy[0][k : k + 7]) for k in range(0, 50, 7)])[:50], Y)


def test_bad_input(noisy):
    pca = SteerablePCA(10).fit(noisy[0])
    with pytest.raises(ValueError, match=r"Y has shape \(2, 3\)"):
        pca.rotate(np.zeros((2, 3)), 0)
    with pytest.raises(ValueError, match=r"angles must be a number or have shape \(2,\)"):
        pca.rotate(np.zeros((2, pca.n_components_)), np.zeros(3))
    with pytest.raises(ValueError, match="CTFs need the pixel size"):
        SteerablePCA().fit(np.asarray(noisy[0]), ctf=make_ctf(len(noisy[0])))
    with pytest.raises(ValueError, match=r"X has pixels of 4\.0 A, but the images before it had 5\.0 A"):
        SteerablePCA().fit(noisy[0]).partial_fit(noisy[0].replace(pixel_size=4.0))
