"""The seam to scikit-learn: what X may be, and every private scikit-learn name the library uses.

A stack of images travels as an array ``(n_images, height, width)``, as a memmap, as a ``ParticleStack`` or
as rows ``(n_images, n_pixels)``. Estimators that hold their images in memory call :func:`validate_stack`
and get rows; those that stream call :func:`validate_lazy` and get a ``ParticleStack`` whose pixels have
not been read.

Private names of scikit-learn are imported here and nowhere else, so that a new release touches one file.
"""

import math
from collections.abc import Iterator
from numbers import Real
from os import PathLike
from typing import Any

import numpy as np
from sklearn.base import _fit_context
from sklearn.utils._array_api import get_namespace
from sklearn.utils._param_validation import (
    HasMethods,
    Hidden,
    Interval,
    InvalidParameterError,
    Options,
    RealNotInt,
    StrOptions,
    validate_params,
)
from sklearn.utils.validation import _check_sample_weight, _num_samples, check_is_fitted, validate_data

__all__ = [
    "HasMethods",
    "Hidden",
    "Interval",
    "InvalidParameterError",
    "Options",
    "RealNotInt",
    "StackTagsMixin",
    "StrOptions",
    "_fit_context",
    "check_is_fitted",
    "check_sample_weight",
    "get_namespace",
    "is_particle_stack",
    "is_stack_of_images",
    "iter_finite_chunks",
    "num_images",
    "padded_to",
    "resolve_ctf",
    "resolve_optics",
    "resolve_pixel_size",
    "rows_to_images",
    "validate_data",
    "validate_lazy",
    "validate_parameters",
    "validate_params",
    "validate_stack",
]

_FLOATS = (np.float64, np.float32)
# What MRC files hold besides float32; float32 represents each of these exactly.
_EXACT_IN_FLOAT32 = frozenset(np.dtype(t) for t in (np.int8, np.uint8, np.int16, np.uint16, np.float16))


class StackTagsMixin:
    """Tags of an estimator that takes stacks of images as well as rows of pixels.

    Both tags stay on: with ``two_d_array=False`` scikit-learn runs one single check. Put this mixin first
    among the bases.
    """

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.input_tags.two_d_array = True
        if tags.transformer_tags is not None:
            tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


def validate_parameters(est: Any) -> None:
    """Check `est`'s parameters against its ``_parameter_constraints``, for methods other than ``fit``."""
    est._validate_params()


def is_particle_stack(X: Any) -> bool:
    """Whether `X` is a ``ParticleStack`` (or quacks like one), which carries facts about its images."""
    return getattr(X, "ndim", None) == 3 and hasattr(X, "pixel_size") and hasattr(X, "ctf")


def is_stack_of_images(X: Any) -> bool:
    """Whether `X` has three dimensions, image after image, rather than rows of pixels."""
    return _stack_shape(X if hasattr(X, "shape") else _images_from_sequence(X)) is not None


def num_images(X: Any) -> int:
    """Number of images (or rows) in `X`."""
    return _num_samples(X)


def _name(est: Any) -> str:
    return est if isinstance(est, str) else type(est).__name__


def _images_from_sequence(X: Any) -> Any:
    """A list of 2-D images as one array; anything else as it came, but for what cannot hold images."""
    if X is None:
        raise TypeError("X is None; images are wanted: an array of shape (n_images, L, L) or a ParticleStack")
    if isinstance(X, str | PathLike):
        raise TypeError(f"X is the path {str(X)!r}; read it first: X = skcryo.io.load_particles(path)")
    if not isinstance(X, list | tuple) or len(X) == 0:
        return X
    shapes = [getattr(image, "shape", None) for image in X]
    if shapes[0] is None:
        # A list of lists: rows, or nested images.
        return np.asarray(X) if isinstance(X[0], list | tuple) and np.ndim(X[0]) == 2 else X
    if len(shapes[0]) != 2:
        return X
    for index, shape in enumerate(shapes):
        if shape != shapes[0]:
            raise ValueError(
                f"images of a stack share one shape: image {index} has {shape}, image 0 has {shapes[0]}"
            )
    return np.stack([np.asarray(image) for image in X])


def _stack_shape(X: Any) -> tuple[int, int, int] | None:
    shape = getattr(X, "shape", None)
    return tuple(shape) if shape is not None and len(shape) == 3 else None


def _check_box(est: Any, shape: tuple[int, int]) -> None:
    # A stateless transformer may be used without a fit: it has no shape to compare with then.
    fitted = tuple(getattr(est, "image_shape_", shape))
    if tuple(shape) != fitted:
        raise ValueError(
            f"X has images of {shape[0]} x {shape[1]} pixels, but {_name(est)} was fitted on images of "
            f"{fitted[0]} x {fitted[1]} pixels"
        )


