"""Progress display: live in a terminal, otherwise one line per validation."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console

from eutectic.atoms import PROPERTIES
from eutectic.console import ProgressBar
from eutectic.tasks import Task
from eutectic.tasks.metrics import shown
from eutectic.train.judging import Judgement
from eutectic.train.schedule import Schedule
from eutectic.train.settings import duration

LOG = "log.txt"
"""File in a run's folder with its progress lines."""


class Display:
    """Progress display of one run.

    Args:
        title: kind of run.
        steps: total number of steps.
        per_atom: whether validation errors of extensive properties are per atom.
        hidden: show nothing (other processes, quiet runs).
        console: default: the terminal.
    """

    def __init__(
        self,
        title: str,
        steps: int,
        *,
        per_atom: bool = False,
        hidden: bool = False,
        console: Console | None = None,
    ) -> None:
        self.console = Console(quiet=True) if hidden else console or Console()
        self.bar = ProgressBar(title, steps, unit="steps", enabled=not hidden, delay=0, keep=True, console=self.console)
        self.per_atom = per_atom
        self.title, self.steps = title, steps
        self._explained = False
        self._rate = 0.0
        self._losses: dict[str, float] = {}
        self._since_validation: dict[tuple[str, str], list[float]] = {}

    def __enter__(self) -> Display:
        self.bar.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.__exit__(kind, error, trace)

    def stepped(self, entry: Mapping[str, Any]) -> None:
        """Show one step, an entry of the journal."""
        rate = entry["structures"] / max(entry["step_seconds"], 1e-9)
        # Moving average over about twenty steps.
        self._rate = rate if not self._rate else 0.95 * self._rate + 0.05 * rate
        # A step may have no structures of a rare set, whose last loss is then shown.
        self._losses.update(entry["loss_by_set"])
        for name, losses in entry["loss_by_property"].items():
            for prop, loss in losses.items():
                self._since_validation.setdefault((name, prop), []).append(loss)
        by_set = "  ".join(f"{name} {loss:.2f}" for name, loss in self._losses.items())
        self.bar.update(entry["step"], note=f"{self._rate:.0f} structures/s  loss {entry['loss']:.2f}: {by_set}")

    def validated(self, step: int, by_set: Mapping[str, Mapping[str, float]]) -> None:
        """Print the validation errors by set, and the training losses by property since the last validation."""
        judged = {name: "forces" if "forces_mae" in errors else _first(errors) for name, errors in by_set.items()}
        if not self._explained:
            units = ", ".join(f"{prop.replace('_', ' ')}{self._unit(prop)}" for prop in dict.fromkeys(judged.values()))
            self.console.print(
                f"{self.title}: validation error / baseline ({units}), then unweighted training losses by property "
                "since the last validation",
                highlight=False,
            )
            self._explained = True
        parts = []
        for name, errors in by_set.items():
            error, baseline = (errors[f"{judged[name]}_{which}"] for which in ("mae", "baseline"))
            parts.append(f"{name} {_short(error)}/{_short(baseline)}")
        head = f"step {step:>{len(str(self.steps))}}/{self.steps}  "
        self.console.print(head + "  ".join(parts), highlight=False)
        by_property: dict[str, list[str]] = {}
        for (name, prop), losses in self._since_validation.items():
            by_property.setdefault(name, []).append(f"{prop} {sum(losses) / len(losses):.3g}")
        if by_property:
            words = "  ".join(f"{name}: {', '.join(losses)}" for name, losses in by_property.items())
            self.console.print(" " * len(head) + words, style="dim", highlight=False)
        self._since_validation.clear()

    def _unit(self, prop: str) -> str:
        known = PROPERTIES[prop]
        unit = known.display_unit_per_atom if self.per_atom else known.display_unit
        return f", {unit}" if unit else ""


