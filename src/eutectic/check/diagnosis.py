"""Findings other than units: missing labels, duplicates, outliers, coarse energies, unknown elements."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from ase.data import chemical_symbols

from eutectic.check.contents import Contents, Leak
from eutectic.check.energies import Energies
from eutectic.check.geometry import Geometry
from eutectic.check.motion import Motion
from eutectic.check.report import Finding, Units
from eutectic.check.scales import ENERGY_UNITS, LENGTH_UNITS, Largest, number
from eutectic.check.stresses import Stresses
from eutectic.data.conditions import CONDITIONS
from eutectic.data.datasets.ase_files import LabelsFound

SHOWN = 10
FEW = 10
"""Number of structures of an element below which it is reported as rare."""
PLACEHOLDER = 40.0
"""Empty layer along a periodic vector, Å: more than any slab or molecule in a box needs."""


def of_contents(
    contents: Contents, structures: int, bad: Mapping[str, Any], ignored: Mapping[str, int], differing: str = ""
) -> list[Finding]:
    """Unusable structures, missing or constant labels, duplicates, and one geometry with several labels.

    Args:
        contents: counts of all structures.
        structures: number of structures, usable or not.
        bad: the unusable ones.
        ignored: keys that look like labels.
        differing: the conditions (charge, spin, …) that differ between structures, in words.
    """
    findings: list[Finding] = []
    if bad["count"]:
        findings.append(
            Finding(
                code="unusable_structures",
                severity="error",
                title=f"structures that cannot be read or trained on: {bad['count']}",
                message=str(bad["first"][0]),
                why="One NaN in a batch ruins the training run.",
                fix="Repair or remove these structures.",
                numbers=dict(bad),
            )
        )
    if not contents.labels and not bad["count"]:
        others = f": there are {', '.join(sorted(ignored))}" if ignored else ""
        findings.append(
            Finding(
                code="no_labels",
                severity="error",
                title="no labels were found",
                message=f"None of {structures} structures has a label under a usual name{others}.",
                why="There is nothing to learn.",
                fix="Name the key of a property: --key energy=my_energy",
            )
        )
    lacking = {name: contents.usable - n for name, n in contents.labels.items() if n < contents.usable}
    if lacking:
        words = ", ".join(f"{name} in {n}" for name, n in lacking.items())
        findings.append(
            Finding(
                code="missing_labels",
                severity="warning",
                title="some structures lack some labels",
                message=f"Of {contents.usable} structures: {words}"
                + "".join(f" (first: {', '.join(ids[:3])})" for ids in contents.lacking.values() if ids)[:200]
                + ".",
                why="They are left out of the tasks whose labels they lack.",
                fix="Nothing, if intended; else check the origin of the files.",
                numbers={"missing": lacking, "first": contents.lacking},
            )
        )
    if ignored and contents.labels:
        findings.append(
            Finding(
                code="labels_not_taken",
                severity="note",
                title="some keys look like labels and are not used",
                message="Not used: " + ", ".join(f"{k} ({n})" for k, n in list(ignored.items())[:20]) + ".",
                why="If one of them is the label you want, the model would be trained on a different one.",
                fix="Name it: --key energy=<key>",
                numbers={"ignored": dict(ignored)},
            )
        )
    constant = [(name, value) for name, value in contents.constant() if name not in CONDITIONS]
    if constant:
        words = ", ".join(f"{name} is always {number(value)}" for name, value in constant)
        findings.append(
            Finding(
                code="constant_labels",
                severity="warning",
                title="labels with the same value everywhere: " + ", ".join(name for name, _ in constant),
                message=words[0].upper() + words[1:] + ".",
                why="There is nothing to learn from a constant; often it stands for 'not computed'.",
                fix="Drop the label.",
                numbers=dict(constant),
            )
        )
    repeated = contents.distinct.repeated()
    if repeated:
        about = "" if contents.distinct.exact else "about "
        findings.append(
            Finding(
                code="duplicates",
                severity="warning",
                title=f"structures that repeat earlier ones: {about}{repeated}",
                message=f"{about.capitalize()}{repeated} of {contents.usable} structures are the same as an "
                "earlier one to 1e-3 Å.",
                why="With copies in both training and test, the test error is too low.",
                fix="Remove them, or put copies in the same group (`--group-key` of `data prepare`).",
                numbers={"count": repeated, "exact": contents.distinct.exact},
            )
        )
    return [*findings, *_of_conditions(contents, differing)]


def _of_conditions(contents: Contents, differing: str) -> list[Finding]:
    n = contents.distinct.contradicting()
    charge = {name: (contents.least[name], contents.most[name]) for name in CONDITIONS if name in contents.labels}
    if not differing and any(least < most for least, most in charge.values()):
        differing = " and ".join(f"{name} ({number(a)} to {number(b)})" for name, (a, b) in charge.items())
    if not n and not differing:
        return []
    about = "" if contents.distinct.exact else "about "
    seen = [f"The structures differ in {differing}."] if differing else []
    if n:
        seen.append(
            f"{about.capitalize()}{n} of {contents.usable} structures have the geometry of an earlier one (to 1e-3 Å) "
            f"and another label (by up to {number(contents.distinct.furthest)}; first: "
            f"{', '.join(contents.distinct.first[:3])})."
        )
    return [
        Finding(
            code="one_geometry_several_labels" if n else "conditions_differ",
            severity="warning" if n else "note",
            title=(f"structures of one geometry with different labels: {about}{n}" if n else "structures differ in ")
            + (f" ({differing} differ)" if n and differing else differing if not n else ""),
            message=" ".join(seen),
            why="Models do not take charge, spin or level of theory as input: for one geometry they predict one value, "
            "between those of the labels.",
            fix="Make one store, and one task, of each charge, spin or level of theory; such structures are not copies "
            "to remove."
            if differing
            else "Find out what differs (charge, spin, level of theory, a failed calculation), and make one store, and "
            "one task, of each.",
            numbers={"count": n, "differing": differing, "furthest": contents.distinct.furthest},
        )
    ]


def of_file(found: LabelsFound) -> list[Finding]:
    """What a file says about its calculations: contradicting stress and virial, steps that did not converge."""
    findings = []
    if found.contradictions:
        n = len(found.contradictions)
        findings.append(
            Finding(
                code="stress_and_virial",
                severity="error",
                title=f"stress and virial contradict each other: {n} structures",
                message=f"In {n} structures, first {found.contradictions[0]}: {found.contradiction}.",
                why="At most one of them is right.",
                fix="Choose one: --key stress=NAME or --key virial=NAME, with its unit, e.g. --unit stress=-kbar.",
                numbers={"count": n, "first": list(found.contradictions[:SHOWN])},
            )
        )
    if found.unconverged:
        n = len(found.unconverged)
        findings.append(not_converged(n, ": ".join(next(iter(found.unconverged.items())))))
    return findings


def not_converged(n: int, first: str) -> Finding:
    """Finding: structures whose calculation did not converge."""
    return Finding(
        code="not_converged",
        severity="warning",
        title=f"structures whose calculation did not converge: {n}",
        message=f"{n} structures did not converge, first {first}.",
        why="Their energies and forces are not those of the level of theory.",
        fix="Leave them out: `eutectic data prepare … --skip-unconverged`.",
        numbers={"count": n},
    )


def of_stresses(stresses: Stresses) -> list[Finding]:
    """Six numbers in an order other than the one in which they were read."""
    findings: list[Finding] = []
    order = stresses.order_test()
    if order is not None and order.contradicts:
        seen = (
            f"in {order.broken_as_read} of {order.symmetric} structures a shear stress that the symmetry of the "
            f"neighbours forbids is not zero (in that order: in {order.broken})"
            if order.breaks_symmetry
            else f"the shear stress follows the neighbours' positions in that order ({100 * order.explained:.0f} % of "
            f"its variance), and hardly as it was read ({100 * max(order.as_read, 0.0):.0f} %)"
        )
        findings.append(
            Finding(
                code="stress_order",
                severity="error",
                title=f"the stress is in the order {' '.join(order.order)}",
                message=f"Six numbers read as xx, yy, zz, yz, xz, xy are {', '.join(order.order)}: {seen}.",
                why="A model would learn shear stresses about the wrong axes.",
                fix=f"State the order: --key stress=NAME:{','.join(order.order)}.",
                numbers=asdict(order),
            )
        )
    return findings


def of_energies(energies: Energies, units: Units) -> list[Finding]:
    """Outliers, coarse numbers and mixed levels of theory."""
    findings: list[Finding] = []
    if not energies.n:
        return findings
    unit = units.energy or "of the file's unit"
    to_mev = 1000 * ENERGY_UNITS.get(units.energy or "eV", 1.0)
    outliers, deviation = energies.outliers()
    if outliers:
        first = ", ".join(f"{id} ({off:+.3g})".replace("-", "−") for id, off, _ in outliers[:3])
        findings.append(
            Finding(
                code="energy_outliers",
                severity="warning",
                title=f"energies far from all others: {len(outliers)}",
                message=f"{len(outliers)} structures: over 12 deviations ({number(deviation)} {unit}/atom) from a "
                f"fit of one energy per element; per atom: {first}.",
                why="Failed calculations dominate a squared loss, and even an absolute one.",
                fix="Inspect these structures; remove failed calculations.",
                numbers={
                    "count": len(outliers),
                    "deviation": deviation,
                    "first": [{"id": i, "per_atom": o, "deviations": z} for i, o, z in outliers[:SHOWN]],
                },
            )
        )
    precision = energies.precision()
    if precision is not None:
        mev = precision.step * to_mev
        if mev > 0.05:
            how = (
                f"float32 in {precision.unit}"
                if precision.kind == "float32"
                else f"steps of {number(precision.step)} {unit}"
            )
            findings.append(
                Finding(
                    code="coarse_energies",
                    severity="warning" if mev > 1.0 else "note",
                    title=f"energies are rounded to {number(mev)} meV",
                    message=f"All energies are {how}: neighbouring values are {number(mev)} meV apart.",
                    why="Energy differences below this step cannot be learned, nor errors measured.",
                    fix="Take the energies from the original files in float64; or subtract reference energies first.",
                    numbers={"resolution_meV": mev, "kind": precision.kind, "unit": precision.unit},
                )
            )
    two = energies.two_populations()
    if two is not None:
        apart, share = two
        findings.append(
            Finding(
                code="two_populations",
                severity="warning",
                title="energies fall into two sets (mixed levels of theory?)",
                message=f"After the fit, {100 * share:.0f} % of the structures lie {number(apart)} {unit}/atom from "
                "the others, with nothing between, in the same compositions.",
                why="Energies of two levels of theory, or of two codes, contradict each other in one task.",
                fix="Find out where each set comes from; make one store, and one task, of each.",
                numbers={"apart": apart, "share": share},
            )
        )
    return findings


def of_geometry(geometry: Geometry, units: Units) -> tuple[list[Finding], dict[str, Any]]:
    """Force outliers, close atoms, suspicious cells, net forces; and a summary of the force outliers."""
    findings: list[Finding] = []
    length = LENGTH_UNITS.get(units.length or "Å", 1.0)
    force_unit = 1.0
    if units.forces is not None:
        energy, _, per = units.forces.rpartition("/")
        force_unit = ENERGY_UNITS[energy] / LENGTH_UNITS[per]
    shown = units.forces or "eV/Å"
    limit = max(10.0 / force_unit, 10 * float(np.median(geometry.largest.kept))) if len(geometry.largest) else 0.0
    outliers = geometry.extreme_forces.above(limit) if len(geometry.largest) else []
    summary = {
        "count": len(outliers),
        "limit": limit,
        "first": [{"id": id, "largest_force": value} for value, id in outliers[:SHOWN]],
    }
    if outliers:
        findings.append(
            Finding(
                code="force_outliers",
                severity="warning",
                title=f"structures with forces far beyond the others: {_at_least(outliers)}",
                message=f"Largest forces above {number(limit)} {shown}: "
                + ", ".join(f"{id} ({number(value)})" for value, id in outliers[:3])
                + ".",
                why="A few such structures can dominate the loss and make training diverge.",
                fix="Inspect them; remove failed calculations, or clip gradients and use a norm loss.",
                numbers=summary,
            )
        )
    close = [(-value * length, item) for value, item in geometry.shortest.above(-0.5 / length)]
    if close:
        words = ", ".join(f"{id} ({pair} {number(d * length)} Å)" for _, (id, pair, d) in close[:3])
        findings.append(
            Finding(
                code="close_atoms",
                severity="warning",
                title=f"structures with atoms on top of each other: {_at_least(close)}",
                message=f"Distances below half a bond: {words}.",
                why="Such geometries are unphysical; their energies and forces are huge or wrong.",
                fix="Inspect them: a wrong cell or unit, or a broken structure.",
                numbers={
                    "count": len(close),
                    "first": [{"id": i, "atoms": p, "distance": d} for _, (i, p, d) in close[:SHOWN]],
                },
            )
        )
    empty = geometry.empty.above(PLACEHOLDER / length)
    if empty:
        findings.append(
            Finding(
                code="huge_cells",
                severity="warning",
                title=f"periodic cells that are mostly empty (placeholder cells?): {_at_least(empty)}",
                message=f"Empty layers of up to {number(empty[0][0] * length)} Å along a periodic vector, e.g. "
                f"{', '.join(id for _, id in empty[:3])}.",
                why="A molecule in a placeholder cell is treated as a crystal: its stress and density are meaningless.",
                fix="Set pbc to False for molecules; they then need no cell.",
                numbers={"count": len(empty), "first": [{"id": id, "gap": gap} for gap, id in empty[:SHOWN]]},
            )
        )
    dense = geometry.dense.above(-2.0 / length**3)
    if dense:
        findings.append(
            Finding(
                code="dense_cells",
                severity="warning",
                title=f"cells denser than any matter: {_at_least(dense)}",
                message=f"Volumes of {number(-dense[0][0] * length**3)} Å³ per atom and more, e.g. {dense[0][1]}.",
                why="A cell in the wrong unit, or transposed, gives wrong neighbours.",
                fix="Check the cells: rows are lattice vectors, in Å.",
                numbers={"count": len(dense), "first": [{"id": id, "volume": -v} for v, id in dense[:SHOWN]]},
            )
        )
    findings += _balance(geometry, force_unit, shown)
    return findings, summary


def _at_least(items: Sequence[object]) -> str:
    """A count; "or more" if it reaches the number of extremes kept."""
    return f"{len(items)} or more" if len(items) >= Largest().size else str(len(items))


def _balance(geometry: Geometry, force_unit: float, shown: str) -> list[Finding]:
    findings: list[Finding] = []
    net = [(share, size) for share, size in geometry.net if share > 0.05 and size * force_unit > 0.02]
    if len(geometry.net) and len(net) > 0.1 * len(geometry.net):
        share, left = (float(np.median(values)) for values in zip(*net, strict=True))
        findings.append(
            Finding(
                code="net_force",
                severity="warning",
                title="forces do not sum to zero",
                message=f"In {100 * len(net) / len(geometry.net):.0f} % of the structures without fixed atoms the "
                f"forces leave a net force: {100 * share:.0f} % of their magnitudes, {number(left)} {shown} (medians).",
                why="A conservative model cannot fit them. Causes: constraints, point charges, missing atoms.",
                fix="Take forces without constraints applied (ASE: get_forces(apply_constraint=False)).",
                numbers={"share_of_structures": len(net) / len(geometry.net), "median_share": share},
            )
        )
    turning = np.array(geometry.torque.kept)
    if len(turning) and np.mean(turning > 0.05) > 0.1 and not findings:
        findings.append(
            Finding(
                code="torque",
                severity="warning",
                title="forces exert a net torque on molecules",
                message=f"In {100 * float(np.mean(turning > 0.05)):.0f} % of the molecules forces leave a net torque.",
                why="The energy is rotationally invariant: coordinates and forces differ in orientation or atom order.",
                fix="Check that coordinates and forces have the same orientation and order of atoms.",
                numbers={"share_of_structures": float(np.mean(turning > 0.05))},
            )
        )
    if geometry.fixed_without_force:
        findings.append(
            Finding(
                code="fixed_forces_zeroed",
                severity="note",
                title="forces on fixed atoms are exactly zero",
                message=f"{geometry.fixed_without_force} structures have zero force on all fixed atoms, "
                "but not on the others.",
                why="The constraint was applied to the labels: these are not the physical forces.",
                fix="Leave fixed atoms out of the loss, or take the raw forces of the calculation.",
                numbers={"count": geometry.fixed_without_force},
            )
        )
    return findings


def of_elements(contents: Contents, seen: Iterable[int] | None) -> list[Finding]:
    """Rare elements, and elements absent from a model's training data (`seen` empty: not recorded)."""
    findings: list[Finding] = []
    present = [int(z) for z in np.flatnonzero(contents.structures_with)]
    rare = {chemical_symbols[z]: int(contents.structures_with[z]) for z in present if contents.structures_with[z] < FEW}
    if rare and contents.usable >= 5 * FEW:
        findings.append(
            Finding(
                code="rare_elements",
                severity="note",
                title="some elements are in few structures",
                message="Fewer than ten structures with " + ", ".join(f"{s} ({n})" for s, n in rare.items()) + ".",
                why="Their reference energies and interactions are poorly determined.",
                fix="Expect larger errors for them, or add structures.",
                numbers=rare,
            )
        )
    if seen is not None:
        seen = set(seen)
        unseen = [z for z in present if z not in seen]
        if not seen:
            findings.append(
                Finding(
                    code="model_elements_unknown",
                    severity="note",
                    title="the elements in the model's training data are unknown",
                    message="The model's provenance does not list the elements it was trained on, so they were not "
                    "compared.",
                    why="Embeddings of elements absent from the training data are untrained.",
                    fix="Look up what the model was trained on.",
                )
            )
        elif unseen:
            names = ", ".join(f"{chemical_symbols[z]} ({int(contents.structures_with[z])} structures)" for z in unseen)
            findings.append(
                Finding(
                    code="unseen_elements",
                    severity="warning",
                    title="elements absent from the model's training data: "
                    + ", ".join(chemical_symbols[z] for z in unseen),
                    message=f"Not among the elements the model was trained on: {names}.",
                    why="Their embeddings are untrained.",
                    fix="Fine-tune on enough structures with them, or start from a model trained on them.",
                    numbers={chemical_symbols[z]: int(contents.structures_with[z]) for z in unseen},
                )
            )
    return findings


