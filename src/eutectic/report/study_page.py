"""Reports: what was learned from, how it went, what came out, as one HTML file that needs nothing else."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from eutectic.atoms import ENERGY, FORCES, Structure
from eutectic.files import write_atomically
from eutectic.report import figures, page
from eutectic.report.drawing import formula, kind, png
from eutectic.report.figures import START_WORDS
from eutectic.report.formatting import count, duration, measured, percent, significant, times
from eutectic.study.results import (
    PretrainingSummary,
    SetSummary,
    Start,
    StudyResults,
    TaskComparison,
    structure_from_dict,
)

FOOT = "Written by eutectic. This page is one file: it loads nothing and runs nothing."
ERROR_WORDS = "from the weights that were best on validation data"


def write_demo_report(
    path: Path, results: StudyResults, examples: Mapping[str, Sequence[Structure]] | None = None
) -> None:
    """Write the report of a whole demonstration.

    Args:
        path: the HTML file to write, whole or not at all.
        results: everything measured.
        examples: task name → a few of its structures, to be drawn beside its results.

    Raises:
        EutecticError: the file cannot be written.
    """
    sections = [("Result", _headline(results))]
    if results.pretraining is not None:
        sections.append(("What was learned from", _sets(results.pretraining)))
        sections.append(("Pre-training", _pretraining(results.pretraining)))
    sections.append(("Fine-tuning", _finetuning(results.tasks, examples or {})))
    if any(t.improvement_percent is not None for t in results.tasks):
        sections.append(("Improvement by task", _improvements(results)))
    sections.append(("How it was measured", _measured(results)))
    lead = (
        "One model learns from several kinds of chemistry at once, and is then fine-tuned to single "
        "properties. "
        "The same model is trained on the same data from random weights. This page compares the two."
    )
    write_atomically(path, page.document("Joint pre-training, measured", lead, sections, FOOT))


def write_finetune_report(
    path: Path,
    task: TaskComparison,
    *,
    settings: Mapping[str, Any] | None = None,
    times: Mapping[str, Any] | None = None,
    environment: Mapping[str, Any] | None = None,
    examples: Sequence[Structure] = (),
) -> None:
    """Write the report of fine-tuning to one task, from either start or both.

    Args:
        path: the HTML file to write, whole or not at all.
        task: its runs.
        settings, times, environment: as in `StudyResults`.
        examples: a few of its structures, to be drawn.

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
    sections = [
        ("Result", _headline(results)),
        ("Fine-tuning", _finetuning([task], {task.name: examples})),
        ("How it was measured", _measured(results)),
    ]
    words = " and ".join(_start(s) for s in task.starts())
    lead = f"{_words(task.property).capitalize()} of {task.dataset}, learned {words}."
    write_atomically(path, page.document(f"Fine-tuning: {task.title}", lead, sections, FOOT))


