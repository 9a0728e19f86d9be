"""The wavelet earth mover's distance and its exact search."""

import numpy as np
import pytest

from skcryo._ext import _emd as kernels
from skcryo.cluster import rotation_invariant_distances, wavelet_emd
from skcryo.cluster._emd import (
    EMDMatcher,
    WaveletTransform,
    ctf_groups,
    disc_extent,
    filter_radially,
    match_brute_force,
    shift_grid,
    wavelet_coefficients,
)
from skcryo.ctf import apply_ctf, evaluate_ctf_radial, make_ctf
from skcryo.fourier import rotate_images, shift_images

L = 40
PIXEL_SIZE = 4.0


@pytest.fixture(params=kernels.available_instruction_sets())
def instruction_set(request):
    before = kernels.use_instruction_set(request.param)
    yield request.param
    kernels.use_instruction_set(before)


def shapes(n, rng, size=L):
    """Clearly different images: a few blobs each, inside the disc."""
    x = np.arange(size) - size // 2
    images = np.zeros((n, size, size))
    for image in images:
        for _ in range(5):
            r, t = rng.uniform(0, 0.3 * size), rng.uniform(0, 2 * np.pi)
            w = rng.uniform(1.5, 4)
            image += np.exp(-((x - r * np.cos(t)) ** 2 + (x[:, None] - r * np.sin(t)) ** 2) / (2 * w**2))
    return images


def particles(kind, seed, n=60, k=5):
    """Images of k classes, turned; "noisy" adds noise at SNR 1/16, "ctf" CTFs and shifts too."""
    rng = np.random.default_rng(seed)
    classes = shapes(k, rng)
    labels = rng.integers(k, size=n)
    images = rotate_images(classes[labels], rng.uniform(0, 2 * np.pi, n))
    ctf = None
    if kind == "ctf":
        images = shift_images(images, rng.uniform(-2, 2, (n, 2)))
        u = rng.uniform(10000, 25000, n)
        ctf = make_ctf(n, defocus_u=u, defocus_v=0.95 * u, defocus_angle=rng.uniform(0, 180, n), voltage=300, cs=2.7)
        images = apply_ctf(images, ctf, PIXEL_SIZE)
    if kind != "clean":
        images = images + rng.normal(size=images.shape) * np.sqrt((images**2).mean() * 16)
    return images.astype(np.float32), ctf


@pytest.mark.parametrize("size", [8, 33, 40, 64])
def test_rows_carry_the_distance_of_pywavelets(size, instruction_set):
    rng = np.random.default_rng(size)
    images = rng.normal(size=(6, size, size)).astype(np.float32)
    transform = WaveletTransform(size)
    coefficients = wavelet_coefficients(images * transform.mask)
    expected = sum(np.abs(c[:, None] - c[None]).sum(axis=(2, 3, 4)) for c in coefficients)
    rows = transform.transform(images)
    np.testing.assert_allclose(transform.all_pairs(rows, rows), expected, rtol=2e-6, atol=1e-5)
    np.testing.assert_allclose(
        transform.norms(rows).T, [np.abs(c).sum(axis=(1, 2, 3)) for c in coefficients], rtol=1e-5
    )


def test_other_wavelets_and_depths():
    images = np.random.default_rng(0).normal(size=(4, 30, 30))
    for wavelet, levels in (("haar", 3), ("db4", 4), ("sym8", 5)):
        coefficients = wavelet_coefficients(images, wavelet=wavelet, n_levels=levels)
        expected = sum(np.abs(c[:, None] - c[None]).sum(axis=(2, 3, 4)) for c in coefficients)
        np.testing.assert_allclose(
            wavelet_emd(images, wavelet=wavelet, n_levels=levels), expected, rtol=3e-6, atol=1e-5
        )


