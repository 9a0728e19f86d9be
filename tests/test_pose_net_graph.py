"""Networks of poses that see several images: symmetries of layers and of answers, what answers depend on, training."""

import numpy as np
import pytest

from skcryo.alignment import FourierImages
from skcryo.datasets import make_molecule, make_particles
from skcryo.fourier import rotate_images
from skcryo.metrics import pose_correlation
from skcryo.orientation import EquivariantPoseNet
from skcryo.orientation._pose_net_architectures import ARCHITECTURES
from skcryo.orientation._pose_net_common_lines import LineTraining
from skcryo.orientation._pose_net_context import FittedContext
from skcryo.orientation._pose_net_graph import graph_edges
from skcryo.orientation._pose_net_so3 import rotation_functions, so3_activation, so3_linear, so3_messages, so3_norm
from skcryo.rotations import geodesic_distance, in_plane_rotation, random_rotations

torch = pytest.importorskip("torch", reason="the network needs the extra skcryo[torch]")
SIZES = [4, 4, 3, 3, 2]
N_COEFFICIENTS = 2 * sum(SIZES) - SIZES[0]
OTHERS = ["mlp-attention", "o2-gnn", "so3-o2-gnn"]
MIRROR = np.diag([1.0, -1.0, -1.0])


def inputs_at(rotations, seed=0):
    """Coefficients that turn with the image, smooth functions of the view, and the frames of true eigenvectors."""
    random = np.random.default_rng(seed)
    planes = rotations[:, :, 0] - 1j * rotations[:, :, 1]  # of angular frequency 1
    view = rotations[:, :, 2]
    parts = []
    for n, size in enumerate(SIZES):
        for_mirror = view[:, None, :] * random.standard_normal((size, 3))  # changes sign, and so does i times the rest
        even = 1 + np.square(for_mirror).sum(axis=2)
        value = (planes @ random.standard_normal((3, size))) ** n * even
        parts += [value.real] + ([value.imag] if n else [])
    frames = rotations[:, :, :2].reshape(len(rotations), 6)
    return np.concatenate([*parts, frames], axis=1).astype(np.float32)


def network_of(name, oversampling=4):
    network = ARCHITECTURES[name](SIZES)
    weights = network.initial_weights(np.random.default_rng(0))
    if network.n_frame:
        network.oversampling = oversampling
    return network, {key: torch.as_tensor(value) for key, value in weights.items()}


def rotations_by(network, weights, inputs, groups=None):
    network.groups = groups
    with torch.no_grad():
        columns = network(weights, torch.as_tensor(inputs))[0].numpy()
    return columns


@pytest.mark.parametrize("name", ["o2-gnn", "so3-o2-gnn"])
@pytest.mark.parametrize("mirrored", [False, True])
def test_poses_turn_with_one_image_and_no_other_pose_does(name, mirrored):
    rotations = random_rotations(60, random_state=0)
    moved = rotations.copy()
    moved[7] = moved[7] @ (MIRROR if mirrored else np.eye(3)) @ in_plane_rotation(0.7)
    network, weights = network_of(name, oversampling=7)
    before, after = (rotations_by(network, weights, inputs_at(poses)) for poses in (rotations, moved))
    wanted = before.copy()
    relative = (rotations[7].T @ moved[7])[:2, :2]
    wanted[7] = before[7] @ relative
    assert np.abs(after - wanted).max() < 2e-3 * np.abs(before).max()
    assert np.abs(before[7] - wanted[7]).max() > 0.1 * np.abs(before).max()


