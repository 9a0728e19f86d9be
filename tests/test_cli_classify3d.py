"""``skcryo classify3d`` as a person meets it: are there really K classes, files, errors, runs that survive a kill."""

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

from skcryo._cli._classify3d import outputs
from skcryo._cli._classify3d_report import groups, verdict
from skcryo.datasets import make_molecule, make_particles
from skcryo.io import load_particles, load_volume, read_star, save_particles
from skcryo.metrics import fsc, pose_error
from skcryo.rotations import geodesic_distance, random_rotations

# ---- what is written -------------------------------------------------------------------------------------

N, PIXEL_SIZE = 200, 10.0


def written(n_classes=2):
    return sorted(name for name in outputs(n_classes) if has_matplotlib() or not name.endswith(".png"))


def simulate(folder, volumes, n=N, preset="shifted", snr=2.0, **options):
    """Particles of arbitrary units, on a background that is not zero, with columns of their own."""
    options = {"pixel_size": PIXEL_SIZE, "random_state": 0, **options}
    stack, truth = make_particles(volumes, n, preset=preset, snr=snr, **options)
    stack = stack.replace(data=37 * np.asarray(stack) + 1200)
    columns = {"rlnMicrographName": [f"m{i:03d}.mrc" for i in range(n)], "rlnAnglePsi": [f"{i:.1f}" for i in range(n)]}
    save_particles(folder / "in.star", stack, images_path=folder / "in.mrcs", columns=columns)
    return folder / "in.star", truth


def states(box, hinge=60):
    return [make_molecule(box, random_state=0), make_molecule(box, random_state=0, hinge=hinge)]


@pytest.fixture(scope="module")
def particles(tmp_path_factory):
    return simulate(tmp_path_factory.mktemp("particles"), states(32), proportions=[0.6, 0.4])


def classify3d(star, out, *more):
    return exit_code(["classify3d", star, "--jobs", "1", "-q", "-o", out, *more])


@pytest.fixture(scope="module")
def finished(particles, tmp_path_factory):
    out = tmp_path_factory.mktemp("finished") / "out"
    assert classify3d(particles[0], out, "--downsample", "24") == 0
    return out


def column(path, name):
    """A column of the particles' table, read by gemmi."""
    block = next(block for block in gemmi.cif.read(str(path)) if block.find_values(f"_{name}"))
    return np.array([float(value) for value in block.find_values(f"_{name}")])


def facts(out):
    return json.loads((out / "run.json").read_text())


def test_all_files_are_there_and_nothing_else(finished, particles):
    assert sorted(path.name for path in finished.iterdir()) == written()
    assert sorted(path.name for path in particles[0].parent.iterdir()) == ["in.mrcs", "in.star"]


