"""Particles from files: STAR, cryoSPARC's .cs, and stacks of images alone."""

import os
import pathlib
import warnings

import numpy as np

from .._images import FileImages
from ..particles import ParticleStack, concatenate_stacks
from ._cs import join_passthrough, read_cs, table_of_cs
from ._mrc import check_is_file, open_image_file
from ._relion import read_ctf, read_pixel_size, read_rotations, read_shifts, warn_of_ctf_state
from ._table import read_star

__all__ = ["load_particles", "resolve_image_path"]

_STACK_ENDINGS = (".mrcs", ".mrc", ".st", ".mrcs.gz", ".mrc.gz", ".mrcs.bz2", ".mrc.bz2")


def load_particles(path, *, images_dir=None, pixel_size=None):
    """Particles of one or several files, their images read only when they are used.

    Parameters
    ----------
    path : path or list of paths
        * ``.star``: RELION 3.0 (one table), 3.1 and 5 (optics groups). Images are found by rlnImageName,
          never by the order of rows.
        * ``.cs``: cryoSPARC. Passthrough files, which say nothing of images, may be given along in the list.
        * ``.mrcs``, ``.mrc``: images alone; the pixel size is that of the header.
    images_dir : path, default=None
        Folder of the images, tried first: with the whole name in the file below it, then with the bare file
        name. Without it, names are taken relative to the folder of the STAR or .cs file, and then to each
        folder above it, so that names relative to a RELION or cryoSPARC project folder are found.
    pixel_size : float, default=None
        In Angstrom, instead of what the files say. A STAR file that says nothing leaves it None: headers of
        images often have a meaningless 1.0.

    Returns
    -------
    ParticleStack
        With `pixel_size`, `ctf` and, where the file has them, `rotations` (all three Euler angles) and
        `shifts` (minus the origins, in pixels). `metadata` is the :class:`StarTable` of all columns. Beam
        tilt, higher aberrations and anisotropic magnification are kept in the metadata, but are no part of
        `ctf`. The contrast is that of the stored images: cryoSPARC's ``blob/sign`` is not applied.

    Raises
    ------
    ValueError
        If a file is damaged, incomplete or contradictory, or particles differ in pixel size or image size;
        the message names file, row and reason.
    FileNotFoundError
        If a file is missing; the message names the first particle that needs it.

    See Also
    --------
    save_particles : The way back.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> from skcryo.ctf import make_ctf
    >>> from skcryo.io import load_particles, save_particles
    >>> from skcryo.particles import ParticleStack
    >>> stack = ParticleStack(np.zeros((3, 8, 8), np.float32), pixel_size=2.0, ctf=make_ctf(3))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_particles(f"{folder}/x.star", stack, images_path=f"{folder}/x.mrcs", labels=[0, 2, 1])
    ...     loaded = load_particles(f"{folder}/x.star")
    >>> loaded
    ParticleStack(shape=(3, 8, 8), dtype=float32, pixel_size=2, ctf, metadata, in 1 file)
    >>> loaded.metadata["rlnClassNumber"].tolist()
    ['1', '3', '2']
    """
    paths = [path] if isinstance(path, str | os.PathLike) else list(path)
    if not paths:
        raise ValueError("path is an empty list, there is nothing to load")
    if images_dir is not None and not os.path.isdir(images_dir):
        raise FileNotFoundError(f"images_dir: {os.fspath(images_dir)} is not a folder")
    paths = [check_is_file(p, "file of particles") for p in paths]
    kinds = [_kind(p) for p in paths]
    records = {p: read_cs(p) for p, kind in zip(paths, kinds) if kind == "cs"}
    passthrough = [(p, r) for p, r in records.items() if "blob/path" not in r.dtype.names]
    if len(passthrough) == len(records):
        passthrough = []  # none has images: let the first say so
    stacks, sources = [], []
    known = {}
    for p, kind in zip(paths, kinds):
        if kind == "cs":
            if any(p == other for other, _ in passthrough):
                continue
            table, facts = table_of_cs(join_passthrough(records[p], p, passthrough), p)
            if pixel_size is not None:
                facts = {**facts, "pixel_size": pixel_size}
            stacks.append(_stack_of_table(table, images_dir, known, **facts))
        elif kind == "star":
            stacks.append(_load_star(p, images_dir, pixel_size, known))
        else:
            stacks.append(_load_images(p, pixel_size))
        sources.append(p)
    return stacks[0] if len(stacks) == 1 else _join(stacks, sources)


