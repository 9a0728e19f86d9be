"""A volume from known poses: quality and CPU time beside ASPIRE-Python's, at the best of its regularisations.

    python benchmarks/reconstruction.py --volume ribosome_70s_65.mrc --peer-python ASPIRE_ENV/bin/python \
        --output benchmarks/results/reconstruction.json

N = 1000 centred images of 65 px at SNR 0.1, uniform views, seeds 0, 1, 2; one thread each, CPU seconds of the process
without imports and simulation. The peer (installed in an environment of its own, never imported here) is run as a
subprocess with every regulariser and number of iterations of a grid, with and without our mask, and the one of best
correlation with the truth is reported: more than a user could do. Without --peer-python only this library's rows are
made.
"""

import argparse
import json
import os
import subprocess
import tempfile
import time

import numpy as np

from skcryo.datasets import make_molecule, make_particles
from skcryo.io import load_volume
from skcryo.metrics import fsc, fsc_resolution
from skcryo.preprocessing import noise_spectrum
from skcryo.projection import project
from skcryo.reconstruction import FourierReconstructor, spherical_mask
from skcryo.reconstruction._fourier_reconstructor import _ring_power

PIXEL_SIZE = 5.0
# Around the best of a coarser scan (seed 0, 5 and 50 iterations, 0.01 to 1e6); 5 iterations stay below correlation 0.3.
REGULARIZERS = [3e2, 1e3, 3e3]
ITERATIONS = [50]

PEER = """
import json, logging, sys, time
import numpy as np
import aspire
from scipy.spatial.transform import Rotation
logging.disable(logging.CRITICAL)
from aspire.image import Image
from aspire.reconstruction import MeanEstimator
from aspire.source import ArrayImageSource
data = np.load(sys.argv[1])
angles = Rotation.from_matrix(data["rotations"]).as_euler("ZYZ").astype(np.float32)
found, volumes = [], []
for n_iter in json.loads(sys.argv[3]):
    for regularizer in json.loads(sys.argv[4]):
        start = time.process_time()
        source = ArrayImageSource(Image(data["images"]), pixel_size=5.0, angles=angles)
        estimator = MeanEstimator(source, maxiter=n_iter, checkpoint_iterations=None)
        volume = estimator.estimate(regularizer=regularizer).asnumpy()[0]
        found.append({"maxiter": n_iter, "regularizer": regularizer, "cpu_s": time.process_time() - start})
        volumes.append(volume)
np.savez(sys.argv[2], volumes=np.array(volumes), found=json.dumps(found), version=aspire.__version__)
"""


def quality(volume, truth):
    curve = fsc(volume, truth)
    return {
        "correlation": round(float(np.corrcoef(volume.ravel(), truth.ravel())[0, 1]), 4),
        "fsc_0.5_angstrom": round(fsc_resolution(curve, 0.5, PIXEL_SIZE, box_size=len(truth)), 2),
        "norm_over_truth": round(float(np.linalg.norm(volume) / np.linalg.norm(truth)), 4),
    }


def ours(stack, truth, **params):
    start = time.process_time(), time.perf_counter()
    found = FourierReconstructor(random_state=0, n_jobs=1, **params).fit(stack)
    cpu, wall = time.process_time() - start[0], time.perf_counter() - start[1]
    row = quality(found.volume_, truth) | {"cpu_s": round(cpu, 2), "wall_s": round(wall, 2)}
    return found, row | {"half_maps_angstrom": round(found.resolution_, 2)}


