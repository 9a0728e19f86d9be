"""Images as the in-plane search sees them: a band of their Fourier transforms, times CTF over noise."""

import numpy as np

from .._products import row_products
from .._validation import padded_to
from ..ctf import evaluate_ctf_polar
from ._in_plane_span import phase_table

__all__ = ["BandImages", "Coefficients", "ring_filters"]

_BLOCK = 256
_N_AZIMUTHS = 12  # over half a turn, at which the square of an astigmatic CTF is averaged


class BandImages:
    """Fourier coefficients of images times CTF over noise variance, with what is known of their shifts.

    Parameters
    ----------
    values : ndarray of shape (n_images, n_points), complex64
        In units of a noise of variance 1, times CTF over noise.
    filters : ndarray of shape (n_images, n_rings) or (1, n_rings), float32
        Squared CTF over the noise's variance at the rings of the basis.
    points : ndarray of shape (n_points, 2)
        Cycles per box.
    L : int
    shifts : ndarray of shape (n_images, 2), default=None
        (x, y), px: where particles are thought to be.
    """

    def __init__(self, values, filters, points, L, shifts=None):
        self.values, self.filters, self.points, self.L = values, filters, points, L
        self.shifts = np.zeros((len(values), 2)) if shifts is None else shifts

    def __len__(self):
        return len(self.values)

    def blocks(self, size=_BLOCK):
        """Slices that cover all images."""
        return [slice(start, min(start + size, len(self))) for start in range(0, len(self), size)]

    def squares(self, part):
        """Squared filters of some images, a row for each."""
        if len(self.filters) == len(self):
            return self.filters[part]
        return np.broadcast_to(self.filters, (part.stop - part.start, self.filters.shape[1]))

    def centred(self, part, shifts=None):
        """Values of some images, moved back by their shifts: (n, 2 n_points), float32, real and imaginary by turns."""
        shifts = self.shifts[part] if shifts is None else shifts
        values = self.values[part]
        if np.any(shifts):
            values = values * phase_table(shifts, self.points, self.L)
        return np.ascontiguousarray(values).view(np.float32)

    def select(self, index):
        """Some of the images, by index or slice."""
        filters = self.filters if len(self.filters) == 1 else self.filters[index]
        return BandImages(self.values[index], filters, self.points, self.L, self.shifts[index])

    @classmethod
    def from_stack(cls, stack, spectrum, max_ring, basis, *, ctf=None, pixel_size=None):
        """Read a stack; images smaller than the basis are padded. Its shifts are undone."""
        from ..alignment import FourierImages  # which itself needs this package

        stack = padded_to(stack, basis.L)
        images = FourierImages.from_stack(stack, spectrum, max_ring, ctf=ctf, pixel_size=pixel_size)
        values = images.values
        values *= images.filters * np.float32(images.L)
        if stack.shifts is not None:
            values *= images.centred_phases(stack.shifts)
        return cls(values, ring_filters(spectrum, basis, ctf, pixel_size), images.points, images.L)


def ring_filters(spectrum, basis, ctf, pixel_size):
    """Squared CTF over the noise's variance at the rings of the basis: (n_images or 1, n_rings), float32."""
    radii = basis.ring_radii
    inverse = 1 / np.asarray(spectrum)[np.minimum(np.rint(radii * basis.L).astype(int), len(spectrum) - 1)]
    inverse[radii * basis.L < 0.5] = 0  # zero frequency is not looked at
    if ctf is None:
        return inverse[None].astype(np.float32)
    azimuths = np.pi * np.arange(_N_AZIMUTHS) / _N_AZIMUTHS
    out = np.empty((len(ctf), len(radii)), dtype=np.float32)
    for start in range(0, len(ctf), _BLOCK):
        part = slice(start, start + _BLOCK)
        values = evaluate_ctf_polar(ctf[part], radii, azimuths, pixel_size)
        out[part] = np.square(values, out=values).mean(axis=2) * inverse
    return out


class Coefficients:
    """Coefficients of images in a span, moved back by shifts: made when wanted, at the shifts known kept.

    Parameters
    ----------
    span : SteerableSpan
    images : BandImages
    known : ndarray of shape (n_images, 2)
        Shifts at which coefficients are kept.
    """

    def __init__(self, span, images, known):
        self.span, self.images, self.known = span, images, known
        self._centre = span.table(np.zeros((1, 2)))
        self._kept = None
        self._table = None, None

    def at(self, part, shifts):
        """Of the images of a slice, moved back by `shifts` of all images: (n, n_coefficients), float32."""
        if shifts is not self.known:
            return row_products(self.images.centred(part, shifts[part]), self._centre)
        if self._kept is None:
            kept = np.empty((len(self.images), self.span.n_coefficients), dtype=np.float32)
            for block in self.images.blocks():
                row_products(self.images.centred(block, self.known[block]), self._centre, out=kept[block])
            self._kept = kept
        return self._kept[part]

    def near(self, part, shifts, offsets):
        """The same at all offsets from the shifts: (n, n_offsets, n_coefficients), float32."""
        if len(offsets) == 1:
            return self.at(part, shifts)[:, None]
        if self._table[0] is not offsets:
            self._table = offsets, self.span.table(offsets)
        b = row_products(self.images.centred(part, shifts[part]), self._table[1])
        return b.reshape(len(b), len(offsets), -1)
