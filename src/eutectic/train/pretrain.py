"""Joint pre-training: read, fit, say what will be done, train, save."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import lightning_fabric as lf
import numpy as np
import torch
from rich.console import Console
from torch import nn

import eutectic
from eutectic.atoms import EutecticError
from eutectic.data.catalogue import open_store
from eutectic.data.splits import Split, split
from eutectic.data.store import Store
from eutectic.models import BACKBONES
from eutectic.models.gemnet_oc.scaling import fit_scale_factors
from eutectic.models.multitask import MultitaskModel
from eutectic.tasks import Task, fit_task, make_batch
from eutectic.tasks.folder import TrainedModel, build_backbone, save_model
from eutectic.tasks.metrics import shown
from eutectic.train.display import Display
from eutectic.train.evaluation import evaluate
from eutectic.train.launch import launch, launched_outside, once, share_threads
from eutectic.train.loop import total, train
from eutectic.train.settings import BackboneChoice, PretrainSettings
from eutectic.train.source import Source, TaskRows
from eutectic.train.stop import StopFlag, stopping_at_once


@dataclass(frozen=True)
class PretrainResult:
    """What a pre-training leaves in its folder, and a summary of it.

    Attributes:
        folder: the run's; `folder / "model"` is what fine-tuning starts from.
        summary: see `summary.json`.
    """

    folder: Path
    summary: Mapping[str, Any]

    @property
    def model(self) -> Path:
        """The model folder."""
        return self.folder / "model"


@dataclass(frozen=True)
class _Prepared:
    """The parts of a run that every process needs."""

    tasks: tuple[Task, ...]
    stores: tuple[Store, ...]
    splits: tuple[Split, ...]


def pretrain(settings: PretrainSettings, folder: Path, *, console: Console | None = None) -> PretrainResult:
    """Run, or resume, or return at once what is finished already.

    Args:
        settings: the whole run.
        folder: made if absent. One that holds an unfinished run with the same settings is resumed.
        console: where to report; silent without.

    Raises:
        EutecticError: the folder holds something else; data or settings that cannot be used.
        Interrupted: stopped by a signal, resumable.
    """
    folder = Path(folder)
    if launched_outside():
        # Every process comes here: the first one of them prepares, within the run.
        launch(settings.train, functools.partial(_outside, settings=settings, folder=folder, console=console))
    elif (prepared := _begin(settings, folder, console)) is not None:
        quiet = console is None
        work = functools.partial(_worker, settings=settings, folder=folder, prepared=prepared, quiet=quiet)
        launch(settings.train, work)
    return PretrainResult(folder, json.loads((folder / "summary.json").read_text()))


def _begin(settings: PretrainSettings, folder: Path, console: Console | None) -> _Prepared | None:
    """Claim the folder and fit what has to be fitted; None where the run is finished already."""
    claim_folder(folder, settings.model_dump(mode="json"), "pretrain")
    if (folder / "summary.json").exists():
        if console is not None:
            console.print(f"{folder} holds this run, finished; nothing to do.")
        return None
    with stopping_at_once("stopped before the first step; the same command starts again"):
        prepared = _prepare(settings)
        if console is not None:
            _announce(console, settings, prepared)
    (folder / "tasks.json").write_text(
        json.dumps([task.to_dict() for task in prepared.tasks], indent=1, ensure_ascii=False)
    )
    return prepared


def claim_folder(folder: Path, settings: Mapping[str, Any], command: str) -> None:
    """Make the run's folder, or check that it holds this very run.

    Raises:
        EutecticError: the folder exists and is not this run's.
    """
    path = folder / "settings.json"
    mine = {"command": command, "version": eutectic.__version__, **settings}
    if path.exists():
        theirs = json.loads(path.read_text())
        # How a run is spread over a machine does not change what it computes.
        if _essence(theirs) != _essence(mine):
            changed = sorted(k for k in mine if _essence(mine).get(k) != _essence(theirs).get(k))
            raise EutecticError(
                str(folder),
                f"holds a run with other settings (different: {', '.join(changed)})",
                "the same settings, to resume it, or a folder that does not exist",
                "choose another --out, or delete the folder",
            )
        return
    if folder.exists() and any(folder.iterdir()):
        raise EutecticError(
            str(folder),
            "exists and is not a run of this program",
            "a folder that does not exist, or is empty",
            "choose another --out",
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(mine, indent=1, ensure_ascii=False))
    except OSError as error:
        raise EutecticError(
            str(folder),
            f"cannot be written ({error.strerror})",
            "a folder with room to write in",
            "choose another --out or free some space",
        ) from error


def _essence(settings: Mapping[str, Any]) -> dict[str, Any]:
    ignored = {"processes", "threads", "checkpoint_every", "accelerator", "strategy", "workers", "compile"}
    ignored |= {"activation_checkpointing", "out_of_memory", "keep_bad_steps", "max_bad_steps"}
    train_settings = {k: v for k, v in settings.get("train", {}).items() if k not in ignored}
    return {**settings, "train": train_settings, "version": ""}


def _prepare(settings: PretrainSettings) -> _Prepared:
    tasks, stores, splits = [], [], []
    for name, chosen in settings.sets.items():
        store = open_store(chosen.store)
        parts = split(store, chosen.split or store.card.default_split, n_validation=chosen.validation)
        # Nothing is tested in pre-training: the test part is learned from too.
        parts = Split(parts.name, np.union1d(parts.train, parts.test), parts.validation, parts.test[:0])
        tasks.append(fit_task(name, store, parts.train, chosen.targets, chosen.graph or settings.graph))
        stores.append(store)
        splits.append(parts)
    return _Prepared(tuple(tasks), tuple(stores), tuple(splits))


def _announce(console: Console, settings: PretrainSettings, prepared: _Prepared) -> None:
    from rich.table import Table

    source = Source(
        [TaskRows(i, t, s, p.train) for i, (t, s, p) in enumerate(zip(*_columns(prepared), strict=True))],
        settings.train.batch_size,
        settings.temperature,
        settings.train.seed,
        settings.weights,
    )
    table = Table(title="What is learned from", title_justify="left", box=None, pad_edge=False)
    for heading in ("set", "level of theory", "training", "held out", "epochs", "σ energy", "σ force"):
        table.add_column(heading, justify="left" if heading in ("set", "level of theory") else "right")
    drawn = settings.train.steps * settings.train.accumulate * settings.train.batch_size
    for task, _, parts in zip(*_columns(prepared), strict=True):
        share = source.mixture.places[task.name] / source.mixture.length
        scale = {k: t.normaliser.scale for k, t in task.targets.items()}
        table.add_row(
            task.name,
            task.theory.partition(" (")[0],
            f"{len(parts.train):,}",
            str(len(parts.validation)),
            f"{drawn * share / len(parts.train):.1f}",
            f"{scale['energy']:.2f} eV" if "energy" in scale else "–",
            f"{scale['forces']:.2f} eV/Å" if "forces" in scale else "–",
        )
    console.print(table)


def _columns(prepared: _Prepared) -> tuple[tuple[Task, ...], tuple[Store, ...], tuple[Split, ...]]:
    return prepared.tasks, prepared.stores, prepared.splits


def initial_model(
    name: str, backbone_settings: Mapping[str, Any], tasks: tuple[Task, ...], source: Source, seed: int
) -> MultitaskModel:
    """A fresh model, the same in every process: seeded, scale factors fitted on the first batches."""
    torch.manual_seed(seed)
    backbone, _ = build_backbone(name, backbone_settings)
    model = MultitaskModel(backbone, {task.name: task.heads for task in tasks})
    fit_scale_factors(cast(nn.Module, backbone), [make_batch(source.items(0, 0, 1), tasks).graph])
    return model.train()


def _outside(
    fabric: lf.Fabric, stop: StopFlag, settings: PretrainSettings, folder: Path, console: Console | None
) -> None:
    """One process of a run whose processes torchrun or srun has started."""
    prepared = once(fabric, functools.partial(_begin, settings, folder, console))
    if prepared is not None:
        _worker(fabric, stop, settings, folder, prepared, console is None)
    fabric.barrier()  # no process is done before the model is there


def _worker(
    fabric: lf.Fabric, stop: StopFlag, settings: PretrainSettings, folder: Path, prepared: _Prepared, quiet: bool
) -> None:
    """One process of the run."""
    share_threads(settings.train, fabric.world_size)
    tasks = prepared.tasks
    rows = [
        TaskRows(i, t, s, p.train, edge_dropout=settings.edge_dropout)
        for i, (t, s, p) in enumerate(zip(*_columns(prepared), strict=True))
    ]
    source = Source(rows, settings.train.batch_size, settings.temperature, settings.train.seed, settings.weights)
    held_out = [
        item
        for i, (t, s, p) in enumerate(zip(*_columns(prepared), strict=True))
        for item in TaskRows(i, t, s, p.validation).items()
    ][fabric.global_rank :: fabric.world_size]
    backbone = _in_training(settings)
    model = initial_model(backbone.name, backbone.settings, tasks, source, settings.train.seed)
    validation: list[dict[str, Any]] = []

    def validate(averaged: MultitaskModel, step: int, seconds: float) -> None:
        errors = evaluate(averaged, tasks, held_out, device=fabric.device, per_atom=True)
        names = [(task.name, prop) for task in tasks for prop in task.targets]
        sums = torch.tensor(
            [[errors[t][p].absolute, errors[t][p].trivial, errors[t][p].count] for t, p in names],
            dtype=torch.float64,
        )
        sums = total(fabric, sums.to(fabric.device)).cpu()
        by_set: dict[str, dict[str, float]] = {}
        for (task, prop), (absolute, trivial, count) in zip(names, sums.tolist(), strict=True):
            values = by_set.setdefault(task, {})
            values[f"{prop}_mae"] = shown(prop, absolute / max(count, 1))[0]
            values[f"{prop}_baseline"] = shown(prop, trivial / max(count, 1))[0]
        validation.append({"step": step, "seconds": round(seconds, 2), "by_set": by_set})
        display.validated(step, by_set)

    # Only the first process shows anything.
    with Display("pre-training", settings.train.steps, hidden=quiet or fabric.global_rank != 0) as display:
        trained = train(
            fabric,
            model,
            tasks,
            source,
            settings.train,
            settings.optimiser,
            folder=folder,
            validate=validate,
            extra_state=lambda: {"validation": json.dumps(validation)},
            restore_extra=lambda state: validation.extend(json.loads(state["validation"])),
            on_step=display.stepped,
            describe=lambda module: TrainedModel(module, tasks, backbone.name, backbone.settings, settings.graph),
            stop=stop,
        )
    if fabric.global_rank == 0:
        _finish(settings, folder, prepared, source, trained.averaged, trained.raw, validation, trained.seconds)


def _in_training(settings: PretrainSettings) -> BackboneChoice:
    """The backbone that makes up for dropped edges, where it can. What is saved does not: it will see all edges."""
    chosen = settings.backbone
    if not settings.edge_dropout or "edge_dropout" not in BACKBONES[chosen.name][0].model_fields:
        return chosen
    return BackboneChoice(name=chosen.name, settings={**chosen.settings, "edge_dropout": settings.edge_dropout})


def _finish(
    settings: PretrainSettings,
    folder: Path,
    prepared: _Prepared,
    source: Source,
    averaged: MultitaskModel,
    raw: dict[str, torch.Tensor],
    validation: list[dict[str, Any]],
    seconds: float,
) -> None:
    steps, size = settings.train.steps, settings.train.accumulate * settings.train.batch_size
    names = [task.name for task in prepared.tasks]
    counts = np.zeros(len(names), dtype=np.int64)
    for step in range(steps * settings.train.accumulate):
        counts += np.bincount(source.chosen(step)[0], minlength=len(names))
    provenance = {
        "eutectic": eutectic.__version__,
        "pretrained_on": {
            task.name: {
                "structures": len(parts.train),
                "theory": store.card.theory,
                "licence": store.card.licence,
                "elements": sorted(store.composition()),
            }
            for task, store, parts in zip(*_columns(prepared), strict=True)
        },
        "steps": steps,
        "structures_seen": steps * size,
        "seed": settings.train.seed,
    }
    model = TrainedModel(
        module=averaged,
        tasks=prepared.tasks,
        backbone=settings.backbone.name,
        backbone_settings=settings.backbone.settings,
        graph=settings.graph,
        provenance=provenance,
    )
    save_model(folder / "model", model, raw=raw)
    summary = {
        "steps": steps,
        "seconds": round(seconds, 2),
        "structures_per_second": round(steps * size / max(seconds, 1e-9), 2),
        "n_parameters": sum(p.numel() for p in averaged.parameters()),
        "backbone": settings.backbone.name,
        "drawn": dict(zip(names, counts.tolist(), strict=True)),
        "validation": validation,
    }
    half = folder / ".summary.json.writing"
    half.write_text(json.dumps(summary, indent=1))
    os.replace(half, folder / "summary.json")
