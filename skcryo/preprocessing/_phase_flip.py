"""CTF correction by the sign alone."""

from functools import partial
from numbers import Real

import numpy as np
import scipy.fft

from .._validation import Interval, StrOptions, resolve_ctf, resolve_pixel_size
from ..ctf import evaluate_ctf
from ._base import ImageTransformer, as_float_images

__all__ = ["PhaseFlipper", "flip_phases"]


def flip_phases(images, ctf, pixel_size):
    """Change the sign of the Fourier coefficients at which the CTF is negative.

    Parameters
    ----------
    images : ndarray of shape (n_images, L, L)
        Images.
    ctf : structured array of shape (n_images,)
        CTF parameters of each, see :func:`skcryo.ctf.make_ctf`.
    pixel_size : float
        In Angstrom.

    Returns
    -------
    images : ndarray of shape (n_images, L, L)
        float32 or float64, as `images`.

    Examples
    --------
    What the CTF turned over is turned back; what it took away stays away:

    >>> import numpy as np
    >>> from skcryo.ctf import apply_ctf, make_ctf
    >>> from skcryo.preprocessing import flip_phases
    >>> images = np.zeros((1, 32, 32))
    >>> images[0, 16, 16] = 1
    >>> ctf = make_ctf(1, defocus_u=15000.0, defocus_v=15000.0, voltage=300.0, cs=2.7)
    >>> seen = apply_ctf(images, ctf, 4.0)
    >>> bool(flip_phases(seen, ctf, 4.0)[0, 16, 16] > abs(seen[0, 16, 16]))
    True
    """
    images = as_float_images(images)
    side = images.shape[-1]
    negative = evaluate_ctf(ctf, side, pixel_size, half=True) < 0
    spectra = scipy.fft.rfft2(images)
    np.negative(spectra, out=spectra, where=negative)
    return scipy.fft.irfft2(spectra, s=images.shape[1:])


def _unchanged(images):
    return images


class PhaseFlipper(ImageTransformer, auto_wrap_output_keys=None):
    """Correct the sign of the CTF: flip the phases where it is negative.

    The CTF comes from the keyword ``ctf=`` of ``transform``, else from the ``ParticleStack``. Afterwards
    the images' transfer function is the CTF's absolute value, which no record of CTF parameters
    describes. So a stack comes out **without CTF records** (``ctf=None``): nothing downstream can apply
    the CTF's sign a second time, and flipping twice is an error, not an undoing.

    Parameters
    ----------
    pixel_size : float, default=None
        In Angstrom. None takes the ``ParticleStack``'s.
    missing_ctf : {"error", "ignore"}, default="error"
        What to do with images without a CTF: refuse them, or let them through as they are, for a pipeline
        that must also serve images without CTF.

    Attributes
    ----------
    image_shape_ : tuple of two ints
        Height and width of the images seen by ``fit``.
    n_features_in_ : int
        Number of their pixels.

    See Also
    --------
    skcryo.ctf.apply_ctf : Multiply by the whole CTF.

    Notes
    -----
    Flipping corrects the sign and keeps the noise as it is, white noise white. The amplitudes stay
    modulated, and the delocalised signal that left the box is lost, so estimators that know the CTF (a
    Wiener filter, a likelihood) want the images as they were. Where neighbours are compared, flipped
    images beat images multiplied by their CTF. ``fit`` learns nothing, and ``transform`` works without
    it.

    Examples
    --------
    >>> import numpy as np
    >>> from skcryo.ctf import make_ctf
    >>> from skcryo.particles import ParticleStack
    >>> from skcryo.preprocessing import PhaseFlipper
    >>> images = np.random.default_rng(0).standard_normal((5, 32, 32), dtype=np.float32)
    >>> stack = ParticleStack(images, pixel_size=3.0, ctf=make_ctf(5, defocus_u=12000.0))
    >>> flipped = PhaseFlipper().fit_transform(stack)
    >>> flipped.ctf is None, bool(np.isclose(np.var(flipped), np.var(images)))
    (True, True)
    """

    _parameter_constraints: dict = {
        "pixel_size": [Interval(Real, 0, None, closed="neither"), None],
        "missing_ctf": [StrOptions({"error", "ignore"})],
    }
    _needs_square = True

    def __init__(self, *, pixel_size=None, missing_ctf="error"):
        self.pixel_size = pixel_size
        self.missing_ctf = missing_ctf

    def transform(self, X, ctf=None):
        """Flip phases.

        Parameters
        ----------
        X : ParticleStack or array-like of shape (n_images, L, L) or (n_images, n_pixels)
            Images.
        ctf : structured array of shape (n_images,), default=None
            CTF parameters, see :func:`skcryo.ctf.make_ctf`. None takes those of `X`.

        Returns
        -------
        images : ParticleStack or ndarray
            A stack, without CTF records, for a stack; (n_images, L, L) for that, rows for rows; dtype as `X`.

        Raises
        ------
        ValueError
            If there is no CTF, or not one record per image, or the pixel size is not known.
        """
        return self._transform(X, ctf=resolve_ctf(X, ctf))

    def fit_transform(self, X, y=None, ctf=None):
        """Fit and transform; parameters as for :meth:`transform`, `y` is ignored.

        Parameters
        ----------
        X : ParticleStack or array-like of shape (n_images, L, L) or (n_images, n_pixels)
            Images.
        y : None
            Ignored.
        ctf : structured array of shape (n_images,), default=None
            CTF parameters. None takes those of `X`.

        Returns
        -------
        images : ParticleStack or ndarray
            As from :meth:`transform`.
        """
        return self.fit(X, y).transform(X, ctf=ctf)

    def _plan(self, stack, ctf):
        if ctf is None:
            if self.missing_ctf == "ignore":
                return _unchanged, {}
            raise ValueError(
                "PhaseFlipper needs the CTF of the images, and X has none: give ctf= or a ParticleStack with "
                "CTF records. (Images whose phases are flipped carry none any more.)"
            )
        pixel_size = resolve_pixel_size(stack, self.pixel_size, required_by="PhaseFlipper")
        return partial(flip_phases, pixel_size=pixel_size), {"per_image": {"ctf": ctf}, "ctf": None}
