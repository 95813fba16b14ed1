"""Units stated in files.

`energy_unit=kcal/mol` in a comment of extended xyz, `_property_unit_dict` and `_distance_unit` of a SchNetPack
database, the units in `key_descriptions` of an ASE database, `e_unit` and `r_unit` of an sGDML file, a field
`units = {"energy": "hartree"}`. A trajectory of CP2K (`i = 0, time = 0.000, E = -17.1`) has energies in hartree.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np

from eutectic.atoms import PROPERTIES, EutecticError, units
from eutectic.data import own_files
from eutectic.data.formats import ase_lmdb

Stated = Mapping[str, str]
"""Quantity in lower case → unit. "" is a unit stated without a quantity."""

_OF_ALL = ("unit", "units", "property_units", "property_unit_dict", "unit_dict", "key_units")
"""Entries with the units of several quantities, or with a unit but no quantity."""

_OTHERS: Mapping[str, tuple[str, ...]] = {
    "energy": ("e", "energies"),
    "forces": ("f", "force"),
    "virial": ("virials",),
    "positions": ("position", "pos", "coordinates", "coords", "xyz", "r", "distance", "distances", "length"),
    "cell": ("lattice", "box"),
}
"""Other names of quantities in such statements."""

_OF_CP2K = {"i", "time", "E"}

_IN_NAMES = {
    **dict.fromkeys(("hartree", "ha", "kcal", "kcalmol", "kj", "kjmol", "ry", "rydberg", "mev"), "energy"),
    **dict.fromkeys(("bohr", "gpa", "kbar"), "other"),
}
"""Words in an entry's name that indicate a unit other than the library's: `E_hartree`, `energy (kcal/mol)`."""


def stated(entries: Mapping[str, object]) -> dict[str, str]:
    """The units stated in the entries of a structure, or in the metadata of a file."""
    found: dict[str, str] = {}
    for name, value in entries.items():
        plain = str(name).lower().strip("_")
        if plain == "key_descriptions" and isinstance(value, Mapping):
            # ASE: key → (short description, long description, unit).
            found |= {str(key).lower(): str(d[2]) for key, d in value.items() if _is_description(d)}
        elif plain in _OF_ALL:
            found |= _of_several(value)
        elif value is True and _is_other_energy(str(name)):
            found.setdefault("", str(name))  # "energy=-5.0 kcal/mol" in a comment
        elif (match := re.fullmatch(r"units?_(?:of_)?(?!cell$)(.+)|(.+?)_?units?", plain)) and (text := _text(value)):
            found[match[1] or match[2]] = text
    if {"i", "E"} <= entries.keys() <= _OF_CP2K:
        found["e"] = "hartree"
    return found


def _is_description(value: object) -> bool:
    return isinstance(value, list | tuple) and len(value) == 3 and isinstance(value[2], str) and value[2] != ""


def _is_other_energy(text: str) -> bool:
    if not units.is_known(text):
        return False
    unit = units.unit(text)
    return unit.dimension == units.ENERGY and unit.factor != 1


def _text(value: object) -> str | None:
    """A string, possibly in an array of one element; None for anything else."""
    if isinstance(value, np.ndarray) and value.size == 1 and value.dtype.kind in "SU":
        value = value.reshape(-1)[0]
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    return str(value) if isinstance(value, str) and value.strip() else None


def _of_several(value: object) -> dict[str, str]:
    text = _text(value)
    if text is not None and ":" in text:
        # ASE's reader of extended xyz removes the braces of {"energy": "eV"}.
        with suppress(ValueError):
            value = json.loads(text if text.lstrip().startswith("{") else f"{{{text}}}")
    if isinstance(value, Mapping):
        return {str(key).lower(): unit for key, item in value.items() if (unit := _text(item)) is not None}
    return {} if text is None else {"": text}


def unit_of(
    name: str,
    entry: str,
    given: Mapping[str, str],
    file_units: Stated,
    present: Collection[str] = (),
    where: str = "",
) -> str | None:
    """Unit of the numbers in an entry: the user's if given, else the one stated in the file.

    Args:
        name: property, "virial", "positions" or "cell".
        entry: its entry in the file.
        given: the user's units, `--unit`.
        file_units: units stated in the file, from `stated`.
        present: all entries; a unit stated for one of the others is not used for this one.
        where: location named in errors.

    Returns:
        None if neither gives one.

    Raises:
        EutecticError: the file states an unknown unit, one of another quantity, or one without a quantity; the entry's
            name indicates a unit other than the library's.
    """
    if name in given:
        return given[name]
    text = specific(name, entry, file_units, present)
    if text is not None:
        if not _fits(name, text):
            raise EutecticError(
                where,
                f"the file says that {entry} is in {text!r}",
                f"a unit of {name}, such as {', '.join(_usual(name)[:5]) or 'the one in its definition'}",
                f"give the unit of the numbers: --unit {name}=UNIT",
            )
        return text
    if (text := file_units.get("")) is not None:
        if _fits(name, text):
            return text
        if _is_doubtful(name, text):
            raise EutecticError(
                where,
                f"the file states the unit {text!r}, but not of which numbers",
                f"the unit of {name}",
                f"give it: --unit {name}={_usual(name)[0]}, or another of {', '.join(_usual(name)[1:5])}",
            )
    if name in PROPERTIES and own_files.unit_required(name) and (word := _in_name(name, entry)) is not None:
        raise EutecticError(
            where,
            f"the name {entry!r}, which suggests {word}",
            f"{name} in {PROPERTIES[name].unit}, or the unit of the numbers",
            f"give it: --unit {name}={_nearest(name, word)}",
        )
    return None


def specific(name: str, entry: str, file_units: Stated, present: Collection[str] = ()) -> str | None:
    """Unit that the file states for this entry; None if it states none. Arguments as for `unit_of`."""
    if (text := file_units.get(entry.lower())) is not None:
        return text
    elsewhere = {other.lower() for other in present} - {entry.lower()}
    for other in (name, *_OTHERS.get(name, ())):
        if other in file_units and other not in elsewhere:
            return file_units[other]
    return None


def _fits(name: str, text: str) -> bool:
    if name == "positions" and text == "fractional":
        return True
    try:
        conversion(name, text)
    except EutecticError:
        return False
    return True


def conversion(name: str, text: str, where: str = "") -> units.Conversion:
    """Conversion of a property, a virial, or a length (positions, cell) to the library's unit.

    Raises:
        EutecticError: an unknown unit, or one of another quantity.
    """
    if name in PROPERTIES:
        return PROPERTIES[name].conversion(text, where)
    wanted = "eV" if name == "virial" else "angstrom"
    return units.conversion(text, wanted, where=where or f"--unit {name}={text}")


def _usual(name: str) -> tuple[str, ...]:
    if name in PROPERTIES:
        return units.usual(PROPERTIES[name].unit, PROPERTIES[name].extensive)
    return units.usual("eV" if name == "virial" else "angstrom")


def _is_doubtful(name: str, text: str) -> bool:
    """Whether a unit stated without a quantity leaves the unit of a property in doubt."""
    if name not in PROPERTIES or not own_files.unit_required(name):
        return False
    if text.lower() in ("metal", "ase") or re.fullmatch(r"ev\W+(a|å|ang|angstroms?)", text.lower()):
        return False
    # A length says nothing about energies, and eV is the library's own unit.
    return not units.is_known(text) or (units.unit(text).dimension == units.ENERGY and units.unit(text).factor != 1)


def _in_name(name: str, entry: str) -> str | None:
    words = [word for word in re.split(r"[\W_]+", entry.lower()) if word]
    return next((word for word in words[1:] if word in _IN_NAMES and not _fits_as_is(name, word)), None)


def _fits_as_is(name: str, word: str) -> bool:
    return word in units.as_typed(PROPERTIES[name].unit).lower().split("/")


def _nearest(name: str, word: str) -> str:
    stem = {"ha": "hartree", "ry": "rydberg", "kcalmol": "kcal", "kjmol": "kj"}.get(word, word)
    return next((unit for unit in _usual(name) if stem in unit.lower()), "UNIT")


def of_file(path: Path, form: str) -> dict[str, str]:
    """The units stated in the metadata of a file.

    Args:
        path: the file.
        form: its format: "db" or "json" (ASE's databases), "aselmdb"; others have no metadata.
    """
    if form == "aselmdb":
        return stated(ase_lmdb.metadata(path))
    if form not in ("db", "json"):
        return {}
    from ase.db import connect

    # An unreadable file is reported when its structures are read.
    with suppress(Exception):
        return stated(connect(str(path), type=form).metadata or {})
    return {}
