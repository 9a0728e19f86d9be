"""Search and refinement engines: functions and plain classes below the estimators."""

from ._class_average import class_averages
from ._fourier_images import FourierImages, half_plane
from ._in_plane import InPlaneMatch, PolarFeatures, PolarMatcher, PolarReferences
from ._reference import match_reference
from ._refinement import PoseFit, pose_normal_equations, refine_poses
from ._search import ExpectedSlices, PoseCandidates, expected_slices, search_poses, shift_grid
from ._synchronize import recentred_shifts, synchronize_averages

__all__ = [
    "ExpectedSlices",
    "FourierImages",
    "InPlaneMatch",
    "PolarFeatures",
    "PolarMatcher",
    "PolarReferences",
    "PoseCandidates",
    "PoseFit",
    "class_averages",
    "expected_slices",
    "half_plane",
    "match_reference",
    "pose_normal_equations",
    "recentred_shifts",
    "refine_poses",
    "search_poses",
    "shift_grid",
    "synchronize_averages",
]
