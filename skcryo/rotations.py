"""Rotations of three-dimensional space: sampling, Euler angles, grids, averages, alignment up to gauge.

A pose is a matrix ``R`` with ``I(x, y) = integral of V(R (x, y, z)^T) dz``: the image plane is spanned by
``R[:, 0]`` and ``R[:, 1]``, the viewing direction is ``R[:, 2]``. Arrays of rotations have the shape
``(n, 3, 3)`` and are float64.
"""

import numpy as np
from scipy.spatial.transform import Rotation
from sklearn.utils import check_random_state

__all__ = [
    "align_rotations",
    "check_rotations",
    "geodesic_distance",
    "in_plane_rotation",
    "mean_rotation",
    "random_rotations",
    "refine_so3_grid",
    "relion_from_rotations",
    "rotations_from_relion",
    "so3_grid",
    "sphere_grid",
    "viewing_directions",
]

_REFLECTION = np.diag([1.0, 1.0, -1.0])


def check_rotations(rotations, n=None, *, name="rotations", tol=1e-3):
    """Validate rotation matrices.

    Parameters
    ----------
    rotations : array-like of shape (n, 3, 3) or (3, 3)
        One matrix becomes a stack of one.
    n : int, default=None
        The number of matrices that there must be.
    name : str, default="rotations"
        What the messages call them.
    tol : float, default=1e-3
        Largest deviation of ``R^T R`` from the identity, element by element; single precision passes easily.

    Returns
    -------
    ndarray of shape (n, 3, 3), float64

    Raises
    ------
    ValueError
        If the shape is wrong, or a matrix is not orthogonal or has a negative determinant; the message gives
        the index of the first one.

    Examples
    --------
    >>> import numpy as np
    >>> from skcryo.rotations import check_rotations
    >>> check_rotations(np.eye(3)).shape
    (1, 3, 3)
    """
    rotations = np.asarray(rotations, dtype=np.float64)
    if rotations.ndim == 2:
        rotations = rotations[None]
    if rotations.ndim != 3 or rotations.shape[1:] != (3, 3):
        raise ValueError(f"{name} must have shape (n, 3, 3), got {rotations.shape}")
    if n is not None and len(rotations) != n:
        raise ValueError(f"{name} has {len(rotations)} matrices, {n} are wanted")
    if len(rotations) == 0:
        return rotations
    error = np.abs(np.swapaxes(rotations, 1, 2) @ rotations - np.eye(3)).max(axis=(1, 2))
    bad = np.flatnonzero(~(error <= tol))  # the negation also catches NaN
    if len(bad):
        raise ValueError(
            f"{name}[{bad[0]}] is not orthogonal: R^T R differs from the identity by {error[bad[0]]:.3g} "
            f"({len(bad)} of {len(rotations)} matrices are bad)"
        )
    bad = np.flatnonzero(np.linalg.det(rotations) < 0)
    if len(bad):
        raise ValueError(
            f"{name}[{bad[0]}] is a reflection (determinant -1), a rotation is wanted "
            f"({len(bad)} of {len(rotations)} matrices are bad)"
        )
    return rotations


def random_rotations(n, random_state=None):
    """Rotations drawn uniformly (Haar measure) from SO(3).

    Parameters
    ----------
    n : int
        How many.
    random_state : int, RandomState instance or None, default=None
        Seed.

    Returns
    -------
    ndarray of shape (n, 3, 3), float64

    Examples
    --------
    >>> from skcryo.rotations import random_rotations
    >>> random_rotations(5, random_state=0).shape
    (5, 3, 3)
    """
    if n == 0:
        return np.empty((0, 3, 3))
    quaternions = check_random_state(random_state).standard_normal((n, 4))
    return Rotation.from_quat(quaternions).as_matrix()


def in_plane_rotation(angles):
    """Rotations about the z axis, ``[[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]]``.

    An image rotated by `a` (:func:`skcryo.fourier.rotate_images`) is the projection at
    ``R @ in_plane_rotation(-a)``: ``rotate(I, a)(p) = I(Rot(-a) p)`` and ``I(p) = integral V(R (p, z)) dz``.

    Parameters
    ----------
    angles : float or array-like of shape (n,)
        Radians.

    Returns
    -------
    ndarray of shape (n, 3, 3), or (3, 3) for a single angle, float64

    Examples
    --------
    >>> import numpy as np
    >>> from skcryo.rotations import in_plane_rotation
    >>> in_plane_rotation(np.pi / 2).round().astype(int)[:2, :2].tolist()
    [[0, -1], [1, 0]]
    """
    angles = np.asarray(angles, dtype=np.float64)
    rotations = np.zeros((*angles.shape, 3, 3))
    rotations[..., 0, 0] = rotations[..., 1, 1] = np.cos(angles)
    rotations[..., 1, 0] = np.sin(angles)
    rotations[..., 0, 1] = -rotations[..., 1, 0]
    rotations[..., 2, 2] = 1.0
    return rotations


