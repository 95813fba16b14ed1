"""Structures as graphs: one structure in NumPy, a batch of them in torch.

Conventions: an edge points from `source` s to `target` t; its offset belongs to the source, so that the vector
is r_s + offset·cell − r_t from target to source, and `direction` is the unit vector the other way, source to
target. Every edge list is sorted by target.
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
from eutectic.graph.neighbours import NeighbourList, beyond, nearest, neighbour_list, symmetric
from eutectic.graph.settings import GraphSettings

AT_ONCE = 512
"""Atoms whose graphs are built in one go: enough to hide what a call of NumPy costs, few enough for a cache."""

LISTS = ("main", "atom_atom", "atom_edge", "quadruplet")
"""The names of the edge lists, in the order of the columns of `SmoothCutoff`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SmoothCutoff:
    """Where the edges into an atom end when they end smoothly: at the first neighbour beyond the cap, or the cutoff.

    Attributes:
        source: (n_atoms, 4) that neighbour, for each of `LISTS`; −1 where the cutoff comes first.
        offset: (n_atoms, 4, 3) lattice vectors added to its position.
        cutoff: (n_atoms,) Å.
        width: (n_atoms,) Å over which edges fade; 0 where they end at once.
    """

    source: Int[Tensor, "atoms 4"]
    offset: Float[Tensor, "atoms 4 3"]
    cutoff: Float[Tensor, atoms]
    width: Float[Tensor, atoms]


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
        atom_atom, atom_edge, quadruplet: directed edges, each list the nearest few of one search; empty where the
            graph was built without.
        smooth_cutoff: how the lists end, if smoothly.
    """

    structure: Structure
    main: NeighbourList
    reverse: Int[np.ndarray, main]
    atom_atom: NeighbourList
    atom_edge: NeighbourList
    quadruplet: NeighbourList
    smooth_cutoff: SmoothCutoff | None = None

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
    lists: Collection[str] = LISTS,
    edge_dropout: float = 0.0,
    rng: np.random.Generator | None = None,
) -> StructureGraph:
    """All edge lists from one neighbour search.

    Args:
        structure: any; one atom, or atoms too far apart for any edge, give empty edge lists.
        settings: cutoff and caps.
        lists: names of the edge lists that are wanted (`Backbone.edge_lists`); the others stay empty, and the wanted
            ones are the same with and without them. `main` is always there.
        edge_dropout: share of the directed edges left out at random before the other graphs are taken from the
            rest (JMP, Shoghi et al. 2024, pre-training: 0.1). For training only, and anew each time.
        rng: what decides; needed with `edge_dropout`.
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
    """The graph of each of some structures, to the bit what `build_graph` makes of it.

    For small structures many at once take less than half the time: most of it is NumPy's way to its work.

    Args:
        structures: any number.
        settings: cutoff and caps.
        lists, edge_dropout: see `build_graph`.
        rngs: one for each structure; needed with `edge_dropout`.
    """
    if edge_dropout and rngs is None:
        raise ValueError(
            f"build_graph: edge_dropout={edge_dropout} was given without `rng`; expected a NumPy random generator, "
            "so that a run can be repeated; pass numpy.random.default_rng(seed)"
        )
    if unknown := set(lists).difference(LISTS):
        raise ValueError(f"build_graph: unknown edge lists {sorted(unknown)}; expected names of {', '.join(LISTS)}")
    graphs: list[StructureGraph] = []
    for these in _portions(structures):
        chances = None if rngs is None else rngs[these.start : these.stop]
        graphs += _built_together(structures[these.start : these.stop], settings, lists, edge_dropout, chances)
    return graphs


