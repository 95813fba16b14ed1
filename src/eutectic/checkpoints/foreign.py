"""Models of other packages by name: `sevennet:7net-0`, `mace:medium-mpa-0`, `mace:FILE.model`, `orb:FILE.ckpt`.

Such a model is converted once to a model folder under `data_folder()/models` and from then on used like any other.
Files are read without executing code in them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch
from torch import nn

import eutectic
from eutectic.atoms import PROPERTIES, EutecticError
from eutectic.checkpoints import mace_files, orb_files, sevennet_files
from eutectic.checkpoints.description import file_hash
from eutectic.checkpoints.foreign_model import UNKNOWN, About, ForeignModel
from eutectic.checkpoints.model import TrainedModel, save_model
from eutectic.data.catalogue import data_folder
from eutectic.graph import GraphSettings
from eutectic.graph.settings import MOST_NEIGHBOURS
from eutectic.models.foreign import mace, orb, sevennet
from eutectic.models.foreign.adapter import EnergyReadout
from eutectic.models.foreign.package import Package
from eutectic.models.heads import HeadSettings, ScalarHead
from eutectic.models.multitask import MultitaskModel
from eutectic.tasks.references import References
from eutectic.tasks.task import Normaliser, Target, TargetSettings, Task

CONVERSION = 1
"""Version of the conversion; incremented whenever the same file gives a different model."""


@dataclass(frozen=True)
class Source:
    """Models of one package.

    Attributes:
        package: the package that they need.
        published: name → description; the package may know further names.
        published_file: name → its file.
        read: file and variant (head, modality, or neighbour cap, depending on the package) → the model.
        variant_in_name: name of a model or file → the variant implied by it, used if none is given; None if none.
        levels: whether variants are levels of theory.
    """

    package: Package
    published: dict[str, About]
    published_file: Callable[[str], Path]
    read: Callable[[Path, str | None], ForeignModel]
    variant_in_name: Callable[[str], str | None] = lambda _: None
    levels: bool = True


SOURCES = {
    "mace": Source(mace.PACKAGE, mace_files.PUBLISHED, mace_files.published_file, mace_files.read),
    "orb": Source(
        orb.PACKAGE,
        orb_files.PUBLISHED,
        orb_files.published_file,
        orb_files.read,
        variant_in_name=orb_files.cap_in_name,
        levels=False,
    ),
    "sevennet": Source(sevennet.PACKAGE, sevennet_files.PUBLISHED, sevennet_files.published_file, sevennet_files.read),
}
"""Prefix before the colon → models of that package."""


def is_foreign(name: str) -> bool:
    """Whether a name is that of a model of another package."""
    return name.partition(":")[0] in SOURCES and ":" in name


def foreign_model_folder(name: str) -> Path:
    """The folder of the converted model; converts it on first use.

    Args:
        name: PACKAGE:NAME or PACKAGE:FILE, optionally followed by @ and a head, a modality, or a cap on neighbours.

    Raises:
        EutecticError: the package is missing or its version untested; no such model; a file that cannot be used.
    """
    kind, _, rest = name.partition(":")
    source = SOURCES[kind]
    version = source.package.version()
    given, variant = rest, None
    path = Path(given).expanduser()
    if not path.is_file() and "@" in rest:
        given, _, variant = rest.rpartition("@")
        path = Path(given).expanduser()
    is_file = path.is_file()
    package = f"{source.package.distribution} {version}"
    title = path.stem if is_file else given
    label = f"{title}-{file_hash(path)[:16]}" if is_file else title
    if not is_file and not given.replace("-", "").replace("_", "").isalnum():
        raise EutecticError(name, "no such file", "a file, or the name of a published model", "check the path")
    chosen = "" if variant is None else f"@{variant}"
    # A single folder, whatever characters the name has; another version of the package or conversion gets its own.
    folder = data_folder() / "models" / kind / quote(f"{label}{chosen}-{version}-{CONVERSION}", safe="@")
    if (folder / "model.json").is_file():
        return folder
    file = path if is_file else source.published_file(given)
    about = UNKNOWN if is_file else source.published.get(given, UNKNOWN)
    if variant is not None and source.levels:
        about = about._replace(level_of_theory=f"{variant}, one of several levels ({about.level_of_theory})")
    model = source.read(file, variant or source.variant_in_name(title))
    save_model(folder, as_trained(model, title, about, name, file, package))
    return folder


def as_trained(model: ForeignModel, title: str, about: About, name: str, file: Path, package: str) -> TrainedModel:
    """A model with the package's own heads as tasks.

    Args:
        model: the model as read.
        title: name of the task if there is only one; several tasks are named after their heads.
        about: description of the model.
        name, file: origin of the model.
        package: name and version of the package.
    """
    settings = model.backbone.settings
    # Every neighbour within the cutoff, as in the package.
    graph = GraphSettings(cutoff=settings.cutoff, max_neighbours=MOST_NEIGHBOURS)
    several = len(model.readouts) > 1
    tasks = tuple(
        _task(head if several else title, about.level_of_theory, graph, readout, model.derivatives)
        for head, readout in model.readouts.items()
    )
    module = MultitaskModel(model.backbone, {task.name: task.heads for task in tasks})
    dtype = next(model.backbone.parameters()).dtype
    for task, readout in zip(tasks, model.readouts.values(), strict=True):
        head = module.heads[task.name]["energy"]  # type: ignore[index]
        assert isinstance(head, ScalarHead)
        with torch.no_grad():
            head.to(dtype)
            last = head.perceptron[-1]
            assert isinstance(last, nn.Linear)
            last.weight.copy_(readout.weight[None])
    elements = sorted(settings.elements)
    return TrainedModel(
        module=module.eval(),
        tasks=tasks,
        backbone=model.backbone_name,
        backbone_settings=settings.model_dump(mode="json"),
        graph=graph,
        provenance=_provenance(about, name, file, package, elements),
    )


def _provenance(about: About, name: str, file: Path, package: str, elements: list[int]) -> dict[str, Any]:
    return {
        "eutectic": eutectic.__version__,
        "imported_from": name,
        "package": package,
        "file": file.name,
        "file_sha256": file_hash(file),
        "level_of_theory": about.level_of_theory,
        "licence": about.licence,
        "pretrained_on": {about.trained_on: {"level_of_theory": about.level_of_theory, "elements": elements}},
    }


def _task(name: str, level_of_theory: str, graph: GraphSettings, readout: EnergyReadout, derivatives: bool) -> Task:
    """A task with the package's energy, and with forces and stress if the package derives them from the energy.

    All three share one scale, so that F = −∂E/∂r holds in model units too.
    """
    heads = {"energy": HeadSettings(kind="scalar", pooling="sum", layers=0)}
    if derivatives:
        heads["forces"] = HeadSettings(kind="gradient_forces")
        heads["stress"] = HeadSettings(kind="gradient_stress")
    references = {"energy": References(property="energy", values=dict(readout.references))}
    targets = {
        prop: Target(
            TargetSettings(head=head).resolve(PROPERTIES[prop]),
            Normaliser(references.get(prop), 0.0, readout.scale),
            1.0,
        )
        for prop, head in heads.items()
    }
    return Task(name=name, level_of_theory=level_of_theory, targets=targets, graph=graph)
