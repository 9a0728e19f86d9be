"""The command line that aligns particles and classifies them by a model of their images."""

import json
import re

import numpy as np
import pytest
from common_cli import WRITTEN, column, exit_code, has_matplotlib
from numpy.testing import assert_allclose, assert_array_equal

from skcryo._cli import _progress
from skcryo._cli._charts import occupancy_chart
from skcryo._cli._classify2d_sml import class_means, known_alignment
from skcryo.cluster import SMLClustering
from skcryo.datasets import ImagingConditions, make_molecule, make_particles
from skcryo.fourier import rotate_images, shift_images
from skcryo.io import load_particles, read_star, save_particles, write_star
from skcryo.preprocessing import InPlaneAligner, NoiseWhitener, NormalizeBackground

K = 4
N = 80
QUICK = ["--method", "sml", "-k", str(K), "--max-iter", "6", "--jobs", "1", "-q"]
COLUMNS = ("rlnClassNumber", "rlnAnglePsi", "rlnOriginXAngst", "rlnLogLikeliContribution", "skcryoParticleEvidence")

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.fixture(scope="module")
def particles(tmp_path_factory):
    """A STAR file with 80 particles of 24 px with CTF."""
    folder = tmp_path_factory.mktemp("particles")
    conditions = ImagingConditions(ctf=True)
    stack, _ = make_particles(
        make_molecule(24), N, preset=conditions, snr=0.5, pixel_size=320 / 24, random_state=0
    )
    save_particles(folder / "in.star", stack, images_path=folder / "in.mrcs")
    return folder / "in.star"


@pytest.fixture(scope="module")
def finished(particles, tmp_path_factory):
    """The folder of a run that nothing disturbed."""
    out = tmp_path_factory.mktemp("finished") / "out"
    assert classify(particles, out) == 0
    return out


def classify(particles, out, *more):
    # Centred particles: a search over shifts takes most of the time of an alignment.
    centred = [] if {"--no-align", "kmeans"} & set(more) else ["--max-shift", "0"]
    return exit_code(["classify2d", particles, *QUICK, *centred, "-o", out, *more])


def white(images):
    return NoiseWhitener(remove_mean=True).fit_transform(NormalizeBackground().fit_transform(images))


def test_all_files_are_there_and_nothing_else(finished):
    expected = [*WRITTEN, "latent_map.png"] if has_matplotlib() else WRITTEN
    assert sorted(path.name for path in finished.iterdir()) == sorted(expected)


def test_the_result_is_that_of_the_pipeline_in_python(finished, particles):
    images = white(load_particles(particles).load())
    aligner = InPlaneAligner(max_shift=0, n_jobs=1, random_state=0).fit(images)
    aligned = aligner.transform(images)
    sml = SMLClustering(K, resolution=20.0, max_iter=6, random_state=0).fit(aligned)
    written = load_particles(finished / "particles.star")
    assert_array_equal(written.metadata.numbers("rlnClassNumber").astype(int) - 1, sml.labels_)
    assert_allclose(written.metadata.numbers("rlnLogLikeliContribution"), sml.log_likelihoods(aligned), rtol=1e-5)
    evidence = sml.score_samples(aligned)
    assert_allclose(written.metadata.numbers("skcryoParticleEvidence"), evidence, rtol=1e-4, atol=1e-3)
    angles, shifts = known_alignment(written, 1.0)
    assert_allclose(np.angle(np.exp(1j * (angles - aligner.angles_))), 0, atol=1e-6)
    assert_allclose(shifts, aligner.shifts_, atol=1e-5)
    facts = json.loads((finished / "run.json").read_text())
    assert facts["class_sizes"] == np.bincount(sml.labels_, minlength=K).tolist()
    assert facts["effective_classes"] == pytest.approx(sml.effective_n_clusters_, abs=0.01)
    averages = load_particles(finished / "class_averages.mrcs")
    assert averages.shape == (K, 24, 24) and averages.pixel_size == pytest.approx(320 / 24, rel=1e-4)


