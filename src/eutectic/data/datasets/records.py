"""The user's own structures as named arrays: pickled LMDB, npz, JSON or CSV.

A record is one structure with named fields: `--key energy=total_energy` names the field of a property, and
`targets.energy` is the field `energy` of the field `targets`. Information missing from the files must be given: units
(`--unit energy=kcal/mol`; a file may state them, see `eutectic.data.stated_units`), periodicity (`--pbc true`), and the
order of a stress of six numbers (`--key stress=NAME:xx,yy,zz,xy,yz,zx`). Nothing is guessed.

* `.lmdb`: pickled dictionaries or PyTorch Geometric's `Data` under the keys "0", "1", … (some may be missing), read
  without running any code in them.
* `.npz`: `positions` (structures, atoms, 3), with `numbers` (atoms,), or (structures, atoms) padded with zeros if
  structures differ in size, as in QM7-X; or arrays of all atoms, with `n_atoms` (structures,). `properties:3` is the
  fourth column of an array (structures, columns).
* `.json`, `.json.gz`: a list of objects. * `.csv`, `.csv.gz`: one line per structure, with its CIF in a column.

In an LMDB or JSON the geometry may also be one field `structure`, a crystal of pymatgen, in Å like a CIF.
"""

from __future__ import annotations

import csv
import io
import itertools
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from ase.data import atomic_numbers

from eutectic.atoms import PROPERTIES, EutecticError, LabelledStructure, Property, Structure, units
from eutectic.data import conditions, own_files, stated_units, stresses
from eutectic.data.card import Card
from eutectic.data.dataset import File, Piece
from eutectic.data.formats import cif, convergence, npz_arrays, pickled_lmdb, pymatgen_json
from eutectic.data.formats.archives import damage_explained, unpacked
from eutectic.data.formats.elements import formula
from eutectic.data.formats.npz_arrays import array_head, blocks, cut
from eutectic.data.formats.open_catalyst import find
from eutectic.data.splits import TEST_SHARE

SUFFIXES = (".lmdb", ".npz", ".json", ".json.gz", ".csv", ".csv.gz")

GEOMETRY: dict[str, tuple[str, ...]] = {
    "structure": ("structure",),
    "cif": ("cif",),
    "numbers": ("numbers", "atomic_numbers", "nuclear_charges", "z", "Z"),
    "positions": ("positions", "pos", "coordinates", "coords", "R"),
    "cell": ("cell", "lattice"),
    "pbc": ("pbc",),
    "n_atoms": ("n_atoms", "natoms"),
}
"""Part of a structure → usual names, in order of preference."""

LABELS: dict[str, tuple[str, ...]] = {"energy": ("energy", "E"), "forces": ("forces", "force", "F")}
"""Property → unambiguous names; other properties only have their own name."""

LONGEST_LINE = 1 << 20
"""Maximum number of characters of a line of CSV, and of the CIF in it."""

MOST_NAMES = 1000
"""Maximum number of fields of a record to list."""

_EXPECTED = "pickled .lmdb, .npz, .json or .csv (the last two also as .gz)"
_INCOMPLETE = "check that it is complete: download, unpack or write it again"


@dataclass(frozen=True, kw_only=True)
class Choices:
    """The user's options for the files.

    Attributes:
        keys: property, "virial", or part of `GEOMETRY`, → its field; an empty name leaves a property out.
        units: property, "virial", "positions" or "cell" → unit in the files, with a leading minus to change the sign
            (`eutectic.atoms.units.conversion`); positions may be "fractional".
        defined: custom properties defined for these files.
        pbc: periodic directions, if not in the files.
        group_key: field that names the group of a structure.
        skip_unconverged: leave out records whose calculation did not converge (`converged`: false).
    """

    keys: Mapping[str, str] = field(default_factory=dict)
    units: Mapping[str, str] = field(default_factory=dict)
    defined: tuple[Property, ...] = ()
    pbc: tuple[bool, bool, bool] | None = None
    group_key: str | None = None
    skip_unconverged: bool = False

    def __post_init__(self) -> None:
        own_files.check_keys(self.keys, *GEOMETRY)
        own_files.check_units(self.units)

    def names(self, quantity: str) -> tuple[str, ...]:
        """Possible fields of a property or a part of the geometry."""
        if quantity in self.keys:
            return (self.keys[quantity],) if self.keys[quantity] else ()
        if quantity in conditions.CONDITIONS:
            return ()
        return GEOMETRY.get(quantity) or LABELS.get(quantity) or (quantity,)

    def stresses(self) -> tuple[stresses.Place, ...]:
        """Fields in which the stress may be, in order of preference."""
        return stresses.places(("stress",), self.keys, self.units, virials=("virial", "virials"))

    def uses(self, record: Record) -> bool:
        """Whether the record is used: it converged, or unconverged ones are not left out."""
        return not (self.skip_unconverged and convergence.of_entries(record.fields))


