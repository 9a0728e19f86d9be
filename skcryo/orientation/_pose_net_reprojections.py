"""Images to train on: projections of a volume, with the noise, CTFs, contrasts and shifts of the data."""

import numpy as np

from ..rotations import random_rotations

__all__ = ["Reprojections"]


class Reprojections:
    """Draws noisy projections of a volume as coefficients.

    In the units of :class:`skcryo.alignment.FourierImages` noise is white, of variance 1, whatever its spectrum is; CTF
    and contrast of an image are those of one of the data, drawn by lot. Views are uniform. Slices are taken from a pool
    made once: the network turns with the image, so that images of the same view in the plane would tell it nothing new,
    and noise is new in each.

    Parameters
    ----------
    images : FourierImages
        The data.
    projector : VolumeProjector
    contrast : ndarray of shape (n_images,)
        Of the data.
    inputs : SteerableInputs or None
        Makes coefficients of images; None if these are not wanted.
    max_shift : float
        Pixels.
    n_views : int
        Slices in the pool.
    seed : int
        Of the views.
    centred : float, default=1.0
        Share of `max_shift` that half of the images are moved by at most.
    """

    def __init__(self, images, projector, contrast, inputs, *, max_shift, n_views, seed, centred=1.0):
        self.images, self.inputs, self.contrast = images, inputs, contrast
        self.max_shift, self.centred = max_shift, centred
        self.rotations = random_rotations(n_views, seed)
        self.points = images.points if inputs is None else images.points[: inputs.n_points]
        self.slices = projector.slices(self.rotations, self.points)

    def draw(self, n, random):
        """Draw images as coefficients.

        Parameters
        ----------
        n : int
        random : numpy.random.Generator

        Returns
        -------
        coefficients : ndarray of shape (n, n_components), float32
        rotations : ndarray of shape (n, 3, 3)
        shifts : ndarray of shape (n, 2)
            Pixels.
        """
        clean, noise, filters, rotations, shifts = self.draw_values(n, random)
        return self.inputs.of_values(clean + noise, filters), rotations, shifts

    def draw_values(self, n, random):
        """As :meth:`draw`, but Fourier coefficients (n, n_points), their noise apart, and filters."""
        view, row = random.integers(len(self.slices), size=n), random.integers(len(self.images), size=n)
        filters = self.images.filters[row if len(self.images.filters) > 1 else slice(None), : len(self.points)]
        values = self.slices[view] * (filters * self.contrast[row, None].astype(np.float32))
        shifts = np.zeros((n, 2))
        if self.max_shift > 0:
            # Half of them almost centred, as images are once they were seen for the first time.
            scale = self.max_shift * np.where(random.uniform(size=(n, 1)) < 0.5, 1, self.centred)
            shifts = scale * random.uniform(-1, 1, (n, 2))
            values *= self.images.centred_phases(-shifts, len(self.points))
        noise = random.standard_normal((n, 2 * len(self.points)), dtype=np.float32)
        noise *= np.float32(np.sqrt(0.5))
        return values, noise.view(np.complex64), filters, self.rotations[view], shifts
