"""The 40 fine-tuning tasks of JMP, with their published settings, as ordinary fine-tuning runs.

As published (Shoghi et al., ICLR 2024, and the settings in its code): data and splits, batch size, heads with four
layers and their pooling, conservative or direct forces, AdamW with weight decay 0.1, warm-up from a tenth of the peak
rate over 5 epochs, cosine decay to a tenth over 32 epochs, no EMA of the weights, choice of the step with the lowest
validation error, and, for models trained with the paper's cutoff of 12 Å, its cutoffs and numbers of neighbours (other
models keep their own); for a pre-trained GemNet-OC with four or six blocks, the learning rates of the blocks of JMP-S
or JMP-L relative to that of the heads.

Where the original contradicts itself, this follows:

* peak learning rate: 8e-5, as in its script for all runs; its other settings have 5e-6 (`learning_rate`);
* batch size and pooling: the script for all runs (`batch_size`, `targets.….head.pooling`);
* QMOF: cutoff 12 Å instead of 19 Å, since its features are zero beyond 12 Å;
* MD22, SPICE: forces only, since only they enter its loss although a weight of the energy is given.

Not as published, since this program has no such setting: clipping by value (here by norm), up to 500 epochs with a
falling learning rate after the first 32 (`epochs=500, settings={"train": {"until_converged": True}}` is close), the
head of ⟨R²⟩ (here a sum over atoms), fewer neighbours in cells of more than 200 atoms.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from rich.console import Console

from eutectic.atoms import EutecticError, units
from eutectic.checkpoints.description import read_description
from eutectic.checkpoints.shipped import model_folder
from eutectic.data.catalogue import open_store, prepared
from eutectic.data.splits import Split
from eutectic.data.splits import split as split_store
from eutectic.data.store import Store, is_store
from eutectic.files import read_json, write_atomically
from eutectic.graph import GraphSettings
from eutectic.models.heads import HeadSettings
from eutectic.predict.model import load
from eutectic.processes import cores
from eutectic.study.benchmark import FILE, Benchmark, BenchmarkRun, Outcome
from eutectic.study.benchmark_tasks import FOLDS, BenchmarkTask
from eutectic.study.compare import environment
from eutectic.study.matbench_record import write_record
from eutectic.study.results import Start
from eutectic.study.runs import gpus, try_all
from eutectic.tasks import TargetSettings
from eutectic.train.finetune_result import FinetuneResult
from eutectic.train.settings import BackboneChoice, FinetuneSettings, merged, parse

EPOCHS, WARMUP_EPOCHS = 32, 5
LEARNING_RATE = 8e-5
HEAD_LAYERS = 4
PAPER_CUTOFF = 12.0
"""Cutoff of the graphs in the pre-training of JMP, Å."""

BLOCK_RATES = {4: (0.3, 0.4, 0.55, 0.625), 6: (0.55, 0.4, 0.3, 0.4, 0.55, 0.625)}
"""Blocks of GemNet-OC (4: JMP-S, 6: JMP-L) → learning rate of each, relative to that of the heads."""

EMBEDDING_RATE = 0.3

RECORD = "matbench.json.gz"


@dataclass(frozen=True, kw_only=True)
class Choices:
    """Changes to the published protocol; None keeps the published value.

    Attributes:
        steps, epochs, time: length of a run, only one of them.
        n_train, n_validation, n_test: smaller numbers of structures, for trials.
        split: another split, with one run instead of one per fold.
        batch_size, learning_rate: of the training.
        settings: any other setting of a fine-tuning, section by section.
    """

    steps: int | None = None
    epochs: float | None = None
    time: float | str | None = None
    n_train: int | None = None
    n_validation: int | None = None
    n_test: int | None = None
    split: str | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    settings: Mapping[str, Any] | None = None

    def splits(self, task: BenchmarkTask) -> tuple[str, ...]:
        """The splits, with one run each."""
        return task.protocol.splits if self.split is None else (self.split,)

    def departures(self, task: BenchmarkTask) -> tuple[str, ...]:
        """Differences from the protocol, as text; none for settings with their published values."""
        found = []
        if self.split is not None and self.split not in task.protocol.splits:
            found.append(f"split {self.split}")
        for part, number in (("training", self.n_train), ("validation", self.n_validation), ("test", self.n_test)):
            if number is not None:
                found.append(f"at most {number:,} {part} structures")
        if self.steps is not None:
            found.append(f"{self.steps:,} steps")
        if self.time is not None:
            found.append(f"for {self.time}{'' if isinstance(self.time, str) else ' s'}")
        if self.epochs is not None and self.epochs < EPOCHS:
            found.append(f"{self.epochs:g} epochs")
        return tuple(found)


def data_of(task: BenchmarkTask) -> Store:
    """The prepared data of a task.

    Raises:
        EutecticError: not prepared, with the command that does it.
    """
    if not is_store(prepared(task.data)):
        raise EutecticError(
            task.name,
            f"the data set {task.data} is not prepared",
            f"its store at {prepared(task.data)}",
            f"prepare it: eutectic data prepare {task.data}",
        )
    return open_store(task.data)


def parts_of(task: BenchmarkTask, store: Store, split: str, choices: Choices) -> Split:
    """Training, validation and test structures of one run; numbers are limited to those available.

    Raises:
        EutecticError: unknown split, or incomplete data.
    """
    needs = ("energy", "forces") if task.protocol.forces == "gradient" else (task.property,)
    try:
        full = split_store(store, split, needs=needs)
    except EutecticError as error:
        fix = error.fix if choices.split else f"{error.fix}, or try it on the data you have with --split random"
        raise EutecticError(f"{task.name}, {error.where}", error.given, error.expected, fix) from error
    requested = (choices.n_train, choices.n_validation, choices.n_test)
    available = (len(full.train), len(full.validation), len(full.test))
    numbers = zip(requested, available, strict=True)
    n_train, n_validation, n_test = (None if n is None else min(n, most) for n, most in numbers)
    return split_store(store, split, n_train=n_train, n_validation=n_validation, n_test=n_test, needs=needs)


def benchmark_settings(
    task: BenchmarkTask,
    *,
    model: str | Path = "eutectic-small",
    start: Start = "pretrained",
    split: str = "paper",
    seed: int = 0,
    choices: Choices | None = None,
    store: Store | None = None,
) -> FinetuneSettings:
    """Settings of one run of a task.

    Args:
        task: one of `eutectic.study.benchmark_tasks.TASKS`.
        model: pre-trained model; from scratch, only its architecture is used.
        start: pretrained or scratch.
        split: "paper", or a fold of Matbench.
        seed: of the run.
        choices: changes to the published protocol.
        store: the data, if already open.

    Raises:
        EutecticError: data are not prepared or incomplete; unknown model; unknown settings.
    """
    choices = choices or Choices()
    store = data_of(task) if store is None else store
    parts, protocol = parts_of(task, store, split, choices), task.protocol
    batch_size = choices.batch_size or protocol.batch_size
    epoch = max(1, -(-len(parts.train) // min(batch_size, len(parts.train))))
    head = HeadSettings(layers=HEAD_LAYERS, pooling=None if protocol.forces else protocol.pooling)
    if protocol.forces == "gradient":
        targets = {
            "energy": TargetSettings(head=HeadSettings(layers=HEAD_LAYERS), weight=0.0),
            "forces": TargetSettings(head=HeadSettings(kind="gradient_forces")),
        }
    else:
        targets = {task.property: TargetSettings(head=head)}
    train: dict[str, Any] = {
        "batch_size": batch_size,
        "seed": seed,
        "threads": None if torch.cuda.is_available() else 1,
        # Half precision saves time only on a GPU.
        "precision": "16-mixed" if protocol.half_precision and torch.cuda.is_available() else "32-true",
    }
    optimiser: dict[str, Any] = {
        "learning_rate": choices.learning_rate or LEARNING_RATE,
        "betas": (0.9, 0.95),
        "weight_decay": 0.1,
        "warmup_lr_ratio": 0.1,
        "final_lr_ratio": 0.1,
        "ema_decay": 0.0,
        "part_rates": _part_rates(model) if start == "pretrained" else {},
    }
    warm = WARMUP_EPOCHS / EPOCHS
    if choices.steps is not None:
        train["steps"], optimiser["warmup_steps"] = choices.steps, round(warm * choices.steps)
    elif choices.time is not None:
        train["time"] = choices.time
    else:
        train["epochs"] = EPOCHS if choices.epochs is None else choices.epochs
        train["evaluate_every"] = epoch
        optimiser["warmup_steps"] = round(min(WARMUP_EPOCHS, warm * train["epochs"]) * epoch)
    values: dict[str, Any] = {
        "data": {
            "store": task.data,
            "split": split,
            # Limited to the available structures, so that small data sets are no error.
            "train": None if choices.n_train is None else len(parts.train),
            "validation": None if choices.n_validation is None else len(parts.validation),
            "test": None if choices.n_test is None else len(parts.test),
        },
        "name": task.name.replace(":", "_").replace("-", "_"),
        "targets": {name: target.model_dump(exclude_none=True) for name, target in targets.items()},
        "score_weights": {"energy": 0.0} if protocol.forces == "gradient" else {},
        "start": "scratch" if start == "scratch" else str(model),
        "architecture_from": str(model) if start == "scratch" and "backbone" not in (choices.settings or {}) else None,
        "head_from": None,
        "graph": _graph(task, model),
        "optimiser": optimiser,
        "train": train,
    }
    return parse(FinetuneSettings, merged(values, dict(choices.settings or {})), f"settings of {task.name}")


def _part_rates(model: str | Path) -> dict[str, float]:
    """The published learning rates of the parts of a backbone like JMP's; none for others."""
    backbone = read_description(model_folder(str(model)))["backbone"]
    blocks = backbone["settings"].get("blocks")
    if backbone["name"] != "gemnet_oc" or blocks not in BLOCK_RATES:
        return {}
    return {"embedding": EMBEDDING_RATE, **{f"block_{i}": rate for i, rate in enumerate(BLOCK_RATES[blocks])}}