def periodicity(text: str) -> tuple[bool, bool, bool]:
    """ "true", "false", or a letter for each lattice vector: "TTF".

    Raises:
        EutecticError: anything else.
    """
    letters = {"true": "ttt", "false": "fff"}.get(text.lower(), text.lower())
    if len(letters) != 3 or set(letters) - {"t", "f"}:
        raise EutecticError("--pbc", repr(text), "true, false, or three letters such as TTF", "correct the option")
    a, b, c = (letter == "t" for letter in letters)
    return a, b, c


@dataclass(frozen=True, kw_only=True)
class Found:
    """Contents of a source, from `scan`.

    Attributes:
        structures: number of usable structures.
        of_file: records in each file.
        counts: property → field → number of structures.
        groups: number of groups.
        largest_group: structures in the largest group.
        units: property, "positions" or "cell" → units stated in the files.
        conditions: charge, spin, level of theory, …: field → its values, if there are several.
        unconverged: records whose calculation did not converge.
    """

    structures: int
    of_file: Mapping[Path, int]
    counts: Mapping[str, Mapping[str, int]]
    groups: int
    largest_group: int
    units: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    conditions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    unconverged: int = 0


def scan(source: Path, choices: Choices, *, skip_bad: bool = False) -> Found:
    """Read a source once, and check that its fields, units and periodicity are known.

    Args:
        source: a file, or a folder of files of one kind.
        choices: the user's options.
        skip_bad: leave out records that cannot be used; only those that can are counted.

    Raises:
        EutecticError: unsupported files; no geometry, or no label, under these names; an unknown unit or periodicity.
    """
    _, paths = find(Path(source), SUFFIXES, _EXPECTED)
    groups: Counter[str] = Counter()
    counts: dict[str, Counter[str]] = {}
    names: dict[str, None] = {}
    of_file: dict[Path, int] = {}
    cells, unordered, unconverged = False, "", 0
    met = conditions.Met()
    file_units: dict[str, dict[str, None]] = {}
    silent: set[str] = set()
    for path in paths:
        n, complete, before = 0, False, ""
        while not complete:
            try:
                for record in _records(path, choices, n):
                    names = names or dict.fromkeys(record.names())
                    n += 1
                    unconverged += convergence.of_entries(record.fields)
                    if not choices.uses(record):
                        continue
                    try:
                        found = _found(record, choices)
                        group = _group(record, choices, len(paths) > 1)
                        cells = cells or _needs_periodicity(record, choices)
                        place = _stress_of(record, choices)
                        unordered = unordered or _unordered(record, place)
                        taken = {
                            what: record.key(*choices.names(what)) or what for what in own_files.GEOMETRY_UNITS
                        } | found
                        if place is not None and place.virial:
                            taken["virial"] = taken.pop("stress")
                        silent |= {name for name, key in taken.items() if _unit(record, choices, name, key) is None}
                        if skip_bad and not unordered:
                            _labelled(record, choices, group).check(record.where)
                    except EutecticError:
                        if not skip_bad:
                            raise
                        continue
                    for name, key in found.items():
                        counts.setdefault(name, Counter())[key] += 1
                    for name, key in taken.items():
                        if (unit := stated_units.specific(name, key, record.file_units, record.fields)) is not None:
                            file_units.setdefault("stress" if name == "virial" else name, {})[unit] = None
                    met.add((name, value) for name, value in record.fields.items() if name not in found.values())
                    groups[group] += 1
                complete = True
            except EutecticError as error:
                if not skip_bad:
                    raise
                # After an unreadable record there may be others, unless the file itself ends there.
                complete = str(error) == before
                n, before = n + (not complete), str(error)
        if not n:
            raise EutecticError(str(path), "no records", "at least one structure", _INCOMPLETE)
        of_file[path] = n
    _check_labels(Path(source), choices, counts, names)
    _check_stated(Path(source), choices, silent, names, cells, unordered)
    return Found(
        structures=groups.total(),
        of_file=of_file,
        counts={name: dict(counts[name]) for name in PROPERTIES if name in counts},
        groups=len(groups),
        largest_group=max(groups.values(), default=0),
        units={name: tuple(stated) for name, stated in file_units.items()},
        conditions=met.differing(),
        unconverged=unconverged,
    )


