"""Padded edge tables: triplets and quadruplets without listing them.

Every pair of edges into the same atom is a triplet, so the triplets of a batch form one small rectangular table per
atom: the edges into each atom are padded to the same number of `slots`, and a triplet is a pair of slots. Tables are
dense, so sums over triplets become batched matrix products without gathering per triplet. For each middle edge b→a, a
quadruplet d→b→a←c is an entry in the table of the edges c→a and d→b.

`triplet_list` and `quadruplet_list` return the explicit lists, for tests and counting.

Shapes: atoms N; edges E; slots D = largest number of edges into one atom; centres = atoms that are the `a` of some
middle edge; middle Q = largest number of middle edges into one atom. An empty slot repeats some edge and is false in
every table.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor

from eutectic.graph.graph import DegreeStats, Edges, Graph

IMAGES = 2**12
"""Lattice offsets up to ± half of this are distinguished in each direction."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PaddedEdges:
    """The edges into each atom, padded to the same number of slots.

    Attributes:
        edge: (n_atoms, n_slots) index of the edge in each slot; an arbitrary edge if the slot is empty.
        filled: (n_atoms, n_slots) whether a slot is used.
        slot: (n_edges,) slot of each edge, as an index into all n_atoms · n_slots.
    """

    edge: Int[Tensor, "atoms slots"]
    filled: Bool[Tensor, "atoms slots"]
    slot: Int[Tensor, edges]

    def to_padded(self, x: Tensor) -> Tensor:
        """(n_edges, …) → (n_atoms, n_slots, …). Empty slots get the values of another edge, not zeros."""
        return x.index_select(0, self.edge.reshape(-1)).reshape(*self.edge.shape, *x.shape[1:])

    def from_padded(self, x: Tensor) -> Tensor:
        """(n_atoms · n_slots, …) → (n_edges, …)."""
        return x.index_select(0, self.slot)


def degree_stats(edges: Edges) -> DegreeStats:
    """Degree statistics of the edges: stored ones, or computed now, which synchronises with a GPU."""
    if edges.degree_stats is not None:
        return edges.degree_stats
    _, counts = torch.unique_consecutive(edges.target, return_counts=True)
    return DegreeStats(most=int(counts.max()) if len(counts) else 0, reached=len(counts))


def padded_edges(edges: Edges, n_atoms: int) -> PaddedEdges:
    """Pad the edges into each atom."""
    target, n_edges, width = edges.target, edges.source.shape[0], degree_stats(edges).most
    bounds = torch.searchsorted(target, torch.arange(n_atoms + 1, device=target.device))
    first, counts = bounds[:-1], bounds.diff()
    place = torch.arange(width, device=target.device)
    edge = (first[:, None] + place).clamp(max=max(n_edges - 1, 0))
    slot = target * width + torch.arange(n_edges, device=target.device) - first[target]
    return PaddedEdges(edge=edge, filled=place < counts[:, None], slot=slot)


def reached(edges: Edges) -> Int[Tensor, reached]:
    """The atoms with at least one incoming edge, in order."""
    target = edges.target
    atoms = target.new_zeros(degree_stats(edges).reached)
    changes = (target[1:] != target[:-1]).long()
    return atoms.index_copy(0, F.pad(changes.cumsum(0), (1, 0)), target) if len(edges) else atoms


def _shift(edges: Edges) -> Int[Tensor, edges]:
    """Encode each edge's lattice offset as an integer; linear, so that codes add like offsets."""
    o = edges.offset.round().long()
    return (o[:, 0] * IMAGES + o[:, 1]) * IMAGES + o[:, 2]


def _image(edges: Edges) -> Int[Tensor, edges]:
    """Encode the periodic image of each edge's source, relative to the target's cell, as an integer."""
    return edges.source * IMAGES**3 + _shift(edges)


