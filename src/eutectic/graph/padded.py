"""Padded edge tables: triplets and quadruplets without listing them.

All edges into one atom see each other, so a batch's triplets are one small square (or oblong) table per atom:
edges are laid out in `slots` per target atom, and a triplet is a place in the table of two slots. Tables are dense,
sums over triplets become batched matrix products, and nothing is gathered per triplet. A quadruplet d→b→a←c is a
place in the table of an edge c→a and the edges d→b, for each middle edge b→a.

The lists that the tables stand for are given by `triplet_list` and `quadruplet_list`, for tests and counting.

Shapes: atoms N; edges E; slots D = most edges into one atom; centres = atoms that are the `a` of some middle edge;
middle Q = most middle edges into one atom. An empty slot repeats some edge and is false in every table.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor

from eutectic.graph.graph import DegreeStats, Edges, Graph

IMAGES = 2**12
"""Lattice offsets are told apart up to ±half of this, in each direction."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PaddedEdges:
    """The edges into each atom, in slots.

    Attributes:
        edge: (n_atoms, n_slots) which edge is in a slot; any edge where the slot is empty.
        filled: (n_atoms, n_slots) whether a slot is used.
        slot: (n_edges,) the slot of each edge, counted through all atoms.
    """

    edge: Int[Tensor, "atoms slots"]
    filled: Bool[Tensor, "atoms slots"]
    slot: Int[Tensor, edges]

    def spread(self, x: Tensor) -> Tensor:
        """(n_edges, …) → (n_atoms, n_slots, …). An empty slot gets some other edge's values, not zeros."""
        return x.index_select(0, self.edge.reshape(-1)).reshape(*self.edge.shape, *x.shape[1:])

    def collect(self, x: Tensor) -> Tensor:
        """(n_atoms · n_slots, …) → (n_edges, …)."""
        return x.index_select(0, self.slot)


def degree_stats(edges: Edges) -> DegreeStats:
    """As the batch was made with; otherwise counted now, for which a GPU has to be waited for."""
    if edges.degree_stats is not None:
        return edges.degree_stats
    _, counts = torch.unique_consecutive(edges.target, return_counts=True)
    return DegreeStats(most=int(counts.max()) if len(counts) else 0, reached=len(counts))


def padded_edges(edges: Edges, n_atoms: int) -> PaddedEdges:
    """Slots for the edges into each atom."""
    target, n_edges, width = edges.target, len(edges), degree_stats(edges).most
    bounds = torch.searchsorted(target, torch.arange(n_atoms + 1, device=target.device))
    first, counts = bounds[:-1], bounds.diff()
    place = torch.arange(width, device=target.device)
    edge = (first[:, None] + place).clamp(max=max(n_edges - 1, 0))
    slot = target * width + torch.arange(n_edges, device=target.device) - first[target]
    return PaddedEdges(edge=edge, filled=place < counts[:, None], slot=slot)


def reached(edges: Edges) -> Int[Tensor, reached]:
    """The atoms that have an edge into them, in order."""
    target = edges.target
    found = target.new_zeros(degree_stats(edges).reached)
    changes = (target[1:] != target[:-1]).long()
    return found.index_copy(0, F.pad(changes.cumsum(0), (1, 0)), target) if len(edges) else found


def _shift(edges: Edges) -> Int[Tensor, edges]:
    """A number for each edge's lattice offset; linear, so that sums of offsets are sums of numbers."""
    o = edges.offset.round().long()
    return (o[:, 0] * IMAGES + o[:, 1]) * IMAGES + o[:, 2]


def _image(edges: Edges) -> Int[Tensor, edges]:
    """A number for the periodic image of the source that an edge comes from, seen from its target's cell."""
    return edges.source * IMAGES**3 + _shift(edges)


@dataclass(frozen=True, kw_only=True, eq=False)
class Quadruplets:
    """d→b→a←c for each middle edge b→a.

    Attributes:
        centre: (n_centres,) the atoms a that have a middle edge.
        middle: (n_centres, n_middle) middle edge in each place; any where empty.
        source: (n_centres, n_middle) its atom b.
        angle_in: (n_centres, n_middle, n_slots) whether d→b goes on through b→a: d is not a itself.
        table: (n_centres, n_middle, n_slots of c→a, n_slots of d→b) whether the four make a quadruplet.
    """

    centre: Int[Tensor, centres]
    middle: Int[Tensor, "centres middle"]
    source: Int[Tensor, "centres middle"]
    angle_in: Bool[Tensor, "centres middle slots"]
    table: Bool[Tensor, "centres middle slots slots"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Layout:
    """The padded tables of a batch: indices and masks, nothing that has a derivative.

    Attributes:
        main, atom_edge, atom_atom: slots of the three edge lists.
        edge_edge: (n_atoms, slots, slots) triplets c→a, b→a of two main edges, b→a ≠ c→a.
        atom_edge_table: (n_atoms, slots, atom-edge slots) triplets of a main edge and an atom-edge edge that come
            from different places; read either way round.
        quadruplets: None if left out.
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
        quadruplets: leave them out where no layer wants them.
    """
    n_atoms = graph.numbers.shape[0]
    main = padded_edges(graph.main, n_atoms)
    atom_edge = padded_edges(graph.atom_edge, n_atoms)
    image = main.spread(_image(graph.main))
    other = torch.eye(main.edge.shape[1], dtype=torch.bool, device=image.device).logical_not()
    edge_edge = main.filled[:, :, None] & main.filled[:, None, :] & other
    atom_edge_image = atom_edge.spread(_image(graph.atom_edge))
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
    # Where d is, seen from a's cell: its image from b's cell, moved as b is.
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
