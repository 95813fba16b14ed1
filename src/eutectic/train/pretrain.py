"""Joint pre-training: read data, fit references and scales, plan, train, save."""

from __future__ import annotations

import functools
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import lightning_fabric as lf
import torch
from pydantic import ValidationError
from rich.console import Console
from torch import nn

import eutectic
from eutectic.atoms import EutecticError
from eutectic.checkpoints.inspection import write_card
from eutectic.checkpoints.model import TrainedModel, build_backbone, load_model, save_model
from eutectic.checkpoints.seen_rows import LearnedRows, merged_records
from eutectic.checkpoints.shipped import model_folder
from eutectic.data.catalogue import open_store
from eutectic.data.splits import Split, split
from eutectic.data.store import Store
from eutectic.files import read_json, write_atomically
from eutectic.graph import LISTS, GraphSettings
from eutectic.models.backbone import Backbone
from eutectic.models.multitask import MultitaskModel
from eutectic.tasks import Task, fit_task, make_batch, targets_for
from eutectic.tasks.metrics import shown
from eutectic.train.batches.by_cost import cut_by_cost, measure_costs
from eutectic.train.batches.loader import default_workers
from eutectic.train.batches.sampler import BatchSampler, TaskDataset
from eutectic.train.cost import Calibration, SizeModel, size_model
from eutectic.train.evaluation import Breakdown, evaluate
from eutectic.train.loop import total, train
from eutectic.train.run_folder import claim_content, claim_folder, claimed, model_hash, stored_settings
from eutectic.train.runtime.display import Display
from eutectic.train.runtime.launch import is_first, launch, launched_outside, once, share_threads
from eutectic.train.runtime.loggers import Factory, Loggers
from eutectic.train.runtime.loggers import chosen as chosen_loggers
from eutectic.train.runtime.stop import StopFlag, stopping_at_once
from eutectic.train.schedule import StepSchedule
from eutectic.train.settings import BackboneChoice, Coefficients, PretrainSettings, SetSettings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PretrainResult:
    """Folder and summary of a finished pre-training.

    Attributes:
        folder: of the run; fine-tuning starts from `folder / "model"`.
        summary: see `summary.json`.
    """

    folder: Path
    summary: Mapping[str, Any]

    @property
    def model(self) -> Path:
        """The model folder."""
        return self.folder / "model"


@dataclass(frozen=True)
class _Set:
    """A data set used for training (with a record of its rows) or only for validation. Its test rows are not used."""

    index: int
    task: Task
    store: Store
    split: Split
    record: LearnedRows | None
    edge_lists: tuple[str, ...] = LISTS

    @property
    def learned(self) -> bool:
        return self.record is not None

    def train(self, edge_dropout: float = 0.0) -> TaskDataset:
        rows, lists = self.split.train, self.edge_lists
        return TaskDataset(self.index, self.task, self.store, rows, edge_dropout=edge_dropout, edge_lists=lists)

    def validation(self) -> TaskDataset:
        return TaskDataset(self.index, self.task, self.store, self.split.validation, edge_lists=self.edge_lists)


@dataclass(frozen=True)
class _Prepared:
    """What every process of a run needs. With `start`, some tasks of the model may have no data set."""

    tasks: tuple[Task, ...]
    sets: tuple[_Set, ...]
    backbone: BackboneChoice
    graph: GraphSettings
    loggers: Mapping[str, Factory]
    new_tasks: tuple[str, ...] = ()

    @property
    def learned(self) -> list[_Set]:
        return [s for s in self.sets if s.learned]


Page = Callable[[Path], object]
"""Writes a report from a run's folder."""


@runtime_checkable
class RunPlan(Protocol):
    """Estimated time and memory of a run."""

    def to_dict(self) -> dict[str, Any]: ...

    def show(self, console: Console) -> None: ...


