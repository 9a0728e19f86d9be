"""Particles as the commands read and prepare them."""

import warnings

import numpy as np

from ._common import CommandError, one_line

# Prepared images that take more bytes than this go to a scratch file; those in memory are there two or three times.
IN_MEMORY = 2**30


def load(args):
    """Return the particles of the files; what is wrong with them ends the command."""
    from ..io import load_particles

    try:
        return load_particles(args.particles, images_dir=args.images_dir, pixel_size=args.pixel_size)
    except (ValueError, OSError) as error:
        raise CommandError(one_line(error)) from error


def prepare(stack, settings):
    """The images as estimators see them, computed when they are read.

    Parameters
    ----------
    stack : ParticleStack
        The input.
    settings : Settings
        What to do: crop in Fourier space, change the sign, normalise; whether to keep CTFs.

    Returns
    -------
    images : ParticleStack
        With the poses and shifts of the input.
    """
    from ..preprocessing import FourierDownsampler, NormalizeBackground

    images = stack.replace(metadata=None)
    if not settings.use_ctf:
        images = images.replace(ctf=None)
    if settings.scale != 1:
        images = FourierDownsampler(settings.working_box).fit_transform(images)
    if settings.invert:
        images = images.map(np.negative)
    if settings.normalize:
        images = NormalizeBackground().fit_transform(images)
    return images


def prepare_once(stack, settings, scratch):
    """The images of :func:`prepare` without poses and shifts, computed now, so that no iteration does it again.

    Parameters
    ----------
    stack : ParticleStack
        The input.
    settings : Settings
        What to do.
    scratch : Path
        Folder for the result where it is too large for memory.

    Returns
    -------
    images : ParticleStack
        In memory or in a file in `scratch`.
    """
    return computed(prepare(stack.replace(shifts=None, rotations=None), settings), scratch / "images.mrcs")


def computed(images, path):
    """Lazy images, computed now: in memory, or in a file where they are too large for that.

    Parameters
    ----------
    images : ParticleStack
        Without poses and shifts.
    path : Path
        Of the file; if it is there already, it is taken for what would be written.

    Returns
    -------
    images : ParticleStack
    """
    from ..io import load_particles, save_images

    if images.nbytes <= IN_MEMORY:
        return images.load()
    if not path.exists():  # written under another name first: what is there is complete
        save_images(path, images)
    return load_particles(path).replace(pixel_size=images.pixel_size, ctf=images.ctf)


def warn_of_dark_particles(images, inverted):
    """Warn if the middle of the images is darker than their border, which estimators would not notice."""
    sample = np.asarray(images[:: max(len(images) // 500, 1)])
    size = sample.shape[-1]
    offset = np.arange(size) - size // 2
    radius = np.hypot(offset[:, None], offset)
    contrast = sample[:, radius < 0.2 * size].mean(axis=1) - sample[:, radius > 0.45 * size].mean(axis=1)
    if contrast.mean() < -5 * contrast.std() / np.sqrt(len(contrast)):
        advice = "without --invert they are light" if inverted else "give --invert if so"
        warnings.warn(f"particles look dark on a light background; {advice}", UserWarning, stacklevel=2)


def input_line(stack):
    """The input in a line for a person."""
    pixels = "" if stack.pixel_size is None else f" of {stack.pixel_size:g} A"
    ctf = "with CTF" if stack.ctf is not None else "without CTF"
    return f"{len(stack)} particles, {stack.shape[1]} x {stack.shape[2]} pixels{pixels}, {ctf}"


def input_rows(stack, files):
    """The input as rows of the report; `files` as :func:`skcryo._cli._run_folder.fingerprint` tells them."""
    rows = [("particles", len(stack)), ("box", f"{stack.shape[1]} px")]
    rows.append(("pixel size", "not in the file" if stack.pixel_size is None else f"{stack.pixel_size:g} A"))
    return rows + [("file", f"{name} ({mark})") for name, mark in files.items()]
