"""Interpolation of Fourier transforms: twofold oversampling and a Kaiser-Bessel kernel six samples wide.

A function that is zero outside the box, divided by the kernel's transform and padded to twice the box, has a
discrete Fourier transform whose convolution with the kernel is the function's transform at any frequency, to
about 1e-5 (Jackson et al., IEEE Trans. Med. Imaging 10, 1991; the shape is equation 5 of Beatty et al.,
ibid. 24, 2005).
"""

import functools

import numpy as np
from scipy.special import i0e

KERNEL_WIDTH = 6  # as in _ext/_projection.pyx
OVERSAMPLING = 2
_BETA = np.pi * np.sqrt((KERNEL_WIDTH / OVERSAMPLING * (OVERSAMPLING - 0.5)) ** 2 - 0.8)
_TABLE_STEPS = 1024
_TABLE_STRIDE = 8


def kernel(distance):
    """Kaiser-Bessel kernel at distances in samples of the oversampled grid; 1 at zero."""
    inside = np.maximum(1 - (2 * np.asarray(distance, dtype=np.float64) / KERNEL_WIDTH) ** 2, 0)
    root = _BETA * np.sqrt(inside)
    value = i0e(root) * np.exp(root - _BETA) / i0e(_BETA)
    return np.where(np.abs(distance) <= KERNEL_WIDTH / 2, value, 0.0)


def kernel_transform(u):
    """Fourier transform of :func:`kernel`, u in cycles per sample, ``|u| <= 1 / (2 OVERSAMPLING)``."""
    root = np.sqrt(_BETA**2 - (np.pi * KERNEL_WIDTH * u) ** 2)
    # sinh(root) / I0(beta), scaled so that nothing overflows
    return KERNEL_WIDTH * (np.exp(root - _BETA) - np.exp(-root - _BETA)) / (2 * root * i0e(_BETA))


@functools.lru_cache(maxsize=32)
def deconvolution(L):
    """Factors along one axis of a box of `L` pixels, centre at ``L // 2``, that undo the kernel; float64."""
    factors = 1.0 / kernel_transform((np.arange(L) - L // 2) / (OVERSAMPLING * L))
    factors.setflags(write=False)
    return factors


@functools.lru_cache(maxsize=1)
def kernel_table():
    """Weights of the taps by the fraction of a position, float32 of shape (steps + 1, stride)."""
    fractions = np.arange(_TABLE_STEPS + 1)[:, None] / _TABLE_STEPS
    taps = np.arange(1 - KERNEL_WIDTH // 2, KERNEL_WIDTH // 2 + 1)
    table = np.zeros((_TABLE_STEPS + 1, _TABLE_STRIDE), dtype=np.float32)
    table[:, :KERNEL_WIDTH] = kernel(fractions - taps)
    table.setflags(write=False)
    return table