def _portions(structures: Sequence[Structure]) -> Iterator[range]:
    """Neighbouring structures of AT_ONCE atoms together, or single ones."""
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
    wanted: Collection[str],
    edge_dropout: float,
    rngs: Sequence[np.random.Generator] | None,
) -> list[StructureGraph]:
    first_atom = np.cumsum([0] + [len(s) for s in structures[:-1]])
    everything = neighbour_list(structures, settings.cutoff)
    caps = settings.caps
    kept = nearest(everything, caps["atom_atom"])
    atom_atom = everything if kept.all() else everything.take(kept)
    if edge_dropout and rngs is not None:
        sizes = np.diff(np.searchsorted(atom_atom.target, first_atom), append=len(atom_atom)).tolist()
        chance = np.concatenate([rng.random(n) for rng, n in zip(rngs, sizes, strict=True)])
        atom_atom = atom_atom.take(chance >= edge_dropout)
    main, reverse = symmetric(atom_atom, nearest(atom_atom, caps["main"]), settings.symmetry)
    built = {"main": main, "atom_atom": atom_atom}
    if "atom_edge" in wanted:
        built["atom_edge"] = atom_atom.take(nearest(atom_atom, caps["atom_edge"]))
    if "quadruplet" in wanted:
        quadruplet = atom_atom.take(nearest(atom_atom, caps["quadruplet"]))
        tagged = np.isin(np.concatenate([s.tags for s in structures]), settings.quadruplet_tags)
        # The tag rule comes after the cap: an untagged neighbour still uses up its place.
        built["quadruplet"] = quadruplet.take(tagged[quadruplet.source] | tagged[quadruplet.target])

    none = [atom_atom.take(np.zeros(0, dtype=np.int64))] * len(structures)
    single = {name: built[name].split(first_atom) if name in {"main", *wanted} else none for name in LISTS}
    smooth: list[SmoothCutoff | None] = [None] * len(structures)
    if settings.smooth_cap:
        # Every list ends with this one, whether or not it is wanted itself.
        pairs = zip(structures, everything.split(first_atom), atom_atom.split(first_atom), strict=True)
        smooth = [_smooth_cutoff(structure, settings, whole, capped) for structure, whole, capped in pairs]
    reverse, first_edge = reverse.astype(np.int32), 0
    graphs = []
    for k, structure in enumerate(structures):
        edges = {name: lists[k] for name, lists in single.items()}
        n_main = len(edges["main"])
        its_reverse = reverse[first_edge : first_edge + n_main] - np.int32(first_edge)
        graphs.append(StructureGraph(structure=structure, reverse=its_reverse, smooth_cutoff=smooth[k], **edges))
        first_edge += n_main
    return graphs


def _smooth_cutoff(
    structure: Structure, settings: GraphSettings, everything: NeighbourList, atom_atom: NeighbourList
) -> SmoothCutoff:
    n, caps = len(structure), settings.caps
    source, offset = np.full((n, len(LISTS)), -1), np.zeros((n, len(LISTS), 3))

    def end(place: int, edges: NeighbourList, cap: int) -> None:
        first = beyond(edges, cap, n)
        there = first >= 0
        source[there, place] = edges.source[first[there]]
        offset[there, place] = edges.offset[first[there]]

    for place, name in enumerate(LISTS):
        # All lists end where the longest one, of which they are parts, does; mostly they do before.
        end(place, everything, caps["atom_atom"])
        if name != "atom_atom":
            end(place, atom_atom, caps[name])
    return SmoothCutoff(
        source=torch.from_numpy(source),
        offset=torch.from_numpy(offset),
        cutoff=torch.full((n,), settings.cutoff, dtype=torch.float64),
        width=torch.full((n,), settings.smooth_cap, dtype=torch.float64),
    )


