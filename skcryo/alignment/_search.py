"""Search over SO(3) x R^2: all images against all slices, as products of matrices."""

from dataclasses import dataclass

import numpy as np
import scipy.sparse
from joblib import Parallel, delayed
from threadpoolctl import threadpool_limits

__all__ = ["ExpectedSlices", "PoseCandidates", "expected_slices", "search_poses", "shift_grid"]

# Images in a product. These two are fixed, so that results do not depend on the number of threads.
_BLOCK = 32
_STRIPES = 8
# Posterior weights below this share of the largest are left out of the sums.
_NEGLIGIBLE = 1e-4
# At most this many bytes of log-likelihoods at a time and thread.
_MAX_BYTES = 2**27


def shift_grid(radius, step):
    """Square grid of shifts, symmetric about zero.

    Parameters
    ----------
    radius : float
        Largest shift in x and in y, in pixels.
    step : float
        Spacing, at most: the grid has as many points as cover ``[-radius, radius]`` with cells of this size.

    Returns
    -------
    ndarray of shape (n_shifts, 2), float64

    Examples
    --------
    >>> from skcryo.alignment import shift_grid
    >>> shift_grid(1.5, 1.0)[:, 0].tolist()
    [-1.0, -1.0, -1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0]
    """
    n = max(1, int(np.ceil(2 * radius / step - 1e-9)))
    centres = (np.arange(n) - (n - 1) / 2) * (2 * radius / n)
    return np.stack(np.meshgrid(centres, centres, indexing="ij"), axis=-1).reshape(-1, 2)


@dataclass
class PoseCandidates:
    """The best poses of a grid.

    Attributes
    ----------
    rotation, shift : ndarray of shape (n_images, n_best), int64
        Indices into the grids, the best first; no rotation twice.
    log_likelihood : ndarray of shape (n_images, n_best)
        Above that of an image without signal.
    """

    rotation: np.ndarray
    shift: np.ndarray
    log_likelihood: np.ndarray


@dataclass
class ExpectedSlices:
    """What images say about the slices of a grid, each image divided among them by its posterior.

    Attributes
    ----------
    numerator : ndarray of shape (n_rotations, n_points), complex64
        Sum over images and shifts of posterior weight times filter times image, its shift undone.
    denominator : ndarray of shape (n_rotations, n_points), float32
        The same sum of squared filters.
    rotation, shift : ndarray of shape (n_images,), int64
        The most likely.
    log_evidence : ndarray of shape (n_images,)
        Log of the mean likelihood over the grid, above that of an image without signal.
    """

    numerator: np.ndarray
    denominator: np.ndarray
    rotation: np.ndarray
    shift: np.ndarray
    log_evidence: np.ndarray


