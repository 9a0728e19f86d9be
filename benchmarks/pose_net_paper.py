"""The networks of table 2 of Cesa, Kumar and Behboodi, trained by common lines from scratch: their own poses.

    python benchmarks/pose_net_paper.py --volume ribosome_70s_65.mrc --output benchmarks/results/pose_net_paper.json

The paper's setting: 5000 images of the 70S ribosome, 97 px (65 padded in Fourier space), SNR 0.12, uniform views,
centred. "mlp" to "so3-o2-gnn" are poses by the network alone, of the training images and of 500 new ones, in the frame
of the fit, before any refinement. With --init the networks first learn the poses of "mfvdm", and then common lines,
of which the paper has nothing. "paper" is the paper's correlation (of training images). "vdm" and "mfvdm" are
:class:`skcryo.orientation.VectorDiffusionMaps`, "shipped" is ``EquivariantPoseNet(max_shift=0)``: what a user gets,
refined. Settings chosen on data seed 101.

Each row in a process of its own, one thread, CPU seconds; rows are added as they are finished, and a run goes on where
it was stopped.
"""

import argparse
import json
import multiprocessing
import time
import warnings
from pathlib import Path

import numpy as np

from skcryo.datasets import make_particles
from skcryo.fourier import fourier_pad
from skcryo.io import load_volume
from skcryo.metrics import pose_correlation, pose_error
from skcryo.orientation import EquivariantPoseNet, VectorDiffusionMaps

N, N_NEW, L, SNR = 5000, 500, 97, 0.12
PAPER = {
    "mlp": 0.432, "mlp-attention": 0.399, "o2-mlp": 0.922, "o2-gnn": 0.938, "so3-o2-gnn": 0.954, "vdm": 0.82,
    "mfvdm": 0.975,
}  # fmt: skip


class Alone(EquivariantPoseNet):
    """The network as trained, without the refinement of its poses and the errors learnt from projections."""

    def fit(self, X):
        self._alone = True
        try:
            super().fit(X)
        except StopIteration:
            pass
        return self

    def _refinement(self, images):
        raise StopIteration

    def predict(self, X):
        images = self._fourier_images(X)
        return self._predictor.by_network(images, self.device)["rotations"]


def estimator(method, seed, max_iter, init):
    if method in ("vdm", "mfvdm"):
        return VectorDiffusionMaps(1 if method == "vdm" else 5, n_jobs=1)
    options = {"max_shift": 0, "n_jobs": 1, "device": "cpu", "random_state": seed}
    if method == "shipped":
        return EquivariantPoseNet(**options)
    if init:
        options["init"] = VectorDiffusionMaps(n_jobs=1)
    return Alone(architecture=method, training="common-lines", max_iter=max_iter, **options)


def measure(path, method, seed, max_iter, init):
    warnings.simplefilter("ignore")
    volume = fourier_pad(load_volume(path)[0].astype(np.float32), L, ndim=3)
    stack, truth = make_particles(volume, N + N_NEW, preset="paper", snr=SNR, random_state=seed)
    start = time.process_time()
    found = estimator(method, seed, max_iter, init).fit(stack[:N])
    fitted = time.process_time()
    rotations = found.predict(stack[:N]) if isinstance(found, Alone) else found.rotations_
    before = time.process_time()
    new = found.predict(stack[N:])
    after = time.process_time()
    error = pose_error(rotations, truth.rotations[:N])
    both = pose_error(np.concatenate([rotations, new]), truth.rotations)
    return {
        "method": method,
        "seed": seed,
        "init": init,
        "paper": PAPER.get(method),
        "correlation": round(pose_correlation(rotations, truth.rotations[:N]), 4),
        "mean": round(error.mean, 2),
        "median": round(error.median, 2),
        "new_correlation": round(pose_correlation(new, truth.rotations[N:]), 4),
        "new_mean": round(float(both.errors[N:].mean()), 2),
        "max_iter": getattr(found, "max_iter", None),
        "fit_cpu_s": round(fitted - start, 1),
        "new_cpu_ms": round(1000 * (after - before) / N_NEW, 2),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volume", required=True, help="ribosome_70s_65.mrc")
    parser.add_argument("--output", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--architectures", nargs="+", default=[*PAPER, "shipped"])
    parser.add_argument("--init", action="store_true")
    parser.add_argument("--max-iter", type=int, default=1500)
    args = parser.parse_args()
    output = Path(args.output)
    rows = json.loads(output.read_text()) if output.exists() else []
    done = {(row["method"], row["seed"], row["init"]) for row in rows}
    for seed in args.seeds:
        for method in args.architectures:
            if (method, seed, args.init) in done:
                continue
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                rows.append(pool.apply(measure, (args.volume, method, seed, args.max_iter, args.init)))
            print(json.dumps(rows[-1]), flush=True)
            output.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
