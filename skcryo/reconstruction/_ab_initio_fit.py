"""The stages of an ab initio fit: starts until two agree, refinement, half sets; resumable after each step."""

import time

import numpy as np

from ..alignment import FourierImages
from ..io import load_checkpoint, save_checkpoint
from ..metrics import fsc
from ..preprocessing import noise_spectrum
from ..projection import VolumeProjector
from ..rotations import align_rotations, geodesic_distance
from ._ab_initio_refine import VolumeRefinement, add_images, search_and_refine
from ._ab_initio_start import StartSettings, StochasticStart, signal_power
from ._accumulator import FourierAccumulator
from ._priors import fsc_prior

__all__ = ["AbInitioFit", "Saver", "agreement", "load_fit", "run_search"]

_CHECKPOINT = "ab_initio"
# Images that starts see, and that they are compared on: enough for a low-resolution volume, however large the stack.
_START_IMAGES, _COMPARED = 4000, 500
# Two starts found the same molecule if this share of images has poses within this angle.
AGREEING_ANGLE, AGREEING_SHARE = 20.0, 0.6
_HALF_ROUNDS = 4


def agreement(first, second):
    """Share of images whose poses agree within 20 degrees after the best global rotation and hand."""
    aligned = align_rotations(first, second)[0]
    return float((np.degrees(geodesic_distance(aligned, second)) < AGREEING_ANGLE).mean())


