"""Common parts of the backbones of other packages."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from eutectic.atoms import MAX_ATOMIC_NUMBER
from eutectic.graph import Edges, Graph
from eutectic.graph.settings import LONGEST_CUTOFF
from eutectic.models.backbone import MAX_WIDTH, Backbone, BackboneSettings, Features
from eutectic.models.components import perceptron, polynomial_envelope


class ForeignSettings(BackboneSettings):
    """Architecture of a model of another package, read from the package's files and not written by hand."""

    cutoff_setting = "cutoff"

    config: dict[str, Any] = Field(description="architecture, in the package's own terms")
    elements: tuple[int, ...] = Field(min_length=1, description="atomic numbers of the model's elements, in its order")
    cutoff: float = Field(gt=0, le=LONGEST_CUTOFF, description="cutoff of the model, Å")
    edge_width: int = Field(
        default=64,
        ge=0,
        le=MAX_WIDTH,
        description="features per edge, which the package lacks and which start from random weights; 0 for none",
    )

    @property
    def edge_lists(self) -> tuple[str, ...]:
        return ("main",)

    @property
    def known_elements(self) -> tuple[int, ...]:
        return self.elements


@dataclass(frozen=True, kw_only=True, eq=False)
class Neighbours:
    """The main edges within the cutoff.

    Attributes:
        kept: (n_edges,) their indices among all main edges; None if all are kept.
        source, target: (n_edges,) atoms.
        distance: (n_edges,) Å.
        direction: (n_edges, 3) unit vectors source → target.
        weight: (n_edges, 1) edge envelope of a smooth cap; None for a hard cap.
        directions: (n_main_edges, 3), see `Features`.
    """

    kept: Int[Tensor, near] | None
    source: Int[Tensor, near]
    target: Int[Tensor, near]
    distance: Float[Tensor, near]
    direction: Float[Tensor, "near 3"]
    weight: Float[Tensor, "near 1"] | None
    directions: Float[Tensor, "edges 3"]


class ForeignBackbone(Backbone):
    """Base class: atom types, edges within the cutoff, and edge features.

    Edge features are added here: a perceptron of both atoms' features and the package's radial functions, with random
    weights until trained. Heads for vectors, tensors and direct forces need them.

    Nothing is compiled, since the packages generate their own code.
    """

    settings: ForeignSettings
    types: Tensor

    def __init__(self, settings: ForeignSettings, *, atom_width: int, vector_width: int, radial_width: int) -> None:
        super().__init__()
        self.settings = settings
        self.known = settings.elements
        self.cutoff = settings.cutoff
        self.atom_width, self.edge_width, self.vector_width = atom_width, settings.edge_width, vector_width
        types = torch.full((MAX_ATOMIC_NUMBER + 1,), -1, device="cpu")
        types[list(settings.elements)] = torch.arange(len(settings.elements), device="cpu")
        self.register_buffer("types", types, persistent=False)  # by atomic number; −1 for unknown elements
        if settings.edge_width:
            self.edge_features = perceptron(2 * atom_width + radial_width, atom_width, settings.edge_width)
        self.register_state_dict_post_hook(_without_generated_constants)
        self.register_load_state_dict_post_hook(_generated_constants_may_be_missing)

    @property
    def compile_units(self) -> tuple[nn.Module, ...]:
        return ()

    @property
    def parts(self) -> Mapping[str, Sequence[str]]:
        """The added edge features are the readout; subclasses add the parts of the package."""
        return {"readout": ["edge_features."]} if self.edge_width else {}

    def types_of(self, numbers: Int[Tensor, atoms]) -> Int[Tensor, atoms]:
        """Index of each atom's element in the order of the model.

        Raises:
            EutecticError: an element that the model does not support.
        """
        types = self.types[numbers]
        if bool((types < 0).any()):
            self.settings.check_elements(numbers.unique().tolist(), type(self).__name__)
        return types

    def neighbours(self, graph: Graph) -> Neighbours:
        """The main edges within the cutoff, since the package's functions are not zero beyond it."""
        edges: Edges = graph.main
        source, target = edges.source, edges.target
        distance, direction = graph.vectors(edges)
        envelope = graph.edge_envelope("main", distance)
        weight = None if envelope is None else envelope[:, None]
        directions = direction if weight is None else direction * weight
        kept: Tensor | None = None
        near = (distance < self.cutoff).nonzero()[:, 0]
        if len(near) < len(edges):
            kept = near
            source, target, distance, direction = (x[kept] for x in (source, target, distance, direction))
            weight = None if weight is None else weight[kept]
        return Neighbours(
            kept=kept,
            source=source,
            target=target,
            distance=distance,
            direction=direction,
            weight=weight,
            directions=directions,
        )

    def features(
        self,
        graph: Graph,
        near: Neighbours,
        atoms: Float[Tensor, "atoms width"],
        radial: Float[Tensor, "near radial"],
        vectors: Float[Tensor, "atoms 3 vector_width"] | None,
    ) -> Features:
        """The given atom features, with edge features added."""
        if not self.edge_width:
            return Features(atoms=atoms, edges=None, directions=near.directions, vectors=vectors)
        envelope = polynomial_envelope(near.distance[:, None] / self.cutoff, exponent=5)
        if near.weight is not None:
            envelope = envelope * near.weight
        known = torch.cat([atoms[near.source], atoms[near.target], radial], dim=-1)
        edges = self.edge_features(known) * envelope  # (near, edge_width)
        if near.kept is not None:
            edges = edges.new_zeros(len(graph.main), self.edge_width).index_copy(0, near.kept, edges)
        return Features(atoms=atoms, edges=edges, directions=near.directions, vectors=vectors)


GENERATED = "._tensor_constant"
"""In the names of constants of e3nn's generated code. They are buffers of a copied module (the EMA's), but not of a new
one, so they are not part of a saved model."""


def _without_generated_constants(
    module: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any]
) -> None:
    for name in [name for name in state if name.startswith(prefix) and GENERATED in name]:
        del state[name]


def _generated_constants_may_be_missing(module: nn.Module, keys: Any) -> None:
    keys.missing_keys[:] = [name for name in keys.missing_keys if GENERATED not in name]


@contextlib.contextmanager
def built_for_real() -> Iterator[None]:
    """Build modules on the CPU in single precision in any context, since e3nn computes constants while building."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(before)


@dataclass(frozen=True, kw_only=True, eq=False)
class EnergyReadout:
    """An energy of the package, written as E = Σ_atoms (scale · weight · features + reference of the element).

    Attributes:
        weight: (atom_width,) float64.
        scale: eV.
        references: atomic number → eV.
    """

    weight: Float[Tensor, " width"]
    scale: float
    references: Mapping[int, float]
