"""``skcryo classify3d``: raw particles in; classes from common lines, a volume for each and a verdict out."""

import warnings

import numpy as np

from ._abinitio import AbInitioSettings, fit_ab_initio
from ._classify3d_report import write
from ._common import CommandError, note
from ._images import prepare_once, warn_of_dark_particles
from ._progress import ProgressReporter, StepReporter
from ._run import Run

_WEIGHTS = 256  # pixels of the picture of the weight matrix
_NOT_CONVERGED = "CommonLinesMaxCut did not converge: "
_POSES = {
    "abinitio": "an ab initio volume of all particles",
    "lines": "common lines",
    "input": "the input",
}


def outputs(n_classes):
    """Names of the files that a run leaves, ``run.json`` last.

    Parameters
    ----------
    n_classes : int

    Returns
    -------
    names : tuple of str
    """
    volumes = [f"class{k}{part}.mrc" for k in range(1, n_classes + 1) for part in ("", "_half1", "_half2")]
    pictures = ["fsc.png", "slices.png", *(f"class{k}.png" for k in range(1, n_classes + 1)), "weights.png"]
    return ("particles.star", "volume.mrc", *volumes, "fsc.star", *pictures, "report.html", "run.json")


class Classify3DSettings(AbInitioSettings):
    """What a run of classify3d does; parameters as of :class:`Settings`."""

    def __init__(self, args, stack):
        super().__init__(args, stack)
        # Halves of the particles are classified apart.
        if len(stack) < 2 * self.n_classes or len(stack) < 6:
            least = max(2 * self.n_classes, 6)
            raise CommandError(
                f"--classes {self.n_classes} wants at least {least} particles; the input has {len(stack)}"
            )
        self.poses = args.poses
        if self.poses == "input" and stack.rotations is None:
            raise CommandError("--poses input, but the input has no poses; the columns rlnAngleRot, ... are wanted")
        if self.poses == "input" and self.max_shift is not None:
            raise CommandError("--max-shift has no meaning beside --poses input: its origins are refined")
        if self.poses == "lines" and self.max_shift is None:
            self.max_shift = 0.0
        self.outputs = outputs(self.n_classes)

    def rows(self):
        rows = dict(super().rows()) | {"first poses from": _POSES[self.poses]}
        if self.poses != "abinitio":
            del rows["starts at most"]
        if self.poses == "input":
            rows["largest shift in x and in y"] = "origins of the input, refined"
        return list(rows.items())

    def key(self):
        return super().key() | {"--poses": self.poses}


def main(args, argv):
    """Run the command.

    Parameters
    ----------
    args : argparse.Namespace
        The arguments as the parser returned them.
    argv : list of str
        The arguments as they were given, for the report.
    """
    run = Run(args, argv, Classify3DSettings, stages=("preparing", "poses", "classes", "volumes"))
    with run.computing():
        images = prepare_once(run.stack, run.settings, run.folder.checkpoint)
        warn_of_dark_particles(images, run.settings.invert)
        run.lap("preparing")
        start = fit_ab_initio(run, images, "poses") if run.settings.poses == "abinitio" else None
        estimator = estimator_of(run, start)
        found = find_classes(run, images, estimator)
        halves = half_sets(run, start)
        volumes = reconstruct(run, images, found, halves)
    run.tell_warnings()
    trusted, verdict = write(run, start, estimator, found, halves, volumes)
    # A warning is heard by those who asked for quiet too.
    (run.tell if trusted else note)(verdict)
    run.tell_files()


def estimator_of(run, start):
    """The estimator with the parameters of a run; `start` is a fitted AbInitioVolume or None."""
    from ..heterogeneity import CommonLinesMaxCut

    settings = run.settings
    return CommonLinesMaxCut(
        settings.n_classes,
        init={"abinitio": start, "lines": "lud", "input": "poses"}[settings.poses],
        max_shift=settings.working(settings.max_shift) if settings.poses == "lines" else 0.0,
        mask_radius=settings.working(settings.mask_radius),
        checkpoint_dir=run.folder.checkpoint / "class_search",
        n_jobs=run.args.jobs,
        random_state=settings.seed,
    )


