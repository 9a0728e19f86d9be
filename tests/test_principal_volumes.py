import warnings

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.integrate import dblquad, quad
from sklearn.exceptions import ConvergenceWarning

from skcryo.alignment import FourierImages
from skcryo.datasets import make_molecule, make_particles
from skcryo.fourier import half_plane
from skcryo.metrics import fsc, partition_precision, pose_error
from skcryo.preprocessing import noise_spectrum
from skcryo.projection import VolumeProjector
from skcryo.reconstruction import _principal_volumes as engine
from skcryo.reconstruction._principal_volumes import coordinates, principal_volumes
from skcryo.reconstruction._volume_classes import class_volumes, classify, refine_classes
from skcryo.rotations import random_rotations

L, BAND, MASK = 24, 5.0, 10.0


def blob(centre, width):
    place = np.arange(L) - L // 2
    x, y, z = (place - c for c in centre)
    square = x**2 + y[:, None] ** 2 + z[:, None, None] ** 2
    return np.exp(-square / (2 * width**2)).astype(np.float32)


def model_images(z, volumes, *, noise=1.0, seed=0, scale=1.0):
    """Images of ``volumes[0] + z @ volumes[1:]`` with shifts and filters, in units of the noise."""
    random = np.random.default_rng(seed)
    n, points = len(z), half_plane(L, (BAND + 1) / L)[0][1:].astype(float)
    points = points[np.argsort(np.hypot(*points.T), kind="stable")]
    rotations = random_rotations(n, random_state=seed)
    shifts = random.uniform(-1, 1, (n, 2))
    contrast = random.uniform(0.8, 1.2, n)
    filters = (scale * np.cos(random.uniform(0.5, 1.5, (n, 1)) + 0.1 * np.hypot(*points.T))).astype(np.float32)
    weights = np.column_stack([np.ones(n), z])
    slices = sum(w[:, None] * VolumeProjector(v).slices(rotations, points) for w, v in zip(weights.T, volumes))
    images = FourierImages(slices, filters, points, L)
    values = slices * filters * contrast[:, None] * images.centred_phases(shifts).conj()
    values = values + noise * (random.standard_normal((*values.shape, 2)) @ np.array([1, 1j])) / np.sqrt(2)
    return FourierImages(values.astype(np.complex64), filters, points, L), rotations, shifts, contrast


VOLUMES = [blob((0, 0, 0), 4.0), 0.4 * blob((4, -2, 1), 2.0), 0.3 * blob((-3, 3, 0), 2.0)]


@pytest.fixture(scope="module")
def gaussian():
    z = np.random.default_rng(3).standard_normal((300, 1))
    return z, model_images(z, VOLUMES[:2], scale=0.15)


# ----------------------------------------------------------------------------------------------------- the engine
def test_noiseless_coordinates_are_recovered_up_to_scale():
    z = np.random.default_rng(0).standard_normal((200, 1))
    images, *poses = model_images(z, VOLUMES[:2], noise=0.0, scale=1.0)
    model = principal_volumes(images, *poses, band=BAND, mask_radius=MASK, random_state=0, contrast_std=0.0)
    # the posterior's mean is about the same multiple of each z; random coordinates would have |r| near 0.07
    assert abs(np.corrcoef(model.coordinates[:, 0], z[:, 0])[0, 1]) > 0.995
    spread = np.sqrt(model.covariance[:, 0, 0])
    assert np.median(spread) < 0.2


def test_two_components_span_the_plane_of_the_truth():
    z = np.random.default_rng(1).standard_normal((300, 2))
    images, *poses = model_images(z, VOLUMES, scale=0.5)
    model = principal_volumes(images, *poses, n_components=2, band=BAND, mask_radius=MASK, random_state=0)
    fitted = np.column_stack([model.coordinates, np.ones(len(z))])
    rest = z - fitted @ np.linalg.lstsq(fitted, z, rcond=None)[0]
    assert (rest.var(axis=0) < 0.06).all()  # 1 if a direction is missed
    assert model.variances[0] >= model.variances[1] > 0
    # posterior covariance turned with the components: uncorrelated in the images
    _, gram = engine._products(
        engine._Data(images, *poses, BAND), [model.mean, *model.components], 1
    )
    gram = gram[:, 1:, 1:].mean(axis=0)
    assert abs(gram[0, 1]) < 1e-3 * gram[0, 0]


