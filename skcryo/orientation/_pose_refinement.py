"""Poses that are nearly right, refined against the volume that the images make at them."""

import numpy as np

from ..alignment import FourierImages, PoseFit, refine_poses, search_poses, shift_grid
from ..projection import VolumeProjector
from ..reconstruction._ab_initio_refine import (
    add_images,
    best_contrast,
    residual_power,
    search_and_refine,
    solve_volume,
)
from ..reconstruction._ab_initio_start import signal_power
from ..reconstruction._accumulator import FourierAccumulator
from ..rotations import geodesic_distance, random_rotations, so3_grid

__all__ = ["PoseRefinement", "moved_back", "search_everywhere"]

_CHUNK = 1000
_FIRST_BAND, _BAND_STEP = 8.0, 4.0  # cycles per box
_FIRST_SEARCH, _SEARCH_BAND = 2, 14.0
_FAR, _FEW = 20.0, 0.005  # degrees, and the share of images found farther away that is worth another search
# Of the noise's power, in rings where no signal is seen: many such rings tell of poses all the same.
_LEAST_POWER = 0.01
_CONTRAST_STD = 0.2
# Of the signal's power, which the volume's prior counts on: an image is compared with a volume that holds its own
# noise, and poses are 1 to 3 % better if it is smoothed a little more than for its own sake (0.1: worse again).
_SIGNAL_SHARE = 0.3
# What search_everywhere tries, and the log-likelihood that a pose adds below which there may be a better one.
_GRID, _SHIFT_STEP, _N_GRIDS, _N_CANDIDATES, _N_STEPS, _DOUBTFUL = (4, 24), 1.3, 3, 4, 4, 40.0
_FIT = ("rotations", "shifts", "error", "cross", "power")
_COUNTERS = ("round", "change", "_first_change", "_next_search", "lost")


def moved_back(images, shifts):
    """Images with shifts undone.

    Parameters
    ----------
    images : FourierImages
    shifts : ndarray of shape (n_images, 2)
        (x, y) in pixels.

    Returns
    -------
    FourierImages
    """
    values = np.empty_like(images.values)
    for start in range(0, len(values), _CHUNK):
        where = slice(start, start + _CHUNK)
        values[where] = images.values[where] * images.centred_phases(shifts[where])
    return FourierImages(values, images.filters, images.points, images.L)


def search_everywhere(images, projector, max_shift, *, fit=None, n_jobs=None):
    """The best of poses from all over, each refined: more thorough, and slower, than :func:`search_and_refine`.

    Three grids, turned so that each looks between the poses of the others; of each the best four at 14 cycles per box,
    judged at all frequencies.

    Parameters
    ----------
    images : FourierImages
    projector : VolumeProjector
    max_shift : float
        Pixels.
    fit : PoseFit, default=None
        Poses that are kept where none is better, fitted against this volume at all frequencies; changed in place.
    n_jobs : int, default=None

    Returns
    -------
    PoseFit
    """
    shifts, top = shift_grid(max_shift, _SHIFT_STEP), float(images.radii[-1])
    shared = {"contrast_std": _CONTRAST_STD, "n_jobs": n_jobs}
    for turn in random_rotations(_N_GRIDS, 1):
        rotations = turn @ so3_grid(*_GRID)
        found = search_poses(
            images, projector, rotations, shifts, band=min(_SEARCH_BAND, top), n_best=_N_CANDIDATES, **shared
        )
        for rank in range(found.rotation.shape[1]):
            places = rotations[found.rotation[:, rank]], shifts[found.shift[:, rank]]
            new = refine_poses(images, projector, *places, band=top, n_steps=_N_STEPS, **shared)
            if fit is None:
                fit = new
            else:
                fit.take_better(new)
    return fit


