"""Tasks: what is fitted, how labels are laid out, what the loss is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eutectic.atoms import EutecticError, LabelledStructure, Structure
from eutectic.checkpoints.model import TrainedModel, build_backbone, elements_seen, load_model, save_model
from eutectic.data.card import Card
from eutectic.data.store import Store, write_store
from eutectic.graph import GraphSettings, build_graph
from eutectic.models.heads import HeadSettings
from eutectic.models.multitask import MultitaskModel
from eutectic.tasks import (
    Batch,
    Sample,
    TargetSettings,
    Task,
    check_targets,
    fit_task,
    make_batch,
    structure_losses,
    target_losses,
)
from eutectic.tasks.metrics import ClassErrorSum, ErrorSum, primary, roc_auc, shown
from eutectic.tasks.task import Normaliser, Target
from eutectic.train.evaluation import evaluate

GRAPH = GraphSettings(cutoff=5.0, max_neighbours=20)
TARGETS = {
    "energy": TargetSettings(head=HeadSettings(layers=1)),
    "forces": TargetSettings(head=HeadSettings(kind="direct_forces", layers=1), weight_by_size=True),
}


@pytest.fixture(scope="module")
def task(molecules: Store) -> Task:
    return fit_task("molecules", molecules, np.arange(len(molecules)), TARGETS, GRAPH)


def test_fitting_leaves_labels_of_unit_scale(task: Task, molecules: Store) -> None:
    labels = [task.normalised_labels(row) for row in molecules]
    energies = np.array([float(label["energy"]) for label in labels])
    forces = np.concatenate([label["forces"].ravel() for label in labels])
    assert np.sqrt((forces**2).mean()) == pytest.approx(1.0, rel=1e-6)
    assert energies.std() == pytest.approx(1.0, rel=1e-6)
    # −10 eV · Z per atom is gone.
    assert abs(energies.mean()) < 1.0
    assert task.targets["forces"].weight == pytest.approx(np.mean([len(row.structure) for row in molecules]))


def test_normalise_and_back(task: Task, molecules: Store) -> None:
    row = molecules[5]
    for name, value in task.normalised_labels(row).items():
        back = task.targets[name].normaliser.denormalise(value, row.structure.numbers)
        np.testing.assert_allclose(back, row.labels[name], rtol=1e-12, atol=1e-9)


def test_gradient_forces_share_one_scale(molecules: Store) -> None:
    targets = {
        "energy": TARGETS["energy"],
        "forces": TargetSettings(head=HeadSettings(kind="gradient_forces")),
    }
    task = fit_task("m", molecules, np.arange(len(molecules)), targets, GRAPH)
    assert task.targets["energy"].normaliser.scale == task.targets["forces"].normaliser.scale


def test_a_target_without_labels_is_refused_before_anything_starts(molecules: Store) -> None:
    with pytest.raises(EutecticError, match="its labels: energy"):
        fit_task("m", molecules, np.arange(8), {"stress": TargetSettings()}, GRAPH)


def test_an_element_without_reference_is_named(task: Task) -> None:
    row = LabelledStructure(
        structure=Structure(numbers=np.array([26]), positions=np.zeros((1, 3))),
        labels={"energy": np.asarray(1.0)},
        id="iron",
        group="iron",
    )
    with pytest.raises(EutecticError, match=r"iron.*Fe"):
        task.normalised_labels(row)


def test_tasks_survive_json(task: Task, molecules: Store) -> None:
    import json

    again = Task.from_dict(json.loads(json.dumps(task.to_dict())))
    assert again.targets.keys() == task.targets.keys()
    row = molecules[7]
    for name, value in again.normalised_labels(row).items():
        np.testing.assert_allclose(value, task.normalised_labels(row)[name], rtol=1e-14)


@pytest.mark.parametrize("older", [False, True])
def test_a_target_in_another_unit_is_refused(task: Task, older: bool) -> None:
    values: Any = task.to_dict()
    target = values["targets"]["energy"]
    if older:
        del target["property"]
        target["unit"] = "kcal/mol"
        message = "task 'molecules' of the model, target 'energy': learned in 'kcal/mol'; expected 'eV'"
    else:
        target["property"]["unit"] = "kcal/mol"
        message = "target 'energy': the definition energy=kcal/mol,extensive; expected energy=eV,extensive"
    with pytest.raises(EutecticError, match=message):
        Task.from_dict(values)


def _items(store: Store, task: Task, rows: range, index: int = 0) -> list[Sample]:
    return [Sample(index, build_graph(store[i].structure, GRAPH), task.normalised_labels(store[i])) for i in rows]


def test_batch_is_ordered_by_task_and_parts_fit(task: Task, molecules: Store, slabs: Store) -> None:
    other = fit_task("slabs", slabs, np.arange(len(slabs)), TARGETS, GRAPH)
    mixed = [*_items(slabs, other, range(2), 1), *_items(molecules, task, range(3))]
    batch = make_batch(mixed, [task, other])
    first, second = batch.parts
    assert first.structures == (0, 3)
    assert second.structures == (3, 5)
    assert first.atoms[1] == second.atoms[0]
    for part in batch.parts:
        owner = batch.graph.structure[slice(*part.atoms)]
        assert owner.min() == part.structures[0]
        assert owner.max() == part.structures[1] - 1
        target = batch.graph.main.target[slice(*part.edges)]
        assert part.atoms[0] <= target.min()
        assert target.max() < part.atoms[1]
    assert batch.labels["slabs"]["forces"].shape == (second.atoms[1] - second.atoms[0], 3)


def test_structure_wise_loss_by_hand() -> None:
    """Two structures of 1 and 3 atoms; the loss of each is |ΔE| + w · mean over atoms of ‖ΔF‖."""
    targets = {
        "energy": Target(TARGETS["energy"], Normaliser(None, 0.0, 1.0), 1.0),
        "forces": Target(TARGETS["forces"], Normaliser(None, 0.0, 1.0), 2.0),
    }
    task = Task("t", "none", targets, GRAPH)
    one = Structure(numbers=np.array([1]), positions=np.zeros((1, 3)))
    three = Structure(numbers=np.array([8, 1, 1]), positions=np.array([[0.0, 0, 0], [0.96, 0, 0], [0, 0.96, 0]]))
    items = [
        Sample(0, build_graph(s, GRAPH), {"energy": np.asarray(e), "forces": np.zeros((len(s), 3))})
        for s, e in ((one, 1.0), (three, -2.0))
    ]
    batch = make_batch(items, [task], torch.float64)
    forces = torch.tensor([[3.0, 4.0, 0.0], [0, 0, 6.0], [0, 0, 0], [0, 3.0, 0]], dtype=torch.float64)
    predictions = {"t": {"energy": torch.tensor([1.5, 0.0], dtype=torch.float64), "forces": forces}}
    (losses,) = structure_losses(predictions, batch, [task])
    expected = [0.5 + 2 * 5.0, 2.0 + 2 * (6.0 + 0.0 + 3.0) / 3]
    torch.testing.assert_close(losses, torch.tensor(expected, dtype=torch.float64), atol=1e-5, rtol=0)


def test_a_structure_without_a_label_changes_nothing(task: Task, molecules: Store) -> None:
    torch.manual_seed(0)
    from eutectic.models.multitask import MultitaskModel

    backbone, _ = build_backbone("painn", {"width": 16, "layers": 2, "cutoff": 5.0})
    model = MultitaskModel(backbone, {"molecules": task.heads}).double()
    items = _items(molecules, task, range(4))
    bare = [replace(items[3], labels={})]

    def gradient(chosen: list[Sample]) -> torch.Tensor:
        model.zero_grad()
        batch = make_batch(chosen, [task], torch.float64)
        torch.cat(structure_losses(model(batch.graph, batch.parts), batch, [task])).sum().backward()
        return torch.cat([p.grad.ravel() for p in model.parameters() if p.grad is not None])

    torch.testing.assert_close(gradient(items[:3] + bare), gradient(items[:3]))


def test_error_sums_and_units() -> None:
    error = ErrorSum()
    error.add(np.array([1.0, 2.0]), np.array([1.5, 2.0]), np.zeros(2))
    error.add(np.array(3.0), np.array(2.0), np.zeros(()))
    assert error.mae == pytest.approx(0.5)
    assert error.baseline_mae == pytest.approx(2.0)
    assert shown("forces", 0.25) == (250.0, "meV/Å")
    assert shown("heat_capacity", 0.25) == (0.25, "cal/(mol K)")
    assert primary(["energy", "forces"]) == "forces"


def test_model_folder_round_trip_without_pickle(task: Task, molecules: Store, tmp_path: Path) -> None:
    from eutectic.models.multitask import MultitaskModel

    settings = {"width": 16, "layers": 2, "cutoff": 5.0}
    backbone, _ = build_backbone("painn", settings)
    model = MultitaskModel(backbone, {"molecules": task.heads}).eval()
    save_model(tmp_path / "model", TrainedModel(model, (task,), "painn", settings, GRAPH, {"from": "a test"}))
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == ["model.json", "model.safetensors"]
    assert len({p.stat().st_mode for p in (tmp_path / "model").iterdir()}) == 1  # whoever reads one reads the other
    again = load_model(tmp_path / "model")
    batch = make_batch(_items(molecules, task, range(3)), [task])
    with torch.no_grad():
        expected, found = model(batch.graph, batch.parts), again.module(batch.graph, batch.parts)
    torch.testing.assert_close(found["molecules"], expected["molecules"])
    assert again.provenance == {"from": "a test"}


@pytest.mark.parametrize(
    ("provenance", "seen"),
    [
        ({}, set()),
        ({"elements": [1, 6]}, {1, 6}),
        ({"pretrained_on": {"a": {"elements": [1]}, "b": {"elements": [8, 1]}}}, {1, 8}),
        ({"elements": [6], "pretrained": {"pretrained_on": {"a": {"elements": [1, 29]}}}}, {1, 6, 29}),
        # An imported checkpoint does not say, so nothing is said of what was made from it.
        ({"pretrained_on": {"oc20": {"elements": []}}}, set()),
        ({"elements": [6], "pretrained": {"pretrained_on": {"oc20": {"elements": []}}}}, set()),
    ],
)
def test_elements_seen(task: Task, provenance: dict[str, object], seen: set[int]) -> None:
    backbone, sizes = build_backbone("painn", {"width": 8, "layers": 1}, [task.graph])
    module = MultitaskModel(backbone, {task.name: task.heads})
    model = TrainedModel(module, (task,), "painn", sizes.model_dump(), task.graph, provenance)
    assert elements_seen(model) == seen


def test_damaged_model_folders_are_refused(task: Task, tmp_path: Path) -> None:
    with pytest.raises(EutecticError, match=r"model\.json"):
        load_model(tmp_path)
    (tmp_path / "model.json").write_text('{"format": "something else"}')
    with pytest.raises(EutecticError, match="eutectic-model-3"):
        load_model(tmp_path)
    with pytest.raises(EutecticError, match="gemnet_oc"):
        build_backbone("gemnet", {})


def test_the_loss_of_one_task_leaves_the_heads_of_another_alone(task: Task, molecules: Store, slabs: Store) -> None:
    from eutectic.models.multitask import MultitaskModel

    other = fit_task("slabs", slabs, np.arange(len(slabs)), TARGETS, GRAPH)
    torch.manual_seed(0)
    backbone, _ = build_backbone("painn", {"width": 16, "layers": 2, "cutoff": 5.0})
    model = MultitaskModel(backbone, {"molecules": task.heads, "slabs": other.heads})
    batch = make_batch([*_items(molecules, task, range(2)), *_items(slabs, other, range(2), 1)], [task, other])
    mine, _ = structure_losses(model(batch.graph, batch.parts), batch, [task, other])
    mine.sum().backward()

    def size(name: str) -> float:
        gradients = [p.grad for p in model.heads[name].parameters()]
        return sum(float(g.abs().sum()) for g in gradients if g is not None)

    assert size("molecules") > 0
    assert size("slabs") == 0


def test_a_label_that_is_no_number_cannot_hide(task: Task, molecules: Store) -> None:
    """Unlike a label that is not there."""
    items = _items(molecules, task, range(2))
    items[1] = replace(items[1], labels={**items[1].labels, "energy": np.asarray(np.nan)})
    batch = make_batch(items, [task], torch.float64)
    zeros = {name: torch.zeros_like(value) for name, value in batch.labels["molecules"].items()}
    (losses,) = structure_losses({"molecules": zeros}, batch, [task])
    assert torch.isfinite(losses).tolist() == [True, False]


# --- properties of every level and rank ------------------------------------------------------------------------


def _labelled(path: Path, labels: list[dict[str, object]]) -> Store:
    """Water with these labels, one structure for each."""
    card = Card(
        name="water",
        title="water",
        domain="tests",
        properties=tuple(labels[0]),
        level_of_theory="none",
        licence="CC0-1.0",
        citation="none",
        source="tests",
    )
    positions = np.array([[0.0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
    rows = [
        LabelledStructure(
            structure=Structure(numbers=np.array([8, 1, 1]), positions=positions * (1 + 0.01 * i)),
            labels={name: np.asarray(value, dtype=float) for name, value in given.items()},
            id=f"{i}",
            group=f"{i}",
        )
        for i, given in enumerate(labels)
    ]
    write_store(path, card, rows)
    return Store(path)


def test_normalisers_of_every_level_and_rank(tmp_path: Path) -> None:
    store = _labelled(
        tmp_path / "store",
        [
            {"charges": [-0.8, 0.4, 0.4], "dipole": [3.0, 0.0, 0.0], "is_metal": 2.0, "gap": 1.0},
            {"charges": [-0.4, 0.5, 0.5], "dipole": [0.0, 0.0, 3.0], "is_metal": 0.0, "gap": 3.0},
        ],
    )
    names = ("charges", "dipole", "is_metal", "gap")
    task = fit_task("w", store, np.arange(2), {name: TargetSettings() for name in names}, GRAPH)
    charges, dipole, metal, gap = (task.targets[name] for name in names)
    every = np.array([-0.8, 0.4, 0.4, -0.4, 0.5, 0.5])
    assert (charges.normaliser.mean, charges.normaliser.scale) == pytest.approx((every.mean(), every.std()), rel=1e-6)
    assert (dipole.normaliser.mean, dipole.normaliser.scale) == pytest.approx((0.0, np.sqrt(18 / 6)))
    assert (metal.normaliser.mean, metal.normaliser.scale) == (0.0, 1.0)
    assert (gap.normaliser.mean, gap.normaliser.scale) == pytest.approx((2.0, 1.0))
    assert all(target.normaliser.references is None for target in task.targets.values())
    assert task.heads["is_metal"].n_classes == 3
    assert (task.heads["gap"].kind, task.heads["gap"].pooling) == ("scalar", "mean")
    assert Task.from_dict(task.to_dict()) == task
    np.testing.assert_allclose(metal.physical(np.log([1.0, 2.0, 5.0]), np.array([8])), [0.125, 0.25, 0.625])


def test_classes_are_counted_in_the_training_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = _labelled(tmp_path / "store", [{"is_metal": v} for v in (0.0, 0.0, 3.0)])

    def count(rows: list[int], stated: int | None = None) -> int | None:
        targets = {"is_metal": TargetSettings(head=HeadSettings(n_classes=stated))}
        return fit_task("w", store, np.array(rows), targets, GRAPH).heads["is_metal"].n_classes

    assert count([0, 1]) == 2
    assert count([0, 2]) == 4
    assert count([0, 2], 6) == 6
    with pytest.raises(EutecticError, match="n_classes 3, and a training label 3"):
        count([0, 2], 3)
    # A store takes no other labels; one that holds some all the same is refused when a task is fitted.
    with pytest.raises(EutecticError, match=r"is_metal \[0\.5\]; expected a class"):
        _labelled(tmp_path / "halves", [{"is_metal": 0.5}])
    monkeypatch.setattr(LabelledStructure, "check", lambda self, where: None)
    halves = _labelled(tmp_path / "halves", [{"is_metal": 0.0}, {"is_metal": 0.5}])
    with pytest.raises(EutecticError, match=r"label 0\.5"):
        fit_task("w", halves, np.arange(2), {"is_metal": TargetSettings()}, GRAPH)


def test_targets_are_resolved_by_the_property_table() -> None:
    found = check_targets({"energy": TargetSettings(), "is_metal": TargetSettings(), "forces": TargetSettings()})
    assert [t.loss for t in found.values()] == ["mae", "cross_entropy", "mae"]
    assert [t.head.kind for t in found.values()] == ["scalar", "class", "direct_forces"]
    assert check_targets(found) == found


@pytest.mark.parametrize(
    ("targets", "says"),
    [
        ({"force": {}}, "did you mean 'forces'"),
        ({"charges": {"head": {"kind": "scalar"}}}, "expected kind 'atom_scalar'"),
        ({"forces": {"head": {"kind": "gradient_forces"}}}, "no energy head among forces"),
        ({"is_metal": {"loss": "mae"}}, "expected cross_entropy"),
        ({"gap": {"loss": "cross_entropy"}}, "expected mae, mse or huber"),
    ],
)
def test_targets_that_do_not_fit_are_refused(targets: dict[str, dict[str, object]], says: str) -> None:
    given = {name: TargetSettings.model_validate(values) for name, values in targets.items()}
    with pytest.raises(EutecticError, match=says):
        check_targets(given)


def _with_loss(name: str, loss: str | None, n_classes: int | None = None) -> Task:
    settings = TargetSettings.model_validate({"loss": loss, "head": {"n_classes": n_classes}})
    return Task("t", "none", {name: Target(settings, Normaliser(None, 0.0, 1.0), 3.0)}, GRAPH)


def _batch(task: Task, labels: list[object]) -> Batch:
    """Two structures, of 1 and of 2 atoms; None is a missing label."""
    one = Structure(numbers=np.array([1]), positions=np.zeros((1, 3)))
    two = Structure(numbers=np.array([8, 1]), positions=np.array([[0.0, 0, 0], [0.96, 0, 0]]))
    (name,) = task.targets
    items = [
        Sample(0, build_graph(s, GRAPH), {} if y is None else {name: np.asarray(y, dtype=float)})
        for s, y in zip((one, two), labels, strict=True)
    ]
    return make_batch(items, [task], torch.float64)


@pytest.mark.parametrize(
    ("name", "loss", "labels", "predicted", "expected"),
    [
        ("gap", None, [1.0, 2.0], [1.5, 0.0], [0.5, 2.0]),
        ("gap", "mse", [1.0, 2.0], [1.5, 0.0], [0.25, 4.0]),
        ("gap", "huber", [1.0, 2.0], [1.5, 0.0], [0.125, 1.5]),
        ("gap", "huber", [None, 2.0], [1.5, 0.0], [0.0, 1.5]),
        ("charges", None, [[1.0], [0.0, 0.0]], [0.0, 3.0, -1.0], [1.0, 2.0]),
        ("charges", "mse", [[1.0], [0.0, 0.0]], [0.0, 3.0, -1.0], [1.0, 5.0]),
        ("dipole", None, [[0.0] * 3, [1.0] * 3], [[3.0, 4.0, 0.0], [1.0, 1.0, 3.0]], [5.0, 2.0]),
        ("dipole", "mse", [None, [1.0] * 3], [[3.0, 4.0, 0.0], [1.0, 1.0, 3.0]], [0.0, 4.0]),
        ("forces", "huber", [[[0.0] * 3], [[0.0] * 3] * 2], [[0.3, 0.4, 0], [3.0, 4.0, 0], [0, 0, 1]], [0.125, 2.5]),
        ("stress", None, [np.zeros((3, 3)), None], [np.full((3, 3), 2.0), np.ones((3, 3))], [6.0, 0.0]),
    ],
)
def test_losses_by_hand(
    name: str, loss: str | None, labels: list[object], predicted: list[object], expected: list[float]
) -> None:
    task = _with_loss(name, loss)
    batch = _batch(task, labels)
    predictions = {"t": {name: torch.tensor(np.asarray(predicted), dtype=torch.float64)}}
    (errors,) = target_losses(predictions, batch, [task])
    torch.testing.assert_close(errors[name], torch.tensor(expected, dtype=torch.float64), atol=1e-5, rtol=0)
    (losses,) = structure_losses(predictions, batch, [task])
    torch.testing.assert_close(losses, 3 * errors[name], atol=0, rtol=0)


def test_cross_entropy_by_hand() -> None:
    task = _with_loss("is_metal", None, 3)
    logits = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    (known,) = structure_losses({"t": {"is_metal": logits}}, _batch(task, [2.0, 0.0]), [task])
    by_hand = [np.log(np.exp([1.0, 2.0, 3.0]).sum()) - 3.0, np.log(3.0)]
    torch.testing.assert_close(known, 3 * torch.tensor(by_hand, dtype=torch.float64))
    (missing,) = structure_losses({"t": {"is_metal": logits}}, _batch(task, [None, 0.0]), [task])
    missing.sum().backward()
    assert missing[0] == 0
    assert not logits.grad[0].any()
    (wrong,) = structure_losses({"t": {"is_metal": logits}}, _batch(task, [3.0, 0.0]), [task])
    assert torch.isinf(wrong).tolist() == [True, False]


@pytest.mark.parametrize(
    ("name", "turn"), [("dipole", lambda v, r: v @ r.T), ("stress", lambda v, r: r @ v @ r.T)], ids=["dipole", "stress"]
)
@pytest.mark.parametrize("loss", ["mae", "mse", "huber"])
def test_losses_of_vectors_and_tensors_do_not_depend_on_the_axes(name: str, turn: Any, loss: str) -> None:
    rng = np.random.default_rng(0)
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    shape = (3,) if name == "dipole" else (3, 3)
    task = _with_loss(name, loss)
    truth, guess = [rng.normal(size=shape) for _ in range(2)], [rng.normal(size=shape) for _ in range(2)]
    found = []
    for change in (lambda v: v, lambda v: turn(v, rotation)):
        predictions = {"t": {name: torch.tensor(np.array([change(v) for v in guess]))}}
        found += structure_losses(predictions, _batch(task, [change(v) for v in truth]), [task])
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-5)


def test_roc_auc_counts_pairs() -> None:
    rng = np.random.default_rng(0)
    positive, score = rng.random(60) < 0.3, rng.integers(0, 8, 60) / 8
    pairs = [(a > b) + 0.5 * (a == b) for a in score[positive] for b in score[~positive]]
    assert roc_auc(positive, score) == pytest.approx(np.mean(pairs), abs=1e-12)
    assert roc_auc(positive, positive.astype(float)) == 1.0
    assert roc_auc(positive, np.ones(60)) == 0.5


def test_errors_of_classes() -> None:
    error = ClassErrorSum()
    for truth, p in ((1, 0.9), (1, 0.4), (0, 0.3), (0, 0.2), (0, 0.45)):
        error.add_class(truth, np.array([1 - p, p]))
    assert (error.metric, ErrorSum.metric) == ("error rate", "MAE")
    assert error.mae == pytest.approx(1 / 5)
    assert error.accuracy == pytest.approx(4 / 5)
    assert error.baseline_mae == pytest.approx(2 / 5)
    assert error.roc_auc == pytest.approx(5 / 6)
    one = ClassErrorSum()
    one.add_class(2, np.array([0.1, 0.3, 0.6]))
    assert (one.mae, one.baseline_mae) == (0.0, 0.0)
    assert np.isnan(one.roc_auc)


class _Fixed(torch.nn.Module):
    """Predicts the same for every batch."""

    def __init__(self, predictions: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.predictions, self.weight = predictions, torch.nn.Parameter(torch.zeros(()))

    def forward(self, graph: object, parts: object) -> dict[str, dict[str, torch.Tensor]]:
        return {"w": self.predictions}


def test_evaluation_of_every_level_and_rank() -> None:
    names = ("charges", "dipole", "is_metal", "forces")
    scales = {"charges": 0.5, "dipole": 2.0, "is_metal": 1.0, "forces": 1.0}
    task = Task("w", "none", {n: Target(TargetSettings(), Normaliser(None, 0.0, scales[n]), 1.0) for n in names}, GRAPH)
    held = Structure(
        numbers=np.array([8, 1]), positions=np.array([[0.0, 0, 0], [0.96, 0, 0]]), fixed=np.array([True, False])
    )
    labels = {
        "charges": np.array([1.0, -1.0]),
        "dipole": np.array([1.0, 0.0, 0.0]),
        "is_metal": np.array(1.0),
        "forces": np.zeros((2, 3)),
    }
    model = _Fixed(
        {
            "charges": torch.tensor([0.0, -1.0]),
            "dipole": torch.tensor([[1.0, 0.0, 3.0]]),
            "is_metal": torch.tensor([[0.0, 1.0]]),
            "forces": torch.tensor([[9.0, 9, 9], [1, 1, 1]]),
        }
    )
    found = evaluate(model, [task], [Sample(0, build_graph(held, GRAPH), labels)])["w"]
    # An atom that is held fixed has a charge, but no force to be judged by.
    assert {name: error.mae for name, error in found.items()} == pytest.approx(
        {"charges": 0.25, "dipole": 2.0, "is_metal": 0.0, "forces": 1.0}
    )
    assert {name: error.metric for name, error in found.items()} == {
        "charges": "MAE",
        "dipole": "MAE",
        "is_metal": "error rate",
        "forces": "MAE",
    }
    assert found["charges"].baseline_mae == pytest.approx(0.5)


def test_models_of_older_versions_keep_their_heads() -> None:
    """A target as formats 1 and 2 wrote it: kind and pooling are stated, and stay, whatever the property is."""
    older = {
        "settings": {"head": {"kind": "scalar", "pooling": "sum", "layers": 4}, "weight": 1.0, "weight_by_size": False},
        "normaliser": {"references": None, "mean": 0.5, "scale": 2.0},
        "weight": 1.0,
        "unit": "",
    }
    description = {
        "name": "old",
        "level_of_theory": "none",
        "graph": GRAPH.model_dump(mode="json"),
        "targets": {"gap": {**older, "unit": "eV"}, "is_metal": older},
    }
    task = Task.from_dict(description)
    assert {(h.kind, h.pooling) for h in task.heads.values()} == {("scalar", "sum")}
    assert task.targets["is_metal"].physical(np.array(1.0), np.array([1])) == 2.5
