"""Where the rotations of images come from before classes are looked for."""

from dataclasses import dataclass

import numpy as np
from sklearn.base import clone

from ..rotations import check_rotations

__all__ = ["StartPoses"]

_CONTRAST_STD = 0.2  # of images whose start found that contrasts differ


@dataclass
class StartPoses:
    """Poses to start from, of some of the images or of all.

    Parameters
    ----------
    rotations : ndarray of shape (m, 3, 3), or None
    shifts : ndarray of shape (m, 2)
    rows : ndarray of shape (m,)
        The images that they are of.
    handed_in : bool
        Whether they were given; else they are the common lines' own.
    centred : bool
        Whether images are taken to be centred.
    contrast_std : float, default=None
        Of the images' contrasts; None: all alike.
    """

    rotations: np.ndarray | None
    shifts: np.ndarray
    rows: np.ndarray
    handed_in: bool
    centred: bool
    contrast_std: float | None = None

    @classmethod
    def given(cls, init, stack, *, centred):
        """Those that images carry, or that an estimator finds.

        Parameters
        ----------
        init : "poses" or estimator
        stack : ParticleStack of n images
        centred : bool
            Whether images that come without shifts are.

        Returns
        -------
        StartPoses

        Raises
        ------
        ValueError
            If there are no rotations, or not one for each image.
        """
        n = len(stack)
        if isinstance(init, str):
            if stack.rotations is None:
                raise ValueError("init='poses' but X carries no rotations; give a ParticleStack with them")
            rotations, shifts, contrast = stack.rotations, stack.shifts, None
        else:
            fitted = init
            if len(getattr(fitted, "rotations_", ())) != n:
                fitted = clone(init).fit(stack.replace(rotations=None, shifts=None))
            rotations = getattr(fitted, "rotations_", None)
            if rotations is None or len(rotations) != n:
                found = "no rotations_" if rotations is None else f"rotations_ of {len(rotations)} images"
                raise ValueError(f"init, {fitted!r}, has {found} after fit; rotations_ of the {n} images are wanted")
            shifts, contrast = getattr(fitted, "shifts_", None), getattr(fitted, "contrast_", None)
        centred = centred and shifts is None
        shifts = np.zeros((n, 2)) if shifts is None else np.asarray(shifts, dtype=np.float64)
        contrast_std = None if contrast is None or np.ptp(contrast) == 0 else _CONTRAST_STD
        return cls(check_rotations(rotations, n), shifts, np.arange(n), True, centred, contrast_std)

    def save(self, saved, seed):
        """Save as a stage of a fit, with its seed."""
        arrays = {"shifts": self.shifts, "rows": self.rows}
        if self.rotations is not None:
            arrays["rotations"] = self.rotations
        names = ("handed_in", "centred", "contrast_std")
        saved.save("start", arrays, {"seed": seed, "facts": {name: getattr(self, name) for name in names}})

    @classmethod
    def load(cls, saved):
        """What :meth:`save` saved, or None."""
        before = saved.load("start")
        return None if before is None else cls(**{"rotations": None} | before[0], **before[1]["facts"])
