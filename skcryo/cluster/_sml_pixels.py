"""Expectation-maximisation of statistical manifold learning on all coordinates of the images."""

import numpy as np

from ._sml_expectation import Tables, group_energies, join_terms
from ._sml_solve import conjugate_gradients

__all__ = ["PixelMixture"]


class PixelMixture:
    """Class means on a manifold, ``A = basis @ weights``, one row of weights a basis function.

    All in coordinates relative to the mean image and in units of the noise that the signal space found; `precision`
    is what equation 12 changes of it.

    Parameters
    ----------
    basis : ndarray of shape (n_clusters, n_functions), float64
        With orthogonal columns.
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
    n_kept : int, default=None
        The first coordinates, in whole rings, in which class means may differ; in all others they are the mean. None:
        all.

    Attributes
    ----------
    weights : ndarray of shape (n_functions, n_kept), float64
    precision : ndarray of shape (n_rings,), float64
    """

    def __init__(self, basis, coordinates, prior_variances, alpha, noise_bounds, dtype, modes=None, n_kept=None):
        self.basis, self.coordinates = basis, coordinates
        self.prior_variances = np.asarray(prior_variances, np.float64)
        self.alpha, self.noise_bounds, self.dtype, self.modes = float(alpha), noise_bounds, dtype, modes
        self.precision = np.ones(coordinates.n_rings)
        self.n_kept = coordinates.n_coordinates if n_kept is None else n_kept
        self.weights = np.zeros((basis.shape[1], self.n_kept))

    @property
    def means(self):
        """Class means (n_clusters, n_kept)."""
        return self.basis @ self.weights

    def start(self, means):
        """Weights of which the class means are nearest to those given."""
        gram = self.basis.T @ self.basis + 1e-3 * np.eye(self.basis.shape[1])
        self.weights = np.linalg.solve(gram, self.basis.T @ means[:, : self.n_kept])

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
        return join_terms(filtered[:, : self.n_kept], squares), power

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
        precision, means = self.precision[self.coordinates.rings[: self.n_kept]], self.means
        energies = group_energies(means * np.sqrt(precision), coordinates, modes)
        constant = (self.coordinates.ring_sizes * np.log(self.precision / (2 * np.pi))).sum() / 2
        return Tables.of(means * precision, energies, self.precision / 2, constant, self.dtype)

    # --------------------------------------------------------------------------------------- maximisation
    def maximize(self, sums):
        """Weights by equation 11, then the noise by equation 12.

        Given the responsibilities, each coordinate has the system
        ``(beta basis^T diag(sum_i R c^2) basis + alpha / variance) W = beta basis^T sum_i R c Y``. They are solved side
        by side by conjugate gradients, preconditioned by what they are if all classes are seen as much.
        """
        linear, squares = self._split(sums)
        beta = self.precision[self.coordinates.rings[: self.n_kept]]
        prior = self.alpha / self.prior_variances[self.coordinates.rings[: self.n_kept]]
        share, right = beta * squares, beta * (self.basis.T @ linear)
        if self.basis.shape[0] == self.basis.shape[1] and np.array_equal(self.basis, np.eye(len(self.basis))):
            self.weights = right / (share + prior)
        else:
            inverse = 1 / ((self.basis**2).sum(axis=0)[:, None] * share.mean(axis=0) + prior)
            self.weights = conjugate_gradients(
                lambda w: self.basis.T @ (share * (self.basis @ w)) + prior * w,
                lambda r: inverse * r,
                right,
                self.weights,
                axis=0,
            )
        self._update_noise(sums, linear, squares)

    def _split(self, sums):
        """sum_i R c Y and sum_i R c^2 of each kept coordinate, (n_clusters, n_kept)."""
        linear, squares = np.split(sums["terms"], [self.n_kept], axis=1)
        if self.modes is not None:
            squares = (squares @ self.modes.T).clip(0)
        return linear, np.take(squares, self.coordinates.groups[: self.n_kept], axis=1)

    def _update_noise(self, sums, linear, squares):
        c, means = self.coordinates, self.means
        explained = (means * (2 * linear - means * squares)).sum(axis=0)
        left = sums["power"] - np.bincount(c.rings[: self.n_kept], explained, minlength=c.n_rings)
        variances = np.clip(left / (sums["total"] * c.ring_sizes), *self.noise_bounds)
        self.precision = 1 / variances

    def log_prior(self):
        """Logarithm of equation 8, up to its constant."""
        prior = self.alpha / self.prior_variances[self.coordinates.rings[: self.n_kept]]
        return -0.5 * float((self.weights**2 @ prior).sum())

    def reestimate_alpha(self, sums):
        """MacKay's update: effective parameters over the weights' sum of squares."""
        rings, squares = self.coordinates.rings[: self.n_kept], self._split(sums)[1]
        beta, prior = self.precision[rings], self.alpha / self.prior_variances[rings]
        effective = 0.0
        for first in np.flatnonzero(np.diff(self.coordinates.groups[: self.n_kept], prepend=-1)):
            share = beta[first] * squares[:, first]
            curvature = np.linalg.eigvalsh(self.basis.T @ (share[:, None] * self.basis)).clip(0)
            n_alike = np.count_nonzero(self.coordinates.groups == self.coordinates.groups[first])
            effective += n_alike * (curvature / (curvature + prior[first])).sum()
        return effective / max(-2 * self.log_prior() / self.alpha, 1e-300)
