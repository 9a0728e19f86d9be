"""Stages of in-plane alignment: from single images to classes, poses and centres."""

from dataclasses import dataclass

import numpy as np

from ._in_plane_classes import Classes, frame_angles, locate
from ._in_plane_span import find_span

__all__ = ["AlignerFit", "FoundClasses"]

_SEARCHED_CLASSES, _SEARCHED_IMAGES = (25, 2500)  # at most, in the first stage, whose search is the dearest
_HOTTEST, _COOLED = (6.0, 0.6)  # nats; the share of a stage's iterations in which the temperature falls to 1
_N_ROUNDS = 2  # of classes at known shifts before the last ones
_STAGE_ITERATIONS = 20
_N_OWN = 2


@dataclass(frozen=True)
class FoundClasses:
    """What a fit ends with: class averages in a span, one centre and frame for all."""

    span: object
    averages: np.ndarray
    biases: np.ndarray
    n_iter: int
    converged: bool
    moved: float


class AlignerFit:
    """Learning of class averages from images of which neither class, angle nor shift is known.

    Parameters
    ----------
    images : BandImages
    parameters : tuple
        Of the basis.
    n_classes : int
    grids : ShiftGrids
    max_iter : int
    tol : float
    seed : int
    n_jobs : int or None
    progress : FitProgress
    saved : StageCheckpoints
    """

    def __init__(self, images, parameters, n_classes, *, grids, max_iter, tol, seed, n_jobs, progress, saved):
        self.images, self.parameters, self.n_classes = images, parameters, n_classes
        self.grids, self.max_iter, self.tol, self.seed, self.n_jobs = (grids, max_iter, tol, seed, n_jobs)
        self.progress, self.saved = progress, saved
        self.n_iter = 0

    def run(self):
        """Go through all stages, from the last checkpoint on.

        Returns
        -------
        FoundClasses
        """
        last = _N_ROUNDS + 1 if self.grids.max_shift > 0 else 0
        state = self.saved.load("aligner")
        first = 0 if state is None else state[1]["stage"]
        self.n_iter = 0 if state is None else state[1]["n_iter"]
        if state is not None:
            self.images.shifts = state[0]["known_shifts"]
        for stage in range(first, last + 1):
            images, n_classes = self.images, self.n_classes
            if stage == 0 and last > 0:
                n_classes = min(n_classes, _SEARCHED_CLASSES)
                if len(images) > _SEARCHED_IMAGES:
                    images = images.select(np.sort(self._rng(stage).permutation(len(images))[:_SEARCHED_IMAGES]))
            span = find_span(images, self.parameters)
            classes = Classes(span, images, n_classes, self.n_jobs)
            moved, done = self._iterate(classes, stage, state, last)
            state = None
            if stage == last or self.progress.stopped:
                break
            self._recentre(classes, stage)
        averages = self._common_frame(classes)
        return FoundClasses(span, averages, classes.biases, self.n_iter, done, moved)

    def _rng(self, stage):
        return np.random.RandomState((self.seed + 7919 * stage) % 2**32)

    def _iterate(self, classes, stage, state, last):
        """One stage's iterations: share of images that changed class in the last one, and whether that is few."""
        first, moved, settled = 0, 1.0, False
        if state is None:
            classes.start(self._rng(1000 + stage))
        else:
            first, moved, settled = (state[1][name] for name in ("iteration", "moved", "settled"))
            classes.restore(state[0])
        most = self.max_iter if stage == last else min(self.max_iter, _STAGE_ITERATIONS)
        hot, half = max(1.0, _COOLED * most), max(1, most // 2)
        coarse, fine = self.grids.coarse, self.grids.fine
        for iteration in range(first, most):
            searches = stage == 0 and self.grids.max_shift > 0
            if settled or self.progress.stopped:
                break
            with self.progress.step("iteration", attributes=lambda: {"n_iter_": self.n_iter}):
                if searches and iteration == half:
                    classes.search_near(classes.shifts)
                offsets = coarse[:1] if not searches else coarse if iteration < half else fine
                before = classes.labels
                temperature = max(1.0, _HOTTEST * (1 - iteration / hot))
                classes.iterate(offsets, temperature)
                moved = 1.0 if before is None else float(np.mean(before != classes.labels))
                self.n_iter += 1
                settled = moved <= self.tol and temperature == 1 and not (searches and iteration <= half)
                info = {"stage": stage, "iteration": iteration + 1, "n_iter": self.n_iter}
                info |= {"moved": moved, "settled": bool(settled)}
                self.saved.save("aligner", classes.state() | {"known_shifts": self.images.shifts}, info)
        return moved, bool(settled)

    def _recentre(self, classes, stage):
        """Shifts of all images from the classes of a stage, whose centres differ."""
        if stage == 0:
            shifts = classes.recentred(self.grids.max_shift)
            if len(classes.images) < len(self.images):
                classes.average(shifts)
                found = locate(classes.span, self.images, classes.averages, classes.biases, self.grids, self.n_jobs)
                shifts = found[2]
            self.images.shifts = shifts
        else:
            for _ in range(_N_OWN):
                classes.own_poses(self.grids.close, np.zeros((len(self.images), 2)))
                classes.own_poses(self.grids.fine, classes.shifts)
                classes.average(classes.shifts)
            self.images.shifts = classes.recentred(self.grids.max_shift)

    def _common_frame(self, classes):
        """Averages about one centre, turned such that those of similar views agree."""
        if self.grids.max_shift > 0:
            classes.own_poses(self.grids.fine, classes.shifts)
            classes.average(classes.shifts)
            classes.average(classes.recentred(self.grids.max_shift))
        angles = frame_angles(classes.span, classes.averages)
        return classes.span.turned(classes.averages, angles)
