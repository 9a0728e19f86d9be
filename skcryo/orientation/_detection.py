"""The search for common lines over all pairs of images, block by block."""

import numpy as np

from .._ext import _common_lines as _kernels
from ._radial_lines import n_threads

__all__ = ["BlockSearch"]

# The window over which likelihood ratios are summed, to either side; a likely line is where the sum is largest, not the
# ratio. Windows are looked at around this many of the largest ratios.
_WINDOW_DEG, _N_CANDIDATES = 11.25, 2
# In squared spacings of lines: where the ratios in the window scatter less, their centre of mass says less than the
# largest score among finer lines.
_NARROW = 0.35


class BlockSearch:
    """Search of blocks of pairs.

    Parameters
    ----------
    lines : RadialLines
    device : torch.device, default=None
        None: the compiled search.
    n_jobs : int, default=None
        Threads; None takes all cores.
    """

    def __init__(self, lines, device=None, n_jobs=None):
        self.lines = lines
        self.device = device
        self.n_threads = n_threads(n_jobs)
        self.window = max(1, round(np.deg2rad(_WINDOW_DEG) * lines.n_lines / np.pi))

    def __call__(self, first, second, *, same):
        """Compare images.

        Parameters
        ----------
        first, second : skcryo._ext._common_lines.Lines
        same : bool
            Whether they are the same images: then only pairs above the diagonal are compared.

        Returns
        -------
        found : ndarray of shape (4, n_first, n_second), float32
            Angles in the first and in the second image, in radians; logarithm of the likelihood ratio summed over the
            window around the best line, and over all lines. Scores that are no likelihoods: the largest one, twice.
        """
        found = np.zeros((4, len(first), len(second)), dtype=np.float32)
        likelihood = self.lines.log_likelihood
        _kernels.detect(
            first,
            second,
            self.lines.n_lines,
            found,
            same=same,
            slopes=likelihood,
            peak=not likelihood,
            window=self.window,
            n_candidates=_N_CANDIDATES,
            narrow=_NARROW,
            n_threads=self.n_threads,
        )
        found[:2] *= np.float32(np.pi / self.lines.n_lines)
        return found

    @property
    def log_window(self):
        """Logarithm of the number of pairs of lines that a window holds."""
        return 2 * np.log(2 * self.window + 1) if self.lines.log_likelihood else 0.0
