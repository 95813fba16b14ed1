"""Heads, pooling, and a model of several tasks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from eutectic.atoms import Structure
from eutectic.data.store import Store
from eutectic.graph import Graph, GraphSettings, build_graph, collate
from eutectic.models import Backbone
from eutectic.models.gemnet_oc import GemNetOC, GemNetOCSettings, layers
from eutectic.models.heads import HeadSettings, pool
from eutectic.models.multitask import MultitaskModel, TaskSlice
from eutectic.models.painn import PaiNN, PaiNNSettings

GRAPH = GraphSettings(cutoff=5.0, max_neighbours=50)


def _backbone() -> PaiNN:
    torch.manual_seed(0)
    return PaiNN(PaiNNSettings(width=16, layers=2, cutoff=5.0)).double()


@pytest.mark.parametrize(("how", "expected"), [("sum", [3.0, 5.0]), ("mean", [1.5, 5.0]), ("max", [2.0, 5.0])])
def test_pooling_by_hand(how: str, expected: list[float]) -> None:
    values = torch.tensor([1.0, 2.0, 5.0])
    assert pool(values, torch.tensor([0, 0, 1]), 2, how).tolist() == expected


def _two_tasks(molecules: Store, slabs: Store) -> tuple[MultitaskModel, object, list[TaskSlice]]:
    heads = {"energy": HeadSettings(layers=1), "forces": HeadSettings(kind="direct_forces", layers=1)}
    model = MultitaskModel(_backbone(), {"a": heads, "b": heads}).double()
    first = [build_graph(molecules[i].structure, GRAPH) for i in range(3)]
    second = [build_graph(slabs[i].structure, GRAPH) for i in range(2)]
    graph = collate([*first, *second], torch.float64)
    atoms, edges = sum(len(g.structure) for g in first), sum(len(g.main) for g in first)
    parts = [
        TaskSlice("a", (0, 3), (0, atoms), (0, edges)),
        TaskSlice("b", (3, 5), (atoms, len(graph.numbers)), (edges, len(graph.main))),
    ]
    return model, graph, parts


def test_each_head_sees_its_own_rows_alone(molecules: Store, slabs: Store) -> None:
    model, graph, parts = _two_tasks(molecules, slabs)
    predictions = model(graph, parts)
    assert predictions["a"]["energy"].shape == (3,)
    assert predictions["b"]["energy"].shape == (2,)
    assert predictions["b"]["forces"].shape == (parts[1].atoms[1] - parts[1].atoms[0], 3)
    alone = collate([build_graph(slabs[i].structure, GRAPH) for i in range(2)], torch.float64)
    whole = TaskSlice("b", (0, 2), (0, len(alone.numbers)), (0, len(alone.main)))
    none = TaskSlice("a", (0, 0), (0, 0), (0, 0))
    again = model(alone, [none, whole])
    assert again["a"]["energy"].shape == (0,)
    torch.testing.assert_close(again["b"]["energy"], predictions["b"]["energy"])
    torch.testing.assert_close(again["b"]["forces"], predictions["b"]["forces"])


def test_one_tasks_loss_leaves_the_others_heads_alone(molecules: Store, slabs: Store) -> None:
    model, graph, parts = _two_tasks(molecules, slabs)
    predictions = model(graph, parts)
    (predictions["a"]["energy"].sum() + predictions["a"]["forces"].pow(2).sum()).backward()
    assert all(p.grad is None or not p.grad.any() for p in model.heads["b"].parameters())
    assert all(p.grad is not None and p.grad.any() for p in model.heads["a"].parameters())


def test_a_task_without_rows_still_has_a_zero_gradient(molecules: Store) -> None:
    # Data-parallel processes wait for each other's gradients: none may be missing.
    heads = {"energy": HeadSettings(layers=1), "forces": HeadSettings(kind="direct_forces", layers=1)}
    model = MultitaskModel(_backbone(), {"a": heads, "b": heads}).double()
    graph = collate([build_graph(molecules[0].structure, GRAPH)], torch.float64)
    parts = [
        TaskSlice("a", (0, 0), (0, 0), (0, 0)),
        TaskSlice("b", (0, 1), (0, len(graph.numbers)), (0, len(graph.main))),
    ]
    predictions = model(graph, parts)
    sum(value.sum() for task in predictions.values() for value in task.values()).backward()  # type: ignore[union-attr]
    for parameter in model.heads["a"].parameters():
        assert parameter.grad is not None
        assert not parameter.grad.any()


def test_gradient_forces_agree_with_finite_differences(molecules: Store) -> None:
    heads = {"energy": HeadSettings(layers=1), "forces": HeadSettings(kind="gradient_forces")}
    model = MultitaskModel(_backbone(), {"a": heads}).double()
    graph = collate([build_graph(molecules[3].structure, GRAPH)], torch.float64)
    part = [TaskSlice("a", (0, 1), (0, len(graph.numbers)), (0, len(graph.main)))]
    forces = model(graph, part)["a"]["forces"]
    h = 1e-4
    for atom, axis in ((0, 0), (2, 1), (len(graph.numbers) - 1, 2)):
        step = torch.zeros_like(graph.positions)
        step[atom, axis] = h
        plus = model(graph.with_positions(graph.positions + step), part)["a"]["energy"]
        minus = model(graph.with_positions(graph.positions - step), part)["a"]["energy"]
        assert forces[atom, axis].item() == pytest.approx(-(plus - minus).item() / (2 * h), rel=1e-6, abs=1e-8)


def test_gradient_forces_can_be_trained_on_and_used_without_grad(molecules: Store) -> None:
    heads = {"energy": HeadSettings(layers=1), "forces": HeadSettings(kind="gradient_forces")}
    model = MultitaskModel(_backbone(), {"a": heads}).double()
    graph = collate([build_graph(molecules[3].structure, GRAPH)], torch.float64)
    part = [TaskSlice("a", (0, 1), (0, len(graph.numbers)), (0, len(graph.main)))]
    model(graph, part)["a"]["forces"].pow(2).sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in model.backbone.parameters())
    with torch.no_grad():
        assert not model.eval()(graph, part)["a"]["forces"].requires_grad


def _crystal() -> Structure:
    rng = np.random.default_rng(2)
    positions = 3.9 * np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
    return Structure(
        numbers=np.array([29, 79, 29, 8]),
        positions=positions + rng.uniform(-0.1, 0.1, (4, 3)),
        cell=3.9 * np.eye(3) + rng.uniform(-0.2, 0.2, (3, 3)),
        pbc=np.ones(3, dtype=bool),
    )


def _derived(backbone: Backbone) -> tuple[MultitaskModel, Graph, list[TaskSlice]]:
    heads = {
        "energy": HeadSettings(layers=1),
        "forces": HeadSettings(kind="gradient_forces"),
        "stress": HeadSettings(kind="gradient_stress"),
    }
    model = MultitaskModel(backbone, {"a": heads}).double()
    water = Structure(numbers=np.array([8, 1, 1]), positions=np.array([[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0.1]]))
    graph = collate([build_graph(s, GRAPH) for s in (_crystal(), water)], torch.float64)
    return model, graph, [TaskSlice("a", (0, 2), (0, len(graph.numbers)), (0, len(graph.main)))]


def _gemnet() -> Backbone:
    torch.manual_seed(1)
    return GemNetOC(GemNetOCSettings.tiny().model_copy(update={"atom_width": 16, "edge_width": 16})).double()


@pytest.mark.parametrize("backbone", [_backbone, _gemnet], ids=["painn", "gemnet_oc"])
def test_stress_is_the_energy_by_strain_and_volume(backbone: Callable[[], Backbone]) -> None:
    model, graph, parts = _derived(backbone())
    stress = model(graph, parts)["a"]["stress"]
    assert not stress[1].any(), "a molecule has none"
    torch.testing.assert_close(stress[0], stress[0].mT, rtol=1e-9, atol=1e-12)
    volume = torch.linalg.det(graph.cell[0]).abs().item()
    h = 1e-5
    for i, j in ((0, 0), (1, 2), (2, 0)):
        strain = torch.zeros(2, 3, 3, dtype=torch.float64)
        strain[0, i, j] = strain[0, j, i] = h
        plus, minus = (model(graph.strained(sign * strain), parts)["a"]["energy"][0].item() for sign in (1, -1))
        twice = 1 if i == j else 2  # both entries of the tensor were moved
        assert stress[0, i, j].item() == pytest.approx((plus - minus) / (2 * h * volume * twice), rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("backbone", [_backbone, _gemnet], ids=["painn", "gemnet_oc"])
@pytest.mark.parametrize("small", [0, layers.SMALL], ids=["made again", "kept"])
def test_derivatives_of_the_energy_can_be_learned_from(
    backbone: Callable[[], Backbone], small: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """∂/∂w of forces and stress, by differences of the weight."""
    monkeypatch.setattr(layers, "SMALL", small)
    model, graph, parts = _derived(backbone())

    def loss() -> torch.Tensor:
        found = model(graph, parts)["a"]
        return found["forces"].square().sum() + 100 * found["stress"].square().sum()

    loss().backward()
    weights = [p for p in model.parameters() if p.grad is not None and p.grad.abs().max() > 1e-6]
    assert len(weights) > 10
    for weight in weights[:: len(weights) // 6]:
        place = int(weight.grad.abs().argmax())
        expected, h = weight.grad.flatten()[place].item(), 1e-5
        values = []
        for step in (h, -2 * h):
            with torch.no_grad():
                weight.view(-1)[place] += step
            values.append(loss().item())
        with torch.no_grad():
            weight.view(-1)[place] += h
        assert (values[0] - values[1]) / (2 * h) == pytest.approx(expected, rel=1e-4)


def test_conservative_forces_replace_a_heads_own(molecules: Store, slabs: Store) -> None:
    model, graph, parts = _two_tasks(molecules, slabs)
    model.eval()
    direct, derived = model(graph, parts), model(graph, parts, conservative=True)
    for task in ("a", "b"):
        torch.testing.assert_close(derived[task]["energy"], direct[task]["energy"])
        assert not torch.allclose(derived[task]["forces"], direct[task]["forces"])
        total = derived[task]["forces"].sum(0)
        torch.testing.assert_close(total, torch.zeros_like(total), atol=1e-8, rtol=0)
    assert derived["b"]["stress"].shape == (2, 3, 3)
