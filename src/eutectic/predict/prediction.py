"""Predictions of a trained model for structures without labels, in physical units."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch

from eutectic.atoms import PROPERTIES, EutecticError, Structure
from eutectic.checkpoints.model import TrainedModel, task_named
from eutectic.checkpoints.uncertainty import SUFFIX, of_uncertainty, property_of
from eutectic.graph import GraphSettings, StructureGraph, build_graph, build_graphs
from eutectic.predict.memory import check_memory
from eutectic.tasks import Sample, Task, make_batch

Prediction = dict[str, np.ndarray]
"""Property → value in the property's shape, or class probabilities; float64. `PROPERTY_uncertainty` → its standard
deviation, for properties whose uncertainty was calibrated."""


def task_of(model: TrainedModel, name: str | None, where: str = "task") -> Task:
    """The task of that name; without a name, the only task or the one the model was fine-tuned on.

    Raises:
        EutecticError: no task of that name (suggests the nearest), or several tasks and no name.
    """
    if name is not None:
        return task_named(model.tasks, name, where)
    if len(model.tasks) == 1:
        return model.tasks[0]
    names = [task.name for task in model.tasks]
    if (own := model.provenance.get("task")) in names:
        return task_named(model.tasks, str(own), where)
    raise EutecticError(
        where,
        f"no task given, and {len(names)} tasks in the model",
        f"one of {', '.join(names) or 'none: this model has no heads'}",
        f"name one, such as {names[0]!r}" if names else "fine-tune it first",
    )


def predict(
    model: TrainedModel,
    task_name: str,
    structures: Sequence[Structure],
    *,
    batch_size: int = 32,
    normalised: bool = False,
    conservative: bool = False,
    on_done: Callable[[int], None] = lambda structures: None,
) -> list[Prediction]:
    """Predict the properties of one task for each structure.

    Runs on the device and in the precision of the model's weights.

    Args:
        model: its mode is restored afterwards.
        task_name: sets heads, graph, references and scales.
        structures: of any sizes.
        batch_size: structures per batch.
        normalised: return model units, without scale and references; for classes, logits.
        conservative: predict forces and, for periodic structures, stress as derivatives of the energy head, in place
            of a force head's.
        on_done: called with the number of structures predicted since the last call.

    Returns:
        For each structure, in order: property → value in the property's unit (energy eV, forces (n_atoms, 3) eV/Å, …),
        or probabilities (n_classes,) for classes.

    Raises:
        EutecticError: no such task; derivatives from a task without an energy head; a structure, with its index, that
            is invalid, has an element without reference, or has a prediction that is not finite. All structures are
            checked before the first prediction; `predict_each` yields their errors instead.
    """
    task = checked_task(model, task_name, conservative, batch_size)
    for index, structure in enumerate(structures):
        _check(structure, task, index, normalised)
    predictions: list[Prediction] = []
    # One window: similar sizes from the whole list share a batch.
    each = predict_each(
        model,
        task_name,
        structures,
        batch_size=batch_size,
        normalised=normalised,
        conservative=conservative,
        window=max(1, len(structures)),
        on_done=on_done,
    )
    for prediction in each:
        if isinstance(prediction, EutecticError):
            raise prediction
        predictions.append(prediction)
    return predictions


def predict_each(
    model: TrainedModel,
    task_name: str,
    structures: Iterable[Structure],
    *,
    batch_size: int = 32,
    normalised: bool = False,
    conservative: bool = False,
    window: int | None = None,
    on_done: Callable[[int], None] = lambda structures: None,
) -> Iterator[Prediction | EutecticError]:
    """As `predict`, one by one in constant memory; yields an error for a structure that cannot be predicted.

    Args:
        model, task_name, batch_size, normalised, conservative, on_done: as for `predict`.
        structures: read lazily.
        window: number of structures read together and sorted into batches of similar sizes; default: `window_of`.

    Yields:
        In the order of the structures, a prediction or the error that prevented it.

    Raises:
        EutecticError: no such task; derivatives from a task without an energy head.
    """
    task = checked_task(model, task_name, conservative, batch_size)
    yield from in_batches(
        structures,
        lambda index, structure: _check(structure, task, index, normalised),
        lambda batch: _predict_batch(model, task, batch, normalised=normalised, conservative=conservative),
        batch_size=batch_size,
        window=window,
        on_done=on_done,
    )


def window_of(batch_size: int) -> int:
    """Number of structures read together: eight batches. Results are bitwise reproducible only for whole windows, since
    sums may be rounded differently in another batch."""
    return 8 * batch_size


T = TypeVar("T")


def in_batches(
    structures: Iterable[Structure],
    check: Callable[[int, Structure], None],
    compute: Callable[[Sequence[tuple[int, Structure]]], Sequence[T | EutecticError]],
    *,
    batch_size: int,
    window: int | None = None,
    on_done: Callable[[int], None] = lambda structures: None,
) -> Iterator[T | EutecticError]:
    """Process structures in batches of similar sizes, in constant memory; results keep the order of the structures.

    Args:
        structures, batch_size, window, on_done: as for `predict_each`.
        check: called with index and structure; raises an error for a structure to skip.
        compute: returns the results of a batch, given as pairs of index and structure.
    """
    remaining, first = iter(structures), 0
    while current := list(itertools.islice(remaining, window_of(batch_size) if window is None else window)):
        results: list[T | EutecticError | None] = [None] * len(current)
        for i, structure in enumerate(current):
            try:
                check(first + i, structure)
            except EutecticError as error:
                results[i] = error
        # Similar sizes together, so that no batch is much larger than the others.
        order = sorted((i for i in range(len(current)) if results[i] is None), key=lambda i: len(current[i]))
        for start in range(0, len(order), batch_size):
            chunk = order[start : start + batch_size]
            for i, result in zip(chunk, compute([(first + i, current[i]) for i in chunk]), strict=True):
                results[i] = result
            on_done(len(chunk))
        on_done(len(current) - len(order))
        yield from (result for result in results if result is not None)
        first += len(current)


def checked_task(model: TrainedModel, task_name: str | None, conservative: bool, batch_size: int = 1) -> Task:
    """As `task_of`, after checking the options.

    Raises:
        EutecticError: as `task_of`; an invalid batch size; derivatives from a task without an energy head.
    """
    if batch_size < 1:
        raise EutecticError("batch_size", f"{batch_size}", "at least one structure per batch", "choose a larger number")
    task = task_of(model, task_name)
    if conservative and task.heads.get("energy") is None:
        raise EutecticError(
            f"task {task.name}",
            f"derivatives of the energy requested; its heads: {', '.join(task.heads)}",
            "a task with an energy head",
            "choose another task, or leave out --conservative",
        )
    return task


def check_references(structure: Structure, task: Task) -> None:
    """Check that a task has references for all elements of a structure.

    Raises:
        EutecticError: an element without a reference.
    """
    for target in task.targets.values():
        if target.normaliser.references is not None:
            target.normaliser.references.of(structure.numbers)


def _check(structure: Structure, task: Task, index: int, normalised: bool) -> None:
    """Check that a structure can be predicted.

    Raises:
        EutecticError: it is invalid, or has an element without a reference.
    """
    structure.check(f"structure {index}")
    if not normalised:
        try:
            check_references(structure, task)
        except EutecticError as error:
            raise _with_index(error, task, index) from error


def _predict_batch(
    model: TrainedModel,
    task: Task,
    structures: Sequence[tuple[int, Structure]],
    *,
    normalised: bool,
    conservative: bool,
) -> list[Prediction | EutecticError]:
    """Predict pairs of index and structure in one forward pass."""
    results: dict[int, Prediction | EutecticError] = {}
    items: list[tuple[int, Structure, Sample]] = []
    graphs = graphs_or_errors([structure for _, structure in structures], task.graph, model.module.backbone.edge_lists)
    for (index, structure), graph in zip(structures, graphs, strict=True):
        if isinstance(graph, EutecticError):
            results[index] = _with_index(graph, task, index)
        else:
            items.append((index, structure, Sample(0, graph, {})))
    if items:
        samples = [sample for _, _, sample in items]
        check_memory(model, task, samples, conservative)
        for (index, structure, _), values in zip(items, forward(model, task, samples, conservative), strict=True):
            try:
                results[index] = finished(task, values, structure, normalised=normalised, conservative=conservative)
            except EutecticError as error:
                results[index] = _with_index(error, task, index)
    return [results[index] for index, _ in structures]


def graphs_or_errors(
    structures: Sequence[Structure], settings: GraphSettings, lists: Collection[str]
) -> list[StructureGraph | EutecticError]:
    """For each structure its graph, or the error that prevented it."""

    def one(structure: Structure) -> StructureGraph | EutecticError:
        try:
            return build_graph(structure, settings, lists=lists)
        except EutecticError as error:
            return error

    try:
        # Together, in less than half the time for small structures.
        return list(build_graphs(structures, settings, lists=lists))
    except EutecticError:
        return [one(structure) for structure in structures]


def forward(
    model: TrainedModel,
    task: Task,
    samples: Sequence[Sample],
    conservative: bool,
    *,
    of_atoms: bool = False,
    autocast: torch.dtype | None = None,
) -> list[Prediction]:
    """Predict structures in one forward pass.

    Runs on the device and in the precision of the model's weights.

    Args:
        model: its mode is restored afterwards.
        task: task of the samples.
        samples: at least one.
        conservative, of_atoms: see `MultitaskModel.forward`.
        autocast: precision of matrix products, if lower than the weights'.

    Returns:
        For each structure: property → value in model units; uncertainties are in the units of their properties.
    """
    uncertainties = model.uncertainties.get(task.name, {})
    weight = next(model.module.parameters())
    # The batch has a slice of this task only, so the heads of other tasks do not run.
    batch = make_batch(samples, [task], weight.dtype).to(weight.device)
    # Switching the mode of all modules takes a tenth of the time of a small structure.
    if training := model.module.training:
        model.module.eval()
    try:
        with torch.no_grad(), torch.autocast(weight.device.type, dtype=autocast, enabled=autocast is not None):
            values = model.module(
                batch.graph, batch.parts, conservative=conservative, of_atoms=of_atoms, last_features=uncertainties
            )[task.name]
    finally:
        if training:
            model.module.train()
    sigmas = {
        f"{name}{SUFFIX}": uncertainty.of(values.pop(f"{name}_last_features"))
        for name, uncertainty in uncertainties.items()
    }
    arrays = {name: _per_structure(name, value, samples) for name, value in values.items()}
    arrays |= {name: [np.asarray(value) for value in column] for name, column in sigmas.items()}
    return [{name: rows[i] for name, rows in arrays.items()} for i in range(len(samples))]


def finished(
    task: Task, values: Prediction, structure: Structure, *, normalised: bool = False, conservative: bool = False
) -> Prediction:
    """One structure's result of `forward` in physical units, without stress unless periodic in three directions.

    Raises:
        EutecticError: a value that is not finite.
    """
    physical: Prediction = {}
    for name, value in values.items():
        if name == "stress" and not structure.pbc.all():
            continue
        _check_finite(name, value, task)
        if (uncertain := of_uncertainty(name)) is not None:
            physical[name] = value / task.targets[uncertain].normaliser.scale if normalised else value
            continue
        physical[name] = value if normalised else _denormalised(task, name, value, structure, conservative)
    return physical


def _with_index(error: EutecticError, task: Task, index: int) -> EutecticError:
    """The error, with the structure's index added to its location."""
    return EutecticError(f"{task.name}, structure {index}, {error.where}", error.given, error.expected, error.fix)