def test_report_shows_evidence_occupancy_and_the_latent_map(finished):
    page = (finished / "report.html").read_text()
    sizes = np.bincount(np.array(column(finished / "particles.star"), dtype=int), minlength=K + 1)[1:]
    captions = re.findall(r"<figcaption><b>(\d+)</b>: (\d+) \(-?[\d.]+\)</figcaption>", page)
    largest = [(str(i + 1), str(sizes[i])) for i in np.argsort(-sizes, kind="stable")]
    assert captions[:K] == largest
    evidence = json.loads((finished / "run.json").read_text())["class_evidence"]
    assert [int(number) - 1 for number, _ in captions[K:]] == np.argsort(evidence, kind="stable").tolist()
    for word in ("Sizes of classes", "Log posterior", "InPlaneAligner", "SMLClustering", "finest detail compared"):
        assert word in page
    assert ("Map of the latent space" in page) == has_matplotlib()


def test_selection_works_on_the_result(finished, tmp_path):
    chosen = column(finished / "particles.star")[0]
    words = ["classify2d", finished / "particles.star", "--select", chosen, "-o", tmp_path / "good.star", "-q"]
    assert exit_code(words) == 0
    assert set(column(tmp_path / "good.star")) == {chosen}


def test_aligned_particles_are_taken_by_their_psi_and_origins(finished, tmp_path):
    """Classes of the file of a run, not aligned again, are the classes of that run."""
    assert classify(finished / "particles.star", tmp_path / "out", "--no-align") == 0
    for name in ("rlnClassNumber", "rlnAnglePsi", "rlnOriginXAngst"):
        assert column(tmp_path / "out" / "particles.star", name) == column(finished / "particles.star", name), name


def test_particles_without_poses_are_taken_as_they_are(particles, tmp_path):
    assert classify(particles, tmp_path / "out", "--no-align", "--method", "ml") == 0
    sml = SMLClustering(K, manifold="none", resolution=20.0, max_iter=6, random_state=0)
    sml.fit(white(load_particles(particles).load()))
    assert column(tmp_path / "out" / "particles.star") == (sml.labels_ + 1).astype(str).tolist()
    assert "rlnAnglePsi" not in read_star(tmp_path / "out" / "particles.star")
    assert not (tmp_path / "out" / "latent_map.png").exists()


def test_known_alignment_undoes_what_was_done(tmp_path):
    view = np.asarray(make_particles(make_molecule(32), 1, snr=None, random_state=0)[0])
    angles, moves = np.array([0.4, 2.0, -1.2]), np.array([[1.0, 0], [0, -2], [1, 1.5]])
    stack = make_particles(make_molecule(32), 3, snr=None, pixel_size=10.0, random_state=0)[0]
    stack = stack.replace(data=shift_images(rotate_images(np.repeat(view, 3, axis=0), angles), moves))
    save_particles(tmp_path / "a.star", stack, images_path=tmp_path / "a.mrcs")
    write_star(tmp_path / "b.star", load_particles(tmp_path / "a.star"), in_plane_angles=angles, shifts=moves)
    from skcryo.preprocessing._in_plane_aligner import turned_stack

    loaded = load_particles(tmp_path / "b.star")
    found, shifts = known_alignment(loaded, 1.0)
    back = np.asarray(turned_stack(loaded, found, shifts))
    inside = np.hypot(*np.mgrid[-16:16, -16:16]) < 10
    assert np.abs(back - view)[:, inside].max() < 0.08 * np.abs(view).max()


class Killed(BaseException):
    """What a kill is to a process that tests go on in."""


