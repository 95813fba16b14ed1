"""The 40 tasks and their published errors: what the paper states about them comes out of the table."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from typer.testing import CliRunner

from eutectic import cli
from eutectic.atoms import PROPERTIES, EutecticError, units
from eutectic.data.catalogue import native
from eutectic.data.splits import paper_splits
from eutectic.study.benchmark_tasks import FAMILIES, FOLDS, TASKS, Columns, chosen

FIELDS = {
    *("family", "property", "unit", "jmp_l", "jmp_s", "scratch_l", "scratch_s", "best_before", "best_known", "source")
}


def test_forty_tasks_of_known_data() -> None:
    assert Counter(task.family for task in TASKS.values()) == {
        "qm9": 12,
        "rmd17": 10,
        "md22": 7,
        "spice": 2,
        "matbench": 8,
        "qmof": 1,
    }
    for task in TASKS.values():
        assert task.data in native()
        # Every one has the paper's split, and errors in a unit of its property.
        assert task.data in paper_splits() or task.family in paper_splits()
        shown = PROPERTIES[task.property].display_unit
        if shown != task.unit:
            assert units.conversion(shown, task.unit, where="here").factor == pytest.approx(1e-3)
        assert task.protocol.splits == (FOLDS if task.family == "matbench" else ("paper",))
        assert (task.property == "forces") == (task.protocol.forces is not None)
        assert task.best_known is not None or "not read" in task.source


def test_batch_sizes_by_hand() -> None:
    sizes = {name: task.protocol.batch_size for name, task in TASKS.items()}
    assert {sizes[name] for name in sizes if name.startswith("qm9:")} == {48}
    assert (sizes["rmd17:uracil"], sizes["md22:Ac-Ala3-NHMe"], sizes["spice:dipeptides"]) == (1, 2, 2)
    assert [sizes[f"matbench:{n}"] for n in ("jdft2d", "phonons", "mp_gap", "mp_e_form")] == [3, 8, 2, 6]


def _mean(columns: list[Columns], new: str, old: str) -> float:
    return float(np.mean([100 * (1 - getattr(c, new) / getattr(c, old)) for c in columns]))


def test_what_the_paper_states() -> None:
    columns = [task.published for task in TASKS.values()]
    assert round(_mean(columns, "jmp_l", "scratch_l")) == 59
    assert round(_mean(columns, "jmp_l", "jmp_s")) == 21
    assert round(_mean(columns, "scratch_l", "scratch_s")) == -8


def test_improvement_by_family() -> None:
    expected = {"qm9": 49.7, "rmd17": 78.1, "md22": 61.0, "spice": 74.7, "matbench": 45.1, "qmof": 33.3}
    for family in FAMILIES:
        found = _mean([task.published for task in chosen([family])], "jmp_l", "scratch_l")
        assert found == pytest.approx(expected[family], abs=0.06)


def test_best_before_is_of_the_models_before() -> None:
    gap, toluene, jdft2d = TASKS["qm9:gap"].published, TASKS["rmd17:toluene"].published, TASKS["matbench:jdft2d"]
    assert (gap.best_before, gap.best_before_by) == (22.0, "GNS+TAT+NN")
    assert (toluene.best_before, toluene.best_before_by) == (1.5, "MACE")
    assert (jdft2d.published.best_before_by, jdft2d.judged.best_before_by) == ("coGN", "MODNet")
    assert TASKS["spice:dipeptides"].published.best_before is None


def test_names() -> None:
    assert [task.name for task in chosen(["RMD17:aspirin", "qm9:dipole_moment"])] == ["qm9:mu", "rmd17:aspirin"]
    assert len(chosen(["all"])) == 40
    assert len(chosen(["matbench", "matbench:phonons"])) == 8
    with pytest.raises(EutecticError, match="did you mean 'qm9:gap'"):
        chosen(["qm9:gapp"])
    with pytest.raises(EutecticError, match="eutectic benchmark --list"):
        chosen([])


def test_list() -> None:
    result = CliRunner().invoke(cli.app, ["benchmark", "--list", "--json"])
    rows = json.loads(result.stdout)
    assert len(rows) == 40
    assert all(row.keys() >= FIELDS for row in rows)
    phonons = next(row for row in rows if row["name"] == "matbench:phonons")
    assert (phonons["jmp_l"], phonons["five_folds"]["jmp_l"], phonons["unit"]) == (21.28, 20.57, "1/cm")
    shown = CliRunner().invoke(cli.app, ["benchmark", "spice", "--list"]).stdout
    assert "spice:dipeptides" in shown
    assert "3.64" in shown
    assert "qm9" not in shown


def test_list_needs_no_torch() -> None:
    code = "import sys; import eutectic.study.benchmark_tasks; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
