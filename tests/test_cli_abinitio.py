"""``skcryo abinitio`` as a person meets it: a verdict first, files, errors in one line, runs that survive a kill."""

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

from skcryo._cli._abinitio import outputs
from skcryo._cli._abinitio_progress import StageReporter
from skcryo.datasets import make_molecule, make_particles
from skcryo.io import load_particles, load_volume, read_star, save_particles
from skcryo.metrics import fsc, fsc_resolution, pose_error
from skcryo.particles import ParticleStack
from skcryo.preprocessing import NormalizeBackground
from skcryo.reconstruction import AbInitioVolume, FourierReconstructor

N, L, PIXEL_SIZE = 250, 32, 10.0
WORKED = 24  # box that the runs work at
MOLECULE = make_molecule(L, random_state=0)


def written(n_classes=1):
    return sorted(name for name in outputs(n_classes) if has_matplotlib() or not name.endswith(".png"))


def simulate(folder, volumes=MOLECULE, n=N, preset="ctf", snr=4.0, **options):
    """Particles of arbitrary units, on a background that is not zero, with columns of their own."""
    stack, truth = make_particles(volumes, n, preset=preset, snr=snr, pixel_size=PIXEL_SIZE, random_state=0, **options)
    stack = stack.replace(data=37 * np.asarray(stack) + 1200)
    columns = {"rlnMicrographName": [f"m{i:03d}.mrc" for i in range(n)], "rlnAnglePsi": [f"{i:.1f}" for i in range(n)]}
    save_particles(folder / "in.star", stack, images_path=folder / "in.mrcs", columns=columns)
    return folder / "in.star", truth


@pytest.fixture(scope="module")
def particles(tmp_path_factory):
    return simulate(tmp_path_factory.mktemp("particles"))


def abinitio(particles, out, *more):
    return exit_code(["abinitio", particles, "--jobs", "1", "-q", "-o", out, "--downsample", WORKED, *more])


@pytest.fixture(scope="module")
def finished(particles, tmp_path_factory):
    out = tmp_path_factory.mktemp("finished") / "out"
    assert abinitio(particles[0], out) == 0
    return out


def column(path, name):
    """A column of the particles' table, read by gemmi."""
    block = next(block for block in gemmi.cif.read(str(path)) if block.find_values(f"_{name}"))
    return np.array([float(value) for value in block.find_values(f"_{name}")])


def facts(out):
    return json.loads((out / "run.json").read_text())


# ---- what is written -------------------------------------------------------------------------------------


def test_all_files_are_there_and_nothing_else(finished, particles):
    assert sorted(path.name for path in finished.iterdir()) == written()
    assert sorted(path.name for path in particles[0].parent.iterdir()) == ["in.mrcs", "in.star"]


def test_poses_and_shifts_are_those_of_the_input(finished, particles):
    star, truth = particles
    stack = load_particles(finished / "particles.star")
    assert stack.shape == (N, L, L) and stack.pixel_size == PIXEL_SIZE
    assert pose_error(stack.rotations, truth.rotations).p95 < 4
    # In pixels of the input's box, up to the volume's own centre. Left in the smaller box's they would be off by
    # a quarter of themselves, 0.2; of the wrong sign, by 1.2.
    rows = np.swapaxes(stack.rotations[:, :, :2], 1, 2)
    difference = stack.shifts - truth.shifts
    origin = np.linalg.lstsq(rows.reshape(-1, 3), difference.ravel(), rcond=None)[0]
    assert np.median(np.linalg.norm(difference - rows @ origin, axis=1)) < 0.12


