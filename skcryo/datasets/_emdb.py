"""Maps of the Electron Microscopy Data Bank, downloaded once and verified."""

import contextlib
import os
import re
from pathlib import Path

import pooch

from ..io import atomic_path

#: The archive's home and its mirror, in the order in which they are asked.
_MIRRORS = (
    "https://ftp.ebi.ac.uk/pub/databases/emdb/structures",
    "https://files.wwpdb.org/pub/emdb/structures",
)


def fetch_emdb(entry, *, data_home=None, base_url=None, known_hash=None):
    """Download a map of the Electron Microscopy Data Bank, or take it from the cache.

    Parameters
    ----------
    entry : int or str
        ``2660``, ``"2660"`` or ``"EMD-2660"``.
    data_home : str or path, default=None
        Folder of the cache. None takes ``$SKCRYO_DATA``, or else the user's cache folder.
    base_url : str or list of str, default=None
        Where ``EMD-<entry>/map/emd_<entry>.map.gz`` lies; several are tried in order. None takes the archive
        and its mirror.
    known_hash : str, default=None
        SHA-256 of the compressed file, in hexadecimal. Without it the file is taken as it comes the first
        time; its hash is kept beside it, and later calls hold the file against that.

    Returns
    -------
    path : pathlib.Path
        The compressed map, ``emd_<entry>.map.gz``, as :func:`skcryo.io.load_volume` reads it.

    Raises
    ------
    ValueError
        If `entry` is no entry, or the file has another hash; nothing is left in the cache then.
    OSError
        If no mirror delivers the file; the message lists what each answered.

    Examples
    --------
    >>> from skcryo.datasets import fetch_emdb
    >>> path = fetch_emdb("EMD-2660")  # doctest: +SKIP
    >>> fetch_emdb("ribosome")
    Traceback (most recent call last):
    ...
    ValueError: entry is 'ribosome'; a number of 4 to 6 digits such as 2660 or "EMD-2660" is wanted
    """
    number = _entry_number(entry)
    home = data_home or os.environ.get("SKCRYO_DATA") or pooch.os_cache("skcryo")
    folder = Path(home).expanduser() / "emdb"
    if known_hash is not None:
        known_hash = str(known_hash).lower().removeprefix("sha256:")
        if not re.fullmatch("[0-9a-f]{64}", known_hash):
            raise ValueError(f"known_hash is {known_hash!r}; 64 hexadecimal digits (SHA-256) are wanted")
    name = f"emd_{number}.map.gz"
    remembered = folder / f"{name}.sha256"
    expected = known_hash
    if expected is None and (folder / name).exists() and remembered.exists():
        expected = remembered.read_text().strip()

    urls = _MIRRORS if base_url is None else [base_url] if isinstance(base_url, str) else list(base_url)
    answers = []
    for base in urls:
        url = f"{str(base).rstrip('/')}/EMD-{number}/map/{name}"
        try:
            with _quiet_pooch():
                path = Path(pooch.retrieve(url, expected, fname=name, path=folder, downloader=_download))
        except OSError as error:  # requests' own errors are OSErrors too
            answers.append(f"{url}: {error}")
            continue
        with atomic_path(remembered, overwrite=True) as partial:
            partial.write_text(f"{expected or pooch.file_hash(str(path))}\n")
        return path
    raise OSError(f"EMD-{number} could not be downloaded; tried\n  " + "\n  ".join(answers))


def _entry_number(entry):
    match = re.fullmatch(r"(?:EMD[-_])?(\d{1,6})", str(entry).strip(), flags=re.IGNORECASE)
    if not match or isinstance(entry, bool):
        raise ValueError(
            f'entry is {entry!r}; a number of 4 to 6 digits such as 2660 or "EMD-2660" is wanted'
        )
    return match[1].zfill(4)  # entries of four digits keep their leading zeros


def _download(url, output_file, pooch_instance):
    pooch.HTTPDownloader(progressbar=False, timeout=60)(url, output_file, pooch_instance)


@contextlib.contextmanager
def _quiet_pooch():
    """Keep pooch from writing what it downloads; warnings and errors pass."""
    logger = pooch.get_logger()
    level = logger.level
    logger.setLevel("WARNING")
    try:
        yield
    finally:
        logger.setLevel(level)
