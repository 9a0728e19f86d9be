"""cryoSPARC's .cs files, which are structured numpy arrays, as particle tables of RELION 3.1."""

import numpy as np
from numpy.dtypes import StringDType
from scipy.spatial.transform import Rotation

from ..ctf import make_ctf
from ..rotations import relion_from_rotations
from ._mrc import check_is_file
from ._relion import ANGLES, ORIGINS_ANGST, decimals, make_columns
from ._table import StarTable, token

__all__ = ["read_cs", "table_of_cs"]

_TEXT = StringDType()
_CTF_REQUIRED = {
    "defocus_u": "ctf/df1_A",
    "defocus_v": "ctf/df2_A",
    "defocus_angle": "ctf/df_angle_rad",
    "voltage": "ctf/accel_kv",
    "cs": "ctf/cs_mm",
    "amplitude_contrast": "ctf/amp_contrast",
}
_CTF_OPTIONAL = {"phase_shift": "ctf/phase_shift_rad", "b_factor": "ctf/bfactor", "scale": "ctf/scale"}
_CTF_ANGLES = ("defocus_angle", "phase_shift")
_ALIGNMENTS = ("alignments3D", "alignments2D")


def read_cs(path):
    """Records of a .cs file.

    Raises
    ------
    ValueError
        If it is none, or would need unpickling, which could execute anything and is never done.
    """
    path = check_is_file(path, ".cs file")
    with open(path, "rb") as file:
        magic = file.read(6)
    if magic == b"\x94CSDAT":
        raise ValueError(f"{path}: written in cryoSPARC's CSDAT format; save it as numpy records (.cs) first")
    if magic != b"\x93NUMPY":
        raise ValueError(f"{path}: not a .cs file (it does not begin like a numpy file)")
    try:
        records = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        reason = "it holds pickled objects, which are never loaded" if "pickle" in str(error) else error
        raise ValueError(f"{path}: not a readable .cs file: {reason}") from error
    if records.dtype.names is None or records.ndim != 1:
        raise ValueError(f"{path}: not a .cs file, it has no named fields (dtype {records.dtype})")
    if len(records) == 0:
        raise ValueError(f"{path}: has no particles")
    return records


def join_passthrough(records, path, others):
    """Fields of `records` and, by uid, of passthrough files of the same particles.

    Parameters
    ----------
    records : structured array
    path : str
        Of `records`, for messages.
    others : list of (path, records)
    """
    fields = {name: records[name] for name in records.dtype.names}
    for other_path, other in others:
        new = [name for name in other.dtype.names if name not in fields]
        if "uid" not in fields or "uid" not in other.dtype.names:
            raise ValueError(f"{other_path}: cannot be joined to {path}, both need the field uid")
        order = np.argsort(other["uid"])
        where = np.searchsorted(other["uid"], fields["uid"], sorter=order)
        rows = order[np.minimum(where, len(order) - 1)]
        missing = other["uid"][rows] != fields["uid"]
        if missing.any():
            row = int(np.flatnonzero(missing)[0])
            raise ValueError(
                f"{other_path}: lacks {np.count_nonzero(missing)} of the particles of {path}, the first is "
                f"row {row + 1} with uid {fields['uid'][row]}"
            )
        fields.update((name, other[name][rows]) for name in new)
    return fields


def table_of_cs(fields, path):
    """Particle table, CTF, rotations, shifts and pixel size of the fields of a .cs file.

    Poses: ``alignments3D/pose`` is the axis-angle vector of R in the library's convention; shifts are those
    of RELION's origins (minus the library's), in pixels of ``alignments3D/psize_A``. ``alignments2D`` gives
    psi, class and shifts where there is no 3-D alignment.

    Parameters
    ----------
    fields : dict of str to array
    path : str

    Returns
    -------
    table : StarTable
    facts : dict
        ``ctf``, ``rotations``, ``shifts``, ``pixel_size``, ready for ParticleStack.
    """
    n = len(next(iter(fields.values())))
    if "blob/path" not in fields or "blob/idx" not in fields:
        raise ValueError(
            f"{path}: has no blob/path and blob/idx, so it does not say where the images are; a passthrough "
            "file is given together with the .cs file of the images"
        )
    pixel_size = _pixel_size(fields, path)
    ctf = _ctf(fields, path, n)
    names = _texts(fields["blob/path"], path)
    numbers = fields["blob/idx"]
    if numbers.dtype.kind == "i" and (numbers < 0).any():
        row = int(np.flatnonzero(numbers < 0)[0])
        raise ValueError(f"{path}: particle row {row + 1}: blob/idx is {numbers[row]}")
    images = [f"{number + 1:06d}@{name.removeprefix('>')}" for number, name in zip(numbers.tolist(), names)]
    columns = {"rlnImageName": [token(image) for image in images]}
    if "location/micrograph_path" in fields:
        micrographs = _texts(fields["location/micrograph_path"], path)
        columns["rlnMicrographName"] = [token(name.removeprefix(">") or "None") for name in micrographs]
    optics = {"rlnImageDimensionality": "2"}
    if pixel_size is not None:
        optics["rlnImagePixelSize"] = f"{pixel_size:.6f}"
    if "blob/shape" in fields:
        optics["rlnImageSize"] = str(int(np.ravel(fields["blob/shape"][0])[0]))
    more, optics = make_columns(n, ctf, optics, fields.get("ctf/exp_group_id"))
    columns.update(more)
    rotations, shifts = _alignments(columns, fields, path, pixel_size)
    if "uid" in fields:
        columns["cryosparcUid"] = [str(uid) for uid in fields["uid"].tolist()]
    table = StarTable(columns, optics=optics, version=30001, source=path)
    return table, {"ctf": ctf, "rotations": rotations, "shifts": shifts, "pixel_size": pixel_size}


