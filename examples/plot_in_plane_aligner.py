"""From raw particles to fine classes: turn and centre them first, then learn the manifold of views.

Run it with ``python examples/plot_in_plane_aligner.py [folder]``. With your own data, leave out the simulation and give
``load_particles`` your STAR file: raw particles, bright on a darker background, with their CTFs.
"""

# %%
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from sklearn.pipeline import Pipeline

from skcryo.cluster import SMLClustering
from skcryo.datasets import make_molecule, make_particles
from skcryo.inspection import ClassAveragesDisplay
from skcryo.metrics import class_view_angles
from skcryo.preprocessing import InPlaneAligner

N_PARTICLES = 1000
BOX = 32
PIXEL_SIZE = 320 / BOX  # Angstrom
SNR = 0.2


def main(folder):
    """Align and classify simulated particles, and leave the pictures in `folder`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    molecule = make_molecule(BOX, voxel_size=PIXEL_SIZE, random_state=0)
    stack, truth = make_particles(molecule, N_PARTICLES, preset="ctf", snr=SNR, pixel_size=PIXEL_SIZE, random_state=0)

    # %%
    # One pipeline: images go in as they were picked, each at its own angle and off centre; the aligner hands them on
    # turned and centred. CTFs travel along, in both steps they are part of the likelihood.
    pipeline = Pipeline(
        [("align", InPlaneAligner(25, random_state=0)), ("sml", SMLClustering(50, n_components=20, random_state=0))]
    )
    pipeline.fit(stack)
    aligner, sml = pipeline["align"], pipeline["sml"]

    # %%
    # The aligner's own classes: averages of images turned and moved back, CTFs undone, about one centre.
    ClassAveragesDisplay.from_estimator(aligner).figure_.savefig(folder / "averages.png", dpi=150)

    # %%
    # What alignment is worth: fine classes of raw images, and of aligned ones.
    raw = SMLClustering(50, n_components=20, random_state=0).fit(stack)
    found = {"raw images": raw.labels_, "aligned images": sml.labels_}
    shares = {}
    figure, ax = plt.subplots()
    for name, labels in found.items():
        angles = class_view_angles(labels, truth.rotations)
        shares[name] = float((angles <= 20).mean())
        ax.hist(angles, bins=np.arange(0, 181, 5), histtype="step", density=True, label=name)
    ax.set(xlabel="angle between views in one class / degrees", ylabel="density")
    ax.legend()
    figure.savefig(folder / "angles.png", dpi=150)

    # %%
    # Angles and shifts of images that were not there before, each by itself.
    new, _ = make_particles(molecule, 5, preset="ctf", snr=SNR, pixel_size=PIXEL_SIZE, random_state=1)
    for label, angle, (x, y) in zip(*aligner.align(new)):
        print(f"class {label:2d}, turned by {np.degrees(angle):3.0f} degrees, moved by ({x:+.1f}, {y:+.1f}) px")
    return aligner, shares


if __name__ == "__main__":
    _, purity = main(sys.argv[1] if len(sys.argv) > 1 else "aligned")
    for images, share in purity.items():
        print(f"{images}: {share:.0%} of the pairs in a class are views within 20 degrees")
