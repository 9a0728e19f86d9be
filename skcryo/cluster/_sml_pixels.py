"""Expectation-maximisation of statistical manifold learning on all coordinates of the images."""

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from ._sml_data import ring_sums

__all__ = ["PixelMixture"]


class PixelMixture:
    """Class means on a manifold, ``A = basis @ weights``, one row of weights a basis function.

    All in coordinates relative to the mean image and in units of the noise that the signal space found; `precision`
    is what equation 12 changes of it.

    Parameters
    ----------
    basis : ndarray of shape (n_clusters, n_functions), float64
    coordinates : FourierCoordinates or PixelCoordinates
    prior_variances : ndarray of shape (n_rings,)
        Of the class means under the prior with ``alpha = 1``.
    alpha : float
        The prior of equation 8: precision of weights relative to `prior_variances`.
    noise_bounds : tuple of two floats
        Within which equation 12 may change the noise's variance.
    dtype : dtype
        Of the products over images.

    Attributes
    ----------
    weights : ndarray of shape (n_functions, n_coordinates), float64
    precision : ndarray of shape (n_rings,), float64
    """

    def __init__(self, basis, coordinates, prior_variances, alpha, noise_bounds, dtype):
        self.basis, self.coordinates = basis, coordinates
        self.prior_variances = np.asarray(prior_variances, np.float64)
        self.alpha, self.noise_bounds, self.dtype = float(alpha), noise_bounds, dtype
        self.precision = np.ones(coordinates.n_rings)
        self.weights = np.zeros((basis.shape[1], coordinates.n_coordinates))

    @property
    def means(self):
        """Class means (n_clusters, n_coordinates)."""
        return self.basis @ self.weights

    def start(self, means):
        """Weights of which the class means are nearest to those given."""
        gram = self.basis.T @ self.basis + 1e-3 * np.eye(self.basis.shape[1])
        self.weights = np.linalg.solve(gram, self.basis.T @ means)

    def state(self):
        """What a checkpoint keeps."""
        return {"weights": self.weights, "precision": self.precision, "alpha": np.array(self.alpha)}

    def restore(self, state):
        """Take over what :meth:`state` gave."""
        self.weights, self.precision = state["weights"], state["precision"]
        self.alpha = float(state["alpha"])

    # ---------------------------------------------------------------------------------------- expectation
    def features(self, filtered, squares, power, coordinates):
        """Of whitened images, what an iteration needs."""
        return filtered, squares, power

    def scorer(self, coordinates):
        """A function of features: log-likelihoods of classes and, the same for all classes, of the rest.

        Returns
        -------
        score : callable
            Of (filtered, squares, power), ``(logits (n, n_clusters), base (n,))``: the logarithm of equation 4 is their
            sum, per unit of the whitened coordinates. The logits are two matrix products.
        """
        precision = self.precision[self.coordinates.rings]
        means = self.means
        weighted = np.ascontiguousarray((means * precision).T.astype(self.dtype))
        energies = np.add.reduceat(means**2 * precision, coordinates.starts, axis=1) / 2
        energies = np.ascontiguousarray(energies.T.astype(self.dtype))
        sizes = self.coordinates.ring_sizes
        constant = (sizes * np.log(self.precision / (2 * np.pi))).sum() / 2

        def score(filtered, squares, power):
            logits = filtered @ weighted
            logits -= squares @ energies
            return logits, constant - power.astype(np.float64) @ self.precision / 2

        return score

    # --------------------------------------------------------------------------------------- maximisation
    def new_sums(self):
        """Sums over images that :meth:`maximize` needs, of no image."""
        n_clusters, c = len(self.basis), self.coordinates
        return {
            "filtered": np.zeros((n_clusters, c.n_coordinates)),
            "squares": np.zeros((n_clusters, c.n_groups)),
            "power": np.zeros(c.n_rings),
            "total": 0.0,
        }

    def add(self, sums, features, responsibilities, weights):
        """Add images to the sums; responsibilities are multiplied by the images' weights already."""
        filtered, squares, power = features
        sums["filtered"] += responsibilities.T @ filtered
        if len(squares) == 1:
            sums["squares"] += np.outer(responsibilities.sum(axis=0, dtype=np.float64), squares[0])
        else:
            sums["squares"] += responsibilities.T @ squares
        sums["power"] += weights @ power.astype(np.float64)
        sums["total"] += float(weights.sum())

    def maximize(self, sums):
        """Weights by equation 11, then the noise by equation 12.

        Given the responsibilities, the coordinates of a group share the system
        ``(beta basis^T diag(sum_i R c^2) basis + alpha / variance) W = beta basis^T sum_i R c Y``.
        """
        c = self.coordinates
        right = self.basis.T @ sums["filtered"]
        identity = np.eye(self.basis.shape[1])
        independent = self.basis.shape[0] == self.basis.shape[1] and np.array_equal(self.basis, identity)
        for group, start in enumerate(c.starts):
            inside = slice(start, c.starts[group + 1] if group + 1 < c.n_groups else c.n_coordinates)
            ring = c.rings[start]
            beta, prior = self.precision[ring], self.alpha / self.prior_variances[ring]
            share = beta * sums["squares"][:, group]
            if independent:
                self.weights[:, inside] = beta * right[:, inside] / (share + prior)[:, None]
            else:
                system = self.basis.T @ (share[:, None] * self.basis) + prior * identity
                self.weights[:, inside] = cho_solve(cho_factor(system), beta * right[:, inside])
        self._update_noise(sums)

    def _update_noise(self, sums):
        c, means = self.coordinates, self.means
        explained = (means * (2 * sums["filtered"] - means * sums["squares"][:, c.groups])).sum(axis=0)
        left = sums["power"] - ring_sums(explained, c)
        variances = np.clip(left / (sums["total"] * c.ring_sizes), *self.noise_bounds)
        self.precision = 1 / variances

    def log_prior(self):
        """Logarithm of equation 8, up to its constant."""
        prior = self.alpha / self.prior_variances[self.coordinates.rings]
        return -0.5 * float((self.weights**2 @ prior).sum())

    def reestimate_alpha(self, sums):
        """MacKay's update: effective parameters over the weights' sum of squares."""
        c = self.coordinates
        effective = 0.0
        for group in range(c.n_groups):
            ring = c.rings[c.starts[group]]
            share = self.precision[ring] * sums["squares"][:, group]
            curvature = np.linalg.eigvalsh(self.basis.T @ (share[:, None] * self.basis)).clip(0)
            prior = self.alpha / self.prior_variances[ring]
            effective += np.count_nonzero(c.groups == group) * (curvature / (curvature + prior)).sum()
        return effective / max(-2 * self.log_prior() / self.alpha, 1e-300)
