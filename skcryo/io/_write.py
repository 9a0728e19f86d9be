"""Particles to STAR files that RELION and cryoSPARC go on with."""

import os
import pathlib

import numpy as np
from numpy.dtypes import StringDType

from ..particles import ParticleStack
from ..rotations import check_rotations, geodesic_distance
from ._atomic import atomic_path, check_target
from ._mrc import save_images
from ._particles import resolve_image_path
from ._relion import (
    CTF_COLUMNS,
    ORIGINS_ANGST,
    ORIGINS_PIXELS,
    in_plane_psi,
    make_columns,
    read_pixel_size,
    read_rotations,
    read_shifts,
    update_table,
)
from ._table import StarTable, token, write_table

__all__ = ["save_particles", "write_star"]

_TEXT = StringDType()


def write_star(
    path,
    particles,
    *,
    labels=None,
    in_plane_angles=None,
    rotations=None,
    shifts=None,
    columns=None,
    overwrite=False,
):
    """Write particles as a STAR file, with new classes and alignments, without writing images.

    All columns, values and tables that came from a STAR file are written as they were, in their order; what
    is new replaces the column that is there, or is added behind, in the dialect of the file (origins in
    Angstrom where it has optics groups, else in pixels). Particles of .cs files and stacks without metadata
    become RELION 3.1 files.

    Image names stay the text they were where that finds the same file from the new place by the rules of
    :func:`load_particles` (relative to the STAR file, or to a folder above it such as the project's);
    elsewhere they become relative to the new STAR file.

    Parameters
    ----------
    path : str or path-like
        Ending in .star.
    particles : ParticleStack or StarTable
        A stack's own rotations, shifts and CTF are written where they differ from its metadata.
    labels : int array of shape (n,), default=None
        Classes, from 0. Written as rlnClassNumber, from 1.
    in_plane_angles : array of shape (n,), default=None
        In radians, of images that are class averages rotated by this angle (and then shifted by `shifts`).
        Written as rlnAnglePsi; rlnAngleRot and rlnAngleTilt, where they are, become 0, as in RELION's 2-D
        classes.
    rotations : array of shape (n, 3, 3), default=None
        Poses, written as rlnAngleRot, rlnAngleTilt and rlnAnglePsi.
    shifts : array of shape (n, 2), default=None
        (x, y) in pixels of the stack: where the particle's centre lies relative to the image's. RELION's
        origins are their negative.
    columns : dict of str to sequence, default=None
        Further columns (one value per particle) by name, such as ``{"rlnMaxValueProbDistribution": p}``.
    overwrite : bool, default=False
        Whether a file that is there already may be replaced.

    Raises
    ------
    ValueError
        If an argument does not fit the particles; nothing is written then.
    FileExistsError
        If the file is there and `overwrite` is False.

    See Also
    --------
    save_particles : Writes the images too.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> from skcryo.io import StarTable, read_star, write_star
    >>> table = StarTable({"rlnImageName": ["1@x.mrcs", "2@x.mrcs"], "rlnMicrographName": ["007", "008"]})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_star(f"{folder}/classes.star", table, labels=[1, 0])
    ...     written = read_star(f"{folder}/classes.star")
    >>> written["rlnClassNumber"].tolist(), written["rlnMicrographName"].tolist()
    (['2', '1'], ['007', '008'])
    """
    path = _check_star_path(path, overwrite)
    table = _updated_table(particles, path, labels, in_plane_angles, rotations, shifts, columns)
    table = _with_image_names(table, path)
    with atomic_path(path, overwrite=overwrite) as temporary:
        write_table(temporary, table)