def _graph(task: BenchmarkTask, model: str | Path) -> dict[str, Any] | None:
    """The published graph, if the model has the paper's cutoff and allows a smaller one; None: the model's own."""
    description = read_description(model_folder(str(model)))
    if description["graph"]["cutoff"] < PAPER_CUTOFF:
        return None
    protocol = task.protocol
    graph = {**description["graph"], "cutoff": protocol.cutoff, "max_neighbours": protocol.neighbours}
    try:
        BackboneChoice.model_validate(description["backbone"]).for_graphs([GraphSettings.model_validate(graph)])
    except EutecticError:
        # Its energy would be discontinuous at the smaller cutoff (as JMP's is).
        return None
    return graph


def run_benchmark(
    tasks: Sequence[BenchmarkTask],
    out: Path,
    *,
    model: str | Path = "eutectic-small",
    starts: Sequence[Start] = ("pretrained",),
    seeds: int = 1,
    choices: Choices | None = None,
    workers: int | None = None,
    console: Console,
) -> Benchmark:
    """Run tasks, each in `out/FAMILY/TASK/SPLIT/START-SEED`; finished runs are read back.

    A task with missing data or a failed run does not stop the others; its outcome contains the reason. Results of
    earlier calls in the same folder are kept. A record file is written for Matbench tasks with all five folds.

    Args:
        tasks: to run.
        out: folder of the benchmark.
        model: pre-trained model; a start from scratch uses its architecture.
        starts: pretrained, scratch, or both.
        seeds: number of runs per start and split, with seeds 0, 1, …
        choices: changes to the published protocol.
        workers: concurrent runs; default: one per GPU, or one per core without a GPU.
        console: for messages and progress.

    Raises:
        EutecticError: unknown model; the folder holds the benchmark of another model.
        Interrupted: resumable.
    """
    out, choices = Path(out), choices or Choices()
    known = Benchmark.read(out) if (out / FILE).is_file() else Benchmark()
    if known.model not in ("", str(model)):
        raise EutecticError(
            str(out), f"the benchmark of {known.model}", f"that of {model}, or a new folder", "choose another --out"
        )
    read_description(model_folder(str(model)))  # fails here if all tasks would
    plan: list[tuple[BenchmarkTask, Start, str, int, FinetuneSettings, Path]] = []
    problems: dict[str, EutecticError] = {}
    for task in tasks:
        try:
            plan += _runs(task, out, model, starts, seeds, choices)
        except EutecticError as error:
            problems[task.name] = error
    results = try_all(
        [(settings, folder) for *_, settings, folder in plan],
        title="benchmark",
        workers=workers or len(gpus()) or cores(),
        console=console,
    )
    runs: dict[str, list[BenchmarkRun]] = {task.name: [] for task in tasks}
    for (task, start, split, seed, _, folder), result in zip(plan, results, strict=True):
        if isinstance(result, EutecticError):
            problems.setdefault(task.name, result)
        elif result.test_error is None:
            fix = "leave out data.test"
            problems.setdefault(task.name, EutecticError(task.name, "no test structures", "some", fix))
        else:
            runs[task.name].append(_run(task, start, split, seed, result, str(folder.relative_to(out))))
    outcomes = dict(known.outcomes)
    for task in tasks:
        new = Outcome(
            task=task.name,
            runs=tuple(sorted(runs[task.name], key=lambda run: run.which)),
            departures=choices.departures(task),
            problem=_parts(problems.get(task.name)),
        )
        outcomes[task.name] = outcomes[task.name].merged(new) if task.name in outcomes else new
    benchmark = Benchmark(model=str(model), outcomes=outcomes, environment=environment())
    benchmark.write(out)
    if choices.n_test is None and choices.split is None:
        _record(benchmark, {folder: settings for *_, settings, folder in plan}, out)
    return benchmark


