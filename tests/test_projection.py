"""The projector against RELION's projections, closed forms, slow sums, and its own adjoint."""

import time
from functools import partial

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from skcryo import fourier
from skcryo.ctf import apply_ctf, make_ctf, rotate_ctf
from skcryo.fourier import fft2c, fourier_crop, frequency_grid, rotate_images, shift_images
from skcryo.projection import VolumeProjector, backproject, central_slices, project
from skcryo.rotations import in_plane_rotation, random_rotations, rotations_from_relion

SIZES = [16, 17]


def white(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def varied_ctf(n):
    rng = np.random.default_rng(5)
    u, angle = rng.uniform(1e4, 2.5e4, n), rng.uniform(0, 180, n)
    return make_ctf(n, defocus_u=u, defocus_v=0.9 * u, defocus_angle=angle, b_factor=20.0)


# ---- projections that RELION made ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ribosome(shared_data):
    mrcfile = pytest.importorskip("mrcfile")
    with mrcfile.open(shared_data / "ribosome_70s_65.mrc", permissive=True) as mrc:
        volume = mrc.data.astype(np.float32)
    return {65: volume, 64: fourier_crop(volume, 64, ndim=3)}


@pytest.fixture(scope="module")
def relion(shared_data):
    import gemmi
    import mrcfile

    def read(name):
        document = gemmi.cif.read(str(shared_data / f"{name}.star"))
        block = next(b for b in document if b.name == "particles")
        columns = {}
        for tag in ("AngleRot", "AngleTilt", "AnglePsi", "OriginX", "OriginY"):
            columns[tag] = np.array([float(value) for value in block.find_values(f"_rln{tag}")])
        n = len(columns["AngleRot"])
        index = [int(value.split("@")[0]) - 1 for value in block.find_values("_rlnImageName")]
        with mrcfile.open(shared_data / f"{name}.mrcs", permissive=True) as mrc:
            images = mrc.data[index].astype(np.float32)
        angles = np.stack([columns[tag] for tag in ("AngleRot", "AngleTilt", "AnglePsi")], axis=1)
        # rln_proj_65 has its origins in Angstrom, all zero
        origin = [columns[tag] if len(columns[tag]) else np.zeros(n) for tag in ("OriginX", "OriginY")]
        return images, angles, np.stack(origin, axis=1)

    return read


def relative_errors(model, images):
    """Of each image, after both are brought to mean 0 and variance 1."""
    model, images = (x.reshape(len(x), -1).astype(float) for x in (model, images))
    model, images = (
        (x - x.mean(axis=1, keepdims=True)) / x.std(axis=1, keepdims=True) for x in (model, images)
    )
    return np.linalg.norm(model - images, axis=1) / np.linalg.norm(images, axis=1)


RELION_FILES = ["64_centered", "64_shifted", "65", "65_centered", "65_shifted"]


@pytest.mark.parametrize("name", RELION_FILES)
def test_agrees_with_relion(name, ribosome, relion):
    """Settles RELION's angles, axes and the sign of its origins."""
    images, angles, origin = relion(f"rln_proj_{name}")
    L = images.shape[-1]
    rotations = rotations_from_relion(angles)
    # RELION turns odd boxes about another pixel: the picture lies one pixel further along x and y.
    offset = 1.0 if L % 2 else 0.0
    model = partial(project, ribosome[L])
    assert relative_errors(model(rotations, shifts=offset - origin), images).max() < 0.03
    assert relative_errors(model(np.swapaxes(rotations, 1, 2), shifts=offset - origin), images).min() > 0.9
    if name.endswith("shifted"):
        assert np.abs(origin).max() > 3
        assert relative_errors(model(rotations, shifts=offset + origin), images).min() > 0.9
        assert relative_errors(model(rotations, shifts=offset - origin[:, ::-1]), images).min() > 0.9
    half = np.full(2, 0.5)
    assert relative_errors(model(rotations, shifts=half + offset - origin), images).min() > 0.1


def test_psi_of_relions_images(ribosome, relion):
    """RELION's image rotated by a belongs to psi - a."""
    images, angles, _ = relion("rln_proj_64_centered")
    a = np.radians([20.0, -50.0, 75.0, 160.0])
    turned = angles - np.stack([0 * a, 0 * a, np.degrees(a)], axis=1)
    model = project(ribosome[64], rotations_from_relion(turned))
    assert relative_errors(rotate_images(model, -a), images).max() < 0.04
    assert relative_errors(rotate_images(images, a), model).max() < 0.04
    assert relative_errors(rotate_images(images, -a), model).min() > 0.5


# ---- closed forms ----------------------------------------------------------------------------------------


def blobs(L, seed=0, n=6, margin=0.0):
    """Gaussians whose projections are known: centres, widths, weights; they reach to the edge of the ball."""
    rng = np.random.default_rng(seed)
    sigmas = rng.uniform(1.4, 2.5, n)
    centres = random_rotations(n, random_state=seed)[:, 0] * (L / 2 - margin - 4.5 * sigmas)[:, None]
    return centres, sigmas, rng.uniform(0.5, 1.5, n)


def blob_volume(L, centres, sigmas, weights):
    place = np.arange(L) - L // 2
    z, y, x = np.meshgrid(place, place, place, indexing="ij")
    return sum(
        w * np.exp(-((x - c[0]) ** 2 + (y - c[1]) ** 2 + (z - c[2]) ** 2) / (2 * s * s))
        for c, s, w in zip(centres, sigmas, weights)
    )


def blob_images(L, centres, sigmas, weights, rotations, shifts=None):
    """The integral along z of V(R (x, y, z)): a Gaussian at c becomes one at R^T c."""
    place = np.arange(L) - L // 2
    out = np.zeros((len(rotations), L, L))
    for i, rotation in enumerate(rotations):
        moved = (centres @ rotation)[:, :2] + (0 if shifts is None else shifts[i])
        for (x, y), s, w in zip(moved, sigmas, weights):
            out[i] += w * s * np.sqrt(2 * np.pi) * np.exp(
                -((place[:, None] - y) ** 2 + (place - x) ** 2) / (2 * s * s)
            )
    return out


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("L", [32, 33, 48, 49])
def test_gaussians(L, seed):
    rotations = random_rotations(10, random_state=seed)
    shifts = np.random.default_rng(seed).uniform(-3, 3, (10, 2))
    for s, margin in ((None, 0.0), (shifts, 4.0)):
        shape = blobs(L, seed, margin=margin)
        expected = blob_images(L, *shape, rotations, s)
        images = project(blob_volume(L, *shape), rotations, shifts=s)
        assert images.dtype == np.float32
        error = np.linalg.norm(images - expected, axis=(1, 2)) / np.linalg.norm(expected, axis=(1, 2))
        assert error.max() < 1e-4  # trilinear interpolation of the padded transform: 5e-2


@pytest.mark.parametrize("L", [32, 33])
def test_gaussians_at_the_edge_of_the_box(L):
    """Three widths from the faces of the box, where an uncorrected kernel loses a third of them."""
    reach = L // 2 - 4.0
    centres = np.concatenate([reach * np.eye(3), -reach * np.eye(3)])
    shape = centres, np.full(6, 1.3), np.arange(1.0, 7.0)
    rotations = random_rotations(10, random_state=3)
    expected = blob_images(L, *shape, rotations)
    images = project(blob_volume(L, *shape), rotations)
    error = np.linalg.norm(images - expected, axis=(1, 2)) / np.linalg.norm(expected, axis=(1, 2))
    assert error.max() < 5e-3


@pytest.mark.parametrize("L", SIZES)
def test_along_the_axes_it_sums(L):
    """With the whole band kept, a projection along an axis is a sum, to the kernel's accuracy."""
    volume = white(L, L, L)
    flipped = np.array([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]])  # image x, y, z along the volume's y, z, x
    images = project(volume, np.stack([np.eye(3), flipped]), max_frequency=0.75)
    assert_allclose(images[0], volume.sum(axis=0), atol=2e-4 * np.sqrt(L))
    assert_allclose(images[1], volume.sum(axis=2), atol=2e-4 * np.sqrt(L))


