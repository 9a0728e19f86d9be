"""The network of poses that passes messages between images alike (section 4.4 of the paper), equivariant under O(2)."""

import numpy as np

from .._torch import import_torch
from ._pose_net_layers import angular_activation, angular_linear, channel_norm, lift

__all__ = ["N_FRAME", "O2GNN", "GraphNetwork", "graph_edges"]

N_FRAME = 6  # numbers of the values of three eigenvectors at an image
_CALLER = "EquivariantPoseNet"


def graph_edges(frames, others, n_neighbors, same):
    """Nearest images and how they are turned, by the leading eigenvectors (footnote 11 of the paper).

    Weights fall to nought at the first image that is no longer among the nearest, so that nothing jumps where two are
    equally near.

    Parameters
    ----------
    frames : tensor of shape (n, 6)
        Values (3, 2) of the eigenvectors at images.
    others : tensor of shape (m, 6)
        At those that messages come from.
    n_neighbors : int
        m - 1 at most.
    same : bool
        Whether both are the same images; none is its own neighbour then.

    Returns
    -------
    indices : tensor of shape (n, k), int64
    weights : tensor of shape (n, k)
        Of sum 1 together with that of an image itself, which is as large as the largest.
    phase : tensor of shape (n, k, 2)
        Cosine and sine of p: features of frequency f of the image are ``exp(i f p)`` times those of its neighbour.
    sign : tensor of shape (n, k)
        -1 where the neighbour is mirrored first.
    """
    torch = import_torch(_CALLER)
    first, second = frames.view(-1, 3, 2), others.view(-1, 3, 2)
    m = len(second)
    block = (second.permute(0, 2, 1).reshape(2 * m, 3) @ first.permute(1, 0, 2).reshape(3, -1)).view(m, 2, -1, 2)
    block = block.permute(2, 0, 1, 3)  # (n, m, 2, 2): of psi_j^T psi_i
    nearness = (block[..., 0, 0] * block[..., 1, 1] - block[..., 0, 1] * block[..., 1, 0]).abs()
    if same:
        nearness = nearness - 2 * torch.eye(m, dtype=nearness.dtype, device=nearness.device)
    k = max(min(n_neighbors, m - 1 - same), 0)
    nearest, indices = nearness.topk(k + 1, dim=1)
    weights = nearest[:, :k] - nearest[:, k:]
    indices = indices[:, :k]
    own = weights[:, :1] if k else torch.ones_like(nearest)
    weights = weights / (weights.sum(dim=1, keepdim=True) + own).clamp_min(1e-12)
    block = block.gather(1, indices[:, :, None, None].expand(-1, -1, 2, 2))
    a, b, c, d = block.flatten(2).unbind(dim=2)
    sign = torch.where(a * d - b * c < 0, -1.0, 1.0).to(a.dtype)
    phase = torch.stack([a + sign * d, sign * c - b], dim=2)
    return indices, weights, phase / phase.norm(dim=2, keepdim=True).clamp_min(1e-12), sign


class GraphNetwork:
    """What networks that see other images have in common.

    In training, images of a batch see each other. Afterwards each image sees groups of fitted images alone, each group
    as large as a batch, and answers are averaged: so they do not depend on what else is asked.

    Attributes
    ----------
    groups : list of ndarray of shape (m, n_inputs) or None
        Inputs of fitted images. None in training.
    """

    sees_others = True
    groups = None

    def __call__(self, weights, inputs):
        """As :meth:`skcryo.orientation._pose_net_architectures.O2MLP.__call__`, of inputs (n, n_inputs)."""
        torch = import_torch(_CALLER)
        if self.groups is None:
            return self._answer(weights, inputs, inputs)
        total = None
        for group in self.groups:
            others = torch.as_tensor(group, dtype=inputs.dtype, device=inputs.device)
            parts = self._answer(weights, inputs, others)
            total = parts if total is None else [a + b for a, b in zip(total, parts)]
        return [part / len(self.groups) for part in total]


