"""Terminal output of the commands: facts and tables."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from eutectic.check import Report
    from eutectic.predict.evaluation import Evaluation
    from eutectic.predict.files import Summary
    from eutectic.train.finetune_result import FinetuneResult

console = Console()


def plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def show_facts(values: dict[str, Any]) -> None:
    table = Table(show_header=False, box=None)
    for key, value in values.items():
        text = ", ".join(f"{k} {entry(v)}" for k, v in value.items()) if isinstance(value, dict) else cell(value)
        table.add_row(f"[bold]{plain(key)}[/]", plain(text))
    console.print(table)


def entry(value: Any) -> str:
    return " ".join(str(v) for v in value.values()) if isinstance(value, dict) else str(value)


def cell(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else "–" if value is None else str(value)


def shared(values: Sequence[str], what: str) -> str:
    """One or two distinct values, or "… differs"; for several addresses, their common folder."""
    distinct = list(dict.fromkeys(values))
    folders = {value.rpartition("/")[0] for value in distinct}
    if len(distinct) > 1 and len(folders) == 1 and "/" in distinct[0]:
        return f"{folders.pop()}/…"
    return " or ".join(distinct) if len(distinct) <= 2 else f"{what} differs"


def show_rows(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table, or nothing if it has no rows."""
    if not rows:
        return
    table = Table(box=None, pad_edge=False)
    for heading in headings:
        table.add_column(heading)
    for row in rows:
        table.add_row(*map(plain, row))
    console.print()
    console.print(table)


def show_left_out(summary: Summary) -> None:
    """Print, on standard error, the structures that could not be read or predicted."""
    for line in summary.lines():
        Console(stderr=True).print(f"[yellow]{plain(line)}[/]", soft_wrap=True, highlight=False)


def exit_if_left_out(summary: Summary) -> None:
    """Print the structures that were left out, and exit with status 3 if there are any."""
    show_left_out(summary)
    if summary.failed:
        raise typer.Exit(3)


def show_report(report: Report) -> None:
    colours = {"error": "red", "warning": "yellow", "note": "blue"}
    console.print(f"[bold]{plain(report.verdict)}[/]", soft_wrap=True, highlight=False)
    for finding in report.findings:
        console.print(f"\n[{colours[finding.severity]}]{finding.severity}[/] [dim]{finding.code}[/]", highlight=False)
        for text in (finding.message, finding.why, f"→ {finding.fix}"):
            console.print(f"  {plain(text)}", highlight=False)
    console.print()
    units = report.units
    facts = {
        "structures": report.structures,
        "labels": ", ".join(
            f"{name} ({n})" + (f" from {', '.join(report.keys[name])}" if report.keys.get(name) else "")
            for name, n in report.labels.items()
        ),
        "elements": ", ".join(f"{symbol} {n['structures']}" for symbol, n in report.elements.items()),
        "energies": f"{units.energy or 'unit unknown'}, {units.regime} (confidence {units.confidence})"
        if units.energy_per_atom is not None
        else "none",
        "forces": report.force_test.verdict,
        "stresses": report.stress_test.verdict,
    }
    show_facts(facts)


def show_finetuning(result: FinetuneResult) -> None:
    """Print the test errors of a fine-tuning by property, with baselines (validation errors if there is no test)."""
    from eutectic.report.formatting import significant

    tested = bool(result.test_errors)
    if not tested and not result.validated_on:
        console.print("no test or validation structures, so no errors", highlight=False)
        return
    if result.rungs:
        _show_rungs(result)
    part = "test" if tested else "validation"
    best = result.steps.index(result.best_step)
    errors = result.test_errors if tested else {name: curve[best] for name, curve in result.curves.items()}
    baselines = result.test_baselines if tested else result.validation_baselines
    table = Table(box=None, pad_edge=False)
    for heading in ("property", f"{part} error", "baseline", "unit", "metric"):
        table.add_column(heading, justify="right" if heading in (f"{part} error", "baseline") else "left")
    for name, error in errors.items():
        metric = result.metrics[name]
        if name in result.roc_auc:
            metric += f"; ROC-AUC {result.roc_auc[name]:.3f}"
        shown = (significant(error), significant(baselines.get(name)), result.units[name], metric)
        table.add_row(name.replace("_", " "), *shown)
    console.print(table)
    chosen = "the last" if not result.validated_on else f"the best on {result.validated_on:,} validation structures"
    several = " by the mean of error / baseline over properties" if len(result.curves) > 1 else ""
    console.print(
        f"[dim]weights of step {result.best_step} of {result.total_steps}, {chosen}{several}; baseline: mean predictor"
        f"[/]",
        highlight=False,
    )
    if result.companions:
        _show_companions(result)


