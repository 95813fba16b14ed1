"""Fine-tuning: one model on one data set, from a pre-trained backbone or from scratch, tested on its test split."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import lightning_fabric as lf
import numpy as np
import torch
from ase.data import chemical_symbols
from rich.console import Console
from torch import nn

import eutectic
from eutectic.atoms import EutecticError
from eutectic.check.files import is_of_files, open_data
from eutectic.checkpoints.inspection import write_card
from eutectic.checkpoints.model import (
    TrainedModel,
    elements_seen,
    load_model,
    save_model,
    with_fewer_blocks,
)
from eutectic.checkpoints.seen_rows import LearnedRows, seen_rows
from eutectic.checkpoints.uncertainty import Uncertainties
from eutectic.data.examples import structure_to_dict, varied
from eutectic.data.splits import Split, split
from eutectic.data.store import Store
from eutectic.files import null_for_unknown, write_atomically
from eutectic.graph import GraphSettings
from eutectic.models.backbone import Backbone
from eutectic.models.multitask import MultitaskModel
from eutectic.models.parts import HEADS
from eutectic.tasks import Task, fit_task, targets_for
from eutectic.tasks.metrics import ClassErrorSum, ErrorSum, primary, shown
from eutectic.train.batches.by_cost import cut_by_cost, measure_costs
from eutectic.train.batches.sampler import BatchSampler, TaskDataset, check_shares
from eutectic.train.checkpoint import load_checkpoint, previous, remove_checkpoints
from eutectic.train.companions import (
    Companion,
    CompanionErrors,
    errors_of_new_heads,
    joint_score,
    judge_companions,
    read_companions,
)
from eutectic.train.cost import size_model
from eutectic.train.evaluation import evaluate, evaluate_store
from eutectic.train.finetune_result import FinetuneResult, read_result
from eutectic.train.freezing import TrainedParts, as_ordinary
from eutectic.train.judging import Curve, judge
from eutectic.train.kept_heads import AUTO, TRIED_ON, KeptHeads, choose_heads, started_model
from eutectic.train.loop import Trained, Verdict, train
from eutectic.train.optimisation import relative_rates
from eutectic.train.pretrain import initial_model, without_weights
from eutectic.train.ridge import fit_ridge, why_not, with_linear_heads
from eutectic.train.run_folder import claim_content, claim_folder, claimed, lengthen, model_hash
from eutectic.train.runtime.display import FinetuneDisplay
from eutectic.train.runtime.launch import is_first, launch, launched_outside, make_fabric, once, share_threads
from eutectic.train.runtime.stop import StopFlag
from eutectic.train.schedule import ClockSchedule, Schedule, finetune_schedule
from eutectic.train.settings import BackboneChoice, FinetuneOptimiserSettings, FinetuneSettings, duration
from eutectic.train.uncertainty import calibrated

PARITY_POINTS = 500

RIDGE_FITTED_TO = 256
"""Training structures of the ridge regression at the start of a run."""

PROBES = 32
"""Training structures used to detect dead heads if there are no validation structures."""

MOST_DEATHS = 3
"""How often a run restarts from earlier weights after a head has died."""


@dataclass(frozen=True)
class Prepared:
    """Data, task and starting model of a run, read once and passed to every process.

    `baseline` is the task with references and means fitted to the labels only: the mean predictor.
    """

    store: Store
    split: Split
    task: Task
    baseline: Task
    backbone: BackboneChoice
    graph: GraphSettings
    start: TrainedModel | None
    kept: KeptHeads = field(default_factory=KeptHeads)
    test: Store | None = None
    trained: TrainedParts = field(default_factory=TrainedParts)
    companions: tuple[Companion, ...] = ()

    @property
    def tasks(self) -> tuple[Task, ...]:
        """Tasks of the model; the run's own task is the first."""
        return (self.task, *(companion.task for companion in self.companions))


def finetune(
    settings: FinetuneSettings,
    folder: Path | None,
    *,
    console: Console | None = None,
    alone: bool = False,
    on_step: Callable[[int], None] = lambda step: None,
    stop: StopFlag | None = None,
) -> FinetuneResult:
    """Run or resume a fine-tuning; the result of a finished one is returned at once.

    Args:
        settings: of the run.
        folder: for `model`, `result.json`, the journal and checkpoints; None writes nothing (one process only).
        console: for messages and progress; None prints nothing.
        alone: use one process whatever settings and environment say, as for one of many concurrent runs.
        on_step: called with the number of steps done.
        stop: a flag that is already listening for signals, if any.

    Raises:
        EutecticError: invalid data, model or settings.
        Interrupted: stopped by a signal; resumable if there is a folder.
    """
    if folder is None and not alone and (settings.train.processes > 1 or launched_outside()):
        raise EutecticError(
            "fine-tuning",
            "several processes without a folder for the result",
            "a folder, or one process",
            "give a folder, or set train.processes to 1",
        )
    if settings.effort is not None:
        raise EutecticError(
            "effort",
            f"{settings.effort}, for a single training",
            "settings with a length (`eutectic finetune` and `eutectic.finetune` run the trainings of an effort)",
            "leave it out, and give steps, epochs or a time",
        )
    folder = None if folder is None else Path(folder)
    if launched_outside() and not alone:
        assert folder is not None
        with claimed(folder if is_first() else None):
            launch(settings.train, functools.partial(_outside, settings=settings, folder=folder, console=console))
        return read_result(folder)
    with claimed(folder):
        return _run(settings, folder, console, alone, on_step, stop)


