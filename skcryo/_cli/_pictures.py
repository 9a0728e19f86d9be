"""Volumes and their correlations in the files of a run: pictures by matplotlib, tables of RELION."""

import contextlib


@contextlib.contextmanager
def picture(path, what, *, size, place):
    """Axes of a figure that becomes a PNG file.

    Parameters
    ----------
    path : Path
    what : str
        What the picture is, for the error where matplotlib is missing.
    size : (float, float)
        Inches.
    place : (float, float, float, float)
        Of the axes in the figure: left, bottom, width, height.

    Yields
    ------
    ax : matplotlib Axes
    """
    from ..inspection._matplotlib import new_figure
    from ..io import atomic_path

    figure = new_figure(what, figsize=size, dpi=150)
    yield figure.add_axes(place)
    with atomic_path(path, overwrite=True) as temporary:
        figure.savefig(temporary, format="png")


def draw_fsc(path, curves, *, box_size, pixel_size, names=("half maps",)):
    """Draw Fourier shell correlations of half maps; arguments as of :class:`skcryo.inspection.FSCDisplay`."""
    from ..inspection import FSCDisplay

    with picture(path, "the plot of the correlation", size=(6, 4), place=(0.11, 0.13, 0.86, 0.84)) as ax:
        FSCDisplay.from_curves(curves, box_size=box_size, pixel_size=pixel_size, names=list(names), ax=ax)


def draw_volume(path, volume, pixel_size):
    """Draw slices and projections of a volume."""
    from ..inspection import VolumeDisplay

    with picture(path, "the picture of a volume", size=(7.5, 5.1), place=(0.01, 0.01, 0.98, 0.98)) as ax:
        VolumeDisplay.from_volume(volume, pixel_size=pixel_size, ax=ax)


def draw_views(path, estimator):
    """Draw the viewing directions of an estimator's `rotations_` on a map."""
    from ..inspection import AngularCoverageDisplay

    with picture(path, "the map of views", size=(7, 4), place=(0.02, 0.02, 0.92, 0.96)) as ax:
        AngularCoverageDisplay.from_estimator(estimator, ax=ax)


def fsc_star(curve, box_size, voxel_size, name="fsc"):
    """A Fourier shell correlation as a STAR table.

    Parameters
    ----------
    curve : array-like of shape (n_shells,)
    box_size : int
    voxel_size : float
        Angstrom.
    name : str, default="fsc"
        Of the table.

    Returns
    -------
    text : str
        Shell, frequency in 1/Angstrom, Angstrom (999 for shell 0, as RELION has it) and correlation.
    """
    names = ["rlnSpectralIndex", "rlnResolution", "rlnAngstromResolution", "rlnFourierShellCorrelation"]
    lines = ["", "# version 30001", "", f"data_{name}", "", "loop_ "]
    lines += [f"_{name} #{i} " for i, name in enumerate(names, start=1)]
    for shell, value in enumerate(curve):
        frequency = shell / (box_size * voxel_size)
        length = 1 / frequency if shell else 999.0
        lines.append(f"{shell:12d} {frequency:12.6f} {length:12.6f} {value:12.6f} ")
    return "\n".join([*lines, "", ""])


def resolution_fact(resolution):
    """A resolution for ``run.json``: None where half maps agree nowhere."""
    return resolution if resolution < float("inf") else None


def told_resolution(resolution):
    """A resolution in words; None where half maps agree nowhere."""
    if resolution is None:
        return "the half maps agree nowhere"
    return f"{resolution:.1f} Å where the half maps' FSC is 0.143"
