"""Classes from common lines: precision (definition 7) of what `CommonLinesMaxCut` finds in simulated particles.

    python benchmarks/common_lines_max_cut.py --part precision --volume ribosome_70s_65.mrc --output ...

65 px, centred, white noise, no CTF (preset "paper"); settings chosen on data seeds 101 to 103. The second molecule is
the first plus a soft ball 20 px off its centre (the third: a ball elsewhere) of 9.8 % of its energy, radius 5 px
("small": 2.5 %, 4 px); "hinge": `make_molecule` with one domain turned by 20 degrees. Parts:

* precision: 1000 images (900 of three classes), two molecules, seeds 0 to 4.
* modes: algorithm 2 as printed and cuts of likelihoods, beside the default of the first part.
* paper: the paper's own sizes, 5000 images or 3 x 1500, with its precision beside; wall seconds on ``--jobs`` threads.
* presets: 2000 images with shifts, CTFs, coloured noise and junk, started from `AbInitioVolume` (in the seconds).
* states: 2000 images of the hinge, 64 px; volumes that `FourierReconstructor` makes of the classes, beside both truths.
* atoms: 8ZPM at 2 A straight from atoms, its own spectrum, 64 px, with the ball; 1000 images.

Rows are added as they are finished; a run goes on where it was stopped. ``--table`` prints medians as Markdown.
"""

import argparse
import json
import os
import time
import warnings

import numpy as np
from heterogeneity_classes import into_frame
from sklearn.exceptions import ConvergenceWarning

from skcryo.datasets import make_molecule, make_particles, volume_from_atoms
from skcryo.heterogeneity import CommonLinesMaxCut
from skcryo.io import atomic_path, load_volume
from skcryo.metrics import fsc, fsc_area, fsc_resolution, partition_precision, pose_error
from skcryo.reconstruction import AbInitioVolume, FourierReconstructor

L, PIXEL_SIZE, ATOMS_PIXEL_SIZE = 65, 5.0, 2.0
BALLS = [(0, -20, 0), (-17, 10, 0)]  # (x, y, z) from the centre
LARGE, SMALL, NONE = (0.098, 5), (0.025, 4), (0.0, 5)
PAPER = {
    "2500+2500": {1: 1.0, 0.5: 1.0, 0.15: 0.960, 0.1: 0.861, 0.05: 0.846, 0.02: 0.636},
    "4000+1000": {1: 0.98, 0.5: 0.66, 0.15: 0.43, 0.1: 0.41, 0.05: 0.39, 0.02: 0.33},
    "3x1500": {1: 0.963, 0.5: 0.935, 0.15: 0.888, 0.1: 0.33},
}
PROPORTIONS = {"2500+2500": [0.5, 0.5], "4000+1000": [0.8, 0.2], "3x1500": [1 / 3] * 3}
KEY = ("part", "molecule", "case", "snr", "refine", "seed")


def states(part, molecule, n_classes, ball, path):
    """Volumes of the classes."""
    if molecule == "hinge":
        box = 64 if part == "states" else L
        return np.stack([make_molecule(box, random_state=1), make_molecule(box, random_state=1, hinge=20)])
    if molecule == "8ZPM":
        first = volume_from_atoms(path, 64, ATOMS_PIXEL_SIZE)
    elif molecule == "70S":
        first = load_volume(path)[0].astype(np.float32)
        first = first / np.abs(first).max()
    else:
        first = make_molecule(L, random_state=1)
    share, radius = ball
    place = np.arange(len(first)) - len(first) // 2
    volumes = [first]
    for x, y, z in BALLS[: n_classes - 1]:
        distance = np.sqrt((place[:, None, None] - z) ** 2 + (place[:, None] - y) ** 2 + (place - x) ** 2)
        added = np.clip(radius + 0.5 - distance, 0, 1)
        volumes.append(first + np.sqrt(share * np.square(first).sum() / np.square(added).sum()) * added)
    return np.stack(volumes).astype(np.float32)


def tasks(part, seeds):
    """(molecule, case, number of classes, ball, proportions, SNR, number of images, refine, seed)."""
    even, uneven, third = [0.5, 0.5], [0.8, 0.2], [1 / 3] * 3
    if part == "precision":
        rows = [("balanced", 2, LARGE, even, snr, 1000) for snr in (0.5, 0.15, 0.1, 0.05)]
        rows += [("80/20", 2, LARGE, uneven, snr, 1000) for snr in (0.5, 0.15, 0.1, 0.05)]
        rows += [("three", 3, LARGE, third, snr, 900) for snr in (0.5, 0.1, 0.05)]
        rows += [("small", 2, SMALL, even, snr, 1000) for snr in (0.5, 0.15)]
        rows += [("identical", 2, NONE, even, snr, 1000) for snr in (0.5, 0.1)]
        rows = [(molecule, *row, "em") for row in rows for molecule in ("70S", "molecule")]
        rows.append(("hinge", "balanced", 2, None, even, 0.15, 1000, "em"))
    elif part == "modes":
        rows = [("balanced", 2, LARGE, even, snr, 1000) for snr in (0.5, 0.15, 0.1, 0.05)]
        rows += [("80/20", 2, LARGE, uneven, snr, 1000) for snr in (0.5, 0.15)]
        rows += [("three", 3, LARGE, third, snr, 900) for snr in (0.5, 0.1)]
        rows = [("70S", *row, refine) for row in rows for refine in (None, "likelihood")]
    elif part == "presets":
        rows = [
            ("70S", f"{preset} {name}", 2, LARGE, shares, 0.12, 2000, "em")
            for preset, name, shares in (
                ("shifted", "80/20", uneven),
                ("ctf", "50/50", even),
                ("experimental", "50/50", even),
            )
        ]
    elif part == "states":
        rows = [("hinge", "balanced", 2, None, even, 0.15, 2000, "em")]
    elif part == "atoms":
        rows = [("8ZPM", "balanced", 2, LARGE, even, snr, 1000, "em") for snr in (0.5, 0.15)]
    else:
        rows = [
            ("70S", case, len(shares), LARGE, shares, snr, 4500 if case == "3x1500" else 5000, "em")
            for case, shares in PROPORTIONS.items()
            for snr in PAPER[case]
        ]
    return [(*row, seed) for seed in seeds for row in rows]


