"""The network of poses: exact symmetry, errors of fitted and of new images, what it says of its own errors."""

import sys

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning

from skcryo.alignment import FourierImages
from skcryo.datasets import make_molecule, make_particles
from skcryo.fourier import fourier_crop, fourier_pad, rotate_images
from skcryo.metrics import pose_error
from skcryo.orientation import EquivariantPoseNet, VectorDiffusionMaps
from skcryo.orientation._pose_net_architectures import O2MLP
from skcryo.orientation._pose_net_inputs import SteerableInputs
from skcryo.orientation._pose_net_layers import nearest_frames
from skcryo.orientation._pose_net_lines import common_line_loss, line_bank, sample_pairs
from skcryo.orientation._pose_net_uncertainty import ErrorModel, ParticleModel, stated_error
from skcryo.projection import VolumeProjector
from skcryo.reconstruction._ab_initio_start import signal_power
from skcryo.rotations import geodesic_distance, in_plane_rotation, random_rotations

L, N = 32, 300
MIRROR = np.diag([1.0, -1.0, -1.0])  # of a pose whose image is mirrored about the x axis


@pytest.fixture(scope="module")
def particles():
    volume = make_molecule(L, random_state=0)
    return (volume, *make_particles(volume, 2 * N, snr=1.0, random_state=0))


@pytest.fixture(scope="module")
def fitted(particles):
    pytest.importorskip("torch", reason="the network needs the extra skcryo[torch]")
    _, stack, truth = particles
    estimator = EquivariantPoseNet(
        init=truth.rotations[:N] @ in_plane_rotation(np.full(N, 0.05)),
        max_shift=0,
        max_iter=300,
        n_jobs=1,
        device="cpu",
        random_state=0,
    )
    return estimator.fit(stack[:N])


def held_out_errors(fitted, particles, rotations):
    """Errors of the second half, in the frame and hand of the first."""
    truth = particles[2].rotations
    return pose_error(np.concatenate([fitted.rotations_, rotations]), truth).errors[N:]