class _Products:
    """Log-likelihoods of blocks of images over the whole grid."""

    def __init__(self, images, projector, rotations, shifts, band, contrast):
        self.images, self.contrast = images, contrast
        self.n_points = images.n_points(band)
        self.slices = projector.slices(rotations, images.points[: self.n_points])
        self.pairs = self.slices.view(np.float32)
        self.power = np.square(np.abs(self.slices)).T
        self.undo = images.centred_phases(shifts, self.n_points)
        self.n_rotations, self.n_shifts = len(rotations), len(shifts)
        self.block = int(np.clip(_MAX_BYTES // (4 * self.n_rotations * self.n_shifts), 1, _BLOCK))

    def blocks(self, where):
        return (slice(i, min(i + self.block, where.stop)) for i in range(where.start, where.stop, self.block))

    def log_likelihood(self, where):
        """Of the images `where`, (n, n_shifts, n_rotations); with them filtered images and squared filters."""
        filters = self.images.filters[where if len(self.images.filters) > 1 else slice(None), : self.n_points]
        if self.contrast is not None:
            filters = filters * np.asarray(self.contrast[where], dtype=np.float32)[:, None]
        filtered = self.images.values[where, : self.n_points] * filters
        unshifted = (filtered[:, None] * self.undo).reshape(-1, self.n_points)
        squares = np.broadcast_to(np.square(filters), filtered.shape)
        values = unshifted.view(np.float32) @ self.pairs.T
        values *= 2
        values = values.reshape(len(filtered), self.n_shifts, self.n_rotations)
        values -= (squares @ self.power)[:, None]
        return values, unshifted, squares


def _stripes(n):
    edges = np.linspace(0, n, min(_STRIPES, max(n, 1)) + 1).astype(int)
    return [slice(a, b) for a, b in zip(edges[:-1], edges[1:]) if b > a]


def _run(function, images, n_jobs):
    with threadpool_limits(1, user_api="blas"):
        return Parallel(n_jobs=n_jobs, prefer="threads")(delayed(function)(where) for where in _stripes(len(images)))


def search_poses(images, projector, rotations, shifts, *, band, n_best=1, contrast=None, n_jobs=None):
    """The most likely rotations and shifts of a grid, by brute force.

    Parameters
    ----------
    images : FourierImages
    projector : VolumeProjector
    rotations : ndarray of shape (n_rotations, 3, 3)
    shifts : ndarray of shape (n_shifts, 2)
        In pixels of the images.
    band : float
        Highest frequency used, in cycles per box.
    n_best : int, default=1
        Rotations returned for each image, each with its best shift.
    contrast : ndarray of shape (n_images,), default=None
    n_jobs : int, default=None
        Threads; the result does not depend on it.

    Returns
    -------
    PoseCandidates
    """
    products = _Products(images, projector, rotations, shifts, band, contrast)
    n_best = min(n_best, len(rotations))

    def stripe(where):
        found = []
        for block in products.blocks(where):
            values = products.log_likelihood(block)[0]
            shift = values.argmax(axis=1)
            best = np.take_along_axis(values, shift[:, None], axis=1)[:, 0]
            rotation = np.argpartition(-best, n_best - 1, axis=1)[:, :n_best] if n_best < best.shape[1] else None
            if rotation is None:
                rotation = np.broadcast_to(np.arange(best.shape[1]), best.shape)
            chosen = np.take_along_axis(best, rotation, axis=1)
            order = np.lexsort((rotation, -chosen), axis=1)
            rotation = np.take_along_axis(rotation, order, axis=1)
            found.append((
                rotation,
                np.take_along_axis(shift, rotation, axis=1),
                np.take_along_axis(chosen, order, axis=1).astype(np.float64),
            ))
        return [np.concatenate(column) for column in zip(*found)]

    parts = _run(stripe, images, n_jobs)
    return PoseCandidates(*(np.concatenate(column) for column in zip(*parts)))


def expected_slices(images, projector, rotations, shifts, *, band, temperature=1.0, contrast=None, n_jobs=None):
    """The expectation step over a grid of poses: every image at every pose, weighted by its posterior.

    Parameters
    ----------
    images, projector, rotations, shifts, band, contrast, n_jobs
        As in :func:`search_poses`.
    temperature : float, default=1.0
        Log-likelihoods are divided by it: above 1, images commit themselves less.

    Returns
    -------
    ExpectedSlices

    Notes
    -----
    All poses of the grid have the same prior. Weights under 1e-4 of an image's largest are dropped, which
    leaves the maximisation step a sparse product.
    """
    products = _Products(images, projector, rotations, shifts, band, contrast)
    cut = np.float32(np.log(_NEGLIGIBLE) * temperature)

    def stripe(where):
        n_points = products.n_points
        numerator = np.zeros((products.n_rotations, 2 * n_points), dtype=np.float32)
        denominator = np.zeros((products.n_rotations, n_points), dtype=np.float32)
        found = []
        for block in products.blocks(where):
            values, unshifted, squares = products.log_likelihood(block)
            n = len(values)
            flat = values.reshape(n, -1)
            top = flat.argmax(axis=1)
            highest = flat[np.arange(n), top]
            image, pose = np.nonzero(flat > (highest + cut)[:, None])
            weight = np.exp((flat[image, pose].astype(np.float64) - highest[image]) / temperature)
            total = np.bincount(image, weight, minlength=n)
            weight = (weight / total[image]).astype(np.float32)
            shift, rotation = np.divmod(pose, products.n_rotations)
            shape = (products.n_rotations, n * products.n_shifts)
            share = scipy.sparse.csr_array((weight, (rotation, image * products.n_shifts + shift)), shape=shape)
            numerator += share @ unshifted.view(np.float32)
            share = scipy.sparse.csr_array((weight, (rotation, image)), shape=(products.n_rotations, n))
            denominator += share @ squares
            evidence = highest + temperature * np.log(total / flat.shape[1])
            found.append((top % products.n_rotations, top // products.n_rotations, evidence))
        return numerator, denominator, *(np.concatenate(column) for column in zip(*found))

    parts = _run(stripe, images, n_jobs)
    numerator, denominator = parts[0][:2]
    for part in parts[1:]:
        numerator += part[0]
        denominator += part[1]
    return ExpectedSlices(
        numerator.view(np.complex64), denominator, *(np.concatenate([part[i] for part in parts]) for i in (2, 3, 4))
    )
