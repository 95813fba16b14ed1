"""The result of a fine-tuning, also written to `result.json`."""

from __future__ import annotations

import builtins
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

from pydantic import TypeAdapter, ValidationError

from eutectic.atoms import EutecticError
from eutectic.files import null_for_unknown, read_json
from eutectic.train.judging import FELL


@dataclass(frozen=True, kw_only=True, repr=False)
class FinetuneResult:
    """Result of a fine-tuning; errors are mean absolute errors in the unit of their property.

    Attributes:
        name: of the task in the model.
        start: 'pretrained' or 'scratch'.
        model: name or folder of the starting model, or of the model whose architecture was used.
        property, unit: the main property (forces if they are learned), and the unit of its errors.
        dataset, level_of_theory: of the labels.
        batch_size, learning_rate, weight_decay, seed: as in the settings.
        total_steps: number of steps done.
        steps, seconds, errors: the validation curve of `property`.
        curves: property → validation error at each of `steps`.
        scores: score at each of `steps`, which selects the best step: mean over properties of error / baseline.
        best_step: step whose weights were kept and tested.
        validation_baselines: property → validation error of the mean predictor.
        test_error, baseline_error: of `property` on the test split, for the model and the mean predictor; None
            without test structures.
        test_errors, test_baselines: the same for every property.
        units: property → unit of its errors.
        metrics: property → name of its error measure.
        roc_auc: property with two classes → area under the ROC curve on the test split.
        truth, prediction: up to 500 test values of `property`, in `unit`.
        parity: property → [truth, prediction], the same for every property.
        trained_on, validated_on, tested_on: numbers of structures.
        wall_seconds: of training.
        examples: up to six varied structures of the data, as `eutectic.data.examples.structure_to_dict` writes them.
        score_weights: property → its weight in `scores`.
        length: requested length, as text.
        epochs: how often each training structure was drawn on average.
        fell: relative decrease of the best score in the last part of the run; None if unknown.
        converged: whether the run ended because its score no longer fell.
        notes: messages about the run.
        trained: trained parts of the model, as text.
        companions: companion → `before`, `after`, `baselines` and `test` (each property → error, see
            `eutectic.train.companions.CompanionErrors`), `units`, and others.
        rungs: with an effort, the trainings that were tried (see `eutectic.train.effort.Rung`).
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
    scores: list[float] = field(default_factory=list)
    score_weights: dict[str, float] = field(default_factory=dict)
    length: str = ""
    epochs: float | None = None
    fell: float | None = None
    converged: bool = False
    notes: list[str] = field(default_factory=list)
    trained: str = ""
    rungs: list[dict[str, Any]] = field(default_factory=list)
    companions: dict[str, dict[str, Any]] = field(default_factory=dict)

    @builtins.property
    def still_falling(self) -> bool | None:
        """Whether the validation score was still falling when the run ended (`judging.RULE`); None if unknown."""
        return None if self.fell is None else self.fell > FELL and not self.converged

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON; unknown values are null."""
        return cast("dict[str, Any]", null_for_unknown(asdict(self))) | {"still_falling": self.still_falling}

    def __repr__(self) -> str:
        best = self.steps.index(self.best_step)
        errors = self.test_errors or {name: curve[best] for name, curve in self.curves.items()}
        part, number = ("test", self.tested_on) if self.test_errors else ("validation", self.validated_on)
        if not number:
            return f"FinetuneResult {self.name}: no test or validation structures (step {self.best_step})"
        words = ", ".join(f"{name.replace('_', ' ')} {error:.4g} {self.units[name]}" for name, error in errors.items())
        return f"FinetuneResult {self.name}: {part} error {words} ({number} structures; step {self.best_step})"


def _with_nan(values: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `null_for_unknown` for the errors of a result."""

    def known(errors: Any) -> Any:
        return [math.nan if error is None else error for error in errors] if isinstance(errors, list) else errors

    def by_name(errors: Any) -> Any:
        if not isinstance(errors, dict):
            return errors
        return {k: known(v) if isinstance(v, list) else math.nan if v is None else v for k, v in errors.items()}

    lists: dict[str, Any] = {name: known(values[name]) for name in ("errors", "scores") if name in values}
    named = ("curves", "validation_baselines", "test_errors", "test_baselines")
    return {**values, **lists, **{name: by_name(values[name]) for name in named if name in values}}


def read_result(folder: Path) -> FinetuneResult:
    """Read the result of a finished run.

    Raises:
        EutecticError: there is none, or it is from an incompatible version.
    """
    path = Path(folder) / "result.json"
    expected = "the result of a fine-tuning by this version"
    fix = "delete the folder, or choose another --out, and run again"
    values = read_json(path, expected=expected, fix=fix)
    try:
        values.pop("still_falling", None)
        return TypeAdapter(FinetuneResult).validate_python(_with_nan(values))
    except ValidationError as error:
        wrong = error.errors()[0]
        given = f"{'.'.join(map(str, wrong['loc']))}: {wrong['msg']}"
        raise EutecticError(str(path), given, expected, fix) from error
