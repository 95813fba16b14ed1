"""Multitask model: one shared backbone and separate heads for each task.

Each task's heads run only on the structures of that task.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.fx.experimental._config as shape_settings
from torch import Tensor, nn

from eutectic.atoms import PROPERTIES
from eutectic.graph import Graph
from eutectic.models.backbone import Backbone, Features
from eutectic.models.compiled import CompiledDerivatives
from eutectic.models.compiled_predictions import CompiledPredictions
from eutectic.models.frozen_features import FrozenFeatures
from eutectic.models.heads import HEADS, HeadSettings, ScalarHead, TaskFeatures, Widths, check_needs, resolve


@dataclass(frozen=True)
class TaskSlice:
    """Ranges of a batch that belong to one task. Batches are ordered by task, so three ranges are enough.

    Attributes:
        task: name of the task.
        structures, atoms, edges: half-open ranges; (0, 0) if the batch has no structure of this task.
    """

    task: str
    structures: tuple[int, int]
    atoms: tuple[int, int]
    edges: tuple[int, int]


Predictions = dict[str, dict[str, Tensor]]
"""Task → property → predictions for the task's structures, in normalised units; logits (n_structures, n_classes) for
classification."""


_EMPTY = nn.ModuleDict()


class ByTask(nn.ModuleDict):
    """Modules by task. Like stores, tasks may have any name; one that PyTorch does not allow for a module (empty, with
    a dot, or equal to an attribute) is encoded, which shows only in the names of weights."""

    def __getitem__(self, task: str) -> nn.Module:
        return super().__getitem__(_encoded(task))

    def __setitem__(self, task: str, module: nn.Module) -> None:
        super().__setitem__(_encoded(task), module)

    def __contains__(self, task: str) -> bool:
        return super().__contains__(_encoded(task))


def _encoded(task: str) -> str:
    # All other names stay unchanged, as older models have them.
    if task and "." not in task and not task.startswith("%") and not hasattr(_EMPTY, task):
        return task
    return "%" + task.replace("%", "%25").replace(".", "%2E")


def features_of_task(part: TaskSlice, graph: Graph, features: Features) -> TaskFeatures:
    """The features of a task's structures, in the form its heads expect."""
    (s0, s1), (a0, a1), (e0, e1) = part.structures, part.atoms, part.edges
    return TaskFeatures(
        atoms=features.atoms[a0:a1].to(graph.positions.dtype),
        edges=None if features.edges is None else features.edges[e0:e1],
        vectors=None if features.vectors is None else features.vectors[a0:a1].to(graph.positions.dtype),
        directions=features.directions[e0:e1],
        target=graph.main.target[e0:e1] - a0,
        structure=graph.structure[a0:a1] - s0,
        n_structures=s1 - s0,
    )


