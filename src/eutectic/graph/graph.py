"""Graphs of structures: one structure in NumPy, a batch in PyTorch.

Conventions: an edge points from `source` s to `target` t. Its offset belongs to the source: the vector from target to
source is r_s + offset·cell − r_t. `direction` is the unit vector from source to target. Every edge list is sorted by
target.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from eutectic.atoms import Structure
from eutectic.atoms.home import home_positions
from eutectic.graph.neighbours import NeighbourList, beyond, nearest, neighbour_list, symmetric
from eutectic.graph.settings import GraphSettings

AT_ONCE = 512
"""Atoms whose graphs are built together: enough to amortise NumPy's call overhead, few enough for the cache."""

MOST_CELLS = 100
"""Distance from the cell, in lattice vectors, beyond which atoms are moved back even in double precision."""

LISTS = ("main", "atom_atom", "atom_edge", "quadruplet")
"""The names of the edge lists, in the order of the columns of `SmoothCutoff`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SmoothCutoff:
    """End of each atom's edge lists for a smooth cap: the first neighbour beyond the cap, or the cutoff.

    Attributes:
        source: (n_atoms, 4) first neighbour beyond the cap, for each of `LISTS`; −1 if the cutoff comes first.
        offset: (n_atoms, 4, 3) lattice vectors added to that neighbour's position.
        cutoff: (n_atoms,) Å.
        width: (n_atoms,) distance over which edges fade out, Å; 0 for a hard cap.
    """

    source: Int[Tensor, "atoms 4"]
    offset: Float[Tensor, "atoms 4 3"]
    cutoff: Float[Tensor, atoms]
    width: Float[Tensor, atoms]


class Counts(NamedTuple):
    """Numbers of atoms, edges, triplets and quadruplets of one structure.

    Attributes:
        atoms: atoms.
        edges: directed edges of the main graph.
        triplets: pairs of a main edge and another main or atom-edge edge into the same atom.
        quadruplets: d→b→a←c over all middle edges b→a.

    Triplets and quadruplets are computed from degrees, so the few that a model excludes (an edge with itself, d = a)
    are included.
    """

    atoms: int
    edges: int
    triplets: int
    quadruplets: int


@dataclass(frozen=True, kw_only=True, eq=False)
class StructureGraph:
    """Graph of one structure, compact enough to store (int32 indices).

    Attributes:
        structure: the atoms.
        home: (n_atoms, 3) positions moved near the origin (`home_positions`), Å; all offsets refer to these.
        moves: (n_atoms, 3) lattice vectors by which each atom was moved back.
        main: edges that carry features; the reverse of every edge is included.
        reverse: (n_main,) index of each main edge's reverse.
        atom_atom, atom_edge, quadruplet: directed edges to the nearest neighbours, all from one search; empty if not
            requested.
        smooth_cutoff: ends of the lists for a smooth cap; None for a hard cap.
    """

    structure: Structure
    home: Float[np.ndarray, "atoms 3"]
    moves: Int[np.ndarray, "atoms 3"]
    main: NeighbourList
    reverse: Int[np.ndarray, main]
    atom_atom: NeighbourList
    atom_edge: NeighbourList
    quadruplet: NeighbourList
    smooth_cutoff: SmoothCutoff | None = None

    @property
    def counts(self) -> Counts:
        """Size of the graph, for cost models."""
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
    lists: Collection[str] = LISTS,
    edge_dropout: float = 0.0,
    rng: np.random.Generator | None = None,
) -> StructureGraph:
    """Build all edge lists from one neighbour search.

    Args:
        structure: a valid structure (`Structure.check`); a single atom, or atoms farther apart than the cutoff, give
            empty edge lists.
        settings: cutoff and caps.
        lists: names of the edge lists to build (`Backbone.edge_lists`); the others are left empty, which does not
            affect the lists that are built. `main` is always built.
        edge_dropout: fraction of the directed edges dropped at random before the other lists are selected from the
            rest (JMP, Shoghi et al. 2024, pre-training: 0.1). For training only; edges are redrawn in each call.
        rng: random generator; required with `edge_dropout`.
    """
    rngs = None if rng is None else [rng]
    return build_graphs([structure], settings, lists=lists, edge_dropout=edge_dropout, rngs=rngs)[0]


def build_graphs(
    structures: Sequence[Structure],
    settings: GraphSettings,
    *,
    lists: Collection[str] = LISTS,
    edge_dropout: float = 0.0,
    rngs: Sequence[np.random.Generator] | None = None,
) -> list[StructureGraph]:
    """Build the graphs of several structures; bitwise identical to `build_graph` on each.

    For small structures this takes less than half the time, because NumPy's call overhead dominates.

    Args:
        structures: any number.
        settings: cutoff and caps.
        lists, edge_dropout: see `build_graph`.
        rngs: one random generator per structure; required with `edge_dropout`.
    """
    if edge_dropout and rngs is None:
        raise ValueError(
            f"build_graph: edge_dropout={edge_dropout} was given without `rng`; expected a NumPy random generator, "
            "so that a run can be repeated; pass numpy.random.default_rng(seed)"
        )
    if unknown := set(lists).difference(LISTS):
        raise ValueError(f"build_graph: unknown edge lists {sorted(unknown)}; expected names of {', '.join(LISTS)}")
    graphs: list[StructureGraph] = []
    for chunk in _chunks(structures):
        chunk_rngs = None if rngs is None else rngs[chunk.start : chunk.stop]
        graphs += _built_together(structures[chunk.start : chunk.stop], settings, lists, edge_dropout, chunk_rngs)
    return graphs


def _chunks(structures: Sequence[Structure]) -> Iterator[range]:
    """Ranges of consecutive structures with at most AT_ONCE atoms in total, or of a single structure."""
    begin = atoms = 0
    for k, structure in enumerate(structures):
        atoms += len(structure)
        if k > begin and atoms > AT_ONCE:
            yield range(begin, k)
            begin, atoms = k, len(structure)
    if structures:
        yield range(begin, len(structures))


def _built_together(
    structures: Sequence[Structure],
    settings: GraphSettings,
    requested: Collection[str],
    edge_dropout: float,
    rngs: Sequence[np.random.Generator] | None,
) -> list[StructureGraph]:
    first_atom = np.cumsum([0] + [len(s) for s in structures[:-1]])
    # Before rounding to single precision. There are no edges beyond the reach, so gaps may be shortened to it.
    home, moves = (np.split(x, first_atom[1:]) for x in home_positions(structures, settings.cutoff + 1.0))
    moved = [replace(structure, positions=p) for structure, p in zip(structures, home, strict=True)]
    everything = neighbour_list(moved, settings.cutoff)
    return graphs_of_neighbours(structures, home, moves, everything, settings, requested, edge_dropout, rngs)


def graphs_of_neighbours(
    structures: Sequence[Structure],
    home: Sequence[np.ndarray],
    moves: Sequence[np.ndarray],
    everything: NeighbourList,
    settings: GraphSettings,
    requested: Collection[str] = LISTS,
    edge_dropout: float = 0.0,
    rngs: Sequence[np.random.Generator] | None = None,
) -> list[StructureGraph]:
    """Select all edge lists from the pairs within the cutoff.

    Args:
        structures, settings, edge_dropout, rngs: as for `build_graphs`.
        home, moves: for each structure, as in `StructureGraph`.
        everything: all pairs within the cutoff at the positions `home`, for all structures together.
        requested: names of edge lists, as `lists` in `build_graphs`.
    """
    first_atom = np.cumsum([0] + [len(s) for s in structures[:-1]])
    caps = settings.caps
    kept = nearest(everything, caps["atom_atom"])
    atom_atom = everything if kept.all() else everything.take(kept)
    if edge_dropout and rngs is not None:
        sizes = np.diff(np.searchsorted(atom_atom.target, first_atom), append=len(atom_atom)).tolist()
        draws = np.concatenate([rng.random(n) for rng, n in zip(rngs, sizes, strict=True)])
        atom_atom = atom_atom.take(draws >= edge_dropout)
    main, reverse = symmetric(atom_atom, nearest(atom_atom, caps["main"]), settings.symmetry)
    built = {"main": main, "atom_atom": atom_atom}
    if "atom_edge" in requested:
        built["atom_edge"] = atom_atom.take(nearest(atom_atom, caps["atom_edge"]))
    if "quadruplet" in requested:
        quadruplet = atom_atom.take(nearest(atom_atom, caps["quadruplet"]))
        tagged = np.isin(np.concatenate([s.tags for s in structures]), settings.quadruplet_tags)
        # Tags are applied after the cap, so untagged neighbours count towards the cap.
        built["quadruplet"] = quadruplet.take(tagged[quadruplet.source] | tagged[quadruplet.target])

    none = [atom_atom.take(np.zeros(0, dtype=np.int64))] * len(structures)
    single = {name: built[name].split(first_atom) if name in {"main", *requested} else none for name in LISTS}
    smooth: list[SmoothCutoff | None] = [None] * len(structures)
    if settings.smooth_cap:
        # All lists end where this one does, even if it is not requested.
        pairs = zip(structures, everything.split(first_atom), atom_atom.split(first_atom), strict=True)
        smooth = [_smooth_cutoff(structure, settings, every, capped) for structure, every, capped in pairs]
    reverse, first_edge = reverse.astype(np.int32), 0
    graphs = []
    for k, structure in enumerate(structures):
        edges = {name: lists[k] for name, lists in single.items()}
        n_main = len(edges["main"])
        own_reverse = reverse[first_edge : first_edge + n_main] - np.int32(first_edge)
        graphs.append(
            StructureGraph(
                structure=structure,
                home=home[k],
                moves=moves[k],
                reverse=own_reverse,
                smooth_cutoff=smooth[k],
                **edges,
            )
        )
        first_edge += n_main
    return graphs


def _smooth_cutoff(
    structure: Structure, settings: GraphSettings, everything: NeighbourList, atom_atom: NeighbourList
) -> SmoothCutoff:
    n, caps = len(structure), settings.caps
    source, offset = np.full((n, len(LISTS)), -1), np.zeros((n, len(LISTS), 3))

    def set_end(column: int, edges: NeighbourList, cap: int) -> None:
        first = beyond(edges, cap, n)
        capped = first >= 0
        source[capped, column] = edges.source[first[capped]]
        offset[capped, column] = edges.offset[first[capped]]

    for column, name in enumerate(LISTS):
        # Every list is a subset of the longest one and ends no later than it.
        set_end(column, everything, caps["atom_atom"])
        if name != "atom_atom":
            set_end(column, atom_atom, caps[name])
    return SmoothCutoff(
        source=torch.from_numpy(source),
        offset=torch.from_numpy(offset),
        cutoff=torch.full((n,), settings.cutoff, dtype=torch.float64),
        width=torch.full((n,), settings.smooth_cap, dtype=torch.float64),
    )


class DegreeStats(NamedTuple):
    """Degree statistics of an edge list, which determine the shapes of padded tables.

    Attributes:
        most: largest number of edges into one atom.
        reached: number of atoms with at least one incoming edge.
    """

    most: int
    reached: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Edges:
    """Directed edges of a batch, sorted by target.

    Attributes:
        source, target: (n_edges,) atom indices within the batch.
        offset: (n_edges, 3) lattice vectors added to the source's position.
        degree_stats: computed on the CPU with the batch, to avoid a GPU synchronisation; None if not computed.
    """

    source: Int[Tensor, edges]
    target: Int[Tensor, edges]
    offset: Float[Tensor, "edges 3"]
    degree_stats: DegreeStats | None = None

    def __len__(self) -> int:
        return int(self.source.shape[0])


@dataclass(frozen=True, kw_only=True, eq=False)
class Graph:
    """A batch of structures as one graph, without edges between structures.

    Attributes:
        numbers, tags: (n_atoms,).
        positions: (n_atoms, 3) Å; near the origin, unless in double precision (`collate`).
        cell: (n_structures, 3, 3) Å, rows are lattice vectors.
        structure: (n_atoms,) index of each atom's structure, ascending.
        n_atoms: (n_structures,).
        main, atom_atom, atom_edge, quadruplet: see `StructureGraph`.
        reverse: (n_main,) index of each main edge's reverse.
        smooth_cutoff: ends of the lists for a smooth cap; None if all structures have a hard cap.
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
    smooth_cutoff: SmoothCutoff | None = None

    @property
    def n_structures(self) -> int:
        return int(self.n_atoms.shape[0])

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Graph:
        """The graph on another device, with floating-point tensors converted to `dtype` if given."""

        def move(value: Tensor) -> Tensor:
            floating = dtype is not None and value.is_floating_point()
            return value.to(device, dtype if floating else None, non_blocking=True)

        def moved(item: Any) -> Any:
            if isinstance(item, Tensor):
                return move(item)
            if item is None or isinstance(item, DegreeStats):
                return item
            return replace(item, **{f.name: moved(getattr(item, f.name)) for f in fields(item)})

        return cast(Graph, moved(self))

    def with_positions(self, positions: Tensor, cell: Tensor | None = None) -> Graph:
        """The same edges with other positions and cell (for derivatives)."""
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

    def edge_envelope(self, name: str, distance: Float[Tensor, edges]) -> Float[Tensor, edges] | None:
        """Weight of each edge, between 1 and 0, for a smooth cap; None for a hard cap.

        The weight decreases from 1 to 0, with two continuous derivatives, over the last `width` Å before the end of the
        target's list. The weight of a main edge is a smooth union of the weights w_s, w_t at its two ends,
        1 − (1 − w_s)(1 − w_t). Differentiable in positions and cell, including those of the neighbour that ends the
        list.

        Args:
            name: name of the edge list, one of `LISTS`.
            distance: (n_edges,) edge lengths from `vectors`, Å.
        """
        if self.smooth_cutoff is None:
            return None
        smooth_cutoff, place, edges = self.smooth_cutoff, LISTS.index(name), getattr(self, name)
        source, offset = smooth_cutoff.source[:, place], smooth_cutoff.offset[:, place]
        shift = torch.bmm(offset[:, None, :], self.cell[self.structure])[:, 0]
        # Without such a neighbour, any vector with a finite derivative serves as a placeholder.
        vector = torch.where(
            (source >= 0)[:, None],
            self.positions[source.clamp(min=0)] + shift - self.positions,
            smooth_cutoff.cutoff[:, None],
        )
        end = torch.where(source >= 0, torch.linalg.vector_norm(vector, dim=-1), smooth_cutoff.cutoff)

        def weight_at(atom: Tensor) -> Tensor:
            width = smooth_cutoff.width[atom]
            x = ((end[atom] - distance) / width.clamp(min=1e-6)).clamp(0, 1)
            return torch.where(width > 0, x**3 * (10 + x * (6 * x - 15)), 1.0)

        weight = weight_at(edges.target)
        return weight if name != "main" else 1 - (1 - weight) * (1 - weight_at(edges.source))


