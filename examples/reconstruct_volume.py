"""A volume from particles with known poses: simulate, reconstruct, look, save.

Run it with ``python examples/reconstruct_volume.py [folder]``. With your own data, leave out the simulation and give
``load_particles`` the STAR file of a refinement; the command ``skcryo reconstruct`` does the same with progress and
checkpoints.
"""

# %%
import sys
from pathlib import Path

from skcryo.datasets import make_molecule, make_particles
from skcryo.inspection import AngularCoverageDisplay, FSCDisplay, VolumeDisplay
from skcryo.io import load_particles, save_particles, save_volume
from skcryo.metrics import fsc, fsc_resolution
from skcryo.reconstruction import FourierReconstructor

N_PARTICLES = 500
BOX = 48
PIXEL_SIZE = 320 / BOX  # Angstrom


def main(folder):
    """Reconstruct simulated particles and leave all files in `folder`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)

    # %%
    # Particles whose poses are known, with CTF, shifts and ten times as much noise as signal.
    molecule = make_molecule(BOX, voxel_size=PIXEL_SIZE, random_state=0)
    particles, truth = make_particles(
        molecule, N_PARTICLES, preset="ctf", snr=0.1, pixel_size=PIXEL_SIZE, random_state=0
    )
    particles = particles.replace(rotations=truth.rotations, shifts=truth.shifts)
    save_particles(folder / "particles.star", particles, images_path=folder / "particles.mrcs", overwrite=True)

    # %%
    # From here on it is what one does with real data: poses, shifts, CTF and pixel size come with the images.
    stack = load_particles(folder / "particles.star")
    reconstructor = FourierReconstructor(random_state=0).fit(stack)
    save_volume(folder / "volume.mrc", reconstructor.volume_, reconstructor.pixel_size_, overwrite=True)

    # %%
    # Which views there are, what the volume looks like, and how far its half maps agree.
    AngularCoverageDisplay.from_rotations(stack.rotations).figure_.savefig(folder / "views.png", dpi=150)
    VolumeDisplay.from_estimator(reconstructor).figure_.savefig(folder / "slices.png", dpi=150)
    FSCDisplay.from_estimator(reconstructor, truth=molecule).figure_.savefig(folder / "fsc.png", dpi=150)

    # %%
    # Every image has a score, its correlation with the reprojection: junk and wrong poses come last.
    worst = reconstructor.score_samples(stack).argsort()[:10]
    print(f"look at images {sorted(worst.tolist())} first")

    # %%
    # With simulated data one can say how good the volume is.
    curve = fsc(reconstructor.volume_, molecule)
    return reconstructor, fsc_resolution(curve, 0.5, PIXEL_SIZE, box_size=BOX)


if __name__ == "__main__":
    fitted, resolution = main(sys.argv[1] if len(sys.argv) > 1 else "reconstruct_volume")
    print(f"half maps agree to {fitted.resolution_:.1f} Angstrom, the volume and the truth to {resolution:.1f}")
