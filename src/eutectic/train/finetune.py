"""Fine-tuning: one model on one data set, from a pre-trained backbone or from scratch, tested on its test split.

This is the story of a run, from top to bottom: claim the folder, prepare (`finetune_preparation.py`), say what will be
trained (`finetune_announcement.py`), train in every process, validate along the way (`finetune_validation.py`), and at
the end test and save the model (`finetune_outcome.py`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning_fabric as lf
import torch
from rich.console import Console

from eutectic.atoms import EutecticError
from eutectic.check.files import open_data
from eutectic.checkpoints.model import TrainedModel
from eutectic.data.store import Store
from eutectic.models.multitask import MultitaskModel
from eutectic.tasks import Task
from eutectic.train.batches.by_cost import cut_by_cost, measure_costs
from eutectic.train.batches.sampler import BatchSampler, TaskDataset, check_shares
from eutectic.train.checkpoint import load_checkpoint, previous, remove_checkpoints
from eutectic.train.companions import errors_of_new_heads
from eutectic.train.cost import size_model
from eutectic.train.finetune_announcement import announce
from eutectic.train.finetune_outcome import run_result, save_run
from eutectic.train.finetune_preparation import (
    Prepared,
    check_test,
    model_named,
    open_run_data,
    open_test,
    prepare_data_and_start,
)
from eutectic.train.finetune_result import FinetuneResult, read_result
from eutectic.train.finetune_validation import Validation
from eutectic.train.freezing import as_ordinary
from eutectic.train.kept_heads import started_model
from eutectic.train.loop import Trained, train
from eutectic.train.pretrain import initial_model
from eutectic.train.run_folder import claim_content, claim_folder, claimed, lengthen, model_hash
from eutectic.train.runtime.display import FinetuneDisplay
from eutectic.train.runtime.launch import is_first, launch, launched_outside, make_fabric, once, share_threads
from eutectic.train.runtime.stop import StopFlag
from eutectic.train.schedule import ClockSchedule, Schedule, finetune_schedule
from eutectic.train.settings import FinetuneOptimiserSettings, FinetuneSettings, duration


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


def _outside(
    fabric: lf.Fabric, stop: StopFlag, settings: FinetuneSettings, folder: Path, console: Console | None
) -> None:
    """One process of a run started by torchrun or srun."""
    prepared = once(fabric, functools.partial(begin_run, settings, folder, console))
    if prepared is not None:
        _worker(fabric, stop, settings, folder, prepared, console is None)
    fabric.barrier()  # every process reads the result


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
    if (test := open_test(settings, None)) is not None:
        content[f"test {settings.data.test_file}"] = test.content_hash()
    for name, companion in settings.companions.items():
        if companion.store is not None:
            content[f"companion {name}"] = open_data(companion.store).content_hash()
    if (model := model_named(settings)) is not None:
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


def prepare_run(settings: FinetuneSettings, console: Console | None = None, store: Store | None = None) -> Prepared:
    """Read the data and the starting model of a run, and print what will be trained.

    Args:
        settings: of the run.
        console: for messages; None prints nothing.
        store: the data, if already open.

    Raises:
        EutecticError: invalid data, model or settings.
    """
    prepared = prepare_data_and_start(settings, console, store)
    if console is not None:
        announce(console, settings, prepared)
    check_test(settings, prepared, console)  # its messages follow the announcement
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
    first = fabric.global_rank == 0
    datasets, shares = _learned_together(prepared)
    make = functools.partial(BatchSampler, datasets, temperature=1.0, seed=settings.train.seed, weights=shares)
    batch_size = _batch_size(settings, prepared)
    sampler = make(batch_size=max(batch_size, round(batch_size * sum(shares.values()))))
    model = _model(settings, prepared, sampler)
    prepared.trained.apply(model)
    words = prepared.trained.in_words(model)
    if console is not None and first:
        console.print(f"trained: {words}", highlight=False)
    if settings.batching.by == "cost":
        sampler = _cut_by_cost(fabric, settings, prepared, folder, model, sampler, make)
    check_shares(sampler, fabric.world_size)
    validation = Validation(fabric, settings, prepared, model, datasets[0])
    schedule = _schedule(settings, prepared)
    with FinetuneDisplay(
        prepared.task,
        schedule,
        len(prepared.split.train),
        log=folder if first else None,
        hidden=quiet or not first,
        console=console,
        validated_on=len(prepared.split.validation),
    ) as display:

        def stepped(entry: dict[str, Any]) -> None:
            display.stepped(entry)
            on_step(entry["step"])

        trained = train(
            fabric,
            model,
            prepared.tasks,
            sampler,
            settings.train,
            _rates(settings, prepared),
            schedule=schedule,
            last_stage=_last_stage(settings, prepared.tasks),
            folder=folder,
            validate=functools.partial(validation.validate, display=display),
            extra_state=validation.state,
            restore_extra=validation.restore,
            on_step=stepped,
            describe=functools.partial(_described, prepared),
            stop=stop,
        )
    if first:
        result = _finish(fabric, settings, prepared, folder, trained, validation, schedule.reason, words, alone)
        if results is not None:
            results.append(result)


def _learned_together(prepared: Prepared) -> tuple[list[TaskDataset], dict[str, float]]:
    """The data sets of the batches, and their numbers of structures per structure of the run's own data."""
    task, rows, edge_lists = prepared.task, prepared.split.train, prepared.edge_lists
    datasets, shares = [TaskDataset(0, task, prepared.store, rows, keep=True, edge_lists=edge_lists)], {task.name: 1.0}
    for index, companion in enumerate(prepared.companions, start=1):
        if companion.settings.ratio:
            datasets.append(companion.training(index, edge_lists))
            shares[companion.task.name] = companion.settings.ratio
    return datasets, shares


