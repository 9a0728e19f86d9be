"""What two-dimensional and three-dimensional classes are worth against known views and known states."""

from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import linear_sum_assignment

from ..rotations import check_rotations

_BINS_PER_DEGREE = 100
_BLOCK_PAIRS = 2**21


def class_view_angles(labels, rotations):
    """Angles between the viewing directions of all pairs of images in one class.

    Parameters
    ----------
    labels : array-like of shape (n,)
        Class of each image. Negative numbers stand for images without a class.
    rotations : array-like of shape (n, 3, 3) or (n, 3)
        True poses, or viewing directions.

    Returns
    -------
    angles : ndarray of shape (n_pairs,), float32
        Degrees in [0, 180], class by class. It takes 4 bytes a pair: :func:`view_coherence` sums them up
        without.

    Raises
    ------
    ValueError
        If lengths differ or a rotation or direction is none.

    References
    ----------
    Rao, Moscovich, Singer, "Wasserstein k-means for clustering tomographic projections" (2020), figure 2.

    Examples
    --------
    >>> import numpy as np
    >>> from skcryo.metrics import class_view_angles
    >>> class_view_angles([0, 0, 1], np.array([[0, 0, 1.0], [1.0, 0, 0], [0, 1.0, 0]]))
    array([90.], dtype=float32)
    """
    blocks = [block.astype(np.float32) for block in _angle_blocks(labels, rotations)]
    return np.concatenate(blocks) if blocks else np.empty(0, dtype=np.float32)