def save_particles(
    path,
    stack,
    *,
    images_path=None,
    labels=None,
    in_plane_angles=None,
    rotations=None,
    shifts=None,
    columns=None,
    overwrite=False,
):
    """Write particles as a STAR file and, if wanted, their images as one MRC stack.

    Parameters
    ----------
    path : str or path-like
        Of the STAR file.
    stack : ParticleStack
    images_path : str or path-like, default=None
        Write the images of the stack as they are now to this .mrcs file, and let the STAR file name them; its
        pixel size, image size, origins and CTF (none, if the stack has none) are then those of the stack.
        None writes no images: the STAR file names those that the particles came from.
    labels, in_plane_angles, rotations, shifts, columns
        As in :func:`write_star`.
    overwrite : bool, default=False
        Whether files that are there already may be replaced.

    Raises
    ------
    ValueError
        If an argument does not fit the stack, or there are no images that the STAR file could name.
    FileExistsError
        If a file is there and `overwrite` is False.

    See Also
    --------
    load_particles : The way back.
    write_star : All of the rules for columns and names.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> from skcryo.io import load_particles, save_particles
    >>> from skcryo.particles import ParticleStack
    >>> stack = ParticleStack(np.ones((2, 8, 8)), pixel_size=1.5, shifts=[[1, 0], [0, -2]])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_particles(f"{folder}/x.star", stack, images_path=f"{folder}/x.mrcs")
    ...     load_particles(f"{folder}/x.star").shifts.tolist()
    [[1.0, 0.0], [0.0, -2.0]]
    """
    path = _check_star_path(path, overwrite)
    if not isinstance(stack, ParticleStack):
        raise TypeError(f"stack must be a ParticleStack, got {type(stack).__name__}")
    if images_path is None:
        write_star(
            path,
            stack,
            labels=labels,
            in_plane_angles=in_plane_angles,
            rotations=rotations,
            shifts=shifts,
            columns=columns,
            overwrite=overwrite,
        )
        return
    images_path = check_target(images_path, overwrite=overwrite)
    if images_path.resolve() == path.resolve():
        raise ValueError(f"images_path and path are the same file, {path}")
    table = _updated_table(stack, path, labels, in_plane_angles, rotations, shifts, columns, images_path)
    with atomic_path(path, overwrite=overwrite) as temporary:
        write_table(temporary, table)
        # Last, so that no images are left behind by a table that could not be written.
        save_images(images_path, stack, overwrite=overwrite)


def _check_star_path(path, overwrite):
    if pathlib.Path(path).suffix.lower() != ".star":
        raise ValueError(f"{path}: the name of a STAR file ends in .star")
    return check_target(path, overwrite=overwrite)


def _updated_table(particles, path, labels, in_plane_angles, rotations, shifts, columns, images_path=None):
    """Table of the particles with all that is new in it; image names only where images are written."""
    if isinstance(particles, StarTable):
        table, stack = particles, None
        pixel_size = read_pixel_size(table) if shifts is not None else None
    else:
        stack, pixel_size = particles, particles.pixel_size
        table = stack.metadata if stack.metadata is not None else _new_table(stack, images_path, path)
    n = len(table)
    if n == 0:
        raise ValueError("there are no particles to write")
    if labels is not None:
        labels = _check_labels(labels, n)
    if rotations is not None and in_plane_angles is not None:
        raise ValueError("give rotations or in_plane_angles, not both: psi is one column")
    psi = None
    if in_plane_angles is not None:
        psi = in_plane_psi(_check_floats("in_plane_angles", in_plane_angles, (n,)))
    if rotations is not None:
        rotations = check_rotations(rotations, n)
    if shifts is not None:
        shifts = _check_floats("shifts", shifts, (n, 2))
    ctf = None
    if stack is not None:
        if rotations is None and psi is None:
            rotations = _if_changed_rotations(stack, table)
        if shifts is None:
            shifts = _if_changed_shifts(stack, table, images_path)
        ctf = stack.ctf
    if images_path is not None and stack.metadata is not None:
        table = _with_new_images(table, stack, images_path, path)
    table = update_table(
        table, pixel_size=pixel_size, labels=labels, rotations=rotations, psi=psi, shifts=shifts, ctf=ctf
    )
    if columns:
        table = table.with_columns({name: _check_column(name, values, n) for name, values in columns.items()})
    return table


def _check_labels(labels, n):
    labels = np.asarray(labels)
    if labels.shape != (n,):
        raise ValueError(f"labels has shape {labels.shape} but X has {n} images, it must be ({n},)")
    if labels.dtype.kind not in "iu":
        raise ValueError(f"labels must be integers, got dtype {labels.dtype}")
    if (labels < 0).any():
        i = int(np.flatnonzero(labels < 0)[0])
        raise ValueError(
            f"labels[{i}] is {labels[i]}; classes are counted from 0, leave out unassigned particles: "
            "stack[labels >= 0]"
        )
    return labels


def _check_floats(name, values, shape):
    values = np.asarray(values, dtype=np.float64)
    if values.shape != shape:
        raise ValueError(f"{name} has shape {values.shape} but X has {shape[0]} images, it must be {shape}")
    if not np.isfinite(values).all():
        i = int(np.argwhere(~np.isfinite(values))[0][0])
        raise ValueError(f"{name}[{i}] is {values[i].tolist()}, it must be finite")
    return values


def _check_column(name, values, n):
    name_values = list(values)
    if len(name_values) != n:
        raise ValueError(f"column {name} has {len(name_values)} values but X has {n} images")
    texts = []
    for value in name_values:
        if isinstance(value, float | np.floating):
            texts.append(f"{value:.9g}")
        elif isinstance(value, bool | np.bool_):
            texts.append(str(int(value)))
        else:
            texts.append(token(str(value)))
    return np.array(texts, dtype=_TEXT)


