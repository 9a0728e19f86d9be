"""Latent coordinates of images: their posterior through the volumes that the decoder makes."""

from dataclasses import dataclass

import numpy as np
from sklearn.cluster import KMeans

from ..projection import VolumeProjector
from ..reconstruction._principal_volumes import _Data, _posterior

__all__ = ["LatentMixture", "Latents"]

_SPREAD = 2.0  # covariance of a component over that of its images about its centre: components overlap
_LEAST_SD = 0.02
_CHUNK = 500
_LOCAL = 4  # components whose slopes are looked at, of each image
_LEAST_IMAGES = 20  # of a component, on average
_LEAST_SHARE = 0.1  # of a component, over that of all being equal


@dataclass
class Latents:
    """Posterior of the latent coordinates of images.

    Attributes
    ----------
    mean : ndarray of shape (n, z_dim), float64
    covariance : ndarray of shape (n, z_dim, z_dim), float64
    contrast : ndarray of shape (n,), float64
    log_likelihood : ndarray of shape (n,), float64 or None
        Of each image with z integrated out, above that of no particle.
    """

    mean: np.ndarray
    covariance: np.ndarray
    contrast: np.ndarray
    log_likelihood: np.ndarray | None = None

    def draw(self, rows, random):
        """Coordinates of images drawn from their posteriors, ndarray of shape (len(rows), z_dim)."""
        mean = self.mean[rows]
        values, vectors = np.linalg.eigh(self.covariance[rows])
        noise = random.standard_normal(mean.shape) * np.sqrt(np.maximum(values, 0))
        return mean + (vectors @ noise[:, :, None])[..., 0]

    def standardise(self):
        """Move to mean 0 and, posterior widths counted, covariance 1, in place.

        Returns
        -------
        centre : ndarray of shape (z_dim,)
        matrix : ndarray of shape (z_dim, z_dim)
            Coordinates before are ``centre + matrix @ z``.
        """
        centre = self.mean.mean(axis=0)
        matrix = np.linalg.cholesky(np.atleast_2d(self.total_covariance()))
        inverse = np.linalg.inv(matrix)
        self.mean = (self.mean - centre) @ inverse.T
        self.covariance = inverse @ self.covariance @ inverse.T
        return centre, matrix

    def total_covariance(self):
        """Covariance of the coordinates of all images, posterior widths counted."""
        moved = self.mean - self.mean.mean(axis=0)
        return moved.T @ moved / len(moved) + self.covariance.mean(axis=0)


