"""Radial lines: scores at given lines against their definition, covariances, bad input."""

import numpy as np
import pytest

from skcryo.datasets import make_molecule, make_particles
from skcryo.orientation import RadialLines, detect_common_lines
from skcryo.orientation._line_scores import predicted_lines
from skcryo.orientation._line_statistics import LineStatistics, noise_blocks, whitening
from skcryo.orientation._radial_lines import FINE
from skcryo.preprocessing._geometry import soft_circle


@pytest.fixture(scope="module")
def data():
    return make_particles(make_molecule(49, random_state=0), 50, snr=1.0, random_state=0)


@pytest.fixture(scope="module")
def lines(data):
    return RadialLines.from_images(data[0])


def test_predicted_lines_are_the_same_line_in_space(data):
    rotations = data[1].rotations
    angles, cosines = predicted_lines(rotations)
    for i, j in [(0, 1), (3, 7), (20, 4)]:
        in_space = [rotations[a] @ [np.cos(angles[a, b]), np.sin(angles[a, b]), 0] for a, b in ((i, j), (j, i))]
        assert np.allclose(*in_space, atol=1e-5)
        assert np.isclose(cosines[i, j], rotations[i, :, 2] @ rotations[j, :, 2], atol=1e-6)
    assert np.isnan(np.diag(angles)).all()


