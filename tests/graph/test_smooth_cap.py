"""Edges that fade out: nothing jumps when neighbours change places at a cap or leave at the cutoff."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from ase.build import bulk
from pydantic import ValidationError

from eutectic.atoms import Structure
from eutectic.graph import Graph, GraphSettings, build_graph, collate
from eutectic.models import Backbone
from eutectic.models.gemnet_oc import GemNetOC, GemNetOCSettings
from eutectic.models.heads import HeadSettings
from eutectic.models.multitask import MultitaskModel, TaskSlice
from eutectic.models.painn import PaiNN, PaiNNSettings

HARD = GraphSettings(cutoff=5.0, max_neighbours=5, quadruplet_neighbours=3, atom_edge_neighbours=4)
SMOOTH = HARD.model_copy(update={"smooth_cap": 0.8})


def _at(t: float, periodic: bool) -> Structure:
    """Nine atoms, one of which walks through the others; some leave each other's nearest, some the cutoff."""
    rng = np.random.default_rng(4)
    grid = np.stack(np.meshgrid(*[np.arange(2)] * 3), axis=-1).reshape(-1, 3)
    positions = np.concatenate([2.3 * grid + rng.uniform(-0.3, 0.3, (8, 3)), [[-2.0 + 6.0 * t, 1.1, 1.3]]])
    cell = np.diag([6.0, 6.2, 6.4]) if periodic else np.zeros((3, 3))
    return Structure(
        numbers=rng.integers(1, 9, 9), positions=positions, cell=cell, pbc=np.full(3, periodic), tags=np.full(9, 2)
    )


def _gemnet() -> Backbone:
    return GemNetOC(GemNetOCSettings.tiny().model_copy(update={"atom_width": 16, "edge_width": 16}))


def _painn() -> Backbone:
    return PaiNN(PaiNNSettings(width=16, layers=2, cutoff=6.0, edge_width=16))


def _model(make: Callable[[], Backbone]) -> MultitaskModel:
    torch.manual_seed(0)
    heads = {"energy": HeadSettings(layers=1), "forces": HeadSettings(kind="direct_forces", layers=1)}
    model = MultitaskModel(make(), {"a": heads}).double()
    with torch.no_grad():
        for parameter in model.heads.parameters():
            parameter.uniform_(-0.5, 0.5)  # biases as well: a head says something even of nothing
    return model.eval()


def _predict(model: MultitaskModel, graph: Graph, conservative: bool = False) -> dict[str, torch.Tensor]:
    part = TaskSlice("a", (0, 1), (0, len(graph.numbers)), (0, len(graph.main)))
    return {name: value.detach() for name, value in model(graph, [part], conservative=conservative)["a"].items()}


def _largest_step(model: MultitaskModel, settings: GraphSettings, points: int, periodic: bool, name: str) -> float:
    graphs = [build_graph(_at(t, periodic), settings) for t in np.linspace(0.2, 0.3, points)]
    graph = collate(graphs, torch.float64)
    part = TaskSlice("a", (0, points), (0, len(graph.numbers)), (0, len(graph.main)))
    values = model(graph, [part])["a"][name].detach().view(points, -1)
    return float((values[1:] - values[:-1]).abs().max())


@pytest.mark.parametrize("periodic", [False, True], ids=["molecule", "crystal"])
@pytest.mark.parametrize("make", [_gemnet, _painn], ids=["gemnet_oc", "painn"])
@pytest.mark.parametrize("name", ["energy", "forces"])
def test_continuous_where_the_plain_cap_jumps(name: str, make: Callable[[], Backbone], periodic: bool) -> None:
    model = _model(make)
    coarse, fine = (_largest_step(model, HARD, n, periodic, name) for n in (41, 161))
    assert fine > 0.6 * coarse, "steps four times as small do not make a jump smaller"
    coarse, fine = (_largest_step(model, SMOOTH, n, periodic, name) for n in (41, 161))
    assert fine < 0.4 * coarse


@pytest.mark.parametrize("make", [_gemnet, _painn], ids=["gemnet_oc", "painn"])
def test_forces_and_stress_know_how_the_ends_of_lists_move(make: Callable[[], Backbone]) -> None:
    model = _model(make)
    start = _at(0.25, periodic=True)
    derived = _predict(model, collate([build_graph(start, SMOOTH)], torch.float64), conservative=True)
    h = 1e-5
    for atom, axis in ((8, 0), (3, 1), (0, 2)):
        energies = []
        for sign in (1, -1):
            positions = start.positions.copy()
            positions[atom, axis] += sign * h
            moved = Structure(
                numbers=start.numbers, positions=positions, cell=start.cell, pbc=start.pbc, tags=start.tags
            )
            energies.append(_predict(model, collate([build_graph(moved, SMOOTH)], torch.float64))["energy"].item())
        slope = (energies[0] - energies[1]) / (2 * h)
        assert derived["forces"][atom, axis].item() == pytest.approx(-slope, rel=1e-4, abs=1e-6)


def _weights(structure: Structure, settings: GraphSettings, name: str = "main") -> torch.Tensor:
    graph = collate([build_graph(structure, settings)], torch.float64)
    distance, _ = graph.vectors(getattr(graph, name))
    weights = graph.edge_envelope(name, distance)
    assert weights is not None
    return weights


def _sodium_chloride(rattle: float = 0.0) -> Structure:
    atoms = bulk("NaCl", "rocksalt", a=5.64) * (2, 2, 2)
    positions = atoms.positions + np.random.default_rng(0).normal(0, rattle, atoms.positions.shape)
    return Structure(numbers=atoms.numbers, positions=positions, cell=atoms.cell.array, pbc=np.full(3, True))


