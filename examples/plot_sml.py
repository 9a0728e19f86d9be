"""Many classes of aligned, noisy particles: k-means, maximum likelihood and manifold learning side by side.

Run it with ``python examples/plot_sml.py [folder]``. With your own data, leave out the simulation and give
``load_particles`` your STAR file of particles that are aligned in the plane.
"""

# %%
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from scipy.spatial.transform import Rotation
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA

from skcryo.cluster import SMLClustering
from skcryo.ctf import apply_ctf, make_ctf
from skcryo.datasets import make_molecule, make_particles
from skcryo.metrics import class_view_angles
from skcryo.particles import ParticleStack

N_PARTICLES = 1200
N_CLASSES = 60
BOX = 32
PIXEL_SIZE = 320 / BOX  # Angstrom
SNR = 0.06


def simulate():
    """Aligned particles with CTFs in white noise, and their poses."""
    rng = np.random.default_rng(0)
    views = rng.standard_normal((N_PARTICLES, 3))
    views /= np.linalg.norm(views, axis=1, keepdims=True)
    angles = [np.arctan2(views[:, 1], views[:, 0]), np.arccos(views[:, 2]), np.zeros(N_PARTICLES)]
    rotations = Rotation.from_euler("ZYZ", np.transpose(angles)).as_matrix()
    molecule = make_molecule(BOX, voxel_size=PIXEL_SIZE, random_state=0)
    clean, _ = make_particles(molecule, N_PARTICLES, snr=None, rotations=rotations, pixel_size=PIXEL_SIZE)
    ctf = make_ctf(N_PARTICLES, defocus_u=rng.uniform(10000, 25000, N_PARTICLES))
    images = apply_ctf(clean, ctf, PIXEL_SIZE)
    images += rng.standard_normal(images.shape, dtype=np.float32) * images.std() / np.sqrt(SNR)
    return ParticleStack(images, pixel_size=PIXEL_SIZE, ctf=ctf), rotations


def main(folder):
    """Classify simulated particles in three ways and leave the pictures in `folder`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    stack, rotations = simulate()

    # %%
    # The usual way: principal components of the images as they are, then k-means.
    components = PCA(30, random_state=0).fit_transform(np.asarray(stack).reshape(N_PARTICLES, -1))
    labels = {"PCA and k-means": KMeans(N_CLASSES, n_init=1, random_state=0).fit_predict(components)}

    # %%
    # Maximum likelihood: the same model without a manifold, every class mean for itself.
    maximum_likelihood = SMLClustering(N_CLASSES, manifold="none", random_state=0).fit(stack)
    labels["maximum likelihood"] = maximum_likelihood.labels_

    # %%
    # Statistical manifold learning: class means vary smoothly over a sphere, as views do.
    sml = SMLClustering(N_CLASSES).fit(stack)
    labels["manifold learning"] = sml.labels_

    # %%
    # The model gives likelihoods, so held-out images can tell what suits the data, here the stiffness of the manifold.
    train, test = stack[::2], stack[1::2]
    for alpha in (0.3, 3.0, 30.0):
        held_out = SMLClustering(N_CLASSES, alpha=alpha).fit(train).score(test)
        print(f"alpha = {alpha:4.1f}: mean log-likelihood of held-out images {held_out:.2f}")

    # %%
    # Class averages, CTFs undone, laid out over the manifold as a map.
    longitude = np.arctan2(sml.latent_positions_[:, 1], sml.latent_positions_[:, 0])
    latitude = np.arcsin(sml.latent_positions_[:, 2])
    figure, ax = plt.subplots(figsize=(12, 6))
    for x, y, average in zip(longitude, latitude, sml.class_averages_):
        ax.imshow(average, extent=(x - 0.18, x + 0.18, y - 0.18, y + 0.18), cmap="gray", aspect="auto")
    ax.set(xlim=(-3.4, 3.4), ylim=(-1.7, 1.7), xlabel="longitude", ylabel="latitude", title="class averages")
    figure.savefig(folder / "map.png", dpi=150)

    # %%
    # With simulated data one can say how good the classes are: how far apart the views within one class are.
    figure, ax = plt.subplots()
    shares = {}
    for name, found in labels.items():
        angles = class_view_angles(found, rotations)
        shares[name] = float((angles <= 15).mean())
        ax.hist(angles, bins=np.arange(0, 181, 5), histtype="step", density=True, label=name)
    ax.set(xlabel="angle between views in one class / degrees", ylabel="density")
    ax.legend()
    figure.savefig(folder / "angles.png", dpi=150)
    return sml, shares


if __name__ == "__main__":
    _, purity = main(sys.argv[1] if len(sys.argv) > 1 else "sml")
    for method, share in purity.items():
        print(f"{method}: {share:.0%} of the pairs in a class are views within 15 degrees")
