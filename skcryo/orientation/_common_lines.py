"""Common lines of all pairs of images."""

from dataclasses import dataclass

import numpy as np

from .._torch import accelerator
from ._detection import BlockSearch
from ._radial_lines import RadialLines

__all__ = ["CommonLines", "detect_common_lines"]


@dataclass(frozen=True)
class CommonLines:
    """Common lines of pairs of images.

    Parameters
    ----------
    angles : ndarray of shape (n, n), float32
        Radians: the common line of images i and j as it lies in image i is ``(cos angles[i, j], sin angles[i, j])``.
        ``[i, j]`` and ``[j, i]`` may turn by pi together, not alone. Diagonal 0.
    scores : ndarray of shape (n, n), float32
        How good the best line is: logarithm of the likelihood ratio, averaged over the window around it, or
        correlation. Symmetric, diagonal 0.
    confidences : ndarray of shape (n, n), float32
        How far a pair's line may be trusted, in [0, 1]: the probability that it lies within the window. Symmetric,
        diagonal 0.
    checked : ndarray of shape (n, n), bool
        False where a pair was not looked at: its angles and scores mean nothing. Diagonal False.
    relative_shifts : ndarray of shape (n, n), float32, or None
        Where shifts were searched: pixels ``s_i . c_ij - s_j . c_ji`` by which the line of image i is moved against
        that of image j, s being where the particles lie. Symmetric but for the sign.
    """

    angles: np.ndarray
    scores: np.ndarray
    confidences: np.ndarray
    checked: np.ndarray
    relative_shifts: np.ndarray | None = None

    def __len__(self):
        return len(self.angles)


def detect_common_lines(X, *, score="likelihood", ctf=None, shifts=None, device=None, n_jobs=None):
    """Find the common line of every pair of images.

    Parameters
    ----------
    X : ParticleStack or array-like of shape (n_images, L, L), or RadialLines
        Images; centred, or of known `shifts`.
    score : {"likelihood", "correlation"}, default="likelihood"
        "likelihood": likelihood ratio of two lines being the same one, summed over a window of directions; the line of
        a pair is where that sum is largest. "correlation": normalised correlation of two lines, as in the paper [1]_.
        Not used if `X` is RadialLines, which have theirs.
    ctf : structured array of shape (n_images,), default=None
        None takes that of `X`, if any.
    shifts : array-like of shape (n_images, 2), default=None
        (x, y) in pixels; None takes those of `X`, if any.
    device : {None, "auto", "cpu", "cuda"}, default=None
        None: the compiled search. Else by torch, on this device.
    n_jobs : int, default=None
        Threads of the compiled search; None takes all cores. The result does not depend on it.

    Returns
    -------
    CommonLines
        Confidences are posterior probabilities of the line's window, all directions being as likely before.

    Raises
    ------
    ValueError
        If `score` is unknown, or arrays are of the wrong shape or not finite.
    ImportError
        If `device` is given and torch is not installed.

    References
    ----------
    .. [1] Aizenbud, Shkolnisky, "A max-cut approach to heterogeneity in cryo-electron microscopy", J. Math. Anal. Appl.
       479 (2019), section 4.

    Examples
    --------
    >>> from skcryo.datasets import make_molecule, make_particles
    >>> from skcryo.metrics import common_line_detection_rate
    >>> from skcryo.orientation import detect_common_lines
    >>> stack, truth = make_particles(make_molecule(32, random_state=0), 40, preset="paper", snr=5.0, random_state=0)
    >>> lines = detect_common_lines(stack)
    >>> lines.angles.shape
    (40, 40)
    >>> bool(common_line_detection_rate(lines.angles, truth.rotations) > 0.5)
    True
    """
    device = accelerator(device, caller="detect_common_lines")
    lines = X if isinstance(X, RadialLines) else RadialLines.from_images(X, score=score, ctf=ctf, shifts=shifts)
    n = len(lines)
    angles, scores, confidences = (np.zeros((n, n), dtype=np.float32) for _ in range(3))
    search = BlockSearch(lines, device, n_jobs)
    for rows, columns, first, second in lines.pairs_of_blocks():
        forth, back, best, everything = search(first, second, same=rows == columns)
        best_scores, trust = best - np.float32(search.log_window), np.minimum(np.exp(best - everything), 1)
        if rows == columns:  # below the diagonal nothing was searched
            above = np.triu(np.ones(forth.shape, dtype=bool), 1)
            forth, back = np.where(above, forth, back.T), np.where(above, back, forth.T)
            best_scores, trust = (np.where(above, part, part.T) for part in (best_scores, trust))
            for part in (forth, back, best_scores, trust):
                np.fill_diagonal(part, 0)
        angles[rows, columns], angles[columns, rows] = forth, back.T
        scores[rows, columns], scores[columns, rows] = best_scores, best_scores.T
        confidences[rows, columns], confidences[columns, rows] = trust, trust.T
    return CommonLines(angles, scores, confidences, ~np.eye(n, dtype=bool))
