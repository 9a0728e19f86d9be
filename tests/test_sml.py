"""Statistical manifold learning: its expectation-maximisation against the paper's equations, and its limits."""

import warnings

import numpy as np
import pytest
from scipy.ndimage import zoom
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import roc_auc_score

from skcryo.cluster import SMLClustering
from skcryo.cluster import _sml_reference as reference
from skcryo.cluster._sml_coordinates import FourierCoordinates
from skcryo.cluster._sml_data import ParticleCoordinates, ctf_grouping
from skcryo.cluster._sml_expectation import TorchExpectation, expect, posteriors
from skcryo.cluster._sml_latent import even_shape, grid_nodes, manifold_basis, sphere_nodes
from skcryo.cluster._sml_pixels import PixelMixture
from skcryo.cluster._sml_space import find_signal_space
from skcryo.cluster._sml_subspace import SubspaceMixture
from skcryo.ctf import apply_ctf, evaluate_ctf, make_ctf
from skcryo.datasets import make_molecule, make_particles
from skcryo.particles import ParticleStack

PIXEL_SIZE = 6.0
OPTICS = ["none", "radial", "astigmatic", "shared"]


def optics(kind, n, seed=0):
    if kind == "none":
        return None
    if kind == "shared":
        return make_ctf(n, defocus_u=15000.0)
    u = np.random.default_rng(seed).uniform(8000, 20000, n)
    return (
        make_ctf(n, defocus_u=u, defocus_v=0.8 * u, defocus_angle=30.0)
        if kind == "astigmatic"
        else make_ctf(n, defocus_u=u)
    )


def particles(n=60, L=14, seed=0, kind="none", snr=0.5):
    """Views of a molecule, noise that depends on the ring, CTFs."""
    stack, _ = make_particles(make_molecule(L, random_state=3), n, snr=None, pixel_size=PIXEL_SIZE, random_state=seed)
    clean, ctf = np.asarray(stack), optics(kind, n, seed)
    spectra = np.fft.rfft2(clean)
    if ctf is not None:
        spectra *= evaluate_ctf(ctf, L, PIXEL_SIZE, half=True)
    clean = np.fft.irfft2(spectra, s=(L, L))
    noise = np.random.default_rng(seed).standard_normal(clean.shape)
    frequency = np.hypot(np.fft.fftfreq(L)[:, None], np.fft.rfftfreq(L))
    noise = np.fft.irfft2(np.fft.rfft2(noise) / (1 + 3 * frequency), s=(L, L))
    images = clean + noise * clean.std() / noise.std() / np.sqrt(snr)
    return ParticleStack(images.astype(np.float32), pixel_size=PIXEL_SIZE, ctf=ctf)


class Problem:
    """A mixture in double precision on given images, and the same images as the reference wants them."""

    def __init__(
        self, kind, subspace=False, n_components=12, manifold="sphere", n_clusters=9, residual=0.0, seed=0, modes=False
    ):
        self.stack = particles(kind=kind, seed=seed)
        ctf = self.stack.ctf
        self.coordinates = FourierCoordinates(self.stack.shape[1], 0.45, ctf_grouping(ctf))
        weights = np.random.default_rng(seed).uniform(0.5, 2, len(self.stack))
        self.data = ParticleCoordinates(self.stack, self.coordinates, ctf, PIXEL_SIZE, weights, np.float64)
        self.space = find_signal_space(self.data, n_components)
        self.modes = self.space.ctf_modes if modes else None
        _, basis = manifold_basis(manifold, n_clusters, n_basis=6, residual=residual)
        if subspace:
            self.mixture = SubspaceMixture(
                basis, self.space.components, self.space.variances, 0.7, np.float64, self.coordinates, self.modes
            )
        else:
            self.mixture = PixelMixture(
                basis, self.coordinates, np.maximum(self.space.ring_variances, 0.01), 0.7, (0.2, 5.0), np.float64,
                self.modes,
            )  # fmt: skip
        self.subspace = subspace
        rng = np.random.default_rng(seed + 1)
        self.mixture.weights = rng.standard_normal(self.mixture.weights.shape) * 0.5
        if subspace:
            self.mixture.weights *= np.sqrt(self.space.variances)
        else:
            self.mixture.precision = rng.uniform(0.5, 2, self.coordinates.n_rings)
        # the reference's: whitened images relative to the mean, their CTFs
        ((_, y, factors),) = self.data.chunks()
        self.c = np.broadcast_to(factors[:, self.coordinates.groups], y.shape)
        sigma = np.sqrt(self.space.noise)
        self.Y = (y - self.c * self.space.mean) / sigma
        whitened = next(self.data.whitened(self.space, self.modes))[1:]
        self.features = self.mixture.features(*whitened, self.coordinates)

    @property
    def precision(self):
        if self.subspace:
            return np.ones(self.coordinates.n_coordinates)
        return self.mixture.precision[self.coordinates.rings]

    @property
    def means(self):
        return self.mixture.means @ self.space.components.T if self.subspace else self.mixture.means

    @property
    def tables(self):
        return self.mixture.tables(self.coordinates, self.modes)

    def expect(self):
        return posteriors(self.tables, *self.features)

    def sums(self):
        return expect(self.tables, [(slice(0, len(self.stack)), self.features)], self.data.weights)

    def expected(self, R, means=None):
        """Equation 10 up to what does not depend on the weights, by single precision's double loop."""
        means, precision = self.means if means is None else means, self.precision
        deviations = self.Y[:, None] - self.c[:, None] * means
        R = R * self.data.weights[:, None]
        return -0.5 * np.einsum("ik,ikj,j->", R, deviations**2, precision) + self.mixture.log_prior()


