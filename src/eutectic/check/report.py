"""The report of a check: verdict, findings by severity, and their numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One finding of a check.

    Attributes:
        code: stable identifier for scripts ("forces_sign").
        severity: "error" makes the data unusable, "warning" may do so, "note" is information.
        title: a few words, for the verdict.
        message: the observation, with numbers.
        why: why it matters.
        fix: what to do.
        numbers: the numbers as plain JSON.
    """

    code: str
    severity: Severity
    title: str
    message: str
    why: str
    fix: str
    numbers: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Units:
    """Units of the labels, as inferred from the data.

    Attributes:
        energy, forces, length: names of the units; None if undetermined.
        confidence: confidence in the energy unit: "high", "medium", "low".
        regime: kind of energies (all-electron total energies, or relative ones).
        energies_of_elements: symbol → fitted energy, the file's unit; empty if the compositions do not determine them.
        energy_per_atom, residual_per_atom: median energy, and spread (by MAD) of the fit's residuals, the file's unit.
        declared: units stated in the file.
    """

    energy: str | None = None
    forces: str | None = None
    length: str | None = None
    confidence: str = "low"
    regime: str = ""
    energies_of_elements: Mapping[str, float] = field(default_factory=dict)
    energy_per_atom: float | None = None
    residual_per_atom: float | None = None
    declared: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class SlopeTest:
    """Consistency of energy changes with forces (or stresses).

    Attributes:
        verdict: conclusion, one line.
        tested: whether there were enough similar frames.
        pairs: number of pairs of similar frames.
        slope, error, correlation: energy changes against work; None if not fitted.
        factor: factor by which to multiply the forces (stresses) to match the energies; None if unknown.
    """

    verdict: str
    tested: bool = False
    pairs: int = 0
    slope: float | None = None
    error: float | None = None
    correlation: float | None = None
    factor: float | None = None


@dataclass(frozen=True, kw_only=True)
class Plotted:
    """Bounded samples for the plots of the HTML report; not in the JSON.

    Attributes:
        residuals: residual energies per atom, the file's unit.
        forces: force magnitudes, the file's unit.
        work, energy_change: of the more similar half of the pairs of frames.
        atoms_of: atomic number → number of atoms.
    """

    residuals: tuple[float, ...] = ()
    forces: tuple[float, ...] = ()
    work: tuple[float, ...] = ()
    energy_change: tuple[float, ...] = ()
    atoms_of: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, repr=False)
class Report:
    """The complete report of a check.

    Attributes:
        source: the data checked.
        kind: "store", "structures" (read by ASE) or "arrays" (HDF5, npz: without conversion).
        structures: number of structures.
        labels: property → count.
        keys: property → key in the file → count.
        ignored: keys that look like labels but are not used → count.
        bad: count and first error messages of unusable structures.
        duplicates: structures that repeat an earlier one (to 1e-3 Å).
        force_outliers: count, limit and first ids.
        largest_force: in the file's unit.
        units, force_test, stress_test: see `Units` and `SlopeTest`.
        bond_test: `BondTest` of bonds to hydrogen, as plain numbers; empty if there was none.
        elements: symbol → structures and atoms.
        splits: leakage of each split of a store.
        findings: most severe first.
        plotted: samples for the plots.
    """

    source: str
    kind: str
    structures: int
    labels: Mapping[str, int]
    keys: Mapping[str, Mapping[str, int]]
    ignored: Mapping[str, int]
    bad: Mapping[str, Any]
    duplicates: int
    force_outliers: Mapping[str, Any]
    largest_force: float | None
    units: Units
    force_test: SlopeTest
    stress_test: SlopeTest
    bond_test: Mapping[str, Any]
    elements: Mapping[str, Mapping[str, int]]
    splits: tuple[Mapping[str, Any], ...]
    findings: tuple[Finding, ...]
    plotted: Plotted

    def __repr__(self) -> str:
        lines = [f"Report of {self.source}: {self.structures:,} structures. {self.verdict}"]
        return "\n".join([*lines, *(f"  {f.severity}: {f.message}" for f in self.findings)])

    @property
    def ok(self) -> bool:
        """Whether the data can be used for training as it is."""
        return not self.of("error")

    def of(self, severity: Severity) -> tuple[Finding, ...]:
        """The findings of a severity."""
        return tuple(f for f in self.findings if f.severity == severity)

    @property
    def verdict(self) -> str:
        """One-line summary."""
        errors = [f.title for f in self.of("error")]
        warnings = [f.title for f in self.of("warning")]
        if not self.labels and not self.bad["count"]:
            return "Not usable: no labels were found."
        also = f" Warnings: {'; '.join(warnings)}." if warnings else ""
        if errors:
            return f"Not usable as it is: {'; '.join(errors)}." + also
        return f"Usable. Labels: {', '.join(f'{name} ({n})' for name, n in self.labels.items())}." + also

    def to_dict(self) -> dict[str, Any]:
        """JSON form, the verdict first."""
        values = {k: v for k, v in asdict(self).items() if k != "plotted"}
        return {"ok": self.ok, "verdict": self.verdict, **_plain(values)}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    # JSON has no NaN or infinity.
    return None if isinstance(value, float) and value - value != 0 else value
