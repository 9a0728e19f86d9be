"""The networks of the paper: a decoder in Hartley space with geometric positional encoding, an image encoder."""

import numpy as np

from .._torch import import_torch

__all__ = ["HartleyDecoder", "ImageEncoder"]

_LAYERS, _WIDTH = 10, 128
_KEPT = 0.9  # of the frequencies of the positional encoding, where there is noise: section 3.1 of the paper


def _mlp(random, name, n_in, n_out):
    """Weights of ten hidden layers of 128 (He initialisation) and a linear one."""
    widths = [n_in, *[_WIDTH] * _LAYERS, n_out]
    weights = {}
    for number, (fan_in, fan_out) in enumerate(zip(widths[:-1], widths[1:])):
        last = number == _LAYERS
        weights[f"{name}.{number}"] = random.standard_normal((fan_out, fan_in)) * np.sqrt((1 if last else 2) / fan_in)
        weights[f"{name}.{number}.bias"] = np.zeros(fan_out)
    return {key: np.asarray(value, dtype=np.float32) for key, value in weights.items()}


def _run_mlp(weights, name, h, dtype, first=0):
    torch = import_torch("CryoDRGN")
    for number in range(first, _LAYERS + 1):
        h = torch.nn.functional.linear(
            h, weights[f"{name}.{number}"].to(dtype), weights[f"{name}.{number}.bias"].to(dtype)
        )
        h = torch.relu(h) if number < _LAYERS else h
    return h.float()


class HartleyDecoder:
    """Multi-layer perceptron of ten hidden layers of 128 from positional encoding and z to Hartley coefficients.

    Parameters
    ----------
    z_dim : int

    Notes
    -----
    Equations 7 and 8 without the highest tenth of the frequencies, as the paper has it for noisy images. The network
    is asked about k and -k, which is what a loss over a whole lattice in Hartley space comes to; z enters the first
    layer as a bias, which is the same as one more column of each pixel.
    """

    fixed = ("waves",)
    batch_size, n_points, learning_rate, decay = 10, None, 1e-4, False

    def __init__(self, z_dim):
        self.z_dim = z_dim

    def initial_weights(self, random, radius, L):
        """As :meth:`ResidualDecoder.initial_weights`; `radius` plays no part."""
        n_waves = max(1, round(_KEPT * (L // 2)))
        waves = np.pi * (2 / L) ** (2 * np.arange(L // 2, L // 2 - n_waves, -1) / L)  # without the highest
        weights = _mlp(random, "layer", 6 * n_waves + self.z_dim, 1)
        first = weights["layer.0"]
        weights["latent"] = np.ascontiguousarray(first[:, 6 * n_waves :])
        weights["layer.0"] = np.ascontiguousarray(first[:, : 6 * n_waves])
        return weights | {"waves": waves.astype(np.float32)}

    def __call__(self, weights, points, z, dtype):
        """As :meth:`ResidualDecoder.__call__`."""
        torch = import_torch("CryoDRGN")
        linear = torch.nn.functional.linear
        angles = (points[..., None] * weights["waves"]).flatten(-2)
        values = []
        for sign in (1, -1):
            h = torch.cat([sign * angles.sin(), angles.cos()], dim=-1).to(dtype)
            h = linear(h, weights["layer.0"].to(dtype))
            h = torch.relu(h + linear(z, weights["latent"], weights["layer.0.bias"]).to(dtype)[:, None])
            values.append(_run_mlp(weights, "layer", h, dtype, first=1)[..., 0])
        # H = Re F - Im F
        return torch.stack([(values[0] + values[1]) / 2, (values[1] - values[0]) / 2], dim=-1)

    def move_latents(self, weights, centre, matrix):
        """As :meth:`ResidualDecoder.move_latents`."""
        latent = weights["latent"].astype(np.float64)
        moved = {"latent": latent @ matrix, "layer.0.bias": weights["layer.0.bias"] + latent @ centre}
        return weights | {name: value.astype(np.float32) for name, value in moved.items()}


class ImageEncoder:
    """Multi-layer perceptron from the coefficients of a centred image to mean and log-variance of its z.

    Parameters
    ----------
    z_dim : int
    n_points : int
        Coefficients of an image on the half plane.
    """

    _LEAST, _MOST = -12.0, 6.0  # of the log-variance

    def __init__(self, z_dim, n_points):
        self.z_dim, self.n_points = z_dim, n_points

    def initial_weights(self, random):
        """Weights to start training from, dict of str to ndarray, float32; `random` is a numpy Generator."""
        return _mlp(random, "encoder", 2 * self.n_points, 2 * self.z_dim)

    def __call__(self, weights, images, dtype):
        """Posterior of z.

        Parameters
        ----------
        weights : dict of str to tensor
        images : tensor of shape (n, n_points, 2), float32
        dtype : torch.dtype

        Returns
        -------
        mean, log_variance : tensor of shape (n, z_dim), float32
        """
        out = _run_mlp(weights, "encoder", images.flatten(1).to(dtype), dtype)
        return out[:, : self.z_dim], out[:, self.z_dim :].clamp(self._LEAST, self._MOST)
