"""Every public estimator and transformer, once: what the batteries of checks run over.

A new estimator is added to :func:`public_estimators`, and with that it is held to scikit-learn's checks
(``test_common.py``), to the project's own for stacks of images (``test_image_stacks.py``) and to bad input
(``test_bad_input_estimators.py``). A test fails when a public class is missing here.
"""

import importlib
import pkgutil
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from sklearn.base import BaseEstimator

import skcryo
from skcryo.cluster import DeepClustering, NearestNeighborAverages, RotInvWassersteinKMeans, SMLClustering
from skcryo.decomposition import SteerablePCA
from skcryo.heterogeneity import CommonLinesMaxCut, CryoDRGN
from skcryo.orientation import EquivariantPoseNet, LUDRotations, VectorDiffusionMaps
from skcryo.preprocessing import (
    Centerer,
    CircularMask,
    Flattener,
    FourierDownsampler,
    InPlaneAligner,
    NoiseWhitener,
    NormalizeBackground,
    PhaseFlipper,
)
from skcryo.reconstruction import AbInitioVolume, FourierReconstructor, MulticlassReconstruction


@dataclass(frozen=True)
class Case:
    """An instance that runs in moments on few and small images, and what the batteries must know of it.

    Attributes
    ----------
    estimator : estimator
        With a fixed ``random_state`` where it has one.
    variant : bool
        Whether this is a further configuration of a class that is in the list already.
    tolerance : float
        Within which answers on one image may differ between ways to hand it over (sums in float32), relative
        to the largest answer.
    order_matters : bool
        Whether ``fit`` may depend on the order of the images, as a random start does.
    grid : dict
        A small grid of parameters, for estimators that have a ``score``.
    heavy : bool
        Whether its batteries are left for ``-m slow``: of a variant whose fits take a second each.
    """

    estimator: Any
    variant: bool = False
    tolerance: float = 1e-4
    order_matters: bool = False
    grid: dict = field(default_factory=dict)
    heavy: bool = False

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
        Case(PhaseFlipper(missing_ctf="ignore")),
        Case(Centerer()),
        Case(Flattener()),
        Case(InPlaneAligner(2, max_iter=4, n_jobs=1, random_state=0), order_matters=True),
        Case(SteerablePCA()),
        Case(NearestNeighborAverages(n_jobs=1)),
        # Rows carry no poses, which is an error by default: the checks run with the other choice.
        Case(
            FourierReconstructor(missing_poses="identity", random_state=0),
            order_matters=True,
            grid={"max_frequency": [0.3, 0.5]},
        ),
        Case(
            MulticlassReconstruction(2, missing_poses="identity", max_iter=5, n_jobs=1, random_state=0),
            order_matters=True,
            grid={"n_classes": [1, 2]},
        ),
        Case(
            AbInitioVolume(angular_step=30, n_starts=1, max_epochs=1, max_rounds=1, n_jobs=1, random_state=0),
            order_matters=True,
            grid={"max_shift": [0, 1]},
        ),
        Case(
            AbInitioVolume(
                n_components=1, angular_step=30, n_starts=1, max_epochs=1, max_rounds=1, n_jobs=1, random_state=0
            ),
            variant=True,
            order_matters=True,
            grid={"max_shift": [0]},
            heavy=True,
        ),
        Case(LUDRotations(max_iter=5, refine=None, n_jobs=1), order_matters=True, grid={"metric": ["correlation"]}),
        Case(
            LUDRotations(max_iter=5, n_jobs=1),
            variant=True,
            order_matters=True,
            grid={"alpha": [2 / 3, 1.0]},
            heavy=True,
        ),
        *(
            # Without torch its `fit` says what to install, and there is nothing to check.
            [
                Case(
                    EquivariantPoseNet(
                        init=AbInitioVolume(
                            angular_step=30, n_starts=1, max_epochs=1, max_rounds=1, n_jobs=1, random_state=0
                        ),
                        max_iter=2,
                        n_jobs=1,
                        device="cpu",
                        random_state=0,
                    ),
                    order_matters=True,
                    grid={"max_iter": [1, 2]},
                ),
                Case(
                    CryoDRGN(1, poses="identity", max_iter=3, n_jobs=1, device="cpu", random_state=0),
                    order_matters=True,
                    grid={"max_iter": [1, 2]},
                ),
            ]
            if find_spec("torch")
            else []
        ),
        Case(VectorDiffusionMaps(n_jobs=1), order_matters=True, grid={"n_frequencies": [1, 3]}),
        Case(
            CommonLinesMaxCut(2, angular_step=30, n_init=1, max_iter=1, n_jobs=1, random_state=0),
            order_matters=True,
            grid={"n_clusters": [1, 2]},
        ),
        Case(
            RotInvWassersteinKMeans(2, n_angles=16, random_state=0),
            order_matters=True,
            grid={"n_clusters": [1, 2]},
        ),
        Case(
            RotInvWassersteinKMeans(2, metric="w1", n_angles=16, random_state=0),
            variant=True,
            order_matters=True,
            grid={"n_clusters": [1, 2]},
        ),
        # So certain a prior that probabilities are not all 0 and 1, which would hide what CTFs do to them.
        Case(SMLClustering(2, alpha=1e4, random_state=0), grid={"n_clusters": [1, 2]}),
        Case(
            SMLClustering(2, alpha=1e3, n_components=None, random_state=0),
            variant=True,
            grid={"n_clusters": [1, 2]},
        ),
        # One coarse class, which is divided; ``test_deep_clustering.py`` runs the checks with several.
        Case(
            DeepClustering(SMLClustering(alpha=1e4), n_clusters=2, min_class_size=2, random_state=0),
            grid={"n_clusters": [1, 2]},
        ),
    ]


def expected_failures(estimator):
    """Checks of scikit-learn that an estimator is known to fail, each with its reason; one at most.

    All tests read this one function. A check listed here that passes is a failure (strict).
    """
    reasons = {
        NormalizeBackground: {
            "check_estimators_dtypes": "truncated to integers, one image is all zero, which is refused"
        },
        FourierReconstructor: {
            "check_sample_weight_equivalence_on_dense_data": (
                "half sets are drawn by chance, and a repeated image may fall into both of them"
            )
        },
        # As scikit-learn's own KMeans does.
        RotInvWassersteinKMeans: {
            "check_sample_weight_equivalence_on_dense_data": (
                "k-means++ draws images by chance, and a repeated image is drawn otherwise than a heavy one"
            )
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
            if (member is CryoDRGN or member is EquivariantPoseNet) and not find_spec("torch"):
                continue
            if isinstance(member, type) and issubclass(member, BaseEstimator):
                found.add(member)
    return found
