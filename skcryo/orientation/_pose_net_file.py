"""A fitted :class:`skcryo.orientation.EquivariantPoseNet` as arrays by name and JSON, and back."""

import numpy as np
from sklearn.utils.validation import check_is_fitted

from ..io._tensors import load_tensors, save_tensors
from ._pose_net_context import FittedContext
from ._pose_net_inputs import SteerableInputs
from ._pose_net_predictor import PosePredictor
from ._pose_net_uncertainty import ErrorModel, ParticleModel

__all__ = ["SavedPoseNet"]

_FORMAT = "skcryo.EquivariantPoseNet"
_ARRAYS = ("rotations_", "shifts_", "contrast_", "volume_", "noise_spectrum_")
_NUMBERS = (
    "loss_curve_", "n_iter_", "n_rounds_", "validation_error_", "line_agreement_", "converged_", "ambiguous_",
    "pixel_size_", "n_features_in_", "image_shape_",
)  # fmt: skip
_CONTEXT = ("coefficients", "frames", "rows")
_PREDICTOR = ("architecture", "shift_range", "shift_unit", "expectations")
_INPUTS = {"sizes", "n_points", "band"}
_PARTS = {  # of the predictor: class, attributes that are arrays
    "inputs": (SteerableInputs, ("_matrix", "_mean", "mean_filter", "power")),
    "_network_errors": (ErrorModel, ("slope", "scores", "errors")),
    "_first_errors": (ErrorModel, ("slope", "scores", "errors")),
    "_refined_errors": (ErrorModel, ("slope", "scores", "errors")),
    "_particles": (ParticleModel, ("scores", "shares")),
}


class SavedPoseNet:
    """Saving a fitted estimator, and loading it."""

    def save(self, path, *, overwrite=False):
        """Save the fitted estimator for new images, in the safetensors format, without the estimator of `init`.

        Parameters
        ----------
        path : str or path-like
            For example ``"poses.safetensors"``.
        overwrite : bool, default=False
            Whether a file that is there already may be replaced.

        Raises
        ------
        FileExistsError
            If there is something at `path` and `overwrite` is False.
        """
        check_is_fitted(self, "weights_")
        predictor, params = self._predictor, self.get_params(deep=False)
        params |= {"init": None, "checkpoint_dir": None}
        if isinstance(params["random_state"], np.random.RandomState):
            params["random_state"] = None
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        arrays |= {f"network.{name}": value for name, value in predictor.weights.items()}
        for part, (_, names) in _PARTS.items():
            arrays |= {f"{part}.{name}": getattr(getattr(predictor, part), name) for name in names}
        if predictor.context is not None:
            arrays |= {f"context.{name}": getattr(predictor.context, name) for name in _CONTEXT}
        info = {
            "format": _FORMAT,
            "params": params,
            "fitted": {name: getattr(self, name) for name in _NUMBERS},
            "predictor": {name: getattr(predictor, name) for name in _PREDICTOR},
            "inputs": {name: getattr(predictor.inputs, name) for name in _INPUTS},
        }
        save_tensors(path, arrays, info, overwrite=overwrite, caller="EquivariantPoseNet.save")

    @classmethod
    def load(cls, path):
        """Load an estimator that was saved; nothing in the file is executed.

        Parameters
        ----------
        path : str or path-like

        Returns
        -------
        EquivariantPoseNet
            Its `init` and `checkpoint_dir` are None.

        Raises
        ------
        FileNotFoundError
        ValueError
            If the file holds something else.
        """
        arrays, info = load_tensors(path, caller="EquivariantPoseNet.load")
        if info.get("format") != _FORMAT:
            raise ValueError(f"{path}: format {info.get('format')!r}; a file of EquivariantPoseNet.save is wanted")
        estimator = cls(**info["params"])
        for name in _ARRAYS:
            setattr(estimator, name, arrays[name])
        for name in _NUMBERS:
            setattr(estimator, name, info["fitted"][name])
        estimator.image_shape_ = tuple(estimator.image_shape_)
        parts = {}
        for part, (kind, names) in _PARTS.items():
            parts[part] = kind.__new__(kind)
            for name in names:
                setattr(parts[part], name, arrays[f"{part}.{name}"])
        inputs = parts.pop("inputs")
        for name in _INPUTS:
            setattr(inputs, name, info["inputs"][name])
        prefix = "network."
        weights = {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
        options = info["predictor"]
        names = [options.pop(name) for name in ("architecture", "shift_range", "shift_unit")]
        predictor = PosePredictor(names[0], weights, inputs, *names[1:], **options)
        predictor.volume = estimator.volume_
        if "context.rows" in arrays:
            context = (arrays[f"context.{name}"] for name in _CONTEXT)
            predictor.context = FittedContext.restored(*context, inputs.sizes, estimator._threads())
        for name, value in parts.items():
            setattr(predictor, name, value)
        estimator.weights_, estimator._predictor = weights, predictor
        return estimator
