"""The noise's power spectrum, and images in which the noise is white."""

from functools import lru_cache, partial
from numbers import Real

import numpy as np
import scipy.fft

from .._validation import Interval, check_is_fitted, iter_finite_chunks
from ..particles import as_stack
from ._base import ImageTransformer, as_float_images
from ._geometry import background_weight, inscribed_radius, ring_index

__all__ = ["NoiseWhitener", "noise_spectrum", "ring_weights", "whiten_images"]

# Enough to undo the mask to about 2 %; more iterations fit the scatter of the estimate.
_N_RICHARDSON_LUCY = 20


def noise_spectrum(images, *, radius=None, edge_width=None, chunk_size=None):
    """Power spectrum of the noise, from the background around the particles.

    The background is cut out by a soft mask, its mean is taken away image by image, and its power is averaged
    over images and Fourier rings. A mask takes power away, spreads each ring over its neighbours, and the
    mean takes the lowest rings with it. All three are linear in the spectrum, with a matrix that follows
    from the mask alone [1]_, and are undone together by Richardson-Lucy iterations, which keep the
    spectrum positive.

    Parameters
    ----------
    images : ParticleStack or array-like of shape (n_images, height, width)
        Images; read in chunks. Or residuals, images minus what a model says they show, with ``radius=0``.
    radius : float, default=None
        Radius in pixels of the circle that holds the particle. None takes the circle inscribed in the
        box. 0 takes all pixels as background.
    edge_width : float, default=None
        Width in pixels over which the background's weight rises, inside `radius`. None takes a tenth of it.
    chunk_size : int, default=None
        Images read at a time. None chooses by memory.

    Returns
    -------
    spectrum : ndarray of shape (L // 2 + 1,), float64
        Mean of ``|F|^2 / n_pixels`` over each Fourier ring, L being the longer side: for white noise, its
        variance in every ring. The last ring stands for the corners beyond it as well.

    Raises
    ------
    ValueError
        If a ring holds no power, as when all backgrounds are constant.

    Notes
    -----
    Signal outside the circle counts as noise: for densities straight from atoms up to 1.8 times too much
    in the lowest rings. Once poses are known, estimate again from residuals.

    References
    ----------
    .. [1] Hivon et al., "MASTER of the cosmic microwave background anisotropy power spectrum",
           Astrophys. J. 567 (2002), equations 12 to 16: the coupling of a masked spectrum, here for rings
           in the plane and with the mean.

    Examples
    --------
    >>> import numpy as np
    >>> from skcryo.preprocessing import noise_spectrum
    >>> images = 2 * np.random.default_rng(0).standard_normal((200, 32, 32), dtype=np.float32)
    >>> spectrum = noise_spectrum(images)
    >>> print(spectrum.shape, spectrum.mean().round(1))
    (17,) 4.0
    """
    stack = as_stack(images)
    image_shape = stack.shape[1:]
    if len(stack) == 0:
        raise ValueError("X has 0 images; a noise spectrum needs at least one")
    weight = _weight(image_shape, radius, edge_width)
    power = np.zeros((image_shape[0], image_shape[1] // 2 + 1))
    for _, chunk in iter_finite_chunks(stack, chunk_size=chunk_size):
        mean = np.tensordot(chunk, weight, axes=2) / weight.sum()
        background = (chunk - mean[:, None, None].astype(np.float32)) * weight.astype(np.float32)
        spectra = scipy.fft.rfft2(background)
        power += np.einsum("nij,nij->ij", spectra.real, spectra.real, dtype=np.float64)
        power += np.einsum("nij,nij->ij", spectra.imag, spectra.imag, dtype=np.float64)
    power /= len(stack)
    observed = _ring_mean(power, image_shape)
    coupling = _coupling(image_shape, *_mask_key(image_shape, radius, edge_width))
    return _decoupled(observed, coupling, image_shape)


def _mask_key(image_shape, radius, edge_width):
    radius = inscribed_radius(image_shape) if radius is None else float(radius)
    edge_width = radius / 10 if edge_width is None else float(edge_width)
    return radius, edge_width


def _weight(image_shape, radius, edge_width):
    return background_weight(image_shape, *_mask_key(image_shape, radius, edge_width))


def _half_plane_multiplicity(image_shape):
    """How many frequencies of the full plane each one of the half plane stands for, (1, width // 2 + 1)."""
    width = image_shape[1]
    multiplicity = np.full(width // 2 + 1, 2.0)
    multiplicity[0] = 1.0
    if width % 2 == 0:
        multiplicity[-1] = 1.0
    return multiplicity[None, :]


def _ring_mean(values, image_shape):
    """Mean over each ring of the full plane of values on the half plane (layout of ``rfft2``)."""
    rings = ring_index(image_shape, half=True)
    n_rings = max(image_shape) // 2 + 1
    weights = np.broadcast_to(_half_plane_multiplicity(image_shape), rings.shape)
    counts = np.bincount(rings.ravel(), weights.ravel(), minlength=n_rings)
    sums = np.bincount(rings.ravel(), (weights * values).ravel(), minlength=n_rings)
    return sums / counts


@lru_cache(maxsize=4)
def _coupling(image_shape, radius, edge_width):
    """Matrix (n_rings, n_rings) from the noise's spectrum to the mean power of the masked background.

    With mask m, its transform M and the background's mean subtracted, noise N at frequency q comes out at
    k as ``(M(k - q) - M(k) M(-q) / M(0)) N(q)``. The mean square of the factor over ring k, summed over
    ring q, is a correlation of masks, done here by transforms, one ring q at a time.
    """
    mask = background_weight(image_shape, radius, edge_width)
    n_pixels = mask.size
    rings = ring_index(image_shape)
    n_rings = max(image_shape) // 2 + 1
    transform = scipy.fft.fft2(mask)
    power = np.abs(transform) ** 2
    transformed_power = scipy.fft.fft2(power)
    transformed_mask = scipy.fft.fft2(transform)
    total = mask.sum()
    half = (slice(None), slice(0, image_shape[1] // 2 + 1))
    coupling = np.empty((n_rings, n_rings))
    for ring in range(n_rings):
        inside = (rings == ring).astype(np.float64)
        spread = scipy.fft.ifft2(transformed_power * scipy.fft.fft2(inside)).real
        # M(-q) is the conjugate of M(q) for a real mask.
        cross = scipy.fft.ifft2(transformed_mask * scipy.fft.fft2(inside * transform))
        lost = -2 * (cross * transform.conj()).real / total + power * (inside * power).sum() / total**2
        coupling[:, ring] = _ring_mean((spread + lost)[half], image_shape)
    coupling /= n_pixels
    coupling.setflags(write=False)
    return coupling


def _decoupled(observed, coupling, image_shape):
    """The spectrum whose masked power is `observed`; ring 0, lost with the mean, is taken to be as ring 1."""
    n_rings = len(observed)
    if n_rings == 1:
        raise ValueError(
            f"images of {image_shape[0]} x {image_shape[1]} pixels (n_features = 1) have no noise spectrum"
        )
    counts = np.bincount(ring_index(image_shape).ravel(), minlength=n_rings).astype(np.float64)
    counts[0] = 0.0
    gain = coupling.T @ counts
    heard = gain > 1e-9 * gain.max()
    spectrum = np.where(heard, max(observed[1:].mean(), 0.0) / coupling.sum(axis=1)[1:].mean(), 0.0)
    for _ in range(_N_RICHARDSON_LUCY):
        expected = coupling @ spectrum
        ratio = np.divide(observed, expected, out=np.zeros(n_rings), where=expected > 0)
        spectrum[heard] *= (coupling.T @ (counts * np.maximum(ratio, 0.0)))[heard] / gain[heard]
    spectrum[0] = spectrum[1]
    silent = 1 + np.flatnonzero(~(spectrum[1:] > 0))
    if silent.size:
        raise ValueError(
            f"the background holds no power in Fourier ring {silent[0]}: are the images constant outside the "
            "particle, or masked already?"
        )
    return spectrum


def ring_weights(spectrum, image_shape, *, half=False):
    """Weight of each Fourier coefficient in a likelihood: one over the noise's power.

    Parameters
    ----------
    spectrum : array-like of shape (L // 2 + 1,)
        The noise's power by ring, see :func:`noise_spectrum`.
    image_shape : int or tuple of two ints
        Height and width of the images, or the side of square ones.
    half : bool, default=False
        Whether the weights are wanted in the layout of ``rfft2`` instead of ``fft2``.

    Returns
    -------
    weights : ndarray of shape (height, width) or (height, width // 2 + 1), float32
        Zero frequency first. The corners beyond the last ring have its weight.

    Examples
    --------
    >>> from skcryo.preprocessing import ring_weights
    >>> ring_weights([4.0, 2.0, 1.0], 4)[0].tolist()
    [0.25, 0.5, 1.0, 0.5]
    """
    if np.ndim(image_shape) == 0:
        image_shape = (int(image_shape), int(image_shape))
    spectrum = np.asarray(spectrum, dtype=np.float64)
    n_rings = max(image_shape) // 2 + 1
    if spectrum.shape != (n_rings,):
        raise ValueError(
            f"spectrum must have shape ({n_rings},), one value per Fourier ring of images of "
            f"{image_shape[0]} x {image_shape[1]} pixels, got {spectrum.shape}"
        )
    bad = np.flatnonzero(~(spectrum > 0) | ~np.isfinite(spectrum))
    if bad.size:
        raise ValueError(
            f"spectrum[{bad[0]}] is {spectrum[bad[0]]:g}; the noise's power must be positive and finite"
        )
    return (1.0 / spectrum)[ring_index(tuple(image_shape), half=half)].astype(np.float32)


def whiten_images(images, spectrum, *, remove_mean=False, inverse=False):
    """Divide each Fourier ring by the noise's standard deviation there.

    Parameters
    ----------
    images : ndarray of shape (n_images, height, width)
        Images.
    spectrum : array-like of shape (L // 2 + 1,)
        The noise's power by ring, see :func:`noise_spectrum`.
    remove_mean : bool, default=False
        Make the mean of each image zero.
    inverse : bool, default=False
        Multiply instead.

    Returns
    -------
    images : ndarray of shape (n_images, height, width)
        float32 or float64, as `images`.

    Examples
    --------
    >>> import numpy as np
    >>> from skcryo.preprocessing import whiten_images
    >>> images = 3 * np.random.default_rng(0).normal(size=(10, 32, 32))
    >>> round(float(whiten_images(images, np.full(17, 9.0)).std()), 1)
    1.0
    """
    images = as_float_images(images)
    image_shape = images.shape[1:]
    factor = np.sqrt(ring_weights(spectrum, image_shape, half=True).astype(np.float64))
    if inverse:
        factor = 1.0 / factor
    if remove_mean:
        factor[0, 0] = 0.0
    return scipy.fft.irfft2(scipy.fft.rfft2(images) * factor.astype(images.dtype), s=image_shape)


class NoiseWhitener(ImageTransformer, auto_wrap_output_keys=None):
    """Make the noise white, with standard deviation 1 in every pixel.

    ``fit`` estimates the noise's power spectrum from the background of all images (:func:`noise_spectrum`);
    ``transform`` divides each Fourier ring by its square root. All images are filtered alike, so a CTF still
    describes them, and volumes made from whitened images are whitened as well:
    :meth:`inverse_transform` undoes that for images.

    Parameters
    ----------
    radius : float, default=None
        Radius in pixels of the circle that holds the particle; what is outside is background. None takes
        the circle inscribed in the box. 0 takes every pixel, for images of noise alone and for residuals.
    edge_width : float, default=None
        Width in pixels over which the background's weight rises, inside `radius`. None takes a tenth of it.
    remove_mean : bool, default=False
        Take away each image's mean. Noise at frequency zero cannot be told from the level of the background, so it is
        not made white; where that level was estimated from the corners of the box (:class:`NormalizeBackground`), it is
        about five times as strong as at other frequencies. Projections of one particle all have one mean: where images
        are compared, nothing is lost with it.

    Attributes
    ----------
    noise_spectrum_ : ndarray of shape (L // 2 + 1,), float64
        Power of the noise in each Fourier ring, in units of the variance of a pixel.
    image_shape_ : tuple of two ints
        Height and width of the images.
    n_features_in_ : int
        Number of their pixels.

    See Also
    --------
    NormalizeBackground : Scales each image by one number.
    ring_weights : The noise's inverse power as weights in a likelihood.

    Notes
    -----
    Signal outside the circle counts as noise, see :func:`noise_spectrum`. The spectrum is one for all images:
    normalise images of different exposures first (:class:`NormalizeBackground`).

    Examples
    --------
    >>> import numpy as np
    >>> from skcryo.fourier import fourier_crop, fourier_pad
    >>> from skcryo.preprocessing import NoiseWhitener
    >>> white = np.random.default_rng(0).standard_normal((100, 32, 32), dtype=np.float32)
    >>> coloured = white + fourier_pad(fourier_crop(white, 8), 32)
    >>> whitener = NoiseWhitener().fit(coloured)
    >>> print(whitener.noise_spectrum_[[2, 12]].round(), whitener.transform(coloured).std().round(1))
    [4. 1.] 1.0
    """

    _parameter_constraints: dict = {
        "radius": [Interval(Real, 0, None, closed="left"), None],
        "edge_width": [Interval(Real, 0, None, closed="left"), None],
        "remove_mean": ["boolean"],
    }
    _needs_fit = True

    def __init__(self, radius=None, *, edge_width=None, remove_mean=False):
        self.radius = radius
        self.edge_width = edge_width
        self.remove_mean = remove_mean

    def _learn(self, stack):
        self.noise_spectrum_ = noise_spectrum(stack, radius=self.radius, edge_width=self.edge_width)

    def _plan(self, stack):
        return partial(whiten_images, spectrum=self.noise_spectrum_, remove_mean=self.remove_mean), {}

    def inverse_transform(self, X):
        """Give whitened images their colour back; a mean that was removed stays zero.

        Parameters
        ----------
        X : array-like of shape (n_images, height, width)
            Whitened images; class averages of such images, for example.

        Returns
        -------
        images : ndarray of shape (n_images, height, width)
        """
        check_is_fitted(self)
        images = np.asarray(X)
        if images.ndim != 3 or images.shape[1:] != tuple(self.image_shape_):
            raise ValueError(
                f"X must have shape (n_images, {self.image_shape_[0]}, {self.image_shape_[1]}), "
                f"got {images.shape}"
            )
        return whiten_images(images, self.noise_spectrum_, inverse=True)
