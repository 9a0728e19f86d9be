"""Displays: what is drawn is what was given, in the order and contrast that the documentation promises."""

import subprocess
import sys

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from skcryo.inspection import AngularCoverageDisplay, ClassAveragesDisplay
from skcryo.inspection._angular_coverage import mollweide
from skcryo.inspection._grey_levels import grey_levels

figure = pytest.importorskip("matplotlib.figure", reason="the displays need matplotlib")


@pytest.fixture
def ax():
    return figure.Figure(figsize=(6, 4)).add_subplot()


def unit_vectors(n, seed):
    vectors = np.random.default_rng(seed).normal(size=(n, 3))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


class FittedClusterer:
    def __init__(self, averages, labels):
        self.class_averages_ = averages
        self.labels_ = labels


# --- class averages


def test_montage_shows_each_average_at_its_place(ax):
    averages = np.random.default_rng(0).normal(size=(5, 16, 16)).astype(np.float32)
    counts = [3, 9, 1, 4, 4]
    display = ClassAveragesDisplay.from_averages(averages, counts=counts, n_columns=2, ax=ax)
    assert_array_equal(display.order_, [1, 3, 4, 0, 2])
    assert [t.get_text() for t in display.texts_] == ["2: 9", "4: 4", "5: 4", "1: 3", "3: 1"]
    canvas = np.asarray(display.image_.get_array())
    step = 17  # 16 pixels and a gap of one
    for place, label in enumerate(display.order_):
        row, column = divmod(place, 2)
        tile = canvas[row * step : row * step + 16, column * step : column * step + 16]
        assert_array_equal(tile, grey_levels(averages[label][None])[0])
    assert canvas.shape == (3 * step - 1, 2 * step - 1)
    assert (canvas[2 * step :, step:] == 255).all(), "the place after the last tile is white"


def test_montage_is_upright(ax):
    """Row 0 of an average stands at the top: with origin="lower" the bright spot would be at the bottom."""
    average = np.zeros((1, 20, 20))
    average[0, 3:6, 10] = 1
    display = ClassAveragesDisplay.from_averages(average, ax=ax)
    assert display.image_.origin == "upper"
    bottom, top = display.ax_.get_ylim()
    assert bottom > top
    canvas = np.asarray(display.image_.get_array())
    assert canvas[:10].max() == 255 and canvas[10:].max() == 0


@pytest.mark.parametrize("sort_by, expected", [("size", [2, 0, 1]), ("index", [0, 1, 2])])
def test_order(ax, sort_by, expected):
    display = ClassAveragesDisplay.from_averages(np.ones((3, 8, 8)), counts=[2, 2, 7], sort_by=sort_by, ax=ax)
    assert_array_equal(display.order_, expected)


def test_only_the_largest_classes(ax):
    display = ClassAveragesDisplay.from_averages(
        np.ones((4, 8, 8)), counts=[1, 5, 3, 2], max_classes=2, ax=ax
    )
    assert_array_equal(display.order_, [1, 2])
    assert len(display.texts_) == 2


def test_from_estimator_counts_labels_and_looks_into_a_pipeline(ax):
    from sklearn.pipeline import Pipeline

    estimator = FittedClusterer(np.ones((3, 8, 8)), np.array([2, 2, 0, 2]))
    for model in (estimator, Pipeline([("cluster", estimator)])):
        display = ClassAveragesDisplay.from_estimator(model, ax=ax)
        assert_array_equal(display.counts, [1, 0, 3])


def test_labels_below_zero_belong_to_no_class(ax):
    display = ClassAveragesDisplay.from_averages(np.ones((2, 8, 8)), labels=[-1, 1, 1], ax=ax)
    assert_array_equal(display.counts, [0, 2])


def test_without_counts_labels_are_class_numbers(ax):
    display = ClassAveragesDisplay.from_averages(np.ones((2, 8, 8)), ax=ax)
    assert [t.get_text() for t in display.texts_] == ["1", "2"]


@pytest.mark.parametrize("size, pixel_size", [(64, 3.3), (64, 0.02), (9, 5.0)])
def test_scale_bar_has_the_length_that_it_says(ax, size, pixel_size):
    display = ClassAveragesDisplay.from_averages(np.ones((3, size, size)), pixel_size=pixel_size, ax=ax)
    bar = display.ax_.lines[0]
    pixels = np.ptp(bar.get_xdata())
    said = float(display.ax_.texts[-1].get_text().removesuffix(" Å"))
    assert_allclose(pixels * pixel_size, said, rtol=1e-5)
    assert size / 5.01 <= pixels <= size / 2


@pytest.mark.parametrize(
    "averages, options, message",
    [
        (np.ones((3, 8)), {}, r"averages has shape \(3, 8\)"),
        (np.ones((3, 8, 9)), {}, r"averages has shape \(3, 8, 9\)"),
        (np.ones((0, 8, 8)), {}, r"averages has shape \(0, 8, 8\)"),
        (np.ones((3, 8, 8)), {"counts": [1, 2]}, r"counts has shape \(2,\) but there are 3 averages"),
        (np.ones((3, 8, 8)), {"labels": [0, 3]}, "labels holds 3 but there are 3 averages"),
        (np.ones((3, 8, 8)), {"counts": [1, 2, 3], "labels": [0]}, "counts and labels are both given"),
        (np.ones((3, 8, 8)), {"pixel_size": 0}, "pixel_size is 0"),
        (np.ones((3, 8, 8)), {"n_columns": 0}, "n_columns is 0"),
        (np.ones((3, 8, 8)), {"max_classes": 0}, "max_classes is 0"),
        (np.ones((3, 8, 8)), {"sort_by": "colour"}, "sort_by is 'colour'"),
        (np.ones((3, 8, 8)), {"percentiles": (99, 1)}, r"percentiles is \(99, 1\)"),
    ],
)
def test_class_averages_errors(ax, averages, options, message):
    with pytest.raises(ValueError, match=message):
        ClassAveragesDisplay.from_averages(averages, ax=ax, **options)


