"""PaiNN: what the conformance suite does not ask."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from eutectic.atoms import Structure
from eutectic.checkpoints.description import as_it_was
from eutectic.graph import GraphSettings, build_graph, collate
from eutectic.models.painn import PaiNN, PaiNNSettings

GRAPH = GraphSettings(cutoff=5.0, max_neighbours=10)


def _force_constant(model: PaiNN, step: float) -> float:
    """Second difference of a scalar of water along the difference of its two bonds, over step²."""
    water = np.array([[0, 0, 0.119], [0, 0.763, -0.477], [0, -0.763, -0.477]])
    bonds = water[1:] - water[0]
    along = np.concatenate([np.zeros((1, 3)), bonds * [[1], [-1]] / np.linalg.norm(bonds[0])])
    values = []
    for moved in (-step, 0, step):
        structure = Structure(numbers=np.array([8, 1, 1]), positions=water + moved * along)
        graph = collate([build_graph(structure, GRAPH)], torch.float64)
        values.append(model(graph).atoms.sum().item())
    return (values[0] - 2 * values[1] + values[2]) / step**2


@pytest.mark.parametrize(("rounding", "same"), [(0.1, True), (1e-4, False)])
def test_force_constants_of_a_symmetric_molecule_do_not_change_within_hundredths_of_an_angstrom(
    rounding: float, same: bool
) -> None:
    torch.manual_seed(0)
    model = PaiNN(PaiNNSettings(width=32, rounding=rounding).for_graphs([GRAPH])).double().eval()
    near, far = _force_constant(model, 1e-4), _force_constant(model, 0.01)
    assert (abs(near / far - 1) < 0.02) == same, (near, far)


def test_a_model_that_was_written_without_rounding_keeps_what_it_had() -> None:
    older = {"backbone": {"name": "painn", "settings": {"width": 8}}}
    assert as_it_was(older)["backbone"]["settings"]["rounding"] == 1e-4
    newer = {"backbone": {"name": "painn", "settings": {"width": 8, "rounding": 0.1}}}
    assert as_it_was(newer) == newer
