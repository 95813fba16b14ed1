"""Benchmark fine-tuning from a joint backbone, a molecular backbone and from scratch.

    eutectic data prepare rmd17:ethanol            # rmd17:malonaldehyde, rmd17:toluene, matbench:jdft2d
    eutectic data prepare oc20:free_energy --source DIRECTORY-OF-OC20-TRAJECTORIES
    python benchmarks/transfer.py --joint eutectic-small --molecules runs/eutectic-small-molecules/model --out study
    python benchmarks/transfer.py … --only scratch   # only some of the runs, before a backbone is trained

Tasks, learning rates and budgets were fixed before any pre-trained start was tested. Three starts (scratch, the joint
backbone, and one trained for as many steps on molecules only) share model size, data, batches and number of steps. The
learning rate of each start is chosen from three or four on validation data, with a seed that no reported run uses:
for rMD17 at 200 structures for all three sizes, for QM9 on the gap for all three properties, for jdft2d on fold 0.
Writes `results.json`, `table.md` and `report.html`. Can be resumed after an interruption. About 250 runs; one hour on
two CPU cores.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from eutectic.checkpoints.shipped import model_folder
from eutectic.recipes.small import BACKBONE, GRAPH
from eutectic.report.study_page import write_demo_page
from eutectic.study.compare import (
    SWEEP_SEED,
    Choice,
    best_choices,
    comparison,
    environment,
)
from eutectic.study.results import Start, StudyResults, TaskComparison, Trial
from eutectic.study.runs import run_all
from eutectic.train.finetune_result import FinetuneResult
from eutectic.train.settings import (
    DataSettings,
    FinetuneOptimiserSettings,
    FinetuneSettings,
    FinetuneTrainSettings,
    default_targets,
)

SCRATCH_RATES = (1.2e-3, 2.5e-3, 6e-3, 1e-2, 1.6e-2)
PRETRAINED_RATES = (3e-4, 6e-4, 1.2e-3, 2.5e-3, 6e-3)
"""The middle three bracket the choices of each start in the demonstration (`docs/results/demo-choices.json`) and in
trials on validation data; the first and the last are tried only if the best of the three is next to them."""
SEEDS = (0, 1, 2)
STARTS = ("scratch", "joint", "molecules")


@dataclass(frozen=True, kw_only=True)
class Task:
    """One row of the table.

    Attributes:
        name, title: for tables.
        store: name of an embedded or prepared set.
        property: label that is learned and tested.
        train, validation, test: structures; None is all of the split's.
        batch_size, steps: the budget, the same for all starts.
        splits: one run each; seeds repeat a single split instead.
        rates_of: the task whose learning rates are taken; its own if None.
        head: task of the pre-trained model whose force head is kept; a fresh head if there is none.
        kind: kind of task over which means are taken.
    """

    name: str
    title: str
    store: str
    property: str
    kind: str
    train: int | None = None
    validation: int | None = None
    test: int | None = None
    batch_size: int = 8
    steps: int = 200
    splits: tuple[str | None, ...] = (None,)
    rates_of: str | None = None
    head: str | None = None


def _rmd17(molecule: str, train: int) -> Task:
    return Task(
        name=f"{molecule}-{train}",
        title=f"rMD17 {molecule}, {train} structures",
        store=f"rmd17:{molecule}",
        property="forces",
        kind="rMD17",
        train=train,
        validation=50,
        test=300,
        splits=("official_01",),
        rates_of=None if train == 200 else f"{molecule}-200",
        head="molecules",
    )


def _demo(name: str, title: str, store: str, property: str, train: int, batch_size: int, steps: int = 200) -> Task:
    held_out = {"validation": 50, "test": 100 if store == "crystals" else 200}
    if train >= 1000:
        held_out = {"validation": 120, "test": 500}
    return Task(
        name=name,
        title=title,
        store=store,
        property=property,
        kind="demonstration",
        train=train,
        batch_size=batch_size,
        steps=steps,
        head="molecules" if property == "forces" else None,
        **held_out,
    )


def _qm9(property: str, title: str) -> Task:
    return Task(
        name=f"qm9-{property}",
        title=f"QM9 {title}, 1000 molecules",
        store="qm9_sample",
        property=property,
        kind="QM9",
        train=1000,
        validation=120,
        test=500,
        rates_of=None if property == "gap" else "qm9-gap",
    )


TASKS: tuple[Task, ...] = (
    _demo("aspirin", "Aspirin MD at 500 K, 100", "md_aspirin", "forces", 100, 8),
    _demo("alanine-dipeptide", "Alanine dipeptide MD at 500 K, 100", "md_alanine_dipeptide", "forces", 100, 8),
    # These two use the demonstration's 180 steps of 16, and their own learning rates.
    _demo("demo-gap", "HOMO-LUMO gap of QM9, 1000, the demonstration's steps", "qm9_sample", "gap", 1000, 16, 180),
    _demo("demo-u0", "Atomisation energy of QM9, 1000, the demonstration's steps", "qm9_sample", "u0", 1000, 16, 180),
    _demo("crystals", "Crystals, formation energy, 300", "crystals", "formation_energy", 300, 16),
    *(_rmd17(molecule, n) for molecule in ("ethanol", "malonaldehyde", "toluene") for n in (200, 50, 950)),
    _qm9("gap", "HOMO-LUMO gap"),
    _qm9("u0", "atomisation energy"),
    _qm9("dipole_moment", "dipole moment"),
    Task(
        name="jdft2d",
        title="Matbench jdft2d, exfoliation energy, official folds",
        store="matbench:jdft2d",
        property="exfoliation_energy",
        kind="Matbench",
        batch_size=16,
        splits=tuple(f"fold_{k}" for k in range(5)),
    ),
    Task(
        name="oc20",
        title="OC20 relaxations, forces on systems not trained on, 400",
        store="oc20:free_energy",
        property="forces",
        kind="catalysts",
        train=400,
        validation=40,
        test=160,
        batch_size=4,
        steps=120,
        head="metal_slabs",
    ),
)


def settings_of(task: Task, split: str | None, stores: Mapping[str, str]) -> FinetuneSettings:
    """Settings shared by all runs of a task on one split; every start has the model size of `eutectic-small`."""
    return FinetuneSettings(
        name=task.name,
        data=DataSettings(
            store=stores.get(task.store, task.store),
            split=split,
            train=task.train,
            validation=task.validation,
            test=task.test,
        ),
        targets=default_targets([task.property]),
        start="scratch",
        backbone=BACKBONE,
        graph=GRAPH,
        # As in the published figures: kept heads are warmed up like new ones.
        optimiser=FinetuneOptimiserSettings(kept_head_warmup=0.0),
        train=FinetuneTrainSettings(steps=task.steps, batch_size=task.batch_size, threads=1, accelerator="cpu"),
    )


def started(
    base: FinetuneSettings, model: str | None, head: str | None, *, seed: int, choice: Choice
) -> FinetuneSettings:
    """One run: from a model's backbone (and its head, if it has that one), or from scratch."""
    start: dict[str, Any] = {"start": "scratch"}
    if model is not None:
        known = [task["name"] for task in json.loads((model_folder(model) / "model.json").read_text())["tasks"]]
        start = {"start": model, "backbone": None, "graph": None, "head_from": head if head in known else None}
    return base.model_copy(
        update={
            **start,
            "optimiser": base.optimiser.model_copy(update=dict(choice)),
            "train": base.train.model_copy(update={"seed": seed}),
        }
    )


