"""Fine-tuning: one model for one data set, from a pre-trained backbone or from scratch, tested on its test split."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import lightning_fabric as lf
import numpy as np
import torch
from ase.data import chemical_symbols
from pydantic import TypeAdapter, ValidationError
from rich.console import Console
from torch import nn

import eutectic
from eutectic.atoms import EutecticError
from eutectic.check.files import open_data
from eutectic.checkpoints.model import TrainedModel, elements_seen, load_model, save_model, task_named
from eutectic.checkpoints.seen_rows import LearnedRows, seen_rows
from eutectic.data.examples import structure_to_dict, varied
from eutectic.data.splits import Split, split
from eutectic.data.store import Store
from eutectic.files import read_json, write_atomically
from eutectic.graph import GraphSettings
from eutectic.models.heads import Head
from eutectic.models.multitask import MultitaskModel
from eutectic.tasks import Task, fit_task
from eutectic.tasks.metrics import ClassErrorSum, ErrorSum, primary, shown
from eutectic.train.batches.by_cost import cut_by_cost, measure_costs
from eutectic.train.batches.sampler import BatchSampler, TaskDataset, check_shares
from eutectic.train.checkpoint import remove_checkpoints
from eutectic.train.cost import size_model
from eutectic.train.evaluation import evaluate
from eutectic.train.kept_heads import with_their_references
from eutectic.train.loop import total, train
from eutectic.train.pretrain import initial_model
from eutectic.train.run_folder import claim_content, claim_folder, claimed, model_hash
from eutectic.train.runtime.display import Display
from eutectic.train.runtime.launch import is_first, launch, launched_outside, make_fabric, once, share_threads
from eutectic.train.runtime.stop import StopFlag
from eutectic.train.settings import BackboneChoice, FinetuneSettings

PARITY_POINTS = 500


@dataclass(frozen=True, kw_only=True, repr=False)
class FinetuneResult:
    """The outcome of one run; errors are mean absolute errors in the unit of their property.

    Attributes:
        name: of the task in the model.
        start: 'pretrained' or 'scratch'.
        model: name or folder of the model that was started from, or whose architecture was taken.
        property, unit: the property by which the best step was chosen, and the unit of its errors.
        dataset, level_of_theory: of the labels.
        total_steps, batch_size, learning_rate, weight_decay, seed: as in the settings.
        steps, seconds, errors: the validation curve of `property`.
        curves: property → its validation error at each of `steps`.
        best_step: whose weights were kept and tested.
        validation_baselines: property → validation error of the references and mean alone.
        test_error, baseline_error: of `property` on the test split, and of the references and mean alone there; None
            without test structures.
        test_errors, test_baselines: the same for every property.
        units: property → unit of its errors.
        metrics: property → what its errors are.
        roc_auc: property of two classes → area under the ROC curve on the test split.
        truth, prediction: up to 500 test values of `property`, in `unit`.
        parity: property → [truth, prediction], the same for every property.
        trained_on, validated_on, tested_on: numbers of structures.
        wall_seconds: of training.
        examples: up to six varied structures of the data, as `eutectic.data.examples.structure_to_dict` writes them.
    """

    name: str
    start: str
    model: str | None
    property: str
    unit: str
    dataset: str
    level_of_theory: str
    total_steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    seed: int
    steps: list[int]
    seconds: list[float]
    errors: list[float]
    curves: dict[str, list[float]]
    best_step: int
    validation_baselines: dict[str, float]
    test_error: float | None
    baseline_error: float | None
    test_errors: dict[str, float]
    test_baselines: dict[str, float]
    units: dict[str, str]
    metrics: dict[str, str]
    roc_auc: dict[str, float]
    truth: list[float]
    prediction: list[float]
    parity: dict[str, list[list[float]]]
    trained_on: int
    validated_on: int
    tested_on: int
    wall_seconds: float
    examples: list[dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)

    def __repr__(self) -> str:
        best = self.steps.index(self.best_step)
        errors = self.test_errors or {name: curve[best] for name, curve in self.curves.items()}
        part, number = ("test", self.tested_on) if self.test_errors else ("validation", self.validated_on)
        if not number:
            return f"FinetuneResult {self.name}: no test or validation structures (step {self.best_step})"
        words = ", ".join(f"{name.replace('_', ' ')} {error:.4g} {self.units[name]}" for name, error in errors.items())
        return f"FinetuneResult {self.name}: {part} error {words} ({number} structures; step {self.best_step})"


@dataclass(frozen=True)
class Prepared:
    """The data, the task and the start of a run, read once and handed to every process."""

    store: Store
    split: Split
    task: Task
    backbone: BackboneChoice
    graph: GraphSettings
    start: TrainedModel | None


def finetune(
    settings: FinetuneSettings,
    folder: Path | None,
    *,
    console: Console | None = None,
    alone: bool = False,
    on_step: Callable[[int], None] = lambda step: None,
    stop: StopFlag | None = None,
) -> FinetuneResult:
    """Run, or resume, or return at once the result of a run that is finished.

    Args:
        settings: of the run.
        folder: for `model`, `result.json`, the journal and checkpoints; None keeps nothing, in one process.
        console: where to report what is read, kept and reset, and the progress; silent without.
        alone: one process, whatever the settings and the surroundings say; one of many runs beside each other.
        on_step: called with the number of steps done.
        stop: a flag that is listening for signals already, if there is one.

    Raises:
        EutecticError: data, model or settings that cannot be used.
        Interrupted: stopped by a signal; resumable if there is a folder.
    """
    if folder is None and not alone and (settings.train.processes > 1 or launched_outside()):
        raise EutecticError(
            "fine-tuning",
            "several processes, and no folder for the result",
            "a folder, or one process",
            "give a folder, or set train.processes to 1",
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
    prepared = _begin(settings, folder, console)
    if prepared is None:
        assert folder is not None
        on_step(settings.train.steps)
        return read_result(folder)
    results: list[FinetuneResult] = []
    if alone:
        fabric = make_fabric(settings.train, alone=True)
        fabric.launch()
        _worker(fabric, stop or StopFlag(), settings, folder, prepared, console is None, on_step, results, console)
    elif settings.train.processes == 1:
        # Here and now: what is not picklable need not travel.
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


def read_result(folder: Path) -> FinetuneResult:
    """The result of a finished run.

    Raises:
        EutecticError: there is none, or it is not one of this version.
    """
    path = Path(folder) / "result.json"
    expected = "the result of a fine-tuning by this version"
    fix = "delete the folder, or choose another --out, and run again"
    values = read_json(path, expected=expected, fix=fix)
    try:
        return TypeAdapter(FinetuneResult).validate_python(values)
    except ValidationError as error:
        wrong = error.errors()[0]
        given = f"{'.'.join(map(str, wrong['loc']))}: {wrong['msg']}"
        raise EutecticError(str(path), given, expected, fix) from error


def _begin(settings: FinetuneSettings, folder: Path | None, console: Console | None) -> Prepared | None:
    """Claim the folder and read what the run needs; None where the run is finished already."""
    if folder is None:
        return prepare_run(settings, console)
    claim_folder(folder, settings, "finetune")
    finished = (folder / "result.json").exists()
    store = _open(settings, None if finished else console)
    content = {f"data {settings.data.store}": store.content_hash()}
    if (model := _model_named(settings)) is not None:
        content[f"model {model}"] = model_hash(model)
    claim_content(folder, content)
    if finished:
        if console is not None:
            console.print(f"{folder} holds this run, finished; nothing to do.", highlight=False)
        return None
    return prepare_run(settings, console, store)


def _open(settings: FinetuneSettings, console: Console | None) -> Store:
    data = settings.data
    return open_data(
        data.store,
        keys=data.keys,
        units=data.units,
        define=(*settings.define, *data.define),
        elements=data.elements,
        level_of_theory=data.level_of_theory,
        console=console,
    )


def prepare_run(settings: FinetuneSettings, console: Console | None = None, store: Store | None = None) -> Prepared:
    """Read the data and the start of a run, fit references and scales, and report all of it.

    Args:
        settings: of the run.
        console: where to report; silent without.
        store: the data, if open already.

    Raises:
        EutecticError: data, model or settings that cannot be used.
    """
    backbone, graph, start = _backbone_of(settings)
    store = _open(settings, console) if store is None else store
    parts = split_of(store, settings)
    task = fit_task(settings.name, store, parts.train, settings.targets, graph)
    backbone = backbone.for_graphs([graph])
    backbone.of_backbone().check_elements(store.composition(), store.card.name)
    prepared = Prepared(store, parts, task, backbone, graph, start)
    theirs, kept = _kept_heads(settings, prepared)  # refuses a task that the start has not
    if start is not None and theirs is not None:
        task = with_their_references(task, start, theirs, kept, store, parts.train)
        prepared = replace(prepared, task=task)
    if start is not None:
        _check_unseen(settings.start, start, store, parts, console)
    if console is not None:
        _announce(console, settings, prepared)
    return prepared


def _check_unseen(name: str, start: TrainedModel, store: Store, parts: Split, console: Console | None) -> None:
    """Refuse to test a model on structures that it was trained on; warn where validation has some.

    Raises:
        EutecticError: test structures that the start has learned from.
    """
    seen = seen_rows(start.provenance, store)
    if seen is None:
        # The log has said that it is not known.
        return
    tested, validated = (np.intersect1d(rows, seen).size for rows in (parts.test, parts.validation))
    if tested:
        raise EutecticError(
            f"start {name}, split {parts.name!r} of {store.card.name}",
            f"{tested:,} of {len(parts.test):,} test structures that this model was trained on",
            "test structures that it has never seen",
            "use the split that the model was trained with (its test part was left alone), data.test 0, or new data",
        )
    if validated and console is not None:
        console.print(
            f"[yellow]{validated:,} of {len(parts.validation):,} validation structures[/] were in the training of "
            f"{name}: validation errors are too low",
            highlight=False,
        )


def _outside(
    fabric: lf.Fabric, stop: StopFlag, settings: FinetuneSettings, folder: Path, console: Console | None
) -> None:
    """One process of a run whose processes torchrun or srun has started."""
    prepared = once(fabric, functools.partial(_begin, settings, folder, console))
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
) -> None:
    """One process of the run."""
    share_threads(settings.train, fabric.world_size)
    task, store, parts = prepared.task, prepared.store, prepared.split
    first = fabric.global_rank == 0
    edge_lists = prepared.backbone.of_backbone().edge_lists
    dataset = TaskDataset(0, task, store, parts.train, keep=True, edge_lists=edge_lists)
    batch_size = min(settings.train.batch_size, len(parts.train))
    sampler = BatchSampler([dataset], batch_size, 1.0, settings.train.seed)
    model = _model(settings, prepared, sampler)
    if settings.batching.by == "cost":
        coefficients = settings.batching.coefficients
        if coefficients is None:
            coefficients = measure_costs(fabric, settings.train, sampler, model, [task], folder).seconds.coefficients
        make = functools.partial(BatchSampler, [dataset], temperature=1.0, seed=settings.train.seed)
        sampler = cut_by_cost(make, settings.batching, batch_size, [dataset], [size_model(dataset)], coefficients)
    check_shares(sampler, fabric.world_size)

    validation = TaskDataset(0, task, store, parts.validation, edge_lists=edge_lists).items()
    validation = validation[fabric.global_rank :: fabric.world_size]
    judged = primary(list(task.targets))
    curve = _Curve([], [], {name: [] for name in task.targets}, {})
    best: dict[str, Any] = {"step": 0, "weights": {k: v.clone() for k, v in model.state_dict().items()}}

    def validate(averaged: MultitaskModel, step: int, elapsed: float) -> None:
        found = evaluate(averaged, [task], validation, device=fabric.device)[task.name]
        errors, baselines = _summed(fabric, found)
        # Without validation structures no step is known to be better than the last one.
        if not len(parts.validation) or curve.improves(judged, errors[judged]):
            best.update(step=step, weights={k: v.detach().cpu().clone() for k, v in averaged.state_dict().items()})
        curve.add(step, elapsed, errors, baselines)
        by_set = {f"{name}_mae": error for name, error in errors.items()}
        by_set |= {f"{name}_baseline": baseline for name, baseline in baselines.items()}
        if len(parts.validation):
            display.validated(step, {task.name: by_set})

    def stepped(entry: dict[str, Any]) -> None:
        display.stepped(entry)
        on_step(entry["step"])

    def restore(state: dict[str, Any]) -> None:
        curve.restore(state["curve"])
        best.update(state["best"])

    with Display("fine-tuning", settings.train.steps, hidden=quiet or not first, console=console) as display:
        trained = train(
            fabric,
            model,
            [task],
            sampler,
            settings.train,
            settings.optimiser,
            folder=folder,
            validate=validate,
            extra_state=lambda: {"curve": curve.to_json(), "best": best},
            restore_extra=restore,
            on_step=stepped,
            describe=lambda module: TrainedModel(
                module, (task,), prepared.backbone.name, prepared.backbone.settings, prepared.graph
            ),
            stop=stop,
        )
    if not first:
        return
    final = trained.averaged
    final.load_state_dict(best["weights"])
    result = _result(settings, prepared, judged, curve, best["step"], trained.seconds, final, fabric.device)
    if results is not None:
        results.append(result)
    if folder is not None:
        _save(settings, prepared, final, result, folder)


@dataclass
class _Curve:
    """Validation errors along a run, in the units in which they are quoted."""

    steps: list[int]
    seconds: list[float]
    errors: dict[str, list[float]]
    baselines: dict[str, float]

    def improves(self, name: str, error: float) -> bool:
        """Whether an error is below all others; not a number never is, except as the first."""
        return not self.steps or bool(error < np.nanmin([*self.errors[name], np.inf]))

    def add(self, step: int, elapsed: float, errors: Mapping[str, float], baselines: Mapping[str, float]) -> None:
        self.steps.append(step)
        self.seconds.append(round(elapsed, 3))
        for name, error in errors.items():
            self.errors[name].append(error)
        self.baselines.update(baselines)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    def restore(self, text: str) -> None:
        values = json.loads(text)
        if values.keys() != self.__dict__.keys():
            raise ValueError(f"a curve of {', '.join(values)}")
        self.__dict__.update(values)


def _summed(fabric: lf.Fabric, found: Mapping[str, ErrorSum]) -> tuple[dict[str, float], dict[str, float]]:
    """Errors and baselines over all processes, by property, in the units in which they are quoted."""
    rows = [[e.absolute, e.baseline, float(e.count)] for e in found.values()]
    sums = total(fabric, torch.tensor(rows, dtype=torch.float64).to(fabric.device)).cpu().tolist()
    errors = {name: shown(name, a / n if n else float("nan"))[0] for name, (a, _, n) in zip(found, sums, strict=True)}
    baselines = {
        name: shown(name, b / n if n else float("nan"))[0] for name, (_, b, n) in zip(found, sums, strict=True)
    }
    return errors, baselines


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
    """The split a run asks for."""
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
    """The model started from, or whose architecture is taken, if there is one."""
    return settings.architecture_from if settings.start == "scratch" else settings.start


def _backbone_of(settings: FinetuneSettings) -> tuple[BackboneChoice, GraphSettings, TrainedModel | None]:
    """Backbone and graph come from the model started from, or whose architecture is taken."""
    folder = _model_named(settings)
    if folder is None:
        return settings.backbone or BackboneChoice(), settings.graph or GraphSettings(), None
    if settings.backbone is not None:
        raise EutecticError(
            "backbone",
            "settings of its own beside a model to start from",
            "one or the other",
            "drop `backbone`; it is read from the model",
        )
    model = load_model(folder)
    choice = BackboneChoice(name=model.backbone, settings=dict(model.backbone_settings))
    return choice, settings.graph or model.graph, None if settings.start == "scratch" else model


def _kept_heads(settings: FinetuneSettings, prepared: Prepared) -> tuple[Task | None, list[str]]:
    """The task of the start whose heads are kept, and the properties whose heads fit.

    Raises:
        EutecticError: the start has no such task.
    """
    start, task = prepared.start, prepared.task
    if start is None or settings.head_from is None:
        return None, []
    theirs = task_named(start.tasks, settings.head_from, f"head_from, {settings.start}")
    heads = cast(nn.ModuleDict, start.module.heads[theirs.name])
    fits = [n for n in task.targets if n in heads and theirs.heads.get(n) == task.heads[n]]
    return theirs, fits


def _announce(console: Console, settings: FinetuneSettings, prepared: Prepared) -> None:
    """Before anything runs: what was read, how it is split, what is kept of the model and what starts fresh."""
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
        if not len(rows):
            console.print(f"[yellow]no {part} structures:[/] {missing[part]}", highlight=False)
    start = prepared.start
    if start is None:
        like = f" with the architecture of {settings.architecture_from}" if settings.architecture_from else ""
        console.print(f"from scratch: {prepared.backbone.name}{like}, seed {settings.train.seed}", highlight=False)
        return
    _, kept = _kept_heads(settings, prepared)
    # A derivative of a kept energy is kept with it.
    derived = [name for name, head in task.heads.items() if head.entry.derivative and "energy" in kept]
    kept += derived
    fresh = [name for name in task.targets if name not in kept]
    trained_on = cast(Mapping[str, Any], start.provenance.get("pretrained_on", {}))
    parameters = sum(p.numel() for p in cast(nn.Module, start.module.backbone).parameters())
    words = [
        f"start: {start.backbone} backbone of {settings.start} ({parameters:,} parameters), pre-trained on "
        f"{', '.join(trained_on) or 'unknown data'}"
    ]
    if kept:
        words.append(f"heads kept from {settings.head_from}: {', '.join(kept)}")
    if fresh:
        words.append(f"new heads: {', '.join(fresh)}")
    words.append(
        "references and scales fitted to the training split"
        + (", and to what the kept heads predict" if set(kept) & set(task.targets) else "")
    )
    console.print("; ".join(words), highlight=False)
    seen = elements_seen(start)
    unseen = [chemical_symbols[z] for z in store.composition() if seen and z not in seen]
    if unseen:
        console.print(f"[yellow]elements the backbone never saw:[/] {', '.join(unseen)}", highlight=False)


def _model(settings: FinetuneSettings, prepared: Prepared, sampler: BatchSampler) -> MultitaskModel:
    seed, task, start = settings.train.seed, prepared.task, prepared.start
    if start is None:
        return initial_model(prepared.backbone.name, prepared.backbone.settings, (task,), sampler, seed)
    torch.manual_seed(seed)
    # Weights that were handed to several processes lie in memory that these share: each trains a copy.
    model = MultitaskModel(copy.deepcopy(start.module.backbone), {task.name: task.heads})
    theirs, kept = _kept_heads(settings, prepared)
    for name in kept:
        assert theirs is not None
        donor, mine = (
            cast(nn.ModuleDict, heads)[name] for heads in (start.module.heads[theirs.name], model.heads[task.name])
        )
        mine.load_state_dict(donor.state_dict())
        # The same prediction in physical units, although this data's scale is another.
        cast(Head, mine).rescale(theirs.targets[name].normaliser.scale / task.targets[name].normaliser.scale)
    return model.train()


def _result(
    settings: FinetuneSettings,
    prepared: Prepared,
    judged: str,
    curve: _Curve,
    best_step: int,
    seconds: float,
    model: MultitaskModel,
    device: torch.device,
) -> FinetuneResult:
    store, parts, task = prepared.store, prepared.split, prepared.task
    edge_lists = prepared.backbone.of_backbone().edge_lists
    tested = TaskDataset(0, task, store, parts.test, edge_lists=edge_lists).items()
    found = evaluate(model, [task], tested, device=device, keep=True)[task.name] if tested else {}
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
        total_steps=settings.train.steps,
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
        tested_on=len(parts.test),
        wall_seconds=round(seconds, 2),
        examples=[structure_to_dict(store[row].structure) for row in varied(store)],
    )


def _points(name: str, error: ErrorSum) -> list[list[float]]:
    """[truth, prediction] at up to 500 values, evenly chosen, in the unit in which errors are quoted."""
    factor, _ = shown(name, 1.0)
    truth, prediction = np.concatenate(error.truth), np.concatenate(error.prediction)
    some = np.linspace(0, len(truth) - 1, min(PARITY_POINTS, len(truth))).astype(int)
    return [(values[some] * factor).round(6).tolist() for values in (truth, prediction)]


def _save(
    settings: FinetuneSettings, prepared: Prepared, model: MultitaskModel, result: FinetuneResult, folder: Path
) -> None:
    store, start = prepared.store, prepared.start
    provenance: dict[str, Any] = {
        "eutectic": eutectic.__version__,
        "finetuned_on": store.card.name,
        "start": settings.start,
        "structures": result.trained_on,
        "steps": settings.train.steps,
        "seed": settings.train.seed,
        "level_of_theory": store.card.level_of_theory,
        "licence": store.card.licence,
        "elements": sorted(store.composition()),
        "learned_rows": [_learned(settings, store, prepared.split).to_dict()],
    }
    if start is not None:
        provenance["pretrained"] = dict(start.provenance)
    described = TrainedModel(
        model, (prepared.task,), prepared.backbone.name, prepared.backbone.settings, prepared.graph, provenance
    )
    save_model(folder / "model", described)
    write_atomically(folder / "result.json", json.dumps(result.to_dict()), sole_writer=True)
    remove_checkpoints(folder / "checkpoint.pt")
