"""Rings of 10, 11 and 12 subunits in one data set, told apart by alignment and statistical manifold learning.

    python benchmarks/sml_rings.py --output benchmarks/results/sml_rings.json

The mixture of figure 3a of Wu et al. 2017, whose complexes have 10, 11 and 12 subunits: equal shares of three made
rings of one and the same subunit (64 px, 5 Angstrom), white noise at SNR 0.05 over the full image, any in-plane angle,
shifts uniform within 3 px in x and in y, with CTFs 1.0 to 2.5 um and astigmatism up to 10 %. "top": views along the
symmetry axis, tilted by at most 10 degrees, any azimuth; "top and side": every other view is instead within 10
degrees of perpendicular to the axis, as in the second row of the figure. Settings chosen on seed 101.

"purity" is the share of images that belong to the most frequent fold of their class (by chance a third and a little).
Steps are judged apart: "aligner", its own classes; "SML", of the images it turned and centred; "known frame", of images
turned and centred by the truth; "PCA + k-means" of the aligned images. "of top", "of side": purity of either kind of
views. Seconds are CPU seconds of one thread. Rows are added as they are finished.
"""

import argparse
import json
import time
import warnings
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning

from skcryo.cluster import SMLClustering
from skcryo.ctf import rotate_ctf
from skcryo.datasets import ImagingConditions, make_molecule, make_particles
from skcryo.preprocessing import InPlaneAligner
from skcryo.preprocessing._in_plane_aligner import turn_back

FOLDS = (10, 11, 12)
SNR = 0.05
TILT = 10.0  # degrees
SHIFT = 3.0  # px
CASES = [("top", False), ("top", True), ("top and side", False), ("top and side", True)]  # views, CTFs


def simulate(views, n_images, with_ctf, seed):
    """Images, their truth, and which are side views."""
    rng = np.random.default_rng(seed)
    side = np.zeros(n_images, dtype=bool) if views == "top" else np.arange(n_images) % 2 == 1
    cosines = rng.uniform(np.cos(np.radians(TILT)), 1, n_images)
    cosines[side] = rng.uniform(-1, 1, np.count_nonzero(side)) * np.sin(np.radians(TILT))
    turns = rng.uniform(0, 360, (n_images, 2))
    angles = np.stack([turns[:, 0], np.degrees(np.arccos(cosines)), turns[:, 1]], axis=1)
    volumes = [make_molecule(64, symmetry=fold, random_state=seed) for fold in FOLDS]
    stack, truth = make_particles(
        volumes,
        n_images,
        preset=ImagingConditions(max_shift=SHIFT / 64, ctf=with_ctf),
        snr=SNR,
        rotations=Rotation.from_euler("ZYZ", angles, degrees=True).as_matrix(),
        random_state=seed,
    )
    return stack, truth, side


def purity(labels, truth, side):
    """Share of the majority fold of each class, of all images and of either kind of views."""
    counts = np.zeros((labels.max() + 1, len(FOLDS)))
    np.add.at(counts, (labels, truth.labels), 1)
    right = counts.argmax(axis=1)[labels] == truth.labels
    found = {"purity": round(float(right.mean()), 4)}
    if side.any():
        found |= {"of top": round(float(right[~side].mean()), 4), "of side": round(float(right[side].mean()), 4)}
    return found


def by_truth(stack, truth):
    psi = Rotation.from_matrix(truth.rotations).as_euler("ZYZ")[:, 2]
    ctf = None if stack.ctf is None else rotate_ctf(stack.ctf, psi)
    return stack.replace(data=turn_back(np.asarray(stack), -psi, truth.shifts), ctf=ctf)


def sml(stack, n_clusters):
    start = time.process_time()
    fitted = SMLClustering(n_clusters, random_state=0).fit(stack)
    return fitted.labels_, {"cpu_s": round(time.process_time() - start, 1), "converged": bool(fitted.converged_)}


def pca_kmeans(stack, n_clusters):
    rows = np.asarray(stack).reshape(len(stack), -1)
    coefficients = PCA(30, svd_solver="randomized", random_state=0).fit_transform(rows)
    return KMeans(n_clusters, n_init=1, random_state=0).fit_predict(coefficients)


def measure(stack, truth, side, n_clusters):
    start = time.process_time()
    aligner = InPlaneAligner(n_jobs=1, random_state=0).fit(stack)
    seconds = round(time.process_time() - start, 1)
    aligned = aligner.transform(stack)
    found = {"aligner": purity(aligner.labels_, truth, side) | {"cpu_s": seconds, "classes": aligner.n_classes_}}
    for name, images in (("SML", aligned), ("known frame", by_truth(stack, truth))):
        labels, more = sml(images, n_clusters)
        found[name] = purity(labels, truth, side) | more
    found["PCA + k-means"] = purity(pca_kmeans(aligned, n_clusters), truth, side)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True)
    parser.add_argument("--images", type=int, default=900)
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--cases", type=int, nargs="+", default=list(range(len(CASES))))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    path = Path(args.output)
    rows = json.loads(path.read_text()) if path.exists() else []
    for views, with_ctf in [CASES[i] for i in args.cases]:
        for seed in args.seeds:
            row = {"views": views, "ctf": with_ctf, "seed": seed, "images": args.images, "classes": args.classes}
            if any(row.items() <= known.items() for known in rows):
                continue
            stack, truth, side = simulate(views, args.images, with_ctf, seed)
            rows.append(row | measure(stack, truth, side, args.classes))
            print(json.dumps(rows[-1]), flush=True)
            path.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
