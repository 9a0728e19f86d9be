"""Levenberg-Marquardt on poses and shifts against a volume."""

from dataclasses import dataclass

import numpy as np
from joblib import Parallel, delayed
from scipy.spatial.transform import Rotation

from .._ext._poses import normal_equations as _normal_equations
from .._gridding import OVERSAMPLING, kernel_table

__all__ = ["PoseFit", "pose_normal_equations", "refine_poses"]

# Images in a task: fixed, so that results do not depend on the number of threads.
_BLOCK = 100
_MAX_TURN = 0.15  # radians a step
_MAX_MOVE = 1.5  # pixels a step
_MIN_CONTRAST = 0.05
_FIELDS = ("rotations", "shifts", "error", "cross", "power")


@dataclass
class PoseFit:
    """Poses with how well they fit.

    Attributes
    ----------
    rotations : ndarray of shape (n, 3, 3)
    shifts : ndarray of shape (n, 2), or (n, 4) of tilt pairs
        In pixels.
    error : ndarray of shape (n,)
        Squared residual in units of the noise, minus the log-prior of the contrast if that was fitted: minus the
        log-likelihood, up to a constant.
    cross, power : ndarray of shape (n,)
        ``Re <model, image>`` and ``|model|^2`` at contrast 1; the best contrast is their ratio.
    """

    rotations: np.ndarray
    shifts: np.ndarray
    error: np.ndarray
    cross: np.ndarray
    power: np.ndarray

    def take(self, rows):
        """Return the poses of some images, copied.

        Parameters
        ----------
        rows : slice or array-like of shape (m,)

        Returns
        -------
        PoseFit
        """
        return PoseFit(*(getattr(self, name)[rows].copy() for name in _FIELDS))

    def take_better(self, other):
        """Replace, in place, each pose by that of another fit where that fits better.

        Parameters
        ----------
        other : PoseFit
            Of the same images.
        """
        better = other.error < self.error
        for name in _FIELDS:
            getattr(self, name)[better] = getattr(other, name)[better]


def _check_lengths(images, rotations, shifts, contrast):
    n, width = len(images), 2 * images.n_views
    shapes = {"rotations": (rotations, (n, 3, 3)), "shifts": (shifts, (n, width)), "contrast": (contrast, (n,))}
    for name, (array, shape) in shapes.items():
        if array is not None and np.shape(array) != shape:
            raise ValueError(f"{name} must have shape {shape} for {n} images, got {np.shape(array)}")


def pose_normal_equations(images, projector, rotations, shifts, *, contrast=None, band=None):
    """Residual, gradient and Gauss-Newton matrix of every image at its pose.

    Parameters
    ----------
    images : FourierImages of n images
    projector : VolumeProjector
    rotations : ndarray of shape (n, 3, 3)
    shifts : ndarray of shape (n, 2), or (n, 4) of tilt pairs
    contrast : ndarray of shape (n,), default=None
        Factors of the slices; None: 1.
    band : float, default=None
        Highest frequency used, in cycles per box; None: all that the images hold.

    Returns
    -------
    hessian : ndarray of shape (n, 5, 5), or (n, 7, 7) of tilt pairs
        ``Re J* J`` by (rotation vector w on the right, ``R exp([w]x)``, in radians; shifts in pixels).
    gradient : ndarray of shape (n, 5) or (n, 7)
        ``Re J* residual``: the step is ``hessian^-1 gradient``.
    sums : ndarray of shape (n, 3)
        Squared residual, ``Re <model, image>``, ``|model|^2``, the last two at contrast 1.

    Raises
    ------
    ValueError
        If there is not one rotation, shift or contrast per image.

    Notes
    -----
    The slice is differentiated as it is interpolated, so that a step down the gradient is one down the residual.
    A frequency beyond the volume's band has no model: its image counts as residual.

    Examples
    --------
    >>> import numpy as np
    >>> from skcryo.alignment import FourierImages, pose_normal_equations
    >>> from skcryo.datasets import make_molecule
    >>> from skcryo.projection import VolumeProjector
    >>> from skcryo.rotations import random_rotations
    >>> projector = VolumeProjector(make_molecule(16, random_state=0))
    >>> rotations, shifts = random_rotations(3, random_state=0), np.full((3, 2), 0.5)
    >>> stack = projector.project(rotations, shifts=shifts)
    >>> images = FourierImages.from_stack(stack, np.ones(9), max_ring=7)
    >>> hessian, gradient, sums = pose_normal_equations(images, projector, rotations, shifts)
    >>> bool(np.allclose(gradient, 0, atol=1e-3 * hessian.max())), bool((sums[:, 0] < 1e-6 * sums[:, 2]).all())
    (True, True)
    """
    _check_lengths(images, rotations, shifts, contrast)
    hessian, gradient, _, sums = _evaluate(images, projector, rotations, shifts, contrast, band)
    return hessian, gradient, sums


