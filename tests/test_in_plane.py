"""The in-plane search against brute force, and the invariances that make it one."""

import pickle

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from skcryo.alignment import PolarFeatures, PolarMatcher, match_reference
from skcryo.ctf import apply_ctf, make_ctf
from skcryo.fourier import rotate_images, shift_images
from skcryo.particles import ParticleStack

PIXEL_SIZE = 3.0


def smooth_images(n, L, seed, *, spread=0.13):
    """Sums of Gaussians wide enough to be band-limited, well inside the box."""
    rng = np.random.default_rng(seed)
    x = np.arange(L) - L // 2
    out = np.zeros((n, L, L), dtype=np.float32)
    for image in out:
        for _ in range(8):
            u, v = rng.uniform(-1.7 * spread * L, 1.7 * spread * L, 2)
            width = rng.uniform(1.3, 2.0)
            image += rng.normal() * np.exp(-((x - u) ** 2 + (x[:, None] - v) ** 2) / (2 * width**2))
    return out


def astigmatic_ctf(n, seed):
    rng = np.random.default_rng(seed)
    return make_ctf(
        n,
        defocus_u=rng.uniform(8000, 15000, n),
        defocus_v=rng.uniform(8000, 15000, n),
        defocus_angle=rng.uniform(0, 180, n),
    )


def simulate(matcher, averages, n, seed, *, noise, max_shift=0.0, ctf=None):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(averages), n)
    angles = rng.integers(0, matcher.n_angles, n) * 2 * np.pi / matcher.n_angles
    shifts = rng.uniform(-max_shift, max_shift, (n, 2)) / np.sqrt(2)
    images = shift_images(rotate_images(averages[labels], angles), shifts)
    if ctf is not None:
        images = apply_ctf(images, ctf, PIXEL_SIZE)
    images = images + noise * images.std() * rng.standard_normal(images.shape)
    return images.astype(np.float32), labels, angles, shifts


def angle_error(a, b):
    return np.abs(np.angle(np.exp(1j * (np.asarray(a) - np.asarray(b)))))


# -------------------------------------------------------------- equal to brute force
@pytest.mark.parametrize("noise", [0.0, 4.0], ids=["clean", "snr-1/16"])
@pytest.mark.parametrize(
    "with_ctf, options",
    [
        (False, {}),
        (False, {"metric": "sobolev"}),
        (False, {"max_shift": 2.0, "lowpass": 1.0}),
        (True, {}),
        (True, {"max_shift": 2.0}),
        (True, {"max_shift": 2.0, "n_angles": 10, "mask_radius": 9.0}),
        (False, {"n_angles": 7}),
    ],
    ids=["plain", "sobolev", "shifts", "ctf", "ctf-shifts", "ten-angles", "odd-angles"],
)
def test_match_is_brute_force(noise, with_ctf, options):
    for seed, L in ((0, 24), (1, 25)):
        matcher = PolarMatcher(L, n_refine=0, **{"n_angles": 16, **options})
        averages = smooth_images(4, L, seed)
        ctf = astigmatic_ctf(12, seed) if with_ctf else None
        images = simulate(matcher, averages, 12, seed, noise=noise, max_shift=matcher.max_shift, ctf=ctf)[0]
        bias = np.random.default_rng(seed).uniform(0, 3, 4)
        slow = match_reference(matcher, images, averages, ctf=ctf, pixel_size=PIXEL_SIZE, bias=bias)
        features = matcher.prepare(images, ctf, PIXEL_SIZE)
        fast = matcher.match(features, matcher.references(averages), bias=bias, return_all=True)
        assert np.array_equal(fast.labels, slow.labels)
        assert angle_error(fast.angles, slow.angles).max() < 1e-9
        assert np.abs(fast.shifts - slow.shifts).max() < 1e-9
        tolerance = 2e-5 * features.norms[:, None]
        assert np.all(np.abs(fast.all_distances2 - slow.all_distances2) < tolerance)
        assert np.all(np.abs(fast.distances2 - slow.distances2) < tolerance[:, 0])


