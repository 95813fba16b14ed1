"""Predictions of a trained model for structures without labels, in physical units."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms

from eutectic.atoms import PROPERTIES, EutecticError, Structure
from eutectic.checkpoints.model import TrainedModel, task_named
from eutectic.data.datasets import ase_files
from eutectic.graph import build_graph
from eutectic.tasks import Sample, Task, make_batch

Prediction = dict[str, np.ndarray]
"""Property → value in the property's own shape, or the probabilities of its classes; float64."""


def task_of(model: TrainedModel, name: str | None, where: str = "task") -> Task:
    """The task of that name, or the only one.

    Raises:
        EutecticError: there is none of that name (the nearest is in the error), or several and none is named.
    """
    if name is not None:
        return task_named(model.tasks, name, where)
    if len(model.tasks) == 1:
        return model.tasks[0]
    names = [task.name for task in model.tasks]
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
    """What one task's heads say of each structure.

    Runs where the model's weights are, in their precision.

    Args:
        model: in any mode; left in it.
        task_name: decides heads, graph, references and scales.
        structures: of any sizes.
        batch_size: structures at a time.
        normalised: leave values in model units, without scale and references; of classes, logits.
        conservative: forces and, of periodic structures, stress as derivatives of the energy head; they replace a
            force head's.
        on_done: told how many structures have been predicted since it was last called.

    Returns:
        One for each structure, in their order: property → value in the property's unit (energy eV, forces
        (n_atoms, 3) eV/Å, …), or probabilities (n_classes,) where its values are classes.

    Raises:
        EutecticError: no such task; a structure that cannot be used, or with an element that has no reference;
            derivatives of a task without an energy head.
    """
    task = task_of(model, task_name)
    if conservative and task.heads.get("energy") is None:
        raise EutecticError(
            f"task {task.name}",
            f"derivatives of the energy asked for; heads there: {', '.join(task.heads)}",
            "a task with an energy head",
            "name another task, or leave --conservative out",
        )
    weight = next(model.module.parameters())
    predictions: list[Prediction] = [{} for _ in structures]
    # Like sizes together: no batch is much larger than the others.
    order = sorted(range(len(structures)), key=lambda i: len(structures[i]))
    training = model.module.training
    model.module.eval()
    try:
        for first in range(0, len(order), batch_size):
            chunk = order[first : first + batch_size]
            items = []
            for i in chunk:
                structures[i].check(f"structure {i}")
                graph = build_graph(structures[i], task.graph, lists=model.module.backbone.edge_lists)
                items.append(Sample(0, graph, {}))
            # The model has other tasks as well; this batch has one part, so only its heads run.
            batch = make_batch(items, [task], weight.dtype).to(weight.device)
            with torch.no_grad():
                values = model.module(batch.graph, batch.parts, conservative=conservative)[task.name]
            for name, value in values.items():
                for i, rows in zip(chunk, _per_structure(name, value, items), strict=True):
                    if name == "stress" and not structures[i].pbc.all():
                        continue
                    predictions[i][name] = (
                        rows if normalised else _denormalised(task, name, rows, structures[i], i, conservative)
                    )
            on_done(len(chunk))
    finally:
        model.module.train(training)
    return predictions


def _per_structure(name: str, value: torch.Tensor, items: Sequence[Sample]) -> list[np.ndarray]:
    array = value.detach().to("cpu", torch.float64).numpy()
    if PROPERTIES[name].level == "structure":
        return [np.array(row) for row in array]
    ends = np.cumsum([len(item.graph.structure) for item in items])
    return [rows.copy() for rows in np.split(array, ends[:-1])]


def _denormalised(
    task: Task, name: str, value: np.ndarray, structure: Structure, index: int, conservative: bool
) -> np.ndarray:
    if conservative and name in ("forces", "stress"):
        return value * task.targets["energy"].normaliser.scale
    try:
        return task.targets[name].physical(value, structure.numbers)
    except EutecticError as error:
        where = f"{task.name}, structure {index}, {error.where}"
        raise EutecticError(where, error.given, error.expected, error.fix) from error


def relative_energies(model: TrainedModel, task_name: str) -> str | None:
    """Why energies of a task are no total energies, in words; None where they have their references."""
    target = task_of(model, task_name).targets.get("energy")
    if target is None or target.normaliser.references is not None:
        return None
    return str(model.provenance.get("energies", "relative: no per-element references are known"))


# --- files -----------------------------------------------------------------------------------------------------


def read_structures(source: Path) -> tuple[list[Atoms], list[Structure]]:
    """Every structure of a file, as ASE has it, with all that stands beside it, and as a model takes it.

    Raises:
        EutecticError: as `eutectic.data.datasets.ase_files.read`; or a folder.
    """
    from ase.io import iread

    if Path(source).is_dir():
        raise EutecticError(str(source), "a folder", "one file of structures", "predict its files one by one")
    structures = []
    # This comes first: it refuses formats whose reading would run code.
    for where, row in ase_files.rows(source):
        row.structure.check(where)
        structures.append(row.structure)
    return list(iread(str(source), index=":")), structures


def key_of(task_name: str, property_name: str) -> str:
    """What a prediction is called in a file: "oc20_energy". Never a name under which labels are read."""
    prefix = f"{task_name}_"
    return f"{'predicted_' if prefix in ase_files.PREFIXES else ''}{prefix}{property_name}"


def write_predictions(
    path: Path, atoms: Sequence[Atoms], predictions: Sequence[Prediction], task: Task, *, normalised: bool = False
) -> None:
    """Extended xyz: what was read, and beside it the predictions (see `key_of`); labels stay as they are."""
    from ase.io import write

    written = []
    for one, prediction in zip(atoms, predictions, strict=True):
        copy = one.copy()
        copy.calc = one.calc
        for name, value in prediction.items():
            key = key_of(task.name, name) + ("_normalised" if normalised else "")
            if PROPERTIES[name].level == "atom":
                copy.arrays[key] = value
            else:
                copy.info[key] = float(value) if value.ndim == 0 else value
        written.append(copy)
    write(str(path), written, format="extxyz")


def as_json(predictions: Sequence[Prediction], task: Task, *, normalised: bool = False, note: str | None = None) -> str:
    """For machines: task, units and one object for each structure, in their order."""
    found = dict.fromkeys(name for prediction in predictions for name in prediction)
    units: Mapping[str, str] = {name: "normalised" if normalised else _unit(task, name) for name in found}
    content: dict[str, Any] = {"task": task.name, "level_of_theory": task.level_of_theory, "units": units}
    if note is not None:
        content["energies"] = note
    content["predictions"] = [{name: value.tolist() for name, value in p.items()} for p in predictions]
    return json.dumps(content, indent=1, ensure_ascii=False)


def _unit(task: Task, name: str) -> str:
    # Forces and stress may be predicted by a task that has no target for them.
    target = task.targets.get(name)
    return "probability of each class" if target is not None and target.categorical else PROPERTIES[name].unit
