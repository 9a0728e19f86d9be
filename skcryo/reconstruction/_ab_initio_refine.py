"""From a first volume to poses: full search, Levenberg-Marquardt, new volume; noise and contrast on the way."""

import numpy as np

from ..alignment import refine_poses, search_poses, shift_grid
from ..projection import VolumeProjector
from ..rotations import so3_grid
from ._ab_initio_start import signal_power
from ._accumulator import FourierAccumulator

__all__ = ["VolumeRefinement", "add_images", "residual_power", "solve_volume"]

_CHUNK = 1000


def add_images(accumulator, images, rotations, shifts, *, contrast=None, band=None, weights=None, n_jobs=1):
    """Add images at known poses to the sums of a volume.

    Parameters
    ----------
    accumulator : FourierAccumulator
    images : FourierImages
    rotations, shifts : ndarray of shape (n, 3, 3) and (n, 2)
    contrast, weights : ndarray of shape (n,), default=None
    band : float, default=None
        Highest frequency, in cycles per box.
    n_jobs : int, default=1
    """
    n_points = len(images.points) if band is None else images.n_points(band)
    for start in range(0, len(images), _CHUNK):
        where = slice(start, min(start + _CHUNK, len(images)))
        part = images.take(where)
        filters = np.broadcast_to(part.filters[:, :n_points], (len(part), n_points))
        if contrast is not None:
            filters = filters * contrast[where, None].astype(np.float32)
        values = part.values[:, :n_points] * part.centred_phases(shifts[where], n_points) * filters
        squares = np.square(filters)
        if weights is not None:
            values *= weights[where, None].astype(np.float32)
            squares = squares * weights[where, None].astype(np.float32)
        accumulator.add(values, squares, rotations[where], images.points[:n_points], n_jobs=n_jobs)


def solve_volume(accumulator, power, band, mask_radius):
    """Wiener-filtered volume from sums, with the signal power of each ring as prior."""
    L = accumulator.L
    prior = 1 / np.interp(np.arange(L // 2 + 1), np.arange(len(power)), power)
    return accumulator.solve(prior, mask_radius=mask_radius, max_frequency=min(0.5, band / L))


def residual_power(images, projector, rotations, shifts, contrast, band):
    """Mean power in each ring of what the model leaves of the images; 1 where noise is as assumed.

    Beyond `band`, where there is no model, of the images themselves.

    Returns
    -------
    ndarray of shape (n_rings,)
    """
    total = np.zeros(len(images.points))
    n_points = images.n_points(band)
    for start in range(0, len(images), _CHUNK):
        where = slice(start, min(start + _CHUNK, len(images)))
        part = images.take(where)
        model = projector.slices(rotations[where], images.points[:n_points]) * part.filters[:, :n_points]
        model *= part.centred_phases(shifts[where], n_points).conj() * contrast[where, None].astype(np.float32)
        rest = part.values.copy()
        rest[:, :n_points] -= model
        total += np.square(np.abs(rest)).sum(axis=0, dtype=np.float64)
    n_rings = int(images.rings.max()) + 1
    counts = np.bincount(images.rings, minlength=n_rings)
    power = np.bincount(images.rings, total / len(images), minlength=n_rings)
    power = np.divide(power, counts, out=np.ones(n_rings), where=counts > 0)
    power[0] = power[1]
    return power


class VolumeRefinement:
    """Poses, shifts, contrast, noise and volume in turn.

    Parameters
    ----------
    images : FourierImages
    volume : ndarray of shape (L', L', L')
        Where to start; its box may be smaller than that of the images.
    band : float
        The band that `volume` has, in cycles per box.
    max_shift, mask_radius : float
        Pixels of the images.
    box : int
        Box of the volumes made; at least twice the last band and some.
    contrast_prior : float or None
        Standard deviation of the contrast about 1; None keeps it at 1.
    n_jobs : int

    Attributes
    ----------
    fit : PoseFit or None
    contrast : ndarray of shape (n,)
    volume : ndarray
    """

    def __init__(self, images, volume, band, *, max_shift, mask_radius, box, contrast_prior=0.2, n_jobs=None):
        self.images, self.volume, self.band = images, volume, band
        self.max_shift, self.mask_radius, self.box = max_shift, mask_radius, box
        self.contrast_prior, self.n_jobs = contrast_prior, n_jobs
        self.contrast = np.ones(len(images))
        self.fit = None
        self.power = signal_power(images)

    def search(self, *, band, n_side=4, n_psi=24, shift_step=1.3, n_best=3, n_steps=2):
        """All poses of a grid for every image; the best few, and the present one, refined."""
        images, projector = self.images, VolumeProjector(self.volume)
        rotations, shifts = so3_grid(n_side, n_psi), shift_grid(self.max_shift, shift_step)
        found = search_poses(
            images, projector, rotations, shifts, band=band, n_best=n_best, contrast=self.contrast, n_jobs=self.n_jobs
        )
        if self.fit is not None:
            self.local(band=band, n_steps=1)
        for rank in range(found.rotation.shape[1]):
            fit = refine_poses(
                images, projector, rotations[found.rotation[:, rank]], shifts[found.shift[:, rank]],
                contrast=self.contrast, band=band, n_steps=n_steps, n_jobs=self.n_jobs,
            )
            if self.fit is None:
                self.fit = fit
            else:
                self.fit.take_better(fit)

    def local(self, *, band, n_steps=3):
        """Levenberg-Marquardt from the present poses."""
        self.fit = refine_poses(
            self.images, VolumeProjector(self.volume), self.fit.rotations, self.fit.shifts,
            contrast=self.contrast, band=band, n_steps=n_steps, n_jobs=self.n_jobs,
        )

    def update_contrast(self):
        """The most probable contrast of each image, with mean 1."""
        if self.contrast_prior is None:
            return
        tight = 1 / self.contrast_prior**2
        contrast = (2 * self.fit.cross + tight) / (2 * self.fit.power + tight)
        contrast = np.clip(contrast, 0.2, 3.0)
        self.contrast = contrast / contrast.mean()

    def update_noise(self, *, band):
        """Units of the noise from the residuals of all rings."""
        rest = residual_power(
            self.images, VolumeProjector(self.volume), self.fit.rotations, self.fit.shifts, self.contrast, band
        )
        self.images = self.images.rescaled((1 / np.sqrt(rest))[self.images.rings])
        self.power = signal_power(self.images)

    def update_volume(self, *, band, weights=None):
        """Volume from the present poses."""
        accumulator = FourierAccumulator(self.box)
        add_images(
            accumulator, self.images, self.fit.rotations, self.fit.shifts,
            contrast=self.contrast, band=band, weights=weights, n_jobs=self.n_jobs or 1,
        )
        self.volume = solve_volume(accumulator, self.power, band, self.mask_radius * self.box / self.images.L)
        self.band = band
