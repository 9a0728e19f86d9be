"""Statistical manifold learning under the conditions of an experiment: junk, and what coloured noise costs.

    python benchmarks/sml_experimental.py --volume ribosome_70s_65.mrc --output benchmarks/results/sml_experimental.json

70S ribosome at 65 px and a made molecule at 64 px, 5 Angstrom a pixel; preset "experimental" (shifts, CTFs, coloured
noise, contrast with a standard deviation of 20 %, preferred views, 5 % of junk: noise alone, broken particles, two that
overlap), SNR 0.1, 1500 images. Backgrounds are normalised, noise is whitened by ring, as ``skcryo classify2d`` does;
images are turned and centred by the truth ("frame": "truth") or by InPlaneAligner ("aligner"), then classified into
50 classes of a band to 20 Angstrom. Settings chosen on seed 101.

"auc": of all junk and of each kind, by `score_samples` (the log-likelihood above that of no particle, which the report
of classify2d sorts by) and by the log-likelihood itself.

"f15": share of pairs of particles of one class whose viewing directions are within 15 degrees, without junk.
"coloured": the above. "white, equal ring SNR": the same particles in white noise, whose SNR averaged over rings 1 to 16
is that of the coloured noise. "white, equal SNR": of equal SNR over the full image, before whitening. "coloured, not
whitened": the first without the whitening. "band to Nyquist": the first without the bound of the band, of one seed.
Rows are added as they are finished, and a run goes on where it was stopped.
"""

import argparse
import json
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import roc_auc_score

from skcryo.cluster import SMLClustering
from skcryo.datasets import make_molecule, make_particles
from skcryo.datasets._particles import PRESETS
from skcryo.io import load_volume
from skcryo.metrics import class_view_angles
from skcryo.preprocessing import InPlaneAligner, NoiseWhitener, NormalizeBackground
from skcryo.preprocessing._in_plane_aligner import turned_stack

SNR = 0.1
N_IMAGES, N_CLASSES = 1500, 50
RESOLUTION = 20.0  # Angstrom
RINGS = slice(1, 17)


def simulate(volume, seed, *, coloured=True, snr=SNR):
    conditions = replace(PRESETS["experimental"], coloured_noise=coloured)
    return make_particles(volume, N_IMAGES, preset=conditions, snr=snr, random_state=seed)


def prepare(stack, truth, *, frame="truth", whiten=True):
    images = NormalizeBackground().fit_transform(stack).load()
    if whiten:
        images = NoiseWhitener(remove_mean=True).fit_transform(images).load()
    if frame == "aligner":
        return InPlaneAligner(n_jobs=1, random_state=0).fit_transform(images)
    psi = Rotation.from_matrix(truth.rotations).as_euler("ZYZ")[:, 2]
    return turned_stack(images, -psi, truth.shifts, ctf=images.ctf).load()


def classify(images, truth, resolution=RESOLUTION):
    start = time.process_time()
    sml = SMLClustering(N_CLASSES, resolution=resolution, random_state=0).fit(images)
    seconds = time.process_time() - start
    good = ~truth.is_junk
    angles = class_view_angles(sml.labels_[good], truth.rotations[good])
    return sml, {"f15": round(float((angles <= 15).mean()), 3), "cpu_s": round(seconds, 1)}


def auc(scores, truth):
    found = {}
    for kind in ("", "noise", "broken", "overlap"):
        asked = ~truth.is_junk | (truth.junk_kind == kind if kind else truth.is_junk)
        found[kind or "all"] = round(float(roc_auc_score(truth.is_junk[asked], -scores[asked])), 3)
    return found


def junk(volume, seed, frame):
    stack, truth = simulate(volume, seed)
    images = prepare(stack, truth, frame=frame)
    sml, found = classify(images, truth)
    scores = {"score_samples": sml.score_samples(images), "log_likelihoods": sml.log_likelihoods(images)}
    return found | {"auc": {name: auc(values, truth) for name, values in scores.items()}}


def colour(volume, seed):
    stack, truth = simulate(volume, seed)
    white = simulate(volume, seed, coloured=False)
    snr = SNR * truth.ring_snr[RINGS].mean() / white[1].ring_snr[RINGS].mean()
    found = {"snr of white noise": round(float(snr), 3)}
    variants = [
        ("coloured", (stack, truth), {}, RESOLUTION),
        ("white, equal ring SNR", simulate(volume, seed, coloured=False, snr=snr), {}, RESOLUTION),
        ("white, equal SNR", white, {}, RESOLUTION),
        ("coloured, not whitened", (stack, truth), {"whiten": False}, RESOLUTION),
    ]
    if seed == 0:  # takes several times as long
        variants.append(("band to Nyquist", (stack, truth), {}, None))
    for name, (data, known), options, band in variants:
        found[name] = classify(prepare(data, known, **options), known, band)[1]["f15"]
    cost = 1 - found["coloured"] / found["white, equal ring SNR"]
    return found | {"cost": round(cost, 3)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volume", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--molecules", nargs="+", default=["70S", "made"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--parts", nargs="+", default=["truth", "colour", "aligner"])
    args = parser.parse_args()
    volumes = {"70S": load_volume(args.volume)[0].astype(np.float32), "made": make_molecule(64, random_state=1)}
    warnings.simplefilter("ignore", ConvergenceWarning)
    path = Path(args.output)
    rows = json.loads(path.read_text()) if path.exists() else []
    for part in args.parts:
        for name in args.molecules:
            for seed in args.seeds:
                row = {"part": part, "molecule": name, "seed": seed}
                if any(row.items() <= known.items() for known in rows):
                    continue
                found = colour(volumes[name], seed) if part == "colour" else junk(volumes[name], seed, part)
                rows.append(row | found)
                print(json.dumps(rows[-1]), flush=True)
                path.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
