"""``skcryo reconstruct``: particles with poses in; a volume, its half maps, their correlation and a report out."""

import numpy as np

from ._charts import fsc_chart
from ._common import CommandError
from ._images import prepare, warn_of_dark_particles
from ._pictures import draw_fsc, draw_volume, fsc_star, resolution_fact, told_resolution
from ._progress import ProgressReporter
from ._report import heading, volume_grid
from ._run import Run
from ._run_folder import write_text
from ._settings import Settings, key_length, told_length

OUTPUTS = ("volume.mrc", "half1.mrc", "half2.mrc", "fsc.star", "fsc.png", "slices.png", "report.html", "run.json")


class ReconstructSettings(Settings):
    """What a run of reconstruct does; parameters as of :class:`Settings`."""

    outputs = OUTPUTS
    worked = "reconstructed"

    def __init__(self, args, stack):
        self._want_particles(stack, why=", for half maps")
        super().__init__(args, stack, largest_box=None)
        if stack.rotations is None:
            raise CommandError(
                "the input has no poses; the columns rlnAngleRot, rlnAngleTilt and rlnAnglePsi are wanted (or "
                "alignments3D of cryoSPARC)"
            )
        self._want_pixel_size()
        self.mask_radius = self._mask_radius(args.mask_radius)
        self.max_frequency = 0.5
        if args.max_resolution is not None:
            finest = 2 * self.working_pixel_size
            if args.max_resolution < finest * (1 - 1e-6):
                raise CommandError(
                    f"--max-resolution is {args.max_resolution:g} A; at least {finest:.4g} A, two pixels, is wanted"
                )
            self.max_frequency = min(0.5, self.working_pixel_size / args.max_resolution)
        self.normalize = not args.no_normalize
        self.half_sets = half_sets_of(stack.metadata)

    def rows(self):
        halves = f"drawn, seed {self.seed}" if self.half_sets is None else "rlnRandomSubset of the input"
        return [
            *super().rows(),
            ("mask radius", told_length(self.mask_radius, "0.45 of the box")),
            ("finest resolution used", f"{self.working_pixel_size / self.max_frequency:.4g} A"),
            ("CTF", "corrected" if self.use_ctf else "not used"),
            ("half sets", halves),
            ("symmetry", "none (C1)"),
        ]

    def key(self):
        return super().key() | {
            "--mask-radius": key_length(self.mask_radius),
            "--max-resolution": f"{self.working_pixel_size / self.max_frequency:.6g} A",
            "--no-normalize": not self.normalize,
        }


def half_sets_of(table):
    """Half sets that the input brings along, or None.

    Parameters
    ----------
    table : StarTable or None

    Returns
    -------
    half_sets : ndarray of shape (n,), int64, or None
        0 or 1.
    """
    numbers = None if table is None else table.numbers("rlnRandomSubset")
    if numbers is None:
        return None
    bad = np.flatnonzero((numbers != 1) & (numbers != 2))
    if len(bad) or len(np.unique(numbers)) < 2:
        what = f"particle {bad[0] + 1} has {numbers[bad[0]]:g}" if len(bad) else "all have the same"
        raise CommandError(f"rlnRandomSubset of the input: {what}; 1 and 2 are wanted, or no such column")
    return (numbers - 1).astype(int)


def main(args, argv):
    """Run the command.

    Parameters
    ----------
    args : argparse.Namespace
        The arguments as the parser returned them.
    argv : list of str
        The arguments as they were given, for the report.
    """
    run = Run(args, argv, ReconstructSettings, stages=("reconstructing",))
    with run.computing():
        images = prepare(run.stack, run.settings)
        warn_of_dark_particles(images, run.settings.invert)
        estimator = _fit(run, images)
    run.tell_warnings()
    _write(run, estimator)
    run.tell_files()


def _fit(run, images):
    from ..reconstruction import FourierReconstructor

    settings = run.settings
    estimator = FourierReconstructor(
        mask_radius=settings.working(settings.mask_radius),
        max_frequency=settings.max_frequency,
        checkpoint_dir=run.folder.checkpoint / "fit",
        n_jobs=run.args.jobs,
        random_state=settings.seed,
    )
    reporter = ProgressReporter(**run.reporting("reconstructing"), unit="chunk")
    return run.fit(estimator, images, reporter, "reconstructing", half_sets=settings.half_sets)


def _write(run, estimator):
    """Write all results."""
    from ..io import save_volume

    box, voxel_size = run.settings.working_box, run.settings.working_pixel_size
    for name, volume in zip(OUTPUTS, (estimator.volume_, *estimator.half_maps_)):
        save_volume(run.paths[name], volume, voxel_size, overwrite=True)
    write_text(run.paths["fsc.star"], fsc_star(estimator.fsc_, box, voxel_size))
    with run.pictures():
        draw_fsc(run.paths["fsc.png"], estimator.fsc_, box_size=box, pixel_size=voxel_size)
        draw_volume(run.paths["slices.png"], estimator.volume_, voxel_size)
    resolution = resolution_fact(estimator.resolution_)
    n = len(run.stack)
    run.finish(
        title=f"Volume from {n} particles",
        summary=f"{n} particles of {box} px and {voxel_size:.4g} Å: {told_resolution(resolution)}.",
        body=[
            heading("Volume"),
            volume_grid(estimator.volume_),
            heading("Fourier shell correlation of the half maps"),
            fsc_chart(estimator.fsc_, box, voxel_size),
        ],
        facts={"box": box, "voxel_size": voxel_size, "resolution": resolution, "fsc": estimator.fsc_.round(6).tolist()},
        estimators=[estimator],
        next_steps=[("Go on in Python", f"skcryo.io.load_volume({str(run.paths['volume.mrc'])!r})")],
    )
