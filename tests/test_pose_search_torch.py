"""The search by torch against that in NumPy, on the CPU, and on a GPU where there is one; what needs no torch too."""

import sys

import numpy as np
import pytest

from skcryo._torch import accelerator
from skcryo.alignment import FourierImages, _search, expected_slices, search_poses, shift_grid
from skcryo.ctf import make_ctf
from skcryo.datasets import make_molecule, make_particles
from skcryo.metrics import pose_error
from skcryo.projection import VolumeProjector
from skcryo.reconstruction import AbInitioVolume, _ab_initio
from skcryo.rotations import random_rotations, so3_grid

L, BAND, PIXEL_SIZE = 20, 6, 4.0
SHIFTS = shift_grid(1.5, 1)
GRIDS = {
    "half turns": random_rotations(1, random_state=3)[0] @ so3_grid(1, 6),
    "half turns, permuted": so3_grid(1, 6)[np.random.default_rng(0).permutation(72)],
    "odd": so3_grid(1, 5),
    "one": random_rotations(1, random_state=5),
}
# Of the largest: what rounding of float32 does; half precision or TF32 would be 1e-3 off.
ROUNDING = 5e-6


@pytest.fixture(params=["cpu", "cuda"])
def device(request):
    torch = pytest.importorskip("torch", reason="the search by torch needs the extra skcryo[torch]")
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")
    return torch.device(request.param)


@pytest.fixture
def torch_cpu():
    return pytest.importorskip("torch", reason="the search by torch needs the extra skcryo[torch]").device("cpu")


@pytest.fixture
def no_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)


@pytest.fixture(scope="module")
def projector():
    return VolumeProjector(make_molecule(L, random_state=2))


