"""Stresses in files: tensors, six numbers in some order, or virials, with any name, sign and unit.

`--key stress=NAME` names a stress, `--key virial=NAME` a virial W = −σV, from which the stress follows as σ = −W/V;
`--unit virial=-eV` is a virial of the opposite sign. `NAME:xx,yy,zz,xy,yz,zx` states the order of six numbers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from eutectic.atoms import EutecticError, Property, units

VIRIAL = Property(name="virial", level="structure", rank=2, unit="eV", extensive=True, symbol="W")
"""W = −σV: not a property of its own, since the stress follows from it."""

USUAL = ("REF_virials", "REF_virial", "dft_virials", "dft_virial", "virials", "virial")
"""Usual names of virials W = −σV in eV, as QUIP and ASE users write them."""

VOIGT = ("xx", "yy", "zz", "yz", "xz", "xy")
"""Order of ASE, pymatgen and MatPES."""

ORDERS = (
    "xx,yy,zz,yz,xz,xy (Voigt: ASE, pymatgen, MatPES), xx,yy,zz,xy,yz,zx (VASP's OUTCAR) or xx,yy,zz,xy,xz,yz (LAMMPS)"
)


@dataclass(frozen=True)
class Place:
    """An entry in which the stress may be.

    Attributes:
        entry: its name.
        order: order of six numbers; empty if not stated.
        virial: whether it holds a virial.
    """

    entry: str
    order: tuple[str, ...] = ()
    virial: bool = False


def places(
    usual: tuple[str, ...], keys: Mapping[str, str], stated: Mapping[str, str], virials: tuple[str, ...] = USUAL
) -> tuple[Place, ...]:
    """Entries in which the stress may be, in order of preference.

    A named entry is a virial if its unit is one of energy or, if no unit is given, if its name says so.

    Args:
        usual: usual names of stresses.
        keys: the user's `--key`, with "stress" or "virial".
        stated: the user's `--unit`.
        virials: usual names of virials.
    """
    found = []
    for name in ("stress", "virial"):
        if keys.get(name):
            entry, order = split(keys[name])
            found.append(Place(entry, order, name == "virial" or _is_virial(entry, stated.get("stress"))))
    if found or "stress" in keys:
        return tuple(found)
    found = [Place(entry) for entry in usual]
    return (*found, *(Place(entry, virial=True) for entry in virials if "virial" not in keys))


def _is_virial(entry: str, unit: str | None) -> bool:
    if unit is not None:
        return of_energy(unit)
    return re.search(r"(^|[_\W])virials?$", entry, re.IGNORECASE) is not None


def of_energy(unit: str) -> bool:
    """Whether a unit (with or without a minus) is an energy, as for a virial; "a.u." may also be a stress."""

    def converts(wanted: str) -> bool:
        try:
            units.conversion(unit, wanted)
        except EutecticError:
            return False
        return True

    return converts("eV") and not converts("eV/angstrom^3")


def unit_of_virial(stated: Mapping[str, str]) -> Mapping[str, str]:
    """The user's units, with a unit of energy given for the stress as that of the virial."""
    if "virial" in stated or "stress" not in stated:
        return stated
    return {**stated, "virial": stated["stress"]}


def split(entry: str) -> tuple[str, tuple[str, ...]]:
    """Name and order in "NAME:xx,yy,zz,xy,yz,zx"; without an order, all of it is the name.

    Raises:
        EutecticError: components that are not those of a symmetric tensor.
    """
    name, colon, text = entry.rpartition(":")
    parts = re.split(r"[,\s]+", text.strip().lower())
    if not colon or not all(re.fullmatch(r"[xyz]{2}", part) for part in parts):
        return entry, ()
    order = tuple("".join(sorted(part)) for part in parts)
    if sorted(order) != sorted(VOIGT):
        raise EutecticError(
            f"--key {entry}", f"the order {text}", f"each component once, such as {ORDERS}", "correct the order"
        )
    return name, order


def tensor(six: np.ndarray, order: tuple[str, ...] = VOIGT) -> np.ndarray:
    """(3, 3) symmetric tensor of six numbers in this order."""
    whole = np.zeros((3, 3))
    for value, component in zip(six, order or VOIGT, strict=True):
        i, j = ("xyz".index(axis) for axis in component)
        whole[i, j] = whole[j, i] = value
    return whole


def of_virial(virial: np.ndarray, volume: float) -> np.ndarray:
    """σ = −W/V (3, 3), eV/Å³, of a virial in eV and a volume in Å³."""
    return np.asarray(-virial / volume)


def contradiction(stress: np.ndarray, other: np.ndarray) -> str | None:
    """How a stress differs from the one derived from a virial, in words; None if they agree.

    Args:
        stress, other: (3, 3) eV/Å³.
    """
    scale = max(float(np.abs(stress).max()), float(np.abs(other).max()))
    if np.abs(stress - other).max() <= 0.02 * scale + 1e-5:
        return None
    ratio = float((stress * other).sum() / max(float((other * other).sum()), 1e-300))
    alike = np.abs(stress - ratio * other).max() <= 0.02 * float(np.abs(stress).max())
    if not alike:
        return "of which neither is a multiple of the other"
    named = {"−1, a sign": -1.0}
    for unit in ("GPa", "kbar", "hartree/bohr^3"):
        for sign in (1, -1):
            named[f"{'−' if sign < 0 else ''}{unit}"] = sign / units.convert(unit, "eV/angstrom^3")
    near = next((word for word, value in named.items() if abs(ratio / value - 1) < 0.02), None)
    return f"of which the first is {ratio:.4g} times the second" + (f" ({near})" if near else "")
