"""Latent coordinates otherwise than through the decoder: of principal volumes, or told by an encoder."""

import numpy as np

from .._torch import import_torch, to_numpy
from ..reconstruction._principal_volumes import _Data, _posterior, _products
from ._drgn_latents import Latents
from ._drgn_training import one_thread

__all__ = ["ComponentsPosterior", "EncoderPosterior"]

_CHUNK = 500


class ComponentsPosterior:
    """Coordinates on principal volumes, moved as :meth:`Latents.standardise` says.

    Parameters
    ----------
    components : PrincipalVolumes
    """

    def __init__(self, components):
        self.components = components
        z_dim = len(components.components)
        self.centre, self.inverse = np.zeros(z_dim), np.eye(z_dim)

    def move(self, centre, matrix):
        """As :meth:`LatentMixture.move`."""
        inverse = np.linalg.inv(matrix)
        self.centre, self.inverse = self.centre + np.linalg.solve(self.inverse, centre), inverse @ self.inverse

    def posterior(self, images, rotations, shifts, contrast):
        """As :meth:`LatentMixture.posterior`."""
        model, parts = self.components, []
        for start in range(0, len(images), _CHUNK):
            where = slice(start, min(start + _CHUNK, len(images)))
            data = _Data(images.take(where), rotations[where], shifts[where], contrast[where], model.band)
            moments = _products(data, [model.mean, *model.components], 1)
            mean, covariance, log_likelihood = _posterior(data.power, *moments, model.contrast_std)
            z = (mean[:, 1:] - self.centre) @ self.inverse.T
            spread = self.inverse @ covariance[:, 1:, 1:] @ self.inverse.T
            parts.append((z, spread, contrast[where] * mean[:, 0], log_likelihood + data.power))
        return Latents(*(np.concatenate(values) for values in zip(*parts)))


class EncoderPosterior:
    """Coordinates as an encoder tells them.

    Parameters
    ----------
    encoder : ImageEncoder
    decoder : VolumeDecoder
        With the weights of both networks.
    device : torch.device
    dtype : str
    """

    def __init__(self, encoder, decoder, device, dtype):
        self.encoder, self.decoder, self.device, self.dtype = encoder, decoder, device, dtype

    def posterior(self, images, rotations, shifts, contrast, *, ignore=False):
        """As :meth:`LatentMixture.posterior`; the log-likelihood is the evidence's lower bound (equation 9).

        Parameters
        ----------
        images, rotations, shifts, contrast : as there
        ignore : bool, default=False
            Whether the bound is that of coordinates 0 for all images, whatever the encoder says.
        """
        torch = import_torch("CryoDRGN")
        parts, decoder = [], self.decoder
        gain = decoder.gains(images.radii).astype(np.float32)
        points = images.points.astype(np.float32)
        with torch.inference_mode(), one_thread():
            weights = {name: torch.as_tensor(value, device=self.device) for name, value in decoder.weights.items()}
            for start in range(0, len(images), 16):
                where = slice(start, min(start + 16, len(images)))
                views = list(images.take(where).views(rotations[where], shifts[where]))
                seen = [view.values * view.centred_phases(own) for view, _, own in views]
                pairs = torch.view_as_real(torch.as_tensor(np.hstack(seen), device=self.device))
                mean, log_variance = self.encoder(weights, pairs, getattr(torch, self.dtype))
                mean, log_variance = (0 * mean, 0 * log_variance) if ignore else (mean, log_variance)
                explained = 0.0
                for (view, turned, _), values in zip(views, seen):
                    axes = np.asarray(turned, dtype=np.float32)[:, :, :2].swapaxes(1, 2)
                    slices = decoder.network(
                        weights, torch.as_tensor(points @ axes, device=self.device), mean, getattr(torch, self.dtype)
                    )
                    model = to_numpy(torch.view_as_complex(slices.contiguous())) * view.filters * gain
                    rest = values - model * contrast[where, None].astype(np.float32)
                    gained = np.square(np.abs(values)) - np.square(np.abs(rest))
                    explained = explained + gained.sum(axis=1, dtype=np.float64)
                mean, log_variance = to_numpy(mean).astype(float), to_numpy(log_variance).astype(float)
                divergence = (mean**2 + np.exp(log_variance) - 1 - log_variance).sum(axis=1) / 2
                spread = np.exp(log_variance)[:, :, None] * np.eye(mean.shape[1])
                parts.append((mean, spread, contrast[where], explained - divergence))
        return Latents(*(np.concatenate(values) for values in zip(*parts)))