def _check_finite(name: str, value: np.ndarray, task: Task) -> None:
    wrong = value[~np.isfinite(value)]
    if wrong.size:
        raise EutecticError(
            name,
            f"{name} of task {task.name} predicted as {wrong[0]}",
            "finite predictions",
            "check its positions and elements (`eutectic data check`); if other structures fail too, the model is "
            "damaged: copy or train it again",
        )


def _per_structure(name: str, value: torch.Tensor, items: Sequence[Sample]) -> list[np.ndarray]:
    array = value.detach().to("cpu", torch.float64).numpy()
    if name in PROPERTIES and PROPERTIES[name].level == "structure":
        return [np.array(row) for row in array]
    ends = np.cumsum([len(item.graph.structure) for item in items])
    return [rows.copy() for rows in np.split(array, ends[:-1])]


def _denormalised(task: Task, name: str, value: np.ndarray, structure: Structure, conservative: bool) -> np.ndarray:
    if conservative and name in ("forces", "stress"):
        return value * task.targets["energy"].normaliser.scale
    if name == "energies" and name not in task.targets:
        return task.targets["energy"].normaliser.of_atoms(value, structure.numbers)
    return task.targets[name].physical(value, structure.numbers)


def relative_energies(model: TrainedModel, task_name: str) -> str | None:
    """A note if the energies of a task are not total energies; None if they include references."""
    target = task_of(model, task_name).targets.get("energy")
    if target is None or target.normaliser.references is not None:
        return None
    return str(model.provenance.get("energies", "relative: no per-element references are known"))


def predicted_names(model: TrainedModel, task: Task, conservative: bool = False) -> list[str]:
    """Names of the predictions: the properties of a task, and its calibrated uncertainties."""
    derived = ("forces", "stress") if conservative else ()
    uncertainties = [f"{name}{SUFFIX}" for name in model.uncertainties.get(task.name, {})]
    return list(dict.fromkeys([*task.heads, *derived, *uncertainties]))


def unit_of(task: Task, name: str, *, normalised: bool = False) -> str:
    """Unit of a prediction, as text."""
    name = property_of(name)
    if normalised:
        return "normalised"
    # Conservative forces and stress need no target of the task.
    target = task.targets.get(name)
    return "probability of each class" if target is not None and target.categorical else PROPERTIES[name].unit