def of_motion(motion: Motion, units: Units) -> list[Finding]:
    """Frames nearly identical to another."""
    pairs = list(motion.pairs)
    length = LENGTH_UNITS.get(units.length or "Å", 1.0)
    near = [p for p in pairs if p.distance * length < 0.005]
    if len(pairs) < 20 or len(near) < 0.2 * len(pairs):
        return []
    return [
        Finding(
            code="near_duplicates",
            severity="note",
            title="many frames are nearly identical to another",
            message=f"{100 * len(near) / len(pairs):.0f} % of {len(pairs)} frames compared are within 0.005 Å.",
            why="They cost training time and add little; with a random split, the test error is too low.",
            fix="Keep every tenth frame, and split by trajectory (`--split group`).",
            numbers={"share": len(near) / len(pairs), "compared": len(pairs), "first": [list(p.ids) for p in near[:3]]},
        )
    ]


def of_splits(leaks: Iterable[Leak]) -> list[Finding]:
    """Leakage between training and validation or test, and elements missing from training."""
    findings: list[Finding] = []
    leaks = list(leaks)
    lacking = {leak.split: leak.elements for leak in leaks if leak.elements}
    if lacking:
        every = ", ".join(dict.fromkeys(symbol for elements in lacking.values() for symbol in elements))
        findings.append(
            Finding(
                code="elements_held_out",
                severity="warning",
                title=f"elements tested on but not trained on: {every}",
                message="No training structure has, in split "
                + "; in ".join(f"{name!r}, {', '.join(elements)}" for name, elements in lacking.items())
                + ".",
                why="There is no reference energy for them (a run that learns energies stops with an error), and their "
                "embeddings stay untrained.",
                fix="Use another split, or leave out the structures with these elements.",
                numbers={name: list(elements) for name, elements in lacking.items()},
            )
        )
    for leak in leaks:
        if leak.structures:
            findings.append(
                Finding(
                    code="leaked_structures",
                    severity="warning",
                    title=f"training structures that split {leak.split!r} tests on: {leak.structures}",
                    message=f"{leak.structures} of {leak.held_out} validation and test structures of split "
                    f"{leak.split!r} are the same (to 1e-3 Å) as a training structure.",
                    why="The validation and test errors are too low.",
                    fix="Remove the duplicates, or split by group.",
                    numbers=asdict(leak),
                )
            )
        if leak.groups:
            findings.append(
                Finding(
                    code="leaked_groups",
                    severity="note",
                    title=f"split {leak.split!r} divides groups",
                    message=f"{leak.groups} of {leak.reserved} validation and test groups of {leak.split!r} are in "
                    "training.",
                    why="The test is on new frames of known systems, not on new systems.",
                    fix="Split by group to test on new systems, where there are several groups.",
                    numbers=asdict(leak),
                )
            )
    return findings
