"""Studies: compare fine-tuning from several starts and seeds, with learning rates chosen on validation data."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console

import eutectic
from eutectic.atoms import PROPERTIES, EutecticError
from eutectic.data.splits import Split
from eutectic.data.store import Store
from eutectic.study.cases import cases_of
from eutectic.study.halving import NOMINAL, Round, cost, halve, in_words, named, rounds, spent, trial
from eutectic.study.results import Curve, Run, Start, StudyResults, TaskComparison, Trial
from eutectic.study.runs import run_all
from eutectic.study.variants import SWEEP_SEED, Choice, variant
from eutectic.train.finetune import prepare_run
from eutectic.train.finetune_preparation import open_run_data, split_of
from eutectic.train.finetune_result import FinetuneResult
from eutectic.train.run_folder import CHOICES
from eutectic.train.schedule import finetune_schedule
from eutectic.train.settings import FinetuneSettings, parse

STARTS: tuple[Start, Start] = ("scratch", "pretrained")


def run_study(
    base: FinetuneSettings,
    out: Path,
    *,
    model: Path | None,
    starts: Sequence[Start] = STARTS,
    seeds: int | None = None,
    folds: int | None = None,
    sizes: Sequence[int] = (),
    learning_rates: Sequence[float] = (),
    weight_decays: Sequence[float] = (),
    halving: bool = True,
    title: str | None = None,
    workers: int | None = None,
    console: Console,
) -> StudyResults:
    """Run all starts, seeds, folds and sizes; learning rate and weight decay are chosen first if several are given.

    Writes `out/runs/TASK/START-SEED/` (each a separate fine-tuning), `out/choices/` (the sweep) and
    `out/results.json`. After an interruption, the same call resumes.

    Args:
        base: settings of every run; the study sets start, seed, split and size, and the swept settings. Runs are
            concurrent, with one thread each unless `train.threads` is given.
        out: folder of the study.
        model: pre-trained model to start from; a start from scratch uses its architecture.
        starts: 'scratch', 'pretrained', or both.
        seeds: number of runs per start, with seeds 0, 1, …; default: 3, or 1 with folds.
        folds: of a cross-validation, in which each structure is tested once.
        sizes: numbers of training structures, for a learning curve.
        learning_rates, weight_decays: if several are given, the best for each start, fold and size are chosen on
            validation data.
        halving: choose by successive halving on short runs (see `eutectic.study.halving`) instead of full-length runs.
        title: of the report.
        workers: number of processes; default: one per core.
        console: for messages and progress.

    Raises:
        EutecticError: invalid data, model or settings; no test structures.
        Interrupted: resumable.
    """
    if base.data.test == 0 and base.data.test_file is None:
        raise EutecticError("data.test", "0 structures", "test structures to compare starts", "leave it out")
    seeds = (3 if folds is None else 1) if seeds is None else seeds
    if seeds < 1:
        raise EutecticError("seeds", f"{seeds}", "at least one run per start", "leave it out for three")
    if model is None and "pretrained" in starts:
        raise EutecticError("--model", "none", "a pre-trained model", "pass --model eutectic-small, or your own model")
    if base.train.threads is None:
        base = base.model_copy(update={"train": base.train.model_copy(update={"threads": 1})})
    grid = grid_of(base, learning_rates, weight_decays)
    store = open_run_data(base, console)
    cases = cases_of(base, store, folds=folds, sizes=sizes)
    for case in cases:
        _check_parts(case.split, store, case.settings)
    for start in starts:
        prepare_run(variant(cases[0].settings, start, model, seed=0, choice=grid[0]), console, store)
    trials: dict[str, list[Trial]] = {}
    chosen: dict[str, dict[Start, Choice]] = {case.folder: dict.fromkeys(starts, grid[0]) for case in cases}
    swept: dict[str, Any] = {}
    if len(grid) > 1:
        for case in cases:
            trials[case.folder], chosen[case.folder], planned = choose(
                case.settings,
                model,
                grid,
                out / CHOICES / case.folder,
                n_train=len(case.split.train),
                starts=starts,
                halving=halving,
                workers=workers,
                console=console,
            )
            swept = {key: swept.get(key, 0) + value for key, value in planned.items()}
        if len(cases) > 1:
            console.print(f"choosing took {spent(trials):,} steps in total", highlight=False)
    plan = [(case, start, seed) for case in cases for start in starts for seed in range(seeds)]
    results = run_all(
        [
            (
                variant(case.settings, start, model, seed=seed, choice=chosen[case.folder][start]),
                out / "runs" / base.name / "-".join(w for w in (start, case.folder, f"{seed}") if w),
            )
            for case, start, seed in plan
        ],
        title="fine-tuning",
        workers=workers,
        console=console,
    )
    title = title or f"{base.name}, {' and '.join(base.targets)}"
    tasks = []
    for size in sorted({case.size or 0 for case in cases}):
        of_size = [(c, r) for (c, _, _), r in zip(plan, results, strict=True) if (c.size or 0) == size]
        tried = [t for c in cases if (c.size or 0) == size for t in trials.get(c.folder, ())]
        heading = f"{title}, {size:,} training structures" if size else title
        task = comparison([r for _, r in of_size], heading, tried, [c.fold for c, _ in of_size])
        tasks.append(replace(task, name=f"{task.name}, {size:,}") if len(set(sizes)) > 1 else task)
    noted = {key: {s: dict(c) for s, c in by_start.items()} for key, by_start in chosen.items()}
    settings = {**base.model_dump(mode="json"), "chosen": noted[""] if list(noted) == [""] else noted}
    found = StudyResults(
        tasks=tasks,
        pretraining=None,
        settings={"finetune": settings, **({"sweep": swept} if swept else {})},
        times={"finetuning_seconds": round(sum(r.seconds for t in tasks for r in t.runs), 1)},
        environment=environment(),
    )
    found.write(out / "results.json")
    return found


def grid_of(
    base: FinetuneSettings, learning_rates: Sequence[float], weight_decays: Sequence[float]
) -> list[dict[str, float]]:
    """All distinct combinations in the given order; settings that are not swept are those of `base`."""
    return [
        {"learning_rate": rate, "weight_decay": decay}
        for decay in dict.fromkeys(weight_decays or [base.optimiser.weight_decay])
        for rate in dict.fromkeys(learning_rates or [base.optimiser.learning_rate])
    ]


def choose(
    base: FinetuneSettings,
    model: Path | None,
    grid: Sequence[Choice],
    folder: Path,
    *,
    n_train: int,
    starts: Sequence[Start],
    halving: bool,
    workers: int | None,
    console: Console,
) -> tuple[list[Trial], dict[Start, Choice], dict[str, int]]:
    """Choose learning rate and weight decay of each start on validation data, and print the cost.

    Args:
        base: settings of the run.
        model: pre-trained model.
        grid: settings to choose from.
        folder: of the trial runs.
        n_train: number of training structures, to convert epochs to steps.
        starts: 'scratch', 'pretrained', or both.
        halving: by successive halving instead of full-length runs.
        workers: number of processes; default: one per core.
        console: for messages and progress.

    Returns:
        The trials; start → choice; and the cost in steps: planned, done, and with full-length runs.
    """
    schedule = finetune_schedule(base.train, base.optimiser, n_train)
    steps = NOMINAL if schedule.steps is None else schedule.steps
    plan = rounds(len(grid), steps) if halving else [Round(len(grid), steps)]
    console.print(in_words(plan, len(starts), len(grid), steps), highlight=False)
    if halving:
        trials, chosen = halve(base, model, grid, folder, steps=steps, starts=starts, workers=workers, console=console)
    else:
        trials = sweep([base], model, grid, folder, starts=starts, workers=workers, console=console)[base.name]
        best = best_choices(trials)
        chosen = {start: best[start] for start in starts}
    for name, choice in chosen.items():
        values = ", ".join(f"{key.replace('_', ' ')} {value:g}" for key, value in choice.items())
        console.print(f"chosen on validation data, {name}: {values}", highlight=False)
    done = spent({"": trials})
    console.print(f"choosing took {done:,} steps", highlight=False)
    full = len(starts) * len(grid) * steps
    return trials, chosen, {"planned_steps": len(starts) * cost(plan), "steps": done, "steps_of_whole_runs": full}


def choose_for_one(
    settings: FinetuneSettings,
    out: str | Path,
    learning_rates: Sequence[float],
    weight_decays: Sequence[float],
    *,
    halving: bool = True,
    console: Console | None,
) -> FinetuneSettings:
    """The settings of a fine-tuning with the best of the given rates, chosen on its validation data.

    Args:
        settings: of the run.
        out: folder of the run; trial runs are in `choices/` there.
        learning_rates, weight_decays: to choose from.
        halving: by successive halving instead of full-length runs.
        console: for messages and progress; None prints nothing.

    Raises:
        EutecticError: no validation structures; invalid data, model or settings; an effort.
        Interrupted: resumable.
    """
    grid = grid_of(settings, learning_rates, weight_decays)
    if len(grid) > 1:
        if settings.effort is not None:
            raise EutecticError(
                "sweep",
                f"{len(grid)} settings to choose from, and effort {settings.effort}",
                "only one of them, since an effort has several trainings",
                "leave out --effort, or give one learning rate",
            )
        console = console or Console(quiet=True)
        store = open_run_data(settings, console)
        parts = split_of(store, settings)
        if not len(parts.validation):
            raise EutecticError(
                f"split {parts.name!r} of {store.card.name}",
                "no validation structures",
                "some, to choose learning rate and weight decay",
                "use fewer training structures, or give one learning rate",
            )
        start: Start = "scratch" if settings.start == "scratch" else "pretrained"
        named_model = settings.architecture_from if start == "scratch" else settings.start
        _, chosen, _ = choose(
            settings.model_copy(update={"train": settings.train.model_copy(update={"threads": 1, "processes": 1})}),
            None if named_model is None else Path(named_model),
            grid,
            Path(out) / CHOICES,
            n_train=len(parts.train),
            starts=[start],
            halving=halving,
            workers=None,
            console=console,
        )
        grid = [dict(chosen[start])]
    values = settings.model_dump(mode="json")
    values["optimiser"] |= grid[0]
    return parse(FinetuneSettings, values, settings.name)


def _check_parts(parts: Split, store: Store, settings: FinetuneSettings) -> None:
    """Check before training that there are structures for a comparison.

    Raises:
        EutecticError: no validation or no test structures.
    """
    for part, rows in (("validation", parts.validation), ("test", parts.test)):
        if not len(rows) and not (part == "test" and settings.data.test_file is not None):
            raise EutecticError(
                f"split {parts.name!r} of {store.card.name}",
                f"no {part} structures are left ({len(parts.train):,} of {len(store):,} structures are for training)",
                "some validation structures to choose the best step, and some test structures to compare starts",
                "use fewer training structures, or give more data; `eutectic finetune` trains without them",
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
    """Run every start with every choice; returns task → trials with their validation errors."""
    plan = [(base, start, choice) for base in bases for start in starts for choice in choices]
    results = run_all(
        [
            (
                variant(b, start, model, seed=SWEEP_SEED, choice=choice),
                folder / b.name / named(start, choice),
            )
            for b, start, choice in plan
        ],
        title="choosing rates",
        workers=workers,
        console=console,
    )
    trials: dict[str, list[Trial]] = {base.name: [] for base in bases}
    for (base, start, _), result in zip(plan, results, strict=True):
        trials[base.name].append(trial(start, result))
    return trials


def best_choices(trials: Sequence[Trial]) -> dict[str, Choice]:
    """Start → the learning rate and weight decay with the lowest validation score, over all properties."""
    chosen: dict[str, Choice] = {}
    for start in {t.start for t in trials}:
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
    """Run every task from every start with all seeds, concurrently; finished runs are read back.

    Args:
        bases: settings and title of each task.
        model: pre-trained model.
        choices: task → start → optimiser settings chosen for it.
        folder: of the runs.
        seeds: of the runs.
        starts: 'scratch', 'pretrained', or both.
        trials: the sweep that led to the choices, for the results.
        workers: number of processes; default: one per core.
        console: for messages and progress.
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


def comparison(
    results: Sequence[FinetuneResult],
    title: str,
    trials: Sequence[Trial] = (),
    folds: Sequence[int | None] | None = None,
) -> TaskComparison:
    """Collect the runs of one task; `folds`: the fold on which each was tested."""
    first = results[0]
    folds = [None] * len(results) if folds is None else folds
    tested = {fold: r.tested_on for fold, r in zip(folds, results, strict=True)}
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
        n_test=sum(tested.values()),
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
                fold=fold,
            )
            for fold, r in zip(folds, results, strict=True)
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
