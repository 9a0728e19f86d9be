"""Poses of all images on one volume of all classes, from rotations of some."""

import numpy as np

from ..alignment import refine_poses
from ..projection import VolumeProjector
from ..reconstruction._ab_initio_refine import VolumeRefinement, add_images, solve_volume
from ..reconstruction._ab_initio_start import signal_power
from ..reconstruction._accumulator import FourierAccumulator

__all__ = ["contrast_scatter", "consensus_poses"]

_FIRST_BAND, _SEARCH_BAND = 8.0, 12.0  # cycles per box
_ROUNDS = 2  # after the last search
_SCATTER, _CONTRAST_STD = 0.06, 0.2  # of contrasts: from where on each image has its own, and what is expected then
_QUARTILES = 1.349  # standard deviations of a normal distribution between them
_SETTLED = 1.0  # degrees by which the median view moves in a round


def consensus_poses(
    images, rotations, shifts, rows=None, *, search, max_shift, mask_radius, contrast_std, grid, max_rounds, half_sets,
    saved, step=None, n_jobs=1,
):
    """Refine rotations of images against the volume that they make, and find those of the other images.

    Molecules of all classes are alike in most of their volume, which is what poses follow; common lines between single
    images know nothing of that. Rounds of a full search over rotations and of Levenberg-Marquardt on all images go on
    until views settle.

    Parameters
    ----------
    images : FourierImages
        In units of their noise.
    rotations, shifts : ndarray of shape (m, 3, 3) and (m, 2)
    rows : ndarray of shape (m,), default=None
        The images that they are of; None: all.
    search : bool
        Whether all rotations are searched; else poses are refined from where they are, and `rows` is None.
    max_shift : float
        Pixels; 0 keeps the shifts at zero.
    mask_radius : float
        Pixels.
    contrast_std : float or None
        Of the images' contrast about its mean; None: all of one contrast, unless contrasts scatter by more than 6 %
        beyond the noise, as those of most real images do. Then each has its own: or classes would be those of contrast.
    grid : dict
        ``n_side`` and ``n_psi`` of the search.
    max_rounds : int
        With a search, at most.
    half_sets : ndarray of shape (n,)
        0 or 1; tells how fine the volume is known.
    saved : StageCheckpoints
        Where rounds of the search are saved, and what comes of them; from there they go on.
    step : callable, default=None
        Called after each round; True ends.
    n_jobs : int, default=1
        Threads; the result does not depend on it.

    Returns
    -------
    refinement : VolumeRefinement
        With ``fit``, ``contrast``, ``contrast_prior`` (None: all of one), ``volume``, ``band``, ``images`` in better
        units of the noise, and ``change``, the degrees by which the median view moved in the last search.
    """
    rows = np.arange(len(images)) if rows is None else rows
    band = min(_FIRST_BAND, float(images.radii[-1]))
    before, finished = saved.load("consensus_round"), saved.load("consensus")
    sums = FourierAccumulator(min(2 * (int(np.ceil(band)) + 2), images.L))
    add_images(sums, images.take(rows), rotations, shifts, band=band, n_jobs=n_jobs)
    volume = solve_volume(sums, signal_power(images), band, mask_radius * sums.L / images.L)
    refinement = VolumeRefinement(
        images, volume, max_shift=max_shift, mask_radius=mask_radius, first_band=band,
        last_band=_SEARCH_BAND if search else None, contrast_prior=contrast_std, half_sets=half_sets, n_jobs=n_jobs,
    )
    refinement.grid = {"n_best": 1, "n_steps": 1, **grid}
    refinement.search_rounds = range(max_rounds) if search else ()
    if not search:
        refinement.fit = refine_poses(
            images, VolumeProjector(volume), rotations, shifts, band=band, n_steps=0, n_jobs=n_jobs
        )
    if finished is not None:
        refinement.restore(*finished)
        return refinement
    if before is not None:
        refinement.restore(*before)
    while search and refinement.round < max_rounds and not refinement.change < _SETTLED:
        _run_round(refinement, max_shift)
        saved.save("consensus_round", *refinement.state())
        if step is not None and step():
            break
    change = refinement.change
    refinement.search_rounds, refinement.last_band = (), float(images.radii[-1])
    for _ in range(_ROUNDS):
        _run_round(refinement, max_shift)
    if contrast_std is None and contrast_scatter(refinement.fit) > _SCATTER:
        refinement.contrast_prior = _CONTRAST_STD
        for _ in range(_ROUNDS):
            _run_round(refinement, max_shift)
    if search:
        refinement.change = change
    if max_shift == 0:
        fit = refinement.fit
        refinement.fit = refine_poses(
            refinement.images, VolumeProjector(refinement.volume), fit.rotations, fit.shifts, band=refinement.band,
            contrast_std=refinement.contrast_prior, refine_shifts=False, n_jobs=n_jobs,
        )
    arrays, info = refinement.state()
    saved.save("consensus", arrays, info | {"contrast_prior": refinement.contrast_prior})
    return refinement


def contrast_scatter(fit):
    """Standard deviation of the images' contrasts beyond what noise alone makes of one contrast.

    Parameters
    ----------
    fit : PoseFit
        At contrast 1, in units of the noise.

    Returns
    -------
    float
        0 where they scatter less than that. From quartiles: junk does not count.
    """
    contrast = fit.cross / fit.power
    low, high = np.percentile(contrast, [25, 75])
    excess = ((high - low) / _QUARTILES) ** 2 - np.median(0.5 / fit.power)
    return float(np.sqrt(max(excess, 0.0)))


def _run_round(refinement, max_shift):
    refinement.run_round()
    if max_shift == 0:  # centred images: what was fitted is noise
        refinement.fit.shifts[:] = 0
