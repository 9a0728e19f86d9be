"""Fourier shell correlation, the resolution that it means, and its area."""

import numpy as np
import pytest

from skcryo.fourier import fft3c, ifft3c, shell_index
from skcryo.metrics import fsc, fsc_area, fsc_resolution


def slow_fsc(a, b):
    L = len(a)
    A, B = (np.fft.fftshift(np.fft.fftn(v)) for v in (a, b))
    grid = np.arange(L) - L // 2
    radius = np.sqrt(grid[:, None, None] ** 2 + grid[:, None] ** 2 + grid**2)
    curve = []
    for shell in range(L // 2 + 1):
        m = np.rint(radius) == shell
        cross = (A[m] * B[m].conj()).sum().real
        curve.append(cross / np.sqrt((abs(A[m]) ** 2).sum() * (abs(B[m]) ** 2).sum()))
    return np.array(curve)


@pytest.mark.parametrize("L", [16, 17])
def test_against_a_slow_reference(L):
    rng = np.random.default_rng(L)
    a = rng.normal(size=(L, L, L))
    b = a + rng.normal(size=a.shape) + 0.3
    assert np.allclose(fsc(a, b), slow_fsc(a, b))
    assert len(fsc(a, b)) == L // 2 + 1


@pytest.mark.parametrize("L", [16, 17])
def test_identical_scaled_and_inverted(L):
    a = np.random.default_rng(0).normal(size=(L, L, L)).astype(np.float32)
    assert np.allclose(fsc(a, a), 1)
    assert np.allclose(fsc(a, 5 * a), 1)
    assert np.allclose(fsc(a, -a), -1)
    assert np.allclose(fsc(a, np.roll(a, 1, axis=0))[-3:], 0, atol=0.4)


def test_signal_in_noise_has_a_closed_form():
    """Two noisy copies correlate as SNR / (SNR + 1), one noisy copy and the truth as its square root."""
    rng = np.random.default_rng(0)
    truth, first, second = rng.normal(size=(3, 40, 40, 40))
    snr = 0.5
    a, b = truth + first / np.sqrt(snr), truth + second / np.sqrt(snr)
    shells = slice(6, None)  # small shells hold few coefficients
    assert np.allclose(fsc(a, b)[shells], snr / (snr + 1), atol=0.2)
    assert fsc(a, b)[shells].mean() == pytest.approx(snr / (snr + 1), abs=0.03)
    assert fsc(a, truth)[shells].mean() == pytest.approx(np.sqrt(snr / (snr + 1)), abs=0.03)


def test_a_volume_without_power_in_a_shell():
    a = np.random.default_rng(0).normal(size=(16, 16, 16))
    low = ifft3c(np.where(shell_index(16, 3) <= 4, fft3c(a), 0)).real
    curve = fsc(a, np.zeros_like(a))
    assert np.array_equal(curve, np.zeros(9))
    assert np.allclose(fsc(a, low)[:5], 1, atol=1e-5)
    assert np.abs(fsc(np.ones_like(a), a)[1:]).max() == 0


@pytest.mark.parametrize(
    "curve, threshold, voxel_size, box_size, expected",
    [
        ([1, 1, 0.8, 0.2, 0], 0.5, 1.0, None, 8 / 2.5),
        ([1, 1, 0.8, 0.2, 0], 0.5, 4.0, 9, 36 / 2.5),  # an odd box with as many shells
        ([1, 1, 0.8, 0.2, 0.9], 0.5, 1.0, None, 8 / 2.5),  # what rises again does not count
        ([1, 1, 1, 1, 1], 0.143, 2.0, None, 4.0),  # Nyquist
        ([1, 0.4, 1, 1, 1], 0.5, 2.0, None, np.inf),
        ([-1, 1, 1, 0.5, 0.2], 0.5, 1.0, None, 8 / 3),  # exactly at the threshold is not below
    ],
)
def test_resolution(curve, threshold, voxel_size, box_size, expected):
    found = fsc_resolution(curve, threshold, voxel_size, box_size=box_size)
    assert found == pytest.approx(expected)


def test_area():
    assert fsc_area(np.ones(33)) == 1
    assert fsc_area([-1.0, 1.0, 0.5, 0.0]) == pytest.approx(0.5)
    assert fsc_area([-1.0, 1.0, 0.5, 0.0], max_shell=2) == pytest.approx(0.75)


def test_arguments():
    cube = np.zeros((4, 4, 4))
    with pytest.raises(ValueError, match=r"volume2 has shape \(4, 4, 5\)"):
        fsc(cube, np.zeros((4, 4, 5)))
    with pytest.raises(ValueError, match=r"volume1 has shape \(4, 4, 4\) but volume2 has \(5, 5, 5\)"):
        fsc(cube, np.zeros((5, 5, 5)))
    with pytest.raises(ValueError, match="volume1 holds NaN"):
        fsc(cube * np.nan, cube)
    with pytest.raises(ValueError, match="box_size is 12 but the curve has 5 shells; 7"):
        fsc_resolution(np.ones(5), box_size=12)
    with pytest.raises(ValueError, match=r"curve\[1\] is nan"):
        fsc_area([1, np.nan])
    with pytest.raises(ValueError, match="voxel_size is 0"):
        fsc_resolution(np.ones(5), voxel_size=0)
    with pytest.raises(ValueError, match="max_shell is 7; 1 to 4"):
        fsc_area(np.ones(5), max_shell=7)
