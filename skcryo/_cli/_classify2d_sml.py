"""``skcryo classify2d --method sml`` and ``ml``: particles are aligned, then classified by a model of their images."""

import io
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from ._charts import line_chart, occupancy_chart
from ._classes import classes_star, draw_montage, next_steps
from ._images import computed
from ._pictures import picture
from ._progress import ProgressReporter
from ._report import averages_grid, heading, paragraph, png_figure
from ._run_folder import write_text

_LEAST_LIKELY = 24  # classes shown apart in the report


@dataclass
class FoundClasses:
    """What a run by a model comes to.

    Attributes
    ----------
    estimator : SMLClustering
        Fitted to images that are white, turned and centred.
    aligner : InPlaneAligner or None
        With the parameters that were used; None of particles that were aligned already.
    angles : ndarray of shape (n,) or None
        Radians; None where nothing was to be undone.
    shifts : ndarray of shape (n, 2)
        Pixels of the images that were worked on.
    likelihoods : ndarray of shape (n,)
        Log-likelihood of each image.
    evidence : ndarray of shape (n,)
        The same above that of no particle.
    certainties : ndarray of shape (n,)
        Probability of the class that an image is given.
    """

    estimator: Any
    aligner: Any
    angles: np.ndarray | None
    shifts: np.ndarray
    likelihoods: np.ndarray
    evidence: np.ndarray
    certainties: np.ndarray


def find_classes(run, white):
    """Align and classify.

    Parameters
    ----------
    run : Run
        With :class:`~skcryo._cli._classify2d.Classify2DSettings`.
    white : ParticleStack
        Prepared images whose noise is white.

    Returns
    -------
    found : FoundClasses
    """
    from ..cluster import SMLClustering
    from ..preprocessing._in_plane_aligner import turned_stack

    settings, aligner = run.settings, None
    if settings.align:
        aligner, angles, shifts = _align(run, white)
    else:
        angles, shifts = known_alignment(run.stack, settings.scale)
    aligned = white
    if angles is not None:
        turned = turned_stack(white, angles, shifts, ctf=white.ctf).replace(shifts=None)
        aligned = computed(turned, run.folder.checkpoint / "aligned.mrcs")
    estimator = SMLClustering(
        settings.n_classes,
        manifold=settings.manifold,
        resolution=settings.resolution,
        max_iter=settings.max_iter,
        checkpoint_dir=run.folder.checkpoint / "fit",
        random_state=settings.seed,
    )
    run.fit(estimator, aligned, ProgressReporter(**run.reporting("classifying")), "classifying")
    return FoundClasses(
        estimator,
        aligner,
        angles,
        shifts,
        estimator.log_likelihoods(aligned),
        estimator.score_samples(aligned),
        estimator.responsibilities_.max(axis=1).toarray().ravel(),
    )


def _align(run, white):
    """In-plane angles and shifts, as of :class:`~skcryo.preprocessing.InPlaneAligner`; once, whatever is killed."""
    from ..preprocessing import InPlaneAligner

    settings = run.settings
    aligner = InPlaneAligner(
        max_shift=settings.working(settings.max_shift),
        checkpoint_dir=run.folder.checkpoint / "align",
        n_jobs=run.args.jobs,
        random_state=settings.seed,
    )

    def compute():
        reporter = ProgressReporter(**run.reporting("aligning"), unit="alignment, iteration")
        fitted = run.fit(aligner, white, reporter, "aligning")
        return {"angles": fitted.angles_, "shifts": fitted.shifts_}, {}

    arrays, _ = run.once("alignment", compute)
    return aligner, arrays["angles"], arrays["shifts"]


def known_alignment(stack, scale):
    """In-plane angles and shifts that particles came with.

    Parameters
    ----------
    stack : ParticleStack
        The input.
    scale : float
        Its pixels in one pixel of the images that are worked on.

    Returns
    -------
    angles : ndarray of shape (n,), float64, or None
        Radians, by psi; None where the input has neither poses nor origins.
    shifts : ndarray of shape (n, 2), float64
        In pixels of the images that are worked on.
    """
    from ..rotations import relion_from_rotations

    n = len(stack)
    shifts = np.zeros((n, 2)) if stack.shifts is None else np.asarray(stack.shifts) / scale
    if stack.rotations is not None:
        psi = relion_from_rotations(stack.rotations)[:, 2]
    elif stack.metadata is not None and "rlnAnglePsi" in stack.metadata:  # of 2-D classes: psi alone
        psi = stack.metadata.numbers("rlnAnglePsi")
    else:
        return (None if stack.shifts is None else np.zeros(n)), shifts
    return -np.radians(psi), shifts


