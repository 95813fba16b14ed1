"""Results of the benchmark: our errors next to the published ones, and summaries by the paper's rules.

The improvement of one model over another is 1 − error ratio, in percent; for several tasks, the unweighted mean. For
the published columns, Matbench is represented by fold_0, the only fold with errors from scratch. The authors (Shoghi et
al., ICLR 2024) state 59 % over scratch, and 21 % for the large over the small model. They count 34 of 40 tasks on which
JMP-L is at least as good as the best earlier model, or has no predecessor; the table gives the same with means over the
five folds of Matbench (33 with fold_0). The authors' formulas are not published: these are the simplest that reproduce
their numbers.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from eutectic.atoms import EutecticError
from eutectic.files import null_for_unknown, read_json, write_atomically
from eutectic.study.benchmark_tasks import FAMILIES, FOLDS, TASKS, Columns
from eutectic.study.results import Start

FORMAT = "eutectic-benchmark-1"
FILE = "benchmark.json"


@dataclass(frozen=True, kw_only=True)
class BenchmarkRun:
    """A fine-tuning of a task.

    Attributes:
        start: initial weights.
        split: "paper", or a fold.
        seed: of the run.
        error: test error, in the unit of the task.
        trained_on, validated_on, tested_on: numbers of structures.
        steps: number of optimiser steps.
        seconds: training time.
        folder: of the run, relative to the folder of the benchmark.
    """

    start: Start
    split: str
    seed: int
    error: float
    trained_on: int
    validated_on: int
    tested_on: int
    steps: int
    seconds: float
    folder: str

    @property
    def which(self) -> tuple[str, str, int]:
        """Key of a run of a task."""
        return self.start, self.split, self.seed


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Outcome of one task.

    Attributes:
        task: name.
        runs: finished runs.
        departures: differences from the published protocol, as text.
        problem: the four parts of the error that prevented the task or some of its runs.
    """

    task: str
    runs: tuple[BenchmarkRun, ...] = ()
    departures: tuple[str, ...] = ()
    problem: Mapping[str, str] | None = None

    def error(self, start: Start, splits: Sequence[str] | None = None) -> float | None:
        """Mean over the splits of the mean over seeds; None without a run.

        Args:
            start: initial weights.
            splits: splits that must all have runs; default: all that have runs.
        """
        by_split: dict[str, list[float]] = {}
        for run in self.runs:
            if run.start == start:
                by_split.setdefault(run.split, []).append(run.error)
        required = by_split if splits is None else splits
        if not required or any(split not in by_split for split in required):
            return None
        return float(np.mean([np.mean(by_split[split]) for split in required]))

    def spread(self, start: Start) -> float | None:
        """Standard deviation over splits and seeds; None with fewer than two runs."""
        errors = [run.error for run in self.runs if run.start == start]
        return float(np.std(errors, ddof=1)) if len(errors) > 1 else None

    def judged(self) -> tuple[float, Columns] | None:
        """Our error, and the published columns for the same splits; None if there is no such pair."""
        task = TASKS[self.task]
        if task.five_folds is None:
            error = self.error("pretrained")
            return None if error is None else (error, task.published)
        for splits, columns in ((FOLDS, task.five_folds), (FOLDS[:1], task.published)):
            error = self.error("pretrained", splits)
            if error is not None:
                return error, columns
        return None

    def improvement(self) -> float | None:
        """Improvement of our pre-trained start over ours from scratch, on common splits, %."""
        both = [{run.split for run in self.runs if run.start == start} for start in ("pretrained", "scratch")]
        splits = sorted(both[0] & both[1])
        ours, scratch = (self.error(start, splits) for start in ("pretrained", "scratch"))
        return improvement(ours, scratch)

    def merged(self, newer: Outcome) -> Outcome:
        """Add the runs of a later call, which replace the same runs here, and all runs with another protocol."""
        if not newer.runs:
            return replace(self, problem=newer.problem)
        older = self.runs if self.departures == newer.departures else ()
        runs = {run.which: run for run in (*older, *newer.runs)}
        return replace(newer, runs=tuple(runs[which] for which in sorted(runs)))


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """The outcomes of all requested tasks.

    Attributes:
        model: name or folder of the model; "" if nothing was run.
        outcomes: task → outcome.
        environment: versions and hardware.
    """

    model: str = ""
    outcomes: Mapping[str, Outcome] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write `benchmark.json`.

        Raises:
            EutecticError: it cannot be written.
        """
        values = {
            "format": FORMAT,
            "model": self.model,
            "tasks": {name: asdict(outcome) for name, outcome in self.outcomes.items()},
            "environment": dict(self.environment),
        }
        write_atomically(folder / FILE, json.dumps(null_for_unknown(values), indent=1, ensure_ascii=False) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Benchmark:
        """Read `benchmark.json`.

        Raises:
            EutecticError: the file is missing or invalid.
        """
        path = Path(folder) / FILE
        expected, fix = f"{FILE} of `eutectic benchmark`", "give its --out folder, or run the tasks again"
        values = read_json(path, expected=expected, fix=fix)
        try:
            if values["format"] != FORMAT:
                raise ValueError(f"format {values['format']!r}")
            outcomes = {
                TASKS[name].name: Outcome(
                    task=name,
                    runs=tuple(BenchmarkRun(**_with_nan(run)) for run in found["runs"]),
                    departures=tuple(found["departures"]),
                    problem=found["problem"],
                )
                for name, found in values["tasks"].items()
            }
            return cls(model=str(values["model"]), outcomes=outcomes, environment=dict(values["environment"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise EutecticError(str(path), f"{type(error).__name__}: {error}", expected, fix) from error


def _with_nan(run: Mapping[str, Any]) -> dict[str, Any]:
    return {**run, "error": float("nan") if run["error"] is None else float(run["error"])}


def improvement(new: float | None, old: float | None) -> float | None:
    """1 − new/old in percent; None if one is missing."""
    return None if new is None or not old else 100 * (1 - new / old)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _by_family(values: Mapping[str, float | None]) -> dict[str, Any]:
    """Mean over all tasks with a value, their number, and means by family."""
    members = {family: [v for name, v in values.items() if TASKS[name].family == family] for family in FAMILIES}
    return {
        "mean": _mean(values.values()),
        "tasks": sum(value is not None for value in values.values()),
        "by_family": {family: _mean(some) for family, some in members.items()},
    }


def published_summary() -> dict[str, Any]:
    """Summary of the published columns, by the rules above."""

    def gain(new: str, old: str) -> dict[str, Any]:
        return _by_family(
            {name: improvement(getattr(t.published, new), getattr(t.published, old)) for name, t in TASKS.items()}
        )

    return {
        "jmp_l_over_scratch_l": gain("jmp_l", "scratch_l"),
        "jmp_s_over_scratch_s": gain("jmp_s", "scratch_s"),
        "jmp_l_over_jmp_s": gain("jmp_l", "jmp_s"),
        "scratch_l_over_scratch_s": gain("scratch_l", "scratch_s"),
        "jmp_l_best": {
            "count": sum(_as_good(t.judged.jmp_l, t.judged.best_before) for t in TASKS.values()),
            "count_fold_0": sum(_as_good(t.published.jmp_l, t.published.best_before) for t in TASKS.values()),
            "of": len(TASKS),
        },
    }


def _as_good(error: float, best: float | None) -> bool:
    """Whether an error is at least as good: a tie counts, and so does a task without a predecessor (paper's rule)."""
    return best is None or error <= best


def our_summary(ours: Benchmark, smaller: Benchmark | None = None) -> dict[str, Any]:
    """Summary of our runs, by the same rules.

    Args:
        ours: our results.
        smaller: results of a smaller model, for the gain of the larger one.

    Returns:
        `over_scratch`, `over_smaller`: mean and means by family, %; `best_before`, `best_known`, `jmp_l`: number of
        tasks on which we are at least as good, among those run with the full protocol that have such an error (for
        `best_before`, also those without a predecessor).
    """
    full = [outcome for outcome in ours.outcomes.values() if not outcome.departures and outcome.judged() is not None]
    counts: dict[str, dict[str, int]] = {}
    for key in ("best_before", "best_known", "jmp_l"):
        pairs = [pair for outcome in full if (pair := _against(outcome, key)) is not None]
        if key != "best_before":
            pairs = [(error, best) for error, best in pairs if best is not None]
        counts[key] = {"count": sum(_as_good(error, best) for error, best in pairs), "of": len(pairs)}
    gains: dict[str, float | None] = {}
    for name, outcome in ours.outcomes.items():
        other = None if smaller is None else smaller.outcomes.get(name)
        gains[name] = None if other is None else improvement(outcome.error("pretrained"), other.error("pretrained"))
    return {
        "model": ours.model,
        "over_scratch": _by_family({name: outcome.improvement() for name, outcome in ours.outcomes.items()}),
        "over_smaller": None if smaller is None else {"model": smaller.model, **_by_family(gains)},
        **counts,
    }


def _against(outcome: Outcome, key: str) -> tuple[float, float | None] | None:
    """Our error and the error to compare it with, on the same splits; None if we have none there."""
    task = TASKS[outcome.task]
    if key == "best_known" and task.five_folds is not None:
        # Known for one fold only.
        ours, best = outcome.error("pretrained", FOLDS[:1]), task.best_known
    else:
        pair = outcome.judged()
        if pair is None:
            return None
        ours, columns = pair
        best = task.best_known if key == "best_known" else getattr(columns, key)
    return None if ours is None else (ours, best)


def rows(ours: Benchmark, names: Sequence[str] = tuple(TASKS)) -> list[dict[str, Any]]:
    """Rows of the table: published columns of each task, and ours.

    Args:
        ours: our results; may be empty.
        names: tasks to show.

    Returns:
        `BenchmarkTask.to_dict`, and `ours` (mean over splits and seeds), `ours_spread`, `ours_fold_0`, `ours_scratch`,
        `improvement` (%), `runs`, `departures`, `problem`; missing values are None.
    """
    table = []
    for name in names:
        task, outcome = TASKS[name], ours.outcomes.get(name, Outcome(task=name))
        table.append(
            {
                **task.to_dict(),
                "jmp_l_over_scratch_l": improvement(task.published.jmp_l, task.published.scratch_l),
                "ours": outcome.error("pretrained"),
                "ours_spread": outcome.spread("pretrained"),
                "ours_fold_0": outcome.error("pretrained", FOLDS[:1]) if task.five_folds else None,
                "ours_scratch": outcome.error("scratch"),
                "improvement": outcome.improvement(),
                "runs": len(outcome.runs),
                "departures": list(outcome.departures),
                "problem": None if outcome.problem is None else dict(outcome.problem),
            }
        )
    return table


def table_as_json(
    ours: Benchmark, names: Sequence[str] = tuple(TASKS), smaller: Benchmark | None = None
) -> dict[str, Any]:
    """The complete table as plain JSON: `model`, `tasks`, `published` and `ours` (the two summaries)."""
    return {
        "model": ours.model or None,
        "tasks": null_for_unknown(rows(ours, names)),
        "published": published_summary(),
        "ours": null_for_unknown(our_summary(ours, smaller)) if ours.outcomes else None,
    }
