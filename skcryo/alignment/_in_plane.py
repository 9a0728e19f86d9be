"""Exact search of class, in-plane angle and shift in polar Fourier coordinates."""

import functools
from dataclasses import dataclass

import numpy as np
from joblib import Parallel, delayed

from ..ctf import evaluate_ctf_polar, validate_ctf
from ._polar_grid import BATCH, GridSpec, band_limit, polar_grid, ring_weights
from ._polar_refine import REFINE_BLOCK, Refiner, pose_scores
from ._polar_search import (
    COLUMN_BLOCK,
    IMAGE_BLOCK,
    AnglePlan,
    Columns,
    filled_blocks,
    hexagonal_disc,
    one_blas_thread,
    search_block,
    shift_hartley,
    shift_phases,
    turned,
)

__all__ = ["InPlaneMatch", "PolarFeatures", "PolarMatcher", "PolarReferences"]

_NO_ORDER = 3e-6  # harmonics of a squared CTF below this are rounding


@dataclass(frozen=True)
class PolarFeatures:
    """Images as :class:`PolarMatcher` compares them; slices along the images, and can be concatenated.

    Attributes
    ----------
    values : ndarray of shape (n, n_features), float32
        Coefficients of the images, each multiplied by its CTF.
    norms : ndarray of shape (n,), float32
        Squared norms of the images themselves.
    ctf_squared : ndarray of shape (n, n_rings, n_orders), complex64, or None
        Even angular harmonics of the squared CTFs.
    """

    values: np.ndarray
    norms: np.ndarray
    ctf_squared: np.ndarray | None = None

    def __len__(self):
        return len(self.values)

    def __getitem__(self, key):
        if isinstance(key, (int, np.integer)):
            key = slice(key, key + 1 or None)
        return PolarFeatures(
            self.values[key], self.norms[key], None if self.ctf_squared is None else self.ctf_squared[key]
        )

    @property
    def n_ctf_orders(self):
        """Number of angular harmonics of the squared CTFs that are kept; 0 without CTF."""
        return 0 if self.ctf_squared is None else self.ctf_squared.shape[2]

    @property
    def nbytes(self):
        """Memory that the features take, bytes."""
        return (
            self.values.nbytes
            + self.norms.nbytes
            + (0 if self.ctf_squared is None else self.ctf_squared.nbytes)
        )

    @classmethod
    def concatenate(cls, parts):
        """Features of several sets of images, one after the other.

        Parameters
        ----------
        parts : iterable of PolarFeatures
        """
        parts = list(parts)
        with_ctf = {part.ctf_squared is not None for part in parts}
        if len(with_ctf) != 1:
            raise ValueError("parts must all have a CTF or all have none, got both kinds")
        squared = None
        if with_ctf.pop():
            orders = max(part.ctf_squared.shape[2] for part in parts)
            squared = np.concatenate(
                [np.pad(p.ctf_squared, ((0, 0), (0, 0), (0, orders - p.ctf_squared.shape[2]))) for p in parts]
            )
        return cls(
            np.concatenate([p.values for p in parts]), np.concatenate([p.norms for p in parts]), squared
        )


@dataclass(frozen=True)
class PolarReferences:
    """Class averages as :class:`PolarMatcher` compares them with images.

    Attributes
    ----------
    hartley : ndarray of shape (n_rings, n_theta, k), float32
        Weighted polar functions.
    values : ndarray of shape (k, n_features), float32
    norms : ndarray of shape (k,), float32
        Squared norms.
    """

    hartley: np.ndarray
    values: np.ndarray
    norms: np.ndarray

    def __len__(self):
        return len(self.norms)


