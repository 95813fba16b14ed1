"""The training loop, top to bottom. Pre-training and fine-tuning both run through it.

Nothing in a step waits for a GPU. Whether a gradient was finite is decided there (the optimiser and the average
skip the step by themselves), and what a step has to tell is copied back in the background and read while the next
gradient is on its way: before that one is applied, so that the weights are still those after the step it tells of.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import lightning_fabric as lf
import torch
import torch.distributed
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grad_norm_

from eutectic.atoms import EutecticError, Interrupted
from eutectic.checkpoints.model import TrainedModel
from eutectic.models.multitask import MultitaskModel
from eutectic.tasks import Task
from eutectic.train.batches.loader import default_workers, feed
from eutectic.train.batches.sampler import BatchSampler
from eutectic.train.checkpoint import load_checkpoint, load_optimiser, load_weights, save_checkpoint, whole
from eutectic.train.gradient import GradientSum
from eutectic.train.nonfinite import save_nonfinite_step
from eutectic.train.optimisation import EMA, learning_rate, make_optimiser, set_rate, shared_gradients
from eutectic.train.runtime.journal import Journal
from eutectic.train.runtime.matmul import prefer_fast_matmul
from eutectic.train.runtime.memory import keep_freed_memory
from eutectic.train.runtime.stop import StopFlag
from eutectic.train.settings import OptimiserSettings, TrainSettings


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


@dataclass(frozen=True)
class _Told:
    """What a step has to tell, on its way from the device."""

    step: int
    seconds: float
    step_seconds: float
    rate: float
    values: torch.Tensor
    arrived: torch.cuda.Event | None

    def read(self) -> list[float]:
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.values.tolist()


def train(
    fabric: lf.Fabric,
    model: MultitaskModel,
    tasks: Sequence[Task],
    source: BatchSampler,
    settings: TrainSettings,
    optimiser_settings: OptimiserSettings,
    *,
    folder: Path | None = None,
    validate: Callable[[MultitaskModel, int, float], None] = lambda model, step, seconds: None,
    extra_state: Callable[[], dict[str, Any]] = dict,
    restore_extra: Callable[[dict[str, Any]], None] = lambda state: None,
    on_step: Callable[[dict[str, Any]], None] = lambda entry: None,
    describe: Callable[[MultitaskModel], TrainedModel] | None = None,
    stop: StopFlag | None = None,
) -> Trained:
    """Train for `settings.steps` steps, resuming from `folder` if it holds a checkpoint.

    Args:
        fabric: launched already; every process calls this.
        model: initialised alike in every process, scale factors fitted.
        source: the batches; a step takes `settings.accumulate` of them.
        folder: for `checkpoint.pt` and `journal.jsonl`; None writes nothing and cannot be resumed.
        validate: called with the averaged model every `evaluate_every` steps and at both ends.
        extra_state, restore_extra: what the caller wants kept in the checkpoint.
        on_step: called in the first process with each journal entry.
        describe: makes of the model what can be saved; without it steps that go wrong are not kept for replaying.
        stop: one that is listening already, if the caller wants signals noted before the first step.

    Raises:
        Interrupted: a signal came; everything up to the last step is in the checkpoint.
        EutecticError: the loss or its gradient was not finite too often; a structure does not fit into the memory.
    """
    dtype = DTYPES.get(settings.precision, torch.float32)
    first, world = fabric.global_rank == 0, fabric.world_size
    model = model.to(fabric.device, dtype)
    if fabric.device.type == "cpu":
        keep_freed_memory()
        if settings.precision == "32-true":
            prefer_fast_matmul(model)
    if settings.activation_checkpointing:
        checkpoint_activations(model)
    average = EMA(model, optimiser_settings.ema_decay)
    if settings.compile:
        _compile(model, tasks)
    wrapped = fabric.setup_module(model)
    adamw = make_optimiser(model, optimiser_settings)
    optimiser = cast(torch.optim.Optimizer, fabric.setup_optimizers(adamw))
    average.follow(model)
    shared = shared_gradients(model) if optimiser_settings.scale_shared_gradients else []
    gradient = GradientSum(
        fabric,
        wrapped,
        tasks,
        source,
        dtype,
        overlap=settings.strategy == "fsdp" or settings.out_of_memory == "stop",
        split=settings.out_of_memory == "split",
    )
    if settings.strategy == "fsdp" and world > 1:
        _check_shareable(tasks)
    scaler: torch.amp.GradScaler | None = getattr(fabric.strategy.precision, "scaler", None)
    batches, structures = settings.accumulate, settings.accumulate * source.batch_size

    journal = Journal(folder / "journal.jsonl" if folder and first else None)
    checkpoint = None if folder is None else folder / "checkpoint.pt"
    begun, seconds, bad = 0, 0.0, 0
    state = load_checkpoint(checkpoint) if checkpoint is not None else None
    _agree(fabric, 0 if state is None else state["step"], folder)
    if state is not None:
        load_weights(model, state["model"])
        average.load_state_dict(state["averaged"])
        load_optimiser(adamw, state["optimiser"])
        if scaler is not None:
            scaler.load_state_dict(state["scaler"])
        begun, seconds, bad = state["step"], state["seconds"], state["nonfinite_steps"]
        journal.resume(begun)
        restore_extra(state["extra"])
    last_save = time.monotonic()

    def save(told: _Told | None = None) -> None:
        nonlocal last_save
        journal.flush()
        if checkpoint is None:
            return
        # Every process helps to gather what is shared out; the first one writes.
        gathered = {
            "model": whole(model.state_dict(), keep=first),
            "averaged": whole(average.state_dict(), keep=first),
            "optimiser": whole(adamw.state_dict(), keep=first),
        }
        if first:
            rest = {
                "scaler": {} if scaler is None else scaler.state_dict(),
                "step": settings.steps if told is None else told.step,
                "seconds": seconds if told is None else told.seconds,
                "nonfinite_steps": bad,
                "extra": extra_state(),
            }
            save_checkpoint(checkpoint, gathered | rest)
        last_save = time.monotonic()

    def keep_nonfinite_step(told: _Told, entry: dict[str, Any]) -> None:
        if folder is None or describe is None or bad > settings.keep_nonfinite_steps:
            return
        weights = whole(model.state_dict())
        if first:
            # The step was skipped: these are the weights before it.
            plain = copy.deepcopy(average.module)
            plain.load_state_dict(weights)
            these = range((told.step - 1) * batches, told.step * batches)
            save_nonfinite_step(folder, entry, these, source, describe(plain), settings, optimiser_settings)

    # What every process must agree on after each step, added up in one message: the losses of each task, how many
    # structures they came from, whether anyone was asked to stop, whether it is time to save, the wait for data and
    # the passes it took.
    n, on_gpu = len(tasks), fabric.device.type == "cuda"

    def summed(losses: torch.Tensor, others: list[float]) -> torch.Tensor:
        small = torch.tensor(others, dtype=losses.dtype)
        if on_gpu:
            small = small.pin_memory().to(fabric.device, non_blocking=True)
        values = torch.cat([losses, small])
        if world > 1:
            torch.distributed.all_reduce(values)
        return values

    def tell(values: torch.Tensor, norm: torch.Tensor, after: int, took: float, rate: float) -> _Told:
        scale = norm.new_ones(()) if scaler is None else scaler._get_scale_async()
        values = torch.cat([values, torch.stack([norm, cast(torch.Tensor, scale).to(norm.dtype)]).to(values.dtype)])
        if not on_gpu:
            return _Told(after, seconds, took, rate, values, None)
        landed = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        landed.copy_(values, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        return _Told(after, seconds, took, rate, landed, arrived)

    def settle(told: _Told) -> None:
        """Hear what a step has to tell, and do what it asks for."""
        nonlocal bad
        values = told.read()
        losses, counts, rest = values[:n], values[n : 2 * n], values[2 * n :]
        asked, due, waited, passes, atoms, edges, norm, scale = rest
        loss = sum(losses) / sum(counts)
        finite = math.isfinite(loss) and math.isfinite(norm)
        entry = {
            "step": told.step,
            "seconds": round(told.seconds, 3),
            "loss": loss,
            "learning_rate": told.rate,
            "gradient_norm": norm if finite else None,
            "loss_by_set": {t.name: a / b for t, a, b in zip(tasks, losses, counts, strict=True) if b > 0},
            "structures": round(sum(counts)),
            "structures_by_set": {t.name: round(b) for t, b in zip(tasks, counts, strict=True) if b > 0},
            "atoms": round(atoms),
            "edges": round(edges),
            "step_seconds": round(told.step_seconds, 5),
            "data_seconds": round(waited / world, 5),
        }
        if passes > batches * world:
            entry["passes"] = int(passes)
        if scaler is not None:
            entry["scale"] = scale
        journal.add(entry)
        if first:
            on_step(entry)
        # A gradient scaler looks for its scale by going too far: that is no trouble unless it ends below 1.
        if not finite and (scaler is None or not math.isfinite(loss) or scale < 1):
            bad += 1
            keep_nonfinite_step(told, entry)
        if bad > settings.max_nonfinite_steps:
            save(told)
            kept = "" if folder is None else f", or see `eutectic replay {folder / 'nonfinite-steps'}/step-…`"
            raise EutecticError(
                f"step {told.step}",
                f"{bad} steps had a loss or gradient that is not finite",
                f"at most {settings.max_nonfinite_steps}",
                f"lower optimiser.learning_rate, use precision 32-true, look for outliers in the labels{kept}",
            )
        if told.step % settings.evaluate_every == 0 or told.step == settings.steps:
            validate(average.refresh(), told.step, told.seconds)
        if asked > 0:
            save(told)
            where = "" if folder is None else f"; the same command goes on from step {told.step} in {folder}"
            raise Interrupted(f"stopped after step {told.step} of {settings.steps}{where}")
        if due > 0:
            save(told)

    stop = StopFlag() if stop is None else stop
    remaining = range(begun * batches, settings.steps * batches)
    workers = default_workers(fabric.device, world, source.sets) if settings.workers is None else settings.workers
    ahead = feed(
        source, tasks, remaining, rank=fabric.global_rank, world=world, dtype=dtype, workers=workers, pin=on_gpu
    )
    told: _Told | None = None
    with stop.listening(), ahead as batch_feed:
        if begun == 0:
            validate(average.refresh(), 0, 0.0)
        last_save = time.monotonic()
        for step in range(begun, settings.steps):
            began, batch_feed.waited = time.monotonic(), 0.0
            rate = learning_rate(optimiser_settings, step, settings.steps)
            fed = batch_feed.take(batches)
            sums = gradient.compute(fed, structures)
            took = time.monotonic() - began
            seconds += took
            if told is not None:
                settle(told)
            began = time.monotonic()
            set_rate(adamw, rate)
            if scaler is not None:
                scaler.unscale_(adamw)
            for parameter, uses in shared:
                if parameter.grad is not None:
                    parameter.grad.div_(uses)
            norm = clip_grad_norm_(gradient.parameters, optimiser_settings.clip_norm).detach()
            norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
            due = first and time.monotonic() - last_save > settings.checkpoint_every
            sizes = [(len(f.batch.graph.numbers), len(f.batch.graph.main)) for f in fed if f.batch is not None]
            others = [
                *sums.counts,
                stop.raised,
                due,
                batch_feed.waited,
                sums.passes,
                *map(sum, zip(*sizes, strict=True)),
            ]
            values = summed(sums.losses, [float(x) for x in others])
            good = (torch.isfinite(norm) & torch.isfinite(values[:n]).all()).to(torch.float32)
            if scaler is None:
                # What a gradient scaler would say: the fused step leaves everything as it is where this is 1.
                adamw.found_inf, adamw.grad_scale = 1.0 - good, None  # type: ignore[attr-defined]
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            average.update(good)
            rest = time.monotonic() - began
            seconds += rest
            told = tell(values, norm, step + 1, took + rest, rate)
        if told is not None:
            settle(told)
        save()
    return Trained(average.refresh(), whole(model.state_dict()), journal, seconds)


def _agree(fabric: lf.Fabric, step: int, folder: Path | None) -> None:
    """Refuse to go on from different checkpoints in different processes."""
    if fabric.world_size == 1:
        return
    theirs = fabric.broadcast(step)
    if theirs != step:
        raise EutecticError(
            f"{folder}, process {fabric.global_rank}",
            f"a checkpoint of step {step}, where the first process has one of step {theirs}",
            "a folder that every process sees",
            "choose an --out on a file system that all nodes share",
        )


def checkpoint_activations(model: MultitaskModel) -> None:
    """Have the backbone compute its blocks again in the backward pass.

    Raises:
        EutecticError: a backbone that cannot.
    """
    if not model.backbone.recomputes:
        raise EutecticError(
            "train.activation_checkpointing",
            f"on, for the backbone {type(model.backbone).__name__}",
            "a backbone that can compute its blocks again (`Backbone.recomputes`), like gemnet_oc",
            "leave it off",
        )
    model.backbone.checkpoint_blocks = True


def _compile(model: MultitaskModel, tasks: Sequence[Task]) -> None:
    for task in _with_derivatives(tasks):
        raise EutecticError(
            f"train.compile, task {task.name}",
            "on, with forces or stress that are derivatives of an energy",
            "direct forces: PyTorch cannot differentiate compiled code twice",
            "leave it off, or use direct_forces heads",
        )
    # What cannot be compiled runs as it would without, and torch says so. The averaged model, which validates, was
    # copied before and stays as it is.
    torch._dynamo.config.suppress_errors = True
    model.compile_parts()


def _check_shareable(tasks: Sequence[Task]) -> None:
    for task in _with_derivatives(tasks):
        raise EutecticError(
            f"train.strategy, task {task.name}",
            "fsdp with forces or stress that are derivatives of an energy",
            "direct forces: the inner derivative would gather and free parameters at the wrong time",
            "use train.strategy ddp",
        )


def _with_derivatives(tasks: Sequence[Task]) -> list[Task]:
    return [t for t in tasks if any(x.settings.head.kind.startswith("gradient_") for x in t.targets.values())]
