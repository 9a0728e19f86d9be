"""Max-K-cut: exact where the answer is known, bounded everywhere, and its kernels held to loops in NumPy."""

import itertools
import math
import warnings

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils._param_validation import InvalidParameterError

from skcryo._ext import _max_cut
from skcryo.heterogeneity import MaxKCut, max_k_cut
from skcryo.heterogeneity._max_k_cut_bound import dual_bound, smallest_eigenvalue
from skcryo.heterogeneity._max_k_cut_polish import polish
from skcryo.heterogeneity._max_k_cut_sdp import _LowRank, _tiles, padded_weights, solve_low_rank
from skcryo.rotations import random_rotations


def symmetric(upper, dtype=np.float64):
    upper = np.triu(upper, 1)
    return (upper + upper.T).astype(dtype)


def random_graph(kind, n, seed, dtype=np.float64):
    rng = np.random.default_rng(seed)
    if kind == "uniform":
        return symmetric(rng.random((n, n)), dtype)
    if kind == "normal":
        return symmetric(rng.normal(size=(n, n)), dtype)
    if kind == "sparse":
        return symmetric(rng.random((n, n)) < 0.3, dtype)
    return planted(n, int(kind), rng)[0].astype(dtype)


def planted(n, n_classes, rng, noise=1.0):
    """Weights half a unit larger between hidden classes, with noise."""
    truth = rng.integers(n_classes, size=n)
    return symmetric(0.5 * (truth[:, None] != truth) + noise * np.abs(rng.normal(size=(n, n)))), truth


def cut_of(W, labels):
    return W[labels[:, None] != labels].sum() / 2


def best_cut(W, K):
    """By looking at all of them."""
    n = len(W)
    labels = np.stack(np.unravel_index(np.arange(K ** (n - 1)), (K,) * (n - 1)))
    labels = np.vstack([np.zeros(labels.shape[1], int), labels])
    values = np.zeros(labels.shape[1])
    for i, j in itertools.combinations(range(n), 2):
        values += W[i, j] * (labels[i] != labels[j])
    return values.max()


def relaxation(W, K, **options):
    scale = 2.0 ** math.ceil(math.log2(np.abs(W).max()))
    options = {"tol": 1e-4, "rng": np.random.RandomState(0)} | options
    return solve_low_rank(W, padded_weights(W, scale), K, scale=scale, **options)


def cycle(n):
    return symmetric(np.eye(n, k=1) + np.eye(n, k=n - 1))


def complete(n):
    return 1.0 - np.eye(n)


def bipartite(n):
    return symmetric(np.kron([[0, 1], [0, 0]], np.ones((n, n))))


def petersen():
    pairs = list(itertools.combinations(range(5), 2))
    return np.array([[float(not set(a) & set(b)) for b in pairs] for a in pairs])


def torus(m, n):
    W = np.zeros((m, n, m, n))
    for i, j in itertools.product(range(m), range(n)):
        W[i, j, (i + 1) % m, j] = W[i, j, i, (j + 1) % n] = 1
    W = W.reshape(m * n, m * n)
    return np.maximum(W, W.T)


def fullerene():
    """C60: 60 vertices, 90 edges of length 2 between the corners of a truncated icosahedron."""
    golden = (1 + 5**0.5) / 2
    corners = set()
    for corner in ((0, 1, 3 * golden), (1, 2 + golden, 2 * golden), (golden, 2, 2 * golden + 1)):
        for signs, turn in itertools.product(itertools.product((1, -1), repeat=3), range(3)):
            corners.add(tuple(np.round(np.roll(np.multiply(corner, signs), turn), 9) + 0.0))
    corners = np.array(sorted(corners))
    return (np.abs(np.linalg.norm(corners[:, None] - corners, axis=2) - 2) < 1e-6).astype(float)


