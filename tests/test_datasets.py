"""Molecules, their power spectra, densities from atoms."""

import gemmi
import mrcfile
import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from skcryo.datasets import (
    STANDARD_SPECTRUM,
    make_molecule,
    match_power_spectrum,
    power_spectrum,
    volume_from_atoms,
)
from skcryo.fourier import fourier_crop
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


@pytest.mark.slow
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


@pytest.mark.slow
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
