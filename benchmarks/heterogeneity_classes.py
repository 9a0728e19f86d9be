"""Two states from raw images alone: precision of the classes, and volumes of a hinged molecule beside the truth.

    python benchmarks/heterogeneity_classes.py --volume ribosome_70s_65.mrc --output benchmarks/results/...

`AbInitioVolume(n_classes=2)` as it comes, 2000 images of 64 px, 5 A, data seeds 0 to 2; settings chosen on data seeds
101 to 103. "ball": a 70S ribosome and the same with a ball of 9.8 % of its energy. "hinge": `make_molecule` with one
domain turned by 40 degrees or not. Beside the precision at the poses found stand those with the true poses, and with
the true volumes and true poses. Volumes are turned into the truth's frame by the poses. Rows are added as they are
finished, and a run goes on where it was stopped; ``--picture`` draws the states of a hinge.
"""

import argparse
import json
import os
import time
import warnings

import numpy as np
from joblib import Parallel, delayed
from scipy.ndimage import map_coordinates
from sklearn.exceptions import ConvergenceWarning

from skcryo.alignment import FourierImages
from skcryo.datasets import make_molecule, make_particles
from skcryo.fourier import fourier_pad
from skcryo.io import atomic_path, load_volume
from skcryo.metrics import fsc, fsc_area, fsc_resolution, partition_precision, pose_error
from skcryo.preprocessing import noise_spectrum
from skcryo.projection import VolumeProjector, project
from skcryo.reconstruction import AbInitioVolume
from skcryo.reconstruction._principal_volumes import principal_volumes
from skcryo.reconstruction._volume_classes import classify
from skcryo.rotations import random_rotations

L, PIXEL_SIZE, N_IMAGES = 64, 5.0, 2000
CASES = [
    ("ball", "shifted", 0.12, 0.8),
    ("ball", "ctf", 0.12, 0.5),
    ("hinge", "shifted", 0.15, 0.5),
    ("hinge", "ctf", 0.15, 0.5),
]
KEY = ("states", "preset", "snr", "share", "seed")
_MIRROR = np.diag([1.0, 1.0, -1.0])


def states(kind, path):
    """Two volumes."""
    if kind == "hinge":
        return np.stack([make_molecule(L), make_molecule(L, hinge=40)])
    molecule = load_volume(path)[0].astype(np.float32)[:L, :L, :L]
    molecule = molecule / np.abs(molecule).max()
    place = np.arange(L) - L // 2
    radius = np.sqrt(place[:, None, None] ** 2 + (place[:, None] + 20) ** 2 + place**2)
    ball = 0.7 * np.clip(5.5 - radius, 0, 1)
    return np.stack([molecule, molecule + ball]).astype(np.float32)


def into_frame(volume, rotations, shifts, truth):
    """A volume in the frame, of the hand and about the centre of the true poses; in the box of the images."""
    found = pose_error(rotations, truth.rotations)
    right = found.errors < 20
    rows = np.swapaxes(rotations[right][:, :, :2], 1, 2)
    origin = np.linalg.lstsq(rows.reshape(-1, 3), (truth.shifts - shifts)[right].reshape(-1), rcond=None)[0]
    back = (_MIRROR if found.reflected else np.eye(3)) @ found.gauge.T
    fine = fourier_pad(volume.astype(np.float32), 2 * L, ndim=3)
    place = np.arange(L) - L // 2
    z, y, x = np.meshgrid(place, place, place, indexing="ij")
    at = np.tensordot(back, np.stack([x, y, z]), axes=1) + origin[:, None, None, None]
    return map_coordinates(fine, 2 * at[::-1] + L, order=3).astype(np.float32)


def references(volumes, stack, truth):
    """Precision with the true poses, and with the true volumes and poses: what more could be had."""
    images = FourierImages.from_stack(stack, noise_spectrum(stack), 20, ctf=stack.ctf, pixel_size=PIXEL_SIZE)
    model = principal_volumes(images, truth.rotations, truth.shifts, mask_radius=0.42 * L, random_state=0)
    labels = classify(model.coordinates, model.covariance, 2, random_state=0)[0]
    errors = []
    for volume in volumes:
        model = VolumeProjector(volume).slices(truth.rotations, images.points) * images.filters
        model *= images.centred_phases(truth.shifts).conj()
        errors.append(np.square(np.abs(images.values - model)).sum(axis=1))
    oracle = np.argmin(errors, axis=0)
    return partition_precision(truth.labels, labels), partition_precision(truth.labels, oracle)


