"""InPlaneAligner: the likelihood it maximises, what it finds, how it stops and goes on, and what it refuses."""

import warnings

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning
from sklearn.pipeline import Pipeline

from skcryo.cluster import SMLClustering
from skcryo.ctf import apply_ctf, evaluate_ctf, make_ctf
from skcryo.datasets import ImagingConditions, make_molecule, make_particles
from skcryo.decomposition._disc_basis import disc_basis
from skcryo.fourier import rotate_images, shift_images
from skcryo.io import load_particles, save_particles
from skcryo.particles import ParticleStack
from skcryo.preprocessing import InPlaneAligner
from skcryo.preprocessing import _in_plane_aligner as aligner_module
from skcryo.preprocessing import _in_plane_fit as fit_module
from skcryo.preprocessing._in_plane_aligner import turn_back
from skcryo.preprocessing._in_plane_classes import Classes, balanced_biases, class_sums, frame_angles, own_poses, peaks
from skcryo.preprocessing._in_plane_images import BandImages, Coefficients
from skcryo.preprocessing._in_plane_search import ClassSearch, ShiftGrids, shift_offsets
from skcryo.preprocessing._in_plane_span import find_span
from skcryo.rotations import in_plane_rotation

L, N = 33, 240
CTF_PRESET = ImagingConditions(max_shift=0.05, ctf=True)


def particles(n=N, snr=0.5, preset="shifted", seed=0):
    return make_particles(make_molecule(L, random_state=0), n, preset=preset, snr=snr, random_state=seed)


def quiet_fit(X, n_classes=8, **params):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return InPlaneAligner(n_classes, **{"n_jobs": 1, "random_state": 0, "max_iter": 6, **params}).fit(X)


@pytest.fixture(scope="module")
def fitted():
    stack, truth = particles()
    return quiet_fit(stack), stack, truth


def errors(aligner, truth):
    """Medians of the in-plane error of pairs of similar views in one class (degrees), and of shifts in a class (px)."""
    turns, shifts = [], []
    for label in np.unique(aligner.labels_):
        i = np.flatnonzero(aligner.labels_ == label)
        R, angles = truth.rotations[i], aligner.angles_[i]
        between = np.einsum("nba,mbc->nmac", R, R)
        turn = np.arctan2(between[..., 1, 0] - between[..., 0, 1], between[..., 0, 0] + between[..., 1, 1])
        wrong = (turn - (angles[:, None] - angles) + np.pi) % (2 * np.pi) - np.pi
        similar = (between[..., 2, 2] > np.cos(np.radians(25))) & ~np.eye(len(i), dtype=bool)
        turns.append(np.abs(np.degrees(wrong[similar])))
        left = np.einsum("nij,nj->ni", in_plane_rotation(-angles)[:, :2, :2], (aligner.shifts_ - truth.shifts)[i])
        shifts.append(np.hypot(*(left - np.median(left, axis=0)).T))
    return np.median(np.concatenate(turns)), np.median(np.concatenate(shifts))


def purity(labels, truth):
    """Share of pairs in a class whose views are within 30 degrees."""
    similar = truth.rotations[:, :, 2] @ truth.rotations[:, :, 2].T > np.cos(np.radians(30))
    same = (labels[:, None] == labels) & ~np.eye(len(labels), dtype=bool)
    return similar[same].mean()


