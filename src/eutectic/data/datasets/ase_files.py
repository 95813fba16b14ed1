"""The user's own structures: any file that ASE reads (extxyz, db, traj, json, VASP output, …), fairchem's `.aselmdb`,
or a folder of these, perhaps with a table of their labels (`id_prop.csv`, see `eutectic.data.formats.id_prop`).

The label of each property of `eutectic.atoms.PROPERTIES` is the first of: `REF_<property>`, `dft_<property>`,
`<property>` in `atoms.info` or `atoms.arrays`; the results in `atoms.calc`; for the stress also `REF_virials` and
`virials` (σ = −W/V, see `eutectic.data.stresses`). Energies are in eV, forces in eV/Å, stress in eV/Å³ with tension
positive, as in ASE, unless other units are given or stated in the files (`eutectic.data.stated_units`); custom
properties are in the unit of their definition. Names such as `mace_energy` are predictions, not labels; charge and
spin are conditions of a calculation (`eutectic.data.conditions`), and a charge is a label only if it is named.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from eutectic.atoms import PROPERTIES, EutecticError, LabelledStructure, Property, Structure
from eutectic.atoms.units import as_typed
from eutectic.data import conditions, own_files, own_labels, stated_units, stresses
from eutectic.data.card import Card
from eutectic.data.dataset import File, Piece
from eutectic.data.formats import convergence, id_prop, structure_files
from eutectic.data.formats.elements import Elements, formula
from eutectic.data.formats.structure_files import Entries
from eutectic.data.own_labels import PREFIXES as PREFIXES
from eutectic.data.splits import TEST_SHARE

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
        units: property, "positions" or "cell" → units stated in the files.
        conditions: charge, spin, level of theory, …: entry → its values, if there are several.
        contradictions: ids of structures whose stress and virial contradict each other.
        contradiction: description of the first of these.
        unconverged: structures whose calculation did not converge → reason; whether they are left out is an option.
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
    units: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    conditions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    contradictions: tuple[str, ...] = ()
    contradiction: str = ""
    unconverged: Mapping[str, str] = field(default_factory=dict)

    def rows(self) -> list[tuple[str, str, int, str]]:
        """Table rows: property, key, structures, unit."""
        return [(name, key, n, PROPERTIES[name].unit) for name, keys in self.counts.items() for key, n in keys.items()]

    def check_consistent(self, source: Path) -> None:
        """Refuse stresses and virials that contradict each other if the user has chosen neither.

        Raises:
            EutecticError: there are such structures.
        """
        if self.contradictions:
            raise EutecticError(
                f"{source}, {self.contradictions[0]}",
                f"{self.contradiction} (in {len(self.contradictions)} structures)",
                "one stress",
                "choose one: --key stress=NAME, or --key virial=NAME; and state its unit, e.g. --unit stress=-kbar or "
                "--unit virial=-eV for a virial of the opposite sign",
            )


def scan(
    source: Path,
    keys: Mapping[str, str] | None = None,
    group_key: str | None = None,
    *,
    units: Mapping[str, str] | None = None,
    elements: Elements | None = None,
    defined: Sequence[Property] = (),
    skip_bad: bool = False,
    skip_unconverged: bool = False,
) -> LabelsFound:
    """Read a source once and count its labels.

    Args:
        source: a file or a folder.
        keys, group_key, units, elements: as for `read`.
        defined: custom properties, which must have labels.
        skip_bad: leave out structures that cannot be used; only those that can are counted.
        skip_unconverged: as for `read`.

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
    seen = _Seen(keys=keys, units=units, skip_unconverged=skip_unconverged)
    for file in files:
        about = _about(file)
        number: int | None = 0
        for item in _scan_items(file, _root(files), elements, skip_bad, table):
            if item is None or number is None:
                number = None
                break
            number += 1
            if isinstance(item, EutecticError):
                continue
            name, where, atoms, info = item
            if len(entries) < MOST_NAMES:
                entries |= dict.fromkeys(own_labels.entries(atoms, info))
            if not seen.wants(name, info, about):
                continue
            try:
                file_units = about.units_of(info)
                to_angstrom(atoms, units, file_units, where)
                used = own_labels.find(atoms, info, keys, units, file_units, where)
                group = _group(name, atoms, info, group_key, len(files) > 1, where)
                if skip_bad:
                    labels = {label: found.value for label, found in used.items()}
                    LabelledStructure(structure=_structure(atoms), labels=labels, id=name, group=group).check(where)
                seen.add(name, where, atoms, info, used, file_units)
            except EutecticError:
                if not skip_bad:
                    raise
                continue
            for label, found in used.items():
                counts.setdefault(label, Counter())[found.entry] += 1
            ignored.update(_unused(atoms, info, {found.entry for found in used.values()}))
            groups[group] += 1
        of_file[file] = number
    tried = {name: own_labels.candidates(name, keys) for name in (*PROPERTIES, stresses.VIRIAL.name)}
    own_files.check_matches(str(source), keys, defined, counts, entries, tried)
    if not counts:
        raise _no_labels(Path(source), ignored, entries, seen)
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
        units={name: tuple(file_units) for name, file_units in seen.file_units.items()},
        conditions=seen.conditions.differing(),
        contradictions=tuple(seen.contradictions),
        contradiction=seen.contradiction,
        unconverged=seen.unconverged,
    )


