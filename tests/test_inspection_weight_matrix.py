"""The sorted weight matrix: each weight at its place, and the cut that its labels make."""

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from skcryo.heterogeneity import max_k_cut
from skcryo.inspection import WeightMatrixDisplay
from skcryo.inspection._weight_matrix import binned_means
from skcryo.orientation import CommonLines
from skcryo.rotations import random_rotations

figure = pytest.importorskip("matplotlib.figure", reason="the displays need matplotlib")


@pytest.fixture
def ax():
    return figure.Figure(figsize=(6, 5)).add_subplot()


def blocks(n=30, n_classes=2, seed=0):
    rng = np.random.default_rng(seed)
    truth = rng.integers(n_classes, size=n)
    W = np.triu(rng.random((n, n)) + (truth[:, None] != truth), 1)
    return W + W.T, truth


def test_weights_stand_in_the_order_of_classes(ax):
    W, truth = blocks()
    cut = max_k_cut(W, 2, random_state=0)
    display = WeightMatrixDisplay.from_cut(W, cut, ax=ax)
    assert np.array_equal(display.order, np.concatenate([np.flatnonzero(cut.labels == k) for k in range(2)]))
    shown = np.asarray(display.image_.get_array().filled(np.nan))
    expected = W[np.ix_(display.order, display.order)]
    np.fill_diagonal(expected, np.nan)
    assert np.allclose(shown, expected, equal_nan=True)
    border = (cut.labels == 0).sum()
    for lines, axis in zip(display.lines_, (1, 0)):
        assert [segment[0][axis] for segment in lines.get_segments()] == [border]
    top, left = ax.get_yticklabels()[0].get_text(), [tick.get_text() for tick in ax.get_xticklabels()]
    assert top == f"class 0\n{border}" and left == ["0", "30"]
    inside = shown[:border, :border]
    assert np.nanmean(inside) < 0.6 < 1.4 < shown[:border, border:].mean()  # dark blocks, light between


def test_cut_value_and_bound_are_told(ax):
    W, truth = blocks(n_classes=3)
    value = W[truth[:, None] != truth].sum() / 2
    display = WeightMatrixDisplay(W, truth + 4).plot(ax=ax)
    assert display.cut_value == pytest.approx(value) and ax.get_title() == f"cut {value:.6g}"
    assert [tick.get_text().split("\n")[0] for tick in ax.get_yticklabels()] == ["class 4", "class 5", "class 6"]
    bounded = WeightMatrixDisplay(W, truth, upper_bound=2 * value).plot(ax=figure.Figure().add_subplot())
    assert bounded.ax_.get_title().endswith(": 50.0 %")
    nothing = WeightMatrixDisplay(np.zeros((4, 4)), [0, 0, 1, 1], upper_bound=0.0).plot(
        ax=figure.Figure().add_subplot()
    )
    assert nothing.ax_.get_title() == "cut 0, at most 0"


def test_unsorted_weights_have_no_borders(ax):
    W, truth = blocks()
    display = WeightMatrixDisplay(W, truth).plot(ax=ax, sort=False)
    shown = np.asarray(display.image_.get_array().filled(0))
    assert np.allclose(shown, W) and display.lines_ == []


@pytest.mark.parametrize("n, max_size", [(20, 20), (23, 7), (50, 2)])
def test_large_matrices_are_averaged_without_the_diagonal(n, max_size):
    W, _ = blocks(n)
    order = np.random.default_rng(1).permutation(n)
    changed = W + 100 * np.eye(n)
    means, edges = binned_means(changed, order, max_size)
    assert means.shape == (max_size, max_size) and edges[0] == 0 and edges[-1] == n
    sizes = np.diff(edges)
    assert sizes.max() - sizes.min() <= 1
    for i in range(max_size):
        for j in range(max_size):
            rows, columns = order[edges[i] : edges[i + 1]], order[edges[j] : edges[j + 1]]
            pairs = len(rows) * len(columns) - (len(rows) if i == j else 0)
            expected = W[np.ix_(rows, columns)].sum() / pairs if pairs else np.nan
            assert means[i, j] == pytest.approx(expected, nan_ok=True)


def test_from_estimator_draws_the_misfit_of_lines():
    """Lines that meet within a class, and anywhere between: the blocks of the classes are all but black."""
    rng = np.random.default_rng(0)
    n = 24
    truth = np.arange(n) % 2
    R = random_rotations(n, random_state=0)
    lines = np.cross(R[:, None, :, 2], R[None, :, :, 2])
    angles = np.arctan2(np.einsum("ijx,ix->ij", lines, R[:, :, 1]), np.einsum("ijx,ix->ij", lines, R[:, :, 0]))
    back = np.arctan2(np.einsum("jix,ix->ij", lines, R[:, :, 1]), np.einsum("jix,ix->ij", lines, R[:, :, 0]))
    angles = np.where(np.triu(np.ones((n, n), bool)), angles, back)  # one sign for a pair
    between = truth[:, None] != truth
    angles[between] = rng.uniform(0, 2 * np.pi, between.sum())
    nothing, checked = np.zeros((n, n), np.float32), ~np.eye(n, dtype=bool)
    found = CommonLines(angles.astype(np.float32), nothing, nothing, checked)
    # The first 4 images have no lines; the others follow.
    fitted = SimpleNamespace(
        common_lines_=found,
        rotations_=np.concatenate([R[:4], R]),
        labels_=np.concatenate([np.zeros(4, int), truth]),
        line_images_=np.arange(4, n + 4),
        upper_bound_=1000.0,
    )
    display = WeightMatrixDisplay.from_estimator(fitted, ax=figure.Figure().add_subplot())
    shown = display.image_.get_array()
    assert shown.shape == (n, n) and display.upper_bound == 1000
    assert shown[: n // 2, : n // 2].max() < 1e-3 and shown[n // 2 :, n // 2 :].max() < 1e-3
    assert shown[: n // 2, n // 2 :].mean() > 0.5


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: WeightMatrixDisplay(np.ones((3, 4)), [0, 1, 1]), r"W has shape \(3, 4\) and dtype float64"),
        (lambda: WeightMatrixDisplay(np.full((3, 3), np.nan), [0, 1, 1]), r"W\[0, 0\] is nan"),
        (lambda: WeightMatrixDisplay(np.ones((3, 3)), [0, 1]), r"labels has shape \(2,\)"),
        (lambda: WeightMatrixDisplay(np.ones((3, 3)), [0.0, 1.0, 1.0]), "dtype float64; an integer for each of 3"),
        (
            lambda: WeightMatrixDisplay(np.ones((3, 3)), [0, 1, 1], upper_bound=1),
            "upper_bound is 1 but the labels cut 2",
        ),
        (lambda: WeightMatrixDisplay(np.ones((3, 3)), [0, 1, 1]).plot(max_size=1), "max_size is 1"),
        (lambda: WeightMatrixDisplay.from_estimator(object()), "object has no common_lines_"),
    ],
)
def test_errors_name_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_matplotlib_is_asked_for_when_something_is_drawn():
    code = (
        "import sys; sys.modules['matplotlib'] = None; import numpy\n"
        "from skcryo.inspection import WeightMatrixDisplay\n"
        "try: WeightMatrixDisplay(numpy.ones((3, 3)), [0, 1, 1]).plot()\n"
        "except ImportError as error: assert \"pip install 'skcryo[plot]'\" in str(error)\n"
        "else: sys.exit(1)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
