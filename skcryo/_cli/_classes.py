"""Files and pictures of 2-D classes, by whatever method they were found."""

import shlex

import numpy as np

from ._pictures import picture


def classes_star(counts):
    """The averages as RELION's table of classes, so that its viewer sorts them by size."""
    lines = ["", "# version 30001", "", "data_model_classes", "", "loop_ "]
    lines += ["_rlnReferenceImage #1 ", "_rlnClassDistribution #2 "]
    shares = counts / counts.sum()
    lines += [f"{i:06d}@class_averages.mrcs {share:.6f} " for i, share in enumerate(shares, start=1)]
    return "\n".join([*lines, "", ""])


def draw_montage(path, averages, counts, pixel_size):
    from ..inspection import ClassAveragesDisplay
    from ..inspection._class_averages import montage_figsize

    size = montage_figsize(len(averages))
    with picture(path, "the montage", size=size, place=(0.01, 0.03, 0.98, 0.96)) as ax:
        ClassAveragesDisplay.from_averages(averages, counts=counts, pixel_size=pixel_size, ax=ax)


def next_steps(star, counts):
    best = ",".join(str(i) for i in sorted(np.argsort(-counts, kind="stable")[:3] + 1))
    return [
        ("Keep good classes", f"skcryo classify2d {shlex.quote(star)} --select {best} -o good.star"),
        ("Go on in Python", f"skcryo.io.load_particles({star!r})"),
    ]