PROBLEMS = [(kind, subspace) for kind in OPTICS for subspace in (False, True)]


@pytest.mark.parametrize(("kind", "subspace"), PROBLEMS)
def test_responsibilities_are_equation_9(kind, subspace):
    problem = Problem(kind, subspace)
    found, likelihoods = problem.expect()
    expected = reference.responsibilities(problem.Y, problem.c, problem.means, problem.precision)
    np.testing.assert_allclose(found, expected, atol=1e-10)
    W = problem.means  # with an identity for a basis
    posterior = reference.log_posterior(problem.Y, problem.c, np.eye(len(W)), W, problem.precision, 0.0)
    assert likelihoods.sum() == pytest.approx(posterior, rel=1e-10)


@pytest.mark.parametrize(("kind", "subspace"), PROBLEMS)
def test_single_precision_is_enough_for_equation_9(kind, subspace):
    problem = Problem(kind, subspace)
    expected, _ = problem.expect()
    problem.mixture.dtype = np.float32
    found, _ = posteriors(problem.tables, *(part.astype(np.float32) for part in problem.features))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(found - expected).mean() < 1e-6


@pytest.mark.parametrize("kind", OPTICS)
@pytest.mark.parametrize("residual", [0.0, 0.3])
def test_weights_solve_equation_11_on_pixels(kind, residual):
    problem = Problem(kind, residual=residual)
    R, _ = problem.expect()
    sums, precision = problem.sums(), problem.precision
    problem.mixture.maximize(sums)
    prior = 0.7 / problem.mixture.prior_variances[problem.coordinates.rings]
    weighted = R * problem.data.weights[:, None]
    expected = reference.weights(problem.Y, problem.c, weighted, problem.mixture.basis, precision, prior)
    np.testing.assert_allclose(problem.mixture.weights, expected, rtol=0, atol=2e-6 * np.abs(expected).max())
    variances = reference.noise_variances(
        problem.Y, problem.c, weighted, problem.mixture.means, problem.coordinates.rings
    )
    np.testing.assert_allclose(1 / problem.mixture.precision, variances.clip(0.2, 5.0), rtol=1e-6)


@pytest.mark.parametrize("kind", OPTICS)
@pytest.mark.parametrize("manifold", ["sphere", "none"])
def test_weights_solve_the_coupled_equation_11_in_components(kind, manifold):
    problem = Problem(kind, subspace=True, manifold=manifold)
    R, _ = problem.expect()
    problem.mixture.maximize(problem.sums())
    basis, V = problem.mixture.basis, problem.space.components
    weighted = R * problem.data.weights[:, None]
    # the derivative of equation 10, image by image
    gradient = -0.7 * problem.mixture.weights / problem.space.variances
    scale = 0.0
    for i in range(len(weighted)):
        left = (problem.c[i] * (problem.Y[i] - problem.c[i] * problem.means)) @ V
        gradient += basis.T @ (weighted[i][:, None] * left)
        scale += np.abs(basis.T @ (weighted[i][:, None] * ((problem.c[i] * problem.Y[i]) @ V)))
    assert np.abs(gradient).max() < 1e-5 * scale.max()


