"""Tolerances and results of conformance checks, and the error that lists failures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Tolerances:
    """Largest acceptable deviations, relative to the largest value of the same quantity.

    Attributes:
        symmetry: float64 rounding (1e-16), amplified by a deep network and divisions by small lengths; a broken
            symmetry gives 1e-3 and above.
        derivative: the error of a fourth-order difference with step 3e-4 Å is about 1e-8 of a smooth function's slope;
            a missing term gives 1e-2 and above.
        second_derivative: as `derivative`, for second derivatives, one order of magnitude larger.
        precision: float32 against float64: 6e-8, amplified by the depth of the network and cancellation in sums.
        cutoff: change over 2e-5 Å across the cutoff; smooth functions change by about this much, a missing envelope
            (features) or an envelope with a kink (their slope) gives 1e-2 and above.
        nothing: smaller changes of the features count as no change.
        growth: ratio of the forces on a nearly straight molecule to those on a bent one; dividing by the sine of the
            angle gives 1e3 and above.
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
        name: name of the check.
        passed: whether the deviation is acceptable.
        worst: largest measured deviation.
        tolerance: largest acceptable deviation.
        where: the structure (and quantity) with the worst deviation.
        meaning: explanation of a failure.
        advisory: a failure is reported but is not an error.
    """

    name: str
    passed: bool
    worst: float
    tolerance: float
    where: str = ""
    meaning: str = ""
    advisory: bool = False

    def __str__(self) -> str:
        verdict = "passed" if self.passed else "WARNING" if self.advisory else "FAILED"
        where = f", worst in {self.where}" if self.where else ""
        line = f"{verdict}  {self.name}: {self.worst:.2g} (tolerance {self.tolerance:.2g}{where})"
        return line if self.passed or not self.meaning else f"{line}: {self.meaning}"


class ConformanceError(AssertionError):
    """Some checks failed; the message lists them with their worst structures.

    Attributes:
        results: every result of the run, including those that passed.
    """

    def __init__(self, subject: str, results: Sequence[CheckResult]) -> None:
        self.results = list(results)
        failed = [r for r in results if not r.passed and not r.advisory]
        lines = "\n".join(f"  {r}" for r in failed)
        super().__init__(f"{subject}: {len(failed)} of {len(results)} checks failed\n{lines}")


def raise_if_failed(subject: str, results: Sequence[CheckResult]) -> None:
    """Raise a `ConformanceError` if any non-advisory check failed."""
    if not all(r.passed or r.advisory for r in results):
        raise ConformanceError(subject, results)
