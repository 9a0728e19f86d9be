"""Latent coordinates of particles on a map, and the volumes at some of its points beside it."""

import numpy as np

from ._class_averages import montage_columns
from ._grey_levels import shared_grey_levels
from ._matplotlib import import_pyplot

_SCATTERED = 5000  # images up to which points are drawn, not their density
_DRAWN = 50000


class LatentSpaceDisplay:
    """Map of latent coordinates, points or density, with projections of the volumes at marked points beside it.

    One coordinate is drawn as a histogram; two as they are; of more, the first two principal components.

    Make one with :meth:`from_estimator`, which decodes the volumes and draws at once; :meth:`plot` draws again.

    Parameters
    ----------
    embedding : array-like of shape (n_images, z_dim)
        Latent coordinates.
    values : array-like of shape (n_images,), default=None
        What points are coloured by: whole numbers are labels, others a scale.
    points : array-like of shape (m, z_dim), default=None
        Marked on the map with their number, from 1: a path, or centres.
    volumes : array-like of shape (m, L, L, L), default=None
        At these points; each is shown by its projection along z, with one contrast for all.

    Attributes
    ----------
    map_ : ndarray of shape (n_images, 1 or 2), float64
        Where images are on the map.
    map_points_ : ndarray of shape (m, 1 or 2), float64
        Where marked points are.
    ax_, volumes_ax_ : matplotlib Axes
        Of the map and of the projections; the latter None if there are none.
    figure_ : matplotlib Figure
    drawn_ : matplotlib artist
        The scatter (PathCollection), the density (PolyCollection) or the bars of the histogram (BarContainer).
    path_ : matplotlib Line2D or None
        The marked points.
    texts_ : list of matplotlib Text
        Their numbers.
    colorbar_ : matplotlib Colorbar or None

    Raises
    ------
    ValueError
        If shapes do not fit each other, or a value is not finite.

    See Also
    --------
    animate_volumes : The volumes of a path as a moving picture.
    skcryo.heterogeneity.latent_path : Points along a motion.

    Examples
    --------
    >>> import numpy as np
    >>> from matplotlib.figure import Figure
    >>> from skcryo.inspection import LatentSpaceDisplay
    >>> z = np.random.default_rng(0).normal(size=(100, 3))
    >>> display = LatentSpaceDisplay(z, points=z[:4]).plot(ax=Figure().add_subplot())
    >>> display.map_.shape, [text.get_text() for text in display.texts_]
    ((100, 2), ['1', '2', '3', '4'])
    """

    def __init__(self, embedding, *, values=None, points=None, volumes=None):
        self.embedding = _finite(embedding, "embedding")
        n, z_dim = self.embedding.shape
        self.values = None if values is None else np.asarray(values)
        if values is not None and (self.values.shape != (n,) or self.values.dtype.kind not in "biuf"):
            raise ValueError(f"values has shape {self.values.shape}; a number for each of {n} images is wanted")
        self.points = None if points is None else _finite(points, "points")
        if points is not None and self.points.shape[1] != z_dim:
            raise ValueError(f"points has shape {self.points.shape}; coordinates (m, {z_dim}) are wanted")
        self.volumes = None if volumes is None else np.asarray(volumes)
        if volumes is not None:
            wanted = 0 if points is None else len(self.points)
            shape = self.volumes.shape
            if len(shape) != 4 or len(set(shape[1:])) != 1 or shape[0] != wanted:
                raise ValueError(
                    f"volumes has shape {shape}; one volume (L, L, L) for each of {wanted} points is wanted"
                )
        self._mean, self._axes = np.zeros(z_dim), np.eye(z_dim)
        if z_dim > 2:
            self._mean = self.embedding.mean(axis=0)
            _, vectors = np.linalg.eigh(np.cov((self.embedding - self._mean).T, ddof=0))
            axes = vectors[:, ::-1][:, :2].T
            self._axes = axes * np.sign(axes[[0, 1], np.abs(axes).argmax(axis=1)])[:, None]
        self.map_ = self._placed(self.embedding)
        self.map_points_ = None if points is None else self._placed(self.points)

    def _placed(self, z):
        return (z - self._mean) @ self._axes.T

    @classmethod
    def from_estimator(cls, estimator, *, values=None, points=None, **plot_options):
        """Draw the coordinates of a fitted estimator, with the volumes that it makes at some points.

        Parameters
        ----------
        estimator : estimator instance
            Fitted, with ``embedding_`` and, if `points` are given, ``volumes_at``: such as
            :class:`~skcryo.heterogeneity.CryoDRGN`; or a fitted Pipeline whose last step is one.
        values, points
            As for the class.
        **plot_options
            Passed to :meth:`plot`.

        Returns
        -------
        display : LatentSpaceDisplay

        Raises
        ------
        ValueError
            If the estimator has no ``embedding_`` (not fitted, or of another kind).
        """
        last = estimator[-1] if hasattr(estimator, "steps") else estimator
        embedding = getattr(last, "embedding_", None)
        if embedding is None:
            raise ValueError(
                f"{type(last).__name__} has no embedding_; a fitted estimator of coordinates is wanted (call fit first)"
            )
        volumes = last.volumes_at(points) if points is not None and hasattr(last, "volumes_at") else None
        return cls(embedding, values=values, points=points, volumes=volumes).plot(**plot_options)

    def plot(self, ax=None, volumes_ax=None, *, kind="auto", cmap=None):
        """Draw the map and the projections.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw the map; a new figure, with the projections beside it, if None.
        volumes_ax : matplotlib Axes, default=None
            Where to draw the projections. None: in a new figure, or not at all if `ax` is given.
        kind : {"auto", "scatter", "density"}, default="auto"
            "density": hexagons with the number of images in each, or the median of their values. "auto": "scatter" for
            up to 5000 images.
        cmap : str, default=None
            Colours; None: "tab10" for up to ten labels, else "viridis".

        Returns
        -------
        self : LatentSpaceDisplay

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        ValueError
            If `kind` is none of these.
        """
        if kind not in ("auto", "scatter", "density"):
            raise ValueError(f"kind is {kind!r}; 'auto', 'scatter' or 'density' is wanted")
        if ax is None:
            plt = import_pyplot("LatentSpaceDisplay")
            if self.volumes is None:
                _, ax = plt.subplots(figsize=(5.5, 4.6), layout="constrained")
            else:
                _, (ax, volumes_ax) = plt.subplots(1, 2, figsize=(10, 4.6), layout="constrained")
        self.ax_, self.volumes_ax_, self.figure_ = ax, volumes_ax, ax.figure
        self.colorbar_, self.path_, self.texts_ = None, None, []
        if self.map_.shape[1] == 1:
            self._draw_histogram()
        else:
            dense = kind == "density" or (kind == "auto" and len(self.map_) > _SCATTERED)
            self._draw_map(dense, cmap)
        if self.map_points_ is not None:
            self._mark()
        if self.volumes is not None and volumes_ax is not None:
            self._draw_volumes()
        return self

    @property
    def _labelled(self):
        return self.values is not None and self.values.dtype.kind in "biu"

    def _draw_histogram(self):
        ax, z = self.ax_, self.map_[:, 0]
        bins = np.histogram_bin_edges(z, bins=min(60, max(5, len(z) // 20)))
        if self._labelled:
            labels = np.unique(self.values)[:20]
            parts = [z[self.values == label] for label in labels]
            self.drawn_ = ax.hist(parts, bins=bins, stacked=True, label=[str(label) for label in labels])[2]
            ax.legend(frameon=False, fontsize=8)
        else:
            self.drawn_ = ax.hist(z, bins=bins, color="0.7")[2]
            if self.values is not None:
                ax.twinx().plot(z, self.values, "C0.", markersize=2, alpha=0.5)
        ax.set(xlabel="z1", ylabel="particles")

    def _draw_map(self, dense, cmap):
        ax = self.ax_
        n_labels = len(np.unique(self.values)) if self._labelled else 0
        cmap = cmap or ("tab10" if 0 < n_labels <= 10 else "viridis")
        if dense:
            options = {"bins": "log"} if self.values is None else {"C": self.values, "reduce_C_function": _middle}
            self.drawn_ = ax.hexbin(*self.map_.T, gridsize=60, mincnt=1, cmap=cmap, linewidths=0.1, **options)
            shown = self.drawn_
        else:
            rows = np.linspace(0, len(self.map_) - 1, min(len(self.map_), _DRAWN)).astype(int)
            colours = {"color": "C0"} if self.values is None else {"c": self.values[rows], "cmap": cmap}
            size = float(np.clip(8000 / len(rows), 2, 12))
            self.drawn_ = ax.scatter(*self.map_[rows].T, s=size, alpha=0.6, linewidth=0, rasterized=True, **colours)
            shown = None if self.values is None else self.drawn_
        if shown is not None:
            what = "particles" if self.values is None else "value"
            self.colorbar_ = self.figure_.colorbar(shown, ax=ax, shrink=0.8, label=what)
        name = "principal component {}" if self.embedding.shape[1] > 2 else "z{}"
        ax.set(xlabel=name.format(1), ylabel=name.format(2))

    def _mark(self):
        ax, points = self.ax_, self.map_points_
        style = {"color": "black", "marker": "o", "markersize": 4, "linewidth": 0.8, "markerfacecolor": "white"}
        if points.shape[1] == 1:
            transform = ax.get_xaxis_transform()
            (self.path_,) = ax.plot(points[:, 0], np.full(len(points), 0.03), transform=transform, **style)
            places, options = np.stack([points[:, 0], np.full(len(points), 0.05)], axis=1), {"transform": transform}
        else:
            (self.path_,) = ax.plot(*points.T, **style)
            places, options = points, {}
        for number, place in enumerate(places, start=1):
            text = ax.text(*place, str(number), fontsize=9, ha="left", va="bottom", **options)
            text.set_bbox({"facecolor": "white", "alpha": 0.6, "linewidth": 0, "pad": 0.5})
            self.texts_.append(text)

    def _draw_volumes(self):
        ax, tiles = self.volumes_ax_, self.volumes.sum(axis=1)
        n, L = len(tiles), tiles.shape[1]
        grey = shared_grey_levels(tiles)
        n_columns = montage_columns(n)
        n_rows, gap = -(-n // n_columns), max(1, L // 24)
        step = L + gap
        canvas = np.full((n_rows * step - gap, n_columns * step - gap), 255, dtype=np.uint8)
        for k, tile in enumerate(grey):
            row, column = divmod(k, n_columns)
            canvas[row * step : row * step + L, column * step : column * step + L] = tile
            place = (column * step + 0.04 * L, row * step + 0.04 * L)
            text = ax.text(*place, str(k + 1), ha="left", va="top", color="white", fontsize=9)
            text.set_bbox({"facecolor": "black", "alpha": 0.45, "linewidth": 0, "pad": 1})
        ax.imshow(canvas, cmap="gray", vmin=0, vmax=255, interpolation="antialiased")
        ax.set_axis_off()
        ax.set_title("projections along z", fontsize=10)


def _middle(values):
    """Of values that may be labels: one of them."""
    return np.sort(values)[len(values) // 2]


def _finite(array, name):
    array = np.asarray(array, dtype=np.float64)
    if array.ndim != 2 or not array.shape[0] or not array.shape[1]:
        raise ValueError(f"{name} has shape {array.shape}; coordinates (n, z_dim) are wanted")
    bad = np.flatnonzero(~np.isfinite(array).all(axis=1))
    if len(bad):
        raise ValueError(f"{name}[{bad[0]}] is {array[bad[0]].tolist()}; finite coordinates are wanted")
    return array
