"""What all transformers from images to images share: each is a function of one image at a time."""

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin

from .._validation import (
    StackTagsMixin,
    _fit_context,
    check_is_fitted,
    is_particle_stack,
    is_stack_of_images,
    iter_finite_chunks,
    validate_lazy,
    validate_parameters,
)

__all__ = ["ImageTransformer", "as_float_images"]


def as_float_images(images):
    """`images` as an array, float64 if they are so and float32 otherwise, without a copy where none is needed."""
    images = np.asarray(images)
    return images.astype(np.float64 if images.dtype == np.float64 else np.float32, copy=False)


class ImageTransformer(StackTagsMixin, TransformerMixin, BaseEstimator, auto_wrap_output_keys=None):
    """Base of the transformers from images to images.

    What goes in comes out: a ``ParticleStack`` gives a ``ParticleStack`` with its facts kept in step, an
    array ``(n_images, height, width)`` an array of three dimensions, and rows give rows. A stack that
    lies in files stays lazy: its images are transformed as they are read, so that stacks larger than
    memory go through. float32 and float64 are kept.

    A subclass says what to do in :meth:`_plan`, and what to learn before in :meth:`_learn`.
    """

    _parameter_constraints: dict = {}
    # Whether images must be square: rows that are no square image are then padded with zeros to one.
    _needs_square = False
    _needs_fit = False

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.requires_fit = self._needs_fit
        return tags

    def __sklearn_is_fitted__(self):
        return not self._needs_fit or hasattr(self, "image_shape_")

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y=None):
        """Check the images and the parameters, and learn from the images what the class says, if anything.

        Parameters
        ----------
        X : ParticleStack or array-like of shape (n_images, height, width) or (n_images, n_pixels)
            Images; where something is learned, read in chunks.
        y : None
            Ignored.

        Returns
        -------
        self : object
        """
        stack = self._as_stack(X, reset=True)
        self._check_images(stack)
        self._learn(stack)
        return self

    def transform(self, X):
        """Transform images.

        Parameters
        ----------
        X : ParticleStack or array-like of shape (n_images, height, width) or (n_images, n_pixels)
            Images.

        Returns
        -------
        images : ParticleStack or ndarray
            A stack for a stack, (n_images, height, width) for that, rows for rows; dtype as `X`.
        """
        return self._transform(X)

    def _check_images(self, stack):
        """Refuse images that the parameters do not suit."""

    def _learn(self, stack):
        """Set what ``fit`` learns."""

    def _plan(self, stack, **facts):
        """(function, what else ``ParticleStack.map`` wants) for the images of `stack`."""
        raise NotImplementedError

    def _as_stack(self, X, *, reset):
        return validate_lazy(
            self,
            X,
            reset=reset,
            square=self._needs_square,
            non_square="pad" if self._needs_square else "row",
        )

    def _checked_stack(self, X):
        check_is_fitted(self)
        # Parameters may have been set after fit, and stateless transformers work without one.
        validate_parameters(self)
        stack = self._as_stack(X, reset=False)
        self._check_images(stack)
        return stack

    def _transform(self, X, **facts):
        stack = self._checked_stack(X)
        function, plan = self._plan(stack, **facts)
        mapped = stack.map(function, **plan)
        is_stack = is_particle_stack(X)
        if is_stack and not stack.in_memory:
            return mapped
        images = np.empty(mapped.shape, dtype=mapped.dtype)
        per_image = plan.get("per_image") or {}
        for where, chunk in iter_finite_chunks(stack, dtype=None):
            images[where] = function(chunk, **{name: value[where] for name, value in per_image.items()})
        if is_stack:
            return mapped.replace(data=images)
        return images if is_stack_of_images(X) else images.reshape(len(images), -1)
