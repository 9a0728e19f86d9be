"""Progress of an ab initio fit on stderr: starts, rounds, half sets, and about how long the rest takes."""

import sys
import time

from ._common import format_seconds

# Epochs of a start, as they usually come, and what rounds and half sets take in the time of an epoch: 2000 images of
# 64 px. Every other of the first rounds searches all poses. Two starts are enough when they agree.
_EPOCHS, _ROUNDS, _HALF = 12, (6.0, 1.2, 6.0, 1.2, 6.0, 1.2), 1.7


class StageReporter:
    """scikit-learn callback that says where a fit of :class:`skcryo.reconstruction.AbInitioVolume` is.

    Parameters
    ----------
    stream : text file, default=None
        Where to write; stderr if None.
    on_step : callable, default=None
        Called without arguments after each epoch, round and half set.
    n_starts : int, default=5
        Starts at most.
    clock : callable, default=time.monotonic
        Returns seconds; for tests.
    """

    def __init__(self, stream=None, *, on_step=None, n_starts=5, clock=time.monotonic):
        self.stream = sys.stderr if stream is None else stream
        self.on_step = on_step
        self.n_starts = n_starts
        self.clock = clock

    def setup(self, estimator, context):
        """Start the clock."""
        self._begun = self.clock()
        self._starts = self._epoch = self._rounds = self._halves = 0
        self._work = 0.0

    def teardown(self, estimator, context):
        """Do nothing."""

    def on_fit_task_begin(self, estimator, context):
        """Count starts."""
        if context.task_name == "start":
            self._starts, self._epoch = self._starts + 1, 0

    def on_fit_task_end(self, estimator, context):
        """Show a step that has ended."""
        if context.parent is None or context.max_subtasks != 0:
            return
        if context.task_name == "epoch":
            self._epoch += 1
            self._work += 1
            where = f"start {self._starts}, epoch {self._epoch}"
        elif context.task_name == "round":
            self._work += _ROUNDS[min(self._rounds, len(_ROUNDS) - 1)]
            self._rounds += 1
            where = f"refinement, round {self._rounds}"
        else:
            self._halves += 1
            self._work += _HALF
            where = f"half set {self._halves}"
        elapsed = self.clock() - self._begun
        line = f"{where}, {format_seconds(elapsed)}"
        left, condition = self._left(context.task_name)
        if left:
            line += f", about {format_seconds(elapsed / self._work * left)} left{condition}"
        self.stream.write(line + "\n")
        self.stream.flush()
        if self.on_step is not None:
            self.on_step()

    def _left(self, stage):
        """Work that is left, in epochs, and what that supposes."""
        left = _HALF * (2 - self._halves)
        if stage == "half set":
            return max(left, 0), ""
        left += sum(_ROUNDS[self._rounds :])
        if stage == "round":
            return left, ""
        more = max(2 - self._starts, 0) if self.n_starts > 1 else 0
        left += max(_EPOCHS - self._epoch, 0) + _EPOCHS * more
        return left, " if two starts agree" if self.n_starts > max(self._starts, 2) else ""
