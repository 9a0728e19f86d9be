"""Functions on SO(3) as features: global rotations act from the left, turns and mirror images of one from the right.

A channel is ``f(R) = sum_l sqrt(2 l + 1) sum_mn F^l_mn D^l_mn(R)``, l = 0, 1, 2, with real matrices D: 1, the rotation
itself, and what it does to symmetric matrices without trace. Features are tensors (35, n_images, n_channels): 1, 9 and
25 coefficients, column n by column. ``f(Q^-1 R M^-1)`` has ``D(Q) F D(M)^T``. What keeps to both groups: a matrix for
each l and kind of columns (those that O(2) does not mix), a constant added to l = 0, and any function of the values.
"""

from functools import lru_cache

import numpy as np

from .._torch import import_torch
from ..rotations import rotations_from_relion
from ._pose_net_graph import N_FRAME, MessagePassing, graph_edges
from ._pose_net_layers import angular_activation, angular_linear, channel_norm, lift

__all__ = ["SO3GNN", "rotation_functions", "so3_activation", "so3_linear", "so3_norm"]

_CALLER = "EquivariantPoseNet"
_SLICES = (slice(0, 1), slice(1, 10), slice(10, 35))
# Of each column the block of weights: l = 0; of l = 1 x, y, z; of l = 2 yz, xz, x^2 - y^2, xy, z^2.
_BLOCKS = ([0], [1, 1, 2], [3, 3, 4, 4, 5])
_N_BLOCKS = 6


def _symmetric_matrices():
    """Orthonormal symmetric matrices without trace: yz, xz, x^2 - y^2, xy, 2 z^2 - x^2 - y^2."""
    out = np.zeros((5, 3, 3))
    for k, (a, b) in ((0, (1, 2)), (1, (0, 2)), (3, (0, 1))):
        out[k, a, b] = out[k, b, a] = np.sqrt(0.5)
    out[2] = np.diag([1, -1, 0]) / np.sqrt(2)
    out[4] = np.diag([-1, -1, 2]) / np.sqrt(6)
    return out


_SYMMETRIC = _symmetric_matrices()


def rotation_functions(rotations):
    """Matrices D of rotations.

    Parameters
    ----------
    rotations : ndarray or tensor of shape (..., 3, 3)

    Returns
    -------
    list of three, of shapes (..., 1, 1), (..., 3, 3) and (..., 5, 5)
        Products of rotations have the products of these.
    """
    if isinstance(rotations, np.ndarray):
        basis, einsum, one = _SYMMETRIC, np.einsum, np.ones_like(rotations[..., :1, :1])
    else:
        torch = import_torch(_CALLER)
        basis = torch.as_tensor(_SYMMETRIC, dtype=rotations.dtype, device=rotations.device)
        einsum, one = torch.einsum, torch.ones_like(rotations[..., :1, :1])
    half = einsum("...ij,bjk->...bik", rotations, basis)
    turned = einsum("...bik,...lk->...bil", half, rotations)
    return [one, rotations, einsum("ail,...bil->...ab", basis, turned)]


