"""GotenNet: attention over neighbours, with vectors and tensors that interact through inner products only.

    graph_settings = GraphSettings(cutoff=5.0, max_neighbours=100)
    backbone = GotenNet(GotenNetSettings().for_graphs([graph_settings]))
    graph = collate([build_graph(structure, graph_settings, lists=backbone.edge_lists)])
    features = backbone(graph)  # features.atoms: (n_atoms, 64)

Aykent and Xia, "GotenNet: Rethinking Efficient 3D Equivariant Graph Neural Networks", ICLR 2025 (OpenReview
5wxCQDtbMo). Every atom carries `width` scalars h and `width` steerable features X of degree 1 (vectors, 3 components)
and degree 2 (traceless tensors, 5 components); every edge carries `width` scalars t. A layer passes attention-weighted
messages to h and X, refines t with the components of both atoms' X perpendicular to the edge, and mixes h and X of each
atom. No Clebsch-Gordan products are needed: degrees interact only through inner products and scalar gates.

Five things differ from the paper. The envelope is polynomial instead of a cosine, and multiplies the attention weights
too, so that energies and forces do not jump when an atom crosses the cutoff. The softmax has a constant term in its
denominator, so that the weight of the last neighbour also fades, and an isolated atom is no special case. One
perceptron γ of the neighbour's scalars serves attention and filters, (α + W t f) ∘ γ(h), which costs a fifth less
without loss of accuracy (docs/log.md). Norms of features are smoothed at zero, so that the energy is smooth where
symmetry makes them vanish. Edges have features for heads, as described in `eutectic.models.backbone.Features`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn

from eutectic.atoms import MAX_ATOMIC_NUMBER
from eutectic.graph import Edges, Graph
from eutectic.graph.operations import carry, largest_of_neighbours, meet, sum_over_neighbours
from eutectic.graph.padded import PaddedEdges, padded_edges
from eutectic.graph.settings import LONGEST_CUTOFF
from eutectic.models.backbone import MAX_LAYERS, MAX_WIDTH, Backbone, BackboneSettings, Features
from eutectic.models.components import perceptron, polynomial_envelope

DEGREES = (3, 5)
"""Components of the steerable features of degree 1 and 2."""

ROUNDING = 0.1
"""ε of the smoothed norm sqrt(|x|² + ε²). Where symmetry makes features zero, as in a water molecule with two equal
bonds, a sharp norm would change the force constants within thousandths of an ångström."""


class GotenNetSettings(BackboneSettings):
    """Sizes of a GotenNet."""

    cutoff_setting = "cutoff"
    blocks_setting = "layers"

    width: int = Field(
        default=64, ge=1, le=MAX_WIDTH, description="scalars, vectors and tensors per atom, and scalars per edge"
    )
    layers: int = Field(default=3, ge=1, le=MAX_LAYERS, description="message-passing layers")
    attention_heads: int = Field(
        default=8, ge=1, le=MAX_WIDTH, description="attention weights per edge; a divisor of width"
    )
    radial_functions: int = Field(default=32, ge=1, le=MAX_WIDTH, description="radial basis functions")
    cutoff: float | None = Field(
        default=None,
        gt=0,
        le=LONGEST_CUTOFF,
        description="cutoff of the radial basis, Å; at most the graph's cutoff, which is the default",
    )
    edge_width: int = Field(
        default=64, ge=0, le=MAX_WIDTH, description="features per edge; 0 for a backbone without edge features"
    )

    @model_validator(mode="after")
    def _whole_heads(self) -> GotenNetSettings:
        if self.width % self.attention_heads:
            raise ValueError(f"width {self.width} is not a multiple of attention_heads {self.attention_heads}")
        return self

    @classmethod
    def tiny(cls) -> GotenNetSettings:
        """Small settings for the conformance suite."""
        return cls(width=16, layers=2, attention_heads=4, radial_functions=8, edge_width=8)

    @property
    def edge_lists(self) -> tuple[str, ...]:
        return ("main",)


@dataclass(frozen=True, kw_only=True, eq=False)
class Geometry:
    """Geometry of the edges, as used by the layers.

    Attributes:
        edges, padded: the edges, and their positions in a padded table of (atoms, slots).
        reverse: (n_edges,) index of each edge's reverse.
        envelope: (n_edges, 1), zero at the cutoff.
        harmonics: (n_atoms, slots · degrees, components) harmonics of the directions, one row per degree, with zeros in
            the components of the other degree. Empty slots are zero.
    """

    edges: Edges
    padded: PaddedEdges
    reverse: Int[Tensor, edges]
    envelope: Float[Tensor, "edges 1"]
    harmonics: Float[Tensor, "atoms rows components"]


def spherical_harmonics(direction: Float[Tensor, "edges 3"]) -> Float[Tensor, "edges 8"]:
    """Real spherical harmonics of degree 1 and 2 of unit vectors, each with norm 1."""
    x, y, z = direction.unbind(-1)
    root = math.sqrt(3.0)
    second = (root * x * y, root * y * z, 0.5 * (3 * z * z - 1), root * x * z, 0.5 * root * (x * x - y * y))
    return torch.stack([x, y, z, *second], dim=-1)


class RadialBasis(nn.Module):
    """Gaussians of exp(−5 d/c), times an envelope that goes smoothly to zero at the cutoff c.

    PhysNet (Unke and Meuwly 2019, eq. 7), with fixed centres spaced evenly between the values at c and at 0.
    """

    def __init__(self, n_functions: int, cutoff: float) -> None:
        super().__init__()
        self.n_functions, self.cutoff = n_functions, cutoff

    def forward(
        self, distance: Float[Tensor, edges]
    ) -> tuple[Float[Tensor, "edges functions"], Float[Tensor, "edges 1"]]:
        x = (distance / self.cutoff)[:, None]  # (edges, 1)
        envelope = polynomial_envelope(x, exponent=5)  # (edges, 1)
        last = math.exp(-5.0)
        centres = torch.linspace(last, 1.0, self.n_functions, dtype=x.dtype, device=x.device)
        sharpness = (0.5 * self.n_functions / (1 - last)) ** 2
        return envelope * torch.exp(-sharpness * (torch.exp(-5.0 * x) - centres).square()), envelope


def per_degree(x: Float[Tensor, "rows degrees width"]) -> Float[Tensor, "rows components width"]:
    """Repeat one number per degree for every component of that degree."""
    return torch.cat([x[:, d : d + 1].expand(-1, n, -1) for d, n in enumerate(DEGREES)], dim=1)


class GotenNetLayer(nn.Module):
    """Messages, edge refinement (omitted in the last layer), and a feed-forward step on atoms."""

    def __init__(self, width: int, attention_heads: int, refines: bool) -> None:
        super().__init__()
        self.width, self.attention_heads, self.refines = width, attention_heads, refines
        blocks = 1 + 2 * len(DEGREES)  # scalars; per degree, along the edge and carried from the neighbour
        self.query_and_key = nn.Linear(width, 2 * width)
        self.edge_attention = nn.Linear(width, width)
        self.values = perceptron(width, width, blocks * width)  # γ
        self.filters = nn.Linear(width, blocks * width, bias=False)
        self.mix = nn.Linear(width, width, bias=False)
        self.gates = perceptron(2 * width, width, 2 * width)
        if refines:
            self.refine_query = nn.Linear(width, width, bias=False)
            self.refine_keys = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in DEGREES)
            self.refine_gate = nn.Linear(width, width)

    def forward(
        self,
        h: Float[Tensor, "atoms width"],
        x: Float[Tensor, "atoms 8 width"] | None,
        t: Float[Tensor, "edges width"],
        geometry: Geometry,
    ) -> tuple[Float[Tensor, "atoms width"], Float[Tensor, "atoms 8 width"], Float[Tensor, "edges width"]]:
        """One layer; x is None in the first, where there are no steerable features yet."""
        h, x = self._messages(h, x, t, geometry)
        if self.refines:
            t = t + nn.functional.silu(self.refine_gate(t)) * self._perpendicular(x, geometry)
        return *self._feed_forward(h, x), t

    def _attention(
        self, h: Float[Tensor, "atoms width"], t: Float[Tensor, "edges width"], geometry: Geometry
    ) -> Float[Tensor, "edges heads"]:
        edges = geometry.edges
        query, key = self.query_and_key(h).split(self.width, dim=-1)
        product = (
            query.index_select(0, edges.target)
            * key.index_select(0, edges.source)
            * nn.functional.silu(self.edge_attention(t))
        )
        logits = product.unflatten(-1, (self.attention_heads, -1)).sum(-1)  # (edges, heads)
        # exp(l) f / (1 + Σ exp(l) f), with the largest exponent (at least the constant's, 0) subtracted from all.
        largest = largest_of_neighbours(logits, edges, h.shape[0])
        weights = torch.exp(logits - largest[edges.target]) * geometry.envelope
        total = torch.exp(-largest) + sum_over_neighbours(weights, edges, h.shape[0])
        return weights / (total[edges.target] * math.sqrt(self.width))

    def _messages(
        self,
        h: Float[Tensor, "atoms width"],
        x: Float[Tensor, "atoms 8 width"] | None,
        t: Float[Tensor, "edges width"],
        geometry: Geometry,
    ) -> tuple[Float[Tensor, "atoms width"], Float[Tensor, "atoms 8 width"]]:
        edges, n = geometry.edges, len(DEGREES)
        attention = self._attention(h, t, geometry)[:, None, :, None]  # (edges, 1, heads, 1)
        filters = self.filters(t * geometry.envelope).unflatten(
            -1, (-1, self.attention_heads, self.width // self.attention_heads)
        )
        weights = (filters + attention).flatten(2)  # (edges, blocks, width)
        values = self.values(h)  # (atoms, blocks · width)
        along, carried = values.split((n * self.width, (1 + n) * self.width), dim=-1)
        # Sent without a direction: the neighbours' scalars, and their steerable features times one gate per degree.
        degrees = (1,) if x is None else (1, *DEGREES)
        sent = self._sent(carried.unflatten(-1, (1 + n, -1)), x)
        sent = carry(weights[:, n : n + len(degrees)], sent, edges.source, edges.target, degrees)
        # Sent along the edge.
        along = along.index_select(0, edges.source).unflatten(-1, (n, -1)) * weights[:, :n]  # (edges, degrees, width)
        directed = geometry.harmonics.mT @ geometry.padded.to_padded(along).flatten(1, 2)
        return h + sent[:, 0], directed if x is None else x + sent[:, 1:] + directed

    @staticmethod
    def _sent(
        gates: Float[Tensor, "atoms blocks width"], x: Float[Tensor, "atoms 8 width"] | None
    ) -> Float[Tensor, "atoms components width"]:
        if x is None:
            return gates[:, :1]
        parts = [gates[:, d : d + 1] * part for d, part in enumerate(x.split(DEGREES, dim=1), start=1)]
        return torch.cat([gates[:, :1], *parts], dim=1)

    def _perpendicular(self, x: Float[Tensor, "atoms 8 width"], geometry: Geometry) -> Float[Tensor, "edges width"]:
        """Inner products of both atoms' features, without their components along the edge."""
        edges, padded = geometry.edges, geometry.padded
        query = self.refine_query(x)
        key = torch.cat([w(part) for w, part in zip(self.refine_keys, x.split(DEGREES, dim=1), strict=True)], dim=1)
        both = geometry.harmonics @ torch.cat([query, key], dim=-1)  # (atoms, slots · degrees, 2 width)
        both = padded.from_padded(both.view(-1, len(DEGREES), 2 * self.width))
        q_along, k_along = both.split(self.width, dim=-1)  # (edges, degrees, width)
        # Along the reverse edge, whose harmonics differ by a sign, the parity of the degree.
        k_along = k_along.index_select(0, geometry.reverse)
        signs = k_along.new_tensor([(-1) ** degree for degree in range(1, len(DEGREES) + 1)])[:, None]
        product = meet(key, query, edges.source, edges.target, (sum(DEGREES),))[:, 0]
        return product - (q_along * k_along * signs).sum(1)

    def _feed_forward(
        self, h: Float[Tensor, "atoms width"], x: Float[Tensor, "atoms 8 width"]
    ) -> tuple[Float[Tensor, "atoms width"], Float[Tensor, "atoms 8 width"]]:
        y = self.mix(x)
        norm = (y.square().sum(1) + ROUNDING**2).sqrt()
        scalar, gate = self.gates(torch.cat([h, norm], dim=-1)).chunk(2, dim=-1)
        return h + scalar, x + gate[:, None] * y


