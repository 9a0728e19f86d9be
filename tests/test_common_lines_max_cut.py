"""Classes from common lines: the graph, algorithm 2, the default, and what tells a user that there are no classes."""

import warnings

import numpy as np
import pytest
from sklearn.base import BaseEstimator, clone
from sklearn.exceptions import ConvergenceWarning

from skcryo.alignment import PoseFit
from skcryo.ctf import make_ctf
from skcryo.datasets import ImagingConditions, make_molecule, make_particles
from skcryo.heterogeneity import CommonLinesMaxCut, max_k_cut
from skcryo.heterogeneity._consensus import contrast_scatter
from skcryo.heterogeneity._cut_alternation import alternate
from skcryo.heterogeneity._line_graph import line_misfits, objective, predicted_angles
from skcryo.metrics import common_line_detection_rate, partition_precision, pose_error
from skcryo.orientation import RadialLines, detect_common_lines
from skcryo.particles import ParticleStack
from skcryo.rotations import in_plane_rotation, random_rotations

L = 24
MOLECULE = make_molecule(L, random_state=0)
STATES = [MOLECULE, make_molecule(L, random_state=0, hinge=60), make_molecule(L, random_state=0, ligand=0.4)]
FAST = {"angular_step": 30, "n_init": 1, "n_jobs": 1, "random_state": 0}


@pytest.fixture(scope="module")
def particles():
    return make_particles(STATES[:2], 160, snr=1.0, random_state=0)


@pytest.fixture(scope="module")
def clear():
    """Lines good enough for cuts of so few images."""
    return make_particles([STATES[0], STATES[2]], 160, snr=4.0, random_state=1)


@pytest.fixture(scope="module")
def fitted(particles):
    return CommonLinesMaxCut(2, **FAST).fit(particles[0])


