"""Structures as graphs: one structure in NumPy, a batch of them in torch.

Conventions: an edge points from `source` s to `target` t; its offset belongs to the source, so that the vector
is r_s + offset·cell − r_t from target to source, and `direction` is the unit vector the other way, source to
target. Every edge list is sorted by target.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from eutectic.atoms import Structure
from eutectic.graph.neighbours import NeighbourList, nearest, neighbour_list, symmetric
from eutectic.graph.settings import GraphSettings


class Counts(NamedTuple):
    """What one structure brings to a training step.

    Attributes:
        atoms: of the structure.
        edges: of the main graph, directed.
        triplets: pairs of a main edge and another main or atom-edge edge into the same atom.
        quadruplets: d→b→a←c over all middle edges b→a.

    The last two are counted from degrees alone; the few that a model excludes (an edge with itself, d = a) are
    counted too.
    """

    atoms: int
    edges: int
    triplets: int
    quadruplets: int


@dataclass(frozen=True, kw_only=True, eq=False)
class StructureGraph:
    """One structure's graph, small enough to keep (int32 indices).

    Attributes:
        structure: the atoms.
        main: edges that carry a state; every edge has its reverse.
        reverse: (n_main,) index of each main edge's reverse.
        atom_atom, atom_edge, quadruplet: directed edges; each is the nearest few of one list.
    """

    structure: Structure
    main: NeighbourList
    reverse: Int[np.ndarray, main]
    atom_atom: NeighbourList
    atom_edge: NeighbourList
    quadruplet: NeighbourList

    @property
    def counts(self) -> Counts:
        """Its size, as a cost model wants it."""
        n = len(self.structure)
        degree, wider = (np.bincount(e.target, minlength=n).astype(np.int64) for e in (self.main, self.atom_edge))
        return Counts(
            atoms=n,
            edges=len(self.main),
            triplets=int((degree * (degree + wider)).sum()),
            quadruplets=int((degree[self.quadruplet.target] * degree[self.quadruplet.source]).sum()),
        )


def build_graph(
    structure: Structure,
    settings: GraphSettings,
    *,
    edge_dropout: float = 0.0,
    rng: np.random.Generator | None = None,
) -> StructureGraph:
    """All four graphs from one neighbour search.

    Args:
        structure: any; one atom, or atoms too far apart for any edge, give empty edge lists.
        settings: cutoff and caps.
        edge_dropout: share of the directed edges left out at random before the other graphs are taken from the
            rest (JMP, Shoghi et al. 2024, pre-training: 0.1). For training only, and anew each time.
        rng: what decides; needed with `edge_dropout`.
    """
    everything = neighbour_list(structure, settings.cutoff)
    caps = settings.caps
    atom_atom = everything.take(nearest(everything, caps["atom_atom"]))
    if edge_dropout:
        if rng is None:
            raise ValueError(
                f"build_graph: edge_dropout={edge_dropout} was given without `rng`; expected a NumPy random generator, "
                "so that a run can be repeated; pass numpy.random.default_rng(seed)"
            )
        atom_atom = atom_atom.take(rng.random(len(atom_atom)) >= edge_dropout)
    main, reverse = symmetric(atom_atom, nearest(atom_atom, caps["main"]), settings.symmetry)
    quadruplet = atom_atom.take(nearest(atom_atom, caps["quadruplet"]))
    tagged = np.isin(structure.tags, settings.quadruplet_tags)
    # The tag rule comes after the cap: an untagged neighbour still uses up its place.
    quadruplet = quadruplet.take(tagged[quadruplet.source] | tagged[quadruplet.target])
    return StructureGraph(
        structure=structure,
        main=main,
        reverse=reverse.astype(np.int32),
        atom_atom=atom_atom,
        atom_edge=atom_atom.take(nearest(atom_atom, caps["atom_edge"])),
        quadruplet=quadruplet,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Edges:
    """Directed edges of a batch, sorted by target.

    Attributes:
        source, target: (n_edges,) atom indices within the batch.
        offset: (n_edges, 3) lattice vectors added to the source's position.
    """

    source: Int[Tensor, edges]
    target: Int[Tensor, edges]
    offset: Float[Tensor, "edges 3"]

    def __len__(self) -> int:
        return int(self.source.shape[0])


@dataclass(frozen=True, kw_only=True, eq=False)
class Graph:
    """A batch of structures as one graph without edges between them.

    Attributes:
        numbers, tags: (n_atoms,).
        positions: (n_atoms, 3) Å.
        cell: (n_structures, 3, 3) Å, rows are lattice vectors.
        structure: (n_atoms,) which structure an atom belongs to, ascending.
        n_atoms: (n_structures,).
        main, atom_atom, atom_edge, quadruplet: see `StructureGraph`.
        reverse: (n_main,) index of each main edge's reverse.
    """

    numbers: Int[Tensor, atoms]
    tags: Int[Tensor, atoms]
    positions: Float[Tensor, "atoms 3"]
    cell: Float[Tensor, "structures 3 3"]
    structure: Int[Tensor, atoms]
    n_atoms: Int[Tensor, structures]
    main: Edges
    reverse: Int[Tensor, main]
    atom_atom: Edges
    atom_edge: Edges
    quadruplet: Edges

    @property
    def n_structures(self) -> int:
        return int(self.n_atoms.shape[0])

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Graph:
        """The same graph elsewhere, and its geometry in another precision if one is given."""

        def move(value: Tensor) -> Tensor:
            floating = dtype is not None and value.is_floating_point()
            return value.to(device, dtype if floating else None, non_blocking=True)

        def moved(item: Graph | Edges) -> dict[str, Tensor | Edges]:
            return {
                f.name: Edges(**moved(v)) if isinstance(v := getattr(item, f.name), Edges) else move(v)  # type: ignore[arg-type]
                for f in fields(item)
            }

        return Graph(**moved(self))  # type: ignore[arg-type]

    def with_positions(self, positions: Tensor, cell: Tensor | None = None) -> Graph:
        """The same edges with other coordinates (for derivatives)."""
        return replace(self, positions=positions, cell=self.cell if cell is None else cell)

    def strained(self, strain: Float[Tensor, "structures 3 3"]) -> Graph:
        """The same edges after r → r + r·ε, cell → cell + cell·ε, ε the symmetric part of a structure's strain."""
        symmetric = 0.5 * (strain + strain.mT)
        moved = torch.bmm(self.positions[:, None], symmetric[self.structure])[:, 0]
        return self.with_positions(self.positions + moved, self.cell + self.cell @ symmetric)

    def vectors(self, edges: Edges) -> tuple[Float[Tensor, edges], Float[Tensor, "edges 3"]]:
        """Length (Å) of each edge and its unit vector, source → target; differentiable in positions and cell."""
        shift = torch.bmm(edges.offset[:, None, :], self.cell[self.structure[edges.source]])[:, 0]
        vector = self.positions[edges.target] - self.positions[edges.source] - shift
        distance = torch.linalg.vector_norm(vector, dim=-1)
        return distance, vector / distance[:, None]


