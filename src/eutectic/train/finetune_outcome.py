"""The outcome of a fine-tuning: its model tested, its result collected, and both saved, which finishes the run.

The result itself, with its fields and its reader, is in `finetune_result.py`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

import eutectic
from eutectic.checkpoints.inspection import write_card
from eutectic.checkpoints.model import TrainedModel, save_model
from eutectic.checkpoints.seen_rows import LearnedRows
from eutectic.checkpoints.uncertainty import Uncertainties
from eutectic.data.examples import structure_to_dict, varied
from eutectic.data.splits import Split
from eutectic.data.store import Store
from eutectic.files import write_atomically
from eutectic.models.multitask import MultitaskModel
from eutectic.tasks.metrics import ClassErrorSum, ErrorSum, primary, shown
from eutectic.train.batches.sampler import TaskDataset
from eutectic.train.evaluation import evaluate, evaluate_store
from eutectic.train.finetune_preparation import Prepared, model_named
from eutectic.train.finetune_result import FinetuneResult
from eutectic.train.judging import Curve
from eutectic.train.loop import Trained
from eutectic.train.settings import FinetuneSettings
from eutectic.train.uncertainty import calibrated

PARITY_POINTS = 500


def run_result(
    settings: FinetuneSettings,
    prepared: Prepared,
    curve: Curve,
    best_step: int,
    trained: Trained,
    drawn: int,
    reason: str,
    model: MultitaskModel,
    device: torch.device,
) -> FinetuneResult:
    """Test the model of a run, and collect the result.

    Args:
        settings, prepared: of the run.
        curve: validation errors.
        best_step: step of the weights of `model`.
        trained: training time and number of steps.
        drawn: number of structures drawn in all steps.
        reason: why the run ended, if that was not fixed beforehand.
        model: the model that is kept.
        device: to test on.
    """
    store, parts, task = prepared.store, prepared.split, prepared.task
    judged = primary(list(task.targets))
    notes = [*curve.notes, *([reason] if reason else [])]
    if prepared.test is not None:
        tested_on = len(prepared.test)
        found, refused = evaluate_store(
            model.to(device), task, prepared.test, np.arange(tested_on), baseline=prepared.baseline
        )
        found = {name: error for name, error in found.items() if error.count}
        if refused:
            tested_on -= len(refused)
            notes.append(f"{len(refused):,} test structures could not be predicted; the first: {refused[0]}")
    else:
        tested_on = len(parts.test)
        tested = TaskDataset(0, task, store, parts.test, edge_lists=prepared.edge_lists).items()
        given: dict[str, Any] = {"device": device, "keep": True, "baseline": prepared.baseline}
        found = evaluate(model, prepared.tasks, tested, **given)[task.name] if tested else {}
    parity = {name: _points(name, error) for name, error in found.items() if error.truth}
    test_errors = {name: shown(name, error.mae)[0] for name, error in found.items()}
    test_baselines = {name: shown(name, error.baseline_mae)[0] for name, error in found.items()}
    truth, prediction = parity.get(judged, [[], []])
    return FinetuneResult(
        name=settings.name,
        start="scratch" if settings.start == "scratch" else "pretrained",
        model=model_named(settings),
        property=judged,
        unit=shown(judged, 1.0)[1],
        dataset=store.card.name,
        level_of_theory=store.card.level_of_theory,
        total_steps=trained.steps,
        batch_size=min(settings.train.batch_size, len(parts.train)),
        learning_rate=settings.optimiser.learning_rate,
        weight_decay=settings.optimiser.weight_decay,
        seed=settings.train.seed,
        steps=curve.steps,
        seconds=curve.seconds,
        errors=curve.errors[judged],
        curves=curve.errors,
        best_step=best_step,
        validation_baselines=curve.baselines,
        test_error=test_errors.get(judged),
        baseline_error=test_baselines.get(judged),
        test_errors=test_errors,
        test_baselines=test_baselines,
        units={name: shown(name, 1.0)[1] for name in task.targets},
        metrics={n: (ClassErrorSum if task.property(n).categorical else ErrorSum).metric for n in task.targets},
        roc_auc={n: e.roc_auc for n, e in found.items() if isinstance(e, ClassErrorSum) and np.isfinite(e.roc_auc)},
        truth=truth,
        prediction=prediction,
        parity=parity,
        trained_on=len(parts.train),
        validated_on=len(parts.validation),
        tested_on=tested_on,
        wall_seconds=round(trained.seconds, 2),
        examples=[structure_to_dict(store[row].structure) for row in varied(store)],
        scores=curve.scores,
        score_weights={name: settings.score_weights.get(name, 1.0) for name in task.targets},
        length=settings.train.length,
        epochs=round(drawn / len(parts.train), 2),
        fell=curve.fell,
        converged=bool(reason),
        notes=notes,
    )


def _points(name: str, error: ErrorSum) -> list[list[float]]:
    """[truth, prediction] of up to 500 evenly spaced values, in the display unit."""
    factor, _ = shown(name, 1.0)
    truth, prediction = np.concatenate(error.truth), np.concatenate(error.prediction)
    some = np.linspace(0, len(truth) - 1, min(PARITY_POINTS, len(truth))).astype(int)
    return [(values[some] * factor).round(6).tolist() for values in (truth, prediction)]


def save_run(
    settings: FinetuneSettings,
    prepared: Prepared,
    model: MultitaskModel,
    result: FinetuneResult,
    folder: Path,
    *,
    uncertain: bool,
) -> None:
    """Write model and result, which finishes a run."""
    store, start = prepared.store, prepared.start
    provenance: dict[str, Any] = {
        "eutectic": eutectic.__version__,
        "finetuned_on": store.card.name,
        "task": settings.name,
        "start": settings.start,
        "structures": result.trained_on,
        "steps": result.total_steps,
        "seed": settings.train.seed,
        "level_of_theory": store.card.level_of_theory,
        "licence": store.card.licence,
        "elements": sorted(store.composition()),
        "learned_rows": [
            _learned_rows(settings, store, prepared.split).to_dict(),
            *(rows.to_dict() for other in prepared.companions if (rows := other.learned_rows()) is not None),
        ],
    }
    if prepared.companions:
        provenance["together_with"] = [other.in_words for other in prepared.companions if other.settings.ratio]
    if start is not None:
        provenance["pretrained"] = dict(start.provenance)
    described = TrainedModel(
        model,
        prepared.tasks,
        prepared.backbone.name,
        prepared.backbone.settings,
        prepared.graph,
        provenance,
        _uncertainties(settings, prepared, model) if uncertain else {},
    )
    save_model(folder / "model", described)
    write_atomically(folder / "result.json", json.dumps(result.to_dict()), sole_writer=True)
    write_card(folder / "model")


def _uncertainties(settings: FinetuneSettings, prepared: Prepared, model: MultitaskModel) -> Uncertainties:
    """Uncertainties of the scalar properties, from the training and validation structures."""
    parts, store = prepared.split, prepared.store
    found = calibrated(
        model, prepared.task, (store, parts.train), (store, parts.validation), batch_size=settings.train.batch_size
    )
    return {settings.name: found} if found else {}


def _learned_rows(settings: FinetuneSettings, store: Store, parts: Split) -> LearnedRows:
    """Record of the structures that the model learned from, for later tests."""
    data = settings.data
    return LearnedRows.of(
        store,
        parts,
        n_train=data.train,
        n_validation=data.validation,
        n_test=data.test,
        seed=data.split_seed,
        needs=tuple(settings.targets),
    )