@dataclass(frozen=True, kw_only=True)
class _About:
    """What a file says about all its structures: units in its metadata, convergence of its steps."""

    units: stated_units.Stated
    convergence: convergence.Convergence

    def units_of(self, info: Mapping[str, Any]) -> stated_units.Stated:
        return {**self.units, **stated_units.stated(info)}

    def unconverged(self, name: str, info: Mapping[str, Any]) -> str:
        """Why a structure's calculation did not converge, or empty."""
        reason = self.convergence.unconverged.get(int(name.rpartition("#")[2]), "")
        return reason or ("one of its entries says so" if convergence.of_entries(info) else "")

    def unfinished(self, file: Path, first: int, count: int | None) -> EutecticError | None:
        """Error in place of the truncated structure; None if the file is complete, or for other ranges."""
        at = self.convergence.steps
        if not self.convergence.unfinished or first > at or (count is not None and first + count <= at):
            return None
        return EutecticError(
            f"{file}, structure {at}",
            self.convergence.unfinished,
            "a complete file",
            "the calculation was stopped, or the file is truncated: write it again, or pass --skip-bad to leave this "
            "structure out",
        )


def _about(file: Path) -> _About:
    state = file.stat()
    return _read_about(file, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=4)
def _read_about(file: Path, size: int, time: int) -> _About:
    form = structure_files.format_of(file)
    return _About(units=stated_units.of_file(file, form), convergence=convergence.of_file(file, form))


@dataclass(eq=False, kw_only=True)
class _Seen:
    """What else a scan finds, see `LabelsFound`."""

    keys: Mapping[str, str]
    units: Mapping[str, str]
    skip_unconverged: bool
    file_units: dict[str, dict[str, None]] = field(default_factory=dict)
    conditions: conditions.Met = field(default_factory=conditions.Met)
    contradictions: list[str] = field(default_factory=list)
    contradiction: str = ""
    unconverged: dict[str, str] = field(default_factory=dict)

    def wants(self, name: str, info: Mapping[str, Any], about: _About) -> bool:
        """Whether the structure is used: it converged, or unconverged ones are not left out."""
        if reason := about.unconverged(name, info):
            self.unconverged[name] = reason
        return not (reason and self.skip_unconverged)

    def add(
        self,
        name: str,
        where: str,
        atoms: Atoms,
        info: Mapping[str, Any],
        used: Mapping[str, own_labels.Label],
        file_units: stated_units.Stated,
    ) -> None:
        """Add a structure that is used."""
        for label, found in used.items():
            if found.stated_unit:
                self.file_units.setdefault(label, {})[found.stated_unit] = None
        for what in own_files.GEOMETRY_UNITS:
            if (unit := stated_units.specific(what, what, file_units)) is not None:
                self.file_units.setdefault(what, {})[unit] = None
        taken = {found.entry for found in used.values()}
        self.conditions.add((str(key), value) for key, value in info.items() if key not in taken)
        words = own_labels.contradiction(atoms, info, self.keys, self.units, file_units, where)
        if words is not None:
            self.contradiction = self.contradiction or words
            self.contradictions.append(name)