@lru_cache(maxsize=16)
def _sampling(degree, dtype, device):
    """Values (n_samples, 35) of the functions on a product grid that integrates to this degree, and the way back."""
    torch = import_torch(_CALLER)
    n = degree + 1
    angles = 2 * np.pi * np.arange(n) / n
    nodes, shares = np.polynomial.legendre.leggauss((degree + 2) // 2)
    grid = np.stack(np.meshgrid(angles, np.arccos(nodes), angles, indexing="ij"), axis=-1).reshape(-1, 3)
    share = np.tile(np.repeat(shares / 2, n), n) / n**2
    functions = rotation_functions(rotations_from_relion(np.degrees(grid)))
    # columns first: (n_samples, column, row)
    values = [np.sqrt(D.shape[1]) * D.transpose(0, 2, 1).reshape(len(grid), -1) for D in functions]
    values = np.concatenate(values, axis=1)
    found = values, (values * share[:, None]).T
    return [torch.as_tensor(np.ascontiguousarray(part), dtype=dtype, device=device) for part in found]


def so3_activation(x, oversampling):
    """SiLU of the functions' values at rotations, and coefficients of what comes out.

    Parameters
    ----------
    x : tensor of shape (35, n, n_channels)
    oversampling : int
        Products of up to twice as many functions of l = 1 are integrated exactly. For functions of root mean square 1
        what comes out is 2 %, 0.6 %, 0.1 % and 2e-5 off equivariance with 3, 4, 5 and 8.

    Returns
    -------
    tensor of shape (35, n, n_channels)
    """
    torch = import_torch(_CALLER)
    values, back = _sampling(2 * oversampling, x.dtype, x.device)
    return (back @ torch.nn.functional.silu(values @ x.flatten(1))).view(x.shape)


def so3_linear(x, weight, bias):
    """A matrix for each l and kind of columns, and a bias at l = 0.

    Parameters
    ----------
    x : tensor of shape (35, n, n_in)
    weight : tensor of shape (6, n_in, n_out)
    bias : tensor of shape (n_out,)

    Returns
    -------
    tensor of shape (35, n, n_out)
    """
    torch = import_torch(_CALLER)
    n = x.shape[1]
    out = []
    for part, blocks in zip(_SLICES, _BLOCKS):
        y = x[part].reshape(len(blocks), -1, x.shape[2]) @ weight[blocks]
        out.append(y.reshape(-1, n, weight.shape[2]))
    return torch.cat([out[0] + bias, *out[1:]])


def so3_norm(x):
    """Features of each image divided by their root mean square over channels and rotations."""
    return x / (x.square().sum(dim=0).mean(dim=-1) + 1e-6).sqrt()[None, :, None]


class SO3GNN(MessagePassing):
    """Message passing with functions of rotations, equivariant to a rotation of all too (section 4.4 of the paper).

    Two layers equivariant under O(2) see each image by itself and give it functions on SO(3); that is where the frame
    of the poses comes from. The six layers of messages that follow know of none.

    Parameters
    ----------
    sizes : list of int
        Number of coefficients of each angular frequency.
    n_channels : int, default=16
        Functions on SO(3); the encoder has four times as many on the circle.
    n_neighbors : int, default=16
        Of the images of a batch.
    """

    def __init__(self, sizes, n_channels=16, n_neighbors=16):
        self.sizes, self.n_channels, self.n_neighbors = list(sizes), n_channels, n_neighbors

    def initial_weights(self, random):
        """As :meth:`O2MLP.initial_weights`."""
        C, E = self.n_channels, 4 * self.n_channels
        weights = {f"lift.{n}": random.standard_normal((size, E)) for n, size in enumerate(self.sizes)}
        weights["encoder"] = random.standard_normal((3, E, E)) / np.sqrt(E)
        for name, (frequency, n_rows) in _FROM_CIRCLE.items():
            if frequency < len(self.sizes):
                weights[name] = random.standard_normal((E, n_rows * C)) / np.sqrt(E)
        for k in range(self.n_layers):
            weights[f"layer.{k}"] = random.standard_normal((_N_BLOCKS, C, C)) / np.sqrt(C)
            weights[f"layer.{k}.bias"] = np.zeros(C)
        weights["head"] = 0.3 * random.standard_normal(C) / np.sqrt(C)
        weights |= {"lift.bias": np.zeros(E), "encoder.bias": np.zeros(E)}
        return {name: np.asarray(value, dtype=np.float32) for name, value in weights.items()}

    def _encode(self, weights, coefficients):
        torch = import_torch(_CALLER)
        lifts = [weights[f"lift.{n}"] for n in range(len(self.sizes))]
        x = channel_norm(lift(coefficients, lifts, weights["lift.bias"]))
        band = min(2, len(self.sizes) - 1)
        y = angular_activation(x, band, self.oversampling)
        y = channel_norm(angular_linear(y, weights["encoder"], weights["encoder.bias"])) + x[: band + 1]
        n, C = len(coefficients), self.n_channels

        def rows(name, part):
            """Features (n, E) of a column as its rows (2 l + 1, n, C)."""
            frequency, n_rows = _FROM_CIRCLE[name]
            if frequency > band:
                return part[0].new_zeros(n_rows, n, C)
            return (part[frequency] @ weights[name]).view(n, n_rows, C).transpose(0, 1)

        real, imaginary = y[:, 0], y[:, 1]
        columns = [
            rows("to.0", real),
            *(rows("to.1", real), -rows("to.1", imaginary)),
            y.new_zeros(3, n, C),  # the third axis changes sign with the mirror, as no feature of the encoder does
            *(rows("to.2.1", real), rows("to.2.1", imaginary)),
            *(rows("to.2.2", real), -rows("to.2.2", imaginary)),
            rows("to.2.0", real),
        ]
        return so3_norm(torch.cat(columns))

    def _edges(self, inputs, others, same):
        """Neighbours, their weights, and for each l matrices (n, 2 l + 1, k (2 l + 1)) that turn and add them."""
        torch = import_torch(_CALLER)
        frames = (part[:, -N_FRAME:] for part in (inputs, others))
        indices, weights, phase, sign = graph_edges(*frames, self.n_neighbors, same)
        c, s = phase.unbind(dim=2)
        zero = torch.zeros_like(c)
        # R_i = R_j M, the same as features of frequency 1 with columns x and y the real and minus the imaginary part
        entries = [c, -s, zero, s * sign, c * sign, zero, zero, zero, sign]
        relative = torch.stack(entries, dim=2).unflatten(2, (3, 3))
        turns = []
        for D in rotation_functions(relative):
            turn = (D * weights[:, :, None, None]).permute(0, 3, 1, 2)
            turns.append(turn.flatten(2))
        return indices, turns, 1 - weights.sum(dim=1)

    def _layer(self, weights, k, x, others, edges):
        mean = so3_messages(x, others, edges)
        y = so3_activation(mean, self.oversampling)
        return mean + so3_norm(so3_linear(y, weights[f"layer.{k}"], weights[f"layer.{k}.bias"]))

    def _head(self, weights, x):
        torch = import_torch(_CALLER)
        columns = (x[1:7] @ weights["head"]).view(2, 3, -1).permute(2, 1, 0)
        return columns, torch.zeros_like(columns[:, :2, 0])


def so3_messages(x, others, edges):
    """Mean over images and their neighbours, turned and mirrored as these are.

    Parameters
    ----------
    x : tensor of shape (35, n, n_channels)
    others : tensor of shape (35, m, n_channels)
    edges : indices (n, k), three tensors (n, 2 l + 1, k (2 l + 1)), own weights (n,)

    Returns
    -------
    tensor of shape (35, n, n_channels)
    """
    torch = import_torch(_CALLER)
    indices, turns, own = edges
    _, n, C = x.shape
    out = []
    for part, turn in zip(_SLICES, turns):
        size = turn.shape[1]
        y = others[part].view(size, size, -1, C).permute(2, 0, 1, 3).reshape(-1, size, size * C)
        seen = y.index_select(0, indices.reshape(-1)).reshape(n, -1, size * C)
        out.append((turn @ seen).view(n, size * size, C).transpose(0, 1))
    return own[None, :, None] * x + torch.cat(out)


# From features of the encoder, by frequency, to the rows of functions on SO(3).
_FROM_CIRCLE = {"to.0": (0, 1), "to.1": (1, 3), "to.2.0": (0, 5), "to.2.1": (1, 5), "to.2.2": (2, 5)}