def task(kind, path, preset, snr, share, seed, picture):
    volumes = states(kind, path)
    stack, truth = make_particles(
        volumes, N_IMAGES, preset=preset, snr=snr, pixel_size=PIXEL_SIZE, proportions=[share, 1 - share],
        random_state=seed,
    )
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        fit = AbInitioVolume(n_classes=2, random_state=seed, n_jobs=1).fit(stack)
    cpu = time.process_time() - start
    with_truth, oracle = references(volumes, stack, truth)
    row = dict(zip(KEY, (kind, preset, snr, share, seed)))
    row |= {
        "precision": partition_precision(truth.labels, fit.labels_), "precision_true_poses": with_truth,
        "precision_true_volumes": oracle, "converged": fit.converged_,
        "pose_error_mean": pose_error(fit.rotations_, truth.rotations).mean, "cpu_s": cpu,
    }
    order = [0, 1] if (fit.labels_ == truth.labels).mean() > 0.5 else [1, 0]
    found = [into_frame(fit.class_volumes_[k], fit.rotations_, fit.shifts_, truth) for k in order]
    same = into_frame(fit.volume_, fit.rotations_, fit.shifts_, truth)
    for name, estimate in (("classes", found), ("consensus", [same, same])):
        row[name] = [
            {
                "own" if own == other else "other": {
                    "resolution_px": fsc_resolution(fsc(volume, volumes[other]), 0.5),
                    "area": fsc_area(fsc(volume, volumes[other]), 20),
                }
                for other in (0, 1)
            }
            for own, volume in enumerate(estimate)
        ]
    moved, true = found[1] - found[0], volumes[1] - volumes[0]
    row["difference_fsc"] = fsc(moved, true)[1:17].round(3).tolist()
    row = json.loads(json.dumps(row, default=float))
    if picture:
        draw(found, volumes, picture)
    return row


def draw(found, volumes, path):
    """Slices and projections of the volumes found (above) and true (below), and their differences."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    views = np.concatenate([np.eye(3)[None], random_rotations(2, random_state=1)])
    depth = int(np.square(volumes[1] - volumes[0]).sum(axis=(1, 2)).argmax())
    figure, axes = plt.subplots(6, 4, figsize=(9, 13), layout="constrained")
    names = ("state 1", "state 2", "difference")
    for source, (title, pair) in enumerate((("found", found), ("true", volumes))):
        for k, volume in enumerate([*pair, pair[1] - pair[0]]):
            images = [volume[depth], *project(volume, views)]
            for ax, image, what in zip(axes[2 * k + source], images, ("slice", "view 1", "view 2", "view 3")):
                ax.imshow(image, cmap="gray", origin="lower")
                ax.set_title(f"{names[k]}, {title}, {what}", fontsize=8)
                ax.axis("off")
    with atomic_path(path, overwrite=True) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volume", required=True, help="MRC of the 70S ribosome, 65 px")
    parser.add_argument("--output", required=True)
    parser.add_argument("--picture", help="PNG of the hinge's states, seed 0; the preset is put before its ending")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--cases", type=int, nargs="+", default=list(range(len(CASES))))
    args = parser.parse_args()
    rows = []
    if os.path.exists(args.output):
        with open(args.output) as file:
            rows = json.load(file)
    done = {tuple(row[name] for name in KEY) for row in rows}
    tasks = []
    for seed in args.seeds:
        for kind, preset, snr, share in (CASES[i] for i in args.cases):
            picture = None
            if args.picture and kind == "hinge" and seed == 0:
                root, ending = os.path.splitext(args.picture)
                picture = f"{root}_{preset}{ending}"
            if (kind, preset, snr, share, seed) not in done:
                tasks.append((kind, args.volume, preset, snr, share, seed, picture))
    for row in Parallel(n_jobs=args.jobs, return_as="generator_unordered")(delayed(task)(*t) for t in tasks):
        rows.append(row)
        rows.sort(key=lambda row: [str(row[name]) for name in KEY])
        with atomic_path(args.output, overwrite=True) as temporary, open(temporary, "w") as file:
            json.dump(rows, file, indent=1)
        print(row, flush=True)


if __name__ == "__main__":
    main()
