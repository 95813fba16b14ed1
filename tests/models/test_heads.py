"""Heads, pooling, and a model of several tasks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from ase.build import molecule
from torch import nn

from eutectic.atoms import PROPERTIES, EutecticError, Property, Structure
from eutectic.data.store import Store
from eutectic.graph import Graph, GraphSettings, build_graph, collate
from eutectic.models import Backbone
from eutectic.models.gemnet_oc import GemNetOC, GemNetOCSettings, layers
from eutectic.models.gotennet import GotenNet, GotenNetSettings
from eutectic.models.heads import FROM_VECTORS, HEADS, HeadSettings, check_head, pool, resolve
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


def test_pooling_of_vectors_and_tensors_is_that_of_their_components() -> None:
    values, structure = torch.randn(5, 3, 3, dtype=torch.float64), torch.tensor([0, 0, 0, 1, 1])
    for how in ("sum", "mean", "max"):
        found = pool(values, structure, 2, how)
        for i in range(3):
            for j in range(3):
                torch.testing.assert_close(found[:, i, j], pool(values[:, i, j], structure, 2, how))


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


def _gemnet() -> Backbone:
    torch.manual_seed(1)
    return GemNetOC(GemNetOCSettings.tiny().model_copy(update={"atom_width": 16, "edge_width": 16})).double()


@pytest.mark.parametrize("backbone", [_backbone, _gemnet], ids=["painn", "gemnet_oc"])
def test_gradient_forces_agree_with_finite_differences(molecules: Store, backbone: Callable[[], Backbone]) -> None:
    heads = {"energy": HeadSettings(layers=1), "forces": HeadSettings(kind="gradient_forces")}
    model = MultitaskModel(backbone(), {"a": heads}).double()
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


# --- every kind of head ----------------------------------------------------------------------------------------

OPEN = GraphSettings(cutoff=4.0, max_neighbours=60)
"""No list is cut short, so that symmetry is exact."""

EVERY_HEAD = {
    **{
        f"{kind} {pooling}": HeadSettings(
            kind=kind, pooling=pooling, layers=1, n_classes=3 if kind == "class" else None
        )
        for kind, entry in HEADS.items()
        for pooling in (entry.poolings or ("sum",))
        if entry.module is not None
    },
    "energy": HeadSettings(layers=1),
    "forces": HeadSettings(kind="gradient_forces"),
    "stress": HeadSettings(kind="gradient_stress"),
}


def _gotennet() -> Backbone:
    torch.manual_seed(1)
    return GotenNet(GotenNetSettings.tiny().model_copy(update={"cutoff": 4.0})).double()


def _model(backbone: Callable[[], Backbone]) -> MultitaskModel:
    built = backbone()
    torch.manual_seed(2)
    return MultitaskModel(built, {"a": _fitting(built)}).double().eval()


def _fitting(backbone: Backbone) -> dict[str, HeadSettings]:
    """Every head that the backbone has features for."""
    return {
        name: head
        for name, head in EVERY_HEAD.items()
        if backbone.vector_width or "vectors" not in HEADS[head.kind or "scalar"].needs
    }


def _rows(model: MultitaskModel, structures: list[Structure]) -> dict[str, torch.Tensor]:
    graph = collate([build_graph(s, OPEN) for s in structures], torch.float64)
    part = TaskSlice("a", (0, len(structures)), (0, len(graph.numbers)), (0, len(graph.main)))
    return {name: value.detach() for name, value in model(graph, [part])["a"].items()}


def _ethanol() -> Structure:
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.05, seed=3)
    return Structure.from_ase(atoms)


def _entry(name: str) -> tuple[str, int, bool]:
    """Level, rank and whether a supercell has twice the value."""
    settings = EVERY_HEAD[name]
    entry = resolve(settings, PROPERTIES[name] if name in PROPERTIES else PROPERTIES["energy"]).entry
    extensive = name == "energy" or (bool(entry.poolings) and settings.pooling == "sum")
    return entry.level, entry.rank, extensive


def _turned(value: torch.Tensor, rank: int, turn: torch.Tensor) -> torch.Tensor:
    return value if rank == 0 else value @ turn.T if rank == 1 else turn @ value @ turn.T


@pytest.fixture(scope="module", params=[_backbone, _gotennet, _gemnet], ids=["painn", "gotennet", "gemnet_oc"])
def everything(request: pytest.FixtureRequest) -> MultitaskModel:
    return _model(request.param)


def test_every_kind_is_tested_and_none_gives_nothing(everything: MultitaskModel) -> None:
    found = _rows(everything, [_crystal()])
    assert {head.kind or "scalar" for head in EVERY_HEAD.values()} == set(HEADS)
    assert found.keys() == _fitting(everything.backbone).keys()
    for name, value in found.items():
        level, rank, _ = _entry(name)
        shape = (4 if level == "atom" else 1, *[3] * rank, *[3] * name.startswith("class"))
        assert value.shape == shape, name
        assert value.abs().min() > 1e-9, name


@pytest.mark.parametrize("improper", [False, True], ids=["rotation", "inversion"])
def test_heads_turn_with_the_structure(everything: MultitaskModel, improper: bool) -> None:
    turn = np.linalg.qr(np.random.default_rng(5).normal(size=(3, 3)))[0]
    turn *= np.linalg.det(turn) * (-1 if improper else 1)
    for structure in (_crystal(), _ethanol()):
        moved = replace(structure, positions=structure.positions @ turn.T, cell=structure.cell @ turn.T)
        before, after = _rows(everything, [structure]), _rows(everything, [moved])
        for name, value in before.items():
            expected = _turned(value, _entry(name)[1], torch.from_numpy(turn))
            torch.testing.assert_close(after[name], expected, rtol=1e-8, atol=1e-9, msg=name)


def test_heads_do_not_mind_the_order_of_atoms(everything: MultitaskModel) -> None:
    for structure in (_crystal(), _ethanol()):
        order = np.random.default_rng(1).permutation(len(structure))
        other = replace(
            structure,
            **{name: getattr(structure, name)[order] for name in ("numbers", "positions", "tags", "fixed")},
        )
        before, after = _rows(everything, [structure]), _rows(everything, [other])
        for name, value in before.items():
            expected = value[torch.from_numpy(order)] if _entry(name)[0] == "atom" else value
            torch.testing.assert_close(after[name], expected, rtol=1e-8, atol=1e-9, msg=name)


def test_a_supercell_has_twice_what_is_extensive(everything: MultitaskModel) -> None:
    one = _crystal()
    two = Structure(
        numbers=np.tile(one.numbers, 2),
        positions=np.concatenate([one.positions, one.positions + one.cell[1]]),
        cell=one.cell * np.array([[1.0], [2.0], [1.0]]),
        pbc=one.pbc,
    )
    single, double = _rows(everything, [one]), _rows(everything, [two])
    for name, value in single.items():
        level, _, extensive = _entry(name)
        expected = torch.cat([value, value]) if level == "atom" else value * (2 if extensive else 1)
        torch.testing.assert_close(double[name], expected, rtol=1e-8, atol=1e-9, msg=name)


def test_a_batch_of_structures_is_each_of_them(everything: MultitaskModel) -> None:
    structures = [_ethanol(), _crystal(), Structure(numbers=np.array([10]), positions=np.zeros((1, 3)))]
    together, alone = _rows(everything, structures), [_rows(everything, [s]) for s in structures]
    for name, value in together.items():
        expected = torch.cat([found[name] for found in alone])
        torch.testing.assert_close(value, expected, rtol=1e-8, atol=1e-9, msg=name)


def test_a_tensor_is_symmetric_and_its_trace_comes_from_the_atoms(everything: MultitaskModel) -> None:
    for name in (name for name in everything.heads["a"] if name.startswith("tensor")):
        (value,) = _rows(everything, [_crystal()])[name]
        torch.testing.assert_close(value, value.T, rtol=0, atol=1e-12)
        head = everything.heads["a"][name]
        with torch.no_grad():
            kept = head.isotropic[-1].weight.clone()
            head.isotropic[-1].weight.zero_()
            (traceless,) = _rows(everything, [_crystal()])[name]
            head.isotropic[-1].weight.copy_(kept)
        assert abs(traceless.trace()) < 1e-12 < abs(value.trace())


def test_rescaling_a_head_rescales_all_that_it_predicts() -> None:
    model = _model(_backbone)
    before = _rows(model, [_crystal()])
    for head in model.heads["a"].children():
        head.rescale(2.5)
    after = _rows(model, [_crystal()])
    for name, value in before.items():
        torch.testing.assert_close(after[name], 2.5 * value, msg=name)


def test_a_compiler_gets_every_perceptron(monkeypatch: pytest.MonkeyPatch) -> None:
    model, compiled = _model(_backbone), set()
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: compiled.add(self))
    model.compile_parts()
    assert {m for m in model.heads.modules() if isinstance(m, nn.Sequential)} == compiled - {model.backbone}
    parameters = {p for module in compiled for p in module.parameters()}
    assert parameters == set(model.parameters())


def test_a_kind_of_head_without_rows_has_a_zero_gradient() -> None:
    model = MultitaskModel(_backbone(), {"a": EVERY_HEAD, "b": EVERY_HEAD}).double()
    graph = collate([build_graph(_crystal(), OPEN)], torch.float64)
    found = model(graph, [TaskSlice("a", (0, 0), (0, 0), (0, 0)), TaskSlice("b", (0, 1), (0, 4), (0, len(graph.main)))])
    sum(value.sum() for task in found.values() for value in task.values()).backward()  # type: ignore[union-attr]
    for name, parameter in model.heads["a"].named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name


# --- what follows from the property ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind", "pooling"),
    [
        ("energy", "scalar", "sum"),
        ("u0", "scalar", "sum"),
        ("gap", "scalar", "mean"),
        ("forces", "direct_forces", "sum"),
        ("charges", "atom_scalar", "sum"),
        ("stress", "tensor", "mean"),
        ("is_metal", "class", "mean"),
    ],
)
def test_kind_and_pooling_follow_from_the_property(name: str, kind: str, pooling: str) -> None:
    found = resolve(HeadSettings(layers=2), PROPERTIES[name])
    assert (found.kind, found.pooling, found.layers) == (kind, pooling, 2)
    assert resolve(found, PROPERTIES[name]) == found
    check_head(found, PROPERTIES[name])


def test_every_known_property_has_a_head() -> None:
    for prop in PROPERTIES.values():
        check_head(resolve(HeadSettings(), prop), prop)


def test_a_property_that_no_head_predicts_is_refused() -> None:
    tensor = Property(name="shielding", level="atom", rank=2, unit="ppm")
    with pytest.raises(EutecticError, match="a tensor of the atom, which no head can predict"):
        resolve(HeadSettings(), tensor)


@pytest.mark.parametrize(
    ("name", "head", "says"),
    [
        ("charges", {"kind": "scalar"}, "charges is a scalar of the atom; expected kind 'atom_scalar'"),
        ("dipole", {"kind": "direct_forces"}, "expected kind 'vector'"),
        ("gap", {"kind": "gradient_forces"}, "predicts forces only"),
        ("is_metal", {"kind": "scalar"}, "expected kind 'class'"),
        ("stress", {"kind": "direct_stress"}, "did you mean 'gradient_stress'"),
        ("dipole", {"pooling": "max"}, "one of sum, mean"),
        ("gap", {"n_classes": 3}, "only for 'class' heads"),
    ],
)
def test_heads_that_do_not_fit_are_refused(name: str, head: dict[str, object], says: str) -> None:
    with pytest.raises(EutecticError, match=says):
        check_head(resolve(HeadSettings.model_validate(head), PROPERTIES[name]), PROPERTIES[name])


@pytest.mark.parametrize("name", ["forces", "dipole", "stress"])
def test_heads_of_edges_need_edge_features(name: str) -> None:
    bare = [
        PaiNN(PaiNNSettings(width=8, layers=1, edge_width=0, cutoff=5.0)),
        GemNetOC(GemNetOCSettings.tiny().model_copy(update={"edge_features": False})),
    ]
    for backbone in bare:
        with pytest.raises(EutecticError, match="a backbone without edge features") as error:
            MultitaskModel(backbone, {"a": {name: HeadSettings()}})
        of_vectors = HeadSettings(kind=FROM_VECTORS[str(resolve(HeadSettings(), PROPERTIES[name]).kind)])
        if backbone.vector_width:
            assert repr(of_vectors.kind) in str(error.value)
            MultitaskModel(backbone, {"a": {name: of_vectors}})
        else:
            with pytest.raises(EutecticError, match="without atom vectors"):
                MultitaskModel(backbone, {"a": {name: of_vectors}})
        MultitaskModel(backbone, {"a": {"energy": HeadSettings(), "forces": HeadSettings(kind="gradient_forces")}})


def test_a_derivative_needs_an_energy() -> None:
    with pytest.raises(EutecticError, match="no energy head among forces"):
        MultitaskModel(_backbone(), {"a": {"forces": HeadSettings(kind="gradient_forces")}})
