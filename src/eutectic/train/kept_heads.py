"""References beside heads that are kept from the model that a fine-tuning starts from.

A kept head predicts an energy less the references of its own data: isolated atoms, or averages over crystals. The
references of the new data must be those that go with it, or every energy is off by electronvolts at first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import cast

import numpy as np
import torch
from torch import nn

from eutectic.checkpoints.model import TrainedModel
from eutectic.data.store import Store
from eutectic.graph import build_graph
from eutectic.models.multitask import MultitaskModel
from eutectic.tasks import Sample, Task, make_batch
from eutectic.tasks.references import References, least_squares

AT_LEAST, PER_ELEMENT, TOGETHER = 32, 4, 8
"""Structures that are predicted: so many, or this many for each element if these are more; and in one batch."""


def with_their_references(
    task: Task, start: TrainedModel, theirs: Task, kept: Sequence[str], store: Store, rows: np.ndarray
) -> Task:
    """A task with the references that go with its kept heads.

    Their values are corrected, per element, by least squares of what labels and predictions of some training structures
    differ by. Elements that none of these has are not corrected.

    Args:
        task: of the new data, as fitted to its labels.
        start: model with the heads.
        theirs: its task with the heads.
        kept: properties whose heads are kept.
        store, rows: training structures.
    """
    corrected = dict(task.targets)
    for name in kept:
        old, new = theirs.targets[name].normaliser, task.targets[name].normaliser
        if new.references is None or old.references is None:
            continue
        chosen = _some(store, rows, name)
        structures = [store[int(row)] for row in chosen]
        predicted = old.scale * _predicted(start, theirs, task, name, structures) + old.mean
        counts = np.zeros((len(structures), 119))
        for count, labelled in zip(counts, structures, strict=True):
            np.add.at(count, labelled.structure.numbers, 1)
        labels = np.array([float(labelled.labels[name]) for labelled in structures])
        references = np.array([new.references.of(labelled.structure.numbers) for labelled in structures])
        correction = least_squares(counts.T @ counts, counts.T @ (labels - references - new.mean - predicted))
        values = {z: value + correction.get(z, 0.0) for z, value in new.references.values.items()}
        corrected[name] = replace(
            task.targets[name], normaliser=replace(new, references=References(property=name, values=values))
        )
    return replace(task, targets=corrected)


def _some(store: Store, rows: np.ndarray, name: str) -> np.ndarray:
    """Training rows with the label, evenly chosen."""
    n = max(AT_LEAST, PER_ELEMENT * len(store.composition()))
    # A few more, since some may lack the label.
    candidates = rows[np.unique(np.linspace(0, len(rows) - 1, min(4 * n, len(rows))).astype(int))]
    labelled = [row for row in candidates if name in store[int(row)].labels]
    return np.array(labelled)[np.unique(np.linspace(0, len(labelled) - 1, min(n, len(labelled))).astype(int))]


def _predicted(start: TrainedModel, theirs: Task, task: Task, name: str, structures: Sequence) -> np.ndarray:
    """The kept head's predictions in its own model units, of the graphs of the new task."""
    heads = cast(Mapping[str, nn.Module], start.module.heads[theirs.name])
    model = MultitaskModel(start.module.backbone, {theirs.name: {name: theirs.heads[name]}})
    cast(nn.ModuleDict, model.heads[theirs.name])[name] = heads[name]
    only = replace(theirs, targets={name: theirs.targets[name]})
    like = next(model.parameters())
    training = start.module.training
    model.eval()
    lists = start.module.backbone.edge_lists
    values = []
    for begin in range(0, len(structures), TOGETHER):
        samples = [
            Sample(0, build_graph(one.structure, task.graph, lists=lists), {})
            for one in structures[begin : begin + TOGETHER]
        ]
        batch = make_batch(samples, [only], like.dtype).to(like.device)
        with torch.no_grad():
            values.append(model(batch.graph, batch.parts)[theirs.name][name].double().cpu().numpy())
    start.module.train(training)
    return np.concatenate(values)