def test_classes_and_poses_are_those_of_the_input(finished, particles):
    star, truth = particles
    labels = column(finished / "particles.star", "rlnClassNumber").astype(int)
    assert np.bincount(labels)[1:].tolist() == facts(finished)["class_sizes"]
    # By chance 0.6 at most; the largest class is the first.
    assert np.mean(labels - 1 == truth.labels) > 0.95
    stack = load_particles(finished / "particles.star")
    assert stack.shape == (N, 32, 32) and stack.pixel_size == PIXEL_SIZE
    assert pose_error(stack.rotations, truth.rotations).median < 8
    # In pixels of the input's box, up to the volume's own centre: left in the smaller box's they would be off by a
    # quarter of themselves, 0.4; of the wrong sign, by 2.3.
    rows = np.swapaxes(stack.rotations[:, :, :2], 1, 2)
    difference = stack.shifts - truth.shifts
    origin = np.linalg.lstsq(rows.reshape(-1, 3), difference.ravel(), rcond=None)[0]
    assert np.median(np.linalg.norm(difference - rows @ origin, axis=1)) < 0.25
    subset = column(finished / "particles.star", "rlnRandomSubset").astype(int)
    assert np.bincount(subset).tolist() == [0, N // 2, N // 2]
    before, after = read_star(star), read_star(finished / "particles.star")
    assert [name for name in after.names if name in before.names] == list(before.names)
    assert before["rlnMicrographName"].tolist() == after["rlnMicrographName"].tolist()


def test_each_class_has_its_volume(finished):
    loaded = {path.stem: load_volume(path) for path in finished.glob("*.mrc")}
    assert all(size == pytest.approx(PIXEL_SIZE * 32 / 24, rel=1e-5) for _, size in loaded.values())
    volumes = {name: volume for name, (volume, _) in loaded.items()}
    curves = {block.name: block for block in gemmi.cif.read(str(finished / "fsc.star"))}
    assert list(curves) == ["volume", "class1", "class2"]
    for k in (1, 2):
        halves = volumes[f"class{k}_half1"], volumes[f"class{k}_half2"]
        curve = [float(value) for value in curves[f"class{k}"].find_values("_rlnFourierShellCorrelation")]
        assert curve == pytest.approx(fsc(*halves), abs=1e-5)
    # In one frame: each is like the volume of all, and more so than like the other one.
    like = {a: np.corrcoef(volumes[a].ravel(), volumes[b].ravel())[0, 1] for a, b in
            (("class1", "volume"), ("class2", "class1"))}  # fmt: skip
    assert like["class1"] > 0.9 and 0.5 < like["class2"] < like["class1"]


class Parser(html.parser.HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.images, self.outside = 0, []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.images += tag == "img"
        for name in ("src", "href"):
            if name in values and not values[name].startswith("data:"):
                self.outside.append(values[name])


def test_the_report_tells_the_verdict_first_and_stands_alone(finished):
    page = (finished / "report.html").read_text(encoding="utf-8")
    parsed = Parser(page)
    assert parsed.images == 6 * 4 + 1 and not parsed.outside  # all, two classes, their difference; the weights
    told = facts(finished)
    assert told["confirmed"] and told["verdict"].startswith("Confirmed: 2 classes. Particles that took no part")
    assert told["separation"][0][1] > 10 * told["separation_error"][0][1] and told["start"]["converged"]
    assert 0 < told["cut_value"] <= told["upper_bound"] * (1 + 1e-9)
    assert 0 < page.index('class="verdict good"') < page.index(told["verdict"][:30]) < page.index("<h2>")
    assert "certified to be at most" in page and "Class 2 minus class 1" in page
    assert "skcryo classify2d" in page and "--select 1" in page


# ---- the verdict -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_poses_of_the_input_are_where_classes_begin(particles, tmp_path):
    star, truth = particles
    stack = load_particles(star)
    posed = stack.replace(rotations=truth.rotations, shifts=truth.shifts)
    save_particles(tmp_path / "in.star", posed, overwrite=True)
    out = tmp_path / "out"
    assert classify3d(tmp_path / "in.star", out, "--poses", "input", "--downsample", "24") == 0
    assert facts(out)["confirmed"] and "start" not in facts(out)
    found = load_particles(out / "particles.star")
    # In the frame of the poses given, in pixels of the input.
    assert np.degrees(np.median(geodesic_distance(found.rotations, truth.rotations))) < 5
    assert np.median(np.linalg.norm(found.shifts - truth.shifts, axis=1)) < 0.3


@pytest.mark.slow
def test_one_molecule_is_not_two_classes(tmp_path, capsys):
    star, _ = simulate(tmp_path, states(20)[:1], 100, preset="paper", snr=0.5)
    out = tmp_path / "out"
    assert classify3d(star, out, "--poses", "lines") == 0
    lines = capsys.readouterr().err.splitlines()
    # Heard by those who asked for quiet, last, and once.
    assert lines[-1].startswith("NOT CONFIRMED: particles that took no part in finding them do not tell classes 1 and")
    assert facts(out)["confirmed"] is False
    page = (out / "report.html").read_text(encoding="utf-8")
    assert 'class="verdict bad"' in page and "One volume of all, at the full box" in page


def found(together, n=60, reason=None):
    """Classes of which some are not told apart."""
    separation = np.ones((3, 3)) - np.eye(3)
    for group in together:
        separation[np.ix_(group, group)] = 0.01
    arrays = {"separation": separation, "separation_error": np.full((3, 3), 0.1), "labels": np.arange(n) % 3}
    return arrays | {"reason": reason}


def test_a_verdict_says_which_k_is_left():
    trusted, told = verdict(None, found([[0, 1, 2]]))
    assert not trusted and told.startswith("NOT CONFIRMED: ")
    assert "classes 1, 2 and 3 apart" in told and "there is one class: use volume.mrc, or more particles" in told
    trusted, told = verdict(None, found([[1, 2]]))
    assert not trusted and "classes 2 and 3 apart" in told and "there are 2 classes: give -k 2" in told
    assert verdict(None, found([]))[0]
    trusted, told = verdict(None, found([], reason="views still moved"))
    assert not trusted and told == "NOT CONVERGED: views still moved."


def test_classes_that_a_chain_joins_are_one():
    distinct = np.ones((4, 4), dtype=bool)
    for k, m in ((0, 2), (2, 3)):
        distinct[k, m] = distinct[m, k] = False
    assert groups(distinct) == [[0, 2, 3], [1]]


# ---- runs that are killed --------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a program in the background ignores it
import skcryo.io
from skcryo.reconstruction import _fourier_reconstructor
from skcryo._cli import _run_folder
place, how, argv = sys.argv[1], sys.argv[2], sys.argv[3:]
save = skcryo.io.save_checkpoint
def save_and_die(directory, name, *more):
    save(directory, name, *more)
    if place in (name, os.path.basename(directory)):
        os.kill(os.getpid(), signal.SIGKILL if how == "kill" else signal.SIGINT)
skcryo.io.save_checkpoint = _fourier_reconstructor.save_checkpoint = save_and_die
_fourier_reconstructor.FourierReconstructor._seconds_between_checkpoints = 0.0
from skcryo.__main__ import main
sys.exit(main(argv))
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_killed_run_goes_on_to_the_same_files(tmp_path, capsys):
    star, _ = simulate(tmp_path, states(24), 60, preset="shifted")
    more = ["--downsample", "16", "--starts", "2"]

    def run(place, how, out):
        command = [sys.executable, "-c", KILLED, place, how, "classify3d", str(star), "-o", str(out), *more]
        return subprocess.run([*command, "--jobs", "1"], capture_output=True, text=True)

    out, whole = tmp_path / "out", tmp_path / "whole"
    assert run("classes", "kill", out).returncode == -signal.SIGKILL
    assert sorted(path.name for path in out.iterdir()) == [".checkpoint"]
    assert exit_code(["classify3d", star, "-o", out, *more, "-k", "3"]) == 2
    assert "holds an interrupted run that differs: --classes was 2, now 3" in capsys.readouterr().err
    interrupted = run("volume1", "interrupt", out)
    assert interrupted.returncode == 130 and "the same command goes on" in interrupted.stderr
    assert "common lines" not in interrupted.stderr and "volume of all, chunk" in interrupted.stderr
    ended = run("none", "kill", out)
    assert ended.returncode == 0 and "going on from the checkpoint" in ended.stderr
    assert "common lines" not in ended.stderr and "volume of class 2, chunk" in ended.stderr
    assert facts(out)["sessions"] == 3
    assert classify3d(star, whole, *more) == 0
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in whole.iterdir())
    for path in whole.iterdir():
        if path.name not in ("run.json", "report.html"):  # these tell the time
            assert (out / path.name).read_bytes() == path.read_bytes(), path.name
    told, same = facts(out), facts(whole)
    for name in ("seconds", "sessions"):
        told.pop(name), same.pop(name)
    assert told == same


def test_finished_runs_are_kept(finished, particles, capsys):
    before = {path.name: path.read_bytes() for path in finished.iterdir()}
    assert classify3d(particles[0], finished) == 2
    assert "holds a finished run; give --overwrite" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in finished.iterdir()} == before


