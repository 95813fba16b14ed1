"""Batches: a graph for the model and labels for the loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from eutectic.atoms import PROPERTIES
from eutectic.graph import Graph, StructureGraph, collate
from eutectic.models.multitask import TaskSlice
from eutectic.tasks.task import Task


@dataclass(frozen=True)
class Sample:
    """One structure ready to be batched.

    Attributes:
        task: index of its task.
        graph: graph built with the task's settings.
        labels: property → normalised value; missing labels are left out.
    """

    task: int
    graph: StructureGraph
    labels: Mapping[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Batch:
    """A batch ordered by task.

    Attributes:
        graph: input of the model.
        parts: slice of each task of the model, in the model's order.
        labels: task → property → values in normalised units, NaN where missing.
        n_structures: number on this process; the loss is divided by the total over all processes.
    """

    graph: Graph
    parts: tuple[TaskSlice, ...]
    labels: Mapping[str, Mapping[str, Tensor]]
    n_structures: int

    def to(self, device: torch.device | str) -> Batch:
        """Copy to a device."""
        labels = {
            task: {k: v.to(device, non_blocking=True) for k, v in values.items()}
            for task, values in self.labels.items()
        }
        return Batch(self.graph.to(device), self.parts, labels, self.n_structures)


def make_batch(items: Sequence[Sample], tasks: Sequence[Task], dtype: torch.dtype = torch.float32) -> Batch:
    """Order items by task and collate their graphs and labels.

    Args:
        items: in any order; at least one.
        tasks: all tasks of the model.
        dtype: dtype of geometry and labels.
    """
    ordered = sorted(items, key=lambda item: item.task)
    graph = collate([item.graph for item in ordered], dtype)
    parts, labels = [], {}
    s = a = e = 0
    for index, task in enumerate(tasks):
        task_items = [item for item in ordered if item.task == index]
        n_atoms = sum(len(item.graph.structure) for item in task_items)
        n_edges = sum(len(item.graph.main) for item in task_items)
        parts.append(TaskSlice(task.name, (s, s + len(task_items)), (a, a + n_atoms), (e, e + n_edges)))
        s, a, e = s + len(task_items), a + n_atoms, e + n_edges
        labels[task.name] = {name: _column(task_items, name, dtype) for name in task.targets}
    return Batch(graph, tuple(parts), labels, len(items))


def labelled_structures(batch: Batch, tasks: Sequence[Task]) -> list[dict[str, int]]:
    """For each task: property → number of structures with its label. The batch must be on the CPU."""
    counts = []
    for part, task in zip(batch.parts, tasks, strict=True):
        first, last = part.structures
        n_atoms = batch.graph.n_atoms[first:last]
        first_atoms = torch.cumsum(n_atoms, 0) - n_atoms
        by_property = {}
        for name in task.targets:
            truth = batch.labels[task.name][name]
            # NaN marks a missing label: either all values of a structure are NaN, or none is.
            per_structure = truth if PROPERTIES[name].level == "structure" else truth[first_atoms]
            nan = torch.isnan(per_structure)
            missing = nan.flatten(1).any(1) if nan.ndim > 1 else nan
            by_property[name] = int((~missing).sum())
        counts.append(by_property)
    return counts


def _column(items: Sequence[Sample], name: str, dtype: torch.dtype) -> Tensor:
    prop = PROPERTIES[name]
    shape = prop.shape(0)[1:] if prop.level == "atom" else prop.shape(0)
    values = [np.zeros((0, *shape))]
    known = [np.zeros(0, dtype=bool)]
    for item in items:
        labelled = name in item.labels
        value = item.labels[name] if labelled else np.full(prop.shape(len(item.graph.structure)), np.nan)
        values.append(value.reshape(-1, *shape))
        known.append(np.full(len(values[-1]), labelled))
    column = np.concatenate(values)
    # NaN marks a missing label; a label that is itself NaN becomes infinite, so that it does not count as missing.
    column[np.isnan(column) & np.concatenate(known).reshape(-1, *[1] * len(shape))] = np.inf
    return torch.from_numpy(column).to(dtype)
