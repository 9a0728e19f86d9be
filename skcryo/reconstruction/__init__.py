"""Volumes from images: sums in Fourier space, and estimators on them."""

from ._accumulator import FourierAccumulator, half_plane, slice_data, spherical_mask

__all__ = ["FourierAccumulator", "half_plane", "slice_data", "spherical_mask"]
