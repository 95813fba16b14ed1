"""Pages of studies: fine-tuning from pre-trained weights and from scratch, optionally with the pre-training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from eutectic.atoms import Structure
from eutectic.report import figures
from eutectic.report.figures import START_WORDS
from eutectic.report.formatting import count, duration, percent, rate, short, significant, words
from eutectic.report.page import write_page
from eutectic.report.run_page import validation_panels
from eutectic.study.results import STARTS, Start, StudyResults, TaskComparison


def write_demo_page(
    path: Path, results: StudyResults, examples: Mapping[str, Sequence[Structure]] | None = None
) -> None:
    """Write the page of a study with its pre-training.

    Args:
        path: the HTML file to write, atomically.
        results: results of the study.
        examples: task name → a few of its structures, drawn beside its results.

    Raises:
        EutecticError: the file cannot be written.
    """
    lead = (
        "One model is pre-trained on several chemical domains at once and fine-tuned to single properties; "
        "the same model is also trained on the same data from random weights. This page compares the two."
    )
    _write(path, results, "Joint pre-training compared with training from scratch", lead, examples or {})


def write_comparison_page(
    path: Path,
    task: TaskComparison,
    *,
    settings: Mapping[str, Any] | None = None,
    times: Mapping[str, Any] | None = None,
    environment: Mapping[str, Any] | None = None,
    examples: Sequence[Structure] = (),
) -> None:
    """Write the page of one task's runs, from either start or both.

    Args:
        path: the HTML file to write, atomically.
        task: the task with its runs.
        settings, times, environment: as in `StudyResults`.
        examples: a few of its structures to draw.

    Raises:
        EutecticError: the file cannot be written.
    """
    results = StudyResults(
        tasks=[task],
        pretraining=None,
        settings=dict(settings or {}),
        times=dict(times or {}),
        environment=dict(environment or {}),
    )
    starts = " and ".join(_trained(s) for s in task.starts())
    lead = f"{words(task.property).capitalize()} of {task.dataset}, trained {starts}."
    _write(path, results, f"Fine-tuning: {task.title}", lead, {task.name: examples})


def write_results_page(path: Path, results: StudyResults, examples: Mapping[str, Sequence[Structure]]) -> None:
    """Write the page of a study of one task, with one or several numbers of training structures.

    Args:
        path: the HTML file to write, atomically.
        results: results of the study.
        examples: task name → a few of its structures.

    Raises:
        EutecticError: the file cannot be written.
    """
    first = results.tasks[0]
    starts = " and ".join(_trained(s) for s in first.starts())
    sizes = ", with several numbers of training structures" if results.is_learning_curve else ""
    lead = f"{words(first.property).capitalize()} of {first.dataset}, trained {starts}{sizes}."
    title = first.title.removesuffix(f", {first.n_train:,} training structures") if sizes else first.title
    _write(path, results, f"Fine-tuning: {title}", lead, examples)


def _write(
    path: Path, results: StudyResults, title: str, lead: str, examples: Mapping[str, Sequence[Structure]]
) -> None:
    tasks, pretraining = results.tasks, results.pretraining
    starts = tuple(s for s in STARTS if any(t.of(s) for t in tasks))
    set_names = [s.name for s in pretraining.sets] if pretraining else []
    improved = [t for t in tasks if t.improvement_percent is not None]
    write_page(
        path,
        "study.html.j2",
        title=title,
        lead=lead,
        results=results,
        starts=starts,
        compared=len(starts) > 1,
        start_words=START_WORDS,
        examples=examples,
        set_names=set_names,
        validation=validation_panels(pretraining.validation, set_names) if pretraining else {},
        gains=[f"{t.title}: {percent(t.improvement_percent)}" for t in improved],
        n_better=sum((t.improvement_percent or 0) > 0 for t in improved),
        n_tasks=lambda n: "1 task" if n == 1 else f"{n} tasks",
        crossing=_crossing,
        parity=_parity,
        typical=figures.typical,
        method_columns=[
            f"{column}, {START_WORDS[s]}" for s in starts for column in ("learning rate / weight decay", "time per run")
        ],
        rates=_rates,
        size_words=_size_words(results),
        rates_differ=any(_rates(t, "scratch") != _rates(t, "pretrained") for t in tasks),
        mean_seconds=_mean_seconds,
        trials=[
            (task, trial)
            for task in tasks
            for trial in sorted(task.trials, key=lambda r: (r.start, r.weight_decay, r.learning_rate))
        ],
        times={
            k: duration(v) if isinstance(v, (int, float)) and not isinstance(v, bool) else v
            for k, v in results.times.items()
        },
    )


def _size_words(results: StudyResults) -> str:
    """A sentence on the scaling of the error with the number of training structures; empty if there is only one."""
    if not results.is_learning_curve:
        return ""
    slopes = {start: figures.exponent(results, start) for start in STARTS}
    fits = [f"N^{value:.2f} {_trained(start)}" for start, value in slopes.items() if value is not None]
    return f"The test error scales as {' and '.join(fits)} (fitted lines)." if fits else ""


def _trained(start: Start) -> str:
    return "from pre-trained weights" if start == "pretrained" else "from scratch"


def _crossing(task: TaskComparison) -> str:
    """A sentence on the learning curves."""
    crossing = task.crossing()
    if crossing is None:
        start = task.starts()[0]
        final = significant(float(task.mean_curve(start)[1][-1]))
        return f"Final validation error {_trained(start)}: {final} {task.unit}."
    start, step, error = crossing
    value, after = f"{significant(error)} {task.unit}", f"after {count(round(step))} of {count(task.steps)} steps (dot)"
    if start == "pretrained":
        return f"The pre-trained start reaches {value}, the final error of training from scratch, {after}."
    return (
        "The pre-trained start does not reach the final error of training from scratch, "
        f"which reaches the final error of the pre-trained one, {value}, {after}."
    )


def _parity(task: TaskComparison, start: Start) -> Figure:
    """Parity plot of the run with the median test error; both starts have the same axes."""
    shown = {s: figures.typical(task, s) for s in task.starts()}
    run = shown[start]
    return figures.parity(
        run.truth,
        run.prediction,
        symbol=task.symbol,
        unit=task.unit,
        title=START_WORDS[start],
        colour=figures.START_COLOURS[start],
        note=f"test error {significant(run.test_error)} {short(task.unit, 16)}",
        same_axes_as=[(r.truth, r.prediction) for r in shown.values()],
    )


def _rates(task: TaskComparison, start: Start) -> str:
    """Learning rate and weight decay of a start's runs, usually one pair."""
    pairs = sorted({(r.learning_rate, r.weight_decay) for r in task.of(start)})
    return ", ".join(f"{rate(a)} / {rate(b)}" for a, b in pairs) or "–"


def _mean_seconds(task: TaskComparison, start: Start) -> float | None:
    runs = task.of(start)
    return sum(r.seconds for r in runs) / len(runs) if runs else None
