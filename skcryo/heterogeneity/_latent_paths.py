"""Ways through a space of latent coordinates, centres in it and parts of it: arrays in, arrays out."""

from numbers import Integral

import numpy as np
from scipy.sparse.csgraph import connected_components, shortest_path
from sklearn.cluster import KMeans
from sklearn.neighbors import NearestNeighbors, kneighbors_graph
from sklearn.utils import Bunch

__all__ = ["latent_centers", "latent_path", "nearest_images", "select_latents"]

_METHODS = ("graph", "component", "line")
_NEIGHBORS = 10
_ENDS = (0.05, 0.95)  # quantiles of a component that paths go between


def latent_path(embedding, points=None, *, method="graph", n_points=10, component=0, n_neighbors=None):
    """Coordinates along which a molecule moves, for :meth:`~skcryo.heterogeneity.CryoDRGN.volumes_at`.

    Parameters
    ----------
    embedding : array-like of shape (n_images, z_dim)
        Latent coordinates of images, of any estimator.
    points : array-like of shape (m, z_dim), default=None
        Where the path starts, what it passes and where it ends. None: from the 5th to the 95th percentile of a
        principal component; "component" takes none.
    method : {"graph", "component", "line"}, default="graph"
        "graph": from image to image among nearest neighbours, so that it stays where images are. "component": straight
        along a principal component of the coordinates, through their mean. "line": straight from point to point, where
        images are or not.
    n_points : int or None, default=10
        Points of the path, evenly spaced along it. None: of a graph the images it goes through, of a line `points`.
    component : int, default=0
        Principal component, by falling variance.
    n_neighbors : int, default=None
        Of the graph. None: 10, and twice as many as long as no edges join the points.

    Returns
    -------
    path : ndarray of shape (n_points, z_dim), float64
        A principal component's direction is such that its largest coordinate rises.

    Raises
    ------
    ValueError
        If `embedding` or `points` has another shape or is not finite; if `method`, `component`, `n_points` or
        `n_neighbors` is none there can be; if no edges of the graph lead from one point to the next.

    See Also
    --------
    nearest_images : The images that are nearest to a path.

    Notes
    -----
    An edge costs the square of its length: many short steps, through regions with many images, are cheaper than a few
    long ones across regions with few.

    References
    ----------
    Kinman, Powell, Zhong, Berger, Davis, "Uncovering structural ensembles from single-particle cryo-EM data using
    cryoDRGN", Nature Protocols 18 (2023), for paths through principal components and graphs.

    Examples
    --------
    Images on three quarters of a circle: a straight line leaves them, the graph goes round.

    >>> import numpy as np
    >>> from skcryo.heterogeneity import latent_path
    >>> angle = np.linspace(0, 1.5 * np.pi, 200)
    >>> z = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    >>> ends = z[[0, -1]]
    >>> np.linalg.norm(latent_path(z, ends, n_points=5), axis=1).round(2).tolist()
    [1.0, 1.0, 1.0, 1.0, 1.0]
    >>> np.linalg.norm(latent_path(z, ends, method="line", n_points=5), axis=1).round(2).tolist()
    [1.0, 0.79, 0.71, 0.79, 1.0]
    """
    z = _embedding(embedding)
    if method not in _METHODS:
        raise ValueError(f"method is {method!r}; one of {', '.join(map(repr, _METHODS))} is wanted")
    if n_points is None and method == "component":
        raise ValueError("n_points is None; a number of points along the component is wanted")
    if n_points is not None and not (isinstance(n_points, Integral) and n_points >= 2):
        raise ValueError(f"n_points is {n_points}; 2 or more is wanted")
    if method == "component" and points is not None:
        raise ValueError("points have no meaning with method='component'; None is wanted")
    if points is None:
        points = _ends_of_component(z, component)
    points = _points(points, z)
    if len(points) < 2:
        raise ValueError(f"points has {len(points)} row; a start and an end are wanted")
    if method == "graph":
        images = nearest_images(z, points)
        tried = n_neighbors
        if tried is None:
            tried = min(_NEIGHBORS, len(z) - 1)
            while tried < len(z) - 1 and _apart(_graph(z, tried), images) is not None:
                tried = min(2 * tried, len(z) - 1)
        points = z[_through_graph(z, images, tried)]
    return points if n_points is None else _evenly(points, n_points)


