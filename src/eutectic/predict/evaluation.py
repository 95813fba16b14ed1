"""Errors of a trained model on labelled data: by property, data set, element and size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import numpy as np
from scipy.stats import rankdata

from eutectic.atoms import EutecticError
from eutectic.checkpoints.model import TrainedModel
from eutectic.checkpoints.seen_rows import seen_rows
from eutectic.checkpoints.uncertainty import Uncertainty
from eutectic.data.store import Store
from eutectic.files import null_for_unknown
from eutectic.models.heads import HeadSettings
from eutectic.predict.prediction import task_of
from eutectic.tasks import Normaliser, Task
from eutectic.tasks.metrics import ErrorSum, shown
from eutectic.train.evaluation import Breakdown, evaluate_store


@dataclass(frozen=True, kw_only=True)
class UncertaintyErrors:
    """Uncertainties σ of a property compared with its errors, in the unit of the errors.

    Attributes:
        coverage: nominal coverage of the central interval around the prediction ("0.68" and "0.95") → observed fraction
            of labels in it.
        median: median σ.
        ratio: root mean square of error / σ; 1 is calibrated, more than 1 is overconfident.
        rank_correlation: Spearman correlation of |error| and σ; None if either is constant.
        bins: [root mean square σ, root mean square error] of up to ten equally large groups by increasing σ.
    """

    coverage: dict[str, float]
    median: float
    ratio: float
    rank_correlation: float | None
    bins: list[list[float]]


INTERVALS = {"0.68": 0.9945, "0.95": 1.96}
"""Fraction of a normal distribution → half-width of the central interval that contains it, in standard deviations."""

BINS = 10
FEWEST_OF_A_BIN = 5


class Doubts:
    """Pairs of error and uncertainty; see `train.evaluation.LastFeatures`."""

    def __init__(self, known: Mapping[str, Uncertainty]) -> None:
        self.names, self._known = list(known), known
        self._pairs: dict[str, list[tuple[float, float]]] = {name: [] for name in known}

    def add(self, name: str, error: float, features: np.ndarray) -> None:
        """Add one structure."""
        self._pairs[name].append((error, float(self._known[name].of(features[None])[0])))

    def summary(self, name: str, factor: float) -> UncertaintyErrors | None:
        """The comparison, in the unit of the property divided by `factor`; None without structures."""
        if not self._pairs.get(name):
            return None
        return compare_uncertainty(*(factor * np.array(self._pairs[name]).T))


def compare_uncertainty(errors: np.ndarray, sigma: np.ndarray) -> UncertaintyErrors:
    """Compare errors with the standard deviations predicted for them.

    Args:
        errors, sigma: (n,), n ≥ 1.
    """
    absolute = np.abs(errors)
    order = np.argsort(sigma, kind="stable")
    groups = np.array_split(order, max(1, min(BINS, len(order) // FEWEST_OF_A_BIN)))
    varied = np.ptp(absolute) > 0 and np.ptp(sigma) > 0
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = float(np.sqrt(np.mean((errors / sigma) ** 2)))
    return UncertaintyErrors(
        coverage={share: float(np.mean(absolute <= width * sigma)) for share, width in INTERVALS.items()},
        median=float(np.median(sigma)),
        ratio=ratio,
        rank_correlation=float(np.corrcoef(rankdata(absolute), rankdata(sigma))[0, 1]) if varied else None,
        bins=[[float(np.sqrt(np.mean(values[group] ** 2))) for values in (sigma, absolute)] for group in groups],
    )


@dataclass(frozen=True, kw_only=True)
class PropertyErrors:
    """Errors of one property, in `unit`.

    Attributes:
        unit: unit of the errors.
        metric: name of `mae`: MAE, or error rate for classes.
        mae, rmse, bias: mean absolute error, root mean squared error, and mean of prediction − label.
        baseline: mean absolute error of the model's references and mean alone; for forces, of zero forces.
        values, structures: number of components, and of structures with the label.
        by_size, by_element: number of atoms ("8–15") or element → mean absolute error; elements only for per-atom
            properties.
        truth, prediction: an even selection of values.
        uncertainty: uncertainties compared with the errors, if the model was calibrated.
    """

    unit: str
    metric: str
    mae: float
    rmse: float
    bias: float
    baseline: float
    values: int
    structures: int
    by_size: dict[str, float]
    by_element: dict[str, float]
    truth: list[float]
    prediction: list[float]
    uncertainty: UncertaintyErrors | None = None


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Errors of a model on several data sets.

    Attributes:
        model, task, level_of_theory: what was evaluated, and the level of theory of its predictions.
        conservative: whether forces and stress are derivatives of the energy.
        sets: data set → property → errors.
        notes: caveats about the errors, as text.
        left_out: data set → number of structures that cannot be predicted, and the reason for the first of them.
    """

    model: str
    task: str
    level_of_theory: str
    conservative: bool
    sets: dict[str, dict[str, PropertyErrors]]
    notes: list[str]
    left_out: dict[str, tuple[int, str]]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON; unknown values are null."""
        return cast("dict[str, Any]", null_for_unknown(asdict(self)))

    def __repr__(self) -> str:
        lines = [f"Evaluation of {self.model}, task {self.task}"]
        for name, errors in self.sets.items():
            text = ", ".join(f"{p.replace('_', ' ')} {e.mae:.4g} {e.unit}" for p, e in errors.items())
            lines.append(f"  {name}: {text}")
        return "\n".join(lines)


def evaluate_model(
    model: TrainedModel,
    sets: Mapping[str, tuple[Store, np.ndarray]],
    *,
    name: str = "",
    task: str | None = None,
    properties: Sequence[str] = (),
    conservative: bool = False,
    batch_size: int = 32,
    progress: Callable[[int], object] = lambda structures: None,
) -> Evaluation:
    """Predict labelled structures and compare.

    Args:
        model: on its device.
        sets: name → store and rows.
        name: name of the model in the result.
        task: task of the model; required if it has several.
        properties: properties to compare; default: all that the task predicts.
        conservative: forces and stress as derivatives of the energy.
        batch_size: structures per batch.
        progress: called with the number of structures done since the last call.

    Raises:
        EutecticError: no such task or property; a data set without labels of the predicted properties, or without a
            structure that can be predicted.
    """
    chosen = task_of(model, task, f"model {name}")
    if conservative:
        chosen = _conservative(chosen)
    missing = [p for p in properties if p not in chosen.targets]
    if missing:
        raise EutecticError(
            f"task {chosen.name} of {name}",
            f"{', '.join(missing)}, which it does not predict",
            f"properties that it predicts: {', '.join(chosen.targets)}",
            "choose one of these",
        )
    targets = {p: t for p, t in chosen.targets.items() if not properties or p in properties}
    results: dict[str, dict[str, PropertyErrors]] = {}
    notes, left_out = [], {}
    for where, (store, rows) in sets.items():
        labels = [p for p in targets if store.label_counts().get(p)]
        if not labels:
            present = ", ".join(p for p, n in store.label_counts().items() if n) or "none"
            raise EutecticError(
                where,
                f"no label of {', '.join(targets)}; its labels: {present}",
                f"labels that task {chosen.name} predicts",
                "name the entry of the file that holds them (--key energy=NAME), or choose another task",
            )
        evaluated = replace(chosen, targets={p: targets[p] for p in labels})
        # A derivative needs the energy head, whether or not energies are compared.
        breakdown = Breakdown([(evaluated.name, p) for p in labels])
        known = model.uncertainties.get(chosen.name, {})
        uncertainties = Doubts({p: known[p] for p in labels if p in known})
        errors, refused = evaluate_store(
            model.module,
            evaluated,
            store,
            rows,
            batch_size=batch_size,
            conservative=conservative,
            seen=breakdown.add,
            last_features=uncertainties if uncertainties.names else None,
            progress=progress,
        )
        if refused and len(refused) == len(rows):
            raise EutecticError(f"{where}, {refused[0].where}", refused[0].given, refused[0].expected, refused[0].fix)
        if refused:
            left_out[where] = (len(refused), str(refused[0]))
        notes += _notes(model, chosen, where, store, rows)
        parts = breakdown.table()
        results[where] = {p: _errors_of(p, errors[p], parts, evaluated.name, uncertainties) for p in labels}
    return Evaluation(
        model=name,
        task=chosen.name,
        level_of_theory=chosen.level_of_theory,
        conservative=conservative or chosen.has_derivatives,
        sets=results,
        notes=notes,
        left_out=left_out,
    )


def _conservative(task: Task) -> Task:
    """The task with forces and stress as derivatives of its energy, with the energy's scale."""
    if "energy" not in task.targets:
        raise EutecticError(
            f"task {task.name}",
            f"derivatives of the energy requested; its heads: {', '.join(task.heads)}",
            "a task with an energy head",
            "choose another task, or leave out --conservative",
        )
    energy = task.targets["energy"]
    normaliser = Normaliser(None, 0.0, energy.normaliser.scale)
    targets = dict(task.targets)
    for name, kind in (("forces", "gradient_forces"), ("stress", "gradient_stress")):
        settings = energy.settings.model_copy(update={"head": HeadSettings(kind=kind)})
        targets[name] = replace(energy, settings=settings, normaliser=normaliser)
    return replace(task, targets=targets)


