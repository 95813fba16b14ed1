"""Tolerances of the checks, their results, and the error that lists the failures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Tolerances:
    """How much two numbers that physics calls equal may differ, relative to the largest of their kind.

    Attributes:
        symmetry: float64 rounding (1e-16), grown by a deep network and divisions by small lengths; a broken
            symmetry shows at 1e-3 and above.
        derivative: a fourth-order difference of step 3e-4 Å misses about 1e-8 of a smooth function's slope; a
            forgotten term shows at 1e-2 and above.
        second_derivative: the same for the slope of a slope, one order rougher.
        precision: float32 against float64: 6e-8 grown by the network's depth and the cancellation in sums.
        cutoff: change over 2e-5 Å across the cutoff; smooth functions change by about that, a missing
            envelope (features) or one with a kink (their slope) by 1e-2 and above.
        nothing: a change of the features below this counts as no change at all.
        growth: forces on a nearly straight molecule over those on a bent one; dividing by the angle's sine
            gives 1e3 and above.
        net_force: eV/Å per atom; self-consistent fields and grids leave about 1e-3.
    """

    symmetry: float = 1e-8
    derivative: float = 1e-6
    second_derivative: float = 1e-5
    precision: float = 1e-3
    cutoff: float = 1e-3
    nothing: float = 1e-9
    growth: float = 10.0
    net_force: float = 2e-3


DEFAULT_TOLERANCES = Tolerances()


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """The result of one check.

    Attributes:
        name: of the check.
        passed: whether the deviation is acceptable.
        worst: largest deviation found.
        tolerance: largest deviation that is acceptable.
        where: the structure (and quantity) with the worst deviation.
        meaning: what a failure means, in words.
        advisory: worth a look, never an error.
    """

    name: str
    passed: bool
    worst: float
    tolerance: float
    where: str = ""
    meaning: str = ""
    advisory: bool = False

    def __str__(self) -> str:
        verdict = "passed" if self.passed else "look at" if self.advisory else "FAILED"
        where = f", worst in {self.where}" if self.where else ""
        line = f"{verdict}  {self.name}: {self.worst:.2g} (tolerance {self.tolerance:.2g}{where})"
        return line if self.passed or not self.meaning else f"{line}: {self.meaning}"


class ConformanceError(AssertionError):
    """Some checks failed; the message lists which, and where.

    Attributes:
        results: every result of the run, including those that passed.
    """

    def __init__(self, subject: str, results: Sequence[CheckResult]) -> None:
        self.results = list(results)
        failed = [r for r in results if not r.passed and not r.advisory]
        lines = "\n".join(f"  {r}" for r in failed)
        super().__init__(f"{subject}: {len(failed)} of {len(results)} checks failed\n{lines}")


def raise_if_failed(subject: str, results: Sequence[CheckResult]) -> None:
    """Raise a `ConformanceError` if any check failed that is not advisory."""
    if not all(r.passed or r.advisory for r in results):
        raise ConformanceError(subject, results)
