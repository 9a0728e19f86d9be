"""Ways through latent space, centres, regions: closed forms, references, bad input."""

import numpy as np
import pytest
from scipy.spatial import Delaunay

from skcryo.heterogeneity import latent_centers, latent_path, nearest_images, select_latents

ANGLE = np.linspace(0, 1.5 * np.pi, 300)
ARC = np.stack([np.cos(ANGLE), np.sin(ANGLE), 0 * ANGLE], axis=1)
ARC += 0.02 * np.random.default_rng(0).normal(size=ARC.shape)
ENDS = ARC[[0, -1]]


def lengths(path):
    return np.linalg.norm(np.diff(path, axis=0), axis=1)


def test_a_graph_goes_where_images_are():
    path = latent_path(ARC, ENDS, n_points=9)
    assert np.array_equal(path[[0, -1]], ENDS) and lengths(path) == pytest.approx(lengths(path).mean(), rel=0.1)
    assert np.abs(np.linalg.norm(path, axis=1) - 1).max() < 0.06
    images = latent_path(ARC, ENDS, n_points=None)
    found = nearest_images(ARC, images)
    assert np.array_equal(ARC[found], images) and (np.diff(found) > 0).mean() > 0.8
    # and back, through a point between
    there = latent_path(ARC, ARC[[0, 150, 299]], n_points=None)
    assert np.array_equal(latent_path(ARC, ARC[[299, 150, 0]], n_points=None), there[::-1])
    assert (there == ARC[150]).all(axis=1).any()
    line = latent_path(ARC, ENDS, method="line", n_points=5)
    assert np.allclose(line, ENDS[0] + np.linspace(0, 1, 5)[:, None] * (ENDS[1] - ENDS[0]))
    assert np.array_equal(latent_path(ARC, ENDS, method="line", n_points=None), ENDS)


def brute_force(z, start, end, n_neighbors):
    """Bellman and Ford on all pairs of which one is among the other's neighbours."""
    n = len(z)
    away = np.linalg.norm(z[:, None] - z[None], axis=2)
    near = np.argsort(away, axis=1)[:, 1 : n_neighbors + 1]
    cost = np.full((n, n), np.inf)
    for i in range(n):
        cost[i, near[i]] = cost[near[i], i] = away[i, near[i]] ** 2
    total = np.where(np.arange(n) == start, 0.0, np.inf)
    for _ in range(n):
        total = np.minimum(total, (total[:, None] + cost).min(axis=0))
    return total[end]


def test_the_graphs_path_is_the_cheapest():
    z = np.random.default_rng(1).normal(size=(60, 2))
    for start, end in ((0, 1), (5, 50), (7, 7)):
        path = latent_path(z, z[[start, end]], n_points=None, n_neighbors=6)
        assert np.square(lengths(path)).sum() == pytest.approx(brute_force(z, start, end, 6), abs=1e-9)


def test_images_at_one_place_are_no_obstacle():
    z = np.repeat(np.arange(6.0), 8)[:, None] + np.zeros((1, 2))
    path = latent_path(z, z[[0, -1]], n_points=6, n_neighbors=12)
    assert np.allclose(path[:, 0], np.arange(6))


def test_clusters_are_joined_by_as_many_neighbours_as_it_takes():
    path = latent_path(TWO, TWO[[0, -1]], n_points=None)
    assert np.array_equal(path[[0, -1]], TWO[[0, -1]]) and (lengths(path) > 40).sum() == 1


def test_a_component_is_its_axis():
    random = np.random.default_rng(0)
    turn = np.linalg.qr(random.normal(size=(3, 3)))[0]
    z = random.normal(size=(2000, 3)) * [3, 1, 0.2] @ turn + 5
    for number, spread in ((0, 3), (1, 1)):
        path = latent_path(z, method="component", component=number, n_points=5)
        direction = (path[-1] - path[0]) / np.linalg.norm(path[-1] - path[0])
        assert abs(direction @ turn[number]) > 0.99 and direction[np.abs(direction).argmax()] > 0
        # 5 and 95 % of a normal distribution
        assert np.linalg.norm(path[-1] - path[0]) == pytest.approx(2 * 1.645 * spread, rel=0.1)
        assert np.abs(path.mean(axis=0) - z.mean(axis=0)).max() < 0.3
    one = latent_path(z[:, :1], n_points=4)
    assert one.shape == (4, 1) and (np.diff(one[:, 0]) > 0).all()


