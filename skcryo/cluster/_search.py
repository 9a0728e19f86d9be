"""One face for the searches that the clusterer can use: which class average is an image closest to, and how turned.

A search has ``prepare(chunks, n, ctf, pixel_size)``, which makes features of n images that come as (slice, pixels);
``find(features, averages, ...)``, which with `near` looks for shifts only around the previous ones; ``bytes_per_image``
of the features; whether it searches ``shifts``, up to ``max_shift`` (px); ``near_step`` (px), the spacing of shifts of
a search that knows no `near` and is given images moved back by their known shifts instead; and ``power``: the power of
the costs that adds up to the inertia (2 for distances, 1 where costs are squared distances already).
"""

from dataclasses import dataclass

import numpy as np
from scipy import fft

from ..alignment import PolarFeatures, PolarMatcher
from ._emd import EMDMatcher

SMALLEST_IMAGE = 8  # px; smaller images, and rows that are no image, are compared pixel by pixel


@dataclass
class Found:
    """Best class, angle (radians), shift (x, y; px) and cost of each image; `all_costs` (n, k) if asked for."""

    labels: np.ndarray
    angles: np.ndarray
    shifts: np.ndarray
    costs: np.ndarray
    all_costs: np.ndarray | None


def join(parts):
    """What was found in successive parts of the images, as one."""
    if len(parts) == 1:
        return parts[0]
    fields = ([getattr(part, name) for part in parts] for name in Found.__dataclass_fields__)
    return Found(*(None if values[0] is None else np.concatenate(values) for values in fields))


class WassersteinSearch:
    """Costs are wavelet earth mover's distances."""

    power = 2

    def __init__(self, size, n_angles, max_shift, n_threads=None, mask_radius=None):
        self.n_threads = n_threads
        self.matcher = EMDMatcher(
            size, n_angles=n_angles, max_shift=max_shift, n_threads=n_threads, mask_radius=mask_radius
        )
        self.shifts = len(self.matcher.shifts) > 1
        self.max_shift = max_shift
        self.near_step = self.matcher.shift_step

    def prepare(self, chunks, n, ctf=None, pixel_size=None):
        return self.matcher.prepare_chunks(chunks, n, ctf, pixel_size)

    def bytes_per_image(self, ctf):
        m = self.matcher
        return 4 * (m.size**2 if len(m.shifts) > 1 else m.wavelets.row_length)

    def find(self, features, averages, *, bias=None, previous=None, return_all=False, near=False):
        m = self.matcher.match(features, averages, bias=bias, previous=previous, return_all=return_all)
        return Found(m.labels, m.angles, m.shifts, m.distances, m.all_distances)


class PolarSearch:
    """Costs are squared distances, ring by ring in Fourier space."""

    power = 1

    def __init__(self, size, n_angles, max_shift, metric, lowpass, n_threads=None):
        step = max(1.25, size / 50)
        self.shifts = max_shift > 0
        self.max_shift = max_shift
        self.near_step = None
        self.matcher = PolarMatcher(
            size, n_angles=n_angles, metric=metric, lowpass=lowpass, max_shift=max_shift, shift_step=step
        )
        self.n_threads = n_threads

    def prepare(self, chunks, n, ctf=None, pixel_size=None):
        parts = [
            self.matcher.prepare(pixels, None if ctf is None else ctf[where], pixel_size) for where, pixels in chunks
        ]
        return PolarFeatures.concatenate(parts)

    def bytes_per_image(self, ctf):
        grid = self.matcher.grid
        return 4 * grid.n_features + (0 if ctf is None else 64 * grid.n_rings)

    def find(self, features, averages, *, bias=None, previous=None, return_all=False, near=False):
        m = self.matcher.match(
            features, self.matcher.references(averages), bias=bias, previous=previous if near else None,
            return_all=return_all, n_jobs=self.n_threads,
        )
        return Found(m.labels, m.angles, m.shifts, m.distances2, m.all_distances2)


class FlatSearch:
    """Costs are squared distances of pixels as they lie, without rotation, mask or shift.

    With the metric "sobolev" Fourier coefficients are divided by their frequency (in cycles per image, at least 1).
    """

    power = 1
    shifts = False
    n_threads = None

    def __init__(self, size, metric):
        self.size = size
        k = np.hypot(fft.fftfreq(size, 1 / size)[:, None], fft.fftfreq(size, 1 / size)[None])
        self.weights = 1 / np.maximum(k, 1) if metric == "sobolev" else None

    def prepare(self, chunks, n, ctf=None, pixel_size=None):
        if ctf is not None:
            raise ValueError(f"images of fewer than {SMALLEST_IMAGE} x {SMALLEST_IMAGE} pixels cannot carry CTFs")
        return np.concatenate([self._weigh(np.asarray(pixels, np.float64)) for _, pixels in chunks])

    def _weigh(self, images):
        if self.weights is None:
            return images.reshape(len(images), -1)
        spectrum = fft.fft2(images, norm="ortho") * self.weights
        return np.concatenate([spectrum.real, spectrum.imag], axis=1).reshape(len(images), -1)

    def bytes_per_image(self, ctf):
        return 16 * self.size**2

    def find(self, features, averages, *, bias=None, previous=None, return_all=False, near=False):
        averages = self._weigh(np.asarray(averages, np.float64))
        costs = np.stack([((features - average) ** 2).sum(1) for average in averages], axis=1)
        labels = (costs if bias is None else costs + bias).argmin(1).astype(np.int32)
        n = len(features)
        return Found(labels, np.zeros(n), np.zeros((n, 2)), costs[np.arange(n), labels], costs if return_all else None)


def make_search(*, metric, size, n_angles, max_shift, lowpass, is_image, n_threads=None):
    """The search for a metric; `is_image` is False for rows that are no square image."""
    if not is_image or size < SMALLEST_IMAGE:
        if metric == "w1":
            return WassersteinSearch(size, 1, 0, n_threads, mask_radius=np.inf)
        return FlatSearch(size, metric)
    if metric == "w1":
        return WassersteinSearch(size, n_angles, max_shift, n_threads)
    if lowpass == "auto":
        lowpass = size / (64 if metric == "l2" else 128)
    return PolarSearch(size, n_angles, max_shift, metric, lowpass, n_threads)
