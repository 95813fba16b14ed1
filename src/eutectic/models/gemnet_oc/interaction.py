"""Interaction blocks: messages between atoms and edges (GemNet-OC, Gasteiger et al. 2022, sections 3 and 4, figure 2).

Shapes: atoms N; edges E; slots D (see `graph.padded`); h (N, atom_width); m (E, edge_width).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eutectic.graph import Graph
from eutectic.graph.operations import sum_over_neighbours
from eutectic.graph.padded import Layout
from eutectic.models.gemnet_oc.basis import Bases, QuadrupletBasis, TripletBasis
from eutectic.models.gemnet_oc.layers import (
    Dense,
    Filter,
    Linear,
    ScaleFactor,
    joined,
    recomputed,
    residuals,
    scaled_silu,
)
from eutectic.models.gemnet_oc.settings import GemNetOCSettings


class GraphTables(NamedTuple):
    """The graph of a batch and its padded edge tables, passed to every layer."""

    graph: Graph
    layout: Layout


class EdgeUpdate(nn.Module):
    """Update of an edge from its own sum and that of its reverse: (f(y) + g(y)[reverse]) / √2."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.own = Dense(width_in, width_out)
        self.other = Dense(width_in, width_out)

    def forward(self, y: Tensor, tables: GraphTables) -> Tensor:
        return joined(self.own(y), self.other(y).index_select(0, tables.graph.reverse))


class Messages(nn.Module):
    """Base of triplet and quadruplet layers: messages from radial filters and a down-projection."""

    def __init__(self, width: int, width_passed: int, settings: GemNetOCSettings) -> None:
        super().__init__()
        self.dense = Linear(width, width)
        self.radial = Filter(settings.radial_width, width)
        self.scale_radial = ScaleFactor()
        self.down = Dense(width, width_passed)

    def messages(self, x: Tensor, radial: Tensor, source: Tensor | None = None) -> Tensor:
        """(rows, width) → (edges, width_passed); `source` is the row of each edge if rows are atoms."""
        before = self.dense(x)

        def features() -> Tensor:
            x = scaled_silu(before)
            return x if source is None else x.index_select(0, source)

        x = features()
        radial = self.scale_radial.radial(self.radial, x, radial)
        passed = self.radial(x, radial, recompute_x=features)
        with recomputed((passed, lambda: features() * F.linear(radial, self.radial.weight))):
            return self.down(passed)


class TripletMessages(Messages):
    """Base of triplet layers: messages and their sum over the triplets of an edge or an atom."""

    def __init__(self, width: int, settings: GemNetOCSettings) -> None:
        s = settings
        super().__init__(width, s.triplet_in, s)
        self.bilinear = Linear(s.circular_width * s.triplet_in, s.triplet_out)
        self.scale_sum = ScaleFactor()

    def sums(self, x: Tensor, mix: Tensor, tables: GraphTables) -> Tensor:
        """(edges, triplet_out) from padded messages x."""
        slots = tables.layout.main
        # Project before gathering, padding included: the gathered rows are then a sixteenth as wide.
        z = self.bilinear((mix @ x).view(slots.edge.numel(), self.bilinear.weight.shape[1]))
        return slots.from_padded(z)


class EdgeToEdge(TripletMessages):
    """Triplet interaction: messages from edges b→a to c→a."""

    def __init__(self, settings: GemNetOCSettings) -> None:
        super().__init__(settings.edge_width, settings)
        self.up = EdgeUpdate(settings.triplet_out, settings.edge_width)

    def forward(self, m: Tensor, basis: TripletBasis, tables: GraphTables) -> Tensor:
        x = self.messages(m, basis.radial)
        z = self.sums(tables.layout.main.to_padded(x), basis.mix, tables)
        return self.up(self.scale_sum(z, reference=x), tables)


class AtomToEdge(TripletMessages):
    """Atom-to-edge interaction: messages from atoms b near a to c→a."""

    def __init__(self, settings: GemNetOCSettings) -> None:
        super().__init__(settings.atom_width, settings)
        self.up = EdgeUpdate(settings.triplet_out, settings.edge_width)

    def forward(self, h: Tensor, basis: TripletBasis, tables: GraphTables) -> Tensor:
        x = self.messages(h, basis.radial, tables.graph.atom_edge.source)
        z = self.sums(tables.layout.atom_edge.to_padded(x), basis.mix, tables)
        return self.up(self.scale_sum(z, reference=x), tables)


