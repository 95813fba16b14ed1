"""Results of a study: the data behind `results.json`, the report and the table on the terminal.

Everything is plain data that can be converted to JSON and back, and needs no torch. Errors are in the physical unit of
the task; a step is one optimiser step.
"""

from __future__ import annotations

import builtins
import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np

from eutectic.atoms import EutecticError
from eutectic.data.card import Card
from eutectic.data.examples import structure_from_dict, structure_to_dict, varied
from eutectic.data.store import Store
from eutectic.files import write_atomically

__all__ = [
    "Curve",
    "PretrainingSummary",
    "Run",
    "SetSummary",
    "Start",
    "StudyResults",
    "TaskComparison",
    "Trial",
    "structure_from_dict",
    "structure_to_dict",
    "summarise",
    "varied",
]

Start = Literal["pretrained", "scratch"]
STARTS: tuple[Start, Start] = ("scratch", "pretrained")
PARITY_POINTS = 500

HOW = (
    "scratch, pretrained: test error, mean over seeds (spread: standard deviation over seeds, ddof 1). "
    "improvement_percent: 100 (1 - pretrained / scratch). "
    "speedup: steps of the budget divided by the first step at which the seed-mean validation curve of the "
    "pre-trained start reaches the final value of the seed-mean validation curve of the start from scratch, "
    "linear between evaluations; where it never does, the first step at which the curve from scratch reaches "
    "the final value of the pre-trained one, divided by the steps of the budget (below 1: pre-training "
    "was slower). "
    "mean_improvement_percent: arithmetic mean over tasks. mean_speedup: geometric mean over tasks."
)


@dataclass(frozen=True)
class Curve:
    """Validation error along one training run.

    Attributes:
        steps: number of optimiser steps at each evaluation, ascending; 0 is before the first step.
        seconds: training time at each evaluation.
        errors: validation error, in the physical unit of the task.
    """

    steps: list[int]
    seconds: list[float]
    errors: list[float]

    def __post_init__(self) -> None:
        if not len(self.steps) == len(self.seconds) == len(self.errors) > 0:
            raise ValueError(
                f"a curve of {len(self.steps)} steps, {len(self.seconds)} times, {len(self.errors)} errors"
            )
        if any(b <= a for a, b in zip(self.steps, self.steps[1:], strict=False)):
            raise ValueError(f"the steps of a curve must ascend, got {self.steps}")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Curve:
        """The inverse of `dataclasses.asdict`, through JSON."""
        return cls(
            steps=[int(s) for s in values["steps"]],
            seconds=_floats(values["seconds"]),
            errors=_floats(values["errors"]),
        )


@dataclass(frozen=True)
class Run:
    """One fine-tuning run.

    Attributes:
        start: initial weights.
        seed: random seed; runs from two starts with the same seed are a pair.
        learning_rate: peak learning rate.
        weight_decay: of AdamW.
        curve: validation error during training.
        test_error: in the task's unit, of the weights chosen on validation data.
        truth, prediction: at most 500 test points, in the task's unit, for a parity plot.
        seconds: wall time.
        test_errors: property → test error, for every learned property.
        fold: fold on which it was tested, in a study with folds.
    """

    start: Start
    seed: int
    learning_rate: float
    weight_decay: float
    curve: Curve
    test_error: float
    truth: list[float]
    prediction: list[float]
    seconds: float
    test_errors: dict[str, float] = field(default_factory=dict)
    fold: int | None = None

    @property
    def pair(self) -> int | str:
        """Key that pairs two runs from different starts: the seed, or fold and seed."""
        return self.seed if self.fold is None else f"fold {self.fold}, seed {self.seed}"

    def __post_init__(self) -> None:
        if len(self.truth) != len(self.prediction):
            raise ValueError(f"{len(self.truth)} true values, {len(self.prediction)} predictions")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Run:
        """The inverse of `dataclasses.asdict`, through JSON."""
        return cls(
            start=values["start"],
            seed=int(values["seed"]),
            learning_rate=float(values["learning_rate"]),
            weight_decay=float(values["weight_decay"]),
            curve=Curve.from_dict(values["curve"]),
            test_error=_float(values["test_error"]),
            truth=_floats(values["truth"]),
            prediction=_floats(values["prediction"]),
            seconds=float(values["seconds"]),
            test_errors={name: _float(error) for name, error in values.get("test_errors", {}).items()},
            fold=None if values.get("fold") is None else int(values["fold"]),
        )


