"""Networks from frequencies and latent coordinates to Fourier coefficients. Their weights are arrays by name."""

import numpy as np

from .._torch import import_torch

__all__ = ["ResidualDecoder"]

_LATENT_SCALE = 0.3  # of the first weights of z: so that volumes differ from the first step on


class ResidualDecoder:
    """Residual network on Gaussian random Fourier features of the frequency, on one half of Fourier space.

    Parameters
    ----------
    z_dim : int
        Latent coordinates; 0: one volume.
    n_features : int, default=256
        Frequencies of the features, each with its sine and cosine.
    width : int, default=256
    depth : int, default=2
        Residual layers.

    Notes
    -----
    A feature ``cos(2 pi k . x / L)`` of the frequency k is what a point at x looks like in Fourier space. So the x are
    drawn from a normal distribution as wide as the particle. Each hidden layer is ``relu((W + I) h + b)``, the residual
    folded into the weight, which saves a product; z enters as a bias of the first layer, the same for all frequencies
    of an image. Densities are real, ``F(-k) = conj F(k)``: the network is asked about one of the two alone.

    References
    ----------
    Tancik et al., "Fourier features let networks learn high frequency functions in low dimensional domains", NeurIPS
    (2020); Kinman, Powell, Zhong, Berger, Davis, "Uncovering structural ensembles from single-particle cryo-EM data
    using cryoDRGN", Nature Protocols 18 (2023), for what became of the decoder of the paper.
    """

    fixed = ("features",)  # drawn once, not trained
    # Images of a step, frequencies of each (None: all), rate of learning and whether it falls to zero.
    batch_size, n_points, learning_rate, decay = 16, 200, 1e-3, True

    def __init__(self, z_dim, n_features=256, width=256, depth=2):
        self.z_dim, self.n_features, self.width, self.depth = z_dim, n_features, width, depth

    def initial_weights(self, random, radius, L):
        """Weights to start training from.

        Parameters
        ----------
        random : numpy Generator
        radius : float
            Root mean square of the coordinates of the particle's density, from its centre, in pixels.
        L : int
            Box in pixels.

        Returns
        -------
        weights : dict of str to ndarray, float32
        """

        def layer(name, n_out, n_in, identity=False):
            bound = 1 / np.sqrt(n_in)
            weight = random.uniform(-bound, bound, (n_out, n_in))
            if identity:
                weight += np.eye(n_out)
            return {name: weight, f"{name}.bias": random.uniform(-bound, bound, n_out)}

        weights = {"features": random.standard_normal((3, self.n_features)) * (2 * np.pi * radius / L)}
        weights |= layer("layer.0", self.width, 2 * self.n_features)
        weights["latent"] = _LATENT_SCALE * random.standard_normal((self.width, self.z_dim))
        for number in range(1, self.depth + 1):
            weights |= layer(f"layer.{number}", self.width, self.width, identity=True)
        weights |= layer("head", 2, self.width)
        return {name: np.asarray(value, dtype=np.float32) for name, value in weights.items()}

    def __call__(self, weights, points, z, dtype):
        """Fourier coefficients.

        Parameters
        ----------
        weights : dict of str to tensor, float32
        points : tensor of shape (n, n_points, 3) or (1, n_points, 3), float32
            (kx, ky, kz) in cycles per box; one row if they are the same for all z.
        z : tensor of shape (n, z_dim), float32
        dtype : torch.dtype
            Of the products.

        Returns
        -------
        tensor of shape (n, n_points, 2), float32
            Real and imaginary part.
        """
        torch = import_torch("CryoDRGN")
        linear, relu = torch.nn.functional.linear, torch.nn.functional.relu
        sign = torch.where(points[..., 2:] > 0, -1.0, 1.0)
        angles = (points * sign) @ weights["features"]
        h = torch.cat([angles.sin().to(dtype), angles.cos().to(dtype)], dim=-1)
        h = linear(h, weights["layer.0"].to(dtype))
        h = relu(h + linear(z, weights["latent"], weights["layer.0.bias"]).to(dtype)[:, None])
        for number in range(1, self.depth + 1):
            h = relu(linear(h, weights[f"layer.{number}"].to(dtype), weights[f"layer.{number}.bias"].to(dtype)))
        out = linear(h, weights["head"].to(dtype), weights["head.bias"].to(dtype)).float()
        return torch.stack([out[..., 0], out[..., 1] * sign[..., 0]], dim=-1)

    def move_latents(self, weights, centre, matrix):
        """Weights for which latent coordinates are ``(z - centre) @ inv(matrix).T``, and volumes the same.

        Parameters
        ----------
        weights : dict of str to ndarray
        centre : ndarray of shape (z_dim,)
        matrix : ndarray of shape (z_dim, z_dim)

        Returns
        -------
        weights : dict of str to ndarray, float32
        """
        latent = weights["latent"].astype(np.float64)
        moved = {"latent": latent @ matrix, "layer.0.bias": weights["layer.0.bias"] + latent @ centre}
        return weights | {name: value.astype(np.float32) for name, value in moved.items()}
