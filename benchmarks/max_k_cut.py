"""Time, cut and certified bound of max_k_cut, beside cvxpy where that is able to.

    python benchmarks/max_k_cut.py --sizes 100 200 1000 --output benchmarks/results/max_k_cut.json
    python benchmarks/max_k_cut.py --sizes 5000 --classes 2 --jobs 2 --output benchmarks/results/max_k_cut.json

A run is added to those that the file holds.

Graphs: "uniform" (weights even in 0 to 1) and "normal" (standard normal, so negative ones, too), all pairs; "blocks"
(K hidden classes of even size, weights half a unit larger between them, plus the absolute value of a standard normal);
"one too few" (the same with K - 1 hidden classes); "lines": the paper's |R_i c_ij - R_j c_ji|, true rotations, K hidden
classes, common lines off by 10 degrees within a class and anywhere between classes.

Each row: CPU and wall seconds of `max_k_cut` from weights to labels and bound, sweeps, ratio of cut and bound; up to
--cvxpy vertices the same by SCS at a hundredth of `tol`, and how far the bounds are apart (relatively). CPU seconds are
the figure to compare: they do not depend on what else runs.
"""

import argparse
import json
import os
import time
import warnings

import numpy as np

from skcryo.heterogeneity import max_k_cut
from skcryo.rotations import random_rotations


def symmetric(upper):
    upper = np.triu(upper, 1)
    upper += upper.T
    return upper


def lines(n, truth, rng, off=10, block=256):
    """|R_i c_ij - R_j c_ji|, rows in blocks."""
    R = random_rotations(n, random_state=rng.integers(2**31)).astype(np.float32)
    W = np.empty((n, n), np.float32)
    for start in range(0, n, block):
        mine = R[start : start + block]
        line = np.cross(mine[:, None, :, 2], R[None, :, :, 2])
        line /= np.linalg.norm(line, axis=2, keepdims=True) + 1e-9
        ends = []
        for which, frame in enumerate((mine[:, None], R[None])):
            angle = np.arctan2((line * frame[..., 1]).sum(axis=2), (line * frame[..., 0]).sum(axis=2))
            angle += np.radians(off) * rng.normal(size=angle.shape).astype(np.float32)
            if which == 0:
                between = truth[start : start + block, None] != truth
                angle[between] = rng.uniform(0, 2 * np.pi, between.sum())
            ends.append(frame[..., 0] * np.cos(angle)[..., None] + frame[..., 1] * np.sin(angle)[..., None])
        W[start : start + block] = np.linalg.norm(ends[0] - ends[1], axis=2)
    return symmetric(W)


def make_graph(kind, n, K, seed):
    """Weights, float32, and the hidden classes or None."""
    rng = np.random.default_rng(seed)
    if kind == "uniform":
        return symmetric(rng.random((n, n), dtype=np.float32)), None
    if kind == "normal":
        return symmetric(rng.standard_normal((n, n), dtype=np.float32)), None
    truth = rng.permutation(np.arange(n) % (K - 1 if kind == "one too few" else K))
    if kind == "lines":
        return lines(n, truth, rng), truth
    W = np.abs(rng.standard_normal((n, n), dtype=np.float32))
    W += np.float32(0.5) * (truth[:, None] != truth)
    return symmetric(W), truth


def agreement(labels, truth):
    """Share of vertices in the hidden class that is most frequent in theirs."""
    counts = np.zeros((labels.max() + 1, truth.max() + 1))
    np.add.at(counts, (labels, truth), 1)
    return counts.max(axis=1).sum() / len(truth)


def timed(W, K, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        start = time.perf_counter(), time.process_time()
        cut = max_k_cut(W, K, random_state=0, **options)
        return cut, {
            "cpu_s": round(time.process_time() - start[1], 2),
            "wall_s": round(time.perf_counter() - start[0], 2),
            "n_iter": int(cut.n_iter),
            "converged": cut.converged,
            "cut_value": float(f"{cut.cut_value:.7g}"),
            "upper_bound": float(f"{cut.upper_bound:.7g}"),
            "ratio": round(cut.ratio, 6),
        }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--graphs", nargs="+", default=["uniform", "normal", "blocks", "one too few", "lines"])
    parser.add_argument("--sizes", nargs="+", type=int, default=[100, 200, 1000])
    parser.add_argument("--classes", nargs="+", type=int, default=[2, 3, 4])
    parser.add_argument("--seeds", nargs="+", type=int, default=[10])
    parser.add_argument("--cvxpy", type=int, default=200, help="largest graph that cvxpy is tried on; 0 for none")
    parser.add_argument("--max-iter", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--output", required=True)
    args = parser.parse_args()
    runs = []
    if os.path.exists(args.output):
        with open(args.output) as file:
            runs = json.load(file)
    settings = {key: value for key, value in vars(args).items() if key != "output"}
    settings |= {"cores": os.cpu_count(), "blas_threads": os.environ.get("OPENBLAS_NUM_THREADS", "all")}
    rows = []
    runs.append({"settings": settings, "rows": rows})
    for n in args.sizes:
        for kind in args.graphs:
            for K in args.classes:
                if kind == "one too few" and K == 2:
                    continue
                for seed in args.seeds:
                    W, truth = make_graph(kind, n, K, seed)
                    cut, row = timed(W, K, n_jobs=args.jobs, max_iter=args.max_iter)
                    row = {"graph": kind, "n": n, "K": K, "seed": seed} | row
                    if truth is not None and kind != "one too few":
                        row["agreement"] = round(agreement(cut.labels, truth), 4)
                    if n <= args.cvxpy:
                        reference, timing = timed(W, K, solver="cvxpy")
                        row["cvxpy_cpu_s"] = timing["cpu_s"]
                        row["bound_over_cvxpy"] = float(f"{cut.upper_bound / reference.upper_bound - 1:.1e}")
                    rows.append(row)
                    print(json.dumps(row), flush=True)
                    with open(args.output, "w") as file:
                        json.dump(runs, file, indent=1)


if __name__ == "__main__":
    main()
