"""Conformance checks of a store."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from eutectic.atoms import EutecticError
from eutectic.data.store import Store
from eutectic.testing.results import DEFAULT_TOLERANCES, CheckResult, Tolerances, raise_if_failed


def check_dataset(
    store: Store,
    *,
    limit: int | None = None,
    tolerances: Tolerances = DEFAULT_TOLERANCES,
) -> list[CheckResult]:
    """Run all checks on a store.

    Args:
        store: the store.
        limit: check this many structures, evenly spaced (default: all).
        tolerances: see `Tolerances`.

    Returns:
        The results. "net force" is advisory: the forces on an isolated molecule sum to zero, but numerical grids leave
        a small residual, and external fields or solvent models a larger one.

    Raises:
        ConformanceError: some checks failed; its message lists all of them.
    """
    card = store.card
    indices = np.arange(len(store)) if limit is None else np.unique(np.linspace(0, len(store) - 1, limit, dtype=int))
    label_counts: dict[str, int] = dict.fromkeys(card.properties, 0)
    ids: set[str] = set()
    unusable, net, net_where = [], 0.0, ""
    for index in indices:
        labelled = store[int(index)]
        ids.add(labelled.id)
        try:
            labelled.check(f"structure {index} ({labelled.id})")
        except EutecticError as error:
            unusable.append(str(error))
        for name in labelled.labels:
            label_counts[name] = label_counts.get(name, 0) + 1
        forces = labelled.labels.get("forces")
        if forces is not None and not labelled.structure.pbc.any() and not labelled.structure.fixed.any():
            residual = float(np.abs(forces.sum(0)).max()) / len(labelled.structure)
            if residual > net:
                net, net_where = residual, labelled.id

    fields = ("name", "title", "domain", "level_of_theory", "licence", "citation", "source", "default_split")
    empty = [f"card.{f} is empty" for f in fields if not str(getattr(card, f)).strip()]
    if not card.properties:
        empty.append("card.properties is empty")
    results = [
        _counted("card", empty),
        _counted("units", _undeclared_units(store)),
        _counted("structures and labels", unusable),
        _counted("unique ids", [] if len(ids) == len(indices) else [f"{len(indices) - len(ids)} ids occur twice"]),
        _counted("declared labels", [f"no structure has {name}" for name, n in label_counts.items() if n == 0]),
        CheckResult(
            name="net force",
            passed=net <= tolerances.net_force,
            worst=net,
            tolerance=tolerances.net_force,
            where=net_where,
            meaning="forces on an isolated molecule should sum to zero (eV/Å per atom)",
            advisory=True,
        ),
    ]
    raise_if_failed(card.name, results)
    return results


def _counted(name: str, problems: Sequence[str]) -> CheckResult:
    """A check that passes if there are no problems; its meaning quotes the first three."""
    few = "; ".join(problems[:3]) + (f"; and {len(problems) - 3} more" if len(problems) > 3 else "")
    return CheckResult(name=name, passed=not problems, worst=float(len(problems)), tolerance=0.0, meaning=few)


def _undeclared_units(store: Store) -> list[str]:
    """Problems: properties whose unit in the first shard's schema differs from the library's."""
    with pa.memory_map(str(sorted(store.path.glob("shard-*.arrow"))[0])) as file:
        schema = pa.ipc.open_file(file).schema
    units = json.loads((schema.metadata or {}).get(b"units", b"{}"))
    return [
        f"{p.name} is declared in {units.get(p.name)!r}, not in {p.unit!r}"
        for p in store.card.property_table()
        if units.get(p.name) != p.unit
    ]
