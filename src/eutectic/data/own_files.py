"""Options for files of the user's own: which entry holds which property, in which unit, and what is not found."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence

from eutectic.atoms import PROPERTIES, EutecticError, Property, units
from eutectic.atoms.properties import BUILT_IN

GEOMETRY_UNITS = ("positions", "cell")
"""What has a unit beside the properties."""


def check_keys(keys: Mapping[str, str], *more: str) -> None:
    """Refuse a `--key` for something that is not a property.

    Args:
        keys: property → entry.
        more: what else may have a key.

    Raises:
        EutecticError: as said, with the nearest name.
    """
    _check_names("--key", keys, (*PROPERTIES, *more))


def check_units(stated: Mapping[str, str]) -> None:
    """Refuse a `--unit` of something that has none, or one that is not of its quantity.

    Args:
        stated: property, "positions" or "cell" → unit. A stress may be in a unit of energy (see `of_virials`), and
            positions "fractional".

    Raises:
        EutecticError: as said.
    """
    _check_names("--unit", stated, (*PROPERTIES, *GEOMETRY_UNITS))
    for name, unit in stated.items():
        if name in GEOMETRY_UNITS:
            if (name, unit) != ("positions", "fractional"):
                length(name, unit)
        elif name != "stress" or not _is_energy(unit):
            PROPERTIES[name].conversion(unit)


def _check_names(option: str, given: Mapping[str, str], known: Sequence[str]) -> None:
    for name, value in given.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            raise EutecticError(
                option,
                f"property {name!r}",
                f"one of {', '.join(known)}",
                (f"did you mean {near[0]!r}? If not, " if near else "")
                + f"define a property of your own with --define {name}=UNIT"
                + (f" --key {name}={value}" if option == "--key" else ""),
            )


def length(what: str, stated: str) -> float:
    """Å in a unit of length, for `what` (positions, cell).

    Raises:
        EutecticError: no unit of length.
    """
    return units.conversion(stated, "angstrom", where=f"--unit {what}={stated}").factor


def of_virials(stated: str | None, key: str) -> float:
    """eV in the unit of virials, which is of energy; ASE's where it is not stated.

    Raises:
        EutecticError: the unit stated for the stress is not one of energy.
    """
    if stated is None:
        return 1.0
    return units.conversion(stated, "eV", where=f"--unit stress={stated}, where {key} holds virials").factor


def _is_energy(stated: str) -> bool:
    try:
        units.conversion(stated, "eV")
    except EutecticError:
        return False
    return True


def asked_for(name: str) -> bool:
    """Whether a file that does not say its units has to be told that of a property: whether there is more than one
    that it could be in. A property of the user's own was defined with its unit."""
    return name in BUILT_IN and len(units.usual(PROPERTIES[name].unit)) > 1


def others(name: str) -> tuple[str, ...]:
    """A few units, beside the library's own, in which a property (or positions, a cell) is often published."""
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


def notes(counts: Mapping[str, Mapping[str, int]], stated: Mapping[str, str], *, assumed: bool = False) -> list[str]:
    """For the card: where each label comes from, and what was converted.

    Args:
        counts: property → entry → structures.
        stated: as for `check_units`.
        assumed: say what the others were taken to be in, where some unit was stated.
    """
    told = [f"{name} in {unit}: converted to Å" for name, unit in stated.items() if name in GEOMETRY_UNITS]
    for name, keys in counts.items():
        if name in stated:
            unit = f" in {stated[name]}"
        else:
            unit = f", taken to be in {PROPERTIES[name].unit}" if assumed and stated and PROPERTIES[name].unit else ""
        told += [f"{name} from {key!r}{unit}: {n} structures" for key, n in keys.items()]
    return told


def check_found(
    source: str,
    keys: Mapping[str, str],
    defined: Sequence[Property],
    counts: Collection[str],
    there: Collection[str],
    looked_for: Mapping[str, Sequence[str]],
) -> None:
    """Refuse options that found nothing.

    Args:
        source: the file or folder.
        keys: property → entry; an empty entry leaves the property out.
        defined: properties that the user defined for this file.
        counts: properties of which there are labels.
        there: entries of the file.
        looked_for: property → the entries that were looked for.

    Raises:
        EutecticError: an entry that no structure has; a defined property without a label.
    """
    asked = [*(name for name, key in keys.items() if key), *(p.name for p in defined if keys.get(p.name) != "")]
    for name in dict.fromkeys(asked):
        if name not in counts and name in PROPERTIES:
            tried = tuple(looked_for[name])
            near = difflib.get_close_matches(tried[-1], there, 1, 0.5)
            raise EutecticError(
                source,
                f"no {' or '.join(map(repr, tried))} for {name}",
                f"an entry that is there: {', '.join(there) or 'the file has none'}",
                f"did you mean --key {name}={near[0]}?" if near else f"name the entry that holds it: --key {name}=NAME",
            )
