"""The training loop, top to bottom. Pre-training and fine-tuning both run through it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import lightning_fabric as lf
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from eutectic.atoms import EutecticError, Interrupted
from eutectic.models.multitask import MultitaskModel
from eutectic.tasks import Task, make_batch, structure_losses
from eutectic.train.checkpoint import load_checkpoint, save_checkpoint
from eutectic.train.journal import Journal
from eutectic.train.optimisation import learning_rate, make_optimiser, set_rate
from eutectic.train.settings import OptimiserSettings, TrainSettings
from eutectic.train.source import Source
from eutectic.train.stop import StopFlag


def total(fabric: lf.Fabric, values: torch.Tensor) -> torch.Tensor:
    """The sum over processes."""
    return cast(torch.Tensor, fabric.all_reduce(values, reduce_op="sum")) if fabric.world_size > 1 else values


DTYPES = {"64-true": torch.float64}


@dataclass
class Trained:
    """What a finished loop leaves: the averaged weights, the raw ones, and the journal."""

    averaged: MultitaskModel
    raw: dict[str, torch.Tensor]
    journal: Journal
    seconds: float


def train(
    fabric: lf.Fabric,
    model: MultitaskModel,
    tasks: Sequence[Task],
    source: Source,
    settings: TrainSettings,
    optimiser_settings: OptimiserSettings,
    *,
    folder: Path | None = None,
    validate: Callable[[MultitaskModel, int, float], None] = lambda model, step, seconds: None,
    extra_state: Callable[[], dict[str, Any]] = dict,
    restore_extra: Callable[[dict[str, Any]], None] = lambda state: None,
    on_step: Callable[[dict[str, Any]], None] = lambda entry: None,
    stop: StopFlag | None = None,
) -> Trained:
    """Train for `settings.steps` steps, resuming from `folder` if it holds a checkpoint.

    Args:
        fabric: launched already; every process calls this.
        model: initialised alike in every process, scale factors fitted.
        source: the batches.
        folder: for `checkpoint.pt` and `journal.jsonl`; None writes nothing and cannot be resumed.
        validate: called with the averaged model every `evaluate_every` steps and at both ends.
        extra_state, restore_extra: what the caller wants kept in the checkpoint.
        on_step: called in the first process with each journal entry.
        stop: one that is listening already, if the caller wants signals noted before the first step.

    Raises:
        Interrupted: a signal came; everything up to the last step is in the checkpoint.
        EutecticError: the loss or its gradient was not finite too often.
    """
    dtype = DTYPES.get(settings.precision, torch.float32)
    model = model.to(dtype)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(optimiser_settings.ema_decay)).to(fabric.device)
    averaged = cast(MultitaskModel, average.module)
    optimiser = make_optimiser(model, optimiser_settings)
    wrapped, optimiser = fabric.setup(model, optimiser)
    journal = Journal(folder / "journal.jsonl" if folder and fabric.global_rank == 0 else None)
    checkpoint = None if folder is None else folder / "checkpoint.pt"
    step, seconds, bad = 0, 0.0, 0

    state = load_checkpoint(checkpoint) if checkpoint is not None else None
    if state is not None:
        model.load_state_dict(state["model"])
        average.load_state_dict(state["averaged"])
        optimiser.load_state_dict(state["optimiser"])
        step, seconds, bad = state["step"], state["seconds"], state["bad_steps"]
        journal.resume(step)
        restore_extra(state["extra"])

    def save() -> None:
        journal.flush()
        if checkpoint is None or fabric.global_rank != 0:
            return
        save_checkpoint(
            checkpoint,
            {
                "model": model.state_dict(),
                "averaged": average.state_dict(),
                "optimiser": optimiser.state_dict(),
                "step": step,
                "seconds": seconds,
                "bad_steps": bad,
                "extra": extra_state(),
            },
        )

    # What every process must agree on after each step, added up in one message: the losses of each task, how
    # many structures they came from, and whether anyone was asked to stop.
    n = len(tasks)
    stop = stop or StopFlag()
    with stop.listening():
        if step == 0:
            validate(averaged, 0, 0.0)
        last_save = time.monotonic()
        while step < settings.steps:
            began = time.monotonic()
            rate = learning_rate(optimiser_settings, step, settings.steps)
            set_rate(optimiser, rate)
            items = source.items(step, fabric.global_rank, fabric.world_size)
            batch = make_batch(items, tasks, dtype).to(fabric.device)
            waited = time.monotonic() - began
            losses = structure_losses(wrapped(batch.graph, batch.parts), batch, tasks)
            # Data parallelism averages gradients over processes; the mean over the whole batch is wanted,
            # however many structures each process holds.
            loss = torch.cat(losses).sum() * (fabric.world_size / source.batch_size)
            fabric.backward(loss)
            norm = fabric.clip_gradients(
                wrapped, optimiser, max_norm=optimiser_settings.clip_norm, error_if_nonfinite=False
            )
            finite = bool(torch.isfinite(norm))  # type: ignore[arg-type]
            if finite:
                optimiser.step()
                average.update_parameters(model)
            optimiser.zero_grad(set_to_none=True)

            told = torch.stack(
                [part.detach().sum() for part in losses]
                + [loss.new_tensor(float(len(part))) for part in losses]
                + [loss.new_tensor(float(stop.raised))]
                + [loss.new_tensor(float(len(x))) for x in (batch.graph.numbers, batch.graph.main)]
            )
            values = total(fabric, told).tolist()
            step, seconds = step + 1, seconds + time.monotonic() - began
            bad += not finite
            entry = {
                "step": step,
                "seconds": round(seconds, 3),
                "loss": sum(values[:n]) / sum(values[n : 2 * n]),
                "learning_rate": rate,
                "gradient_norm": float(norm) if finite else None,  # type: ignore[arg-type]
                "structures": round(sum(values[n : 2 * n])),
                "by_set": {task.name: round(values[n + i]) for i, task in enumerate(tasks) if values[n + i] > 0},
                "atoms": round(values[2 * n + 1]),
                "edges": round(values[2 * n + 2]),
                "step_seconds": round(time.monotonic() - began, 5),
                "data_seconds": round(waited, 5),
                "loss_by_set": {
                    task.name: values[i] / values[n + i] for i, task in enumerate(tasks) if values[n + i] > 0
                },
            }
            journal.add(entry)
            if fabric.global_rank == 0:
                on_step(entry)
            if bad > settings.max_bad_steps:
                save()
                raise EutecticError(
                    f"step {step}",
                    f"{bad} steps had a loss or gradient that is not finite",
                    f"at most {settings.max_bad_steps}",
                    "lower optimiser.learning_rate, use precision 32-true, or look for outliers in the labels",
                )
            if step % settings.evaluate_every == 0 or step == settings.steps:
                validate(averaged, step, seconds)
            if values[2 * n] > 0:
                save()
                where = "" if folder is None else f"; the same command goes on from step {step} in {folder}"
                raise Interrupted(f"stopped after step {step} of {settings.steps}{where}")
            if time.monotonic() - last_save > settings.checkpoint_every:
                save()
                last_save = time.monotonic()
        save()
    return Trained(averaged, model.state_dict(), journal, seconds)
