"""Grey values on one scale: the background of each image at mean 0 and standard deviation 1."""

from functools import partial
from numbers import Real

import numpy as np

from .._validation import Interval
from ._base import ImageTransformer
from ._geometry import background_weight

__all__ = ["NormalizeBackground", "normalize_background"]


def normalize_background(images, *, radius=None, ramp=False, index=None):
    """Scale each image so that its background has mean 0 and standard deviation 1.

    Parameters
    ----------
    images : ndarray of shape (n_images, height, width)
        Images.
    radius : float, default=None
        As in :class:`NormalizeBackground`.
    ramp : bool, default=False
        As in :class:`NormalizeBackground`.
    index : array of shape (n_images,), default=None
        Names of the images in an error message; None counts from 0.

    Returns
    -------
    images : ndarray of shape (n_images, height, width)
        float32 or float64, as `images`.

    Raises
    ------
    ValueError
        If the background of an image is constant; names its index.

    Examples
    --------
    >>> import numpy as np
    >>> from skcryo.preprocessing import normalize_background
    >>> images = 5 + 2 * np.random.default_rng(0).normal(size=(1, 32, 32))
    >>> outside = np.hypot(*np.mgrid[-16:16, -16:16]) > 12
    >>> background = normalize_background(images, radius=12)[0][outside]
    >>> bool(abs(background.mean()) < 0.05), round(float(background.std()), 1)
    (True, 1.0)
    """
    images = np.asarray(images)
    dtype = np.float64 if images.dtype == np.float64 else np.float32
    n_images, *image_shape = images.shape
    outside = background_weight(tuple(image_shape), radius) > 0.5
    background = images[:, outside].astype(np.float64)
    constant = np.flatnonzero(background.max(axis=1) == background.min(axis=1))
    if constant.size:
        first = constant[0] if index is None else index[constant[0]]
        raise ValueError(
            f"image {first} has zero variance in its background ({background.shape[1]} pixels, all "
            f"{background[constant[0], 0]:g}) and cannot be normalised; remove it from the stack"
        )
    if ramp:
        # Least squares of a plane through the background.
        y, x = np.indices(image_shape).reshape(2, -1) - np.array(image_shape)[:, None] // 2
        plane = np.stack([np.ones(x.size), x, y], axis=1)
        level = (background @ np.linalg.pinv(plane[outside.ravel()]).T) @ plane.T
        result = images - level.reshape(images.shape)
        scale = result[:, outside].std(axis=1)
        planar = np.flatnonzero(scale <= 1e-10 * background.std(axis=1))
        if planar.size:
            first = planar[0]
            raise ValueError(
                f"image {first if index is None else index[first]} has a background that is a plane: nothing "
                "is left to normalise once the ramp is removed; remove it from the stack"
            )
    else:
        result = images - background.mean(axis=1)[:, None, None]
        scale = background.std(axis=1)
    result /= scale[:, None, None]
    return result.astype(dtype, copy=False)


class NormalizeBackground(ImageTransformer, auto_wrap_output_keys=None):
    """Scale each image so that its background has mean 0 and standard deviation 1.

    This is the normalisation that RELION asks of particles: the background is what lies outside a circle
    around the box's centre.

    Parameters
    ----------
    radius : float, default=None
        Radius of the circle in pixels; pixels at this distance and beyond are background. None takes the
        circle inscribed in the box, half its side, which leaves the corners: 21 % of the pixels and the
        least signal. (In boxes below 3 x 3 pixels all of it is background then.)
    ramp : bool, default=False
        Subtract the plane that fits the background best, instead of its mean: micrographs of uneven
        illumination leave a gradient in their particles.

    Attributes
    ----------
    image_shape_ : tuple of two ints
        Height and width of the images seen by ``fit``.
    n_features_in_ : int
        Number of their pixels.

    See Also
    --------
    NoiseWhitener : Scales every Fourier ring.

    Notes
    -----
    Signal outside the circle raises the estimate of the background's standard deviation. ``fit`` learns
    nothing, and ``transform`` works without it.

    Examples
    --------
    >>> import numpy as np
    >>> from skcryo.preprocessing import NormalizeBackground
    >>> images = 5 + 2 * np.random.default_rng(0).standard_normal((3, 32, 32), dtype=np.float32)
    >>> y, x = np.mgrid[-16:16, -16:16]
    >>> background = NormalizeBackground().fit_transform(images)[:, np.hypot(y, x) >= 16]
    >>> background.mean(axis=1).round(4) + 0, background.std(axis=1).round(4)
    (array([0., 0., 0.], dtype=float32), array([1., 1., 1.], dtype=float32))
    """

    _parameter_constraints: dict = {
        "radius": [Interval(Real, 0, None, closed="left"), None],
        "ramp": ["boolean"],
    }

    def __init__(self, radius=None, *, ramp=False):
        self.radius = radius
        self.ramp = ramp

    def _check_images(self, stack):
        background_weight(stack.shape[1:], self.radius)

    def _plan(self, stack):
        function = partial(normalize_background, radius=self.radius, ramp=self.ramp)
        return function, {"per_image": {"index": np.arange(len(stack))}}
