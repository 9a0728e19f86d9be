"""The command line as a person meets it: files in and out, errors in one line, runs that survive a kill."""

import html.parser
import json
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from common_cli import WRITTEN, column, exit_code
from numpy.testing import assert_allclose, assert_array_equal

from skcryo.__main__ import main
from skcryo._cli._classify2d import OUTPUTS
from skcryo.cluster import RotInvWassersteinKMeans
from skcryo.datasets import make_molecule, make_particles
from skcryo.io import load_particles, read_star, save_images, save_particles

K = 3
# Classes of these particles settle only after several iterations, so that there is something to interrupt.
QUICK = ["-k", str(K), "--n-angles", "16", "--max-iter", "5", "--max-shift", "1", "--jobs", "1"]


@pytest.fixture(scope="module")
def particles(tmp_path_factory):
    """A STAR file with 60 particles of 24 px, CTF, and a column that means nothing to skcryo."""
    folder = tmp_path_factory.mktemp("particles")
    stack, _ = make_particles(make_molecule(24), 60, preset="ctf", snr=0.5, pixel_size=8.0, random_state=0)
    save_particles(
        folder / "in.star",
        stack,
        images_path=folder / "in.mrcs",
        columns={"rlnMicrographName": [f"mic_{i:03d}.mrc" for i in range(60)]},
    )
    return folder / "in.star"


@pytest.fixture(scope="module")
def finished(particles, tmp_path_factory):
    """The folder of a run that nothing disturbed."""
    out = tmp_path_factory.mktemp("finished") / "out"
    assert main(["classify2d", str(particles), *QUICK, "-q", "-o", str(out)]) == 0
    return out


def classify(particles, out, *more):
    return main(["classify2d", str(particles), *QUICK, "-q", "-o", str(out), *map(str, more)])


# --- what a run leaves


def test_all_files_are_there_and_nothing_else(finished, particles):
    assert sorted(path.name for path in finished.iterdir()) == sorted(WRITTEN)
    assert sorted(path.name for path in particles.parent.iterdir()) == ["in.mrcs", "in.star"]


def test_star_keeps_every_column_and_adds_classes(finished, particles):
    before, after = read_star(particles), read_star(finished / "particles.star")
    assert list(after.names)[: len(before.names)] == list(before.names)
    assert set(after.names) - set(before.names) >= {"rlnClassNumber", "rlnAnglePsi"}
    for name in set(before.names) - {"rlnImageName", "rlnOriginXAngst", "rlnOriginYAngst"}:
        assert after[name].tolist() == before[name].tolist(), name
    assert set(after["rlnClassNumber"].tolist()) <= {"1", "2", "3"}
    assert_array_equal(
        np.asarray(load_particles(finished / "particles.star")), np.asarray(load_particles(particles))
    )


def test_labels_and_averages_are_those_of_the_estimator(finished, particles):
    """The command does what the same lines in Python do; averages are of images whose noise has its colour."""
    from skcryo.alignment import class_averages
    from skcryo.preprocessing import NoiseWhitener, NormalizeBackground

    images = NormalizeBackground().fit_transform(load_particles(particles)).load()
    white = NoiseWhitener(remove_mean=True).fit_transform(images)
    with pytest.warns() if not json.loads((finished / "run.json").read_text())["converged"] else _nothing():
        estimator = RotInvWassersteinKMeans(
            K, metric="l2", n_angles=16, max_iter=5, max_shift=1.0, random_state=0
        ).fit(white)
    assert_array_equal(np.array(column(finished / "particles.star"), dtype=int), estimator.labels_ + 1)
    averages = load_particles(finished / "class_averages.mrcs")
    alignment = estimator.labels_, estimator.in_plane_angles_, estimator.shifts_
    expected, _ = class_averages(images, *alignment, K, ctf=images.ctf, pixel_size=images.pixel_size)
    assert_allclose(np.asarray(averages), expected, rtol=1e-4, atol=1e-5)
    assert averages.pixel_size == pytest.approx(8.0)
    shifts = load_particles(finished / "particles.star").shifts
    assert_allclose(shifts, estimator.shifts_, atol=1e-5)


class _nothing:
    def __enter__(self):
        return self

    def __exit__(self, *error):
        return False


def test_classes_star_holds_shares(finished):
    text = (finished / "classes.star").read_text()
    rows = re.findall(r"^(\d{6})@class_averages\.mrcs (\S+)", text, re.M)
    assert [int(number) for number, _ in rows] == [1, 2, 3]
    counts = np.bincount(np.array(column(finished / "particles.star"), dtype=int), minlength=K + 1)[1:]
    assert_allclose([float(share) for _, share in rows], counts / 60, atol=1e-6)
    import gemmi

    block = gemmi.cif.read(str(finished / "classes.star")).sole_block()
    assert len(block.find_loop("_rlnReferenceImage")) == K