def _headline(results: StudyResults) -> str:
    starts = _starts(results.tasks)
    if len(starts) < 2:
        return _errors_alone(results, starts)
    improvement, speedup = results.mean_improvement_percent, results.mean_speedup
    tiles = []
    if improvement is not None:
        side = "lower" if improvement >= 0 else "higher"
        spread = results.mean_improvement_spread
        seeds = f" (± {spread:.1f} over {len(results.seeds())} seeds)" if spread is not None else ""
        tiles.append(
            f'<div class="tile"><b>{abs(improvement):.1f} %</b>{side} test error with pre-training, '
            f"mean of {_tasks(len(results.tasks))}{seeds}</div>"
        )
    if speedup is not None:
        words = (
            "fewer steps to the accuracy that training from scratch ends with"
            if speedup >= 1
            else "of the steps are all that training from scratch needs to match pre-training"
        )
        tiles.append(f'<div class="tile"><b>{times(speedup)}</b>{words}, geometric mean</div>')
    if results.pretraining is not None:
        p = results.pretraining
        tiles.append(
            f'<div class="tile plain"><b>{duration(p.seconds)}</b>of pre-training, once, on '
            f"{count(sum(s.n_structures for s in p.sets))} structures of {len(p.sets)} data sets</div>"
        )
    rows = []
    for task in results.tasks:
        better = task.improvement_percent is not None and task.improvement_percent > 0
        gain = _gain(task.improvement_percent, task.improvement_spread)
        errors = [_pair(measured(task.mean(s), task.spread(s))) for s in starts]
        if task.improvement_percent is not None:
            errors[better] = f"<b>{errors[better]}</b>"
        rows.append(
            [
                f"{escape(task.title)}<br><small>{escape(_words(task.property))}, {escape(task.unit)}</small>",
                *errors,
                f'<span class="good">{gain}</span>' if better else gain,
                times(task.speedup),
            ]
        )
    rows.append(["mean", "", "", _gain(improvement, results.mean_improvement_spread), times(speedup)])
    many = len(results.seeds()) > 1
    note = (
        f"Test error: {escape(', '.join(sorted({t.metric for t in results.tasks})))} on structures never "
        "trained on, "
        f"{ERROR_WORDS}{', mean ± standard deviation over seeds' if many else ', one seed'}. "
        "Improvement: how much lower the error is. Speed-up: how many times fewer steps the pre-trained "
        "start needs "
        "to reach the validation error that the start from scratch ends with; below 1 it never did. "
        "The mean improvement is arithmetic, the mean speed-up geometric."
    )
    headings = ["task", "from scratch", "pre-trained", "improvement", "speed-up"]
    return (
        f'<div class="tiles">{"".join(tiles)}</div>{page.table(headings, rows, mean=True)}'
        f'<p class="small quiet">{note}</p>'
    )


def _errors_alone(results: StudyResults, starts: Sequence[Start]) -> str:
    """The headline where there is nothing to compare."""
    rows = [
        [
            f"{escape(t.title)}<br><small>{escape(_words(t.property))}, {escape(t.unit)}</small>",
            *(f"<b>{_pair(measured(t.mean(s), t.spread(s)))}</b>" for s in starts),
        ]
        for t in results.tasks
    ]
    metrics = escape(", ".join(sorted({t.metric for t in results.tasks})))
    note = f"Test error: {metrics} on structures never trained on, {ERROR_WORDS}."
    headings = ["task", *(f"test error, {_start(s)}" for s in starts)]
    return f'{page.table(headings, rows)}<p class="small quiet">{note}</p>'


def _sets(pretraining: PretrainingSummary) -> str:
    total = sum(pretraining.drawn.values()) or sum(s.n_drawn for s in pretraining.sets)
    colours = figures.set_colours(pretraining)
    cards = "\n".join(_set_card(s, i, colours[s.name], total) for i, s in enumerate(pretraining.sets))
    n = len(pretraining.sets)
    intro = (
        f"{n} data sets, {count(sum(s.n_structures for s in pretraining.sets))} structures, "
        f"{count(sum(s.n_atoms for s in pretraining.sets))} atoms, "
        f"{len(set().union(*(s.elements for s in pretraining.sets)))} elements. Each set keeps its own "
        "level of theory "
        "and its own output heads; the rest of the model is shared."
    )
    return f'<p>{intro}</p><div class="cards">{cards}</div>'


def _set_card(summary: SetSummary, index: int, colour: str, total: int) -> str:
    card = summary.card
    pictures = _gallery([structure_from_dict(e) for e in summary.examples])
    share = f", {100 * summary.n_drawn / total:.0f} % of all draws" if total else ""
    passes = summary.n_drawn / summary.n_structures if summary.n_structures else 0.0
    drawn = f"{count(summary.n_drawn)} times ({significant(passes)} passes over the set{share})"
    low, high = min(summary.sizes, default=0), max(summary.sizes, default=0)
    mean = summary.n_atoms / summary.n_structures if summary.n_structures else 0.0
    histogram = figures.svg(
        figures.sizes(summary, colour),
        f"size{index}",
        f"Histogram: structures of {low} to {high} atoms, mean {mean:.0f}.",
    )
    facts = page.definitions(
        [
            ("Size", f"{count(summary.n_structures)} structures in {count(summary.n_groups)} groups"),
            ("Drawn", drawn),
            ("Labels", escape(", ".join(card.properties))),
            ("Level of theory", escape(card.level_of_theory)),
            ("Licence", escape(card.licence)),
            ("Source", escape(card.source)),
            ("Cite", escape(card.citation)),
        ]
    )
    notes = "".join(f"<li>{escape(note)}</li>" for note in card.notes)
    return (
        f'<article class="card" style="--accent:var({figures.VARIABLES[colour]})">'
        f"<h3>{escape(card.title)}</h3>"
        f'<div class="small quiet">{escape(card.name)} · {escape(card.domain)}</div>'
        f"{pictures}{page.periodic_table(summary.elements)}{page.composition_bar(summary.elements)}"
        + page.figure(histogram, f"Sizes: {low} to {high} atoms, {mean:.0f} on average.")
        + facts
        + (f'<details class="small"><summary>Notes</summary><ul>{notes}</ul></details>' if notes else "")
        + "</article>"
    )


