"""The benchmark: every task end to end on a small native file, Matbench's folds and record, missing data."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmark_sets import write_matbench, write_source
from rich.console import Console
from runs import settings_of
from typer.testing import CliRunner

from eutectic import cli
from eutectic.atoms import EutecticError
from eutectic.data.catalogue import prepare
from eutectic.data.datasets import matbench
from eutectic.data.store import Store
from eutectic.models.gemnet_oc import GemNetOCSettings
from eutectic.recipes.benchmark import Choices, benchmark_settings, run_benchmark
from eutectic.study.benchmark import Benchmark
from eutectic.study.benchmark_tasks import FOLDS, TASKS, BenchmarkTask, chosen
from eutectic.study.matbench_record import digest
from eutectic.train.finetune_result import read_result
from eutectic.train.pretrain import pretrain
from eutectic.workflows import write_benchmark

ONE_PER_FAMILY = (
    "qm9:gap",
    "rmd17:ethanol",
    "md22:Ac-Ala3-NHMe",
    "spice:dipeptides",
    "matbench:phonons",
    "qmof:gap",
)
SHORT = Choices(steps=1, split="random", n_train=4, n_validation=1, n_test=1)
QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def model(molecules: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model."""
    folder = tmp_path_factory.mktemp("benchmark") / "model"
    pretrain(settings_of({"molecules": molecules}, {"steps": 1, "evaluate_every": 1}), folder)
    return folder / "model"


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs one after the other here: to start a process takes longer than they do."""

    def one_by_one(function: Callable[..., Any], calls: Sequence[tuple[Any, ...]], workers: int, **_: Any) -> list[Any]:
        return [function(*arguments) for arguments in calls]

    monkeypatch.setattr("eutectic.study.runs.run_in_processes", one_by_one)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty folder for prepared data."""
    folder = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EUTECTIC_DATA", str(folder))
        yield folder


def ready(task: BenchmarkTask, home: Path) -> None:
    """Prepare the data of a task from a small native file."""
    if not (home / "stores" / Path(*task.data.split(":"))).exists():
        source = write_source(task, home / "native" / task.data.replace(":", "-"))
        prepare(task.data, source, workers=1, progress=False)


def end_to_end(names: list[str], model: Path, home: Path, out: Path) -> Benchmark:
    """One step of each task, from its native file to its error."""
    tasks = chosen(names)
    for task in tasks:
        ready(task, home)
    results = run_benchmark(tasks, out, model=model, choices=SHORT, workers=1, console=QUIET)
    for task in tasks:
        outcome = results.outcomes[task.name]
        assert outcome.problem is None, outcome.problem
        (run,) = outcome.runs
        assert (run.trained_on, run.validated_on, run.tested_on, run.steps) == (4, 1, 1, 1)
        assert np.isfinite(run.error)
        result = read_result(out / run.folder)
        assert (result.property, result.start) == (task.property, "pretrained")
        assert (out / run.folder / "model" / "model.safetensors").is_file()
        # eV are shown in meV; three tasks are quoted in eV.
        assert result.test_error is not None
        factor = 1e-3 if task.name in ("matbench:perovskites", "matbench:mp_gap", "qmof:gap") else 1.0
        assert run.error == pytest.approx(factor * result.test_error)
        # Of another split: not to be compared with the published errors.
        assert "split random" in outcome.departures
    return results


@pytest.mark.usefixtures("in_this_process")
def test_one_task_of_each_family(model: Path, home: Path, tmp_path: Path) -> None:
    results = end_to_end(list(ONE_PER_FAMILY), model, home, tmp_path)
    page = write_benchmark(tmp_path).read_text()
    assert all(name in page for name in ONE_PER_FAMILY)
    table = (tmp_path / "table.md").read_text()
    assert sum("†" in line for line in table.splitlines() if line.startswith("| ")) == len(ONE_PER_FAMILY)
    values = json.loads((tmp_path / "table.json").read_text())
    assert {row["name"] for row in values["tasks"] if row["ours"] is not None} == set(ONE_PER_FAMILY)
    assert values["ours"]["best_before"] == {"count": 0, "of": 0}
    # The same again reads everything back, and keeps other tasks.
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")}
    again = run_benchmark(chosen(["qm9:gap"]), tmp_path, model=model, choices=SHORT, workers=1, console=QUIET)
    assert again.outcomes == results.outcomes
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")} == times
    with pytest.raises(EutecticError, match="the benchmark of"):
        run_benchmark(chosen(["qm9:gap"]), tmp_path, model="eutectic-small", choices=SHORT, console=QUIET)


