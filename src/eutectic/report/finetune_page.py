"""The page of one fine-tuning run: test error beside its baseline, learning curve, predictions, settings."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from eutectic.atoms import PROPERTIES, Structure
from eutectic.report import figures
from eutectic.report.formatting import count, rate, short, significant, words
from eutectic.report.page import write_page

Number = float | int | None


def write_finetune_page(
    path: Path,
    result: Mapping[str, Any],
    *,
    settings: Mapping[str, Any] | None = None,
    environment: Mapping[str, Any] | None = None,
    examples: Sequence[Structure] = (),
    journal: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write the page.

    Args:
        path: the HTML file to write, atomically.
        result: from `FinetuneResult.to_dict`; missing values, None and NaN are left out or shown as a dash.
        settings: the resolved settings of the run.
        environment: versions and hardware.
        examples: a few structures of the data set to draw.
        journal: the run's journal, for the training loss.

    Raises:
        EutecticError: the file cannot be written.
    """
    outcomes = list(_outcomes(result))
    dataset = str(result.get("dataset") or "the data set")
    start = _start(result, settings or {})
    losses = [{**e, "loss_by_property": _of_task(e.get("loss_by_property"), result.get("name"))} for e in journal]
    write_page(
        path,
        "finetune.html.j2",
        title=f"Fine-tuning: {result.get('name') or dataset}",
        lead=f"{', '.join(words(o.name) for o in outcomes).capitalize()} of {dataset}, trained from {start}.",
        outcomes=outcomes,
        best_step=result.get("best_step"),
        rungs=list(_rungs(result)),
        companions=list(_companions(result)),
        rung_units=list((result.get("units") or {}).items()),
        facts=[(term, text) for term, text in _facts(result, start) if text],
        seconds=result.get("wall_seconds"),
        steps=result.get("total_steps"),
        plots=[
            (o, _curve(o, result) if o.curve else None, _parity(o, result) if o.truth else None)
            for o in outcomes
            if o.curve or o.truth
        ],
        journal=losses,
        by_property=sorted({p for e in losses for p in e["loss_by_property"]}),
        settings=settings or {},
        environment=environment or {},
        examples=examples,
    )


@dataclass(frozen=True)
class Outcome:
    """One property of a run.

    Attributes:
        name, unit: name and unit of the property.
        part: "test", or "validation" if there are no test structures.
        metric: name of the error metric.
        error, baseline: errors of the model and of the baseline on that part.
        curve: (step, validation error).
        validation_baseline: baseline for the learning curve; the test baseline if there is no other.
        truth, prediction: a selection of test values; empty for classes.
    """

    name: str
    unit: str
    part: str
    metric: str
    error: Number
    baseline: Number
    curve: list[tuple[float, float]]
    validation_baseline: Number
    truth: Sequence[Number]
    prediction: Sequence[Number]

    @property
    def gain(self) -> float | None:
        """Baseline / error; None if either is unknown or zero."""
        known = self.error and self.baseline and math.isfinite(self.error) and math.isfinite(self.baseline)
        return float(self.baseline / self.error) if known and self.error and self.baseline else None


def _outcomes(result: Mapping[str, Any]) -> Iterator[Outcome]:
    """Outcomes of all properties, the primary one first."""
    primary = result.get("property")
    curves = result.get("curves") or {primary: result.get("errors") or []}
    tested = result.get("test_errors") or {primary: result.get("test_error")}
    test_baselines = result.get("test_baselines") or {primary: result.get("baseline_error")}
    validation_baselines = result.get("validation_baselines") or {}
    parity = result.get("parity") or {primary: [result.get("truth") or [], result.get("prediction") or []]}
    units = {primary: result.get("unit") or "", **(result.get("units") or {})}
    steps = result.get("steps") or []
    for name in dict.fromkeys([primary, *tested, *curves]):
        if name is None:
            continue
        known = PROPERTIES.get(name)
        classes = known is not None and known.categorical
        errors = (curves.get(name) or [])[: len(steps)]
        error, baseline, part = tested.get(name), test_baselines.get(name), "test"
        if error is None and not result.get("tested_on"):
            at_best = dict(zip(steps, errors, strict=False)).get(result.get("best_step"))
            error, baseline, part = at_best, validation_baselines.get(name), "validation"
        truth, prediction = parity.get(name) or ([], [])
        yield Outcome(
            name=name,
            unit=units.get(name) or "",
            part=part,
            metric="error rate" if classes else "mean absolute error",
            error=error,
            baseline=baseline,
            curve=figures.thinned([{"step": s} for s in steps[: len(errors)]], errors),
            validation_baseline=validation_baselines.get(name, test_baselines.get(name)),
            truth=() if classes else truth,
            prediction=() if classes else prediction,
        )