# ------------------------------------------------------------------------------------------- exact answers
@pytest.mark.parametrize("K, n", [(2, 12), (3, 9), (4, 8)])
@pytest.mark.parametrize("kind", ["uniform", "normal", "sparse", "2"])
def test_the_best_cut_of_small_graphs(K, n, kind):
    """Found in each of these draws; a cut at random has about half of it. The bound is above, though weights are
    negative, too."""
    for seed in range(4):
        W = random_graph(kind, n, seed)
        best = best_cut(W, K)
        cut = max_k_cut(W, K, n_init=100, random_state=seed)
        assert cut.cut_value == pytest.approx(best) == pytest.approx(cut_of(W, cut.labels))
        assert cut.upper_bound >= best * (1 - 1e-14) and 0 < cut.ratio <= 1


@pytest.mark.parametrize("seed", range(3))
def test_bipartite_graphs_are_cut_exactly(seed):
    """Lemma 2 of the paper: the relaxation itself has the sum of all weights as its value, at vectors +v and -v."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(2, size=40)
    W = symmetric(rng.random((40, 40)) * (truth[:, None] != truth))
    found = relaxation(W, 2, tol=1e-6)
    assert found.bound == pytest.approx(W.sum() / 2, rel=2e-6)
    assert np.abs(found.vectors @ found.vectors.T) == pytest.approx(1, abs=1e-3)
    cut = max_k_cut(W, 2, random_state=seed)
    assert cut.ratio == pytest.approx(1) and cut.cut_value == pytest.approx(W.sum() / 2)
    assert np.array_equal(cut.labels, truth != truth[0])


CLOSED_FORMS = {
    # graph, K, optimum of the relaxation, best cut. Of vertex-transitive graphs the former is n / 4 times the largest
    # eigenvalue of the Laplacian (K = 2).
    "C5": (cycle(5), 2, 5 / 4 * (2 + 2 * np.cos(np.pi / 5)), 4),
    "C11": (cycle(11), 2, 11 / 4 * (2 + 2 * np.cos(np.pi / 11)), 10),
    "Petersen": (petersen(), 2, 12.5, 12),
    "Petersen, three colours": (petersen(), 3, 15, 15),
    "K9": (complete(9), 2, 81 / 4, 20),
    "K7, K=3": (complete(7), 3, 2 / 3 * 49 / 2, 16),
    "K4, K=4": (complete(4), 4, 6, 6),
    "torus": (torus(5, 8), 2, 10 * (4 + 2 + 2 * np.cos(np.pi / 5)), 72),
    "edge, K=2": (complete(2), 2, 1, 1),
    # Published: the bipartite edge frustration of C60 is 12 (Doslic, Vukicevic 2007), so 78 of its 90 edges are cut.
    "C60": (fullerene(), 2, None, 78),
}


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_closed_forms(name):
    W, K, optimum, best = CLOSED_FORMS[name]
    if optimum is not None:
        found = relaxation(W, K, tol=1e-5)
        assert found.converged and optimum * (1 - 1e-12) <= found.bound <= optimum * (1 + 3e-5)
    cut = max_k_cut(W, K, random_state=0)
    assert cut.cut_value == best <= cut.upper_bound


@pytest.mark.parametrize("K", [3, 4])
def test_pair_constraints_hold_and_matter(K):
    """Without v_i . v_j >= -1 / (K - 1) the relaxation is that of K = 2 times 2 (K - 1) / K: 4/3 (K = 3) or 3/2 of the
    sum of all weights of this bipartite graph, which itself bounds every cut."""
    W = bipartite(30)
    total = 900
    found = relaxation(W, K)
    assert total * (1 - 1e-12) <= found.bound <= total * (1 + 1.1e-4)
    inner = found.vectors @ found.vectors.T
    assert inner.min() > -1 / (K - 1) - 2e-2
    assert (found.multipliers >= 0).all() and np.array_equal(found.multipliers, found.multipliers.T)
    without = relaxation(W, 2).bound * 2 * (K - 1) / K
    assert without > 1.3 * total


@pytest.mark.parametrize("K", [2, 3, 4])
def test_agrees_with_cvxpy(K):
    pytest.importorskip("cvxpy", reason="the reference solver is the extra sdp")
    n = 100 if K == 2 else 45
    for kind in ("uniform", "normal", "3"):
        W = random_graph(kind, n, K)
        reference = max_k_cut(W, K, solver="cvxpy", random_state=0)
        cut = max_k_cut(W, K, random_state=0)
        assert reference.converged and cut.converged
        assert cut.upper_bound == pytest.approx(reference.upper_bound, rel=1e-4)
        # Roundings are random: on "normal" the cuts of one solution differ by 1.5 % from seed to seed.
        assert cut.cut_value == pytest.approx(reference.cut_value, rel=0.03)


def feasible_value(W, K, vectors):
    """Of vectors that keep all constraints of the relaxation: X, and as much of the identity as that takes."""
    X = vectors.astype(np.float64) @ vectors.T.astype(np.float64)
    X /= np.sqrt(np.outer(X.diagonal(), X.diagonal()))
    low = min(X.min(), -1 / (K - 1))
    return (K - 1) / (2 * K) * (W.sum() - (W * X).sum() / (-low * (K - 1)))


@pytest.mark.parametrize("kind, K", [("normal", 3), ("3", 4), ("uniform", 5)])
def test_polish_closes_the_gap_from_anywhere(kind, K):
    """From vectors at random and no multipliers: a bound and a feasible point that leave no room between them."""
    W = random_graph(kind, 60, 3)
    start = np.random.default_rng(0).normal(size=(60, 20))
    start = (start / np.linalg.norm(start, axis=1, keepdims=True)).astype(np.float32)
    point = polish(W, K, start, np.zeros((64, 64), np.float32), scale=4.0, tol=1e-6, max_iter=1000)
    assert point.n_iter < 1000 and point.gap <= 1e-6
    assert np.array_equal(point.multipliers, point.multipliers.T) and point.multipliers.min() == 0
    bound = dual_bound(W, K, point.multipliers, point.diagonal, point.estimate, scale=4.0)
    value = feasible_value(W, K, point.vectors)
    assert value <= bound <= value * (1 + 2e-5)


@pytest.mark.parametrize("n, seed", [(40, 0), (100, 1)])
def test_more_classes_than_there_are_are_bounded_as_tightly(n, seed):
    """Where many pair constraints bind, sweeps alone come to rest before 1e-4."""
    W = random_graph("3", n, seed)
    found = relaxation(W, 4)
    assert found.converged and found.n_iter > 96
    exact = relaxation(W, 4, tol=1e-6, max_iter=1000)
    assert exact.converged and feasible_value(W, 4, exact.vectors) <= found.bound <= exact.bound * (1 + 6e-5)


# ---------------------------------------------------------------------------------------------- hidden classes
@pytest.mark.parametrize("K", [2, 3])
def test_hidden_classes_are_found_and_proved(K):
    """At random, labels would agree for 1 / K of the vertices, and the ratio would be .9."""
    W, truth = planted(300, K, np.random.default_rng(K), noise=0.5)
    cut = max_k_cut(W.astype(np.float32), K, random_state=0)
    assert len(set(zip(cut.labels, truth))) == K
    assert cut.ratio == pytest.approx(1, abs=2e-4) and cut.converged


def test_residuals_of_common_lines():
    """The paper's weights |R_i c_ij - R_j c_ji|: small within a class up to 10 degrees of error, large between."""
    rng = np.random.default_rng(0)
    n = 150
    truth = rng.integers(2, size=n)
    R = random_rotations(n, random_state=0)
    lines = np.cross(R[:, None, :, 2], R[None, :, :, 2])
    lines /= np.linalg.norm(lines, axis=2, keepdims=True) + 1e-12
    own = np.arctan2(np.einsum("ijx,ix->ij", lines, R[:, :, 1]), np.einsum("ijx,ix->ij", lines, R[:, :, 0]))
    others = np.arctan2(np.einsum("ijx,jx->ij", lines, R[:, :, 1]), np.einsum("ijx,jx->ij", lines, R[:, :, 0]))
    wrong = truth[:, None] != truth
    own += np.where(wrong, rng.uniform(0, 2 * np.pi, (n, n)), np.radians(10) * rng.normal(size=(n, n)))
    others += np.radians(10) * rng.normal(size=(n, n))
    ends = [
        R[:, None, :, 0] * np.cos(own)[..., None] + R[:, None, :, 1] * np.sin(own)[..., None],
        R[None, :, :, 0] * np.cos(others)[..., None] + R[None, :, :, 1] * np.sin(others)[..., None],
    ]
    cut = max_k_cut(symmetric(np.linalg.norm(ends[0] - ends[1], axis=2)), 2, random_state=0)
    assert np.array_equal(cut.labels, truth != truth[0])
    assert cut.ratio > 0.9999


