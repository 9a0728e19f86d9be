"""The choice between a pose and the same half a turn in the plane away (section 4 of the paper)."""

import numpy as np

from .._torch import import_torch

__all__ = ["HalfTurns"]

_TEMPERATURES, _EXPLORATION = (5.0, 0.1), 0.3  # at the start, and after this share of the steps
_N_HIDDEN = 32


class HalfTurns:
    """A network of poses with a branch that says how likely each is half a turn off.

    The branch is a perceptron of one hidden layer on the squares of the steerable coefficients, which no turn and no
    mirror image changes: equivariant networks stay so.

    Parameters
    ----------
    network : object
        Of :mod:`skcryo.orientation._pose_net_architectures`.
    sizes : list of int
        Number of coefficients of each angular frequency.
    """

    def __init__(self, network, sizes):
        self.network, self.sizes = network, list(sizes)
        self.sees_others, self.n_frame = network.sees_others, network.n_frame

    def initial_weights(self, random):
        """Those of the network, and of the branch."""
        weights, n = self.network.initial_weights(random), sum(self.sizes)
        shapes = {"half_turn.0": (n, _N_HIDDEN), "half_turn.1": (_N_HIDDEN, 1)}
        for name, shape in shapes.items():
            weights[name] = (random.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)
            weights[f"{name}.bias"] = np.zeros(shape[1], dtype=np.float32)
        return weights

    def odds(self, weights, inputs):
        """Log odds of half a turn, tensor of shape (n,)."""
        torch = import_torch("EquivariantPoseNet")
        sizes = [size for n, size in enumerate(self.sizes) for _ in range(1 + (n > 0))]
        parts = torch.split(inputs[:, : sum(sizes)].square(), sizes, dim=1)
        power = [parts[0]] + [parts[k] + parts[k + 1] for k in range(1, len(parts), 2)]
        x = torch.log(torch.cat(power, dim=1) + 1e-4)
        x = torch.nn.functional.silu(x @ weights["half_turn.0"] + weights["half_turn.0.bias"])
        return (x @ weights["half_turn.1"] + weights["half_turn.1.bias"])[:, 0]

    def __call__(self, weights, inputs):
        """Columns and shifts as of the network, turned where that is the likelier."""
        torch = import_torch("EquivariantPoseNet")
        columns, shifts = self.network(weights, inputs)
        turned = self.odds(weights, inputs) > 0
        return torch.where(turned[:, None, None], -columns, columns), shifts

    def drawn(self, weights, inputs, share, random):
        """As a call, but drawn by lot, by the Gumbel-softmax trick, so that gradients reach the odds.

        Parameters
        ----------
        weights : dict of str to tensor
        inputs : tensor of shape (n, n_inputs)
        share : float
            Of the steps that were taken: the temperature falls from 5 to 0.1 over the first 30 %.
        random : numpy.random.Generator
        """
        torch = import_torch("EquivariantPoseNet")
        columns, shifts = self.network(weights, inputs)
        first, last = _TEMPERATURES
        temperature = first * (last / first) ** min(1, share / _EXPLORATION)
        odds = self.odds(weights, inputs)
        noise = torch.as_tensor(random.logistic(size=len(odds)), dtype=odds.dtype, device=odds.device)
        soft = torch.sigmoid((odds + noise) / temperature)
        choice = (soft > 0.5).to(soft.dtype) + soft - soft.detach()
        return columns * (1 - 2 * choice)[:, None, None], shifts