@pytest.mark.parametrize("rattle", [0.0, 0.1])
@pytest.mark.parametrize("cap", [3, 6, 12, 18, 30])
def test_weights_sum_to_half_less_than_the_cap(cap: int, rattle: float) -> None:
    """Where there are enough neighbours; also if a whole shell of them is equally far."""
    settings = GraphSettings(cutoff=8.0, max_neighbours=cap, smooth_cap=0.5, atom_atom_neighbours=cap)
    graph = build_graph(_sodium_chloride(rattle), settings)
    weights = _weights(graph.structure, settings, "atom_atom").numpy()
    sums = np.bincount(graph.atom_atom.target, weights, minlength=16)
    np.testing.assert_allclose(sums, cap - 0.5, atol=1e-8)


def test_equal_neighbours_have_equal_weights() -> None:
    """Worked by hand: 6 chlorine ions at 2.82 Å and 12 sodium ions at 3.99 Å; of 11.5, 6 + 12 · 0.4583."""
    settings = GraphSettings(cutoff=6.0, max_neighbours=12, smooth_cap=0.5, atom_atom_neighbours=12)
    graph = build_graph(_sodium_chloride(), settings)
    weights = _weights(graph.structure, settings, "atom_atom")
    assert len(weights) == 16 * 18
    far = torch.from_numpy(graph.atom_atom.distance) > 3.0
    torch.testing.assert_close(weights[~far], torch.ones(16 * 6, dtype=torch.float64))
    torch.testing.assert_close(weights[far], torch.full((16 * 12,), 5.5 / 12, dtype=torch.float64))


def test_few_neighbours_fade_out_before_the_cutoff() -> None:
    """With one neighbour and a cap of two, the list ends between c − f and c, and earlier the closer the neighbour."""
    settings = GraphSettings(cutoff=5.0, max_neighbours=2, smooth_cap=0.8)
    found = []
    for d in (3.0, 4.5, 4.9, 4.999, 5.0):
        pair = Structure(numbers=np.array([1, 1]), positions=np.array([[0, 0, 0], [d, 0, 0]]))
        weights = _weights(pair, settings, "main")
        found.append(float(weights[0]) if len(weights) else 0.0)
    assert found[0] == 1.0
    assert found == sorted(found, reverse=True)
    assert found[-1] == 0.0


def test_first_and_second_derivatives_of_the_weights() -> None:
    """By autograd and by differences, for atoms of which several fade out at once."""
    settings = GraphSettings(cutoff=6.0, max_neighbours=12, smooth_cap=0.5)
    graph = collate([build_graph(_sodium_chloride(0.1), settings)], torch.float64)

    def weights(positions: torch.Tensor) -> torch.Tensor:
        moved = graph.with_positions(positions)
        weight = moved.edge_envelope("main", moved.vectors(moved.main)[0])
        assert weight is not None
        return weight[::7]

    positions = graph.positions.clone().requires_grad_()
    assert torch.autograd.gradcheck(weights, (positions,), fast_mode=True)
    assert torch.autograd.gradgradcheck(weights, (positions,), fast_mode=True)


@pytest.mark.parametrize("make", [_gemnet, _painn], ids=["gemnet_oc", "painn"])
def test_forces_have_no_kink_where_neighbours_change_rank(make: Callable[[], Backbone]) -> None:
    """Steps a quarter as long change the forces a quarter as much, and their slope too."""
    model = _model(make)

    def largest_change_of_slope(points: int) -> float:
        graphs = [build_graph(_at(t, periodic=True), SMOOTH) for t in np.linspace(0.2, 0.3, points)]
        graph = collate(graphs, torch.float64)
        part = TaskSlice("a", (0, points), (0, len(graph.numbers)), (0, len(graph.main)))
        forces = model(graph, [part], conservative=True)["a"]["forces"].detach().view(points, -1)
        slopes = forces.diff(dim=0) * (points - 1)
        return float(slopes.diff(dim=0).abs().max())

    coarse, fine = largest_change_of_slope(41), largest_change_of_slope(161)
    assert fine < 0.45 * coarse


def test_far_from_every_end_nothing_changes() -> None:
    water = Structure(numbers=np.array([8, 1, 1]), positions=np.array([[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0.1]]))
    model = _model(_gemnet)
    hard, smooth = (_predict(model, collate([build_graph(water, s)], torch.float64)) for s in (HARD, SMOOTH))
    torch.testing.assert_close(smooth, hard, rtol=1e-12, atol=1e-12)


def test_a_batch_of_both_equals_singles() -> None:
    model = _model(_gemnet)
    structures = [(_at(0.22, True), SMOOTH), (_at(0.27, False), HARD), (_at(0.29, False), SMOOTH)]
    graphs = [build_graph(s, settings) for s, settings in structures]
    together = collate(graphs, torch.float64)
    part = TaskSlice("a", (0, 3), (0, len(together.numbers)), (0, len(together.main)))
    energies = model(together, [part])["a"]["energy"]
    for energy, graph in zip(energies, graphs, strict=True):
        alone = _predict(model, collate([graph], torch.float64))["energy"]
        torch.testing.assert_close(energy.detach(), alone[0], rtol=1e-10, atol=1e-12)


def test_the_published_rule_cannot_be_smooth() -> None:
    with pytest.raises(ValidationError, match="needs symmetry 'union'"):
        GraphSettings(smooth_cap=0.5, symmetry="lower_source")