class MessagePassing(GraphNetwork):
    """Encoder, layers of messages, and a head; images are given by coefficients and :data:`N_FRAME` numbers."""

    n_frame = N_FRAME
    n_layers = 6
    oversampling = 3

    def _answer(self, weights, inputs, others):
        same = others is inputs
        x = self._encode(weights, inputs[:, :-N_FRAME])
        edges = self._edges(inputs, others, same)
        if not same:
            y, inner = self._encode(weights, others[:, :-N_FRAME]), self._edges(others, others, True)
        for k in range(self.n_layers):
            if same:
                x = self._layer(weights, k, x, x, edges)
            else:
                x, y = self._layer(weights, k, x, y, edges), self._layer(weights, k, y, y, inner)
        return self._head(weights, x)


class O2GNN(MessagePassing):
    """Message passing between images alike, equivariant to turns and mirror images of each (section 4.4 of the paper).

    Two layers see each image by itself, then come six of equation 20: of each feature the mean over the image and its
    neighbours, turned and mirrored as these are, then a layer of :class:`O2MLP`, added to that mean.

    Parameters
    ----------
    sizes : list of int
        Number of coefficients of each angular frequency.
    n_channels : int, default=64
    band : int, default=2
        Highest frequency of features after the encoder.
    n_neighbors : int, default=16
        Of the images of a batch.
    """

    def __init__(self, sizes, n_channels=64, band=2, n_neighbors=16):
        self.sizes, self.n_channels, self.n_neighbors = list(sizes), n_channels, n_neighbors
        self.band = min(band, len(sizes) - 1)

    def initial_weights(self, random):
        """As :meth:`O2MLP.initial_weights`."""
        C, n_bands = self.n_channels, self.band + 1
        weights = {f"lift.{n}": random.standard_normal((size, C)) for n, size in enumerate(self.sizes)}
        for k in range(self.n_layers + 1):
            weights[f"layer.{k}"] = random.standard_normal((n_bands, C, C)) / np.sqrt(C)
            weights[f"layer.{k}.bias"] = np.zeros(C)
        weights["head"] = 0.3 * random.standard_normal((C, 4)) / np.sqrt(C)
        weights["lift.bias"] = np.zeros(C)
        return {name: np.asarray(value, dtype=np.float32) for name, value in weights.items()}

    def _encode(self, weights, coefficients):
        lifts = [weights[f"lift.{n}"] for n in range(len(self.sizes))]
        x = channel_norm(lift(coefficients, lifts, weights["lift.bias"]))
        return self._mixed(weights, self.n_layers, x) + x[: self.band + 1]

    def _mixed(self, weights, k, x):
        y = angular_activation(x, self.band, self.oversampling)
        return channel_norm(angular_linear(y, weights[f"layer.{k}"], weights[f"layer.{k}.bias"]))

    def _edges(self, inputs, others, same):
        """Neighbours, their weights, and for each frequency matrices (n, 2, 2 k) that turn and add them."""
        torch = import_torch(_CALLER)
        frames = (part[:, -N_FRAME:] for part in (inputs, others))
        indices, weights, phase, sign = graph_edges(*frames, self.n_neighbors, same)
        cosine, sine = torch.ones_like(weights), torch.zeros_like(weights)
        turns = []
        for _ in range(self.band + 1):
            rows = [torch.stack([cosine, -sine * sign], dim=2), torch.stack([sine, cosine * sign], dim=2)]
            turns.append((torch.stack(rows, dim=1) * weights[:, None, :, None]).flatten(2))
            c, s = phase.unbind(dim=2)
            cosine, sine = cosine * c - sine * s, sine * c + cosine * s
        return indices, torch.stack(turns), 1 - weights.sum(dim=1)

    def _layer(self, weights, k, x, others, edges):
        indices, turns, own = edges
        n_frequencies, _, n, C = x.shape
        seen = others.transpose(1, 2).index_select(1, indices.reshape(-1)).reshape(n_frequencies, n, -1, C)
        mean = own[None, None, :, None] * x + (turns @ seen).transpose(1, 2)
        return mean + self._mixed(weights, k, mean)

    def _head(self, weights, x):
        torch = import_torch(_CALLER)
        last = angular_activation(x, 1, self.oversampling)
        u = torch.einsum("pnc,cv->pnv", last[1], weights["head"])
        vectors = torch.stack([u[0], -u[1]], dim=-1)
        return vectors[:, :3], vectors[:, 3]
