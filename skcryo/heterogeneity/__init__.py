"""Classes of particles of several structures, and continua of structures."""

from ._common_lines_max_cut import CommonLinesMaxCut
from ._cryodrgn import CryoDRGN
from ._latent_paths import latent_centers, latent_path, nearest_images, select_latents
from ._max_k_cut import MaxKCut, max_k_cut

__all__ = [
    "CommonLinesMaxCut",
    "CryoDRGN",
    "MaxKCut",
    "latent_centers",
    "latent_path",
    "max_k_cut",
    "nearest_images",
    "select_latents",
]