def collate(graphs: Sequence[StructureGraph], dtype: torch.dtype = torch.float32) -> Graph:
    """Collate the graphs of several structures into a batch.

    Args:
        graphs: at least one.
        dtype: dtype of positions, cells and offsets. In double precision, positions are those of the structures (unless
            more than 100 cells away); otherwise atoms are moved near the origin before rounding.
    """
    moved = [dtype != torch.float64 or bool(np.abs(g.moves).max(initial=0) > MOST_CELLS) for g in graphs]
    sizes = np.array([len(g.structure) for g in graphs])
    first_atom = np.concatenate([[0], np.cumsum(sizes)[:-1]])

    def joined(name: str) -> Edges:
        lists: list[NeighbourList] = [getattr(g, name) for g in graphs]
        first = np.repeat(first_atom, [len(e) for e in lists])
        target = np.concatenate([e.target for e in lists]) + first
        offset = [
            e.offset if home else e.offset + g.moves[e.target] - g.moves[e.source]
            for g, e, home in zip(graphs, lists, moved, strict=True)
        ]
        into = np.bincount(target, minlength=1)
        return Edges(
            source=torch.from_numpy(np.concatenate([e.source for e in lists]) + first),
            target=torch.from_numpy(target),
            offset=torch.from_numpy(np.concatenate(offset)).to(dtype),
            degree_stats=DegreeStats(most=int(into.max()), reached=int(np.count_nonzero(into))),
        )

    n_main = np.array([len(g.main) for g in graphs])
    first_edge = np.repeat(np.concatenate([[0], np.cumsum(n_main)[:-1]]), n_main)
    structures = [g.structure for g in graphs]
    positions = [g.home if home else g.structure.positions for g, home in zip(graphs, moved, strict=True)]
    return Graph(
        numbers=torch.from_numpy(np.concatenate([s.numbers for s in structures])),
        tags=torch.from_numpy(np.concatenate([s.tags for s in structures])),
        positions=torch.from_numpy(np.concatenate(positions)).to(dtype),
        cell=torch.from_numpy(np.stack([s.cell for s in structures])).to(dtype),
        structure=torch.from_numpy(np.repeat(np.arange(len(graphs)), sizes)),
        n_atoms=torch.from_numpy(sizes),
        main=joined("main"),
        reverse=torch.from_numpy(np.concatenate([g.reverse for g in graphs]) + first_edge),
        atom_atom=joined("atom_atom"),
        atom_edge=joined("atom_edge"),
        quadruplet=joined("quadruplet"),
        smooth_cutoff=_joined_smooth_cutoff(graphs, moved, first_atom, dtype),
    )


