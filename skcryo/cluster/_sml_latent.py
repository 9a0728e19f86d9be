"""Latent nodes of statistical manifold learning, and the functions that carry them to class means."""

from numbers import Integral

import numpy as np

__all__ = ["check_grid", "even_shape", "grid_nodes", "manifold_basis", "mean_positions", "sphere_nodes"]

_WIDEST = 0.6  # of the sphere's radius, or half the grid's longest side: wider, few nodes would all be one
_KEPT = 1e-10  # of the largest eigenvalue: less spans nothing


def check_grid(manifold, grid_shape, latent_dim):
    """The shape of the grid as a tuple, or None; refused where it or the dimension does not fit the manifold."""
    if manifold == "sphere" and latent_dim != 2:
        raise ValueError(f"a sphere has latent_dim=2, got latent_dim={latent_dim}")
    if grid_shape is None:
        return None
    if manifold != "flat":
        raise ValueError(f"grid_shape={grid_shape} is for manifold='flat', got manifold={manifold!r}")
    shape = tuple(grid_shape)
    if not 1 <= len(shape) <= 3 or not all(isinstance(n, Integral) and n >= 1 for n in shape):
        raise ValueError(f"grid_shape must be one to three positive integers, got {grid_shape}")
    return shape


def even_shape(n, ndim):
    """`n` as a product of `ndim` factors as equal as can be, the largest first.

    Examples
    --------
    >>> from skcryo.cluster._sml_latent import even_shape
    >>> even_shape(300, 2), even_shape(60, 3), even_shape(7, 2)
    ((20, 15), (5, 4, 3), (7, 1))
    """
    if ndim == 1:
        return (n,)
    root = n ** (1 / ndim)
    small = max(f for f in range(1, int(root + 1e-9) + 1) if n % f == 0)
    return tuple(sorted((*even_shape(n // small, ndim - 1), small), reverse=True))


def grid_nodes(shape):
    """Nodes of a regular grid, the longest axis from -1 to 1, all with one spacing.

    Parameters
    ----------
    shape : tuple of int

    Returns
    -------
    nodes : ndarray of shape (n_nodes, len(shape)), float64
    """
    spacing = 2 / max(max(shape) - 1, 1)
    axes = [spacing * (np.arange(n) - (n - 1) / 2) for n in shape]
    return np.stack([axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")], axis=1)


def sphere_nodes(n):
    """Nodes spread evenly over the unit sphere, on a Fibonacci spiral.

    Parameters
    ----------
    n : int

    Returns
    -------
    nodes : ndarray of shape (n, 3), float64
    """
    i = np.arange(n) + 0.5
    z = 1 - 2 * i / n
    angle = np.pi * (1 + np.sqrt(5)) * i
    r = np.sqrt(1 - z * z)
    return np.stack([r * np.cos(angle), r * np.sin(angle), z], axis=1)


def _gaussians(nodes, centres, width):
    distances = ((nodes[:, None] - centres[None]) ** 2).sum(axis=2)
    return np.exp(distances / (-2 * width**2))


def manifold_basis(manifold, n_nodes, *, shape=None, latent_dim=2, n_basis=None, width=1.0, residual=0.0):
    """Nodes and basis functions at the nodes, equations 2 and 3 of the paper.

    Parameters
    ----------
    manifold : {"flat", "sphere", "none"}
        "none": every node has a function of its own, so that class means are independent.
    n_nodes : int
    shape : tuple of int, default=None
        Of a flat grid; None: :func:`even_shape`.
    latent_dim : int, default=2
        Of a flat grid whose shape is not given.
    n_basis : int, default=None
        Gaussian functions. None: 0.8 of the nodes along each axis of a flat grid (the paper's number), 0.75 of all
        nodes on a sphere.
    width : float, default=1.0
        Standard deviation of the Gaussians in spacings of their centres; at most 0.6 of the radius of the sphere, or of
        half the longest side of the grid.
    residual : float, default=0.0
        Variance of what each node deviates from the manifold, relative to the mean variance along it.

    Returns
    -------
    nodes : ndarray of shape (n_nodes, ndim) or None
        None of no manifold.
    basis : ndarray of shape (n_nodes, n_functions), float64
        The Gaussians and a constant; scaled to a mean square of 1 over nodes, summed over functions, so that weights
        of variance v make class means of variance v. Then turned: columns are the principal axes of the class means'
        covariance under the prior of equation 8, residual included, and orthogonal; the model is the same.
    """
    if manifold == "none":
        return None, np.eye(n_nodes)
    if manifold == "sphere":
        nodes = sphere_nodes(n_nodes)
        n_centres = max(round(0.75 * n_nodes), 1) if n_basis is None else n_basis
        centres, spacing = sphere_nodes(n_centres), np.sqrt(4 * np.pi / n_centres)
    else:
        shape = even_shape(n_nodes, latent_dim) if shape is None else tuple(shape)
        nodes = grid_nodes(shape)
        centre_shape = _centre_shape(shape, n_basis)
        spacings = [
            2 / max(max(shape) - 1, 1) * (n - 1) / (m - 1) if m > 1 else 1.0 for n, m in zip(shape, centre_shape)
        ]
        axes = [s * (np.arange(m) - (m - 1) / 2) for s, m in zip(spacings, centre_shape)]
        centres = np.stack([axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")], axis=1)
        spacing = max((s for s, m in zip(spacings, centre_shape) if m > 1), default=1.0)
    basis = np.concatenate([_gaussians(nodes, centres, min(width * spacing, _WIDEST)), np.ones((n_nodes, 1))], axis=1)
    basis /= np.sqrt((basis**2).sum(axis=1).mean())
    covariance = (basis @ basis.T + residual * np.eye(n_nodes)) / (1 + residual)
    values, vectors = np.linalg.eigh(covariance)
    kept = values > _KEPT * values[-1]
    return nodes, vectors[:, kept] * np.sqrt(values[kept])


def _centre_shape(shape, n_basis):
    """Centres along each axis of a grid of nodes: as many for each node along every axis."""
    if n_basis is None:
        return tuple(max(round(0.8 * n), 1) for n in shape)
    share = (n_basis / np.prod(shape)) ** (1 / sum(n > 1 for n in shape)) if max(shape) > 1 else 1.0
    return tuple(max(round(share * n), 1) if n > 1 else 1 for n in shape)


def mean_positions(means, n):
    """Independent class means along their first `n` principal components, (n_clusters, n)."""
    means = means - means.mean(axis=0)
    left, values, _ = np.linalg.svd(means, full_matrices=False)
    left *= np.sign(left[np.abs(left).argmax(axis=0), np.arange(len(values))])
    positions = np.zeros((len(means), n))
    kept = min(n, len(values))
    positions[:, :kept] = left[:, :kept] * values[:kept]
    return positions