@pytest.mark.parametrize("L", [32, 33], ids=["even", "odd"])
def test_distance_is_the_real_space_distance(L):
    matcher = PolarMatcher(L, n_angles=12)
    averages = smooth_images(3, L, 5)
    images = smooth_images(4, L, 6)
    match = matcher.match(matcher.prepare(images), matcher.references(averages), return_all=True)
    angles = 2 * np.pi * np.arange(12) / 12
    mask = matcher.grid.mask
    for k in range(3):
        turned = rotate_images(np.repeat(averages[k : k + 1], 12, axis=0), angles)
        brute = (np.square(images[:, None] - turned) * mask).sum(axis=(2, 3)).min(axis=1)
        assert match.all_distances2[:, k] == pytest.approx(brute, rel=5e-3)


@pytest.mark.parametrize(
    "options, weight",
    [
        ({"lowpass": 1.5}, lambda k: np.exp(-((2 * np.pi * 1.5 * k) ** 2))),
        ({"metric": "sobolev"}, lambda k: 1 / (1 + (32 * k) ** 2)),
        ({"ring_weights": np.arange(17) / 16.0}, lambda k: 2 * k),
    ],
    ids=["lowpass", "sobolev", "ring-weights"],
)
def test_ring_weights(options, weight):
    """The weighted norm is that of the weighted Fourier coefficients, here on a grid four times as fine."""
    L, N = 32, 256
    images = smooth_images(3, L, 7)
    padded = np.zeros((3, N, N))
    padded[:, :L, :L] = images * PolarMatcher(L).grid.mask
    k = np.hypot(np.fft.fftfreq(N), np.fft.fftfreq(N)[:, None])
    power = np.abs(np.fft.fft2(padded)) ** 2
    wanted = (power * weight(k) * (k <= 0.5)).sum(axis=(1, 2)) / N**2
    assert PolarMatcher(L, **options).prepare(images).norms == pytest.approx(wanted, rel=3e-3)


def test_lowpass_auto_grows_with_the_box():
    a, b = PolarMatcher(64, lowpass="auto").grid.spec, PolarMatcher(64, lowpass=1.0).grid.spec
    assert a == b


# -------------------------------------------------------------- conventions and invariances
@pytest.mark.parametrize("with_ctf", [False, True], ids=["no-ctf", "ctf"])
@pytest.mark.parametrize("previous", [False, True], ids=["first", "with-previous"])
def test_recovers_class_angle_and_shift(with_ctf, previous):
    """A wrong sense of the angle or the shift in ctf * shift(rotate(average, angle), shift) fails."""
    L = 40
    matcher = PolarMatcher(L, n_angles=72, max_shift=4.0, lowpass=0.7)
    for seed in range(2):
        averages = smooth_images(5, L, 20 + seed)
        ctf = astigmatic_ctf(40, seed) if with_ctf else None
        images, labels, angles, shifts = simulate(
            matcher, averages, 40, seed, noise=0.5, max_shift=3.5, ctf=ctf
        )
        features, references = matcher.prepare(images, ctf, PIXEL_SIZE), matcher.references(averages)
        match = matcher.match(features, references)
        if previous:
            rng = np.random.default_rng(seed)
            start = (labels, angles, np.clip(shifts + rng.uniform(-1, 1, shifts.shape), -2.8, 2.8))
            match = matcher.match(features, references, previous=start)
        assert np.array_equal(match.labels, labels)
        assert np.median(angle_error(match.angles, angles)) < 1e-9
        assert np.quantile(np.hypot(*(match.shifts - shifts).T), 0.9) < 0.35
        again = matcher.pose_distances2(features, references, match.labels, match.angles, match.shifts)
        assert np.all(np.abs(again - match.distances2) < 2e-5 * features.norms)


