"""What RELION's columns mean: pixel size, CTF, poses and shifts of a particle table, and back.

All dialects that are in use: one table with magnification and shifts in pixels (up to RELION 3.0), and optics
groups with shifts in Angstrom (3.1 to 5).
"""

import warnings

import numpy as np
from numpy.dtypes import StringDType

from ..ctf import CTF_DTYPE, make_ctf
from ..rotations import in_plane_rotation, relion_from_rotations, rotations_from_relion

__all__ = ["make_columns", "read_ctf", "read_pixel_size", "read_rotations", "read_shifts", "update_table"]

_TEXT = StringDType()
CTF_REQUIRED = {
    "defocus_u": "rlnDefocusU",
    "defocus_v": "rlnDefocusV",
    "defocus_angle": "rlnDefocusAngle",
    "voltage": "rlnVoltage",
    "cs": "rlnSphericalAberration",
    "amplitude_contrast": "rlnAmplitudeContrast",
}
CTF_OPTIONAL = {"phase_shift": "rlnPhaseShift", "b_factor": "rlnCtfBfactor", "scale": "rlnCtfScalefactor"}
CTF_COLUMNS = {**CTF_REQUIRED, **CTF_OPTIONAL}
_OPTICS_FIELDS = ("voltage", "cs", "amplitude_contrast")
ANGLES = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")
ORIGINS_ANGST = ("rlnOriginXAngst", "rlnOriginYAngst")
ORIGINS_PIXELS = ("rlnOriginX", "rlnOriginY")


def read_pixel_size(table):
    """Pixel size in Angstrom of a table's images, or None if it does not say.

    RELION 3.1 and later: rlnImagePixelSize of the optics groups. Up to 3.0: 10^4 rlnDetectorPixelSize (um) /
    rlnMagnification.

    Raises
    ------
    ValueError
        If particles differ in pixel size, or only one of magnification and detector pixel size is there.
    """
    sizes = table.numbers("rlnImagePixelSize")
    if sizes is None:
        sizes = table.numbers("rlnPixelSize")
    if sizes is None:
        magnification, detector = table.numbers("rlnMagnification"), table.numbers("rlnDetectorPixelSize")
        if magnification is None and detector is None:
            return None
        if magnification is None or detector is None:
            missing = "rlnMagnification" if magnification is None else "rlnDetectorPixelSize"
            raise ValueError(f"{table.source}: the pixel size is incomplete, the column {missing} is missing")
        with np.errstate(divide="ignore", invalid="ignore"):
            sizes = 1e4 * detector / magnification
    bad = ~(np.isfinite(sizes) & (sizes > 0))
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise ValueError(f"{table.source}: particle row {row + 1}: the pixel size is {sizes[row]:g} A")
    if not np.allclose(sizes, sizes[0], rtol=1e-4, atol=0):
        row = int(np.flatnonzero(~np.isclose(sizes, sizes[0], rtol=1e-4, atol=0))[0])
        groups = ""
        if table.optics is not None and "rlnOpticsGroup" in table:
            groups = f" (optics groups {table['rlnOpticsGroup'][0]} and {table['rlnOpticsGroup'][row]})"
        raise ValueError(
            f"{table.source}: particles differ in pixel size: {sizes[0]:g} A in row 1, {sizes[row]:g} A in "
            f"row {row + 1}{groups}; rescale them to one pixel size, or split the file by optics group"
        )
    return float(sizes[0])


def read_ctf(table):
    """CTF parameters of a table's particles, or None if it has no columns of the CTF.

    Raises
    ------
    ValueError
        If some of the columns are there and others are missing; the message names them.
    """
    if not any(name in table for name in CTF_COLUMNS.values()):
        return None  # voltage and Cs alone are in the optics groups of every file
    missing = [name for name in CTF_REQUIRED.values() if not table.has(name)]
    if missing:
        present = [name for name in CTF_COLUMNS.values() if table.has(name)]
        raise ValueError(
            f"{table.source}: the CTF is incomplete, columns missing: {', '.join(missing)} (present: "
            f"{', '.join(present)})"
        )
    values = {field: table.numbers(name) for field, name in CTF_COLUMNS.items()}
    try:
        return make_ctf(len(table), **{field: value for field, value in values.items() if value is not None})
    except ValueError as error:
        raise ValueError(f"{table.source}: {error}") from error


def read_rotations(table):
    """Poses of a table's particles, or None if it has not all three Euler angles.

    Psi alone, as picking leaves it, is no pose.
    """
    present = [name for name in ANGLES if name in table]
    if present in ([], ["rlnAnglePsi"]):
        return None
    if len(present) < 3:
        missing = [name for name in ANGLES if name not in present]
        raise ValueError(f"{table.source}: poses are incomplete, columns missing: {', '.join(missing)}")
    return rotations_from_relion(np.stack([table.numbers(name) for name in ANGLES], axis=1))


def read_shifts(table, pixel_size):
    """Shifts in pixels, which are minus RELION's origins, or None if the table has no origins."""
    for names, in_angstrom in ((ORIGINS_ANGST, True), (ORIGINS_PIXELS, False)):
        present = [name for name in names if name in table]
        if not present:
            continue
        if len(present) == 1:
            missing = next(name for name in names if name not in present)
            raise ValueError(f"{table.source}: shifts are incomplete, column missing: {missing}")
        origins = np.stack([table.numbers(name) for name in names], axis=1)
        if in_angstrom and origins.any():
            if pixel_size is None:
                raise ValueError(
                    f"{table.source}: {', '.join(names)} are in Angstrom and the file has no pixel size; "
                    "give pixel_size"
                )
            origins /= pixel_size
        return 0.0 - origins  # without the sign of minus zero
    return None