class EdgeToAtom(TripletMessages):
    """Edge-to-atom interaction: messages from b→a to a, with the angles to each atom c near a."""

    def __init__(self, settings: GemNetOCSettings) -> None:
        super().__init__(settings.edge_width, settings)
        self.up = Dense(settings.triplet_out, settings.atom_width)

    def forward(self, m: Tensor, basis: TripletBasis, tables: GraphTables) -> Tensor:
        x = self.messages(m, basis.radial)
        z = (basis.mix @ tables.layout.main.to_padded(x)).flatten(1)
        return self.up(self.scale_sum(self.bilinear(z), reference=x))


class QuadrupletInteraction(Messages):
    """Quadruplet interaction: messages from d→b to c→a through b→a."""

    def __init__(self, settings: GemNetOCSettings) -> None:
        s = settings
        super().__init__(s.edge_width, s.quadruplet_in, s)
        self.circular = Linear(s.circular_width, s.quadruplet_in)
        self.scale_circular = ScaleFactor()
        self.bilinear = Linear(s.spherical_width * s.quadruplet_in, s.quadruplet_out)
        self.scale_sum = ScaleFactor()
        self.up = EdgeUpdate(s.quadruplet_out, s.edge_width)

    def forward(self, m: Tensor, basis: QuadrupletBasis, tables: GraphTables) -> Tensor:
        q, slots = tables.layout.quadruplets, tables.layout.main
        assert q is not None
        x = self.messages(m, basis.radial)
        # Each middle edge b→a needs all edges into b: rows of the padded table.
        x = slots.to_padded(x).index_select(0, q.source.reshape(-1)).view(len(basis.circular), x.shape[1])
        real = q.angle_in.flatten()
        y = x * self.circular(basis.circular)
        y = self.scale_circular(y, reference=x, rows=real, reference_rows=real)
        n_centres, n_middle, n_slots = q.angle_in.shape
        u = torch.bmm(basis.dihedral, y.view(n_centres * n_middle, n_slots, y.shape[1]))
        # (centres, Q, D, S · quadruplet_in) to (centres · D, Q · S, quadruplet_in)
        u = u.view(n_centres, n_middle, n_slots, basis.dihedral.shape[1] // max(n_slots, 1) * y.shape[1]).transpose(
            1, 2
        )
        z = torch.bmm(basis.spherical.mT, u.reshape(*basis.spherical.shape[:2], y.shape[1]))
        # Projected first, then gathered to edges; edges into atoms that are not centres have no quadruplets.
        out = self.bilinear(z.view(n_centres * n_slots, self.bilinear.weight.shape[1]))
        filled = slots.filled[q.centre].flatten()
        out = self.scale_sum(out, reference=y, rows=filled, reference_rows=real)
        rows = out.new_zeros(len(slots.edge), slots.edge.shape[1] * out.shape[1])
        rows = rows.index_copy(0, q.centre, out.view(len(q.centre), rows.shape[1]))
        return self.up(slots.from_padded(rows.view(-1, out.shape[1])), tables)


class AtomToAtom(nn.Module):
    """Pair interaction: messages from atoms b to a."""

    def __init__(self, settings: GemNetOCSettings) -> None:
        super().__init__()
        s = settings
        self.down = Dense(s.atom_width, s.pair_in)
        self.bilinear = Linear(s.radial_width * s.pair_in, s.pair_out)
        self.scale_sum = ScaleFactor()
        self.up = Dense(s.pair_out, s.atom_width)

    def forward(self, h: Tensor, mix: Tensor, tables: GraphTables) -> Tensor:
        x = self.down(h)
        slots = tables.layout.atom_atom
        padded = x.index_select(0, tables.graph.atom_atom.source[slots.edge].reshape(-1))
        z = mix @ padded.view(*slots.edge.shape, x.shape[1])
        return self.up(self.scale_sum(self.bilinear(z.flatten(1)), reference=x))


