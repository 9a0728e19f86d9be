"""Orientations from common lines: which lines are right, poses without a first volume, new particles, a volume.

Run it with ``python examples/plot_lud_rotations.py [folder]``. With your own data, leave out the simulation and give
``load_particles`` your STAR file.
"""

# %%
import sys
from pathlib import Path

import numpy as np

from skcryo.datasets import make_molecule, make_particles
from skcryo.inspection import AngularCoverageDisplay, VolumeDisplay
from skcryo.io import load_particles, save_particles, write_star
from skcryo.metrics import common_line_detection_rate, pose_error
from skcryo.orientation import LUDRotations
from skcryo.preprocessing import FourierDownsampler, NormalizeBackground
from skcryo.reconstruction import FourierReconstructor

N_PARTICLES = 350
BOX = 48
WORKING_BOX = 32
PIXEL_SIZE = 320 / BOX  # Angstrom


def main(folder):
    """Find poses of simulated particles and leave all files in `folder`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)

    # %%
    # Particles with shifts of up to 5 % of the box and noise. Nothing is said of their poses.
    molecule = make_molecule(BOX, voxel_size=PIXEL_SIZE, random_state=0)
    particles, truth = make_particles(
        molecule, N_PARTICLES, preset="shifted", snr=0.7, pixel_size=PIXEL_SIZE, random_state=0
    )
    save_particles(folder / "particles.star", particles, images_path=folder / "particles.mrcs", overwrite=True)

    # %%
    # From here on it is what one does with real data. The last fifty particles are put by.
    stack = load_particles(folder / "particles.star")
    images = NormalizeBackground().fit_transform(FourierDownsampler(WORKING_BOX).fit_transform(stack))
    lud = LUDRotations(max_shift=0.055 * WORKING_BOX).fit(images[:-50])

    # %%
    # How far to trust it: the share of lines that agree with the poses, against 0.006 by chance.
    print(f"{lud.line_agreement_:.0%} of {lud.common_lines_.checked.sum() // 2} common lines agree with the poses")
    print("converged" if lud.converged_ else "NOT CONVERGED: do not trust these poses")

    # %%
    # Particles that the fit has not seen, each placed by itself. The pixels that shifts are in are those of the smaller
    # box.
    new = lud.predict_poses(images[-50:])
    rotations = np.concatenate([lud.rotations_, new.rotations])
    shifts = np.concatenate([lud.shifts_, new.shifts]) * (BOX / WORKING_BOX)
    write_star(folder / "posed.star", stack, rotations=rotations, shifts=shifts, overwrite=True)

    # %%
    # A volume at these poses, and which views there are.
    volume = FourierReconstructor(random_state=0).fit(stack.replace(rotations=rotations, shifts=shifts))
    VolumeDisplay.from_estimator(volume).figure_.savefig(folder / "slices.png", dpi=150)
    AngularCoverageDisplay.from_estimator(lud).figure_.savefig(folder / "views.png", dpi=150)

    # %%
    # With simulated data one can say how good the poses are, up to the frame and the hand, which images cannot tell,
    # and whether the share of lines that agree is that of lines that are right.
    found = common_line_detection_rate(lud.common_lines_.angles, truth.rotations[:-50])
    return lud, found, pose_error(rotations, truth.rotations)


if __name__ == "__main__":
    fitted, found, errors = main(sys.argv[1] if len(sys.argv) > 1 else "lud_rotations")
    print(f"{found:.0%} of the lines are right; poses are {errors.median:.1f} degrees off (median)")