def warn_of_ctf_state(table):
    """Warn where the images are not raw."""
    for name, what in (
        ("rlnCtfDataAreCtfPremultiplied", "multiplied by their CTF"),
        ("rlnCtfDataArePhaseFlipped", "phase-flipped"),
    ):
        values = table.numbers(name)
        if values is not None and values.any():
            warnings.warn(
                f"{table.source}: {name} says that {np.count_nonzero(values)} images are {what} already; "
                "the CTF of the stack describes the raw image",
                UserWarning,
                stacklevel=3,
            )


def make_columns(n, ctf, optics, groups=None):
    """Columns of new particles and their optics groups, one for each setting of the microscope.

    Parameters
    ----------
    n : int
        Number of particles.
    ctf : structured array or None
        Without one there are no defocus columns, and the optics groups have 300 kV and Cs 2.7 mm, because
        RELION reads no file without these (its own projections have the same).
    optics : dict of str to str
        What all groups share: pixel size, image size.
    groups : int array of shape (n,), default=None
        Exposure groups that are kept apart.

    Returns
    -------
    columns, optics : dict of str to list of str
    """
    settings = np.zeros(n, dtype=[("group", "i8"), *((field, "f8") for field in _OPTICS_FIELDS)])
    if groups is not None:
        settings["group"] = groups
    columns = {}
    if ctf is not None:
        for field in _OPTICS_FIELDS:
            settings[field] = ctf[field]
        columns = {
            name: decimals(ctf[field]) for field, name in CTF_COLUMNS.items() if field not in _OPTICS_FIELDS
        }
    settings, group = np.unique(settings, return_inverse=True)
    numbers = [str(i + 1) for i in range(len(settings))]
    columns["rlnOpticsGroup"] = np.array(numbers, dtype=_TEXT)[group]
    table = {"rlnOpticsGroup": numbers, "rlnOpticsGroupName": [f"opticsGroup{number}" for number in numbers]}
    if ctf is not None:
        for field in _OPTICS_FIELDS:
            table[CTF_REQUIRED[field]] = decimals(settings[field]).tolist()
    else:
        table["rlnVoltage"] = decimals([300.0]).tolist() * len(settings)
        table["rlnSphericalAberration"] = decimals([2.7]).tolist() * len(settings)
    for name, value in optics.items():
        table[name] = [value] * len(settings)
    return columns, table


def update_table(table, *, pixel_size, labels=None, rotations=None, psi=None, shifts=None, ctf=None):
    """Table with new classes, poses, shifts and CTF in its own dialect; what is None stays untouched.

    Parameters
    ----------
    table : StarTable
    pixel_size : float or None
        Of the images that `shifts` are counted in.
    labels : int array of shape (n,), default=None
        Classes from 0, written from 1.
    rotations : array of shape (n, 3, 3), default=None
    psi : array of shape (n,), default=None
        In degrees, for alignments in the plane: rlnAngleRot and rlnAngleTilt, where they are, become 0.
    shifts : array of shape (n, 2), default=None
        In pixels.
    ctf : structured array, default=None

    Returns
    -------
    StarTable
    """
    columns = {}
    if labels is not None:
        columns["rlnClassNumber"] = np.array([str(label + 1) for label in labels.tolist()], dtype=_TEXT)
    if rotations is not None:
        columns.update(zip(ANGLES, map(decimals, relion_from_rotations(rotations).T)))
    elif psi is not None:
        zero = np.zeros(len(table))
        columns.update({name: decimals(zero) for name in ANGLES[:2] if name in table})
        columns["rlnAnglePsi"] = decimals(psi)
    if shifts is not None:
        columns.update(_origin_columns(table, shifts, pixel_size))
    if ctf is not None:
        columns.update(_changed_ctf(table, ctf))
    return table.with_columns(columns)


def _origin_columns(table, shifts, pixel_size):
    present = [names for names in (ORIGINS_ANGST, ORIGINS_PIXELS) if any(name in table for name in names)]
    if not present:
        present = [ORIGINS_ANGST if table.optics is not None else ORIGINS_PIXELS]
    columns = {}
    for names in present:
        if names is ORIGINS_ANGST:
            if pixel_size is None and np.any(shifts):
                raise ValueError(
                    f"shifts are written in Angstrom ({', '.join(names)}): the pixel size is needed"
                )
            scale = pixel_size or 1.0
        else:
            own = read_pixel_size(table)
            scale = 1.0 if own is None or pixel_size is None else pixel_size / own
        columns.update(zip(names, map(decimals, -scale * shifts.T)))
    return columns


def _changed_ctf(table, ctf):
    """Columns of the particles for those CTF parameters that differ from the table's."""
    columns = {}
    old = read_ctf(table)
    for field in CTF_DTYPE.names:
        if old is not None and np.allclose(old[field], ctf[field], rtol=1e-6, atol=1e-6):
            continue
        name = CTF_COLUMNS[field]
        if name not in table and table.has(name):
            raise ValueError(
                f"the stack's CTF has another {field} than {name} in the optics table of {table.source}, "
                "which is kept as it is: write a new STAR file without metadata "
                "(stack.replace(metadata=None))"
            )
        if old is None and field not in CTF_REQUIRED and not np.any(ctf[field] - (field == "scale")):
            continue
        columns[name] = decimals(ctf[field])
    return columns


def in_plane_psi(angles):
    """RELION's psi, in degrees, of images that are class averages rotated by `angles` (radians)."""
    return relion_from_rotations(in_plane_rotation(-np.asarray(angles, dtype=np.float64)))[:, 2]


def decimals(values):
    """Numbers as RELION writes them."""
    values = np.asarray(values, dtype=np.float64) + 0.0  # no minus zero
    return np.array([f"{value:.6f}" for value in values.tolist()], dtype=_TEXT)
