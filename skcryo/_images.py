"""Where the pixels of a ParticleStack come from: arrays, MRC files, or other stacks with a function applied.

Every source has ``len``, ``image_shape``, ``dtype`` (float32 or float64), ``read(rows)`` for pixels,
``select(rows)`` for a source of some of its images without reading any, and ``locate(i)``, which says in
words where image `i` is. Rows are a slice with positive step or an array of non-negative integers within
range: the stack has checked them. Sources are never changed once made, so stacks share them.
"""

import mmap
import os

import numpy as np

__all__ = ["ArrayImages", "FileImages", "ImageFile", "JoinedImages", "MappedImages"]

_BLOCK_BYTES = 64 * 2**20


def image_dtype(dtype):
    """The type in which images of `dtype` are handed out: float64 stays, other real types become float32."""
    dtype = np.dtype(dtype)
    if dtype.kind not in "fiub":
        raise ValueError(f"images must be real numbers, got dtype {dtype}")
    return np.dtype(np.float64) if dtype.kind == "f" and dtype.itemsize >= 8 else np.dtype(np.float32)


class ArrayImages:
    """Images of an array or memmap; a memmap is pickled as its file's name."""

    def __init__(self, array, index=None):
        self.array = array
        self.index = index
        self.image_shape = tuple(int(size) for size in array.shape[1:])
        self.dtype = image_dtype(array.dtype)

    def __len__(self):
        return len(self.array) if self.index is None else len(self.index)

    def read(self, rows):
        if self.index is not None:
            rows = self.index[rows]
        return np.asarray(self.array[rows], dtype=self.dtype)

    def select(self, rows):
        if self.index is not None:
            return ArrayImages(self.array, self.index[rows])
        if isinstance(rows, slice):
            return ArrayImages(self.array[rows])
        return ArrayImages(self.array, rows)

    def locate(self, i):
        path = getattr(self.array, "filename", None)
        row = i if self.index is None else int(self.index[i])
        return f"row {row} of {path}" if path else f"row {row} of an array in memory"

    def __getstate__(self):
        spec = _memmap_spec(self.array)
        if spec is not None:
            return {"memmap": spec, "index": self.index}
        array = self.array if self.index is None else self.array[self.index]
        return {"array": np.asarray(array), "index": None}

    def __setstate__(self, state):
        array = _open_memmap(state["memmap"]) if "memmap" in state else state["array"]
        self.__init__(array, state["index"])


def _memmap_spec(array):
    """File name, offset and layout of an array that is a view of a memory-mapped file, else None."""
    root = array
    while isinstance(getattr(root, "base", None), np.ndarray):
        root = root.base
    if not (isinstance(root, np.memmap) and isinstance(root.base, mmap.mmap)) or root.filename is None:
        return None
    if root.mode not in ("r", "r+", "w+") or min(array.strides, default=0) < 0 or array.size == 0:
        return None  # a private copy-on-write map may differ from its file
    offset = root.offset + array.ctypes.data - root.ctypes.data
    return os.path.abspath(root.filename), array.dtype, offset, array.shape, array.strides


def _open_memmap(spec):
    path, dtype, offset, shape, strides = spec
    extent = sum((size - 1) * stride for size, stride in zip(shape, strides)) + dtype.itemsize
    raw = np.memmap(path, dtype=np.uint8, mode="r", offset=offset, shape=(extent,))
    return np.ndarray(shape, dtype=dtype, buffer=raw, strides=strides)


class ImageFile:
    """Layout of one MRC file of images, as read from its header by :mod:`skcryo.io`.

    Parameters
    ----------
    path : str
        Absolute path.
    n_images : int
    image_shape : tuple (height, width)
    dtype : dtype
        As stored, byte order included.
    offset : int
        Bytes before the first pixel.
    array : ndarray, default=None
        The images themselves where the file cannot be mapped (compressed).
    """

    __slots__ = ("array", "dtype", "image_shape", "n_images", "offset", "path")

    def __init__(self, path, n_images, image_shape, dtype, offset, array=None):
        self.path = path
        self.n_images = n_images
        self.image_shape = image_shape
        self.dtype = np.dtype(dtype)
        self.offset = offset
        self.array = array

    def map(self):
        """All images of the file, mapped: nothing is read before it is used."""
        if self.array is not None:
            return self.array
        try:
            shape = (self.n_images, *self.image_shape)
            return np.memmap(self.path, dtype=self.dtype, mode="r", offset=self.offset, shape=shape)
        except FileNotFoundError:
            raise FileNotFoundError(f"{self.path}: the file of images has gone since it was loaded") from None
        except (OSError, ValueError) as error:
            reason = f"cannot read the images, has the file changed since it was loaded? ({error})"
            raise OSError(f"{self.path}: {reason}") from error


