"""Select a few diverse structures of a store and convert them to JSON for drawing."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from eutectic.atoms import MAX_ATOMIC_NUMBER, Structure
from eutectic.data.store import Store

EXAMPLES = 6


def varied(store: Store, count: int = EXAMPLES, looked_at: int = 400) -> list[int]:
    """Rows that differ most in composition and size (farthest-point sampling).

    Deterministic: starts at the structure of median size, among `looked_at` rows evenly spread over the store.
    """
    rows = np.unique(np.linspace(0, len(store) - 1, min(looked_at, len(store))).astype(int))
    features, groups = [], []
    for row in rows:
        item = store[int(row)]
        # Square roots give one carbon of an adsorbate some weight beside forty metal atoms.
        amounts = np.sqrt(np.bincount(item.structure.numbers, minlength=MAX_ATOMIC_NUMBER + 1) / len(item.structure))
        features.append(np.append(amounts, 0.5 * math.log(len(item.structure))))
        groups.append(item.group)
    table = np.array(features)
    chosen = [int(np.argsort(table[:, -1], kind="stable")[len(rows) // 2])]
    while len(chosen) < min(count, len(rows)):
        distance = np.linalg.norm(table[:, None] - table[None, chosen], axis=-1).min(axis=1)
        seen = {groups[i] for i in chosen}
        distance[[g in seen for g in groups]] *= 0.1
        distance[chosen] = -1.0
        chosen.append(int(distance.argmax()))
    return [int(rows[i]) for i in sorted(chosen, key=lambda i: (table[i, -1], rows[i]))]


def structure_to_dict(structure: Structure) -> dict[str, Any]:
    """A structure as JSON, rounded to 1e-3 Å, for drawing."""
    return {
        "numbers": structure.numbers.tolist(),
        "positions": np.round(structure.positions, 3).tolist(),
        "cell": np.round(structure.cell, 3).tolist(),
        "pbc": structure.pbc.tolist(),
        "tags": structure.tags.tolist(),
    }


def structure_from_dict(values: dict[str, Any]) -> Structure:
    """Inverse of `structure_to_dict`."""
    return Structure(
        numbers=np.asarray(values["numbers"], dtype=np.int64),
        positions=np.asarray(values["positions"], dtype=np.float64).reshape(-1, 3),
        cell=np.asarray(values["cell"], dtype=np.float64),
        pbc=np.asarray(values["pbc"], dtype=bool),
        tags=np.asarray(values["tags"], dtype=np.int64),
    )
