"""Poses from common lines: errors by lines alone and refined, lines that are right, held-out images, CPU seconds.

    python benchmarks/lud_rotations.py --volume ribosome_70s_65.mrc --output benchmarks/results/lud_rotations.csv
    python benchmarks/lud_rotations.py --volume ribosome_70s_65.mrc --aspire-python ASPIRE_ENV/bin/python \
        --output benchmarks/results/lud_rotations_aspire.csv

65 px, 5 A, uniform views; 8ZPM, a density straight from atoms with its own spectrum, 64 px of 2 A. Settings chosen on
data seeds 101 and 102 of the 70S ribosome. "lud" is `solve_lud` on the lines, "mean" LUDRotations with its refinement,
"half masked" the former with half of all pairs left out; the oracle refines from the true poses against the true
volume. Shifts are not known but for the rows "init", where a fitted AbInitioVolume gives them. CPU seconds of one
thread. Rows are added as they are finished, and a run goes on where it was stopped.

With --aspire-python, ASPIRE (installed in an environment of its own, never imported here) finds poses of the same 500
images, centred, by each of its settings; its shift search is off, which is to its advantage.
"""

import argparse
import csv
import os
import resource
import subprocess
import tempfile
import time
import warnings

import numpy as np

from skcryo.alignment import FourierImages, refine_poses
from skcryo.datasets import make_molecule, make_particles, volume_from_atoms
from skcryo.io import load_volume
from skcryo.metrics import common_line_detection_rate, pose_error
from skcryo.orientation import LUDRotations, equalized_weights, solve_lud
from skcryo.preprocessing import noise_spectrum
from skcryo.projection import VolumeProjector
from skcryo.reconstruction import AbInitioVolume

PIXEL_SIZE, ATOMS_PIXEL_SIZE = 5.0, 2.0
KEY = ["molecule", "preset", "snr", "n", "seed"]
FIELDS = [
    *KEY, "lines_right", "lines_agree", "lud", "mean", "median", "above_20", "oracle", "held_out", "shift_px",
    "converged", "n_rounds", "detect_s", "solve_s", "refine_s", "cpu_s", "peak_gb",
]
ASPIRE_FIELDS = ["snr", "seed", "method", "mean", "median", "cpu_s"]
ASPIRE = """
import logging, sys, time
import numpy as np
import aspire
logging.disable(logging.CRITICAL)
from aspire.abinitio import CLSyncVoting, CommonlineLUD
from aspire.source import ArrayImageSource
source = ArrayImageSource(np.load(sys.argv[1]), pixel_size=5.0)
settings = {"n_theta": 360, "max_shift": 0.0, "disable_gpu": True}
start = time.process_time()
if sys.argv[3] == "sync voting":
    method = CLSyncVoting(source, **settings)
else:
    method = CommonlineLUD(source, alpha=None if sys.argv[3] == "LUD" else 2 / 3, **settings)
found = method.estimate_rotations()
seconds = time.process_time() - start
np.savez(sys.argv[2], rotations=method.rotations if found is None else found, cpu_s=seconds, version=aspire.__version__)
"""


class Stopwatch:
    """CPU seconds of each kind of step of a fit."""

    def __init__(self):
        self.seconds = {}

    def setup(self, estimator, context):
        pass

    def teardown(self, estimator, context):
        pass

    def on_fit_task_begin(self, estimator, context):
        self._start = time.process_time()

    def on_fit_task_end(self, estimator, context):
        name = context.task_name
        self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - self._start


def make(args, molecule, preset, snr, n, seed):
    pixel_size = PIXEL_SIZE
    if molecule == "70S":
        volume = load_volume(args.volume)[0].astype(np.float32)
    elif molecule == "8ZPM":
        pixel_size = ATOMS_PIXEL_SIZE
        volume = volume_from_atoms(args.atoms, 64, pixel_size)
    else:
        volume = make_molecule(65, random_state=1)
    conditions = preset.split(",")[0]
    return volume, *make_particles(volume, n, preset=conditions, snr=snr, pixel_size=pixel_size, random_state=seed)


def oracle(volume, stack, truth, good):
    images = FourierImages.from_stack(stack, noise_spectrum(stack), 20, ctf=stack.ctf, pixel_size=stack.pixel_size)
    fit = refine_poses(
        images, VolumeProjector(volume), truth.rotations[: len(stack)], truth.shifts[: len(stack)], contrast_std=0.2,
        n_steps=5,
    )
    return pose_error(fit.rotations[good], truth.rotations[: len(stack)][good]).mean


def shift_error(rotations, shifts, truth, good):
    """Median error of shifts, the origin of the volume taken out."""
    rows, difference = np.swapaxes(rotations[good][:, :, :2], 1, 2), (shifts - truth.shifts[: len(shifts)])[good]
    origin = np.linalg.lstsq(rows.reshape(-1, 3), difference.reshape(-1), rcond=None)[0]
    return np.median(np.linalg.norm(difference - rows @ origin, axis=1))


def half_masked(lud, rotations):
    """Error by lines alone of half of the pairs."""
    lines = lud.common_lines_
    upper = np.triu(np.random.default_rng(0).uniform(size=lines.angles.shape) < 0.5, 1)
    checked = upper | upper.T
    weights = equalized_weights(lines.angles, lines.confidences, checked)
    return pose_error(solve_lud(lines.angles, weights=weights, checked=checked).rotations, rotations).mean


