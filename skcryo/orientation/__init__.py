"""Orientations of particle images."""

from ._common_lines import CommonLines, detect_common_lines
from ._radial_lines import RadialLines

__all__ = ["CommonLines", "RadialLines", "detect_common_lines"]