def find_classes(run, images, estimator):
    """Classes of all particles, the largest first.

    Parameters
    ----------
    run : Run
    images : ParticleStack
    estimator : CommonLinesMaxCut

    Returns
    -------
    found : dict
        ``labels``, ``rotations``, ``shifts``, ``separation``, ``separation_error``, ``objective_path``, ``likelihood``
        (of the particles of each class, mean) and ``weights`` (picture of the sorted weight matrix) as arrays;
        ``cut_value``, ``upper_bound``, ``n_iter``, and ``reason``: what keeps the classes from being trusted, or None.
    """
    settings = run.settings

    def compute():
        particles = images
        if settings.poses == "input":
            shifts = None if run.stack.shifts is None else run.stack.shifts / settings.scale
            particles = images.replace(rotations=run.stack.rotations, shifts=shifts)
        reason = _fit(run, estimator, particles)
        likelihood = np.take_along_axis(estimator.class_log_likelihood_, estimator.labels_[:, None], axis=1)[:, 0]
        counts = np.bincount(estimator.labels_, minlength=settings.n_classes)
        arrays = {
            "labels": estimator.labels_,
            "rotations": estimator.rotations_,
            "shifts": estimator.shifts_,
            "separation": estimator.separation_,
            "separation_error": estimator.separation_error_,
            "objective_path": np.asarray(estimator.objective_path_),
            "likelihood": np.bincount(estimator.labels_, likelihood, settings.n_classes) / np.maximum(counts, 1),
            "weights": sorted_weights(estimator),
        }
        facts = {name: float(getattr(estimator, f"{name}_")) for name in ("cut_value", "upper_bound", "n_iter")}
        return arrays, facts | {"reason": reason}

    arrays, facts = run.once("classes", compute)
    return arrays | facts


def _fit(run, estimator, images):
    """Fit; return what keeps the classes from being trusted, which the estimator warns of, or None."""
    reason = None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run.fit(estimator, images, StepReporter(**run.reporting("classes")), "classes")
    for warning in caught:
        text = str(warning.message)
        if text.startswith(_NOT_CONVERGED):
            reason = text.removeprefix(_NOT_CONVERGED)
        else:
            warnings.warn(warning.message, stacklevel=2)
    return reason


def sorted_weights(estimator):
    """The weight matrix of the cut, particles of one class together, as a small picture of means.

    Parameters
    ----------
    estimator : CommonLinesMaxCut
        Fitted.

    Returns
    -------
    picture : ndarray of shape (m, m), float32
        At most 256 rows.
    """
    from ..heterogeneity._line_graph import line_misfits

    lines, rows = estimator.common_lines_, estimator.line_images_
    weights = line_misfits(lines.angles, estimator.rotations_[rows], lines.checked)
    order = np.argsort(estimator.labels_[rows], kind="stable")
    starts = np.unique(np.linspace(0, len(order), min(len(order), _WEIGHTS), endpoint=False).astype(int))
    sizes = np.diff([*starts, len(order)])
    means = np.stack([weights[order[a : a + size]].mean(axis=0) for a, size in zip(starts, sizes)])
    return (np.add.reduceat(means[:, order], starts, axis=1) / sizes).astype(np.float32)


def half_sets(run, start):
    """Half of each particle for half maps, 0 or 1: that of the start, or drawn; (n,)."""
    if start is not None:
        return start.half_sets_
    return np.random.default_rng(run.settings.seed).permutation(np.arange(len(run.stack)) % 2)


def reconstruct(run, images, found, halves):
    """Volumes of all particles and of each class.

    Parameters
    ----------
    run : Run
    images : ParticleStack
    found : dict
        From :func:`find_classes`.
    halves : ndarray of shape (n,), int
        0 or 1. A class that has particles in one half only gets halves of its own.

    Returns
    -------
    volumes : list of FourierReconstructor or None
        Of all, then of the classes; None for a class of fewer than two particles.
    """
    from ..reconstruction import FourierReconstructor

    settings, labels = run.settings, found["labels"]
    volumes = []
    for k in range(settings.n_classes + 1):
        rows = np.arange(len(labels)) if k == 0 else np.flatnonzero(labels == k - 1)
        if len(rows) < 2:
            volumes.append(None)
            continue
        estimator = FourierReconstructor(
            mask_radius=settings.working(settings.mask_radius),
            checkpoint_dir=run.folder.checkpoint / f"volume{k}",
            n_jobs=run.args.jobs,
            random_state=settings.seed,
        )
        what = f"volume of class {k}" if k else "volume of all"
        reporter = ProgressReporter(**run.reporting("volumes"), unit=f"{what}, chunk")
        given = {"rotations": found["rotations"][rows], "shifts": found["shifts"][rows]}
        if len(np.unique(halves[rows])) == 2:
            given["half_sets"] = halves[rows]
        volumes.append(run.fit(estimator, images[rows], reporter, "volumes", **given))
    return volumes
