"""What is known before a decoder is trained: the mean volume, contrasts, first latent coordinates."""

import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from ..alignment import refine_poses
from ..projection import VolumeProjector
from ..reconstruction._ab_initio_refine import add_images, solve_volume
from ..reconstruction._ab_initio_start import signal_power
from ..reconstruction._accumulator import FourierAccumulator
from ..reconstruction._principal_volumes import coordinates, principal_volumes
from ._consensus import contrast_scatter
from ._drgn_latents import Latents

__all__ = ["Contrasts", "first_latents", "particle_radius"]

_SCATTER, _CONTRAST_STD = 0.06, 0.2  # of contrasts: from where on each image has its own, and what is expected then
_COMPONENTS_BAND = 10.0  # cycles per box
_MOST = 10000  # images that components are learnt from
_CHUNK = 1000


class Contrasts:
    """Contrast of each image, by the mean volume of all.

    Attributes
    ----------
    mean : ndarray of shape (box, box, box), float32
        The volume; frequencies up to `band`.
    scattered : bool
        Whether contrasts differ by more than noise makes of one; else they are taken to be 1.
    """

    def __init__(self, mean, band, scattered, n_jobs):
        self.mean, self.band, self.scattered, self.n_jobs = mean, band, scattered, n_jobs

    @classmethod
    def from_images(cls, images, rotations, shifts, mask_radius, band, n_jobs):
        """Learnt from images in units of their noise, whose poses are known; `mask_radius` is in their pixels."""
        sums = FourierAccumulator(2 * (int(np.ceil(band)) + 2))
        add_images(sums, images, rotations, shifts, band=band, n_jobs=n_jobs)
        mean = solve_volume(sums, signal_power(images), band, mask_radius * sums.L / images.L)
        found = cls(mean, band, False, n_jobs)
        found.scattered = contrast_scatter(found._fit(images, rotations, shifts)) > _SCATTER
        return found

    def _fit(self, images, rotations, shifts):
        return refine_poses(
            images, VolumeProjector(self.mean), rotations, shifts, band=self.band, n_steps=0, n_jobs=self.n_jobs
        )

    def __call__(self, images, rotations, shifts):
        """Contrasts of images, ndarray of shape (n,): the most probable ones, or 1."""
        if not self.scattered:
            return np.ones(len(images))
        fit = self._fit(images, rotations, shifts)
        prior = 0.5 / _CONTRAST_STD**2
        return np.maximum((fit.cross + prior) / (fit.power + prior), 0.1)


def particle_radius(volume, L):
    """Root mean square of the coordinates of a volume's density, from the centre, in pixels of a box of `L`."""
    box = len(volume)
    squares = ((np.arange(box) - box // 2) * (L / box)) ** 2
    density = np.square(np.maximum(volume, 0))
    total = density.sum()
    if not total > 0:
        return L / 8
    sums = [density.sum(axis=axes) @ squares for axes in ((1, 2), (0, 2), (0, 1))]
    return float(np.sqrt(np.sum(sums) / total / 3))


def first_latents(images, rotations, shifts, contrast, z_dim, mask_radius, seed, n_jobs):
    """Coordinates of images on the principal volumes of (at most 10 000 of) them.

    Parameters
    ----------
    images : FourierImages
    rotations, shifts, contrast : ndarray of shape (n, 3, 3), (n, 2) and (n,)
    z_dim : int
    mask_radius : float
        Pixels.
    seed : int
    n_jobs : int

    Returns
    -------
    latents : Latents
    components : PrincipalVolumes or None
    """
    n = len(images)
    if z_dim == 0:
        return Latents(np.zeros((n, 0)), np.zeros((n, 0, 0)), contrast), None
    rows = np.arange(n)
    if n > _MOST:
        rows = np.sort(np.random.default_rng([seed, 3]).choice(n, _MOST, replace=False))
    part = images if len(rows) == n else images.take(rows)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a start need not have converged
        found = principal_volumes(
            part, rotations[rows], shifts[rows], contrast[rows], n_components=z_dim,
            band=min(_COMPONENTS_BAND, float(images.radii[-1])), mask_radius=mask_radius, random_state=seed,
            n_jobs=n_jobs,
        )  # fmt: skip
    if len(rows) == n:
        return Latents(found.coordinates, found.covariance, contrast), found
    mean, covariance = np.empty((n, z_dim)), np.empty((n, z_dim, z_dim))
    for start in range(0, n, _CHUNK):
        where = slice(start, min(start + _CHUNK, n))
        own = images.take(where), rotations[where], shifts[where], contrast[where]
        mean[where], covariance[where] = coordinates(*own, found, n_jobs=n_jobs)
    return Latents(mean, covariance, contrast), found