def write_classes(run, found, whitener):
    """Write all results.

    Parameters
    ----------
    run : Run
    found : FoundClasses
    whitener : NoiseWhitener
        That of the images, so that averages get their colour back.
    """
    from ..io import save_images, write_star

    settings, paths, estimator = run.settings, run.paths, found.estimator
    n = settings.n_classes
    counts = np.bincount(estimator.labels_, minlength=n)
    averages = whitener.inverse_transform(estimator.class_averages_)
    pixel_size = None if settings.pixel_size is None else settings.working_pixel_size
    pose = {}
    if settings.align:
        pose = {"in_plane_angles": found.angles, "shifts": found.shifts * settings.scale}
    columns = {
        "rlnLogLikeliContribution": found.likelihoods,
        "rlnMaxValueProbDistribution": found.certainties.astype(np.float64),
        "skcryoParticleEvidence": found.evidence,
    }
    write_star(paths["particles.star"], run.stack, labels=estimator.labels_, columns=columns, overwrite=True, **pose)
    save_images(paths["class_averages.mrcs"], averages, pixel_size, overwrite=True)
    write_text(paths["classes.star"], classes_star(counts))
    latent_map = None
    with run.pictures():
        draw_montage(paths["montage.png"], averages, counts, pixel_size)
        if settings.method == "sml":
            latent_map = _draw_latent_map(paths["latent_map.png"], estimator, averages)
    evidence = class_means(found.evidence, estimator.labels_, n)
    facts = {
        "class_sizes": counts.tolist(),
        "effective_classes": round(float(estimator.effective_n_clusters_), 2),
        "iterations": int(estimator.n_iter_),
        "converged": bool(estimator.converged_),
        "log_likelihood": float(found.likelihoods.mean()),
        "class_evidence": [None if np.isnan(value) else round(float(value), 3) for value in evidence],
    }
    run.finish(
        title=f"2-D classes of {len(run.stack)} particles",
        summary=_summary(len(run.stack), facts),
        body=_body(averages, counts, evidence, estimator, latent_map),
        facts=facts,
        estimators=[each for each in (found.aligner, estimator) if each is not None],
        next_steps=next_steps(str(paths["particles.star"]), counts),
    )


def class_means(values, labels, n_classes):
    """Mean of a value of the particles of each class; NaN of classes without any."""
    counts = np.bincount(labels, minlength=n_classes)
    sums = np.bincount(labels, values, minlength=n_classes)
    return np.divide(sums, counts, out=np.full(n_classes, np.nan), where=counts > 0)


def _body(averages, counts, evidence, estimator, latent_map):
    """Blocks of the report."""
    filled = np.flatnonzero(counts > 0)
    least = filled[np.argsort(evidence[filled], kind="stable")][:_LEAST_LIKELY]
    told = [f"{count} ({value:.1f})" if count else "0" for count, value in zip(counts, evidence)]
    blocks = [
        heading("Class averages"),
        paragraph(
            "Largest class first; class number, particles, and in brackets the mean evidence that they are particles: "
            "how much likelier the class makes them than noise alone would (log-likelihood, nats)."
        ),
        averages_grid(averages, counts, told=told),
        heading("Classes of least evidence"),
        paragraph(
            "Images without a particle, broken and overlapping ones gather here, beside rare views. The evidence of "
            "each particle is skcryoParticleEvidence in particles.star; --select keeps the other classes."
        ),
        averages_grid(averages, counts, told=told, order=least),
        heading("Particles in each class"),
        paragraph(
            f"{estimator.effective_n_clusters_:.1f} of {len(counts)} classes are in effect used (exponential of "
            "the entropy of their sizes)."
        ),
        occupancy_chart(counts),
    ]
    if latent_map is not None:
        blocks += [
            heading("Latent space"),
            paragraph("Class averages at their nodes, larger where there are more particles; points are particles."),
            png_figure(latent_map, "Map of the latent space", kind=' class="full"'),
        ]
    return [*blocks, heading("Convergence"), line_chart(estimator.lower_bound_curve_, "Log posterior of an image")]


def _draw_latent_map(path, estimator, averages):
    """Draw the map of the latent space; return the PNG file's bytes."""
    from ..inspection import LatentMapDisplay

    shares = estimator.responsibilities_
    positions = (shares @ estimator.latent_positions_) / np.asarray(shares.sum(axis=1)).reshape(-1, 1)
    counts = np.bincount(estimator.labels_, minlength=len(averages))
    display = LatentMapDisplay(
        estimator.latent_positions_, averages, counts, particle_positions=positions, manifold=estimator.manifold
    )
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a layout too tight for the axes given
        with picture(path, "the map of the latent space", size=(11, 6), place=(0.01, 0.01, 0.98, 0.92)) as ax:
            display.plot(ax)
            ax.figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()


def _summary(n_particles, facts):
    sizes = facts["class_sizes"]
    ended = "converged" if facts["converged"] else "had not converged"
    text = (
        f"{n_particles} particles in {len(sizes)} classes, of which {facts['effective_classes']:.1f} are in effect "
        f"used, the largest of {max(sizes)}; {ended} after {facts['iterations']} iterations."
    )
    return text + (f" {sizes.count(0)} classes are empty." if 0 in sizes else "")