def _run(
    settings: FinetuneSettings,
    folder: Path | None,
    console: Console | None,
    alone: bool,
    on_step: Callable[[int], None],
    stop: StopFlag | None,
) -> FinetuneResult:
    prepared = begin_run(settings, folder, console, alone)
    if prepared is None:
        assert folder is not None
        result = read_result(folder)
        on_step(result.total_steps)
        return result
    return run_prepared(settings, folder, prepared, console, alone=alone, on_step=on_step, stop=stop)


def run_prepared(
    settings: FinetuneSettings,
    folder: Path | None,
    prepared: Prepared,
    console: Console | None,
    *,
    alone: bool = False,
    on_step: Callable[[int], None] = lambda step: None,
    stop: StopFlag | None = None,
) -> FinetuneResult:
    """Train or resume a run for which `begin_run` was called (see `finetune` for the arguments)."""
    results: list[FinetuneResult] = []
    if alone:
        fabric = make_fabric(settings.train, alone=True)
        fabric.launch()
        _worker(
            fabric, stop or StopFlag(), settings, folder, prepared, console is None, on_step, results, console, alone
        )
    elif settings.train.processes == 1:
        # In this process, so the arguments need not be picklable.
        work = functools.partial(
            _worker,
            settings=settings,
            folder=folder,
            prepared=prepared,
            quiet=console is None,
            on_step=on_step,
            results=results,
            console=console,
        )
        launch(settings.train, work)
    else:
        assert folder is not None
        quiet = console is None
        launch(
            settings.train,
            functools.partial(_worker, settings=settings, folder=folder, prepared=prepared, quiet=quiet),
        )
        return read_result(folder)
    return results[0]


def begin_run(
    settings: FinetuneSettings,
    folder: Path | None,
    console: Console | None,
    alone: bool = False,
    command: str = "finetune",
) -> Prepared | None:
    """Claim the folder and read data and model; None if the run is already finished."""
    if folder is None:
        return prepare_run(settings, console)
    lengthened = claim_folder(folder, settings, command, may_lengthen=not alone and command == "finetune")
    finished = (folder / "result.json").exists() and not lengthened
    store = open_run_data(settings, None if finished else console)
    content = {f"data {settings.data.store}": store.content_hash()}
    if (test := _open_test(settings, None)) is not None:
        content[f"test {settings.data.test_file}"] = test.content_hash()
    for name, companion in settings.companions.items():
        if companion.store is not None:
            content[f"companion {name}"] = open_data(companion.store).content_hash()
    if (model := _model_named(settings)) is not None:
        content[f"model {model}"] = model_hash(model)
    claim_content(folder, content)
    if finished:
        if console is not None:
            console.print(f"the run in {folder} is finished; nothing to do.", highlight=False)
        return None
    prepared = prepare_run(settings, console, store)
    if lengthened:
        _lengthen(settings, folder, prepared, console)
    return prepared


def _lengthen(settings: FinetuneSettings, folder: Path, prepared: Prepared, console: Console | None) -> None:
    """Turn a shorter run with otherwise the same settings into an unfinished run of the new length.

    Raises:
        EutecticError: the run is already as long; it is finished, and its checkpoint is missing.
    """
    state, result = load_checkpoint(folder / "checkpoint.pt"), folder / "result.json"
    if state is None and result.exists():
        raise EutecticError(
            str(folder),
            "a finished run without its checkpoint, from which a longer run would continue",
            "a folder with checkpoint.pt",
            f"start a new run from its model: --model {folder / 'model'} --head-from {settings.name} --out OTHER",
        )
    done = 0 if state is None else int(state["step"])
    schedule = _schedule(settings, prepared)
    schedule.load_state_dict({} if state is None else state.get("schedule", {}))
    if done and schedule.finished(done):
        raise EutecticError(
            f"{folder}, {settings.train.length}",
            f"a run that has already done {done:,} steps in {duration(schedule.elapsed)}",
            "a greater length to continue the run, or the same length to return its result",
            "increase the length, or choose another --out",
        )
    result.unlink(missing_ok=True)
    lengthen(folder, settings, "finetune")
    if console is not None:
        console.print(f"continuing from step {done:,}: {settings.train.length} in total", highlight=False)


def _schedule(settings: FinetuneSettings, prepared: Prepared) -> Schedule:
    schedule = finetune_schedule(settings.train, _rates(settings, prepared), len(prepared.split.train))
    schedule.last_stage = settings.energy_stage
    if isinstance(schedule, ClockSchedule) and prepared.kept.task is not None:
        schedule.gentle = settings.optimiser.kept_head_warmup
    return schedule


