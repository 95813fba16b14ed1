"""Our results beside the published ones: the paper's rules on made-up runs with a known answer, on every surface."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from eutectic import cli
from eutectic.atoms import EutecticError
from eutectic.report.benchmark_page import COLOURS, markdown
from eutectic.study import runs
from eutectic.study.benchmark import (
    Benchmark,
    BenchmarkRun,
    Outcome,
    improvement,
    our_summary,
    published_summary,
    rows,
    table_as_json,
)
from eutectic.study.benchmark_tasks import FOLDS, TASKS
from eutectic.study.results import Start
from eutectic.workflows import write_benchmark


def run(error: float, start: Start = "pretrained", split: str = "paper", seed: int = 0) -> BenchmarkRun:
    return BenchmarkRun(
        start=start,
        split=split,
        seed=seed,
        error=error,
        trained_on=950,
        validated_on=50,
        tested_on=99_000,
        steps=30_400,
        seconds=1.0,
        folder="somewhere",
    )


def as_published(scale: float = 1.0) -> Benchmark:
    """What JMP-L and GN-OC-L gave, errors of the former times `scale`; the rest of five folds makes up the mean."""
    outcomes = {}
    for name, task in TASKS.items():
        published = task.published
        assert published.scratch_l is not None
        made = [run(published.scratch_l, "scratch", task.protocol.splits[0])]
        if task.five_folds is None:
            made.append(run(scale * published.jmp_l))
        else:
            rest = (5 * task.five_folds.jmp_l - published.jmp_l) / 4
            errors = [published.jmp_l, rest, rest, rest, rest]
            made += [run(scale * e, split=fold) for e, fold in zip(errors, FOLDS, strict=True)]
        outcomes[name] = Outcome(task=name, runs=tuple(made))
    return Benchmark(model="jmp-l", outcomes=outcomes)


def test_jmp_itself_gets_what_the_paper_states() -> None:
    # A little less, so that rounding does not decide ties.
    ours, published = our_summary(as_published(1 - 1e-9)), published_summary()
    assert ours["best_before"] == {"count": 34, "of": 40}
    assert (published["jmp_l_best"]["count"], published["jmp_l_best"]["count_fold_0"]) == (34, 33)
    # On the split that both have: fold_0.
    assert ours["over_scratch"]["mean"] == pytest.approx(published["jmp_l_over_scratch_l"]["mean"])
    assert round(ours["over_scratch"]["mean"]) == 59
    assert ours["over_scratch"]["by_family"]["rmd17"] == pytest.approx(78.1, abs=0.06)
    assert ours["jmp_l"] == {"count": 40, "of": 40}
    # Known and higher than JMP-L's: none; as good: toluene, SPICE, phonons, perovskites, mp_gap, QMOF.
    assert ours["best_known"] == {"count": 7, "of": sum(t.best_known is not None for t in TASKS.values())}
    larger = our_summary(as_published(0.5), as_published())
    assert larger["over_smaller"]["mean"] == pytest.approx(50)
    assert larger["over_smaller"]["model"] == "jmp-l"


def test_means_over_folds_and_seeds_by_hand() -> None:
    outcome = Outcome(
        task="matbench:jdft2d",
        runs=(
            *(run(10.0 + i, split=fold) for i, fold in enumerate(FOLDS)),
            run(30.0, split="fold_0", seed=1),
            run(40.0, "scratch", "fold_1"),
        ),
    )
    # Fold 0: (10 + 30) / 2; then 11, 12, 13, 14.
    assert outcome.error("pretrained") == pytest.approx((20 + 11 + 12 + 13 + 14) / 5)
    assert outcome.error("pretrained", FOLDS[:1]) == 20
    assert outcome.improvement() == pytest.approx(100 * (1 - 11 / 40))
    judged = outcome.judged()
    assert judged is not None
    assert judged[1] is TASKS["matbench:jdft2d"].five_folds
    only_first = Outcome(task="matbench:jdft2d", runs=(run(20.0, split="fold_0"), run(9.0, split="fold_3")))
    assert only_first.judged() == (20.0, TASKS["matbench:jdft2d"].published)
    assert Outcome(task="matbench:jdft2d", runs=(run(9.0, split="fold_3"),)).judged() is None
    assert (improvement(None, 1.0), improvement(1.0, None), improvement(1.0, 4.0)) == (None, None, 75.0)


def test_shortened_runs_are_not_counted() -> None:
    short = Outcome(task="qm9:gap", runs=(run(1.0),), departures=("10 steps",))
    ours = our_summary(Benchmark(model="m", outcomes={"qm9:gap": short}))
    assert ours["best_before"] == {"count": 0, "of": 0}
    (row,) = [r for r in rows(Benchmark(outcomes={"qm9:gap": short})) if r["runs"]]
    assert (row["ours"], row["departures"]) == (1.0, ["10 steps"])


def test_later_calls_add_to_earlier_ones() -> None:
    first = Outcome(task="qm9:gap", runs=(run(1.0),))
    second = Outcome(task="qm9:gap", runs=(run(2.0, "scratch"),))
    assert [r.start for r in first.merged(second).runs] == ["pretrained", "scratch"]
    # Of another protocol: only the newer ones, which must not be averaged with the older.
    other = Outcome(task="qm9:gap", runs=(run(3.0, split="random"),), departures=("split random",))
    assert first.merged(other).runs == other.runs
    failed = Outcome(task="qm9:gap", problem={"where": "a", "given": "b", "expected": "c", "fix": "d"})
    assert (first.merged(failed).runs, first.merged(failed).problem) == (first.runs, failed.problem)


def test_every_surface(tmp_path: Path) -> None:
    results = as_published()
    problem = {"where": "qmof:gap", "given": "not prepared", "expected": "x", "fix": "eutectic data prepare qmof"}
    results = Benchmark(
        model="<b>jmp-l", outcomes={**results.outcomes, "qmof:gap": Outcome(task="qmof:gap", problem=problem)}
    )
    results.write(tmp_path)
    assert Benchmark.read(tmp_path) == results
    page = write_benchmark(tmp_path).read_text()
    assert "<b>jmp-l" not in page
    assert "eutectic data prepare qmof" in page
    assert all(colour in page for colour in COLOURS.values())
    written = json.loads((tmp_path / "table.json").read_text())
    assert len(written["tasks"]) == 40
    table = (tmp_path / "table.md").read_text()
    assert "| qm9:gap | meV | 19.1 | 40.6 | +53.0 % | 19.1 | 23.1 | 40.6 | 38.5 | 22 |  |" in table
    assert "+58.7 %" in table
    shown = CliRunner().invoke(cli.app, ["benchmark", "--table", "--out", str(tmp_path)])
    assert shown.stdout == table


def test_the_published_table_alone(tmp_path: Path) -> None:
    text = markdown(table_as_json(Benchmark()))
    assert "| rmd17:toluene | meV/Å | 1.5 | 2.3 | 7.2 | 6.8 | 1.5 | 1.5 |" in text
    assert "34 of 40" in text
    result = CliRunner().invoke(cli.app, ["benchmark", "--table", "--json", "--out", str(tmp_path / "none")])
    values = json.loads(result.stdout)
    assert (values["ours"], values["published"]["jmp_l_best"]["count"]) == (None, 34)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("text", ["", "[]", '{"format": "other"}', '{"format": "eutectic-benchmark-1", "tasks": 3}'])
def test_damaged_results(tmp_path: Path, text: str) -> None:
    (tmp_path / "benchmark.json").write_text(text)
    with pytest.raises(EutecticError, match=r"benchmark\.json"):
        Benchmark.read(tmp_path)


def test_options_that_contradict_each_other() -> None:
    result = CliRunner().invoke(cli.app, ["benchmark", "qm9:gap", "--steps", "3", "--epochs", "2"])
    assert isinstance(result.exception, EutecticError)
    assert CliRunner().invoke(cli.app, ["benchmark"]).exception is not None


def test_runs_are_spread_over_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    assert runs.gpus() == ["4", "7"]
    monkeypatch.setattr(runs._stop, "listen", lambda: None)
    taken = []
    for number in (1, 2, 3):
        process = type("Process", (), {"_identity": (number,)})()
        monkeypatch.setattr("multiprocessing.current_process", lambda p=process: p)
        runs._begin(["4", "7"])
        taken.append(runs.os.environ["CUDA_VISIBLE_DEVICES"])
    assert taken == ["7", "4", "7"]
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert runs.gpus() == []