@dataclass(frozen=True, kw_only=True)
class RecordFiles:
    """A source as a `Dataset`.

    Attributes:
        source: a file or a folder.
        found: its contents, from `scan`.
        choices: the user's options.
        level_of_theory: level of theory of the labels, which the files do not state.
    """

    source: Path
    found: Found
    choices: Choices
    level_of_theory: str = "not stated"

    def names(self) -> tuple[str, ...]:
        """One data set."""
        return ("records",)

    def card(self, name: str) -> Card:
        """Card from the contents, with the given units and level of theory."""
        found, total = self.found, self.found.structures
        # As in `ase_files.card`: the largest group goes to training.
        few = found.groups < 3 or total - found.largest_group < 2 * TEST_SHARE * total
        notes = own_files.notes(found.counts, self.choices.units, found.units)
        if found.conditions:
            notes.append(conditions.note(found.conditions))
        if found.unconverged:
            notes.append(convergence.note(found.unconverged, left_out=self.choices.skip_unconverged))
        if few:
            notes.append("Nearly all structures are in one group: the split is random, so the group is on both sides.")
        return Card(
            name=self.source.stem or "records",
            title=f"Structures from {self.source.name}",
            domain="user",
            properties=tuple(found.counts),
            level_of_theory=self.level_of_theory,
            licence="not stated",
            citation="not stated",
            source=self.source.name,
            default_split="random" if few else "group",
            notes=tuple(notes),
        )

    def files(self, name: str) -> tuple[File, ...]:
        """None: the files are the user's own."""
        return ()

    def pieces(self, source: Path, name: str) -> list[Piece]:
        """The files; those with random access with their number of structures."""
        return [
            Piece(path=path, count=n if path.suffix in (".lmdb", ".npz") else None)
            for path, n in self.found.of_file.items()
        ]

    def read(self, piece: Piece, name: str) -> Iterator[LabelledStructure]:
        """The structures of a file or a part of it, with the ids "<file>#<position in it>".

        Raises:
            EutecticError: damaged, truncated, or fields of other shapes.
        """
        several = len(self.found.of_file) > 1
        for record in _records(piece.path, self.choices, piece.first, piece.count):
            if self.choices.uses(record):
                yield _labelled(record, self.choices, _group(record, self.choices, several))

    def published_splits(self, source: Path, name: str) -> Mapping[str, Mapping[str, np.ndarray]]:
        """None."""
        return {}


