"""Heads: map a backbone's features to one property, in the task's normalised units.

`HEADS` lists the kinds; a property's level and rank determine which kind it gets. Each head has multilayer perceptrons
as in JMP (Shoghi et al. 2024, appendix on fine-tuning): `layers` hidden layers with scaled SiLU, and a final layer
without bias. Perceptrons act on invariants only; vectors and tensors take their directions from the edges, or from the
atoms' vectors, so that every head is equivariant under rotation and inversion.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, cast

import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from eutectic.atoms import EutecticError, Property, did_you_mean
from eutectic.atoms.properties import Level
from eutectic.models.precision import full_precision

Pooling = Literal["sum", "mean", "max"]


class HeadSettings(BaseModel):
    """Settings of one head. Unset fields follow from the property (see `resolve`)."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    kind: str | None = Field(
        default=None, description="kind of head, e.g. gradient_forces; default: the one that fits the property"
    )
    pooling: Pooling | None = Field(
        default=None,
        description="pooling over the atoms of a structure; default: sum for extensive properties, otherwise mean",
    )
    layers: int = Field(default=1, ge=0, le=1000, description="hidden layers; 4 in JMP")
    n_classes: int | None = Field(
        default=None,
        ge=2,
        le=100_000,
        description="number of classes; default: counted in the training labels, at least 2",
    )

    @property
    def entry(self) -> HeadEntry:
        """The entry of `HEADS`.

        Raises:
            EutecticError: no such kind.
        """
        if self.kind not in HEADS:
            raise EutecticError(
                "head.kind",
                repr(self.kind),
                f"one of {', '.join(HEADS)}",
                did_you_mean(str(self.kind), HEADS, "omit it: it follows from the property"),
            )
        return HEADS[self.kind]


@dataclass(frozen=True, kw_only=True, eq=False)
class TaskFeatures:
    """Features of the structures of one task in a batch; atom and structure indices start at 0.

    Attributes:
        atoms: (n_atoms, atom_width), in the dtype of the positions.
        edges: (n_edges, edge_width); None if the backbone has none.
        vectors: (n_atoms, 3, vector_width), in the dtype of the positions; None if the backbone has none.
        directions: (n_edges, 3), see `Features`.
        target: (n_edges,) target atom of each edge.
        structure: (n_atoms,) structure of each atom.
        n_structures: number of structures.
    """

    atoms: Float[Tensor, "atoms width"]
    edges: Float[Tensor, "edges edge_width"] | None
    vectors: Float[Tensor, "atoms 3 vector_width"] | None
    directions: Float[Tensor, "edges 3"]
    target: Int[Tensor, edges]
    structure: Int[Tensor, atoms]
    n_structures: int


