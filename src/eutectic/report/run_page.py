"""A pre-training as a page, from what is in its folder: while it runs, after it was killed, when it has ended.

It reads settings.json, journal.jsonl, validation.json and plan.json; whatever is not there yet is left out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from eutectic.atoms import PROPERTIES, EutecticError
from eutectic.files import write_atomically
from eutectic.report import figures, page
from eutectic.report.formatting import count, duration, significant
from eutectic.report.study_page import FOOT, _facts, _sets
from eutectic.study.results import PretrainingSummary
from eutectic.train.runtime.journal import read_journal

POINTS = 400
"""Of a curve; more are averaged, so that a page of a million steps is as small as any."""


def write_run_page(
    folder: Path, *, pretraining: PretrainingSummary | None = None, environment: Mapping[str, Any] | None = None
) -> Path:
    """Write `report.html` into a run's folder.

    Args:
        folder: of a pre-training, in whatever state.
        pretraining: what was learned from, to be shown too; reading it through takes a while for large sets.
        environment: versions and hardware.

    Returns:
        The page.

    Raises:
        EutecticError: no pre-training is there, its files are damaged, or the page cannot be written.
    """
    folder = Path(folder)
    settings = _read(folder / "settings.json")
    if settings.get("command") != "pretrain":
        raise EutecticError(
            str(folder),
            "no pre-training is here" if not settings else f"a run of `eutectic {settings.get('command')}`",
            "the folder of a pre-training (settings.json, journal.jsonl)",
            "give the --out of `eutectic pretrain`",
        )
    journal = read_journal(folder)
    held_out = _read(folder / "validation.json")
    planned = _read(folder / "plan.json")
    steps = int(settings["train"]["steps"])
    done = int(journal[-1]["step"]) if journal else 0
    finished = (folder / "summary.json").exists()
    names = list(settings["sets"])
    sections = [("How far", _how_far(journal, steps, finished, planned))]
    if pretraining is not None:
        sections.append(("What was learned from", _sets(pretraining)))
    if journal:
        sections.append(("Training", _training(journal, names)))
    if held_out:
        sections.append(("On held-out structures", _validation(held_out["validation"], names)))
        sections.append(("Where the errors are", _errors(held_out.get("errors", {}))))
    if journal:
        sections.append(("Steps", _steps(journal)))
        sections.append(("The mixture", _mixture(journal, names, planned)))
    sections.append(("Settings", _facts(settings, {}, environment or {})))
    state = "finished" if finished else f"step {done} of {steps}"
    lead = f"{', '.join(names)}: {state}."
    path = folder / "report.html"
    write_atomically(path, page.document("Joint pre-training", lead, [s for s in sections if s[1]], FOOT))
    return path


def _read(path: Path) -> dict[str, Any]:
    """A JSON file of a run; empty where it is not there yet."""
    try:
        values = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if not isinstance(values, dict):
            raise ValueError("not an object")
    except (OSError, ValueError) as error:
        raise EutecticError(
            str(path), f"cannot be read ({error})", "a file this program wrote", "copy the run's folder again"
        ) from error
    return values


def _how_far(journal: Sequence[Mapping[str, Any]], steps: int, finished: bool, planned: Mapping[str, Any]) -> str:
    if not journal:
        return "<p>No step is done yet.</p>"
    last = journal[-1]
    recent = journal[-200:]
    rate = sum(e.get("structures", 0) for e in recent) / max(sum(_seconds(recent)), 1e-9)
    left = (steps - last["step"]) * float(np.mean(_seconds(recent)))
    tiles = [
        (f"{100 * last['step'] / steps:.0f} %", f"{count(last['step'])} of {count(steps)} steps"),
        (duration(last["seconds"]), "of training" if finished else f"of training; about {duration(left)} left"),
        (significant(rate), "structures per second"),
    ]
    here = next(iter(planned.get("estimates", [])), None)
    if here is not None:
        tiles.append((duration(3600 * here["hours"]), "was planned, validations included"))
    boxes = "".join(f'<div class="tile plain"><b>{escape(b)}</b>{escape(t)}</div>' for b, t in tiles)
    return f'<div class="tiles">{boxes}</div>'


def _seconds(entries: Sequence[Mapping[str, Any]]) -> list[float]:
    return [float(e.get("step_seconds", 0.0)) for e in entries]


def _curve(entries: Sequence[Mapping[str, Any]], values: Sequence[float | None]) -> list[tuple[float, float]]:
    """(step, mean) of at most `POINTS` stretches of equal length; those without a number are left out."""
    known = [
        (float(e["step"]), float(v))
        for e, v in zip(entries, values, strict=True)
        if v is not None and math.isfinite(float(v))
    ]
    if len(known) <= POINTS:
        return known
    return [tuple(part.mean(axis=0)) for part in np.array_split(np.array(known), POINTS)]


def _training(journal: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    curves = {"all": _curve(journal, [e.get("loss") for e in journal])}
    curves |= {name: _curve(journal, [e["loss_by_set"].get(name) for e in journal]) for name in names}
    loss = figures.svg(
        figures.curves(curves, names, "training loss (no unit)"), "loss", "Training loss of each set against steps."
    )
    caption = (
        "Each set in its colour, all of them together in the thickest line. All curves should fall together; one that "
        "rises while the others fall pays for them."
    )
    return f'<div class="card"><h3>Loss</h3>{page.figure(loss, caption, "wide")}</div>'


def _validation(validation: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    if not validation:
        return ""
    watched = [n for n in validation[-1]["by_set"] if n not in names]
    every = [*names, *watched]
    cards = []
    properties = list(
        dict.fromkeys(k[:-4] for by in validation[-1]["by_set"].values() for k in by if k.endswith("_mae"))
    )
    for prop in properties:
        panels = []
        for i, name in enumerate(every):
            rows = [(v["step"], v["by_set"].get(name, {})) for v in validation]
            points = [(s, by[f"{prop}_mae"]) for s, by in rows if by.get(f"{prop}_mae") is not None]
            if not points:
                continue
            baseline = rows[-1][1].get(f"{prop}_baseline")
            unit = PROPERTIES[prop].display_unit_per_atom if prop in PROPERTIES else ""
            drawing = figures.svg(
                figures.curves(
                    {name: points}, every, f"{prop} error" + f" ({unit})" * bool(unit), small=True, level=baseline
                ),
                f"held{prop}{i}",
                escape(f"Error of {prop} on held-out structures of {name} against steps."),
            )
            said = f"{escape(name)}{' (watched, not learned)' if name in watched else ''}: {significant(points[-1][1])}"
            panels.append(page.figure(drawing, f"{said} {unit}; knowing nothing, {significant(baseline)}."))
        if panels:
            cards.append(
                f'<div class="card"><h3>{escape(prop.replace("_", " ").capitalize())}</h3><div class="small quiet">'
                "Mean absolute error of the averaged weights. Dashed: knowing nothing but references.</div>"
                f'<div class="figures">{"".join(panels)}</div></div>'
            )
    return "".join(cards)


def _errors(errors: Mapping[str, Any]) -> str:
    """By size and by element, as tables: of the last validation."""
    cards = []
    for kind, words in (("size", "By number of atoms"), ("element", "By element")):
        by_task: Mapping[str, Mapping[str, Mapping[str, float]]] = errors.get(kind, {})
        columns = list(dict.fromkeys(label for props in by_task.values() for t in props.values() for label in t))
        if kind == "size":
            columns.sort(key=lambda label: int(label.partition("–")[0]))
        rows = [
            [
                escape(task),
                escape(f"{prop}, {PROPERTIES[prop].display_unit_per_atom}" if prop in PROPERTIES else prop),
                *(significant(table.get(c)) for c in columns),
            ]
            for task, props in by_task.items()
            for prop, table in props.items()
        ]
        if rows:
            body = page.table(["set", "error", *columns], rows, words=2)
            cards.append(f'<div class="card"><h3>{words}</h3>{body}</div>')
    return "".join(cards)


def _steps(journal: Sequence[Mapping[str, Any]]) -> str:
    lines: list[tuple[str, str, Sequence[float | None], str]] = [
        ("rate", "learning rate", [e.get("learning_rate") for e in journal], "Of the heads."),
        ("norm", "gradient norm", [e.get("gradient_norm") for e in journal], "Before it is clipped."),
    ]
    if "step_seconds" in journal[-1]:
        seconds = np.maximum(_seconds(journal), 1e-9)
        structures, atoms, waited = (
            (np.array([e.get(k, 0) for e in journal]) / seconds).tolist()
            for k in ("structures", "atoms", "data_seconds")
        )
        lines += [
            ("structures", "structures/s", structures, "Validations not counted."),
            ("atoms", "atoms/s", atoms, "Steady even where structures differ in size."),
            ("wait", "waiting for data (%)", [100 * w for w in waited], "High: the model waits for its batches."),
        ]
    panels = []
    for prefix, label, values, words in lines:
        points = _curve(journal, values)
        if points:
            drawing = figures.curves({"all": points}, (), label, small=True, log=prefix == "norm")
            panels.append(page.figure(figures.svg(drawing, f"steps-{prefix}", f"{label} against steps."), words))
    return f'<div class="card"><div class="figures">{"".join(panels)}</div></div>'


def _mixture(journal: Sequence[Mapping[str, Any]], names: Sequence[str], planned: Mapping[str, Any]) -> str:
    drawn = {name: sum(e.get("structures_by_set", {}).get(name, 0) for e in journal) for name in names}
    total = sum(drawn.values())
    if not total:
        return ""
    shares = {s["name"]: s for s in planned.get("sets", [])}
    rows = []
    for name in names:
        plan = shares.get(name)
        row = [escape(name), count(drawn[name]), f"{100 * drawn[name] / total:.1f} %"]
        row += [f"{100 * plan['share']:.1f} %", significant(drawn[name] / plan["structures"])] if plan else ["–", "–"]
        rows.append(row)
    return page.table(["set", "structures drawn", "of all", "planned", "epochs so far"], rows)