def open_run_data(settings: FinetuneSettings, console: Console | None, path: str | None = None) -> Store:
    """Open the data, or another file with the same reading options."""
    data = settings.data
    return open_data(
        data.store if path is None else path,
        keys=data.keys,
        units=data.units,
        define=(*settings.define, *data.define),
        elements=data.elements,
        level_of_theory=data.level_of_theory,
        skip_unconverged=data.skip_unconverged,
        console=console,
    )


def _open_test(settings: FinetuneSettings, console: Console | None) -> Store | None:
    """Open the store or file to test on, if any; a file is read with the same options as the data."""
    path = settings.data.test_file
    if path is None:
        return None
    return open_run_data(settings, console, path) if is_of_files(path) else open_data(path, console=console)


def _check_test(settings: FinetuneSettings, test: Store, store: Store, parts: Split, console: Console | None) -> None:
    """Check that the test structures have labels; warn if some of them are also training or validation structures.

    Raises:
        EutecticError: the test structures have no labels of the learned properties.
    """
    counts = test.label_counts()
    has = ", ".join(name for name, n in counts.items() if n) or "none"
    if not any(counts.get(name) for name in settings.targets):
        raise EutecticError(
            f"data.test_file {settings.data.test_file}",
            f"no labels of {', '.join(settings.targets)}; its labels: {has}",
            "labels with the same names and units as in the data",
            "give a file in the format of the data, or prepare it as a store",
        )
    if console is None:
        return

    def geometry(row: int, opened: Store) -> bytes:
        structure = opened[row].structure
        return structure.numbers.tobytes() + np.round(structure.positions, 3).tobytes()

    learned = {geometry(int(row), store) for row in (*parts.train, *parts.validation)}
    same = sum(geometry(row, test) in learned for row in range(len(test)))
    console.print(f"test: {len(test):,} structures of {settings.data.test_file}", highlight=False)
    if same:
        console.print(
            f"[yellow]{same:,} of them are also training or validation structures:[/] errors are too low",
            highlight=False,
        )


def prepare_run(settings: FinetuneSettings, console: Console | None = None, store: Store | None = None) -> Prepared:
    """Read the data and the starting model of a run, and fit references and scales.

    Args:
        settings: of the run.
        console: for messages; None prints nothing.
        store: the data, if already open.

    Raises:
        EutecticError: invalid data, model or settings.
    """
    backbone, graph, start = _backbone_of(settings)
    store = open_run_data(settings, console) if store is None else store
    parts = split_of(store, settings)
    backbone = backbone.for_graphs([graph])
    module = start.module.backbone if start is not None else without_weights(backbone)
    task = fit_task(settings.name, store, parts.train, targets_for(settings.targets, module), graph)
    companions = read_companions(
        settings.companions,
        start,
        module,
        graph,
        store,
        (parts.train, parts.validation),
        tuple(settings.targets),
        settings.start,
    )
    for data in (store, *(companion.store for companion in companions)):
        backbone.of_backbone().check_elements(data.composition(), data.card.name)
    trained = _trained_parts(settings, module)
    kept = KeptHeads()
    if start is not None and settings.head_from is not None:
        training, validation = (
            TaskDataset(0, task, store, rows, edge_lists=backbone.of_backbone().edge_lists)
            for rows in (parts.train, parts.validation)
        )
        weights, where = settings.score_weights, f"{settings.start}"
        kept = choose_heads(start, task, settings.head_from, training, validation, weights, where)
    test = _open_test(settings, console)
    _check_new_heads(settings, task, kept, companions)
    prepared = Prepared(
        store, parts, kept.learned or task, task, backbone, graph, start, kept, test, trained, companions
    )
    if start is not None:
        _check_unseen(settings.start, start, store, parts, console)
        for companion in companions:
            if companion.has_new_heads:
                _check_unseen(settings.start, start, companion.store, companion.parts, console)
    if console is not None:
        _announce(console, settings, prepared)
    if test is not None:
        _check_test(settings, test, store, parts, console)
    return prepared


def _trained_parts(settings: FinetuneSettings, module: Backbone) -> TrainedParts:
    """Trained parts, checked together with their learning rates before anything is computed."""
    optimiser = settings.optimiser
    if not (settings.freeze or settings.lora or optimiser.part_rates or optimiser.layer_decay < 1):
        return TrainedParts()
    relative_rates(module, optimiser)
    return TrainedParts.of(settings, module)


def _check_new_heads(settings: FinetuneSettings, task: Task, kept: KeptHeads, companions: Sequence[Companion]) -> None:
    """Check that frozen heads are not new.

    Raises:
        EutecticError: the heads are frozen, and some of them are new.
    """
    new = [name for name in task.targets if name not in kept.properties and not task.heads[name].entry.derivative]
    new += [f"all of {companion.task.name}" for companion in companions if companion.has_new_heads]
    if HEADS in settings.freeze and new:
        raise EutecticError(
            "freeze",
            f"heads, but new heads ({' and '.join(new)}) give random numbers",
            "frozen heads that are kept from the model (`head_from`)",
            "do not freeze heads, or name the task whose heads are kept: --head-from TASK",
        )


