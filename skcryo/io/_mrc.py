"""MRC files: stacks of images and volumes."""

import bz2
import contextlib
import errno
import gzip
import os
import pathlib
import warnings
import zlib

import mrcfile
import mrcfile.dtypes
import mrcfile.utils
import numpy as np

from .._images import ImageFile
from ..particles import ParticleStack, iter_chunks
from ._atomic import atomic_path

__all__ = ["load_volume", "open_image_file", "save_images", "save_volume"]

_HEADER_BYTES = 1024
_BROKEN = (OSError, EOFError, ValueError, zlib.error)
_VOLUME_ENDINGS = (".mrc", ".map", ".ccp4", ".mrc.gz", ".map.gz", ".mrc.bz2", ".map.bz2", ".ccp4.gz")


@contextlib.contextmanager
def _quiet_mrcfile():
    # Some programs leave out the map identifier and the machine stamp; what matters is checked here instead.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=RuntimeWarning, module="mrcfile")
        yield


def check_is_file(path, what="file"):
    """`path` as absolute text, or an error that says what is there instead of a file."""
    path = os.path.abspath(os.fspath(path))
    if os.path.isdir(path):
        raise IsADirectoryError(errno.EISDIR, f"expected a {what}, this is a folder", path)
    if not os.path.exists(path):
        raise FileNotFoundError(errno.ENOENT, f"this {what} does not exist", path)
    return path


def _compression(path):
    with open(path, "rb") as file:
        start = file.read(212)
    if start[208:212] == b"MAP ":
        return None
    return {b"\x1f\x8b": "gzip", b"BZ": "bzip2"}.get(start[:2])


def read_header(path):
    """Header, dtype, shape and offset of an MRC file, checked against the file's size.

    Parameters
    ----------
    path : str

    Returns
    -------
    header : recarray
    dtype : dtype
        As stored, byte order included.
    shape : tuple (nz, ny, nx) or (ny, nx)
    offset : int
        Bytes before the data.

    Raises
    ------
    ValueError
        If it is no MRC file, is truncated or holds what is no real image; the message names the file.
    """
    # Only these bytes: mrcfile.open also reads the extended header, of whatever length a damaged file claims.
    opener = {"gzip": gzip.open, "bzip2": bz2.open}.get(_compression(path), open)
    try:
        with opener(path, "rb") as file:
            start = file.read(_HEADER_BYTES)
        if len(start) < _HEADER_BYTES:
            raise ValueError(f"its header has {len(start)} of {_HEADER_BYTES} bytes")
        header = np.frombuffer(start, dtype=_byte_order(start)).reshape(()).view(np.recarray)
        dtype = mrcfile.utils.data_dtype_from_header(header)
    except _BROKEN as error:
        raise ValueError(f"{path}: not a readable MRC file ({error})") from error
    nx, ny, nz = int(header.nx), int(header.ny), int(header.nz)
    extended = int(header.nsymbt)
    if min(nx, ny, nz) < 1 or not 0 <= extended < 2**30:
        raise ValueError(
            f"{path}: not a readable MRC file (size {nx} x {ny} x {nz}, extended header {extended} bytes)"
        )
    if dtype.kind == "c":
        raise ValueError(f"{path}: MRC mode {int(header.mode)} holds complex numbers, images are real")
    offset = _HEADER_BYTES + extended
    if _compression(path) is None:
        expected, size = offset + nx * ny * nz * dtype.itemsize, os.path.getsize(path)
        if size < expected:
            raise ValueError(
                f"{path}: truncated, the header promises {nz} x {ny} x {nx} pixels in {expected} bytes but "
                f"the file has {size}"
            )
        if size > expected:
            warnings.warn(
                f"{path}: {size - expected} bytes after the last image are ignored (the header says {nz} "
                "images)",
                UserWarning,
                stacklevel=2,
            )
    return header, dtype, (nz, ny, nx), offset


