"""The golden cases of GemNet-OC that `benchmarks/golden.py` has fairchem-core compute."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from eutectic.atoms import Structure
from eutectic.graph import Edges, Graph, GraphSettings, build_graph, collate

FOLDER = Path(__file__).parents[1] / "models" / "gemnet_oc" / "golden"
ABOUT: dict[str, Any] = json.loads((FOLDER / "golden.json").read_text())
CASES = list(ABOUT["cases"])
LISTS = ("main", "atom_atom", "atom_edge", "quadruplet")


@dataclass(frozen=True)
class GoldenCase:
    """Structures, and what fairchem makes of them.

    Attributes:
        name: of `CASES`.
        arrays: by name; those of edges in fairchem's order (`order`).
    """

    name: str
    arrays: dict[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        return self.arrays[name]

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    @property
    def model(self) -> str:
        """Which of the golden models."""
        return str(ABOUT["cases"][self.name]["model"])

    @property
    def config(self) -> dict[str, Any]:
        """Of the backbone, under the published names."""
        config: dict[str, Any] = ABOUT["models"][self.model]
        return config

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """Under the published names; and `out_energy` and `out_forces`, fairchem's heads."""
        return {n: v.double() for n, v in load_file(FOLDER / f"weights_{self.model}.safetensors").items()}

    @property
    def graph_settings(self) -> GraphSettings:
        return GraphSettings.model_validate(ABOUT["cases"][self.name]["graph"])

    @property
    def structures(self) -> list[Structure]:
        sizes = self["in.n_atoms"].tolist()
        parts = zip(*(self[f"in.{name}"].split(sizes) for name in ("numbers", "positions", "tags")), strict=True)
        return [
            Structure(
                numbers=numbers.numpy(),
                positions=positions.numpy(),
                tags=tags.numpy(),
                cell=self["in.cell"][i].numpy(),
                pbc=self["in.pbc"][i].numpy() > 0,
            )
            for i, (numbers, positions, tags) in enumerate(parts)
        ]

    @cached_property
    def graph(self) -> Graph:
        """Built here from the structures alone."""
        return collate([build_graph(s, self.graph_settings) for s in self.structures], torch.float64)

    def order(self, name: str) -> Tensor:
        """For each edge of a list of `graph`, its place in fairchem's."""
        place = {row: i for i, row in enumerate(map(tuple, self[f"graph.{name}"].tolist()))}
        return torch.tensor([place[row] for row in rows(getattr(self.graph, name))], dtype=torch.long)


def rows(edges: Edges) -> list[tuple[int, ...]]:
    """(source, target, offset) of each edge."""
    columns = torch.cat([torch.stack([edges.source, edges.target], dim=1), edges.offset.long()], dim=1)
    return [tuple(row) for row in columns.tolist()]


def golden_case(name: str) -> GoldenCase:
    """One of `CASES`; its numbers in float64, indices in int64."""
    with np.load(FOLDER / f"case_{name}.npz") as stored:
        read = {name: torch.from_numpy(np.asarray(stored[name])) for name in stored.files}
    return GoldenCase(name, {n: v.double() if v.is_floating_point() else v.long() for n, v in read.items()})
