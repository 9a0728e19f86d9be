"""Damaged, incomplete and contradictory files: each error names the file, the particle and the reason.

Every case runs in a folder of its own and must leave it as it was: no part of an output, no temporary file.
"""

import gzip
import re

import mrcfile
import numpy as np
import pytest
from common_bad_files import OPTICS, L, N, assert_error, good_files, renamed, rows, star, with_value, without

from skcryo.io import (
    load_particles,
    load_volume,
    read_star,
    save_images,
    save_volume,
)
from skcryo.particles import iter_chunks


@pytest.fixture
def folder(tmp_path):
    return good_files(tmp_path)


def test_the_good_files_are_good(folder):
    """So that each case below fails for the reason that it is about."""
    stack = load_particles(folder / "good.star")
    assert stack.shape == (N, L, L) and stack.ctf is not None and stack.rotations is not None


MICROGRAPH_OLD = "rlnImageName rlnMagnification rlnDetectorPixelSize"

STAR_CASES = {
    "index beyond the file": (
        with_value(3, "rlnImageName", "7@x.mrcs"),
        "row 4: .*7@x.mrcs .*x.mrcs has 6 images",
    ),
    "index 0": (with_value(2, "rlnImageName", "0@x.mrcs"), "row 3: .*'0@x.mrcs', .*counted from 1"),
    "negative index": (with_value(2, "rlnImageName", "-1@x.mrcs"), "row 3: .*counted from 1"),
    "index is no number": (with_value(0, "rlnImageName", "one@x.mrcs"), "row 1: .*'one@x.mrcs'"),
    "no file after @": (with_value(0, "rlnImageName", "1@"), "row 1: .*'1@'"),
    "no number and @": (with_value(5, "rlnImageName", "x.mrcs"), "row 6: .*expected number@file"),
    "missing images": (
        with_value(4, "rlnImageName", "1@gone/y.mrcs"),
        r"row 5: .*gone/y.mrcs is not in .* \(1 of 2 files are missing\); images_dir",
    ),
    "mixed image sizes": (
        with_value(1, "rlnImageName", "2@small.mrcs"),
        "row 2: images differ in size: .*small.mrcs",
    ),
    "no rlnImageName": (
        renamed("rlnImageName", "rlnMicrographName"),
        "no table with the column rlnImageName",
    ),
    "not a number": (with_value(2, "rlnDefocusU", "1,5e4"), "row 3: rlnDefocusU is '1,5e4', .*finite number"),
    "number is nan": (with_value(2, "rlnDefocusV", "nan"), "row 3: rlnDefocusV is 'nan', .*finite number"),
    "number is missing": (with_value(0, "rlnAngleRot", "<NA>"), "row 1: rlnAngleRot is '<NA>'"),
    "number is infinite": (with_value(1, "rlnAnglePsi", "inf"), "row 2: rlnAnglePsi is 'inf'"),
    "unknown optics group": (
        with_value(3, "rlnOpticsGroup", "9"),
        "row 4: rlnOpticsGroup 9 is not in the optics",
    ),
    "no optics group": (without("rlnOpticsGroup"), "no rlnOpticsGroup but there are several"),
    "one CTF column": (
        without("rlnDefocusV", "rlnDefocusAngle"),
        r"CTF is incomplete, columns missing: rlnDefocusV, rlnDefocusAngle \(present: rlnDefocusU",
    ),
    "no voltage": (star(optics=OPTICS.replace("rlnVoltage", "other")), "columns missing: rlnVoltage"),
    "only phase shift": (
        renamed("rlnDefocusU rlnDefocusV rlnDefocusAngle", "rlnPhaseShift other another"),
        "columns missing: rlnDefocusU, rlnDefocusV, rlnDefocusAngle",
    ),
    "voltage 0": (star(optics=OPTICS.replace("300.0", "0.0")), r"'voltage'\] is 0, it must be positive"),
    "no psi": (without("rlnAnglePsi"), "poses are incomplete, columns missing: rlnAnglePsi"),
    "only rot": (without("rlnAnglePsi", "rlnAngleTilt"), "columns missing: rlnAngleTilt, rlnAnglePsi"),
    "only one origin": (
        renamed("rlnAngleRot rlnAngleTilt", "rlnOriginXAngst other"),
        "missing: rlnOriginYAngst",
    ),
    "ragged row": (
        star([*rows()[:3], rows()[3][:-1], *rows()[4:]]),
        r"line 27 \(row 4 of .*7 values for 8 columns",
    ),
    "too long a row": (
        star([*rows()[:3], [*rows()[3], "1"], *rows()[4:]]),
        r"row 4 of .*9 values for 8 columns",
    ),
    "duplicated column": (renamed("rlnDefocusV", "rlnDefocusU"), "duplicate tag _rlnDefocusU"),
    "empty table": (star([]), "data_particles is empty"),
    "empty file": ("", "no table with the column rlnImageName"),
    "no STAR at all": ("<html>404 not found</html>\n", "not a valid STAR file"),
    "unclosed quote": (star().replace("1@x.mrcs", "'1@x.mrcs"), "not a valid STAR file"),
    "two particle tables": (
        star().replace("data_particles", "data_a") + star(optics="").replace("data_particles", "data_b"),
        r"several tables with the column rlnImageName \(tables: data_optics, data_a, data_b\)",
    ),
    "same optics group twice": (
        star(optics=OPTICS.replace("\n2 200", "\n1 200")),
        "rlnOpticsGroup is there twice",
    ),
    "empty optics table": (star(optics=OPTICS.split("\n1 300")[0] + "\n\n"), "data_optics is empty"),
    "mixed pixel sizes": (
        with_value(2, "rlnOpticsGroup", "2").replace("2 200.0 2.7 0.1 1.5", "2 200.0 2.7 0.1 1.6"),
        r"pixel size: 1.5 A in row 1, 1.6 A in row 3 \(optics groups 1 and 2\)",
    ),
    "pixel size 0": (star(optics=OPTICS.replace("1.5 8", "0 8")), "row 1: the pixel size is 0 A"),
    "another image size": (
        star(optics=OPTICS.replace("1.5 8", "1.5 16")),
        "row 1: rlnImageSize is 16 but the images of .*x.mrcs are 8 pixels across",
    ),
    "subtomograms": (
        star(optics=OPTICS.replace("rlnImageSize", "rlnImageDimensionality").replace("1.5 8", "1.5 3")),
        "row 1: rlnImageDimensionality is 3, only 2-D images",
    ),
    "magnification alone": (
        star([["1@x.mrcs", "10000"]], "rlnImageName rlnMagnification", ""),
        "pixel size is incomplete, the column rlnDetectorPixelSize is missing",
    ),
    "magnification 0": (star([["1@x.mrcs", "0", "5"]], MICROGRAPH_OLD, ""), "row 1: the pixel size is inf A"),
    "magnification differs": (
        star([["1@x.mrcs", "10000", "5"], ["2@x.mrcs", "20000", "5"]], MICROGRAPH_OLD, ""),
        "5 A in row 1, 2.5 A in row 2",
    ),
    "Angstrom without pixel size": (
        star([["1@x.mrcs", "3.0", "1.0"]], "rlnImageName rlnOriginXAngst rlnOriginYAngst", ""),
        "rlnOriginXAngst, rlnOriginYAngst are in Angstrom and the file has no pixel size; give pixel_size",
    ),
}