@dataclass(frozen=True)
class Trial:
    """A run of the sweep that chooses the learning rate and weight decay of a start on validation data.

    Attributes:
        start, learning_rate, weight_decay: of the run.
        validation_error: of the task's property, at the best step.
        score: at the best step, mean over all properties of error / baseline, by which the choice is made; None in
            results of earlier versions, which used `validation_error`.
        steps: of the run; None in results of earlier versions, where all trials were full-length runs.
    """

    start: Start
    learning_rate: float
    weight_decay: float
    validation_error: float
    score: float | None = None
    steps: int | None = None

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Trial:
        """The inverse of `dataclasses.asdict`, through JSON."""
        return cls(
            values["start"],
            float(values["learning_rate"]),
            float(values["weight_decay"]),
            _float(values["validation_error"]),
            None if values.get("score") is None else _float(values["score"]),
            None if values.get("steps") is None else int(values["steps"]),
        )


@dataclass(frozen=True, kw_only=True)
class TaskComparison:
    """One property of one data set, learned from scratch, from pre-trained weights, or both.

    Attributes:
        name: of the task.
        title: heading for reports.
        dataset, property, symbol, unit, level_of_theory: the predicted property and its labels.
        n_train, n_validation, n_test: numbers of structures.
        steps: length of every run.
        runs: all reported runs, in any order.
        trials: runs of the sweep, if any.
        metric: name of the error measure.
        examples: a few structures of the data, for pictures.
        units: property → unit of its errors, for every learned property.
    """

    name: str
    title: str
    dataset: str
    property: str
    symbol: str
    unit: str
    level_of_theory: str
    n_train: int
    n_validation: int
    n_test: int
    steps: int
    runs: list[Run]
    trials: list[Trial] = field(default_factory=list)
    metric: str = "mean absolute error"
    examples: list[dict[str, Any]] = field(default_factory=list)
    units: dict[str, str] = field(default_factory=dict)

    # `property` is a field here, and the decorator is `builtins.property`.

    def of(self, start: Start) -> list[Run]:
        """The runs from one start, by fold and seed."""
        return sorted((r for r in self.runs if r.start == start), key=lambda r: (r.fold or 0, r.seed))

    def starts(self) -> tuple[Start, ...]:
        """Starts that have runs, scratch first."""
        return tuple(s for s in STARTS if self.of(s))

    def seeds(self) -> list[int]:
        """Every seed used."""
        return sorted({r.seed for r in self.runs})

    def mean(self, start: Start) -> float | None:
        """Test error, mean over seeds."""
        errors = [r.test_error for r in self.of(start)]
        return float(np.mean(errors)) if errors else None

    def spread(self, start: Start) -> float | None:
        """Standard deviation of the test error over seeds (ddof 1); None with fewer than two."""
        return _spread([r.test_error for r in self.of(start)])

    def others(self) -> dict[str, tuple[float | None, float | None]]:
        """Each other learned property → mean test error from scratch and from pre-trained weights."""
        names = [name for name in self.units if name != self.property]
        return {name: (self._mean_of(name, "scratch"), self._mean_of(name, "pretrained")) for name in names}

    def _mean_of(self, name: str, start: Start) -> float | None:
        errors = [r.test_errors[name] for r in self.of(start) if name in r.test_errors]
        return float(np.mean(errors)) if errors else None

    @builtins.property
    def scratch(self) -> float | None:
        """Test error from scratch, mean over seeds."""
        return self.mean("scratch")

    @builtins.property
    def pretrained(self) -> float | None:
        """Test error from pre-trained weights, mean over seeds."""
        return self.mean("pretrained")

    @builtins.property
    def improvement_percent(self) -> float | None:
        """100 (1 − pretrained / scratch), of the means over seeds; positive is better."""
        return _improvement(self.scratch, self.pretrained)

    def improvement_by_seed(self) -> dict[int | str, float]:
        """The same for each seed (and fold) of both starts; paired runs differ only in their initial weights."""
        scratch = {r.pair: r.test_error for r in self.of("scratch")}
        pairs = {r.pair: _improvement(scratch.get(r.pair), r.test_error) for r in self.of("pretrained")}
        return {seed: value for seed, value in pairs.items() if value is not None}

    @builtins.property
    def improvement_spread(self) -> float | None:
        """Standard deviation of the paired improvements over seeds (ddof 1), in percentage points."""
        return _spread(list(self.improvement_by_seed().values()))

    def mean_curve(self, start: Start) -> tuple[np.ndarray, np.ndarray]:
        """Steps and validation error, mean over seeds, at all steps within the range of every seed (interpolated)."""
        curves = [r.curve for r in self.of(start)]
        first, last = max(c.steps[0] for c in curves), min(c.steps[-1] for c in curves)
        grid = np.array(sorted({s for c in curves for s in c.steps if first <= s <= last}), dtype=float)
        return grid, np.mean([np.interp(grid, c.steps, c.errors) for c in curves], axis=0)

    def crossing(self) -> tuple[Start, float, float] | None:
        """Where the better start reaches the other's final validation error: (start, step, error).

        That is the first point at or below this error, with linear interpolation between evaluations. If a curve
        starts at or below it, the first evaluation after step 0 counts, since nothing was measured before.
        """
        if len(self.starts()) < 2:
            return None
        pairs: tuple[tuple[Start, Start], ...] = (("pretrained", "scratch"), ("scratch", "pretrained"))
        for start, other in pairs:
            target = float(self.mean_curve(other)[1][-1])
            step = _first_at_or_below(*self.mean_curve(start), target)
            if step is not None:
                return start, step, target
        return None

    @builtins.property
    def speedup(self) -> float | None:
        """Factor by which pre-training reduces the steps to the final validation error from scratch.

        The length `steps` divided by the first step at which the seed-mean validation curve of the pre-trained start
        reaches the final value of the seed-mean curve from scratch (see `crossing`). If it never does, the first step
        at which the curve from scratch reaches the final pre-trained value, divided by the length (at most 1). None
        without both starts, or if a curve ends in NaN.
        """
        crossing = self.crossing()
        if crossing is None:
            return None
        start, step, _ = crossing
        return self.steps / step if start == "pretrained" else step / self.steps

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON, including values derived from the runs."""
        return {
            "name": self.name,
            "title": self.title,
            "dataset": self.dataset,
            "property": self.property,
            "symbol": self.symbol,
            "unit": self.unit,
            "level_of_theory": self.level_of_theory,
            "metric": self.metric,
            "scratch": self.scratch,
            "scratch_spread": self.spread("scratch"),
            "pretrained": self.pretrained,
            "pretrained_spread": self.spread("pretrained"),
            "improvement_percent": self.improvement_percent,
            "improvement_spread_percent": self.improvement_spread,
            "improvement_percent_by_seed": {str(k): v for k, v in self.improvement_by_seed().items()},
            "speedup": self.speedup,
            "n_train": self.n_train,
            "n_validation": self.n_validation,
            "n_test": self.n_test,
            "steps": self.steps,
            "trials": [asdict(t) for t in self.trials],
            "runs": [asdict(r) for r in self.runs],
            "examples": self.examples,
            "units": self.units,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TaskComparison:
        """The inverse of `to_dict`; derived values are recomputed."""
        plain = {f.name: values[f.name] for f in fields(cls) if f.name in values}
        plain["runs"] = [Run.from_dict(r) for r in values["runs"]]
        plain["trials"] = [Trial.from_dict(t) for t in values.get("trials", [])]
        return cls(**plain)


@dataclass(frozen=True, kw_only=True)
class SetSummary:
    """Summary of a pre-training data set.

    Attributes:
        card: of the data set.
        n_structures, n_groups, n_atoms: sizes; a group is never split between training and testing.
        elements: atomic number → number of atoms in the data set.
        sizes: number of atoms → number of structures of that size.
        n_drawn: structures drawn from it during training, repeats counted.
        examples: up to six structures chosen for variety, in the format of `structure_to_dict`.
    """

    card: Card
    n_structures: int
    n_groups: int
    n_atoms: int
    elements: dict[int, int]
    sizes: dict[int, int]
    n_drawn: int
    examples: list[dict[str, Any]]

    @builtins.property
    def name(self) -> str:
        """Name of the data set on the command line."""
        return self.card.name

    def to_dict(self) -> dict[str, Any]:
        """Plain values; JSON turns the keys of `elements` and `sizes` into strings."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SetSummary:
        """The inverse of `to_dict`, through JSON."""
        return cls(
            **values
            | {
                "card": Card.from_dict(values["card"]),
                "elements": {int(z): int(n) for z, n in values["elements"].items()},
                "sizes": {int(s): int(n) for s, n in values["sizes"].items()},
            }
        )


