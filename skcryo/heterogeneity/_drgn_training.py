"""Training of a decoder on images of known poses: resumable, the same on any number of threads."""

from contextlib import contextmanager

import numpy as np

from .._torch import import_torch, to_numpy

__all__ = ["DecoderTraining", "one_thread", "product_dtype"]

_WARM_UP = 0.05  # of the training


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
    """Steps of Adam on few images and random frequencies; the rate rises, then falls by half a cosine if it is to.

    Parameters
    ----------
    network : ResidualDecoder or HartleyDecoder
    weights : dict of str to ndarray
        To start from.
    images : FourierImages
        In units of their noise. Of pairs a step sees half as many particles.
    rotations, shifts : ndarray of shape (n, 3, 3) and (n, 2), or (n, 4) of pairs
    gain : ndarray of shape (n_points,)
        Coefficient of a slice over what the network says.
    seed : int
        All that is random in a step follows from this and the step's number.
    device : torch.device
    dtype : str
        Of the products; weights are float32.
    encoder : ImageEncoder, default=None
        Whose weights are among `weights`. Given, it says in each step where the latents lie, and the loss has the
        divergence of its posterior from the prior (equation 9 of the paper).
    rows : ndarray of shape (m,), default=None
        The images that are trained on; None: all.

    Notes
    -----
    How many steps there are decides, not how many frequencies there are in each: they are a random 200 of those of 16
    images. Latents are drawn from the images' posteriors in each step, which makes it stochastic
    expectation-maximisation.
    """

    def __init__(
        self, network, weights, images, rotations, shifts, gain, seed, device, dtype, encoder=None, rows=None,
    ):  # fmt: skip
        self.torch = import_torch("CryoDRGN")
        self.network, self.images, self.seed, self.device = network, images, seed, device
        self.encoder, self.rows = encoder, np.arange(len(images)) if rows is None else rows
        self.set_poses(rotations, shifts)
        self.gain = np.asarray(gain, dtype=np.float32)
        self.points = images.points.astype(np.float32)
        self.dtype = getattr(self.torch, dtype)
        self.batch_size = max(network.batch_size // images.n_views, 1)
        self._order = (-1, None)
        self.step, self.losses = 0, []
        self.weights = weights

    def set_poses(self, rotations, shifts):
        """Replace the images' poses."""
        self.rotations, self.shifts = rotations, shifts
        views = self.images.views(rotations, shifts)
        self.views = [(view, turned.astype(np.float32)[:, :, :2], own) for view, turned, own in views]

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
        self.optimizer = self.torch.optim.Adam(trained, lr=self.network.learning_rate, fused=True)

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

    def _batch(self):
        n, size = len(self.rows), self.batch_size
        epoch, batch = divmod(self.step, max(n // size, 1))
        if self._order[0] != epoch:
            self._order = (epoch, self.rows[np.random.default_rng([self.seed, 1, epoch]).permutation(n)])
        return np.sort(self._order[1][batch * size : (batch + 1) * size])

    def _run_step(self, latents, fraction):
        random = np.random.default_rng([self.seed, 2, self.step])
        rows, n_points = self._batch(), len(self.points)
        columns = np.arange(n_points)
        if self.network.n_points is not None and n_points > self.network.n_points:
            columns = np.sort(random.choice(n_points, self.network.n_points, replace=False))
        wanted, divergence = self._centred(rows, columns), 0.0
        if self.encoder is None:
            z = self._put(latents.draw(rows, random))
        else:
            seen = wanted if len(columns) == n_points else self._centred(rows, np.arange(n_points))
            seen = self.torch.cat(seen.split(len(rows)), dim=1)
            mean, log_variance = self.encoder(self._weights, seen, self.dtype)
            noise = self._put(random.standard_normal(mean.shape))
            z = mean + noise * (log_variance / 2).exp()
            divergence = (mean.square() + log_variance.exp() - 1 - log_variance).sum() / 2
        loss = (self._model(rows, columns, z, latents) - wanted).square().mean()
        # Squared residuals are minus the log-likelihood: the noise of a complex number has variance 1.
        total = loss + divergence / (2 * n_points * len(wanted))
        falling = (1 + np.cos(np.pi * min(fraction, 1.0))) / 2 if self.network.decay else 1.0
        for group in self.optimizer.param_groups:
            group["lr"] = self.network.learning_rate * min(1.0, (fraction + 1e-3) / _WARM_UP) * falling
        self.optimizer.zero_grad()
        total.backward()
        self.optimizer.step()
        self.step += 1
        self.losses.append(loss.item())

    def residual_power(self, latents, n_points, n_images=500):
        """What the network leaves of images at their coordinates, by ring.

        Parameters
        ----------
        latents : Latents
        n_points : int
            How many points of each image, from the first.
        n_images : int, default=500
            At most, evenly chosen.

        Returns
        -------
        ndarray of shape (n_rings,), float64
            Mean power in present units: 1 where only noise is left; never below. Ring 0 repeats ring 1.
        """
        rings, columns = self.images.rings[:n_points], np.arange(n_points)
        chosen = np.unique(np.linspace(0, len(self.images) - 1, n_images).astype(int))
        power = np.zeros(n_points)
        with self.torch.inference_mode(), one_thread():
            for start in range(0, len(chosen), 16):
                rows = chosen[start : start + 16]
                left = self._model(rows, columns, self._put(latents.mean[rows]), latents) - self._centred(rows, columns)
                power += to_numpy(left.square().sum(dim=(0, 2)))
        counts = np.maximum(np.bincount(rings), 1)
        power = np.bincount(rings, power) / (counts * len(chosen) * self.images.n_views)
        power[0] = power[1]
        return np.maximum(power, 1.0)

    def _model(self, rows, columns, z, latents):
        """What the network says of images at points, as pairs of real numbers; of tilt pairs first all first images."""
        factors, where = [], []
        for view, axes, _ in self.views:
            filters = view.filters
            filters = filters[:, columns] if len(filters) == 1 else filters[rows[:, None], columns]
            factors.append(filters * self.gain[columns] * latents.contrast[rows, None].astype(np.float32))
            where.append(self.points[columns] @ axes[rows].swapaxes(1, 2))
        z = z.repeat(len(self.views), 1)
        found = self.network(self._weights, self._put(np.concatenate(where)), z, self.dtype)
        return found * self._put(np.concatenate(factors))[..., None]

    def _put(self, array):
        return self.torch.as_tensor(array, dtype=self.torch.float32, device=self.device)

    def _centred(self, rows, columns):
        """Coefficients of images without their shifts, in the order of :meth:`_model`."""
        centred = []
        for view, _, shifts in self.views:
            angles = (2 * np.pi / view.L) * (shifts[rows] @ self.points[columns].T)
            centred.append(view.values[rows[:, None], columns] * np.exp(1j * angles).astype(np.complex64))
        return self.torch.view_as_real(self.torch.as_tensor(np.concatenate(centred), device=self.device))

    def state(self):
        """What a checkpoint holds: (arrays, info)."""
        arrays = {f"weight:{name}": value for name, value in self.weights.items()}
        for number, values in self.optimizer.state_dict()["state"].items():
            arrays |= {f"adam:{number}:{name}": to_numpy(value) for name, value in values.items()}
        arrays |= {"rotations": self.rotations, "shifts": self.shifts}
        return arrays, {"step": self.step, "losses": self.losses}

    def restore(self, arrays, info):
        """Go on from a state."""
        self.set_poses(arrays["rotations"], arrays["shifts"])
        self.weights = {key.split(":")[1]: value for key, value in arrays.items() if key.startswith("weight:")}
        state = self.optimizer.state_dict()
        for key, value in arrays.items():
            if key.startswith("adam:"):
                _, number, name = key.split(":")
                state["state"].setdefault(int(number), {})[name] = self.torch.as_tensor(value)
        self.optimizer.load_state_dict(state)
        self.step, self.losses = info["step"], list(info["losses"])
