"""Poses of the images of a stack, checked."""

import numpy as np

from ..fourier import check_shifts
from ..rotations import check_rotations

__all__ = ["resolve_poses"]


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

    Raises
    ------
    ValueError
        If rotations are missing, not of as many images, or no rotations; if a shift is larger than half the box.
    """
    n, L = len(stack), stack.shape[1]
    rotations = stack.rotations if rotations is None else rotations
    if rotations is None and missing == "given":
        raise ValueError("X carries no poses; give rotations, or a ParticleStack with them")
    rotations = np.tile(np.eye(3), (n, 1, 1)) if rotations is None else check_rotations(rotations, n)
    shifts = stack.shifts if shifts is None else shifts
    shifts = np.zeros((n, 2)) if shifts is None else check_shifts(shifts, n)
    bad = np.flatnonzero(np.abs(shifts).max(axis=1, initial=0) > L / 2)
    if len(bad):
        raise ValueError(
            f"shifts[{bad[0]}] is {shifts[bad[0]].round(3).tolist()}, more than half the box of {L} pixels; x, y in "
            "pixels are wanted"
        )
    return rotations, shifts
