"""Simulated particles: what the truth says is what the images hold."""

import tracemalloc

import mrcfile
import numpy as np
import pytest

from skcryo.ctf import evaluate_ctf
from skcryo.datasets import (
    PRESETS,
    ImagingConditions,
    _particles,
    make_molecule,
    make_particles,
)
from skcryo.fourier import fft2c, radial_average
from skcryo.projection import project
from skcryo.rotations import random_rotations


@pytest.fixture(scope="module")
def states():
    return [make_molecule(32), make_molecule(32, ligand=0.3)]


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_particles_are_projections_with_what_the_truth_says(states, preset):
    stack, truth = make_particles(states, 60, preset=preset, snr=0.5, pixel_size=10.0, random_state=0)
    assert stack.shape == (60, 32, 32) and stack.dtype == np.float32 and stack.pixel_size == 10
    assert stack.rotations is None and stack.shifts is None
    assert (stack.ctf is None) == (preset in ("paper", "shifted"))
    for k in (0, 1):
        own = (truth.labels == k) & ~truth.is_junk
        ctf = None if truth.ctf is None else truth.ctf[own]
        wanted = (
            project(states[k], truth.rotations[own], shifts=truth.shifts[own], ctf=ctf, pixel_size=10.0)
            * truth.contrast[own, None, None]
        )
        assert np.allclose(truth.clean[own], wanted, atol=1e-4 * wanted.std())
        other = project(states[1 - k], truth.rotations[own], shifts=truth.shifts[own])
        if ctf is None:
            assert not np.allclose(truth.clean[own], other, atol=0.1 * wanted.std())
    noise = np.asarray(stack) - truth.clean
    assert noise.std() == pytest.approx(truth.noise_std, rel=0.02)
    assert abs(noise.mean()) < 0.05 * truth.noise_std


@pytest.mark.parametrize("definition", ["variance", "power"])
@pytest.mark.parametrize("preset", ["paper", "ctf", "experimental"])
def test_snr_is_that_of_the_whole_images(definition, preset):
    volume = make_molecule(32, spectrum=None)  # far from zero mean, so that the definitions differ
    stack, truth = make_particles(
        volume, 200, preset=preset, snr=0.2, snr_definition=definition, random_state=0, pixel_size=10.0
    )
    clean = truth.clean[~truth.is_junk].astype(float)
    noise = np.asarray(stack) - truth.clean
    signal = clean.var() if definition == "variance" else (clean**2).mean()
    assert signal / noise.var() == pytest.approx(0.2, rel=0.02)
    if preset == "paper":
        assert (clean**2).mean() / clean.var() > 1.2


@pytest.mark.parametrize("preset, ratio", [("ctf", 1.0), ("experimental", 10.0)])
def test_noise_colour_and_ring_snr(preset, ratio):
    volume = make_molecule(32)
    stack, truth = make_particles(volume, 300, preset=preset, snr=0.3, random_state=0, pixel_size=10.0)
    noise = radial_average((np.abs(fft2c(np.asarray(stack) - truth.clean)) ** 2).mean(0))
    assert noise[1] / noise[15] == pytest.approx(ratio ** (14 / 16), rel=0.1)
    signal = radial_average((np.abs(fft2c(truth.clean[~truth.is_junk])) ** 2).mean(0))
    assert np.allclose(truth.ring_snr[2:14], (signal / noise)[2:14], rtol=0.15)