class EdgeSum(nn.Module):
    """Sum over the edges into each atom, followed by layers that give atom features."""

    def __init__(self, settings: GemNetOCSettings) -> None:
        super().__init__()
        self.radial = Filter(settings.radial_width, settings.edge_width)
        self.scale_sum = ScaleFactor()
        omitted = settings.published_omissions and settings.edge_width == settings.atom_width
        self.dense = None if omitted else Dense(settings.edge_width, settings.atom_width)
        self.residuals = residuals(settings.residuals_atom, settings.atom_width)

    def atoms(self, m: Tensor, radial: Tensor, tables: GraphTables, boost: float = 1.0) -> Tensor:
        """(E, edge_width) → (N, atom_width); the sum is multiplied by `boost`."""
        g = sum_over_neighbours(self.radial(m, radial), tables.graph.main, len(tables.graph.numbers))
        if boost != 1.0:
            g = g * boost
        x = self.scale_sum(g, reference=m)
        return self.residuals(x if self.dense is None else self.dense(x))


class AtomUpdate(EdgeSum):
    """Atom update from its edges at the end of an interaction block."""

    def forward(self, m: Tensor, radial: Tensor, tables: GraphTables) -> Tensor:
        return self.atoms(m, radial, tables)


class EdgeFromAtoms(nn.Module):
    """Dense layer on [h of the source, h of the target, x], with edge features x."""

    def __init__(self, atom_width: int, width_in: int, width_out: int) -> None:
        super().__init__()
        self.dense = Dense(2 * atom_width + width_in, width_out)

    def forward(self, h: Tensor, x: Tensor, tables: GraphTables) -> Tensor:
        # The atom part of the product is computed per atom, because there are fewer atoms than edges.
        edges = tables.graph.main
        sizes = [h.shape[1], h.shape[1], x.shape[1]]
        source_weight, target_weight, edge_weight = self.dense.weight.split(sizes, dim=1)
        before = F.linear(x, edge_weight).add_(F.linear(h, source_weight).index_select(0, edges.source))
        return scaled_silu(before.add_(F.linear(h, target_weight).index_select(0, edges.target)))


class InteractionBlock(nn.Module):
    """One interaction block (GemNet-OC, figure 2)."""

    def __init__(self, settings: GemNetOCSettings) -> None:
        super().__init__()
        s = settings
        self.dense = Dense(s.edge_width, s.edge_width)
        self.edge_edge = EdgeToEdge(s)
        self.quadruplet = QuadrupletInteraction(s) if s.quadruplet else None
        self.atom_edge = AtomToEdge(s) if s.atom_edge else None
        self.edge_atom = EdgeToAtom(s) if s.edge_atom else None
        self.atom_atom = AtomToAtom(s) if s.atom_atom else None
        self.before_skip = residuals(s.residuals_before_skip, s.edge_width)
        self.after_skip = residuals(s.residuals_after_skip, s.edge_width)
        self.atom_residuals = residuals(s.residuals_atom_skip, s.atom_width)
        self.atom_update = AtomUpdate(s)
        self.concat = EdgeFromAtoms(s.atom_width, s.edge_width, s.edge_width)
        self.edge_residuals = residuals(s.residuals_concat, s.edge_width)

    def forward(self, h: Tensor, m: Tensor, bases: Bases, tables: GraphTables) -> tuple[Tensor, Tensor]:
        edge = [self.dense(m), self.edge_edge(m, bases.edge_edge, tables)]
        if self.quadruplet is not None and bases.quadruplet is not None:
            edge.append(self.quadruplet(m, bases.quadruplet, tables))
        if self.atom_edge is not None and bases.atom_edge is not None:
            edge.append(self.atom_edge(h, bases.atom_edge, tables))
        atom = [h]
        if self.edge_atom is not None and bases.edge_atom is not None:
            atom.append(self.edge_atom(m, bases.edge_atom, tables))
        if self.atom_atom is not None and bases.atom_atom is not None:
            atom.append(self.atom_atom(h, bases.atom_atom, tables))

        x = self.before_skip(_merged(edge))
        m = self.after_skip(joined(x, m))
        h = self.atom_residuals(_merged(atom))
        h = joined(self.atom_update(m, bases.update, tables), h)
        m = joined(self.edge_residuals(self.concat(h, m, tables)), m)
        return h, m


def _merged(parts: list[Tensor]) -> Tensor:
    """Variance-preserving sum of independent features; overwrites the second if dtypes agree."""
    if len(parts) == 1:
        return parts[0]
    total = parts[1].add_(parts[0]) if parts[0].dtype == parts[1].dtype else parts[0] + parts[1]
    for part in parts[2:]:
        total.add_(part)
    return total.mul_(1 / math.sqrt(len(parts)))