@pytest.mark.parametrize(("kind", "subspace"), PROBLEMS)
def test_finite_differences_vanish_at_the_maximum(kind, subspace):
    problem = Problem(kind, subspace)
    R, _ = problem.expect()
    precision = problem.precision
    problem.mixture.maximize(problem.sums())
    if not subspace:
        problem.mixture.precision = precision[
            np.searchsorted(problem.coordinates.rings, range(len(problem.mixture.precision)))
        ]
    best, weights = problem.expected(R), problem.mixture.weights
    rng = np.random.default_rng(5)
    for _ in range(3):
        step = 1e-3 * rng.standard_normal(weights.shape) * np.abs(weights)
        values = []
        for sign in (1, -1):
            problem.mixture.weights = weights + sign * step
            values.append(problem.expected(R))
        assert max(values) < best
        # of a slope there would be a difference as large as the curvature's loss
        assert abs(values[0] - values[1]) < 1e-2 * (best - min(values))


@pytest.mark.parametrize("kind", ["none", "radial"])
def test_class_means_that_end_at_a_ring(kind):
    """The same as all coordinates with means of zero beyond; noise is found of all."""
    whole, part = Problem(kind), Problem(kind)
    c = whole.coordinates
    n_kept = int(np.count_nonzero(c.rings < 3))
    whole.mixture.weights[:, n_kept:] = 0
    part.mixture = PixelMixture(
        whole.mixture.basis, c, whole.mixture.prior_variances, 0.7, (0.2, 5.0), np.float64, n_kept=n_kept
    )
    part.mixture.weights, part.mixture.precision = whole.mixture.weights[:, :n_kept], whole.mixture.precision
    whitened = next(part.data.whitened(part.space))[1:]
    part.features = part.mixture.features(*whitened, c)
    for found, expected in zip(part.expect(), whole.expect()):
        np.testing.assert_allclose(found, expected, atol=1e-9)
    sums, expected = part.sums(), whole.sums()
    part.mixture.maximize(sums), whole.mixture.maximize(expected)
    np.testing.assert_allclose(part.mixture.weights, whole.mixture.weights[:, :n_kept], atol=1e-5)
    np.testing.assert_allclose(part.mixture.precision[:3], whole.mixture.precision[:3], rtol=1e-6)
    beyond = c.ring_sizes[3:] / (expected["power"][3:] / expected["total"])
    np.testing.assert_allclose(part.mixture.precision[3:], beyond.clip(0.2, 5.0), rtol=1e-9)


@pytest.mark.parametrize("kind", ["none", "radial"])
def test_all_components_are_all_pixels(kind):
    """A subspace that is the whole space, with one prior, is the fit on pixels with the noise held."""
    pixels = Problem(kind)
    n = pixels.coordinates.n_coordinates
    basis = pixels.mixture.basis
    components = np.linalg.qr(np.random.default_rng(0).standard_normal((n, n)))[0]
    subspace = SubspaceMixture(basis, components, np.full(n, 2.0), 0.7, np.float64, pixels.coordinates)
    prior = np.full(pixels.coordinates.n_rings, 2.0)
    mixture = PixelMixture(basis, pixels.coordinates, prior, 0.7, (1.0, 1.0), np.float64)
    whitened = next(pixels.data.whitened(pixels.space))[1:]
    start = np.random.default_rng(1).standard_normal((9, n)) * 0.5
    mixture.start(start)
    subspace.start(start @ components)
    for _ in range(3):
        for model in (mixture, subspace):
            features = model.features(*whitened, pixels.coordinates)
            n_images = len(features[0])
            sums = expect(model.tables(pixels.coordinates), [(slice(0, n_images), features)], np.ones(n_images))
            model.maximize(sums)
    np.testing.assert_allclose(subspace.means @ components.T, mixture.means, atol=1e-4)