def test_experimental_conditions():
    volume = np.zeros((8, 8, 8))
    volume[4, 4, 4] = 1
    stack, truth = make_particles(volume, 4000, preset="experimental", random_state=0)
    assert np.abs(truth.shifts).max() <= 0.05 * 8
    assert truth.shifts.std(axis=0) == pytest.approx([0.4 / np.sqrt(3)] * 2, rel=0.05)
    ctf = truth.ctf
    mean = (ctf["defocus_u"] + ctf["defocus_v"]) / 2
    assert 10000 <= mean.min() < 10100 and 24900 < mean.max() <= 25000
    astigmatism = (ctf["defocus_u"] - ctf["defocus_v"]) / mean
    assert 0 <= astigmatism.min() and 0.09 < astigmatism.max() <= 0.1
    for name, value in (("voltage", 300), ("cs", 2.7), ("amplitude_contrast", 0.1), ("phase_shift", 0)):
        assert (ctf[name] == value).all()
    assert truth.contrast.std() == pytest.approx(0.2, abs=0.01)
    assert truth.contrast.mean() == pytest.approx(1, abs=0.01)
    assert truth.is_junk.sum() == 200
    assert {kind: int((truth.junk_kind == kind).sum()) for kind in ("noise", "broken", "overlap")} == {
        "noise": 67, "broken": 67, "overlap": 66,
    }  # fmt: skip
    # Density 1 + 4 c^2 over the sphere: E[c^2] = (1/3 + 4/5) / (1 + 4/3); uniform views have 1/3.
    cosine = truth.rotations[:, :, 2] @ [0.36, 0.48, 0.8]
    assert (cosine**2).mean() == pytest.approx((1 / 3 + 4 / 5) / (1 + 4 / 3), abs=0.015)
    uniform = make_particles(volume, 4000, random_state=0)[1].rotations[:, :, 2] @ [0.36, 0.48, 0.8]
    assert (uniform**2).mean() == pytest.approx(1 / 3, abs=0.015)


def test_junk_is_junk():
    volume = make_molecule(32)
    conditions = ImagingConditions(junk_fraction=0.5)
    stack, truth = make_particles(volume, 120, preset=conditions, snr=None, random_state=0)
    whole = project(volume, truth.rotations)
    share = (truth.clean**2).sum((1, 2)) / (whole**2).sum((1, 2))
    assert (share[truth.junk_kind == "noise"] == 0).all()
    assert 0.1 < np.median(share[truth.junk_kind == "broken"]) < 0.9
    assert 1.5 < np.median(share[truth.junk_kind == "overlap"]) < 3
    assert np.allclose(share[~truth.is_junk], 1, atol=1e-4)
    assert np.array_equal(np.asarray(stack), truth.clean)  # snr=None: no noise
    assert np.isinf(truth.ring_snr[1])


def test_ctf_is_applied_as_the_stack_says():
    volume = make_molecule(32)
    stack, truth = make_particles(
        volume, 5, preset=ImagingConditions(ctf=True), snr=None, pixel_size=10.0, random_state=0
    )
    plain = project(volume, truth.rotations)
    wanted = fft2c(plain) * evaluate_ctf(stack.ctf, 32, 10.0)
    found = fft2c(np.asarray(stack))
    assert np.abs(found - wanted)[:, 1:, 1:].max() < 1e-4 * np.abs(wanted).max()


def test_proportions_and_labels(states):
    _, truth = make_particles(states, 50, proportions=[0.8, 0.2], random_state=0)
    assert np.bincount(truth.labels).tolist() == [40, 10]
    assert not np.array_equal(truth.labels, np.sort(truth.labels))
    assert np.bincount(make_particles(states * 3, 50, random_state=0)[1].labels).tolist() == [
        9,
        9,
        8,
        8,
        8,
        8,
    ]
    labels = np.arange(50) % 2
    assert np.array_equal(make_particles(np.array(states), 50, labels=labels)[1].labels, labels)
    R = random_rotations(50, random_state=3)
    assert np.array_equal(make_particles(states, 50, rotations=R)[1].rotations, R)


def test_presets_share_what_they_draw():
    volume = make_molecule(16)
    truths = {p: make_particles(volume, 20, preset=p, random_state=5)[1] for p in PRESETS}
    for other in ("shifted", "ctf"):
        assert np.array_equal(truths["paper"].rotations, truths[other].rotations)
    for other in ("ctf", "experimental"):
        assert np.array_equal(truths["shifted"].shifts, truths[other].shifts)
    assert np.array_equal(truths["ctf"].ctf, truths["experimental"].ctf)


def test_seeds():
    volume = make_molecule(16)
    images = [np.asarray(make_particles(volume, 5, random_state=s)[0]) for s in (0, 0, 1, None, None)]
    assert np.array_equal(images[0], images[1])
    for a, b in ((0, 2), (2, 3), (3, 4)):
        assert np.abs(images[a] - images[b]).max() > 0.1
    generator = np.random.RandomState(0)
    first, second = (np.asarray(make_particles(volume, 5, random_state=generator)[0]) for _ in range(2))
    assert not np.array_equal(first, second)
    # No two images share noise.
    stack, truth = make_particles(volume, 30, random_state=0)
    noise = (np.asarray(stack) - truth.clean).reshape(30, -1)
    assert np.abs(np.corrcoef(noise) - np.eye(30)).max() < 0.35


