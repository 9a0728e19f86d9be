"""Radial lines of images' Fourier transforms, filtered and reduced to the few numbers that a common line is told by."""

from numbers import Integral, Real

import joblib
import numpy as np
import scipy.fft
from joblib import Parallel, delayed

from .._ext import _common_lines as _kernels
from .._ext._emd import max_threads
from .._validation import iter_finite_chunks, resolve_ctf, resolve_pixel_size
from ..ctf import evaluate_ctf, evaluate_ctf_radial
from ..fourier import check_shifts, polar_lines, shift_phases
from ..particles import as_stack
from ..preprocessing import noise_spectrum, ring_weights
from ..preprocessing._geometry import soft_circle
from ._line_scores import scores_at
from ._line_statistics import LineStatistics, noise_blocks, whitening

__all__ = ["RadialLines"]

_BAND = 20  # cycles per box beyond which no signal is looked for
_SMALL_BOX = 64  # larger images are cropped to no less than this
_BLOCK = 512  # images whose pairs are compared at a time
# An image's CTF h is taken out of its lines by h / (h^2 + _CTF_RIDGE / SNR), ring by ring: what is strong comes to the
# same scale in all images, what is weak is weighted as it was seen.
_CTF_RIDGE = 0.3
# Cosines of the angle between the planes of two images over which the likelihood of their slopes is averaged: the
# midpoints of halves of [0, 1], over which the cosine of random planes is uniform; the kernel knows that one is three
# times the other. And the share of the squared correlation in weights that serve for both.
COSINES, _SHARE = np.array([0.25, 0.75]), 0.5
FINE = 4  # lines among which the last maximum is looked for, over those among which the first is


