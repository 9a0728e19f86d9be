"""What the network of :class:`skcryo.orientation.EquivariantPoseNet` sees of an image: a few steerable coefficients."""

import numpy as np
from scipy.interpolate import CubicSpline
from scipy.ndimage import gaussian_filter1d

from .._products import row_products
from ..alignment import FourierImages
from ..decomposition._disc_basis import disc_basis

__all__ = ["SteerableInputs"]

_LEAST_VARIANCE = 1e-4  # of a component, as a share of the largest: what is below tells nothing of a pose
_CHUNK = 1000
_MARGIN = 0.045  # of the box: what lies as close to its edge is not looked at, nor are filters to reach farther
_SMOOTHNESS = 1.5  # rings


class SteerableInputs:
    """Steerable coefficients of images, CTFs undone, as much denoised as linear maps can.

    Images of :class:`skcryo.alignment.FourierImages` are Wiener-filtered point by point, multiplied with prolate
    functions of one angular frequency each (:class:`skcryo.decomposition._disc_basis.DiscBasis`), and reduced to the
    components in which the noise-free images vary, by the linear map of least mean square error for each angular
    frequency. Filters change smoothly with frequency, so that they do not bring in what the corners hold, which is lost
    when an image is turned: coefficients of turned images are then 0.5 % off instead of 4 %. Turning an image by a
    multiplies the coefficients of angular frequency n by ``exp(-i n a)``, a mirror image has the conjugate ones. All is
    one real matrix for all images and one filter for each.

    Parameters
    ----------
    images : FourierImages
        Gives box and points; not kept.
    power : ndarray of shape (n_rings,)
        Mean power of clean slices by ring.
    band : float
        Highest frequency, in cycles per box.
    max_angular_frequency : int

    Attributes
    ----------
    n_points : int
    sizes : list of int
        Number of components of each angular frequency.
    """

    def __init__(self, images, power, band, max_angular_frequency):
        L = images.L
        self.band = band
        self.n_points = images.n_points(band)
        self.power = _smooth(power, np.hypot(*images.points[: self.n_points].T))
        self.mean_filter = np.sqrt(np.square(images.filters[:, : self.n_points]).mean(axis=0, dtype=np.float64))
        margin = round(_MARGIN * L)
        basis = disc_basis(L - 2 * margin, band / L, max_angular_frequency)
        functions = basis.synthesize(np.eye(basis.n_functions, dtype=np.float32))
        functions = np.pad(functions, ((0, 0), (margin, margin), (margin, margin)))
        waves = FourierImages.from_stack(functions, np.ones(L // 2 + 1), band).values.T
        size = basis.sizes[0]
        # Combinations of the functions of angular frequency 0 that do not see the images' mean, which is not known.
        level = functions[:size].sum(axis=(1, 2), dtype=np.float64)[:, None]
        blind = np.linalg.qr(level, mode="complete")[0][:, 1:].astype(np.float32)
        waves = np.concatenate([waves[:, :size] @ blind, waves[:, size:]], axis=1)
        # Parseval: of the other half plane come the conjugates. Angular frequency by angular frequency, real parts
        # first.
        self._matrix = np.ascontiguousarray(2 * np.concatenate([waves.real, waves.imag]))
        self.sizes = [size - 1, *basis.sizes[1:]]
        self._mean = np.zeros(self._matrix.shape[1], dtype=np.float32)

    def __call__(self, images):
        """Coefficients of images.

        Parameters
        ----------
        images : FourierImages
            Of at least `n_points` points, the first of which are as at the start.

        Returns
        -------
        ndarray of shape (n, n_components), float32
            Of each angular frequency real parts, then imaginary parts (none of frequency 0).
        """
        out = np.empty((len(images), self._matrix.shape[1]), dtype=np.float32)
        for start in range(0, len(images), _CHUNK):
            part = images.take(slice(start, start + _CHUNK))
            out[start : start + _CHUNK] = self.of_values(part.values[:, : self.n_points], part.filters)
        return out

    def of_values(self, values, filters):
        """As a call, of values (n, n_points) and filters (n or 1, at least n_points)."""
        values = values * self._wiener(filters[:, : self.n_points])
        both = np.concatenate([values.real, values.imag], axis=1)
        return row_products(both, self._matrix) - self._mean

    def filters(self, images):
        """What coefficients of images are multiplied with, (n or 1, n_points) float32."""
        return self._wiener(images.filters[:, : self.n_points])

    def _wiener(self, filters):
        weights = self.mean_filter * filters * self.power / (np.square(filters) * self.power + 1)
        return weights.astype(np.float32)

    def reduce(self, noisy, clean):
        """Go over to components, learnt from images with noise and the same as they should be.

        Parameters
        ----------
        noisy, clean : ndarray of shape (n, n_components)
            What calls give of images.
        """
        self._reduce(noisy, lambda given, parts: given.T @ _centred(np.concatenate([clean[:, part] for part in parts])))

    def reduce_by_noise(self, noisy, noise):
        """Go over to components, learnt from images with noise, and noise.

        Parameters
        ----------
        noisy : ndarray of shape (n, n_components)
        noise : ndarray of shape (m, n_components)
        """

        def signal(given, parts):
            only = np.concatenate([noise[:, part] for part in parts]).astype(np.float64)
            values, vectors = np.linalg.eigh(given.T @ given - only.T @ only * (len(given) / len(only)))
            return (vectors * np.maximum(values, 0)) @ vectors.T

        self._reduce(noisy, signal)

    def _reduce(self, noisy, cross):
        """`cross(given, parts)`: sum over images of given times wanted coefficients of an angular frequency."""
        found, start = [], 0
        mean = np.zeros(noisy.shape[1])
        for n, size in enumerate(self.sizes):
            parts = [slice(start, start + size)] + ([slice(start + size, start + 2 * size)] if n else [])
            start = parts[-1].stop
            given = np.concatenate([noisy[:, part] for part in parts]).astype(np.float64)
            if n == 0:  # what is the same for all images tells nothing of their poses
                mean[parts[0]] = given.mean(axis=0)
                given = _centred(given)
            second = given.T @ given
            second[np.diag_indices(size)] += 1e-6 * np.trace(second) / max(size, 1) + 1e-30
            map_ = np.linalg.solve(second, cross(given, parts))
            values, vectors = np.linalg.eigh(map_.T @ second @ map_ / len(given))
            found.append((parts, values[::-1], (map_ @ vectors)[:, ::-1]))
        largest = max(values.max(initial=0) for _, values, _ in found)
        blocks, sizes, total = [], [], 0.0
        for n, (parts, values, maps) in enumerate(found):
            kept = max(int((values > _LEAST_VARIANCE * largest).sum()), n == 1)
            sizes.append(kept)
            total += values[:kept].sum() * len(parts)
            for part in parts:
                block = np.zeros((len(mean), kept))
                block[part] = maps[:, :kept]
                blocks.append(block)
        while sizes[-1] == 0:
            sizes.pop()
        reduction = np.concatenate(blocks, axis=1) / np.sqrt(max(total, 1e-30))
        self._matrix = (self._matrix.astype(np.float64) @ reduction).astype(np.float32)
        self._mean = (mean @ reduction).astype(np.float32)
        self.sizes = sizes


def _centred(values):
    return values - values.mean(axis=0)


def _smooth(power, radii):
    """Power by ring as a smooth function of frequency."""
    power = np.log(np.maximum(power, 1e-30))
    return np.exp(CubicSpline(np.arange(len(power)), gaussian_filter1d(power, _SMOOTHNESS, mode="nearest"))(radii))
