"""PaiNN: the shortest backbone, the one to read first and to copy for a new one.

    graph_settings = GraphSettings(cutoff=5.0)
    backbone = PaiNN(PaiNNSettings(width=64).for_graphs([graph_settings]))
    graph = collate([build_graph(structure, graph_settings, lists=backbone.edge_lists)])
    features = backbone(graph)  # features.atoms: (n_atoms, 64)

Schütt, Unke, Gastegger, "Equivariant message passing for the prediction of tensorial properties and
molecular spectra", ICML 2021 (arXiv:2102.03150); "eq." below refers to that paper. Every atom carries `width`
scalars s, which do not change under rotation, and `width` vectors v, which rotate with the structure. A layer
sums messages from the neighbours (eq. 7 and 8), then each atom mixes its own scalars and vectors (9 and 10).

Three things differ from the paper. The envelope is polynomial instead of a cosine, so that forces, and the
gradients of a loss on forces, have no kink at the cutoff. Edges have features too, as described in
`eutectic.models.backbone.Features`, so that heads for forces f_e · direction work here as well. The norm in eq. 9 and
10 is smoothed at zero (`rounding`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from eutectic.atoms import MAX_ATOMIC_NUMBER
from eutectic.graph import Edges, Graph
from eutectic.graph.operations import sum_over_neighbours
from eutectic.graph.settings import LONGEST_CUTOFF
from eutectic.models.backbone import MAX_LAYERS, MAX_WIDTH, Backbone, BackboneSettings, Features
from eutectic.models.components import perceptron, polynomial_envelope


class PaiNNSettings(BackboneSettings):
    """Sizes of a PaiNN."""

    cutoff_setting = "cutoff"
    blocks_setting = "layers"

    width: int = Field(default=64, ge=1, le=MAX_WIDTH, description="number of scalars, and of vectors, per atom")
    layers: int = Field(default=3, ge=1, le=MAX_LAYERS, description="message-passing layers")
    radial_functions: int = Field(default=20, ge=1, le=MAX_WIDTH, description="radial basis functions")
    cutoff: float | None = Field(
        default=None,
        gt=0,
        le=LONGEST_CUTOFF,
        description="cutoff of the radial basis, Å; at most the graph's cutoff, which is the default",
    )
    edge_width: int = Field(
        default=64, ge=0, le=MAX_WIDTH, description="features per edge; 0 for a backbone without edge features"
    )
    rounding: float = Field(
        default=0.1,
        gt=0,
        le=1,
        description="length ε in the smoothed norm sqrt(|v|² + ε²); keeps force constants smooth at symmetric "
        "structures, whose vectors are zero",
    )

    @classmethod
    def tiny(cls) -> PaiNNSettings:
        """Small settings for the conformance suite."""
        return cls(width=16, layers=2, edge_width=8)

    @property
    def edge_lists(self) -> tuple[str, ...]:
        return ("main",)


class RadialBasis(nn.Module):
    """Radial basis sin(n π d / c) / d, n = 1, 2, …, times an envelope that goes smoothly to zero at the cutoff c.

    The sines are eq. 7 of Gasteiger et al. 2020 (DimeNet, arXiv:2003.03123); the envelope is eq. 8 with p = 5.
    """

    def __init__(self, n_functions: int, cutoff: float) -> None:
        super().__init__()
        self.n_functions, self.cutoff = n_functions, cutoff

    def forward(
        self, distance: Float[Tensor, edges]
    ) -> tuple[Float[Tensor, "edges functions"], Float[Tensor, "edges 1"]]:
        x = (distance / self.cutoff)[:, None]  # (edges, 1)
        envelope = polynomial_envelope(x, exponent=5)  # (edges, 1)
        frequencies = math.pi * torch.arange(1, self.n_functions + 1, dtype=x.dtype, device=x.device)
        waves = math.sqrt(2 / self.cutoff) * torch.sin(frequencies * x) / distance[:, None]
        return waves * envelope, envelope  # (edges, functions), (edges, 1)


class PaiNNLayer(nn.Module):
    """One message block and one update block."""

    def __init__(self, width: int, radial_functions: int, rounding: float) -> None:
        super().__init__()
        self.width, self.rounding = width, rounding
        self.phi = perceptron(width, width, 3 * width)  # φ of eq. 7 and 8
        self.filters = nn.Linear(radial_functions, 3 * width)  # 𝓦 of eq. 7 and 8
        self.mix = nn.Linear(width, 2 * width, bias=False)  # U and V of eq. 9 and 10
        self.gates = perceptron(2 * width, width, 3 * width)  # a of eq. 9 and 10

    def forward(
        self,
        s: Float[Tensor, "atoms width"],
        v: Float[Tensor, "atoms 3 width"],
        edges: Edges,
        direction: Float[Tensor, "edges 3"],
        radial: Float[Tensor, "edges functions"],
        envelope: Float[Tensor, "edges 1"],
    ) -> tuple[Float[Tensor, "atoms width"], Float[Tensor, "atoms 3 width"]]:
        # The envelope multiplies the whole filter, since its bias must vanish at the cutoff too.
        message = self.phi(s)[edges.source] * (self.filters(radial) * envelope)  # (edges, 3 width)
        scalar, along, carried = message.split(self.width, dim=-1)  # (edges, width) each
        vector = v[edges.source] * carried[:, None] + direction[:, :, None] * along[:, None]  # (edges, 3, width)
        s = s + sum_over_neighbours(scalar, edges, s.shape[0])  # eq. 7
        v = v + sum_over_neighbours(vector, edges, v.shape[0])  # eq. 8

        u, w = self.mix(v).split(self.width, dim=-1)  # (atoms, 3, width) each: U v and V v
        # Smoothed, since a norm has no derivative at zero, where every vector starts.
        norm = (w.square().sum(1) + self.rounding**2).sqrt()  # (atoms, width)
        gates = self.gates(torch.cat([s, norm], dim=-1))  # (atoms, 3 width)
        gate_s, gate_sv, gate_v = gates.split(self.width, dim=-1)
        s = s + gate_s + gate_sv * (u * w).sum(1)  # eq. 9
        v = v + gate_v[:, None] * u  # eq. 10
        return s, v


class PaiNN(Backbone):
    """The backbone: maps a `Graph` to `Features`, using only the edges of `graph.main`."""

    traceable = True

    def __init__(self, settings: PaiNNSettings) -> None:
        super().__init__()
        self.settings = settings
        self.atom_width, self.edge_width, self.vector_width = settings.width, settings.edge_width, settings.width
        self.embedding = nn.Embedding(MAX_ATOMIC_NUMBER + 1, settings.width)
        self.basis = RadialBasis(settings.radial_functions, settings.known_cutoff)
        self.layers = nn.ModuleList(
            PaiNNLayer(settings.width, settings.radial_functions, settings.rounding) for _ in range(settings.layers)
        )
        if settings.edge_width:
            known = 4 * settings.width + settings.radial_functions
            self.edge_features = perceptron(known, settings.width, settings.edge_width)

    @property
    def repeated(self) -> Sequence[nn.Module]:
        return list(self.layers)

    @property
    def parts(self) -> Mapping[str, Sequence[str]]:
        blocks = {f"block_{k}": [f"layers.{k}."] for k in range(len(self.layers))}
        return {"embedding": ["embedding."], **blocks, "readout": ["edge_features."]}

    def forward(self, graph: Graph) -> Features:
        edges = graph.main
        distance, direction = graph.vectors(edges)  # (edges,), (edges, 3)
        radial, envelope = self.basis(distance)  # (edges, functions), (edges, 1)
        weight = graph.edge_envelope("main", distance)
        edge_forces = direction
        if weight is not None:
            radial, envelope, edge_forces = (x * weight[:, None] for x in (radial, envelope, direction))
        s = self.embedding(graph.numbers)  # (atoms, width)
        v = s.new_zeros(s.shape[0], 3, s.shape[1])  # (atoms, 3, width)
        for layer in self.layers:
            s, v = layer(s, v, edges, direction, radial, envelope)
        if not self.edge_width:
            return Features(atoms=s, edges=None, directions=edge_forces, vectors=v)
        # Scalars of both atoms, the components of their vectors along the edge (also invariant), and the distance.
        known = [s[edges.source], s[edges.target]]  # (edges, width) each
        known += [(v[end] * direction[:, :, None]).sum(1) for end in (edges.source, edges.target)]
        f = self.edge_features(torch.cat([*known, radial], dim=-1)) * envelope  # (edges, edge_width)
        return Features(atoms=s, edges=f, directions=edge_forces, vectors=v)
