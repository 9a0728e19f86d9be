"""How far off a pose may be: what goes with errors, and the error that a share of images stays below."""

import numpy as np

__all__ = ["ErrorModel"]

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
        level : float
            The share.

        Returns
        -------
        ndarray of shape (m,), float64
            Degrees, at most 180.
        """
        n_bins = max(1, min(_BINS, len(self.errors) // 25))
        edges = np.linspace(0, len(self.errors), n_bins + 1).astype(int)
        groups = [slice(a, b) for a, b in zip(edges[:-1], edges[1:])]
        centres = np.array([self.scores[group].mean() for group in groups])
        values = np.maximum.accumulate([np.quantile(self.errors[group], level, method="higher") for group in groups])
        score = self._design(known) @ self.slope
        found = np.interp(score, centres, values)
        # beyond those seen, in proportion to the score
        beyond = values[-1] * np.exp(np.clip(score - centres[-1], 0, 10))
        return np.minimum(np.where(score > centres[-1], beyond, found), 180.0)
