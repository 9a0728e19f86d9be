"""The container of particle images that travels through pipelines, and streaming over it.

A :class:`ParticleStack` is what ``X`` is in this library: images that may lie in files larger than memory,
together with the facts that describe each of them (CTF, known poses, the rows of their STAR file), sliced
along with them.
"""

import os
from numbers import Integral, Real

import numpy as np

from ._images import ArrayImages, FileImages, JoinedImages, MappedImages
from .ctf import validate_ctf

__all__ = ["ParticleStack", "as_stack", "concatenate_stacks", "describe_image", "iter_chunks"]

_SOURCES = (ArrayImages, FileImages, JoinedImages, MappedImages)
_FIELDS = ("ctf", "rotations", "shifts", "metadata", "tilt")
_MAX_BYTES = 64 * 2**20


class ParticleStack:
    """Particle images of one size, in memory or in files, with what is known about each.

    It is an array-like of shape ``(n_images, height, width)`` that can be given to every estimator of the
    library and to scikit-learn's own tools. Slicing reads no pixels; a pickle of a stack that lies in files
    holds their names and the numbers of the images, so that handing it to other processes copies no pixels
    either.

    Parameters
    ----------
    data : array-like of shape (n_images, height, width)
        The images: an array or memmap (kept, not copied), or a list of 2-D arrays. Stacks that lie in files
        are made by :func:`skcryo.io.load_particles`.
    pixel_size : float, default=None
        In Angstrom. None where it is not known.
    ctf : structured array of shape (n_images,), default=None
        CTF parameters, see :func:`skcryo.ctf.make_ctf`; a single record is taken for all images.
    rotations : array-like of shape (n_images, 3, 3), default=None
        Known poses, in the library's convention: the image plane is spanned by the first two columns.
    shifts : array-like of shape (n_images, 2), default=None
        (x, y) in pixels: where the particle's centre lies relative to the image's.
    metadata : table with one row per image, default=None
        All columns of the STAR file that the images came from, see :func:`skcryo.io.load_particles`.
    tilt : ParticleStack or array-like of shape (n_images, height, width), default=None
        Second images of the same particles, after the stage was tilted; with CTFs and shifts of their own, if any.
    tilt_angle : float or array-like of shape (3,), default=None
        By how much, in radians: about the images' x axis, or as a rotation vector in their frame (x, y, z). A particle
        of pose R is then seen at pose ``R T^-1``, T the rotation by that angle.

    Raises
    ------
    ValueError
        If the length or the values of a field do not fit the images; the message names field and index.

    See Also
    --------
    skcryo.io.load_particles : Stacks from STAR, cryoSPARC and MRC files.
    iter_chunks : Go through a stack in bounded memory.

    Examples
    --------
    >>> import numpy as np
    >>> from skcryo.particles import ParticleStack
    >>> stack = ParticleStack(np.zeros((10, 8, 8), dtype=np.float32), pixel_size=1.5)
    >>> stack
    ParticleStack(shape=(10, 8, 8), dtype=float32, pixel_size=1.5)
    >>> stack[2:5].shape, stack[[7, 3], ...].shape, stack[0].shape
    ((3, 8, 8), (2, 8, 8), (8, 8))
    >>> np.asarray(stack[np.arange(10) % 2 == 0]).shape
    (5, 8, 8)
    """

    ndim = 3

    def __init__(
        self, data, *, pixel_size=None, ctf=None, rotations=None, shifts=None, metadata=None, tilt=None, tilt_angle=None
    ):
        self._images = _source(data)
        n = len(self._images)
        self._pixel_size = _check_pixel_size(pixel_size)
        self._ctf = _check_ctf(ctf, n)
        self._rotations = _check_rotations(rotations, n)
        self._shifts = _check_shifts(shifts, n)
        self._metadata = _check_length("metadata", metadata, n, "rows")
        self._tilt, self._tilt_angle = check_tilt(tilt, tilt_angle, self)

    # What a stack is made of is read-only, because each part was checked against the others: see `replace`.
    @property
    def pixel_size(self):
        """Pixel size in Angstrom, or None."""
        return self._pixel_size

    @property
    def ctf(self):
        """CTF parameters, structured array of shape (n_images,), or None."""
        return self._ctf

    @property
    def rotations(self):
        """Known poses, float64 array of shape (n_images, 3, 3), or None."""
        return self._rotations

    @property
    def shifts(self):
        """Known shifts (x, y) in pixels, float64 array of shape (n_images, 2), or None."""
        return self._shifts

    @property
    def metadata(self):
        """Table of all columns of the STAR file, or None."""
        return self._metadata

    @property
    def tilt(self):
        """Second images of the same particles, ParticleStack of the same shape, or None."""
        return self._tilt

    @property
    def tilt_angle(self):
        """Angle between first and second images, rotation vector of shape (3,) in radians, or None."""
        return self._tilt_angle

    @property
    def image_shape(self):
        """(height, width) of the images."""
        return self._images.image_shape

    @property
    def shape(self):
        """(n_images, height, width)."""
        return (len(self._images), *self._images.image_shape)

    @property
    def dtype(self):
        """Type in which images are handed out: float64 for float64 arrays, float32 for all else."""
        return self._images.dtype

    @property
    def size(self):
        """Number of pixels of all images."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def nbytes(self):
        """Bytes that the images take once read."""
        return self.size * self.dtype.itemsize

    @property
    def in_memory(self):
        """Whether reading an image touches neither a file nor a function."""
        return isinstance(self._images, ArrayImages)

    def __len__(self):
        return len(self._images)

    def __iter__(self):
        for _, images in iter_chunks(self, dtype=None):
            yield from images

    def __array__(self, dtype=None, copy=None):
        images = self._images.read(slice(None))
        if copy is False and not self.in_memory:
            raise ValueError("the images of this stack must be read, so copy=False is impossible")
        return np.array(images, dtype=dtype, copy=copy if self.in_memory else None)

    def __getitem__(self, key):
        if isinstance(key, tuple):
            rest = [part for part in key[1:] if part is not Ellipsis and part != slice(None)]
            if not key or key[0] is Ellipsis or rest:
                raise IndexError(
                    "a ParticleStack is indexed along its images only; np.asarray(stack)[...] cuts pixels"
                )
            key = key[0]
        if key is Ellipsis:
            return self
        if isinstance(key, Integral) and not isinstance(key, bool | np.bool_):
            i = int(key) + len(self) * (key < 0)
            if not 0 <= i < len(self):
                raise IndexError(f"index {key} is out of range for a stack of {len(self)} images")
            return self._images.read(np.array([i]))[0]
        rows = _rows(key, len(self))
        new = object.__new__(ParticleStack)
        new._images = self._images.select(rows)
        new._pixel_size, new._tilt_angle = self._pixel_size, self._tilt_angle
        for name in _FIELDS:
            value = getattr(self, name)
            setattr(new, f"_{name}", None if value is None else value[rows])
        return new

    def __repr__(self):
        parts = [f"shape={self.shape}, dtype={self.dtype}, pixel_size={_short(self.pixel_size)}"]
        parts += [name for name in _FIELDS if getattr(self, name) is not None]
        if isinstance(self._images, FileImages):
            n_files = len(np.unique(self._images.file_index))
            parts.append(f"in {n_files} file{'s' * (n_files != 1)}")
        elif not self.in_memory:
            parts.append("lazy")
        return f"ParticleStack({', '.join(parts)})"

    def replace(self, **changes):
        """Copy with some parts changed; pixels and all other parts are shared.

        Parameters
        ----------
        **changes : any of data, pixel_size, ctf, rotations, shifts, metadata, tilt, tilt_angle
            As for the constructor; None takes a part away, ``tilt=None`` the angle too.

        Returns
        -------
        ParticleStack

        Examples
        --------
        >>> import numpy as np
        >>> from skcryo.particles import ParticleStack
        >>> stack = ParticleStack(np.zeros((2, 4, 4)), pixel_size=1.0)
        >>> stack.replace(pixel_size=2.0).pixel_size
        2.0
        """
        parts = {"data": self._images, "pixel_size": self.pixel_size, "tilt_angle": self.tilt_angle}
        parts.update((name, getattr(self, name)) for name in _FIELDS)
        unknown = sorted(set(changes) - set(parts))
        if unknown:
            raise TypeError(f"a ParticleStack has no {', '.join(unknown)}; it has {', '.join(parts)}")
        if "tilt" in changes and changes["tilt"] is None:
            changes = {"tilt_angle": None} | changes
        parts.update(changes)
        return ParticleStack(parts.pop("data"), **parts)

    def map(self, function, *, image_shape=None, dtype=None, per_image=None, **changes):
        """Stack of ``function(images)``, computed whenever images are read.

        This is how preprocessing goes through stacks larger than memory: nothing is computed now, slices and
        pickles of the result stay as small as those of this stack, and a pickle works in other processes as
        long as `function` can be pickled (a function of a module, a ``functools.partial`` of one, or an
        object with ``__call__``; not a lambda).

        Parameters
        ----------
        function : callable
            Called as ``function(images, **per_image)`` with images of shape (m, height, width) in this
            stack's dtype, which are read-only, and the matching m entries of each array in `per_image`.
            Returns an array of shape (m, height, width) as `image_shape` says. It must treat each image on
            its own: which others come along with it is not defined.
        image_shape : tuple (height, width), default=None
            Of the result. None: as now.
        dtype : dtype, default=None
            Of the result, float32 or float64. None: as now.
        per_image : dict of str to array of length n_images, default=None
            What the function needs to know about each image, such as its CTF.
        **changes
            Parts of the new stack that differ from this one's, as for :meth:`replace`: ``pixel_size=``,
            ``ctf=``, ``shifts=``, ...

        Returns
        -------
        ParticleStack

        Examples
        --------
        >>> import numpy as np
        >>> from skcryo.particles import ParticleStack
        >>> stack = ParticleStack(np.ones((3, 4, 4), dtype=np.float32), pixel_size=1.0)
        >>> negative = stack.map(np.negative)
        >>> negative[0][0, 0], negative.pixel_size
        (np.float32(-1.0), 1.0)
        """
        image_shape = self.image_shape if image_shape is None else tuple(int(size) for size in image_shape)
        if len(image_shape) != 2 or min(image_shape) < 1:
            raise ValueError(f"image_shape must be (height, width), got {image_shape}")
        if self.tilt is not None and "tilt" not in changes:
            raise ValueError(
                "a stack with tilt images is not mapped as one: map stack.replace(tilt=None) and stack.tilt, then join "
                "them by replace(tilt=..., tilt_angle=...)"
            )
        dtype = self.dtype if dtype is None else np.dtype(dtype)
        if dtype not in (np.dtype(np.float32), np.dtype(np.float64)):
            raise ValueError(f"dtype must be float32 or float64, got {dtype}")
        per_image = {name: np.asarray(value) for name, value in (per_image or {}).items()}
        for name, value in per_image.items():
            _check_length(name, value, len(self), "entries")
        images = MappedImages(self._images, function, image_shape, dtype, per_image)
        return self.replace(data=images, **changes)

    def load(self):
        """Copy of this stack with all its images read (and computed) into memory.

        Returns
        -------
        ParticleStack
        """
        changes = {} if self.in_memory else {"data": np.asarray(self)}
        if self.tilt is not None and not self.tilt.in_memory:
            changes["tilt"] = self.tilt.load()
        return self.replace(**changes) if changes else self

    def locate(self, i):
        """Where image `i` comes from, for messages: its number in its file, from 1, and the file.

        Parameters
        ----------
        i : int

        Returns
        -------
        str
        """
        return self._images.locate(int(i))

    @property
    def image_files(self):
        """Where the images lie: list of paths, index into it and number in the file, from 0, of each image.

        None unless every image lies in a file as it is.
        """
        if not isinstance(self._images, FileImages):
            return None
        return self._images.paths, self._images.file_index, self._images.slice_index


def as_stack(X):
    """`X` as a :class:`ParticleStack`: itself if it is one, else a stack around the array, without a copy.

    Parameters
    ----------
    X : ParticleStack or array-like of shape (n_images, height, width)

    Returns
    -------
    ParticleStack

    Examples
    --------
    >>> import numpy as np
    >>> from skcryo.particles import as_stack
    >>> as_stack(np.zeros((2, 4, 4)))
    ParticleStack(shape=(2, 4, 4), dtype=float64, pixel_size=None)
    """
    return X if isinstance(X, ParticleStack) else ParticleStack(X)


def check_tilt(tilt, tilt_angle, stack):
    """Second images of a stack's particles and the angle between, as they are stored.

    Parameters
    ----------
    tilt : ParticleStack or array-like of shape (n_images, height, width), or None
    tilt_angle : float or array-like of shape (3,), or None
        Radians.
    stack : ParticleStack
        The first images.

    Returns
    -------
    tilt : ParticleStack or None
    tilt_angle : ndarray of shape (3,), float64, or None

    Raises
    ------
    ValueError
        If one comes without the other, shapes or pixel sizes differ, or the angle is no angle.
    """
    if tilt is None and tilt_angle is None:
        return None, None
    if tilt is None or tilt_angle is None:
        given, missing = ("tilt_angle", "tilt") if tilt is None else ("tilt", "tilt_angle")
        raise ValueError(f"{given} is given but {missing} is not; both are wanted, or neither")
    tilt = as_stack(tilt)
    if tilt.tilt is not None:
        raise ValueError("tilt has tilt images itself; pairs are wanted")
    if tilt.shape != stack.shape:
        raise ValueError(f"tilt has shape {tilt.shape} but the first images have {stack.shape}; the same is wanted")
    here, there = tilt.pixel_size, stack.pixel_size
    if None not in (here, there) and not np.isclose(here, there, rtol=1e-4):
        raise ValueError(f"tilt has pixels of {_short(here)} A but the first images of {_short(there)} A")
    angle = np.asarray(tilt_angle, dtype=np.float64)
    angle = np.array([float(angle), 0.0, 0.0]) if angle.ndim == 0 else angle
    if angle.shape != (3,) or not np.isfinite(angle).all() or not 0 < np.linalg.norm(angle) <= np.pi:
        raise ValueError(
            f"tilt_angle is {angle.tolist()}; an angle in radians, not 0 and at most pi, or a rotation vector of shape "
            "(3,) is wanted"
        )
    return tilt, angle


def concatenate_stacks(stacks):
    """One stack of all images of several, in order, without reading any.

    Parameters
    ----------
    stacks : sequence of ParticleStack
        Of one image shape and pixel size. Each of CTF, rotations, shifts, metadata and tilt images must be there in
        all of them or in none.

    Returns
    -------
    ParticleStack

    Raises
    ------
    ValueError
        If they do not fit together; the message says which and why.

    Examples
    --------
    >>> import numpy as np
    >>> from skcryo.particles import ParticleStack, concatenate_stacks
    >>> concatenate_stacks([ParticleStack(np.zeros((2, 4, 4))), ParticleStack(np.ones((3, 4, 4)))]).shape
    (5, 4, 4)
    """
    stacks = [as_stack(stack) for stack in stacks]
    if not stacks:
        raise ValueError("no stacks to concatenate")
    first = stacks[0]
    for i, stack in enumerate(stacks):
        if stack.image_shape != first.image_shape:
            raise ValueError(
                f"stacks differ in image size: stack {i} has {_times(stack.image_shape)} pixels, stack 0 "
                f"has {_times(first.image_shape)}"
            )
        here, there = stack.pixel_size, first.pixel_size
        if here != there and (None in (here, there) or not np.isclose(here, there, rtol=1e-4)):
            raise ValueError(
                f"stacks differ in pixel size: stack {i} has {_short(here)} A, stack 0 has {_short(there)} A"
            )
        for name in _FIELDS:
            if (getattr(stack, name) is None) != (getattr(first, name) is None):
                having, lacking = (i, 0) if getattr(first, name) is None else (0, i)
                raise ValueError(
                    f"stack {having} has {name} but stack {lacking} has none: give it to all, or take it "
                    f"away by replace({name}=None)"
                )
    fields = {}
    if first.tilt is not None:
        fields["tilt_angle"] = first.tilt_angle
        for i, stack in enumerate(stacks):
            if not np.allclose(stack.tilt_angle, first.tilt_angle):
                raise ValueError(
                    f"stacks differ in tilt_angle: stack {i} has {stack.tilt_angle.tolist()}, stack 0 has "
                    f"{first.tilt_angle.tolist()}"
                )
    joins = {"tilt": concatenate_stacks}
    for name in _FIELDS:
        values = [getattr(stack, name) for stack in stacks]
        if values[0] is not None:
            join = type(values[0]).concatenate if name == "metadata" else joins.get(name, np.concatenate)
            fields[name] = join(values)
    return ParticleStack(_join([s._images for s in stacks]), pixel_size=first.pixel_size, **fields)


def iter_chunks(X, chunk_size=None, *, max_bytes=_MAX_BYTES, dtype=np.float32, check_finite=False):
    """Go through images in chunks that fit into memory.

    Parameters
    ----------
    X : ParticleStack or array-like of shape (n_images, height, width) or (n_images, n_pixels)
    chunk_size : int, default=None
        Images in a chunk. None: as many as `max_bytes` hold, at least one.
    max_bytes : int, default=64 MiB
        Memory for the images of one chunk, used when `chunk_size` is None.
    dtype : dtype, default=float32
        Of the chunks. None: the dtype of `X`.
    check_finite : bool, default=False
        Refuse images with NaN or infinity.

    Yields
    ------
    where : slice
        Which images of `X` these are.
    images : ndarray of shape (m, height, width) or (m, n_pixels)
        May share memory with `X`: not to be changed in place.

    Raises
    ------
    ValueError
        With `check_finite`, if a pixel is not finite; the message names the image and its file.

    Examples
    --------
    >>> import numpy as np
    >>> from skcryo.particles import iter_chunks
    >>> [(where.start, where.stop, images.shape) for where, images in iter_chunks(np.zeros((5, 4, 4)), 2)]
    [(0, 2, (2, 4, 4)), (2, 4, (2, 4, 4)), (4, 5, (1, 4, 4))]
    """
    if not hasattr(X, "shape"):
        X = np.asarray(X)
    n = len(X)
    dtype = np.dtype(X.dtype if dtype is None else dtype)
    if chunk_size is None:
        # A lazy chunk is held twice while it is computed or converted.
        one = int(np.prod(X.shape[1:], dtype=np.int64)) * max(dtype.itemsize, X.dtype.itemsize)
        chunk_size = max(1, int(max_bytes) // max(one, 1))
    elif not isinstance(chunk_size, Integral) or chunk_size < 1:
        raise ValueError(f"chunk_size must be a positive integer or None, got {chunk_size!r}")
    source = X._images if isinstance(X, ParticleStack) else None
    for start in range(0, n, int(chunk_size)):
        where = slice(start, min(start + int(chunk_size), n))
        images = X[where] if source is None else source.read(where)
        images = np.asarray(images, dtype=dtype)
        if check_finite:
            _refuse_not_finite(X, images, start)
        yield where, images


def describe_image(X, i):
    """Image `i` of `X` in words, for messages: its index and, where it has one, its place in a file.

    Parameters
    ----------
    X : ParticleStack or array-like
    i : int

    Returns
    -------
    str

    Examples
    --------
    >>> import numpy as np
    >>> from skcryo.particles import describe_image
    >>> describe_image(np.zeros((5, 4, 4)), 3)
    'image 3'
    """
    if isinstance(X, ParticleStack) and "in memory" not in (place := X.locate(i)):
        return f"image {int(i)} ({place})"
    return f"image {int(i)}"


def _refuse_not_finite(X, images, start):
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(images.sum(dtype=np.float64)):
            return
    for i, image in enumerate(images):
        if not np.isfinite(image).all():
            kind = "NaN" if np.isnan(image).any() else "infinity"
            raise ValueError(f"Input X contains {kind}: {describe_image(X, start + i)}")


def _source(data):
    """The source of pixels that `data` is or holds."""
    if isinstance(data, _SOURCES):
        return data
    if isinstance(data, ParticleStack):
        return data._images
    if isinstance(data, str | os.PathLike):
        raise TypeError(
            f"data must be images, got the path {os.fspath(data)!r}: skcryo.io.load_particles reads it"
        )
    if isinstance(data, list | tuple):
        shapes = [np.shape(image) for image in data]
        for i, shape in enumerate(shapes):
            if shape != shapes[0]:
                raise ValueError(
                    f"images differ in size: image {i} has shape {shape}, image 0 has shape {shapes[0]}"
                )
    array = data if isinstance(data, np.ndarray) else np.asarray(data)
    if array.ndim != 3:
        raise ValueError(
            f"data must have shape (n_images, height, width), got shape {array.shape}; rows of pixels can "
            "be given to estimators as they are, or reshaped"
        )
    return ArrayImages(array)


def _join(sources):
    if len(sources) == 1:
        return sources[0]
    if not all(isinstance(source, FileImages) for source in sources):
        return JoinedImages(sources)
    # Files of several stacks in one list, each once, so that what was joined stays one flat source.
    files, place, file_index = [], {}, []
    for source in sources:
        new_index = np.empty(len(source.files), dtype=source.file_index.dtype)
        for i, file in enumerate(source.files):
            key = (file.path, file.n_images, file.offset)
            if key not in place:
                place[key] = len(files)
                files.append(file)
            new_index[i] = place[key]
        file_index.append(new_index[source.file_index])
    return FileImages(files, np.concatenate(file_index), np.concatenate([s.slice_index for s in sources]))


def _rows(key, n):
    """A key as a forward slice or an array of indices in [0, n)."""
    if isinstance(key, slice):
        start, stop, step = key.indices(n)
        return slice(start, stop, step) if step > 0 else np.arange(n)[key]
    key = np.asarray(key)
    if key.size == 0 and key.ndim == 1 and key.dtype != bool:
        return np.zeros(0, dtype=np.int64)
    if key.ndim != 1 or key.dtype.kind not in "biu":
        raise IndexError(
            "a ParticleStack is indexed by an integer, a slice, a 1-D array of integers or a 1-D boolean "
            f"mask, got an array of shape {key.shape} and dtype {key.dtype}"
        )
    if key.dtype == bool:
        if len(key) != n:
            raise IndexError(f"boolean mask has {len(key)} entries but the stack has {n} images")
        return np.flatnonzero(key)
    rows = key.astype(np.int64)
    out = (rows < -n) | (rows >= n)
    if out.any():
        raise IndexError(f"index {rows[out][0]} is out of range for a stack of {n} images")
    return np.where(rows < 0, rows + n, rows)


def _check_length(name, value, n, what):
    if value is not None and len(value) != n:
        raise ValueError(f"{name} has {len(value)} {what} but X has {n} images")
    return value


def _check_pixel_size(pixel_size):
    if pixel_size is None:
        return None
    if not isinstance(pixel_size, Real) or not np.isfinite(pixel_size) or pixel_size <= 0:
        raise ValueError(f"pixel_size must be a positive number (Angstrom) or None, got {pixel_size!r}")
    return float(pixel_size)


def _check_ctf(ctf, n):
    if ctf is None:
        return None
    if not np.shape(ctf):
        ctf = np.repeat(np.asarray(ctf)[None], n)
    if len(ctf) != n:
        raise ValueError(f"CTF has {len(ctf)} records but X has {n} images")
    return validate_ctf(ctf, n)


def _check_rotations(rotations, n):
    if rotations is None:
        return None
    rotations = np.asarray(rotations, dtype=np.float64)
    if rotations.ndim != 3 or rotations.shape[1:] != (3, 3):
        raise ValueError(f"rotations must have shape ({n}, 3, 3), got {rotations.shape}")
    _check_length("rotations", rotations, n, "matrices")
    with np.errstate(invalid="ignore"):
        errors = np.abs(rotations @ rotations.transpose(0, 2, 1) - np.eye(3)).max(axis=(1, 2), initial=0)
        bad = ~((errors < 1e-3) & (np.linalg.det(rotations) > 0))
    if bad.any():
        i = int(np.flatnonzero(bad)[0])
        raise ValueError(f"rotations[{i}] is not a rotation matrix (orthogonal with determinant 1)")
    return rotations


def _check_shifts(shifts, n):
    if shifts is None:
        return None
    shifts = np.asarray(shifts, dtype=np.float64)
    if shifts.ndim != 2 or shifts.shape[1] != 2:
        raise ValueError(f"shifts must have shape ({n}, 2), got {shifts.shape}")
    _check_length("shifts", shifts, n, "rows")
    bad = ~np.isfinite(shifts).all(axis=1)
    if bad.any():
        i = int(np.flatnonzero(bad)[0])
        raise ValueError(f"shifts[{i}] is {shifts[i].tolist()}, it must be finite")
    return shifts


def _short(value):
    return "None" if value is None else f"{value:g}"


def _times(shape):
    return " x ".join(map(str, shape))
