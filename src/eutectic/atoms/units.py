"""Units and conversions. The library uses eV, Å, e and derived units; readers convert once, on reading.

Use `convert("kcal/mol", "eV")`. Constants are the CODATA 2014 values of ASE (`ase.units`), so that numbers agree with
ASE to the last digit.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from ase import units as _ase

from eutectic.atoms.errors import EutecticError

HARTREE = float(_ase.Hartree)
"""1 Hartree in eV (27.21138602 eV, CODATA 2014)."""

BOHR = float(_ase.Bohr)
"""1 bohr in Å (0.529177210670 Å, CODATA 2014)."""

KCAL_PER_MOL = float(_ase.kcal / _ase.mol)
"""1 kcal/mol in eV (0.0433641 eV; 1 kcal = 4184 J)."""

Dimension = tuple[tuple[str, int], ...]
"""Powers of "energy", "length", "charge", …, sorted by name; () if dimensionless."""


def _dimension(**powers: int) -> Dimension:
    return tuple(sorted((name, power) for name, power in powers.items() if power))


ENERGY = _dimension(energy=1)
LENGTH = _dimension(length=1)
_MOLAR_ENERGY = _dimension(energy=1, amount=1)
_PRESSURE = _dimension(energy=1, length=-3)


@dataclass(frozen=True)
class Unit:
    """Dimension and size of a unit.

    Attributes:
        dimension: powers of energy, length, charge, temperature, wavenumber, amount and atom. An energy per atom does
            not have the dimension of an energy; kcal and kJ have the dimension energy × amount, so that kcal/mol is an
            energy and kcal alone is not.
        factor: size in eV, Å, e, K, 1/cm, mol and atom.
        logarithm: whether values are decimal logarithms of the value in this unit.
    """

    dimension: Dimension
    factor: float
    logarithm: bool = False


_TABLE: dict[str, tuple[Unit, tuple[str, ...]]] = {
    "eV": (Unit(ENERGY, 1.0), ("electronvolt",)),
    "meV": (Unit(ENERGY, 1e-3), ()),
    "hartree": (Unit(ENERGY, HARTREE), ("Ha", "Eh", "E_h", "hartrees")),
    "mHa": (Unit(ENERGY, HARTREE / 1000), ("millihartree", "mEh", "mhartree")),
    "rydberg": (Unit(ENERGY, float(_ase.Rydberg)), ("Ry",)),
    "kcal": (Unit(_MOLAR_ENERGY, KCAL_PER_MOL), ()),
    "cal": (Unit(_MOLAR_ENERGY, KCAL_PER_MOL / 1000), ()),
    "kJ": (Unit(_MOLAR_ENERGY, float(_ase.kJ / _ase.mol)), ()),
    "J": (Unit(_MOLAR_ENERGY, float(_ase.J / _ase.mol)), ()),
    "mol": (Unit(_dimension(amount=1), 1.0), ("mole",)),
    "angstrom": (Unit(LENGTH, 1.0), ("Å", "ang", "A", "angstroms")),
    "bohr": (Unit(LENGTH, BOHR), ("a0", "a_0")),
    "nm": (Unit(LENGTH, float(_ase.nm)), ("nanometer", "nanometre")),
    "pm": (Unit(LENGTH, float(_ase.nm) / 1000), ("picometer", "picometre")),
    "GPa": (Unit(_PRESSURE, float(_ase.GPa)), ()),
    "MPa": (Unit(_PRESSURE, float(_ase.GPa) / 1000), ()),
    "Pa": (Unit(_PRESSURE, float(_ase.Pascal)), ("pascal",)),
    "atm": (Unit(_PRESSURE, 101_325 * float(_ase.Pascal)), ()),
    "kbar": (Unit(_PRESSURE, float(_ase.GPa) / 10), ()),
    "bar": (Unit(_PRESSURE, float(_ase.bar)), ()),
    "e": (Unit(_dimension(charge=1), 1.0), ("elementary_charge",)),
    "debye": (Unit(_dimension(charge=1, length=1), float(_ase.Debye)), ("D",)),
    "K": (Unit(_dimension(temperature=1), 1.0), ("kelvin",)),
    "1/cm": (Unit(_dimension(wavenumber=1), 1.0), ("cm^-1", "invcm")),
    "THz": (Unit(_dimension(wavenumber=1), 1e12 / 29_979_245_800), ()),
    "J/m^2": (Unit(_dimension(energy=1, length=-2), float(_ase.J / _ase.m**2)), ()),
    "atom": (Unit(_dimension(atom=1), 1.0), ()),
    "1": (Unit((), 1.0), ()),
}
"""Name → unit and alternative spellings; case-insensitive. All other units are products and quotients of these."""

_BY_NAME: dict[str, Unit] = {
    spelling.lower(): unit for name, (unit, others) in _TABLE.items() for spelling in (name, *others)
}

_ATOMIC = ("au", "a.u.", "atomic", "atomic unit", "atomic units", "atomic_unit", "atomic_units")
"""Names of "the atomic unit", which depends on the quantity."""

_EQUIVALENTS: Mapping[Dimension, float] = {
    ENERGY: 1.0,
    _dimension(wavenumber=1): float(_ase.invcm),
    _dimension(temperature=1): float(_ase.kB),
}
"""Energy equivalents of 1 eV, 1 1/cm and 1 K, in eV (hc/λ and k_B T; CODATA)."""

_SPELLINGS = (
    "eV",
    "meV",
    "eV/atom",
    "meV/atom",
    "eV/Å",
    "meV/Å",
    "eV/Å²",
    "eV/Å³",
    "hartree",
    "hartree/bohr",
    "rydberg",
    "kcal/mol",
    "kJ/mol",
    "GPa",
    "kbar",
    "J/m²",
    "Å",
    "Å²",
    "Å³",
    "a0",
    "a0²",
    "a0³",
    "nm",
    "e",
    "e Å",
    "D",
    "K",
    "1/cm",
    "THz",
    "cal/(mol K)",
    "J/(mol K)",
    "log₁₀ GPa",
)
"""The library's spellings of units."""

