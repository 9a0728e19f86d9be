"""Expectation-maximisation of statistical manifold learning on all coordinates of the images."""

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from ._sml_data import ring_sums
from ._sml_expectation import Tables

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
    modes : ndarray of shape (n_groups, n_modes), default=None
        In which the squares of the CTFs of the images of a fit are told. None: by group.

    Attributes
    ----------
    weights : ndarray of shape (n_functions, n_coordinates), float64
    precision : ndarray of shape (n_rings,), float64
    """

    def __init__(self, basis, coordinates, prior_variances, alpha, noise_bounds, dtype, modes=None):
        self.basis, self.coordinates = basis, coordinates
        self.prior_variances = np.asarray(prior_variances, np.float64)
        self.alpha, self.noise_bounds, self.dtype, self.modes = float(alpha), noise_bounds, dtype, modes
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

    def tables(self, coordinates, modes=None):
        """What multiplies the features of images in `coordinates`: see :class:`Tables`.

        Parameters
        ----------
        coordinates : FourierCoordinates or PixelCoordinates
        modes : ndarray of shape (n_groups, n_modes), default=None
            In which the squares of the images' CTFs are told. None: by group.

        Returns
        -------
        Tables
        """
        precision, means = self.precision[self.coordinates.rings], self.means
        energies = np.add.reduceat(means**2 * precision, coordinates.starts, axis=1).T / 2
        if modes is not None:
            energies = modes.T @ energies
        constant = (self.coordinates.ring_sizes * np.log(self.precision / (2 * np.pi))).sum() / 2
        columns = (means * precision).T
        return Tables(
            np.ascontiguousarray(columns.astype(self.dtype)), energies.astype(self.dtype), self.precision / 2, constant
        )

    # --------------------------------------------------------------------------------------- maximisation
    def maximize(self, sums):
        """Weights by equation 11, then the noise by equation 12.

        Given the responsibilities, the coordinates of a group share the system
        ``(beta basis^T diag(sum_i R c^2) basis + alpha / variance) W = beta basis^T sum_i R c Y``.
        """
        c, squares = self.coordinates, self._by_group(sums["squares"])
        right = self.basis.T @ sums["linear"]
        identity = np.eye(self.basis.shape[1])
        independent = self.basis.shape[0] == self.basis.shape[1] and np.array_equal(self.basis, identity)
        for group, start in enumerate(c.starts):
            inside = slice(start, c.starts[group + 1] if group + 1 < c.n_groups else c.n_coordinates)
            ring = c.rings[start]
            beta, prior = self.precision[ring], self.alpha / self.prior_variances[ring]
            share = beta * squares[:, group]
            if independent:
                self.weights[:, inside] = beta * right[:, inside] / (share + prior)[:, None]
            else:
                system = self.basis.T @ (share[:, None] * self.basis) + prior * identity
                self.weights[:, inside] = cho_solve(cho_factor(system), beta * right[:, inside])
        self._update_noise(sums, squares)

    def _by_group(self, squares):
        return squares if self.modes is None else (squares @ self.modes.T).clip(0)

    def _update_noise(self, sums, squares):
        c, means = self.coordinates, self.means
        explained = (means * (2 * sums["linear"] - means * squares[:, c.groups])).sum(axis=0)
        left = sums["power"] - ring_sums(explained, c)
        variances = np.clip(left / (sums["total"] * c.ring_sizes), *self.noise_bounds)
        self.precision = 1 / variances

    def log_prior(self):
        """Logarithm of equation 8, up to its constant."""
        prior = self.alpha / self.prior_variances[self.coordinates.rings]
        return -0.5 * float((self.weights**2 @ prior).sum())

    def reestimate_alpha(self, sums):
        """MacKay's update: effective parameters over the weights' sum of squares."""
        c, squares = self.coordinates, self._by_group(sums["squares"])
        effective = 0.0
        for group in range(c.n_groups):
            ring = c.rings[c.starts[group]]
            share = self.precision[ring] * squares[:, group]
            curvature = np.linalg.eigvalsh(self.basis.T @ (share[:, None] * self.basis)).clip(0)
            prior = self.alpha / self.prior_variances[ring]
            effective += np.count_nonzero(c.groups == group) * (curvature / (curvature + prior)).sum()
        return effective / max(-2 * self.log_prior() / self.alpha, 1e-300)
