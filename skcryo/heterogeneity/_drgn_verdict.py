"""Whether latent coordinates are worth anything."""

import numpy as np

__all__ = ["told_by_heart", "told_collapse"]

_COLLAPSED = 0.2  # share of the variance of coordinates that images tell
_BY_HEART = 0.5  # of what coordinates explain of images trained on: of those kept out, at least that


def told_collapse(z):
    """What is wrong if images do not tell their coordinates.

    Parameters
    ----------
    z : ndarray of shape (n, z_dim)
        Means of posteriors, for which all would have variance 1 if their widths were counted.

    Returns
    -------
    problem : str or None
    """
    told = np.linalg.eigvalsh(np.atleast_2d(np.cov(z.T)))[-1]
    if told >= _COLLAPSED:
        return None
    return (
        f"latent coordinates have collapsed. Those of different images differ by {told:.0%} of what they would if "
        "images told them exactly: there may be no heterogeneity, or too much noise"
    )


def told_by_heart(posterior, training, contrast):
    """What is wrong if an encoder explains the images that it was trained on and no others.

    Parameters
    ----------
    posterior : EncoderPosterior
    training : DecoderTraining
        On some of its images.
    contrast : ndarray of shape (n,)
        Of all of them.

    Returns
    -------
    problem : str or None
    """
    kept_out = np.setdiff1d(np.arange(len(training.images)), training.rows)
    if not len(kept_out):
        return None
    gains = []
    for rows in (training.rows[: len(kept_out)], kept_out):
        own = training.images.take(rows), training.rotations[rows], training.shifts[rows], contrast[rows]
        told, ignored = (posterior.posterior(*own, ignore=ignore).log_likelihood for ignore in (False, True))
        gains.append(float(np.mean(told - ignored)))
    if not gains[0] > 0 or gains[1] >= _BY_HEART * gains[0]:
        return None
    return (
        "the encoder has learnt images by heart. Its coordinates raise the log-likelihood of an image by "
        f"{gains[0]:.3g} if it was trained on, by {gains[1]:.3g} if it was kept out; inference='decoder' does not "
        "suffer from it"
    )
