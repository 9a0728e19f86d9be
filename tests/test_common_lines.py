"""Common lines: the kernels against a plain reference, rates on known poses, blocks, checkpoints, bad input."""

import numpy as np
import pytest

from skcryo._ext import _common_lines as kernels
from skcryo.ctf import make_ctf
from skcryo.datasets import ImagingConditions, make_molecule, make_particles
from skcryo.metrics import common_line_detection_rate
from skcryo.orientation import RadialLines, _common_lines, _radial_lines, detect_common_lines
from skcryo.orientation._detection import PairSearch, shift_grid
from skcryo.orientation._detection_reference import reference_line

L = 49
FIELDS = ("angles", "scores", "confidences", "checked", "relative_shifts")


@pytest.fixture(scope="module")
def molecule():
    return make_molecule(L, random_state=0)


@pytest.fixture(scope="module")
def images(molecule):
    return make_particles(molecule, 60, snr=1.0, random_state=0)


def rate(found, truth):
    return common_line_detection_rate(found.angles, truth.rotations)


def assert_same(found, wanted):
    for name in FIELDS:
        assert np.array_equal(getattr(found, name), getattr(wanted, name)), name


# (images, their signal-to-noise ratio, score, relative shift): with fewer than 40 images lines are not filtered
CASES = [
    (48, 1.0, "likelihood", 0.0),
    (48, 0.1, "likelihood", 1.0),
    (20, 5.0, "likelihood", -2.0),
    (20, 0.5, "correlation", 0.0),
    (20, 0.5, "correlation", 1.0),
]


@pytest.mark.parametrize("n, snr, score, shift", CASES)
def test_kernel_is_the_reference(molecule, n, snr, score, shift):
    stack, _ = make_particles(molecule, n, snr=snr, random_state=1)
    lines = RadialLines.from_images(stack, score=score)
    search = PairSearch(lines)
    found = search.compare(search.prepare(slice(0, n), shift), search.prepare(slice(0, n)))
    rng = np.random.default_rng(0)
    pairs = rng.integers(0, n, (60, 2))
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    wanted = np.array([reference_line(lines, i, j, search.window, shift) for i, j in pairs]).T
    off = np.abs(found[:, pairs[:, 0], pairs[:, 1]] - wanted)
    # a hundredth of a line is a twentieth of a degree; an exponential of 12 bits is what the kernel has
    assert off[:2].max() < 0.02
    assert off[2:].max() < 3e-4


def test_instruction_sets_that_fuse_give_the_same_bits_and_the_baseline_nearly_so(images):
    lines = RadialLines.from_images(images[0])
    found = {}
    for name in kernels.available_instruction_sets():
        before = kernels.use_instruction_set(name)
        try:
            found[name] = detect_common_lines(lines, n_jobs=1)
        finally:
            kernels.use_instruction_set(before)
    plain = found.pop("baseline")
    for lines in found.values():
        assert_same(lines, next(iter(found.values())))
        off = np.abs(np.exp(1j * lines.angles) - np.exp(1j * plain.angles))
        assert (off > 1e-4).mean() < 0.01  # where two maxima tie but for a rounding, another may be taken
        assert np.abs(lines.scores - plain.scores).max() < 1e-3


@pytest.mark.parametrize("n, snr, score, shift", CASES)
def test_torch_is_the_kernel(molecule, n, snr, score, shift):
    torch = pytest.importorskip("torch", reason="the search by torch needs the extra skcryo[torch]")
    from skcryo.orientation import _detection_torch

    stack, _ = make_particles(molecule, n, snr=snr, random_state=1)
    lines = RadialLines.from_images(stack, score=score)
    devices = ["cpu"] + ["cuda"] * torch.cuda.is_available()
    for device in devices:
        found = []
        for search in (PairSearch(lines), _detection_torch.TorchPairSearch(lines, 0, torch.device(device))):
            found.append(search.compare(search.prepare(slice(0, n), shift), search.prepare(slice(0, n))))
        off = np.abs(found[1] - found[0])[:, np.triu(np.ones((n, n), dtype=bool), 1)]
        assert np.mean(off[:2].max(axis=0) > 0.02) < 0.005  # two candidates may be next to alike
        assert np.quantile(off[2:], 0.995) < 3e-4


