"""A first volume from nothing: stochastic expectation-maximisation over a grid of poses."""

from dataclasses import dataclass

import numpy as np

from ..alignment import expected_slices, shift_grid
from ..projection import VolumeProjector
from ..rotations import random_rotations, so3_grid
from ._accumulator import FourierAccumulator

__all__ = ["StartSettings", "StochasticStart", "signal_power"]


def signal_power(images, least=0.02):
    """Mean power of the clean slices in each ring, from the images without any poses.

    The images' power beyond the noise's, over the mean squared filter.

    Parameters
    ----------
    images : FourierImages
    least : float, default=0.02
        What it is in rings without visible signal: this share of what the noise alone would give.

    Returns
    -------
    ndarray of shape (n_rings,), float64
        Ring 0 repeats ring 1.
    """
    if images.tilted is not None:
        views = images.views(np.eye(3)[None], np.zeros((1, 4)))
        return np.mean([signal_power(view, least) for view, _, _ in views], axis=0)
    n_rings = int(images.rings.max()) + 1
    counts = np.bincount(images.rings, minlength=n_rings)
    total = np.zeros(len(images.points))
    for start in range(0, len(images), 1000):
        total += np.square(np.abs(images.values[start : start + 1000])).sum(axis=0, dtype=np.float64)
    squares = np.square(images.filters).mean(axis=0, dtype=np.float64)
    total = np.bincount(images.rings, total / len(images), minlength=n_rings)
    squares = np.bincount(images.rings, squares, minlength=n_rings)
    excess = np.maximum(total - counts, least * counts)
    power = np.divide(excess, squares, out=np.zeros(n_rings), where=squares > 0)
    power[0] = power[1]
    return power


@dataclass
class StartSettings:
    """How a start searches.

    Attributes
    ----------
    max_shift : float
        Pixels of the images.
    mask_radius : float
        Pixels of the images.
    first_band, last_band : float
        Cycles per box.
    shift_step : float
        Pixels.
    n_side, n_psi : int
        Grid of rotations (:func:`skcryo.rotations.so3_grid`); turned at random in each step.
    batch_size : int
    rise : float
        Epochs until the last band is reached.
    min_epochs, max_epochs : int
    tol : float
        Ends when the evidence grew by less than this share of itself in an epoch.
    """

    max_shift: float
    mask_radius: float
    first_band: float = 5.0
    last_band: float = 12.0
    shift_step: float = 1.3
    n_side: int = 2
    n_psi: int = 24
    batch_size: int = 200
    rise: float = 9.0
    min_epochs: int = 11
    max_epochs: int = 30
    tol: float = 0.02