def test_every_instruction_set_gives_the_same_bits():
    rng = np.random.default_rng(1)
    images = rng.normal(size=(19, L, L)).astype(np.float32)
    transform = WaveletTransform(L)
    splines = transform.splines(images)
    angles = rng.uniform(0, 2 * np.pi, 7)
    results = []
    for name in kernels.available_instruction_sets():
        before = kernels.use_instruction_set(name)
        rows = transform.transform(images)
        results.append(
            (rows, transform.rotations(splines, angles), transform.all_pairs(rows, rows), transform.norms(rows))
        )
        kernels.use_instruction_set(before)
    for other in results[1:]:
        for a, b in zip(results[0], other):
            np.testing.assert_array_equal(a, b)


def test_turned_rows_are_rows_of_turned_images():
    rng = np.random.default_rng(2)
    images = shapes(5, rng).astype(np.float32)
    transform = WaveletTransform(L)
    splines = transform.splines(images)
    angles = rng.uniform(0, 2 * np.pi, 6)
    rotations = transform.rotations(splines, angles)
    for i in range(5):
        one_by_one = transform.turned(splines, np.full(6, i), angles)
        np.testing.assert_array_equal(rotations[i], one_by_one)
        by_scipy = transform.transform(rotate_images(np.repeat(images[i : i + 1], 6, 0), angles))
        scale = np.abs(by_scipy).max()
        np.testing.assert_allclose(one_by_one, by_scipy, atol=2e-5 * scale)
    np.testing.assert_allclose(transform.rotations(splines, [0.0])[:, 0], transform.transform(images), atol=1e-5)