def test_edges_are_the_relative_poses_of_images_of_one_view():
    poses = np.repeat(random_rotations(10, random_state=1), 3, axis=0)
    turns = in_plane_rotation(np.random.default_rng(0).uniform(0, 6, 30))
    poses = poses @ np.where(np.arange(30)[:, None, None] % 2 == 0, MIRROR, np.eye(3)) @ turns
    frames = torch.as_tensor(inputs_at(poses)[:, -6:])
    indices, weights, phase, sign = (part.numpy() for part in graph_edges(frames, frames, 2, True))
    assert (indices // 3 == np.arange(30)[:, None] // 3).all() and (weights >= 0).all()
    relative = np.swapaxes(poses[indices], 2, 3) @ poses[:, None]
    u = relative[..., 0, 0] + 1j * relative[..., 1, 0]
    assert np.array_equal(sign, np.sign(relative[..., 2, 2]))
    assert np.allclose(phase[..., 0] + 1j * sign * phase[..., 1], u, atol=1e-5)


def test_functions_of_rotations_are_a_representation():
    a, b = random_rotations(2, random_state=0)
    for D_a, D_b, D_ab in zip(*map(rotation_functions, (a, b, a @ b))):
        assert np.allclose(D_a @ D_b, D_ab, atol=1e-12) and np.allclose(D_a @ D_a.T, np.eye(len(D_a)), atol=1e-12)


@pytest.mark.parametrize("mirrored", [False, True])
def test_layers_on_so3_rotate_with_their_features(mirrored):
    """By any rotation from the left, and by turns and mirror images of the plane from the right."""
    random = np.random.default_rng(0)
    left = random_rotations(1, random_state=3)[0]
    right = in_plane_rotation(1.1) @ (MIRROR if mirrored else np.eye(3))
    x = so3_norm(torch.as_tensor(random.standard_normal((35, 12, 5))))
    weight, bias = (torch.as_tensor(random.standard_normal(shape)) for shape in ((6, 5, 5), (5,)))

    def rotated(x, right=right):
        out, start = [], 0
        for D, E in zip(rotation_functions(left), rotation_functions(right)):
            size = len(D)
            part = x[start : start + size * size].reshape(size, size, *x.shape[1:])  # column, row
            start += size * size
            out.append(torch.einsum("crnk,dc,sr->dsnk", part, torch.as_tensor(E), torch.as_tensor(D)).flatten(0, 1))
        return torch.cat(out)

    linear, wanted = so3_linear(rotated(x), weight, bias), rotated(so3_linear(x, weight, bias))
    assert (linear - wanted).abs().max() < 1e-10
    active = so3_activation(x, 8)
    assert (so3_activation(rotated(x), 8) - rotated(active)).abs().max() < 1e-4 * active.abs().max()
    assert (so3_activation(x, 3) - active).abs().max() < 0.05 * active.abs().max()
    network = ARCHITECTURES["so3-o2-gnn"](SIZES)
    frames = torch.as_tensor(inputs_at(random_rotations(12, random_state=4)).astype(np.float64))
    edges = network._edges(frames, frames, True)
    both = so3_messages(rotated(x, np.eye(3)), x, edges)  # the global rotation of all
    both = so3_messages(rotated(x, np.eye(3)), rotated(x, np.eye(3)), edges)
    assert (both - rotated(so3_messages(x, x, edges), np.eye(3))).abs().max() < 1e-10


@pytest.mark.parametrize("name", OTHERS)
def test_answers_do_not_depend_on_the_batch_but_on_the_fitted_images(name):
    network, weights = network_of(name)
    seen = [inputs_at(random_rotations(50, random_state=k)) for k in (1, 2)]
    new = inputs_at(random_rotations(1000, random_state=3))
    if not network.n_frame:
        seen, new = [part[:, :N_COEFFICIENTS] for part in seen], new[:, :N_COEFFICIENTS]
    whole = rotations_by(network, weights, new, seen)
    for size in (1, 7):
        parts = [rotations_by(network, weights, new[i : i + size], seen) for i in range(0, 21, size)]
        assert np.abs(np.concatenate(parts) - whole[: 21 // size * size]).max() < 1e-5 * np.abs(whole).max()
    other = rotations_by(network, weights, new[:21], seen[:1])
    assert np.abs(other - whole[:21]).max() > 1e-3


def test_frames_of_new_images_agree_with_those_of_fitted_ones():
    rotations = random_rotations(800, random_state=5)
    given = inputs_at(rotations)
    context = FittedContext(given[:700, :-6], SIZES, 6, 100, 0, 1)
    frames = [part[:, -6:].reshape(-1, 3, 2) for part in (context.fitted, context.inputs(given[700:, :-6]))]
    # singular values of the products of two frames are 1 and the cosine of the angle between views
    near = np.abs(rotations[700:, :, 2] @ rotations[:700, :, 2].T).argmax(axis=1)
    product = np.swapaxes(frames[0][near], 1, 2) @ frames[1]
    assert np.median(np.linalg.svd(product, compute_uv=False)) > 0.8
    relative = np.swapaxes(rotations[near], 1, 2) @ rotations[700:]
    inner = np.einsum("nab,nab->n", product, relative[:, :2, :2])
    assert np.median(inner) > 1.6
    assert [len(group) for group in context.groups] == [100] * 4
    again = FittedContext.restored(context.coefficients, context.frames, context.rows, SIZES, 1)
    assert np.array_equal(again.inputs(given[700:, :-6]), context.inputs(given[700:, :-6]))


@pytest.fixture(scope="module")
def particles():
    return make_particles(make_molecule(24, random_state=0), 260, snr=5.0, random_state=0)


def test_fitted_images_are_what_new_ones_are_compared_with(particles):
    stack, _ = particles
    estimator = EquivariantPoseNet(
        architecture="o2-gnn", training="common-lines", max_shift=0, max_iter=5, n_jobs=1, device="cpu"
    )
    fitted, estimator._start = estimator._fit_images(stack[:200]), None
    training = estimator._line_training(fitted, 0)
    training.run(5)
    predictor = estimator._predictor
    predictor.weights = training.weights

    def poses(images):
        if not isinstance(images, FourierImages):
            images = FourierImages.from_stack(images, estimator.noise_spectrum_, estimator.max_ring)
        return predictor.by_network(images, "cpu")["rotations"]

    new = np.asarray(stack[200:])
    whole = poses(new)
    assert len(predictor.context.fitted) == 200 and np.allclose(
        poses(fitted), poses(np.asarray(stack[:200])), atol=1e-5
    )
    parts = np.concatenate([poses(new[i : i + 7]) for i in range(0, 60, 7)])
    assert np.abs(parts - whole).max() < 1e-5
    turned = poses(rotate_images(new, np.full(60, 0.8), order=5))
    assert np.degrees(np.median(geodesic_distance(turned, whole @ in_plane_rotation(-0.8)))) < 2
    mirrored = poses(np.roll(new[:, ::-1], 1, axis=1))
    assert np.degrees(geodesic_distance(mirrored, whole @ MIRROR)).max() < 0.5


@pytest.mark.parametrize("name", OTHERS)
def test_networks_that_see_others_are_not_trained_on_projections(particles, name):
    with pytest.raises(ValueError, match=f"architecture='{name}' is for training='common-lines'"):
        EquivariantPoseNet(architecture=name).fit(particles[0])


def test_training_taken_up_again_ends_with_the_same_in_a_trial_and_after(monkeypatch):
    monkeypatch.setattr("skcryo.orientation._pose_net_common_lines._TRIAL_STEPS", 4)
    inputs = inputs_at(random_rotations(40, random_state=6))
    random = np.random.default_rng(0)
    bank = (random.standard_normal((40, 20, 6)) + 1j * random.standard_normal((40, 20, 6))).astype(np.complex64)

    def training():
        network = ARCHITECTURES["o2-gnn"](SIZES, n_channels=8)
        return LineTraining(network, inputs, bank, "squared", 50, 0, torch.device("cpu"))

    whole = training()
    whole.run(50)
    assert whole.step == len(whole.losses) == 50 and len(whole.trial_losses) == 7
    for step in (2, 8, 30):
        first, second = training(), training()
        first.run(step)
        second.restore(*first.state())
        second.run(3)
        second.run(50)
        assert second.losses == whole.losses and second.trial_losses == whole.trial_losses
        assert all(np.array_equal(value, whole.weights[name]) for name, value in second.weights.items())


def test_common_lines_alone_teach_a_network_of_messages():
    stack, truth = make_particles(make_molecule(24, random_state=0), 600, snr=5.0, random_state=0)
    estimator = EquivariantPoseNet(
        architecture="o2-gnn", training="common-lines", max_shift=0, max_iter=150, n_jobs=1, device="cpu"
    )
    images, estimator._start = estimator._fit_images(stack), None
    training = estimator._line_training(images, 0)
    training.run(150)
    estimator._predictor.weights = training.weights
    found = estimator._predictor.by_network(images, "cpu")["rotations"]
    # Of poses drawn by lot it would be .03.
    assert pose_correlation(found, truth.rotations) > 0.9


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("name", OTHERS)
def test_saved_and_loaded_it_says_the_same_of_new_images(particles, name, tmp_path, monkeypatch):
    pytest.importorskip("safetensors", reason="models are saved with the extra skcryo[torch]")
    monkeypatch.setattr("skcryo.orientation._pose_net._MAX_ROUNDS", 1)
    stack, truth = particles
    options = {"max_shift": 0, "max_iter": 5, "refine": False, "n_jobs": 1, "device": "cpu", "random_state": 0}
    fitted = EquivariantPoseNet(architecture=name, training="common-lines", **options).fit(stack[:60])
    fitted.save(tmp_path / "net.safetensors")
    found = EquivariantPoseNet.load(tmp_path / "net.safetensors").predict_poses(stack[240:])
    expected = fitted.predict_poses(stack[240:])
    np.testing.assert_array_equal(found.rotations, expected.rotations)
    np.testing.assert_array_equal(found.uncertainty, expected.uncertainty)
