"""What a step records, packed and read again."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch

from eutectic.data.store import Store
from eutectic.graph import GraphSettings
from eutectic.tasks import TargetSettings, Task, fit_task
from eutectic.train.statistics import PendingStatistics, RankStatistics, StepStatistics, targets_of


@pytest.fixture(scope="module")
def tasks(molecules: Store, slabs: Store) -> list[Task]:
    both = {"energy": TargetSettings(), "forces": TargetSettings(weight=3.0)}
    unweighted = {"energy": TargetSettings(weight=0.0), "forces": TargetSettings()}
    graph = GraphSettings(cutoff=4.0)
    return [
        fit_task("molecules", molecules, np.arange(96), both, graph),
        fit_task("slabs", slabs, np.arange(48), unweighted, graph),
    ]


def rank_statistics(factor: int) -> RankStatistics:
    return RankStatistics(
        losses=factor * torch.tensor([12.0, 0.0]),
        target_losses=factor * torch.tensor([6.0, 2.0, 0.0]),
        structures=[4 * factor, 0],
        labelled=[3 * factor, 4 * factor, 0],
        atoms=40 * factor,
        edges=100 * factor,
        passes=factor,
    )


def test_every_number_comes_back_under_its_name(tasks: list[Task]) -> None:
    assert targets_of(tasks) == [(0, "energy"), (0, "forces"), (1, "forces")]
    values = sum(
        StepStatistics.pack(
            rank_statistics(f),
            data_seconds=0.5 * f,
            stop_requested=f == 2,
            checkpoint_due=f == 1,
            elapsed=9.0 * (f == 1),
        )
        for f in (1, 2)
    )
    assert isinstance(values, torch.Tensor)
    assert float(StepStatistics.finite_on_device(values, torch.tensor(5.0), tasks)) == 1
    assert float(StepStatistics.finite_on_device(values, torch.tensor(torch.inf), tasks)) == 0
    broken = values.clone()
    broken[1] = torch.nan
    assert float(StepStatistics.finite_on_device(broken, torch.tensor(5.0), tasks)) == 0
    pending = PendingStatistics.start_copy(
        values, torch.tensor(5.0), None, step=7, seconds=3.0, step_seconds=0.25, learning_rate=1e-3, tasks=tasks
    )
    read = pending.read()
    expected = {
        "losses": (36.0, 0.0),
        "target_losses": (18.0, 6.0, 0.0),
        "structures": (12.0, 0.0),
        "labelled": (9.0, 12.0, 0.0),
        "atoms": 120.0,
        "edges": 300.0,
        "passes": 3.0,
        "data_seconds": 1.5,
        "stop_requests": 1.0,
        "checkpoint_due": 1.0,
        "elapsed": 9.0,
        "gradient_norm": 5.0,
        "scale": 1.0,
    }
    assert {f.name: getattr(read, f.name) for f in fields(read)} == expected
    assert (read.loss, read.finite) == (3.0, True)
    entry = pending.journal_entry(read, processes=2, passes=2, scaled=False)
    assert entry == {
        "step": 7,
        "seconds": 3.0,
        "loss": 3.0,
        "learning_rate": 1e-3,
        "gradient_norm": 5.0,
        "loss_by_set": {"molecules": 3.0},
        "loss_by_property": {"molecules": {"energy": 2.0, "forces": 0.5}},
        "structures": 12,
        "structures_by_set": {"molecules": 12},
        "atoms": 120,
        "edges": 300,
        "step_seconds": 0.25,
        "data_seconds": 0.75,
        "passes": 3,
    }
