"""How far off a pose may be: the error that a share of images stays below, and whether there is a particle at all."""

import numpy as np
from sklearn.isotonic import IsotonicRegression

__all__ = ["ErrorModel", "ParticleModel", "stated_error"]

_BINS = 20
_FLOOR = 1e-6


class ErrorModel:
    """Quantiles of errors of poses, learnt where poses are known.

    The logarithm of the error is fitted by a linear function of the logarithms of what is known of an image (how long
    the network's columns are, the curvature of the likelihood, how well the projection fits). Images are sorted by it,
    and in each of up to 20 groups of neighbours quantiles of the errors are taken, made to rise from group to group.

    Parameters
    ----------
    known : ndarray of shape (n, n_known)
        Positive.
    errors : ndarray of shape (n,)
        Degrees.
    """

    def __init__(self, known, errors):
        design = self._design(known)
        target = np.log(np.maximum(errors, 1e-3))
        ridge = 1e-6 * len(design) * np.eye(design.shape[1])
        self.slope = np.linalg.solve(design.T @ design + ridge, design.T @ target)
        order = np.argsort(design @ self.slope, kind="stable")
        self.scores, self.errors = (design @ self.slope)[order], np.asarray(errors)[order]

    @staticmethod
    def _design(known):
        logs = np.log(np.maximum(np.asarray(known, dtype=np.float64), _FLOOR))
        return np.concatenate([np.ones((len(logs), 1)), logs], axis=1)

    def quantile(self, known, level):
        """The error that a share of images like these stays below.

        Parameters
        ----------
        known : ndarray of shape (m, n_known)
        level : float or ndarray of shape (m,)
            The share.

        Returns
        -------
        ndarray of shape (m,), float64
            Degrees, at most 180.
        """
        n, level = len(self.errors), np.broadcast_to(level, len(known))
        n_bins = max(1, min(_BINS, n // 25))
        edges = np.linspace(0, n, n_bins + 1).astype(int)
        centres, values = [], []
        for a, b in zip(edges[:-1], edges[1:]):
            centres.append(self.scores[a:b].mean())
            values.append(np.sort(self.errors[a:b])[np.ceil(level * (b - a - 1)).astype(int)])
        centres, values = np.array(centres), np.maximum.accumulate(values)  # (n_bins,), (n_bins, m)
        score = self._design(known) @ self.slope
        upper = np.clip(np.searchsorted(centres, score), 1, max(n_bins - 1, 1))
        lower, upper, rows = upper - 1, np.minimum(upper, n_bins - 1), np.arange(len(score))
        span = np.maximum(centres[upper] - centres[lower], 1e-12)
        share = np.clip((score - centres[lower]) / span, 0, 1)
        found = (1 - share) * values[lower, rows] + share * values[upper, rows]
        # beyond those seen, in proportion to the score
        beyond = values[-1] * np.exp(np.clip(score - centres[-1], 0, 10))
        return np.minimum(np.where(score > centres[-1], beyond, found), 180.0)


class ParticleModel:
    """How likely images are of the particle, by how much they resemble projections, in comparison with projections.

    The share of projections among projections and data of a score, made to rise with it, gives the ratio of their
    densities: where data are more frequent than projections with noise are, the rest is something else.

    Parameters
    ----------
    projections, data : ndarray of shape (n,) and (m,)
        Scores of projections with noise, and of the images fitted.
    """

    def __init__(self, projections, data):
        # One projection more, below all: a single image of a low score is no evidence.
        lowest = min(projections.min(), data.min())
        scores = np.concatenate([[lowest], projections, data])
        label = np.arange(len(scores)) <= len(projections)
        weight = np.where(label, 1 / len(projections), 1 / len(data))
        weight[0] = 1 / len(data)
        share = IsotonicRegression().fit(scores, label, sample_weight=weight)
        self.scores, self.shares = share.X_thresholds_, share.y_thresholds_

    def probability(self, scores):
        """Of being a particle; ndarray of shape (n,)."""
        share = np.interp(scores, self.scores, self.shares)
        return np.where(share < 0.5, share / np.maximum(1 - share, 1e-12), 1.0)


def stated_error(model, known, probability, level):
    """Quantile of errors of images that are of the particle only with some probability, and else of any pose.

    Parameters
    ----------
    model : ErrorModel
    known : ndarray of shape (n, n_known)
    probability : ndarray of shape (n,)
    level : float

    Returns
    -------
    ndarray of shape (n,), float64
        Degrees. Of the particle: the error that a share `level` of all stays below if no error of the others does.
        Where these are too many for that, the quantile of angles of uniform rotations that is reached with them.
    """
    inside = np.minimum(level / np.maximum(probability, 1e-12), 1)
    found = model.quantile(known, inside)
    angles = np.linspace(0, np.pi, 1801)
    share = np.clip((level - probability) / np.maximum(1 - probability, 1e-12), 0, 1)
    other = np.degrees(np.interp(share, (angles - np.sin(angles)) / np.pi, angles))
    return np.where(probability > level, found, np.maximum(found, other))
