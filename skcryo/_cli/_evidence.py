"""Whether classes are really there: particles that took no part in finding them say so, or not."""

from dataclasses import dataclass
from itertools import combinations

import numpy as np

_BAND = 12.0  # cycles per box: where states differ visibly at the noise of single images
_SHRINK = np.array([1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1.0])
_CHUNK = 1000
SURE = 4.0  # standard errors above zero
_DECISIVE = 10.0  # log-likelihood of all particles together: a class of no particles gains a little by chance


@dataclass
class HeldOut:
    """What held-out particles tell of classes.

    Attributes
    ----------
    gains : ndarray of shape (K, K), float64
        Mean log-likelihood that a held-out particle gains when classes k and l have a volume each instead of one for
        both; diagonal 0.
    errors : ndarray of shape (K, K), float64
        Their standard errors.
    predicted : ndarray of shape (n,), int64
        Class of each particle by the volumes of the half that it is not in.
    """

    gains: np.ndarray
    errors: np.ndarray
    predicted: np.ndarray

    @property
    def distinct(self):
        """Whether each pair of classes is two classes: (K, K), bool, diagonal True."""
        told = (self.gains > SURE * self.errors) & (self.gains * len(self.predicted) > _DECISIVE)
        return told | np.eye(len(self.gains), dtype=bool)

    @property
    def groups(self):
        """Classes that are not told apart, together: list of lists, in order."""
        left, groups = list(range(len(self.gains))), []
        while left:
            group = [left.pop(0)]
            for k in group:
                same = [other for other in left if not self.distinct[k, other]]
                left = [other for other in left if other not in same]
                group += same
            groups.append(sorted(group))
        return groups


def held_out(images, rotations, shifts, contrast, labels, half_sets, n_classes, *, mask_radius, n_jobs=1):
    """Judge classes that were found in each of two halves of the particles by itself.

    Parameters
    ----------
    images : FourierImages
        In units of their noise.
    rotations, shifts : ndarray of shape (n, 3, 3) and (n, 2)
        Poses in one frame, found without regard to classes.
    contrast : ndarray of shape (n,) or None
    labels : ndarray of shape (n,), int
        Classes; those of one half found without the other, then numbered alike.
    half_sets : ndarray of shape (n,), int
        0 or 1.
    n_classes : int
    mask_radius : float
        Pixels of the images.
    n_jobs : int, default=1
        Threads; the result does not depend on it.

    Returns
    -------
    evidence : HeldOut

    Notes
    -----
    Volumes of the classes of one half are compared with the images of the other: the log-likelihood of an image is that
    of the mixture of K volumes, against the mixture in which two classes are merged. Volumes of classes that are none
    differ by noise, which makes other images less likely; so does dividing particles by their views, or more finely
    than they differ, however well the halves agree on it. Differences between volumes are scaled down by the one of six
    factors that is best for the images of the *other* half, so that small differences are not lost in their noise;
    choosing it does not favour the images judged.
    """
    pairs = list(combinations(range(n_classes), 2))
    gains = np.zeros((len(_SHRINK), len(pairs), len(images)))
    predicted = np.zeros((len(_SHRINK), len(images)), dtype=np.int64)
    poses = (rotations, shifts, contrast)
    for half in (0, 1):
        weights = np.eye(n_classes)[labels] * (half_sets == half)[:, None]
        shares = np.maximum(weights.sum(axis=0), 1.0)
        shares /= shares.sum()
        judged = np.flatnonzero(half_sets != half)
        terms = _terms(images, poses, judged, weights, pairs, mask_radius, n_jobs)
        for i, factor in enumerate(_SHRINK):
            log = factor * terms[0] - factor**2 * terms[1]
            apart = log[:, :n_classes] + np.log(shares)
            predicted[i, judged] = apart.argmax(axis=1)
            for p, (k, m) in enumerate(pairs):
                others = [c for c in range(n_classes) if c not in (k, m)]
                both = log[:, n_classes + p] + np.log(shares[k] + shares[m])
                merged = np.column_stack([both, apart[:, others]])
                gains[i, p, judged] = _log_sum(apart) - _log_sum(merged)
    best = [int(gains[:, :, half_sets == half].mean(axis=(1, 2)).argmax()) for half in (0, 1)]
    chosen = np.where(half_sets == 0, best[1], best[0])
    return _summary(np.take_along_axis(gains, chosen[None, None], axis=0)[0], pairs, n_classes, predicted, chosen)


def _summary(gains, pairs, n_classes, predicted, chosen):
    mean, error = np.zeros((n_classes, n_classes)), np.zeros((n_classes, n_classes))
    for (k, m), values in zip(pairs, gains):
        mean[k, m] = mean[m, k] = values.mean()
        error[k, m] = error[m, k] = values.std() / np.sqrt(len(values))
    return HeldOut(mean, error, np.take_along_axis(predicted, chosen[None], axis=0)[0])


def _terms(images, poses, judged, weights, pairs, mask_radius, n_jobs):
    """Log-likelihood of images under each class, and under each pair merged, as ``a x - a^2 y`` for differences from
    the consensus that are scaled by a: x and y, (2, n_judged, n_classes + n_pairs)."""
    from ..projection import VolumeProjector
    from ..reconstruction._volume_classes import class_volumes

    band = min(_BAND, float(images.radii[-1]))

    def volumes(columns):
        return class_volumes(images, *poses, columns, band=band, mask_radius=mask_radius, n_jobs=n_jobs)

    everyone = weights.sum(axis=1, keepdims=True)
    consensus = volumes(everyone)[0]
    differences = list(volumes(weights) - consensus)
    for k, m in pairs:
        both = weights[:, [k]] + weights[:, [m]]
        differences.append(volumes(np.hstack([both, everyone - both]))[0] - consensus)
    projectors = [VolumeProjector(difference) for difference in differences]
    middle, n_points = VolumeProjector(consensus), images.n_points(band)
    points = images.points[:n_points]
    rotations, shifts, contrast = poses
    terms = np.empty((2, len(judged), len(projectors)))
    for start in range(0, len(judged), _CHUNK):
        rows = slice(start, start + _CHUNK)
        chosen = judged[rows]
        part = images.take(chosen)
        filters = np.array(np.broadcast_to(part.filters[:, :n_points], (len(part), n_points)))
        if contrast is not None:
            filters *= contrast[chosen, None].astype(np.float32)
        rest = part.values[:, :n_points] * part.centred_phases(shifts[chosen], n_points)
        rest = rest - filters * middle.slices(rotations[chosen], points)
        for c, projector in enumerate(projectors):
            model = filters * projector.slices(rotations[chosen], points)
            terms[0, rows, c] = 2 * (model.conj() * rest).real.sum(axis=1)
            terms[1, rows, c] = np.square(np.abs(model)).sum(axis=1)
    return terms


def _log_sum(log):
    """Logarithm of the sum of exponentials over the last axis."""
    top = log.max(axis=-1, keepdims=True)
    return top[..., 0] + np.log(np.exp(log - top).sum(axis=-1))


def numbered_alike(labels, reference, n_classes):
    """Labels with the numbers that agree best with those of another partition of the same particles.

    Parameters
    ----------
    labels, reference : ndarray of shape (n,), int
    n_classes : int

    Returns
    -------
    labels : ndarray of shape (n,), int64
    """
    from scipy.optimize import linear_sum_assignment

    table = np.zeros((n_classes, n_classes), dtype=np.int64)
    np.add.at(table, (labels, reference), 1)
    _, number = linear_sum_assignment(-table)
    return number[labels]
