"""The demo: files to look at, how good they are, and going on."""

import re

import pytest
from common_cli import WRITTEN, exit_code

from skcryo._cli import _demo
from skcryo.io import read_star


@pytest.fixture
def small_demo(monkeypatch):
    monkeypatch.setattr(_demo, "N_PARTICLES", 80)
    monkeypatch.setattr(_demo, "N_CLASSES", 4)
    monkeypatch.setattr(_demo, "BOX", 20)


def test_demo_leaves_files_and_says_how_good(small_demo, tmp_path, capsys):
    out = tmp_path / "demo"
    assert exit_code(["demo", "-o", out, "-q"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(
        r"\d+% of the pairs of particles in one class are seen from within 20 degrees of each other "
        r"\(by chance 3%\)",
        lines[0],
    )
    assert [line.rsplit("/", 1)[-1] for line in lines[1:]] == [
        name for name in ("montage.png", "report.html") if name in WRITTEN
    ]
    assert sorted(path.name for path in (out / "simulated").iterdir()) == [
        "particles.mrcs",
        "particles.star",
        "truth.json",
    ]
    assert sorted(path.name for path in out.iterdir()) == sorted([*WRITTEN, "simulated"])
    assert "rlnAngleRot" not in read_star(out / "simulated" / "particles.star"), (
        "the truth is not in the input"
    )
    assert exit_code(["demo", "-o", out, "-q"]) == 2
    assert "give --overwrite" in capsys.readouterr().err
    assert exit_code(["demo", "-o", out, "-q", "--overwrite"]) == 0


@pytest.mark.slow
def test_demo_goes_on_after_an_interruption(small_demo, tmp_path, monkeypatch):
    out = tmp_path / "demo"
    with monkeypatch.context() as patch:
        patch.setattr(
            "skcryo._cli._classify2d._write", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        assert exit_code(["demo", "-o", out, "-q"]) == 130
    written = (out / "simulated" / "particles.mrcs").stat().st_mtime_ns
    assert exit_code(["demo", "-o", out, "-q"]) == 0
    assert (out / "simulated" / "particles.mrcs").stat().st_mtime_ns == written