def _rungs(result: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The trainings that an effort has tried, as rows of a table."""
    for rung in result.get("rungs") or []:
        errors = rung.get("errors") or {}
        yield {
            **rung,
            "errors": [errors.get(name) for name in result.get("units") or {}],
            "outcome": ": ".join(word for word in (rung.get("outcome"), rung.get("why")) if word),
        }


def _companions(result: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Errors of the tasks learned at the same time, one row per property."""
    for task, values in (result.get("companions") or {}).items():
        for name, unit in (values.get("units") or {}).items():
            errors = {part: (values.get(part) or {}).get(name) for part in ("before", "after", "test", "baselines")}
            yield {"task": task, "what": values.get("what"), "property": words(name), "unit": unit, **errors}


def _start(result: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    if result.get("start") != "scratch":
        return f"the pre-trained model {result.get('model') or settings.get('start') or ''}".strip()
    architecture = result.get("model") or settings.get("architecture_from")
    return "scratch" + (f", with the architecture of {architecture}" if architecture else "")


def _facts(result: Mapping[str, Any], start: str) -> Iterator[tuple[str, str]]:
    structures = [
        f"{count(result[key])} {part}"
        for key, part in (("trained_on", "training"), ("validated_on", "validation"), ("tested_on", "test"))
        if result.get(key) is not None
    ]
    rates = [
        f"{words(key)} {rate(result[key])}" for key in ("learning_rate", "weight_decay") if result.get(key) is not None
    ]
    yield "Data set", str(result.get("dataset") or "")
    yield "Level of theory", str(result.get("level_of_theory") or "")
    yield "Structures", ", ".join(structures)
    yield "Start", start
    yield "Trained", str(result.get("trained") or "")
    yield "Optimiser", ", ".join(rates)
    if result.get("total_steps") is not None:
        size = f", batches of {count(result['batch_size'])} structures" if result.get("batch_size") else ""
        yield "Steps", count(result["total_steps"]) + size
    if result.get("length"):
        epochs = f"; {result['epochs']:g} epochs" if result.get("epochs") is not None else ""
        yield "Length", f"{result['length']}{epochs}"
    if result.get("best_step") is not None:
        several = len(result.get("curves") or {}) > 1
        lowest = "mean of validation error / baseline over properties" if several else "validation error"
        yield "Best step", f"{count(result['best_step'])} (lowest {lowest}; its weights are kept)"
    if result.get("still_falling") is not None:
        fell = f"fell by {max(0.0, result.get('fell') or 0.0):.1%} in the last fifth of the steps"
        yield "At the end", f"{'still falling' if result['still_falling'] else 'no longer falling'}: the score {fell}"
    if result.get("notes"):
        yield "Notes", "; ".join(result["notes"])
    if result.get("seed") is not None:
        yield "Random seed", str(result["seed"])


def _of_task(losses: Mapping[str, Any] | None, task: str | None) -> Mapping[str, Any]:
    """Property → loss, from property → loss or task → property → loss."""
    by_property = (losses or {}).get(task or "", losses)
    if not isinstance(by_property, Mapping):
        return {}
    return {k: v for k, v in by_property.items() if isinstance(v, (int, float))}


def _colour(result: Mapping[str, Any]) -> str:
    return figures.START_COLOURS["scratch" if result.get("start") == "scratch" else "pretrained"]


def _curve(outcome: Outcome, result: Mapping[str, Any]) -> Figure:
    unit = f" ({short(outcome.unit, 16)})" if outcome.unit else ""
    return figures.curves(
        {outcome.name: outcome.curve},
        f"validation error{unit}",
        colours={outcome.name: _colour(result)},
        title=words(outcome.name),
        size="medium",
        baseline=outcome.validation_baseline,
    )


def _parity(outcome: Outcome, result: Mapping[str, Any]) -> Figure:
    note = f"test error {significant(outcome.error)} {short(outcome.unit, 16)}"
    return parity_of(outcome.name, outcome.truth, outcome.prediction, outcome.unit, _colour(result), note)


def parity_of(
    name: str, truth: Sequence[Number], prediction: Sequence[Number], unit: str, colour: str, note: str
) -> Figure:
    """Predictions of a property against labels; relative to the median if all labels are close to it.

    Args:
        name: name of the property.
        truth, prediction: values.
        unit: unit of the values.
        colour: colour of the points.
        note: text in the figure.
    """
    known = PROPERTIES.get(name)
    symbol = (known.symbol if known else "") or words(name)
    finite = [value for value in truth if value is not None and math.isfinite(value)]
    middle = sorted(finite)[len(finite) // 2] if finite else 0.0
    if finite and abs(middle) > 30 * (max(finite) - min(finite)):
        # Total energies of one molecule: the differences would be invisible beside the common part.
        truth, prediction = ([None if v is None else v - middle for v in values] for values in (truth, prediction))
        symbol = f"{symbol} − median"
    return figures.parity(truth, prediction, symbol=symbol, unit=unit, title=words(name), colour=colour, note=note)
