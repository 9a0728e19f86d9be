"""SO(3): sampling, RELION's angles, grids, means, alignment up to gauge."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.spatial.transform import Rotation
from scipy.stats import kstest

from skcryo.rotations import (
    align_rotations,
    check_rotations,
    geodesic_distance,
    in_plane_rotation,
    mean_rotation,
    random_rotations,
    refine_so3_grid,
    relion_from_rotations,
    rotations_from_relion,
    so3_grid,
    sphere_grid,
    viewing_directions,
)

J = np.diag([1.0, 1.0, -1.0])


def noisy(rotations, sigma_deg, seed):
    steps = np.radians(sigma_deg) * np.random.default_rng(seed).standard_normal((len(rotations), 3))
    return rotations @ Rotation.from_rotvec(steps).as_matrix()


def nearest(rotations, grid):
    """Angle to the nearest element of the grid."""
    trace = rotations.reshape(-1, 9) @ grid.reshape(-1, 9).T
    return np.arccos(np.clip((trace.max(axis=1) - 1) / 2, -1, 1))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_random_rotations_are_haar(seed):
    rotations = random_rotations(2000, random_state=seed)
    check_rotations(rotations, 2000, tol=1e-12)
    assert_array_equal(rotations, random_rotations(2000, random_state=seed))
    # Haar: the angle has density (1 - cos t) / pi and the viewing direction is uniform on the sphere. Uniform
    # Euler angles, or a uniform angle, give p-values below 1e-20.
    angle = geodesic_distance(rotations, np.eye(3))
    assert kstest(angle, lambda t: (t - np.sin(t)) / np.pi).pvalue > 1e-3
    assert kstest(viewing_directions(rotations) @ [0.6, 0.0, 0.8], lambda z: (z + 1) / 2).pvalue > 1e-3


def test_rotations_are_the_transpose_of_relions_matrix():
    angles = np.random.default_rng(0).uniform([-180, 0, -180], [180, 180, 180], (20, 3))
    for (rot, tilt, psi), rotation in zip(angles, rotations_from_relion(angles)):
        a, b, g = np.radians([rot, tilt, psi])
        ca, sa, cb, sb, cg, sg = np.cos(a), np.sin(a), np.cos(b), np.sin(b), np.cos(g), np.sin(g)
        # Heymann, Chagoyen, Belnap, J. Struct. Biol. 151 (2005): Rz(psi) Ry(tilt) Rz(rot), passive rotations.
        relion = np.array(
            [
                [cg * cb * ca - sg * sa, cg * cb * sa + sg * ca, -cg * sb],
                [-sg * cb * ca - cg * sa, -sg * cb * sa + cg * ca, sg * sb],
                [sb * ca, sb * sa, cb],
            ]
        )
        assert_allclose(rotation, relion.T, atol=1e-12)
        same = Rotation.from_euler("ZYZ", [rot, tilt, psi], degrees=True).as_matrix()
        assert_allclose(rotation, same, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("tilt", [None, 0.0, 180.0, 1e-9, 1e-4, 180 - 1e-5])
def test_relion_angles_round_trip(tilt, dtype):
    angles = np.random.default_rng(1).uniform([-180, 0, -180], [180, 180, 180], (50, 3))
    if tilt is not None:
        angles[:, 1] = tilt
    rotations = rotations_from_relion(angles).astype(dtype)
    back = relion_from_rotations(rotations)
    # Near the poles rot and psi are ill determined one by one, the rotation is not.
    limit = 1e-7 if dtype == np.float64 else 1e-6
    assert geodesic_distance(rotations_from_relion(back), rotations).max() < limit
    assert (back[:, 1] >= 0).all() and (back[:, 1] <= 180).all()
    if tilt is None and dtype == np.float64:
        assert_allclose(back, angles, atol=1e-9)
    if tilt in (0.0, 180.0) and dtype == np.float64:
        assert_array_equal(back[:, 0], 0.0)


def test_psi_of_a_rotated_image():
    """An image rotated by a is the projection at R @ Rz(-a): rot and tilt stay, psi falls by a."""
    angles = np.array([[30.0, 50.0, 70.0], [-20.0, 100.0, 5.0]])
    a = np.array([12.0, -33.0])
    turned = rotations_from_relion(angles) @ in_plane_rotation(-np.radians(a))
    assert_allclose(relion_from_rotations(turned), angles - np.stack([0 * a, 0 * a, a], axis=1), atol=1e-9)


@pytest.mark.parametrize("angle", [0.0, 1e-12, 1e-8, 1e-3, 1.0, 3.0, np.pi - 1e-7, np.pi])
def test_geodesic_distance_is_accurate_everywhere(angle):
    base = random_rotations(4, random_state=0)
    axis = np.array([2.0, -1.0, 2.0]) / 3
    other = base @ Rotation.from_rotvec(angle * axis).as_matrix()
    # arccos of the trace would be wrong by 1e-8 near 0.
    assert_allclose(geodesic_distance(base, other), angle, rtol=1e-7, atol=1e-14 if angle < 1 else 1e-7)
    assert geodesic_distance(base[:, None], base[None]).shape == (4, 4)


def test_mean_rotation():
    base = random_rotations(1, random_state=3)[0]
    cloud = noisy(np.repeat(base[None], 4000, axis=0), 20, seed=0)
    assert np.degrees(geodesic_distance(mean_rotation(cloud), base)) < 1.5
    pair = base @ in_plane_rotation([0.0, 0.4])
    assert_allclose(mean_rotation(pair, weights=[0, 1]), pair[1], atol=1e-12)
    # The mean of rotations that are all over the place is still a rotation.
    check_rotations(mean_rotation(random_rotations(5, random_state=0)), tol=1e-12)
    with pytest.raises(ValueError, match="weights must have shape"):
        mean_rotation(pair, weights=[1])
    with pytest.raises(ValueError, match="must not be negative"):
        mean_rotation(pair, weights=[-1, 2])


@pytest.mark.parametrize("reflected", [False, True])
@pytest.mark.parametrize("n", [2, 3, 50])
def test_align_is_exact_on_exact_input(n, reflected):
    truth, gauge = random_rotations(n, random_state=n), random_rotations(1, random_state=9)[0]
    estimated = gauge.T @ truth
    if reflected:
        estimated = J @ estimated @ J
    aligned, found, hand = align_rotations(estimated, truth)
    assert hand is reflected
    assert_allclose(aligned, truth, atol=1e-10)
    again = J @ estimated @ J if hand else estimated
    assert_allclose(found @ again, aligned, atol=1e-12)
    if reflected and n > 2:
        forced, _, hand = align_rotations(estimated, truth, reflection=False)
        assert hand is False
        assert np.degrees(geodesic_distance(forced, truth).mean()) > 20


@pytest.mark.parametrize("kind", ["random", "conspiring"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_align_withstands_outliers(kind, seed):
    """A fifth of the poses is wrong, at random or all by one rotation (which puts a chordal mean off)."""
    n, bad = 100, 20
    truth, gauge = random_rotations(n, random_state=seed), random_rotations(1, random_state=seed + 50)[0]
    estimated = noisy(truth, 2, seed)
    if kind == "random":
        estimated[:bad] = random_rotations(bad, random_state=seed + 100)
    else:
        estimated[:bad] = Rotation.from_rotvec([1.2, 0, 0]).as_matrix() @ estimated[:bad]
    estimated = J @ (gauge.T @ estimated) @ J
    aligned, _, reflected = align_rotations(estimated, truth)
    assert reflected
    assert np.degrees(np.median(geodesic_distance(aligned[bad:], truth[bad:]))) < 4
    # The gauge itself: noise of 2 degrees over 80 poses leaves 0.3 degrees.
    error = mean_rotation(aligned[bad:] @ np.swapaxes(truth[bad:], 1, 2))
    assert np.degrees(geodesic_distance(error, np.eye(3))) < 1.0
    if kind == "conspiring":
        again = J @ estimated @ J
        chordal = mean_rotation(truth @ np.swapaxes(again, 1, 2))
        off = mean_rotation((chordal @ again)[bad:] @ np.swapaxes(truth[bad:], 1, 2))
        assert np.degrees(geodesic_distance(off, np.eye(3))) > 8


def test_align_withstands_a_majority_that_agrees_only_barely():
    """With 45 % of random poses the inliers are still met exactly."""
    truth = random_rotations(200, random_state=0)
    estimated = truth.copy()
    estimated[:90] = random_rotations(90, random_state=1)
    aligned, gauge, reflected = align_rotations(estimated, truth)
    assert not reflected
    assert_allclose(gauge, np.eye(3), atol=1e-6)
    assert_allclose(aligned[90:], truth[90:], atol=1e-6)


def ring_scheme(n_side):
    """Pixel centres by Gorski et al. (2005), equations 2 to 9: index after index, ring after ring."""
    out = []
    for p in range(12 * n_side**2):
        q = 12 * n_side**2 - 1 - p
        cap = min(p, q)
        if cap < 2 * n_side * (n_side - 1):
            i = int((1 + np.sqrt(1 + 2 * cap)) / 2)
            j = cap + 1 - 2 * i * (i - 1)
            z = 1 - i**2 / (3 * n_side**2)
            phi = np.pi / (2 * i) * (j - 0.5)
            if q < p:
                z, phi = -z, -phi
        else:
            t = p - 2 * n_side * (n_side - 1)
            i, j = t // (4 * n_side) + n_side, t % (4 * n_side) + 1
            z = 4 / 3 - 2 * i / (3 * n_side)
            phi = np.pi / (2 * n_side) * (j - ((i - n_side + 1) % 2) / 2)
        out.append([np.sqrt(1 - z * z) * np.cos(phi), np.sqrt(1 - z * z) * np.sin(phi), z])
    return np.array(out)


@pytest.mark.parametrize("n_side", [1, 2, 4, 8])
def test_sphere_grid_has_the_healpix_centres(n_side):
    grid, ring = sphere_grid(n_side), ring_scheme(n_side)
    assert_allclose(np.linalg.norm(grid, axis=1), 1, atol=1e-14)
    product = grid @ ring.T
    best = product.argmax(axis=1)
    assert_array_equal(np.sort(best), np.arange(len(grid)))
    assert_allclose(grid, ring[best], atol=1e-12)


@pytest.mark.parametrize("n_side", [1, 2, 4, 8])
def test_sphere_grid_is_nested(n_side):
    parents, children = sphere_grid(n_side), sphere_grid(2 * n_side).reshape(-1, 4, 3)
    own = np.einsum("pi,pci->pc", parents, children)
    # A child lies nearest to its own parent, but for corners where the boundary is no Voronoi edge.
    assert ((children @ parents.T).argmax(axis=-1) == np.arange(len(parents))[:, None]).mean() > 0.9
    assert np.degrees(np.arccos(own.min())) < 36 / n_side
    centre = children.mean(axis=1)
    centre /= np.linalg.norm(centre, axis=1, keepdims=True)
    assert np.degrees(np.arccos((centre * parents).sum(axis=1).min())) < 6 / n_side


def test_so3_grid_is_uniform():
    grid = so3_grid(4)
    check_rotations(grid, 12 * 16 * 24, tol=1e-12)
    assert np.abs(grid.mean(axis=0)).max() < 1e-12
    # Haar: E[R_ij R_kl] = delta_ik delta_jl / 3; uniform Euler angles give an error of 0.17.
    second = np.einsum("nij,nkl->ijkl", grid, grid) / len(grid)
    assert_allclose(second, np.einsum("ik,jl->ijkl", np.eye(3), np.eye(3)) / 3, atol=3e-3)
    # Every cell catches its share of random rotations: 72 cells, 20000 draws, 278 +- 17 in each.
    coarse = so3_grid(1)
    draws = random_rotations(20000, random_state=0)
    share = np.bincount((draws.reshape(-1, 9) @ coarse.reshape(-1, 9).T).argmax(axis=1), minlength=72)
    assert share.min() > 0.5 * share.mean() and share.max() < 1.6 * share.mean()


def test_so3_grid_covering_radius_halves():
    draws = random_rotations(2000, random_state=1)
    radius = [np.degrees(nearest(draws, so3_grid(n_side)).max()) for n_side in (1, 2, 4)]
    assert radius[0] < 56
    assert 0.4 < radius[1] / radius[0] < 0.55
    assert 0.4 < radius[2] / radius[1] < 0.55


@pytest.mark.parametrize("n_side, n_psi", [(1, None), (2, None), (4, None), (2, 9)])
def test_refinement(n_side, n_psi):
    grid = so3_grid(n_side, n_psi)
    children, rotations = refine_so3_grid(np.arange(len(grid)), n_side, n_psi)
    finer = so3_grid(2 * n_side, 2 * (n_psi or 6 * n_side))
    assert_array_equal(np.sort(children.ravel()), np.arange(len(finer)))  # each cell has one parent
    assert_allclose(rotations, finer[children], atol=1e-12)
    # Children that keep the in-plane angle as a number lie 48 to 55 degrees away near the south pole.
    distance = np.degrees(geodesic_distance(rotations, grid[:, None]))
    assert distance.max() < 45 / n_side
    some = [3, 17]
    assert_array_equal(refine_so3_grid(some, n_side, n_psi)[0], children[some])
    assert_allclose(so3_grid(n_side, n_psi, cells=some), grid[some], atol=1e-12)


def test_hierarchical_search_finds_the_nearest():
    """Descent through four levels, eight cells wide, ends within the covering radius of the last."""
    targets = random_rotations(40, random_state=2)
    # and some that look along the south pole
    south = Rotation.from_rotvec([np.pi - 0.05, 0, 0]).as_matrix() @ in_plane_rotation(np.linspace(0, 6, 10))
    for target in np.concatenate([targets, south]):
        cells = np.argsort(geodesic_distance(so3_grid(1), target))[:8]
        for n_side in (1, 2, 4):
            children, rotations = refine_so3_grid(cells, n_side)
            distance = geodesic_distance(rotations, target).ravel()
            order = np.argsort(distance)[:8]
            cells = children.ravel()[order]
        assert np.degrees(distance[order[0]]) < 6.5


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: check_rotations(np.zeros((3, 2))), r"must have shape \(n, 3, 3\), got"),
        (lambda: check_rotations(np.eye(3)[None], 4, name="poses"), "poses has 1 matrices, 4 are wanted"),
        (lambda: check_rotations(np.stack([np.eye(3), 2 * np.eye(3)])), r"rotations\[1\] is not orthog"),
        (lambda: check_rotations(np.full((1, 3, 3), np.nan)), r"rotations\[0\] is not orthogonal"),
        (lambda: check_rotations(np.stack([np.eye(3), J])), r"rotations\[1\] is a reflection"),
        (lambda: rotations_from_relion([1, 2, 3]), r"angles_deg must have shape \(n, 3\)"),
        (lambda: align_rotations(np.eye(3)[None], np.stack([np.eye(3)] * 2)), "reference has 2 matrices"),
        (lambda: align_rotations(np.empty((0, 3, 3)), np.empty((0, 3, 3))), "estimated is empty"),
        (lambda: mean_rotation(np.empty((0, 3, 3))), "rotations is empty"),
        (lambda: geodesic_distance(np.eye(2), np.eye(3)), r"shape \(\.\.\., 3, 3\)"),
        (lambda: sphere_grid(3), "n_side must be a power of two, got 3"),
        (lambda: sphere_grid(1, [12]), r"pixels must lie in \[0, 12\)"),
        (lambda: so3_grid(1, cells=[72]), r"cells must lie in \[0, 72\)"),
        (lambda: so3_grid(1, 0), "n_psi must be a positive integer"),
    ],
)
def test_errors_name_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()
