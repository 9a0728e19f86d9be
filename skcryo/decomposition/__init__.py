"""Images in few numbers."""

from ._steerable_pca import SteerablePCA

__all__ = ["SteerablePCA"]