def test_run_json_says_what_happened(finished):
    facts = json.loads((finished / "run.json").read_text())
    assert sum(facts["class_sizes"]) == facts["particles"] == 60
    assert facts["key"]["--classes"] == K
    assert {"skcryo", "numpy", "scikit-learn"} <= set(facts["versions"])


@pytest.mark.parametrize("box", [48, 24])
def test_angles_and_origins_are_in_pixels_of_the_input(tmp_path, box):
    """One view, turned and shifted by known amounts, classified at half the box.

    With images p_i = shift(rotate(A, a_i), s_i) of one class, angles are known up to one rotation g and
    shifts up to one offset c that turns along: s_i + Rot(a_i) c. Origins left in pixels of the smaller
    box would be half as long (2.6 px rms here instead of 0.3).
    """
    rng = np.random.default_rng(1)
    n = 40
    from skcryo.rotations import in_plane_rotation, random_rotations

    angles = rng.uniform(0, 2 * np.pi, n)
    rotations = random_rotations(1, random_state=3) @ in_plane_rotation(-angles)
    clean = make_particles(
        make_molecule(48), n, snr=None, rotations=rotations, pixel_size=5.0, random_state=0
    )[0]
    from skcryo.fourier import shift_images

    shifts = rng.uniform(-4, 4, (n, 2))
    images = shift_images(np.asarray(clean), shifts)
    images += 0.3 * images.std() * rng.standard_normal(images.shape, dtype=np.float32)
    save_particles(tmp_path / "in.star", clean.replace(data=images), images_path=tmp_path / "in.mrcs")
    words = ["-k", "1", "--n-angles", "180", "--max-shift", "30A", "--max-iter", "12", "--downsample", box]
    assert exit_code(["classify2d", tmp_path / "in.star", *words, "-q", "-o", tmp_path / "out"]) == 0

    table = read_star(tmp_path / "out" / "particles.star")
    origins = np.stack([table.numbers("rlnOriginXAngst"), table.numbers("rlnOriginYAngst")], axis=1) / 5.0
    found = load_particles(tmp_path / "out" / "particles.star").shifts
    assert_allclose(found, -origins, atol=1e-5)
    from skcryo.rotations import rotations_from_relion

    psi = table.numbers("rlnAnglePsi")
    zero = np.zeros(n)
    turns = rotations_from_relion(np.stack([zero, zero, psi], axis=1))
    # R_image = R_class Rz(-a): what is left of the true pose is one and the same class pose for all.
    gauge = rotations @ turns.transpose(0, 2, 1)
    spread = np.degrees(np.arccos(np.clip((np.trace(gauge[0].T @ gauge, axis1=1, axis2=2) - 1) / 2, -1, 1)))
    assert np.median(np.abs(spread - np.median(spread))) < 3, (
        "opposite turns would be spread over 180 degrees"
    )

    cos, sin = np.cos(angles), np.sin(angles)
    columns = np.stack([np.stack([cos, -sin], 1), np.stack([sin, cos], 1)], axis=1).reshape(2 * n, 2)
    offset, *_ = np.linalg.lstsq(columns, (found - shifts).ravel(), rcond=None)
    residual = (found - shifts).ravel() - columns @ offset
    assert np.sqrt(np.mean(residual**2)) < 0.7


# --- montage and report


