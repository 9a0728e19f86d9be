"""Rotation-invariant k-means: known classes, a naive reference, grid search, weights, invariances, odd data."""

import warnings

import numpy as np
import pytest
import pywt
from common_kmeans import (
    METRICS,
    N_ANGLES,
    PIXEL_SIZE,
    SIZE,
    assert_same_fit,
    correlations,
    disc,
    in_files,
    kmeans,
    particles,
    quiet,
    shapes,
    turned,
)
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import adjusted_rand_score
from sklearn.model_selection import GridSearchCV, KFold, ParameterGrid
from sklearn.pipeline import make_pipeline

from skcryo._ext import _emd as kernels
from skcryo.cluster import _images, _lloyd
from skcryo.cluster._images import Images
from skcryo.cluster._search import make_search
from skcryo.cluster._seeding import plus_plus_averages, random_averages
from skcryo.ctf import make_ctf
from skcryo.datasets import make_molecule, make_particles
from skcryo.fourier import rotate_images
from skcryo.metrics import occupancy_entropy
from skcryo.particles import ParticleStack
from skcryo.preprocessing import NormalizeBackground

# ------------------------------------------------------------------------------------- known classes and poses
KINDS = {
    "centred": {},
    "odd box": {"size": 33},
    "shifted": {"shift": 1},
    "ctf": {"ctf": True},
    "ctf, shifted, in files": {"ctf": True, "shift": 1},
}


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", KINDS)
def test_known_classes_angles_and_shifts(kind, metric, tmp_path):
    known = particles(**KINDS[kind])
    shifted = "shift" in KINDS[kind]
    X = in_files(known, tmp_path) if "files" in kind else known.stack
    # Of centred images k-means++ finds the classes; whole-pixel shifts under w1 want a start near them.
    init = known.classes if shifted and metric == "w1" else "k-means++"
    model = kmeans(metric=metric, max_shift=3 if shifted else 0, init=init).fit(X)
    assert model.converged_
    assert adjusted_rand_score(known.labels, model.labels_) == 1
    assert len(np.unique(model.labels_)) == 4
    step = 2 * np.pi / N_ANGLES
    for c in range(4):
        members = model.labels_ == c
        turns = np.exp(1j * (model.in_plane_angles_ - known.angles)[members])
        off = np.angle(turns / turns.sum())
        assert np.quantile(np.abs(off), 0.9) < 1.5 * step, "angles within a class disagree"
        # An average that lies off centre turns with the images, so that shift = true shift + Rot(angle) offset.
        offset = turned((model.shifts_ - known.shifts)[members], -model.in_plane_angles_[members])
        assert np.quantile(np.abs(offset - np.median(offset, axis=0)), 0.9) < 1.1
    # The convention: image = CTF * shift(rotate(average, angle), shift).
    labels, angles, shifts = model.labels_, model.in_plane_angles_, model.shifts_
    right = correlations(known, model.class_averages_, labels, angles, shifts)
    assert right > 0.88
    assert correlations(known, model.class_averages_, labels, -angles, shifts) < 0.8
    if shifted:
        assert correlations(known, model.class_averages_, labels, angles, -shifts) < right - 0.03
    assert np.hypot(*model.shifts_.T).max() <= model.max_shift
    np.testing.assert_array_equal(model.predict(X), model.labels_)


# ------------------------------------------------------------------------------------- a naive reference
def equation_8(images):
    """Weighted wavelet details of images inside the disc, as rows whose l1 distance is the paper's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bands = pywt.wavedec2(images * disc(images.shape[-1]), "sym5", mode="zero", level=6)[1:]
    return np.concatenate(
        [4.0**-s * np.reshape(part, (len(images), -1)) for s, band in enumerate(bands) for part in band], axis=1
    )


def algorithm_1(images, averages, n_angles, n_iter):
    """The paper's algorithm 1, every distance computed: labels, angles, averages, inertia of each iteration."""
    angles = 2 * np.pi * np.arange(n_angles) / n_angles
    rows = equation_8(images)
    for _ in range(n_iter + 1):
        distances = np.empty((len(images), len(averages), n_angles))
        for c, average in enumerate(averages):
            for j, row_of_average in enumerate(equation_8(rotate_images(np.stack([average] * n_angles), angles))):
                for i, row in enumerate(rows):
                    distances[i, c, j] = np.abs(row - row_of_average).sum()
        best = distances.reshape(len(images), -1).argmin(axis=1)
        labels, turns = np.divmod(best, n_angles)
        inertia = (distances.reshape(len(images), -1).min(axis=1) ** 2).sum()
        yield labels, angles[turns], averages, inertia
        back = rotate_images(images, -angles[turns])
        averages = np.stack([back[labels == c].mean(axis=0) for c in range(len(averages))]) * disc(images.shape[-1])


