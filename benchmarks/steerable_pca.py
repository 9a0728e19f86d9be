"""Steerable components: error of denoised images and CPU seconds, beside ASPIRE's fast steerable PCA.

    python benchmarks/steerable_pca.py --volume ribosome_70s_65.mrc --aspire-python ASPIRE_ENV/bin/python \
        --output benchmarks/results/steerable_pca.json

70S ribosome at 65 px and a made molecule at 64 px, SNR 0.12, white noise, uniform views, 2000 images, seeds 0-2, one
thread. The error is that of images rebuilt from their coefficients against the noise-free ones, relative to those minus
their mean. "projection" is without Wiener weights, as ASPIRE's. ASPIRE counts
complex components; ours gets as many real ones as those are.
Seconds: making the basis, fitting, and coefficients of all images; of ours the first run, with nothing cached.
"""

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np

from skcryo.datasets import make_molecule, make_particles
from skcryo.decomposition import SteerablePCA
from skcryo.decomposition._disc_basis import disc_basis
from skcryo.io import load_volume

ASPIRE = """
import logging, sys, time
import numpy as np
import aspire
logging.disable(logging.CRITICAL)
from aspire.basis import FFBBasis2D, FSPCABasis
from aspire.source import ArrayImageSource
images = np.load(sys.argv[1])
source = ArrayImageSource(images, pixel_size=5.0)
start = time.process_time()
basis = FFBBasis2D((images.shape[1],) * 2, dtype=np.float32)
fspca = FSPCABasis(source, basis=basis, components=int(sys.argv[3]))
coefficients = fspca.expand_from_image_basis(source.images[:])
seconds = time.process_time() - start
rebuilt = np.asarray(fspca.evaluate_to_image_basis(coefficients).asnumpy())
np.savez(sys.argv[2], rebuilt=rebuilt, cpu_s=seconds, version=aspire.__version__, count=fspca.count)
"""


def error(rebuilt, clean):
    return float(np.sum((rebuilt - clean) ** 2) / np.sum((clean - clean.mean(axis=0)) ** 2))


def ours(images, clean, **parameters):
    disc_basis.cache_clear()
    start = time.process_time()
    pca = SteerablePCA(**parameters)
    coefficients = pca.fit_transform(images)
    seconds = time.process_time() - start
    return {
        "error": error(pca.inverse_transform(coefficients), clean),
        "n_components": pca.n_components_,
        "cpu_s": round(seconds, 2),
    }


def aspire(python, images, clean, n_components):
    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/images.npy", images)
        command = [python, "-c", ASPIRE, f"{folder}/images.npy", f"{folder}/out.npz", str(n_components)]
        subprocess.run(command, check=True)
        found = np.load(f"{folder}/out.npz")
        return {
            "error": error(found["rebuilt"], clean),
            "n_components": int(found["count"]),
            "cpu_s": round(float(found["cpu_s"]), 2),
            "version": str(found["version"]),
        }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volume", required=True)
    parser.add_argument("--aspire-python", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--n-images", type=int, default=2000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    volumes = {"70S": load_volume(args.volume)[0].astype(np.float32), "made": make_molecule(64, random_state=1)}
    rows = []
    for molecule, volume in volumes.items():
        for seed in args.seeds:
            stack, truth = make_particles(volume, args.n_images, snr=0.12, random_state=seed)
            images = np.asarray(stack)
            row = {"molecule": molecule, "seed": seed, "n_images": args.n_images, "snr": 0.12}
            row["all above the noise"] = ours(images, truth.clean)
            for n_complex in (53, 200):
                peer = aspire(args.aspire_python, images, truth.clean, n_complex)
                n_components = peer["n_components"]
                row[f"{n_components} aspire"] = peer
                row[f"{n_components}"] = ours(images, truth.clean, n_components=n_components)
                row[f"{n_components} projection"] = ours(
                    images, truth.clean, n_components=n_components, noise_variance=0
                )
            rows.append(row)
            print(json.dumps(row), flush=True)
            Path(args.output).write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
