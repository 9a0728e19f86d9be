"""Expectation-maximisation of statistical manifold learning in the span of a few components of the images."""

import numpy as np

from ._sml_expectation import Tables, group_energies, join_terms
from ._sml_solve import conjugate_gradients

__all__ = ["SubspaceMixture"]

_SOLVE_BYTES = 64 * 2**20


class SubspaceMixture:
    """Class means on a manifold within a linear subspace, ``A = basis @ weights @ components.T``.

    Every image enters through ``b = V^T c (Y - c mean)`` and ``H = V^T diag(c^2) V``: the likelihood of class mean z is
    ``exp(b z - z H z / 2)``, exactly that of the pixels. H is linear in the squares of the image's CTF, of which a few
    modes tell all; it is never made for single images. CTFs couple the components, hence all weights: equation 11
    becomes one system of n_functions x n_components unknowns, solved by conjugate gradients.

    Parameters
    ----------
    basis : ndarray of shape (n_clusters, n_functions), float64
        With orthogonal columns.
    components : ndarray of shape (n_coordinates, n_components)
        Zero beyond the last ring that shows signal. In units of the noise; they need not be orthonormal.
    variances : ndarray of shape (n_components,)
        Of the class means under the prior with ``alpha = 1``.
    alpha : float
        The prior of equation 8: precision of weights relative to `variances`.
    dtype : dtype
        Of the products over images.
    coordinates : FourierCoordinates
        Of the images of a fit.
    modes : ndarray of shape (n_groups, n_modes), default=None
        In which the squares of the CTFs of these images are told. None: by group.

    Attributes
    ----------
    weights : ndarray of shape (n_functions, n_components), float64
    """

    def __init__(self, basis, components, variances, alpha, dtype, coordinates, modes=None):
        self.basis, self.components = basis, components[: np.flatnonzero(components.any(axis=1))[-1] + 1]
        self.n_coordinates = len(components)
        self.variances, self.alpha, self.dtype = np.asarray(variances, np.float64), float(alpha), dtype
        n = len(variances)
        self._pairs = np.triu_indices(n)
        self._products = self.products(coordinates, modes)
        self.weights = np.zeros((basis.shape[1], n))

    @property
    def means(self):
        """Class means (n_clusters, n_components)."""
        return self.basis @ self.weights

    def start(self, means):
        """Weights of which the class means are nearest to those given."""
        gram = self.basis.T @ self.basis + 1e-3 * np.eye(self.basis.shape[1])
        self.weights = np.linalg.solve(gram, self.basis.T @ means)

    def state(self):
        """What a checkpoint keeps."""
        return {"weights": self.weights, "alpha": np.array(self.alpha)}

    def restore(self, state):
        """Take over what :meth:`state` gave."""
        self.weights, self.alpha = state["weights"], float(state["alpha"])

    # ---------------------------------------------------------------------------------------- expectation
    def features(self, filtered, squares, power, coordinates):
        """Of whitened images: b with the squares of their CTFs, and the power of the image relative to the mean."""
        columns = self.components.astype(self.dtype)
        return join_terms(filtered[:, : len(columns)] @ columns, squares), power.sum(axis=1, keepdims=True)

    def tables(self, coordinates, modes=None):
        """What multiplies the features of images: as :meth:`PixelMixture.tables`."""
        means = self.means
        energies = group_energies(means @ self.components.T, coordinates, modes)
        constant = -0.5 * self.n_coordinates * np.log(2 * np.pi)
        return Tables.of(means, energies, np.array([0.5]), constant, self.dtype)

    def products(self, coordinates, modes=None):
        """Products of pairs of components, summed over groups or modes: what makes H of squares of CTFs.

        Returns
        -------
        ndarray of shape (n_squares, n_pairs), float64
            Of the pairs of the upper triangle.
        """
        i, j = self._pairs
        products = np.zeros((coordinates.n_groups, len(i)))
        ends = np.append(coordinates.starts[1:], coordinates.n_coordinates)
        for group, (start, end) in enumerate(zip(coordinates.starts, ends)):
            part = self.components[start:end]
            products[group] = (part.T @ part)[i, j]
        return products if modes is None else modes.T @ products

    # --------------------------------------------------------------------------------------- maximisation
    def _curvature(self, squares):
        """H, or its sum, of the squares of CTFs: (n, n_components, n_components)."""
        n, packed = len(self.variances), squares @ self._products
        full = np.empty((len(packed), n, n))
        i, j = self._pairs
        full[:, i, j] = packed
        full[:, j, i] = packed
        return full

    def maximize(self, sums):
        """Weights by equation 11, the system of all functions and components."""
        linear, squares = np.split(sums["terms"], [len(self.variances)], axis=1)
        curvature = self._curvature(squares)
        n_clusters, n_functions = self.basis.shape
        # in these units the prior is alpha times the identity
        unit = np.sqrt(self.variances)
        curvature *= unit[:, None] * unit
        linear = linear * unit
        if n_clusters == n_functions and np.array_equal(self.basis, np.eye(n_clusters)):
            curvature += self.alpha * np.eye(len(unit))
            self.weights = np.linalg.solve(curvature, linear[:, :, None])[:, :, 0] * unit
        else:
            self.weights = self._solve(curvature, linear, self.weights / unit) * unit

    def _solve(self, curvature, linear, weights):
        """Conjugate gradients, preconditioned by the system in which all classes have the same curvature."""
        shape, axes = np.linalg.eigh(curvature.mean(axis=0))
        inverse = 1 / (np.outer((self.basis**2).sum(axis=0), shape.clip(0)) + self.alpha)

        def operator(w):
            return self.basis.T @ np.matmul(curvature, (self.basis @ w)[:, :, None])[:, :, 0] + self.alpha * w

        def precondition(r):
            return (inverse * (r @ axes)) @ axes.T

        return conjugate_gradients(operator, precondition, self.basis.T @ linear, weights)

    def log_prior(self):
        """Logarithm of equation 8, up to its constant."""
        return -0.5 * self.alpha * float((self.weights**2 / self.variances).sum())

    def reestimate_alpha(self, sums):
        """MacKay's update: effective parameters over the weights' sum of squares, all classes of one curvature."""
        unit = np.sqrt(self.variances)
        curvature = self._curvature(sums["terms"][:, len(unit) :]) * (unit[:, None] * unit)
        shares = np.einsum("kii->k", curvature)
        shares /= max(shares.sum(), 1e-300)
        shape = np.linalg.eigvalsh(curvature.sum(axis=0)).clip(0)
        gram = np.linalg.eigvalsh(self.basis.T @ (shares[:, None] * self.basis)).clip(0)
        known = np.outer(gram, shape)
        return (known / (known + self.alpha)).sum() / max(-2 * self.log_prior() / self.alpha, 1e-300)

    def posterior_means(self, terms):
        """Coefficients of single images as expected under a Gaussian prior of `variances` (Wiener filter)."""
        n, unit = len(self.variances), np.sqrt(self.variances)
        out = np.empty((len(terms), n))
        size = max(1, _SOLVE_BYTES // (8 * n * n))
        for start in range(0, len(terms), size):
            b, squares = np.split(terms[start : start + size].astype(np.float64), [n], axis=1)
            system = self._curvature(squares) * (unit[:, None] * unit) + np.eye(n)
            out[start : start + size] = np.linalg.solve(system, (b * unit)[:, :, None])[:, :, 0] * unit
        return out
