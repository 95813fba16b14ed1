"""The memory of a prediction, estimated beforehand."""

from __future__ import annotations

import logging
import os

import numpy as np
import pytest
from ase.build import bulk

from eutectic.atoms import EutecticError, Structure
from eutectic.checkpoints.model import TrainedModel, load_model
from eutectic.graph import GraphSettings, StructureGraph, build_graph
from eutectic.graph.neighbours import neighbour_list
from eutectic.predict import memory
from eutectic.predict.memory import needed_memory
from eutectic.predict.prediction import graphs_or_errors, predict
from eutectic.processes import available_memory
from eutectic.tasks import Sample, make_batch
from eutectic.train.cost import PeakBytes


@pytest.fixture(scope="module")
def model() -> TrainedModel:
    return load_model("eutectic-small")


def _copper(n: int) -> Structure:
    atoms = bulk("Cu", cubic=True).repeat(n)
    atoms.rattle(0.1, seed=1)
    return Structure.from_ase(atoms)


def test_the_estimate_is_near_what_is_used(model: TrainedModel) -> None:
    task = next(task for task in model.tasks if task.name == "metal_slabs")
    sample = Sample(0, build_graph(_copper(6), task.graph, lists=model.module.backbone.edge_lists), {})
    batch = make_batch([sample], [task])
    with PeakBytes() as peak:
        predict(model, "metal_slabs", [_copper(6)])
    assert batch.n_structures == 1
    assert 0.7 < needed_memory(model, task, [sample], False) / peak.most < 1.5


def test_a_large_prediction_is_said_and_one_without_room_refused(
    model: TrainedModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(memory, "LARGE", 100)
    monkeypatch.setattr(memory, "available_memory", lambda: 10**5)
    with pytest.raises(EutecticError, match=r"about .* GB for 256 atoms with .* edges") as caught:
        predict(model, "metal_slabs", [_copper(4)])
    assert "smaller --batch-size" in caught.value.fix
    monkeypatch.setattr(memory, "available_memory", lambda: 5 * 10**7)
    with caplog.at_level(logging.WARNING):
        predict(model, "metal_slabs", [_copper(4)])
    assert "this prediction needs about" in caplog.text
    caplog.clear()
    monkeypatch.setattr(memory, "available_memory", lambda: None)
    predict(model, "metal_slabs", [_copper(4)])
    assert not caplog.text


@pytest.mark.parametrize("pbc", [(True, True, True), (True, True, False), (True, False, False)], ids=str)
def test_pairs_without_room_are_refused_before_the_search(
    pbc: tuple[bool, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eutectic.graph.neighbours.available_memory", lambda: 10**8)
    cell = np.where(np.array(pbc)[:, None], 0.2 * np.eye(3), 0.0)
    thin = Structure(numbers=np.array([1] * 200), positions=np.zeros((200, 3)), cell=cell, pbc=np.array(pbc))
    with pytest.raises(EutecticError, match=r"pairs of atoms within 50 Å"):
        neighbour_list([thin], 50.0)


def test_a_structure_without_room_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eutectic.graph.neighbours.available_memory", lambda: 10**8)
    pair = Structure(numbers=np.array([1, 1]), positions=np.array([[0.0, 0, 0], [1.0, 0, 0]]))
    dense = Structure(
        numbers=np.array([1] * 200), positions=np.zeros((200, 3)), cell=0.2 * np.eye(3), pbc=np.full(3, True)
    )
    first, error, last = graphs_or_errors([pair, dense, pair], GraphSettings(cutoff=50.0), ("main",))
    assert isinstance(error, EutecticError)
    for graph in (first, last):
        assert isinstance(graph, StructureGraph)
        assert len(graph.main) == 2


@pytest.mark.skipif(not os.path.exists("/proc/meminfo"), reason="the system does not say")
def test_the_system_says_what_is_available() -> None:
    available = available_memory()
    assert available is not None
    assert available > 0
