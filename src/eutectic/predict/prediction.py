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
"""Property → value in the property's shape, or class probabilities; float64."""


def task_of(model: TrainedModel, name: str | None, where: str = "task") -> Task:
    """The task of that name, or the only one.

    Raises:
        EutecticError: no task of that name (suggests the nearest), or several tasks and no name.
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
        EutecticError: no such task; an invalid structure, or one with an element that has no reference; derivatives
            from a task without an energy head.
    """
    task = task_of(model, task_name)
    if conservative and task.heads.get("energy") is None:
        raise EutecticError(
            f"task {task.name}",
            f"derivatives of the energy requested; its heads: {', '.join(task.heads)}",
            "a task with an energy head",
            "choose another task, or leave out --conservative",
        )
    weight = next(model.module.parameters())
    predictions: list[Prediction] = [{} for _ in structures]
    # Similar sizes together, so that no batch is much larger than the others.
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
            # The batch has a slice of this task only, so the heads of other tasks do not run.
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
    """A note if the energies of a task are not total energies; None if they include references."""
    target = task_of(model, task_name).targets.get("energy")
    if target is None or target.normaliser.references is not None:
        return None
    return str(model.provenance.get("energies", "relative: no per-element references are known"))


# --- files -----------------------------------------------------------------------------------------------------


def read_structures(source: Path, units: Mapping[str, str] | None = None) -> tuple[list[Atoms], list[Structure]]:
    """All structures of a file: as ASE objects with all their data, and as `Structure`.

    Args:
        source: the file.
        units: "positions" and "cell" → unit in the file, before the one that it states; Å by default.

    Raises:
        EutecticError: as `eutectic.data.datasets.ase_files.read`; or a folder.
    """
    from ase.io import iread

    if Path(source).is_dir():
        raise EutecticError(str(source), "a folder", "one file of structures", "predict its files one by one")
    structures = []
    # First, since it rejects formats whose reading would run code.
    for where, row in ase_files.rows(source, units=units):
        row.structure.check(where)
        structures.append(row.structure)
    atoms = list(iread(str(source), index=":"))
    for one, structure in zip(atoms, structures, strict=True):
        # In Å, as the predictions are for.
        one.set_cell(structure.cell)
        one.positions[:] = structure.positions
    return atoms, structures


def key_of(task_name: str, property_name: str) -> str:
    """Key of a prediction in a file, e.g. "oc20_energy". Never a key from which labels are read."""
    prefix = f"{task_name}_"
    return f"{'predicted_' if prefix in ase_files.PREFIXES else ''}{prefix}{property_name}"


def write_predictions(
    path: Path, atoms: Sequence[Atoms], predictions: Sequence[Prediction], task: Task, *, normalised: bool = False
) -> None:
    """Write extended xyz: the structures as read, labels included, with the predictions added (see `key_of`)."""
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
    """JSON with task, units and one object per structure, in order."""
    names = dict.fromkeys(name for prediction in predictions for name in prediction)
    units: Mapping[str, str] = {name: "normalised" if normalised else _unit(task, name) for name in names}
    content: dict[str, Any] = {"task": task.name, "level_of_theory": task.level_of_theory, "units": units}
    if note is not None:
        content["energies"] = note
    content["predictions"] = [{name: value.tolist() for name, value in p.items()} for p in predictions]
    return json.dumps(content, indent=1, ensure_ascii=False)


def _unit(task: Task, name: str) -> str:
    # Conservative forces and stress need no target of the task.
    target = task.targets.get(name)
    return "probability of each class" if target is not None and target.categorical else PROPERTIES[name].unit
