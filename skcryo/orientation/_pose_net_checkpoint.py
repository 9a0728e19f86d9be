"""A fit of the network of poses, saved and taken up again."""

import time

import numpy as np
from sklearn.utils import check_random_state

from ..io import load_checkpoint, save_checkpoint
from ..reconstruction._half_sets import fingerprint

__all__ = ["FitSaver"]

_CHECKPOINT, _SECONDS_BETWEEN = "pose_net", 10.0


class FitSaver:
    """Saves a fit now and then: its seed and the state of the training, all else follows from the seed."""

    def __init__(self, estimator, stack):
        self.folder, self._last = estimator.checkpoint_dir, time.monotonic()
        self.seed = int(check_random_state(estimator.random_state).randint(2**31 - 1))
        self._saved = None
        if self.folder is None:
            return
        params = estimator.get_params(deep=False)
        if isinstance(params["random_state"], np.random.RandomState):
            params["random_state"] = "given"
        init = params["init"]
        known = getattr(init, "rotations_", None if hasattr(init, "fit") else init)
        for name in ("n_jobs", "device", "checkpoint_dir", "refine", "init"):
            params.pop(name)
        params["init"] = init if hasattr(init, "fit") else None
        self._key = fingerprint(params, stack, (stack.ctf, known))
        self._saved = load_checkpoint(self.folder, _CHECKPOINT)
        if self._saved is None:
            self._write({}, {})
        elif self._saved[1]["fingerprint"] != self._key:
            raise ValueError(
                f"checkpoint_dir={self.folder!r} holds a fit of other images or parameters; name another folder or "
                "remove that one"
            )
        else:  # of a fit without random_state, that of its first session
            self.seed = self._saved[1]["seed"]

    def restore(self, training):
        """Put a training where the saved one was, if any."""
        if self._saved is not None and self._saved[0]:
            training.restore(*self._saved)
        self._saved = None

    def __call__(self, training, *, now):
        if self.folder is not None and (now or time.monotonic() - self._last >= _SECONDS_BETWEEN):
            self._write(*training.state())
            self._last = time.monotonic()

    def _write(self, arrays, info):
        save_checkpoint(self.folder, _CHECKPOINT, arrays, info | {"fingerprint": self._key, "seed": self.seed})
