"""Images as rows, for estimators that know only tables."""

import numpy as np
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin

from .._validation import (
    StackTagsMixin,
    _fit_context,
    check_is_fitted,
    rows_to_images,
    validate_lazy,
    validate_stack,
)

__all__ = ["Flattener"]


class Flattener(StackTagsMixin, ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Turn images into rows of pixels, so that any scikit-learn estimator can follow in a ``Pipeline``.

    Everything that a ``ParticleStack`` knows beside its pixels ends here, and the pixels are read into
    memory. A contiguous array is not copied.

    Attributes
    ----------
    image_shape_ : tuple of two ints
        Height and width of the images.
    n_features_in_ : int
        Number of their pixels.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.decomposition import PCA
    >>> from sklearn.pipeline import make_pipeline
    >>> from skcryo.preprocessing import Flattener
    >>> images = np.random.default_rng(0).standard_normal((20, 8, 8))
    >>> make_pipeline(Flattener(), PCA(3)).fit_transform(images).shape
    (20, 3)
    """

    _parameter_constraints: dict = {}

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y=None):
        """Remember the shape of the images.

        Parameters
        ----------
        X : ParticleStack or array-like of shape (n_images, height, width) or (n_images, n_pixels)
            Images.
        y : None
            Ignored.

        Returns
        -------
        self : object
        """
        # Reads no pixels of a stack that lies in files.
        validate_lazy(self, X, square=False, non_square="row")
        self._n_features_out = self.n_features_in_
        return self

    def transform(self, X):
        """Images as rows.

        Parameters
        ----------
        X : ParticleStack or array-like of shape (n_images, height, width) or (n_images, n_pixels)
            Images.

        Returns
        -------
        rows : ndarray of shape (n_images, n_pixels)
        """
        check_is_fitted(self)
        return validate_stack(self, X, reset=False)

    def inverse_transform(self, X):
        """Rows as images.

        Parameters
        ----------
        X : array-like of shape (n_images, n_pixels)
            Rows of pixels, for example the components of a PCA.

        Returns
        -------
        images : ndarray of shape (n_images, height, width)
        """
        check_is_fitted(self)
        rows = np.asarray(X)
        if rows.ndim != 2 or rows.shape[1] != self.n_features_in_:
            raise ValueError(
                f"X must have shape (n_images, {self.n_features_in_}) to become images of "
                f"{self.image_shape_[0]} x {self.image_shape_[1]} pixels, got {rows.shape}"
            )
        return rows_to_images(rows, self.image_shape_)
