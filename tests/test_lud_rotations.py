"""LUDRotations on particles of known poses."""

import numpy as np
import pytest
from sklearn.base import BaseEstimator, clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.utils import Bunch

from skcryo.alignment import FourierImages
from skcryo.ctf import make_ctf
from skcryo.datasets import make_molecule, make_particles
from skcryo.metrics import make_pose_scorer, pose_error
from skcryo.orientation import CommonLines, LUDRotations, detect_common_lines, solve_lud
from skcryo.orientation._lud_solver import line_residuals
from skcryo.orientation._pose_refinement import PoseRefinement, moved_back
from skcryo.rotations import geodesic_distance, in_plane_rotation

BOX = 32
PIXEL_SIZE = 320 / BOX


@pytest.fixture(scope="module")
def molecule():
    return make_molecule(BOX, voxel_size=PIXEL_SIZE, random_state=0)


def particles(molecule, n, **options):
    return make_particles(molecule, n, pixel_size=PIXEL_SIZE, random_state=options.pop("seed", 0), **options)


@pytest.fixture(scope="module")
def data(molecule):
    """Of 300 images, 200 for fits and 100 that no fit sees."""
    return particles(molecule, 300, snr=0.5)


@pytest.fixture(scope="module")
def fitted(data):
    return LUDRotations(n_jobs=1).fit(data[0][:200])


@pytest.fixture(scope="module")
def by_lines(data):
    return LUDRotations(refine=None, n_jobs=1).fit(data[0][:200])


# ---------------------------------------------------------------------------------------------- poses


def test_poses_by_lines_and_by_the_volume(data, fitted, by_lines):
    stack, truth = data
    # Poses by lot are 120 degrees off.
    refined, from_lines = (pose_error(e.rotations_, truth.rotations[:200]).mean for e in (fitted, by_lines))
    assert from_lines < 4 and refined < 2.5 and refined < 0.8 * from_lines
    assert fitted.converged_ and by_lines.converged_
    assert by_lines.n_rounds_ == 0 and fitted.n_rounds_ > 3
    assert fitted.line_agreement_ > 0.5
    assert np.abs(fitted.shifts_).mean() < 0.5 and not by_lines.shifts_.any()


def test_what_the_attributes_say(data, fitted, by_lines):
    lines = by_lines.common_lines_
    assert isinstance(lines, CommonLines) and len(lines) == 200
    # By lines alone the objective is that of rotations_; refinement leaves it as it was.
    assert fitted.objective_ == by_lines.objective_
    found = solve_lud(lines.angles, weights=by_lines._weights(), checked=lines.checked)
    assert found.objective == by_lines.objective_ and np.array_equal(found.rotations, by_lines.rotations_)
    assert by_lines.residuals_ == pytest.approx(found.residuals)
    expected = line_residuals(lines.angles, fitted.rotations_, by_lines._weights(), lines.checked)
    assert fitted.residuals_ == pytest.approx(expected)
    assert fitted.pixel_size_ == PIXEL_SIZE and fitted.image_shape_ == (BOX, BOX)


def test_clean_images(molecule):
    stack, truth = particles(molecule, 150, snr=None)
    # Without what is taken off of the volume, 0.3.
    assert pose_error(LUDRotations(n_jobs=1).fit(stack).rotations_, truth.rotations).mean < 0.12


def test_half_of_the_pairs_masked(molecule):
    stack, truth = particles(molecule, 200, snr=None, seed=1)
    lines = detect_common_lines(stack)
    rng = np.random.default_rng(0)
    checked = np.triu(rng.uniform(size=(200, 200)) < 0.5, 1)
    checked |= checked.T
    # Read as lines, what the other half holds leaves tens of degrees.
    masked = CommonLines(
        np.where(checked, lines.angles, -1).astype(np.float32),
        np.where(checked, lines.scores, 1e6).astype(np.float32),
        np.where(checked, lines.confidences, 1).astype(np.float32),
        checked,
    )
    found = LUDRotations(refine=None, n_jobs=1).fit(stack, common_lines=masked)
    assert pose_error(found.rotations_, truth.rotations).mean < 1
    assert found.common_lines_ is masked and found.line_agreement_ > 0.8