def _pretraining(pretraining: PretrainingSummary) -> str:
    steps = max([r["step"] for r in [*pretraining.journal, *pretraining.validation]], default=0)
    parts = [
        f"<p>{escape(pretraining.backbone)}, {count(pretraining.n_parameters)} parameters, {count(steps)} "
        "steps in "
        f"{duration(pretraining.seconds)}.</p>"
    ]
    if pretraining.journal:
        drawing = figures.svg(figures.losses(pretraining), "loss", "Training loss of each data set against steps.")
        caption = (
            "Training loss, one colour for each data set as on the cards above, all of them together in "
            "the thickest line. All curves should fall together; one that rises while the others fall "
            "pays for them."
        )
        parts.append(f'<div class="card"><h3>Training</h3>{page.figure(drawing, caption, "wide")}</div>')
    for quantity, unit, baseline in (
        ("energy", ENERGY.display_unit_per_atom, "predicting the reference energy of the composition"),
        ("forces", FORCES.display_unit_per_atom, "predicting zero force everywhere"),
    ):
        panels = []
        for i, summary in enumerate(pretraining.sets):
            last = _last(pretraining, summary.name)
            if last.get(f"{quantity}_mae") is None:
                continue
            drawing = figures.svg(
                figures.validation(pretraining, summary.name, quantity, f"{quantity} error ({unit})"),
                f"{quantity}{i}",
                escape(f"Validation {quantity} error of {summary.name} against steps."),
            )
            panels.append(page.figure(drawing, _against_baseline(last, quantity, unit)))
        if panels:
            parts.append(
                f'<div class="card"><h3>{quantity.capitalize()} on held-out structures</h3>'
                f'<div class="small quiet">Mean absolute error. Dashed: {baseline}; a model below has '
                f'learned something.</div><div class="figures">{"".join(panels)}</div></div>'
            )
    return "\n".join(parts)


def _last(pretraining: PretrainingSummary, name: str) -> dict[str, Any]:
    """A data set's last validation; empty where it has none."""
    rows = [r["by_set"][name] for r in pretraining.validation if name in r["by_set"]]
    return rows[-1] if rows else {}


def _against_baseline(last: Mapping[str, Any], quantity: str, unit: str) -> str:
    error, baseline = float(last[f"{quantity}_mae"]), float(last.get(f"{quantity}_baseline") or 0.0)
    text = f"Ends at {significant(error)} {unit}"
    if not baseline or not error:
        return f"{text}."
    if error < baseline:
        return f"{text}: {times(baseline / error)} below the trivial {significant(baseline)}."
    return f"{text}: no better than the trivial {significant(baseline)}."


def _finetuning(tasks: Sequence[TaskComparison], examples: Mapping[str, Sequence[Structure]]) -> str:
    both = len(_starts(tasks)) > 1
    words = (
        "For each task, first the validation error during training (thick: mean over seeds; thin: each seed). "
        if any(len(t.seeds()) > 1 for t in tasks)
        else "For each task, first the validation error during training. "
    )
    words += "Its axis is logarithmic. Then predictions for test structures against the truth"
    words += ", from both starts in one frame." if both else "."
    return f"<p>{words}</p>" + "\n".join(_task_card(t, i, examples.get(t.name, ())) for i, t in enumerate(tasks))


