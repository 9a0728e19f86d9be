"""What a fitted decoder is used for: coordinates and poses of images, volumes at coordinates, scores."""

import numpy as np
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import Bunch

from .._torch import resolve_device
from .._validation import (
    StackTagsMixin,
    check_is_fitted,
    iter_finite_chunks,
    padded_to,
    resolve_optics,
    validate_lazy,
    validate_parameters,
)
from ._drgn_images import fourier_images, part_of_stack, with_tilt
from ._drgn_poses import refine_against, resolve_poses
from ._drgn_search import largest_shift, poses_on_volume

__all__ = ["SMALLEST_BOX", "FittedDecoder"]

SMALLEST_BOX = 16


class FittedDecoder(ClassNamePrefixFeaturesOutMixin, StackTagsMixin, TransformerMixin):
    """The methods of :class:`~skcryo.heterogeneity.CryoDRGN` after ``fit``."""

    def latent_posterior(self, X, *, rotations=None, shifts=None, ctf=None, tilt=None, tilt_angle=None):
        """Posterior of the latent coordinates of images, each image by itself.

        Parameters
        ----------
        X : ParticleStack or array-like of shape (n_images, L, L) or (n_images, n_pixels)
        rotations, shifts, ctf, tilt, tilt_angle : as in :meth:`fit`

        Returns
        -------
        posterior : Bunch
            ``mean`` (n, z_dim), ``covariance`` (n, z_dim, z_dim), ``contrast`` (n,), ``log_likelihood`` (n,) with z
            integrated out, above that of no particle; ``rotations`` (n, 3, 3) and ``shifts`` (n, 2), refined if those
            of `fit` were, and ``tilt_shifts`` (n, 2) of tilt images.
        """
        check_is_fitted(self, "weights_")
        validate_parameters(self)
        stack = validate_lazy(self, X, reset=False)
        stack = with_tilt(stack.replace(ctf=resolve_optics(stack, ctf)[1]), tilt, tilt_angle)
        if rotations is None and hasattr(self, "pose_estimator_"):
            found = self.pose_estimator_.predict_poses(stack.replace(tilt=None))
            poses = [found.rotations, np.hstack([found.shifts] + [0 * found.shifts] * (stack.tilt is not None))]
        elif self._searches and rotations is None:
            poses = None
        else:
            missing = "given" if self._searches or hasattr(self.poses, "fit") else self.poses
            poses = resolve_poses(stack, rotations, shifts, missing)
        spectra = [self.noise_spectrum_, getattr(self, "tilt_noise_spectrum_", self.noise_spectrum_)]
        parts, L = [], max(stack.shape[1], SMALLEST_BOX)
        for where, chunk in iter_finite_chunks(stack, chunk_size=1000):
            part = padded_to(part_of_stack(stack, where, chunk), SMALLEST_BOX)
            images = self._units.apply(fourier_images(part, spectra, self._max_ring))
            if poses is None:
                max_shift = largest_shift(self.max_shift, L)
                own = poses_on_volume(images, self._contrasts.mean, max_shift, self._threads())
            else:
                own = [values[where] for values in poses]
            latents = self._posterior.posterior(images, *own, self._contrasts(images, *own))
            if self._refines:
                own = refine_against(self._posterior, images, *own, latents, n_jobs=self._threads())
                latents = self._posterior.posterior(images, *own, self._contrasts(images, *own))
            shifts_of = dict(zip(("shifts", "tilt_shifts"), np.split(own[1], images.n_views, axis=1)))
            parts.append({"rotations": own[0], **shifts_of, **vars(latents)})
        return Bunch(**{name: np.concatenate([part[name] for part in parts]) for name in parts[0]})

    def predict_poses(self, X, *, rotations=None, shifts=None, ctf=None, tilt=None, tilt_angle=None):
        """Poses of images, each image by itself, refined if those of `fit` were.

        Parameters
        ----------
        X, rotations, shifts, ctf, tilt, tilt_angle : as in :meth:`latent_posterior`

        Returns
        -------
        poses : Bunch
            ``rotations`` (n, 3, 3), in the frame of the volumes, and ``shifts`` (n, 2) in pixels.
        """
        found = self.latent_posterior(X, rotations=rotations, shifts=shifts, ctf=ctf, tilt=tilt, tilt_angle=tilt_angle)
        return Bunch(rotations=found.rotations, shifts=found.shifts)

    def transform(self, X, *, rotations=None, shifts=None, ctf=None, tilt=None, tilt_angle=None):
        """Latent coordinates of images, each image by itself: means of their posteriors.

        Parameters
        ----------
        X, rotations, shifts, ctf, tilt, tilt_angle : as in :meth:`latent_posterior`

        Returns
        -------
        z : ndarray of shape (n_images, z_dim)
            float64 for float64 images, else float32.
        """
        found = self.latent_posterior(X, rotations=rotations, shifts=shifts, ctf=ctf, tilt=tilt, tilt_angle=tilt_angle)
        return found.mean.astype(_float_dtype(X))

    def fit_transform(self, X, y=None, *, rotations=None, shifts=None, ctf=None, tilt=None, tilt_angle=None):
        """Fit, and return the latent coordinates of the images.

        Parameters
        ----------
        X, y, rotations, shifts, ctf, tilt, tilt_angle : as in :meth:`fit`

        Returns
        -------
        z : ndarray of shape (n_images, z_dim)
            ``embedding_``; float64 for float64 images, else float32.
        """
        self.fit(X, y, rotations=rotations, shifts=shifts, ctf=ctf, tilt=tilt, tilt_angle=tilt_angle)
        return self.embedding_.astype(_float_dtype(X))

    def volumes_at(self, z):
        """Volumes at latent coordinates.

        Parameters
        ----------
        z : array-like of shape (n, z_dim) or (z_dim,)

        Returns
        -------
        volumes : ndarray of shape (n, L, L, L), float32
            ``V[z, y, x]``, in units of the images per pixel. Images do not tell the mean of a volume: it is such that
            density is zero on average around the particle.
        """
        check_is_fitted(self, "weights_")
        z = np.atleast_2d(np.asarray(z, dtype=np.float64))
        if z.ndim != 2 or z.shape[1] != self._n_features_out:
            raise ValueError(f"z must have shape (n, {self._n_features_out}), got {z.shape}")
        bad = np.flatnonzero(~np.isfinite(z).all(axis=1))
        if len(bad):
            raise ValueError(f"z[{bad[0]}] is {z[bad[0]].tolist()}; finite coordinates are wanted")
        L = self.image_shape_[1]
        box = max(L, SMALLEST_BOX)
        device = resolve_device(self.device, caller="CryoDRGN")
        volumes = self._volume_decoder(self.weights_).volumes(z, self._max_ring, box, device)
        start = (box - L + 1) // 2
        return volumes[:, start : start + L, start : start + L, start : start + L]

    def inverse_transform(self, Z):
        """Volumes at latent coordinates, :meth:`volumes_at` by the name that scikit-learn has for it.

        Parameters
        ----------
        Z : array-like of shape (n, z_dim)

        Returns
        -------
        volumes : ndarray of shape (n, L, L, L), float32
        """
        return self.volumes_at(Z)

    def score_samples(self, X, *, rotations=None, shifts=None, ctf=None, tilt=None, tilt_angle=None):
        """Log-likelihood of each image with its coordinates integrated out, above that of no particle.

        Parameters
        ----------
        X, rotations, shifts, ctf, tilt, tilt_angle : as in :meth:`latent_posterior`

        Returns
        -------
        ndarray of shape (n_images,), float64
            Of frequencies up to 16 cycles per box.
        """
        found = self.latent_posterior(X, rotations=rotations, shifts=shifts, ctf=ctf, tilt=tilt, tilt_angle=tilt_angle)
        return found.log_likelihood

    def score(self, X, y=None, *, rotations=None, shifts=None, ctf=None, tilt=None, tilt_angle=None):
        """Mean of :meth:`score_samples`: higher is better. Of held-out images it tells which `z_dim` is wanted.

        Parameters
        ----------
        X, rotations, shifts, ctf, tilt, tilt_angle : as in :meth:`latent_posterior`
        y : None
            Ignored.

        Returns
        -------
        score : float
        """
        found = self.score_samples(X, rotations=rotations, shifts=shifts, ctf=ctf, tilt=tilt, tilt_angle=tilt_angle)
        return float(found.mean())


def _float_dtype(X):
    dtype = getattr(X, "dtype", None)
    return np.float32 if dtype is not None and np.dtype(dtype).itemsize <= 4 else np.float64
