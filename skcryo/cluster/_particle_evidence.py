"""How much images are particles of a fitted mixture rather than nothing but noise."""

import numpy as np

__all__ = ["particle_evidence"]


def particle_evidence(estimator, X, *, ctf=None):
    """Log-likelihood of each image less that of the same image under noise alone, in nats.

    The likelihood itself does not find junk: an image of noise is no less likely than a particle, of which the model
    never explains all. What tells them apart is how much the class means explain.

    Parameters
    ----------
    estimator : SMLClustering
        Fitted.
    X : ParticleStack or array-like of shape (n_images, L, L) or (n_images, n_pixels)
    ctf : structured array of shape (n_images,), default=None
        CTFs. None: those that `X` carries, if any.

    Returns
    -------
    evidence : ndarray of shape (n_images,), float64
        Of images of noise around zero and below, of particles about half their signal's power in units of the noise.
    """
    data = estimator._new(X, ctf)
    noise = estimator._space.noise
    precision = getattr(estimator._mixture, "precision", None)
    if precision is not None:
        noise = noise / precision[data.coordinates.rings]
    alone = np.empty(len(data))
    for where, y, _ in data.chunks():
        alone[where] = -0.5 * (np.square(y, dtype=np.float64) / noise).sum(axis=1)
    alone -= 0.5 * np.log(2 * np.pi * noise).sum()
    return estimator.score_samples(X, ctf=ctf) - alone
