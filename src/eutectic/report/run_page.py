"""The page of a pre-training run, made from the files in its folder; the run may be running, killed or finished.

It reads settings.json, journal.jsonl, validation.json and plan.json; missing parts are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eutectic.atoms import PROPERTIES, EutecticError
from eutectic.files import read_json
from eutectic.report import figures
from eutectic.report.page import write_page
from eutectic.study.results import PretrainingSummary
from eutectic.train.runtime.journal import read_journal


def write_run_page(
    folder: Path, *, pretraining: PretrainingSummary | None = None, environment: Mapping[str, Any] | None = None
) -> Path:
    """Write `report.html` into a run's folder.

    Args:
        folder: folder of a pre-training run, in any state.
        pretraining: data sets to show; summarising large ones takes a while.
        environment: versions and hardware.

    Returns:
        The page.

    Raises:
        EutecticError: the folder holds no pre-training run, its files are damaged, or the page cannot be written.
    """
    folder = Path(folder)
    settings = _read(folder / "settings.json")
    given = None
    if settings.get("command") != "pretrain":
        given = f"a run of `eutectic {settings['command']}`" if "command" in settings else "no pre-training run here"
    elif not (isinstance(settings.get("sets"), dict) and isinstance(settings.get("train"), dict)):
        given = "a settings.json without `sets` or `train`"
    if given is not None:
        raise EutecticError(
            str(folder),
            given,
            "the folder of a pre-training run (settings.json, journal.jsonl)",
            "give the --out of `eutectic pretrain`",
        )
    journal = read_journal(folder)
    validated = _read(folder / "validation.json")
    plan = _read(folder / "plan.json")
    names = list(settings["sets"])
    progress = _progress(journal, int(settings["train"].get("steps", 1)), (folder / "summary.json").exists(), plan)
    state = "finished" if progress["finished"] else f"step {progress['done']} of {progress['steps']}"
    write_page(
        folder / "report.html",
        "run.html.j2",
        title="Joint pre-training",
        lead=f"{', '.join(names)}: {state}.",
        names=names,
        journal=journal,
        progress=progress,
        pretraining=pretraining,
        validation=validation_panels(validated.get("validation", []), names),
        breakdown=list(_breakdown(validated.get("errors", {}))),
        step_panels=[p for p in _step_panels(journal) if p[1]],
        mixture=_mixture(journal, names, plan),
        settings=settings,
        environment=environment or {},
    )
    return folder / "report.html"


@dataclass(frozen=True)
class ValidationPanel:
    """One property's validation errors on one data set.

    Attributes:
        name: name of the data set.
        points: (step, error), at least one.
        unit: unit of the errors.
        baseline: error of the baseline; None if unknown.
        colour: colour of the data set.
        trained_on: whether the model is trained on the set.
    """

    name: str
    points: list[tuple[float, float]]
    unit: str
    baseline: float | int | None
    colour: str
    trained_on: bool


def validation_panels(
    validation: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> dict[str, list[ValidationPanel]]:
    """Property → a panel for each data set that has it.

    Args:
        validation: as in `PretrainingSummary`.
        names: names of the training sets; other sets are shown after them.
    """
    panels: dict[str, list[ValidationPanel]] = {}
    last: Mapping[str, Mapping[str, Any]] = validation[-1]["by_set"] if validation else {}
    colours = figures.set_colours(list(dict.fromkeys([*names, *last])))
    for prop in dict.fromkeys(key.removesuffix("_mae") for by in last.values() for key in by if key.endswith("_mae")):
        for name, colour in colours.items():
            errors = [v["by_set"].get(name, {}).get(f"{prop}_mae") for v in validation]
            points = figures.thinned(validation, errors)
            if points:
                baseline = last.get(name, {}).get(f"{prop}_baseline")
                panel = ValidationPanel(name, points, _unit(prop), baseline, colour, name in names)
                panels.setdefault(prop, []).append(panel)
    return panels


def _read(path: Path) -> dict[str, Any]:
    """A JSON file of a run; empty if it does not exist yet."""
    return read_json(path, fix="copy the run's folder again") if path.exists() else {}


def _progress(
    journal: Sequence[Mapping[str, Any]], steps: int, finished: bool, plan: Mapping[str, Any]
) -> dict[str, Any]:
    if not journal:
        return {"done": 0, "steps": steps, "finished": finished}
    last, recent = journal[-1], journal[-200:]
    seconds = _seconds(recent)
    estimate = next(iter(plan.get("estimates", [])), None)
    return {
        "done": int(last["step"]),
        "steps": steps,
        "share": last["step"] / steps,
        "finished": finished,
        "seconds": last.get("seconds", 0.0),
        "left": (steps - last["step"]) * float(seconds.mean()),
        "rate": sum(e.get("structures", 0) for e in recent) / max(float(seconds.sum()), 1e-9),
        "planned": None if estimate is None else 3600 * estimate["hours"],
    }


def _seconds(entries: Sequence[Mapping[str, Any]]) -> np.ndarray:
    return np.array([float(e.get("step_seconds", 0.0)) for e in entries])


def _breakdown(errors: Mapping[str, Any]) -> Iterator[tuple[str, list[str], list[tuple[str, str, Mapping[str, Any]]]]]:
    """Tables of the last validation: heading, columns, rows."""
    for kind, heading in (("size", "By number of atoms"), ("element", "By element")):
        by_task: Mapping[str, Mapping[str, Mapping[str, Any]]] = errors.get(kind, {})
        rows = [
            (task, f"{prop}, {_unit(prop)}" if _unit(prop) else prop, table)
            for task, props in by_task.items()
            for prop, table in props.items()
        ]
        columns = list(dict.fromkeys(label for _, _, table in rows for label in table))
        if kind == "size":
            columns.sort(key=lambda label: int(label.partition("–")[0]))
        if rows:
            yield heading, columns, rows


def _step_panels(journal: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, list[tuple[float, float]], str, bool]]:
    """Label, points, caption, and whether the axis is logarithmic."""

    def points(key: str, per: np.ndarray | float = 1.0) -> list[tuple[float, float]]:
        values = np.array([e.get(key) for e in journal], dtype=float) / per
        return figures.thinned(journal, values.tolist())

    yield "learning rate", points("learning_rate"), "Learning rate of the heads.", False
    yield "gradient norm", points("gradient_norm"), "Before clipping.", True
    if journal and "step_seconds" in journal[-1]:
        seconds = np.maximum(_seconds(journal), 1e-9)
        yield "structures/s", points("structures", seconds), "Excluding validation.", False
        yield "atoms/s", points("atoms", seconds), "Steady even if structures differ in size.", False
        waiting = points("data_seconds", seconds / 100)
        yield "waiting for data (%)", waiting, "High values mean that data loading limits the speed.", False


def _mixture(
    journal: Sequence[Mapping[str, Any]], names: Sequence[str], plan: Mapping[str, Any]
) -> list[dict[str, Any]]:
    drawn = {name: sum(e.get("structures_by_set", {}).get(name, 0) for e in journal) for name in names}
    total = sum(drawn.values())
    planned = {s["name"]: s for s in plan.get("sets", [])}
    return [
        {
            "name": name,
            "drawn": n,
            "share": n / total,
            "planned": planned[name]["share"] if name in planned else None,
            "epochs": n / planned[name]["structures"] if name in planned else None,
        }
        for name, n in drawn.items()
        if total
    ]


def _unit(name: str) -> str:
    """Unit of a property's validation errors; empty if the property is not defined here."""
    return PROPERTIES[name].display_unit_per_atom if name in PROPERTIES else ""
