"""Infer the units and signs of energies, forces and stresses from the collected statistics."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from eutectic.check.energies import RELATIVE, Energies, EnergyUnit
from eutectic.check.geometry import BondTest, Geometry
from eutectic.check.motion import Motion, Pair, Slope, slope
from eutectic.check.report import Finding, Severity, SlopeTest, Units
from eutectic.check.scales import (
    ENERGY_UNITS,
    LENGTH_UNITS,
    STRESS_UNITS,
    TOLERANCE,
    Reading,
    number,
    readings,
)


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Conclusions from all evidence."""

    units: Units
    force_test: SlopeTest
    stress_test: SlopeTest
    bonds: BondTest | None
    findings: tuple[Finding, ...]


def judge(energies: Energies, geometry: Geometry, motion: Motion, declared: dict[str, str], raw: bool) -> Judged:
    """Infer units and signs.

    Args:
        energies, geometry, motion: statistics of all structures.
        declared: "energy", "forces", "positions" → unit stated in the file.
        raw: the data are arrays of a file, not necessarily in eV and Å; structure files and stores must be.
    """
    length, ratio = geometry.length_unit()
    bonds = geometry.bond_test()
    solid = bonds if bonds is not None and bonds.conclusive else None
    pairs = list(motion.pairs)
    line = slope(*(np.array([getattr(p, k) for p in pairs]) for k in ("energy_change", "work", "curvature")))
    conclusive = line if line is not None and _conclusive(line) else None
    guess = energies.unit() if energies.n else None
    scale = length if length in LENGTH_UNITS else "Å"
    guess, reading = _combine(guess, conclusive, solid, scale)
    force_unit = None
    if reading is not None:
        force_unit = f"{reading.force_energy}/{reading.force_length}"
    elif solid is not None and solid.unit is not None:
        force_unit = f"{solid.unit}/{scale}"
    units = Units(
        energy=None if guess is None else guess.unit,
        forces=force_unit,
        length=None if math.isnan(ratio) or length == "?" else length,
        confidence="low" if guess is None else guess.confidence,
        regime="" if guess is None else guess.regime,
        energies_of_elements=energies.element_energies(),
        energy_per_atom=energies.per_atom() if energies.n else None,
        declared=declared,
    )
    findings = [*_length(length, ratio, len(geometry.lengths), raw, declared), *_energy(units, guess, raw, declared)]
    force_test, more = _forces(line, conclusive, reading, solid, units, geometry)
    findings += more
    stress_test, more = _stress(motion, conclusive)
    return Judged(units=units, force_test=force_test, stress_test=stress_test, bonds=bonds, findings=(*findings, *more))


def _conclusive(line: Slope) -> bool:
    # Dissimilar frames may lie on a line by chance, so the correlation must be higher.
    least = 0.8 if line.nearness > 0.3 else 0.95
    return abs(line.correlation) > least and line.error < 0.1 * abs(line.slope)


def _tolerance(line: Slope) -> float:
    """Largest deviation of log(slope) from a ratio of units; larger for dissimilar frames."""
    return min(0.25, max(TOLERANCE, 3 * line.error / abs(line.slope), 0.04 / line.nearness))


def _combine(
    guess: EnergyUnit | None, line: Slope | None, bonds: BondTest | None, length: str
) -> tuple[EnergyUnit | None, Reading | None]:
    """Energy unit after including the evidence of the forces, and units that explain the slope."""
    if guess is None:
        return None, None
    if line is None:
        agree = bonds is not None and bonds.unit is not None and bonds.unit == guess.unit
        if guess.unit is None and bonds is not None:
            guess = replace(guess, unit=bonds.unit)
        elif guess.confidence != "high" and agree:
            guess = replace(guess, confidence="high" if guess.confidence == "medium" else "medium")
        return guess, None
    # A distorted slope may be accepted as 1, but not as a ratio of units: valid labels would be rejected.
    near = min(0.1, _tolerance(line))
    bond_unit = bonds.unit if bonds is not None and bonds.unit is not None else None
    energy_unit = guess.unit if guess.confidence != "low" else None
    if (
        bond_unit is not None
        and guess.confidence != "high"
        and bond_unit != energy_unit
        and abs(math.log(abs(line.slope))) < 0.25
    ):
        # Forces that match the energies and bonds are stronger evidence than a chance match with all-electron atoms.
        energy_unit, guess = None, replace(guess, unit=bond_unit, confidence="low", regime=RELATIVE)
    # If several combinations give the same slope, prefer agreement with the bonds, then simplicity.
    for energy, force in ((energy_unit, bond_unit), (energy_unit, None), (None, bond_unit)):
        if energy is None and force is None:
            continue
        possible = readings(abs(line.slope), energy=energy, length=length, force=force, tolerance=near)
        if possible:
            reading = possible[0]
            if energy is None:
                guess = replace(guess, unit=reading.energy, confidence="medium")
            elif force is not None:
                guess = replace(guess, confidence="high")
            return guess, reading
    if abs(math.log(abs(line.slope))) < _tolerance(line) and guess.unit is not None:
        return guess, Reading(energy=guess.unit, length=length, force_energy=guess.unit, force_length=length)
    if guess.unit is not None and energy_unit is None:
        possible = readings(abs(line.slope), energy=None, length=length, force=None, tolerance=near)
        return guess, possible[0] if possible else None
    return guess, None