@runtime_checkable
class Planner(Protocol):
    """Estimates time and memory of a run from measured batches, like `eutectic.plan.plan.plan_run`."""

    def __call__(
        self,
        settings: PretrainSettings,
        source: BatchSampler,
        sizes: Sequence[SizeModel],
        calibration: Calibration,
        *,
        processes: int,
        workers: int,
        parameters: int,
        n_validation: int,
    ) -> RunPlan: ...


def pretrain(
    settings: PretrainSettings,
    folder: Path,
    *,
    console: Console | None = None,
    page: Page | None = None,
    planner: Planner | None = None,
) -> PretrainResult:
    """Run or resume a pre-training; the result of a finished one is returned at once.

    Args:
        settings: of the run.
        folder: created if it does not exist. An unfinished run with the same settings in it is resumed.
        console: for progress; None prints nothing.
        page: called with `folder` after each validation, less often if it would take more than 2 % of the run's time.
            A module-level function, since it is pickled.
        planner: estimates time and memory before the first step; also a module-level function.

    Raises:
        EutecticError: the folder is used for something else; invalid data or settings.
        Interrupted: stopped by a signal; resumable.
    """
    folder = Path(folder)
    if launched_outside():
        # All processes come here; the first one prepares the run after the launch.
        outside = functools.partial(
            _outside, settings=settings, folder=folder, console=console, page=page, planner=planner
        )
        with claimed(folder if is_first() else None):
            launch(settings.train, outside)
    else:
        with claimed(folder):
            prepared = _begin(settings, folder, console)
            if prepared is not None:
                quiet = console is None
                work = functools.partial(
                    _worker,
                    settings=settings,
                    folder=folder,
                    prepared=prepared,
                    quiet=quiet,
                    page=page,
                    planner=planner,
                )
                launch(settings.train, work)
    fix = "delete this file: the same command then writes it again, from the last checkpoint"
    return PretrainResult(folder, read_json(folder / "summary.json", expected="the summary of the run", fix=fix))


def _begin(settings: PretrainSettings, folder: Path, console: Console | None) -> _Prepared | None:
    """Claim the folder and fit references and scales; None if the run is finished."""
    claim_folder(folder, settings, "pretrain")
    at_once = "stopped before the first step; the same command starts again"
    with stopping_at_once(at_once):
        claim_content(folder, _contents(settings))
    if (folder / "summary.json").exists():
        if console is not None:
            console.print(f"the run in {folder} is finished; nothing to do.")
        return None
    with stopping_at_once(at_once):
        prepared = _prepare(settings)
        if console is not None:
            _announce(console, settings, prepared)
    tasks = [task.to_dict() for task in prepared.tasks]
    _write_json(folder / "tasks.json", tasks)
    return prepared


def _contents(settings: PretrainSettings) -> dict[str, str]:
    """Inputs of a run → their hashes."""
    contents, known = {}, []
    if settings.start is not None:
        contents[f"model {settings.start}"] = model_hash(settings.start)
        known = [task.name for task in load_model(settings.start).tasks]
    stores = {chosen.store for chosen in (*settings.sets.values(), *_watched(settings, known).values())}
    return contents | {f"data {store}": open_store(store).content_hash() for store in sorted(stores)}


