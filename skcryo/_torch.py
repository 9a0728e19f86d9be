"""The seam to optional dependencies, torch above all. Nothing here imports torch before it is asked to."""

import importlib
import importlib.util
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np

__all__ = ["DEVICES", "accelerator", "full_precision", "import_optional", "import_torch", "resolve_device", "to_numpy"]

# What the parameter `device` of an estimator may be.
DEVICES = frozenset({"auto", "cpu", "cuda"})


def import_optional(name: str, *, extra: str, caller: str) -> ModuleType:
    """An optional module, or an error that says how to install it.

    Parameters
    ----------
    name : str
        Module, for example "cvxpy".
    extra : str
        The extra of this package that brings it, for example "sdp".
    caller : str
        What needs it, for example the estimator's name.

    Raises
    ------
    ImportError
        If it is not installed: names the caller, the module and the command.

    Examples
    --------
    >>> import_optional("no_such_module", extra="torch", caller="CryoDRGN")
    Traceback (most recent call last):
        ...
    ImportError: CryoDRGN needs no_such_module, which is not installed. Install it with...
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # A module that is there but lacks a dependency of its own is another fault, which speaks for itself.
        missing = (error.name or "").split(".")[0]
        if missing != name.split(".")[0]:
            raise
        raise ImportError(
            f'{caller} needs {name}, which is not installed. Install it with `pip install "skcryo[{extra}]"`.'
        ) from error


def import_torch(caller: str) -> ModuleType:
    """torch, or an error that names the extra to install."""
    return import_optional("torch", extra="torch", caller=caller)


def resolve_device(device: str, *, caller: str = "device") -> Any:
    """The ``torch.device`` that `device` stands for.

    Parameters
    ----------
    device : {"auto", "cpu", "cuda"} or "cuda:<index>"
        "auto" takes the GPU when there is one.
    caller : str, default="device"
        Whose name an error bears.

    Raises
    ------
    ValueError
        If a GPU is asked for and there is none.
    """
    torch = import_torch(caller)
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if str(device).split(":")[0] not in ("cpu", "cuda"):
        raise ValueError(f"{caller}: device must be 'auto', 'cpu' or 'cuda', got {device!r}")
    resolved = torch.device(device)
    if resolved.type == "cuda":
        n_devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (resolved.index or 0) >= n_devices:
            raise ValueError(
                f"{caller}: device={device!r} was asked for, but torch sees {n_devices} CUDA devices; "
                f"use device='auto' or device='cpu'"
            )
    return resolved


def accelerator(device: Any, *, caller: str = "device") -> Any:
    """The ``torch.device`` for work that needs no torch on the CPU, or None if it is done without torch.

    Parameters
    ----------
    device : {None, "auto", "cpu", "cuda"}, "cuda:<index>" or torch.device
        None and "cpu" mean without torch, and do not import it. "auto" takes the GPU where torch is installed and sees
        one. A ``torch.device`` is taken at its word: that of the CPU too.
    caller : str, default="device"
        Whose name an error bears.

    Raises
    ------
    ValueError
        If `device` is none of these, or a GPU is asked for and there is none.
    ImportError
        If a GPU is asked for by name and torch is not installed.

    Examples
    --------
    >>> accelerator("cpu") is None
    True
    """
    if isinstance(device, str) and device.split(":")[0] not in DEVICES:
        raise ValueError(f"{caller}: device must be 'auto', 'cpu' or 'cuda', got {device!r}")
    if device is None or (isinstance(device, str) and device.split(":")[0] == "cpu"):
        return None
    if isinstance(device, str) and device == "auto":
        if importlib.util.find_spec("torch") is None:
            return None
        resolved = resolve_device("auto", caller=caller)
        return resolved if resolved.type == "cuda" else None
    return resolve_device(device, caller=caller)


@contextmanager
def full_precision(torch, device):
    """Products of float32 in float32, whatever else the process allows: TF32 would keep three digits. No gradients."""
    settings = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
    with torch.inference_mode(), torch.autocast(device.type, enabled=False):
        if all(hasattr(setting, "fp32_precision") for setting in settings):
            before = [setting.fp32_precision for setting in settings]
            try:
                for setting in settings:
                    setting.fp32_precision = "ieee"
                yield
            finally:
                for setting, value in zip(settings, before):
                    setting.fp32_precision = value
        else:  # torch before 2.9
            before = torch.get_float32_matmul_precision()
            try:
                torch.set_float32_matmul_precision("highest")
                yield
            finally:
                torch.set_float32_matmul_precision(before)


def to_numpy(tensor: Any) -> np.ndarray:
    """A tensor, wherever it lives, as an ndarray in memory; an array passes through."""
    if hasattr(tensor, "detach"):
        tensor = tensor.detach().cpu().numpy()
    return np.asarray(tensor)
