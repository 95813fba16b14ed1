"""The page of a run: not begun, killed in a line, watched, finished."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pages import HOSTILE, check_self_contained
from typer.testing import CliRunner

from eutectic import cli
from eutectic.atoms import EutecticError
from eutectic.report.figures import CURVE_POINTS, thinned
from eutectic.report.run_page import write_run_page
from eutectic.study.results import StudyResults


def make_run(folder: Path, steps: int, done: int, names: tuple[str, ...] = ("some_molecules", "some_slabs")) -> Path:
    """A run's folder as `pretrain` leaves it after `done` of `steps` steps."""
    folder.mkdir()
    settings = {"command": "pretrain", "sets": {n: {"store": n} for n in names}, "train": {"steps": steps}}
    (folder / "settings.json").write_text(json.dumps(settings))
    entries = [
        {
            "step": s,
            "seconds": 0.5 * s,
            "loss": 3.0 / s,
            "learning_rate": 1e-3,
            "gradient_norm": None if s == 2 else 1.0,
            "structures": 30,
            "atoms": 400,
            "edges": 3000,
            "step_seconds": 0.5,
            "data_seconds": 0.1,
            "structures_by_set": dict.fromkeys(names, 15),
            "loss_by_set": dict.fromkeys(names[: 1 + s % 2], 2.0 / s),
            "loss_by_property": {name: {"energy": 0.5 / s, "forces": 1.5 / s} for name in names[: 1 + s % 2]},
        }
        for s in range(1, done + 1)
    ]
    (folder / "journal.jsonl").write_text("".join(json.dumps(e) + "\n" for e in entries) + '{"step": 7')
    return folder


def validated(folder: Path, names: tuple[str, ...]) -> None:
    errors = {"energy_mae": 5.0, "energy_baseline": 50.0, "forces_mae": 90.0, "forces_baseline": 300.0}
    rows = [{"step": s, "seconds": 1.0 * s, "by_set": dict.fromkeys(names, errors)} for s in (0, 5)]
    tables = {
        "size": {names[0]: {"forces": {"8–15": 91.0, "1": 7.0}}},
        "element": {names[0]: {"forces": {"C": 80.0, "Pt": 123.0}}},
    }
    (folder / "validation.json").write_text(json.dumps({"validation": rows, "errors": tables}))


def test_a_run_that_goes_on(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", steps=10, done=5)
    validated(folder, ("some_molecules", "some_slabs", "an_old_set"))
    plan = {
        "estimates": [{"hours": 0.002}],
        "sets": [{"name": n, "share": s, "structures": 50} for n, s in (("some_molecules", 0.6), ("some_slabs", 0.4))],
    }
    (folder / "plan.json").write_text(json.dumps(plan))
    text, page = check_self_contained(write_run_page(folder))
    for words in (
        "step 5 of 10",
        "50 %",
        "2.5 s left",
        "an_old_set",
        "Validation only, not trained on: 5.00",
        "Pt",
        "123",
        "8–15",
    ):
        assert words in text, words
    for prop in ("energy", "forces"):
        assert f"Training loss of {prop} against training step." in text
    assert text.count("Validation only, not trained on") == 2  # energy and forces
    assert "60.0 %" in text  # planned
    assert "50.0 %" in text  # drawn
    assert ">60<" in text  # structures per second
    assert text.index(">1<") < text.index(">8–15<")  # sizes in order
    assert page.tags.count("svg") >= 10


def test_a_run_that_has_not_begun_and_one_that_was_killed(tmp_path: Path) -> None:
    text, _ = check_self_contained(write_run_page(make_run(tmp_path / "new", steps=10, done=0)))
    assert "No step has been completed yet" in text
    text, _ = check_self_contained(write_run_page(make_run(tmp_path / "killed", steps=10, done=3)))
    assert "step 3 of 10" in text


def test_a_finished_run_with_its_sets(tmp_path: Path, results: StudyResults) -> None:
    folder = make_run(tmp_path / "run", steps=5, done=5)
    (folder / "summary.json").write_text("{}")
    text, _ = check_self_contained(write_run_page(folder, pretraining=results.pretraining))
    assert "finished" in text
    assert "Training data" in text


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", steps=5, done=4, names=(HOSTILE,))
    validated(folder, (HOSTILE,))
    text, _ = check_self_contained(write_run_page(folder))
    assert "<script>" not in text


def test_long_runs_make_small_pages() -> None:
    journal = [{"step": s} for s in range(1, 100_001)]
    points = thinned(journal, [float(s["step"]) for s in journal])
    assert len(points) == CURVE_POINTS
    assert points[0][1] == pytest.approx(125.5)
    assert thinned(journal[:3], [1.0, None, float("nan")]) == [(1.0, 1.0)]


def test_folders_that_are_no_runs(tmp_path: Path) -> None:
    with pytest.raises(EutecticError, match="no pre-training run here"):
        write_run_page(tmp_path)
    (tmp_path / "settings.json").write_text('{"command": "finetune"}')
    with pytest.raises(EutecticError, match="eutectic finetune"):
        write_run_page(tmp_path)
    (tmp_path / "settings.json").write_text("[1")
    with pytest.raises(EutecticError, match="cannot be read"):
        write_run_page(tmp_path)


def test_the_command(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", steps=10, done=5)
    result = CliRunner().invoke(cli.app, ["report", str(folder)])
    assert result.exit_code == 0, result.output
    assert (folder / "report.html").exists()
