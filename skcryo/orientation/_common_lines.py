"""Common lines of all pairs of images."""

from dataclasses import dataclass
from numbers import Real

import numpy as np
import scipy.special
from joblib import Parallel, delayed

from .._torch import accelerator
from ..io import load_checkpoint, save_checkpoint
from ._detection import PairSearch
from ._radial_lines import RadialLines, check_score, n_threads

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
        How far a pair's line may be trusted, in [0, 1], see :func:`detect_common_lines`. Symmetric, diagonal 0.
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


def detect_common_lines(
    X,
    *,
    score="likelihood",
    ctf=None,
    shifts=None,
    max_shift=0.0,
    mask_radius=None,
    checkpoint_dir=None,
    device=None,
    n_jobs=None,
):
    """Find the common line of every pair of images.

    Lines of all images are compared at all angles (:class:`RadialLines` tells how). For each pair the likelihood ratios
    of all lines give the probability of each; the line is taken where the sum over a window of some 10 degrees is
    largest, at its centre of mass or, where all of it is in one place, at the maximum among lines 1.4 degrees apart
    and a parabola through its neighbours.

    Parameters
    ----------
    X : ParticleStack or array-like of shape (n_images, L, L), or RadialLines
        Images, at least two; noise is measured around the particles.
    score : {"likelihood", "correlation"}, default="likelihood"
        "likelihood": likelihood ratio of two lines being the same one. "correlation": normalised correlation of lines
        as they are [1]_, whose largest value is taken; below a signal-to-noise ratio of .2 it finds half as many lines.
        Not used if `X` is RadialLines, which have theirs.
    ctf : structured array of shape (n_images,), default=None
        None takes that of `X`, if any. Phases are flipped, and amplitudes restored where the signal is strong.
    shifts : array-like of shape (n_images, 2), default=None
        Where particles lie, (x, y) in pixels; None takes those of `X`, if any. They are undone.
    max_shift : float, default=0.0
        Largest relative shift along a line that is tried, in whole pixels. Where particles are off centre by pixels,
        centre them first (:class:`skcryo.preprocessing.Centerer`) and take 1; :func:`shifts_from_common_lines` tells
        their places, with which the lines are found anew.
    mask_radius : float, default=None
        In pixels; None takes 0.415 of the box.
    checkpoint_dir : str or path, default=None
        Folder where each block of 512 images is saved when it is done. A search that was stopped goes on from there;
        a folder of other images or parameters is refused.
    device : {None, "auto", "cpu", "cuda"} or torch.device, default=None
        "cuda" searches by torch on a GPU, "auto" where there is one; None and "cpu" by the compiled kernel.
    n_jobs : int, default=None
        Threads; None takes all cores. Results do not depend on it.

    Returns
    -------
    CommonLines
        For "likelihood" a confidence is the probability that the line lies within the window, all lines being equally
        likely beforehand: of the pairs of confidence p about a share p is found, somewhat less for densities of little
        detail. For "correlation" it is that of the upper of two normal distributions of equal variance that are
        fitted to all scores.

    Raises
    ------
    ValueError
        If an argument does not fit, the noise cannot be measured, or `checkpoint_dir` holds another search.

    See Also
    --------
    skcryo.metrics.common_line_detection_rate : How many were found, where poses are known.

    References
    ----------
    .. [1] Aizenbud, Shkolnisky, "A max-cut approach to heterogeneity in cryo-electron microscopy", J. Math. Anal.
           Appl. 479 (2019).

    Examples
    --------
    >>> from skcryo.datasets import make_molecule, make_particles
    >>> from skcryo.metrics import common_line_detection_rate
    >>> from skcryo.orientation import detect_common_lines
    >>> stack, truth = make_particles(make_molecule(32), 60, snr=2, random_state=0)
    >>> found = detect_common_lines(stack)
    >>> common_line_detection_rate(found.angles, truth.rotations) > 0.7
    True
    """
    device = accelerator(device, caller="detect_common_lines")
    if isinstance(X, RadialLines):
        check_score(score)
        for name, value in (("ctf", ctf), ("shifts", shifts), ("mask_radius", mask_radius)):
            if value is not None:
                raise ValueError(f"{name} is given, but X is RadialLines: give it to RadialLines.from_images")
        lines = X
    else:
        lines = RadialLines.from_images(X, score=score, ctf=ctf, shifts=shifts, mask_radius=mask_radius, n_jobs=n_jobs)
    if not isinstance(max_shift, Real) or not 0 <= max_shift < lines.box / 2:
        raise ValueError(f"max_shift is {max_shift!r}; 0 or more and less than {lines.box / 2:g} pixels are wanted")
    if device is None:
        search = PairSearch(lines, max_shift, n_threads(n_jobs))
    else:
        from ._detection_torch import TorchPairSearch

        search = TorchPairSearch(lines, max_shift, device)
    n = len(lines)
    angles, scores, confidences = (np.zeros((n, n), dtype=np.float32) for _ in range(3))
    relative_shifts = np.zeros((n, n), dtype=np.float32) if len(search.shifts) > 1 else None
    store = _Store(checkpoint_dir, lines, search)
    put = Parallel(n_jobs=n_threads(n_jobs), require="sharedmem")
    for rows in lines.blocks():
        found = store.load(rows)
        if found is None:
            found = search(rows)
            store.save(rows, found)
        found[3] = np.exp(found[3])
        size = rows.stop - rows.start
        found[:, :, :size][:, np.tril(np.ones((size, size), dtype=bool))] = 0  # was not searched
        forth, back, best, probability, moved = found
        parts = [(angles, forth, back), (scores, best, best), (confidences, probability, probability)]
        if relative_shifts is not None:
            parts.append((relative_shifts, moved, -moved))
        put(delayed(_put)(target, rows, *both) for target, *both in parts)
    if not lines.log_likelihood:
        confidences = _upper_share(scores)
    return CommonLines(angles, scores, confidences, ~np.eye(n, dtype=bool), relative_shifts)


