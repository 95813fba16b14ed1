"""Batches cut by cost: costs are measured once on the device, and saved for a resumed run."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import lightning_fabric as lf
import torch

from eutectic.atoms import EutecticError
from eutectic.files import read_json, write_atomically
from eutectic.models.multitask import MultitaskModel
from eutectic.tasks import Task
from eutectic.train.batches.sampler import BatchSampler, TaskDataset
from eutectic.train.cost import Calibration, SizeModel, calibrate, costs_by_size, mean_counts, trials_of
from eutectic.train.loop import DTYPES, checkpoint_activations
from eutectic.train.runtime.launch import once
from eutectic.train.settings import BatchingSettings, Coefficients, LoopSettings


def cut_by_cost(
    make: Callable[..., BatchSampler],
    batching: BatchingSettings,
    batch_size: int,
    datasets: Sequence[TaskDataset],
    sizes: Sequence[SizeModel],
    coefficients: Coefficients,
) -> BatchSampler:
    """Batches of nearly equal cost.

    Args:
        make: makes the sampler of a run from `batch_size`, `costs` and `window`.
        batching: window, and budgets in atoms or edges; the stricter budget replaces `batch_size`.
        batch_size: mean number of structures per batch.
        datasets: the data sets trained on.
        sizes: size model of each data set.
        coefficients: of the cost.
    """
    costs = [costs_by_size(d, size, coefficients) for d, size in zip(datasets, sizes, strict=True)]
    cut = make(batch_size=batch_size, costs=costs, window=batching.window)
    budgets = {"atoms": batching.atoms, "edges": batching.edges}
    if not any(budgets.values()):
        return cut
    mean = mean_counts(cut, sizes)
    allowed = [budget / mean[i] for i, budget in enumerate(budgets.values()) if budget is not None]
    return make(batch_size=max(1, int(min(allowed))), costs=costs, window=batching.window)


def measure_costs(
    fabric: lf.Fabric,
    train: LoopSettings,
    sampler: BatchSampler,
    model: MultitaskModel,
    tasks: Sequence[Task],
    folder: Path | None,
) -> Calibration:
    """Time and memory of batches on this device, measured by the first process for all of them.

    Args:
        fabric: launched; every process calls this.
        train: precision and activation checkpointing of the run.
        sampler: batches cut by count.
        model: to measure with; its weights do not change.
        tasks: of the model.
        folder: where measurements are saved, so that a resumed run has the same batches; None does not save them.
    """
    return once(fabric, functools.partial(_measured, fabric, train, sampler, model, tasks, folder))


def _measured(
    fabric: lf.Fabric,
    train: LoopSettings,
    sampler: BatchSampler,
    model: MultitaskModel,
    tasks: Sequence[Task],
    folder: Path | None,
) -> Calibration:
    path = None if folder is None else folder / "cost.json"
    if path is not None and path.exists():
        return _read(path)
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
        write_atomically(path, json.dumps(calibration.to_dict(), indent=1), sole_writer=True)
    return calibration


def _read(path: Path) -> Calibration:
    fix = "restore this file from a copy, or delete it: costs are then measured again, and batches may differ"
    values = read_json(path, expected="the costs measured when the run began", fix=fix)
    try:
        return Calibration.from_dict(values)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        given = f"not measured costs ({type(error).__name__}: {error})"
        raise EutecticError(str(path), given, "the costs measured when the run began", fix) from error
