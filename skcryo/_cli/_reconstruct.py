"""``skcryo reconstruct``: particles with poses in; a volume, its half maps, their correlation and a report out."""

import io
import math
import shlex
import warnings

import numpy as np

from .. import __version__
from ._classify2d import _Clock, _input_line, _input_rows, _silent, load, versions, warn_of_dark_particles
from ._common import CommandError, format_seconds, note, one_line, say
from ._progress import ProgressReporter
from ._report import render_volume_report
from ._run_folder import RunFolder, fingerprint, write_text

OUTPUTS = (
    "volume.mrc",
    "half1.mrc",
    "half2.mrc",
    "fsc.star",
    "fsc.png",
    "slices.png",
    "report.html",
    "run.json",
)


def run(args, argv):
    """Run the command.

    Parameters
    ----------
    args : argparse.Namespace
        The arguments as the parser returned them.
    argv : list of str
        The arguments as they were given, for the report.
    """
    _, paths = reconstruct(args, argv)
    for path in paths:
        say(path)


class Settings:
    """What a run does, with every default filled in.

    Parameters
    ----------
    args : argparse.Namespace
        Arguments of reconstruct.
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
        if n_images < 2:
            raise CommandError("the input has 1 particle; at least two are wanted, for half maps")
        if stack.rotations is None:
            raise CommandError(
                "the input has no poses; the columns rlnAngleRot, rlnAngleTilt and rlnAnglePsi are wanted (or "
                "alignments3D of cryoSPARC)"
            )
        if stack.pixel_size is None:
            raise CommandError("the input says no pixel size; --pixel-size in Angstrom is wanted")
        self.box, self.pixel_size = box, stack.pixel_size
        self.working_box = box if args.downsample is None else args.downsample
        if self.working_box > box:
            raise CommandError(
                f"--downsample {self.working_box} is above the box of the input; at most {box} is wanted"
            )
        self.mask_radius = self._pixels(args.mask_radius)
        if self.mask_radius is not None and not 0 < self.mask_radius <= box:
            raise CommandError(
                f"--mask-radius is {self.mask_radius:g} pixels of the input; above 0 and at most its box of {box} is "
                "wanted"
            )
        self.max_frequency = 0.5
        if args.max_resolution is not None:
            finest = 2 * self.working_pixel_size
            if args.max_resolution < finest * (1 - 1e-6):
                raise CommandError(
                    f"--max-resolution is {args.max_resolution:g} A; at least {finest:.4g} A, two pixels, is wanted"
                )
            self.max_frequency = min(0.5, self.working_pixel_size / args.max_resolution)
        self.use_ctf = stack.ctf is not None and not args.no_ctf
        self.normalize = not args.no_normalize
        self.invert = args.invert
        self.seed = args.seed or 0
        self.half_sets = _half_sets(stack.metadata)

    def _pixels(self, length):
        if length is None:
            return None
        value, unit = length
        return value if unit == "px" else value / self.pixel_size

    @property
    def scale(self):
        """Pixels of the input in one pixel of the volume."""
        return self.box / self.working_box

    @property
    def working_pixel_size(self):
        """Angstrom of the volume's voxels."""
        return self.pixel_size * self.scale

    def rows(self):
        """Return names and values for the report."""
        resized = f", reconstructed at {self.working_box} px" if self.scale != 1 else ""
        mask = "0.45 of the box" if self.mask_radius is None else f"{self.mask_radius:g} px of the input"
        halves = f"drawn, seed {self.seed}" if self.half_sets is None else "rlnRandomSubset of the input"
        return [
            ("box", f"{self.box} px{resized}"),
            ("mask radius", mask),
            ("finest resolution used", f"{self.working_pixel_size / self.max_frequency:.4g} A"),
            ("contrast", "inverted" if self.invert else "as in the input"),
            ("background of each image", "mean 0, standard deviation 1" if self.normalize else "as in the input"),
            ("CTF", "corrected" if self.use_ctf else "not used"),
            ("half sets", halves),
            ("symmetry", "none (C1)"),
        ]

    def key(self, stack, particles):
        """Return what decides the result, JSON-ready: a run goes on only under an equal key."""
        files = stack.image_files
        return {
            "skcryo": __version__,
            "command": "reconstruct",
            "input": fingerprint(particles, [] if files is None else files[0]),
            "--mask-radius": "auto" if self.mask_radius is None else f"{self.mask_radius:g} px",
            "--max-resolution": f"{self.working_pixel_size / self.max_frequency:.6g} A",
            "--downsample": self.working_box,
            "--invert": self.invert,
            "--no-normalize": not self.normalize,
            "--pixel-size": self.pixel_size,
            "CTF": self.use_ctf,
            "--seed": self.seed,
        }