def _check_unseen(name: str, start: TrainedModel, store: Store, parts: Split, console: Console | None) -> None:
    """Check that the starting model was not trained on test structures; warn about validation structures.

    Raises:
        EutecticError: it was trained on test structures.
    """
    seen = seen_rows(start.provenance, store)
    if seen is None:
        return  # unknown, which the log already says
    tested, validated = (np.intersect1d(rows, seen).size for rows in (parts.test, parts.validation))
    if tested:
        raise EutecticError(
            f"start {name}, split {parts.name!r} of {store.card.name}",
            f"{tested:,} of {len(parts.test):,} test structures that this model was trained on",
            "test structures that it has never seen",
            "use the split that the model was trained with (its test part was not used), data.test 0, or new data",
        )
    if validated and console is not None:
        console.print(
            f"[yellow]{validated:,} of {len(parts.validation):,} validation structures[/] were used to train {name}: "
            "validation errors are too low",
            highlight=False,
        )


def _outside(
    fabric: lf.Fabric, stop: StopFlag, settings: FinetuneSettings, folder: Path, console: Console | None
) -> None:
    """One process of a run started by torchrun or srun."""
    prepared = once(fabric, functools.partial(begin_run, settings, folder, console))
    if prepared is not None:
        _worker(fabric, stop, settings, folder, prepared, console is None)
    fabric.barrier()  # every process reads the result


def _worker(
    fabric: lf.Fabric,
    stop: StopFlag,
    settings: FinetuneSettings,
    folder: Path | None,
    prepared: Prepared,
    quiet: bool,
    on_step: Callable[[int], None] = lambda step: None,
    results: list[FinetuneResult] | None = None,
    console: Console | None = None,
    alone: bool = False,
) -> None:
    """One process of the run."""
    share_threads(settings.train, fabric.world_size)
    task, store, parts = prepared.task, prepared.store, prepared.split
    first = fabric.global_rank == 0
    edge_lists = prepared.backbone.of_backbone().edge_lists
    tasks, companions = prepared.tasks, prepared.companions
    batch_size = min(settings.train.batch_size, len(parts.train))
    datasets, shares = _learned_together(prepared, edge_lists)
    together = max(batch_size, round(batch_size * sum(shares.values())))
    make = functools.partial(BatchSampler, datasets, temperature=1.0, seed=settings.train.seed, weights=shares)
    sampler = make(batch_size=together)
    model = _model(settings, prepared, sampler)
    prepared.trained.apply(model)
    words = prepared.trained.in_words(model)
    if console is not None and first:
        console.print(f"trained: {words}", highlight=False)
    if settings.batching.by == "cost":
        coefficients = settings.batching.coefficients
        if coefficients is None:
            coefficients = measure_costs(fabric, settings.train, sampler, model, tasks, folder).seconds.coefficients
        sizes = [size_model(data) for data in datasets]
        sampler = cut_by_cost(make, settings.batching, together, datasets, sizes, coefficients)
    check_shares(sampler, fabric.world_size)

    validation = TaskDataset(0, task, store, parts.validation, edge_lists=edge_lists).items()
    validation = validation[fabric.global_rank :: fabric.world_size]
    # Without validation structures, a few training structures serve to detect a dead head.
    probes = [] if len(parts.validation) else [datasets[0].item(i) for i in range(min(PROBES, len(parts.train)))]
    companion_items = {
        companion.task.name: companion.validating(k, edge_lists).items()[fabric.global_rank :: fabric.world_size]
        for k, companion in enumerate(companions, start=1)
    }
    others = CompanionErrors()
    schedule = _schedule(settings, prepared)
    curve = Curve({name: [] for name in task.targets})
    best: dict[str, Any] = {"step": 0, "weights": {k: v.clone() for k, v in model.state_dict().items()}}

    def validate(averaged: MultitaskModel, step: int, elapsed: float) -> Verdict:
        found = judge(
            fabric,
            evaluate(averaged, tasks, validation, device=fabric.device, baseline=prepared.baseline)[task.name],
            settings.score_weights,
        )
        of_others = judge_companions(fabric, averaged, tasks, companion_items) if companion_items else {}
        judged = [companion.task.name for companion in companions if companion.judged]
        if judged:
            dead = tuple(f"{name} of {other}" for other in judged for name in of_others[other].dead)
            score = joint_score(found.score, [of_others[other].score for other in judged])
            found = replace(found, dead=(*found.dead, *dead), score=score)
        dead = found.dead
        if probes:
            dead = judge(fabric, evaluate(averaged, tasks, probes, device=fabric.device)[task.name], {}).dead
        # Without validation structures, the last step is kept.
        improved = not dead if probes else curve.improves(found)
        if improved:
            best.update(step=step, weights={k: v.detach().cpu().clone() for k, v in averaged.state_dict().items()})
        others.add(of_others, first=not curve.steps, kept=improved)
        curve.add(step, elapsed, found)
        display.validated(step, found, improved)
        restart = None
        if dead and step:
            curve.deaths += 1
            _check_deaths(settings, curve.deaths, dead, step)
            curve.notes.append(
                f"step {step}: the head of {' and '.join(dead)} had died (same output for all structures); restarted "
                f"from the weights of step {best['step']} with half the learning rate"
            )
            display.say(curve.notes[-1], style="yellow")
            restart = best["weights"]
        elif dead:
            display.say(f"the head of {' and '.join(dead)} gives the same output for all structures", style="yellow")
        return Verdict(
            score=found.score if len(parts.validation) and not dead else None,
            errors={"errors": null_for_unknown(found.errors), "score": null_for_unknown(found.score)}
            | ({"companions": {n: null_for_unknown(f.errors) for n, f in of_others.items()}} if of_others else {}),
            restart=restart,
        )

    def stepped(entry: dict[str, Any]) -> None:
        display.stepped(entry)
        on_step(entry["step"])

    def restore(state: dict[str, Any]) -> None:
        curve.restore(state["curve"])
        best.update(state["best"])
        if "companions" in state:  # not in runs begun by earlier versions
            others.restore(state["companions"])

    with FinetuneDisplay(
        task,
        schedule,
        len(parts.train),
        log=folder if first else None,
        hidden=quiet or not first,
        console=console,
        validated_on=len(parts.validation),
    ) as display:
        trained = train(
            fabric,
            model,
            tasks,
            sampler,
            settings.train,
            _rates(settings, prepared),
            schedule=schedule,
            last_stage=_last_stage(settings, tasks),
            folder=folder,
            validate=validate,
            extra_state=lambda: {"curve": curve.to_json(), "best": best, "companions": others.to_json()},
            restore_extra=restore,
            on_step=stepped,
            describe=lambda module: TrainedModel(
                as_ordinary(module), tasks, prepared.backbone.name, prepared.backbone.settings, prepared.graph
            ),
            stop=stop,
        )
    if not first:
        return
    final = trained.averaged
    final.load_state_dict(best["weights"])
    as_ordinary(final)
    drawn = trained.steps * settings.train.accumulate * batch_size
    result = run_result(settings, prepared, curve, best["step"], trained, drawn, schedule.reason, final, fabric.device)
    others.test = errors_of_new_heads(final, companions, edge_lists, fabric.device)
    result = replace(result, trained=words, companions=others.to_dict(companions))
    if results is not None:
        results.append(result)
    if folder is not None:
        # Runs of a study do not need uncertainties.
        save_run(settings, prepared, final, result, folder, uncertain=settings.uncertainty and not alone)
        if alone:
            remove_checkpoints(folder / "checkpoint.pt")
        else:
            # Keep the last checkpoint, from which a longer run can continue.
            previous(folder / "checkpoint.pt").unlink(missing_ok=True)


