"""Benchmark pre-training: total speed and its parts, batches by cost or by count, and the number of data sets.

    python benchmarks/pretrain.py
    python benchmarks/pretrain.py --full --json > pretrain.json

About four minutes on two CPU cores, on the embedded mixture with the demonstration's model; uses a GPU if available.
Published data in ../shared/data, if present, is read as ASE files and added to the mixture: its structures differ in
size by a factor of ten, unlike the embedded ones. Comparisons alternate in one process, and ratios are of medians.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eutectic.checkpoints.model import build_backbone
from eutectic.data.catalogue import open_store, prepare
from eutectic.data.store import Store
from eutectic.graph import build_graphs
from eutectic.models.multitask import MultitaskModel
from eutectic.recipes import demo
from eutectic.tasks import Batch, Sample, Task, fit_task, make_batch, structure_losses
from eutectic.train.batches.mixture import Mixture
from eutectic.train.batches.sampler import BatchSampler, TaskDataset
from eutectic.train.cost import calibrate, costs_by_size, size_model, trials_of
from eutectic.train.optimisation import make_optimiser
from eutectic.train.pretrain import initial_model, pretrain
from eutectic.train.runtime.journal import Journal
from eutectic.train.runtime.loggers import Loggers, chosen
from eutectic.train.settings import Coefficients, OptimiserSettings

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
SETTINGS = demo()
WARM_UP = 5
"""Steps at the beginning of a run that are not timed."""


def now() -> float:
    """Time in seconds, after synchronising with the device."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def rows_of(stores: dict[str, Store]) -> list[TaskDataset]:
    """All structures of some stores, with the demonstration's targets and graphs."""
    targets = SETTINGS.sets["molecules"].targets
    return [
        TaskDataset(
            i, fit_task(name, store, np.arange(len(store)), targets, SETTINGS.graph), store, np.arange(len(store))
        )
        for i, (name, store) in enumerate(stores.items())
    ]


def model_of(rows: Sequence[TaskDataset], source: BatchSampler) -> MultitaskModel:
    """The demonstration's model."""
    choice = SETTINGS.backbone
    return initial_model(choice.name, choice.settings, tuple(r.task for r in rows), source, 0).to(DEVICE)


def step(model: MultitaskModel, batch: Batch, tasks: Sequence[Task]) -> None:
    """Forward, loss and backward."""
    torch.cat(structure_losses(model(batch.graph, batch.parts), batch, tasks)).sum().backward()


def parts(rows: Sequence[TaskDataset], steps: int) -> dict[str, Any]:
    """Time of each part of a step, and structures per second."""
    source = BatchSampler(rows, SETTINGS.train.batch_size, 2.0, 0)
    model, tasks = model_of(rows, source), [r.task for r in rows]
    optimiser = make_optimiser(model, OptimiserSettings())
    spent = dict.fromkeys(("data", "graph", "batch", "forward", "backward", "optimiser", "logging"), 0.0)
    structures = atoms = 0
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(Path(folder) / "journal.jsonl")
        log = Loggers(chosen(None), Path(folder), [t.name for t in tasks])
        for k in range(-2, steps):
            marks = [now()]
            read = [(rows[w], rows[w].store[int(rows[w].rows[r])]) for w, r in zip(*source.chosen(k + 2), strict=True)]
            marks.append(now())
            graphs = build_graphs([row.structure for _, row in read], SETTINGS.graph)
            marks.append(now())
            items = [
                Sample(task=one.index, graph=g, labels=one.task.normalised_labels(row))
                for (one, row), g in zip(read, graphs, strict=True)
            ]
            batch = make_batch(items, tasks).to(DEVICE)
            marks.append(now())
            loss = torch.cat(structure_losses(model(batch.graph, batch.parts), batch, tasks)).sum()
            marks.append(now())
            loss.backward()
            marks.append(now())
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            marks.append(now())
            entry = {"step": k + 3, "loss": float(loss.detach()), "loss_by_set": {t.name: 1.0 for t in tasks}}
            journal.add(entry)
            log.stepped(entry)
            marks.append(now())
            if k >= 0:  # two to warm up
                structures, atoms = structures + len(items), atoms + len(batch.graph.numbers)
                for name, seconds in zip(spent, np.diff(marks), strict=True):
                    spent[name] += float(seconds)
        log.close()
    total = sum(spent.values())
    return {
        "steps": steps,
        "structures_per_second": structures / total,
        "atoms_per_second": atoms / total,
        "parts": {name: seconds / total for name, seconds in spent.items()},
        "data_wait": (spent["data"] + spent["graph"] + spent["batch"]) / total,
    }


