"""A task of a model prepared for repeated evaluation, as in dynamics and relaxations."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from ase.data import chemical_symbols

from eutectic.atoms import EutecticError
from eutectic.checkpoints.model import TrainedModel, elements_seen
from eutectic.predict.prediction import checked_task
from eutectic.tasks import Task

PRECISIONS = ("float32", "float64", "bfloat16")
"""float32 and float64 apply to all operations; bfloat16 to matrix products only, the rest being float32."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """A task of a model in one precision, on one device.

    Attributes:
        model: weights in this precision, on this device.
        task: the task to predict.
        conservative: whether forces and stress are derivatives of the energy.
        autocast: precision of matrix products, if lower than the weights'.
        elements: atomic numbers seen in training; empty if unknown.
    """

    model: TrainedModel
    task: Task
    conservative: bool
    autocast: torch.dtype | None
    elements: frozenset[int]

    @property
    def device(self) -> torch.device:
        """Device on which predictions run."""
        return next(self.model.module.parameters()).device

    @property
    def forces_are(self) -> str:
        """How the forces are obtained, as text."""
        head = self.task.heads.get("forces")
        if self.conservative or (head is not None and head.entry.derivative is not None):
            jumps = "" if self.task.graph.smooth_cap else ", except for jumps when neighbours swap at a hard cap"
            return f"derivatives of the energy: dynamics conserve energy{jumps}"
        if head is not None:
            return "predicted directly, not derivatives of the energy: dynamics do not conserve energy"
        return "not predicted"

    def check_elements(self, numbers: Iterable[int], where: str) -> None:
        """Check that all elements were seen in training.

        Args:
            numbers: atomic numbers.
            where: location given in the error.

        Raises:
            EutecticError: an element unseen in training.
        """
        unseen = set(numbers) - self.elements if self.elements else set()
        if unseen:
            raise EutecticError(
                where,
                f"element {', '.join(chemical_symbols[z] for z in sorted(unseen))}, never seen in training",
                f"only elements {', '.join(chemical_symbols[z] for z in sorted(self.elements))}",
                "fine-tune the model on structures with this element",
            )


def prepared(
    model: TrainedModel,
    *,
    task: str | None,
    conservative: bool | None,
    dtype: str,
    device: str | torch.device | None,
    compile: bool,
    where: str,
) -> Prepared:
    """Choose task, kind of forces, precision and device of a model, and whether it is compiled.

    Args:
        model: weights, tasks and provenance; not changed.
        task: name of the task; needed if the model has several.
        conservative: default: False if the task has a head for forces, otherwise True if it has one for energies.
        dtype: one of `PRECISIONS`.
        device: default: the model's device.
        compile: see `compiled`.
        where: name of the caller in errors.

    Raises:
        EutecticError: no such task, or several and no name; derivatives from a task without an energy; an unknown
            precision.
    """
    if dtype not in PRECISIONS:
        raise EutecticError(f"{where}, dtype", repr(dtype), f"one of {', '.join(PRECISIONS)}", "choose one of these")
    chosen = checked_task(model, task, bool(conservative))
    if conservative is None:
        conservative = "forces" not in chosen.heads and "energy" in chosen.heads
    converted = _converted(model, torch.float64 if dtype == "float64" else torch.float32, device)
    return Prepared(
        model=compiled(converted) if compile else converted,
        task=chosen,
        conservative=conservative,
        autocast=torch.bfloat16 if dtype == "bfloat16" else None,
        elements=frozenset(elements_seen(model)),
    )


def compiled(model: TrainedModel) -> TrainedModel:
    """A copy of the model whose predictions are compiled with torch.compile; see `MultitaskModel.compile_predictions`.

    The first prediction of each kind (direct or conservative forces, each precision) takes 10 to 40 s longer.
    """
    module = copy.deepcopy(model.module).eval()
    module.compile_predictions()
    return replace(model, module=module)


def _converted(model: TrainedModel, dtype: torch.dtype, device: str | torch.device | None) -> TrainedModel:
    """A copy of the model in another precision or on another device; the model itself if neither changes."""
    weight = next(model.module.parameters())
    where = weight.device if device is None else torch.device(device)
    if (weight.dtype, weight.device) == (dtype, where):
        return model
    return replace(model, module=copy.deepcopy(model.module).to(device=where, dtype=dtype).eval())