def _learned_together(prepared: Prepared, edge_lists: tuple[str, ...]) -> tuple[list[TaskDataset], dict[str, float]]:
    """The data sets of the batches, and their numbers of structures per structure of the run's own data."""
    task, rows = prepared.task, prepared.split.train
    datasets, shares = [TaskDataset(0, task, prepared.store, rows, keep=True, edge_lists=edge_lists)], {task.name: 1.0}
    for index, companion in enumerate(prepared.companions, start=1):
        if companion.settings.ratio:
            datasets.append(companion.training(index, edge_lists))
            shares[companion.task.name] = companion.settings.ratio
    return datasets, shares


def _last_stage(settings: FinetuneSettings, tasks: Sequence[Task]) -> list[Task] | None:
    """The tasks with their loss weights in the energy stage, if there is one."""
    if not settings.energy_stage:
        return None
    task, *companions = tasks
    energy = task.targets["energy"]
    heavier = replace(energy, weight=energy.weight * settings.energy_stage_factor)
    return [replace(task, targets={**task.targets, "energy": heavier}), *companions]


def _check_deaths(settings: FinetuneSettings, deaths: int, dead: Sequence[str], step: int) -> None:
    """Stop a run whose heads die repeatedly.

    Raises:
        EutecticError: more than `MOST_DEATHS` times.
    """
    if deaths > MOST_DEATHS:
        raise EutecticError(
            f"step {step}, head of {' and '.join(dead)}",
            f"the same output for all structures, for the {deaths}th time, despite lower and lower learning rates",
            "predictions that differ between structures",
            f"lower --learning-rate ({settings.optimiser.learning_rate:g}); check the labels (`eutectic data check`)",
        )


def _learned(settings: FinetuneSettings, store: Store, parts: Split) -> LearnedRows:
    data = settings.data
    return LearnedRows.of(
        store,
        parts,
        n_train=data.train,
        n_validation=data.validation,
        n_test=data.test,
        seed=data.split_seed,
        needs=tuple(settings.targets),
    )