def waiting(steps: int) -> dict[str, Any]:
    """Complete demonstration runs, alternating between no worker and one worker."""
    records: dict[int, list[dict[str, Any]]] = {0: [], 1: []}
    with tempfile.TemporaryDirectory() as name:
        for turn in range(4):
            for workers in sorted(records, reverse=turn % 2 == 1):  # 0 1, 1 0, 0 1, 1 0
                train = SETTINGS.train.model_copy(update={"steps": steps, "workers": workers})
                folder = Path(name) / f"{turn}-{workers}"
                pretrain(SETTINGS.model_copy(update={"train": train}), folder)
                lines = (folder / "journal.jsonl").read_text().splitlines()
                records[workers] += [json.loads(line) for line in lines][WARM_UP:]
    found = {}
    for workers, entries in records.items():
        step, data, drawn = (sum(e[k] for e in entries) for k in ("step_seconds", "data_seconds", "structures"))
        found["in line" if workers == 0 else "one worker"] = {
            "data_wait": data / step,
            "structures_per_second": drawn / step,
        }
    return {"processes": SETTINGS.train.processes, **found}


def padding(batch: Batch) -> float:
    """Fraction of padding in the triplet tables."""
    degree = torch.bincount(batch.graph.main.target, minlength=len(batch.graph.numbers)).double()
    return 1.0 - float((degree**2).sum() / (len(degree) * degree.max() ** 2))


def cost_against_count(rows: Sequence[TaskDataset], windows: int) -> dict[str, Any]:
    """Compare batching by cost and by count on the same structures in the same order."""
    size = SETTINGS.train.batch_size
    by_count = BatchSampler(rows, size, 2.0, 0)
    model, tasks = model_of(rows, by_count), [r.task for r in rows]
    found = calibrate(model, tasks, trials_of(by_count), device=DEVICE)

    def cut(coefficients: Coefficients) -> BatchSampler:
        return BatchSampler(rows, size, 2.0, 0, costs=[costs_by_size(r, size_model(r), coefficients) for r in rows])

    by_cost = cut(found.seconds.coefficients)
    steps = windows * by_cost.window
    result: dict[str, Any] = {
        "steps": steps,
        "fit_error": found.error,
        "coefficients": found.seconds.coefficients.model_dump(),
    }
    records: dict[str, list[tuple[float, ...]]] = {"count": [], "cost": []}
    for k in range(steps):
        for name, source in (("count", by_count), ("cost", by_cost)):
            items = source.items(k, 0, 1)
            batch = make_batch(items, tasks).to(DEVICE)
            start = now()
            step(model, batch, tasks)
            seconds = now() - start
            model.zero_grad(set_to_none=True)
            counts = np.sum([i.graph.counts for i in items], axis=0)
            records[name].append((seconds, float(found.bytes.of(counts)), padding(batch), len(items), float(counts[0])))
    for name, values in records.items():
        table = np.array(values)
        result[name] = {
            "structures_per_second": float(table[:, 3].sum() / table[:, 0].sum()),
            "longest_step_over_mean": float(table[:, 0].max() / table[:, 0].mean()),
            "spread_of_step_seconds": float(table[:, 0].std() / table[:, 0].mean()),
            "peak_bytes": float(table[:, 1].max()),
            "padding": float(table[:, 2].mean()),
            "fewest_structures": int(table[:, 3].min()),
            "most_structures": int(table[:, 3].max()),
        }
    cost, count = result["cost"], result["count"]
    result["cost_over_count"] = {
        k: cost[k] / count[k] for k in ("structures_per_second", "longest_step_over_mean", "peak_bytes", "padding")
    }
    return result


