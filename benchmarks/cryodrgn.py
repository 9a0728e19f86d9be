"""Continuous motion: latents of held-out images and volumes that `CryoDRGN` finds; poses known or not; tilt pairs.

    OMP_NUM_THREADS=1 python benchmarks/cryodrgn.py --atoms 8zpm.cif --part linear --seeds 0 1 2 --output cryodrgn.json

64 px, 50 states, 5000 images and 500 held out. "8ZPM": straight from atoms at 2.5 A a pixel, own spectrum, the upper
half turned by 0 to 90 degrees about a hinge ("linear") or tipped by 25 degrees in all directions ("circular");
"molecule": `make_molecule` with one domain turned by 0 to 60 degrees, standard spectrum. Parts:

* linear: both molecules, white noise, SNR 0.1 and none, z_dim 1; preset "ctf" at SNR 0.1.
* circular: 8ZPM, SNR 0.1, z_dim 2; latents are told by the share of the 10 nearest neighbours that are near in truth.
* ab_initio: one volume, 70S (--volume ribosome_70s_65.mrc, cropped to 64 px), poses from nothing.
* unknown_poses: 8ZPM, SNR 0.1, z_dim 1, poses from nothing; errors in one frame, and in one for each tenth of states.
* tilt: 8ZPM, SNR 0.1, 1500 particles of known poses, single images and pairs, the stage tilted by 45 degrees.
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
from skcryo.fourier import fourier_crop
from skcryo.heterogeneity import CryoDRGN
from skcryo.io import load_volume
from skcryo.metrics import fsc, fsc_resolution
from skcryo.projection import VolumeProjector
from skcryo.rotations import align_rotations, geodesic_distance

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
    elif part == "ab_initio":
        rows = [("paper", None, 1000)]
        rows += [(preset, 0.1, 2000) for preset in ("paper", "shifted", "ctf", "experimental")]
        return [(part, "70S", None, preset, snr, 0, None, n, seed) for seed in seeds for preset, snr, n in rows]
    elif part in ("unknown_poses", "tilt"):
        n = N_IMAGES if part == "unknown_poses" else 1500
        return [(part, "8ZPM", "linear", "paper", 0.1, 1, "decoder", n, seed) for seed in seeds]
    elif part == "circular":
        rows = [("8ZPM", "circular", "paper", 0.1, 2, "decoder")]
    else:
        rows = [("8ZPM", "linear", "paper", 0.1, 1, inference) for inference in ("pca", "encoder")]
    return [(part, *row, N_IMAGES, seed) for seed in seeds for row in rows]


def run(path, part, molecule, motion, preset, snr, z_dim, inference, n_images, seed):
    if part == "ab_initio":
        return run_ab_initio(path, preset, snr, n_images, seed)
    if part == "unknown_poses":
        return run_unknown_poses(path, n_images, seed)
    if part == "tilt":
        return run_tilt(path, n_images, seed)
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


def run_ab_initio(path, preset, snr, n_images, seed):
    """Poses of one volume from nothing."""
    volume = fourier_crop(load_volume(path)[0].astype(np.float32), L, ndim=3)
    stack, truth = make_particles(volume, n_images, preset=preset, snr=snr, pixel_size=5.0, random_state=seed)
    begun = time.process_time()
    options = {"max_shift": 0} if preset == "paper" else {}
    found = CryoDRGN(0, poses="search", n_jobs=1, random_state=seed, **options).fit(stack)
    cpu = time.process_time() - begun
    good = ~truth.is_junk
    aligned = align_rotations(found.rotations_[good], truth.rotations[good])[0]
    errors = np.degrees(geodesic_distance(aligned, truth.rotations[good]))
    rows, away = np.swapaxes(found.rotations_[good][:, :, :2], 1, 2), found.shifts_[good] - truth.shifts[good]
    right = errors < 20
    origin = np.linalg.lstsq(rows[right].reshape(-1, 3), away[right].reshape(-1), rcond=None)[0]
    return {
        "cpu_s": round(cpu, 1),
        "median_deg": round(float(np.median(errors)), 3),
        "above_20": round(float((errors > 20).mean()), 4),
        "frobenius": float(f"{np.median(np.square(aligned - truth.rotations[good]).sum(axis=(1, 2))):.3g}"),
        "shift_px": round(float(np.median(np.linalg.norm(away - rows @ origin, axis=1))), 3),
    }


def run_unknown_poses(path, n_images, seed):
    """Poses and coordinates of a molecule that bends, from nothing."""
    volumes = states("8ZPM", "linear", path)
    labels = np.random.default_rng(seed + 7).integers(N_STATES, size=n_images)
    stack, truth = make_particles(volumes, n_images, snr=0.1, pixel_size=2.5, labels=labels, random_state=seed)
    begun = time.process_time()
    found = CryoDRGN(1, poses="search", max_shift=0, n_jobs=1, random_state=seed).fit(stack)
    cpu = time.process_time() - begun
    aligned = align_rotations(found.rotations_, truth.rotations)[0]
    errors = geodesic_distance(aligned, truth.rotations)
    own = np.empty(n_images)
    for tenth in range(10):
        rows = labels * 10 // N_STATES == tenth
        turned = align_rotations(aligned[rows], truth.rotations[rows], reflection=False)[0]
        own[rows] = geodesic_distance(turned, truth.rotations[rows])
    return {
        "cpu_s": round(cpu, 1),
        "rank_correlation": round(abs(float(spearmanr(found.embedding_[:, 0], labels)[0])), 4),
        "one_frame_deg": round(float(np.degrees(np.median(errors))), 2),
        "frame_per_state_deg": round(float(np.degrees(np.median(own))), 2),
    }


def run_tilt(path, n_images, seed):
    """Rank correlation of coordinates with the truth, of single images and of pairs, poses known."""
    volumes = states("8ZPM", "linear", path)
    labels = np.random.default_rng(seed + 7).integers(N_STATES, size=n_images)
    stack, truth = make_particles(volumes, n_images, snr=0.1, pixel_size=2.5, labels=labels, random_state=seed)
    stack = stack.replace(rotations=truth.rotations)
    angle = np.deg2rad(45)
    turned = truth.rotations @ Rotation.from_rotvec([-angle, 0, 0]).as_matrix()
    tilted = np.empty(stack.shape, dtype=np.float32)
    for state in range(N_STATES):
        rows = labels == state
        tilted[rows] = VolumeProjector(volumes[state]).project(turned[rows])
    noise = np.sqrt(tilted.var() / 0.1) * np.random.default_rng([seed, 1]).standard_normal(tilted.shape)
    row = {}
    for name, X in (("single", stack), ("pairs", stack.replace(tilt=tilted + noise, tilt_angle=angle))):
        begun = time.process_time()
        found = CryoDRGN(1, max_iter=600, n_jobs=1, random_state=seed).fit(X)
        row[f"cpu_s_{name}"] = round(time.process_time() - begun, 1)
        row[f"rank_correlation_{name}"] = round(abs(float(spearmanr(found.embedding_[:, 0], labels)[0])), 4)
        rows = np.linspace(0, n_images - 1, N_VOLUMES).astype(int)
        curves = [fsc(v, volumes[labels[i]]) for v, i in zip(found.volumes_at(found.embedding_[rows]), rows)]
        pixels = [fsc_resolution(curve, 0.5, 1.0, box_size=L) for curve in curves]
        row[f"pixels_{name}"] = round(float(np.mean(pixels)), 3)
    return row


def near(z, labels, motion):
    """Share of the 10 nearest neighbours in z that are within a tenth of all states of the truth."""
    neighbours = NearestNeighbors(n_neighbors=11).fit(z).kneighbors(z, return_distance=False)[:, 1:]
    away = np.abs(labels[neighbours] - labels[:, None])
    away = np.minimum(away, N_STATES - away) if motion == "circular" else away
    return float((away <= N_STATES // 10).mean())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--atoms", help="8zpm.cif, for all parts but ab_initio")
    parser.add_argument("--volume", help="ribosome_70s_65.mrc, for ab_initio")
    parts = ("linear", "circular", "inference", "ab_initio", "unknown_poses", "tilt")
    parser.add_argument("--part", choices=parts, default="linear")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", help="rows whose description has this in it")
    parser.add_argument("--output", required=True)
    args = parser.parse_args()
    path = args.volume if args.part == "ab_initio" else args.atoms
    if path is None:
        parser.error(f"part {args.part} needs {'--volume' if args.part == 'ab_initio' else '--atoms'}")
    done = []
    if os.path.exists(args.output):
        with open(args.output) as file:
            done = [json.loads(line) for line in file]
    for task in tasks(args.part, args.seeds):
        key = dict(zip(KEY, task))
        known = any(all(row[name] == key[name] for name in KEY) for row in done)
        if known or (args.only and args.only not in json.dumps(key)):
            continue
        row = key | run(path, *task)
        print(json.dumps(row), flush=True)
        with open(args.output, "a") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
