"""Volumes from images: sums in Fourier space, and estimators on them."""

from ._ab_initio import AbInitioVolume
from ._accumulator import FourierAccumulator, half_plane, slice_data, spherical_mask
from ._fourier_reconstructor import FourierReconstructor, reconstruct_classes
from ._multiclass import MulticlassReconstruction
from ._priors import fsc_prior, spectral_prior

__all__ = [
    "AbInitioVolume",
    "FourierAccumulator",
    "FourierReconstructor",
    "MulticlassReconstruction",
    "fsc_prior",
    "half_plane",
    "reconstruct_classes",
    "slice_data",
    "spectral_prior",
    "spherical_mask",
]
