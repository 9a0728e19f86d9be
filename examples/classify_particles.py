"""Class averages of particles, end to end: simulate, save, load, classify, look, write back.

Run it with ``python examples/classify_particles.py [folder]``. With your own data, leave out the
simulation and give ``load_particles`` your STAR file; the command ``skcryo classify2d`` does the same
with progress and checkpoints.
"""

# %%
import sys
from pathlib import Path

from skcryo.cluster import RotInvWassersteinKMeans
from skcryo.datasets import make_molecule, make_particles
from skcryo.inspection import ClassAveragesDisplay
from skcryo.io import load_particles, save_images, save_particles, write_star
from skcryo.metrics import view_coherence
from skcryo.preprocessing import FourierDownsampler, NoiseWhitener, NormalizeBackground

N_PARTICLES = 500
BOX = 48
PIXEL_SIZE = 320 / BOX  # Angstrom


def main(folder):
    """Classify simulated particles and leave all files in `folder`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)

    # %%
    # Particles whose truth is known: random views of one molecule, with CTF, small shifts and noise.
    molecule = make_molecule(BOX, voxel_size=PIXEL_SIZE, random_state=0)
    particles, truth = make_particles(
        molecule, N_PARTICLES, preset="ctf", snr=1.0, pixel_size=PIXEL_SIZE, random_state=0
    )
    save_particles(
        folder / "particles.star", particles, images_path=folder / "particles.mrcs", overwrite=True
    )

    # %%
    # From here on it is what one does with real data. Nothing is read into memory yet.
    stack = load_particles(folder / "particles.star")
    images = NormalizeBackground().fit_transform(FourierDownsampler(32).fit_transform(stack))
    images = NoiseWhitener(remove_mean=True).fit_transform(images)

    # %%
    # The images carry their CTF and pixel size with them. Of images with CTF and white noise "l2" tells most.
    estimator = RotInvWassersteinKMeans(n_clusters=20, metric="l2", n_angles=72, random_state=0).fit(images)

    # %%
    # One picture, largest class first; the averages and a STAR file that RELION reads.
    display = ClassAveragesDisplay.from_estimator(estimator, pixel_size=images.pixel_size)
    display.figure_.savefig(folder / "montage.png", dpi=150)
    save_images(folder / "class_averages.mrcs", estimator.class_averages_, images.pixel_size, overwrite=True)
    write_star(
        folder / "classified.star",
        stack,
        labels=estimator.labels_,
        in_plane_angles=estimator.in_plane_angles_,
        # From pixels of the small box to pixels of the input.
        shifts=estimator.shifts_ * stack.shape[1] / images.shape[1],
        overwrite=True,
    )

    # %%
    # With simulated data one can say how good the classes are.
    return view_coherence(estimator.labels_, truth.rotations)


if __name__ == "__main__":
    coherence = main(sys.argv[1] if len(sys.argv) > 1 else "classify_particles")
    print(f"median angle between two views in one class: {coherence.median:.0f} degrees")
