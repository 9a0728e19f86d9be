"""The settings of the paper's tables 2 and S4, scaled down: `CryoDRGN` beside classes, poses known.

    OMP_NUM_THREADS=1 python benchmarks/cryodrgn_tables.py --atoms 8zpm.cif --seeds 0 1 2 --output cryodrgn_tables.json

Zhong, Bepler, Davis, Berger (2020) simulate 50 000 images of 64 px of an atomic model in four data sets, and compare
`CryoDRGN` of one and ten coordinates with discrete classes. Here the model is 8ZPM straight from atoms at 2.5 A a
pixel, its upper half a rigid body on a hinge; preset "paper", SNR 0.1, 5000 images and 500 held out (--n-images):

* linear: turned by 0 to 90 degrees, 50 states.
* plane: tipped by -25 to 25 degrees about x and y, each, 49 states.
* circular: tipped by 25 degrees in all directions, 50 states.
* ten: ten states, at places drawn by lot in between 0 and 60 degrees about random axes.

Methods: CryoDRGN of 1, 2 and 10 coordinates; MulticlassReconstruction of 2 to 5 classes, each image's volume that of
its class; for ten states of 10 too. Of each row: resolution at FSC 0.5 of the volumes of 100 images with their true
ones, mean and standard deviation, as in the paper; the area under these curves; share of neighbours that are neighbours
in truth, and information imbalance from coordinates to truth and back (classes as coordinates), on held-out images; for
ten states the accuracy of k-means on coordinates.

CPU seconds are those of `fit` on one thread. Rows are added as they are finished; what is there is not run again.
"""

import argparse
import json
import os
import time
import warnings

import gemmi
import numpy as np
from cryodrgn import CENTER, HINGE, PIXEL_SIZE, L
from cryodrgn import states as motion_states
from scipy.optimize import linear_sum_assignment
from scipy.spatial.transform import Rotation
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import confusion_matrix

from skcryo.datasets import make_particles, volume_from_atoms
from skcryo.heterogeneity import CryoDRGN
from skcryo.metrics import fsc, fsc_area, fsc_resolution, information_imbalance, neighborhood_similarity
from skcryo.reconstruction import MulticlassReconstruction

N_HELD_OUT, N_VOLUMES, SNR = 500, 100, 0.1
KEY = ("data", "method", "size", "n_images", "seed")


def turned(path, turns):
    """8ZPM with its upper half turned about the hinge by rotation vectors (n, 3)."""
    model = gemmi.read_structure(path)[0]
    atoms = [atom for chain in model for residue in chain for atom in residue]
    start = np.array([atom.pos.tolist() for atom in atoms])
    plane = np.median(start[:, 2]) + 4
    moving, hinge = start[:, 2] > plane, np.array([*HINGE, plane])
    volumes = []
    for turn in turns:
        place = np.where(moving[:, None], Rotation.from_rotvec(turn).apply(start - hinge) + hinge, start)
        for atom, position in zip(atoms, place):
            atom.pos = gemmi.Position(*position)
        volumes.append(volume_from_atoms(model, L, PIXEL_SIZE["8ZPM"], center=CENTER))
    return np.stack(volumes)


def data_set(data, path):
    """Volumes of the states, and Euclidean coordinates of these."""
    if data in ("linear", "circular"):
        volumes = motion_states("8ZPM", data, path)
        t = np.arange(len(volumes)) / len(volumes)
        angle = 2 * np.pi * t
        return volumes, t[:, None] if data == "linear" else np.stack([np.cos(angle), np.sin(angle)], axis=1)
    if data == "plane":
        grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, 7)] * 2), axis=-1).reshape(-1, 2)
        return turned(path, np.deg2rad(25) * np.pad(grid, ((0, 0), (0, 1)))), grid
    random = np.random.default_rng(7)
    axes = random.normal(size=(10, 3))
    axes *= np.deg2rad(np.linspace(0, 60, 10))[:, None] / np.linalg.norm(axes, axis=1, keepdims=True)
    return turned(path, axes), np.eye(10)


def tasks(data, n_images, seeds):
    rows = []
    for name in data:
        rows += [(name, "cryodrgn", z_dim) for z_dim in (1, 2, 10)]
        rows += [(name, "classes", k) for k in ((2, 3, 4, 5, 10) if name == "ten" else (2, 3, 4, 5))]
    return [(*row, n_images, seed) for seed in seeds for row in rows]


def run(path, data, method, size, n_images, seed):
    volumes, coordinates = data_set(data, path)
    labels = np.random.default_rng(seed + 7).integers(len(volumes), size=n_images + N_HELD_OUT)
    stack, truth = make_particles(
        volumes, len(labels), preset="paper", snr=SNR, pixel_size=PIXEL_SIZE["8ZPM"], labels=labels, random_state=seed
    )
    stack = stack.replace(rotations=truth.rotations, shifts=truth.shifts)
    kind = CryoDRGN if method == "cryodrgn" else MulticlassReconstruction
    begun = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = kind(size, n_jobs=1, random_state=seed).fit(stack[:n_images])
    row = {"cpu_s": round(time.process_time() - begun, 1)}
    new, own = stack[n_images:], labels[n_images:]
    some = np.linspace(0, n_images - 1, N_VOLUMES).astype(int)
    if method == "cryodrgn":
        z, made = found.transform(new), found.volumes_at(found.embedding_[some])
    else:
        # classes are at equal distance of each other
        z, made = np.eye(size)[found.predict(new)], found.volumes_[found.labels_[some]]
    curves = [fsc(volume, volumes[labels[i]]) for volume, i in zip(made, some)]
    pixels = [fsc_resolution(curve, 0.5, 1.0, box_size=L) for curve in curves]
    row |= {"pixels": round(float(np.mean(pixels)), 3), "pixels_std": round(float(np.std(pixels)), 3)}
    row["fsc_area"] = round(float(np.mean([fsc_area(curve) for curve in curves])), 4)
    row["fsc_8_16_24"] = np.mean(curves, axis=0)[[8, 16, 24]].round(3).tolist()
    near = coordinates[own]
    row["neighbours"] = round(neighborhood_similarity(near, z, n_neighbors=N_HELD_OUT // 10), 4)
    row["imbalance"] = [round(information_imbalance(*pair), 4) for pair in ((z, near), (near, z))]
    if data == "ten":
        guess = KMeans(10, n_init=5, random_state=seed).fit_predict(z) if method == "cryodrgn" else z.argmax(axis=1)
        table = confusion_matrix(own, guess, labels=range(10))
        row["accuracy"] = round(float(table[linear_sum_assignment(-table)].sum() / len(own)), 4)
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--atoms", required=True, help="8zpm.cif")
    parser.add_argument("--data", nargs="+", default=["linear", "plane", "circular", "ten"])
    parser.add_argument("--n-images", type=int, default=5000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--methods", nargs="+", help="such as cryodrgn1 classes5; all if not given")
    parser.add_argument("--output", required=True)
    args = parser.parse_args()
    done = []
    if os.path.exists(args.output):
        with open(args.output) as file:
            done = [json.loads(line) for line in file]
    for task in tasks(args.data, args.n_images, args.seeds):
        key = dict(zip(KEY, task))
        known = any(all(row[name] == key[name] for name in KEY) for row in done)
        if known or (args.methods and f"{task[1]}{task[2]}" not in args.methods):
            continue
        row = key | run(args.atoms, *task)
        print(json.dumps(row), flush=True)
        with open(args.output, "a") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
