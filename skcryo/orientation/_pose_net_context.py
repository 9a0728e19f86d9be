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
    fitted : ndarray of shape (n, n_components + n_frame), float32
        Inputs of the network.
    groups : list of ndarray of shape (m, n_components + n_frame), float32
        Of fitted images that others are compared with.
    """

    def __init__(self, coefficients, sizes, n_frame, group_size, seed, n_jobs):
        self.coefficients, self.sizes, self.n_frame, self.n_jobs = coefficients, sizes, n_frame, n_jobs
        n = len(coefficients)
        if n_frame:
            parts = complex_parts(coefficients, sizes)
            self.n_neighbors = min(max(5, int(0.45 * np.sqrt(n))), n - 1)
            near = invariant_neighbors(parts, parts, self.n_neighbors, exclude_self=True, n_jobs=n_jobs)
            n_vectors = min(_N_EIGENVECTORS, 2 * n - 1)
            self.frames = np.zeros((n, _N_EIGENVECTORS, 2))
            self.frames[:, :n_vectors] = np.swapaxes(connection_spectrum(near, 1, n_vectors)[1], 1, 2)
        self.fitted = self._with_frames(coefficients, getattr(self, "frames", None))
        order = np.random.default_rng([seed, 5]).permutation(n)
        size = min(group_size, n)
        self.groups = [self.fitted[np.sort(order[k * size : (k + 1) * size])] for k in range(min(_N_GROUPS, n // size))]

    def inputs(self, coefficients):
        """Inputs of the network for images, each by itself.

        Parameters
        ----------
        coefficients : ndarray of shape (n, n_components), float32

        Returns
        -------
        ndarray of shape (n, n_components + n_frame), float32
        """
        if not self.n_frame:
            return coefficients
        near = invariant_neighbors(
            complex_parts(coefficients, self.sizes),
            complex_parts(self.coefficients, self.sizes),
            self.n_neighbors,
            n_jobs=self.n_jobs,
        )
        relative = near.relative_rotations()[:, :, :2, :2]
        return self._with_frames(coefficients, np.einsum("njab,njbc->nac", self.frames[near.indices], relative))

    def _with_frames(self, coefficients, frames):
        if frames is None:
            return coefficients
        frames = frames.reshape(len(frames), -1)
        length = np.maximum(np.linalg.norm(frames, axis=1, keepdims=True), 1e-30)
        return np.concatenate([coefficients, (frames * (np.sqrt(2) / length)).astype(np.float32)], axis=1)
