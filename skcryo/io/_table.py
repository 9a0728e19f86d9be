"""The particle table of a STAR file: every column as the text that was read, in order.

gemmi parses the file; values stay the text they were, so that what is written back is what was given.
"""

import os
import re

import gemmi
import numpy as np
from numpy.dtypes import StringDType

from ._mrc import check_is_file

__all__ = ["StarTable", "read_star"]

_TEXT = StringDType()
_MAX_NAMED = 5
_RESERVED = re.compile(r"(data_|save_|loop_$|stop_$|global_$|[?.]$)", re.IGNORECASE)


class StarTable:
    """Columns of the particles of a STAR file, one row per particle, with the rest of the file.

    It is what ``stack.metadata`` holds, sliced along with the stack, and what is written back by
    :func:`write_star`. It has the columns of the particle table; values that RELION keeps once per optics
    group are in `optics`, and :meth:`numbers` finds both.

    Parameters
    ----------
    columns : dict of str to sequence of str
        Values as they stand in the file, by the name of the column without underscore ("rlnImageName").
    optics : dict of str to list of str, default=None
        The table of optics groups; None in files up to RELION 3.0.
    block : str, default="particles"
        Name of the particle table.
    layout : tuple, default=("optics", "particles")
        Order of the tables in the file; further tables stand in it as they are.
    version : int, default=None
        RELION's "# version" remark.
    source : str, default=""
        The file, for messages.

    Examples
    --------
    >>> from skcryo.io import StarTable
    >>> table = StarTable({"rlnMicrographName": ["007", "008"], "rlnDefocusU": ["15000.0", "1.6e4"]})
    >>> table["rlnMicrographName"][0], table.numbers("rlnDefocusU").tolist()
    ('007', [15000.0, 16000.0])
    >>> len(table[1:]), table.names
    (1, ['rlnMicrographName', 'rlnDefocusU'])
    """

    def __init__(self, columns, *, optics=None, block="particles", layout=None, version=None, source=""):
        self._columns = {name: np.asarray(values, dtype=_TEXT) for name, values in columns.items()}
        lengths = {name: len(values) for name, values in self._columns.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"columns differ in length: {lengths}")
        self._n = next(iter(lengths.values()), 0)
        self.optics = optics
        self.block = block
        self.layout = layout or (("optics", "particles") if optics else ("particles",))
        self.version = version
        self.source = source
        # Where the images are: set by load_particles, kept row by row.
        self.image_files = ()
        self.image_file_index = None
        self._optics_rows = None

    def __len__(self):
        return self._n

    def __contains__(self, name):
        return name in self._columns

    @property
    def names(self):
        """Names of the columns, in order."""
        return list(self._columns)

    def __getitem__(self, key):
        """Column as an array of texts if `key` is a name, else the table of some rows."""
        if isinstance(key, str):
            return _unquoted(self.raw(key))
        new = self._copy({name: values[key] for name, values in self._columns.items()})
        if self.image_file_index is not None:
            new.image_file_index = self.image_file_index[key]
        return new

    def __repr__(self):
        return f"StarTable({len(self)} rows, {len(self._columns)} columns)"

    def raw(self, name):
        """Column `name` as it stands in the file, quotes included."""
        try:
            return self._columns[name]
        except KeyError:
            raise KeyError(f"no column {name!r}; the columns are {', '.join(self._columns)}") from None

    def numbers(self, name):
        """Column `name`, of the particles or else of their optics groups, as float64.

        Returns
        -------
        ndarray of shape (n,), float64, or None
            None if there is no such column.

        Raises
        ------
        ValueError
            If a value is no finite number; the message names file, row and column.
        """
        if name in self._columns:
            return self._to_numbers(self[name], name, "particle row")
        if self.optics is None or name not in self.optics:
            return None
        groups, where = np.unique(self.optics_rows(), return_inverse=True)
        texts = _unquoted(np.asarray([self.optics[name][g] for g in groups], dtype=_TEXT))
        return self._to_numbers(texts, name, "optics table, value")[where]

    def has(self, name):
        """Whether particles or optics groups have the column `name`."""
        return name in self._columns or (self.optics is not None and name in self.optics)

    def optics_rows(self):
        """Row of the optics table of each particle."""
        if self._optics_rows is None:
            self._optics_rows = self._find_optics_rows()
        return self._optics_rows

    def _find_optics_rows(self):
        if "rlnOpticsGroup" not in self._columns:
            if len(self.optics["rlnOpticsGroup"]) == 1:
                return np.zeros(len(self), dtype=np.int64)
            raise ValueError(f"{self.source}: particles have no rlnOpticsGroup but there are several groups")
        groups = list(map(str, _unquoted(np.asarray(self.optics["rlnOpticsGroup"], dtype=_TEXT))))
        row_of = {group: row for row, group in enumerate(groups)}
        if len(row_of) != len(groups):
            raise ValueError(f"{self.source}: an rlnOpticsGroup is there twice in the optics table: {groups}")
        used, where = np.unique(self["rlnOpticsGroup"], return_inverse=True)
        for i, group in enumerate(used):
            if group not in row_of:
                row = int(np.flatnonzero(where == i)[0])
                raise ValueError(
                    f"{self.source}: particle row {row + 1}: rlnOpticsGroup {group} is not in the optics "
                    "table"
                )
        return np.array([row_of[group] for group in used], dtype=np.int64)[where]

    def with_columns(self, columns):
        """Copy with columns replaced where they stand, or added behind.

        Parameters
        ----------
        columns : dict of str to sequence of str
            Values as they are to stand in the file.
        """
        for name, values in columns.items():
            if len(values) != len(self):
                raise ValueError(
                    f"column {name} has {len(values)} values but there are {len(self)} particles"
                )
        new = self._copy({**self._columns, **columns})
        new.image_file_index = self.image_file_index
        return new

    def without_columns(self, names):
        """Copy without some columns.

        Parameters
        ----------
        names : collection of str
        """
        new = self._copy({name: v for name, v in self._columns.items() if name not in names})
        new.image_file_index = self.image_file_index
        return new

    def with_optics(self, optics):
        """Copy with another table of optics groups."""
        new = self.with_columns({})
        new.optics = optics
        new._optics_rows = None
        return new

    def _copy(self, columns):
        new = StarTable(
            columns,
            optics=self.optics,
            block=self.block,
            layout=self.layout,
            version=self.version,
            source=self.source,
        )
        new.image_files = self.image_files
        return new

    def _to_numbers(self, texts, name, what):
        try:
            values = texts.astype(np.float64)
        except ValueError:
            values = None
        if values is None or not np.isfinite(values).all():
            for row, text in enumerate(texts):
                try:
                    value = float(text)
                except ValueError:
                    value = np.nan
                if not np.isfinite(value):
                    raise ValueError(
                        f"{self.source}: {what} {row + 1}: {name} is {text!r}, it must be a finite number"
                    )
        return values

    @classmethod
    def concatenate(cls, tables):
        """One table of several with the same columns; optics groups are joined, and renumbered if need be.

        Parameters
        ----------
        tables : list of StarTable

        Raises
        ------
        ValueError
            If the columns differ, or some have optics groups and some not.
        """
        first = tables[0]
        for table in tables[1:]:
            differ = sorted(set(table.names) ^ set(first.names))
            if differ:
                raise ValueError(f"{table.source} and {first.source} differ in the columns {_listed(differ)}")
            if (table.optics is None) != (first.optics is None):
                raise ValueError(
                    f"{table.source} and {first.source} cannot be joined: only one of them has optics "
                    "groups (RELION 3.1); convert the other with relion_convert_star"
                )
        groups = [None] * len(tables)
        optics = first.optics
        if optics is not None:
            optics, groups = _join_optics(tables)
        columns = {name: np.concatenate([table.raw(name) for table in tables]) for name in first.names}
        new = first._copy(columns)
        new.optics = optics
        if "rlnOpticsGroup" in columns and optics is not None:
            new = new.with_columns({"rlnOpticsGroup": np.concatenate(groups)})
        if all(table.image_file_index is not None for table in tables):
            files = {}
            index = []
            for table in tables:
                place = [files.setdefault(path, len(files)) for path in table.image_files]
                index.append(np.array(place, dtype=np.int32)[table.image_file_index])
            new.image_files = tuple(files)
            new.image_file_index = np.concatenate(index)
        new.source = ", ".join(dict.fromkeys(table.source for table in tables))
        return new


