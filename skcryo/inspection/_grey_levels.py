"""Grey levels: contrast by percentile, one tile at a time or one for all."""

import numpy as np


def grey_levels(images, *, percentiles=(1.0, 99.5)):
    """Map images to 8-bit grey, each with its own robust contrast.

    The darkest and brightest levels are percentiles of the pixels inside the inscribed disc, so that
    neither a few outliers nor the corners (which rotation leaves undefined) decide how a particle looks.

    Parameters
    ----------
    images : array-like of shape (n, L, L)
        Images in any unit. Pixels that are not finite are drawn black.
    percentiles : (float, float), default=(1.0, 99.5)
        Percentiles, in [0, 100], that become black and white.

    Returns
    -------
    grey : ndarray of shape (n, L, L), uint8
        A constant image becomes middle grey (128).

    Raises
    ------
    ValueError
        If `images` is not a stack of square images or `percentiles` do not increase within [0, 100].
    """
    images = np.asarray(images, dtype=np.float32)
    if images.ndim != 3 or images.shape[1] != images.shape[2]:
        raise ValueError(f"images has shape {images.shape}; a stack of square images (n, L, L) is wanted")
    low, high = percentiles
    if not 0 <= low < high <= 100:
        raise ValueError(f"percentiles is {percentiles}; two increasing numbers within [0, 100] are wanted")
    size = images.shape[-1]
    offset = np.arange(size) - size // 2
    disc = np.hypot(offset[:, None], offset) <= max(size // 2 - 1, 1)
    grey = np.full(images.shape, 128, dtype=np.uint8)
    for image, tile in zip(images, grey):
        inside = image[disc]
        inside = inside[np.isfinite(inside)]
        if inside.size == 0:
            continue
        black, white = np.percentile(inside, [low, high])
        if white > black:
            finite = np.where(np.isfinite(image), image, black)
            tile[...] = np.clip((finite - black) * (255.0 / (white - black)), 0, 255)
    return grey


def shared_grey_levels(images, *, percentiles=(1.0, 99.7)):
    """Map images to 8-bit grey, all with one contrast.

    Parameters
    ----------
    images : array-like of shape (..., H, W)
        Finite, in any unit.
    percentiles : (float, float), default=(1.0, 99.7)
        Of all pixels, that become black and white.

    Returns
    -------
    grey : ndarray of the same shape, uint8
    """
    images = np.asarray(images, dtype=np.float32)
    black, white = np.percentile(images, percentiles)
    if not white > black:
        black, white = float(images.min()) - 1, float(images.max()) + 1
    return np.clip((images - black) * (255.0 / (white - black)), 0, 255).astype(np.uint8)
