"""MACE, from the package `mace-torch`, as a backbone.

Batatia, Kovács, Simm, Ortner and Csányi, "MACE: Higher Order Equivariant Message Passing Neural Networks for Fast and
Accurate Force Fields", NeurIPS 2022 (arXiv:2206.07697).

The backbone ends before the last linear layer of each readout, which together become a linear head
(`energy_readout`). The package is imported only when such a model is used.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from eutectic.graph import Graph
from eutectic.models.backbone import Features
from eutectic.models.foreign.adapter import EnergyReadout, ForeignBackbone, ForeignSettings, built_for_real
from eutectic.models.foreign.package import Package
from eutectic.models.precision import full_precision

PACKAGE = Package(
    distribution="mace-torch",
    module="mace",
    extra="mace",
    versions=("0.3.16", "0.3.17"),
    needs={"e3nn": ("0.4.4", "0.4.5")},
)

INTERACTIONS = (
    "RealAgnosticAttResidualInteractionBlock",
    "RealAgnosticDensityInteractionBlock",
    "RealAgnosticDensityResidualInteractionBlock",
    "RealAgnosticInteractionBlock",
    "RealAgnosticResidualInteractionBlock",
    "RealAgnosticResidualNonLinearInteractionBlock",
)
READOUTS = ("LinearReadoutBlock", "NonLinearReadoutBlock", "NonLinearBiasReadoutBlock")
"""Classes of the package that a configuration may name; all others are refused."""


class MACESettings(ForeignSettings):
    """A MACE."""


class MACE(ForeignBackbone):
    """The backbone.

    `Features.atoms` are the scalars of all layers, the hidden layers of the nonlinear readouts, and the pair repulsion
    energy if the model has one; `vectors` are the polar vectors of all layers.
    """

    settings: MACESettings

    def __init__(self, settings: MACESettings, model: Any = None) -> None:
        """Build it with random weights, or from the package's own model, which is taken apart."""
        if model is None:
            with built_for_real():
                model = package_model(settings.config, settings)
        irreps = [product.linear.irreps_out for product in model.products]
        hidden = [_hidden_width(readout) for readout in model.readouts]
        repulsive = hasattr(model, "pair_repulsion_fn")
        super().__init__(
            settings,
            atom_width=sum(_width(layer, 0, 1) for layer in irreps) + sum(hidden) + repulsive,
            vector_width=sum(_width(layer, 1, -1) for layer in irreps),
            radial_width=int(model.radial_embedding.out_dim),
        )
        self.irreps = irreps
        self.register_buffer("atomic_numbers", model.atomic_numbers, persistent=False)
        self.node_embedding = model.node_embedding
        self.spherical_harmonics = model.spherical_harmonics
        self.radial_embedding = model.radial_embedding
        self.interactions, self.products = model.interactions, model.products
        # Readouts take the layers in this order; a single readout takes the last.
        readouts = dict(enumerate(model.readouts, start=len(irreps) - len(hidden)))
        for readout in readouts.values():
            # The last linear layer becomes the head.
            readout._modules.pop("linear_2", None)
        self.readouts = nn.ModuleDict(
            {str(place): readout for place, readout in readouts.items() if _hidden_width(readout)}
        )
        self.pair_repulsion = model.pair_repulsion_fn if repulsive else None

    @property
    def parts(self) -> Mapping[str, Sequence[str]]:
        names = ("interactions", "products", "readouts")
        blocks = {f"block_{k}": [f"{name}.{k}." for name in names] for k in range(len(self.products))}
        return {"embedding": ["node_embedding.", "radial_embedding."], **blocks, **super().parts}

    def forward(self, graph: Graph) -> Features:
        near = self.neighbours(graph)
        with full_precision(graph.positions.device):
            species = nn.functional.one_hot(self.types_of(graph.numbers), len(self.known)).to(graph.positions.dtype)
            edge_index = torch.stack([near.source, near.target])
            pairs = (near.distance[:, None], species, edge_index, self.atomic_numbers)
            harmonics = self.spherical_harmonics(near.direction)
            radial, cutoff = self.radial_embedding(*pairs)
            if near.weight is not None:
                radial, cutoff = radial * near.weight, None if cutoff is None else cutoff * near.weight
            x = self.node_embedding(species)
            scalars, vectors, hidden = [], [], []
            for layer, (interaction, product) in enumerate(zip(self.interactions, self.products, strict=True)):
                x, skipped = interaction(
                    node_attrs=species,
                    node_feats=x,
                    edge_attrs=harmonics,
                    edge_feats=radial,
                    edge_index=edge_index,
                    cutoff=cutoff,
                    first_layer=layer == 0,
                )
                x = product(node_feats=x, sc=skipped, node_attrs=species)
                scalars.append(_scalars(x, self.irreps[layer]))
                vectors += _vectors(x, self.irreps[layer])
                if str(layer) in self.readouts:
                    hidden.append(_hidden(self.readouts[str(layer)], x))
            if self.pair_repulsion is not None:
                hidden.append(self.pair_repulsion(*pairs)[:, None])
            atoms = torch.cat([*scalars, *hidden], dim=-1)
            return self.features(graph, near, atoms, radial, torch.cat(vectors, dim=-1) if vectors else None)


