"""``skcryo abinitio``: raw particles in; poses, a volume or one for each class, half maps and a verdict out."""

import io
import math
import shlex
import warnings

import numpy as np

from .. import __version__
from ._abinitio_progress import StageReporter
from ._classify2d import (
    DEFAULT_BOX,
    _Clock,
    _input_line,
    _input_rows,
    _silent,
    load,
    prepare,
    versions,
    warn_of_dark_particles,
)
from ._common import CommandError, format_seconds, note, one_line, say
from ._reconstruct import fsc_star
from ._report import render_ab_initio_report
from ._run_folder import RunFolder, fingerprint, write_text

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


def run(args, argv):
    """Run the command.

    Parameters
    ----------
    args : argparse.Namespace
        The arguments as the parser returned them.
    argv : list of str
        The arguments as they were given, for the report.
    """
    _, paths = ab_initio(args, argv)
    for path in paths:
        say(path)


class Settings:
    """What a run does, with every default filled in.

    Parameters
    ----------
    args : argparse.Namespace
        Arguments of abinitio.
    stack : ParticleStack
        The input.

    Raises
    ------
    CommandError
        If an argument does not fit the input.
    """

    def __init__(self, args, stack):
        n_images, box, width = stack.shape
        if box != width:
            raise CommandError(f"images are {box} x {width} pixels; square images are wanted")
        self.n_classes = args.classes
        if n_images < 2:
            raise CommandError("the input has 1 particle; at least two are wanted")
        if self.n_classes > n_images:
            raise CommandError(
                f"--classes {self.n_classes} is more than the {n_images} particles of the input; at most {n_images} is "
                "wanted"
            )
        if stack.pixel_size is None:
            raise CommandError("the input says no pixel size; --pixel-size in Angstrom is wanted")
        self.box, self.pixel_size = box, stack.pixel_size
        self.working_box = min(DEFAULT_BOX, box) if args.downsample is None else args.downsample
        if self.working_box > box:
            raise CommandError(
                f"--downsample {self.working_box} is above the box of the input; at most {box} is wanted"
            )
        self.max_shift = self._pixels(args.max_shift)
        if self.max_shift is not None and self.max_shift >= box / 2:
            raise CommandError(
                f"--max-shift is {self.max_shift:g} pixels; less than half of the box of {box} is wanted"
            )
        self.mask_radius = self._pixels(args.mask_radius)
        if self.mask_radius is not None and not 0 < self.mask_radius <= box:
            raise CommandError(
                f"--mask-radius is {self.mask_radius:g} pixels of the input; above 0 and at most its box of {box} is "
                "wanted"
            )
        self.n_starts = args.starts
        self.seed = args.seed or 0
        self.invert = args.invert
        self.use_ctf = stack.ctf is not None and not args.no_ctf

    def _pixels(self, length):
        if length is None:
            return None
        value, unit = length
        return value if unit == "px" else value / self.pixel_size

    @property
    def scale(self):
        """Pixels of the input in one pixel of the images that are worked on."""
        return self.box / self.working_box

    @property
    def working_pixel_size(self):
        """Angstrom of the volumes' voxels."""
        return self.pixel_size * self.scale

    def rows(self):
        """Return names and values for the report."""
        shift = "5.5 % of the box" if self.max_shift is None else f"{self.max_shift:g} px of the input"
        mask = "0.42 of the box" if self.mask_radius is None else f"{self.mask_radius:g} px of the input"
        return [
            ("classes", self.n_classes),
            ("box", f"{self.box} px" + (f", worked at {self.working_box} px" if self.scale != 1 else "")),
            ("largest shift in x and in y", shift),
            ("mask radius", mask),
            ("starts at most", self.n_starts),
            ("contrast", "inverted" if self.invert else "as in the input"),
            ("background of each image", "mean 0, standard deviation 1"),
            ("CTF", "part of the model" if self.use_ctf else "not used"),
            ("symmetry", "none (C1)"),
            ("seed", self.seed),
        ]

    def key(self, stack, particles):
        """Return what decides the result, JSON-ready: a run goes on only under an equal key."""
        files = stack.image_files
        return {
            "skcryo": __version__,
            "command": "abinitio",
            "input": fingerprint(particles, [] if files is None else files[0]),
            "--classes": self.n_classes,
            "--max-shift": "auto" if self.max_shift is None else f"{self.max_shift:g} px",
            "--mask-radius": "auto" if self.mask_radius is None else f"{self.mask_radius:g} px",
            "--starts": self.n_starts,
            "--downsample": self.working_box,
            "--invert": self.invert,
            "--pixel-size": self.pixel_size,
            "CTF": self.use_ctf,
            "--seed": self.seed,
        }


