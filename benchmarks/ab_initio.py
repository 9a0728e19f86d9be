"""Ab initio volumes: pose errors, verdicts and CPU seconds for two molecules and every preset, beside the oracle.

    python benchmarks/ab_initio.py --volume ribosome_70s_65.mrc --output benchmarks/results/ab_initio.csv

2000 images of 64 px, 5 A, under the standard spectrum; five data seeds and two start seeds each. Settings chosen on
data seeds 101 to 103. The oracle refines from the true poses against the true volume. Rows are added as they are
finished, and a run goes on where it was stopped. Junk images do not count for pose errors. With --atoms, a density
straight from atoms as well (2 A pixels, its own spectrum), data seeds 0 to 2.
"""

import argparse
import csv
import os
import time
import warnings

import numpy as np
from joblib import Parallel, delayed
from sklearn.metrics import roc_auc_score

from skcryo.alignment import FourierImages, refine_poses
from skcryo.datasets import make_molecule, make_particles, volume_from_atoms
from skcryo.fourier import fourier_crop
from skcryo.io import load_volume
from skcryo.metrics import pose_error
from skcryo.preprocessing import noise_spectrum
from skcryo.projection import VolumeProjector
from skcryo.reconstruction import AbInitioVolume

PIXEL_SIZE = 5.0
ATOMS_PIXEL_SIZE = 2.0
CASES = [("paper", 0.12), ("shifted", 0.12), ("ctf", 0.12), ("ctf", 0.05), ("experimental", 0.12)]
FIELDS = [
    "molecule", "preset", "snr", "n", "data_seed", "start_seed", "mean", "median", "above_20", "oracle_mean",
    "shift_px", "converged", "n_starts", "junk_auc", "held_out_mean", "resolution_px", "cpu_s", "wall_s",
]


def make(molecule, path, preset, snr, n, seed):
    pixel_size = PIXEL_SIZE
    if molecule == "70S":
        volume = fourier_crop(load_volume(path)[0].astype(np.float32), 64, ndim=3)
    elif molecule == "8ZPM":
        pixel_size = ATOMS_PIXEL_SIZE
        volume = volume_from_atoms(path, 64, pixel_size)
    else:
        volume = make_molecule(64, random_state=1)
    return volume, *make_particles(volume, n, preset=preset, snr=snr, pixel_size=pixel_size, random_state=seed)


def oracle(volume, stack, truth):
    """Pose errors from the true start against the true volume."""
    images = FourierImages.from_stack(stack, noise_spectrum(stack), 20, ctf=stack.ctf, pixel_size=stack.pixel_size)
    fit = refine_poses(
        images, VolumeProjector(volume), truth.rotations, truth.shifts, contrast_std=0.2, n_steps=5,
    )
    good = ~truth.is_junk
    return pose_error(fit.rotations[good], truth.rotations[good]).mean


def shift_error(rotations, shifts, truth, errors, good):
    """Median error of shifts, the origin of the volume taken out."""
    right = errors < 20
    rows, difference = np.swapaxes(rotations[good][:, :, :2], 1, 2), shifts[good] - truth.shifts[good]
    origin = np.linalg.lstsq(rows[right].reshape(-1, 3), difference[right].reshape(-1), rcond=None)[0]
    return np.median(np.linalg.norm(difference - rows @ origin, axis=1))


def task(molecule, path, preset, snr, n, data_seed, start_seed, held_out):
    volume, stack, truth = make(molecule, path, preset, snr, n + held_out, data_seed)
    fitted = stack[:n]
    before, wall = time.process_time(), time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        settings = {"max_shift": 0} if preset == "paper" else {}
        ab_initio = AbInitioVolume(random_state=start_seed, n_jobs=1, **settings).fit(fitted)
    cpu, wall = time.process_time() - before, time.perf_counter() - wall
    good = ~truth.is_junk[:n]
    errors = pose_error(ab_initio.rotations_[good], truth.rotations[:n][good])
    seen = type(truth)(shifts=truth.shifts[:n], rotations=truth.rotations[:n], is_junk=truth.is_junk[:n])
    auc = held = ""
    if truth.is_junk.any():
        auc = round(roc_auc_score(good, ab_initio.score_samples(fitted)), 4)
    if held_out:
        rows = slice(n, None)
        both = np.concatenate([ab_initio.rotations_[good], ab_initio.predict(stack[rows])[~truth.is_junk[rows]]])
        true = np.concatenate([truth.rotations[:n][good], truth.rotations[rows][~truth.is_junk[rows]]])
        held = round(pose_error(both, true).errors[good.sum() :].mean(), 3)
    row = [
        molecule, preset, snr, n, data_seed, start_seed, round(errors.mean, 3), round(errors.median, 3),
        round((errors.errors > 20).mean(), 4), round(oracle(volume, fitted, seen), 3),
        round(shift_error(ab_initio.rotations_, ab_initio.shifts_, seen, errors.errors, good), 3), ab_initio.converged_,
        len(ab_initio.start_scores_), auc, held, round(ab_initio.resolution_pixels_, 2), round(cpu, 1), round(wall, 1),
    ]
    return dict(zip(FIELDS, row, strict=True))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volume", required=True, help="MRC of the 70S ribosome, 65 px")
    parser.add_argument("--atoms", help="8zpm.cif, for the density straight from atoms")
    parser.add_argument("--output", required=True)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--data-seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--start-seeds", type=int, nargs="+", default=[0, 1])
    args = parser.parse_args()
    tasks = []
    for start_seed in args.start_seeds:
        first = start_seed == args.start_seeds[0]
        for data_seed in args.data_seeds:
            for preset, snr in CASES:
                for molecule in ("70S", "make_molecule"):
                    # with images beyond those fitted, for one start of each
                    tasks.append((molecule, preset, snr, 2000, data_seed, start_seed, 1000 if first else 0))
            if first:
                tasks += [(m, "paper", np.inf, 1000, data_seed, start_seed, 0) for m in ("70S", "make_molecule")]
    if args.atoms:
        tasks += [("8ZPM", "paper", snr, 2000, seed, 0, 0) for snr in (0.5, 0.12) for seed in args.data_seeds[:3]]
    done = set()
    if os.path.exists(args.output):
        with open(args.output, newline="") as file:
            done = {tuple(row[name] for name in FIELDS[:6]) for row in csv.DictReader(file)}
    tasks = [t for t in tasks if tuple(map(str, t[:6])) not in done]
    with open(args.output, "a", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        if not done:
            writer.writeheader()
        results = Parallel(n_jobs=args.jobs, return_as="generator_unordered")(
            delayed(task)(t[0], args.atoms if t[0] == "8ZPM" else args.volume, *t[1:]) for t in tasks
        )
        for row in results:
            writer.writerow(row)
            file.flush()
            print(*row.values(), flush=True)


if __name__ == "__main__":
    main()
