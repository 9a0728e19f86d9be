"""Search over SO(3) x R^2: all images against all slices, as products of matrices."""

from dataclasses import dataclass

import numpy as np
from joblib import Parallel, delayed
from scipy.spatial import cKDTree

from .._ext._poses import best_shifts as _best_shifts
from .._ext._poses import spread as _spread
from .._products import row_products
from .._torch import accelerator
from ._polar_search import one_blas_thread

__all__ = ["ExpectedSlices", "PoseCandidates", "expected_slices", "search_poses", "shift_grid"]

# Images in a product, and parts of the whole. Both are fixed, so that results do not depend on the number of threads.
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
        Indices into the grids, the best first; no rotation twice. Shifts of tilt pairs are of shape
        (n_images, n_best, 2).
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
        Sum over images and shifts of posterior weight times filter times image, its shift undone. Of tilt pairs those
        of the second images' rotations follow, ``rotations @ images.turn``.
    denominator : ndarray of shape (n_rotations, n_points), float32
        The same sum of squared filters.
    rotation, shift : ndarray of shape (n_images,), int64
        The most likely; shifts of tilt pairs are of shape (n_images, 2).
    log_evidence : ndarray of shape (n_images,)
        Log of the mean likelihood over the grid, above that of an image without signal.
    """

    numerator: np.ndarray
    denominator: np.ndarray
    rotation: np.ndarray
    shift: np.ndarray
    log_evidence: np.ndarray


def half_turns(rotations):
    """Pairs of rotations whose slices are each other's conjugates: half a turn in the plane apart.

    Returns
    -------
    pairs : ndarray of shape (2, n_rotations / 2) or (1, n_rotations), int64
        Indices; the second form, with every rotation by itself, where not all of them have a partner.
    """
    alone = np.arange(len(rotations))[None]
    if len(rotations) % 2:
        return alone
    columns = rotations[:, :, :2].reshape(len(rotations), 6)
    distance, partner = cKDTree(columns).query(-columns, distance_upper_bound=1e-9)
    if not np.isfinite(distance).all() or not (partner[partner] == alone[0]).all():
        return alone
    first = np.flatnonzero(alone[0] < partner)
    return np.stack([first, partner[first]])


class _Products:
    """Log-likelihoods of blocks of images over the whole grid.

    ``Re <slice, image>`` is the product of the real parts plus that of the imaginary parts. Half a turn in the plane
    conjugates a slice, so that the difference of the two is the likelihood of another rotation of the grid.
    """

    def __init__(self, images, projector, rotations, shifts, band, contrast, n_jobs):
        rotations, shifts = np.asarray(rotations, dtype=np.float64), np.asarray(shifts, dtype=np.float64)
        if not len(rotations) or not len(shifts):
            raise ValueError(f"a grid has at least one pose, got {len(rotations)} rotations and {len(shifts)} shifts")
        self.images, self.contrast = images, None if contrast is None else np.asarray(contrast)
        if contrast is not None and self.contrast.shape != (len(images),):
            raise ValueError(f"contrast must have shape ({len(images)},), one per image, got {self.contrast.shape}")
        self.n_points = images.n_points(band)
        self.n_rotations, self.n_shifts = len(rotations), len(shifts)
        self.pairs = half_turns(rotations)
        points, first = images.points[: self.n_points], rotations[self.pairs[0]]
        parts = _run(lambda where: projector.slices(first[where], points), len(first), n_jobs)
        slices = np.concatenate(list(parts))
        self.real, self.imag = np.ascontiguousarray(slices.real.T), np.ascontiguousarray(slices.imag.T)
        self.power = np.square(self.real) + np.square(self.imag)
        self.undo = images.centred_phases(shifts, self.n_points)
        self.block = int(np.clip(_MAX_BYTES // (4 * self.n_rotations * self.n_shifts), 1, _BLOCK))

    def filtered(self, block):
        """Filters of some images, their contrast in them, (n, n_points) or (1, n_points), and the images filtered."""
        filters = self.images.filters[block if len(self.images.filters) > 1 else slice(None), : self.n_points]
        if self.contrast is not None:
            filters = filters * self.contrast[block, None].astype(np.float32)
        return filters, self.images.values[block, : self.n_points] * filters

    def blocks(self, where):
        """Go through the images `where`, a few at a time.

        Yields
        ------
        even, odd : ndarray of shape (n, n_shifts, n_pairs)
        power : ndarray of shape (n, n_pairs)
            Log-likelihoods are ``2 (even + odd) - power``, with half a turn ``2 (even - odd) - power``.
        best : ndarray of shape (n, 1 or 2, n_pairs)
            The largest over all shifts.
        shift : ndarray of shape (n, 1 or 2, n_pairs)
            Where.
        values : ndarray of shape (n, n_shifts, n_points)
            Filtered images, shifts undone.
        squares : ndarray of shape (n, n_points)
            Squared filters.
        """
        shape = (min(self.block, where.stop - where.start), self.n_shifts, self.pairs.shape[1])
        room = np.empty(shape, dtype=np.float32), np.empty(shape, dtype=np.float32)
        for start in range(where.start, where.stop, self.block):
            block = slice(start, min(start + self.block, where.stop))
            n = block.stop - start
            filters, filtered = self.filtered(block)
            values = filtered[:, None] * self.undo
            squares = np.ascontiguousarray(np.broadcast_to(np.square(filters), filtered.shape))
            even, odd = room[0][:n], room[1][:n]
            for part, slices, out in ((values.real, self.real, even), (values.imag, self.imag, odd)):
                part = np.ascontiguousarray(part).reshape(n * self.n_shifts, self.n_points)
                row_products(part, slices, out=out.reshape(n * self.n_shifts, -1))
            power = row_products(squares, self.power)
            best = np.empty((n, *self.pairs.shape), dtype=np.float32)
            shift = np.empty(best.shape, dtype=np.int32)
            _best_shifts(even, odd, power, best, shift)
            yield even, odd, power, best, shift, values, squares


def _stripes(n):
    edges = np.linspace(0, n, min(_STRIPES, max(n, 1)) + 1).astype(int)
    return [slice(a, b) for a, b in zip(edges[:-1], edges[1:]) if b > a]


def _run(function, n, n_jobs):
    """Call a function on stripes of ``range(n)``, in threads; results in order, to be used up one by one."""
    with one_blas_thread():
        parallel = Parallel(n_jobs=n_jobs, require="sharedmem", return_as="generator")
        yield from parallel(delayed(function)(where) for where in _stripes(n))


def search_poses(
    images, projector, rotations, shifts, *, band, n_best=1, contrast=None, contrast_std=None, n_jobs=None, device=None
):
    """The most likely rotations and shifts of a grid, by brute force.

    Parameters
    ----------
    images : FourierImages
    projector : VolumeProjector
    rotations : ndarray of shape (n_rotations, 3, 3)
        A grid that holds with each rotation the one half a turn in the plane away, as
        :func:`skcryo.rotations.so3_grid` with an even number of in-plane angles, takes half the time.
    shifts : ndarray of shape (n_shifts, 2)
        In pixels of the images.
    band : float
        Highest frequency used, in cycles per box; beyond what the images hold, all of that.
    n_best : int, default=1
        Rotations returned for each image, each with its best shift; all of a grid with fewer.
    contrast : ndarray of shape (n_images,), default=None
        Of each image, held fixed. None: 1.
    contrast_std : float, default=None
        If given, each pose is judged at its own most probable contrast, under a normal distribution about 1 of this
        standard deviation, instead of at `contrast`.
    n_jobs : int, default=None
        Threads; the result does not depend on it.
    device : {"auto", "cpu", "cuda"} or torch.device, default=None
        Where images are compared with slices. None and "cpu": in NumPy. "cuda": on a GPU, by torch. "auto": on a GPU
        if torch is installed and sees one. A ``torch.device`` is one for torch, that of the CPU too.

    Returns
    -------
    PoseCandidates

    Raises
    ------
    ValueError
        If the grid is empty or `contrast` is not one number per image, or there is no such device.
    ImportError
        If torch is asked for and not installed.

    Notes
    -----
    Tilt pairs are compared in NumPy, whatever the device.

    Torch's log-likelihoods are NumPy's to the rounding of float32: within 1e-5 of the largest. Poses closer to each
    other than that may change places.

    Examples
    --------
    >>> import numpy as np
    >>> from skcryo.alignment import FourierImages, search_poses, shift_grid
    >>> from skcryo.datasets import make_molecule
    >>> from skcryo.projection import VolumeProjector
    >>> from skcryo.rotations import so3_grid
    >>> projector = VolumeProjector(make_molecule(16, random_state=0))
    >>> rotations, shifts = so3_grid(1), shift_grid(2, 1)
    >>> stack = projector.project(rotations[[5, 17]], shifts=shifts[[2, 10]])
    >>> images = FourierImages.from_stack(stack, np.ones(9), max_ring=7)
    >>> found = search_poses(images, projector, rotations, shifts, band=6)
    >>> found.rotation.tolist(), found.shift.tolist()
    ([[5], [17]], [[2], [10]])
    """
    device = accelerator(device, caller="search_poses")
    if images.tilted is not None:
        from ._search_pairs import search_poses_of_pairs

        return search_poses_of_pairs(
            images, projector, rotations, shifts, band=band, n_best=n_best, contrast=contrast,
            contrast_std=contrast_std, n_jobs=n_jobs,
        )
    if device is not None:
        from ._search_torch import search_poses_torch

        return search_poses_torch(
            images, projector, rotations, shifts, band=band, n_best=n_best, contrast=contrast,
            contrast_std=contrast_std, n_jobs=n_jobs, device=device,
        )
    if contrast_std is not None:
        contrast = None
    products = _Products(images, projector, rotations, shifts, band, contrast, n_jobs)
    n_best = min(n_best, products.n_rotations)
    order = np.argsort(products.pairs, axis=None)
    tight = None if contrast_std is None else np.float32(0.5 / contrast_std**2)

    def stripe(where):
        found = []
        for _, _, power, best, shift, _, _ in products.blocks(where):
            if tight is not None:
                # 2 a cross - a^2 power - tight (a - 1)^2 at its highest, a = (cross + tight) / (power + tight)
                cross, power = (best + power[:, None]) / 2, power[:, None] + tight
                best = np.square(np.maximum(cross + tight, 0)) / power - tight
            best, shift = (part.reshape(len(best), -1)[:, order] for part in (best, shift))
            rotation = np.argpartition(-best, n_best - 1, axis=1)[:, :n_best]
            chosen = np.take_along_axis(best, rotation, axis=1)
            rotation = np.take_along_axis(rotation, np.lexsort((rotation, -chosen), axis=1), axis=1)
            found.append((rotation, *(np.take_along_axis(part, rotation, axis=1) for part in (shift, best))))
        return [np.concatenate(column) for column in zip(*found)]

    nothing = np.empty((0, n_best))
    parts = [(nothing, nothing, nothing), *_run(stripe, len(images), n_jobs)]
    rotation, shift, log_likelihood = (np.concatenate(column) for column in zip(*parts))
    return PoseCandidates(rotation.astype(np.int64), shift.astype(np.int64), log_likelihood.astype(np.float64))


def expected_slices(
    images, projector, rotations, shifts, *, band, temperature=1.0, contrast=None, n_jobs=None, device=None
):
    """The expectation step over a grid of poses: every image at every pose, weighted by its posterior.

    Parameters
    ----------
    images, projector, rotations, shifts, band, contrast, n_jobs, device
        As in :func:`search_poses`.
    temperature : float, default=1.0
        Log-likelihoods are divided by it: above 1, images commit themselves less.

    Returns
    -------
    ExpectedSlices

    Raises
    ------
    ValueError
        If the grid is empty, `contrast` is not one number per image or `temperature` is not positive, or there is no
        such device.
    ImportError
        If torch is asked for and not installed.

    Notes
    -----
    All poses of the grid have the same prior. Weights under 1e-4 of an image's largest are dropped.
    With torch, log-evidences are NumPy's as log-likelihoods are, within 1e-5 of the largest, and weights differ by the
    exponential of that.

    Examples
    --------
    >>> import numpy as np
    >>> from skcryo.alignment import FourierImages, expected_slices, shift_grid
    >>> from skcryo.datasets import make_molecule
    >>> from skcryo.projection import VolumeProjector
    >>> from skcryo.rotations import so3_grid
    >>> projector = VolumeProjector(make_molecule(16, random_state=0))
    >>> rotations, shifts = so3_grid(1), shift_grid(2, 1)
    >>> stack = projector.project(rotations[[5, 17]], shifts=shifts[[2, 10]])
    >>> images = FourierImages.from_stack(stack, np.ones(9), max_ring=7)
    >>> found = expected_slices(images, projector, rotations, shifts, band=6)
    >>> found.numerator.shape, found.rotation.tolist()
    ((72, 56), [5, 17])
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    device = accelerator(device, caller="expected_slices")
    if images.tilted is not None:
        from ._search_pairs import expected_slices_of_pairs

        return expected_slices_of_pairs(
            images, projector, rotations, shifts, band=band, temperature=temperature, contrast=contrast, n_jobs=n_jobs
        )
    if device is not None:
        from ._search_torch import expected_slices_torch

        return expected_slices_torch(
            images, projector, rotations, shifts, band=band, temperature=temperature, contrast=contrast,
            n_jobs=n_jobs, device=device,
        )
    products = _Products(images, projector, rotations, shifts, band, contrast, n_jobs)
    n_points, n_rotations = products.n_points, products.n_rotations

    def stripe(where):
        numerator = np.zeros((n_rotations, 2 * n_points), dtype=np.float32)
        denominator = np.zeros((n_rotations, n_points), dtype=np.float32)
        weight = np.empty(n_rotations * products.n_shifts)
        place = np.empty(len(weight), dtype=np.int64)
        found = []
        for even, odd, power, best, shift, values, squares in products.blocks(where):
            n = len(best)
            flat = best.reshape(n, -1)
            top = flat.argmax(axis=1)
            highest = flat[np.arange(n), top]
            total = np.empty(n)
            _spread(
                even, odd, power, best, values.view(np.float32), squares, products.pairs, highest, float(temperature),
                float(np.log(_NEGLIGIBLE)), weight, place, numerator, denominator, total,
            )
            evidence = highest + temperature * np.log(total / len(weight))
            found.append((products.pairs.ravel()[top], shift.reshape(n, -1)[np.arange(n), top], evidence))
        return numerator, denominator, *(np.concatenate(column) for column in zip(*found))

    numerator = np.zeros((n_rotations, 2 * n_points), dtype=np.float32)
    denominator = np.zeros((n_rotations, n_points), dtype=np.float32)
    nothing = np.empty(0)
    found = [(nothing, nothing, nothing)]
    for part in _run(stripe, len(images), n_jobs):
        numerator += part[0]
        denominator += part[1]
        found.append(part[2:])
    rotation, shift, evidence = (np.concatenate(column) for column in zip(*found))
    return ExpectedSlices(
        numerator.view(np.complex64), denominator, rotation.astype(np.int64), shift.astype(np.int64), evidence
    )
