"""The fit of statistical manifold learning: start, iterations, checkpoints, and what images are to a fitted model."""

from dataclasses import dataclass, field

import numpy as np
from scipy import sparse

__all__ = ["Features", "Run", "mutual_information", "run_em", "sparse_rows"]

_CACHE = 2**31  # bytes of features kept from one iteration to the next
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
        for where, *whitened in self.data.whitened(self.space, self.space.ctf_modes):
            features = self.mixture.features(*whitened, self.data.coordinates)
            size += sum(part.nbytes for part in features)
            if kept is not None:
                kept.append((where, features))
                if size > _CACHE:
                    kept = None
            yield where, features
        self._kept = kept


def run_em(mixture, start, features, data, params, expectation, progress, saved):
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
    expectation : callable
        Of tables, features and weights: :func:`~skcryo.cluster._sml_expectation.expect`, where it is done.
    progress : FitProgress
    saved : StageCheckpoints

    Returns
    -------
    Run
    """
    run, total, modes = Run(), data.weights.sum(), features.space.ctf_modes
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
            sums = expectation(mixture.tables(data.coordinates, modes), features, data.weights)
            bound = float(sums["log_likelihood"] + mixture.log_prior()) / total
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
