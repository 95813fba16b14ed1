"""Successive halving: learning rate and weight decay chosen with short runs; the better half continues in each round.

Jamieson and Talwalkar, Non-stochastic best arm identification and hyperparameter optimization (2016). Every round
costs the same: n runs of one length, then the better half of the settings with about twice the length, until one is
left. Each run is a complete short training with its own schedule, since the best learning rate depends on the decay.
Only scores on validation data are compared.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from eutectic.study.results import Start, Trial
from eutectic.study.runs import run_all
from eutectic.study.variants import SWEEP_SEED, Choice, variant
from eutectic.train.finetune_result import FinetuneResult
from eutectic.train.settings import FinetuneSettings, parse

SHARE = 0.5
"""Cost of the choice for each start, relative to one full run."""

LEAST = 20
"""Minimum number of steps to judge a learning rate."""

NOMINAL = 500
"""Assumed length of a run with `until_converged`, steps."""


@dataclass(frozen=True)
class Round:
    """Runs of one length.

    Attributes:
        candidates: number of runs per start.
        steps: of each run.
    """

    candidates: int
    steps: int


def rounds(candidates: int, steps: int) -> list[Round]:
    """The rounds for one start; a single round at full length if halving would not be cheaper.

    Args:
        candidates: number of settings to choose from, at least 2.
        steps: length of a full run.
    """
    counts = [candidates]
    while counts[-1] > 2:
        counts.append(math.ceil(counts[-1] / 2))
    found = [Round(n, min(steps, max(LEAST, math.floor(SHARE * steps / (len(counts) * n))))) for n in counts]
    return found if cost(found) < candidates * steps else [Round(candidates, steps)]


def cost(plan: Sequence[Round]) -> int:
    """Steps of all runs of one start."""
    return sum(r.candidates * r.steps for r in plan)


def shortened(settings: FinetuneSettings, steps: int) -> FinetuneSettings:
    """The same run with fewer steps: warm-up over at most a fifth of them, validations half-way and at the end."""
    values = settings.model_dump(mode="json")
    values["train"] |= {"epochs": None, "time": None, "until_converged": False, "steps": steps}
    values["train"]["evaluate_every"] = max(1, math.ceil(steps / 2))
    values["optimiser"]["warmup_steps"] = min(settings.optimiser.warmup_steps, steps // 5)
    return parse(FinetuneSettings, values, settings.name)


def halve(
    base: FinetuneSettings,
    model: Path | None,
    choices: Sequence[Choice],
    folder: Path,
    *,
    steps: int,
    starts: Sequence[Start],
    workers: int | None,
    console: Console,
) -> tuple[list[Trial], dict[Start, Choice]]:
    """Choose the settings of each start; an interrupted call is resumed.

    Args:
        base: settings of the full run.
        model: pre-trained model.
        choices: to choose from.
        folder: of the short runs.
        steps: length of the full run.
        starts: 'scratch', 'pretrained', or both.
        workers: number of processes; default: one per core.
        console: for messages and progress.

    Returns:
        All trials, and start → the chosen settings.
    """
    trials: list[Trial] = []
    left: dict[Start, list[Choice]] = {start: list(choices) for start in starts}
    plan = rounds(len(choices), steps)
    for number, this_round in enumerate(plan):
        # A round at full length uses the full run, with its own validations.
        length = this_round.steps
        short = base if length == steps and base.train.steps == steps else shortened(base, length)
        runs = [(start, choice) for start in starts for choice in left[start]]
        results = run_all(
            [
                (
                    variant(short, start, model, seed=SWEEP_SEED, choice=choice),
                    folder / base.name / f"{length}-steps" / named(start, choice),
                )
                for start, choice in runs
            ],
            title=f"choosing rates, {length} steps" if len(plan) > 1 else "choosing rates",
            workers=workers,
            console=console,
        )
        trials += [trial(start, result) for (start, _), result in zip(runs, results, strict=True)]
        keep = plan[number + 1].candidates if number + 1 < len(plan) else 1
        for start in starts:
            scored = [(best_score(r), c) for (s, c), r in zip(runs, results, strict=True) if s == start]
            # Sorting is stable: among equal scores, the first given setting continues.
            left[start] = [choice for _, choice in sorted(scored, key=lambda pair: pair[0])[:keep]]
    return trials, {start: left[start][0] for start in starts}


def named(start: str, choice: Choice) -> str:
    """Name of a run's folder."""
    return "-".join([start, *(f"{value:g}" for value in choice.values())])


def best_score(result: FinetuneResult) -> float:
    """Lowest validation score of a run, over all properties; infinite if there is none."""
    return float(np.nanmin([*result.scores, np.inf]))


def trial(start: Start, result: FinetuneResult) -> Trial:
    """A run of the sweep, for the results."""
    error = result.errors[result.steps.index(result.best_step)]
    given = (result.learning_rate, result.weight_decay, error, best_score(result), result.total_steps)
    return Trial(start, *given)


def in_words(plan: Sequence[Round], starts: int, candidates: int, steps: int) -> str:
    """Planned runs and their cost."""
    runs = ", then ".join(f"{starts * r.candidates} of {r.steps} steps" for r in plan)
    total, full = starts * cost(plan), starts * candidates * steps
    if total == full:
        return f"choosing among {candidates} settings: {runs}, {total:,} steps in total"
    return (
        f"choosing among {candidates} settings by successive halving: {runs}, {total:,} steps in total "
        f"(full-length runs: {full:,})"
    )


def spent(trials: Mapping[str, Sequence[Trial]]) -> int:
    """Number of steps that were done."""
    return sum(t.steps or 0 for some in trials.values() for t in some)