def _if_changed_rotations(stack, table):
    if stack.rotations is None:
        return None
    old = read_rotations(table)
    if old is not None and np.all(geodesic_distance(old, stack.rotations) < 1e-5):
        return None
    return stack.rotations


def _if_changed_shifts(stack, table, images_path):
    has_origins = any(name in table for name in (*ORIGINS_ANGST, *ORIGINS_PIXELS))
    if images_path is not None:
        # Pixels may have another size than before; a stack without shifts has centred images.
        return stack.shifts if stack.shifts is not None or not has_origins else np.zeros((len(stack), 2))
    if stack.shifts is None:
        return None
    if has_origins:
        own = read_pixel_size(table)
        own = stack.pixel_size if own is None else own
        old = read_shifts(table, own)
        scale = 1.0 if own is None else own / stack.pixel_size
        if np.allclose(old * scale, stack.shifts, rtol=0, atol=1e-5):
            return None
    return stack.shifts


def _new_table(stack, images_path, path):
    """Table of RELION 3.1 for a stack that came without one."""
    if images_path is not None:
        names = _new_names(len(stack), images_path, path)
        files, index = (os.path.abspath(images_path),), np.zeros(len(stack), dtype=np.int32)
    elif stack.image_files is not None:
        files, index, numbers = stack.image_files
        relative = [os.path.relpath(file, path.parent) for file in files]
        names = [
            token(f"{number + 1:06d}@{relative[file]}")
            for number, file in zip(numbers.tolist(), index.tolist())
        ]
    else:
        raise ValueError(
            "the images of this stack are in memory only, so there is no file that the STAR file could "
            "name: give images_path"
        )
    if stack.pixel_size is None:
        raise ValueError("the stack has no pixel_size, which RELION needs: stack.replace(pixel_size=...)")
    optics = {
        "rlnImagePixelSize": f"{stack.pixel_size:.6f}",
        "rlnImageSize": str(stack.image_shape[0]),
        "rlnImageDimensionality": "2",
    }
    more, optics = make_columns(len(stack), stack.ctf, optics)
    table = StarTable({"rlnImageName": names, **more}, optics=optics, version=30001, source=str(path))
    table.image_files = tuple(files)
    table.image_file_index = index
    return table


def _new_names(n, images_path, path):
    relative = os.path.relpath(images_path, path.parent)
    return np.array([token(f"{i + 1:06d}@{relative}") for i in range(n)], dtype=_TEXT)


def _with_new_images(table, stack, images_path, path):
    """Table that names the images of the stack in a new file, with their pixel size and size."""
    if stack.pixel_size is None:
        raise ValueError("the stack has no pixel_size, which RELION needs: stack.replace(pixel_size=...)")
    columns = {"rlnImageName": _new_names(len(table), images_path, path)}
    size, box = f"{stack.pixel_size:.6f}", str(stack.image_shape[0])
    optics = table.optics
    for name, value in (("rlnImagePixelSize", size), ("rlnPixelSize", size), ("rlnImageSize", box)):
        if name in table:
            columns[name] = np.array([value] * len(table), dtype=_TEXT)
        elif optics is not None and (name in optics or name == "rlnImagePixelSize"):
            optics = {**optics, name: [value] * len(optics["rlnOpticsGroup"])}
    if "rlnMagnification" in table:
        detector = table.numbers("rlnDetectorPixelSize")
        columns["rlnMagnification"] = [f"{1e4 * d / stack.pixel_size:.6f}" for d in detector.tolist()]
    table = table.with_columns(columns).with_optics(optics)
    if stack.ctf is None:
        table = table.without_columns([name for name in CTF_COLUMNS.values() if name in table])
    table.image_files = (os.path.abspath(images_path),)
    table.image_file_index = np.zeros(len(table), dtype=np.int32)
    return table


def _with_image_names(table, path):
    """Table whose rlnImageName finds the same files from the folder of `path`."""
    if table.image_file_index is None:
        return table
    folder = str(path.parent)
    names = table["rlnImageName"].tolist()
    changed = {}
    texts = table.raw("rlnImageName").tolist()
    for row, (name, file) in enumerate(zip(names, table.image_file_index.tolist())):
        number, _, text = name.partition("@")
        key = (text, file)
        if key not in changed:
            found = resolve_image_path(text, folder)
            same = found is not None and os.path.realpath(found) == os.path.realpath(table.image_files[file])
            changed[key] = None if same else os.path.relpath(table.image_files[file], folder)
        if changed[key] is not None:
            texts[row] = token(f"{number}@{changed[key]}")
    return table.with_columns({"rlnImageName": np.array(texts, dtype=_TEXT)})
