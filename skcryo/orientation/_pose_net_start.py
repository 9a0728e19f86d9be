"""An estimator that gives first poses, fitted; what it warns of is told by the one that asked."""

import warnings

from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning

__all__ = ["fitted_quietly"]


def fitted_quietly(estimator, stack):
    """A clone of an estimator, fitted.

    Parameters
    ----------
    estimator : estimator
    stack : ParticleStack

    Returns
    -------
    fitted : estimator
    problems : list of str
        Messages of its convergence warnings, which are not given; all other warnings are.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fitted = clone(estimator).fit(stack)
    problems = []
    for warning in caught:
        if issubclass(warning.category, ConvergenceWarning):
            problems.append(str(warning.message))
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return fitted, problems
