"""Brute-force search and expectation step, against explicit loops over images, rotations and shifts."""

import numpy as np
import pytest

from skcryo.alignment import FourierImages, expected_slices, search_poses, shift_grid
from skcryo.alignment import _search as search_module
from skcryo.ctf import make_ctf
from skcryo.datasets import make_molecule
from skcryo.metrics import pose_error
from skcryo.projection import VolumeProjector, project
from skcryo.reconstruction._ab_initio_start import StartSettings, StochasticStart, signal_power
from skcryo.rotations import geodesic_distance, random_rotations, so3_grid

L = 20
BAND = 6
PIXEL_SIZE = 4.0
GRIDS = {
    "half turns": so3_grid(1, 6),
    "half turns, turned": random_rotations(1, random_state=3)[0] @ so3_grid(1, 6),
    "half turns, permuted": so3_grid(1, 6)[np.random.default_rng(0).permutation(72)],
    "odd": so3_grid(1, 5),
    "random": random_rotations(40, random_state=4),
    "one": random_rotations(1, random_state=5),
    "some": so3_grid(1, 6)[:51],
    "twice": np.repeat(so3_grid(1, 4), 2, axis=0),
}


@pytest.fixture(scope="module")
def projector():
    return VolumeProjector(make_molecule(L, random_state=2))


