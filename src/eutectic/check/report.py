"""What a check says: a verdict in words, findings in the order of their weight, and the numbers behind them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was seen.

    Attributes:
        code: a word for scripts ("forces_sign"); never changes.
        severity: "error" spoils a training, "warning" may, "note" is good to know.
        title: for the verdict, a few words.
        message: what was seen, with numbers.
        why: why it matters.
        fix: what to do.
        numbers: the same as plain JSON.
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
    """What the labels are measured in, as far as they tell.

    Attributes:
        energy, forces, length: names; None where nothing tells.
        confidence: of the energy: "high", "medium", "low".
        regime: what kind of energies they are.
        energies_of_elements: symbol → fitted energy, the file's unit; empty where compositions do not tell.
        energy_per_atom, residual_per_atom: median, and spread (by MAD) of what the fit leaves, the file's unit.
        declared: what the file itself states.
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
    """Do energies change as forces (or stresses) say?

    Attributes:
        verdict: in words.
        tested: whether there were near frames enough to say.
        pairs: of near frames.
        slope, error, correlation: of energy changes against work; None where there was no line to draw.
        factor: what to multiply the forces (stresses) by so that they fit the energies; None where not known.
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
    """Bounded samples, for a page; not in the JSON.

    Attributes:
        residuals: per atom, the file's unit.
        forces: magnitudes, the file's unit.
        work, energy_change: of pairs of near frames, the nearer half.
        atoms_of: atomic number → atoms.
    """

    residuals: tuple[float, ...] = ()
    forces: tuple[float, ...] = ()
    work: tuple[float, ...] = ()
    energy_change: tuple[float, ...] = ()
    atoms_of: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Report:
    """All of it.

    Attributes:
        source: what was looked at.
        kind: "store", "structures" (read by ASE) or "arrays" (HDF5, npz: as they lie in the file).
        structures: how many.
        labels: property → count.
        keys: property → key it was found under → count.
        ignored: keys that look like labels and were not taken → count.
        bad: count, and the first messages, of structures that cannot be used.
        duplicates: structures that repeat an earlier one (to 1e-3 Å).
        force_outliers: count, limit and the first ids.
        largest_force: in the file's unit.
        units, force_test, stress_test: see there.
        bond_test: stiffness of bonds to hydrogen, as plain numbers; empty where there was none.
        elements: symbol → structures and atoms.
        splits: what is on both sides of each split of a store.
        findings: the gravest first.
        plotted: samples.
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

    @property
    def ok(self) -> bool:
        """Whether it can be trained on as it is."""
        return not self.of("error")

    def of(self, severity: Severity) -> tuple[Finding, ...]:
        """The findings of that weight."""
        return tuple(f for f in self.findings if f.severity == severity)

    @property
    def verdict(self) -> str:
        """One line."""
        errors = [f.title for f in self.of("error")]
        doubts = [f.title for f in self.of("warning")]
        if not self.labels and not self.bad["count"]:
            return "Not usable: no labels were found."
        also = f" To look at: {'; '.join(doubts)}." if doubts else ""
        if errors:
            return f"Not usable as it is: {'; '.join(errors)}." + also
        return f"Usable. Labels: {', '.join(f'{name} ({n})' for name, n in self.labels.items())}." + also

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON, the verdict first."""
        values = {k: v for k, v in asdict(self).items() if k != "plotted"}
        return {"ok": self.ok, "verdict": self.verdict, **_plain(values)}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    # JSON has no word for what is not a number.
    return None if isinstance(value, float) and value - value != 0 else value
