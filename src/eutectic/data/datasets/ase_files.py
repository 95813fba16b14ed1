"""The user's own structures: any file that ASE reads (extxyz, db, traj, json, VASP output, …), fairchem's `.aselmdb`,
or a folder of these, perhaps with a table of their labels (`id_prop.csv`, see `eutectic.data.formats.id_prop`).

The label of each property of `eutectic.atoms.PROPERTIES` is the first of: `REF_<property>`, `dft_<property>`,
`<property>` in `atoms.info` or `atoms.arrays`; the results in `atoms.calc`; for the stress also `REF_virials` and
`virials` (σ = −W/V). Energies are in eV, forces in eV/Å, stress in eV/Å³ with tension positive, as in ASE, unless
other units are given; custom properties are in the unit of their definition. Names such as `mace_energy` are
predictions, not labels.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.stress import voigt_6_to_full_3x3_stress

from eutectic.atoms import PROPERTIES, EutecticError, LabelledStructure, Property, Structure
from eutectic.atoms.units import as_typed
from eutectic.data import own_files
from eutectic.data.card import Card
from eutectic.data.dataset import File, Piece
from eutectic.data.formats import id_prop, structure_files
from eutectic.data.formats.elements import Elements, formula
from eutectic.data.formats.structure_files import Entries
from eutectic.data.splits import TEST_SHARE

PREFIXES = ("REF_", "dft_", "")
VIRIALS = ("REF_virials", "REF_virial", "virials", "virial")
_TRUTH = {"true": 1.0, "t": 1.0, "false": 0.0, "f": 0.0}
LABEL_LIKE = ("energy", "energies", "force", "forces", "stress", "virial", "virials")
MOST_NAMES = 1000  # entries of structures that an error may list
MOST_IN_A_ROW = 20  # unreadable structures, after which the rest of a file is given up


@dataclass(frozen=True, kw_only=True)
class LabelsFound:
    """Contents of a source, from `scan`.

    Attributes:
        structures: number of structures in all files.
        files: number of files read.
        counts: property → key in the files → number of structures.
        ignored: key that looks like a label but is not used → number of structures.
        groups: number of groups.
        largest_group: structures in the largest group.
        skipped: files of a folder without structures.
        of_file: structures in each file, in order; None for a file that could not be read to its end.
        table: labels of files in a table beside them.
    """

    structures: int
    files: int
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    ignored: Mapping[str, int] = field(default_factory=dict)
    groups: int = 0
    largest_group: int = 0
    skipped: tuple[str, ...] = ()
    of_file: Mapping[Path, int | None] = field(default_factory=dict)
    table: id_prop.Labels = field(default_factory=dict)

    def rows(self) -> list[tuple[str, str, int, str]]:
        """Table rows: property, key, structures, unit."""
        return [(name, key, n, PROPERTIES[name].unit) for name, keys in self.counts.items() for key, n in keys.items()]


def scan(
    source: Path,
    keys: Mapping[str, str] | None = None,
    group_key: str | None = None,
    *,
    units: Mapping[str, str] | None = None,
    elements: Elements | None = None,
    defined: Sequence[Property] = (),
    skip_bad: bool = False,
) -> LabelsFound:
    """Read a source once and count its labels.

    Args:
        source: a file or a folder.
        keys, group_key, units, elements: as for `read`.
        defined: custom properties, which must have labels.
        skip_bad: leave out structures that cannot be used; only those that can are counted.

    Raises:
        EutecticError: as `read`; no label at all, none under a given key, or none of a defined property.
    """
    keys, units = _checked(keys, units)
    counts: dict[str, Counter[str]] = {}
    ignored: Counter[str] = Counter()
    groups: Counter[str] = Counter()
    files, skipped, table = _files(Path(source))
    of_file: dict[Path, int | None] = {}
    entries: dict[str, None] = {}
    for file in files:
        number: int | None = 0
        for item in _every(file, _root(files), elements, skip_bad, table):
            if item is None or number is None:
                number = None
                break
            number += 1
            if isinstance(item, EutecticError):
                continue
            name, where, atoms, info = item
            if len(entries) < MOST_NAMES:
                entries |= dict.fromkeys(_entries(atoms, info))
            try:
                used = _find(atoms, info, keys, units, where)
                group = _group(name, atoms, info, group_key, len(files) > 1, where)
                if skip_bad:
                    labels = {label: value for label, (_, value) in used.items()}
                    LabelledStructure(structure=_structure(atoms), labels=labels, id=name, group=group).check(where)
            except EutecticError:
                if not skip_bad:
                    raise
                continue
            for label, (key, _) in used.items():
                counts.setdefault(label, Counter())[key] += 1
            ignored.update(_unused(atoms, info, {key for key, _ in used.values()}))
            groups[group] += 1
        of_file[file] = number
    tried = {name: _candidates(name, keys) for name in PROPERTIES}
    own_files.check_matches(str(source), keys, defined, counts, entries, tried)
    if not counts:
        raise _no_labels(Path(source), ignored)
    return LabelsFound(
        structures=groups.total(),
        files=len(files),
        counts={name: dict(counts[name]) for name in PROPERTIES if name in counts},
        ignored=dict(ignored),
        groups=len(groups),
        largest_group=max(groups.values(), default=0),
        skipped=tuple(skipped),
        of_file=of_file,
        table=table,
    )


@dataclass(frozen=True, kw_only=True)
class AseFiles:
    """A source as a `Dataset`, with the user's options.

    Attributes:
        source: a file or a folder.
        found: its contents, from `scan`.
        keys, group_key, units, elements: as for `read`.
        defined: custom properties defined for these files.
        level_of_theory: level of theory of the labels, which the files do not state.
    """

    source: Path
    found: LabelsFound
    keys: Mapping[str, str] = field(default_factory=dict)
    group_key: str | None = None
    units: Mapping[str, str] = field(default_factory=dict)
    elements: Elements = field(default_factory=dict)
    defined: tuple[Property, ...] = ()
    level_of_theory: str = "not stated"

    def names(self) -> tuple[str, ...]:
        """One data set."""
        return ("ase",)

    def card(self, name: str) -> Card:
        """Card from the contents, with the given level of theory."""
        return card(self.source, self.found, units=self.units, level_of_theory=self.level_of_theory)

    def files(self, name: str) -> tuple[File, ...]:
        """None: the files are the user's own."""
        return ()

    def pieces(self, source: Path, name: str) -> list[Piece]:
        """The files; those with random access with their number of structures."""
        return [
            Piece(path=file, count=count if structure_files.format_of(file) in structure_files.SEEKABLE else None)
            for file, count in self.found.of_file.items()
        ]

    def read(self, piece: Piece, name: str) -> Iterator[LabelledStructure]:
        """The structures of a file, or of a part of it; unchecked."""
        files = list(self.found.of_file)
        several = len(files) > 1
        options = (self.keys, self.group_key, self.units, self.elements)
        rows = _rows(piece.path, _root(files), several, *options, self.found.table, piece.first, piece.count)
        yield from (row for _, row in rows)

    def published_splits(self, source: Path, name: str) -> Mapping[str, Mapping[str, np.ndarray]]:
        """None."""
        return {}


