"""Networks from coefficients of images to poses. Their weights are arrays by name, kept apart from them."""

import numpy as np

from .._torch import import_torch
from ._pose_net_layers import angular_activation, angular_linear, channel_norm, lift

__all__ = ["ARCHITECTURES", "MLP", "O2MLP"]


class O2MLP:
    """Equivariant multi-layer perceptron (section 4.3 of the paper), each image by itself.

    Parameters
    ----------
    sizes : list of int
        Number of coefficients of each angular frequency.
    n_channels : int, default=64
    bands : tuple of int, default=(6, 4, 3, 2)
        Highest frequency of the features after each layer.

    Attributes
    ----------
    oversampling : int
        Of :func:`angular_activation`: 3 will do for training, and one more may be taken for the same weights later.
    """

    oversampling = 3

    def __init__(self, sizes, n_channels=64, bands=(6, 4, 3, 2)):
        self.sizes, self.n_channels = list(sizes), n_channels
        self.bands = [min(band, len(sizes) - 1) for band in bands]

    def initial_weights(self, random):
        """Weights to start training from, dict of str to ndarray, float32; `random` is a numpy Generator."""
        C = self.n_channels
        # Not divided by the number of components: those of more variance are to count more, and all are of one scale.
        weights = {f"lift.{n}": random.standard_normal((size, C)) for n, size in enumerate(self.sizes)}
        for k, band in enumerate(self.bands):
            weights[f"layer.{k}"] = random.standard_normal((band + 1, C, C)) / np.sqrt(C)
        weights["head"] = 0.3 * random.standard_normal((2, C, 5)) / np.sqrt(C)
        weights |= {f"layer.{k}.bias": np.zeros(C) for k in range(len(self.bands))}
        weights |= {"lift.bias": np.zeros(C), "head.bias": np.zeros(5)}
        return {name: np.asarray(value, dtype=np.float32) for name, value in weights.items()}

    def __call__(self, weights, coefficients):
        """Poses by the network.

        Parameters
        ----------
        weights : dict of str to tensor
        coefficients : tensor of shape (n, n_components)

        Returns
        -------
        columns : tensor of shape (n, 3, 2)
            The first two of rotations, not orthonormal.
        shifts : tensor of shape (n, 2)
        turned : tensor of shape (n,)
            Log odds that the pose is half a turn in the plane away.
        """
        torch = import_torch("EquivariantPoseNet")
        lifts = [weights[f"lift.{n}"] for n in range(len(self.sizes))]
        x = channel_norm(lift(coefficients, lifts, weights["lift.bias"]))
        for k, band in enumerate(self.bands):
            y = angular_activation(x, band, self.oversampling)
            y = angular_linear(y, weights[f"layer.{k}"], weights[f"layer.{k}.bias"])
            x = channel_norm(y) + x[: band + 1]
        # x - i y turns by exp(-i a), as coefficients of frequency 1 do
        last = angular_activation(x, 1, self.oversampling)
        invariant, u = angular_linear(last, weights["head"], weights["head.bias"])
        vectors = torch.stack([u[0], -u[1]], dim=-1)
        return vectors[:, :3], vectors[:, 3], invariant[0, :, 4]


class MLP:
    """Multi-layer perceptron (section 4.2 of the paper) that knows nothing of turns in the plane.

    Parameters
    ----------
    sizes : list of int
        Number of coefficients of each angular frequency.
    n_channels : int, default=512
    """

    _n_layers = 6

    def __init__(self, sizes, n_channels=512):
        self.n_inputs = sum(sizes) * 2 - sizes[0]
        self.n_channels = n_channels

    def initial_weights(self, random):
        """As :meth:`O2MLP.initial_weights`."""
        widths = [self.n_inputs, *[self.n_channels] * (self._n_layers - 1), 9]
        weights = {}
        for k, (n_in, n_out) in enumerate(zip(widths[:-1], widths[1:])):
            weights[f"layer.{k}"] = random.standard_normal((n_in, n_out)) / np.sqrt(n_in if k else 1)
            weights[f"layer.{k}.bias"] = np.zeros(n_out)
        return {name: np.asarray(value, dtype=np.float32) for name, value in weights.items()}

    def __call__(self, weights, coefficients):
        """As :meth:`O2MLP.__call__`."""
        torch = import_torch("EquivariantPoseNet")
        x = coefficients
        for k in range(self._n_layers):
            x = x @ weights[f"layer.{k}"] + weights[f"layer.{k}.bias"]
            if k < self._n_layers - 1:
                x = torch.nn.functional.silu(x)
        return x[:, :6].view(-1, 3, 2), x[:, 6:8], x[:, 8]


ARCHITECTURES = {"mlp": MLP, "o2-mlp": O2MLP}
