"""Preparation of a fine-tuning: its data, its split, its task with references and scales, and the model it starts from.

Here is everything that is read, fitted and checked once, in one process, before training; `Prepared` holds what the
processes of the run then need.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from rich.console import Console

from eutectic.atoms import EutecticError
from eutectic.check.files import is_of_files, open_data
from eutectic.checkpoints.model import TrainedModel, load_model, with_fewer_blocks
from eutectic.checkpoints.seen_rows import seen_rows
from eutectic.data.splits import Split, split
from eutectic.data.store import Store
from eutectic.graph import GraphSettings
from eutectic.models.backbone import Backbone
from eutectic.models.parts import HEADS
from eutectic.tasks import Task, fit_task, targets_for
from eutectic.train.batches.sampler import TaskDataset
from eutectic.train.companions import Companion, read_companions
from eutectic.train.freezing import TrainedParts
from eutectic.train.kept_heads import KeptHeads, choose_heads
from eutectic.train.optimisation import relative_rates
from eutectic.train.pretrain import without_weights
from eutectic.train.settings import BackboneChoice, FinetuneSettings


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
    def edge_lists(self) -> tuple[str, ...]:
        """The edge lists that the backbone reads."""
        return self.backbone.of_backbone().edge_lists

    @property
    def tasks(self) -> tuple[Task, ...]:
        """Tasks of the model; the run's own task is the first."""
        return (self.task, *(companion.task for companion in self.companions))


def prepare_data_and_start(settings: FinetuneSettings, console: Console | None, store: Store | None) -> Prepared:
    """Read the data and the starting model, and fit references and scales; arguments and errors as of `prepare_run`."""
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
    test = open_test(settings, console)
    _check_new_heads(settings, task, kept, companions)
    prepared = Prepared(
        store, parts, kept.learned or task, task, backbone, graph, start, kept, test, trained, companions
    )
    if start is not None:
        _check_unseen(settings.start, start, store, parts, console)
        for companion in companions:
            if companion.has_new_heads:
                _check_unseen(settings.start, start, companion.store, companion.parts, console)
    return prepared


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


def open_test(settings: FinetuneSettings, console: Console | None) -> Store | None:
    """Open the store or file to test on, if any; a file is read with the same options as the data."""
    path = settings.data.test_file
    if path is None:
        return None
    return open_run_data(settings, console, path) if is_of_files(path) else open_data(path, console=console)


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


def model_named(settings: FinetuneSettings) -> str | None:
    """The model that is fine-tuned, or whose architecture is used, if any."""
    return settings.architecture_from if settings.start == "scratch" else settings.start


def _backbone_of(settings: FinetuneSettings) -> tuple[BackboneChoice, GraphSettings, TrainedModel | None]:
    """Backbone and graph settings, and the model that is fine-tuned, if any.

    Where forces or stress are derivatives of the energy, the graph becomes smooth unless graph settings are given.
    """
    folder, keep = model_named(settings), settings.keep_blocks
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


def check_test(settings: FinetuneSettings, prepared: Prepared, console: Console | None) -> None:
    """Check that test structures of their own have labels; warn if the run also trains or validates on some of them.

    Raises:
        EutecticError: the test structures have no labels of the learned properties.
    """
    store, parts, test = prepared.store, prepared.split, prepared.test
    if test is None:
        return
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