def _joined_smooth_cutoff(
    graphs: Sequence[StructureGraph], moved: Sequence[bool], first_atom: np.ndarray, dtype: torch.dtype
) -> SmoothCutoff | None:
    if all(g.smooth_cutoff is None for g in graphs):
        return None
    parts = []
    for graph, home, first in zip(graphs, moved, first_atom.tolist(), strict=True):
        n, smooth_cutoff = len(graph.structure), graph.smooth_cutoff
        if smooth_cutoff is None:
            none = torch.full((n, len(LISTS)), -1)
            zeros = torch.zeros(n, dtype=dtype)
            parts.append((none, torch.zeros(n, len(LISTS), 3, dtype=dtype), zeros + 1, zeros))
        else:
            found, offset = smooth_cutoff.source >= 0, smooth_cutoff.offset
            source = torch.where(found, smooth_cutoff.source + first, -1)
            if not home:
                moves = torch.from_numpy(graph.moves)
                offset = offset + found[..., None] * (moves[:, None] - moves[smooth_cutoff.source.clamp(min=0)])
            parts.append((source, offset.to(dtype), smooth_cutoff.cutoff.to(dtype), smooth_cutoff.width.to(dtype)))
    source, offset, cutoff, width = (torch.cat(column) for column in zip(*parts, strict=True))
    return SmoothCutoff(source=source, offset=offset, cutoff=cutoff, width=width)
