"""Particles moved to the centre of their boxes."""

from numbers import Integral, Real

import numpy as np
import scipy.fft

from .._validation import Interval, StrOptions, iter_finite_chunks
from ..fourier import shift_images
from ._base import ImageTransformer
from ._geometry import background_weight, distance_from_centre, inscribed_radius, soft_circle

__all__ = ["Centerer"]


def _radial_mean(image):
    """Each pixel's mean over its circle, by linear interpolation between the two nearest whole radii."""
    distance = distance_from_centre(image.shape)
    lower = distance.astype(np.int64)
    upper_share = distance - lower
    n_radii = int(distance.max()) + 2
    weights = np.bincount(lower.ravel(), (1 - upper_share).ravel(), minlength=n_radii)
    weights += np.bincount(lower.ravel() + 1, upper_share.ravel(), minlength=n_radii)
    sums = np.bincount(lower.ravel(), (image * (1 - upper_share)).ravel(), minlength=n_radii)
    sums += np.bincount(lower.ravel() + 1, (image * upper_share).ravel(), minlength=n_radii)
    profile = np.divide(sums, weights, out=np.zeros(n_radii), where=weights > 0)
    return profile[lower] * (1 - upper_share) + profile[lower + 1] * upper_share


def _center_of_mass(images, radius, first_index):
    """(x, y) of the centre of what is brighter than the background, relative to the box's centre."""
    image_shape = images.shape[1:]
    outside = background_weight(image_shape, radius) > 0.5
    level = images[:, outside].mean(axis=1, dtype=np.float64)
    inside = soft_circle(image_shape, radius, 0.0)
    mass = np.maximum(images - level[:, None, None], 0.0) * inside
    total = mass.sum(axis=(1, 2))
    if not np.all(total > 0):
        first = first_index + np.flatnonzero(~(total > 0))[0]
        raise ValueError(
            f"image {first} has no centre of mass: nothing in its circle is brighter than its background; "
            "remove it from the stack, or invert the contrast if particles are dark"
        )
    x = np.arange(image_shape[1]) - image_shape[1] // 2
    y = np.arange(image_shape[0]) - image_shape[0] // 2
    return np.stack([(mass.sum(axis=1) @ x) / total, (mass.sum(axis=2) @ y) / total], axis=1)