class AbInitioFit:
    """A fit, step by step.

    Parameters
    ----------
    stack : ParticleStack of shape (n, L, L)
    ctf : structured array or None
    pixel_size : float or None
    options : dict
        ``max_shift``, ``mask_radius`` (pixels), ``max_ring``, ``n_starts``, ``max_epochs``, ``max_rounds``,
        ``contrast_std``, ``angular_step`` (degrees).
    seed : int
    n_jobs : int
    device : str or torch.device, default=None
        As in :func:`skcryo.alignment.search_poses`.
    images : FourierImages, default=None
        Those of the stack, in units of their noise, or pairs of which it is the first half, for which there is no
        :meth:`result`. None: they are made.
    """

    def __init__(self, stack, ctf, pixel_size, options, seed, n_jobs, device=None, images=None):
        self.stack, self.ctf, self.pixel_size = stack, ctf, pixel_size
        self.options, self.seed, self.n_jobs, self.device = options, seed, n_jobs, device
        n, L = stack.shape[:2]
        self.spectrum = _spectrum(stack)
        if images is None:
            images = FourierImages.from_stack(
                stack, self.spectrum, options["max_ring"], ctf=ctf, pixel_size=pixel_size
            )
        self.images = images
        top = float(self.images.radii[-1])
        side = {30: 1, 15: 2}[30 if options["angular_step"] >= 30 else 15]
        self.settings = StartSettings(
            max_shift=options["max_shift"],
            mask_radius=options["mask_radius"],
            first_band=min(5.0, top),
            last_band=min(12.0, top),
            n_side=side,
            n_psi=12 * side,
            max_epochs=options["max_epochs"],
            min_epochs=min(StartSettings.min_epochs, options["max_epochs"]),
        )
        random = np.random.RandomState(np.random.SeedSequence([seed, 3]).generate_state(4))
        chosen = random.permutation(n)[:_START_IMAGES]
        self.start_rows = np.sort(chosen)
        self.compared = self.images.take(np.sort(chosen[:_COMPARED]))
        self.half_sets = random.permutation(np.arange(n) % 2)
        self.volumes, self.scores, self.poses, self.curves = [], [], [], []
        self.refinement = None
        self.halves = [None, None]

    # -------------------------------------------------------------------------------------------- starts
    def begin_start(self):
        """The next random start."""
        images = self.images.take(self.start_rows)
        seed = np.random.SeedSequence([self.seed, 4, len(self.scores)]).generate_state(1)[0]
        return StochasticStart(images, signal_power(images), self.settings, int(seed), self.n_jobs, self.device)

    def end_start(self, start):
        """Judge a start: poses and likelihood of the images that all starts are compared on."""
        volume = start.solve(self.settings.last_band)
        fit = search_and_refine(
            self.compared, VolumeProjector(volume), max_shift=self.options["max_shift"], band=self.settings.last_band,
            contrast_std=self.options["contrast_std"], n_best=3, n_jobs=self.n_jobs, device=self.device,
            **self._grid(),
        )
        n_points = self.compared.n_points(self.settings.last_band)
        power = np.zeros(len(self.compared))
        for view, _, _ in self.compared.views(fit.rotations, fit.shifts):
            power += np.square(np.abs(view.values[:, :n_points])).sum(axis=1, dtype=np.float64)
        self.volumes.append(volume)
        self.scores.append(float((power - fit.error).mean()))
        self.poses.append(fit.rotations)
        self.curves.append(list(start.curve))

    def _grid(self):
        side = {30: 2, 15: 4}[30 if self.options["angular_step"] >= 30 else 15]
        return {"n_side": side, "n_psi": 6 * side}

    @property
    def best(self):
        """Index of the start of the highest likelihood."""
        return int(np.argmax(self.scores))

    def start_agreement(self):
        """Agreement of the best start with each, (n_starts,)."""
        best = self.best
        shares = [agreement(poses, self.poses[best]) for poses in self.poses]
        shares[best] = 1.0
        return np.array(shares)

    @property
    def confirmed(self):
        """Whether another start found what the best one found."""
        return bool((np.delete(self.start_agreement(), self.best) > AGREEING_SHARE).any())

    @property
    def enough_starts(self):
        """Whether no further start is wanted."""
        return len(self.scores) >= self.options["n_starts"] or (len(self.scores) > 1 and self.confirmed)

    # ---------------------------------------------------------------------------------------- refinement
    def begin_refinement(self):
        """Refinement of all images from the best start."""
        refinement = self._refinement(self.images, self.volumes[self.best], self.settings.last_band, self.half_sets)
        refinement.grid = self._grid()
        return refinement

    def _refinement(self, images, volume, band, half_sets):
        options = self.options
        return VolumeRefinement(
            images, volume, max_shift=options["max_shift"], mask_radius=options["mask_radius"], first_band=band,
            last_band=None, contrast_prior=options["contrast_std"], half_sets=half_sets, n_jobs=self.n_jobs,
            device=self.device,
        )

    @property
    def settled(self):
        """Whether another round of refinement would change little, or none is allowed."""
        refinement = self.refinement
        if refinement.round >= self.options["max_rounds"]:
            return True
        return refinement.round > max(refinement.search_rounds) + 1 and refinement.change < 0.1

    def problem(self, *, settled=True):
        """What is wrong with the poses, as far as one can tell; None if nothing is.

        Parameters
        ----------
        settled : bool, default=True
            Whether they are to have settled, as they need not where particles differ.
        """
        if len(self.scores) < 2:
            return "one start cannot be confirmed by another"
        if not self.confirmed:
            others = np.delete(self.start_agreement(), self.best)
            return (
                f"none of {len(self.scores)} starts agrees with the best one in more than {AGREEING_SHARE:.0%} of "
                f"poses (at most {others.max():.0%})"
            )
        if settled and not self.refinement.change < 0.5:
            return f"poses had not settled in {self.refinement.round} rounds (max_rounds)"
        return None

    def refine_half(self, half):
        """Refine one half set by itself, from the common volume without its details."""
        whole = self.refinement
        rows = np.flatnonzero(self.half_sets == half)
        refinement = self._refinement(whole.images.take(rows), whole.low_passed(), whole.coarse_band, rows % 2)
        refinement.search_rounds = ()
        refinement.fit = whole.fit.take(rows)
        for _ in range(_HALF_ROUNDS):
            refinement.run_round()
        self.halves[half] = refinement

    # ---------------------------------------------------------------------------------------- the result
    def result(self):
        """Volumes at full size, half maps and their correlation, as a dict of fitted attributes."""
        L, n_jobs = self.images.L, self.n_jobs
        whole = self.refinement
        noise = np.concatenate([whole.noise, np.full(max(0, L // 2 + 1 - len(whole.noise)), whole.noise[-1])])
        spectrum = self.spectrum * noise[: L // 2 + 1]
        sums, halves = FourierAccumulator(L), [FourierAccumulator(L), FourierAccumulator(L)]
        half_rotations, half_shifts = whole.fit.rotations.copy(), whole.fit.shifts.copy()
        for half, refinement in enumerate(self.halves):
            rows = np.flatnonzero(self.half_sets == half)
            half_rotations[rows], half_shifts[rows] = refinement.fit.rotations, refinement.fit.shifts
        for start in range(0, len(self.stack), 500):
            where = slice(start, min(start + 500, len(self.stack)))
            ctf = None if self.ctf is None else self.ctf[where]
            images = FourierImages.from_stack(
                self.stack[where], spectrum, (L - 1) // 2, ctf=ctf, pixel_size=self.pixel_size
            )
            contrast = whole.contrast[where]
            add_images(
                sums, images, whole.fit.rotations[where], whole.fit.shifts[where], contrast=contrast, n_jobs=n_jobs
            )
            for half, accumulator in enumerate(halves):
                rows = np.flatnonzero(self.half_sets[where] == half)
                add_images(
                    accumulator, images.take(rows), half_rotations[where][rows], half_shifts[where][rows],
                    contrast=contrast[rows], n_jobs=n_jobs,
                )
        radius = self.options["mask_radius"]
        density = (halves[0].shell_density() + halves[1].shell_density()) / 2
        # Hardly filtered: filtered first, they would agree where the mask carries strong shells over into weak ones.
        half_maps = np.stack(
            [half.solve(0.05 * np.maximum(density, 1e-12), mask_radius=radius) for half in halves]
        )
        curve = fsc(*half_maps)
        prior = fsc_prior(curve, np.maximum(density, 1e-12))
        return {
            "volume_": sums.solve(prior, mask_radius=radius),
            "half_maps_": half_maps,
            "fsc_": curve,
            "noise_spectrum_": spectrum,
        }

    # --------------------------------------------------------------------------------------- checkpoints
    def save(self, folder, key, start=None):
        """Save the state of the fit."""
        arrays = {f"volume_{k}": volume for k, volume in enumerate(self.volumes)}
        arrays |= {f"poses_{k}": poses for k, poses in enumerate(self.poses)}
        info = {"fingerprint": key, "seed": self.seed, "scores": self.scores, "curves": self.curves, "start": None}
        if start is not None:
            more, info["start"] = start.state()
            arrays |= {f"start_{name}": array for name, array in more.items()}
        for name, part in (("refinement", self.refinement), ("half_0", self.halves[0]), ("half_1", self.halves[1])):
            info[name] = None
            if part is not None:
                more, info[name] = part.state()
                arrays |= {f"{name}:{key_}": array for key_, array in more.items()}
        save_checkpoint(folder, _CHECKPOINT, arrays, info)

    def restore(self, arrays, info):
        """Go on from a saved state of the same seed; returns the start that was under way, if any."""
        self.scores, self.curves = info["scores"], info["curves"]
        self.volumes = [arrays[f"volume_{k}"] for k in range(len(self.scores))]
        self.poses = [arrays[f"poses_{k}"] for k in range(len(self.scores))]
        part = _Parts(arrays, info)
        if info["refinement"] is not None:
            self.refinement = self.begin_refinement()
            self.refinement.restore(*part("refinement:", "refinement"))
        for half in (0, 1):
            if info[f"half_{half}"] is not None:
                rows = np.flatnonzero(self.half_sets == half)
                refinement = self._refinement(self.refinement.images.take(rows), None, 1.0, rows % 2)
                refinement.restore(*part(f"half_{half}:", f"half_{half}"))
                self.halves[half] = refinement
        if info["start"] is None:
            return None
        start = self.begin_start()
        start.restore(*part("start_", "start"))
        return start


def load_fit(folder, key):
    """What :meth:`AbInitioFit.save` saved, (arrays, info), or None."""
    saved = load_checkpoint(folder, _CHECKPOINT)
    if saved is not None and saved[1]["fingerprint"] != key:
        raise ValueError(
            f"checkpoint_dir={folder!r} holds a fit of other images or parameters; name another folder or remove that "
            "one"
        )
    return saved


def run_search(fit, start, progress, saver):
    """Starts until two agree, then refinement of the best: poses of all images.

    Parameters
    ----------
    fit : AbInitioFit
        Whatever it has behind it is not done again.
    start : StochasticStart or None
        The one that was under way when the fit was saved.
    progress : FitProgress
    saver : Saver

    Returns
    -------
    finished : bool
        Whether no callback stopped it. If one did, there may be no refinement yet.
    """
    while fit.refinement is None and not fit.enough_starts:
        start = fit.begin_start() if start is None else start
        with progress.step("start", max_steps=fit.settings.max_epochs) as task:
            while not start.finished and not task.stopped:
                with task.step("epoch"):
                    start.run_epoch()
                saver(start, now=task.stopped)
            fit.end_start(start)
        if task.stopped:
            return False
        start = None
        saver(now=progress.stopped)
        if progress.stopped:
            return False
    if fit.refinement is None:
        fit.refinement = fit.begin_refinement()
    while not fit.settled:
        with progress.step("round"):
            fit.refinement.run_round()
        saver()
        if progress.stopped:
            saver(now=True)
            return False
    return True


class _Parts:
    """Arrays of a checkpoint whose names begin alike."""

    def __init__(self, arrays, info):
        self.arrays, self.info = arrays, info

    def __call__(self, prefix, name):
        found = {key[len(prefix) :]: array for key, array in self.arrays.items() if key.startswith(prefix)}
        return found, self.info[name]


class Saver:
    """Saves a fit now and then."""

    def __init__(self, fit, folder, key, between):
        self.fit, self.folder, self.key, self.between = fit, folder, key, between
        self.last = time.monotonic()

    def __call__(self, start=None, *, now=False):
        if self.folder is not None and (now or time.monotonic() - self.last >= self.between):
            self.fit.save(self.folder, self.key, start)
            self.last = time.monotonic()


def _spectrum(stack):
    """Noise spectrum from the background; of small boxes, which have none, from all pixels."""
    spectrum = noise_spectrum(stack, radius=0 if stack.shape[1] < 16 else None)
    if not (1e-25 < spectrum.min() and spectrum.max() < 1e25):
        raise ValueError(
            f"X has noise of power {spectrum.min():.1g} to {spectrum.max():.1g}, beyond what single precision can work "
            "with: scale the images, for example with skcryo.preprocessing.NormalizeBackground"
        )
    return spectrum
