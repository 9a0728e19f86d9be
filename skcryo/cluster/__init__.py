"""Clusterers of particle images, and the distances that they use."""

from ._deep_clustering import DeepClustering
from ._distances import rotation_invariant_distances, wavelet_emd
from ._neighbor_averages import NearestNeighborAverages
from ._sml import SMLClustering
from ._wasserstein_kmeans import RotInvWassersteinKMeans

__all__ = [
    "DeepClustering",
    "NearestNeighborAverages",
    "RotInvWassersteinKMeans",
    "SMLClustering",
    "rotation_invariant_distances",
    "wavelet_emd",
]