# --- one record -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Record:
    """One structure as stored in its file.

    Attributes:
        id: "<file>#<position>".
        where: location, for errors.
        fields: fields by name.
        padded: arrays of atoms may be padded, as in an npz of several sizes.
    """

    id: str
    where: str
    fields: Mapping[str, Any]
    padded: bool = False

    def value(self, key: str) -> Any:
        """Value of "energy", "targets.energy" or "properties:3"; None if missing."""
        if key in self.fields or not {".", ":"} & set(key):
            return self.fields.get(key)
        base, colon, column = key.rpartition(":")
        if colon and column.isdigit() and isinstance(found := self.value(base), np.ndarray):
            return found[int(column)] if found.ndim == 1 and int(column) < len(found) else None
        value: Any = self.fields
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value

    def key(self, *names: str) -> str | None:
        """The first of these with a value."""
        # An empty cell of a table is not a value.
        return next((name for name in names if not _is_missing(self.value(name))), None)

    @property
    def file_units(self) -> stated_units.Stated:
        """Units stated in its fields."""
        return stated_units.stated(self.fields)

    def names(self) -> list[str]:
        """Names of all fields; those of nested fields are joined with a dot."""
        found: list[str] = []
        ahead: list[tuple[str, Any, int]] = [(name, value, 0) for name, value in self.fields.items()]
        while ahead and len(found) < MOST_NAMES:
            name, value, depth = ahead.pop(0)
            if isinstance(value, Mapping) and depth < 3 and not _is_crystal(value):
                ahead += [(f"{name}.{inner}", entry, depth + 1) for inner, entry in value.items()]
            elif not _is_missing(value):
                found.append(name)
        return found

    def numbers(self, key: str) -> np.ndarray:
        """Numbers of a field, in float64.

        Raises:
            EutecticError: not numbers.
        """
        value, where = self.value(key), f"{self.where}, {key}"
        try:
            if isinstance(value, str):
                return np.asarray(float(value))
            if not isinstance(value, np.ndarray):
                value = pickled_lmdb.array(value, where)
            return np.asarray(value, dtype=np.float64)
        except (ValueError, TypeError) as error:
            raise EutecticError(where, f"{str(value)[:60]!r}", "numbers", "name another field with --key") from error


def _is_missing(value: object) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _is_crystal(value: Mapping[str, object]) -> bool:
    return "lattice" in value and "sites" in value


def _labelled(record: Record, choices: Choices, group: str) -> LabelledStructure:
    structure = _structure(record, choices)
    return LabelledStructure(structure=structure, labels=_labels(record, choices, structure), id=record.id, group=group)


def _structure(record: Record, choices: Choices) -> Structure:
    if (key := record.key(*choices.names("structure"))) is not None:
        where = f"{record.where}, {key}"
        return pymatgen_json.structure(pickled_lmdb.crystal(record.value(key), where), where)
    if (key := record.key(*choices.names("cif"))) is not None:
        return cif.structure(str(record.value(key)), f"{record.where}, {key}", "repair the CIF, or leave it out")
    numbers = _atomic_numbers(record, choices)
    n = len(numbers)
    positions = _of_atoms(record, _needed(record, choices, "positions"), n, (n, 3))
    unit = _unit(record, choices, "positions", _needed(record, choices, "positions")) or "angstrom"
    key = record.key(*choices.names("cell"))
    cell = np.zeros((3, 3)) if key is None else _shaped(record, key, (3, 3))
    pbc_key = record.key(*choices.names("pbc"))
    pbc = np.array(choices.pbc or (False, False, False))
    if pbc_key is not None and choices.pbc is None:
        pbc = _periodic(record, pbc_key)
    of_cell = _unit(record, choices, "cell", key or "cell") or unit
    cell = cell * (own_files.length("cell", of_cell) if key is not None else 1.0)
    if unit == "fractional":
        if key is None:
            raise EutecticError(record.where, "fractional positions without a cell", "a cell", _INCOMPLETE)
        positions = positions @ cell
    else:
        positions = positions * own_files.length("positions", unit)
    # The cell of a non-periodic structure is only the box of the calculation: dropped.
    return Structure(numbers=numbers, positions=positions, cell=cell if pbc.any() else np.zeros((3, 3)), pbc=pbc)


def _atomic_numbers(record: Record, choices: Choices) -> np.ndarray:
    key = _needed(record, choices, "numbers")
    value = record.value(key)
    if isinstance(value, list | tuple) and value and all(isinstance(symbol, str) for symbol in value):
        if unknown := [symbol for symbol in value if symbol not in atomic_numbers]:
            raise EutecticError(f"{record.where}, {key}", repr(unknown[0]), "symbols of elements", _INCOMPLETE)
        return np.array([atomic_numbers[symbol] for symbol in value], dtype=np.int64)
    values = record.numbers(key).reshape(-1)
    if record.padded:
        # Padding is at the end only: a zero elsewhere is an invalid atom, and is refused as such.
        values = values[: len(values) - int(np.argmax(values[::-1] != 0)) if values.any() else 0]
    whole = np.rint(values)
    if not np.array_equal(whole, values) or np.abs(whole).max(initial=0) > 1e6:
        raise EutecticError(
            f"{record.where}, {key}", "atomic numbers with fractions", "whole numbers", "name another with --key"
        )
    return whole.astype(np.int64)


