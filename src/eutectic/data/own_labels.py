"""Labels of a structure in the user's own files: which entry holds a property, in which shape and unit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms

from eutectic.atoms import PROPERTIES, EutecticError, Property
from eutectic.data import stated_units, stresses
from eutectic.data.conditions import CONDITIONS
from eutectic.data.formats.structure_files import Entries

PREFIXES = ("REF_", "dft_", "")
_TRUTH = {"true": 1.0, "t": 1.0, "false": 0.0, "f": 0.0}


@dataclass(frozen=True, kw_only=True)
class Label:
    """A label of a structure.

    Attributes:
        entry: its entry.
        value: in the library's shape and unit.
        stated_unit: unit stated in the file; empty if none.
        virial: whether the stress follows from a virial.
    """

    entry: str
    value: np.ndarray
    stated_unit: str = ""
    virial: bool = False


def places(atoms: Atoms, info: Entries) -> list[Entries]:
    """Where labels may be, in order of preference."""
    return [info, atoms.arrays, atoms.calc.results if atoms.calc is not None else {}]


def entries(atoms: Atoms, info: Entries) -> list[str]:
    """Names of entries that may be labels."""
    named = [str(name) for place in places(atoms, info) for name in place]
    return [name for name in named if name not in ("numbers", "positions")]


def candidates(name: str, keys: Mapping[str, str]) -> tuple[str, ...]:
    """Possible entries of a property, in order of preference."""
    if name in ("stress", stresses.VIRIAL.name):
        return tuple(place.entry for place in _of_stress({k: v for k, v in keys.items() if k == name}, {}))
    if name in keys:
        return (keys[name],) if keys[name] else ()
    if name in CONDITIONS:
        return ()
    # Some codes give only the free energy, whose negative gradient the forces are.
    return (*(prefix + name for prefix in PREFIXES), *(("free_energy",) if name == "energy" else ()))


def _of_stress(keys: Mapping[str, str], given: Mapping[str, str]) -> tuple[stresses.Place, ...]:
    return stresses.places(tuple(prefix + "stress" for prefix in PREFIXES), keys, given)


def find(
    atoms: Atoms,
    info: Entries,
    keys: Mapping[str, str],
    given: Mapping[str, str],
    file_units: stated_units.Stated,
    where: str,
) -> dict[str, Label]:
    """Property → its label.

    Args:
        atoms: with its positions and cell in Å.
        info: all entries of the structure besides arrays and results.
        keys, given: the user's `--key` and `--unit`.
        file_units: units stated in the file.
        where: the structure, in errors.

    Raises:
        EutecticError: not numbers; a stated unit that is not one of the property.
    """
    inside, present = places(atoms, info), entries(atoms, info)

    def converted(prop: Property, key: str, value: object, unit_name: str = "", order: tuple[str, ...] = ()) -> Label:
        at = f"{where}, {key}"
        name = unit_name or prop.name
        label = _shaped(prop, value, len(atoms), at, order)
        unit = stated_units.unit_of(name, key, given, file_units, present, at)
        if unit is not None:
            at = f"--unit {name}={unit}" if name in given else at
            label = stated_units.conversion(name, unit, at)(label, len(atoms))
        return Label(entry=key, value=label, stated_unit=stated_units.specific(name, key, file_units, present) or "")

    found: dict[str, Label] = {}
    for name, prop in PROPERTIES.items():
        if name == "stress":
            continue
        for key in candidates(name, keys):
            if (value := _value(inside, key)) is not None:
                found[name] = converted(prop, key, value)
                break
    for place in _of_stress(keys, given):
        value = _value(inside, place.entry)
        if value is None or (place.virial and atoms.cell.rank < 3):
            continue
        if not place.virial:
            found["stress"] = converted(PROPERTIES["stress"], place.entry, value, order=place.order)
            break
        given = stresses.unit_of_virial(given)
        if given.get("stress") == given.get("virial") and not stresses.of_energy(given.get("virial", "eV")):
            stated = f"--unit stress={given['stress']}, where {place.entry} holds virials"
            stated_units.conversion(stresses.VIRIAL.name, given["stress"], stated)
        label = converted(stresses.VIRIAL, place.entry, value, order=place.order)
        stress = stresses.of_virial(label.value, atoms.get_volume())
        found["stress"] = Label(entry=place.entry, value=stress, stated_unit=label.stated_unit, virial=True)
        break
    return found


def _value(inside: list[Entries], key: str) -> Any:
    return next((place[key] for place in inside if place.get(key) is not None), None)


def contradiction(
    atoms: Atoms,
    info: Entries,
    keys: Mapping[str, str],
    given: Mapping[str, str],
    file_units: stated_units.Stated,
    where: str,
) -> str | None:
    """How stress and virial of a structure contradict each other; None if they agree or the user has chosen one."""
    if "stress" in keys or "virial" in keys or atoms.cell.rank < 3:
        return None
    inside = places(atoms, info)
    held = {p.virial: p for p in reversed(_of_stress({}, {})) if _value(inside, p.entry) is not None}
    if len(held) < 2:
        return None
    # An energy unit given for the stress is the unit of the virial.
    for_both = {k: v for k, v in stresses.unit_of_virial(given).items() if k != "stress" or not stresses.of_energy(v)}
    a, b = (
        find(atoms, info, {**keys, place: held[place == "virial"].entry}, for_both, file_units, where)["stress"]
        for place in ("stress", "virial")
    )
    if (words := stresses.contradiction(a.value, b.value)) is None:
        return None
    return f"{a.entry} and {b.entry} contradict each other: two stresses {words}"


def _shaped(prop: Property, value: object, n_atoms: int, where: str, order: tuple[str, ...] = ()) -> np.ndarray:
    shape = prop.shape(n_atoms)
    try:
        if isinstance(value, bool | np.bool_) and not prop.categorical:
            raise ValueError("true or false, or a key without a value")
        if prop.categorical and isinstance(value, str) and (word := value.strip().lower()) in _TRUTH:
            value = _TRUTH[word]
        array = np.asarray(value, dtype=np.float64)
        if prop.rank == 2 and prop.level == "structure" and array.shape in ((6,), (1, 6)):
            return stresses.tensor(array.reshape(6), order)
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