# ---- the slices ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("L", [11, 12])
def test_slices_equal_the_sum(L):
    """Against the discrete Fourier transform at every point, for noise that fills the box."""
    volume, rotations = white(L, L, L), random_rotations(3, random_state=0)
    place = np.arange(L) - L // 2
    z, y, x = np.meshgrid(place, place, place, indexing="ij")
    points = np.stack([x.ravel(), y.ravel(), z.ravel()])
    grid = frequency_grid(L)
    inside = np.linalg.norm(grid, axis=-1) <= 0.5
    slices = central_slices(volume, rotations)
    assert slices.dtype == np.complex64
    for rotation, values in zip(rotations, slices):
        k = grid[inside] @ rotation[:, :2].T
        expected = np.exp(-2j * np.pi * (k @ points)) @ volume.ravel()
        assert np.abs(values[inside] - expected).max() < 1e-4 * np.sqrt((np.abs(expected) ** 2).mean())
        assert_array_equal(values[~inside], 0)


@pytest.mark.parametrize("L", SIZES)
def test_slices_are_the_transforms_of_projections(L):
    volume, rotations = white(L, L, L), random_rotations(4, random_state=0)
    spectra, slices = fft2c(project(volume, rotations)), central_slices(volume, rotations)
    start = 1 - L % 2  # the Nyquist terms of a real image are real
    assert_allclose(spectra[:, start:, start:], slices[:, start:, start:], atol=2e-3)