# ------------------------------------------------------------------------------------------------- the bound
def test_bound_is_proved_from_any_multipliers():
    """Multipliers and diagonals at random, and eigenvalues that were guessed too high: looser, never wrong."""
    for seed in range(6):
        K = 2 + seed % 3
        rng = np.random.default_rng(seed)
        W = random_graph(["uniform", "normal"][seed % 2], 8, seed)
        best = best_cut(W, K)
        Z = None if K == 2 else symmetric(rng.random((8, 8)) * (rng.random((8, 8)) < 0.3), np.float32)
        diagonal = rng.normal(size=8) + 3
        slack = W / 2 - (0 if Z is None else Z) + np.diag(diagonal)
        smallest = np.linalg.eigvalsh(slack)[0]
        right = dual_bound(W, K, Z, diagonal, smallest, scale=2.0)
        wrong = dual_bound(W, K, Z, diagonal, smallest + 1, scale=2.0)
        assert best < right < wrong
        pushed = 0 if Z is None else Z.sum(dtype=float) / (K - 1)
        exact = (K - 1) / (2 * K) * (W.sum() + 2 * (diagonal.sum() - 8 * smallest + pushed))
        assert exact <= right == pytest.approx(exact, rel=1e-6)


def test_bound_of_a_singular_matrix_is_not_below_it():
    """The slack matrix of the optimum is singular: rounding of the proof may only add."""
    for n in (9, 33, 201):
        bound = dual_bound(complete(n), 2, None, np.ones(n), 0.0)
        assert n**2 / 4 <= bound <= n**2 / 4 * (1 + 1e-7)


