"""From a data set's training split to a task: references and scales are fitted here and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from eutectic.atoms import PROPERTIES, EutecticError
from eutectic.data.store import Store
from eutectic.graph import GraphSettings
from eutectic.tasks.references import fit_references, fit_scale, mean_atoms
from eutectic.tasks.task import Normaliser, Target, TargetSettings, Task


def fit_task(
    name: str, store: Store, train: np.ndarray, targets: Mapping[str, TargetSettings], graph: GraphSettings
) -> Task:
    """Fit every target's normaliser on the training split.

    Extensive properties lose a least-squares reference per element and keep mean 0, so that the model stays
    extensive; intensive ones lose their mean; forces are divided by the RMS of a component. Where forces are
    the gradient of the energy head both share one scale, σ_F · 1 Å for the energy, so that the identity
    F = −∂E/∂r holds in model units too; a stress that is one shares it as well, σ = (∂E/∂ε)/V.

    Raises:
        EutecticError: a target without a single label in the training split.
    """
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
    gradient = "forces" in targets and targets["forces"].head.kind == "gradient_forces"
    for wanted, settings in targets.items():
        prop = PROPERTIES[wanted]
        references = None
        if prop.level == "structure" and prop.extensive:
            references = fit_references(store, train, wanted)
        scale = fit_scale(store, train, wanted, references)
        mean = 0.0 if references is not None or prop.rank > 0 else scale.mean
        derived = settings.head.kind == "gradient_stress"
        mean = 0.0 if derived else mean
        if gradient and (wanted == "energy" or derived):
            spread = fit_scale(store, train, "forces").std
        elif derived:
            spread = fit_scale(store, train, "energy", fit_references(store, train, "energy")).std
        else:
            spread = scale.std
        weight = settings.weight * (mean_atoms(store, train) if settings.weight_by_size else 1.0)
        # A constant label has nothing to scale.
        normaliser = Normaliser(references, mean, spread if spread > 1e-12 else 1.0)
        fitted[wanted] = Target(settings, normaliser, weight)
    return Task(name=name, level_of_theory=store.card.level_of_theory, targets=fitted, graph=graph)