class FinetuneDisplay:
    """Progress of a fine-tuning: a bar in a terminal, and a line per validation.

    The lines are also written to `log.txt` in the run's folder, with at least one per minute.

    Args:
        task: the task that is learned.
        schedule: of the run.
        structures: number of training structures.
        validated_on: number of validation structures.
        log: the run's folder; None writes no file.
        hidden: show nothing.
        console: default: the terminal.
    """

    EVERY = 60.0
    """Seconds between lines in the log."""

    def __init__(
        self,
        task: Task,
        schedule: Schedule,
        structures: int,
        *,
        validated_on: int,
        log: Path | None = None,
        hidden: bool = False,
        console: Console | None = None,
    ) -> None:
        self.console = Console(quiet=True) if hidden else console or Console()
        self.task, self.schedule, self.structures, self.validated_on = task, schedule, structures, validated_on
        self._log = None if log is None else log / LOG
        progress = schedule.progress(0)
        self._bar = ProgressBar(
            "fine-tuning",
            None if progress is None else progress[1],
            unit="s" if schedule.timed else "steps",
            enabled=not hidden,
            delay=0,
            keep=True,
            console=self.console,
        )
        self._begun: tuple[float, float] | None = None
        self._rate = self._loss = 0.0
        self._step = self._drawn = 0
        self._logged = time.monotonic()
        self._losses: dict[str, list[float]] = {}
        self._explained = False

    def __enter__(self) -> FinetuneDisplay:
        self._bar.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.__exit__(kind, error, trace)

    def say(self, text: str, style: str | None = None) -> None:
        """Print a line, also to the log."""
        self.console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)
        self._write(text)

    def stepped(self, entry: Mapping[str, Any]) -> None:
        """Show one step, an entry of the journal."""
        rate = entry["structures"] / max(entry["step_seconds"], 1e-9)
        # Moving average over about twenty steps.
        self._rate = rate if not self._rate else 0.95 * self._rate + 0.05 * rate
        self._step, self._loss = entry["step"], entry["loss"]
        per_step = entry["structures"]
        self._drawn = self._drawn + per_step if self._drawn else self._step * per_step
        for name, loss in entry["loss_by_property"].get(self.task.name, {}).items():
            self._losses.setdefault(name, []).append(loss)
        progress = self.schedule.progress(self._step)
        done = self._step if progress is None else progress[0]
        if self._begun is None:
            self._begun = (time.monotonic(), done)
        note = f"epoch {self._epochs:.1f} · {self._rate:.0f} structures/s · loss {self._loss:.3g}"
        self._bar.update(done, note=note)
        if time.monotonic() - self._logged >= self.EVERY:
            self._write(f"{self._head()}  loss {self._loss:.4g}")

    def validated(self, step: int, found: Judgement, improved: bool) -> None:
        """Print errors by property, on validation structures and in training since the last validation."""
        self._step = step
        if not self._explained:
            self._explain(found)
        training = {name: self._training_error(name) for name in found.errors}
        parts = []
        for name, error in found.errors.items():
            mine = training[name]
            seen = "" if mine is None else f" (training {_short(mine)})"
            parts.append(f"{_words(name)} {_short(error)}{seen}" if self.validated_on else f"{_words(name)}{seen}")
        score = f"  score {found.score:.4f}{' *' if improved else ''}" if self.validated_on else ""
        self.say(f"{self._head()}  {', '.join(parts)}{score}")
        self._losses.clear()

    def _explain(self, found: Judgement) -> None:
        self._explained = True
        units = ", ".join(f"{_words(name)} in {PROPERTIES[name].display_unit or 'error rate'}" for name in found.errors)
        if not self.validated_on:
            self.say(f"training errors since the previous line; {units}")
            return
        baselines = ", ".join(f"{_words(name)} {_short(value)}" for name, value in found.baselines.items())
        self.say(
            f"validation error on {self.validated_on:,} structures (training error since the previous line); {units}; "
            f"mean predictor: {baselines}; score: mean of error / error of the mean predictor, * the best so far"
        )

    def _training_error(self, name: str) -> float | None:
        """Mean absolute error of the training batches since the last validation, in the display unit.

        Computed from the loss if that is the mean absolute error. For vectors, the loss is the norm of the difference,
        which is on average twice the mean absolute component for random directions.
        """
        target, losses = self.task.targets[name], [x for x in self._losses.get(name, []) if math.isfinite(x)]
        if target.settings.loss != "mae" or not losses or PROPERTIES[name].rank > 1:
            return None
        half = 0.5 if PROPERTIES[name].rank == 1 else 1.0
        return shown(name, half * target.normaliser.scale * sum(losses) / len(losses))[0]

    @property
    def _epochs(self) -> float:
        return self._drawn / max(self.structures, 1)

    def _head(self) -> str:
        """Step, epoch, speed and time left."""
        total = "" if self.schedule.steps is None else f"/{self.schedule.steps}"
        words = [f"step {self._step:>{len(total[1:]) or 5}}{total}", f"epoch {self._epochs:.1f}"]
        if self._rate:
            words.append(f"{self._rate:.0f} structures/s")
        progress = self.schedule.progress(self._step)
        if progress is not None and self._begun is not None and progress[0] > self._begun[1]:
            since, before = self._begun
            speed = (progress[0] - before) / max(time.monotonic() - since, 1e-9)
            words.append(f"{duration(max(0.0, (progress[1] - progress[0]) / speed))} left")
        return "  ".join(words)

    def _write(self, line: str) -> None:
        self._logged = time.monotonic()
        if self._log is not None:
            # A full disk must not stop a run because of its log.
            with suppress(OSError), self._log.open("a", encoding="utf-8") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {line}\n")


def _words(name: str) -> str:
    return name.replace("_", " ")


def _first(errors: Mapping[str, float]) -> str:
    return next(iter(errors)).removesuffix("_mae")


def _short(value: float) -> str:
    """Three digits, without an exponent for large errors."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
