"""Poses by an equivariant network: errors of fitted and of new images, what it says of them, equivariance, CPU seconds.

    python benchmarks/pose_net.py --volume ribosome_70s_65.mrc --output benchmarks/results/pose_net.csv

65 px, 5 A, standard spectrum; fitted on N images, then as many new ones, in the frame and hand of the fit. "network" is
the network alone, "refined" with Gauss-Newton steps against the fitted volume, "oracle" new images refined from their
true poses against the true volume. "covered": the share of new images whose error is below the stated 90 % angle.
"turned" and "mirrored": how far poses of turned and mirrored images are from the poses turned and mirrored, by the
network alone (random angles; images turned by splines of order 5 on twice the pixels). CPU seconds of one thread,
milliseconds an image. Junk images do not count for errors; AUC of the uncertainty for telling them. With --fitted the
network is hardly trained, and only the fitted poses are looked at. 8ZPM: a density straight from atoms (8zpm.cif beside
the volume), 64 px of 2 A. Rows are added as they are finished, and a run goes on where it was stopped. Settings chosen
on data seeds 101 and 102 of the 70S.
"""

import argparse
import csv
import os
import time
import warnings

import numpy as np
from sklearn.metrics import roc_auc_score

from skcryo.alignment import FourierImages, refine_poses
from skcryo.datasets import make_molecule, make_particles, volume_from_atoms
from skcryo.fourier import fourier_crop, fourier_pad, rotate_images
from skcryo.io import load_volume
from skcryo.metrics import pose_error
from skcryo.orientation import EquivariantPoseNet
from skcryo.preprocessing import noise_spectrum
from skcryo.projection import VolumeProjector
from skcryo.rotations import geodesic_distance, in_plane_rotation

PIXEL_SIZE, ATOMS_PIXEL_SIZE = 5.0, 2.0
N_NEW, FEW_STEPS = 2000, 100
KEY = ["molecule", "preset", "snr", "n", "seed", "steps"]
FIELDS = [
    *KEY, "fitted", "fitted_median", "fitted_p95", "fitted_above_20", "fitted_oracle", "network", "refined",
    "refined_median", "above_20", "oracle", "network_covered", "refined_covered", "stated_median", "turned_median",
    "turned_max", "mirrored_max", "junk_auc", "converged", "line_agreement", "network_ms", "refined_ms", "fit_s",
]  # fmt: skip


def make(path, molecule, preset, snr, n, seed):
    pixel_size = PIXEL_SIZE
    if molecule == "70S":
        volume = load_volume(path)[0].astype(np.float32)
    elif molecule == "8ZPM":
        pixel_size = ATOMS_PIXEL_SIZE
        volume = volume_from_atoms(os.path.join(os.path.dirname(path), "8zpm.cif"), 64, pixel_size)
    else:
        volume = make_molecule(65, random_state=1)
    return volume, *make_particles(volume, n, preset=preset, snr=snr, pixel_size=pixel_size, random_state=seed)


def degrees(a, b):
    return np.degrees(geodesic_distance(a, b))


def oracle(volume, stack, truth, rows):
    images = FourierImages.from_stack(stack, noise_spectrum(stack), 20, ctf=stack.ctf, pixel_size=stack.pixel_size)
    true = truth.rotations[rows]
    fit = refine_poses(images, VolumeProjector(volume), true, truth.shifts[rows], contrast_std=0.2, n_steps=5)
    return degrees(fit.rotations, true)[~truth.is_junk[rows]].mean()


def equivariance(net, stack):
    images = np.asarray(stack[:300])
    angles = np.random.default_rng(0).uniform(0, 2 * np.pi, len(images))
    ctf = None if stack.ctf is None else stack.ctf[:300]
    if ctf is not None:
        return ["", "", ""]  # a turned image has a turned CTF, which is another test
    poses = net.predict(images)
    L = images.shape[1]
    turned = fourier_crop(rotate_images(fourier_pad(images, 2 * L), angles, order=5), L)
    turned = degrees(net.predict(turned), poses @ in_plane_rotation(-angles))
    mirror = np.roll(images[:, ::-1], 1 - images.shape[1] % 2, axis=1)
    mirrored = degrees(net.predict(mirror), poses @ np.diag([1.0, -1.0, -1.0]))
    return [round(np.median(turned), 4), round(turned.max(), 4), round(mirrored.max(), 5)]


