"""How well images show a volume: whether they resemble its projections, nothing more and nothing less."""

import numpy as np

from ..alignment import refine_poses
from ._ab_initio_refine import best_contrast
from ._unevenness import unevenness

__all__ = ["likeness", "likeness_score"]


def likeness(images, projector, rotations, shifts, *, band, contrast_std, n_jobs=1):
    """Compare images with projections at their poses.

    Parameters
    ----------
    images : FourierImages of n images
    projector : VolumeProjector
    rotations, shifts : ndarray of shape (n, 3, 3) and (n, 2)
    band : float
        Of the poses, in cycles per box. Images are judged up to three rings beyond, where poses could not be fitted to
        noise.
    contrast_std : float or None
    n_jobs : int, default=1

    Returns
    -------
    dict of ndarray of shape (n,)
        ``contrast``; ``correlation`` between image and projection, noise made white; ``excess`` of the residual's power
        over the noise's, as a share; ``unevenness``, the share of the log-likelihood that two halves of the projection
        gain by a contrast each; ``log_likelihood`` above that of no particle.
    """
    judged = min(band + 3, float(images.radii[-1]))
    n_points = images.n_points(judged)
    fit = refine_poses(
        images, projector, rotations, shifts, band=judged, contrast_std=contrast_std, n_steps=0, n_jobs=n_jobs
    )
    power = np.square(np.abs(images.values[:, :n_points])).sum(axis=1, dtype=np.float64)
    norm = np.sqrt(fit.power * power)
    contrast = best_contrast(fit, contrast_std)
    explained = 2 * contrast * fit.cross - contrast**2 * fit.power
    return {
        "contrast": contrast,
        "correlation": np.divide(fit.cross, norm, out=np.zeros_like(norm), where=norm > 0),
        "excess": (power - explained) / n_points - 1,
        "unevenness": unevenness(images, projector, rotations, shifts, band) / np.maximum(explained, 5),
        "log_likelihood": explained,
    }


def likeness_score(found):
    """One number of :func:`likeness`, low for junk: the correlation less half of excess and unevenness.

    An excess speaks of a particle that is not alone, unevenness of one of which a part is missing.
    """
    return found["correlation"] - 0.5 * (found["excess"] + found["unevenness"])