def test_torch_device_goes_through_detection(molecule):
    torch = pytest.importorskip("torch", reason="the search by torch needs the extra skcryo[torch]")
    stack, _ = make_particles(molecule, 48, snr=1.0, random_state=1)
    found = [detect_common_lines(stack, max_shift=1, device=device) for device in (None, torch.device("cpu"))]
    for name in ("angles", "scores", "confidences", "relative_shifts"):
        off = np.abs(getattr(found[1], name) - getattr(found[0], name))
        assert np.mean(off > 2e-3) < 0.005, name


@pytest.mark.parametrize("score, least", [("likelihood", 0.9), ("correlation", 0.7)])
def test_most_lines_are_found_in_moderate_noise(images, score, least):
    """Guessing finds .006."""
    stack, truth = images
    found = detect_common_lines(stack, score=score)
    assert rate(found, truth) > least
    assert np.array_equal(found.checked, ~np.eye(60, dtype=bool))
    for name in ("scores", "confidences"):
        assert np.array_equal(getattr(found, name), getattr(found, name).T)
    assert found.confidences.min() >= 0
    assert found.confidences.max() <= 1
    assert found.relative_shifts is None


@pytest.mark.parametrize("n", [8, 24, 40])
@pytest.mark.parametrize("snr", [5.0, 0.3])
def test_with_few_images_likelihood_is_no_worse_than_correlation(n, snr):
    molecule, rates = make_molecule(49), {"likelihood": [], "correlation": []}
    for seed in range(3):
        stack, truth = make_particles(molecule, n, snr=snr, random_state=seed)
        for score, found in rates.items():
            found.append(rate(detect_common_lines(stack, score=score), truth))
    # three draws of 28 pairs and more: filters made of so few images lost up to half of the lines
    assert np.mean(rates["likelihood"]) > np.mean(rates["correlation"]) - 0.01


def test_next_to_no_noise_is_no_trap():
    """Directions made of sampling error were believed: .65 to .82 were found at a ratio of 5 to 20."""
    stack, truth = make_particles(make_molecule(65), 100, snr=20.0, random_state=0)
    assert rate(detect_common_lines(stack), truth) > 0.97


def test_confidence_is_the_share_found(molecule):
    stack, truth = make_particles(molecule, 150, snr=0.3, random_state=2)
    found = detect_common_lines(stack)
    above = np.triu_indices(len(stack), 1)
    assert abs(found.confidences[above].mean() - rate(found, truth)) < 0.15


@pytest.mark.parametrize("score", ["likelihood", "correlation"])
def test_confident_lines_are_right_more_often(molecule, score):
    stack, truth = make_particles(molecule, 150, snr=0.3, random_state=2)
    found = detect_common_lines(stack, score=score)
    above = np.triu(np.ones((150, 150), dtype=bool), 1)
    confident = found.confidences >= np.quantile(found.confidences[above], 0.8)
    right = common_line_detection_rate(np.where(confident, found.angles, np.nan), truth.rotations)
    assert right / confident[above].mean() > rate(found, truth) + 0.1


@pytest.mark.parametrize("score", ["likelihood", "correlation"])
def test_turning_an_image_turns_its_lines(images, score):
    stack, _ = images
    turned = np.array(stack[:])
    turned[0] = np.rot90(turned[0])  # rows count downwards: from (x, y) to (y, -x)
    before, after = (detect_common_lines(x, score=score) for x in (np.asarray(stack[:]), turned))

    def direction(found, sign, i, j):
        """Both directions of a pair, up to a joint sign."""
        a, b = (np.exp(1j * found.angles[x, y]) for x, y in ((i, j), (j, i)))
        return (a * sign * np.conj(b)), (a * sign) ** 2

    pairs = np.arange(1, 60)
    turns = [np.exp(-0.5j * np.pi), np.exp(0.5j * np.pi)]
    agree = []
    for turn in turns:
        first, second = direction(before, turn, 0, pairs), direction(after, 1, 0, pairs)
        off = np.abs(first[0] - second[0]) + np.abs(first[1] - second[1])
        agree.append(np.mean(off < 0.05))
    assert max(agree) > 0.9
    assert min(agree) < 0.1
    rest = np.abs(np.exp(1j * (before.angles - after.angles))[1:, 1:] ** 2 - 1)
    assert np.mean(rest > 0.05) < 0.05