def _width(irreps: Any, degree: int, parity: int) -> int:
    return sum(mul for mul, ir in irreps if (ir.l, ir.p) == (degree, parity))


def _scalars(x: Tensor, irreps: Any) -> Tensor:
    """(atoms, width) all scalars that are even under inversion."""
    parts = zip(irreps.slices(), irreps, strict=True)
    return torch.cat([x[:, place] for place, (_, ir) in parts if (ir.l, ir.p) == (0, 1)], dim=-1)


def _vectors(x: Tensor, irreps: Any) -> list[Tensor]:
    """(atoms, 3, n) for each block of polar vectors."""
    parts = zip(irreps.slices(), irreps, strict=True)
    return [x[:, place].unflatten(1, (mul, 3)).mT for place, (mul, ir) in parts if (ir.l, ir.p) == (1, -1)]


def _hidden_width(readout: nn.Module) -> int:
    """Width of a nonlinear readout's last hidden layer; 0 for a linear one."""
    irreps: Any = getattr(readout, "hidden_irreps", None)
    return 0 if irreps is None else int(irreps.dim)


def _hidden(readout: nn.Module, x: Tensor) -> Tensor:
    """(atoms, width) the last hidden layer of a nonlinear readout, for all of the package's heads.

    The package masks the parts of other heads before the next layer. With several heads and a second hidden layer, the
    parts would mix; such files are refused.
    """
    x = readout.non_linearity(readout.linear_1(x))  # type: ignore[operator]
    return readout.non_linearity(readout.linear_mid(x)) if hasattr(readout, "linear_mid") else x  # type: ignore[operator]


def package_model(config: Mapping[str, Any], settings: MACESettings) -> Any:
    """Build the package's model from a configuration in plain JSON."""
    modules, o3 = PACKAGE.load("modules")[0], _e3nn()
    values = {
        **copy.deepcopy(dict(config)),
        "r_max": settings.cutoff,
        "atomic_numbers": list(settings.elements),
        "num_elements": len(settings.elements),
        # Parts after the backbone; their values do not matter.
        "atomic_energies": torch.zeros(len(config["heads"]), len(settings.elements)).numpy(),
        "atomic_inter_scale": [1.0] * len(config["heads"]),
        "atomic_inter_shift": [0.0] * len(config["heads"]),
        "interaction_cls": modules.interaction_classes[config["interaction_cls"]],
        "interaction_cls_first": modules.interaction_classes[config["interaction_cls_first"]],
        "readout_cls": modules.readout_classes[config["readout_cls"]],
        "gate": modules.gate_dict[config["gate"]],
    }
    for name in ("hidden_irreps", "MLP_irreps", "edge_irreps"):
        values[name] = None if config[name] is None else o3.Irreps(config[name])
    return modules.ScaleShiftMACE(**values)


def _e3nn() -> Any:
    from e3nn import o3

    return o3


def energy_readout(
    model: Any, settings: MACESettings, head: int, atomic_energies: Tensor, scale: float, shift: float
) -> EnergyReadout:
    """The energy of one of the package's heads as a linear function of the backbone's features.

    Args:
        model: the package's model, with its weights.
        settings: settings of the backbone.
        head: index of the head.
        atomic_energies: (n_elements,) eV, in the order of the model.
        scale, shift: scale and shift of the interaction energy of an atom, eV.
    """
    irreps = [product.linear.irreps_out for product in model.products]
    first = len(irreps) - len(model.readouts)
    by_layer = [torch.zeros(_width(layer, 0, 1), dtype=torch.float64) for layer in irreps]
    by_hidden, constant = [], 0.0
    with torch.no_grad():
        for place, readout in enumerate(model.readouts, start=first):
            readout = copy.deepcopy(readout).double()
            width = _hidden_width(readout)
            n_inputs = width or irreps[place].dim
            inputs = torch.cat([torch.zeros(1, n_inputs), torch.eye(n_inputs)]).double()
            # The weights are found by evaluating the layer, independent of the package's normalisation.
            values = (readout.linear_2 if width else readout.linear)(inputs)[:, head]
            constant += float(values[0])
            weight = values[1:] - values[0]
            if width:
                # Hidden features are ordered by head.
                own = torch.arange(width) // (width // len(settings.config["heads"])) == head
                by_hidden.append(torch.where(own, weight, 0.0))
            else:
                by_layer[place] = _scalars(weight[None], irreps[place])[0]
    repulsion = [torch.ones(1, dtype=torch.float64)] if hasattr(model, "pair_repulsion_fn") else []
    offset = scale * constant + shift
    return EnergyReadout(
        weight=torch.cat([*by_layer, *by_hidden, *repulsion]),
        scale=scale,
        references={z: float(e) + offset for z, e in zip(settings.elements, atomic_energies.double(), strict=True)},
    )
