"""Heads of a pre-trained model that a fine-tuning keeps: which of them fit, and their errors before training."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import numpy as np
import torch
from torch import nn

from eutectic.atoms import MAX_ATOMIC_NUMBER, PROPERTIES
from eutectic.checkpoints.model import TrainedModel, task_named
from eutectic.models.heads import Head
from eutectic.models.multitask import MultitaskModel
from eutectic.tasks import Sample, Task, make_batch
from eutectic.tasks.metrics import shown
from eutectic.train.batches.sampler import TaskDataset
from eutectic.train.evaluation import evaluate
from eutectic.train.judging import score

TRIED_ON, FITTED_TO, BATCH = 32, 64, 8
"""Numbers of structures on which heads are tried, to which references are fitted (at least four per element), and per
batch."""

OTHER_LEVEL = 0.5
"""Heads of another level of theory are kept if their score (see `judging.score`) is lower; at the same level, if it is
below 1. Heads not trained for what is asked of them, such as derivatives of energies, begin at 0.6 and gain little."""

SIMILAR = 1.5
"""Among tasks with scores up to this factor above the lowest, chemistry decides: on two molecules, heads of molecules
began up to 12 % worse than those of oxide surfaces, and ended 8 to 10 % better (docs/log.md)."""

AUTO = "auto"
"""Instead of a task name: choose the best task."""


@dataclass(frozen=True)
class KeptHeads:
    """The heads that are kept.

    Attributes:
        task: task of the starting model; None if all heads are new.
        learned: the task to learn, with references and means that suit the kept heads.
        properties: properties with kept heads.
        errors, baselines: property → error of the starting model and of the mean predictor on a few structures, before
            training, in display units.
        rejected: task → its score (see `judging.score`), if it was no better than the mean predictor.
        refitted: the references and means of `learned` are fitted to the residuals of the kept heads; otherwise they
            are those of the starting model.
    """

    task: str | None = None
    learned: Task | None = None
    properties: tuple[str, ...] = ()
    errors: Mapping[str, float] = field(default_factory=dict)
    baselines: Mapping[str, float] = field(default_factory=dict)
    rejected: Mapping[str, float] = field(default_factory=dict)
    refitted: bool = False


def choose_heads(
    start: TrainedModel | None,
    task: Task,
    wanted: str | None,
    training: TaskDataset,
    validation: TaskDataset,
    weights: Mapping[str, float],
    where: str,
) -> KeptHeads:
    """Choose the heads to keep.

    Args:
        start: the pre-trained model, if any.
        task: the task to learn, with fitted references and scales.
        wanted: a task of the starting model, "auto", or None for new heads.
        training, validation: structures of the task; heads are tried on a few validation structures, or training
            structures if there are none.
        weights: property → weight in the score.
        where: name of the starting model, for errors.

    Raises:
        EutecticError: the starting model has no such task.
    """
    if start is None or wanted is None:
        return KeptHeads()
    every = [task_named(start.tasks, wanted, f"head_from, {where}")] if wanted != AUTO else start.tasks
    fits = [(theirs, names) for theirs in every if (names := fitting(start, theirs, task))]
    if not fits:
        return KeptHeads()
    references = [t.normaliser.references for t in task.targets.values() if t.normaliser.references is not None]
    enough = max(FITTED_TO, 4 * max((len(r.values) for r in references), default=0))
    items = replace(training, rows=training.rows[:enough], kept={}).items()
    tried_on = validation if len(validation) else training
    begin_well: list[tuple[float, int, KeptHeads]] = []
    rejected = {}
    for theirs, names in fits:
        found, kept = _with_better_references(start, theirs, task, names, items, tried_on, weights)
        if wanted != AUTO:
            return kept
        same = theirs.level_of_theory == task.level_of_theory
        if found < (1.0 if same else OTHER_LEVEL):
            begin_well.append((found, len(_elements(start, theirs) - set(training.store.composition())), kept))
        elif same:
            rejected[theirs.name] = found
    if not begin_well:
        return KeptHeads(rejected=rejected)
    # Of those that begin about equally well, the one whose chemistry is most like this: with the fewest other elements.
    least = min(found for found, _, _ in begin_well)
    similar = [(others, found, kept) for found, others, kept in begin_well if found < SIMILAR * least]
    return min(similar, key=lambda candidate: candidate[:2])[2]


def _with_better_references(
    start: TrainedModel,
    theirs: Task,
    task: Task,
    names: Sequence[str],
    items: Sequence[Sample],
    tried_on: TaskDataset,
    weights: Mapping[str, float],
) -> tuple[float, KeptHeads]:
    """The heads of a task with their own references or refitted ones, and the lower score of the two (∞ if not finite).

    Refitted ones are for other zeros of energy. With few structures they are worse than right ones: a second run on the
    same data would not begin with the errors that the first ended with.
    """
    tried = [(_with_own_references(theirs, task, names), False)]
    if _scalars(task, names):
        tried.append((_refitted(start, theirs, task, names, items), True))
    found: list[tuple[float, KeptHeads]] = []
    for learned, refitted in tried:
        if learned is not None:
            errors, baselines = _errors(start, theirs, learned, task, names, tried_on)
            one = score(errors, baselines, weights)
            kept = KeptHeads(theirs.name, learned, tuple(names), errors, baselines, refitted=refitted)
            found.append((one if math.isfinite(one) else math.inf, kept))
    return min(found, key=lambda candidate: candidate[0])


def _elements(start: TrainedModel, theirs: Task) -> set[int]:
    """Atomic numbers of the elements that a task was trained on; all if unknown."""
    sets = cast(Mapping[str, Mapping[str, Sequence[int]]], start.provenance.get("pretrained_on", {}))
    return set(sets.get(theirs.name, {}).get("elements", range(1, MAX_ATOMIC_NUMBER + 1)))


def _with_own_references(theirs: Task, task: Task, names: Sequence[str]) -> Task | None:
    """The task with the references and means of the starting model; None if an element has none there."""
    targets = dict(task.targets)
    for name in names:
        before, normaliser = theirs.targets[name].normaliser, targets[name].normaliser
        if (before.references is None) != (normaliser.references is None):
            return None
        if before.references is not None and normaliser.references is not None:
            known, elements = before.references.values, normaliser.references.values
            if not set(elements) <= set(known):
                return None
            references = replace(normaliser.references, values={z: known[z] for z in elements})
            normaliser = replace(normaliser, references=references)
        targets[name] = replace(targets[name], normaliser=replace(normaliser, mean=before.mean))
    return replace(task, targets=targets)


def _refitted(start: TrainedModel, theirs: Task, task: Task, names: Sequence[str], items: Sequence[Sample]) -> Task:
    """The task with references (or means) for which kept heads of scalars are unbiased.

    A kept head has its own offset, so references fitted to the labels alone would be wrong. The residuals are fitted
    with the smallest change of the references; those of elements that do not occur are kept.
    """
    model, targets = started_model(start, task, theirs.name, names).eval(), dict(task.targets)
    scalars = _scalars(task, names)
    left: dict[str, list[float]] = {name: [] for name in scalars}
    counts: dict[str, list[np.ndarray]] = {name: [] for name in scalars}
    for first in range(0, len(items), BATCH):
        some = items[first : first + BATCH]
        batch = make_batch(some, [task])
        with torch.no_grad():
            predicted = model(batch.graph, batch.parts)[task.name]
        for name in scalars:
            for item, value in zip(some, predicted[name].tolist(), strict=True):
                if name in item.labels:
                    left[name].append((float(item.labels[name]) - value) * targets[name].normaliser.scale)
                    counts[name].append(np.bincount(item.graph.structure.numbers, minlength=MAX_ATOMIC_NUMBER + 1))
    for name in scalars:
        if not left[name]:
            continue
        normaliser = targets[name].normaliser
        if normaliser.references is None:
            normaliser = replace(normaliser, mean=normaliser.mean + float(np.mean(left[name])))
        else:
            change = np.linalg.lstsq(np.stack(counts[name]).astype(float), np.array(left[name]), rcond=1e-6)[0]
            values = {z: value + float(change[z]) for z, value in normaliser.references.values.items()}
            normaliser = replace(normaliser, references=replace(normaliser.references, values=values))
        targets[name] = replace(targets[name], normaliser=normaliser)
    return replace(task, targets=targets)


def _scalars(task: Task, names: Sequence[str]) -> list[str]:
    """The properties whose references or means can be refitted: scalars of structures."""
    targets = task.targets
    return [n for n in names if not (PROPERTIES[n].rank or PROPERTIES[n].level == "atom" or targets[n].categorical)]


def fitting(start: TrainedModel, theirs: Task, task: Task) -> tuple[str, ...]:
    """The properties of a task that a task of the starting model predicts with the same kind of head."""
    heads = cast(nn.ModuleDict, start.module.heads[theirs.name])
    return tuple(name for name in task.targets if name in heads and theirs.heads.get(name) == task.heads[name])


def started_model(
    start: TrainedModel,
    task: Task,
    kept: str | None,
    properties: Sequence[str],
    others: Sequence[tuple[Task, str | None, Sequence[str]]] = (),
) -> MultitaskModel:
    """The backbone of the starting model with heads for a task, new or kept.

    Kept heads are rescaled to the scale of this data: their output in physical units is unchanged, up to references.

    Args:
        start: the pre-trained model.
        task: to learn.
        kept: task of the starting model whose heads are kept; None for new heads.
        properties: properties with kept heads.
        others: further tasks, each with the task and the properties whose heads are kept for it.
    """
    every = [(task, kept, properties), *others]
    # Weights passed to several processes are in shared memory: each process trains a copy.
    model = MultitaskModel(copy.deepcopy(start.module.backbone), {task.name: task.heads for task, _, _ in every})
    for mine, donor, names in every:
        if donor is not None:
            _keep_heads(model, mine, start, task_named(start.tasks, donor, "head_from"), names)
    return model


def _keep_heads(
    model: MultitaskModel, task: Task, start: TrainedModel, theirs: Task, properties: Sequence[str]
) -> None:
    for name in properties:
        donor, mine = (
            cast(nn.ModuleDict, heads)[name] for heads in (start.module.heads[theirs.name], model.heads[task.name])
        )
        mine.load_state_dict(donor.state_dict())
        cast(Head, mine).rescale(theirs.targets[name].normaliser.scale / task.targets[name].normaliser.scale)


def _errors(
    start: TrainedModel, theirs: Task, learned: Task, task: Task, names: Sequence[str], data: TaskDataset
) -> tuple[dict[str, float], dict[str, float]]:
    """Errors of the starting model with the references of a task, and of the mean predictor."""
    model = started_model(start, task, theirs.name, names).eval()
    items = replace(data, task=learned, rows=data.rows[:TRIED_ON], kept={}).items()
    found = evaluate(model, [learned], items, batch_size=BATCH, baseline=task)[task.name]
    # Derivatives of a kept energy are kept, too.
    derived = {name for name, head in task.heads.items() if head.entry.derivative and "energy" in names}
    known = {name: e for name, e in found.items() if e.count and (name in names or name in derived)}
    return (
        {name: shown(name, e.mae)[0] for name, e in known.items()},
        {name: shown(name, e.baseline_mae)[0] for name, e in known.items()},
    )