def test_order_of_few_images_does_not_matter(molecule):
    stack, _ = make_particles(molecule, 30, snr=1.0, random_state=3)
    images, order = np.asarray(stack[:]), np.random.default_rng(0).permutation(30)
    before, after = detect_common_lines(images), detect_common_lines(images[order])
    off = np.abs(before.scores[np.ix_(order, order)] - after.scores)
    assert np.quantile(off, 0.99) < 0.02


@pytest.mark.parametrize("score", ["likelihood", "correlation"])
@pytest.mark.parametrize("max_shift", [0, 1])
def test_threads_do_not_change_anything(images, score, max_shift):
    lines = RadialLines.from_images(images[0], score=score)
    one, three = (detect_common_lines(lines, max_shift=max_shift, n_jobs=n_jobs) for n_jobs in (1, 3))
    assert_same(one, three)


@pytest.mark.parametrize("score", ["likelihood", "correlation"])
def test_blocks_change_rounding_only(images, score, monkeypatch):
    lines = RadialLines.from_images(images[0], score=score)
    whole = detect_common_lines(lines, max_shift=1)
    monkeypatch.setattr(_radial_lines, "_BLOCK", 17)
    parts = detect_common_lines(lines, max_shift=1)
    for name in ("angles", "scores", "confidences", "relative_shifts"):
        off = np.abs(getattr(whole, name) - getattr(parts, name))
        assert np.mean(off > 1e-3) < 0.002, name


