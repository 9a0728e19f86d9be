"""The expectation step of statistical manifold learning: two matrix products and an exponential, chunk by chunk."""

import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from .._torch import full_precision, import_torch, to_numpy
from ..alignment._polar_search import one_blas_thread

__all__ = ["Tables", "TorchExpectation", "expect", "group_energies", "join_terms", "posteriors"]

_ON_DEVICE = 2**32  # bytes of features that stay there from one iteration to the next


@dataclass
class Tables:
    """Class means as what multiplies the features (terms, power) of images.

    The logarithm of equation 4 is ``terms @ columns + constant - power @ precision``. Terms are what is linear in the
    image, then the squares of its CTF.

    Attributes
    ----------
    columns : ndarray of shape (n_terms, n_clusters)
    precision : ndarray of shape (n_power,), float64
    constant : float
    """

    columns: np.ndarray
    precision: np.ndarray
    constant: float

    @classmethod
    def of(cls, linear, energies, precision, constant, dtype):
        """From (n_clusters, n_linear), what multiplies the image, and half squares (n_squares, n_clusters)."""
        return cls(np.concatenate([linear.T, -energies]).astype(dtype), precision, constant)


def join_terms(linear, squares):
    """Terms of images, of which all may share the squares."""
    squares = np.broadcast_to(squares, (len(linear), squares.shape[1]))
    return np.concatenate([linear, squares], axis=1, dtype=linear.dtype)


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


def posteriors(tables, terms, power, out=None):
    """Responsibilities, equation 9, and log-likelihoods, the logarithm of equation 6, of some images.

    Parameters
    ----------
    tables : Tables
    terms : ndarray of shape (n, n_terms)
    power : ndarray of shape (n, n_power)
    out : ndarray of shape (n, n_clusters), default=None
        Where responsibilities go.

    Returns
    -------
    responsibilities : ndarray of shape (n, n_clusters)
    log_likelihoods : ndarray of shape (n,), float64
    """
    found = np.matmul(terms, tables.columns, out=out)
    top = found.max(axis=1, keepdims=True)
    found -= top
    np.exp(found, out=found)
    sums = found.sum(axis=1, keepdims=True)
    found *= 1 / sums
    base = tables.constant - power.astype(np.float64) @ tables.precision
    return found, base + top[:, 0] + np.log(sums[:, 0]) - np.log(found.shape[1])


class _Summing:
    """What some images add to the sums over images, and to the log-likelihood; for each thread one table of room."""

    def __init__(self, tables, weights):
        self.tables, self.weights, self._room = tables, weights, threading.local()

    def __call__(self, one):
        where, (terms, power) = one
        weights, shape = self.weights[where], (len(terms), self.tables.columns.shape[1])
        room = getattr(self._room, "table", None)
        if room is None or len(room) < len(terms):
            room = self._room.table = np.empty(shape, dtype=terms.dtype)
        found, likelihoods = posteriors(self.tables, terms, power, room[: len(terms)])
        if (weights != 1).any():
            found *= weights[:, None].astype(found.dtype)
        return {
            "terms": found.T @ terms,
            "power": weights @ power.astype(np.float64),
            "total": weights.sum(),
            "log_likelihood": weights @ likelihoods,
        }


def expect(tables, features, weights, n_jobs=1):
    """Sums over all images that the maximisation needs.

    Chunks of images go to threads, of which each takes one BLAS thread, and are added in their order: the result does
    not depend on how many there are.

    Parameters
    ----------
    tables : Tables
    features : iterable of (slice, (terms, power))
    weights : ndarray of shape (n_images,), float64
    n_jobs : int, default=1

    Returns
    -------
    sums : dict
        "terms" (n_clusters, n_terms), weighted by responsibilities; "power" (n_power,), "total" and "log_likelihood"
        (floats). float64.
    """
    sums = {}
    with one_blas_thread():
        for part in _in_order(_Summing(tables, weights), features, n_jobs):
            _add(sums, part)
    return sums


def _in_order(function, items, n_threads):
    """Results of a function of each item, in their order; a few items at a time are in memory."""
    if n_threads == 1:
        yield from map(function, items)
        return
    # joblib looks for results every 10 ms, as long as two chunks take
    with ThreadPoolExecutor(n_threads) as pool:
        waiting = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 2 * n_threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


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
        with full_precision(torch, self.device):
            columns = self._tensor(tables.columns)
            for where, (terms, power) in features:
                w = weights[where]
                on_device, weight = self._keep(where, terms, w)
                logits = on_device @ columns
                top = torch.logsumexp(logits, dim=1).double()
                found = torch.softmax(logits, dim=1).mul_(weight[:, None])
                base = tables.constant - power.astype(np.float64) @ tables.precision - np.log(columns.shape[1])
                part = {
                    "terms": to_numpy(found.T @ on_device),
                    "power": w @ power.astype(np.float64),
                    "total": w.sum(),
                    "log_likelihood": float(weight.double() @ top) + w @ base,
                }
                _add(sums, part)
        return sums

    def _keep(self, where, terms, weights):
        """Tensors of a chunk, kept as long as its array is the same."""
        known = self._kept.get(where.start)
        if known is not None and known[0] is terms:
            return known[1]
        tensors = self._tensor(terms), self._tensor(weights.astype(terms.dtype))
        if known is None and self._size + terms.nbytes <= _ON_DEVICE:
            self._kept[where.start] = (terms, tensors)
            self._size += terms.nbytes
        return tensors

    def _tensor(self, array):
        return self.torch.from_numpy(np.ascontiguousarray(array)).to(self.device)
