"""Common lines: how many are found, of few images too, shifts from them, seconds and memory.

    python benchmarks/common_lines.py --volume ribosome_70s_65.mrc --output benchmarks/results/common_lines.json

65 px, 5 A, uniform views, one thread; settings were chosen on data seeds 101 to 103 of the 70S. "right" is the
share of pairs both of whose angles are within 10 degrees. The paper's shares (Aizenbud, Shkolnisky 2019) are of 5000
images of another volume. Parts:

* "lines": 1000 images, seeds 0 to 4, both scores; "large": 5000 images, CPU seconds and peak memory of a process of its
  own, images made beforehand.
* "few": 10 to 80 images, both scores.
* "shifts": 500 images off centre, of rotations that are known: root mean square error of shifts in pixels, up to a
  shift of the particle in space, as centred, from relative shifts along lines, and twice from the lines that rotations
  predict; and the share of right lines before and after.

Rows are added as they are finished, and a run goes on where it was stopped.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time

import numpy as np

from skcryo.datasets import make_molecule, make_particles
from skcryo.io import load_volume
from skcryo.metrics import common_line_detection_rate
from skcryo.orientation import RadialLines, detect_common_lines, shifts_from_common_lines
from skcryo.preprocessing import Centerer, PhaseFlipper

PAPER = {1.0: 0.91, 0.5: 0.76, 0.15: 0.38, 0.1: 0.23, 0.05: 0.16}
MOLECULES = ("70S", "make_molecule")
KEY = ("part", "molecule", "preset", "n", "snr", "seed", "score")


def cases():
    for seed in range(5):
        for molecule in MOLECULES:
            for snr in PAPER:
                yield "lines", molecule, "paper", 1000, snr, seed, "likelihood"
    yield "large", "70S", "paper", 5000, 0.15, 0, "likelihood"
    yield "large", "70S", "paper", 5000, 1.0, 0, "likelihood"
    for seed in range(3):
        for molecule in MOLECULES:
            for n in (10, 20, 40, 80):
                for snr in (5.0, 1.0, 0.3):
                    for score in ("likelihood", "correlation"):
                        yield "few", molecule, "paper", n, snr, seed, score
    for preset, snr in (("shifted", 0.5), ("shifted", 0.12), ("ctf", 0.5), ("ctf", 0.12)):
        for molecule in MOLECULES:
            yield "shifts", molecule, preset, 500, snr, 0, "likelihood"
    for molecule in MOLECULES:
        for snr in PAPER:
            yield "lines", molecule, "paper", 1000, snr, 0, "correlation"


def volume(molecule, path):
    return load_volume(path)[0] if molecule == "70S" else make_molecule(65)


def measure(stack, truth, part, score):
    if part == "shifts":
        return measure_shifts(stack, truth)
    start = time.process_time()
    found = detect_common_lines(stack, score=score, n_jobs=1)
    seconds = time.process_time() - start
    return {"right": common_line_detection_rate(found.angles, truth.rotations), "cpu_s": seconds}


def measure_shifts(stack, truth):
    def right(found):
        return common_line_detection_rate(found.angles, truth.rotations)

    axes = np.swapaxes(truth.rotations[:, :, :2], 1, 2).reshape(-1, 3)

    def error(shifts):
        off = (shifts - truth.shifts).ravel()
        off = off - axes @ np.linalg.lstsq(axes, off, rcond=None)[0]
        return float(np.sqrt(2 * np.mean(off**2)))

    stack = stack.replace(rotations=None, shifts=None)
    row = {"oracle_right": right(detect_common_lines(stack, shifts=truth.shifts, n_jobs=1))}
    row |= {"none_px": error(np.zeros((len(stack), 2)))}
    flipped = stack if stack.ctf is None else PhaseFlipper().transform(stack)
    shifts = Centerer(max_shift=4).fit(flipped).estimate_shifts(flipped)
    row |= {"centred_px": error(shifts)}
    lines = RadialLines.from_images(stack, shifts=shifts)
    found = detect_common_lines(lines, max_shift=1, n_jobs=1)
    row |= {"right": right(found), "relative_px": error(shifts + shifts_from_common_lines(found))}
    for _ in range(2):
        shifts = shifts + shifts_from_common_lines(lines, truth.rotations, n_jobs=1)
        lines = RadialLines.from_images(stack, shifts=shifts)
    row |= {"rotations_px": error(shifts), "right_again": right(detect_common_lines(lines, n_jobs=1))}
    return row


def run(case, path):
    part, molecule, preset, n, snr, seed, score = case
    stack, truth = make_particles(volume(molecule, path), n, snr=snr, preset=preset, random_state=seed)
    row = dict(zip(KEY, case))
    if part == "lines" and score == "likelihood":
        row["paper"] = PAPER[snr]
    row |= measure(stack, truth, part, score)
    if part == "large":
        row["peak_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volume", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--part", choices=["lines", "large", "few", "shifts"])
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case is not None:
        print(json.dumps(run(arguments.case, arguments.volume)))
        return
    rows = json.load(open(arguments.output)) if os.path.exists(arguments.output) else []
    done = {tuple(row[name] for name in KEY) for row in rows}
    for case in cases():
        if case in done or (arguments.part is not None and case[0] != arguments.part):
            continue
        if case[0] == "large":
            command = [
                sys.executable,
                __file__,
                "--volume",
                arguments.volume,
                "--output",
                "",
                "--case",
                json.dumps(case),
            ]
            row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        else:
            row = run(case, arguments.volume)
        rows.append(row)
        with open(arguments.output + ".part", "w") as file:
            file.write("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
        os.replace(arguments.output + ".part", arguments.output)
        print(row, flush=True)


if __name__ == "__main__":
    main()
