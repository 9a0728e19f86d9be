"""Clustering class by class: what each fit sees, how classes are shared out, and what is done with small ones."""

import re
import warnings

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from sklearn.base import clone
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from skcryo.cluster import DeepClustering, RotInvWassersteinKMeans, SMLClustering
from skcryo.cluster._deep_clustering import apportion
from skcryo.ctf import apply_ctf, make_ctf
from skcryo.datasets import make_molecule, make_particles
from skcryo.inspection import ClassAveragesDisplay
from skcryo.metrics import class_view_angles
from skcryo.particles import ParticleStack
from skcryo.preprocessing import NormalizeBackground

PIXEL_SIZE = 14.0


def particles(n=400, L=20, snr=0.3, seed=0, with_ctf=True):
    """Views in one in-plane frame, with CTFs and noise, and their rotations."""
    rng = np.random.default_rng(seed)
    views = rng.standard_normal((n, 3))
    angles = [np.arctan2(views[:, 1], views[:, 0]), np.arccos(views[:, 2] / np.linalg.norm(views, axis=1)), np.zeros(n)]
    rotations = Rotation.from_euler("ZYZ", np.transpose(angles)).as_matrix()
    molecule = make_molecule(L, voxel_size=PIXEL_SIZE, random_state=3)
    images = np.asarray(make_particles(molecule, n, snr=None, rotations=rotations, pixel_size=PIXEL_SIZE)[0])
    ctf = make_ctf(n, defocus_u=rng.uniform(8e3, 2e4, n)) if with_ctf else None
    images = images if ctf is None else apply_ctf(images, ctf, PIXEL_SIZE)
    images = images + rng.standard_normal(images.shape) * images.std() / np.sqrt(snr)
    return ParticleStack(images.astype(np.float32), pixel_size=PIXEL_SIZE, ctf=ctf), rotations


def fit(X, estimator=None, **params):
    """Warnings are not what is looked at here."""
    estimator = SMLClustering(n_components=8, max_iter=20) if estimator is None else estimator
    params = {"n_clusters": 20, "min_class_size": 30, "random_state": 0} | params
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return DeepClustering(estimator, **params).fit(X)


@pytest.mark.parametrize("with_ctf", [pytest.param(True, marks=pytest.mark.slow), False], ids=["CTFs", "no CTF"])
def test_both_strategies_find_similar_views(with_ctf):
    X, rotations = particles(600, with_ctf=with_ctf)
    train, test = X[:400], X[400:]
    deep = fit(train)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        at_once = SMLClustering(20, n_components=8, max_iter=20).fit(train)
    chance = np.median(class_view_angles(np.random.default_rng(0).permutation(deep.labels_), rotations[:400]))
    assert 80 < chance < 100
    for model in (deep, at_once):
        # 20 round classes of equal size would have about 25 degrees
        assert np.median(class_view_angles(model.labels_, rotations[:400])) < 50
        assert np.median(class_view_angles(model.predict(test), rotations[400:])) < 60
    assert deep.class_averages_.shape == (20, 20, 20)
    assert deep.n_clusters_ == 20 and len(deep.n_subclasses_) == 4
    np.testing.assert_array_equal(deep.predict(train), deep.labels_)


def test_each_class_is_fitted_to_its_images_alone():
    X, _ = particles(200)
    deep = fit(X)
    coarse = SMLClustering(4, n_components=8, max_iter=20).fit(X)
    np.testing.assert_array_equal(deep.coarse_labels_, coarse.labels_)
    k = int(deep.n_subclasses_.argmax())
    members = np.flatnonzero(coarse.labels_ == k)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        alone = SMLClustering(int(deep.n_subclasses_[k]), n_components=8, max_iter=20).fit(X[members])
    classes = np.flatnonzero(deep.parents_ == k)
    np.testing.assert_array_equal(deep.labels_[members], alone.labels_ + classes[0])
    np.testing.assert_array_equal(deep.class_averages_[classes], alone.class_averages_)
    np.testing.assert_array_equal(deep.parents_[deep.labels_], deep.coarse_labels_)
    assert deep.class_averages_.dtype == np.float32 and deep.labels_.dtype == np.int32


@pytest.mark.parametrize("seed", range(4))
def test_classes_are_shared_out_by_size(seed):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 1000, 12)
    found = apportion(200, sizes, sizes)
    assert found.sum() == 200 and found.min() >= 1
    # no class could be moved to where one holds more
    assert (sizes / found).max() <= (sizes / np.maximum(found - 1, 1e-9))[found > 1].min()
    assert np.abs(found - np.maximum(200 * sizes / sizes.sum(), 1)).max() < 2
    assert apportion(30, np.array([5, 3]), np.array([5, 1])).tolist() == [5, 1]
    assert apportion(4, np.zeros(3), np.array([2, 2, 2])).tolist() == [2, 1, 1]


