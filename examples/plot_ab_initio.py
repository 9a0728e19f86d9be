"""A volume from raw particles alone: simulate, find volume and poses, ask whether to trust them, look, save.

Run it with ``python examples/plot_ab_initio.py [folder]``. With your own data, leave out the simulation and give
``load_particles`` your STAR file; the command ``skcryo abinitio`` does the same with progress and checkpoints.
"""

# %%
import sys
from pathlib import Path

from skcryo.datasets import make_molecule, make_particles
from skcryo.inspection import AngularCoverageDisplay, FSCDisplay, VolumeDisplay
from skcryo.io import load_particles, save_particles, save_volume, write_star
from skcryo.metrics import pose_error
from skcryo.preprocessing import FourierDownsampler, NormalizeBackground
from skcryo.reconstruction import AbInitioVolume

N_PARTICLES = 300
BOX = 48
WORKING_BOX = 32
PIXEL_SIZE = 320 / BOX  # Angstrom


def main(folder):
    """Find volume and poses of simulated particles and leave all files in `folder`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)

    # %%
    # Particles with CTF, shifts and noise. Nothing is said of their poses.
    molecule = make_molecule(BOX, voxel_size=PIXEL_SIZE, random_state=0)
    particles, truth = make_particles(
        molecule, N_PARTICLES, preset="ctf", snr=1.0, pixel_size=PIXEL_SIZE, random_state=0
    )
    save_particles(folder / "particles.star", particles, images_path=folder / "particles.mrcs", overwrite=True)

    # %%
    # From here on it is what one does with real data. A first volume needs no fine detail, so a smaller box will do.
    stack = load_particles(folder / "particles.star")
    images = NormalizeBackground().fit_transform(FourierDownsampler(WORKING_BOX).fit_transform(stack))
    ab_initio = AbInitioVolume(random_state=0).fit(images)

    # %%
    # The verdict: whether another random start found the same molecule. Without it, do not trust what you see.
    for score, agreement in zip(ab_initio.start_scores_, ab_initio.start_agreement_):
        print(f"a start of log-likelihood {score:.1f}: {agreement:.0%} of its poses are those of the best one")
    print("converged" if ab_initio.converged_ else "NOT CONVERGED: more starts or more particles are wanted")

    # %%
    # What the volume looks like, how far its half maps agree, which views there are.
    VolumeDisplay.from_estimator(ab_initio).figure_.savefig(folder / "slices.png", dpi=150)
    FSCDisplay.from_estimator(ab_initio).figure_.savefig(folder / "fsc.png", dpi=150)
    AngularCoverageDisplay.from_estimator(ab_initio).figure_.savefig(folder / "views.png", dpi=150)

    # %%
    # Poses and shifts, the latter in pixels of the particles as they were, for refinement elsewhere or
    # FourierReconstructor at the full box.
    save_volume(folder / "volume.mrc", ab_initio.volume_, ab_initio.pixel_size_, overwrite=True)
    scale = BOX / WORKING_BOX
    write_star(
        folder / "posed.star", stack, rotations=ab_initio.rotations_, shifts=ab_initio.shifts_ * scale, overwrite=True
    )

    # %%
    # With simulated data one can say how good the poses are, up to the frame and the hand, which images cannot tell.
    return ab_initio, pose_error(ab_initio.rotations_, truth.rotations)


if __name__ == "__main__":
    fitted, errors = main(sys.argv[1] if len(sys.argv) > 1 else "ab_initio")
    print(f"resolution {fitted.resolution_:.1f} Angstrom; poses are {errors.median:.1f} degrees off (median)")
