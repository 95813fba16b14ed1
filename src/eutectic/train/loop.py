"""The training loop of pre-training and fine-tuning.

No step waits for a GPU. The check for finite loss and gradient runs on the device, where optimiser and EMA skip
non-finite steps. Step statistics are copied back asynchronously and read after the next gradient has been computed but
before it is applied: weights, optimiser and EMA still belong to the step of the statistics, so checkpoints,
validations and saved non-finite steps are exact.
"""

from __future__ import annotations

import itertools
import math
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import lightning_fabric as lf
import torch
import torch.distributed
from lightning_fabric.wrappers import _FabricOptimizer
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grad_norm_

from eutectic.atoms import EutecticError, Interrupted
from eutectic.checkpoints.model import TrainedModel
from eutectic.models.multitask import MultitaskModel
from eutectic.tasks import Task
from eutectic.train.batches.loader import default_workers, load_batches
from eutectic.train.batches.sampler import BatchSampler, check_shares
from eutectic.train.checkpoint import full_state, load_weights
from eutectic.train.gradient import GradientSum
from eutectic.train.nonfinite import save_nonfinite_step
from eutectic.train.optimisation import (
    EMA,
    apply_gradient,
    make_optimiser,
    set_learning_rate,
    shared_gradients,
)
from eutectic.train.runtime.journal import Journal
from eutectic.train.runtime.matmul import prefer_fast_matmul
from eutectic.train.runtime.memory import keep_freed_memory
from eutectic.train.runtime.stop import StopFlag
from eutectic.train.schedule import Schedule
from eutectic.train.settings import LoopSettings, OptimiserSettings
from eutectic.train.state import MOST_STEPS, RunState
from eutectic.train.statistics import PendingStatistics, StepStatistics


def total(fabric: lf.Fabric, values: torch.Tensor) -> torch.Tensor:
    """Sum over processes."""
    return cast(torch.Tensor, fabric.all_reduce(values, reduce_op="sum")) if fabric.world_size > 1 else values


DTYPES = {"64-true": torch.float64}


@dataclass
class Trained:
    """Result of training: EMA and raw weights, the journal, training time in seconds, and number of steps."""

    averaged: MultitaskModel
    raw: dict[str, torch.Tensor]
    journal: Journal
    seconds: float
    steps: int


@dataclass(frozen=True)
class Verdict:
    """Outcome of a validation.

    Attributes:
        score: for the schedule, lower is better; None if unknown.
        errors: for the journal.
        restart: weights to restart from, at half the learning rate; None continues as before.
    """

    score: float | None = None
    errors: Mapping[str, Any] = field(default_factory=dict)
    restart: Mapping[str, torch.Tensor] | None = None


Validate = Callable[[MultitaskModel, int, float], Verdict | None]
"""Called with the EMA model, the step, and the training time so far; the same result in every process."""