def split_of(store: Store, settings: FinetuneSettings) -> Split:
    """The split of a run's data."""
    data = settings.data
    return split(
        store,
        data.split or store.card.default_split,
        n_train=data.train,
        n_validation=data.validation,
        n_test=data.test,
        seed=data.split_seed,
        needs=tuple(settings.targets),
    )


def _model_named(settings: FinetuneSettings) -> str | None:
    """The model that is fine-tuned, or whose architecture is used, if any."""
    return settings.architecture_from if settings.start == "scratch" else settings.start


def _backbone_of(settings: FinetuneSettings) -> tuple[BackboneChoice, GraphSettings, TrainedModel | None]:
    """Backbone and graph settings, and the model that is fine-tuned, if any.

    Where forces or stress are derivatives of the energy, the graph becomes smooth unless graph settings are given.
    """
    folder, keep = _model_named(settings), settings.keep_blocks
    if folder is None:
        choice = settings.backbone or BackboneChoice()
        return choice if keep is None else choice.with_blocks(keep), settings.graph or GraphSettings(), None
    if settings.backbone is not None:
        raise EutecticError(
            "backbone",
            "backbone settings together with a model to start from",
            "only one of the two",
            "drop `backbone`; it is read from the model",
        )
    model = load_model(folder)
    if keep is not None:
        model = with_fewer_blocks(model, keep)
    choice = BackboneChoice(name=model.backbone, settings=dict(model.backbone_settings))
    graph = settings.graph
    if graph is None:
        derived = any(target.head.kind and target.head.entry.derivative for target in settings.targets.values())
        graph = model.graph.for_derivatives() if derived else model.graph
    return choice, graph, None if settings.start == "scratch" else model


def _announce(console: Console, settings: FinetuneSettings, prepared: Prepared) -> None:
    """Before training, print the data, the split, and which parts of the model are kept or new."""
    store, parts, task = prepared.store, prepared.split, prepared.task
    counts = store.label_counts()
    console.print(
        f"{store.card.name} ({store.card.level_of_theory}): {len(store):,} structures, "
        + ", ".join(f"{name} {counts[name]:,}" for name in task.targets if name in counts)
        + f"; split {parts.name!r}: {len(parts.train):,} training, {len(parts.validation):,} validation, "
        f"{len(parts.test):,} test",
        highlight=False,
    )
    missing = {
        "validation": "the weights of the last step are kept, and there is no validation error",
        "test": "there is no test error",
    }
    for part, rows in (("validation", parts.validation), ("test", parts.test)):
        if not len(rows) and not (part == "test" and prepared.test is not None):
            console.print(f"[yellow]no {part} structures:[/] {missing[part]}", highlight=False)
    if settings.energy_stage:
        console.print(
            f"in the last {settings.energy_stage:.0%} of the run, the weight of the energy is multiplied by "
            f"{settings.energy_stage_factor:g}",
            highlight=False,
        )
    if settings.graph is None and prepared.graph.smooth_cap:
        console.print(
            f"graph: {prepared.graph.max_neighbours} neighbours; the farthest fade out over "
            f"{prepared.graph.smooth_cap:g} Å, so that conservative forces are continuous",
            highlight=False,
        )
    for companion in prepared.companions:
        console.print(f"together with: {companion.in_words}", highlight=False)
    start = prepared.start
    if start is None:
        like = f" with the architecture of {settings.architecture_from}" if settings.architecture_from else ""
        console.print(f"from scratch: {prepared.backbone.name}{like}, seed {settings.train.seed}", highlight=False)
        return
    kept = prepared.kept
    if settings.keep_blocks is not None:
        console.print(f"kept: the first {settings.keep_blocks} blocks", highlight=False)
    trained_on = cast(Mapping[str, Any], start.provenance.get("pretrained_on", {}))
    finetuned_on = start.provenance.get("finetuned_on")
    parameters = sum(p.numel() for p in cast(nn.Module, start.module.backbone).parameters())
    console.print(
        f"loaded: {start.backbone} backbone of {settings.start} ({parameters:,} parameters), trained on "
        f"{', '.join(trained_on) or finetuned_on or 'unknown data'}",
        highlight=False,
    )
    if kept.task is not None:
        number = min(TRIED_ON, len(parts.validation) or len(parts.train))
        errors = ", ".join(
            f"{name} {error:.4g} (mean predictor {kept.baselines[name]:.4g}) {shown(name, 1.0)[1]}"
            for name, error in kept.errors.items()
        )
        console.print(
            f"kept: heads of task {kept.task}: {', '.join(kept.properties)}; before training, on {number} "
            f"{'validation' if len(parts.validation) else 'training'} structures: {errors}",
            highlight=False,
        )
    elif settings.head_from not in (None, AUTO):
        console.print(
            f"[yellow]no head of task {settings.head_from} fits:[/] none has the same property, kind and size",
            highlight=False,
        )
    for name, ratio in kept.rejected.items():
        console.print(
            f"not kept: heads of task {name}, of the same level of theory: errors {ratio:.2f} times those of the mean "
            "predictor",
            highlight=False,
        )
    _announce_ridge(console, prepared)
    fresh = [name for name in task.targets if name not in kept.properties and not task.heads[name].entry.derivative]
    if fresh:
        console.print(f"reset: new heads for {', '.join(fresh)}", highlight=False)
    derived = [name for name in task.targets if task.heads[name].entry.derivative]
    if derived:
        console.print(f"conservative: {', '.join(derived)} as derivatives of the energy", highlight=False)
    used = {kept.task, *(companion.kept.task for companion in prepared.companions)}
    dropped = [donor.name for donor in start.tasks if donor.name not in used]
    if dropped:
        console.print(f"dropped: heads of {', '.join(dropped)}", highlight=False)
    left = " (references to the residuals of the kept heads)" if kept.task is not None else ""
    console.print(f"fitted to the training split: references and scales{left}", highlight=False)
    seen = elements_seen(start)
    unseen = [chemical_symbols[z] for z in store.composition() if seen and z not in seen]
    if unseen:
        console.print(f"[yellow]elements not in the pre-training data:[/] {', '.join(unseen)}", highlight=False)


