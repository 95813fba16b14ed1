"""The state of a run: what it resumes from, and where that is kept."""

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
from eutectic.train.checkpoint import full_state, load_checkpoint, load_optimiser, load_weights, save_checkpoint
from eutectic.train.optimisation import EMA
from eutectic.train.runtime.journal import Journal


class RunState:
    """Everything a run resumes from: weights, EMA, optimiser, gradient scaler, journal, counts and the caller's own.

    All processes hold one and call its methods together; the first one writes.

    Args:
        fabric: launched.
        model: as trained, perhaps sharded.
        ema: of `model`.
        optimiser: not Fabric's wrapper.
        scaler: where the precision has one.
        folder: for `checkpoint.pt` and `journal.jsonl`; None writes nothing.
        extra_state, restore_extra: what the caller keeps in the checkpoint, and how it takes it back.

    Attributes:
        step: the last step that the journal holds.
        seconds: training time up to that step.
        nonfinite_steps: so far.
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
        extra_state: Callable[[], dict[str, Any]] = dict,
        restore_extra: Callable[[dict[str, Any]], None] = lambda state: None,
    ) -> None:
        self.fabric, self.model, self.ema, self.optimiser, self.scaler = fabric, model, ema, optimiser, scaler
        self.folder, self.extra_state, self.restore_extra = folder, extra_state, restore_extra
        self.first = fabric.global_rank == 0
        self.journal = Journal(folder / "journal.jsonl" if folder is not None and self.first else None)
        self.checkpoint = None if folder is None else folder / "checkpoint.pt"
        self.step, self.seconds, self.nonfinite_steps = 0, 0.0, 0
        self.saved_at = time.monotonic()

    def restore(self) -> None:
        """Take everything from the folder's checkpoint, if there is one.

        Raises:
            EutecticError: a damaged checkpoint; processes that see different ones.
        """
        state = None if self.checkpoint is None else load_checkpoint(self.checkpoint)
        self._check_same_step(0 if state is None else state["step"])
        if state is None:
            return
        load_weights(self.model, state["model"])
        self.ema.load_state_dict(state["averaged"])
        load_optimiser(self.optimiser, state["optimiser"])
        if self.scaler is not None:
            self.scaler.load_state_dict(state["scaler"])
        self.step, self.seconds, self.nonfinite_steps = state["step"], state["seconds"], state["nonfinite_steps"]
        self.journal.resume(self.step)
        self.restore_extra(state["extra"])

    def record(self, entry: dict[str, Any], seconds: float) -> None:
        """Add a step to the journal; `seconds` is the training time up to it."""
        self.journal.add(entry)
        self.step, self.seconds = entry["step"], seconds

    def save(self) -> None:
        """Write journal and checkpoint.

        Raises:
            EutecticError: the disk is full.
        """
        self.journal.flush()
        if self.checkpoint is None:
            return
        # Every process helps to gather sharded tensors.
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
                "extra": self.extra_state(),
            }
            save_checkpoint(self.checkpoint, gathered | rest)
        self.saved_at = time.monotonic()

    def plain_model(self) -> MultitaskModel | None:
        """In the first process a copy of the model with its present weights, neither compiled nor sharded."""
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
                f"a checkpoint of step {step}, where the first process has one of step {first}",
                "a folder that every process sees",
                "choose an --out on a file system that all nodes share",
            )