def summarise(store: Store, n_drawn: int) -> SetSummary:
    """Summary of a store.

    Args:
        store: read once by column; a few hundred rows are read for the examples.
        n_drawn: structures drawn from it during training.
    """
    n_atoms = store.column("n_atoms")
    sizes, counts = np.unique(n_atoms, return_counts=True)
    return SetSummary(
        card=store.card,
        n_structures=len(store),
        n_groups=len(set(store.column("group").tolist())),
        n_atoms=int(n_atoms.sum()),
        elements=store.composition(),
        sizes={int(s): int(n) for s, n in zip(sizes, counts, strict=True)},
        n_drawn=int(n_drawn),
        examples=[structure_to_dict(store[i].structure) for i in varied(store)],
    )


@dataclass(frozen=True, kw_only=True)
class PretrainingSummary:
    """Summary of a pre-training.

    Attributes:
        sets: the data sets.
        journal: `{step, seconds, loss, learning_rate, loss_by_set: {set: loss}}` of the recorded steps.
        validation: `{step, seconds, by_set: {set: {energy_mae (meV/atom), forces_mae (meV/Å),
            energy_baseline, forces_baseline}}}`; the baselines are the errors of predicting the reference
            energy and zero force.
        drawn: set → structures drawn, repeats counted.
        seconds: wall time.
        n_parameters: of the full model.
        backbone: its name on the command line.
    """

    sets: list[SetSummary]
    journal: list[dict[str, Any]]
    validation: list[dict[str, Any]]
    drawn: dict[str, int]
    seconds: float
    n_parameters: int
    backbone: str

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> PretrainingSummary:
        """The inverse of `to_dict`, through JSON."""
        return cls(
            **values | {"sets": [SetSummary.from_dict(s) for s in values["sets"]], "seconds": float(values["seconds"])}
        )