def test_smallest_eigenvalue_among_many_near_zero():
    for K, seed in ((2, 0), (3, 1)):
        W = random_graph("normal", 600, seed)
        weights = padded_weights(W, 4.0)
        solver = _LowRank(weights, 600, K, np.random.RandomState(0), 1)
        solver.descend(8)
        diagonal = -solver._row_products(solver.multipliers)
        slack = W / 4 + np.diag(diagonal) - (0 if K == 2 else solver.multipliers[:600, :600])
        exact = np.linalg.eigvalsh(slack)[0]
        estimate, values, _ = smallest_eigenvalue(
            weights, solver.multipliers, diagonal, solver.vectors[:600], 1e-3, rng=np.random.RandomState(1)
        )
        # The many eigenvalues near zero are dozens, and a Lanczos run from a random vector would find -0.002 for -0.1.
        assert exact < -1e-2 and exact - 5e-3 < estimate < exact + 1e-3
        assert values[0] == pytest.approx(exact, abs=3e-3)


def test_bounds_and_cuts_do_not_depend_on_order_or_unit():
    for kind, K in (("uniform", 2), ("2", 2), ("normal", 3), ("3", 3)):
        W = random_graph(kind, 70, 5)
        cut = max_k_cut(W, K, random_state=0)
        order = np.random.default_rng(1).permutation(70)
        other = max_k_cut(W[np.ix_(order, order)], K, random_state=0)
        assert other.upper_bound == pytest.approx(cut.upper_bound, rel=1.5e-4)
        assert other.cut_value == pytest.approx(cut.cut_value, rel=0.01)
        for unit in (1e-200, 2.0**40):
            scaled = max_k_cut(W * unit, K, random_state=0)
            assert scaled.cut_value / unit == pytest.approx(cut.cut_value)
            assert scaled.upper_bound / unit == pytest.approx(cut.upper_bound, rel=1e-6)
            assert np.array_equal(scaled.labels, cut.labels)


