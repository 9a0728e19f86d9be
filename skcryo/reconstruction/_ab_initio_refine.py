"""From a first volume to poses: full search, Levenberg-Marquardt, new volume; noise and contrast on the way."""

import numpy as np
import scipy.fft

from ..alignment import PoseFit, refine_poses, search_poses, shift_grid
from ..fourier import shell_index
from ..metrics import fsc
from ..projection import VolumeProjector
from ..rotations import geodesic_distance, random_rotations, so3_grid
from ._ab_initio_start import signal_power
from ._accumulator import FourierAccumulator

__all__ = ["VolumeRefinement", "add_images", "best_contrast", "residual_power", "search_and_refine", "solve_volume"]

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
    if images.tilted is not None:
        for view in images.views(rotations, shifts):
            add_images(accumulator, *view, contrast=contrast, band=band, weights=weights, n_jobs=n_jobs)
        return
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
    if images.tilted is not None:
        views = images.views(rotations, shifts)
        return np.mean(
            [residual_power(view, projector, *own, contrast, band) for view, *own in views], axis=0
        )
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


def best_contrast(fit, prior):
    """The most probable contrast of each image.

    Parameters
    ----------
    fit : PoseFit
    prior : float or None
        Standard deviation of the contrast about 1; None gives ones.

    Returns
    -------
    ndarray of shape (n,)
    """
    if prior is None:
        return np.ones(len(fit.cross))
    # |y - a m|^2 + (a - 1)^2 / (2 prior^2), of complex noise of variance 1, is least at:
    tight = 0.5 / prior**2
    return np.clip((fit.cross + tight) / (fit.power + tight), 0.2, 3.0)


def search_and_refine(
    images, projector, *, max_shift, band, contrast=None, fit=None, contrast_std=None, n_side=4, n_psi=24,
    shift_step=1.3, n_best=8, n_steps=2, turn=None, n_jobs=None, device=None,
):
    """All poses of a grid for every image; the best few, and the present one, refined.

    Parameters
    ----------
    images : FourierImages
    projector : VolumeProjector
    max_shift : float
        Pixels.
    band : float
        Cycles per box.
    contrast, contrast_std
        As in :func:`skcryo.alignment.refine_poses`.
    fit : PoseFit, default=None
        The present poses, fitted against this volume at this band; changed in place.
    n_side, n_psi, shift_step
        Grid.
    n_best, n_steps : int
        Candidates that are refined, and by how many steps.
    turn : ndarray of shape (3, 3), default=None
        Turns the whole grid, so that another search looks between the poses of this one.
    n_jobs : int, default=None
    device : str or torch.device, default=None
        As in :func:`skcryo.alignment.search_poses`.

    Returns
    -------
    PoseFit
    """
    rotations, shifts = so3_grid(n_side, n_psi), shift_grid(max_shift, shift_step)
    if turn is not None:
        rotations = turn @ rotations
    options = {"band": band, "contrast": contrast, "contrast_std": contrast_std, "n_jobs": n_jobs}
    found = search_poses(images, projector, rotations, shifts, n_best=n_best, device=device, **options)
    for rank in range(found.rotation.shape[1]):
        at = shifts[found.shift[:, rank]].reshape(len(images), -1)
        new = refine_poses(
            images, projector, rotations[found.rotation[:, rank]], at, n_steps=n_steps, **options
        )
        if fit is None:
            fit = new
        else:
            fit.take_better(new)
    return fit


