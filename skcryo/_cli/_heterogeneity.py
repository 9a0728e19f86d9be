"""``skcryo heterogeneity``: particles with poses in; latent coordinates, volumes along a motion and a verdict out."""

import html
import io
import shlex
import warnings

import numpy as np

from ._common import CommandError, note
from ._images import prepare, warn_of_dark_particles
from ._pictures import picture
from ._progress import StepReporter
from ._report import figure, heading, verdict_box, volume_grid
from ._run import Run
from ._select import by_number, select, want_column
from ._settings import Settings, key_length, told_length

_NOT_CONVERGED = "CryoDRGN did not converge: "
_MOST_COLUMNS = 20  # of coordinates in the table
_NEAREST = "skcryoNearestVolume"
_NOT_FOR_SELECT = {
    **{"z_dim": 8, "volumes": 10, "path": 10, "device": "auto"},
    **dict.fromkeys(("steps", "mask_radius", "downsample", "seed", "pixel_size", "jobs")),
    **dict.fromkeys(("invert", "no_ctf", "restart"), False),
}


def outputs(n_volumes, n_path):
    """Names of the files that a run leaves, ``run.json`` last.

    Parameters
    ----------
    n_volumes, n_path : int
        Volumes at centres of the coordinates and along the motion.

    Returns
    -------
    names : tuple of str
    """
    volumes = tuple(f"volume{k}.mrc" for k in range(1, n_volumes + 1))
    path = tuple(f"path{k}.mrc" for k in range(1, n_path + 1))
    movie = ("path.npy", *path, "path.gif") if n_path else ()
    pictures = ("latents.png", "report.html", "run.json")
    return ("particles.star", "latents.npy", "centres.npy", *volumes, *movie, *pictures)


