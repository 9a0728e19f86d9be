"""Protein-like molecules made of pseudo-residues: asymmetric, of several domains, with a hinge and a
ligand."""

import functools
import numbers

import numpy as np
import scipy.fft
from sklearn.utils import check_random_state

from ._spectrum import STANDARD_BOX, apply_gains, check_positive, shell_gains, standard_power

_STEP = 5.0  # Angstrom between pseudo-residues along a helix
_SIGMA = 4.5  # Angstrom, width of a pseudo-residue
_SPACING = 11.0  # Angstrom, distance at which two helices pack
_BAND = 32  # shells of the standard box in which the density lives
_LIGAND_SIGMA = 13.0  # Angstrom


def make_molecule(
    L=64,
    *,
    hinge=0.0,
    ligand=False,
    symmetry=1,
    spectrum="standard",
    voxel_size=None,
    random_state=0,
):
    """Make the density of a protein-like molecule of several domains.

    Helix-like rods of pseudo-residues pack into a dense core and seven domains of different sizes around it,
    about 260 Angstrom across, without any symmetry and different from every side. The same `random_state`
    always gives the same molecule: `hinge` and `ligand` change only what their names say, so that states of
    one molecule compare.

    Parameters
    ----------
    L : int, default=64
        Box size in voxels.
    hinge : float, default=0.0
        Degrees by which one domain is turned about an axis through its contact with the core.
    ligand : bool or float, default=False
        Whether a compact ball is bound to the core. A number is the power of the ball relative to the whole
        molecule's (sum of squares); True stands for 0.1.
    symmetry : int, default=1
        Number of subunits. From 2 on, the molecule is a ring of that many subunits of three domains about the
        z axis; rings of different numbers are built of the same subunit.
    spectrum : {"standard"} or None, default="standard"
        "standard" gives the state without turn and ligand the radial power of `STANDARD_SPECTRUM` at each
        physical frequency, and other states the very same filter. None leaves the density as it comes from
        its residues, down to 10 Angstrom: nearly all its power is one smooth blob, which makes a harder data
        set at an equal signal-to-noise ratio.
    voxel_size : float, default=None
        In Angstrom; None puts the molecule in a box of 320 Angstrom whatever `L` is.
    random_state : int, RandomState instance or None, default=0
        Which molecule.

    Returns
    -------
    volume : ndarray of shape (L, L, L), float32
        Density ``V[z, y, x]``, the state without turn and ligand centred at voxel ``L // 2`` (centre of mass
        of its residues), about 1 where it is densest. Boxes of different `L` and equal side hold the same
        Fourier coefficients.

    Raises
    ------
    ValueError
        If `L` is below 8, the molecule does not fit into ``L * voxel_size``, or `symmetry` or `ligand` is out
        of range.

    Examples
    --------
    >>> from skcryo.datasets import make_molecule
    >>> closed, open_ = make_molecule(32), make_molecule(32, hinge=30)
    >>> closed.shape, closed.dtype
    ((32, 32, 32), dtype('float32'))
    >>> bool(abs(closed - open_).max() > 0.1)
    True
    """
    if isinstance(L, bool) or not isinstance(L, numbers.Integral) or L < 8:
        raise ValueError(f"L is {L!r}; an integer of at least 8 is wanted")
    if isinstance(symmetry, bool) or not isinstance(symmetry, numbers.Integral) or symmetry < 1:
        raise ValueError(f"symmetry is {symmetry!r}; an integer of at least 1 is wanted")
    if not np.isscalar(ligand) or not 0 <= float(ligand) < np.inf:
        raise ValueError(f"ligand is {ligand!r}; True, False or a share of the molecule's power is wanted")
    if spectrum is not None and not (isinstance(spectrum, str) and spectrum == "standard"):
        raise ValueError(f'spectrum is {spectrum!r}; "standard" or None is wanted')
    if not np.isfinite(hinge):
        raise ValueError(f"hinge is {hinge}; a finite angle in degrees is wanted")
    voxel_size = STANDARD_BOX / L if voxel_size is None else check_positive(voxel_size, "voxel_size")

    seed = random_state if isinstance(random_state, numbers.Integral) else None
    parts = (
        _cached_parts(int(seed), int(symmetry)) if seed is not None else _parts(random_state, int(symmetry))
    )
    box = L * voxel_size
    needed = 2 * parts["extent"]
    if box < needed:
        raise ValueError(
            f"the box of {box:.0f} Angstrom (L * voxel_size) is too small; at least {needed:.0f} is wanted"
        )

    # The base state on the standard lattice settles the filter and the scale of every state.
    k = np.arange(-_BAND, _BAND + 1) / STANDARD_BOX
    base = _transform(*_positions(parts, 0.0), k)
    radius = _lattice_radius(k) * STANDARD_BOX
    if spectrum is None:
        gains = np.ones(_BAND + 1)
    else:
        gains = shell_gains(np.abs(base) ** 2, radius, standard_power(np.arange(_BAND + 1)))
    base = base * apply_gains(radius, gains)
    scale = 1.0 / _to_volume(base, 2 * _BAND).max()

    half = min((L - 1) // 2, int(_BAND * box / STANDARD_BOX))
    k = np.arange(-half, half + 1) / box
    radius = _lattice_radius(k) * STANDARD_BOX
    transform = _transform(*_positions(parts, hinge), k)
    if ligand:
        ball = _ligand(parts, np.arange(-_BAND, _BAND + 1) / STANDARD_BOX)
        ball = ball * apply_gains(_lattice_radius(np.arange(-_BAND, _BAND + 1)), gains)
        share = 0.1 if ligand is True else float(ligand)
        weight = np.sqrt(share * (np.abs(base) ** 2).sum() / (np.abs(ball) ** 2).sum())
        transform = transform + weight * _ligand(parts, k)
    transform = transform * (
        apply_gains(radius, gains) * scale * (2 * _BAND / STANDARD_BOX * voxel_size) ** -3
    )
    return np.ascontiguousarray(_to_volume(transform, L), dtype=np.float32)


# -- residues
# ---------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=16)
def _cached_parts(seed, symmetry):
    return _parts(seed, symmetry)


def _parts(random_state, symmetry):
    """Residues of one subunit, what the hinge and the ligand need, and how subunits are placed."""
    rng = check_random_state(random_state)
    return _single(rng) if symmetry == 1 else _ring(rng, symmetry)


def _unit(vector):
    return vector / np.linalg.norm(vector)


def _random_frame(rng):
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return q * np.linalg.det(q)


def _pack(rng, semi_axes):
    """Residues of helix-like rods packed in an ellipsoid centred at the origin, (n, 3) in Angstrom."""
    frame = _random_frame(rng)
    n_wanted = int(4 / 3 * np.pi * np.prod(semi_axes) / (_STEP * 1.2 * _SPACING**2))
    points = np.empty((0, 3))
    current = np.zeros(3)
    while len(points) < n_wanted:
        ends = rng.normal(size=(24, 3))
        ends *= (rng.uniform(size=(24, 1)) ** (1 / 3)) / np.linalg.norm(ends, axis=1, keepdims=True)
        ends = ends * semi_axes
        lengths = np.linalg.norm(ends - current, axis=1)
        # A helix or strand is 15 to 50 Angstrom long; among those the one that passes farthest from what is
        # there.
        probes = current + (ends - current)[:, None] * np.array([0.35, 0.65, 1.0])[None, :, None]
        crowding = np.abs(lengths - np.clip(lengths, 15.0, 50.0)) / 10
        if len(points):
            distances = np.linalg.norm(probes[:, :, None] - points[None, None], axis=-1)
            crowding += np.exp(-0.5 * (distances / (0.6 * _SPACING)) ** 2).sum((1, 2))
        end = ends[np.argmin(crowding)]
        n_steps = max(2, int(np.linalg.norm(end - current) / _STEP))
        rod = current + (end - current) * (np.arange(1, n_steps + 1) / n_steps)[:, None]
        points = np.concatenate([points, rod])
        current = end
    return points[:n_wanted] @ frame.T


def _spread_directions(rng, n, min_degrees):
    """Unit vectors at random, every two at least `min_degrees` apart."""
    chosen, tries = [], 0
    while len(chosen) < n:
        candidate = _unit(rng.normal(size=3))
        tries += 1
        if all(candidate @ other < np.cos(np.deg2rad(min_degrees)) for other in chosen):
            chosen.append(candidate)
        elif tries % 200 == 0:
            chosen = []
    return np.array(chosen)


def _free_turn(points, others, pivot, axes):
    """The axis about which a turn by 40 degrees brings `points` least close to `others`."""
    best = None
    for axis in axes:
        turned = (points - pivot) @ _turn(axis, 40.0).T + pivot
        distances = np.linalg.norm(turned[::4, None] - others[None, ::4], axis=-1)
        clash = np.exp(-0.5 * (distances / _SPACING) ** 2).sum()
        if best is None or clash < best[0]:
            best = clash, axis
    return best[1]


def _single(rng):
    core = _pack(rng, np.array([76.0, 60.0, 48.0]))
    sizes = np.array([52.0, 47.0, 42.0, 37.0, 32.0, 28.0, 24.0]) * rng.uniform(0.94, 1.06, 7)
    weights = rng.uniform(0.8, 1.15, 7)
    directions = _spread_directions(rng, 7, 46)
    domains = []
    for size, direction in zip(sizes, directions):
        aspect = rng.uniform(0.8, 1.25, 3)
        surface = np.quantile(core @ direction, 0.99)
        domains.append(
            _pack(rng, size * aspect / np.prod(aspect) ** (1 / 3)) + (surface + 0.62 * size) * direction
        )
    # The second largest domain turns: large enough to be seen, small enough to leave the rest in place.
    moving, direction = domains[1], directions[1]
    rest = np.concatenate([core] + [d for i, d in enumerate(domains) if i != 1])
    pivot = np.quantile(core @ direction, 0.99) * direction
    tangent = _unit(np.cross(direction, _random_frame(rng)[0]))
    angles = np.arange(12) * np.pi / 6
    axes = np.cos(angles)[:, None] * tangent + np.sin(angles)[:, None] * np.cross(direction, tangent)
    axis = _free_turn(moving, rest, pivot, axes)
    # The ligand binds where the core is barest.
    everything = np.concatenate([core, *domains])
    sites = _spread_directions(rng, 30, 20)
    places = sites * (np.array([np.quantile(core @ s, 0.99) for s in sites]) + 1.2 * _LIGAND_SIGMA)[:, None]
    crowd = [np.exp(-0.5 * (np.linalg.norm(everything - p, axis=1) / 18) ** 2).sum() for p in places]
    return _assemble(
        [core * 1.0, *domains],
        np.concatenate([[1.25], weights]),
        2,
        pivot,
        axis,
        places[np.argmin(crowd)],
        [np.eye(3)],
    )


def _ring(rng, n):
    """A ring of n subunits; each a foot, a body and a head that leans outwards."""
    width = 46.0
    turns = [_turn(np.array([0.0, 0.0, 1.0]), 360 * i / n) for i in range(n)]
    centre = np.array([width / (2 * np.sin(np.pi / n)), 0.0, 0.0])
    lean = rng.uniform(-8, 8, (3, 3))
    body = _pack(rng, np.array([24.0, 19.0, 26.0])) + np.array([2.0, 0.0, 0.0])
    foot = _pack(rng, np.array([15.0, 14.0, 17.0])) + np.array([-4.0, 8.0, -36.0]) + lean[0] / 2
    head_at = np.array([24.0, -7.0, 30.0]) + lean[1] / 2
    head = _pack(rng, np.array([21.0, 15.0, 14.0])) + head_at
    pivot = 0.5 * head_at + np.array([2.0, 0.0, 4.0])
    axes = [np.array([0.0, s, 0.0]) for s in (-1.0, 1.0)]
    axis = _free_turn(head, np.concatenate([body, foot]), pivot, axes)
    site = np.array([30.0, 4.0, -12.0])
    parts = [p + centre for p in (body, foot, head)]
    return _assemble(parts, np.array([1.2, 0.9, 1.0]), 2, pivot + centre, axis, site + centre, turns)


def _assemble(domains, weights, moving, pivot, axis, site, turns):
    points = np.concatenate(domains)
    mass = np.repeat(weights, [len(d) for d in domains])
    is_moving = np.repeat(np.arange(len(domains)) == moving, [len(d) for d in domains])
    centre = (mass[:, None] * points).sum(0) / mass.sum()
    if len(turns) > 1:
        centre[:2] = 0.0
    points, pivot, site = points - centre, pivot - centre, site - centre
    # A turned domain stays within the sphere about its pivot, and the box must hold every state.
    reach = np.linalg.norm(pivot) + np.linalg.norm(points[is_moving] - pivot, axis=1).max()
    extent = max(np.linalg.norm(points, axis=1).max(), reach, np.linalg.norm(site) + 2 * _LIGAND_SIGMA)
    return dict(
        points=points,
        mass=mass,
        is_moving=is_moving,
        pivot=pivot,
        axis=axis,
        site=site,
        turns=turns,
        extent=extent,
    )


def _turn(axis, degrees):
    """Rotation matrix about a unit axis (Rodrigues)."""
    angle = np.deg2rad(degrees)
    x, y, z = axis
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def _positions(parts, hinge):
    """Coordinates and weights of all residues of a state."""
    points = parts["points"]
    if hinge:
        turned = (points - parts["pivot"]) @ _turn(parts["axis"], hinge).T + parts["pivot"]
        points = np.where(parts["is_moving"][:, None], turned, points)
    return np.concatenate([points @ turn.T for turn in parts["turns"]]), np.tile(
        parts["mass"], len(parts["turns"])
    )


# -- density
# ----------------------------------------------------------------------------------------------------------


def _lattice_radius(k):
    return np.sqrt(k[:, None, None] ** 2 + k[None, :, None] ** 2 + k[None, None, :] ** 2)


def _transform(points, mass, k, sigma=_SIGMA):
    """Continuous Fourier transform of Gaussians on the lattice k x k x k (cycles per Angstrom), (kz, ky,
    kx)."""
    half = len(k) // 2
    waves = [np.exp(-2j * np.pi * np.outer(k, points[:, i])).astype(np.complex64) for i in range(3)]
    result = np.empty((len(k),) * 3, dtype=np.complex64)
    weighted = waves[0].T * mass[:, None].astype(np.float32)
    for i in range(half, len(k)):  # the other half is its conjugate: densities are real
        result[i] = (waves[1] * waves[2][i]) @ weighted
    result[:half] = np.conj(result[:half:-1, ::-1, ::-1])
    return result * np.exp(-2 * (np.pi * sigma * _lattice_radius(k)) ** 2)


def _ligand(parts, k):
    sites = np.array([turn @ parts["site"] for turn in parts["turns"]])
    return _transform(sites, np.ones(len(sites)), k, sigma=_LIGAND_SIGMA)


def _to_volume(transform, L):
    """Real density of a centred lattice of 2 h + 1 coefficients a side in a box of L > 2 h voxels (or L = 2
    h)."""
    half = len(transform) // 2
    if L == 2 * half:  # the highest frequency has no partner in an even box
        transform, half = transform[1:-1, 1:-1, 1:-1], half - 1
    spread = np.zeros((L, L, L), dtype=np.complex64)
    inside = slice(L // 2 - half, L // 2 + half + 1)
    spread[inside, inside, inside] = transform
    return scipy.fft.fftshift(scipy.fft.ifftn(scipy.fft.ifftshift(spread))).real
