"""From a data set's training split to a task: references and scales are fitted here and nowhere else."""

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

    Extensive scalars lose a least-squares reference per element and keep mean 0, so that the model stays
    extensive; intensive ones and scalars of atoms lose their mean; vectors and tensors are divided by the RMS of a
    component; classes stay as they are. Where forces are the gradient of the energy head both share one scale,
    σ_F · 1 Å for the energy, so that the identity F = −∂E/∂r holds in model units too; a stress that is one shares it
    as well, σ = (∂E/∂ε)/V.

    Raises:
        EutecticError: targets that do not fit their properties (see `check_targets`); a target without a single label
            in the training split; classes that are not 0, 1, …
    """
    targets = check_targets(targets)
    counts = store.label_counts()
    for wanted in targets:
        if counts.get(wanted, 0) == 0:
            found = ", ".join(f"{k} ({v})" for k, v in counts.items() if v) or "none"
            raise EutecticError(
                f"task {name!r}",
                f"no structure of {store.path.name!r} has the label {wanted!r}; labels there: {found}",
                "at least one label for every target that is learned",
                "drop the target, or prepare the data with the label under a name that is read",
            )
    fitted: dict[str, Target] = {}
    derivatives = {settings.head.entry.derivative for settings in targets.values()}
    for wanted, settings in targets.items():
        prop, head = PROPERTIES[wanted], settings.head
        weight = settings.weight * (mean_atoms(store, train) if settings.weight_by_size else 1.0)
        if head.entry.categorical:
            n_classes = _count_classes(name, store, train, wanted, head.n_classes)
            settings = settings.model_copy(update={"head": head.model_copy(update={"n_classes": n_classes})})
            fitted[wanted] = Target(settings, Normaliser(None, 0.0, 1.0), weight)
            continue
        references = None
        if prop.level == "structure" and prop.extensive and prop.rank == 0:
            references = fit_references(store, train, wanted)
        scale = fit_scale(store, train, wanted, references)
        mean = 0.0 if references is not None or prop.rank > 0 else scale.mean
        strained = head.entry.derivative == "strain"
        if "positions" in derivatives and (wanted == "energy" or strained):
            spread = fit_scale(store, train, "forces").std
        elif strained:
            spread = fit_scale(store, train, "energy", fit_references(store, train, "energy")).std
        else:
            spread = scale.std
        # A constant label has nothing to scale.
        fitted[wanted] = Target(settings, Normaliser(references, mean, spread if spread > 1e-12 else 1.0), weight)
    return Task(name=name, level_of_theory=store.card.level_of_theory, targets=fitted, graph=graph)


def _count_classes(task: str, store: Store, train: np.ndarray, name: str, stated: int | None) -> int:
    """Number of classes: one more than the largest training label, and at least 2."""
    largest = 1
    for batch in store.take(train, name):
        labels = batch.column(name).drop_null().to_numpy()
        wrong = (labels < 0) | (labels != np.floor(labels))
        if wrong.any():
            raise EutecticError(
                f"task {task!r}, {name}",
                f"label {labels[wrong][0]:g} in {store.path.name!r}",
                "the number of a class: 0, 1, …",
                "number the classes from 0 when the data are prepared",
            )
        largest = max(largest, int(labels.max(initial=0)))
    if stated is not None and largest >= stated:
        raise EutecticError(
            f"task {task!r}, {name}",
            f"n_classes {stated}, and a training label {largest}",
            f"at least {largest + 1}",
            "leave `n_classes` out: it is counted",
        )
    return stated or largest + 1
