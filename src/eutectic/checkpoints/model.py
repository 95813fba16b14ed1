"""Model folders: everything needed to use a model is in `model.safetensors` and `model.json`, without pickle.

`model.json` holds the backbone's name and settings, every task with its graph settings, references and scales, and the
provenance of the model with the elements in its training data.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from ase.data import chemical_symbols
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from eutectic.atoms import PROPERTIES, EutecticError, did_you_mean
from eutectic.checkpoints.shipped import model_folder
from eutectic.files import replacing
from eutectic.graph import GraphSettings
from eutectic.models import Backbone, BackboneSettings
from eutectic.models.multitask import MultitaskModel
from eutectic.models.registry import backbone_entry
from eutectic.tasks.task import Task

FORMAT = "eutectic-model-2"
OLDER_FORMATS = ("eutectic-model-1",)


def build_backbone(
    name: str, settings: Mapping[str, object], graphs: Iterable[GraphSettings] = ()
) -> tuple[Backbone, BackboneSettings]:
    """A new backbone and its validated settings.

    Args:
        name: of a registered backbone.
        settings: of the backbone.
        graphs: settings of its input graphs; their cutoff is used where its settings have none.

    Raises:
        EutecticError: no backbone of that name; a cutoff that does not fit the graphs.
    """
    entry = backbone_entry(name)
    validated = entry.settings.model_validate(dict(settings)).for_graphs(graphs)
    return entry.module(validated), validated


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """A model with everything that is needed to use it.

    Attributes:
        module: weights in place, in evaluation mode.
        tasks: in the order of the module's heads.
        backbone, backbone_settings: arguments of `build_backbone`.
        graph: default graph settings of new tasks.
        provenance: data sets, steps, seeds, version.
    """

    module: MultitaskModel
    tasks: tuple[Task, ...]
    backbone: str
    backbone_settings: Mapping[str, object]
    graph: GraphSettings
    provenance: Mapping[str, object] = field(default_factory=dict)


def save_model(path: Path, model: TrainedModel, *, raw: Mapping[str, torch.Tensor] | None = None) -> None:
    """Write a model folder; an older one at `path` is replaced only when the new one is complete.

    Args:
        path: the folder; anything else at this path is not replaced.
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
    description = {
        "format": FORMAT,
        "backbone": {"name": model.backbone, "settings": dict(model.backbone_settings)},
        "graph": model.graph.model_dump(mode="json"),
        "tasks": [task.to_dict() for task in model.tasks],
        "provenance": dict(model.provenance),
    }
    with replacing(path, folder=True, errors=(OSError, SafetensorError)) as folder:
        save_file(_plain(model.module.state_dict()), str(folder / "model.safetensors"))
        if raw is not None:
            save_file(_plain(raw), str(folder / "raw.safetensors"))
        (folder / "model.json").write_text(json.dumps(description, indent=1, ensure_ascii=False), encoding="utf-8")
        for weights in folder.glob("*.safetensors"):
            shutil.copymode(folder / "model.json", weights)  # safetensors makes files that only their owner can read


def _plain(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}


def load_model(path: str | Path) -> TrainedModel:
    """Load a model from a folder, or a model in the package by its name.

    Raises:
        EutecticError: not a model folder, another format version, or weights that do not fit the settings.
    """
    path = model_folder(path)
    try:
        description = json.loads((path / "model.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise EutecticError(
            str(path),
            f"no readable model.json ({error})",
            "a model folder (model.json, model.safetensors)",
            "give the folder …/model written by `eutectic pretrain` or `eutectic finetune`",
        ) from error
    if description.get("format") in OLDER_FORMATS:
        description = migrate(description)
    if description.get("format") != FORMAT:
        raise EutecticError(
            str(path),
            f"format {description.get('format')!r}",
            FORMAT,
            "train or import the model again with this version",
        )
    settings = description["backbone"]["settings"]
    tasks = tuple(Task.from_dict(task) for task in description["tasks"])
    # On the meta device, since initialising the weights of JMP-L takes more than ten seconds.
    with torch.device("meta"):
        backbone, _ = build_backbone(description["backbone"]["name"], settings)
        module = MultitaskModel(backbone, {task.name: task.heads for task in tasks})
    try:
        module.load_state_dict(load_file(str(path / "model.safetensors")), assign=True)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise EutecticError(
            str(path / "model.safetensors"),
            f"weights that cannot be loaded ({error})",
            "the weights written together with model.json",
            "copy the whole folder again",
        ) from error
    return TrainedModel(
        module=module.eval(),
        tasks=tasks,
        backbone=description["backbone"]["name"],
        backbone_settings=settings,
        graph=GraphSettings.model_validate(description["graph"]),
        provenance=description["provenance"],
    )


def migrate(description: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a description of format 1 to the current format: renamed settings and changed defaults."""
    backbone = dict(description["backbone"])
    renamed = {"sine_floor": "dihedral_epsilon"}
    # Format 1 could leave out a cutoff that was the default.
    cutoff = {"gemnet_oc": {"radial_cutoff": 12.0}, "painn": {"cutoff": 5.0}}.get(backbone["name"], {})
    given = {renamed.get(name, name): value for name, value in backbone["settings"].items()}
    backbone["settings"] = {**cutoff, **given}
    tasks = [{"level_of_theory" if k == "theory" else k: v for k, v in task.items()} for task in description["tasks"]]
    return {**description, "format": FORMAT, "backbone": backbone, "tasks": tasks}


def describe_model(model: TrainedModel) -> dict[str, object]:
    """Description of a model for `eutectic models`, as plain JSON."""
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
    """Atomic numbers of the elements in the training structures, pre-training included; empty if unknown for any of the
    data sets it was trained on."""
    seen: set[int] = set()
    for elements in _element_lists(model.provenance):
        if not elements:
            return set()
        seen.update(int(z) for z in elements)
    return seen


def _element_lists(provenance: Mapping[str, object]) -> Iterator[Sequence[int]]:
    """All entries `elements`, at any depth: a fine-tuned model's provenance contains that of the pre-trained model."""
    for name, value in provenance.items():
        if name == "elements" and isinstance(value, Sequence):
            yield value
        elif isinstance(value, Mapping):
            yield from _element_lists(value)


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
