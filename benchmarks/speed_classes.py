"""Speed and memory of rotation-invariant k-means at the Wasserstein k-means paper's size.

    python benchmarks/speed_classes.py --volume ribosome_70s_65.mrc --output benchmarks/results/speed_classes.json

10,000 images of 128 px of a 70S ribosome, 150 classes, 200 rotations, SNR 1/16. Beside it, in the same run, the way the
authors' program computes: a loop over images and rotations, each a weighted l1 distance of PyWavelets coefficients in
numpy, on a small part of the same work. The paper reports 1676 s an iteration for W1 and 1204 s for L2 on 32 cores.
"""

import argparse
import json
import os
import resource
import tempfile
import time
import warnings

import numpy as np
import pywt
from scipy import ndimage

from skcryo.cluster import RotInvWassersteinKMeans
from skcryo.cluster._lloyd import Lloyd
from skcryo.datasets import make_particles
from skcryo.fourier import fourier_pad
from skcryo.io import load_volume
from skcryo.metrics import occupancy_entropy, view_coherence

SIZE = 128


def clocks():
    return np.array([time.perf_counter(), time.process_time()])


def peak_gb():
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)


def timed_steps(log):
    """Record wall and CPU seconds of every iteration (search and update) of fits from now on."""
    find, update = Lloyd._find, Lloyd._update

    def record(name, method):
        def run(self, *args, **kwargs):
            start = clocks()
            result = method(self, *args, **kwargs)
            log.append((name, *(clocks() - start)))
            return result

        return run

    Lloyd._find, Lloyd._update = record("find", find), record("update", update)


def iterations(log):
    """Pairs of a search and the update after it: (wall, CPU) each."""
    return np.array([
        np.add(a[1:], b[1:]) for a, b in zip(log, log[1:]) if a[0] == "find" and b[0] == "update"
    ])


def fit(images, rotations, n_clusters, **params):
    log = []
    find, update = Lloyd._find, Lloyd._update
    timed_steps(log)
    start = clocks()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kmeans = RotInvWassersteinKMeans(n_clusters, max_shift=0, balance=0, random_state=0, **params).fit(images)
    wall, cpu = clocks() - start
    Lloyd._find, Lloyd._update = find, update
    steps = iterations(log)
    views = view_coherence(kmeans.labels_, rotations)
    return kmeans, {
        "fit_wall_s": round(wall, 1),
        "fit_cpu_s": round(cpu, 1),
        "n_iter": kmeans.n_iter_,
        "iteration_wall_s_median": round(float(np.median(steps[:, 0])), 2),
        "iteration_wall_s_max": round(float(steps[:, 0].max()), 2),
        "iteration_cpu_s_median": round(float(np.median(steps[:, 1])), 2),
        "iteration_cpu_s_max": round(float(steps[:, 1].max()), 2),
        "median_degrees": round(views.median, 2),
        "share_under_20": round(views.share_under(20), 3),
        "entropy": round(occupancy_entropy(kmeans.labels_, n_clusters), 4),
        "peak_memory_gb": peak_gb(),
    }


def authors_way(images, average, n_images=10, n_angles=50):
    """CPU seconds per (image, centre, rotation), by numpy and PyWavelets, and the preparation beside it."""
    def coefficients(image):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            levels = pywt.wavedecn(image, "sym5", mode="zero", level=6)[1:]
        return [(4.0**-s, level[key]) for s, level in enumerate(levels) for key in sorted(level)]

    start = time.process_time()
    turned = [
        coefficients(ndimage.rotate(average, 360 * t / 200, reshape=False, order=3)) for t in range(n_angles)
    ]
    prepare = (time.process_time() - start) / n_angles
    own = [coefficients(image) for image in images[:n_images]]
    start = time.process_time()
    for image in own:
        for copy in turned:
            sum(weight * np.abs(a - b).sum() for (weight, a), (_, b) in zip(image, copy))
    return (time.process_time() - start) / (n_images * n_angles), prepare


