"""Fine-tuning to properties of every level and rank, on small stores with exact labels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.data import atomic_numbers, covalent_radii

from eutectic.atoms import LabelledStructure, Structure
from eutectic.checkpoints.model import load_model
from eutectic.data.card import Card
from eutectic.data.store import Store, write_store
from eutectic.graph.neighbours import neighbour_list
from eutectic.predict.prediction import predict
from eutectic.testing import tiny_store
from eutectic.train.finetune import finetune
from eutectic.train.finetune_result import FinetuneResult
from eutectic.train.settings import FinetuneSettings

ELECTRONEGATIVITY = {"H": 2.2, "C": 2.55, "N": 3.04, "O": 3.44}
METALS = [atomic_numbers[symbol] for symbol in ("Cu", "Al", "Ni", "Ag", "Fe", "W")]


def _charges(structure: Structure) -> np.ndarray:
    """Charge goes from each atom to its more electronegative neighbours; the sum is zero."""
    edges = neighbour_list([structure], 3.0)
    s, t = edges.source, edges.target
    pull = np.zeros(119)
    for symbol, value in ELECTRONEGATIVITY.items():
        pull[atomic_numbers[symbol]] = value
    z = structure.numbers
    strength = np.exp(-((edges.distance / (covalent_radii[z[s]] + covalent_radii[z[t]])) ** 2))
    charges = np.zeros(len(structure))
    np.add.at(charges, t, (pull[z[s]] - pull[z[t]]) * strength)
    return charges


def _labels_of_molecule(structure: Structure) -> dict[str, np.ndarray]:
    charges = _charges(structure)
    return {"charges": charges, "dipole": charges @ structure.positions}


def _labels_of_crystal(structure: Structure) -> dict[str, np.ndarray]:
    return {"is_metal": np.asarray(float(np.isin(structure.numbers, METALS).all()))}


def _relabelled(store: Store, path: Path, labels: Callable[[Structure], dict[str, np.ndarray]]) -> Store:
    """The same structures with other labels."""
    rows = [LabelledStructure(structure=r.structure, labels=labels(r.structure), id=r.id, group=r.group) for r in store]
    card = Card(
        name=f"{store.card.name}_relabelled",
        title="toy labels",
        domain="tests",
        properties=tuple(rows[0].labels),
        level_of_theory="a formula",
        licence="CC0-1.0",
        citation="none",
        source="tests",
    )
    write_store(path, card, rows)
    return Store(path)


@pytest.fixture(scope="module")
def crystals(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return tiny_store(tmp_path_factory.mktemp("stores") / "crystals", "crystals", 120)


@pytest.fixture(scope="module")
def charged(molecules: Store, tmp_path_factory: pytest.TempPathFactory) -> Store:
    return _relabelled(molecules, tmp_path_factory.mktemp("stores") / "charged", _labels_of_molecule)


@pytest.fixture(scope="module")
def metals(crystals: Store, tmp_path_factory: pytest.TempPathFactory) -> Store:
    return _relabelled(crystals, tmp_path_factory.mktemp("stores") / "metals", _labels_of_crystal)


def _learned(store: Store, targets: dict[str, Any], folder: Path | None = None, steps: int = 120) -> FinetuneResult:
    settings = {
        "data": {"store": str(store.path), "split": "random", "train": 60, "validation": 10, "test": 20},
        "targets": targets,
        "start": "scratch",
        "name": "any",
        "backbone": {"name": "painn", "settings": {"width": 24, "layers": 2, "cutoff": 4.0, "edge_width": 24}},
        "graph": {"cutoff": 4.0, "max_neighbours": 20},
        "optimiser": {"learning_rate": 5e-3, "warmup_steps": 5, "weight_decay": 0.0, "ema_decay": 0.9},
        "train": {"steps": steps, "batch_size": 10, "evaluate_every": steps // 4, "threads": 1, "accelerator": "cpu"},
    }
    return finetune(FinetuneSettings.model_validate(settings), folder)


def test_charges(charged: Store) -> None:
    result = _learned(charged, {"charges": {"head": {"layers": 1}}})
    assert result.unit == "e"
    assert result.test_error < 0.2 * result.baseline_error


def test_dipole_of_point_charges(charged: Store) -> None:
    result = _learned(charged, {"dipole": {"head": {"layers": 1, "pooling": "sum"}}})
    assert result.test_error < 0.15 * result.baseline_error


def test_direct_stress(crystals: Store) -> None:
    result = _learned(crystals, {"stress": {"head": {"layers": 1}}})
    assert result.test_error < 0.5 * result.baseline_error


def test_classes(metals: Store, tmp_path: Path) -> None:
    result = _learned(metals, {"is_metal": {"head": {"layers": 1}}}, tmp_path / "run", steps=60)
    assert 0.3 < result.baseline_error <= 0.5
    assert result.test_error <= 0.05
    model = load_model(tmp_path / "run" / "model")
    assert model.tasks[0].heads["is_metal"].n_classes == 2
    predictions = predict(model, "any", [row.structure for row in metals])
    probabilities = np.array([prediction["is_metal"] for prediction in predictions])
    np.testing.assert_allclose(probabilities.sum(1), 1.0)
    labels = np.array([float(row.labels["is_metal"]) for row in metals])
    assert (probabilities.argmax(1) == labels).mean() > 0.95


def test_energy_and_its_gradient(molecules: Store) -> None:
    targets = {
        "energy": {"head": {"layers": 1}},
        "forces": {"head": {"kind": "gradient_forces"}, "weight_by_size": True},
    }
    result = _learned(molecules, targets)
    assert result.test_error < 0.25 * result.baseline_error
