"""Molecules, simulated particles with ground truth, and maps from the public archive."""

from ._atoms import volume_from_atoms
from ._emdb import fetch_emdb
from ._molecules import make_molecule
from ._particles import PRESETS, ImagingConditions, make_particles
from ._spectrum import STANDARD_BOX, STANDARD_SPECTRUM, match_power_spectrum, power_spectrum

__all__ = [
    "ImagingConditions",
    "PRESETS",
    "STANDARD_BOX",
    "STANDARD_SPECTRUM",
    "fetch_emdb",
    "make_molecule",
    "make_particles",
    "match_power_spectrum",
    "power_spectrum",
    "volume_from_atoms",
]
