"""Files in and out: MRC, STAR and cryoSPARC's .cs, checkpoints."""

from ._atomic import atomic_path
from ._checkpoint import load_checkpoint, save_checkpoint
from ._mrc import load_volume, save_images, save_volume
from ._particles import load_particles
from ._table import StarTable, read_star
from ._write import save_particles, write_star

__all__ = [
    "StarTable",
    "atomic_path",
    "load_checkpoint",
    "load_particles",
    "load_volume",
    "read_star",
    "save_checkpoint",
    "save_images",
    "save_particles",
    "save_volume",
    "write_star",
]