def study(
    starts: Mapping[str, str | None],
    tasks: Sequence[Task],
    stores: Mapping[str, str],
    out: Path,
    workers: int | None,
    console: Console,
) -> tuple[dict[str, dict[str, list[FinetuneResult]]], dict[str, dict[str, list[Trial]]]]:
    """All runs of some starts, and the trials that chose their learning rates: task → start → runs, trials."""
    own = [task for task in tasks if task.rates_of is None]
    trials: dict[str, dict[str, list[Trial]]] = {task.name: {start: [] for start in starts} for task in own}

    def sweep(plan: Sequence[tuple[Task, str, float]], title: str) -> None:
        choices = [(t, s, {"learning_rate": rate, "weight_decay": 0.01}) for t, s, rate in plan]
        runs = [
            (
                started(settings_of(t, t.splits[0], stores), starts[s], t.head, seed=SWEEP_SEED, choice=c),
                out / "choices" / t.name / f"{s}-{c['learning_rate']:g}",
            )
            for t, s, c in choices
        ]
        for (task, start, _), r in zip(plan, run_all(runs, title=title, workers=workers, console=console), strict=True):
            label: Start = "scratch" if start == "scratch" else "pretrained"
            trials[task.name][start].append(Trial(label, r.learning_rate, r.weight_decay, min(r.errors)))

    rates = {start: SCRATCH_RATES if start == "scratch" else PRETRAINED_RATES for start in starts}
    sweep([(t, s, rate) for t in own for s in starts for rate in rates[s][1:-1]], "choosing learning rates")
    best = {
        (t.name, s): min(trials[t.name][s], key=lambda x: x.validation_error).learning_rate for t in own for s in starts
    }
    # If the best of the three is at an end, one more is tried beyond it.
    beyond = [
        (t, s, {rates[s][1]: rates[s][0], rates[s][-2]: rates[s][-1]}.get(best[t.name, s])) for t in own for s in starts
    ]
    if more := [(t, s, rate) for t, s, rate in beyond if rate is not None]:
        sweep(more, "choosing learning rates, beyond the ends")
    chosen = {t: {s: next(iter(best_choices(found).values())) for s, found in by.items()} for t, by in trials.items()}
    runs = [
        (task, start, split, seed)
        for task in tasks
        for start in starts
        for split, seed in (
            [(s, i) for i, s in enumerate(task.splits)]
            if len(task.splits) > 1
            else [(task.splits[0], seed) for seed in SEEDS]
        )
    ]
    made = run_all(
        [
            (
                started(
                    settings_of(t, p, stores), starts[s], t.head, seed=seed, choice=chosen[t.rates_of or t.name][s]
                ),
                out / "runs" / t.name / f"{s}-{seed}",
            )
            for t, s, p, seed in runs
        ],
        title="fine-tuning",
        workers=workers,
        console=console,
    )
    results: dict[str, dict[str, list[FinetuneResult]]] = {t.name: {s: [] for s in starts} for t in tasks}
    for (task, start, _, _), result in zip(runs, made, strict=True):
        results[task.name][start].append(result)
    return results, trials