def test_small_classes_are_kept_whole_and_it_is_told():
    X, _ = particles(120)
    coarse = SMLClustering(3, n_components=8)
    deep = fit(X, coarse=coarse, n_clusters=9, min_class_size=41)
    sizes = np.bincount(deep.coarse_labels_)
    assert sizes.min() < 41 <= sizes.max()
    for k, part in enumerate(deep.estimators_):
        assert (part is None) == (sizes[k] < 41) == (deep.n_subclasses_[k] == 1)
    assert deep.n_clusters_ == 9  # what they might have had goes to the others
    whole = int(sizes.argmin())
    (own,) = np.flatnonzero(deep.parents_ == whole)
    np.testing.assert_array_equal(deep.class_averages_[own], deep.coarse_.class_averages_[whole])
    assert (deep.labels_[deep.coarse_labels_ == whole] == own).all()
    np.testing.assert_array_equal(deep.predict(X), deep.labels_)
    with pytest.warns(ConvergenceWarning, match="3 classes instead of n_clusters=9: 3 of 3 .* kept whole"):
        DeepClustering(SMLClustering(n_components=8), coarse=coarse, n_clusters=9, min_class_size=121).fit(X)


def test_score_is_a_likelihood_that_compares_with_all_at_once():
    """Of one coarse class it is that of the clusterer; of several, a bound that junk does not reach."""
    X, _ = particles(300)
    fine = SMLClustering(6, n_components=8, max_iter=20)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        at_once = clone(fine).fit(X)
    one = fit(X, fine, coarse=SMLClustering(1), n_clusters=6)
    assert one.log_likelihoods(X) == pytest.approx(at_once.log_likelihoods(X), rel=1e-6)
    assert one.score_samples(X) == pytest.approx(at_once.score_samples(X), rel=1e-6)
    # classes that are kept whole: the term of the class, never above the sum of all
    whole = fit(X, coarse=fine, n_clusters=6, min_class_size=1000)
    below = at_once.log_likelihoods(X) - whole.log_likelihoods(X)
    assert below.min() > -1e-4 and np.median(below) < 1
    deep = fit(X)
    junk = np.random.default_rng(0).permuted(np.asarray(X).reshape(300, -1), axis=1).reshape(X.shape)
    assert deep.score(X) > deep.score(ParticleStack(junk, pixel_size=PIXEL_SIZE, ctf=X.ctf))
    assert deep.score(X) == pytest.approx(deep.log_likelihoods(X).mean())
    assert not hasattr(DeepClustering(RotInvWassersteinKMeans()), "score")


def test_one_warning_for_all_fits():
    X, _ = particles(120)
    model = DeepClustering(SMLClustering(n_components=8, max_iter=1), n_clusters=9, min_class_size=10)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        model.fit(X)
    messages = [str(warning.message) for warning in told if warning.category is ConvergenceWarning]
    assert len(messages) == 1
    assert re.match(r"4 of 4 fits warned, the first of coarse: SMLClustering did not converge", messages[0])
    assert told[0].filename == __file__


def test_weights_of_zero_take_no_part():
    X, _ = particles(200)
    weight = np.ones(200)
    weight[::7] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        params = {"n_clusters": 12, "min_class_size": 20, "random_state": 0}
        weighted = DeepClustering(SMLClustering(n_components=8), **params).fit(X, sample_weight=weight)
        without = DeepClustering(SMLClustering(n_components=8), **params).fit(X[weight > 0])
    np.testing.assert_array_equal(weighted.labels_[weight > 0], without.labels_)
    np.testing.assert_array_equal(weighted.predict(X), weighted.labels_)
    assert weighted.coarse_shares_ == pytest.approx(without.coarse_shares_)


def test_other_clusterers_pipelines_and_displays():
    pytest.importorskip("matplotlib.figure", reason="the displays need matplotlib")
    from matplotlib.figure import Figure

    X, _ = particles(60, with_ctf=False)
    deep = DeepClustering(
        RotInvWassersteinKMeans(n_angles=12, max_iter=3, n_jobs=1), n_clusters=5, min_class_size=10, random_state=0
    )
    model = make_pipeline(NormalizeBackground(), deep)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        labels = model.fit_predict(X)
        again = clone(model).fit_predict(X)
        other = clone(model).set_params(deepclustering__estimator__max_iter=1).fit(X)
    np.testing.assert_array_equal(labels, again)
    np.testing.assert_array_equal(model.predict(X), labels)
    assert other[-1].estimators_[0].max_iter == 1
    display = ClassAveragesDisplay.from_estimator(model, ax=Figure().add_subplot())
    assert display.counts.sum() == 60 and len(display.counts) == 5


def test_the_seed_decides():
    X, _ = particles(150)
    drawn = SMLClustering(manifold="none", init="random", n_components=6, max_iter=4)
    labels = [fit(X, drawn, n_clusters=9, random_state=seed).labels_ for seed in (0, 0, 1)]
    np.testing.assert_array_equal(labels[0], labels[1])
    assert (labels[0] != labels[2]).any()


