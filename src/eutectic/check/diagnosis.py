"""Findings that are not about units: what is missing, repeated, out of the ordinary, coarse or unknown."""

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

SHOWN = 10
FEW = 10
"""Structures of an element below which it is hardly learned."""
PLACEHOLDER = 40.0
"""Å of emptiness along a periodic vector: more than any slab or molecule in a box needs."""


def of_contents(
    contents: Contents, structures: int, bad: Mapping[str, Any], ignored: Mapping[str, int]
) -> list[Finding]:
    """Labels and structures that cannot be used, are missing, constant or repeated."""
    found: list[Finding] = []
    if bad["count"]:
        found.append(
            Finding(
                code="unusable_structures",
                severity="error",
                title=f"structures that cannot be read or trained on: {bad['count']}",
                message=str(bad["first"][0]),
                why="One NaN in a batch ruins a training.",
                fix="Repair or remove these structures.",
                numbers=dict(bad),
            )
        )
    if not contents.labels and not bad["count"]:
        others = f": there are {', '.join(sorted(ignored))}" if ignored else ""
        found.append(
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
        found.append(
            Finding(
                code="missing_labels",
                severity="warning",
                title="some structures lack some labels",
                message=f"Of {contents.usable} structures: {words}"
                + "".join(f" (first: {', '.join(ids[:3])})" for ids in contents.lacking.values() if ids)[:200]
                + ".",
                why="They are left out of the tasks whose labels they lack.",
                fix="Nothing, if that is meant; else look at where the files come from.",
                numbers={"missing": lacking, "first": contents.lacking},
            )
        )
    if ignored and contents.labels:
        found.append(
            Finding(
                code="labels_not_taken",
                severity="note",
                title="some keys look like labels and are not taken for any",
                message="Not taken: " + ", ".join(f"{k} ({n})" for k, n in list(ignored.items())[:20]) + ".",
                why="If one of them is the label you mean, another one is trained on.",
                fix="Name it: --key energy=<key>",
                numbers={"ignored": dict(ignored)},
            )
        )
    constant = contents.constant()
    if constant:
        words = ", ".join(f"{name} is always {number(value)}" for name, value in constant)
        found.append(
            Finding(
                code="constant_labels",
                severity="warning",
                title="labels never differ: " + ", ".join(name for name, _ in constant),
                message=words[0].upper() + words[1:] + ".",
                why="There is nothing to learn from a constant; often it stands for 'not computed'.",
                fix="Drop the label.",
                numbers=dict(constant),
            )
        )
    repeated = contents.distinct.repeated()
    if repeated:
        about = "" if contents.distinct.exact else "about "
        found.append(
            Finding(
                code="duplicates",
                severity="warning",
                title=f"structures that repeat earlier ones: {about}{repeated}",
                message=f"{about.capitalize()}{repeated} of {contents.usable} structures are the same as an "
                "earlier one to 1e-3 Å.",
                why="Where copies are on both sides of a split, the test error measures memory.",
                fix="Remove them, or give copies one group (`--group-key` of `data prepare`).",
                numbers={"count": repeated, "exact": contents.distinct.exact},
            )
        )
    return found


def of_energies(energies: Energies, units: Units) -> list[Finding]:
    """Outliers, coarse numbers and mixed levels of theory."""
    found: list[Finding] = []
    if not energies.n:
        return found
    unit = units.energy or "of the file's unit"
    to_mev = 1000 * ENERGY_UNITS.get(units.energy or "eV", 1.0)
    outliers, deviation = energies.outliers()
    if outliers:
        first = ", ".join(f"{id} ({off:+.3g})".replace("-", "−") for id, off, _ in outliers[:3])
        found.append(
            Finding(
                code="energy_outliers",
                severity="warning",
                title=f"energies far from all others: {len(outliers)}",
                message=f"{len(outliers)} structures: over 12 deviations ({number(deviation)} {unit}/atom) from a "
                f"fit of one energy per element; per atom: {first}.",
                why="Failed calculations dominate a squared loss, and even an absolute one.",
                fix="Look at these structures; remove those whose calculation failed.",
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
            found.append(
                Finding(
                    code="coarse_energies",
                    severity="warning" if mev > 1.0 else "note",
                    title=f"energies are rounded to {number(mev)} meV",
                    message=f"All energies are {how}: neighbouring values are {number(mev)} meV apart.",
                    why="Below this step no energy difference can be learned, and no error judged.",
                    fix="Take the energies from the original files in float64; or subtract reference energies first.",
                    numbers={"resolution_meV": mev, "kind": precision.kind, "unit": precision.unit},
                )
            )
    two = energies.two_populations()
    if two is not None:
        apart, share = two
        found.append(
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
    return found


def of_geometry(geometry: Geometry, units: Units) -> tuple[list[Finding], dict[str, Any]]:
    """Wild forces, close atoms, strange cells, forces that do not cancel; and the summary of wild forces."""
    found: list[Finding] = []
    length = LENGTH_UNITS.get(units.length or "Å", 1.0)
    force_unit = 1.0
    if units.forces is not None:
        energy, _, per = units.forces.rpartition("/")
        force_unit = ENERGY_UNITS[energy] / LENGTH_UNITS[per]
    shown = units.forces or "eV/Å"
    limit = max(10.0 / force_unit, 10 * float(np.median(geometry.largest.kept))) if len(geometry.largest) else 0.0
    wild = geometry.wild.above(limit) if len(geometry.largest) else []
    summary = {
        "count": len(wild),
        "limit": limit,
        "first": [{"id": id, "largest_force": value} for value, id in wild[:SHOWN]],
    }
    if wild:
        found.append(
            Finding(
                code="force_outliers",
                severity="warning",
                title=f"structures with forces far beyond the others: {_at_least(wild)}",
                message=f"Largest forces above {number(limit)} {shown}: "
                + ", ".join(f"{id} ({number(value)})" for value, id in wild[:3])
                + ".",
                why="A few such structures can dominate the loss and make training diverge.",
                fix="Look at them; remove failed calculations, or clip gradients and use a norm loss.",
                numbers=summary,
            )
        )
    close = [(-value * length, item) for value, item in geometry.shortest.above(-0.5 / length)]
    if close:
        words = ", ".join(f"{id} ({pair} {number(d * length)} Å)" for _, (id, pair, d) in close[:3])
        found.append(
            Finding(
                code="close_atoms",
                severity="warning",
                title=f"structures with atoms on top of each other: {_at_least(close)}",
                message=f"Distances below half a bond: {words}.",
                why="Nothing physical is there; energies and forces of such structures are huge or wrong.",
                fix="Look at them: a wrong cell or unit, or a broken structure.",
                numbers={
                    "count": len(close),
                    "first": [{"id": i, "atoms": p, "distance": d} for _, (i, p, d) in close[:SHOWN]],
                },
            )
        )
    empty = geometry.empty.above(PLACEHOLDER / length)
    if empty:
        found.append(
            Finding(
                code="huge_cells",
                severity="warning",
                title=f"periodic cells that are mostly empty (placeholder cells?): {_at_least(empty)}",
                message=f"Empty layers of up to {number(empty[0][0] * length)} Å along a periodic vector, e.g. "
                f"{', '.join(id for _, id in empty[:3])}.",
                why="A molecule with a made-up cell is taken for a crystal: its stress and density mean nothing.",
                fix="Set pbc to False for molecules; a cell is then not needed.",
                numbers={"count": len(empty), "first": [{"id": id, "gap": gap} for gap, id in empty[:SHOWN]]},
            )
        )
    dense = geometry.dense.above(-2.0 / length**3)
    if dense:
        found.append(
            Finding(
                code="dense_cells",
                severity="warning",
                title=f"cells denser than any matter: {_at_least(dense)}",
                message=f"Volumes of {number(-dense[0][0] * length**3)} Å³ per atom and more, e.g. {dense[0][1]}.",
                why="A cell in the wrong unit, or with rows for columns, changes every neighbour.",
                fix="Check the cells: rows are lattice vectors, in Å.",
                numbers={"count": len(dense), "first": [{"id": id, "volume": -v} for v, id in dense[:SHOWN]]},
            )
        )
    found += _balance(geometry, force_unit, shown)
    return found, summary


def _at_least(found: Sequence[object]) -> str:
    """A count; only so many extremes are kept."""
    return f"{len(found)} or more" if len(found) >= Largest().size else str(len(found))


def _balance(geometry: Geometry, force_unit: float, shown: str) -> list[Finding]:
    found: list[Finding] = []
    net = [(share, size) for share, size in geometry.net if share > 0.05 and size * force_unit > 0.02]
    if len(geometry.net) and len(net) > 0.1 * len(geometry.net):
        share, left = (float(np.median(values)) for values in zip(*net, strict=True))
        found.append(
            Finding(
                code="net_force",
                severity="warning",
                title="forces do not sum to zero",
                message=f"In {100 * len(net) / len(geometry.net):.0f} % of the structures without fixed atoms the "
                f"forces leave a net force: {100 * share:.0f} % of their sizes, {number(left)} {shown} (medians).",
                why="A conservative model cannot fit them; constraints, point charges or missing atoms do this.",
                fix="Take forces without constraints applied (ASE: get_forces(apply_constraint=False)).",
                numbers={"share_of_structures": len(net) / len(geometry.net), "median_share": share},
            )
        )
    turning = np.array(geometry.torque.kept)
    if len(turning) and np.mean(turning > 0.05) > 0.1 and not found:
        found.append(
            Finding(
                code="torque",
                severity="warning",
                title="forces turn molecules as a whole",
                message=f"In {100 * float(np.mean(turning > 0.05)):.0f} % of the molecules the forces leave a torque.",
                why="Turning a molecule costs no energy: coordinates and forces are not in one frame or order.",
                fix="Check that coordinates and forces have the same orientation and order of atoms.",
                numbers={"share_of_structures": float(np.mean(turning > 0.05))},
            )
        )
    if geometry.fixed_without_force:
        found.append(
            Finding(
                code="fixed_forces_zeroed",
                severity="note",
                title="forces on fixed atoms are exactly zero",
                message=f"In {geometry.fixed_without_force} structures all fixed atoms have zero force, others not.",
                why="The constraint was applied to the labels: these are not forces, and must not be learned.",
                fix="Leave fixed atoms out of the loss, or take the raw forces of the calculation.",
                numbers={"count": geometry.fixed_without_force},
            )
        )
    return found


def of_elements(contents: Contents, seen: Iterable[int] | None) -> list[Finding]:
    """Elements with few structures, and those a model never saw (`seen` empty: it does not say)."""
    found: list[Finding] = []
    here = [int(z) for z in np.flatnonzero(contents.structures_with)]
    rare = {chemical_symbols[z]: int(contents.structures_with[z]) for z in here if contents.structures_with[z] < FEW}
    if rare and contents.usable >= 5 * FEW:
        found.append(
            Finding(
                code="rare_elements",
                severity="note",
                title="some elements are in few structures",
                message="Fewer than ten structures with " + ", ".join(f"{s} ({n})" for s, n in rare.items()) + ".",
                why="Their reference energies and interactions are hardly learned.",
                fix="Expect larger errors for them, or add structures.",
                numbers=rare,
            )
        )
    if seen is not None:
        seen = set(seen)
        unseen = [z for z in here if z not in seen]
        if not seen:
            found.append(
                Finding(
                    code="model_elements_unknown",
                    severity="note",
                    title="which elements the model saw is not known",
                    message="The model's provenance does not say which elements it was trained on, so they were not "
                    "compared.",
                    why="Embeddings of elements that it never saw are as random as on the first day.",
                    fix="Look up what the model was trained on.",
                )
            )
        elif unseen:
            names = ", ".join(f"{chemical_symbols[z]} ({int(contents.structures_with[z])} structures)" for z in unseen)
            found.append(
                Finding(
                    code="unseen_elements",
                    severity="warning",
                    title="the model never saw " + ", ".join(chemical_symbols[z] for z in unseen),
                    message=f"Not among the elements the model was trained on: {names}.",
                    why="Their embeddings are as random as on the first day.",
                    fix="Fine-tune with enough structures of them, or start from a model that saw them.",
                    numbers={chemical_symbols[z]: int(contents.structures_with[z]) for z in unseen},
                )
            )
    return found


def of_motion(motion: Motion, units: Units) -> list[Finding]:
    """Frames so near to another that they add nothing."""
    pairs = list(motion.pairs)
    length = LENGTH_UNITS.get(units.length or "Å", 1.0)
    near = [p for p in pairs if p.distance * length < 0.005]
    if len(pairs) < 20 or len(near) < 0.2 * len(pairs):
        return []
    return [
        Finding(
            code="near_duplicates",
            severity="note",
            title="many frames are nearly the same as another",
            message=f"{100 * len(near) / len(pairs):.0f} % of {len(pairs)} frames compared are within 0.005 Å.",
            why="They cost training time and add little; split at random, they flatter the test.",
            fix="Keep every tenth, and split by trajectory (`--split group`).",
            numbers={"share": len(near) / len(pairs), "compared": len(pairs), "first": [list(p.ids) for p in near[:3]]},
        )
    ]


def of_splits(leaks: Iterable[Leak]) -> list[Finding]:
    """What is on both sides of a split, and what on one that should be on both."""
    found: list[Finding] = []
    leaks = list(leaks)
    lacking = {leak.split: leak.elements for leak in leaks if leak.elements}
    if lacking:
        every = ", ".join(dict.fromkeys(symbol for elements in lacking.values() for symbol in elements))
        found.append(
            Finding(
                code="elements_held_out",
                severity="warning",
                title=f"elements that are tested on and not trained on: {every}",
                message="No training structure has, in split "
                + "; in ".join(f"{name!r}, {', '.join(elements)}" for name, elements in lacking.items())
                + ".",
                why="A model has no reference energy for them (where energies are learned, the run stops there), and "
                "their embeddings stay as random as on the first day.",
                fix="Use another split, or leave the structures with these elements out.",
                numbers={name: list(elements) for name, elements in lacking.items()},
            )
        )
    for leak in leaks:
        if leak.structures:
            found.append(
                Finding(
                    code="leaked_structures",
                    severity="warning",
                    title=f"training structures that split {leak.split!r} tests on: {leak.structures}",
                    message=f"{leak.structures} of {leak.held_out} held-out structures of split {leak.split!r} are the "
                    "same (to 1e-3 Å) as a training structure.",
                    why="The test error measures memory for them.",
                    fix="Remove the duplicates, or split by group.",
                    numbers=asdict(leak),
                )
            )
        if leak.groups:
            found.append(
                Finding(
                    code="leaked_groups",
                    severity="note",
                    title=f"split {leak.split!r} parts groups",
                    message=f"{leak.groups} of {leak.reserved} held-out groups of {leak.split!r} are in training.",
                    why="The test is of new frames of known systems, not of new systems.",
                    fix="Split by group to test on new systems, where there are several groups.",
                    numbers=asdict(leak),
                )
            )
    return found