def compared(
    task: Task, results: Mapping[str, list[FinetuneResult]], trials: Mapping[str, list[Trial]], start: str
) -> TaskComparison:
    """Compare one backbone with scratch."""
    tried = [*trials.get("scratch", []), *trials.get(start, [])]
    return replace(comparison([*results["scratch"], *results[start]], task.title, tried), name=task.name)


def row(task: Task, against: Mapping[str, TaskComparison]) -> dict[str, Any]:
    """One row of the table, as JSON."""
    first = next(iter(against.values()))
    line: dict[str, Any] = {
        "task": task.name,
        "title": task.title,
        "kind": task.kind,
        "property": task.property,
        "unit": first.unit,
        "steps": task.steps,
        "batch_size": task.batch_size,
        "scratch": first.scratch,
        "scratch_spread": first.spread("scratch"),
        "rate_scratch": first.of("scratch")[0].learning_rate,
    }
    for start, one in against.items():
        line[start] = {
            "error": one.pretrained,
            "spread": one.spread("pretrained"),
            "improvement_percent": one.improvement_percent,
            "improvement_spread_percent": one.improvement_spread,
            "speedup": one.speedup,
            "rate": one.of("pretrained")[0].learning_rate,
        }
    return line


def markdown(rows: Sequence[Mapping[str, Any]], starts: Sequence[str], means: Mapping[str, Any]) -> str:
    """Markdown table; ends with mean improvement and median speed-up over all tasks and each kind of task."""
    heads = [f"{s} | improvement | speed-up" for s in starts]
    lines = [
        f"| task | unit | scratch | {' | '.join(heads)} |",
        f"|---|---|--:|{'--:|--:|--:|' * len(starts)}",
    ]
    for line in rows:
        cells = [line["title"], line["unit"], _pm(line["scratch"], line["scratch_spread"])]
        for s in starts:
            one = line[s]
            cells += [
                _pm(one["error"], one["spread"]),
                f"{one['improvement_percent']:+.1f} ± {one['improvement_spread_percent']:.1f} %",
                _times(one["speedup"]),
            ]
        lines.append("| " + " | ".join(cells) + " |")
    for kind, values in means.items():
        mean = [f" | {values[s]['improvement_percent']:+.1f} % | {_times(values[s]['speedup'])}" for s in starts]
        lines.append(f"| **{kind}: mean, median** | | | " + " | ".join(mean) + " |")
    return "\n".join(lines) + "\n"