def test_max_frequency():
    volume, rotations = white(17, 17, 17), random_rotations(3, random_state=0)
    spectra = fft2c(project(volume, rotations, max_frequency=0.25))
    beyond = np.linalg.norm(frequency_grid(17), axis=-1) > 0.25
    assert np.abs(spectra[:, beyond]).max() < 1e-3
    assert_allclose(spectra[:, ~beyond], fft2c(project(volume, rotations))[:, ~beyond], atol=1e-3)


# ---- adjoint and composition -----------------------------------------------------------------------------


@pytest.mark.parametrize("max_frequency", [0.5, 0.3, 0.8])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("L", SIZES)
def test_adjoint(L, full, max_frequency):
    n = 12
    options = {"max_frequency": max_frequency}
    if full:
        options["shifts"] = np.random.default_rng(1).uniform(-4, 4, (n, 2))
        options |= {"ctf": varied_ctf(n), "pixel_size": 2.0}
    rotations = random_rotations(n, random_state=0)
    for seed in range(5):
        volume, images = white(L, L, L, seed=seed), white(n, L, L, seed=seed + 100)
        projections, back = project(volume, rotations, **options), backproject(images, rotations, **options)
        assert back.dtype == np.float32 and back.shape == (L, L, L)
        left, right = np.vdot(projections.astype(float), images), np.vdot(volume.astype(float), back)
        scale = np.linalg.norm(projections) * np.linalg.norm(images)
        assert abs(left - right) < 1e-6 * scale
        assert abs(left - right) < 1e-5 * max(abs(left), 1e-2 * scale)


def test_ctf_comes_before_the_shift():
    L, n = 32, 5
    volume = blob_volume(L, *blobs(L))
    rotations, ctf = random_rotations(n, random_state=0), varied_ctf(n)
    shifts = np.random.default_rng(0).uniform(-3, 3, (n, 2))
    images = project(volume, rotations, shifts=shifts, ctf=ctf, pixel_size=4.0)
    steps = shift_images(apply_ctf(project(volume, rotations), ctf, 4.0), shifts)
    assert_allclose(images, steps, atol=1e-4 * np.abs(steps).max())


@pytest.mark.parametrize("L", [40, 41])
def test_rotated_images(L):
    """rotate(I, a) is the projection at R @ in_plane_rotation(-a), with the CTF's axis turned by a."""
    volume = blob_volume(L, *blobs(L))
    rotations, a = random_rotations(5, random_state=0), np.array([0.4, -1.0, 2.0, 3.0, -2.5])
    expected = project(volume, rotations @ in_plane_rotation(-a))
    assert relative_errors(rotate_images(project(volume, rotations), a), expected).max() < 5e-3
    wrong = project(volume, rotations @ in_plane_rotation(a))
    assert relative_errors(rotate_images(project(volume, rotations), a), wrong).min() > 0.3
    ctf = make_ctf(5, defocus_u=15000.0, defocus_v=9000.0, defocus_angle=[0.0, 20.0, 50.0, 90.0, 130.0])
    filtered = rotate_images(project(volume, rotations, ctf=ctf, pixel_size=5.0), a)
    expected = project(volume, rotations @ in_plane_rotation(-a), ctf=rotate_ctf(ctf, a), pixel_size=5.0)
    place = np.arange(L) - L // 2
    inside = np.hypot(place[:, None], place) < 0.4 * L  # the filter's ripples leave the box
    assert relative_errors(filtered[:, inside], expected[:, inside]).max() < 0.05


