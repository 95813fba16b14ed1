"""Folds test each structure once and divide no group; sizes are nested; both in one study."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from runs import GRAPH

from eutectic import workflows
from eutectic.atoms import EutecticError
from eutectic.data.splits import folds_of, leakage, split
from eutectic.data.store import Store
from eutectic.report.tables import comparison_table
from eutectic.study.cases import cases_of
from eutectic.study.results import StudyResults
from eutectic.train.settings import FinetuneSettings


def settings_of(store: Store, name: str = "random", **data: object) -> FinetuneSettings:
    return FinetuneSettings.model_validate(
        {
            "data": {"store": str(store.path), "split": name, **data},
            "targets": ["energy"],
            "start": "scratch",
            "backbone": {"name": "painn", "settings": {"width": 16, "layers": 1, "cutoff": 4.0}},
            "graph": GRAPH,
            "train": {"steps": 4, "batch_size": 8, "threads": 1, "accelerator": "cpu"},
        }
    )


@pytest.mark.parametrize("kind", ["random", "group"])
@pytest.mark.parametrize("count", [2, 3, 5])
def test_folds_partition_the_structures(molecules: Store, kind: str, count: int) -> None:
    groups = len(set(molecules.column("group").tolist()))
    if kind == "group" and groups < 2 * count:
        with pytest.raises(EutecticError, match="random"):
            split(molecules, f"group_fold_0_of_{10 * groups}")
    names = folds_of(molecules, count, kind)
    parts = [split(molecules, name) for name in names]
    tested = np.concatenate([part.test for part in parts])
    assert sorted(tested) == list(range(len(molecules)))
    for part in parts:
        every = np.concatenate([part.train, part.validation, part.test])
        assert sorted(every) == list(range(len(molecules)))
        assert min(len(part.train), len(part.validation), len(part.test)) > 0
        if kind == "group":
            leaks = leakage(molecules, part)
            assert leaks["test"].in_shared_groups == leaks["validation"].in_shared_groups == 0
            assert not set(molecules.column("group")[part.test]) & set(molecules.column("group")[part.validation])


def test_sizes_are_nested_with_the_same_test(molecules: Store) -> None:
    for name, folds in (("random", None), ("random", 3)):
        cases = cases_of(settings_of(molecules, name), molecules, folds=folds, sizes=[40, 10, 20])
        for fold in {case.fold for case in cases}:
            ten, twenty, forty = (case.split for case in cases if case.fold == fold)
            assert [len(one.train) for one in (ten, twenty, forty)] == [10, 20, 40]
            assert set(ten.train) < set(twenty.train) < set(forty.train)
            assert np.array_equal(ten.test, forty.test)


@pytest.mark.parametrize(
    ("given", "data", "says"),
    [
        ({"folds": 1}, {}, "at least 2"),
        ({"folds": 97}, {}, "folds of 96 structures"),
        ({"sizes": [10, 500]}, {}, "at most"),
        ({"sizes": [0]}, {}, "positive"),
        ({"sizes": [10]}, {"train": 10}, "leave out --n-train"),
    ],
)
def test_bad_input_has_four_parts(
    molecules: Store, given: dict[str, object], data: dict[str, object], says: str
) -> None:
    with pytest.raises(EutecticError, match=says) as error:
        cases_of(settings_of(molecules, **data), molecules, **given)  # type: ignore[arg-type]
    assert all((error.value.where, error.value.given, error.value.expected, error.value.fix))


def test_a_study_of_folds_and_sizes(molecules: Store, tmp_path: Path) -> None:
    given = {"out": tmp_path, "model": None, "starts": ["scratch"], "folds": 2, "sizes": [30, 38], "workers": 1}
    results = workflows.compare(settings_of(molecules), quiet=True, **given)
    assert [task.n_train for task in results.tasks] == [30, 38]
    assert [[run.fold for run in task.runs] for task in results.tasks] == [[0, 1], [0, 1]]
    assert results.tasks[0].n_test == len(molecules)
    assert results.tasks[0].spread("scratch") == pytest.approx(
        np.std([run.test_error for run in results.tasks[0].runs], ddof=1)
    )
    assert results.is_learning_curve
    assert results.repeats == "2 folds"
    again = StudyResults.read(tmp_path / "results.json")
    assert again.to_dict() == results.to_dict()
    page = (tmp_path / "report.html").read_text()
    assert "training structures" in page
    assert "over 2 folds" in page
    table = Console(width=80, record=True, quiet=False, file=io.StringIO())
    table.print(comparison_table(results))
    assert "over 2 folds" in table.export_text()
