"""Progress of a fit on stderr: a bar on a terminal with rich, plain lines anywhere else."""

import math
import sys
import time

from ._common import format_seconds


class ProgressReporter:
    """scikit-learn callback that shows iterations and an estimate of the time left.

    A fit announces its tasks as a tree; the leaves are counted as iterations. The estimate takes the mean
    time of the iterations seen so far for all that may come: a fit that converges ends earlier. The first
    iteration, which waits for the start to be made, counts only until there is another.

    Parameters
    ----------
    stream : text file, default=None
        Where to write; stderr if None.
    on_step : callable, default=None
        Called without arguments after each iteration.
    clock : callable, default=time.monotonic
        Returns seconds; for tests.
    unit : str, default="iteration"
        What the leaves are called.
    """

    def __init__(self, stream=None, *, on_step=None, clock=time.monotonic, unit="iteration"):
        self.unit = unit
        self.stream = sys.stderr if stream is None else stream
        self.on_step = on_step
        self.clock = clock
        self._bar = None

    def setup(self, estimator, context):
        """Start the clock, and the bar where there is one."""
        self._start = self.clock()
        self._done = 0
        self._bar = _rich_bar(self.stream)
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task("preparing", total=None)

    def on_fit_task_begin(self, estimator, context):
        """Do nothing: only what has ended is shown."""

    def on_fit_task_end(self, estimator, context, *, fitted_estimator=None):
        """Show an iteration that has ended."""
        if context.parent is None or context.max_subtasks != 0:
            return
        self._done += 1
        if self._done == 1:
            self._first = self.clock() - self._start
        total = _leaves_at_most(context)
        reached = _reached(fitted_estimator)
        if self._bar is not None:
            text = f"{self.unit} {self._done}{reached}"
            self._bar.update(self._task, completed=self._done, total=total, description=text)
        else:
            self.stream.write(self._line(total, reached))
            self.stream.flush()
        if self.on_step is not None:
            self.on_step()

    def teardown(self, estimator, context):
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _line(self, total, reached):
        elapsed = self.clock() - self._start
        line = f"{self.unit} {self._done}" + ("" if total is None else f" of at most {total}")
        line += f"{reached}, {format_seconds(elapsed)}"
        if total is not None and total > self._done:
            each = (elapsed - self._first) / (self._done - 1) if self._done > 1 else self._first
            line += f", at most {format_seconds(each * (total - self._done))} left"
        return line + "\n"


class StepReporter:
    """scikit-learn callback that says which steps of a fit have ended, where there are few of different kinds.

    Parameters
    ----------
    stream : text file, default=None
        Where to write; stderr if None.
    on_step : callable, default=None
        Called without arguments after each step.
    clock : callable, default=time.monotonic
        Returns seconds; for tests.
    """

    def __init__(self, stream=None, *, on_step=None, clock=time.monotonic):
        self.stream = sys.stderr if stream is None else stream
        self.on_step = on_step
        self.clock = clock

    def setup(self, estimator, context):
        """Start the clock."""
        self._start = self.clock()

    def teardown(self, estimator, context):
        """Do nothing."""

    def on_fit_task_begin(self, estimator, context):
        """Do nothing: only what has ended is shown."""

    def on_fit_task_end(self, estimator, context):
        """Show a step that has ended."""
        if context.parent is None:
            return
        name = context.task_name
        if context.parent.parent is not None:
            name = f"{context.parent.task_name}, {name} {context.task_id + 1}"
        self.stream.write(f"{name}, {format_seconds(self.clock() - self._start)}\n")
        self.stream.flush()
        if self.on_step is not None:
            self.on_step()


def _reached(estimator):
    """What an iteration came to, as it is told."""
    for name, text in (("inertia_", "inertia {:.5g}"), ("lower_bound_", "log posterior {:.7g}")):
        if hasattr(estimator, name):
            return f", {text.format(getattr(estimator, name))}"
    return ""


def _leaves_at_most(context):
    """Return how many leaves the tree of a leaf can have, None where that is unknown."""
    sizes = []
    while context.parent is not None:
        context = context.parent
        sizes.append(context.max_subtasks)
    return None if None in sizes else math.prod(sizes)


def _rich_bar(stream):
    """Return a bar, or None where the stream is no terminal or rich is missing."""
    if not stream.isatty():
        return None
    try:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    except ImportError:
        return None
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total}"),
        TimeElapsedColumn(),
        TextColumn("at most"),
        TimeRemainingColumn(),
        TextColumn("left"),
        console=Console(file=stream),
    )
