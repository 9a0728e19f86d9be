"""The expectation step of statistical manifold learning: two matrix products and an exponential, chunk by chunk."""

from dataclasses import dataclass

import joblib
import numpy as np

from .._torch import full_precision, import_torch, to_numpy
from ..alignment._polar_search import one_blas_thread

__all__ = ["Tables", "TorchExpectation", "expect", "group_energies", "posteriors"]

_ON_DEVICE = 2**32  # bytes of features that stay there from one iteration to the next


@dataclass
class Tables:
    """Class means as what multiplies the features (linear, squares, power) of images.

    The logarithm of equation 4 is ``linear @ columns - squares @ energies + constant - power @ precision``.

    Attributes
    ----------
    columns : ndarray of shape (n_linear, n_clusters)
    energies : ndarray of shape (n_squares, n_clusters)
    precision : ndarray of shape (n_power,), float64
    constant : float
    """

    columns: np.ndarray
    energies: np.ndarray
    precision: np.ndarray
    constant: float


def group_energies(means, coordinates, modes=None):
    """Half the squares of class means, summed over the groups that share a CTF, as :class:`Tables` want them.

    Parameters
    ----------
    means : ndarray of shape (n_clusters, n)
        The first n coordinates, in whole rings; the others are zero.
    coordinates : FourierCoordinates or PixelCoordinates
    modes : ndarray of shape (n_groups, n_modes), default=None

    Returns
    -------
    energies : ndarray of shape (n_groups, n_clusters) or (n_modes, n_clusters)
    """
    starts = coordinates.starts[coordinates.starts < means.shape[1]]
    energies = np.add.reduceat(means**2, starts, axis=1).T / 2
    if modes is not None:
        return modes[: len(starts)].T @ energies
    return np.concatenate([energies, np.zeros((coordinates.n_groups - len(starts), len(means)))])


def posteriors(tables, linear, squares, power):
    """Responsibilities, equation 9, and log-likelihoods, the logarithm of equation 6, of some images.

    Parameters
    ----------
    tables : Tables
    linear : ndarray of shape (n, n_linear)
    squares : ndarray of shape (n or 1, n_squares)
    power : ndarray of shape (n, n_power)

    Returns
    -------
    responsibilities : ndarray of shape (n, n_clusters)
    log_likelihoods : ndarray of shape (n,), float64
    """
    logits = linear @ tables.columns
    logits -= squares @ tables.energies
    top = logits.max(axis=1, keepdims=True)
    logits -= top
    np.exp(logits, out=logits)
    sums = logits.sum(axis=1, keepdims=True)
    logits /= sums
    base = tables.constant - power.astype(np.float64) @ tables.precision
    return logits, base + top[:, 0] + np.log(sums[:, 0]) - np.log(logits.shape[1])


def _sums_of(tables, features, weights):
    """What some images add to the sums over images, and to the log-likelihood."""
    linear, squares, power = features
    found, likelihoods = posteriors(tables, linear, squares, power)
    found *= weights[:, None].astype(found.dtype)
    return {
        "linear": found.T @ linear,
        "squares": _products_of(found, squares),
        "power": weights @ power.astype(np.float64),
        "total": weights.sum(),
        "log_likelihood": weights @ likelihoods,
    }


def _products_of(responsibilities, squares):
    if len(squares) == len(responsibilities):
        return responsibilities.T @ squares
    return np.outer(responsibilities.sum(axis=0, dtype=np.float64), squares[0])


def expect(tables, features, weights, n_jobs=1):
    """Sums over all images that the maximisation needs.

    Chunks of images go to threads, of which each takes one BLAS thread, and are added in their order: the result does
    not depend on how many there are.

    Parameters
    ----------
    tables : Tables
    features : iterable of (slice, (linear, squares, power))
    weights : ndarray of shape (n_images,), float64
    n_jobs : int, default=1

    Returns
    -------
    sums : dict
        "linear" (n_clusters, n_linear) and "squares" (n_clusters, n_squares), weighted by responsibilities; "power"
        (n_power,), "total" and "log_likelihood" (floats). float64.
    """
    sums, batch = {}, []
    with one_blas_thread(), joblib.Parallel(n_jobs=n_jobs, require="sharedmem") as parallel:

        def finish():
            for part in parallel(joblib.delayed(_sums_of)(tables, chunk, weights[where]) for where, chunk in batch):
                _add(sums, part)
            batch.clear()

        for one in features:
            batch.append(one)
            if len(batch) == 4 * n_jobs:
                finish()
        if batch:
            finish()
    return sums


def _add(sums, part):
    for name, value in part.items():
        if name in sums:
            sums[name] += value
        else:
            sums[name] = np.array(value, dtype=np.float64)


class TorchExpectation:
    """:func:`expect` by torch: the same sums, up to rounding. Features stay on the device between iterations.

    Parameters
    ----------
    device : torch.device
    caller : str
        Whom an error names.
    """

    def __init__(self, device, caller="SMLClustering"):
        self.torch, self.device = import_torch(caller), device
        self._kept, self._size = {}, 0

    def __call__(self, tables, features, weights):
        """As :func:`expect`."""
        torch, sums = self.torch, {}
        columns, energies = (self._tensor(table) for table in (tables.columns, tables.energies))
        with full_precision(torch, self.device):
            for where, (linear, squares, power) in features:
                on_device = self._keep(where, linear, squares, weights)
                part = self._sums_of(columns, energies, *on_device)
                w = weights[where]
                base = tables.constant - power.astype(np.float64) @ tables.precision
                part["power"], part["total"] = w @ power.astype(np.float64), w.sum()
                part["log_likelihood"] += w @ (base - np.log(len(tables.columns.T)))
                _add(sums, part)
        return sums

    def _keep(self, where, linear, squares, weights):
        """Tensors of a chunk, kept as long as its arrays are the same."""
        known = self._kept.get(where.start)
        if known is not None and known[0] is linear:
            return known[1]
        tensors = [self._tensor(part) for part in (linear, squares, weights[where].astype(linear.dtype))]
        size = sum(part.nbytes for part in (linear, squares))
        if known is None and self._size + size <= _ON_DEVICE:
            self._kept[where.start] = (linear, tensors)
            self._size += size
        return tensors

    def _tensor(self, array):
        return self.torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def _sums_of(self, columns, energies, linear, squares, weights):
        torch = self.torch
        logits = linear @ columns - squares @ energies
        top = torch.logsumexp(logits, dim=1)
        found = torch.softmax(logits, dim=1) * weights[:, None]
        products = found.T @ squares if len(squares) == len(found) else torch.outer(found.sum(dim=0), squares[0])
        likelihood = (weights.double() * top.double()).sum()
        return {
            "linear": to_numpy(found.T @ linear),
            "squares": to_numpy(products),
            "log_likelihood": float(likelihood),
        }
