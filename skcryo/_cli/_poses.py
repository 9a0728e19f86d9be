"""``skcryo poses``: raw particles in; poses with how far off they may be, a volume, half maps and a verdict out."""

import shlex
import warnings

import numpy as np

from ._abinitio import AbInitioSettings
from ._charts import coverage_chart, fsc_chart
from ._common import note
from ._images import prepare_once, warn_of_dark_particles
from ._pictures import draw_fsc, draw_views, draw_volume, fsc_star, resolution_fact, told_resolution
from ._progress import ProgressReporter, StepReporter
from ._report import heading, verdict_box, volume_grid
from ._run import Run
from ._run_folder import write_text

OUTPUTS = (
    "particles.star",
    "volume.mrc",
    "half1.mrc",
    "half2.mrc",
    "fsc.star",
    "fsc.png",
    "slices.png",
    "views.png",
    "network.safetensors",
    "report.html",
    "run.json",
)
UNCERTAINTY, PROBABILITY = "skcryoAngleUncertainty", "skcryoParticleProbability"
_NOT_CONVERGED = "EquivariantPoseNet did not converge: "


class PosesSettings(AbInitioSettings):
    """What a run of poses does; parameters as of :class:`Settings`."""

    def __init__(self, args, stack):
        super().__init__(args, stack)
        self.steps = args.steps
        self.outputs = OUTPUTS

    def rows(self):
        rows = [row for row in super().rows() if row[0] != "classes"]
        return [*rows, ("steps of training", self.steps)]

    def key(self):
        key = super().key() | {"--steps": self.steps}
        del key["--classes"]
        return key


def main(args, argv):
    """Run the command.

    Parameters
    ----------
    args : argparse.Namespace
        The arguments as the parser returned them.
    argv : list of str
        The arguments as they were given, for the report.
    """
    run = Run(args, argv, PosesSettings, stages=("preparing", "poses", "volume"))
    with run.computing():
        images = prepare_once(run.stack, run.settings, run.folder.checkpoint)
        warn_of_dark_particles(images, run.settings.invert)
        run.lap("preparing")
        estimator, reason = fit(run, images)
        told = estimator.predict_poses(images)
        volume = reconstruct(run, images, estimator)
    run.tell_warnings()
    text = verdict(estimator, reason)
    _write(run, estimator, told, volume, text)
    # A warning is heard by those who asked for quiet too.
    (run.tell if estimator.converged_ else note)(text)
    run.tell_files()