def _needed(record: Record, choices: Choices, what: str) -> str:
    key = record.key(*choices.names(what))
    if key is None:
        raise EutecticError(
            record.where,
            f"no {what} among {', '.join(record.names()[:30]) or 'no fields'}",
            f"a field {' or '.join(choices.names(what))}",
            f"name their field: --key {what}=NAME; positions and atomic numbers are required",
        )
    return key


def _shaped(record: Record, key: str, shape: tuple[int, ...], prop: Property | None = None, n: int = 0) -> np.ndarray:
    """Numbers of a field in the given shape, up to dimensions of size one, which some writers add."""
    values = record.numbers(key)
    if tuple(n for n in values.shape if n != 1) != tuple(n for n in shape if n != 1):
        raise EutecticError(
            f"{record.where}, {key}",
            f"shape {values.shape}",
            f"shape {shape}",
            (prop.redefined(values.shape, n) if prop is not None else "")
            or "check that labels and atoms match, or name another field with --key",
        )
    return values.reshape(shape)


def _of_atoms(record: Record, key: str, n: int, shape: tuple[int, ...], prop: Property | None = None) -> np.ndarray:
    values = record.numbers(key)
    if record.padded and values.ndim == len(shape) and len(values) > n:
        return _shaped(Record(id="", where=record.where, fields={key: values[:n]}), key, shape, prop, n)
    return _shaped(record, key, shape, prop, n)


def _periodic(record: Record, key: str) -> np.ndarray:
    values = record.numbers(key).reshape(-1)
    if values.size not in (1, 3) or set(values.tolist()) - {0.0, 1.0}:
        raise EutecticError(
            f"{record.where}, {key}", str(values.tolist()[:9]), "one or three of true or false", _INCOMPLETE
        )
    return np.broadcast_to(values != 0, 3).copy()


def _unit(record: Record, choices: Choices, name: str, key: str) -> str | None:
    """Unit of a field: as given by the user, else as stated in the file; None if neither gives one."""
    given = stresses.unit_of_virial(choices.units) if name == "virial" else choices.units
    return stated_units.unit_of(name, key, given, record.file_units, record.fields, f"{record.where}, {key}")


def _found(record: Record, choices: Choices) -> dict[str, str]:
    """Property → its field."""
    found = {p: key for p in PROPERTIES if p != "stress" and (key := record.key(*choices.names(p))) is not None}
    place = _stress_of(record, choices)
    return found if place is None else {**found, "stress": place.entry}


def _stress_of(record: Record, choices: Choices) -> stresses.Place | None:
    return next((place for place in choices.stresses() if record.key(place.entry) is not None), None)


def _unordered(record: Record, place: stresses.Place | None) -> str:
    """Field of a stress of six numbers in an order that is not stated; empty if there is none."""
    if place is None or place.order or record.numbers(place.entry).size != 6:
        return ""
    return place.entry


def _labels(record: Record, choices: Choices, structure: Structure) -> dict[str, np.ndarray]:
    found, n = {}, len(structure)
    for name, key in _found(record, choices).items():
        prop = PROPERTIES[name]
        if name == "stress":
            if (stress := _stress(record, choices, structure)) is not None:
                found[name] = stress
            continue
        shape = prop.shape(n)
        if isinstance(value := record.value(key), bool | np.bool_) and not prop.categorical:
            raise EutecticError(
                f"{record.where}, {key}",
                str(value),
                f"{name} in {prop.unit}",
                f"name another field, or define a class for it: --define {name}_class=,class --key {name}_class={key}",
            )
        if prop.categorical and (classes := _classes(record, key)) is not None:
            record = replace(record, fields={**record.fields, key: classes})
        read = _of_atoms(record, key, n, shape, prop) if prop.level == "atom" else _shaped(record, key, shape, prop, n)
        if (unit := _unit(record, choices, name, key)) is not None:
            read = prop.conversion(unit)(read, n)
        found[name] = read
    return found