def _join_optics(tables):
    """Optics table of several tables, and the group of each particle in it."""
    first = tables[0].optics
    joined = {name: list(values) for name, values in first.items()}
    facts = [name for name in joined if name not in ("rlnOpticsGroup",)]
    groups = []
    for table in tables:
        optics = table.optics
        differ = sorted(set(optics) ^ set(joined))
        if differ:
            raise ValueError(
                f"the optics tables of {table.source} and {tables[0].source} differ in the columns "
                f"{_listed(differ)}"
            )
        new_group = []
        for row in range(len(optics["rlnOpticsGroup"])):
            known = list(zip(*(joined[name] for name in facts))) if facts else []
            fact = tuple(optics[name][row] for name in facts)
            if fact in known:
                new_group.append(joined["rlnOpticsGroup"][known.index(fact)])
                continue
            number = str(max((int(g) for g in joined["rlnOpticsGroup"]), default=0) + 1)
            if optics["rlnOpticsGroup"][row] not in joined["rlnOpticsGroup"]:
                number = optics["rlnOpticsGroup"][row]
            for name in facts:
                joined[name].append(optics[name][row])
            joined["rlnOpticsGroup"].append(number)
            if "rlnOpticsGroupName" in joined:
                names = joined["rlnOpticsGroupName"]
                if names[-1] in names[:-1]:
                    names[-1] = f"{names[-1]}_{number}"
            new_group.append(number)
        groups.append(np.asarray(new_group, dtype=_TEXT)[table.optics_rows()])
    return joined, groups