class RadialLines:
    """Lines through the centres of images' Fourier transforms, ready to be compared.

    Made by :meth:`from_images`. An image's noise is made white, its phases are flipped, its shift is undone and its
    surroundings are masked; the transform is sampled along rays, and the rays are filtered by angular frequency with
    what all images tell of the signal's covariance (`score` "likelihood") or taken as they are ("correlation").

    Parameters
    ----------
    spectra : ndarray of shape (n_images, n_frequencies, n_radial), complex64
        Fourier coefficients of the rays over the angle, ``q = 0, 1, ...``; those at -q follow.
    box : int
        Pixels, the unit of shifts.
    statistics : LineStatistics or None
        None for `score` "correlation".
    n_lines : int
        Lines on half of the circle among which the first maximum is looked for, at ``pi a / n_lines``.
    n_coordinates : int
        Numbers that even and odd part of a line are reduced to.
    coordinates : ndarray of shape (n_images, n_lines, 2 n_coordinates), float32
        Lines without the filter, even coordinates first, in units of their noise, whose variance is 1 in each. Turned
        by pi, a line's odd coordinates change sign. None for "correlation".
    signal_variance : ndarray of shape (2 n_coordinates,), float64
        Variance of the signal in each of them.

    See Also
    --------
    detect_common_lines : Compares them.

    Notes
    -----
    The score is the logarithm of a likelihood ratio: that a line of one image and a line of another are noisy views
    of the same line, over that they have nothing to do with each other. With coordinates x, y in which the filtered
    lines of two images have variance 1 and correlation rho where they are common, it is the sum of ``x y rho /
    (1 - rho^2) - (x^2 + y^2) rho^2 / (2 (1 - rho^2)) - log(1 - rho^2) / 2``. Beside their common line two images are
    alike as well, the more so the closer their planes: the derivatives of the lines by the angle are correlated by rho'
    times the cosine between the planes. Where lines are searched, the same ratio for derivatives is averaged over the
    cosine.

    Examples
    --------
    >>> from skcryo.datasets import make_molecule, make_particles
    >>> from skcryo.orientation import RadialLines
    >>> stack, truth = make_particles(make_molecule(32), 50, snr=1, random_state=0)
    >>> lines = RadialLines.from_images(stack)
    >>> len(lines), lines.coordinates.shape
    (50, (50, 32, 16))
    """

    def __init__(self, spectra, box, statistics, n_lines, n_coordinates, coordinates, signal_variance):
        self.spectra = spectra
        self.box = box
        self.statistics = statistics
        self.n_lines = n_lines
        self.n_coordinates = n_coordinates
        self.coordinates = coordinates
        self.signal_variance = signal_variance

    def __len__(self):
        return len(self.spectra)

    @classmethod
    def from_images(
        cls,
        X,
        *,
        score="likelihood",
        ctf=None,
        shifts=None,
        n_lines=32,
        n_coordinates=8,
        max_ring=_BAND,
        mask_radius=None,
        n_jobs=None,
    ):
        """Make lines of images.

        Parameters
        ----------
        X : ParticleStack or array-like of shape (n_images, L, L)
            At least two images; read in chunks, twice.
        score : {"likelihood", "correlation"}, default="likelihood"
            What lines are compared by.
        ctf : structured array of shape (n_images,), default=None
            None takes that of `X`, if any.
        shifts : array-like of shape (n_images, 2), default=None
            Where particles lie, (x, y) in pixels; None takes those of `X`, if any. They are undone by phases.
        n_lines : int, default=32
            Lines on half of the circle, a multiple of 8. Lines 6 degrees apart find as many common lines as finer ones
            up to a signal-to-noise ratio of about 1; the angle found is not bound to them.
        n_coordinates : int, default=8
            Numbers that even and odd part are reduced to each, a multiple of 4.
        max_ring : int, default=20
            Highest frequency in cycles per box.
        mask_radius : float, default=None
            In pixels; None takes 0.415 of the box. The mask ends over 6 % of the box.
        n_jobs : int, default=None
            Threads; None takes all cores. Results do not depend on it.

        Returns
        -------
        RadialLines

        Raises
        ------
        ValueError
            If an argument does not fit; the message names it.
        """
        stack = as_stack(X)
        _check_arguments(stack, score, n_lines, n_coordinates, max_ring, mask_radius)
        n, L = stack.shape[:2]
        ctf = resolve_ctf(stack, ctf)
        pixel_size = resolve_pixel_size(stack, required_by="a CTF" if ctf is not None else None)
        shifts = stack.shifts if shifts is None else check_shifts(shifts, n)
        max_ring = min(max_ring, (L - 1) // 2)
        n_theta = FINE * n_lines
        small = min(L, max(_SMALL_BOX, 3 * max_ring) + L % 2)
        radius = 0.415 * L if mask_radius is None else mask_radius
        mask = soft_circle((small, small), radius * small / L, 0.06 * small)
        blocks = np.empty((n, n_theta // 2 + 1, max_ring), dtype=np.complex64)
        spectrum = noise_spectrum(stack, radius=0 if L < 16 else None)
        prepare = _Preparation(L, small, spectrum, pixel_size)

        def transform(where, chunk):
            images = prepare(chunk, None if ctf is None else ctf[where], None if shifts is None else shifts[where])
            lines = polar_lines(images * mask.astype(np.float32), n_theta, max_ring)
            blocks[where] = scipy.fft.fft(lines, axis=1)[:, : n_theta // 2 + 1] / n_theta

        Parallel(n_jobs=n_threads(n_jobs), require="sharedmem")(
            delayed(transform)(*part) for part in iter_finite_chunks(stack, max_bytes=2**23)
        )
        noise = noise_blocks(mask, n_theta, max_ring)
        if ctf is not None:
            noise = _weigh_by_ctf(blocks, noise, evaluate_ctf_radial(ctf, np.arange(1, max_ring + 1) / L, pixel_size))
        blocks[:, 0] -= blocks[:, 0].mean(axis=0)
        if score == "correlation":
            return cls(blocks, L, None, n_lines, -(-max_ring // 4) * 4, None, None)
        statistics = LineStatistics(blocks, noise)
        coordinates, variance = _unfiltered(blocks, statistics, n_lines, n_coordinates)
        filters = np.swapaxes(statistics.filters, 1, 2).astype(np.float32)
        for start in range(0, n, _BLOCK):
            rows = slice(start, start + _BLOCK)
            blocks[rows] = np.swapaxes(np.swapaxes(blocks[rows], 0, 1) @ filters, 0, 1)
        return cls(blocks, L, statistics, n_lines, n_coordinates, coordinates, variance)

    @property
    def log_likelihood(self):
        """Whether scores are log-likelihood ratios."""
        return self.statistics is not None

    def features(self, rows, shift=0.0):
        """What scores of lines are made of.

        Parameters
        ----------
        rows : slice or ndarray of int
            Images.
        shift : float, default=0.0
            Pixels by which the images are moved along each line before.

        Returns
        -------
        fine : ndarray of shape (n, FINE * n_lines, 2 n_coordinates), float32
            Even and odd; lines at ``pi a / (FINE * n_lines)``.
        fine_penalty : ndarray of shape (n, FINE * n_lines), float32
            Of two lines, the score is the product of the features less both penalties.
        slopes : ndarray of shape (n, n_lines, 2 n_coordinates), float32
            Of every FINE-th line's derivative.
        penalty : ndarray of shape (n, n_lines), float32
            Penalty with the slopes' share.
        weights : ndarray of shape (n, n_lines), float32
            Of what the slopes add, see ``reference_ratios`` in ``_detection_reference.py``.
        """
        if self.statistics is None:
            fine, penalty = self.line_features(rows, shift)
            return fine, penalty, np.zeros_like(fine[:, ::FINE]), penalty[:, ::FINE], penalty[:, ::FINE]
        fine, penalty = self.line_features(rows, shift)
        slopes, slope_penalty = self.slope_features(rows, self.n_lines, shift)
        # what goes with the smaller cosine is put into the penalty, the larger one counts relative to it; half of the
        # mean over two cosines, and of the hyperbolic cosine
        log_weights = np.log(0.25) + self.slope_log_norm(COSINES)
        coarse = penalty[:, ::FINE] + COSINES[0] ** 2 * slope_penalty - np.float32(log_weights[0] / 2)
        weights = np.exp(np.diff(log_weights) / 2 - np.diff(COSINES**2) * slope_penalty)
        slopes *= np.sqrt(np.float32(COSINES[0]))
        return fine, penalty, slopes, coarse.astype(np.float32), weights.astype(np.float32)

    def line_features(self, rows, shift=0.0):
        """Features and penalties of ``FINE * n_lines`` lines.

        Parameters
        ----------
        rows, shift : as in :meth:`features`

        Returns
        -------
        features : ndarray of shape (n, FINE * n_lines, 2 n_coordinates), float32
        penalty : ndarray of shape (n, FINE * n_lines), float32
        """
        n_fine = FINE * self.n_lines
        if self.statistics is None:
            fine = np.concatenate([self._pad(x) for x in self._normalised(rows, shift)], axis=2)
            return fine, np.zeros(fine.shape[:2], dtype=np.float32)
        fine, penalty = [], 0.0
        for part in (0, 1):
            found = self.statistics.canonical(part, self.n_coordinates)
            squares = found.correlation**2
            x = self._evaluate(rows, part, n_fine, found.basis, shift)
            fine.append(self._pad(x * np.sqrt(found.correlation / (1 - squares))))
            penalty = penalty + np.square(x) @ (squares / (2 - 2 * squares)) + np.log1p(-squares).sum() / 4
        return np.concatenate(fine, axis=2), penalty.astype(np.float32)

    def slope_features(self, rows, n_lines, shift=0.0):
        """Features and penalties of the derivatives of `n_lines` lines, whose planes are the same.

        At an angle between the planes of cosine c, the log-likelihood ratio is c times the product of the features,
        less c^2 times both penalties, plus :meth:`slope_log_norm`.

        Parameters
        ----------
        rows, shift : as in :meth:`features`
        n_lines : int
            On half of the circle.

        Returns
        -------
        features : ndarray of shape (n, n_lines, 2 n_coordinates), float32
        penalty : ndarray of shape (n, n_lines), float32
        """
        slopes, penalty = [], 0.0
        for part in (0, 1):
            found = self.statistics.canonical(part, self.n_coordinates, derivative=True)
            squares = found.correlation**2
            x = self._evaluate(rows, part, n_lines, found.basis, shift, derivative=True)
            slopes.append(self._pad(x * np.sqrt(found.correlation / (1 - _SHARE * squares))))
            penalty = penalty + np.square(x) @ (squares / (2 - 2 * _SHARE * squares))
        return np.concatenate(slopes, axis=2), penalty.astype(np.float32)

    def slope_log_norm(self, cosines):
        """Logarithm of what normalises the slopes' likelihood at angles of given cosines between the planes."""
        found = [self.statistics.canonical(part, self.n_coordinates, derivative=True) for part in (0, 1)]
        squares = np.concatenate([part.correlation for part in found]) ** 2
        return -np.log1p(-np.square(cosines)[..., None] * squares).sum(axis=-1) / 2

    def _pad(self, x):
        missing = self.n_coordinates - x.shape[2]
        return np.pad(x, ((0, 0), (0, 0), (0, missing))).astype(np.float32, copy=False)

    def _evaluate(self, rows, part, n_lines, basis, shift, derivative=False):
        blocks = self.spectra[rows]
        if shift == 0:
            return _evaluate(blocks, part, n_lines, basis, derivative=derivative)
        even, odd = _moved([_evaluate(blocks, k, n_lines, derivative=derivative) for k in (0, 1)], shift / self.box)
        return (odd if part else even) @ basis

    def _normalised(self, rows, shift):
        parts = [_evaluate(self.spectra[rows], part, FINE * self.n_lines) for part in (0, 1)]
        norm = np.sqrt(sum(np.square(part).sum(axis=2, keepdims=True) for part in parts))
        parts = [np.divide(part, norm, out=np.zeros_like(part), where=norm > 0) for part in parts]
        return _moved(parts, shift / self.box) if shift else parts

    def blocks(self):
        """Images in blocks whose pairs are compared at a time: list of slices."""
        return [slice(start, min(start + _BLOCK, len(self))) for start in range(0, len(self), _BLOCK)]

    def kernel_lines(self, rows, shift=0.0):
        """:meth:`features` as the compiled search reads them.

        Parameters
        ----------
        rows, shift : as in :meth:`features`

        Returns
        -------
        Lines
            Of ``_ext/_common_lines.pyx``.
        """
        fine, fine_penalty, slopes, penalty, weights = self.features(rows, shift)
        n, _, width = fine.shape
        n_padded = -(-self.n_lines // _kernels.LANES) * _kernels.LANES
        columns = np.zeros((n, 2 * width, n_padded), dtype=np.float32)
        columns[:, :width, : self.n_lines] = np.swapaxes(fine[:, ::FINE], 1, 2)
        columns[:, width:, : self.n_lines] = np.swapaxes(slopes, 1, 2)
        padded = np.full((n, n_padded), 1e9, dtype=np.float32)
        padded[:, : self.n_lines] = penalty
        padded_weights = np.zeros((n, n_padded), dtype=np.float32)
        padded_weights[:, : self.n_lines] = weights
        return _kernels.Lines(fine, fine_penalty, columns, padded, padded_weights)

    def score_at(self, angles, *, cosines=None, n_jobs=None):
        """Scores of all pairs at given lines.

        Parameters
        ----------
        angles : array-like of shape (n_images, n_images)
            Radians, as in :class:`CommonLines`: those that estimated rotations predict, for example. The nearest of
            ``FINE * n_lines`` lines is taken. NaN where there is none (of one direction of view): score 0.
        cosines : array-like of shape (n_images, n_images), default=None
            Of the angles between viewing directions. With them the slopes of the lines are compared too: more is told
            of images whose planes are close. For `score` "likelihood" only.
        n_jobs : int, default=None
            Threads; None takes all cores.

        Returns
        -------
        scores : ndarray of shape (n_images, n_images), float32
            Log-likelihood ratios (or correlations). Symmetric, diagonal 0.
        """
        scores = np.zeros((len(self), len(self)), dtype=np.float32)
        for rows, columns, found in scores_at(self, angles, cosines=cosines, n_threads=n_threads(n_jobs)):
            scores[rows, columns], scores[columns, rows] = found[0], found[0].T
        np.fill_diagonal(scores, 0)
        return scores


def n_threads(n_jobs):
    return max_threads() if n_jobs is None else joblib.effective_n_jobs(n_jobs)


def check_score(score):
    if score not in ("likelihood", "correlation"):
        raise ValueError(f'score is {score!r}; "likelihood" or "correlation" is wanted')


def _check_arguments(stack, score, n_lines, n_coordinates, max_ring, mask_radius):
    n, height, width = stack.shape
    if height != width:
        raise ValueError(f"X has images of {height} x {width} pixels; square ones are wanted")
    if n < 2:
        raise ValueError(f"X has {n} image; common lines need at least two")
    if height < 8:
        raise ValueError(f"X has images of {height} pixels; common lines need at least 8")
    check_score(score)
    for name, value, divisor in (
        ("n_lines", n_lines, 8),
        ("n_coordinates", n_coordinates, 4),
        ("max_ring", max_ring, 1),
    ):
        if not isinstance(value, Integral) or value < 1 or value % divisor:
            multiple = f", a multiple of {divisor}," if divisor > 1 else ""
            raise ValueError(f"{name} is {value!r}; a positive integer{multiple} is wanted")
    if mask_radius is not None and not (isinstance(mask_radius, Real) and 0 < mask_radius <= height):
        raise ValueError(f"mask_radius is {mask_radius!r}; more than 0 and at most {height} pixels are wanted")


class _Preparation:
    """Images with white noise, phases flipped, shifts undone, in a smaller box of the same field of view."""

    def __init__(self, L, small, spectrum, pixel_size):
        self.L, self.small, self.pixel_size = L, small, pixel_size
        self.weights = np.sqrt(ring_weights(spectrum, L, half=True))
        self.weights[0, 0] = 0
        self.move = small // 2 * (L / small) - L // 2  # of the centre, in the larger box's pixels

    def __call__(self, images, ctf, shifts):
        L, small = self.L, self.small
        spectra = scipy.fft.rfft2(images - images.mean(axis=(1, 2), keepdims=True)) * self.weights
        if ctf is not None:
            np.negative(spectra, out=spectra, where=evaluate_ctf(ctf, L, self.pixel_size, half=True) < 0)
        if shifts is not None or self.move:
            total = np.full((len(images), 2), self.move) - (0 if shifts is None else shifts)
            phase_y, phase_x = shift_phases(total, L)
            spectra *= phase_y[:, :, None]
            spectra *= phase_x[:, None, :]
        if small < L:
            spectra = np.concatenate([spectra[:, : (small + 1) // 2], spectra[:, -(small // 2) :]], axis=1)
            spectra = spectra[:, :, : small // 2 + 1] * np.float32(small / L)
            if small % 2 == 0:
                spectra[:, small // 2] = 0
                spectra[:, :, small // 2] = 0
        return scipy.fft.irfft2(spectra, s=(small, small))


def _weigh_by_ctf(blocks, noise, ctf):
    """Take CTFs out of lines of flipped phases, in place; returns what the noise has become, averaged over images."""
    gains = np.abs(ctf).astype(np.float64)
    multiplicity = np.full(len(noise), 2.0)
    multiplicity[[0, -1]] = 1
    power = np.einsum("q,nqk->k", multiplicity, np.square(np.abs(blocks)), dtype=np.float64) / len(blocks)
    noise_power = multiplicity @ np.diagonal(noise, axis1=1, axis2=2)
    snr = (power - noise_power) / (noise_power * np.mean(gains**2, axis=0))
    ridge = _CTF_RIDGE / np.maximum(snr, 0.01)
    weights = (1 + ridge) * gains / (gains**2 + ridge)
    blocks *= weights[:, None].astype(np.float32)
    return noise * (weights.T @ weights / len(weights))


def _evaluate(blocks, part, n_lines, basis=None, *, derivative=False):
    """A part of the lines at ``pi a / n_lines`` from their angular frequencies, in the coordinates of a basis."""
    n, n_frequencies, n_radial = blocks.shape
    q = np.arange(part, n_frequencies, 2)
    chosen = blocks[:, part::2]
    if basis is not None:
        chosen = (chosen.reshape(-1, n_radial) @ basis).reshape(n, len(q), -1)
    factor = np.where((q == 0) | (q == n_frequencies - 1), 1.0, 2.0)[:, None]
    phase = factor * np.exp(1j * np.pi * np.outer(q, np.arange(n_lines)) / n_lines)
    if derivative:
        phase = phase * (1j * q[:, None])
    if part == 1:
        phase = phase * -1j  # the imaginary part of z is the real part of -i z
    waves = np.concatenate([phase.real, -phase.imag]).astype(np.float32)
    stacked = np.concatenate([chosen.real, chosen.imag], axis=1)
    return np.swapaxes(np.swapaxes(stacked, 1, 2) @ waves, 1, 2)


def _moved(parts, shift):
    """Even and odd parts of lines, multiplied by ``exp(2 pi i k shift)`` at k = 1, 2, ... cycles per box."""
    even, odd = parts
    angle = 2 * np.pi * shift * np.arange(1, even.shape[2] + 1)
    cosine, sine = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    return even * cosine - odd * sine, even * sine + odd * cosine


def _unfiltered(blocks, statistics, n_lines, n_coordinates):
    """Lines as they are in the directions of most signal, noise of variance 1, and the signal's variance."""
    coordinates, variance = [], []
    for part in (0, 1):
        white, _ = whitening(statistics.line_noise(part))
        values, vectors = np.linalg.eigh(white.T @ statistics.line_signal(part) @ white)
        keep = np.argsort(-values)[:n_coordinates]
        basis = (white @ vectors[:, keep]).astype(np.float32)
        coordinates.append(_evaluate(blocks, part, n_lines, basis))
        variance.append(np.maximum(values[keep], 0))
    return np.concatenate(coordinates, axis=2), np.concatenate(variance)
