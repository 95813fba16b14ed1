"""How long a run lasts, and its learning rates."""

from __future__ import annotations

import math

import pytest
from pydantic import ValidationError

from eutectic.train.optimisation import learning_rate
from eutectic.train.schedule import ClockSchedule, PlateauSchedule, Schedule, StepSchedule, finetune_schedule
from eutectic.train.settings import (
    FinetuneOptimiserSettings,
    FinetuneTrainSettings,
    OptimiserSettings,
    duration,
    parse_duration,
)

RATES = OptimiserSettings(learning_rate=1.0, warmup_steps=3, warmup_lr_ratio=0.2, final_lr_ratio=0.1)


def test_a_number_of_steps_has_the_rates_it_always_had() -> None:
    schedule = StepSchedule(RATES, 16, 5)
    assert [schedule.rate(s) for s in range(16)] == [learning_rate(RATES, s, 16) for s in range(16)]
    assert [s for s in range(20) if schedule.finished(s)] == [16, 17, 18, 19]
    assert [s for s in range(1, 16) if schedule.due(s)] == [5, 10, 15]
    schedule.factor = 0.5
    assert schedule.rate(2) == 0.5


def test_a_time_decays_by_the_clock_and_validates_ten_times() -> None:
    schedule, rates, validated, step = ClockSchedule(RATES, 100.0), [], 0, 0
    while not schedule.finished(step):
        rates.append(schedule.rate(step))
        step += 1
        schedule.passed(step * 0.5)
        if schedule.due(step):
            validated += 1
            schedule.validated(1.0)
    assert step == 200
    assert validated in (9, 10)
    assert rates[0] == pytest.approx(0.2)
    assert rates[101] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 0.505)))
    assert rates[-1] == pytest.approx(0.1, abs=1e-3)


def test_slow_validations_do_not_take_all_the_time() -> None:
    schedule, validated, clock, step = ClockSchedule(RATES, 100.0), 0, 0.0, 0
    while not schedule.finished(step):
        step, clock = step + 1, clock + 1.0
        schedule.passed(clock)
        if schedule.due(step):
            validated, clock = validated + 1, clock + 40.0
            schedule.validated(1.0)
    assert validated == 2


def converged(schedule: PlateauSchedule, scores: list[float]) -> list[float]:
    """The rate after each validation, until the run ends."""
    rates = []
    for number, score in enumerate(scores, 1):
        schedule.validated(score)
        rates.append(schedule.rate(100))
        if schedule.finished(number * 10):
            break
    return rates


def test_a_plateau_lowers_the_rate_three_times_and_then_ends_the_run() -> None:
    schedule = PlateauSchedule(RATES, 10, patience=2)
    rates = converged(schedule, [1.0, 0.9, *[0.895] * 50])
    assert rates == pytest.approx([1, 1, 1, 0.3, 0.3, 0.09, 0.09, 0.027, 0.027, 0.3**4])
    assert "converged" in schedule.reason
    assert schedule.finished(5)


def test_a_falling_score_goes_on_for_ever_or_to_its_limit() -> None:
    falling = [0.95**n for n in range(200)]
    assert len(converged(PlateauSchedule(RATES, 10, patience=2), falling)) == 200
    assert len(converged(PlateauSchedule(RATES, 10, patience=2, steps=50), falling)) == 5
    late = PlateauSchedule(RATES, 10, patience=2, seconds=7.0)
    late.passed(7.5)
    assert late.finished(3)


def test_state_is_restored_and_more_patience_goes_on() -> None:
    schedule = PlateauSchedule(RATES, 10, patience=2)
    converged(schedule, [1.0] * 20)
    same, more = PlateauSchedule(RATES, 10, patience=2), PlateauSchedule(RATES, 10, patience=4)
    for other in (same, more):
        other.load_state_dict(schedule.state_dict())
    assert same.finished(1)
    assert not more.finished(1)
    assert more.rate(100) == pytest.approx(0.027)
    other_kind: Schedule = StepSchedule(RATES, 500, 5)
    other_kind.load_state_dict(schedule.state_dict())
    assert not other_kind.finished(499)


@pytest.mark.parametrize(
    ("given", "kind", "steps"),
    [
        ({}, StepSchedule, 500),
        ({"steps": 7}, StepSchedule, 7),
        ({"epochs": 3, "batch_size": 8}, StepSchedule, 38),  # 3 · 100 / 8, rounded up
        ({"epochs": 0.01}, StepSchedule, 1),
        ({"time": "30m"}, ClockSchedule, None),
        ({"until_converged": True}, PlateauSchedule, None),
    ],
)
def test_the_length_asked_for(given: dict[str, object], kind: type[Schedule], steps: int | None) -> None:
    settings = FinetuneTrainSettings.model_validate(given)
    schedule = finetune_schedule(settings, FinetuneOptimiserSettings(), 100)
    assert type(schedule) is kind
    assert schedule.steps == steps
    # Written and read again, it is the same.
    assert FinetuneTrainSettings.model_validate(settings.model_dump(mode="json")) == settings


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"steps": 5, "epochs": 2}, "steps and epochs are both lengths"),
        ({"epochs": 2, "time": "5m"}, "epochs and time are both lengths"),
        ({"steps": 5, "until_converged": True}, "limit until_converged by epochs or time"),
        ({"time": "soon"}, "a time such as 90s, 30m"),
        ({"time": 0}, "greater than 0"),
        ({"time": "1.2.3h"}, "a time such as"),
        ({"epochs": -1}, "greater than 0"),
        ({"epochs": float("nan")}, "finite|greater"),
    ],
)
def test_lengths_that_contradict_or_are_none(given: dict[str, object], match: str) -> None:
    with pytest.raises(ValidationError, match=match):
        FinetuneTrainSettings.model_validate(given)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90.0), ("30m", 1800.0), ("1h30m", 5400.0), ("1.5h", 5400.0), ("2d", 172_800.0), ("45", 45.0)],
)
def test_times(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds
    assert parse_duration(duration(seconds)) == seconds
