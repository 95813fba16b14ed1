"""Orb v3, from the package `orb-models`, as a backbone.

Rhodes et al., "Orb-v3: atomistic simulation at scale", 2025 (arXiv:2504.06231). The network is a Graph Network
Simulator with attention (Neumann et al. 2024, arXiv:2410.22570).

The package's energy, E = N (σ f(mean over atoms of h) + μ) + Σ_atoms reference + repulsion, has three special
properties:

- It is not invariant under rotation by construction: the network takes spherical harmonics as plain numbers and has
  only learned to give about the same energy for every orientation. The checks `rotation` and `inversion` of
  `eutectic.testing` do not apply.
- f is a nonlinear function of a mean over all atoms of the structure, so that the energies of distant molecules are
  not additive (the check `separation` does not apply), and all atoms contribute equally to f.
- The repulsion is that of Ziegler, Biersack and Littmark (1985) between atoms closer than their covalent radii. In all
  published conservative models of v3, its mean over atoms, not its sum, is added to the energy of the structure, so
  that it depends on the size of the supercell (the check `supercell` does not apply); later versions of the package
  call this an error and keep it only for weights that were trained with it.

The backbone ends before the last linear layer of the energy, which becomes a linear head (`energy_readout`). The
package is imported only when such a model is used.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn

from eutectic.graph import Graph
from eutectic.models.backbone import Features
from eutectic.models.components import polynomial_envelope
from eutectic.models.foreign.adapter import (
    EnergyReadout,
    ForeignBackbone,
    ForeignSettings,
    Neighbours,
    built_for_real,
)
from eutectic.models.foreign.package import Package
from eutectic.models.heads import pool
from eutectic.models.precision import full_precision

PACKAGE = Package(distribution="orb-models", module="orb_models", extra="orb", versions=("0.5.5", "0.8"))

CUTOFF = 6.0
"""Å; a constant in the package."""

N_ELEMENTS = 118
"""Length of the package's element tables, indexed by atomic number; elements from 118 on are not supported."""


class OrbSettings(ForeignSettings):
    """An Orb v3."""

    direct: bool = Field(default=False, description="trained with heads for forces and stress instead of gradients")
    max_neighbours: int = Field(ge=1, description="cap on the edges that start at an atom, nearest first")
    repulsion: Literal["mean", "sum"] = Field(description="how the repulsion of the atoms is added to the energy")


