"""Fourier shell correlation curves."""

import numpy as np

from ..metrics import fsc, fsc_resolution
from ._matplotlib import import_pyplot


class FSCDisplay:
    """Fourier shell correlation against spatial frequency, with the resolution at a threshold.

    Make one with :meth:`from_estimator`, :meth:`from_volumes` or :meth:`from_curves`, which draw at once; :meth:`plot`
    draws again.

    Parameters
    ----------
    curves : array-like of shape (n_shells,) or (n_curves, n_shells)
        From :func:`skcryo.metrics.fsc`.
    box_size : int, default=None
        L of the volumes. None takes the even one of the two with so many shells.
    pixel_size : float, default=None
        Angstrom. None: frequencies in cycles per pixel, resolutions in pixels.
    names : sequence of str, default=None
        One for each curve, for the legend.
    threshold : float or sequence of float, default=0.143
        Where the resolution of each curve is read off: 0.143 between half maps, 0.5 against a known truth.

    Attributes
    ----------
    resolutions : list of float
        Resolution of each curve at the threshold, in Angstrom or in pixels.
    ax_ : matplotlib Axes
        The axes that hold the curves.
    figure_ : matplotlib Figure
        Its figure.
    lines_ : list of matplotlib Line2D
        One for each curve.
    legend_ : matplotlib Legend
        Names and resolutions.

    Raises
    ------
    ValueError
        If curves are too short or hold a NaN, or names, `box_size` or `pixel_size` do not fit.

    See Also
    --------
    VolumeDisplay : Slices and projections of a volume.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> from skcryo.inspection import FSCDisplay
    >>> display = FSCDisplay([1, 1, 0.8, 0.2, 0], pixel_size=5.0, threshold=0.5)
    >>> display.resolutions
    [16.0]
    >>> display.plot(Figure().add_subplot()).legend_.get_texts()[0].get_text()
    '16.0 Å at 0.5'
    """

    def __init__(self, curves, *, box_size=None, pixel_size=None, names=None, threshold=0.143):
        self.curves = np.atleast_2d(np.asarray(curves, dtype=np.float64))
        if self.curves.ndim != 2 or not self.curves.size:
            raise ValueError(f"curves has shape {np.shape(curves)}; (n_shells,) or (n_curves, n_shells) is wanted")
        if names is not None and len(names) != len(self.curves):
            raise ValueError(f"names has {len(names)} entries but there are {len(self.curves)} curves")
        if pixel_size is not None and not 0 < pixel_size < np.inf:
            raise ValueError(f"pixel_size is {pixel_size}; a positive number of Angstrom, or None, is wanted")
        self.box_size = 2 * (self.curves.shape[1] - 1) if box_size is None else box_size
        self.pixel_size = pixel_size
        self.names = None if names is None else list(names)
        self.thresholds = [threshold] * len(self.curves) if np.ndim(threshold) == 0 else list(threshold)
        if len(self.thresholds) != len(self.curves):
            raise ValueError(f"threshold has {len(self.thresholds)} entries but there are {len(self.curves)} curves")
        self.resolutions = [
            fsc_resolution(curve, level, pixel_size or 1.0, box_size=self.box_size)
            for curve, level in zip(self.curves, self.thresholds)
        ]

    @classmethod
    def from_curves(cls, curves, *, box_size=None, pixel_size=None, names=None, threshold=0.143, **plot_options):
        """Draw curves.

        Parameters
        ----------
        curves, box_size, pixel_size, names, threshold
            As for the class.
        **plot_options
            Passed to :meth:`plot`.

        Returns
        -------
        display : FSCDisplay
        """
        display = cls(curves, box_size=box_size, pixel_size=pixel_size, names=names, threshold=threshold)
        return display.plot(**plot_options)

    @classmethod
    def from_volumes(cls, volume1, volume2, *, pixel_size=None, names=None, threshold=0.5, **plot_options):
        """Draw the correlation of two volumes in one frame.

        Parameters
        ----------
        volume1, volume2 : array-like of shape (L, L, L)
        pixel_size, names : as for the class
        threshold : float, default=0.5
            Of a volume and the truth; give 0.143 for half maps.
        **plot_options
            Passed to :meth:`plot`.

        Returns
        -------
        display : FSCDisplay
        """
        curve = fsc(volume1, volume2)
        display = cls(curve, box_size=len(volume1), pixel_size=pixel_size, names=names, threshold=threshold)
        return display.plot(**plot_options)

    @classmethod
    def from_estimator(cls, estimator, *, truth=None, **plot_options):
        """Draw the half-map correlation of a fitted estimator.

        Parameters
        ----------
        estimator : estimator instance
            Fitted, with `fsc_` and `volume_`, such as :class:`skcryo.reconstruction.FourierReconstructor`; or a
            fitted Pipeline whose last step is one.
        truth : array-like of shape (L, L, L), default=None
            A known volume in the same frame, whose correlation with `volume_` is drawn as well.
        **plot_options
            Passed to :meth:`plot`.

        Returns
        -------
        display : FSCDisplay

        Raises
        ------
        ValueError
            If the estimator has no curve (not fitted, or of another kind).
        """
        last = estimator[-1] if hasattr(estimator, "steps") else estimator
        curve = getattr(last, "fsc_", None)
        if curve is None:
            raise ValueError(
                f"{type(last).__name__} has no fsc_; a fitted estimator of volumes is wanted (call fit first)"
            )
        curves, names, threshold = [curve], ["half maps"], [0.143]
        if truth is not None:
            curves.append(fsc(last.volume_, truth))
            names.append("volume and truth")
            threshold.append(0.5)
        display = cls(
            curves,
            box_size=len(last.volume_),
            pixel_size=getattr(last, "pixel_size_", None),
            names=names,
            threshold=threshold,
        )
        return display.plot(**plot_options)

    def plot(self, ax=None):
        """Draw the curves.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; a new figure if None.

        Returns
        -------
        self : FSCDisplay

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        """
        if ax is None:
            _, ax = import_pyplot("FSCDisplay").subplots(figsize=(6, 4), layout="constrained")
        self.ax_, self.figure_ = ax, ax.figure
        size = self.pixel_size or 1.0
        frequency = np.arange(self.curves.shape[1]) / (self.box_size * size)
        unit = "Å" if self.pixel_size is not None else "px"
        self.lines_ = []
        for i, (curve, resolution, level) in enumerate(zip(self.curves, self.resolutions, self.thresholds)):
            told = f"{resolution:.1f} {unit} at {level:g}" if np.isfinite(resolution) else f"below {level:g} everywhere"
            label = told if self.names is None else f"{self.names[i]}: {told}"
            # The mean, shell 0, says nothing.
            (line,) = ax.plot(frequency[1:], curve[1:], label=label, linewidth=1.8)
            self.lines_.append(line)
            if np.isfinite(resolution):
                ax.plot(1 / resolution, level, "o", color=line.get_color(), markersize=5)
        for level in sorted(set(self.thresholds)):
            ax.axhline(level, color="0.4", linewidth=0.9, linestyle="--")
            ax.text(frequency[-1], level, f"{level:g} ", ha="right", va="bottom", color="0.3", fontsize=9)
        ax.axhline(0, color="0.7", linewidth=0.8)
        ax.set_xlim(0, frequency[-1])
        ax.set_ylim(min(-0.1, 1.05 * float(self.curves[:, 1:].min())), 1.05)
        ax.set_ylabel("Fourier shell correlation")
        ticks = np.linspace(0, frequency[-1], 6)
        told = ["∞", *(f"{1 / tick:.1f}" for tick in ticks[1:])]
        ax.set_xticks(ticks, told)
        ax.set_xlabel("resolution (Å)" if self.pixel_size is not None else "resolution (pixels)")
        self.legend_ = ax.legend(loc="upper right", framealpha=0.9, edgecolor="none")
        return self