def _length(length: str, ratio: float, n: int, raw: bool, declared: dict[str, str]) -> list[Finding]:
    if math.isnan(ratio) or length == "Å" or n < 3:
        return []
    stated = f" (the file says {declared['positions']!r})" if "positions" in declared else ""
    seen = f"Nearest neighbours are {number(ratio)} times as far apart as bond lengths in Å{stated}."
    if length == "?":
        return [
            Finding(
                code="length_unit",
                severity="warning",
                title="distances fit neither Å nor bohr",
                message=seen,
                why="Cutoffs are in Å: with other lengths a model sees too few or too many neighbours.",
                fix="Check the unit of the coordinates; no action is needed for gases of single atoms.",
                numbers={"ratio": ratio},
            )
        ]
    return [
        Finding(
            code="length_unit",
            severity="warning" if raw else "error",
            title=f"coordinates are in {length}",
            message=seen + f" They are in {length}.",
            why="Cutoffs are in Å: with other lengths a model sees too few or too many neighbours.",
            fix=f"Multiply the coordinates by {LENGTH_UNITS[length]:.10g}.",
            numbers={"ratio": ratio, "unit": length, "factor": LENGTH_UNITS[length]},
        )
    ]


def _energy(units: Units, guess: EnergyUnit | None, raw: bool, declared: dict[str, str]) -> list[Finding]:
    if guess is None or units.energy in (None, "eV") or units.energy_per_atom is None:
        return []
    assert units.energy is not None
    factor = ENERGY_UNITS[units.energy]
    severity: Severity = "error" if guess.confidence == "high" and not raw else "warning"
    stated = f" (the file says {declared['energy']!r})" if "energy" in declared else ""
    grounds = (
        f"they are {number(guess.ratio)} times the energies of all-electron atoms in Hartree"
        if guess.regime.startswith("all")
        else "only in this unit do matching forces give typical bond stiffnesses"
    )
    return [
        Finding(
            code="energy_unit",
            severity=severity,
            title=f"energies are in {units.energy}, not eV",
            message=(
                f"Energies ({number(units.energy_per_atom)} per atom) look like {units.energy}{stated}: {grounds} "
                f"(confidence {guess.confidence})."
            ),
            why="The library works in eV: losses, reference energies and errors would be off by this factor.",
            fix=f"Multiply the energies by {factor:.10g}"
            + ("; `eutectic data prepare` converts the data sets that it supports." if raw else "."),
            numbers={"unit": units.energy, "factor": factor, "confidence": guess.confidence, "ratio": guess.ratio},
        )
    ]


