"""Quality of 2-D classes: within-class viewing angles for every metric, start and preset.

    python benchmarks/quality_classes.py --volume ribosome_70s_65.mrc --output benchmarks/results/quality_classes.csv

Two asymmetric molecules under the standard spectrum (a 70S ribosome map, resampled to 128 px, and `make_molecule`),
three seeds each, 2000 images of 128 px, 40 classes, SNR as mean square over all pixels (equation 10 of the Wasserstein
k-means paper). Settings were chosen on other seeds (101-103) of other molecules (`make_molecule` 5 and 7).
"""

import argparse
import csv
import time
import warnings

import numpy as np
from joblib import Parallel, delayed

from skcryo.cluster import RotInvWassersteinKMeans
from skcryo.datasets import make_molecule, make_particles
from skcryo.fourier import fourier_pad
from skcryo.io import load_volume
from skcryo.metrics import occupancy_entropy, view_coherence

SIZE, N_IMAGES, N_CLUSTERS, PIXEL_SIZE = 128, 2000, 40, 2.5
PAPER = {"max_shift": 0, "balance": 0, "max_iter": 50}
VARIANTS = {
    "w1, random": {"metric": "w1", "init": "random", **PAPER},
    "w1, k-means++": {"metric": "w1", **PAPER},
    "sobolev, random": {"metric": "sobolev", "init": "random", **PAPER},
    "sobolev, k-means++": {"metric": "sobolev", **PAPER},
    "l2 low-passed, random": {"metric": "l2", "init": "random", **PAPER},
    "l2 low-passed, k-means++": {"metric": "l2", **PAPER},
    "l2 plain, random": {"metric": "l2", "lowpass": None, "init": "random", **PAPER},
    "l2 plain, k-means++": {"metric": "l2", "lowpass": None, **PAPER},
    "default, max_shift=0": {"max_shift": 0},
    "default": {},
}
FIELDS = ["molecule", "preset", "snr", "seed", "variant", "median", "under_20", "entropy", "n_iter", "cpu_s"]


def volume(molecule, path):
    if molecule == "70S":
        return fourier_pad(load_volume(path)[0].astype(np.float32), SIZE, ndim=3)
    return make_molecule(SIZE, random_state=1)


def task(molecule, path, preset, snr, seed, variants):
    stack, truth = make_particles(
        volume(molecule, path), N_IMAGES, preset=preset, snr=1 / snr, snr_definition="power", pixel_size=PIXEL_SIZE,
        random_state=seed,
    )
    rows = []
    for name in variants:
        start = time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            kmeans = RotInvWassersteinKMeans(N_CLUSTERS, random_state=seed, **VARIANTS[name]).fit(stack)
        used = np.where(truth.is_junk, -1, kmeans.labels_) if preset == "experimental" else kmeans.labels_
        views = view_coherence(used, truth.rotations)
        rows.append(dict(zip(FIELDS, [
            molecule, preset, f"1/{snr}", seed, name, round(views.median, 2), round(views.share_under(20), 4),
            round(occupancy_entropy(kmeans.labels_, N_CLUSTERS), 4), kmeans.n_iter_,
            round(time.process_time() - start, 1),
        ])))
        print(*rows[-1].values(), flush=True)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volume", required=True, help="MRC of the 70S ribosome, 65 px")
    parser.add_argument("--output", required=True)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--part", choices=["paper", "presets"], nargs="+", default=["paper", "presets"])
    parser.add_argument("--presets", nargs="+", default=["paper", "shifted", "ctf", "experimental"])
    args = parser.parse_args()
    tasks = []
    for seed in args.seeds:
        for molecule in ("70S", "make_molecule"):
            if "paper" in args.part:
                for snr in (16, 12, 8):
                    variants = [v for v in VARIANTS if v != "default"]
                    tasks.append((molecule, args.volume, "paper", snr, seed, variants))
            if "presets" in args.part:
                for preset in args.presets:
                    tasks.append((molecule, args.volume, preset, 16, seed, ["default"]))
    # loky leaves each of its processes cores / n_jobs threads
    results = Parallel(n_jobs=args.jobs, backend="loky")(delayed(task)(*t) for t in tasks)
    rows = sorted((row for part in results for row in part), key=lambda r: tuple(map(str, r.values())))
    with open(args.output, "w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
