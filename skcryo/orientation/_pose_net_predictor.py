"""From images to poses: the network, Gauss-Newton steps, a search for those that are lost; and how far off they are."""

import numpy as np

from .._torch import resolve_device
from ..alignment import FourierImages, pose_normal_equations, refine_poses, search_poses
from ..projection import VolumeProjector
from ..reconstruction._ab_initio_refine import add_images, best_contrast, solve_volume
from ..reconstruction._accumulator import FourierAccumulator
from ..reconstruction._likeness import likeness, likeness_score
from ..rotations import geodesic_distance, random_rotations, so3_grid
from ._pose_net_architectures import ARCHITECTURES
from ._pose_net_half_turns import HalfTurns
from ._pose_net_lines import common_line_loss, line_bank, sample_pairs
from ._pose_net_reprojections import Reprojections
from ._pose_net_training import evaluate_network
from ._pose_net_uncertainty import ErrorModel, ParticleModel, stated_error
from ._pose_refinement import moved_back, search_everywhere

__all__ = ["PosePredictor"]

_CONTRAST_STD = 0.2
_OVERSAMPLING = 4
_REFINE_STEPS = 3
_SEARCH_BAND = 14.0
_FAR_SHIFT = 1.0  # pixels from which images are centred and seen again
_UNSURE, _LEVEL = 10.0, 0.99  # degrees that more than one in a hundred may be off, to be searched for anew
_MANY, _N_SEARCHED = 0.15, 400  # if more than this share is, errors are learnt from fewer projections
_N_COMPARED = 500
_N_RESEMBLING, _N_CANDIDATES, _FAR_ANGLE = 60, 200, np.deg2rad(30)


