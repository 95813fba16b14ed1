"""The features of structures that a frozen backbone has seen, so that each is computed once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from eutectic.graph import Graph
from eutectic.models.backbone import Backbone, Features

MOST_BYTES = 2**30
"""Features beyond this are computed anew each time."""


class FrozenFeatures:
    """Features of a backbone none of whose parameters change, by structure.

    A structure is recognised by its elements, tags, positions and cell, bit by bit; its graph is always built with the
    same settings. Copies of a model share what is remembered, since their backbones are the same.

    Args:
        most_bytes: of the features that are kept.
    """

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self.most_bytes, self.bytes = most_bytes, 0
        self._known: dict[bytes, tuple[Tensor, Tensor | None, Tensor]] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenFeatures:
        return self

    def __len__(self) -> int:
        return len(self._known)

    @torch.no_grad()
    def of(self, backbone: Backbone, graph: Graph) -> Features:
        """`backbone(graph)` without vectors: remembered, or computed for the whole batch where a structure is new."""
        keys = _keys(graph)
        if all(key in self._known for key in keys):
            known = [self._known[key] for key in keys]
            of_edges = [edges for _, edges, _ in known if edges is not None]
            return Features(
                atoms=torch.cat([atoms for atoms, _, _ in known]),
                edges=torch.cat(of_edges) if of_edges else None,
                directions=torch.cat([directions for _, _, directions in known]),
            )
        features = backbone(graph)
        n_atoms = graph.n_atoms.tolist()
        n_edges = torch.bincount(graph.structure[graph.main.target], minlength=len(n_atoms)).tolist()
        by_structure = [None] * len(n_atoms) if features.edges is None else features.edges.split(n_edges)
        parts = zip(features.atoms.split(n_atoms), by_structure, features.directions.split(n_edges), strict=True)
        for key, part in zip(keys, parts, strict=True):
            size = sum(x.nbytes for x in part if x is not None)
            if key not in self._known and self.bytes + size <= self.most_bytes:
                # Copies: a part of a batch's features would keep all of them in memory.
                self._known[key] = tuple(None if x is None else x.clone() for x in part)  # type: ignore[assignment]
                self.bytes += size
        return features


def _keys(graph: Graph) -> list[bytes]:
    sizes = graph.n_atoms.tolist()
    numbers, tags, positions = (x.cpu().split(sizes) for x in (graph.numbers, graph.tags, graph.positions))
    arrays = zip(numbers, tags, positions, graph.cell.cpu(), strict=True)
    return [b"".join(x.numpy().tobytes() for x in parts) for parts in arrays]