def _forces(
    line: Slope | None,
    conclusive: Slope | None,
    reading: Reading | None,
    bonds: BondTest | None,
    units: Units,
    geometry: Geometry,
) -> tuple[SlopeTest, list[Finding]]:
    if not len(geometry.largest):
        return SlopeTest(verdict="There are no forces."), []
    if conclusive is None:
        return _untested(line, bonds, units, geometry)
    assert line is conclusive
    s = line.slope
    shown = f"slope {number(s)} ± {line.error:.1g}, r {line.correlation:.4f}, {line.pairs} pairs".replace("-", "−")
    near_one = abs(math.log(abs(s))) < _tolerance(line)
    numbers = {"slope": s, "error": line.error, "correlation": line.correlation, "pairs": line.pairs}
    why = "With contradicting labels a model learns neither energies nor forces, and its dynamics are unstable."
    findings: list[Finding] = []
    energies_turned = s < 0 and bonds is not None and bonds.stiffness > 0
    sign = -1.0 if s < 0 else 1.0
    factor: float | None = sign * (1.0 if near_one else reading.slope if reading is not None else math.nan)
    if factor is not None and math.isnan(factor):
        factor = None
    if s < 0 and energies_turned:
        verdict = f"energies have the wrong sign ({shown}): stretched bonds contract, so the forces are right"
        findings.append(
            Finding(
                code="energy_sign",
                severity="error",
                title="energies have the wrong sign",
                message=f"Energies rise where forces do positive work ({shown}), but stretched bonds contract.",
                why=why,
                fix="Multiply the energies by −1 (binding or atomisation energies are often given as positive).",
                numbers=numbers,
            )
        )
    elif s < 0:
        verdict = f"forces are gradients ({shown}): multiply them by −1"
        findings.append(
            Finding(
                code="forces_sign",
                severity="error",
                title=f"forces are gradients, of the wrong sign (slope {number(s)})",
                message=f"Between similar frames the energy rises along the 'forces' ({shown}): they are +dE/dx.",
                why=why,
                fix=f"Multiply the forces by {number(factor) if factor is not None else '−1'}.",
                numbers={**numbers, "factor": factor},
            )
        )
    elif bonds is not None and bonds.stiffness < 0:
        verdict = (
            f"energies and forces both have the wrong sign ({shown}, and stretched bonds are pushed further apart)"
        )
        findings.append(
            Finding(
                code="both_signs",
                severity="error",
                title="energies and forces both have the wrong sign",
                message=f"Energies and forces agree ({shown}), but stretched bonds are pushed further apart.",
                why="A model would learn that bonds are repulsive.",
                fix="Multiply energies and forces by −1.",
                numbers=numbers,
            )
        )
    else:
        verdict = f"energies and forces agree ({shown})"
    if near_one:
        return _result(line, verdict, factor), findings
    if reading is not None and factor is not None:
        words = reading.words()
        verdict = f"{words} ({shown}): multiply the forces by {factor:.6g}"
        findings.append(
            Finding(
                code="forces_unit",
                severity="error",
                title=f"forces do not fit the energies: {words}",
                message=f"Energies change {number(abs(s))} times as much as the work of the forces ({shown}): {words}.",
                why=why,
                fix=f"Multiply the forces by {factor:.10g} to have them in the units of the energies and coordinates.",
                numbers={**numbers, "factor": factor, "reading": words},
            )
        )
    elif 0.75 < abs(s) < 1.33:
        verdict = f"energies and forces agree roughly ({shown})"
        findings.append(
            Finding(
                code="forces_rough",
                severity="note",
                title="energies and forces agree only roughly",
                message=f"Energies change {number(abs(s))} times as much as the work of the forces ({shown}).",
                why="Causes: dissimilar frames, smearing (free energy against energy), loose convergence.",
                fix="With smearing, use the free energy: forces are its negative gradient.",
                numbers=numbers,
            )
        )
    else:
        verdict = f"energies and forces do not agree ({shown}), and no common units explain it"
        findings.append(
            Finding(
                code="forces_unexplained",
                severity="error" if abs(line.correlation) > 0.95 and line.nearness > 0.3 else "warning",
                title=f"forces do not fit the energies (slope {number(s)})",
                message=f"Energies change {number(abs(s))} times as much as the work of the forces ({shown}); no units "
                "explain it.",
                why=why,
                fix="Find out how the forces were computed: another method, a per-atom energy, or scaled labels?",
                numbers=numbers,
            )
        )
    return _result(line, verdict, factor), findings


def _result(line: Slope, verdict: str, factor: float | None) -> SlopeTest:
    return SlopeTest(
        verdict=verdict,
        tested=True,
        pairs=line.pairs,
        slope=line.slope,
        error=line.error,
        correlation=line.correlation,
        factor=factor,
    )


def _untested(
    line: Slope | None, bonds: BondTest | None, units: Units, geometry: Geometry
) -> tuple[SlopeTest, list[Finding]]:
    """Without enough similar frames: conclusions from bonds and force magnitudes."""
    findings: list[Finding] = []
    words = "not tested against energies: " + (
        "too few similar frames of the same atoms"
        if line is None
        else f"frames are too dissimilar ({line.pairs} pairs, r {line.correlation:.2f})".replace("-", "−")
    )
    middle = float(np.median(geometry.forces.kept))
    unit = units.energy if units.energy is not None else "?"
    factor = None
    if line is not None and line.pairs >= 30 and line.nearness > 0.5 and abs(line.correlation) < 0.3:
        findings.append(
            Finding(
                code="forces_unrelated",
                severity="warning",
                title="energies do not follow the forces",
                message=f"{line.pairs} pairs of similar frames: energy changes and work of the forces have "
                f"r {line.correlation:.2f}.",
                why="Mismatched labels (a different order of atoms or frames) cannot be learned.",
                fix="Check that energies, forces and coordinates are in the same order.",
                numbers={"pairs": line.pairs, "correlation": line.correlation},
            )
        )
    if bonds is not None:
        seen = (
            f"{bonds.bonds} bonds {bonds.element}–H have stiffness {number(bonds.stiffness)} "
            f"(expected {number(bonds.expected)} eV/Å²; r {bonds.correlation:.2f})".replace("-", "−")
        )
        if bonds.stiffness < 0:
            factor = -1.0
            words += f"; but stretched bonds are pushed further apart ({seen}): these are gradients"
            findings.append(
                Finding(
                    code="forces_sign",
                    severity="error",
                    title="forces are gradients, of the wrong sign (stretched bonds are pushed apart)",
                    message=f"{seen}: they are +dE/dx.",
                    why="A model would learn that bonds are repulsive.",
                    fix="Multiply the forces by −1.",
                    numbers={"stiffness": bonds.stiffness, "correlation": bonds.correlation, "bonds": bonds.bonds},
                )
            )
        else:
            words += f"; their sign is right ({seen})"
        if bonds.unit is not None:
            force = f"{bonds.unit}/{units.length or 'Å'}"
            words += f", their unit {force}"
            if units.energy is not None and units.confidence == "high" and bonds.unit != units.energy:
                findings.append(
                    Finding(
                        code="forces_unit",
                        severity="warning",
                        title=f"forces look like {force}, energies like {units.energy}",
                        message=f"{seen}, which fits {force}; energies are in {units.energy}.",
                        why="With contradicting labels a model learns neither energies nor forces.",
                        fix=f"Check the units, and convert energies from {units.energy} to eV and forces to eV/Å.",
                        numbers={"forces": force, "energies": units.energy},
                    )
                )
    else:
        words += f"; half of them are below {number(middle)} (usual: 0.05 to 5 eV/Å), in {unit}/Å if they fit"
    if line is None:
        return SlopeTest(verdict=words, factor=factor), findings
    return replace(_result(line, words, factor), tested=False), findings