def _row_image_shape(est: Any, n_pixels: int, image_shape: Any, non_square: str) -> tuple[int, int]:
    """The image shape of rows of `n_pixels` pixels."""
    if image_shape is not None:
        image_shape = tuple(int(side) for side in np.ravel(image_shape))
        if len(image_shape) != 2 or math.prod(image_shape) != n_pixels:
            raise ValueError(
                f"image_shape={image_shape} does not describe the rows of X, which have {n_pixels} pixels; "
                f"give (height, width) with height * width = {n_pixels}"
            )
        return image_shape
    side = math.isqrt(n_pixels)
    if side * side == n_pixels:
        return (side, side)
    if non_square == "row":
        return (1, n_pixels)
    if non_square == "pad":
        return (side + 1, side + 1)
    raise ValueError(
        f"rows of {n_pixels} pixels are no square image; {_name(est)} needs square images: "
        f"give X of shape (n_images, L, L)"
    )


def _refuse_not_finite(est: Any, X: np.ndarray, source: Any) -> None:
    """Name the first image of `X` that holds NaN or infinity; `source` is what `X` was made of."""
    with np.errstate(over="ignore", invalid="ignore"):
        # The sum is finite whenever all pixels are (short of an overflow): one pass, no temporary.
        if X.dtype.kind not in "fc" or np.isfinite(X.sum(dtype=np.float64)):
            return
    finite = np.array([np.isfinite(image).all() for image in X])
    if finite.all():
        return
    bad = np.flatnonzero(~finite)
    kind = "NaN" if np.isnan(X[bad[0]]).any() else "infinity"
    from .particles import describe_image

    raise ValueError(
        f"Input X contains {kind}: {describe_image(source, bad[0])} is the first of {bad.size} "
        f"that are not finite; {_name(est)} accepts neither NaN nor inf"
    )


def validate_stack(
    est: Any,
    X: Any,
    *,
    reset: bool = True,
    image_shape: tuple[int, int] | None = None,
    non_square: str = "row",
    square: bool = False,
    dtype: tuple = _FLOATS,
    **check_params: Any,
) -> np.ndarray:
    """Images as C-contiguous rows in memory, checked by scikit-learn's own ``validate_data``.

    Sets (``reset=True``) or checks (``reset=False``) ``est.n_features_in_``, which is the number of pixels
    of an image, and ``est.image_shape_``. An array that is already as wanted is passed through without a
    copy.

    Parameters
    ----------
    est : estimator
        The estimator that was given `X`.
    X : array-like of shape (n_images, height, width) or (n_images, n_pixels)
        Images: ndarray, memmap, ``ParticleStack``, a list of 2-D arrays, or rows of pixels.
    reset : bool, default=True
        True in ``fit``; False in every other method, where another box size is refused by name.
    image_shape : tuple of two ints, default=None
        (height, width) of the images when `X` has rows. None means a square.
    non_square : {"row", "pad", "raise"}, default="row"
        What rows that are no square image are: an image ``(1, n_pixels)``; the start of the next larger
        square, the rest of which is zero (see :func:`rows_to_images`); or an error.
    square : bool, default=False
        Refuse stacks whose images are not square.
    dtype : tuple of dtypes, default=(float64, float32)
        The dtypes that are kept. Small integers and half precision, as MRC files hold them, become
        float32, which holds them exactly, and all others become the first of `dtype`.
    **check_params : dict
        Passed on to ``sklearn.utils.validation.validate_data``.

    Returns
    -------
    rows : ndarray of shape (n_images, n_pixels)
        C-contiguous.

    Raises
    ------
    ValueError
        If `X` is not finite (with the index of the image), is empty, has another box size than `est` was
        fitted on, or is no array of numbers.
    """
    source = X = _images_from_sequence(X)
    stack_shape = _stack_shape(X)
    if stack_shape is not None:
        _check_stack_shape(est, stack_shape, reset=reset, image_shape=image_shape, square=square)
        X = np.asarray(X).reshape(stack_shape[0], stack_shape[1] * stack_shape[2])
    if getattr(X, "dtype", None) in _EXACT_IN_FLOAT32 and isinstance(X, np.ndarray) and np.float32 in dtype:
        X = X.astype(np.float32)
    finite = check_params.pop("ensure_all_finite", True)
    X = validate_data(
        est, X, reset=reset, dtype=list(dtype), order="C", ensure_all_finite=False, **check_params
    )
    if finite is True:
        _refuse_not_finite(est, X, source)
    if reset:
        if stack_shape is not None:
            est.image_shape_ = stack_shape[1:]
        else:
            est.image_shape_ = _row_image_shape(est, X.shape[1], image_shape, non_square)
    return X