def test_relion_reads_the_table(finished, particles):
    star = finished / "particles.star"
    tilt = column(star, "rlnAngleTilt")
    assert len(tilt) == N and tilt.min() >= 0 and tilt.max() <= 180
    assert np.abs(column(star, "rlnAngleRot")).max() <= 180 and np.abs(column(star, "rlnAnglePsi")).max() <= 180
    stack = load_particles(star)
    assert column(star, "rlnOriginXAngst") == pytest.approx(-PIXEL_SIZE * stack.shifts[:, 0], abs=1e-3)
    subset = column(star, "rlnRandomSubset")
    assert np.bincount(subset.astype(int)).tolist() == [0, N // 2, N // 2]
    # Every column of the input is there, in its order, and unchanged unless it is what was estimated.
    before, after = read_star(particles[0]), read_star(star)
    assert [name for name in after.names if name in before.names] == list(before.names)
    for name in before.names:
        if name not in ("rlnAnglePsi", "rlnImageName"):
            assert before[name].tolist() == after[name].tolist(), name
    assert "rlnClassNumber" not in after.names


def test_volumes_are_those_of_the_estimator(finished, particles):
    from skcryo.preprocessing import FourierDownsampler

    stack = FourierDownsampler(WORKED).fit_transform(load_particles(particles[0]))
    images = NormalizeBackground().fit_transform(stack).load()
    expected = AbInitioVolume(n_jobs=1, random_state=0).fit(images)
    for name, volume in (("volume", expected.volume_), ("half1", expected.half_maps_[0])):
        found, voxel_size = load_volume(finished / f"{name}.mrc")
        assert np.array_equal(found, volume)
        assert voxel_size == pytest.approx(PIXEL_SIZE * L / WORKED, rel=1e-5)
    assert column(finished / "fsc.star", "rlnFourierShellCorrelation") == pytest.approx(expected.fsc_, abs=1e-5)
    assert facts(finished)["resolution"] == pytest.approx(expected.resolution_)


def test_the_poses_make_the_volume_again_at_the_full_box(finished, particles):
    stack = NormalizeBackground().fit_transform(load_particles(finished / "particles.star"))
    subset = column(finished / "particles.star", "rlnRandomSubset").astype(int)
    again = FourierReconstructor(random_state=0).fit(stack, half_sets=subset - 1)
    ab_initio, voxel_size = load_volume(finished / "volume.mrc")
    # One frame and one scale of length: no alignment is needed.
    from skcryo.fourier import fourier_crop

    agreement = fsc(fourier_crop(again.volume_, WORKED, ndim=3), ab_initio)
    assert agreement[1:10].min() > 0.95
    resolution = fsc_resolution(again.fsc_, 0.143, PIXEL_SIZE, box_size=L)
    assert resolution < 1.15 * max(facts(finished)["resolution"], 2 * voxel_size)
    # The command does it too, with the half sets of the file.
    out = finished.parent / "volume"
    assert exit_code(["reconstruct", finished / "particles.star", "-q", "-o", out]) == 0
    assert fsc(load_volume(out / "volume.mrc")[0], again.volume_)[1:].min() > 0.99


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
    assert parsed.images == 6 and not parsed.outside
    verdict = facts(finished)["verdict"]
    assert verdict.startswith("Converged: start ") and facts(finished)["converged"]
    assert 0 < page.index('class="verdict good"') < page.index(verdict[:30]) < page.index("<h2>")
    starts = page[page.index("log-likelihood of an image") : page.index("<h2>")]
    assert starts.count("<tr>") == len(facts(finished)["start_scores"]) and "the best" in starts
    assert page.count("<polyline") == 1 and "Viewing directions" in page


# ---- the verdict -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_noise_is_written_with_a_warning(tmp_path, capsys):
    noise = np.random.default_rng(0).standard_normal((100, 24, 24)).astype(np.float32)
    save_particles(tmp_path / "in.star", ParticleStack(noise, pixel_size=5.0), images_path=tmp_path / "in.mrcs")
    out = tmp_path / "out"
    assert exit_code(["abinitio", tmp_path / "in.star", "-q", "--starts", "2", "-o", out]) == 0
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    # Heard by those who asked for quiet, last, and once.
    assert lines[-1].startswith("NOT CONVERGED: of 2 starts, none agrees") and "did not converge" not in captured.err
    assert sorted(path.name for path in out.iterdir()) == written()
    assert facts(out)["converged"] is False
    assert 'class="verdict bad"' in (out / "report.html").read_text(encoding="utf-8")


# ---- options ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_classes(tmp_path):
    states = [MOLECULE, make_molecule(L, random_state=0, hinge=60)]
    star, truth = simulate(tmp_path, states, 300, preset="paper", proportions=[0.6, 0.4])
    out = tmp_path / "out"
    assert abinitio(star, out, "-k", "2", "--max-shift", "0") == 0
    assert sorted(path.name for path in out.iterdir()) == written(2)
    labels = column(out / "particles.star", "rlnClassNumber").astype(int)
    assert set(labels) == {1, 2} and np.bincount(labels)[1] == facts(out)["class_sizes"][0] >= np.sum(labels == 2)
    # By chance 0.6 at most.
    assert np.mean(labels - 1 == truth.labels) > 0.93
    whole, voxel_size = load_volume(out / "volume.mrc")
    classes = [load_volume(out / f"class{k}.mrc") for k in (1, 2)]
    for volume, size in classes:
        # On the grid of the volume of all, and in its frame.
        assert volume.shape == whole.shape and size == voxel_size
        assert np.corrcoef(volume.ravel(), whole.ravel())[0, 1] > 0.6
    assert not np.allclose(classes[0][0], classes[1][0], atol=0.1 * np.abs(whole).max())
    page = (out / "report.html").read_text(encoding="utf-8")
    assert Parser(page).images == 24 and "Class 2 minus class 1" in page


@pytest.mark.slow
def test_options_reach_the_estimator(particles, tmp_path, capsys):
    more = ["--mask-radius", "100A", "--max-shift", "20A", "--starts", "1", "--seed", "3", "--no-ctf"]
    assert abinitio(particles[0], tmp_path / "out", *more) == 0
    assert "NOT CONVERGED: there was one start" in capsys.readouterr().err
    volume = load_volume(tmp_path / "out" / "volume.mrc")[0]
    # 100 A are 7.5 voxels of 13.3 A, with an edge of two: nothing is left beyond.
    assert volume[12, 12, 12] and not volume[12, 12, 1] and not volume[1, 12, 12]
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "<td>max_shift</td><td>1.5</td>" in page and "<td>mask_radius</td><td>7.5</td>" in page
    assert "<td>CTF</td><td>not used</td>" in page and "<td>random_state</td><td>3</td>" in page


@pytest.mark.slow
def test_dark_particles_are_noticed(particles, tmp_path, capsys):
    """Through CTFs particles have no mean grey to go by; these have none."""
    star, _ = simulate(tmp_path, n=60, preset="paper")
    assert exit_code(["abinitio", star, "-q", "--invert", "--starts", "1", "--jobs", "1", "-o", tmp_path / "out"]) == 0
    assert "particles look dark on a light background; without --invert they are light" in capsys.readouterr().err


# ---- runs that are killed --------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a program in the background ignores it
from skcryo.reconstruction import AbInitioVolume, _ab_initio_fit as module
AbInitioVolume._seconds_between_checkpoints = 0.0
save, n = module.save_checkpoint, []
def save_and_die(*args):
    save(*args)
    n.append(1)
    if len(n) == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL if sys.argv[2] == "kill" else signal.SIGINT)
