"""Validation and test errors of a model, in physical units."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from ase.data import chemical_symbols
from torch import nn

from eutectic.atoms import MAX_ATOMIC_NUMBER, PROPERTIES, EutecticError, Structure
from eutectic.data.store import Store
from eutectic.models.multitask import MultitaskModel
from eutectic.tasks import Sample, Task, make_batch
from eutectic.tasks.metrics import ClassErrorSum, ErrorSum, shown
from eutectic.train.batches.sampler import TaskDataset

AT_ONCE = 256
"""Number of structures read from a store at a time."""

KEPT_VALUES = 500
"""Number of structures of a store whose values are kept for a plot."""


@runtime_checkable
class LastFeatures(Protocol):
    """Collects last-layer features and the corresponding errors during an evaluation.

    Attributes:
        names: properties to collect, whose heads must have last-layer features.
    """

    @property
    def names(self) -> Sequence[str]: ...

    def add(self, name: str, error: float, features: np.ndarray) -> None:
        """Add prediction − label of a structure, in the unit of the property, and its features (width,)."""


Errors = dict[str, dict[str, ErrorSum]]
"""Task → property → error; a `ClassErrorSum` where the property's values are classes."""


def evaluate(
    model: nn.Module,
    tasks: Sequence[Task],
    items: Sequence[Sample],
    *,
    batch_size: int = 32,
    device: torch.device | str = "cpu",
    keep: bool = False,
    per_atom: bool = False,
    conservative: bool = False,
    baseline: Task | None = None,
    progress: Callable[[int], None] | None = None,
    seen: Callable[[str, str, Sample, np.ndarray], None] | None = None,
    last_features: LastFeatures | None = None,
    into: Errors | None = None,
) -> Errors:
    """Predict every labelled value and compare it with its label.

    Args:
        model: a `MultitaskModel`; its mode is restored afterwards.
        tasks: all tasks of the model.
        items: in any order.
        keep: keep truth and prediction of every value.
        per_atom: divide extensive properties by the number of atoms before comparing.
        conservative: compute forces and stress as derivatives of the energy, even if tasks have heads for them.
        baseline: task with the references and means of the mean predictor, if those of the only task in `tasks` are
            fitted to the residuals of kept heads; default: the task itself.
        progress: called with the number of structures done so far.
        seen: called with task, property, item and the absolute errors of its values.
        last_features: collects the last-layer features of all structures.
        into: errors to add to.

    Returns:
        Task → property → errors.
    """
    errors = no_errors(tasks) if into is None else into
    training, dtype = model.training, next(model.parameters()).dtype
    model.eval()
    try:
        # Batches of similar sizes, so that none is much larger than the others.
        ordered = sorted(items, key=lambda item: len(item.graph.structure))
        for first in range(0, len(ordered), batch_size):
            chunk = sorted(ordered[first : first + batch_size], key=lambda item: item.task)
            batch = make_batch(chunk, tasks, dtype).to(device)
            with torch.no_grad():
                options: dict[str, Any] = {"conservative": True} if conservative else {}
                if last_features is not None:
                    options["last_features"] = last_features.names
                predictions = model(batch.graph, batch.parts, **options)
            for index, task in enumerate(tasks):
                of_task = [item for item in chunk if item.task == index]
                if of_task:
                    _compare(
                        errors[task.name],
                        task,
                        of_task,
                        predictions[task.name],
                        keep,
                        per_atom,
                        seen,
                        baseline or task,
                        last_features,
                    )
            if progress is not None:
                progress(min(first + batch_size, len(ordered)))
    finally:
        model.train(training)
    return errors


def no_errors(tasks: Sequence[Task]) -> Errors:
    """Empty error sums."""
    return {
        task.name: {name: ClassErrorSum() if t.categorical else ErrorSum() for name, t in task.targets.items()}
        for task in tasks
    }


def evaluate_store(
    model: MultitaskModel,
    task: Task,
    store: Store,
    rows: np.ndarray,
    *,
    batch_size: int = 32,
    conservative: bool = False,
    baseline: Task | None = None,
    seen: Callable[[str, str, Sample, np.ndarray], None] | None = None,
    last_features: LastFeatures | None = None,
    progress: Callable[[int], object] = lambda structures: None,
) -> tuple[dict[str, ErrorSum], list[EutecticError]]:
    """Errors on rows of a store, read and predicted a few at a time; runs on the device of the model.

    Args:
        model: with the task; its mode is restored afterwards.
        task: whose targets are compared.
        store, rows: the structures.
        batch_size, conservative, baseline, seen, last_features: as in `evaluate`.
        progress: called with the number of structures done since the last call.

    Returns:
        Property → errors, with values kept for evenly spaced structures; and errors of structures that could not be
        predicted.
    """
    errors, refused = no_errors([task]), list[EutecticError]()
    lists, device = model.backbone.edge_lists, next(model.parameters()).device
    # Structures whose values are kept for a plot.
    keep = set(np.linspace(0, max(len(rows) - 1, 0), min(KEPT_VALUES, len(rows))).astype(int).tolist())
    for first in range(0, len(rows), AT_ONCE):
        some = rows[first : first + AT_ONCE]
        data = TaskDataset(0, task, store, some, edge_lists=lists)
        items: list[Sample | None] = []
        try:
            items += data.items()
        except EutecticError:  # read one by one to find the structures that fail
            for i in range(len(some)):
                try:
                    items.append(data.item(i))
                except EutecticError as error:
                    items.append(None)
                    refused.append(error)
        for kept in (True, False):
            part = [x for i, x in enumerate(items, first) if x is not None and (i in keep) == kept]
            if part:
                evaluate(
                    model,
                    [task],
                    part,
                    batch_size=batch_size,
                    device=device,
                    keep=kept,
                    conservative=conservative,
                    baseline=baseline,
                    seen=seen,
                    last_features=last_features,
                    into=errors,
                )
        progress(len(some))
    return errors[task.name], refused


