"""Central slices and projections of a volume."""

import numpy as np

from ._grey_levels import shared_grey_levels
from ._matplotlib import import_pyplot

_PLANES = (("x", "y"), ("x", "z"), ("y", "z"))  # across and down of each column


def volume_tiles(volume):
    """Central slices and projections of a volume, as images.

    Parameters
    ----------
    volume : array-like of shape (L, L, L)
        ``V[z, y, x]``.

    Returns
    -------
    slices : ndarray of shape (3, L, L)
        Through ``L // 2``: planes with x across and y down, x across and z down, y across and z down.
    projections : ndarray of shape (3, L, L)
        Sums along z, y and x, in the same planes.

    Raises
    ------
    ValueError
        If the volume is no cube or holds values that are not finite.
    """
    volume = np.asarray(volume, dtype=np.float32)
    if volume.ndim != 3 or len(set(volume.shape)) != 1 or not volume.size:
        raise ValueError(f"volume has shape {volume.shape}; (L, L, L) is wanted")
    if not np.isfinite(volume).all():
        raise ValueError("volume holds NaN or infinity; finite densities are wanted")
    c = len(volume) // 2
    slices = np.stack([volume[c], volume[:, c], volume[:, :, c]])
    return slices, np.stack([volume.sum(axis=axis) for axis in range(3)])


def grey_tiles(volume):
    """The tiles of :func:`volume_tiles` as grey levels, one contrast for all slices and one for all projections.

    Parameters
    ----------
    volume : array-like of shape (L, L, L)

    Returns
    -------
    tiles : ndarray of shape (2, 3, L, L), uint8
    """
    return np.stack([shared_grey_levels(images) for images in volume_tiles(volume)])


class VolumeDisplay:
    """Three central slices of a volume above its three projections.

    Make one with :meth:`from_estimator` or :meth:`from_volume`, which draw at once; :meth:`plot` draws again.

    Parameters
    ----------
    volume : array-like of shape (L, L, L)
        ``V[z, y, x]``.
    pixel_size : float, default=None
        Angstrom; if given, a scale bar is drawn.

    Attributes
    ----------
    ax_ : matplotlib Axes
        The axes that hold the montage.
    figure_ : matplotlib Figure
        Its figure.
    image_ : matplotlib AxesImage
        All tiles, as one image.
    texts_ : list of matplotlib Text
        What each tile shows.

    Raises
    ------
    ValueError
        If the volume is no cube or not finite, or `pixel_size` is not positive.

    See Also
    --------
    FSCDisplay : How far two volumes agree.

    Examples
    --------
    >>> import numpy as np
    >>> from matplotlib.figure import Figure
    >>> from skcryo.inspection import VolumeDisplay
    >>> volume = np.random.default_rng(0).normal(size=(16, 16, 16))
    >>> display = VolumeDisplay.from_volume(volume, ax=Figure().add_subplot())
    >>> [text.get_text() for text in display.texts_][::3]
    ['slice xy', 'projection along z']
    """

    def __init__(self, volume, *, pixel_size=None):
        if pixel_size is not None and not 0 < pixel_size < np.inf:
            raise ValueError(f"pixel_size is {pixel_size}; a positive number of Angstrom, or None, is wanted")
        self.tiles = grey_tiles(volume)
        self.volume = np.asarray(volume)
        self.pixel_size = pixel_size

    @classmethod
    def from_volume(cls, volume, *, pixel_size=None, **plot_options):
        """Draw a volume.

        Parameters
        ----------
        volume, pixel_size
            As for the class.
        **plot_options
            Passed to :meth:`plot`.

        Returns
        -------
        display : VolumeDisplay
        """
        return cls(volume, pixel_size=pixel_size).plot(**plot_options)

    @classmethod
    def from_estimator(cls, estimator, **plot_options):
        """Draw the volume of a fitted estimator.

        Parameters
        ----------
        estimator : estimator instance
            Fitted, with `volume_`; or a fitted Pipeline whose last step is one.
        **plot_options
            Passed to :meth:`plot`.

        Returns
        -------
        display : VolumeDisplay

        Raises
        ------
        ValueError
            If the estimator has no volume (not fitted, or of another kind).
        """
        last = estimator[-1] if hasattr(estimator, "steps") else estimator
        volume = getattr(last, "volume_", None)
        if volume is None:
            raise ValueError(
                f"{type(last).__name__} has no volume_; a fitted estimator of volumes is wanted (call fit first)"
            )
        return cls(volume, pixel_size=getattr(last, "pixel_size_", None)).plot(**plot_options)

    def plot(self, ax=None):
        """Draw the montage.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; a new figure if None.

        Returns
        -------
        self : VolumeDisplay

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        """
        if ax is None:
            _, ax = import_pyplot("VolumeDisplay").subplots(figsize=(7.5, 5.2), layout="constrained")
        L = self.tiles.shape[-1]
        gap = max(1, round(L / 24))
        step = L + gap
        canvas = np.full((2 * step - gap, 3 * step - gap), 255, dtype=np.uint8)
        for row in range(2):
            for column in range(3):
                canvas[row * step : row * step + L, column * step : column * step + L] = self.tiles[row, column]
        self.ax_, self.figure_ = ax, ax.figure
        # y grows downwards, as the rows of an image do.
        self.image_ = ax.imshow(canvas, cmap="gray", vmin=0, vmax=255, interpolation="antialiased")
        ax.set_axis_off()
        self.texts_ = []
        for row, what in enumerate(("slice {0}{1}", "projection along {2}")):
            for column, (across, down) in enumerate(_PLANES):
                label = what.format(across, down, "zyx"[column])
                place = (column * step + 0.03 * L, row * step + 0.03 * L)
                self.texts_.append(ax.text(*place, label, ha="left", va="top", color="white", fontsize=9))
        for text in self.texts_:
            text.set_bbox({"facecolor": "black", "alpha": 0.45, "linewidth": 0, "pad": 1.5})
        if self.pixel_size is not None:
            self._draw_scale_bar(L, step)
        return self

    def _draw_scale_bar(self, L, step):
        """A bar of a round length, about a third of a tile, in the last tile."""
        longest = 0.4 * L * self.pixel_size
        power = 10 ** np.floor(np.log10(longest))
        length = max(factor * power for factor in (1, 2, 5) if factor * power <= longest)
        right, y = 3 * step - (step - L) - 0.05 * L, 2 * step - (step - L) - 0.06 * L
        left = right - length / self.pixel_size
        self.ax_.plot([left, right], [y, y], color="white", linewidth=3, solid_capstyle="butt")
        self.ax_.text(
            (left + right) / 2, y - 0.03 * L, f"{length:g} Å", color="white", ha="center", va="bottom", fontsize=9
        )