class ScaledSiLU(nn.Module):
    """SiLU(x)/0.6, which preserves the variance of a standard normal input (GemNet, Gasteiger et al. 2021)."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.silu(x) * (1 / 0.6)


def _perceptron(width: int, layers: int, outputs: int = 1) -> nn.Sequential:
    hidden: list[nn.Module] = []
    for _ in range(layers):
        hidden += [nn.Linear(width, width), ScaledSiLU()]
    return nn.Sequential(*hidden, nn.Linear(width, outputs, bias=False))


def pool(
    values: Float[Tensor, "atoms *shape"], structure: Int[Tensor, atoms], n_structures: int, how: Pooling
) -> Float[Tensor, "structures *shape"]:
    """Pool per-atom values into per-structure values; `structure` indices start at 0."""
    shape = (n_structures, *values.shape[1:])
    if how == "max":
        index = structure.reshape(-1, *[1] * (values.ndim - 1)).expand_as(values)
        return values.new_full(shape, -torch.inf).scatter_reduce(0, index, values, "amax", include_self=True)
    if n_structures == 1 and torch.compiler.is_compiling():
        # Inductor's vectorised CPU code fails an assertion for index_add into one row (PyTorch 2.13).
        return values.sum(0, keepdim=True) if how == "sum" else values.mean(0, keepdim=True)
    total = values.new_zeros(shape).index_add(0, structure, values)
    if how == "sum":
        return total
    ones = values.new_ones(values.shape[0])
    count = values.new_zeros(n_structures).index_add(0, structure, ones)
    return total / count.reshape(-1, *[1] * (values.ndim - 1))


@dataclass(frozen=True)
class Widths:
    """Widths of the features that heads are built for; 0 for features that the backbone lacks."""

    atoms: int
    edges: int = 0
    vectors: int = 0


class Head(nn.Module):
    """Base class of all heads. All children of a head are perceptrons."""

    def forward(self, features: TaskFeatures) -> Tensor:
        raise NotImplementedError

    def rescale(self, factor: float) -> None:
        """Multiply every prediction by a factor: changes the normalisation while keeping physical values."""
        with torch.no_grad():
            for perceptron in self.children():
                cast(nn.Linear, cast(nn.Sequential, perceptron)[-1]).weight.mul_(factor)


class AtomScalarHead(Head):
    """A scalar property of atoms, from atom features."""

    def __init__(self, widths: Widths, settings: HeadSettings) -> None:
        super().__init__()
        self.perceptron = _perceptron(widths.atoms, settings.layers)

    def forward(self, features: TaskFeatures) -> Float[Tensor, atoms]:
        # Full precision, as for all operations on atoms: atoms are few compared with edges.
        with full_precision(features.atoms.device):
            return self.perceptron(features.atoms)[:, 0]


class ScalarHead(Head):
    """A scalar property of the structure: one number per atom, pooled."""

    def __init__(self, widths: Widths, settings: HeadSettings) -> None:
        super().__init__()
        self.pooling = cast(Pooling, settings.pooling)
        self.perceptron = _perceptron(widths.atoms, settings.layers)

    def forward(self, features: TaskFeatures) -> Float[Tensor, structures]:
        # Full precision: the result is a sum over many atoms.
        with full_precision(features.atoms.device):
            return pool(self.of_atoms(features), features.structure, features.n_structures, self.pooling)

    @property
    def is_linear(self) -> bool:
        """Whether the prediction is linear in the final layer; false only for a maximum over atoms."""
        return self.pooling != "max"

    def last_features(self, features: TaskFeatures) -> Float[Tensor, "structures width"]:
        """Pooled input of the final layer; the prediction is the final layer's weights times this."""
        with full_precision(features.atoms.device):
            hidden = self.perceptron[:-1](features.atoms)
            return pool(hidden, features.structure, features.n_structures, self.pooling)

    def of_atoms(self, features: TaskFeatures) -> Float[Tensor, atoms]:
        """The contribution of each atom, before pooling."""
        with full_precision(features.atoms.device):
            return self.perceptron(features.atoms)[:, 0]


class ClassHead(Head):
    """Logits of the classes of a structure: `n_classes` numbers per atom, pooled."""

    def __init__(self, widths: Widths, settings: HeadSettings) -> None:
        super().__init__()
        self.pooling = cast(Pooling, settings.pooling)
        self.perceptron = _perceptron(widths.atoms, settings.layers, settings.n_classes or 2)

    def forward(self, features: TaskFeatures) -> Float[Tensor, "structures classes"]:
        with full_precision(features.atoms.device):
            logits = self.perceptron(features.atoms)
            return pool(logits, features.structure, features.n_structures, self.pooling)


class AtomVectorHead(Head):
    """A vector property of atoms, F_t = Σ_e f_e V_e over the edges e into atom t (forces: GemNet-OC, eq. 8)."""

    def __init__(self, widths: Widths, settings: HeadSettings) -> None:
        super().__init__()
        self.perceptron = _perceptron(widths.edges, settings.layers)

    def forward(self, features: TaskFeatures) -> Float[Tensor, "atoms 3"]:
        along = self.perceptron(features.edges) * features.directions
        return along.new_zeros(features.atoms.shape[0], 3).index_add(0, features.target, along)