def _byte_order(start):
    """Header dtype in the byte order of a file: by its machine stamp, or else by what its mode can be."""
    little = mrcfile.dtypes.HEADER_DTYPE.newbyteorder("<")
    big = little.newbyteorder(">")
    stamp = start[212]
    if stamp in (0x11, 0x44):
        return big if stamp == 0x11 else little
    return big if int.from_bytes(start[12:16], "little") > 255 else little


def read_data(path):
    """All data of an MRC file, compressed or not, in memory."""
    try:
        with _quiet_mrcfile(), mrcfile.open(path, permissive=True) as mrc:
            data = mrc.data
    except _BROKEN as error:
        raise ValueError(f"{path}: not a readable MRC file ({error})") from error
    if data is None:
        raise ValueError(f"{path}: truncated or corrupt, its header does not fit its data")
    return data


def voxel_size_of(header, path):
    """Voxel size in Angstrom, or None where the header has none; it must be the same along x, y (and z)."""
    cell = [float(header.cella[axis]) for axis in "xyz"]
    counts = [int(header[name]) for name in ("mx", "my", "mz")]
    sizes = [length / count if count > 0 else 0.0 for length, count in zip(cell, counts)]
    if not all(np.isfinite(sizes)) or sizes[0] <= 0:
        return None
    # The third axis of a stack counts images, and its length means nothing.
    used = sizes[:2] if int(header.ispg) == 0 else sizes
    if not np.allclose(used, sizes[0], rtol=1e-3):
        raise ValueError(f"{path}: voxels are not cubes, {' x '.join(f'{size:g}' for size in used)} A")
    return _rounded(sizes[0])


def _rounded(size):
    # Headers hold float32: 1.3 comes back as 1.2999999523.
    return float(f"{size:.7g}")


def open_image_file(path):
    """Layout of a file of images, from its header alone.

    Parameters
    ----------
    path : str or path-like

    Returns
    -------
    ImageFile
        Compressed files, which cannot be mapped, are read into memory with a warning.
    pixel_size : float or None
        From the header, which many programs do not fill in.

    Raises
    ------
    ValueError
        If the file is not a readable stack of square images.
    """
    path = check_is_file(path, "file of images")
    header, dtype, (n, height, width), offset = read_header(path)
    if height != width:
        raise ValueError(f"{path}: images have {width} x {height} pixels, particles must be square")
    axes = tuple(int(header[name]) for name in ("mapc", "mapr", "maps"))
    if axes not in ((1, 2, 3), (0, 0, 0)):
        raise ValueError(f"{path}: axes are stored in the order {axes}, images need (1, 2, 3)")
    array = None
    if _compression(path) is not None:
        array = read_data(path).reshape(n, height, width)
        warnings.warn(
            f"{path}: compressed files cannot be mapped, so its {array.nbytes / 1e6:.0f} MB are kept in "
            "memory; decompress it to read only what is needed",
            UserWarning,
            stacklevel=2,
        )
    pixel_size = voxel_size_of_images(header)
    return ImageFile(path, n, (height, width), dtype, offset, array), pixel_size


def voxel_size_of_images(header):
    """Pixel size along x, or None where the header has none."""
    size = float(header.cella["x"]) / int(header.mx) if int(header.mx) > 0 else 0.0
    return _rounded(size) if np.isfinite(size) and size > 0 else None