class FileImages:
    """Images in MRC files: image `i` is number ``slice_index[i]`` (from 0) of ``files[file_index[i]]``.

    A file is opened when some of its images are read and closed right after, so that any number of files can
    be in one stack, and neither open files nor mapped memory pile up.
    """

    def __init__(self, files, file_index, slice_index):
        self.files = files
        self.file_index = file_index
        self.slice_index = slice_index
        self.image_shape = tuple(files[0].image_shape)
        self.dtype = np.dtype(np.float32)

    def __len__(self):
        return len(self.file_index)

    def read(self, rows):
        file_index, slice_index = self.file_index[rows], self.slice_index[rows]
        images = np.empty((len(file_index), *self.image_shape), dtype=self.dtype)
        # Each file once, its images in the order of the file: reads run forward whatever order was asked for.
        order = np.lexsort((slice_index, file_index))
        starts = np.flatnonzero(np.diff(file_index[order], prepend=-1)) if len(order) else []
        for where in np.split(order, starts[1:]) if len(order) else []:
            stored = self.files[file_index[where[0]]].map()
            first, last = int(slice_index[where[0]]), int(slice_index[where[-1]])
            run = np.arange(len(where))
            if np.array_equal(slice_index[where] - first, run) and np.array_equal(where - where[0], run):
                images[where[0] : where[-1] + 1] = stored[first : last + 1]
            else:
                for row, number in zip(where, slice_index[where]):
                    images[row] = stored[number]
        return images

    def select(self, rows):
        return FileImages(self.files, self.file_index[rows], self.slice_index[rows])

    def locate(self, i):
        return f"image {int(self.slice_index[i]) + 1} of {self.files[self.file_index[i]].path}"

    @property
    def paths(self):
        return [file.path for file in self.files]

    def __getstate__(self):
        used, file_index = np.unique(self.file_index, return_inverse=True)
        files = [self.files[i] for i in used] or self.files[:1]
        return {
            "files": [(f.path, f.n_images, f.image_shape, f.dtype, f.offset, f.array) for f in files],
            "file_index": file_index.astype(self.file_index.dtype),
            "slice_index": self.slice_index,
        }

    def __setstate__(self, state):
        files = [ImageFile(*record) for record in state["files"]]
        self.__init__(files, state["file_index"], state["slice_index"])


class MappedImages:
    """``function(images, **per_image)`` of another source's images, computed at each read."""

    def __init__(self, source, function, image_shape, dtype, per_image):
        self.source = source
        self.function = function
        self.image_shape = image_shape
        self.dtype = dtype
        self.per_image = per_image

    def __len__(self):
        return len(self.source)

    def read(self, rows):
        if isinstance(rows, slice):
            rows = np.arange(len(self))[rows]
        # In blocks, so that a large read needs no more than its result beside one block.
        one = int(np.prod(self.source.image_shape)) * self.source.dtype.itemsize
        size = max(1, _BLOCK_BYTES // max(one, 1))
        if len(rows) <= size:
            return self._read(rows)
        images = np.empty((len(rows), *self.image_shape), dtype=self.dtype)
        for start in range(0, len(rows), size):
            images[start : start + size] = self._read(rows[start : start + size])
        return images

    def _read(self, rows):
        if len(rows) == 0:
            return np.empty((0, *self.image_shape), dtype=self.dtype)
        images = self.source.read(rows).view()
        images.flags.writeable = False  # they may be the caller's own array
        result = np.asarray(self.function(images, **{name: v[rows] for name, v in self.per_image.items()}))
        if result.shape != (len(images), *self.image_shape):
            raise ValueError(
                f"the function mapped over the stack returned shape {result.shape} for {len(images)} "
                f"images, declared was ({len(images)}, {', '.join(map(str, self.image_shape))})"
            )
        return result.astype(self.dtype, copy=False)

    def select(self, rows):
        per_image = {name: value[rows] for name, value in self.per_image.items()}
        return MappedImages(self.source.select(rows), self.function, self.image_shape, self.dtype, per_image)

    def locate(self, i):
        return self.source.locate(i)


class JoinedImages:
    """Several sources, one after another."""

    def __init__(self, parts, order=None):
        self.parts = parts
        self.order = order
        self.image_shape = parts[0].image_shape
        self.dtype = np.result_type(*(part.dtype for part in parts))
        self._starts = np.concatenate([[0], np.cumsum([len(part) for part in parts])])

    def __len__(self):
        return int(self._starts[-1]) if self.order is None else len(self.order)

    def _rows(self, rows):
        if self.order is not None:
            return self.order[rows]
        return np.arange(len(self))[rows]

    def read(self, rows):
        rows = self._rows(rows)
        images = np.empty((len(rows), *self.image_shape), dtype=self.dtype)
        part_of = np.searchsorted(self._starts, rows, side="right") - 1
        for p in np.unique(part_of):
            where = np.flatnonzero(part_of == p)
            images[where] = self.parts[p].read(rows[where] - self._starts[p])
        return images

    def select(self, rows):
        rows = self._rows(rows)
        part_of = np.searchsorted(self._starts, rows, side="right") - 1
        if len(rows) and (part_of == part_of[0]).all():
            return self.parts[part_of[0]].select(rows - self._starts[part_of[0]])
        return JoinedImages(self.parts, rows)

    def locate(self, i):
        row = int(self._rows(slice(i, i + 1))[0])
        part = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self.parts[part].locate(row - int(self._starts[part]))

    def __getstate__(self):
        if self.order is None:
            return {"parts": self.parts, "order": None}
        # Only the images in use, so that a slice of a joined stack does not carry the rest along.
        part_of = np.searchsorted(self._starts, self.order, side="right") - 1
        parts, order, start = [], np.empty(len(self.order), dtype=np.int64), 0
        for p in np.unique(part_of):
            where = np.flatnonzero(part_of == p)
            parts.append(self.parts[p].select(self.order[where] - self._starts[p]))
            order[where] = np.arange(start, start + len(where))
            start += len(where)
        return {"parts": parts or [self.parts[0].select(slice(0, 0))], "order": order}

    def __setstate__(self, state):
        self.__init__(state["parts"], state["order"])