class Orb(ForeignBackbone):
    """The backbone; not invariant under rotation (see the module).

    `Features.atoms` are the atom's features after the last block; the last hidden layer of the energy, which belongs to
    the structure and is the same for all its atoms; and the atom's part of the repulsion. There are no vectors.

    Edge features are added here, from the features of both atoms and the package's features of the edge.
    """

    settings: OrbSettings

    def __init__(self, settings: OrbSettings, model: Any = None) -> None:
        """Build it with random weights, or from the package's own model, which is taken apart."""
        if model is None:
            with built_for_real():
                model = package_model(settings.config, settings)
        hidden, last = _split(model.heads["energy"].mlp)
        width = int(settings.config["latent_dim"])
        super().__init__(settings, atom_width=width + last.in_features + 1, vector_width=0, radial_width=width)
        self.network = model.model
        # Not needed: it predicts the noise in the package's pre-training.
        self.network._decoder = nn.Identity()
        self.of_structure = hidden
        self.pair_repulsion = model.pair_repulsion_fn
        self.pair_repulsion.compute_gradients = False

    @property
    def parts(self) -> Mapping[str, Sequence[str]]:
        blocks = {f"block_{k}": [f"network.gnn_stacks.{k}."] for k in range(len(self.network.gnn_stacks))}
        readout = ["of_structure.", *super().parts.get("readout", ())]
        return {"embedding": ["network.atom_emb.", "network._encoder."], **blocks, "readout": readout}

    def neighbours(self, graph: Graph) -> Neighbours:
        """The main edges within the cutoff, at most the `max_neighbours` shortest ones from each source atom.

        Which of several neighbours at the same distance is beyond the cap is arbitrary, here and in the package.
        """
        near = super().neighbours(graph)
        within = _shortest(near.source, near.distance, self.settings.max_neighbours)
        if within is None:
            return near
        return replace(
            near,
            kept=within if near.kept is None else near.kept[within],
            source=near.source[within],
            target=near.target[within],
            distance=near.distance[within],
            direction=near.direction[within],
            weight=None if near.weight is None else near.weight[within],
        )

    def forward(self, graph: Graph) -> Features:
        self.types_of(graph.numbers)  # refuses unknown elements
        near = self.neighbours(graph)
        with full_precision(graph.positions.device):
            # The attributes of a batch that the package's functions use.
            batch = SimpleNamespace(
                senders=near.source,
                receivers=near.target,
                n_node=torch.ones_like(graph.numbers),  # gives the repulsion per atom, not per structure
                node_features={
                    "atomic_numbers": graph.numbers,
                    "atomic_numbers_embedding": nn.functional.one_hot(graph.numbers, N_ELEMENTS),
                },
                edge_features={"vectors": near.distance[:, None] * near.direction},
            )
            envelope = polynomial_envelope(near.distance[:, None] / self.cutoff, exponent=4)
            embedded = self.network.featurize_edges(batch)
            if near.weight is not None:
                embedded, envelope = embedded * near.weight, envelope * near.weight
            x, edges = self.network._encoder(self.network.featurize_nodes(batch), embedded)
            for block in self.network.gnn_stacks:
                x, edges = block(x, edges, near.source, near.target, envelope)
            repulsion = self.pair_repulsion(batch)["energy"][:, None]
            structure, n = graph.structure, graph.n_structures
            if self.settings.repulsion == "mean":
                repulsion = repulsion / torch.bincount(structure, minlength=n)[structure, None]
            of_structure = self.of_structure(pool(x, structure, n, "mean"))[structure]
            return self.features(graph, near, torch.cat([x, of_structure, repulsion], dim=-1), edges, None)


def _shortest(source: Int[Tensor, edges], distance: Float[Tensor, edges], cap: int) -> Int[Tensor, kept] | None:
    """Indices of the `cap` shortest edges of each source, in order; None if these are all edges."""
    degree = torch.bincount(source)
    if not len(source) or int(degree.max()) <= cap:
        return None
    by_distance = distance.detach().argsort(stable=True)
    order = by_distance[source[by_distance].argsort(stable=True)]  # by source, then by distance
    rank = torch.arange(len(source), device=source.device) - (degree.cumsum(0) - degree)[source[order]]
    within: Bool[Tensor, edges] = torch.zeros_like(source, dtype=torch.bool)
    within[order[rank < cap]] = True
    return within.nonzero()[:, 0]


def _split(mlp: nn.Module) -> tuple[nn.Sequential, nn.Linear]:
    """The hidden layers and the last linear layer of one of the package's perceptrons."""
    *hidden, last, _ = mlp.children()
    assert isinstance(last, nn.Linear)
    return nn.Sequential(*hidden), last


def package_model(config: Mapping[str, Any], settings: OrbSettings) -> Any:
    """Build the package's model; `config` holds arguments of its functions that build an Orb v3."""
    (pretrained,) = PACKAGE.load("forcefield.pretrained")
    build = pretrained.orb_v3_direct_architecture if settings.direct else pretrained.orb_v3_conservative_architecture
    return build(**config, device="cpu")


def energy_readout(model: Any, settings: OrbSettings) -> EnergyReadout:
    """The energy as a linear function of the backbone's features.

    Args:
        model: the package's model, with its weights, before a backbone is built from it.
        settings: settings of the backbone.
    """
    head = copy.deepcopy(model.heads["energy"]).double()
    _, last = _split(head.mlp)
    scale = float(head.normalizer.bn.running_var.sqrt())
    constant = float(head.normalizer.bn.running_mean) + scale * float(last.bias.detach())
    element_energies = head.reference.linear.weight.detach().flatten()
    atom_weights = torch.zeros(settings.config["latent_dim"], dtype=torch.float64)
    return EnergyReadout(
        weight=torch.cat([atom_weights, last.weight.detach()[0], torch.tensor([1 / scale], dtype=torch.float64)]),
        scale=scale,
        references={z: float(element_energies[z]) + constant for z in settings.elements},
    )