def test_unfitted_estimators_are_refused():
    with pytest.raises(ValueError, match="object has no class_averages_"):
        ClassAveragesDisplay.from_estimator(object())
    with pytest.raises(ValueError, match="object has no rotations_"):
        AngularCoverageDisplay.from_estimator(object())


# --- grey levels


def test_contrast_ignores_outliers_scale_and_offset():
    image = np.random.default_rng(1).normal(size=(1, 32, 32))
    reference = grey_levels(image)
    assert_allclose(grey_levels(1000 * image + 7).astype(int), reference.astype(int), atol=1)
    spoiled = image.copy()
    spoiled[0, 16, 16] = 1e9  # a min-max contrast would turn everything else black
    spoiled[0, 0, 0] = -1e9  # outside the disc
    difference = np.abs(grey_levels(spoiled).astype(int) - reference.astype(int))
    assert np.median(difference) <= 12


def test_constant_and_broken_images():
    images = np.zeros((3, 8, 8))
    images[1] = np.nan
    images[2, 4] = 1
    images[2, 0, 0] = np.inf
    grey = grey_levels(images)
    assert (grey[:2] == 128).all()
    assert grey[2].max() == 255 and grey[2, 0, 0] == 0


# --- angular coverage


def test_mollweide_keeps_areas():
    """A cap of polar angle t holds (1 - cos t) / 2 of the sphere, and of the ellipse.

    In the plate carree projection the cap of 30 degrees would take 17 % of the map instead of 6.7 %.
    """
    points = mollweide(unit_vectors(200_000, 0))
    inside = (points[:, 0] / (2 * np.sqrt(2))) ** 2 + (points[:, 1] / np.sqrt(2)) ** 2
    assert inside.max() <= 1 + 1e-9
    # Uniform on an ellipse: the square of the scaled radius is uniform on [0, 1], and x and y quadrants
    # are even.
    assert_allclose(np.histogram(inside, bins=10, range=(0, 1))[0] / len(points), 0.1, atol=0.004)
    assert_allclose(np.mean(points > 0, axis=0), 0.5, atol=0.005)


@pytest.mark.parametrize(
    "direction, point",
    [
        ([1, 0, 0], [0, 0]),
        ([0, 0, 5], [0, np.sqrt(2)]),
        ([0, 0, -1], [0, -np.sqrt(2)]),
        ([0, 1, 0], [np.sqrt(2), 0]),
        ([0, -1, 0], [-np.sqrt(2), 0]),
    ],
)
def test_mollweide_landmarks(direction, point):
    assert_allclose(mollweide([direction])[0], point, atol=1e-7)


def test_even_coverage_is_one_everywhere(ax):
    display = AngularCoverageDisplay(unit_vectors(100_000, 2)).plot(ax, gridsize=12)
    density = np.ma.compressed(display.cells_.get_array())
    assert_allclose(density, 1, atol=0.25)
    assert_allclose(density.mean(), 1, atol=0.02)


def test_a_crowded_view_stands_out(ax):
    even, crowd = unit_vectors(5000, 3), np.array([1, 0, 0]) + 0.1 * unit_vectors(5000, 4)
    display = AngularCoverageDisplay(np.vstack([even, crowd])).plot(ax)
    density = display.cells_.get_array()
    place = display.cells_.get_offsets()[np.argmax(density)]
    assert density.max() > 5
    assert np.hypot(*place) < 0.3


def test_rotations_give_their_third_column(ax):
    from scipy.spatial.transform import Rotation

    rotations = Rotation.random(30, random_state=0).as_matrix()
    display = AngularCoverageDisplay.from_rotations(rotations, kind="scatter", ax=ax)
    assert_allclose(display.directions, rotations[:, :, 2])
    assert_allclose(display.cells_.get_offsets(), mollweide(rotations[:, :, 2]))
    assert display.colorbar_ is None


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: AngularCoverageDisplay(np.ones((4, 2))), r"directions has shape \(4, 2\)"),
        (lambda: AngularCoverageDisplay([[0, 0, 1], [0, 0, 0]]), r"directions\[1\] is"),
        (lambda: AngularCoverageDisplay.from_rotations(np.ones((4, 3))), r"rotations has shape \(4, 3\)"),
        (lambda: AngularCoverageDisplay(np.eye(3)).plot(kind="pie"), "kind is 'pie'"),
        (lambda: AngularCoverageDisplay(np.eye(3)).plot(gridsize=1), "gridsize is 1"),
    ],
)
def test_angular_coverage_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# --- matplotlib is optional

NO_MATPLOTLIB = """
import sys
sys.modules["matplotlib"] = None
import numpy as np
from skcryo.inspection import AngularCoverageDisplay, ClassAveragesDisplay
for draw in (ClassAveragesDisplay(np.ones((2, 8, 8))).plot, AngularCoverageDisplay(np.eye(3)).plot):
    try:
        draw()
    except ImportError as error:
        assert "pip install 'skcryo[plot]'" in str(error), error
    else:
        raise AssertionError("no error without matplotlib")
"""


def test_without_matplotlib_the_error_names_the_extra():
    subprocess.run([sys.executable, "-c", NO_MATPLOTLIB], check=True)
