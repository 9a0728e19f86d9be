"""The fit of statistical manifold learning: start, iterations, checkpoints, and what images are to a fitted model."""

from dataclasses import dataclass, field

import numpy as np
from scipy import sparse
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans

__all__ = ["Features", "Run", "expect", "mutual_information", "posteriors", "run_em", "sparse_rows", "start_means"]

_CACHE = 2**31  # bytes of features kept from one iteration to the next
_MOST_STARTED = 20000  # images that k-means starts from, or 10 a class
_ALPHA_BOUNDS = (0.1, 10.0)
_ALPHA_FROM = 5  # iterations before alpha is estimated anew: by near-uniform responsibilities all nodes collapse


@dataclass
class Run:
    """The iteration at any moment of it."""

    n_iter: int = 0
    converged: bool = False
    curve: list = field(default_factory=list)


class Features:
    """Features of all images: kept where they fit into memory, else made anew for each iteration."""

    def __init__(self, mixture, data, space):
        self.mixture, self.data, self.space = mixture, data, space
        self._kept = None

    def __iter__(self):
        if self._kept is not None:
            yield from self._kept
            return
        kept, size = [], 0
        for where, *whitened in self.data.whitened(self.space):
            features = self.mixture.features(*whitened, self.data.coordinates)
            size += sum(part.nbytes for part in features)
            if kept is not None:
                kept.append((where, features))
                if size > _CACHE:
                    kept = None
            yield where, features
        self._kept = kept


def posteriors(score, features, n_clusters):
    """Responsibilities, equation 9, and log-likelihoods, the logarithm of equation 6, of some images.

    Returns
    -------
    responsibilities : ndarray of shape (n, n_clusters)
    log_likelihoods : ndarray of shape (n,), float64
    """
    logits, base = score(*features)
    top = logits.max(axis=1, keepdims=True)
    logits -= top
    np.exp(logits, out=logits)
    sums = logits.sum(axis=1, keepdims=True)
    logits /= sums
    return logits, base + top[:, 0] + np.log(sums[:, 0]) - np.log(n_clusters)


def expect(mixture, features, weights, coordinates):
    """Sums that the maximisation needs, and the weighted sum of log-likelihoods."""
    score, sums, total = mixture.scorer(coordinates), mixture.new_sums(), 0.0
    for where, part in features:
        responsibilities, likelihoods = posteriors(score, part, len(mixture.basis))
        w = weights[where]
        responsibilities *= w[:, None].astype(responsibilities.dtype)
        mixture.add(sums, part, responsibilities, w)
        total += float(w @ likelihoods)
    return sums, total


def run_em(mixture, start, features, data, params, progress, saved):
    """Iterate until the log posterior rises by less than `tol` an image.

    Parameters
    ----------
    mixture : PixelMixture or SubspaceMixture
        Left as fitted.
    start : callable
        Gives the first class means; not called where a checkpoint has later ones.
    features : Features
    data : ParticleCoordinates
    params : SMLClustering
        For `tol`, `max_iter` and `alpha`.
    progress : FitProgress
    saved : StageCheckpoints

    Returns
    -------
    Run
    """
    run, total = Run(), data.weights.sum()
    before = saved.load("em")
    if before is None:
        mixture.start(start())
        saved.save("em", mixture.state(), {"n_iter": 0, "curve": []})
    else:
        state, info = before
        mixture.restore(state)
        run = Run(info["n_iter"], curve=info["curve"])
    while not run.converged and not progress.stopped:
        with progress.step("iteration", attributes=lambda: {"n_iter_": run.n_iter, "lower_bound_": run.curve[-1]}):
            sums, likelihood = expect(mixture, features, data.weights, data.coordinates)
            bound = (likelihood + mixture.log_prior()) / total
            run.curve.append(bound)
            settled = run.n_iter > 0 and abs(bound - run.curve[-2]) < params.tol
            run.converged = bool(settled)
            if settled or run.n_iter == params.max_iter:
                break
            mixture.maximize(sums)
            if params.alpha == "auto" and run.n_iter >= _ALPHA_FROM:
                mixture.alpha = float(np.clip(mixture.reestimate_alpha(sums), *_ALPHA_BOUNDS))
            run.n_iter += 1
            saved.save("em", mixture.state(), {"n_iter": run.n_iter, "curve": run.curve})
    return run


def start_means(init, nodes, n_clusters, variances, wiener, rng):
    """First class means in the components.

    Parameters
    ----------
    init : {"pca", "k-means", "random"}
        "pca": the latent grid laid along the first components, each stretched to its variance (of no manifold: means
        drawn from the components' variances). "k-means": its centres; on a manifold each goes to a node such that
        nodes stay near their places along the first components. "random": images, Wiener filtered.
    nodes : ndarray of shape (n_clusters, ndim) or None
    n_clusters : int
    variances : ndarray of shape (n_components,)
    wiener : callable
        Of the number of images wanted and the generator, that many images' coefficients.
    rng : RandomState

    Returns
    -------
    means : ndarray of shape (n_clusters, n_components)
    """
    n = len(variances)
    laid = None
    if nodes is not None:
        laid = np.zeros((n_clusters, n))
        ndim = min(nodes.shape[1], n)
        spread = nodes[:, :ndim] - nodes[:, :ndim].mean(axis=0)
        deviations = spread.std(axis=0)
        laid[:, :ndim] = spread / np.where(deviations > 0, deviations, 1) * np.sqrt(variances[:ndim])
    if init == "pca":
        return rng.standard_normal((n_clusters, n)) * np.sqrt(variances) if laid is None else laid
    if init == "random":
        return wiener(n_clusters, rng)
    points = wiener(max(_MOST_STARTED, 10 * n_clusters), rng)
    centres = KMeans(n_clusters, n_init=1, random_state=rng).fit(points).cluster_centers_
    if laid is None:
        return centres
    distances = ((laid[:, None] - centres[None]) ** 2).sum(axis=2)
    return centres[linear_sum_assignment(distances)[1]]


def sparse_rows(responsibilities, least):
    """Responsibilities of at least `least` as a sparse matrix; the largest of a row always."""
    kept = responsibilities >= least
    kept[np.arange(len(kept)), responsibilities.argmax(axis=1)] = True
    return sparse.csr_array(np.where(kept, responsibilities, 0))


def mutual_information(occupancy, entropies):
    """Nats that an image tells about its class: entropy of the occupancy minus the mean entropy of responsibilities."""
    share = occupancy / occupancy.sum()
    share = share[share > 0]
    return max(float(-(share * np.log(share)).sum() - entropies), 0.0)
