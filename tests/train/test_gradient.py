"""The gradient of a step: no reads from the device; batches too large for the memory."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import lightning_fabric as lf
import numpy as np
import pytest
import torch
from runs import journal, same, settings_for
from torch.utils._python_dispatch import TorchDispatchMode

from eutectic.atoms import EutecticError
from eutectic.data.store import Store
from eutectic.graph import GraphSettings
from eutectic.models.gemnet_oc import GemNetOCSettings
from eutectic.models.heads import HeadSettings
from eutectic.tasks import TargetSettings, fit_task, make_batch, structure_losses
from eutectic.train import gradient
from eutectic.train.batches.sampler import BatchSampler, TaskDataset
from eutectic.train.pretrain import initial_model, pretrain
from eutectic.train.runtime import launch
from eutectic.train.runtime.stop import StopFlag


class _ReadBack(TorchDispatchMode):
    """Notes operations whose result has a size that only numbers tell, or that are numbers outside: a GPU is waited
    for by each."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name()
        masks = [x for arg in args if isinstance(arg, list | tuple) for x in arg if isinstance(x, torch.Tensor)]
        by_mask = name.startswith("aten::index") and any(mask.dtype == torch.bool for mask in masks)
        asking = ("_local_scalar_dense", "nonzero", "masked_select", "bincount", "unique", "repeat_interleave")
        if by_mask or any(word in name for word in asking):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("gradient_forces", [False, True])
def test_a_step_reads_nothing_back(molecules: Store, slabs: Store, gradient_forces: bool) -> None:
    graph = GraphSettings(cutoff=4.0, max_neighbours=8)
    head = HeadSettings(kind="gradient_forces" if gradient_forces else "direct_forces", layers=1)
    targets = {"energy": TargetSettings(), "forces": TargetSettings(head=head)}
    tasks = [fit_task(s.card.name, s, np.arange(len(s)), targets, graph) for s in (molecules, slabs)]
    rows = [TaskDataset(i, tasks[i], s, np.arange(len(s))) for i, s in enumerate((molecules, slabs))]
    settings = GemNetOCSettings.tiny().model_dump()
    model = initial_model("gemnet_oc", settings, tuple(tasks), BatchSampler(rows, 4, 2.0, 0), 0)
    batch = make_batch([r.item(i) for r in rows for i in range(3)], tasks)
    with _ReadBack() as read_back:
        parts = structure_losses(model(batch.graph, batch.parts), batch, tasks)
        torch.cat(parts).sum().backward()
    assert read_back.found == []
    with _ReadBack() as read_back:
        (batch.graph.positions > 0).nonzero()
    assert read_back.found == ["aten::nonzero"]


def _too_small(limit: int) -> Any:
    real = gradient.target_losses

    def losses_of_few(predictions: Any, batch: Any, tasks: Any) -> Any:
        if batch.n_structures > limit:
            raise torch.OutOfMemoryError("CUDA out of memory (a test says so)")
        return real(predictions, batch, tasks)

    return losses_of_few


def test_a_batch_too_large_for_the_memory_is_halved(
    plain: Path, molecules: Store, slabs: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gradient, "target_losses", _too_small(3))
    pretrain(settings_for(molecules, slabs, steps=6), tmp_path / "run")
    same(tmp_path / "run", plain)
    assert all(entry["passes"] >= 4 for entry in journal(tmp_path / "run"))
    with pytest.raises(EutecticError, match="does not fit"):
        pretrain(settings_for(molecules, slabs, steps=6, out_of_memory="stop"), tmp_path / "stopped")
    monkeypatch.undo()
    monkeypatch.setattr(gradient, "target_losses", _too_small(0))
    with pytest.raises(EutecticError, match="one structure of"):
        pretrain(settings_for(molecules, slabs, steps=6), tmp_path / "hopeless")


def _small_second_process(fabric: lf.Fabric, stop: StopFlag, work: Any) -> None:
    if fabric.global_rank == 1:
        gradient.target_losses = _too_small(2)
    work(fabric, stop)


def test_one_of_two_processes_runs_out_of_memory(
    plain: Path, molecules: Store, slabs: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = launch.launch
    monkeypatch.setattr(
        "eutectic.train.pretrain.launch",
        lambda settings, work: real(settings, functools.partial(_small_second_process, work=work)),
    )
    pretrain(settings_for(molecules, slabs, steps=6, processes=2), tmp_path / "run")
    same(tmp_path / "run", plain)
    assert all(entry["passes"] > 2 for entry in journal(tmp_path / "run"))
