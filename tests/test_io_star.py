"""STAR files in and out: what other programs wrote comes in right, and what goes out can be gone on with."""

import pickle

import gemmi
import mrcfile
import numpy as np
import pytest
from common_io import assert_same_facts, columns_of, listing
from numpy.testing import assert_allclose, assert_array_equal
from scipy.spatial.transform import Rotation

from skcryo.ctf import make_ctf
from skcryo.fourier import rotate_images, shift_images
from skcryo.io import (
    StarTable,
    load_particles,
    read_star,
    save_images,
    save_particles,
    write_star,
)
from skcryo.particles import ParticleStack
from skcryo.projection import project
from skcryo.rotations import in_plane_rotation, random_rotations, relion_from_rotations

WITH_IMAGES = [
    "empiar_10076_7.star",
    "relion31.star",
    "relion31.v2.star",
    "rln_proj_64_centered.star",
    "rln_proj_64_shifted.star",
    "rln_proj_65_centered.star",
    "rln_proj_65_shifted.star",
    "sample_particles_relion30.star",
    "sample_particles_relion31.star",
    "toy_projections.star",
]
ALL_STAR = [
    *WITH_IMAGES,
    "relion31.6opticsgroups.star",
    "relion5.star",
    "rln_proj_64.star",
    "rln_proj_65.star",
]


