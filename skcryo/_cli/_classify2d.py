"""``skcryo classify2d``: particles in; class averages, a STAR file, a montage and a report out."""

import importlib.metadata
import io
import platform
import shlex
import time
import warnings

import numpy as np

from .. import __version__
from ._common import CommandError, format_seconds, note, one_line, say
from ._progress import ProgressReporter
from ._report import render_report
from ._run_folder import OUTPUTS, RunFolder, fingerprint, write_text

# Prepared images that take more bytes than this go to a scratch file; those in memory are there twice.
IN_MEMORY = 2**30
# A larger box is cropped in Fourier space to this one unless --downsample says otherwise: the cost of a
# comparison grows with the area, and noisy images tell classes apart by coarse features.
DEFAULT_BOX = 64


def run(args, argv):
    """Run the command.

    Parameters
    ----------
    args : argparse.Namespace
        The arguments as the parser returned them.
    argv : list of str
        The arguments as they were given, for the report.
    """
    _, paths = classify(args, argv)
    for path in paths:
        say(path)


def load(args):
    """Return the particles of the files; what is wrong with them ends the command."""
    from ..io import load_particles

    try:
        return load_particles(args.particles, images_dir=args.images_dir, pixel_size=args.pixel_size)
    except (ValueError, OSError) as error:
        raise CommandError(one_line(error)) from error


class Settings:
    """What a run does, with every default filled in.

    Parameters
    ----------
    args : argparse.Namespace
        Arguments of classify2d.
    stack : ParticleStack
        The input.

    Raises
    ------
    CommandError
        If an argument does not fit the input.
    """

    def __init__(self, args, stack):
        from ..cluster import RotInvWassersteinKMeans

        default = RotInvWassersteinKMeans()
        n_images, box, width = stack.shape
        if box != width:
            raise CommandError(f"images are {box} x {width} pixels; square images are wanted")
        self.n_classes = 50 if args.classes is None else args.classes
        if self.n_classes > n_images:
            given = "the default of --classes, 50," if args.classes is None else f"--classes {self.n_classes}"
            raise CommandError(
                f"{given} is more than the {n_images} particles of the input; at most {n_images} is wanted"
            )
        self.box = box
        self.working_box = min(DEFAULT_BOX, box) if args.downsample is None else args.downsample
        if self.working_box > box:
            raise CommandError(
                f"--downsample {self.working_box} is above the box of the input; at most {box} is wanted"
            )
        self.max_shift = self._max_shift(args.max_shift, stack.pixel_size, default.max_shift)
        if self.max_shift != "auto" and self.max_shift >= box / 2:
            raise CommandError(
                f"--max-shift is {self.max_shift:g} pixels; less than half of the box of {box} is wanted"
            )
        self.metric = args.metric or default.metric
        self.n_angles = args.n_angles or default.n_angles
        self.max_iter = args.max_iter or default.max_iter
        self.seed = args.seed or 0
        self.invert = args.invert
        self.use_ctf = stack.ctf is not None and not args.no_ctf
        if stack.pixel_size is None and (self.use_ctf or stack.metadata is None):
            raise CommandError("the input says no pixel size; --pixel-size in Angstrom is wanted")

    def _max_shift(self, length, pixel_size, default):
        if length is None:
            return default
        value, unit = length
        if unit == "px":
            return value
        if pixel_size is None:
            raise CommandError("--max-shift is in Angstrom but the input has no pixel size; pixels are wanted")
        return value / pixel_size

    @property
    def scale(self):
        """Pixels of the input in one pixel of the images that are classified."""
        return self.box / self.working_box

    def rows(self):
        """Return names and values for the report."""
        return [
            ("classes", self.n_classes),
            ("metric", self.metric),
            ("in-plane angles", self.n_angles),
            (
                "largest shift",
                "5 % of the box in x and in y" if self.max_shift == "auto" else f"{self.max_shift:g} px of the input",
            ),
            ("box", f"{self.box} px" + (f", classified at {self.working_box} px" if self.scale != 1 else "")),
            ("contrast", "inverted" if self.invert else "as in the input"),
            ("background of each image", "mean 0, standard deviation 1"),
            ("noise", "made white for the comparison of images; averages are of the images before that"),
            ("CTF", "used" if self.use_ctf else "not used"),
            ("iterations at most", self.max_iter),
            ("random seed", self.seed),
        ]

    def key(self, stack, particles):
        """Return what decides the result, JSON-ready: a run goes on only under an equal key."""
        files = stack.image_files
        return {
            "skcryo": __version__,
            "input": fingerprint(particles, [] if files is None else files[0]),
            "--classes": self.n_classes,
            "--metric": self.metric,
            "--n-angles": self.n_angles,
            "--max-shift": self.max_shift if self.max_shift == "auto" else f"{self.max_shift:g} px",
            "--downsample": self.working_box,
            "--invert": self.invert,
            "CTF": self.use_ctf,
            "--max-iter": self.max_iter,
            "--seed": self.seed,
        }


