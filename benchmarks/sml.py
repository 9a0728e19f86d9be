"""Statistical manifold learning beside maximum-likelihood classes and PCA with k-means: how pure, how many, how fast.

    python benchmarks/sml.py --volume ribosome_70s_65.mrc --output benchmarks/results/sml.json

70S ribosome at 65 px and a made molecule at 64 px under the same spectrum; uniform views, all images turned into one
in-plane frame (ZYZ angles with psi = 0), white noise, SNR over the full image; seeds 0-2; with CTFs, defocus is uniform
from 1.0 to 2.5 um and the SNR that of filtered images. "f15" is the share of pairs of images of one class whose viewing
directions are within 15 degrees: it compares at equal numbers of classes. "effective" is the exponential of the entropy
of the occupancy. Seconds are CPU seconds of one thread for the whole fit.

"limit": every image given to the likeliest of as many noise-free projections, evenly spread (without CTFs).
With ``--speed`` instead: seconds of one iteration on images of 64 px in a file, beside scikit-learn's GaussianMixture;
``peak_gb`` is that of the process, so one size a run says most.
"""

import argparse
import json
import resource
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from skcryo.cluster import SMLClustering
from skcryo.cluster._sml_latent import sphere_nodes
from skcryo.ctf import apply_ctf, make_ctf
from skcryo.datasets import make_molecule, make_particles
from skcryo.io import load_volume
from skcryo.metrics import class_view_angles, effective_n_classes
from skcryo.particles import ParticleStack

CASES = [  # images, classes, SNR, CTF
    (5000, 100, 0.02, False),
    (5000, 300, 0.01, False),
    (5000, 300, 0.005, False),
    (5000, 100, 0.02, True),
]


def views(directions):
    """Poses that look along unit vectors, in the in-plane frame of psi = 0."""
    rot = np.degrees(np.arctan2(directions[:, 1], directions[:, 0]))
    tilt = np.degrees(np.arccos(directions[:, 2].clip(-1, 1)))
    return Rotation.from_euler("ZYZ", np.stack([rot, tilt, 0 * rot], axis=1), degrees=True).as_matrix()


def project(volume, rotations):
    stack, _ = make_particles(volume, len(rotations), snr=None, rotations=rotations, random_state=0)
    return np.asarray(stack), stack.pixel_size


def simulate(volume, n_images, snr, with_ctf, seed):
    rng = np.random.default_rng(seed)
    directions = rng.standard_normal((n_images, 3))
    rotations = views(directions / np.linalg.norm(directions, axis=1, keepdims=True))
    clean, pixel_size = project(volume, rotations)
    ctf = make_ctf(n_images, defocus_u=rng.uniform(1e4, 2.5e4, n_images)) if with_ctf else None
    if with_ctf:
        clean = apply_ctf(clean, ctf, pixel_size)
    if snr is None:
        return ParticleStack(clean, pixel_size=pixel_size, ctf=ctf), rotations
    noise = rng.standard_normal(clean.shape, dtype=np.float32) * (clean.std() / np.sqrt(snr))
    return ParticleStack(clean + noise, pixel_size=pixel_size, ctf=ctf), rotations


def row(labels, rotations, seconds, **more):
    angles = class_view_angles(labels, rotations)
    return {
        "f15": round(float((angles <= 15).mean()), 3),
        "effective": round(float(effective_n_classes(labels)), 1),
        "used": len(np.unique(labels)),
        "cpu_s": round(seconds, 1),
        **more,
    }


def fit(stack, rotations, n_clusters, **params):
    start = time.process_time()
    sml = SMLClustering(n_clusters, random_state=0, **params).fit(stack)
    seconds = time.process_time() - start
    return row(sml.labels_, rotations, seconds, n_iter=sml.n_iter_, converged=sml.converged_)


def pca_kmeans(stack, rotations, n_clusters):
    start = time.process_time()
    rows = np.asarray(stack).reshape(len(stack), -1)
    coefficients = PCA(30, svd_solver="randomized", random_state=0).fit_transform(rows)
    labels = KMeans(n_clusters, n_init=1, random_state=0).fit_predict(coefficients)
    return row(labels, rotations, time.process_time() - start)


def limit(stack, rotations, n_clusters, volume):
    templates, _ = project(volume, views(sphere_nodes(n_clusters)))
    templates -= templates.mean(axis=(1, 2), keepdims=True)
    flat = templates.reshape(n_clusters, -1)
    scores = np.asarray(stack).reshape(len(stack), -1) @ flat.T - (flat**2).sum(axis=1) / 2
    return row(scores.argmax(axis=1), rotations, 0.0)


METHODS = {
    "SML": lambda *args: fit(*args),
    "SML, flat": lambda *args: fit(*args, manifold="flat"),
    "ML": lambda *args: fit(*args, manifold="none"),
    "ML, pixels": lambda *args: fit(*args, manifold="none", n_components=None),
    "ML, pixels, random start": lambda *args: fit(*args, manifold="none", n_components=None, init="random"),
    "PCA + k-means": pca_kmeans,
}