def _announce_ridge(console: Console, prepared: Prepared) -> None:
    """Print the errors of a ridge regression on the backbone's features, fitted to a part of the data."""
    parts, task = prepared.split, prepared.baseline
    names = [name for name in task.targets if name not in why_not(task)]
    if prepared.start is None or not names or not len(parts.validation):
        return
    linear = with_linear_heads(task, names)
    given: dict[str, Any] = {"edge_lists": prepared.backbone.of_backbone().edge_lists}
    training, validation = (
        TaskDataset(0, linear, prepared.store, rows, **given)
        for rows in (parts.train[:RIDGE_FITTED_TO], parts.validation[:TRIED_ON])
    )
    ridge = fit_ridge(prepared.start.module.backbone, linear, training, validation)
    items = replace(validation, task=ridge.task, kept={}).items()
    found = evaluate(ridge.model, [ridge.task], items, baseline=task)[task.name]
    errors = ", ".join(
        f"{name} {shown(name, e.mae)[0]:.4g} (mean predictor {shown(name, e.baseline_mae)[0]:.4g}) "
        f"{shown(name, 1.0)[1]}"
        for name, e in found.items()
        if e.count
    )
    if errors:
        console.print(
            f"ridge regression on the features of {len(training)} training structures, on {len(items)} validation "
            f"structures: {errors}",
            highlight=False,
        )


def _model(settings: FinetuneSettings, prepared: Prepared, sampler: BatchSampler) -> MultitaskModel:
    seed, task, start = settings.train.seed, prepared.task, prepared.start
    if start is None:
        return initial_model(prepared.backbone.name, prepared.backbone.settings, prepared.tasks, sampler, seed)
    torch.manual_seed(seed)
    kept = prepared.kept
    others = [(other.task, other.kept.task, other.kept.properties) for other in prepared.companions]
    model = started_model(start, task, kept.task, kept.properties, others)
    for companion in prepared.companions:
        # Weight decay would shrink heads that get no gradient.
        model.heads[companion.task.name].requires_grad_(bool(companion.settings.ratio))
    return model.train()


def _rates(settings: FinetuneSettings, prepared: Prepared) -> FinetuneOptimiserSettings:
    """Optimiser settings, with a slower warm-up if heads are kept."""
    if prepared.kept.task is None:
        return settings.optimiser
    if settings.train.time is not None and not settings.train.until_converged:
        return settings.optimiser  # the warm-up is timed, see `_schedule`
    steps = finetune_schedule(settings.train, settings.optimiser, len(prepared.split.train)).steps
    # A run of unknown length is warmed up like one of 1,000 steps.
    return settings.optimiser.gentle(1000 if steps is None else steps)


