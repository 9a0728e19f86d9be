"""Displays of volumes: each tile and curve is what was given, at its place."""

import subprocess
import sys

import numpy as np
import pytest

from skcryo.inspection import FSCDisplay, VolumeDisplay
from skcryo.inspection._volume_slices import grey_tiles, volume_tiles
from skcryo.metrics import fsc

figure = pytest.importorskip("matplotlib.figure", reason="the displays need matplotlib")


@pytest.fixture
def ax():
    return figure.Figure(figsize=(6, 4)).add_subplot()


class Fitted:
    def __init__(self, volume, pixel_size=2.0):
        self.volume_, self.pixel_size_ = volume, pixel_size
        self.fsc_ = np.linspace(1, -0.05, len(volume) // 2 + 1)


def volume(L=16, seed=0):
    return np.random.default_rng(seed).normal(size=(L, L, L)).astype(np.float32)


def test_curves_stand_at_their_frequencies(ax):
    curves = np.array([[1, 1, 0.8, 0.2, 0], [1, 0.9, 0.5, 0.1, 0.1]])
    options = {"pixel_size": 5.0, "names": ["a", "b"], "threshold": [0.5, 0.143]}
    display = FSCDisplay.from_curves(curves, **options, ax=ax)
    assert display.resolutions[0] == pytest.approx(40 / 2.5)
    for line, curve in zip(display.lines_, curves):
        assert line.get_xdata() == pytest.approx(np.arange(1, 5) / 40)
        assert line.get_ydata() == pytest.approx(curve[1:])
    texts = [text.get_text() for text in display.legend_.get_texts()]
    assert texts[0] == "a: 16.0 Å at 0.5" and texts[1].startswith("b: ")
    assert ax.get_xlabel() == "resolution (Å)"


def test_odd_boxes_and_pixels(ax):
    display = FSCDisplay.from_curves([1, 1, 0.8, 0.2, 0], box_size=9, threshold=0.5, ax=ax)
    assert display.resolutions == [pytest.approx(9 / 2.5)]
    assert display.legend_.get_texts()[0].get_text() == "3.6 px at 0.5"
    nothing = FSCDisplay.from_curves([1, 0, 0, 0, 0], ax=figure.Figure().add_subplot())
    assert nothing.legend_.get_texts()[0].get_text() == "below 0.143 everywhere"


def test_from_volumes_and_estimator(ax):
    a, b = volume(), volume() + volume(seed=1)
    display = FSCDisplay.from_volumes(a, b, ax=ax)
    assert display.curves[0] == pytest.approx(fsc(a, b))
    fitted = Fitted(a)
    display = FSCDisplay.from_estimator(fitted, truth=b, ax=figure.Figure().add_subplot())
    assert display.thresholds == [0.143, 0.5] and display.box_size == 16 and display.pixel_size == 2.0
    assert display.curves[0] == pytest.approx(fitted.fsc_) and display.curves[1] == pytest.approx(fsc(a, b))


def test_tiles_of_a_marked_volume():
    """One bright voxel at (x, y, z) = (10, 5, 8): its place in each tile names the axes."""
    v = np.zeros((16, 16, 16))
    v[8, 5, 10] = 1
    slices, projections = volume_tiles(v)
    assert np.argwhere(slices[0]).tolist() == [[5, 10]] and not slices[1:].any()
    assert [np.argwhere(p).tolist() for p in projections] == [[[5, 10]], [[8, 10]], [[8, 5]]]


def test_montage_is_upright_and_labelled(ax):
    display = VolumeDisplay.from_volume(volume(24), pixel_size=4.0, ax=ax)
    canvas = np.asarray(display.image_.get_array())
    tiles = grey_tiles(volume(24))
    for row in range(2):
        for column in range(3):
            assert np.array_equal(canvas[row * 25 : row * 25 + 24, column * 25 : column * 25 + 24], tiles[row, column])
    bottom, top = ax.get_ylim()
    assert bottom > top
    assert len(display.texts_) == 6
    assert ax.texts[-1].get_text() == "20 Å"  # at most 0.4 of the 96 Å of the box
    assert grey_tiles(np.zeros((8, 8, 8))).min() > 0  # a constant is neither black nor white
    drawn = VolumeDisplay.from_estimator(Fitted(volume()), ax=figure.Figure().add_subplot())
    assert drawn.pixel_size == 2.0


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: FSCDisplay([1.0]), "at least two shells"),
        (lambda: FSCDisplay([1.0, np.nan, 0]), r"curve\[1\] is nan"),
        (lambda: FSCDisplay([[1, 1], [1, 1]], names=["a"]), "names has 1 entries but there are 2 curves"),
        (lambda: FSCDisplay([[1, 1], [1, 1]], threshold=[0.5]), "threshold has 1 entries but there are 2 curves"),
        (lambda: FSCDisplay([1, 1, 1], pixel_size=-1), "pixel_size is -1"),
        (lambda: FSCDisplay([1, 1, 1], box_size=9), "box_size is 9 but the curve has 3 shells"),
        (lambda: FSCDisplay.from_estimator(object()), "object has no fsc_"),
        (lambda: VolumeDisplay(np.zeros((3, 4, 4))), r"volume has shape \(3, 4, 4\)"),
        (lambda: VolumeDisplay(np.full((4, 4, 4), np.nan)), "NaN or infinity"),
        (lambda: VolumeDisplay(volume(), pixel_size=0), "pixel_size is 0"),
        (lambda: VolumeDisplay.from_estimator(object()), "object has no volume_"),
    ],
)
def test_errors_name_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_matplotlib_is_not_imported_before_something_is_drawn():
    code = (
        "import sys; from skcryo.inspection import FSCDisplay, VolumeDisplay; FSCDisplay([1, 1, 0]); "
        "import numpy; VolumeDisplay(numpy.ones((4, 4, 4))); sys.exit('matplotlib' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
