"""Poses that images carry or are given with."""

import numpy as np

from ..fourier import check_shifts
from ..rotations import check_rotations

__all__ = ["known_poses"]


def known_poses(stack, rotations, shifts, missing):
    """Rotations and shifts of all images: the keyword, else what the stack carries, else a default.

    Parameters
    ----------
    stack : ParticleStack of n images
    rotations, shifts : array-like of shape (n, 3, 3) and (n, 2), or None
    missing : {"error", "identity"}
        What happens where there are no rotations.

    Returns
    -------
    rotations, shifts : ndarray of shape (n, 3, 3) and (n, 2), float64

    Raises
    ------
    ValueError
        If rotations are missing, not of as many images, or no rotations; if a shift is not finite.
    """
    n = len(stack)
    rotations = stack.rotations if rotations is None else rotations
    if rotations is None:
        if missing == "error":
            raise ValueError(
                "X carries no poses; give rotations, a ParticleStack with them, or missing_poses='identity' if all "
                "images are the same view"
            )
        rotations = np.broadcast_to(np.eye(3), (n, 3, 3))
    else:
        rotations = check_rotations(rotations, n)
    shifts = stack.shifts if shifts is None else shifts
    return rotations, np.zeros((n, 2)) if shifts is None else check_shifts(shifts, n)
