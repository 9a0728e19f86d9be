"""A fit of the decoder, saved and taken up again."""

import time

import numpy as np
from sklearn.utils import check_random_state

from ..io import load_checkpoint, save_checkpoint
from ..reconstruction._half_sets import fingerprint
from ._drgn_latents import Latents

__all__ = ["FitSaver"]

_CHECKPOINT, _SECONDS_BETWEEN = "cryodrgn", 10.0


class FitSaver:
    """Saves a fit now and then: its seed, its coordinates and the state of the training; the rest follows from these.

    Attributes
    ----------
    seed : int
    round : int
        Rounds of training that are over.
    elapsed : float
        Seconds spent on training.
    first_poses : tuple of two ndarrays or None
        Rotations and shifts that training began with, once they are known.
    problem : str or None
        What speaks against them.
    folder : path or None
    key : dict or None
        Fingerprint of data and parameters.
    """

    def __init__(self, estimator, stack, arrays):
        self.folder, self._last, self._saved = estimator.checkpoint_dir, time.monotonic(), None
        self.seed = int(check_random_state(estimator.random_state).randint(2**31 - 1))
        self.round, self.elapsed, self.key = 0, 0.0, None
        self.first_poses, self.problem = None, None
        if self.folder is None:
            return
        params = estimator.get_params(deep=False)
        if isinstance(params["random_state"], np.random.RandomState):
            params["random_state"] = "given"
        # The poses that an estimator found are among the arrays.
        searches = params["poses"] == "search" if isinstance(params["poses"], str) else False
        for name in ("n_jobs", "device", "checkpoint_dir", "poses"):
            params.pop(name)
        params |= {"refine_poses": estimator._refines, "searches": searches}
        if stack.tilt is not None:
            params["tilt"] = fingerprint({}, stack.tilt, (stack.tilt.ctf, stack.tilt_angle))
        self.key = fingerprint(params, stack, arrays)
        self._saved = load_checkpoint(self.folder, _CHECKPOINT)
        if self._saved is None:
            return
        if self._saved[1]["fingerprint"] != self.key:
            raise ValueError(
                f"checkpoint_dir={str(self.folder)!r} holds a fit of other images or parameters; name another folder "
                "or remove that one"
            )
        # of a fit without random_state, that of its first session
        self.seed = self._saved[1]["seed"]
        arrays = self._saved[0]
        self.first_poses = arrays["first_rotations"], arrays["first_shifts"]
        self.problem = self._saved[1]["problem"]

    def restore(self, training):
        """Put a training where the saved one was; its Latents, or None if there is none."""
        if self._saved is None:
            return None
        (arrays, info), self._saved = self._saved, None
        training.restore(arrays, info)
        self.round, self.elapsed = info["round"], info["elapsed"]
        return Latents(arrays["mean"], arrays["covariance"], arrays["contrast"])

    def __call__(self, training, latents, *, now):
        """Save, if asked to or ten seconds after the last time."""
        if self.folder is None or not (now or time.monotonic() - self._last >= _SECONDS_BETWEEN):
            return
        arrays, info = training.state()
        arrays |= {"mean": latents.mean, "covariance": latents.covariance, "contrast": latents.contrast}
        arrays |= dict(zip(("first_rotations", "first_shifts"), self.first_poses))
        info |= {"round": self.round, "elapsed": self.elapsed, "seed": self.seed, "fingerprint": self.key}
        info |= {"problem": self.problem}
        save_checkpoint(self.folder, _CHECKPOINT, arrays, info)
        self._last = time.monotonic()