def test_common_lines_that_are_given_are_not_detected_again(data, by_lines):
    stack = data[0][:200]
    again = LUDRotations(refine=None, n_jobs=1).fit_predict(stack, common_lines=by_lines.common_lines_)
    assert np.array_equal(again, by_lines.rotations_)
    worse = LUDRotations(refine=None, weights="equal", metric="correlation", n_jobs=1).fit(stack)
    assert not np.array_equal(worse.common_lines_.angles, by_lines.common_lines_.angles)


def test_the_other_hand_is_as_good(data, by_lines):
    J = np.diag([1.0, 1.0, -1.0])
    lines = by_lines.common_lines_
    other = line_residuals(lines.angles, J @ by_lines.rotations_ @ J, by_lines._weights(), lines.checked)
    assert other == pytest.approx(by_lines.residuals_, abs=1e-6)


@pytest.mark.slow
def test_noise_does_not_look_like_success():
    noise = np.random.default_rng(0).standard_normal((150, BOX, BOX)).astype(np.float32)
    with pytest.warns(ConvergenceWarning, match="of the common lines agree with the poses, which may be wrong"):
        found = LUDRotations(n_jobs=1).fit(noise)
    assert not found.converged_ and found.line_agreement_ < 0.1


# ---------------------------------------------------------------------------------------------- new images


def test_new_images_are_as_well_placed_as_fitted_ones(data, fitted):
    stack, truth = data
    both = np.concatenate([fitted.rotations_, fitted.predict(stack[200:])])
    errors = pose_error(both, truth.rotations).errors  # one frame for all
    assert errors[200:].mean() < 1.3 * errors[:200].mean()
    # Fitted images are found where they are.
    back = np.degrees(geodesic_distance(fitted.predict(stack[:50]), fitted.rotations_[:50]))
    assert np.median(back) < 0.5


def test_unrefined_poses_place_new_images_too(data, by_lines):
    stack, truth = data
    errors = pose_error(np.concatenate([by_lines.rotations_, by_lines.predict(stack[200:])]), truth.rotations).errors
    assert errors[200:].mean() < 1.2 * errors[:200].mean()


def test_predictions_do_not_depend_on_the_batch(data, fitted):
    stack = data[0][200:220]
    together = fitted.predict_poses(stack)
    alone = fitted.predict_poses(stack[7:8])
    for name in ("rotations", "shifts", "contrast", "log_likelihood"):
        assert alone[name][0] == pytest.approx(together[name][7], rel=1e-4, abs=1e-4)


@pytest.mark.slow
def test_score_is_higher_for_particles_than_for_noise(data, fitted):
    stack = data[0][200:]
    noise = data[1].noise_std * np.random.default_rng(0).standard_normal((30, BOX, BOX)).astype(np.float32)
    assert fitted.score(stack) > 3 * fitted.score(noise) > 0
    assert fitted.score(stack[:7]) == pytest.approx(fitted.predict_poses(stack[:7]).log_likelihood.mean())


def test_cross_validated_search(data):
    stack, truth = data
    search = GridSearchCV(
        LUDRotations(refine=None, n_jobs=1), {"alpha": [2 / 3, 0.8]}, scoring=make_pose_scorer(), cv=KFold(2)
    )
    search.fit(stack[:200], truth.rotations[:200])
    # Minus degrees of held-out images, each fold fitted on the other half.
    assert np.all(search.cv_results_["mean_test_score"] > -10)


# ---------------------------------------------------------------------------------------------- shifts and CTFs


