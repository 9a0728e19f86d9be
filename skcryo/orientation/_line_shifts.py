"""Where particles lie in their images, from the shifts between common lines."""

from numbers import Real

import numpy as np

from ..rotations import check_rotations
from ._common_lines import CommonLines
from ._line_scores import predicted_lines, scores_at
from ._radial_lines import RadialLines, n_threads

__all__ = ["shifts_from_common_lines"]

_STEP = 0.5  # pixels between relative shifts that are tried where lines are known
# Variance in square pixels that a relative shift has at least, and deviation beyond which pairs count by their distance
# instead of its square.
_LEAST_VARIANCE, _OUTLIER = 0.2, 1.0
_N_REWEIGHTED, _MAX_STEPS, _TOLERANCE = 5, 60, 1e-6


def shifts_from_common_lines(lines, rotations=None, *, max_shift=3.0, n_jobs=None):
    """Find where particles lie from what each pair of images says about the direction of its common line.

    The lines of images i and j lie ``s_i . c_ij - s_j . c_ji`` pixels apart; all pairs together give the s, by weighted
    least squares in which pairs that deviate much count less.

    Parameters
    ----------
    lines : CommonLines or RadialLines
        Common lines with relative shifts, as found with ``detect_common_lines(..., max_shift=1)``; or lines of images,
        of which the pairs are compared at the common lines that `rotations` predict, at relative shifts half a pixel
        apart: more exact once rotations are known.
    rotations : array-like of shape (n_images, 3, 3), default=None
        For RadialLines.
    max_shift : float, default=3.0
        Largest relative shift in pixels that is tried, for RadialLines.
    n_jobs : int, default=None
        Threads; None takes all cores.

    Returns
    -------
    shifts : ndarray of shape (n_images, 2), float64
        (x, y) in pixels, beyond those that were undone when the lines were made. Common to all images is any shift of
        the particle in space; of all solutions one next to zero is taken.

    Raises
    ------
    ValueError
        If `lines` and `rotations` do not go together, or `max_shift` is negative or half of the box.

    Notes
    -----
    Where particles are pixels off, lines do not meet, and there is nothing to start from: centre them first
    (:class:`skcryo.preprocessing.Centerer`), or take the shifts of :class:`skcryo.reconstruction.AbInitioVolume`.

    References
    ----------
    Singer, Shkolnisky, "Three-dimensional structure determination from common lines in cryo-EM by eigenvectors and
    semidefinite programming", SIAM J. Imaging Sci. 4 (2011), section 7: the equations.

    Examples
    --------
    >>> import numpy as np
    >>> from skcryo.datasets import ImagingConditions, make_molecule, make_particles
    >>> from skcryo.orientation import RadialLines, shifts_from_common_lines
    >>> conditions = ImagingConditions(max_shift=0.04)
    >>> stack, truth = make_particles(make_molecule(32), 50, snr=1, preset=conditions, random_state=0)
    >>> shifts = shifts_from_common_lines(RadialLines.from_images(stack), truth.rotations)
    >>> bool(np.corrcoef(shifts.ravel(), truth.shifts.ravel())[0, 1] > 0.8)
    True
    """
    if isinstance(lines, RadialLines):
        if rotations is None:
            raise ValueError("rotations are None; RadialLines are compared at the lines that rotations predict")
        if not isinstance(max_shift, Real) or not 0 <= max_shift < lines.box / 2:
            raise ValueError(f"max_shift is {max_shift!r}; 0 or more and less than {lines.box / 2:g} pixels are wanted")
        rotations = check_rotations(rotations, len(lines))
        angles, relative, weights = _measured(lines, rotations, max_shift, n_threads(n_jobs))
    else:
        if not isinstance(lines, CommonLines):
            raise ValueError(f"lines are of type {type(lines).__name__}; CommonLines or RadialLines are wanted")
        if rotations is not None:
            raise ValueError("rotations are given, but CommonLines have their own angles; give RadialLines to use them")
        if lines.relative_shifts is None:
            raise ValueError("the common lines have no relative shifts; find them with max_shift of at least 1 pixel")
        angles, relative = lines.angles, lines.relative_shifts
        weights = np.where(lines.checked, lines.confidences, 0).astype(np.float32)
    return _solve(angles, relative, weights)


