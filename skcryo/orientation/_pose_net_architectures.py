"""Networks from coefficients of images to poses. Their weights are arrays by name, kept apart from them."""

import numpy as np

from .._torch import import_torch
from ._pose_net_graph import O2GNN, GraphNetwork
from ._pose_net_layers import angular_activation, angular_linear, channel_norm, lift
from ._pose_net_so3 import SO3GNN

__all__ = ["ARCHITECTURES", "MLP", "MLPAttention", "O2MLP"]


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
    sees_others, n_frame = False, 0

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
        weights["head"] = 0.3 * random.standard_normal((C, 4)) / np.sqrt(C)
        weights |= {f"layer.{k}.bias": np.zeros(C) for k in range(len(self.bands))}
        weights["lift.bias"] = np.zeros(C)
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
        u = torch.einsum("pnc,cv->pnv", last[1], weights["head"])
        vectors = torch.stack([u[0], -u[1]], dim=-1)
        return vectors[:, :3], vectors[:, 3]


class MLP:
    """Multi-layer perceptron (section 4.2 of the paper) that knows nothing of turns in the plane.

    Parameters
    ----------
    sizes : list of int
        Number of coefficients of each angular frequency.
    n_channels : int, default=512
    """

    sees_others, n_frame = False, 0
    _n_layers = 6

    def __init__(self, sizes, n_channels=512):
        self.n_inputs = sum(sizes) * 2 - sizes[0]
        self.n_channels = n_channels

    def initial_weights(self, random):
        """As :meth:`O2MLP.initial_weights`."""
        widths = [self.n_inputs, *[self.n_channels] * (self._n_layers - 1), 8]
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
        return x[:, :6].view(-1, 3, 2), x[:, 6:]


class MLPAttention(GraphNetwork):
    """Multi-layer perceptron, then self-attention over images (section 4.2 of the paper).

    Two layers see each image by itself; then come four of attention, with four heads each, of all images to all, each
    followed by a perceptron of one hidden layer.

    Parameters
    ----------
    sizes : list of int
        Number of coefficients of each angular frequency.
    n_channels : int, default=128
    """

    n_frame = 0
    _n_layers, _n_heads = 4, 4

    def __init__(self, sizes, n_channels=128):
        self.n_inputs = sum(sizes) * 2 - sizes[0]
        self.n_channels = n_channels

    def initial_weights(self, random):
        """As :meth:`O2MLP.initial_weights`."""
        C = self.n_channels
        shapes = {"first": (self.n_inputs, C), "second": (C, C), "head": (C, 8)}
        for k in range(self._n_layers):
            shapes |= {f"query.{k}": (C, C), f"key.{k}": (C, C), f"value.{k}": (C, C), f"joined.{k}": (C, C)}
            shapes |= {f"wide.{k}": (C, 2 * C), f"narrow.{k}": (2 * C, C)}
        weights = {}
        for name, shape in shapes.items():
            weights[name] = random.standard_normal(shape) / np.sqrt(1 if name == "first" else shape[0])
            if name.split(".")[0] in ("first", "second", "head", "wide", "narrow"):
                weights[f"{name}.bias"] = np.zeros(shape[1])
        return {name: np.asarray(value, dtype=np.float32) for name, value in weights.items()}

    def _answer(self, weights, inputs, others):
        x = self._encode(weights, inputs)
        y = x if others is inputs else self._encode(weights, others)
        for k in range(self._n_layers):
            moved = self._layer(weights, k, x, y, alone=others is not inputs)
            y = moved if others is inputs else self._layer(weights, k, y, y, alone=False)
            x = moved
        out = _affine(weights, "head", _normal(x))
        return out[:, :6].view(-1, 3, 2), out[:, 6:]

    def _encode(self, weights, inputs):
        torch = import_torch("EquivariantPoseNet")
        x = torch.nn.functional.silu(_affine(weights, "first", inputs))
        return torch.nn.functional.silu(_affine(weights, "second", x))

    def _layer(self, weights, k, x, others, *, alone):
        """Attention of images to others; to themselves too if they are not among these."""
        torch = import_torch("EquivariantPoseNet")
        n, C = x.shape
        seen, own = _normal(others), _normal(x)
        query = (own @ weights[f"query.{k}"]).view(n, self._n_heads, -1).transpose(0, 1)
        names = f"key.{k}", f"value.{k}"
        keys, values = ((seen @ weights[name]).view(len(seen), self._n_heads, -1).transpose(0, 1) for name in names)
        scores = query @ keys.transpose(1, 2)
        if alone:
            key, value = ((own @ weights[name]).view(n, self._n_heads, -1).transpose(0, 1) for name in names)
            scores = torch.cat([scores, (query * key).sum(dim=2, keepdim=True)], dim=2)
        shares = torch.softmax(scores / np.sqrt(C / self._n_heads), dim=2)
        mean = shares[..., : len(seen)] @ values
        if alone:
            mean = mean + shares[..., -1:] * value
        x = x + mean.transpose(0, 1).reshape(n, C) @ weights[f"joined.{k}"]
        wide = torch.nn.functional.silu(_affine(weights, f"wide.{k}", _normal(x)))
        return x + _affine(weights, f"narrow.{k}", wide)


def _affine(weights, name, x):
    return x @ weights[name] + weights[f"{name}.bias"]


def _normal(x):
    """Features of each image with mean 0 and variance 1."""
    x = x - x.mean(dim=1, keepdim=True)
    return x / (x.square().mean(dim=1, keepdim=True) + 1e-6).sqrt()


ARCHITECTURES = {
    "mlp": MLP,
    "mlp-attention": MLPAttention,
    "o2-mlp": O2MLP,
    "o2-gnn": O2GNN,
    "so3-o2-gnn": SO3GNN,
}
