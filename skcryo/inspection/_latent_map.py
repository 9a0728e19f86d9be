"""The latent space of a manifold of classes: class averages at their nodes, particles between them, occupancies."""

import numpy as np

from ._angular_coverage import mollweide
from ._class_averages import montage_columns
from ._grey_levels import grey_levels
from ._matplotlib import import_pyplot

_LARGEST, _SMALLEST = 0.92, 0.45  # sides of the tiles of the largest class and of one particle, in node spacings
_PARTICLES_DRAWN = 20000
_NOWHERE = 1e-6  # from the middle of the sphere: no direction
_GOLDEN = (np.sqrt(5) - 1) / 2


class LatentMapDisplay:
    """Map of the latent space of a fitted :class:`~skcryo.cluster.SMLClustering`, and how its classes are filled.

    Each class average stands at its node. The area of its tile and the colour of its frame tell how many particles
    the class has; a class without any is an empty frame. Faint points are the particles' latent positions, below the
    averages: particles whose class is certain lie hidden under it, those between nodes might be in several classes. How
    all are laid out depends on the latent space:

    * a sphere is drawn in Mollweide's equal-area projection. Positions are posterior means, hence within the sphere:
      the farther in, the less is known of a particle and the fainter is its point;
    * a grid of two dimensions is drawn as it is;
    * a line is cut into rows, read from left to right and from top to bottom. What a point is moved up or down within
      its row says nothing;
    * a grid of three dimensions is cut into slices along its shortest axis, read in the same way; particles are drawn
      in the nearest one.

    Make one with :meth:`from_estimator`, which draws at once; :meth:`plot` draws the map again and
    :meth:`plot_occupancy` the sizes of the classes, figure 2e of [1]_.

    Parameters
    ----------
    latent_positions : array-like of shape (n_classes, n_latent)
        Nodes of a regular grid (n_latent 1, 2 or 3), or unit vectors of a sphere.
    averages : array-like of shape (n_classes, L, L)
        Class averages. Each gets its own contrast.
    counts : array-like of shape (n_classes,)
        Number of particles in each class.
    particle_positions : array-like of shape (n_images, n_latent), default=None
        Latent position of each particle.
    manifold : {"flat", "sphere"}, default="flat"
        What the nodes are of.

    Attributes
    ----------
    node_points : ndarray of shape (n_classes, 2), float64
        Where nodes stand on the map.
    particle_points : ndarray of shape (n_drawn, 2), float64
        Where particles stand on it, but for those whose position on the sphere has no direction.
    effective_n_classes : float
        Equal classes that would have the entropy of these class sizes.
    ax_ : matplotlib Axes
        The axes that hold the map.
    figure_ : matplotlib Figure
        Its figure.
    images_ : list of matplotlib AxesImage
        The class averages, of classes that have particles, by number.
    frames_ : matplotlib PatchCollection
        The frames, by class.
    particles_ : matplotlib PathCollection or None
        The particles; at most 20000, evenly chosen.
    colorbar_ : matplotlib Colorbar
        What the colours of the frames mean.
    occupancy_ax_, occupancy_figure_ : matplotlib Axes and Figure
        Those of :meth:`plot_occupancy`.
    curve_ : matplotlib Line2D
        The curve that it draws.

    Raises
    ------
    ValueError
        If arrays do not fit each other, or `manifold` is neither.

    See Also
    --------
    ClassAveragesDisplay : Montage of class averages, the largest first.

    References
    ----------
    .. [1] J. Wu et al.: Unsupervised single-particle deep clustering via statistical manifold learning. PLoS ONE 12
       (2017).

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> from skcryo.cluster import SMLClustering
    >>> from skcryo.datasets import make_molecule, make_particles
    >>> from skcryo.inspection import LatentMapDisplay
    >>> stack, truth = make_particles(make_molecule(16, random_state=0), 60, snr=1.0, random_state=0)
    >>> sml = SMLClustering(6, n_components=4).fit(stack)
    >>> display = LatentMapDisplay.from_estimator(sml, ax=Figure().add_subplot())
    >>> display.node_points.shape, len(display.particle_points)
    ((6, 2), 60)
    >>> display.plot_occupancy(Figure().add_subplot()).occupancy_ax_.get_ylabel()
    'particles'
    """

    def __init__(self, latent_positions, averages, counts, *, particle_positions=None, manifold="flat"):
        nodes = np.asarray(latent_positions, dtype=np.float64)
        averages, counts = np.asarray(averages), np.asarray(counts)
        if manifold not in ("flat", "sphere"):
            raise ValueError(f"manifold is {manifold!r}; 'flat' or 'sphere' is wanted")
        dimensions = (3,) if manifold == "sphere" else (1, 2, 3)
        if nodes.ndim != 2 or not len(nodes) or nodes.shape[1] not in dimensions or not np.isfinite(nodes).all():
            raise ValueError(
                f"latent_positions has shape {nodes.shape}; finite nodes (n_classes, n_latent) are wanted, n_latent "
                + ("3 of a sphere" if manifold == "sphere" else "1, 2 or 3")
            )
        if averages.ndim != 3 or averages.shape[1] != averages.shape[2] or averages.shape[0] != len(nodes):
            raise ValueError(
                f"averages has shape {averages.shape}; one square image for each of {len(nodes)} nodes is wanted"
            )
        if counts.shape != (len(nodes),) or counts.dtype.kind not in "iuf" or not (counts >= 0).all():
            raise ValueError(
                f"counts has shape {counts.shape} and dtype {counts.dtype}; a number of particles for each of "
                f"{len(nodes)} nodes is wanted"
            )
        if not counts.sum() > 0:
            raise ValueError("counts are all 0; classes of particles are wanted")
        particles = np.empty((0, nodes.shape[1])) if particle_positions is None else particle_positions
        particles = np.asarray(particles, dtype=np.float64)
        if particles.ndim != 2 or particles.shape[1] != nodes.shape[1] or not np.isfinite(particles).all():
            raise ValueError(
                f"particle_positions has shape {particles.shape}; finite positions (n_images, {nodes.shape[1]}) are "
                "wanted"
            )
        self.latent_positions, self.averages, self.counts = nodes, averages, counts
        self.particle_positions, self.manifold = particles, manifold
        shares = counts[counts > 0] / counts.sum()
        self.effective_n_classes = float(np.exp(-(shares * np.log(shares)).sum()))
        self._particle_alpha = np.full(len(particles), 1.0)
        if manifold == "sphere":
            lengths = np.linalg.norm(particles, axis=1)
            known = lengths > _NOWHERE
            self._particle_alpha = np.minimum(lengths[known], 1)
            self._spacing = 0.9 * np.sqrt(4 * np.pi / len(nodes))  # the area of the map is that of the sphere
            self.node_points, self.particle_points = mollweide(nodes), mollweide(particles[known])
        else:
            self._spacing = 1.0
            self.node_points, self.particle_points = _flat_points(nodes, particles)

    @classmethod
    def from_estimator(cls, estimator, **plot_options):
        """Draw the latent space of a fitted estimator.

        Parameters
        ----------
        estimator : SMLClustering
            Fitted, of manifold "flat" or "sphere"; or a fitted Pipeline whose last step is one.
        **plot_options
            Passed to :meth:`plot`.

        Returns
        -------
        display : LatentMapDisplay

        Raises
        ------
        ValueError
            If the estimator has no latent space: of manifold "none", not fitted, of another kind, or fitted on rows
            that are no square images.
        """
        last = estimator[-1] if hasattr(estimator, "steps") else estimator
        name = type(last).__name__
        for needed in ("latent_positions_", "responsibilities_", "class_averages_"):
            if not hasattr(last, needed):
                raise ValueError(f"{name} has no {needed}; a fitted SMLClustering is wanted (call fit first)")
        if last.manifold == "none":
            raise ValueError(
                f"{name} was fitted with manifold='none', whose classes have no latent space; manifold='sphere' or "
                "'flat' is wanted, or ClassAveragesDisplay for the class averages alone"
            )
        shares = last.responsibilities_
        positions = (shares @ last.latent_positions_) / np.asarray(shares.sum(axis=1)).reshape(-1, 1)
        counts = np.bincount(last.labels_, minlength=len(last.latent_positions_))
        display = cls(
            last.latent_positions_,
            last.class_averages_,
            counts,
            particle_positions=positions,
            manifold=last.manifold,
        )
        return display.plot(**plot_options)

    def plot(self, ax=None, *, show_particles=True, cmap="viridis", percentiles=(1.0, 99.5)):
        """Draw the map.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw, plain axes (no projection); a new figure if None.
        show_particles : bool, default=True
            Draw the particles' latent positions, below the class averages.
        cmap : str or matplotlib Colormap, default="viridis"
            Colours of the frames.
        percentiles : (float, float), default=(1.0, 99.5)
            Percentiles of each average, inside its disc, that become black and white.

        Returns
        -------
        self : LatentMapDisplay

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        ValueError
            If `percentiles` do not increase within [0, 100].
        """
        tiles = grey_levels(self.averages, percentiles=percentiles)
        margin = 0.6 * self._spacing
        low, high = self.node_points.min(axis=0) - margin, self.node_points.max(axis=0) + margin
        if ax is None:
            width, height = high - low
            figsize = (11, float(np.clip(10 * height / width, 2.5, 12)))
            _, ax = import_pyplot("LatentMapDisplay").subplots(figsize=figsize, layout="constrained")
        from matplotlib.collections import PatchCollection
        from matplotlib.patches import Rectangle

        self.ax_, self.figure_ = ax, ax.figure
        sides = self._spacing * np.sqrt(_SMALLEST**2 + (_LARGEST**2 - _SMALLEST**2) * self.counts / self.counts.max())
        corners = self.node_points - sides[:, None] / 2
        self.images_ = []
        for (x, y), side, tile, count in zip(corners, sides, tiles, self.counts):
            if count > 0:
                extent = (x, x + side, y, y + side)
                self.images_.append(ax.imshow(tile, cmap="gray", vmin=0, vmax=255, extent=extent, zorder=2))
        rectangles = [Rectangle(corner, side, side) for corner, side in zip(corners, sides)]
        self.frames_ = PatchCollection(rectangles, facecolor="none", linewidth=1.5, zorder=3)
        # the colours of the edges are mapped only where faces have none
        self.frames_.set(array=self.counts, cmap=cmap, clim=(0, self.counts.max()))
        ax.add_collection(self.frames_)
        self.particles_ = self._draw_particles() if show_particles and len(self.particle_points) else None
        ax.set_axis_off()
        ax.set_aspect("equal")
        if self.manifold == "sphere":
            angle = np.linspace(0, 2 * np.pi, 361)
            ax.plot(2 * np.sqrt(2) * np.cos(angle), np.sqrt(2) * np.sin(angle), color="0.6", linewidth=1, zorder=0)
            high = np.maximum(high, np.array([2 * np.sqrt(2), np.sqrt(2)]) * 1.03)
            low = -high
        ax.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
        self.colorbar_ = self.figure_.colorbar(self.frames_, ax=ax, shrink=0.7, label="particles")
        ax.set_title(self._told(), fontsize=10)
        return self

    def _draw_particles(self):
        n = len(self.particle_points)
        drawn = np.linspace(0, n - 1, min(n, _PARTICLES_DRAWN)).astype(int)
        return self.ax_.scatter(
            *self.particle_points[drawn].T,
            s=float(np.clip(10000 / n, 2, 12)),
            color="C3",
            alpha=0.5 * self._particle_alpha[drawn],
            linewidth=0,
            zorder=1,
            rasterized=True,
        )

    def plot_occupancy(self, ax=None):
        """Draw the sizes of the classes in ascending order, figure 2e of the paper, and the size of equal classes.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; a new figure if None.

        Returns
        -------
        self : LatentMapDisplay

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        """
        if ax is None:
            _, ax = import_pyplot("LatentMapDisplay").subplots(figsize=(6, 4), layout="constrained")
        self.occupancy_ax_, self.occupancy_figure_ = ax, ax.figure
        n_classes = len(self.counts)
        (self.curve_,) = ax.plot(np.arange(1, n_classes + 1), np.sort(self.counts), drawstyle="steps-mid")
        ax.axhline(self.counts.mean(), color="0.6", linestyle="--", linewidth=1, label="equal classes")
        ax.set(xlabel="classes, the smallest first", ylabel="particles", ylim=(0, None))
        ax.set_title(self._told(), fontsize=10)
        ax.legend(frameon=False)
        return self

    def _told(self):
        text = (
            f"{self.counts.sum():g} particles, {self.effective_n_classes:.1f} of {len(self.counts)} classes in effect"
        )
        n_empty = int(np.count_nonzero(self.counts == 0))
        return text + (f", {n_empty} empty" if n_empty else "")


