"""Which viewing directions a data set covers."""

import numpy as np

from ._matplotlib import import_pyplot


def mollweide(directions):
    """Project directions on the plane so that equal areas on the sphere stay equal.

    Parameters
    ----------
    directions : array-like of shape (n, 3)
        Vectors (x, y, z) of any positive length. The pole +z is at the top, +x in the middle.

    Returns
    -------
    points : ndarray of shape (n, 2), float64
        Within the ellipse of half axes 2 sqrt(2) and sqrt(2); its area, 4 pi, is the sphere's.

    Raises
    ------
    ValueError
        If `directions` does not hold vectors, or holds one of no length.

    References
    ----------
    .. [1] J. P. Snyder, "Map Projections: A Working Manual", U.S. Geological Survey Professional Paper
    1395 (1987),
           pp. 249-252.
    """
    directions = np.asarray(directions, dtype=np.float64)
    if directions.ndim != 2 or directions.shape[1] != 3:
        raise ValueError(f"directions has shape {directions.shape}; vectors (n, 3) are wanted")
    length = np.linalg.norm(directions, axis=1)
    bad = ~(np.isfinite(length) & (length > 0))
    if bad.any():
        index = int(np.flatnonzero(bad)[0])
        raise ValueError(
            f"directions[{index}] is {directions[index]}; a vector of finite positive length is wanted"
        )
    sine = np.clip(directions[:, 2] / length, -1, 1)
    longitude = np.arctan2(directions[:, 1], directions[:, 0])
    # 2 t + sin 2t = pi sin(latitude) has no closed form. The left side rises monotonically, so halving the
    # interval always works, also at the poles, where Newton's step divides by zero.
    low, high = np.full(len(sine), -np.pi / 2), np.full(len(sine), np.pi / 2)
    for _ in range(50):
        middle = 0.5 * (low + high)
        below = 2 * middle + np.sin(2 * middle) < np.pi * sine
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    theta = 0.5 * (low + high)
    return np.stack([2 * np.sqrt(2) / np.pi * longitude * np.cos(theta), np.sqrt(2) * np.sin(theta)], axis=1)