class StopAfter:
    """A callback of scikit-learn's protocol that asks to stop after some steps."""

    def __init__(self, n_steps):
        self.wanted, self.n_steps = n_steps, 0

    def setup(self, estimator, context):
        pass

    def teardown(self, estimator, context):
        pass

    def on_fit_task_begin(self, estimator, context):
        pass

    def on_fit_task_end(self, estimator, context):
        if context.parent is None:
            return False
        self.n_steps += 1
        return self.n_steps == self.wanted


@pytest.mark.parametrize("n_steps", [1, 2])
def test_a_callback_stops_the_fit(n_steps):
    X, _ = particles(200)
    deep = DeepClustering(SMLClustering(n_components=8), n_clusters=12, min_class_size=20, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        deep.set_callbacks(StopAfter(n_steps)).fit(X)
    assert [part is not None for part in deep.estimators_] == [n_steps > 1, False, False]
    np.testing.assert_array_equal(deep.predict(X), deep.labels_)
    assert len(deep.class_averages_) == deep.n_clusters_ == deep.n_subclasses_.sum()


def test_a_fit_goes_on_from_the_classes_that_are_done(tmp_path, monkeypatch):
    X, _ = particles(120)
    unbroken = fit(X, n_clusters=9, min_class_size=10)
    saving = SMLClustering(n_components=8, max_iter=20, checkpoint_dir=tmp_path)
    original, n_fits = SMLClustering.fit, [0]

    def fit_three(self, *args, **params):
        n_fits[0] += 1
        if n_fits[0] == 3:
            raise KeyboardInterrupt
        return original(self, *args, **params)

    monkeypatch.setattr(SMLClustering, "fit", fit_three)
    with pytest.raises(KeyboardInterrupt):
        fit(X, saving, n_clusters=9, min_class_size=10)
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["class0", "coarse"]
    resumed = fit(X, saving, n_clusters=9, min_class_size=10)
    np.testing.assert_array_equal(resumed.labels_, unbroken.labels_)
    np.testing.assert_array_equal(resumed.class_averages_, unbroken.class_averages_)


ONE_POINT = "of four points, each many times, a coarse class is one point, in which there is nothing to classify"


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@parametrize_with_checks(
    [DeepClustering(SMLClustering(alpha=1e4), n_clusters=4, min_class_size=5, random_state=0)],
    expected_failed_checks=lambda estimator: {"check_sample_weights_not_overwritten": ONE_POINT},
    xfail_strict=True,
)
def test_scikit_learn_checks_with_two_levels(estimator, check):
    check(estimator)


# -------------------------------------------------------------------------------------------------- bad input
IMAGES = np.random.default_rng(0).standard_normal((12, 12, 12)).astype(np.float32)
BAD = {
    "no classes": (lambda: DeepClustering(n_clusters=0).fit(IMAGES), "'n_clusters' parameter"),
    "no clusterer": (lambda: DeepClustering(3).fit(IMAGES), "'estimator' parameter"),
    "more classes than images": (lambda: DeepClustering(n_clusters=13).fit(IMAGES), "n_samples=12 .* n_clusters=13"),
    "more classes than images of positive weight": (
        lambda: DeepClustering(n_clusters=3).fit(IMAGES, sample_weight=[1, 1, *[0] * 10]),
        "n_samples=2 .* n_clusters=3.*positive weight",
    ),
    "fewer classes than coarse ones": (
        lambda: DeepClustering(coarse=SMLClustering(4), n_clusters=3).fit(IMAGES),
        "n_clusters=3 should be >= 4, the number of coarse classes",
    ),
    "a grid for all": (
        lambda: DeepClustering(SMLClustering(manifold="flat", grid_shape=(1, 2)), n_clusters=3).fit(IMAGES),
        r"grid_shape=\(1, 2\).*grid_shape=None is wanted",
    ),
    "no number of classes": (
        lambda: DeepClustering(make_pipeline(SMLClustering()), n_clusters=3).fit(IMAGES),
        "estimator=Pipeline has no n_clusters",
    ),
    "coarse without a number of classes": (
        lambda: DeepClustering(coarse=make_pipeline(SMLClustering()), n_clusters=3).fit(IMAGES),
        "coarse=Pipeline has no n_clusters",
    ),
    "a clusterer of rows": (
        lambda: DeepClustering(KMeans(n_init=1), n_clusters=4).fit(np.random.default_rng(0).random((9, 5))),
        "KMeans has no class_averages_",
    ),
    "weights of other images": (
        lambda: DeepClustering(n_clusters=2).fit(IMAGES, sample_weight=np.ones(5)),
        "sample_weight has 5 entries but X has 12",
    ),
    "images all alike": (
        lambda: DeepClustering(n_clusters=4).fit(np.ones((12, 12, 12))),
        "coarse: .*images are all alike",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input(kind):
    function, message = BAD[kind]
    with pytest.raises(ValueError, match=re.compile(message, re.DOTALL)):
        function()


@pytest.mark.parametrize("method", ["predict", "score", "score_samples", "log_likelihoods"])
def test_before_fit(method):
    with pytest.raises(NotFittedError):
        getattr(DeepClustering(), method)(IMAGES)