def test_search_near_a_previous_result_never_loses_it():
    L = 32
    matcher = PolarMatcher(L, n_angles=24, max_shift=3.0)
    averages = smooth_images(4, L, 3)
    images = simulate(matcher, averages, 50, 1, noise=3.0, max_shift=3.0)[0]
    features, references = matcher.prepare(images), matcher.references(averages)
    rng = np.random.default_rng(0)
    shifts = rng.uniform(-2.1, 2.1, (50, 2))
    start = (rng.integers(0, 4, 50), rng.uniform(0, 6, 50), shifts)
    bias = rng.uniform(0, 5, 4)
    before = matcher.pose_distances2(features, references, *start) + bias[start[0]]
    match = matcher.match(features, references, bias=bias, previous=start)
    tolerance = 1e-5 * features.norms
    assert np.all(match.distances2 + bias[match.labels] <= before + tolerance)
    again = matcher.match(features, references, bias=bias, previous=match)
    assert np.all(again.distances2 + bias[again.labels] <= match.distances2 + bias[match.labels] + tolerance)
    assert np.hypot(*again.shifts.T).max() <= 3.0 + 1e-6


def test_refinement_improves_on_the_grid():
    L = 32
    coarse, fine = (PolarMatcher(L, n_angles=36, max_shift=3.0, n_refine=q) for q in (0, 3))
    averages = smooth_images(4, L, 8)
    images, _, _, shifts = simulate(coarse, averages, 60, 2, noise=0.3, max_shift=3.0)
    features, references = coarse.prepare(images), coarse.references(averages)
    a, b = coarse.match(features, references), fine.match(features, references, return_all=True)
    assert np.all(b.distances2 <= a.distances2 + 1e-5 * features.norms)
    error = [np.hypot(*(m.shifts - shifts).T).mean() for m in (a, b)]
    assert error[1] < 0.2 < 0.4 < error[0]
    rows = np.arange(60)
    assert np.array_equal(b.all_distances2[rows, b.labels], b.distances2)
    assert np.array_equal(b.all_angles[rows, b.labels], b.angles)
    assert np.array_equal(b.all_shifts[rows, b.labels], b.shifts)
    for k in range(4):
        there = fine.pose_distances2(
            features, references, np.full(60, k), b.all_angles[:, k], b.all_shifts[:, k]
        )
        assert np.all(np.abs(there - b.all_distances2[:, k]) < 2e-5 * features.norms)
    assert np.hypot(*b.shifts.T).max() <= 3.0 + 1e-6


def test_isotropic_ctf_is_the_limit_of_an_astigmatic_one():
    L = 24
    matcher = PolarMatcher(L, n_angles=16)
    averages = smooth_images(3, L, 1)
    round_ctf = make_ctf(6, defocus_u=12000.0, defocus_v=12000.0)
    nearly = make_ctf(6, defocus_u=12000.5, defocus_v=11999.5, defocus_angle=30.0)
    images = simulate(matcher, averages, 6, 1, noise=1.0, ctf=round_ctf)[0]
    references = matcher.references(averages)
    features = matcher.prepare(images, round_ctf, PIXEL_SIZE)
    assert features.ctf_squared.shape[2] == 1
    a = matcher.match(features, references, return_all=True)
    b = matcher.match(matcher.prepare(images, nearly, PIXEL_SIZE), references, return_all=True)
    assert b.all_distances2 == pytest.approx(a.all_distances2, rel=1e-3)


# -------------------------------------------------------------- same bits whatever the split
@pytest.mark.parametrize("with_ctf", [False, True], ids=["no-ctf", "ctf"])
def test_result_depends_on_no_split(with_ctf):
    L, n = 32, 150
    matcher = PolarMatcher(L, n_angles=24, max_shift=2.0)
    averages = smooth_images(3, L, 1)
    ctf = astigmatic_ctf(n, 0) if with_ctf else None
    images = simulate(matcher, averages, n, 0, noise=4.0, max_shift=2.0, ctf=ctf)[0]
    features, references = matcher.prepare(images, ctf, PIXEL_SIZE), matcher.references(averages)
    whole = matcher.match(features, references, return_all=True)
    threads = matcher.match(features, references, return_all=True, n_jobs=2)
    with threadpool_limits(2, "blas"):
        again = matcher.prepare(images, ctf, PIXEL_SIZE)
        blas_threads = matcher.match(again, matcher.references(averages), return_all=True)
    assert np.array_equal(again.values, features.values)
    parts = [slice(0, 70), slice(70, 71), slice(71, n)]
    prepared = [matcher.prepare(images[p], None if ctf is None else ctf[p], PIXEL_SIZE) for p in parts]
    joined = PolarFeatures.concatenate(prepared)
    assert np.array_equal(joined.values, features.values)
    assert np.array_equal(joined.norms, features.norms)
    split = [matcher.match(features[p], references, return_all=True) for p in parts]
    for name in ("labels", "angles", "shifts", "distances2", "all_distances2", "all_angles", "all_shifts"):
        assert np.array_equal(getattr(threads, name), getattr(whole, name)), name
        assert np.array_equal(getattr(blas_threads, name), getattr(whole, name)), name
        assert np.array_equal(np.concatenate([getattr(s, name) for s in split]), getattr(whole, name)), name


