"""Classes of particles of several structures."""

from ._max_k_cut import MaxKCut, max_k_cut

__all__ = ["MaxKCut", "max_k_cut"]
