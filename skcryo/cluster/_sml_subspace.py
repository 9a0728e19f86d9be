"""Expectation-maximisation of statistical manifold learning in the span of a few components of the images."""

import numpy as np

__all__ = ["SubspaceMixture"]

_CG_TOL = 1e-6  # of the right-hand side
_CG_STEPS = 100
_SOLVE_BYTES = 64 * 2**20


class SubspaceMixture:
    """Class means on a manifold within a linear subspace, ``A = basis @ weights @ components.T``.

    Every image enters through ``b = V^T c (Y - c mean)`` and ``H = V^T diag(c^2) V``, computed once: the likelihood of
    class mean z is ``exp(b z - z H z / 2)``, exactly that of the pixels. CTFs couple the components, hence all weights:
    equation 11 becomes one system of n_functions x n_components unknowns, solved by conjugate gradients.

    Parameters
    ----------
    basis : ndarray of shape (n_clusters, n_functions), float64
    components : ndarray of shape (n_coordinates, n_components)
        In units of the noise; they need not be orthonormal.
    variances : ndarray of shape (n_components,)
        Of the class means under the prior with ``alpha = 1``.
    alpha : float
        The prior of equation 8: precision of weights relative to `variances`.
    dtype : dtype
        Of the products over images.

    Attributes
    ----------
    weights : ndarray of shape (n_functions, n_components), float64
    """

    def __init__(self, basis, components, variances, alpha, dtype):
        self.basis, self.components = basis, components
        self.variances, self.alpha, self.dtype = np.asarray(variances, np.float64), float(alpha), dtype
        n = len(variances)
        self._pairs = np.triu_indices(n)
        self._half = np.where(self._pairs[0] == self._pairs[1], 0.5, 1.0)
        self.weights = np.zeros((basis.shape[1], n))
        self._products = None

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
        """Of whitened images: b, the upper triangle of H, and the power of the image relative to the mean."""
        b = filtered @ self.components.astype(self.dtype)
        return b, squares @ self._group_products(coordinates), power.sum(axis=1)

    def _group_products(self, coordinates):
        """Products of pairs of components, summed over each group: (n_groups, n_pairs)."""
        if self._products is None or self._products[0] is not coordinates:
            i, j = self._pairs
            products = np.empty((coordinates.n_groups, len(i)), dtype=self.dtype)
            ends = np.append(coordinates.starts[1:], coordinates.n_coordinates)
            for group, (start, end) in enumerate(zip(coordinates.starts, ends)):
                part = self.components[start:end]
                products[group] = (part.T @ part)[i, j]
            self._products = coordinates, products
        return self._products[1]

    def scorer(self, coordinates):
        """A function of features: log-likelihoods of classes and, the same for all classes, of the rest."""
        means = self.means
        columns = np.ascontiguousarray(means.T.astype(self.dtype))
        i, j = self._pairs
        quadratic = np.ascontiguousarray((means[:, i] * means[:, j] * self._half).T.astype(self.dtype))
        constant = -0.5 * len(self.components) * np.log(2 * np.pi)

        def score(b, curvature, power):
            logits = b @ columns
            logits -= curvature @ quadratic
            return logits, constant - power.astype(np.float64) / 2

        return score

    # --------------------------------------------------------------------------------------- maximisation
    def new_sums(self):
        """Sums over images that :meth:`maximize` needs, of no image."""
        n_clusters = len(self.basis)
        return {"b": np.zeros((n_clusters, len(self.variances))), "H": np.zeros((n_clusters, len(self._half)))}

    def add(self, sums, features, responsibilities, weights):
        """Add images to the sums; responsibilities are multiplied by the images' weights already."""
        b, curvature, _ = features
        sums["b"] += responsibilities.T @ b
        if len(curvature) == 1:
            sums["H"] += np.outer(responsibilities.sum(axis=0, dtype=np.float64), curvature[0])
        else:
            sums["H"] += responsibilities.T @ curvature

    def _squares(self, packed):
        n = len(self.variances)
        full = np.empty((len(packed), n, n))
        i, j = self._pairs
        full[:, i, j] = packed
        full[:, j, i] = packed
        return full

    def maximize(self, sums):
        """Weights by equation 11, the system of all functions and components."""
        curvature = self._squares(sums["H"])
        n_clusters, n_functions = self.basis.shape
        # in these units the prior is alpha times the identity
        unit = np.sqrt(self.variances)
        curvature *= unit[:, None] * unit
        linear = sums["b"] * unit
        if n_clusters == n_functions and np.array_equal(self.basis, np.eye(n_clusters)):
            curvature += self.alpha * np.eye(len(unit))
            self.weights = np.linalg.solve(curvature, linear[:, :, None])[:, :, 0] * unit
        else:
            self.weights = self._solve(curvature, linear, self.weights / unit) * unit

    def _solve(self, curvature, linear, weights):
        """Conjugate gradients, preconditioned by the system in which all classes share the shape of the curvature.

        Without CTFs that is the system itself, and one step is enough.
        """
        shares = np.einsum("kii->k", curvature)
        shares /= max(shares.sum(), 1e-300)
        shape, axes = np.linalg.eigh(curvature.sum(axis=0))
        gram, functions = np.linalg.eigh(self.basis.T @ (shares[:, None] * self.basis))
        inverse = 1 / (np.outer(gram.clip(0), shape.clip(0)) + self.alpha)

        def operator(w):
            return self.basis.T @ np.matmul(curvature, (self.basis @ w)[:, :, None])[:, :, 0] + self.alpha * w

        def precondition(r):
            return functions @ (inverse * (functions.T @ r @ axes)) @ axes.T

        right = self.basis.T @ linear
        residual = right - operator(weights)
        bound = _CG_TOL**2 * (right**2).sum()
        direction, before = np.zeros_like(right), 1.0
        for _ in range(_CG_STEPS):
            if (residual**2).sum() <= bound:
                break
            preconditioned = precondition(residual)
            now = (residual * preconditioned).sum()
            direction = preconditioned + now / before * direction
            applied = operator(direction)
            step = now / (direction * applied).sum()
            weights = weights + step * direction
            residual = residual - step * applied
            before = now
        return weights

    def log_prior(self):
        """Logarithm of equation 8, up to its constant."""
        return -0.5 * self.alpha * float((self.weights**2 / self.variances).sum())

    def reestimate_alpha(self, sums):
        """MacKay's update: effective parameters over the weights' sum of squares, all classes of one curvature."""
        unit = np.sqrt(self.variances)
        curvature = self._squares(sums["H"]) * (unit[:, None] * unit)
        shares = np.einsum("kii->k", curvature)
        shares /= max(shares.sum(), 1e-300)
        shape = np.linalg.eigvalsh(curvature.sum(axis=0)).clip(0)
        gram = np.linalg.eigvalsh(self.basis.T @ (shares[:, None] * self.basis)).clip(0)
        known = np.outer(gram, shape)
        return (known / (known + self.alpha)).sum() / max(-2 * self.log_prior() / self.alpha, 1e-300)

    def posterior_means(self, b, curvature):
        """Coefficients of single images as expected under a Gaussian prior of `variances` (Wiener filter)."""
        n, unit = len(self.variances), np.sqrt(self.variances)
        out = np.empty((len(b), n))
        size = max(1, _SOLVE_BYTES // (8 * n * n))
        for start in range(0, len(b), size):
            part = slice(start, start + size)
            packed = curvature[part] if len(curvature) > 1 else curvature
            system = self._squares(packed.astype(np.float64)) * (unit[:, None] * unit) + np.eye(n)
            out[part] = np.linalg.solve(system, (b[part] * unit)[:, :, None])[:, :, 0] * unit
        return out
