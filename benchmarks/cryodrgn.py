"""Continuous motion: latents of held-out images and volumes that `CryoDRGN` finds, poses known.

    OMP_NUM_THREADS=1 python benchmarks/cryodrgn.py --atoms 8zpm.cif --part linear --seeds 0 1 2 --output cryodrgn.json

64 px, 50 states, 5000 images and 500 held out. "8ZPM": straight from atoms at 2.5 A a pixel, own spectrum, the upper
half turned by 0 to 90 degrees about a hinge ("linear") or tipped by 25 degrees in all directions ("circular");
"molecule": `make_molecule` with one domain turned by 0 to 60 degrees, standard spectrum. Parts:

* linear: both molecules, white noise, SNR 0.1 and none, z_dim 1; preset "ctf" at SNR 0.1.
* circular: 8ZPM, SNR 0.1, z_dim 2; latents are told by the share of the 10 nearest neighbours that are near in truth.
* inference: 8ZPM, SNR 0.1, coordinates by the encoder and by principal volumes, for comparison.

CPU seconds are those of `fit` on one thread. Rows are added as they are finished; what is there is not run again.
"""

import argparse
import json
import os
import time
import warnings

import gemmi
import numpy as np
from scipy.spatial.transform import Rotation
from scipy.stats import spearmanr
from sklearn.exceptions import ConvergenceWarning
from sklearn.neighbors import NearestNeighbors

from skcryo.datasets import make_molecule, make_particles, volume_from_atoms
from skcryo.heterogeneity import CryoDRGN
from skcryo.metrics import fsc, fsc_resolution

L, N_STATES, N_IMAGES, N_HELD_OUT, N_VOLUMES = 64, 50, 5000, 500, 20
PIXEL_SIZE = {"8ZPM": 2.5, "molecule": 5.0}
HINGE, CENTER = (136.0, 137.0), (136.0, 145.0, 135.0)  # of 8ZPM, in Angstrom
KEY = ("part", "molecule", "motion", "preset", "snr", "z_dim", "inference", "n_images", "seed")


def states(molecule, motion, path):
    """Volumes of the states, (50, 64, 64, 64)."""
    t = np.arange(N_STATES) / (N_STATES if motion == "circular" else N_STATES - 1)
    if molecule == "molecule":
        return np.stack([make_molecule(L, random_state=1, hinge=60 * float(part)) for part in t])
    model = gemmi.read_structure(path)[0]
    atoms = [atom for chain in model for residue in chain for atom in residue]
    start = np.array([atom.pos.tolist() for atom in atoms])
    plane = np.median(start[:, 2]) + 4
    moving, hinge = start[:, 2] > plane, np.array([*HINGE, plane])
    volumes = []
    for part in t:
        angle = 2 * np.pi * part
        turn = np.deg2rad(25) * np.array([np.cos(angle), np.sin(angle), 0])
        turn = turn if motion == "circular" else np.array([part * np.pi / 2, 0, 0])
        place = np.where(moving[:, None], Rotation.from_rotvec(turn).apply(start - hinge) + hinge, start)
        for atom, position in zip(atoms, place):
            atom.pos = gemmi.Position(*position)
        volumes.append(volume_from_atoms(model, L, PIXEL_SIZE[molecule], center=CENTER))
    return np.stack(volumes)


def tasks(part, seeds):
    """Rows without part and results."""
    if part == "linear":
        rows = [("8ZPM", "linear", "paper", snr, 1, "decoder") for snr in (0.1, None)]
        rows += [("molecule", "linear", "paper", snr, 1, "decoder") for snr in (0.1, None)]
        rows += [(molecule, "linear", "ctf", 0.1, 1, "decoder") for molecule in ("8ZPM", "molecule")]
    elif part == "circular":
        rows = [("8ZPM", "circular", "paper", 0.1, 2, "decoder")]
    else:
        rows = [("8ZPM", "linear", "paper", 0.1, 1, inference) for inference in ("pca", "encoder")]
    return [(part, *row, N_IMAGES, seed) for seed in seeds for row in rows]


def run(path, part, molecule, motion, preset, snr, z_dim, inference, n_images, seed):
    volumes = states(molecule, motion, path)
    labels = np.random.default_rng(seed + 7).integers(N_STATES, size=n_images + N_HELD_OUT)
    stack, truth = make_particles(
        volumes, len(labels), preset=preset, snr=snr, pixel_size=PIXEL_SIZE[molecule], labels=labels, random_state=seed
    )
    stack = stack.replace(rotations=truth.rotations, shifts=truth.shifts)
    begun = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = CryoDRGN(z_dim, inference=inference, n_jobs=1, random_state=seed).fit(stack[:n_images])
    cpu = time.process_time() - begun
    begun = time.process_time()
    new = found.transform(stack[n_images:])
    per_image = (time.process_time() - begun) / N_HELD_OUT
    row = {"cpu_s": round(cpu, 1), "transform_ms": round(1e3 * per_image, 2), "steps": found.n_iter_}
    for name, z, own in (("train", found.embedding_, labels[:n_images]), ("held_out", new, labels[n_images:])):
        row[f"rank_correlation_{name}"] = [round(abs(float(spearmanr(part, own)[0])), 4) for part in z.T]
        row[f"neighbours_{name}"] = round(near(z, own, motion), 4)
    rows = np.linspace(0, n_images - 1, N_VOLUMES).astype(int)
    curves = np.array([fsc(v, volumes[labels[i]]) for v, i in zip(found.volumes_at(found.embedding_[rows]), rows)])
    pixels = [fsc_resolution(curve, 0.5, 1.0, box_size=L) for curve in curves]
    row["pixels"], row["pixels_std"] = round(float(np.mean(pixels)), 3), round(float(np.std(pixels)), 3)
    row["fsc_8_16_24"] = curves.mean(axis=0)[[8, 16, 24]].round(3).tolist()
    return row


def near(z, labels, motion):
    """Share of the 10 nearest neighbours in z that are within a tenth of all states of the truth."""
    neighbours = NearestNeighbors(n_neighbors=11).fit(z).kneighbors(z, return_distance=False)[:, 1:]
    away = np.abs(labels[neighbours] - labels[:, None])
    away = np.minimum(away, N_STATES - away) if motion == "circular" else away
    return float((away <= N_STATES // 10).mean())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--atoms", required=True, help="8zpm.cif")
    parser.add_argument("--part", choices=("linear", "circular", "inference"), default="linear")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", help="rows whose description has this in it")
    parser.add_argument("--output", required=True)
    args = parser.parse_args()
    done = []
    if os.path.exists(args.output):
        with open(args.output) as file:
            done = [json.loads(line) for line in file]
    for task in tasks(args.part, args.seeds):
        key = dict(zip(KEY, task))
        known = any(all(row[name] == key[name] for name in KEY) for row in done)
        if known or (args.only and args.only not in json.dumps(key)):
            continue
        row = key | run(args.atoms, *task)
        print(json.dumps(row), flush=True)
        with open(args.output, "a") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
