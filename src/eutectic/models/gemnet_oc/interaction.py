"""How atoms and edges learn of each other (GemNet-OC, Gasteiger et al. 2022, sections 3 and 4, figure 2).

Shapes: atoms N; edges E; slots D (see `graph.indices`); h (N, atom_width); m (E, edge_width).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eutectic.graph import Graph
from eutectic.graph.indices import Layout
from eutectic.models.gemnet_oc.basis import Bases, QuadrupletBasis, TripletBasis
from eutectic.models.gemnet_oc.layers import (
    HALF,
    Dense,
    Linear,
    ScaleFactor,
    residuals,
    scaled_silu,
    sum_to_atoms,
)
from eutectic.models.gemnet_oc.settings import GemNetOCSettings


class Where(NamedTuple):
    """What every layer may ask of a batch besides features: its graph and its tables."""

    graph: Graph
    layout: Layout


class EdgeUpdate(nn.Module):
    """An edge's new features from its own sum and its reverse's: (f(y) + g(y)[reverse]) / √2."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.own = Dense(width_in, width_out)
        self.other = Dense(width_in, width_out)

    def forward(self, y: Tensor, where: Where) -> Tensor:
        return (self.own(y) + self.other(y).index_select(0, where.graph.reverse)).mul_(HALF)


class TripletMessages(nn.Module):
    """What triplet layers share: features times a radial filter, made small, before they are passed on."""

    def __init__(self, width: int, settings: GemNetOCSettings) -> None:
        super().__init__()
        s = settings
        self.dense = Dense(width, width)
        self.radial = Linear(s.radial_width, width)
        self.scale_radial = ScaleFactor()
        self.down = Dense(width, s.triplet_in)
        self.bilinear = Linear(s.circular_width * s.triplet_in, s.triplet_out)
        self.scale_sum = ScaleFactor()

    def messages(self, x: Tensor, radial: Tensor) -> Tensor:
        """(edges, width) → (edges, triplet_in)."""
        return self.down(self.scale_radial(x * self.radial(radial), reference=x))


class EdgeToEdge(TripletMessages):
    """b→a tells c→a (triplet interaction)."""

    def __init__(self, settings: GemNetOCSettings) -> None:
        super().__init__(settings.edge_width, settings)
        self.up = EdgeUpdate(settings.triplet_out, settings.edge_width)

    def forward(self, m: Tensor, basis: TripletBasis, where: Where) -> Tensor:
        x = self.messages(self.dense(m), basis.radial)
        slots = where.layout.main
        z = (basis.mix @ slots.spread(x)).view(slots.edge.numel(), self.bilinear.weight.shape[1])
        return self.up(self.scale_sum(self.bilinear(slots.collect(z)), reference=x), where)


class AtomToEdge(TripletMessages):
    """An atom b near a tells c→a."""

    def __init__(self, settings: GemNetOCSettings) -> None:
        super().__init__(settings.atom_width, settings)
        self.up = EdgeUpdate(settings.triplet_out, settings.edge_width)

    def forward(self, h: Tensor, basis: TripletBasis, where: Where) -> Tensor:
        x = self.dense(h).index_select(0, where.graph.atom_edge.source)
        x = self.messages(x, basis.radial)
        slots = where.layout.main
        z = basis.mix @ where.layout.atom_edge.spread(x)
        z = slots.collect(z.view(slots.edge.numel(), self.bilinear.weight.shape[1]))
        return self.up(self.scale_sum(self.bilinear(z), reference=x), where)


class EdgeToAtom(TripletMessages):
    """b→a tells a, seen from each atom c near a."""

    def __init__(self, settings: GemNetOCSettings) -> None:
        super().__init__(settings.edge_width, settings)
        self.up = Dense(settings.triplet_out, settings.atom_width)

    def forward(self, m: Tensor, basis: TripletBasis, where: Where) -> Tensor:
        x = self.messages(self.dense(m), basis.radial)
        z = (basis.mix @ where.layout.main.spread(x)).flatten(1)
        return self.up(self.scale_sum(self.bilinear(z), reference=x))


