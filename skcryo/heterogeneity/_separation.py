"""Whether classes are there: those found in one half of the images, judged by the other half."""

from copy import copy
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.optimize import linear_sum_assignment

from ..reconstruction._class_mixture import ClassMixture, log_sum, random_partition

__all__ = ["HalfClasses", "Separation", "classes_of_halves"]

_SURE = 4.0  # standard errors above zero
_DECISIVE = 10.0  # log-likelihood of all images together: a class of no images gains a little by chance


@dataclass(frozen=True)
class Separation:
    """What images that took no part in finding classes tell of them.

    Attributes
    ----------
    gains : ndarray of shape (K, K), float64
        Mean log-likelihood that an image gains when classes k and l have a volume each instead of one for both;
        diagonal 0.
    errors : ndarray of shape (K, K), float64
        Their standard errors.
    n_images : int
    """

    gains: np.ndarray
    errors: np.ndarray
    n_images: int

    @property
    def distinct(self):
        """Whether each pair of classes is two classes: (K, K), bool, diagonal True."""
        told = (self.gains > _SURE * self.errors) & (self.gains * self.n_images > _DECISIVE)
        return told | np.eye(len(self.gains), dtype=bool)


@dataclass(frozen=True)
class HalfClasses:
    """Classes of two halves of the images, each found without the other and shown to it.

    Attributes
    ----------
    responsibilities : ndarray of shape (n, K)
        Of each image in the classes of the half that it is not in; those of the halves numbered alike.
    gains : ndarray of shape (K, K, n)
        Log-likelihood that each image gains by two classes instead of one for both.
    converged : bool
        Whether both fits did.
    """

    responsibilities: np.ndarray
    gains: np.ndarray
    converged: bool

    def separation(self, labels):
        """What the halves tell of classes that are numbered as in `labels`.

        Parameters
        ----------
        labels : ndarray of shape (n,)

        Returns
        -------
        Separation
        """
        n, n_classes = self.responsibilities.shape
        number = _numbers(self.responsibilities.argmax(axis=1), labels, n_classes)
        own = np.argsort(number)
        gains = self.gains[np.ix_(own, own)]
        return Separation(gains.mean(axis=2), gains.std(axis=2) / np.sqrt(n), n)


def _numbers(labels, reference, n_classes):
    """For each class its number in another partition of the same images, so that most agree."""
    table = np.zeros((n_classes, n_classes), dtype=np.int64)
    np.add.at(table, (labels, reference), 1)
    return linear_sum_assignment(-table)[1]


def classes_of_halves(images, rotations, shifts, contrast, n_classes, *, n_init, seed, max_iter, n_jobs, **options):
    """Find classes in each half of the images by itself and judge them by the other.

    Parameters
    ----------
    images, rotations, shifts, contrast
        As :class:`ClassMixture` takes them; poses found without regard to classes.
    n_classes : int
    n_init : int
        Starts from partitions by lot, for each half; the likeliest is kept.
    seed : int
    max_iter, n_jobs
        As :meth:`ClassMixture.fit` takes them.
    **options : dict
        ``band`` and ``mask_radius``.

    Returns
    -------
    HalfClasses
    """
    n = len(images)
    half = np.random.RandomState(np.random.SeedSequence([seed, 1]).generate_state(4)).permutation(np.arange(n) % 2)
    log_share = np.empty((n, n_classes))
    gains = np.zeros((n_classes, n_classes, n))
    converged, unseen = True, None
    for which in (0, 1):
        rows, others = np.flatnonzero(half == which), np.flatnonzero(half != which)
        fitted, shown = (_rows(part, images, rotations, shifts, contrast) for part in (rows, others))
        mixture = _best_of(fitted, n_classes, n_init, max_iter, seed=seed, n_jobs=n_jobs, **options)
        converged &= mixture.converged
        log, merged = mixture.judge(*shown)
        log_shares = np.log(np.maximum(mixture.shares, 1e-12))
        apart = log + log_shares
        order = np.arange(n_classes)
        labels = mixture.responsibilities.argmax(axis=1)
        if which == 0:
            unseen = apart.argmax(axis=1)  # of the second half, by the first
        else:
            order = np.argsort(_numbers(labels, unseen, n_classes))
        log_share[others] = (apart - log_sum(apart)[:, None])[:, order]
        for k, m in combinations(range(n_classes), 2):
            rest = [c for c in range(n_classes) if c not in (k, m)]
            both = merged[k, m] + np.logaddexp(log_shares[k], log_shares[m])
            gain = log_sum(apart) - log_sum(np.column_stack([both, apart[:, rest]]))
            a, b = np.flatnonzero(order == k)[0], np.flatnonzero(order == m)[0]
            gains[a, b, others] = gains[b, a, others] = gain
    return HalfClasses(np.exp(log_share), gains, converged)


def _rows(rows, images, *arrays):
    return images.take(rows), *(None if array is None else array[rows] for array in arrays)


def _best_of(data, n_classes, n_init, max_iter, *, seed, **options):
    mixture, best = ClassMixture(*data, seed=seed, **options), None
    for start in range(n_init):
        random = np.random.RandomState(np.random.SeedSequence([seed, 2, start]).generate_state(4))
        mixture.fit(random_partition(len(data[0]), n_classes, random), max_iter=max_iter)
        if best is None or mixture.curve[-1] > best.curve[-1]:
            best = copy(mixture)
    return best
