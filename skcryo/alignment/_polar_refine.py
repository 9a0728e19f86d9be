"""Shifts and angles on a fine grid about the best candidates of the in-plane search."""

import numpy as np

from .._products import row_products
from ._polar_search import (
    filled_blocks,
    hexagonal_disc,
    power_orders,
    shift_hartley,
    shift_phases,
    turned,
)

__all__ = []

REFINE_BLOCK = 32
_ANGLE_OFFSETS = np.array([0, -1, 1])  # of equals, the angle that was found on the grid comes first


def astigmatic_norms(ctf_squared, power, angles):
    """Squared norms of CTF times turned reference, one per item.

    Parameters
    ----------
    ctf_squared : ndarray of shape (n, n_rings, n_orders), complex64
    power : ndarray of shape (n_orders, n_rings, n), complex64
        Harmonics of the reference's power, of the same item.
    angles : ndarray of shape (n, n_angles)

    Returns
    -------
    ndarray of shape (n, n_angles), float32
    """
    harmonics = np.einsum("nrj,jrn->nj", ctf_squared, power.conj())
    order = np.arange(harmonics.shape[1])
    turns = np.exp(2j * order * angles[:, :, None]) * np.where(order == 0, 1.0, 2.0)
    return np.einsum("nj,naj->na", harmonics, turns).real.astype(np.float32)


def pose_scores(grid, features, references, labels, angles, shifts):
    """Half of (squared norm of the image minus squared distance) at given classes and poses; (n,) float32."""
    n = len(features)
    score = np.empty(n, dtype=np.float32)
    local = turned(shifts, -angles)  # the shift in the frame of the average
    for part in filled_blocks(n, REFINE_BLOCK):
        hartley = references.hartley[:, :, labels[part]]
        moved = shift_hartley(hartley, *shift_phases(grid, local[part]))
        coefficients = grid.features(moved).view(np.complex64)
        coefficients *= np.exp(-1j * angles[part, None] * grid.signed_orders).astype(np.complex64)
        cross = np.einsum("ij,ij->i", features.values[part], coefficients.view(np.float32))
        if features.ctf_squared is None:
            norm = references.norms[labels[part]]
        else:
            squared = features.ctf_squared[part]
            norm = astigmatic_norms(squared, power_orders(hartley, squared.shape[2]), angles[part, None])[
                :, 0
            ]
        score[part] = cross - norm / 2
    return score


class Refiner:
    """References on a polar grid whose angles hold those of the search, and the fine grid of shifts."""

    def __init__(self, grid, references, n_ctf_orders, shifts, step, max_shift):
        self.grid, self.references, self.shifts, self.max_shift = grid, references, shifts, max_shift
        self.fine = hexagonal_disc(0.6 * step, step / 4) if max_shift > 0 else np.zeros((1, 2))
        n = grid.spec.n_angles
        unit = n if n % 2 == 0 else 2 * n
        self.n_theta = unit * -(-(2 * grid.n_orders + 2) // unit)
        self.hartley = np.ascontiguousarray(
            grid.synthesis(references.values, self.n_theta).transpose(2, 0, 1)
        )
        self.power = power_orders(references.hartley, n_ctf_orders) if n_ctf_orders else None
        self.coarse_phases = self._half_phases(shifts)
        cosine, sine = self._half_phases(self.fine)
        # (2 n_rings n_theta / 2, n_fine): what the products of image and reference are summed with
        self.fine_phases = np.concatenate(
            [cosine.reshape(len(cosine), -1), sine.reshape(len(sine), -1)], axis=1
        ).T
        self.fine_phases = np.ascontiguousarray(self.fine_phases / self.n_theta, dtype=np.float32)

    def _half_phases(self, shifts):
        angles = 2 * np.pi * np.arange(self.n_theta // 2) / self.n_theta
        along = np.cos(angles) * shifts[:, 0, None] + np.sin(angles) * shifts[:, 1, None]
        phase = -2 * np.pi * self.grid.radii[:, None] * along[:, None]
        return np.cos(phase).astype(np.float32), np.sin(phase).astype(np.float32)

    def run(self, features, classes, angle, shift, base):
        """Refine candidates of a block of images.

        Parameters
        ----------
        features : PolarFeatures of n images
        classes, angle, shift : ndarrays of shape (n, q)
            Candidates: class, index of the angle, index of the shift.
        base : ndarray of shape (n, 2)
            Shift of each image that the candidates' shifts are added to.

        Returns
        -------
        score : ndarray of shape (n, q), float32
        angle : ndarray of shape (n, q), int
        shifts : ndarray of shape (n, q, 2), float64
            Refined, in the frame of the image, with `base`.
        """
        n, q = classes.shape
        n_angles, half = self.grid.spec.n_angles, self.n_theta // 2
        stride = self.n_theta // n_angles
        offsets = _ANGLE_OFFSETS if n_angles > 2 and self.max_shift > 0 else np.array([0])
        tried = (angle[:, :, None] + offsets) % n_angles
        filled = features.values[next(filled_blocks(n, REFINE_BLOCK))]
        images = self.grid.synthesis(filled, self.n_theta).transpose(2, 0, 1)
        images = np.concatenate([images, images], axis=2)
        products = np.zeros((REFINE_BLOCK * len(offsets), 2, self.grid.n_rings, half), dtype=np.float32)
        score, best_angle = np.empty((n, q), dtype=np.float32), np.empty((n, q), dtype=int)
        shifts = np.empty((n, q, 2))
        radians = 2 * np.pi * tried / n_angles
        for j in range(q):
            for i in range(n):
                reference = self.hartley[classes[i, j]]
                c, s = self.coarse_phases[0][shift[i, j]], self.coarse_phases[1][shift[i, j]]
                front = c * reference[:, :half] + s * reference[:, half:]
                back = c * reference[:, half:] - s * reference[:, :half]
                for o in range(len(offsets)):
                    first = tried[i, j, o] * stride
                    u, v = images[i, :, first : first + half], images[i, :, first + half : first + 2 * half]
                    cosine, sine = products[i * len(offsets) + o]
                    np.multiply(u, front, out=cosine)
                    cosine += v * back
                    np.multiply(u, back, out=sine)
                    sine -= v * front
            cross = row_products(products.reshape(len(products), -1), self.fine_phases)
            cross = cross[: n * len(offsets)].reshape(n, len(offsets), -1)
            if self.power is None:
                cross -= (self.references.norms[classes[:, j]] / 2)[:, None, None]
            else:
                squared = features.ctf_squared
                norms = astigmatic_norms(
                    squared, self.power[: squared.shape[2]][:, :, classes[:, j]], radians[:, j]
                )
                cross -= norms[:, :, None] / 2
            local = self.shifts[shift[:, j]][:, None] + self.fine
            total = base[:, None, None] + turned(local[:, None], radians[:, j, :, None])
            allowed = np.hypot(total[..., 0], total[..., 1]) <= self.max_shift + 1e-9
            cross[~allowed] = -np.inf
            best = cross.reshape(n, -1).argmax(axis=1)
            rows, (o, t) = np.arange(n), np.unravel_index(best, cross.shape[1:])
            score[:, j] = cross[rows, o, t]
            best_angle[:, j] = tried[rows, j, o]
            shifts[:, j] = total[rows, o, t]
        return score, best_angle, shifts