def _kind(path):
    name = path.lower()
    if name.endswith(".star"):
        return "star"
    if name.endswith(".cs"):
        return "cs"
    if name.endswith(_STACK_ENDINGS):
        return "images"
    raise ValueError(
        f"{path}: particles are loaded from .star, .cs, .mrcs or .mrc files, the ending "
        f"{pathlib.Path(path).suffix!r} is none of these"
    )


def _load_star(path, images_dir, pixel_size, known):
    table = read_star(path)
    for name in ("rlnImageDimensionality",):
        values = table.numbers(name)
        if values is not None and (values != 2).any():
            row = int(np.flatnonzero(values != 2)[0])
            raise ValueError(
                f"{path}: particle row {row + 1}: {name} is {values[row]:g}, only 2-D images are read"
            )
    if pixel_size is None:
        pixel_size = read_pixel_size(table)
    ctf = read_ctf(table)
    rotations = read_rotations(table)
    shifts = read_shifts(table, pixel_size)
    stack = _stack_of_table(
        table, images_dir, known, pixel_size=pixel_size, ctf=ctf, rotations=rotations, shifts=shifts
    )
    warn_of_ctf_state(table)
    return stack


def _load_images(path, pixel_size):
    file, header_size = open_image_file(path)
    n = file.n_images
    if path.lower().endswith(".mrc") and n == file.image_shape[0] and _is_volume(path):
        raise ValueError(
            f"{path}: a cube of {n} voxels that is marked as a volume, not as images: use load_volume, or "
            "name the file .mrcs if these are images"
        )
    images = FileImages([file], np.zeros(n, dtype=np.int32), np.arange(n, dtype=np.int64))
    return ParticleStack(images, pixel_size=header_size if pixel_size is None else pixel_size)


def _is_volume(path):
    with open(path, "rb") as file:
        file.seek(88)
        return int.from_bytes(file.read(4), "little") != 0


def _stack_of_table(table, images_dir, known, **facts):
    """ParticleStack of the images that a table names."""
    row_paths, numbers = _image_names(table)
    names = list(dict.fromkeys(row_paths))
    folder = os.path.dirname(table.source)
    files, place, missing = [], {}, []
    for name in names:
        path = resolve_image_path(name, folder, images_dir)
        if path is None:
            missing.append(name)
            continue
        if path not in known:
            try:
                known[path] = open_image_file(path)[0]
            except (ValueError, OSError) as error:
                raise ValueError(f"{_row(table, row_paths.index(name))}: {error}") from error
        place[name] = len(files)
        files.append(known[path])
    if missing:
        looked = f"{folder} and the folders above it"
        if images_dir is not None:
            looked = f"{os.fspath(images_dir)}, {looked}"
        raise FileNotFoundError(
            f"{_row(table, row_paths.index(missing[0]))}: the file of images {missing[0]} is not in "
            f"{looked} ({len(missing)} of {len(names)} files are missing); images_dir says where they are"
        )
    file_index = np.array([place[name] for name in row_paths], dtype=np.int32)
    shapes = np.array([file.image_shape[0] for file in files])
    differ = shapes[file_index] != shapes[file_index[0]]
    if differ.any():
        row = int(np.flatnonzero(differ)[0])
        raise ValueError(
            f"{_row(table, row)}: images differ in size: {files[file_index[row]].path} has "
            f"{shapes[file_index[row]]} pixels across, {files[file_index[0]].path} has "
            f"{shapes[file_index[0]]}"
        )
    beyond = numbers >= np.array([file.n_images for file in files])[file_index]
    if beyond.any():
        row = int(np.flatnonzero(beyond)[0])
        file = files[file_index[row]]
        raise ValueError(
            f"{_row(table, row)}: rlnImageName is {table['rlnImageName'][row]} but {file.path} has "
            f"{file.n_images} images"
        )
    sizes = table.numbers("rlnImageSize")
    if sizes is not None and (sizes != shapes[file_index[0]]).any():
        row = int(np.flatnonzero(sizes != shapes[file_index[0]])[0])
        raise ValueError(
            f"{_row(table, row)}: rlnImageSize is {sizes[row]:g} but the images of "
            f"{files[file_index[row]].path} are {shapes[file_index[row]]} pixels across"
        )
    table.image_files = tuple(file.path for file in files)
    table.image_file_index = file_index
    return ParticleStack(FileImages(files, file_index, numbers), metadata=table, **facts)


