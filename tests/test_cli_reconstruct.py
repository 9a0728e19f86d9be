"""``skcryo reconstruct`` as a person meets it: files in and out, errors in one line, runs that survive a kill."""

import html.parser
import json
import os
import signal
import subprocess
import sys

import gemmi
import numpy as np
import pytest
from common_cli import exit_code, has_matplotlib

from skcryo._cli._reconstruct import OUTPUTS
from skcryo.datasets import make_molecule, make_particles
from skcryo.io import load_particles, load_volume, save_particles
from skcryo.metrics import fsc
from skcryo.preprocessing import NormalizeBackground
from skcryo.reconstruction import FourierReconstructor

N, L, PIXEL_SIZE = 80, 24, 8.0
PICTURES = {"fsc.png", "slices.png"}
WRITTEN = [name for name in OUTPUTS if name not in PICTURES or has_matplotlib()]
MOLECULE = make_molecule(L, random_state=0)


def simulate(folder, **columns):
    stack, truth = make_particles(MOLECULE, N, preset="ctf", snr=1.0, pixel_size=PIXEL_SIZE, random_state=0)
    stack = stack.replace(rotations=truth.rotations, shifts=truth.shifts)
    save_particles(folder / "in.star", stack, images_path=folder / "in.mrcs", columns=columns or None)
    return folder / "in.star"


@pytest.fixture(scope="module")
def particles(tmp_path_factory):
    return simulate(tmp_path_factory.mktemp("particles"))


@pytest.fixture(scope="module")
def finished(particles, tmp_path_factory):
    out = tmp_path_factory.mktemp("finished") / "out"
    assert exit_code(["reconstruct", particles, "-q", "-o", out]) == 0
    return out


def fsc_column(path, name):
    """A column of the table of correlations, read by gemmi."""
    return np.array([float(value) for value in gemmi.cif.read(str(path)).sole_block().find_values(f"_{name}")])


def reconstruct(particles, out, *more):
    return exit_code(["reconstruct", particles, "-q", "-o", out, *more])


def test_all_files_are_there_and_nothing_else(finished, particles):
    assert sorted(path.name for path in finished.iterdir()) == sorted(WRITTEN)
    assert sorted(path.name for path in particles.parent.iterdir()) == ["in.mrcs", "in.star"]


def test_volumes_are_those_of_the_estimator(finished, particles):
    images = NormalizeBackground().fit_transform(load_particles(particles))
    expected = FourierReconstructor(random_state=0).fit(images)
    found = {name: load_volume(finished / f"{name}.mrc") for name in ("volume", "half1", "half2")}
    for name, volume in (("volume", expected.volume_), ("half1", expected.half_maps_[0])):
        assert np.array_equal(found[name][0], volume)
        assert found[name][1] == PIXEL_SIZE
    assert np.corrcoef(found["volume"][0].ravel(), MOLECULE.ravel())[0, 1] > 0.9
    curve = fsc_column(finished / "fsc.star", "rlnFourierShellCorrelation")
    assert curve == pytest.approx(expected.fsc_, abs=1e-5)
    assert curve == pytest.approx(fsc(found["half1"][0], found["half2"][0]), abs=1e-5)
    assert fsc_column(finished / "fsc.star", "rlnAngstromResolution")[4] == pytest.approx(L * PIXEL_SIZE / 4)
    facts = json.loads((finished / "run.json").read_text())
    assert facts["particles"] == N and facts["voxel_size"] == PIXEL_SIZE
    assert facts["resolution"] == pytest.approx(expected.resolution_)


def test_report_stands_alone(finished):
    page = (finished / "report.html").read_text(encoding="utf-8")

    class Parser(html.parser.HTMLParser):
        images, outside = 0, []

        def handle_starttag(self, tag, attributes):
            values = dict(attributes)
            self.images += tag == "img"
            for name in ("src", "href"):
                if name in values and not values[name].startswith("data:"):
                    self.outside.append(values[name])

    parser = Parser()
    parser.feed(page)
    assert parser.images == 6 and not parser.outside
    assert "<polyline" in page and f"{N} particles" in page


def test_options_reach_the_volume(particles, tmp_path):
    assert reconstruct(particles, tmp_path / "out", "--downsample", "16", "--mask-radius", "64A") == 0
    volume, voxel_size = load_volume(tmp_path / "out" / "volume.mrc")
    assert volume.shape == (16, 16, 16) and voxel_size == pytest.approx(12.0)
    # 64 A are 5.3 voxels of 12 A, with an edge of two: nothing is left beyond.
    assert not volume[8, 8, 0] and not volume[0, 8, 8] and volume[8, 8, 8]
    assert reconstruct(particles, tmp_path / "coarse", "--max-resolution", "40") == 0
    curve = fsc_column(tmp_path / "coarse" / "fsc.star", "rlnFourierShellCorrelation")
    assert curve[4] > 0.5 and not curve[7:].any()
    assert reconstruct(particles, tmp_path / "dark", "--invert") == 0
    assert reconstruct(particles, tmp_path / "light") == 0
    dark, light = (load_volume(tmp_path / name / "volume.mrc")[0] for name in ("dark", "light"))
    assert np.allclose(dark, -light, atol=1e-4)


def test_half_sets_of_the_input_are_kept(tmp_path):
    given = np.arange(N) % 3 % 2 + 1
    star = simulate(tmp_path, rlnRandomSubset=[str(value) for value in given])
    assert reconstruct(star, tmp_path / "out", "--no-normalize") == 0
    stack = load_particles(star)
    expected = FourierReconstructor(random_state=5).fit(stack, half_sets=given - 1)
    assert np.array_equal(load_volume(tmp_path / "out" / "half2.mrc")[0], expected.half_maps_[1])