def _correlation_peak(images, reference, max_shift):
    """(x, y) by which `reference` must move to fit each image best, to fractions of a pixel."""
    height, width = images.shape[1:]
    spectra = scipy.fft.rfft2(images) * scipy.fft.rfft2(reference).conj()
    correlation = scipy.fft.irfft2(spectra, s=(height, width))
    reach_y, reach_x = min(max_shift, (height - 1) // 2), min(max_shift, (width - 1) // 2)
    y, x = np.mgrid[-reach_y : reach_y + 1, -reach_x : reach_x + 1].reshape(2, -1)
    # The nearest comes first, so that ties go to the smallest shift: a constant image stays where it is.
    order = np.argsort(np.hypot(y, x), kind="stable")
    order = order[np.hypot(y, x)[order] <= max_shift]
    y, x = y[order], x[order]
    best = correlation[:, y % height, x % width].argmax(axis=1)
    y, x = y[best], x[best]
    rows = np.arange(len(images))

    def refine(at, step_y, step_x):
        if (height if step_y else width) < 3:
            return np.zeros(len(images))
        before = correlation[rows, (y - step_y) % height, (x - step_x) % width]
        after = correlation[rows, (y + step_y) % height, (x + step_x) % width]
        curvature = before - 2 * at + after
        offset = np.divide(before - after, 2 * curvature, out=np.zeros_like(at), where=curvature < 0)
        # Within half a pixel, or the maximum lay at the end of the search.
        return np.clip(offset, -0.5, 0.5)

    peak = correlation[rows, y % height, x % width].astype(np.float64)
    return np.stack([x + refine(peak, 0, 1), y + refine(peak, 1, 0)], axis=1)


def _move(images, shifts):
    return shift_images(images, -shifts).astype(images.dtype, copy=False)


class Centerer(ImageTransformer, auto_wrap_output_keys=None):
    """Move particles to the centre of their boxes, one image at a time.

    A rough start for methods that take particles to be centred. What a single noisy image tells about its
    centre is little: read the Notes before using it on data with small shifts.

    Parameters
    ----------
    method : {"radial", "center_of_mass", "known"}, default="radial"
        * "radial": ``fit`` averages all images and then the average around its centre; ``transform``
        finds where
          this reference, round as it is, correlates best with each image.
        * "center_of_mass": the centroid of what is brighter than the background in a circle. For class
        averages and
          other images with little noise. Particles must be bright.
        * "known": the shifts that the ``ParticleStack`` brings along, as from a STAR file.
    radius : float, default=None
        Radius in pixels of the circle that holds the particle. None takes the circle inscribed in the box.
    max_shift : int, default=None
        The largest shift in pixels along x and y that "radial" looks for. None takes an eighth of the box.
    n_iter : int, default=3
        How often "radial" centres the images on its reference and makes a new one, in ``fit``.

    Attributes
    ----------
    reference_ : ndarray of shape (height, width), float64
        The round reference, when ``method="radial"``.
    image_shape_ : tuple of two ints
        Height and width of the images.
    n_features_in_ : int
        Number of their pixels.

    Notes
    -----
    Images are moved by a phase ramp: exact to fractions of a pixel, the box wraps around, and the filter
    is in float32. A ``ParticleStack`` comes out with ``shifts`` that describe the moved images: what is
    left of shifts that it brought along, and zeros otherwise. Shifts of the original images come from
    :meth:`estimate_shifts`. A STAR file that goes on naming the original images wants those: write it
    from the stack as it was, ``write_star(path, X, shifts=centerer.estimate_shifts(X))``, or save the
    moved images with it (``save_particles`` with ``images_path``).

    "radial" errs by 1.1 to 2.7 pixels on simulated ribosomes of 64 pixels, SNR 0.1 (1.1 with CTF, 1.6 with
    coloured noise too, 2.7 in another run, where shifts of up to 3 pixels had an rms of 2.4 to begin
    with): **for shifts that small it can be worse than nothing**. Its use is with large ones, as from
    automatic picking. "center_of_mass" of raw noisy images is drawn to the circle's centre by the noise,
    whose positive part has a centroid there, so it corrects too little. Joint searches over shift, angle
    and class do better.

    Examples
    --------
    >>> import numpy as np
    >>> from skcryo.fourier import shift_images
    >>> from skcryo.preprocessing import Centerer
    >>> y, x = np.mgrid[-16:16, -16:16]
    >>> blob = np.exp(-(x**2 + y**2) / 20.0)
    >>> moved = shift_images(np.stack([blob, blob]), [[2.0, -1.0], [-2.5, 0.5]])
    >>> Centerer("center_of_mass").fit(moved).estimate_shifts(moved).round(1).tolist()
    [[2.0, -1.0], [-2.5, 0.5]]
    """

    _parameter_constraints: dict = {
        "method": [StrOptions({"radial", "center_of_mass", "known"})],
        "radius": [Interval(Real, 0, None, closed="neither"), None],
        "max_shift": [Interval(Integral, 0, None, closed="left"), None],
        "n_iter": [Interval(Integral, 1, None, closed="left")],
    }
    _needs_square = True
    _needs_fit = True

    def __init__(self, method="radial", *, radius=None, max_shift=None, n_iter=3):
        self.method = method
        self.radius = radius
        self.max_shift = max_shift
        self.n_iter = n_iter

    def __sklearn_is_fitted__(self):
        return hasattr(self, "image_shape_") and (self.method != "radial" or hasattr(self, "reference_"))

    def _learn(self, stack):
        vars(self).pop("reference_", None)
        if self.method == "radial":
            mask = soft_circle(self.image_shape_, self._radius(), 0.0)
            for _ in range(self.n_iter):
                total = np.zeros(self.image_shape_)
                for _, images in iter_finite_chunks(stack):
                    if hasattr(self, "reference_"):
                        images = _move(images, _correlation_peak(images, self.reference_, self._max_shift()))
                    total += images.sum(axis=0, dtype=np.float64)
                average = total / len(stack)
                # Without its mean the reference does not see the images' grey level.
                reference = _radial_mean(average) * mask
                inside = mask > 0
                reference[inside] -= reference[inside].mean()
                self.reference_ = reference

    def estimate_shifts(self, X):
        """Where particles lie relative to the centres of their boxes.

        Parameters
        ----------
        X : ParticleStack or array-like of shape (n_images, L, L) or (n_images, n_pixels)
            Images; read once, in chunks.

        Returns
        -------
        shifts : ndarray of shape (n_images, 2), float64
            (x, y) in pixels, the library's convention: RELION's origin with the sign changed.
        """
        return self._estimate(self._checked_stack(X))

    def _estimate(self, stack):
        if self.method == "known":
            if stack.shifts is None:
                raise ValueError(
                    'Centerer(method="known") needs shifts, and X has none: give a ParticleStack with '
                    'shifts, or choose method="radial" or "center_of_mass"'
                )
            return stack.shifts.copy()
        shifts = np.empty((len(stack), 2))
        for where, images in iter_finite_chunks(stack):
            if self.method == "radial":
                shifts[where] = _correlation_peak(images, self.reference_, self._max_shift())
            else:
                shifts[where] = _center_of_mass(images, self._radius(), where.start)
        return shifts

    def _radius(self):
        return inscribed_radius(self.image_shape_) if self.radius is None else self.radius

    def _max_shift(self):
        return max(1, self.image_shape_[0] // 8) if self.max_shift is None else self.max_shift

    def _plan(self, stack):
        # Found now, in one pass, so that a lazy stack knows its shifts and does not search at every read.
        shifts = self._estimate(stack)
        left = np.zeros_like(shifts) if stack.shifts is None else stack.shifts - shifts
        return _move, {"per_image": {"shifts": shifts}, "shifts": left}