def _put(target, rows, forth, back):
    """Put pairs of images `rows` with those from there on into a matrix, both ways; below the diagonal they are 0."""
    target[rows, rows.start :] += forth
    target[rows.start :, rows] += back.T


def _upper_share(scores):
    """Probability of the upper of two normal distributions of equal variance, fitted to the scores of all pairs."""
    values = scores[np.triu_indices(len(scores), 1)].astype(np.float64)
    counts, edges = np.histogram(values, bins=256)
    centres = (edges[1:] + edges[:-1]) / 2
    low, high = np.quantile(values, [0.25, 0.75])
    share, variance = 0.5, max(values.var() / 2, np.finfo(np.float32).tiny)
    for _ in range(200):
        log_odds = np.log(share / (1 - share)) + (high - low) * (centres - (high + low) / 2) / variance
        upper = scipy.special.expit(log_odds)
        weights = counts * upper, counts * (1 - upper)
        share = float(np.clip(weights[0].sum() / counts.sum(), 0.01, 0.99))
        high, low = (np.average(centres, weights=w + 1e-12) for w in weights)
        spread = weights[0] * (centres - high) ** 2 + weights[1] * (centres - low) ** 2
        variance = max(spread.sum() / counts.sum(), np.finfo(np.float32).tiny)
    log_odds = np.log(share / (1 - share)) + (high - low) * (scores - (high + low) / 2) / variance
    # two normal distributions are a rough model: nothing is certain, and no image is without lines
    confidences = np.clip(scipy.special.expit(log_odds), 1e-3, 1).astype(np.float32)
    np.fill_diagonal(confidences, 0)
    return confidences


class _Store:
    """Blocks of a search in a folder, or nowhere."""

    def __init__(self, folder, lines, search):
        self.folder = folder
        n = len(lines)
        self.key = {"n_images": n, "n_lines": lines.n_lines, "likelihood": lines.log_likelihood, "box": lines.box}
        self.key["shifts"] = search.shifts.tolist()
        if folder is not None:  # a number of each image tells it from others, but for rounding on another machine
            spectra = lines.spectra.reshape(n, -1)
            self.sample = spectra @ np.cos(np.arange(spectra.shape[1])).astype(np.complex64)

    def save(self, rows, found):
        if self.folder is not None:
            save_checkpoint(self.folder, self._name(rows), {"found": found, "sample": self.sample}, self.key)

    def load(self, rows):
        saved = None if self.folder is None else load_checkpoint(self.folder, self._name(rows))
        if saved is None:
            return None
        arrays, key = saved
        sample = arrays["sample"]
        if key != self.key or not np.abs(sample - self.sample).max() <= 1e-4 * np.abs(self.sample).max():
            raise ValueError(
                f"checkpoint_dir={str(self.folder)!r} holds a search of other images or parameters; name another "
                "folder or remove that one"
            )
        return arrays["found"]

    @staticmethod
    def _name(rows):
        return f"common_lines_{rows.start}"