def shift_error(rotations, shifts, truth):
    """Mean error of shifts in pixels, but for the origin of the frame, which no image tells."""
    rows = np.swapaxes(rotations[:, :, :2], 1, 2)
    difference = shifts - truth.shifts
    origin = np.linalg.lstsq(rows.reshape(-1, 3), difference.reshape(-1), rcond=None)[0]
    return np.linalg.norm(difference - rows @ origin, axis=1).mean()


@pytest.mark.parametrize("preset", ["shifted", pytest.param("ctf", marks=pytest.mark.slow)])
def test_shifts_are_found(molecule, preset):
    stack, truth = particles(molecule, 250, preset=preset, snr=1.0)
    found = LUDRotations(max_shift=1.7, n_jobs=1).fit(stack)
    # Shifts are 1.2 pixels as they come.
    assert pose_error(found.rotations_, truth.rotations).mean < 3
    assert shift_error(found.rotations_, found.shifts_, truth) < 0.3
    poses = found.predict_poses(stack[:40])
    assert np.median(np.linalg.norm(poses.shifts - found.shifts_[:40], axis=1)) < 0.1


def test_known_shifts_ride_on_the_stack_or_come_as_init(molecule):
    stack, truth = particles(molecule, 120, preset="shifted", snr=2.0)
    riding = stack.replace(shifts=truth.shifts)
    known = LUDRotations(n_jobs=1).fit(riding)
    assert pose_error(known.rotations_, truth.rotations).mean < 2.5
    assert shift_error(known.rotations_, known.shifts_, truth) < 0.25
    given = LUDRotations(init=truth.shifts, n_jobs=1).fit(stack)
    assert np.array_equal(given.rotations_, known.rotations_) and np.array_equal(given.shifts_, known.shifts_)
    # New images bring theirs; without, they are taken as centred.
    errors = [pose_error(known.predict(X), truth.rotations).mean for X in (riding, stack)]
    assert errors[0] < 2.5 and errors[1] > 2 * errors[0]
    # Taken as centred from the start, lines do not meet.
    off = LUDRotations(refine=None, n_jobs=1).fit(stack)
    assert pose_error(off.rotations_, truth.rotations).mean > 2 * errors[0]


class Oracle(BaseEstimator):
    """In the place of an AbInitioVolume: knows the shifts of the images that it was made of."""

    def __init__(self, shifts=None):
        self.shifts = shifts

    def fit(self, X, y=None, *, ctf=None):
        self.shifts_ = np.asarray(self.shifts)[: len(X)]
        self.n_fits_ = getattr(self, "n_fits_", 0) + 1
        return self

    def predict_poses(self, X, *, ctf=None):
        return Bunch(shifts=np.asarray(self.shifts)[: len(X)])


def test_shifts_from_another_estimator(molecule):
    stack, truth = particles(molecule, 120, preset="shifted", snr=2.0)
    known = LUDRotations(init=truth.shifts, n_jobs=1).fit(stack)
    unfitted = Oracle(truth.shifts)
    found = LUDRotations(init=unfitted, n_jobs=1).fit(stack)
    assert np.array_equal(found.rotations_, known.rotations_)
    assert not hasattr(unfitted, "shifts_") and found.init_.n_fits_ == 1  # parameters are left alone
    fitted = Oracle(truth.shifts).fit(stack)
    assert LUDRotations(init=fitted, n_jobs=1).fit(stack).init_ is fitted and fitted.n_fits_ == 1
    # New images are centred by it.
    assert pose_error(found.predict(stack[:60]), truth.rotations[:60]).mean < 2.5
    # Without it the next fit forgets it.
    assert not hasattr(found.set_params(init=None).fit(stack.replace(shifts=truth.shifts)), "init_")


def test_rotations_to_start_from(data, by_lines):
    stack, truth = data
    found = LUDRotations(init=truth.rotations[:200], refine=None, n_jobs=1).fit(stack[:200])
    assert pose_error(found.rotations_, by_lines.rotations_).mean < 1
    assert found.n_iter_ < by_lines.n_iter_


