"""Every public estimator and transformer, once: what the batteries of checks run over.

A new estimator is added to :func:`public_estimators`, and with that it is held to scikit-learn's checks
(``test_common.py``), to the project's own for stacks of images (``test_image_stacks.py``) and to bad input
(``test_bad_input_estimators.py``). A test fails when a public class is missing here.
"""

import importlib
import pkgutil
from dataclasses import dataclass, field
from typing import Any

from sklearn.base import BaseEstimator

import skcryo
from skcryo.preprocessing import (
    Centerer,
    CircularMask,
    Flattener,
    FourierDownsampler,
    NoiseWhitener,
    NormalizeBackground,
    PhaseFlipper,
)


@dataclass(frozen=True)
class Case:
    """An instance that runs in moments on few and small images, and what the batteries must know of it.

    Attributes
    ----------
    estimator : estimator
        With a fixed ``random_state`` where it has one.
    needs_ctf : bool
        Whether default parameters refuse images without CTF.
    variant : bool
        Whether this is a further configuration of a class that is in the list already.
    tolerance : float
        Relative, within which answers on one image may differ between ways to hand it over (float32 sums).
    """

    estimator: Any
    needs_ctf: bool = False
    variant: bool = False
    tolerance: float = 1e-4
    tags: frozenset = field(default_factory=frozenset)

    @property
    def name(self):
        return type(self.estimator).__name__


def public_estimators():
    """A case for every public estimator."""
    return [
        Case(NormalizeBackground()),
        Case(CircularMask()),
        Case(CircularMask(fill="background"), variant=True),
        Case(NoiseWhitener()),
        Case(FourierDownsampler()),
        # Rows carry no CTF, which is an error by default: the checks run with the other choice.
        Case(PhaseFlipper(missing_ctf="ignore"), needs_ctf=True),
        Case(Centerer()),
        Case(Flattener()),
    ]


def expected_failures(estimator):
    """Checks of scikit-learn that an estimator is known to fail, each with its reason; one at most.

    All tests read this one function. A check listed here that passes is a failure (strict).
    """
    reasons = {
        NormalizeBackground: {
            "check_estimators_dtypes": "truncated to integers, one image is all zero, which is refused"
        },
    }
    return reasons.get(type(estimator), {})


def public_estimator_classes():
    """Public estimator classes found by walking the package's public modules."""
    found = set()
    for module_info in pkgutil.walk_packages(skcryo.__path__, "skcryo."):
        if any(part.startswith("_") for part in module_info.name.split(".")):
            continue
        module = importlib.import_module(module_info.name)
        for name in getattr(module, "__all__", ()):
            member = getattr(module, name)
            if isinstance(member, type) and issubclass(member, BaseEstimator):
                found.add(member)
    return found
