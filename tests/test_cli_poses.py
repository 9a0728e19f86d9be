"""``skcryo poses``: files, poses and uncertainties of the input, a verdict, and what it says without torch."""

import json
import sys

import gemmi
import numpy as np
import pytest
from common_cli import exit_code, has_matplotlib

from skcryo._cli._poses import OUTPUTS, PROBABILITY, UNCERTAINTY
from skcryo.datasets import make_molecule, make_particles
from skcryo.io import load_particles, load_volume, read_star, save_particles
from skcryo.metrics import fsc, pose_error
from skcryo.orientation import EquivariantPoseNet

N, L, PIXEL_SIZE, WORKED = 200, 32, 10.0, 24


@pytest.fixture(scope="module")
def particles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("particles")
    stack, truth = make_particles(
        make_molecule(L, random_state=0), N, preset="ctf", snr=4.0, pixel_size=PIXEL_SIZE, random_state=0
    )
    save_particles(
        folder / "in.star",
        stack.replace(data=37 * np.asarray(stack) + 1200),
        images_path=folder / "in.mrcs",
        columns={"rlnMicrographName": [f"m{i:03d}.mrc" for i in range(N)]},
    )
    return folder / "in.star", truth


def poses(star, out, *more):
    options = ["--jobs", "1", "-q", "--device", "cpu", "--downsample", WORKED, "--steps", "200"]
    return exit_code(["poses", star, "-o", out, *options, *more])


@pytest.fixture(scope="module")
def finished(particles, tmp_path_factory):
    pytest.importorskip("torch", reason="the network needs the extra skcryo[torch]")
    out = tmp_path_factory.mktemp("finished") / "out"
    assert poses(particles[0], out) == 0
    return out


def test_all_files_are_there_and_nothing_else(finished):
    names = sorted(name for name in OUTPUTS if has_matplotlib() or not name.endswith(".png"))
    assert sorted(path.name for path in finished.iterdir()) == names


def test_poses_and_uncertainties_are_in_the_table(finished, particles):
    star, truth = particles
    stack = load_particles(finished / "particles.star")
    assert stack.shape == (N, L, L) and stack.pixel_size == PIXEL_SIZE
    errors = pose_error(stack.rotations, truth.rotations).errors
    assert np.quantile(errors, 0.95) < 4
    block = next(block for block in gemmi.cif.read(str(finished / "particles.star")) if block.name == "particles")
    stated = np.array([float(value) for value in block.find_values(f"_{UNCERTAINTY}")])
    assert stated.shape == (N,) and 0.75 < (errors < stated).mean()
    probability = np.array([float(value) for value in block.find_values(f"_{PROBABILITY}")])
    assert probability.shape == (N,) and np.median(probability) > 0.9
    before, after = read_star(star), read_star(finished / "particles.star")
    assert before["rlnMicrographName"].tolist() == after["rlnMicrographName"].tolist()


def test_the_network_can_be_loaded(finished):
    net = EquivariantPoseNet.load(finished / "network.safetensors")
    assert net.rotations_.shape == (N, 3, 3) and net.image_shape_ == (WORKED, WORKED)


def test_volume_and_verdict(finished):
    facts = json.loads((finished / "run.json").read_text())
    assert facts["converged"] and not facts["ambiguous"] and facts["verdict"].startswith("Converged: ")
    halves = [load_volume(finished / f"half{k}.mrc") for k in (1, 2)]
    assert all(size == pytest.approx(PIXEL_SIZE * L / WORKED, rel=1e-5) for _, size in halves)
    assert facts["fsc"] == pytest.approx(fsc(halves[0][0], halves[1][0]).tolist(), abs=1e-5)
    assert facts["verdict"] in (finished / "report.html").read_text()


def test_a_finished_run_is_not_written_over(finished, particles, capsys):
    before = (finished / "run.json").read_bytes()
    assert poses(particles[0], finished) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (finished / "run.json").read_bytes() == before


def test_without_torch_it_says_what_to_install(particles, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert poses(particles[0], tmp_path / "out") == 2
    assert "skcryo[torch]" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--steps", "0"], "--steps"),
        (["--max-shift", "900A"], "max-shift"),
    ],
)
def test_bad_arguments(particles, tmp_path, capsys, more, message):
    pytest.importorskip("torch", reason="the network needs the extra skcryo[torch]")
    assert poses(particles[0], tmp_path / "out", *more) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