# ---------------------------------------------------------------------------------------------- refinement


def refinement_of(stack, rotations, shifts=None, **options):
    weak = np.full(BOX // 2 + 1, 1e-4 * np.var(stack))
    images = FourierImages.from_stack(stack, weak, 15, pixel_size=PIXEL_SIZE)
    shifts = np.zeros((len(stack), 2)) if shifts is None else shifts
    return PoseRefinement(images, rotations, shifts, max_shift=0.0, mask_radius=14.0, **options)


def test_volume_fits_its_images(molecule):
    stack, truth = particles(molecule, 300, snr=None)
    refinement = refinement_of(stack, truth.rotations)
    for _ in range(2):
        refinement.run_round()
    # True poses stay where they are; a volume of divided sums moves them by 0.3 degrees.
    assert pose_error(refinement.fit.rotations, truth.rotations).mean < 0.1


def test_the_origin_is_where_shifts_are_least(molecule):
    stack, truth = particles(molecule, 60, snr=2.0)
    offset = np.array([2.0, -1.0, 0.5])
    moved = np.swapaxes(truth.rotations[:, :, :2], 1, 2) @ offset
    refinement = refinement_of(stack, truth.rotations, moved)
    refinement._recentre()
    assert refinement.fit.shifts == pytest.approx(np.zeros((60, 2)), abs=1e-9)


def test_images_moved_back(molecule):
    stack, truth = particles(molecule, 5, preset="shifted", snr=None)
    centred, _ = particles(molecule, 5, snr=None, rotations=truth.rotations)
    images, expected = (
        FourierImages.from_stack(s, np.ones(BOX // 2 + 1), 12, pixel_size=PIXEL_SIZE) for s in (stack, centred)
    )
    scale = float(np.abs(expected.values).max())
    assert moved_back(images, truth.shifts).values == pytest.approx(expected.values, abs=1e-3 * scale)


def test_threads_change_no_bit(data):
    stack = data[0][:100]
    one, two = (LUDRotations(max_shift=1, n_jobs=n).fit(stack) for n in (1, 2))
    assert np.array_equal(one.rotations_, two.rotations_) and np.array_equal(one.shifts_, two.shifts_)
    assert np.array_equal(one.predict(stack[:9]), two.predict(stack[:9]))


def test_turned_images_have_turned_poses(data, by_lines):
    """A quarter turn moves pixels onto pixels, so that nothing but the poses may change."""
    stack = np.asarray(data[0][:200])
    turned = np.zeros_like(stack)
    turned[:, 1:, 1:] = np.rot90(stack[:, 1:, 1:], axes=(2, 1))  # about the centre pixel, from x towards y
    turned[:, :1], turned[:, :, :1] = stack[:, :1], stack[:, :, :1]
    found = LUDRotations(refine=None, n_jobs=1).fit(turned)
    expected = by_lines.rotations_ @ in_plane_rotation(np.full(200, -np.pi / 2))
    assert pose_error(found.rotations_, expected).mean < 1


# ---------------------------------------------------------------------------------------------- callbacks


class Recorder:
    def __init__(self, stop_after=None):
        self.stop_after, self.names = stop_after, []

    def setup(self, estimator, context):
        pass

    def teardown(self, estimator, context):
        pass

    def on_fit_task_begin(self, estimator, context):
        if context.parent is not None:
            self.names.append(context.task_name)

    def on_fit_task_end(self, estimator, context):
        return len(self.names) == self.stop_after


def test_progress_is_told_and_a_fit_that_is_stopped_can_be_used(data, recwarn):
    stack = data[0][:100]
    recorder = Recorder()
    whole = LUDRotations(n_jobs=1).set_callbacks(recorder).fit(stack)
    assert recorder.names == ["common lines", "rotations"] + ["round"] * whole.n_rounds_
    stopped = LUDRotations(n_jobs=1).set_callbacks(Recorder(stop_after=3)).fit(stack)
    assert stopped.n_rounds_ == 1 and not stopped.converged_
    assert stopped.predict(stack[:3]).shape == (3, 3, 3)
    assert not [w for w in recwarn if issubclass(w.category, ConvergenceWarning)]


# ---------------------------------------------------------------------------------------------- bad input


def tiny(n=12):
    return np.random.default_rng(0).standard_normal((n, 16, 16)).astype(np.float32)


def no_lines(n=12, **changed):
    fields = {
        "angles": np.zeros((n, n), np.float32),
        "scores": np.zeros((n, n), np.float32),
        "confidences": np.ones((n, n), np.float32),
        "checked": ~np.eye(n, dtype=bool),
    }
    return CommonLines(**(fields | changed))


def two_groups():
    checked = ~np.eye(12, dtype=bool)
    checked[:6, 6:] = checked[6:, :6] = False
    return no_lines(checked=checked)


BAD = {
    "two images": (lambda: LUDRotations().fit(tiny(2)), r"Found array with 2 sample\(s\).*minimum of 3"),
    "lines of other images": (
        lambda: LUDRotations().fit(tiny(), common_lines=no_lines(10)),
        "common_lines are of 10 images but X has 12",
    ),
    "angles in the place of lines": (
        lambda: LUDRotations().fit(tiny(), common_lines=np.zeros((12, 12))),
        "common_lines is a ndarray; CommonLines are wanted",
    ),
    "groups without lines between them": (
        lambda: LUDRotations().fit(tiny(), common_lines=two_groups()),
        r"images 6, 7, 8, 9, 10 and 1 more have no chain of common lines to image 0",
    ),
    "shifts of other images": (
        lambda: LUDRotations(init=np.zeros((10, 2))).fit(tiny()),
        r"init has shape \(10, 2\); shifts \(12, 2\), rotations \(12, 3, 3\)",
    ),
    "rotations of other images": (
        lambda: LUDRotations(init=np.tile(np.eye(3), (10, 1, 1))).fit(tiny()),
        "init has 10 matrices, 12 are wanted",
    ),
    "shifts that are not finite": (lambda: LUDRotations(init=np.full((12, 2), np.nan)).fit(tiny()), "shifts"),
    "init of words": (lambda: LUDRotations(init="random").fit(tiny()), "'init' parameter"),
    "shifts of half the box": (
        lambda: LUDRotations(max_shift=8).fit(tiny()),
        "max_shift is 8 pixels; less than half of the box of 16",
    ),
    "alpha below two thirds": (lambda: LUDRotations(alpha=0.5).fit(tiny()), "'alpha' parameter"),
    "unknown metric": (lambda: LUDRotations(metric="l2").fit(tiny()), "'metric' parameter"),
    "unknown weights": (lambda: LUDRotations(weights="square").fit(tiny()), "'weights' parameter"),
    "unknown refinement": (lambda: LUDRotations(refine="lines").fit(tiny()), "'refine' parameter"),
    "no steps": (lambda: LUDRotations(max_iter=0).fit(tiny()), "'max_iter' parameter"),
    "mask of radius 0": (lambda: LUDRotations(mask_radius=0).fit(tiny()), "'mask_radius' parameter"),
    "CTF of other images": (
        lambda: LUDRotations().fit(tiny(), ctf=make_ctf(9)),
        "CTF has 9 records but X has 12 images",
    ),
    "CTF without a pixel size": (lambda: LUDRotations().fit(tiny(), ctf=make_ctf(12)), "CTFs need the pixel size"),
    "predict before fit": (lambda: LUDRotations().predict(tiny()), "not fitted yet"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_is_named(kind):
    function, message = BAD[kind]
    with pytest.raises((ValueError, TypeError), match=message):
        function()


def test_clone_keeps_what_was_given():
    shifts = np.zeros((5, 2))
    assert np.array_equal(clone(LUDRotations(init=shifts, alpha=0.8)).init, shifts)