# ------------------------------------------------------------------------------------------------- the flips
def flip_slowly(W, labels, K):
    """Algorithm 3 as printed, for any K: every cut is computed anew."""
    labels, path = labels.copy(), [cut_of(W, labels)]
    improved = True
    while improved:
        improved = False
        for i in range(len(W)):
            old = labels[i]
            values = []
            for k in range(K):
                labels[i] = k
                values.append(cut_of(W, labels))
            best = int(np.argmax(values))
            labels[i] = best if values[best] > path[-1] + 1e-9 else old
            improved |= labels[i] != old
            path.append(max(values[best], path[-1]))
    return labels, path


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("K", [2, 3, 5])
def test_flips_follow_algorithm_3(K, dtype):
    for seed in range(3):
        W = random_graph(["uniform", "normal", "sparse"][seed], 37, seed, dtype)
        start = np.random.default_rng(seed).integers(K, size=37).astype(np.int32)
        labels = start.copy()
        members = (labels == np.arange(K)[:, None]).astype(float)
        attached = np.empty((K, 37))
        _max_cut.class_weights(W, members, attached, 2)
        assert attached == pytest.approx(members @ W.astype(float))
        values = [cut_of(W.astype(float), labels)]
        while _max_cut.flip(W, labels, attached, 1e-9):
            values.append(cut_of(W.astype(float), labels))
        assert (np.diff(values) > 0).all() and len(values) > 1
        slow, path = flip_slowly(W.astype(float), start, K)
        assert np.array_equal(labels, slow) and values[-1] == pytest.approx(path[-1])
        assert attached == pytest.approx((labels == np.arange(K)[:, None]) @ W.astype(float))