def load_volume(path):
    """Read a density map.

    Parameters
    ----------
    path : str or path-like
        MRC, CCP4 or MAP file, also compressed by gzip or bzip2.

    Returns
    -------
    volume : ndarray of shape (L, L, L), float32
        Indexed ``[z, y, x]``, whatever the order of axes in the file.
    voxel_size : float or None
        In Angstrom; None where the file does not say.

    Raises
    ------
    ValueError
        If the file is damaged, not a cube, or has values that are not finite.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> from skcryo.io import load_volume, save_volume
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_volume(f"{folder}/map.mrc", np.ones((4, 4, 4)), 2.0)
    ...     volume, voxel_size = load_volume(f"{folder}/map.mrc")
    >>> volume.shape, volume.dtype, voxel_size
    ((4, 4, 4), dtype('float32'), 2.0)
    """
    path = check_is_file(path, "map")
    header, _, shape, _ = read_header(path)
    if len(set(shape)) != 1:
        nz, ny, nx = shape
        raise ValueError(f"{path}: the map has {nx} x {ny} x {nz} voxels, it must be a cube (pad or crop it)")
    data = read_data(path)
    if data.ndim != 3:
        raise ValueError(f"{path}: not one map, its data have the shape {data.shape}")
    axes = [int(header[name]) for name in ("maps", "mapr", "mapc")]
    if axes != [0, 0, 0]:
        if sorted(axes) != [1, 2, 3]:
            raise ValueError(
                f"{path}: the order of axes in the header, {axes[::-1]}, is not a permutation of 1, 2, 3"
            )
        data = data.transpose([axes.index(axis) for axis in (3, 2, 1)])
    volume = np.ascontiguousarray(data, dtype=np.float32)
    finite = np.isfinite(volume)
    if not finite.all():
        z, y, x = np.argwhere(~finite)[0].tolist()
        raise ValueError(
            f"{path}: {np.count_nonzero(~finite)} voxels are NaN or infinite, the first at [z, y, x] = "
            f"[{z}, {y}, {x}]"
        )
    return volume, voxel_size_of(header, path)


def save_volume(path, volume, voxel_size, *, overwrite=False):
    """Write a density map as MRC.

    Parameters
    ----------
    path : str or path-like
        Ending in .mrc, .map or .ccp4; with .gz or .bz2 behind it, compressed.
    volume : array-like of shape (L, L, L)
        Indexed ``[z, y, x]``; stored as float32.
    voxel_size : float or None
        In Angstrom. None leaves it unset in the file.
    overwrite : bool, default=False
        Whether a file that is there already may be replaced.

    Raises
    ------
    ValueError
        If the volume is not a finite cube, or the ending is none of these.
    FileExistsError
        If the file is there and `overwrite` is False.

    See Also
    --------
    load_volume
    """
    name = pathlib.Path(path).name.lower()
    if not name.endswith(_VOLUME_ENDINGS):
        raise ValueError(f"{path}: a map's name ends in one of {', '.join(_VOLUME_ENDINGS)}")
    volume = np.asarray(volume, dtype=np.float32)
    if volume.ndim != 3 or len(set(volume.shape)) != 1:
        raise ValueError(f"volume must be a cube of shape (L, L, L), got shape {volume.shape}")
    if not np.isfinite(volume).all():
        raise ValueError(
            f"volume has {np.count_nonzero(~np.isfinite(volume))} voxels that are NaN or infinite"
        )
    voxel_size = _checked_size("voxel_size", voxel_size)
    compress = {".gz": gzip.open, ".bz2": bz2.open}.get(pathlib.Path(name).suffix, open)
    with atomic_path(path, overwrite=overwrite) as temporary, compress(temporary, "wb") as file:
        header = _header(volume.shape, voxel_size, is_stack=False)
        header.dmin, header.dmax = volume.min(), volume.max()
        header.dmean, header.rms = volume.mean(dtype=np.float64), volume.std(dtype=np.float64)
        file.write(header.tobytes())
        file.write(np.ascontiguousarray(volume, dtype="<f4").tobytes())