class QuadrupletInteraction(nn.Module):
    """d→b tells c→a, by way of b→a."""

    def __init__(self, settings: GemNetOCSettings) -> None:
        super().__init__()
        s = settings
        self.dense = Dense(s.edge_width, s.edge_width)
        self.radial = Linear(s.radial_width, s.edge_width)
        self.scale_radial = ScaleFactor()
        self.down = Dense(s.edge_width, s.quadruplet_in)
        self.circular = Linear(s.circular_width, s.quadruplet_in)
        self.scale_circular = ScaleFactor()
        self.bilinear = Linear(s.spherical_width * s.quadruplet_in, s.quadruplet_out)
        self.scale_sum = ScaleFactor()
        self.up = EdgeUpdate(s.quadruplet_out, s.edge_width)

    def forward(self, m: Tensor, basis: QuadrupletBasis, where: Where) -> Tensor:
        q, slots = where.layout.quadruplets, where.layout.main
        assert q is not None
        x = self.dense(m)
        x = self.down(self.scale_radial(x * self.radial(basis.radial), reference=x))
        # Each middle edge b→a takes all edges into b: rows of the table of slots.
        x = slots.spread(x).index_select(0, q.source.reshape(-1)).view(len(basis.circular), x.shape[1])
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
        # Small first, then to edges; edges into atoms that are no centre have no quadruplets.
        out = self.bilinear(z.view(n_centres * n_slots, self.bilinear.weight.shape[1]))
        filled = slots.filled[q.centre].flatten()
        out = self.scale_sum(out, reference=y, rows=filled, reference_rows=real)
        rows = out.new_zeros(len(slots.edge), slots.edge.shape[1] * out.shape[1])
        rows = rows.index_copy(0, q.centre, out.view(len(q.centre), rows.shape[1]))
        return self.up(slots.collect(rows.view(-1, out.shape[1])), where)


class AtomToAtom(nn.Module):
    """b tells a (pair interaction)."""

    def __init__(self, settings: GemNetOCSettings) -> None:
        super().__init__()
        s = settings
        self.down = Dense(s.atom_width, s.pair_in)
        self.bilinear = Linear(s.radial_width * s.pair_in, s.pair_out)
        self.scale_sum = ScaleFactor()
        self.up = Dense(s.pair_out, s.atom_width)

    def forward(self, h: Tensor, mix: Tensor, where: Where) -> Tensor:
        x = self.down(h)
        slots = where.layout.atom_atom
        spread = x.index_select(0, where.graph.atom_atom.source[slots.edge].reshape(-1))
        z = mix @ spread.view(*slots.edge.shape, x.shape[1])
        return self.up(self.scale_sum(self.bilinear(z.flatten(1)), reference=x))


class AtomUpdate(nn.Module):
    """Edges summed to their target atom."""

    def __init__(self, settings: GemNetOCSettings) -> None:
        super().__init__()
        self.radial = Linear(settings.radial_width, settings.edge_width)
        self.scale_sum = ScaleFactor()
        self.dense = Dense(settings.edge_width, settings.atom_width)
        self.residuals = residuals(settings.residuals_atom, settings.atom_width)

    def forward(self, m: Tensor, radial: Tensor, where: Where, boost: float = 1.0) -> Tensor:
        g = sum_to_atoms(m * self.radial(radial), where.graph.main.target, len(where.graph.numbers))
        if boost != 1.0:
            g = g * boost
        return self.residuals(self.dense(self.scale_sum(g, reference=m)))


class EdgeFromAtoms(nn.Module):
    """Dense layer of [h of the source, h of the target, x], x something of the edge."""

    def __init__(self, atom_width: int, width_in: int, width_out: int) -> None:
        super().__init__()
        self.atom_width = atom_width
        self.dense = Dense(2 * atom_width + width_in, width_out)

    def forward(self, h: Tensor, x: Tensor, where: Where) -> Tensor:
        # The atoms' part of the product is done on atoms, of which there are fewer.
        a = self.atom_width
        weight = self.dense.weight
        edges = where.graph.main
        source = F.linear(h, weight[:, :a]).index_select(0, edges.source)
        target = F.linear(h, weight[:, a : 2 * a]).index_select(0, edges.target)
        return scaled_silu(F.linear(x, weight[:, 2 * a :]) + source + target)


class InteractionBlock(nn.Module):
    """All interactions once."""

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

    def forward(self, h: Tensor, m: Tensor, bases: Bases, where: Where) -> tuple[Tensor, Tensor]:
        edge = [self.dense(m), self.edge_edge(m, bases.edge_edge, where)]
        if self.quadruplet is not None and bases.quadruplet is not None:
            edge.append(self.quadruplet(m, bases.quadruplet, where))
        if self.atom_edge is not None and bases.atom_edge is not None:
            edge.append(self.atom_edge(h, bases.atom_edge, where))
        atom = [h]
        if self.edge_atom is not None and bases.edge_atom is not None:
            atom.append(self.edge_atom(m, bases.edge_atom, where))
        if self.atom_atom is not None and bases.atom_atom is not None:
            atom.append(self.atom_atom(h, bases.atom_atom, where))

        x = self.before_skip(_merged(edge))
        m = self.after_skip((m + x).mul_(HALF))
        h = self.atom_residuals(_merged(atom))
        h = (h + self.atom_update(m, bases.update, where)).mul_(HALF)
        m = (m + self.edge_residuals(self.concat(h, m, where))).mul_(HALF)
        return h, m


def _merged(parts: list[Tensor]) -> Tensor:
    """Sum of independent features, at the variance of one."""
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total * (1 / math.sqrt(len(parts)))