class VectorHead(AtomVectorHead):
    """A vector property of the structure: Σ_e f_e V_e of each atom, pooled. It rotates with the structure and changes
    sign under inversion, like a dipole."""

    def __init__(self, widths: Widths, settings: HeadSettings) -> None:
        super().__init__(widths, settings)
        self.pooling = cast(Pooling, settings.pooling)

    def forward(self, features: TaskFeatures) -> Float[Tensor, "structures 3"]:
        return pool(super().forward(features), features.structure, features.n_structures, self.pooling)


class TensorHead(Head):
    """A symmetric tensor of the structure: Σ_e f_e (V_e ⊗ V_e − |V_e|²/3 · 1) + a · 1 of each atom, pooled.

    f_e, from edge features, gives the five traceless components; a, from atom features, gives the trace.
    """

    def __init__(self, widths: Widths, settings: HeadSettings) -> None:
        super().__init__()
        self.pooling = cast(Pooling, settings.pooling)
        self.perceptron = _perceptron(widths.edges, settings.layers)
        self.isotropic = _perceptron(widths.atoms, settings.layers)

    def forward(self, features: TaskFeatures) -> Float[Tensor, "structures 3 3"]:
        v = features.directions
        unit = torch.eye(3, dtype=v.dtype, device=v.device)
        traceless = v[:, :, None] * v[:, None, :] - (v.square().sum(1) / 3)[:, None, None] * unit
        edge_tensors = self.perceptron(features.edges)[:, :, None] * traceless
        anisotropic = edge_tensors.new_zeros(features.atoms.shape[0], 3, 3).index_add(0, features.target, edge_tensors)
        with full_precision(features.atoms.device):
            isotropic = self.isotropic(features.atoms)[:, :, None] * unit
            return pool(anisotropic + isotropic, features.structure, features.n_structures, self.pooling)


class VectorsOfAtomsHead(Head):
    """A vector property of atoms, F_t = Σ_c g_c v_c: the atom's own vectors v, times gates g computed from its scalars.

    PaiNN's output block for dipoles and forces (Schütt et al. 2021, section 4), with one gate instead of mixing the
    vectors. It evaluates a perceptron per atom, where `AtomVectorHead` evaluates one per edge.
    """

    def __init__(self, widths: Widths, settings: HeadSettings) -> None:
        super().__init__()
        self.perceptron = _perceptron(widths.atoms, settings.layers, widths.vectors)

    def forward(self, features: TaskFeatures) -> Float[Tensor, "atoms 3"]:
        with full_precision(features.atoms.device):
            return (cast(Tensor, features.vectors) * self.perceptron(features.atoms)[:, None]).sum(-1)


class PooledVectorsHead(VectorsOfAtomsHead):
    """A vector property of the structure: Σ_c g_c v_c of each atom, pooled."""

    def __init__(self, widths: Widths, settings: HeadSettings) -> None:
        super().__init__(widths, settings)
        self.pooling = cast(Pooling, settings.pooling)

    def forward(self, features: TaskFeatures) -> Float[Tensor, "structures 3"]:
        return pool(super().forward(features), features.structure, features.n_structures, self.pooling)


class TensorOfVectorsHead(Head):
    """A symmetric tensor of the structure: Σ_c g_c (v_c ⊗ v_c − |v_c|²/3 · 1) + a · 1 of each atom, pooled; gates g
    and a are functions of the atom's scalars."""

    def __init__(self, widths: Widths, settings: HeadSettings) -> None:
        super().__init__()
        self.pooling = cast(Pooling, settings.pooling)
        self.perceptron = _perceptron(widths.atoms, settings.layers, widths.vectors)
        self.isotropic = _perceptron(widths.atoms, settings.layers)

    def forward(self, features: TaskFeatures) -> Float[Tensor, "structures 3 3"]:
        with full_precision(features.atoms.device):
            v = cast(Tensor, features.vectors)
            gated = v * self.perceptron(features.atoms)[:, None]  # (atoms, 3, vector_width)
            unit = torch.eye(3, dtype=v.dtype, device=v.device)
            trace = (gated * v).sum((1, 2))[:, None, None]
            tensors = gated @ v.mT - trace / 3 * unit + self.isotropic(features.atoms)[:, :, None] * unit
            return pool(tensors, features.structure, features.n_structures, self.pooling)


