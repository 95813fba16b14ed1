"""Output blocks and the readout that combines them (GemNet-OC, Gasteiger et al. 2022, section 4)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eutectic.models.gemnet_oc.interaction import EdgeSum, GraphTables
from eutectic.models.gemnet_oc.layers import Dense, Filter, ScaleFactor, joined, residuals, scaled_silu
from eutectic.models.gemnet_oc.settings import GemNetOCSettings


class OutputBlock(EdgeSum):
    """Output block: atom features and, if `edge_features` is on, edge features."""

    def __init__(self, settings: GemNetOCSettings) -> None:
        super().__init__(settings)
        s = settings
        self.after = residuals(s.residuals_output, s.atom_width)
        self.adds_atoms = s.residuals_output > 0 or not s.published_omissions
        # Compensates for edge dropout in training; as in the published model, only here.
        self.boost = 1 / (1 - s.edge_dropout)
        self.has_edges = s.edge_features
        if s.edge_features:
            self.scale_edge = ScaleFactor()
            self.edge_residuals = residuals(s.residuals_atom, s.edge_width)
            self.edge_radial = Filter(s.radial_width, s.edge_width)

    def forward(self, h: Tensor, m: Tensor, radial: Tensor, tables: GraphTables) -> tuple[Tensor, Tensor | None]:
        """((n_atoms, atom_width), (n_main, edge_width) or None)."""
        g = self.atoms(m, radial, tables, boost=self.boost if self.training else 1.0)
        atoms = self.after(joined(g, h)) if self.adds_atoms else g
        if not self.has_edges:
            return atoms, None
        x, recompute = self.edge_residuals.with_recompute(m)
        return atoms, self.edge_radial(x, self.scale_edge.radial(self.edge_radial, x, radial), recompute)


class Readout(nn.Module):
    """Combine the features of all output blocks."""

    def __init__(self, blocks: int, width: int, layers: int) -> None:
        super().__init__()
        self.dense = Dense((blocks + 1) * width, width)
        self.residuals = residuals(layers, width)

    def forward(self, parts: list[Tensor]) -> Tensor:
        # Equals a product with the concatenated parts, without the concatenation.
        weights = self.dense.weight.split([part.shape[1] for part in parts], dim=1)
        before = F.linear(parts[0], weights[0])
        for part, weight in zip(parts[1:], weights[1:], strict=True):
            before = torch.addmm(before, part, weight.mT)
        return self.residuals(scaled_silu(before))
