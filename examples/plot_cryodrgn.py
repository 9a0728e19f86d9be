"""Continuous motion: from particles with poses to latent coordinates, the volumes along them and a moving picture.

Run it with ``python examples/plot_cryodrgn.py [folder]``; it needs torch. With your own data, leave out the simulation
and give ``load_particles`` a STAR file with poses, as ``skcryo poses`` or RELION writes it.
"""

# %%
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from skcryo.datasets import make_molecule, make_particles
from skcryo.heterogeneity import CryoDRGN, latent_path, select_latents
from skcryo.inspection import LatentSpaceDisplay, animate_volumes
from skcryo.io import load_particles, save_particles, save_volume, write_star
from skcryo.metrics import neighborhood_similarity, per_image_fsc

N_PARTICLES = 800
BOX = 32
PIXEL_SIZE = 320 / BOX  # Angstrom


def main(folder):
    """Learn the motion of simulated particles and leave all files in `folder`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)

    # %%
    # A domain that swings by 60 degrees, seen in 20 positions, with CTFs, shifts and noise.
    angles = np.linspace(0, 60, 20)
    states = np.stack([make_molecule(BOX, random_state=1, hinge=angle) for angle in angles])
    particles, truth = make_particles(states, N_PARTICLES, preset="ctf", snr=0.5, pixel_size=PIXEL_SIZE, random_state=0)
    posed = particles.replace(rotations=truth.rotations, shifts=truth.shifts)
    save_particles(folder / "particles.star", posed, images_path=folder / "particles.mrcs", overwrite=True)

    # %%
    # From here on it is what one does with real data. The last two hundred particles are put by.
    stack = load_particles(folder / "particles.star")
    drgn = CryoDRGN(z_dim=1, max_iter=400, random_state=0).fit(stack[:-200])
    z = drgn.transform(stack[-200:])

    # %%
    # Particles that the fit has not seen lie along the motion.
    similarity = neighborhood_similarity(angles[truth.labels[-200:]], z)
    print(f"neighbours of new particles are neighbours in truth: {similarity:.0%} (by chance 10 %)")

    # %%
    # Volumes along the motion, from particle to particle, as files and as a moving picture.
    path = latent_path(drgn.embedding_, n_points=6)
    volumes = drgn.volumes_at(path)
    for k, volume in enumerate(volumes, start=1):
        save_volume(folder / f"path{k}.mrc", volume, PIXEL_SIZE, overwrite=True)
    animate_volumes(folder / "path.gif", volumes, overwrite=True)

    # %%
    # How good volumes of single particles are.
    some = np.arange(0, 600, 60)
    areas = per_image_fsc(drgn.volumes_at(drgn.embedding_[some]), states[truth.labels[some]], max_shell=10)
    print(f"correlation of particles' own volumes with the truth, mean of shells 1 to 10: {areas.mean():.2f}")

    # %%
    # The particles at one end, for whatever is to be done with them alone.
    end = select_latents(drgn.embedding_, ranges={0: (path[-2, 0], None)})
    write_star(folder / "end.star", stack[:-200][end], overwrite=True)

    # %%
    # All coordinates with the path on them and its volumes beside, then coordinates over the truth, new particles in
    # another colour.
    display = LatentSpaceDisplay.from_estimator(drgn, points=path)
    display.figure_.savefig(folder / "latents.png", dpi=150)
    figure, ax = plt.subplots(figsize=(5, 4), layout="constrained")
    ax.plot(angles[truth.labels[:-200]], drgn.embedding_[:, 0], ".", label="fitted")
    ax.plot(angles[truth.labels[-200:]], z[:, 0], ".", label="new")
    ax.set_xlabel("true angle (degrees)")
    ax.set_ylabel("z")
    ax.legend()
    figure.savefig(folder / "truth.png", dpi=150)
    return similarity, areas.mean()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "cryodrgn-example")
