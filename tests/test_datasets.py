"""Molecules, spectra, densities from atoms, simulated particles, downloads."""

import gzip
import hashlib
import http.server
import threading
import tracemalloc

import gemmi
import mrcfile
import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from skcryo.ctf import evaluate_ctf
from skcryo.datasets import (
    PRESETS,
    STANDARD_SPECTRUM,
    ImagingConditions,
    _particles,
    fetch_emdb,
    make_molecule,
    make_particles,
    match_power_spectrum,
    power_spectrum,
    volume_from_atoms,
)
from skcryo.fourier import fft2c, fourier_crop, radial_average
from skcryo.io import load_volume, save_volume
from skcryo.metrics import fsc
from skcryo.projection import project
from skcryo.rotations import in_plane_rotation, random_rotations


def power(volume):
    return float((volume.astype(np.float64) ** 2).sum())


# -- molecules --


@pytest.mark.parametrize("L", [48, 49, 64])
@pytest.mark.parametrize("arguments", [{}, {"random_state": 3}, {"symmetry": 7}], ids=str)
def test_molecule_has_the_standard_spectrum(L, arguments):
    spectrum = power_spectrum(make_molecule(L, **arguments))
    shells = slice(0, 22)
    assert np.allclose(
        spectrum[shells] / spectrum[1], (STANDARD_SPECTRUM / STANDARD_SPECTRUM[1])[shells], rtol=0.01
    )


def test_without_the_standard_spectrum_nearly_all_power_is_one_blob():
    spectrum = power_spectrum(make_molecule(32, spectrum=None))
    assert spectrum[:2].sum() / spectrum.sum() > 0.9
    assert make_molecule(64, spectrum=None).min() > -0.05


def test_states_of_a_molecule_differ_only_where_they_should():
    base = make_molecule(48)
    assert np.array_equal(base, make_molecule(48, random_state=0))
    assert np.array_equal(base, make_molecule(48, hinge=0.0, ligand=False))
    assert np.allclose(base, make_molecule(48, hinge=360.0), atol=1e-4)
    turned, bound = make_molecule(48, hinge=30.0), make_molecule(48, ligand=True)
    assert power(bound - base) / power(base) == pytest.approx(0.1, rel=5e-3)
    assert power(make_molecule(48, ligand=0.02) - base) / power(base) == pytest.approx(0.02, rel=5e-3)
    both = make_molecule(48, hinge=30.0, ligand=True)
    assert np.allclose(both - turned, bound - base, atol=1e-4)
    # A turned domain and a ball are local: most of the density stays, none is made or lost.
    dense = base > 0.2
    for state in (turned, bound):
        assert (np.abs(state - base)[dense] < 0.05).mean() > 0.6
    assert turned.sum(dtype=float) == pytest.approx(base.sum(dtype=float), rel=1e-3)
    parts = [power(make_molecule(48, hinge=h) - base) / power(base) for h in (-30, 5, 15, 30)]
    assert 0.001 < parts[1] < parts[2] < parts[3] < 0.4
    assert 0.02 < parts[0] < 0.4


def test_seeds_make_different_molecules():
    a, b = make_molecule(32, random_state=0), make_molecule(32, random_state=1)
    assert np.corrcoef(a.ravel(), b.ravel())[0, 1] < 0.6
    generator = np.random.RandomState(0)
    first, second = make_molecule(32, random_state=generator), make_molecule(32, random_state=generator)
    assert np.array_equal(first, a)
    assert not np.allclose(first, second)


def test_one_molecule_at_every_sampling():
    large = make_molecule(65)
    assert np.allclose(fourier_crop(large, 33, ndim=3), make_molecule(33), atol=1e-5)
    # A larger box at the same voxel size holds the same molecule; its surroundings ring a little differently.
    wide, narrow = make_molecule(80, voxel_size=5.0), make_molecule(64, voxel_size=5.0)
    assert np.abs(wide[8:72, 8:72, 8:72] - narrow).max() < 0.05
    assert np.array_equal(narrow, make_molecule(64))