@dataclass(frozen=True, kw_only=True)
class AseFiles:
    """A source as a `Dataset`, with the user's options.

    Attributes:
        source: a file or a folder.
        found: its contents, from `scan`.
        keys, group_key, units, elements: as for `read`.
        defined: custom properties defined for these files.
        level_of_theory: level of theory of the labels, which the files do not state.
        skip_unconverged: as for `read`.
    """

    source: Path
    found: LabelsFound
    keys: Mapping[str, str] = field(default_factory=dict)
    group_key: str | None = None
    units: Mapping[str, str] = field(default_factory=dict)
    elements: Elements = field(default_factory=dict)
    defined: tuple[Property, ...] = ()
    level_of_theory: str = "not stated"
    skip_unconverged: bool = False

    def names(self) -> tuple[str, ...]:
        """One data set."""
        return ("ase",)

    def card(self, name: str) -> Card:
        """Card from the contents, with the given level of theory."""
        return card(
            self.source,
            self.found,
            units=self.units,
            level_of_theory=self.level_of_theory,
            skip_unconverged=self.skip_unconverged,
        )

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
        options = (self.keys, self.group_key, self.units, self.elements, self.skip_unconverged)
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
    skip_unconverged: bool = False,
) -> Card:
    """Card of a source, from the contents found by `scan`.

    Args:
        source: the file or folder.
        found: its contents.
        units: as for `read`.
        level_of_theory: level of theory of the labels, which the files do not state.
        licence: SPDX identifier or free text.
        citation: reference to cite.
        skip_unconverged: whether structures that did not converge were left out.
    """
    # The largest group goes to training: with one trajectory and a few isolated atoms, nothing is left for the test.
    few = found.groups < 3 or found.structures - found.largest_group < 2 * TEST_SHARE * found.structures
    notes = own_files.notes(found.counts, units or {}, found.units, assumed=True)
    if found.skipped:
        more = f" and {len(found.skipped) - 5} more" if len(found.skipped) > 5 else ""
        notes.append(f"not read as structures: {', '.join(found.skipped[:5])}{more}")
    if found.ignored:
        notes.append("not used as labels: " + ", ".join(f"{k} ({n})" for k, n in found.ignored.items()))
    if found.conditions:
        notes.append(conditions.note(found.conditions))
    if found.unconverged:
        first = ": ".join(next(iter(found.unconverged.items())))
        notes.append(convergence.note(len(found.unconverged), first, left_out=skip_unconverged))
    if few:
        notes.append(
            "Nearly all structures are in one group: the split is random, with frames of one trajectory on both sides."
        )
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
    skip_unconverged: bool = False,
) -> Iterator[LabelledStructure]:
    """Every structure with its labels; files of a folder sorted by name.

    Forces are those of the calculation, also on fixed atoms (as `get_forces(apply_constraint=False)`). Tags
    are kept if all are 0, 1 or 2, as in OC20; else (layers of a surface builder) every atom has tag 2.

    Args:
        source: a file or a folder.
        keys: property → key in `info`, `arrays` or the results, instead of the usual ones; "" leaves it out. "virial"
            names a virial W = −σV, and "NAME:xx,yy,zz,xy,yz,zx" the order of six numbers (`eutectic.data.stresses`).
        group_key: entry of `info` that names a structure's group. By default `info["group"]` if present; else the
            file, if there are several; else the chemical formula.
        units: property, "virial", "positions" or "cell" (default: as positions) → unit in the files, instead of the
            one that they state, or ASE's; with a leading minus to change the sign.
        elements: type or label of an atom in the files → symbol of its element, where the files do not name it.
        skip_unconverged: leave out structures whose calculation did not converge, as an entry `converged`, or the
            output of VASP or Quantum ESPRESSO, says.

    Yields:
        Structures with ids "<file>#<position in the file>".

    Raises:
        EutecticError: no such source; a file that is empty, truncated or of unknown format; an unusable structure or
            label (non-finite, wrong shape, element X, periodic without volume).
    """
    for where, row in rows(source, keys, group_key, units, elements, skip_unconverged):
        row.check(where)
        yield row


def rows(
    source: Path,
    keys: Mapping[str, str] | None = None,
    group_key: str | None = None,
    units: Mapping[str, str] | None = None,
    elements: Elements | None = None,
    skip_unconverged: bool = False,
) -> Iterator[tuple[str, LabelledStructure]]:
    """As `read`, unchecked: location and structure."""
    keys, units = _checked(keys, units)
    files, _, table = _files(Path(source))
    for file in files:
        options = (keys, group_key, units, elements, skip_unconverged)
        yield from _rows(file, _root(files), len(files) > 1, *options, table)


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
    skip_unconverged: bool = False,
    table: id_prop.Labels | None = None,
    first: int = 0,
    count: int | None = None,
) -> Iterator[tuple[str, LabelledStructure]]:
    about = _about(file)
    for item in _all_atoms(file, root, elements, table, first, count):
        if isinstance(item, EutecticError):
            raise item
        name, where, atoms, info = item
        if skip_unconverged and about.unconverged(name, info):
            continue
        file_units = about.units_of(info)
        to_angstrom(atoms, units, file_units, where)
        used = own_labels.find(atoms, info, keys, units, file_units, where)
        labels = {label: found.value for label, found in used.items()}
        group = _group(name, atoms, info, group_key, several_files, where)
        yield where, LabelledStructure(structure=_structure(atoms), labels=labels, id=name, group=group)