def task(path, molecule, preset, snr, n, seed, steps):
    volume, stack, truth = make(path, molecule, preset, snr, n + N_NEW, seed)
    new, good = stack[n:], ~truth.is_junk
    before = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = {"max_shift": 0} if preset == "paper" else {}
        net = EquivariantPoseNet(max_iter=steps, n_jobs=1, device="cpu", random_state=seed, **options).fit(stack[:n])
    seconds = time.process_time() - before
    fitted = pose_error(net.rotations_[good[:n]], truth.rotations[:n][good[:n]])
    row = dict(zip(KEY, [molecule, preset, snr, n, seed, steps])) | {
        "fitted": round(fitted.mean, 3),
        "fitted_median": round(np.median(fitted.errors), 3),
        "fitted_p95": round(fitted.p95, 3),
        "fitted_above_20": round((fitted.errors > 20).mean(), 5),
        "fitted_oracle": round(oracle(volume, stack[:n], truth, slice(n)), 3),
        "converged": net.converged_,
        "line_agreement": round(net.line_agreement_, 3),
        "fit_s": round(seconds, 1),
    }
    if steps < EquivariantPoseNet().max_iter:
        return row
    results = {}
    for refine in (False, True):
        net.refine = refine
        before = time.process_time()
        poses = net.predict_poses(new)
        spent = 1000 * (time.process_time() - before) / N_NEW
        both = np.concatenate([net.rotations_[good[:n]], poses.rotations])
        errors = pose_error(both, np.concatenate([truth.rotations[:n][good[:n]], truth.rotations[n:]])).errors
        errors, kept = errors[good[:n].sum() :], good[n:]
        results[refine] = errors[kept], poses.uncertainty[kept], spent
        auc = roc_auc_score(~kept, poses.uncertainty) if not kept.all() else ""
    net.refine = False
    turned = equivariance(net, new)
    alone, alone_stated, alone_ms = results[False]
    errors, stated, refined_ms = results[True]
    return row | {
        "network": round(alone.mean(), 3),
        "refined": round(errors.mean(), 3),
        "refined_median": round(np.median(errors), 3),
        "above_20": round((errors > 20).mean(), 5),
        "oracle": round(oracle(volume, new, truth, slice(n, None)), 3),
        "network_covered": round((alone < alone_stated).mean(), 4),
        "refined_covered": round((errors < stated).mean(), 4),
        "stated_median": round(np.median(stated), 3),
        "turned_median": turned[0],
        "turned_max": turned[1],
        "mirrored_max": turned[2],
        "junk_auc": auc and round(auc, 4),
        "network_ms": round(alone_ms, 4),
        "refined_ms": round(refined_ms, 3),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volume", required=True, help="ribosome_70s_65.mrc")
    parser.add_argument("--output", required=True)
    parser.add_argument("--presets", nargs="+", default=["paper", "shifted", "ctf", "experimental"])
    parser.add_argument("--molecules", nargs="+", default=["70S", "make_molecule"])
    parser.add_argument("--snr", nargs="+", type=float, default=[0.12])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--n", type=int, default=2000)
    parser.add_argument("--fitted", action="store_true")
    args = parser.parse_args()
    done, steps = set(), FEW_STEPS if args.fitted else EquivariantPoseNet().max_iter
    if os.path.exists(args.output):
        with open(args.output) as file:
            done = {tuple(row[key] for key in KEY) for row in csv.DictReader(file)}
    else:
        with open(args.output, "w") as file:
            file.write(",".join(FIELDS) + "\n")
    for seed in args.seeds:
        for molecule in args.molecules:
            for preset in args.presets:
                for snr in args.snr:
                    key = (molecule, preset, snr, args.n, seed, steps)
                    if tuple(map(str, key)) not in done:
                        row = task(args.volume, *key)
                        with open(args.output, "a") as file:
                            csv.DictWriter(file, FIELDS).writerow(row)
                        print(row, flush=True)


if __name__ == "__main__":
    main()
