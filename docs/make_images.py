"""Make the README picture: ``python docs/make_images.py FOLDER``, the folder that ``skcryo demo`` left."""

import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from skcryo.inspection import ClassAveragesDisplay
from skcryo.io import load_particles, read_star

IMAGES = Path(__file__).parent / "images"


def main(demo):
    """Draw the largest classes of a demo, small enough for a repository."""
    averages = load_particles(demo / "class_averages.mrcs")
    labels = read_star(demo / "particles.star").numbers("rlnClassNumber").astype(int) - 1
    figure = Figure(figsize=(7.2, 2.75), dpi=100)
    ClassAveragesDisplay.from_averages(
        np.asarray(averages),
        labels=labels,
        pixel_size=averages.pixel_size,
        n_columns=8,
        max_classes=24,
        ax=figure.add_axes((0.005, 0.03, 0.99, 0.965)),
    )
    IMAGES.mkdir(exist_ok=True)
    path = IMAGES / "demo_montage.png"
    figure.savefig(path)
    # Grey takes a quarter of the space of colour.
    Image.open(path).convert("L").save(path, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