class LatentMixture:
    """Volumes about which the decoder is taken to be linear, each with its share of the images.

    The prior of z is a mixture of normal distributions about centres of the images' coordinates; within each the
    decoder is replaced by its volume at the centre and its slopes. So the posterior of z is a mixture of normal
    distributions too, each in closed form, with the image's contrast beside z.

    Parameters
    ----------
    centres : ndarray of shape (K, z_dim)
    spread : ndarray of shape (z_dim, z_dim)
        Columns whose products are the covariance of each component.
    shares : ndarray of shape (K,)
    volumes : ndarray of shape (K, 1 + z_dim, box, box, box)
        At the centre, and slopes along `spread`.
    band : float
        Cycles per box.
    contrast_std : float
    noise : ndarray of shape (n_rings,), default=None
        Power of what no volume explains, by ring; None: 1.
    """

    def __init__(self, centres, spread, shares, volumes, band, contrast_std, noise=None):
        self.noise = np.ones(int(np.ceil(band)) + 2) if noise is None else noise
        self.centres, self.spread, self.shares = centres, spread, shares
        self.volumes, self.band, self.contrast_std = volumes, band, contrast_std

    @classmethod
    def from_latents(cls, latents, decode, n_centres, band, contrast_std, seed, noise=None):
        """Components where the coordinates of images are.

        Parameters
        ----------
        latents : Latents
        decode : callable
            From coordinates (m, z_dim) to volumes (m, box, box, box) with frequencies up to `band`.
        n_centres : int
            At most.
        band : float
            Cycles per box.
        contrast_std : float
            What contrasts may be off by.
        seed : int
        noise : ndarray of shape (n_rings,), default=None
            As of the class.

        Returns
        -------
        LatentMixture
        """
        n, z_dim = latents.mean.shape
        if z_dim == 0:
            centres, labels = np.zeros((1, 0)), np.zeros(n, dtype=int)
        else:
            distinct = len(np.unique(latents.mean, axis=0))
            n_centres = max(1, min(n_centres, distinct, n // _LEAST_IMAGES))
            found = KMeans(n_centres, n_init=1, random_state=seed).fit(latents.mean)
            centres, labels = found.cluster_centers_.astype(np.float64), found.labels_
        away = latents.mean - centres[labels]
        within = _SPREAD * away.T @ away / n + _LEAST_SD**2 * np.eye(z_dim)
        spread = np.linalg.cholesky(within) if z_dim else within
        shares = np.bincount(labels, minlength=len(centres)) / n + _LEAST_SHARE / len(centres)
        volumes = []
        for centre in centres:
            ends = decode(np.concatenate([centre + spread.T, centre - spread.T, centre[None]]))
            slopes = 0.5 * (ends[:z_dim] - ends[z_dim : 2 * z_dim])
            volumes.append(np.concatenate([ends[-1:], slopes]))
        return cls(centres, spread, shares / shares.sum(), np.stack(volumes), band, contrast_std, noise)

    def nearest(self, z):
        """Component whose centre is nearest to each of some coordinates (n, z_dim), ndarray of int."""
        if z.shape[1] == 0:
            return np.zeros(len(z), dtype=int)
        away = np.linalg.solve(self.spread, (z[:, None] - self.centres).reshape(-1, z.shape[1]).T)
        return np.square(away).sum(axis=0).reshape(len(z), -1).argmin(axis=1)

    def move(self, centre, matrix):
        """Count coordinates as :meth:`Latents.standardise` left them, in place."""
        inverse = np.linalg.inv(matrix)
        self.centres = (self.centres - centre) @ inverse.T
        self.spread = inverse @ self.spread

    def posterior(self, images, rotations, shifts, contrast):
        """Posterior of each image's coordinates; that of one does not depend on the others.

        Parameters
        ----------
        images : FourierImages
        rotations, shifts : ndarray of shape (n, 3, 3) and (n, 2)
        contrast : ndarray of shape (n,)

        Returns
        -------
        Latents
        """
        n, (K, z_dim) = len(images), self.centres.shape
        projectors = [[VolumeProjector(volume) for volume in volumes] for volumes in self.volumes]
        log_share = np.log(self.shares)
        n_points = images.n_points(self.band)
        factors = 1 / np.sqrt(np.interp(images.radii, np.arange(len(self.noise)), self.noise))
        log_noise = -2 * images.n_views * np.log(factors[:n_points]).sum()
        out = Latents(np.zeros((n, z_dim)), np.zeros((n, z_dim, z_dim)), np.array(contrast), np.zeros(n))
        for start in range(0, n, _CHUNK):
            where = slice(start, min(start + _CHUNK, n))
            part = images.take(where)
            rows = np.arange(where.start, where.stop)
            no_particle = 0.0
            for view, _, _ in part.views(rotations[where], shifts[where]):
                no_particle = no_particle + np.square(np.abs(view.values[:, :n_points])).sum(axis=1, dtype=np.float64)
            data = _Data(part.rescaled(factors), rotations[where], shifts[where], contrast[where], self.band)
            at_centre = np.stack([_moments(data, slice(None), group[:1], self.contrast_std)[2] for group in projectors])
            chosen = np.argsort(-(at_centre + log_share[:, None]), axis=0, kind="stable")[:_LOCAL].T
            mean = np.zeros((len(rows), K, 1 + z_dim))
            covariance = np.zeros((len(rows), K, 1 + z_dim, 1 + z_dim))
            evidence = np.full((len(rows), K), -np.inf)
            for k in range(K):
                members = np.flatnonzero((chosen == k).any(axis=1))
                if len(members):
                    found = _moments(data, members, projectors[k], self.contrast_std)
                    mean[members, k], covariance[members, k], evidence[members, k] = found
            evidence = evidence + log_share
            best = evidence.max(axis=1, keepdims=True)
            weights = np.exp(evidence - best)
            total = weights.sum(axis=1, keepdims=True)
            weights /= total
            z = self.centres + mean[:, :, 1:] @ self.spread.T
            out.mean[where] = (weights[:, :, None] * z).sum(axis=1)
            away = z - out.mean[where][:, None]
            local = self.spread @ covariance[:, :, 1:, 1:] @ self.spread.T + away[..., None] * away[..., None, :]
            out.covariance[where] = (weights[..., None, None] * local).sum(axis=1)
            out.contrast[where] *= (weights * mean[:, :, 0]).sum(axis=1)
            out.log_likelihood[where] = (best + np.log(total))[:, 0] + no_particle - log_noise
        return out


def _moments(data, rows, projectors, contrast_std):
    """Posterior of contrast and local coordinates of some images under one component, and their evidence."""
    return _posterior(data.power[rows], *data.moments(projectors, rows), contrast_std)
