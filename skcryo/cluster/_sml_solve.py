"""Conjugate gradients for the maximisation of statistical manifold learning."""

import numpy as np

__all__ = ["conjugate_gradients"]

_TOL = 1e-6  # of the right-hand side
_STEPS = 100


def conjugate_gradients(operator, precondition, right, start, axis=None):
    """Solve a symmetric positive definite system, or many side by side.

    Parameters
    ----------
    operator, precondition : callable
        Of an array like `right`.
    right, start : ndarray
    axis : int, default=None
        Along which a system runs: all along it are systems of their own. None: the whole array is one.

    Returns
    -------
    ndarray
        With a residual of 1e-6 of the right-hand side in each system, or after 100 steps.
    """

    def dot(a, b):
        return (a * b).sum(axis=axis, keepdims=True)

    solution, residual = start, right - operator(start)
    bound = _TOL**2 * dot(right, right)
    direction, before = np.zeros_like(right), 1.0
    for _ in range(_STEPS):
        if (dot(residual, residual) <= bound).all():
            break
        preconditioned = precondition(residual)
        now = dot(residual, preconditioned)
        direction = preconditioned + now / before * direction
        applied = operator(direction)
        step = now / np.maximum(dot(direction, applied), 1e-300)
        solution = solution + step * direction
        residual = residual - step * applied
        before = np.maximum(now, 1e-300)
    return solution
