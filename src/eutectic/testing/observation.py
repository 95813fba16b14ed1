"""Quantities that the checks compare: a backbone's features, with edge features summed per atom."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from eutectic.atoms import Structure
from eutectic.graph import LISTS, Graph, GraphSettings, build_graph, collate
from eutectic.models.backbone import Features
from eutectic.testing.structures import Structures


@dataclass(frozen=True, kw_only=True, eq=False)
class Observed:
    """Features per atom, independent of the order of the edges.

    Attributes:
        atoms: (n_atoms, atom_width) invariant features.
        edges: (n_atoms, edge_width) sum of the features of each atom's incoming edges.
        vectors: (n_atoms, 3) Σ f_e · direction over incoming edges; f_e is a fixed random combination of edge features.
    """

    atoms: Tensor
    edges: Tensor
    vectors: Tensor

    def rows(self, keep: Tensor | slice) -> Observed:
        """Select atoms."""
        return Observed(atoms=self.atoms[keep], edges=self.edges[keep], vectors=self.vectors[keep])

    def parts(self) -> dict[str, Tensor]:
        """The three tensors by name."""
        return {"atoms": self.atoms, "edges": self.edges, "vectors": self.vectors}

    @classmethod
    def concatenate(cls, several: Sequence[Observed]) -> Observed:
        """Concatenate the rows of several observations."""
        return cls(**{part: torch.cat([o.parts()[part] for o in several]) for part in ("atoms", "edges", "vectors")})


def _mixture(width: int, like: Tensor) -> Tensor:
    """(width,) fixed random weights, with the dtype and device of `like`."""
    weights = torch.randn(width, generator=torch.Generator().manual_seed(17), dtype=torch.float64)
    return (weights / math.sqrt(max(width, 1))).to(like)


def observe(backbone: nn.Module, graph: Graph) -> Observed:
    """Features per atom from one forward pass."""
    features: Features = backbone(graph)
    n = len(graph.numbers)
    edges = features.atoms.new_zeros(n, 0)
    vectors = features.atoms.new_zeros(n, 3)
    if features.edges is not None:
        edges = features.edges.new_zeros(n, features.edges.shape[1]).index_add(0, graph.main.target, features.edges)
        strength = features.edges @ _mixture(features.edges.shape[1], features.edges)  # (edges,)
        vectors = vectors.index_add(0, graph.main.target, strength[:, None] * features.directions)
    return Observed(atoms=features.atoms, edges=edges, vectors=vectors)


def energy(backbone: nn.Module, graph: Graph) -> Float[Tensor, structures]:
    """A pseudo-energy of each structure: a fixed random combination of atom features, summed over atoms."""
    atoms = backbone(graph).atoms
    atom_energies = atoms @ _mixture(atoms.shape[1], atoms)  # (atoms,)
    return atom_energies.new_zeros(graph.n_structures).index_add(0, graph.structure, atom_energies)


def gradient(value: Tensor, of: Tensor, *, retain: bool = False, create: bool = False) -> Tensor:
    """∂value/∂of; zeros if `value` does not depend on `of` (for example without edges)."""
    if not value.requires_grad:
        return torch.zeros_like(of)
    (slope,) = torch.autograd.grad(value, of, retain_graph=retain or create, create_graph=create, allow_unused=True)
    return torch.zeros_like(of) if slope is None else slope


def graph_of(structures: Sequence[Structure], settings: GraphSettings, backbone: nn.Module) -> Graph:
    """A float64 batch of structures, with the edge lists that the backbone declares, as in training."""
    lists = getattr(backbone, "edge_lists", LISTS)
    return collate([build_graph(s, settings, lists=lists) for s in structures], torch.float64)


def in_float64(backbone: nn.Module) -> nn.Module:
    """A float64 copy in evaluation mode (no dropout, no running means); the original is unchanged."""
    return copy.deepcopy(backbone).double().eval()


def atom_rows(structures: Structures) -> dict[str, slice]:
    """Range of each structure's atoms in a batch of all structures."""
    ends = np.cumsum([len(s) for s in structures.values()])
    return {name: slice(int(end) - len(s), int(end)) for (name, s), end in zip(structures.items(), ends, strict=True)}


def largest_difference(a: Tensor, b: Tensor) -> float:
    """Largest |a − b|; infinite if either has NaN or the shapes differ."""
    if a.shape != b.shape:
        return math.inf
    return float((a - b).abs().nan_to_num(nan=math.inf).max()) if a.numel() else 0.0


def worst_deviation(expected: Observed, found: Observed, rows: Mapping[str, slice]) -> tuple[float, str]:
    """Largest difference, relative to the largest value of the same quantity in the batch, and its location.

    Not relative to the values of each structure, because vectors cancel to zero in a perfect crystal.
    """
    worst, where = 0.0, ""
    for part, a in expected.parts().items():
        b = found.parts()[part]
        scale = float(a.abs().max()) if a.numel() else 0.0
        for name, keep in rows.items():
            difference = largest_difference(a[keep], b[keep]) / (scale or 1.0)
            difference = math.inf if math.isnan(difference) else difference
            if difference > worst:
                worst, where = difference, f"{name} ({part})"
    return worst, where