def _runs(
    task: BenchmarkTask, out: Path, model: str | Path, starts: Sequence[Start], seeds: int, choices: Choices
) -> list[tuple[BenchmarkTask, Start, str, int, FinetuneSettings, Path]]:
    store, runs = data_of(task), []
    for split in choices.splits(task):
        for start in starts:
            first = benchmark_settings(task, model=model, start=start, split=split, choices=choices, store=store)
            for seed in range(seeds):
                train = first.train.model_copy(update={"seed": seed})
                folder = out.joinpath(*task.name.split(":"), split, f"{start}-{seed}")
                runs.append((task, start, split, seed, first.model_copy(update={"train": train}), folder))
    return runs


def _run(task: BenchmarkTask, start: Start, split: str, seed: int, result: FinetuneResult, folder: str) -> BenchmarkRun:
    factor = 1.0
    if result.unit != task.unit:
        factor = units.conversion(result.unit, task.unit, where=task.name).factor
    return BenchmarkRun(
        start=start,
        split=split,
        seed=seed,
        error=factor * cast(float, result.test_error),
        trained_on=result.trained_on,
        validated_on=result.validated_on,
        tested_on=result.tested_on,
        steps=result.total_steps,
        seconds=result.wall_seconds,
        folder=folder,
    )


def _parts(error: EutecticError | None) -> dict[str, str] | None:
    if error is None:
        return None
    return {"where": error.where, "given": error.given, "expected": error.expected, "fix": error.fix}


