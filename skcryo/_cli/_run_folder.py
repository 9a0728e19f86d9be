"""The folder of a run: fresh, interrupted or finished, and what may be done with it.

A run that is going on, or was killed, has ``.checkpoint/run.json``; a finished one has ``run.json``,
written last. Every file is written under a temporary name and renamed, so that a kill at any moment leaves
one of the two states.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path

from ._common import CommandError


class RunFolder:
    """State machine of an output folder.

    Parameters
    ----------
    path : str or Path
        The folder; need not exist.
    key : dict
        What decides the result (arguments and fingerprint of the input), JSON-ready. A run goes on
        only under an equal key.
    outputs : sequence of str
        Names of the files that a finished run leaves, ``run.json`` last.
    """

    def __init__(self, path, key, outputs):
        self.outputs = tuple(outputs)
        self.path = Path(path)
        self.key = json.loads(json.dumps(key))
        self.checkpoint = self.path / ".checkpoint"
        self.state_file = self.checkpoint / "run.json"
        self.finished_file = self.path / "run.json"
        self._made = None

    def check(self, *, restart=False, overwrite=False):
        """Say whether a run may start here, without touching anything.

        Parameters
        ----------
        restart : bool, default=False
            Give up an interrupted run.
        overwrite : bool, default=False
            Give up the files of a finished run.

        Returns
        -------
        state : {"fresh", "interrupted"}
            "interrupted": go on from the checkpoint.

        Raises
        ------
        CommandError
            If the folder holds something that the arguments do not allow to go on from or to give up.
        """
        if self.path.exists() and not self.path.is_dir():
            raise CommandError(f"--output {self.path} is a file; a folder is wanted")
        state = read_json(self.state_file)
        if state is not None and not self.finished_file.exists():
            if restart:
                return "fresh"
            if state.get("key") == self.key:
                return "interrupted"
            difference = describe_difference(state.get("key"), self.key)
            raise CommandError(
                f"{self.path} holds an interrupted run that differs: {difference}. "
                "Give the same arguments to go on, --restart to begin again, or another --output"
            )
        present = [name for name in self.outputs if (self.path / name).exists()]
        if present and not overwrite:
            what = "a finished run" if "run.json" in present else f"{present[0]}, which is no run of this program"
            raise CommandError(f"{self.path} holds {what}; give --overwrite to replace it, or another --output")
        return "fresh"

    def begin(self, state):
        """Make the folder ready: a new checkpoint for a fresh run, the present one otherwise.

        Parameters
        ----------
        state : {"fresh", "interrupted"}
            What :meth:`check` said.

        Returns
        -------
        progress : dict
            What :meth:`record` stored last: empty for a fresh run.
        """
        if state == "interrupted":
            return read_json(self.state_file)["progress"]
        if self.checkpoint.exists():
            shutil.rmtree(self.checkpoint)
        # The topmost folder that is made here, to be taken away again if the input proves unusable.
        missing = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        self._made = missing[-1] if missing else None
        self.checkpoint.mkdir(parents=True)
        # The new state first: a kill from here on leaves an interrupted run, not a half removed finished one.
        self.record({})
        for name in ("run.json", *self.outputs):
            (self.path / name).unlink(missing_ok=True)
        return {}

    def record(self, progress):
        """Store how far the run is (a JSON-ready dict), for the report of a run that was interrupted."""
        write_text(self.state_file, json.dumps({"key": self.key, "progress": progress}))

    def discard(self):
        """Take away the checkpoint of a run that cannot be finished, and the folder if it was made for it."""
        shutil.rmtree(self._made or self.checkpoint)

    def finish(self, summary):
        """Mark the run as finished and remove its checkpoint.

        Parameters
        ----------
        summary : dict
            JSON-ready; stored in ``run.json`` beside the key.
        """
        write_text(self.finished_file, json.dumps({"key": self.key, **summary}, indent=1) + "\n")
        shutil.rmtree(self.checkpoint)


def read_json(path):
    """Return what a JSON file holds, or None if there is none or it is damaged."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError, UnicodeDecodeError):
        return None


def write_text(path, text):
    """Write a text file under a temporary name, then rename it."""
    from ..io import atomic_path

    with atomic_path(path, overwrite=True) as temporary:
        Path(temporary).write_text(text, encoding="utf-8")


def fingerprint(star_files, image_files):
    """Return what tells one input from another without reading the images.

    Parameters
    ----------
    star_files : sequence of path
        Read and hashed.
    image_files : sequence of path
        Name, size and time of change count: images can be larger than any cache.

    Returns
    -------
    fingerprint : dict of str to str
        File name to digest.
    """
    result = {}
    for path in star_files:
        result[str(path)] = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    for path in image_files:
        status = os.stat(path)
        result[str(path)] = f"{status.st_size} bytes, changed {status.st_mtime_ns}"
    return result


def describe_difference(old, new):
    """Return, for a person, the first few entries in which two keys differ."""
    old = old if isinstance(old, dict) else {}
    lines = []
    for name in sorted({*old, *new}):
        before, after = old.get(name), new.get(name)
        if before == after:
            continue
        if isinstance(before, dict) and isinstance(after, dict):
            files = sorted(file for file in {*before, *after} if before.get(file) != after.get(file))
            lines.append(f"{name} changed ({', '.join(files[:2])}{', ...' if len(files) > 2 else ''})")
        else:
            lines.append(f"{name} was {before}, now {after}")
    return "; ".join(lines[:4])
