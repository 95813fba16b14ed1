"""Length of a run, its learning rates, and the steps at which it is validated.

A run lasts a number of steps, a time, or until it has converged. Every process of a run has a schedule and passes it
the same values (the first process's clock, the validation score over all processes), so that all schedules agree.
"""

from __future__ import annotations

import math
from typing import Any

from eutectic.train.optimisation import learning_rate, warm_up
from eutectic.train.settings import KEPT_HEAD_FIRST_RATE, FinetuneTrainSettings, OptimiserSettings


class Schedule:
    """Base class: unknown number of steps, and constant learning rate after the warm-up.

    Args:
        settings: peak learning rate, warm-up and decay.
        every: steps between validations.

    Attributes:
        steps: of the run; None if unknown.
        factor: multiplies all learning rates; lowered after a head has died.
        elapsed: seconds of the run so far, validations included.
        reason: why the run ended, as text, if that was not fixed beforehand.
        timed: whether `progress` is in seconds.
        last_stage: final fraction of the run with other loss weights.
    """

    timed = False
    last_stage = 0.0

    def __init__(self, settings: OptimiserSettings, every: int | None) -> None:
        self.settings, self.every = settings, every
        self.steps: int | None = None
        self.factor, self.elapsed, self.reason = 1.0, 0.0, ""

    def rate(self, step: int) -> float:
        """Learning rate of a step; the first step is 0."""
        return self.factor * self.settings.learning_rate * warm_up(self.settings, step)

    def finished(self, step: int) -> bool:
        """Whether the run ends after `step` steps."""
        return False

    def due(self, step: int) -> bool:
        """Whether to validate after `step` steps."""
        return self.every is not None and step % self.every == 0

    def passed(self, elapsed: float) -> None:
        """Called after a step; `elapsed`: time of the run so far, s."""
        self.elapsed = elapsed

    def validated(self, score: float | None) -> None:
        """Called after a validation; a lower score is better, None is unknown."""

    def progress(self, step: int) -> tuple[float, float] | None:
        """Progress and total, in steps or seconds; None if the total is unknown."""
        return None

    def in_last_stage(self, step: int) -> bool:
        """Whether a step is in the last stage."""
        progress = self.progress(step) if self.last_stage else None
        return progress is not None and progress[0] >= (1 - self.last_stage) * progress[1]

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"factor": self.factor, "elapsed": self.elapsed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a `state_dict`, possibly of another kind of schedule, since a lengthened run may have another one."""
        self.factor = float(state.get("factor", 1.0))
        self.elapsed = float(state.get("elapsed", 0.0))


class StepSchedule(Schedule):
    """Fixed number of steps: linear warm-up, then cosine decay."""

    def __init__(self, settings: OptimiserSettings, steps: int, every: int) -> None:
        super().__init__(settings, every)
        self.steps = steps

    def rate(self, step: int) -> float:
        assert self.steps is not None
        return self.factor * learning_rate(self.settings, step, self.steps)

    def finished(self, step: int) -> bool:
        assert self.steps is not None
        return step >= self.steps

    def progress(self, step: int) -> tuple[float, float] | None:
        assert self.steps is not None
        return float(step), float(self.steps)


class ClockSchedule(Schedule):
    """Fixed time: warm-up, then cosine decay by the clock. The last step begins before the end of the time.

    Args:
        settings: see `Schedule`.
        seconds: training time, validations included.
        every: steps between validations; None validates about ten times.

    Attributes:
        gentle: fraction of the time over which learning rates rise from a hundredth, for kept heads.
    """

    VALIDATIONS = 10
    timed = True
    gentle = 0.0

    def __init__(self, settings: OptimiserSettings, seconds: float, every: int | None = None) -> None:
        super().__init__(settings, every)
        self.seconds = seconds
        self._next: float | None = seconds / self.VALIDATIONS

    def rate(self, step: int) -> float:
        cosine = 0.5 * (1 + math.cos(math.pi * min(self.elapsed / self.seconds, 1.0)))
        final = self.settings.final_lr_ratio
        rate = super().rate(step) * (final + (1 - final) * cosine)
        return (
            rate * min(1.0, max(KEPT_HEAD_FIRST_RATE, self.elapsed / (self.gentle * self.seconds)))
            if self.gentle
            else rate
        )

    def finished(self, step: int) -> bool:
        return step > 0 and self.elapsed >= self.seconds

    def due(self, step: int) -> bool:
        return super().due(step) if self.every is not None else self._next is not None and self.elapsed >= self._next

    def passed(self, elapsed: float) -> None:
        super().passed(elapsed)
        if self._next is None:
            # Counted from the end of the last validation, so that slow validations do not take all the time.
            self._next = elapsed + self.seconds / self.VALIDATIONS

    def validated(self, score: float | None) -> None:
        self._next = None

    def progress(self, step: int) -> tuple[float, float] | None:
        return min(self.elapsed, self.seconds), self.seconds


class PlateauSchedule(Schedule):
    """Until converged: warm-up, then a constant learning rate that is lowered when the validation score stops falling.

    The rate is multiplied by `FALL` when `patience` validations in a row have not lowered the best score by `LEAST`;
    after `FALLS` times, the run ends instead.

    Args:
        settings: see `Schedule`.
        every: steps between validations.
        patience: number of validations.
        steps, seconds: maximum length of the run.
    """

    FALL, FALLS, LEAST = 0.3, 3, 0.01

    def __init__(
        self,
        settings: OptimiserSettings,
        every: int,
        patience: int,
        *,
        steps: int | None = None,
        seconds: float | None = None,
    ) -> None:
        super().__init__(settings, every)
        self.patience, self.most, self.seconds = patience, steps, seconds
        self.best, self.waited, self.falls = math.inf, 0, 0
        self.converged = False
        self.timed = steps is None and seconds is not None

    def rate(self, step: int) -> float:
        return super().rate(step) * self.FALL**self.falls

    def finished(self, step: int) -> bool:
        ended = (self.most is not None and step >= self.most) or (
            self.seconds is not None and step > 0 and self.elapsed >= self.seconds
        )
        return ended or self.converged

    def validated(self, score: float | None) -> None:
        if score is not None and score < self.best * (1 - self.LEAST):
            self.best, self.waited = score, 0
            return
        self.waited += 1
        if self.waited >= self.patience:
            self.waited, self.falls = 0, self.falls + 1
            self.converged = self.falls > self.FALLS
            if self.converged:
                self.reason = (
                    f"converged: validation error not lowered by {self.LEAST:.0%} in {self.patience} validations, at "
                    f"learning rates down to {self.FALL**self.FALLS:.1%} of the first"
                )

    def progress(self, step: int) -> tuple[float, float] | None:
        if self.most is not None:
            return float(step), float(self.most)
        return None if self.seconds is None else (min(self.elapsed, self.seconds), self.seconds)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "best": self.best, "waited": self.waited} | {
            "falls": self.falls,
            "patience": self.patience,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.best, self.waited = float(state.get("best", math.inf)), int(state.get("waited", 0))
        self.falls = int(state.get("falls", 0))
        # A converged run that is given more patience continues at the lowest rate.
        if self.falls > self.FALLS and self.patience > int(state.get("patience", self.patience)):
            self.falls = self.FALLS
        self.converged = self.falls > self.FALLS


def steps_of_epochs(epochs: float, structures: int, settings: FinetuneTrainSettings) -> int:
    """Number of steps in `epochs` epochs of a training split with `structures` structures."""
    return max(1, math.ceil(epochs * structures / (min(settings.batch_size, structures) * settings.accumulate)))


def finetune_schedule(train: FinetuneTrainSettings, optimiser: OptimiserSettings, structures: int) -> Schedule:
    """The schedule of a fine-tuning.

    Args:
        train: length and intervals.
        optimiser: learning rates.
        structures: number of training structures.
    """
    steps = train.steps if train.epochs is None else steps_of_epochs(train.epochs, structures, train)
    if train.until_converged:
        # About once per epoch; with few structures, the score is too noisy to validate every few steps.
        every = min(max(steps_of_epochs(1.0, structures, train), 25), 500)
        return PlateauSchedule(
            optimiser, train.evaluate_every or every, train.patience, steps=steps, seconds=train.time
        )
    if train.time is not None:
        return ClockSchedule(optimiser, train.time, train.evaluate_every)
    assert steps is not None, "steps, epochs or time is given"
    return StepSchedule(optimiser, steps, train.evaluate_every or max(1, steps // 10))