# ---- bad input -------------------------------------------------------------------------------------------

BAD = {
    "missing file": (["nowhere.star"], "does not exist"),
    "no pixel size": (["{star_without_size}"], "the input says no pixel size; --pixel-size in Angstrom is wanted"),
    "one class": (["{star}", "-k", "1"], "a whole number of at least 2 is wanted"),
    "more classes than particles": (["{star}", "-k", "99"], "--classes 99 is more than the 30 particles of the input"),
    "too few particles": (["{star}", "-k", "20"], "--classes 20 wants at least 40 particles; the input has 30"),
    "poses from tea leaves": (["{star}", "--poses", "tea"], "invalid choice: 'tea'"),
    "poses that are not there": (["{mrcs}", "--poses", "input", "--pixel-size", "10"], "the input has no poses"),
    "shifts looked for and given": (["{posed}", "--poses", "input", "--max-shift", "3"], "--max-shift has no meaning"),
    "shift of half the box": (["{star}", "--max-shift", "160A"], "--max-shift is 16 pixels; less than half of the box"),
    "mask of nothing": (["{star}", "--mask-radius", "0"], "--mask-radius is 0 pixels of the input; above 0"),
    "larger box": (["{star}", "--downsample", "48"], "--downsample 48 is above the box of the input; at most 32"),
    "negative seed": (["{star}", "--seed", "-1"], "a whole number of at least 0 is wanted"),
    "one particle": (["{one}"], "the input has 1 particle; at least two are wanted"),
    "NaN pixels": (["{nan}"], "NaN"),
    "output is a file": (["{star}", "-o", "{star}"], "is a file; a folder is wanted"),
}


@pytest.fixture(scope="module")
def bad_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    star, _ = simulate(folder, states(32)[:1], 30)
    places = {"star": str(star), "mrcs": str(folder / "in.mrcs"), "posed": str(folder / "posed.star")}
    places |= {"star_without_size": str(folder / "sizeless.star")}
    (folder / "sizeless.star").write_text(star.read_text().replace("_rlnImagePixelSize", "_rlnSomethingElse"))
    stack = load_particles(star).load()
    posed = stack.replace(rotations=random_rotations(30, random_state=0))
    for name, images in (("one", stack[:1]), ("nan", stack), ("posed", posed)):
        save_particles(folder / f"{name}.star", images, images_path=folder / f"{name}.mrcs")
        places[name] = str(folder / f"{name}.star")
    content = bytearray((folder / "nan.mrcs").read_bytes())
    content[1024 + 4 * 700 : 1024 + 4 * 701] = np.float32(np.nan).tobytes()
    (folder / "nan.mrcs").write_bytes(bytes(content))
    return places


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(case, bad_files, tmp_path, capsys):
    words, message = BAD[case]
    words = [word.format(**bad_files) for word in words]
    out = tmp_path / "out"
    if "-o" not in words:
        words += ["-o", str(out)]
    assert exit_code(["classify3d", *words, "-q"]) == 2
    captured = capsys.readouterr()
    errors = [line for line in captured.err.splitlines() if "error" in line]
    assert len(errors) == 1 and message in errors[0], captured.err
    assert captured.out == "" and not out.exists()
