"""Principal components of images over all their turns and mirror images."""

from numbers import Integral, Real

import numpy as np
from scipy.linalg import eigh
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin

from .._products import row_products
from .._validation import (
    Interval,
    StackTagsMixin,
    StrOptions,
    _fit_context,
    check_is_fitted,
    iter_finite_chunks,
    resolve_optics,
    validate_lazy,
)
from ..ctf import apply_ctf, evaluate_ctf_polar
from ..fourier import shift_images
from ._disc_basis import disc_basis
from ._steerable_covariance import SteerableMoments, solve_covariance

__all__ = ["SteerablePCA"]

_SMALLEST_BOX = 8
_MOST_WAVES = 24.0  # of the band, in cycles per radius
_N_AZIMUTHS = 12  # over half a turn, at which an astigmatic CTF is averaged
_SOLVE_BYTES = 64 * 2**20


class SteerablePCA(ClassNamePrefixFeaturesOutMixin, StackTagsMixin, TransformerMixin, BaseEstimator):
    """Principal components of images over all their turns and mirror images, with CTFs and noise taken out.

    Turning an image multiplies the coefficients of angular frequency n by ``exp(-i n angle)``; so the covariance of
    all turned and mirrored copies of the images falls into blocks, one for each angular frequency, and is known much
    more accurately than that of the images as they lie [1]_. What noise alone does not explain is kept. Coefficients
    are what is expected of the noise-free, CTF-free image given its noisy one (Wiener filter) [2]_.

    Parameters
    ----------
    n_components : int, default=None
        Real coefficients at most; those of most variance are kept. None: all above the noise.
    max_angular_frequency : int, default=None
        Highest angular frequency. None: as many as noise leaves.
    max_frequency : float, default=None
        Highest frequency in cycles per pixel, at most 0.5. None: 0.5, or 24 cycles per radius if that is less, beyond
        which noise leaves nothing.
    noise_variance : float or "auto", default="auto"
        Variance of the noise in a pixel; it is white, see :class:`~skcryo.preprocessing.NoiseWhitener`. "auto": the
        median power of all functions, of which the particles fill few. 0: no noise, coefficients are projections.

    Attributes
    ----------
    angular_frequencies_ : ndarray of shape (n_components_,), int
        Of each column: 0, or n of a real part and -n of an imaginary part. Columns come by angular frequency; of each,
        first all real parts by variance, then all imaginary parts in the same order.
    explained_variance_ : ndarray of shape (n_components_,), float64
        Variance of each coefficient of noise-free images.
    components_ : ndarray of shape (n_components_, n_functions), float32
        Components in the basis of the disc; orthonormal rows.
    mean_ : ndarray of shape (n_functions,), float32
        Mean over all turns, in that basis.
    n_components_ : int
        Columns. One at least, even if all is noise.
    n_images_seen_ : int
    noise_variance_ : float
    pixel_size_ : float or None
    n_features_in_ : int
    image_shape_ : tuple of two ints

    See Also
    --------
    skcryo.orientation.VectorDiffusionMaps : Poses from these coefficients.

    Notes
    -----
    The basis is that of prolate spheroidal functions: confined to a disc and to a band of frequencies at once, hence
    orthonormal on pixels. The disc has radius ``(L - 1) // 2``; corners are not looked at.

    Of an image with CTF, the covariance is that which would best predict all images' second moments, each through its
    own CTF (least squares, [2]_); astigmatism is undone in the image and averaged over directions in the covariance.
    Images with and without CTF may come together.

    Angular frequency 0 has a mean and all others have none, since turned copies count as much as the image itself.
    Images smaller than 8 pixels are padded with zeros. Memory does not depend on the number of images.

    References
    ----------
    .. [1] Zhao, Shkolnisky, Singer, "Fast steerable principal component analysis", IEEE Trans. Comput. Imaging 2
    (2016).
    .. [2] Bhamre, Zhang, Singer, "Denoising and covariance estimation of single particle cryo-EM images", J. Struct.
       Biol. 195 (2016).

    Examples
    --------
    >>> from skcryo.datasets import make_molecule, make_particles
    >>> from skcryo.decomposition import SteerablePCA
    >>> stack, truth = make_particles(make_molecule(32, random_state=0), 300, snr=0.2, random_state=0)
    >>> pca = SteerablePCA()
    >>> coefficients = pca.fit_transform(stack)
    >>> coefficients.shape == (300, pca.n_components_)
    True
    >>> denoised = pca.inverse_transform(coefficients)
    >>> bool(((denoised - truth.clean) ** 2).mean() < 0.1 * ((stack - truth.clean) ** 2).mean())
    True
    """

    _parameter_constraints: dict = {
        "n_components": [Interval(Integral, 1, None, closed="left"), None],
        "max_angular_frequency": [Interval(Integral, 0, None, closed="left"), None],
        "max_frequency": [Interval(Real, 0, 0.5, closed="right"), None],
        "noise_variance": [Interval(Real, 0, None, closed="left"), StrOptions({"auto"})],
    }

    def __init__(self, n_components=None, *, max_angular_frequency=None, max_frequency=None, noise_variance="auto"):
        self.n_components = n_components
        self.max_angular_frequency = max_angular_frequency
        self.max_frequency = max_frequency
        self.noise_variance = noise_variance

    # ------------------------------------------------------------------------------------------------- fit
    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y=None, *, ctf=None):
        """Find the components.

        Parameters
        ----------
        X : ParticleStack or array-like of shape (n_images, L, L) or (n_images, n_pixels)
            Images; read in chunks. Shifts that it carries are undone; images without are taken to be centred.
        y : None
            Ignored.
        ctf : structured array of shape (n_images,), default=None
            CTFs (:data:`skcryo.ctf.CTF_DTYPE`). None: those that `X` carries, if any.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If images are not square and finite, or fewer than two; if CTFs are not those of as many images or come
            without a pixel size.
        """
        return self._add(X, ctf, reset=True)

    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X, y=None, *, ctf=None):
        """Add images to those that were seen before, and find the components of all.

        Parameters
        ----------
        X, y, ctf : as in :meth:`fit`

        Returns
        -------
        self
        """
        return self._add(X, ctf, reset=not hasattr(self, "_moments"))

    def fit_transform(self, X, y=None, *, ctf=None):
        """Find the components, and return the coefficients of the images.

        Parameters
        ----------
        X, y, ctf : as in :meth:`fit`

        Returns
        -------
        coefficients : as of :meth:`transform`
        """
        return self.fit(X, y, ctf=ctf).transform(X, ctf=ctf)

    def _add(self, X, ctf, *, reset):
        stack = validate_lazy(self, X, reset=reset, ensure_min_samples=2 if reset else 1)
        pixel_size, ctf = resolve_optics(stack, ctf)
        if reset:
            self.pixel_size_ = pixel_size
            self._basis_parameters = (max(stack.shape[1], _SMALLEST_BOX), *self._band(stack.shape[1]))
            self._moments = SteerableMoments(self._basis)
        elif pixel_size is not None and self.pixel_size_ is not None and not np.isclose(pixel_size, self.pixel_size_):
            raise ValueError(f"X has pixels of {pixel_size} A, but the images before it had {self.pixel_size_} A")
        for _, coefficients, squares in self._read(stack, ctf, pixel_size):
            self._moments.add(coefficients, squares)
        self.n_images_seen_ = self._moments.n_images
        self._solve()
        return self

    def _band(self, L):
        band = self.max_frequency
        if band is None:
            band = min(0.5, _MOST_WAVES / ((max(L, _SMALLEST_BOX) - 1) // 2))
        return float(band), self.max_angular_frequency

    @property
    def _basis(self):
        return disc_basis(*self._basis_parameters)

    def _read(self, stack, ctf, pixel_size):
        """Of chunks of images: where, coefficients in the basis of what the CTF makes of them, and CTF^2 by ring."""
        basis = self._basis
        azimuths = np.pi * np.arange(_N_AZIMUTHS) / _N_AZIMUTHS
        for where, images in iter_finite_chunks(stack, dtype=np.float32):
            squares = None
            if stack.shifts is not None:
                images = shift_images(images, -stack.shifts[where])
            if ctf is not None:
                images = apply_ctf(images, ctf[where], pixel_size)
                values = evaluate_ctf_polar(ctf[where], basis.ring_radii, azimuths, pixel_size)
                squares = np.square(values, out=values).mean(axis=2)
            missing = basis.L - images.shape[1]
            if missing > 0:
                before = basis.L // 2 - images.shape[1] // 2
                width = (before, missing - before)
                images = np.pad(images, ((0, 0), width, width))
            yield where, basis.analyze(images), squares

    def _solve(self):
        moments, basis = self._moments, self._basis
        automatic = isinstance(self.noise_variance, str)
        self.noise_variance_ = moments.noise_variance() if automatic else float(self.noise_variance)
        mean = moments.mean()
        found = []
        for n in range(len(basis.sizes)):
            covariance, rank = solve_covariance(moments, n, mean, self.noise_variance_)
            values, vectors = eigh(covariance)
            strongest = np.argsort(-values, kind="stable")[: max(rank, n == 0)]
            values, vectors = np.maximum(values[strongest], 0), vectors[:, strongest]
            vectors *= np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(len(strongest))])
            found.append((values, vectors))
        self._variances, self._vectors = _strongest(found, self.n_components)
        angular, variances, rows = [], [], []
        for n, (values, vectors) in enumerate(zip(self._variances, self._vectors)):
            for sign, columns in zip((1, -1), basis.columns(n)):
                if columns is not None:
                    block = np.zeros((len(values), basis.n_functions), dtype=np.float32)
                    block[:, columns] = vectors.T
                    rows.append(block)
                    angular.append(np.full(len(values), sign * n))
                    variances.append(values)
        self.angular_frequencies_ = np.concatenate(angular)
        self.explained_variance_ = np.concatenate(variances)
        self.components_ = np.concatenate(rows)
        self.mean_ = np.zeros(basis.n_functions, dtype=np.float32)
        self.mean_[basis.columns(0)[0]] = mean
        self.n_components_ = self._n_features_out = len(self.components_)

    # ------------------------------------------------------------------------------------------------- use
    def transform(self, X, *, ctf=None):
        """Coefficients of noise-free images, as expected given the noisy ones.

        Parameters
        ----------
        X : ParticleStack or array-like of shape (n_images, L, L) or (n_images, n_pixels)
        ctf : structured array of shape (n_images,), default=None
            None: those that `X` carries, if any.

        Returns
        -------
        coefficients : ndarray of shape (n_images, n_components_)
            In the order of ``angular_frequencies_``; float64 for float64 images, else float32. Their Euclidean
            distances are those of the images of :meth:`inverse_transform`.
        """
        check_is_fitted(self, "components_")
        stack = validate_lazy(self, X, reset=False)
        pixel_size, ctf = resolve_optics(stack, ctf)
        out = np.empty((len(stack), self.n_components_), dtype=stack.dtype)
        for where, coefficients, squares in self._read(stack, ctf, pixel_size):
            out[where] = self._expected(coefficients, squares)
        return out

    def _expected(self, coefficients, squares):
        basis, out, start = self._basis, np.empty((len(coefficients), self.n_components_)), 0
        for n, (values, vectors) in enumerate(zip(self._variances, self._vectors)):
            if not len(values):
                continue
            parts = [coefficients[:, columns] for columns in basis.columns(n) if columns is not None]
            projected = [np.einsum("ij,jk->ik", part, vectors) for part in parts]
            mean = vectors.T @ self.mean_[basis.columns(n)[0]] if n == 0 else None
            if squares is None:
                weights = values / np.where(values > 0, values + self.noise_variance_, 1)
                solved = [(part - (0 if mean is None else mean)) * weights for part in projected]
            else:
                rings = basis.ring_values[n] @ vectors
                if n == 0:
                    seen = basis.ring_values[0] @ self.mean_[basis.columns(0)[0]]
                    projected[0] -= np.einsum("iq,qk->ik", squares, seen[:, None] * rings)
                solved = _solve_wiener(projected, squares, rings, np.sqrt(values), self.noise_variance_)
            for part in solved:
                out[:, start : start + len(values)] = part
                start += len(values)
        return out

    def inverse_transform(self, Y):
        """Images of coefficients: denoised images of what :meth:`transform` gives.

        Parameters
        ----------
        Y : array-like of shape (n_images, n_components_)

        Returns
        -------
        images : ndarray of shape (n_images, L, L), float32
            Mean and components; zero outside the disc.
        """
        Y = self._check_coefficients(Y)
        basis = self._basis
        out = np.empty((len(Y), *self.image_shape_), dtype=np.float32)
        size = max(1, _SOLVE_BYTES // (16 * basis.L**2))
        before, L = basis.L // 2 - self.image_shape_[0] // 2, self.image_shape_[0]
        for start in range(0, len(Y), size):
            part = np.ascontiguousarray(Y[start : start + size], dtype=np.float32)
            images = basis.synthesize(row_products(part, self.components_) + self.mean_)
            out[start : start + size] = images[:, before : before + L, before : before + L]
        return out

    def rotate(self, Y, angles):
        """Coefficients of turned images.

        Parameters
        ----------
        Y : array-like of shape (n_images, n_components_)
        angles : float or array-like of shape (n_images,)
            Radians, in the sense of :func:`skcryo.fourier.rotate_images`: coefficients of angular frequency n are
            multiplied by ``exp(-i n angle)``, and a pose R becomes ``R @ in_plane_rotation(-angle)``.

        Returns
        -------
        ndarray of shape (n_images, n_components_)
        """
        Y = self._check_coefficients(Y)
        angles = np.asarray(angles, dtype=np.float64)
        if angles.shape not in ((), (len(Y),)):
            raise ValueError(f"angles must be a number or have shape ({len(Y)},), got {angles.shape}")
        angles = np.broadcast_to(angles, len(Y))[:, None]
        out, n = Y.copy(), self.angular_frequencies_
        real, imaginary = Y[:, n > 0], Y[:, n < 0]
        cosines, sines = np.cos(n[n > 0] * angles), np.sin(n[n > 0] * angles)
        out[:, n > 0] = cosines * real + sines * imaginary
        out[:, n < 0] = cosines * imaginary - sines * real
        return out

    def reflect(self, Y):
        """Coefficients of images mirrored about the x axis, ``I(x, -y)``: complex conjugates.

        A pose R becomes ``R @ diag(1, -1, -1)``.

        Parameters
        ----------
        Y : array-like of shape (n_images, n_components_)

        Returns
        -------
        ndarray of shape (n_images, n_components_)
        """
        return self._check_coefficients(Y) * np.where(self.angular_frequencies_ < 0, -1, 1)

    def complex_coefficients(self, Y):
        """Coefficients as complex numbers, one array an angular frequency.

        Parameters
        ----------
        Y : array-like of shape (n_images, n_components_)

        Returns
        -------
        list of ndarray of shape (n_images, n_components of n), complex64
            Entry n has angular frequency n; those of n > 0 are ``sqrt(2)`` times scalar products with functions of
            norm 1, so that distances of images are sums over all entries.
        """
        Y = self._check_coefficients(Y)
        out = []
        for n in range(int(self.angular_frequencies_.max()) + 1):
            part = Y[:, self.angular_frequencies_ == n].astype(np.complex64)
            if n:
                part += 1j * Y[:, self.angular_frequencies_ == -n].astype(np.float32)
            out.append(part)
        return out

    def _check_coefficients(self, Y):
        check_is_fitted(self, "components_")
        Y = np.asarray(Y)
        if Y.ndim != 2 or Y.shape[1] != self.n_components_:
            raise ValueError(
                f"Y has shape {Y.shape}; coefficients of shape (n_images, {self.n_components_}) are wanted"
            )
        return Y if Y.dtype in (np.float32, np.float64) else Y.astype(np.float64)


def _strongest(found, n_components):
    """Of (variances, vectors) by angular frequency, those of most variance that make up `n_components` columns."""
    candidates = [(-value, n) for n, (values, _) in enumerate(found) for value in values]
    counts, columns = [0] * len(found), 0
    for _, n in sorted(candidates):
        columns += 1 + (n > 0)
        if n_components is not None and columns > n_components:
            break
        counts[n] += 1
    if not any(counts):
        counts[0] = 1
    return [f[0][:c] for f, c in zip(found, counts)], [f[1][:, :c] for f, c in zip(found, counts)]


def _solve_wiener(projected, squares, rings, roots, noise_variance):
    """Expected coefficients of images seen through filters: a small system for each image.

    ``r (r T r + noise)^-1 r z`` with T the squared filter in the components, r the roots of their variances: the
    same as ``(T + noise / variance)^-1 z``, but defined for no variance too.
    """
    rings = rings * roots
    size = rings.shape[1]
    products = (rings[:, :, None] * rings[:, None, :]).reshape(len(rings), -1)
    noise = max(noise_variance, 1e-6 * float(roots.max() ** 2), 1e-30) * np.eye(size)
    out = [np.empty((len(squares), size)) for _ in projected]
    chunk = max(1, _SOLVE_BYTES // (16 * size**2))
    for start in range(0, len(squares), chunk):
        part = slice(start, start + chunk)
        system = np.einsum("iq,qk->ik", squares[part], products).reshape(-1, size, size) + noise
        right = np.stack([p[part] * roots for p in projected], axis=2)
        solved = np.linalg.solve(system, right) * roots[:, None]
        for k, values in enumerate(out):
            values[part] = solved[:, :, k]
    return out