def _tilt_rotation(angles):
    """Rotations about the y axis."""
    angles = np.asarray(angles, dtype=np.float64)
    rotations = np.zeros((*angles.shape, 3, 3))
    rotations[..., 0, 0] = rotations[..., 2, 2] = np.cos(angles)
    rotations[..., 0, 2] = np.sin(angles)
    rotations[..., 2, 0] = -rotations[..., 0, 2]
    rotations[..., 1, 1] = 1.0
    return rotations


def rotations_from_relion(angles_deg):
    """Rotation matrices from RELION's Euler angles.

    ``R = Rz(rot) Ry(tilt) Rz(psi)``, the transpose of the matrix that RELION itself writes.

    Parameters
    ----------
    angles_deg : array-like of shape (n, 3)
        ``rlnAngleRot``, ``rlnAngleTilt``, ``rlnAnglePsi`` in degrees.

    Returns
    -------
    ndarray of shape (n, 3, 3), float64

    Examples
    --------
    >>> import numpy as np
    >>> from skcryo.rotations import rotations_from_relion
    >>> bool(np.allclose(rotations_from_relion([[0.0, 0.0, 0.0]]), np.eye(3)))
    True
    """
    angles = np.radians(np.asarray(angles_deg, dtype=np.float64))
    if angles.ndim != 2 or angles.shape[1] != 3:
        raise ValueError(f"angles_deg must have shape (n, 3): rot, tilt, psi; got {angles.shape}")
    return in_plane_rotation(angles[:, 0]) @ _tilt_rotation(angles[:, 1]) @ in_plane_rotation(angles[:, 2])


def relion_from_rotations(rotations):
    """RELION's Euler angles of rotation matrices, the inverse of :func:`rotations_from_relion`.

    Where the tilt is 0 or 180 degrees, only the sum or difference of the other two is determined: `rot` is
    then 0.

    Parameters
    ----------
    rotations : array-like of shape (n, 3, 3)

    Returns
    -------
    ndarray of shape (n, 3), float64
        rot, tilt, psi in degrees, with rot and psi in (-180, 180] and tilt in [0, 180].

    Examples
    --------
    >>> from skcryo.rotations import relion_from_rotations, rotations_from_relion
    >>> relion_from_rotations(rotations_from_relion([[10.0, 20.0, 30.0]])).round(6).tolist()
    [[10.0, 20.0, 30.0]]
    """
    r = check_rotations(rotations)
    sine = np.hypot(r[:, 0, 2], r[:, 1, 2])
    # Below this, the direction of the axis is rounding error.
    rot = np.where(sine > 1e-7, np.arctan2(r[:, 1, 2], r[:, 0, 2]), 0.0)
    tilt = np.arctan2(sine, r[:, 2, 2])
    # The second row of Rz(-rot) R = Ry(tilt) Rz(psi) is (sin psi, cos psi, 0) at every tilt.
    c, s = np.cos(rot), np.sin(rot)
    psi = np.arctan2(c * r[:, 1, 0] - s * r[:, 0, 0], c * r[:, 1, 1] - s * r[:, 0, 1])
    return np.degrees(np.stack([rot, tilt, psi], axis=1))


def viewing_directions(rotations):
    """Viewing directions ``R[:, 2]``.

    Parameters
    ----------
    rotations : array-like of shape (n, 3, 3)

    Returns
    -------
    ndarray of shape (n, 3), float64

    Examples
    --------
    >>> import numpy as np
    >>> from skcryo.rotations import viewing_directions
    >>> viewing_directions(np.eye(3)).tolist()
    [[0.0, 0.0, 1.0]]
    """
    return check_rotations(rotations)[:, :, 2].copy()


