"""The images of a fit or a predict, read and turned into features within a bound of memory."""

import numpy as np

from .._validation import iter_finite_chunks, resolve_pixel_size
from ..alignment import class_averages
from ..particles import iter_chunks

CHUNK = 192 * 2**20  # bytes of features at a time where they are not kept
_PER_CLASS = 100  # bytes that a search holds for an image and a class


class Images:
    """A stack with its CTFs, for one estimator.

    Parameters
    ----------
    estimator : estimator
        Whose `n_features_in_` tells images from rows that are none.
    stack : ParticleStack
    ctf : structured array or None
    """

    def __init__(self, estimator, stack, ctf, pixel_size=None, n_threads=1):
        self.estimator = estimator
        self.stack = stack
        self.ctf = ctf
        self.pixel_size = pixel_size or resolve_pixel_size(stack)
        if ctf is not None and self.pixel_size is None:
            raise ValueError("CTFs need the pixel size: give X as a ParticleStack with pixel_size in Angstrom")
        self.n_threads = n_threads
        self.size = stack.shape[1]
        self.is_image = estimator.n_features_in_ == self.size**2
        self.dtype = np.float32 if self.is_image and self.size >= 8 else np.float64

    def __len__(self):
        return len(self.stack)

    def select(self, index):
        """Some of the images."""
        ctf = None if self.ctf is None else self.ctf[index]
        return Images(self.estimator, self.stack[index], ctf, self.pixel_size, self.n_threads)

    def features(self, search, limit=None):
        """Yield (slice, features) of all images, at most `limit` bytes of features at a time (None: `CHUNK`)."""
        per_chunk = self._per_chunk(search, limit or CHUNK)
        for start in range(0, len(self), per_chunk):
            part = self.select(slice(start, min(start + per_chunk, len(self))))
            chunks = iter_finite_chunks(part.stack, dtype=self.dtype)
            yield slice(start, start + len(part)), search.prepare(chunks, len(part), part.ctf, self.pixel_size)

    def _per_chunk(self, search, limit):
        """Images whose features, and what a search of all classes notes of each, stay within `limit`."""
        each = search.bytes_per_image(self.ctf) + _PER_CLASS * self.estimator.n_clusters
        return max(int(limit // each), 1)

    def moved_back(self, search, shifts):
        """Yield (slice, whole-pixel shifts, features of images moved back by them)."""
        known = np.rint(shifts)
        per_chunk = self._per_chunk(search, CHUNK)
        for start in range(0, len(self), per_chunk):
            part = self.select(slice(start, min(start + per_chunk, len(self))))
            where = slice(start, start + len(part))
            moves = -known[where].astype(int)
            chunks = (
                (inner, np.stack([np.roll(image, (y, x), axis=(0, 1)) for image, (x, y) in zip(pixels, moves[inner])]))
                for inner, pixels in iter_chunks(part.stack, dtype=self.dtype)
            )
            yield where, known[where], search.prepare(chunks, len(part), part.ctf, self.pixel_size)

    def averages(self, labels, angles, shifts, n_classes, sample_weight=None):
        """Class averages (n_classes, L, L) of the aligned images, and their total weights."""
        if not self.is_image or self.size < 8:
            return self._plain_averages(labels, n_classes, sample_weight)
        return class_averages(
            self.stack, labels, angles, shifts, n_classes, ctf=self.ctf, pixel_size=self.pixel_size,
            sample_weight=sample_weight, n_jobs=self.n_threads,
        )

    def _plain_averages(self, labels, n_classes, sample_weight):
        pixels = np.asarray(self.stack, np.float64).reshape(len(self), -1)
        weights = np.zeros((n_classes, len(self)))
        weights[labels, np.arange(len(self))] = 1 if sample_weight is None else sample_weight
        totals = weights.sum(1)
        averages = weights @ pixels / np.where(totals > 0, totals, 1)[:, None]
        return averages.reshape(n_classes, self.size, self.size), totals