class AngularCoverageDisplay:
    """Map of the viewing directions of a data set, in Mollweide's equal-area projection.

    The colour of a cell is the number of particles in it relative to what an even spread over the sphere
    would give, so 1 is even coverage wherever it stands. Make one with :meth:`from_rotations` or
    :meth:`from_estimator`.

    Parameters
    ----------
    directions : array-like of shape (n, 3)
        Viewing directions (x, y, z), the third column of each rotation.

    Attributes
    ----------
    ax_ : matplotlib Axes
        The axes that hold the map.
    figure_ : matplotlib Figure
        Its figure.
    cells_ : matplotlib PolyCollection or PathCollection
        The hexagons, or the points.
    colorbar_ : matplotlib Colorbar or None
        What the colours mean; None for points.

    Raises
    ------
    ValueError
        If `directions` does not hold vectors of positive length.

    See Also
    --------
    ClassAveragesDisplay : Montage of class averages.

    Examples
    --------
    >>> import numpy as np
    >>> from matplotlib.figure import Figure
    >>> from skcryo.inspection import AngularCoverageDisplay
    >>> directions = np.random.default_rng(0).normal(size=(500, 3))
    >>> display = AngularCoverageDisplay(directions).plot(Figure().add_subplot())
    >>> float(np.round(display.cells_.get_array().mean(), 1))
    1.0
    """

    def __init__(self, directions):
        self.points = mollweide(directions)
        self.directions = np.asarray(directions, dtype=np.float64)

    @classmethod
    def from_rotations(cls, rotations, **plot_options):
        """Draw the viewing directions of rotations.

        Parameters
        ----------
        rotations : array-like of shape (n, 3, 3)
            Rotation matrices; the viewing direction is the third column.
        **plot_options
            Passed to :meth:`plot`.

        Returns
        -------
        display : AngularCoverageDisplay

        Raises
        ------
        ValueError
            If `rotations` has another shape.
        """
        rotations = np.asarray(rotations, dtype=np.float64)
        if rotations.ndim != 3 or rotations.shape[1:] != (3, 3):
            raise ValueError(f"rotations has shape {rotations.shape}; matrices (n, 3, 3) are wanted")
        return cls(rotations[:, :, 2]).plot(**plot_options)

    @classmethod
    def from_estimator(cls, estimator, **plot_options):
        """Draw the viewing directions that a fitted estimator found.

        Parameters
        ----------
        estimator : estimator instance
            Fitted, with `rotations_` of shape (n, 3, 3); or a fitted Pipeline whose last step is one.
        **plot_options
            Passed to :meth:`plot`.

        Returns
        -------
        display : AngularCoverageDisplay

        Raises
        ------
        ValueError
            If the estimator has no rotations (not fitted, or of another kind).
        """
        last = estimator[-1] if hasattr(estimator, "steps") else estimator
        rotations = getattr(last, "rotations_", None)
        if rotations is None:
            raise ValueError(
                f"{type(last).__name__} has no rotations_; "
                "a fitted estimator of poses is wanted (call fit first)"
            )
        return cls.from_rotations(rotations, **plot_options)

    def plot(self, ax=None, *, kind="hexbin", gridsize=None, cmap="viridis"):
        """Draw the map.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw, plain axes (no projection); a new figure if None.
        kind : {"hexbin", "scatter"}, default="hexbin"
            Density in hexagons of equal area, or one point for each particle.
        gridsize : int, default=None
            Hexagons across the map; if None, so that a hexagon holds about ten particles of an even spread
            (between 8 and 60 across).
        cmap : str or matplotlib Colormap, default="viridis"
            Colours of the hexagons.

        Returns
        -------
        self : AngularCoverageDisplay

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        ValueError
            If `kind` is unknown or `gridsize` is below 2.
        """
        if kind not in ("hexbin", "scatter"):
            raise ValueError(f"kind is {kind!r}; 'hexbin' or 'scatter' is wanted")
        if gridsize is not None and gridsize < 2:
            raise ValueError(f"gridsize is {gridsize}; at least 2, or None, is wanted")
        if ax is None:
            _, ax = import_pyplot("AngularCoverageDisplay").subplots(figsize=(7, 4), layout="constrained")
        half_width, half_height = 2 * np.sqrt(2), np.sqrt(2)
        n_points = len(self.points)
        self.ax_, self.figure_, self.colorbar_ = ax, ax.figure, None
        ax.set_axis_off()
        ax.set_aspect("equal")

        angle = np.linspace(0, 2 * np.pi, 361)
        outline = np.stack([half_width * np.cos(angle), half_height * np.sin(angle)], axis=1)
        if kind == "scatter":
            size = float(np.clip(2000 / max(n_points, 1), 1, 20))
            self.cells_ = ax.scatter(*self.points.T, s=size, color="C0", linewidth=0, alpha=0.7)
        else:
            # n cells of equal area cover the ellipse where the box of the hexagons holds 4 / pi times as
            # many.
            if gridsize is None:
                gridsize = int(np.clip(np.sqrt(n_points / 10 * 4 / np.pi * 2 / np.sqrt(3) * 1.15), 8, 60))
            n_rows = max(int(gridsize / np.sqrt(3) * half_height / half_width), 1)
            extent = (-half_width, half_width, -half_height, half_height)
            self.cells_ = ax.hexbin(
                *self.points.T, gridsize=(gridsize, n_rows), extent=extent, cmap=cmap, linewidths=0.2
            )
            self._relative_to_even(gridsize, n_rows, half_width, half_height)
            self.colorbar_ = self.figure_.colorbar(
                self.cells_, ax=ax, shrink=0.7, label="particles relative to even coverage"
            )
        (edge,) = ax.plot(*outline.T, color="black", linewidth=1)
        self.cells_.set_clip_path(edge.get_path(), edge.get_transform())
        self._draw_graticule()
        ax.set_xlim(-1.03 * half_width, 1.03 * half_width)
        ax.set_ylim(-1.05 * half_height, 1.05 * half_height)
        return self

    def _relative_to_even(self, gridsize, n_rows, half_width, half_height):
        """Divide the counts by those of an even spread, so that cells cut by the border stand as others do."""
        even = _even_directions(200_000)
        from matplotlib.figure import Figure

        extent = (-half_width, half_width, -half_height, half_height)
        reference = (
            Figure().add_subplot().hexbin(*mollweide(even).T, gridsize=(gridsize, n_rows), extent=extent)
        )
        expected = reference.get_array() * (len(self.points) / len(even))
        # A sliver at the border holds next to nothing and its ratio would be all noise: fill it up to
        # half a cell with even coverage. A cell wholly outside the map stays empty.
        fill = np.clip(0.5 * expected.max() - expected, 0, None)
        inside = expected > 0
        ratio = np.ma.masked_all(len(expected))
        ratio[inside] = (self.cells_.get_array() + fill)[inside] / (expected + fill)[inside]
        self.cells_.set_array(ratio)
        self.cells_.set_clim(0, max(float(ratio.max()), 1.5))

    def _draw_graticule(self):
        """Draw meridians each 60 degrees and parallels each 30."""
        style = {"color": "white" if self.colorbar_ is not None else "0.7", "linewidth": 0.5, "alpha": 0.6}
        steps = np.radians(np.linspace(-90, 90, 91))
        for longitude in np.radians([-120, -60, 0, 60, 120]):
            line = np.stack(
                [np.cos(steps) * np.cos(longitude), np.cos(steps) * np.sin(longitude), np.sin(steps)], 1
            )
            self.ax_.plot(*mollweide(line).T, **style)
        # Just short of 180 degrees, where the map is cut.
        around = np.radians(np.linspace(-179.999, 179.999, 181))
        for latitude in np.radians([-60, -30, 0, 30, 60]):
            height = np.full(len(around), np.sin(latitude))
            line = np.stack([np.cos(latitude) * np.cos(around), np.cos(latitude) * np.sin(around), height], 1)
            self.ax_.plot(*mollweide(line).T, **style)


def _even_directions(n):
    """Return n directions spread evenly over the sphere (a Fibonacci spiral)."""
    index = np.arange(n) + 0.5
    height = 1 - 2 * index / n
    angle = np.pi * (1 + np.sqrt(5)) * index
    across = np.sqrt(1 - height**2)
    return np.stack([across * np.cos(angle), across * np.sin(angle), height], axis=1)