def save_images(path, images, pixel_size=None, *, overwrite=False):
    """Write images as an MRC stack, chunk by chunk, so that any number goes through bounded memory.

    Parameters
    ----------
    path : str or path-like
        Ending in .mrcs (or .mrc).
    images : ParticleStack, array-like of shape (n, L, L), or iterable of arrays of shape (m, L, L)
        Stored as float32.
    pixel_size : float, default=None
        In Angstrom. None takes that of a ParticleStack, or leaves it unset.
    overwrite : bool, default=False
        Whether a file that is there already may be replaced.

    Raises
    ------
    ValueError
        If images differ in size, there are none, or pixels are not finite; the message names the image.
    FileExistsError
        If the file is there and `overwrite` is False.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> from skcryo.io import load_particles, save_images
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_images(f"{folder}/x.mrcs", (np.full((2, 4, 4), i) for i in range(3)), pixel_size=1.5)
    ...     print(load_particles(f"{folder}/x.mrcs"))
    ParticleStack(shape=(6, 4, 4), dtype=float32, pixel_size=1.5, in 1 file)
    """
    if pathlib.Path(path).suffix.lower() not in (".mrcs", ".mrc"):
        raise ValueError(f"{path}: a stack's name ends in .mrcs or .mrc")
    if pixel_size is None:
        pixel_size = getattr(images, "pixel_size", None)
    pixel_size = _checked_size("pixel_size", pixel_size)
    if isinstance(images, ParticleStack) or (hasattr(images, "shape") and len(images.shape) == 3):
        chunks = (chunk for _, chunk in iter_chunks(images))
    elif isinstance(images, list) and images and np.ndim(images[0]) == 2:
        chunks = (image[None] for image in map(np.asarray, images))
    else:
        chunks = iter(images)
    with atomic_path(path, overwrite=overwrite) as temporary, open(temporary, "w+b") as file:
        file.write(bytes(_HEADER_BYTES))
        n, shape = 0, None
        low, high, total, squares = np.inf, -np.inf, 0.0, 0.0
        for chunk in chunks:
            chunk = np.ascontiguousarray(chunk, dtype="<f4")
            if chunk.ndim != 3 or (shape is not None and chunk.shape[1:] != shape):
                wanted = "(m, L, L)" if shape is None else f"(m, {shape[0]}, {shape[1]}) as before"
                raise ValueError(f"images {n} and following have shape {chunk.shape}, it must be {wanted}")
            shape = chunk.shape[1:]
            if shape[0] != shape[1]:
                raise ValueError(f"images have shape {shape}, a stack of particles has square ones")
            if not np.isfinite(chunk).all():
                bad = int(np.flatnonzero(~np.isfinite(chunk).all(axis=(1, 2)))[0])
                raise ValueError(f"image {n + bad} has pixels that are NaN or infinite")
            file.write(chunk.tobytes())
            n += len(chunk)
            if chunk.size:
                low, high = min(low, float(chunk.min())), max(high, float(chunk.max()))
                total += float(chunk.sum(dtype=np.float64))
                squares += float(np.einsum("ijk,ijk->", chunk, chunk, dtype=np.float64))
        if n == 0:
            raise ValueError(f"{path}: there are no images to write")
        header = _header((n, *shape), pixel_size, is_stack=True)
        mean = total / (n * shape[0] * shape[1])
        header.dmin, header.dmax, header.dmean = low, high, mean
        header.rms = np.sqrt(max(squares / (n * shape[0] * shape[1]) - mean**2, 0.0))
        file.seek(0)
        file.write(header.tobytes())


def _header(shape, voxel_size, *, is_stack):
    """Header of an MRC2014 file of little-endian float32."""
    header = np.zeros((), dtype=mrcfile.dtypes.HEADER_DTYPE).view(np.recarray)
    nz, ny, nx = shape
    header.nx, header.ny, header.nz = header.mx, header.my, header.mz = nx, ny, nz
    header.mode = 2
    header.mapc, header.mapr, header.maps = 1, 2, 3
    if is_stack:  # one section a unit cell, space group 0: how the format tells images from a volume
        header.mz = 1
    size = voxel_size or 0.0
    header.cella = (nx * size, ny * size, int(header.mz) * size)
    header.cellb = (90.0, 90.0, 90.0)
    header.ispg = 0 if is_stack else 1
    header.nversion = 20141
    header.map = b"MAP "
    header.machst = (0x44, 0x44, 0, 0)
    return header


def _checked_size(name, size):
    if size is None:
        return None
    if not np.isscalar(size) or not np.isfinite(size) or size <= 0:
        raise ValueError(f"{name} must be a positive number (Angstrom) or None, got {size!r}")
    return float(size)