def _prepare(settings: PretrainSettings) -> _Prepared:
    loggers = chosen_loggers(settings.loggers)
    start = None if settings.start is None else load_model(settings.start)
    backbone, graph = settings.backbone, settings.graph
    tasks: list[Task] = []
    if start is not None:
        given = BackboneChoice(name=start.backbone, settings=dict(start.backbone_settings))
        if "backbone" in settings.model_fields_set and backbone.for_graphs([start.graph]) != given:
            raise EutecticError(
                "backbone",
                f"settings that differ from those of {settings.start}",
                "the backbone of the model in `start`",
                "drop `backbone`: it is read from the model",
            )
        backbone, tasks = given, list(start.tasks)
        graph = start.graph
    watched = _watched(settings, [task.name for task in tasks])
    backbone = backbone.for_graphs(
        [*(task.graph for task in tasks), *(c.graph or graph for c in settings.sets.values())]
    )
    edge_lists = backbone.of_backbone().edge_lists
    old = len(tasks)
    sets = []
    for name, chosen in {**settings.sets, **watched}.items():
        store = open_store(chosen.store)
        parts = split(store, chosen.split or store.card.default_split, n_validation=chosen.validation)
        known = [task.name for task in tasks]
        if name in settings.sets:
            backbone.of_backbone().check_elements(store.composition(), store.card.name)
        if name not in known:
            targets = targets_for(chosen.targets, without_weights(backbone))
            tasks.append(fit_task(name, store, parts.train, targets, chosen.graph or graph))
            known.append(name)
        index = known.index(name)
        learned = name in settings.sets
        record = LearnedRows.of(store, parts, n_validation=chosen.validation) if learned else None
        sets.append(_Set(index, tasks[index], store, parts, record, edge_lists))
    return _Prepared(tuple(tasks), tuple(sets), backbone, graph, loggers, tuple(task.name for task in tasks[old:]))


def _watched(settings: PretrainSettings, known: Sequence[str]) -> dict[str, SetSettings]:
    """Data sets of the model in `start` that are validated on but not trained on.

    Raises:
        EutecticError: the model has no heads for a set in `watch`.
    """
    for name in settings.watch:
        if name not in known:
            raise EutecticError(
                "watch",
                f"{name!r}, for which {settings.start or 'a new model'} has no heads",
                f"one of {', '.join(known)}" if known else "`start`, the folder of a trained model",
                "choose a data set of that model, or move it to `sets` to train on it",
            )
    watch = dict(settings.watch)
    start_settings = None if settings.start is None else model_folder(settings.start).parent / "settings.json"
    if start_settings is not None and not watch and start_settings.is_file():
        try:
            values = stored_settings(start_settings.parent)
            if values.get("command") == "pretrain":
                every = {**values.get("watch", {}), **values["sets"]}
                watch = {name: SetSettings.model_validate(v) for name, v in every.items() if name in known}
        except (EutecticError, ValidationError, KeyError, TypeError) as error:
            log.warning("%s: the data sets of this run are not validated on (%s)", start_settings, error)
    return {name: chosen for name, chosen in watch.items() if name not in settings.sets}


def make_sampler(
    settings: PretrainSettings,
    rows: Sequence[TaskDataset],
    coefficients: Coefficients | None = None,
    sizes: Sequence[SizeModel] = (),
) -> BatchSampler:
    """The batches of a run.

    Args:
        settings: of the run.
        rows: the data sets trained on.
        coefficients: of the cost by which batches are cut; None cuts by count.
        sizes: size model of each set, with `coefficients`.
    """
    sets = [settings.sets[r.task.name] for r in rows]
    named = [(r.task.name, chosen) for r, chosen in zip(rows, sets, strict=True)]
    source = functools.partial(
        BatchSampler,
        rows,
        temperature=settings.temperature,
        seed=settings.train.seed,
        weights=settings.weights,
        caps={name: chosen.cap for name, chosen in named if chosen.cap is not None},
        max_shares={name: chosen.max_share for name, chosen in named if chosen.max_share is not None},
    )
    if coefficients is None:
        return source(batch_size=settings.train.batch_size)
    return cut_by_cost(source, settings.batching, settings.train.batch_size, rows, sizes, coefficients)


