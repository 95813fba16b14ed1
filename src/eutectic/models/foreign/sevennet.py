"""SevenNet, from the package `sevenn`, as a backbone.

Park, Kim, Hwang and Han, "Scalable Parallel Algorithm for Graph Neural Network Interatomic Potentials in Molecular
Dynamics Simulations", J. Chem. Theory Comput. 2024, 20, 4857. The network is NequIP's.

The backbone ends before the two linear layers that give the energy, which become a linear head (`energy_readout`). The
package is imported only when such a model is used.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from eutectic.graph import Graph
from eutectic.models.backbone import Features
from eutectic.models.foreign.adapter import (
    EnergyReadout,
    ForeignBackbone,
    ForeignSettings,
    built_for_real,
)
from eutectic.models.foreign.package import Package
from eutectic.models.precision import full_precision

PACKAGE = Package(
    distribution="sevenn",
    module="sevenn",
    extra="sevennet",
    versions=("0.13", "0.14"),
    needs={"e3nn": ("0.5", "0.7")},
)

ARCHITECTURE = (
    "_normalize_sph",
    "_number_of_modalities",
    "_number_of_species",
    "act_gate",
    "act_radial",
    "act_scalar",
    "channel",
    "conv_denominator",
    "cutoff",
    "cutoff_function",
    "interaction_type",
    "irreps_manual",
    "is_parity",
    "lmax",
    "lmax_edge",
    "lmax_node",
    "num_convolution_layer",
    "radial_basis",
    "readout_as_fcn",
    "readout_fcn_activation",
    "readout_fcn_hidden_neurons",
    "self_connection_type",
    "train_denominator",
    "use_bias_in_linear",
    "use_modal_node_embedding",
    "use_modal_output_block",
    "use_modal_self_inter_intro",
    "use_modal_self_inter_outro",
    "use_modality",
    "weight_nn_hidden_neurons",
)
"""Entries of the package's configuration that determine the network; all are plain JSON."""

READOUT = ("reduce_input_to_hidden", "reduce_hidden_to_energy")
AFTER = (*READOUT, "readout_FCN", "rescale_atomic_energy", "reduce_total_enegy", "force_output")
"""Modules of the package's network after the last features, with the package's spelling."""

REPLACED = ("onehot_idx_to_onehot", "one_hot_modality")
"""Modules that always return single precision; the backbone replaces them to keep the graph's precision."""


class SevenNetSettings(ForeignSettings):
    """A SevenNet."""

    modalities: tuple[str, ...] = Field(default=(), description="databases that the model distinguishes")
    modality: str | None = Field(default=None, description="the modality whose features are used")


class SevenNet(ForeignBackbone):
    """The backbone: `Features.atoms` are the scalars of the last layer.

    `vectors` are the polar vectors of all layers. Without parity (`is_parity` false, as in all published models) there
    are none: vectors and their cross products share channels, so that their behaviour under inversion is undefined, and
    not even the energy is invariant under it.
    """

    settings: SevenNetSettings

    def __init__(self, settings: SevenNetSettings, network: Mapping[str, Any] | None = None) -> None:
        """Build it with random weights, or from the package's own network, given by names of its parts."""
        if network is None:
            with built_for_real():
                network = _network(settings.config, settings)
        layers = [
            network[f"{t}_self_interaction_1"].irreps_in for t in range(1, settings.config["num_convolution_layer"])
        ]
        super().__init__(
            settings,
            atom_width=_scalars(network),
            vector_width=sum(n for irreps in layers for _, n in _polar_vectors(irreps)),
            radial_width=int(network["edge_embedding"].basis_function.num_basis),
        )
        self.network = nn.ModuleDict({name: m for name, m in network.items() if name not in (*AFTER, *REPLACED)})
        self.vector_places = {
            f"{t}_self_interaction_1": _polar_vectors(irreps) for t, irreps in enumerate(layers, start=1)
        }

    @property
    def parts(self) -> Mapping[str, Sequence[str]]:
        layers = range(self.settings.config["num_convolution_layer"])
        blocks = {f"block_{k}": [f"network.{k}_"] for k in layers}
        inside = tuple(f"{k}_" for k in layers)
        first = [f"network.{name}." for name in self.network if not name.startswith(inside)]
        return {"embedding": first, **blocks, **super().parts}

    def forward(self, graph: Graph) -> Features:
        near = self.neighbours(graph)
        with full_precision(graph.positions.device):
            types = self.types_of(graph.numbers)
            species = nn.functional.one_hot(types, len(self.known)).to(graph.positions.dtype)
            data: dict[str, Any] = {
                "x": species,
                "node_attr": species,
                "atom_type": types,
                # The first index is the receiver; vectors point from it to the other atom.
                "edge_index": torch.stack([near.target, near.source]),
                "edge_vec": -near.distance[:, None] * near.direction,
                "batch": graph.structure,
            }
            if self.settings.modalities:
                place = self.settings.modalities.index(str(self.settings.modality))
                chosen = species.new_zeros(graph.n_structures, len(self.settings.modalities))
                chosen[:, place] = 1
                data["modal_attr"] = chosen
            vectors = []
            for name, module in self.network.items():
                vectors += [_block(data["x"], begin, n) for begin, n in self.vector_places.get(name, ())]
                data = module(data)
                if name == "edge_embedding" and near.weight is not None:
                    data["edge_embedding"] = data["edge_embedding"] * near.weight
            return self.features(
                graph, near, data["x"], data["edge_embedding"], torch.cat(vectors, dim=-1) if vectors else None
            )


