"""Volumes from known poses: quality, conventions of other programs' files, streaming, checkpoints, classes."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from skcryo.ctf import make_ctf
from skcryo.datasets import make_molecule, make_particles
from skcryo.fourier import fourier_crop, shift_images
from skcryo.io import load_particles, load_volume, read_star, save_images
from skcryo.metrics import fsc, fsc_resolution
from skcryo.particles import ParticleStack
from skcryo.projection import project
from skcryo.reconstruction import FourierReconstructor, fsc_prior, reconstruct_classes
from skcryo.reconstruction._fourier_reconstructor import _ring_power
from skcryo.rotations import random_rotations, rotations_from_relion

L = 32


def correlation(a, b):
    return np.corrcoef(np.ravel(a), np.ravel(b))[0, 1]


def particles(n=300, *, preset="ctf", snr=0.3, seed=0, size=L, **options):
    molecule = make_molecule(size, random_state=seed)
    stack, truth = make_particles(molecule, n, preset=preset, snr=snr, random_state=seed, **options)
    return stack.replace(rotations=truth.rotations, shifts=truth.shifts), truth, molecule


@pytest.fixture(scope="module")
def data():
    return particles()


@pytest.fixture(scope="module")
def fitted(data):
    return FourierReconstructor(random_state=0).fit(data[0])


# ---- quality ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["paper", "shifted", "ctf"])
@pytest.mark.parametrize("seed", [0, 1])
def test_volume_is_the_molecule(preset, seed):
    """Unfiltered, the noise of this volume is as strong as the molecule: correlation 0.7."""
    stack, _, molecule = particles(preset=preset, seed=seed)
    found = FourierReconstructor(random_state=0).fit(stack)
    assert correlation(found.volume_, molecule) > 0.95
    assert 0.9 < np.vdot(found.volume_, molecule) / np.vdot(molecule, molecule) < 1.02
    assert L / fsc_resolution(fsc(found.volume_, molecule), 0.5, box_size=L) > 6.5


def test_without_noise_it_is_exact_up_to_the_mask():
    stack, _, molecule = particles(400, preset="paper", snr=None)
    found = FourierReconstructor(random_state=0).fit(stack)
    assert fsc(found.volume_, molecule)[1 : L // 2 - 1].min() > 0.99
    assert correlation(found.volume_, molecule) > 0.995


def test_ctf_and_shifts_must_be_known(data, fitted):
    stack, truth, molecule = data
    right = correlation(fitted.volume_, molecule)
    for changes in ({"ctf": None}, {"shifts": None}, {"shifts": -truth.shifts}, {"shifts": truth.shifts[:, ::-1]}):
        wrong = FourierReconstructor(random_state=0).fit(stack.replace(**changes))
        assert correlation(wrong.volume_, molecule) < right - 0.05
    transposed = FourierReconstructor(random_state=0).fit(stack, rotations=truth.rotations.transpose(0, 2, 1))
    assert correlation(transposed.volume_, molecule) < 0.6


def test_half_maps_tell_the_error(data, fitted):
    """FSC = s / (s + n) of the halves predicts that of the whole with the truth, sqrt(2 FSC / (1 + FSC))."""
    _, _, molecule = data
    expected = np.sqrt(2 * fitted.fsc_ / (1 + fitted.fsc_))
    found = fsc(fitted.volume_, molecule)
    shells = np.flatnonzero(fitted.fsc_[1:] > 0.3) + 1
    assert len(shells) > 4
    assert found[shells] == pytest.approx(expected[shells], abs=0.06)
    assert fitted.half_maps_.shape == (2, L, L, L) and fitted.half_maps_.dtype == np.float32
    assert fitted.resolution_ == pytest.approx(5.0 * fitted.resolution_pixels_)
    assert fitted.resolution_pixels_ == fsc_resolution(fitted.fsc_, 0.143, box_size=L)


def test_half_maps_of_noise_agree_on_nothing():
    noise = np.random.default_rng(0).standard_normal((400, L, L)).astype(np.float32)
    found = FourierReconstructor(random_state=0).fit(noise, rotations=random_rotations(400, random_state=0))
    assert np.abs(found.fsc_[3:]).max() < 0.3
    # Filtered by what the halves agree on, hardly anything is left: unfiltered it would be about 0.1.
    assert found.volume_.std() < 0.02


def test_noise_spectrum_is_that_of_the_noise():
    stack, truth, molecule = particles(400, preset="experimental", snr=0.2)
    found = FourierReconstructor(random_state=0).fit(stack)
    clean = project(molecule, truth.rotations, shifts=truth.shifts, ctf=stack.ctf, pixel_size=stack.pixel_size)
    expected = _ring_power(np.asarray(stack) - clean).mean(axis=0)
    assert found.noise_spectrum_[2:] == pytest.approx(expected[2:], rel=0.15)
    assert found.noise_spectrum_[2] > 3 * found.noise_spectrum_[-1]  # coloured


def test_filter_between_none_and_all():
    prior = fsc_prior([1, 0.9, 0.5, -0.2], np.full(4, 10.0))
    assert prior[0] == prior[1] == pytest.approx(10 / 9)
    assert prior[2] == pytest.approx(10.0)
    assert prior[3] == pytest.approx(10 * 999.0)
    with pytest.raises(ValueError, match=r"curve has shape \(4,\) but density has \(3,\)"):
        fsc_prior([1, 1, 1, 1], [1, 1, 1])


# ---- what other programs wrote ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["64_centered", "64_shifted", "65", "65_centered", "65_shifted"])
def test_relion_projections(name, shared_data):
    """Poses read as RELION means them: reprojections correlate with RELION's own images."""
    table = read_star(shared_data / f"rln_proj_{name}.star")
    images = np.asarray(load_particles(shared_data / f"rln_proj_{name}.star"))
    size = images.shape[-1]
    volume = fourier_crop(load_volume(shared_data / "ribosome_70s_65.mrc")[0], size, ndim=3)
    rotations = rotations_from_relion(np.stack([table.numbers(f"rlnAngle{a}") for a in ("Rot", "Tilt", "Psi")], axis=1))
    names = ["rlnOriginX", "rlnOriginY"]
    origins = np.stack([table.numbers(n) if n in table.names else np.zeros(len(images)) for n in names], axis=1)
    shifts = (1.0 if size % 2 else 0.0) - origins  # odd boxes lie one pixel further
    views = random_rotations(400, random_state=0)
    model = FourierReconstructor(random_state=0).fit(project(volume, views), rotations=views)
    assert model.score_samples(images, rotations=rotations, shifts=shifts).min() > 0.99
    wrong = model.score_samples(images, rotations=rotations.transpose(0, 2, 1), shifts=shifts)
    assert wrong.max() < 0.8
    if name.endswith("shifted"):
        assert model.score_samples(images, rotations=rotations, shifts=-shifts).max() < 0.8
    if size % 2:
        assert model.score_samples(images, rotations=rotations, shifts=shifts - 1).max() < 0.98