def _show_companions(result: FinetuneResult) -> None:
    """Print the errors of the companion tasks before and after training."""
    from eutectic.report.formatting import significant

    table = Table(box=None, pad_edge=False)
    for heading in ("companion", "property", "before", "after", "test", "mean predictor", "unit"):
        table.add_column(heading, justify="left" if heading in ("companion", "property", "unit") else "right")
    for task, companion in result.companions.items():
        for name, unit in companion["units"].items():
            errors = [significant(companion[part].get(name)) for part in ("before", "after", "test", "baselines")]
            table.add_row(task, name.replace("_", " "), *errors, unit)
    console.print(table)


def _show_rungs(result: FinetuneResult) -> None:
    """Print the rungs of an effort ladder."""
    from eutectic.report.formatting import significant
    from eutectic.train.settings import duration

    table = Table(box=None, pad_edge=False)
    units = [f"{name.replace('_', ' ')}, {unit}" for name, unit in result.units.items()]
    for heading in ("rung", *units, "score", "time", "trained", ""):
        table.add_column(heading, justify="left" if heading in ("rung", "trained", "") else "right")
    for rung in result.rungs:
        errors = [significant((rung["errors"] or {}).get(name)) for name in result.units]
        seconds = "–" if rung["seconds"] is None else duration(rung["seconds"])
        why = f"{rung['outcome']}: {rung['why']}" if rung["why"] else rung["outcome"]
        table.add_row(rung["name"], *errors, significant(rung["score"]), seconds, plain(rung["trained"]), plain(why))
    console.print(table)
    console.print("[dim]validation errors; score: mean of error / baseline over properties[/]\n", highlight=False)


def show_end(result: FinetuneResult, folder: Path, longer: str) -> None:
    """Print where the model and report are, whether the error was still falling, and how to predict and continue.

    Args:
        result: of the run.
        folder: of the run.
        longer: the command that continues training.
    """
    from eutectic.train.judging import RULE

    for note in result.notes:
        console.print(f"[yellow]{plain(note)}[/]", highlight=False)
    if result.still_falling is not None and not result.converged:
        state = "[yellow]still[/]" if result.still_falling else "no longer"
        console.print(
            f"error {state} falling when the run ended: {max(0.0, result.fell or 0.0):.1%} (still: {RULE})",
            highlight=False,
        )
    for what, where in (
        ("model", f"{folder / 'model'}"),
        ("report", f"{folder / 'report.html'}"),
        ("predict", f"{shlex.join(['eutectic', 'predict', str(folder / 'model')])} FILE -o predicted.xyz"),
        ("continue", longer),
    ):
        console.print(f"{what + ':':<10}{plain(where)}", highlight=False, soft_wrap=True)


def show_evaluation(result: Evaluation) -> None:
    """Print the errors of a model by data set and property, then by size and element, and its uncertainties."""
    from eutectic.report.formatting import significant

    console.print(f"{result.model}, task {result.task} ({result.level_of_theory})", highlight=False, markup=False)
    table = Table(box=None, pad_edge=False)
    several = len(result.sets) > 1
    headings = ("set",) * several + ("property", "MAE", "RMSE", "mean error", "baseline", "unit", "structures")
    for heading in headings:
        table.add_column(heading, justify="left" if heading in ("set", "property", "unit") else "right")
    for where, errors in result.sets.items():
        for name, found in errors.items():
            numbers = [significant(x) for x in (found.mae, found.rmse, found.bias, found.baseline)]
            unit = found.unit or found.metric
            label = name.replace("_", " ")
            table.add_row(*[plain(where)] * several, label, *numbers, unit, f"{found.structures:,}")
    console.print(table)
    for where, errors in result.sets.items():
        for name, found in errors.items():
            for kind, parts in (("atoms", found.by_size), ("element", found.by_element)):
                if len(parts) > 1:
                    words = "  ".join(f"{part} {significant(value)}" for part, value in parts.items())
                    prefix = f"{where}, " if several else ""
                    label = f"{plain(prefix)}{name.replace('_', ' ')}"
                    console.print(f"[dim]{label} by {kind}:[/] {words}", highlight=False)
    for where, errors in result.sets.items():
        for name, found in errors.items():
            if (doubt := found.uncertainty) is not None:
                prefix = f"{where}, " if several else ""
                within = " and ".join(f"{share:.0%}" for share in doubt.coverage.values())
                rank = "" if doubt.rank_correlation is None else f", rank correlation {doubt.rank_correlation:.2f}"
                console.print(
                    f"[dim]{plain(prefix)}{name.replace('_', ' ')} uncertainty:[/] median {significant(doubt.median)} "
                    f"{found.unit}; {within} of labels within 1 and 1.96 σ (68% and 95% if calibrated){rank}",
                    highlight=False,
                )
    for note in result.notes:
        console.print(f"[yellow]{plain(note)}[/]", highlight=False)
    for where, (number, why) in result.left_out.items():
        console.print(f"[yellow]{plain(where)}: {number:,} structures left out:[/] {plain(why)}", highlight=False)