class _Collector(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.sources, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        self.text.append(data)


def parse(page):
    collector = _Collector()
    collector.feed(page)
    return collector


def test_report_needs_nothing_beside_it(finished):
    page = (finished / "report.html").read_text()
    found = parse(page)
    assert len(found.sources) == K and all(
        source.startswith("data:image/png;base64,") for source in found.sources
    )
    assert "script" not in found.tags and "link" not in found.tags
    assert "http" not in page.replace("http-equiv", "")
    sizes = np.bincount(np.array(column(finished / "particles.star"), dtype=int), minlength=K + 1)[1:]
    captions = re.findall(r"<figcaption><b>(\d+)</b>: (\d+)</figcaption>", page)
    assert captions == [(str(i + 1), str(sizes[i])) for i in np.argsort(-sizes, kind="stable")]
    for word in ("scikit-learn", "max_shift", "in.star", "--n-angles"):
        assert word in page


def test_without_matplotlib_all_but_the_montage(particles, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert classify(particles, tmp_path / "out") == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        set(OUTPUTS) - {"montage.png"}
    )
    captured = capsys.readouterr()
    assert "montage.png is left out" in captured.err and "pip install 'skcryo[plot]'" in captured.err
    assert "montage.png" not in captured.out


# --- errors: exit code 2, one line, nothing left behind


BAD = [
    (["-k", "0"], "argument -k/--classes: '0' given; a whole number of at least 1 is wanted"),
    (["-k", "many"], "'many' given"),
    (["-k", "61"], "--classes 61 is more than the 60 particles of the input"),
    (["--metric", "w2"], "argument --metric: invalid choice: 'w2'"),
    (["--max-shift", "-1"], "argument --max-shift"),
    (["--max-shift", "3nm"], "'3nm' given; pixels (6 or 6px) or Angstrom (8A) are wanted"),
    (["--max-shift", "96A"], "--max-shift is 12 pixels; less than half of the box of 24 is wanted"),
    (["--downsample", "32"], "--downsample 32 is above the box of the input; at most 24 is wanted"),
    (["--downsample", "3"], "at least 16"),
    (["--jobs", "0"], "'0' given; a number of processors, or -1 for all, is wanted"),
    (["--seed", "-3"], "argument --seed"),
    (["--max-iter", "0"], "argument --max-iter"),
    (["--n-angles", "5000"], "n_angles"),
    (["--images-dir", "nowhere"], "nowhere is not a folder"),
    (["--pixel-size", "0"], "'0' given; a number above zero is wanted"),
    (["--unknown"], "unrecognized arguments: --unknown"),
]


@pytest.mark.parametrize("words, message", BAD, ids=[" ".join(words) for words, _ in BAD])
def test_bad_arguments(particles, tmp_path, capsys, words, message):
    out = tmp_path / "a" / "out"
    assert exit_code(["classify2d", particles, "-k", K, *words, "-o", out]) == 2
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if "error" in line]
    assert len(lines) == 1 and message in lines[0]
    assert "Traceback" not in captured.err and captured.out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "COMMAND"),
        (["classify2d"], "STAR"),
        (["classify2d", "x.star"], "-o/--output"),
        (["paint"], "paint"),
    ],
)
def test_missing_arguments(capsys, words, message):
    assert exit_code(words) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def broken_inputs(folder):
    """Name, content or maker of an input, and what the error says."""
    nan = np.zeros((60, 24, 24), np.float32)
    nan += np.random.default_rng(0).standard_normal(nan.shape, dtype=np.float32)
    save_images(folder / "no_pixel_size.mrcs", nan)
    nan[7, 3, 3] = np.nan
    stack = make_particles(make_molecule(24), 60, random_state=0)[0]
    save_particles(folder / "nan.star", stack, images_path=folder / "nan.mrcs")
    with open(folder / "nan.mrcs", "r+b") as file:
        file.seek(1024)
        file.write(nan.tobytes())
    (folder / "empty.star").write_text("")
    (folder / "text.star").write_text("hello\n")
    (folder / "lost.star").write_text("data_particles\nloop_\n_rlnImageName #1\n1@lost.mrcs\n")
    return {
        "missing.star": "missing.star",
        "empty.star": "empty.star",
        "text.star": "text.star",
        "lost.star": "lost.mrcs",
        "nan.star": "image 7",
        "no_pixel_size.mrcs": "--pixel-size",
        "particles.txt": "particles.txt",
    }


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("broken")
    return folder, broken_inputs(folder)


@pytest.mark.parametrize(
    "name",
    [
        "missing.star",
        "empty.star",
        "text.star",
        "lost.star",
        "nan.star",
        "no_pixel_size.mrcs",
        "particles.txt",
    ],
)
def test_bad_input(broken, tmp_path, capsys, name):
    folder, messages = broken
    assert classify(folder / name, tmp_path / "out") == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("skcryo classify2d: error: ") and messages[name] in error
    assert not (tmp_path / "out").exists()


def test_particles_of_another_program(shared_data, tmp_path, capsys):
    star = shared_data / "sample_particles_relion31.star"
    words = ["--n-angles", "24", "--max-iter", "2", "-q"]
    assert exit_code(["classify2d", star, "-k", "18", *words, "-o", tmp_path / "out"]) == 2
    assert "--classes 18 is more than the 17 particles" in capsys.readouterr().err
    assert exit_code(["classify2d", star, *words, "-o", tmp_path / "out"]) == 2
    assert "the default of --classes, 50, is more than the 17 particles" in capsys.readouterr().err
    assert (
        exit_code(["classify2d", star, "-k", "3", "--downsample", "32", *words, "-o", tmp_path / "out"]) == 0
    )
    before, after = read_star(star), read_star(tmp_path / "out" / "particles.star")
    assert list(after.names) == list(before.names)
    assert after.raw("rlnCoordinateX").tolist() == before.raw("rlnCoordinateX").tolist()
    assert load_particles(tmp_path / "out" / "class_averages.mrcs").pixel_size == pytest.approx(
        1.4 * 200 / 32
    )


