"""Orientations of particle images."""

from ._common_lines import CommonLines, detect_common_lines
from ._line_shifts import shifts_from_common_lines
from ._lud import LUDRotations
from ._lud_convex import ConvexLUDResult, solve_lud_convex
from ._lud_solver import LUDResult, solve_lud
from ._lud_weights import equalized_weights
from ._pose_net import EquivariantPoseNet
from ._radial_lines import RadialLines
from ._vector_diffusion_maps import VectorDiffusionMaps

__all__ = [
    "CommonLines",
    "ConvexLUDResult",
    "EquivariantPoseNet",
    "LUDResult",
    "LUDRotations",
    "RadialLines",
    "VectorDiffusionMaps",
    "detect_common_lines",
    "equalized_weights",
    "shifts_from_common_lines",
    "solve_lud",
    "solve_lud_convex",
]
