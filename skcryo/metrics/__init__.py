"""How good poses, classes and volumes are, against the truth."""

from ._classes import (
    ViewCoherence,
    class_precisions,
    class_view_angles,
    effective_n_classes,
    occupancy_entropy,
    partition_precision,
    view_coherence,
)
from ._latents import information_imbalance, neighborhood_similarity, per_image_fsc
from ._poses import common_line_detection_rate, pose_correlation, pose_error
from ._scorers import make_pose_scorer, make_view_coherence_scorer
from ._volumes import fsc, fsc_area, fsc_resolution

__all__ = [
    "ViewCoherence",
    "class_precisions",
    "class_view_angles",
    "common_line_detection_rate",
    "effective_n_classes",
    "fsc",
    "fsc_area",
    "fsc_resolution",
    "information_imbalance",
    "make_pose_scorer",
    "make_view_coherence_scorer",
    "neighborhood_similarity",
    "occupancy_entropy",
    "partition_precision",
    "per_image_fsc",
    "pose_correlation",
    "pose_error",
    "view_coherence",
]
