"""Exactness of the search of the wavelet earth mover's distance: every image, iterations 0 to 3, every instruction set.

    python benchmarks/exactness_classes.py --angles 60 --max-shift 2 --output benchmarks/results/exactness_classes.json

Images of 128 px of `make_molecule` 1 in three data sets: clean; SNR 1/16; CTF and shifts at SNR 1/16. Centres are raw
images first, then three times the averages that the assignment leads to, with the penalties of classes of a balanced
fit. The pruned search, which is given the assignment of the iteration before, must find the class, angle, shift and
distance that :func:`match_brute_force` finds by computing all distances, to the last bit.
"""

import argparse
import json
import time

import numpy as np

from skcryo._ext import _emd as kernels
from skcryo.alignment import class_averages
from skcryo.cluster._emd import EMDMatcher, match_brute_force
from skcryo.datasets import make_molecule, make_particles

SIZE, PIXEL_SIZE, SEED = 128, 2.5, 0
DATA = {
    "clean": {"preset": "paper", "snr": None},
    "SNR 1/16": {"preset": "paper", "snr": 1 / 16, "snr_definition": "power"},
    "CTF and shifts": {"preset": "ctf", "snr": 1 / 16, "snr_definition": "power"},
}
FACTS = ("labels", "angles", "shifts", "distances")


def compare(name, n_images, n_clusters, n_angles, max_shift, n_threads):
    """One row for every iteration: on how many images search and brute force differ, in what, and the time of each."""
    volume = make_molecule(SIZE, random_state=1)
    stack, _ = make_particles(volume, n_images, pixel_size=PIXEL_SIZE, random_state=SEED, **DATA[name])
    images = np.asarray(stack)
    matcher = EMDMatcher(SIZE, n_angles=n_angles, max_shift=max_shift, n_threads=n_threads)
    features = matcher.prepare(images, stack.ctf, PIXEL_SIZE)
    rng = np.random.default_rng(SEED)
    centres = images[rng.choice(n_images, n_clusters, replace=False)]
    previous, bias, rows = None, np.zeros(n_clusters), []
    for iteration in range(4):
        start = time.perf_counter()
        found = matcher.match(features, centres, previous=previous, bias=bias)
        searched = time.perf_counter()
        expected = match_brute_force(matcher, features, centres, bias=bias)
        end = time.perf_counter()
        row = {"iteration": iteration, "images": n_images, "shifts": len(matcher.shifts)}
        for fact in FACTS:
            ours, theirs = getattr(found, fact), getattr(expected, fact)
            different = (ours != theirs).reshape(n_images, -1).any(axis=1)
            row[f"different_{fact}"] = int(different.sum())
        rows.append(row | {"search_s": round(searched - start, 2), "brute_force_s": round(end - searched, 2)})
        previous = found.labels, found.angles, found.shifts
        bias = rng.uniform(0, 0.02, n_clusters) * np.median(found.distances)
        averages, totals = class_averages(
            images, found.labels, found.angles, found.shifts, n_clusters, ctf=stack.ctf, pixel_size=PIXEL_SIZE,
            n_jobs=n_threads,
        )
        centres = np.where(totals[:, None, None] > 0, averages, centres)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", required=True)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--angles", type=int, default=200)
    parser.add_argument("--max-shift", type=float, default=4.0, help="px, for the data set with shifts")
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    results = []
    for instruction_set in kernels.available_instruction_sets():
        before = kernels.use_instruction_set(instruction_set)
        for name in DATA:
            max_shift = args.max_shift if DATA[name]["preset"] == "ctf" else 0.0
            rows = compare(name, args.images, args.classes, args.angles, max_shift, args.jobs)
            for row in rows:
                results.append({"instruction_set": instruction_set, "data": name, **row})
                print(json.dumps(results[-1]), flush=True)
            settings = {**vars(args), "size": SIZE, "seed": SEED}
            settings.pop("output")
            with open(args.output, "w") as file:
                json.dump({"settings": settings, "results": results}, file, indent=1)
        kernels.use_instruction_set(before)
    different = sum(row[f"different_{fact}"] for row in results for fact in FACTS)
    print(f"{different} differences")
    raise SystemExit(different > 0)


if __name__ == "__main__":
    main()
