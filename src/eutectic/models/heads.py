"""Heads: from a backbone's features to one property, in the task's normalised units.

A head sees only the rows of its own task. All of them are multilayer perceptrons as in JMP (Shoghi et al.
2024, appendix on fine-tuning): `layers` hidden layers with scaled SiLU, and a last layer without bias.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

Pooling = Literal["sum", "mean", "max"]
HeadKind = Literal["scalar", "direct_forces", "gradient_forces", "gradient_stress"]


class HeadSettings(BaseModel):
    """One head.

    'scalar' pools one number per atom; 'direct_forces' sums one number per incoming edge times the edge's
    direction; 'gradient_forces' and 'gradient_stress' have no parameters: F = −∂E/∂r and σ = (∂E/∂ε)/V of the task's
    energy head.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: HeadKind = "scalar"
    pooling: Pooling = Field(default="sum", description="how atoms become a structure ('scalar' only)")
    layers: int = Field(default=4, ge=0, description="hidden layers")


class ScaledSiLU(nn.Module):
    """SiLU(x)/0.6, which keeps the variance of a standard normal (GemNet, Gasteiger et al. 2021)."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.silu(x) * (1 / 0.6)


def _perceptron(width: int, layers: int) -> nn.Sequential:
    hidden: list[nn.Module] = []
    for _ in range(layers):
        hidden += [nn.Linear(width, width), ScaledSiLU()]
    return nn.Sequential(*hidden, nn.Linear(width, 1, bias=False))


def pool(
    values: Float[Tensor, atoms], structure: Int[Tensor, atoms], n_structures: int, how: Pooling
) -> Float[Tensor, structures]:
    """One value per structure from one per atom; `structure` counts from 0."""
    if how == "max":
        empty = values.new_full((n_structures,), -torch.inf)
        return empty.scatter_reduce(0, structure, values, "amax", include_self=True)
    if n_structures == 1 and torch.compiler.is_compiling():
        # Inductor's vectorised code for a CPU cannot add to one place (an assertion fails, PyTorch 2.13).
        return values.sum(0, keepdim=True) if how == "sum" else values.mean(0, keepdim=True)
    total = values.new_zeros(n_structures).index_add(0, structure, values)
    if how == "sum":
        return total
    count = values.new_zeros(n_structures).index_add(0, structure, torch.ones_like(values))
    return total / count


class ScalarHead(nn.Module):
    """A property of the structure from the features of its atoms."""

    def __init__(self, atom_width: int, settings: HeadSettings) -> None:
        super().__init__()
        self.pooling: Pooling = settings.pooling
        self.perceptron = _perceptron(atom_width, settings.layers)

    def forward(
        self, atoms: Float[Tensor, "atoms width"], structure: Int[Tensor, atoms], n_structures: int
    ) -> Float[Tensor, structures]:
        return pool(self.perceptron(atoms)[:, 0], structure, n_structures, self.pooling)


class DirectForceHead(nn.Module):
    """Forces not derived from an energy: F_t = Σ_e f_e V_e over the edges e into atom t (GemNet-OC, eq. 8)."""

    def __init__(self, edge_width: int, settings: HeadSettings) -> None:
        super().__init__()
        self.perceptron = _perceptron(edge_width, settings.layers)

    def forward(
        self,
        edges: Float[Tensor, "edges width"],
        directions: Float[Tensor, "edges 3"],
        target: Int[Tensor, edges],
        n_atoms: int,
    ) -> Float[Tensor, "atoms 3"]:
        edge_forces = self.perceptron(edges) * directions
        return edge_forces.new_zeros(n_atoms, 3).index_add(0, target, edge_forces)