_ENERGIES = ("eV", "meV", "hartree", "rydberg", "kcal/mol", "kJ/mol")

_USUAL = (
    *_ENERGIES,
    *("angstrom", "bohr", "nm"),
    *(f"{e}/{x}" for e in _ENERGIES for x in ("angstrom", "bohr")),
    *("eV/angstrom^3", "GPa", "kbar", "hartree/bohr^3", "rydberg/bohr^3"),
    *("eV/angstrom^2", "J/m^2"),
    *(f"{e}/atom" for e in _ENERGIES),
    *("e*angstrom", "debye", "e*bohr", "e"),
    *("angstrom^2", "bohr^2", "angstrom^3", "bohr^3"),
    *("1/cm", "THz", "K"),
    *("cal/(mol*K)", "J/(mol*K)", "log10(GPa)"),
)
"""Units common in published data sets."""

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺₀₁₂₃₄₅₆₇₈₉−·", "0123456789-+0123456789-*")


def _plain(text: str) -> str:
    """Normalise a unit to lower case and ASCII operators: "Å³" and "angstrom**3" become "å^3", "angstrom^3"."""
    text = unicodedata.normalize("NFC", text.strip())
    text = re.sub(r"([⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]+)", r"^\1", text).translate(_SUPERSCRIPTS).replace("**", "^")
    return re.sub(r"\s*([*/^()])\s*|\s+", lambda match: match[1] or " ", text).lower()


@cache
def _known(text: str) -> Unit | None:
    """Parse a unit; None if it is unknown."""
    plain = _plain(text)
    if plain in _BY_NAME:
        return _BY_NAME[plain]
    if logarithm := re.fullmatch(r"log10(?:\((.+)\)| (.+))", plain):
        inner = _known(logarithm[1] or logarithm[2])
        return None if inner is None or inner.logarithm else replace(inner, logarithm=True)
    try:
        tokens = re.findall(r"[^\W\d]\w*|\^-?\d+|[*/ ()]|\d+|.", plain)
        powers, factor = _product(tokens)
    except (ValueError, IndexError, OverflowError):
        return None
    return None if tokens else Unit(_dimension(**powers), factor)


