"""The scripts in examples/ and the code in the README run, on small data where they would take long."""

import re
import runpy
import warnings
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))

pytestmark = pytest.mark.skipif(not SCRIPTS, reason="examples/ and README.md are not beside the tests")


@pytest.fixture(autouse=True)
def headless(monkeypatch):
    matplotlib = pytest.importorskip("matplotlib", reason="the examples draw")
    backend = matplotlib.get_backend()
    matplotlib.use("agg")
    yield
    matplotlib.pyplot.close("all")
    matplotlib.use(backend)


@pytest.fixture(autouse=True)
def unsettled_is_fine():
    """On data this small and in iterations this few nothing has to settle."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield


def test_every_script_is_tested():
    assert {script.name for script in SCRIPTS} == {
        "classify_particles.py",
        "grid_search.py",
        "plot_ab_initio.py",
        "plot_classes_and_continuum.py",
        "plot_common_lines_max_cut.py",
        "plot_cryodrgn.py",
        "plot_equivariance.py",
        "plot_in_plane_aligner.py",
        "plot_lud_rotations.py",
        "plot_sml.py",
        "plot_pose_net.py",
        "reconstruct_volume.py",
    }


@pytest.mark.slow
def test_classify_particles(tmp_path):
    from skcryo.io import load_particles, read_star

    coherence = runpy.run_path(str(EXAMPLES / "classify_particles.py"))["main"](tmp_path)
    names = ["class_averages.mrcs", "classified.star", "montage.png", "particles.mrcs", "particles.star"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert len(load_particles(tmp_path / "classified.star")) == 500
    labels = read_star(tmp_path / "classified.star").numbers("rlnClassNumber")
    assert labels.min() >= 1 and labels.max() <= 20
    # Classes drawn by lot would have a median of 90 degrees; 20 perfect ones have about 25.
    assert coherence.median < 45


def test_reconstruct_volume(tmp_path):
    fitted, resolution = runpy.run_path(str(EXAMPLES / "reconstruct_volume.py"))["main"](tmp_path)
    names = ["fsc.png", "particles.mrcs", "particles.star", "slices.png", "views.png", "volume.mrc"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    # The box's pixels allow 13; unfiltered, or with poses transposed, it is worse than 100.
    assert resolution < 40 and fitted.resolution_ < 40


@pytest.mark.slow
def test_plot_ab_initio(tmp_path, capsys):
    fitted, errors = runpy.run_path(str(EXAMPLES / "plot_ab_initio.py"))["main"](tmp_path)
    names = ["fsc.png", "particles.mrcs", "particles.star", "posed.star", "slices.png", "views.png", "volume.mrc"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    # Poses drawn by lot are 100 degrees off.
    assert fitted.converged_ and errors.median < 3
    assert "converged\n" in capsys.readouterr().out


def test_plot_pose_net(tmp_path, capsys):
    pytest.importorskip("torch", reason="the network needs the extra skcryo[torch]")
    net, euler, errors, held = runpy.run_path(str(EXAMPLES / "plot_pose_net.py"))["main"](tmp_path)
    names = ["particles.mrcs", "particles.star", "posed.star", "slices.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    # Poses drawn by lot are 100 degrees off.
    assert net.converged_ and errors.median < 4 and held > 0.75
    # rot and tilt stay, psi follows the picture, 30 degrees a turn
    assert np.abs(euler[:, 1] - euler[0, 1]).max() < 3
    steps = np.mod(np.diff(euler[:, 2]) + 180, 360) - 180
    assert np.abs(np.abs(steps) - 30).max() < 3
    assert "converged\n" in capsys.readouterr().out


def test_plot_cryodrgn(tmp_path):
    pytest.importorskip("torch", reason="CryoDRGN needs the extra skcryo[torch]")
    similarity, area = runpy.run_path(str(EXAMPLES / "plot_cryodrgn.py"))["main"](tmp_path)
    names = ["end.star", "latents.png", "particles.mrcs", "particles.star", "path.gif", "truth.png"]
    names += [f"path{k}.mrc" for k in range(1, 7)]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    # by chance 0.1
    assert similarity > 0.4 and area > 0.7


def test_plot_classes_and_continuum(tmp_path):
    pytest.importorskip("torch", reason="CryoDRGN needs the extra skcryo[torch]")
    told, areas, scores = runpy.run_path(str(EXAMPLES / "plot_classes_and_continuum.py"))["main"](tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["classes_and_continuum.png"]
    assert told["coordinate"] < told["classes"] < 0.6 and areas["coordinate"] > areas["classes"] > 0.5
    assert scores[0] < scores[1]


def test_plot_equivariance(tmp_path):
    pytest.importorskip("torch", reason="the network needs the extra skcryo[torch]")
    off = runpy.run_path(str(EXAMPLES / "plot_equivariance.py"))["main"](tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["equivariance.png"]
    assert off["o2-mlp"].max() < 0.5 < 2 < np.median(off["mlp"])


def test_plot_sml(tmp_path, capsys):
    sml, shares = runpy.run_path(str(EXAMPLES / "plot_sml.py"))["main"](tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["angles.png", "map.png"]
    # By chance 1.7 % of the pairs are within 15 degrees.
    assert sml.converged_ and shares["manifold learning"] > max(0.15, shares["PCA and k-means"])
    assert capsys.readouterr().out.count("held-out") == 3


@pytest.mark.slow
def test_plot_common_lines_max_cut(tmp_path, capsys):
    classes, precision = runpy.run_path(str(EXAMPLES / "plot_common_lines_max_cut.py"))["main"](tmp_path)
    names = ["class1.png", "class2.png", "classified.star", "particles.mrcs", "particles.star", "weights.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    # Drawn by lot, the smaller class would hold a third of those that belong there.
    assert classes.converged_ and precision > 0.9
    assert "two classes\n" in capsys.readouterr().out


@pytest.mark.slow
def test_plot_lud_rotations(tmp_path, capsys):
    fitted, found, errors = runpy.run_path(str(EXAMPLES / "plot_lud_rotations.py"))["main"](tmp_path)
    names = ["particles.mrcs", "particles.star", "posed.star", "slices.png", "views.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    # Poses drawn by lot are 100 degrees off, those of new particles too if they were in another frame.
    assert fitted.converged_ and errors.median < 4 and np.median(errors.errors[-50:]) < 4
    assert abs(fitted.line_agreement_ - found) < 0.1
    assert "converged\n" in capsys.readouterr().out


@pytest.mark.slow
def test_grid_search():
    search = runpy.run_path(str(EXAMPLES / "grid_search.py"))["main"]()
    scores = search.cv_results_["mean_test_score"]
    assert len(scores) == 4 and np.isfinite(scores).all()
    # By chance 6.7 % of the views lie within 30 degrees.
    assert search.best_score_ > 0.12


def readme_code():
    text = (ROOT / "README.md").read_text(encoding="utf-8") if SCRIPTS else ""
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def test_readme_code_runs(tmp_path, monkeypatch):
    """The blocks build on each other, so they run in one namespace; numbers are made small."""
    from skcryo.datasets import make_molecule, make_particles
    from skcryo.io import read_star, save_particles

    monkeypatch.chdir(tmp_path)
    stack, _ = make_particles(make_molecule(32), 60, preset="ctf", snr=0.5, random_state=0)
    save_particles("particles.star", stack, images_path="particles.mrcs")
    small = {
        "FourierDownsampler(64)": "FourierDownsampler(24)",
        "n_clusters=50": "n_clusters=5, n_angles=24, max_iter=3",
        "make_molecule(64), 1000": "make_molecule(32), 60",
        "FourierDownsampler(32)": "FourierDownsampler(16)",
        "RotInvWassersteinKMeans(20": "RotInvWassersteinKMeans(4, n_angles=16, max_iter=2",
    }
    blocks = readme_code()
    assert len(blocks) == 2
    namespace = {}
    for block in blocks:
        for full, reduced in small.items():
            if full in block:
                block = block.replace(full, reduced)
                small = {key: value for key, value in small.items() if key != full}
        exec(compile(block, "README.md", "exec"), namespace)
    assert not small, f"no longer in the README: {small}"
    assert len(read_star("classified.star")) == 60
    assert namespace["search"].best_score_ > 0


def test_plot_in_plane_aligner(tmp_path):
    small = {"N_PARTICLES": 400, "BOX": 24, "PIXEL_SIZE": 320 / 24}
    module = runpy.run_path(str(EXAMPLES / "plot_in_plane_aligner.py"))
    module["main"].__globals__.update(small)
    aligner, shares = module["main"](tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"angles.png", "averages.png"}
    assert aligner.class_averages_.shape == (25, 24, 24)
    assert shares["aligned images"] > 1.5 * shares["raw images"]


def test_readme_links_lead_somewhere():
    text = (ROOT / "README.md").read_text(encoding="utf-8") if SCRIPTS else ""
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
