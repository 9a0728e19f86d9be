"""Files that are there completely or not at all."""

import contextlib
import errno
import os
import pathlib
import uuid

__all__ = ["atomic_path", "check_target"]


@contextlib.contextmanager
def atomic_path(path, *, overwrite=False):
    """Write to a temporary name beside `path`, which takes the real name once the block ends without error.

    On any error or interruption the temporary file is removed, and what was at `path` before is as it was. A
    process that is killed leaves at worst a hidden file that ends in ``.tmp``, never half a file at `path`.

    Parameters
    ----------
    path : str or path-like
        Where the file is to be.
    overwrite : bool, default=False
        Whether a file that is there already may be replaced.

    Yields
    ------
    pathlib.Path
        The name to write to, in the same folder.

    Raises
    ------
    FileExistsError
        If there is something at `path` and `overwrite` is False.
    FileNotFoundError, NotADirectoryError, IsADirectoryError
        If the folder is not there, or `path` is a folder itself.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from skcryo.io import atomic_path
    >>> folder = tempfile.TemporaryDirectory()
    >>> target = pathlib.Path(folder.name) / "notes.txt"
    >>> with atomic_path(target) as temporary:
    ...     _ = temporary.write_text("complete")
    >>> target.read_text()
    'complete'
    >>> folder.cleanup()
    """
    path = check_target(path, overwrite=overwrite)
    temporary = path.with_name(f".{path.name[:80]}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        yield temporary
        check_target(path, overwrite=overwrite)  # it may have appeared meanwhile
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def check_target(path, *, overwrite=False):
    """`path` as a Path, if a file may be written there; the errors of :func:`atomic_path` otherwise."""
    path = pathlib.Path(path)
    parent = path.parent
    if not parent.exists():
        raise FileNotFoundError(errno.ENOENT, "cannot write here, the folder does not exist", str(parent))
    if not parent.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "cannot write here, this is not a folder", str(parent))
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "cannot write a file, this is a folder", str(path))
    if not overwrite and os.path.lexists(path):
        raise FileExistsError(errno.EEXIST, "exists already, pass overwrite=True to replace it", str(path))
    return path
