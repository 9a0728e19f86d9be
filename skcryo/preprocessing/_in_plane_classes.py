"""Classes of images in the plane: assignment in equal numbers, averages, centres and a common frame."""

from dataclasses import dataclass

import numpy as np
from joblib import Parallel, delayed
from scipy import sparse

from ._in_plane_images import Coefficients
from ._in_plane_search import ClassSearch, best_angles, grid_angles

__all__ = ["Classes", "balanced_biases", "class_sums", "frame_angles", "locate", "own_poses"]

_SINKHORN_STEPS, _SINKHORN_DAMPING = 40, 0.7
_SINKHORN_IMAGES = 10000  # at most, from which biases are found
_CANDIDATES = 3  # classes of which angle and shift are refined before the best is chosen
_NEIGHBORS = 8
_ROWS = 4096  # of products of images at offsets with averages, looked at together
_CENTRE = np.zeros((1, 2))
_STATE = ("averages", "biases", "labels", "angles", "shifts", "known")


class Classes:
    """Averages in a span, and of every image its class, angle and shift.

    Parameters
    ----------
    span : SteerableSpan
    images : BandImages
    n_classes : int
    n_jobs : int or None

    Attributes
    ----------
    averages : ndarray of shape (n_classes, n_coefficients), float64
    biases : ndarray of shape (n_classes,), float64
        Added to log-likelihoods so that classes are of one size, nats.
    labels, angles, shifts : ndarray
        Class, turn and place of every image relative to its average.
    known : ndarray of shape (n_images, 2)
        Shifts about which others are searched.
    """

    def __init__(self, span, images, n_classes, n_jobs=None):
        self.span, self.images, self.n_classes, self.n_jobs = (span, images, n_classes, n_jobs)
        self.biases = np.zeros(n_classes)
        self.search_near(images.shifts)
        self.averages = self.labels = self.angles = self.shifts = self._averaged = None

    def search_near(self, shifts):
        """From now on, try shifts at offsets from these."""
        self.known = shifts
        self.coefficients = Coefficients(self.span, self.images, shifts)

    def start(self, rng):
        """Averages that are single images, as expected given their noise."""
        chosen = np.sort(rng.permutation(len(self.images))[: self.n_classes])
        images = self.images.select(chosen)
        every = slice(0, len(images))
        coefficients = Coefficients(self.span, images, images.shifts).at(every, images.shifts).astype(np.float64)
        self.averages = self.span.posterior_means(coefficients, images.squares(every).astype(np.float64))

    def state(self):
        """What a checkpoint keeps."""
        return {name: getattr(self, name) for name in _STATE}

    def restore(self, state):
        """Take over what :meth:`state` gave."""
        for name in _STATE:
            setattr(self, name, state[name])
        self.search_near(self.known)
        if np.array_equal(self.shifts, self.known):
            self.shifts = self.known  # for which coefficients are kept, the same to the last bit
        self.average(self.shifts)

    def iterate(self, offsets, temperature):
        """Assign all images, at shifts among `offsets` of those known, and average anew."""
        rows = np.arange(len(self.images))
        scores, where = search(self.coefficients, self.averages, offsets, self.known, self.n_jobs)
        if self.labels is not None:
            found = own_poses(self.coefficients, self.averages_of, self.known, offsets, self.n_jobs)
            scores[rows, self.labels], where[rows, self.labels] = (found.scores, found.where)
        some = slice(None, None, -(-len(rows) // _SINKHORN_IMAGES))
        self.biases = balanced_biases(scores[some], self.biases, temperature)
        self.labels = (scores + self.biases.astype(np.float32)).argmax(axis=1)
        self.shifts = self.known
        if len(offsets) > 1:
            self.shifts = self.known + offsets[where[rows, self.labels]]
        self.angles = own_poses(self.coefficients, self.averages_of, self.shifts, _CENTRE, self.n_jobs).angles
        self.average(self.shifts)

    def own_poses(self, offsets, shifts):
        """Best angles and shifts in the images' own classes, at `offsets` from `shifts`."""
        found = own_poses(self.coefficients, self.averages_of, shifts, offsets, self.n_jobs)
        self.angles, self.shifts = found.angles, found.shifts

    def average(self, shifts):
        """Averages of images at these shifts, as expected under the prior."""
        sums, filters = class_sums(self.coefficients, self.labels, self.angles, shifts, self.n_classes)
        self.averages = self.span.posterior_means(sums, filters)
        self._averaged = (self.labels, self.angles, shifts, self.span.posterior_covariances(filters))

    def averages_of(self, part):
        """Average of each image's class without the image itself: (n, n_coefficients), for the images of a slice.

        With itself, an image of much noise is most like the class and the pose that it had: what averages have of its
        noise. It is taken out to first order: the posterior mean's derivative by the image's weight.
        """
        averages = self.averages[self.labels[part]]
        if self._averaged is None:
            return averages
        labels, angles, shifts, covariances = self._averaged
        member = np.flatnonzero(labels[part] == self.labels[part])
        b = self.coefficients.at(part, shifts)[member].astype(np.float64)
        b = self.span.turned(b, -angles[part][member])
        squares = self.images.squares(part)[member]
        averages[member] -= self.span.shares(b, squares, averages[member], labels[part][member], covariances)
        return averages

    def recentred(self, max_shift):
        """Shifts of the images with all averages brought to one centre."""
        from ..alignment import recentred_shifts, synchronize_averages  # which itself needs this package

        counts = np.bincount(self.labels, minlength=self.n_classes)
        offsets = synchronize_averages(
            self.span.images(self.averages),
            counts,
            n_neighbors=_NEIGHBORS,
            n_angles=64,
            max_shift=min(max_shift, 0.4 * self.span.basis.L),
            n_jobs=1,
        )
        return recentred_shifts(self.labels, self.angles, self.shifts, offsets)


def search(coefficients, averages, offsets, shifts, n_jobs=None):
    """Log-likelihoods of all images in all classes, each at its best angle and offset.

    Returns
    -------
    scores : ndarray of shape (n_images, k), float32
    where : ndarray of shape (n_images, k), int16
        Index of the offset.
    """
    images = coefficients.images
    finder = ClassSearch(coefficients.span, averages, len(offsets))
    scores = np.empty((len(images), len(averages)), dtype=np.float32)
    where = np.empty(scores.shape, dtype=np.int16)

    def run(part):
        scores[part], where[part] = finder.scores(coefficients.near(part, shifts, offsets), images.squares(part))

    in_threads(run, images.blocks(finder.block_size), n_jobs)
    return scores, where


def locate(span, images, averages, biases, grids, n_jobs=None):
    """Class, angle and shift of images, each by itself: all classes at coarse offsets, the best few at fine ones.

    Returns
    -------
    labels : ndarray of shape (n,), int32
    angles : ndarray of shape (n,), float64
    shifts : ndarray of shape (n, 2), float64
    """
    n = len(images)
    coefficients = Coefficients(span, images, np.zeros((n, 2)))
    scores, where = search(coefficients, averages, grids.coarse, coefficients.known, n_jobs)
    scores += biases.astype(np.float32)
    candidates = np.argsort(-scores, axis=1, kind="stable")[:, :_CANDIDATES]
    rows, best = np.arange(n), np.full(n, -np.inf)
    labels, angles, shifts = np.zeros(n, dtype=np.int32), np.zeros(n), np.zeros((n, 2))
    for label in candidates.T:
        near = coefficients.known if grids.max_shift == 0 else grids.coarse[where[rows, label]]
        found = own_poses(coefficients, lambda part, label=label: averages[label[part]], near, grids.fine, n_jobs)
        value = found.scores + biases[label]
        better = value > best
        best[better], labels[better], angles[better] = (value[better], label[better], found.angles[better])
        shifts[better] = found.shifts[better]
    return labels, angles, shifts


@dataclass(frozen=True)
class OwnPoses:
    """Of images in one class each, the best pose and its log-likelihood; arrays with a row for each image."""

    angles: np.ndarray
    shifts: np.ndarray
    where: np.ndarray
    scores: np.ndarray


def own_poses(coefficients, averages_of, shifts, offsets, n_jobs=None):
    """Best angles and shifts of images in one class each, at `offsets` from `shifts`.

    Parameters
    ----------
    coefficients : Coefficients
    averages_of : callable
        Of a slice, the average that each of its images is compared with: (n, n_coefficients).
    shifts : ndarray of shape (n_images, 2)
    offsets : ndarray of shape (n_offsets, 2)
        Of nine, fine ones, the maximum between them is found.
    n_jobs : int or None

    Returns
    -------
    OwnPoses
    """
    span, images = coefficients.span, coefficients.images
    T, n = len(offsets), len(images)
    found = OwnPoses(np.empty(n), np.empty((n, 2)), np.empty(n, dtype=np.int16), np.empty(n))

    def run(part):
        averages = averages_of(part)
        m = len(averages)
        b = coefficients.near(part, shifts, offsets).reshape(m * T, -1)
        products = span.products(b, np.repeat(averages, T, axis=0))
        values = grid_angles(span.frequencies, products)[1].reshape(m, T)
        best = values.argmax(axis=1)
        angles, top = best_angles(span.frequencies, products[np.arange(m) * T + best])
        power = np.einsum("nq,nq->n", span.ring_power(averages), images.squares(part), dtype=np.float64)
        found.where[part], found.angles[part], found.scores[part] = (best, angles, top - power / 2)
        found.shifts[part] = shifts[part] + (peaks(values, offsets) if T == 9 else offsets[best])

    in_threads(run, images.blocks(max(1, _ROWS // T)), n_jobs)
    return found


def in_threads(run, parts, n_jobs):
    """Call `run` with every part."""
    parallel = Parallel(n_jobs=n_jobs, prefer="threads", require="sharedmem")
    parallel(delayed(run)(part) for part in parts)


def peaks(values, offsets):
    """Where quadratics through the values at nine offsets are largest; within their square."""
    x, y = offsets.T
    design = np.stack([np.ones(len(x)), x, y, x * x / 2, y * y / 2, x * y], axis=1)
    _, sx, sy, xx, yy, xy = np.einsum("nj,ij->in", values, np.linalg.pinv(design))
    determinant = xx * yy - xy**2
    peaked = (determinant > 0) & (xx < 0)
    determinant = np.where(peaked, determinant, 1)
    peak = np.stack([xy * sy - yy * sx, xy * sx - xx * sy], axis=1) / determinant[:, None]
    reach = np.abs(offsets).max()
    return np.clip(np.where(peaked[:, None], peak, offsets[values.argmax(axis=1)]), -reach, reach)


def class_sums(coefficients, labels, angles, shifts, n_classes):
    """Sums over each class of coefficients of images moved and turned back, and of squared filters."""
    span, images = coefficients.span, coefficients.images
    sums, filters = (np.zeros((n_classes, span.n_coefficients)), np.zeros((n_classes, images.filters.shape[1])))
    for part in images.blocks():
        b = span.turned(coefficients.at(part, shifts).astype(np.float64), -angles[part])
        member = sparse.csr_array((np.ones(len(b)), (labels[part], np.arange(len(b)))), shape=(n_classes, len(b)))
        sums += member @ b
        filters += member @ images.squares(part).astype(np.float64)
    return sums, filters


def balanced_biases(scores, biases, temperature):
    """Biases with which all classes are of one size, by Sinkhorn's iteration.

    Parameters
    ----------
    scores : ndarray of shape (n, k)
        Log-likelihoods.
    biases : ndarray of shape (k,)
        To begin with.
    temperature : float
        By which log-likelihoods are divided.

    Returns
    -------
    ndarray of shape (k,), float64
    """
    wanted = len(scores) / scores.shape[1]
    for _ in range(_SINKHORN_STEPS):
        logits = (scores + biases.astype(np.float32)) / np.float32(temperature)
        logits -= logits.max(axis=1, keepdims=True)
        np.exp(logits, out=logits)
        logits /= logits.sum(axis=1, keepdims=True)
        sizes = logits.sum(axis=0, dtype=np.float64)
        biases = biases - _SINKHORN_DAMPING * temperature * np.log((sizes + 1e-3) / wanted)
    return biases


def frame_angles(span, averages):
    """Turns after which averages of similar views agree as well as can be.

    The turn between each average and its nearest neighbours is a phase; the eigenvector of largest eigenvalue of the
    matrix of these phases has the phases that agree with them best. A sphere of views has no frame that is smooth
    everywhere: at two views or more it is not.
    """
    k = len(averages)
    if k == 1:
        return np.zeros(1)
    distances, angles = np.empty((k, k)), np.empty((k, k))
    power = np.square(averages).sum(axis=1)
    for i in range(k):
        products = span.products(np.repeat(averages[i : i + 1], k, axis=0), averages)
        angles[i], value = best_angles(span.frequencies, products)
        distances[i] = power[i] + power - 2 * value
    distances[np.arange(k), np.arange(k)] = np.inf
    nearest = np.argsort(distances, axis=1, kind="stable")[:, : min(_NEIGHBORS, k - 1)]
    links = np.zeros((k, k), dtype=np.complex128)
    np.put_along_axis(links, nearest, np.exp(1j * np.take_along_axis(angles, nearest, axis=1)), axis=1)
    links += links.conj().T
    size = np.maximum(np.abs(links).sum(axis=1), 1e-12)
    links /= np.sqrt(np.outer(size, size))
    return -np.angle(np.linalg.eigh(links)[1][:, -1])