def _evaluate(images, projector, rotations, shifts, contrast, band):
    """Normal equations, with them ``Re J* model`` for the rotation vector."""
    parts = [_evaluate_view(*view, projector, contrast, band) for view in images.views(rotations, shifts)]
    if len(parts) == 1:
        return parts[0]
    # The second rotation is R turn: R exp([w]x) turn = R turn exp([turn' w]x).
    (hessian, gradient, slopes, sums), (own, own_gradient, own_slopes, own_sums) = parts
    turn, n = images.turn, len(images)
    joint, joint_gradient = np.zeros((n, 7, 7)), np.zeros((n, 7))
    joint[:, :5, :5], joint_gradient[:, :5] = hessian, gradient
    joint[:, :3, :3] += turn @ own[:, :3, :3] @ turn.T
    joint[:, :3, 5:] = turn @ own[:, :3, 3:]
    joint[:, 5:, :3] = joint[:, :3, 5:].swapaxes(1, 2)
    joint[:, 5:, 5:] = own[:, 3:, 3:]
    joint_gradient[:, :3] += own_gradient[:, :3] @ turn.T
    joint_gradient[:, 5:] = own_gradient[:, 3:]
    return joint, joint_gradient, slopes + own_slopes @ turn.T, sums + own_sums


def _evaluate_view(images, rotations, shifts, projector, contrast, band):
    n = len(images)
    n_points = len(images.points) if band is None else images.n_points(band)
    contrast = np.ones(n) if contrast is None else np.ascontiguousarray(contrast, dtype=np.float64)
    hessian, gradient, slopes, sums = (np.empty((n, *shape)) for shape in ((5, 5), (5,), (3,), (3,)))
    values = np.ascontiguousarray(images.values[:, :n_points])
    points = np.ascontiguousarray(images.points[:n_points])
    _normal_equations(
        projector.grid,
        projector.margin,
        projector.n_half,
        kernel_table(),
        np.ascontiguousarray(rotations, dtype=np.float64),
        np.ascontiguousarray(shifts, dtype=np.float64),
        values.view(np.float32),
        np.ascontiguousarray(images.filters[:, :n_points]),
        contrast,
        points,
        float(OVERSAMPLING),
        2 * np.pi / images.L,
        np.empty((2, int(np.abs(points).max(initial=0)) + 1, 2)),
        hessian,
        gradient,
        slopes,
        sums,
    )
    return hessian, gradient, slopes, sums


def refine_poses(
    images, projector, rotations, shifts, *, contrast=None, contrast_std=None, band=None, n_steps=3, refine_shifts=True,
    n_jobs=None,
):
    """Levenberg-Marquardt on SO(3) x R^2, image by image.

    Parameters
    ----------
    images : FourierImages of n images
    projector : VolumeProjector
        The volume; its box may be smaller than the images' (cropped in Fourier space).
    rotations : ndarray of shape (n, 3, 3)
    shifts : ndarray of shape (n, 2), or (n, 4) of tilt pairs
        Where to start.
    contrast : ndarray of shape (n,), default=None
        Held fixed; None: 1. Both images of a pair have the same.
    contrast_std : float, default=None
        If given, the contrast is fitted too, image by image, under a normal distribution about 1 of this standard
        deviation, instead of being held at `contrast`.
    band : float, default=None
        Highest frequency used, in cycles per box.
    n_steps : int, default=3
        Steps tried. One is taken only where it lowers the error.
    refine_shifts : bool, default=True
    n_jobs : int, default=None
        Threads. The result does not depend on it.

    Returns
    -------
    PoseFit

    Raises
    ------
    ValueError
        If there is not one rotation, shift or contrast per image.

    Examples
    --------
    >>> import numpy as np
    >>> from skcryo.alignment import FourierImages, refine_poses
    >>> from skcryo.datasets import make_molecule
    >>> from skcryo.projection import VolumeProjector
    >>> from skcryo.rotations import geodesic_distance, in_plane_rotation, random_rotations
    >>> projector = VolumeProjector(make_molecule(16, random_state=0))
    >>> rotations, shifts = random_rotations(3, random_state=0), np.full((3, 2), 0.5)
    >>> stack = projector.project(rotations, shifts=shifts)
    >>> images = FourierImages.from_stack(stack, np.ones(9), max_ring=7)
    >>> fit = refine_poses(images, projector, rotations @ in_plane_rotation(0.05), np.zeros((3, 2)), n_steps=8)
    >>> np.degrees(geodesic_distance(fit.rotations, rotations)).round(4).tolist(), fit.shifts[0].round(4).tolist()
    ([0.0, 0.0, 0.0], [0.5, 0.5])
    """
    n = len(images)
    _check_lengths(images, rotations, shifts, contrast)
    if contrast is None or contrast_std is not None:
        contrast = np.ones(n)
    contrast = np.asarray(contrast)
    blocks = [slice(i, min(i + _BLOCK, n)) for i in range(0, n, _BLOCK)]
    parts = Parallel(n_jobs=n_jobs, require="sharedmem")(
        delayed(_refine_block)(
            images.take(where), projector, rotations[where], shifts[where], contrast[where], contrast_std, band,
            n_steps, refine_shifts,
        )
        for where in blocks
    )
    if not parts:
        return PoseFit(*(np.empty((0, *shape)) for shape in ((3, 3), (2 * images.n_views,), (), (), ())))
    return PoseFit(*(np.concatenate(column) for column in zip(*parts)))


