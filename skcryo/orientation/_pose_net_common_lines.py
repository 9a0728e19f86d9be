"""Training the network of poses by the common-lines loss of the paper: from images alone, no pose or volume known."""

import numpy as np

from .._torch import import_torch
from ._pose_net_half_turns import HalfTurns
from ._pose_net_layers import nearest_frames
from ._pose_net_lines import LEAST_SINE, common_line_loss, sample_pairs
from ._pose_net_training import PoseTraining, evaluate_network, mixed_precision

__all__ = ["LINE_BATCH", "CommonLinesLoss", "LineTraining", "spread_penalty"]

LINE_BATCH = 256  # images of a step
_LEARNING_RATE = 3e-3
_TRIAL_STEPS, _TRIAL_SHARE = 120, 0.6  # of each trial; of all steps for all trials, at most
_N_JUDGED = 1024  # images

_PARTNERS = 50  # the paper has 200; more hardly help, and time is theirs
_FIRST_RING, _MARCH = 4.0, 0.6  # rings at the start; share of the steps after which all take part
_LEARNING = 1 / 3  # share of the steps for poses to start from
_PENALTY_WEIGHTS = (0.15, 0.3, 1.0)
_TINY = 1e-6


class CommonLinesLoss:
    """The loss of a batch: how far its images disagree along the common lines of their poses (equations 16 to 18).

    Each image is compared with 50 others of the batch. Rays are interpolated between those of a polar grid; pairs of
    views less than 9 degrees apart do not count, as their line is not definite. Rings are added one by one, lowest
    first. A penalty keeps views apart (section 3.3).

    The half turns of the paper (section 4), drawn by lot with odds that the network says, are for a network of
    :class:`skcryo.orientation._pose_net_half_turns.HalfTurns`. They do harm: while they are drawn evenly, half of all
    pairs are compared with one line reversed, and what agrees best then is a map of views with folds, which does not
    mend afterwards (correlations .2 to .6 instead of .8 to .9).

    Parameters
    ----------
    network : callable
    coefficients : ndarray of shape (n_images, n_components), float32
    bank : ndarray of shape (n_images, n_theta, n_rings), complex64
        From :func:`skcryo.orientation._pose_net_lines.line_bank`.
    kind : {"squared", "product"}
        Equation 18 or 17.
    n_steps : int
        In all.
    device : torch.device
    start : ndarray of shape (n_images, 3, 3), default=None
        Poses that the network learns first, for a third of the steps; all rings take part afterwards.
    """

    def __init__(self, network, coefficients, bank, kind, n_steps, device, start=None):
        self.torch = torch = import_torch("EquivariantPoseNet")
        self.network, self.kind, self.n_steps, self.device = network, kind, n_steps, device
        self.coefficients = torch.as_tensor(coefficients, device=device)
        self.start = start
        if start is not None:
            self.start = torch.as_tensor(start[:, :, :2], dtype=self.coefficients.dtype, device=device)
        scale = np.sqrt(np.square(np.abs(bank)).mean(dtype=np.float64) * bank.shape[2])
        bank = np.ascontiguousarray(bank / max(scale, 1e-30), dtype=np.complex64)
        self.bank = torch.as_tensor(bank.view(np.float32).reshape(*bank.shape, 2), device=device)

    def __call__(self, weights, step, size, random):
        """Loss of `size` images drawn by lot.

        Parameters
        ----------
        weights : dict of str to tensor
        step, size : int
        random : numpy.random.Generator

        Returns
        -------
        tensor of shape ()
        """
        torch, n = self.torch, len(self.coefficients)
        rows = torch.as_tensor(random.choice(n, min(size, n), replace=False), device=self.device)
        with mixed_precision(self.device):
            if isinstance(self.network, HalfTurns):
                columns, _ = self.network.drawn(weights, self.coefficients[rows], step / self.n_steps, random)
            else:
                columns, _ = self.network(weights, self.coefficients[rows])
        if self.start is not None and step < _LEARNING * self.n_steps:
            return (columns.float() - self.start[rows]).square().sum(dim=(1, 2)).mean()
        rotations = nearest_frames(columns.float())
        pairs = torch.as_tensor(sample_pairs(len(rows), _PARTNERS, random), device=self.device)
        return self._pair_loss(rotations, rows, pairs, step) + spread_penalty(rotations[:, :, 2])

    def _pair_loss(self, rotations, rows, pairs, step):
        torch, (i, j) = self.torch, pairs
        line = torch.linalg.cross(rotations[i, :, 2], rotations[j, :, 2])
        sine = line.norm(dim=1)
        definite = sine.detach() > LEAST_SINE
        line = line / sine.clamp_min(_TINY)[:, None]
        first, second = (self._rays(rows[k], rotations[k], line) for k in (i, j))
        if self.kind == "squared":
            apart = (first - second).square().sum(dim=2)
        else:
            apart = -2 * (first * second).sum(dim=2)
        each = apart @ self._ring_weights(step)
        return (each * definite).sum() / definite.sum().clamp_min(1)

    def _ring_weights(self, step):
        n_rings = self.bank.shape[2]
        marched = 1 if self.start is not None else min(1, step / (_MARCH * self.n_steps))
        band = _FIRST_RING + (n_rings - _FIRST_RING) * marched
        rings = self.torch.arange(1, n_rings + 1, device=self.device, dtype=self.bank.dtype)
        return (band + 1 - rings).clamp(0, 1)

    def _rays(self, images, rotations, line):
        torch, n_theta = self.torch, self.bank.shape[1]
        x, y = torch.einsum("pak,pa->kp", rotations[:, :, :2], line)
        place = torch.remainder(torch.atan2(y, x) * (n_theta / (2 * np.pi)), n_theta)
        low = place.detach().floor()
        share = (place - low)[:, None, None]
        low = low.long() % n_theta
        return self.bank[images, low] * (1 - share) + self.bank[images, (low + 1) % n_theta] * share