@pytest.mark.parametrize("manifold", ["sphere", "flat", "none"])
@pytest.mark.parametrize("n_components", [None, 10])
@pytest.mark.parametrize("kind", ["none", "radial"])
def test_the_log_posterior_never_falls(manifold, n_components, kind):
    X = particles(100, kind=kind)
    sml = fit(X, 12, manifold=manifold, n_components=n_components, tol=0, max_iter=15, random_state=0)
    curve = sml.lower_bound_curve_
    assert len(curve) == 16 and curve[-1] > curve[0]
    assert np.diff(curve).min() > -1e-5  # what single precision leaves of hundreds of nats


def fit(X, n_clusters, **params):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return SMLClustering(n_clusters, **params).fit(X)


def test_class_averages_are_equation_13():
    X = particles(kind="radial")
    sml = fit(X, 6, n_components=8)
    coordinates = sml._coordinates.regrouped("radius")
    data = ParticleCoordinates(X, coordinates, X.ctf, PIXEL_SIZE, np.ones(len(X)), np.float64)
    ((_, y, factors),) = data.chunks()
    c, mean, noise = factors[:, coordinates.groups], sml._space.mean, sml._space.noise
    prior = sml.alpha_ / (sml._space.ring_variances[coordinates.rings] * noise)
    expected = mean + reference.averages(y - c * mean, c, sml.responsibilities_.toarray(), 1 / noise, prior)
    found = coordinates.analyze(sml.class_averages_.astype(np.float64))
    np.testing.assert_allclose(found, expected, atol=2e-3 * np.abs(expected).max())


@pytest.mark.parametrize("n_components", [None, 10])
def test_one_node_is_the_mean(n_components):
    X = particles()
    sml = fit(X, 1, n_components=n_components)
    assert sml.converged_ and not sml.labels_.any() and sml.effective_n_clusters_ == 1
    mean = sml._coordinates.synthesize(sml._space.mean[None])[0]
    plain = np.asarray(X, np.float64).mean(axis=0)
    plain = sml._coordinates.synthesize(sml._coordinates.analyze(plain[None]))[0]
    np.testing.assert_allclose(mean, plain, atol=2e-3 * np.abs(plain).max())
    np.testing.assert_allclose(sml.class_averages_[0], plain, atol=5e-3 * np.abs(plain).max())


@pytest.mark.parametrize("n_components", [None, 10])
@pytest.mark.parametrize("manifold", ["sphere", "none"])
def test_a_certain_prior_leaves_only_the_mean(n_components, manifold):
    with pytest.warns(ConvergenceWarning, match="collapsed"):
        sml = SMLClustering(5, alpha=1e12, n_components=n_components, manifold=manifold, random_state=0).fit(
            particles()
        )
    np.testing.assert_allclose(sml.predict_proba(particles()), 0.2, atol=1e-4)


def test_as_many_classes_as_images():
    X = particles(20, snr=50.0)
    sml = fit(X, 20, manifold="none", init="random", alpha=1e-3, random_state=0)
    assert len(set(sml.labels_.tolist())) == 20
    correlations = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(sml.class_averages_[sml.labels_], X)]
    assert min(correlations) > 0.95


@pytest.mark.parametrize("n_components", [None, 10])
def test_a_ctf_of_ones_is_none(n_components):
    X = particles()
    ones = make_ctf(len(X), defocus_u=0.0, cs=0.0, amplitude_contrast=1.0)
    ones["b_factor"][::2] = 1e-9  # each image its own record, so that the general way is taken
    a, b = fit(X, 6, n_components=n_components), fit(X.replace(ctf=ones), 6, n_components=n_components)
    np.testing.assert_array_equal(a.labels_, b.labels_)
    np.testing.assert_allclose(a.class_averages_, b.class_averages_, atol=1e-4 * np.abs(a.class_averages_).max())
    assert a.lower_bound_ == pytest.approx(b.lower_bound_, rel=1e-5)


@pytest.mark.parametrize(("kind", "subspace"), PROBLEMS)
def test_modes_of_ctfs_tell_all_of_them(kind, subspace):
    """The likelihoods and equation 11 with the squares of CTFs told by modes, and by group."""
    modes, groups = Problem(kind, subspace, modes=True), Problem(kind, subspace)
    if kind != "astigmatic":
        assert modes.modes.shape[1] < groups.coordinates.n_groups
    found, likelihoods = modes.expect()
    expected, exact = groups.expect()
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(likelihoods, exact, atol=1e-5)
    for problem in (modes, groups):
        problem.mixture.maximize(problem.sums())
    np.testing.assert_allclose(modes.means, groups.means, atol=1e-5 * np.abs(groups.means).max())