def test_toy_projections(shared_data):
    """Poses there are the transposes of this library's, and the images lie centred whatever the file of poses says."""
    poses = np.load(shared_data / "toy_projections_poses.npz")
    model, _ = load_volume(shared_data / "toymodel_small_nocenter.mrc")
    images = np.asarray(load_particles(shared_data / "toy_projections.star"))
    rotations = poses["rotations"].transpose(0, 2, 1).astype(float)
    found = FourierReconstructor(mask_radius=15, random_state=0).fit(images, rotations=rotations)
    assert fsc(found.volume_, model)[1:14].min() > 0.985
    assert np.vdot(found.volume_, model) / np.vdot(model, model) > 0.85
    assert found.score(images, rotations=rotations) > 0.99
    # The molecule is not centred, so each other convention shows.
    for other in (
        {"rotations": rotations.transpose(0, 2, 1)},
        {"rotations": rotations, "shifts": len(model) * poses["shifts"]},
        {"rotations": np.diag([1.0, -1, -1]) @ rotations},
    ):
        wrong = FourierReconstructor(mask_radius=15, random_state=0).fit(images, **other)
        assert fsc(wrong.volume_, model)[4:14].max() < 0.8


def test_frame_turns_with_the_poses(data, fitted):
    """Poses G R make the volume turned by G; a quarter turn, up to the corners that it exchanges."""
    stack, truth, _ = data
    quarter = Rotation.from_euler("z", 90, degrees=True).as_matrix()
    turned = FourierReconstructor(random_state=0).fit(stack, rotations=quarter @ truth.rotations)
    # G (x, y) = (-y, x): V'(z, y, x) = V(z, -x, y)
    odd = fitted.volume_[:, 1:, 1:]
    expected = odd.transpose(0, 2, 1)[:, :, ::-1]
    assert correlation(turned.volume_[:, 1:, 1:], expected) > 0.999
    assert correlation(turned.volume_[:, 1:, 1:], expected[:, ::-1, ::-1]) < 0.9


