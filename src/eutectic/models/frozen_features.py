"""Cache the features of a frozen backbone, so that each structure is computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, cast

import torch
from torch import Tensor

from eutectic.graph import Graph
from eutectic.models.backbone import Backbone, Features

MOST_BYTES = 2**30
"""Capacity of the cache; features beyond it are recomputed each time."""

NAMES = tuple(field.name for field in fields(Features))


class FrozenFeatures:
    """Cached features, by structure, of a backbone whose parameters do not change.

    A structure is identified by the exact bits of its elements, tags, positions and cell; its graph must always be
    built with the same settings. Copies of a model share the cache, since their backbones are the same.

    Args:
        most_bytes: capacity of the cache.
    """

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self.most_bytes, self.bytes = most_bytes, 0
        self._known: dict[bytes, tuple[Tensor | None, ...]] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenFeatures:
        return self

    def __len__(self) -> int:
        return len(self._known)

    @torch.no_grad()
    def of(self, backbone: Backbone, graph: Graph) -> Features:
        """`backbone(graph)` from the cache, or computed for the whole batch if any structure is new."""
        keys = _keys(graph)
        if all(key in self._known for key in keys):
            known = zip(*(self._known[key] for key in keys), strict=True)
            joined = (None if parts[0] is None else torch.cat(cast(tuple[Tensor, ...], parts)) for parts in known)
            return Features(**dict(zip(NAMES, joined, strict=True)))  # type: ignore[arg-type]
        features = backbone(graph)
        n_atoms = graph.n_atoms.tolist()
        n_edges = torch.bincount(graph.structure[graph.main.target], minlength=len(n_atoms)).tolist()
        split: list[Sequence[Tensor | None]] = []
        for name in NAMES:
            values: Tensor | None = getattr(features, name)
            sizes = n_edges if name in ("edges", "directions") else n_atoms
            split.append([None] * len(sizes) if values is None else values.split(sizes))
        for key, *parts in zip(keys, *split, strict=True):
            size = sum(x.nbytes for x in parts if x is not None)
            if key not in self._known and self.bytes + size <= self.most_bytes:
                # Cloned, since a view would keep the features of the whole batch in memory.
                self._known[key] = tuple(None if x is None else x.clone() for x in parts)
                self.bytes += size
        return features


def _keys(graph: Graph) -> list[bytes]:
    sizes = graph.n_atoms.tolist()
    numbers, tags, positions = (x.cpu().split(sizes) for x in (graph.numbers, graph.tags, graph.positions))
    arrays = zip(numbers, tags, positions, graph.cell.cpu(), strict=True)
    return [b"".join(x.numpy().tobytes() for x in parts) for parts in arrays]
