"""Classes of images in the plane: assignment in equal numbers, averages, centres and a common frame."""

import numpy as np
from joblib import Parallel, delayed
from scipy import sparse

from .._products import row_products
from ._in_plane_search import FINE_OFFSETS, ClassSearch, best_angles

__all__ = ["Classes", "balanced_biases", "class_sums", "frame_angles", "locate", "own_poses"]

_SINKHORN_STEPS, _SINKHORN_DAMPING = 40, 0.7
_SINKHORN_IMAGES = 10000  # at most, from which biases are found
_CANDIDATES = 3  # classes of which angle and shift are refined before the best is chosen
_NEIGHBORS = 8
_CENTRE = np.zeros((1, 2))


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
        self.span, self.images, self.n_classes, self.n_jobs = span, images, n_classes, n_jobs
        self.known, self.biases = images.shifts, np.zeros(n_classes)
        self.averages = self.labels = self.angles = self.shifts = None

    def start(self, rng):
        """Averages that are single images, as expected given their noise."""
        chosen = np.sort(rng.permutation(len(self.images))[: self.n_classes])
        images = self.images.select(chosen)
        every = slice(0, len(images))
        coefficients = row_products(images.centred(every), self.span.table(_CENTRE)).astype(np.float64)
        self.averages = self.span.posterior_means(coefficients, images.squares(every).astype(np.float64))

    def state(self):
        """What a checkpoint keeps."""
        names = ("averages", "biases", "labels", "angles", "shifts", "known")
        return {name: getattr(self, name) for name in names}

    def restore(self, state):
        """Take over what :meth:`state` gave."""
        for name in ("averages", "biases", "labels", "angles", "shifts", "known"):
            setattr(self, name, state[name])

    def iterate(self, offsets, temperature):
        """Assign all images, at shifts among `offsets` of those known, and average anew."""
        images = self.images
        scores, where = search(self.span, images, self.averages, offsets, self.known, self.n_jobs)
        some = slice(None, None, -(-len(images) // _SINKHORN_IMAGES))
        self.biases = balanced_biases(scores[some], self.biases, temperature)
        self.labels = (scores + self.biases.astype(np.float32)).argmax(axis=1)
        self.shifts = self.known + offsets[where[np.arange(len(images)), self.labels]]
        self.own_poses(_CENTRE, self.shifts)
        self.average(self.shifts)

    def own_poses(self, offsets, shifts):
        """Best angles and shifts in the images' own classes, at `offsets` from `shifts`."""
        self.angles, self.shifts, _ = own_poses(self.span, self.images, self.averages, self.labels, shifts, offsets)

    def average(self, shifts):
        """Averages of images at these shifts, as expected under the prior."""
        sums = class_sums(self.span, self.images, self.labels, self.angles, shifts, self.n_classes)
        self.averages = self.span.posterior_means(*sums)

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


def search(span, images, averages, offsets, shifts, n_jobs=None):
    """Log-likelihoods of all images in all classes, each at its best angle and offset.

    Returns
    -------
    scores : ndarray of shape (n_images, k), float32
    where : ndarray of shape (n_images, k), int16
        Index of the offset.
    """
    finder = ClassSearch(span, averages, offsets)
    scores = np.empty((len(images), len(averages)), dtype=np.float32)
    where = np.empty(scores.shape, dtype=np.int16)

    def run(part):
        scores[part], where[part] = finder.scores(images.centred(part, shifts[part]), images.squares(part))

    parallel = Parallel(n_jobs=n_jobs, prefer="threads", require="sharedmem")
    parallel(delayed(run)(part) for part in images.blocks(finder.block_size))
    return scores, where


def locate(span, images, averages, biases, offsets, n_jobs=None):
    """Class, angle and shift of images, each by itself.

    Returns
    -------
    labels : ndarray of shape (n,), int32
    angles : ndarray of shape (n,), float64
    shifts : ndarray of shape (n, 2), float64
    """
    n, known = len(images), np.zeros((len(images), 2))
    scores, where = search(span, images, averages, offsets, known, n_jobs)
    scores += biases.astype(np.float32)
    candidates = np.argsort(-scores, axis=1, kind="stable")[:, :_CANDIDATES]
    fine = FINE_OFFSETS if len(offsets) > 1 else _CENTRE
    half_power = 0.5 * span.ring_power(averages).astype(np.float64)
    rows, best = np.arange(n), np.full(n, -np.inf)
    labels, angles, shifts = np.zeros(n, dtype=np.int32), np.zeros(n), np.zeros((n, 2))
    for label in candidates.T:
        angle, shift, value = own_poses(span, images, averages, label, offsets[where[rows, label]], fine)
        for part in images.blocks():
            value[part] -= np.einsum("nq,nq->n", images.squares(part), half_power[label[part]])
        value += biases[label]
        better = value > best
        best[better], labels[better], angles[better] = value[better], label[better], angle[better]
        shifts[better] = shift[better]
    return labels, angles, shifts


def own_poses(span, images, averages, labels, shifts, offsets):
    """Best angles and shifts of images in one class each, at `offsets` from `shifts`, and the values there."""
    table, T = span.table(offsets), len(offsets)
    n = len(images)
    angles, found, values = np.empty(n), np.empty((n, 2)), np.empty(n)
    for part in images.blocks():
        m = part.stop - part.start
        b = row_products(images.centred(part, shifts[part]), table).reshape(m * T, -1)
        products = span.products(b, np.repeat(averages[labels[part]], T, axis=0))
        angle, value = (a.reshape(m, T) for a in best_angles(span.frequencies, products))
        best = value.argmax(axis=1)
        angles[part], values[part] = angle[np.arange(m), best], value[np.arange(m), best]
        found[part] = shifts[part] + (peaks(value) if offsets is FINE_OFFSETS else offsets[best])
    return angles, found, values


def peaks(values):
    """Where quadratics through the values at :data:`FINE_OFFSETS` are largest; within their square."""
    x, y = FINE_OFFSETS.T
    design = np.stack([np.ones(len(x)), x, y, x * x / 2, y * y / 2, x * y], axis=1)
    _, sx, sy, xx, yy, xy = np.einsum("nj,ij->in", values, np.linalg.pinv(design))
    determinant = xx * yy - xy**2
    peaked = (determinant > 0) & (xx < 0)
    determinant = np.where(peaked, determinant, 1)
    peak = np.stack([xy * sy - yy * sx, xy * sx - xx * sy], axis=1) / determinant[:, None]
    reach = np.abs(FINE_OFFSETS).max()
    return np.clip(np.where(peaked[:, None], peak, FINE_OFFSETS[values.argmax(axis=1)]), -reach, reach)


def class_sums(span, images, labels, angles, shifts, n_classes):
    """Sums over each class of coefficients of images moved and turned back, and of squared filters."""
    sums, filters = np.zeros((n_classes, span.n_coefficients)), np.zeros((n_classes, images.filters.shape[1]))
    table = span.table(_CENTRE)
    for part in images.blocks():
        b = row_products(images.centred(part, shifts[part]), table).astype(np.float64)
        rows = np.arange(len(b))
        member = sparse.csr_array((np.ones(len(b)), (labels[part], rows)), shape=(n_classes, len(b)))
        sums += member @ span.turned(b, -angles[part])
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