def _pixel_size(fields, path):
    if "blob/psize_A" not in fields:
        return None
    sizes = fields["blob/psize_A"].astype(np.float64)
    bad = ~(np.isfinite(sizes) & (sizes > 0))
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise ValueError(f"{path}: particle row {row + 1}: blob/psize_A is {sizes[row]:g}")
    differ = ~np.isclose(sizes, sizes[0], rtol=1e-4, atol=0)
    if differ.any():
        row = int(np.flatnonzero(differ)[0])
        raise ValueError(
            f"{path}: particles differ in pixel size: {sizes[0]:g} A in row 1, {sizes[row]:g} A in row "
            f"{row + 1}"
        )
    return float(f"{sizes[0]:.7g}")


def _ctf(fields, path, n):
    present = [name for name in fields if name.startswith("ctf/") and name != "ctf/exp_group_id"]
    if not present:
        return None
    missing = [name for name in _CTF_REQUIRED.values() if name not in fields]
    if missing:
        raise ValueError(f"{path}: the CTF is incomplete, fields missing: {', '.join(missing)}")
    values = {}
    for field, name in {**_CTF_REQUIRED, **_CTF_OPTIONAL}.items():
        if name in fields:
            value = fields[name].astype(np.float64)
            values[field] = np.degrees(value) if field in _CTF_ANGLES else value
    try:
        return make_ctf(n, **values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _alignments(columns, fields, path, pixel_size):
    """Adds poses, shifts, class and half set to `columns`; returns rotations and shifts."""
    rotations = shifts = None
    found = _best_class(fields)
    for group in _ALIGNMENTS:
        found.update({k: fields[f"{group}/{k}"] for k in _keys(fields, group) if k not in found})
        if group == "alignments3D" and "pose" in found:
            _finite(found["pose"], "pose", path)
            rotations = Rotation.from_rotvec(found["pose"].astype(np.float64)).as_matrix()
            columns.update(zip(ANGLES, map(decimals, relion_from_rotations(rotations).T)))
        elif group == "alignments2D" and rotations is None and "pose" in found:
            _finite(found["pose"], "pose", path)
            columns["rlnAnglePsi"] = decimals(np.degrees(found["pose"].astype(np.float64)))
        if "shift" in found and shifts is None:
            origins = found["shift"].astype(np.float64)
            _finite(origins, "shift", path)
            if pixel_size is not None:
                if "psize_A" in found:
                    origins = origins * (found["psize_A"].astype(np.float64)[:, None] / pixel_size)
                columns.update(zip(ORIGINS_ANGST, map(decimals, pixel_size * origins.T)))
            shifts = 0.0 - origins
        if "class" in found and "rlnClassNumber" not in columns:
            columns["rlnClassNumber"] = [str(int(k) + 1) for k in found["class"]]
        if "split" in found and len(np.unique(found["split"])) > 1 and "rlnRandomSubset" not in columns:
            columns["rlnRandomSubset"] = [str(int(k) + 1) for k in found["split"]]
    return rotations, shifts


def _keys(fields, group):
    return [name.split("/", 1)[1] for name in fields if name.startswith(f"{group}/")]


def _best_class(fields):
    """Alignment to the most probable of several classes (alignments3D_multi, alignments_class_K), if any."""
    if "alignments3D/pose" in fields:
        return {}
    if "alignments3D_multi/pose" in fields and "alignments3D_multi/class_posterior" in fields:
        best = np.argmax(fields["alignments3D_multi/class_posterior"], axis=1)
        rows = np.arange(len(best))
        found = {
            key: fields[f"alignments3D_multi/{key}"][rows, best]
            for key in ("pose", "shift")
            if f"alignments3D_multi/{key}" in fields
        }
        return {**found, "class": best}
    names = sorted(
        (
            name.split("/")[0]
            for name in fields
            if name.startswith("alignments_class_") and name.endswith("/pose")
        ),
        key=lambda name: int(name.rsplit("_", 1)[1]),
    )
    if not names or any(f"{name}/class_posterior" not in fields for name in names):
        return {}
    best = np.argmax(np.stack([fields[f"{name}/class_posterior"] for name in names], axis=1), axis=1)
    rows = np.arange(len(best))
    keys = [key for key in ("pose", "shift") if all(f"{name}/{key}" in fields for name in names)]
    found = {key: np.stack([fields[f"{name}/{key}"] for name in names], axis=1)[rows, best] for key in keys}
    return {**found, "class": np.array([int(name.rsplit("_", 1)[1]) for name in names])[best]}


def _finite(values, name, path):
    bad = ~np.isfinite(values.reshape(len(values), -1)).all(axis=1)
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise ValueError(
            f"{path}: particle row {row + 1}: {name} is {values[row].tolist()}, it must be finite"
        )


def _texts(values, path):
    if values.dtype.kind == "U":
        return values.tolist()
    if values.dtype.kind != "S":
        raise ValueError(f"{path}: names are stored as {values.dtype}, expected text")
    return [value.decode("utf-8", errors="surrogateescape") for value in values.tolist()]
