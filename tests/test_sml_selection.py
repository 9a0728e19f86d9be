"""Statistical manifold learning in scikit-learn's searches: held-out likelihood chooses classes, manifold and prior."""

import warnings

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV, KFold, ParameterGrid
from sklearn.pipeline import Pipeline

from skcryo.cluster import SMLClustering
from skcryo.ctf import apply_ctf, make_ctf
from skcryo.datasets import make_molecule, make_particles
from skcryo.io import load_particles, save_particles
from skcryo.particles import ParticleStack
from skcryo.preprocessing import InPlaneAligner, NormalizeBackground

PIXEL_SIZE = 16.0
CV = KFold(3, shuffle=True, random_state=0)

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.fixture(scope="module")
def three_views(tmp_path_factory):
    """90 particles in files: three views in one in-plane frame, each image with its CTF, in noise."""
    folder, rng = tmp_path_factory.mktemp("views"), np.random.default_rng(0)
    views, _ = make_particles(make_molecule(20), 3, snr=None, pixel_size=PIXEL_SIZE, random_state=1)
    kind = np.arange(90) % 3
    ctf = make_ctf(90, defocus_u=rng.uniform(1e4, 2.5e4, 90))
    images = apply_ctf(np.asarray(views)[kind], ctf, PIXEL_SIZE)
    images = images + 1.5 * images.std() * rng.standard_normal(images.shape, dtype=np.float32)
    stack = ParticleStack(images.astype(np.float32), pixel_size=PIXEL_SIZE, ctf=ctf)
    save_particles(folder / "in.star", stack, images_path=folder / "in.mrcs")
    return load_particles(folder / "in.star"), kind


def test_held_out_likelihood_is_the_loop_by_hand_and_finds_the_classes(three_views):
    stack, kind = three_views
    model = Pipeline([("normalize", NormalizeBackground()), ("sml", SMLClustering(n_components=6, random_state=0))])
    grid = [
        {"sml__n_clusters": [1, 3], "sml__manifold": ["none"]},
        {"sml__n_clusters": [3], "sml__manifold": ["sphere"], "sml__alpha": [1.0, 1e6]},
    ]
    search = GridSearchCV(model, grid, cv=CV, error_score="raise").fit(stack)
    for index, params in enumerate(ParameterGrid(grid)):
        fitted = clone(model).set_params(**params)
        scores = [fitted.fit(stack[train]).score(stack[test]) for train, test in CV.split(stack)]
        found = [search.cv_results_[f"split{i}_test_score"][index] for i in range(3)]
        assert found == pytest.approx(scores, rel=1e-9)
    one, three, smooth, certain = search.cv_results_["mean_test_score"]
    # one class, and a prior so certain that all classes are one, explain unseen images less
    assert min(three, smooth) > max(one, certain) + 1
    best = clone(model).set_params(**search.best_params_).fit(stack)
    np.testing.assert_array_equal(search.predict(stack), best[-1].labels_)
    # of the three views every class has one; by chance a third
    assert np.mean([np.bincount(kind[best[-1].labels_ == k]).max(initial=0) for k in range(3)]) > 27


def test_a_pipeline_with_the_aligner_is_searched(three_views):
    stack, _ = three_views
    steps = [
        ("align", InPlaneAligner(3, max_shift=0, max_iter=4, n_jobs=1, random_state=0)),
        ("sml", SMLClustering(3, n_components=6, random_state=0)),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        search = GridSearchCV(Pipeline(steps), {"sml__n_clusters": [1, 3]}, cv=2, error_score="raise").fit(stack)
    scores = search.cv_results_["mean_test_score"]
    assert np.isfinite(scores).all() and scores[0] != scores[1]
    assert search.transform(stack).shape == (90, 3)


def test_whole_weights_are_repetition(three_views):
    images = np.asarray(three_views[0], dtype=np.float64)
    weights = 1 + np.arange(90) % 2
    start = SMLClustering(6, n_components=6, max_iter=5, tol=0)
    weighted = clone(start).fit(images, sample_weight=weights)
    repeated = clone(start).fit(np.repeat(images, weights, axis=0))
    np.testing.assert_array_equal(weighted.predict(images), repeated.predict(images))
    assert weighted.score(images) == pytest.approx(repeated.score(images), rel=1e-6)
    assert weighted.score(images, sample_weight=weights) == pytest.approx(
        repeated.score(np.repeat(images, weights, axis=0)), rel=1e-6
    )


def test_single_precision_is_enough(three_views):
    images = np.asarray(three_views[0], dtype=np.float64)
    double, single = (SMLClustering(6, n_components=6).fit(images.astype(d)) for d in (np.float64, np.float32))
    assert np.mean(double.labels_ == single.labels_) > 0.95
    assert double.class_averages_.dtype == np.float64 and single.class_averages_.dtype == np.float32
    assert single.score(images.astype(np.float32)) == pytest.approx(double.score(images), rel=1e-5)


def test_a_random_state_instance_can_go_on_too(three_views, tmp_path):
    stack, _ = three_views

    class Interrupt:
        """A callback that breaks off after the second iteration."""

        left = 2

        def setup(self, estimator, context):
            pass

        def teardown(self, estimator, context):
            pass

        def on_fit_task_begin(self, estimator, context):
            pass

        def on_fit_task_end(self, estimator, context):
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt

    def model(**params):
        return SMLClustering(
            5, manifold="none", n_components=6, tol=0, max_iter=6, random_state=np.random.RandomState(3), **params
        )

    with pytest.raises(KeyboardInterrupt):
        model(checkpoint_dir=tmp_path).set_callbacks(Interrupt()).fit(stack)
    resumed, unbroken = model(checkpoint_dir=tmp_path).fit(stack), model().fit(stack)
    np.testing.assert_array_equal(resumed.class_averages_, unbroken.class_averages_)
    np.testing.assert_array_equal(resumed.lower_bound_curve_, unbroken.lower_bound_curve_)