def classify(args, argv):
    """Classify particles into the folder ``args.output``.

    Parameters
    ----------
    args : argparse.Namespace
        Arguments of classify2d.
    argv : list of str
        The arguments as they were given, for the report.

    Returns
    -------
    estimator : RotInvWassersteinKMeans
        Fitted.
    paths : list of Path
        The files that were written.
    """
    from ..preprocessing import NoiseWhitener

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        stack = load(args)
        settings = Settings(args, stack)
        folder = RunFolder(args.output, settings.key(stack, args.particles))
        state = folder.check(restart=args.restart, overwrite=args.overwrite)
    tell = _silent if args.quiet else note
    tell(_input_line(stack))

    progress = {"sessions": 0, "preparing": 0.0, "classifying": 0.0, **folder.begin(state)}
    if state == "interrupted":
        tell(f"going on from the checkpoint in {folder.checkpoint}")
    progress["sessions"] += 1
    clock = _Clock()
    try:
        with warnings.catch_warnings(record=True) as caught_later:
            warnings.simplefilter("always")
            images = prepare(stack, settings, folder.checkpoint)
            warn_of_dark_particles(images, settings.invert)
            white = NoiseWhitener(remove_mean=True).fit_transform(images)
            progress["preparing"] += clock.lap()
            estimator = _fit(white, settings, args, folder, progress, clock)
    except (ValueError, FileNotFoundError) as error:
        folder.discard()
        raise CommandError(one_line(error)) from error
    messages = list(dict.fromkeys(str(warning.message) for warning in [*caught, *caught_later]))
    for message in messages:
        note(f"warning: {message}")
    paths = _write(folder, stack, images, estimator, settings, args, argv, messages, progress, clock)
    return estimator, paths


def prepare(stack, settings, scratch):
    """Downsample, change the sign and normalise, once, so that no iteration does it again.

    Parameters
    ----------
    stack : ParticleStack
        The input.
    settings : Settings
        What to do.
    scratch : Path
        Folder for the result where it is too large for memory.

    Returns
    -------
    images : ParticleStack
        In memory or in a file in `scratch`.
    """
    from ..io import load_particles, save_images
    from ..preprocessing import FourierDownsampler, NormalizeBackground

    # Alignments of the input are what is estimated here, and images are taken as they are.
    images = stack.replace(shifts=None, rotations=None, metadata=None)
    if not settings.use_ctf:
        images = images.replace(ctf=None)
    if settings.scale != 1:
        images = FourierDownsampler(settings.working_box).fit_transform(images)
    if settings.invert:
        images = images.map(np.negative)
    images = NormalizeBackground().fit_transform(images)
    if images.nbytes <= IN_MEMORY:
        return images.load()
    path = scratch / "images.mrcs"
    if not path.exists():  # written under another name first: what is there is complete
        save_images(path, images)
    return load_particles(path).replace(pixel_size=images.pixel_size, ctf=images.ctf)