def _image_names(table):
    """File and number, from 0, of each particle's image, from rlnImageName."""
    paths, numbers = [], np.empty(len(table), dtype=np.int64)
    for row, text in enumerate(table["rlnImageName"].tolist()):
        number, at, path = text.partition("@")
        if not at:
            raise ValueError(
                f"{_row(table, row)}: rlnImageName is {text!r}, expected number@file such as "
                "000001@stack.mrcs"
            )
        if not number.isdecimal() or int(number) < 1 or not path:
            raise ValueError(
                f"{_row(table, row)}: rlnImageName is {text!r}, the number of an image is counted from 1"
            )
        paths.append(path)
        numbers[row] = int(number) - 1
    return paths, numbers


def _row(table, row):
    return f"{table.source}: particle row {row + 1}"


def resolve_image_path(name, folder, images_dir=None):
    """Absolute path of the image file that a STAR or .cs file in `folder` calls `name`, or None.

    Looked for in this order: `images_dir` with the whole and with the bare name, `folder`, each folder above
    it.
    """
    candidates = []
    if images_dir is not None:
        candidates += [
            os.path.join(images_dir, name.lstrip("/")),
            os.path.join(images_dir, os.path.basename(name)),
        ]
    if os.path.isabs(name):
        candidates.append(name)
    else:
        folder = os.path.abspath(folder)
        while True:
            candidates.append(os.path.join(folder, name))
            parent = os.path.dirname(folder)
            if parent == folder:
                break
            folder = parent
    for candidate in candidates:
        if os.path.isfile(candidate):
            return os.path.abspath(candidate)
    return None


def _join(stacks, sources):
    """One stack of those of several files, with messages that name the files."""
    first = stacks[0]
    for stack, source in zip(stacks, sources):
        if stack.image_shape != first.image_shape:
            raise ValueError(
                f"images differ in size: {source} has {stack.image_shape[0]} pixels across, {sources[0]} "
                f"has {first.image_shape[0]}"
            )
        here, there = stack.pixel_size, first.pixel_size
        if here != there and (None in (here, there) or not np.isclose(here, there, rtol=1e-4)):
            raise ValueError(f"files differ in pixel size: {source} has {here} A, {sources[0]} has {there} A")
        for name in ("ctf", "rotations", "shifts", "metadata"):
            if (getattr(stack, name) is None) != (getattr(first, name) is None):
                having, lacking = (
                    (source, sources[0]) if getattr(first, name) is None else (sources[0], source)
                )
                raise ValueError(f"{having} has {name} but {lacking} has none: load them one by one")
    if first.metadata is not None:
        stacks = _with_common_columns(stacks)
    return concatenate_stacks(stacks)


def _with_common_columns(stacks):
    tables = [stack.metadata for stack in stacks]
    common = set(tables[0].names).intersection(*(table.names for table in tables))
    extra = sorted(set().union(*(table.names for table in tables)) - common)
    if not extra:
        return stacks
    warnings.warn(
        f"columns that are not in all files are left out: {', '.join(extra)}",
        UserWarning,
        stacklevel=4,
    )
    return [stack.replace(metadata=stack.metadata.without_columns(extra)) for stack in stacks]