def _notes(model: TrainedModel, task: Task, where: str, store: Store, rows: np.ndarray) -> list[str]:
    notes = []
    labels = store.card.level_of_theory
    if labels != task.level_of_theory:
        notes.append(f"{where}: labels at level of theory {labels!r}, predictions at {task.level_of_theory!r}")
    seen = seen_rows(model.provenance, store)
    if seen is not None and (n := np.intersect1d(rows, seen).size):
        notes.append(f"{where}: the model was trained on {n:,} of these {len(rows):,} structures: errors are too low")
    return notes


def _errors_of(
    name: str,
    errors: ErrorSum,
    parts: Mapping[str, Mapping[str, Mapping[str, dict[str, float]]]],
    task: str,
    uncertainties: Doubts,
) -> PropertyErrors:
    factor, unit = shown(name, 1.0)
    truth, prediction = (
        (np.concatenate(values) * factor).round(6).tolist() if values else []
        for values in (errors.truth, errors.prediction)
    )
    return PropertyErrors(
        unit=unit,
        metric=errors.metric,
        mae=factor * errors.mae,
        rmse=factor * errors.rmse,
        bias=factor * errors.bias,
        baseline=factor * errors.baseline_mae,
        values=errors.count,
        structures=errors.structures,
        by_size=dict(parts["size"].get(task, {}).get(name, {})),
        by_element=dict(parts["element"].get(task, {}).get(name, {})),
        truth=truth,
        prediction=prediction,
        uncertainty=uncertainties.summary(name, factor),
    )