def peer(python, stack, truth):
    """All rows of the grid, and the best by correlation."""
    with tempfile.TemporaryDirectory() as folder:
        data, out = os.path.join(folder, "data.npz"), os.path.join(folder, "out.npz")
        np.savez(data, images=np.asarray(stack, np.float32), rotations=stack.rotations)
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        environment.pop("PYTHONPATH", None)
        subprocess.run(
            [python, "-c", PEER, data, out, json.dumps(ITERATIONS), json.dumps(REGULARIZERS)],
            check=True, cwd=folder, env=environment, capture_output=True,
        )
        with np.load(out) as found:
            rows, volumes, version = json.loads(str(found["found"])), found["volumes"], str(found["version"])
    # Our mask costs the peer nothing and helps it as well.
    ball = spherical_mask(len(truth), 0.45 * len(truth))
    rows = [
        row | {"cpu_s": round(row["cpu_s"], 2), "masked": masked} | quality(volume * ball if masked else volume, truth)
        for row, volume in zip(rows, volumes)
        for masked in (False, True)
    ]
    return {"version": version, "best": max(rows, key=lambda row: row["correlation"]), "grid": rows}


def noise_estimates(truth, seed):
    """Estimated over true noise power in the lowest rings, from residuals and from the border."""
    found = {}
    molecule = make_molecule(len(truth), random_state=seed, voxel_size=PIXEL_SIZE)
    for name, volume in (("70S", truth), ("make_molecule", molecule)):
        for preset in ("ctf", "experimental"):
            stack, facts = make_particles(
                volume, 1000, preset=preset, snr=0.1, pixel_size=PIXEL_SIZE, random_state=seed
            )
            stack = stack.replace(rotations=facts.rotations, shifts=facts.shifts)
            options = {"shifts": facts.shifts, "ctf": stack.ctf, "pixel_size": PIXEL_SIZE}
            clean = project(volume, facts.rotations, **options)
            expected = _ring_power(np.asarray(stack) - clean).mean(axis=0)
            fitted = FourierReconstructor(random_state=0).fit(stack)
            found[f"{name}, {preset}"] = {
                "residuals": (fitted.noise_spectrum_ / expected)[1:9].round(3).tolist(),
                "border": (noise_spectrum(stack) / expected)[1:9].round(3).tolist(),
            }
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volume", required=True, help="MRC of the 70S ribosome, 65 px")
    parser.add_argument("--output", required=True)
    parser.add_argument("--peer-python", help="interpreter of an environment with aspire")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    truth = load_volume(args.volume)[0]
    settings = {"n": 1000, "snr": 0.1, "box": len(truth), "pixel_size": PIXEL_SIZE, "seeds": args.seeds, "threads": 1}
    results = {"settings": settings, "rows": []}
    for seed in args.seeds:
        stack, facts = make_particles(
            truth, 1000, preset="paper", snr=0.1, pixel_size=PIXEL_SIZE, random_state=seed
        )
        stack = stack.replace(rotations=facts.rotations)
        row = {"seed": seed, "skcryo": ours(stack, truth)[1], "skcryo, n_iter=0": ours(stack, truth, n_iter=0)[1]}
        if args.peer_python:
            row["aspire"] = peer(args.peer_python, stack, truth)
            row["cpu_ratio"] = round(row["aspire"]["best"]["cpu_s"] / row["skcryo"]["cpu_s"], 1)
        results["rows"].append(row)
        print(json.dumps(row, indent=1), flush=True)
    more = {}
    for name, n, preset, snr in (
        ("5000 images", 5000, "paper", 0.1),
        ("ctf", 1000, "ctf", 0.1),
        ("experimental", 1000, "experimental", 0.1),
        ("no noise", 1000, "paper", None),
    ):
        stack, facts = make_particles(truth, n, preset=preset, snr=snr, pixel_size=PIXEL_SIZE, random_state=0)
        more[name] = ours(stack.replace(rotations=facts.rotations, shifts=facts.shifts), truth)[1]
    results["other conditions, seed 0"] = more
    results["noise over truth, rings 1 to 8"] = noise_estimates(truth, 0)
    with open(args.output, "w") as file:
        json.dump(results, file, indent=1)
        file.write("\n")
    print(json.dumps(more, indent=1), json.dumps(results["noise over truth, rings 1 to 8"], indent=1))


if __name__ == "__main__":
    main()