class MultitaskModel(nn.Module):
    """A backbone shared by all tasks, and the heads of each task.

    Args:
        backbone: see `eutectic.models.backbone`.
        heads: task → property → head settings; unset fields follow from the property.

    Raises:
        EutecticError: a head needs features that the backbone lacks, or an energy head that the task lacks.
    """

    backbone: Backbone

    def __init__(self, backbone: Backbone, heads: Mapping[str, Mapping[str, HeadSettings]]) -> None:
        super().__init__()
        self.backbone = backbone
        self.frozen_features: FrozenFeatures | None = None
        """Feature cache of a frozen backbone while heads are trained (`train/freezing.py`); otherwise None."""
        self._compiled: CompiledDerivatives | None = None
        self._compiled_predictions: CompiledPredictions | None = None
        self.head_settings = {
            task: {
                name: head if head.kind and head.pooling else resolve(head, PROPERTIES[name])
                for name, head in task_heads.items()
            }
            for task, task_heads in heads.items()
        }
        self.heads = ByTask()
        widths = Widths(atoms=backbone.atom_width, edges=backbone.edge_width, vectors=backbone.vector_width)
        for task, settings in self.head_settings.items():
            check_needs(settings, widths, where=f"task {task!r}")
            modules = nn.ModuleDict()
            for name, head in settings.items():
                if head.entry.module is not None:
                    modules[name] = head.entry.module(widths, head)
            self.heads[task] = modules

    def forward(
        self,
        graph: Graph,
        parts: Sequence[TaskSlice],
        conservative: bool = False,
        of_atoms: bool = False,
        last_features: Collection[str] = (),
    ) -> Predictions:
        """Predict every property of every task.

        Args:
            graph: a batch ordered by task.
            parts: one slice per task. The parameters of a task without structures in the batch get a zero gradient
                rather than none, so that all processes of a data-parallel run agree on which parameters have gradients.
            conservative: compute forces and stress as derivatives of every energy head, even for tasks with direct
                force or stress heads.
            of_atoms: add `energies`, the contribution of each atom to the energy, if the head sums over atoms.
            last_features: properties for which `PROPERTY_last_features` (n_structures, width) is added: the pooled
                input of the head's final layer, if the prediction is linear in it (see `has_last_features`).
        """
        if self._compiled is not None and self.training and not (conservative or of_atoms or last_features):
            (part,) = parts
            return {part.task: self._compiled(graph)}
        if self._compiled_predictions is not None and not self.training:
            return self._compiled_predictions(graph, parts, conservative, of_atoms, last_features)
        return self._forward(graph, parts, conservative, of_atoms, last_features)

    def _forward(
        self,
        graph: Graph,
        parts: Sequence[TaskSlice],
        conservative: bool,
        of_atoms: bool,
        last_features: Collection[str],
    ) -> Predictions:
        derived = {part.task: self._derived(part.task, conservative) for part in parts}
        kinds = {kind for task_kinds in derived.values() for kind in task_kinds.values()}
        with torch.set_grad_enabled(torch.is_grad_enabled() or bool(kinds)):
            positions = strain = None
            if kinds:
                positions = graph.positions.detach().requires_grad_()
                graph = graph.with_positions(positions)
            if any(HEADS[kind].derivative == "strain" for kind in kinds):
                strain = graph.cell.new_zeros(graph.cell.shape).requires_grad_()
                graph = graph.strained(strain)
            if self.frozen_features is None or kinds:
                features = self.backbone(graph)
            else:
                features = self.frozen_features.of(self.backbone, graph)
            predictions = {
                part.task: self._predict(part, graph, features, derived[part.task], of_atoms, last_features)
                for part in parts
            }
            if positions is not None:
                self._add_derivatives(parts, derived, graph, positions, strain, predictions)
        return predictions

    def compile_parts(self) -> None:
        """Compile the backbone's compile units and the heads with torch.compile, in place and with dynamic shapes.

        Identical modules are compiled once, which takes little more than a third of the time for the whole model.
        Side effect: turns off duck shaping (treating equal sizes as one symbol) for the whole process.
        """
        # Sizes that are equal in the first batch (atoms, and atoms with quadruplets) may differ in the next.
        shape_settings.use_duck_shape = False
        for part in self._compile_units:
            part.compile(dynamic=True)

    def compile_predictions(self, backend: str = "inductor") -> None:
        """As `compile_parts`, for predictions only: results are checked, and weights have no gradients any more.

        Compilation takes place in the first prediction of each kind. Training stays uncompiled.

        Args:
            backend: of `torch.compile`.
        """
        # Otherwise, code for the gradients of all weights is compiled, and run for every force.
        self.requires_grad_(False)
        self._compiled_predictions = CompiledPredictions(self._forward, self._compile_units, backend)

    @property
    def _compile_units(self) -> list[nn.Module]:
        heads = [head for task_heads in self.heads.children() for head in task_heads.children()]
        return [*self.backbone.compile_units, *(perceptron for head in heads for perceptron in head.children())]

    def compile_derivatives(self, task: str, backend: str = "inductor") -> None:
        """Compile training steps on batches of one task whose forces or stress are derivatives of its energy.

        Compilation takes place in the first step. Evaluation stays uncompiled.

        Args:
            task: the only task of the batches.
            backend: of `torch.compile`.
        """

        def forward(graph: Graph) -> dict[str, Tensor]:
            # From shapes, not from the batch's ranges: these would be compiled as constants.
            sizes = graph.n_atoms.shape[0], graph.numbers.shape[0], graph.main.source.shape[0]
            part = TaskSlice(task, *((0, size) for size in sizes))
            return self._forward(graph, [part], conservative=False, of_atoms=False, last_features=())[task]

        self._compiled = CompiledDerivatives(forward, self, backend)

    def _derived(self, task: str, conservative: bool) -> dict[str, str]:
        """Property → head kind, for properties computed as derivatives of the energy."""
        settings = self.head_settings[task]
        derived = {name: str(head.kind) for name, head in settings.items() if head.entry.derivative}
        if conservative and "energy" in settings:
            derived |= {entry.property: kind for kind, entry in HEADS.items() if entry.derivative and entry.property}
        return derived

    def _predict(
        self,
        part: TaskSlice,
        graph: Graph,
        features: Features,
        derived: Mapping[str, str],
        of_atoms: bool,
        last_features: Collection[str],
    ) -> dict[str, Tensor]:
        task_features = features_of_task(part, graph, features)
        heads: nn.ModuleDict = self.heads[part.task]  # type: ignore[assignment]
        predictions = {name: head(task_features) for name, head in heads.items() if name not in derived}
        if of_atoms and self.sums_energies(part.task) and "energies" not in predictions:
            predictions["energies"] = cast(ScalarHead, heads["energy"]).of_atoms(task_features)
        for name in last_features:
            if self.has_last_features(part.task, name):
                predictions[f"{name}_last_features"] = cast(ScalarHead, heads[name]).last_features(task_features)
        return predictions

    def has_last_features(self, task: str, name: str) -> bool:
        """Whether a property of a task is linear in the inputs of its head's final layer: a scalar of the structure
        that is not a maximum over its atoms."""
        head = cast(nn.ModuleDict, self.heads[task])
        return name in head and isinstance(head[name], ScalarHead) and cast(ScalarHead, head[name]).is_linear

    def sums_energies(self, task: str) -> bool:
        """Whether the energy of a task is a sum over its atoms."""
        energy = self.head_settings[task].get("energy")
        return energy is not None and energy.kind == "scalar" and energy.pooling == "sum"

    def _add_derivatives(
        self,
        parts: Sequence[TaskSlice],
        derived: Mapping[str, Mapping[str, str]],
        graph: Graph,
        positions: Tensor,
        strain: Tensor | None,
        predictions: Predictions,
    ) -> None:
        # Structures do not interact, so the gradient of the total energy contains the gradient of each structure.
        total = torch.stack([predictions[part.task]["energy"].sum() for part in parts if derived[part.task]]).sum()
        inputs = [positions] if strain is None else [positions, strain]
        gradients = torch.autograd.grad(total, inputs, create_graph=self.training, allow_unused=True)
        # Without any edge in the batch, the energy does not depend on the positions.
        filled = [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, gradients, strict=True)]
        volume = torch.linalg.det(graph.cell.detach()).abs()[:, None, None]
        for part in parts:
            for name, kind in derived[part.task].items():
                if HEADS[kind].derivative == "positions":
                    predictions[part.task][name] = -filled[0][slice(*part.atoms)]
                else:
                    own = slice(*part.structures)
                    # The stress of a molecule (zero volume) is zero.
                    stress = torch.where(volume[own] > 0, filled[1][own] / volume[own].clamp(min=1e-12), 0.0)
                    predictions[part.task][name] = stress