def _flat_points(nodes, particles):
    """Where nodes and particles of a grid stand on the map, in node spacings."""
    axes = [np.unique(np.round(column, 9)) for column in nodes.T]
    spacing = min((float(np.diff(axis).min()) for axis in axes if len(axis) > 1), default=1.0)
    found = [(points - nodes.min(axis=0)) / spacing for points in (nodes, particles)]
    if nodes.shape[1] == 2:
        return found[0], found[1]
    if nodes.shape[1] == 1:
        n_columns = montage_columns(len(axes[0]))
        return _rows_of_line(found[0], n_columns, len(nodes)), _rows_of_line(
            found[1], n_columns, len(nodes), scatter=True
        )
    cut = int(np.argmin([len(axis) for axis in axes]))
    step = float(np.diff(axes[cut]).min()) / spacing if len(axes[cut]) > 1 else 1.0
    n_slices = len(axes[cut])
    n_columns = montage_columns(n_slices)
    size = np.delete(found[0].max(axis=0), cut) + 1.6  # in spacings, and a gap between the slices
    return tuple(_slices(points, cut, step, n_slices, n_columns, size) for points in found)


def _rows_of_line(points, n_columns, n_nodes, *, scatter=False):
    place = points[:, 0]
    row = np.clip(np.floor((place + 0.5) / n_columns), 0, (n_nodes - 1) // n_columns)
    # an even spread, as points of one position would hide each other; no further than the least tile
    up = 0.9 * _SMALLEST * ((np.arange(len(place)) * _GOLDEN) % 1 - 0.5) if scatter else 0.0
    return np.stack([place - row * n_columns, up - 1.2 * row], axis=1)


def _slices(points, cut, step, n_slices, n_columns, size):
    panel = np.clip(np.round(points[:, cut] / step), 0, n_slices - 1)
    row, column = np.divmod(panel, n_columns)
    return np.delete(points, cut, axis=1) + np.stack([column, -row], axis=1) * size
