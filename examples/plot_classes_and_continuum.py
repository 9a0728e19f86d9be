"""Discrete classes and continuous coordinates of the same particles, and which of the two they want.

Run it with ``python examples/plot_classes_and_continuum.py [folder]``; it needs torch.
"""

# %%
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from skcryo.datasets import make_molecule, make_particles
from skcryo.heterogeneity import CryoDRGN
from skcryo.metrics import information_imbalance, per_image_fsc
from skcryo.reconstruction import MulticlassReconstruction

N_PARTICLES, N_NEW = 500, 100
BOX = 24


def main(folder):
    """Classify and embed particles of a molecule that bends; leave a picture in `folder`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)

    # %%
    # A domain that swings by 90 degrees, seen in 10 positions. There are no classes in it.
    angles = np.linspace(0, 90, 10)
    states = np.stack([make_molecule(BOX, random_state=1, hinge=angle) for angle in angles])
    stack, truth = make_particles(states, N_PARTICLES + N_NEW, snr=2.0, random_state=0)
    stack = stack.replace(rotations=truth.rotations, shifts=truth.shifts)
    fitted, new = stack[:N_PARTICLES], stack[N_PARTICLES:]
    true_angles = angles[truth.labels[:N_PARTICLES]]

    # %%
    # A program that is asked for classes makes classes: of the motion it makes pieces. That particles which were held
    # out go on gaining with further classes is no sign that there are classes.
    scores, models = [], {}
    for n_classes in (1, 3):
        models[n_classes] = MulticlassReconstruction(n_classes, max_iter=8, random_state=0).fit(fitted)
        scores.append(models[n_classes].score(new))
        print(f"{n_classes} classes: held-out log-likelihood {scores[-1]:.1f}")
    classes = models[3]

    # %%
    # Continuous coordinates of the same particles.
    drgn = CryoDRGN(1, max_iter=400, random_state=0).fit(fitted)

    # %%
    # How little coordinates, or classes, tell of which particles are alike in truth: 0 would be all, 1 nothing.
    told = {
        "classes": information_imbalance(classes.labels_, true_angles),
        "coordinate": information_imbalance(drgn.embedding_, true_angles),
    }
    # How like its true state the volume is that a particle gets.
    some = np.arange(0, N_PARTICLES, 25)
    own = states[truth.labels[some]]
    areas = {
        "classes": per_image_fsc(classes.volumes_[classes.labels_[some]], own, max_shell=9).mean(),
        "coordinate": per_image_fsc(drgn.volumes_at(drgn.embedding_[some]), own, max_shell=9).mean(),
    }
    for name in told:
        print(f"{name}: imbalance {told[name]:.2f}, correlation with the true volumes {areas[name]:.2f}")

    # %%
    # Classes over the true angle, and the coordinate over it.
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    parts = [true_angles[classes.labels_ == k] for k in range(3)]
    left.hist(parts, bins=10, stacked=True, label=[f"class {k + 1}" for k in range(3)])
    left.set(xlabel="true angle (degrees)", ylabel="particles")
    left.margins(y=0.2)
    left.legend(frameon=False, fontsize=8, loc="upper center", ncols=3)
    right.scatter(true_angles, drgn.embedding_[:, 0], c=classes.labels_, cmap="tab10", vmin=0, vmax=9, s=6)
    right.set(xlabel="true angle (degrees)", ylabel="z, coloured by class")
    figure.savefig(folder / "classes_and_continuum.png", dpi=150)
    return told, areas, scores


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "classes-and-continuum-example")
