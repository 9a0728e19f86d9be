"""Pictures of fitted estimators: class averages, angular coverage, volumes and how far they can be trusted.

Every display follows scikit-learn's pattern: a ``from_...`` constructor that draws at once and returns an
object whose ``plot`` draws again with other options. matplotlib is imported when something is drawn,
never before.
"""

from ._angular_coverage import AngularCoverageDisplay
from ._class_averages import ClassAveragesDisplay
from ._fsc import FSCDisplay
from ._latent_map import LatentMapDisplay
from ._latent_space import LatentSpaceDisplay
from ._volume_series import animate_volumes
from ._volume_slices import VolumeDisplay
from ._weight_matrix import WeightMatrixDisplay

__all__ = [
    "AngularCoverageDisplay",
    "ClassAveragesDisplay",
    "FSCDisplay",
    "LatentMapDisplay",
    "LatentSpaceDisplay",
    "VolumeDisplay",
    "WeightMatrixDisplay",
    "animate_volumes",
]
