"""The demonstration, whole but short."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from rich.console import Console

from eutectic.recipes.demonstration import TASKS, demo, run_demo
from eutectic.report.study_page import write_demo_page


def test_tasks_are_of_different_kinds_and_never_pretrained_on() -> None:
    pretrained = {chosen.store for chosen in demo().sets.values()}
    assert len(pretrained) == 4
    assert len(TASKS) >= 4
    assert not pretrained & {task.store for task in TASKS}
    assert len({task.property for task in TASKS}) >= 3


def test_short_demo_writes_results_and_report(tmp_path: Path) -> None:
    settings = demo(steps=4, processes=1)
    settings = settings.model_copy(
        update={
            "train": settings.train.model_copy(update={"batch_size": 8, "evaluate_every": 2}),
            "sets": {k: s.model_copy(update={"validation": 4}) for k, s in settings.sets.items()},
        }
    )
    tasks = [dataclasses.replace(t, steps=4, validation=4, test=8, batch_size=4) for t in TASKS]
    results = run_demo(tmp_path, settings=settings, seeds=(0,), tasks=tasks, workers=2, console=Console(quiet=True))
    results.write(tmp_path / "results.json")
    write_demo_page(tmp_path / "report.html", results)
    written = json.loads((tmp_path / "results.json").read_text())
    assert [task["name"] for task in written["tasks"]] == [task.name for task in TASKS]
    for task in written["tasks"]:
        expected = 100 * (1 - task["pretrained"] / task["scratch"])
        assert task["improvement_percent"] == pytest.approx(expected)
        assert {"name", "property", "unit", "scratch", "pretrained", "improvement_percent", "speedup"} <= set(task)
    improvements = [task["improvement_percent"] for task in written["tasks"]]
    assert written["mean_improvement_percent"] == pytest.approx(sum(improvements) / len(improvements))
    assert {"mean_speedup", "settings", "seeds", "times"} <= set(written)
    page = (tmp_path / "report.html").read_text()
    for task in TASKS:
        assert task.title in page
