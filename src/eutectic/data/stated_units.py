"""Units that a user states for files that do not say theirs: "kcal/mol", "hartree/bohr", "-kbar", "eV/atom".

A minus in front turns the sign: for files that hold gradients where forces are asked for, or pressures where
stresses are (VASP prints its stress in kbar, with compression positive).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from ase import units as ase_units

from eutectic.atoms import PROPERTIES, EutecticError, did_you_mean
from eutectic.atoms.units import BOHR, HARTREE, KCAL_PER_MOL

ENERGY: dict[str, float] = {
    "eV": 1.0,
    "meV": 1e-3,
    "hartree": HARTREE,
    "rydberg": HARTREE / 2,
    "kcal/mol": KCAL_PER_MOL,
    "kJ/mol": KCAL_PER_MOL / 4.184,
}
"""In eV."""

LENGTH: dict[str, float] = {"angstrom": 1.0, "bohr": BOHR, "nm": 10.0}
"""In Å."""

T = TypeVar("T")

_GPA = float(ase_units.GPa)
_DEBYE = float(ase_units.Debye)
_DIPOLE = {"debye": _DEBYE, **{f"e*{name}": value for name, value in LENGTH.items()}}

_FACTORS: dict[str, Mapping[str, float]] = {
    "eV": ENERGY,
    "eV/Å": {f"{e}/{x}": ENERGY[e] / LENGTH[x] for e in ENERGY for x in LENGTH},
    "eV/Å³": {
        **{f"{e}/{x}^3": ENERGY[e] / LENGTH[x] ** 3 for e in ENERGY for x in LENGTH},
        "GPa": _GPA,
        "kbar": _GPA / 10,
    },
    "eV/atom": ENERGY,
    "meV/atom": {name: 1e3 * value for name, value in ENERGY.items()},
    "e Å": _DIPOLE,
    "D": {name: value / _DEBYE for name, value in _DIPOLE.items()},
    "1/cm": {"1/cm": 1.0, "THz": 1e12 / 29_979_245_800},
    "log₁₀ GPa": {"log10(GPa)": 1.0},
    "cal/(mol K)": {"cal/(mol*K)": 1.0, "J/(mol*K)": 1 / 4.184},
    "a0³": {"bohr^3": 1.0, "angstrom^3": BOHR**-3},
    "a0²": {"bohr^2": 1.0, "angstrom^2": BOHR**-2},
}
"""The library's unit of a property → names of the units a file may have → in the library's. What has none of these
(charges in e, what is true or false, pure numbers) is not asked for."""


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """From a file's numbers to the library's.

    Attributes:
        factor: to multiply by.
        of_atoms: power of the number of atoms to multiply by as well: 1 for an energy per atom that is to be one of
            the whole structure, −1 for the reverse.
        logarithm: take the decimal logarithm last.
    """

    factor: float = 1.0
    of_atoms: int = 0
    logarithm: bool = False

    def __call__(self, values: np.ndarray, n_atoms: int) -> np.ndarray:
        """The same quantity in the library's unit; what has no logarithm becomes NaN, which no store takes."""
        converted = np.asarray(values * (self.factor * float(n_atoms) ** self.of_atoms))
        if not self.logarithm:
            return converted
        return np.asarray(np.log10(converted, out=np.full_like(converted, np.nan), where=converted > 0))


def needed(name: str) -> bool:
    """Whether a property's unit has to be stated: whether there is more than one that it could be in."""
    return PROPERTIES[name].unit in _FACTORS


def example(name: str) -> str:
    """The library's own unit of a property, as it is stated."""
    return {
        "eV/Å": "eV/angstrom",
        "eV/Å³": "eV/angstrom^3",
        "e Å": "e*angstrom",
        "D": "debye",
        "log₁₀ GPa": "log10(GPa)",
        "cal/(mol K)": "cal/(mol*K)",
        "a0³": "bohr^3",
        "a0²": "bohr^2",
    }.get(unit := PROPERTIES[name].unit, unit)


def others(name: str) -> tuple[str, ...]:
    """A few units, beside `example`, in which a property (or positions, a cell) is often published."""
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


def conversion(name: str, stated: str) -> Conversion:
    """Of a property, from the unit a file has it in.

    Args:
        name: of the property.
        stated: unit, of any case, with a minus in front where the sign has to be turned.

    Raises:
        EutecticError: a unit of something else, or of no name known here.
    """
    unit = PROPERTIES[name].unit
    known = {u: Conversion(factor=factor) for u, factor in _FACTORS.get(unit, {"1": 1.0}).items()}
    if unit == "eV" and PROPERTIES[name].extensive:
        known |= {f"{e}/atom": Conversion(factor=value, of_atoms=1) for e, value in ENERGY.items()}
    elif unit in ("eV/atom", "meV/atom"):
        whole = _FACTORS[unit]
        known = {f"{e}/atom": Conversion(factor=value) for e, value in whole.items()}
        known |= {e: Conversion(factor=value, of_atoms=-1) for e, value in whole.items()}
    elif unit == "log₁₀ GPa":
        known |= {"GPa": Conversion(logarithm=True), "kbar": Conversion(factor=0.1, logarithm=True)}
    found = _find(stated.removeprefix("-"), known, f"--unit {name}={stated}", example(name))
    return replace(found, factor=-found.factor) if stated.startswith("-") else found


def length(what: str, stated: str) -> float:
    """Å in a unit of length, for `what` (positions, cell).

    Raises:
        EutecticError: no unit of length.
    """
    return _find(stated, LENGTH, f"--unit {what}={stated}", "angstrom")


def _find(stated: str, known: Mapping[str, T], where: str, usual: str) -> T:
    # meV and MeV differ by nine orders, and nobody means the second.
    found = {name.lower(): value for name, value in known.items()}
    if stated.lower() in found:
        return found[stated.lower()]
    raise EutecticError(
        where,
        f"unit {stated!r}",
        f"one of {', '.join(known)}",
        did_you_mean(stated, known, f"name the unit the file has it in, such as {usual}"),
    )