def _record(benchmark: Benchmark, settings: Mapping[Path, FinetuneSettings], out: Path) -> None:
    """Write Matbench's record file for tasks with all five folds fine-tuned with seed 0."""
    predictions: dict[str, dict[str, dict[str, tuple[float, float]]]] = {}
    for name, outcome in benchmark.outcomes.items():
        folders = {run.split: out / run.folder for run in outcome.runs if run.start == "pretrained" and run.seed == 0}
        if not name.startswith("matbench:") or any(fold not in folders for fold in FOLDS):
            continue
        predictions[name.partition(":")[2]] = {
            fold: _test_predictions(folders[fold], settings.get(folders[fold])) for fold in FOLDS
        }
    if predictions:
        about = {"algorithm": "eutectic", "model": benchmark.model, "environment": dict(benchmark.environment)}
        write_record(out / RECORD, predictions, about)


def _test_predictions(folder: Path, settings: FinetuneSettings | None) -> dict[str, tuple[float, float]]:
    """Id → label and prediction of every test structure of a finished run; cached in its folder."""
    path = folder / "test-predictions.json"
    if path.is_file() or settings is None:
        found = read_json(path, expected="predictions of this run", fix="run the task again")
        return {key: (float(truth), float(prediction)) for key, (truth, prediction) in found.items()}
    (name,) = settings.targets
    store = open_store(settings.data.store)
    rows = split_store(store, settings.data.split, needs=(name,)).test
    structures = [store[int(row)] for row in rows]
    predicted = load(folder / "model").predict([labelled.structure for labelled in structures])
    values = {
        labelled.id: (float(labelled.labels[name]), float(np.asarray(prediction[name])))
        for labelled, prediction in zip(structures, predicted, strict=True)
    }
    write_atomically(path, json.dumps(values))
    return values