class GotenNet(Backbone):
    """The backbone: maps a `Graph` to `Features`, using only the edges of `graph.main`."""

    traceable = True

    def __init__(self, settings: GotenNetSettings) -> None:
        super().__init__()
        self.settings = settings
        width = settings.width
        self.atom_width, self.edge_width, self.vector_width = width, settings.edge_width, width
        self.embedding = nn.Embedding(MAX_ATOMIC_NUMBER + 1, width)
        self.neighbour_embedding = nn.Embedding(MAX_ATOMIC_NUMBER + 1, width)
        self.basis = RadialBasis(settings.radial_functions, settings.known_cutoff)
        self.neighbour_filter = nn.Linear(settings.radial_functions, width)
        self.start = nn.Sequential(nn.Linear(2 * width, width), nn.LayerNorm(width), nn.SiLU(), nn.Linear(width, width))
        self.edge_start = nn.Linear(settings.radial_functions, width)
        self.layers = nn.ModuleList(
            GotenNetLayer(width, settings.attention_heads, refines=k < settings.layers - 1)
            for k in range(settings.layers)
        )
        if settings.edge_width:
            self.edge_features = perceptron(5 * width + settings.radial_functions, width, settings.edge_width)

    @property
    def repeated(self) -> Sequence[nn.Module]:
        return list(self.layers)

    @property
    def parts(self) -> Mapping[str, Sequence[str]]:
        first = ["embedding.", "neighbour_embedding.", "neighbour_filter.", "start.", "edge_start."]
        blocks = {f"block_{k}": [f"layers.{k}."] for k in range(len(self.layers))}
        return {"embedding": first, **blocks, "readout": ["edge_features."]}

    def forward(self, graph: Graph) -> Features:
        edges = graph.main
        distance, direction = graph.vectors(edges)  # (edges,), (edges, 3)
        radial, envelope = self.basis(distance)  # (edges, functions), (edges, 1)
        weight = graph.edge_envelope("main", distance)
        edge_forces = direction
        if weight is not None:
            radial, envelope, edge_forces = (x * weight[:, None] for x in (radial, envelope, direction))
        geometry = self._geometry(graph, direction, envelope)

        neighbours = self.neighbour_embedding(graph.numbers)[edges.source] * self.neighbour_filter(radial) * envelope
        around = sum_over_neighbours(neighbours, edges, graph.numbers.shape[0])
        h = self.start(torch.cat([self.embedding(graph.numbers), around], dim=-1))  # (atoms, width)
        t = (h[edges.target] + h[edges.source]) * self.edge_start(radial)  # (edges, width)
        # Not zeros: they would cost as much as any x, and their compiled derivatives were wrong (docs/log.md).
        x: Tensor | None = None  # (atoms, 8, width)
        for layer in self.layers:
            h, x, t = layer(h, x, t, geometry)
        assert x is not None  # there is at least one layer
        vectors = x[:, : DEGREES[0]]
        if not self.edge_width:
            return Features(atoms=h, edges=None, directions=edge_forces, vectors=vectors)
        # Scalars of both atoms and the edge, components of both vectors along the edge (invariant), and the distance.
        harmonics = geometry.harmonics.unflatten(1, (-1, len(DEGREES)))[:, :, 0, : DEGREES[0]]
        along = geometry.padded.from_padded((harmonics @ vectors).flatten(0, 1))
        known = [h[edges.source], h[edges.target], along, along[graph.reverse], t, radial]
        f = self.edge_features(torch.cat(known, dim=-1)) * envelope  # (edges, edge_width)
        return Features(atoms=h, edges=f, directions=edge_forces, vectors=vectors)

    def _geometry(self, graph: Graph, direction: Tensor, envelope: Tensor) -> Geometry:
        n_atoms = graph.numbers.shape[0]
        padded = padded_edges(graph.main, n_atoms)
        harmonics = direction.new_zeros(n_atoms, 0, sum(DEGREES))
        if graph.main.source.shape[0]:
            harmonics = padded.to_padded(spherical_harmonics(direction)) * padded.filled[:, :, None]
        parts = harmonics.split(DEGREES, dim=-1)
        zeros = [torch.zeros_like(part) for part in parts]
        rows = [torch.cat([*zeros[:d], part, *zeros[d + 1 :]], dim=-1) for d, part in enumerate(parts)]
        return Geometry(
            edges=graph.main,
            padded=padded,
            reverse=graph.reverse,
            envelope=envelope,
            harmonics=torch.stack(rows, dim=2).flatten(1, 2),
        )
