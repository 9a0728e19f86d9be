"""``skcryo heterogeneity``: files, coordinates of the input, a verdict, and what it refuses."""

import json

import numpy as np
import pytest
from common_cli import exit_code, has_matplotlib
from scipy.stats import spearmanr

from skcryo._cli._heterogeneity import outputs
from skcryo.datasets import make_molecule, make_particles
from skcryo.io import load_particles, load_volume, read_star, save_particles

N, L, PIXEL_SIZE = 200, 32, 10.0


@pytest.fixture(scope="module")
def particles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("particles")
    states = np.stack([make_molecule(L, random_state=1, hinge=angle) for angle in (0, 40, 80)])
    stack, truth = make_particles(states, N, preset="ctf", snr=4.0, pixel_size=PIXEL_SIZE, random_state=0)
    posed = stack.replace(rotations=truth.rotations, shifts=truth.shifts)
    save_particles(folder / "in.star", posed, images_path=folder / "in.mrcs")
    save_particles(folder / "none.star", stack, images_path=folder / "none.mrcs")
    return folder, truth


def run(star, out, *more):
    options = ["--jobs", "1", "-q", "--device", "cpu", "--steps", "60", "--volumes", "3", "--path", "4", "-z", "1"]
    return exit_code(["heterogeneity", star, "-o", out, *options, *more])


def test_files_coordinates_and_volumes(particles, tmp_path, capsys):
    pytest.importorskip("torch", reason="CryoDRGN needs the extra skcryo[torch]")
    folder, truth = particles
    out = tmp_path / "out"
    assert run(folder / "in.star", out) == 0
    names = sorted(name for name in outputs(3, 4) if has_matplotlib() or not name.endswith((".png", ".gif")))
    assert sorted(path.name for path in out.iterdir()) == names
    z = np.load(out / "latents.npy", allow_pickle=False)
    assert z.shape == (N, 1) and abs(spearmanr(z[:, 0], truth.labels)[0]) > 0.8
    column = np.array(read_star(out / "particles.star")["skcryoLatent1"].tolist(), dtype=float)
    assert np.abs(column - z[:, 0]).max() < 1e-4
    centres = np.load(out / "centres.npy", allow_pickle=False)
    assert centres.shape == (3, 1) and (np.diff(centres[:, 0]) > 0).all()
    assert np.isin(centres[:, 0], z[:, 0]).all()
    nearest = read_star(out / "particles.star").numbers("skcryoNearestVolume")
    path = np.load(out / "path.npy", allow_pickle=False)
    assert path.shape == (4, 1) and (np.diff(path[:, 0]) > 0).all()
    volume, size = load_volume(out / "path4.mrc")
    assert volume.shape == (L, L, L) and size == pytest.approx(PIXEL_SIZE)
    volume, size = load_volume(out / "volume1.mrc")
    assert volume.shape == (L, L, L) and size == pytest.approx(PIXEL_SIZE)
    facts = json.loads((out / "run.json").read_text())
    assert facts["converged"] and facts["verdict"].startswith("Particles differ") and sum(facts["counts"]) == N
    assert np.array_equal(np.bincount(nearest.astype(int))[1:], facts["counts"])
    assert facts["verdict"] in (out / "report.html").read_text()
    assert str(out / "volume1.mrc") in capsys.readouterr().out
    # particles of a region, as a STAR file that images are found from
    star = out / "particles.star"
    assert exit_code(["heterogeneity", star, "--select", "3,1", "-o", tmp_path / "near.star"]) == 0
    told = capsys.readouterr()
    assert told.out.strip() == str(tmp_path / "near.star") and "nearest to 2 volumes" in told.err
    chosen = load_particles(tmp_path / "near.star")
    assert np.array_equal(np.asarray(chosen), np.asarray(load_particles(star))[nearest != 2])
    assert exit_code(["heterogeneity", star, "--select", "z1=0:1.5", "-o", tmp_path / "part.star", "-q"]) == 0
    found = read_star(tmp_path / "part.star").numbers("skcryoLatent1")
    assert np.array_equal(found, column[(column >= 0) & (column <= 1.5)])
    for region, message in {
        "4": "no particles in this volume; its volumes are 1-3",
        "z2=0:1": "has no column skcryoLatent2",
        "z1=90:": "no particle has coordinates in these ranges",
    }.items():
        assert exit_code(["heterogeneity", star, "--select", region, "-o", tmp_path / "no.star"]) == 2
        assert message in capsys.readouterr().err


def test_what_is_refused(particles, tmp_path, capsys):
    folder, _ = particles
    assert run(folder / "none.star", tmp_path / "a") == 2
    assert "the input has no poses" in capsys.readouterr().err
    assert run(folder / "in.star", tmp_path / "b", "-z", "200") == 2
    assert "-z 200 is not below the 200 particles" in capsys.readouterr().err
    assert run(folder / "in.star", tmp_path / "c", "--path", "1") == 2
    assert "--path 1 is no motion" in capsys.readouterr().err
    for region in ("z0=1:2", "z1=2:1", "z1=1", "z1=a:b", "z1=:,z1=:", "0", "z1=nan:1"):
        assert run(folder / "in.star", tmp_path / "d", "--select", region) == 2
        assert "such as 3,5,8" in capsys.readouterr().err
    assert run(folder / "in.star", tmp_path / "d", "--select", "1") == 2
    assert "has no meaning beside it" in capsys.readouterr().err
    assert exit_code(["heterogeneity", folder / "in.star", "--select", "1", "-o", tmp_path / "d"]) == 2
    assert "has no column skcryoNearestVolume" in capsys.readouterr().err