def _check_stack_shape(est, stack_shape, *, reset, image_shape, square):
    height, width = stack_shape[1:]
    if height * width == 0:
        raise ValueError(f"X has images of {height} x {width} pixels; an image needs at least one pixel")
    if square and height != width:
        raise ValueError(f"X has images of {height} x {width} pixels; {_name(est)} needs square images")
    if not reset:
        _check_box(est, (height, width))
    elif image_shape is not None and tuple(image_shape) != (height, width):
        raise ValueError(f"image_shape={tuple(image_shape)} but X has images of {height} x {width} pixels")


def rows_to_images(rows: np.ndarray, image_shape: tuple[int, int]) -> np.ndarray:
    """Rows ``(n, p)`` as images ``(n, height, width)``; rows shorter than an image are padded with zeros
    at the end.

    A view when no padding is needed.

    Examples
    --------
    >>> import numpy as np
    >>> rows_to_images(np.ones((2, 3)), (2, 2))[0]
    array([[1., 1.],
           [1., 0.]])
    """
    height, width = image_shape
    missing = height * width - rows.shape[1]
    if missing < 0:
        raise ValueError(f"rows of {rows.shape[1]} pixels do not fit images of {height} x {width} pixels")
    if missing:
        rows = np.pad(rows, ((0, 0), (0, missing)))
    return rows.reshape(len(rows), height, width)


def validate_lazy(
    est: Any,
    X: Any,
    *,
    reset: bool = True,
    image_shape: tuple[int, int] | None = None,
    non_square: str = "pad",
    square: bool = True,
    **check_params: Any,
):
    """Images as a ``ParticleStack``, without reading the pixels of what lies in files.

    Shapes, dtype and number of images are checked at once; that the pixels are finite is checked as they
    are read, by :func:`iter_finite_chunks`. What is in memory already is checked here.

    Parameters
    ----------
    est, X, reset, image_shape, non_square, square, **check_params
        As in :func:`validate_stack`. Rows that are no square image are padded with zeros to the next square
        (``non_square="pad"``), because those who stream need images.

    Returns
    -------
    stack : ParticleStack of shape (n_images, height, width)
        `X` itself when it is a ``ParticleStack``, else one that wraps `X`.
    """
    from .particles import as_stack

    X = _images_from_sequence(X)
    stack_shape = _stack_shape(X)
    if stack_shape is None or not (is_particle_stack(X) or isinstance(X, np.memmap)):
        rows = validate_stack(
            est, X, reset=reset, image_shape=image_shape, non_square=non_square, square=square, **check_params
        )
        shape = stack_shape[1:] if stack_shape is not None else getattr(est, "image_shape_", None)
        if shape is None:
            shape = _row_image_shape(est, rows.shape[1], image_shape, non_square)
        return as_stack(rows_to_images(rows, shape))
    if np.dtype(X.dtype).kind not in "biuf":
        raise ValueError(f"X has dtype {X.dtype}; {_name(est)} needs real numbers")
    _check_stack_shape(est, stack_shape, reset=reset, image_shape=image_shape, square=square)
    # scikit-learn's own bookkeeping (feature counts and names, empty input) on rows that take no memory.
    rows = np.broadcast_to(np.float32(0), (stack_shape[0], stack_shape[1] * stack_shape[2]))
    validate_data(est, rows, reset=reset, ensure_all_finite=False, **check_params)
    if reset:
        est.image_shape_ = stack_shape[1:]
    return as_stack(X)


def iter_finite_chunks(
    X: Any, *, chunk_size: int | None = None, **chunk_params: Any
) -> Iterator[tuple[slice, np.ndarray]]:
    """``iter_chunks`` that refuses NaN and infinity and names the particle and its place in its file.

    Parameters
    ----------
    X : ParticleStack or array of shape (n_images, height, width)
        Images.
    chunk_size : int, default=None
        Images at a time; None lets ``iter_chunks`` choose by memory.
    **chunk_params : dict
        ``max_bytes`` and ``dtype`` of ``skcryo.particles.iter_chunks``.

    Yields
    ------
    where : slice
        The images' place in `X`.
    images : ndarray of shape (n_chunk, height, width)
        Their pixels.
    """
    from .particles import iter_chunks

    yield from iter_chunks(X, chunk_size=chunk_size, check_finite=True, **chunk_params)