class PosePredictor:
    """A trained network and the volume that its poses are refined against.

    Parameters
    ----------
    architecture : str
    weights : dict of str to ndarray
    inputs : SteerableInputs
    shift_range, shift_unit : float
        Pixels: the largest shift, and what the network counts shifts in.
    expectations : bool
        Whether the network was trained to give expectations, and shifts. One trained by common lines gives neither.
    context : FittedContext or None, default=None
        Of networks that see other images.
    """

    def __init__(self, architecture, weights, inputs, shift_range, shift_unit, *, expectations, context=None):
        self.architecture, self.weights, self.inputs = architecture, weights, inputs
        self.shift_range, self.shift_unit, self.expectations = shift_range, shift_unit, expectations
        self.context, self.volume = context, None

    def by_network(self, images, device):
        """Poses by the network alone; of images that may be far off centre, again after they are centred.

        Parameters
        ----------
        images : FourierImages of n images
        device : str

        Returns
        -------
        dict of ndarray
            ``rotations`` (n, 3, 3), ``shifts`` (n, 2) in pixels, ``known`` (n, 3): how far the columns are from length
            1.
        """
        network = ARCHITECTURES[self.architecture](self.inputs.sizes)
        network.oversampling = _OVERSAMPLING
        if self.context is not None:
            network.groups = self.context.groups
        if "half_turn.0" in self.weights:
            network = HalfTurns(network, self.inputs.sizes)
        device = resolve_device(device, caller="EquivariantPoseNet")
        moved, shifts = images, 0.0
        for last in (self.shift_range < _FAR_SHIFT or not self.expectations, True):
            seen = self.inputs(moved)
            if self.context is not None:
                seen = self.context.inputs(seen)
            rotations, more, squares = evaluate_network(network, self.weights, seen, self.shift_unit, device)
            shifts = shifts + more * self.expectations
            if last:
                break
            shifts = np.clip(shifts, -self.shift_range, self.shift_range)
            moved = moved_back(images, shifts)
        spread = np.maximum(1 - np.clip(squares, 0, 1), 1e-4)
        known = np.sqrt(np.concatenate([spread, spread.sum(axis=1, keepdims=True)], axis=1))
        return {"rotations": rotations, "shifts": shifts, "known": known}

    def refined(self, images, found, n_jobs):
        """Poses after Gauss-Newton steps from where they are.

        Parameters
        ----------
        images : FourierImages of n images
        found : dict of ndarray
            ``rotations``, ``shifts``, ``known`` of :meth:`by_network`.
        n_jobs : int

        Returns
        -------
        dict of ndarray
            ``rotations``, ``shifts``, ``contrast`` (n,), ``log_likelihood`` (n,) above that of no particle, ``known``.
        """
        projector = VolumeProjector(self.volume)
        fit = refine_poses(
            images, projector, found["rotations"], found["shifts"], contrast_std=_CONTRAST_STD, n_steps=_REFINE_STEPS,
            n_jobs=n_jobs,
        )  # fmt: skip
        contrast = best_contrast(fit, _CONTRAST_STD)
        hessian = pose_normal_equations(images, projector, fit.rotations, fit.shifts, contrast=contrast)[0]
        largest = np.einsum("nii->ni", hessian).max(axis=1, keepdims=True)
        hessian[:, np.arange(5), np.arange(5)] += 1e-6 * largest + 1e-9
        variance = np.linalg.inv(hessian)[:, np.arange(3), np.arange(3)].sum(axis=1)
        explained = 2 * contrast * fit.cross - contrast**2 * fit.power
        moved = geodesic_distance(fit.rotations, found["rotations"])
        known = [np.sqrt(variance), 1 / np.maximum(explained, 1.0), moved + 0.01, found["known"][:, -1]]
        return {
            "rotations": fit.rotations,
            "shifts": fit.shifts,
            "contrast": contrast,
            "log_likelihood": explained,
            "known": np.stack(known, axis=1),
        }

    def poses(self, images, device, n_jobs):
        """Poses by the network, refined; of images that this leaves unsure, by a search over all poses too.

        Parameters and returns as of :meth:`refined`.
        """
        first = self.by_network(images, device)
        found = self.refined(images, first, n_jobs)
        rows = np.flatnonzero(self._unsure(found))
        if len(rows):
            part = images.take(rows)
            searched = search_everywhere(part, VolumeProjector(self.volume), self.shift_range, n_jobs=n_jobs)
            start = {"rotations": searched.rotations, "shifts": searched.shifts, "known": first["known"][rows]}
            other = self.refined(part, start, n_jobs)
            better = other["log_likelihood"] > found["log_likelihood"][rows]
            for name, value in other.items():
                found[name][rows[better]] = value[better]
        return found | {"likeness": self._likeness(images, found["rotations"], found["shifts"], n_jobs)}

    def _likeness(self, images, rotations, shifts, n_jobs):
        projector, band = VolumeProjector(self.volume), float(images.radii[-1])
        options = {"band": band, "contrast_std": _CONTRAST_STD, "n_jobs": n_jobs}
        return likeness_score(likeness(images, projector, rotations, shifts, **options))

    def _unsure(self, found):
        return self._first_errors.quantile(found["known"], _LEVEL) > _UNSURE

    def stated_errors(self, found, level):
        """The error that a share `level` of images like these stays below, in degrees.

        Parameters
        ----------
        found : dict of ndarray
            Of :meth:`poses`, or of :meth:`by_network`.
        level : float

        Returns
        -------
        ndarray of shape (n,), float64
        """
        if "likeness" not in found:
            return self._network_errors.quantile(found["known"], level)
        return stated_error(self._refined_errors, found["known"], self.probability(found), level)

    def probability(self, found):
        """Of being a particle, of what :meth:`poses` found."""
        return self._particles.probability(found["likeness"])

    def calibrate(self, refinement, volume, n, seed, device, n_jobs):
        """Take a volume to refine against, and learn errors from projections of known poses.

        They are made of the volume plus half the difference of two volumes, each from half of the images, which differs
        from it as the true one does, and have the data's noise, CTFs, contrasts and shifts.

        Parameters
        ----------
        refinement : PoseRefinement
            Of the data.
        volume : ndarray of shape (box, box, box)
        n : int
            Projections.
        seed, device, n_jobs

        Returns
        -------
        errors : ndarray of shape (at most n,)
            Degrees, of :meth:`poses`.
        """
        self.volume = volume
        true = volume + _half_difference(refinement, len(volume), seed, n_jobs)
        images = refinement.images
        source = Reprojections(
            images, VolumeProjector(true), refinement.contrast, None, max_shift=self.shift_range, n_views=n, seed=seed +
            1
        )  # fmt: skip
        clean, noise, filters, rotations, _ = source.draw_values(n, np.random.default_rng([seed, 3]))

        def angles(found):
            return np.degrees(geodesic_distance(found["rotations"], rotations[: len(found["rotations"])]))

        projections = FourierImages(clean + noise, filters, images.points, images.L)
        found = self.by_network(projections, device)
        self._network_errors = ErrorModel(found["known"], angles(found))
        found = self.refined(projections, found, n_jobs)
        self._first_errors = ErrorModel(found["known"], angles(found))
        if self._unsure(found).mean() > _MANY:
            projections = projections.take(slice(_N_SEARCHED))
        found = self.poses(projections, device, n_jobs)
        errors = angles(found)
        self._refined_errors = ErrorModel(found["known"], errors)
        of_data = self._likeness(images, refinement.fit.rotations, refinement.fit.shifts, n_jobs)
        self._particles = ParticleModel(found["likeness"], of_data)
        return errors

    def resemblance(self, images, seed, n_jobs):
        """How well projections of the volume fit poses far from their own.

        Parameters
        ----------
        images : FourierImages
            The data, for its points and filters.
        seed, n_jobs : int

        Returns
        -------
        float
            Of 60 projections without noise, the median share of their power that the best pose more than 30 degrees
            away explains: 1 for a symmetric particle, less than 0.5 for the 70S ribosome.
        """
        projector, true = VolumeProjector(self.volume), random_rotations(_N_RESEMBLING, seed)
        filters = np.sqrt(np.square(images.filters).mean(axis=0, keepdims=True))
        values = projector.slices(true, images.points) * filters
        clean = FourierImages(values, filters, images.points, images.L)
        grid, nowhere = so3_grid(4, 24), np.zeros((1, 2))
        band = min(_SEARCH_BAND, float(images.radii[-1]))
        found = search_poses(clean, projector, grid, nowhere, band=band, n_best=_N_CANDIDATES, n_jobs=n_jobs)
        far = geodesic_distance(grid[found.rotation], true[:, None]) > _FAR_ANGLE
        first = found.rotation[np.arange(len(true)), far.argmax(axis=1)]
        fit = refine_poses(clean, projector, grid[first], np.zeros((len(true), 2)), n_steps=5, band=band, n_jobs=n_jobs)
        power = np.square(np.abs(values[:, : clean.n_points(band)])).sum(axis=1, dtype=np.float64)
        share = fit.cross**2 / np.maximum(fit.power * power, 1e-30)
        still_far = far.any(axis=1) & (geodesic_distance(fit.rotations, true) > _FAR_ANGLE)
        return float(np.median(np.where(still_far & (fit.cross > 0), share, 0)))

    def line_agreement(self, refinement, n_theta, n_partners):
        """How well images agree along common lines, as a share of how well projections of the volume would.

        Parameters
        ----------
        refinement : PoseRefinement
            Of the data.
        n_theta, n_partners : int
            Of :func:`line_bank` and :func:`sample_pairs`.

        Returns
        -------
        float
            Zero or less where the images do not agree at all. Of projections at the same poses, with the same CTFs,
            shifts and contrasts, and white noise, from the volume: if it is one of the images, they agree as well.
        """
        rows, random = slice(_N_COMPARED), np.random.default_rng(0)
        images, fit = refinement.images.take(rows), refinement.fit.take(rows)
        model = VolumeProjector(self.volume).slices(fit.rotations, images.points) * images.filters
        model *= images.centred_phases(fit.shifts).conj() * refinement.contrast[rows, None].astype(np.float32)
        noise = random.standard_normal((*model.shape, 2), dtype=np.float32) * np.float32(np.sqrt(0.5))
        projections = FourierImages(model + noise.view(np.complex64)[..., 0], images.filters, images.points, images.L)
        pairs = sample_pairs(len(images), n_partners, random)
        agreement = []
        for seen in (images, projections):
            bank = line_bank(seen, self.inputs.filters, fit.shifts, n_theta, int(self.inputs.band))
            agreement.append(1 - common_line_loss(bank, fit.rotations, pairs))
        return float(agreement[0] / agreement[1]) if agreement[1] > 0 else 0.0


def _half_difference(refinement, box, seed, n_jobs):
    """Half the difference of the volumes of two halves of the images."""
    images, fit, L = refinement.images, refinement.fit, refinement.images.L
    halves, order = [], np.random.default_rng([seed, 2]).permutation(len(images))
    for rows in (np.sort(order[::2]), np.sort(order[1::2])):
        sums = FourierAccumulator(box)
        add_images(
            sums, images.take(rows), fit.rotations[rows], fit.shifts[rows], contrast=refinement.contrast[rows],
            n_jobs=n_jobs,
        )  # fmt: skip
        radius = refinement.mask_radius * box / L
        halves.append(solve_volume(sums, refinement.power, float(images.radii[-1]), radius))
    return (halves[0] - halves[1]) / 2