def test_dark_particles_are_noticed(particles, tmp_path, capsys):
    stack = load_particles(particles)
    dark = stack.replace(data=-np.asarray(stack))
    save_particles(tmp_path / "dark.star", dark, images_path=tmp_path / "dark.mrcs")
    assert classify(tmp_path / "dark.star", tmp_path / "a") == 0
    assert "particles look dark on a light background; give --invert" in capsys.readouterr().err
    assert classify(tmp_path / "dark.star", tmp_path / "b", "--invert") == 0
    assert "dark" not in capsys.readouterr().err
    assert classify(particles, tmp_path / "c", "--invert") == 0
    assert "without --invert they are light" in capsys.readouterr().err


# --- interrupted, finished, changed

# Runs the command in a process of its own that kills itself where `place` says.
KILLED = """
import os, signal, sys
from skcryo import __main__
from skcryo._cli import _classify2d, _progress, _run, _run_folder

def kill(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

place, after, argv = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
module, name = {
    "iteration": (_progress.ProgressReporter, "on_fit_task_end"),
    "prepare": (_classify2d, "prepare_once"),
    "write": (_classify2d, "_write"),
    "report": (_run, "render_page"),
    "finish": (_run_folder.RunFolder, "finish"),
    "rmtree": (_run_folder.shutil, "rmtree"),
}[place]
original, calls = getattr(module, name), []

def patched(*args, **kwargs):
    calls.append(1)
    if len(calls) > after:
        kill()
    return original(*args, **kwargs)

if name == "on_fit_task_end":
    # scikit-learn looks at the signature.
    def patched(self, estimator, context, *, fitted_estimator=None):
        calls.append(1)
        if len(calls) > after:
            kill()
        return original(self, estimator, context, fitted_estimator=fitted_estimator)

setattr(module, name, patched)
sys.exit(__main__.main(argv))
"""