module.save_checkpoint = save_and_die
from skcryo.__main__ import main
sys.exit(main(sys.argv[3:]))
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_killed_run_goes_on_to_the_same_files(tmp_path, capsys):
    star, _ = simulate(tmp_path, n=60, preset="shifted")
    more = ["--downsample", "16", "--starts", "2", "-k", "2"]

    def run(after, how, out):
        command = [sys.executable, "-c", KILLED, str(after), how, "abinitio", str(star), "-o", str(out), *more]
        return subprocess.run([*command, "--jobs", "1"], capture_output=True, text=True)

    out, whole = tmp_path / "out", tmp_path / "whole"
    assert run(3, "kill", out).returncode == -signal.SIGKILL
    assert sorted(path.name for path in out.iterdir()) == [".checkpoint"]
    assert exit_code(["abinitio", star, "-o", out, "--downsample", "16", "-k", "2", "--starts", "3"]) == 2
    assert "holds an interrupted run that differs: --starts was 2, now 3" in capsys.readouterr().err
    interrupted = run(20, "interrupt", out)
    assert interrupted.returncode == 130 and "the same command goes on" in interrupted.stderr
    ended = run(999, "kill", out)
    assert ended.returncode == 0 and "going on from the checkpoint" in ended.stderr
    assert facts(out)["sessions"] == 3
    assert sorted(path.name for path in out.iterdir()) == written(2)
    assert run(999, "kill", whole).returncode == 0
    for name in written(2):
        if name not in ("run.json", "report.html"):  # these tell the time
            assert (out / name).read_bytes() == (whole / name).read_bytes(), name
    # Progress of a whole run: stages, time, and about how long the rest will take.
    assert "start 1, epoch 1, " in ended.stderr or "refinement, round" in ended.stderr


