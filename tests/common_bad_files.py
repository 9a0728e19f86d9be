"""Good files to be damaged, and what every case of damage is held to."""

import re

import numpy as np
import pytest

from skcryo.io import (
    save_images,
)

N, L = 6, 8
OPTICS = """data_optics

loop_
_rlnOpticsGroup #1
_rlnVoltage #2
_rlnSphericalAberration #3
_rlnAmplitudeContrast #4
_rlnImagePixelSize #5
_rlnImageSize #6
1 300.0 2.7 0.1 1.5 8
2 200.0 2.7 0.1 1.5 8

"""
NAMES = (
    "rlnImageName rlnOpticsGroup rlnDefocusU rlnDefocusV rlnDefocusAngle rlnAngleRot rlnAngleTilt rlnAnglePsi"
)
ROW = ["{}@x.mrcs", "1", "15000.0", "14000.0", "30.0", "10.0", "20.0", "30.0"]


def rows():
    return [[value.format(i + 1) for value in ROW] for i in range(N)]


def star(table=None, names=NAMES, optics=OPTICS):
    lines = [f"_{name} #{i}" for i, name in enumerate(names.split(), 1)]
    lines += [" ".join(row) for row in (rows() if table is None else table)]
    return optics + "data_particles\n\nloop_\n" + "\n".join(lines) + "\n"


def with_value(row, column, value):
    """The particle table with one value changed."""
    table = rows()
    table[row][NAMES.split().index(column)] = value
    return star(table)


def without(*columns):
    """The particle table without some columns."""
    keep = [i for i, name in enumerate(NAMES.split()) if name not in columns]
    return star([[row[i] for i in keep] for row in rows()], " ".join(NAMES.split()[i] for i in keep))


def renamed(old, new):
    return star(names=NAMES.replace(old, new))


def good_files(folder):
    """Write good images and a good STAR file that names them; return the folder."""
    images = np.random.default_rng(0).standard_normal((N, L, L)).astype(np.float32)
    save_images(folder / "x.mrcs", images, 1.5)
    save_images(folder / "small.mrcs", images[:, 1:-1, 1:-1], 1.5)
    (folder / "good.star").write_text(star())
    return folder


def assert_error(folder, action, error, *messages):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(error) as caught:
        action()
    for message in messages:
        assert re.search(message, str(caught.value)), f"{message!r} is not in {str(caught.value)!r}"
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