def _stress(record: Record, choices: Choices, structure: Structure) -> np.ndarray | None:
    """Stress (3, 3), eV/Å³, from a stress or a virial; None for a virial of a structure without a cell."""
    place = _stress_of(record, choices)
    assert place is not None
    volume = abs(float(np.linalg.det(structure.cell)))
    if place.virial and not volume:
        return None
    if record.numbers(place.entry).size == 6:
        tensor = stresses.tensor(record.numbers(place.entry).reshape(6), place.order)
    else:
        tensor = _shaped(record, place.entry, (3, 3))
    name = "virial" if place.virial else "stress"
    if (unit := _unit(record, choices, name, place.entry)) is not None:
        tensor = stated_units.conversion(name, unit)(tensor, len(structure))
    return stresses.of_virial(tensor, volume) if place.virial else tensor


def _classes(record: Record, key: str) -> np.ndarray | None:
    """Class label as a number if the file has true or false; None if it has numbers.

    Raises:
        EutecticError: other text.
    """
    value = record.value(key)
    if isinstance(value, bool | np.bool_):
        return np.asarray(float(value))
    if not isinstance(value, str):
        return None
    if (word := value.strip().lower()) in ("true", "false"):
        return np.asarray(float(word == "true"))
    try:
        return np.asarray(float(value))
    except ValueError as error:
        raise EutecticError(
            f"{record.where}, {key}",
            repr(value[:60]),
            "a class: true, false, or one of the whole numbers 0, 1, …",
            "number the classes in the file, from 0",
        ) from error


def _group(record: Record, choices: Choices, several_files: bool) -> str:
    if choices.group_key is not None:
        value = record.value(choices.group_key)
        if _is_missing(value):
            raise EutecticError(
                record.where,
                f"no field {choices.group_key!r}",
                f"one of {', '.join(record.names()[:30])}",
                "name another field for the groups, or none",
            )
        if isinstance(value, str):
            return value
        return " ".join(f"{x:g}" for x in record.numbers(choices.group_key).reshape(-1)[:9])
    if several_files:
        return record.id.rpartition("#")[0]
    if any(record.key(*choices.names(part)) for part in ("structure", "cif")):
        numbers = _structure(record, choices).numbers
    else:
        _needed(record, choices, "positions")
        numbers = _atomic_numbers(record, choices)
    return formula(numbers)


# --- required information ---------------------------------------------------------------------------


def _needs_periodicity(record: Record, choices: Choices) -> bool:
    if any(record.key(*choices.names(what)) for what in ("structure", "cif", "pbc")):
        return False
    key = record.key(*choices.names("cell"))
    return key is not None and bool(record.numbers(key).any())


def _check_labels(source: Path, choices: Choices, counts: Mapping[str, object], names: Mapping[str, object]) -> None:
    tried = {name: choices.names(name) for name in PROPERTIES}
    tried |= dict.fromkeys(("stress", "virial"), tuple(place.entry for place in choices.stresses()))
    own_files.check_matches(str(source), choices.keys, choices.defined, counts, names, tried)
    if not counts:
        raise EutecticError(
            str(source),
            f"no label; the fields are {', '.join(names)}",
            f"a property of the structures, such as {', '.join(list(PROPERTIES)[:4])}",
            "name the field of a property, e.g. --key energy=total_energy",
        )