class VolumeRefinement:
    """Poses, shifts, contrast, noise and volume in turn, round by round.

    A round looks for better poses against the present volume, by a full search or from where they are, then
    fits each image's contrast and solves for the volume. The band of the next round is where the half maps still
    agree, and a little beyond. The noise's power is estimated again from residuals after every search: at the
    border of the images it contains what signal there is.

    Parameters
    ----------
    images : FourierImages
    volume : ndarray of shape (L', L', L')
        Where to start; its box may be smaller than that of the images.
    max_shift, mask_radius : float
        Pixels of the images.
    first_band : float
        Cycles per box; the band of `volume`.
    last_band : float or None
        Highest that a round may use; None: where half maps agree.
    contrast_prior : float or None
        See :func:`best_contrast`.
    half_sets : ndarray of shape (n,)
        0 or 1.
    n_jobs : int, default=None
    device : str or torch.device, default=None
        As in :func:`skcryo.alignment.search_poses`.

    Attributes
    ----------
    fit : PoseFit or None
    contrast : ndarray of shape (n,)
    volume : ndarray of shape (box, box, box)
    band : float
        Of the next round.
    round : int
    change : float
        Median change of the viewing direction in the last round, in degrees.
    noise : ndarray of shape (n_rings,)
        Power of the noise over what it was taken to be at first.
    """

    search_rounds = (0, 2, 4)
    search_band = 14.0

    def __init__(
        self, images, volume, *, max_shift, mask_radius, first_band, last_band, contrast_prior, half_sets, n_jobs=None,
        device=None,
    ):
        self._given, self.volume = images, volume
        self.images = images
        self.max_shift, self.mask_radius, self.contrast_prior = max_shift, mask_radius, contrast_prior
        top = float(images.radii[-1])
        self.last_band = top if last_band is None else min(last_band, top)
        self.band = min(first_band, self.last_band)
        self.half_sets, self.n_jobs, self.device = half_sets, n_jobs, device
        self.contrast = np.ones(len(images))
        self.fit = None
        self.round = 0
        self.change = np.inf
        self.noise = np.ones(int(images.rings.max()) + 1)
        self.power = signal_power(images)
        self.grid = {}
        # What half sets begin with: so little that what they then agree on is their own.
        self.coarse_band = self._coarsest = max(0.6 * self.band, 3.0)

    def run_round(self):
        """One round."""
        before = None if self.fit is None else self.fit.rotations.copy()
        projector = VolumeProjector(self.volume)
        searching = self.round in self.search_rounds
        options = {"band": self.band, "contrast_std": self.contrast_prior, "n_jobs": self.n_jobs}
        if searching:
            options["band"] = min(self.band, self.search_band)
        if self.fit is not None:
            self.fit = refine_poses(
                self.images, projector, self.fit.rotations, self.fit.shifts, n_steps=1 if searching else 3, **options
            )
        if searching:
            turn = random_rotations(1, self.round)[0]
            self.fit = search_and_refine(
                self.images, projector, max_shift=self.max_shift, fit=self.fit, turn=turn, device=self.device,
                **self.grid, **options,
            )
        contrast = best_contrast(self.fit, self.contrast_prior)
        self.contrast = contrast / contrast.mean()
        band = self.band
        self._solve(band)
        if searching:
            self._update_noise(band)
            self._solve(band)
        if before is not None:
            self.change = float(np.median(np.degrees(geodesic_distance(before, self.fit.rotations))))
        self.round += 1

    def _update_noise(self, band):
        rest = residual_power(
            self.images, VolumeProjector(self.volume), self.fit.rotations, self.fit.shifts, self.contrast, band
        )
        # Beyond the band there is no model: the images' own power is an upper bound.
        rings = np.arange(len(rest))
        known = int(band)
        ratio = np.where(rings <= known, rest, np.minimum(rest, rest[max(1, known - 3) : known + 1].mean()))
        self.noise = self.noise * ratio
        self._apply_noise()

    def _apply_noise(self):
        self.images = self._given.rescaled((1 / np.sqrt(self.noise))[self._given.rings])
        self.power = signal_power(self.images)

    def _solve(self, band):
        """Volume from the present poses, up to a little beyond `band`, and the band of the next round."""
        L = self.images.L
        top = min(band + 6, float(self.images.radii[-1]))
        box = min(2 * (int(np.ceil(top)) + 2), L)
        halves = [FourierAccumulator(box), FourierAccumulator(box)]
        for half, accumulator in enumerate(halves):
            rows = np.flatnonzero(self.half_sets == half)
            add_images(
                accumulator, self.images.take(rows), self.fit.rotations[rows], self.fit.shifts[rows],
                contrast=self.contrast[rows], band=top, n_jobs=self.n_jobs or 1,
            )
        radius = self.mask_radius * box / L
        agreement = fsc(*(solve_volume(half, self.power, top, radius) for half in halves))[: int(top) + 1]
        halves[0].merge(halves[1])
        self.volume = solve_volume(halves[0], self.power, top, radius)
        weak = np.flatnonzero(agreement[1:] < 0.5) + 1
        self.coarse_band = float(min(max((weak[0] if len(weak) else top) - 4, 3.0), self._coarsest))
        limit = (weak[0] if len(weak) else top) + 2
        self.band = float(min(max(limit, 4.0), band + 4, self.last_band))

    def low_passed(self):
        """The volume without what lies beyond `coarse_band`."""
        spectrum = scipy.fft.rfftn(self.volume)
        spectrum[shell_index(len(self.volume), 3, half=True) > self.coarse_band] = 0
        return scipy.fft.irfftn(spectrum, s=self.volume.shape).astype(np.float32)

    # ----------------------------------------------------------------------------------------- checkpoints
    def state(self):
        """(arrays, info) from which :meth:`restore` goes on."""
        names = ("rotations", "shifts", "error", "cross", "power")
        arrays = {} if self.fit is None else {f"fit_{name}": getattr(self.fit, name) for name in names}
        arrays |= {"contrast": self.contrast, "volume": self.volume, "noise": self.noise}
        names = ("band", "coarse_band", "round", "change")
        return arrays, {name: getattr(self, name) for name in names}

    def restore(self, arrays, info):
        """Go on from a :meth:`state`."""
        self.contrast, self.volume, self.noise = (arrays[name] for name in ("contrast", "volume", "noise"))
        for name, value in info.items():
            setattr(self, name, value)
        if "fit_rotations" in arrays:
            self.fit = PoseFit(*(arrays[f"fit_{name}"] for name in ("rotations", "shifts", "error", "cross", "power")))
        if (self.noise != 1).any():
            self._apply_noise()
