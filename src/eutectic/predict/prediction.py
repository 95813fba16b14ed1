"""Predictions of a trained model for structures without labels, in physical units."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch

from eutectic.atoms import PROPERTIES, EutecticError, Structure
from eutectic.checkpoints.model import TrainedModel, task_named
from eutectic.checkpoints.uncertainty import SUFFIX, of_uncertainty, property_of
from eutectic.graph import build_graph
from eutectic.predict.memory import check_memory
from eutectic.tasks import Sample, Task, make_batch

Prediction = dict[str, np.ndarray]
"""Property → value in the property's shape, or class probabilities; float64. `PROPERTY_uncertainty` → its standard
deviation, for the properties of which the model knows one."""


def task_of(model: TrainedModel, name: str | None, where: str = "task") -> Task:
    """The task of that name, the only one, or that which the model was fine-tuned to.

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
        f"no task named, and {len(names)} tasks in the model",
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
        conservative: predict forces and, for periodic structures, stress as derivatives of the energy head; they
            replace those of a force head.
        on_done: called with the number of structures predicted since the last call.

    Returns:
        For each structure, in order: property → value in the property's unit (energy eV, forces (n_atoms, 3) eV/Å, …),
        or probabilities (n_classes,) for classes.

    Raises:
        EutecticError: no such task; derivatives from a task without an energy head; a structure, named by its index,
            that is invalid, has an element without reference, or has a prediction that is not finite. Those that can
            be found beforehand are found before anything is predicted; `predict_each` goes on without them.
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
    """As `predict`, one by one and in constant memory; a structure that cannot be predicted gives its error.

    Args:
        model, task_name, batch_size, normalised, conservative, on_done: as for `predict`.
        structures: read as they are needed.
        window: number of structures that are read together, of which similar sizes share a batch; default: `window_of`.

    Yields:
        In the order of the structures, a prediction or the reason why there is none.

    Raises:
        EutecticError: no such task; derivatives from a task without an energy head.
    """
    task = checked_task(model, task_name, conservative, batch_size)
    yield from in_batches(
        structures,
        lambda index, structure: _check(structure, task, index, normalised),
        lambda some: _predict_batch(model, task, some, normalised=normalised, conservative=conservative),
        batch_size=batch_size,
        window=window,
        on_done=on_done,
    )


def window_of(batch_size: int) -> int:
    """Number of structures that are read together, eight batches. Only whole windows have the same results again, to
    the last digit: in another batch a sum may be rounded otherwise."""
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
    """Work through structures in batches of similar sizes, in constant memory; results are in the order given.

    Args:
        structures, batch_size, window, on_done: as for `predict_each`.
        check: raises the error of a structure, given with its index, that is left out.
        compute: results of a batch, given with their indices.
    """
    remaining, first = iter(structures), 0
    while some := list(itertools.islice(remaining, window_of(batch_size) if window is None else window)):
        found: list[T | EutecticError | None] = [None] * len(some)
        for i, structure in enumerate(some):
            try:
                check(first + i, structure)
            except EutecticError as error:
                found[i] = error
        # Similar sizes together, so that no batch is much larger than the others.
        order = sorted((i for i in range(len(some)) if found[i] is None), key=lambda i: len(some[i]))
        for start in range(0, len(order), batch_size):
            chunk = order[start : start + batch_size]
            for i, result in zip(chunk, compute([(first + i, some[i]) for i in chunk]), strict=True):
                found[i] = result
            on_done(len(chunk))
        on_done(len(some) - len(order))
        yield from (one for one in found if one is not None)
        first += len(some)