def _stress(motion: Motion, forces: Slope | None) -> tuple[SlopeTest, list[Finding]]:
    pairs = [p for p in motion.strained if p.strain_work is not None]
    if not pairs:
        return SlopeTest(verdict="not tested: no frames of the same atoms in strained cells, with stresses"), []
    # Subtract the energy change due to displacements within the cell.
    inner = forces.slope if forces is not None else 1.0
    change = np.array([p.energy_change - inner * p.work for p in pairs])
    line = slope(change, np.array([p.strain_work for p in pairs]), np.array([p.curvature for p in pairs]))
    if line is None or not _conclusive(line):
        return SlopeTest(verdict=f"not tested: {len(pairs)} pairs of strained frames are too few or too dissimilar"), []
    s = line.slope
    shown = f"slope {number(s)}, r {line.correlation:.3f}, {line.pairs} pairs".replace("-", "−")
    unit = min(STRESS_UNITS, key=lambda u: abs(math.log(abs(s) / STRESS_UNITS[u])))
    known = abs(math.log(abs(s) / STRESS_UNITS[unit])) < 0.15
    factor = math.copysign(STRESS_UNITS[unit], s) if known else None
    if known and unit == "eV/Å³" and s > 0:
        return _result(line, f"energies and stresses agree: tension is positive ({shown})", 1.0), []
    if not known and (energy := _of_virials(pairs, change)) is not None:
        words = f"stresses are virials in {energy}, W = {'−' if s < 0 else ''}σV ({shown})"
        return _result(line, words, None), [
            Finding(
                code="stress_is_virial",
                severity="error",
                title=f"stresses are virials in {energy}",
                message=f"Between strained frames energies change as if the {words}.",
                why="A virial is larger than the stress by the volume of the cell, and mostly of the opposite sign.",
                fix=f"Read the file with --key virial=NAME --unit virial={'' if s < 0 else '-'}{energy}.",
                numbers={"slope": s, "correlation": line.correlation, "pairs": line.pairs, "unit": energy},
            )
        ]
    sign = "of the opposite sign (compression positive)" if s < 0 else "of the right sign"
    words = f"stresses are {sign}" + (f", in {unit}" if known else ", in an unknown unit") + f" ({shown})"
    finding = Finding(
        code="stress_sign" if s < 0 else "stress_unit",
        severity="error",
        title=f"stresses are {sign}" + (f", in {unit}" if known and unit != "eV/Å³" else ""),
        message=f"Between strained frames energies change as {words}.",
        why="Cells would relax the wrong way, or by the wrong amount.",
        fix=f"Multiply the stresses by {factor:.8g}." if factor is not None else "Find out their unit, then convert.",
        numbers={"slope": s, "correlation": line.correlation, "pairs": line.pairs, "factor": factor},
    )
    return _result(line, words, factor), [finding]


def _of_virials(pairs: list[Pair], change: np.ndarray) -> str | None:
    """Unit of energy in which the stresses are virials; None if they are not."""
    work = np.array([p.strain_work for p in pairs], dtype=np.float64) / np.array([p.volume for p in pairs])
    curvature = np.array([p.curvature / p.volume for p in pairs])
    whole = slope(change, work, curvature)
    if whole is None or not _conclusive(whole):
        return None
    unit = min(ENERGY_UNITS, key=lambda u: abs(math.log(abs(whole.slope) / ENERGY_UNITS[u])))
    return unit if abs(math.log(abs(whole.slope) / ENERGY_UNITS[unit])) < 0.15 else None