def run(part, path, molecule, case, n_classes, ball, proportions, snr, n_images, refine, seed, n_jobs):
    volumes = states(part, molecule, n_classes, ball, path)
    preset = case.split()[0] if part == "presets" else "paper"
    pixel_size = ATOMS_PIXEL_SIZE if part == "atoms" else PIXEL_SIZE
    stack, truth = make_particles(
        volumes, n_images, preset=preset, snr=snr, pixel_size=pixel_size, proportions=proportions, random_state=seed
    )
    init = AbInitioVolume(n_jobs=n_jobs, random_state=seed) if part == "presets" else "lud"
    wall, cpu = time.perf_counter(), time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = CommonLinesMaxCut(n_classes, refine=refine, init=init, n_jobs=n_jobs, random_state=seed).fit(stack)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    good = ~truth.is_junk
    table = np.zeros((n_classes, n_classes), dtype=int)
    np.add.at(table, (found.labels_[good], truth.labels[good]), 1)
    row = dict(zip(KEY, (part, molecule, case, snr, refine, seed))) | {
        "n_images": n_images,
        "precision": partition_precision(truth.labels[good], found.labels_[good]),
        "confusion": table.tolist(),
        "converged": found.converged_,
        "ratio": found.cut_value_ / found.upper_bound_,
        "n_iter": found.n_iter_,
        "shares": found.class_shares_.round(4).tolist(),
        "cpu_s": round(cpu, 1),
        "wall_s": round(wall, 1),
        "pose_error": pose_error(found.rotations_[good], truth.rotations[good]).mean,
    }
    if refine == "em":
        pairs = np.triu_indices(n_classes, 1)
        row["separation"] = found.separation_[pairs].round(4).tolist()
        row["separation_error"] = found.separation_error_[pairs].round(4).tolist()
    if part == "paper":
        row["paper"] = PAPER[case][snr]
    if part == "states":
        row["volumes"] = beside_truth(found, stack, truth, volumes)
    return row


def beside_truth(found, stack, truth, volumes):
    """For each class, where FSC falls to 0.5 in pixels, and the area below it, with its own truth and the other."""
    posed = stack.replace(rotations=found.rotations_, shifts=found.shifts_)
    order = [0, 1] if (found.labels_ == truth.labels).mean() > 0.5 else [1, 0]
    measured = []
    for own, k in enumerate(order):
        made = FourierReconstructor(random_state=0).fit(posed[np.flatnonzero(found.labels_ == k)]).volume_
        made = into_frame(made, found.rotations_, found.shifts_, truth)
        curves = {"own": fsc(made, volumes[own]), "other": fsc(made, volumes[1 - own])}
        measured.append(
            {
                name: {"resolution_px": float(fsc_resolution(curve, 0.5)), "area": float(fsc_area(curve, 20))}
                for name, curve in curves.items()
            }
        )
    return measured


def print_table(rows):
    groups = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in KEY[:-1]), []).append(row)
    names = [*KEY[:-1], "precision, median (all)", "told apart", "pose error, degrees", "CPU s", "wall s"]
    print("|", " | ".join(names), "|")
    print("|" + "---|" * len(names))
    for key, group in groups.items():
        values = [row["precision"] for row in group]
        told = sum(row["converged"] for row in group)
        medians = [np.median([row[name] for row in group]) for name in ("pose_error", "cpu_s", "wall_s")]
        beside = f", paper {group[0]['paper']:.3f}" if "paper" in group[0] else ""
        print(
            "|",
            " | ".join(str(part) for part in key),
            "|",
            f"{np.median(values):.3f}{beside} ({' '.join(f'{value:.3f}' for value in values)})",
            "|",
            f"{told} of {len(group)}",
            "|",
            " | ".join(f"{value:.1f}" for value in medians),
            "|",
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["precision", "modes", "paper", "presets", "states", "atoms"], required=True)
    parser.add_argument("--volume", required=True, help="MRC of the 70S ribosome, 65 px; of part atoms 8zpm.cif")
    parser.add_argument("--output", required=True)
    parser.add_argument("--jobs", type=int, default=1, help="threads")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--seconds", type=float, default=np.inf, help="begin no further row after so many")
    parser.add_argument("--table", action="store_true", help="print what there is, run nothing")
    args = parser.parse_args()
    rows = []
    if os.path.exists(args.output):
        with open(args.output) as file:
            rows = json.load(file)
    if args.table:
        return print_table(rows)
    done, start = {tuple(row[name] for name in KEY) for row in rows}, time.perf_counter()
    for task in tasks(args.part, args.seeds):
        molecule, case, _, _, _, snr, _, refine, seed = task
        if (args.part, molecule, case, snr, refine, seed) in done:
            continue
        if time.perf_counter() - start > args.seconds:
            break
        row = run(args.part, args.volume, *task, args.jobs)
        rows.append(row)
        with atomic_path(args.output, overwrite=True) as temporary, open(temporary, "w") as file:
            json.dump(rows, file, indent=1)
        print({name: row[name] for name in row if name != "confusion"}, flush=True)


if __name__ == "__main__":
    main()