def _half_sets(table):
    """Half sets that the input brings along, or None."""
    numbers = None if table is None else table.numbers("rlnRandomSubset")
    if numbers is None:
        return None
    bad = np.flatnonzero((numbers != 1) & (numbers != 2))
    if len(bad) or len(np.unique(numbers)) < 2:
        what = f"particle {bad[0] + 1} has {numbers[bad[0]]:g}" if len(bad) else "all have the same"
        raise CommandError(f"rlnRandomSubset of the input: {what}; 1 and 2 are wanted, or no such column")
    return (numbers - 1).astype(int)


def reconstruct(args, argv):
    """Reconstruct into the folder ``args.output``.

    Parameters
    ----------
    args : argparse.Namespace
        Arguments of reconstruct.
    argv : list of str
        The arguments as they were given, for the report.

    Returns
    -------
    estimator : FourierReconstructor
        Fitted.
    paths : list of Path
        The files that were written.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        stack = load(args)
        settings = Settings(args, stack)
        folder = RunFolder(args.output, settings.key(stack, args.particles), OUTPUTS)
        state = folder.check(restart=args.restart, overwrite=args.overwrite)
    tell = _silent if args.quiet else note
    tell(_input_line(stack))
    progress = {"sessions": 0, "reconstructing": 0.0, **folder.begin(state)}
    if state == "interrupted":
        tell(f"going on from the checkpoint in {folder.checkpoint}")
    progress["sessions"] += 1
    clock = _Clock()
    try:
        with warnings.catch_warnings(record=True) as caught_later:
            warnings.simplefilter("always")
            images = prepare(stack, settings)
            warn_of_dark_particles(images, settings.invert)
            estimator = _fit(images, settings, args, folder, progress, clock)
    except (ValueError, FileNotFoundError) as error:
        folder.discard()
        raise CommandError(one_line(error)) from error
    messages = list(dict.fromkeys(str(warning.message) for warning in [*caught, *caught_later]))
    for message in messages:
        note(f"warning: {message}")
    return estimator, _write(folder, stack, estimator, settings, argv, messages, progress, clock)


def prepare(stack, settings):
    """The images as they are inserted, computed when they are read.

    Parameters
    ----------
    stack : ParticleStack
        The input.
    settings : Settings
        What to do.

    Returns
    -------
    images : ParticleStack
    """
    from ..preprocessing import FourierDownsampler, NormalizeBackground

    images = stack.replace(metadata=None)
    if not settings.use_ctf:
        images = images.replace(ctf=None)
    if settings.scale != 1:
        images = FourierDownsampler(settings.working_box).fit_transform(images)
    if settings.invert:
        images = images.map(np.negative)
    if settings.normalize:
        images = NormalizeBackground().fit_transform(images)
    return images


def _fit(images, settings, args, folder, progress, clock):
    from ..reconstruction import FourierReconstructor

    estimator = FourierReconstructor(
        mask_radius="auto" if settings.mask_radius is None else settings.mask_radius / settings.scale,
        max_frequency=settings.max_frequency,
        checkpoint_dir=folder.checkpoint / "fit",
        n_jobs=args.jobs,
        random_state=settings.seed,
    )

    def on_chunk(_):
        progress["reconstructing"] += clock.lap()
        folder.record(progress)

    stream = io.StringIO() if args.quiet else None
    estimator.set_callbacks(ProgressReporter(stream, on_iteration=on_chunk, unit="chunk"))
    estimator.fit(images, half_sets=settings.half_sets)
    progress["reconstructing"] += clock.lap()
    return estimator


def _write(folder, stack, estimator, settings, argv, messages, progress, clock):
    """Write all results; return their paths."""
    from ..inspection._volume_slices import grey_tiles
    from ..io import save_volume

    paths = [folder.path / name for name in OUTPUTS]
    volume, half1, half2, star, fsc_png, slices_png, report, _ = paths
    voxel_size = settings.working_pixel_size
    for path, density in zip((volume, half1, half2), (estimator.volume_, *estimator.half_maps_)):
        save_volume(path, density, voxel_size, overwrite=True)
    write_text(star, fsc_star(estimator.fsc_, settings.working_box, voxel_size))
    try:
        _draw(estimator, fsc_png, slices_png, voxel_size)
    except ImportError as error:
        note(f"{fsc_png.name} and {slices_png.name} are left out: {error}")
        paths.remove(fsc_png)
        paths.remove(slices_png)
    resolution = estimator.resolution_ if math.isfinite(estimator.resolution_) else None
    summary = {
        "particles": len(stack),
        "box": settings.working_box,
        "voxel_size": voxel_size,
        "resolution": resolution,
        "fsc": estimator.fsc_.round(6).tolist(),
        "seconds": {"reconstructing": round(progress["reconstructing"], 2)},
        "sessions": progress["sessions"],
        "versions": versions(),
        "warnings": messages,
    }
    told = (
        "the half maps agree nowhere" if resolution is None else f"{resolution:.1f} Å where the half maps' FSC is 0.143"
    )
    names = ["slice xy", "slice xz", "slice yz", "projection along z", "projection along y", "projection along x"]
    seconds = [("reconstructing", format_seconds(progress["reconstructing"])), ("writing", format_seconds(clock.lap()))]
    if progress["sessions"] > 1:
        seconds.append(("sessions", f"{progress['sessions']}, going on from a checkpoint"))
    page = render_volume_report(
        title=f"Volume from {len(stack)} particles",
        summary=f"{len(stack)} particles of {settings.working_box} px and {voxel_size:.4g} Å: {told}.",
        tiles=list(zip(names, grey_tiles(estimator.volume_).reshape(6, *estimator.volume_.shape[1:]))),
        curve=estimator.fsc_,
        box_size=settings.working_box,
        pixel_size=voxel_size,
        warnings=messages,
        next_steps=[("Go on in Python", f"skcryo.io.load_volume({str(volume)!r})")],
        sections=[
            ("Input", _input_rows(stack, folder.key["input"])),
            ("What was done", settings.rows()),
            ("Estimator", [("class", type(estimator).__name__), *sorted(estimator.get_params().items())]),
            ("Time", seconds),
            ("Versions", list(summary["versions"].items())),
            ("Command", [("skcryo", shlex.join(argv))]),
        ],
    )
    write_text(report, page)
    folder.finish(summary)
    return paths


def fsc_star(curve, box_size, voxel_size):
    """A Fourier shell correlation as a STAR table.

    Parameters
    ----------
    curve : array-like of shape (n_shells,)
    box_size : int
    voxel_size : float
        Angstrom.

    Returns
    -------
    text : str
        Shell, frequency in 1/Angstrom, Angstrom (999 for shell 0, as RELION has it) and correlation.
    """
    names = ["rlnSpectralIndex", "rlnResolution", "rlnAngstromResolution", "rlnFourierShellCorrelation"]
    lines = ["", "# version 30001", "", "data_fsc", "", "loop_ "]
    lines += [f"_{name} #{i} " for i, name in enumerate(names, start=1)]
    for shell, value in enumerate(curve):
        frequency = shell / (box_size * voxel_size)
        length = 1 / frequency if shell else 999.0
        lines.append(f"{shell:12d} {frequency:12.6f} {length:12.6f} {value:12.6f} ")
    return "\n".join([*lines, "", ""])


def _draw(estimator, fsc_path, slices_path, voxel_size):
    from ..inspection import FSCDisplay, VolumeDisplay
    from ..inspection._matplotlib import new_figure
    from ..io import atomic_path

    figure = new_figure("the plot of the correlation", figsize=(6, 4), dpi=150)
    FSCDisplay.from_estimator(estimator, ax=figure.add_axes((0.11, 0.13, 0.86, 0.84)))
    with atomic_path(fsc_path, overwrite=True) as temporary:
        figure.savefig(temporary, format="png")
    figure = new_figure("the picture of the volume", figsize=(7.5, 5.1), dpi=150)
    ax = figure.add_axes((0.01, 0.01, 0.98, 0.98))
    VolumeDisplay.from_volume(estimator.volume_, pixel_size=voxel_size, ax=ax)
    with atomic_path(slices_path, overwrite=True) as temporary:
        figure.savefig(temporary, format="png")
