"""The structure-wise loss of JMP: every structure counts the same, whatever its size.

L_b = Σ_targets weight · error_b, where error_b is |ŷ − y| for a property of the structure and the mean over
atoms of ‖ŷ_i − y_i‖₂ for a property of its atoms, both in normalised units (Shoghi et al. 2024, section 3.2).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from eutectic.atoms import PROPERTIES
from eutectic.models.multitask import Predictions, TaskSlice
from eutectic.tasks.batch import Batch
from eutectic.tasks.task import Task


def structure_losses(predictions: Predictions, batch: Batch, tasks: Sequence[Task]) -> list[Tensor]:
    """For each task the losses of its structures, (n_structures of the part,). A missing label adds nothing."""
    return [
        _part_losses(part, predictions[part.task], batch, task) for part, task in zip(batch.parts, tasks, strict=True)
    ]


def _part_losses(part: TaskSlice, predicted: dict[str, Tensor], batch: Batch, task: Task) -> Tensor:
    first, last = part.structures
    total = batch.graph.positions.new_zeros(last - first)
    for name, target in task.targets.items():
        if target.weight == 0:
            continue
        truth = batch.labels[task.name][name]
        components = 3 ** PROPERTIES[name].rank
        known = ~torch.isnan(truth)
        # An infinite label is a wrong one: it makes the loss infinite, and the step is skipped and kept.
        difference = torch.where(known, predicted[name] - torch.where(known, truth, 0.0), 0.0)
        if PROPERTIES[name].level == "structure":
            error = difference.abs().reshape(last - first, components).sum(1)
        else:
            # 1e-6 keeps the gradient of the norm finite at zero, as PyTorch's pairwise distance does.
            flat = difference.reshape(len(difference), components)
            norms = torch.linalg.vector_norm(flat + 1e-6, dim=1) * known.reshape(len(flat), components).all(1)
            atoms = slice(*part.atoms)
            owner = batch.graph.structure[atoms] - first
            size = batch.graph.n_atoms[first:last].to(norms.dtype)
            error = norms.new_zeros(last - first).index_add(0, owner, norms) / size
        total = total + target.weight * error
    return total
