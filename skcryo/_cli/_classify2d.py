"""``skcryo classify2d``: particles in; class averages, a STAR file, a montage and a report out."""

import shlex

import numpy as np

from ._charts import bar_chart, line_chart
from ._common import CommandError
from ._images import prepare_once, warn_of_dark_particles
from ._pictures import picture
from ._progress import ProgressReporter
from ._report import averages_grid, heading, paragraph
from ._run import Run
from ._run_folder import write_text
from ._settings import Settings, key_length, told_length

OUTPUTS = ("particles.star", "class_averages.mrcs", "classes.star", "montage.png", "report.html", "run.json")


class Classify2DSettings(Settings):
    """What a run of classify2d does; parameters as of :class:`Settings`."""

    outputs = OUTPUTS
    worked = "classified"

    def __init__(self, args, stack):
        from ..cluster import RotInvWassersteinKMeans

        default = RotInvWassersteinKMeans()
        self.n_classes = 50 if args.classes is None else args.classes
        if self.n_classes > len(stack):
            given = "the default of --classes, 50," if args.classes is None else f"--classes {self.n_classes}"
            raise CommandError(
                f"{given} is more than the {len(stack)} particles of the input; at most {len(stack)} is wanted"
            )
        super().__init__(args, stack)
        self.max_shift = self._max_shift(args.max_shift)
        self.metric = args.metric or default.metric
        self.n_angles = args.n_angles or default.n_angles
        self.max_iter = args.max_iter or default.max_iter
        if self.use_ctf or stack.metadata is None:
            self._want_pixel_size()

    def rows(self):
        return [
            ("classes", self.n_classes),
            ("metric", self.metric),
            ("in-plane angles", self.n_angles),
            ("largest shift", told_length(self.max_shift, "5 % of the box in x and in y")),
            *super().rows(),
            ("noise", "made white for the comparison of images; averages are of the images before that"),
            ("CTF", "used" if self.use_ctf else "not used"),
            ("iterations at most", self.max_iter),
        ]

    def key(self):
        return super().key() | {
            "--classes": self.n_classes,
            "--metric": self.metric,
            "--n-angles": self.n_angles,
            "--max-shift": key_length(self.max_shift),
            "--max-iter": self.max_iter,
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
    if args.select is not None:
        from ._select import main as select

        select(args, argv)
        return
    run, _ = classify(args, argv)
    run.tell_files()


def classify(args, argv):
    """Classify particles into the folder ``args.output``.

    Parameters
    ----------
    args, argv
        As in :func:`main`.

    Returns
    -------
    run : Run
        Finished.
    estimator : RotInvWassersteinKMeans
        Fitted.
    """
    from ..preprocessing import NoiseWhitener

    run = Run(args, argv, Classify2DSettings, stages=("preparing", "classifying"))
    with run.computing():
        images = prepare_once(run.stack, run.settings, run.folder.checkpoint)
        warn_of_dark_particles(images, run.settings.invert)
        white = NoiseWhitener(remove_mean=True).fit_transform(images)
        run.lap("preparing")
        estimator = _fit(run, white)
    run.tell_warnings()
    _write(run, images, estimator)
    return run, estimator


def _fit(run, images):
    from ..cluster import RotInvWassersteinKMeans

    settings = run.settings
    estimator = RotInvWassersteinKMeans(
        settings.n_classes,
        metric=settings.metric,
        n_angles=settings.n_angles,
        max_shift=settings.working(settings.max_shift),
        max_iter=settings.max_iter,
        checkpoint_dir=run.folder.checkpoint / "fit",
        n_jobs=run.args.jobs,
        random_state=settings.seed,
    )
    return run.fit(estimator, images, ProgressReporter(**run.reporting("classifying")), "classifying")


def _write(run, images, estimator):
    """Write all results."""
    from ..alignment import class_averages
    from ..io import save_images, write_star

    settings, paths = run.settings, run.paths
    counts = np.bincount(estimator.labels_, minlength=settings.n_classes)
    averages, _ = class_averages(
        images,
        estimator.labels_,
        estimator.in_plane_angles_,
        estimator.shifts_,
        settings.n_classes,
        ctf=images.ctf,
        pixel_size=images.pixel_size,
        n_jobs=-1 if run.args.jobs is None else run.args.jobs,
    )
    write_star(
        paths["particles.star"],
        run.stack,
        labels=estimator.labels_,
        in_plane_angles=estimator.in_plane_angles_,
        shifts=estimator.shifts_ * settings.scale,
        overwrite=True,
    )
    save_images(paths["class_averages.mrcs"], averages, images.pixel_size, overwrite=True)
    write_text(paths["classes.star"], _classes_star(counts))
    with run.pictures():
        _draw_montage(paths["montage.png"], averages, counts, images.pixel_size)
    facts = {
        "class_sizes": counts.tolist(),
        "iterations": int(estimator.n_iter_),
        "converged": bool(estimator.converged_),
        "inertia": float(estimator.inertia_),
    }
    order = np.argsort(-counts, kind="stable")
    run.finish(
        title=f"2-D classes of {len(run.stack)} particles",
        summary=_summary(len(run.stack), facts),
        body=[
            heading("Class averages"),
            paragraph("Largest class first; class number, then particles."),
            averages_grid(averages, counts),
            heading("Particles in each class"),
            bar_chart(counts[order], order + 1),
            heading("Convergence"),
            line_chart(estimator.inertia_curve_, "Inertia"),
        ],
        facts=facts,
        estimators=[estimator],
        next_steps=_next_steps(str(paths["particles.star"]), counts),
    )


def _classes_star(counts):
    """The averages as RELION's table of classes, so that its viewer sorts them by size."""
    lines = ["", "# version 30001", "", "data_model_classes", "", "loop_ "]
    lines += ["_rlnReferenceImage #1 ", "_rlnClassDistribution #2 "]
    shares = counts / counts.sum()
    lines += [f"{i:06d}@class_averages.mrcs {share:.6f} " for i, share in enumerate(shares, start=1)]
    return "\n".join([*lines, "", ""])


def _draw_montage(path, averages, counts, pixel_size):
    from ..inspection import ClassAveragesDisplay
    from ..inspection._class_averages import montage_figsize

    size = montage_figsize(len(averages))
    with picture(path, "the montage", size=size, place=(0.01, 0.03, 0.98, 0.96)) as ax:
        ClassAveragesDisplay.from_averages(averages, counts=counts, pixel_size=pixel_size, ax=ax)


def _summary(n_particles, facts):
    sizes = facts["class_sizes"]
    ended = "settled" if facts["converged"] else "had not settled"
    text = (
        f"{n_particles} particles in {len(sizes)} classes, the largest of {max(sizes)}; "
        f"{ended} after {facts['iterations']} iterations."
    )
    return text + (f" {sizes.count(0)} classes are empty." if 0 in sizes else "")


def _next_steps(star, counts):
    best = ",".join(str(i) for i in sorted(np.argsort(-counts, kind="stable")[:3] + 1))
    return [
        ("Keep good classes", f"skcryo classify2d {shlex.quote(star)} --select {best} -o good.star"),
        ("Go on in Python", f"skcryo.io.load_particles({star!r})"),
    ]