def test_a_known_cut_is_never_lost():
    """Nothing is better than the planted cut, and neither vectors after one sweep nor one rounding would find it."""
    W, truth = planted(200, 2, np.random.default_rng(3), noise=2.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        values = [max_k_cut(W, 2, init=init, n_init=1, max_iter=1, random_state=0).cut_value for init in (None, truth)]
    assert values[1] >= max(values[0], cut_of(W, truth))


# ------------------------------------------------------------------------------------------------- kernels
def sweep_slowly(W, Z, V, overshoot=0.0, directions=None, bends=None, bound=1.0, sigma=0.0, step=0.0, margin=1.0):
    """What the kernel does, a pair at a time in double precision; `measure` on, `decay` 0."""
    W, V, Z = W.astype(float), V.astype(float), None if Z is None else Z.astype(float)
    for i in range(len(W)):
        others = np.arange(len(W)) != i
        acts = W[i] if Z is None else W[i] - Z[i]
        mu = 0.0
        if directions is not None:
            room = V @ V[i] + bound
            Z[i] = np.where(others, np.maximum(Z[i] - step * room, 0), 0)
            Z[:, i] = Z[i]
            push = np.where(others, np.maximum(Z[i] - sigma * room, 0), 0)
            acts = W[i] - push
            bends[i] = ((V[push > 0] @ directions[i]) ** 2).sum()
            mu = sigma * min(margin * bends[i], (push > 0).sum())
        target = mu * V[i] - acts @ V
        move = target / np.linalg.norm(target) - V[i]
        V[i] += (1 + overshoot) * move
        V[i] /= np.linalg.norm(V[i])
        if directions is not None:
            directions[i] = move / np.linalg.norm(move)
    return V, Z


@pytest.mark.parametrize("n", [37, 64, 600])
def test_sweeps_are_the_loops_they_stand_for(n):
    """Blocks of 64 rows, tiles of 128 columns and chunks of 512 leave no trace."""
    rng = np.random.default_rng(n)
    W = random_graph("normal", n, 0)
    weights = padded_weights(W, 4.0)
    padded, rank = len(weights), 16
    V = np.zeros((padded, rank), np.float32)
    V[:n] = rng.normal(size=(n, rank))
    V[:n] /= np.linalg.norm(V[:n], axis=1, keepdims=True)
    Z = np.zeros_like(weights)
    Z[:n, :n] = symmetric(rng.random((n, n)) * (rng.random((n, n)) < 0.1))
    directions = np.zeros_like(V)
    directions[:n] = rng.normal(size=(n, rank)) / np.sqrt(rank)
    norms, moved = np.zeros(n), np.zeros(n)
    options = {"bound": 0.5, "sigma": 0.3, "step": 0.2, "margin": 1.5}
    for multipliers, constrained in ((None, False), (Z, False), (Z, True)):
        kernel = {"vectors": V.copy(), "multipliers": None if multipliers is None else Z.copy()}
        more, slow_more = {}, {}
        if constrained:
            more = options | {"directions": directions.copy(), "bends": np.zeros(n, np.float32), "measure": True}
            # Which others push is a matter of rounding for a few pairs among many: how they bend must not matter then.
            more |= {"active": np.zeros(n, np.int32), "margin": 1.5 if n < 100 else 0.0}
            slow_more = options | {"directions": directions[:n].astype(float), "bends": np.zeros(n)}
            slow_more["margin"] = more["margin"]
        overshoot = 0.0 if constrained else 0.5
        _max_cut.sweep(
            weights, tiles=_tiles(V), n=n, norms=norms, moved=moved, overshoot=overshoot, n_threads=2, **kernel, **more
        )
        expected, expected_Z = sweep_slowly(
            weights[:n, :n], None if multipliers is None else Z[:n, :n], V[:n], overshoot, **slow_more
        )
        assert kernel["vectors"][:n] == pytest.approx(expected, abs=2e-4) and not kernel["vectors"][n:].any()
        if constrained:
            assert kernel["multipliers"][:n, :n] == pytest.approx(expected_Z, abs=1e-4)
            assert np.array_equal(kernel["multipliers"], kernel["multipliers"].T)
            close = np.isclose(more["bends"], slow_more["bends"], rtol=1e-3, atol=1e-3)
            assert close.all() if n < 100 else close.mean() > 0.9
    product = np.empty_like(V)
    _max_cut.slack_product(weights, Z, V, product, 1)
    assert product[:n] == pytest.approx((weights - Z)[:n, :n].astype(float) @ V[:n], abs=1e-4)


def test_threads_and_instruction_sets_change_no_bit():
    n = 1600  # four chunks of columns
    weights = padded_weights(random_graph("normal", n, 0), 4.0)
    results = []
    for n_threads, widest in ((1, 2), (3, 2), (1, 1), (2, 0)):
        solver = _LowRank(weights, n, 3, np.random.RandomState(0), n_threads)
        more = {"directions": solver.directions, "bends": solver.bends, "active": solver.active, "bound": 0.5}
        for measure in (False, True):
            _max_cut.sweep(
                weights, solver.multipliers, solver.vectors, solver.tiles, n, solver.norms, solver.moved, 0.0,
                n_threads, widest, sigma=solver.sigma, step=solver.sigma, measure=measure, **more,
            )  # fmt: skip
        results.append([solver.vectors, solver.multipliers, solver.norms, solver.moved, solver.active])
    for other in results[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(results[0], other))


def test_same_seed_same_result():
    for K in (2, 3):
        W = random_graph("uniform", 1100, 1, np.float32)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            a, b = (max_k_cut(W, K, random_state=7, max_iter=3, n_jobs=n_jobs) for n_jobs in (1, 2))
        assert np.array_equal(a.labels, b.labels)
        assert (a.cut_value, a.upper_bound, a.n_iter) == (b.cut_value, b.upper_bound, b.n_iter)


# ------------------------------------------------------------------------------------------------- inputs
def test_negative_and_no_weights():
    for W in (-complete(12), np.zeros((12, 12))):
        for K in (2, 3):
            cut = max_k_cut(W, K, random_state=0)
            assert cut.cut_value == cut.upper_bound == 0 and cut.ratio == 1 and not cut.labels.any()
    W = random_graph("normal", 60, 0)
    W[:20] = W[:, :20] = 0  # vertices without edges
    cut = max_k_cut(W, 3, random_state=0)
    assert cut.converged and 0.7 < cut.ratio < 1


def test_result():
    cut = max_k_cut(complete(6), 4, random_state=0)
    assert isinstance(cut, MaxKCut) and cut.labels.dtype == np.int32 and cut.labels[0] == 0
    assert (np.diff(np.unique(cut.labels, return_index=True)[1]) > 0).all()  # numbered as they appear
    with pytest.raises(AttributeError):
        cut.cut_value = 0
    assert max_k_cut(complete(5), 5).cut_value == 10


def test_rounding_of_a_symmetric_matrix_is_forgiven():
    W = random_graph("uniform", 30, 0)
    noisy = W * (1 + 1e-8 * np.random.default_rng(0).normal(size=W.shape))
    cut, other = max_k_cut(W, 2, random_state=0), max_k_cut(noisy, 2, random_state=0)
    assert other.cut_value == pytest.approx(cut_of((noisy + noisy.T) / 2, other.labels)) == pytest.approx(cut.cut_value)


def test_unfinished_relaxations_warn_and_still_bound():
    W = random_graph("normal", 80, 0)
    for K in (2, 3):
        with pytest.warns(ConvergenceWarning, match=r"max_k_cut: the relaxation is solved to .* after 3 iterations"):
            cut = max_k_cut(W, K, max_iter=3, random_state=0)
        assert not cut.converged and cut.n_iter == 3
        assert cut.upper_bound >= max_k_cut(W, K, random_state=0).cut_value


def changed(index, value):
    W = random_graph("uniform", 6, 0)
    W[index] = value
    return W


@pytest.mark.parametrize(
    "W, K, options, message",
    [
        (np.ones((3, 4)), 2, {}, r"W has shape \(3, 4\) and dtype float64; a square array \(n, n\)"),
        (np.ones(5), 2, {}, r"W has shape \(5,\)"),
        (np.array([["a", "b"], ["c", "d"]]), 2, {}, "real weights is wanted"),
        (complete(3) * 1j, 2, {}, "dtype complex128"),
        (np.zeros((1, 1)), 2, {}, r"W has shape \(1, 1\); two vertices"),
        (changed((2, 4), np.nan), 2, {}, r"W\[2, 4\] is nan; finite weights"),
        (changed((5, 1), -np.inf), 3, {}, r"W\[5, 1\] is -inf"),
        (changed((3, 3), 0.5), 2, {}, r"W\[3, 3\] is 0.5; zeros on the diagonal"),
        (changed((1, 2), 7.0), 2, {}, r"W\[1, 2\] is 7.0 but W\[2, 1\] is 0\.\d+; a symmetric matrix"),
        (complete(3), 4, {}, "K=4 classes need at least as many vertices, but W has 3"),
        (complete(3), 2, {"init": [0, 1]}, r"init has shape \(2,\) and dtype int64; one integer a vertex"),
        (complete(3), 2, {"init": [0.0, 1.0, 1.0]}, "dtype float64"),
        (complete(3), 2, {"init": [0, 1, 2]}, r"init\[2\] is 2; classes 0 to 1"),
    ],
)
def test_bad_input_is_named(W, K, options, message):
    with pytest.raises(ValueError, match=message):
        max_k_cut(W, K, **options)


@pytest.mark.parametrize(
    "options", [{"K": 1}, {"K": 2.5}, {"solver": "exact"}, {"n_init": 0}, {"max_iter": 0}, {"tol": 0.0}]
)
def test_bad_parameters_are_named(options):
    with pytest.raises(InvalidParameterError, match=next(iter(options))):
        max_k_cut(complete(4), **({"K": 2} | options))
