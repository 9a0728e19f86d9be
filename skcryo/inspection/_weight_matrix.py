"""The weights of a graph, sorted by the classes of a cut."""

import numpy as np

from ._matplotlib import import_pyplot


def binned_means(W, order, max_size):
    """W with its rows and columns in the given order, averaged so that at most `max_size` of either are left.

    Parameters
    ----------
    W : ndarray of shape (n, n)
        The diagonal does not count.
    order : ndarray of shape (n,), int
    max_size : int

    Returns
    -------
    means : ndarray of shape (m, m), float64
        NaN where there is nothing but diagonal.
    edges : ndarray of shape (m + 1,), int
        Bin k holds places edges[k], ..., edges[k + 1] - 1 of the order.
    """
    n = len(order)
    n_bins = min(n, max_size)
    edges = np.arange(n_bins + 1) * n // n_bins
    sums = np.empty((n_bins, n_bins))
    for k in range(n_bins):  # a bin at a time: no second matrix of full size
        rows = order[edges[k] : edges[k + 1]]
        columns = W[rows].sum(axis=0, dtype=np.float64)
        columns[rows] -= W[rows, rows]
        sums[k] = np.add.reduceat(columns[order], edges[:-1])
    sizes = np.diff(edges).astype(np.float64)
    pairs = np.outer(sizes, sizes) - np.diag(sizes)
    return np.divide(sums, pairs, out=np.full_like(sums, np.nan), where=pairs > 0), edges