def _measured(lines, rotations, max_shift, threads):
    """Mean of each pair's relative shift over its likelihood, and one over its variance."""
    steps = int(np.ceil(max_shift / _STEP))
    shifts = _STEP * np.arange(-steps, steps + 1)
    angles, cosines = predicted_lines(rotations)
    if not lines.log_likelihood:
        raise ValueError('RadialLines of score "correlation" have no likelihood of shifts; make them with "likelihood"')
    n = len(lines)
    relative, weights = np.zeros((n, n), dtype=np.float32), np.zeros((n, n), dtype=np.float32)
    for rows, columns, scores in scores_at(lines, angles, cosines=cosines, shifts=shifts, n_threads=threads):
        probability = np.exp(scores - scores.max(axis=0))
        probability /= probability.sum(axis=0)
        mean = np.tensordot(shifts, probability, axes=1)
        variance = np.tensordot(shifts**2, probability, axes=1) - mean**2
        weight = 1 / (np.maximum(variance, 0) + _LEAST_VARIANCE)
        if rows == columns:
            above = np.triu(np.ones(mean.shape, dtype=bool), 1)
            mean, weight = np.where(above, mean, -mean.T), np.where(above, weight, weight.T)
        relative[rows, columns], relative[columns, rows] = mean, -mean.T
        weights[rows, columns], weights[columns, rows] = weight, weight.T
    weights[np.isnan(angles)] = 0
    np.fill_diagonal(weights, 0)
    np.fill_diagonal(relative, 0)
    return angles, relative, weights


def _solve(angles, relative, weights):
    """Shifts by iteratively reweighted least squares, each solved by conjugate gradients."""
    angles = np.where(weights > 0, angles, 0).astype(np.float32)
    system = _Equations(np.cos(angles), np.sin(angles))
    shifts, current = np.zeros((len(angles), 2)), weights
    for _ in range(_N_REWEIGHTED):
        system.weigh(current)
        shifts = system.solve(system.adjoint(relative), shifts)
        deviation = system.forward(shifts) - relative
        current = weights / np.sqrt(1 + np.square(deviation / np.float32(_OUTLIER)))
    return shifts


class _Equations:
    """``s_i . c_ij - s_j . c_ji`` for all pairs, its weighted adjoint, and the normal equations.

    Parameters
    ----------
    cosine, sine : ndarray of shape (n, n), float32
        Of the common lines' angles.
    """

    def __init__(self, cosine, sine):
        self.cosine, self.sine = cosine, sine

    def weigh(self, weights):
        """Set the weights (n, n), symmetric, and what preconditions the solution."""
        self.weights = weights
        xx, xy, yy = (
            np.einsum("ij,ij,ij->i", weights, first, second, dtype=np.float64)
            for first, second in ((self.cosine,) * 2, (self.cosine, self.sine), (self.sine,) * 2)
        )
        blocks = np.stack([np.stack([xx, xy], axis=1), np.stack([xy, yy], axis=1)], axis=1)
        self.inverse = np.linalg.pinv(blocks, rcond=1e-6, hermitian=True)

    def forward(self, shifts):
        """Relative shifts (n, n) of shifts (n, 2)."""
        x, y = shifts.T.astype(np.float32)
        along = self.cosine * x[:, None]
        along += self.sine * y[:, None]
        return along - along.T

    def adjoint(self, relative):
        """Sum over j of ``w_ij c_ij`` times relative shifts (n, n)."""
        parts = (
            np.einsum("ij,ij,ij->i", self.weights, part, relative, dtype=np.float64)
            for part in (self.cosine, self.sine)
        )
        return np.stack(list(parts), axis=1)

    def solve(self, right, start):
        """Preconditioned conjugate gradients, from `start`."""
        x = start.copy()
        residual = right - self.adjoint(self.forward(x))
        goal = _TOLERANCE * np.linalg.norm(right)
        direction, before = None, 1.0
        for _ in range(_MAX_STEPS):
            if np.linalg.norm(residual) <= goal:
                break
            z = np.einsum("iab,ib->ia", self.inverse, residual)
            product = np.vdot(residual, z)
            direction = z if direction is None else z + product / before * direction
            before = product
            image = self.adjoint(self.forward(direction))
            step = product / np.vdot(direction, image)
            x += step * direction
            residual -= step * image
        return x
