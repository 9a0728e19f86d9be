"""In-plane alignment of raw particles: how pure classes, how exact angles and shifts, how fast; and what is left for
statistical manifold learning of images aligned by it.

    python benchmarks/in_plane_aligner.py --volume ribosome_70s_65.mrc --output benchmarks/results/in_plane_aligner.json
    python benchmarks/in_plane_aligner.py --volume ribosome_70s_65.mrc --output ... --end-to-end

70S ribosome at 65 px and a made molecule at 64 px under the same spectrum; uniform views, any in-plane angle, shifts
uniform within 3 px in x and in y, white noise, SNR over the full image (with CTFs, of filtered images: 1.0 to 2.5 um,
astigmatism up to 10 %). Settings chosen on data seed 101 of the 70S ribosome, seeds 0-2 here. Of 2000 images in 50
classes: "alive" counts classes of at least a fifth of an equal share; "effective" is the exponential of the entropy
of the occupancy; "f15" the share of pairs of images of one class whose viewing directions are within 15 degrees;
"in_plane" the median error, degrees, of the turn between such two; "shift" the median distance, px, of images' centres
from the median of their class. Seconds are CPU seconds of one thread for the whole fit.

``--end-to-end``: 10000 images with CTFs, preset "ctf", aligned and then classified by SML, beside SML of the same
images turned and centred by the truth (ZYZ angles with psi = 0). Rows are added as they are finished, and a run goes on
where it was stopped.
"""

import argparse
import json
import time
import warnings
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation
from sklearn.exceptions import ConvergenceWarning

from skcryo.cluster import SMLClustering
from skcryo.ctf import rotate_ctf
from skcryo.datasets import ImagingConditions, make_molecule, make_particles
from skcryo.io import load_volume
from skcryo.metrics import class_view_angles, effective_n_classes
from skcryo.preprocessing import InPlaneAligner
from skcryo.preprocessing._in_plane_aligner import turn_back
from skcryo.rotations import in_plane_rotation

CASES = [(0.1, False), (0.05, False), (0.02, False), (0.05, True)]  # SNR, CTF
SHIFT = 3.0  # px


def simulate(volume, n_images, snr, with_ctf, seed):
    conditions = ImagingConditions(max_shift=SHIFT / volume.shape[0], ctf=with_ctf)
    return make_particles(volume, n_images, preset=conditions, snr=snr, random_state=seed)


def purity(labels, truth):
    angles = class_view_angles(labels, truth.rotations)
    return round(float((angles <= 15).mean()), 3), round(float(effective_n_classes(labels)), 1)


def pose_errors(aligner, truth):
    """Median in-plane error (degrees) of pairs of similar views in a class, and of shifts in a class (px)."""
    turns, shifts = [], []
    for label in np.unique(aligner.labels_):
        i = np.flatnonzero(aligner.labels_ == label)
        angles, R = aligner.angles_[i], truth.rotations[i]
        between = np.einsum("nba,mbc->nmac", R, R)
        turn = np.arctan2(between[..., 1, 0] - between[..., 0, 1], between[..., 0, 0] + between[..., 1, 1])
        wrong = (turn - (angles[:, None] - angles) + np.pi) % (2 * np.pi) - np.pi
        similar = (between[..., 2, 2] > np.cos(np.radians(15))) & ~np.eye(len(i), dtype=bool)
        turns.append(np.abs(np.degrees(wrong[similar])))
        left = np.einsum("nij,nj->ni", in_plane_rotation(-angles)[:, :2, :2], (aligner.shifts_ - truth.shifts)[i])
        shifts.append(np.hypot(*(left - np.median(left, axis=0)).T))
    return round(float(np.median(np.concatenate(turns))), 2), round(float(np.median(np.concatenate(shifts))), 2)


def align(stack, truth, n_classes):
    start = time.process_time()
    aligner = InPlaneAligner(n_classes, n_jobs=1, random_state=0).fit(stack)
    seconds = time.process_time() - start
    counts = np.bincount(aligner.labels_, minlength=n_classes)
    f15, effective = purity(aligner.labels_, truth)
    in_plane, shift = pose_errors(aligner, truth)
    alive = int((counts >= 0.2 * len(stack) / n_classes).sum())
    scores = {"f15": f15, "alive": alive, "effective": effective, "in_plane": in_plane, "shift": shift}
    return aligner, scores | {"n_iter": aligner.n_iter_, "converged": aligner.converged_, "cpu_s": round(seconds, 1)}


def by_truth(stack, truth):
    psi = Rotation.from_matrix(truth.rotations).as_euler("ZYZ")[:, 2]
    return stack.replace(data=turn_back(np.asarray(stack), -psi, truth.shifts), ctf=rotate_ctf(stack.ctf, psi))


def sml(stack, truth, n_clusters):
    start = time.process_time()
    labels = SMLClustering(n_clusters, random_state=0).fit(stack).labels_
    seconds = round(time.process_time() - start, 1)
    return dict(zip(("f15", "effective"), purity(labels, truth))) | {"cpu_s": seconds}


class Rows:
    """Rows of a JSON file; those that are there are not made again."""

    def __init__(self, path):
        self.path = Path(path)
        self.rows = json.loads(self.path.read_text()) if self.path.exists() else []

    def __contains__(self, case):
        return any(case.items() <= row.items() for row in self.rows)

    def add(self, row):
        self.rows.append(row)
        print(json.dumps(row), flush=True)
        self.path.write_text(json.dumps(self.rows, indent=1) + "\n")


def classes(volumes, args, rows):
    for snr, with_ctf in [CASES[i] for i in args.cases]:
        for name in args.molecules:
            for seed in args.seeds:
                case = {"molecule": name, "seed": seed, "n_images": 2000, "n_classes": 50, "snr": snr, "ctf": with_ctf}
                if case not in rows:
                    stack, truth = simulate(volumes[name], 2000, snr, with_ctf, seed)
                    rows.add(case | align(stack, truth, 50)[1])


def end_to_end(volumes, args, rows):
    for name in args.molecules:
        for seed in args.seeds:
            case = {"molecule": name, "seed": seed, "n_images": 10000, "snr": 0.05, "ctf": True}
            if case | {"n_classes": 100} in rows:
                continue
            stack, truth = make_particles(volumes[name], 10000, preset="ctf", snr=0.05, random_state=seed)
            aligner, scores = align(stack, truth, 100)
            aligned, known = aligner.transform(stack), by_truth(stack, truth)
            for n_clusters in (100, 300):
                for source, images in (("truth", known), ("aligner", aligned)):
                    more = {"sml_clusters": n_clusters, "frame": source}
                    rows.add(case | more | sml(images, truth, n_clusters))
            rows.add(case | {"n_classes": 100} | scores)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volume", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--molecules", nargs="+", default=["70S", "made"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--cases", type=int, nargs="+", default=list(range(len(CASES))))
    parser.add_argument("--end-to-end", action="store_true")
    args = parser.parse_args()
    volumes = {"70S": load_volume(args.volume)[0].astype(np.float32), "made": make_molecule(64, random_state=1)}
    warnings.simplefilter("ignore", ConvergenceWarning)
    (end_to_end if args.end_to_end else classes)(volumes, args, Rows(args.output))


if __name__ == "__main__":
    main()