def warn_of_dark_particles(images, inverted):
    """Warn if the middle of the images is darker than their border, which k-means would not notice."""
    sample = np.asarray(images[:: max(len(images) // 500, 1)])
    size = sample.shape[-1]
    offset = np.arange(size) - size // 2
    radius = np.hypot(offset[:, None], offset)
    contrast = sample[:, radius < 0.2 * size].mean(axis=1) - sample[:, radius > 0.45 * size].mean(axis=1)
    if contrast.mean() < -5 * contrast.std() / np.sqrt(len(contrast)):
        advice = "without --invert they are light" if inverted else "give --invert if so"
        warnings.warn(f"particles look dark on a light background; {advice}", UserWarning, stacklevel=2)


def _fit(images, settings, args, folder, progress, clock):
    from ..cluster import RotInvWassersteinKMeans

    estimator = RotInvWassersteinKMeans(
        settings.n_classes,
        metric=settings.metric,
        n_angles=settings.n_angles,
        max_shift="auto" if settings.max_shift == "auto" else settings.max_shift / settings.scale,
        max_iter=settings.max_iter,
        checkpoint_dir=folder.checkpoint / "fit",
        n_jobs=args.jobs,
        random_state=settings.seed,
    )

    def on_iteration(inertia):
        progress["classifying"] += clock.lap()
        folder.record(progress)

    stream = io.StringIO() if args.quiet else None
    estimator.set_callbacks(ProgressReporter(stream, on_iteration=on_iteration))
    estimator.fit(images)
    progress["classifying"] += clock.lap()
    return estimator


def _write(folder, stack, images, estimator, settings, args, argv, messages, progress, clock):
    """Write all results; return their paths."""
    from ..alignment import class_averages
    from ..io import save_images, write_star

    shifts = estimator.shifts_ * settings.scale
    counts = np.bincount(estimator.labels_, minlength=settings.n_classes)
    averages, _ = class_averages(
        images, estimator.labels_, estimator.in_plane_angles_, estimator.shifts_, settings.n_classes,
        ctf=images.ctf, pixel_size=images.pixel_size,
        n_jobs=-1 if args.jobs is None else args.jobs,
    )
    paths = [folder.path / name for name in OUTPUTS]
    star, mrcs, classes, montage, report, _ = paths
    write_star(
        star,
        stack,
        labels=estimator.labels_,
        in_plane_angles=estimator.in_plane_angles_,
        shifts=shifts,
        overwrite=True,
    )
    save_images(mrcs, averages, images.pixel_size, overwrite=True)
    write_text(classes, _classes_star(counts))
    try:
        _draw_montage(montage, averages, counts, images.pixel_size)
    except ImportError as error:
        note(f"{montage.name} is left out: {error}")
        paths.remove(montage)
    summary = {
        "particles": len(stack),
        "class_sizes": counts.tolist(),
        "iterations": int(estimator.n_iter_),
        "converged": bool(estimator.converged_),
        "inertia": float(estimator.inertia_),
        "seconds": {name: round(progress[name], 2) for name in ("preparing", "classifying")},
        "sessions": progress["sessions"],
        "versions": versions(),
        "warnings": messages,
    }
    page = render_report(
        title=f"2-D classes of {len(stack)} particles",
        summary=_summary(stack, settings, summary),
        averages=averages,
        counts=counts,
        history=list(enumerate(np.asarray(estimator.inertia_curve_, dtype=float).tolist(), start=1)),
        warnings=messages,
        next_steps=_next_steps(star, counts),
        sections=[
            ("Input", _input_rows(stack, folder.key["input"])),
            ("What was done", settings.rows()),
            ("Estimator", [("class", type(estimator).__name__), *sorted(estimator.get_params().items())]),
            ("Time", _time_rows(progress, clock)),
            ("Versions", list(summary["versions"].items())),
            ("Command", [("skcryo", shlex.join(argv))]),
        ],
    )
    write_text(report, page)
    folder.finish(summary)
    return paths


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
    from ..inspection._matplotlib import new_figure
    from ..io import atomic_path

    figure = new_figure("the montage", figsize=montage_figsize(len(averages)), dpi=150)
    ax = figure.add_axes((0.01, 0.03, 0.98, 0.96))
    ClassAveragesDisplay.from_averages(averages, counts=counts, pixel_size=pixel_size, ax=ax)
    with atomic_path(path, overwrite=True) as temporary:
        figure.savefig(temporary, format="png")


def versions():
    """Versions of what computed the result."""
    names = ["skcryo", "numpy", "scipy", "scikit-learn", "PyWavelets", "mrcfile", "gemmi"]
    return {"Python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}}


def _summary(stack, settings, summary):
    largest = max(summary["class_sizes"])
    empty = summary["class_sizes"].count(0)
    ended = "settled" if summary["converged"] else "had not settled"
    text = (
        f"{len(stack)} particles in {settings.n_classes} classes, the largest of {largest}; "
        f"{ended} after {summary['iterations']} iterations."
    )
    return text + (f" {empty} classes are empty." if empty else "")


def _next_steps(star, counts):
    best = ",".join(str(i) for i in sorted(np.argsort(-counts, kind="stable")[:3] + 1))
    return [
        ("Keep good classes", f"skcryo classify2d {shlex.quote(str(star))} --select {best} -o good.star"),
        ("Go on in Python", f"skcryo.io.load_particles({str(star)!r})"),
    ]


def _input_line(stack):
    pixels = "" if stack.pixel_size is None else f" of {stack.pixel_size:g} A"
    ctf = "with CTF" if stack.ctf is not None else "without CTF"
    return f"{len(stack)} particles, {stack.shape[1]} x {stack.shape[2]} pixels{pixels}, {ctf}"


def _input_rows(stack, files):
    rows = [("particles", len(stack)), ("box", f"{stack.shape[1]} px")]
    rows.append(("pixel size", "not in the file" if stack.pixel_size is None else f"{stack.pixel_size:g} A"))
    return rows + [("file", f"{name} ({mark})") for name, mark in files.items()]


def _time_rows(progress, clock):
    rows = [(name, format_seconds(progress[name])) for name in ("preparing", "classifying")]
    rows.append(("writing", format_seconds(clock.lap())))
    if progress["sessions"] > 1:
        rows.append(("sessions", f"{progress['sessions']}, going on from a checkpoint"))
    return rows


class _Clock:
    """Time since it was last asked."""

    def __init__(self):
        self._last = time.monotonic()

    def lap(self):
        now = time.monotonic()
        elapsed, self._last = now - self._last, now
        return elapsed


def _silent(text):
    """Say nothing."""