def train(
    fabric: lf.Fabric,
    model: MultitaskModel,
    tasks: Sequence[Task],
    source: BatchSampler,
    settings: LoopSettings,
    optimiser_settings: OptimiserSettings,
    *,
    schedule: Schedule,
    last_stage: Sequence[Task] | None = None,
    folder: Path | None = None,
    validate: Validate = lambda model, step, seconds: None,
    extra_state: Callable[[], dict[str, Any]] = dict,
    restore_extra: Callable[[dict[str, Any]], None] = lambda state: None,
    on_step: Callable[[dict[str, Any]], None] = lambda entry: None,
    describe: Callable[[MultitaskModel], TrainedModel] | None = None,
    stop: StopFlag | None = None,
) -> Trained:
    """Train until the schedule ends, resuming from `folder` if it holds a checkpoint.

    Args:
        fabric: launched; every process calls this.
        model: initialised identically in every process, scale factors fitted.
        tasks: all tasks of the model.
        source: the batches; a step uses `settings.accumulate` of them.
        settings: batch size, precision, strategy, …
        optimiser_settings: of the optimiser, the EMA and gradient clipping.
        schedule: length, learning rates and validations.
        last_stage: the tasks with their loss weights in the schedule's last stage; None changes nothing.
        folder: for `checkpoint.pt` and `journal.jsonl`; None writes nothing and cannot be resumed.
        validate: called at the start, when the schedule is due, and at the end.
        extra_state, restore_extra: write and read the caller's own state in the checkpoint.
        on_step: called in the first process with each journal entry.
        describe: converts the model to one that can be saved; if None, non-finite steps are not saved for replay.
        stop: a flag that is already listening, to catch signals before the first step.

    Raises:
        Interrupted: stopped by a signal; the checkpoint includes the last step.
        EutecticError: more processes than structures in a batch; too many non-finite steps; a structure does not fit
            into memory.
    """
    first, world, device = fabric.global_rank == 0, fabric.world_size, fabric.device
    dtype = DTYPES.get(settings.precision, torch.float32)
    check_shares(source, world)

    # Set up the model, its EMA and the optimiser
    model = model.to(device, dtype)
    _prepare_process(model, tasks, settings, device, world)
    ema = EMA(model, optimiser_settings.ema_decay)  # a copy, before the model is compiled or sharded
    if settings.compile:
        _compile(model, tasks, settings)
    wrapped = fabric.setup_module(model)
    ema.follow(model)
    optimiser = make_optimiser(model, optimiser_settings)
    fabric_optimiser = cast(_FabricOptimizer, fabric.setup_optimizers(optimiser))
    scaler: torch.amp.GradScaler | None = getattr(fabric.strategy.precision, "scaler", None)
    shared = shared_gradients(model) if optimiser_settings.scale_shared_gradients else []
    overlap, split = settings.strategy == "fsdp" or settings.out_of_memory == "stop", settings.out_of_memory == "split"
    gradient = GradientSum(fabric, wrapped, tasks, source, dtype, overlap=overlap, split=split)

    # Restore the state, and set up the remaining batches
    run = RunState(fabric, model, ema, optimiser, scaler, folder, schedule, extra_state, restore_extra)
    run.restore()
    accumulate, structures, seconds = settings.accumulate, settings.accumulate * source.batch_size, run.seconds
    workers = default_workers(device, world, source.sets) if settings.workers is None else settings.workers
    last = MOST_STEPS if schedule.steps is None else schedule.steps
    remaining = range(run.step * accumulate, last * accumulate)
    on_gpu = device.type == "cuda"
    loader = load_batches(
        source, tasks, remaining, rank=fabric.global_rank, world=world, dtype=dtype, workers=workers, pin=on_gpu
    )
    stop = StopFlag() if stop is None else stop
    pending: PendingStatistics | None = None
    with stop.listening(), loader as batches:
        if run.step == 0:
            validate(ema.refresh(), 0, 0.0)
        for step in itertools.count(run.step):
            finished = schedule.finished(step)  # only the statistics of the last step are pending

            # Compute the gradient: forward and backward passes, summed over processes
            if not finished:
                began, batches.waited = time.monotonic(), 0.0
                rate = schedule.rate(step)
                if last_stage is not None and schedule.in_last_stage(step):
                    gradient.tasks = last_stage
                rank_statistics = gradient.compute(batches.take(accumulate), structures)
                step_seconds = time.monotonic() - began

            # Meanwhile, read the statistics of the previous step and act on them
            if pending is not None:
                statistics = pending.read()
                entry = pending.journal_entry(
                    statistics, processes=world, passes=accumulate * world, scaled=scaler is not None
                )
                run.step, run.seconds = entry["step"], pending.seconds
                schedule.passed(statistics.elapsed)
                if first:
                    on_step(entry)
                # count and save a non-finite step, which was skipped; overflows while the gradient scaler searches for
                # its scale are harmless unless the scale falls below 1
                overflow = scaler is not None and math.isfinite(statistics.loss) and statistics.scale >= 1
                if not statistics.finite and not overflow:
                    run.nonfinite_steps += 1
                    if (
                        folder is not None
                        and describe is not None
                        and run.nonfinite_steps <= settings.keep_nonfinite_steps
                    ):
                        plain = run.plain_model()  # the weights before the step, since it was skipped
                        if plain is not None:
                            step_batches = range((run.step - 1) * accumulate, run.step * accumulate)
                            save_nonfinite_step(
                                folder, entry, step_batches, source, describe(plain), settings, optimiser_settings
                            )
                if run.nonfinite_steps > settings.max_nonfinite_steps:
                    run.journal.add(entry)
                    run.save()
                    raise _too_many_nonfinite_steps(run, settings)
                # validate
                finished = finished or schedule.finished(run.step)
                if finished or schedule.due(run.step):
                    verdict = validate(ema.refresh(), run.step, run.seconds) or Verdict()
                    schedule.validated(verdict.score)
                    finished = finished or schedule.finished(run.step)
                    entry |= {"validation": dict(verdict.errors)} if verdict.errors else {}
                    if verdict.restart is not None:
                        _restart(verdict.restart, model, ema, optimiser)
                        schedule.factor /= 2
                run.journal.add(entry)
                # save, and stop after a signal
                if statistics.stop_requests > 0 or statistics.checkpoint_due > 0:
                    run.save()
                if statistics.stop_requests > 0:
                    total_steps = "" if schedule.steps is None else f" of {schedule.steps}"
                    where = "" if folder is None else f"; the same command resumes at step {run.step} in {folder}"
                    raise Interrupted(f"stopped after step {run.step}{total_steps}{where}")
            if finished:
                break

            # Update: unscale and clip the gradient; the device skips steps with a non-finite loss or gradient
            seconds += step_seconds
            began = time.monotonic()
            set_learning_rate(optimiser, rate)
            if scaler is not None:
                scaler.unscale_(optimiser)
            for parameter, uses in shared:
                if parameter.grad is not None:
                    parameter.grad.div_(uses)
            norm = clip_grad_norm_(gradient.parameters, optimiser_settings.clip_norm).detach()
            norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
            values = StepStatistics.pack(
                rank_statistics,
                data_seconds=batches.waited,
                stop_requested=stop.raised,
                checkpoint_due=first and time.monotonic() - run.saved_at > settings.checkpoint_every,
                elapsed=run.elapsed if first else 0.0,
            )
            if world > 1:
                torch.distributed.all_reduce(values)
            finite = StepStatistics.finite_on_device(values, norm, tasks)
            apply_gradient(fabric_optimiser, finite, scaler)
            ema.update(finite)
            update_seconds = time.monotonic() - began
            seconds += update_seconds
            pending = PendingStatistics.start_copy(
                values,
                norm,
                scaler,
                step=step + 1,
                seconds=seconds,
                step_seconds=step_seconds + update_seconds,
                learning_rate=rate,
                tasks=tasks,
            )
        run.save()
    return Trained(ema.refresh(), full_state(model.state_dict()), run.journal, run.seconds, run.step)