def spread_penalty(views):
    """What keeps predicted views apart (section 3.3): mean, covariance and repulsion.

    Parameters
    ----------
    views : tensor of shape (n, 3)
        Unit vectors.

    Returns
    -------
    tensor of shape ()
        ``0.15 |mean|^2 / 3 + 0.3 |Cov - 1/3|_1 / 9 + mean of min(|z_i z_j|, 0.6)`` over pairs.
    """
    torch, n = import_torch("EquivariantPoseNet"), len(views)
    mean = views.mean(dim=0)
    centred = views - mean
    covariance = centred.T @ centred / n
    products = (views @ views.T).abs().clamp_max(0.6)
    terms = (
        mean.square().sum() / 3,
        (covariance - torch.eye(3, device=views.device, dtype=views.dtype) / 3).abs().sum() / 9,
        (products.sum() - products.diagonal().sum()) / n**2,
    )
    return sum(weight * term for weight, term in zip(_PENALTY_WEIGHTS, terms))


class LineTraining:
    """Short trainings, from other weights each; the one whose images agree best along lines is trained on.

    What becomes of the poses is settled in the first hundred steps: as often as not a map of the sphere with folds that
    common lines do not undo. The share of power along lines that two images do not have in common tells: of some
    thirty trials of 120 steps on 5000 images the two below 0.2 had correlations of .91 with the true poses, the others
    .58 to .86. The loss of training tells less, as it is lower too for views that are drawn together where images are
    faint. Six tenths of the steps are for trials of 120 steps; if there are fewer than 200 in all, or poses to start
    from, there is no trial.

    Parameters
    ----------
    network : callable
    seen : ndarray of shape (n_images, n_inputs), float32
        What the network is given of the images.
    bank : ndarray of shape (n_images, n_theta, n_rings), complex64
        Their lines.
    kind : {"squared", "product"}
    n_steps : int
        In all, those of trials too.
    seed : int
    device : torch.device
    start : ndarray of shape (n_images, 3, 3), default=None
        Poses to start from.

    Attributes
    ----------
    losses : list of float
        Of all steps that were taken.
    trial_losses : list of float
        Of trials that are done, :func:`skcryo.orientation._pose_net_lines.common_line_loss` of some of the images.
    """

    def __init__(self, network, seen, bank, kind, n_steps, seed, device, start=None):
        self.network, self.n_steps, self.seed, self.device = network, n_steps, seed, device
        self.loss = CommonLinesLoss(network, seen, bank, kind, n_steps, device, start)
        self.n_trials = int(_TRIAL_SHARE * n_steps) // _TRIAL_STEPS if start is None else 0
        rows = np.random.default_rng([seed, 6]).permutation(len(seen))[:_N_JUDGED]
        self._judged = seen[rows], bank[rows]
        self.trial_losses, self._before, self._best = [], [], self._first_weights(0)
        self._start_stage()

    def _first_weights(self, trial):
        return self.network.initial_weights(np.random.default_rng([self.seed, 4, trial]))

    def _start_stage(self):
        k = len(self.trial_losses)
        last = k == self.n_trials
        steps = self.n_steps - self.n_trials * _TRIAL_STEPS if last else _TRIAL_STEPS
        self.loss.n_steps = steps
        self._stage = PoseTraining(
            self._best if last else self._first_weights(k), self.loss, steps, self.seed + k, self.device,
            learning_rate=_LEARNING_RATE, batch=LINE_BATCH,
        )  # fmt: skip

    @property
    def step(self):
        """Steps that were taken."""
        return len(self._before) + self._stage.step

    @property
    def losses(self):
        """Loss of each."""
        return self._before + self._stage.losses

    @property
    def weights(self):
        """Present weights, dict of str to ndarray."""
        return self._stage.weights

    def run(self, n):
        """Take `n` steps, at most as many as are left."""
        while n > 0 and self.step < self.n_steps:
            before = self.step
            self._stage.run(n)
            n -= self.step - before
            if self._stage.step == self._stage.n_steps and len(self.trial_losses) < self.n_trials:
                self._end_trial()

    def _end_trial(self):
        loss = self._line_loss(self._stage.weights)
        if loss < min(self.trial_losses, default=np.inf):
            self._best = self._stage.weights
        self.trial_losses.append(loss)
        self._before = self.losses
        self._start_stage()

    def _line_loss(self, weights):
        """How far some of the images disagree, seen batch by batch as in training."""
        seen, bank = self._judged
        batches = [seen[start : start + LINE_BATCH] for start in range(0, len(seen), LINE_BATCH)]
        found = [evaluate_network(self.network, weights, batch, 1.0, self.device)[0] for batch in batches]
        pairs = sample_pairs(len(seen), _PARTNERS, np.random.default_rng(0))
        return common_line_loss(bank, np.concatenate(found), pairs)

    def state(self):
        """What a checkpoint holds: (arrays, info)."""
        arrays, info = self._stage.state()
        arrays |= {f"best:{name}": value for name, value in self._best.items()}
        return arrays, info | {"before": self._before, "trial_losses": self.trial_losses}

    def restore(self, arrays, info):
        """Go on from a state."""
        self.trial_losses, self._before = list(info["trial_losses"]), list(info["before"])
        self._best = {name: arrays[f"best:{name}"] for name in self._best}
        self._start_stage()
        self._stage.restore(arrays, info)