def test_molecule_is_centred_and_stays_within_its_box():
    volume = make_molecule(64, spectrum=None).astype(float)
    axis = np.arange(64) - 32
    for dim in range(3):
        profile = volume.sum(axis=tuple({0, 1, 2} - {dim}))
        assert (
            abs((profile * axis).sum() / profile.sum()) < 1.5
        )  # mass of residues, not of all domains' filters
    volume = make_molecule(64)
    radius = np.sqrt(axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2)
    assert power(volume * (radius > 30)) / power(volume) < 0.01
    assert volume.max() == pytest.approx(1, abs=0.05)


def test_views_are_distinct():
    """Views more than 30 degrees apart stay below .9 in correlation whatever the turn in the plane.

    A symmetric molecule reaches 1, a ball too; the 70S ribosome's largest is .77.
    """
    largest = []
    for volume in (make_molecule(48, random_state=1), make_molecule(48, symmetry=2)):
        R = random_rotations(60, random_state=0)
        if volume is not None and len(largest) == 1:
            R[30:] = np.diag([-1.0, -1.0, 1.0]) @ R[:30]  # equivalent views of a twofold
        images = project(volume, R)
        radii, angles = np.arange(1, 23), np.arange(96) * 2 * np.pi / 96
        x, y = 24 + radii[:, None] * np.cos(angles), 24 + radii[:, None] * np.sin(angles)
        polar = np.array([map_coordinates(image, [y, x], order=1) for image in images])
        polar -= (polar * radii[:, None]).sum((1, 2), keepdims=True) / (96 * radii.sum())
        polar *= np.sqrt(radii)[:, None]
        polar /= np.linalg.norm(polar, axis=(1, 2), keepdims=True)
        spectra = np.fft.rfft(polar)
        cross = np.fft.irfft(np.einsum("irk,jrk->ijk", spectra, spectra.conj()), 96).max(-1)
        apart = R[:, :, 2] @ R[:, :, 2].T < np.cos(np.deg2rad(30))
        largest.append(cross[apart].max())
    assert largest[0] < 0.9
    assert largest[1] > 0.99  # the measure sees a symmetry


@pytest.mark.parametrize("n", [2, 9, 12])
def test_ring_has_its_symmetry_and_no_other(n):
    ring = make_molecule(48, symmetry=n, hinge=10, ligand=True)
    R = random_rotations(4, random_state=0)
    images = project(ring, R)

    def difference(fold):
        turned = project(ring, in_plane_rotation(2 * np.pi / fold) @ R)
        return np.linalg.norm(turned - images) / np.linalg.norm(images)

    assert (
        difference(n) < 0.1
    )  # .002 to .003 without the standard spectrum, whose tails reach the box's walls
    assert difference(n + 1) > 0.2
    flipped = project(ring, np.diag([1.0, -1.0, -1.0]) @ R)
    assert np.linalg.norm(flipped - images) / np.linalg.norm(images) > 0.3


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"L": 4}, "L is 4"),
        ({"L": 32.0}, "L is 32.0"),
        ({"L": 32, "voxel_size": 5}, "the box of 160 Angstrom"),
        ({"voxel_size": -1}, "voxel_size is -1"),
        ({"symmetry": 0}, "symmetry is 0"),
        ({"symmetry": 40}, "too small"),
        ({"ligand": -0.1}, "ligand is -0.1"),
        ({"spectrum": "pink"}, "spectrum is 'pink'"),
        ({"hinge": np.nan}, "hinge is nan"),
    ],
)
def test_molecule_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_molecule(**arguments)


# -- spectra --