def quietly(estimator, *args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return estimator.fit(*args, **options)


# ---- the graph -------------------------------------------------------------------------------------------


def test_misfits_are_those_of_the_paper():
    rng = np.random.default_rng(0)
    n = 7
    angles, rotations = rng.uniform(-4, 4, (n, n)).astype(np.float32), random_rotations(n, random_state=0)
    checked = np.triu(rng.random((n, n)) < 0.7, 1)
    checked |= checked.T
    weights = line_misfits(angles, rotations, checked)
    expected = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            c_ij = np.array([np.cos(angles[i, j]), np.sin(angles[i, j]), 0])
            c_ji = np.array([np.cos(angles[j, i]), np.sin(angles[j, i]), 0])
            expected[i, j] = checked[i, j] * np.linalg.norm(rotations[i] @ c_ij - rotations[j] @ c_ji)
    assert weights == pytest.approx(expected, abs=1e-5)
    assert np.array_equal(weights, weights.T)
    labels = np.array([0, 1, 0, 1, 2, 2, 0])
    pairs = [(i, j) for i in range(n) for j in range(i) if labels[i] == labels[j]]
    assert objective(weights, labels) == pytest.approx(sum(expected[i, j] for i, j in pairs), rel=1e-5)
    # Neither the frame nor the hand of the rotations matters, nor the joint sign of a line.
    frame, mirror = random_rotations(1, random_state=1)[0], np.diag([1, 1, -1])
    turned = angles + np.pi * (rng.random((n, n)) < 2)
    assert line_misfits(turned, frame @ mirror @ rotations @ mirror, checked) == pytest.approx(weights, abs=1e-5)


def test_rotations_predict_their_common_lines():
    rotations = random_rotations(30, random_state=0)
    rotations[3] = rotations[4] @ in_plane_rotation(1.0)  # the same view: any line is common
    angles = predicted_angles(rotations)
    assert np.isfinite(angles).all()
    assert common_line_detection_rate(angles, rotations, threshold=0.01) == 1.0
    weights = line_misfits(angles, rotations)
    weights[3, 4] = weights[4, 3] = 0
    assert weights.max() < 1e-3


# ---- algorithm 2 -----------------------------------------------------------------------------------------


def test_algorithm_2_as_printed(clear):
    stack, truth = clear
    lines = detect_common_lines(stack)
    found = alternate(lines, 2, max_iter=20, tol=0, seed=0)
    assert found.converged and len(found.objective_path) == found.n_iter + 1
    assert (np.diff(found.objective_path) <= 0).all()
    assert objective(line_misfits(lines.angles, found.rotations), found.labels) == pytest.approx(
        found.objective_path[-1], rel=1e-5
    )
    # The cut can be better by its own measure than the true one, but not by much where lines are good. By lot: 0.5.
    assert partition_precision(truth.labels, found.labels) > 0.9
    # It stands still where it ended.
    again = alternate(lines, 2, labels=found.labels, rotations=found.rotations, max_iter=1, tol=0, seed=0)
    assert again.objective_path[-1] <= found.objective_path[-1] * (1 + 1e-6)


def test_likelihood_as_weight(clear):
    stack, truth = clear
    lines = RadialLines.from_images(stack)
    common_lines = detect_common_lines(lines)
    found = alternate(common_lines, 2, lines=lines, max_iter=20, tol=1e-6, seed=0)
    assert (np.diff(found.objective_path) <= 0).all() and found.converged
    assert partition_precision(truth.labels, found.labels) > 0.95
    # All classes are in one frame, unlike those of the printed algorithm.
    assert pose_error(found.rotations, truth.rotations).mean < 12


def test_given_labels_are_where_it_starts(clear):
    stack, truth = clear
    lines = detect_common_lines(stack)
    found = alternate(lines, 2, labels=truth.labels, max_iter=1, tol=0, seed=0)
    assert found.objective_path[0] < alternate(lines, 2, max_iter=1, tol=0, seed=0).objective_path[0]
    # Three classes of which one is too small for a LUD step.
    labels = np.where(np.arange(len(stack)) < 2, 2, truth.labels)
    assert np.isfinite(alternate(lines, 3, labels=labels, max_iter=2, tol=0, seed=0).rotations).all()


@pytest.mark.parametrize("refine", [None, "likelihood"])
def test_cuts_in_the_estimator(clear, refine):
    stack, truth = clear
    found = CommonLinesMaxCut(2, refine=refine, **FAST).fit(stack)
    assert partition_precision(truth.labels, found.labels_) > 0.9
    assert found.converged_ and found.cut_value_ <= found.upper_bound_
    assert found.separation_ is None and found.class_log_likelihood_.shape == (160, 2)
    assert found.class_shares_ == pytest.approx(np.bincount(found.labels_) / 160)
    # `predict` knows the images by the classes' volumes.
    assert partition_precision(found.labels_, found.predict(stack)) > 0.85


# ---- the default -----------------------------------------------------------------------------------------


def test_classes_rotations_and_what_comes_with_them(fitted, particles):
    stack, truth = particles
    assert partition_precision(truth.labels, fitted.labels_) > 0.97  # by lot: 0.5
    assert pose_error(fitted.rotations_, truth.rotations).mean < 5  # by lot: 120
    assert fitted.converged_ and not fitted.shifts_.any()
    assert fitted.labels_.dtype == np.int64 and fitted.labels_.flags.c_contiguous
    assert (np.diff(fitted.class_shares_) <= 0).all() and fitted.class_shares_.sum() == pytest.approx(1)
    assert (np.diff(fitted.objective_path_) < 0).all()
    weighted = fitted.class_log_likelihood_ + np.log(fitted.class_shares_)
    assert np.array_equal(weighted.argmax(axis=1), fitted.labels_)
    assert fitted.separation_[0, 1] > 5 * fitted.separation_error_[0, 1] and fitted.separation_[0, 0] == 0
    # The cut is a fact about the lines: recomputed, and below the bound, which holds for any partition.
    weights = line_misfits(fitted.common_lines_.angles, fitted.rotations_)
    apart = fitted.labels_[:, None] != fitted.labels_
    assert fitted.cut_value_ == pytest.approx(weights[apart].sum() / 2, rel=1e-5)
    assert fitted.cut_value_ <= max_k_cut(weights, 2, random_state=1).cut_value <= fitted.upper_bound_
    assert np.array_equal(fitted.line_images_, np.arange(160))


@pytest.mark.parametrize(
    ("n_classes", "proportions", "seed"), [(2, [0.8, 0.2], 1), pytest.param(3, None, 1, marks=pytest.mark.slow)]
)
def test_uneven_and_more_classes(n_classes, proportions, seed):
    stack, truth = make_particles(STATES[:n_classes], 240, snr=1.0, proportions=proportions, random_state=seed)
    found = CommonLinesMaxCut(n_classes, **FAST).fit(stack)
    assert partition_precision(truth.labels, found.labels_) > 0.93  # by lot: 0.2, 0.33
    assert found.class_shares_ == pytest.approx(np.sort(np.bincount(truth.labels))[::-1] / 240, abs=0.03)


def test_new_images_are_classified_each_by_itself(fitted):
    stack, truth = make_particles(STATES[:2], 60, snr=1.0, random_state=7)
    labels = fitted.predict(stack)
    assert partition_precision(truth.labels, labels) > 0.93
    log = fitted.transform(stack)
    assert log.shape == (60, 2) and log.dtype == np.float32
    assert fitted.transform(stack[5:6]) == pytest.approx(log[5:6], rel=1e-4)
    probabilities = fitted.predict_proba(stack)
    assert probabilities.sum(axis=1) == pytest.approx(np.ones(60))
    assert np.array_equal(probabilities.argmax(axis=1), labels)
    # One volume for both states explains held-out images less.
    one = quietly(CommonLinesMaxCut(1, **FAST), make_particles(STATES[:2], 160, snr=1.0, random_state=0)[0])
    assert fitted.score(stack) > one.score(stack)
    assert one.cut_value_ == one.upper_bound_ == 0 and not one.labels_.any() and one.converged_


def test_the_same_whatever_the_threads_and_again(fitted, particles):
    # Poses that images carry are not used unasked.
    stack, truth = particles
    carried = stack.replace(rotations=truth.rotations, shifts=np.ones((160, 2)))
    other = clone(fitted).set_params(n_jobs=2).fit(carried)
    assert np.array_equal(other.labels_, fitted.labels_) and np.array_equal(other.rotations_, fitted.rotations_)
    assert np.array_equal(other.class_log_likelihood_, fitted.class_log_likelihood_)
    assert other.cut_value_ == fitted.cut_value_ and other.upper_bound_ == fitted.upper_bound_


def test_lines_of_some_images_orient_all(particles):
    stack, truth = particles
    found = CommonLinesMaxCut(2, n_line_images=80, **FAST).fit(stack)
    assert len(found.line_images_) == len(found.common_lines_) == 80
    assert partition_precision(truth.labels, found.labels_) > 0.95
    assert pose_error(found.rotations_, truth.rotations).mean < 6
    assert found.cut_value_ <= found.upper_bound_ <= 80 * 79 / 2 * 2


# ---- no classes ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_identical_volumes_do_not_look_like_success():
    stack, _ = make_particles(MOLECULE, 160, snr=1.0, random_state=0)
    with pytest.warns(ConvergenceWarning, match="classes 0 and 1 .* are not told apart|hold no image") as caught:
        found = CommonLinesMaxCut(2, **FAST).fit(stack)
    assert len(caught) == 1 and caught[0].filename == __file__
    assert not found.converged_ and found.separation_[0, 1] < 2 * found.separation_error_[0, 1]


@pytest.mark.slow
def test_a_class_too_many_does_not_look_like_success(particles):
    with pytest.warns(ConvergenceWarning, match="are not told apart|hold no image"):
        found = CommonLinesMaxCut(3, **FAST).fit(particles[0])
    # Two of the three are: those that are there.
    told = found.separation_ > 4 * found.separation_error_
    assert not found.converged_ and told.sum() >= 2


def test_noise_does_not_look_like_success():
    noise = np.random.default_rng(0).standard_normal((100, 16, 16))
    with pytest.warns(ConvergenceWarning, match="CommonLinesMaxCut did not converge"):
        assert not CommonLinesMaxCut(2, **FAST).fit(noise).converged_


# ---- what is handed in -----------------------------------------------------------------------------------


class Known(BaseEstimator):
    """Stands for an AbInitioVolume: poses of shifted images, some degrees and pixels off."""

    def __init__(self, truth=None):
        self.truth = truth

    def fit(self, X, y=None):
        n = len(X)
        rng = np.random.default_rng(0)
        self.rotations_ = self.truth.rotations @ in_plane_rotation(np.radians(rng.normal(0, 3, n)))
        self.shifts_ = self.truth.shifts + rng.normal(0, 0.3, (n, 2))
        self.contrast_ = 1 + 0.01 * rng.standard_normal(n)
        return self


@pytest.fixture(scope="module")
def shifted():
    stack, truth = make_particles(STATES[:2], 160, preset="ctf", snr=1.0, pixel_size=8.0, random_state=0)
    return stack, truth, Known(truth).fit(stack)


@pytest.mark.slow
def test_poses_of_an_estimator(shifted):
    stack, truth, known = shifted
    found = CommonLinesMaxCut(2, init=Known(truth), **FAST).fit(stack, labels=truth.labels)
    assert partition_precision(truth.labels, found.labels_) > 0.95
    assert pose_error(found.rotations_, truth.rotations).mean < 2.5
    assert np.abs(found.shifts_ - truth.shifts).mean() < np.abs(known.shifts_ - truth.shifts).mean()
    new, new_truth = make_particles(STATES[:2], 60, preset="ctf", snr=1.0, pixel_size=8.0, random_state=9)
    assert partition_precision(new_truth.labels, found.predict(new)) > 0.9
    # One that is fitted is taken as it is, and X's poses go the same way.
    fitted_before = CommonLinesMaxCut(2, init=known, **FAST).fit(stack, labels=truth.labels)
    assert np.array_equal(fitted_before.rotations_, found.rotations_)


def test_labels_to_start_from(particles):
    stack, truth = particles
    cut = CommonLinesMaxCut(2, refine=None, max_iter=1, **FAST)
    assert quietly(cut, stack, labels=truth.labels).objective_path_[0] < quietly(cut, stack).objective_path_[0]


@pytest.mark.slow
def test_ctf_by_keyword_or_on_the_stack(shifted):
    stack, truth, known = shifted
    carried = stack.replace(rotations=known.rotations_, shifts=known.shifts_)
    bare = carried.replace(ctf=None)
    estimator = CommonLinesMaxCut(2, init="poses", **FAST)
    riding = estimator.fit(carried).transform(stack[:5])
    assert partition_precision(truth.labels, estimator.labels_) > 0.95
    given = estimator.fit(bare, ctf=stack.ctf).transform(stack[:5].replace(ctf=None), ctf=stack.ctf[:5])
    assert given == pytest.approx(riding, rel=1e-4)


# ---- bad input -------------------------------------------------------------------------------------------


NOISE = np.random.default_rng(0).standard_normal((12, 16, 16))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CommonLinesMaxCut(13).fit(NOISE), "n_samples=12 should be >= n_clusters=13"),
        (lambda: CommonLinesMaxCut(0).fit(NOISE), "'n_clusters' parameter"),
        (lambda: CommonLinesMaxCut(refine="lud").fit(NOISE), "'refine' parameter"),
        (lambda: CommonLinesMaxCut(init="relion").fit(NOISE), "'init' parameter"),
        (lambda: CommonLinesMaxCut(init="poses").fit(NOISE), "init='poses' but X carries no rotations"),
        (lambda: CommonLinesMaxCut(init=3.0).fit(NOISE), "'init' parameter"),
        (lambda: CommonLinesMaxCut(max_shift=8).fit(NOISE), "max_shift is 8 pixels; less than half of the box of 16"),
        (lambda: CommonLinesMaxCut(mask_radius=17.0).fit(NOISE), "mask_radius is 17.0 pixels; at most the box of 16"),
        (lambda: CommonLinesMaxCut(refine=None, n_line_images=8).fit(NOISE), "n_line_images is 8 but X has 12 images"),
        (lambda: CommonLinesMaxCut(n_line_images=2).fit(NOISE), "'n_line_images' parameter"),
        (lambda: CommonLinesMaxCut().fit(NOISE, labels=[0, 1]), r"labels has shape \(2,\).*\(12,\) are wanted"),
        (lambda: CommonLinesMaxCut().fit(NOISE, labels=np.full(12, 0.5)), "dtype float64; integers"),
        (lambda: CommonLinesMaxCut().fit(NOISE, labels=[0] * 11 + [2]), r"labels\[11\] is 2; 0 to 1 is wanted"),
        (lambda: CommonLinesMaxCut().fit(NOISE[:2]), "minimum of 3"),
        (lambda: CommonLinesMaxCut().fit(np.ones((5, 12, 10))), "CommonLinesMaxCut needs square images"),
        (lambda: CommonLinesMaxCut().fit(NOISE, ctf=make_ctf(12)), "CTFs need the pixel size"),
        (lambda: CommonLinesMaxCut().fit(ParticleStack(NOISE), ctf=make_ctf(5)), "CTF has 5 records but X has 12"),
        (lambda: CommonLinesMaxCut().predict(NOISE), "not fitted yet"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


def test_an_init_of_other_images_is_refused():
    class Short(BaseEstimator):
        def fit(self, X, y=None):
            self.rotations_ = np.tile(np.eye(3), (4, 1, 1))
            return self

    class Without(BaseEstimator):
        def fit(self, X, y=None):
            return self

    with pytest.raises(ValueError, match="has rotations_ of 4 images after fit; rotations_ of the 12 images"):
        CommonLinesMaxCut(init=Short()).fit(NOISE)
    with pytest.raises(ValueError, match="has no rotations_ after fit"):
        CommonLinesMaxCut(init=Without()).fit(NOISE)


# ---- callbacks -------------------------------------------------------------------------------------------


class StopIn:
    def __init__(self, task):
        self.task, self.seen = task, []

    def setup(self, estimator, context):
        pass

    def teardown(self, estimator, context):
        pass

    def on_fit_task_begin(self, estimator, context):
        pass

    def on_fit_task_end(self, estimator, context):
        self.seen.append(context.task_name)
        return context.task_name == self.task


def test_callbacks_see_the_steps_and_may_stop(particles):
    stack, _ = particles
    callback = StopIn("round")
    found = quietly(CommonLinesMaxCut(2, **FAST).set_callbacks(callback), stack)
    steps = ["common lines", "consensus", "halves", "classes", "cut"]
    assert [name for name in callback.seen if name in steps] == steps
    assert callback.seen.count("round") == 1 and found.labels_.shape == (160,)


@pytest.mark.slow
@pytest.mark.parametrize("init", ["poses", "lud"])
def test_contrast_makes_no_classes(init):
    conditions = ImagingConditions(contrast_std=0.3)
    molecule = make_molecule(32, random_state=0)
    stack, truth = make_particles(molecule, 300, preset=conditions, snr=1.0, random_state=0)
    if init == "poses":
        stack = stack.replace(rotations=truth.rotations)
    with pytest.warns(ConvergenceWarning, match="not told apart"):
        found = CommonLinesMaxCut(2, init=init, angular_step=30, n_init=1, random_state=0).fit(stack)
    # with one contrast for all, the brighter half was a class, and told apart: a correlation of 0.82
    assert abs(np.corrcoef(found.labels_, truth.contrast)[0, 1]) < 0.5


def test_scatter_of_contrasts_is_measured_beyond_the_noise():
    random = np.random.default_rng(0)
    power = random.uniform(50, 150, 20000)
    for scatter in (0.0, 0.2):
        contrast = 1 + scatter * random.standard_normal(len(power))
        cross = contrast * power + np.sqrt(power / 2) * random.standard_normal(len(power))
        nothing = np.zeros(len(power))
        assert contrast_scatter(PoseFit(nothing, nothing, nothing, cross, power)) == pytest.approx(scatter, abs=0.02)
