"""Poses of the images of a stack: checked, or found by an estimator, refined against the volumes of a decoder."""

import numpy as np
from sklearn.base import clone

from ..alignment import FourierImages, refine_poses
from ..fourier import check_shifts
from ..projection import VolumeProjector
from ..rotations import check_rotations, random_rotations

__all__ = ["find_poses", "frames", "refine_against", "resolve_poses"]

_VIEWS, _FRAME_BAND, _FRAME_STEPS = 100, 8.0, 8  # of the comparison of two volumes' frames


def resolve_poses(stack, rotations, shifts, missing):
    """Rotations and shifts of all images: what is given, else what the stack carries.

    Parameters
    ----------
    stack : ParticleStack of shape (n_images, L, L)
    rotations, shifts : array-like of shape (n_images, 3, 3) and (n_images, 2), or None
    missing : {"given", "identity"}
        What rotations are where there are none: an error, or the identity.

    Returns
    -------
    rotations, shifts : ndarray, float64
        Shifts of shape (n_images, 4) if there are tilt images: theirs, as these carry them, last.

    Raises
    ------
    ValueError
        If rotations are missing, not of as many images, or no rotations; if a shift is larger than half the box.
    """
    n, L = len(stack), stack.shape[1]
    rotations = stack.rotations if rotations is None else rotations
    if rotations is None and missing == "given":
        raise ValueError("X carries no poses; give rotations, a ParticleStack with them, or an estimator as poses")
    rotations = np.tile(np.eye(3), (n, 1, 1)) if rotations is None else check_rotations(rotations, n)
    shifts = stack.shifts if shifts is None else shifts
    shifts = np.zeros((n, 2)) if shifts is None else check_shifts(shifts, n)
    if stack.tilt is not None:
        shifts = np.hstack([shifts, np.zeros((n, 2)) if stack.tilt.shifts is None else stack.tilt.shifts])
    bad = np.flatnonzero(np.abs(shifts).max(axis=1, initial=0) > L / 2)
    if len(bad):
        raise ValueError(
            f"shifts[{bad[0]}] is {shifts[bad[0]].round(3).tolist()}, more than half the box of {L} pixels; x, y in "
            "pixels are wanted"
        )
    return rotations, shifts


def find_poses(estimator, stack):
    """Poses of images by an estimator.

    Parameters
    ----------
    estimator : estimator
        Fitted on as many images it is taken to be fitted on these; else a clone is fitted.
    stack : ParticleStack of n images

    Returns
    -------
    estimator : estimator
        The fitted one.
    rotations, shifts : ndarray of shape (n, 3, 3) and (n, 2), float64

    Raises
    ------
    ValueError
        If it has not one rotation for each image after fit.
    """
    n = len(stack)
    if len(getattr(estimator, "rotations_", ())) != n:
        estimator = clone(estimator).fit(stack.replace(rotations=None, shifts=None, tilt=None))
    rotations, shifts = getattr(estimator, "rotations_", None), getattr(estimator, "shifts_", None)
    if rotations is None or len(rotations) != n:
        found = "no rotations_" if rotations is None else f"rotations_ of {len(rotations)} images"
        raise ValueError(f"poses, {estimator!r}, has {found} after fit; rotations_ of the {n} images are wanted")
    shifts = np.zeros((n, 2)) if shifts is None else check_shifts(shifts, n)
    if stack.tilt is not None:
        shifts = np.hstack([shifts, np.zeros((n, 2))])
    return estimator, check_rotations(rotations, n), shifts


def refine_against(mixture, images, rotations, shifts, latents, *, n_steps=3, n_jobs=1):
    """Poses of images refined against the volume at the centre nearest to their coordinates.

    Parameters
    ----------
    mixture : LatentMixture
    images : FourierImages of n images
    rotations, shifts : ndarray of shape (n, 3, 3) and (n, 2)
    latents : Latents
    n_steps : int, default=3
        Of Levenberg-Marquardt.
    n_jobs : int, default=1

    Returns
    -------
    rotations, shifts : ndarray
    """
    rotations, shifts = rotations.copy(), shifts.copy()
    nearest = mixture.nearest(latents.mean)
    for k in np.unique(nearest):
        rows = np.flatnonzero(nearest == k)
        fit = refine_poses(
            images.take(rows), VolumeProjector(mixture.volumes[k, 0]), rotations[rows], shifts[rows],
            contrast=latents.contrast[rows], band=mixture.band, n_steps=n_steps, n_jobs=n_jobs,
        )  # fmt: skip
        rotations[rows], shifts[rows] = fit.rotations, fit.shifts
    return rotations, shifts


def frames(volumes, reference, band, seed):
    """How far volumes are turned relative to another, as one finds by laying one upon the other.

    Projections of the reference get the poses that they have on each volume; nothing but small turns is found.

    Parameters
    ----------
    volumes : ndarray of shape (m, box, box, box)
    reference : ndarray of shape (box, box, box)
    band : float
        Cycles per box that volumes have.
    seed : int

    Returns
    -------
    ndarray of shape (m, 3, 3), float64
        Q, for which ``volume(Q x)`` is most like ``reference(x)``.
    """
    box = len(reference)
    views = random_rotations(_VIEWS, random_state=seed)
    projections = VolumeProjector(reference).project(views)
    band = min(_FRAME_BAND, band)
    images = FourierImages.from_stack(projections, np.ones(box // 2 + 1), band)
    turns = np.empty((len(volumes), 3, 3))
    for k, volume in enumerate(volumes):
        fit = refine_poses(
            images, VolumeProjector(volume), views, np.zeros((_VIEWS, 2)), band=band, n_steps=_FRAME_STEPS,
            refine_shifts=False, n_jobs=1,
        )  # fmt: skip
        u, _, v = np.linalg.svd((fit.rotations @ views.swapaxes(1, 2)).mean(axis=0))
        turns[k] = u @ np.diag([1, 1, np.linalg.det(u @ v)]) @ v
    return turns