def run_result(
    settings: FinetuneSettings,
    prepared: Prepared,
    curve: Curve,
    best_step: int,
    trained: Trained,
    drawn: int,
    reason: str,
    model: MultitaskModel,
    device: torch.device,
) -> FinetuneResult:
    """Test the model of a run, and collect the result.

    Args:
        settings, prepared: of the run.
        curve: validation errors.
        best_step: step of the weights of `model`.
        trained: training time and number of steps.
        drawn: number of structures drawn in all steps.
        reason: why the run ended, if that was not fixed beforehand.
        model: the model that is kept.
        device: to test on.
    """
    store, parts, task = prepared.store, prepared.split, prepared.task
    judged = primary(list(task.targets))
    edge_lists = prepared.backbone.of_backbone().edge_lists
    notes = [*curve.notes, *([reason] if reason else [])]
    if prepared.test is not None:
        tested_on = len(prepared.test)
        found, refused = evaluate_store(
            model.to(device), task, prepared.test, np.arange(tested_on), baseline=prepared.baseline
        )
        found = {name: error for name, error in found.items() if error.count}
        if refused:
            tested_on -= len(refused)
            notes.append(f"{len(refused):,} test structures could not be predicted; the first: {refused[0]}")
    else:
        tested_on = len(parts.test)
        tested = TaskDataset(0, task, store, parts.test, edge_lists=edge_lists).items()
        given: dict[str, Any] = {"device": device, "keep": True, "baseline": prepared.baseline}
        found = evaluate(model, prepared.tasks, tested, **given)[task.name] if tested else {}
    parity = {name: _points(name, error) for name, error in found.items() if error.truth}
    test_errors = {name: shown(name, error.mae)[0] for name, error in found.items()}
    test_baselines = {name: shown(name, error.baseline_mae)[0] for name, error in found.items()}
    truth, prediction = parity.get(judged, [[], []])
    return FinetuneResult(
        name=settings.name,
        start="scratch" if settings.start == "scratch" else "pretrained",
        model=_model_named(settings),
        property=judged,
        unit=shown(judged, 1.0)[1],
        dataset=store.card.name,
        level_of_theory=store.card.level_of_theory,
        total_steps=trained.steps,
        batch_size=min(settings.train.batch_size, len(parts.train)),
        learning_rate=settings.optimiser.learning_rate,
        weight_decay=settings.optimiser.weight_decay,
        seed=settings.train.seed,
        steps=curve.steps,
        seconds=curve.seconds,
        errors=curve.errors[judged],
        curves=curve.errors,
        best_step=best_step,
        validation_baselines=curve.baselines,
        test_error=test_errors.get(judged),
        baseline_error=test_baselines.get(judged),
        test_errors=test_errors,
        test_baselines=test_baselines,
        units={name: shown(name, 1.0)[1] for name in task.targets},
        metrics={n: (ClassErrorSum if task.property(n).categorical else ErrorSum).metric for n in task.targets},
        roc_auc={n: e.roc_auc for n, e in found.items() if isinstance(e, ClassErrorSum) and np.isfinite(e.roc_auc)},
        truth=truth,
        prediction=prediction,
        parity=parity,
        trained_on=len(parts.train),
        validated_on=len(parts.validation),
        tested_on=tested_on,
        wall_seconds=round(trained.seconds, 2),
        examples=[structure_to_dict(store[row].structure) for row in varied(store)],
        scores=curve.scores,
        score_weights={name: settings.score_weights.get(name, 1.0) for name in task.targets},
        length=settings.train.length,
        epochs=round(drawn / len(parts.train), 2),
        fell=curve.fell,
        converged=bool(reason),
        notes=notes,
    )


def _points(name: str, error: ErrorSum) -> list[list[float]]:
    """[truth, prediction] of up to 500 evenly spaced values, in the display unit."""
    factor, _ = shown(name, 1.0)
    truth, prediction = np.concatenate(error.truth), np.concatenate(error.prediction)
    some = np.linspace(0, len(truth) - 1, min(PARITY_POINTS, len(truth))).astype(int)
    return [(values[some] * factor).round(6).tolist() for values in (truth, prediction)]


def _uncertainties(settings: FinetuneSettings, prepared: Prepared, model: MultitaskModel) -> Uncertainties:
    """Uncertainties of the scalar properties, from the training and validation structures."""
    parts, store = prepared.split, prepared.store
    found = calibrated(
        model, prepared.task, (store, parts.train), (store, parts.validation), batch_size=settings.train.batch_size
    )
    return {settings.name: found} if found else {}


def save_run(
    settings: FinetuneSettings,
    prepared: Prepared,
    model: MultitaskModel,
    result: FinetuneResult,
    folder: Path,
    *,
    uncertain: bool,
) -> None:
    """Write model and result, which finishes a run."""
    store, start = prepared.store, prepared.start
    provenance: dict[str, Any] = {
        "eutectic": eutectic.__version__,
        "finetuned_on": store.card.name,
        "task": settings.name,
        "start": settings.start,
        "structures": result.trained_on,
        "steps": result.total_steps,
        "seed": settings.train.seed,
        "level_of_theory": store.card.level_of_theory,
        "licence": store.card.licence,
        "elements": sorted(store.composition()),
        "learned_rows": [
            _learned(settings, store, prepared.split).to_dict(),
            *(rows.to_dict() for other in prepared.companions if (rows := other.learned_rows()) is not None),
        ],
    }
    if prepared.companions:
        provenance["together_with"] = [other.in_words for other in prepared.companions if other.settings.ratio]
    if start is not None:
        provenance["pretrained"] = dict(start.provenance)
    described = TrainedModel(
        model,
        prepared.tasks,
        prepared.backbone.name,
        prepared.backbone.settings,
        prepared.graph,
        provenance,
        _uncertainties(settings, prepared, model) if uncertain else {},
    )
    save_model(folder / "model", described)
    write_atomically(folder / "result.json", json.dumps(result.to_dict()), sole_writer=True)
    write_card(folder / "model")
