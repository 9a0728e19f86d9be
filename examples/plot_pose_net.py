"""Poses by a network: from images to poses to a volume, how far off each pose may be, and what equivariance means.

Run it with ``python examples/plot_pose_net.py [folder]``; it needs torch. With your own data, leave out the simulation
and give ``load_particles`` your STAR file.
"""

# %%
import sys
from pathlib import Path

import numpy as np

from skcryo.datasets import make_molecule, make_particles
from skcryo.fourier import rotate_images
from skcryo.inspection import VolumeDisplay
from skcryo.io import load_particles, save_particles, write_star
from skcryo.metrics import pose_error
from skcryo.orientation import EquivariantPoseNet
from skcryo.preprocessing import FourierDownsampler, NormalizeBackground
from skcryo.reconstruction import FourierReconstructor
from skcryo.rotations import relion_from_rotations

N_PARTICLES = 400
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
    # From here on it is what one does with real data. The last hundred particles are put by. Poses of the others are
    # found, and a network learns from projections of the volume that they make.
    stack = load_particles(folder / "particles.star")
    images = NormalizeBackground().fit_transform(FourierDownsampler(WORKING_BOX).fit_transform(stack))
    net = EquivariantPoseNet(max_iter=400, random_state=0).fit(images[:-100])
    print("converged" if net.converged_ else "NOT CONVERGED: do not trust these poses")

    # %%
    # Particles that the fit has not seen, each placed by itself, with the angle that nine errors in ten stay below.
    new = net.predict_poses(images[-100:])
    print(f"new poses are at most {np.median(new.uncertainty):.1f} degrees off, nine times in ten (median of all)")

    # %%
    # Turn the picture, watch the pose: the last Euler angle follows, the others stay. The network knows no other way.
    angles = np.deg2rad(np.arange(0, 360, 30))
    picture = np.repeat(np.asarray(images[-1:]), len(angles), axis=0)
    net.refine = False
    euler = relion_from_rotations(net.predict(rotate_images(picture, angles)))
    net.refine = True
    for turned, (rot, tilt, psi) in zip(np.rad2deg(angles), euler):
        print(f"turned by {turned:3.0f} degrees: rot {rot:7.2f}, tilt {tilt:6.2f}, psi {psi:7.2f}")

    # %%
    # A volume of all particles. The pixels that shifts are in are those of the smaller box.
    rotations = np.concatenate([net.rotations_, new.rotations])
    shifts = np.concatenate([net.shifts_, new.shifts]) * (BOX / WORKING_BOX)
    write_star(folder / "posed.star", stack, rotations=rotations, shifts=shifts, overwrite=True)
    volume = FourierReconstructor(random_state=0).fit(stack.replace(rotations=rotations, shifts=shifts))
    VolumeDisplay.from_estimator(volume).figure_.savefig(folder / "slices.png", dpi=150)

    # %%
    # With simulated data one can say how good the poses are, up to the frame and the hand, which images cannot tell,
    # and how often the stated angles hold.
    errors = pose_error(rotations, truth.rotations)
    held = np.mean(errors.errors[-100:] < new.uncertainty)
    return net, euler, errors, held


if __name__ == "__main__":
    fitted, _, errors, held = main(sys.argv[1] if len(sys.argv) > 1 else "pose_net")
    print(f"poses are {errors.median:.1f} degrees off (median); stated angles hold for {held:.0%} of new particles")