@pytest.mark.parametrize("seed", [0, 1])
def test_algorithm_1_written_out(seed):
    known = particles(40, 3, seed, size=24, noise=2.0)
    init = known.X[:3].astype(np.float64)
    reference = list(algorithm_1(known.X.astype(np.float64), init, 24, 4))
    assert len({tuple(labels) for labels, *_ in reference}) >= 3, "the reference hardly moves: the test is empty"
    for n_iter in (1, 2, 4):
        model = quiet(kmeans(3, metric="w1", init=init, balance=0, tol=0, n_angles=24, max_iter=n_iter), known.X)
        assert model.n_iter_ == n_iter
        labels, angles, averages, inertia = reference[n_iter - model.converged_]
        np.testing.assert_array_equal(model.labels_, labels)
        np.testing.assert_allclose(model.in_plane_angles_, angles, atol=1e-9)
        np.testing.assert_allclose(model.class_averages_, averages, atol=1e-4)
        assert model.inertia_ == pytest.approx(inertia, rel=1e-5)
        assert model.inertia_curve_ == pytest.approx([r[3] for r in reference[:n_iter]], rel=1e-5)


# ------------------------------------------------------------------------------------- what a fit says of itself
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("balance", [0, 0.5])
@pytest.mark.parametrize("kind", [{}, {"ctf": True}, {"shift": 1}, {"shift": 1, "ctf": True}], ids=str)
def test_predict_on_the_training_data_is_the_fit(metric, balance, kind):
    known = particles(40, noise=3.0, **kind)
    max_shift = 2 if "shift" in kind else 0
    model = quiet(kmeans(5, metric=metric, max_iter=3, balance=balance, max_shift=max_shift), known.stack)
    labels, angles, shifts = model.align(known.stack)
    np.testing.assert_array_equal(model.predict(known.stack), model.labels_)
    np.testing.assert_array_equal(labels, model.labels_)
    np.testing.assert_array_equal(angles, model.in_plane_angles_)
    np.testing.assert_array_equal(shifts, model.shifts_)
    assert model.score(known.stack) == -model.inertia_
    distances = model.transform(known.stack)
    np.testing.assert_allclose(distances[np.arange(40), model.labels_], model.distances_, rtol=1e-6)
    assert model.class_biases_.any() == (balance > 0)
    costs = (distances if metric == "w1" else distances**2) + model.class_biases_
    np.testing.assert_allclose(costs[np.arange(40), model.labels_], costs.min(axis=1), rtol=1e-6)
    if balance == 0:
        np.testing.assert_array_equal(distances.argmin(axis=1), model.labels_)
    assert model.inertia_ == pytest.approx((model.distances_.astype(float) ** 2).sum(), rel=1e-5)
    # Each image is judged on its own, whatever the CTFs of the others.
    np.testing.assert_array_equal(model.predict(known.stack[7:9]), model.labels_[7:9])
    np.testing.assert_array_equal(model.transform(known.stack[7:9]), distances[7:9])


def test_attributes_and_their_types():
    known = particles(30)
    model = kmeans().fit(known.X)
    assert model.labels_.dtype == np.int32 and model.labels_.shape == (30,)
    assert model.in_plane_angles_.dtype == np.float64 and model.shifts_.shape == (30, 2)
    assert ((0 <= model.in_plane_angles_) & (model.in_plane_angles_ < 2 * np.pi)).all()
    assert model.inertia_curve_.shape == (model.n_iter_,)
    np.testing.assert_array_equal(model.cluster_centers_, model.class_averages_.reshape(4, -1))
    assert not model.class_averages_[:, ~disc(SIZE)].any()
    assert list(model.get_feature_names_out()) == [f"rotinvwassersteinkmeans{i}" for i in range(4)]


