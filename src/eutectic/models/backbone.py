"""What every backbone is: a graph in, features of atoms and edges out. It never sees a label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from eutectic.graph import Graph


@dataclass(frozen=True, kw_only=True, eq=False)
class Features:
    """What a backbone knows of a batch.

    Attributes:
        atoms: (n_atoms, atom_width), invariant under rotation.
        edges: (n_main_edges, edge_width), invariant; None where the backbone was built without edge features.
        directions: (n_main_edges, 3) unit vectors source → target that go with `edges`, times `Graph.edge_envelope`.
    """

    atoms: Float[Tensor, "atoms width"]
    edges: Float[Tensor, "edges edge_width"] | None
    directions: Float[Tensor, "edges 3"]


@runtime_checkable
class Backbone(Protocol):
    """A `torch.nn.Module` with this shape; `eutectic.testing.check_backbone` is its contract.

    Attributes:
        atom_width, edge_width: sizes of the last axes of `Features`.

    It may have two attributes more: `parts`, the modules that a compiler takes one by one
    (`MultitaskModel.compile_parts`), and `checkpoint_blocks`, which makes it compute its blocks again in the backward
    pass.
    """

    atom_width: int
    edge_width: int

    def __call__(self, graph: Graph) -> Features: ...
