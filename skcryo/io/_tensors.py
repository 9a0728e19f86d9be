"""Fitted models in files: numpy arrays in the safetensors format, and JSON."""

import json

import numpy as np

from .._torch import import_optional
from ._atomic import atomic_path
from ._checkpoint import _plain

__all__ = ["load_tensors", "save_tensors"]

_INFO = "info"


def save_tensors(path, arrays, info, *, overwrite=False, caller="save_tensors"):
    """Save arrays by name, and what JSON can hold, in one safetensors file.

    Parameters
    ----------
    path : str or path-like
    arrays : dict of str to ndarray
        Of numbers or bool.
    info : dict
    overwrite : bool, default=False
        Whether a file that is there already may be replaced.
    caller : str
        Named if safetensors is not installed.

    Raises
    ------
    FileExistsError
        If there is something at `path` and `overwrite` is False.
    ImportError
        If safetensors is not installed.

    See Also
    --------
    load_tensors
    """
    numpy_format = import_optional("safetensors.numpy", extra="torch", caller=caller)
    # In this order of bytes and of axes, whatever the arrays had.
    arrays = {name: np.array(value, order="C") for name, value in arrays.items()}
    with atomic_path(path, overwrite=overwrite) as temporary:
        numpy_format.save_file(arrays, temporary, metadata={_INFO: json.dumps(info, default=_plain)})


def load_tensors(path, *, caller="load_tensors"):
    """Load what :func:`save_tensors` saved. Nothing in the file is executed.

    Parameters
    ----------
    path : str or path-like
    caller : str
        Named if safetensors is not installed.

    Returns
    -------
    arrays : dict of str to ndarray
    info : dict

    Raises
    ------
    FileNotFoundError
    ValueError
        If it is no such file; the message names it.
    """
    safetensors = import_optional("safetensors", extra="torch", caller=caller)
    with open(path, "rb"):  # what is missing is said as usual
        pass
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}
            info = json.loads((file.metadata() or {})[_INFO])
    except (safetensors.SafetensorError, KeyError, ValueError, OSError) as error:
        raise ValueError(f"{path}: not a model saved by skcryo ({error})") from error
    return arrays, info