@pytest.mark.parametrize("case", STAR_CASES)
def test_bad_star_files(folder, case):
    text, message = STAR_CASES[case]
    (folder / "bad.star").write_text(text)
    assert_error(
        folder, lambda: load_particles(folder / "bad.star"), (ValueError, OSError), r"bad\.star", message
    )


def test_star_that_is_not_text(folder):
    (folder / "bad.star").write_bytes(star().encode().replace(b"15000.0", b"15\xff\xfe0"))
    assert_error(folder, lambda: load_particles(folder / "bad.star"), ValueError, r"bad\.star")


# Files of images ------------------------------------------------------------------------------------------


def cut(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def cut_in_header(path):
    path.write_bytes(path.read_bytes()[:500])


def empty(path):
    path.write_bytes(b"")


def noise(path):
    path.write_bytes(np.random.default_rng(0).integers(0, 256, 5000).astype(np.uint8).tobytes())


def header_value(offset, value):
    def change(path):
        data = bytearray(path.read_bytes())
        data[offset : offset + 4] = np.int32(value).tobytes()
        path.write_bytes(data)

    return change


def complex_mode(path):
    mrcfile.write(path, np.ones((N, L, L), dtype=np.complex64), overwrite=True)


def not_square(path):
    with mrcfile.new(path, overwrite=True) as mrc:
        mrc.set_data(np.ones((N, L, L - 2), dtype=np.float32))
        mrc.set_image_stack()


def html(path):
    path.write_text("<html>Please log in</html>" * 100)


def broken_gzip(path):
    path.write_bytes(gzip.compress(path.read_bytes())[:-40])


IMAGE_CASES = {
    "truncated": (
        cut,
        r"truncated, the header promises 6 x 8 x 8 pixels in 2560 bytes but the file has 1280",
    ),
    "truncated header": (cut_in_header, "not a readable MRC file"),
    "empty": (empty, "not a readable MRC file"),
    "noise": (noise, "not a readable MRC file|truncated"),
    "a web page": (html, "not a readable MRC file|truncated"),
    "no images": (header_value(8, 0), r"not a readable MRC file \(size 8 x 8 x 0"),
    "negative size": (header_value(0, -8), "not a readable MRC file"),
    "unknown mode": (header_value(12, 77), "not a readable MRC file"),
    "complex mode": (complex_mode, "mode 4 holds complex numbers"),
    "not square": (not_square, "images have 6 x 8 pixels, particles must be square"),
    "axes exchanged": (header_value(64, 3), r"axes are stored in the order \(3, 2, 3\)"),
    "extended header beyond the file": (header_value(92, 10**6), "truncated"),
    "negative extended header": (header_value(92, -5), "extended header -5 bytes"),
    "broken gzip": (broken_gzip, "not a readable MRC file"),
}


@pytest.mark.parametrize("case", IMAGE_CASES)
@pytest.mark.parametrize("through_star", [True, False])
def test_bad_files_of_images(folder, case, through_star):
    damage, message = IMAGE_CASES[case]
    damage(folder / "x.mrcs")
    if through_star:
        action, names = (
            lambda: load_particles(folder / "good.star"),
            [r"good\.star: particle row 1", r"x\.mrcs"],
        )
    else:
        action, names = lambda: load_particles(folder / "x.mrcs"), [r"x\.mrcs"]
    assert_error(folder, action, ValueError, *names, message)


@pytest.mark.parametrize("value, kind", [(np.nan, "NaN"), (np.inf, "infinity")])
def test_pixels_that_are_not_finite(folder, value, kind):
    np.memmap(folder / "x.mrcs", np.float32, "r+", offset=1024, shape=(N, L, L))[4, 1, 1] = value
    stack = load_particles(folder / "good.star")[[5, 4]]
    message = rf"Input X contains {kind}: image 1 \(image 5 of .*x\.mrcs\)"
    assert_error(folder, lambda: list(iter_chunks(stack, check_finite=True)), ValueError, message)
    assert_error(
        folder, lambda: save_images(folder / "new.mrcs", stack), ValueError, "image 1 has pixels that are NaN"
    )


def test_bytes_behind_the_images_are_told_of(folder):
    with open(folder / "x.mrcs", "ab") as file:
        file.write(bytes(100))
    with pytest.warns(UserWarning, match=r"x\.mrcs: 100 bytes after the last image are ignored"):
        assert len(load_particles(folder / "x.mrcs")) == N


@pytest.mark.parametrize("name", ["rlnCtfDataAreCtfPremultiplied", "rlnCtfDataArePhaseFlipped"])
def test_images_that_are_not_raw_are_told_of(folder, name):
    (folder / "x.star").write_text(
        star(optics=OPTICS.replace("_rlnImageSize #6", f"_{name} #6").replace(" 8\n", " 1\n"))
    )
    with pytest.warns(UserWarning, match=f"{name} says that 6 images"):
        load_particles(folder / "x.star")


# .cs files ------------------------------------------------------------------------------------------------


def records(**changes):
    fields = {
        "uid": np.arange(N, dtype=np.uint64),
        "blob/path": np.array([b">x.mrcs"] * N),
        "blob/idx": np.arange(N, dtype=np.int64),
        "blob/psize_A": np.full(N, 1.5),
        "ctf/accel_kv": np.full(N, 300.0),
        "ctf/cs_mm": np.full(N, 2.7),
        "ctf/amp_contrast": np.full(N, 0.1),
        "ctf/df1_A": np.full(N, 15000.0),
        "ctf/df2_A": np.full(N, 15000.0),
        "ctf/df_angle_rad": np.zeros(N),
        "alignments3D/pose": np.zeros((N, 3)),
        "alignments3D/shift": np.zeros((N, 2)),
    }
    for name, value in changes.items():
        if value is None:
            del fields[name]
        else:
            fields[name] = np.asarray(value)
    array = np.zeros(N, dtype=[(name, value.dtype, value.shape[1:]) for name, value in fields.items()])
    for name, value in fields.items():
        array[name] = value
    return array


def at(row, value, otherwise):
    values = np.full(N, otherwise, dtype=np.result_type(type(value), type(otherwise)))
    values[row] = value
    return values


CS_CASES = {
    "pickled objects": (
        np.array([{"a": print}], dtype=object),
        "holds pickled objects, which are never loaded",
    ),
    "not records": (np.zeros((3, 3)), "no named fields"),
    "no particles": (records()[:0], "has no particles"),
    "no blob": (records(**{"blob/path": None, "blob/idx": None}), "does not say where the images are"),
    "part of a CTF": (
        records(**{"ctf/df2_A": None, "ctf/cs_mm": None}),
        "CTF is incomplete, fields missing: ctf/df2_A, ctf/cs_mm",
    ),
    "defocus nan": (records(**{"ctf/df1_A": at(2, np.nan, 1e4)}), r"ctf\[2\]\['defocus_u'\] is nan"),
    "pose nan": (
        records(**{"alignments3D/pose": np.full((N, 3), np.nan)}),
        "row 1: pose is .*must be finite",
    ),
    "shift inf": (
        records(**{"alignments3D/shift": np.full((N, 2), np.inf)}),
        "row 1: shift is .*must be finite",
    ),
    "index beyond the file": (records(**{"blob/idx": at(3, 6, 0)}), "row 4: .*000007@x.mrcs .*has 6 images"),
    "negative index": (records(**{"blob/idx": at(3, -1, 0)}), "row 4: blob/idx is -1"),
    "missing images": (records(**{"blob/path": [b">y.mrcs"] * N}), "row 1: .*y.mrcs is not in"),
    "mixed pixel sizes": (records(**{"blob/psize_A": at(1, 2.0, 1.5)}), "1.5 A in row 1, 2 A in row 2"),
    "pixel size 0": (records(**{"blob/psize_A": np.zeros(N)}), "row 1: blob/psize_A is 0"),
    "path is a number": (records(**{"blob/path": np.zeros(N)}), "names are stored as float64"),
}


@pytest.mark.parametrize("case", CS_CASES)
def test_bad_cs_files(folder, case):
    array, message = CS_CASES[case]
    with open(folder / "bad.cs", "wb") as file:
        np.save(file, array)
    assert_error(
        folder, lambda: load_particles(folder / "bad.cs"), (ValueError, OSError), r"bad\.cs", message
    )


@pytest.mark.parametrize(
    "data, message",
    [
        (b"", "not a .cs file"),
        (b"PK\x03\x04 zipped", "not a .cs file"),
        (b"\x94CSDAT1234", "CSDAT format"),
        (b"\x93NUMPY\x01\x00garbage", "not a readable .cs file"),
    ],
)
def test_cs_files_that_are_something_else(folder, data, message):
    (folder / "bad.cs").write_bytes(data)
    assert_error(folder, lambda: load_particles(folder / "bad.cs"), ValueError, r"bad\.cs", message)


def test_cs_file_that_is_cut(folder):
    with open(folder / "bad.cs", "wb") as file:
        np.save(file, records())
    cut(folder / "bad.cs")
    assert_error(
        folder, lambda: load_particles(folder / "bad.cs"), ValueError, r"bad\.cs: not a readable .cs file"
    )


# Paths ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("load", [load_particles, load_volume, read_star])
def test_paths_that_are_no_file(folder, load):
    assert_error(
        folder, lambda: load(folder / "gone.star"), FileNotFoundError, r"gone\.star", "does not exist"
    )
    (folder / "dir.star").mkdir()
    assert_error(
        folder, lambda: load(folder / "dir.star"), IsADirectoryError, r"dir\.star", "this is a folder"
    )


@pytest.mark.parametrize("name", ["x.txt", "x.tif", "x.star.bak", "x"])
def test_unknown_endings(folder, name):
    (folder / name).write_text(star())
    assert_error(
        folder,
        lambda: load_particles(folder / name),
        ValueError,
        re.escape(name),
        "are loaded from .star, .cs",
    )


def test_nothing_to_load_and_no_folder_of_images(folder):
    assert_error(folder, lambda: load_particles([]), ValueError, "empty list")
    action = lambda: load_particles(folder / "good.star", images_dir=folder / "gone")  # noqa: E731
    assert_error(folder, action, FileNotFoundError, "images_dir: .*gone is not a folder")


def test_files_that_do_not_go_together(folder):
    def load_both():
        load_particles([folder / "good.star", folder / "other.star"])

    cases = {
        star().replace(
            "1.5 8", "1.6 8"
        ): "differ in pixel size: .*other.star has 1.6 A, .*good.star has 1.5 A",
        star()
        .replace("x.mrcs", "small.mrcs")
        .replace("1.5 8", "1.5 6"): "other.star has 6 pixels across, .*good.star",
        without(
            "rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle"
        ): "good.star has ctf but .*other.star has none",
        without("rlnAngleRot", "rlnAngleTilt"): "good.star has rotations but .*other.star has none",
    }
    for text, message in cases.items():
        (folder / "other.star").write_text(text)
        assert_error(folder, load_both, ValueError, message)
    assert_error(
        folder,
        lambda: load_particles([folder / "good.star", folder / "x.mrcs"]),
        ValueError,
        r"good\.star has ctf but .*x\.mrcs has none",
    )


def test_old_and_new_dialects_are_not_joined(folder):
    names = "rlnImageName rlnMagnification rlnDetectorPixelSize"
    (folder / "old.star").write_text(star([["1@x.mrcs", "10000", "1.5"]], names, ""))
    (folder / "new.star").write_text(star([["1@x.mrcs", "1"]], "rlnImageName rlnOpticsGroup"))

    def load_both():
        with pytest.warns(UserWarning, match="left out"):
            load_particles([folder / "old.star", folder / "new.star"])

    assert_error(folder, load_both, ValueError, r"old\.star.*only one of them has optics groups")


# Volumes --------------------------------------------------------------------------------------------------


def write_volume(path, data, **header):
    with mrcfile.new(path) as mrc:
        mrc.set_data(np.asarray(data, dtype=np.float32))
        for name, value in header.items():
            mrc.header[name] = value


VOLUME_CASES = {
    "not a cube": (lambda p: write_volume(p, np.ones((4, 4, 5))), "5 x 4 x 4 voxels, it must be a cube"),
    "an image": (lambda p: write_volume(p, np.ones((4, 4))), "4 x 4 x 1 voxels, it must be a cube"),
    "no voxels": (lambda p: write_volume(p, np.ones((4, 4, 4)), nz=0), "not a readable MRC file"),
    "axes": (lambda p: write_volume(p, np.ones((4, 4, 4)), mapc=2), r"\[2, 2, 3\], is not a permutation"),
    "voxels no cubes": (lambda p: write_volume(p, np.ones((4, 4, 4)), cella=(4, 8, 4)), "1 x 2 x 1 A"),
    "text": (lambda p: p.write_text("no map" * 500), "not a readable MRC file|truncated"),
}


@pytest.mark.parametrize("case", VOLUME_CASES)
def test_bad_maps(tmp_path, case):
    build, message = VOLUME_CASES[case]
    build(tmp_path / "bad.mrc")
    assert_error(tmp_path, lambda: load_volume(tmp_path / "bad.mrc"), ValueError, r"bad\.mrc", message)


@pytest.mark.parametrize("name", ["bad.mrc", "bad.map.gz"])
def test_cut_maps(tmp_path, name):
    save_volume(tmp_path / name, np.random.default_rng(0).random((8, 8, 8)), 1.0)
    cut(tmp_path / name)
    assert_error(
        tmp_path,
        lambda: load_volume(tmp_path / name),
        ValueError,
        re.escape(name),
        "truncated|not a readable",
    )


def test_maps_with_voxels_that_are_not_finite(tmp_path):
    save_volume(tmp_path / "bad.mrc", np.ones((4, 4, 4)), 1.0)
    stored = np.memmap(tmp_path / "bad.mrc", np.float32, "r+", offset=1024, shape=(4, 4, 4))
    stored[1, 2, 3], stored[3, 0, 0] = np.nan, np.inf
    stored.flush()
    message = r"bad\.mrc: 2 voxels are NaN or infinite, the first at \[z, y, x\] = \[1, 2, 3\]"
    assert_error(tmp_path, lambda: load_volume(tmp_path / "bad.mrc"), ValueError, message)


def test_a_map_is_not_taken_for_particles(tmp_path):
    save_volume(tmp_path / "map.mrc", np.ones((8, 8, 8)), 1.0)
    assert_error(
        tmp_path, lambda: load_particles(tmp_path / "map.mrc"), ValueError, r"map\.mrc: .*use load_volume"
    )
