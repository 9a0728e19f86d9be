"""First class means of statistical manifold learning."""

import numpy as np
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans

from ._sml_coordinates import PixelCoordinates
from ._sml_subspace import SubspaceMixture

__all__ = ["check_averages", "first_means"]

_MOST_STARTED = 20000  # images that k-means starts from, or 10 a class


def check_averages(init, n_clusters, image_shape):
    """Class averages (n_clusters, L, L) or rows that a fit is to start from, as rows; the name of a start as it is."""
    if isinstance(init, str):
        return init
    averages = np.asarray(init, dtype=np.float64)
    n_pixels = int(np.prod(image_shape))
    if averages.shape not in ((n_clusters, *image_shape), (n_clusters, n_pixels)):
        raise ValueError(f"init has shape {averages.shape}; class averages {(n_clusters, *image_shape)} are wanted")
    averages = averages.reshape(n_clusters, n_pixels)
    bad = np.flatnonzero(~np.isfinite(averages).all(axis=1))
    if len(bad):
        raise ValueError(f"init[{bad[0]}] is not finite")
    return averages


def first_means(init, space, mixture, data, nodes, rng):
    """First class means in the coordinates of a mixture.

    Parameters
    ----------
    init : {"auto", "pca", "k-means", "random"} or ndarray of shape (n_clusters, n_pixels)
        As of :class:`~skcryo.cluster.SMLClustering`.
    space : SignalSpace
    mixture : PixelMixture or SubspaceMixture
    data : ParticleCoordinates
    nodes : ndarray of shape (n_clusters, ndim) or None
    rng : RandomState

    Returns
    -------
    means : ndarray of shape (n_clusters, n_coordinates) or (n_clusters, n_components)
    """
    in_components = isinstance(mixture, SubspaceMixture)
    if not isinstance(init, str):
        if not isinstance(data.coordinates, PixelCoordinates):
            init = data.coordinates.analyze(init.reshape(len(init), *data.stack.shape[1:]))
        means = (init - space.mean) / np.sqrt(space.noise)
        return np.linalg.lstsq(space.components, means.T)[0].T if in_components else means
    single = SubspaceMixture(
        np.eye(1), space.components, space.variances, 1.0, data.dtype, data.coordinates, space.ctf_modes
    )

    def wiener(n, rng):
        part = data.part(np.sort(rng.permutation(len(data))[:n]))
        found = (
            single.features(*whitened, part.coordinates) for _, *whitened in part.whitened(space, space.ctf_modes)
        )
        return np.concatenate([single.posterior_means(terms) for terms, _ in found])

    if init == "auto":
        init = "k-means" if nodes is None else "pca"
    means = _laid_out(init, nodes, len(mixture.basis), space.variances, wiener, rng)
    return means if in_components else means @ space.components.T


def _laid_out(init, nodes, n_clusters, variances, wiener, rng):
    """First class means in the components.

    Parameters
    ----------
    init : {"pca", "k-means", "random"}
        "pca": the latent grid laid along the first components, each stretched to its variance (of no manifold: means
        drawn from the components' variances). "k-means": its centres; on a manifold each goes to a node such that
        nodes stay near their places along the first components. "random": images, Wiener filtered.
    nodes : ndarray of shape (n_clusters, ndim) or None
    n_clusters : int
    variances : ndarray of shape (n_components,)
    wiener : callable
        Of the number of images wanted and the generator, that many images' coefficients.
    rng : RandomState

    Returns
    -------
    means : ndarray of shape (n_clusters, n_components)
    """
    n = len(variances)
    laid = None
    if nodes is not None:
        laid = np.zeros((n_clusters, n))
        ndim = min(nodes.shape[1], n)
        spread = nodes[:, :ndim] - nodes[:, :ndim].mean(axis=0)
        deviations = spread.std(axis=0)
        laid[:, :ndim] = spread / np.where(deviations > 0, deviations, 1) * np.sqrt(variances[:ndim])
    if init == "pca":
        return rng.standard_normal((n_clusters, n)) * np.sqrt(variances) if laid is None else laid
    if init == "random":
        return wiener(n_clusters, rng)
    points = wiener(max(_MOST_STARTED, 10 * n_clusters), rng)
    centres = KMeans(n_clusters, n_init=1, random_state=rng).fit(points).cluster_centers_
    if laid is None:
        return centres
    distances = ((laid[:, None] - centres[None]) ** 2).sum(axis=2)
    return centres[linear_sum_assignment(distances)[1]]
