"""Training the network of poses by the common-lines loss of the paper: from images alone, no pose or volume known."""

import numpy as np

from .._torch import import_torch
from ._pose_net_layers import nearest_frames
from ._pose_net_lines import LEAST_SINE, sample_pairs

__all__ = ["CommonLinesLoss", "spread_penalty"]

_PARTNERS = 50  # the paper has 200; more hardly help, and time is theirs
_FIRST_RING, _MARCH = 4.0, 0.6  # rings at the start; share of the steps after which all take part
_TEMPERATURES, _EXPLORATION = (5.0, 0.1), 0.3  # of the choice of half a turn, at the start and after this share
_PENALTY_WEIGHTS = (0.15, 0.3, 1.0)
_TINY = 1e-6


class CommonLinesLoss:
    """The loss of a batch: how far its images disagree along the common lines of their poses (equations 16 to 18).

    Each image is compared with 50 others of the batch. Rays are interpolated between those of a polar grid; pairs of
    views less than 9 degrees apart do not count, as their line is not definite. Rings are added one by one, lowest
    first. A penalty keeps views apart (section 3.3). Of each pose, the network says how likely it is half a turn off in
    the plane; one of the two is drawn by the Gumbel-softmax trick, at a temperature that falls.

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
    """

    def __init__(self, network, coefficients, bank, kind, n_steps, device):
        self.torch = torch = import_torch("EquivariantPoseNet")
        self.network, self.kind, self.n_steps, self.device = network, kind, n_steps, device
        self.coefficients = torch.as_tensor(coefficients, device=device)
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
        columns, _, turned = self.network(weights, self.coefficients[rows])
        rotations = nearest_frames(columns)
        rotations = self._chosen(rotations, turned, step, random)
        pairs = torch.as_tensor(sample_pairs(len(rows), _PARTNERS, random), device=self.device)
        return self._pair_loss(rotations, rows, pairs, step) + spread_penalty(rotations[:, :, 2])

    def _chosen(self, rotations, turned, step, random):
        """Poses, some of them turned by pi, drawn so that gradients reach the odds."""
        torch = self.torch
        first, last = _TEMPERATURES
        temperature = first * (last / first) ** min(1, step / (_EXPLORATION * self.n_steps))
        gumbel = torch.as_tensor(random.logistic(size=len(turned)), dtype=turned.dtype, device=self.device)
        soft = torch.sigmoid((turned + gumbel) / temperature)
        choice = (soft > 0.5).to(soft.dtype) + soft - soft.detach()
        signs = 1 - 2 * choice
        return rotations * torch.stack([signs, signs, torch.ones_like(signs)], dim=1)[:, None, :]

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
        band = _FIRST_RING + (n_rings - _FIRST_RING) * min(1, step / (_MARCH * self.n_steps))
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