class PoseRefinement:
    """Poses and the volume that they make, in turn, from poses such as common lines give.

    A round makes the volume of all images at their poses, up to a band that rises by four cycles per box, and takes a
    Levenberg-Marquardt step of each pose, shift and contrast. Once the band is fine enough, a round looks for better
    poses on a grid over all of them, for the images whose lines told nothing, and estimates the noise again from
    residuals; so does every other one that follows as long as more than five images in a thousand are found far away.
    In the end the band is all that the images hold, rings without visible signal among them: their weight in the volume
    is small, but of a density whose spectrum hardly falls they tell of poses, which else drift apart from each other.

    In contrast to the refinement of an ab initio volume it begins where poses are, not with a volume, and is made for
    their accuracy: dividing sums on a grid makes a volume that is wrong by some per cent between the slices it was made
    of, which holds poses where they are. So the volume's own slices are put through the same sums, and what comes out
    wrong of them is taken off: noiseless poses then settle within 0.03 degrees instead of 0.3, and those at a
    signal-to-noise ratio of 0.5 come 7 % closer.

    Parameters
    ----------
    images : FourierImages
        Known shifts undone.
    rotations : ndarray of shape (n, 3, 3)
    shifts : ndarray of shape (n, 2)
        Where to start, in pixels.
    max_shift, mask_radius : float
        Pixels of the images; shifts are searched for within `max_shift` of 0, about an origin for which they are least.
    tol, least : float, default=0.1 and 0.01
        Poses have settled if they move by less than the share `tol` of what they moved in the first round, or by less
        than `least` degrees.
    n_jobs : int, default=None
        Threads; the result does not depend on it.
    device : str or torch.device, default=None
        As in :func:`skcryo.alignment.search_poses`.

    Attributes
    ----------
    fit : PoseFit
    contrast : ndarray of shape (n,)
        Of mean 1.
    volume : ndarray of shape (box, box, box)
        Of the poses before the last round.
    round : int
    change : float
        Median change of poses in the last round, in degrees.
    lost : float or None
        Share of images that the first search found more than 20 degrees away; None before.
    noise : ndarray of shape (n_rings,)
        Power of the noise over what it was taken to be at first.
    """

    def __init__(
        self, images, rotations, shifts, *, max_shift, mask_radius, tol=0.1, least=0.01, n_jobs=None, device=None
    ):
        n = len(images)
        self._given = self.images = images
        self.max_shift, self.mask_radius = max_shift, mask_radius
        self.tol, self.least, self.n_jobs, self.device = tol, least, n_jobs, device
        self.fit = PoseFit(np.array(rotations), np.array(shifts), np.full(n, np.inf), np.zeros(n), np.ones(n))
        self.contrast = np.ones(n)
        self.power = signal_power(images, _LEAST_POWER)
        self.noise = np.ones(int(images.rings.max()) + 1)
        self.volume = None
        self.round, self.change, self._first_change = 0, np.inf, np.inf
        self._next_search, self.lost = _FIRST_SEARCH, None

    @property
    def settled(self):
        """Whether poses hardly move any more, and there was a search for others."""
        return self.round > self._next_search + 1 and self.change < max(self.tol * self._first_change, self.least)

    def run_round(self):
        """One round."""
        before = self.fit.rotations.copy()
        band = min(_FIRST_BAND + _BAND_STEP * self.round, float(self.images.radii[-1]))
        self._recentre()
        self.volume = self.solve(band)
        projector = VolumeProjector(self.volume)
        options = {"band": band, "contrast_std": _CONTRAST_STD, "n_jobs": self.n_jobs}
        searching = self.round == self._next_search
        if searching:
            options["band"] = min(band, _SEARCH_BAND)
        self.fit = refine_poses(self.images, projector, self.fit.rotations, self.fit.shifts, n_steps=1, **options)
        if searching:
            self.fit = search_and_refine(
                self.images,
                projector,
                max_shift=self.max_shift,
                fit=self.fit,
                turn=random_rotations(1, self.round)[0],
                n_best=1 if self.round == _FIRST_SEARCH else 3,
                device=self.device,
                **options,
            )
        contrast = best_contrast(self.fit, _CONTRAST_STD)
        self.contrast = contrast / contrast.mean()
        if searching:
            self._update_noise(projector, options["band"])
        moved = np.degrees(geodesic_distance(before, self.fit.rotations))
        if searching:
            far = float((moved > _FAR).mean())
            self.lost = far if self.lost is None else self.lost
            if far > _FEW:
                self._next_search += 2
        self.change = float(np.median(moved))
        if self.round == 0:
            self._first_change = self.change
        self.round += 1

    def settle(self, progress, max_rounds, *, most_lost=1.0):
        """Rounds until poses have settled; then those that may be far off are looked for once more, twice at most.

        Parameters
        ----------
        progress : FitProgress
        max_rounds : int
            Before each search.
        most_lost : float, default=1.0
            If :attr:`lost` is more, it goes no further.
        """
        for _ in range(2):
            while self.round < max_rounds and not self.settled and not progress.stopped:
                with progress.step("round"):
                    self.run_round()
                if (self.lost or 0) > most_lost:
                    return
            if progress.stopped or not self.search_lost():
                return
            with progress.step("round"):
                self.run_round()

    def search_lost(self):
        """Look for better poses of the images that the model explains least, as poses far off are among them.

        Returns
        -------
        int
            How many are far from where they were.
        """
        top = float(self.images.radii[-1])
        self.volume = self.solve(top)
        projector, shared = VolumeProjector(self.volume), {"band": top, "contrast_std": _CONTRAST_STD}
        self.fit = refine_poses(
            self.images, projector, self.fit.rotations, self.fit.shifts, n_steps=1, n_jobs=self.n_jobs, **shared
        )
        contrast = best_contrast(self.fit, _CONTRAST_STD)
        rows = np.flatnonzero(2 * contrast * self.fit.cross - contrast**2 * self.fit.power < _DOUBTFUL)
        if not len(rows):
            return 0
        fit = search_everywhere(
            self.images.take(rows), projector, self.max_shift, fit=self.fit.take(rows), n_jobs=self.n_jobs
        )
        moved = np.degrees(geodesic_distance(self.fit.rotations[rows], fit.rotations))
        for name in _FIT:
            getattr(self.fit, name)[rows] = getattr(fit, name)
        return int((moved > _FAR).sum())

    def state(self):
        """(arrays, info) from which :meth:`restore` goes on."""
        arrays = {name: getattr(self.fit, name) for name in _FIT}
        arrays |= {"contrast": self.contrast, "noise": self.noise}
        return arrays, {name: getattr(self, name) for name in _COUNTERS}

    def restore(self, arrays, info):
        """Go on from a :meth:`state`, of the same images."""
        self.fit = PoseFit(*(arrays[name] for name in _FIT))
        self.contrast, self.noise = arrays["contrast"], arrays["noise"]
        for name in _COUNTERS:
            setattr(self, name, info[name])
        if (self.noise != 1).any():
            self._apply_noise()

    def solve(self, band):
        """Make the volume of all images at their present poses.

        Parameters
        ----------
        band : float
            Of the poses, in cycles per box; the volume has two rings more.

        Returns
        -------
        ndarray of shape (box, box, box), float32
        """
        images, L = self.images, self.images.L
        top = min(band + 2, float(images.radii[-1]))
        box = min(2 * (int(np.ceil(top)) + 2), L)
        radius = self.mask_radius * box / L
        sums = FourierAccumulator(box)
        rotations, shifts, n_jobs = self.fit.rotations, self.fit.shifts, self.n_jobs or 1
        add_images(sums, images, rotations, shifts, contrast=self.contrast, band=top, n_jobs=n_jobs)
        volume = solve_volume(sums, _SIGNAL_SHARE * self.power, top, radius)
        projector, n_points = VolumeProjector(volume), images.n_points(top)
        points, again = images.points[:n_points], FourierAccumulator(box)
        for start in range(0, len(images), _CHUNK):
            where = slice(start, start + _CHUNK)
            filters = images.take(where).filters[:, :n_points]
            squares = np.square(filters * self.contrast[where, None].astype(np.float32))
            slices = projector.slices(rotations[where], points)
            again.add(slices * squares, squares, rotations[where], points, n_jobs=n_jobs)
        # Hardly any prior: only what the sums do wrong is to be taken off, not what the prior does.
        return 2 * volume - solve_volume(again, 100 * self.power, top, radius)

    def _recentre(self):
        """Move the frame's origin, which no image tells, to where the shifts are least."""
        rows = np.swapaxes(self.fit.rotations[:, :, :2], 1, 2)
        origin = np.linalg.lstsq(rows.reshape(-1, 3), self.fit.shifts.reshape(-1), rcond=None)[0]
        self.fit.shifts = self.fit.shifts - rows @ origin

    def _update_noise(self, projector, band):
        rest = residual_power(self.images, projector, self.fit.rotations, self.fit.shifts, self.contrast, band)
        # Beyond the band there is no model: the images' own power is an upper bound.
        known = int(band)
        beyond = np.minimum(rest, rest[max(1, known - 3) : known + 1].mean())
        self.noise = np.where(np.arange(len(rest)) <= known, rest, beyond)
        self._apply_noise()

    def _apply_noise(self):
        self.images = self._given.rescaled((1 / np.sqrt(self.noise))[self._given.rings])
        self.power = signal_power(self.images, _LEAST_POWER)