def _announce(console: Console, settings: PretrainSettings, prepared: _Prepared) -> None:
    from rich.table import Table

    source = make_sampler(settings, [s.train() for s in prepared.learned])
    table = Table(title="Data sets", title_justify="left", box=None, pad_edge=False)
    for heading in (
        "set",
        "level of theory",
        "training",
        "validation",
        "test (unused)",
        "epochs",
        "σ energy",
        "σ force",
    ):
        table.add_column(heading, justify="left" if heading in ("set", "level of theory") else "right")
    drawn = settings.train.steps * settings.train.accumulate * settings.train.batch_size
    for data in prepared.sets:
        task, structures = data.task, len(data.split.train)
        if data.learned:
            structures = source.mixture.sizes[task.name]
            share = source.mixture.places[task.name] / source.mixture.length
        scale = {k: t.normaliser.scale for k, t in task.targets.items()}
        table.add_row(
            task.name,
            task.level_of_theory.partition(" (")[0],
            f"{structures:,}" if data.learned else "–",
            f"{len(data.split.validation):,}",
            f"{len(data.split.test):,}",
            f"{drawn * share / structures:.1f}" if data.learned else "validation only",
            f"{scale['energy']:.2f} eV" if "energy" in scale else "–",
            f"{scale['forces']:.2f} eV/Å" if "forces" in scale else "–",
        )
    console.print(table)
    if settings.start is not None:
        console.print(
            f"started from {settings.start}: backbone, heads, references and scales are kept; "
            f"new heads, references and scales for {', '.join(prepared.new_tasks) or 'no data set'}",
            highlight=False,
        )


def without_weights(backbone: BackboneChoice) -> Backbone:
    """A backbone without weights, to inspect its features and parts."""
    with torch.device("meta"):
        return build_backbone(backbone.name, backbone.settings)[0]


def initial_model(
    name: str, backbone_settings: Mapping[str, Any], tasks: tuple[Task, ...], source: BatchSampler, seed: int
) -> MultitaskModel:
    """A new model, identical in every process: seeded, with scale factors fitted to the first batch."""
    torch.manual_seed(seed)
    backbone, _ = build_backbone(name, backbone_settings, [task.graph for task in tasks])
    model = MultitaskModel(backbone, {task.name: task.heads for task in tasks})
    backbone.fit(make_batch(source.items(batch, 0, 1), tasks).graph for batch in range(1))
    return model.train()


def model_started_from(
    start: Path, backbone: BackboneChoice, tasks: Sequence[Task], learned: Sequence[str], seed: int
) -> MultitaskModel:
    """The model in `start` with new heads for new tasks, identical in every process.

    Heads of tasks that are not trained are frozen, since weight decay would shrink heads that get no gradient.

    Args:
        start: a model folder.
        backbone: the model's, with its settings in training (see `BackboneSettings.in_training`).
        tasks: those of the model first, then the new ones.
        learned: names of the tasks that are trained.
        seed: of the new heads.
    """
    old = load_model(start)
    torch.manual_seed(seed)
    new, _ = build_backbone(backbone.name, backbone.settings)
    cast(nn.Module, new).load_state_dict(cast(nn.Module, old.module.backbone).state_dict())
    model = MultitaskModel(new, {task.name: task.heads for task in tasks})
    for task in old.tasks:
        model.heads[task.name].load_state_dict(old.module.heads[task.name].state_dict())
        model.heads[task.name].requires_grad_(task.name in learned)
    return model.train()


def _outside(
    fabric: lf.Fabric,
    stop: StopFlag,
    settings: PretrainSettings,
    folder: Path,
    console: Console | None,
    page: Page | None,
    planner: Planner | None,
) -> None:
    """One process of a run started by torchrun or srun."""
    prepared = once(fabric, functools.partial(_begin, settings, folder, console))
    if prepared is not None:
        _worker(fabric, stop, settings, folder, prepared, console is None, page, planner)
    fabric.barrier()  # no process returns before the model is written