@pytest.mark.parametrize("n_saved", [1, 3])
def test_a_stopped_search_goes_on_to_the_same_bits(images, n_saved, tmp_path, monkeypatch):
    monkeypatch.setattr(_radial_lines, "_BLOCK", 16)
    stack, _ = images
    whole = detect_common_lines(stack, max_shift=1)
    save, saved = _common_lines.save_checkpoint, []

    def save_and_stop(*args):
        save(*args)
        saved.append(args[1])
        if len(saved) == n_saved:
            raise KeyboardInterrupt

    monkeypatch.setattr(_common_lines, "save_checkpoint", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        detect_common_lines(stack, max_shift=1, checkpoint_dir=tmp_path)
    assert len(list(tmp_path.iterdir())) == n_saved
    assert_same(detect_common_lines(stack, max_shift=1, checkpoint_dir=tmp_path), whole)
    assert len(saved) == 4  # of four blocks each was searched once
    assert_same(detect_common_lines(stack, max_shift=1, checkpoint_dir=tmp_path), whole)
    assert len(saved) == 4


def test_a_folder_of_another_search_is_refused(images, tmp_path):
    stack, _ = images
    detect_common_lines(stack, checkpoint_dir=tmp_path)
    pixels = np.array(stack[:])
    pixels[[10, 11]] = pixels[[11, 10]]
    others = [
        (stack, {"score": "correlation"}),
        (stack, {"max_shift": 1}),
        (stack, {"mask_radius": 8.0}),
        (stack, {"shifts": np.eye(60, 2)}),
        (stack[:59], {}),
        (pixels, {}),
    ]
    for X, parameters in others:
        with pytest.raises(ValueError, match="checkpoint_dir=.* holds a search of other images or parameters"):
            detect_common_lines(X, checkpoint_dir=tmp_path, **parameters)


def test_relative_shifts_are_those_of_the_particles(molecule):
    conditions = ImagingConditions(max_shift=0.05)
    stack, truth = make_particles(molecule, 100, snr=2.0, preset=conditions, random_state=0)
    stack = stack.replace(rotations=None, shifts=None)
    still, moved = (detect_common_lines(stack, max_shift=max_shift) for max_shift in (0, 3))
    x, y = truth.shifts.T
    along = np.cos(moved.angles) * x[:, None] + np.sin(moved.angles) * y[:, None]
    sure = moved.confidences > 0.9
    off = (moved.relative_shifts - (along - along.T))[sure]
    assert sure.mean() > 0.4
    assert np.median(np.abs(off)) < 0.4  # of whole pixels .25 at best; the other sign or none is a pixel off and more
    assert np.mean(np.abs(off) < 1) > 0.75
    assert np.array_equal(moved.relative_shifts, -moved.relative_shifts.T)
    assert rate(moved, truth) > rate(still, truth) + 0.1
    known = detect_common_lines(stack, shifts=truth.shifts)
    assert rate(known, truth) > rate(moved, truth)


def test_shifts_that_are_tried():
    assert shift_grid(0).tolist() == [0]
    assert shift_grid(0.9).tolist() == [0]
    assert shift_grid(2).tolist() == [0, -1, 1, -2, 2]


def test_phases_are_flipped(molecule):
    stack, truth = make_particles(molecule, 80, snr=0.5, preset="ctf", random_state=0)
    stack = stack.replace(shifts=truth.shifts, rotations=None)
    flipped, ignored = detect_common_lines(stack), detect_common_lines(stack.replace(ctf=None))
    assert rate(flipped, truth) > rate(ignored, truth) + 0.01


@pytest.mark.parametrize("score", ["likelihood", "correlation"])
@pytest.mark.parametrize("n", [2, 3])
def test_a_few_images_are_enough(images, n, score):
    found = detect_common_lines(images[0][:n], score=score)
    assert len(found) == n
    for name in ("angles", "scores", "confidences"):
        assert np.isfinite(getattr(found, name)).all()


def test_images_all_alike_or_empty():
    for pixels in (np.zeros((5, 24, 24)), np.random.default_rng(0).standard_normal((1, 24, 24)).repeat(5, axis=0)):
        for score in ("likelihood", "correlation"):
            try:
                found = detect_common_lines(pixels, score=score)
            except ValueError as error:
                assert "background holds no power" in str(error)
            else:
                assert np.isfinite(found.angles).all()
                assert np.isfinite(found.scores).all()


def test_bad_input(images):
    stack, _ = images
    pixels = np.array(stack[:8])
    broken = pixels.copy()
    broken[5, 3, 4] = np.nan
    ctf = make_ctf(7, defocus_u=np.full(7, 1e4), defocus_v=np.full(7, 1e4))
    lines = RadialLines.from_images(pixels)
    cases = [
        (pixels[0], {}, r"X|shape"),
        (pixels[:, :, :20], {}, "square"),
        (pixels[:1], {}, "at least two"),
        (pixels[:, :6, :6], {}, "at least 8"),
        (broken, {}, "5"),
        (pixels, {"score": "cosine"}, "score is 'cosine'"),
        (lines, {"score": "cosine"}, "score is 'cosine'"),
        (pixels, {"max_shift": -1}, "max_shift is -1"),
        (pixels, {"max_shift": np.nan}, "max_shift is nan"),
        (pixels, {"max_shift": "1"}, "max_shift is '1'"),
        (pixels, {"max_shift": L}, "max_shift is 49"),
        (pixels, {"mask_radius": 0}, "mask_radius is 0"),
        (pixels, {"shifts": np.zeros((7, 2))}, "shifts"),
        (pixels, {"shifts": np.full((8, 2), np.inf)}, "shifts"),
        (stack[:8], {"ctf": ctf}, "7.*8|8.*7"),
        (lines, {"ctf": ctf}, "ctf is given, but X is RadialLines"),
        (lines, {"shifts": np.zeros((8, 2))}, "shifts is given, but X is RadialLines"),
        (lines, {"mask_radius": 8}, "mask_radius is given, but X is RadialLines"),
        (pixels, {"device": "tpu"}, "device"),
        (pixels, {"n_jobs": 0}, "n_jobs"),
    ]
    for X, parameters, message in cases:
        with pytest.raises(ValueError, match=message):
            detect_common_lines(X, **parameters)
