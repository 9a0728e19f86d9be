"""Search and refinement engines: functions and plain classes below the estimators."""

from ._class_average import class_averages
from ._in_plane import InPlaneMatch, PolarFeatures, PolarMatcher, PolarReferences
from ._reference import match_reference
from ._synchronize import recentred_shifts, synchronize_averages

__all__ = [
    "InPlaneMatch",
    "PolarFeatures",
    "PolarMatcher",
    "PolarReferences",
    "class_averages",
    "match_reference",
    "recentred_shifts",
    "synchronize_averages",
]