def test_finished_runs_are_kept(finished, particles, capsys):
    before = {path.name: path.read_bytes() for path in finished.iterdir()}
    assert abinitio(particles[0], finished) == 2
    assert "holds a finished run; give --overwrite" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in finished.iterdir()} == before


class Task:
    def __init__(self, name, parent, max_subtasks=0):
        self.task_name, self.parent, self.max_subtasks = name, parent, max_subtasks


def test_progress_tells_stages_and_the_time_left():
    import io

    now, stream = [0.0], io.StringIO()
    reporter = StageReporter(stream, n_starts=5, clock=lambda: now[0])
    root = Task("fit", None, None)
    reporter.setup(None, root)

    def end(name, parent=root, seconds=2.0):
        now[0] += seconds
        reporter.on_fit_task_end(None, Task(name, parent))

    for _ in range(2):
        start = Task("start", root, 30)
        reporter.on_fit_task_begin(None, start)
        for _ in range(12):
            end("epoch", start)
        reporter.on_fit_task_end(None, start)
    for _ in range(6):
        end("round")
    for _ in range(2):
        end("half set")
    lines = stream.getvalue().splitlines()
    assert len(lines) == 24 + 6 + 2
    # 12 epochs each of two starts, of which one is done; 21.6 epochs' worth of rounds and 3.4 of half sets.
    assert lines[0] == "start 1, epoch 1, 2 s, about 96 s left if two starts agree"
    assert lines[12].startswith("start 2, epoch 1, 26 s, about 72 s left")
    assert lines[24].startswith("refinement, round 1, 50 s, about 32 s left")
    assert lines[-1] == "half set 2, 64 s"


# ---- bad input -------------------------------------------------------------------------------------------

BAD = {
    "missing file": (["nowhere.star"], "does not exist"),
    "no pixel size": (["{star_without_size}"], "the input says no pixel size; --pixel-size in Angstrom is wanted"),
    "no class": (["{star}", "-k", "0"], "a whole number of at least 1 is wanted"),
    "more classes than particles": (["{star}", "-k", "99"], "--classes 99 is more than the 30 particles of the input"),
    "no start": (["{star}", "--starts", "0"], "a whole number of at least 1 is wanted"),
    "shift of half the box": (["{star}", "--max-shift", "160A"], "--max-shift is 16 pixels; less than half of the box"),
    "shift in furlongs": (["{star}", "--max-shift", "3furlongs"], "'3furlongs' given; pixels"),
    "mask of nothing": (["{star}", "--mask-radius", "0"], "--mask-radius is 0 pixels of the input; above 0"),
    "mask beyond the box": (["{star}", "--mask-radius", "500A"], "--mask-radius is 50 pixels of the input"),
    "larger box": (["{star}", "--downsample", "48"], "--downsample 48 is above the box of the input; at most 32"),
    "smallest box": (["{star}", "--downsample", "4"], "a whole number of at least 8 is wanted"),
    "negative seed": (["{star}", "--seed", "-1"], "a whole number of at least 0 is wanted"),
    "a device of the future": (["{star}", "--device", "qpu"], "invalid choice: 'qpu'"),
    "one particle": (["{one}"], "the input has 1 particle; at least two are wanted"),
    "NaN pixels": (["{nan}"], "NaN"),
    "blank particle": (["{blank}"], "zero variance in its background"),
    "output is a file": (["{star}", "-o", "{star}"], "is a file; a folder is wanted"),
}


@pytest.fixture(scope="module")
def bad_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    star, _ = simulate(folder, n=30)
    places = {"star": str(star), "star_without_size": str(folder / "sizeless.star")}
    text = star.read_text()
    (folder / "sizeless.star").write_text(text.replace("_rlnImagePixelSize", "_rlnSomethingElse"))
    stack = load_particles(star).load()
    for name, images in (("one", stack[:1]), ("nan", stack), ("blank", stack)):
        data = np.array(images)
        if name == "blank":
            data[7] = 5
        target = folder / f"{name}.mrcs"
        save_particles(folder / f"{name}.star", images.replace(data=data), images_path=target)
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
    assert exit_code(["abinitio", *words, "-q"]) == 2
    captured = capsys.readouterr()
    errors = [line for line in captured.err.splitlines() if "error" in line]
    assert len(errors) == 1 and message in errors[0], captured.err
    assert captured.out == "" and not out.exists()
