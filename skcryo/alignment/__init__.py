"""Search and refinement engines: functions and plain classes below the estimators."""

from ._in_plane import InPlaneMatch, PolarFeatures, PolarMatcher, PolarReferences
from ._reference import match_reference

__all__ = ["InPlaneMatch", "PolarFeatures", "PolarMatcher", "PolarReferences", "match_reference"]