def collate(graphs: Sequence[StructureGraph], dtype: torch.dtype = torch.float32) -> Graph:
    """One batch from several structures.

    Args:
        graphs: at least one.
        dtype: of positions, cells and offsets.
    """
    sizes = np.array([len(g.structure) for g in graphs])
    first_atom = np.concatenate([[0], np.cumsum(sizes)[:-1]])

    def joined(name: str) -> Edges:
        lists: list[NeighbourList] = [getattr(g, name) for g in graphs]
        first = np.repeat(first_atom, [len(e) for e in lists])
        return Edges(
            source=torch.from_numpy(np.concatenate([e.source for e in lists]) + first),
            target=torch.from_numpy(np.concatenate([e.target for e in lists]) + first),
            offset=torch.from_numpy(np.concatenate([e.offset for e in lists])).to(dtype),
        )

    n_main = np.array([len(g.main) for g in graphs])
    first_edge = np.repeat(np.concatenate([[0], np.cumsum(n_main)[:-1]]), n_main)
    structures = [g.structure for g in graphs]
    return Graph(
        numbers=torch.from_numpy(np.concatenate([s.numbers for s in structures])),
        tags=torch.from_numpy(np.concatenate([s.tags for s in structures])),
        positions=torch.from_numpy(np.concatenate([s.positions for s in structures])).to(dtype),
        cell=torch.from_numpy(np.stack([s.cell for s in structures])).to(dtype),
        structure=torch.from_numpy(np.repeat(np.arange(len(graphs)), sizes)),
        n_atoms=torch.from_numpy(sizes),
        main=joined("main"),
        reverse=torch.from_numpy(np.concatenate([g.reverse for g in graphs]) + first_edge),
        atom_atom=joined("atom_atom"),
        atom_edge=joined("atom_edge"),
        quadruplet=joined("quadruplet"),
    )
