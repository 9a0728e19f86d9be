"""Circles in boxes, centred at pixel ``L // 2`` along each axis."""

import numpy as np

__all__ = ["background_weight", "distance_from_centre", "inscribed_radius", "ring_index", "soft_circle"]


def inscribed_radius(image_shape):
    """Radius in pixels of the circle inscribed in a box: half of its shorter side."""
    return min(image_shape) / 2


def distance_from_centre(image_shape):
    """Distance in pixels of each pixel from the box's centre, shape (height, width), float64."""
    height, width = image_shape
    y = np.arange(height) - height // 2
    x = np.arange(width) - width // 2
    return np.hypot(y[:, None], x[None, :])


def soft_circle(image_shape, radius, edge_width):
    """1 within `radius`, 0 beyond ``radius + edge_width``, half a cosine between; float64.

    Without an edge, the pixels at exactly `radius` are outside.
    """
    distance = distance_from_centre(image_shape)
    if edge_width <= 0:
        return (distance < radius).astype(np.float64)
    ramp = np.clip((distance - radius) / edge_width, 0.0, 1.0)
    return 0.5 + 0.5 * np.cos(np.pi * ramp)


def background_weight(image_shape, radius, edge_width=0.0):
    """1 outside the circle of `radius`, falling to 0 over the `edge_width` pixels inside it; float64.

    Boxes so small that fewer than two pixels lie outside (below 3 x 3) are all background, and so is
    everything when the radius is 0.
    """
    if radius is None:
        radius = inscribed_radius(image_shape)
    if radius == 0:
        return np.ones(image_shape)
    edge_width = min(edge_width, radius)
    weight = 1.0 - soft_circle(image_shape, radius - edge_width, edge_width)
    if np.count_nonzero(weight > 0.5) < 2:
        if min(image_shape) > 2:
            height, width = image_shape
            raise ValueError(
                f"radius={radius:g} pixels leaves no background in images of {height} x {width} pixels; "
                f"give a radius below {distance_from_centre(image_shape).max():.1f}"
            )
        return np.ones(image_shape)
    return weight


def ring_index(image_shape, *, half=False):
    """Fourier ring of each frequency in the layout of ``fft2`` (with `half`, of ``rfft2``), zero first.

    The rings are ``round(|k| L)`` with |k| in cycles per pixel and L the longer side. Corners beyond Nyquist
    belong to the last ring, ``L // 2``.
    """
    height, width = image_shape
    side = max(image_shape)
    ky = np.fft.fftfreq(height)
    kx = np.fft.rfftfreq(width) if half else np.fft.fftfreq(width)
    rings = np.rint(side * np.hypot(ky[:, None], kx[None, :])).astype(np.int64)
    return np.minimum(rings, side // 2)