@pytest.mark.parametrize("after", [3, *(pytest.param(at, marks=pytest.mark.slow) for at in ("aligned", 2000))])
def test_killed_and_started_again(particles, finished, tmp_path, monkeypatch, after):
    """In the alignment, in the first iterations of the classification, and before anything is written."""
    out, calls = tmp_path / "out", []
    original = _progress.ProgressReporter.on_fit_task_end

    def killing(self, estimator, context, *, fitted_estimator=None):
        calls.append(type(estimator).__name__)
        if calls.count("SMLClustering") == 2 if after == "aligned" else len(calls) > after:
            raise Killed
        return original(self, estimator, context, fitted_estimator=fitted_estimator)

    def killed(*args):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(_progress.ProgressReporter, "on_fit_task_end", killing)
        patch.setattr("skcryo._cli._classify2d.write_classes", killed)
        classify(particles, out)
    assert not (out / "run.json").exists()
    calls.clear()
    with monkeypatch.context() as patch:
        counted = []

        def counting(self, estimator, context, *, fitted_estimator=None):
            counted.append(type(estimator).__name__)
            return original(self, estimator, context, fitted_estimator=fitted_estimator)

        patch.setattr(_progress.ProgressReporter, "on_fit_task_end", counting)
        assert classify(particles, out) == 0
    assert ("InPlaneAligner" in counted) == (after == 3), "an alignment that had ended is not made again"
    for name in COLUMNS:
        assert column(out / "particles.star", name) == column(finished / "particles.star", name), name
    assert (out / "class_averages.mrcs").read_bytes() == (finished / "class_averages.mrcs").read_bytes()


def test_large_stacks_go_through_files(particles, finished, tmp_path, monkeypatch):
    monkeypatch.setattr("skcryo._cli._images.IN_MEMORY", 1000)
    assert classify(particles, tmp_path / "out") == 0
    assert column(tmp_path / "out" / "particles.star") == column(finished / "particles.star")


BAD = [
    (["--method", "gtm"], "argument --method: invalid choice: 'gtm'"),
    (["--metric", "l2"], "--metric has no meaning with --method sml"),
    (["--n-angles", "90"], "--n-angles has no meaning with --method sml"),
    (["--method", "kmeans", "--no-align"], "--no-align has no meaning with --method kmeans"),
    (["--method", "kmeans", "--resolution", "20"], "--resolution has no meaning with --method kmeans"),
    (["--method", "ml", "--manifold", "flat"], "--manifold has no meaning with --method ml"),
    (["--manifold", "torus"], "argument --manifold: invalid choice: 'torus'"),
    (["--no-align", "--max-shift", "2"], "--max-shift has no meaning beside --no-align"),
    (["--resolution", "0"], "'0' given; a number above zero is wanted"),
    (["--resolution", "900"], "resolution=900.0 Angstrom is coarser than the box"),
    (["-k", "81"], "--classes 81 is more than the 80 particles"),
]


@pytest.mark.parametrize("words, message", BAD, ids=[" ".join(words) for words, _ in BAD])
def test_bad_arguments(particles, tmp_path, capsys, words, message):
    aligned = [] if {"kmeans", "--no-align"} & set(words) else ["--no-align"]
    assert classify(particles, tmp_path / "out", *aligned, *words) == 2
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if "error" in line]
    assert len(lines) == 1 and message in lines[0]
    assert "Traceback" not in captured.err and captured.out == ""
    assert list(tmp_path.iterdir()) == []


# --- parts


def test_evidence_finds_images_of_nothing_where_likelihood_does_not():
    conditions = ImagingConditions(junk_fraction=0.1)
    X, truth = make_particles(make_molecule(24), 200, preset=conditions, snr=0.3, random_state=0)
    empty = truth.junk_kind == "noise"
    sml = SMLClustering(8, n_components=12, random_state=0).fit(X)
    evidence = sml.score_samples(X)
    good = ~truth.is_junk
    assert evidence[empty].max() < np.median(evidence[good])
    assert evidence[good].mean() > evidence[empty].mean() + 5 * evidence[empty].std()
    # on pixels noise has another variance, which both likelihoods share
    pixels = SMLClustering(8, n_components=None, random_state=0).fit(X).score_samples(X)
    assert pixels[good].mean() > pixels[empty].mean() + 5 * pixels[empty].std()


def test_mean_of_each_class():
    means = class_means(np.array([1.0, 3.0, 5.0]), np.array([0, 0, 2]), 3)
    assert_array_equal(means, [2, np.nan, 5])


def test_occupancy_is_drawn_in_ascending_order():
    chart = occupancy_chart(np.array([4, 0, 2]))
    points = re.search(r'points="([^"]+)"', chart)[1].split()
    heights = [float(point.split(",")[1]) for point in points]
    assert heights == sorted(heights, reverse=True) and heights[0] == 196 and heights[-1] == 12
