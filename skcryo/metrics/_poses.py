"""How far estimated poses are from known ones, and how many common lines were found."""

import numpy as np
from sklearn.utils import Bunch

from ..rotations import align_rotations, check_rotations, geodesic_distance

_MIRROR = np.diag([1.0, 1.0, -1.0])


def pose_error(estimated, true, *, reflection=True):
    """Angular error of estimated poses, after the frame and the hand are aligned.

    Poses from images alone are known up to one global rotation and a reflection ``R -> J R J``,
    ``J = diag(1, 1, -1)``; both are fitted, robustly, before anything is measured.

    Parameters
    ----------
    estimated, true : array-like of shape (n, 3, 3)
        Rotations of the same images.
    reflection : bool, default=True
        Whether the other hand is tried too. With False the hand has to be right.

    Returns
    -------
    result : Bunch
        ``mean``, ``median``, ``p95`` (degrees), ``errors`` (n,) in degrees per image, ``aligned`` (n, 3, 3),
        ``gauge`` (3, 3) and ``reflected`` of :func:`skcryo.rotations.align_rotations`.

    Raises
    ------
    ValueError
        If the arrays are empty, differ in length or hold a matrix that is no rotation.

    Examples
    --------
    >>> from skcryo.metrics import pose_error
    >>> from skcryo.rotations import random_rotations
    >>> truth = random_rotations(30, random_state=0)
    >>> frame = random_rotations(1, random_state=1)[0]
    >>> bool(pose_error(frame @ truth, truth).mean < 1e-4)
    True
    """
    estimated, true = _check_pair(estimated, true)
    aligned, gauge, reflected = align_rotations(estimated, true, reflection=reflection)
    errors = np.degrees(geodesic_distance(aligned, true))
    return Bunch(
        mean=float(errors.mean()),
        median=float(np.median(errors)),
        p95=float(np.quantile(errors, 0.95)),
        errors=errors,
        aligned=aligned,
        gauge=gauge,
        reflected=reflected,
    )


def pose_correlation(estimated, true, *, reflection=True):
    """Pose correlation ``|sum_i R_i Q_i^T|_F / (n sqrt(3))``, the better of the two hands.

    It is 1 for perfect poses in any frame and near 0 for unrelated ones, but saturates: .975 is about 16
    degrees of root mean square error, .9998 about 1.4. Report :func:`pose_error` beside it.

    Parameters
    ----------
    estimated, true : array-like of shape (n, 3, 3)
        Rotations of the same images.
    reflection : bool, default=True
        Whether the other hand is tried too.

    Returns
    -------
    correlation : float
        Between 0 and 1.

    Raises
    ------
    ValueError
        If the arrays are empty, differ in length or hold a matrix that is no rotation.

    References
    ----------
    Cesa, Kumar, Behboodi, "Equivariant self-supervised deep pose estimation for cryo EM", TAG-ML (2023),
    section 5.

    Examples
    --------
    >>> from skcryo.metrics import pose_correlation
    >>> from skcryo.rotations import random_rotations
    >>> truth = random_rotations(30, random_state=0)
    >>> round(pose_correlation(truth, truth), 6)
    1.0
    """
    estimated, true = _check_pair(estimated, true)
    hands = [estimated, _MIRROR @ estimated @ _MIRROR] if reflection else [estimated]
    sums = [np.linalg.norm(np.einsum("nij,nkj->ik", true, hand)) for hand in hands]
    return float(max(sums) / (len(true) * np.sqrt(3)))


def _check_pair(estimated, true):
    estimated, true = check_rotations(estimated, name="estimated"), check_rotations(true, name="true")
    if len(estimated) != len(true):
        raise ValueError(f"estimated has {len(estimated)} rotations but true has {len(true)}")
    if not len(true):
        raise ValueError("estimated and true are empty; at least one pose is wanted")
    return estimated, true


