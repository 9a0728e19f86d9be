"""cryoSPARC's files in."""

import numpy as np
import pytest
from common_io import assert_same_facts, columns_of
from numpy.testing import assert_allclose, assert_array_equal
from scipy.spatial.transform import Rotation

from skcryo.io import (
    load_particles,
    save_images,
    write_star,
)


def write_cs(path, fields):
    arrays = {name: np.asarray(value) for name, value in fields.items()}
    n = len(next(iter(arrays.values())))
    records = np.zeros(n, dtype=[(name, a.dtype, a.shape[1:]) for name, a in arrays.items()])
    for name, array in arrays.items():
        records[name] = array
    with open(path, "wb") as file:
        np.save(file, records)


@pytest.fixture
def cs_fields(simulated, tmp_path):
    (tmp_path / "J2" / "extract").mkdir(parents=True)
    (tmp_path / "J5").mkdir()
    save_images(tmp_path / "J2" / "extract" / "a.mrc", simulated)
    ctf, n = simulated.ctf, len(simulated)
    return {
        "uid": np.arange(100, 100 + n, dtype=np.uint64),
        "blob/path": np.array([b">J2/extract/a.mrc"] * n),
        "blob/idx": np.arange(n, dtype=np.uint32)[::-1],
        "blob/shape": np.full((n, 2), 8, dtype=np.uint32),
        "blob/psize_A": np.full(n, 1.37, dtype=np.float32),
        "ctf/exp_group_id": np.array([7, 7, 9, 9, 7, 7], dtype=np.uint32),
        "ctf/accel_kv": ctf["voltage"],
        "ctf/cs_mm": ctf["cs"],
        "ctf/amp_contrast": ctf["amplitude_contrast"],
        "ctf/df1_A": ctf["defocus_u"],
        "ctf/df2_A": ctf["defocus_v"],
        "ctf/df_angle_rad": np.radians(ctf["defocus_angle"]),
        "ctf/phase_shift_rad": np.radians(ctf["phase_shift"]),
        "ctf/bfactor": ctf["b_factor"],
        "ctf/scale": ctf["scale"],
        "alignments3D/pose": Rotation.from_matrix(simulated.rotations).as_rotvec(),
        "alignments3D/shift": -2.0 * simulated.shifts,
        "alignments3D/psize_A": np.full(n, 1.37 / 2),
        "alignments3D/class": np.array([0, 1, 0, 2, 0, 0], dtype=np.uint32),
        "alignments3D/split": np.array([0, 1, 0, 1, 0, 1], dtype=np.uint32),
    }


def test_cryosparc_particles(cs_fields, simulated, tmp_path):
    write_cs(tmp_path / "J5" / "particles.cs", cs_fields)
    stack = load_particles(tmp_path / "J5" / "particles.cs")
    assert_same_facts(stack, simulated)
    assert_array_equal(np.asarray(stack), np.asarray(simulated)[::-1])
    # As RELION 3.1 it says the same, and keeps what leads back to cryoSPARC.
    write_star(tmp_path / "J5" / "x.star", stack, labels=np.arange(6))
    again = load_particles(tmp_path / "J5" / "x.star")
    assert_same_facts(again, simulated, atol=1e-5)
    assert_array_equal(np.asarray(again), np.asarray(stack))
    columns = columns_of(tmp_path / "J5" / "x.star")
    assert columns["cryosparcUid"] == [str(uid) for uid in range(100, 106)]
    assert columns["rlnImageName"][0] == "000006@J2/extract/a.mrc"
    assert columns["rlnRandomSubset"] == ["1", "2"] * 3 and columns["rlnClassNumber"][3] == "4"
    # Exposure groups with several voltages do not exist, but here each pair is its own optics group.
    assert len(columns_of(tmp_path / "J5" / "x.star", "_rlnOpticsGroupName")["rlnOpticsGroup"]) == 4


def test_cryosparc_passthrough_is_joined_by_uid(cs_fields, simulated, tmp_path):
    def part(prefix):
        return {"uid": cs_fields["uid"], **{k: v for k, v in cs_fields.items() if k.startswith(prefix)}}

    order = [3, 1, 0, 5, 4, 2]
    write_cs(tmp_path / "J5" / "x.cs", {**part("blob"), **part("alignments3D")})
    write_cs(tmp_path / "J5" / "x_passthrough.cs", {k: v[order] for k, v in part("ctf").items()})
    files = [tmp_path / "J5" / "x.cs", tmp_path / "J5" / "x_passthrough.cs"]
    for paths in (files, files[::-1]):
        assert_same_facts(load_particles(paths), simulated)
    assert load_particles(files[0]).ctf is None
    write_cs(tmp_path / "J5" / "y.cs", {k: v[:4] for k, v in part("ctf").items()})
    with pytest.raises(ValueError, match=r"y\.cs: lacks 2 of the particles of .*x\.cs, the first is row 5"):
        load_particles([files[0], tmp_path / "J5" / "y.cs"])


def test_cryosparc_two_dimensional_classes(cs_fields, simulated, tmp_path):
    fields = {k: v for k, v in cs_fields.items() if not k.startswith("alignments3D")}
    fields["alignments2D/pose"] = np.linspace(-1, 1, 6)
    fields["alignments2D/shift"] = -simulated.shifts
    fields["alignments2D/class"] = np.arange(6, dtype=np.uint32)
    write_cs(tmp_path / "J5" / "x.cs", fields)
    stack = load_particles(tmp_path / "J5" / "x.cs")
    assert stack.rotations is None  # an angle within a class is no pose
    assert_allclose(stack.shifts, simulated.shifts)
    assert_allclose(stack.metadata.numbers("rlnAnglePsi"), np.degrees(fields["alignments2D/pose"]), atol=1e-5)
    assert stack.metadata["rlnClassNumber"].tolist() == ["1", "2", "3", "4", "5", "6"]


@pytest.mark.parametrize("layout", ["alignments_class_{}", "alignments3D_multi"])
def test_cryosparc_pose_of_the_most_probable_class(cs_fields, simulated, tmp_path, layout):
    fields = {k: v for k, v in cs_fields.items() if not k.startswith("alignments3D")}
    best = np.array([0, 1, 1, 0, 2, 2])
    posterior = np.full((6, 3), 0.1)
    posterior[np.arange(6), best] = 0.8
    pose, shift = np.zeros((6, 3, 3)), np.zeros((6, 3, 2))
    pose[np.arange(6), best] = cs_fields["alignments3D/pose"]
    shift[np.arange(6), best] = -simulated.shifts
    if "{}" in layout:
        for k in range(3):
            name = layout.format(k)
            fields[f"{name}/pose"], fields[f"{name}/shift"] = pose[:, k], shift[:, k]
            fields[f"{name}/class_posterior"] = posterior[:, k]
    else:
        fields.update(
            {f"{layout}/pose": pose, f"{layout}/shift": shift, f"{layout}/class_posterior": posterior}
        )
    write_cs(tmp_path / "J5" / "x.cs", fields)
    stack = load_particles(tmp_path / "J5" / "x.cs")
    assert_same_facts(stack, simulated)
    assert stack.metadata.numbers("rlnClassNumber").tolist() == (best + 1).tolist()
