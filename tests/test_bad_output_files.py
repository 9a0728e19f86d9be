"""Writing what cannot be written: what is wrong is said before anything is written."""

import os

import numpy as np
import pytest
from common_bad_files import L, N, assert_error, good_files

from skcryo.ctf import make_ctf
from skcryo.io import (
    load_particles,
    save_images,
    save_particles,
    save_volume,
    write_star,
)
from skcryo.particles import ParticleStack


@pytest.fixture
def folder(tmp_path):
    return good_files(tmp_path)




def failing_chunks(images):
    yield images[:3]
    raise RuntimeError("the disk of the images failed")


IN_MEMORY = ParticleStack(np.zeros((N, L, L)), pixel_size=1.5)

WRITE_CASES = {
    "labels too short": (
        lambda s, p: write_star(p, s, labels=np.zeros(4, int)),
        r"labels has shape \(4,\) .*6 images",
    ),
    "labels not integers": (lambda s, p: write_star(p, s, labels=np.zeros(N)), "labels must be integers"),
    "labels negative": (lambda s, p: write_star(p, s, labels=[0, 1, -1, 0, 0, 0]), r"labels\[2\] is -1"),
    "labels two-dimensional": (
        lambda s, p: write_star(p, s, labels=np.zeros((N, 2), int)),
        "labels has shape",
    ),
    "shifts too short": (
        lambda s, p: write_star(p, s, shifts=np.zeros((2, 2))),
        r"shifts has shape \(2, 2\)",
    ),
    "shifts nan": (
        lambda s, p: write_star(p, s, shifts=np.full((N, 2), np.nan)),
        r"shifts\[0\] is \[nan, nan\]",
    ),
    "angles too many": (
        lambda s, p: write_star(p, s, in_plane_angles=np.zeros(9)),
        "in_plane_angles has shape",
    ),
    "no rotations": (lambda s, p: write_star(p, s, rotations=np.zeros((N, 3, 3))), "rotations"),
    "rotations too few": (lambda s, p: write_star(p, s, rotations=np.eye(3)[None]), "rotations"),
    "angles and rotations": (
        lambda s, p: write_star(p, s, rotations=np.tile(np.eye(3), (N, 1, 1)), in_plane_angles=np.zeros(N)),
        "not both",
    ),
    "column too short": (
        lambda s, p: write_star(p, s, columns={"score": [1.0]}),
        "column score has 1 values .*6",
    ),
    "no particles": (lambda s, p: write_star(p, s[:0]), "no particles to write"),
    "images in memory only": (lambda s, p: save_particles(p, IN_MEMORY), "in memory only.*images_path"),
    "no pixel size": (
        lambda s, p: save_particles(
            p, IN_MEMORY.replace(pixel_size=None), images_path=p.with_suffix(".mrcs")
        ),
        "no pixel_size",
    ),
    "not .star": (
        lambda s, p: write_star(p.with_suffix(".txt"), s),
        r"out\.txt: the name of a STAR file ends in",
    ),
    "folder missing": (
        lambda s, p: write_star(p.parent / "gone" / "x.star", s),
        "folder does not exist.*gone",
    ),
    "target is a folder": (lambda s, p: write_star(_folder(p), s, overwrite=True), "this is a folder"),
    "parent is a file": (lambda s, p: write_star(p.parent / "x.mrcs" / "x.star", s), "not a folder"),
    "exists": (lambda s, p: write_star(p.parent / "good.star", s), r"overwrite=True.*good\.star"),
    "images_path is path": (
        lambda s, p: save_particles(
            p.parent / "good.star", s, images_path=p.parent / "good.star", overwrite=True
        ),
        "the same file",
    ),
    "images fail half-way": (
        lambda s, p: save_particles(p, s.map(_fail_at_last), images_path=p.with_suffix(".mrcs")),
        "no more pixels",
    ),
    "not a stack": (
        lambda s, p: save_particles(p, np.zeros((N, L, L))),
        "must be a ParticleStack, got ndarray",
    ),
    "stack fails half-way": (
        lambda s, p: save_images(p.with_suffix(".mrcs"), failing_chunks(np.zeros((N, L, L)))),
        "the disk of the images failed",
    ),
    "stack of two sizes": (
        lambda s, p: save_images(p.with_suffix(".mrcs"), iter([np.zeros((3, 8, 8)), np.zeros((2, 6, 6))])),
        r"images 3 and following have shape \(2, 6, 6\), it must be \(m, 8, 8\)",
    ),
    "stack not square": (lambda s, p: save_images(p.with_suffix(".mrcs"), np.ones((2, 4, 6))), "square ones"),
    "stack of nothing": (lambda s, p: save_images(p.with_suffix(".mrcs"), iter([])), "no images to write"),
    "stack .tif": (lambda s, p: save_images(p.with_suffix(".tif"), s), "ends in .mrcs or .mrc"),
    "stack pixel size": (
        lambda s, p: save_images(p.with_suffix(".mrcs"), s, -1.0),
        "pixel_size must be a positive",
    ),
    "map no cube": (lambda s, p: save_volume(p.with_suffix(".mrc"), np.ones((4, 4, 5)), 1.0), r"\(4, 4, 5\)"),
    "map nan": (
        lambda s, p: save_volume(p.with_suffix(".mrc"), np.full((4, 4, 4), np.nan), 1.0),
        "64 voxels",
    ),
    "map voxel size": (
        lambda s, p: save_volume(p.with_suffix(".mrc"), np.ones((4, 4, 4)), 0),
        "voxel_size must be",
    ),
    "map .npy": (
        lambda s, p: save_volume(p.with_suffix(".npy"), np.ones((4, 4, 4)), 1.0),
        "name ends in one of",
    ),
}


def _folder(path):
    path.mkdir(exist_ok=True)
    (path / "keep").touch()
    return path


def _fail_at_last(images):
    raise RuntimeError("no more pixels")


@pytest.mark.parametrize("case", WRITE_CASES)
def test_failed_writes_leave_nothing(folder, case):
    action, message = WRITE_CASES[case]
    stack = load_particles(folder / "good.star")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises((ValueError, OSError, RuntimeError, TypeError), match=message):
        action(stack, folder / "out.star")
    after = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert after == before
    assert not [name for name in os.listdir(folder) if name.endswith(".tmp")]


def test_ctf_of_another_length(folder):
    stack = load_particles(folder / "good.star")
    message = "CTF has 5 records but X has 6 images"
    assert_error(folder, lambda: stack.replace(ctf=make_ctf(5)), ValueError, message)
