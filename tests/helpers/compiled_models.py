"""Small models and batches for the tests of compiled code."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from eutectic.atoms import Structure
from eutectic.graph import Graph, GraphSettings, build_graph, collate
from eutectic.models.backbone import Backbone
from eutectic.models.gotennet import GotenNet, GotenNetSettings
from eutectic.models.heads import HeadSettings
from eutectic.models.multitask import MultitaskModel, TaskSlice
from eutectic.models.painn import PaiNN, PaiNNSettings
from eutectic.testing.structures import molecule, rattled

GRAPH = GraphSettings(cutoff=4.0, max_neighbours=12, smooth_cap=0.5)
MOLECULES = [rattled(molecule(name), 0.05, k) for k, name in enumerate(["CH3CH2OH", "H2O", "CH4", "C6H6", "NH3"])]


def painn() -> Backbone:
    return PaiNN(PaiNNSettings(width=8, layers=1, edge_width=8, cutoff=GRAPH.cutoff))


def gotennet() -> Backbone:
    settings = {"width": 8, "layers": 2, "attention_heads": 2, "radial_functions": 8, "edge_width": 0}
    return GotenNet(GotenNetSettings.model_validate(settings | {"cutoff": GRAPH.cutoff}))


def model_of(
    forces: str = "gradient_forces", stress: bool = False, backbone: Callable[[], Backbone] = painn
) -> MultitaskModel:
    torch.manual_seed(0)
    heads = {"energy": HeadSettings(), "forces": HeadSettings(kind=forces)}  # type: ignore[arg-type]
    if stress:
        heads["stress"] = HeadSettings(kind="gradient_stress")
    return MultitaskModel(backbone(), {"task": heads}).train()


def batch(structures: Sequence[Structure]) -> tuple[Graph, list[TaskSlice]]:
    graph = collate([build_graph(structure, GRAPH, lists=("main",)) for structure in structures])
    sizes = graph.n_structures, len(graph.numbers), len(graph.main)
    return graph, [TaskSlice("task", *((0, size) for size in sizes))]
