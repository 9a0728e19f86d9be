"""Training of the network of poses: the paper's loss, architectures by name, checkpoints."""

import numpy as np
import pytest

from skcryo.alignment import FourierImages
from skcryo.datasets import make_molecule, make_particles
from skcryo.metrics import pose_error
from skcryo.orientation import EquivariantPoseNet
from skcryo.orientation._pose_net_architectures import ARCHITECTURES
from skcryo.orientation._pose_net_common_lines import CommonLinesLoss, spread_penalty
from skcryo.orientation._pose_net_half_turns import HalfTurns
from skcryo.orientation._pose_net_lines import common_line_loss, line_bank, sample_pairs
from skcryo.orientation._pose_net_training import mixed_precision
from skcryo.projection import VolumeProjector
from skcryo.rotations import random_rotations

torch = pytest.importorskip("torch", reason="the network needs the extra skcryo[torch]")
L = 24


class Fixed:
    """A network that says given poses, whatever it is shown."""

    def __init__(self, rotations):
        self.rotations = torch.as_tensor(rotations, dtype=torch.float32)

    def __call__(self, weights, coefficients):
        rows = coefficients[:, 0].long()
        return self.rotations[rows, :, :2], torch.zeros(len(rows), 2)


@pytest.fixture(scope="module")
def bank():
    rotations = random_rotations(60, random_state=2)
    stack = VolumeProjector(make_molecule(L, random_state=2)).project(rotations)
    images = FourierImages.from_stack(stack, np.ones(L // 2 + 1), max_ring=9)
    ones = np.ones((1, len(images.points)), dtype=np.float32)
    return rotations, line_bank(images, lambda part: ones, np.zeros((60, 2)), 180, 8)


def loss_at(bank, rotations, kind="squared", step=100):
    numbers = np.arange(len(rotations), dtype=np.float32)[:, None]
    loss = CommonLinesLoss(Fixed(rotations), numbers, bank, kind, 100, "cpu")
    return float(loss(None, step, len(rotations), np.random.default_rng(0)))


@pytest.mark.parametrize("kind", ["squared", "product"])
def test_loss_is_least_at_the_right_poses(bank, kind):
    rotations, lines = bank
    right, wrong = loss_at(lines, rotations, kind=kind), loss_at(lines, random_rotations(60, random_state=3), kind=kind)
    assert right < wrong - 0.3
    frame = random_rotations(1, random_state=4)[0] @ rotations
    assert loss_at(lines, frame, kind=kind) == pytest.approx(right, abs=0.05)  # but for how the penalty sees the frame


def test_squared_loss_is_the_plain_one(bank):
    rotations, lines = bank
    loss = CommonLinesLoss(Fixed(rotations), np.zeros((60, 1), dtype=np.float32), lines, "squared", 10, "cpu")
    poses = random_rotations(60, random_state=5)
    pairs = sample_pairs(60, 20, np.random.default_rng(1))
    found = loss._pair_loss(torch.as_tensor(poses, dtype=torch.float32), torch.arange(60), torch.as_tensor(pairs), 10)
    # that is a share of the power along the lines, here a constant for both: compared at two poses
    other = loss._pair_loss(
        torch.as_tensor(rotations, dtype=torch.float32), torch.arange(60), torch.as_tensor(pairs), 10
    )
    plain = common_line_loss(lines, poses, pairs), common_line_loss(lines, rotations, pairs)
    assert float(other) < 0.02 * float(found) and plain[1] < 0.02 * plain[0]


def test_rings_march_from_low_to_high(bank):
    rotations, lines = bank
    poses = random_rotations(60, random_state=6)
    low = lines.copy()
    low[:, :, 5:] = 0
    # at the start rings beyond the first four do not count; the scale is that of all power
    scale = np.sqrt(np.square(np.abs(low)).mean() / np.square(np.abs(lines)).mean())
    penalty = float(spread_penalty(torch.as_tensor(poses[:, :, 2])))
    first, only_low = (loss_at(part, poses, step=0) - penalty for part in (lines, low))
    assert first == pytest.approx(only_low * scale**2, rel=1e-3)
    assert loss_at(lines, poses, step=100) - penalty > first


def test_penalty_is_least_for_views_all_over():
    views = torch.as_tensor(random_rotations(500, random_state=0)[:, :, 2])
    together = torch.nn.functional.normalize(views + 3, dim=1)
    assert float(spread_penalty(views)) < 0.5 < float(spread_penalty(together))
    one = torch.tensor([[0.0, 0.0, 1.0]]).repeat(10, 1)
    # by hand: 0.15 / 3, then 0.3 * (3 / 3) / 9, then 0.6 * 90 / 100
    assert float(spread_penalty(one)) == pytest.approx(0.05 + 0.3 / 9 + 0.54, abs=1e-6)


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_gradients_reach_all_weights(architecture):
    random, sizes = np.random.default_rng(0), [3, 3, 2, 1]
    network = ARCHITECTURES[architecture](sizes)
    weights = {name: torch.as_tensor(value).requires_grad_() for name, value in network.initial_weights(random).items()}
    x = torch.as_tensor(random.standard_normal((8, 2 * sum(sizes) - 3 + network.n_frame)), dtype=torch.float32)
    columns, shifts = network(weights, x)
    assert columns.shape == (8, 3, 2) and shifts.shape == (8, 2)
    (columns.square().sum() + shifts.square().sum()).backward()
    assert all(value.grad is not None and value.grad.abs().max() > 0 for value in weights.values())


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_common_lines_alone_teach_something():
    stack, truth = make_particles(make_molecule(L, random_state=0), 200, snr=5.0, random_state=0)
    estimator = EquivariantPoseNet(
        training="common-lines", max_shift=0, max_iter=150, n_jobs=1, device="cpu", random_state=0
    ).fit(stack)
    assert not hasattr(estimator, "init_")
    assert estimator.rotations_.shape == (200, 3, 3) and len(estimator.loss_curve_) == 150
    # unrelated poses score -1
    assert estimator.score(stack) > -0.9
    assert pose_error(estimator.predict(stack), estimator.rotations_).median < 30
    assert truth.rotations.shape == estimator.rotations_.shape


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_half_turns_change_nothing_but_the_sign_of_columns(architecture):
    random, sizes = np.random.default_rng(0), [4, 3, 3, 2]
    network = HalfTurns(ARCHITECTURES[architecture](sizes), sizes)
    weights = {name: torch.as_tensor(value) for name, value in network.initial_weights(random).items()}
    n_inputs = 2 * sum(sizes) - sizes[0] + network.n_frame
    x = torch.as_tensor(random.standard_normal((60, n_inputs)), dtype=torch.float32)
    plain, expected_shifts = network.network(weights, x)
    odds = network.odds(weights, x)
    assert 5 < (odds > 0).sum() < 55
    columns, shifts = network(weights, x)
    signs = torch.where(odds > 0, -1.0, 1.0)[:, None, None]
    torch.testing.assert_close(columns, signs * plain)
    torch.testing.assert_close(shifts, expected_shifts)
    # late in training it is hardly by lot; early it is
    late = [network.drawn(weights | {"half_turn.1.bias": torch.tensor([s])}, x, 1.0, random)[0] for s in (50.0, -50.0)]
    torch.testing.assert_close(late[0], -plain)
    torch.testing.assert_close(late[1], plain)


def test_odds_of_half_turns_are_learnt():
    """Where turned poses are wanted of some images, whose coefficients are large, the branch learns which."""
    random, sizes = np.random.default_rng(0), [2, 2, 2]
    network = HalfTurns(ARCHITECTURES["o2-mlp"](sizes), sizes)
    x = torch.as_tensor(random.standard_normal((200, 10)), dtype=torch.float32)
    x *= torch.as_tensor(np.where(np.arange(200) < 100, 3.0, 0.3), dtype=torch.float32)[:, None]
    start = {name: torch.as_tensor(value) for name, value in network.initial_weights(random).items()}
    plain = network.network(start, x)[0]
    wanted = torch.where(torch.arange(200)[:, None, None] < 100, -plain, plain)
    weights = {name: value.requires_grad_(name.startswith("half_turn")) for name, value in start.items()}
    optimizer = torch.optim.Adam([value for value in weights.values() if value.requires_grad], lr=0.03)
    for step in range(120):
        loss = (network.drawn(weights, x, step / 120, random)[0] - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    odds = network.odds(weights, x).detach()
    assert (odds[:100] > 0).float().mean() > 0.95 and (odds[100:] < 0).float().mean() > 0.95


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_half_turns_in_a_fit():
    stack, _ = make_particles(make_molecule(L, random_state=0), 100, snr=5.0, random_state=0)
    options = {"half_turns": True, "max_shift": 0, "max_iter": 20, "n_jobs": 1, "device": "cpu", "random_state": 0}
    fitted = EquivariantPoseNet(training="common-lines", refine=False, **options).fit(stack)
    assert "half_turn.0" in fitted.weights_ and fitted.predict(stack[:3]).shape == (3, 3, 3)
    with pytest.raises(ValueError, match="half_turns=True is for training='common-lines'"):
        EquivariantPoseNet(**options).fit(stack)


def test_products_are_short_on_a_gpu_alone():
    with mixed_precision(torch.device("cpu")):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
    if torch.cuda.is_available():
        with mixed_precision(torch.device("cuda")):
            assert (torch.ones(2, 2, device="cuda") @ torch.ones(2, 2, device="cuda")).dtype == torch.bfloat16


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_common_lines_keep_poses_that_they_start_from():
    stack, truth = make_particles(make_molecule(L, random_state=0), 300, snr=5.0, random_state=0)
    estimator = EquivariantPoseNet(
        training="common-lines", init=truth.rotations, max_shift=0, max_iter=150, n_jobs=1, device="cpu", random_state=0
    )
    images, estimator._start = estimator._fit_images(stack), (truth.rotations, np.zeros((300, 2)))
    training = estimator._line_training(images, 0)
    training.run(150)
    assert training.n_trials == 0
    estimator._predictor.weights = training.weights
    found = estimator._predictor.by_network(images, "cpu")["rotations"]
    assert pose_error(found, truth.rotations).median < 12
