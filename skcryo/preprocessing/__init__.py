"""From particles as they were cut out to particles as the estimators want them."""

from ._center import Centerer
from ._downsample import FourierDownsampler
from ._flatten import Flattener
from ._in_plane_aligner import InPlaneAligner
from ._mask import CircularMask, mask_images
from ._normalize import NormalizeBackground, normalize_background
from ._phase_flip import PhaseFlipper, flip_phases
from ._whiten import NoiseWhitener, noise_spectrum, ring_weights, whiten_images

__all__ = [
    "Centerer",
    "CircularMask",
    "Flattener",
    "FourierDownsampler",
    "InPlaneAligner",
    "NoiseWhitener",
    "NormalizeBackground",
    "PhaseFlipper",
    "flip_phases",
    "mask_images",
    "noise_spectrum",
    "normalize_background",
    "ring_weights",
    "whiten_images",
]