def task(args, molecule, preset, snr, n, seed):
    held_out = 0 if n > 2000 else 200
    volume, stack, truth = make(args, molecule, preset, snr, n + held_out, seed)
    fitted, good = stack[:n], ~truth.is_junk[:n]
    rotations = truth.rotations[:n]
    max_shift = 0.055 * stack.shape[1] if preset.split(",")[0] != "paper" else 0.0
    watch = Stopwatch()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        init = AbInitioVolume(n_jobs=1, random_state=0).fit(fitted) if preset.endswith(", init") else None
        before = time.process_time()
        lud = LUDRotations(init=init, max_shift=0.0 if init else max_shift, n_jobs=1, device="cpu")
        lud.set_callbacks(watch).fit(fitted)
        seconds = time.process_time() - before
        lines = lud.common_lines_
        weights = equalized_weights(lines.angles, lines.confidences, lines.checked)
        by_lines = solve_lud(lines.angles, weights=weights, checked=lines.checked)
    errors = pose_error(lud.rotations_[good], rotations[good])
    held = ""
    if held_out:
        rest = ~truth.is_junk[n:]
        both = np.concatenate([lud.rotations_[good], lud.predict(stack[n:])[rest]])
        true = np.concatenate([rotations[good], truth.rotations[n:][rest]])
        held = round(pose_error(both, true).errors[good.sum() :].mean(), 3)
    from_lines = half_masked(lud, rotations) if preset.endswith("half masked") else (
        pose_error(by_lines.rotations[good], rotations[good]).mean
    )
    return dict(zip(FIELDS, [
        molecule, preset, snr, n, seed,
        round(common_line_detection_rate(lines.angles, rotations), 4), round(lud.line_agreement_, 4),
        round(from_lines, 3), round(errors.mean, 3), round(errors.median, 3), round((errors.errors > 20).mean(), 4),
        round(oracle(volume, fitted, truth, good), 3), held,
        round(shift_error(lud.rotations_, lud.shifts_, truth, good), 3), lud.converged_, lud.n_rounds_,
        round(watch.seconds["common lines"], 2), round(watch.seconds["rotations"], 2),
        round(watch.seconds["round"], 2), round(seconds, 2),
        round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    ], strict=True))


def cases(args):
    rows = []
    for seed in args.seeds:
        for snr in (np.inf, 1.0, 0.5, 0.15, 0.1, 0.05):
            rows += [(molecule, "paper", snr, 1000, seed) for molecule in ("70S", "make_molecule")]
        rows.append(("70S", "paper, half masked", np.inf, 1000, seed))
        rows += [("8ZPM", "paper", snr, 1000, seed) for snr in (0.5, 0.15) if args.atoms]
        presets = ("shifted", "ctf", "experimental", "shifted, init", "ctf, init")
        rows += [("70S", preset, 0.12, 2000, seed) for preset in presets]
    rows.append(("70S", "paper", 0.1, 5000, 0))
    return rows


def aspire_task(args, snr, seed, method):
    """One row beside ASPIRE: by one of its settings, or by LUDRotations ("skcryo")."""
    _, stack, truth = make(args, "70S", "paper", snr, 500, seed)
    if method.startswith("skcryo"):
        refine = None if method.endswith("lines alone") else "volume"
        start = time.process_time()
        rotations = LUDRotations(refine=refine, n_jobs=1, device="cpu").fit(stack).rotations_
        seconds = time.process_time() - start
    else:
        with tempfile.TemporaryDirectory() as folder:
            data, out = os.path.join(folder, "images.npy"), os.path.join(folder, "out.npz")
            np.save(data, np.asarray(stack, np.float32))
            environment = os.environ | {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
            environment.pop("PYTHONPATH", None)
            command = [args.aspire_python, "-c", ASPIRE, data, out, method]
            subprocess.run(command, check=True, cwd=folder, env=environment, capture_output=True)
            with np.load(out) as found:
                rotations, seconds = found["rotations"].astype(np.float64), float(found["cpu_s"])
    errors = pose_error(rotations, truth.rotations)
    row = [snr, seed, method, round(errors.mean, 4), round(errors.median, 4), round(seconds, 2)]
    return dict(zip(ASPIRE_FIELDS, row, strict=True))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volume", required=True, help="MRC of the 70S ribosome, 65 px")
    parser.add_argument("--atoms", help="8zpm.cif, for the density straight from atoms")
    parser.add_argument("--output", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--only", nargs="+", help="presets, to make some of the rows")
    parser.add_argument("--aspire-python", help="interpreter of an environment with aspire")
    args = parser.parse_args()
    if args.aspire_python:
        fields, key, function = ASPIRE_FIELDS, ASPIRE_FIELDS[:3], aspire_task
        methods = ("skcryo", "skcryo, lines alone", "LUD", "LUD, alpha 2/3", "sync voting")
        todo = [(snr, seed, m) for seed in args.seeds for snr in (np.inf, 0.5, 0.15) for m in methods]
    else:
        fields, key, function = FIELDS, KEY, task
        todo = [case for case in cases(args) if not args.only or case[1] in args.only]
    done = set()
    if os.path.exists(args.output):
        with open(args.output, newline="") as file:
            done = {tuple(row[name] for name in key) for row in csv.DictReader(file)}
    with open(args.output, "a", newline="") as file:
        writer = csv.DictWriter(file, fields)
        if not done:
            writer.writeheader()
        for case in todo:
            if tuple(map(str, case)) not in done:
                row = function(args, *case)
                writer.writerow(row)
                file.flush()
                print(*row.values(), flush=True)


if __name__ == "__main__":
    main()
