"""Whether the poses of :class:`skcryo.orientation.EquivariantPoseNet` can be trusted, and why not."""

__all__ = ["is_ambiguous", "pose_problems"]

_STILL = 0.2  # degrees in the last round: poses that move by less are what they are
_LOST = 20.0  # degrees
_MOST_LOST, _LEAST_AGREEMENT, _SYMMETRIC = 0.1, 0.6, 0.93


def is_ambiguous(resemblance):
    """Whether poses far from their own explain more than 93 % of the power of projections."""
    return resemblance > _SYMMETRIC


def pose_problems(refinement, errors, resemblance, line_agreement):
    """What keeps poses from being trusted.

    Parameters
    ----------
    refinement : PoseRefinement
        Of the data, at its end.
    errors : ndarray of shape (n,)
        Degrees, of projections whose poses are known.
    resemblance : float
        Share of the power of projections that poses far from their own explain.
    line_agreement : float
        How well images agree along common lines, as a share of how well projections do.

    Returns
    -------
    list of str
    """
    problems, lost = [], float((errors > _LOST).mean())
    if not refinement.settled and not refinement.change < _STILL:
        problems.append(f"poses still moved by {refinement.change:.2g} degrees in round {refinement.round}")
    if is_ambiguous(resemblance):
        problems.append(
            "poses are ambiguous, the particle being symmetric or nearly so: projections of the volume fit poses "
            f"far from their own, which explain {resemblance:.0%} of their power"
        )
    elif lost > _MOST_LOST:
        problems.append(
            f"{lost:.0%} of noisy projections of the volume get poses wrong by more than {_LOST:.0f} degrees: the "
            "noise is too strong, or the network not trained for long enough (max_iter)"
        )
    if line_agreement < _LEAST_AGREEMENT:
        problems.append(
            f"common lines of the images agree {line_agreement:.0%} as well as those of projections of the "
            "volume would: it may be wrong"
        )
    return problems
