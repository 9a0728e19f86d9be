"""Molecules, simulated particles with ground truth, and maps from the public archive."""

from ._molecules import make_molecule
from ._spectrum import STANDARD_BOX, STANDARD_SPECTRUM, match_power_spectrum, power_spectrum

__all__ = ["STANDARD_BOX", "STANDARD_SPECTRUM", "make_molecule", "match_power_spectrum", "power_spectrum"]