def geodesic_distance(a, b):
    """Angle of the rotation between two rotations.

    Parameters
    ----------
    a, b : array-like of shape (..., 3, 3)
        Shapes that broadcast.

    Returns
    -------
    ndarray of shape (...), float64
        Radians in [0, pi]; exact for tiny angles as well.

    Examples
    --------
    >>> import numpy as np
    >>> from skcryo.rotations import geodesic_distance, in_plane_rotation
    >>> round(float(geodesic_distance(np.eye(3), in_plane_rotation(0.25))), 12)
    0.25
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.shape[-2:] != (3, 3) or b.shape[-2:] != (3, 3):
        raise ValueError(f"rotations must have shape (..., 3, 3), got {a.shape} and {b.shape}")
    difference = a - b
    # |A - B|_F = 2 sqrt(2) sin(angle / 2) is well conditioned at small angles, the trace at large ones.
    sine2 = np.einsum("...ij,...ij->...", difference, difference) / 8
    cosine2 = (1 + np.einsum("...ij,...ij->...", a, b)) / 4
    return 2 * np.arctan2(np.sqrt(sine2), np.sqrt(np.maximum(cosine2, 0)))


def _nearest_rotation(matrix):
    """The rotation that is nearest to each 3 x 3 matrix in the Frobenius norm."""
    u, _, vt = np.linalg.svd(matrix)
    vt = vt.copy()
    vt[..., 2, :] *= np.linalg.det(u @ vt)[..., None]
    return u @ vt


def mean_rotation(rotations, weights=None):
    """Chordal mean: the rotation with the least sum of squared Frobenius distances.

    Parameters
    ----------
    rotations : array-like of shape (n, 3, 3)
    weights : array-like of shape (n,), default=None
        Not negative; equal by default.

    Returns
    -------
    ndarray of shape (3, 3), float64

    References
    ----------
    Hartley, Trumpf, Dai, Li, "Rotation averaging", IJCV 103 (2013), section 5.3.

    Examples
    --------
    >>> from skcryo.rotations import geodesic_distance, in_plane_rotation, mean_rotation
    >>> mean = mean_rotation(in_plane_rotation([-0.1, 0.3]))
    >>> round(float(geodesic_distance(mean, in_plane_rotation(0.1))), 6)
    0.0
    """
    rotations = check_rotations(rotations)
    if len(rotations) == 0:
        raise ValueError("rotations is empty, a mean needs at least one")
    if weights is None:
        return _nearest_rotation(rotations.mean(axis=0))
    weights = np.asarray(weights, dtype=np.float64)
    if weights.shape != (len(rotations),):
        raise ValueError(f"weights must have shape ({len(rotations)},), got {weights.shape}")
    if not np.all(weights >= 0) or not weights.sum() > 0:
        raise ValueError("weights must not be negative and their sum must be positive")
    return _nearest_rotation(np.einsum("n,nij->ij", weights / weights.sum(), rotations))


def _robust_gauge(relative, max_iter=50):
    """Rotation with the least sum of chordal distances to `relative`, and its mean angle.

    The best of several starts (the chordal mean and single elements, so that many outliers do no harm), then
    iteratively reweighted means (Weiszfeld).
    """
    step = max(1, len(relative) // 32)
    starts = np.concatenate([_nearest_rotation(relative.mean(axis=0))[None], relative[::step]])
    cost = [np.linalg.norm(relative - start, axis=(1, 2)).sum() for start in starts]
    gauge = starts[int(np.argmin(cost))]
    for _ in range(max_iter):
        distance = np.linalg.norm(relative - gauge, axis=(1, 2))
        weights = 1.0 / np.maximum(distance, max(1e-9, 1e-3 * np.median(distance)))
        update = _nearest_rotation(np.einsum("n,nij->ij", weights / weights.sum(), relative))
        moved = np.linalg.norm(update - gauge)
        gauge = update
        if moved < 1e-12:
            break
    return gauge, float(geodesic_distance(relative, gauge).mean())


def align_rotations(estimated, reference, *, reflection=True):
    """Bring estimated poses into the frame of reference poses.

    Poses from images alone are known up to one global rotation ``G`` and a reflection ``R -> J R J`` with
    ``J = diag(1, 1, -1)`` (the mirrored molecule). The ``G`` with the least sum of distances
    ``|reference_i - G estimated_i|`` (not squared, so that a minority of wrong poses does not pull it) is
    found by iteratively reweighted means, for both hands, and the better hand is taken.

    Parameters
    ----------
    estimated, reference : array-like of shape (n, 3, 3)
    reflection : bool, default=True
        Whether the other hand is tried.

    Returns
    -------
    aligned : ndarray of shape (n, 3, 3), float64
        ``gauge @ estimated`` or, if `reflected`, ``gauge @ J @ estimated @ J``.
    gauge : ndarray of shape (3, 3), float64
    reflected : bool

    References
    ----------
    Wang, Singer, "Exact and stable recovery of rotations for robust synchronization",
    Information and Inference 2 (2013); Hartley et al., "Rotation averaging", IJCV 103 (2013).

    Examples
    --------
    >>> import numpy as np
    >>> from skcryo.rotations import align_rotations, random_rotations
    >>> truth = random_rotations(20, random_state=0)
    >>> aligned, gauge, reflected = align_rotations(random_rotations(1, random_state=1)[0].T @ truth, truth)
    >>> bool(np.allclose(aligned, truth)), reflected
    (True, False)
    """
    estimated = check_rotations(estimated, name="estimated")
    reference = check_rotations(reference, len(estimated), name="reference")
    if len(estimated) == 0:
        raise ValueError("estimated is empty, an alignment needs at least one pose")
    gauge, cost = _robust_gauge(reference @ np.swapaxes(estimated, 1, 2))
    reflected = False
    if reflection:
        mirrored = _REFLECTION @ estimated @ _REFLECTION
        other, other_cost = _robust_gauge(reference @ np.swapaxes(mirrored, 1, 2))
        # One pose fits either hand exactly: keep the hand that was given unless the other is really better.
        if other_cost < cost - 1e-9:
            gauge, reflected, estimated = other, True, mirrored
    return gauge @ estimated, gauge, reflected


def _check_n_side(n_side):
    if n_side < 1 or int(n_side) != n_side or int(n_side) & (int(n_side) - 1):
        raise ValueError(f"n_side must be a power of two, got {n_side}")
    return int(n_side)


def _compact_bits(values):
    """Every second bit of each integer, packed together."""
    out = np.zeros_like(values)
    for bit in range(31):
        out |= ((values >> (2 * bit)) & 1) << bit
    return out


def sphere_grid(n_side, pixels=None):
    """Centres of the HEALPix pixels, in nested order.

    All ``12 n_side^2`` pixels have the same area; pixel `p` is divided into the pixels ``4 p`` to ``4 p + 3``
    of ``2 n_side``.

    Parameters
    ----------
    n_side : int
        A power of two. Neighbours are about ``58.6 / n_side`` degrees apart.
    pixels : array-like of int, default=None
        Which pixels; all by default.

    Returns
    -------
    ndarray of shape (n_pixels, 3), float64
        Unit vectors (x, y, z).

    References
    ----------
    Gorski et al., "HEALPix: a framework for high-resolution discretization", ApJ 622 (2005), section 4;
    Calabretta, Roukema, "Mapping on the HEALPix grid", MNRAS 381 (2007), equations 1 to 8.

    Examples
    --------
    >>> from skcryo.rotations import sphere_grid
    >>> sphere_grid(4).shape
    (192, 3)
    """
    n_side = _check_n_side(n_side)
    n_pixels = 12 * n_side**2
    pixels = np.arange(n_pixels) if pixels is None else np.asarray(pixels, dtype=np.int64)
    if pixels.size and (pixels.min() < 0 or pixels.max() >= n_pixels):
        raise ValueError(f"pixels must lie in [0, {n_pixels}) at n_side={n_side}")
    face, within = pixels // n_side**2, pixels % n_side**2
    # In the plane of the projection (unit pi/4) each face is a square that stands on a corner.
    a = (_compact_bits(within) + 0.5) / n_side
    b = (_compact_bits(within >> 1) + 0.5) / n_side
    row, column = face // 4, face % 4
    x_face = 2 * column + np.where(row == 1, 0, 1)
    offset = a - b
    y = (1 - row) + a + b - 1
    distance = 2 - np.abs(y)  # to the pole, in the plane
    polar = np.abs(y) > 1
    z = np.where(polar, np.sign(y) * (1 - distance**2 / 3), 2 * y / 3)
    # sqrt(1 - z^2) without cancellation at the poles
    sine = np.where(polar, distance * np.sqrt((2 - distance**2 / 3) / 3), np.sqrt(1 - np.minimum(z * z, 1)))
    phi = (x_face + np.where(polar, offset / distance, offset)) * (np.pi / 4)
    return np.stack([sine * np.cos(phi), sine * np.sin(phi), z], axis=-1)


def _shortest_rotation(a, b):
    """The rotation of least angle that turns the unit vector a into b, which must not be its opposite."""
    axis = np.cross(a, b)
    x, y, z = np.moveaxis(axis, -1, 0)
    zero = np.zeros_like(x)
    cross = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], axis=-1).reshape(*axis.shape, 3)
    return np.eye(3) + cross + cross @ cross / (1 + (a * b).sum(axis=-1))[..., None, None]


def _frames(directions):
    """For each unit vector d, the rotation of least angle with third column d, Rz(phi) Ry(theta) Rz(-phi)."""
    return _shortest_rotation(np.array([0.0, 0.0, 1.0]), directions)


def so3_grid(n_side, n_psi=None, cells=None):
    """Uniform grid of rotations: HEALPix viewing directions times in-plane angles.

    Cell ``c`` has the direction of pixel ``c // n_psi`` of :func:`sphere_grid` and the in-plane angle
    ``2 pi (c % n_psi + 1/2) / n_psi``: the rotation is ``D @ in_plane_rotation(angle)``, where ``D`` turns
    the z axis into the direction by the shortest way. All cells have the same Haar measure.

    Parameters
    ----------
    n_side : int
        A power of two.
    n_psi : int, default=None
        Number of in-plane angles; ``6 n_side`` by default, about the same spacing as the directions.
    cells : array-like of int of any shape, default=None
        Which cells; all ``12 n_side^2 n_psi`` by default.

    Returns
    -------
    ndarray of shape (n_cells, 3, 3), or ``(*cells.shape, 3, 3)``, float64

    References
    ----------
    Yershova, Jain, LaValle, Mitchell, "Generating uniform incremental grids on SO(3) using the Hopf
    fibration", IJRR 29 (2010), section 5.

    Examples
    --------
    >>> from skcryo.rotations import so3_grid
    >>> so3_grid(1).shape
    (72, 3, 3)
    """
    n_side = _check_n_side(n_side)
    n_psi = _check_n_psi(n_side, n_psi)
    n_cells = 12 * n_side**2 * n_psi
    if cells is None:
        in_plane = in_plane_rotation(2 * np.pi * (np.arange(n_psi) + 0.5) / n_psi)
        return (_frames(sphere_grid(n_side))[:, None] @ in_plane).reshape(-1, 3, 3)
    cells = _check_cells(cells, n_cells)
    psi = 2 * np.pi * (cells % n_psi + 0.5) / n_psi
    return _frames(sphere_grid(n_side, cells // n_psi)) @ in_plane_rotation(psi)


def _check_n_psi(n_side, n_psi):
    n_psi = 6 * n_side if n_psi is None else n_psi
    if n_psi < 1 or int(n_psi) != n_psi:
        raise ValueError(f"n_psi must be a positive integer, got {n_psi}")
    return int(n_psi)


def _check_cells(cells, n_cells):
    cells = np.asarray(cells, dtype=np.int64)
    if cells.size and (cells.min() < 0 or cells.max() >= n_cells):
        raise ValueError(f"cells must lie in [0, {n_cells}), got {cells.min()} to {cells.max()}")
    return cells


def refine_so3_grid(cells, n_side, n_psi=None):
    """The eight children of cells of :func:`so3_grid`, one level finer.

    The children are the four pixels inside the cell's pixel, each with the two in-plane angles that are
    nearest after the cell's frame is carried to the child's direction by the shortest way. (The frames of the
    grid turn about the south pole: the same in-plane angle means something else in each pixel there.) The
    children of all cells are all cells of the finer grid, each once.

    Parameters
    ----------
    cells : array-like of int of shape (m,)
        Cells of ``so3_grid(n_side, n_psi)``.
    n_side, n_psi : int
        The grid of `cells`.

    Returns
    -------
    children : ndarray of shape (m, 8), int64
        Cells of ``so3_grid(2 * n_side, 2 * n_psi)``.
    rotations : ndarray of shape (m, 8, 3, 3), float64

    Examples
    --------
    >>> from skcryo.rotations import refine_so3_grid
    >>> children, rotations = refine_so3_grid([0, 5], n_side=1)
    >>> children.shape, rotations.shape
    ((2, 8), (2, 8, 3, 3))
    """
    n_side = _check_n_side(n_side)
    n_psi = _check_n_psi(n_side, n_psi)
    cells = np.atleast_1d(_check_cells(cells, 12 * n_side**2 * n_psi))
    parents = cells // n_psi
    pixels = 4 * parents[:, None] + np.arange(4)
    direction, child_direction = sphere_grid(n_side, parents)[:, None], sphere_grid(2 * n_side, pixels)
    carried = _shortest_rotation(direction, child_direction) @ _frames(direction)
    relative = np.swapaxes(_frames(child_direction), -1, -2) @ carried  # about z
    turn = np.arctan2(relative[..., 1, 0], relative[..., 0, 0])
    offset = np.rint(turn * (n_psi / np.pi)).astype(np.int64)
    psi = (2 * (cells % n_psi)[:, None, None] + offset[:, :, None] + np.arange(2)) % (2 * n_psi)
    children = (pixels[:, :, None] * (2 * n_psi) + psi).reshape(len(cells), 8)
    return children, so3_grid(2 * n_side, 2 * n_psi, children)