def _pm(value: float, spread: float) -> str:
    digits = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0
    return f"{value:.{digits}f} ± {spread:.{digits}f}"


def _times(speedup: float) -> str:
    # Ten evaluations per run: a target reached before the first one is reported as "> 10×".
    return "> 10×" if speedup > 10 else f"{speedup:.2g}×"


def mean_of(tasks: Sequence[TaskComparison]) -> dict[str, float]:
    """Arithmetic mean of improvements; median of speed-ups, some of which are only lower bounds."""
    return {
        "improvement_percent": float(np.mean([t.improvement_percent for t in tasks])),
        "speedup": float(np.median([t.speedup or math.nan for t in tasks])),
    }


def main() -> None:
    """Run the selected starts, and write the tables once scratch and a backbone are finished."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--joint", default="eutectic-small", help="model, by name or folder")
    parser.add_argument("--molecules", help="model trained on molecules only")
    parser.add_argument("--only", nargs="+", choices=STARTS, help="starts to run")
    parser.add_argument("--tasks", nargs="+", choices=[t.name for t in TASKS])
    parser.add_argument("--stores", type=Path, help="folder of stores; with subfolders named after the data sets")
    parser.add_argument("--out", type=Path, default=Path("runs/transfer"))
    parser.add_argument("--workers", type=int)
    given = parser.parse_args()
    folders = {t.store: given.stores / t.store.partition(":")[2] for t in TASKS} if given.stores else {}
    stores = {name: str(folder) for name, folder in folders.items() if ":" in name and folder.exists()}
    models = {"scratch": None, "joint": given.joint, "molecules": given.molecules}
    starts = {s: models[s] for s in given.only or STARTS if s == "scratch" or models[s]}
    tasks = [t for t in TASKS if given.tasks is None or t.name in given.tasks]
    results, trials = study(starts, tasks, stores, given.out, given.workers, Console())
    backbones = [s for s in starts if s != "scratch"]
    if "scratch" not in starts or not backbones:
        return
    against = {
        s: [compared(t, results[t.name], trials.get(t.rates_of or t.name, {}), s) for t in tasks] for s in backbones
    }
    kinds = {"all": {t.kind for t in tasks}} | {t.kind: {t.kind} for t in tasks}
    means = {
        kind: {
            s: mean_of([c for t, c in zip(tasks, found, strict=True) if t.kind in of]) for s, found in against.items()
        }
        for kind, of in kinds.items()
    }
    rows = [row(t, {s: against[s][i] for s in backbones}) for i, t in enumerate(tasks)]
    record: dict[str, Any] = {
        "rows": rows,
        "means": means,
        "rates": {"scratch": SCRATCH_RATES, "pretrained": PRETRAINED_RATES},
        "seeds": SEEDS,
        "environment": environment(),
    }
    (given.out / "results.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    (given.out / "table.md").write_text(markdown(rows, backbones, means))
    for s in backbones:
        shown = StudyResults(
            tasks=against[s], pretraining=None, settings={}, times={}, environment=record["environment"]
        )
        write_demo_page(given.out / ("report.html" if s == "joint" else f"report-{s}.html"), shown)
    print((given.out / "table.md").read_text())


if __name__ == "__main__":
    main()
