"""Training of a decoder on images of known poses: resumable, the same on any number of threads."""

from contextlib import contextmanager

import numpy as np

from .._torch import import_torch, to_numpy

__all__ = ["BATCH", "DecoderTraining", "one_thread", "product_dtype"]

BATCH, N_POINTS = 16, 200  # images of a step, and frequencies of each
_LEARNING_RATE, _WARM_UP = 1e-3, 0.05


@contextmanager
def one_thread():
    """Sums in one order, whatever number of threads torch would take."""
    torch = import_torch("CryoDRGN")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def product_dtype(device):
    """Name of the dtype of fast products: bfloat16 where the processor has them, else float32."""
    torch = import_torch("CryoDRGN")
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    # Emulated, they are slower than those of float32; what cannot be asked does not have them.
    asked = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return "bfloat16" if any(ask() for ask in asked if ask is not None) else "float32"


class DecoderTraining:
    """Steps of Adam on few images and random frequencies; the rate rises, then falls by half a cosine to zero.

    Parameters
    ----------
    network : ResidualDecoder
    weights : dict of str to ndarray
        To start from.
    images : FourierImages
        In units of their noise.
    rotations, shifts : ndarray of shape (n, 3, 3) and (n, 2)
    gain : ndarray of shape (n_points,)
        Coefficient of a slice over what the network says.
    seed : int
        All that is random in a step follows from this and the step's number.
    device : torch.device
    dtype : str
        Of the products; weights are float32.

    Notes
    -----
    How many steps there are decides, not how many frequencies there are in each: they are a random 200 of those of 16
    images. Latents are drawn from the images' posteriors in each step, which makes it stochastic
    expectation-maximisation.
    """

    def __init__(self, network, weights, images, rotations, shifts, gain, seed, device, dtype):
        self.torch = import_torch("CryoDRGN")
        self.network, self.images, self.seed, self.device = network, images, seed, device
        self.axes = np.asarray(rotations, dtype=np.float32)[:, :, :2]
        self.shifts, self.gain = shifts, np.asarray(gain, dtype=np.float32)
        self.points = images.points.astype(np.float32)
        self.dtype = getattr(self.torch, dtype)
        self._order = (-1, None)
        self.step, self.losses = 0, []
        self.weights = weights

    @property
    def weights(self):
        """Present weights, dict of str to ndarray."""
        return {name: to_numpy(value).copy() for name, value in self._weights.items()}

    @weights.setter
    def weights(self, weights):
        put = {name: self.torch.tensor(np.array(value), device=self.device) for name, value in weights.items()}
        if hasattr(self, "_weights"):
            with self.torch.no_grad():
                for name, value in put.items():
                    self._weights[name].copy_(value)
            return
        self._weights = put
        trained = [value.requires_grad_() for name, value in put.items() if name not in self.network.fixed]
        trained = [value for value in trained if value.numel()]
        self.optimizer = self.torch.optim.Adam(trained, lr=_LEARNING_RATE, fused=True)

    def run(self, n, latents, fraction):
        """Take `n` steps.

        Parameters
        ----------
        n : int
        latents : Latents
            Posterior of each image.
        fraction : callable
            Of the step's number: how much of the training is over, from 0 to 1.
        """
        with one_thread():
            for _ in range(n):
                self._run_step(latents, fraction(self.step))

    def _rows(self, size):
        n = len(self.images)
        n_batches = max(n // size, 1)
        epoch, batch = divmod(self.step, n_batches)
        if self._order[0] != epoch:
            self._order = (epoch, np.random.default_rng([self.seed, 1, epoch]).permutation(n))
        return np.sort(self._order[1][batch * size : (batch + 1) * size])

    def _run_step(self, latents, fraction):
        torch, random = self.torch, np.random.default_rng([self.seed, 2, self.step])
        rows = self._rows(BATCH)
        columns = np.arange(len(self.points))
        if len(columns) > N_POINTS:
            columns = np.sort(random.choice(len(columns), N_POINTS, replace=False))
        points = self.points[columns]
        phases = np.exp(2j * np.pi / self.images.L * (self.shifts[rows] @ points.T)).astype(np.complex64)
        values = self.images.values[rows[:, None], columns] * phases
        filters = self.images.filters
        filters = filters[:, columns] if len(filters) == 1 else filters[rows[:, None], columns]
        filters = filters * self.gain[columns] * latents.contrast[rows, None].astype(np.float32)
        z = latents.draw(rows, random)
        where, filters, z = (
            torch.as_tensor(part, dtype=torch.float32, device=self.device)
            for part in (points @ self.axes[rows].swapaxes(1, 2), filters, z)
        )
        wanted = torch.view_as_real(torch.as_tensor(values, device=self.device))
        found = self.network(self._weights, where, z, self.dtype) * filters[..., None]
        loss = (found - wanted).square().mean()
        rate = min(1.0, (fraction + 1e-3) / _WARM_UP) * (1 + np.cos(np.pi * min(fraction, 1.0))) / 2
        for group in self.optimizer.param_groups:
            group["lr"] = _LEARNING_RATE * rate
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.step += 1
        self.losses.append(loss.item())

    def state(self):
        """What a checkpoint holds: (arrays, info)."""
        arrays = {f"weight:{name}": value for name, value in self.weights.items()}
        for number, values in self.optimizer.state_dict()["state"].items():
            arrays |= {f"adam:{number}:{name}": to_numpy(value) for name, value in values.items()}
        return arrays, {"step": self.step, "losses": self.losses}

    def restore(self, arrays, info):
        """Go on from a state."""
        self.weights = {key.split(":")[1]: value for key, value in arrays.items() if key.startswith("weight:")}
        state = self.optimizer.state_dict()
        for key, value in arrays.items():
            if key.startswith("adam:"):
                _, number, name = key.split(":")
                state["state"].setdefault(int(number), {})[name] = self.torch.as_tensor(value)
        self.optimizer.load_state_dict(state)
        self.step, self.losses = info["step"], list(info["losses"])
