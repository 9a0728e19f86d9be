"""Poses from nothing for a decoder to be trained on, and those of new images on a volume."""

from ..projection import VolumeProjector
from ..reconstruction._ab_initio_fit import AbInitioFit, Saver, load_fit, run_search
from ..reconstruction._ab_initio_refine import search_and_refine
from ..rotations import random_rotations
from ._drgn_images import fourier_images

__all__ = ["largest_shift", "poses_on_volume", "search_from_nothing"]

_STARTS, _EPOCHS, _ROUNDS = 5, 30, 8  # at most
_STEP = 15  # degrees between poses of the grid
_CONTRAST_STD = 0.2
_SEARCHES = 3  # of new images, each with the grid turned, so that they look between one another's poses
_SEARCH_BAND = 14.0  # cycles per box
_SECONDS_BETWEEN = 10.0


def largest_shift(max_shift, L):
    """Largest shift of images of `L` pixels in x and in y, in pixels; "auto": 0.055 L."""
    found = 0.055 * L if max_shift == "auto" else float(max_shift)
    if found >= L / 2:
        raise ValueError(f"max_shift is {max_shift} pixels; less than half of the box of {L} is wanted")
    return found


def search_from_nothing(
    stack, spectra, *, max_shift, mask_radius, max_ring, homogeneous, saver, progress, n_jobs, device
):
    """Poses of all images against one volume, from random ones: starts until two agree, then refinement.

    Parameters
    ----------
    stack : ParticleStack of shape (n, L, L)
        With tilt images, if there are any.
    spectra : list of ndarray of shape (L // 2 + 1,)
        The noise's power by ring, of images and of tilt images.
    max_shift, mask_radius : float
        Pixels.
    max_ring : float
        Highest frequency used, in cycles per box.
    homogeneous : bool
        Whether particles are taken to be alike.
    saver : FitSaver
        Whose seed, folder and fingerprint the search has.
    progress : FitProgress
    n_jobs : int
    device : torch.device or None
        Where images are compared with slices.

    Returns
    -------
    rotations, shifts : ndarray of shape (n, 3, 3) and (n, 2), or (n, 4) of pairs, float64
    problem : str or None
        What speaks against them.
    """
    options = {
        "max_shift": max_shift, "mask_radius": mask_radius, "max_ring": max_ring, "n_starts": _STARTS,
        "max_epochs": _EPOCHS, "max_rounds": _ROUNDS, "contrast_std": _CONTRAST_STD, "angular_step": _STEP,
    }  # fmt: skip
    saved = None if saver.folder is None else load_fit(saver.folder, saver.key)
    if saved is not None:  # of a fit without random_state, that of its first session
        saver.seed = saved[1]["seed"]
    images = fourier_images(stack, spectra, max_ring)
    single = stack.replace(tilt=None)
    search = AbInitioFit(single, stack.ctf, stack.pixel_size, options, saver.seed, n_jobs, device, images)
    own_saver = Saver(search, saver.folder, saver.key, _SECONDS_BETWEEN)
    start = None if saved is None else search.restore(*saved)
    finished = run_search(search, start, progress, own_saver)
    if search.refinement is None:  # stopped before: what there is
        search.refinement = search.begin_refinement()
        search.refinement.run_round()
    own_saver(now=True)
    found = search.refinement.fit
    return found.rotations, found.shifts, search.problem(settled=homogeneous) if finished else None


def poses_on_volume(images, volume, max_shift, n_jobs):
    """Poses of images by brute force on a volume, each image by itself.

    Parameters
    ----------
    images : FourierImages of n images
    volume : ndarray of shape (box, box, box)
    max_shift : float
        Pixels of the images.
    n_jobs : int

    Returns
    -------
    rotations, shifts : ndarray of shape (n, 3, 3) and (n, 2), float64
    """
    projector, fit = VolumeProjector(volume), None
    for turn in range(_SEARCHES):
        fit = search_and_refine(
            images, projector, max_shift=max_shift, band=_SEARCH_BAND, contrast_std=_CONTRAST_STD, fit=fit,
            turn=random_rotations(1, turn)[0], n_jobs=n_jobs,
        )  # fmt: skip
    return fit.rotations, fit.shifts
