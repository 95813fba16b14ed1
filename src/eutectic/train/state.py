"""The state of a run, from which it resumes."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning_fabric as lf
import torch

from eutectic.atoms import EutecticError
from eutectic.models.multitask import MultitaskModel
from eutectic.train.checkpoint import (
    full_state,
    load_checkpoint,
    load_optimiser,
    load_weights,
    not_a_checkpoint,
    save_checkpoint,
)
from eutectic.train.optimisation import EMA
from eutectic.train.runtime.journal import Journal
from eutectic.train.schedule import Schedule

MOST_STEPS = 2**40
"""More steps than any run has."""


class RunState:
    """The state of a run: weights, EMA, optimiser, gradient scaler, journal, counters, and the caller's own state.

    Every process has one, and all processes call its methods together; the first process writes.

    Args:
        fabric: launched.
        model: as trained, possibly sharded.
        ema: of `model`.
        optimiser: without Fabric's wrapper.
        scaler: gradient scaler, if any.
        folder: for `checkpoint.pt` and `journal.jsonl`; None writes nothing.
        schedule: of the run.
        extra_state, restore_extra: write and read the caller's own state in the checkpoint.

    Attributes:
        step: the last step in the journal.
        seconds: training time up to that step, without validations.
        nonfinite_steps: their number so far.
        saved_at: monotonic time of the last checkpoint, or of the start.
    """

    def __init__(
        self,
        fabric: lf.Fabric,
        model: MultitaskModel,
        ema: EMA,
        optimiser: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler | None,
        folder: Path | None,
        schedule: Schedule,
        extra_state: Callable[[], dict[str, Any]] = dict,
        restore_extra: Callable[[dict[str, Any]], None] = lambda state: None,
    ) -> None:
        self.fabric, self.model, self.ema, self.optimiser, self.scaler = fabric, model, ema, optimiser, scaler
        self.folder, self.schedule = folder, schedule
        self.extra_state, self.restore_extra = extra_state, restore_extra
        self.first = fabric.global_rank == 0
        self.journal = Journal(folder / "journal.jsonl" if folder is not None and self.first else None)
        self.checkpoint = None if folder is None else folder / "checkpoint.pt"
        self.step, self.seconds, self.nonfinite_steps = 0, 0.0, 0
        self.saved_at = self.begun_at = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Time of the run so far, including validations and the time before it was resumed, s."""
        return time.monotonic() - self.begun_at

    def restore(self) -> None:
        """Restore everything from the folder's checkpoint; without one, empty the journal of an earlier attempt.

        Raises:
            EutecticError: a damaged checkpoint, or one of another run; processes read different checkpoints.
        """
        path, steps = self.checkpoint, self.schedule.steps
        state = None if path is None else load_checkpoint(path, MOST_STEPS if steps is None else steps)
        self._check_same_step(0 if state is None else state["step"])
        if path is None or state is None:
            self.journal.resume(0)
            return
        try:
            load_weights(self.model, state["model"])
            self.ema.load_state_dict(state["averaged"])
            load_optimiser(self.optimiser, state["optimiser"])
            if self.scaler is not None:
                self.scaler.load_state_dict(state["scaler"])
            self.seconds, self.nonfinite_steps = float(state["seconds"]), int(state["nonfinite_steps"])
            self.schedule.load_state_dict(state.get("schedule", {}))  # not in checkpoints of earlier versions
            self.begun_at = time.monotonic() - self.schedule.elapsed
            self.restore_extra(state["extra"])
        # Missing entries, or entries with other shapes and types.
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise not_a_checkpoint(path, f"{type(error).__name__}: {str(error)[:200]}") from error
        self.step = state["step"]
        self.journal.resume(self.step)

    def save(self) -> None:
        """Write journal and checkpoint.

        Raises:
            EutecticError: the disk is full.
        """
        self.journal.flush()
        if self.checkpoint is None:
            return
        # Every process takes part in gathering sharded tensors.
        gathered = {
            "model": full_state(self.model.state_dict(), keep=self.first),
            "averaged": full_state(self.ema.state_dict(), keep=self.first),
            "optimiser": full_state(self.optimiser.state_dict(), keep=self.first),
        }
        if self.first:
            rest = {
                "scaler": {} if self.scaler is None else self.scaler.state_dict(),
                "step": self.step,
                "seconds": self.seconds,
                "nonfinite_steps": self.nonfinite_steps,
                "schedule": self.schedule.state_dict(),
                "extra": self.extra_state(),
            }
            save_checkpoint(self.checkpoint, gathered | rest)
        self.saved_at = time.monotonic()

    def plain_model(self) -> MultitaskModel | None:
        """In the first process, a copy of the model with its current weights, neither compiled nor sharded."""
        weights = full_state(self.model.state_dict(), keep=self.first)
        if not self.first:
            return None
        plain = copy.deepcopy(self.ema.module)
        plain.load_state_dict(weights)
        return plain

    def _check_same_step(self, step: int) -> None:
        if self.fabric.world_size == 1:
            return
        first = self.fabric.broadcast(step)
        if first != step:
            raise EutecticError(
                f"{self.folder}, process {self.fabric.global_rank}",
                f"a checkpoint of step {step}, but the first process has one of step {first}",
                "a folder shared by all processes",
                "choose an --out on a file system that all nodes share",
            )