@pytest.mark.parametrize(("kind", "subspace"), PROBLEMS)
def test_threads_change_no_bit_of_the_sums(kind, subspace):
    problem = Problem(kind, subspace)
    chunks = []
    for start in range(0, 60, 7):
        where = slice(start, min(start + 7, 60))
        chunks.append((where, [part[where] for part in problem.features]))
    one, three = (expect(problem.tables, chunks, problem.data.weights, n_jobs=n) for n in (1, 3))
    whole = problem.sums()
    for name in one:
        np.testing.assert_array_equal(one[name], three[name], err_msg=name)
        np.testing.assert_allclose(one[name], whole[name], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", OPTICS)
@pytest.mark.parametrize("subspace", [False, True])
def test_torch_gives_the_same_sums(kind, subspace):
    torch = pytest.importorskip("torch")
    problem = Problem(kind, subspace)
    step = TorchExpectation(torch.device("cpu"))
    for _ in range(2):  # the second time with what it kept
        found = step(problem.tables, [(slice(0, 60), problem.features)], problem.data.weights)
        expected = problem.sums()
        assert set(found) == set(expected)
        for name in expected:
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-8, atol=1e-8, err_msg=name)


@pytest.mark.parametrize("n_components", [None, 10])
def test_torch_gives_the_same_classes(n_components, monkeypatch):
    torch = pytest.importorskip("torch")
    X = particles(kind="radial")
    expected = fit(X, 6, n_components=n_components)
    monkeypatch.setattr("skcryo.cluster._sml.accelerator", lambda *_, **__: torch.device("cpu"))
    found = fit(X, 6, n_components=n_components)
    np.testing.assert_array_equal(found.labels_, expected.labels_)
    assert found.lower_bound_ == pytest.approx(expected.lower_bound_, rel=1e-5)