class HeterogeneitySettings(Settings):
    """What a run of heterogeneity does; parameters as of :class:`Settings`."""

    def __init__(self, args, stack):
        self._want_particles(stack)
        super().__init__(args, stack)
        self._want_pixel_size()
        if stack.rotations is None:
            raise CommandError("the input has no poses; those of skcryo poses, skcryo abinitio or RELION are wanted")
        if args.z_dim >= len(stack):
            raise CommandError(f"-z {args.z_dim} is not below the {len(stack)} particles of the input")
        self.z_dim, self.steps = args.z_dim, args.steps
        self.mask_radius = self._mask_radius(args.mask_radius)
        self.n_volumes = min(args.volumes, len(stack))
        self.n_path = args.path if args.z_dim else 0
        if self.n_path == 1:
            raise CommandError("--path 1 is no motion; 2 volumes or more, or 0 for none, are wanted")
        self.outputs = outputs(self.n_volumes, self.n_path)

    def rows(self):
        return [
            ("latent coordinates", self.z_dim),
            *super().rows(),
            ("mask radius", told_length(self.mask_radius, "0.45 of the box")),
            ("steps of training", self.steps or "3000, or three passes over the particles"),
            ("CTF", "part of the model" if self.use_ctf else "not used"),
            ("poses", "those of the input"),
        ]

    def key(self):
        return super().key() | {
            "-z": self.z_dim,
            "--steps": self.steps,
            "--volumes": self.n_volumes,
            "--path": self.n_path,
            "--mask-radius": key_length(self.mask_radius),
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
        select(args, lambda table: _chosen(args, table), _NOT_FOR_SELECT, "takes particles of a finished run")
        return
    run = Run(args, argv, HeterogeneitySettings, stages=("preparing", "fitting"))
    with run.computing():
        images = prepare(run.stack, run.settings).load()
        warn_of_dark_particles(images, run.settings.invert)
        run.lap("preparing")
        estimator, reason = fit(run, images)
    run.tell_warnings()
    text = verdict(estimator, reason)
    _write(run, estimator, text, reason is None)
    # A warning is heard by those who asked for quiet too.
    (run.tell if reason is None else note)(text)
    run.tell_files()


def fit(run, images):
    """The decoder, fitted to the prepared images of a run.

    Parameters
    ----------
    run : Run
        With :class:`HeterogeneitySettings`.
    images : ParticleStack
        With poses.

    Returns
    -------
    estimator : CryoDRGN
    reason : str or None
        What keeps its coordinates from being trusted.
    """
    from ..heterogeneity import CryoDRGN

    settings, reason = run.settings, None
    estimator = CryoDRGN(
        settings.z_dim,
        max_iter=settings.steps,
        mask_radius=settings.working(settings.mask_radius),
        checkpoint_dir=run.folder.checkpoint / "fit",
        n_jobs=run.args.jobs,
        device=run.args.device,
        random_state=settings.seed,
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run.fit(estimator, images, StepReporter(**run.reporting("fitting")), "fitting")
    for warning in caught:
        message = str(warning.message)
        if message.startswith(_NOT_CONVERGED):
            reason = message.removeprefix(_NOT_CONVERGED)
        else:
            warnings.warn(warning.message, stacklevel=2)
    return estimator, reason


def reliability(estimator):
    """How well images tell each coordinate: the share of its variance that is not width of posteriors.

    Parameters
    ----------
    estimator : CryoDRGN
        Fitted.

    Returns
    -------
    ndarray of shape (z_dim,), float64
        Between 0 and 1, as coordinates have variance 1 in all.
    """
    return estimator.embedding_.var(axis=0)


def verdict(estimator, reason):
    """What the coordinates are worth, in a sentence or two.

    Parameters
    ----------
    estimator : CryoDRGN
        Fitted.
    reason : str or None
        From :func:`fit`.

    Returns
    -------
    text : str
    """
    if reason is not None:
        return f"NOT CONVERGED: {reason}. Do not read structure into the coordinates."
    if not estimator.z_dim:
        return "One volume for all particles."
    told = ", ".join(f"{share:.0%}" for share in reliability(estimator)[:8])
    return f"Particles differ: images tell {told} of the variance of the coordinates; the rest is noise."


def _chosen(args, table):
    """Particles nearest to some volumes, or with coordinates in some ranges, and what they are in words."""
    if not isinstance(args.select, dict):
        return by_number(args, table, _NEAREST, "volume"), f"nearest to {len(args.select)} volumes"
    from ..heterogeneity import select_latents

    for number in args.select:
        want_column(args, table, f"skcryoLatent{number + 1}")
    z = np.stack([table.numbers(f"skcryoLatent{number + 1}") for number in args.select], axis=1)
    chosen = select_latents(z, ranges=dict(enumerate(args.select.values())))
    if not chosen.any():
        raise CommandError("--select: no particle has coordinates in these ranges; wider ones are wanted")
    return chosen, "of coordinates in these ranges"


def _write(run, estimator, text, converged):
    """Write all results."""
    from ..io import save_volume, write_star

    settings, paths, n = run.settings, run.paths, len(run.stack)
    z, voxel_size = estimator.embedding_, settings.working_pixel_size
    found = _centres(z, settings.n_volumes, settings.seed)
    columns = {f"skcryoLatent{j + 1}": [f"{v:.5f}" for v in z[:, j]] for j in range(min(z.shape[1], _MOST_COLUMNS))}
    columns[_NEAREST] = [str(label + 1) for label in found.labels]
    write_star(paths["particles.star"], run.stack, columns=columns, overwrite=True)
    _save_array(paths["latents.npy"], z)
    _save_array(paths["centres.npy"], found.centers)
    run.leave_out([f"volume{k}.mrc" for k in range(len(found.centers) + 1, settings.n_volumes + 1)])
    volumes = estimator.volumes_at(found.centers)
    for k, volume in enumerate(volumes, start=1):
        save_volume(paths[f"volume{k}.mrc"], volume, voxel_size, overwrite=True)
    motion = _write_motion(run, estimator) if settings.n_path else []
    if settings.z_dim:
        with run.pictures():
            _draw_latents(paths["latents.png"], z, found.centers)
    else:
        run.leave_out(["latents.png"])
    blocks = [
        (heading(f"Volume {k}: {count} particles are nearest"), volume_grid(volume))
        for k, (volume, count) in enumerate(zip(volumes, found.counts), start=1)
    ]
    star = str(paths["particles.star"])
    run.finish(
        title=f"Heterogeneity of {n} particles",
        summary=f"{n} particles at {settings.working_box} px and {voxel_size:.4g} Å, {settings.z_dim} coordinates.",
        body=[verdict_box(text, converged), *motion, *(block for pair in blocks for block in pair)],
        facts={
            "converged": converged,
            "verdict": text,
            "z_dim": settings.z_dim,
            "reliability": reliability(estimator).round(4).tolist(),
            "centres": found.centers.round(5).tolist(),
            "counts": found.counts.tolist(),
            "box": settings.working_box,
            "voxel_size": voxel_size,
            "steps": int(estimator.n_iter_),
        },
        estimators=[estimator],
        next_steps=[
            ("One volume of all", f"skcryo reconstruct {shlex.quote(star)} -o volume"),
            ("Particles near a volume", f"skcryo heterogeneity {shlex.quote(star)} --select 1 -o near1.star"),
        ],
    )


def _save_array(path, array):
    from ..io import atomic_path

    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    with atomic_path(path, overwrite=True) as temporary:
        temporary.write_bytes(buffer.getvalue())


def _write_motion(run, estimator):
    """Write volumes along the first principal component of the coordinates; what the report shows of them."""
    from ..heterogeneity import latent_path
    from ..inspection import animate_volumes
    from ..inspection._grey_levels import shared_grey_levels
    from ..io import save_volume

    z, n_path = estimator.embedding_, run.settings.n_path
    path = latent_path(z, n_points=n_path)
    _save_array(run.paths["path.npy"], path)
    volumes = estimator.volumes_at(path)
    for k, volume in enumerate(volumes, start=1):
        save_volume(run.paths[f"path{k}.mrc"], volume, run.settings.working_pixel_size, overwrite=True)
    with run.pictures():
        animate_volumes(run.paths["path.gif"], volumes, overwrite=True)
    tiles = shared_grey_levels(volumes.sum(axis=1))
    figures = [figure(tile, f"Projection of path{k}", html.escape(f"path{k}")) for k, tile in enumerate(tiles, start=1)]
    return [heading("Along the motion: projections along z"), '<div class="averages">', *figures, "</div>"]


def _centres(z, n_centres, seed):
    """Centres of the coordinates, as :func:`skcryo.heterogeneity.latent_centers` has them, one of none."""
    from sklearn.utils import Bunch

    from ..heterogeneity import latent_centers

    if z.shape[1] == 0:
        return Bunch(centers=np.zeros((1, 0)), labels=np.zeros(len(z), dtype=int), counts=np.array([len(z)]))
    return latent_centers(z, n_centres, random_state=seed)


def _draw_latents(path, z, centres):
    """Draw the coordinates with the centres."""
    from ..inspection import LatentSpaceDisplay

    with picture(path, "the picture of the coordinates", size=(5.5, 5), place=(0.13, 0.11, 0.83, 0.85)) as ax:
        LatentSpaceDisplay(z, points=centres).plot(ax=ax)