def _compare(
    errors: dict[str, ErrorSum],
    task: Task,
    items: Sequence[Sample],
    predicted: dict[str, torch.Tensor],
    keep: bool,
    per_atom: bool,
    seen: Callable[[str, str, Sample, np.ndarray], None] | None,
    baseline: Task,
    last_features: LastFeatures | None,
) -> None:
    for name, target in task.targets.items():
        values, prop, error = (
            predicted[name].detach().to("cpu", torch.float64).numpy(),
            task.property(name),
            errors[name],
        )
        rows = None
        if last_features is not None and name in last_features.names:
            rows = predicted[f"{name}_last_features"].detach().to("cpu", torch.float64).numpy()
        start = 0
        for place, item in enumerate(items):
            structure = item.graph.structure
            length = len(structure) if prop.level == "atom" else 1
            value = values[start : start + length] if prop.level == "atom" else np.asarray(values[start])
            start += length
            if name not in item.labels:
                continue
            if isinstance(error, ClassErrorSum):
                probabilities = target.physical(value, structure.numbers)
                absolute = np.asarray(error.add_class(int(item.labels[name]), probabilities))
            else:
                compared = _compared(name, structure)
                atoms = len(structure) if prop.extensive else 1
                size = atoms if per_atom else 1
                truth, prediction, nothing = (
                    np.asarray(target.normaliser.denormalise(v, structure.numbers)[compared] / size)
                    for v in (item.labels[name], value, np.zeros_like(item.labels[name]))
                )
                other = nothing
                if baseline is not task:
                    plain = baseline.targets[name].normaliser
                    zero = np.zeros_like(item.labels[name])
                    other = np.asarray(plain.denormalise(zero, structure.numbers)[compared] / size)
                error.add(truth, prediction, other, nothing, size=1 if per_atom else atoms, keep=keep)
                absolute = np.asarray(np.abs(prediction - truth))
                if rows is not None and last_features is not None:
                    last_features.add(name, size * float(prediction - truth), rows[place])
            if seen is not None:
                seen(task.name, name, item, absolute)


def _compared(name: str, structure: Structure) -> Any:
    """Index of the compared values: all, but forces only on free atoms (OC20's convention)."""
    return ~structure.fixed if name == "forces" else ...


class Breakdown:
    """Errors by structure size, and by element for per-atom properties, as additive sums.

    Args:
        names: task and property of each row of the sums.

    Attributes:
        sizes: (n_names, 20, 2) sum and count for structures with 2^i to 2^(i+1) − 1 atoms.
        elements: (n_names, 119, 2) sum and count by atomic number.
    """

    def __init__(self, names: Sequence[tuple[str, str]]) -> None:
        self.names = list(names)
        self._row = {name: i for i, name in enumerate(self.names)}
        self.sizes = torch.zeros(len(self.names), 20, 2, dtype=torch.float64)
        self.elements = torch.zeros(len(self.names), MAX_ATOMIC_NUMBER + 1, 2, dtype=torch.float64)

    def add(self, task: str, name: str, item: Sample, error: np.ndarray) -> None:
        """Add errors; the `seen` callback of `evaluate`."""
        structure, row = item.graph.structure, self._row[task, name]
        self.sizes[row, len(structure).bit_length() - 1] += torch.tensor([error.sum(), error.size])
        if PROPERTIES[name].level == "atom":
            numbers = structure.numbers[_compared(name, structure)]
            by_atom = error.reshape(len(numbers), -1)
            for column, values in enumerate((by_atom.sum(1), np.full(len(numbers), by_atom.shape[1]))):
                sums = np.bincount(numbers, values, minlength=MAX_ATOMIC_NUMBER + 1)
                self.elements[row, :, column] += torch.from_numpy(sums)

    def table(self) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
        """ "size" or "element" → task → property → "8–15" or "C" → mean absolute error in the display unit."""
        sizes = {i: f"{2**i}–{2 ** (i + 1) - 1}" if i else "1" for i in range(20)}
        symbols = dict(enumerate(chemical_symbols))
        result: dict[str, dict[str, dict[str, dict[str, float]]]] = {"size": {}, "element": {}}
        for kind, sums, labels in (("size", self.sizes, sizes), ("element", self.elements, symbols)):
            for (task, name), rows in zip(self.names, sums.tolist(), strict=True):
                means = {labels[i]: shown(name, total / count)[0] for i, (total, count) in enumerate(rows) if count}
                if means:
                    result[kind].setdefault(task, {})[name] = means
        return result
