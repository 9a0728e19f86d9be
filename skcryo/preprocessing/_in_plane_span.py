"""The span of functions in which class averages lie, and how images look in it."""

import numpy as np
import scipy.fft
from scipy.linalg import eigh

from .._products import row_products
from ..decomposition._disc_basis import disc_basis
from ..decomposition._steerable_covariance import SteerableMoments, solve_covariance
from ..fourier import shift_phases

__all__ = ["SteerableSpan", "band_matrix", "find_span", "phase_table"]

_LEAST_VARIANCE = 1e-6  # of a component, relative to the largest
_BLOCK_BYTES = 64 * 2**20


class SteerableSpan:
    """Components of images, each of one angular frequency, with their variances.

    A class average is given by complex coefficients; turning it by an angle multiplies those of angular frequency n by
    ``exp(-i n angle)``. They are kept as real numbers: of each n in turn, all real parts, then all imaginary parts.

    Parameters
    ----------
    parameters : tuple
        Of :func:`~skcryo.decomposition._disc_basis.disc_basis`.
    vectors : list of ndarray of shape (sizes[n], r_n)
        Components in the basis, of each angular frequency.
    variances : list of ndarray of shape (r_n,)
        Variance of the coefficients of noise-free images: the prior of class averages.
    points : ndarray of shape (n_points, 2)
        Frequencies of the images, in cycles per box.
    """

    def __init__(self, parameters, vectors, variances, points):
        self._parameters = parameters
        basis = self.basis
        used = [n for n, v in enumerate(variances) if len(v)]
        self.frequencies = np.array(used)
        self.vectors = [vectors[n] for n in used]
        self.variances = [variances[n] for n in used]
        self.rings = [basis.ring_values[n] @ vectors[n] for n in used]
        self.columns, blocks, start = [], [], 0
        matrix = band_matrix(basis, points)
        for n, v in zip(used, self.vectors):
            parts = [matrix[:, columns] @ v for columns in basis.columns(n) if columns is not None]
            width = v.shape[1]
            self.columns.append(tuple(slice(start + i * width, start + (i + 1) * width) for i in range(len(parts))))
            start += len(parts) * width
            blocks += parts
        self.functions = np.concatenate(blocks, axis=1)  # (n_points, n_coefficients) complex
        self.points = points

    @property
    def basis(self):
        """The disc's functions; looked up, for they are no part of what is pickled."""
        return disc_basis(*self._parameters)

    @property
    def n_coefficients(self):
        """Number of real coefficients."""
        return self.functions.shape[1]

    def table(self, offsets):
        """Matrix from images (rows of interleaved real and imaginary parts) to coefficients at every offset.

        Parameters
        ----------
        offsets : ndarray of shape (n_offsets, 2)
            (x, y), px.

        Returns
        -------
        ndarray of shape (2 n_points, n_offsets * n_coefficients), float32
        """
        phases = phase_table(-offsets, self.points, self.basis.L)
        moved = self.functions[:, None, :] * phases.T[:, :, None]
        return interleaved(moved.reshape(len(self.points), -1))

    def ring_power(self, averages):
        """Power of averages by ring, which a squared filter weighs: (k, n_rings), float32."""
        power = np.zeros((len(averages), len(self.basis.ring_radii)))
        for rings, columns in zip(self.rings, self.columns):
            for part in columns:
                power += (averages[:, part] @ rings.T) ** 2
        return power.astype(np.float32)

    def posterior_means(self, sums, filters):
        """Averages expected under the prior, from sums over images of coefficients and of squared filters.

        Parameters
        ----------
        sums : ndarray of shape (k, n_coefficients)
        filters : ndarray of shape (k, n_rings)

        Returns
        -------
        ndarray of shape (k, n_coefficients), float64
        """
        out = np.empty(sums.shape)
        for rings, variances, columns in zip(self.rings, self.variances, self.columns):
            roots = np.sqrt(variances)
            scaled = rings * roots
            system = np.einsum("kq,qa,qb->kab", filters, scaled, scaled, optimize=True)
            system += np.eye(len(roots))
            right = np.stack([sums[:, part] * roots for part in columns], axis=2)
            solved = np.linalg.solve(system, right) * roots[:, None]
            for i, part in enumerate(columns):
                out[:, part] = solved[:, :, i]
        return out

    def posterior_covariances(self, filters):
        """Covariances of averages given their images, from sums of squared filters; of each n, (k, r_n, r_n)."""
        out = []
        for rings, variances in zip(self.rings, self.variances):
            scaled = rings * np.sqrt(variances)
            system = np.einsum("kq,qa,qb->kab", filters, scaled, scaled, optimize=True)
            system += np.eye(len(variances))
            out.append(np.linalg.inv(system) * np.sqrt(np.outer(variances, variances)))
        return out

    def shares(self, coefficients, squares, averages, labels, covariances):
        """How averages would change were an image in them twice: (n, n_coefficients).

        Parameters
        ----------
        coefficients : ndarray of shape (n, n_coefficients)
            Of the images, turned as their averages are.
        squares : ndarray of shape (n, n_rings)
        averages : ndarray of shape (n, n_coefficients)
            Of the images' classes.
        labels : ndarray of shape (n,), int
        covariances : list
            Of :meth:`posterior_covariances`.
        """
        out = np.empty_like(coefficients)
        for rings, columns, covariance in zip(self.rings, self.columns, covariances):
            for part in columns:
                residual = coefficients[:, part] - ((averages[:, part] @ rings.T) * squares) @ rings
                out[:, part] = np.einsum("nab,nb->na", covariance[labels], residual)
        return out

    def images(self, averages):
        """Averages as images of ``basis.L`` px: (k, L, L), float32."""
        coefficients = np.zeros((len(averages), self.basis.n_functions))
        for n, vectors, columns in zip(self.frequencies, self.vectors, self.columns):
            for part, where in zip(columns, self.basis.columns(n)):
                coefficients[:, where] = averages[:, part] @ vectors.T
        return self.basis.synthesize(coefficients)

    def turned(self, coefficients, angles):
        """Coefficients of turned images: (n, n_coefficients) and (n,) radians."""
        out = coefficients.copy()
        for n, columns in zip(self.frequencies, self.columns):
            if len(columns) == 2:
                c, s = np.cos(n * angles)[:, None], np.sin(n * angles)[:, None]
                real, imaginary = (coefficients[:, part] for part in columns)
                out[:, columns[0]], out[:, columns[1]] = c * real + s * imaginary, c * imaginary - s * real
        return out

    def products(self, coefficients, averages):
        """Complex products ``conj(b) a`` by angular frequency of each row with its average: (n, n_frequencies)."""
        out = np.empty((len(coefficients), len(self.frequencies)), dtype=np.complex128)
        for i, columns in enumerate(self.columns):
            b, a = coefficients[:, columns[0]], averages[:, columns[0]]
            out[:, i] = np.einsum("nj,nj->n", b, a)
            if len(columns) == 2:
                y, v = coefficients[:, columns[1]], averages[:, columns[1]]
                out[:, i] += np.einsum("nj,nj->n", y, v)
                out[:, i] += 1j * (np.einsum("nj,nj->n", b, v) - np.einsum("nj,nj->n", y, a))
        return out


