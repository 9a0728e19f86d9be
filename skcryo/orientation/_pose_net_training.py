"""Training a network of poses: resumable, the same on any number of threads; and what it says of images."""

from contextlib import contextmanager

import numpy as np

from .._torch import import_torch, to_numpy
from ._pose_net_layers import nearest_frames

__all__ = ["BATCH", "PoseTraining", "ReprojectionLoss", "evaluate_network", "mixed_precision"]

_LEARNING_RATE, _WARM_UP = 1e-2, 50
BATCH = 128  # images of a step
_CHUNK = 500
_SHORT = 0.05


@contextmanager
def _one_thread():
    """Sums in one order, whatever number of threads torch would take."""
    torch = import_torch("EquivariantPoseNet")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def mixed_precision(device):
    """Products in bfloat16 on a GPU, within a ``with`` block; weights stay float32, and the CPU does all so."""
    torch = import_torch("EquivariantPoseNet")
    kind = torch.device(device).type
    return torch.autocast(kind, dtype=torch.bfloat16, enabled=kind == "cuda")


class PoseTraining:
    """Steps of Adam. The rate of learning rises over 50 steps and falls by a half cosine to zero.

    Parameters
    ----------
    weights : dict of str to ndarray
        To start from.
    loss : callable
        ``loss(weights, step, size, random)`` gives the loss of `size` images, a tensor of one number.
    n_steps : int
        In all.
    seed : int
        Images of each step follow from this and the step alone.
    device : torch.device
    learning_rate : float, default=0.01
        Largest.
    batch : int, default=128
        Images of a step.
    """

    def __init__(self, weights, loss, n_steps, seed, device, *, learning_rate=_LEARNING_RATE, batch=BATCH):
        self.torch = import_torch("EquivariantPoseNet")
        self.loss, self.n_steps, self.seed, self.device = loss, n_steps, seed, device
        self.learning_rate, self.batch = learning_rate, batch
        self._weights = {name: self._put(array).requires_grad_() for name, array in weights.items()}
        self.optimizer = self.torch.optim.Adam(self._weights.values(), lr=learning_rate)
        self.step = 0
        self.losses = []

    def run(self, n):
        """Take `n` steps, at most as many as are left."""
        with _one_thread():
            for _ in range(min(n, self.n_steps - self.step)):
                self._run_step()

    def _run_step(self):
        rate = min(1, (self.step + 1) / _WARM_UP) * (1 + np.cos(np.pi * self.step / self.n_steps)) / 2
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * rate
        loss = self.loss(self._weights, self.step, self.batch, np.random.default_rng([self.seed, self.step]))
        self.optimizer.zero_grad()
        loss.backward()
        self.torch.nn.utils.clip_grad_norm_(self._weights.values(), 1.0)
        self.optimizer.step()
        self.step += 1
        self.losses.append(loss.item())

    def _put(self, array):
        return self.torch.as_tensor(np.array(array, dtype=np.float32), device=self.device)

    @property
    def weights(self):
        """Present weights, dict of str to ndarray."""
        return {name: to_numpy(value).copy() for name, value in self._weights.items()}

    def state(self):
        """What a checkpoint holds: (arrays, info)."""
        arrays = {f"weight:{name}": value for name, value in self.weights.items()}
        for number, values in self.optimizer.state_dict()["state"].items():
            arrays |= {f"adam:{number}:{name}": to_numpy(value) for name, value in values.items()}
        return arrays, {"step": self.step, "losses": self.losses}

    def restore(self, arrays, info):
        """Go on from a state."""
        with self.torch.no_grad():
            for name, value in self._weights.items():
                value.copy_(self._put(arrays[f"weight:{name}"]))
        state = self.optimizer.state_dict()
        for key, value in arrays.items():
            if key.startswith("adam:"):
                _, number, name = key.split(":")
                state["state"].setdefault(int(number), {})[name] = self.torch.as_tensor(value)
        self.optimizer.load_state_dict(state)
        self.step, self.losses = info["step"], list(info["losses"])


class ReprojectionLoss:
    """Mean squared error of the columns of known poses, and of shifts.

    The network's columns come to be the expectation of ``R[:, :2]`` given the image: the shorter, the less is known.

    Parameters
    ----------
    network : callable
        Of :mod:`skcryo.orientation._pose_net_architectures`.
    draw : callable
        ``draw(n, random)`` gives coefficients (n, n_components), rotations (n, 3, 3), shifts (n, 2) of images.
    shift_scale : float
        Pixels; that shifts are counted in.
    device : torch.device
    """

    def __init__(self, network, draw, shift_scale, device):
        self.network, self.draw, self.shift_scale, self.device = network, draw, shift_scale, device

    def __call__(self, weights, step, size, random):
        """Loss of `size` images."""
        torch = import_torch("EquivariantPoseNet")
        coefficients, rotations, shifts = (
            torch.as_tensor(np.asarray(part, dtype=np.float32), device=self.device) for part in self.draw(size, random)
        )
        with mixed_precision(self.device):
            columns, moved = self.network(weights, coefficients)
        columns, moved = columns.float(), moved.float()
        loss = (columns - rotations[:, :, :2]).square().sum(dim=(1, 2)).mean()
        return loss + (moved - shifts / self.shift_scale).square().sum(dim=1).mean()


def evaluate_network(network, weights, coefficients, shift_scale, device):
    """Poses by the network.

    Parameters
    ----------
    network : callable
    weights : dict of str to ndarray
    coefficients : ndarray of shape (n, n_components), float32
    shift_scale : float
        Pixels.
    device : torch.device

    Returns
    -------
    rotations : ndarray of shape (n, 3, 3), float64
    shifts : ndarray of shape (n, 2), float64
        Pixels.
    squares : ndarray of shape (n, 2), float64
        Squared singular values of the columns, rising.
    """
    torch = import_torch("EquivariantPoseNet")
    n = len(coefficients)
    columns, moved = np.empty((n, 3, 2)), np.empty((n, 2))

    def evaluate(rows, dtype):
        put = {name: torch.as_tensor(array, dtype=dtype, device=device) for name, array in weights.items()}
        for start in range(0, len(rows), _CHUNK):
            part = rows[start : start + _CHUNK]
            x = torch.as_tensor(coefficients[part], dtype=dtype, device=device)
            columns[part], moved[part] = map(to_numpy, network(put, x))

    def squared_values():
        return np.maximum(np.linalg.eigvalsh(np.swapaxes(columns, 1, 2) @ columns), 0)

    with torch.no_grad(), _one_thread():  # not inference_mode: layers keep tensors, and training may go on
        evaluate(np.arange(n), torch.float32)
        # Of short columns rounding would make large differences, other ones in other batches.
        evaluate(np.flatnonzero(squared_values()[:, 0] < _SHORT), torch.float64)
        rotations = to_numpy(nearest_frames(torch.as_tensor(columns)))
    return rotations, moved * shift_scale, squared_values()
