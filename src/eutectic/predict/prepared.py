"""A task of a model, ready to be computed many times: in dynamics, relaxations, and whatever else moves atoms."""

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
"""float32 and float64: of all operations. bfloat16: of matrix products; the others are float32."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """A task of a model in one precision, on one device.

    Attributes:
        model: weights in this precision, on this device.
        task: that is computed.
        conservative: whether forces and stress are derivatives of the energy.
        autocast: precision of matrix products, if lower than that of the weights.
        elements: atomic numbers seen in training; empty if unknown.
    """

    model: TrainedModel
    task: Task
    conservative: bool
    autocast: torch.dtype | None
    elements: frozenset[int]

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self.model.module.parameters()).device

    @property
    def forces_are(self) -> str:
        """What the forces are, in words."""
        head = self.task.heads.get("forces")
        if self.conservative or (head is not None and head.entry.derivative is not None):
            jumps = "" if self.task.graph.smooth_cap else ", but for jumps where neighbours change places at a hard cap"
            return f"derivatives of the energy: dynamics conserve energy{jumps}"
        if head is not None:
            return "predicted directly, not derivatives of the energy: dynamics gain or lose energy"
        return "not predicted"

    def check_elements(self, numbers: Iterable[int], where: str) -> None:
        """Check that the model has seen some elements.

        Args:
            numbers: atomic numbers.
            where: names the structures in the error.

        Raises:
            EutecticError: an element that it has not seen.
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
    where: str,
) -> Prepared:
    """Choose a task of a model, what its forces are, a precision and a device.

    Args:
        model: weights, tasks and provenance; not changed.
        task: name of the task; the only one if not given.
        conservative: default: False where the task has a head for forces, otherwise True if it has one for energies.
        dtype: one of `PRECISIONS`.
        device: default: that of the model.
        where: names the caller in errors.

    Raises:
        EutecticError: no such task, or several and no name; derivatives from a task without an energy; another
            precision.
    """
    if dtype not in PRECISIONS:
        raise EutecticError(f"{where}, dtype", repr(dtype), f"one of {', '.join(PRECISIONS)}", "choose one of these")
    chosen = checked_task(model, task, bool(conservative))
    if conservative is None:
        conservative = "forces" not in chosen.heads and "energy" in chosen.heads
    return Prepared(
        model=_converted(model, torch.float64 if dtype == "float64" else torch.float32, device),
        task=chosen,
        conservative=conservative,
        autocast=torch.bfloat16 if dtype == "bfloat16" else None,
        elements=frozenset(elements_seen(model)),
    )


def _converted(model: TrainedModel, dtype: torch.dtype, device: str | torch.device | None) -> TrainedModel:
    """The model in another precision and on another device; itself where nothing changes."""
    weight = next(model.module.parameters())
    where = weight.device if device is None else torch.device(device)
    if (weight.dtype, weight.device) == (dtype, where):
        return model
    return replace(model, module=copy.deepcopy(model.module).to(device=where, dtype=dtype).eval())