def heads(rows: Sequence[TaskDataset], repeats: int) -> dict[str, Any]:
    """Time the same batch as a batch of 1, of 4 and of 50 sets."""
    which, row = BatchSampler(rows, 100, 2.0, 0).chosen(0)
    items = [rows[w].item(int(r)) for w, r in zip(which, row, strict=True)]
    heads_of = rows[0].task.heads
    calls: dict[int, Callable[[], None]] = {}
    for n in (1, 4, 50):
        tasks = [Task(f"set{i}", "", rows[0].task.targets, rows[0].task.graph) for i in range(n)]
        torch.manual_seed(0)
        backbone, _ = build_backbone(SETTINGS.backbone.name, SETTINGS.backbone.settings, SETTINGS.graphs)
        model = MultitaskModel(backbone, {t.name: heads_of for t in tasks}).train().to(DEVICE)
        mine = [Sample(task=i % n, graph=item.graph, labels=item.labels) for i, item in enumerate(items)]
        batch = make_batch(mine, tasks).to(DEVICE)

        def call(model: MultitaskModel = model, batch: Batch = batch, tasks: list[Task] = tasks) -> None:
            step(model, batch, tasks)
            model.zero_grad(set_to_none=True)

        calls[n] = call
    seconds = in_turns(calls, repeats)
    return {"seconds": seconds, "over_one_set": {n: s / seconds[1] for n, s in seconds.items()}}


def in_turns(calls: dict[int, Callable[[], None]], repeats: int) -> dict[int, float]:
    """Median seconds of each function, measured alternately."""
    for call in calls.values():
        call()
    times: dict[int, list[float]] = {n: [] for n in calls}
    for _ in range(repeats):
        for n, call in calls.items():
            start = now()
            call()
            times[n].append(now() - start)
    return {n: statistics.median(t) for n, t in times.items()}


def order(batch_size: int = 32) -> dict[str, Any]:
    """Time and memory of sampling from four sets of a thousand or a billion structures each."""
    result: dict[str, Any] = {}
    for size in (10**3, 10**9):
        mixture = Mixture(dict.fromkeys("abcd", size))
        places = mixture.length // 2 + np.arange(batch_size)
        start = time.perf_counter()
        for epoch in range(200):
            mixture.at(0, epoch, places)
        seconds = (time.perf_counter() - start) / 200
        tracemalloc.start()
        Mixture(dict.fromkeys("abcd", size)).at(0, 0, places)
        result[f"{size:.0e} structures each"] = {
            "microseconds_per_batch": 1e6 * seconds,
            "peak_bytes": tracemalloc.get_traced_memory()[1],
        }
        tracemalloc.stop()
    return result


def published(folder: Path) -> dict[str, Store]:
    """Published files, read by the `ase` and `rmd17` readers; empty if they are not available."""
    stores = {}
    for name, reader, source, more in (
        ("oc20_relaxations", "ase", SHARED / "oc20" / "trajs_small", {}),
        ("rmd17_ethanol", "rmd17", SHARED / "rmd17", {"molecule": "ethanol"}),
    ):
        if source.exists():
            try:
                stores[name] = Store(prepare(reader, source, folder / name, progress=False, **more))  # type: ignore[arg-type]
            except Exception as error:  # an unreadable set is reported, and the others are still measured
                print(f"{name}: left out ({error})", file=sys.stderr)
    return stores


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--full", action="store_true", help="run five times longer, for less noise")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    more = 5 if given.full else 1

    def say(what: str) -> None:
        print(f"measuring {what} …", file=sys.stderr, flush=True)

    embedded = {name: open_store(name) for name in SETTINGS.sets}
    rows = rows_of(embedded)
    device = (
        torch.cuda.get_device_name() if DEVICE.type == "cuda" else f"{platform.machine()}, {given.threads} thread(s)"
    )
    result: dict[str, Any] = {"device": device, "torch": torch.__version__, "model": "demonstration (0.4M parameters)"}
    say("parts of a step")
    result["embedded"] = parts(rows, 20 * more)
    say("waiting for data")
    result["embedded"]["waiting"] = waiting(40 * more)
    say("cost against count")
    result["embedded"]["batching"] = cost_against_count(rows, more)
    say("heads")
    result["heads"] = heads(rows, 9 * more)
    result["order"] = order()
    with tempfile.TemporaryDirectory() as folder:
        stores = published(Path(folder))
        if stores:
            say("published data")
            wide = rows_of(stores | {"molecules": embedded["molecules"]})
            result["published"] = {"sets": list(stores), **parts(wide, 8 * more)}
            result["published"]["batching"] = cost_against_count(wide, more)
    if given.json:
        print(json.dumps(result, indent=1))
    else:
        show(result)


def show(values: dict[str, Any], indent: int = 0) -> None:
    """Nested values as lines."""
    for key, value in values.items():
        if isinstance(value, dict):
            print(f"{' ' * indent}{key}")
            show(value, indent + 2)
        else:
            print(f"{' ' * indent}{key}: {value:.4g}" if isinstance(value, float) else f"{' ' * indent}{key}: {value}")


if __name__ == "__main__":
    main()
