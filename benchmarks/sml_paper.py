"""The experiment of Wu et al., figure 2, at its size: 50,000 aligned images of the 70S ribosome, 300 classes.

    python benchmarks/sml_paper.py --volume ribosome_70s_65.mrc --output benchmarks/results/sml_paper.json

65 px, uniform views in one in-plane frame, white noise, SNR over the full image 0.02, 0.01 and 0.005, no CTF. Methods:
"SML" as it comes; "ML": maximum-likelihood classes as programs start them, on all pixels from averages of random
subsets; "ML, same components": independent class means with everything else as in SML, k-means start; "PCA + k-means":
30 components. For each the histogram of angles between the viewing directions of two images of one class (5 degree
bins, share of pairs), f15 (the share within 15 degrees), effective classes (exponential of the entropy of occupancy)
and seconds.
``--picture`` draws the histograms and the sizes of classes, as the paper's figures 2d to 2g.
"""

import argparse
import json
import time
import warnings
from pathlib import Path

import numpy as np
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sml import simulate

from skcryo.cluster import SMLClustering
from skcryo.datasets import make_molecule
from skcryo.io import load_volume
from skcryo.metrics import class_view_angles, effective_n_classes

BINS = np.arange(0, 185, 5)


def subset_averages(stack, n_clusters, seed):
    """Averages of random subsets, as classification programs start."""
    labels = np.random.default_rng(seed).permutation(np.arange(len(stack)) % n_clusters)
    averages = np.zeros((n_clusters, *stack.shape[1:]))
    for start in range(0, len(stack), 1000):
        np.add.at(averages, labels[start : start + 1000], np.asarray(stack[start : start + 1000]))
    return averages / np.bincount(labels)[:, None, None]


def sml(stack, n_clusters, seed, **params):
    return SMLClustering(n_clusters, random_state=seed, **params).fit(stack)


def random_start(stack, n_clusters, seed):
    start = subset_averages(stack, n_clusters, seed)
    return sml(stack, n_clusters, seed, manifold="none", n_components=None, init=start)


def pca_kmeans(stack, n_clusters, seed):
    rows = np.asarray(stack).reshape(len(stack), -1)
    coefficients = PCA(30, svd_solver="randomized", random_state=seed).fit_transform(rows)
    return KMeans(n_clusters, n_init=1, random_state=seed).fit(coefficients)


METHODS = {
    "SML": sml,
    "ML": random_start,
    "ML, same components": lambda *args: sml(*args, manifold="none"),
    "PCA + k-means": pca_kmeans,
}


def row(model, rotations, wall, cpu):
    angles = class_view_angles(model.labels_, rotations)
    return {
        "f15": round(float((angles <= 15).mean()), 3),
        "effective": round(float(effective_n_classes(model.labels_)), 1),
        "used": len(np.unique(model.labels_)),
        "wall_s": round(wall, 1),
        "cpu_s": round(cpu, 1),
        "n_iter": int(model.n_iter_),
        "histogram": (np.histogram(angles, BINS)[0] / len(angles)).round(4).tolist(),
        "sizes": np.sort(np.bincount(model.labels_)).tolist(),
    }


def picture(rows, path):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, len(rows), figsize=(4.5 * len(rows), 6.5), squeeze=False, layout="constrained")
    for (above, below), case in zip(axes.T, rows):
        for method in [name for name in METHODS if name in case]:
            above.plot((BINS[:-1] + BINS[1:]) / 2, case[method]["histogram"], label=method)
            below.plot(case[method]["sizes"], label=method)
        above.set(title=f"SNR {case['snr']:g}", xlabel="angle between views of a class (degrees)")
        below.set(xlabel="classes by size", ylabel="images")
    axes[0, 0].set_ylabel("share of pairs")
    axes[0, 0].legend(frameon=False)
    figure.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volume", help="the 70S ribosome as an MRC file; a made molecule without it")
    parser.add_argument("--output", required=True)
    parser.add_argument("--n", type=int, default=50000)
    parser.add_argument("--classes", type=int, default=300)
    parser.add_argument("--snr", type=float, nargs="+", default=[0.02, 0.01, 0.005])
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--picture", help="PNG file; drawn of the output alone if that has all that is asked for")
    args = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    name = "70S" if args.volume else "made"
    volume = load_volume(args.volume)[0].astype(np.float32) if args.volume else make_molecule(64, random_state=1)
    output = Path(args.output)
    rows = json.loads(output.read_text()) if output.exists() else []
    asked = []
    for snr in args.snr:
        for seed in args.seeds:
            case = {"molecule": name, "n_images": args.n, "n_clusters": args.classes, "snr": snr, "seed": seed}
            known = [row for row in rows if all(row[key] == value for key, value in case.items())]
            if known:
                case = known[0]
            else:
                rows.append(case)
            asked.append(case)
            missing = [method for method in args.methods if method not in case]
            if not missing:
                continue
            stack, rotations = simulate(volume, args.n, snr, False, seed)
            for method in missing:
                wall, cpu = time.perf_counter(), time.process_time()
                model = METHODS[method](stack, args.classes, seed)
                case[method] = row(model, rotations, time.perf_counter() - wall, time.process_time() - cpu)
                print(name, snr, seed, method, {k: v for k, v in case[method].items() if k[0] not in "hs"}, flush=True)
                output.write_text(json.dumps(rows) + "\n")
    if args.picture:
        picture([case for case in asked if case["seed"] == args.seeds[0]], args.picture)


if __name__ == "__main__":
    main()