def test_centres_are_images_and_in_order():
    z = np.random.default_rng(0).normal(size=(400, 2)) * [4, 1]
    found = latent_centers(z, 6, random_state=0)
    assert np.array_equal(z[found.images], found.centers) and (np.diff(found.centers[:, 0]) > 0).all()
    assert np.array_equal(found.counts, np.bincount(found.labels, minlength=6)) and found.counts.sum() == 400
    for k in range(6):  # the nearest image to the mean of those that are nearest
        mean = z[found.labels == k].mean(axis=0)
        assert np.linalg.norm(z - mean, axis=1).argmin() == found.images[k]
    assert len(latent_centers(np.repeat([[0.0], [1.0]], 5, axis=0), 6, random_state=0).centers) == 2


def test_regions():
    z = np.random.default_rng(0).uniform(-1, 1, size=(500, 3))
    corners = np.array([[-0.5, -0.6], [0.7, -0.4], [0.6, 0.8], [-0.3, 0.5]])  # convex
    expected = Delaunay(corners).find_simplex(z[:, [2, 0]]) >= 0
    assert np.array_equal(select_latents(z, polygon=corners, axes=(2, 0)), expected)
    assert np.array_equal(select_latents(z, polygon=corners[::-1], axes=(2, 0)), expected)
    near = np.linalg.norm(z - [0.1, 0, 0], axis=1) <= 0.4
    assert np.array_equal(select_latents(z, center=[0.1, 0, 0], radius=0.4), near)
    both = select_latents(z, center=[0.1, 0, 0], radius=0.4, ranges={1: (None, 0.0), 0: (-0.1, 0.2)})
    assert np.array_equal(both, near & (z[:, 1] <= 0) & (z[:, 0] >= -0.1) & (z[:, 0] <= 0.2))
    star = [(0, 1), (0.6, -0.8), (-1, 0.3), (1, 0.3), (-0.6, -0.8)]  # its middle is enclosed twice
    assert select_latents([[0.0, 0.0], [0.0, 0.7]], polygon=star).tolist() == [False, True]


TWO = np.random.default_rng(0).normal(size=(60, 2)) + np.repeat([[0.0], [50.0]], 30, axis=0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: latent_path(np.ones(3)), r"embedding has shape \(3,\)"),
        (lambda: latent_path(np.ones((3, 0))), r"embedding has shape \(3, 0\)"),
        (lambda: latent_path([[0.0], [np.nan]]), r"embedding\[1\] is \[nan\]"),
        (lambda: latent_path(ARC, ENDS[:, :2]), r"points has shape \(2, 2\); finite coordinates \(m, 3\)"),
        (lambda: latent_path(ARC, ENDS[:1]), "points has 1 row"),
        (lambda: latent_path(ARC, method="walk"), "method is 'walk'"),
        (lambda: latent_path(ARC, ENDS, method="component"), "points have no meaning"),
        (lambda: latent_path(ARC, method="component", component=3), "component is 3; 0 to 2 are there"),
        (lambda: latent_path(ARC, method="component", n_points=None), "n_points is None"),
        (lambda: latent_path(ARC, n_points=1), "n_points is 1; 2 or more"),
        (lambda: latent_path(ARC, n_neighbors=300), "n_neighbors is 300; 1 to 299"),
        (lambda: latent_path(TWO, TWO[[0, -1]], n_neighbors=10), "points 0 and 1 lie in parts"),
        (lambda: latent_centers(ARC, 0), "n_centers is 0"),
        (lambda: select_latents(ARC), "no region is given"),
        (lambda: select_latents(ARC, radius=1), "center and radius are wanted together"),
        (lambda: select_latents(ARC, center=[0, 0, 0], radius=-1), "radius is -1"),
        (lambda: select_latents(ARC, center=[0, 0], radius=1), "center has shape"),
        (lambda: select_latents(ARC, ranges={3: (0, 1)}), "ranges names coordinate 3; 0 to 2 are there"),
        (lambda: select_latents(ARC, ranges={0: (1, 0)}), r"ranges\[0\] is \(1, 0\)"),
        (lambda: select_latents(ARC, polygon=[(0, 0), (1, 1)]), "polygon has shape"),
        (lambda: select_latents(ARC, polygon=ENDS[:, :2].repeat(2, 0), axes=(0, 5)), "axes names coordinate 5"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
