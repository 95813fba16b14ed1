"""Improvement and speed-up on curves worked by hand; JSON there and back."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from made_up import make_run, make_store, make_task, pair, slab

from eutectic.atoms import EutecticError, Structure
from eutectic.study.results import (
    Curve,
    StudyResults,
    structure_from_dict,
    structure_to_dict,
    summarise,
)


def test_errors_and_improvement_by_hand() -> None:
    task = pair("alpha")
    assert task.scratch == pytest.approx(0.40)
    assert task.pretrained == pytest.approx(0.30)
    assert task.spread("scratch") == pytest.approx(0.04 / math.sqrt(2))  # two values: their distance / √2
    assert task.improvement_percent == pytest.approx(25.0)
    assert task.improvement_by_seed() == pytest.approx({0: 100 * (1 - 31 / 42), 1: 100 * (1 - 29 / 38)})


def test_speedup_interpolates_between_evaluations() -> None:
    # 0.5 at step 100, 0.3 at step 200: 0.4 is reached at step 150 of 400.
    task = pair("alpha")
    start, step, error = task.crossing() or pytest.fail("no crossing")
    assert (start, step, error) == ("pretrained", pytest.approx(150.0), pytest.approx(0.4))
    assert task.speedup == pytest.approx(400 / 150)


def test_speedup_below_one_where_pretraining_never_gets_there() -> None:
    task = make_task(
        "t",
        [
            make_run("scratch", 0, [2.0, 1.0, 0.6, 0.5, 0.4], 0.4),
            make_run("pretrained", 0, [2.0, 1.0, 0.9, 0.85, 0.8], 0.8),
        ],
    )
    # From scratch is at 0.8 half-way between steps 100 and 200.
    assert task.speedup == pytest.approx(150 / 400)
    assert task.improvement_percent == pytest.approx(-100.0)
    assert task.spread("scratch") is None


def test_equal_curves_are_no_speedup() -> None:
    errors = [2.0, 1.0, 0.5]
    task = make_task("t", [make_run("scratch", 0, errors, 0.5), make_run("pretrained", 0, errors, 0.5)], steps=200)
    assert task.speedup == pytest.approx(1.0)
    assert task.improvement_percent == pytest.approx(0.0)


def test_a_curve_that_begins_below_counts_from_its_first_evaluation() -> None:
    scratch = make_run("scratch", 0, [2.0, 1.0, 0.9], 0.9)
    below = make_run("pretrained", 0, [0.5, 0.4, 0.3], 0.3)
    assert make_task("t", [scratch, below], steps=200).speedup == pytest.approx(200 / 100)


def test_seeds_evaluated_at_different_steps_are_averaged_on_what_all_cover() -> None:
    task = make_task(
        "t",
        [
            make_run("scratch", 0, [4.0, 2.0], 1.0, [0, 200]),
            make_run("scratch", 1, [3.0, 1.0], 1.0, [100, 200]),
        ],
    )
    steps, errors = task.mean_curve("scratch")
    assert steps.tolist() == [100, 200]
    assert errors.tolist() == [3.0, 1.5]


def test_a_diverged_run_gives_no_number_and_null_in_json(tmp_path: Path) -> None:
    runs = [make_run("scratch", 0, [2.0, 1.0], 1.0), make_run("pretrained", 0, [2.0, math.nan], math.nan)]
    results = StudyResults(
        tasks=[make_task("t", runs, steps=100)], pretraining=None, settings={}, times={}, environment={}
    )
    assert results.tasks[0].improvement_percent is None
    assert results.mean_speedup is None
    results.write(tmp_path / "r.json")
    again = StudyResults.read(tmp_path / "r.json")
    assert math.isnan(again.tasks[0].of("pretrained")[0].test_error)


def test_means(results: StudyResults) -> None:
    slower = make_task(
        "slow",
        [
            make_run("scratch", 0, [2.0, 1.0, 0.6, 0.5, 0.4], 0.4),
            make_run("pretrained", 0, [2.0, 1.0, 0.9, 0.85, 0.8], 0.8),
        ],
    )
    mixed = StudyResults(tasks=[pair("alpha"), slower], pretraining=None, settings={}, times={}, environment={})
    assert mixed.mean_improvement_percent == pytest.approx((25.0 - 100.0) / 2)
    assert mixed.mean_speedup == pytest.approx(math.sqrt(400 / 150 * 150 / 400))
    assert results.mean_improvement_spread == pytest.approx(pair("a").improvement_spread)


def test_results_json(results: StudyResults, tmp_path: Path) -> None:
    path = tmp_path / "new" / "results.json"
    results.write(path)
    found = json.loads(path.read_text())
    assert {"tasks", "mean_improvement_percent", "mean_speedup", "settings", "seeds", "times", "how"} <= set(found)
    wanted = {"name", "property", "unit", "scratch", "pretrained", "improvement_percent", "speedup"}
    assert all(wanted <= set(task) for task in found["tasks"])
    assert found["seeds"] == [0, 1]
    again = StudyResults.read(path)
    assert again == results
    assert again.to_dict() == results.to_dict()
    assert [p.name for p in path.parent.iterdir()] == ["results.json"]


def test_reading_something_else_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"tasks": 3}')
    for name in ("x.json", "absent.json"):
        with pytest.raises(EutecticError, match=r"results\.json"):
            StudyResults.read(tmp_path / name)


def test_curves_must_make_sense() -> None:
    with pytest.raises(ValueError, match="ascend"):
        Curve([0, 0], [0.0, 1.0], [1.0, 1.0])
    with pytest.raises(ValueError, match="curve of"):
        Curve([0], [0.0], [])


def test_summary_of_a_store(tmp_path: Path) -> None:
    structures = [
        slab("Cu"),
        slab("Cu"),
        slab("Pt"),
        Structure(numbers=np.array([1]), positions=np.zeros((1, 3))),
    ]
    summary = summarise(make_store(tmp_path, "few", structures), 40)
    assert (summary.n_structures, summary.n_groups, summary.n_atoms) == (4, 2, 43)
    assert summary.elements == {1: 4, 8: 3, 29: 24, 78: 12}
    assert summary.sizes == {1: 1, 14: 3}
    assert len(summary.examples) == 4


def test_structures_survive_json() -> None:
    there = slab()
    back = structure_from_dict(json.loads(json.dumps(structure_to_dict(there))))
    np.testing.assert_allclose(back.positions, there.positions, atol=6e-4)
    np.testing.assert_array_equal(back.tags, there.tags)
    np.testing.assert_array_equal(back.pbc, there.pbc)
