"""Tasks: what is fitted, how labels are laid out, what the loss is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from eutectic.atoms import EutecticError, LabelledStructure, Structure
from eutectic.checkpoints.model import TrainedModel, build_backbone, elements_seen, load_model, save_model
from eutectic.data.store import Store
from eutectic.graph import GraphSettings, build_graph
from eutectic.models.heads import HeadSettings
from eutectic.models.multitask import MultitaskModel
from eutectic.tasks import Sample, TargetSettings, Task, fit_task, make_batch, structure_losses
from eutectic.tasks.metrics import ErrorSum, primary, shown

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
    with pytest.raises(EutecticError, match="labels there: energy"):
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
    from eutectic.tasks.task import Normaliser, Target

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
    with pytest.raises(EutecticError, match="eutectic-model-2"):
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