def to_angstrom(atoms: Atoms, given: Mapping[str, str], file_units: stated_units.Stated, where: str) -> None:
    """Convert positions and cell from the unit given, or else stated in the file.

    Args:
        atoms: to change.
        given: "positions" and "cell" → unit; that of the cell is by default that of the positions.
        file_units: units stated in the file.
        where: the structure, in errors.
    """
    of_positions = stated_units.unit_of("positions", "positions", given, file_units, where=where)
    of_cell = stated_units.unit_of("cell", "cell", given, file_units, where=where) or of_positions
    if of_cell is not None:
        atoms.set_cell(atoms.cell.array * own_files.length("cell", of_cell))
    if of_positions is not None:
        atoms.positions *= own_files.length("positions", of_positions)


def structures(
    source: Path, elements: Elements | None = None, first: int = 0, *, units: Mapping[str, str] | None = None
) -> Iterator[tuple[str, Atoms, Structure] | EutecticError]:
    """Location, contents as ASE reads them, and structure of every entry from `first` on; no labels, unchecked.

    An unreadable entry gives an error in its place if reading can continue after it.

    Args:
        source: a file.
        elements: as for `read`.
        first: the first structure to read.
        units: "positions" and "cell" → unit in the file, as for `read`; the contents are converted to Å too.

    Raises:
        EutecticError: as `read`; the rest of the file cannot be read.
    """
    _, units = _checked(None, units)
    about = _about(source)
    for item in _all_atoms(source, source.parent, elements, first=first):
        if isinstance(item, EutecticError):
            yield item
            continue
        _, where, atoms, entries = item
        # Key-value pairs of a database and fields of a molfile are not in ASE's `info`.
        to_angstrom(atoms, units, about.units_of(entries), where)
        more = {k: v for k, v in entries.items() if k not in atoms.info and isinstance(v, str | int | float)}
        atoms.info.update(more)
        yield where, atoms, _structure(atoms)


def _structure(atoms: Atoms) -> Structure:
    structure = Structure.from_ase(atoms)
    if np.isin(structure.tags, (0, 1, 2)).all():
        return structure
    return replace(structure, tags=np.full(len(atoms), 2, dtype=np.int64))


def _unused(atoms: Atoms, info: Mapping[str, Any], used: set[str]) -> set[str]:
    names = {name for place in own_labels.places(atoms, info) for name in place}
    plain = {"free_energy", "energies", "stresses", "magmoms"}
    return {n for n in names - used - plain if n.lower().endswith(LABEL_LIKE)}


def _no_labels(source: Path, ignored: Mapping[str, int], entries: Mapping[str, None], seen: _Seen) -> EutecticError:
    others = sorted(set(ignored)) or [name for name in entries if name not in ("tags", "initial_magmoms")][:30]
    example = next((name for name in others if "energy" in name.lower() or name in ("E", "e")), "my_energy")
    if seen.skip_unconverged and seen.unconverged:
        given = f"no label in a converged structure: {len(seen.unconverged)} did not converge"
    elif others:
        given = f"no label under the usual names; there are {', '.join(others)}"
    else:
        given = "no label"
    return EutecticError(
        str(source),
        given,
        "energy, forces, stress or another property: in atoms.calc, or as REF_energy, REF_forces, …",
        f"name the key of a property, and its unit if that is not ASE's, e.g. --key energy={example} "
        "--unit energy=hartree",
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
        raise EutecticError(str(source), "does not exist", "a file or folder of structures", "check the path")
    table = id_prop.read(source)
    if table:
        # The tables define which files belong to the data.
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
    """The structures of a file, each replaced by an error if it cannot be read."""
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
    if (error := _about(file).unfinished(file, first, count)) is not None:
        yield error
        return
    if index == 0 and count != 0:
        raise EutecticError(str(file), "no structures", "at least one", "write it again, or remove it")


def _scan_items(
    file: Path, root: Path, elements: Elements | None, skip_bad: bool, table: id_prop.Labels
) -> Iterator[_Item | EutecticError | None]:
    """As `_all_atoms`; raises the errors, or with `skip_bad` continues after them, as a preparation does.

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