# ---- use -------------------------------------------------------------------------------------------------


def test_predict_reprojects(data, fitted):
    stack, truth, molecule = data
    images = fitted.predict(stack[:20])
    assert images.shape == (20, L, L) and images.dtype == np.float32
    options = {"shifts": truth.shifts[:20], "ctf": stack.ctf[:20], "pixel_size": stack.pixel_size}
    assert np.allclose(images, project(fitted.volume_, truth.rotations[:20], **options), atol=1e-5)
    clean = project(molecule, truth.rotations[:20], **options)
    assert correlation(images, clean) > 0.95
    rows = np.asarray(stack[:20]).reshape(20, -1)
    other = fitted.predict(rows, rotations=truth.rotations[:20], shifts=truth.shifts[:20])
    assert other.shape == (20, L * L)


def test_score_finds_junk_and_the_better_volume(data, fitted):
    stack, truth, _ = data
    noise = np.asarray(stack).std() * np.random.default_rng(1).standard_normal((100, L, L))
    good = fitted.score_samples(stack[:100])
    junk = fitted.score_samples(stack[:100].replace(data=noise.astype(np.float32)))
    assert np.mean(good[:, None] > junk) > 0.99
    assert fitted.score(stack) == pytest.approx(fitted.score_samples(stack).mean())
    few = FourierReconstructor(random_state=0).fit(stack[:20])
    held_out, _, _ = particles(80, seed=0, snr=0.3)
    held_out = stack[200:]
    assert few.score(held_out) < FourierReconstructor(random_state=0).fit(stack[:200]).score(held_out)
    weights = np.zeros(len(stack))
    weights[7] = 2.0
    assert fitted.score(stack, sample_weight=weights) == pytest.approx(fitted.score_samples(stack[7:8])[0])


def test_scores_whatever_the_brightness(data, fitted):
    stack = data[0][:30]
    assert np.allclose(
        fitted.score_samples(stack.replace(data=3 * np.asarray(stack) + 5)), fitted.score_samples(stack), atol=1e-4
    )


# ---- streams, threads, halves ----------------------------------------------------------------------------


def test_threads_change_no_bit(data, fitted):
    other = FourierReconstructor(random_state=0, n_jobs=3).fit(data[0])
    assert np.array_equal(other.volume_, fitted.volume_)
    assert np.array_equal(other.half_maps_, fitted.half_maps_)
    assert np.array_equal(other.noise_spectrum_, fitted.noise_spectrum_)


@pytest.mark.parametrize("cuts", [(150,), (1, 2, 151), (33, 66, 299)])
def test_parts_of_a_stream_make_the_whole(data, fitted, cuts):
    stack = data[0]
    model = FourierReconstructor(random_state=0)
    edges = [0, *cuts, len(stack)]
    first = True
    for start, stop in zip(edges, edges[1:]):
        if first and stop - start < 2:
            with pytest.raises(ValueError, match="half maps need at least two images"):
                model.partial_fit(stack[start:stop])
            edges[edges.index(stop)] = start
            continue
        model.partial_fit(stack[start if not first else 0 : stop])
        first = False
    assert model.n_images_ == len(stack)
    assert np.allclose(model.volume_, fitted.volume_, atol=1e-4 * np.abs(fitted.volume_).max())
    assert np.allclose(model.fsc_, fitted.fsc_, atol=1e-3)
    assert np.allclose(model.noise_spectrum_, fitted.noise_spectrum_, rtol=1e-3)