def _worker(
    fabric: lf.Fabric,
    stop: StopFlag,
    settings: PretrainSettings,
    folder: Path,
    prepared: _Prepared,
    quiet: bool,
    page: Page | None,
    planner: Planner | None,
) -> None:
    """One process of the run."""
    share_threads(settings.train, fabric.world_size)
    tasks = prepared.tasks
    first = fabric.global_rank == 0
    quiet = quiet or not first
    rows = [s.train(settings.edge_dropout) for s in prepared.learned]
    validated = [item for s in prepared.sets for item in s.validation().items()]
    validated = validated[fabric.global_rank :: fabric.world_size]
    seed = settings.train.seed
    source = make_sampler(settings, rows)
    backbone = prepared.backbone.in_training(settings.edge_dropout)
    if settings.start is None:
        model = initial_model(backbone.name, backbone.settings, tasks, source, seed)
    else:
        model = model_started_from(Path(settings.start), backbone, tasks, list(settings.sets), seed)
    source = _costed(fabric, settings, folder, prepared, source, model, quiet, planner)
    validation: list[dict[str, Any]] = []
    names = [(s.task.name, prop) for s in prepared.sets for prop in s.task.targets]
    log = Loggers(prepared.loggers if first else {}, folder, [r.task.name for r in rows])
    reporting = _Reporting(page if first else None, folder)

    def validate(averaged: MultitaskModel, step: int, seconds: float) -> None:
        breakdown = Breakdown(names)
        errors = evaluate(averaged, tasks, validated, device=fabric.device, per_atom=True, seen=breakdown.add)
        sums = torch.tensor(
            [[errors[t][p].absolute, errors[t][p].baseline, errors[t][p].count] for t, p in names],
            dtype=torch.float64,
        )
        sums = total(fabric, sums.to(fabric.device)).cpu()
        breakdown.sizes, breakdown.elements = (
            total(fabric, x.to(fabric.device)).cpu() for x in (breakdown.sizes, breakdown.elements)
        )
        by_set: dict[str, dict[str, float]] = {}
        for (task, prop), (absolute, baseline, count) in zip(names, sums.tolist(), strict=True):
            values = by_set.setdefault(task, {})
            values[f"{prop}_mae"] = shown(prop, absolute / max(count, 1))[0]
            values[f"{prop}_baseline"] = shown(prop, baseline / max(count, 1))[0]
        validation.append({"step": step, "seconds": round(seconds, 2), "by_set": by_set})
        display.validated(step, by_set)
        if first:
            log.validated(step, by_set)
            _write_json(folder / "validation.json", {"validation": validation, "errors": breakdown.table()})
            reporting.update()

    def stepped(entry: dict[str, Any]) -> None:
        display.stepped(entry)
        log.stepped(entry)

    # Only the first process shows progress.
    with Display("pre-training", settings.train.steps, per_atom=True, hidden=quiet) as display:
        try:
            trained = train(
                fabric,
                model,
                tasks,
                source,
                settings.train,
                settings.optimiser,
                schedule=StepSchedule(settings.optimiser, settings.train.steps, settings.train.evaluate_every),
                folder=folder,
                validate=validate,
                extra_state=lambda: {"validation": json.dumps(validation)},
                restore_extra=lambda state: validation.extend(json.loads(state["validation"])),
                on_step=stepped,
                describe=lambda module: TrainedModel(module, tasks, backbone.name, backbone.settings, prepared.graph),
                stop=stop,
            )
        finally:
            log.close()
    if first:
        _finish(settings, folder, prepared, source, trained.averaged, trained.raw, validation, trained.seconds)


class _Reporting:
    """Calls `page` as often as possible within 2 % of the run's time."""

    SHARE = 0.02

    def __init__(self, page: Page | None, folder: Path) -> None:
        self.page, self.folder, self._not_before = page, folder, 0.0

    def update(self) -> None:
        began = time.monotonic()
        if self.page is not None and began >= self._not_before:
            try:
                self.page(self.folder)
            except EutecticError as error:
                log.warning("the report could not be updated: %s", error)  # must not stop the run
            duration = time.monotonic() - began
            self._not_before = began + duration / self.SHARE