def resolve_ctf(X: Any, ctf: np.ndarray | None = None) -> np.ndarray | None:
    """CTF records of the images: the explicit keyword, else what `X` carries, else None.

    Parameters
    ----------
    X : array-like or ParticleStack of n_images images
        The images.
    ctf : structured array of shape (n_images,), default=None
        Explicit records, of ``skcryo.ctf.CTF_DTYPE``.

    Returns
    -------
    ctf : structured array of shape (n_images,) or None

    Raises
    ------
    ValueError
        If the number of records differs from the number of images.
    """
    if ctf is None:
        ctf = getattr(X, "ctf", None) if is_particle_stack(X) else None
    if ctf is None:
        return None
    ctf = np.asarray(ctf)
    n_images = num_images(X)
    if ctf.ndim == 0 or len(ctf) != n_images:
        n_records = 1 if ctf.ndim == 0 else len(ctf)
        raise ValueError(f"CTF has {n_records} records but X has {n_images} images")
    from .ctf import validate_ctf

    return validate_ctf(ctf, n_images)


def resolve_pixel_size(
    X: Any, pixel_size: float | None = None, *, required_by: str | None = None
) -> float | None:
    """Pixel size in Angstrom: the explicit keyword, else what `X` carries, else None.

    Parameters
    ----------
    X : array-like or ParticleStack
        The images.
    pixel_size : float, default=None
        Explicit pixel size in Angstrom.
    required_by : str, default=None
        What needs a pixel size; when given, not knowing one is an error that says so.
    """
    if pixel_size is None:
        pixel_size = getattr(X, "pixel_size", None) if is_particle_stack(X) else None
    if pixel_size is None:
        if required_by is not None:
            raise ValueError(
                f"{required_by} needs the pixel size: give pixel_size in Angstrom or a ParticleStack with one"
            )
        return None
    if not isinstance(pixel_size, Real) or not math.isfinite(pixel_size) or pixel_size <= 0:
        raise ValueError(f"pixel_size must be a positive number in Angstrom, got {pixel_size!r}")
    return float(pixel_size)


def resolve_optics(X: Any, ctf: np.ndarray | None = None) -> tuple[float | None, np.ndarray | None]:
    """Pixel size and CTF records of the images, of which CTFs want a pixel size.

    Parameters
    ----------
    X : ParticleStack of n_images images
    ctf : structured array of shape (n_images,), default=None
        Explicit records; None takes what `X` carries, if any.

    Returns
    -------
    pixel_size : float or None
    ctf : structured array of shape (n_images,) or None

    Raises
    ------
    ValueError
        If there are CTFs but no pixel size.
    """
    pixel_size, ctf = resolve_pixel_size(X), resolve_ctf(X, ctf)
    if ctf is not None and pixel_size is None:
        raise ValueError("CTFs need the pixel size: give X as a ParticleStack with pixel_size in Angstrom")
    return pixel_size, ctf


def check_sample_weight(sample_weight: Any, X: Any, *, dtype: Any = None) -> np.ndarray:
    """Weights of the images, ones when None: finite, not negative, not all zero.

    Parameters
    ----------
    sample_weight : array-like of shape (n_images,), float or None
        The weights.
    X : array-like or ParticleStack of n_images images
        What they belong to.
    dtype : float32, float64 or None
        dtype of the answer; None keeps the weights' own.

    Returns
    -------
    sample_weight : ndarray of shape (n_images,)
    """
    n_images = num_images(X)
    if np.iterable(sample_weight):
        sample_weight = np.asarray(sample_weight)
        if sample_weight.ndim == 1 and len(sample_weight) != n_images:
            raise ValueError(f"sample_weight has {len(sample_weight)} entries but X has {n_images} images")
    rows = np.broadcast_to(np.float32(0), (n_images, 1))
    return _check_sample_weight(sample_weight, rows, dtype=dtype, ensure_non_negative=True)


def padded_to(stack: Any, smallest: int) -> Any:
    """Images in a box of at least `smallest` pixels, with zeros around, their centre where it was.

    Parameters
    ----------
    stack : ParticleStack of shape (n_images, L, L)
    smallest : int

    Returns
    -------
    ParticleStack
        The same if the box is large enough; else in memory, with pixel size, CTFs, poses and tilt images.
    """
    from .particles import as_stack

    missing = smallest - stack.shape[1]
    if missing <= 0:
        return stack
    width = ((missing + 1) // 2, missing // 2)
    padded = as_stack(np.pad(np.asarray(stack, dtype=np.float32), ((0, 0), width, width)))
    return padded.replace(
        pixel_size=stack.pixel_size, ctf=stack.ctf, rotations=stack.rotations, shifts=stack.shifts,
        tilt=None if stack.tilt is None else padded_to(stack.tilt, smallest), tilt_angle=stack.tilt_angle,
    )  # fmt: skip
