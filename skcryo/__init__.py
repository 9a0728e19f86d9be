"""Single-particle cryo-EM in the style of scikit-learn.

Every method is an estimator: script it, put it in a ``Pipeline``, search it with ``GridSearchCV``, score it,
plot it, save it. Import what you need from the submodules, for example
``from skcryo.cluster import RotInvWassersteinKMeans``.
"""

__version__ = "0.1.0.dev0"

__all__ = ["__version__"]