def checked_task(model: TrainedModel, task_name: str | None, conservative: bool, batch_size: int = 1) -> Task:
    """The task of that name, or the only one.

    Raises:
        EutecticError: as `task_of`; an impossible batch size; derivatives from a task without an energy head.
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
    """Check that all elements of a structure have the references of a task.

    Raises:
        EutecticError: an element that has none.
    """
    for target in task.targets.values():
        if target.normaliser.references is not None:
            target.normaliser.references.of(structure.numbers)


def _check(structure: Structure, task: Task, index: int, normalised: bool) -> None:
    """Find beforehand why a structure cannot be predicted.

    Raises:
        EutecticError: invalid, or with an element that has no reference.
    """
    structure.check(f"structure {index}")
    if not normalised:
        try:
            check_references(structure, task)
        except EutecticError as error:
            raise _of(error, task, index) from error


def _predict_batch(
    model: TrainedModel,
    task: Task,
    structures: Sequence[tuple[int, Structure]],
    *,
    normalised: bool,
    conservative: bool,
) -> list[Prediction | EutecticError]:
    """Predict structures, given with their indices, in one forward pass."""
    found: dict[int, Prediction | EutecticError] = {}
    items: list[tuple[int, Structure, Sample]] = []
    for index, structure in structures:
        try:
            graph = build_graph(structure, task.graph, lists=model.module.backbone.edge_lists)
            items.append((index, structure, Sample(0, graph, {})))
        except EutecticError as error:
            found[index] = _of(error, task, index)
    if items:
        samples = [sample for _, _, sample in items]
        check_memory(model, task, samples, conservative)
        for (index, structure, _), values in zip(items, forward(model, task, samples, conservative), strict=True):
            try:
                found[index] = finished(task, values, structure, normalised=normalised, conservative=conservative)
            except EutecticError as error:
                found[index] = _of(error, task, index)
    return [found[index] for index, _ in structures]


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
        task: of the samples.
        samples: at least one.
        conservative, of_atoms: see `MultitaskModel.forward`.
        autocast: precision of matrix products, if lower than that of the weights.

    Returns:
        For each structure: property → value in model units; uncertainties are in the units of their properties.
    """
    known = model.uncertainties.get(task.name, {})
    weight = next(model.module.parameters())
    # The batch has a slice of this task only, so the heads of other tasks do not run.
    batch = make_batch(samples, [task], weight.dtype).to(weight.device)
    # Going through all modules takes a tenth of the time of a small structure.
    if training := model.module.training:
        model.module.eval()
    try:
        with torch.no_grad(), torch.autocast(weight.device.type, dtype=autocast, enabled=autocast is not None):
            values = model.module(
                batch.graph, batch.parts, conservative=conservative, of_atoms=of_atoms, last_features=known
            )[task.name]
    finally:
        if training:
            model.module.train()
    doubts = {f"{name}{SUFFIX}": one.of(values.pop(f"{name}_last_features")) for name, one in known.items()}
    arrays = {name: _per_structure(name, value, samples) for name, value in values.items()}
    arrays |= {name: [np.asarray(value) for value in column] for name, column in doubts.items()}
    return [{name: rows[at] for name, rows in arrays.items()} for at in range(len(samples))]


def finished(
    task: Task, values: Prediction, structure: Structure, *, normalised: bool = False, conservative: bool = False
) -> Prediction:
    """One structure's result of `forward` in physical units, without a stress if it is not a crystal.

    Raises:
        EutecticError: a value that is not finite.
    """
    physical: Prediction = {}
    for name, value in values.items():
        if name == "stress" and not structure.pbc.all():
            continue
        _check_finite(name, value, task)
        if (of := of_uncertainty(name)) is not None:
            physical[name] = value / task.targets[of].normaliser.scale if normalised else value
            continue
        physical[name] = value if normalised else _denormalised(task, name, value, structure, conservative)
    return physical


def _of(error: EutecticError, task: Task, index: int) -> EutecticError:
    """The error of one structure, with its index."""
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
    """Names of what is predicted: the properties of a task, and the uncertainties that the model knows."""
    derived = ("forces", "stress") if conservative else ()
    doubts = [f"{name}{SUFFIX}" for name in model.uncertainties.get(task.name, {})]
    return list(dict.fromkeys([*task.heads, *derived, *doubts]))


def unit_of(task: Task, name: str, *, normalised: bool = False) -> str:
    """Unit of a prediction, in words."""
    name = property_of(name)
    if normalised:
        return "normalised"
    # Conservative forces and stress need no target of the task.
    target = task.targets.get(name)
    return "probability of each class" if target is not None and target.categorical else PROPERTIES[name].unit