def common_line_detection_rate(common_lines, rotations, *, pairs=None, labels=None, threshold=10.0):
    """Share of pairs of images whose common line was found, in both images, within a threshold.

    Parameters
    ----------
    common_lines : array-like of shape (n, n), (n, n, 2), (m, 2) or (m, 2, 2)
        Entry ``[i, j]`` is the common line of images i and j as it lies in image i: an angle in radians, or a
        vector (x, y). With `pairs`, row p holds the line of ``pairs[p] = (i, j)`` in image i and in image j.
        A line is known up to a joint sign: ``[i, j]`` and ``[j, i]`` may turn by pi together, not alone. NaN
        stands for a line that was not found, and counts as wrong.
    rotations : array-like of shape (n, 3, 3)
        True poses.
    pairs : array-like of shape (m, 2), default=None
        Indices of images. None stands for all pairs i < j.
    labels : array-like of shape (n,), default=None
        True classes. With them only pairs of one class count: images of different volumes have no common
        line.
    threshold : float, default=10.0
        In degrees, as in the paper.

    Returns
    -------
    rate : float
        Between 0 and 1; guessing scores ``2 (threshold / 180)^2``, .6 % at 10 degrees. Pairs seen from the
        same or from opposite sides have no unique line and are left out.

    Raises
    ------
    ValueError
        If shapes do not fit together or no pair is left.

    References
    ----------
    Aizenbud, Shkolnisky, "A max-cut approach to heterogeneity in cryo-electron microscopy", J. Math. Anal.
    Appl. 479 (2019), section 5: lines within 10 degrees of the true ones.

    Examples
    --------
    >>> import numpy as np
    >>> from skcryo.metrics import common_line_detection_rate
    >>> from skcryo.rotations import random_rotations
    >>> R = random_rotations(10, random_state=0)
    >>> lines = np.cross(R[:, None, :, 2], R[None, :, :, 2])  # common to images i and j, in space
    >>> in_image = np.einsum("iak,ija->ijk", R[:, :, :2], lines)
    >>> in_image[np.tril_indices(10)] *= -1  # the same sign in both images
    >>> common_line_detection_rate(in_image, R)
    1.0
    """
    rotations = check_rotations(rotations)
    n = len(rotations)
    lines = np.asarray(common_lines)
    if pairs is None:
        if lines.shape not in ((n, n), (n, n, 2)):
            raise ValueError(f"common_lines has shape {lines.shape}; ({n}, {n}) or ({n}, {n}, 2) is wanted")
    else:
        pairs = np.asarray(pairs)
        if pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.dtype.kind not in "iu":
            raise ValueError(
                f"pairs has shape {pairs.shape} and dtype {pairs.dtype}; integers (m, 2) are wanted"
            )
        if len(pairs) and (pairs.min() < 0 or pairs.max() >= n):
            raise ValueError(
                f"pairs holds indices from {pairs.min()} to {pairs.max()} but there are {n} rotations"
            )
        if lines.shape not in ((len(pairs), 2), (len(pairs), 2, 2)):
            raise ValueError(
                f"common_lines has shape {lines.shape}; ({len(pairs)}, 2) is wanted for these pairs"
            )
    if labels is not None:
        labels = np.asarray(labels)
        if labels.shape != (n,):
            raise ValueError(f"labels has shape {labels.shape} but there are {n} rotations")

    found = total = 0
    for i, j, line_i, line_j in _iter_pairs(lines, pairs, n):
        if labels is not None:
            same = labels[i] == labels[j]
            i, j, line_i, line_j = i[same], j[same], line_i[same], line_j[same]
        space = np.cross(rotations[i, :, 2], rotations[j, :, 2])
        unique = np.linalg.norm(space, axis=1) > 1e-6
        error_i = _turned(line_i, np.einsum("pak,pa->pk", rotations[i, :, :2], space))
        error_j = _turned(line_j, np.einsum("pak,pa->pk", rotations[j, :, :2], space))
        worst = np.minimum(np.maximum(error_i, error_j), np.maximum(np.pi - error_i, np.pi - error_j))
        found += np.count_nonzero(unique & (worst <= np.deg2rad(threshold)))  # False for NaN
        total += np.count_nonzero(unique)
    if not total:
        raise ValueError("no pair of images with a unique common line is left to count")
    return float(found / total)


def _iter_pairs(lines, pairs, n):
    """Pairs in blocks of bounded memory: indices i, j and the lines in both images."""
    if pairs is None:
        for i in range(n - 1):
            j = np.arange(i + 1, n)
            yield np.full(len(j), i), j, lines[i, i + 1 :], lines[i + 1 :, i]
    else:
        for start in range(0, len(pairs), 65536):
            block = slice(start, start + 65536)
            yield pairs[block, 0], pairs[block, 1], lines[block, 0], lines[block, 1]


def _turned(line, true):
    """Angle in [0, pi] between estimated lines (angles or vectors) and true vectors."""
    angle = np.arctan2(line[:, 1], line[:, 0]) if line.ndim == 2 else line
    difference = angle - np.arctan2(true[:, 1], true[:, 0])
    return np.abs(np.mod(difference + np.pi, 2 * np.pi) - np.pi)