class DegreeStats(NamedTuple):
    """How the edges of a list fall on its atoms: what decides the shapes of tables.

    Attributes:
        most: edges into one atom.
        reached: atoms with an edge into them.
    """

    most: int
    reached: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Edges:
    """Directed edges of a batch, sorted by target.

    Attributes:
        source, target: (n_edges,) atom indices within the batch.
        offset: (n_edges, 3) lattice vectors added to the source's position.
        degree_stats: counted where the batch was made, so that a GPU need not be waited for; None where it was not.
    """

    source: Int[Tensor, edges]
    target: Int[Tensor, edges]
    offset: Float[Tensor, "edges 3"]
    degree_stats: DegreeStats | None = None

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
        smooth_cutoff: how the lists end; None if none of the structures has them end smoothly.
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
        """The same graph elsewhere, and its geometry in another precision if one is given."""

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

    def edge_envelope(self, name: str, distance: Float[Tensor, edges]) -> Float[Tensor, edges] | None:
        """How much each edge of a list counts, 1 to 0 where lists end smoothly; None where none does.

        An edge falls from 1 to 0, with two continuous derivatives, over the last `width` Å before its target's list
        ends. A main edge counts as much as the more generous of its two ends wants it to, smoothly put together.
        Differentiable in positions and cell, also in those of the neighbour that ends the list.

        Args:
            name: of `LISTS`.
            distance: (n_edges,) of the list, from `vectors`.
        """
        if self.smooth_cutoff is None:
            return None
        smooth_cutoff, place, edges = self.smooth_cutoff, LISTS.index(name), getattr(self, name)
        source, offset = smooth_cutoff.source[:, place], smooth_cutoff.offset[:, place]
        shift = torch.bmm(offset[:, None, :], self.cell[self.structure])[:, 0]
        # Where there is no such neighbour, any vector that has a derivative will do.
        vector = torch.where(
            (source >= 0)[:, None],
            self.positions[source.clamp(min=0)] + shift - self.positions,
            smooth_cutoff.cutoff[:, None],
        )
        end = torch.where(source >= 0, torch.linalg.vector_norm(vector, dim=-1), smooth_cutoff.cutoff)

        def of(atom: Tensor) -> Tensor:
            width = smooth_cutoff.width[atom]
            x = ((end[atom] - distance) / width.clamp(min=1e-6)).clamp(0, 1)
            return torch.where(width > 0, x**3 * (10 + x * (6 * x - 15)), 1.0)

        weight = of(edges.target)
        return weight if name != "main" else 1 - (1 - weight) * (1 - of(edges.source))


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
        target = np.concatenate([e.target for e in lists]) + first
        into = np.bincount(target, minlength=1)
        return Edges(
            source=torch.from_numpy(np.concatenate([e.source for e in lists]) + first),
            target=torch.from_numpy(target),
            offset=torch.from_numpy(np.concatenate([e.offset for e in lists])).to(dtype),
            degree_stats=DegreeStats(most=int(into.max()), reached=int(np.count_nonzero(into))),
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
        smooth_cutoff=_joined_smooth_cutoff(graphs, first_atom, dtype),
    )


def _joined_smooth_cutoff(
    graphs: Sequence[StructureGraph], first_atom: np.ndarray, dtype: torch.dtype
) -> SmoothCutoff | None:
    if all(g.smooth_cutoff is None for g in graphs):
        return None
    parts = []
    for graph, first in zip(graphs, first_atom.tolist(), strict=True):
        n, smooth_cutoff = len(graph.structure), graph.smooth_cutoff
        if smooth_cutoff is None:
            none = torch.full((n, len(LISTS)), -1)
            still = torch.zeros(n, dtype=dtype)
            parts.append((none, torch.zeros(n, len(LISTS), 3, dtype=dtype), still + 1, still))
        else:
            source = torch.where(smooth_cutoff.source >= 0, smooth_cutoff.source + first, -1)
            parts.append(
                (source, smooth_cutoff.offset.to(dtype), smooth_cutoff.cutoff.to(dtype), smooth_cutoff.width.to(dtype))
            )
    source, offset, cutoff, width = (torch.cat(column) for column in zip(*parts, strict=True))
    return SmoothCutoff(source=source, offset=offset, cutoff=cutoff, width=width)