def test_the_gauge():
    """The mirrored volume V(x, y, -z) gives the same images at J R J, a turned one at G R."""
    L = 33
    centres, sigmas, weights = blobs(L)
    rotations, J = random_rotations(4, random_state=0), np.diag([1.0, 1.0, -1.0])
    images = project(blob_volume(L, centres, sigmas, weights), rotations)
    mirrored = blob_volume(L, centres @ J, sigmas, weights)
    assert_allclose(project(mirrored, J @ rotations @ J), images, atol=2e-3)
    G = random_rotations(1, random_state=1)[0]
    turned = blob_volume(L, centres @ G.T, sigmas, weights)
    assert_allclose(project(turned, G @ rotations), images, atol=2e-3)


def test_opposite_views_are_mirror_images():
    volume = white(17, 17, 17)
    rotation = random_rotations(1, random_state=0)
    opposite = rotation @ np.diag([-1.0, 1.0, -1.0])
    assert_allclose(project(volume, opposite), project(volume, rotation)[:, :, ::-1], atol=1e-3)


# ---- running ---------------------------------------------------------------------------------------------


def test_blocks_and_reuse_change_nothing(monkeypatch):
    volume, rotations, images = white(16, 16, 16), random_rotations(9, random_state=0), white(9, 16, 16)
    options = {"shifts": white(9, 2), "ctf": varied_ctf(9), "pixel_size": 3.0}
    whole, back = project(volume, rotations, **options), backproject(images, rotations, **options)
    monkeypatch.setattr(fourier, "_BLOCK_BYTES", 2 * 8 * 16 * 16)
    projector = VolumeProjector(volume)
    assert_array_equal(projector.project(rotations, **options), whole)
    assert_array_equal(projector.project(rotations[4:5])[0], project(volume, rotations)[4])
    assert_allclose(backproject(images, rotations, **options), back, atol=1e-5 * np.abs(back).max())
    assert project(volume, np.empty((0, 3, 3))).shape == (0, 16, 16)


def test_single_precision_poses_and_other_dtypes():
    volume, rotations = white(16, 16, 16), random_rotations(3, random_state=0)
    expected = project(volume, rotations)
    images = project(volume.astype(np.float64), rotations.astype(np.float32))
    assert_allclose(images, expected, atol=1e-3)
    assert images.dtype == np.float32


def test_speed():
    """400 projections and back-projections at 64 pixels: 0.2 s; a loop over points takes minutes."""
    volume, rotations = white(64, 64, 64), random_rotations(400, random_state=0)
    start = time.perf_counter()
    backproject(project(volume, rotations), rotations)
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda v, r: project(v[0], r), r"volume must have shape \(L, L, L\), got \(8, 8\)"),
        (lambda v, r: project(v[:, :4], r), r"volume must have shape"),
        (lambda v, r: project(v, 2 * r), r"rotations\[0\] is not orthogonal"),
        (lambda v, r: project(v, -r), r"rotations\[0\] is a reflection"),
        (lambda v, r: project(v, r, shifts=np.zeros((2, 2))), r"shifts must have shape \(3, 2\)"),
        (lambda v, r: project(v, r, ctf=make_ctf(2)), "CTF has 2 records but there are 3 images"),
        (lambda v, r: project(v, r, ctf=make_ctf(3), pixel_size=0), "pixel_size must be positive"),
        (lambda v, r: project(v, r, ctf=make_ctf(3), pixel_size=None), "pixel_size must be positive"),
        (lambda v, r: project(v, r, max_frequency=0), r"max_frequency must lie in \(0, 1\]"),
        (lambda v, r: backproject(v, r), "rotations has 3 matrices, 8 are wanted"),
        (lambda v, r: backproject(v[0], r), r"images must have shape \(n, L, L\)"),
    ],
)
def test_errors_name_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call(white(8, 8, 8), random_rotations(3, random_state=0))
