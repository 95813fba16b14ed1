"""Labels of implausible size in the library's unit, and the units in which their size would be usual."""

from __future__ import annotations

import numpy as np

from eutectic.atoms import PROPERTIES
from eutectic.atoms.units import as_typed, usual
from eutectic.check.contents import TYPICAL, Contents
from eutectic.check.energies import Energies
from eutectic.check.geometry import BondTest, Geometry
from eutectic.check.report import Finding, SlopeTest, Units
from eutectic.check.scales import ENERGY_UNITS, LENGTH_UNITS, STRESS_UNITS, number
from eutectic.check.stresses import Stresses

LARGE_STRESS = 0.5
"""Median stress that is hardly ever exceeded, eV/Å³ (80 GPa)."""
LARGE_FORCE = 15.0
"""Median force that is hardly ever exceeded, eV/Å."""
HIGH_ENERGY = 20.0
"""Energy per atom above that of separate atoms, eV, that no structure exceeds."""
_WHY = "Labels in another unit are learned and predicted in that unit."


def of_scalars(contents: Contents) -> list[Finding]:
    """Labels of implausible size in the library's unit, and the units that would fit."""
    findings = []
    for name, sizes in contents.sizes.items():
        middle, prop = float(np.median(sizes.kept)), PROPERTIES[name]
        if len(sizes) < 3 or middle <= TYPICAL[name]:
            continue
        fitting = _fitting(name, middle)
        findings.append(
            Finding(
                code="label_size",
                severity="warning",
                title=f"{name} is far too large for {prop.unit}",
                message=f"Half of the values of {name} are beyond ±{number(middle)} {prop.unit}"
                + (f"; in {' or '.join(fitting)} they would be usual." if fitting else "."),
                why=_WHY,
                fix=f"Give the unit when the file is read: --unit {name}={fitting[0] if fitting else 'UNIT'}.",
                numbers={"median": middle, "fitting": fitting},
            )
        )
    return findings


def _usual_in(units: list[str]) -> str:
    """End of a sentence about numbers that would be usual in some units."""
    return f"; usual if they are in {' or '.join(units)}." if units else "."


def _fitting(name: str, middle: float) -> list[str]:
    prop = PROPERTIES[name]
    found = []
    for unit in usual(prop.unit, prop.extensive):
        value = abs(float(prop.conversion(unit)(np.asarray(middle), 1)))
        if unit != as_typed(prop.unit) and 1e-3 * TYPICAL[name] < value < 0.7 * TYPICAL[name]:
            found.append(unit)
    return found


def of_stresses(stresses: Stresses, test: SlopeTest) -> list[Finding]:
    """Stresses of implausible size, unless their changes with strain fit those of the energies."""
    if len(stresses.sizes) < 3 or test.factor == 1.0:
        return []
    middle = float(np.median(stresses.sizes.kept))
    if middle <= LARGE_STRESS:
        return []
    fitting = [unit for unit in ("GPa", "kbar") if 1e-4 < middle * STRESS_UNITS[unit] < 0.6 * LARGE_STRESS]
    if 1e-4 < float(np.median(np.divide(stresses.sizes.kept, stresses.volumes.kept))) < 0.6 * LARGE_STRESS:
        fitting.append("eV as virials (--key virial=NAME)")
    return [
        Finding(
            code="stress_size",
            severity="warning",
            title=f"stresses are far too large for eV/Å³ (half beyond {number(middle)})",
            message=f"Half of the structures have stresses beyond {number(middle)} eV/Å³ = "
            f"{number(middle / STRESS_UNITS['GPa'])} GPa"
            + (f"; usual if the numbers are {' or '.join(fitting)}." if fitting else "."),
            why=_WHY,
            fix="Give the unit when the file is read, e.g. --unit stress=GPa, or -kbar as VASP prints it; no action is "
            "needed under such pressure.",
            numbers={"median": middle, "fitting": fitting},
        )
    ]


def of_forces(geometry: Geometry, units: Units, bonds: BondTest | None) -> list[Finding]:
    """Forces of implausible size, and the units that would fit."""
    if len(geometry.forces) < 20 or (bonds is not None and bonds.conclusive):
        return []
    middle = float(np.median(geometry.forces.kept))
    if middle <= LARGE_FORCE or units.forces not in (None, "eV/Å"):
        return []
    scales = {f"{e}/{x}": ENERGY_UNITS[e] / LENGTH_UNITS[x] for e in ENERGY_UNITS for x in ("Å", "bohr")}
    scales["meV/Å"] = 1e-3
    fitting = [unit for unit, factor in scales.items() if 0.01 < middle * factor < 0.3 * LARGE_FORCE]
    return [
        Finding(
            code="forces_size",
            severity="warning",
            title=f"forces are far too large for eV/Å (half beyond {number(middle)})",
            message=f"Half of the forces are beyond {number(middle)} (usual: 0.05 to 5 eV/Å)" + _usual_in(fitting),
            why=_WHY,
            fix="Give the unit when the file is read, e.g. --unit forces=kcal/mol/angstrom.",
            numbers={"median": middle, "fitting": fitting},
        )
    ]


def of_energies(energies: Energies, units: Units) -> list[Finding]:
    """Energies that are implausible in eV, and the units that would fit."""
    if not energies.n or units.energy is not None:
        return []
    middle, ratio = energies.per_atom(), energies.unit().ratio
    # Nothing is below the total energy of all electrons; above it, pseudo-atoms may be anywhere.
    if middle <= HIGH_ENERGY and ratio < 1.3 * ENERGY_UNITS["Hartree"]:
        return []
    scales = {**ENERGY_UNITS, "meV": 1e-3, "J/mol": ENERGY_UNITS["kJ/mol"] / 1000}
    fitting = [unit for unit, factor in scales.items() if factor < 1 and -20 < middle * factor < 0.5 * HIGH_ENERGY]
    return [
        Finding(
            code="energy_size",
            severity="warning",
            title=f"energies are implausible in eV ({number(middle)} per atom)",
            message=f"Half of the energies are beyond {number(middle)} per atom" + _usual_in(fitting),
            why="The library works in eV: losses, reference energies and errors would be off by this factor.",
            fix="Give the unit when the file is read, e.g. --unit energy=kcal/mol.",
            numbers={"per_atom": middle, "fitting": fitting},
        )
    ]
