"""The structure-wise loss of JMP: every structure counts the same, whatever its size.

L_b = Σ_targets weight · error_b, where error_b is |ŷ − y| for a property of the structure and the mean over
atoms of ‖ŷ_i − y_i‖₂ for a property of its atoms, both in normalised units (Shoghi et al. 2024, section 3.2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from eutectic.atoms import PROPERTIES
from eutectic.models.multitask import Predictions, TaskSlice
from eutectic.tasks.batch import Batch
from eutectic.tasks.task import Task


def structure_losses(predictions: Predictions, batch: Batch, tasks: Sequence[Task]) -> list[Tensor]:
    """For each task the losses of its structures, (n_structures of the part,). A missing label adds nothing."""
    return weighted_sums(target_losses(predictions, batch, tasks), batch, tasks)


def target_losses(predictions: Predictions, batch: Batch, tasks: Sequence[Task]) -> list[dict[str, Tensor]]:
    """For each task: property → error_b of its structures without the weight, (n_structures of the part,).

    A structure without the label has 0. Properties of weight 0 are left out.
    """
    return [
        {
            name: _target_loss(part, predictions[part.task][name], batch, name)
            for name, target in task.targets.items()
            if target.weight != 0
        }
        for part, task in zip(batch.parts, tasks, strict=True)
    ]


def weighted_sums(losses: Sequence[Mapping[str, Tensor]], batch: Batch, tasks: Sequence[Task]) -> list[Tensor]:
    """`structure_losses` from what `target_losses` returns, for whoever needs both."""
    sums = []
    for part, task, by_property in zip(batch.parts, tasks, losses, strict=True):
        first, last = part.structures
        total = batch.graph.positions.new_zeros(last - first)
        for name, error in by_property.items():
            total = total + task.targets[name].weight * error
        sums.append(total)
    return sums


def labelled_structures(batch: Batch, tasks: Sequence[Task]) -> list[dict[str, int]]:
    """For each task: property → structures that carry its label. For a batch on the CPU: it reads the labels."""
    counts = []
    for part, task in zip(batch.parts, tasks, strict=True):
        first, last = part.structures
        n_atoms = batch.graph.n_atoms[first:last]
        first_atoms = torch.cumsum(n_atoms, 0) - n_atoms
        by_property = {}
        for name in task.targets:
            truth = batch.labels[task.name][name]
            # NaN stands for a label that is not there: all numbers of a structure are NaN then, or none is.
            one_each = truth if PROPERTIES[name].level == "structure" else truth[first_atoms]
            missing = torch.isnan(one_each).flatten(1).any(1) if one_each.ndim > 1 else torch.isnan(one_each)
            by_property[name] = int((~missing).sum())
        counts.append(by_property)
    return counts


def _target_loss(part: TaskSlice, predicted: Tensor, batch: Batch, name: str) -> Tensor:
    first, last = part.structures
    truth = batch.labels[part.task][name]
    components = 3 ** PROPERTIES[name].rank
    known = ~torch.isnan(truth)
    # An infinite label is a wrong one: it makes the loss infinite, and the step is skipped and kept.
    difference = torch.where(known, predicted - torch.where(known, truth, 0.0), 0.0)
    if PROPERTIES[name].level == "structure":
        return difference.abs().reshape(last - first, components).sum(1)
    # 1e-6 keeps the gradient of the norm finite at zero, as PyTorch's pairwise distance does.
    flat = difference.reshape(len(difference), components)
    norms = torch.linalg.vector_norm(flat + 1e-6, dim=1) * known.reshape(len(flat), components).all(1)
    atoms = slice(*part.atoms)
    owner = batch.graph.structure[atoms] - first
    size = batch.graph.n_atoms[first:last].to(norms.dtype)
    return norms.new_zeros(last - first).index_add(0, owner, norms) / size