def _block(x: Tensor, begin: int, n: int) -> Tensor:
    """(atoms, 3, n) n consecutive vectors."""
    return x[:, begin : begin + 3 * n].unflatten(1, (n, 3)).mT


def _polar_vectors(irreps: Any) -> list[tuple[int, int]]:
    """(first column, number) of each block of polar vectors."""
    blocks = zip(irreps.slices(), irreps, strict=True)
    return [(place.start, mul) for place, (mul, ir) in blocks if (ir.l, ir.p) == (1, -1)]


def _scalars(network: Mapping[str, Any]) -> int:
    return int(network[READOUT[0]]._irreps_in_wo_modal.dim)


def _network(config: Mapping[str, Any], settings: SevenNetSettings) -> dict[str, Any]:
    """The package's network, by names of its parts."""
    (build,) = PACKAGE.load("model_build")
    model = build.build_E3_equivariant_model(package_config(config, settings))
    return dict(model.named_children())


def package_config(config: Mapping[str, Any], settings: SevenNetSettings) -> dict[str, Any]:
    """The configuration in the form that the package expects."""
    return {
        **copy.deepcopy(dict(config)),
        "_type_map": {z: place for place, z in enumerate(settings.elements)},
        "_modal_map": {name: place for place, name in enumerate(settings.modalities)} or None,
        # Parts after the backbone; their values do not matter.
        "shift": 0.0,
        "scale": 1.0,
        "train_shift_scale": False,
        "use_modal_wise_shift": False,
        "use_modal_wise_scale": False,
        "cuequivariance_config": {},
        "use_flash_tp": False,
        "use_oeq": False,
    }


def energy_readout(
    network: Mapping[str, Any], settings: SevenNetSettings, shift: Tensor, scale: float
) -> EnergyReadout:
    """The energy as a linear function of the last features.

    Args:
        network: the package's network, with its weights.
        settings: settings of the backbone.
        shift: (n_elements,) shift of each element in the order of the model, eV.
        scale: eV.
    """
    width = _scalars(network)
    inputs = torch.cat([torch.zeros(1, width), torch.eye(width)]).double()
    data: dict[str, Any] = {"x": inputs, "batch": torch.zeros(len(inputs), dtype=torch.long)}
    if settings.modalities:
        chosen = torch.zeros(1, len(settings.modalities), dtype=torch.float64)
        chosen[0, settings.modalities.index(str(settings.modality))] = 1
        data["modal_attr"] = chosen
    with torch.no_grad():
        for name in READOUT:
            data = copy.deepcopy(network[name]).double()(data)
    # The weights are found by evaluating the layers, independent of the package's normalisation.
    values = data["scaled_atomic_energy"][:, 0]
    constant = float(values[0])
    references = {z: scale * constant + float(e) for z, e in zip(settings.elements, shift.double(), strict=True)}
    return EnergyReadout(weight=values[1:] - constant, scale=scale, references=references)