def make_images(projector, n=23, noise=2.0, with_ctf=True):
    rng = np.random.default_rng(0)
    ctf = make_ctf(n, defocus_u=np.linspace(1e4, 2.5e4, n), defocus_v=np.linspace(1e4, 2.3e4, n))
    options = {"ctf": ctf, "pixel_size": PIXEL_SIZE} if with_ctf else {}
    stack = projector.project(random_rotations(n, random_state=0), shifts=rng.uniform(-1.5, 1.5, (n, 2)), **options)
    noise = noise * stack.std()
    stack += noise * rng.standard_normal(stack.shape, dtype=np.float32)
    return FourierImages.from_stack(stack, np.full(L // 2 + 1, noise**2), 8, **options)


def relative(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def off(a, b):
    return np.abs(a - b).max() / np.abs(b).max()


def same_types(a, b):
    a, b = vars(a), vars(b)
    return list(a) == list(b) and all(a[k].dtype == b[k].dtype and a[k].shape == b[k].shape for k in a)


# ---------------------------------------------------------------------------------------------- against NumPy
@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("with_ctf", [True, False])
@pytest.mark.parametrize(("with_contrast", "contrast_std"), [(False, None), (True, None), (True, 0.3)])
def test_search_is_that_of_numpy(projector, device, name, with_ctf, with_contrast, contrast_std):
    images, rotations = make_images(projector, with_ctf=with_ctf), GRIDS[name]
    contrast = np.linspace(0.5, 1.5, len(images)) if with_contrast else None
    options = {"band": BAND, "n_best": 5, "contrast": contrast, "contrast_std": contrast_std}
    found = search_poses(images, projector, rotations, SHIFTS, device=device, **options)
    expected = search_poses(images, projector, rotations, SHIFTS, **options)
    assert same_types(found, expected)
    assert off(found.log_likelihood, expected.log_likelihood) < ROUNDING
    assert (np.diff(found.log_likelihood, axis=1) <= 0).all()
    # no ties here: the grids have no pose twice
    assert np.array_equal(found.rotation, expected.rotation) and np.array_equal(found.shift, expected.shift)


def test_tied_poses_are_both_found(projector, device):
    images, rotations = make_images(projector), np.repeat(so3_grid(1, 4), 2, axis=0)
    found = search_poses(images, projector, rotations, SHIFTS, band=BAND, n_best=6, device=device)
    expected = search_poses(images, projector, rotations, SHIFTS, band=BAND, n_best=6)
    assert off(found.log_likelihood, expected.log_likelihood) < ROUNDING
    assert np.array_equal(found.rotation // 2, expected.rotation // 2)
    assert all(len(set(row)) == 6 for row in found.rotation.tolist())


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("noise", [0.5, 6.0])
@pytest.mark.parametrize(("temperature", "with_contrast"), [(1.0, False), (0.5, True), (7.0, True)])
def test_expectation_is_that_of_numpy(projector, device, name, noise, temperature, with_contrast):
    images, rotations = make_images(projector, noise=noise), GRIDS[name]
    contrast = np.linspace(0.5, 1.5, len(images)) if with_contrast else None
    options = {"band": BAND, "temperature": temperature, "contrast": contrast}
    found = expected_slices(images, projector, rotations, SHIFTS, device=device, **options)
    expected = expected_slices(images, projector, rotations, SHIFTS, **options)
    assert same_types(found, expected)
    assert relative(found.numerator, expected.numerator) < 1e-4
    assert relative(found.denominator, expected.denominator) < 1e-4
    assert off(found.log_evidence, expected.log_evidence) < 2 * ROUNDING
    assert np.array_equal(found.rotation, expected.rotation) and np.array_equal(found.shift, expected.shift)


@pytest.mark.parametrize("name", ["half turns", "odd"])
@pytest.mark.parametrize("per_block", [1, 5, 22, 23])
def test_the_size_of_blocks_does_not_matter(projector, device, name, per_block, monkeypatch):
    from skcryo.alignment import _search_torch

    images, rotations = make_images(projector), GRIDS[name]
    sizes = []

    class Blocks(_search_torch._TorchProducts):
        def blocks(self):
            self.block = per_block
            for parts in super().blocks():
                sizes.append(len(parts[0]))
                yield parts

    def run():
        poses = search_poses(images, projector, rotations, SHIFTS, band=BAND, n_best=3, device=device)
        return poses, expected_slices(images, projector, rotations, SHIFTS, band=BAND, device=device)

    whole = run()
    monkeypatch.setattr(_search_torch, "_TorchProducts", Blocks)
    parts = run()
    assert max(sizes) == per_block and sum(sizes) == 2 * len(images)
    assert np.array_equal(parts[0].rotation, whole[0].rotation) and np.array_equal(parts[0].shift, whole[0].shift)
    assert off(parts[0].log_likelihood, whole[0].log_likelihood) < ROUNDING
    assert relative(parts[1].numerator, whole[1].numerator) < 1e-5
    assert relative(parts[1].denominator, whole[1].denominator) < 1e-5
    assert off(parts[1].log_evidence, whole[1].log_evidence) < ROUNDING


def test_memory_of_a_block_is_bounded(projector, torch_cpu, monkeypatch):
    import torch

    from skcryo.alignment import _search_torch

    images, rotations = make_images(projector), GRIDS["half turns"]
    arguments = torch, torch_cpu, images, projector, rotations, SHIFTS, BAND, None, None
    usual = _search_torch._TorchProducts(*arguments)
    assert usual.block > len(images)
    monkeypatch.setattr(_search_torch, "_MAX_BYTES", 10 * len(rotations) * len(SHIFTS) * 40)
    small = _search_torch._TorchProducts(*arguments)
    assert 1 < small.block < 40
    monkeypatch.setattr(_search_torch, "_MAX_BYTES", 1)
    assert _search_torch._TorchProducts(*arguments).block == 1


def test_precision_allowed_elsewhere_changes_no_bit(projector, device):
    """A process that lets torch round its products to half precision: 1e-3 off, were they used."""
    import torch

    settings = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul
    if not hasattr(settings[0], "fp32_precision"):
        pytest.skip("torch before 2.9 has one setting for all")
    images, rotations = make_images(projector), GRIDS["half turns"]

    def run():
        return expected_slices(images, projector, rotations, SHIFTS, band=BAND, device=device)

    usual, before = run(), [setting.fp32_precision for setting in settings]
    try:
        settings[0].fp32_precision, settings[1].fp32_precision = "tf32", "bf16"
        with torch.autocast(device.type, dtype=torch.bfloat16):
            found = run()
            with pytest.raises(ValueError, match="contrast"):
                expected_slices(images, projector, rotations, SHIFTS, band=BAND, contrast=np.ones(3), device=device)
        assert [setting.fp32_precision for setting in settings] == ["tf32", "bf16"]
    finally:
        for setting, value in zip(settings, before):
            setting.fp32_precision = value
    assert all(np.array_equal(a, b) for a, b in zip(vars(found).values(), vars(usual).values()))


def test_twice_the_same_bits_whatever_the_threads(projector, device):
    images, rotations = make_images(projector), GRIDS["half turns"]
    first, second = (
        expected_slices(images, projector, rotations, SHIFTS, band=BAND, n_jobs=n_jobs, device=device)
        for n_jobs in (None, 2)
    )
    assert all(np.array_equal(a, b) for a, b in zip(vars(first).values(), vars(second).values()))


# ---------------------------------------------------------------------------------------------------- limits
@pytest.mark.parametrize("name", ["half turns", "odd"])
def test_without_signal_all_poses_are_alike(projector, device, name):
    images, rotations = make_images(projector, 5), GRIDS[name]
    nothing = FourierImages(images.values, np.zeros_like(images.filters), images.points, L)
    for case, contrast in ((nothing, None), (images, np.zeros(5))):
        found = expected_slices(case, projector, rotations, SHIFTS, band=BAND, contrast=contrast, device=device)
        assert np.allclose(found.log_evidence, 0, atol=1e-6) and not found.numerator.any()
    found = expected_slices(images, projector, rotations, SHIFTS, band=0.5, device=device)
    assert found.numerator.shape == (len(rotations), 0) and np.allclose(found.log_evidence, 0, atol=1e-6)


def test_no_images(projector, device):
    images = make_images(projector, 3).take(slice(0, 0))
    for function, options in ((expected_slices, {}), (search_poses, {"n_best": 2})):
        found, expected = (
            function(images, projector, GRIDS["odd"], SHIFTS, band=BAND, device=where, **options)
            for where in (device, None)
        )
        assert same_types(found, expected)


def test_bad_input(projector, torch_cpu):
    images, options = make_images(projector, 4), {"band": BAND, "device": torch_cpu}
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        expected_slices(images, projector, GRIDS["odd"], SHIFTS, temperature=0, **options)
    with pytest.raises(ValueError, match=r"contrast must have shape \(4,\)"):
        search_poses(images, projector, GRIDS["odd"], SHIFTS, contrast=np.ones(3), **options)
    with pytest.raises(ValueError, match="0 rotations"):
        search_poses(images, projector, GRIDS["odd"][:0], SHIFTS, **options)


# -------------------------------------------------------------------------------------------- choosing a device
@pytest.mark.parametrize("device", [None, "cpu", "auto"])
def test_without_torch_the_search_is_in_numpy(projector, no_torch, device):
    images = make_images(projector, 4)
    found, expected = (
        search_poses(images, projector, GRIDS["odd"], SHIFTS, band=BAND, **options)
        for options in ({"device": device}, {})
    )
    assert all(np.array_equal(a, b) for a, b in zip(vars(found).values(), vars(expected).values()))


@pytest.mark.parametrize("function", [search_poses, expected_slices])
def test_a_gpu_without_torch_names_the_extra(projector, no_torch, function):
    images = make_images(projector, 4)
    with pytest.raises(ImportError, match=r'needs torch, which is not installed.*pip install "skcryo\[torch\]"'):
        function(images, projector, GRIDS["odd"], SHIFTS, band=BAND, device="cuda")


@pytest.mark.parametrize("function", [search_poses, expected_slices])
def test_unknown_device(projector, no_torch, function):
    with pytest.raises(ValueError, match=f"{function.__name__}: device must be 'auto', 'cpu' or 'cuda', got 'tpu'"):
        function(make_images(projector, 4), projector, GRIDS["odd"], SHIFTS, band=BAND, device="tpu")


def test_which_device(torch_cpu):
    import torch

    assert accelerator(None) is accelerator("cpu") is None
    assert accelerator(torch_cpu) == torch_cpu
    if torch.cuda.is_available():
        assert accelerator("auto") == accelerator("cuda") == torch.device("cuda")
    else:
        assert accelerator("auto") is None
        with pytest.raises(ValueError, match="AbInitioVolume: device='cuda' was asked for, but torch sees 0"):
            accelerator("cuda", caller="AbInitioVolume")
    with pytest.raises(ValueError, match="device must be"):
        accelerator(torch.device("meta"))


# --------------------------------------------------------------------------------------------- the estimator
def small_fit(stack, **options):
    return AbInitioVolume(max_shift=1, n_starts=2, angular_step=30, n_jobs=1, random_state=0, **options).fit(stack)


@pytest.mark.filterwarnings("ignore:AbInitioVolume did not converge")  # 150 images are few for two starts to agree
def test_volume_from_images_by_torch(torch_cpu, monkeypatch):
    """All of a fit's searches, and those of `predict`, are torch's, and find the same molecule."""
    stack, truth = make_particles(make_molecule(24, random_state=0), 150, snr=2.0, random_state=0)
    expected = small_fit(stack, device="cpu")
    monkeypatch.setattr(_ab_initio, "accelerator", lambda device, caller: torch_cpu)
    monkeypatch.setattr(_search._Products, "blocks", None)  # NumPy's
    found = small_fit(stack)
    poses = found.predict(stack[:10])
    for fitted in (expected, found):
        assert pose_error(fitted.rotations_, truth.rotations).median < 8
    assert pose_error(found.rotations_, expected.rotations_).median < 1
    assert pose_error(poses, found.rotations_[:10]).median < 3


@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_an_estimator_without_torch(no_torch, device):
    stack, _ = make_particles(make_molecule(16, random_state=0), 20, snr=2.0, random_state=0)
    options = {"max_shift": 1, "angular_step": 30, "n_starts": 1, "max_epochs": 1, "max_rounds": 1, "n_jobs": 1}
    with pytest.warns(match="did not converge"):
        assert AbInitioVolume(device=device, **options).fit(stack).rotations_.shape == (20, 3, 3)


def test_an_estimator_names_the_extra_before_it_works(no_torch):
    stack = np.random.default_rng(0).standard_normal((4, 16, 16))
    with pytest.raises(ImportError, match=r'AbInitioVolume needs torch.*"skcryo\[torch\]"'):
        AbInitioVolume(device="cuda").fit(stack)
    with pytest.raises(ValueError, match="'device' parameter of AbInitioVolume must be a str among"):
        AbInitioVolume(device="tpu").fit(stack)


def test_a_checkpoint_goes_on_on_any_device():
    stack, _ = make_particles(make_molecule(16, random_state=0), 6, snr=2.0, random_state=0)
    keys = {AbInitioVolume(device=device)._fingerprint(stack, None) for device in ("auto", "cpu", "cuda")}
    assert len(keys) == 1
