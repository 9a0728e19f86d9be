"""The map of latent coordinates with volumes beside it, and volumes as a moving picture."""

import numpy as np
import pytest
from sklearn.pipeline import make_pipeline

from skcryo.inspection import LatentSpaceDisplay, animate_volumes

figure = pytest.importorskip("matplotlib.figure", reason="the displays need matplotlib")
RANDOM = np.random.default_rng(0)
Z = RANDOM.normal(size=(200, 3)) * [0.5, 3.0, 1.0]
LABELS = RANDOM.integers(3, size=200)
VOLUMES = RANDOM.normal(size=(4, 8, 8, 8))


@pytest.fixture
def axes():
    return figure.Figure(figsize=(8, 4)).subplots(1, 2)


class Fitted:
    embedding_ = Z

    def volumes_at(self, z):
        return np.asarray(z).sum(axis=1)[:, None, None, None] * np.ones((1, 6, 6, 6))


@pytest.mark.parametrize("z_dim", [1, 2, 3])
@pytest.mark.parametrize("values", [None, LABELS, Z[:, 0]], ids=["none", "labels", "scale"])
@pytest.mark.parametrize("kind", ["auto", "scatter", "density"])
def test_everything_is_drawn(z_dim, values, kind, axes):
    z = Z[:, :z_dim]
    display = LatentSpaceDisplay(z, values=values, points=z[:4], volumes=VOLUMES).plot(*axes, kind=kind)
    assert display.map_.shape == (200, min(z_dim, 2))
    assert [text.get_text() for text in display.texts_] == ["1", "2", "3", "4"]
    assert np.array_equal(display.path_.get_xdata(), display.map_[:4, 0])
    if z_dim > 1 and kind != "density":
        assert np.array_equal(np.asarray(display.drawn_.get_offsets()), display.map_)
        assert (display.colorbar_ is None) == (values is None)
    elif z_dim > 1 and values is None:
        assert display.drawn_.get_array().sum() == 200
    assert len(axes[1].texts) == 4
    axes[0].figure.canvas.draw()


def test_of_more_coordinates_the_principal_components_are_shown():
    display = LatentSpaceDisplay(Z)
    assert np.abs(np.cov(display.map_.T)[0, 1]) < 1e-9
    assert display.map_.var(axis=0) == pytest.approx(np.sort(np.linalg.eigvalsh(np.cov(Z.T, ddof=0)))[:0:-1])


def test_of_an_estimator_and_of_a_pipeline(axes):
    display = LatentSpaceDisplay.from_estimator(Fitted(), points=Z[:2], ax=axes[0], volumes_ax=axes[1])
    assert display.volumes.shape == (2, 6, 6, 6)
    again = LatentSpaceDisplay.from_estimator(make_pipeline("passthrough", Fitted()), ax=axes[0])
    assert again.volumes is None and np.array_equal(again.map_, display.map_)


def test_without_axes_a_figure_is_made():
    import matplotlib

    backend = matplotlib.get_backend()
    matplotlib.use("agg")
    try:
        display = LatentSpaceDisplay(Z, points=Z[:4], volumes=VOLUMES).plot()
        assert display.volumes_ax_ is not None and len(display.figure_.axes) == 2
        assert LatentSpaceDisplay(Z).plot().volumes_ax_ is None
    finally:
        matplotlib.pyplot.close("all")
        matplotlib.use(backend)


def test_a_moving_picture_has_all_volumes_in_order(tmp_path):
    image = pytest.importorskip("PIL.Image")
    x = np.arange(12) - 6
    ball = np.exp(-(x[:, None, None] ** 2 + x[:, None] ** 2 + x**2) / 6)
    volumes = [np.roll(ball, shift, axis=2) for shift in (-3, -1, 1, 3)]
    animate_volumes(tmp_path / "motion.gif", volumes, frames_per_second=5)
    with image.open(tmp_path / "motion.gif") as movie:
        assert movie.n_frames == 6 and movie.info["duration"] == 200
        centres = []
        for number in range(6):
            movie.seek(number)
            frame = np.asarray(movie.convert("L"), dtype=float)
            first = frame[: frame.shape[0] // 2, : frame.shape[1] // 3][20:]  # below the number
            centres.append((first.sum(axis=0) @ np.arange(first.shape[1])) / first.sum())
    assert (np.diff(centres)[:3] > 0).all() and (np.diff(centres)[3:] < 0).all()
    with pytest.raises(FileExistsError):
        animate_volumes(tmp_path / "motion.gif", volumes)
    animate_volumes(tmp_path / "motion.gif", volumes, back_and_forth=False, overwrite=True)
    with image.open(tmp_path / "motion.gif") as movie:
        assert movie.n_frames == 4
    assert [path.name for path in tmp_path.iterdir()] == ["motion.gif"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LatentSpaceDisplay(Z[0]), r"embedding has shape \(3,\)"),
        (lambda: LatentSpaceDisplay([[0.0], [np.inf]]), r"embedding\[1\] is \[inf\]"),
        (lambda: LatentSpaceDisplay(Z, values=LABELS[:9]), r"values has shape \(9,\); a number for each of 200"),
        (lambda: LatentSpaceDisplay(Z, points=Z[:2, :2]), r"points has shape \(2, 2\); coordinates \(m, 3\)"),
        (lambda: LatentSpaceDisplay(Z, volumes=VOLUMES), "one volume .* for each of 0 points"),
        (lambda: LatentSpaceDisplay(Z, points=Z[:3], volumes=VOLUMES), "one volume .* for each of 3 points"),
        (lambda: LatentSpaceDisplay(Z).plot(kind="map"), "kind is 'map'"),
        (lambda: LatentSpaceDisplay.from_estimator(object()), "object has no embedding_"),
        (lambda: animate_volumes("motion.gif", VOLUMES[:1]), "volumes has 1; at least two"),
        (lambda: animate_volumes("motion.gif", VOLUMES, frames_per_second=0), "frames_per_second is 0"),
        (lambda: animate_volumes("motion.gif", [np.ones((2, 3, 4))] * 2), r"volume has shape \(2, 3, 4\)"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
