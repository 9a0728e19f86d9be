"""Classes of particles of several structures, and continua of structures."""

from ._common_lines_max_cut import CommonLinesMaxCut
from ._cryodrgn import CryoDRGN
from ._max_k_cut import MaxKCut, max_k_cut

__all__ = ["CommonLinesMaxCut", "CryoDRGN", "MaxKCut", "max_k_cut"]