# ------------------------------------------------------------------------------------- grid search
@pytest.mark.slow
def test_grid_search_on_a_lazy_stack_with_ctfs_is_the_loop_by_hand(tmp_path):
    stack = in_files(particles(72, 3, noise=1.5, ctf=True), tmp_path)
    model = make_pipeline(NormalizeBackground(), kmeans(max_iter=4, n_angles=24))
    name = "rotinvwassersteinkmeans"
    grid = {f"{name}__n_clusters": [2, 3], f"{name}__metric": ["w1", "sobolev"]}
    cv = KFold(3, shuffle=True, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        search = GridSearchCV(clone(model), grid, cv=cv, n_jobs=2, error_score="raise").fit(stack)
        by_hand = {}
        for index, params in enumerate(ParameterGrid(grid)):
            fitted = clone(model).set_params(**params)
            scores = [fitted.fit(stack[train]).score(stack[test]) for train, test in cv.split(stack)]
            by_hand[index] = np.mean(scores)
            found = [search.cv_results_[f"split{i}_test_score"][index] for i in range(3)]
            assert found == pytest.approx(scores, rel=1e-12)
        best = list(ParameterGrid(grid))[max(by_hand, key=by_hand.get)]
        refit = clone(model).set_params(**best).fit(stack)
    assert search.best_params_ == best
    assert best[f"{name}__n_clusters"] == 3
    assert_same_fit(search.best_estimator_[-1], refit[-1])
    np.testing.assert_array_equal(search.predict(stack), refit[-1].labels_)


# ------------------------------------------------------------------------------------- however it is run, the same res
@pytest.mark.parametrize("metric", ["w1", "sobolev"])
@pytest.mark.parametrize("shift", [0, 1])
def test_threads_memory_and_containers_change_nothing(metric, shift, monkeypatch, tmp_path):
    known = particles(16 if shift else 30, noise=2.0, shift=shift, ctf=True)
    model = kmeans(metric=metric, max_iter=3, n_angles=12 if shift else 24, max_shift=1.5 * shift)
    monkeypatch.setattr(_lloyd, "_FULL_SEARCHES", (0,))  # then near known shifts
    expected = quiet(clone(model), known.stack)
    for n_jobs in (2, 3):
        assert_same_fit(quiet(clone(model).set_params(n_jobs=n_jobs), known.stack), expected)
    double = quiet(clone(model), known.stack.replace(data=known.X.astype(np.float64)))
    assert double.class_averages_.dtype == double.distances_.dtype == np.float64
    np.testing.assert_array_equal(double.labels_, expected.labels_)
    np.testing.assert_array_equal(double.class_averages_, expected.class_averages_)
    np.save(tmp_path / "images.npy", known.X)
    lazy = ParticleStack(np.load(tmp_path / "images.npy", mmap_mode="r"), pixel_size=PIXEL_SIZE).map(lambda x: x)
    assert_same_fit(quiet(clone(model), lazy, ctf=known.ctf), expected)
    monkeypatch.setattr(_lloyd, "_CACHE", 1000)  # features are made anew in each iteration ...
    monkeypatch.setattr(_images, "CHUNK", 30000)  # ... a few images at a time
    streamed = quiet(clone(model), in_files(known, tmp_path).replace(ctf=known.ctf, pixel_size=PIXEL_SIZE))
    assert_same_fit(streamed, expected)
    np.testing.assert_array_equal(streamed.predict(known.stack), expected.labels_)


@pytest.mark.parametrize("metric", ["w1", "sobolev"])
def test_instruction_sets_change_nothing(metric):
    known = particles(30, noise=2.0)
    results = []
    for instruction_set in kernels.available_instruction_sets():
        before = kernels.use_instruction_set(instruction_set)
        try:
            results.append(quiet(kmeans(metric=metric, max_iter=3), known.X))
        finally:
            kernels.use_instruction_set(before)
    for other in results[1:]:
        assert_same_fit(results[0], other)


# ------------------------------------------------------------------------------------- empty classes, balance
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("balance", [0, 0.5, 1])
@pytest.mark.parametrize("kind", ["duplicates", "far off"])
def test_empty_classes_are_filled(metric, balance, kind):
    known = particles(noise=1.0)
    init = np.stack([known.classes[0]] * 6)
    if kind == "far off":
        init = np.concatenate([known.classes, 100 * known.classes[2:]])
    model = quiet(kmeans(6, metric=metric, balance=balance, init=init), known.X)
    assert (np.bincount(model.labels_, minlength=6) > 0).all()


@pytest.mark.parametrize("metric", METRICS)
def test_more_classes_than_shapes_stay_filled(metric):
    """Nearly clean images: halves of one true class must not swallow each other by turns, as balance once made them."""
    for seed in range(4):
        known = particles(80, seed=seed, noise=0.3)
        model = quiet(kmeans(7, metric=metric, balance=0.5, random_state=seed), known.X)
        assert (np.bincount(model.labels_, minlength=7) > 0).all()


@pytest.mark.parametrize("metric", ["w1", "sobolev"])
def test_as_many_classes_as_different_images_at_most(metric):
    X = np.repeat(shapes(2), 4, axis=0)
    with pytest.warns(ConvergenceWarning, match="2 of the n_clusters=4 classes are empty"):
        model = kmeans(4, metric=metric, init=shapes(4)).fit(X)
    assert model.converged_ and model.n_iter_ < 10
    assert adjusted_rand_score(model.labels_, np.repeat([0, 1], 4)) == 1


@pytest.mark.parametrize("metric", ["w1", "sobolev"])
def test_balance_evens_classes(metric):
    """Views of a molecule, of which some classes attract more than others."""
    entropy = {0: [], 1: []}
    for seed in range(3):
        X, _ = make_particles(make_molecule(24), 150, snr=1.0, random_state=seed)
        for balance, found in entropy.items():
            model = kmeans(6, metric=metric, balance=balance, n_angles=24, random_state=seed, max_iter=12)
            found.append(occupancy_entropy(quiet(model, X).labels_, 6))
    assert np.mean(entropy[1]) > np.mean(entropy[0]) + 0.005
    assert np.mean(entropy[1]) > 0.985


# ------------------------------------------------------------------------------------- weights
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("shift", [0, 1])
def test_weight_zero_is_absence_from_the_averages(metric, shift):
    known = particles(noise=2.0, shift=shift)
    weight = np.ones(60)
    weight[::7] = 0
    model = kmeans(metric=metric, init=known.classes, max_iter=3, max_shift=1.5 * shift)
    weighted = quiet(clone(model), known.X, sample_weight=weight)
    without = quiet(clone(model), known.X[weight > 0])
    np.testing.assert_array_equal(weighted.class_averages_, without.class_averages_)
    np.testing.assert_array_equal(weighted.class_biases_, without.class_biases_)
    np.testing.assert_array_equal(weighted.labels_, without.predict(known.X))
    np.testing.assert_array_equal(weighted.labels_[weight > 0], without.labels_)
    assert weighted.inertia_ == pytest.approx(without.inertia_, rel=1e-12)
    assert weighted.score(known.X, sample_weight=weight) == -weighted.inertia_


@pytest.mark.parametrize("metric", METRICS)
def test_whole_weights_are_repetition(metric):
    known = particles(noise=2.0)
    weight = np.random.default_rng(0).integers(1, 5, 60)
    model = kmeans(metric=metric, init=known.classes, max_iter=3, balance=0)
    weighted = quiet(clone(model), known.X, sample_weight=weight)
    repeated = quiet(clone(model), np.repeat(known.X, weight, axis=0))
    np.testing.assert_allclose(weighted.class_averages_, repeated.class_averages_, atol=1e-4)
    np.testing.assert_array_equal(np.repeat(weighted.labels_, weight), repeated.labels_)
    assert weighted.inertia_ == pytest.approx(repeated.inertia_, rel=1e-5)
    # Weights do matter: the averages without them are others.
    assert np.abs(quiet(clone(model), known.X).class_averages_ - weighted.class_averages_).max() > 0.01


# ------------------------------------------------------------------------------------- starts and stops
def test_the_best_of_several_starts_is_kept():
    """Further starts follow the first of the same seed, so that the least inertia can only fall."""
    X = particles(noise=3.0).X
    falls = []
    for seed in range(3):
        model = kmeans(6, init="random", random_state=seed)
        falls.append(np.diff([quiet(clone(model).set_params(n_init=n), X).inertia_ for n in (1, 2, 3, 6)]))
    assert np.max(falls) <= 0
    assert np.min(falls) < 0


@pytest.mark.parametrize("max_shift", [0, 2])
def test_only_a_fit_that_has_not_settled_warns(max_shift):
    X = particles(noise=0.5).X
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert kmeans(max_shift=max_shift).fit(X).converged_
        # Few iterations are enough where the start is right.
        assert kmeans(max_shift=max_shift, init=shapes(), max_iter=5).fit(X).converged_
        assert kmeans(1, max_shift=max_shift).fit(X).converged_
    with pytest.warns(ConvergenceWarning, match=r"did not settle in 1 iterations \(max_iter=1\)"):
        model = kmeans(max_shift=max_shift, max_iter=1).fit(X)
    assert model.n_iter_ == 1 and not model.converged_


def test_tol_is_the_share_of_images_that_may_change():
    X = particles(100, noise=4.0).X
    model = kmeans(5, metric="w1", init="random", max_iter=100, balance=0)
    n_iter = [quiet(clone(model).set_params(tol=tol), X).n_iter_ for tol in (1.0, 0.1, 0.0)]
    assert n_iter[0] == 2 <= n_iter[1] <= n_iter[2] and n_iter[2] > 3


def test_plus_plus_spreads_over_the_classes():
    """Six classes, one of 70 % of the images: random starts see less than 4 of them, k-means++ almost all."""
    known = particles(100, 6, noise=0.5, chances=[0.7, *[0.06] * 5])
    estimator = kmeans(6)
    estimator.n_features_in_ = SIZE**2
    data = Images(estimator, known.stack, None)
    search = make_search(metric="sobolev", size=SIZE, n_angles=24, max_shift=0, lowpass="auto", is_image=True)
    weights = np.ones(100)
    seen = {"k-means++": [], "random": []}
    for seed in range(10):
        rng = np.random.RandomState(seed)
        for name, averages in (
            ("k-means++", plus_plus_averages(data, weights, search, 6, rng, n_sample=80, n_trials=2)),
            ("random", random_averages(data, weights, 6, rng)),
        ):
            apart = np.abs((averages[:, None] - known.X) * disc(SIZE)).sum(axis=(2, 3))
            seen[name].append(len(np.unique(known.labels[apart.argmin(axis=1)])))
    assert np.mean(seen["k-means++"]) > 5.5
    assert np.mean(seen["random"]) < 4


# ------------------------------------------------------------------------------------- shifts
@pytest.mark.parametrize("metric", ["w1", "sobolev"])
def test_shifts_never_leave_the_range_searched(metric, monkeypatch):
    """Nor in between, where iterations look around known shifts only: those of noise would wander off by the step."""
    X = np.random.default_rng(0).standard_normal((40, SIZE, SIZE))
    longest = []
    find = _lloyd.Lloyd._find_near

    def watched(*args):
        found = find(*args)
        longest.append(np.hypot(*found.shifts.T).max())
        return found

    monkeypatch.setattr(_lloyd.Lloyd, "_find_near", watched)
    quiet(kmeans(3, metric=metric, max_shift=3, n_angles=12, max_iter=14, tol=0), X)
    assert len(longest) >= 3
    assert max(longest) < 3.5


@pytest.mark.parametrize("metric", METRICS)
def test_particles_picked_off_their_centre_of_mass(metric, monkeypatch):
    """Class averages are not moved to where their images cannot follow: inertias were 2, 8 and (w1) 13 times these."""
    known = particles(noise=0.3, shift=1, centre=(3.0, -2.0))
    model = kmeans(metric=metric, max_shift=3, init=known.classes, balance=0).fit(known.X)
    monkeypatch.setattr(_lloyd, "_RECENTER", 0)
    reference = kmeans(metric=metric, max_shift=3, init=known.classes, balance=0).fit(known.X)
    assert adjusted_rand_score(known.labels, model.labels_) == 1
    # Shifts by whole pixels, as w1 searches them, cost more where averages lie between pixels.
    assert model.inertia_ < (4 if metric == "w1" else 1.5) * reference.inertia_


# ------------------------------------------------------------------------------------- invariances
@pytest.mark.parametrize("metric", METRICS)
def test_quarter_turns_change_nothing(metric):
    """An odd box turns by a quarter onto itself, without interpolation. Wavelets have no such symmetry, though."""
    known = particles(40, size=33, noise=0.5 if metric == "w1" else 2.0)
    turns = np.random.default_rng(1).integers(4, size=40)
    turned = np.stack([np.rot90(image, -t) for image, t in zip(known.X, turns)])  # counter-clockwise from x to y
    model = kmeans(metric=metric, init=known.classes, max_iter=4)
    expected, found = quiet(clone(model), known.X), quiet(clone(model), turned)
    np.testing.assert_array_equal(found.labels_, expected.labels_)
    off = np.angle(np.exp(1j * (found.in_plane_angles_ - expected.in_plane_angles_ - turns * np.pi / 2)))
    if metric == "w1":
        assert np.abs(off).max() < 1.2 * 2 * np.pi / N_ANGLES
    else:
        np.testing.assert_allclose(off, 0, atol=1e-6)
        np.testing.assert_allclose(found.class_averages_, expected.class_averages_, atol=1e-3)


@pytest.mark.parametrize("metric", METRICS)
def test_turning_every_image_changes_no_label(metric):
    known = particles(noise=0.3)
    steps = np.random.default_rng(2).integers(N_ANGLES, size=60)
    turned = rotate_images(known.X, 2 * np.pi * steps / N_ANGLES)
    model = kmeans(metric=metric).fit(known.X)
    np.testing.assert_array_equal(model.predict(turned), model.labels_)
    found = kmeans(metric=metric, init=known.classes).fit(turned)
    assert adjusted_rand_score(found.labels_, model.labels_) == 1


@pytest.mark.parametrize("metric", METRICS)
def test_the_order_of_images_does_not_matter(metric):
    known = particles(noise=2.0)
    order = np.random.default_rng(3).permutation(60)
    model = kmeans(metric=metric, init=known.classes, max_iter=3)
    expected, found = quiet(clone(model), known.X), quiet(clone(model), known.X[order])
    np.testing.assert_array_equal(found.labels_, expected.labels_[order])
    np.testing.assert_array_equal(found.in_plane_angles_, expected.in_plane_angles_[order])
    np.testing.assert_allclose(found.class_averages_, expected.class_averages_, atol=1e-5)


# ------------------------------------------------------------------------------------- data as they come
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("shift", [0, 1])
def test_junk_beside_particles(metric, shift):
    """Zero, constant and pure-noise images and a hot pixel, each with a class of its own: none harms the others."""
    known = particles(30, shift=shift)
    rng = np.random.default_rng(4)
    junk = np.stack([np.zeros((SIZE, SIZE)), np.ones((SIZE, SIZE)), *rng.standard_normal((2, SIZE, SIZE))])
    junk[3, 9, 20] = 100
    X = np.concatenate([junk, known.X]).astype(np.float32)
    init = np.concatenate([known.classes, junk * disc(SIZE)])
    model = kmeans(8, metric=metric, max_shift=1.5 * shift, init=init, balance=0, n_angles=24, max_iter=5)
    quiet(model, X)
    assert np.isfinite(model.class_averages_).all() and np.isfinite(model.distances_).all()
    assert adjusted_rand_score(known.labels, model.labels_[4:]) > 0.95
    seeded = quiet(model.set_params(init="k-means++", balance=0.5, max_iter=3), X)
    assert np.isfinite(seeded.class_averages_).all()


@pytest.mark.parametrize("metric", METRICS)
def test_images_of_nothing(metric):
    model = quiet(kmeans(2, metric=metric), np.zeros((5, 16, 16)))
    assert model.inertia_ == 0
    assert not model.transform(np.zeros((1, 16, 16))).any()
    with_ctf = ParticleStack(np.zeros((5, 16, 16)), pixel_size=4.0, ctf=make_ctf(5, defocus_u=1e4))
    assert np.isfinite(quiet(kmeans(2, metric=metric, max_shift=2), with_ctf).class_averages_).all()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("size", [5, 8, 9, 15])
def test_tiny_boxes(metric, size):
    known = particles(20, 3, size=size, noise=0.1)
    for max_shift in (0, 1):
        model = quiet(kmeans(3, metric=metric, max_shift=max_shift), known.X)
        assert model.class_averages_.shape == (3, size, size)
        np.testing.assert_array_equal(model.predict(known.X), model.labels_)


@pytest.mark.parametrize(
    ("init", "message"),
    [
        (lambda: np.where(np.arange(4)[:, None, None] == 2, np.nan, shapes()), "init holds .* first average 2"),
        (lambda: np.where(np.arange(4)[:, None, None] == 3, np.inf, shapes()), "init holds .* first average 3"),
        (lambda: shapes(3), r"init has shape \(3, 32, 32\), wanted .* \(4, 32, 32\)"),
        (lambda: shapes().reshape(4, -1)[:, :-1], r"init has shape \(4, 1023\)"),
        (lambda: "kmeans", "'init' parameter"),
    ],
)
def test_bad_first_averages_are_named(init, message):
    with pytest.raises(ValueError, match=message):
        kmeans(init=init()).fit(particles(20).X)


def test_first_averages_may_be_rows():
    X = particles(20).X
    assert_same_fit(kmeans(init=shapes().reshape(4, -1)).fit(X), kmeans(init=shapes()).fit(X))


def test_one_image_a_class():
    X = particles(6, 6, noise=0.2).X
    model = quiet(kmeans(6), X)
    assert sorted(model.labels_) == list(range(6))
    with pytest.raises(ValueError, match="n_samples=6 should be >= n_clusters=7"):
        kmeans(7).fit(X)