def test_ties_go_to_the_lowest_class_angle_and_shift():
    matcher = PolarMatcher(16, n_angles=12, max_shift=2.0)
    averages = np.repeat(smooth_images(1, 16, 0), 3, axis=0)
    features = matcher.prepare(np.concatenate([averages[:2], np.zeros((1, 16, 16))]))
    match = matcher.match(features, matcher.references(averages))
    assert match.labels.tolist() == [0, 0, 0]
    flat = matcher.match(features, matcher.references(np.zeros((2, 16, 16))))
    assert not flat.labels.any() and not flat.angles.any() and not flat.shifts.any()
    assert flat.distances2 == pytest.approx(features.norms)


def test_features_slice_and_report_their_size():
    matcher = PolarMatcher(16, n_angles=12)
    features = matcher.prepare(smooth_images(5, 16, 0))
    assert len(features) == 5 and len(features[1:3]) == 2 and len(features[-1]) == 1
    assert features.values.dtype == np.float32
    assert features.nbytes == features.values.nbytes + features.norms.nbytes
    assert features.nbytes < 6 * 16 * 16 * 4
    assert len(matcher.prepare(np.zeros((0, 16, 16)))) == 0


def test_stacks_and_lists_are_images():
    matcher = PolarMatcher(16, n_angles=12)
    images = smooth_images(40, 16, 0)
    wanted = matcher.prepare(images).values
    for same in (ParticleStack(images), list(images), images.astype(np.float64)):
        assert np.array_equal(matcher.prepare(same).values, wanted)


def test_matcher_pickles_without_its_grid():
    matcher = PolarMatcher(32, n_angles=12)
    grid = matcher.grid
    data = pickle.dumps(matcher)
    assert len(data) < 1000
    assert pickle.loads(data).grid is grid


@pytest.mark.parametrize(
    "options, message",
    [
        ({"metric": "w1"}, "metric must be"),
        ({"n_angles": 0}, "n_angles must be positive"),
        ({"mask_radius": 40.0}, "mask_radius must lie in"),
        ({"lowpass": "wide"}, "lowpass must be"),
        ({"max_frequency": 0.7}, "max_frequency must lie in"),
        ({"max_shift": 16.0}, "max_shift must lie in"),
        ({"ring_weights": np.zeros(17)}, "ring_weights must be"),
        ({"shift_step": 0.0}, "shift_step must be positive"),
    ],
)
def test_parameters_are_refused_by_name(options, message):
    matcher = PolarMatcher(32, **options)
    with pytest.raises(ValueError, match=message):
        matcher.match(matcher.prepare(np.zeros((1, 32, 32))), matcher.references(np.zeros((1, 32, 32))))


def test_inputs_are_refused_by_name():
    matcher = PolarMatcher(16, n_angles=8)
    images = np.zeros((2, 16, 16), dtype=np.float32)
    with pytest.raises(ValueError, match=r"images must have shape \(n, 16, 16\), got \(2, 12, 12\)"):
        matcher.prepare(np.zeros((2, 12, 12)))
    with pytest.raises(ValueError, match="pixel_size is needed"):
        matcher.prepare(images, make_ctf(2, defocus_u=1e4, defocus_v=1e4))
    features, references = matcher.prepare(images), matcher.references(images)
    with pytest.raises(ValueError, match=r"bias must have shape \(2,\), got \(3,\)"):
        matcher.match(features, references, bias=np.zeros(3))
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 2\), got 0 to 5"):
        matcher.pose_distances2(features, references, [0, 5], [0, 0], np.zeros((2, 2)))