def make_images(projector, n=11, noise=60.0, with_ctf=True, seed=0):
    rng = np.random.default_rng(seed)
    ctf = make_ctf(n, defocus_u=np.linspace(1e4, 2.5e4, n), defocus_v=np.linspace(1e4, 2.3e4, n))
    options = {"ctf": ctf, "pixel_size": PIXEL_SIZE} if with_ctf else {}
    stack = projector.project(random_rotations(n, random_state=seed), shifts=rng.uniform(-1.5, 1.5, (n, 2)), **options)
    noise = noise * stack.std() / 10
    stack += noise * rng.standard_normal(stack.shape, dtype=np.float32)
    return FourierImages.from_stack(stack, np.full(L // 2 + 1, noise**2), 8, **options)


def written_out(images, projector, rotations, shifts, band, temperature=1.0, contrast=None):
    """Log-likelihoods, and the sums of the expectation step, one pose after another in double precision."""
    kept = images.radii <= band
    points, n = images.points[kept], len(images)
    values = images.values[:, kept].astype(complex)
    filters = np.broadcast_to(images.filters, images.values.shape)[:, kept].astype(float)
    if contrast is not None:
        filters = filters * contrast[:, None]
    slices = projector.slices(rotations, points).astype(complex)
    log = np.empty((n, len(shifts), len(rotations)))
    centred = np.empty((n, len(shifts), len(points)), complex)
    for i in range(n):
        for s, shift in enumerate(shifts):
            centred[i, s] = values[i] * np.exp(2j * np.pi / images.L * (points @ shift))
            for r in range(len(rotations)):
                model = filters[i] * slices[r]
                log[i, s, r] = (np.abs(centred[i, s]) ** 2).sum() - (np.abs(centred[i, s] - model) ** 2).sum()
    tempered = log.reshape(n, -1) / temperature
    top = tempered.max(axis=1, keepdims=True)
    posterior = np.exp(tempered - top)
    evidence = temperature * (np.log(posterior.mean(axis=1)) + top[:, 0])
    posterior = (posterior / posterior.sum(axis=1, keepdims=True)).reshape(log.shape)
    numerator = np.einsum("isr,isp->rp", posterior, centred * filters[:, None])
    denominator = np.einsum("isr,ip->rp", posterior, filters**2)
    return log, numerator, denominator, evidence


def relative(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@pytest.mark.parametrize(("radius", "step", "n"), [(2, 1, 4), (3, 1.3, 5), (1.5, 1, 3), (0, 1, 1), (0.4, 1, 1)])
def test_shift_grid_covers_the_square_evenly(radius, step, n):
    grid = shift_grid(radius, step)
    assert grid.shape == (n * n, 2)
    assert np.allclose(np.sort(grid, axis=0), np.sort(-grid, axis=0))
    side = np.unique(grid[:, 0])
    cell = 2 * radius / n
    assert cell <= step + 1e-12 and np.allclose(np.diff(side), cell)
    assert np.isclose(side[-1] + cell / 2, radius)  # cells reach to the edge


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("with_ctf", [True, False])
def test_search_against_loops(projector, name, with_ctf):
    images, shifts, rotations = make_images(projector, with_ctf=with_ctf), shift_grid(1.5, 1), GRIDS[name]
    contrast = np.linspace(0.5, 1.5, len(images))
    log, *_ = written_out(images, projector, rotations, shifts, BAND, contrast=contrast)
    n_best = min(4, len(rotations))
    found = search_poses(images, projector, rotations, shifts, band=BAND, n_best=4, contrast=contrast)
    assert found.rotation.shape == found.shift.shape == found.log_likelihood.shape == (len(images), n_best)
    best = np.sort(log.max(axis=1), axis=1)[:, ::-1][:, :n_best]
    assert np.allclose(found.log_likelihood, best, atol=1e-5 * np.abs(log).max())
    rows = np.arange(len(images))[:, None]
    assert np.allclose(log[rows, found.shift, found.rotation], best, atol=1e-5 * np.abs(log).max())
    assert all(len(set(row)) == n_best for row in found.rotation.tolist())


@pytest.mark.parametrize("name", ["half turns", "odd"])
def test_search_at_the_most_probable_contrast(projector, name):
    images, shifts, rotations = make_images(projector), shift_grid(1.5, 1), GRIDS[name]
    grid = np.linspace(0, 3, 301)
    # the log-likelihood is a parabola in the contrast: two points and zero give it
    one, two = (
        written_out(images, projector, rotations, shifts, BAND, contrast=np.full(len(images), c))[0] for c in (1.0, 2.0)
    )
    curvature, slope = two / 2 - one, 2 * one - two / 2
    values = [slope * c + curvature * c**2 - (c - 1) ** 2 / (2 * 0.3**2) for c in grid]
    best = np.max(values, axis=(0, 2))
    for contrast in (None, np.full(len(images), 0.5)):
        found = search_poses(images, projector, rotations, shifts, band=BAND, contrast=contrast, contrast_std=0.3)
        assert np.allclose(found.log_likelihood[:, 0], best.max(axis=1), atol=1e-3)
        assert np.allclose(best[np.arange(len(images)), found.rotation[:, 0]], best.max(axis=1), atol=1e-3)


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize(("temperature", "with_contrast"), [(1.0, False), (0.5, True), (7.0, True)])
def test_expectation_against_loops(projector, name, temperature, with_contrast):
    images, shifts, rotations = make_images(projector), shift_grid(1.5, 1), GRIDS[name]
    options = {"temperature": temperature}
    if with_contrast:
        options["contrast"] = np.linspace(0.5, 1.5, len(images))
    log, numerator, denominator, evidence = written_out(images, projector, rotations, shifts, BAND, **options)
    found = expected_slices(images, projector, rotations, shifts, band=BAND, **options)
    assert found.numerator.dtype == np.complex64 and found.denominator.dtype == np.float32
    # What is dropped has weights below 1e-4 each and sums to little; without the cut see the next test.
    assert relative(found.numerator, numerator) < 1e-2
    assert relative(found.denominator, denominator) < 1e-2
    assert np.allclose(found.log_evidence, evidence, atol=5e-3 * temperature)
    top = log.max(axis=(1, 2))
    assert np.allclose(log[np.arange(len(log)), found.shift, found.rotation], top, atol=1e-5 * np.abs(log).max())


def test_without_the_cut_the_sums_are_exact(projector, monkeypatch):
    images, shifts = make_images(projector), shift_grid(1.5, 1)
    for rotations in (GRIDS["half turns"], GRIDS["odd"]):
        _, numerator, denominator, evidence = written_out(images, projector, rotations, shifts, BAND)
        cut = expected_slices(images, projector, rotations, shifts, band=BAND)
        monkeypatch.setattr(search_module, "_NEGLIGIBLE", 1e-30)
        found = expected_slices(images, projector, rotations, shifts, band=BAND)
        monkeypatch.undo()
        assert relative(found.numerator, numerator) < 1e-5
        assert relative(found.denominator, denominator) < 1e-5
        assert np.allclose(found.log_evidence, evidence, atol=1e-4)
        # The worst that the cut may do: every pose but the best just below it.
        n_poses = len(rotations) * len(shifts)
        lost = found.log_evidence - cut.log_evidence
        assert (lost > -1e-9).all() and (lost < np.log1p(1e-4 * n_poses)).all() and lost.max() > 0


@pytest.mark.parametrize("n", [1, 7, 8, 70])
@pytest.mark.parametrize("name", ["half turns", "odd"])
def test_threads_change_no_bit(projector, n, name, monkeypatch):
    images, shifts = make_images(projector, n), shift_grid(1.5, 1)
    grid = shifts, GRIDS[name]
    monkeypatch.setattr(search_module, "_BLOCK", 3)
    results = []
    for n_jobs in (None, 2, 3):
        found = expected_slices(images, projector, grid[1], grid[0], band=BAND, n_jobs=n_jobs)
        poses = search_poses(images, projector, grid[1], grid[0], band=BAND, n_best=3, n_jobs=n_jobs)
        results.append([*vars(found).values(), *vars(poses).values()])
    for other in results[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(results[0], other))


def test_every_image_is_divided_among_poses_without_rest(projector):
    images = make_images(projector, 40, with_ctf=False)
    found = expected_slices(images, projector, GRIDS["half turns"], shift_grid(1.5, 1), band=BAND)
    n_points = images.n_points(BAND)
    assert np.allclose(found.denominator.sum(axis=0), 40 * np.square(images.filters[0, :n_points]), rtol=1e-5)


def test_sums_of_many_images_keep_their_digits(projector):
    """All into one rotation and shift: 8000 terms. Half precision would be 1e-2 off."""
    images = make_images(projector, 50)
    many = images.take(np.tile(np.arange(50), 160))
    rotations, shifts = GRIDS["one"], np.zeros((1, 2))
    found = expected_slices(many, projector, rotations, shifts, band=BAND)
    n_points = images.n_points(BAND)
    values = (images.values * images.filters)[:, :n_points].sum(axis=0, dtype=complex) * 160
    assert relative(found.numerator[0], values) < 1e-5
    squares = np.square(images.filters[:, :n_points], dtype=float).sum(axis=0) * 160
    assert relative(found.denominator[0], squares) < 1e-5


def test_images_and_grid_shifted_alike(projector):
    """Moving images by (a, b) pixels moves the posterior over shifts by as much."""
    move, rotations = np.array([2.0, -1.0]), GRIDS["half turns"]
    stack = projector.project(random_rotations(6, random_state=1), shifts=np.zeros((6, 2)))
    moved = np.roll(stack, move[::-1].astype(int), axis=(1, 2))
    noise = np.full(L // 2 + 1, (5 * stack.std()) ** 2)
    a, b = (FourierImages.from_stack(s, noise, 8) for s in (stack, moved))
    first = expected_slices(a, projector, rotations, shift_grid(1.5, 1), band=BAND)
    second = expected_slices(b, projector, rotations, shift_grid(1.5, 1) + move, band=BAND)
    assert np.array_equal(first.rotation, second.rotation) and np.array_equal(first.shift, second.shift)
    assert relative(second.numerator, first.numerator) < 1e-4
    assert np.allclose(first.log_evidence, second.log_evidence, atol=1e-3)


@pytest.mark.parametrize("name", ["half turns", "odd"])
def test_without_signal_all_poses_are_alike(projector, name):
    """Nothing in the images, in the filters or in the contrast: no division by zero, evidence 0."""
    images, rotations, shifts = make_images(projector, 5), GRIDS[name], shift_grid(1.5, 1)
    nothing = FourierImages(images.values, np.zeros_like(images.filters), images.points, L)
    for case, contrast in ((nothing, None), (images, np.zeros(5))):
        found = expected_slices(case, projector, rotations, shifts, band=BAND, contrast=contrast)
        assert np.allclose(found.log_evidence, 0, atol=1e-6) and not found.numerator.any()
    empty = FourierImages(np.zeros_like(images.values), images.filters, images.points, L)
    found = expected_slices(empty, projector, rotations, shifts, band=BAND)
    assert np.isfinite(found.log_evidence).all() and (found.log_evidence <= 0).all() and not found.numerator.any()
    found = expected_slices(images, projector, rotations, shifts, band=0.5)
    assert found.numerator.shape == (len(rotations), 0) and np.allclose(found.log_evidence, 0, atol=1e-6)


def test_no_images(projector):
    images = make_images(projector, 3).take(slice(0, 0))
    found = expected_slices(images, projector, GRIDS["odd"], shift_grid(1, 1), band=BAND)
    assert found.numerator.shape == (60, images.n_points(BAND)) and not found.denominator.any()
    assert found.rotation.shape == found.log_evidence.shape == (0,)
    poses = search_poses(images, projector, GRIDS["odd"], shift_grid(1, 1), band=BAND, n_best=2)
    assert poses.rotation.shape == (0, 2) and poses.rotation.dtype == np.int64


def test_a_band_beyond_what_is_stored_is_all_of_it(projector):
    images, shifts = make_images(projector, 4), shift_grid(1, 1)
    a, b = (search_poses(images, projector, GRIDS["odd"], shifts, band=band) for band in (8, 100))
    assert np.array_equal(a.log_likelihood, b.log_likelihood)


def test_bad_input(projector):
    images, rotations, shifts = make_images(projector, 4), GRIDS["odd"], shift_grid(1, 1)
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        expected_slices(images, projector, rotations, shifts, band=BAND, temperature=0)
    with pytest.raises(ValueError, match=r"contrast must have shape \(4,\)"):
        search_poses(images, projector, rotations, shifts, band=BAND, contrast=np.ones(3))
    with pytest.raises(ValueError, match="0 rotations"):
        search_poses(images, projector, rotations[:0], shifts, band=BAND)


@pytest.mark.parametrize("name", GRIDS)
def test_half_turns(name):
    rotations = GRIDS[name]
    pairs = search_module.half_turns(rotations)
    assert np.array_equal(np.sort(pairs, axis=None), np.arange(len(rotations)))
    assert len(pairs) == (2 if name.startswith("half turns") else 1)
    if len(pairs) == 2:
        turned = rotations[pairs[0]] * np.array([-1.0, -1.0, 1.0])
        assert np.allclose(turned, rotations[pairs[1]])


@pytest.mark.parametrize("preset", ["plain", "ctf"])
def test_signal_power_is_that_of_the_slices(projector, preset):
    n = 400
    images = make_images(projector, n, noise=5.0, with_ctf=preset == "ctf")
    slices = projector.slices(random_rotations(2000, random_state=9), images.points)
    clean = np.square(np.abs(slices)).mean(axis=0, dtype=float)
    expected = np.bincount(images.rings, clean) / np.maximum(np.bincount(images.rings), 1)
    power = signal_power(images)
    assert power[0] == power[1]
    # 400 poses do not give the mean over all of them to better than this; without the filters it is off by 1000
    assert np.all(np.abs(power[1:7] / expected[1:7] - 1) < 0.25)


def clean_set(n=160, size=32):
    volume, rotations = make_molecule(size, random_state=1), random_rotations(n, random_state=1)
    rng = np.random.default_rng(0)
    stack = project(volume, rotations, shifts=rng.uniform(-1, 1, (n, 2)))
    noise = 0.5 * stack.std()
    stack += noise * rng.standard_normal(stack.shape, dtype=np.float32)
    return FourierImages.from_stack(stack, np.full(size // 2 + 1, noise**2), 12), rotations


def settings(**options):
    return StartSettings(
        max_shift=1.5, mask_radius=13.0, first_band=4.0, last_band=8.0, shift_step=1.0, batch_size=40, **options
    )


def test_a_start_from_nothing_finds_poses():
    """The better evidence of three starts; random poses are 60 degrees and more off after alignment."""
    images, rotations = clean_set()
    power = signal_power(images)
    starts = [StochasticStart(images, power, settings(), seed) for seed in range(3)]
    for start in starts:
        while start.epoch < 10:
            start.run_epoch()
        assert len(start.curve) == 10 and start.curve[-1] > start.curve[0]
    best = max(starts, key=lambda start: start.curve[-1])
    assert pose_error(best.rotations, rotations).median < 15


def test_a_start_is_its_seed_whatever_the_threads():
    images, _ = clean_set(60)
    power = signal_power(images)
    options = {"n_side": 1, "n_psi": 12}
    starts = [StochasticStart(images, power, settings(**options), s, n_jobs) for s, n_jobs in ((0, 1), (0, 2), (1, 1))]
    for start in starts:
        start.run_epoch()
        start.run_epoch()
    same, other = starts[1:]
    assert np.array_equal(starts[0].rotations, same.rotations) and np.array_equal(starts[0].evidence, same.evidence)
    assert np.array_equal(starts[0].solve(6.0), same.solve(6.0))
    assert np.median(geodesic_distance(starts[0].rotations, other.rotations)) > 0.3