class _Block:
    """A table of a STAR file that is only passed on."""

    def __init__(self, name, pairs, loops):
        self.name = name
        self.pairs = pairs
        self.loops = loops

    def table(self, tag=None):
        """Columns of the loop that has `tag` (or the first), or the pairs as a loop of one row."""
        for loop in self.loops:
            if tag is None or tag in loop:
                return loop
        pairs = {name: [value] for name, value in self.pairs}
        return pairs if pairs and (tag is None or tag in pairs) else None


def read_star(path):
    """Read the particles of a STAR file, without their images.

    Parameters
    ----------
    path : str or path-like

    Returns
    -------
    StarTable

    Raises
    ------
    ValueError
        If the file cannot be parsed or has no table with rlnImageName; the message names file and line.

    See Also
    --------
    load_particles : The images too.
    """
    path = check_is_file(path, "STAR file")
    try:
        document = gemmi.cif.read(path)
        blocks = [_read_block(block) for block in document]
    except (ValueError, RuntimeError, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a valid STAR file: {_ragged_row(path) or error}") from error
    found = [block for block in blocks if block.table("rlnImageName") is not None]
    for name in ("particles", "images"):
        if len(found) > 1 and sum(block.name == name for block in found) == 1:
            found = [block for block in found if block.name == name]
    if len(found) != 1:
        tables = ", ".join(f"data_{block.name}" for block in blocks) or "none"
        what = "no table with" if not found else "several tables with"
        raise ValueError(f"{path}: {what} the column rlnImageName (tables: {tables}); no particle table")
    particles = found[0]
    columns = particles.table("rlnImageName")
    if not len(columns["rlnImageName"]):
        raise ValueError(f"{path}: the particle table data_{particles.name} is empty")
    optics, layout = None, []
    for block in blocks:
        if block is particles:
            rest = [loop for loop in block.loops if loop is not columns]
            if rest or (block.pairs and block.loops):
                raise ValueError(
                    f"{path}: data_{block.name} has more than one table, particles need their own"
                )
            layout.append("particles")
        elif block.name == "optics" and block.table("rlnOpticsGroup") is not None:
            optics = {name: list(values) for name, values in block.table("rlnOpticsGroup").items()}
            layout.append("optics")
        else:
            layout.append(block)
    if optics is not None and not optics["rlnOpticsGroup"]:
        raise ValueError(f"{path}: the table data_optics is empty")
    return StarTable(
        columns,
        optics=optics,
        block=particles.name,
        layout=tuple(layout),
        version=_version(path),
        source=path,
    )


def _read_block(block):
    pairs, loops = [], []
    for item in block:
        if item.pair is not None:
            pairs.append((item.pair[0].removeprefix("_"), item.pair[1]))
        elif item.loop is not None:
            tags = list(item.loop.tags)
            if len(set(tags)) != len(tags):
                twice = sorted({tag for tag in tags if tags.count(tag) > 1})
                raise ValueError(f"data_{block.name} has the column {', '.join(twice)} twice")
            loops.append({tag.removeprefix("_"): list(block.find_values(tag)) for tag in tags})
    return _Block(block.name.strip(), tuple(pairs), tuple(loops))


def _ragged_row(path):
    """The first line of a loop that has not one value a column, in words, if that is what is wrong."""
    tags, row, in_loop = 0, 0, False
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                text = line.split(" #")[0].strip()
                if text.startswith(("data_", "loop_")):
                    tags, row, in_loop = 0, 0, text.startswith("loop_")
                elif in_loop and text.startswith("_"):
                    tags += 1
                elif in_loop and tags and text and not text.startswith("#"):
                    row += 1
                    values = len(re.findall(r"'[^']*'(?!\S)|\"[^\"]*\"(?!\S)|\S+", text))
                    if values != tags:
                        return (
                            f"line {number} (row {row} of its table) has {values} values for {tags} columns"
                        )
    except (OSError, UnicodeDecodeError):
        return None
    return None


def _version(path):
    with open(path, "rb") as file:
        found = re.search(rb"^# version (\d+)\s*$", file.read(65536), re.MULTILINE)
    return int(found.group(1)) if found else None


def _unquoted(texts):
    quoted = np.strings.startswith(texts, "'") | np.strings.startswith(texts, '"')
    quoted |= np.strings.startswith(texts, ";")
    if not quoted.any():
        return texts
    texts = texts.copy()
    for row in np.flatnonzero(quoted):
        texts[row] = gemmi.cif.as_string(str(texts[row]))
    return texts


def token(text):
    """`text` as a value of a STAR file: quoted only where it must be, because RELION keeps quotes as text."""
    plain = re.fullmatch(r"[^\s'\"#$_;\[\]]\S*", text) and not _RESERVED.match(text)
    return text if plain else gemmi.cif.quote(text)


def _listed(names):
    more = len(names) - _MAX_NAMED
    return ", ".join(names[:_MAX_NAMED]) + (f" and {more} more" if more > 0 else "")


def write_table(path, table):
    """Write a StarTable to `path`, all its tables in their order; the caller sees to the file's name."""
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        for entry in table.layout:
            if entry == "optics":
                entry = _Block("optics", (), (table.optics,))
            elif entry == "particles":
                entry = _Block(table.block, (), ({name: table.raw(name) for name in table.names},))
            if table.version is not None:
                file.write(f"\n# version {table.version}\n")
            file.write(f"\ndata_{entry.name}\n\n")
            for name, value in entry.pairs:
                file.write(f"_{name} {value}\n")
            for loop in entry.loops:
                file.write("loop_ \n")
                file.writelines(f"_{name} #{number} \n" for number, name in enumerate(loop, 1))
                columns = [
                    values.tolist() if hasattr(values, "tolist") else values for values in loop.values()
                ]
                file.writelines(_line(row) for row in zip(*columns))
                file.write("\n")
            if entry.pairs and not entry.loops:
                file.write("\n")
        file.flush()
        os.fsync(file.fileno())


def _line(row):
    line = " ".join(row) + " \n"
    if "\n;" in line or line.startswith(";"):  # text fields stand on lines of their own
        line = "".join(f"\n{value}\n" if "\n" in value else f"{value} " for value in row) + "\n"
    return line
