"""Circular masks with a soft edge."""

from functools import partial
from numbers import Real

import numpy as np

from .._validation import Interval, StrOptions
from ._base import ImageTransformer
from ._geometry import inscribed_radius, soft_circle

__all__ = ["CircularMask", "mask_images"]


def mask_images(images, mask, *, fill="zero"):
    """Multiply images by a mask, and fill what it takes away.

    Parameters
    ----------
    images : ndarray of shape (n_images, height, width)
        Images.
    mask : ndarray of shape (height, width)
        Between 0 (masked out) and 1.
    fill : {"zero", "background"}, default="zero"
        As in :class:`CircularMask`.

    Returns
    -------
    images : ndarray of shape (n_images, height, width)
        float32 or float64, as `images`.

    Examples
    --------
    >>> import numpy as np
    >>> from skcryo.preprocessing import mask_images
    >>> mask_images(np.full((1, 2, 2), 3.0), np.array([[1.0, 0.0], [0.5, 1.0]]))[0]
    array([[3. , 0. ],
           [1.5, 3. ]])
    """
    images = np.asarray(images)
    dtype = np.float64 if images.dtype == np.float64 else np.float32
    mask = mask.astype(dtype)
    if fill == "zero":
        return (images * mask).astype(dtype, copy=False)
    outside = 1.0 - mask.astype(np.float64)
    total = outside.sum()
    if total == 0:
        return images.astype(dtype)
    level = np.tensordot(images, outside, axes=2) / total
    level = level.astype(dtype)[:, None, None]
    return ((images - level) * mask + level).astype(dtype, copy=False)


class CircularMask(ImageTransformer, auto_wrap_output_keys=None):
    """Keep what lies in a circle around the box's centre; the edge is soft.

    Parameters
    ----------
    radius : float, default=None
        Radius in pixels within which images stay as they are. None takes the largest whose edge still ends at
        the border of the box.
    edge_width : float, default=5.0
        Width in pixels of the edge, half a cosine outside `radius`, which keeps the mask from ringing in
        Fourier space. With ``radius=None`` it is at most half of the inscribed circle's radius.
    fill : {"zero", "background"}, default="zero"
        What comes outside: zero, right for images whose background has mean 0
        (:class:`NormalizeBackground`), or the mean of the image's own background, which leaves no step in
        images that are not normalised.

    Attributes
    ----------
    image_shape_ : tuple of two ints
        Height and width of the images seen by ``fit``.
    n_features_in_ : int
        Number of their pixels.

    Notes
    -----
    The noise of masked images is no longer the same everywhere, nor independent between Fourier coefficients.
    Estimate it before masking. ``fit`` learns nothing, and ``transform`` works without it.

    Examples
    --------
    >>> import numpy as np
    >>> from skcryo.preprocessing import CircularMask
    >>> masked = CircularMask(radius=6, edge_width=3).fit_transform(np.ones((1, 32, 32)))
    >>> masked[0, 16, 16:28].round(2).tolist()
    [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.75, 0.25, 0.0, 0.0, 0.0]
    """

    _parameter_constraints: dict = {
        "radius": [Interval(Real, 0, None, closed="neither"), None],
        "edge_width": [Interval(Real, 0, None, closed="left")],
        "fill": [StrOptions({"zero", "background"})],
    }

    def __init__(self, radius=None, *, edge_width=5.0, fill="zero"):
        self.radius = radius
        self.edge_width = edge_width
        self.fill = fill

    def _mask(self, image_shape):
        if self.radius is not None:
            return soft_circle(image_shape, self.radius, self.edge_width)
        largest = inscribed_radius(image_shape)
        edge_width = min(self.edge_width, largest / 2)
        return soft_circle(image_shape, largest - edge_width, edge_width)

    def _plan(self, stack):
        return partial(mask_images, mask=self._mask(stack.shape[1:]), fill=self.fill), {}