def _restart(
    weights: Mapping[str, torch.Tensor], model: MultitaskModel, ema: EMA, optimiser: torch.optim.Optimizer
) -> None:
    """Restart from other weights, with new optimiser moments.

    The current gradient was computed with the old weights; it is set to zero, so the next step changes nothing.
    """
    load_weights(model, dict(weights))
    ema.load_state_dict({"updates": ema.updates.clone()} | {f"module.{k}": v for k, v in weights.items()})
    optimiser.state.clear()
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad.zero_()


def _prepare_process(
    model: MultitaskModel, tasks: Sequence[Task], settings: LoopSettings, device: torch.device, world: int
) -> None:
    """Apply settings that change how a step is computed, but not its result."""
    if device.type == "cpu":
        keep_freed_memory()
        if settings.precision == "32-true":
            prefer_fast_matmul(model)
    if settings.activation_checkpointing:
        checkpoint_activations(model)
    if settings.strategy == "fsdp" and world > 1:
        _check_shardable(tasks)


def _too_many_nonfinite_steps(run: RunState, settings: LoopSettings) -> EutecticError:
    saved = ""
    if run.folder is not None:
        saved = f", or see `eutectic replay {shlex.quote(str(run.folder / 'nonfinite-steps'))}/step-…`"
    return EutecticError(
        f"step {run.step}",
        f"{run.nonfinite_steps} steps had a non-finite loss or gradient",
        f"at most {settings.max_nonfinite_steps}",
        f"lower optimiser.learning_rate, use precision 32-true, check the labels for outliers{saved}",
    )


def checkpoint_activations(model: MultitaskModel) -> None:
    """Recompute the backbone's blocks in the backward pass instead of keeping their activations.

    Raises:
        EutecticError: the backbone does not support it.
    """
    if not model.backbone.recomputes:
        raise EutecticError(
            "train.activation_checkpointing",
            f"on, for the backbone {type(model.backbone).__name__}",
            "a backbone that can recompute its blocks (`Backbone.recomputes`), like gemnet_oc",
            "turn it off",
        )
    model.backbone.checkpoint_blocks = True


def _compile(model: MultitaskModel, tasks: Sequence[Task], settings: LoopSettings) -> None:
    for task in _with_derivatives(tasks):
        if not can_compile_derivatives(tasks, settings, model.backbone.traceable):
            raise EutecticError(
                f"train.compile, task {task.name}",
                f"on, with forces or stress that are derivatives of an energy ({type(model.backbone).__name__}, "
                f"precision {settings.precision}, tasks: {len(tasks)})",
                "a backbone that can be traced (`Backbone.traceable`): painn or gotennet; precision 32-true; one task",
                "turn it off, or use direct_forces heads",
            )
        model.compile_derivatives(task.name)
        return
    # Parts that cannot be compiled run uncompiled, with a warning from torch. The EMA's module, used for
    # validation, was copied before and is not compiled.
    torch._dynamo.config.suppress_errors = True
    model.compile_parts()


def can_compile_derivatives(tasks: Sequence[Task], settings: LoopSettings, traceable: bool) -> bool:
    """Whether a model of these tasks can be compiled although forces or stress are derivatives of its energy.

    Args:
        tasks: of the model.
        settings: of the run.
        traceable: whether its backbone is (`Backbone.traceable`).
    """
    return len(tasks) == 1 and settings.precision == "32-true" and traceable


def _check_shardable(tasks: Sequence[Task]) -> None:
    for task in _with_derivatives(tasks):
        raise EutecticError(
            f"train.strategy, task {task.name}",
            "fsdp with forces or stress that are derivatives of an energy",
            "direct forces: the inner derivative would gather and free parameters at the wrong time",
            "use train.strategy ddp",
        )


def _with_derivatives(tasks: Sequence[Task]) -> list[Task]:
    return [task for task in tasks if task.has_derivatives]
