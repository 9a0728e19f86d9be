"""Two molecules in one data set, told apart by common lines; and a check that there are two.

Run it with ``python examples/plot_common_lines_max_cut.py [folder]``. With your own data, leave out the simulation and
give ``load_particles`` your STAR file; particles that are not centred want ``init=AbInitioVolume()``, as in the command
``skcryo classify3d``.
"""

# %%
import sys
from pathlib import Path

import numpy as np

from skcryo.datasets import make_molecule, make_particles
from skcryo.heterogeneity import CommonLinesMaxCut
from skcryo.inspection import VolumeDisplay, WeightMatrixDisplay
from skcryo.io import load_particles, save_particles, write_star
from skcryo.metrics import partition_precision
from skcryo.reconstruction import FourierReconstructor

N_PARTICLES = 300
BOX = 32
PIXEL_SIZE = 320 / BOX  # Angstrom


def main(folder):
    """Classify simulated particles and leave all files in `folder`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)

    # %%
    # Two thirds of the particles have bound nothing, one third a ligand.
    molecules = [make_molecule(BOX, voxel_size=PIXEL_SIZE, ligand=share, random_state=0) for share in (0.0, 0.15)]
    particles, truth = make_particles(
        molecules, N_PARTICLES, proportions=[2 / 3, 1 / 3], snr=0.5, pixel_size=PIXEL_SIZE, random_state=0
    )
    save_particles(folder / "particles.star", particles, images_path=folder / "particles.mrcs", overwrite=True)

    # %%
    # From here on it is what one does with real data. The last fifty particles are put by.
    stack = load_particles(folder / "particles.star")
    classes = CommonLinesMaxCut(n_clusters=2, random_state=0).fit(stack[:-50])

    # %%
    # The verdict, from particles that took no part in finding the classes. Without it there may be one molecule only.
    gain, error = classes.separation_[0, 1], classes.separation_error_[0, 1]
    print(f"two volumes instead of one make a held-out particle likelier by {gain:.2f} +- {error:.2f}")
    print("two classes" if classes.converged_ else "NOT CONVERGED: do not trust these classes")

    # %%
    # How far common lines are from meeting, particles of one class together: the paper's figure 8.
    WeightMatrixDisplay.from_estimator(classes).figure_.savefig(folder / "weights.png", dpi=150)

    # %%
    # Particles that the fit has not seen, each by itself.
    labels = np.concatenate([classes.labels_, classes.predict(stack[-50:])])

    # %%
    # A volume of each class.
    for k in range(2):
        own = np.flatnonzero(classes.labels_ == k)
        members = stack[own].replace(rotations=classes.rotations_[own])
        volume = FourierReconstructor(random_state=0).fit(members)
        VolumeDisplay.from_estimator(volume).figure_.savefig(folder / f"class{k + 1}.png", dpi=150)
    write_star(
        folder / "classified.star", stack[:-50], labels=classes.labels_, rotations=classes.rotations_, overwrite=True
    )

    # %%
    # With simulated data one can say how many are right.
    return classes, partition_precision(truth.labels, labels)


if __name__ == "__main__":
    classes, precision = main(sys.argv[1] if len(sys.argv) > 1 else "common_lines_max_cut")
    print(f"at least {precision:.1%} of the particles of either class belong there")