@pytest.mark.parametrize("score", ["likelihood", "correlation"])
def test_scores_at_lines_are_products_of_features(data, score):
    lines = RadialLines.from_images(data[0], score=score)
    features, penalty = lines.line_features(slice(None))
    n, m = features.shape[1], features.shape[2] // 2
    angles = np.random.default_rng(0).uniform(-7, 7, (50, 50))
    angles[2, 9] = np.nan
    found = lines.score_at(angles)
    assert found[2, 9] == found[9, 2] == 0
    assert np.array_equal(found, found.T)
    assert (np.diag(found) == 0).all()
    for i, j in [(0, 1), (5, 30), (48, 49)]:
        a, b = np.rint(angles[[i, j], [j, i]] * n / np.pi).astype(int)
        sign = (-1.0) ** ((a // n + b // n) % 2)
        x, y = features[i, a % n], features[j, b % n]
        wanted = x[:m] @ y[:m] + sign * (x[m:] @ y[m:]) - penalty[i, a % n] - penalty[j, b % n]
        assert np.isclose(found[i, j], wanted, rtol=1e-4, atol=1e-4)


def test_slopes_tell_more_where_planes_are_close(data, lines):
    angles, cosines = predicted_lines(data[1].rotations)
    with_slopes, without = lines.score_at(angles, cosines=cosines), lines.score_at(angles)
    close = (np.abs(cosines) > 0.9) & ~np.eye(50, dtype=bool)
    far = np.abs(cosines) < 0.1
    assert np.mean((with_slopes - without)[close]) > 1
    assert abs(np.mean((with_slopes - without)[far])) < 0.1
    wrong = lines.score_at(angles, cosines=-cosines)
    assert np.mean((with_slopes - wrong)[close]) > 1


def test_true_lines_score_higher(data, lines):
    angles, _ = predicted_lines(data[1].rotations)
    rng = np.random.default_rng(0)
    right, wrong = lines.score_at(angles), lines.score_at(rng.uniform(0, 2 * np.pi, (50, 50)))
    off = ~np.eye(50, dtype=bool)
    assert right[off].mean() > 3
    assert wrong[off].mean() < -3


def test_turned_image_has_turned_features(data):
    pixels = np.array(data[0][:])
    turned = pixels[:, ::-1, ::-1]  # half a turn: even parts stay, odd ones change sign
    before, after = (
        RadialLines.from_images(x, score="correlation").line_features(slice(0, 3))[0] for x in (pixels, turned)
    )
    m = before.shape[2] // 2
    assert np.allclose(before[..., :m], after[..., :m], atol=1e-5)
    assert np.allclose(before[..., m:], -after[..., m:], atol=1e-5)


def test_a_shift_along_lines_is_one_of_the_image(data):
    """By (2, 0) pixels: those along x lie 2 pixels off, those along y none."""
    options = {"score": "correlation", "mask_radius": 49}  # all of it: the mask does not move
    undone = RadialLines.from_images(data[0], shifts=np.tile([2.0, 0], (50, 1)), **options)
    lines = RadialLines.from_images(data[0], **options)
    at = lines.line_features(slice(0, 5)), lines.line_features(slice(0, 5), 2.0), undone.line_features(slice(0, 5))
    still, moved, wanted = (x[0] for x in at)
    n = still.shape[1]

    def off(first, line):
        return np.abs(first - wanted)[:, line].mean()

    # what all images have in common is taken away, and is not the same after they were moved
    assert off(moved, 0) < 0.2 * off(still, 0)
    assert off(still, n // 2) < 0.2 * off(moved, n // 2)


def test_covariance_of_noise():
    mask, n_theta, n_radial = soft_circle((24, 24), 10, 2), 32, 6
    blocks = noise_blocks(mask, n_theta, n_radial)
    rng = np.random.default_rng(0)
    x = np.arange(24) - 12
    angles = 2 * np.pi * np.arange(n_theta) / n_theta
    k = np.arange(1, n_radial + 1)
    kx, ky = np.outer(np.cos(angles), k).ravel(), np.outer(np.sin(angles), k).ravel()
    waves = np.exp(-2j * np.pi / 24 * (kx[:, None, None] * x + ky[:, None, None] * x[:, None])).reshape(len(kx), -1)
    noise = rng.standard_normal((4000, 24 * 24)) * mask.ravel()
    frequencies = np.fft.fft((noise @ waves.T).reshape(-1, n_theta, n_radial), axis=1)[:, : n_theta // 2 + 1] / n_theta
    sample = np.einsum("nqk,nql->qkl", frequencies, frequencies.conj()).real / len(noise)
    assert np.abs(sample - blocks).max() < 0.1 * blocks.max()
    white, _ = whitening(blocks)
    made_white = np.swapaxes(white, 1, 2) @ blocks @ white
    assert np.allclose(made_white * (1 - np.eye(n_radial)), 0, atol=1e-8)


@pytest.mark.parametrize("n", [30, 200])
def test_correlation_is_found(n):
    """Signal of known covariance in white noise; with and without filters."""
    rng = np.random.default_rng(0)
    n_frequencies, K = 9, 6
    variance = np.where(np.arange(K) < 2, 4.0, 0.0)
    noise = np.broadcast_to(np.eye(K), (n_frequencies, K, K)) * 1.0

    def complex_normal():
        z = (rng.standard_normal((n, n_frequencies, K)) + 1j * rng.standard_normal((n, n_frequencies, K))) / np.sqrt(2)
        z[:, [0, -1]] = np.sqrt(2) * z[:, [0, -1]].real
        return z

    blocks = (complex_normal() * np.sqrt(variance) + complex_normal()).astype(np.complex64)
    statistics = LineStatistics(blocks, noise)
    for part in (0, 1):
        found = statistics.canonical(part, 4).correlation
        assert np.allclose(found[:2], 0.8, atol=0.06)  # 4 / (4 + 1) in two directions, none in others
        assert np.all(found[2:] < 0.3)


@pytest.mark.parametrize(
    "parameters, message",
    [
        ({"n_lines": 12}, "n_lines is 12; a positive integer, a multiple of 8, is wanted"),
        ({"n_lines": 0}, "n_lines"),
        ({"n_coordinates": 3}, "n_coordinates"),
        ({"max_ring": 0}, "max_ring"),
        ({"max_ring": 2.5}, "max_ring"),
        ({"mask_radius": -1}, "mask_radius"),
        ({"score": None}, "score"),
    ],
)
def test_bad_parameters(data, parameters, message):
    with pytest.raises(ValueError, match=message):
        RadialLines.from_images(data[0], **parameters)


def test_bad_angles(data, lines):
    with pytest.raises(ValueError, match=r"angles has shape \(3, 3\); \(50, 50\) is wanted"):
        lines.score_at(np.zeros((3, 3)))
    with pytest.raises(ValueError, match="cosines has shape"):
        lines.score_at(np.zeros((50, 50)), cosines=np.zeros(50))
    plain = RadialLines.from_images(data[0], score="correlation")
    with pytest.raises(ValueError, match="have no slopes"):
        plain.score_at(np.zeros((50, 50)), cosines=np.zeros((50, 50)))


@pytest.mark.parametrize("n_lines, n_coordinates", [(24, 8), (40, 8), (64, 12)])
def test_other_numbers_of_lines(data, n_lines, n_coordinates):
    lines = RadialLines.from_images(data[0], n_lines=n_lines, n_coordinates=n_coordinates)
    assert lines.line_features(slice(0, 4))[0].shape == (4, FINE * n_lines, 2 * n_coordinates)
    usual = detect_common_lines(data[0])
    angle = np.abs(np.angle(np.exp(2j * (detect_common_lines(lines).angles - usual.angles)))) / 2
    assert np.median(angle[~np.eye(50, dtype=bool)]) < np.deg2rad(3)