@pytest.mark.parametrize("contrast_std", [0.0, pytest.param(0.3, marks=pytest.mark.slow)])
def test_posterior_and_likelihood_by_quadrature(contrast_std):
    images, rotations, shifts, contrast = model_images(np.array([[1.0], [-2.0]]), VOLUMES[:2], scale=0.05, seed=5)
    data = engine._Data(images, rotations, shifts, contrast, BAND)
    cross, gram = engine._products(data, VOLUMES[:2], 1)
    mean, covariance, likelihood = engine._posterior(data.power, cross, gram, contrast_std)
    n_points = images.n_points(BAND)
    for i in range(2):
        factor = contrast[i] * images.filters[i, :n_points] * images.centred_phases(shifts, n_points)[i].conj()
        base, varying = (
            factor * VolumeProjector(v).slices(rotations[i : i + 1], images.points[:n_points])[0] for v in VOLUMES[:2]
        )
        integral = moments(images.values[i, :n_points], base, varying, contrast_std, likelihood[i])
        assert_allclose(integral(0), 1.0, rtol=1e-3)
        assert_allclose(integral(1) / integral(0), mean[i, 1], rtol=1e-3)
        assert_allclose(integral(2) / integral(0) - mean[i, 1] ** 2, covariance[i, 1, 1], rtol=2e-3)


def moments(values, base, varying, contrast_std, log_likelihood):
    """Moments of z under the posterior, by quadrature of what the model says."""

    def density(z, error=0.0):
        log = -(np.abs(values - (1 + error) * base - z * varying) ** 2).sum() - z**2 / 2
        if contrast_std:
            log -= error**2 / (2 * contrast_std**2) + np.log(contrast_std * np.sqrt(2 * np.pi))
        return np.exp(log - log_likelihood) / np.sqrt(2 * np.pi)

    if contrast_std:
        return lambda power: dblquad(lambda e, z: z**power * density(z, e), -8, 8, -2, 2, epsabs=1e-6)[0]
    return lambda power: quad(lambda z: z**power * density(z), -8, 8, epsabs=1e-9)[0]


def test_normal_equations_are_the_expected_squared_residual(gaussian):
    z, (images, *poses) = gaussian
    data = engine._Data(images, *poses, BAND)
    box = 14
    random = np.random.default_rng(0)
    volumes = random.standard_normal((2, box, box, box)).astype(np.float32)
    masks = np.stack([engine.spherical_mask(box, 5.0), 0.5 * engine.spherical_mask(box, 5.0)])
    first = np.column_stack([np.ones(len(z)), z])
    spread = np.zeros((len(z), 2, 2))
    spread[:, 1, 1] = random.uniform(0.1, 0.5, len(z))
    second = first[:, :, None] * first[:, None] + spread
    equations = engine._NormalEquations(data, first, second, box, [np.zeros(8)] * 2, masks, 1)
    cross, gram = engine._products(data, volumes * masks, 1)
    assert_allclose(np.vdot(volumes, equations.apply(volumes)), (gram * second).sum(), rtol=1e-3)
    assert_allclose(np.vdot(volumes, equations.right), (cross * first).sum(), rtol=1e-3)
    other = random.standard_normal(volumes.shape).astype(np.float32)
    assert_allclose(
        np.vdot(other, equations.apply(volumes)), np.vdot(volumes, equations.apply(other)), rtol=1e-3, atol=1.0
    )


@pytest.mark.parametrize("seed", [0, 1])
def test_log_likelihood_rises(gaussian, seed):
    _, (images, *poses) = gaussian
    model = principal_volumes(images, *poses, band=BAND, mask_radius=MASK, random_state=seed, n_local=0, tol=1e-3)
    steps = np.diff(model.log_likelihood)
    assert model.converged and len(steps) > 2
    assert steps.min() > -1e-3 * steps.max()