def _angle_blocks(labels, rotations):
    """Within-class angles in degrees, in blocks of bounded size."""
    labels = _check_labels(labels)
    directions = np.asarray(rotations, dtype=np.float64)
    if directions.ndim == 3:
        directions = check_rotations(directions)[:, :, 2]
    elif directions.ndim != 2 or directions.shape[1] != 3:
        raise ValueError(f"rotations has shape {directions.shape}; (n, 3, 3) or directions (n, 3) are wanted")
    if len(directions) != len(labels):
        raise ValueError(f"labels has {len(labels)} entries but rotations has {len(directions)}")
    bad = np.flatnonzero(~(np.abs(np.linalg.norm(directions, axis=1) - 1) < 1e-3))
    if len(bad):
        raise ValueError(
            f"rotations[{bad[0]}] is {directions[bad[0]]}; a viewing direction of length 1 is wanted"
        )
    order = np.argsort(labels, kind="stable")
    for members in np.split(order, np.flatnonzero(np.diff(labels[order])) + 1):
        if labels[members[0]] < 0:
            continue
        own = directions[members]
        n_rows = max(1, _BLOCK_PAIRS // len(own))
        for start in range(0, len(own) - 1, n_rows):
            rows = own[start : start + n_rows]
            cosine = rows @ own[start:].T
            above = np.arange(len(own) - start)[None, :] > np.arange(len(rows))[:, None]
            yield np.degrees(np.arccos(np.clip(cosine[above], -1.0, 1.0)))


@dataclass(frozen=True)
class ViewCoherence:
    """Distribution of within-class viewing-angle differences, as :func:`view_coherence` gives it.

    Parameters
    ----------
    n_pairs : int
        Number of pairs of images of one class.
    mean : float
        Mean difference in degrees.
    histogram : ndarray of shape (18000,), int64
        Number of pairs in each bin.
    bin_edges : ndarray of shape (18001,), float64
        In degrees, 0 to 180.

    Examples
    --------
    >>> from skcryo.metrics import view_coherence
    >>> coherence = view_coherence([0, 0, 0], [[0, 0, 1.0], [0, 0, 1.0], [0, 1.0, 0]])
    >>> round(coherence.mean), round(coherence.share_under(30), 3), coherence.antipodal_share
    (60, 0.333, 0.0)
    """

    n_pairs: int
    mean: float
    histogram: np.ndarray = field(repr=False)
    bin_edges: np.ndarray = field(repr=False)

    def share_under(self, degrees):
        """Share of the pairs whose views differ by less than `degrees` (to 0.01 degree)."""
        cumulated = np.concatenate([[0], np.cumsum(self.histogram)])
        return float(np.interp(degrees, self.bin_edges, cumulated) / self.n_pairs)

    @property
    def median(self):
        """Median difference in degrees (to 0.01 degree)."""
        cumulated = np.cumsum(self.histogram)
        i = int(np.searchsorted(cumulated, self.n_pairs / 2))
        return float((self.bin_edges[i] + self.bin_edges[i + 1]) / 2)

    @property
    def antipodal_share(self):
        """Share of the pairs within 20 degrees of opposite views, which projections confuse up to a
        mirror."""
        return 1.0 - self.share_under(160.0)


def view_coherence(labels, rotations):
    """How alike the views within classes are.

    Parameters
    ----------
    labels : array-like of shape (n,)
        Class of each image. Negative numbers stand for images without a class.
    rotations : array-like of shape (n, 3, 3) or (n, 3)
        True poses, or viewing directions.

    Returns
    -------
    coherence : ViewCoherence
        Over all pairs of images of one class: ``median``, ``mean`` (degrees), ``share_under(degrees)``,
        ``antipodal_share`` (beyond 160 degrees), ``n_pairs``, ``histogram`` and ``bin_edges``. Random classes
        of uniform views have the median 90 and ``share_under(t) = (1 - cos t) / 2``: 3.0 % at 20 degrees.

    Raises
    ------
    ValueError
        If lengths differ, a rotation is none, or no class holds two images.

    Notes
    -----
    Every pair counts once, so large classes dominate; :func:`occupancy_entropy` says how even the classes
    are. Memory is bounded whatever the number of images.

    References
    ----------
    Rao, Moscovich, Singer, "Wasserstein k-means for clustering tomographic projections" (2020), section 4.

    Examples
    --------
    >>> from skcryo.metrics import view_coherence
    >>> from skcryo.rotations import random_rotations
    >>> R = random_rotations(4, random_state=0)
    >>> perfect = view_coherence([0, 0, 1, 1, 2, 2, 3, 3], R[[0, 0, 1, 1, 2, 2, 3, 3]])
    >>> perfect.n_pairs, perfect.share_under(20)
    (4, 1.0)
    """
    n_bins = 180 * _BINS_PER_DEGREE
    histogram = np.zeros(n_bins, dtype=np.int64)
    total = 0.0
    for angles in _angle_blocks(labels, rotations):
        bins = np.minimum((angles * _BINS_PER_DEGREE).astype(np.intp), n_bins - 1)
        histogram += np.bincount(bins, minlength=n_bins)
        total += angles.sum()
    n_pairs = int(histogram.sum())
    if not n_pairs:
        raise ValueError("labels hold no class with two images; there is no pair to measure")
    return ViewCoherence(n_pairs, total / n_pairs, histogram, np.arange(n_bins + 1) / _BINS_PER_DEGREE)


def _check_labels(labels, name="labels"):
    labels = np.asarray(labels)
    if labels.ndim != 1:
        raise ValueError(f"{name} has shape {labels.shape}; (n,) is wanted")
    if not len(labels):
        raise ValueError(f"{name} is empty; at least one image is wanted")
    if labels.dtype.kind not in "iub":
        if labels.dtype.kind != "f" or not (labels == np.rint(labels)).all():
            raise ValueError(f"{name} has dtype {labels.dtype}; whole numbers are wanted")
    return labels.astype(np.int64)


def _occupancies(labels, n_classes):
    labels = _check_labels(labels)
    labels = labels[labels >= 0]
    if not len(labels):
        raise ValueError("labels assign no image to a class; at least one must be")
    if n_classes is None:
        counts = np.unique(labels, return_counts=True)[1]
    else:
        if labels.max() >= n_classes:
            raise ValueError(
                f"labels reach {labels.max()} but n_classes is {n_classes}; labels below it are wanted"
            )
        counts = np.bincount(labels, minlength=n_classes)
    return counts / counts.sum()


def _entropy(shares):
    shares = shares[shares > 0]
    return float(-(shares * np.log(shares)).sum())


def occupancy_entropy(labels, n_classes=None):
    """How evenly the classes are filled: the entropy of their sizes over that of equal sizes.

    Parameters
    ----------
    labels : array-like of shape (n,)
        Class of each image. Negative numbers stand for images without a class.
    n_classes : int, default=None
        Number of classes, so that empty ones count; None counts the classes that occur.

    Returns
    -------
    entropy : float
        1 for equal classes (also for a single one), 0 if one of several classes holds everything.

    Raises
    ------
    ValueError
        If no image has a class, or a label is not below `n_classes`.

    Examples
    --------
    >>> from skcryo.metrics import occupancy_entropy
    >>> occupancy_entropy([0, 0, 1, 1]), occupancy_entropy([0, 0, 1, 1], n_classes=4)
    (1.0, 0.5)
    """
    shares = _occupancies(labels, n_classes)
    return _entropy(shares) / float(np.log(len(shares))) if len(shares) > 1 else 1.0


def effective_n_classes(labels):
    """Number of equal classes that would have the entropy of these class sizes (``exp`` of the entropy).

    Parameters
    ----------
    labels : array-like of shape (n,)
        Class of each image. Negative numbers stand for images without a class.

    Returns
    -------
    n : float
        Between 1 and the number of classes that occur.

    Raises
    ------
    ValueError
        If no image has a class.

    Examples
    --------
    >>> from skcryo.metrics import effective_n_classes
    >>> round(effective_n_classes([0, 0, 1, 1, 2, 2]), 6)
    3.0
    """
    return float(np.exp(_entropy(_occupancies(labels, None))))


def class_precisions(labels_true, labels_pred):
    """Precision of every class under the matching that definition 7 asks for.

    Parameters
    ----------
    labels_true, labels_pred : array-like of shape (n,)
        True and estimated classes. At most as many classes may be estimated as there are.

    Returns
    -------
    precisions : ndarray of shape (n_classes,), float64
        For each true class in increasing order, the share of its estimated class's images that belong there;
        0 for an estimated class that is empty. The permutation maximises the least precision, then their sum.

    Raises
    ------
    ValueError
        If lengths differ or more classes are estimated than there are.

    Examples
    --------
    >>> from skcryo.metrics import class_precisions
    >>> class_precisions([0, 0, 0, 1, 1], [7, 7, 5, 5, 5]).round(3).tolist()
    [1.0, 0.667]
    """
    table = _precision_table(labels_true, labels_pred)
    levels = np.unique(table)
    # Bottleneck assignment: the highest level at which a permutation passes everywhere, by bisection.
    low, high = 0, len(levels) - 1
    while low < high:
        middle = (low + high + 1) // 2
        passes = table >= levels[middle]
        rows, columns = linear_sum_assignment(passes, maximize=True)
        if passes[rows, columns].all():
            low = middle
        else:
            high = middle - 1
    # Failing one entry costs more than any sum of precisions can win.
    allowed = np.where(table >= levels[low], table, -float(len(table)) - 1)
    rows, columns = linear_sum_assignment(allowed, maximize=True)
    return table[rows, columns]


def _precision_table(labels_true, labels_pred):
    true, pred = _check_labels(labels_true, "labels_true"), _check_labels(labels_pred, "labels_pred")
    if len(true) != len(pred):
        raise ValueError(f"labels_true has {len(true)} entries but labels_pred has {len(pred)}")
    true_classes, true = np.unique(true, return_inverse=True)
    pred_classes, pred = np.unique(pred, return_inverse=True)
    K = len(true_classes)
    if len(pred_classes) > K:
        raise ValueError(
            f"labels_pred holds {len(pred_classes)} classes but labels_true {K}; at most {K} are wanted"
        )
    counts = np.bincount(true * K + pred, minlength=K * K).reshape(K, K)
    return counts / np.maximum(counts.sum(0), 1)


def partition_precision(labels_true, labels_pred):
    """Precision of a partition: the largest p such that, matched at best, every class is p-precise.

    A class is p-precise if at least the share p of the images put into it belongs there. A random partition
    into K balanced classes has about ``1 / K``, a perfect one 1, and one with an empty class 0.

    Parameters
    ----------
    labels_true, labels_pred : array-like of shape (n,)
        True and estimated classes, up to a permutation. At most as many classes may be estimated as there
        are.

    Returns
    -------
    precision : float
        The least of :func:`class_precisions`.

    Raises
    ------
    ValueError
        If lengths differ or more classes are estimated than there are.

    References
    ----------
    Aizenbud, Shkolnisky, "A max-cut approach to heterogeneity in cryo-electron microscopy", J. Math. Anal.
    Appl. 479 (2019), definition 7.

    Examples
    --------
    >>> from skcryo.metrics import partition_precision
    >>> partition_precision([0, 0, 1, 1], [1, 1, 0, 0])
    1.0
    """
    return float(class_precisions(labels_true, labels_pred).min())
