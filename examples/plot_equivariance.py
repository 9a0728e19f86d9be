"""Turn the picture, watch the pose: what it means that a network is equivariant, and what one does that is not.

Run it with ``python examples/plot_equivariance.py [folder]``; it needs torch and matplotlib, and takes a minute.
"""

# %%
import sys
from pathlib import Path

import numpy as np

from skcryo.datasets import make_molecule, make_particles
from skcryo.fourier import rotate_images
from skcryo.orientation import EquivariantPoseNet
from skcryo.rotations import geodesic_distance, in_plane_rotation

N_PARTICLES, BOX = 400, 32
ARCHITECTURES = ("o2-mlp", "mlp")


def main(folder):
    """Train both networks, turn a particle through a full circle, and leave a figure in `folder`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)

    # %%
    # Particles without shifts, and two networks that learn from projections of the same volume. The first keeps, layer
    # by layer, how its numbers turn when the image does. The second is an ordinary perceptron. Poses are found once.
    particles, _ = make_particles(make_molecule(BOX, random_state=0), N_PARTICLES, snr=1.0, random_state=0)
    options = {"max_shift": 0, "max_iter": 400, "refine": False, "random_state": 0}
    networks, init = {}, None
    for architecture in ARCHITECTURES:
        networks[architecture] = EquivariantPoseNet(architecture=architecture, init=init, **options).fit(particles)
        init = networks[architecture].rotations_

    # %%
    # One picture, turned through a full circle. If it is turned by a, its pose R should become R Rz(-a): the molecule
    # is seen from the same side, and its upright has turned.
    angles = np.deg2rad(np.arange(0, 360, 10))
    pictures = rotate_images(np.repeat(np.asarray(particles[:1]), len(angles), axis=0), angles, order=5)
    off = {}
    for architecture, net in networks.items():
        poses = net.predict(pictures)
        off[architecture] = np.rad2deg(geodesic_distance(poses, poses[0] @ in_plane_rotation(-angles)))

    # %%
    # What the network never saw needs no learning: its error is that of turning pixels, nothing more.
    draw(folder / "equivariance.png", pictures, angles, off)
    return off


def draw(path, pictures, angles, off):
    """Some of the pictures, and how far each pose is from the first one turned."""
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(9, 5), layout="constrained")
    grid = figure.add_gridspec(2, 6, height_ratios=[1, 2])
    for k in range(6):
        axes = figure.add_subplot(grid[0, k])
        axes.imshow(pictures[6 * k], cmap="gray", origin="lower")
        axes.set(title=f"turned by {np.rad2deg(angles[6 * k]):.0f}°", xticks=[], yticks=[])
    axes = figure.add_subplot(grid[1, :])
    for (architecture, values), marker in zip(off.items(), "os"):
        axes.semilogy(np.rad2deg(angles)[1:], np.maximum(values[1:], 1e-3), marker + "-", label=architecture)
    axes.set(xlabel="turn of the picture (degrees)", ylabel="pose is off by (degrees)")
    axes.legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    found = main(sys.argv[1] if len(sys.argv) > 1 else "equivariance")
    for architecture, values in found.items():
        print(f"{architecture}: the pose of a turned picture is {np.median(values):.2f} degrees off (median)")
