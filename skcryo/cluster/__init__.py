"""Clusterers of particle images, and the distances that they use."""

from ._distances import rotation_invariant_distances, wavelet_emd
from ._neighbor_averages import NearestNeighborAverages
from ._wasserstein_kmeans import RotInvWassersteinKMeans

__all__ = ["NearestNeighborAverages", "RotInvWassersteinKMeans", "rotation_invariant_distances", "wavelet_emd"]