def _check_stated(
    source: Path, choices: Choices, silent: Collection[str], names: Mapping[str, object], cells: bool, unordered: str
) -> None:
    """Report all missing units, the periodicity and the order of a stress in one error.

    Args:
        source: the files.
        choices: the user's options.
        silent: properties, "virial", "positions", "cell" whose unit neither the user nor a file gives.
        names: fields.
        cells: whether there are cells of unknown periodicity.
        unordered: field of a stress of six numbers in unknown order.
    """
    usual = {
        name: "eV" if name == "virial" else units.as_typed(PROPERTIES[name].unit)
        for name in (*PROPERTIES, "virial")
        if name in silent and (name == "virial" or own_files.unit_required(name))
    }
    if not any(name in names for what in ("structure", "cif") for name in choices.names(what)):
        fractional = choices.units.get("positions") == "fractional"
        usual = {"positions": "angstrom", **({"cell": "angstrom"} if fractional else {}), **usual}
        usual = {name: unit for name, unit in usual.items() if name in silent}
    periodic = cells and choices.pbc is None
    if not usual and not periodic and not unordered:
        return
    given = [f"no unit of {', '.join(usual)}"] if usual else []
    fix = ["give their units: " + " ".join(f"--unit {name}={unit}" for name, unit in usual.items())] if usual else []
    if usual:
        fix.append("others are " + ", ".join(dict.fromkeys(u for name in usual for u in own_files.others(name))))
    if "stress" in usual:
        fix.append("--unit stress=eV is a virial")
    if any(name in PROPERTIES for name in usual):
        fix.append("--key NAME= leaves a property out")
    if periodic:
        given.append("cells of unknown periodicity")
        fix.append("pass --pbc true for crystals, --pbc false for molecules in a box, or --pbc TTF for slabs")
    if unordered:
        given.append(f"six numbers of {unordered} in unknown order")
        fix.append(f"state it: --key stress={unordered}:ORDER, where ORDER is {stresses.ORDERS}")
    raise EutecticError(
        str(source),
        ", and ".join(given),
        "information that is missing from the file and must not be guessed",
        "; ".join(fix),
    )


# --- the files --------------------------------------------------------------------------------------


def _records(path: Path, choices: Choices, first: int = 0, count: int | None = None) -> Iterator[Record]:
    stop = None if count is None else first + count
    if path.suffix == ".lmdb":
        keys = pickled_lmdb.record_keys(path)[first:stop]
        for number, (where, fields) in enumerate(pickled_lmdb.read_keys(path, keys), start=first):
            yield Record(id=f"{path.name}#{number}", where=where, fields=fields)
        return
    with damage_explained(str(path), _EXPECTED, _INCOMPLETE):
        if path.suffix == ".npz":
            yield from _of_npz(path, choices, first, count)
            return
        rows: Iterator[Mapping[str, Any] | EutecticError]
        rows = _of_json(path) if path.name.endswith((".json", ".json.gz")) else _of_csv(path)
        for number, row in enumerate(itertools.islice(rows, first, stop), start=first):
            if isinstance(row, EutecticError):
                raise row
            yield Record(id=f"{path.name}#{number}", where=f"{path}, record {number}", fields=row)


def _of_json(path: Path) -> Iterator[Mapping[str, Any]]:
    with unpacked(path) as content:
        for key, row in pymatgen_json.items(content.read):
            if key or not isinstance(row, Mapping):
                raise EutecticError(
                    str(path),
                    f"an object with {key!r}" if key else f"a list of {type(row).__name__}s",
                    "a list of objects, one for each structure, with its atoms and its labels",
                    "convert it to this form; numbers without structures cannot be learned from",
                )
            yield row


def _of_csv(path: Path) -> Iterator[Mapping[str, Any] | EutecticError]:
    """Lines; an unreadable one is replaced by an error, and reading continues after it."""
    with (
        unpacked(path) as content,
        io.TextIOWrapper(cast(IO[bytes], content), encoding="utf-8-sig", newline="") as stream,
    ):
        csv.field_size_limit(LONGEST_LINE)  # Python's default is shorter than many CIFs
        try:
            reader = csv.DictReader(_bounded(stream))
            for row in reader:
                if None in row or None in row.values():
                    held = sum(value is not None for value in row.values()) + len(row.get(None) or [0]) - 1
                    expected = len(reader.fieldnames or ())
                    yield EutecticError(
                        f"{path}, line {reader.line_num}", f"{held} of {expected} columns", f"{expected}", _INCOMPLETE
                    )
                else:
                    yield row
        except csv.Error as error:
            raise ValueError(str(error)) from error