@pytest.mark.parametrize("kind", ["clean", "noisy", "ctf"])
@pytest.mark.parametrize("seed", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_search_is_exact_at_every_iteration(kind, seed, instruction_set):
    """Class, angle, shift and distance of every image equal brute force, from images as centres to averages."""
    images, ctf = particles(kind, seed)
    matcher = EMDMatcher(L, n_angles=40, max_shift=2.0 if kind == "ctf" else 0.0)
    features = matcher.prepare(images, ctf, PIXEL_SIZE)
    rng = np.random.default_rng(seed)
    centres = images[rng.choice(len(images), 7, replace=False)]
    previous, bias = None, np.zeros(7)
    for iteration in range(4):
        found = matcher.match(features, centres, previous=previous, bias=bias)
        expected = match_brute_force(matcher, features, centres, bias=bias)
        np.testing.assert_array_equal(found.labels, expected.labels)
        np.testing.assert_array_equal(found.angles, expected.angles)
        np.testing.assert_array_equal(found.shifts, expected.shifts)
        np.testing.assert_array_equal(found.distances, expected.distances)
        if iteration == 1:
            everything = matcher.match(features, centres, bias=bias, return_all=True)
            np.testing.assert_array_equal(everything.all_distances, expected.all_distances)
            np.testing.assert_array_equal(everything.labels, expected.labels)
        previous = found.labels, found.angles, found.shifts
        bias = rng.uniform(0, 0.02, 7) * np.median(found.distances)
        back = rotate_images(shift_images(images, -found.shifts), -found.angles)
        members = [found.labels == c for c in range(7)]
        centres = np.stack([back[m].mean(0) if m.any() else centre for m, centre in zip(members, centres)])


def test_search_finds_known_rotations_and_shifts():
    rng = np.random.default_rng(3)
    averages = shapes(4, rng)
    labels = np.arange(12) % 4
    steps = rng.integers(40, size=12)
    shifts = rng.integers(-2, 3, size=(12, 2))
    images = shift_images(rotate_images(averages[labels], 2 * np.pi * steps / 40), shifts.astype(float))
    matcher = EMDMatcher(L, n_angles=40, max_shift=3.0)
    found = matcher.match(matcher.prepare(images), averages)
    np.testing.assert_array_equal(found.labels, labels)
    np.testing.assert_allclose(found.angles, 2 * np.pi * steps / 40)
    np.testing.assert_array_equal(found.shifts, shifts)


def test_ties_go_to_the_lowest_class():
    averages = shapes(1, np.random.default_rng(4)).repeat(3, axis=0)
    matcher = EMDMatcher(L, n_angles=20)
    features = matcher.prepare(averages)
    for previous in (None, (np.array([2, 1, 0]), np.zeros(3), np.zeros((3, 2)))):
        np.testing.assert_array_equal(matcher.match(features, averages, previous=previous).labels, 0)


@pytest.mark.parametrize("n_threads", [1, 2, 3])
def test_threads_do_not_change_anything(n_threads):
    images, _ = particles("noisy", 5)
    reference = EMDMatcher(L, n_angles=40, n_threads=1)
    matcher = EMDMatcher(L, n_angles=40, n_threads=n_threads)
    a = reference.match(reference.prepare(images), images[:6])
    b = matcher.match(matcher.prepare(images), images[:6])
    np.testing.assert_array_equal(a.distances, b.distances)
    np.testing.assert_array_equal(a.angles, b.angles)


def test_bounds_leave_little_to_compute():
    """Averages of noisy images: far fewer coefficients are read than brute force would (a search without bounds: 1)."""
    images, _ = particles("noisy", 6, n=200)
    matcher = EMDMatcher(L, n_angles=40, n_threads=1)
    features = matcher.prepare(images)
    centres = images[:5]
    for _ in range(3):
        found = matcher.match(features, centres)
        back = rotate_images(images, -found.angles)
        centres = np.stack([back[found.labels == c].mean(0) for c in np.unique(found.labels)])
    found = matcher.match(features, centres)
    wavelets = matcher.wavelets
    turned = wavelets.rotations(wavelets.splines(centres.astype(np.float32)), matcher.angles)
    tables = kernels.Centres(wavelets._plan, turned, np.zeros(len(turned), np.float32), 0, 8, matcher.n_coarse)
    steps = np.rint(found.angles / (2 * np.pi) * 40).astype(np.int32)
    state = found.distances.copy(), found.labels.copy(), steps, np.zeros(len(images), np.int32)
    read = wavelets._plan.search(features.rows, features.norms, 0, *state, tables)
    everything = len(images) * turned.shape[0] * 40 * wavelets.row_length
    assert read / everything < 0.1


def test_ctf_groups_hold_the_phase():
    rng = np.random.default_rng(7)
    n = 300
    u = rng.uniform(10000, 25000, n)
    ctf = make_ctf(n, defocus_u=u, defocus_v=u, defocus_angle=0, voltage=rng.choice([200.0, 300.0], n), cs=2.7)
    groups, curves = ctf_groups(ctf, 64, 3.0)
    assert 1 < len(curves) < n / 3
    radii = np.arange(64 // 8 + 1) / 64  # up to an eighth of a cycle a pixel
    own = evaluate_ctf_radial(ctf, radii, 3.0)
    assert np.abs(own - curves[groups][:, : len(radii)]).max() < 0.21
    for g in range(len(curves)):
        assert len(np.unique(ctf["voltage"][groups == g])) == 1


def test_radial_filter_of_ones_changes_nothing():
    images = np.random.default_rng(8).normal(size=(3, 33, 33)).astype(np.float32)
    np.testing.assert_allclose(filter_radially(images, np.ones(30)), images, atol=1e-5)


def test_shift_grid():
    grid = shift_grid(2, 1)
    assert grid[0].tolist() == [0, 0]
    assert len(grid) == 13
    assert shift_grid(0, 1).tolist() == [[0, 0]]
    assert (shift_grid(6.5, 2) % 2 == 0).all()


def test_disc_stays_inside_under_rotation():
    for size in (8, 9, 40, 41):
        extent = disc_extent(size)
        mask = (np.arange(size) >= extent[:, :1]) & (np.arange(size) < extent[:, 1:])
        np.testing.assert_allclose(rotate_images(mask[None].astype(float), [np.pi / 2])[0], mask, atol=1e-6)


def test_translation_costs_its_distance():
    """Mass moved by d costs about d: the wavelet sum stays within a constant factor (L2 saturates)."""
    X = np.zeros((7, 64, 64))
    for i, d in enumerate([0, 1, 2, 4, 8, 16, 32]):
        X[i, 28:36, 8 + d : 16 + d] = 1
    distances = wavelet_emd(X)[0]
    assert (np.diff(distances) > 0).all()
    ratio = distances[1:] / np.array([1, 2, 4, 8, 16, 32])
    assert ratio.max() / ratio.min() < 5


def test_follows_the_exact_earth_movers_distance():
    """Against POT's exact W1 between 16 px images of unit mass; plain L2 follows it less."""
    ot = pytest.importorskip("ot")
    rng = np.random.default_rng(9)
    images = shapes(24, rng, size=16)
    images /= images.sum(axis=(1, 2), keepdims=True)
    pixels = np.stack(np.meshgrid(np.arange(16.0), np.arange(16.0)), axis=-1).reshape(-1, 2)
    cost = ot.dist(pixels, pixels, metric="euclidean")
    pairs = [(i, j) for i in range(0, 24, 2) for j in range(1, 24, 3)]
    exact = np.array([ot.emd2(images[i].ravel(), images[j].ravel(), cost) for i, j in pairs])
    approximate = wavelet_emd(images)
    l2 = np.linalg.norm(images[:, None] - images[None], axis=(2, 3))
    ours = np.corrcoef(exact, [approximate[p] for p in pairs])[0, 1]
    theirs = np.corrcoef(exact, [l2[p] for p in pairs])[0, 1]
    assert ours > 0.8
    assert ours > theirs


@pytest.mark.parametrize("metric", ["w1", "l2", "sobolev"])
def test_invariant_distances(metric):
    rng = np.random.default_rng(10)
    images = shapes(5, rng)
    turned = rotate_images(images, 2 * np.pi * rng.integers(40, size=5) / 40)
    d = rotation_invariant_distances(images, turned, metric=metric, n_angles=40)
    assert d.shape == (5, 5)
    others = d + 1e9 * np.eye(5)
    assert (np.diag(d) < 0.25 * others.min(axis=1)).all()
    own = rotation_invariant_distances(images, metric=metric, n_angles=40)
    np.testing.assert_array_equal(own, own.T)
    assert (np.diag(own) == 0).all()


def test_distances_serve_scikit_learn():
    from sklearn.neighbors import KNeighborsClassifier

    rng = np.random.default_rng(11)
    classes = shapes(3, rng)
    y = np.arange(30) % 3
    X = rotate_images(classes[y], rng.uniform(0, 2 * np.pi, 30)) + 0.1 * rng.normal(size=(30, L, L))
    train = rotation_invariant_distances(X[:15], n_angles=40)
    test = rotation_invariant_distances(X[15:], X[:15], n_angles=40)
    knn = KNeighborsClassifier(3, metric="precomputed").fit(train, y[:15])
    assert knn.score(test, y[15:]) == 1.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda X: wavelet_emd(X[:, :, :5]), "square images"),
        (lambda X: wavelet_emd(X, X[:, :8, :8]), "one size"),
        (lambda X: wavelet_emd(X, n_levels=0), "n_levels"),
        (lambda X: wavelet_emd(np.where(np.arange(4)[:, None, None] == 2, np.nan, X)), "image 2"),
        (lambda X: rotation_invariant_distances(X, metric="cosine"), "metric"),
        (lambda X: rotation_invariant_distances(X, max_shift=-1), "max_shift"),
        (lambda X: kernels.use_instruction_set("sse9"), "instruction set"),
    ],
)
def test_bad_input_is_named(call, message):
    X = np.random.default_rng(0).normal(size=(4, 16, 16))
    with pytest.raises(ValueError, match=message):
        call(X)
