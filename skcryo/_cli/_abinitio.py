"""``skcryo abinitio``: raw particles in; poses, a volume or one for each class, half maps and a verdict out."""

import shlex

import numpy as np

from ._abinitio_progress import StageReporter
from ._charts import coverage_chart, fsc_chart
from ._common import note
from ._images import prepare_once, warn_of_dark_particles
from ._pictures import draw_fsc, draw_views, draw_volume, fsc_star, resolution_fact, told_resolution
from ._report import heading, table, verdict_box, volume_grid
from ._run import Run
from ._run_folder import write_text
from ._settings import Settings, key_length, told_length

_FIRST = ("particles.star", "volume.mrc", "half1.mrc", "half2.mrc", "fsc.star")
_PICTURES = ("fsc.png", "slices.png", "views.png")
_LAST = ("report.html", "run.json")


def outputs(n_classes):
    """Names of the files that a run leaves, ``run.json`` last.

    Parameters
    ----------
    n_classes : int

    Returns
    -------
    names : tuple of str
    """
    numbers = range(1, n_classes + 1) if n_classes > 1 else ()
    volumes = tuple(f"class{k}.mrc" for k in numbers)
    return (*_FIRST, *volumes, *_PICTURES, *(f"class{k}.png" for k in numbers), *_LAST)


class AbInitioSettings(Settings):
    """What a search for poses from nothing does; parameters as of :class:`Settings`."""

    def __init__(self, args, stack):
        self._want_particles(stack, args.classes)
        super().__init__(args, stack)
        self._want_pixel_size()
        self.n_classes = args.classes
        self.max_shift = self._max_shift(args.max_shift)
        self.mask_radius = self._mask_radius(args.mask_radius)
        self.n_starts = args.starts
        self.outputs = outputs(self.n_classes)

    def rows(self):
        return [
            ("classes", self.n_classes),
            *super().rows(),
            ("largest shift in x and in y", told_length(self.max_shift, "5.5 % of the box")),
            ("mask radius", told_length(self.mask_radius, "0.42 of the box")),
            ("starts at most", self.n_starts),
            ("CTF", "part of the model" if self.use_ctf else "not used"),
            ("symmetry", "none (C1)"),
        ]

    def key(self):
        return super().key() | {
            "--classes": self.n_classes,
            "--max-shift": key_length(self.max_shift),
            "--mask-radius": key_length(self.mask_radius),
            "--starts": self.n_starts,
        }


def main(args, argv):
    """Run the command.

    Parameters
    ----------
    args : argparse.Namespace
        The arguments as the parser returned them.
    argv : list of str
        The arguments as they were given, for the report.
    """
    run = Run(args, argv, AbInitioSettings, stages=("preparing", "fitting"))
    with run.computing():
        images = prepare_once(run.stack, run.settings, run.folder.checkpoint)
        warn_of_dark_particles(images, run.settings.invert)
        run.lap("preparing")
        estimator = fit_ab_initio(run, images, "fitting", n_classes=run.settings.n_classes)
    run.tell_warnings()
    _write(run, estimator)
    # A warning is heard by those who asked for quiet too.
    (run.tell if estimator.converged_ else note)(verdict(estimator))
    run.tell_files()


def fit_ab_initio(run, images, stage, **options):
    """Volume and poses from the prepared images of a run.

    Parameters
    ----------
    run : Run
        With :class:`AbInitioSettings`.
    images : ParticleStack
    stage : str
        Of the run.
    **options : dict
        Further parameters of the estimator.

    Returns
    -------
    estimator : AbInitioVolume
        Fitted. Its warning that it did not converge is not among those of the run: :func:`verdict` tells it.
    """
    from ..reconstruction import AbInitioVolume

    settings = run.settings
    estimator = AbInitioVolume(
        mask_radius=settings.working(settings.mask_radius),
        max_shift=settings.working(settings.max_shift),
        n_starts=settings.n_starts,
        checkpoint_dir=run.folder.checkpoint / "fit",
        n_jobs=run.args.jobs,
        device=run.args.device,
        random_state=settings.seed,
        **options,
    )
    run.told_elsewhere.append("AbInitioVolume did not converge")
    reporter = StageReporter(**run.reporting(stage), n_starts=settings.n_starts)
    return run.fit(estimator, images, reporter, stage)


def verdict(estimator):
    """Whether a volume can be trusted, in a sentence or two.

    Parameters
    ----------
    estimator : AbInitioVolume
        Fitted.

    Returns
    -------
    text : str
    """
    from ..reconstruction._ab_initio_fit import AGREEING_SHARE

    scores, agreement = estimator.start_scores_, estimator.start_agreement_
    best = int(np.argmax(scores))
    if len(scores) == 1:
        return (
            "NOT CONVERGED: there was one start, which nothing confirms. The volume may be wrong; give --starts 2 or "
            "more."
        )
    second = int(np.argmax(np.where(np.arange(len(scores)) == best, -1, agreement)))
    if estimator.converged_:
        return (
            f"Converged: start {second + 1} found, from other random poses, what start {best + 1} found, with "
            f"{agreement[second]:.0%} of the poses within 20 degrees."
        )
    if agreement[second] > AGREEING_SHARE:
        reason = "two starts agree, but poses still changed when the refinement ended"
    else:
        reason = f"of {len(scores)} starts, none agrees with the best in more than {agreement[second]:.0%} of the poses"
    return (
        f"NOT CONVERGED: {reason}. The volume may be wrong: look at the pictures, give more particles, more --starts, "
        "or a smaller --max-shift or --mask-radius."
    )


