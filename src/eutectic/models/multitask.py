"""One backbone, and for each task its own heads, run on that task's rows alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.fx.experimental._config as shape_settings
from torch import Tensor, nn

from eutectic.graph import Graph
from eutectic.models.backbone import Backbone, Features
from eutectic.models.heads import DirectForceHead, HeadSettings, ScalarHead
from eutectic.models.precision import in_full


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
                    raise ValueError(f"task {task!r}: {name} as a derivative of the energy needs an energy head")
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
            if "gradient_stress" in kinds:
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
        heads = [m.perceptron for m in self.heads.modules() if isinstance(m, ScalarHead | DirectForceHead)]
        for part in (*self.backbone.compile_units, *heads):
            part.compile(dynamic=True)

    def _derived(self, task: str, conservative: bool) -> dict[str, str]:
        """Property → kind, of those that are derivatives of the energy."""
        settings = self.head_settings[task]
        found: dict[str, str] = {n: head.kind for n, head in settings.items() if head.kind.startswith("gradient_")}
        if conservative and "energy" in settings:
            found |= {"forces": "gradient_forces", "stress": "gradient_stress"}
        return found

    def _predict(
        self, part: TaskSlice, graph: Graph, features: Features, derived: Mapping[str, str]
    ) -> dict[str, Tensor]:
        (s0, s1), (a0, a1), (e0, e1) = part.structures, part.atoms, part.edges
        predicted: dict[str, Tensor] = {}
        for name, head in self.heads[part.task].items():  # type: ignore[operator]
            if name in derived:
                continue
            if isinstance(head, ScalarHead):
                # In full precision always: atoms are few, and sums over many of them are what is asked for.
                with in_full(graph.positions.device):
                    atoms = features.atoms[a0:a1].to(graph.positions.dtype)
                    predicted[name] = head(atoms, graph.structure[a0:a1] - s0, s1 - s0)
            else:
                assert features.edges is not None, "direct forces need a backbone with edge features"
                predicted[name] = head(
                    features.edges[e0:e1], features.directions[e0:e1], graph.main.target[e0:e1] - a0, a1 - a0
                )
        return predicted

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
                if kind == "gradient_forces":
                    predictions[part.task][name] = -found[0][slice(*part.atoms)]
                else:
                    mine = slice(*part.structures)
                    # A molecule has no volume, and no stress.
                    stress = torch.where(volume[mine] > 0, found[1][mine] / volume[mine].clamp(min=1e-12), 0.0)
                    predictions[part.task][name] = stress
