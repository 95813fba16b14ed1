"""Which structures make up which batch."""

from __future__ import annotations

import numpy as np

from eutectic.data.store import Store
from eutectic.graph import GraphSettings
from eutectic.tasks import TargetSettings, fit_task
from eutectic.train.batches.sampler import BatchSampler, TaskDataset, balanced


def test_balanced_shares() -> None:
    sizes = np.array([9, 1, 1, 1, 5, 4, 3])
    shares = balanced(sizes, 2)
    assert sorted(np.concatenate(shares)) == list(range(7))
    assert abs(sizes[shares[0]].sum() - sizes[shares[1]].sum()) <= 1
    assert balanced(np.array([3]), 2)[1].size == 0


def test_source_is_a_function_of_the_step(molecules: Store, slabs: Store) -> None:
    targets = {"energy": TargetSettings()}
    graph = GraphSettings(cutoff=4.0, max_neighbours=8)
    sets = [
        TaskDataset(i, fit_task(name, s, np.arange(len(s)), targets, graph), s, np.arange(len(s)))
        for i, (name, s) in enumerate((("molecules", molecules), ("slabs", slabs)))
    ]
    source, again = BatchSampler(sets, 16, 2.0, 3), BatchSampler(sets, 16, 2.0, 3)
    for step in (0, 7, 40):
        np.testing.assert_array_equal(source.chosen(step), again.chosen(step))
        whole = [i.graph.structure.positions.tobytes() for i in source.items(step, 0, 1)]
        parts = [i.graph.structure.positions.tobytes() for r in (0, 1) for i in source.items(step, r, 2)]
        assert sorted(whole) == sorted(parts)
    assert not np.array_equal(source.chosen(0), BatchSampler(sets, 16, 2.0, 4).chosen(0))


def test_one_epoch_visits_everything_once(molecules: Store) -> None:
    task = fit_task("m", molecules, np.arange(96), {"energy": TargetSettings()}, GraphSettings(cutoff=4.0))
    source = BatchSampler([TaskDataset(0, task, molecules, np.arange(96))], 16, 1.0, 0)
    seen = np.concatenate([source.chosen(step)[1] for step in range(6)])
    assert sorted(seen) == list(range(96))


def test_dropped_edges_are_a_function_of_the_draw(molecules: Store) -> None:
    task = fit_task("m", molecules, np.arange(96), {"energy": TargetSettings()}, GraphSettings(cutoff=4.0))

    def edges(step: int, world: int, seed: int = 0) -> dict[bytes, int]:
        rows = TaskDataset(0, task, molecules, np.arange(96), keep=True, edge_dropout=0.3)
        source = BatchSampler([rows], 16, 1.0, seed)
        items = [item for rank in range(world) for item in source.items(step, rank, world)]
        return {
            i.graph.structure.positions.tobytes(): hash(
                (i.graph.atom_atom.source.tobytes(), i.graph.atom_atom.target.tobytes())
            )
            for i in items
        }

    assert edges(2, 1) == edges(2, 1) == edges(2, 3)
    everything = {k: v for step in range(6) for k, v in edges(step, 1).items()}
    again = {k: v for step in range(6, 12) for k, v in edges(step, 1).items()}
    assert everything.keys() == again.keys()
    assert sum(everything[k] == again[k] for k in everything) < 10
    full = TaskDataset(0, task, molecules, np.arange(96), edge_dropout=0.3).item(0)
    assert len(full.graph.atom_atom) == len(TaskDataset(0, task, molecules, np.arange(96)).item(0).graph.atom_atom)