def find_span(images, parameters):
    """Components above the noise of images as they lie, with their CTFs taken out.

    Parameters
    ----------
    images : BandImages
        Centred as far as is known.
    parameters : tuple
        Of the basis.

    Returns
    -------
    SteerableSpan
    """
    basis = disc_basis(*parameters)
    moments = SteerableMoments(basis)
    matrix = interleaved(band_matrix(basis, images.points))
    for part in images.blocks():
        moments.add(row_products(images.centred(part), matrix), images.squares(part))
    mean = moments.mean()
    vectors, variances = [], []
    for n in range(len(basis.sizes)):
        covariance, rank = solve_covariance(moments, n, mean, 1.0)
        if n == 0:
            # the mean is one more direction, along which class averages may lie anywhere
            covariance, rank = covariance + np.outer(mean, mean), rank + 1
        values, directions = eigh(covariance)
        order = np.argsort(-values, kind="stable")[:rank]
        order = order[values[order] > 0]
        variances.append(values[order])
        directions = directions[:, order]
        vectors.append(directions * np.sign(directions[np.abs(directions).argmax(axis=0), np.arange(len(order))]))
    largest = max((v.max() for v in variances if len(v)), default=0.0)
    for n, v in enumerate(variances):
        kept = v > _LEAST_VARIANCE * largest
        vectors[n], variances[n] = vectors[n][:, kept], v[kept]
    if largest == 0:
        vectors[0], variances[0] = np.eye(basis.sizes[0], 1), np.ones(1)
    return SteerableSpan(parameters, vectors, variances, images.points)


def band_matrix(basis, points):
    """Fourier transforms of the basis' functions, orthonormal, at `points`: (n_points, n_functions), complex64."""
    L, n = basis.L, basis.n_functions
    row, column = points[:, 1].astype(int), points[:, 0].astype(int)
    phase_y, phase_x = shift_phases(np.full((1, 2), -(L // 2)), L)
    to_centre = phase_y[0, row] * phase_x[0, column] / L
    out = np.empty((len(points), n), dtype=np.complex64)
    size = max(1, _BLOCK_BYTES // (16 * L * L))
    for start in range(0, n, size):
        some = np.arange(start, min(start + size, n))
        functions = basis.synthesize(np.eye(n, dtype=np.float32)[some])
        out[:, some] = (scipy.fft.rfft2(functions)[:, row, column] * to_centre).T
    return out


def interleaved(functions):
    """Real matrix of which products with interleaved real and imaginary parts are scalar products of images."""
    out = np.empty((2 * len(functions), functions.shape[1]), dtype=np.float32)
    out[0::2], out[1::2] = 2 * functions.real, 2 * functions.imag
    return out


def phase_table(shifts, points, L):
    """Factors ``exp(2 pi i k shift / L)`` that undo shifts: (n, n_points), complex64."""
    k = points.astype(int)
    reach = int(np.abs(k).max())
    waves = (2j * np.pi / L) * np.arange(-reach, reach + 1)
    # a factor for x times one for y: few exponentials
    x, y = (np.exp(shift[:, None] * waves).astype(np.complex64) for shift in np.asarray(shifts, dtype=np.float64).T)
    return x[:, k[:, 0] + reach] * y[:, k[:, 1] + reach]