@dataclass(frozen=True)
class InPlaneMatch:
    """Best class and pose of every image: ``image = ctf * shift(rotate(average[label], angle), shift)``.

    Attributes
    ----------
    labels : ndarray of shape (n,), int32
    angles : ndarray of shape (n,), float64
        Radians, multiples of ``2 pi / n_angles``.
    shifts : ndarray of shape (n, 2), float64
        (x, y), px: where the particle's centre lies relative to the image's.
    distances2 : ndarray of shape (n,), float32
        Squared distances, without the bias.
    all_distances2 : ndarray of shape (n, k), float32, or None
        Squared distance to every class at its best angle and shift.
    all_angles : ndarray of shape (n, k), float64, or None
        Best angle in every class, radians.
    all_shifts : ndarray of shape (n, k, 2), float64, or None
        Best shift in every class, px.
    """

    labels: np.ndarray
    angles: np.ndarray
    shifts: np.ndarray
    distances2: np.ndarray
    all_distances2: np.ndarray | None = None
    all_angles: np.ndarray | None = None
    all_shifts: np.ndarray | None = None


class PolarMatcher:
    """Search of the class, in-plane angle and shift that bring an average closest to an image.

    For an image y with CTF C and a class average c, the squared distance at angle a and shift s is ::

        d2 = integral over |k| <= max_frequency of w(|k|) |Y(k) - C(k) exp(-2 pi i k s) c(Rot(-a) k)|^2 dk

    with the Fourier transforms of image and average inside the mask. With the metric "l2" and no low pass it
    is the sum of squared differences of pixels inside the mask of images that are band-limited to the Nyquist
    disc (Parseval). The search is exact over all classes, `n_angles` equally spaced angles, and a hexagonal
    grid of shifts (which turns with the angle); afterwards the best classes' shifts and angles are refined on
    a finer grid.

    Parameters
    ----------
    image_size : int
        L, px.
    n_angles : int, default=200
        Angles searched, ``2 pi j / n_angles``; multiples of four are fastest.
    metric : {"l2", "sobolev"}, default="l2"
        Ring weights: ones, or ``(1 + (|k| image_size)^2)^-s`` with s = `sobolev_order`: the norm of the
        Sobolev space H^-s on the scale of the box, which for s = 1 is close to a Wasserstein distance for
        small moves.
    lowpass : float, "auto" or None, default=None
        Standard deviation in px of a Gaussian that image and average are smoothed with. "auto" is
        ``image_size / 64``, which did best among 0.5 to 4 px on a ribosome at 128 px and SNR 1/16.
    mask_radius : float, default=None
        px; None is the largest disc inside the box, ``(image_size - 1) // 2``.
    max_shift : float, default=0.0
        px; 0 searches no shifts.
    shift_step : float, default=None
        Spacing of the hexagonal grid of shifts, px. None is ``max(1.25, image_size / 72)``.
    max_frequency : float, default=None
        Band limit in cycles/px. None is 0.5, or less where a low pass leaves less than a thousandth of the
        energy of white noise beyond.
    ring_weights : array-like of shape (n_shells,), default=None
        Further weights at the integer frequencies 0, 1, ... (cycles per box), for instance the inverse noise
        power.
    sobolev_order : float, default=1.0
    n_refine : int, default=3
        Classes of each image whose shift and angle are refined, the best of the grid search; 0 refines none.

    Notes
    -----
    Images are held in an orthonormal basis of the ring profiles of functions inside the mask, one for each
    angular order, about as many numbers as the band and the mask have degrees of freedom. The correlations
    over all angles of an image with a reference are then one matrix product for each order and a small one
    over the orders. Shifts move the references, in their own frame. A CTF multiplies the image, and its
    square meets the reference's power in a second correlation, which is a constant where the CTF is the same
    in all directions.

    Examples
    --------
    >>> import numpy as np
    >>> from skcryo.alignment import PolarMatcher
    >>> from skcryo.fourier import rotate_images
    >>> x = np.arange(32) - 16
    >>> blob = lambda u, v: np.exp(-((x - u) ** 2 + (x[:, None] - v) ** 2) / 8)
    >>> averages = np.stack([blob(4, 0) + blob(0, 6), blob(4, 0) + blob(-5, 1)])
    >>> images = rotate_images(averages[[1, 0]], [0.5 * np.pi, np.pi])
    >>> matcher = PolarMatcher(32, n_angles=40)
    >>> match = matcher.match(matcher.prepare(images), matcher.references(averages))
    >>> match.labels.tolist(), np.degrees(match.angles).round().tolist()
    ([1, 0], [90.0, 180.0])
    """

    def __init__(
        self,
        image_size,
        *,
        n_angles=200,
        metric="l2",
        lowpass=None,
        mask_radius=None,
        max_shift=0.0,
        shift_step=None,
        max_frequency=None,
        ring_weights=None,
        sobolev_order=1.0,
        n_refine=3,
    ):
        self.image_size = image_size
        self.n_angles = n_angles
        self.metric = metric
        self.lowpass = lowpass
        self.mask_radius = mask_radius
        self.max_shift = max_shift
        self.shift_step = shift_step
        self.max_frequency = max_frequency
        self.ring_weights = ring_weights
        self.sobolev_order = sobolev_order
        self.n_refine = n_refine

    # ------------------------------------------------------------------ set-up
    @functools.cached_property
    def grid(self):
        """The polar grid, built when first needed."""
        L = int(self.image_size)
        if L < 4:
            raise ValueError(f"image_size must be at least 4, got {self.image_size}")
        if int(self.n_angles) < 1:
            raise ValueError(f"n_angles must be positive, got {self.n_angles}")
        if self.metric not in ("l2", "sobolev"):
            raise ValueError(f'metric must be "l2" or "sobolev", got {self.metric!r}')
        largest = (L - 1) // 2
        radius = float(largest if self.mask_radius is None else self.mask_radius)
        if not 0 < radius <= L // 2:
            raise ValueError(f"mask_radius must lie in (0, {L // 2}] px, got {self.mask_radius}")
        if not 0 <= self.max_shift < L / 2:
            raise ValueError(f"max_shift must lie in [0, {L / 2:g}) px, got {self.max_shift}")
        lowpass = L / 64 if isinstance(self.lowpass, str) and self.lowpass == "auto" else self.lowpass
        if lowpass is not None and (isinstance(lowpass, str) or lowpass < 0):
            raise ValueError(
                f'lowpass must be a non-negative number of px, "auto" or None, got {self.lowpass!r}'
            )
        table = ring_weights(L, self.metric, lowpass, self.sobolev_order, self.ring_weights)
        if not np.all(np.isfinite(table[1])) or table[1].min() < 0 or not table[1].any():
            raise ValueError("ring_weights must be finite, not negative and not all zero")
        band = band_limit(*table) if self.max_frequency is None else float(self.max_frequency)
        if not 0 < band <= 0.5:
            raise ValueError(f"max_frequency must lie in (0, 0.5] cycles per pixel, got {self.max_frequency}")
        return polar_grid(
            GridSpec(
                L,
                int(self.n_angles),
                radius,
                float(self.max_shift),
                band,
                tuple(tuple(column.tolist()) for column in table),
            )
        )

    @functools.cached_property
    def step(self):
        """Spacing of the grid of shifts, px."""
        step = max(1.25, self.image_size / 72) if self.shift_step is None else float(self.shift_step)
        if not step > 0:
            raise ValueError(f"shift_step must be positive, got {self.shift_step}")
        return min(step, self.max_shift) if self.max_shift > 0 else step

    @functools.cached_property
    def candidate_shifts(self):
        """Shifts of the grid search, in the frame of the average, nearest first; (n_shifts, 2), px."""
        return hexagonal_disc(self.max_shift, self.step)

    # --------------------------------------------------------------- transforms
    def _batches(self, images, name):
        L = int(self.image_size)
        images = images if hasattr(images, "shape") else np.asarray(images)
        if len(images.shape) != 3 or tuple(images.shape[1:]) != (L, L):
            raise ValueError(f"{name} must have shape (n, {L}, {L}), got {tuple(images.shape)}")
        for start in range(0, len(images), BATCH):
            block = np.asarray(images[start : start + BATCH], dtype=np.float32)
            part = slice(start, start + len(block))
            if len(block) < BATCH:
                block = np.concatenate([block, np.zeros((BATCH - len(block), L, L), dtype=np.float32)])
            yield part, self.grid.transform(block)

    def prepare(self, images, ctf=None, pixel_size=None):
        """Features of images, to be matched with references.

        Parameters
        ----------
        images : array-like of shape (n, L, L)
        ctf : structured array of shape (n,), default=None
            CTF of every image, as of :func:`skcryo.ctf.make_ctf`.
        pixel_size : float, default=None
            Angstrom; needed with `ctf`.

        Returns
        -------
        PolarFeatures
        """
        grid, n = self.grid, len(images)
        values = np.empty((n, grid.n_features), dtype=np.float32)
        norms = np.empty(n, dtype=np.float32)
        squared = [] if ctf is not None else None
        if ctf is not None:
            ctf = validate_ctf(ctf, n)
            if pixel_size is None:
                raise ValueError("pixel_size is needed with ctf, got None")
        with one_blas_thread():
            for part, half_plane in self._batches(images, "images"):
                count = part.stop - part.start
                hartley = grid.hartley(half_plane)
                norms[part] = grid.squared_norms(hartley)[:count]
                if ctf is not None:
                    transfer = evaluate_ctf_polar(ctf[part], grid.radii, grid.half_angles, pixel_size)
                    squared.append(_even_orders(transfer))
                    both = np.zeros((grid.n_rings, grid.n_theta, BATCH), dtype=np.float32)
                    both[:, : grid.n_theta // 2, :count] = transfer.transpose(1, 2, 0)
                    both[:, grid.n_theta // 2 :] = both[:, : grid.n_theta // 2]
                    hartley *= both
                values[part] = grid.features(hartley)[:count]
        if ctf is not None:
            orders = max((s.shape[2] for s in squared), default=1)
            together = np.zeros((n, grid.n_rings, orders), dtype=np.complex64)
            for i, s in enumerate(squared):
                together[i * BATCH : i * BATCH + len(s), :, : s.shape[2]] = s
            squared = together
        return PolarFeatures(values, norms, squared)

    def references(self, class_averages):
        """Class averages made ready to be matched.

        Parameters
        ----------
        class_averages : array-like of shape (k, L, L)

        Returns
        -------
        PolarReferences
        """
        grid, k = self.grid, len(class_averages)
        hartley = np.empty((grid.n_rings, grid.n_theta, k), dtype=np.float32)
        values = np.empty((k, grid.n_features), dtype=np.float32)
        norms = np.empty(k, dtype=np.float32)
        with one_blas_thread():
            for part, half_plane in self._batches(class_averages, "class_averages"):
                count = part.stop - part.start
                polar = grid.hartley(half_plane)
                hartley[:, :, part] = polar[:, :, :count]
                values[part] = grid.features(polar)[:count]
                norms[part] = grid.squared_norms(polar)[:count]
        return PolarReferences(hartley, values, norms)

    # ------------------------------------------------------------------- search
    def match(self, features, references, *, bias=None, previous=None, return_all=False, n_jobs=None):
        """Best class, angle and shift of every image.

        Parameters
        ----------
        features : PolarFeatures
        references : PolarReferences
        bias : array-like of shape (k,), default=None
            Added to the squared distances of each class before the best is chosen.
        previous : InPlaneMatch or tuple (labels, angles, shifts), default=None
            Earlier result for the same images. Where shifts are searched, each image is then searched among
            all classes and angles, but only the seven shifts within one step of its earlier one (several
            times faster); the earlier pose itself is kept where nothing better is found. Without a shift
            search it changes nothing.
        return_all : bool, default=False
            Return the squared distance, angle and shift of every image in all classes too; in classes that
            were not refined they are those of the grid.
        n_jobs : int, default=None
            Threads over blocks of images; the result does not depend on it.

        Returns
        -------
        InPlaneMatch
            Of equal distances the lowest class, then angle, then shift of `candidate_shifts` wins.
        """
        n, k = len(features), len(references)
        if k < 1:
            raise ValueError("references must hold at least one class average, got none")
        bias = np.zeros(k, dtype=np.float32) if bias is None else np.asarray(bias, dtype=np.float32)
        if bias.shape != (k,):
            raise ValueError(f"bias must have shape ({k},), got {bias.shape}")
        shifts, base = self.candidate_shifts, np.zeros((n, 2))
        local = previous is not None and len(shifts) > 1
        with one_blas_thread(), Parallel(n_jobs=n_jobs, prefer="threads", require="sharedmem") as parallel:
            if local:
                previous = _check_previous(previous, n, k)
                shifts = hexagonal_disc(self.step, self.step)
                base = _shortened(previous[2], max(self.max_shift - self.step, 0.0))
                features = self._recentred(features, base)
            distances, angle, shift = self._search(parallel, features, references, shifts)
            angles = (2 * np.pi / self.n_angles) * angle
            moved = np.zeros((n, k, 2))
            if len(shifts) > 1:
                moved += base[:, None] + turned(shifts[shift], angles)
                if self.n_refine > 0:
                    refiner = Refiner(
                        self.grid, references, features.n_ctf_orders, shifts, self.step, self.max_shift
                    )
                    self._refine(parallel, refiner, features, bias, base, shift, distances, angles, moved)
            rows, labels = np.arange(n), (distances + bias).argmin(axis=1)
            if local:
                # An earlier pose that is not on the grids of this search has to be compared by itself.
                turns = previous[1] * self.n_angles / (2 * np.pi)
                off_grid = np.any(previous[2] != base, axis=1) | (np.abs(turns - np.rint(turns)) > 1e-6)
                check = np.flatnonzero(off_grid)
                label, turn, place = (p[check] for p in previous)
                value = pose_scores(self.grid, features[check], references, label, turn, place - base[check])
                value = np.maximum(features.norms[check] - 2 * value, 0)
                kept = value + bias[label] < distances[check, labels[check]] + bias[labels[check]]
                check, label = check[kept], label[kept]
                labels[check], distances[check, label] = label, value[kept]
                angles[check, label], moved[check, label] = turn[kept], place[kept]
        best = [value[rows, labels].copy() for value in (angles, moved, distances)]
        everything = (distances, angles, moved) if return_all else (None, None, None)
        return InPlaneMatch(labels.astype(np.int32), *best, *everything)

    def _search(self, parallel, features, references, shifts):
        """Squared distance, index of angle and index of shift of every image in every class; (n, k) each."""
        n, k = len(features), len(references)
        score = np.empty((n, k), dtype=np.float32)
        angle, shift = np.empty((n, k), dtype=np.int32), np.empty((n, k), dtype=np.int32)
        plan = AnglePlan(self.grid, features.n_ctf_orders)
        phases = shift_phases(self.grid, shifts)
        width = max(1, min(COLUMN_BLOCK // len(shifts), k))
        for first in range(0, k, width):
            columns = Columns(self.grid, plan, references, slice(first, min(first + width, k)), phases)
            parallel(
                delayed(search_block)(plan, columns, features, block, score, angle, shift)
                for block in _blocks(n, IMAGE_BLOCK)
            )
        return np.maximum(features.norms[:, None] - 2 * score, 0), angle, shift

    def _refine(self, parallel, refiner, features, bias, base, shift, distances, angles, moved):
        """Refine the best classes of every image in place: squared distances, angles and shifts, (n, k)."""

        def refine(block):
            order = np.argsort(distances[block] + bias, axis=1, kind="stable")
            classes = np.sort(order[:, : self.n_refine], axis=1)
            rows = np.arange(block.start, block.stop)[:, None]
            turns = np.rint(angles[rows, classes] * self.n_angles / (2 * np.pi)).astype(int)
            places = shift[rows, classes]
            value, turns, places = refiner.run(features[block], classes, turns, places, base[block])
            distances[rows, classes] = np.maximum(features.norms[block, None] - 2 * value, 0)
            angles[rows, classes] = (2 * np.pi / self.n_angles) * turns
            moved[rows, classes] = places

        parallel(delayed(refine)(block) for block in _blocks(len(features), REFINE_BLOCK))

    def pose_distances2(self, features, references, labels, angles, shifts):
        """Squared distances of images to given classes at given poses.

        Parameters
        ----------
        features : PolarFeatures of n images
        references : PolarReferences
        labels : array-like of shape (n,), int
        angles : array-like of shape (n,)
            Radians, any.
        shifts : array-like of shape (n, 2)
            (x, y), px, at most `max_shift` long.

        Returns
        -------
        ndarray of shape (n,), float32
        """
        labels, angles, shifts = _check_previous((labels, angles, shifts), len(features), len(references))
        with one_blas_thread():
            score = pose_scores(self.grid, features, references, labels, angles, shifts)
        return np.maximum(features.norms - 2 * score, 0)

    def _recentred(self, features, shifts):
        """Features of the images with the particles moved back by their shifts."""
        values = np.empty_like(features.values)
        for rows in filled_blocks(len(features), BATCH):
            hartley = self.grid.synthesis(features.values[rows], self.grid.n_theta)
            moved = shift_hartley(hartley, *shift_phases(self.grid, -shifts[rows]))
            values[rows] = self.grid.features(moved)
        return PolarFeatures(values, features.norms, features.ctf_squared)

    def __getstate__(self):
        # the grid is built again where it is needed
        return {name: value for name, value in self.__dict__.items() if name != "grid"}


def _blocks(n, size):
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


def _shortened(vectors, largest):
    """Vectors no longer than `largest`."""
    length = np.hypot(vectors[:, 0], vectors[:, 1])
    return vectors * np.minimum(1, largest / np.maximum(length, 1e-12))[:, None]


def _check_previous(previous, n, k):
    """Labels, angles and shifts of an earlier result, checked."""
    if isinstance(previous, InPlaneMatch):
        previous = previous.labels, previous.angles, previous.shifts
    labels, angles, shifts = (np.asarray(p) for p in previous)
    if labels.shape != (n,) or angles.shape != (n,) or shifts.shape != (n, 2):
        raise ValueError(
            f"labels, angles and shifts must have shapes ({n},), ({n},) and ({n}, 2), "
            f"got {labels.shape}, {angles.shape} and {shifts.shape}"
        )
    if n and not (0 <= labels.min() and labels.max() < k):
        raise ValueError(f"labels must lie in [0, {k}), got {labels.min()} to {labels.max()}")
    return labels.astype(int), angles.astype(np.float64), shifts.astype(np.float64)


def _even_orders(transfer):
    """Harmonics 0, 2, 4 ... along the angle of squared CTFs (n, n_rings, half circle); rounding set to zero.

    Each image keeps its own number of harmonics, so that no image's depend on the others of its chunk.
    """
    orders = np.fft.rfft(np.square(transfer, dtype=np.float64), axis=2) / transfer.shape[2]
    size = np.abs(orders).max(axis=1)
    last = np.array([np.flatnonzero(row > _NO_ORDER).max(initial=0) for row in size], dtype=int)
    count = last.max(initial=0) + 1
    kept = np.arange(count) <= last[:, None]
    return (orders[:, :, :count] * kept[:, None]).astype(np.complex64)
