"""What networks that look at several images know of the fitted ones: inputs, and who is whose neighbour."""

import numpy as np

from ..decomposition._invariant_neighbors import invariant_neighbors
from ._connection_graph import connection_spectrum

__all__ = ["FittedContext", "complex_parts"]

_N_GROUPS = 4  # of fitted images, that answers are averaged over
_N_EIGENVECTORS = 3


def complex_parts(coefficients, sizes):
    """Coefficients (n, n_components) as a list by angular frequency, complex64."""
    parts, start = [], 0
    for n, size in enumerate(sizes):
        real = coefficients[:, start : start + size]
        imaginary = coefficients[:, start + size : start + 2 * size] if n else 0
        parts.append((real + 1j * imaginary).astype(np.complex64))
        start += size * (1 + (n > 0))
    return parts


class FittedContext:
    """The images that were fitted, as others see them.

    A graph of images alike gives three eigenvectors (those of :class:`skcryo.orientation.VectorDiffusionMaps` with
    ``n_frequencies=1``, of the network's own inputs). Their values at two images tell whether these show one view, and
    how they are turned. At a new image they are the mean over its neighbours, turned and mirrored as these are.

    Parameters
    ----------
    coefficients : ndarray of shape (n, n_components), float32
        Of :class:`skcryo.orientation._pose_net_inputs.SteerableInputs`.
    sizes : list of int
        Number of components of each angular frequency.
    n_frame : int
        Of the network: 0 if it wants no eigenvectors.
    group_size : int
        Images of a batch of training.
    seed : int
        Of the groups.
    n_jobs : int

    Attributes
    ----------
    frames : ndarray of shape (n, n_frame), float32
        Values of the eigenvectors.
    rows : ndarray of shape (n_groups, m)
        Of fitted images that others are compared with.
    """

    def __init__(self, coefficients, sizes, n_frame, group_size, seed, n_jobs):
        n, frames = len(coefficients), np.zeros((len(coefficients), 0), dtype=np.float32)
        if n_frame:
            parts, k = complex_parts(coefficients, sizes), _n_neighbors(n)
            near = invariant_neighbors(parts, parts, k, exclude_self=True, n_jobs=n_jobs)
            n_vectors = min(_N_EIGENVECTORS, 2 * n - 1)
            vectors = np.zeros((n, _N_EIGENVECTORS, 2))
            vectors[:, :n_vectors] = np.swapaxes(connection_spectrum(near, 1, n_vectors)[1], 1, 2)
            frames = _unit(vectors)
        size = min(group_size, n)
        order = np.random.default_rng([seed, 5]).permutation(n)[: size * min(_N_GROUPS, n // size)]
        self._set(coefficients, frames, np.sort(order.reshape(-1, size), axis=1), sizes, n_jobs)

    def _set(self, coefficients, frames, rows, sizes, n_jobs):
        self.coefficients, self.frames, self.rows = coefficients, frames, rows
        self.sizes, self.n_jobs = sizes, n_jobs

    @classmethod
    def restored(cls, coefficients, frames, rows, sizes, n_jobs):
        """The same again, from its attributes."""
        context = cls.__new__(cls)
        context._set(coefficients, frames, rows, sizes, n_jobs)
        return context

    @property
    def fitted(self):
        """Inputs of the network, of shape (n, n_components + n_frame)."""
        return np.concatenate([self.coefficients, self.frames], axis=1)

    @property
    def groups(self):
        """Of fitted images that others are compared with, list of ndarray of shape (m, n_components + n_frame)."""
        return [np.concatenate([self.coefficients[rows], self.frames[rows]], axis=1) for rows in self.rows]

    def inputs(self, coefficients):
        """Inputs of the network for images, each by itself.

        Parameters
        ----------
        coefficients : ndarray of shape (n, n_components), float32

        Returns
        -------
        ndarray of shape (n, n_components + n_frame), float32
        """
        if not self.frames.shape[1]:
            return coefficients
        near = invariant_neighbors(
            complex_parts(coefficients, self.sizes),
            complex_parts(self.coefficients, self.sizes),
            _n_neighbors(len(self.coefficients)),
            n_jobs=self.n_jobs,
        )
        frames = self.frames.reshape(-1, _N_EIGENVECTORS, 2)[near.indices]
        turned = np.einsum("njab,njbc->nac", frames, near.relative_rotations()[:, :, :2, :2])
        return np.concatenate([coefficients, _unit(turned)], axis=1)


def _n_neighbors(n):
    """As :class:`skcryo.orientation.VectorDiffusionMaps` takes them."""
    return min(max(5, int(0.45 * np.sqrt(n))), n - 1)


def _unit(vectors):
    """Values (n, 3, 2) as (n, 6), of square norm 2 as those of rotations have it."""
    flat = vectors.reshape(len(vectors), -1)
    length = np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-30)
    return (flat * (np.sqrt(2) / length)).astype(np.float32)