@dataclass(frozen=True, kw_only=True, eq=False)
class Quadruplets:
    """Quadruplets d→b→a←c of each middle edge b→a.

    Attributes:
        centre: (n_centres,) the atoms a with at least one middle edge.
        middle: (n_centres, n_middle) middle edge in each slot; arbitrary if the slot is empty.
        source: (n_centres, n_middle) its atom b.
        angle_in: (n_centres, n_middle, n_slots) whether d→b and b→a form an angle (d is not a itself).
        table: (n_centres, n_middle, n_slots of c→a, n_slots of d→b) whether the four atoms form a quadruplet.
    """

    centre: Int[Tensor, centres]
    middle: Int[Tensor, "centres middle"]
    source: Int[Tensor, "centres middle"]
    angle_in: Bool[Tensor, "centres middle slots"]
    table: Bool[Tensor, "centres middle slots slots"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Layout:
    """The padded tables of a batch: indices and masks, without gradients.

    Attributes:
        main, atom_edge, atom_atom: padded edges of the three edge lists.
        edge_edge: (n_atoms, slots, slots) triplets c→a, b→a of two main edges, b→a ≠ c→a.
        atom_edge_table: (n_atoms, slots, atom-edge slots) triplets of a main edge and an atom-edge edge with different
            source images; used in both directions.
        quadruplets: None if omitted.
    """

    main: PaddedEdges
    atom_edge: PaddedEdges
    atom_atom: PaddedEdges
    edge_edge: Bool[Tensor, "atoms slots slots"]
    atom_edge_table: Bool[Tensor, "atoms slots atom_edge_slots"]
    quadruplets: Quadruplets | None


def layout(graph: Graph, quadruplets: bool = True) -> Layout:
    """The tables of a batch.

    Args:
        graph: edge lists sorted by target.
        quadruplets: whether to include quadruplets.
    """
    n_atoms = graph.numbers.shape[0]
    main = padded_edges(graph.main, n_atoms)
    atom_edge = padded_edges(graph.atom_edge, n_atoms)
    image = main.to_padded(_image(graph.main))
    other = torch.eye(main.edge.shape[1], dtype=torch.bool, device=image.device).logical_not()
    edge_edge = main.filled[:, :, None] & main.filled[:, None, :] & other
    atom_edge_image = atom_edge.to_padded(_image(graph.atom_edge))
    table = main.filled[:, :, None] & atom_edge.filled[:, None, :]
    return Layout(
        main=main,
        atom_edge=atom_edge,
        atom_atom=padded_edges(graph.atom_atom, n_atoms),
        edge_edge=edge_edge,
        atom_edge_table=table & (image[:, :, None] != atom_edge_image[:, None, :]),
        quadruplets=_quadruplets(graph, main, image) if quadruplets else None,
    )


def _quadruplets(graph: Graph, main: PaddedEdges, image: Int[Tensor, "atoms slots"]) -> Quadruplets:
    middle = padded_edges(graph.quadruplet, main.edge.shape[0])
    centre = reached(graph.quadruplet)
    edge, filled = middle.edge[centre], middle.filled[centre]
    source = graph.quadruplet.source[edge]
    shift = _shift(graph.quadruplet)[edge]
    # The image of d relative to a's cell: its image relative to b's cell plus the offset of b.
    d = image[source] + shift[:, :, None]
    d_is_a = d == (centre * IMAGES**3)[:, None, None]
    angle_in = main.filled[source] & ~d_is_a & filled[:, :, None]
    c = image[centre]
    c_is_b = c[:, None, :] == (source * IMAGES**3 + shift)[:, :, None]
    angle_out = main.filled[centre][:, None, :] & ~c_is_b & filled[:, :, None]
    c_is_d = c[:, None, :, None] == d[:, :, None, :]
    return Quadruplets(
        centre=centre,
        middle=edge,
        source=source,
        angle_in=angle_in,
        table=angle_out[:, :, :, None] & angle_in[:, :, None, :] & ~c_is_d,
    )


def triplet_list(
    table: Bool[Tensor, "atoms out_slots in_slots"], outer: PaddedEdges, inner: PaddedEdges
) -> tuple[Int[Tensor, triplets], Int[Tensor, triplets]]:
    """(out, in): the two edges of every triplet in a table, sorted by the out edge."""
    atom, row, column = table.nonzero(as_tuple=True)
    return outer.edge[atom, row], inner.edge[atom, column]


def quadruplet_list(
    layout: Layout,
) -> tuple[Int[Tensor, quadruplets], Int[Tensor, quadruplets], Int[Tensor, quadruplets]]:
    """(out, middle, in): the three edges c→a, b→a, d→b of every quadruplet, sorted by the out edge."""
    q = layout.quadruplets
    assert q is not None
    row, out, place, inner = q.table.transpose(1, 2).nonzero(as_tuple=True)
    return (
        layout.main.edge[q.centre[row], out],
        q.middle[row, place],
        layout.main.edge[q.source[row, place], inner],
    )