def test_standard_spectrum_is_that_of_the_ribosome(shared_data):
    volume = mrcfile.read(shared_data / "ribosome_70s_65.mrc")
    spectrum = power_spectrum(volume)
    assert np.allclose(spectrum / spectrum.sum(), STANDARD_SPECTRUM, rtol=1e-3)
    matched = match_power_spectrum(volume)
    assert np.corrcoef(matched.ravel(), volume.ravel())[0, 1] > 0.999


@pytest.mark.parametrize("L", [31, 32, 80])
def test_matching_gives_the_spectrum_and_keeps_phases_and_power(L):
    volume = np.random.default_rng(0).normal(size=(L, L, L)).astype(np.float32)
    matched = match_power_spectrum(volume)
    n = min(L // 2 + 1, len(STANDARD_SPECTRUM))
    spectrum = power_spectrum(matched)
    assert np.allclose(spectrum[:n] / spectrum[1], STANDARD_SPECTRUM[:n] / STANDARD_SPECTRUM[1], rtol=1e-3)
    assert matched.dtype == np.float32
    assert power(matched) == pytest.approx(power(volume), rel=1e-5)
    assert spectrum[n:].max(initial=0) < 1e-9 * spectrum[1]  # nothing beyond the standard's last shell
    assert fsc(volume, matched)[: min(n, 16)].min() > 0.95  # 1 but for the slope of the gains within a shell
    assert np.allclose(match_power_spectrum(matched), matched, atol=1e-3 * matched.std())


def test_matching_a_volume_an_array_and_a_physical_frequency():
    rng = np.random.default_rng(0)
    volume, other = rng.normal(size=(2, 24, 24, 24))
    other[::2] *= 2
    matched = power_spectrum(match_power_spectrum(volume, other))
    wanted = power_spectrum(other)
    assert np.allclose(matched / matched.sum(), wanted / wanted.sum(), rtol=1e-3)
    band = power_spectrum(match_power_spectrum(volume, [0, 1, 1, 1]))
    assert np.allclose(band[1:4] / band[1], 1, rtol=1e-3)
    assert band[[0, 4, 5, 12]].max() < 1e-9 * band[1]
    # Half the box at the same voxel size: shell k of the half box is shell 2 k of the whole.
    half = power_spectrum(match_power_spectrum(volume, voxel_size=160 / 24))
    assert np.allclose((half / half[1])[:10], (STANDARD_SPECTRUM[::2] / STANDARD_SPECTRUM[2])[:10], rtol=1e-3)


def test_matching_refuses_what_has_no_answer():
    volume = np.random.default_rng(0).normal(size=(8, 8, 8))
    for spectrum, message in [
        ("white", "spectrum is 'white'"),
        (np.zeros(5), "positive in some shell"),
        ([1.0, -1.0], "not negative"),
        (np.ones((2, 2)), r"spectrum has shape \(2, 2\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            match_power_spectrum(volume, spectrum)
    with pytest.raises(ValueError, match="zero everywhere"):
        match_power_spectrum(np.zeros((8, 8, 8)))
    with pytest.raises(ValueError, match="no power in the shells"):
        match_power_spectrum(np.ones((8, 8, 8)), [0, 1, 1])
    with pytest.raises(ValueError, match=r"volume has shape \(8, 8, 7\)"):
        match_power_spectrum(volume[:, :, :7])
    with pytest.raises(ValueError, match="NaN"):
        power_spectrum(volume * np.nan)


# -- densities from atoms --


def model_of(positions, element="C", residue_name="ALA", occupancy=1.0):
    model, chain = gemmi.Model(1), gemmi.Chain("A")
    for position in positions:
        atom, residue = gemmi.Atom(), gemmi.Residue()
        atom.name, atom.element, atom.occ = element, gemmi.Element(element), occupancy
        atom.pos = gemmi.Position(*position)
        residue.name = residue_name
        residue.add_atom(atom)
        chain.add_residue(residue)
    model.add_chain(chain)
    return model


CARBON = 2.5092  # Angstrom: electron scattering factor at zero angle


@pytest.mark.parametrize("L", [20, 21])
@pytest.mark.parametrize("resolution", [4.0, 12.0])
def test_an_atom_is_a_gaussian(L, resolution):
    """The transform of a Gaussian is known; sampling and cropping may cost a per mille."""
    at = np.array([3.0, -5.0, 1.3])
    volume = volume_from_atoms(model_of([at]), L, 2.0, resolution=resolution, center=[0, 0, 0])
    k = np.fft.fftshift(np.fft.fftfreq(L, 2.0))
    sigma = 0.225 * resolution
    waves = [np.exp(-2j * np.pi * k * c - 2 * (np.pi * sigma * k) ** 2) for c in at]
    wanted = CARBON * waves[2][:, None, None] * waves[1][:, None] * waves[0]
    found = np.fft.fftshift(np.fft.fftn(np.fft.ifftshift(volume))) * 2.0**3
    inner = slice(1, None)  # the Nyquist planes of an even box hold half of two
    assert np.abs(found - wanted)[inner, inner, inner].max() < 3e-3 * CARBON
    assert volume.sum() * 8 == pytest.approx(CARBON, rel=1e-3)


def test_axes_centre_weights_and_occupancy():
    volume = volume_from_atoms(model_of([(8, 0, -4)]), 16, 2.0, center=[0, 0, 0])
    assert np.unravel_index(volume.argmax(), volume.shape) == (8 - 2, 8, 8 + 4)  # z, y, x
    centred = volume_from_atoms(model_of([(108, 0, -4)]), 16, 2.0)
    assert np.unravel_index(centred.argmax(), centred.shape) == (8, 8, 8)
    half = volume_from_atoms(model_of([(108, 0, -4)], occupancy=0.5), 16, 2.0)
    assert np.allclose(half, centred / 2)
    heavy = volume_from_atoms(model_of([(0, 0, 0)], element="P"), 16, 2.0)
    assert heavy.sum() > 1.5 * centred.sum()


def test_waters_are_left_out_unless_wanted():
    model = model_of([(0, 0, 0)], element="O", residue_name="HOH")
    with pytest.raises(ValueError, match="no atoms"):
        volume_from_atoms(model, 16, 2.0)
    assert volume_from_atoms(model, 16, 2.0, waters=True).max() > 0


def test_turned_atoms_give_turned_projections():
    rng = np.random.default_rng(0)
    atoms = rng.uniform(-15, 15, (40, 3))
    R = random_rotations(3, random_state=0)
    arguments = dict(L=32, voxel_size=2.0, resolution=12.0, center=[0, 0, 0])
    images = project(volume_from_atoms(model_of(atoms), **arguments), R)
    for rotation, image in zip(R, images):
        turned = volume_from_atoms(model_of(atoms @ rotation), **arguments)  # V(R x) has its atoms at R^T a
        assert np.abs(turned.sum(0) - image).max() < 2e-3 * image.max()


def test_a_deposited_structure(shared_data):
    volume = volume_from_atoms(shared_data / "8zpm.cif", 48, 4.0)
    assert volume.shape == (48, 48, 48)
    axis = np.arange(48) - 24
    for dim in range(3):
        profile = volume.sum(axis=tuple({0, 1, 2} - {dim}), dtype=float)
        assert abs((profile * axis).sum() / profile.sum()) < 0.01
    spectrum = power_spectrum(volume)
    assert spectrum[:3].sum() / spectrum.sum() > 0.8
    with pytest.raises(ValueError, match="larger L or voxel_size"):
        volume_from_atoms(shared_data / "8zpm.cif", 16, 4.0)


def test_atoms_arguments(tmp_path):
    model = model_of([(0, 0, 0)])
    with pytest.raises(FileNotFoundError, match="nothing.cif"):
        volume_from_atoms(tmp_path / "nothing.cif", 16, 2.0)
    with pytest.raises(TypeError, match="structure is a list"):
        volume_from_atoms([1], 16, 2.0)
    with pytest.raises(ValueError, match="resolution is 3"):
        volume_from_atoms(model, 16, 2.0, resolution=3.0)
    with pytest.raises(ValueError, match="voxel_size is 0"):
        volume_from_atoms(model, 16, 0)
    with pytest.raises(ValueError, match="holds no model"):
        volume_from_atoms(gemmi.Structure(), 16, 2.0)


# -- particles --


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


# -- downloads --


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """A server on this machine that holds one entry: its address, its folder, SHA-256, list of requests."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "archive" / "EMD-0042" / "map"
    folder.mkdir(parents=True)
    save_volume(tmp_path / "map.mrc", np.arange(64.0).reshape(4, 4, 4), 2.0)
    content = gzip.compress((tmp_path / "map.mrc").read_bytes(), mtime=0)
    (folder / "emd_0042.map.gz").write_bytes(content)
    requests = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(tmp_path / "archive"))

        def log_message(self, *arguments):
            requests.append(self.path)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", folder, hashlib.sha256(content).hexdigest(), requests
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("entry", [42, "42", "EMD-0042", "emd_0042"])
def test_a_map_is_fetched_once(archive, tmp_path, entry, capfd):
    url, _, sha256, requests = archive
    path = fetch_emdb(entry, data_home=tmp_path / "home", base_url=url + "/", known_hash=sha256)
    assert path.name == "emd_0042.map.gz"
    volume, voxel_size = load_volume(path)
    assert volume[0, 0, 1] == 1 and voxel_size == 2
    assert fetch_emdb(entry, data_home=tmp_path / "home", base_url=url, known_hash=sha256) == path
    assert fetch_emdb(entry, data_home=tmp_path / "home", base_url=url) == path
    assert requests == ["/EMD-0042/map/emd_0042.map.gz"]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("prefix", ["", "sha256:"])
def test_a_wrong_hash_is_refused_and_leaves_no_file(archive, tmp_path, prefix):
    url = archive[0]
    with pytest.raises(ValueError, match="hash"):
        fetch_emdb(42, data_home=tmp_path / "home", base_url=url, known_hash=prefix + "0" * 64)
    assert [file for file in (tmp_path / "home").rglob("*") if file.is_file()] == []


def test_a_damaged_cache_is_noticed_without_a_known_hash(archive, tmp_path):
    url, folder, _, requests = archive
    path = fetch_emdb(42, data_home=tmp_path / "home", base_url=url)
    path.write_bytes(b"damaged")
    assert fetch_emdb(42, data_home=tmp_path / "home", base_url=url).stat().st_size > 100
    path.write_bytes(b"damaged")
    (folder / "emd_0042.map.gz").write_bytes(b"another file")
    with pytest.raises(ValueError, match="hash"):
        fetch_emdb(42, data_home=tmp_path / "home", base_url=url)


def test_mirrors_are_tried_in_order(archive, tmp_path, monkeypatch):
    url, _, sha256, requests = archive
    monkeypatch.setenv("SKCRYO_DATA", str(tmp_path / "from_environment"))
    path = fetch_emdb(42, base_url=[url + "/nothing", url], known_hash=sha256.upper())
    assert path.parent.parent == tmp_path / "from_environment"
    with pytest.raises(OSError, match="EMD-0043 could not be downloaded") as error:
        fetch_emdb(43, base_url=[url + "/first", url + "/second"])
    assert "/first/EMD-0043" in str(error.value) and "/second/EMD-0043" in str(error.value)
    assert not list(path.parent.glob("*0043*"))


def test_entries_and_hashes_are_checked(tmp_path):
    for entry in ("ribosome", "EMD-1234567", "", True):
        with pytest.raises(ValueError, match="entry is"):
            fetch_emdb(entry, data_home=tmp_path)
    with pytest.raises(ValueError, match="known_hash is 'abc'"):
        fetch_emdb(42, data_home=tmp_path, known_hash="abc")
