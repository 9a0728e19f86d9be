"""Images as a likelihood sees them: the half plane of their Fourier transform, the noise made white."""

import numpy as np
import scipy.fft

from ..ctf import evaluate_ctf, validate_ctf
from ..fourier import check_images, half_plane, shift_phases
from ..particles import iter_chunks
from ..preprocessing import ring_weights

__all__ = ["FourierImages", "half_plane"]


class FourierImages:
    """Fourier coefficients of images in units of the noise, with the filter that a clean slice goes through.

    Image i at frequency k is ``contrast * filters[i] * exp(-2 pi i k . shift / L) * slice(k) + noise``, where
    the noise has variance 1 (of real and imaginary part together). Zero frequency is left out: the mean of an
    image tells of its background, not of its pose.

    Parameters
    ----------
    values : ndarray of shape (n_images, n_points), complex64
        Coefficients, phases counted from the centre pixel ``L // 2``, over the noise's standard deviation.
    filters : ndarray of shape (n_images, n_points) or (1, n_points), float32
        CTF over the noise's standard deviation; one row if it is the same for all.
    points : ndarray of shape (n_points, 2), float64
        (kx, ky), whole cycles per box, by rising radius, so that a smaller disc is a prefix: those of
        :func:`skcryo.fourier.half_plane` without the origin.
    L : int
        Box in pixels: the unit of the shifts.
    tilted : FourierImages, default=None
        Second images of the same particles, at the same points, whose rotations are those of the first times `turn`.
        Shifts of such pairs are of shape (n_images, 4), those of the second image last.
    turn : ndarray of shape (3, 3), default=None

    See Also
    --------
    fourier_images : Makes one from a stack.
    """

    def __init__(self, values, filters, points, L, tilted=None, turn=None):
        self.values = values
        self.filters = filters
        self.points = points
        self.radii = np.hypot(points[:, 0], points[:, 1])
        self.rings = np.rint(self.radii).astype(np.int64)
        self.L = L
        self.tilted, self.turn = tilted, turn

    @property
    def n_views(self):
        """1, or 2 of pairs."""
        return 1 if self.tilted is None else 2

    def views(self, rotations, shifts):
        """Go through the images of a particle one by one.

        Parameters
        ----------
        rotations : ndarray of shape (n_images, 3, 3)
        shifts : ndarray of shape (n_images, 2 * n_views)

        Yields
        ------
        images : FourierImages
            That are no pairs.
        rotations, shifts : ndarray of shape (n_images, 3, 3) and (n_images, 2)
            Theirs.
        """
        if self.tilted is None:
            yield self, rotations, shifts
            return
        yield FourierImages(self.values, self.filters, self.points, self.L), rotations, shifts[:, :2]
        yield self.tilted, rotations @ self.turn, shifts[:, 2:]

    def __len__(self):
        return len(self.values)

    def n_points(self, band):
        """Count the points within a band: a prefix of all.

        Parameters
        ----------
        band : float
            Cycles per box; beyond what the images hold, all points.

        Returns
        -------
        int
        """
        return int(np.searchsorted(self.radii, band * (1 + 1e-12), side="right"))

    def take(self, index):
        """Return some of the images.

        Parameters
        ----------
        index : slice or array-like of shape (m,)
            A slice makes a view, an array a copy.

        Returns
        -------
        FourierImages
        """
        filters = self.filters if len(self.filters) == 1 else self.filters[index]
        tilted = None if self.tilted is None else self.tilted.take(index)
        return FourierImages(self.values[index], filters, self.points, self.L, tilted, self.turn)

    def rescaled(self, factors):
        """Return the same images in other units of the noise.

        Parameters
        ----------
        factors : array-like of shape (n_points,) or (n_images, 1)
            One over the noise's standard deviation in present units.

        Returns
        -------
        FourierImages
        """
        factors = np.asarray(factors, dtype=np.float32)
        tilted = None if self.tilted is None else self.tilted.rescaled(factors)
        return FourierImages(self.values * factors, self.filters * factors, self.points, self.L, tilted, self.turn)

    @classmethod
    def from_stack(cls, stack, spectrum, max_ring, *, ctf=None, pixel_size=None, chunk_size=None):
        """Transform and whiten a stack, reading it once, in chunks.

        Parameters
        ----------
        stack : ParticleStack or ndarray of shape (n_images, L, L)
            Images; a CTF that belongs to the stack is given as `ctf`.
        spectrum : array-like of shape (L // 2 + 1,)
            Power of the noise by ring, as of :func:`skcryo.preprocessing.noise_spectrum`.
        max_ring : float
            Highest frequency that is kept, in cycles per box. Never beyond Nyquist, ``L / 2``, nor are the
            Nyquist terms of an even box, which a shift keeps only a part of.
        ctf : structured array of shape (n_images,), default=None
        pixel_size : float, default=None
            Angstrom; needed with a `ctf`.
        chunk_size : int, default=None
            Images read at a time; None chooses by memory.

        Returns
        -------
        FourierImages

        Raises
        ------
        ValueError
            If a pixel is not finite, or shapes do not fit.

        Examples
        --------
        >>> import numpy as np
        >>> from skcryo.alignment import FourierImages
        >>> noise = 3 * np.random.default_rng(0).standard_normal((500, 8, 8))
        >>> images = FourierImages.from_stack(noise, np.full(5, 9.0), max_ring=2)
        >>> images.values.shape, images.filters.shape, (np.abs(images.values) ** 2).mean().round(1).item()
        ((500, 6), (1, 6), 1.0)
        """
        n, L, _ = check_images(stack, "stack").shape
        if ctf is not None:
            ctf = validate_ctf(ctf, n)
        points, index = half_plane(L, min(max_ring, L / 2) / L)
        order = np.lexsort((points[:, 1], points[:, 0], np.square(points).sum(axis=1)))[1:]
        points = points[order].astype(np.float64)
        row, column = np.divmod(index[order], L // 2 + 1)
        # E|FFT|^2 = L^2 times the spectrum
        inverse_std = np.sqrt(ring_weights(spectrum, L, half=True)[row, column]).astype(np.float32)
        phase_y, phase_x = shift_phases(np.full((1, 2), -(L // 2)), L)
        to_centre = (phase_y[0, row] * phase_x[0, column] * inverse_std / L).astype(np.complex64)
        values = np.empty((n, len(points)), dtype=np.complex64)
        filters = np.empty((n if ctf is not None else 1, len(points)), dtype=np.float32)
        for where, chunk in iter_chunks(stack, chunk_size=chunk_size, check_finite=True):
            # A background far from zero would cost digits.
            chunk = chunk - chunk.mean(axis=(1, 2), keepdims=True)
            values[where] = scipy.fft.rfft2(chunk)[:, row, column] * to_centre
            if ctf is not None:
                filters[where] = evaluate_ctf(ctf[where], L, pixel_size, half=True)[:, row, column]
        if ctf is None:
            filters[:] = 1
        filters *= inverse_std / np.float32(L)
        return cls(values, filters, points, L)

    def centred_phases(self, shifts, n_points=None):
        """Return the factors of the coefficients that undo shifts.

        Parameters
        ----------
        shifts : array-like of shape (n, 2)
            (x, y) in pixels.
        n_points : int, default=None
            How many points, from the first; None: all.

        Returns
        -------
        ndarray of shape (n, n_points), complex64
        """
        points = self.points[:n_points]
        angle = (2 * np.pi / self.L) * (np.asarray(shifts, dtype=np.float64) @ points.T)
        return np.exp(1j * angle).astype(np.complex64)
