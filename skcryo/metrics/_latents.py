"""Latent coordinates of particles against what is true of them."""

import numpy as np
from scipy.spatial.distance import cdist
from scipy.stats import rankdata
from sklearn.neighbors import NearestNeighbors

from ._volumes import fsc

__all__ = ["information_imbalance", "neighborhood_similarity", "per_image_fsc"]

_BLOCK = 2**22  # distances that are held at a time


def information_imbalance(first, second, *, n_neighbors=1):
    """How little the neighbours of images in one space say of those in another.

    Two over the number of images times the mean rank that an image's nearest neighbours in the first space have among
    its neighbours in the second: near 0 if the first tells all that the second knows, 1 if nothing. The two directions
    differ where one space knows more: coordinates that follow the motion and noise beside it tell the truth less well
    than the truth tells them.

    Parameters
    ----------
    first, second : array-like of shape (n_images, dim)
        Coordinates of the same images in two spaces, each Euclidean: of a circular motion sine and cosine. (n_images,)
        for one coordinate.
    n_neighbors : int, default=1
        Neighbours of an image, itself left out; of several at the same distance as the last all count.

    Returns
    -------
    imbalance : float
        Images at the same distance share the mean of their ranks, so that it is 1 by chance whatever the ties; spaces
        of S states, each of many images, come no lower than ``1 / S``.

    Raises
    ------
    ValueError
        If there is not one row for each image, a value is not finite, or `n_neighbors` is out of range.

    References
    ----------
    Glielmo, Zeni, Cheng, Csanyi, Laio, "Ranking the information content of distance measures", PNAS Nexus 1 (2022),
    equation 2; Jeon et al., "CryoBench", NeurIPS (2024), for its use.

    Examples
    --------
    >>> import numpy as np
    >>> from skcryo.metrics import information_imbalance
    >>> both = np.random.default_rng(0).normal(size=(200, 2))
    >>> one = both[:, 0]
    >>> information_imbalance(both, one) < 0.2 < information_imbalance(one, both)
    True
    """
    first, second = _rows(first, "first"), _rows(second, "second")
    n = len(first)
    if len(second) != n:
        raise ValueError(f"second has {len(second)} rows but first has {n}")
    if not 1 <= n_neighbors < n:
        raise ValueError(f"n_neighbors is {n_neighbors}; 1 to {n - 1}, fewer than the images, is wanted")
    size, means = max(1, _BLOCK // n), []
    for start in range(0, n, size):
        rows = np.arange(start, min(start + size, n))
        near, far = cdist(first[rows], first), cdist(second[rows], second)
        for distances in (near, far):
            distances[rows - start, rows] = np.inf
        reach = np.partition(near, n_neighbors - 1, axis=1)[:, n_neighbors - 1]
        chosen = near <= reach[:, None] * (1 + 1e-9)
        ranks = rankdata(far, axis=1)
        means.append((ranks * chosen).sum(axis=1) / chosen.sum(axis=1))
    return float(2 / n * np.concatenate(means).mean())


def neighborhood_similarity(truth, embedding, *, n_neighbors=None):
    """Share of the nearest neighbours in latent space that are nearest neighbours in truth too.

    Parameters
    ----------
    truth : array-like of shape (n_images, n_true)
        True coordinates of each image, Euclidean: of a circular motion sine and cosine. (n_images,) for one.
    embedding : array-like of shape (n_images, z_dim)
        Latent coordinates.
    n_neighbors : int, default=None
        Neighbours of an image, itself left out. None: a tenth of the images.

    Returns
    -------
    similarity : float
        Between 0 and 1; ``n_neighbors / (n_images - 1)`` by chance. Images as far away in truth as the last of the
        neighbours count as neighbours, so that states that many images share are no loss.

    Raises
    ------
    ValueError
        If there is not one row for each image, a value is not finite, or `n_neighbors` is out of range.

    References
    ----------
    Jeon et al., "CryoBench: diverse and challenging datasets for the heterogeneity problem in cryo-EM", NeurIPS (2024).

    Examples
    --------
    >>> import numpy as np
    >>> from skcryo.metrics import neighborhood_similarity
    >>> angle = np.linspace(0, 1, 50)
    >>> neighborhood_similarity(angle, np.stack([angle**3, 0 * angle], axis=1), n_neighbors=2) > 0.9
    True
    """
    truth, embedding = _rows(truth, "truth"), _rows(embedding, "embedding")
    n = len(truth)
    if len(embedding) != n:
        raise ValueError(f"embedding has {len(embedding)} rows but truth has {n}")
    n_neighbors = max(1, n // 10) if n_neighbors is None else n_neighbors
    if not 1 <= n_neighbors < n:
        raise ValueError(f"n_neighbors is {n_neighbors}; 1 to {n - 1}, fewer than the images, is wanted")
    # Without a query, an image is no neighbour of itself.
    reach = NearestNeighbors(n_neighbors=n_neighbors).fit(truth).kneighbors()[0][:, -1]
    found = NearestNeighbors(n_neighbors=n_neighbors).fit(embedding).kneighbors(return_distance=False)
    away = np.linalg.norm(truth[found] - truth[:, None], axis=2)
    return float((away <= reach[:, None] * (1 + 1e-9) + 1e-12).mean())


def per_image_fsc(volumes, truth, *, max_shell=None):
    """Area under the Fourier shell correlation of each image's volume with its true one.

    Parameters
    ----------
    volumes : iterable of n arrays of shape (L, L, L)
        One for each of some images, as :meth:`skcryo.heterogeneity.CryoDRGN.volumes_at` decodes its coordinates.
    truth : iterable of n arrays of shape (L, L, L)
        In the same frame.
    max_shell : int, default=None
        Last shell that counts; None goes to Nyquist.

    Returns
    -------
    areas : ndarray of shape (n,), float64
        Mean correlation over the shells 1, ..., `max_shell`.

    Raises
    ------
    ValueError
        If there are not as many volumes of either kind.

    Examples
    --------
    >>> import numpy as np
    >>> from skcryo.metrics import per_image_fsc
    >>> volumes = np.random.default_rng(0).normal(size=(2, 8, 8, 8))
    >>> per_image_fsc(volumes, 2 * volumes).round(6).tolist()
    [1.0, 1.0]
    """
    try:
        curves = [fsc(volume, true) for volume, true in zip(volumes, truth, strict=True)]
    except ValueError as error:
        if "zip()" in str(error):
            raise ValueError("volumes and truth are not as many; one true volume for each is wanted") from None
        raise
    stop = None if max_shell is None else max_shell + 1
    return np.array([curve[1:stop].mean() for curve in curves])


def _rows(values, name):
    values = np.asarray(values, dtype=np.float64)
    values = values[:, None] if values.ndim == 1 else values
    if values.ndim != 2:
        raise ValueError(f"{name} has shape {values.shape}; one row for each image is wanted")
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(bad):
        raise ValueError(f"{name}[{bad[0]}] is {values[bad[0]].tolist()}; finite values are wanted")
    return values