def _task_card(task: TaskComparison, index: int, examples: Sequence[Structure]) -> str:
    curves = figures.svg(
        figures.learning_curves(task),
        f"curve{index}",
        escape(f"Validation error of {task.title} against training steps. {_crossing(task)}"),
    )
    parts = [page.figure(curves, escape(_crossing(task)))]
    for start in task.starts():
        run = figures.typical(task, start)
        which = f", seed {run.seed} (the middle one)" if len(task.of(start)) > 1 else ""
        error = f"{significant(run.test_error)} {task.unit}"
        alt = f"Predicted against true {_words(task.property)}, {_start(start)}: test error {error}."
        caption = f"{count(len(run.truth))} test points{which}. On the line, the prediction is right."
        parts.append(
            page.figure(figures.svg(figures.parity(task, start), f"parity{index}{start}", escape(alt)), caption)
        )
    single = " single" if len(task.starts()) < 2 else ""
    return (
        f'<article class="card"><h3>{escape(task.title)}</h3><div class="small quiet">'
        f"{escape(task.name)} · {escape(_words(task.property))} {escape(task.symbol)} in "
        f"{escape(task.unit)} · "
        f"{escape(task.dataset)} · {escape(task.level_of_theory)} · trained on {count(task.n_train)}, chosen on "
        f"{count(task.n_validation)}, tested on {count(task.n_test)} structures</div>"
        f'{_gallery(examples)}<div class="figures task{single}">{"".join(parts)}</div></article>'
    )


def _crossing(task: TaskComparison) -> str:
    """What to see in the learning curves, in words."""
    crossing = task.crossing()
    if crossing is None:
        start = task.starts()[0] if task.starts() else "scratch"
        curve = task.mean_curve(start)[1]
        end = significant(float(curve[-1]))
        return f"Training {_start(start)} ends at a validation error of {end} {task.unit}."
    start, step, error = crossing
    value, spent = f"{significant(error)} {task.unit}", f"{count(round(step))} of {count(task.steps)} steps"
    if start == "pretrained":
        return f"The pre-trained start is at {value}, where training from scratch ends, after {spent} (dot)."
    return (
        "The pre-trained start never reaches what training from scratch ends with; "
        f"its own end, {value}, is reached from scratch after {spent} (dot)."
    )


def _improvements(results: StudyResults) -> str:
    spread = any(len(t.improvement_by_seed()) > 1 for t in results.tasks)
    gains = [t.improvement_percent for t in results.tasks if t.improvement_percent is not None]
    better = sum(g > 0 for g in gains)
    dots = (
        " Dots: the two starts compared seed by seed; where they lie far apart, the bar is uncertain." if spread else ""
    )
    caption = (
        f"Pre-training lowers the test error of {better} of {_tasks(len(gains))}. Bars to the right are "
        f"gains.{dots} "
        "Dashed: the mean over tasks."
    )
    alt = "; ".join(f"{t.title}: {percent(t.improvement_percent)}" for t in results.tasks)
    drawing = figures.svg(figures.improvements(results), "gain", escape(f"Improvement by task. {alt}"))
    return f'<div class="card">{page.figure(drawing, caption, "wide")}</div>'