def predict_memory(kmeans, volume, n_images):
    """Peak memory of a fresh process that predicts `n_images` images from a memory-mapped file."""
    import subprocess
    import sys

    from skcryo.io import save_images

    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "images.mrcs")
        def chunks():
            rng = np.random.default_rng(0)
            for _ in range(n_images // 2500):
                yield rng.normal(size=(2500, SIZE, SIZE)).astype(np.float32) + kmeans.class_averages_[0]
        save_images(path, chunks(), 2.5)
        averages = os.path.join(folder, "averages.npy")
        np.save(averages, kmeans.class_averages_)
        code = (
            "import sys, time, numpy as np, warnings\n"
            "warnings.simplefilter('ignore')\n"
            "from skcryo.cluster import RotInvWassersteinKMeans as K\n"
            "from skcryo.io import load_particles\n"
            "a = np.load(sys.argv[2])\n"
            "k = K(len(a), metric=sys.argv[3], init=a, max_iter=1, max_shift=0, balance=0).fit(a)\n"
            "k.class_averages_ = a\n"
            "t = time.perf_counter(); labels = k.predict(load_particles(sys.argv[1]))\n"
            "peak = next(line for line in open('/proc/self/status') if line.startswith('VmHWM'))\n"
            "print(len(labels), time.perf_counter() - t, int(peak.split()[1]) / 2**20)\n"
        )
        out = {}
        for metric in ("w1", "l2"):
            n, seconds, peak = subprocess.run(
                [sys.executable, "-c", code, path, averages, metric], check=True, capture_output=True, text=True
            ).stdout.split()
            out[metric] = {
                "n_images": int(n), "n_clusters": len(kmeans.class_averages_), "wall_s": round(float(seconds), 1),
                "peak_memory_gb": round(float(peak), 2),
            }
        return out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volume", required=True, help="MRC of the 70S ribosome, 65 px")
    parser.add_argument("--output", required=True)
    parser.add_argument("--images", type=int, default=10000)
    parser.add_argument("--clusters", type=int, default=150)
    parser.add_argument("--predict", type=int, default=100000)
    args = parser.parse_args()
    volume = fourier_pad(load_volume(args.volume)[0].astype(np.float32), SIZE, ndim=3)
    stack, truth = make_particles(
        volume, args.images, preset="paper", snr=1 / 16, snr_definition="power", pixel_size=2.5, random_state=0
    )
    images, rotations = np.asarray(stack), truth.rotations
    del stack, truth
    results = {"settings": vars(args) | {"size": SIZE, "snr": "1/16", "n_angles": 200, "cores": os.cpu_count()}}
    results["memory_with_data_gb"] = peak_gb()
    kmeans, results["w1"] = fit(images, rotations, args.clusters, metric="w1", max_iter=25, tol=0)
    print(json.dumps(results, indent=1), flush=True)
    per_distance = results["w1"]["iteration_cpu_s_median"] / (args.images * args.clusters * 200)
    slow = [authors_way(images, kmeans.class_averages_[0]) for _ in range(3)]
    theirs = float(np.median([s[0] for s in slow]))
    results["authors_way"] = {
        "cpu_s_per_distance": theirs,
        "cpu_s_per_rotated_centre": float(np.median([s[1] for s in slow])),
        "ours_cpu_s_per_distance_everything_included": per_distance,
        "ratio": round(theirs / per_distance),
    }
    _, results["l2"] = fit(images, rotations, args.clusters, metric="l2", max_iter=25, tol=0)
    _, results["l2_full_band"] = fit(images, rotations, args.clusters, metric="l2", lowpass=None, max_iter=5, tol=0)
    _, results["sobolev"] = fit(images, rotations, args.clusters, metric="sobolev", max_iter=25, tol=0)
    print(json.dumps(results, indent=1), flush=True)
    del images
    if args.predict:
        kmeans.class_averages_ = kmeans.class_averages_[:50]
        results["predict"] = predict_memory(kmeans, volume, args.predict)
    with open(args.output, "w") as file:
        json.dump(results, file, indent=1)
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
