"""A series of volumes as a moving picture."""

import tempfile
from pathlib import Path

import numpy as np

from ._grey_levels import shared_grey_levels
from ._matplotlib import new_figure
from ._volume_slices import volume_tiles

__all__ = ["animate_volumes"]


def animate_volumes(path, volumes, *, frames_per_second=6, back_and_forth=True, overwrite=False):
    """Write volumes along a motion as an animated GIF: three central slices above three projections, frame by frame.

    Parameters
    ----------
    path : str or path-like
        Written under a temporary name, then renamed.
    volumes : array-like of shape (n, L, L, L)
        In order. Grey levels are the same in all frames.
    frames_per_second : float, default=6
    back_and_forth : bool, default=True
        Whether it returns to the first volume the way it came, so that it has no jump.
    overwrite : bool, default=False
        Whether a file that is there already may be replaced.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    ValueError
        If there are fewer than two volumes, one is no cube or not finite, or `frames_per_second` is not positive.
    FileExistsError
        If there is a file and `overwrite` is False.

    See Also
    --------
    skcryo.io.save_volume : One MRC file for each volume.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import numpy as np
    >>> from skcryo.inspection import animate_volumes
    >>> volumes = np.random.default_rng(0).normal(size=(3, 8, 8, 8))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     animate_volumes(pathlib.Path(folder) / "motion.gif", volumes)
    ...     (pathlib.Path(folder) / "motion.gif").read_bytes()[:6]
    b'GIF89a'
    """
    from ..io import atomic_path

    if len(volumes) < 2:
        raise ValueError(f"volumes has {len(volumes)}; at least two are wanted for a motion")
    if not 0 < frames_per_second < np.inf:
        raise ValueError(f"frames_per_second is {frames_per_second}; a positive number is wanted")
    figure = new_figure("animate_volumes", figsize=(6, 4.04), dpi=80)
    from matplotlib.animation import PillowWriter

    tiles = np.stack([np.stack(volume_tiles(volume)) for volume in volumes])  # (n, 2, 3, L, L)
    grey = np.stack([shared_grey_levels(tiles[:, row]) for row in (0, 1)], axis=1)
    L = grey.shape[-1]
    gap = max(1, round(L / 24))
    step = L + gap
    frames = np.full((len(grey), 2 * step - gap, 3 * step - gap), 255, dtype=np.uint8)
    for row in (0, 1):
        for column in range(3):
            frames[:, row * step : row * step + L, column * step : column * step + L] = grey[:, row, column]
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set_axis_off()
    image = ax.imshow(frames[0], cmap="gray", vmin=0, vmax=255, interpolation="antialiased")
    text = ax.text(0.06 * L, 0.06 * L, "", ha="left", va="top", color="white", fontsize=11)
    order = list(range(len(frames)))
    order += order[-2:0:-1] if back_and_forth else []
    # Pillow tells the format by the file's name, which the temporary one hides.
    with atomic_path(path, overwrite=overwrite) as temporary, tempfile.TemporaryDirectory() as folder:
        movie = Path(folder) / "movie.gif"
        writer = PillowWriter(fps=frames_per_second)
        with writer.saving(figure, movie, dpi=80):
            for number in order:
                image.set_data(frames[number])
                text.set_text(str(number + 1))
                writer.grab_frame()
        temporary.write_bytes(movie.read_bytes())