@pytest.mark.slow
@pytest.mark.usefixtures("in_this_process")
def test_all_other_tasks(model: Path, home: Path, tmp_path: Path) -> None:
    results = end_to_end([name for name in TASKS if name not in ONE_PER_FAMILY], model, home, tmp_path)
    assert len(results.outcomes) == 34


def test_published_settings(model: Path, home: Path) -> None:
    for name in ("qm9:gap", "rmd17:ethanol", "md22:Ac-Ala3-NHMe", "matbench:phonons"):
        ready(TASKS[name], home)
    random = Choices(split="random")
    gap = benchmark_settings(TASKS["qm9:gap"], model=model, split="random", choices=random)
    assert (gap.train.batch_size, gap.train.epochs, gap.optimiser.learning_rate) == (48, 32, 8e-5)
    assert (gap.optimiser.betas, gap.optimiser.weight_decay, gap.optimiser.ema_decay) == ((0.9, 0.95), 0.1, 0.0)
    # An epoch of 20 molecules is one step of a batch of 48: 5 epochs of warm-up, a validation after each.
    assert (gap.optimiser.warmup_steps, gap.train.evaluate_every) == (5, 1)
    assert (gap.targets["gap"].head.layers, gap.targets["gap"].head.pooling) == (4, "sum")
    assert (gap.head_from, gap.graph) == (None, None)
    ethanol = benchmark_settings(TASKS["rmd17:ethanol"], model=model, split="random", choices=random)
    assert ethanol.targets["forces"].head.kind == "gradient_forces"
    assert ethanol.targets["energy"].weight == 0.0
    # 20 training frames one by one.
    assert (ethanol.train.batch_size, ethanol.optimiser.warmup_steps) == (1, 5 * ethanol.train.evaluate_every)
    peptide = benchmark_settings(TASKS["md22:Ac-Ala3-NHMe"], model=model, split="random", choices=random)
    assert (set(peptide.targets), peptide.targets["forces"].head.kind) == ({"forces"}, "direct_forces")
    phonons = benchmark_settings(TASKS["matbench:phonons"], model=model, split="random", choices=random)
    assert phonons.targets["last_phdos_peak"].head.pooling == "max"
    other = Choices(split="random", steps=64, learning_rate=5e-6, settings={"optimiser": {"weight_decay": 0.0}})
    changed = benchmark_settings(TASKS["qm9:gap"], model=model, start="scratch", split="random", choices=other)
    assert (changed.train.steps, changed.optimiser.warmup_steps, changed.optimiser.learning_rate) == (64, 10, 5e-6)
    assert (changed.start, changed.architecture_from, changed.optimiser.weight_decay) == ("scratch", str(model), 0.0)


@pytest.mark.usefixtures("in_this_process")
def test_the_papers_graphs_are_for_models_of_its_cutoff(molecules: Store, home: Path, tmp_path: Path) -> None:
    ready(TASKS["qm9:gap"], home)
    ready(TASKS["rmd17:ethanol"], home)
    graph = {"cutoff": 12.0, "max_neighbours": 6}
    # PaiNN's energy would jump at a smaller cutoff of the graph, as GemNet-OC's does in JMP.
    painn = {"name": "painn", "settings": {"width": 8, "layers": 1, "cutoff": 12.0}}
    gemnet = {"name": "gemnet_oc", "settings": {**GemNetOCSettings.tiny(radial_cutoff=12.0).model_dump(), "blocks": 4}}
    train = {"steps": 1, "evaluate_every": 1, "batch_size": 2}
    for name, backbone in (("painn", painn), ("wide", gemnet)):
        pretrain(settings_of({"molecules": molecules}, train, backbone=backbone, graph=graph), tmp_path / name)
    for task, expected in (("qm9:gap", (8.0, 30)), ("rmd17:ethanol", (7.0, 100))):
        settings = benchmark_settings(TASKS[task], model=tmp_path / "wide", split="random", choices=SHORT)
        assert settings.graph is not None
        assert (settings.graph.cutoff, settings.graph.max_neighbours) == expected
        parts = ("embedding", "block_0", "block_1", "block_2", "block_3")
        assert settings.optimiser.part_rates == dict(zip(parts, (0.3, 0.3, 0.4, 0.55, 0.625), strict=True))
        own = benchmark_settings(TASKS[task], model=tmp_path / "painn", split="random", choices=SHORT)
        assert (own.graph, own.optimiser.part_rates) == (None, {})
    out = tmp_path / "out"
    results = run_benchmark(
        chosen(["qm9:gap"]),
        out,
        model=tmp_path / "wide",
        starts=("scratch", "pretrained"),
        seeds=2,
        choices=SHORT,
        console=QUIET,
    )
    outcome = results.outcomes["qm9:gap"]
    assert outcome.problem is None, outcome.problem
    assert [run.which for run in outcome.runs] == [
        (start, "random", seed) for start in ("pretrained", "scratch") for seed in (0, 1)
    ]
    ours, scratch = (np.mean([run.error for run in outcome.runs if run.start == s]) for s in ("pretrained", "scratch"))
    assert outcome.improvement() == pytest.approx(100 * (1 - ours / scratch))