def full_box(volume, box):
    """A low-passed volume in a small box on the grid of a larger one of the same size in Angstrom.

    Parameters
    ----------
    volume : ndarray of shape (small, small, small)
    box : int

    Returns
    -------
    volume : ndarray of shape (box, box, box), float32
    """
    from ..fourier import fourier_crop, fourier_pad

    resize = fourier_pad if len(volume) < box else fourier_crop
    return np.asarray(resize(volume, box, ndim=3), dtype=np.float32)


def _write(run, estimator):
    """Write all results."""
    from ..io import save_volume, write_star

    settings, paths, n = run.settings, run.paths, len(run.stack)
    box, voxel_size = settings.working_box, settings.working_pixel_size
    volumes = {"volume.mrc": estimator.volume_}
    counts = None
    if settings.n_classes > 1:
        counts = np.bincount(estimator.labels_, minlength=settings.n_classes)
        for k, volume in enumerate(estimator.class_volumes_):
            volumes[f"class{k + 1}.mrc"] = full_box(volume, box)
    write_star(
        paths["particles.star"],
        run.stack,
        labels=None if counts is None else estimator.labels_,
        rotations=estimator.rotations_,
        shifts=estimator.shifts_ * settings.scale,
        columns={"rlnRandomSubset": estimator.half_sets_ + 1},
        overwrite=True,
    )
    halves = dict(zip(("half1.mrc", "half2.mrc"), estimator.half_maps_))
    for name, volume in (volumes | halves).items():
        save_volume(paths[name], volume, voxel_size, overwrite=True)
    write_text(paths["fsc.star"], fsc_star(estimator.fsc_, box, voxel_size))
    with run.pictures():
        draw_fsc(paths["fsc.png"], estimator.fsc_, box_size=box, pixel_size=voxel_size)
        draw_views(paths["views.png"], estimator)
        for name, volume in volumes.items():
            draw_volume(paths[_picture_of(name)], volume, voxel_size)
    facts = _facts(estimator, settings, counts)
    shown = [(_heading(name, counts), volume) for name, volume in volumes.items()] + _differences(volumes)
    run.finish(
        title=f"Ab initio volume from {n} particles",
        summary=_sentence(n, facts),
        body=[
            verdict_box(facts["verdict"], facts["converged"]),
            starts_table(estimator),
            *(block for name, volume in shown for block in (heading(name), volume_grid(volume))),
            heading("Fourier shell correlation of the half maps"),
            fsc_chart(estimator.fsc_, box, voxel_size),
            heading("Viewing directions"),
            coverage_chart(estimator.rotations_),
        ],
        facts=facts,
        estimators=[estimator],
        next_steps=_next_steps(str(paths["particles.star"])),
    )


def starts_table(estimator):
    """What each start of an ab initio fit came to, as a block of the report."""
    scores, agreement, curves = estimator.start_scores_, estimator.start_agreement_, estimator.start_curves_
    best = int(np.argmax(scores))
    names = ("start", "epochs", "log-likelihood of an image", "poses that agree with the best start")
    rows = [
        (i + 1, len(curves[i]), f"{score:.2f}", "the best" if i == best else f"{share:.0%}")
        for i, (score, share) in enumerate(zip(scores, agreement))
    ]
    return table(names, rows)


def _facts(estimator, settings, counts):
    """Facts for run.json."""
    return {
        "converged": bool(estimator.converged_),
        "verdict": verdict(estimator),
        "start_scores": estimator.start_scores_.round(4).tolist(),
        "start_agreement": estimator.start_agreement_.round(4).tolist(),
        "class_sizes": None if counts is None else counts.tolist(),
        "box": settings.working_box,
        "voxel_size": settings.working_pixel_size,
        "resolution": resolution_fact(estimator.resolution_),
        "fsc": estimator.fsc_.round(6).tolist(),
        "rounds": int(estimator.n_iter_),
    }


def _sentence(n_particles, facts):
    sizes = facts["class_sizes"]
    classes = "" if sizes is None else f" Classes of {sizes} particles."
    return (
        f"{n_particles} particles at {facts['box']} px and {facts['voxel_size']:.4g} Å: "
        f"{told_resolution(facts['resolution'])}.{classes}"
    )


def _heading(name, counts):
    if counts is None or name == "volume.mrc":
        return "Volume" if counts is None else "Volume of all particles"
    k = int(name.removeprefix("class").removesuffix(".mrc"))
    return f"Class {k}: {counts[k - 1]} particles"


def _picture_of(name):
    return "slices.png" if name == "volume.mrc" else name.replace(".mrc", ".png")


def _differences(volumes):
    """What classes have that the largest one has not, for the report: states differ in little."""
    first, *others = [volume for name, volume in volumes.items() if name != "volume.mrc"] or [None]
    return [(f"Class {k} minus class 1", volume - first) for k, volume in enumerate(others, start=2)]


def _next_steps(star):
    return [
        ("At the full box, from these poses", f"skcryo reconstruct {shlex.quote(star)} -o volume"),
        ("Go on in Python", f"skcryo.io.load_particles({star!r})"),
    ]
