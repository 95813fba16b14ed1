"""The GemNet-OC backbone as used in JMP (Gasteiger et al. 2022; Shoghi et al., ICLR 2024)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from eutectic.graph import Graph
from eutectic.graph.padded import layout
from eutectic.models.backbone import Backbone, Features
from eutectic.models.gemnet_oc.basis import BasisProjections
from eutectic.models.gemnet_oc.interaction import EdgeFromAtoms, GraphTables, InteractionBlock
from eutectic.models.gemnet_oc.layers import second_derivatives, without_recompute
from eutectic.models.gemnet_oc.output import OutputBlock, Readout
from eutectic.models.gemnet_oc.published import shared_parameters
from eutectic.models.gemnet_oc.scaling import fit_scale_factors
from eutectic.models.gemnet_oc.settings import GemNetOCSettings
from eutectic.models.precision import full_precision


class GemNetOC(Backbone):
    """Message passing between atoms and directed edges along pairs, triplets and quadruplets.

    Args:
        settings: default: JMP-S. `edge_features=False` omits the branch that direct forces need.
    """

    recomputes: ClassVar[bool] = True
    settings: GemNetOCSettings

    def __init__(self, settings: GemNetOCSettings | None = None) -> None:
        super().__init__()
        s = GemNetOCSettings.small() if settings is None else settings
        self.settings = s
        self.atom_width = s.atom_width
        self.edge_width = s.edge_width if s.edge_features else 0
        self.atom_embedding = nn.Embedding(s.num_elements, s.atom_width)
        self.bases = BasisProjections(s)
        self.edge_embedding = EdgeFromAtoms(s.atom_width, s.num_radial, s.edge_width)
        self.blocks = nn.ModuleList(InteractionBlock(s) for _ in range(s.blocks))
        self.outputs = nn.ModuleList(OutputBlock(s) for _ in range(s.blocks + 1))
        self.atom_readout = Readout(s.blocks, s.atom_width, s.residuals_readout)
        self.edge_readout = Readout(s.blocks, s.edge_width, s.residuals_readout) if s.edge_features else None

    @property
    def repeated(self) -> Sequence[nn.Module]:
        """The interaction blocks."""
        return list(self.blocks)

    @property
    def parts(self) -> Mapping[str, Sequence[str]]:
        """A block is an interaction block with the output block after it; block 0 also has the first one (JMP)."""
        blocks = {f"block_{k}": [f"blocks.{k}.", f"outputs.{k + 1}."] for k in range(len(self.blocks))}
        blocks["block_0"].append("outputs.0.")
        basis = ["bases.", "edge_embedding."]
        return {
            "embedding": ["atom_embedding."],
            "basis": basis,
            **blocks,
            "readout": ["atom_readout.", "edge_readout."],
        }

    @property
    def compile_units(self) -> Sequence[nn.Module]:
        """All modules; identical blocks are compiled once."""
        readouts = [self.atom_readout] if self.edge_readout is None else [self.atom_readout, self.edge_readout]
        return [self.bases, self.edge_embedding, *self.blocks, *self.outputs, *readouts]

    def fit(self, graphs: Iterable[Graph]) -> None:
        """Fit the scale factors (see `fit_scale_factors`)."""
        fit_scale_factors(self, graphs)

    def shared_parameters(self) -> dict[str, int]:
        """The basis projections, which all blocks share."""
        return shared_parameters(self.settings)

    def forward(self, graph: Graph) -> Features:
        if torch.compiler.is_compiling():
            return self._features(graph)
        with second_derivatives(graph.positions.requires_grad):
            return self._features(graph)

    def _features(self, graph: Graph) -> Features:
        tables = GraphTables(graph, layout(graph, quadruplets=self.settings.quadruplet))
        with full_precision(graph.positions.device):
            bases = self.bases(graph, tables.layout)
        bases = bases.mixed()
        h = self.atom_embedding(graph.numbers - 1)
        m = self.edge_embedding(h, bases.main, tables)
        atoms: list[Tensor] = []
        edges: list[Tensor] = []
        for i, output in enumerate(self.outputs):
            if i:
                h, m = self._run(self.blocks[i - 1], h, m, bases, tables)
            x, e = self._run(output, h, m, bases.output, tables)
            atoms.append(x)
            if e is not None:
                edges.append(e)
        return Features(
            atoms=self.atom_readout(atoms),
            edges=None if self.edge_readout is None else self.edge_readout(edges),
            directions=bases.directions,
        )

    def _run(self, block: Callable[..., Any], *inputs: object) -> Any:
        if self.checkpoint_blocks and torch.is_grad_enabled():
            return checkpoint(without_recompute(block), *inputs, use_reentrant=False)
        return block(*inputs)
