"""Linear heads in closed form, beside NumPy's solution of the same equations."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eutectic.checkpoints.model import build_backbone
from eutectic.data.store import Store, write_store
from eutectic.graph import GraphSettings, build_graph, collate
from eutectic.models.backbone import Backbone
from eutectic.tasks import TargetSettings, fit_task
from eutectic.train.batches.sampler import TaskDataset
from eutectic.train.evaluation import evaluate
from eutectic.train.ridge import PENALTIES, Ridge, fit_ridge, why_not, with_linear_heads

GRAPH = GraphSettings(cutoff=4.0)
TRAIN, VALIDATION = np.arange(60), np.arange(60, 90)


def backbone() -> Backbone:
    torch.manual_seed(0)
    return build_backbone("painn", {"width": 12, "layers": 1, "edge_width": 6}, [GRAPH])[0].double()  # type: ignore[no-any-return]


def fitted(store: Store, name: str) -> tuple[Ridge, Backbone]:
    task = fit_task("mine", store, TRAIN, {name: TargetSettings()}, GRAPH)
    assert why_not(task) == {}
    linear = with_linear_heads(task, [name])
    training, validation = (TaskDataset(0, linear, store, rows, edge_lists=("main",)) for rows in (TRAIN, VALIDATION))
    module = backbone()
    return fit_ridge(module, linear, training, validation), module


def by_hand(columns: np.ndarray, free: np.ndarray, y: np.ndarray, penalty: float) -> tuple[np.ndarray, np.ndarray]:
    """w and c by least squares on the rows themselves: √λ rows for the penalty, none for the free columns."""
    basis = np.linalg.svd(free, full_matrices=False)
    q = basis[0][:, basis[1] > 1e-8 * basis[1].max()]
    left = columns - q @ (q.T @ columns)
    scale = (left**2).sum() / left.shape[1]
    rows = np.concatenate([left, np.sqrt(penalty * scale) * np.eye(left.shape[1])])
    w = np.linalg.lstsq(rows, np.concatenate([y - q @ (q.T @ y), np.zeros(left.shape[1])]), rcond=None)[0]
    return w, np.linalg.lstsq(free, y - columns @ w, rcond=1e-10)[0]


def atom_features(module: Backbone, store: Store, row: int) -> tuple[np.ndarray, Any, Any]:
    graph = collate([build_graph(store[row].structure, GRAPH, lists=("main",))], torch.float64)
    with torch.no_grad():
        features = module(graph)
    return features.atoms.numpy(), features, graph


def weights(ridge: Ridge, name: str) -> np.ndarray:
    head = ridge.model.heads["mine"][name]  # type: ignore[index]
    return torch.cat([p.detach().reshape(-1) for p in head.parameters()]).numpy()


def test_energies_are_fitted_with_their_references(molecules: Store) -> None:
    ridge, module = fitted(molecules, "energy")
    normaliser = fit_task("mine", molecules, TRAIN, {"energy": TargetSettings()}, GRAPH).targets["energy"].normaliser
    assert normaliser.references is not None
    elements = list(normaliser.references.values)
    numbers = [molecules[int(r)].structure.numbers for r in TRAIN]
    free = np.array([[np.sum(some == z) for z in elements] for some in numbers], dtype=float)
    columns = np.stack([atom_features(module, molecules, int(r))[0].sum(0) for r in TRAIN])
    y = np.array(
        [normaliser.normalise(molecules[int(r)].labels["energy"], n) for r, n in zip(TRAIN, numbers, strict=True)]
    )
    assert ridge.penalties["energy"] in PENALTIES
    w, c = by_hand(columns, free, y, ridge.penalties["energy"])
    np.testing.assert_allclose(weights(ridge, "energy"), w, rtol=1e-5, atol=1e-7 * np.abs(w).max())
    after = ridge.task.targets["energy"].normaliser
    assert after.references is not None
    change = [after.references.values[z] - normaliser.references.values[z] for z in elements]
    np.testing.assert_allclose(free @ change, normaliser.scale * free @ c, rtol=1e-6, atol=1e-9)
    # The model predicts what the equations say.
    data = TaskDataset(0, ridge.task, molecules, VALIDATION, edge_lists=("main",))
    found = evaluate(ridge.model, [ridge.task], data.items(), keep=True)["mine"]["energy"]
    assert found.mae < 0.9 * found.baseline_mae
    row = int(VALIDATION[0])
    predicted = float(atom_features(module, molecules, row)[0].sum(0) @ w) * normaliser.scale
    predicted += after.references.of(molecules[row].structure.numbers)
    assert np.abs(np.concatenate(found.prediction) - predicted).min() < 1e-6 * abs(predicted)


def test_the_penalty_is_the_best_on_validation_structures(molecules: Store) -> None:
    ridge, module = fitted(molecules, "energy")
    normaliser = fit_task("mine", molecules, TRAIN, {"energy": TargetSettings()}, GRAPH).targets["energy"].normaliser
    assert normaliser.references is not None
    elements = list(normaliser.references.values)
    parts = []
    for rows in (TRAIN, VALIDATION):
        numbers = [molecules[int(r)].structure.numbers for r in rows]
        free = np.array([[np.sum(some == z) for z in elements] for some in numbers], dtype=float)
        columns = np.stack([atom_features(module, molecules, int(r))[0].sum(0) for r in rows])
        labels = [molecules[int(r)].labels["energy"] for r in rows]
        y = np.array([float(normaliser.normalise(v, n)) for v, n in zip(labels, numbers, strict=True)])
        parts.append((columns, free, y))
    errors = []
    for penalty in PENALTIES:
        w, c = by_hand(*parts[0], penalty)
        errors.append(np.abs(parts[1][2] - parts[1][0] @ w - parts[1][1] @ c).mean())
    assert ridge.penalties["energy"] == PENALTIES[int(np.argmin(errors))]


def test_a_mean_over_atoms_has_a_constant(molecules: Store, tmp_path: Path) -> None:
    rows = [replace(row, labels={"gap": np.asarray(1.0 + 0.1 * row.structure.numbers.mean())}) for row in molecules]
    write_store(tmp_path / "own", replace(molecules.card, properties=("gap",)), rows)
    store = Store(tmp_path / "own")
    ridge, module = fitted(store, "gap")
    before = fit_task("mine", store, TRAIN, {"gap": TargetSettings()}, GRAPH).targets["gap"].normaliser
    columns = np.stack([atom_features(module, store, int(r))[0].mean(0) for r in TRAIN])
    y = np.array([(float(store[int(r)].labels["gap"]) - before.mean) / before.scale for r in TRAIN])
    w, c = by_hand(columns, np.ones((len(y), 1)), y, ridge.penalties["gap"])
    np.testing.assert_allclose(weights(ridge, "gap"), w, rtol=1e-5, atol=1e-7 * np.abs(w).max())
    mean = ridge.task.targets["gap"].normaliser.mean
    assert mean == pytest.approx(before.mean + float(c[0]) * before.scale, rel=1e-8)


def test_direct_forces_are_linear_in_the_weights_too(molecules: Store) -> None:
    ridge, module = fitted(molecules, "forces")
    columns, y = [], []
    scale = ridge.task.targets["forces"].normaliser.scale
    for row in TRAIN:
        _, features, graph = atom_features(module, molecules, int(row))
        along = features.edges.numpy()[:, None, :] * features.directions.numpy()[:, :, None]
        summed = np.zeros((len(graph.numbers), 3, along.shape[2]))
        np.add.at(summed, graph.main.target.numpy(), along)
        columns.append(summed.reshape(-1, along.shape[2]))
        y.append(np.asarray(molecules[int(row)].labels["forces"]).reshape(-1) / scale)
    table, labels = np.concatenate(columns), np.concatenate(y)
    penalty = ridge.penalties["forces"] * (table**2).sum() / table.shape[1]
    w = np.linalg.solve(table.T @ table + penalty * np.eye(table.shape[1]), table.T @ labels)
    np.testing.assert_allclose(weights(ridge, "forces"), w, rtol=1e-5, atol=1e-7 * np.abs(w).max())


def test_what_has_no_closed_form(molecules: Store) -> None:
    targets = {
        "energy": TargetSettings(),
        "forces": TargetSettings.model_validate({"head": {"kind": "gradient_forces"}}),
    }
    assert why_not(fit_task("mine", molecules, TRAIN, targets, GRAPH)) == {
        "forces": "forces are derivatives of the energy"
    }
    largest = {"energy": TargetSettings.model_validate({"head": {"pooling": "max"}})}
    assert "largest value of an atom" in why_not(fit_task("mine", molecules, TRAIN, largest, GRAPH))["energy"]
