"""Fine-tuning: one data set, from a pre-trained backbone or from scratch, judged on its test split."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

import eutectic
from eutectic.atoms import EutecticError
from eutectic.checkpoints.model import TrainedModel, load_model, save_model, task_named
from eutectic.data.catalogue import open_store
from eutectic.data.splits import Split, split
from eutectic.data.store import Store
from eutectic.graph import GraphSettings
from eutectic.models.multitask import MultitaskModel
from eutectic.tasks import Task, fit_task
from eutectic.tasks.metrics import primary, shown
from eutectic.train.batches.sampler import BatchSampler, TaskDataset
from eutectic.train.checkpoint import remove_checkpoints
from eutectic.train.evaluation import evaluate
from eutectic.train.loop import train
from eutectic.train.pretrain import claim_folder, initial_model
from eutectic.train.runtime.launch import make_fabric, share_threads
from eutectic.train.runtime.stop import StopFlag
from eutectic.train.settings import BackboneChoice, FinetuneSettings

PARITY_POINTS = 500


@dataclass(frozen=True)
class FinetuneResult:
    """One run's outcome; errors are mean absolute errors in `unit`.

    Attributes:
        start: 'pretrained' or 'scratch'.
        steps, seconds, errors: the validation curve of the judged property.
        best_step: whose weights were tested.
        test_errors: property → error on the test split.
        baseline_error: of predicting the references and the mean alone.
        truth, prediction: up to 500 test values of the judged property, in `unit`.
        trained_on, validated_on, tested_on: numbers of structures.
    """

    name: str
    start: str
    seed: int
    learning_rate: float
    weight_decay: float
    property: str
    unit: str
    level_of_theory: str
    dataset: str
    total_steps: int
    steps: list[int]
    seconds: list[float]
    errors: list[float]
    best_step: int
    test_error: float
    test_errors: dict[str, float]
    baseline_error: float
    truth: list[float]
    prediction: list[float]
    trained_on: int
    validated_on: int
    tested_on: int
    wall_seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


def finetune(
    settings: FinetuneSettings,
    folder: Path | None,
    *,
    on_step: Callable[[int], None] = lambda step: None,
    say: Callable[[str], None] = lambda text: None,
    stop: StopFlag | None = None,
) -> FinetuneResult:
    """Run, or resume, or return at once what is finished already.

    Args:
        settings: the whole run.
        folder: for the model, the journal and `result.json`; None keeps nothing.
        on_step: called with the number of steps done.
        say: told what was read, kept and reset.
        stop: one that is listening already, if there is one.

    Raises:
        EutecticError: data, model or settings that cannot be used.
        Interrupted: stopped by a signal, resumable if there is a folder.
    """
    if folder is not None:
        folder = Path(folder)
        claim_folder(folder, settings, "finetune")
        if (folder / "result.json").exists():
            on_step(settings.train.steps)
            return FinetuneResult(**json.loads((folder / "result.json").read_text()))
    share_threads(settings.train, 1)
    store = open_store(settings.data.store)
    parts = split_of(store, settings)
    choice, graph, start = _backbone_of(settings)
    choice = choice.for_graphs([graph])
    edge_lists = choice.of_backbone().edge_lists
    task = fit_task(settings.name, store, parts.train, settings.targets, graph)
    judged = primary(list(task.targets))
    source = BatchSampler(
        [TaskDataset(0, task, store, parts.train, keep=True, edge_lists=edge_lists)],
        min(settings.train.batch_size, len(parts.train)),
        1.0,
        settings.train.seed,
    )
    model = _model(settings, choice, task, source, start, say)
    fabric = make_fabric(settings.train, alone=True)
    fabric.launch()

    held_out = TaskDataset(0, task, store, parts.validation, edge_lists=edge_lists).items()
    steps: list[int] = []
    seconds: list[float] = []
    errors: list[float] = []
    best: dict[str, Any] = {"step": 0, "weights": {k: v.clone() for k, v in model.state_dict().items()}}

    def validate(averaged: MultitaskModel, step: int, elapsed: float) -> None:
        found = shown(judged, evaluate(averaged, [task], held_out, device=fabric.device)[task.name][judged].mae)[0]
        if not errors or found < min(errors):
            best.update(step=step, weights={k: v.detach().cpu().clone() for k, v in averaged.state_dict().items()})
        steps.append(step)
        seconds.append(round(elapsed, 3))
        errors.append(found)

    def extra() -> dict[str, Any]:
        return {"curve": json.dumps([steps, seconds, errors]), "best": best}

    def restore(state: dict[str, Any]) -> None:
        steps[:], seconds[:], errors[:] = json.loads(state["curve"])
        best.update(state["best"])

    trained = train(
        fabric,
        model,
        [task],
        source,
        settings.train,
        settings.optimiser,
        folder=folder,
        validate=validate,
        extra_state=extra,
        restore_extra=restore,
        on_step=lambda entry: on_step(entry["step"]),
        describe=lambda module: TrainedModel(module, (task,), choice.name, choice.settings, graph),
        stop=stop,
    )
    final = trained.averaged
    final.load_state_dict(best["weights"])
    tested = TaskDataset(0, task, store, parts.test, edge_lists=edge_lists).items()
    result = _result(settings, store, parts, task, judged, final, tested, fabric.device)
    result.update(
        steps=steps,
        seconds=seconds,
        errors=errors,
        best_step=best["step"],
        wall_seconds=round(trained.seconds, 2),
    )
    finished = FinetuneResult(**result)
    if folder is not None:
        provenance = {
            "eutectic": eutectic.__version__,
            "finetuned_on": store.card.name,
            "start": settings.start,
            "structures": len(parts.train),
            "steps": settings.train.steps,
            "seed": settings.train.seed,
            "elements": sorted(store.composition()),
        }
        if start is not None:
            provenance["pretrained"] = dict(start.provenance)
        described = TrainedModel(final, (task,), choice.name, choice.settings, graph, provenance)
        save_model(folder / "model", described)
        half = folder / ".result.json.writing"
        half.write_text(json.dumps(finished.to_dict()))
        os.replace(half, folder / "result.json")
        remove_checkpoints(folder / "checkpoint.pt")
    return finished


def split_of(store: Store, settings: FinetuneSettings) -> Split:
    """The split a run asks for."""
    data = settings.data
    return split(
        store,
        data.split or store.card.default_split,
        n_train=data.train,
        n_validation=data.validation,
        n_test=data.test,
        seed=data.split_seed,
        needs=tuple(settings.targets),
    )


def _backbone_of(settings: FinetuneSettings) -> tuple[BackboneChoice, GraphSettings, TrainedModel | None]:
    """Backbone and graph come from the model started from (or likened to), so that both starts are the same."""
    model_folder = settings.architecture_from if settings.start == "scratch" else settings.start
    if model_folder is None:
        return settings.backbone or BackboneChoice(), settings.graph or GraphSettings(), None
    model = load_model(model_folder)
    if settings.backbone is not None:
        raise EutecticError(
            "backbone",
            "settings of its own beside a model to start from",
            "one or the other",
            "drop `backbone`; it is read from the model",
        )
    choice = BackboneChoice(name=model.backbone, settings=dict(model.backbone_settings))
    return choice, settings.graph or model.graph, None if settings.start == "scratch" else model


def _model(
    settings: FinetuneSettings,
    choice: BackboneChoice,
    task: Task,
    source: BatchSampler,
    start: TrainedModel | None,
    say: Callable[[str], None],
) -> MultitaskModel:
    seed = settings.train.seed
    if start is None:
        model = initial_model(choice.name, choice.settings, (task,), source, seed)
        say(f"{choice.name} from scratch, seed {seed}")
        return model
    torch.manual_seed(seed)
    model = MultitaskModel(start.module.backbone, {task.name: task.heads})
    kept = sum(p.numel() for p in cast(nn.Module, model.backbone).parameters())
    said = f"{choice.name} backbone of {settings.start} kept ({kept:,} parameters)"
    if settings.head_from is not None:
        theirs = task_named(start.tasks, settings.head_from, f"head_from, {settings.start}")
        loaded = []
        for name in task.targets:
            if name in theirs.targets and theirs.heads[name] == task.heads[name]:
                both = (start.module.heads[theirs.name], model.heads[task.name])
                donor, mine = (cast(nn.ModuleDict, heads) for heads in both)
                if name in donor:
                    mine[name].load_state_dict(donor[name].state_dict())
                    # The same prediction in physical units, although this data's scale is another.
                    ratio = theirs.targets[name].normaliser.scale / task.targets[name].normaliser.scale
                    with torch.no_grad():
                        cast(Any, mine[name]).perceptron[-1].weight.mul_(ratio)
                    loaded.append(name)
        said += f"; heads kept from {settings.head_from}: {', '.join(loaded) or 'none fits'}"
    say(said + f"; fresh heads otherwise, references and scales fitted on {task.name}, seed {seed}")
    return model.train()


def _result(
    settings: FinetuneSettings,
    store: Store,
    parts: Split,
    task: Task,
    judged: str,
    model: MultitaskModel,
    tested: list[Any],
    device: torch.device,
) -> dict[str, Any]:
    found = evaluate(model, [task], tested, device=device, keep=True)[task.name]
    truth = np.concatenate(found[judged].truth)
    prediction = np.concatenate(found[judged].prediction)
    some = np.linspace(0, len(truth) - 1, min(PARITY_POINTS, len(truth))).astype(int)
    factor, unit = shown(judged, 1.0)
    return {
        "name": settings.name,
        "start": "scratch" if settings.start == "scratch" else "pretrained",
        "seed": settings.train.seed,
        "learning_rate": settings.optimiser.learning_rate,
        "weight_decay": settings.optimiser.weight_decay,
        "property": judged,
        "unit": unit,
        "level_of_theory": store.card.level_of_theory,
        "dataset": store.card.name,
        "total_steps": settings.train.steps,
        "test_error": found[judged].mae * factor,
        "test_errors": {name: shown(name, error.mae)[0] for name, error in found.items()},
        "baseline_error": found[judged].baseline_mae * factor,
        "truth": (truth[some] * factor).round(6).tolist(),
        "prediction": (prediction[some] * factor).round(6).tolist(),
        "trained_on": len(parts.train),
        "validated_on": len(parts.validation),
        "tested_on": len(parts.test),
    }