def check_stated(source: Path, found: LabelsFound, units: Mapping[str, str] | None) -> None:
    """Require the units of labels from a table: ASE's units hold for ASE's files only.

    Raises:
        EutecticError: names the properties, and how to state their units.
    """
    of_table = {entry for entries in found.table.values() for entry in entries}
    missing = [
        name
        for name, entries in found.counts.items()
        if of_table & set(entries) and own_files.unit_required(name) and name not in (units or {})
    ]
    if missing:
        raise EutecticError(
            str(source),
            f"no unit of {', '.join(missing)}, whose values are in a table",
            "information that is missing from the files and must not be guessed",
            "give their units: " + " ".join(f"--unit {n}={as_typed(PROPERTIES[n].unit)}" for n in missing),
        )


def card(
    source: Path,
    found: LabelsFound,
    *,
    units: Mapping[str, str] | None = None,
    level_of_theory: str = "not stated",
    licence: str = "not stated",
    citation: str = "not stated",
) -> Card:
    """Card of a source, from the contents found by `scan`.

    Args:
        source: the file or folder.
        found: its contents.
        units: as for `read`.
        level_of_theory: level of theory of the labels, which the files do not state.
        licence: SPDX identifier or free text.
        citation: reference to cite.
    """
    # The largest group goes to training: with one trajectory and a few isolated atoms nothing is left for the test.
    few = found.groups < 3 or found.structures - found.largest_group < 2 * TEST_SHARE * found.structures
    notes = own_files.notes(found.counts, units or {}, assumed=True)
    if found.skipped:
        more = f" and {len(found.skipped) - 5} more" if len(found.skipped) > 5 else ""
        notes.append(f"not read as structures: {', '.join(found.skipped[:5])}{more}")
    if found.ignored:
        notes.append("not used as labels: " + ", ".join(f"{k} ({n})" for k, n in found.ignored.items()))
    if few:
        notes.append("Nearly all is one group: the split is random, with structures of one trajectory on both sides.")
    return Card(
        name=Path(source).stem or "ase",
        title=f"Structures from {Path(source).name}",
        domain="user",
        properties=tuple(found.counts),
        level_of_theory=level_of_theory,
        licence=licence,
        citation=citation,
        source=Path(source).name,
        default_split="random" if few else "group",
        notes=tuple(notes),
    )


