"""Read structures with ASE, without silent losses and guesses.

Where ASE would silently drop the rest of a file, it is given one frame at a time (`frames`). Elements and labels that
it makes up are refused or removed: LAMMPS types as hydrogen, helium, …, energies of zero beside the forces of a dump,
atom names as elements, the larger part of a mixed site.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from ase import Atoms

from eutectic.atoms import EutecticError
from eutectic.data.formats import ase_lmdb, cif, elements, frames
from eutectic.data.formats.archives import unpacked
from eutectic.data.formats.elements import Elements

REFUSED = ("bundletrajectory",)
"""Pickle-based formats, which can run arbitrary code when opened."""

SEEKABLE = ("extxyz", "traj", "db", "aselmdb")
"""Formats in which a range is found much faster than it is read."""

COMPRESSED = (".gz", ".bz2", ".xz")

Entries = Mapping[str, Any]
"""All entries of a structure that may be labels or groups, by name."""

_DAMAGED = "it may be truncated or damaged: write it again, or remove the incomplete part"
_RECORDS = (
    "if it holds records (of pymatgen, MatPES, …): eutectic data prepare records --source {file} --store STORE, and "
    "use that store; else "
)


def format_of(file: Path) -> str:
    """ASE's name for a file's format.

    Raises:
        EutecticError: an empty file; a format that is unknown, or that cannot be read safely.
    """
    from ase.io.formats import UnknownFileTypeError, filetype, ioformats

    if file.stat().st_size == 0:
        raise EutecticError(str(file), "an empty file", "structures", "write it again, or remove it")
    if file.suffix == ase_lmdb.SUFFIX:
        return "aselmdb"
    try:
        with unpacked(file) as handle:
            head = handle.read(2000)
        # In full: ASE takes "postgres…" for a database, and "name@1" for a range of the file "name".
        name = _by_content(head) or str(filetype(str(file.absolute())))
    except (UnknownFileTypeError, OSError, EOFError, ValueError):
        name = ""
    if name == "castep-md" and b"BEGIN header" not in head[:200]:
        name = "markdown"  # README.md is not a trajectory of CASTEP, though both end in .md
    if name not in ioformats or name in REFUSED or not ioformats[name].can_read:
        raise EutecticError(
            str(file),
            f"format {name or 'unknown'}",
            "extxyz, db, aselmdb, traj, json, or another format that ASE reads",
            "convert it with ASE (`ase convert`)",
        )
    return name


def _by_content(head: bytes) -> str | None:
    """LAMMPS files by their content, since they have no suffix of their own."""
    if head.startswith((b"ITEM: TIMESTEP", b"ITEM: UNITS")):
        return "lammps-dump-text"
    if re.search(rb"^\s*\d+\s+atoms\s*$", head, re.MULTILINE) and re.search(rb"\bxlo\s+xhi\b|\bavec\b", head):
        return "lammps-data"
    return None


def structures(
    file: Path, first: int = 0, count: int | None = None, stated: Elements | None = None
) -> Iterator[tuple[Atoms, Entries] | EutecticError]:
    """The structures of a file, in order.

    Args:
        file: of any format that ASE reads.
        first, count: range of structures.
        stated: elements of the types or labels in the file.

    Yields:
        A structure with its results in `atoms.calc`, and all its entries; or an error, in the place of a structure that
        cannot be read while those after it can.

    Raises:
        EutecticError: as `format_of`; the rest of the file cannot be read; elements stated for a file that has them.
    """
    name, stated = format_of(file), stated or {}
    stop = None if count is None else first + count
    index = first
    try:
        if name in FRAMED:
            split, parse = FRAMED[name]
            # A byte-order mark is not part of the text.
            with unpacked(file) as handle, io.TextIOWrapper(cast(IO[bytes], handle), encoding="utf-8-sig") as text:
                for frame in islice(split(text), first, stop):
                    yield _parsed(file, index, name, frame, parse, stated)
                    index += 1
            return
        if stated and name not in ("lammps-data", "lammps-dump-binary", "gromacs", "dlp4", "dlp-history"):
            raise elements.unused(str(file))
        for atoms, info in _whole(file, name, first, stop):
            yield _named(atoms, file, name, stated, f"{file}, structure {index}"), info
            index += 1
    except EutecticError:
        raise
    # ASE's readers raise many kinds of exceptions on damaged files.
    except Exception as error:
        raise _unreadable(file, index, name, f"could not be read ({type(error).__name__}: {error})") from error


def _unreadable(file: Path, index: int, name: str, given: str) -> EutecticError:
    fix = _RECORDS.format(file=file) + _DAMAGED if name == "json" and index == 0 else _DAMAGED
    return EutecticError(f"{file}, structure {index}", given, f"a complete file of the format {name}", fix)


# --- formats of many structures, one frame at a time -------------------------------------------------


def _parsed(
    file: Path, index: int, name: str, frame: frames.Frame, parse: _Parser, stated: Elements
) -> tuple[Atoms, Entries] | EutecticError:
    where = f"{file}, structure {index}"
    if frame.problem:
        return _unreadable(file, index, name, frame.problem)
    try:
        return parse(frame.text, stated, where, file)
    except EutecticError as error:
        return error
    # As above: ASE's readers raise many kinds of exceptions on damaged text.
    except Exception as error:
        given = f"line {frame.line}: could not be read ({type(error).__name__}: {error})"
        return _unreadable(file, index, name, given)


def _xyz(text: str, stated: Elements, where: str, file: Path) -> tuple[Atoms, Entries]:
    from ase.io.extxyz import read_xyz

    head, comment, *rows = text.splitlines(keepends=True)
    listed = re.search(r"\bProperties=\"?([^\s\"]+)", comment)
    parts = (listed.group(1) if listed else "species:S:1:pos:R:3").split(":")
    names, kinds, widths = parts[::3], parts[1::3], [int(width) for width in parts[2::3]]
    starts = np.cumsum([0, *widths]).tolist()
    if "species" in names:
        column = starts[names.index("species")]
        labels = [row.split(None, column + 1)[column] for row in rows[: int(head)]]
        # X is ASE's symbol for an unknown element, which the check of the structure refuses.
        if stated or not all(label.capitalize() in {*elements.SYMBOLS, "X"} for label in set(labels)):
            known = {label: label.capitalize() for label in labels if label.capitalize() in elements.SYMBOLS}
            if stated and not set(labels) & set(stated):
                raise elements.unused(where)
            numbers = elements.assigned(labels, {**known, **stated}, where)
            rows = [_with(row, column, elements.symbol(z)) for row, z in zip(rows, numbers.tolist(), strict=False)]
            text = "".join([head, comment, *rows])
    elif stated:
        raise elements.unused(where)
    for start, kind, width in zip(starts, kinds, widths, strict=False):
        if kind == "L":
            _check_logical({word for row in rows[: int(head)] for word in row.split()[start : start + width]})
    atoms = next(read_xyz(io.StringIO(text), 0))
    entries = dict(atoms.info)
    first, held = starts[-1], len(rows[0].split()) if rows else 0
    if held > first and int(head):
        # ASE drops columns that the comment does not name.
        table = [row.split()[first:held] for row in rows[: int(head)]]
        try:
            entries[f"columns {first + 1} to {held}"] = np.array(table, dtype=np.float64)
        except ValueError:
            entries[f"columns {first + 1} to {held}"] = "text"
    return atoms, entries


def _with(row: str, column: int, symbol: str) -> str:
    words = row.split()
    words[column] = symbol
    return " ".join(words) + "\n"


def _check_logical(words: set[str]) -> None:
    # ASE reads other words as False.
    if unexpected := words - {"T", "F", "True", "False"}:
        raise ValueError(f"{min(unexpected)!r} in a column of T or F")


def _lammps_dump(text: str, stated: Elements, where: str, file: Path) -> tuple[Atoms, Entries]:
    from ase.io.lammpsrun import read_lammps_dump_text

    units = "metal"
    if text.startswith("ITEM: UNITS"):
        _, units, text = text.split("\n", 2)
    (columns,) = re.findall(r"^ITEM: ATOMS\s*(.*)$", text, re.MULTILINE)
    named = "element" in columns.split()
    if stated and named:
        raise elements.unused(where)
    # ASE's own guesses need valid types: the elements are set afterwards.
    atoms: Any = read_lammps_dump_text(io.StringIO(text), index=0, units=units.strip())
    if not named:
        masses = None
        if "mass" in columns.split() and not stated:
            at = columns.split().index("mass")
            body = text.split("ITEM: ATOMS", 1)[1].split("\n", 1)[1]
            masses = np.array([float(line.split()[at]) for line in body.splitlines() if line.strip()])
            if "id" in columns.split():
                id_at = columns.split().index("id")
                masses = masses[np.argsort([int(line.split()[id_at]) for line in body.splitlines() if line.strip()])]
        _set_elements(atoms, _types(atoms), stated, masses, where)
    return _without_energy(atoms), atoms.info


def _types(atoms: Atoms) -> list[str]:
    return [str(number) for number in atoms.arrays.get("type", atoms.numbers).tolist()]


def _set_elements(atoms: Atoms, types: list[str], stated: Elements, masses: np.ndarray | None, where: str) -> None:
    """Set the elements of types: as stated, or by their masses."""
    numbers = None if stated or masses is None else elements.of_masses(masses)
    if numbers is None:
        numbers = elements.assigned(types, stated, where)
    atoms.arrays["numbers"][:] = numbers


def _without_energy(atoms: Atoms) -> Atoms:
    """A dump has no total energy: ASE adds a zero beside the forces."""
    if atoms.calc is not None:
        atoms.calc.results.pop("energy", None)
    return atoms


def _xdatcar(text: str, stated: Elements, where: str, file: Path) -> tuple[Atoms, Entries]:
    from ase.io.vasp import read_vasp_xdatcar

    if stated:
        raise elements.unused(where)
    atoms: Any = read_vasp_xdatcar(io.StringIO(text), index=0)
    return atoms, atoms.info


def _pdb(text: str, stated: Elements, where: str, file: Path) -> tuple[Atoms, Entries]:
    from ase.io.proteindatabank import read_proteindatabank

    lines = [line for line in text.splitlines() if line.startswith(("ATOM", "HETATM"))]
    columns = [line[76:78].strip().capitalize() for line in lines]
    labels = [
        symbol if symbol in elements.SYMBOLS else line[12:16].strip()
        for symbol, line in zip(columns, lines, strict=True)
    ]
    complete = all(symbol in elements.SYMBOLS for symbol in columns)
    if stated and complete:
        raise elements.unused(where)
    numbers = elements.assigned(labels, {**{s: s for s in columns if s in elements.SYMBOLS}, **stated}, where, "names")
    # Elements that ASE would guess from names are written into their columns.
    written = iter(elements.symbol(z) for z in numbers.tolist())
    rows = [
        f"{line[:76].ljust(76)}{next(written):>2}" if line.startswith(("ATOM", "HETATM")) else line
        for line in text.splitlines()
    ]
    atoms: Any = read_proteindatabank(io.StringIO("\n".join(rows)), index=0)
    return atoms, atoms.info


def _sdf(text: str, stated: Elements, where: str, file: Path) -> tuple[Atoms, Entries]:
    from ase.io.sdf import read_sdf

    if stated:
        raise elements.unused(where)
    atoms = read_sdf(io.StringIO(text))
    entries: dict[str, Any] = dict(atoms.info)
    for name, value in re.findall(r"^> .*?<(.+?)>.*\n((?:.*\S.*\n?)*)", text, re.MULTILINE):
        try:
            entries[name] = float(value)
        except ValueError:
            entries[name] = value.strip()
    return atoms, entries


def _poscar(text: str, stated: Elements, where: str, file: Path) -> tuple[Atoms, Entries]:
    from ase.io import ParseError
    from ase.io.vasp import atomtypes_outpot, read_vasp

    lines = text.splitlines(keepends=True)
    counts = lines[5].partition("!")[0].split()
    if not all(map(str.isdecimal, counts)):
        if stated:
            raise elements.unused(where)
    else:
        # VASP 4 names no elements; its POTCAR does, or by custom the comment.
        types = [str(number) for number in range(1, len(counts) + 1)]
        symbols = lines[0].split()
        if stated or len(symbols) != len(counts) or not set(symbols) <= elements.SYMBOLS:
            try:
                symbols = [] if stated else atomtypes_outpot(str(file.absolute()), len(counts))
            except (OSError, ValueError, ParseError):
                symbols = []
            if not symbols:
                numbers = elements.assigned(types, stated, where)
                symbols = [elements.symbol(z) for z in numbers.tolist()]
        lines.insert(5, " ".join(symbols) + "\n")
    atoms = read_vasp(io.StringIO("".join(lines)))
    return atoms, atoms.info


_Parser = Callable[[str, Elements, str, Path], tuple[Atoms, Entries]]

FRAMED: Mapping[str, tuple[Callable[[Any], Iterator[frames.Frame]], _Parser]] = {
    "extxyz": (frames.xyz, _xyz),
    "lammps-dump-text": (frames.lammps_dump, _lammps_dump),
    "vasp-xdatcar": (frames.xdatcar, _xdatcar),
    "vasp": (frames.poscar, _poscar),
    "proteindatabank": (frames.pdb, _pdb),
    "sdf": (frames.sdf, _sdf),
    "mol": (frames.sdf, _sdf),
}
"""Text formats that are divided into frames here → functions that divide a file, and read one frame with ASE."""


# --- formats that ASE reads as a whole ----------------------------------------------------------------


def _whole(file: Path, name: str, first: int, stop: int | None) -> Iterator[tuple[Atoms, Entries]]:
    if name in ("db", "json"):
        from ase.db import connect

        # ase.io drops the key-value pairs of a database, which may be the labels.
        limit = None if stop is None else stop - first
        for row in connect(str(file.absolute()), type=name).select(offset=first, limit=limit):
            atoms = row.toatoms()
            yield atoms, {**atoms.info, **row.data, **row.key_value_pairs}
    elif name == "aselmdb":
        yield from ase_lmdb.read_rows(file, first, None if stop is None else stop - first)
    elif name == "cif":
        yield from islice(_cif(file), first, stop)
    else:
        from ase.io import iread
        from ase.io.formats import ioformats

        if name == "traj":
            _check_one_trajectory(file)
        if file.suffix in COMPRESSED:
            # ASE unpacks it as a whole.
            with unpacked(file) as handle:
                while handle.read(1 << 20):
                    pass
        if ioformats[name].single and first:
            return
        for atoms in iread(str(file.absolute()), index=slice(first, stop), format=name, do_not_split_by_at_sign=True):
            yield atoms, atoms.info


def _cif(file: Path) -> Iterator[tuple[Atoms, Entries]]:
    from ase.io.cif import read_cif

    with unpacked(file) as handle:
        content = handle.read()
    with warnings.catch_warnings():
        # ASE warns about settings and dates that do not concern the atoms.
        warnings.simplefilter("ignore")
        found: Any = read_cif(io.BytesIO(content), index=slice(None))
    blocks = re.split(rb"^data_", content, flags=re.MULTILINE | re.IGNORECASE)[1:]
    expected = sum(b"_cell_length_a" in block.lower() for block in blocks)
    for number, atoms in enumerate(found):
        cif.check_full(atoms, f"{file}, structure {number}")
        yield atoms, atoms.info
    if len(found) < expected:
        raise EutecticError(
            f"{file}, structure {len(found)}",
            f"{expected} data blocks with a cell, of which {len(found)} have atoms that ASE reads",
            "atoms in each of them",
            "repair or remove the incomplete block",
        )


def _check_one_trajectory(file: Path) -> None:
    import mmap

    with file.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content[:8] == b"- of Ulm" and (at := content.find(b"- of Ulm", 8)) > 0:
            raise EutecticError(
                str(file),
                f"a second trajectory at byte {at:,}, which ASE does not read",
                "one trajectory in a file",
                "put each in its own file in one folder, or join them with ASE (`ase convert`)",
            )


def _named(atoms: Atoms, file: Path, name: str, stated: Elements, where: str) -> Atoms:
    """The structure with elements that are in the file or stated, not guessed by ASE."""
    if name == "lammps-data":
        labels = _type_labels(file)
        if stated and labels:
            raise elements.unused(where)
        _set_elements(atoms, _types(atoms), {**labels, **stated}, atoms.arrays.get("masses"), where)
    elif name == "lammps-dump-binary":
        _set_elements(_without_energy(atoms), _types(atoms), stated, None, where)
    elif name == "gromacs":
        names = atoms.arrays["atomtypes"].tolist()
        atoms.arrays["numbers"][:] = elements.assigned(names, stated, where, "names")
    elif "dlp4_labels" in atoms.arrays:
        tails = atoms.arrays["dlp4_labels"].tolist()
        names = [elements.symbol(z) + tail for z, tail in zip(atoms.numbers.tolist(), tails, strict=True)]
        atoms.arrays["numbers"][:] = elements.assigned(names, stated, where, "names")
    return atoms


def _type_labels(file: Path) -> dict[str, str]:
    """Elements of a LAMMPS data file by its section `Atom Type Labels`; empty if it has none, or others."""
    with unpacked(file) as handle:
        text = handle.read().decode()
    section = re.search(r"^[ \t]*Atom Type Labels.*\n\s*((?:[ \t]*\d+[ \t]+\S+.*\n)+)", text, re.MULTILINE)
    pairs = [line.split()[:2] for line in section.group(1).splitlines()] if section else []
    labels = dict(pairs)
    return labels if set(labels.values()) <= elements.SYMBOLS else {}
