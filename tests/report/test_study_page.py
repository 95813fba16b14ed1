"""Reports are one file that loads and runs nothing, name everything, and survive hostile names."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from ase.build import molecule
from made_up import make_run, make_task, slab
from pages import HOSTILE, check_self_contained
from rich.console import Console

from eutectic.atoms import Structure
from eutectic.report import formatting
from eutectic.report.study_page import write_comparison_page, write_demo_page
from eutectic.report.tables import comparison_table
from eutectic.study.results import PretrainingSummary, StudyResults


def test_demo_report(results: StudyResults, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_demo_page(path, results, {"alpha": [Structure.from_ase(molecule("H2O"))]})
    text, page = check_self_contained(path)
    assert results.pretraining is not None
    for name in ["alpha", "beta", *(s.name for s in results.pretraining.sets)]:
        assert name in text
    assert page.tags.count("figcaption") == page.tags.count("figure") > 10
    assert "25.0 %" in text
    assert "2.7×" in text
    rows = re.findall(r"<tr[^>]*>.*?</tr>", text[: text.index("</table>")], flags=re.DOTALL)
    assert "mean" in rows[-1]
    assert "+25.0 %" in rows[-1]


def test_the_same_results_give_the_same_page(results: StudyResults, tmp_path: Path) -> None:
    for name in ("a.html", "b.html"):
        write_comparison_page(tmp_path / name, results.tasks[0], examples=[slab()])
    assert (tmp_path / "a.html").read_text() == (tmp_path / "b.html").read_text()


def test_hostile_names_are_only_text(results: StudyResults, tmp_path: Path) -> None:
    assert results.pretraining is not None
    task = dataclasses.replace(
        results.tasks[0],
        name=HOSTILE,
        title=HOSTILE,
        dataset=HOSTILE,
        property=HOSTILE,
        symbol=HOSTILE,
        unit=HOSTILE,
        level_of_theory=HOSTILE,
        metric=HOSTILE,
    )
    card = dataclasses.replace(
        results.pretraining.sets[0].card,
        name=HOSTILE,
        title=HOSTILE,
        domain=HOSTILE,
        level_of_theory=HOSTILE,
        licence=HOSTILE,
        citation=HOSTILE,
        source=HOSTILE,
        notes=(HOSTILE,),
    )
    sets = [dataclasses.replace(results.pretraining.sets[0], card=card)]
    rename = {"some_molecules": HOSTILE}
    pretraining = PretrainingSummary(
        sets=sets,
        journal=[
            {**r, "loss_by_set": {rename.get(k, k): v for k, v in r["loss_by_set"].items()}}
            for r in results.pretraining.journal
        ],
        validation=[
            {**r, "by_set": {rename.get(k, k): v for k, v in r["by_set"].items()}}
            for r in results.pretraining.validation
        ],
        drawn={HOSTILE: 1},
        seconds=1.0,
        n_parameters=1,
        backbone=HOSTILE,
    )
    hostile = StudyResults(
        tasks=[task],
        pretraining=pretraining,
        settings={HOSTILE: HOSTILE},
        times={HOSTILE: 1.0},
        environment={HOSTILE: [HOSTILE]},
    )
    write_demo_page(tmp_path / "h.html", hostile)
    _, page = check_self_contained(tmp_path / "h.html")
    assert all(a.startswith(("#", "data:")) for a in page.addresses)
    console = Console(width=400)
    with console.capture() as capture:
        console.print(comparison_table(hostile))
    assert "<script>" in capture.get()
    assert "[red]" in capture.get()


@pytest.mark.parametrize("start", ["pretrained", "scratch"])
def test_one_start_alone(start: str, tmp_path: Path) -> None:
    run = make_run(start, 0, [1.0, 0.5, 0.4], 0.4)  # type: ignore[arg-type]
    task = dataclasses.replace(make_task("mine", [run], steps=200), trials=[])
    assert task.improvement_percent is None
    assert task.speedup is None
    path = tmp_path / "report.html"
    write_comparison_page(path, task, settings={"a": {"b": 1}}, examples=[slab()])
    text, _ = check_self_contained(path)
    assert "mine" in text
    assert "improvement" not in text.lower()
    assert "speed-up" not in text.lower()
    other = "from scratch" if start == "pretrained" else "pre-trained"
    assert other not in re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL)


def test_both_starts_of_one_task(results: StudyResults, tmp_path: Path) -> None:
    write_comparison_page(tmp_path / "r.html", results.tasks[0])
    text, _ = check_self_contained(tmp_path / "r.html")
    assert "+25.0 %" in text


def test_odd_numbers_can_be_drawn(tmp_path: Path) -> None:
    nan = float("nan")
    for errors, test_error in (([1.0], 1.0), ([0.0, 0.0], 0.0), ([1.0, nan, nan], nan), ([1e-9, 1e9], 1e9)):
        runs = [make_run("scratch", 0, errors, test_error), make_run("pretrained", 0, errors, test_error)]
        path = tmp_path / "odd.html"
        write_comparison_page(path, make_task("odd", runs, steps=200))
        check_self_contained(path)


def test_terminal_table_fits_80_columns(results: StudyResults) -> None:
    console = Console(width=80)
    with console.capture() as capture:
        console.print(comparison_table(results))
    lines = capture.get().splitlines()
    assert max(map(len, lines)) <= 80
    assert any("alpha" in line and "0.400 ± 0.028" in line and "+25.0" in line for line in lines)
    means = [i for i, line in enumerate(lines) if "mean" in line and "2.7×" in line]
    assert means
    assert means[0] > max(i for i, line in enumerate(lines) if "beta" in line)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.12345, "0.123"),
        (0.9996, "1.00"),
        (1234.5, "1230"),
        (-0.5, "−0.500"),
        (float("nan"), "–"),
        (1e-7, "1.00e−7"),
    ],
)
def test_significant(value: float, text: str) -> None:
    assert formatting.significant(value).replace("e−07", "e−7") == text


def test_wording() -> None:
    assert formatting.measured(0.1234, 0.0046) == "0.123 ± 0.005"
    assert formatting.percent(-4.04) == "−4.0 %"
    assert formatting.duration(59.7) == "1 min 00 s"
    assert formatting.duration(7810.0) == "2 h 10 min"
    assert formatting.times(2.44) == "2.4×"
    assert formatting.count(12345) == "12\u202f345"
