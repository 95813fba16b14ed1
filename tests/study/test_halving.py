"""Successive halving: what it costs, and that it chooses as whole runs do where one rate is plainly best."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console
from runs import GRAPH

from eutectic import workflows
from eutectic.atoms import EutecticError, Interrupted
from eutectic.data.store import Store
from eutectic.study import halving
from eutectic.study.compare import choose, choose_for_one, grid_of, run_study
from eutectic.study.halving import LEAST, SHARE, cost, in_words, rounds, shortened, spent
from eutectic.train.settings import FinetuneSettings

PAINN = {"name": "painn", "settings": {"width": 16, "layers": 1, "cutoff": 4.0}}
QUIET = Console(quiet=True)


def settings_of(store: Store, steps: int = 60, **more: object) -> FinetuneSettings:
    return FinetuneSettings.model_validate(
        {
            "data": {"store": str(store.path), "split": "random", "train": 40, "validation": 12, "test": 12},
            "targets": ["energy"],
            "start": "scratch",
            "backbone": PAINN,
            "graph": GRAPH,
            "train": {"steps": steps, "batch_size": 8, "threads": 1, "accelerator": "cpu"},
        }
        | more
    )


@pytest.mark.parametrize("candidates", range(2, 13))
@pytest.mark.parametrize("steps", [1, 19, 60, 500, 20_000])
def test_cost_is_bounded(candidates: int, steps: int) -> None:
    plan = rounds(candidates, steps)
    assert cost(plan) <= candidates * steps
    if len(plan) > 1:
        # An equal part of half a run for each round, but for rounds that would be too short to tell anything.
        for one in plan:
            assert one.candidates * one.steps <= max(SHARE * steps / len(plan), one.candidates * LEAST)
    assert [one.candidates for one in plan] == sorted((one.candidates for one in plan), reverse=True)
    assert [one.steps for one in plan] == sorted(one.steps for one in plan)
    if steps >= 20_000:
        assert cost(plan) <= SHARE * steps


def test_rounds_by_hand() -> None:
    # Half of 600 steps in two rounds of 150: 3 × 50, then 2 × 75.
    assert [(one.candidates, one.steps) for one in rounds(3, 600)] == [(3, 50), (2, 75)]
    assert "3 of 50 steps, then 2 of 75 steps, 300 steps in total (full-length runs: 1,800)" in in_words(
        rounds(3, 600), 1, 3, 600
    )


def test_a_short_run_is_warmed_up_in_a_fifth_of_it(molecules: Store) -> None:
    short = shortened(settings_of(molecules, train={"epochs": 30}), 50)
    assert (short.train.steps, short.train.epochs, short.train.evaluate_every) == (50, None, 25)
    assert short.optimiser.warmup_steps == 10


def test_choice_is_that_of_whole_runs_and_steps_are_counted(molecules: Store, tmp_path: Path) -> None:
    base = settings_of(molecules, steps=120)
    grid = grid_of(base, [1e-8, 3e-3, 1e-7], [])
    found = {}
    for kind in (True, False):
        trials, chosen, swept = choose(
            base,
            None,
            grid,
            tmp_path / str(kind),
            n_train=40,
            starts=["scratch"],
            halving=kind,
            workers=1,
            console=QUIET,
        )
        found[kind] = chosen["scratch"]["learning_rate"], swept
        assert spent({"": trials}) == swept["steps"] == swept["planned_steps"]
        assert swept["steps_of_whole_runs"] == 360
    assert found[True][0] == found[False][0] == 3e-3
    assert found[True][1]["steps"] == 3 * 20 + 2 * 20
    assert found[False][1]["steps"] == 360


def test_an_interrupted_choice_goes_on(molecules: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, rates = settings_of(molecules, steps=120), [1e-8, 3e-3, 1e-7]
    calls = 0
    real = halving.run_all

    def stops_at_second(*arguments: object, **more: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise Interrupted("stopped")
        return real(*arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(halving, "run_all", stops_at_second)
    with pytest.raises(Interrupted):
        run_study(
            base, tmp_path, model=None, starts=["scratch"], seeds=1, learning_rates=rates, workers=1, console=QUIET
        )
    kept = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("result.json")}
    assert len(kept) == 3
    monkeypatch.undo()
    results = run_study(
        base, tmp_path, model=None, starts=["scratch"], seeds=1, learning_rates=rates, workers=1, console=QUIET
    )
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    assert results.tasks[0].runs[0].learning_rate == 3e-3
    assert [t.steps for t in results.tasks[0].trials] == [20, 20, 20, 20, 20]


def test_one_finetuning_with_several_rates(molecules: Store, tmp_path: Path) -> None:
    base = settings_of(molecules, steps=60)
    result = workflows.finetune(base, out=tmp_path / "run", learning_rates=[1e-8, 3e-3], quiet=True)
    assert (result.learning_rate, result.total_steps) == (3e-3, 60)
    before = (tmp_path / "run" / "result.json").stat().st_mtime_ns
    again = workflows.finetune(base, out=tmp_path / "run", learning_rates=[1e-8, 3e-3], quiet=True)
    assert again.test_error == result.test_error
    assert (tmp_path / "run" / "result.json").stat().st_mtime_ns == before


def test_an_effort_has_rates_of_its_own(molecules: Store, tmp_path: Path) -> None:
    with pytest.raises(EutecticError, match="effort"):
        choose_for_one(
            settings_of(molecules, effort="seconds", start="eutectic-small", backbone=None, graph=None),
            tmp_path,
            [1e-3, 2e-3],
            [],
            console=None,
        )
