"""Statistics of a training step: packed into one vector, summed over processes in one all-reduce, read by name.

On a GPU the vector is copied back asynchronously. Reading it waits for the copy only, not for kernels queued after it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from eutectic.tasks import Task


def targets_of(tasks: Sequence[Task]) -> list[tuple[int, str]]:
    """Task index and property of every target with a non-zero weight, in the order of `target_losses`."""
    return [(i, name) for i, task in enumerate(tasks) for name, target in task.targets.items() if target.weight != 0]


@dataclass(frozen=True, kw_only=True)
class RankStatistics:
    """Statistics of one process's share of a step.

    Attributes:
        losses: (n_tasks,) sum of the structures' losses; on the device.
        target_losses: (n_targets,) sum of the structures' losses in each target, unweighted; on the device.
        structures: (n_tasks,) number of structures.
        labelled: (n_targets,) number of structures with the target's label.
        atoms, edges: numbers over all structures.
        passes: number of forward passes.
    """

    losses: Tensor
    target_losses: Tensor
    structures: list[int]
    labelled: list[int]
    atoms: int
    edges: int
    passes: int


@dataclass(frozen=True, kw_only=True)
class StepStatistics:
    """Statistics of a step over all processes. The fields are in the order of the vector.

    Attributes:
        losses, target_losses, structures, labelled, atoms, edges, passes: as in `RankStatistics`.
        data_seconds: time spent waiting for batches, summed over processes.
        stop_requests: number of processes that have received a signal.
        checkpoint_due: 1 if a checkpoint is due.
        elapsed: time of the run so far on the clock of the first process, s.
        gradient_norm: before clipping.
        scale: of the gradient scaler; 1 without.
    """

    losses: tuple[float, ...]
    target_losses: tuple[float, ...]
    structures: tuple[float, ...]
    labelled: tuple[float, ...]
    atoms: float
    edges: float
    passes: float
    data_seconds: float
    stop_requests: float
    checkpoint_due: float
    elapsed: float
    gradient_norm: float
    scale: float

    @staticmethod
    def pack(
        rank: RankStatistics,
        *,
        data_seconds: float,
        stop_requested: bool,
        checkpoint_due: bool,
        elapsed: float = 0.0,
    ) -> Tensor:
        """One process's contribution: all fields except `gradient_norm` and `scale`, which are equal in all processes.

        Args:
            rank, data_seconds: of this process.
            stop_requested: this process has received a signal.
            checkpoint_due, elapsed: given by the first process only.

        Returns:
            A vector on the device; does not wait for it.
        """
        scalars = (rank.atoms, rank.edges, rank.passes, data_seconds, stop_requested, checkpoint_due, elapsed)
        on_host = torch.tensor([*rank.structures, *rank.labelled, *map(float, scalars)], dtype=rank.losses.dtype)
        if rank.losses.device.type == "cuda":
            on_host = on_host.pin_memory().to(rank.losses.device, non_blocking=True)
        return torch.cat([rank.losses, rank.target_losses, on_host])

    @staticmethod
    def finite_on_device(values: Tensor, gradient_norm: Tensor, tasks: Sequence[Task]) -> Tensor:
        """() 1 if the gradient norm and all losses in the summed vector of `pack` are finite; 0 otherwise."""
        losses = values[: len(tasks)]
        return (torch.isfinite(gradient_norm) & torch.isfinite(losses).all()).to(torch.float32)

    @classmethod
    def unpack(cls, values: Sequence[float], tasks: Sequence[Task]) -> StepStatistics:
        """From the summed vector of `pack`, followed by `gradient_norm` and `scale`."""
        n, m = len(tasks), len(targets_of(tasks))
        ends = (n, n + m, 2 * n + m, 2 * (n + m))
        losses, target_losses, structures, labelled = (
            tuple(values[a:b]) for a, b in zip((0, *ends[:-1]), ends, strict=True)
        )
        atoms, edges, passes, data_seconds, stop_requests, checkpoint_due, elapsed, gradient_norm, scale = values[
            ends[-1] :
        ]
        return cls(
            losses=losses,
            target_losses=target_losses,
            structures=structures,
            labelled=labelled,
            atoms=atoms,
            edges=edges,
            passes=passes,
            data_seconds=data_seconds,
            stop_requests=stop_requests,
            checkpoint_due=checkpoint_due,
            elapsed=elapsed,
            gradient_norm=gradient_norm,
            scale=scale,
        )

    @property
    def loss(self) -> float:
        """Mean over the structures of the step."""
        return sum(self.losses) / sum(self.structures)

    @property
    def finite(self) -> bool:
        """Whether loss and gradient are finite, so that the optimiser did not skip the step."""
        return math.isfinite(self.loss) and math.isfinite(self.gradient_norm)


@dataclass(frozen=True)
class PendingStatistics:
    """Statistics of a step that are being copied from the device.

    Attributes:
        step: number of steps up to and including this one.
        seconds: training time so far.
        step_seconds: time of this step.
        learning_rate: of the heads.
        tasks: of the model.
        values: on the CPU; valid only after `arrived`.
        arrived: end of the copy; None if nothing is copied.
    """

    step: int
    seconds: float
    step_seconds: float
    learning_rate: float
    tasks: Sequence[Task]
    values: Tensor
    arrived: torch.cuda.Event | None

    @classmethod
    def start_copy(
        cls, values: Tensor, gradient_norm: Tensor, scaler: torch.amp.GradScaler | None, **known: Any
    ) -> PendingStatistics:
        """Start the copy from the device, without waiting.

        Args:
            values: the summed vector of `StepStatistics.pack`.
            gradient_norm: ()
            scaler: gradient scaler; its current scale is that of the next step.
            known: the other attributes.
        """
        scale = gradient_norm.new_ones(()) if scaler is None else cast(Tensor, scaler._get_scale_async())
        both = torch.stack([gradient_norm, scale.to(gradient_norm.dtype)])
        values = torch.cat([values, both.to(values.dtype)])
        if values.device.type != "cuda":
            return cls(values=values, arrived=None, **known)
        on_host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        on_host.copy_(values, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        return cls(values=on_host, arrived=arrived, **known)

    def read(self) -> StepStatistics:
        """Wait for the copy and return the statistics."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return StepStatistics.unpack(self.values.tolist(), self.tasks)

    def journal_entry(self, statistics: StepStatistics, *, processes: int, passes: int, scaled: bool) -> dict[str, Any]:
        """The step's line in the journal.

        Args:
            statistics: what `read` returned.
            processes: number of processes.
            passes: number of forward passes if every batch fits; the entry has `passes` if there were more.
            scaled: whether there is a gradient scaler; the entry then has its scale.
        """
        s, names = statistics, [task.name for task in self.tasks]
        by_property: dict[str, dict[str, float]] = {}
        for (task, name), loss, count in zip(targets_of(self.tasks), s.target_losses, s.labelled, strict=True):
            if count > 0:
                by_property.setdefault(names[task], {})[name] = loss / count
        entry = {
            "step": self.step,
            "seconds": round(self.seconds, 3),
            "loss": s.loss,
            "learning_rate": self.learning_rate,
            "gradient_norm": s.gradient_norm if s.finite else None,
            "loss_by_set": {t: a / b for t, a, b in zip(names, s.losses, s.structures, strict=True) if b > 0},
            "loss_by_property": by_property,
            "structures": round(sum(s.structures)),
            "structures_by_set": {t: round(b) for t, b in zip(names, s.structures, strict=True) if b > 0},
            "atoms": round(s.atoms),
            "edges": round(s.edges),
            "step_seconds": round(self.step_seconds, 5),
            "data_seconds": round(s.data_seconds / processes, 5),
        }
        if s.passes > passes:
            entry["passes"] = int(s.passes)
        if scaled:
            entry["scale"] = s.scale
        return entry