def _measured(results: StudyResults) -> str:
    starts = _starts(results.tasks)
    points = []
    if len(starts) > 1:
        points += [
            "Both starts use the same model, the same training, validation and test structures and the "
            "same number of "
            "steps. They differ in the first weights"
            + (
                ", in the peak learning rate and in the weight decay, which were chosen for each start on its own, "
                "on validation data."
                if any(_rate(t, "scratch") != _rate(t, "pretrained") for t in results.tasks)
                else "."
            ),
            "Improvements are paired: with one seed, both starts see the same structures in the same order.",
        ]
    chosen = "Learning rates and the" if any(t.trials for t in results.tasks) else "The"
    points += [
        f"{chosen} weights that are kept are chosen on validation structures only; test structures are "
        "used once, at the "
        "end.",
        "Structures that belong together (one molecule, one reaction, one surface) are not divided "
        "between training, "
        "validation and testing where the data set says which do.",
    ]
    if len(starts) > 1 and results.pretraining is not None:
        points.append(
            "The speed-up counts the steps of fine-tuning alone. Pre-training is done once for all tasks "
            "and is not "
            f"counted; here it took {duration(results.pretraining.seconds)}."
        )
    seeds = ", ".join(map(str, results.seeds())) or "none"
    spread = " ± is the standard deviation over seeds (n − 1), not an error of the mean." if "," in seeds else ""
    points.append(f"Seeds: {seeds}.{spread}")
    rows = []
    for task in results.tasks:
        cells = [
            escape(task.title),
            count(task.n_train),
            count(task.n_validation),
            count(task.n_test),
            count(task.steps),
        ]
        for start in starts:
            runs = task.of(start)
            mean = sum(r.seconds for r in runs) / len(runs) if runs else float("nan")
            cells += [_rate(task, start), duration(mean)]
        rows.append(cells)
    headings = ["task", "training", "validation", "test", "steps"]
    for start in starts:
        headings += [f"learning rate / decay, {START_WORDS[start]}", f"time a run, {START_WORDS[start]}"]
    return (
        "<ul>"
        + "".join(f"<li>{p}</li>" for p in points)
        + "</ul>"
        + page.table(headings, rows)
        + _trials(results.tasks)
        + _facts(results.settings, results.times, results.environment)
    )


def _trials(tasks: Sequence[TaskComparison]) -> str:
    """The runs made to choose learning rates and weight decays; nothing where there were none."""
    rows = [
        [
            escape(t.title),
            _start(trial.start),
            f"{trial.learning_rate:.2g}",
            f"{trial.weight_decay:.2g}",
            f"{significant(trial.validation_error)} {escape(t.unit)}",
        ]
        for t in tasks
        for trial in sorted(t.trials, key=lambda r: (r.start, r.weight_decay, r.learning_rate))
    ]
    if not rows:
        return ""
    body = page.table(["task", "start", "learning rate", "weight decay", "validation error"], rows, words=2)
    summary = f"Runs made to choose learning rates and weight decays ({len(rows)})"
    return f"<details><summary>{summary}</summary>{body}</details>"


def _facts(settings: Mapping[str, Any], seconds: Mapping[str, Any], environment: Mapping[str, Any]) -> str:
    spent = {
        k: duration(float(v)) if isinstance(v, (int, float)) and not isinstance(v, bool) else v
        for k, v in seconds.items()
    }
    parts = [
        page.folded("Settings", settings),
        page.folded("Times", spent),
        page.folded("Environment", environment),
    ]
    return "".join(parts) or '<p class="quiet">None were noted.</p>'


def _rate(task: TaskComparison, start: Start) -> str:
    """Learning rate and weight decay of a start's runs, usually one pair."""
    pairs = sorted({(r.learning_rate, r.weight_decay) for r in task.of(start)})
    return ", ".join(f"{rate:.2g} / {decay:.2g}" for rate, decay in pairs) or "–"


def _pair(text: str) -> str:
    """A value and its spread, which a phone sets below it."""
    value, _, spread = text.partition(" ± ")
    return f"{value} <small>± {spread}</small>" if spread else value


def _gain(value: float | None, spread: float | None) -> str:
    return percent(value) if value is None or spread is None else f"{percent(value)} <small>± {spread:.1f}</small>"


def _gallery(structures: Sequence[Structure]) -> str:
    """Structures side by side with their formulas; nothing where there are none."""
    pictures = [
        page.figure(page.image(png(s), f"{kind(s)} {formula(s)}"), re.sub(r"(\d+)", r"<sub>\1</sub>", formula(s)))
        for s in structures
    ]
    return f'<div class="gallery">{"".join(pictures)}</div>' if pictures else ""


def _start(start: Start) -> str:
    return "from pre-trained weights" if start == "pretrained" else "from scratch"


def _starts(tasks: Sequence[TaskComparison]) -> tuple[Start, ...]:
    """The starts that any task has runs from, scratch first."""
    both: tuple[Start, Start] = ("scratch", "pretrained")
    return tuple(s for s in both if any(t.of(s) for t in tasks))


def _words(name: str) -> str:
    return name.replace("_", " ")


def _tasks(n: int) -> str:
    return "1 task" if n == 1 else f"{n} tasks"
