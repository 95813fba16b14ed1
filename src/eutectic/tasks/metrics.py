"""Errors in physical units, summed so that they can be added over batches and processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from eutectic.atoms import PROPERTIES


@dataclass
class ErrorSum:
    """Running sums of one property's errors.

    Attributes:
        absolute: Σ |prediction − label| over components, in the property's unit.
        baseline: the same for the prediction that knows nothing: the reference and mean alone, or no force.
        count: components seen.
        truth, prediction: every value, kept only where asked for.
    """

    absolute: float = 0.0
    baseline: float = 0.0
    count: int = 0
    truth: list[np.ndarray] = field(default_factory=list)
    prediction: list[np.ndarray] = field(default_factory=list)

    def add(self, truth: np.ndarray, prediction: np.ndarray, baseline: np.ndarray, *, keep: bool = False) -> None:
        """Add values of one structure; all three of the same shape, in the property's unit."""
        self.absolute += float(np.abs(prediction - truth).sum())
        self.baseline += float(np.abs(baseline - truth).sum())
        self.count += int(np.size(truth))
        if keep:
            self.truth.append(np.ravel(truth))
            self.prediction.append(np.ravel(prediction))

    @property
    def mae(self) -> float:
        """Mean absolute error; NaN where nothing was seen."""
        return self.absolute / self.count if self.count else float("nan")

    @property
    def baseline_mae(self) -> float:
        """The error of knowing nothing."""
        return self.baseline / self.count if self.count else float("nan")


def shown(property_name: str, error: float) -> tuple[float, str]:
    """An error in the unit it is shown in, e.g. (23.1, 'meV/Å')."""
    prop = PROPERTIES[property_name]
    return error * prop.display_factor, prop.display_unit


def primary(targets: Sequence[str]) -> str:
    """The property by which a run is judged: forces where they are learned, else the first target."""
    return "forces" if "forces" in targets else next(iter(targets))