def _at_best_contrast(hessian, gradient, slopes, sums, tight):
    """The normal equations of poses, at contrast 1, with the contrast eliminated: variable projection.

    The contrast a costs ``tight (a - 1)^2``. Where it is most probable for each pose, the residual changes with the
    pose as at that contrast held fixed, and the Gauss-Newton matrix is the Schur complement of the contrast's entry.
    """
    cross, power = sums[:, 1] + tight, sums[:, 2] + tight
    best = np.maximum(cross / power, _MIN_CONTRAST)
    error = sums[:, 0] + 2 * sums[:, 1] - sums[:, 2] + tight - 2 * best * cross + best**2 * power
    best = best[:, None]
    gradient = best * gradient
    gradient[:, :3] += (best - best**2) * slopes
    hessian = np.square(best)[:, :, None] * hessian
    coupling = best * slopes
    hessian[:, :3, :3] -= coupling[:, :, None] * coupling[:, None] / power[:, None, None]
    return hessian, gradient, error


def _refine_block(images, projector, rotations, shifts, contrast, contrast_std, band, n_steps, refine_shifts):
    rotations, shifts = np.array(rotations, dtype=np.float64), np.array(shifts, dtype=np.float64)
    n, size = len(images), 3 + refine_shifts * shifts.shape[1]
    damping = np.full(n, 1e-2)
    diagonal = np.arange(size)

    def evaluate(rotations, shifts):
        hessian, gradient, slopes, sums = _evaluate(images, projector, rotations, shifts, contrast, band)
        error = sums[:, 0]
        if contrast_std is not None:
            hessian, gradient, error = _at_best_contrast(hessian, gradient, slopes, sums, 0.5 / contrast_std**2)
        return [hessian, gradient, error, sums[:, 1], sums[:, 2]]

    state = evaluate(rotations, shifts)
    for _ in range(n_steps):
        damped = state[0][:, :size, :size].copy()
        damped[:, diagonal, diagonal] *= 1 + damping[:, None]
        damped[:, diagonal, diagonal] += 1e-9 + 1e-9 * state[0][:, diagonal, diagonal].max(axis=1, keepdims=True)
        step = np.linalg.solve(damped, state[1][:, :size, None])[..., 0]
        turn = step[:, :3]
        turn *= np.minimum(_MAX_TURN / np.maximum(np.linalg.norm(turn, axis=1, keepdims=True), 1e-12), 1)
        new_rotations = rotations @ Rotation.from_rotvec(turn).as_matrix()
        new_shifts = shifts + np.clip(step[:, 3:], -_MAX_MOVE, _MAX_MOVE) if refine_shifts else shifts
        new = evaluate(new_rotations, new_shifts)
        better = new[2] < state[2]
        rotations[better] = new_rotations[better]
        shifts[better] = new_shifts[better]
        for old, value in zip(state, new):
            old[better] = value[better]
        damping = np.where(better, damping / 5, damping * 10)
    return rotations, shifts, *state[2:]
