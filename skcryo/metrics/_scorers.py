"""Scorers for scikit-learn's searches whose truth is y = rotations; higher is better.

They pickle, so that ``GridSearchCV(n_jobs=2)`` works. Joint estimators, which know poses only for the images
they were fitted on, are searched with ``cv=[(all, all)]``. `partition_precision` needs no scorer of its own:
``sklearn.metrics.make_scorer(partition_precision)`` will do.
"""

import numpy as np

from ._classes import view_coherence
from ._poses import pose_correlation, pose_error

_POSE_METRICS = ("correlation", "mean", "median", "p95")


class _Scorer:
    def __repr__(self):
        arguments = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__.strip('_')}({arguments})"


class _PoseScorer(_Scorer):
    def __init__(self, metric, reflection):
        self.metric = metric
        self.reflection = reflection

    def __call__(self, estimator, X, y):
        y = _check_truth(y)
        poses = _predicted(estimator, X, len(y))
        if poses.shape != (len(y), 3, 3):
            name = type(estimator).__name__
            raise ValueError(
                f"{name}.predict gave shape {poses.shape}; rotations ({len(y)}, 3, 3) are wanted"
            )
        if self.metric == "correlation":
            return pose_correlation(poses, y, reflection=self.reflection)
        return -getattr(pose_error(poses, y, reflection=self.reflection), self.metric)


class _ViewCoherenceScorer(_Scorer):
    def __init__(self, threshold):
        self.threshold = threshold

    def __call__(self, estimator, X, y):
        y = _check_truth(y)
        coherence = view_coherence(_predicted(estimator, X, len(y)), y)
        return -coherence.median if self.threshold is None else coherence.share_under(self.threshold)


def make_pose_scorer(metric="mean", *, reflection=True):
    """Make a scorer of predicted poses.

    Parameters
    ----------
    metric : {"mean", "median", "p95", "correlation"}, default="mean"
        The first three are minus the angular error in degrees, the last is :func:`pose_correlation`.
    reflection : bool, default=True
        Whether the other hand is tried too.

    Returns
    -------
    scorer : callable
        ``scorer(estimator, X, y)`` with y the true rotations of shape (n, 3, 3). The poses are those of
        ``estimator.predict(X)``, aligned to y in frame and hand.

    Raises
    ------
    ValueError
        If `metric` is unknown.

    Examples
    --------
    >>> from skcryo.metrics import make_pose_scorer
    >>> from skcryo.rotations import random_rotations
    >>> class Oracle:
    ...     def predict(self, X):
    ...         return X
    >>> truth = random_rotations(10, random_state=0)
    >>> abs(make_pose_scorer()(Oracle(), truth, truth)) < 1e-4
    True
    """
    if metric not in _POSE_METRICS:
        raise ValueError(f"metric is {metric!r}; one of {_POSE_METRICS} is wanted")
    return _PoseScorer(metric, reflection)


def make_view_coherence_scorer(threshold=20.0):
    """Make a scorer of predicted classes by the likeness of their views.

    Parameters
    ----------
    threshold : float or None, default=20.0
        In degrees. The score is the share of within-class pairs whose views differ by less; with None it is
        minus the median difference in degrees. Shrinking classes raise it, so compare at one number of
        classes.

    Returns
    -------
    scorer : callable
        ``scorer(estimator, X, y)`` with y the true rotations of shape (n, 3, 3) or viewing directions (n, 3).
        The classes are those of ``estimator.predict(X)``.

    Raises
    ------
    ValueError
        If `threshold` is not between 0 and 180.

    Examples
    --------
    >>> from skcryo.metrics import make_view_coherence_scorer
    >>> make_view_coherence_scorer(15)
    ViewCoherenceScorer(threshold=15)
    """
    if threshold is not None and not 0 < threshold <= 180:
        raise ValueError(f"threshold is {threshold}; degrees in (0, 180] or None are wanted")
    return _ViewCoherenceScorer(threshold)


def _check_truth(y):
    if y is None:
        raise ValueError("y is None; the true rotations are wanted: pass them as y to fit of the search")
    return np.asarray(y)


def _predicted(estimator, X, n):
    predicted = np.asarray(estimator.predict(X))
    if len(predicted) != n:
        raise ValueError(f"{type(estimator).__name__}.predict gave {len(predicted)} entries but y has {n}")
    return predicted
