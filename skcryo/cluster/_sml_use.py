"""What fitted classes on a manifold are used for: labels, latent positions and scores of images, images drawn."""

import numpy as np
from sklearn.base import ClassNamePrefixFeaturesOutMixin, ClusterMixin, TransformerMixin
from sklearn.utils import check_random_state

from .._validation import StackTagsMixin, check_is_fitted, check_sample_weight, validate_lazy
from ._sml_expectation import posteriors
from ._sml_subspace import SubspaceMixture

__all__ = ["FittedManifold", "float_dtype"]


class FittedManifold(StackTagsMixin, ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClusterMixin):
    """The methods of :class:`~skcryo.cluster.SMLClustering` after ``fit``."""

    def _posteriors(self, data):
        """Yield (where, whitened, responsibilities, log-likelihoods of whitened coordinates)."""
        mixture, coordinates = self._mixture, data.coordinates
        tables = mixture.tables(coordinates)
        for where, *whitened in data.whitened(self._space):
            features = mixture.features(*whitened, coordinates)
            found, likelihoods = posteriors(tables, *features)
            yield where, whitened, found, likelihoods

    def _new(self, X, ctf):
        check_is_fitted(self)
        stack = validate_lazy(self, X, reset=False)
        ctf, pixel_size = self._optics(stack, ctf)
        return self._data(stack, ctf, pixel_size, np.ones(len(stack)))

    def predict(self, X, *, ctf=None):
        """Likeliest class of each image.

        Parameters
        ----------
        X : ParticleStack or array-like of shape (n_images, L, L) or (n_images, n_pixels)
        ctf : structured array of shape (n_images,), default=None

        Returns
        -------
        labels : ndarray of shape (n_images,), int32
        """
        found = [part.argmax(axis=1) for _, _, part, _ in self._posteriors(self._new(X, ctf))]
        return np.concatenate(found).astype(np.int32)

    def predict_proba(self, X, *, ctf=None):
        """Probabilities of the classes given each image, equation 9.

        Parameters
        ----------
        X, ctf : as in :meth:`predict`

        Returns
        -------
        probabilities : ndarray of shape (n_images, n_clusters)
        """
        found = [part for _, _, part, _ in self._posteriors(self._new(X, ctf))]
        return np.concatenate(found).astype(float_dtype(X), copy=False)

    def transform(self, X, *, ctf=None):
        """Latent position of each image: mean of its classes' positions, weighted by their probabilities.

        Parameters
        ----------
        X, ctf : as in :meth:`predict`

        Returns
        -------
        positions : ndarray of shape (n_images, n_latent)
            As `latent_positions_`; within the unit sphere the farther in, the less is known.
        """
        found = [part @ self.latent_positions_ for _, _, part, _ in self._posteriors(self._new(X, ctf))]
        return np.concatenate(found).astype(float_dtype(X), copy=False)

    def fit_predict(self, X, y=None, *, ctf=None, sample_weight=None):
        """Fit, and return the class of each image.

        Parameters
        ----------
        X, y, ctf, sample_weight : as in :meth:`fit`

        Returns
        -------
        labels : ndarray of shape (n_images,), int32
        """
        return self.fit(X, y, ctf=ctf, sample_weight=sample_weight).labels_

    def fit_transform(self, X, y=None, *, ctf=None, sample_weight=None):
        """Fit, and return the latent positions of the images.

        Parameters
        ----------
        X, y, ctf, sample_weight : as in :meth:`fit`

        Returns
        -------
        positions : ndarray of shape (n_images, n_latent)
        """
        return self.fit(X, y, ctf=ctf, sample_weight=sample_weight).transform(X, ctf=ctf)

    def log_likelihoods(self, X, *, ctf=None):
        """Log-likelihood of each image, the logarithm of equation 6.

        Of the image's Fourier coefficients within the band, orthonormal transform; it compares between numbers of
        classes, manifolds, components, on the same images and band.

        Parameters
        ----------
        X, ctf : as in :meth:`predict`

        Returns
        -------
        log_likelihoods : ndarray of shape (n_images,), float64
        """
        data = self._new(X, ctf)
        units = -0.5 * np.log(self._space.noise).sum()
        return np.concatenate([part + units for _, _, _, part in self._posteriors(data)])

    def score_samples(self, X, *, ctf=None):
        """Log-likelihood of each image above that of no particle, nothing but noise in the image.

        It tells particles from junk, which the likelihood itself does not: the model never explains all of a particle,
        so that an image of noise is likelier than a particle is. To compare models take :meth:`score`: their noise,
        which is what components leave, may differ.

        Parameters
        ----------
        X, ctf : as in :meth:`predict`

        Returns
        -------
        scores : ndarray of shape (n_images,), float64
            In nats. Around zero and below for images of noise; for particles about half their signal's power in units
            of the noise.
        """
        data = self._new(X, ctf)
        c, found = data.coordinates, []
        precision = getattr(self._mixture, "precision", np.ones(c.n_rings))  # in units of the space's
        mean = self._space.mean / np.sqrt(self._space.noise)
        weighted = mean * precision[c.rings]
        mean_power = np.bincount(c.groups, mean * weighted, c.n_groups)
        constant = mean.size * np.log(2 * np.pi) - np.log(precision[c.rings]).sum()
        for _, (filtered, squares, power), _, likelihoods in self._posteriors(data):
            norms = power @ precision + filtered @ (2 * weighted) + squares @ mean_power
            found.append(likelihoods + 0.5 * (norms + constant))
        return np.concatenate(found)

    def score(self, X, y=None, *, ctf=None, sample_weight=None):
        """Mean of :meth:`log_likelihoods`: higher is better.

        Of held-out images it tells which number of classes, manifold and `alpha` are wanted.

        Parameters
        ----------
        X, ctf : as in :meth:`predict`
        y : None
            Ignored.
        sample_weight : array-like of shape (n_images,), default=None

        Returns
        -------
        score : float
        """
        likelihoods = self.log_likelihoods(X, ctf=ctf)
        return float(np.average(likelihoods, weights=check_sample_weight(sample_weight, X, dtype=np.float64)))

    def sample(self, n_samples=1, *, random_state=None):
        """Draw images from the model, without CTFs.

        Parameters
        ----------
        n_samples : int, default=1
        random_state : int, RandomState instance or None, default=None

        Returns
        -------
        images : ndarray of shape (n_samples, L, L), float64
            Class means in noise, within the band.
        labels : ndarray of shape (n_samples,), int32
        """
        check_is_fitted(self)
        rng, mixture = check_random_state(random_state), self._mixture
        labels = rng.randint(len(mixture.basis), size=n_samples).astype(np.int32)
        images = rng.standard_normal((n_samples, self._coordinates.n_coordinates))
        means = mixture.means
        if isinstance(mixture, SubspaceMixture):
            means = means @ mixture.components.T
        else:
            images /= np.sqrt(mixture.precision[self._coordinates.rings])
        images[:, : means.shape[1]] += means[labels]
        return self._images(images), labels


def float_dtype(X):
    """float64 stays float64; all else is returned in float32."""
    return np.float64 if getattr(X, "dtype", np.float64) == np.float64 else np.float32