@pytest.mark.parametrize("preset", ["paper", "experimental"])
def test_a_file_holds_the_very_same_images(states, tmp_path, preset, monkeypatch):
    arguments = dict(preset=preset, snr=0.1, pixel_size=10.0, random_state=0)
    stack, truth = make_particles(states, 70, **arguments)
    path = tmp_path / "particles.mrcs"
    filed, filed_truth = make_particles(states, 70, path=path, **arguments)
    assert np.array_equal(np.asarray(filed), np.asarray(stack))
    assert filed_truth.clean is None
    assert filed_truth.noise_std == truth.noise_std
    assert np.array_equal(filed_truth.ring_snr, truth.ring_snr)
    assert filed.image_files[0] == [str(path.resolve())]
    assert filed.pixel_size == 10
    monkeypatch.setattr(_particles, "_BLOCK_PIXELS", 16 * 32**2)
    blocked, _ = make_particles(states, 70, **arguments)
    assert np.allclose(np.asarray(blocked), np.asarray(stack), rtol=1e-4, atol=1e-4 * truth.noise_std)
    assert mrcfile.validate(path)
    with mrcfile.open(path) as mrc:
        assert mrc.is_image_stack()
        assert float(mrc.voxel_size.x) == 10
        assert np.array_equal(mrc.data, np.asarray(stack))
    with pytest.raises(FileExistsError):
        make_particles(states, 70, path=path, **arguments)
    make_particles(states, 70, path=path, overwrite=True, **arguments)
    assert [file.name for file in tmp_path.iterdir()] == ["particles.mrcs"]


@pytest.mark.slow
def test_a_file_is_written_in_bounded_memory(tmp_path, monkeypatch):
    volume = make_molecule(32)
    monkeypatch.setattr(_particles, "_BLOCK_PIXELS", 64 * 32**2)
    tracemalloc.start()
    make_particles(volume, 6000, preset="shifted", path=tmp_path / "large.mrcs", random_state=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "large.mrcs").stat().st_size > 24e6
    assert peak < 12e6  # half of the stack; a build in memory takes more than twice the stack


def test_a_failure_leaves_no_file(tmp_path, monkeypatch):
    def fail(*arguments):
        raise RuntimeError("disk on fire")

    monkeypatch.setattr(_particles, "_add_noise", fail)
    with pytest.raises(RuntimeError, match="on fire"):
        make_particles(make_molecule(16), 5, path=tmp_path / "particles.mrcs")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"n_images": 0}, "n_images is 0"),
        ({"n_images": 2.5}, "n_images is 2.5"),
        ({"preset": "easy"}, "preset is 'easy'"),
        ({"snr": 0}, "snr is 0"),
        ({"snr_definition": "peak"}, "snr_definition is 'peak'"),
        ({"pixel_size": -5}, "pixel_size is -5"),
        ({"proportions": [1, 1]}, r"proportions has shape \(2,\) but there are 1 volumes"),
        ({"proportions": [-1]}, "none negative"),
        ({"labels": [0, 0, 1]}, r"labels\[2\] is 1; 0 to 0"),
        ({"labels": [0, 0]}, r"labels has shape \(2,\)"),
        ({"labels": [0, 0, 0], "proportions": [1]}, "labels and proportions are both given"),
        ({"rotations": np.eye(3)[None]}, "rotations has 1"),
        ({"path": "particles.txt"}, "ends in .mrcs"),
        ({"volumes": np.zeros((8, 8, 7))}, r"volumes\[0\] has shape \(8, 8, 7\)"),
        ({"volumes": [np.zeros((8, 8, 8)), np.zeros((9, 9, 9))]}, r"volumes\[1\] has shape \(9, 9, 9\)"),
        ({"volumes": []}, "volumes is empty"),
        ({"volumes": np.zeros((8, 8, 8))}, "without any signal"),
    ],
)
def test_particle_arguments(arguments, message):
    arguments = {"volumes": np.ones((8, 8, 8)), "n_images": 3, **arguments}
    with pytest.raises(ValueError, match=message):
        make_particles(**arguments)


@pytest.mark.parametrize("field", ["max_shift", "contrast_std", "junk_fraction", "view_ratio"])
def test_imaging_conditions_are_checked(field):
    with pytest.raises(ValueError, match=f"{field} is -1"):
        ImagingConditions(**{field: -1})
