"""Density of an atomic model: a sum of Gaussians with the weights at which atoms scatter electrons."""

import os

import gemmi
import numpy as np

from ..fourier import fourier_crop
from ._spectrum import check_positive

_SIGMA_OF_RESOLUTION = 0.225  # a Gaussian whose transform has fallen to exp(-1) at 1 / resolution


def volume_from_atoms(structure, L, voxel_size, *, resolution=None, center=None, waters=False):
    """Make the density of an atomic model.

    Every atom is a Gaussian, weighted by its electron scattering factor at zero angle and its occupancy.
    Temperature factors are left out: the width is that of `resolution`.

    Parameters
    ----------
    structure : str, path, gemmi.Structure or gemmi.Model
        A PDB or mmCIF file, or what gemmi read from one; of a structure the first model.
    L : int
        Box size in voxels.
    voxel_size : float
        In Angstrom.
    resolution : float, default=None
        In Angstrom; None stands for ``2 * voxel_size``, the finest that the box can hold.
    center : array-like of shape (3,), default=None
        Point (x, y, z) of the model, in Angstrom, that comes to voxel ``L // 2``. None takes the centre of
        mass (of the scattering factors). Give the states of one molecule the same point.
    waters : bool, default=False
        Whether water molecules count.

    Returns
    -------
    volume : ndarray of shape (L, L, L), float32
        Density ``V[z, y, x]``; its sum times ``voxel_size ** 3`` is the sum of the scattering factors in
        Angstrom.

    Raises
    ------
    ValueError
        If the model has no atoms, does not fit into the box, or `resolution` is finer than the voxels.
    FileNotFoundError
        If there is no such file.

    See Also
    --------
    match_power_spectrum : Such a density is nearly all one smooth blob; give it the standard spectrum to
    compare.

    Examples
    --------
    >>> import gemmi
    >>> from skcryo.datasets import volume_from_atoms
    >>> chain, residue, atom = gemmi.Chain("A"), gemmi.Residue(), gemmi.Atom()
    >>> atom.name, atom.element, atom.pos = "C", gemmi.Element("C"), gemmi.Position(9, 9, 9)
    >>> _ = residue.add_atom(atom), chain.add_residue(residue)
    >>> model = gemmi.Model(1)
    >>> _ = model.add_chain(chain)
    >>> volume = volume_from_atoms(model, 16, 2.0)
    >>> [int(i) for i in (volume == volume.max()).nonzero()[0]], round(float(volume.sum() * 8), 2)
    ([8], 2.51)
    """
    positions, weights = _read_atoms(structure, waters)
    voxel_size = check_positive(voxel_size, "voxel_size")
    if isinstance(L, bool) or int(L) != L or L < 2:
        raise ValueError(f"L is {L!r}; an integer of at least 2 is wanted")
    L = int(L)
    resolution = 2 * voxel_size if resolution is None else check_positive(resolution, "resolution")
    if resolution < 2 * voxel_size * (1 - 1e-9):
        raise ValueError(
            f"resolution is {resolution} but voxels of {voxel_size} Angstrom hold nothing finer than "
            f"{2 * voxel_size}"
        )
    if center is None:
        center = (weights[:, None] * positions).sum(0) / weights.sum()
    center = np.asarray(center, dtype=np.float64)
    if center.shape != (3,) or not np.isfinite(center).all():
        raise ValueError(f"center is {center}; a point (x, y, z) in Angstrom is wanted")
    positions = (positions - center) / voxel_size
    reach = np.abs(positions).max()
    if reach > (L - 1) // 2:
        raise ValueError(
            f"the model reaches {reach * voxel_size:.1f} Angstrom from the centre but the box only "
            f"{(L - 1) // 2 * voxel_size:.1f}; a larger L or voxel_size is wanted"
        )
    sigma = _SIGMA_OF_RESOLUTION * resolution / voxel_size
    # A Gaussian much narrower than a voxel must be sampled more finely, or its transform would alias.
    fine = 1 if sigma >= 0.9 else 2
    density = _sum_of_gaussians(positions * fine, weights, fine * L, sigma * fine)
    if fine > 1:
        density = fourier_crop(density, L, ndim=3)
    return np.ascontiguousarray(density * (fine / voxel_size) ** 3, dtype=np.float32)


def _sum_of_gaussians(positions, weights, L, sigma):
    """Normalised Gaussians about positions in voxels relative to voxel L // 2, periodic; float32 (L, L,
    L)."""
    density = np.zeros(L**3)
    half = int(np.ceil(5 * sigma))
    offsets = np.arange(-half, half + 1)
    chunk = max(1, 2**21 // len(offsets) ** 3)
    for start in range(0, len(positions), chunk):
        center = positions[start : start + chunk] + L // 2
        nearest = np.rint(center).astype(np.intp)
        index = (nearest[:, :, None] + offsets) % L  # (m, xyz, w)
        bells = np.exp(-0.5 * ((nearest[:, :, None] + offsets - center[:, :, None]) / sigma) ** 2)
        bells /= np.sqrt(2 * np.pi) * sigma
        bells[:, 0] *= weights[start : start + chunk, None]
        flat = (index[:, 2, :, None, None] * L + index[:, 1, None, :, None]) * L + index[:, 0, None, None, :]
        value = bells[:, 2, :, None, None] * bells[:, 1, None, :, None] * bells[:, 0, None, None, :]
        np.add.at(density, flat.ravel(), value.ravel())
    return density.reshape(L, L, L).astype(np.float32)


def _read_atoms(structure, waters):
    """Positions (n, 3) in Angstrom and weights (n,) of a model's atoms."""
    if isinstance(structure, str | os.PathLike):
        path = os.fspath(structure)
        if not os.path.exists(path):
            raise FileNotFoundError(f"structure: there is no file {path}")
        structure = gemmi.read_structure(path)
    if isinstance(structure, gemmi.Structure):
        if not len(structure):
            raise ValueError("structure holds no model; one with atoms is wanted")
        structure = structure[0]
    if not isinstance(structure, gemmi.Model):
        kind = type(structure).__name__
        raise TypeError(f"structure is a {kind}; a path, a gemmi.Structure or a gemmi.Model is wanted")
    atoms = [
        (*atom.pos.tolist(), atom.occ * sum(atom.element.c4322.get_coefs()[:5]))
        for chain in structure
        for residue in chain
        if waters or not residue.is_water()
        for atom in residue
    ]
    if not atoms:
        raise ValueError("structure holds no atoms; at least one is wanted")
    atoms = np.array(atoms)
    if not atoms[:, 3].sum() > 0:
        raise ValueError("structure holds no atom with a positive occupancy")
    return atoms[:, :3], atoms[:, 3]