@pytest.mark.usefixtures("in_this_process")
def test_folds_and_record(model: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task, size = TASKS["matbench:jdft2d"], 60
    monkeypatch.setitem(matbench.TASKS, "jdft2d", replace(matbench.TASKS["jdft2d"], rows=size))
    source = tmp_path / "native"
    source.mkdir()
    write_matbench(source, "jdft2d", size)
    monkeypatch.setenv("EUTECTIC_DATA", str(tmp_path / "data"))
    prepare(task.data, source, workers=1, progress=False)
    choices = Choices(steps=1, n_train=8, n_validation=2)
    out = tmp_path / "out"
    results = run_benchmark([task], out, model=model, choices=choices, workers=1, console=QUIET)
    outcome = results.outcomes[task.name]
    assert outcome.problem is None, outcome.problem
    assert [run.split for run in outcome.runs] == list(FOLDS)
    assert sum(run.tested_on for run in outcome.runs) == size
    assert outcome.error("pretrained") == pytest.approx(np.mean([run.error for run in outcome.runs]))
    with gzip.open(out / "matbench.json.gz", "rt") as file:
        record = json.load(file)
    assert record.pop("hash") == digest(record)
    folds = record["tasks"]["matbench_jdft2d"]["results"]
    assert list(folds) == list(FOLDS)
    assert len({key for fold in folds.values() for key in fold["data"]}) == size
    for run in outcome.runs:
        # Predicted anew from the saved model, in batches of another size.
        assert folds[run.split]["scores"]["mae"] == pytest.approx(run.error, rel=1e-4)
    fold_of = matbench.folds(size)
    assert folds["fold_2"]["data"].keys() == {f"mb-jdft2d-{i + 1:02d}" for i in np.flatnonzero(fold_of == 2)}


def test_missing_data_do_not_stop_the_others(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EUTECTIC_DATA", str(tmp_path / "data"))
    ready(TASKS["spice:dipeptides"], tmp_path / "data")
    command = ["benchmark", "spice", "--model", str(model), "--out", str(tmp_path / "out"), "--workers", "1"]
    short = ["--steps", "1", "--n-train", "2", "--n-validation", "1", "--n-test", "1"]
    result = CliRunner().invoke(cli.app, ["benchmark", "spice", "--model", "no-such-model", "--out", str(tmp_path)])
    assert isinstance(result.exception, EutecticError)
    assert "no model with this name" in str(result.exception)
    setting = ["--optimiser.weight_decay", "0"]
    result = CliRunner().invoke(cli.app, [*command, *short, "--split", "random", *setting])
    assert result.exit_code == 3
    (written,) = (tmp_path / "out").rglob("settings.json")
    assert json.loads(written.read_text())["optimiser"]["weight_decay"] == 0
    assert "eutectic data prepare spice:solvated_amino_acids" in result.output
    # The split of the paper needs all of the data.
    result = CliRunner().invoke(cli.app, [*command, *short])
    assert result.exit_code == 3
    assert "--split random" in result.output
    shown = CliRunner().invoke(cli.app, ["benchmark", "spice", "--table", "--json", "--out", str(tmp_path / "out")])
    rows = {row["name"]: row for row in json.loads(shown.stdout)["tasks"]}
    assert rows["spice:dipeptides"]["ours"] is not None
    assert rows["spice:dipeptides"]["problem"]["given"] == "24 structures"
    assert rows["spice:solvated_amino_acids"]["ours"] is None
