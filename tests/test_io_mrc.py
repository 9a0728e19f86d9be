"""MRC files in and out: volumes and stacks of images."""

import os

import mrcfile
import numpy as np
import pytest
from common_io import listing
from numpy.testing import assert_allclose, assert_array_equal

from skcryo.io import (
    load_particles,
    load_volume,
    save_images,
    save_volume,
)


@pytest.mark.parametrize(
    "name, shape, voxel_size",
    [
        ("ribosome_70s_65.mrc", 65, None),
        ("inflammasome_3j9g_64.mrc", 64, 4.4),
        ("toymodel_small_nocenter.mrc", 30, 1.0),
        ("hand-vol.mrc", 64, 1.0),
    ],
)
def test_volumes_of_other_programs(shared_data, name, shape, voxel_size):
    volume, size = load_volume(shared_data / name)
    assert volume.shape == (shape,) * 3 and volume.dtype == np.float32 and size == voxel_size
    assert_array_equal(volume, mrcfile.read(shared_data / name))


@pytest.mark.parametrize("name", ["v.mrc", "v.map", "v.map.gz", "v.mrc.bz2", "v.ccp4"])
@pytest.mark.parametrize("voxel_size", [1.3, None])
def test_volume_round_trip(tmp_path, name, voxel_size):
    volume = np.random.default_rng(0).standard_normal((7, 7, 7))
    save_volume(tmp_path / name, volume, voxel_size)
    again, size = load_volume(tmp_path / name)
    assert_array_equal(again, volume.astype(np.float32))
    assert size == voxel_size
    assert mrcfile.validate(tmp_path / name, print_file=open(os.devnull, "w"))
    with mrcfile.open(tmp_path / name) as mrc:
        assert mrc.is_volume() and mrc.header.mz == 7
    assert listing(tmp_path) == [name]


@pytest.mark.parametrize("axes", [(1, 2, 3), (3, 2, 1), (2, 1, 3), (2, 3, 1), (3, 1, 2), (1, 3, 2)])
def test_volume_axes_in_any_order(tmp_path, axes):
    """mapc, mapr, maps say which axis columns, rows and sections are: what comes out is [z, y, x]."""
    volume = np.random.default_rng(0).standard_normal((5, 5, 5)).astype(np.float32)
    stored = np.empty_like(volume)
    for index in np.ndindex(5, 5, 5):  # section, row, column of the file
        place = dict(zip((axes[2], axes[1], axes[0]), index))
        stored[index] = volume[place[3], place[2], place[1]]
    with mrcfile.new(tmp_path / "v.mrc") as mrc:
        mrc.set_data(stored)
        mrc.header.mapc, mrc.header.mapr, mrc.header.maps = axes
    assert_array_equal(load_volume(tmp_path / "v.mrc")[0], volume)


def test_image_stacks_are_marked_as_such(tmp_path):
    images = np.random.default_rng(0).standard_normal((11, 6, 6))
    save_images(tmp_path / "x.mrcs", (images[i : i + 4] for i in range(0, 11, 4)), 2.5)
    assert mrcfile.validate(tmp_path / "x.mrcs", print_file=open(os.devnull, "w"))
    with mrcfile.open(tmp_path / "x.mrcs") as mrc:
        assert mrc.is_image_stack() and mrc.data.shape == (11, 6, 6) and mrc.voxel_size.x == 2.5
        assert_allclose(
            [mrc.header.dmin, mrc.header.dmax, mrc.header.dmean, mrc.header.rms],
            [images.min(), images.max(), images.mean(), images.std()],
            rtol=1e-5,
        )
        assert_array_equal(mrc.data, images.astype(np.float32))


@pytest.mark.parametrize("mode", [np.int8, np.int16, np.uint16, np.float16, np.float32])
@pytest.mark.parametrize("order", ["<", ">"])
def test_modes_and_byte_orders(tmp_path, mode, order):
    images = np.random.default_rng(0).integers(0, 100, (5, 6, 6)).astype(np.dtype(mode).newbyteorder(order))
    with mrcfile.new(tmp_path / "x.mrcs") as mrc:
        mrc.set_data(images)
        mrc.set_image_stack()
        mrc.voxel_size = 1.1
    stack = load_particles(tmp_path / "x.mrcs")
    assert stack.dtype == np.float32 and stack.pixel_size == 1.1
    assert_array_equal(np.asarray(stack[[3, 0]]), images[[3, 0]].astype(np.float32))


def test_extended_headers_are_skipped(tmp_path, simulated):
    with mrcfile.new(tmp_path / "x.mrcs") as mrc:
        mrc.set_data(np.asarray(simulated))
        mrc.set_extended_header(np.zeros(3, dtype="V1024"))
        mrc.set_image_stack()
    assert_array_equal(np.asarray(load_particles(tmp_path / "x.mrcs")), np.asarray(simulated))
