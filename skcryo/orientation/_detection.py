"""The search for common lines over all pairs of images, by the compiled kernel."""

import numpy as np

from .._ext import _common_lines as _kernels

__all__ = ["PairSearch", "shift_grid"]

# The window over which likelihood ratios are summed, to either side: the line is taken where the sum is largest, for
# a broad hill holds more of the probability than a needle. Windows are laid around this many of the largest ratios.
WINDOW_DEG, N_CANDIDATES = 11.25, 2
# In squared spacings of lines: where ratios scatter less within the window, their centre of mass says less about the
# angle than the largest score among finer lines.
NARROW = 0.35


def shift_grid(max_shift):
    """Relative shifts along a line that are tried: whole pixels up to `max_shift`, no shift first."""
    steps = np.arange(1, int(np.floor(max_shift + 1e-9)) + 1)
    return np.concatenate([[0.0], np.stack([-steps, steps], axis=1).ravel()])


class PairSearch:
    """Search of all pairs of some images with those that follow.

    Parameters
    ----------
    lines : RadialLines
    max_shift : float, default=0.0
        Pixels; see :func:`detect_common_lines`.
    n_threads : int, default=1
    """

    def __init__(self, lines, max_shift=0.0, n_threads=1):
        self.lines = lines
        self.shifts = shift_grid(max_shift)
        self.n_threads = n_threads
        self.window = max(1, round(np.deg2rad(WINDOW_DEG) * lines.n_lines / np.pi))
        self.second = {}

    @property
    def log_window(self):
        """Logarithm of the number of pairs of lines that a window holds."""
        return 2 * np.log(2 * self.window + 1) if self.lines.log_likelihood else 0.0

    def __call__(self, rows):
        """Compare some images with themselves and all that follow.

        Parameters
        ----------
        rows : slice
            One of ``lines.blocks()``; to be called with one after the other.

        Returns
        -------
        found : ndarray of shape (5, n_rows, n_images - rows.start), float32
            Angles in the first and in the second image, in radians; logarithm of the likelihood ratio averaged over the
            window around the best line; logarithm of the probability of that window; relative shift. For correlations
            the third is the largest, the fourth 0. What is on or below the diagonal means nothing.
        """
        for start in [start for start in self.second if start < rows.start]:
            del self.second[start]
        for columns in self.lines.blocks():
            if columns.start >= rows.start and columns.start not in self.second:
                self.second[columns.start] = self.prepare(columns)
        unmoved = self.second[rows.start]
        first = [self.prepare(rows, shift) if shift else unmoved for shift in self.shifts]
        return np.concatenate([self._over_shifts(first, second) for second in self.second.values()], axis=2)

    def prepare(self, rows, shift=0.0):
        """Lines of some images as :meth:`compare` takes them."""
        return self.lines.kernel_lines(rows, shift)

    def compare(self, first, second):
        """Best lines of all pairs of two blocks, or of those above the diagonal of one.

        Returns
        -------
        ndarray of shape (4, n_first, n_second), float32
            Angles in lines; logarithm of the sum of likelihood ratios over the window around the best line, and over
            all lines. Scores that are no likelihoods: the largest, twice.
        """
        found = np.zeros((4, len(first), len(second)), dtype=np.float32)
        likelihood = self.lines.log_likelihood
        _kernels.detect(
            first,
            second,
            self.lines.n_lines,
            found,
            same=first is second,
            slopes=likelihood,
            peak=not likelihood,
            window=self.window,
            n_candidates=N_CANDIDATES,
            narrow=NARROW,
            n_threads=self.n_threads,
        )
        return found

    def _over_shifts(self, first, second):
        """The best of all shifts; `first` are the same images at each."""
        kept, everything = None, None
        for shift, lines in zip(self.shifts, first):
            found = self.compare(lines, second)
            if kept is None:
                kept, everything = np.concatenate([found[:3], np.zeros_like(found[:1])]), found[3]
                continue
            better = found[2] > kept[2]
            for old, new in zip(kept, (*found[:3], np.float32(shift))):
                np.copyto(old, new, where=better)
            everything = np.logaddexp(everything, found[3])
        log_best = kept[2]
        log_probability = np.minimum(log_best - everything, 0)
        if not self.lines.log_likelihood:
            log_probability[:] = 0
        angles = kept[:2] * np.float32(np.pi / self.lines.n_lines)
        return np.stack([*angles, log_best - np.float32(self.log_window), log_probability, kept[3]])