class WeightMatrixDisplay:
    """Weights between the images of a data set, sorted by class, with the value of the cut and its bound.

    Figure 8 of [1]_: in the right order the blocks of classes are dark, lighter shades are larger weights; a cut
    takes what is outside the blocks. Blocks that look like everything else mean that there is nothing to cut.

    Make one with :meth:`from_cut` or :meth:`from_estimator`, which draw at once; :meth:`plot` draws again.

    Parameters
    ----------
    W : array-like of shape (n, n)
        Symmetric weights; the diagonal does not count.
    labels : array-like of shape (n,), int
        Class of each image.
    upper_bound : float, default=None
        Of the value of any cut, as :func:`skcryo.heterogeneity.max_k_cut` proves it.

    Attributes
    ----------
    cut_value : float
        Sum of the weights between classes, each pair counted once.
    order : ndarray of shape (n,), int
        Images by class, those of a class in the order of the data.
    ax_ : matplotlib Axes
        The axes that hold the matrix.
    figure_ : matplotlib Figure
        Its figure.
    image_ : matplotlib AxesImage
        The matrix.
    lines_ : list of matplotlib LineCollection
        Borders between classes, across and down; none where images stand in the order of the data.
    colorbar_ : matplotlib Colorbar
        What the shades mean.

    Raises
    ------
    ValueError
        If `W` is no finite square matrix, `labels` does not fit it, or `upper_bound` is below the cut.

    See Also
    --------
    skcryo.heterogeneity.max_k_cut : Cuts, and what bounds them.

    References
    ----------
    .. [1] Y. Aizenbud, Y. Shkolnisky: A max-cut approach to heterogeneity in cryo-electron microscopy. Journal of
       Mathematical Analysis and Applications 479 (2019), 1004-1029.

    Examples
    --------
    >>> import numpy as np
    >>> from matplotlib.figure import Figure
    >>> from skcryo.heterogeneity import max_k_cut
    >>> from skcryo.inspection import WeightMatrixDisplay
    >>> W = np.array([[0, 1, 5, 4], [1, 0, 4, 5], [5, 4, 0, 1], [4, 5, 1, 0.0]])[:, [0, 2, 1, 3]][[0, 2, 1, 3]]
    >>> display = WeightMatrixDisplay.from_cut(W, max_k_cut(W, 2), ax=Figure().add_subplot())
    >>> display.order
    array([0, 2, 1, 3])
    >>> display.ax_.get_title()
    'cut 18, at most 18: 100.0 %'
    """

    def __init__(self, W, labels, *, upper_bound=None):
        W = np.asarray(W)
        if W.ndim != 2 or W.shape[0] != W.shape[1] or len(W) < 2 or W.dtype.kind not in "fiub":
            raise ValueError(f"W has shape {W.shape} and dtype {W.dtype}; a square matrix of weights (n, n) is wanted")
        if not np.isfinite(W.sum(dtype=np.float64)):
            bad = np.argwhere(~np.isfinite(W))[0]
            raise ValueError(f"W[{bad[0]}, {bad[1]}] is {W[tuple(bad)]}; finite weights are wanted")
        labels = np.asarray(labels)
        if labels.shape != (len(W),) or labels.dtype.kind not in "iu":
            raise ValueError(
                f"labels has shape {labels.shape} and dtype {labels.dtype}; an integer for each of {len(W)} images is "
                "wanted"
            )
        self.W, self.labels = W, labels
        self.classes, counts = np.unique(labels, return_counts=True)
        self.order = np.argsort(labels, kind="stable")
        self.borders = np.cumsum(counts)[:-1]
        within = 0.0
        for k in self.classes:
            members = np.flatnonzero(labels == k)
            within += W[np.ix_(members, members)].sum(dtype=np.float64) - W[members, members].sum(dtype=np.float64)
        total = W.sum(dtype=np.float64) - np.trace(W, dtype=np.float64)
        self.cut_value = float(total - within) / 2
        if upper_bound is not None and upper_bound < self.cut_value - 1e-6 * abs(self.cut_value):
            raise ValueError(
                f"upper_bound is {upper_bound} but the labels cut {self.cut_value}; a bound of it is wanted"
            )
        self.upper_bound = upper_bound

    @classmethod
    def from_cut(cls, W, cut, **plot_options):
        """Draw the weights in the order of a cut.

        Parameters
        ----------
        W : array-like of shape (n, n)
            The weights that were cut.
        cut : MaxKCut
            From :func:`skcryo.heterogeneity.max_k_cut`.
        **plot_options
            Passed to :meth:`plot`.

        Returns
        -------
        display : WeightMatrixDisplay
        """
        return cls(W, cut.labels, upper_bound=cut.upper_bound).plot(**plot_options)

    @classmethod
    def from_estimator(cls, estimator, **plot_options):
        """Draw how far common lines are from meeting, in the order of the classes that a fitted estimator found.

        Parameters
        ----------
        estimator : estimator instance
            Fitted, with `common_lines_`, `rotations_`, `labels_` and `upper_bound_`, such as
            :class:`skcryo.heterogeneity.CommonLinesMaxCut`; or a fitted Pipeline whose last step is one.
        **plot_options
            Passed to :meth:`plot`.

        Returns
        -------
        display : WeightMatrixDisplay

        Raises
        ------
        ValueError
            If the estimator has no common lines and classes (not fitted, or of another kind).
        """
        from ..heterogeneity._line_graph import line_misfits  # where there is a fitted one, it is loaded already

        last = estimator[-1] if hasattr(estimator, "steps") else estimator
        missing = [name for name in ("common_lines_", "rotations_", "labels_") if not hasattr(last, name)]
        if missing:
            raise ValueError(
                f"{type(last).__name__} has no {missing[0]}; a fitted estimator of classes from common lines is wanted "
                "(call fit first)"
            )
        rows = getattr(last, "line_images_", slice(None))
        lines = last.common_lines_
        W = line_misfits(lines.angles, np.asarray(last.rotations_)[rows], lines.checked)
        display = cls(W, np.asarray(last.labels_)[rows], upper_bound=getattr(last, "upper_bound_", None))
        return display.plot(**plot_options)

    def plot(self, ax=None, *, sort=True, cmap="gray", max_size=1000):
        """Draw the matrix.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; a new figure if None.
        sort : bool, default=True
            By class. Otherwise in the order of the data (figure 8a), where classes do not show.
        cmap : str or matplotlib Colormap, default="gray"
        max_size : int, default=1000
            Most rows of the picture; larger matrices are averaged over neighbours, which shows faint blocks better.

        Returns
        -------
        self : WeightMatrixDisplay

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        ValueError
            If `max_size` is below 2.
        """
        if max_size < 2:
            raise ValueError(f"max_size is {max_size}; at least 2 is wanted")
        if ax is None:
            _, ax = import_pyplot("WeightMatrixDisplay").subplots(figsize=(6, 5), layout="constrained")
        self.ax_, self.figure_ = ax, ax.figure
        n = len(self.W)
        means, _ = binned_means(self.W, self.order if sort else np.arange(n), max_size)
        low, high = np.nanpercentile(means, [1, 99])
        self.image_ = ax.imshow(
            means,
            cmap=cmap,
            vmin=low,
            vmax=high if high > low else low + 1,
            extent=(0, n, n, 0),
            interpolation="nearest",
        )
        ax.set_facecolor("black")  # the diagonal, where it is drawn by itself: no weight
        self.lines_ = []
        if sort and len(self.borders):
            style = {"colors": "C1", "linewidth": 0.8}
            self.lines_ = [ax.hlines(self.borders, 0, n, **style), ax.vlines(self.borders, 0, n, **style)]
            ends = np.concatenate([[0], self.borders, [n]])
            ax.set_yticks(
                (ends[:-1] + ends[1:]) / 2, [f"class {k}\n{size}" for k, size in zip(self.classes, np.diff(ends))]
            )
            ax.tick_params(axis="y", length=0)
        ax.set_xticks([0, n])
        self.colorbar_ = self.figure_.colorbar(self.image_, ax=ax, shrink=0.8, label="weight")
        title = f"cut {self.cut_value:.6g}"
        if self.upper_bound is not None:
            title += f", at most {self.upper_bound:.6g}"
            if self.upper_bound > 0:
                title += f": {100 * min(self.cut_value / self.upper_bound, 1):.1f} %"
        ax.set_title(title, fontsize=10)
        return self