def latent_centers(embedding, n_centers=20, *, random_state=None):
    """Centres of k-means among latent coordinates, each moved to the nearest image.

    Between the images there may be nothing: a volume is to be asked for where images are.

    Parameters
    ----------
    embedding : array-like of shape (n_images, z_dim)
    n_centers : int, default=20
        At most: no more than there are different rows.
    random_state : int, RandomState instance or None, default=None

    Returns
    -------
    found : Bunch
        ``centers`` (n_centers, z_dim), those of images; ``images`` (n_centers,), which images; ``labels`` (n_images,),
        the nearest centre of k-means; ``counts`` (n_centers,), how many images that are. Centres are in the order of
        the first principal component.

    Raises
    ------
    ValueError
        If `embedding` has another shape or is not finite, or `n_centers` is not positive.

    Examples
    --------
    >>> import numpy as np
    >>> from skcryo.heterogeneity import latent_centers
    >>> z = np.random.default_rng(0).normal(size=(500, 2))
    >>> found = latent_centers(z, 4, random_state=0)
    >>> bool((found.centers == z[found.images]).all()), int(found.counts.sum())
    (True, 500)
    """
    z = _embedding(embedding)
    if not (isinstance(n_centers, Integral) and n_centers >= 1):
        raise ValueError(f"n_centers is {n_centers}; 1 or more is wanted")
    n_centers = min(n_centers, len(np.unique(z, axis=0)))
    found = KMeans(n_centers, n_init=3, random_state=random_state).fit(z)
    mean, axes = _principal_axes(z)
    order = np.argsort((found.cluster_centers_ - mean) @ axes[0], kind="stable")
    labels = np.argsort(order)[found.labels_]
    images = nearest_images(z, found.cluster_centers_[order])
    return Bunch(centers=z[images], images=images, labels=labels, counts=np.bincount(labels, minlength=n_centers))


def nearest_images(embedding, points):
    """The image whose latent coordinates are nearest to each of some points.

    Parameters
    ----------
    embedding : array-like of shape (n_images, z_dim)
    points : array-like of shape (m, z_dim)

    Returns
    -------
    images : ndarray of shape (m,), int64

    Examples
    --------
    >>> from skcryo.heterogeneity import nearest_images
    >>> nearest_images([[0.0], [1.0], [2.0]], [[0.9], [-5.0]]).tolist()
    [1, 0]
    """
    z = _embedding(embedding)
    found = NearestNeighbors(n_neighbors=1).fit(z).kneighbors(_points(points, z), return_distance=False)
    return found[:, 0].astype(np.int64)


def select_latents(embedding, *, ranges=None, center=None, radius=None, polygon=None, axes=(0, 1)):
    """Images in a region of latent space.

    All conditions that are given hold together. The particles go back to a STAR file by
    ``skcryo.io.write_star(path, stack[select_latents(...)])``.

    Parameters
    ----------
    embedding : array-like of shape (n_images, z_dim)
    ranges : dict of int to (low, high), default=None
        From and to, both counted in, of coordinates by their number; None in place of a bound: none.
    center : array-like of shape (z_dim,), default=None
    radius : float, default=None
        Largest distance from `center`.
    polygon : array-like of shape (m, 2), default=None
        Corners, in order, in the plane of two coordinates; where its edges cross, what is enclosed twice is outside.
    axes : (int, int), default=(0, 1)
        These two coordinates.

    Returns
    -------
    selected : ndarray of shape (n_images,), bool

    Raises
    ------
    ValueError
        If no condition is given, or one does not go with the coordinates.

    Examples
    --------
    >>> from skcryo.heterogeneity import select_latents
    >>> z = [[0.0, 0.0], [1.0, 0.0], [2.0, 5.0]]
    >>> select_latents(z, ranges={0: (0.5, None)}).tolist()
    [False, True, True]
    >>> select_latents(z, ranges={0: (0.5, None)}, polygon=[(-1, -1), (3, -1), (3, 1), (-1, 1)]).tolist()
    [False, True, False]
    """
    z = _embedding(embedding)
    if (center is None) != (radius is None):
        raise ValueError("center and radius are wanted together")
    if ranges is None and center is None and polygon is None:
        raise ValueError("no region is given; ranges, center and radius, or polygon is wanted")
    selected = np.ones(len(z), dtype=bool)
    for number, bounds in (ranges or {}).items():
        column = z[:, _coordinate(number, z, "ranges")]
        low, high = (-np.inf if bounds[0] is None else bounds[0]), (np.inf if bounds[1] is None else bounds[1])
        if not low <= high:
            raise ValueError(f"ranges[{number}] is {tuple(bounds)}; low and high, not below it, are wanted")
        selected &= (column >= low) & (column <= high)
    if center is not None:
        if not radius >= 0:
            raise ValueError(f"radius is {radius}; a number that is not negative is wanted")
        selected &= np.linalg.norm(z - _points(np.atleast_2d(center), z, "center"), axis=1) <= radius
    if polygon is not None:
        corners = np.asarray(polygon, dtype=np.float64)
        if corners.ndim != 2 or corners.shape[1] != 2 or len(corners) < 3 or not np.isfinite(corners).all():
            raise ValueError(f"polygon has shape {corners.shape}; three or more finite corners (m, 2) are wanted")
        selected &= _inside(z[:, [_coordinate(axis, z, "axes") for axis in axes]], corners)
    return selected


