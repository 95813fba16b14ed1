"""Studies: compare fine-tuning from several starts and seeds, with learning rates chosen on validation data."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from rich.console import Console

import eutectic
from eutectic.atoms import PROPERTIES, EutecticError
from eutectic.study.results import Curve, Run, Start, StudyResults, TaskComparison, Trial
from eutectic.study.runs import run_all
from eutectic.train.finetune import FinetuneResult, Prepared, prepare_run
from eutectic.train.settings import FinetuneSettings, parse

STARTS: tuple[Start, Start] = ("scratch", "pretrained")
SWEEP_SEED = 1000
"""Seed for choosing learning rates, which no reported run uses."""

Choice = Mapping[str, float]
"""Optimiser settings chosen for a start: `learning_rate`, and `weight_decay` if swept."""


def variant(base: FinetuneSettings, start: str, model: Path | None, *, seed: int, choice: Choice) -> FinetuneSettings:
    """Settings of one run of a study: starts differ only in their initial weights and in `choice`.

    Args:
        base: all other settings.
        start: 'pretrained' or 'scratch'.
        model: the pre-trained model, whose architecture a start from scratch uses too.
        seed: of the run.
        choice: optimiser settings, chosen for this start on validation data.
    """
    given = None if model is None else str(model)
    values = base.model_dump(mode="json")
    values |= {
        "start": "scratch" if start == "scratch" else given,
        "architecture_from": given if start == "scratch" and base.backbone is None else None,
        "head_from": base.head_from if start == "pretrained" else None,
    }
    values["optimiser"] |= dict(choice)
    values["train"]["seed"] = seed
    return parse(FinetuneSettings, values, f"{base.name}, {start}, seed {seed}")


def run_study(
    base: FinetuneSettings,
    out: Path,
    *,
    model: Path | None,
    starts: Sequence[Start] = STARTS,
    seeds: int = 3,
    learning_rates: Sequence[float] = (),
    weight_decays: Sequence[float] = (),
    title: str | None = None,
    workers: int | None = None,
    console: Console,
) -> StudyResults:
    """Run all starts and seeds, after a sweep over learning rates and weight decays if several are given.

    Writes `out/runs/TASK/START-SEED/` (each a separate fine-tuning), `out/choices/` (the sweep) and
    `out/results.json`. After an interruption, the same call resumes.

    Args:
        base: settings of every run; the study sets start, seed, and the swept settings. Runs go in parallel, with one
            thread each unless `train.threads` is given.
        out: folder of the study.
        model: pre-trained model to start from; a start from scratch uses its architecture.
        starts: 'scratch', 'pretrained', or both.
        seeds: runs of each start, seeds 0, 1, …
        learning_rates, weight_decays: if several are given, the best for each start are chosen on validation data.
        title: of the report.
        workers: number of processes; default: one per core.

    Raises:
        EutecticError: invalid data, model or settings; no test structures.
        Interrupted: resumable.
    """
    if base.data.test == 0:
        raise EutecticError("data.test", "0 structures", "test structures to compare starts", "leave it out")
    if seeds < 1:
        raise EutecticError("seeds", f"{seeds}", "at least one run of each start", "leave it out for three")
    if model is None and "pretrained" in starts:
        raise EutecticError(
            "--model", "none", "a pre-trained model", "pass --model eutectic-small, or a model of your own"
        )
    if base.train.threads is None:
        base = base.model_copy(update={"train": base.train.model_copy(update={"threads": 1})})
    grid = [
        {"learning_rate": rate, "weight_decay": decay}
        for decay in (weight_decays or [base.optimiser.weight_decay])
        for rate in (learning_rates or [base.optimiser.learning_rate])
    ]
    for start in starts:
        _check_parts(prepare_run(variant(base, start, model, seed=0, choice=grid[0]), console))
    trials: dict[str, list[Trial]] = {}
    chosen: dict[str, Choice] = dict.fromkeys(starts, grid[0])
    if len(grid) > 1:
        trials = sweep([base], model, grid, out / "choices", starts=starts, workers=workers, console=console)
        chosen = best_choices(trials[base.name])
        for name, choice in chosen.items():
            values = ", ".join(f"{key.replace('_', ' ')} {value:g}" for key, value in choice.items())
            console.print(f"chosen on validation data, {name}: {values}", highlight=False)
    tasks = compare(
        [(base, title or f"{base.name}, {' and '.join(base.targets)}")],
        model,
        {base.name: chosen},
        out / "runs",
        seeds=range(seeds),
        starts=starts,
        trials=trials,
        workers=workers,
        console=console,
    )
    results = StudyResults(
        tasks=tasks,
        pretraining=None,
        settings={"finetune": {**base.model_dump(mode="json"), "chosen": {s: dict(c) for s, c in chosen.items()}}},
        times={"finetuning_seconds": round(sum(r.seconds for t in tasks for r in t.runs), 1)},
        environment=environment(),
    )
    results.write(out / "results.json")
    return results


def _check_parts(prepared: Prepared) -> None:
    """Refuse, before anything is trained, a comparison that the data leave no structures for.

    Raises:
        EutecticError: no validation or no test structures.
    """
    parts, store = prepared.split, prepared.store
    for part, rows in (("validation", parts.validation), ("test", parts.test)):
        if not len(rows):
            raise EutecticError(
                f"split {parts.name!r} of {store.card.name}",
                f"no {part} structures are left ({len(parts.train):,} of {len(store):,} structures are for training)",
                "some validation structures to choose the step by, and some test structures to compare starts",
                "ask for fewer training structures, or give more data; `eutectic finetune` trains without them",
            )


def sweep(
    bases: Sequence[FinetuneSettings],
    model: Path | None,
    choices: Sequence[Choice],
    folder: Path,
    *,
    starts: Sequence[Start] = STARTS,
    workers: int | None,
    console: Console,
) -> dict[str, list[Trial]]:
    """Run every start with every choice, the same for all starts; task → trials with their validation errors."""
    plan = [(base, start, choice) for base in bases for start in starts for choice in choices]
    results = run_all(
        [
            (
                variant(b, start, model, seed=SWEEP_SEED, choice=choice),
                folder / b.name / "-".join([start, *(f"{value:g}" for value in choice.values())]),
            )
            for b, start, choice in plan
        ],
        title="choosing rates",
        workers=workers,
        console=console,
    )
    trials: dict[str, list[Trial]] = {base.name: [] for base in bases}
    for (base, start, _), result in zip(plan, results, strict=True):
        error, best = result.errors[result.steps.index(result.best_step)], np.nanmin([*result.scores, np.inf])
        trials[base.name].append(Trial(start, result.learning_rate, result.weight_decay, error, float(best)))
    return trials


def best_choices(trials: Sequence[Trial]) -> dict[str, Choice]:
    """Start → the learning rate and weight decay with the lowest validation score, over all properties."""
    chosen: dict[str, Choice] = {}
    for start in {trial.start for trial in trials}:
        best = min(
            (t for t in trials if t.start == start), key=lambda t: t.validation_error if t.score is None else t.score
        )
        chosen[start] = {"learning_rate": best.learning_rate, "weight_decay": best.weight_decay}
    return chosen


def compare(
    bases: Sequence[tuple[FinetuneSettings, str]],
    model: Path | None,
    choices: Mapping[str, Mapping[str, Choice]],
    folder: Path,
    *,
    seeds: Sequence[int],
    starts: Sequence[Start] = STARTS,
    trials: Mapping[str, list[Trial]] | None = None,
    workers: int | None,
    console: Console,
) -> list[TaskComparison]:
    """Run every task from every start with all seeds, in parallel; finished runs are read back.

    Args:
        bases: settings and title of each task.
        choices: task → start → optimiser settings chosen for it.
        trials: the sweep that led to the choices, for the results.
    """
    plan = [(base, start, seed) for base, _ in bases for start in starts for seed in seeds]
    results = run_all(
        [
            (variant(b, start, model, seed=seed, choice=choices[b.name][start]), folder / b.name / f"{start}-{seed}")
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
    """Collect the runs of one task."""
    first = results[0]
    if first.test_error is None:
        raise EutecticError(first.name, "no test structures", "some to compare starts", "leave out data.test")
    return TaskComparison(
        name=first.name,
        title=title,
        dataset=first.dataset,
        property=first.property,
        symbol=PROPERTIES[first.property].symbol,
        unit=first.unit,
        level_of_theory=first.level_of_theory,
        n_train=first.trained_on,
        n_validation=first.validated_on,
        n_test=first.tested_on,
        steps=first.total_steps,
        trials=list(trials),
        examples=first.examples,
        units=first.units,
        runs=[
            Run(
                start=cast(Start, r.start),
                seed=r.seed,
                learning_rate=r.learning_rate,
                weight_decay=r.weight_decay,
                curve=Curve(r.steps, r.seconds, r.errors),
                test_error=cast(float, r.test_error),
                truth=r.truth,
                prediction=r.prediction,
                seconds=r.wall_seconds,
                test_errors=r.test_errors,
            )
            for r in results
        ],
    )


def environment() -> dict[str, Any]:
    """Versions and hardware, for the footer of a report."""
    return {
        "eutectic": eutectic.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
