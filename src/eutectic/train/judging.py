"""Validation of a fine-tuning: errors by property along the run, their combined score, and dead heads."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import lightning_fabric as lf
import numpy as np
import torch

from eutectic.tasks.metrics import ErrorSum, Spread, shown
from eutectic.train.loop import total

DEAD = 1e-5
"""A head is dead if the spread of its predictions is below this, relative to that of the labels: rounding gives about
1e-7, and an untrained head is far above."""

LEAST_VALUES = 3
"""Minimum number of values for a test for dead heads."""

LAST = 0.2
"""Final fraction of a run in which the validation error may still be falling."""

FELL = 0.02
"""Relative decrease of the best validation score in this fraction above which the error is still falling."""

RULE = f"the best validation score fell by more than {FELL:.0%} in the last {LAST:.0%} of the steps"


@dataclass(frozen=True)
class Judgement:
    """The errors of one validation.

    Attributes:
        errors, baselines: property → mean absolute error (or error rate) of the model and of the mean predictor, in
            display units; NaN without labels.
        dead: properties whose head gives the same output for all structures.
        score: weighted mean over properties of error / baseline; 1: mean predictor, NaN: unknown.
    """

    errors: dict[str, float]
    baselines: dict[str, float]
    dead: tuple[str, ...]
    score: float


def judge(fabric: lf.Fabric, found: Mapping[str, ErrorSum], weights: Mapping[str, float]) -> Judgement:
    """Sum errors over all processes.

    Args:
        fabric: launched.
        found: property → errors on this process's share of the structures.
        weights: property → weight in the score; default: 1.
    """
    rows = [
        [e.absolute, e.baseline, float(e.count), *asdict(e.learned).values(), *asdict(e.sought).values()]
        for e in found.values()
    ]
    sums = total(fabric, torch.tensor(rows, dtype=torch.float64).to(fabric.device)).cpu().tolist()
    errors, baselines, dead = {}, {}, []
    for name, (absolute, baseline, n, *spreads) in zip(found, sums, strict=True):
        errors[name] = shown(name, absolute / n if n else math.nan)[0]
        baselines[name] = shown(name, baseline / n if n else math.nan)[0]
        if _is_constant(Spread(*spreads[:3]), Spread(*spreads[3:])):
            dead.append(name)
    return Judgement(errors, baselines, tuple(dead), score(errors, baselines, weights))


def _is_constant(learned: Spread, sought: Spread) -> bool:
    rounding = 1e-12 * abs(sought.total / max(sought.count, 1))
    return sought.count >= LEAST_VALUES and sought.std > rounding and learned.std < DEAD * sought.std


def score(errors: Mapping[str, float], baselines: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """Σ w · error / baseline / Σ w over properties with a non-zero baseline; NaN if there are no errors."""
    relative = [
        (weights.get(name, 1.0), error / baselines[name])
        for name, error in errors.items()
        if weights.get(name, 1.0) > 0 and math.isfinite(baselines[name]) and baselines[name] > 0
    ]
    if relative:
        return sum(w * r for w, r in relative) / sum(w for w, _ in relative)
    # If all labels are equal, baselines are zero: use the mean error.
    known = [error for error in errors.values() if math.isfinite(error)]
    return sum(known) / len(known) if known else math.nan


@dataclass
class Curve:
    """Validation errors along a run, in display units.

    Attributes:
        steps, seconds: of each validation.
        errors: property → error at each validation.
        scores: at each validation.
        baselines: property → error of the mean predictor.
        notes: messages about the run.
        deaths: how often a head has died.
    """

    errors: dict[str, list[float]]
    steps: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    baselines: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    deaths: int = 0

    def improves(self, found: Judgement) -> bool:
        """Whether a score is the lowest so far; False for NaN and with dead heads, True for the first validation."""
        return not self.steps or (not found.dead and bool(found.score < np.nanmin([*self.scores, np.inf])))

    def add(self, step: int, elapsed: float, found: Judgement) -> None:
        self.steps.append(step)
        self.seconds.append(round(elapsed, 3))
        # NaN, so that a step with a dead head is never the best.
        self.scores.append(math.nan if found.dead else found.score)
        for name, error in found.errors.items():
            self.errors[name].append(error)
        self.baselines.update(found.baselines)

    @property
    def fell(self) -> float | None:
        """Relative decrease of the best score in the last part of the run (see `RULE`); None if unknown."""
        if len(self.steps) < 3:
            return None
        early = [s for step, s in zip(self.steps, self.scores, strict=True) if step <= (1 - LAST) * self.steps[-1]]
        best = [min((s for s in some if math.isfinite(s)), default=math.nan) for some in (early, self.scores)]
        return 1 - best[1] / best[0] if math.isfinite(best[0]) and best[0] > 0 else None

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    def restore(self, text: str) -> None:
        values = json.loads(text)
        if values.keys() != self.__dict__.keys():
            raise ValueError(f"a curve with {', '.join(values)}")
        self.__dict__.update(values)
