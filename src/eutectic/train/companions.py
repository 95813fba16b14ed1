"""Companions of a fine-tuning: tasks that its model learns at the same time, with separate heads.

A companion is another data set (for example one of pre-training, so that the model does not forget it), or the
predictions of the starting model on the training structures, if there is no other data. The latter is learning without
forgetting (Li and Hoiem, IEEE TPAMI 2018, doi:10.1109/TPAMI.2017.2773081), for atomistic models.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import lightning_fabric as lf
import numpy as np
import torch

from eutectic.atoms import PROPERTIES, EutecticError
from eutectic.check.files import open_data
from eutectic.checkpoints.model import TrainedModel, task_named
from eutectic.checkpoints.seen_rows import LearnedRows
from eutectic.data.splits import Split, split
from eutectic.data.store import Store
from eutectic.graph import GraphSettings
from eutectic.models.backbone import Backbone
from eutectic.models.multitask import MultitaskModel
from eutectic.tasks import Sample, Task, fit_task, make_batch, targets_for
from eutectic.tasks.metrics import shown
from eutectic.train.batches.sampler import TaskDataset
from eutectic.train.evaluation import evaluate
from eutectic.train.judging import Judgement, judge
from eutectic.train.kept_heads import AUTO, KeptHeads, choose_heads, fitting
from eutectic.train.settings import CompanionSettings, default_targets

PREDICTED_AT_ONCE = 32

VALIDATED = 64
"""Default number of validation structures of a companion, which is validated whenever the run is."""


@dataclass(frozen=True)
class Companion:
    """A companion with its data.

    Attributes:
        settings: of the companion.
        task: its task in the model, named as in the settings.
        kept: heads kept from the starting model.
        store: its structures; with predictions of the starting model, the store of the run.
        parts: its split; validation rows are limited to those used.
        judged: whether its errors count in the choice of the best step.
        memory: for training and for validation: position → sample with predictions of the starting model; None if the
            labels of the store are learned.
    """

    settings: CompanionSettings
    task: Task
    kept: KeptHeads
    store: Store
    parts: Split
    judged: bool
    memory: tuple[dict[int, Sample], dict[int, Sample]] | None = field(default=None, repr=False)

    @property
    def in_words(self) -> str:
        """Description of the companion."""
        what = f"{self.task.name}: {', '.join(self.task.targets)} of {len(self.parts.train):,} structures"
        labels = "as predicted by the start" if self.memory is not None else f"({self.store.card.level_of_theory})"
        heads = f"heads of {self.kept.task} kept" if self.kept.task is not None else "new heads"
        how = f"{self.settings.ratio:g} per structure of the data" if self.settings.ratio else "only validated"
        return f"{what} {labels}, {heads}, {how}"

    @property
    def has_new_heads(self) -> bool:
        return self.kept.task is None

    def learned_rows(self) -> LearnedRows | None:
        """Record of its own structures that the model learns from, for later tests; None if there are none."""
        if self.memory is not None or not self.settings.ratio:
            return None
        return LearnedRows.of(
            self.store,
            self.parts,
            n_train=self.settings.train,
            n_validation=self.settings.validation,
            n_test=None,
            seed=0,
            needs=tuple(self.task.targets),
        )

    def training(self, index: int, edge_lists: tuple[str, ...]) -> TaskDataset:
        """The training data, for the task with this index in the model."""
        return self._data(index, self.parts.train, edge_lists, 0)

    def validating(self, index: int, edge_lists: tuple[str, ...]) -> TaskDataset:
        return self._data(index, self.parts.validation, edge_lists, 1)

    def _data(self, index: int, rows: np.ndarray, edge_lists: tuple[str, ...], part: int) -> TaskDataset:
        kept = {} if self.memory is None else {k: replace(item, task=index) for k, item in self.memory[part].items()}
        return TaskDataset(index, self.task, self.store, rows, keep=True, edge_lists=edge_lists, kept=kept)


def read_companions(
    settings: Mapping[str, CompanionSettings],
    start: TrainedModel | None,
    backbone: Backbone,
    graph: GraphSettings,
    store: Store,
    rows: tuple[np.ndarray, np.ndarray],
    properties: Sequence[str],
    where: str,
) -> tuple[Companion, ...]:
    """Open the data of companions, fit their references and scales, and choose the heads that they keep.

    Args:
        settings: name → companion.
        start: the pre-trained model, if any.
        backbone: of the run.
        graph: of the run, for companions with new heads.
        store, rows: data of the run, and its rows for training and validation.
        properties: learned by the run.
        where: name of the starting model, for errors.

    Raises:
        EutecticError: unknown data or task; data without labels; predictions without a pre-trained model.
    """
    found = []
    for name, chosen in settings.items():
        if chosen.store is None:
            found.append(_of_predictions(name, chosen, start, store, rows, backbone.edge_lists, where))
        else:
            found.append(_of_data(name, chosen, start, backbone, graph, properties, where))
    return tuple(found)


def _of_data(
    name: str,
    settings: CompanionSettings,
    start: TrainedModel | None,
    backbone: Backbone,
    graph: GraphSettings,
    properties: Sequence[str],
    where: str,
) -> Companion:
    assert settings.store is not None
    store = open_data(settings.store)
    theirs = None if start is None else _task_for(settings, start, name, store, where)
    targets = settings.targets or _default_targets(name, store, theirs, properties)
    # Kept heads need the graph with which they were trained.
    graph = graph if theirs is None else theirs.graph
    parts = split(
        store,
        settings.split or store.card.default_split,
        n_train=settings.train,
        n_validation=settings.validation,
        needs=tuple(targets),
    )
    task = fit_task(name, store, parts.train, targets_for(targets, backbone), graph)
    kept = KeptHeads()
    if theirs is not None:
        training, validation = (
            TaskDataset(0, task, store, r, edge_lists=backbone.edge_lists) for r in (parts.train, parts.validation)
        )
        kept = choose_heads(start, task, theirs.name, training, validation, {}, where)
    judged = kept.task is None if settings.judged is None else settings.judged
    parts = replace(parts, validation=_some(parts.validation, settings.validation or VALIDATED))
    return Companion(settings, kept.learned or task, kept, store, parts, judged)


def _some(rows: np.ndarray, number: int) -> np.ndarray:
    """At most `number` evenly spaced rows."""
    return rows[np.linspace(0, len(rows) - 1, min(number, len(rows))).astype(int)]


def _task_for(settings: CompanionSettings, start: TrainedModel, name: str, store: Store, where: str) -> Task | None:
    """The task of the starting model whose heads fit: named in the settings, or trained on this data set."""
    if settings.head_from is None:
        return None
    if settings.head_from != AUTO:
        return task_named(start.tasks, settings.head_from, f"companions.{name}.head_from, {where}")
    same = [task for task in start.tasks if task.name in (name, store.card.name)]
    return same[0] if same and same[0].level_of_theory == store.card.level_of_theory else None


def _default_targets(name: str, store: Store, theirs: Task | None, properties: Sequence[str]) -> dict[str, Any]:
    """Targets of the task whose heads are kept; otherwise properties of the run with labels, with default heads."""
    counts = store.label_counts()
    if theirs is not None:
        known = {n: target.settings for n, target in theirs.targets.items() if counts.get(n)}
        if known:
            return known
    names = [n for n in properties if counts.get(n)] or [n for n in ("energy", "forces") if counts.get(n)]
    if not names:
        raise EutecticError(
            f"companions.{name}",
            f"no labels of {', '.join(properties)}, energy or forces; its labels: "
            f"{', '.join(n for n, count in counts.items() if count) or 'none'}",
            "labels to learn from",
            f"name the properties to learn: --together-with {name}=PROPERTY,…",
        )
    return default_targets(names, conservative={"energy", "forces"} <= set(names))


def _of_predictions(
    name: str,
    settings: CompanionSettings,
    start: TrainedModel | None,
    store: Store,
    rows: tuple[np.ndarray, np.ndarray],
    edge_lists: tuple[str, ...],
    where: str,
) -> Companion:
    if start is None:
        raise EutecticError(
            f"companions.{name}",
            "predictions of the starting model, in a training from scratch",
            "a pre-trained model",
            "start from a model (--model), or leave it out",
        )
    wanted = name if settings.head_from in (None, AUTO) else settings.head_from
    theirs = task_named(start.tasks, wanted, f"companions.{name}, {where}")
    names = [n for n, head in theirs.heads.items() if not PROPERTIES[n].categorical]
    targets = {n: theirs.targets[n] for n in names}
    task = replace(theirs, name=name, targets=targets)
    kept = KeptHeads(theirs.name, task, fitting(start, theirs, task))
    training, validation = rows[0][: settings.train], _some(rows[1], settings.validation or VALIDATED)
    memory = (
        _predicted(start.module, theirs, task, store, training, edge_lists),
        _predicted(start.module, theirs, task, store, validation, edge_lists),
    )
    parts = Split("of the run", training, validation, training[:0])
    return Companion(settings, task, kept, store, parts, bool(settings.judged), memory)


def _predicted(
    model: MultitaskModel, theirs: Task, task: Task, store: Store, rows: np.ndarray, edge_lists: tuple[str, ...]
) -> dict[int, Sample]:
    """Samples labelled with the outputs of the heads, already normalised: the task keeps references and scales."""
    unlabelled = replace(theirs, targets={})
    data = TaskDataset(0, unlabelled, store, rows, edge_lists=edge_lists)
    samples: dict[int, Sample] = {}
    model.eval()
    for first in range(0, len(rows), PREDICTED_AT_ONCE):
        items = [data.item(k) for k in range(first, min(first + PREDICTED_AT_ONCE, len(rows)))]
        batch = make_batch(items, [theirs])
        with torch.no_grad():
            predicted = model(batch.graph, batch.parts)[theirs.name]
        atoms = np.cumsum([0, *(len(item.graph.structure) for item in items)])
        for k, item in enumerate(items):
            labels = {}
            for name in task.targets:
                values = predicted[name].detach().double().cpu().numpy()
                of_atoms = PROPERTIES[name].level == "atom"
                labels[name] = values[atoms[k] : atoms[k + 1]] if of_atoms else np.asarray(values[k])
            samples[first + k] = replace(item, labels=labels)
    return samples


@dataclass
class CompanionErrors:
    """Errors of the companions along a run, in display units.

    Attributes:
        before, after, baselines: companion → property → validation error before the first step, at the step that was
            kept, and of the mean predictor.
        test: companion → property → test error.
    """

    before: dict[str, dict[str, float]] = field(default_factory=dict)
    after: dict[str, dict[str, float]] = field(default_factory=dict)
    baselines: dict[str, dict[str, float]] = field(default_factory=dict)
    test: dict[str, dict[str, float]] = field(default_factory=dict)

    def add(self, found: Mapping[str, Judgement], *, first: bool, kept: bool) -> None:
        """Add a validation; `first` and `kept`: whether it is the first one, and the best so far."""
        errors = {name: dict(judgement.errors) for name, judgement in found.items()}
        if first:
            self.before = errors
            self.baselines = {name: dict(judgement.baselines) for name, judgement in found.items()}
        if first or kept:
            self.after = errors

    def to_json(self) -> str:
        return json.dumps([self.before, self.after, self.baselines])

    def restore(self, text: str) -> None:
        self.before, self.after, self.baselines = json.loads(text)

    def to_dict(self, companions: Sequence[Companion]) -> dict[str, dict[str, Any]]:
        """For the result of the run."""
        return {
            one.task.name: {
                "what": one.in_words,
                "ratio": one.settings.ratio,
                "judged": one.judged,
                "before": self.before.get(one.task.name, {}),
                "after": self.after.get(one.task.name, {}),
                "baselines": self.baselines.get(one.task.name, {}),
                "test": self.test.get(one.task.name, {}),
                "units": {name: shown(name, 1.0)[1] for name in one.task.targets},
            }
            for one in companions
        }


def judge_companions(
    fabric: lf.Fabric, model: MultitaskModel, tasks: Sequence[Task], data: Mapping[str, Sequence[Sample]]
) -> dict[str, Judgement]:
    """Validate the companions.

    Args:
        fabric: launched; every process calls this.
        model: with the heads of the companions.
        tasks: of the model.
        data: companion → this process's share of its validation structures.
    """
    items = [item for samples in data.values() for item in samples]
    found = evaluate(model, tasks, items, device=fabric.device)
    return {name: judge(fabric, found[name], {}) for name in data}


def joint_score(main: float, others: Iterable[float]) -> float:
    """Mean of the scores of the data and of the judged companions."""
    scores = [main, *others]
    return sum(scores) / len(scores)


def errors_of_new_heads(
    model: MultitaskModel, companions: Sequence[Companion], edge_lists: tuple[str, ...], device: torch.device
) -> dict[str, dict[str, float]]:
    """Companion → property → test error in the display unit, for companions with new heads."""
    found = {}
    for companion in companions:
        task, rows = companion.task, companion.parts.test
        if len(rows) and companion.has_new_heads:
            items = TaskDataset(0, task, companion.store, rows, edge_lists=edge_lists).items()
            errors = evaluate(model, [task], items, device=device)[task.name]
            found[task.name] = {name: shown(name, e.mae)[0] for name, e in errors.items() if e.count}
    return found