def test_starts_agree(gaussian):
    _, (images, *poses) = gaussian
    models = [
        principal_volumes(images, *poses, band=BAND, mask_radius=MASK, random_state=seed, tol=1e-3) for seed in (0, 1)
    ]
    assert abs(np.corrcoef(models[0].coordinates[:, 0], models[1].coordinates[:, 0])[0, 1]) > 0.999


def test_same_to_the_bit_whatever_the_chunks_and_threads(gaussian, monkeypatch):
    _, (images, *poses) = gaussian
    options = {"band": BAND, "mask_radius": MASK, "random_state": 0, "max_iter": 3, "tol": 0.0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = principal_volumes(images, *poses, **options)
        monkeypatch.setattr(engine, "_CHUNK", 77)
        monkeypatch.setattr(engine, "_BLOCK", 31)
        other = principal_volumes(images, *poses, n_jobs=2, **options)
    for name in ("mean", "components", "coordinates", "covariance"):
        assert_array_equal(getattr(model, name), getattr(other, name))
    # held-out images: each by itself, and as the fit has them
    whole = coordinates(images, *poses, model)
    part = coordinates(images.take(slice(5, 8)), *(p[5:8] for p in poses), model)
    assert_array_equal(whole[0][5:8], part[0])
    assert_array_equal(whole[1][5:8], part[1])
    assert_allclose(whole[0], model.coordinates, atol=1e-4)


@pytest.mark.slow
def test_one_state_has_no_components():
    images, *poses = model_images(np.zeros((300, 1)), VOLUMES[:2], scale=0.15)
    none = principal_volumes(images, *poses, band=BAND, mask_radius=MASK, random_state=0, max_iter=200)
    z = np.random.default_rng(3).standard_normal((300, 1))
    images, *poses = model_images(z, VOLUMES[:2], scale=0.15)
    some = principal_volumes(images, *poses, band=BAND, mask_radius=MASK, random_state=0)
    assert none.variances[0] < 0.1 * some.variances[0]


def test_local_weights_show_where_it_varies():
    z = np.random.default_rng(3).standard_normal((600, 1))
    images, *poses = model_images(z, VOLUMES[:2], scale=0.05)
    model = principal_volumes(images, *poses, band=BAND, mask_radius=MASK, random_state=0)
    weight = model.weight  # [z, y, x] of a box of 14 for 24 pixels
    scale = 14 / L
    z, y, x = (7 + np.rint(scale * np.array(p)).astype(int) for p in (1, -2, 4))
    assert weight[z, y, x] > 0.6
    assert weight[7, 7, 3] < 0.4
    assert weight.min() >= np.float32(0.1) and weight.max() <= 1


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [({"n_components": 0}, "n_components is 0; at least 1"), ({"n_components": 3}, "images has 2 images; more than")],
)
def test_bad_arguments(kwargs, message):
    images, *poses = model_images(np.zeros((2, 1)), VOLUMES[:2])
    with pytest.raises(ValueError, match=message):
        principal_volumes(images, *poses, mask_radius=MASK, **kwargs)


def test_no_convergence_is_said(gaussian):
    _, (images, *poses) = gaussian
    with pytest.warns(ConvergenceWarning, match="max_iter=2"):
        principal_volumes(images, *poses, band=BAND, mask_radius=MASK, random_state=0, max_iter=2)


# ------------------------------------------------------------------------------------------------------ the mixture
def observed(truth, precision, seed):
    """Posterior mean and covariance under N(0, 1) of coordinates seen with given precisions."""
    seen = truth + np.random.default_rng(seed).standard_normal(truth.shape) / np.sqrt(precision)
    return precision * seen / (precision + 1), (1 / (precision + 1))[:, :, None]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_mixture_knows_errors(seed):
    random = np.random.default_rng(seed)
    labels = (random.uniform(size=3000) < 0.2).astype(int)
    truth = np.where(labels == 1, 1.5, -0.5)[:, None] + 0.15 * random.standard_normal((3000, 1))
    precision = random.choice([1.0, 4.0, 40.0], size=(3000, 1))
    mean, covariance = observed(truth, precision, seed)
    predicted, responsibilities, mixture = classify(mean, covariance, 2, random_state=0)
    assert mixture.converged
    assert_allclose(mixture.weights, [0.8, 0.2], atol=0.03)
    assert_allclose(mixture.means[:, 0], [-0.5, 1.5], atol=0.12)
    assert np.sqrt(mixture.covariance[0, 0]) < 0.3  # 0.8 with the errors left in
    assert_allclose(responsibilities.sum(axis=1), 1)
    assert_array_equal(mixture.predict_proba(mean[:7], covariance[:7]), responsibilities[:7])
    # as many right as with the true mixture, which nothing beats
    mixture.weights, mixture.means = np.array([0.8, 0.2]), np.array([[-0.5], [1.5]])
    mixture.covariance = np.array([[0.15**2]])
    best = mixture.predict_proba(mean, covariance).argmax(axis=1)
    assert (predicted == labels).mean() > (best == labels).mean() - 0.004


