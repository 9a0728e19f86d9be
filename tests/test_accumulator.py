"""The sums that a volume is made of, against sums over all points written out, and least squares done slowly."""

import time

import numpy as np
import pytest
import scipy.sparse.linalg

from skcryo.ctf import make_ctf
from skcryo.datasets import make_molecule
from skcryo.fourier import fft3c, radial_average
from skcryo.metrics import fsc
from skcryo.projection import backproject, project
from skcryo.reconstruction import FourierAccumulator, half_plane, slice_data, spectral_prior, spherical_mask
from skcryo.rotations import random_rotations

SIZES = [16, 17]


def white(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def varied_ctf(n):
    return make_ctf(n, defocus_u=np.linspace(1e4, 2.5e4, n), defocus_v=np.linspace(1e4, 2.3e4, n))


def accumulate(images, rotations, **options):
    accumulator = FourierAccumulator(images.shape[-1])
    accumulator.add(*slice_data(images, **options), rotations, half_plane(images.shape[-1])[0])
    return accumulator


def dense_slices(L, rotations):
    """Matrix of central slices, and how many frequencies each row stands for."""
    points = half_plane(L)[0]
    k = np.einsum("nij,pj->npi", rotations[:, :, :2], points).reshape(-1, 3)
    place = np.arange(L) - L // 2
    z, y, x = np.meshgrid(place, place, place, indexing="ij")
    positions = np.stack([x.ravel(), y.ravel(), z.ravel()], axis=1)
    return np.exp(-2j * np.pi * (k @ positions.T) / L), np.tile(
        np.where((points == 0).all(axis=1), 1, 2), len(rotations)
    )


@pytest.mark.parametrize("L", [1, 2, 7, 8, 65])
@pytest.mark.parametrize("max_frequency", [0.5, 0.25, 0.8])
def test_half_plane_holds_each_pair_once(L, max_frequency):
    points, index = half_plane(L, max_frequency)
    assert points[0].tolist() == [0, 0]
    both = {tuple(p) for p in points.tolist()} | {tuple(p) for p in (-points).tolist()}
    assert len(both) == 2 * len(points) - 1
    k = np.arange(-((L - 1) // 2), (L - 1) // 2 + 1)  # without the Nyquist terms of an even box
    kx, ky = np.meshgrid(k, k)
    assert len(both) == np.count_nonzero(np.hypot(kx, ky) <= max_frequency * L + 1e-9)
    spectrum = np.fft.rfft2(white(L, L)).ravel()[index]
    full = np.fft.fft2(white(L, L))
    assert np.allclose(spectrum, full[points[:, 1], points[:, 0]], atol=1e-4)


@pytest.mark.parametrize("L", SIZES)
def test_sums_against_sums_written_out(L):
    rotations = random_rotations(20, random_state=0)
    n_points = len(half_plane(L)[0])
    values = white(20, n_points) + 1j * white(20, n_points, seed=1)
    weights = np.abs(white(20, n_points, seed=2))
    accumulator = FourierAccumulator(L)
    accumulator.add(values, weights, rotations, half_plane(L)[0])
    matrix, multiplicity = dense_slices(L, rotations)
    operator, right, _ = accumulator.normal_equations(0.0, max_frequency=1.0)
    expected = (matrix.conj().T @ (multiplicity * values.ravel())).real
    assert np.linalg.norm(right.ravel() - expected) < 1e-4 * np.linalg.norm(expected)
    # Within a ball of 0.35 L no distance exceeds 0.7 L, up to which the convolution is exact.
    ball = spherical_mask(L, 0.25 * L, 0.1 * L)
    volume = white(L, L, L, seed=3) * ball
    expected = (matrix.conj().T @ (multiplicity * weights.ravel() * (matrix @ volume.ravel()))).real
    inside = (ball > 0).ravel()
    error = operator(volume).ravel()[inside] - expected[inside]
    assert np.linalg.norm(error) < 2e-4 * np.linalg.norm(expected[inside])


@pytest.mark.parametrize("L", SIZES)
def test_normal_operator_is_symmetric_and_its_preconditioner_positive(L):
    accumulator = accumulate(white(30, L, L), random_rotations(30, random_state=0))
    operator, _, precondition = accumulator.normal_equations(np.linspace(0.1, 3, L // 2 + 1))
    a, b = white(L, L, L, seed=5), white(L, L, L, seed=6)
    for function in (operator, precondition):
        scale = np.linalg.norm(function(a)) * np.linalg.norm(b)
        assert abs(np.vdot(function(a), b) - np.vdot(a, function(b))) < 1e-5 * scale
    assert np.vdot(a, precondition(a)) > 0


@pytest.mark.parametrize("L", SIZES)
def test_right_hand_side_is_the_back_projection(L):
    """backproject takes the corners of Nyquist too, so images without them are compared."""
    images = project(white(L, L, L), random_rotations(12, random_state=3), max_frequency=0.45)
    rotations, shifts = random_rotations(12, random_state=0), np.random.default_rng(1).uniform(-3, 3, (12, 2))
    options = {"shifts": shifts, "ctf": varied_ctf(12), "pixel_size": 3.0}
    right = accumulate(images, rotations, **options).normal_equations(0.0)[1] / L**2
    expected = backproject(images, rotations, **options)
    assert np.linalg.norm(right - expected) < 1e-4 * np.linalg.norm(expected)


def test_cuts_and_threads_change_no_bit():
    images, rotations = white(31, 20, 20), random_rotations(31, random_state=0)
    values, weights = slice_data(images)
    points = half_plane(20)[0]
    whole = accumulate(images, rotations)
    parts, threads = FourierAccumulator(20), FourierAccumulator(20)
    for cut in (slice(0, 7), slice(7, 8), slice(8, 31)):
        parts.add(values[cut], weights[cut], rotations[cut], points)
    threads.add(values, weights, rotations, points, n_jobs=3)
    for other in (parts, threads):
        assert np.array_equal(other.numerator, whole.numerator)
        assert np.array_equal(other.denominator, whole.denominator)


def test_scale_merge_copy():
    rotations = random_rotations(10, random_state=0)
    a, b = accumulate(white(10, 16, 16), rotations), accumulate(white(10, 16, 16, seed=1), rotations[::-1])
    both = a.copy()
    both.merge(b)
    assert np.allclose(both.numerator, a.numerator + b.numerator)
    half = both.copy()
    half.scale(0.5)
    assert np.allclose(half.denominator, 0.5 * both.denominator)
    # Numerator, denominator and prior times one number make the same volume.
    assert np.allclose(half.solve(0.5), both.solve(1.0), atol=1e-6)
    with pytest.raises(ValueError, match="boxes differ: 17 pixels cannot be merged into 16"):
        a.merge(FourierAccumulator(17))


@pytest.mark.parametrize("L", [32, 33])
def test_density_of_even_coverage(L):
    """n slices put n / (2 k) samples into a voxel of shell k."""
    density = accumulate(white(400, L, L), random_rotations(400, random_state=0)).shell_density()
    shells = np.arange(2, L // 2 - 2)
    assert density[shells] == pytest.approx(200 / shells, rel=0.06)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_signal_power_of_noise_and_signal(seed):
    L, rotations = 33, random_rotations(300, random_state=seed)
    volume = make_molecule(L, random_state=seed) * spherical_mask(L, 10.0, 3.0)
    truth = radial_average(np.abs(fft3c(volume)) ** 2, 3)
    clean = project(volume, rotations)
    sigma = 2 * clean.std()
    noise = sigma * white(*clean.shape, seed=seed)
    found = accumulate(clean + noise, rotations).signal_power(L**2 * sigma**2)
    strong = np.flatnonzero(truth > 0.05 * truth.max())
    strong = strong[strong > 1]
    # The kernel's window takes a quarter of what lies near the centre.
    assert np.all((found[strong] > 0.4 * truth[strong]) & (found[strong] < 1.3 * truth[strong]))
    # Of noise alone a hundredth of its power per sample is left, where a wrong variance would leave the order of it.
    alone = accumulate(noise, rotations)
    left = alone.signal_power(L**2 * sigma**2) * alone.shell_density() / (L**2 * sigma**2)
    assert left[4:].max() < 0.15


@pytest.mark.parametrize("uneven", [False, True])
@pytest.mark.parametrize("n_iter", [0, 4])
def test_solve_against_slow_least_squares(uneven, n_iter):
    """LSMR-like reference: conjugate gradients with project and backproject, to convergence."""
    L, n = 24, 150
    rng = np.random.default_rng(0)
    rotations = random_rotations(n, random_state=0)
    if uneven:  # five times as many views within 60 degrees of the z axis
        more = random_rotations(8 * n, random_state=1)
        more = more[np.abs(more[:, 2, 2]) > 0.5]
        rotations = np.concatenate([rotations[: n // 6], more])[:n]
    volume = make_molecule(L, random_state=0)
    options = {"ctf": varied_ctf(n), "pixel_size": 4.0, "shifts": rng.uniform(-2, 2, (n, 2))}
    images = project(volume, rotations, **options)
    images += images.std() * rng.standard_normal(images.shape)
    prior = np.full(L // 2 + 1, 2.0)

    def apply(v):
        v = v.reshape(L, L, L)
        # ||W (y - P V)||^2 with W = 1 on the spectra of rfft2 is L^2 times the sum over pixels.
        data = L**2 * backproject(project(v, rotations, **options), rotations, **options)
        return (data + prior[0] * L**3 * v).ravel()

    operator = scipy.sparse.linalg.LinearOperator((L**3, L**3), matvec=apply, dtype=np.float64)
    right = L**2 * backproject(images, rotations, **options).ravel()
    exact, info = scipy.sparse.linalg.cg(operator, right, rtol=1e-4, maxiter=60)
    assert info == 0
    exact = exact.reshape(L, L, L)
    found = accumulate(images, rotations, **options).solve(prior, n_iter=n_iter)
    ball = spherical_mask(L, 9.0, 2.0)
    error = np.linalg.norm((found - exact) * ball) / np.linalg.norm(exact * ball)
    curve = fsc(found * ball, exact * ball)[: L // 2]
    if n_iter:
        assert error < 0.03 and curve.min() > 0.999
    else:
        assert error < 0.25 and curve.min() > 0.95


@pytest.mark.parametrize("n", [30, 300])
@pytest.mark.parametrize("with_ctf", [False, True])
def test_spectral_prior_is_as_good_as_the_true_one(n, with_ctf):
    """Volumes of few noisy slices: unfiltered, the correlation at n = 30 is below 0.5."""
    L = 32
    volume = make_molecule(L, random_state=1)
    rotations = random_rotations(n, random_state=1)
    options = {"ctf": varied_ctf(n), "pixel_size": 10.0} if with_ctf else {}
    clean = project(volume, rotations, **options)
    sigma = 2.5 * clean.std()
    images = clean + sigma * white(*clean.shape)
    accumulator = accumulate(images, rotations, noise=np.full(L // 2 + 1, sigma**2), **options)
    truth = 1 / np.maximum(radial_average(np.abs(fft3c(volume)) ** 2, 3), 1e-9)

    def correlation(prior):
        found = accumulator.solve(prior, mask_radius=0.45 * L)
        return np.corrcoef(found.ravel(), volume.ravel())[0, 1]

    found, best = correlation(spectral_prior(accumulator)), correlation(truth)
    assert best > 0.5 and found > best - 0.03
    assert correlation(1e-3 * truth) < found


def test_prior_by_shell_and_band():
    L = 24
    accumulator = accumulate(
        project(white(L, L, L), random_rotations(100, random_state=0)), random_rotations(100, random_state=0)
    )
    prior = np.full(L // 2 + 1, 0.01)
    prior[7:] = np.inf
    for n_iter in (0, 3):
        power = radial_average(np.abs(fft3c(accumulator.solve(prior, n_iter=n_iter))) ** 2, 3)
        assert power[9:].max() < 0.02 * power[2:6].min()
        power = radial_average(np.abs(fft3c(accumulator.solve(0.01, max_frequency=6 / L, n_iter=n_iter))) ** 2, 3)
        assert power[9:].max() < 0.02 * power[2:6].min()
    weak, strong = accumulator.solve(0.01), accumulator.solve(1e3)
    assert np.linalg.norm(strong) < 0.05 * np.linalg.norm(weak)
    masked = accumulator.solve(0.01, mask_radius=5)
    assert np.allclose(masked, weak * spherical_mask(L, 5.0))


def test_nothing_added_is_nothing():
    accumulator = FourierAccumulator(12)
    for prior in (0.0, 1.0):
        assert not accumulator.solve(prior).any()
    assert not accumulator.signal_power().any()


def test_speed_of_small_boxes():
    """About 2 ms at 32 pixels; the loop over hundreds of solutions allows 15."""
    accumulator = accumulate(white(50, 36, 36), random_rotations(50, random_state=0))
    accumulator.solve(1.0)
    start = time.perf_counter()
    for _ in range(10):
        accumulator.solve(1.0)
    assert time.perf_counter() - start < 0.4


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda a: FourierAccumulator(0), "L must be at least 1 pixel, got 0"),
        (
            lambda a: a.add(np.ones((2, 3)), np.ones((2, 3)), np.eye(3)[None], np.zeros((3, 2))),
            r"values has shape \(2, 3\)",
        ),
        (lambda a: a.add(np.ones((1, 3)), np.ones((1, 2)), np.eye(3)[None], np.zeros((3, 2))), r"weights has shape"),
        (
            lambda a: a.add(np.ones((1, 3)), np.ones((1, 3)), np.eye(3)[None], np.zeros((3, 3))),
            r"points must have shape",
        ),
        (lambda a: a.add(np.ones((1, 3)), np.ones((1, 3)), np.eye(2)[None], np.zeros((3, 2))), r"rotations must have"),
        (lambda a: a.solve(-1.0), r"prior\[0\] is -1.0"),
        (lambda a: a.solve([1.0, np.nan]), r"prior\[1\] is nan"),
    ],
)
def test_errors_name_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call(FourierAccumulator(8))
