"""Fit a task's references and scales to the training split of a data set."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from eutectic.atoms import PROPERTIES, EutecticError
from eutectic.data.store import Store
from eutectic.graph import GraphSettings
from eutectic.tasks.references import fit_references, fit_scale, mean_atoms
from eutectic.tasks.targets import check_targets
from eutectic.tasks.task import Normaliser, Target, TargetSettings, Task


def fit_task(
    name: str, store: Store, train: np.ndarray, targets: Mapping[str, TargetSettings], graph: GraphSettings
) -> Task:
    """Fit every target's normaliser on the training split, and count classes.

    From extensive scalars, a least-squares reference per element is subtracted but no mean, so that the model stays
    extensive; from intensive and per-atom scalars, their mean. Vectors and tensors are only divided by the RMS of a
    component; classes are unchanged. If forces are the gradient of the energy head, both share one scale, σ_F · 1 Å for
    the energy, so that F = −∂E/∂r holds in model units too; a stress that is a derivative, σ = (∂E/∂ε)/V, also shares
    it.

    Raises:
        EutecticError: targets that do not fit their properties (see `check_targets`); a target without labels in the
            training split; classes that are not 0, 1, …
    """
    targets = check_targets(targets)
    counts = store.label_counts()
    for property in targets:
        if counts.get(property, 0) == 0:
            present = ", ".join(f"{k} ({v})" for k, v in counts.items() if v) or "none"
            raise EutecticError(
                f"task {name!r}",
                f"no structure of {store.path.name!r} has the label {property!r}; its labels: {present}",
                "at least one label for every target",
                "drop the target, or prepare the data again with the label's key",
            )
    fitted: dict[str, Target] = {}
    derivatives = {settings.head.entry.derivative for settings in targets.values()}
    for property, settings in targets.items():
        prop, head = PROPERTIES[property], settings.head
        weight = settings.weight * (mean_atoms(store, train) if settings.weight_by_size else 1.0)
        if head.entry.categorical:
            n_classes = _count_classes(name, store, train, property, head.n_classes)
            settings = settings.model_copy(update={"head": head.model_copy(update={"n_classes": n_classes})})
            fitted[property] = Target(settings, Normaliser(None, 0.0, 1.0), weight)
            continue
        references = None
        if prop.level == "structure" and prop.extensive and prop.rank == 0:
            references = fit_references(store, train, property)
        scale = fit_scale(store, train, property, references)
        mean = 0.0 if references is not None or prop.rank > 0 else scale.mean
        strained = head.entry.derivative == "strain"
        if "positions" in derivatives and (property == "energy" or strained):
            std = fit_scale(store, train, "forces").std
        elif strained:
            std = fit_scale(store, train, "energy", fit_references(store, train, "energy")).std
        else:
            std = scale.std
        # A constant label is not scaled.
        fitted[property] = Target(settings, Normaliser(references, mean, std if std > 1e-12 else 1.0), weight)
    return Task(name=name, level_of_theory=store.card.level_of_theory, targets=fitted, graph=graph)


def _count_classes(task: str, store: Store, train: np.ndarray, name: str, n_classes: int | None) -> int:
    """Number of classes: one more than the largest training label, and at least 2."""
    largest = 1
    for batch in store.take(train, name):
        labels = batch.column(name).drop_null().to_numpy()
        wrong = (labels < 0) | (labels != np.floor(labels))
        if wrong.any():
            raise EutecticError(
                f"task {task!r}, {name}",
                f"label {labels[wrong][0]:g} in {store.path.name!r}",
                "a class number: 0, 1, …",
                "number the classes from 0 when the data are prepared",
            )
        largest = max(largest, int(labels.max(initial=0)))
    if n_classes is not None and largest >= n_classes:
        raise EutecticError(
            f"task {task!r}, {name}",
            f"n_classes {n_classes}, and a training label {largest}",
            f"at least {largest + 1}",
            "omit `n_classes`: it is counted from the labels",
        )
    return n_classes or largest + 1