def test_mixture_in_two_dimensions_and_of_one_class():
    random = np.random.default_rng(0)
    centres = np.array([[2.0, 0.0], [-1.0, 1.7], [-1.0, -1.7]])
    labels = random.integers(3, size=600)
    mean = centres[labels] + 0.3 * random.standard_normal((600, 2))
    covariance = np.tile(0.08 * np.eye(2), (600, 1, 1))
    predicted, _, mixture = classify(mean, covariance, 3, random_state=0)
    assert partition_precision(labels, predicted) > 0.98
    assert (np.diff(mixture.weights) <= 0).all()
    assert (classify(mean, covariance, 1, random_state=0)[0] == 0).all()
    with pytest.raises(ValueError, match="n_classes is 601; 1 to 600"):
        classify(mean, covariance, 601)


# ------------------------------------------------------------------------------------------------- classes of a stack
@pytest.fixture(scope="module")
def two_states():
    states = np.stack([make_molecule(32), make_molecule(32, hinge=40)])
    stack, truth = make_particles(states, 400, preset="ctf", snr=0.5, pixel_size=10.0, random_state=0)
    images = FourierImages.from_stack(stack, noise_spectrum(stack), 14, ctf=stack.ctf, pixel_size=10.0)
    return states, images, truth


@pytest.mark.slow
def test_hinged_states_are_told_apart(two_states):
    states, images, truth = two_states
    model = principal_volumes(images, truth.rotations, truth.shifts, band=8, mask_radius=14, random_state=0)
    labels, responsibilities, _ = classify(model.coordinates, model.covariance, 2, random_state=0)
    assert partition_precision(truth.labels, labels) > 0.97  # guessing: 0.5

    volumes, rotations, shifts = refine_classes(
        images, truth.rotations, truth.shifts, None, responsibilities, pose_band=12, band=14, mask_radius=14, n_rounds=1
    )
    assert volumes.shape == (2, 32, 32, 32)
    order = [0, 1] if (labels == truth.labels).mean() > 0.5 else [1, 0]
    for volume, own in zip(volumes, order):
        curves = [fsc(volume, state)[3:12].mean() for state in (states[own], states[1 - own])]
        assert curves[0] > curves[1] + 0.01
    assert pose_error(rotations, truth.rotations, reflection=False).median < 3.0


def test_class_volumes_of_equal_responsibilities_are_the_consensus(two_states):
    _, images, truth = two_states
    options = {"band": 10.0, "mask_radius": 14.0}
    poses = (truth.rotations, truth.shifts, None)
    both = class_volumes(images, *poses, np.full((400, 2), 0.5), **options)
    assert_allclose(both[0], both[1], atol=1e-6)
    one = class_volumes(images, *poses, np.ones((400, 1)), **options)
    assert fsc(one[0], both[0])[1:9].min() > 0.99
    # an image of weight zero counts for nothing
    weights = np.ones((400, 1))
    weights[200:] = 0
    power = engine.signal_power(images)
    half = class_volumes(images, *poses, weights, power=power, **options)
    alone = class_volumes(
        images.take(slice(0, 200)), *(p[:200] if p is not None else None for p in poses), np.ones((200, 1)),
        power=power, **options,
    )
    assert_allclose(half, alone, atol=1e-5 * abs(alone).max())