def fit(run, images):
    """Poses of the prepared images of a run.

    Parameters
    ----------
    run : Run
        With :class:`PosesSettings`.
    images : ParticleStack

    Returns
    -------
    estimator : EquivariantPoseNet
        Fitted.
    reason : str or None
        What keeps its poses from being trusted.
    """
    from ..orientation import EquivariantPoseNet
    from ..reconstruction import AbInitioVolume

    settings, reason = run.settings, None
    shared = {
        "mask_radius": settings.working(settings.mask_radius),
        "max_shift": settings.working(settings.max_shift),
        "n_jobs": run.args.jobs,
        "device": run.args.device,
        "random_state": settings.seed,
    }
    folder = run.folder.checkpoint / "fit"
    estimator = EquivariantPoseNet(
        init=AbInitioVolume(n_starts=settings.n_starts, checkpoint_dir=folder, **shared),
        max_iter=settings.steps,
        checkpoint_dir=folder,
        **shared,
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run.fit(estimator, images, StepReporter(**run.reporting("poses")), "poses")
    for warning in caught:
        message = str(warning.message)
        if message.startswith(_NOT_CONVERGED):
            reason = message.removeprefix(_NOT_CONVERGED)
        else:
            warnings.warn(warning.message, stacklevel=2)
    return estimator, reason


def reconstruct(run, images, estimator):
    """A volume of the images at their poses, with half maps; FourierReconstructor, fitted."""
    from ..reconstruction import FourierReconstructor

    volume = FourierReconstructor(
        mask_radius=run.settings.working(run.settings.mask_radius),
        checkpoint_dir=run.folder.checkpoint / "volume",
        n_jobs=run.args.jobs,
        random_state=run.settings.seed,
    )
    reporter = ProgressReporter(**run.reporting("volume"), unit="volume, chunk")
    return run.fit(volume, images, reporter, "volume", rotations=estimator.rotations_, shifts=estimator.shifts_)


def verdict(estimator, reason):
    """Whether poses can be trusted, in a sentence or two.

    Parameters
    ----------
    estimator : EquivariantPoseNet
        Fitted.
    reason : str or None
        From :func:`fit`.

    Returns
    -------
    text : str
    """
    if reason is None:
        return (
            f"Converged: projections of the volume whose poses are known are found {estimator.validation_error_:.2g} "
            f"degrees off (median), and common lines of the particles agree {estimator.line_agreement_:.0%} as well as "
            "theirs."
        )
    return f"NOT CONVERGED: {reason}. The poses may be wrong."


def _write(run, estimator, told, volume, text):
    """Write all results."""
    from ..io import save_volume, write_star

    settings, paths, n = run.settings, run.paths, len(run.stack)
    box, voxel_size = settings.working_box, settings.working_pixel_size
    write_star(
        paths["particles.star"],
        run.stack,
        rotations=estimator.rotations_,
        shifts=estimator.shifts_ * settings.scale,
        columns={
            UNCERTAINTY: [f"{angle:.3f}" for angle in told.uncertainty],
            PROBABILITY: [f"{share:.3f}" for share in told.probability],
        },
        overwrite=True,
    )
    estimator.save(paths["network.safetensors"], overwrite=True)
    volumes = {"volume.mrc": volume.volume_, "half1.mrc": volume.half_maps_[0], "half2.mrc": volume.half_maps_[1]}
    for name, density in volumes.items():
        save_volume(paths[name], density, voxel_size, overwrite=True)
    write_text(paths["fsc.star"], fsc_star(volume.fsc_, box, voxel_size))
    with run.pictures():
        draw_fsc(paths["fsc.png"], volume.fsc_, box_size=box, pixel_size=voxel_size)
        draw_volume(paths["slices.png"], volume.volume_, voxel_size)
        draw_views(paths["views.png"], estimator)
    facts = {
        "converged": bool(estimator.converged_),
        "ambiguous": bool(estimator.ambiguous_),
        "verdict": text,
        "uncertainty_quantiles": np.quantile(told.uncertainty, [0.1, 0.5, 0.9]).round(3).tolist(),
        "unlikely_particles": int((told.probability < 0.5).sum()),
        "validation_error": round(estimator.validation_error_, 4),
        "line_agreement": round(estimator.line_agreement_, 4),
        "box": box,
        "voxel_size": voxel_size,
        "resolution": resolution_fact(volume.resolution_),
        "fsc": volume.fsc_.round(6).tolist(),
        "steps": int(estimator.n_iter_),
    }
    star, network = str(paths["particles.star"]), str(paths["network.safetensors"])
    run.finish(
        title=f"Poses of {n} particles",
        summary=f"{n} particles at {box} px and {voxel_size:.4g} Å: {told_resolution(facts['resolution'])}.",
        body=[
            verdict_box(text, facts["converged"]),
            heading("Volume"),
            volume_grid(volume.volume_),
            heading("Fourier shell correlation of the half maps"),
            fsc_chart(volume.fsc_, box, voxel_size),
            heading("Viewing directions"),
            coverage_chart(estimator.rotations_),
        ],
        facts=facts,
        estimators=[estimator, volume],
        next_steps=[
            ("At the full box, from these poses", f"skcryo reconstruct {shlex.quote(star)} -o volume"),
            ("Poses of new images in Python", f"EquivariantPoseNet.load({network!r}).predict(stack)"),
            ("Go on in Python", f"skcryo.io.load_particles({star!r})"),
        ],
    )
