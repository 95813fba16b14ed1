"""Running sums of errors in physical units, additive over batches and processes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from scipy.stats import rankdata

from eutectic.atoms import PROPERTIES


@dataclass
class Spread:
    """Running sums of values, for their standard deviation.

    Attributes:
        count, total, squares: number of values, their sum, and the sum of their squares.
    """

    count: float = 0.0
    total: float = 0.0
    squares: float = 0.0

    def add(self, values: np.ndarray | float) -> None:
        """Add values of any shape."""
        self.count += np.size(values)
        self.total += float(np.sum(values))
        self.squares += float(np.sum(np.square(values)))

    @property
    def std(self) -> float:
        """Standard deviation; 0 without values."""
        if not self.count:
            return 0.0
        return math.sqrt(max(0.0, self.squares / self.count - (self.total / self.count) ** 2))


@dataclass
class ErrorSum:
    """Running sums of one property's errors. Lower is better, for every property.

    Attributes:
        absolute: Σ |prediction − label| over components, in the property's unit.
        squared, signed: Σ (prediction − label)², Σ (prediction − label).
        baseline: Σ |label − baseline|; the baseline is references and mean alone, or zero forces.
        count, structures: number of components, and of structures.
        learned, sought: prediction and label without references and mean, per atom if extensive: the head's output and
            its target.
        truth, prediction: all values, kept only on request.
        metric: name of `mae`.
    """

    absolute: float = 0.0
    squared: float = 0.0
    signed: float = 0.0
    baseline: float = 0.0
    count: int = 0
    structures: int = 0
    learned: Spread = field(default_factory=Spread)
    sought: Spread = field(default_factory=Spread)
    truth: list[np.ndarray] = field(default_factory=list)
    prediction: list[np.ndarray] = field(default_factory=list)
    metric: ClassVar[str] = "MAE"

    def add(
        self,
        truth: np.ndarray,
        prediction: np.ndarray,
        baseline: np.ndarray,
        nothing: np.ndarray | None = None,
        *,
        size: int = 1,
        keep: bool = False,
    ) -> None:
        """Add values of one structure.

        Args:
            truth, prediction, baseline: of the same shape, in the property's unit.
            nothing: prediction of a head whose output is zero, if that is not the baseline.
            size: number of atoms by which `learned` and `sought` are divided.
            keep: keep truth and prediction.
        """
        self.absolute += float(np.abs(prediction - truth).sum())
        self.squared += float(np.square(prediction - truth).sum())
        self.signed += float((prediction - truth).sum())
        self.structures += 1
        nothing = baseline if nothing is None else nothing
        self.learned.add((prediction - nothing) / size)
        self.sought.add((truth - nothing) / size)
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

    @property
    def bias(self) -> float:
        """Mean of prediction − label; NaN without values."""
        return self.signed / self.count if self.count else float("nan")

    @property
    def rmse(self) -> float:
        """Root of the mean squared error; NaN without values."""
        return math.sqrt(self.squared / self.count) if self.count else float("nan")


@dataclass
class ClassErrorSum(ErrorSum):
    """Running sums for a property whose values are classes: the error of a structure is 1 if the most likely class is
    wrong, and `mae` is the error rate.

    Attributes:
        baseline: number of structures outside the largest class.
        truth, prediction: class, and probability of class 1 of two, else the most likely class; always kept.
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
        self.squared, self.structures = self.squared + wrong, self.structures + 1
        self.baseline = float(self.count - max(self.sizes.values()))
        self.learned.add(float(probabilities[0]))
        self.sought.add(float(truth == 0))
        self.truth.append(np.array([float(truth)]))
        self.prediction.append(np.array([probabilities[1] if len(probabilities) == 2 else float(likeliest)]))
        return wrong

    @property
    def accuracy(self) -> float:
        """Fraction of structures whose most likely class is correct."""
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
        score: (n,) higher if a positive is more likely.
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