@pytest.mark.parametrize("L", [24, 25])
def test_functions_of_a_disc(L):
    """Overlaps over a disc against sums over its pixels, and their eigenfunctions stay in it."""
    coordinates, n = FourierCoordinates(L, 0.5, "ring"), 120
    images = coordinates.synthesize(np.eye(coordinates.n_coordinates)[:n]).reshape(n, -1)
    inside = np.hypot(*(np.indices((L, L)) - L // 2)).ravel() <= 8.2
    found = coordinates.disc_overlaps(8.2, n)
    np.testing.assert_allclose(found, images[:, inside] @ images[:, inside].T, atol=0.03)  # the disc's edge in pixels
    shares, functions = np.linalg.eigh(found)
    assert shares.min() > -1e-9 and shares.max() < 1 + 1e-9
    held = ((functions.T @ images)[:, inside] ** 2).sum(axis=1)
    assert np.abs(held - shares).max() < 0.12 and np.abs(held - shares).mean() < 0.02
    assert np.trace(coordinates.disc_overlaps(1e-9, n)) < 1e-12


@pytest.mark.parametrize("kind", ["none", "radial"])
def test_the_radius_of_the_particle_is_found(kind):
    L, n = 24, 400
    molecule = make_molecule(L, random_state=3)
    for scale in (1.0, 0.6):
        small = zoom(molecule, scale, order=1)
        volume = np.zeros((L, L, L), np.float32)
        volume[tuple([slice((L - len(small) + 1) // 2, (L - len(small) + 1) // 2 + len(small))] * 3)] = small
        distance = np.sqrt(((np.indices(volume.shape) - L // 2) ** 2).sum(axis=0)).ravel()
        order = np.argsort(distance)
        power = np.cumsum(volume.ravel()[order] ** 2)
        radius = distance[order][np.searchsorted(power, 0.98 * power[-1])]
        ctf = optics(kind, n)
        stack, _ = make_particles(volume, n, snr=None, pixel_size=PIXEL_SIZE, random_state=0)
        clean = np.asarray(stack) if ctf is None else apply_ctf(np.asarray(stack), ctf, PIXEL_SIZE)
        noise = np.random.default_rng(0).standard_normal(clean.shape) * clean.std() / np.sqrt(0.3)
        stack = ParticleStack((clean + noise).astype(np.float32), pixel_size=PIXEL_SIZE, ctf=ctf)
        coordinates = FourierCoordinates(L, 0.5, ctf_grouping(ctf))
        data = ParticleCoordinates(stack, coordinates, ctf, PIXEL_SIZE, np.ones(n), np.float32)
        found = find_signal_space(data, 20).radius
        assert 0.8 * radius < found < 1.25 * radius + 2, (scale, radius, found)


@pytest.mark.parametrize("kind", OPTICS)
def test_rings_without_signal_are_left_out(kind):
    """White noise beyond a ring has no components, whatever CTFs do to its covariance; weights do not matter."""
    rng, n, L = np.random.default_rng(0), 600, 20
    coordinates = FourierCoordinates(L, 0.5, ctf_grouping(optics(kind, n)))
    y = np.zeros((n, coordinates.n_coordinates))
    within = coordinates.rings < 4
    y[:, within] = 2 * rng.standard_normal((n, 3)) @ rng.standard_normal((3, within.sum()))
    ctf = optics(kind, n)
    if ctf is not None:
        y *= coordinates.ctf_factors(ctf, PIXEL_SIZE)[:, coordinates.groups]
    X = coordinates.synthesize(y) + rng.standard_normal((n, L, L))
    stack = ParticleStack(X.astype(np.float32), pixel_size=PIXEL_SIZE, ctf=ctf)
    for weight in (1.0, 30.0):
        data = ParticleCoordinates(stack, coordinates, ctf, PIXEL_SIZE, np.full(n, weight), np.float32)
        space = find_signal_space(data, 10, radius=np.inf)
        used = np.unique(coordinates.rings[(space.components**2).sum(axis=1) > 0])
        assert used.max() == 3
        assert space.n_significant >= 3


@pytest.mark.parametrize("n_components", [None, 10])
def test_chunks_and_memory_change_nothing(n_components, monkeypatch):
    X = particles(kind="radial")
    whole = fit(X, 6, n_components=n_components, max_iter=10)
    monkeypatch.setattr("skcryo.cluster._sml_data._CHUNK_BYTES", 20000)
    monkeypatch.setattr("skcryo.cluster._sml_fit._CACHE", 0)
    parts = fit(X, 6, n_components=n_components, max_iter=10)
    np.testing.assert_array_equal(parts.labels_, whole.labels_)
    np.testing.assert_allclose(parts.score_samples(X), whole.score_samples(X), rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(parts.class_averages_, whole.class_averages_, atol=1e-4 * np.abs(X).max())


def test_score_is_the_density_of_the_band():
    """One class of white noise: a Gaussian of known density."""
    rng = np.random.default_rng(0)
    X = rng.normal(0, 3, (2000, 12, 12)).astype(np.float32)
    sml = fit(X, 1, n_components=1)
    n = sml._coordinates.n_coordinates
    assert sml.score(X) == pytest.approx(-0.5 * n * (np.log(2 * np.pi * 9) + 1), rel=2e-3)
    np.testing.assert_allclose(sml.noise_spectrum_, 9, rtol=0.05)


@pytest.mark.parametrize("kind", ["none", "radial"])
@pytest.mark.parametrize("n_components", [6, None])
def test_score_is_the_density_above_that_of_noise_alone(n_components, kind):
    X = particles(300, kind=kind)
    sml = fit(X, 4, n_components=n_components)
    spectrum = sml._space.noise
    if n_components is None:
        spectrum = spectrum / sml._mixture.precision[sml._coordinates.rings]
    y = sml._coordinates.analyze(np.asarray(X, np.float64))
    alone = -0.5 * (y**2 / spectrum + np.log(2 * np.pi * spectrum)).sum(axis=1)
    found = sml.score_samples(X)
    np.testing.assert_allclose(found, sml.log_likelihoods(X) - alone, rtol=1e-6, atol=2e-3)
    # it tells particles from noise of the same spectrum
    noise = np.random.default_rng(3).standard_normal(y.shape) * np.sqrt(spectrum)
    noise = sml._coordinates.synthesize(noise).astype(np.float32)
    junk = sml.score_samples(ParticleStack(noise, pixel_size=PIXEL_SIZE, ctf=X.ctf))
    assert roc_auc_score(np.arange(600) < 300, np.concatenate([found, junk])) > 0.9


def test_samples_are_like_the_images():
    X = particles(400)
    sml = fit(X, 6)
    images, labels = sml.sample(3000, random_state=0)
    assert images.shape == (3000, 14, 14) and np.bincount(labels, minlength=6).min() > 400
    band = sml._coordinates
    power = (band.analyze(np.asarray(X, np.float64)) ** 2).mean(axis=0)
    drawn = (band.analyze(images) ** 2).mean(axis=0)
    rings = np.bincount(band.rings, drawn) / np.bincount(band.rings, power)
    # what varies within classes is in the images and not in the model
    np.testing.assert_allclose(rings, 1, atol=0.2)
    found = sml.predict(images)
    assert (found == labels).mean() > 0.6  # by chance 0.17


@pytest.mark.parametrize("L", [9, 12])
def test_coordinates_are_orthonormal(L):
    coordinates = FourierCoordinates(L, 1.0, "frequency")
    rng = np.random.default_rng(0)
    y = rng.standard_normal((3, coordinates.n_coordinates))
    images = coordinates.synthesize(y)
    np.testing.assert_allclose(coordinates.analyze(images), y, atol=1e-12)
    np.testing.assert_allclose((images**2).sum(axis=(1, 2)), (y**2).sum(axis=1))
    assert coordinates.n_coordinates == (L * L - 1 if L % 2 else (L - 1) ** 2 - 1)


def test_nodes_are_even():
    nodes = sphere_nodes(200)
    np.testing.assert_allclose(np.linalg.norm(nodes, axis=1), 1)
    nearest = np.sort(np.linalg.norm(nodes[:, None] - nodes, axis=2), axis=1)[:, 1]
    assert nearest.min() > 0.6 * nearest.max()
    grid = grid_nodes((5, 3))
    assert grid.shape == (15, 2) and np.ptp(grid, axis=0).tolist() == [2.0, 1.0]
    assert even_shape(64, 3) == (4, 4, 4)


@pytest.mark.parametrize("manifold", ["flat", "sphere"])
def test_residual_is_the_same_prior_as_functions_of_their_own(manifold):
    """[Phi, sqrt(tau) I] and the square root of its covariance make class means of one distribution."""
    _, plain = manifold_basis(manifold, 30)
    _, found = manifold_basis(manifold, 30, residual=0.2)
    expected = (plain @ plain.T + 0.2 * np.eye(30)) / 1.2
    np.testing.assert_allclose(found @ found.T, expected, atol=1e-9)
    assert np.trace(expected) == pytest.approx(30)


def test_noise_and_mean_are_found_through_ctfs():
    X = particles(1500, kind="radial", snr=0.3)
    clean = particles(1500, kind="none", snr=1e6)
    coordinates = FourierCoordinates(14, 0.45, "radius")
    data = ParticleCoordinates(X, coordinates, X.ctf, PIXEL_SIZE, np.ones(1500), np.float32)
    space = find_signal_space(data, 15)
    truth = coordinates.analyze(np.asarray(clean, np.float64))
    mean = truth.mean(axis=0)
    assert np.corrcoef(space.mean, mean)[0, 1] > 0.9
    frequency = (np.arange(coordinates.n_rings) + 1) / 14
    noise = np.bincount(coordinates.rings, space.noise) / coordinates.ring_sizes * (1 + 3 * frequency) ** 2
    assert noise.max() / noise.min() < 1.6  # the images' own power, CTF and all, would give 3 or more
    # of what is seen through CTFs, components hold nearly as much as the best 15
    seen = np.sqrt((coordinates.ctf_factors(X.ctf, PIXEL_SIZE) ** 2).mean(axis=0))[coordinates.groups]
    components = space.components * seen[:, None]
    np.testing.assert_allclose(components.T @ components, np.eye(15), atol=0.1)
    centred = (truth - mean) / np.sqrt(space.noise) * seen
    best = np.linalg.eigvalsh(centred.T @ centred)[-15:].sum() / (centred**2).sum()
    left = centred - centred @ components @ components.T
    assert (left**2).sum() < (1.1 - best) * (centred**2).sum()