# ------------------------------------------------------------------------------------------------ mathematics
@pytest.mark.parametrize("box", [32, 33])
@pytest.mark.parametrize("with_ctf", [False, True])
def test_scores_are_those_of_images_turned_moved_and_filtered_one_by_one(box, with_ctf):
    rng = np.random.default_rng(box)
    molecule = make_molecule(box, random_state=0)
    stack, _ = make_particles(molecule, 200, preset="shifted", snr=1.0, random_state=1)
    spectrum = np.linspace(2.0, 1.0, box // 2 + 1)
    ctf = make_ctf(200, defocus_u=rng.uniform(8e3, 2e4, 200)) if with_ctf else None
    basis, ring = disc_basis(box, 8 / box), 8
    images = BandImages.from_stack(stack, spectrum, ring, basis, ctf=ctf, pixel_size=5.0)
    span = find_span(images, (box, 8 / box))
    averages = rng.standard_normal((3, span.n_coefficients)) * _deviations(span)
    offsets = shift_offsets(1.0, 1.0)
    some = images.select(np.arange(5))
    every = slice(0, 5)
    coefficients = Coefficients(span, some, some.shifts).near(every, some.shifts, offsets)
    scores, where = ClassSearch(span, averages, len(offsets)).scores(coefficients, some.squares(every))
    # the same from scratch: a filtered, turned and moved average beside the image, all angles and offsets
    weights = _ctf_over_noise(ctf, spectrum, images.points, box)
    observed = some.values / weights[: len(some)]
    expected, best = np.full((5, 3), -np.inf), np.zeros((5, 3), dtype=int)
    for angle in 2 * np.pi * np.arange(64) / 64:
        turned = span.turned(averages, np.full(3, angle)) @ span.functions.T
        for t, offset in enumerate(offsets):
            moved = turned * np.exp(-2j * np.pi / box * (images.points @ offset))
            for i in range(5):
                predicted = weights[min(i, len(weights) - 1)] * moved
                value = 2 * (observed[i].conj() * predicted).real.sum(axis=1) - (np.abs(predicted) ** 2).sum(axis=1)
                better = value > expected[i]
                expected[i, better], best[i, better] = value[better], t
    # rings stand for pixels in the averages' power, hence not closer
    power = 0.5 * span.ring_power(averages) @ some.filters.mean(axis=0)
    np.testing.assert_allclose(scores, expected, atol=0.05 * power.max())
    assert np.mean(where == best) > 0.9


def _deviations(span):
    out = np.empty(span.n_coefficients)
    for variances, columns in zip(span.variances, span.columns):
        for part in columns:
            out[part] = np.sqrt(variances)
    return out


def _ctf_over_noise(ctf, spectrum, points, box):
    row, column = points[:, 1].astype(int), points[:, 0].astype(int)
    values = np.ones((1, len(points))) if ctf is None else evaluate_ctf(ctf, box, 5.0, half=True)[:, row, column]
    rings = np.rint(np.hypot(*points.T)).astype(int)
    return values / np.sqrt(spectrum[rings])


def test_averages_solve_the_normal_equations():
    stack, _ = particles(150, preset=CTF_PRESET)
    basis = disc_basis(L, 8 / L)
    images = BandImages.from_stack(stack, np.ones(L // 2 + 1), 8, basis, ctf=stack.ctf, pixel_size=5.0)
    span = find_span(images, (L, 8 / L))
    rng = np.random.default_rng(0)
    labels, angles = rng.integers(0, 4, 150), rng.uniform(0, 6, 150)
    sums, filters = class_sums(Coefficients(span, images, images.shifts), labels, angles, images.shifts, 4)
    averages = span.posterior_means(sums, filters)

    def log_posterior(A):
        filtered = 0.5 * (span.ring_power(A).astype(float) * filters).sum()
        return (A * sums).sum() - filtered - 0.5 * (A**2 / _deviations(span) ** 2).sum()

    top = log_posterior(averages)
    for seed in range(3):
        step = np.random.default_rng(seed).standard_normal(averages.shape) * _deviations(span)
        ahead, back = (log_posterior(averages + s * 1e-2 * step) for s in (1, -1))
        assert max(ahead, back) < top
        assert abs(ahead - back) < 0.05 * (2 * top - ahead - back)


def test_own_poses_find_what_images_were_made_with(fitted):
    aligner, stack, _ = fitted
    rng = np.random.default_rng(1)
    labels, angles = rng.integers(0, 8, 40), rng.uniform(0, 2 * np.pi, 40)
    shifts = rng.uniform(-0.5, 0.5, (40, 2))
    views = aligner._span.images(aligner._averages)
    made = shift_images(rotate_images(views[labels], angles), shifts)
    images = BandImages.from_stack(ParticleStack(made), np.ones(L // 2 + 1), 16, aligner._basis)
    found = own_poses(
        Coefficients(aligner._span, images, images.shifts),
        lambda part: aligner._averages[labels[part]],
        images.shifts,
        ShiftGrids(2.0, 65 / 16).fine,
    )
    wrong = np.abs((found.angles - angles + np.pi) % (2 * np.pi) - np.pi)
    assert np.degrees(np.median(wrong)) < 0.5
    assert np.median(np.hypot(*(found.shifts - shifts).T)) < 0.1


def test_averages_without_an_image_are_those_made_without_it():
    stack, _ = particles(60, preset=CTF_PRESET)
    basis = disc_basis(L, 8 / L)
    images = BandImages.from_stack(stack, np.ones(L // 2 + 1), 8, basis, ctf=stack.ctf, pixel_size=5.0)
    classes = Classes(find_span(images, (L, 8 / L)), images, 2)
    rng = np.random.default_rng(0)
    classes.labels, classes.angles = np.arange(60) % 2, rng.uniform(0, 6, 60)
    classes.average(images.shifts)
    with_all, without = classes.averages, classes.averages_of(slice(0, 60))
    for i in (0, 7, 33):
        kept = np.delete(np.arange(60), i)
        others = Classes(classes.span, images.select(kept), 2)
        others.labels, others.angles = classes.labels[kept], classes.angles[kept]
        others.average(others.known)
        label = classes.labels[i]
        change = np.linalg.norm(others.averages[label] - with_all[label])
        # taken out to first order: what is left is as small as one image among thirty
        assert np.linalg.norm(without[i] - others.averages[label]) < 0.15 * change


def test_biases_make_classes_equally_large():
    scores = np.random.default_rng(0).standard_normal((600, 6)).astype(np.float32) * 3
    scores[:, 0] += 10
    assert np.bincount(scores.argmax(axis=1), minlength=6).min() < 10
    labels = (scores + balanced_biases(scores, np.zeros(6), 1.0)).argmax(axis=1)
    assert np.bincount(labels, minlength=6).min() > 80


def test_peak_of_a_quadratic_is_found():
    rng = np.random.default_rng(0)
    wanted = rng.uniform(-0.55, 0.55, (20, 2))
    offsets = ShiftGrids(2.0, 65 / 16).fine
    apart = offsets[None] - wanted[:, None]
    values = 3 - 2 * apart[..., 0] ** 2 - apart[..., 1] ** 2 - 0.5 * apart[..., 0] * apart[..., 1]
    np.testing.assert_allclose(peaks(values, offsets), wanted, atol=1e-9)


def test_shifts_are_tried_as_closely_as_the_finest_wavelength_wants():
    small, large = ShiftGrids(4.6, 65 / 16), ShiftGrids(9.2, 130 / 16)
    for name in ("coarse", "close", "fine"):
        np.testing.assert_allclose(getattr(large, name), 2 * getattr(small, name))
    assert len(small.fine) == 9
    assert np.array_equal(ShiftGrids(0.0, 4.0).fine, np.zeros((1, 2)))


def test_frames_of_turned_copies_agree(fitted):
    aligner = fitted[0]
    angles = np.random.default_rng(0).uniform(0, 2 * np.pi, 6)
    turned = aligner._span.turned(np.repeat(aligner._averages[:1], 6, axis=0), angles)
    left = angles + frame_angles(aligner._span, turned)
    assert np.abs(np.exp(1j * (left - left[0])) - 1).max() < 1e-3


# ---------------------------------------------------------------------------------------------- what is found
@pytest.mark.parametrize("preset", ["shifted", CTF_PRESET], ids=["no CTF", "CTF"])
def test_angles_and_shifts_of_raw_particles(preset):
    stack, truth = particles(300, preset=preset)
    aligner = quiet_fit(stack, 10)
    counts = np.bincount(aligner.labels_, minlength=10)
    assert counts.min() > 0.2 * 300 / 10
    turn, shift = errors(aligner, truth)
    # random angles have a median of 90 degrees; unmoved images have 0.9 px
    assert turn < 5
    assert shift < 0.65


def test_averages_with_the_ctf_in_the_likelihood_show_what_is_there():
    stack, _ = particles(N, preset=CTF_PRESET)
    clean, _ = particles(N, snr=None)  # the same views and shifts
    correlations = []
    for X in (stack, stack.replace(ctf=None)):
        aligner = quiet_fit(X)
        views = turn_back(np.asarray(clean), aligner.angles_, aligner.shifts_)
        views = np.stack([views[aligner.labels_ == label].mean(axis=0) for label in range(8)])
        correlations.append(np.corrcoef(views.ravel(), aligner.class_averages_.ravel())[0, 1])
    # 0.97 and, of averages that ignore the CTF, 0.79
    assert correlations[0] > 0.9
    assert correlations[1] < 0.85


def test_turned_images_have_turned_angles(fitted):
    aligner, stack, _ = fitted
    images = np.asarray(stack)[:60]
    labels, angles, shifts = aligner.align(images)
    quarter = np.rot90(images, -1, axes=(1, 2))  # clockwise on a screen: from x towards y
    turned = aligner.align(quarter)
    assert np.array_equal(turned[0], labels)
    wrong = (turned[1] - angles - np.pi / 2 + np.pi) % (2 * np.pi) - np.pi
    assert np.abs(wrong).max() < 1e-3
    np.testing.assert_allclose(turned[2], np.stack([-shifts[:, 1], shifts[:, 0]], axis=1), atol=1e-3)


def test_shifts_that_come_along_are_undone_first(fitted):
    aligner, stack, _ = fitted
    some = stack[:60]
    moved = some.replace(data=shift_images(np.asarray(some), np.full((60, 2), 7.0)), shifts=np.full((60, 2), 7.0))
    labels, angles, shifts = aligner.align(moved)
    expected = aligner.align(some)
    assert np.array_equal(labels, expected[0])
    np.testing.assert_allclose(angles, expected[1], atol=1e-3)
    np.testing.assert_allclose(shifts, expected[2] + 7.0, atol=1e-3)


def test_each_image_is_aligned_by_itself(fitted):
    aligner, stack, _ = fitted
    together = aligner.align(stack)
    for name, value in zip(("labels_", "angles_", "shifts_"), together):
        np.testing.assert_array_equal(getattr(aligner, name), value, err_msg=name)
    alone = [np.concatenate(part) for part in zip(*(aligner.align(stack[i : i + 1]) for i in range(0, N, 10)))]
    for a, b in zip(alone, together):
        np.testing.assert_allclose(a, b[::10], atol=1e-5)


def test_transform_turns_back_and_centres_with_all_that_belongs_to_images():
    stack, truth = particles(60, snr=None, preset=CTF_PRESET)
    stack = stack.replace(ctf=truth.ctf, rotations=truth.rotations)
    aligner = quiet_fit(stack, 3)
    aligned = aligner.transform(stack)
    assert not aligned.shifts.any()
    # an aligned image is the filtered projection at its turned pose, displaced by what the search was off
    expected, _ = make_particles(
        make_molecule(L, random_state=0), 60, preset="paper", snr=None, rotations=aligned.rotations
    )
    expected = apply_ctf(np.asarray(expected), aligned.ctf, 5.0)
    left = np.einsum("nij,nj->ni", in_plane_rotation(-aligner.angles_)[:, :2, :2], truth.shifts - aligner.shifts_)
    expected = shift_images(expected, left)
    inside = np.hypot(*np.mgrid[-16:17, -16:17]) < 12
    difference = (np.asarray(aligned) - expected)[:, inside]
    assert (difference**2).mean() < 0.01 * (expected[:, inside] ** 2).mean()


def test_turn_back_undoes_a_turn():
    view = np.asarray(particles(1, snr=None)[0])
    moved = shift_images(rotate_images(view, 0.7), [[1.5, -2.0]])
    inside = np.hypot(*np.mgrid[-16:17, -16:17]) < 10
    back = turn_back(moved, np.array([0.7]), np.array([[1.5, -2.0]]))
    assert np.abs(back - view)[:, inside].max() < 0.06 * np.abs(view).max()


def test_pipeline_with_statistical_manifold_learning(fitted):
    _, stack, truth = fitted
    steps = [
        ("align", InPlaneAligner(8, max_iter=6, n_jobs=1, random_state=0)),
        ("sml", SMLClustering(12, n_components=10, random_state=0)),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        aligned, raw = (Pipeline(steps).fit(stack), SMLClustering(12, n_components=10, random_state=0).fit(stack))
    labels = aligned[-1].labels_
    assert np.mean(aligned.predict(stack) == labels) > 0.99
    # by chance 0.07; without alignment about 0.2
    assert purity(labels, truth) > 1.5 * purity(raw.labels_, truth)


# ------------------------------------------------------------------------------- large stacks, threads, going on
def same_fit(a, b):
    for name in ("labels_", "angles_", "shifts_", "class_averages_", "class_biases_", "noise_spectrum_"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
    assert (a.n_iter_, a.converged_) == (b.n_iter_, b.converged_)


def test_threads_change_nothing(fitted):
    same_fit(quiet_fit(fitted[1], n_jobs=2), fitted[0])


def test_stack_in_files_stays_there(fitted, tmp_path):
    aligner, stack, _ = fitted
    save_particles(tmp_path / "particles.star", stack, images_path=tmp_path / "particles.mrcs")
    lazy = load_particles(tmp_path / "particles.star").replace(shifts=None)
    assert not lazy.in_memory
    again = quiet_fit(lazy)
    same_fit(again, aligner)
    aligned = again.transform(lazy)
    assert not aligned.in_memory
    np.testing.assert_array_equal(aligned[10:12], np.asarray(aligner.transform(stack))[10:12])


def test_more_images_than_take_part_in_learning(fitted, monkeypatch):
    _, stack, truth = fitted
    monkeypatch.setattr(aligner_module, "_MOST_LEARNED", 200)
    monkeypatch.setattr(aligner_module, "_CHUNK", 128)
    monkeypatch.setattr(fit_module, "_SEARCHED_IMAGES", 120)
    monkeypatch.setattr(fit_module, "_SEARCHED_CLASSES", 5)
    aligner = quiet_fit(stack)
    assert np.bincount(aligner.labels_, minlength=8).min() > 0
    turn, shift = errors(aligner, truth)
    assert turn < 6
    assert shift < 0.75


class Interrupt:
    """A callback that ends the process of fitting after some iterations."""

    def __init__(self, after):
        self.left = after

    def setup(self, estimator, context):
        pass

    def teardown(self, estimator, context):
        pass

    def on_fit_task_begin(self, estimator, context):
        pass

    def on_fit_task_end(self, estimator, context):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt


class Stop(Interrupt):
    """A callback that asks for an end."""

    def on_fit_task_end(self, estimator, context):
        self.left -= 1
        return self.left < 0


@pytest.mark.parametrize("after", [2, 15])
def test_interrupted_fit_goes_on_to_the_same_result(fitted, tmp_path, after):
    reference, stack, _ = fitted
    params = {"n_jobs": 1, "random_state": 0, "max_iter": 6, "checkpoint_dir": tmp_path}
    assert reference.n_iter_ > after
    with pytest.raises(KeyboardInterrupt):
        InPlaneAligner(8, **params).set_callbacks(Interrupt(after)).fit(stack)
    same_fit(quiet_fit(stack, checkpoint_dir=tmp_path), reference)
    with pytest.raises(ValueError, match="holds a fit of other images or parameters"):
        InPlaneAligner(7, **params).fit(stack)


def test_callbacks_can_stop_a_fit(fitted):
    aligner = InPlaneAligner(8, n_jobs=1, random_state=0).set_callbacks(Stop(3))
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        aligner.fit(fitted[1])
    assert aligner.n_iter_ == 4
    assert not aligner.converged_


# ------------------------------------------------------------------------------------------- warnings and errors
def test_no_convergence_warns(fitted):
    with pytest.warns(ConvergenceWarning, match=r"did not converge in max_iter=1 iterations: .* changed class"):
        aligner = InPlaneAligner(8, max_iter=1, tol=0, n_jobs=1, random_state=0).fit(fitted[1])
    assert not aligner.converged_


def test_collapse_warns():
    images = np.repeat(np.asarray(particles(1, snr=None)[0]), 60, axis=0)
    with pytest.warns(ConvergenceWarning, match="classes collapsed: .* of the n_classes=10 hold less than 20%"):
        InPlaneAligner(10, max_iter=5, n_jobs=1, random_state=0).fit(images)


def test_bad_input_is_named(fitted):
    stack = fitted[1]
    with pytest.raises(ValueError, match="n_samples=5 should be >= n_classes=8"):
        InPlaneAligner(8).fit(stack[:5])
    with pytest.raises(ValueError, match=r"max_shift must be below half the box of 33 px, got 17"):
        InPlaneAligner(8, max_shift=17).fit(stack)
    with pytest.raises(ValueError, match="CTFs need the pixel size"):
        InPlaneAligner(8).fit(np.asarray(stack), ctf=make_ctf(N))
    with pytest.raises(ValueError, match="CTF has 7 records but X has 240 images"):
        InPlaneAligner(8).fit(stack, ctf=make_ctf(7))
    images = np.array(stack)
    images[7, 3, 3] = np.nan
    with pytest.raises(ValueError, match="contains NaN: image 7"):
        InPlaneAligner(8).fit(ParticleStack(images))