# --------------------------------------------------------------------------------------------------------- the parts
def _embedding(embedding):
    z = np.asarray(embedding, dtype=np.float64)
    if z.ndim != 2 or not z.shape[0] or not z.shape[1]:
        raise ValueError(f"embedding has shape {z.shape}; coordinates (n_images, z_dim) of some images are wanted")
    bad = np.flatnonzero(~np.isfinite(z).all(axis=1))
    if len(bad):
        raise ValueError(f"embedding[{bad[0]}] is {z[bad[0]].tolist()}; finite coordinates are wanted")
    return z


def _points(points, z, name="points"):
    points = np.asarray(points, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != z.shape[1] or not len(points) or not np.isfinite(points).all():
        raise ValueError(f"{name} has shape {points.shape}; finite coordinates (m, {z.shape[1]}) are wanted")
    return points


def _coordinate(number, z, name):
    if not (isinstance(number, Integral) and 0 <= number < z.shape[1]):
        raise ValueError(f"{name} names coordinate {number!r}; 0 to {z.shape[1] - 1} are there")
    return number


def _principal_axes(z):
    """Mean and axes, by falling variance, the largest entry of each positive."""
    mean = z.mean(axis=0)
    _, vectors = np.linalg.eigh(np.cov((z - mean).T, ddof=0).reshape(z.shape[1], z.shape[1]))
    axes = vectors[:, ::-1].T
    largest = axes[np.arange(len(axes)), np.abs(axes).argmax(axis=1)]
    return mean, axes * np.sign(largest)[:, None]


def _ends_of_component(z, component):
    mean, axes = _principal_axes(z)
    if not (isinstance(component, Integral) and 0 <= component < len(axes)):
        raise ValueError(f"component is {component!r}; 0 to {len(axes) - 1} are there")
    along = (z - mean) @ axes[component]
    return mean + np.quantile(along, _ENDS)[:, None] * axes[component]


def _graph(z, n_neighbors):
    """Squared distances between images of which one is among the other's neighbours."""
    graph = kneighbors_graph(z, n_neighbors, mode="distance")
    # A distance of zero would be no edge.
    graph.data = np.square(graph.data) + 1e-12 * max(float(z.var(axis=0).sum()), np.finfo(float).tiny)
    return graph.maximum(graph.T)


def _apart(graph, images):
    """First of some images that no edges join to the next, or None."""
    part = connected_components(graph, directed=False)[1][images]
    apart = np.flatnonzero(np.diff(part))
    return apart[0] if len(apart) else None


def _through_graph(z, images, n_neighbors):
    """Images from each of some to the next along edges between nearest neighbours."""
    n = len(z)
    if not (isinstance(n_neighbors, Integral) and 1 <= n_neighbors < n):
        raise ValueError(f"n_neighbors is {n_neighbors}; 1 to {n - 1}, fewer than the images, is wanted")
    graph = _graph(z, n_neighbors)
    apart = _apart(graph, images)
    if apart is not None:
        raise ValueError(
            f"points {apart} and {apart + 1} lie in parts of the data that no edges between n_neighbors={n_neighbors} "
            "nearest neighbours join; more neighbours are wanted"
        )
    path = [int(images[0])]
    before = shortest_path(graph, directed=False, indices=images[1:], return_predecessors=True)[1]
    for start, row in zip(images[:-1], before):
        here = int(start)
        while row[here] >= 0:  # the root of each tree is where this piece ends
            here = int(row[here])
            path.append(here)
    return np.array(path)


def _evenly(points, n_points):
    """Points evenly spaced along straight lines between some."""
    length = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
    where = np.linspace(0, length[-1], n_points)
    return np.stack([np.interp(where, length, column) for column in points.T], axis=1)


def _inside(points, corners):
    """Whether a ray from each point crosses the polygon's edges an odd number of times."""
    x, y = points.T
    inside = np.zeros(len(points), dtype=bool)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0)):
        between = (y0 > y) != (y1 > y)
        if y0 != y1:
            inside ^= between & (x < x0 + (y - y0) * (x1 - x0) / (y1 - y0))
    return inside
