"""Batches cut by cost: the costs are measured on the device once, and kept for a resumed run."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import lightning_fabric as lf
import torch

from eutectic.models.multitask import MultitaskModel
from eutectic.tasks import Task
from eutectic.train.batches.sampler import BatchSampler
from eutectic.train.cost import Calibration, calibrate, costs_by_size, mean_counts, size_model, trials_of
from eutectic.train.loop import DTYPES, checkpoint_activations
from eutectic.train.runtime.launch import once
from eutectic.train.settings import BatchingSettings, TrainSettings


def cut_by_cost(
    fabric: lf.Fabric,
    batching: BatchingSettings,
    train: TrainSettings,
    sampler: BatchSampler,
    make: Callable[..., BatchSampler],
    model: MultitaskModel,
    tasks: Sequence[Task],
    folder: Path | None,
) -> BatchSampler:
    """The same structures in the same order, cut into batches of equal cost.

    Args:
        fabric: launched; every process calls this.
        batching: budgets, and the coefficients of the cost if they are given.
        train: precision and activation checkpointing of the run.
        sampler: batches cut by count.
        make: makes a sampler from `batch_size`, `costs` and `window`.
        model: for measuring.
        tasks: of the model.
        folder: where the measurement is kept; None measures anew.
    """
    coefficients = batching.coefficients
    if coefficients is None:
        work = functools.partial(_measured, fabric, train, sampler, model, tasks, folder)
        coefficients = once(fabric, work).seconds.coefficients
    sizes = [size_model(dataset) for dataset in sampler.sets]
    costs = [costs_by_size(d, size, coefficients) for d, size in zip(sampler.sets, sizes, strict=True)]
    cut = make(batch_size=sampler.batch_size, costs=costs, window=batching.window)
    budgets = {"atoms": batching.atoms, "edges": batching.edges}
    if not any(budgets.values()):
        return cut
    mean = mean_counts(cut, sizes)
    allowed = [budget / mean[i] for i, budget in enumerate(budgets.values()) if budget is not None]
    return make(batch_size=max(1, int(min(allowed))), costs=costs, window=batching.window)


def _measured(
    fabric: lf.Fabric,
    train: TrainSettings,
    sampler: BatchSampler,
    model: MultitaskModel,
    tasks: Sequence[Task],
    folder: Path | None,
) -> Calibration:
    path = None if folder is None else folder / "cost.json"
    if path is not None and path.exists():
        return Calibration.from_dict(json.loads(path.read_text()))
    if train.activation_checkpointing:
        checkpoint_activations(model)
    calibration = calibrate(
        model,
        tasks,
        trials_of(sampler, fabric.world_size),
        device=fabric.device,
        dtype=DTYPES.get(train.precision, torch.float32),
        autocast=fabric.autocast,
    )
    if path is not None:
        path.write_text(json.dumps(calibration.to_dict(), indent=1))
    return calibration
