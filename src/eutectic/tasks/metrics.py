"""Running sums of errors in physical units, additive over batches and processes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from scipy.stats import rankdata

from eutectic.atoms import PROPERTIES


@dataclass
class ErrorSum:
    """Running sums of one property's errors. Lower is better, for every property.

    Attributes:
        absolute: Σ |prediction − label| over components, in the property's unit.
        baseline: the same for the baseline: references and mean alone, or zero forces.
        count: number of components.
        truth, prediction: all values, kept only on request.
        metric: name of `mae`.
    """

    absolute: float = 0.0
    baseline: float = 0.0
    count: int = 0
    truth: list[np.ndarray] = field(default_factory=list)
    prediction: list[np.ndarray] = field(default_factory=list)
    metric: ClassVar[str] = "MAE"

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
        """Mean absolute error; NaN without values."""
        return self.absolute / self.count if self.count else float("nan")

    @property
    def baseline_mae(self) -> float:
        """Mean absolute error of the baseline."""
        return self.baseline / self.count if self.count else float("nan")


@dataclass
class ClassErrorSum(ErrorSum):
    """Running sums for a property whose values are classes: the error of a structure is 1 where the likeliest class is
    wrong, and `mae` is the error rate.

    Attributes:
        baseline: number of structures outside the largest class.
        truth, prediction: class, and probability of class 1 where there are two, else the likeliest class; always kept.
        sizes: class → number of structures.
    """

    sizes: Counter[int] = field(default_factory=Counter)
    metric: ClassVar[str] = "error rate"

    def add_class(self, truth: int, probabilities: np.ndarray) -> float:
        """Add one structure's class and its predicted probabilities (n_classes,); returns its error."""
        likeliest = int(np.argmax(probabilities))
        wrong = float(likeliest != truth)
        self.sizes[truth] += 1
        self.absolute, self.count = self.absolute + wrong, self.count + 1
        self.baseline = float(self.count - max(self.sizes.values()))
        self.truth.append(np.array([float(truth)]))
        self.prediction.append(np.array([probabilities[1] if len(probabilities) == 2 else float(likeliest)]))
        return wrong

    @property
    def accuracy(self) -> float:
        """Fraction of structures whose likeliest class is right."""
        return 1 - self.mae

    @property
    def roc_auc(self) -> float:
        """Area under the ROC curve of two classes (0.5: chance); NaN unless both classes occur."""
        if set(self.sizes) != {0, 1}:
            return float("nan")
        return roc_auc(np.concatenate(self.truth) == 1, np.concatenate(self.prediction))


def roc_auc(positive: np.ndarray, score: np.ndarray) -> float:
    """Probability that a positive scores higher than a negative, ties counting half (Mann and Whitney 1947).

    Args:
        positive: (n,) bool, with both values present.
        score: (n,) higher where positive is likelier.
    """
    n, m = int(positive.sum()), int((~positive).sum())
    return float((rankdata(score)[positive].sum() - n * (n + 1) / 2) / (n * m))


def shown(property_name: str, error: float) -> tuple[float, str]:
    """An error in its display unit, e.g. (23.1, 'meV/Å')."""
    prop = PROPERTIES[property_name]
    return error * prop.display_factor, prop.display_unit


def primary(targets: Sequence[str]) -> str:
    """The property whose validation error selects the best step: forces if they are a target, else the first target."""
    return "forces" if "forces" in targets else next(iter(targets))
