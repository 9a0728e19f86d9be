"""The seam to scikit-learn's callbacks: how an iterative fit reports its steps and how it can be stopped.

An estimator takes :class:`CallbackSupportMixin` among its bases, decorates ``fit`` with ``_fit_context``
(which ends the callbacks whatever happens) and wraps its loop::

    with FitProgress(self, X, y, max_steps=self.max_iter) as progress:
        for n_iter in range(1, self.max_iter + 1):
            with progress.step("iteration", attributes=lambda: {"class_averages_": averages}):
                averages = improve(averages)
            if converged or progress.stopped:
                break

A user then sets ``est.set_callbacks(ProgressBar())``, or any other callback of ``sklearn.callback``. Without
callbacks all of this does nothing and costs nothing.
"""

from collections.abc import Callable
from typing import Any

from sklearn.callback import CallbackSupportMixin

__all__ = ["CallbackSupportMixin", "FitProgress"]


class _Task:
    """A node of the tree of tasks: a fit, or one step of it."""

    def __init__(
        self, root: "FitProgress", context: Any, attributes: Callable[[], dict] | None, parent: "_Task | None"
    ):
        self._root = root
        self._context = context
        self._attributes = attributes
        self._parent = parent
        self.stopped = False

    def _begin(self) -> None:
        if self._context is not None:
            self._context.call_on_fit_task_begin(estimator=self._root.estimator, **self._root.data)

    def _end(self) -> None:
        if self._context is None:
            return
        stop = self._context.call_on_fit_task_end(
            estimator=self._root.estimator, reconstruction_attributes=self._attributes, **self._root.data
        )
        if stop and self._parent is not None:
            self._parent.stopped = True

    def __enter__(self):
        self._begin()
        return self

    def __exit__(self, exc_type, exc, traceback) -> None:
        # A step that failed has not ended: callbacks hear nothing of it, and `_fit_context` tears them down.
        if exc_type is None:
            self._end()

    def step(
        self,
        name: str,
        *,
        max_steps: int | None = 0,
        attributes: Callable[[], dict] | None = None,
    ) -> "_Task":
        """One step, as a context manager. After it, :attr:`stopped` of this task tells whether to go on.

        Parameters
        ----------
        name : str
            What the step is called, for example "epoch".
        max_steps : int or None, default=0
            The most steps that this step can itself have; None when unknown, 0 when none.
        attributes : callable, default=None
            Called without arguments at the end of the step, only if a callback wants it: the fitted
            attributes as if the fit ended here, so that a callback can score or save a usable estimator.
        """
        context = self._context
        if context is not None:
            context = context.subcontext(task_name=name, max_subtasks=max_steps)
        return _Task(self._root, context, attributes, self)


class FitProgress(_Task):
    """The task of one ``fit``, a context manager.

    Parameters
    ----------
    estimator : estimator with CallbackSupportMixin
        What is being fitted.
    X, y : array-like, default=None
        Passed to the callbacks that ask for them.
    max_steps : int or None, default=None
        The most steps there can be, for progress bars; None when not known.
    attributes : callable, default=None
        As in :meth:`step`, at the end of the fit.
    **metadata : dict
        Further arguments of ``fit`` (``sample_weight``); those that are None are left out.

    Attributes
    ----------
    stopped : bool
        Whether a callback asked, at the end of a step, that no further step of this level is taken.

    Examples
    --------
    >>> from sklearn.base import BaseEstimator
    >>> from skcryo._validation import _fit_context
    >>> class Halving(CallbackSupportMixin, BaseEstimator):
    ...     _parameter_constraints = {}
    ...     @_fit_context(prefer_skip_nested_validation=True)
    ...     def fit(self, X, y=None):
    ...         with FitProgress(self, X, y, max_steps=10) as progress:
    ...             for self.n_iter_ in range(1, 11):
    ...                 with progress.step("iteration"):
    ...                     X = X / 2
    ...                 if progress.stopped:
    ...                     break
    ...         return self
    >>> class StopAtThree:
    ...     def setup(self, estimator, context): pass
    ...     def teardown(self, estimator, context): pass
    ...     def on_fit_task_begin(self, estimator, context): pass
    ...     def on_fit_task_end(self, estimator, context):
    ...         return context.parent is not None and context.task_id == 2
    >>> Halving().fit(1.0).n_iter_
    10
    >>> Halving().set_callbacks(StopAtThree()).fit(1.0).n_iter_
    3
    """

    def __init__(
        self,
        estimator: Any,
        X: Any = None,
        y: Any = None,
        *,
        max_steps: int | None = None,
        attributes: Callable[[], dict] | None = None,
        **metadata: Any,
    ):
        self.estimator = estimator
        given = {key: value for key, value in metadata.items() if value is not None}
        self.data = {"X": X, "y": y, "metadata": given}
        context = None
        if getattr(estimator, "_skl_callbacks", None):
            context = estimator._init_callback_context(max_subtasks=max_steps)
        super().__init__(self, context, attributes, None)