class StochasticStart:
    """Minibatch expectation-maximisation from random poses, with forgetting and a rising band.

    The sums that the volume is solved from hold about one pass over the images: those of each minibatch are added
    and everything older fades. Each image is divided among all poses of a coarse grid by its posterior, as in
    cryoSPARC's ab initio; the Wiener prior is the molecule's own power spectrum, which the images tell
    without poses (:func:`signal_power`). The grid is turned at random in each step, so that it leaves no trace.

    Parameters
    ----------
    images : FourierImages
    power : ndarray of shape (n_rings,)
        Signal power.
    settings : StartSettings
    seed : int
        With the number of the step it decides everything random.
    n_jobs : int, default=None
    device : str or torch.device, default=None
        As in :func:`skcryo.alignment.expected_slices`.

    Attributes
    ----------
    rotations : ndarray of shape (n_images, 3, 3)
    shifts : ndarray of shape (n_images, 2)
    evidence : ndarray of shape (n_images,)
        Log-evidence of each image when it was last seen.
    epoch : int
    curve : list of float
        Mean evidence of each epoch.
    """

    def __init__(self, images, power, settings, seed, n_jobs=None, device=None):
        self.images, self.power, self.settings, self.seed, self.n_jobs = images, power, settings, seed, n_jobs
        self.device = device
        n = len(images)
        self.box = 2 * (int(np.ceil(settings.last_band)) + 2)
        self.mask_radius = settings.mask_radius * self.box / images.L
        self.rotations = random_rotations(n, self._random(0, 0))
        self.shifts = np.zeros((n, 2 * images.n_views))
        self.evidence = np.zeros(n)
        self.epoch = 0
        self.curve = []
        self.accumulator = FourierAccumulator(self.box)
        self.grid = so3_grid(settings.n_side, settings.n_psi)
        self.shift_grid = shift_grid(settings.max_shift, settings.shift_step)
        first = images.take(slice(0, min(n, 1000)))
        n_points = images.n_points(settings.first_band + 2)
        for view, rotations, _ in first.views(self.rotations[: len(first)], self.shifts[: len(first)]):
            filters = np.broadcast_to(view.filters[:, :n_points], (len(first), n_points))
            self.accumulator.add(
                view.values[:, :n_points] * filters, np.square(filters), rotations, images.points[:n_points]
            )

    def _random(self, *key):
        return np.random.RandomState(np.random.SeedSequence([self.seed, *key]).generate_state(4))

    @property
    def finished(self):
        """Whether another epoch would gain little."""
        settings, curve = self.settings, self.curve
        if self.epoch < settings.min_epochs:
            return False
        return self.epoch >= settings.max_epochs or curve[-1] - curve[-2] < settings.tol * abs(curve[-1])

    def solve(self, band):
        """The volume in a box of `box` pixels."""
        n_shells = self.box // 2 + 1
        prior = 1 / np.interp(np.arange(n_shells), np.arange(len(self.power)), self.power)
        return self.accumulator.solve(
            prior, mask_radius=self.mask_radius, max_frequency=min(0.5, band / self.box)
        )

    def run_epoch(self):
        """Show every image once."""
        settings, n = self.settings, len(self.images)
        order = self._random(1, self.epoch).permutation(n)
        n_batches = max(1, int(np.ceil(n / settings.batch_size)))
        for step, batch in enumerate(np.array_split(order, n_batches)):
            done = self.epoch + step / n_batches
            band = settings.first_band + (settings.last_band - settings.first_band) * min(1, done / settings.rise)
            self._run_batch(np.sort(batch), band, self._random(2, self.epoch, step))
        self.curve.append(float(self.evidence.mean()))
        self.epoch += 1

    def _run_batch(self, batch, band, random):
        images = self.images.take(batch)
        rotations = random_rotations(1, random)[0] @ self.grid
        projector = VolumeProjector(self.solve(band))
        found = expected_slices(
            images, projector, rotations, self.shift_grid, band=band, n_jobs=self.n_jobs, device=self.device
        )
        self.rotations[batch] = rotations[found.rotation]
        self.shifts[batch] = self.shift_grid[found.shift].reshape(len(batch), -1)
        self.evidence[batch] = found.log_evidence
        # The random volume of the beginning fades faster.
        share = len(batch) / len(self.images)
        self.accumulator.scale(max(0.5, 1 - 4 * share) if self.epoch == 0 else 1 - share)
        if images.tilted is not None:
            rotations = np.concatenate([rotations, rotations @ images.turn])
        strength = found.denominator.max(axis=1)
        seen = strength > 1e-3 * strength.max()
        self.accumulator.add(
            found.numerator[seen],
            found.denominator[seen],
            rotations[seen],
            self.images.points[: found.denominator.shape[1]],
            n_jobs=self.n_jobs,
        )

    # ----------------------------------------------------------------------------------------- checkpoints
    def state(self):
        """(arrays, info) from which :meth:`restore` goes on, between epochs."""
        arrays = {
            "rotations": self.rotations,
            "shifts": self.shifts,
            "evidence": self.evidence,
            "numerator": self.accumulator.numerator,
            "denominator": self.accumulator.denominator,
        }
        return arrays, {"epoch": self.epoch, "curve": self.curve}

    def restore(self, arrays, info):
        """Go on from a :meth:`state`."""
        self.rotations, self.shifts, self.evidence = (arrays[name] for name in ("rotations", "shifts", "evidence"))
        self.accumulator.numerator, self.accumulator.denominator = arrays["numerator"], arrays["denominator"]
        self.epoch, self.curve = info["epoch"], info["curve"]
