"""Classes of particles of several structures."""

from ._common_lines_max_cut import CommonLinesMaxCut
from ._max_k_cut import MaxKCut, max_k_cut

__all__ = ["CommonLinesMaxCut", "MaxKCut", "max_k_cut"]