def ab_initio(args, argv):
    """Find volume and poses, into the folder ``args.output``.

    Parameters
    ----------
    args : argparse.Namespace
        Arguments of abinitio.
    argv : list of str
        The arguments as they were given, for the report.

    Returns
    -------
    estimator : AbInitioVolume
        Fitted.
    paths : list of Path
        The files that were written.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        stack = load(args)
        settings = Settings(args, stack)
        folder = RunFolder(args.output, settings.key(stack, args.particles), outputs(settings.n_classes))
        state = folder.check(restart=args.restart, overwrite=args.overwrite)
    tell = _silent if args.quiet else note
    tell(_input_line(stack))
    progress = {"sessions": 0, "preparing": 0.0, "fitting": 0.0, **folder.begin(state)}
    if state == "interrupted":
        tell(f"going on from the checkpoint in {folder.checkpoint}")
    progress["sessions"] += 1
    clock = _Clock()
    try:
        with warnings.catch_warnings(record=True) as caught_later:
            warnings.simplefilter("always")
            images = prepare(stack, settings, folder.checkpoint)
            warn_of_dark_particles(images, settings.invert)
            progress["preparing"] += clock.lap()
            estimator = _fit(images, settings, args, folder, progress, clock)
    except (ValueError, FileNotFoundError, ImportError) as error:
        folder.discard()
        raise CommandError(one_line(error)) from error
    messages = list(dict.fromkeys(str(warning.message) for warning in [*caught, *caught_later]))
    # The verdict has a place of its own.
    messages = [message for message in messages if not message.startswith("AbInitioVolume did not converge")]
    for message in messages:
        note(f"warning: {message}")
    paths = _write(folder, stack, estimator, settings, argv, messages, progress, clock)
    # A warning is heard by those who asked for quiet too.
    (tell if estimator.converged_ else note)(verdict(estimator))
    return estimator, paths


def _fit(images, settings, args, folder, progress, clock):
    from ..reconstruction import AbInitioVolume

    estimator = AbInitioVolume(
        n_classes=settings.n_classes,
        mask_radius="auto" if settings.mask_radius is None else settings.mask_radius / settings.scale,
        max_shift="auto" if settings.max_shift is None else settings.max_shift / settings.scale,
        n_starts=settings.n_starts,
        checkpoint_dir=folder.checkpoint / "fit",
        n_jobs=args.jobs,
        device=args.device,
        random_state=settings.seed,
    )

    def on_step():
        progress["fitting"] += clock.lap()
        folder.record(progress)

    stream = io.StringIO() if args.quiet else None
    estimator.set_callbacks(StageReporter(stream, on_step=on_step, n_starts=settings.n_starts))
    estimator.fit(images)
    progress["fitting"] += clock.lap()
    return estimator


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


def _write(folder, stack, estimator, settings, argv, messages, progress, clock):
    """Write all results; return their paths."""
    from ..io import save_volume, write_star

    paths = {name: folder.path / name for name in folder.outputs}
    voxel_size = settings.working_pixel_size
    volumes = {"volume.mrc": estimator.volume_}
    counts = None
    if settings.n_classes > 1:
        counts = np.bincount(estimator.labels_, minlength=settings.n_classes)
        for k, volume in enumerate(estimator.class_volumes_):
            volumes[f"class{k + 1}.mrc"] = full_box(volume, settings.working_box)
    write_star(
        paths["particles.star"],
        stack,
        labels=estimator.labels_ if settings.n_classes > 1 else None,
        rotations=estimator.rotations_,
        shifts=estimator.shifts_ * settings.scale,
        columns={"rlnRandomSubset": estimator.half_sets_ + 1},
        overwrite=True,
    )
    halves = dict(zip(("half1.mrc", "half2.mrc"), estimator.half_maps_))
    for name, volume in (volumes | halves).items():
        save_volume(paths[name], volume, voxel_size, overwrite=True)
    write_text(paths["fsc.star"], fsc_star(estimator.fsc_, settings.working_box, voxel_size))
    try:
        _draw(estimator, volumes, paths, voxel_size)
    except ImportError as error:
        pictures = [name for name in paths if name.endswith(".png")]
        note(f"{', '.join(pictures)} are left out: {error}")
        paths = {name: path for name, path in paths.items() if name not in pictures}
    summary = _summary(stack, estimator, settings, counts, messages, progress)
    page = render_ab_initio_report(
        title=f"Ab initio volume from {len(stack)} particles",
        summary=_sentence(stack, settings, summary),
        verdict=verdict(estimator),
        converged=bool(estimator.converged_),
        scores=estimator.start_scores_,
        agreement=estimator.start_agreement_,
        curves=estimator.start_curves_,
        volumes=[(_volume_name(name, counts), volume) for name, volume in volumes.items()] + _differences(volumes),
        rotations=estimator.rotations_,
        curve=estimator.fsc_,
        box_size=settings.working_box,
        pixel_size=voxel_size,
        warnings=messages,
        next_steps=_next_steps(paths),
        sections=[
            ("Input", _input_rows(stack, folder.key["input"])),
            ("What was done", settings.rows()),
            ("Estimator", [("class", type(estimator).__name__), *sorted(estimator.get_params().items())]),
            ("Time", _time_rows(progress, clock)),
            ("Versions", list(summary["versions"].items())),
            ("Command", [("skcryo", shlex.join(argv))]),
        ],
    )
    write_text(paths["report.html"], page)
    folder.finish(summary)
    return list(paths.values())


def _summary(stack, estimator, settings, counts, messages, progress):
    """Facts for run.json."""
    return {
        "converged": bool(estimator.converged_),
        "verdict": verdict(estimator),
        "start_scores": estimator.start_scores_.round(4).tolist(),
        "start_agreement": estimator.start_agreement_.round(4).tolist(),
        "particles": len(stack),
        "class_sizes": None if counts is None else counts.tolist(),
        "box": settings.working_box,
        "voxel_size": settings.working_pixel_size,
        "resolution": estimator.resolution_ if math.isfinite(estimator.resolution_) else None,
        "fsc": estimator.fsc_.round(6).tolist(),
        "rounds": int(estimator.n_iter_),
        "seconds": {name: round(progress[name], 2) for name in ("preparing", "fitting")},
        "sessions": progress["sessions"],
        "versions": versions(),
        "warnings": messages,
    }


def _sentence(stack, settings, summary):
    resolution = summary["resolution"]
    told = (
        "the half maps agree nowhere" if resolution is None else f"{resolution:.1f} Å where the half maps' FSC is 0.143"
    )
    classes = "" if summary["class_sizes"] is None else f" Classes of {summary['class_sizes']} particles."
    return (
        f"{len(stack)} particles at {settings.working_box} px and {settings.working_pixel_size:.4g} Å: {told}.{classes}"
    )


def _volume_name(name, counts):
    if counts is None or name == "volume.mrc":
        return "Volume" if counts is None else "Volume of all particles"
    k = int(name.removeprefix("class").removesuffix(".mrc"))
    return f"Class {k}: {counts[k - 1]} particles"


def _differences(volumes):
    """What classes have that the largest one has not, for the report: states differ in little."""
    first, *others = [volume for name, volume in volumes.items() if name != "volume.mrc"] or [None]
    return [(f"Class {k} minus class 1", volume - first) for k, volume in enumerate(others, start=2)]


def _next_steps(paths):
    star = str(paths["particles.star"])
    return [
        ("At the full box, from these poses", f"skcryo reconstruct {shlex.quote(star)} -o volume"),
        ("Go on in Python", f"skcryo.io.load_particles({star!r})"),
    ]


def _time_rows(progress, clock):
    rows = [(name, format_seconds(progress[name])) for name in ("preparing", "fitting")]
    rows.append(("writing", format_seconds(clock.lap())))
    if progress["sessions"] > 1:
        rows.append(("sessions", f"{progress['sessions']}, going on from a checkpoint"))
    return rows


def _draw(estimator, volumes, paths, voxel_size):
    from ..inspection import AngularCoverageDisplay, FSCDisplay, VolumeDisplay
    from ..inspection._matplotlib import new_figure
    from ..io import atomic_path

    def save(figure, name):
        with atomic_path(paths[name], overwrite=True) as temporary:
            figure.savefig(temporary, format="png")

    figure = new_figure("the plot of the correlation", figsize=(6, 4), dpi=150)
    FSCDisplay.from_curves(
        estimator.fsc_,
        box_size=len(estimator.volume_),
        pixel_size=voxel_size,
        names=["half maps"],
        ax=figure.add_axes((0.11, 0.13, 0.86, 0.84)),
    )
    save(figure, "fsc.png")
    figure = new_figure("the map of views", figsize=(7, 4), dpi=150)
    AngularCoverageDisplay.from_estimator(estimator, ax=figure.add_axes((0.02, 0.02, 0.92, 0.96)))
    save(figure, "views.png")
    for name, volume in volumes.items():
        figure = new_figure("the picture of a volume", figsize=(7.5, 5.1), dpi=150)
        VolumeDisplay.from_volume(volume, pixel_size=voxel_size, ax=figure.add_axes((0.01, 0.01, 0.98, 0.98)))
        save(figure, "slices.png" if name == "volume.mrc" else name.replace(".mrc", ".png"))