@dataclass(frozen=True, kw_only=True)
class HeadEntry:
    """One kind of head.

    Attributes:
        level, rank, categorical: those of the properties it predicts.
        needs: required features of the backbone ('atoms', 'edges', 'vectors') or head of the same task ('energy').
        module: built from widths and settings; None for a derivative, which has no parameters.
        poolings: allowed poolings; empty if nothing is pooled.
        derivative: the variable ("positions" or "strain") of which it is the energy's derivative; None otherwise.
        property: the only property it predicts; None for any property of this level and rank.
    """

    level: Level
    rank: int = 0
    categorical: bool = False
    needs: tuple[Literal["atoms", "edges", "vectors", "energy"], ...]
    module: type[Head] | None
    poolings: tuple[Pooling, ...] = ()
    derivative: Literal["positions", "strain"] | None = None
    property: str | None = None

    def fits(self, prop: Property) -> bool:
        """Whether it can predict this property."""
        same_kind = (self.level, self.rank, self.categorical) == (prop.level, prop.rank, prop.categorical)
        return same_kind and self.property in (None, prop.name)


HEADS: dict[str, HeadEntry] = {
    "scalar": HeadEntry(level="structure", needs=("atoms",), module=ScalarHead, poolings=("sum", "mean", "max")),
    "vector": HeadEntry(level="structure", rank=1, needs=("edges",), module=VectorHead, poolings=("sum", "mean")),
    "tensor": HeadEntry(
        level="structure", rank=2, needs=("atoms", "edges"), module=TensorHead, poolings=("sum", "mean")
    ),
    "class": HeadEntry(
        level="structure", categorical=True, needs=("atoms",), module=ClassHead, poolings=("sum", "mean", "max")
    ),
    "atom_scalar": HeadEntry(level="atom", needs=("atoms",), module=AtomScalarHead),
    "direct_forces": HeadEntry(level="atom", rank=1, needs=("edges",), module=AtomVectorHead),
    # The same properties from the atoms' vectors.
    "atom_vector": HeadEntry(level="atom", rank=1, needs=("atoms", "vectors"), module=VectorsOfAtomsHead),
    "pooled_vectors": HeadEntry(
        level="structure", rank=1, needs=("atoms", "vectors"), module=PooledVectorsHead, poolings=("sum", "mean")
    ),
    "tensor_of_vectors": HeadEntry(
        level="structure", rank=2, needs=("atoms", "vectors"), module=TensorOfVectorsHead, poolings=("sum", "mean")
    ),
    # F = −∂E/∂r and σ = (∂E/∂ε)/V of the task's energy head.
    "gradient_forces": HeadEntry(
        level="atom", rank=1, needs=("energy",), module=None, derivative="positions", property="forces"
    ),
    "gradient_stress": HeadEntry(
        level="structure", rank=2, needs=("energy",), module=None, derivative="strain", property="stress"
    ),
}
"""Kinds of heads. A property gets the first kind that fits it."""