def _product(tokens: list[str]) -> tuple[dict[str, int], float]:
    """Parse a product or quotient up to a closing bracket or the end, removing its tokens from `tokens`."""
    powers, factor = _power(tokens)
    while tokens and tokens[0] != ")":
        divided = tokens.pop(0) if tokens[0] in ("*", "/", " ") else ""
        more, size = _power(tokens)
        sign = -1 if divided == "/" else 1
        powers = {k: powers.get(k, 0) + sign * more.get(k, 0) for k in {**powers, **more}}
        factor = factor / size if sign < 0 else factor * size
    return powers, factor


def _power(tokens: list[str]) -> tuple[dict[str, int], float]:
    token = tokens.pop(0)
    if token == "(":
        powers, factor = _product(tokens)
        if tokens.pop(0) != ")":
            raise ValueError("a bracket is open")
    else:
        if token not in _BY_NAME:
            raise ValueError(token)
        unit = _BY_NAME[token]
        powers, factor = dict(unit.dimension), unit.factor
    if tokens and tokens[0].startswith("^"):
        power = int(tokens.pop(0)[1:])
        powers, factor = {k: n * power for k, n in powers.items()}, factor**power
    return powers, factor


def is_known(text: str) -> bool:
    """Whether a text is a known unit; "" is not."""
    return _known(text) is not None


def spelling(text: str) -> str:
    """The library's spelling of a unit: "ev/angstrom" becomes "eV/Å"; unknown units are unchanged."""
    parsed = _known(text)
    if parsed is None:
        return text.strip()
    return next((name for name in _SPELLINGS if _known(name) == parsed), text.strip())


def as_typed(text: str) -> str:
    """A unit in ASCII: "eV/Å³" becomes "eV/angstrom^3"."""
    if (plain := {"D": "debye", "log₁₀ GPa": "log10(GPa)"}.get(text)) is not None:
        return plain
    text = re.sub(r"\ba0", "bohr", text)
    return text.replace("Å", "angstrom").replace("³", "^3").replace("²", "^2").replace(" ", "*")


def unit(text: str, where: str = "unit") -> Unit:
    """Parse a unit ("kcal/mol", "hartree/bohr", "eV/Å³", "cal/(mol K)"), case-insensitive.

    Raises:
        EutecticError: an unknown unit; the error suggests the closest known one.
    """
    parsed = _known(text)
    if parsed is None:
        raise _unknown(text, where)
    return parsed


def convert(stated: str, wanted: str, value: float = 1.0) -> float:
    """Convert a value to another unit: `convert("kcal/mol", "eV")` is 0.0433641.

    Energies, wavenumbers and temperatures are converted into one another with hc and k_B.

    Raises:
        EutecticError: an unknown unit, or units of different quantities.
    """
    a, b = unit(stated), unit(wanted)
    factor = _factor(a, b)
    if factor is None or a.logarithm != b.logarithm or (a.logarithm and factor != 1):
        raise EutecticError(
            f"conversion from {stated!r} to {wanted!r}",
            "units of two different quantities",
            f"a unit such as {', '.join(usual(wanted)[:6])}",
            "check the unit of the numbers",
        )
    return value * factor


def _factor(a: Unit, b: Unit) -> float | None:
    if a.dimension == b.dimension:
        return a.factor / b.factor
    if a.dimension in _EQUIVALENTS and b.dimension in _EQUIVALENTS:
        return a.factor * _EQUIVALENTS[a.dimension] / (b.factor * _EQUIVALENTS[b.dimension])
    return None


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """Conversion from the values in a file to the library's unit.

    Attributes:
        factor: multiply by this factor.
        of_atoms: also multiply by this power of the number of atoms: 1 to convert an energy per atom to the energy of
            the structure, −1 for the reverse.
        logarithm: finally take the decimal logarithm.
    """

    factor: float = 1.0
    of_atoms: int = 0
    logarithm: bool = False

    def __call__(self, values: np.ndarray, n_atoms: int) -> np.ndarray:
        """Convert values; values without a logarithm become NaN, which stores reject."""
        converted = np.asarray(values * (self.factor * float(n_atoms) ** self.of_atoms))
        if not self.logarithm:
            return converted
        return np.asarray(np.log10(converted, out=np.full_like(converted, np.nan), where=converted > 0))


