"""Class averages against scipy's interpolation, the truth behind noise, and their own invariances."""

import numpy as np
import pytest
import scipy.ndimage

from skcryo.alignment import class_averages
from skcryo.ctf import apply_ctf, make_ctf
from skcryo.fourier import rotate_images, shell_index, shift_images
from skcryo.particles import ParticleStack

PIXEL_SIZE = 4.0


def blobs(n, L, seed):
    rng = np.random.default_rng(seed)
    x = np.arange(L) - L // 2
    out = np.zeros((n, L, L), dtype=np.float32)
    for image in out:
        for _ in range(10):
            u, v = rng.uniform(-0.25 * L, 0.25 * L, 2)
            width = rng.uniform(1.4, 2.5)
            image += rng.normal() * np.exp(-((x - u) ** 2 + (x[:, None] - v) ** 2) / (2 * width**2))
    return out


def simulate(n, L, k, seed, *, noise=0.0, ctf=None):
    rng = np.random.default_rng(seed)
    truth = blobs(k, L, seed)
    labels, angles = rng.integers(0, k, n), rng.uniform(0, 2 * np.pi, n)
    shifts = rng.uniform(-2, 2, (n, 2))
    images = shift_images(rotate_images(truth[labels], angles), shifts)
    if ctf is not None:
        images = apply_ctf(images, ctf, PIXEL_SIZE)
    images = images + noise * images.std() * rng.standard_normal(images.shape)
    return images.astype(np.float32), truth, labels, angles, shifts


def astigmatic_ctf(n, seed, half_difference=1500.0):
    rng = np.random.default_rng(seed)
    defocus = rng.uniform(10000, 20000, n)
    return make_ctf(
        n,
        defocus_u=defocus + half_difference,
        defocus_v=defocus - half_difference,
        defocus_angle=rng.uniform(0, 180, n),
    )


