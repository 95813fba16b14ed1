"""Uncertainties of a trained model: fitted to its training structures, calibrated on held-out structures.

See `eutectic.checkpoints.uncertainty` for the formula. Training structures give Σ f fᵀ; held-out structures and their
errors give α and ς.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from eutectic.atoms import EutecticError
from eutectic.checkpoints.uncertainty import Uncertainty
from eutectic.data.store import Store
from eutectic.models.multitask import MultitaskModel
from eutectic.tasks import Task
from eutectic.train.evaluation import evaluate_store

MOST = 2000
"""Maximum number of training structures in Σ f fᵀ; if there are more, evenly spaced ones are used, and it is scaled."""

FEWEST = 10
"""Minimum number of held-out structures."""

RIDGES = np.logspace(-10, 1, 56)
"""Values of ς² that are tried, in units of the mean eigenvalue of Σ f fᵀ."""


class Collected:
    """Last-layer features and errors; see `evaluation.LastFeatures`."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)
        self._errors: dict[str, list[float]] = {name: [] for name in names}
        self._features: dict[str, list[np.ndarray]] = {name: [] for name in names}

    def add(self, name: str, error: float, features: np.ndarray) -> None:
        """Add one structure."""
        self._errors[name].append(error)
        self._features[name].append(features)

    def of(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """(n, width) features and (n,) errors of a property, in its unit."""
        features = self._features[name]
        return np.stack(features) if features else np.zeros((0, 0)), np.asarray(self._errors[name])


def with_last_features(module: MultitaskModel, task: Task) -> list[str]:
    """Properties of a task that can have an uncertainty: scalars of the structure, except maxima over atoms."""
    return [name for name in task.targets if module.has_last_features(task.name, name)]


def calibrated(
    module: MultitaskModel,
    task: Task,
    training: tuple[Store, np.ndarray],
    held_out: tuple[Store, np.ndarray],
    *,
    batch_size: int = 32,
) -> dict[str, Uncertainty]:
    """Uncertainties of the scalar properties of a task.

    Args:
        module: trained, on its device.
        task: of the model.
        training, held_out: store and rows of training structures, and of others at the same level of theory.
        batch_size: structures per batch.

    Returns:
        Property → uncertainty, except for properties with fewer than `FEWEST` held-out structures, or whose errors or
        features are all zero.
    """
    names = with_last_features(module, task)
    if not names:
        return {}
    judged = replace(task, targets={name: task.targets[name] for name in names})
    store, rows = training
    some = rows[np.linspace(0, len(rows) - 1, min(MOST, len(rows))).astype(int)] if len(rows) else rows
    learned, tested = Collected(names), Collected(names)
    evaluate_store(module, judged, store, some, batch_size=batch_size, last_features=learned)
    evaluate_store(module, judged, *held_out, batch_size=batch_size, last_features=tested)
    found = {}
    for name in names:
        features, _ = learned.of(name)
        others, errors = tested.of(name)
        if len(features) and len(errors) >= FEWEST and (fitted := fit(features, others, errors, len(rows) / len(some))):
            found[name] = fitted
    return found


def fit(features: np.ndarray, held_out: np.ndarray, errors: np.ndarray, weight: float = 1.0) -> Uncertainty | None:
    """Maximum likelihood fit of an uncertainty to the errors on held-out structures.

    For each ς, the likelihood Π N(error; 0, σ²) has its maximum at α² = mean(error² / fᵀ C⁻¹ f); the ς with the largest
    maximum is used.

    Args:
        features: (n, width) features of training structures.
        held_out: (m, width) features of held-out structures.
        errors: (m,) prediction − label of held-out structures, in the unit of the property.
        weight: of each training structure.

    Returns:
        None if all features or all errors are zero, or some are not finite.
    """
    if not all(np.isfinite(values).all() for values in (features, held_out, errors)) or not errors.any():
        return None
    eigenvalues, vectors = np.linalg.eigh(weight * features.T @ features)
    eigenvalues = eigenvalues.clip(min=0)
    if not eigenvalues.any():
        return None
    along = (held_out @ vectors) ** 2  # (m, width)
    best = (np.inf, 0.0, 0.0)
    for ridge in RIDGES * eigenvalues.mean():
        variance = along @ (1 / (eigenvalues + ridge))
        # Structures with zero features have zero variance.
        variance = variance.clip(min=1e-12 * variance.max() + 1e-300)
        alpha2 = float(np.mean(errors**2 / variance))
        minus_log_likelihood = 0.5 * (float(np.log(variance).mean()) + np.log(alpha2))
        best = min(best, (minus_log_likelihood, ridge, alpha2))
    _, ridge, alpha2 = best
    factor = np.sqrt(alpha2 / (eigenvalues + ridge))[:, None] * vectors.T
    fitted = Uncertainty(torch.from_numpy(factor))
    facts = {
        "trained_on": round(weight * len(features)),
        "calibrated_on": len(errors),
        "alpha": float(np.sqrt(alpha2)),
        "ridge": float(ridge),
        "typical": float(np.median(fitted.of(held_out))),
    }
    return replace(fitted, facts=facts)


def check_calibrated(found: dict[str, Uncertainty], module: MultitaskModel, task: Task, where: str) -> None:
    """Check that there are uncertainties.

    Raises:
        EutecticError: no property has an uncertainty.
    """
    if found:
        return
    names = with_last_features(module, task)
    if not names:
        heads = ", ".join(f"{name} ({head.kind})" for name, head in task.heads.items())
        raise EutecticError(
            where,
            f"heads {heads}",
            "a head for a scalar of the structure, such as the energy, summed or averaged over atoms",
            "also fine-tune to such a property: -p energy",
        )
    raise EutecticError(
        where,
        f"too few labels of {', '.join(names)}, or only zero errors",
        f"labelled training structures, and at least {FEWEST} held-out structures",
        "give more data",
    )