def test_chunks_are_read_once_each(data, fitted, monkeypatch):
    from skcryo.reconstruction import _fourier_reconstructor as module

    monkeypatch.setattr(module, "chunk_size", lambda size: 37)
    seen = []

    def record(images):
        seen.append(len(images))
        return images

    other = FourierReconstructor(random_state=0).fit(data[0].map(record))
    assert sum(seen) == len(data[0]) and max(seen) == 37
    assert np.allclose(other.volume_, fitted.volume_, atol=1e-4 * np.abs(fitted.volume_).max())


def test_half_sets(data):
    stack = data[0]
    given = np.arange(len(stack)) % 3 == 0
    found = FourierReconstructor(random_state=0).fit(stack, half_sets=given.astype(int))
    again = FourierReconstructor(random_state=7).fit(stack, half_sets=given)
    assert np.array_equal(found.volume_, again.volume_)  # the seed decides nothing else
    # Images of scale 1 in one half and 3 in the other: the maps stand in that ratio.
    scaled = stack.replace(data=np.asarray(stack) * np.where(given, 3, 1)[:, None, None])
    one, three = FourierReconstructor(random_state=0).fit(scaled, half_sets=given).half_maps_
    assert np.allclose(one, found.half_maps_[0], atol=1e-5 * np.abs(one).max())
    assert np.allclose(three, 3 * found.half_maps_[1], atol=1e-5 * np.abs(three).max())


def test_halves_are_even_and_drawn():
    from skcryo.reconstruction._half_sets import HalfSets

    sums = HalfSets(8, 0.5, seed=3)
    whole = sums.assign(1000)
    assert whole.sum() == 500 and np.all(whole[::2] != whole[1::2])
    assert 180 < np.count_nonzero(whole[::2]) < 320
    sums, parts = HalfSets(8, 0.5, seed=3), []
    for n in (1, 1, 3, 0, 500, 495):
        parts.append(sums.assign(n))
        sums.n_images += n
    assert np.array_equal(np.concatenate(parts), whole)


def test_weights_and_repeats():
    stack, _, _ = particles(60)
    halves = np.arange(60) % 2
    weights = np.ones(60)
    weights[:10] = 2
    twice = np.concatenate([np.arange(10), np.arange(60)])
    heavy = FourierReconstructor(random_state=0).fit(stack, half_sets=halves, sample_weight=weights)
    repeated = FourierReconstructor(random_state=0).fit(stack[twice], half_sets=halves[twice])
    assert np.allclose(heavy.volume_, repeated.volume_, atol=1e-4 * np.abs(heavy.volume_).max())


def test_callbacks_can_look_and_stop(data, monkeypatch):
    from skcryo.reconstruction import _fourier_reconstructor as module

    monkeypatch.setattr(module, "chunk_size", lambda size: 60)

    class StopAfterTwo:
        seen = []

        def setup(self, estimator, context):
            pass

        def teardown(self, estimator, context):
            pass

        def on_fit_task_begin(self, estimator, context):
            pass

        def on_fit_task_end(self, estimator, context, *, fitted_estimator):
            if context.parent is None:
                return False
            self.seen.append(fitted_estimator.score(data[0][:50]))
            return context.task_id == 1

    callback = StopAfterTwo()
    found = FourierReconstructor(random_state=0).set_callbacks(callback).fit(data[0])
    assert found.n_images_ == 120 and len(callback.seen) == 2
    assert np.isfinite(callback.seen).all()


# ---- checkpoints -----------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
import numpy as np
from skcryo.io import load_particles
from skcryo.reconstruction import FourierReconstructor, _fourier_reconstructor as module
from skcryo.rotations import random_rotations

module.chunk_size = lambda size: 32
FourierReconstructor._seconds_between_checkpoints = 0.0
save, saved = module.save_checkpoint, []
def save_and_die(*args):
    save(*args)
    saved.append(1)
    if len(saved) == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