def _costed(
    fabric: lf.Fabric,
    settings: PretrainSettings,
    folder: Path,
    prepared: _Prepared,
    source: BatchSampler,
    model: MultitaskModel,
    quiet: bool,
    planner: Planner | None,
) -> BatchSampler:
    """The batches of the run, cut by cost if `batching` says so; also shows the plan of the run.

    Measurements are saved in the run's folder, so that a resumed run has the same batches.
    """
    batching = settings.batching
    measured = batching.by == "cost" and batching.coefficients is None
    calibration = None
    # Every process must take the same branch.
    if fabric.broadcast(measured or (planner is not None and not quiet)):
        with Console(quiet=quiet).status("measuring the cost of batches"):
            calibration = measure_costs(fabric, settings.train, source, model, prepared.tasks, folder)
    elif batching.by == "count":
        return source
    sizes = [size_model(r) for r in source.sets]
    if batching.by == "cost":
        coefficients = batching.coefficients
        if coefficients is None:
            assert calibration is not None
            coefficients = calibration.seconds.coefficients
        source = make_sampler(settings, source.sets, coefficients, sizes)
    if calibration is not None and planner is not None and fabric.global_rank == 0:
        workers = settings.train.workers
        if fabric.device.type == "cpu":
            workers = 0
        elif workers is None:
            workers = default_workers(fabric.device, fabric.world_size, source.sets)
        plan = planner(
            settings,
            source,
            sizes,
            calibration,
            processes=fabric.world_size,
            workers=workers,
            parameters=sum(p.numel() for p in model.parameters()),
            n_validation=sum(len(s.split.validation) for s in prepared.sets),
        )
        _write_json(folder / "plan.json", plan.to_dict())
        if not quiet:
            plan.show(Console())
    return source


def _finish(
    settings: PretrainSettings,
    folder: Path,
    prepared: _Prepared,
    source: BatchSampler,
    averaged: MultitaskModel,
    raw: dict[str, torch.Tensor],
    validation: list[dict[str, Any]],
    seconds: float,
) -> None:
    steps = settings.train.steps
    drawn = dict(zip(source.mixture.names, source.drawn(steps * settings.train.accumulate).tolist(), strict=True))
    seen = sum(drawn.values())
    start = None if settings.start is None else load_model(settings.start)
    before = {} if start is None else dict(cast("Mapping[str, Any]", start.provenance.get("pretrained_on", {})))
    provenance = {
        "eutectic": eutectic.__version__,
        "pretrained_on": {
            **before,
            **{
                s.task.name: {
                    "structures": source.mixture.sizes[s.task.name],
                    "level_of_theory": s.store.card.level_of_theory,
                    "licence": s.store.card.licence,
                    "elements": sorted(s.store.composition()),
                    "learned_rows": merged_records(before.get(s.task.name, {}), s.record),
                }
                for s in prepared.sets
                if s.record is not None
            },
        },
        "steps": steps,
        "structures_seen": seen,
        "seed": settings.train.seed,
    }
    if start is not None:
        provenance["started_from"] = dict(start.provenance)
    model = TrainedModel(
        module=averaged,
        tasks=prepared.tasks,
        backbone=prepared.backbone.name,
        backbone_settings=prepared.backbone.settings,
        graph=prepared.graph,
        provenance=provenance,
    )
    save_model(folder / "model", model, raw=raw)
    _write_json(
        folder / "summary.json",
        {
            "steps": steps,
            "seconds": round(seconds, 2),
            "structures_per_second": round(seen / max(seconds, 1e-9), 2),
            "n_parameters": sum(p.numel() for p in averaged.parameters()),
            "backbone": prepared.backbone.name,
            "drawn": drawn,
            "validation": validation,
        },
    )
    write_card(folder / "model")  # reads the errors in the summary


def _write_json(path: Path, values: Mapping[str, Any] | list[dict[str, Any]]) -> None:
    write_atomically(path, json.dumps(values, indent=1, ensure_ascii=False), sole_writer=True)
