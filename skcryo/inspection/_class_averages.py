"""A montage of class averages."""

import math

import numpy as np

from ._grey_levels import grey_levels
from ._matplotlib import import_pyplot


class ClassAveragesDisplay:
    """Montage of class averages, each with its class number and its number of particles.

    Make one with :meth:`from_estimator` or :meth:`from_averages`, which draw at once; :meth:`plot` draws
    again.

    Parameters
    ----------
    averages : ndarray of shape (n_classes, L, L)
        Class averages. Each tile gets its own contrast.
    counts : array-like of shape (n_classes,), default=None
        Number of particles in each class.
    pixel_size : float, default=None
        Pixel size of the averages in Angstrom; if given, a scale bar is drawn.

    Attributes
    ----------
    ax_ : matplotlib Axes
        The axes that hold the montage.
    figure_ : matplotlib Figure
        Its figure.
    image_ : matplotlib AxesImage
        All tiles, as one image.
    texts_ : list of matplotlib Text
        One label for each tile, in the order in which the tiles stand.
    order_ : ndarray of shape (n_shown,), int
        The classes in the order in which they stand.

    Raises
    ------
    ValueError
        If the averages are not a stack of square images, or `counts` has another length.

    See Also
    --------
    AngularCoverageDisplay : Which viewing directions a data set covers.

    Examples
    --------
    >>> import numpy as np
    >>> from skcryo.inspection import ClassAveragesDisplay
    >>> averages = np.random.default_rng(0).normal(size=(5, 16, 16))
    >>> display = ClassAveragesDisplay(averages, counts=[3, 9, 1, 4, 4])
    >>> display.sorted_classes("size")
    array([1, 3, 4, 0, 2])
    """

    def __init__(self, averages, *, counts=None, pixel_size=None):
        averages = np.asarray(averages)
        if averages.ndim != 3 or averages.shape[1] != averages.shape[2] or 0 in averages.shape:
            raise ValueError(
                f"averages has shape {averages.shape}; square images (n_classes, L, L) are wanted"
            )
        if counts is not None:
            counts = np.asarray(counts)
            if counts.shape != (len(averages),):
                raise ValueError(
                    f"counts has shape {counts.shape} but there are {len(averages)} averages; "
                    "one number for each average is wanted"
                )
        if pixel_size is not None and not pixel_size > 0:
            raise ValueError(f"pixel_size is {pixel_size}; a positive number of Angstrom, or None, is wanted")
        self.averages = averages
        self.counts = counts
        self.pixel_size = pixel_size

    @classmethod
    def from_estimator(cls, estimator, *, pixel_size=None, **plot_options):
        """Draw the class averages of a fitted estimator.

        Parameters
        ----------
        estimator : estimator instance
            Fitted, with `class_averages_` of shape (n_classes, L, L) and `labels_`; or a fitted Pipeline
            whose last step is one.
        pixel_size : float, default=None
            Pixel size of the averages in Angstrom, for the scale bar.
        **plot_options
            Passed to :meth:`plot`.

        Returns
        -------
        display : ClassAveragesDisplay

        Raises
        ------
        ValueError
            If the estimator has no class averages (not fitted, or of another kind).
        """
        last = estimator[-1] if hasattr(estimator, "steps") else estimator
        averages = getattr(last, "class_averages_", None)
        if averages is None:
            raise ValueError(
                f"{type(last).__name__} has no class_averages_; a fitted clusterer of images is wanted "
                "(call fit first)"
            )
        labels = getattr(last, "labels_", None)
        counts = None
        if labels is not None:
            labels = np.asarray(labels)
            counts = np.bincount(labels[labels >= 0], minlength=len(averages))
        return cls(averages, counts=counts, pixel_size=pixel_size).plot(**plot_options)

    @classmethod
    def from_averages(cls, averages, *, counts=None, labels=None, pixel_size=None, **plot_options):
        """Draw class averages given as an array.

        Parameters
        ----------
        averages : array-like of shape (n_classes, L, L)
            Class averages.
        counts : array-like of shape (n_classes,), default=None
            Number of particles in each class.
        labels : array-like of shape (n_images,), default=None
            Class of each image, from 0, instead of `counts`; negative labels belong to no class.
        pixel_size : float, default=None
            Pixel size of the averages in Angstrom, for the scale bar.
        **plot_options
            Passed to :meth:`plot`.

        Returns
        -------
        display : ClassAveragesDisplay

        Raises
        ------
        ValueError
            If both `counts` and `labels` are given, or a label names a class that does not exist.

        Examples
        --------
        >>> import numpy as np
        >>> from matplotlib.figure import Figure
        >>> from skcryo.inspection import ClassAveragesDisplay
        >>> averages = np.random.default_rng(0).normal(size=(3, 16, 16))
        >>> display = ClassAveragesDisplay.from_averages(
        ...     averages, labels=[0, 2, 2, 1, 2, 1], ax=Figure().add_subplot())
        >>> [text.get_text() for text in display.texts_]
        ['3: 3', '2: 2', '1: 1']
        """
        if labels is not None:
            if counts is not None:
                raise ValueError("counts and labels are both given; one of them is wanted")
            labels = np.asarray(labels)
            if labels.size and labels.max() >= len(averages):
                raise ValueError(
                    f"labels holds {labels.max()} but there are {len(averages)} averages; "
                    f"labels below {len(averages)} are wanted"
                )
            counts = np.bincount(labels[labels >= 0], minlength=len(averages))
        return cls(averages, counts=counts, pixel_size=pixel_size).plot(**plot_options)

    def sorted_classes(self, sort_by):
        """Return the classes in the order in which they are shown.

        Parameters
        ----------
        sort_by : {"size", "index"}
            "size": the largest class first, equal classes by number; "index": by number.

        Returns
        -------
        order : ndarray of shape (n_classes,), int

        Raises
        ------
        ValueError
            If `sort_by` is anything else.
        """
        if sort_by not in ("size", "index"):
            raise ValueError(f"sort_by is {sort_by!r}; 'size' or 'index' is wanted")
        if sort_by == "index" or self.counts is None:
            return np.arange(len(self.averages))
        return np.argsort(-self.counts, kind="stable")

    def plot(
        self,
        ax=None,
        *,
        n_columns=None,
        sort_by="size",
        max_classes=None,
        show_labels=True,
        percentiles=(1.0, 99.5),
    ):
        """Draw the montage.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; a new figure of fitting size if None.
        n_columns : int, default=None
            Tiles in a row; if None, about a third more columns than rows.
        sort_by : {"size", "index"}, default="size"
            The largest class first, or by class number. Without counts always by number.
        max_classes : int, default=None
            Show only so many, from the first; all if None.
        show_labels : bool, default=True
            Write "class: particles" on each tile. Classes are numbered from 1 here, as in a STAR file.
        percentiles : (float, float), default=(1.0, 99.5)
            Percentiles of each average, inside its disc, that become black and white.

        Returns
        -------
        self : ClassAveragesDisplay

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        ValueError
            If an option is out of range.
        """
        for name, value in (("n_columns", n_columns), ("max_classes", max_classes)):
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; at least 1, or None, is wanted")
        order = self.sorted_classes(sort_by)[:max_classes]
        n_columns = min(n_columns or montage_columns(len(order)), len(order))
        n_rows = math.ceil(len(order) / n_columns)
        if ax is None:
            figsize = montage_figsize(len(order), n_columns)
            _, ax = import_pyplot("ClassAveragesDisplay").subplots(figsize=figsize, layout="constrained")

        size = self.averages.shape[-1]
        gap = max(1, round(size / 32))
        step = size + gap
        canvas = np.full((n_rows * step - gap, n_columns * step - gap), 255, dtype=np.uint8)
        for place, tile in enumerate(grey_levels(self.averages[order], percentiles=percentiles)):
            row, column = divmod(place, n_columns)
            canvas[row * step : row * step + size, column * step : column * step + size] = tile

        self.ax_ = ax
        self.figure_ = ax.figure
        self.order_ = order
        # y grows downwards, as the rows of an image do.
        self.image_ = ax.imshow(canvas, cmap="gray", vmin=0, vmax=255, interpolation="antialiased")
        ax.set_axis_off()
        self.texts_ = []
        if show_labels:
            points = self._tile_points(n_columns, size / (n_columns * step - gap))
            for place, label in enumerate(order):
                row, column = divmod(place, n_columns)
                text = f"{label + 1}" if self.counts is None else f"{label + 1}: {self.counts[label]}"
                self.texts_.append(
                    ax.text(
                        column * step + 0.03 * size,
                        row * step + 0.03 * size,
                        text,
                        ha="left",
                        va="top",
                        fontsize=min(max(0.11 * points, 3.5), 11),
                        color="white",
                        bbox={"facecolor": "black", "alpha": 0.55, "pad": 0.8, "linewidth": 0},
                    )
                )
        if self.pixel_size is not None:
            self._draw_scale_bar(size, n_rows * step - gap)
        return self

    def _tile_points(self, n_columns, share):
        """Width of one tile on paper, in points (1/72 inch)."""
        width = self.figure_.get_size_inches()[0] * self.ax_.get_position().width
        return 72 * width * share

    def _draw_scale_bar(self, size, height):
        """Draw a bar of a round length, at most half a tile long, below the first tile of the last row."""
        longest = 0.5 * size * self.pixel_size
        decade = 10.0 ** math.floor(math.log10(longest))
        length = max(step * decade for step in (1, 2, 5) if step * decade <= longest)
        pixels = length / self.pixel_size
        y = height + 0.06 * size
        self.ax_.plot([0, pixels], [y, y], color="black", linewidth=2, solid_capstyle="butt", clip_on=False)
        self.ax_.text(pixels + 0.06 * size, y, f"{length:g} Å", ha="left", va="center", fontsize=8)
        self.ax_.set_ylim(height + 0.12 * size, -0.5)


def montage_columns(n_tiles):
    """Number of columns that makes a montage of square tiles about a third wider than high."""
    return max(1, math.ceil(math.sqrt(n_tiles * 4 / 3)))


def montage_figsize(n_tiles, n_columns=None):
    """Width and height, in inches, of a figure for a montage of `n_tiles`."""
    n_columns = n_columns or montage_columns(n_tiles)
    tile = min(max(10 / n_columns, 0.75), 1.6)
    return (n_columns * tile, math.ceil(n_tiles / n_columns) * tile + 0.2)
