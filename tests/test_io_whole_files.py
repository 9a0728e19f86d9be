"""Whole files or none, and checkpoints."""

import os
import shutil
import stat
import sys

import numpy as np
import pytest
from common_io import listing
from numpy.testing import assert_array_equal

from skcryo.io import (
    atomic_path,
    load_checkpoint,
    load_particles,
    save_checkpoint,
    save_images,
    save_particles,
    save_volume,
)

# Whole files or none --------------------------------------------------------------------------------------


def test_atomic_path_leaves_nothing_behind(tmp_path):
    target = tmp_path / "x.txt"
    target.write_text("before")
    for error in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(error), atomic_path(target, overwrite=True) as temporary:
            temporary.write_text("half")
            raise error
        assert target.read_text() == "before" and listing(tmp_path) == ["x.txt"]
    with pytest.raises(FileExistsError, match="overwrite=True"), atomic_path(target):
        pass
    with atomic_path(target, overwrite=True) as temporary:
        assert temporary.parent == tmp_path
        temporary.write_text("after")
    assert target.read_text() == "after" and listing(tmp_path) == ["x.txt"]


def test_atomic_path_does_not_replace_what_appeared_meanwhile(tmp_path):
    with pytest.raises(FileExistsError), atomic_path(tmp_path / "x") as temporary:
        temporary.write_text("mine")
        (tmp_path / "x").write_text("theirs")
    assert (tmp_path / "x").read_text() == "theirs" and listing(tmp_path) == ["x"]


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions")
def test_files_have_ordinary_permissions(tmp_path, simulated):
    (tmp_path / "plain").write_text("")
    save_particles(tmp_path / "x.star", simulated, images_path=tmp_path / "x.mrcs")
    modes = {stat.S_IMODE(os.stat(tmp_path / name).st_mode) for name in ("plain", "x.star", "x.mrcs")}
    assert len(modes) == 1


def test_nothing_is_overwritten_unasked(simulated, tmp_path):
    writers = [
        lambda overwrite: save_images(tmp_path / "x.mrcs", simulated, overwrite=overwrite),
        lambda overwrite: save_volume(tmp_path / "v.mrc", np.ones((4, 4, 4)), 1.0, overwrite=overwrite),
        lambda overwrite: save_particles(
            tmp_path / "y.star", simulated, images_path=tmp_path / "y.mrcs", overwrite=overwrite
        ),
    ]
    for write in writers:
        write(False)
        before = {path: path.read_bytes() for path in tmp_path.iterdir()}
        with pytest.raises(FileExistsError, match="overwrite=True"):
            write(False)
        write(True)
        assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    (tmp_path / "y.star").unlink()
    with pytest.raises(FileExistsError, match=r"y\.mrcs"):
        writers[2](False)
    assert not (tmp_path / "y.star").exists()


def test_a_file_may_be_written_over_itself(simulated, tmp_path):
    save_particles(tmp_path / "x.star", simulated, images_path=tmp_path / "x.mrcs")
    stack = load_particles(tmp_path / "x.star")
    save_particles(tmp_path / "x.star", stack, labels=np.arange(6), overwrite=True)
    save_images(tmp_path / "x.mrcs", stack[::-1], overwrite=True)
    assert_array_equal(np.asarray(load_particles(tmp_path / "x.star")), np.asarray(simulated)[::-1])


# Checkpoints ----------------------------------------------------------------------------------------------


def test_checkpoints(tmp_path):
    folder = tmp_path / "new" / "folder"
    assert load_checkpoint(folder, "fit") is None
    rng = np.random.default_rng(0)
    arrays = {
        "a": rng.random((3, 4)),
        "group/b": np.arange(5, dtype=np.int16),
        "empty": np.zeros((0, 2), np.float32),
    }
    info = {
        "n_iter": np.int64(3),
        "rng": rng.bit_generator.state,
        "loss": [0.1, np.float32(0.5)],
        "name": "Ä",
        "x": None,
    }
    for round_ in range(2):
        save_checkpoint(folder, "fit", {**arrays, "round": np.array(round_)}, info)
    loaded, again = load_checkpoint(folder, "fit")
    assert listing(folder) == ["fit.npz"] and loaded.pop("round") == 1
    assert set(loaded) == set(arrays)
    for name, array in arrays.items():
        assert_array_equal(loaded[name], array)
        assert loaded[name].dtype == array.dtype
    assert again["n_iter"] == 3 and again["rng"] == rng.bit_generator.state and again["loss"] == [0.1, 0.5]


def test_checkpoints_hold_no_objects(tmp_path):
    save_checkpoint(tmp_path, "fit", {"a": np.ones(2)}, {"n": 1})
    with pytest.raises(TypeError, match="'b' has dtype object"):
        save_checkpoint(tmp_path, "fit", {"b": np.array([{}])}, {})
    with pytest.raises(TypeError, match="cannot hold set"):
        save_checkpoint(tmp_path, "fit", {}, {"a": {1}})
    with pytest.raises(ValueError, match="plain file name"):
        save_checkpoint(tmp_path, "../fit", {}, {})
    assert load_checkpoint(tmp_path, "fit")[1] == {"n": 1} and listing(tmp_path) == ["fit.npz"]


@pytest.mark.parametrize("damage", ["truncated", "flipped", "text", "foreign", "pickled"])
def test_damaged_checkpoints_are_named(tmp_path, damage):
    save_checkpoint(tmp_path, "fit", {"a": np.arange(1000.0)}, {"n": 1})
    path = tmp_path / "fit.npz"
    data = bytearray(path.read_bytes())
    if damage == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "flipped":
        data[3000] ^= 0xFF
        path.write_bytes(data)
    elif damage == "text":
        path.write_text("not a checkpoint")
    elif damage == "foreign":
        np.savez(path, a=np.ones(3))
    else:
        np.savez(path, a=np.array([print], dtype=object), __info__=np.zeros(2, np.uint8))
    with pytest.raises(ValueError, match=r"fit\.npz: not a readable checkpoint"):
        load_checkpoint(tmp_path, "fit")


def test_loading_writes_nothing(shared_data, tmp_path):
    shutil.copy(shared_data / "rln_proj_64_shifted.star", tmp_path)
    shutil.copy(shared_data / "rln_proj_64_shifted.mrcs", tmp_path)
    np.asarray(load_particles(tmp_path / "rln_proj_64_shifted.star"))
    assert listing(tmp_path) == ["rln_proj_64_shifted.mrcs", "rln_proj_64_shifted.star"]