def read(
    source: Path,
    keys: Mapping[str, str] | None = None,
    group_key: str | None = None,
    units: Mapping[str, str] | None = None,
    elements: Elements | None = None,
) -> Iterator[LabelledStructure]:
    """Every structure with its labels; files of a folder sorted by name.

    Forces are those of the calculation, also on fixed atoms (as `get_forces(apply_constraint=False)`). Tags
    are kept if all are 0, 1 or 2, as in OC20; else (layers of a surface builder) every atom has tag 2.

    Args:
        source: a file or a folder.
        keys: property → key in `info`, `arrays` or the results, instead of the usual ones; "" leaves it out.
        group_key: entry of `info` that names a structure's group. By default `info["group"]` if present; else the
            file, if there are several; else the chemical formula.
        units: property, "positions" or "cell" (default: as positions) → unit in the files, instead of ASE's, with a
            leading minus to change the sign. The unit of a stress given as virials is an energy.
        elements: type or label of an atom in the files → symbol of its element, where the files do not name it.

    Yields:
        Structures with ids "<file>#<position in the file>".

    Raises:
        EutecticError: no such source; a file that is empty, truncated or of unknown format; an unusable structure or
            label (non-finite, wrong shape, element X, periodic without volume).
    """
    for where, row in rows(source, keys, group_key, units, elements):
        row.check(where)
        yield row


def rows(
    source: Path,
    keys: Mapping[str, str] | None = None,
    group_key: str | None = None,
    units: Mapping[str, str] | None = None,
    elements: Elements | None = None,
) -> Iterator[tuple[str, LabelledStructure]]:
    """As `read`, unchecked: location and structure."""
    keys, units = _checked(keys, units)
    files, _, table = _files(Path(source))
    for file in files:
        yield from _rows(file, _root(files), len(files) > 1, keys, group_key, units, elements, table)


def _checked(
    keys: Mapping[str, str] | None, units: Mapping[str, str] | None
) -> tuple[Mapping[str, str], Mapping[str, str]]:
    """The options, after checking names and units."""
    keys, units = keys or {}, units or {}
    own_files.check_keys(keys)
    own_files.check_units(units)
    if units.get("positions") == "fractional":
        raise EutecticError(
            "--unit positions=fractional",
            "used with files that ASE reads",
            "a unit of length: ASE's positions are Cartesian",
            "leave it out",
        )
    return keys, units


def _rows(
    file: Path,
    root: Path,
    several_files: bool,
    keys: Mapping[str, str],
    group_key: str | None,
    units: Mapping[str, str],
    elements: Elements | None = None,
    table: id_prop.Labels | None = None,
    first: int = 0,
    count: int | None = None,
) -> Iterator[tuple[str, LabelledStructure]]:
    of_positions, of_cell = (
        own_files.length(what, unit) if (unit := units.get(what, units.get("positions"))) else None
        for what in ("positions", "cell")
    )
    for item in _all_atoms(file, root, elements, table, first, count):
        if isinstance(item, EutecticError):
            raise item
        name, where, atoms, info = item
        if of_cell is not None:
            atoms.set_cell(atoms.cell.array * of_cell)
        if of_positions is not None:
            atoms.positions *= of_positions
        labels = {label: value for label, (_, value) in _find(atoms, info, keys, units, where).items()}
        group = _group(name, atoms, info, group_key, several_files, where)
        yield where, LabelledStructure(structure=_structure(atoms), labels=labels, id=name, group=group)


