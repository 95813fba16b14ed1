"""Options for the user's own files: keys, units and error messages."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from eutectic.atoms import PROPERTIES, EutecticError, Property, suggest, units
from eutectic.atoms.properties import BUILT_IN
from eutectic.data import stresses

GEOMETRY_UNITS = ("positions", "cell")
"""Quantities with a unit besides the properties."""


def check_keys(keys: Mapping[str, str], *more: str) -> None:
    """Refuse a `--key` for something that is not a property.

    Args:
        keys: property, or "virial" (see `eutectic.data.stresses`), → entry.
        more: other names that may have a key.

    Raises:
        EutecticError: an unknown name (suggests the nearest one); an invalid order of six numbers.
    """
    _check_names("--key", keys, (*PROPERTIES, stresses.VIRIAL.name, *more))
    stresses.places((), keys, {})


def check_units(stated: Mapping[str, str]) -> None:
    """Refuse a `--unit` for something without a unit, or a unit of the wrong dimension.

    Args:
        stated: property, "virial", "positions" or "cell" → unit. A stress may be in a unit of energy, as a virial,
            and positions "fractional".

    Raises:
        EutecticError: an unknown name or a unit of the wrong dimension.
    """
    _check_names("--unit", stated, (*PROPERTIES, stresses.VIRIAL.name, *GEOMETRY_UNITS))
    for name, unit in stated.items():
        if name in GEOMETRY_UNITS:
            if (name, unit) != ("positions", "fractional"):
                length(name, unit)
        elif name == stresses.VIRIAL.name:
            stresses.VIRIAL.conversion(unit)
        elif name != "stress" or not stresses.of_energy(unit):
            PROPERTIES[name].conversion(unit)


def _check_names(option: str, given: Mapping[str, str], known: Sequence[str]) -> None:
    for name, value in given.items():
        if name not in known:
            near = suggest(name, known)
            raise EutecticError(
                option,
                f"property {name!r}",
                f"one of {', '.join(known)}",
                (f"did you mean {near!r}? If not, " if near else "")
                + f"define a custom property with --define {name}=UNIT"
                + (f" --key {name}={value}" if option == "--key" else ""),
            )


def length(quantity: str, stated: str) -> float:
    """Å per stated unit of length, for `quantity` (positions, cell).

    Raises:
        EutecticError: not a unit of length.
    """
    return units.conversion(stated, "angstrom", where=f"--unit {quantity}={stated}").factor


def unit_required(name: str) -> bool:
    """Whether the unit of a property must be given if the file states none, since it is published in several units.
    Custom properties are defined with their unit."""
    return name in BUILT_IN and len(units.usual(PROPERTIES[name].unit)) > 1


def others(name: str) -> tuple[str, ...]:
    """Other units in which a property (or positions, a cell) is often published."""
    if name not in PROPERTIES:
        return ("bohr", "fractional") if name == "positions" else ("bohr",)
    return {
        "eV": ("hartree", "kcal/mol", "eV/atom") if PROPERTIES[name].extensive else ("hartree", "kcal/mol"),
        "eV/Å": ("hartree/bohr", "kcal/mol/angstrom", "-hartree/bohr for gradients"),
        "eV/Å³": ("GPa", "-kbar as VASP prints it"),
        "eV/atom": ("eV for the whole structure",),
        "e Å": ("debye",),
        "D": ("e*angstrom",),
        "log₁₀ GPa": ("GPa",),
    }.get(PROPERTIES[name].unit, ())


def notes(
    counts: Mapping[str, Mapping[str, int]],
    given: Mapping[str, str],
    file_units: Mapping[str, Sequence[str]] | None = None,
    *,
    assumed: bool = False,
) -> list[str]:
    """Notes for the card: source entry and unit conversion of each label.

    Args:
        counts: property → entry → structures.
        given: the user's units, as for `check_units`.
        file_units: property, "positions" or "cell" → units stated in the files.
        assumed: if some unit was stated, also note the assumed units of the other properties.
    """
    file_units = file_units or {}
    lines = [
        f"{name} in {unit}{'' if name in given else ', as the file says'}: converted to Å"
        for name in GEOMETRY_UNITS
        if (unit := given.get(name) or ", ".join(file_units.get(name, ())))
    ]
    for name, keys in counts.items():
        in_file = ", ".join(file_units.get(name, ()))
        user_unit = given.get(name) or (given.get(stresses.VIRIAL.name) if name == "stress" else None)
        if user_unit:
            unit = f" in {user_unit}" + (f" (the file says {in_file})" if in_file and in_file != user_unit else "")
        elif in_file:
            unit = f" in {in_file}, as the file says"
        else:
            state_unit = assumed and (given or file_units)
            unit = f", taken to be in {PROPERTIES[name].unit}" if state_unit and PROPERTIES[name].unit else ""
        lines += [f"{name} from {key!r}{unit}: {n} structures" for key, n in keys.items()]
    return lines


def check_matches(
    source: str,
    keys: Mapping[str, str],
    defined: Sequence[Property],
    counts: Collection[str],
    entries: Collection[str],
    candidates: Mapping[str, Sequence[str]],
) -> None:
    """Refuse keys and definitions that match nothing in the file.

    Args:
        source: the file or folder.
        keys: property → entry; an empty entry leaves the property out.
        defined: properties that the user defined for this file.
        counts: properties with labels.
        entries: entries of the file.
        candidates: property → the entries that were searched for.

    Raises:
        EutecticError: an entry that no structure has; a defined property without a label.
    """
    required = [*(name for name, key in keys.items() if key), *(p.name for p in defined if keys.get(p.name) != "")]
    for name in dict.fromkeys(required):
        found = "stress" if name == stresses.VIRIAL.name else name
        if found not in counts and found in PROPERTIES:
            tried = tuple(candidates[name])
            near = suggest(tried[-1], entries)
            raise EutecticError(
                source,
                f"no {' or '.join(map(repr, tried))} for {name}",
                f"an existing entry: {', '.join(entries) or 'the file has none'}",
                f"did you mean --key {name}={near}?" if near else f"name the entry that holds it: --key {name}=NAME",
            )
