"""The project's own checks of every public estimator on stacks of images; scikit-learn's feed rows only."""

import copy
import functools
import inspect
import pickle

import numpy as np
import pytest
from common_estimators import public_estimators
from sklearn.base import clone, is_clusterer
from sklearn.decomposition import PCA
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.pipeline import make_pipeline

from skcryo.ctf import make_ctf
from skcryo.fourier import rotate_images
from skcryo.particles import ParticleStack
from skcryo.preprocessing import Flattener

CASES = public_estimators()
SIDE = 16
METHODS = ("transform", "predict", "score_samples", "decision_function", "score")

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
every_estimator = pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=[pytest.mark.slow] * case.heavy, id=repr(case.estimator)) for case in CASES],
)


def make_images(n_images=24, side=SIDE, seed=0, dtype=np.float32):
    """Two kinds of particles, turned in the plane, with a little noise."""
    rng = np.random.default_rng(seed)
    x = np.arange(side) - side // 2
    bar = np.exp(-(x**2) / 3 - x[:, None] ** 2 / 20)
    ring = np.exp(-((np.hypot(x, x[:, None]) - side / 4) ** 2) / 3)
    images = rotate_images(np.stack([bar, ring] * (n_images // 2)), rng.uniform(0, 2 * np.pi, n_images))
    return (images + 0.1 * rng.standard_normal(images.shape)).astype(dtype)


def answers(estimator, X):
    """What the fitted estimator says of `X`, method by method, as arrays with one row an image."""
    found = {}
    for method in METHODS:
        if hasattr(estimator, method):
            value = np.asarray(getattr(estimator, method)(X))
            found[method] = value.reshape(len(value), -1) if value.ndim else value
    assert found, f"{type(estimator).__name__} answers nothing"
    return found


@functools.cache
def _fitted(number):
    return clone(CASES[number].estimator).fit(make_images())


@functools.cache
def _expected(number):
    return answers(_fitted(number), make_images())


def number_of(case):
    return next(number for number, other in enumerate(CASES) if other is case)


def fitted(case):
    """The case's estimator fitted to ``make_images()``, once for all tests: not to be changed."""
    return _fitted(number_of(case))


def expected_answers(case):
    """What it says of them."""
    return dict(_expected(number_of(case)))


def assert_same(found, expected, tolerance):
    assert found.keys() == expected.keys()
    for method, value in expected.items():
        if value.dtype.kind in "iu":
            assert np.array_equal(found[method], value), method
        else:
            scale = float(np.abs(value).max(initial=1e-12))
            assert found[method] == pytest.approx(value, abs=tolerance * scale), method


def as_memmap(images, folder):
    path = folder / "images.npy"
    np.save(path, images)
    return np.load(path, mmap_mode="r")


def strided(images, folder):
    return np.repeat(images, 2, axis=0)[::2]


def read_only(images, folder):
    images = images.copy()
    images.setflags(write=False)
    return images


def unchanged(images):
    return images


CONTAINERS = {
    "rows": lambda images, folder: images.reshape(len(images), -1),
    "memmap": as_memmap,
    "stack": lambda images, folder: ParticleStack(images),
    "stack of a memmap": lambda images, folder: ParticleStack(as_memmap(images, folder)),
    "lazy stack": lambda images, folder: ParticleStack(as_memmap(images, folder)).map(unchanged),
    "list of images": lambda images, folder: list(images),
    "nested lists": lambda images, folder: images.astype(np.float64).tolist(),
    "Fortran order": lambda images, folder: np.asfortranarray(images),
    "strided": strided,
    "read-only": read_only,
}


@every_estimator
@pytest.mark.parametrize("container", CONTAINERS)
def test_every_container_gives_the_same(case, container, tmp_path):
    images = make_images()
    reference = fitted(case)
    X = CONTAINERS[container](images, tmp_path)
    estimator = clone(case.estimator).fit(X)
    assert tuple(estimator.image_shape_) == (SIDE, SIDE)
    assert estimator.n_features_in_ == SIDE * SIDE
    expected = expected_answers(case)
    assert_same(answers(estimator, X), expected, case.tolerance)
    # Fitted on one, used on the other.
    assert_same(answers(reference, X), expected, case.tolerance)


@every_estimator
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("container", ["array", "rows", "stack"])
def test_dtype_is_kept(case, dtype, container, tmp_path):
    images = make_images(dtype=dtype)
    X = images if container == "array" else CONTAINERS[container](images, tmp_path)
    estimator = clone(case.estimator).fit(X)
    if hasattr(estimator, "transform"):
        assert estimator.transform(X).dtype == dtype
    if hasattr(estimator, "cluster_centers_"):
        assert estimator.cluster_centers_.dtype == dtype


@every_estimator
@pytest.mark.parametrize(
    "dtype",
    [np.int16, np.float16, *(pytest.param(dtype, marks=pytest.mark.slow) for dtype in (np.int8, np.uint8, np.uint16))],
)
def test_what_mrc_files_hold_becomes_float32(case, dtype):
    images = np.abs(100 * make_images()).astype(dtype)
    estimator = clone(case.estimator).fit(images)
    expected = answers(clone(case.estimator).fit(images.astype(np.float32)), images.astype(np.float32))
    assert_same(answers(estimator, images), expected, case.tolerance)
    if hasattr(estimator, "transform"):
        assert estimator.transform(images).dtype == np.float32
        assert estimator.transform(ParticleStack(images)).dtype == np.float32


@every_estimator
def test_input_is_not_changed(case):
    images = make_images()
    before = images.copy()
    answers(clone(case.estimator).fit(images), images)
    assert np.array_equal(images, before)


@every_estimator
@pytest.mark.parametrize("container", ["array", "stack", "lazy stack"])
def test_another_box_size_is_refused_by_name(case, container, tmp_path):
    estimator = copy.deepcopy(fitted(case))
    name = type(estimator).__name__
    X = make_images(side=20)
    if container != "array":
        X = CONTAINERS[container](X, tmp_path)
    message = f"X has images of 20 x 20 pixels, but {name} was fitted on images of 16 x 16 pixels"
    for method in METHODS:
        if hasattr(estimator, method):
            with pytest.raises(ValueError, match=message):
                getattr(estimator, method)(X)
    # A refit forgets the old box.
    assert tuple(estimator.fit(X).image_shape_) == (20, 20)


@every_estimator
def test_another_row_width_is_refused(case):
    estimator = fitted(case)
    method = next(method for method in METHODS if hasattr(estimator, method))
    with pytest.raises(ValueError, match="X has 400 features, but .* is expecting 256 features"):
        getattr(estimator, method)(make_images(side=20).reshape(24, 400))


@every_estimator
def test_a_shape_of_as_many_pixels_is_another_shape(case):
    estimator = fitted(case)
    method = next(method for method in METHODS if hasattr(estimator, method))
    with pytest.raises(ValueError, match="8 x 32 pixels"):
        getattr(estimator, method)(make_images().reshape(24, 8, 32))


@every_estimator
def test_fitted_estimators_pickle(case):
    again = pickle.loads(pickle.dumps(fitted(case)))
    assert_same(answers(again, make_images()), expected_answers(case), 0)


@every_estimator
def test_clone_forgets_the_fit(case):
    estimator = clone(fitted(case))
    assert not [name for name in vars(estimator) if name.endswith("_") and not name.startswith("_")]
    assert repr(estimator.get_params()) == repr(case.estimator.get_params())


@every_estimator
def test_set_output(case):
    estimator = clone(case.estimator)
    if not hasattr(estimator, "transform"):
        pytest.skip("no transform, hence no output to set")
    images = make_images()
    if hasattr(estimator, "get_feature_names_out"):
        out = estimator.set_output(transform="default").fit(images).transform(images)
        assert len(estimator.get_feature_names_out()) == out.shape[1]
    else:
        # Images are no table: neither wrapped now nor when all of scikit-learn is told to wrap.
        assert not hasattr(estimator, "set_output")
        assert clone(estimator).fit(images).transform(images).ndim == 3


@pytest.mark.slow
@every_estimator
def test_grid_search_in_two_processes(case, tmp_path):
    stack = ParticleStack(as_memmap(make_images(), tmp_path), pixel_size=2.0)
    if case.grid:
        model, grid = clone(case.estimator), case.grid
    elif hasattr(case.estimator, "transform"):
        model = make_pipeline(clone(case.estimator), Flattener(), PCA(2, random_state=0))
        grid = {"pca__n_components": [1, 2]}
    else:
        pytest.fail(f"{case.name} has no transform, so its case must give a grid")
    scores = {}
    for n_jobs in (1, 2):
        cv = KFold(3, shuffle=True, random_state=0)
        search = GridSearchCV(clone(model), grid, cv=cv, n_jobs=n_jobs, error_score="raise").fit(stack)
        scores[n_jobs] = search.cv_results_["mean_test_score"]
    assert np.all(np.isfinite(scores[1]))
    assert scores[2] == pytest.approx(scores[1], rel=1e-6)


@every_estimator
def test_the_seed_decides_whatever_the_number_of_jobs(case):
    images = make_images()
    expected = expected_answers(case)
    assert_same(answers(clone(case.estimator).fit(images), images), expected, 0)
    if "n_jobs" in case.estimator.get_params():
        for n_jobs in (1, 2):
            other = clone(case.estimator).set_params(n_jobs=n_jobs).fit(images)
            assert_same(answers(other, images), expected, 0)


@every_estimator
def test_each_image_is_judged_on_its_own(case):
    images, estimator = make_images(), fitted(case)
    order = np.random.default_rng(1).permutation(len(images))
    expected = {k: v for k, v in expected_answers(case).items() if v.ndim}
    shuffled = {k: v for k, v in answers(estimator, images[order]).items() if v.ndim}
    assert_same(shuffled, {method: value[order] for method, value in expected.items()}, case.tolerance)
    alone = {k: v for k, v in answers(estimator, images[5:6]).items() if v.ndim}
    assert_same(alone, {method: value[5:6] for method, value in expected.items()}, case.tolerance)


@every_estimator
def test_fit_does_not_depend_on_the_order(case):
    if case.order_matters:
        pytest.skip("starts from images drawn by chance, so another order is another start")
    images = make_images()
    other = clone(case.estimator).fit(images[::-1])
    assert_same(answers(other, images), expected_answers(case), case.tolerance)


@every_estimator
def test_the_ctf_rides_on_the_stack_or_comes_by_keyword(case):
    methods = [getattr(case.estimator, name) for name in ("fit", *METHODS) if hasattr(case.estimator, name)]
    if not any("ctf" in inspect.signature(method).parameters for method in methods):
        pytest.skip("asks for no CTF")
    stack = ParticleStack(make_images(), pixel_size=4.0)
    ctf = make_ctf(len(stack), defocus_u=np.linspace(6e3, 2e4, len(stack)))
    other = make_ctf(len(stack), defocus_u=9e3)

    def run(X, keywords):
        estimator = clone(case.estimator)
        asked = "ctf" in inspect.signature(estimator.fit).parameters
        estimator.fit(X, **(keywords if asked else {}))
        said = (np.asarray(getattr(estimator, name)(X, **keywords)) for name in METHODS if hasattr(estimator, name))
        return next(answer for answer in said if answer.dtype.kind not in "iu")  # labels need not feel a CTF

    riding = run(stack.replace(ctf=ctf), {})
    assert run(stack, {"ctf": ctf}) == pytest.approx(riding)
    # The keyword goes before what the stack carries, and neither is ignored.
    assert run(stack.replace(ctf=other), {"ctf": ctf}) == pytest.approx(riding)
    assert run(stack.replace(ctf=other), {}) != pytest.approx(riding)
    assert run(stack, {}) != pytest.approx(riding)


@every_estimator
def test_sample_weight_of_zero_is_as_good_as_absence(case):
    if "sample_weight" not in inspect.signature(case.estimator.fit).parameters:
        pytest.skip("takes no sample_weight")
    images = make_images()
    weight = np.ones(len(images))
    weight[[3, 8, 9]] = 0
    weighted = clone(case.estimator).fit(images, sample_weight=weight)
    without = clone(case.estimator).fit(images[weight > 0])
    assert_same(answers(weighted, images), answers(without, images), case.tolerance)


@every_estimator
def test_clusterers_find_the_two_kinds_in_every_container(case, tmp_path):
    if not is_clusterer(case.estimator):
        pytest.skip("no clusterer")
    images = make_images()
    for container in ("stack", "lazy stack"):
        labels = clone(case.estimator).fit_predict(CONTAINERS[container](images, tmp_path))
        assert labels.dtype.kind == "i"
        # Chance would score 0.5 or so.
        agreement = np.mean(labels == np.arange(24) % 2)
        assert max(agreement, 1 - agreement) == 1
