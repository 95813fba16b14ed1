"""Batches made ahead."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from eutectic.atoms import EutecticError
from eutectic.data.store import Store
from eutectic.graph import GraphSettings
from eutectic.tasks import TargetSettings, fit_task
from eutectic.train.batches.loader import default_workers, load_batches
from eutectic.train.batches.sampler import BatchSampler, TaskDataset


def _rows(store: Store, keep: bool = False) -> TaskDataset:
    graph = GraphSettings(cutoff=4.0, max_neighbours=8)
    task = fit_task("m", store, np.arange(len(store)), {"energy": TargetSettings()}, graph)
    return TaskDataset(0, task, store, np.arange(len(store)), keep=keep)


def test_the_batch_that_cannot_be_made_is_the_one_that_fails(molecules: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many are made together, those before it are trained on."""
    source, read = BatchSampler([_rows(molecules)], 8, 1.0, 0), Store.__getitem__
    broken = int(source.chosen(2)[1][3])

    def refusing(self: Store, index: int) -> object:
        if index == broken:
            raise EutecticError("store", "a damaged row", "a whole one", "make it again")
        return read(self, index)

    monkeypatch.setattr(Store, "__getitem__", refusing)
    for workers in (0, 1):
        made = load_batches(
            source, [source.sets[0].task], range(6), rank=0, world=1, dtype=torch.float32, workers=workers, pin=False
        )
        with made as batches:
            assert [fed.index for fed in batches.take(2)] == [0, 1]
            with pytest.raises(EutecticError, match="a damaged row"):
                batches.take(1)
            assert batches.take(1)[0].index == 3


def test_shared_memory_without_room_is_an_error(molecules: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sent by the queue's own thread, the batch would be lost and the training would wait for it forever."""

    def full(self: torch.Tensor) -> None:
        raise RuntimeError("unable to resize file: No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    source = BatchSampler([_rows(molecules)], 8, 1.0, 0)
    made = load_batches(
        source, [source.sets[0].task], range(6), rank=0, world=1, dtype=torch.float32, workers=1, pin=False
    )
    with made as batches, pytest.raises(EutecticError, match="No space left on device") as error:
        batches.take(1)
    assert "train.workers 0" in error.value.fix


def test_how_many_workers(molecules: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eutectic.train.batches.loader.sys.platform", "linux")
    monkeypatch.setattr("eutectic.train.batches.loader._shared_memory", lambda: 2.0**40)
    monkeypatch.setattr("eutectic.train.batches.loader.cores", lambda: 12)
    cpu, gpu, rows = torch.device("cpu"), torch.device("cuda"), _rows(molecules)
    assert [default_workers(device, 4, [rows]) for device in (cpu, gpu)] == [1, 2]
    assert default_workers(cpu, 4, [_rows(molecules, keep=True)]) == 0
    assert default_workers(gpu, 20, [rows]) == 0
    monkeypatch.setattr("eutectic.train.batches.loader._shared_memory", lambda: 2.0**26)
    assert default_workers(gpu, 4, [rows]) == 0
