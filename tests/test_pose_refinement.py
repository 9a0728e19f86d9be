"""Refinement of poses: derivatives against finite differences, recovery of poses that are known."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from skcryo.alignment import FourierImages, pose_normal_equations, refine_poses
from skcryo.alignment import _refinement as refinement_module
from skcryo.ctf import make_ctf
from skcryo.datasets import make_molecule
from skcryo.fourier import fft3c, ifft3c
from skcryo.projection import VolumeProjector, project
from skcryo.rotations import geodesic_distance, random_rotations

L = 24
PIXEL_SIZE = 4.0
FIELDS = ("rotations", "shifts", "error", "cross", "power")


@pytest.fixture(scope="module")
def volume():
    return make_molecule(L, random_state=3)


@pytest.fixture(scope="module")
def projector(volume):
    return VolumeProjector(volume)


def simulate(volume, n=12, noise=None, with_ctf=True, seed=0, max_ring=9):
    """Images, rotations, shifts; noise in standard deviations of the clean images, None for none at all."""
    rng = np.random.default_rng(seed)
    rotations, shifts = random_rotations(n, random_state=seed), rng.uniform(-2, 2, (n, 2))
    ctf = make_ctf(n, defocus_u=np.linspace(1e4, 2.5e4, n), defocus_v=np.linspace(1e4, 2.3e4, n))
    options = {"ctf": ctf, "pixel_size": PIXEL_SIZE} if with_ctf else {}
    stack = project(volume, rotations, shifts=shifts, **options)
    std = stack.std() * (1 if noise is None else noise)
    if noise is not None:
        stack = stack + std * rng.standard_normal(stack.shape, dtype=np.float32)
    images = FourierImages.from_stack(stack, np.full(L // 2 + 1, std**2), max_ring, **options)
    return images, rotations, shifts


def perturbed(rotations, shifts, degrees, pixels, seed=1):
    rng = np.random.default_rng(seed)
    axis = rng.standard_normal((len(rotations), 3))
    turn = np.radians(degrees) * axis / np.linalg.norm(axis, axis=1, keepdims=True)
    return rotations @ Rotation.from_rotvec(turn).as_matrix(), shifts + rng.uniform(-pixels, pixels, shifts.shape)


def moved(rotations, shifts, parameter, step):
    """Poses after a step along one of the five parameters."""
    turn, shifts = np.zeros((len(rotations), 3)), shifts.copy()
    if parameter < 3:
        turn[:, parameter] = step
    else:
        shifts[:, parameter - 3] += step
    return rotations @ Rotation.from_rotvec(turn).as_matrix(), shifts


def models(images, projector, rotations, shifts, contrast=1.0):
    phases = np.exp(-2j * np.pi / images.L * (shifts @ images.points.T))
    slices = projector.slices(rotations, images.points)
    return np.reshape(contrast, (-1, 1)) * images.filters.astype(float) * phases * slices


@pytest.mark.parametrize("with_ctf", [True, False])
def test_sums_written_out(volume, projector, with_ctf):
    images, rotations, shifts = simulate(volume, noise=1.0, with_ctf=with_ctf)
    rotations, shifts = perturbed(rotations, shifts, 10, 1)
    contrast = np.linspace(0.5, 1.5, len(images))
    sums = pose_normal_equations(images, projector, rotations, shifts, contrast=contrast)[2]
    model = models(images, projector, rotations, shifts)
    expected = [
        np.square(np.abs(images.values - contrast[:, None] * model)).sum(axis=1),
        (model.conj() * images.values).sum(axis=1).real,
        np.square(np.abs(model)).sum(axis=1),
    ]
    assert np.allclose(sums, np.stack(expected, axis=1), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("with_ctf", [True, False])
@pytest.mark.parametrize("seed", [0, 1])
def test_gradient_against_central_differences(volume, projector, with_ctf, seed):
    images, rotations, shifts = simulate(volume, n=30, noise=0.5, with_ctf=with_ctf, seed=seed)
    rotations, shifts = perturbed(rotations, shifts, 5, 0.5)
    contrast = np.linspace(0.7, 1.3, len(images))
    options = {"contrast": contrast, "band": 7}
    gradient = pose_normal_equations(images, projector, rotations, shifts, **options)[1]
    # Half of the frequencies are read at x < 0, from the opposite point of the grid.
    assert (np.einsum("nj,pj->np", rotations[:, 0, :2], images.points) < 0).mean() > 0.4
    for parameter in range(5):
        step = 2e-3
        errors = [
            pose_normal_equations(images, projector, *moved(rotations, shifts, parameter, sign * step), **options)[2]
            for sign in (1, -1)
        ]
        slope = (errors[0] - errors[1])[:, 0] / (2 * step)
        # The step is hessian^-1 gradient: the gradient is minus half the slope of the squared residual.
        difference = np.linalg.norm(-2 * gradient[:, parameter] - slope)
        assert difference < 1e-3 * np.linalg.norm(slope), parameter


@pytest.mark.parametrize("band", [None, 5])
def test_gauss_newton_matrix_against_differences_of_slices(volume, projector, band):
    images, rotations, shifts = simulate(volume, n=20, noise=0.5)
    contrast = np.linspace(0.7, 1.3, len(images))
    hessian = pose_normal_equations(images, projector, rotations, shifts, contrast=contrast, band=band)[0]
    assert np.array_equal(hessian, hessian.swapaxes(1, 2))
    n_points = len(images.points) if band is None else images.n_points(band)
    jacobian = []
    for parameter in range(5):
        after, before = (
            models(images, projector, *moved(rotations, shifts, parameter, step), contrast)[:, :n_points]
            for step in (2e-3, -2e-3)
        )
        jacobian.append((after - before) / 4e-3)
    jacobian = np.stack(jacobian)
    expected = np.einsum("anp,bnp->nab", jacobian.conj(), jacobian).real
    scale = np.sqrt(np.einsum("naa,nbb->nab", expected, expected))
    assert (np.abs(hessian - expected) < 2e-3 * scale).all()


def test_shift_blocks_have_a_closed_form(volume, projector):
    images, rotations, shifts = simulate(volume)
    hessian = pose_normal_equations(images, projector, rotations, shifts)[0]
    k = 2 * np.pi / L * images.points
    power = np.square(np.abs(models(images, projector, rotations, shifts)))
    assert np.allclose(hessian[:, 3:, 3:], np.einsum("np,pa,pb->nab", power, k, k), rtol=1e-4, atol=1e-3)


def small_projector(volume, box):
    """The low frequencies of a volume in a smaller box: the same transform at the same cycles per box."""
    start = L // 2 - box // 2
    crop = (slice(start, start + box),) * 3
    return VolumeProjector(ifft3c(fft3c(volume.astype(float))[crop]).real)


@pytest.mark.parametrize("box", [14, 15])
def test_a_smaller_volume_stands_for_the_larger(box):
    # Narrow in space and in frequency: what a crop cuts off would ring between whole frequencies.
    grid = np.stack(np.meshgrid(*(np.arange(L) - L // 2,) * 3, indexing="ij"), axis=-1)
    centres = np.random.default_rng(0).uniform(-2.5, 2.5, (6, 3))
    volume = sum(np.exp(-np.square(grid - centre).sum(-1) / (2 * 2.2**2)) for centre in centres)
    images, rotations, shifts = simulate(volume, noise=0.5)
    projector, small = VolumeProjector(volume), small_projector(volume, box)
    ours = pose_normal_equations(images, small, rotations, shifts, band=4)
    theirs = pose_normal_equations(images, projector, rotations, shifts, band=4)
    for a, b in zip(ours, theirs):
        assert np.linalg.norm(a - b) < 2e-3 * np.linalg.norm(b)
    start = perturbed(rotations, shifts, 3, 0.3)
    a, b = (refine_poses(images, p, *start, band=4) for p in (small, projector))
    assert np.degrees(geodesic_distance(a.rotations, b.rotations)).max() < 0.1
    assert np.abs(a.shifts - b.shifts).max() < 0.01


def test_frequencies_beyond_the_grid_have_no_model(volume):
    """The volume's band ends at 5 cycles per box, the images' at 9: what lies between counts as residual only."""
    images, rotations, shifts = simulate(volume, noise=0.5)
    small = small_projector(volume, 10)
    model = models(images, small, rotations, shifts)
    outside = np.abs(np.einsum("nij,pj->npi", rotations[:, :, :2], images.points)).max(axis=2) > 5
    assert outside.any() and not model[outside].any()
    hessian, gradient, sums = pose_normal_equations(images, small, rotations, shifts)
    assert np.isfinite(hessian).all() and np.isfinite(gradient).all()
    assert np.allclose(sums[:, 0], np.square(np.abs(images.values - model)).sum(axis=1), rtol=1e-5)


@pytest.mark.parametrize("with_ctf", [True, False])
@pytest.mark.parametrize("seed", [0, 1])
def test_clean_poses_are_recovered(volume, projector, with_ctf, seed):
    images, rotations, shifts = simulate(volume, n=25, with_ctf=with_ctf, seed=seed)
    start = perturbed(rotations, shifts, 4, 0.5, seed)
    fit = refine_poses(images, projector, *start, n_steps=8)
    assert np.degrees(geodesic_distance(fit.rotations, rotations)).max() < 1e-4
    assert np.abs(fit.shifts - shifts).max() < 1e-5
    assert np.allclose(fit.rotations @ fit.rotations.swapaxes(1, 2), np.eye(3), atol=1e-12)
    assert np.allclose(fit.cross / fit.power, 1, atol=1e-3)  # the best contrast
    assert (fit.error < 1e-6 * fit.power).all()


def test_noisy_poses_get_better(volume, projector):
    images, rotations, shifts = simulate(volume, n=60, noise=1.0)
    start = perturbed(rotations, shifts, 6, 1)
    fit = refine_poses(images, projector, *start, n_steps=5)
    error = np.degrees(geodesic_distance(fit.rotations, rotations))
    assert np.median(error) < 3 and np.median(np.linalg.norm(fit.shifts - shifts, axis=1)) < 0.3
    # and end where the likelihood is at least that of the truth, or nearly
    truth = pose_normal_equations(images, projector, rotations, shifts)[2][:, 0]
    assert np.mean(fit.error <= truth) > 0.9


def test_error_never_rises(volume, projector):
    images, rotations, shifts = simulate(volume, n=40, noise=2.0)
    start = perturbed(rotations, shifts, 25, 2)
    fits = [refine_poses(images, projector, *start, n_steps=n) for n in range(6)]
    for before, after in zip(fits[:-1], fits[1:]):
        assert (after.error <= before.error).all()
    assert (fits[-1].error < fits[0].error).all()
    for fit in fits:
        sums = pose_normal_equations(images, projector, fit.rotations, fit.shifts)[2]
        assert np.array_equal(np.stack([fit.error, fit.cross, fit.power], axis=1), sums)


def test_no_steps_changes_no_pose(volume, projector):
    images, rotations, shifts = simulate(volume, noise=1.0)
    fit = refine_poses(images, projector, rotations, shifts, n_steps=0)
    assert np.array_equal(fit.rotations, rotations) and np.array_equal(fit.shifts, shifts)
    fit.rotations[:], fit.shifts[:] = 0, 0
    assert rotations.any() and shifts.any()  # the result is a copy


def test_shifts_are_left_where_asked(volume, projector):
    images, rotations, shifts = simulate(volume)
    start = perturbed(rotations, shifts, 3, 0)
    fit = refine_poses(images, projector, *start, n_steps=8, refine_shifts=False)
    assert np.array_equal(fit.shifts, start[1])
    assert np.degrees(geodesic_distance(fit.rotations, rotations)).max() < 1e-4


def test_no_images(volume, projector):
    images, rotations, shifts = simulate(volume, n=2)
    fit = refine_poses(images.take(slice(0, 0)), projector, rotations[:0], shifts[:0])
    assert [getattr(fit, name).shape for name in FIELDS] == [(0, 3, 3), (0, 2), (0,), (0,), (0,)]
    empty = pose_normal_equations(images.take(slice(0, 0)), projector, rotations[:0], shifts[:0])
    assert [part.shape for part in empty] == [(0, 5, 5), (0, 5), (0, 3)]


def test_contrast_is_fitted_on_the_way(volume, projector):
    """Images of 0.6 to 1.4 times the contrast: held at 1 the fit is no zero residual, fitted it is."""
    images, rotations, shifts = simulate(volume, n=25)
    contrast = np.linspace(0.6, 1.4, 25)
    images = FourierImages(images.values * contrast[:, None].astype(np.float32), images.filters, images.points, L)
    start = perturbed(rotations, shifts, 4, 0.5)
    fit = refine_poses(images, projector, *start, contrast_std=10.0, n_steps=10)
    assert np.degrees(geodesic_distance(fit.rotations, rotations)).max() < 1e-3
    assert np.allclose(fit.cross / fit.power, contrast, rtol=1e-3)
    held = refine_poses(images, projector, *start, n_steps=10)
    assert (fit.error[contrast != 1] < 0.1 * held.error[contrast != 1]).all()
    # with a prior so tight that nothing is fitted
    tight = refine_poses(images, projector, *start, contrast_std=1e-6, n_steps=10)
    assert np.allclose(tight.error, held.error, rtol=1e-2)
    steps = [refine_poses(images, projector, *start, contrast_std=0.2, n_steps=n).error for n in range(5)]
    assert (np.diff(steps, axis=0) <= 0).all()


def test_error_with_contrast_is_that_of_the_best(volume, projector):
    images, rotations, shifts = simulate(volume, noise=1.0)
    fit = refine_poses(images, projector, rotations, shifts, contrast_std=0.3, n_steps=0)
    grid = np.linspace(0.05, 3, 3000)
    sums = pose_normal_equations(images, projector, rotations, shifts, contrast=np.zeros(len(images)))[2]
    curve = sums[:, :1] - 2 * grid * sums[:, 1:2] + grid**2 * sums[:, 2:] + (grid - 1) ** 2 / (2 * 0.3**2)
    assert np.allclose(fit.error, curve.min(axis=1), rtol=1e-5)


def test_bad_input(volume, projector):
    images, rotations, shifts = simulate(volume, n=4)
    for function in (pose_normal_equations, refine_poses):
        with pytest.raises(ValueError, match=r"rotations must have shape \(4, 3, 3\) for 4 images, got \(3, 3, 3\)"):
            function(images, projector, rotations[:3], shifts)
        with pytest.raises(ValueError, match="shifts must have shape"):
            function(images, projector, rotations, shifts[:3])
        with pytest.raises(ValueError, match="contrast must have shape"):
            function(images, projector, rotations, shifts, contrast=np.ones(5))


@pytest.mark.parametrize("case", ["contrast 0", "no signal", "empty volume", "no band"])
def test_without_signal_poses_stay_and_nothing_breaks(volume, projector, case):
    images, rotations, shifts = simulate(volume, n=4, noise=1.0)
    options = {"contrast": np.zeros(4)} if case == "contrast 0" else {"band": 0.5} if case == "no band" else {}
    if case == "no signal":
        images = FourierImages(images.values, np.zeros_like(images.filters), images.points, L)
    if case == "empty volume":
        projector = VolumeProjector(np.zeros((L, L, L)))
    fit = refine_poses(images, projector, rotations, shifts, **options)
    assert np.array_equal(fit.rotations, rotations) and np.array_equal(fit.shifts, shifts)
    assert np.isfinite(fit.error).all()


@pytest.mark.parametrize("n", [1, 3, 230])
def test_threads_and_cuts_change_no_bit(volume, projector, n):
    images, rotations, shifts = simulate(volume, n=n, noise=1.0, max_ring=6)
    start = perturbed(rotations, shifts, 5, 1)
    one, two = (refine_poses(images, projector, *start, n_jobs=n_jobs) for n_jobs in (1, 2))
    alone = refine_poses(images.take(slice(n - 1, n)), projector, start[0][n - 1 :], start[1][n - 1 :])
    for name in FIELDS:
        assert np.array_equal(getattr(one, name), getattr(two, name))
        assert np.allclose(getattr(one, name)[-1], getattr(alone, name)[0], rtol=1e-9, atol=1e-9)


def test_poses_and_volume_turned_alike(volume):
    """A quarter turn of the box, which is exact: poses R become G R, errors stay."""
    odd = np.pad(volume, (0, 1))  # the centre of 25 voxels is on one of them
    quarter = np.rot90(odd, axes=(1, 2)).copy()  # x -> -y, y -> x with the axes (y, x)
    images, rotations, shifts = simulate(odd[:L, :L, :L], noise=0.5)
    turn = np.array([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]])
    start = perturbed(rotations, shifts, 5, 0.5)
    first = refine_poses(images, VolumeProjector(odd), *start)
    second = refine_poses(images, VolumeProjector(quarter), turn @ start[0], start[1])
    assert np.allclose(first.error, second.error, rtol=1e-3)
    assert np.degrees(geodesic_distance(turn @ first.rotations, second.rotations)).max() < 0.05


def test_images_moved_and_shifts_moved_alike(volume, projector):
    images, rotations, shifts = simulate(volume, noise=0.5)
    move = np.random.default_rng(5).uniform(-3, 3, shifts.shape)
    after = FourierImages(images.values * images.centred_phases(-move), images.filters, images.points, L)
    start = perturbed(rotations, shifts, 5, 0.5)
    first = refine_poses(images, projector, *start)
    second = refine_poses(after, projector, start[0], start[1] + move)
    assert np.allclose(first.error, second.error, rtol=1e-4)
    assert np.allclose(first.shifts + move, second.shifts, atol=1e-3)
    assert np.degrees(geodesic_distance(first.rotations, second.rotations)).max() < 0.05


def test_one_filter_for_all_or_one_each(volume, projector):
    images, rotations, shifts = simulate(volume, noise=0.5, with_ctf=False)
    each = FourierImages(images.values, np.repeat(images.filters, len(images), axis=0), images.points, L)
    for a, b in zip(*(pose_normal_equations(i, projector, rotations, shifts) for i in (images, each))):
        assert np.array_equal(a, b)


def test_every_instruction_set_gives_the_same_bits(volume, projector, monkeypatch):
    images, rotations, shifts = simulate(volume, n=20, noise=1.0)
    kernel = refinement_module._normal_equations
    found = []
    for wide in (True, False):
        monkeypatch.setattr(refinement_module, "_normal_equations", lambda *a, wide=wide: kernel(*a, wide))
        found.append(pose_normal_equations(images, projector, rotations, shifts))
    assert all(np.array_equal(a, b) for a, b in zip(*found))


def test_take_better(volume, projector):
    images, rotations, shifts = simulate(volume, n=20, noise=1.0)
    a, b = (refine_poses(images, projector, *perturbed(rotations, shifts, 20, 1, seed)) for seed in (1, 2))
    lowest = np.minimum(a.error, b.error)
    where = b.error < a.error
    assert 0 < where.sum() < len(where)
    kept = a.rotations[~where].copy()
    a.take_better(b)
    assert np.array_equal(a.error, lowest)
    assert np.array_equal(a.rotations[where], b.rotations[where]) and np.array_equal(a.rotations[~where], kept)
    sums = pose_normal_equations(images, projector, a.rotations, a.shifts)[2]
    assert np.array_equal(np.stack([a.error, a.cross, a.power], axis=1), sums)
