"""The contract of a backbone: a graph in, features of atoms and edges out. It never sees a label.

Everything that training needs to know of a backbone is declared by two classes: its settings, a `BackboneSettings`,
and its module, a `Backbone`. What they do not override has a default that is right for most. `README.md` beside this
file says how to write one; `eutectic.testing.check_backbone` checks it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from jaxtyping import Float
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from eutectic.atoms import EutecticError
from eutectic.graph import LISTS, Graph, GraphSettings


@dataclass(frozen=True, kw_only=True, eq=False)
class Features:
    """The features of a batch.

    Attributes:
        atoms: (n_atoms, atom_width), invariant under rotation.
        edges: (n_main_edges, edge_width), invariant; None where the backbone was built without edge features.
        directions: (n_main_edges, 3) unit vectors source → target that go with `edges`, times `Graph.edge_envelope`.
        vectors: (n_atoms, 3, vector_width) vectors that rotate with the structure and change sign under inversion;
            None where the backbone has none.
    """

    atoms: Float[Tensor, "atoms width"]
    edges: Float[Tensor, "edges edge_width"] | None
    directions: Float[Tensor, "edges 3"]
    vectors: Float[Tensor, "atoms 3 vector_width"] | None = None


S = TypeVar("S", bound="BackboneSettings")


class BackboneSettings(BaseModel):
    """Base class of a backbone's settings: unknown names are refused, values cannot change.

    Attributes:
        cutoff_setting: name of the setting (`float | None`, Å) at which the radial basis reaches zero. None stands for
            the graph's cutoff, and `for_graphs` fills it in.
        cutoff_may_exceed_graph: accept a value larger than the graph's cutoff if it is given explicitly. The basis is
            then not zero where the graph ends, and the energy jumps when an atom crosses that distance.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    cutoff_setting: ClassVar[str | None] = None
    cutoff_may_exceed_graph: ClassVar[bool] = False

    @classmethod
    def tiny(cls: type[S]) -> S:
        """The size that the conformance suite tests: all parts of the model, as small as they can be."""
        return cls()

    @property
    def edge_lists(self) -> tuple[str, ...]:
        """The edge lists of a `Graph` that the model reads; the others are left empty. `main` is always built."""
        return LISTS

    @property
    def known_cutoff(self) -> float:
        """The cutoff of the radial basis, Å.

        Raises:
            EutecticError: it is still that of a graph which is not known here.
        """
        name = self.cutoff_setting
        value = None if name is None else getattr(self, name)
        if value is None:
            raise EutecticError(
                f"{type(self).__name__}.{name}",
                "None, which stands for the cutoff of the graph",
                "a distance in Å where the model is built",
                "give one, or build the model from `settings.for_graphs([graph_settings])`",
            )
        return float(value)

    def for_graphs(self: S, graphs: Iterable[GraphSettings]) -> S:
        """These settings with the graphs' cutoff, the smallest if they differ, where none is given.

        Raises:
            EutecticError: the cutoff given is larger than that of a graph, for a backbone that does not accept this.
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
                f"{given:g} Å, for a graph whose edges end at {cutoff:g} Å",
                f"at most {cutoff:g} Å: beyond it, the energy jumps when an atom crosses the graph's cutoff",
                "leave it out to use the graph's cutoff, or raise graph.cutoff",
            )
        return self

    def in_training(self: S, edge_dropout: float) -> S:
        """The settings of the model that is trained on graphs without a share of their edges.

        Args:
            edge_dropout: that share. The finished model sees all edges, and keeps the settings that it was given.
        """
        return self


class Backbone(nn.Module):
    """Base class of a backbone: built from its settings alone, called with a `Graph`, returns `Features`.

    Attributes:
        settings: that it was built from.
        atom_width, edge_width, vector_width: sizes of the last axes of `Features`; 0 for features that it does not
            have.
        recomputes: whether it can compute its blocks again in the backward pass instead of keeping them
            (`train.activation_checkpointing`); it then does so while `checkpoint_blocks` is true.
    """

    recomputes: ClassVar[bool] = False

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
        """Blocks that are alike and run one after the other: FSDP gathers their parameters one block at a time."""
        return ()

    @property
    def compile_units(self) -> Sequence[nn.Module]:
        """The modules that `torch.compile` takes one by one; equal ones are compiled once."""
        return (self,)

    def fit(self, graphs: Iterable[Graph]) -> None:
        """Fit before training whatever is not learned by gradient (scale factors).

        Args:
            graphs: batches like those of training, made when they are asked for.
        """

    def shared_parameters(self) -> Mapping[str, int]:
        """Parameters that a forward pass uses several times: name → number of uses. JMP divides their gradients by
        it (`optimiser.scale_shared_gradients`)."""
        return {}


@dataclass(frozen=True)
class BackboneEntry:
    """A backbone as the registry knows it.

    Attributes:
        settings: its settings class.
        module: builds it from them.
    """

    settings: type[BackboneSettings]
    module: Callable[[Any], Backbone]