def structures(
    source: Path, elements: Elements | None = None, first: int = 0
) -> Iterator[tuple[str, Atoms, Structure] | EutecticError]:
    """Location, contents as ASE reads them, and structure of every entry from `first` on; no labels, unchecked.

    An entry that cannot be read is an error in its place, where the reading goes on after it.

    Raises:
        EutecticError: as `read`; the rest of the file cannot be read.
    """
    for item in _all_atoms(source, source.parent, elements, first=first):
        if isinstance(item, EutecticError):
            yield item
            continue
        _, where, atoms, entries = item
        # Key-value pairs of a database and fields of a molfile are not in ASE's `info`.
        more = {k: v for k, v in entries.items() if k not in atoms.info and isinstance(v, str | int | float)}
        atoms.info.update(more)
        yield where, atoms, _structure(atoms)


def _structure(atoms: Atoms) -> Structure:
    structure = Structure.from_ase(atoms)
    if np.isin(structure.tags, (0, 1, 2)).all():
        return structure
    return replace(structure, tags=np.full(len(atoms), 2, dtype=np.int64))


def _places(atoms: Atoms, info: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [info, atoms.arrays, atoms.calc.results if atoms.calc is not None else {}]


def _entries(atoms: Atoms, info: Mapping[str, Any]) -> list[str]:
    """Names of entries that may be labels."""
    named = [str(name) for place in _places(atoms, info) for name in place]
    return [name for name in named if name not in ("numbers", "positions")]


def _candidates(name: str, keys: Mapping[str, str]) -> tuple[str, ...]:
    """Possible entries of a property, in order of preference."""
    if name in keys:
        return (keys[name],) if keys[name] else ()
    # Some codes give only the free energy, whose negative gradient the forces are.
    return (*(prefix + name for prefix in PREFIXES), *(("free_energy",) if name == "energy" else ()))


def _find(
    atoms: Atoms, info: Mapping[str, Any], keys: Mapping[str, str], units: Mapping[str, str], where: str
) -> dict[str, tuple[str, np.ndarray]]:
    """Property → its key, and its value in the library's shape and unit."""
    places = _places(atoms, info)
    found: dict[str, tuple[str, np.ndarray]] = {}
    for name, prop in PROPERTIES.items():
        for key in _candidates(name, keys):
            value = next((place[key] for place in places if place.get(key) is not None), None)
            if value is not None:
                label = _shaped(prop, value, len(atoms), f"{where}, {key}")
                if name in units:
                    label = prop.conversion(units[name])(label, len(atoms))
                found[name] = (key, label)
                break
    if "stress" not in found and "stress" not in keys:
        for key in VIRIALS:
            value = next((place[key] for place in places if place.get(key) is not None), None)
            if value is not None and atoms.cell.rank == 3:
                virial = _shaped(PROPERTIES["stress"], value, len(atoms), f"{where}, {key}")
                virial = virial * own_files.of_virials(units.get("stress"), key)
                found["stress"] = (key, -virial / atoms.get_volume())
                break
    return found


def _shaped(prop: Property, value: object, n_atoms: int, where: str) -> np.ndarray:
    shape = prop.shape(n_atoms)
    try:
        if isinstance(value, bool | np.bool_) and not prop.categorical:
            raise ValueError("true or false, or a key without a value")
        if prop.categorical and isinstance(value, str) and (word := value.strip().lower()) in _TRUTH:
            value = _TRUTH[word]
        array = np.asarray(value, dtype=np.float64)
        if prop.rank == 2 and array.shape == (6,):
            return voigt_6_to_full_3x3_stress(array)
        # (1,) for a scalar and (9,) for a tensor are accepted.
        return array.reshape(shape) if _same_numbers(array.shape, shape) else array
    except (ValueError, TypeError) as error:
        raise EutecticError(
            where,
            f"{str(value)[:60]!r} ({error})",
            "a class: true, false, or one of the whole numbers 0, 1, …"
            if prop.categorical
            else f"{prop.name} in {prop.unit}, of shape {shape}",
            "number the classes in the file, from 0"
            if prop.categorical
            else f"a property that is true or false is defined as a class (--define {prop.name}=,class)"
            if isinstance(value, bool | np.bool_)
            else "repair the file, or name another key for this property",
        ) from error


def _same_numbers(given: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether the shapes agree up to flattening or dimensions of size one; (3, n) never equals (n, 3)."""
    alike = [n for n in given if n != 1] == [n for n in shape if n != 1]
    return alike or (len(given) == 1 and given[0] == int(np.prod(shape)))


def _unused(atoms: Atoms, info: Mapping[str, Any], used: set[str]) -> set[str]:
    names = {name for place in _places(atoms, info) for name in place}
    plain = {"free_energy", "energies", "stresses", "magmoms"}
    return {n for n in names - used - plain if n.lower().endswith(LABEL_LIKE)}


def _no_labels(source: Path, ignored: Mapping[str, int]) -> EutecticError:
    return EutecticError(
        str(source),
        f"no label under the usual names; there are {', '.join(sorted(ignored))}" if ignored else "no label",
        "energy, forces, stress or another property: in atoms.calc, or as REF_energy, REF_forces, …",
        "name the key of a property, e.g. --key energy=my_energy",
    )


def _group(name: str, atoms: Atoms, info: Mapping[str, Any], key: str | None, several_files: bool, where: str) -> str:
    if key is not None and key not in info:
        raise EutecticError(
            where,
            f"no entry {key!r}",
            f"one of {', '.join(map(str, info)) or 'none: this structure has no entries'}",
            "name another entry for the groups, or none",
        )
    if (entry := key or "group") in info:
        return str(info[entry])
    return name.rpartition("#")[0] if several_files else formula(atoms.numbers)


def files_of(source: Path) -> list[Path]:
    """All files from which structures and labels of a source are read.

    Raises:
        EutecticError: none here.
    """
    files, _, _ = _files(source)
    return [*files, *id_prop.tables(source)]


def _files(source: Path) -> tuple[list[Path], list[str], id_prop.Labels]:
    """Files to read, names of those that are not, and labels of files in tables."""
    if not source.exists():
        raise EutecticError(str(source), "nothing is here", "a file or folder of structures", "check the path")
    table = id_prop.read(source)
    if table:
        # The tables say what belongs to the data.
        tables = id_prop.tables(source)
        beside = () if source.is_file() else sorted(p for p in source.rglob("*") if p.is_file())
        return list(table), [p.name for p in beside if p not in table and p not in tables], table
    if source.is_file():
        structure_files.format_of(source)
        return [source], [], {}
    files: list[Path] = []
    skipped: list[str] = []
    for file in sorted(p for p in source.rglob("*") if p.is_file() and not p.name.startswith(".")):
        try:
            format_name = structure_files.format_of(file)
        except EutecticError:
            skipped.append(file.name)
            continue
        # Other json files, such as settings, are skipped; a database of ASE ends with its next id.
        if format_name == "json" and b'"nextid"' not in file.read_bytes()[-200:]:
            skipped.append(file.name)
        else:
            files.append(file)
    if not files:
        raise EutecticError(
            str(source),
            f"no file of structures among {len(skipped)} files",
            "extxyz, db, traj, json, or another format of ASE",
            "check the path",
        )
    return files, skipped, {}


def _root(files: list[Path]) -> Path:
    return Path(os.path.commonpath([file.parent for file in files]))


_Item = tuple[str, str, Atoms, Entries]
"""Id, location, structure, and all its entries."""


def _all_atoms(
    file: Path,
    root: Path,
    elements: Elements | None = None,
    table: id_prop.Labels | None = None,
    first: int = 0,
    count: int | None = None,
) -> Iterator[_Item | EutecticError]:
    """The structures of a file, or an error in the place of one."""
    index = first
    for found in structure_files.structures(file, first, count, elements):
        if isinstance(found, EutecticError):
            yield found
        else:
            atoms, entries = found
            if table and index:
                raise EutecticError(
                    str(file),
                    "a second structure",
                    "one structure, to which the labels of its line belong",
                    "divide it",
                )
            more = table[file] if table else {}
            yield (
                f"{file.relative_to(root).as_posix()}#{index}",
                f"{file}, structure {index}",
                atoms,
                {**entries, **more},
            )
        index += 1
    if index == 0 and count != 0:
        raise EutecticError(str(file), "no structures", "at least one", "write it again, or remove it")


def _every(
    file: Path, root: Path, elements: Elements | None, skip_bad: bool, table: id_prop.Labels
) -> Iterator[_Item | EutecticError | None]:
    """As `_all_atoms`; raises the errors, or with `skip_bad` goes on after them, as a preparation does.

    Yields None where the rest of a file is given up.
    """
    first = in_a_row = 0
    while True:
        try:
            for item in _all_atoms(file, root, elements, table, first):
                if isinstance(item, EutecticError) and not skip_bad:
                    raise item
                first, in_a_row = first + 1, 0
                yield item
            return
        except EutecticError as error:
            if not skip_bad:
                raise
            first, in_a_row = first + 1, in_a_row + 1
            if in_a_row >= MOST_IN_A_ROW:
                yield None
                return
            yield error