def kill_at(place, after, particles, out, *more):
    argv = ["classify2d", str(particles), *QUICK, "-q", "-o", str(out), *more]
    done = subprocess.run([sys.executable, "-c", KILLED, place, str(after), *argv], capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()


@pytest.mark.parametrize(
    "place, after",
    [
        ("iteration", 2),
        ("finish", 0),
        *(pytest.param(at, 0, marks=pytest.mark.slow) for at in ("prepare", "iteration", "write", "report")),
    ],
)
def test_killed_and_started_again(particles, finished, tmp_path, place, after):
    out = tmp_path / "out"
    kill_at(place, after, particles, out)
    assert not (out / "run.json").exists()
    assert classify(particles, out) == 0
    assert sorted(path.name for path in out.iterdir()) == sorted(WRITTEN)
    for name in ("rlnClassNumber", "rlnAnglePsi", "rlnOriginXAngst", "rlnOriginYAngst"):
        assert column(out / "particles.star", name) == column(finished / "particles.star", name)
    assert (out / "class_averages.mrcs").read_bytes() == (finished / "class_averages.mrcs").read_bytes()


def test_it_really_goes_on(particles, tmp_path, capsys):
    """Fewer iterations are left after a kill than a fresh run takes."""
    out = tmp_path / "out"
    kill_at("iteration", 2, particles, out)
    argv = ["classify2d", str(particles), *QUICK, "-o", str(out)]
    assert main(argv) == 0
    resumed = capsys.readouterr().err
    assert "going on from the checkpoint" in resumed
    assert main([*argv, "--overwrite"]) == 0
    fresh = capsys.readouterr().err
    assert 0 < resumed.count("\niteration ") < fresh.count("\niteration ")


@pytest.mark.slow
def test_killed_while_the_last_checkpoint_goes(particles, finished, tmp_path, capsys):
    """All results stand: the run counts as finished."""
    out = tmp_path / "out"
    kill_at("rmtree", 0, particles, out)
    assert (out / "run.json").exists() and (out / ".checkpoint").exists()
    assert classify(particles, out) == 2
    assert "holds a finished run" in capsys.readouterr().err


@pytest.mark.slow
def test_other_arguments_do_not_go_on(particles, finished, tmp_path, capsys):
    out = tmp_path / "out"
    kill_at("iteration", 1, particles, out)
    assert classify(particles, out, "--seed", "5") == 2
    error = capsys.readouterr().err
    assert "--seed was 0, now 5" in error and "--restart" in error and error.count("\n") == 1
    assert classify(particles, out, "--jobs", "2", "--restart") == 0
    assert column(out / "particles.star") == column(finished / "particles.star")


def test_changed_input_does_not_go_on(particles, tmp_path, capsys):
    import shutil

    for name in ("in.star", "in.mrcs"):
        shutil.copy(particles.parent / name, tmp_path / name)
    star, out = tmp_path / "in.star", tmp_path / "out"
    kill_at("iteration", 1, star, out)
    with open(tmp_path / "in.mrcs", "r+b") as file:
        file.seek(2000)
        file.write(b"\0\0\0\0")
    assert classify(star, out) == 2
    error = capsys.readouterr().err
    assert "input changed" in error and "in.mrcs" in error


def test_finished_run_is_kept(particles, finished, tmp_path, capsys):
    import shutil

    out = shutil.copytree(finished, tmp_path / "out")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert classify(particles, out) == 2
    assert "holds a finished run; give --overwrite" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert classify(particles, out, "--overwrite", "-k", "2") == 0
    assert set(column(out / "particles.star")) <= {"1", "2"}


def test_files_of_others_are_kept(particles, tmp_path, capsys):
    (tmp_path / "particles.star").write_text("mine")
    assert classify(particles, tmp_path) == 2
    assert "holds particles.star" in capsys.readouterr().err
    assert (tmp_path / "particles.star").read_text() == "mine"
    (tmp_path / "file").write_text("mine")
    assert classify(particles, tmp_path / "file") == 2
    assert "is a file; a folder is wanted" in capsys.readouterr().err


def test_control_c_tells_how_to_go_on(particles, finished, tmp_path, monkeypatch, capsys):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("skcryo._cli._classify2d._write", interrupt)
        assert classify(particles, tmp_path / "out") == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert classify(particles, tmp_path / "out") == 0
    assert column(tmp_path / "out" / "particles.star") == column(finished / "particles.star")


def test_large_stacks_go_through_a_file(particles, finished, tmp_path, monkeypatch):
    monkeypatch.setattr("skcryo._cli._images.IN_MEMORY", 1000)
    assert classify(particles, tmp_path / "out") == 0
    assert column(tmp_path / "out" / "particles.star") == column(finished / "particles.star")


# --- selection


def test_select_writes_the_particles_of_the_classes(finished, tmp_path, capsys):
    star = finished / "particles.star"
    labels = column(star)
    assert exit_code(["classify2d", star, "--select", "3,1", "-o", tmp_path / "good.star"]) == 0
    chosen = [i for i, label in enumerate(labels) if label in ("1", "3")]
    assert f"{len(chosen)} of 60 particles, in 2 classes" in capsys.readouterr().err
    whole, part = load_particles(star), load_particles(tmp_path / "good.star")
    assert_array_equal(np.asarray(part), np.asarray(whole[chosen]))
    assert part.metadata.names == whole.metadata.names
    assert part.metadata["rlnAnglePsi"].tolist() == whole.metadata[chosen]["rlnAnglePsi"].tolist()


@pytest.mark.parametrize(
    "words, message",
    [
        (["--select", "0"], "class numbers from 1"),
        (["--select", "2-1"], "class numbers from 1"),
        (["--select", "1-99999999999"], "class numbers from 1"),
        (["--select", "4"], "no particles in this class; its classes are 1-3"),
        (["--select", "1", "-k", "3"], "--classes has no meaning beside it"),
        (["--select", "1", "--max-shift", "0"], "--max-shift has no meaning beside it"),
    ],
)
def test_select_errors(finished, tmp_path, capsys, words, message):
    out = tmp_path / "good.star"
    assert exit_code(["classify2d", finished / "particles.star", *words, "-o", out]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_select_wants_classes_and_keeps_files(particles, finished, tmp_path, capsys):
    out = tmp_path / "good.star"
    assert exit_code(["classify2d", particles, particles, "--select", "1", "-o", out]) == 2
    assert "--select takes one STAR file; 2 are given" in capsys.readouterr().err
    assert exit_code(["classify2d", particles, "--select", "1", "-o", out]) == 2
    assert "has no column rlnClassNumber" in capsys.readouterr().err
    out.write_text("mine")
    words = ["classify2d", finished / "particles.star", "--select", "1", "-o", out]
    assert exit_code(words) == 2
    assert "exists already; --overwrite replaces it" in capsys.readouterr().err and out.read_text() == "mine"
    assert exit_code([*words, "--overwrite"]) == 0
