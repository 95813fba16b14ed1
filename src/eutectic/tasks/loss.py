"""The structure-wise loss of JMP: every structure has the same weight, whatever its size.

L_b = Σ_targets weight · error_b, where error_b is ℓ(ŷ − y) for a property of the structure and the mean over atoms
of ℓ(ŷ_i − y_i) for a property of its atoms, in normalised units (Shoghi et al. 2024, section 3.2). With ‖d‖ the
2-norm over the components of a difference (|d| for a scalar), ℓ is

    mae     ‖d‖
    mse     ‖d‖²
    huber   ‖d‖²/2 where ‖d‖ < 1, else ‖d‖ − 1/2

and for classes, where ŷ are logits and y is the index of the class, cross_entropy: −log softmax(ŷ)_y.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from eutectic.models.multitask import Predictions, TaskSlice
from eutectic.tasks.batch import Batch
from eutectic.tasks.task import Loss, Task


def structure_losses(predictions: Predictions, batch: Batch, tasks: Sequence[Task]) -> list[Tensor]:
    """For each task, the losses of its structures, (n_structures of the task,). A missing label contributes zero."""
    return weighted_sums(target_losses(predictions, batch, tasks), batch, tasks)


def target_losses(predictions: Predictions, batch: Batch, tasks: Sequence[Task]) -> list[dict[str, Tensor]]:
    """For each task and each target with non-zero weight, the unweighted errors of its structures,
    (n_structures of the task,)."""
    return [
        {
            name: _errors(part, predictions[task.name][name], batch, task, name)
            for name, target in task.targets.items()
            if target.weight != 0
        }
        for part, task in zip(batch.parts, tasks, strict=True)
    ]


def weighted_sums(errors: Sequence[Mapping[str, Tensor]], batch: Batch, tasks: Sequence[Task]) -> list[Tensor]:
    """For each task, the losses of its structures from their errors by target (see `target_losses`)."""
    losses = []
    for part, task_errors, task in zip(batch.parts, errors, tasks, strict=True):
        total = batch.graph.positions.new_zeros(part.structures[1] - part.structures[0])
        for name, error in task_errors.items():
            total = total + task.targets[name].weight * error
        losses.append(total)
    return losses


def _errors(part: TaskSlice, predicted: Tensor, batch: Batch, task: Task, name: str) -> Tensor:
    first, last = part.structures
    truth, prop, loss = batch.labels[task.name][name], task.property(name), task.targets[name].settings.loss
    assert loss is not None, "a task's settings are resolved"
    values = _classes(predicted, truth) if loss == "cross_entropy" else _values(predicted, truth, prop.rank, loss)
    if prop.level == "structure":
        return values
    atoms = slice(*part.atoms)
    owner = batch.graph.structure[atoms] - first
    size = batch.graph.n_atoms[first:last].to(values.dtype)
    return values.new_zeros(last - first).index_add(0, owner, values) / size


def _values(predicted: Tensor, truth: Tensor, rank: int, loss: Loss) -> Tensor:
    """ℓ of each row; 0 if the label is missing."""
    known = ~torch.isnan(truth)
    # An infinite label is invalid: it makes the loss infinite, and the step is skipped and saved.
    difference = torch.where(known, predicted - torch.where(known, truth, 0.0), 0.0).reshape(len(truth), 3**rank)
    if loss == "mse":
        return difference.square().sum(1)
    if rank == 0:
        norm = difference.abs().sum(1)
    else:
        # 1e-6 keeps the gradient of the norm finite at zero, as in PyTorch's pairwise distance.
        norm = torch.linalg.vector_norm(difference + 1e-6, dim=1) * known.reshape(len(truth), 3**rank).all(1)
    return norm if loss == "mae" else torch.where(norm < 1, norm.square() / 2, norm - 0.5)


def _classes(logits: Tensor, truth: Tensor) -> Tensor:
    """Cross entropy of each row; 0 if the label is missing, infinite if it is not one of the classes."""
    known, n = ~torch.isnan(truth), logits.shape[1]
    error = functional.cross_entropy(logits, truth.nan_to_num(0.0).clamp(0, n - 1).long(), reduction="none")
    error = torch.where((truth < 0) | (truth >= n), torch.inf, error)
    return torch.where(known, error, 0.0)
