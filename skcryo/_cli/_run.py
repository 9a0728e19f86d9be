"""The life of a run, which all commands share: input, folder, stages, files, report.

A command is a :class:`skcryo._cli._settings.Settings` of its own and a function::

    def main(args, argv):
        run = Run(args, argv, Settings, stages=("preparing", "fitting"))
        with run.computing():
            images = prepare_once(run.stack, run.settings, run.folder.checkpoint)
            run.lap("preparing")
            estimator = Estimator(checkpoint_dir=run.folder.checkpoint / "fit", ...)
            run.fit(estimator, images, ProgressReporter(**run.reporting("fitting")), "fitting")
        run.tell_warnings()
        write(run, estimator)  # ends with run.finish
        run.tell_files()
"""

import contextlib
import importlib.metadata
import io
import platform
import shlex
import time
import warnings

from .. import __version__
from ._common import CommandError, format_seconds, note, one_line, say
from ._images import input_line, input_rows, load
from ._report import render_page
from ._run_folder import RunFolder, fingerprint, write_text


class Run:
    """A run of a command that reads particles and leaves a folder. Making one checks everything that can be checked.

    Parameters
    ----------
    args : argparse.Namespace
        The arguments as the parser returned them.
    argv : list of str
        The arguments as they were given, for the report.
    settings_type : type
        Subclass of :class:`skcryo._cli._settings.Settings`.
    stages : sequence of str
        What takes time, in order, as the report names it.

    Attributes
    ----------
    stack : ParticleStack
        The input.
    settings : settings_type
    folder : RunFolder
        Begun.
    paths : dict of str to Path
        The files that the run leaves, by name.
    warnings : list of str
        Of all that was computed, each once.
    told_elsewhere : list of str
        Beginnings of warnings that are not kept: verdicts have a place of their own.

    Raises
    ------
    CommandError
        If the arguments, the input or the folder are at fault.
    """

    def __init__(self, args, argv, settings_type, *, stages):
        self.args, self.argv, self.warnings, self.told_elsewhere = args, argv, [], []
        with self._hearing():
            self.stack = load(args)
            self.settings = settings_type(args, self.stack)
            self.folder = RunFolder(args.output, self._key(), self.settings.outputs)
            state = self.folder.check(restart=args.restart, overwrite=args.overwrite)
        self.paths = {name: self.folder.path / name for name in self.folder.outputs}
        self.tell = _silent if args.quiet else note
        self.tell(input_line(self.stack))
        self._stages = tuple(stages)
        self._progress = {"sessions": 0, **dict.fromkeys(stages, 0.0), **self.folder.begin(state)}
        self._progress["sessions"] += 1
        if state == "interrupted":
            self.tell(f"going on from the checkpoint in {self.folder.checkpoint}")
        self._clock = time.monotonic()

    def _key(self):
        files = self.stack.image_files
        return {
            "skcryo": __version__,
            "command": self.args.command,
            "input": fingerprint(self.args.particles, [] if files is None else files[0]),
            **self.settings.key(),
        }

    # ------------------------------------------------------------------------------------------------------ computing
    @contextlib.contextmanager
    def computing(self):
        """Keep warnings for the report; end the command, leaving nothing behind, where the input is at fault."""
        try:
            with self._hearing():
                yield
        except (ValueError, FileNotFoundError, ImportError) as error:
            self.folder.discard()
            raise CommandError(one_line(error)) from error

    @contextlib.contextmanager
    def _hearing(self):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
        messages = [str(warning.message) for warning in caught]
        kept = [message for message in messages if not message.startswith(tuple(self.told_elsewhere))]
        self.warnings = list(dict.fromkeys([*self.warnings, *kept]))

    def fit(self, estimator, images, reporter, stage, **data):
        """Fit an estimator, its progress told by a callback.

        Parameters
        ----------
        estimator : estimator with callbacks
        images : ParticleStack
        reporter : callback
            Made with :meth:`reporting`.
        stage : str
        **data : dict
            Further arguments of ``fit``.

        Returns
        -------
        estimator
        """
        estimator.set_callbacks(reporter)
        estimator.fit(images, **data)
        self.lap(stage)
        return estimator

    def once(self, name, compute):
        """What a step came to: computed now, or as a run that was interrupted after it left it.

        Parameters
        ----------
        name : str
            Of the checkpoint.
        compute : callable
            Returns (arrays, facts): dict of str to array, and what JSON can hold.

        Returns
        -------
        arrays, facts : dict
            As they were computed; warnings too are told again.
        """
        from ..io import load_checkpoint, save_checkpoint

        saved = load_checkpoint(self.folder.checkpoint, name)
        if saved is None:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                arrays, facts = compute()
            messages = [str(warning.message) for warning in caught]
            save_checkpoint(self.folder.checkpoint, name, arrays, {"facts": facts, "warnings": messages})
            saved = load_checkpoint(self.folder.checkpoint, name)
        arrays, info = saved
        for message in info["warnings"]:
            warnings.warn(message, UserWarning, stacklevel=2)
        return arrays, info["facts"]

    def reporting(self, stage):
        """Return what a reporter needs: where to write, and what to call after each step of a stage."""

        def on_step():
            self.lap(stage)
            self.folder.record(self._progress)

        return {"stream": io.StringIO() if self.args.quiet else None, "on_step": on_step}

    def lap(self, stage):
        """Count the time since the last lap as time of a stage."""
        now = time.monotonic()
        self._progress[stage] = self._progress.get(stage, 0.0) + now - self._clock
        self._clock = now

    # -------------------------------------------------------------------------------------------------------- writing
    def tell_warnings(self):
        """Write all warnings on stderr, also for those who asked for quiet."""
        for message in self.warnings:
            note(f"warning: {message}")

    @contextlib.contextmanager
    def pictures(self):
        """Go on without the pictures where matplotlib is missing."""
        try:
            yield
        except ImportError as error:
            missing = [name for name in self.paths if name.endswith((".png", ".gif"))]
            note(f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} left out: {error}")
            self.leave_out(missing)

    def leave_out(self, names):
        """Take files that are not written from those that the run leaves."""
        names = set(names)
        self.paths = {name: path for name, path in self.paths.items() if name not in names}

    def finish(self, title, summary, body, *, facts, estimators, next_steps=()):
        """Write the report and, last, ``run.json``, which makes the run a finished one.

        Parameters
        ----------
        title, summary, body, next_steps
            Of the report, as in :func:`skcryo._cli._report.render_page`.
        facts : dict
            JSON-ready, for ``run.json``, beside what every run tells.
        estimators : sequence of estimator
            Fitted; the report shows their parameters.
        """
        self.lap("writing")
        page = render_page(
            title,
            summary,
            body,
            sections=self._sections(estimators),
            warnings=self.warnings,
            next_steps=next_steps,
        )
        write_text(self.paths["report.html"], page)
        shared = {
            "particles": len(self.stack),
            "seconds": {stage: round(self._progress[stage], 2) for stage in self._stages},
            "sessions": self._progress["sessions"],
            "versions": versions(),
            "warnings": self.warnings,
        }
        self.folder.finish({**facts, **shared})

    def _sections(self, estimators):
        """The tables at the end of every report."""
        times = [(stage, format_seconds(self._progress[stage])) for stage in (*self._stages, "writing")]
        if self._progress["sessions"] > 1:
            times.append(("sessions", f"{self._progress['sessions']}, going on from a checkpoint"))
        parameters = [
            [("class", type(each).__name__), *sorted(each.get_params(deep=False).items())] for each in estimators
        ]
        return [
            ("Input", input_rows(self.stack, self.folder.key["input"])),
            ("What was done", self.settings.rows()),
            *(("Estimator", rows) for rows in parameters),
            ("Time", times),
            ("Versions", list(versions().items())),
            ("Command", [("skcryo", shlex.join(self.argv))]),
        ]

    def tell_files(self):
        """Write the paths of all files on stdout."""
        for path in self.paths.values():
            say(path)


def versions():
    """Versions of what computed the result."""
    names = ["numpy", "scipy", "scikit-learn", "PyWavelets", "mrcfile", "gemmi"]
    found = {name: importlib.metadata.version(name) for name in names}
    return {"Python": platform.python_version(), "skcryo": __version__, **found}


def _silent(text):
    """Say nothing."""