def resolve(head: HeadSettings, prop: Property) -> HeadSettings:
    """Fill in the unset fields of a head's settings, except the number of classes.

    The kind follows from the property's level and rank, the pooling from its extensivity ('sum' or 'mean'; 'sum' also
    where nothing is pooled). Fields that are set are kept.

    Raises:
        EutecticError: no kind of head predicts such a property.
    """
    if head.kind is None:
        kinds = [name for name, entry in HEADS.items() if entry.fits(prop)]
        if not kinds:
            raise EutecticError(
                f"property {prop.name!r}",
                f"{_described(prop)}, which no head can predict",
                "; ".join(sorted({_described(entry) for entry in HEADS.values()})),
                "use another property, or add a kind of head (models/heads.py)",
            )
        head = head.model_copy(update={"kind": kinds[0]})
    if head.pooling is None:
        pooled = bool(head.entry.poolings)
        head = head.model_copy(update={"pooling": "mean" if pooled and not prop.extensive else "sum"})
    return head


def check_head(head: HeadSettings, prop: Property) -> None:
    """Check that a head with resolved settings can predict a property.

    Raises:
        EutecticError: kind, pooling or number of classes does not fit; the error lists the kinds that do.
    """
    entry, where = head.entry, f"head of {prop.name!r}"
    if not entry.fits(prop):
        fitting = [name for name, e in HEADS.items() if e.fits(prop)]
        only = f"{entry.property} only" if entry.property else f"a property that is {_described(entry)}"
        raise EutecticError(
            where,
            f"kind {head.kind!r}, which predicts {only}; {prop.name} is {_described(prop)}",
            f"kind {' or '.join(map(repr, fitting)) or 'of a head that does not exist yet'}",
            "omit `kind`: it follows from the property",
        )
    if entry.poolings and head.pooling not in entry.poolings:
        raise EutecticError(
            where,
            f"pooling {head.pooling!r} of a {head.kind}, which would not be equivariant under rotation",
            f"one of {', '.join(entry.poolings)}",
            "omit `pooling`: it follows from the property",
        )
    if head.n_classes is not None and not entry.categorical:
        raise EutecticError(
            where, f"n_classes {head.n_classes} for kind {head.kind!r}", "n_classes only for 'class' heads", "remove it"
        )


def check_needs(heads: Mapping[str, HeadSettings], widths: Widths | None, *, where: str) -> None:
    """Check that the inputs of all heads of a task exist.

    Args:
        heads: property → head of one task, with resolved settings.
        widths: widths of the backbone's features; None if not known yet.
        where: location named in the error.

    Raises:
        EutecticError: a head needs features that the backbone lacks, or an energy head that the task lacks.
    """
    for name, head in heads.items():
        if "energy" in head.entry.needs and "energy" not in heads:
            raise EutecticError(
                f"{where}, {name}",
                f"{head.kind}, a derivative of the energy, but no energy head among {', '.join(heads)}",
                "an energy head in the same task",
                "add the target energy, or omit `kind` to predict it directly",
            )
        if widths is None:
            continue
        if "edges" in head.entry.needs and not widths.edges:
            raise EutecticError(
                f"{where}, {name}",
                f"{head.kind}, with a backbone without edge features",
                "a backbone with edge features, which give vectors and tensors their directions",
                "set edge_width (painn, gotennet) or edge_features (gemnet_oc) of the backbone, "
                + (
                    f"use kind {FROM_VECTORS[str(head.kind)]!r}, "
                    if widths.vectors and head.kind in FROM_VECTORS
                    else ""
                )
                + "or predict forces and stress as gradient_forces and gradient_stress",
            )
        if "vectors" in head.entry.needs and not widths.vectors:
            raise EutecticError(
                f"{where}, {name}",
                f"{head.kind}, with a backbone without atom vectors",
                "a backbone with atom vectors, such as painn or gotennet",
                "omit `kind`: directions then come from the edges",
            )


FROM_VECTORS = {"direct_forces": "atom_vector", "vector": "pooled_vectors", "tensor": "tensor_of_vectors"}
"""Head that takes directions from edges → head for the same properties that takes them from the atoms' vectors."""


def _described(entry: Property | HeadEntry) -> str:
    rank = ("scalar", "vector", "tensor")[entry.rank] if entry.rank < 3 else f"tensor of rank {entry.rank}"
    return f"a {'class' if entry.categorical else rank} of the {entry.level}"
