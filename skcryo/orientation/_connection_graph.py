"""Poses from a graph of images alike: spectra of matrices of in-plane turns and mirror images."""

import numpy as np
import scipy.sparse
import scipy.sparse.linalg

__all__ = ["connection_spectrum", "multi_frequency_features", "poses_from_eigenvectors"]

_DENSE = 400
_SEED = 0
_FAINT = 1e-6  # weight of a dropped edge: nothing, but no image is left without any


def connection_spectrum(neighbors, frequency, n_eigenvectors, weights=None):
    """Largest eigenvalues of the mean over neighbours, turned and mirrored as the images are.

    Functions f from images to the plane that turn along with the images, `frequency` times as fast, are averaged over
    neighbours: ``(A f)_i = sum_j w_ij g(frequency * angle_ij) F^reflected_ij f_j / sum_j w_ij`` with F = diag(1,
    -1). Weights are made symmetric and divided by the density of images, so that the average does not depend on how
    evenly views are spread (Coifman and Lafon).

    Parameters
    ----------
    neighbors : Neighbors
        Of the images among themselves.
    frequency : int
        1 at least.
    n_eigenvectors : int
        At most two for each image.
    weights : ndarray of shape (n, n_neighbors), default=None
        None: all 1.

    Returns
    -------
    values : ndarray of shape (n_eigenvectors,)
        Largest first.
    vectors : ndarray of shape (n, 2, n_eigenvectors)
    """
    n, k = neighbors.indices.shape
    weights = np.ones(n * k) if weights is None else np.maximum(weights.ravel(), _FAINT)
    rows, columns = np.repeat(np.arange(n), k), neighbors.indices.ravel()
    angles, sign = frequency * neighbors.angles.ravel(), np.where(neighbors.reflected.ravel(), -1.0, 1.0)
    affinity = _symmetric(weights, rows, columns, n)
    density = 1 / np.asarray(affinity.sum(axis=1)).ravel()
    degree = density * (affinity @ density)
    scale = np.repeat(density / np.sqrt(degree), 2)
    c, s = weights * np.cos(angles), weights * np.sin(angles)
    matrix = _symmetric(
        np.concatenate([c, -s * sign, s, c * sign]),
        np.concatenate([2 * rows, 2 * rows, 2 * rows + 1, 2 * rows + 1]),
        np.concatenate([2 * columns, 2 * columns + 1, 2 * columns, 2 * columns + 1]),
        2 * n,
    )
    matrix = scipy.sparse.diags(scale) @ matrix @ scipy.sparse.diags(scale)
    if 2 * n <= _DENSE or n_eigenvectors >= 2 * n - 1:
        values, vectors = np.linalg.eigh(matrix.toarray())
    else:
        start = np.random.default_rng(_SEED).standard_normal(2 * n)
        values, vectors = scipy.sparse.linalg.eigsh(matrix, k=n_eigenvectors, which="LA", v0=start, tol=1e-6)
    order = np.argsort(-values)[:n_eigenvectors]
    vectors = vectors[:, order] / np.repeat(np.sqrt(degree), 2)[:, None]
    return values[order], vectors.reshape(n, 2, -1)


def _symmetric(values, rows, columns, size):
    matrix = scipy.sparse.csr_matrix((values, (rows, columns)), shape=(size, size))
    return (matrix + matrix.T) / 2


def poses_from_eigenvectors(vectors):
    """Rotations nearest to the first three eigenvectors at frequency 1, which are rows of the rotations but for noise.

    Parameters
    ----------
    vectors : ndarray of shape (n, 2, n_eigenvectors), three eigenvectors at least

    Returns
    -------
    rotations : ndarray of shape (n, 3, 3), float64
    """
    planes = np.swapaxes(vectors[:, :, :3], 1, 2)
    # Of evenly spread views, both axes of the image plane have the same spread in all directions.
    values, axes = np.linalg.eigh(np.einsum("nab,ncb->ac", planes, planes) / len(planes))
    planes = (axes / np.sqrt(np.maximum(values, 1e-12 * values[-1]))) @ axes.T @ planes
    u, _, vt = np.linalg.svd(planes, full_matrices=False)
    planes = u @ vt
    return np.concatenate([planes, np.cross(planes[:, :, 0], planes[:, :, 1])[:, :, None]], axis=2)


def multi_frequency_features(neighbors, n_frequencies, n_spaces):
    """Images by their values in the leading eigenvectors at several frequencies, of norm 1 at each.

    Parameters
    ----------
    neighbors : Neighbors
    n_frequencies : int
        Frequencies 1, 2, ...
    n_spaces : int
        Eigenspaces of each: of 2 l + 1, 2 l + 3, ... dimensions at frequency l.

    Returns
    -------
    features : list of ndarray of shape (n, n_eigenvectors), complex64
        That turn with the images as coefficients of these angular frequencies do.
    """
    n, features = len(neighbors.indices), []
    for frequency in range(1, n_frequencies + 1):
        wanted = min(n_spaces * (2 * frequency + n_spaces), 2 * n)
        values, vectors = connection_spectrum(neighbors, frequency, wanted)
        vectors = vectors * np.maximum(values, 0)
        part = vectors[:, 0] - 1j * vectors[:, 1]
        part /= np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-30)
        features.append(part.astype(np.complex64))
    return features