def relative_error(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@pytest.mark.parametrize("L", [24, 25], ids=["even", "odd"])
def test_one_image_is_interpolated_as_by_scipy(L):
    rng = np.random.default_rng(L)
    images = rng.standard_normal((6, L, L)).astype(np.float32)
    angles, shifts = rng.uniform(0, 2 * np.pi, 6), rng.uniform(-3, 3, (6, 2))
    averages, _ = class_averages(images, np.arange(6), angles, shifts, 6)
    centre = L // 2
    disc = np.hypot(np.arange(L) - centre, (np.arange(L) - centre)[:, None]) <= (L - 1) // 2
    for i in range(6):
        c, s = np.cos(angles[i]), np.sin(angles[i])
        matrix = np.array([[c, s], [-s, c]])  # acts on (row, column)
        offset = centre + shifts[i, ::-1] - matrix @ (centre, centre)
        wanted = scipy.ndimage.affine_transform(images[i].astype(float), matrix, offset, order=3) * disc
        assert np.abs(averages[i] - wanted).max() < 1e-5


@pytest.mark.parametrize("seed", range(3))
def test_average_undoes_the_alignment(seed):
    """A wrong sense of angle or shift, or the wrong order of the two, has an error of about 1."""
    images, truth, labels, angles, shifts = simulate(60, 40, 3, seed)
    averages, weights = class_averages(images, labels, angles, shifts, 3)
    assert relative_error(averages, truth) < 0.03
    assert weights.tolist() == np.bincount(labels, minlength=3).tolist()


def test_no_alignment_is_the_mean():
    images = np.random.default_rng(0).standard_normal((7, 16, 16)).astype(np.float32)
    weights = np.array([0.5, 1, 0, 2, 1, 1, 3])
    averages, total = class_averages(
        images, np.zeros(7, int), np.zeros(7), None, 1, sample_weight=weights, mask_radius=20
    )
    wanted = (images * weights[:, None, None]).sum(axis=0) / weights.sum()
    # the interpolating spline passes through the pixels
    assert np.abs(averages[0] - wanted).max() < 1e-5
    assert total[0] == pytest.approx(weights.sum())


@pytest.mark.parametrize("with_ctf", [False, True], ids=["no-ctf", "ctf"])
def test_result_depends_on_no_split(with_ctf, monkeypatch):
    ctf = astigmatic_ctf(90, 0) if with_ctf else None
    images, _, labels, angles, shifts = simulate(90, 24, 4, 0, noise=2.0, ctf=ctf)
    options = dict(ctf=ctf, pixel_size=PIXEL_SIZE)
    whole, _ = class_averages(images, labels, angles, shifts, 4, **options)
    threads, _ = class_averages(images, labels, angles, shifts, 4, n_jobs=2, **options)
    stack, _ = class_averages(ParticleStack(images), labels, angles, shifts, 4, **options)
    monkeypatch.setattr("skcryo.alignment._class_average._CHUNK_BYTES", 7 * 4 * 24 * 24)
    chunks, _ = class_averages(images, labels, angles, shifts, 4, **options)
    for other in (threads, stack, chunks):
        assert np.array_equal(other, whole)


@pytest.mark.parametrize("with_ctf", [False, True], ids=["no-ctf", "ctf"])
def test_empty_classes_and_left_out_images(with_ctf):
    ctf = astigmatic_ctf(30, 0) if with_ctf else None
    images, _, labels, angles, shifts = simulate(30, 24, 2, 0, noise=1.0, ctf=ctf)
    labels = np.where(labels == 0, 3, labels)
    labels[:5] = -1
    labels[5] = 4  # a class of one
    averages, weights = class_averages(images, labels, angles, shifts, 6, ctf=ctf, pixel_size=PIXEL_SIZE)
    assert np.all(np.isfinite(averages))
    assert weights.sum() == 25 and weights[4] == 1
    assert np.array_equal(weights == 0, [True, False, True, False, False, True])
    assert not averages[weights == 0].any() and averages[weights > 0].any(axis=(1, 2)).all()
    nothing, weights = class_averages(
        images, np.full(30, -1), angles, shifts, 2, ctf=ctf, pixel_size=PIXEL_SIZE
    )
    assert not nothing.any() and not weights.any()


def test_zero_weight_is_the_same_as_left_out():
    ctf = astigmatic_ctf(40, 0)
    images, _, labels, angles, shifts = simulate(40, 24, 2, 0, noise=1.0, ctf=ctf)
    keep = np.arange(40) % 4 != 3
    a = class_averages(
        images, labels, angles, shifts, 2, ctf=ctf, pixel_size=PIXEL_SIZE, sample_weight=keep, tau=2.0
    )
    b = class_averages(
        images[keep],
        labels[keep],
        angles[keep],
        shifts[keep],
        2,
        ctf=ctf[keep],
        pixel_size=PIXEL_SIZE,
        tau=2.0,
    )
    assert np.allclose(a[0], b[0], atol=1e-6)


def test_clean_ctf_images_give_back_the_truth():
    """Without noise the CTFs are undone; turning the astigmatism the wrong way leaves an error above 0.15."""
    for seed in range(2):
        ctf = astigmatic_ctf(80, seed, 3000.0)
        images, truth, labels, angles, shifts = simulate(80, 48, 2, seed, ctf=ctf)
        right, _ = class_averages(images, labels, angles, shifts, 2, ctf=ctf, pixel_size=PIXEL_SIZE, tau=1e-3)
        assert relative_error(right, truth) < 0.06
        turned = ctf.copy()
        turned["defocus_angle"] += 2 * np.degrees(angles)  # what the opposite sense amounts to
        wrong, _ = class_averages(
            images, labels, angles, shifts, 2, ctf=turned, pixel_size=PIXEL_SIZE, tau=1e-3
        )
        assert relative_error(wrong, truth) > 2 * relative_error(right, truth)


@pytest.mark.parametrize("noise", [1.0, 3.0])
def test_estimated_regularisation_is_near_the_best(noise):
    """tau from the images themselves is nearly as good as from the true spectra, and beats every constant."""
    for seed in range(2):
        ctf = astigmatic_ctf(120, seed)
        images, truth, labels, angles, shifts = simulate(120, 48, 3, seed, noise=noise, ctf=ctf)
        options = dict(ctf=ctf, pixel_size=PIXEL_SIZE)
        shells = shell_index(48, half=True).ravel()
        power = np.square(np.abs(np.fft.rfft2(truth))).mean(axis=0).ravel()
        signal = np.bincount(shells, weights=power) / np.bincount(shells)
        true_noise = images.var() * noise**2 / (1 + noise**2) * 48**2
        taus = [0.0, 0.01, 0.1, 0.3, 1.0, 3.0, np.minimum(true_noise / signal, 1e9), "auto"]
        made = [class_averages(images, labels, angles, shifts, 3, tau=tau, **options)[0] for tau in taus]
        *constant, ideal, automatic = (relative_error(averages, truth) for averages in made)
        assert automatic < 1.1 * ideal
        assert automatic < 0.8 * min(constant)


def test_tau_by_shell_shrinks_that_shell():
    images, _, labels, angles, shifts = simulate(20, 24, 1, 0)
    mean, _ = class_averages(images, labels, angles, shifts, 1, mask_radius=30)
    tau = np.zeros(13)
    tau[5] = 20.0  # as many as images: halves the shell
    shrunk, _ = class_averages(images, labels, angles, shifts, 1, mask_radius=30, tau=tau)
    ratio = np.fft.rfft2(shrunk[0]) / np.fft.rfft2(mean[0])
    shells = shell_index(24, half=True)
    assert ratio[shells == 5] == pytest.approx(0.5, abs=1e-3)
    assert ratio[shells == 4] == pytest.approx(1.0, abs=1e-3)


def test_inputs_are_refused_by_name():
    images = np.zeros((3, 8, 8), dtype=np.float32)
    ok = (np.zeros(3, int), np.zeros(3), None, 2)
    with pytest.raises(ValueError, match=r"labels must lie in \[-1, 2\), got 0 to 2"):
        class_averages(images, [0, 1, 2], *ok[1:])
    with pytest.raises(ValueError, match=r"angles must have shape \(3,\), got \(2,\)"):
        class_averages(images, ok[0], np.zeros(2), None, 2)
    with pytest.raises(ValueError, match="tau must be"):
        class_averages(images, *ok, tau=-1.0)
    with pytest.raises(ValueError, match="pixel_size is needed"):
        class_averages(images, *ok, ctf=make_ctf(3, defocus_u=1e4, defocus_v=1e4))
    with pytest.raises(ValueError, match="sample_weight must not be negative, got -1"):
        class_averages(images, *ok, sample_weight=[1, -1, 1])
    with pytest.raises(ValueError, match=r"images must have shape \(n, L, L\), got \(3, 8, 9\)"):
        class_averages(np.zeros((3, 8, 9)), *ok)
