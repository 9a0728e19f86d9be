"""Equations 8 to 13 of statistical manifold learning as the paper writes them: slow, in double precision, obvious.

Images are rows Y of real coordinates, CTFs rows c of as many factors, responsibilities are (n_images, n_nodes),
precisions of the noise belong to coordinates. What the fits use is held to these by tests.
"""

import numpy as np

__all__ = ["averages", "log_posterior", "noise_variances", "responsibilities", "weights"]


def _log_densities(Y, c, means, precision):
    """Logarithm of equation 4: (n_images, n_nodes)."""
    found = np.empty((len(Y), len(means)))
    for i in range(len(Y)):
        for k in range(len(means)):
            deviations = Y[i] - c[i] * means[k]
            found[i, k] = 0.5 * np.sum(np.log(precision / (2 * np.pi)) - precision * deviations**2)
    return found


def responsibilities(Y, c, means, precision):
    """Equation 9: probability of each node given each image."""
    densities = _log_densities(Y, c, means, precision)
    densities = np.exp(densities - densities.max(axis=1, keepdims=True))
    return densities / densities.sum(axis=1, keepdims=True)


def log_posterior(Y, c, basis, W, precision, prior):
    """Equation 7 with the prior of equation 8, whose precision may depend on the coordinate; without its constant."""
    densities = _log_densities(Y, c, basis @ W, precision)
    top = densities.max(axis=1)
    likelihoods = top + np.log(np.exp(densities - top[:, None]).mean(axis=1))
    return likelihoods.sum() - 0.5 * np.sum(prior * W**2)


def weights(Y, c, R, basis, precision, prior):
    """Equation 11, solved coordinate by coordinate: (n_functions, n_coordinates)."""
    W = np.empty((basis.shape[1], Y.shape[1]))
    for j in range(Y.shape[1]):
        seen = precision[j] * R.T @ c[:, j] ** 2
        system = basis.T @ np.diag(seen) @ basis + prior[j] * np.eye(basis.shape[1])
        W[:, j] = np.linalg.solve(system, precision[j] * basis.T @ R.T @ (c[:, j] * Y[:, j]))
    return W


def noise_variances(Y, c, R, means, rings):
    """Equation 12, with one value a Fourier ring (of one a pixel and image there are too many to be known)."""
    squares = np.zeros(Y.shape[1])
    for k in range(len(means)):
        squares += R[:, k] @ (Y - c * means[k]) ** 2
    return np.bincount(rings, squares) / (R.sum() * np.bincount(rings))


def averages(Y, c, R, precision, prior):
    """Equation 13: class averages (n_nodes, n_coordinates)."""
    return precision * (R.T @ (c * Y)) / (precision * (R.T @ c**2) + prior)