def quality(args):
    volumes = {"70S": load_volume(args.volume)[0].astype(np.float32), "made": make_molecule(64, random_state=1)}
    rows = []
    for n_images, n_clusters, snr, with_ctf in [CASES[i] for i in args.cases]:
        for name in args.molecules:
            for seed in args.seeds:
                stack, rotations = simulate(volumes[name], n_images, snr, with_ctf, seed)
                case = {"molecule": name, "seed": seed, "n_images": n_images, "n_clusters": n_clusters, "snr": snr}
                case["ctf"] = with_ctf
                if not with_ctf:
                    case["limit"] = limit(stack, rotations, n_clusters, volumes[name])
                for method in args.methods:
                    case[method] = METHODS[method](stack, rotations, n_clusters)
                rows.append(case)
                print(json.dumps(case), flush=True)
                Path(args.output).write_text(json.dumps(rows, indent=1) + "\n")


class Clock:
    """A callback that notes wall and CPU time at the end of each iteration."""

    def __init__(self):
        self.times = []

    def setup(self, estimator, context):
        pass

    def teardown(self, estimator, context):
        pass

    def on_fit_task_begin(self, estimator, context):
        pass

    def on_fit_task_end(self, estimator, context):
        if context.parent is not None:
            self.times.append((time.perf_counter(), time.process_time()))


def iteration(data, n_clusters, **params):
    """Wall and CPU seconds of an iteration, medians; the first, which makes the features, does not count."""
    clock = Clock()
    SMLClustering(n_clusters, tol=0, max_iter=6, **params).set_callbacks(clock).fit(data)
    wall, cpu = np.median(np.diff(clock.times, axis=0)[1:], axis=0)
    return {"wall_s": round(float(wall), 3), "cpu_s": round(float(cpu), 3)}


def mixture_iteration(rows, n_clusters):
    """The same of scikit-learn's mixture: the difference of two fits, since it calls nobody back."""
    seconds = []
    for max_iter in (1, 3):
        start = time.process_time()
        model = GaussianMixture(n_clusters, covariance_type="spherical", tol=0, max_iter=max_iter, random_state=0)
        model.set_params(init_params="random_from_data").fit(rows)
        seconds.append(time.process_time() - start)
    return round((seconds[1] - seconds[0]) / 2, 3)


def many_images(volume, n_images, snr, folder):
    """A stack in a file, of 2000 views in noise of their own, with CTFs: memory holds none of it."""
    clean = np.asarray(simulate(volume, 2000, None, False, 0)[0])
    path, rng = Path(folder) / "images.npy", np.random.default_rng(1)
    images = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(n_images, *clean.shape[1:]))
    for start in range(0, n_images, 1000):
        part = clean[np.arange(start, min(start + 1000, n_images)) % 2000]
        noise = rng.standard_normal(part.shape, dtype=np.float32)
        images[start : start + len(part)] = part + noise * (clean.std() / np.sqrt(snr))
    ctf = make_ctf(n_images, defocus_u=np.random.default_rng(2).uniform(1e4, 2.5e4, n_images))
    return ParticleStack(np.load(path, mmap_mode="r"), pixel_size=5.0, ctf=ctf)


def speed(args):
    volume, rows = make_molecule(64, random_state=1), []
    for n_images, n_clusters in args.sizes:
        with tempfile.TemporaryDirectory(dir=args.scratch) as folder:
            with_ctf = many_images(volume, n_images, 0.02, folder)
            stack = with_ctf.replace(ctf=None)
            case = {"n_images": n_images, "n_clusters": n_clusters}
            for name in args.ways:
                params = {} if "components" in name else {"n_components": None}
                case[name] = iteration(with_ctf if "CTFs" in name else stack, n_clusters, **params)
            if args.mixture:
                case["GaussianMixture"] = mixture_iteration(np.asarray(stack).reshape(n_images, -1), n_clusters)
            case["peak_gb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
        rows.append(case)
        print(json.dumps(case), flush=True)
        Path(args.output).write_text(json.dumps(rows, indent=1) + "\n")


WAYS = ["components", "components, CTFs", "pixels", "pixels, CTFs"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volume", help="the 70S ribosome as an MRC file, for the quality")
    parser.add_argument("--output", required=True)
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--sizes", type=json.loads, default=[[2000, 100]], help='as "[[10000, 300]]"')
    parser.add_argument("--ways", nargs="+", default=WAYS)
    parser.add_argument("--scratch", help="folder for the images of the speed, 1.6 GB for 100,000")
    parser.add_argument("--mixture", action="store_true", help="GaussianMixture too")
    parser.add_argument("--cases", type=int, nargs="+", default=range(len(CASES)))
    parser.add_argument("--molecules", nargs="+", default=["70S", "made"])
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    speed(args) if args.speed else quality(args)


if __name__ == "__main__":
    main()
