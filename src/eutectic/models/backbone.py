"""Base classes of backbones: a graph in, features of atoms and edges out.

A backbone consists of two classes: its settings (`BackboneSettings`) and its module (`Backbone`). Together they declare
everything training needs. `README.md` in this folder explains how to write one; `eutectic.testing.check_backbone`
checks it. A backbone never sees labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from ase.data import chemical_symbols
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from eutectic.atoms import EutecticError
from eutectic.graph import LISTS, Graph, GraphSettings

MAX_LAYERS, MAX_WIDTH = 1000, 100_000
"""Limits of settings, far above any real model, to reject a mistyped or corrupted number at once."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Features:
    """The features of a batch.

    Attributes:
        atoms: (n_atoms, atom_width), invariant under rotation.
        edges: (n_main_edges, edge_width), invariant; None if the backbone was built without edge features.
        directions: (n_main_edges, 3) unit vectors source → target of the edges, times `Graph.edge_envelope`.
        vectors: (n_atoms, 3, vector_width) vectors that rotate with the structure and change sign under inversion;
            None if the backbone has none.
    """

    atoms: Float[Tensor, "atoms width"]
    edges: Float[Tensor, "edges edge_width"] | None
    directions: Float[Tensor, "edges 3"]
    vectors: Float[Tensor, "atoms 3 vector_width"] | None = None


S = TypeVar("S", bound="BackboneSettings")


class BackboneSettings(BaseModel):
    """Base class of backbone settings; immutable, unknown names are errors.

    Attributes:
        cutoff_setting: name of the field (`float | None`, Å) that holds the cutoff of the radial basis. A value of None
            means the graph's cutoff, which `for_graphs` fills in.
        cutoff_may_exceed_graph: accept an explicit value larger than the graph's cutoff. The basis is then not zero at
            the graph's cutoff, and the energy jumps when an atom crosses it.
        blocks_setting: name of the field that holds the number of blocks, if the last blocks can be dropped
            (`models/fewer_blocks.py`).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    cutoff_setting: ClassVar[str | None] = None
    cutoff_may_exceed_graph: ClassVar[bool] = False
    blocks_setting: ClassVar[str | None] = None

    @classmethod
    def tiny(cls: type[S]) -> S:
        """The smallest settings that use every part of the model; for the conformance suite."""
        return cls()

    @property
    def edge_lists(self) -> tuple[str, ...]:
        """The edge lists of a `Graph` that the model reads; the others are left empty. `main` is always built."""
        return LISTS

    @property
    def known_elements(self) -> tuple[int, ...] | None:
        """Atomic numbers of the elements that the model supports; None for all."""
        return None

    def check_elements(self, elements: Iterable[int], where: str) -> None:
        """Check that the model supports all of these elements.

        Args:
            elements: atomic numbers.
            where: location given in the error.

        Raises:
            EutecticError: an element that it does not support.
        """
        known = self.known_elements
        if known is None or not (unknown := sorted(set(elements) - set(known))):
            return
        raise EutecticError(
            where,
            f"element {', '.join(chemical_symbols[z] for z in unknown)}, which the backbone does not support",
            f"only elements {', '.join(chemical_symbols[z] for z in sorted(known))}",
            "leave these structures out, or start from a model that supports them",
        )

    @property
    def known_cutoff(self) -> float:
        """The cutoff of the radial basis, Å.

        Raises:
            EutecticError: it is None (the graph's cutoff), and `for_graphs` has not been called.
        """
        name = self.cutoff_setting
        value = None if name is None else getattr(self, name)
        if value is None:
            raise EutecticError(
                f"{type(self).__name__}.{name}",
                "None, which means the cutoff of the graph",
                "a distance in Å when the model is built",
                "set it, or build the model from `settings.for_graphs([graph_settings])`",
            )
        return float(value)

    def for_graphs(self: S, graphs: Iterable[GraphSettings]) -> S:
        """These settings, with the smallest of the graphs' cutoffs filled in if the cutoff is None.

        Raises:
            EutecticError: the cutoff is larger than a graph's, and the backbone does not accept this.
        """
        cutoff, name = min((graph.cutoff for graph in graphs), default=None), self.cutoff_setting
        if cutoff is None or name is None:
            return self
        given = getattr(self, name)
        if given is None:
            return self.model_copy(update={name: cutoff})
        if given > cutoff and not self.cutoff_may_exceed_graph:
            raise EutecticError(
                f"backbone.settings.{name}",
                f"{given:g} Å, for a graph with a cutoff of {cutoff:g} Å",
                f"at most {cutoff:g} Å: otherwise the energy jumps when an atom crosses the graph's cutoff",
                "omit it to use the graph's cutoff, or increase graph.cutoff",
            )
        return self

    def in_training(self: S, edge_dropout: float) -> S:
        """The settings of the model during training with edge dropout.

        Args:
            edge_dropout: fraction of edges dropped in training. The saved model uses all edges and keeps its original
                settings.
        """
        return self


class Backbone(nn.Module):
    """Base class of backbones: built from settings alone; maps a `Graph` to `Features`.

    Attributes:
        settings: the settings it was built from.
        atom_width, edge_width, vector_width: sizes of the last axes of `Features`; 0 for features it does not have.
        recomputes: whether it supports activation checkpointing (`train.activation_checkpointing`): it recomputes its
            blocks in the backward pass while `checkpoint_blocks` is true.
        traceable: whether its forward pass is the same sequence of tensor operations for every batch, with sizes taken
            from shapes (`x.shape[0]`, not `len(x)`), so that derivatives of its energies can be compiled.
    """

    recomputes: ClassVar[bool] = False
    traceable: ClassVar[bool] = False

    settings: BackboneSettings
    atom_width: int
    edge_width: int = 0
    vector_width: int = 0
    checkpoint_blocks: bool = False

    def forward(self, graph: Graph) -> Features:
        """The features of a batch."""
        raise NotImplementedError

    if TYPE_CHECKING:

        def __call__(self, graph: Graph) -> Features: ...

    @property
    def edge_lists(self) -> tuple[str, ...]:
        """See `BackboneSettings.edge_lists`."""
        return self.settings.edge_lists

    @property
    def repeated(self) -> Sequence[nn.Module]:
        """Identical blocks that run in sequence; FSDP gathers their parameters one block at a time."""
        return ()

    @property
    def compile_units(self) -> Sequence[nn.Module]:
        """Modules that `torch.compile` compiles separately; identical modules are compiled once."""
        return (self,)

    @property
    def parts(self) -> Mapping[str, Sequence[str]]:
        """Parts that can be frozen or have their own learning rate (`models/parts.py`): name → prefixes of their
        parameters' names. Usual names, from the input on: `embedding`, `basis`, `block_0`, `block_1`, …, `readout`.
        Parameters outside all parts can only be frozen with the whole backbone."""
        return {}

    def fit(self, graphs: Iterable[Graph]) -> None:
        """Fit quantities that are not learned by gradient descent (scale factors), before training.

        Args:
            graphs: representative training batches, generated lazily.
        """

    def shared_parameters(self) -> Mapping[str, int]:
        """Parameters used several times per forward pass: name → number of uses. JMP divides their gradients by this
        number (`optimiser.scale_shared_gradients`)."""
        return {}


@dataclass(frozen=True)
class BackboneEntry:
    """Registry entry of a backbone.

    Attributes:
        settings: its settings class.
        module: builds the backbone from settings.
    """

    settings: type[BackboneSettings]
    module: Callable[[Any], Backbone]
