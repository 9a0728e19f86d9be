"""The map of a latent space: every class at its node, every particle where its probabilities put it."""

import subprocess
import sys
import warnings

import numpy as np
import pytest
from sklearn.pipeline import make_pipeline

from skcryo.cluster import RotInvWassersteinKMeans, SMLClustering
from skcryo.cluster._sml_latent import grid_nodes, sphere_nodes
from skcryo.datasets import make_molecule, make_particles
from skcryo.inspection import LatentMapDisplay
from skcryo.metrics import effective_n_classes
from skcryo.preprocessing import NormalizeBackground

figure = pytest.importorskip("matplotlib.figure", reason="the displays need matplotlib")


@pytest.fixture
def ax():
    return figure.Figure(figsize=(8, 5)).add_subplot()


def stack(n=60):
    return make_particles(make_molecule(16, random_state=0), n, snr=0.3, random_state=0)[0]


def fitted(**params):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return SMLClustering(8, n_components=4, max_iter=5, **params).fit(stack())


def averages(n, side=8):
    return np.random.default_rng(0).normal(size=(n, side, side))


LATENT = [{}, {"manifold": "flat"}, {"manifold": "flat", "latent_dim": 1}, {"manifold": "flat", "latent_dim": 3}]


@pytest.mark.parametrize("params", LATENT, ids=str)
def test_classes_and_particles_of_a_fitted_estimator(params, ax):
    sml = fitted(**params)
    display = LatentMapDisplay.from_estimator(sml, ax=ax)
    assert np.array_equal(display.counts, np.bincount(sml.labels_, minlength=8))
    assert display.effective_n_classes == pytest.approx(effective_n_classes(sml.labels_))
    # least responsibilities are not kept: positions are those of `transform` but for these
    assert np.abs(display.particle_positions - sml.transform(stack())).max() < 0.02
    assert len(display.particles_.get_offsets()) == 60
    assert len(display.images_) == np.count_nonzero(display.counts)
    assert np.array_equal(display.frames_.get_array(), display.counts)
    assert ax.get_title().startswith("60 particles, ")
    ax.figure.canvas.draw()
    # whatever is drawn lies within the axes
    low, high = np.array([ax.get_xlim(), ax.get_ylim()]).T
    for points in (display.node_points, display.particle_points):
        assert (points > low).all() and (points < high).all()


def test_tiles_stand_at_their_nodes_and_show_their_average(ax):
    counts = np.array([1, 0, 4, 9, 2, 3])
    display = LatentMapDisplay(grid_nodes((3, 2)), averages(6), counts).plot(ax)
    shown = np.flatnonzero(counts)
    areas = []
    for image, k in zip(display.images_, shown, strict=True):
        left, right, bottom, top = image.get_extent()
        assert ((left + right) / 2, (bottom + top) / 2) == pytest.approx(tuple(display.node_points[k]))
        areas.append((right - left) * (top - bottom))
        # grey levels keep the order of what is not cut off
        tile, average = image.get_array().astype(int), averages(6)[k]
        inside = (tile > 0) & (tile < 255)
        assert np.corrcoef(tile[inside], average[inside])[0, 1] > 0.99
    slope = np.diff(areas) / np.diff(counts[shown])
    assert slope == pytest.approx(np.full(4, slope[0])) and slope[0] > 0
    assert ax.get_title().endswith(", 1 empty")
    assert display.particles_ is None


def test_a_line_is_cut_into_rows_without_loss():
    nodes = grid_nodes((10,))
    between = (nodes[:-1] + nodes[1:]) / 2
    display = LatentMapDisplay(nodes, averages(10), np.ones(10), particle_positions=between)
    x, y = display.node_points.T
    rows = np.unique(y)[::-1]
    assert np.sort(x[y == rows[0]]) == pytest.approx(np.arange((y == rows[0]).sum()))
    assert len(np.unique(display.node_points.round(6), axis=0)) == 10
    # a particle between two nodes of one row lies half-way, between those of two rows at an end of either
    for k, (px, py) in enumerate(display.particle_points):
        assert min(abs(px - x[k]), abs(px - x[k + 1])) == pytest.approx(0.5)
        assert min(abs(py - y[k]), abs(py - y[k + 1])) < 0.23  # hidden below the least tile


def test_slices_of_a_box_are_cut_along_its_shortest_axis():
    nodes = grid_nodes((2, 4, 3))
    particles = nodes + 0.1
    display = LatentMapDisplay(nodes, averages(24), np.ones(24), particle_positions=particles)
    distances = np.linalg.norm(display.node_points[:, None] - display.node_points, axis=2)
    np.fill_diagonal(distances, np.inf)
    assert distances.min() == pytest.approx(1)
    first = nodes[:, 0] == nodes[0, 0]
    gap = distances[np.ix_(first, ~first)].min()
    assert gap > 1.5  # slices are told apart by it
    spacing = 2 / 3
    assert display.particle_points - display.node_points == pytest.approx(np.full((24, 2), 0.1 / spacing))