@dataclass(frozen=True, kw_only=True, repr=False)
class StudyResults:
    """Results of a study: optionally a pre-training, and every task from its starts.

    Attributes:
        tasks: the comparisons.
        pretraining: of the pre-trained start; None if it is not part of the study.
        settings: the resolved settings of the run, plain JSON.
        times: stage → seconds.
        environment: versions and hardware, plain JSON.
    """

    tasks: list[TaskComparison]
    pretraining: PretrainingSummary | None
    settings: dict[str, Any]
    times: dict[str, Any]
    environment: dict[str, Any]

    @builtins.property
    def mean_improvement_percent(self) -> float | None:
        """Arithmetic mean of the tasks' improvements."""
        values = [t.improvement_percent for t in self.tasks]
        known = [v for v in values if v is not None]
        return float(np.mean(known)) if known else None

    @builtins.property
    def mean_improvement_spread(self) -> float | None:
        """Standard deviation over seeds (ddof 1) of the mean paired improvement, in percentage points."""
        by_task = [t.improvement_by_seed() for t in self.tasks if t.improvement_percent is not None]
        shared = set.intersection(*(set(b) for b in by_task)) if by_task else set()
        return _spread([float(np.mean([b[seed] for b in by_task])) for seed in sorted(shared, key=str)])

    @builtins.property
    def mean_speedup(self) -> float | None:
        """Geometric mean of the tasks' speed-ups: 2× and ½× average to 1×."""
        known = [s for s in (t.speedup for t in self.tasks) if s is not None]
        return float(np.exp(np.mean(np.log(known)))) if known else None

    def __repr__(self) -> str:
        lines = [f"StudyResults of {len(self.tasks)} task{'s' * (len(self.tasks) != 1)}, {len(self.seeds())} seeds"]
        for task in self.tasks:
            errors = ", ".join(f"{start} {task.mean(start):.4g} {task.unit}" for start in task.starts())
            lines.append(f"  {task.name}, {task.property.replace('_', ' ')}: test error {errors}")
        return "\n".join(lines)

    def seeds(self) -> list[int]:
        """Every seed used in fine-tuning."""
        return sorted({s for t in self.tasks for s in t.seeds()})

    def folds(self) -> list[int]:
        """All folds of the runs; empty without folds."""
        return sorted({r.fold for t in self.tasks for r in t.runs if r.fold is not None})

    @builtins.property
    def repeats(self) -> str:
        """What errors are averaged over: "3 seeds", "5 folds", "5 folds × 3 seeds"; empty for single runs."""
        counts = (("folds", len(self.folds())), ("seeds", len(self.seeds())))
        return " × ".join(f"{n} {noun}" for noun, n in counts if n > 1)

    @builtins.property
    def is_learning_curve(self) -> bool:
        """Whether the tasks are one task with several numbers of training structures."""
        distinct = {(t.dataset, t.property) for t in self.tasks}
        return len(distinct) == 1 < len({t.n_train for t in self.tasks})

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON, the contents of `results.json`."""
        return {
            "mean_improvement_percent": self.mean_improvement_percent,
            "mean_improvement_spread_percent": self.mean_improvement_spread,
            "mean_speedup": self.mean_speedup,
            "how": HOW,
            "seeds": self.seeds(),
            "times": self.times,
            "settings": self.settings,
            "environment": self.environment,
            "tasks": [t.to_dict() for t in self.tasks],
            "pretraining": None if self.pretraining is None else self.pretraining.to_dict(),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> StudyResults:
        """The inverse of `to_dict`; means are recomputed."""
        pretraining = values.get("pretraining")
        return cls(
            tasks=[TaskComparison.from_dict(t) for t in values["tasks"]],
            pretraining=None if pretraining is None else PretrainingSummary.from_dict(pretraining),
            settings=values["settings"],
            times=values["times"],
            environment=values["environment"],
        )

    def write(self, path: Path) -> None:
        """Write `results.json` atomically."""
        text = json.dumps(_plain(self.to_dict()), indent=1, ensure_ascii=False, allow_nan=False)
        # Lists of numbers on one line are easier to read, and smaller.
        text = re.sub(r"\[\n([^\[\]{}\"]*)\]", lambda m: "[" + " ".join(m[1].split()) + "]", text)
        write_atomically(path, text + "\n")

    @classmethod
    def read(cls, path: Path) -> StudyResults:
        """Read a file written by `write`.

        Raises:
            EutecticError: the file is missing or invalid.
        """
        try:
            return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise EutecticError(
                str(path),
                f"cannot be read ({type(error).__name__}: {error})",
                "a results.json written by `eutectic demo`",
                "check the path, or run the demonstration again",
            ) from error


def _first_at_or_below(steps: np.ndarray, errors: np.ndarray, target: float) -> float | None:
    reached = np.flatnonzero(errors <= target)
    if len(reached) == 0:
        return None
    i = int(reached[0])
    if i > 0 and not math.isfinite(errors[i - 1]):
        return float(steps[i])
    if i > 0:
        share = (errors[i - 1] - target) / (errors[i - 1] - errors[i])
        return float(steps[i - 1] + share * (steps[i] - steps[i - 1]))
    later = steps[steps > 0]
    return float(later[0]) if len(later) else None


def _improvement(scratch: float | None, pretrained: float | None) -> float | None:
    if scratch is None or pretrained is None or scratch <= 0:
        return None
    value = 100.0 * (1.0 - pretrained / scratch)
    return value if math.isfinite(value) else None


def _spread(values: Sequence[float]) -> float | None:
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def _float(value: float | None) -> float:
    """JSON has no NaN: the error of a diverged run is null."""
    return math.nan if value is None else float(value)


def _floats(values: Sequence[float | None]) -> list[float]:
    return [_float(v) for v in values]


def _plain(value: Any) -> Any:
    """Convert to plain Python values, with None for non-finite numbers."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(v) for v in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return value if value is None or isinstance(value, str) else str(value)
