"""One backbone, and for each task its own heads, run on that task's rows alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from eutectic.graph import Graph
from eutectic.models.backbone import Backbone, Features
from eutectic.models.heads import DirectForceHead, HeadSettings, ScalarHead


@dataclass(frozen=True)
class Part:
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
"""Task → property → values of the part's rows, in normalised units."""


class MultitaskModel(nn.Module):
    """A backbone shared by all tasks.

    Args:
        backbone: see `eutectic.models.backbone`.
        heads: task → property → head.
    """

    backbone: Backbone

    def __init__(self, backbone: Backbone, heads: Mapping[str, Mapping[str, HeadSettings]]) -> None:
        super().__init__()
        self.backbone = backbone
        self.head_settings = {task: dict(settings) for task, settings in heads.items()}
        self.heads = nn.ModuleDict()
        for task, settings in heads.items():
            mine = nn.ModuleDict()
            for name, head in settings.items():
                if head.kind == "scalar":
                    mine[name] = ScalarHead(backbone.atom_width, head)
                elif head.kind == "direct_forces":
                    mine[name] = DirectForceHead(backbone.edge_width, head)
                elif "energy" not in settings:
                    raise ValueError(f"task {task!r}: gradient forces need an energy head")
            self.heads[task] = mine

    def forward(self, graph: Graph, parts: Sequence[Part]) -> Predictions:
        """Predict every property of every part.

        Args:
            graph: a batch ordered by task.
            parts: one for each task; those without rows still reach their parameters, with zero gradient,
                so that every process of a data-parallel run agrees on what has one.
        """
        wants_gradient = any(
            head.kind == "gradient_forces" for part in parts for head in self.head_settings[part.task].values()
        )
        with torch.set_grad_enabled(torch.is_grad_enabled() or wants_gradient):
            if wants_gradient:
                graph = graph.with_positions(graph.positions.detach().requires_grad_())
            features = self.backbone(graph)
            predictions = {part.task: self._predict(part, graph, features) for part in parts}
            if wants_gradient:
                self._add_gradients(parts, graph, predictions)
        return predictions

    def _predict(self, part: Part, graph: Graph, features: Features) -> dict[str, Tensor]:
        (s0, s1), (a0, a1), (e0, e1) = part.structures, part.atoms, part.edges
        predicted: dict[str, Tensor] = {}
        for name, head in self.heads[part.task].items():  # type: ignore[operator]
            if isinstance(head, ScalarHead):
                # In full precision always: atoms are few, and sums over many of them are what is asked for.
                with torch.autocast(graph.positions.device.type, enabled=False):
                    atoms = features.atoms[a0:a1].to(graph.positions.dtype)
                    predicted[name] = head(atoms, graph.structure[a0:a1] - s0, s1 - s0)
            else:
                assert features.edges is not None, "direct forces need a backbone with edge features"
                predicted[name] = head(
                    features.edges[e0:e1], features.directions[e0:e1], graph.main.target[e0:e1] - a0, a1 - a0
                )
        return predicted

    def _add_gradients(self, parts: Sequence[Part], graph: Graph, predictions: Predictions) -> None:
        conservative = [
            (part, name)
            for part in parts
            for name, head in self.head_settings[part.task].items()
            if head.kind == "gradient_forces"
        ]
        # Structures do not touch, so the gradient of the sum holds every structure's own.
        total = torch.stack([predictions[part.task]["energy"].sum() for part, _ in conservative]).sum()
        (gradient,) = torch.autograd.grad(total, graph.positions, create_graph=self.training, allow_unused=True)
        if gradient is None:
            gradient = torch.zeros_like(graph.positions)  # not one edge in the whole batch
        for part, name in conservative:
            predictions[part.task][name] = -gradient[slice(*part.atoms)]