def test_the_sphere_keeps_areas_and_shows_how_much_is_known(ax):
    nodes = sphere_nodes(50)
    particles = np.concatenate([nodes, 0.4 * nodes[:5], np.zeros((1, 3))])
    display = LatentMapDisplay(
        nodes, averages(50), np.ones(50, int), particle_positions=particles, manifold="sphere"
    ).plot(ax)
    assert len(display.particle_points) == 55  # one has no direction
    assert display.particle_points[50:] == pytest.approx(display.node_points[:5])
    assert display.particles_.get_alpha() == pytest.approx(np.r_[np.full(50, 0.5), np.full(5, 0.2)])
    assert np.mean(display.node_points[:, 1] > 0) == 0.5
    assert ((display.node_points / [2 * np.sqrt(2), np.sqrt(2)]) ** 2).sum(axis=1).max() <= 1


def test_occupancy_curve(ax):
    counts = np.array([5, 0, 3, 8])
    display = LatentMapDisplay(grid_nodes((4,)), averages(4), counts).plot_occupancy(ax)
    assert display.curve_.get_ydata().tolist() == [0, 3, 5, 8] and display.occupancy_ax_ is ax
    assert "of 4 classes in effect, 1 empty" in ax.get_title()
    even = LatentMapDisplay(grid_nodes((4,)), averages(4), np.full(4, 7))
    assert even.effective_n_classes == pytest.approx(4)


def test_many_particles_are_thinned(ax):
    positions = np.linspace(-1, 1, 30000)[:, None]
    display = LatentMapDisplay(grid_nodes((4,)), averages(4), np.ones(4), particle_positions=positions).plot(ax)
    assert len(display.particles_.get_offsets()) == 20000
    assert display.plot(figure.Figure().add_subplot(), show_particles=False).particles_ is None


def test_new_figure_and_pipeline():
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("Agg")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = make_pipeline(NormalizeBackground(), SMLClustering(1, n_components=2, max_iter=2)).fit(stack(20))
    display = LatentMapDisplay.from_estimator(model).plot_occupancy()
    assert display.counts.tolist() == [20]
    assert display.figure_ is not display.occupancy_figure_
    pyplot.close(display.figure_)
    pyplot.close(display.occupancy_figure_)


NODES = grid_nodes((3,))
BAD = {
    "no latent space": (lambda: LatentMapDisplay.from_estimator(fitted(manifold="none")), "manifold='none'.*latent"),
    "not fitted": (lambda: LatentMapDisplay.from_estimator(SMLClustering()), "no latent_positions_.*call fit"),
    "another estimator": (
        lambda: LatentMapDisplay.from_estimator(RotInvWassersteinKMeans()),
        "RotInvWassersteinKMeans has no latent_positions_.*SMLClustering is wanted",
    ),
    "unknown manifold": (lambda: LatentMapDisplay(NODES, averages(3), np.ones(3), manifold="torus"), "'torus'"),
    "four dimensions": (lambda: LatentMapDisplay(np.ones((3, 4)), averages(3), np.ones(3)), r"\(3, 4\).*1, 2 or 3"),
    "flat sphere": (
        lambda: LatentMapDisplay(NODES, averages(3), np.ones(3), manifold="sphere"),
        r"\(3, 1\).*3 of a sphere",
    ),
    "nodes not finite": (lambda: LatentMapDisplay(NODES * np.nan, averages(3), np.ones(3)), "finite nodes"),
    "other averages": (lambda: LatentMapDisplay(NODES, averages(4), np.ones(3)), r"averages has shape \(4, 8, 8\)"),
    "other counts": (lambda: LatentMapDisplay(NODES, averages(3), np.ones(4)), r"counts has shape \(4,\)"),
    "negative counts": (lambda: LatentMapDisplay(NODES, averages(3), [1, -1, 1]), "counts has"),
    "no particles": (lambda: LatentMapDisplay(NODES, averages(3), np.zeros(3)), "all 0"),
    "other particles": (
        lambda: LatentMapDisplay(NODES, averages(3), np.ones(3), particle_positions=np.ones((5, 2))),
        r"particle_positions has shape \(5, 2\).*\(n_images, 1\)",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input(kind):
    call, message = BAD[kind]
    with pytest.raises(ValueError, match=message):
        call()


def test_matplotlib_is_asked_for_when_something_is_drawn():
    code = (
        "import sys; sys.modules['matplotlib'] = None; import numpy\n"
        "from skcryo.inspection import LatentMapDisplay\n"
        "display = LatentMapDisplay([[0], [1]], numpy.ones((2, 8, 8)), [1, 2])\n"
        "for draw in (display.plot, display.plot_occupancy):\n"
        "    try: draw()\n"
        "    except ImportError as error: assert \"pip install 'skcryo[plot]'\" in str(error)\n"
        "    else: sys.exit(1)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
