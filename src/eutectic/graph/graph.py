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
from eutectic.graph.neighbours import NeighbourList, nearest, neighbour_list, symmetric
from eutectic.graph.settings import GraphSettings
from eutectic.graph.smooth_cap import SmoothCutoff, list_ends

AT_ONCE = 512
"""Atoms whose graphs are built together: enough to amortise NumPy's call overhead, few enough for the cache."""

MOST_CELLS = 100
"""Distance from the cell, in lattice vectors, beyond which atoms are moved back even in double precision."""

LISTS = ("main", "atom_atom", "atom_edge", "quadruplet")
"""The names of the edge lists, in the order of the columns of `SmoothCutoff`."""


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
    sizes = np.array([len(s) for s in structures])
    first_atom = np.cumsum(sizes) - sizes
    caps = _Caps(settings, int(sizes.sum()))
    atom_atom = everything
    # With a smooth cap the other lists end before this one by themselves, and finding its end takes time.
    if not settings.smooth_cap or edge_dropout or "atom_atom" in requested:
        kept = caps.within(everything, "atom_atom")
        atom_atom = everything if kept.all() else everything.take(kept)
    if edge_dropout and rngs is not None:
        of_each = np.diff(np.searchsorted(atom_atom.target, first_atom), append=len(atom_atom)).tolist()
        draws = np.concatenate([rng.random(n) for rng, n in zip(rngs, of_each, strict=True)])
        atom_atom = atom_atom.take(draws >= edge_dropout)
        caps.find_ends(atom_atom, "atom_atom")
    main, reverse = symmetric(atom_atom, caps.within(atom_atom, "main"), settings.symmetry)
    built = {"main": main, "atom_atom": atom_atom}
    if "atom_edge" in requested:
        built["atom_edge"] = atom_atom.take(caps.within(atom_atom, "atom_edge"))
    if "quadruplet" in requested:
        tagged = np.isin(np.concatenate([s.tags for s in structures]), settings.quadruplet_tags)
        allowed = tagged[atom_atom.source] | tagged[atom_atom.target]
        if settings.smooth_cap:
            # The end of a list must follow from its own edges.
            middle = atom_atom.take(allowed)
            built["quadruplet"] = middle.take(caps.within(middle, "quadruplet"))
        else:
            # As published, untagged neighbours count towards the cap.
            built["quadruplet"] = atom_atom.take(caps.within(atom_atom, "quadruplet") & allowed)

    none = [atom_atom.take(np.zeros(0, dtype=np.int64))] * len(structures)
    single = {name: built[name].split(first_atom) if name in {"main", *requested} else none for name in LISTS}
    smooth = caps.smooth_cutoffs(sizes)
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


class _Caps:
    """Applies the caps to the edges of one search; keeps the ends of the lists for a smooth cap."""

    def __init__(self, settings: GraphSettings, n_atoms: int) -> None:
        self.settings, self.n_atoms = settings, n_atoms
        # Every list is a subset of the longest one and ends no later than it.
        self.caps = {name: min(cap, settings.caps["atom_atom"]) for name, cap in settings.caps.items()}
        self.ends: dict[str, np.ndarray] = {}

    def within(self, edges: NeighbourList, name: str) -> np.ndarray:
        """(n_edges,) mask of the edges that belong to a list."""
        if not self.settings.smooth_cap:
            return nearest(edges, self.caps[name])
        self.find_ends(edges, name)
        return edges.distance < self.ends[name][edges.target]

    def find_ends(self, edges: NeighbourList, name: str) -> None:
        """Find the ends of a list, for a smooth cap, from the edges that it has or is chosen from."""
        if width := self.settings.smooth_cap:
            self.ends[name] = list_ends(edges, self.caps[name], self.settings.cutoff, width, self.n_atoms)

    def smooth_cutoffs(self, sizes: np.ndarray) -> list[SmoothCutoff | None]:
        """The ends for each structure; None for a hard cap. Lists that were not built end anywhere."""
        if not self.settings.smooth_cap:
            return [None] * len(sizes)
        end = np.stack([self.ends.get(name, self.ends["main"]) for name in LISTS], axis=1)
        cap = torch.tensor([float(self.caps[name]) for name in LISTS], dtype=torch.float64)
        of_each = torch.from_numpy(end).split(sizes.tolist())
        ones = [torch.ones(len(part), dtype=torch.float64) for part in of_each]
        return [
            SmoothCutoff(
                end=part,
                cap=one[:, None] * cap,
                cutoff=one * self.settings.cutoff,
                width=one * self.settings.smooth_cap,
            )
            for part, one in zip(of_each, ones, strict=True)
        ]


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
        """Weight of each edge, between 1 and 0, for a smooth cap (`eutectic.graph.smooth_cap`); None for a hard cap.

        The weight of a main edge is a smooth union of the weights w_s, w_t in the lists of its two atoms,
        1 − (1 − w_s)(1 − w_t).

        Args:
            name: name of the edge list, one of `LISTS`.
            distance: (n_edges,) edge lengths from `vectors`, Å; the weights are differentiable in these.
        """
        if self.smooth_cutoff is None:
            return None
        edges: Edges = getattr(self, name)
        atoms = (edges.target, edges.source) if name == "main" else (edges.target,)
        first, *others = self.smooth_cutoff.weights(LISTS.index(name), distance, atoms)
        for other in others:
            first = 1 - (1 - first) * (1 - other)
        return first


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
        smooth_cutoff=_joined_smooth_cutoff(graphs, dtype),
    )


def _joined_smooth_cutoff(graphs: Sequence[StructureGraph], dtype: torch.dtype) -> SmoothCutoff | None:
    if all(g.smooth_cutoff is None for g in graphs):
        return None
    parts = []
    for graph in graphs:
        n, smooth = len(graph.structure), graph.smooth_cutoff
        if smooth is None:
            # A width of zero stands for a hard cap; the other values are not used.
            lists = torch.ones(n, len(LISTS))
            smooth = SmoothCutoff(end=lists, cap=lists, cutoff=torch.ones(n), width=torch.zeros(n))
        parts.append((smooth.end, smooth.cap, smooth.cutoff, smooth.width))
    end, cap, cutoff, width = (torch.cat([x.to(dtype) for x in column]) for column in zip(*parts, strict=True))
    return SmoothCutoff(end=end, cap=cap, cutoff=cutoff, width=width)