def conversion(stated: str, wanted: str, *, extensive: bool = False, where: str = "unit") -> Conversion:
    """Conversion of values in a file from one unit to another.

    Args:
        stated: unit in the file, case-insensitive; "a.u." is the atomic unit of the quantity. A leading minus reverses
            the sign: for gradients instead of forces, or pressures instead of stresses (VASP prints kbar with
            compression positive).
        wanted: unit to convert to.
        extensive: whether the value of a structure may be given per atom.
        where: location named in the error.

    Raises:
        EutecticError: an unknown unit, or a unit of another quantity.
    """
    sign, text = (-1.0, stated[1:]) if stated[:1] in ("-", "−") else (1.0, stated)
    if not is_known(wanted):
        # A user-defined unit, or none: there is nothing to convert.
        if text.strip() == (wanted or "1"):
            return Conversion(factor=sign)
        raise EutecticError(where, f"unit {text!r}", f"only {wanted or '1'!r}", "omit the unit")
    b, choices = unit(wanted), usual(wanted, extensive)
    a = _known(text) or _atomic(text, b)
    if a is None:
        raise _unknown(text, where, choices)
    of_atoms = dict(b.dimension).get("atom", 0) - dict(a.dimension).get("atom", 0)
    factor = _factor(_without_atoms(a), _without_atoms(b))
    possible = of_atoms == 0 or (of_atoms == 1 and extensive) or (of_atoms == -1 and ("atom", -1) in b.dimension)
    if factor is None or not possible or a.logarithm > b.logarithm or (a.logarithm and factor != 1):
        raise _unknown(text, where, choices)
    return Conversion(factor=sign * factor, of_atoms=of_atoms, logarithm=b.logarithm and not a.logarithm)


def _atomic(text: str, target: Unit) -> Unit | None:
    """The atomic unit of the quantity of a unit: hartree/bohr if "au" is stated for a force."""
    powers = dict(target.dimension)
    if _plain(text) not in _ATOMIC or not powers or powers.keys() - {"energy", "length", "charge"} or target.logarithm:
        return None
    return Unit(target.dimension, HARTREE ** powers.get("energy", 0) * BOHR ** powers.get("length", 0))


def _without_atoms(unit: Unit) -> Unit:
    return replace(unit, dimension=tuple((name, power) for name, power in unit.dimension if name != "atom"))


@cache
def usual(wanted: str, extensive: bool = False) -> tuple[str, ...]:
    """Common units that can be converted to a unit, in ASCII, starting with the unit itself; empty if it is unknown.

    Args:
        wanted: unit to convert to.
        extensive: whether the value of a structure may be given per atom.
    """
    if (b := _known(wanted)) is None:
        return ()
    same = [name for name in _USUAL if unit(name).dimension == b.dimension and unit(name).logarithm == b.logarithm]
    more = []
    for name in _USUAL:
        a = unit(name)
        atoms = dict(b.dimension).get("atom", 0) - dict(a.dimension).get("atom", 0)
        alike = _without_atoms(a).dimension == _without_atoms(b).dimension
        if name not in same and alike and a.logarithm <= b.logarithm and (atoms == 0 or atoms < 0 or extensive):
            more.append(name)
    first = as_typed(spelling(wanted))
    return tuple(dict.fromkeys([*([first] if first in same else []), *same, *more]))


def _unknown(text: str, where: str, choices: tuple[str, ...] = ()) -> EutecticError:
    # Suggest units of the same quantity if it is known, otherwise any unit.
    names = {name.lower(): name for name in choices or (*_USUAL, *_TABLE)}
    near = [n for n in difflib.get_close_matches(text.lower(), names, 2) if n != text.lower()]
    return EutecticError(
        where,
        f"unit {text!r}",
        f"one of {', '.join(choices)}" if choices else f"a unit such as {', '.join(_USUAL[:9])}",
        f"did you mean {names[near[0]]!r}?"
        if near
        else f"give the unit of the numbers, such as {(choices or _USUAL)[0]}",
    )