def test_finished_runs_are_kept(finished, particles, capsys):
    before = {path.name: path.read_bytes() for path in finished.iterdir()}
    assert reconstruct(particles, finished) == 2
    assert "holds a finished run; give --overwrite" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in finished.iterdir()} == before


KILLED = """
import os, signal, sys
from skcryo.reconstruction import FourierReconstructor, _fourier_reconstructor as module
module.chunk_size = lambda size: 16
FourierReconstructor._seconds_between_checkpoints = 0.0
save, n = module.save_checkpoint, []
def save_and_die(*args):
    save(*args)
    n.append(1)
    if len(n) == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
module.save_checkpoint = save_and_die
from skcryo.__main__ import main
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_a_killed_run_goes_on_to_the_same_volume(particles, tmp_path, capsys):
    def run(after, out, *more):
        command = [sys.executable, "-c", KILLED, str(after), "reconstruct", str(particles), "-o", str(out), *more]
        return subprocess.run(command, capture_output=True, text=True)

    out = tmp_path / "out"
    assert run(2, out).returncode == -signal.SIGKILL
    assert sorted(path.name for path in out.iterdir()) == [".checkpoint"]
    assert reconstruct(particles, out, "--mask-radius", "9") == 2
    assert "holds an interrupted run that differs: --mask-radius was auto, now 9 px" in capsys.readouterr().err
    ended = run(99, out)
    assert ended.returncode == 0 and "going on from the checkpoint" in ended.stderr
    assert sorted(path.name for path in out.iterdir()) == sorted(WRITTEN)
    assert json.loads((out / "run.json").read_text())["sessions"] == 2
    assert run(99, tmp_path / "whole").returncode == 0
    assert (out / "volume.mrc").read_bytes() == (tmp_path / "whole" / "volume.mrc").read_bytes()
    assert (out / "half1.mrc").read_bytes() == (tmp_path / "whole" / "half1.mrc").read_bytes()


def without_columns(star, *names):
    """The text of a STAR file without some columns of its particles."""
    head, body = star.read_text().split("data_particles", 1)
    lines = body.splitlines()
    columns = [line.split()[0][1:] for line in lines if line.strip().startswith("_")]
    keep = [i for i, name in enumerate(columns) if name not in names]
    rows = [line.split() for line in lines if line.strip() and line.strip()[0] not in "_l#"]
    out = ["", "", "loop_", *(f"_{columns[i]} #{n}" for n, i in enumerate(keep, 1))]
    return "\n".join([head + "data_particles", *out, *(" ".join(row[i] for i in keep) for row in rows), ""])


BAD = {
    "no poses": (["{no_poses}"], "the input has no poses; the columns rlnAngleRot"),
    "images alone": (["{mrcs}"], "the input has no poses"),
    "missing file": (["nowhere.star"], "does not exist"),
    "mask of nothing": (["{star}", "--mask-radius", "0"], "--mask-radius is 0 pixels of the input; above 0"),
    "mask beyond the box": (["{star}", "--mask-radius", "300A"], "--mask-radius is 37.5 pixels of the input"),
    "mask in furlongs": (["{star}", "--mask-radius", "3furlongs"], "'3furlongs' given; pixels"),
    "finer than two pixels": (["{star}", "--max-resolution", "10"], "--max-resolution is 10 A; at least 16 A"),
    "larger box": (["{star}", "--downsample", "48"], "--downsample 48 is above the box of the input; at most 24"),
    "negative seed": (["{star}", "--seed", "-1"], "a whole number of at least 0 is wanted"),
    "strange half sets": (["{halves}"], "rlnRandomSubset of the input: particle 3 has 3; 1 and 2 are wanted"),
    "one half set": (["{one_half}"], "rlnRandomSubset of the input: all have the same"),
    "NaN pixels": (["{nan}"], "NaN"),
    "output is a file": (["{star}", "-o", "{star}"], "is a file; a folder is wanted"),
}


@pytest.fixture(scope="module")
def bad_files(particles, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    star = simulate(folder)
    places = {"star": str(star), "mrcs": str(folder / "in.mrcs")}
    places["no_poses"] = str(folder / "no_poses.star")
    (folder / "no_poses.star").write_text(without_columns(star, "rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"))
    stack = load_particles(star)
    for name, values in (("halves", ["1", "2", "3", "1"] * 20), ("one_half", ["1"] * N)):
        save_particles(
            folder / f"{name}.star",
            stack.load(),
            images_path=folder / f"{name}.mrcs",
            columns={"rlnRandomSubset": values},
        )
        places[name] = str(folder / f"{name}.star")
    (folder / "nan").mkdir()
    damaged = simulate(folder / "nan")
    content = bytearray((folder / "nan" / "in.mrcs").read_bytes())
    content[1024 + 4 * 700 : 1024 + 4 * 701] = np.float32(np.nan).tobytes()
    (folder / "nan" / "in.mrcs").write_bytes(bytes(content))
    places["nan"] = str(damaged)
    return places


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(case, bad_files, tmp_path, capsys):
    words, message = BAD[case]
    words = [word.format(**bad_files) for word in words]
    out = tmp_path / "out"
    if "-o" not in words:
        words += ["-o", str(out)]
    assert exit_code(["reconstruct", *words, "-q"]) == 2
    captured = capsys.readouterr()
    errors = [line for line in captured.err.splitlines() if "error" in line]
    assert len(errors) == 1 and message in errors[0], captured.err
    assert captured.out == "" and not out.exists()