module.save_checkpoint = save_and_die
stack = load_particles(sys.argv[1]).replace(rotations=random_rotations(200, random_state=0))
found = FourierReconstructor(checkpoint_dir=sys.argv[2], n_jobs=1).fit(stack)
np.save(sys.argv[2] + "/volume.npy", found.volume_)
np.save(sys.argv[2] + "/noise.npy", found.noise_spectrum_)
"""


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_killed_fits_go_on_to_the_same_bits(tmp_path, monkeypatch):
    from skcryo.reconstruction import _fourier_reconstructor as module

    images = np.random.default_rng(0).standard_normal((200, 16, 16)).astype(np.float32)
    save_images(tmp_path / "x.mrcs", images)
    folder = tmp_path / "checkpoint"

    def run(after):
        command = [sys.executable, "-c", KILLED, str(tmp_path / "x.mrcs"), str(folder), str(after)]
        return subprocess.run(command, capture_output=True, text=True).returncode

    # random_state=None: the seed that was drawn first is in the checkpoint.
    assert run(2) == -signal.SIGKILL
    assert run(3) == -signal.SIGKILL
    assert run(99) == 0
    seed = module.load_checkpoint(folder, "reconstruction")[1]["seed"]
    monkeypatch.setattr(module, "chunk_size", lambda size: 32)
    stack = load_particles(tmp_path / "x.mrcs").replace(rotations=random_rotations(200, random_state=0))

    class Seeded(np.random.RandomState):
        def randint(self, *args):
            return seed

    whole = FourierReconstructor(random_state=Seeded(0)).fit(stack)
    assert np.array_equal(np.load(folder / "volume.npy"), whole.volume_)
    assert np.array_equal(np.load(folder / "noise.npy"), whole.noise_spectrum_)


def test_checkpoint_of_another_fit_is_refused(data, tmp_path, monkeypatch):
    monkeypatch.setattr(FourierReconstructor, "_seconds_between_checkpoints", 0.0)
    model = FourierReconstructor(checkpoint_dir=tmp_path, random_state=0).fit(data[0][:50])
    with pytest.raises(ValueError, match="holds a fit of other images or parameters"):
        model.fit(data[0][50:100])
    with pytest.raises(ValueError, match="holds a fit of other images or parameters"):
        model.set_params(max_frequency=0.3).fit(data[0][:50])
    model.set_params(max_frequency=0.5, n_jobs=2).fit(data[0][:50])  # goes on from its end


# ---- classes ---------------------------------------------------------------------------------------------


def test_classes():
    molecules = [make_molecule(L, random_state=seed) for seed in (0, 1)]
    stack, truth = make_particles(molecules, 300, preset="ctf", snr=0.5, random_state=0)
    labels = np.where(np.arange(300) % 50 == 7, -1, truth.labels + 3)
    model = FourierReconstructor(random_state=0)
    found = reconstruct_classes(stack, labels, estimator=model, rotations=truth.rotations, shifts=truth.shifts)
    assert list(found) == [3, 4]
    for own, other in ((0, 1), (1, 0)):
        volume = found[own + 3].volume_
        assert correlation(volume, molecules[own]) > 0.9 > correlation(volume, molecules[other])
        assert found[own + 3].n_images_ == np.count_nonzero(labels == own + 3)


# ---- size and speed --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2, 3, 8, 15])
def test_small_and_odd_boxes(size):
    rng = np.random.default_rng(0)
    stack = ParticleStack(
        rng.standard_normal((20, size, size)),
        rotations=random_rotations(20, random_state=0),
        pixel_size=3.0,
        ctf=make_ctf(20),
        shifts=rng.uniform(-1, 1, (20, 2)),
    )
    found = FourierReconstructor(random_state=0).fit(stack)
    assert found.volume_.shape == (size,) * 3 and np.isfinite(found.volume_).all()
    assert found.predict(stack).shape == stack.shape
    assert np.isfinite(found.score(stack))


def test_shifted_images_make_the_same_volume(data, fitted):
    """Moving the images and saying so changes nothing (up to what wraps around)."""
    stack, truth, _ = data
    moves = np.random.default_rng(3).uniform(-2, 2, (len(stack), 2))
    moved = stack.replace(data=shift_images(np.asarray(stack), moves), shifts=truth.shifts + moves)
    other = FourierReconstructor(random_state=0).fit(moved)
    assert np.linalg.norm(other.volume_ - fitted.volume_) < 0.02 * np.linalg.norm(fitted.volume_)


def test_speed():
    """1000 images of 32 px take 0.2 s; a loop over images and pixels takes minutes."""
    images = np.random.default_rng(0).standard_normal((1000, 32, 32)).astype(np.float32)
    start = time.perf_counter()
    FourierReconstructor(random_state=0).fit(images, rotations=random_rotations(1000, random_state=0))
    assert time.perf_counter() - start < 4