def test_construction_needs_no_torch_and_fit_says_what_to_install(particles, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    estimator = EquivariantPoseNet()
    with pytest.raises(ImportError, match=r"EquivariantPoseNet needs torch.*skcryo\[torch\]"):
        estimator.fit(particles[1])


def test_fitted_poses_are_right(fitted, particles):
    # the start is 2.9 degrees off
    assert pose_error(fitted.rotations_, particles[2].rotations[:N]).mean < 1.3
    assert fitted.converged_ and not fitted.ambiguous_ and 0.8 < fitted.line_agreement_ < 1.2
    assert fitted.n_iter_ == len(fitted.loss_curve_) == 300
    assert np.mean(fitted.loss_curve_[-20:]) < 0.2 * np.mean(fitted.loss_curve_[:20])


def test_new_images_by_the_network_alone_and_refined(fitted, particles):
    new = particles[1][N:]
    refined = held_out_errors(fitted, particles, fitted.predict(new))
    assert refined.mean() < 1.4
    fitted.refine = False
    try:
        alone = fitted.predict_poses(new)
    finally:
        fitted.refine = True
    # guessing scores 126
    assert held_out_errors(fitted, particles, alone.rotations).mean() < 9
    assert set(alone) == {"rotations", "shifts", "uncertainty"}


@pytest.mark.parametrize("angle", [0.3, 2.0, np.pi / 2])
def test_equivariance_of_the_fitted_network(fitted, particles, angle):
    images = np.asarray(particles[1][:100])
    fitted.refine = False
    try:
        poses = fitted.predict(images)
        turned = fitted.predict(rotate_images(images, np.full(100, angle), order=5))
        mirrored = fitted.predict(np.roll(images[:, ::-1], 1, axis=1))  # y to -y about the pixel L // 2
    finally:
        fitted.refine = True
    error = np.degrees(geodesic_distance(turned, poses @ in_plane_rotation(-angle)))
    # what splines leave to be desired of noise near the Nyquist frequency; a network that is not equivariant is as far
    # off as it is for new images, 5 degrees and more
    assert np.median(error) < 0.5 and error.max() < 2
    assert np.degrees(geodesic_distance(mirrored, poses @ MIRROR)).max() < 0.05


def test_batches_do_not_matter(fitted, particles):
    images = particles[1][N : N + 30]
    whole = fitted.predict(images)
    parts = np.concatenate([fitted.predict(images[i : i + 7]) for i in range(0, 30, 7)])
    assert np.abs(whole - parts).max() < 1e-5


def test_uncertainty_holds_for_its_share_of_new_images(fitted, particles):
    new = particles[1][N:]
    errors = held_out_errors(fitted, particles, fitted.predict(new))
    for level in (0.5, 0.9):
        covered = (errors < fitted.predict_uncertainty(new, level=level)).mean()
        assert abs(covered - level) < 0.1
    noise = particles[2].noise_std * np.random.default_rng(0).standard_normal((50, L, L)).astype(np.float32)
    assert np.median(fitted.predict_uncertainty(noise)) > 3 * np.median(fitted.predict_uncertainty(new))


def test_level_of_uncertainty_is_checked(fitted, particles):
    with pytest.raises(ValueError, match="level is 1.5; a number between 0 and 1 is wanted"):
        fitted.predict_uncertainty(particles[1], level=1.5)


def test_score_prefers_the_right_poses(fitted, particles):
    new = particles[1][N : N + 100]
    assert -0.9 < fitted.score(new) < 0
    shuffled = np.random.default_rng(0).standard_normal((100, L, L)).astype(np.float32)
    assert fitted.score(shuffled) < fitted.score(new) - 0.1


def test_noise_is_not_trusted():
    pytest.importorskip("torch", reason="the network needs the extra skcryo[torch]")
    noise = np.random.default_rng(1).standard_normal((200, L, L)).astype(np.float32)
    estimator = EquivariantPoseNet(init=random_rotations(200, random_state=0), max_shift=0, max_iter=50, random_state=0)
    with pytest.warns(ConvergenceWarning, match="did not converge"):
        estimator.fit(noise)
    assert not estimator.converged_
    assert np.median(estimator.predict_uncertainty(noise)) > 60


def test_a_symmetric_particle_is_called_ambiguous():
    pytest.importorskip("torch", reason="the network needs the extra skcryo[torch]")
    half = make_molecule(25, random_state=0)
    stack, truth = make_particles(half + half[:, ::-1, ::-1], 120, snr=2.0, random_state=0)
    estimator = EquivariantPoseNet(
        init=truth.rotations, max_shift=0, max_iter=150, n_jobs=1, device="cpu", random_state=0
    )
    with pytest.warns(ConvergenceWarning, match="poses are ambiguous, the particle being symmetric"):
        estimator.fit(stack)
    assert estimator.ambiguous_ and not estimator.converged_


class StopAfter:
    """A callback that stops training after some steps."""

    def __init__(self, n):
        self.n, self.seen = n, 0

    def setup(self, estimator, context):
        pass

    def teardown(self, estimator, context):
        pass

    def on_fit_task_begin(self, estimator, context):
        pass

    def on_fit_task_end(self, estimator, context):
        self.seen += context.task_name == "training"
        return self.seen >= self.n


def test_stopped_and_fitted_again_it_ends_with_the_same(particles, tmp_path):
    pytest.importorskip("torch", reason="the network needs the extra skcryo[torch]")
    _, stack, truth = particles
    stack, start = stack[:100], truth.rotations[:100]
    options = {"init": start, "max_shift": 0, "max_iter": 100, "n_jobs": 1, "device": "cpu"}
    whole = EquivariantPoseNet(random_state=3, **options).fit(stack)
    stopped = EquivariantPoseNet(random_state=3, checkpoint_dir=tmp_path, **options)
    stopped.set_callbacks(StopAfter(1)).fit(stack)
    assert stopped.n_iter_ == 50
    again = EquivariantPoseNet(random_state=3, checkpoint_dir=tmp_path, **options).fit(stack)
    assert again.loss_curve_ == whole.loss_curve_
    assert np.abs(again.predict(stack) - whole.predict(stack)).max() < 1e-5
    with pytest.raises(ValueError, match="holds a fit of other images or parameters"):
        EquivariantPoseNet(random_state=4, checkpoint_dir=tmp_path, **options).fit(stack)


# ------------------------------------------------------------------------------------------------- the parts
def clean_images(volume, rotations, spectrum=1.0):
    stack = VolumeProjector(volume).project(rotations)
    return FourierImages.from_stack(stack, np.full(L // 2 + 1, spectrum), max_ring=12)


def test_inputs_turn_with_the_image_and_conjugate_with_the_mirror():
    stack = make_particles(make_molecule(L, random_state=1), 20, snr=1.0, random_state=1)[0]
    images = np.asarray(stack)
    spectrum = np.ones(L // 2 + 1)

    def inputs_of(images):
        return inputs(FourierImages.from_stack(images, spectrum, max_ring=12))

    inputs = SteerableInputs(FourierImages.from_stack(images, spectrum, max_ring=12), np.full(13, 10.0), 8.0, 8)
    given = inputs_of(images)
    turned = inputs_of(rotate_images(images, np.full(20, 0.7), order=5))
    mirrored = inputs_of(np.roll(images[:, ::-1], 1, axis=1))
    start = 0
    for n, size in enumerate(inputs.sizes):
        real = slice(start, start + size)
        imaginary = slice(start + size, start + 2 * size) if n else slice(0, 0)
        start = max(real.stop, imaginary.stop)
        value, after, mirror = (a[:, real] + 1j * (a[:, imaginary] if n else 0) for a in (given, turned, mirrored))
        scale = given.std()
        assert np.abs(after - value * np.exp(-0.7j * n)).max() < 0.06 * scale
        assert np.abs(mirror - value.conj()).max() < 1e-4 * scale


def test_frames_are_those_of_the_svd():
    torch = pytest.importorskip("torch", reason="the network needs the extra skcryo[torch]")
    columns = np.random.default_rng(0).standard_normal((50, 3, 2))
    found = nearest_frames(torch.as_tensor(columns)).numpy()
    third = np.cross(columns[:, :, 0], columns[:, :, 1])
    u, _, v = np.linalg.svd(np.concatenate([columns, third[:, :, None]], axis=2))
    assert np.allclose(found, u @ v, atol=1e-10)


def test_untrained_network_is_equivariant():
    torch = pytest.importorskip("torch", reason="the network needs the extra skcryo[torch]")
    sizes = [4, 4, 3, 3, 2, 2, 1]
    network, random = O2MLP(sizes), np.random.default_rng(0)
    weights = {name: torch.as_tensor(array) for name, array in network.initial_weights(random).items()}
    network.oversampling = 4  # as where poses are predicted
    x = torch.as_tensor(random.standard_normal((500, 2 * sum(sizes) - sizes[0])), dtype=torch.float32)
    frequency = np.concatenate([[n] * size * (1 + (n > 0)) for n, size in enumerate(sizes)])
    turned = x.clone()
    for n in range(1, 7):
        a, b = x[:, frequency == n].chunk(2, dim=1)
        cosine, sine = np.cos(0.4 * n), np.sin(0.4 * n)
        turned[:, frequency == n] = torch.cat([cosine * a + sine * b, cosine * b - sine * a], dim=1)
    with torch.no_grad():
        columns, shifts = network(weights, x)
        columns_turned, shifts_turned = network(weights, turned)
    rotation = torch.as_tensor(in_plane_rotation(-0.4)[:2, :2], dtype=torch.float32)
    assert (columns_turned - columns @ rotation).abs().max() < 0.01 * columns.abs().max()
    assert (shifts_turned - shifts @ rotation).abs().max() < 0.01 * shifts.abs().max()


def test_common_lines_of_clean_images_agree_at_the_right_poses_alone():
    volume, rotations = make_molecule(L, random_state=2), random_rotations(40, random_state=2)
    images = clean_images(volume, rotations)
    bank = line_bank(
        images, lambda part: np.ones((1, len(images.points)), dtype=np.float32), np.zeros((40, 2)), 360, 10
    )
    pairs = sample_pairs(40, 20, np.random.default_rng(0))
    assert pairs.shape == (2, 800) and (pairs[0] != pairs[1]).all()
    assert common_line_loss(bank, rotations, pairs) < 0.01
    assert common_line_loss(bank, random_rotations(1, random_state=9)[0] @ rotations, pairs) < 0.01
    assert common_line_loss(bank, random_rotations(40, random_state=3), pairs) > 0.4
    assert common_line_loss(bank, np.repeat(rotations[:1], 40, axis=0), pairs) == 1.0  # no line is definite


def test_error_model_has_the_quantiles_of_errors_that_it_knows_and_does_not():
    rng = np.random.default_rng(0)
    width = np.exp(rng.standard_normal(4000))
    errors = width * np.linalg.norm(rng.standard_normal((4000, 3)), axis=1)
    known = np.stack([width * np.exp(0.1 * rng.standard_normal(4000)), rng.uniform(1, 2, 4000)], axis=1)
    model = ErrorModel(known[:2000], errors[:2000])
    for level in (0.5, 0.9):
        stated = model.quantile(known[2000:], level)
        assert abs((errors[2000:] < stated).mean() - level) < 0.03
        wide = width[2000:] > 3
        assert abs((errors[2000:] < stated)[wide].mean() - level) < 0.1
    assert model.quantile(np.array([[1e9, 1.0]]), 0.9) == 180


def test_images_unlike_any_projection_are_improbable():
    random = np.random.default_rng(0)
    projections, junk = random.normal(size=2000), random.normal(-6, 1, size=100)
    model = ParticleModel(projections, np.concatenate([random.normal(size=1900), junk]))
    found = model.probability(junk)
    assert (found < 0.5).mean() > 0.97 and np.median(found) < 0.05
    good = model.probability(random.normal(size=1000))
    assert (good > 0.9).mean() > 0.97
    assert (np.diff(model.probability(np.linspace(-10, 10, 100))) >= 0).all()


def test_one_low_image_is_no_evidence():
    projections = np.linspace(0, 1, 100)
    model = ParticleModel(projections, np.append(projections, -5.0))
    assert model.probability(np.array([-5.0]))[0] > 0.9


def test_stated_error_covers_a_mixture():
    """Half of the images are no particles, and of any pose; the rest is off by an exponential error."""
    random = np.random.default_rng(0)
    known = np.ones((4000, 1))
    model = ErrorModel(np.ones((40000, 1)), random.exponential(size=40000))
    particle = random.uniform(size=4000) < 0.95
    anywhere = np.degrees(geodesic_distance(random_rotations(4000, 1), np.eye(3)))
    error = np.where(particle, random.exponential(size=4000), anywhere)
    for level in (0.5, 0.9, 0.97, 0.99):
        stated = stated_error(model, known, np.full(4000, 0.95), level)
        assert abs((error < stated).mean() - level) < 0.02, level
    np.testing.assert_array_equal(stated_error(model, known, np.ones(4000), 0.9), model.quantile(known, 0.9))


def test_quantiles_by_row_are_those_of_each_level():
    random = np.random.default_rng(1)
    known = random.uniform(1, 10, size=(500, 2))
    model = ErrorModel(known, known[:, 0] * random.exponential(size=500))
    levels = np.array([0.1, 0.9, 0.5])
    expected = [model.quantile(known[k : k + 1], level)[0] for k, level in enumerate(levels)]
    np.testing.assert_allclose(model.quantile(known[:3], levels), expected)


def test_inputs_of_turned_images_turn():
    """Filters do not bring in what the corners hold, which turning loses."""
    random = np.random.default_rng(0)
    noise = 3 * random.standard_normal((20, 64, 64)).astype(np.float32)
    images = make_particles(make_molecule(64, random_state=0), 20, random_state=0)[0].load() + noise
    angles = random.uniform(0, 2 * np.pi, 20)
    turned = fourier_crop(rotate_images(fourier_pad(images, 128), angles, order=5), 64)
    both = [FourierImages.from_stack(x, np.full(33, 9.0), 20) for x in (images, turned)]
    inputs = SteerableInputs(both[0], signal_power(both[0]), 14.0, 8)
    coefficients, found = (inputs(x) for x in both)
    start = inputs.sizes[0]
    np.testing.assert_allclose(found[:, :start], coefficients[:, :start], atol=0.03 * np.abs(coefficients).max())
    misfit = [np.square(found[:, :start] - coefficients[:, :start]).sum()]
    for n, size in enumerate(inputs.sizes[1:], 1):
        parts = slice(start, start + size), slice(start + size, start + 2 * size)
        phase = np.exp(-1j * n * angles)[:, None]
        want = (coefficients[:, parts[0]] + 1j * coefficients[:, parts[1]]) * phase
        misfit.append(np.square(np.abs(found[:, parts[0]] + 1j * found[:, parts[1]] - want)).sum())
        start = parts[1].stop
    assert np.sqrt(sum(misfit) / np.square(coefficients).sum()) < 0.015


def test_misleading_neighbours_are_left_for_an_ab_initio_volume(monkeypatch):
    """Neighbours whose poses are arbitrary, though they are sure of them: the search finds most images elsewhere."""
    pytest.importorskip("torch", reason="the network needs the extra skcryo[torch]")
    stack, truth = make_particles(make_molecule(L, random_state=0), 600, snr=2.0, random_state=0)

    class Misled(VectorDiffusionMaps):
        def fit(self, X, y=None):
            self.rotations_ = random_rotations(len(X), 5)
            return self

    monkeypatch.setattr("skcryo.orientation._pose_net.VectorDiffusionMaps", Misled)
    net = EquivariantPoseNet(max_shift=0, max_iter=30, n_jobs=1, device="cpu", random_state=0).fit(stack)
    assert type(net.init_).__name__ == "AbInitioVolume"
    assert pose_error(net.rotations_, truth.rotations).mean < 3


def test_neighbours_start_centred_images():
    pytest.importorskip("torch", reason="the network needs the extra skcryo[torch]")
    stack, truth = make_particles(make_molecule(L, random_state=0), 600, snr=2.0, random_state=0)
    net = EquivariantPoseNet(max_shift=0, max_iter=30, n_jobs=1, device="cpu", random_state=0).fit(stack)
    assert isinstance(net.init_, VectorDiffusionMaps)
    assert pose_error(net.rotations_, truth.rotations).mean < 3