def _bounded(stream: io.TextIOBase) -> Iterator[str]:
    """Lines of limited length, which limits the memory that a damaged file takes."""
    while line := stream.readline(LONGEST_LINE):
        if len(line) == LONGEST_LINE and not line.endswith("\n"):
            raise ValueError(f"a line of more than {LONGEST_LINE:,} characters")
        yield line


def _of_npz(path: Path, choices: Choices, first: int, count: int | None) -> Iterator[Record]:
    with npz_arrays.opened(path, str(path)) as bundle:
        heads = {name: array_head(bundle, name) for name in npz_arrays.names(bundle)}
        shapes = {name: shape for name, (dtype, shape, _) in heads.items() if dtype.kind in "biufUS"}
        key = {what: next((n for n in choices.names(what) if n in shapes), "") for what in GEOMETRY}
        positions, numbers, sizes = (key[what] for what in ("positions", "numbers", "n_atoms"))
        requested = {name.partition(":")[0] for what in (*PROPERTIES, *GEOMETRY) for name in choices.names(what)}
        shape = shapes.get(positions, ())
        flat = len(shape) == 2
        if not positions or not numbers or len(shape) not in (2, 3) or shape[-1] != 3 or (flat and not sizes):
            raise EutecticError(
                str(path),
                f"arrays {', '.join(f'{name} {held}' for name, held in shapes.items())}",
                "positions (structures, atoms, 3) and numbers (atoms,) or (structures, atoms); "
                "or positions (all atoms, 3), numbers (all atoms,) and n_atoms (structures,)",
                "name the arrays: --key positions=NAME --key numbers=NAME --key n_atoms=NAME; they are required",
            )
        n = shapes[sizes][0] if flat else shape[0]
        stop = n if count is None else min(n, first + count)
        columns: dict[str, Iterator[Any]] = {}
        if flat:
            atom_counts = np.concatenate([*blocks(bundle, sizes, 0, n), np.zeros(0)]).reshape(-1).astype(np.int64)
            if len(atom_counts) != n or (atom_counts < 0).any() or atom_counts.sum() != shape[0]:
                raise EutecticError(
                    f"{path}, {sizes}", f"{atom_counts.sum()} atoms", f"{shape[0]}, as in {positions}", _INCOMPLETE
                )
            start, counts = int(atom_counts[:first].sum()), atom_counts[first:stop].tolist()
        # All structures may share one cell and its periodicity.
        shareable = ((key["cell"], (3, 3)), (key["pbc"], (3,)), (key["pbc"], ()))
        common = [name for name, shape_of_one in shareable if n != 3 and shapes.get(name) == shape_of_one]
        mismatched = [
            f"{name} {held}"
            for name, held in shapes.items()
            if name in requested - {numbers, *common} and held[:1] not in ((n,), shape[:1])
        ]
        if mismatched:
            raise EutecticError(
                str(path),
                f"{', '.join(mismatched)} for {n} structures",
                f"one row for each of the {n} structures" + (f" or {shape[0]} atoms" if flat else ""),
                "write the file again; --key NAME= leaves a property out",
            )
        for name, held in shapes.items():
            if flat and held[:1] == shape[:1]:
                columns[name] = cut(blocks(bundle, name, start, shape[0]), counts)
            elif held[:1] == (n,) and not (name == numbers and len(held) == 1):
                columns[name] = itertools.chain.from_iterable(blocks(bundle, name, first, stop))
        shared: dict[str, Any] = {name: npz_arrays.array(bundle, name) for name in {numbers, *common} - columns.keys()}
        # A single text for the file may state a unit: e_unit, r_unit.
        texts = [name for name, (dtype, held, _) in heads.items() if dtype.kind in "SU" and not held]
        shared |= {name: str(npz_arrays.array(bundle, name)[()]) for name in texts}
        for i in range(first, stop):
            row = {name: next(column) for name, column in columns.items()}
            fields = {
                name: str(value) if isinstance(value, np.str_ | np.bytes_) else value for name, value in row.items()
            }
            yield Record(
                id=f"{path.name}#{i}", where=f"{path}, structure {i}", fields={**shared, **fields}, padded=not flat
            )
