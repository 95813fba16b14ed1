"""Model folders: `model.safetensors` and `model.json` hold everything needed to use a model, without pickle.

`model.json` holds the backbone's name and settings, every task with its graph settings, references and scales, the
model's provenance with the elements in its training data, and hashes of all this (see `description.py`).
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import torch
from ase.data import chemical_symbols
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch.nn.modules.module import register_module_parameter_registration_hook

from eutectic.atoms import PROPERTIES, EutecticError, did_you_mean
from eutectic.checkpoints.description import (
    COPY,
    DESCRIPTION,
    FORMAT,
    WEIGHTS,
    check_weights,
    element_lists,
    problems,
    read_description,
    seal_model,
)
from eutectic.checkpoints.shipped import model_folder
from eutectic.checkpoints.uncertainty import Uncertainties, read_uncertainties, write_uncertainties
from eutectic.files import replacing
from eutectic.graph import GraphSettings
from eutectic.models import Backbone, BackboneSettings
from eutectic.models.fewer_blocks import fewer_blocks, load_fewer_blocks
from eutectic.models.heads import check_head
from eutectic.models.multitask import MultitaskModel
from eutectic.models.registry import backbone_entry
from eutectic.tasks.task import Task


def build_backbone(
    name: str, settings: Mapping[str, object], graphs: Iterable[GraphSettings] = ()
) -> tuple[Backbone, BackboneSettings]:
    """Build a backbone with initial weights; returns it with its validated settings.

    Args:
        name: name of a registered backbone.
        settings: settings of the backbone.
        graphs: settings of its input graphs; their cutoff is used if the backbone's settings have none.

    Raises:
        EutecticError: no backbone of that name; unknown or invalid settings; a cutoff that does not fit the graphs.
    """
    entry = backbone_entry(name)
    try:
        validated = entry.settings.model_validate(dict(settings)).for_graphs(graphs)
    except ValidationError as error:
        raise EutecticError(
            "backbone.settings",
            problems(error),
            f"settings as in {entry.settings.__name__}",
            "correct the settings",
        ) from error
    return entry.module(validated), validated


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """A model with everything needed to use it.

    Attributes:
        module: the network with its weights, in evaluation mode.
        tasks: tasks in the order of the module's heads.
        backbone, backbone_settings: arguments of `build_backbone`.
        graph: default graph settings of new tasks.
        provenance: data sets, steps, seeds, version.
        uncertainties: task → property → uncertainty, for calibrated properties.
    """

    module: MultitaskModel
    tasks: tuple[Task, ...]
    backbone: str
    backbone_settings: Mapping[str, object]
    graph: GraphSettings
    provenance: Mapping[str, object] = field(default_factory=dict)
    uncertainties: Uncertainties = field(default_factory=dict)


def with_fewer_blocks(model: TrainedModel, keep: int) -> TrainedModel:
    """A copy of the model without its backbone's last blocks; the heads are kept unchanged.

    Args:
        model: not changed.
        keep: number of blocks to keep.

    Raises:
        EutecticError: it has fewer blocks, or its blocks cannot be dropped.
    """
    full = model.module.backbone
    settings = fewer_blocks(full.settings, keep, "keep_blocks")
    backbone, _ = build_backbone(model.backbone, settings.model_dump())
    load_fewer_blocks(backbone, full)
    module = MultitaskModel(backbone, model.module.head_settings)
    module.heads.load_state_dict(model.module.heads.state_dict())
    return replace(model, module=module.eval(), backbone_settings=settings.model_dump(mode="json"))


def save_model(path: Path, model: TrainedModel, *, raw: Mapping[str, torch.Tensor] | None = None) -> None:
    """Write a model folder; an older one at `path` is replaced only when the new one is complete.

    Args:
        path: the folder; anything at this path that is not a model folder is never replaced.
        model: with the weights for predictions (the EMA, after training).
        raw: weights without EMA, saved as `raw.safetensors`.

    Raises:
        EutecticError: `path` exists and is not a model folder; it cannot be written.
    """
    path = Path(path)
    if path.exists() and not (path / "model.json").is_file():
        raise EutecticError(
            str(path), "exists and is not a model folder", "a new folder, or a model folder", "choose another folder"
        )
    # Defaults are saved too, so that a later version with other defaults builds the same model.
    settings = {**model.module.backbone.settings.model_dump(mode="json"), **model.backbone_settings}
    description = {
        "format": FORMAT,
        "backbone": {"name": model.backbone, "settings": settings},
        "graph": model.graph.model_dump(mode="json"),
        "tasks": [task.to_dict() for task in model.tasks],
        "provenance": dict(model.provenance),
    }
    with replacing(path, folder=True, errors=(OSError, SafetensorError)) as folder:
        save_file(_plain(model.module.state_dict()), str(folder / WEIGHTS))
        if raw is not None:
            save_file(_plain(raw), str(folder / "raw.safetensors"))
        if model.uncertainties:
            write_uncertainties(folder, model.uncertainties, seal=False)
        (folder / DESCRIPTION).write_text(json.dumps(description, indent=1, ensure_ascii=False), encoding="utf-8")
        for weights in folder.glob("*.safetensors"):
            shutil.copymode(folder / DESCRIPTION, weights)  # safetensors creates files that only their owner can read
        seal_model(folder)


def _plain(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}


def load_model(path: str | Path, *, finite: bool = True) -> TrainedModel:
    """Load a model from a folder, or a model shipped with the package by name.

    Weights in half precision are converted to single precision.

    Args:
        path: the model folder, the run folder, or the name.
        finite: refuse weights that are not finite.

    Raises:
        EutecticError: not a model folder; another format version; contents that are invalid or were changed after
            writing; weights that do not fit the settings or are not finite.
    """
    path = model_folder(path)
    description = read_description(path)
    check_weights(path, description)
    settings = description["backbone"]["settings"]
    try:
        tasks = tuple(Task.from_dict(task) for task in description["tasks"])
        for task in tasks:
            for name, head in task.heads.items():
                check_head(head, task.property(name))
        module = _build_module(description["backbone"]["name"], settings, tasks, path / WEIGHTS)
    except EutecticError as error:
        if error.where.startswith(str(path)):
            raise
        raise EutecticError(f"{path / DESCRIPTION}, {error.where}", error.given, error.expected, error.fix) from error
    _load_weights(module, path / WEIGHTS, finite)
    return TrainedModel(
        module=module.eval(),
        tasks=tasks,
        backbone=description["backbone"]["name"],
        backbone_settings=settings,
        graph=GraphSettings.model_validate(description["graph"]),
        provenance=description["provenance"],
        uncertainties=read_uncertainties(path, description, module),
    )


def _build_module(name: str, settings: Mapping[str, object], tasks: Sequence[Task], weights: Path) -> MultitaskModel:
    """Build on the meta device, since initialising the weights of JMP-L takes more than ten seconds."""
    with _readable(weights), safe_open(weights, framework="pt") as file:
        limit = 2 * len(file.keys()) + 100
    registered = 0

    def count(*_: object) -> None:
        # A corrupted number of layers must not build modules for hours.
        nonlocal registered
        registered += 1
        if registered > limit:
            raise _do_not_fit(weights, f"fewer weights than the settings in {DESCRIPTION} need")

    hook = register_module_parameter_registration_hook(count)
    try:
        with torch.device("meta"):
            backbone, _ = build_backbone(name, settings)
            return MultitaskModel(backbone, {task.name: task.heads for task in tasks})
    # Sizes too large for any tensor.
    except (RuntimeError, OverflowError, MemoryError) as error:
        raise _do_not_fit(weights, f"no model can be built from the settings in {DESCRIPTION}: {error}") from error
    finally:
        hook.remove()


def _load_weights(module: MultitaskModel, path: Path, finite: bool) -> None:
    with _readable(path):
        state = load_file(str(path))
    for name, value in state.items():
        if value.is_floating_point() and value.element_size() < 4:
            state[name] = value.float()
    if finite:
        wrong = [name for name, value in state.items() if not torch.isfinite(value).all()]
        if wrong:
            raise EutecticError(
                str(path),
                f"weights that are not finite: {len(wrong)} of {len(state)} tensors, first {wrong[0]}",
                "finite weights",
                f"{COPY}, or train the model again",
            )
    expected = module.state_dict()
    kinds = {value.dtype for name, value in state.items() if name in expected and value.is_floating_point()}
    for name, value in state.items():
        if name in expected and value.is_floating_point() != expected[name].is_floating_point():
            raise _do_not_fit(path, f"{name} holds {value.dtype}".replace("torch.", ""))
        if len(kinds) > 1 and value.is_floating_point():
            state[name] = value.double()
    try:
        module.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise _do_not_fit(path, str(error)) from error


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        raise _do_not_fit(path, str(error)) from error


def _do_not_fit(path: Path, why: str) -> EutecticError:
    return EutecticError(
        str(path), f"weights that cannot be loaded ({why})", "the weights written together with model.json", COPY
    )


def describe_model(model: TrainedModel) -> dict[str, object]:
    """Description of a model for `eutectic models`, as plain JSON values."""
    backbone = sum(p.numel() for p in cast("torch.nn.Module", model.module.backbone).parameters())
    return {
        "backbone": model.backbone,
        "parameters": sum(p.numel() for p in model.module.parameters()),
        "parameters_of_backbone": backbone,
        "cutoff": model.graph.cutoff,
        "max_neighbours": model.graph.max_neighbours,
        "tasks": {
            task.name: {
                "properties": {name: PROPERTIES[name].unit for name in task.targets},
                "level_of_theory": task.level_of_theory,
                "scales": {name: target.normaliser.scale for name, target in task.targets.items()},
            }
            for task in model.tasks
        },
        "elements": [chemical_symbols[z] for z in sorted(elements_seen(model))],
        "settings": dict(model.backbone_settings),
        "provenance": dict(model.provenance),
    }


def elements_seen(model: TrainedModel) -> set[int]:
    """Atomic numbers of the elements in the training structures, including pre-training; empty if unknown for any of
    its training sets."""
    seen: set[int] = set()
    for elements in element_lists(model.provenance):
        if not elements:
            return set()
        seen.update(int(z) for z in elements)
    return seen


def task_named(tasks: Sequence[Task], name: str, where: str) -> Task:
    """The task of that name.

    Raises:
        EutecticError: no such task.
    """
    for task in tasks:
        if task.name == name:
            return task
    names = [task.name for task in tasks]
    expected = f"one of {', '.join(names)}" if names else "a model with heads"
    raise EutecticError(where, f"no task {name!r} in this model", expected, did_you_mean(name, names))
