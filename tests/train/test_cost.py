"""Costs are fitted, steps are cut by them, and the cuts follow from the step alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eutectic.atoms import EutecticError
from eutectic.checkpoints.model import build_backbone
from eutectic.data.store import Store
from eutectic.graph import Counts, GraphSettings
from eutectic.models.multitask import MultitaskModel
from eutectic.tasks import Batch, TargetSettings, Task, fit_task, make_batch, structure_losses
from eutectic.train.batches.sampler import BatchSampler, TaskDataset, balanced, check_shares, cuts
from eutectic.train.cost import (
    Calibration,
    PeakBytes,
    SizeModel,
    calibrate,
    costs_by_size,
    count_work,
    fit_cost,
    size_model,
    trials_of,
)
from eutectic.train.settings import BackboneChoice, Coefficients, PretrainSettings, parse

GRAPH = GraphSettings(cutoff=4.5, max_neighbours=8)


@pytest.fixture(scope="module")
def rows(molecules: Store, slabs: Store) -> list[TaskDataset]:
    targets = {
        "energy": TargetSettings(),
        "forces": TargetSettings.model_validate({"head": {"kind": "direct_forces", "layers": 1}}),
    }
    return [
        TaskDataset(i, fit_task(name, store, np.arange(len(store)), targets, GRAPH), store, np.arange(len(store)))
        for i, (name, store) in enumerate((("molecules", molecules), ("slabs", slabs)))
    ]


def by_cost(rows: list[TaskDataset], batch_size: int = 16, window: int = 4, seed: int = 3) -> BatchSampler:
    costs = [costs_by_size(r, size_model(r), Coefficients(atom=1.0, edge=0.1)) for r in rows]
    return BatchSampler(rows, batch_size, 2.0, seed, costs=costs, window=window)


def test_a_known_cost_is_found_again() -> None:
    rng = np.random.default_rng(0)
    counts = rng.integers(10, 5000, (40, 4)).astype(float) * np.array([1, 20, 300, 900])
    truth = 0.01 + counts @ np.array([2e-5, 0.0, 3e-8, 1e-9])
    model = fit_cost(counts, truth)
    np.testing.assert_allclose(model.of(counts), truth, rtol=1e-6)
    assert model.edge * 1e5 < 1e-3
    assert model.coefficients == Coefficients(atom=2e-5, edge=model.coefficients.edge, triplet=3e-8, quadruplet=1e-9)
    # A cost that falls with size cannot be modelled, and nothing negative is made of it.
    assert min(vars(fit_cost(counts, 1.0 / truth)).values()) >= 0


def test_sizes_of_complete_molecules_are_exact() -> None:
    """With every pair within reach and no cap, a molecule of n atoms has n(n − 1) edges."""
    counts = [Counts(n, n * (n - 1), n * (n - 1) ** 2 * 2, 7 * n) for n in (2, 3, 5, 9, 20)]
    model = SizeModel.fit(counts, neighbours=100)
    found = model.counts(np.array([1, 4, 12]))
    expected = [[n, n * (n - 1), 2 * n * (n - 1) ** 2, 7 * n] for n in (1, 4, 12)]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_predicted_sizes_are_near_the_real_ones(rows: list[TaskDataset]) -> None:
    for r in rows:
        real = np.array([r.item(i).graph.counts for i in range(len(r))], dtype=float)
        predicted = size_model(r).counts(r.sizes())
        np.testing.assert_allclose(predicted.sum(0), real.sum(0), rtol=0.15)


@settings(max_examples=200, deadline=None)
@given(
    costs=st.lists(st.floats(0.01, 100), min_size=12, max_size=80),
    parts=st.integers(1, 6),
    smallest=st.integers(1, 2),
)
def test_cuts(costs: list[float], parts: int, smallest: int) -> None:
    values = np.array(costs)
    bounds = cuts(values, parts, smallest)
    assert bounds[0] == 0
    assert bounds[-1] == len(values)
    assert (np.diff(bounds) >= smallest).all()


def test_cuts_are_nearly_equal() -> None:
    values = np.random.default_rng(1).lognormal(0, 0.8, 512)
    loads = np.add.reduceat(values, cuts(values, 16, 8)[:-1])
    assert abs(loads - loads.mean()).max() <= values.max()
    equal = np.add.reduceat(values, np.arange(0, 512, 32))
    assert loads.std() < 0.3 * equal.std()


def test_the_order_is_the_same_and_only_cut_elsewhere(rows: list[TaskDataset]) -> None:
    cost, count = by_cost(rows), BatchSampler(rows, 16, 2.0, 3)
    steps = 12
    for i in (0, 1):
        ours, theirs = (np.concatenate([s.chosen(k)[i] for k in range(steps)]) for s in (cost, count))
        np.testing.assert_array_equal(ours, theirs)
    # Windows begin where they do by count, and any step is found without those before it.
    assert [cost.span(k)[0] for k in (0, 4, 8, 400)] == [0, 64, 128, 6400]
    late = by_cost(rows).span(403)
    assert late == by_cost(rows).span(403)
    assert late[1] == 404 * 16
    sizes = [cost.span(k)[1] - cost.span(k)[0] for k in range(steps)]
    assert len(set(sizes)) > 1
    assert min(sizes) >= cost.smallest == 4


def test_steps_cost_the_same(rows: list[TaskDataset]) -> None:
    def spread(source: BatchSampler) -> float:
        atoms = [sum(source.sets[w].sizes()[r] for w, r in zip(*source.chosen(k), strict=True)) for k in range(40)]
        return float(np.std(atoms) / np.mean(atoms))

    costs = [np.maximum(np.arange(int(r.sizes().max()) + 1), 1e-3) for r in rows]
    assert spread(BatchSampler(rows, 16, 2.0, 3, costs=costs, window=8)) < 0.6 * spread(BatchSampler(rows, 16, 2.0, 3))


def test_shares_of_processes_are_the_step_and_weigh_the_same(rows: list[TaskDataset]) -> None:
    source = by_cost(rows, batch_size=32)
    for step in (0, 5, 9):
        whole = [i.graph.structure.positions.tobytes() for i in source.items(step, 0, 1)]
        shares = [source.items(step, rank, 3) for rank in range(3)]
        assert sorted(whole) == sorted(i.graph.structure.positions.tobytes() for s in shares for i in s)
        loads = [sum(i.graph.counts.atoms + 0.1 * i.graph.counts.edges for i in s) for s in shares]
        assert max(loads) < 1.35 * np.mean(loads)


def test_what_was_drawn_is_counted_without_drawing_it(rows: list[TaskDataset]) -> None:
    for source in (by_cost(rows), BatchSampler(rows, 16, 2.0, 3)):
        for steps in (0, 1, 7, 50):
            counted = np.zeros(2, dtype=np.int64)
            for step in range(steps):
                counted += np.bincount(source.chosen(step)[0], minlength=2)
            np.testing.assert_array_equal(source.drawn(steps), counted)


def test_more_processes_than_structures_are_refused(rows: list[TaskDataset]) -> None:
    check_shares(by_cost(rows), 4)
    with pytest.raises(EutecticError, match="a batch_size of at least 20"):
        check_shares(by_cost(rows), 5)
    with pytest.raises(EutecticError, match="fewer processes"):
        check_shares(BatchSampler(rows, 2, 2.0, 0), 3)
    # Even structures that cost nothing leave no process empty.
    assert all(len(share) for share in balanced(np.array([5.0, 1e-9, 1e-9, 1e-9]), 4))


BACKBONES = {
    "painn": {"width": 16, "layers": 2, "cutoff": 4.0},
    "gemnet_oc": {"blocks": 1, "atom_width": 16, "edge_width": 16, "num_radial": 8, "dihedral_epsilon": 0.03},
}


def model_for(name: str, tasks: list[Task]) -> MultitaskModel:
    torch.manual_seed(0)
    backbone, _ = build_backbone(name, BACKBONES[name], [t.graph for t in tasks])
    return MultitaskModel(backbone, {t.name: t.heads for t in tasks})


@pytest.mark.parametrize("name", BACKBONES)
def test_counted_work_is_the_work_done(name: str, rows: list[TaskDataset]) -> None:
    """The same operations and as many bytes as when the step is really done."""
    from torch.utils.flop_counter import FlopCounterMode

    tasks = [r.task for r in rows]
    items = [rows[0].item(1), rows[1].item(2), rows[0].item(7)]
    counted = count_work(BackboneChoice(name=name, settings=BACKBONES[name]), tasks, items)
    model = model_for(name, tasks).train()
    batch = make_batch(items, tasks)
    with FlopCounterMode(display=False) as flops, PeakBytes() as peak:
        predictions = model(batch.graph, batch.parts)
        torch.stack([v.sum() for by in predictions.values() for v in by.values()]).sum().backward()
    assert counted.flops == flops.get_total_flops() > 0
    assert counted.parameters == sum(p.numel() for p in model.parameters())
    # Without numbers, PyTorch takes the derivative of SiLU apart, and its parts are tensors too (not GemNet-OC's own).
    assert counted.bytes == pytest.approx(peak.most, rel=0.02 if name == "gemnet_oc" else 0.4)


def test_blocks_computed_twice_are_counted_twice_and_kept_once(rows: list[TaskDataset]) -> None:
    choice = BackboneChoice(name="gemnet_oc", settings=BACKBONES["gemnet_oc"] | {"blocks": 3})
    tasks, items = [rows[0].task], [rows[0].item(i) for i in range(6)]
    kept, again = (count_work(choice, tasks, items, checkpointing=c) for c in (False, True))
    assert 1.15 * kept.flops < again.flops < 1.4 * kept.flops
    backbone, _ = build_backbone(choice.name, choice.settings, [t.graph for t in tasks])
    model = MultitaskModel(backbone, {t.name: t.heads for t in tasks}).train()
    model.backbone.checkpoint_blocks = True
    with PeakBytes() as peak:
        batch = make_batch(items, tasks)
        torch.cat(structure_losses(model(batch.graph, batch.parts), batch, tasks)).sum().backward()
    assert again.bytes < 0.8 * kept.bytes
    assert again.bytes == pytest.approx(peak.most, rel=0.1)


def test_most_bytes_alive_at_once() -> None:
    with PeakBytes() as peak:
        a = torch.ones(1000)
        for _ in range(5):
            b = a * 2  # the last one is let go once there is a new one
            b[::2].add_(1)  # of a tensor that is there already
        del a, b
        c = torch.zeros(500)
    assert peak.most == 3 * 4000
    assert len(c) == 500


def test_a_calibration_ends_where_the_memory_does(rows: list[TaskDataset], monkeypatch: pytest.MonkeyPatch) -> None:
    from eutectic.train import cost

    real = cost.structure_losses

    def of_few(predictions: Any, batch: Batch, tasks: Any) -> list[torch.Tensor]:
        if batch.n_structures > 2:
            raise torch.OutOfMemoryError("CUDA out of memory (a test says so)")
        return real(predictions, batch, tasks)

    monkeypatch.setattr(cost, "structure_losses", of_few)
    tasks = [r.task for r in rows]
    found = calibrate(model_for("gemnet_oc", tasks), tasks, trials_of(BatchSampler(rows, 16, 2.0, 0)))
    assert [b["structures"] for b in found.batches] == [2, 2]
    # Four processes share a batch: each is tried with what it will have.
    sizes = [len(items) for items in trials_of(BatchSampler(rows, 64, 2.0, 0), processes=4)]
    assert sizes == [2, 2, 4, 4, 8, 16]


def test_a_calibration_leaves_the_model_as_it_was(rows: list[TaskDataset], tmp_path: Path) -> None:
    tasks = [r.task for r in rows]
    model = model_for("painn", tasks)
    model = MultitaskModel(model.backbone, {t.name: {"energy": t.heads["energy"]} for t in tasks})
    energy = [
        TaskDataset(r.index, Task(r.task.name, "", {"energy": r.task.targets["energy"]}, GRAPH), r.store, r.rows)
        for r in rows
    ]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    source = BatchSampler(energy, 16, 2.0, 0)
    found = calibrate(model, [r.task for r in energy], trials_of(source))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert len(found.batches) >= 4
    assert all(b["seconds"] > 0 and b["bytes"] > 0 for b in found.batches)
    assert Calibration.from_dict(found.to_dict()) == found
    table = np.array([[b[k] for k in Counts._fields] for b in found.batches])
    assert (found.bytes.of(table) > 0).all()
    one = calibrate(model, [r.task for r in energy], trials_of(source), patience=0.0)
    assert len(one.batches) == 1


@pytest.mark.parametrize(
    ("batching", "says"),
    [
        ({"by": "count", "atoms": 100}, "by: cost"),
        ({"by": "cost", "coefficients": {}}, "all are zero"),
        ({"by": "costs"}, "by"),
        ({"by": "cost", "edge": 3}, "did you mean 'edges'"),
    ],
)
def test_settings_that_are_refused(batching: dict[str, object], says: str) -> None:
    with pytest.raises(EutecticError, match=says):
        parse(PretrainSettings, {"sets": {"a": {"store": "molecules"}}, "batching": batching}, "test")
