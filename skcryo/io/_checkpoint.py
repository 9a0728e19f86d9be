"""Checkpoints of long fits: numpy arrays and JSON in one file that is replaced atomically.

Nothing that is loaded is executed: arrays without objects, and JSON.
"""

import json
import os
import pathlib
import zipfile

import numpy as np

from ._atomic import atomic_path

__all__ = ["StageCheckpoints", "load_checkpoint", "save_checkpoint"]

_INFO = "__info__"


def _path(directory, name):
    if not name or name != os.path.basename(name):
        raise ValueError(f"name must be a plain file name without folders, got {name!r}")
    return pathlib.Path(directory) / f"{name}.npz"


def save_checkpoint(directory, name, arrays, info):
    """Save the state of a fit; a checkpoint of the same name is replaced.

    Parameters
    ----------
    directory : str or path-like
        Made if it is not there.
    name : str
        Of the checkpoint, without extension: the file is ``directory/name.npz``.
    arrays : dict of str to array
    info : dict
        What JSON can hold (numbers, texts, lists, dicts; numpy scalars too): counters, parameters, random
        state.

    Raises
    ------
    TypeError
        If an array has objects or `info` something that JSON cannot hold.

    See Also
    --------
    load_checkpoint

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> from skcryo.io import load_checkpoint, save_checkpoint
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_checkpoint(folder, "fit", {"means": np.arange(3.0)}, {"n_iter": 7})
    ...     arrays, info = load_checkpoint(folder, "fit")
    >>> arrays["means"].tolist(), info
    ([0.0, 1.0, 2.0], {'n_iter': 7})
    """
    path = _path(directory, name)
    converted = {}
    for key, value in arrays.items():
        converted[key] = np.asarray(value)
        if converted[key].dtype.hasobject:
            raise TypeError(
                f"checkpoint array {key!r} has dtype {converted[key].dtype}, objects cannot be saved"
            )
        if key == _INFO:
            raise ValueError(f"{_INFO!r} is no name for a checkpoint array")
    text = json.dumps(info, default=_plain)
    converted[_INFO] = np.frombuffer(text.encode(), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path, overwrite=True) as temporary, open(temporary, "wb") as file:
        np.savez(file, **converted)
        file.flush()
        os.fsync(file.fileno())


def load_checkpoint(directory, name):
    """Load what :func:`save_checkpoint` saved.

    Parameters
    ----------
    directory : str or path-like
    name : str

    Returns
    -------
    (arrays, info) or None
        As they were saved, tuples as lists. None if there is no such checkpoint.

    Raises
    ------
    ValueError
        If the file is damaged; the message names it.
    """
    path = _path(directory, name)
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        info = json.loads(arrays.pop(_INFO).tobytes().decode())
    except (OSError, ValueError, KeyError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: not a readable checkpoint ({error}); remove it to begin anew") from error
    return arrays, info


class StageCheckpoints:
    """Stages of one fit, saved in a folder, or nowhere.

    Parameters
    ----------
    folder : str, path-like or None
        None: nothing is saved, nothing found.
    fingerprint : str or None
        Of images and parameters: what is found must have it.
    """

    def __init__(self, folder, fingerprint):
        self.folder, self.fingerprint = folder, fingerprint

    def subfolder(self, name):
        """Folder for what saves itself, or None."""
        return None if self.folder is None else os.path.join(self.folder, name)

    def save(self, name, arrays, info):
        """Save a stage, see :func:`save_checkpoint`."""
        if self.folder is not None:
            save_checkpoint(self.folder, name, arrays, {"fingerprint": self.fingerprint, **info})

    def load(self, name):
        """Load a stage, (arrays, info), or None if it is not there.

        Raises
        ------
        ValueError
            If it is one of another fit, or damaged.
        """
        saved = None if self.folder is None else load_checkpoint(self.folder, name)
        if saved is not None and saved[1].pop("fingerprint", None) != self.fingerprint:
            raise ValueError(
                f"checkpoint_dir={str(self.folder)!r} holds a fit of other images or parameters; name another folder "
                "or remove that one"
            )
        return saved


def _plain(value):
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f"checkpoint info cannot hold {type(value).__name__}: {value!r}")
