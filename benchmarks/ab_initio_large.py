"""An ab initio volume of 20,000 particles of 128 px that lie in a file: wall time, CPU seconds and peak memory.

    python benchmarks/ab_initio_large.py --volume ribosome_70s_65.mrc --output benchmarks/results/ab_initio_large.json

Preset "ctf" (shifts within 3 px, CTFs), SNR 0.12, 2.5 A pixels, data seed 0, start seed 0. The particles are written
and the poses compared by other processes, so that the peak is the fit's own.
"""

import argparse
import json
import os
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np

from skcryo.datasets import make_particles
from skcryo.fourier import fourier_crop, fourier_pad
from skcryo.io import load_volume
from skcryo.metrics import pose_error
from skcryo.reconstruction import AbInitioVolume


def write(volume_path, folder, n, L, snr):
    volume = fourier_pad(fourier_crop(load_volume(volume_path)[0].astype(np.float32), 64, ndim=3), L, ndim=3)
    path = os.path.join(folder, "particles.mrcs")
    stack, truth = make_particles(volume, n, preset="ctf", snr=snr, pixel_size=2.5, random_state=0, path=path)
    np.savez(os.path.join(folder, "truth.npz"), rotations=truth.rotations)
    return stack


def fit(stack, folder, jobs):
    cpu, wall = time.process_time(), time.perf_counter()
    ab_initio = AbInitioVolume(random_state=0, n_jobs=jobs).fit(stack)
    np.save(os.path.join(folder, "rotations.npy"), ab_initio.rotations_)
    return {
        "wall_s": round(time.perf_counter() - wall, 1),
        "cpu_s": round(time.process_time() - cpu, 1),
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2, 2),
        "converged": bool(ab_initio.converged_),
        "n_starts": len(ab_initio.start_scores_),
        "resolution_px": round(float(ab_initio.resolution_pixels_), 2),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volume", required=True, help="MRC of the 70S ribosome, 65 px")
    parser.add_argument("--output", required=True)
    parser.add_argument("--n", type=int, default=20000)
    parser.add_argument("--box", type=int, default=128)
    parser.add_argument("--snr", type=float, default=0.12)
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    spawn = get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        with ProcessPoolExecutor(1, mp_context=spawn) as pool:
            stack = pool.submit(write, args.volume, folder, args.n, args.box, args.snr).result()
        with ProcessPoolExecutor(1, mp_context=spawn) as pool:
            result = pool.submit(fit, stack, folder, args.jobs).result()
        truth = np.load(os.path.join(folder, "truth.npz"))["rotations"]
        errors = pose_error(np.load(os.path.join(folder, "rotations.npy")), truth)
    settings = {"n": args.n, "box": args.box, "snr": args.snr, "preset": "ctf", "jobs": args.jobs}
    result = {**settings, **result, "mean": round(errors.mean, 3), "above_20": round((errors.errors > 20).mean(), 5)}
    with open(args.output, "w") as file:
        json.dump(result, file, indent=1)
        file.write("\n")
    print(result)


if __name__ == "__main__":
    main()
