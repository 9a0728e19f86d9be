"""Smaller boxes of larger pixels, by cropping in Fourier space."""

from functools import partial
from numbers import Integral

from .._validation import Interval
from ..fourier import fourier_crop
from ._base import ImageTransformer

__all__ = ["FourierDownsampler"]


class FourierDownsampler(ImageTransformer, auto_wrap_output_keys=None):
    """Sample images more coarsely: drop the frequencies beyond a smaller box's Nyquist frequency.

    The field of view stays the same, so pixels become larger by ``L / box_size``; a ``ParticleStack`` comes
    out with its pixel size and its shifts converted. CTF parameters are in physical units and stay.

    Parameters
    ----------
    box_size : int, default=None
        Side of the new box in pixels, not larger than the images' own. None halves the box.

    Attributes
    ----------
    image_shape_ : tuple of two ints
        Height and width of the images seen by ``fit``.
    n_features_in_ : int
        Number of their pixels.

    See Also
    --------
    skcryo.fourier.fourier_crop : The function behind.

    Notes
    -----
    The mean of an image is kept. The variance of white noise falls by the square of ``box_size / L``, so
    normalise or whiten afterwards. ``fit`` learns nothing, and ``transform`` works without it.

    Examples
    --------
    >>> import numpy as np
    >>> from skcryo.particles import ParticleStack
    >>> from skcryo.preprocessing import FourierDownsampler
    >>> stack = ParticleStack(np.ones((4, 64, 64), dtype=np.float32), pixel_size=1.5)
    >>> small = FourierDownsampler(box_size=24).fit_transform(stack)
    >>> small.shape, small.pixel_size
    ((4, 24, 24), 4.0)
    """

    _parameter_constraints: dict = {"box_size": [Interval(Integral, 1, None, closed="left"), None]}
    _needs_square = True

    def __init__(self, box_size=None):
        self.box_size = box_size

    def _check_images(self, stack):
        side = stack.shape[1]
        if self.box_size is not None and self.box_size > side:
            raise ValueError(
                f"box_size={self.box_size} is larger than the images of {side} x {side} pixels; "
                f"downsampling needs box_size <= {side}"
            )

    def _plan(self, stack):
        side = stack.shape[1]
        box_size = max(side // 2, 1) if self.box_size is None else int(self.box_size)
        plan = {"image_shape": (box_size, box_size)}
        if stack.pixel_size is not None:
            plan["pixel_size"] = stack.pixel_size * side / box_size
        if stack.shifts is not None:
            # Whole-pixel centres L // 2 map on one another exactly, so a shift only changes its unit.
            plan["shifts"] = stack.shifts * (box_size / side)
        return partial(fourier_crop, L_new=box_size), plan