# What other programs wrote --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WITH_IMAGES)
def test_images_are_those_that_the_names_say(shared_data, name):
    stack = load_particles(shared_data / name)
    rows = columns_of(shared_data / name)["rlnImageName"]
    assert stack.shape[0] == len(stack.metadata) == len(rows)
    for i in (0, len(rows) // 2, len(rows) - 1):
        number, file = rows[i].split("@")
        side = stack.shape[1]
        stored = np.fromfile(shared_data / file, "<f4", offset=1024).reshape(-1, side, side)
        assert_array_equal(stack[i], stored[int(number) - 1])


def test_row_order_does_not_matter(shared_data, tmp_path):
    text = (shared_data / "rln_proj_64_shifted.star").read_text()
    rows = [line for line in text.splitlines() if "@" in line]
    shuffled = [rows[i] for i in (2, 0, 3, 1)]
    (tmp_path / "x.star").write_text(text.replace("\n".join(rows), "\n".join(shuffled)))
    stack = load_particles(tmp_path / "x.star", images_dir=shared_data)
    original = load_particles(shared_data / "rln_proj_64_shifted.star")
    assert_same_facts(stack, original[[2, 0, 3, 1]])
    assert_array_equal(np.asarray(stack), np.asarray(original)[[2, 0, 3, 1]])


@pytest.mark.parametrize(
    "name, expected",
    [
        ("empiar_10076_7.star", 5e4 / 38168),
        ("relion31.star", 2.806),
        ("relion31.v2.star", 2.806),
        ("rln_proj_64_centered.star", 1.0),
        ("sample_particles_relion30.star", 5e4 / 37369.207031),
        ("sample_particles_relion31.star", 1.4),
        ("toy_projections.star", None),
    ],
)
def test_pixel_size(shared_data, name, expected):
    pixel_size = load_particles(shared_data / name).pixel_size
    assert pixel_size == (expected if expected is None else pytest.approx(expected, rel=1e-12))


@pytest.mark.parametrize("name", WITH_IMAGES)
def test_ctf_is_that_of_the_columns(shared_data, name):
    stack = load_particles(shared_data / name)
    particles = columns_of(shared_data / name)
    if "rlnDefocusU" not in particles:
        assert stack.ctf is None
        return
    optics = columns_of(shared_data / name, "_rlnOpticsGroupName")

    def expected(column, default=None):
        if column in particles:
            return [float(value) for value in particles[column]]
        if column in optics:
            of_group = dict(zip(optics["rlnOpticsGroup"], optics[column]))
            return [float(of_group[group]) for group in particles["rlnOpticsGroup"]]
        return [default] * len(stack)

    for field, column, default in (
        ("defocus_u", "rlnDefocusU", None),
        ("defocus_v", "rlnDefocusV", None),
        ("defocus_angle", "rlnDefocusAngle", None),
        ("voltage", "rlnVoltage", None),
        ("cs", "rlnSphericalAberration", None),
        ("amplitude_contrast", "rlnAmplitudeContrast", None),
        ("phase_shift", "rlnPhaseShift", 0.0),
        ("b_factor", "rlnCtfBfactor", 0.0),
        ("scale", "rlnCtfScalefactor", 1.0),
    ):
        assert_array_equal(stack.ctf[field], expected(column, default))


def test_several_optics_groups_give_each_image_its_own_ctf(shared_data):
    stack = load_particles(shared_data / "sample_particles_relion31.star")
    assert_array_equal(stack.ctf["voltage"], [300] * 8 + [200] * 9)
    old = load_particles(shared_data / "sample_particles_relion30.star")
    for field in ("defocus_u", "defocus_v", "defocus_angle", "voltage", "cs", "amplitude_contrast"):
        assert_array_equal(stack.ctf[field], old.ctf[field])


def test_both_metadata_formats_agree(shared_data):
    star, cs = (load_particles(shared_data / f"empiar_10076_7.{ending}") for ending in ("star", "cs"))
    assert_same_facts(star, cs, atol=1e-3)
    assert_array_equal(np.asarray(star), np.asarray(cs))


def test_poses_and_shifts_of_relion(shared_data):
    stack = load_particles(shared_data / "rln_proj_64_shifted.star")
    assert_array_equal(stack.shifts, [[-6, -10], [-10, 5], [8, -11], [13, 3]])
    angles = [[235.820138, 113.08603, 50.468981], [86.698555, 31.958115, 139.545228]]
    expected = Rotation.from_euler("ZYZ", angles, degrees=True).as_matrix()
    assert_allclose(stack.rotations[:2], expected, atol=1e-12)
    in_angstrom = load_particles(shared_data / "relion31.star")
    assert_allclose(in_angstrom.shifts[2], [0.65323 / 2.806, 0.09226 / 2.806])
    in_pixels = load_particles(shared_data / "sample_particles_relion30.star")
    assert_allclose(in_pixels.shifts[5], [-0.4496, -0.9496])


def test_relion5_with_its_images_elsewhere(shared_data, tmp_path):
    (tmp_path / "frames").mkdir()
    for name, n in (("toy_images_a", 17), ("toy_images_b", 17)):
        with mrcfile.new(tmp_path / "frames" / f"{name}.mrcs") as mrc:
            mrc.set_data(np.broadcast_to(np.arange(n, dtype=np.int8)[:, None, None], (n, 448, 448)))
            mrc.set_image_stack()
    stack = load_particles(shared_data / "relion5.star", images_dir=tmp_path / "frames")
    assert (
        stack.pixel_size == 0.89 and (stack.ctf["voltage"] == 100).all() and stack.metadata.version == 50001
    )
    numbers = [int(name.split("@")[0]) for name in stack.metadata["rlnImageName"]]
    assert [int(image[0, 0]) + 1 for image in stack] == numbers


def test_mixed_pixel_sizes_are_refused_by_group(shared_data):
    with pytest.raises(ValueError, match=r"1\.25 A in row 1, 1\.24 A in row 25 \(optics groups 6 and 5\)"):
        load_particles(shared_data / "relion31.6opticsgroups.star")


# STAR in and out ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL_STAR)
def test_every_value_is_written_as_it_was(shared_data, tmp_path, name):
    table = read_star(shared_data / name)
    labels = np.arange(len(table)) % 3
    write_star(tmp_path / "x.star", table, labels=labels)
    before, after = gemmi.cif.read(str(shared_data / name)), gemmi.cif.read(str(tmp_path / "x.star"))
    assert [block.name.strip() for block in before] == [block.name.strip() for block in after]
    for old, new in zip(before, after):
        for old_item, new_item in zip(old, new, strict=True):
            tags = [tag for tag in old_item.loop.tags if tag != "_rlnClassNumber"]
            assert [tag for tag in new_item.loop.tags if tag != "_rlnClassNumber"] == tags
            for tag in tags:
                assert list(new.find_values(tag)) == list(old.find_values(tag))
    columns = columns_of(tmp_path / "x.star")
    assert columns["rlnClassNumber"] == [str(label + 1) for label in labels]
    position = list(columns_of(shared_data / name))
    if "rlnClassNumber" in position:  # replaced where it stood
        assert list(columns) == position
    else:
        assert list(columns) == [*position, "rlnClassNumber"]


@pytest.mark.parametrize("name", WITH_IMAGES)
def test_a_selection_in_another_folder_names_the_same_images(shared_data, tmp_path, name):
    stack = load_particles(shared_data / name)
    rows = np.arange(len(stack))[::-2]
    (tmp_path / "Select" / "job007").mkdir(parents=True)
    target = tmp_path / "Select" / "job007" / "particles.star"
    save_particles(target, stack[rows], labels=rows)
    again = load_particles(target).replace(pixel_size=stack.pixel_size)
    assert_array_equal(np.asarray(again), np.asarray(stack[rows]))
    if stack.pixel_size:
        assert_same_facts(again, stack[rows])
    old, new = columns_of(shared_data / name), columns_of(target)
    for column in old:
        if column not in ("rlnImageName", "rlnClassNumber"):
            assert new[column] == [old[column][row] for row in rows]
    names = [old["rlnImageName"][row].split("@") for row in rows]
    assert [name.split("@")[0] for name in new["rlnImageName"]] == [number for number, _ in names]


def test_names_relative_to_the_project_stay(simulated, tmp_path):
    """RELION starts in the project folder: names below it stay the text they were in any of its jobs."""
    for folder in ("Extract/job003/Movies", "Refine3D/job010", "Select/job020"):
        (tmp_path / folder).mkdir(parents=True)
    save_images(tmp_path / "Extract/job003/Movies/a.mrcs", simulated)
    names = [f"{i + 1:06d}@Extract/job003/Movies/a.mrcs" for i in range(6)]
    table = StarTable(
        {"rlnImageName": names, "rlnMagnification": ["10000"] * 6, "rlnDetectorPixelSize": ["1.37"] * 6}
    )
    write_star(tmp_path / "Refine3D/job010/data.star", table)
    stack = load_particles(tmp_path / "Refine3D/job010/data.star")
    write_star(tmp_path / "Select/job020/particles.star", stack[2:4])
    assert columns_of(tmp_path / "Select/job020/particles.star")["rlnImageName"] == names[2:4]
    outside = tmp_path.parent / f"{tmp_path.name}_outside"
    outside.mkdir()
    write_star(outside / "x.star", stack[2:4])
    renamed = columns_of(outside / "x.star")["rlnImageName"]
    assert renamed[0] == f"000003@../{tmp_path.name}/Extract/job003/Movies/a.mrcs"
    assert_array_equal(np.asarray(load_particles(outside / "x.star")), np.asarray(simulated[2:4]))


def test_another_file_of_the_same_name_is_not_taken(simulated, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        save_images(tmp_path / folder / "x.mrcs", simulated if folder == "a" else simulated[::-1])
    write_star(tmp_path / "a" / "x.star", load_particles(tmp_path / "a" / "x.mrcs"))
    write_star(tmp_path / "b" / "y.star", load_particles(tmp_path / "a" / "x.star"))
    assert_array_equal(np.asarray(load_particles(tmp_path / "b" / "y.star")), np.asarray(simulated))


def test_text_stays_text(tmp_path):
    head = "data_\n\nloop_\n_rlnMicrographName #1\n_rlnImageName #2\n_odd #3\n"
    (tmp_path / "in.star").write_text(head + "007 1@x.mrcs 1.50e+00\n08 2@x.mrcs 'a b'\n")
    table = read_star(tmp_path / "in.star")
    assert table["rlnMicrographName"].tolist() == ["007", "08"] and table["odd"].tolist() == [
        "1.50e+00",
        "a b",
    ]
    write_star(
        tmp_path / "out.star", table[::-1], columns={"score": [0.125, 3], "name": ["two words", "data_x"]}
    )
    columns = columns_of(tmp_path / "out.star")
    assert columns["rlnMicrographName"] == ["08", "007"] and columns["odd"] == ["'a b'", "1.50e+00"]
    again = read_star(tmp_path / "out.star")
    assert again["name"].tolist() == ["two words", "data_x"] and again.numbers("score").tolist() == [
        0.125,
        3.0,
    ]


def test_further_tables_and_settings_are_passed_on(tmp_path):
    text = (
        "# version 50001\n\ndata_general\n\n_rlnTomoSubTomosAre2DStacks 0\n_note 'two words'\n\n"
        "data_optics\n\n_rlnOpticsGroup 1\n_rlnImagePixelSize 1.5\n\n"
        "data_particles\n\nloop_\n_rlnImageName\n_rlnOpticsGroup\n1@x.mrcs 1\n\n"
        "data_extra\n\nloop_\n_a\n_b\n1 2\n3 4\n"
    )
    (tmp_path / "in.star").write_text(text)
    table = pickle.loads(pickle.dumps(read_star(tmp_path / "in.star")))
    assert table.numbers("rlnImagePixelSize").tolist() == [1.5]
    write_star(tmp_path / "out.star", table)
    document = gemmi.cif.read(str(tmp_path / "out.star"))
    assert [block.name.strip() for block in document] == ["general", "optics", "particles", "extra"]
    assert document[0].find_value("_note") == "'two words'"
    assert list(document[3].find_values("_b")) == ["2", "4"]
    assert (tmp_path / "out.star").read_text().count("# version 50001") == 4


def test_simulated_particles_become_relion31(simulated, tmp_path):
    save_particles(tmp_path / "x.star", simulated, images_path=tmp_path / "x.mrcs", labels=[0, 1, 2, 0, 1, 2])
    document = gemmi.cif.read(str(tmp_path / "x.star"))
    assert [block.name for block in document] == ["optics", "particles"]
    optics = columns_of(tmp_path / "x.star", "_rlnOpticsGroupName")
    assert set(optics) >= {
        "rlnOpticsGroup",
        "rlnVoltage",
        "rlnSphericalAberration",
        "rlnAmplitudeContrast",
        "rlnImagePixelSize",
        "rlnImageSize",
        "rlnImageDimensionality",
    }
    assert [float(v) for v in optics["rlnVoltage"]] == [200, 300] and optics["rlnImageSize"] == ["8", "8"]
    assert columns_of(tmp_path / "x.star")["rlnClassNumber"] == ["1", "2", "3", "1", "2", "3"]
    again = load_particles(tmp_path / "x.star")
    assert_array_equal(np.asarray(again), np.asarray(simulated))
    assert_same_facts(again, simulated)
    assert listing(tmp_path) == ["x.mrcs", "x.star"]


def test_particles_without_ctf(simulated, tmp_path):
    """RELION reads no file without voltage and Cs; without defocus columns there is still no CTF."""
    save_particles(tmp_path / "x.star", simulated.replace(ctf=None), images_path=tmp_path / "x.mrcs")
    assert "rlnVoltage" in columns_of(tmp_path / "x.star", "_rlnOpticsGroupName")
    assert load_particles(tmp_path / "x.star").ctf is None


def test_file_of_images_gets_a_star(simulated, tmp_path):
    save_images(tmp_path / "x.mrcs", simulated)
    stack = load_particles(tmp_path / "x.mrcs").replace(ctf=simulated.ctf)[[4, 1]]
    write_star(tmp_path / "x.star", stack, labels=np.array([0, 0]))
    assert columns_of(tmp_path / "x.star")["rlnImageName"] == ["000005@x.mrcs", "000002@x.mrcs"]
    assert_array_equal(np.asarray(load_particles(tmp_path / "x.star")), np.asarray(simulated[[4, 1]]))


@pytest.mark.parametrize("name", ["sample_particles_relion30.star", "sample_particles_relion31.star"])
def test_new_poses_and_shifts_in_the_dialect_of_the_file(shared_data, tmp_path, name):
    stack = load_particles(shared_data / name)
    rotations = random_rotations(17, random_state=0)
    shifts = np.random.default_rng(0).uniform(-5, 5, (17, 2))
    save_particles(tmp_path / "x.star", stack, rotations=rotations, shifts=shifts)
    again = load_particles(tmp_path / "x.star")
    assert_allclose(again.rotations, rotations, atol=1e-6)
    assert_allclose(again.shifts, shifts, atol=1e-6)
    columns = columns_of(tmp_path / "x.star")
    assert list(columns) == list(columns_of(shared_data / name))
    unit = 1.0 if "relion30" in name else 1.4
    origin = columns["rlnOriginX" if "relion30" in name else "rlnOriginXAngst"]
    assert_allclose([float(value) for value in origin], -unit * shifts[:, 0], atol=1e-6)
    assert_allclose(
        [[float(v) for v in columns[c]] for c in ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")],
        relion_from_rotations(rotations).T,
        atol=1e-5,
    )


def test_changed_stack_is_written_and_unchanged_text_is_not(shared_data, tmp_path):
    stack = load_particles(shared_data / "relion31.star")
    shifts, ctf = stack.shifts.copy(), stack.ctf.copy()
    shifts[2] += 1.0
    ctf["defocus_u"] += 100.0
    save_particles(tmp_path / "x.star", stack.replace(shifts=shifts, ctf=ctf))
    old, new = columns_of(shared_data / "relion31.star"), columns_of(tmp_path / "x.star")
    changed = {name for name in old if old[name] != new[name]}
    assert changed == {"rlnImageName", "rlnOriginXAngst", "rlnOriginYAngst", "rlnDefocusU"}
    assert_allclose(load_particles(tmp_path / "x.star").ctf["defocus_u"], ctf["defocus_u"])
    ctf["voltage"] = 200.0
    with pytest.raises(ValueError, match="another voltage than rlnVoltage in the optics table"):
        save_particles(tmp_path / "y.star", stack.replace(ctf=ctf))


@pytest.mark.parametrize("name", ["sample_particles_relion30.star", "sample_particles_relion31.star"])
def test_labels_found_on_smaller_images_go_to_the_original_particles(shared_data, tmp_path, name):
    """After downsampling by 4 a shift of one pixel is four of the particle's own."""
    stack = load_particles(shared_data / name)
    small = stack.map(
        _every_fourth,
        image_shape=(50, 50),
        pixel_size=4 * stack.pixel_size,
        shifts=stack.shifts / 4,
        ctf=stack.ctf,
    )
    save_particles(tmp_path / "x.star", small, labels=np.zeros(17, dtype=int))
    old, new = columns_of(shared_data / name), columns_of(tmp_path / "x.star")
    assert [c for c in old if old[c] != new[c]] in (["rlnImageName"], ["rlnImageName", "rlnClassNumber"])
    save_particles(tmp_path / "y.star", small, shifts=np.ones((17, 2)))
    assert_allclose(load_particles(tmp_path / "y.star").shifts, 4.0, atol=1e-5)
    save_particles(tmp_path / "z.star", small, images_path=tmp_path / "z.mrcs")
    again = load_particles(tmp_path / "z.star")
    assert again.shape == (17, 50, 50)
    assert_same_facts(again, small)
    assert_array_equal(np.asarray(again), np.asarray(small))


def _every_fourth(images):
    return images[:, ::4, ::4]


def test_written_images_without_ctf_have_none_in_the_star(shared_data, tmp_path):
    """Phase-flipped images must not be corrected a second time by the next program."""
    stack = load_particles(shared_data / "relion31.star").replace(ctf=None)
    save_particles(tmp_path / "labels.star", stack)
    assert load_particles(tmp_path / "labels.star").ctf is not None  # these name the raw images
    save_particles(tmp_path / "x.star", stack, images_path=tmp_path / "x.mrcs")
    assert load_particles(tmp_path / "x.star").ctf is None
    assert (
        columns_of(tmp_path / "x.star")["rlnMicrographName"]
        == columns_of(shared_data / "relion31.star")["rlnMicrographName"]
    )


# In-plane alignments --------------------------------------------------------------------------------------


def test_in_plane_angles_are_poses_about_the_view(shared_data, tmp_path):
    """An image rotated by a is the projection at R_class Rz(-a), with R_class the identity in a 2-D file."""
    stack = load_particles(shared_data / "sample_particles_relion31.star")
    angles = np.linspace(-3, 3, 17)
    save_particles(tmp_path / "x.star", stack, in_plane_angles=angles, shifts=stack.shifts)
    again = load_particles(tmp_path / "x.star")
    assert_allclose(again.rotations, in_plane_rotation(-angles), atol=1e-7)
    columns = columns_of(tmp_path / "x.star")
    assert set(columns["rlnAngleTilt"]) == {"0.000000"} and set(columns["rlnAngleRot"]) == {"0.000000"}
    assert_allclose([float(v) for v in columns["rlnAnglePsi"]], -np.degrees(angles), atol=1e-5)


def test_in_plane_angles_against_projections(tmp_path):
    """Rotated and shifted images, written and read back, are the projections that the file's poses say."""
    size = 32
    axis = np.arange(size) - size // 2
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    blobs = [((5, 2, 1), 3.0), ((-4, 3, 2), 2.5), ((1, -6, -3), 3.0)]
    volume = sum(
        weight * np.exp(-((x - cx) ** 2 + (y - cy) ** 2 + (z - cz) ** 2) / (2 * 2.5**2))
        for (cx, cy, cz), weight in blobs
    ).astype(np.float32)
    angles, shifts = np.array([0.4, -2.0, 3.0]), np.array([[2.0, -1.0], [0.5, 3.0], [-2.0, 0.0]])
    average = project(volume, np.eye(3)[None])
    images = shift_images(rotate_images(np.repeat(average, 3, axis=0), angles), shifts)
    stack = ParticleStack(images, pixel_size=2.0)
    save_particles(
        tmp_path / "x.star",
        stack,
        images_path=tmp_path / "x.mrcs",
        in_plane_angles=angles,
        shifts=shifts,
        columns={"rlnAngleRot": [0.0] * 3, "rlnAngleTilt": [0.0] * 3},
    )
    again = load_particles(tmp_path / "x.star")
    expected = project(volume, again.rotations, shifts=again.shifts)
    error = np.linalg.norm(np.asarray(again) - expected) / np.linalg.norm(expected)
    mirrored = project(volume, again.rotations.transpose(0, 2, 1), shifts=again.shifts)
    wrong = np.linalg.norm(np.asarray(again) - mirrored) / np.linalg.norm(expected)
    assert error < 0.03 < 0.3 < wrong


# Several files --------------------------------------------------------------------------------------------


def test_several_star_files(shared_data):
    names = ["relion31.star", "relion31.v2.star"]
    stack = load_particles([shared_data / name for name in names])
    assert stack.shape == (10, 256, 256) and len(stack.metadata.optics["rlnOpticsGroup"]) == 1
    assert_array_equal(np.asarray(stack[7]), np.asarray(stack[2]))
    assert len(stack.image_files[0]) == 1


def test_optics_groups_of_several_files_are_kept_apart(simulated, tmp_path):
    """Group 1 of one file is not group 1 of the other."""
    other = simulated.replace(ctf=make_ctf(6, voltage=120.0, defocus_u=7000.0))
    save_particles(tmp_path / "a.star", simulated, images_path=tmp_path / "a.mrcs")
    save_particles(tmp_path / "b.star", other, images_path=tmp_path / "b.mrcs")
    stack = load_particles([tmp_path / "a.star", tmp_path / "b.star"])
    assert_array_equal(stack.ctf["voltage"], [*simulated.ctf["voltage"], *other.ctf["voltage"]])
    save_particles(tmp_path / "joined.star", stack[::-1])
    again = load_particles(tmp_path / "joined.star")
    assert_same_facts(again, stack[::-1])
    optics = columns_of(tmp_path / "joined.star", "_rlnOpticsGroupName")
    assert optics["rlnOpticsGroup"] == ["1", "2", "3"]
    assert len(set(optics["rlnOpticsGroupName"])) == 3
    both = np.concatenate([np.asarray(simulated), np.asarray(other)])[::-1]
    assert_array_equal(np.asarray(again), both)


def test_columns_that_only_some_files_have_are_left_out_aloud(simulated, tmp_path):
    save_particles(
        tmp_path / "a.star", simulated, images_path=tmp_path / "a.mrcs", columns={"extra": range(6)}
    )
    save_particles(tmp_path / "b.star", simulated, images_path=tmp_path / "b.mrcs")
    with pytest.warns(UserWarning, match="not in all files are left out: extra"):
        stack = load_particles([tmp_path / "a.star", tmp_path / "b.star"])
    assert "extra" not in stack.metadata and len(stack) == 12
