"""``skcryo heterogeneity``: particles with poses in; latent coordinates, volumes along them and a verdict out."""

import io
import shlex
import warnings

import numpy as np

from ._common import CommandError, note
from ._images import prepare, warn_of_dark_particles
from ._pictures import picture
from ._progress import StepReporter
from ._report import heading, verdict_box, volume_grid
from ._run import Run
from ._settings import Settings, key_length, told_length

_NOT_CONVERGED = "CryoDRGN did not converge: "
_MOST_COLUMNS = 20  # of coordinates in the table


def outputs(n_volumes):
    """Names of the files that a run leaves, ``run.json`` last.

    Parameters
    ----------
    n_volumes : int

    Returns
    -------
    names : tuple of str
    """
    volumes = tuple(f"volume{k}.mrc" for k in range(1, n_volumes + 1))
    return ("particles.star", "latents.npy", "centres.npy", *volumes, "latents.png", "report.html", "run.json")


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
        self.outputs = outputs(self.n_volumes)

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


def _write(run, estimator, text, converged):
    """Write all results."""
    from ..io import atomic_path, save_volume, write_star

    settings, paths, n = run.settings, run.paths, len(run.stack)
    z, voxel_size = estimator.embedding_, settings.working_pixel_size
    columns = {f"skcryoLatent{j + 1}": [f"{v:.5f}" for v in z[:, j]] for j in range(min(z.shape[1], _MOST_COLUMNS))}
    write_star(paths["particles.star"], run.stack, columns=columns, overwrite=True)
    centres, counts = _centres(z, settings.n_volumes, settings.seed)
    for name, array in (("latents.npy", z), ("centres.npy", centres)):
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        with atomic_path(paths[name], overwrite=True) as temporary:
            temporary.write_bytes(buffer.getvalue())
    run.leave_out([f"volume{k}.mrc" for k in range(len(centres) + 1, settings.n_volumes + 1)])
    volumes = estimator.volumes_at(centres)
    for k, volume in enumerate(volumes, start=1):
        save_volume(paths[f"volume{k}.mrc"], volume, voxel_size, overwrite=True)
    if settings.z_dim:
        with run.pictures():
            _draw_latents(paths["latents.png"], z, centres)
    else:
        run.leave_out(["latents.png"])
    blocks = [
        (heading(f"Volume {k}: {count} particles are nearest"), volume_grid(volume))
        for k, (volume, count) in enumerate(zip(volumes, counts), start=1)
    ]
    star = str(paths["particles.star"])
    run.finish(
        title=f"Heterogeneity of {n} particles",
        summary=f"{n} particles at {settings.working_box} px and {voxel_size:.4g} Å, {settings.z_dim} coordinates.",
        body=[verdict_box(text, converged), *(block for pair in blocks for block in pair)],
        facts={
            "converged": converged,
            "verdict": text,
            "z_dim": settings.z_dim,
            "reliability": reliability(estimator).round(4).tolist(),
            "centres": centres.round(5).tolist(),
            "counts": counts.tolist(),
            "box": settings.working_box,
            "voxel_size": voxel_size,
            "steps": int(estimator.n_iter_),
        },
        estimators=[estimator],
        next_steps=[("One volume of all", f"skcryo reconstruct {shlex.quote(star)} -o volume")],
    )


def _centres(z, n_centres, seed):
    """Centres of the coordinates by k-means, in order along the first, and how many are nearest to each."""
    from sklearn.cluster import KMeans

    if z.shape[1] == 0:
        return np.zeros((1, 0)), np.array([len(z)])
    found = KMeans(min(n_centres, len(np.unique(z, axis=0))), n_init=3, random_state=seed).fit(z)
    order = np.argsort(found.cluster_centers_[:, 0], kind="stable")
    return found.cluster_centers_[order], np.bincount(found.labels_, minlength=len(order))[order]


def _draw_latents(path, z, centres):
    """Draw the first two coordinates, or the histogram of one."""
    with picture(path, "the picture of the coordinates", size=(5, 5), place=(0.12, 0.1, 0.84, 0.86)) as ax:
        ax.set_xlabel("z1")
        if z.shape[1] == 1:
            ax.hist(z[:, 0], bins=60)
            for k, centre in enumerate(centres, start=1):
                ax.axvline(centre[0], color="black", linewidth=0.5)
                ax.annotate(str(k), (centre[0], 0.98), xycoords=("data", "axes fraction"), va="top")
            ax.set_ylabel("particles")
            return
        ax.hexbin(z[:, 0], z[:, 1], gridsize=60, bins="log", cmap="Blues")
        ax.plot(centres[:, 0], centres[:, 1], "k.", markersize=4)
        for k, centre in enumerate(centres, start=1):
            ax.annotate(str(k), centre[:2])
        ax.set_ylabel("z2")
