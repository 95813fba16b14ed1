"""`Features.vectors` rotate with the structure and change sign under inversion."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from eutectic.atoms import Structure
from eutectic.graph import Graph, GraphSettings, build_graph, collate
from eutectic.models.backbone import Features
from eutectic.models.painn import PaiNN, PaiNNSettings
from eutectic.testing import generic_structures

GRAPH = GraphSettings(cutoff=6.0, max_neighbours=8)
ROTATION = Rotation.from_rotvec([0.3, -1.1, 0.7]).as_matrix()


def vectors(backbone: PaiNN, structures: list[Structure]) -> Tensor:
    with torch.no_grad():
        found = backbone(collate([build_graph(s, GRAPH) for s in structures], torch.float64)).vectors
    assert found is not None
    return found


def deviation(backbone: PaiNN, turn: np.ndarray) -> float:
    """Largest |v(R r) − R v(r)|, relative to the largest |v|."""
    structures = list(generic_structures().values())
    turned = [replace(s, positions=s.positions @ turn.T, cell=s.cell @ turn.T) for s in structures]
    before, after = vectors(backbone, structures), vectors(backbone, turned)
    expected = torch.einsum("ij,ajw->aiw", torch.from_numpy(turn), before)
    return float((after - expected).abs().max() / before.abs().max())


def painn(kind: Callable[[PaiNNSettings], PaiNN] = PaiNN) -> PaiNN:
    torch.manual_seed(0)
    return kind(PaiNNSettings.tiny().for_graphs([GRAPH])).double()


@pytest.mark.parametrize("turn", [ROTATION, -np.eye(3)], ids=["rotation", "inversion"])
def test_painns_vectors_turn_with_the_structure(turn: np.ndarray) -> None:
    backbone = painn()
    assert deviation(backbone, turn) < 1e-10
    found = vectors(backbone, list(generic_structures().values()))
    assert found.shape[1:] == (3, backbone.vector_width)
    assert float(found.abs().max()) > 1e-3


class FixedInSpace(PaiNN):
    def forward(self, graph: Graph) -> Features:
        features = super().forward(graph)
        assert features.vectors is not None
        return replace(features, vectors=features.vectors + 0.1)


@pytest.mark.parametrize("turn", [ROTATION, -np.eye(3)], ids=["rotation", "inversion"])
def test_vectors_that_do_not_turn_are_noticed(turn: np.ndarray) -> None:
    assert deviation(painn(FixedInSpace), turn) > 1e-3
