"""The same fine-tuning from two starts: learning rates chosen on validation data, several seeds, one table."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
from rich.console import Console

import eutectic
from eutectic.atoms import PROPERTIES
from eutectic.evaluate.comparison import Curve, Run, Start, TaskComparison, Trial
from eutectic.models.heads import HeadSettings
from eutectic.tasks import TargetSettings
from eutectic.train.finetune import FinetuneResult
from eutectic.train.runs import run_all
from eutectic.train.settings import FinetuneSettings

STARTS: tuple[Start, Start] = ("scratch", "pretrained")
SWEEP_SEED = 1000
"""Learning rates are chosen with a seed that no reported run uses."""

Rates = Mapping[str, float]
"""Start → peak learning rate."""


def target_of(name: str, *, layers: int = 1, forces: Literal["direct", "gradient"] = "direct") -> TargetSettings:
    """How a property is learned unless told otherwise: extensive ones as sums over atoms, intensive as means."""
    prop = PROPERTIES[name]
    if name == "forces":
        kind: Literal["direct_forces", "gradient_forces"] = "direct_forces" if forces == "direct" else "gradient_forces"
        return TargetSettings(head=HeadSettings(kind=kind, layers=layers))
    return TargetSettings(head=HeadSettings(pooling="sum" if prop.extensive else "mean", layers=layers))


def variant(base: FinetuneSettings, start: str, model: Path | None, *, seed: int, rate: float) -> FinetuneSettings:
    """One run of a comparison: both starts share everything but the first weights and the learning rate.

    Args:
        base: everything else.
        start: 'pretrained' or 'scratch'.
        model: the pre-trained model's folder, which also gives the size of a model from scratch.
    """
    given = None if model is None else str(model)
    return base.model_copy(
        update={
            "start": "scratch" if start == "scratch" else given,
            "like": given if start == "scratch" else None,
            "head_from": base.head_from if start == "pretrained" else None,
            "optimiser": base.optimiser.model_copy(update={"learning_rate": rate}),
            "train": base.train.model_copy(update={"seed": seed}),
        }
    )


def sweep(
    bases: Sequence[FinetuneSettings],
    model: Path | None,
    rates: Sequence[float],
    folder: Path,
    *,
    starts: Sequence[Start] = STARTS,
    workers: int | None,
    console: Console,
) -> dict[str, list[Trial]]:
    """Every start at every learning rate, judged on validation data alone; task → trials."""
    plan = [(base, start, rate) for base in bases for start in starts for rate in rates]
    results = run_all(
        [
            (variant(b, start, model, seed=SWEEP_SEED, rate=rate), folder / b.name / f"{start}-{rate:g}")
            for b, start, rate in plan
        ],
        title="learning rates",
        workers=workers,
        console=console,
    )
    trials: dict[str, list[Trial]] = {base.name: [] for base in bases}
    for (base, start, rate), result in zip(plan, results, strict=True):
        trials[base.name].append(Trial(start, rate, min(result.errors)))
    return trials


def best_rates(trials: Sequence[Trial]) -> dict[str, float]:
    """Start → the learning rate with the lowest validation error."""
    starts = {trial.start for trial in trials}
    return {
        start: min((t for t in trials if t.start == start), key=lambda t: t.validation_error).learning_rate
        for start in starts
    }


def compare(
    bases: Sequence[tuple[FinetuneSettings, str]],
    model: Path | None,
    rates: Mapping[str, Rates],
    folder: Path,
    *,
    seeds: Sequence[int],
    starts: Sequence[Start] = STARTS,
    trials: Mapping[str, list[Trial]] | None = None,
    workers: int | None,
    console: Console,
) -> list[TaskComparison]:
    """Every task from every start over all seeds, in parallel; finished runs are read back.

    Args:
        bases: settings and title of each task.
        rates: task → start → learning rate.
        trials: those that chose the rates, for the record.
    """
    plan = [(base, start, seed) for base, _ in bases for start in starts for seed in seeds]
    results = run_all(
        [
            (
                variant(b, start, model, seed=seed, rate=rates[b.name][start]),
                folder / b.name / f"{start}-{seed}",
            )
            for b, start, seed in plan
        ],
        title="fine-tuning",
        workers=workers,
        console=console,
    )
    return [
        comparison([r for r in results if r.name == base.name], title, (trials or {}).get(base.name, []))
        for base, title in bases
    ]


def comparison(results: Sequence[FinetuneResult], title: str, trials: Sequence[Trial] = ()) -> TaskComparison:
    """The runs of one task, gathered."""
    first = results[0]
    return TaskComparison(
        name=first.name,
        title=title,
        dataset=first.dataset,
        property=first.property,
        symbol=PROPERTIES[first.property].symbol,
        unit=first.unit,
        theory=first.theory,
        n_train=first.trained_on,
        n_validation=first.validated_on,
        n_test=first.tested_on,
        steps=first.total_steps,
        trials=list(trials),
        runs=[
            Run(
                start=cast(Start, r.start),
                seed=r.seed,
                learning_rate=r.learning_rate,
                curve=Curve(r.steps, r.seconds, r.errors),
                test_error=r.test_error,
                truth=r.truth,
                prediction=r.prediction,
                seconds=r.wall_seconds,
            )
            for r in results
        ],
    )


def environment() -> dict[str, Any]:
    """Versions and hardware, for the foot of a report."""
    return {
        "eutectic": eutectic.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
