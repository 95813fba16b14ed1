"""One backbone, and for each task its own heads, run on that task's rows alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.fx.experimental._config as shape_settings
from torch import Tensor, nn

from eutectic.atoms import PROPERTIES
from eutectic.graph import Graph
from eutectic.models.backbone import Backbone, Features
from eutectic.models.heads import HEADS, HeadSettings, TaskFeatures, check_needs, resolve


@dataclass(frozen=True)
class TaskSlice:
    """Where one task's rows stand in a batch. A batch is ordered by task, so that a part is three ranges.

    Attributes:
        task: its name.
        structures, atoms, edges: half-open ranges; (0, 0) where the batch has none of this task.
    """

    task: str
    structures: tuple[int, int]
    atoms: tuple[int, int]
    edges: tuple[int, int]


Predictions = dict[str, dict[str, Tensor]]
"""Task → property → values of the part's rows, in normalised units; of classes, logits (n_structures, n_classes)."""


class MultitaskModel(nn.Module):
    """A backbone shared by all tasks.

    Args:
        backbone: see `eutectic.models.backbone`.
        heads: task → property → head; what its settings leave open follows from the property.

    Raises:
        EutecticError: a head of edges for a backbone without edge features, a derivative without an energy head.
    """

    backbone: Backbone

    def __init__(self, backbone: Backbone, heads: Mapping[str, Mapping[str, HeadSettings]]) -> None:
        super().__init__()
        self.backbone = backbone
        self.head_settings = {
            task: {n: head if head.kind and head.pooling else resolve(head, PROPERTIES[n]) for n, head in mine.items()}
            for task, mine in heads.items()
        }
        self.heads = nn.ModuleDict()
        for task, settings in self.head_settings.items():
            check_needs(settings, edges=backbone.edge_width > 0, where=f"task {task!r}")
            mine = nn.ModuleDict()
            for name, head in settings.items():
                if head.entry.module is not None:
                    mine[name] = head.entry.module(backbone.atom_width, backbone.edge_width, head)
            self.heads[task] = mine

    def forward(self, graph: Graph, parts: Sequence[TaskSlice], conservative: bool = False) -> Predictions:
        """Predict every property of every part.

        Args:
            graph: a batch ordered by task.
            parts: one for each task; those without rows still reach their parameters, with zero gradient,
                so that every process of a data-parallel run agrees on what has one.
            conservative: give forces and stress as derivatives of every energy head, whatever heads of their own
                tasks have.
        """
        derived = {part.task: self._derived(part.task, conservative) for part in parts}
        kinds = {kind for mine in derived.values() for kind in mine.values()}
        with torch.set_grad_enabled(torch.is_grad_enabled() or bool(kinds)):
            positions = strain = None
            if kinds:
                positions = graph.positions.detach().requires_grad_()
                graph = graph.with_positions(positions)
            if any(HEADS[kind].derivative == "strain" for kind in kinds):
                strain = graph.cell.new_zeros(graph.cell.shape).requires_grad_()
                graph = graph.strained(strain)
            features = self.backbone(graph)
            predictions = {part.task: self._predict(part, graph, features, derived[part.task]) for part in parts}
            if positions is not None:
                self._add_derivatives(parts, derived, graph, positions, strain, predictions)
        return predictions

    def compile_parts(self) -> None:
        """Have torch.compile do the backbone's compile units and the heads, each for all sizes of batch, in place.

        One by one because most are alike: they are compiled once, in little more than a third of the time that the
        whole takes. Two sizes that happen to be equal are no longer taken for one, in the whole process.
        """
        # Sizes that agree in the first batch (atoms, and atoms that have quadruplets) need not in the next.
        shape_settings.use_duck_shape = False
        heads = [head for mine in self.heads.children() for head in mine.children()]
        perceptrons = [perceptron for head in heads for perceptron in head.children()]
        for part in (*self.backbone.compile_units, *perceptrons):
            part.compile(dynamic=True)

    def _derived(self, task: str, conservative: bool) -> dict[str, str]:
        """Property → kind, of those that are derivatives of the energy."""
        settings = self.head_settings[task]
        found = {name: str(head.kind) for name, head in settings.items() if head.entry.derivative}
        if conservative and "energy" in settings:
            found |= {entry.property: kind for kind, entry in HEADS.items() if entry.derivative and entry.property}
        return found

    def _predict(
        self, part: TaskSlice, graph: Graph, features: Features, derived: Mapping[str, str]
    ) -> dict[str, Tensor]:
        (s0, s1), (a0, a1), (e0, e1) = part.structures, part.atoms, part.edges
        mine = TaskFeatures(
            atoms=features.atoms[a0:a1].to(graph.positions.dtype),
            edges=None if features.edges is None else features.edges[e0:e1],
            directions=features.directions[e0:e1],
            target=graph.main.target[e0:e1] - a0,
            structure=graph.structure[a0:a1] - s0,
            n_structures=s1 - s0,
        )
        heads = self.heads[part.task].items()  # type: ignore[operator]
        return {name: head(mine) for name, head in heads if name not in derived}

    def _add_derivatives(
        self,
        parts: Sequence[TaskSlice],
        derived: Mapping[str, Mapping[str, str]],
        graph: Graph,
        positions: Tensor,
        strain: Tensor | None,
        predictions: Predictions,
    ) -> None:
        # Structures do not touch, so the gradient of the sum holds every structure's own.
        total = torch.stack([predictions[part.task]["energy"].sum() for part in parts if derived[part.task]]).sum()
        inputs = [positions] if strain is None else [positions, strain]
        gradients = torch.autograd.grad(total, inputs, create_graph=self.training, allow_unused=True)
        # Not one edge in the whole batch: nothing depends on where the atoms are.
        found = [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, gradients, strict=True)]
        volume = torch.linalg.det(graph.cell.detach()).abs()[:, None, None]
        for part in parts:
            for name, kind in derived[part.task].items():
                if HEADS[kind].derivative == "positions":
                    predictions[part.task][name] = -found[0][slice(*part.atoms)]
                else:
                    mine = slice(*part.structures)
                    # A molecule has no volume, and no stress.
                    stress = torch.where(volume[mine] > 0, found[1][mine] / volume[mine].clamp(min=1e-12), 0.0)
                    predictions[part.task][name] = stress