def _batch_size(settings: FinetuneSettings, prepared: Prepared) -> int:
    """Structures of the run's own data per batch."""
    return min(settings.train.batch_size, len(prepared.split.train))


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


def _cut_by_cost(
    fabric: lf.Fabric,
    settings: FinetuneSettings,
    prepared: Prepared,
    folder: Path | None,
    model: MultitaskModel,
    sampler: BatchSampler,
    make: Callable[..., BatchSampler],
) -> BatchSampler:
    """The batches of a sampler, cut by cost, which is measured unless the settings give it."""
    coefficients = settings.batching.coefficients
    if coefficients is None:
        costs = measure_costs(fabric, settings.train, sampler, model, prepared.tasks, folder)
        coefficients = costs.seconds.coefficients
    sizes = [size_model(data) for data in sampler.sets]
    return cut_by_cost(make, settings.batching, sampler.batch_size, sampler.sets, sizes, coefficients)


def _schedule(settings: FinetuneSettings, prepared: Prepared) -> Schedule:
    schedule = finetune_schedule(settings.train, _rates(settings, prepared), len(prepared.split.train))
    schedule.last_stage = settings.energy_stage
    if isinstance(schedule, ClockSchedule) and prepared.kept.task is not None:
        schedule.gentle = settings.optimiser.kept_head_warmup
    return schedule


def _rates(settings: FinetuneSettings, prepared: Prepared) -> FinetuneOptimiserSettings:
    """Optimiser settings, with a slower warm-up if heads are kept."""
    if prepared.kept.task is None:
        return settings.optimiser
    if settings.train.time is not None and not settings.train.until_converged:
        return settings.optimiser  # the warm-up is timed, see `_schedule`
    steps = finetune_schedule(settings.train, settings.optimiser, len(prepared.split.train)).steps
    # A run of unknown length is warmed up like one of 1,000 steps.
    return settings.optimiser.gentle(1000 if steps is None else steps)


def _last_stage(settings: FinetuneSettings, tasks: Sequence[Task]) -> list[Task] | None:
    """The tasks with their loss weights in the energy stage, if there is one."""
    if not settings.energy_stage:
        return None
    task, *companions = tasks
    energy = task.targets["energy"]
    heavier = replace(energy, weight=energy.weight * settings.energy_stage_factor)
    return [replace(task, targets={**task.targets, "energy": heavier}), *companions]


def _described(prepared: Prepared, model: MultitaskModel) -> TrainedModel:
    """A model that can be saved, to replay a non-finite step."""
    backbone = prepared.backbone
    return TrainedModel(as_ordinary(model), prepared.tasks, backbone.name, backbone.settings, prepared.graph)


def _finish(
    fabric: lf.Fabric,
    settings: FinetuneSettings,
    prepared: Prepared,
    folder: Path | None,
    trained: Trained,
    validation: Validation,
    reason: str,
    words: str,
    alone: bool,
) -> FinetuneResult:
    """Test the weights of the best step, and save model and result."""
    model, device, best_step = trained.averaged, fabric.device, validation.best_step
    model.load_state_dict(validation.best_weights)
    as_ordinary(model)
    drawn = trained.steps * settings.train.accumulate * _batch_size(settings, prepared)
    result = run_result(settings, prepared, validation.curve, best_step, trained, drawn, reason, model, device)
    errors = validation.companions
    errors.test = errors_of_new_heads(model, prepared.companions, prepared.edge_lists, device)
    result = replace(result, trained=words, companions=errors.to_dict(prepared.companions))
    if folder is not None:
        # Runs of a study do not need uncertainties.
        save_run(settings, prepared, model, result, folder, uncertain=settings.uncertainty and not alone)
        if alone:
            remove_checkpoints(folder / "checkpoint.pt")
        else:
            # Keep the last checkpoint, from which a longer run can continue.
            previous(folder / "checkpoint.pt").unlink(missing_ok=True)
    return result
