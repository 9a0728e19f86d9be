"""``skcryo classify2d``: particles in; class averages, a STAR file, a montage and a report out."""

import numpy as np

from ._charts import bar_chart, line_chart
from ._classes import classes_star, draw_montage, next_steps
from ._classify2d_sml import find_classes, write_classes
from ._common import CommandError
from ._images import prepare_once, warn_of_dark_particles
from ._progress import ProgressReporter
from ._report import averages_grid, heading, paragraph
from ._run import Run
from ._run_folder import write_text
from ._settings import Settings, key_length, told_length

OUTPUTS = ("particles.star", "class_averages.mrcs", "classes.star", "montage.png", "report.html", "run.json")
_CYCLES = 16  # across the box: what classes are told apart by, as in the alignment
_METHODS = {
    "kmeans": "rotation-invariant k-means",
    "sml": "alignment, then statistical manifold learning",
    "ml": "alignment, then maximum likelihood (independent class means)",
}


class Classify2DSettings(Settings):
    """What a run of classify2d does; parameters as of :class:`Settings`."""

    outputs = OUTPUTS
    worked = "classified"

    def __init__(self, args, stack):
        from ..cluster import RotInvWassersteinKMeans, SMLClustering

        self.method = args.method or "kmeans"
        self.by_model = self.method != "kmeans"
        self._check_method(args)
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
        self.max_iter = args.max_iter or (SMLClustering() if self.by_model else default).max_iter
        self.align = not args.no_align
        self.manifold = (args.manifold or "sphere") if self.method == "sml" else "none"
        if self.method == "sml":
            self.outputs = (*OUTPUTS[:4], "latent_map.png", *OUTPUTS[4:])
        if self.use_ctf or stack.metadata is None or args.resolution is not None:
            self._want_pixel_size()
        self.resolution = args.resolution
        if args.resolution is None and self.pixel_size is not None:
            self.resolution = self.box * self.pixel_size / _CYCLES

    def _check_method(self, args):
        """Refuse options that belong to another method."""
        wrong = {
            "--metric": self.by_model and args.metric is not None,
            "--n-angles": self.by_model and args.n_angles is not None,
            "--no-align": not self.by_model and args.no_align,
            "--resolution": not self.by_model and args.resolution is not None,
            "--manifold": self.method != "sml" and args.manifold is not None,
        }
        for option, is_wrong in wrong.items():
            if is_wrong:
                raise CommandError(f"{option} has no meaning with --method {self.method}")
        if args.no_align and args.max_shift is not None:
            raise CommandError("--max-shift has no meaning beside --no-align: no shifts are searched")

    def rows(self):
        """Return names and values for the report."""
        auto = "7 % of the box" if self.by_model else "5 % of the box in x and in y"
        own = [("metric", self.metric), ("in-plane angles", self.n_angles)]
        if self.by_model:
            own = [("manifold", self.manifold)] if self.method == "sml" else []
        own.append(("largest shift", told_length(self.max_shift, auto)))
        if self.by_model:
            told = "Nyquist" if self.resolution is None else f"{self.resolution:.4g} \u00c5"
            own.append(("finest detail compared", told))
        if not self.align:
            own[-2] = ("alignment", "psi and origins of the input, where it has them")
        return [
            ("classes", self.n_classes),
            ("method", _METHODS[self.method]),
            *own,
            *super().rows(),
            ("noise", "made white for the comparison of images; averages are of the images before that"),
            ("CTF", "used" if self.use_ctf else "not used"),
            ("iterations at most", self.max_iter),
        ]

    def key(self):
        """Return what decides the result, JSON-ready, but for the input."""
        own = {"--metric": self.metric, "--n-angles": self.n_angles}
        if self.by_model:
            own = {"--manifold": self.manifold, "--no-align": not self.align, "--resolution": self.resolution}
        return super().key() | {
            "--classes": self.n_classes,
            "--method": self.method,
            **own,
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
    estimator : RotInvWassersteinKMeans or SMLClustering
        Fitted.
    """
    from ..preprocessing import NoiseWhitener

    by_model = args.method in ("sml", "ml")
    aligning = ("aligning",) if by_model and not args.no_align else ()
    run = Run(args, argv, Classify2DSettings, stages=("preparing", *aligning, "classifying"))
    with run.computing():
        images = prepare_once(run.stack, run.settings, run.folder.checkpoint)
        warn_of_dark_particles(images, run.settings.invert)
        whitener = NoiseWhitener(remove_mean=True)
        white = whitener.fit_transform(images)
        run.lap("preparing")
        if by_model:
            found = find_classes(run, white)
            estimator = found.estimator
        else:
            estimator = _fit(run, white)
    run.tell_warnings()
    if by_model:
        write_classes(run, found, whitener)
    else:
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
    write_text(paths["classes.star"], classes_star(counts))
    with run.pictures():
        draw_montage(paths["montage.png"], averages, counts, images.pixel_size)
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
        next_steps=next_steps(str(paths["particles.star"]), counts),
    )


def _summary(n_particles, facts):
    sizes = facts["class_sizes"]
    ended = "settled" if facts["converged"] else "had not settled"
    text = (
        f"{n_particles} particles in {len(sizes)} classes, the largest of {max(sizes)}; "
        f"{ended} after {facts['iterations']} iterations."
    )
    return text + (f" {sizes.count(0)} classes are empty." if 0 in sizes else "")
