"""Energy statistics: a fit of one energy per element, its residuals, and the unit and precision of the energies."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from ase.data import chemical_symbols

from eutectic.atoms import MAX_ATOMIC_NUMBER
from eutectic.check.scales import ENERGY_UNITS, Largest, Sample, atom_energy, spread

FIRST_FIT = 64
"""Number of structures before the first fit, which is repeated whenever their number has doubled."""
ALL_ELECTRON = np.array([0.0, *(atom_energy(z) for z in range(1, MAX_ATOMIC_NUMBER + 1))])
"""Energies of all-electron atoms, Hartree, by atomic number."""
RELATIVE = "energies relative to pseudo-atoms or atoms"


@dataclass(frozen=True, eq=False)
class Entry:
    """Energy and composition of one structure."""

    id: str
    counts: np.ndarray
    energy: float

    @property
    def n_atoms(self) -> float:
        """Number of atoms."""
        return float(self.counts.sum())


@dataclass(frozen=True, kw_only=True)
class EnergyUnit:
    """Estimated unit of the energies, with its evidence.

    Attributes:
        unit: name; None if undetermined.
        confidence: "high", "medium" or "low".
        regime: "all-electron total energies", or "energies relative to pseudo-atoms or atoms".
        ratio: median of energy / energy of the all-electron atoms in Hartree.
    """

    unit: str | None
    confidence: str
    regime: str
    ratio: float


@dataclass(frozen=True, kw_only=True)
class Precision:
    """Precision to which energies were rounded.

    Attributes:
        kind: "float32" or "decimals".
        unit: unit in which the numbers were rounded.
        step: largest step between two adjacent representable values, in the file's unit.
    """

    kind: str
    unit: str
    step: float


@dataclass(eq=False)
class Energies:
    """Normal equations of E = Σ n_Z e_Z, a sample, and the energies furthest from the fit; bounded memory."""

    n: int = 0
    sample: Sample[Entry] = field(default_factory=lambda: Sample(5000))
    furthest: Largest[Entry] = field(default_factory=Largest)
    compositions: set[bytes] = field(default_factory=set)
    _normal: np.ndarray = field(default_factory=lambda: np.zeros((MAX_ATOMIC_NUMBER + 1, MAX_ATOMIC_NUMBER + 1)))
    _right: np.ndarray = field(default_factory=lambda: np.zeros(MAX_ATOMIC_NUMBER + 1))
    _fit: np.ndarray | None = None

    def add(self, id: str, numbers: np.ndarray, energy: float) -> None:
        """Add a structure."""
        counts = np.bincount(numbers, minlength=MAX_ATOMIC_NUMBER + 1).astype(np.int32)
        entry = Entry(id, counts, energy)
        present = np.flatnonzero(counts)
        self._normal[np.ix_(present, present)] += np.outer(counts[present], counts[present])
        self._right[present] += counts[present] * energy
        self.n += 1
        self.sample.add(entry)
        if len(self.compositions) < 10_000:
            self.compositions.add(counts.astype(np.uint16).tobytes())
        if self.n >= FIRST_FIT and self.n & (self.n - 1) == 0:
            self._fit = self.fit()
            again = [e for _, e in self.furthest.items()] if self.n > FIRST_FIT else list(self.sample)
            self.furthest = Largest(self.furthest.size)
            for e in again:
                self._judge(e)
        elif self._fit is not None:
            self._judge(entry)

    def _judge(self, entry: Entry) -> None:
        assert self._fit is not None
        self.furthest.add(abs(entry.energy - float(entry.counts @ self._fit)) / entry.n_atoms, entry)

    def fit(self) -> np.ndarray:
        """(119,) energy of each element, the file's unit: minimum-norm least squares."""
        seen = np.flatnonzero(self._normal.diagonal())
        table = np.zeros(MAX_ATOMIC_NUMBER + 1)
        length = np.sqrt(self._normal[seen, seen])
        scaled = self._normal[np.ix_(seen, seen)] / np.outer(length, length)
        table[seen] = np.linalg.pinv(scaled, rcond=1e-11, hermitian=True) @ (self._right[seen] / length) / length
        return table

    def separable(self) -> bool:
        """Whether the compositions determine the energy of every element (the fit has full rank)."""
        seen = np.flatnonzero(self._normal.diagonal())
        length = np.sqrt(self._normal[seen, seen])
        scaled = self._normal[np.ix_(seen, seen)] / np.outer(length, length)
        return len(seen) > 0 and bool(np.linalg.eigvalsh(scaled)[0] > 1e-6)

    def residuals(self) -> np.ndarray:
        """(sample,) residuals of the fit per atom, in the file's unit."""
        table = self.fit()
        return np.array([(e.energy - float(e.counts @ table)) / e.n_atoms for e in self.sample])

    def outliers(self) -> tuple[list[tuple[str, float, float]], float]:
        """Outliers as (id, residual per atom, number of standard deviations by MAD); and the standard deviation.

        Robust against heavy tails of valid data: an outlier is beyond twelve deviations, and beyond three times the
        99th percentile.
        """
        if self.n < FIRST_FIT:
            return [], 0.0
        left = self.residuals()
        middle, deviation = spread(left)
        if deviation <= 0:
            return [], deviation
        limit = max(12 * deviation, 3 * float(np.quantile(np.abs(left - middle), 0.99)))
        table = self.fit()
        outliers = []
        entries = {e.id: e for e in [*(e for _, e in self.furthest.items()), *self.sample]}
        for e in entries.values():
            off = (e.energy - float(e.counts @ table)) / e.n_atoms - middle
            if abs(off) > limit:
                outliers.append((e.id, off, abs(off) / deviation))
        return sorted(outliers, key=lambda entry: -entry[2]), deviation

    def per_atom(self) -> float:
        """Median energy per atom, the file's unit."""
        return float(np.median([e.energy / e.n_atoms for e in self.sample]))

    def unit(self) -> EnergyUnit:
        """The unit in which these are plausible total energies, before any other evidence."""
        entries = list(self.sample)
        ratios = np.array([e.energy / float(e.counts @ ALL_ELECTRON) for e in entries])
        middle, width = spread(ratios)
        if middle > 0:
            # Rydberg is used by plane-wave codes with pseudopotentials; GFN2-xTB in eV would be mistaken for it.
            inverse = {u: ENERGY_UNITS["Hartree"] / value for u, value in ENERGY_UNITS.items() if u != "Rydberg"}
            best = min(inverse, key=lambda u: abs(math.log(middle / inverse[u])))
            if abs(math.log(middle / inverse[best])) < 0.1 and width < 0.08 * middle:
                return EnergyUnit(
                    unit=best,
                    # A single composition may match a unit by chance; all elements separately cannot.
                    confidence="high" if self._each_element(inverse[best]) else "medium",
                    regime="all-electron total energies",
                    ratio=middle,
                )
        # The range of cohesive, formation and PAW energies; atomisation energies in kcal/mol or kJ/mol may fall in it.
        likely = "eV" if -40 < self.per_atom() < 20 else None
        return EnergyUnit(unit=likely, confidence="low", regime=RELATIVE, ratio=middle)

    def _each_element(self, scale: float) -> bool:
        """Whether each element separately is near its all-electron atom, which excludes pseudo-atoms."""
        seen = np.flatnonzero(self._normal.diagonal())
        if not self.separable():
            # For C to F the core is most of the energy: without it, no unit gives this ratio.
            atoms = np.sqrt(self._normal[seen, seen]) * np.abs(ALL_ELECTRON[seen])
            return bool(atoms[(seen >= 6) & (seen <= 9)].sum() > 0.5 * atoms.sum())
        ratio = self.fit()[seen] / (ALL_ELECTRON[seen] * scale)
        return bool(np.mean(np.abs(ratio - 1) < 0.25) >= 0.75)

    def element_energies(self) -> dict[str, float]:
        """Symbol → energy, the file's unit; empty if the compositions do not determine them."""
        if not self.n or not self.separable():
            return {}
        table = self.fit()
        return {chemical_symbols[z]: float(table[z]) for z in np.flatnonzero(self._normal.diagonal())}

    def precision(self) -> Precision | None:
        """Rounding of the energies to float32 or to a few decimals; None if there is none."""
        values = np.unique([e.energy for e in self.sample])
        values = values[np.abs(values) > 1e-6]
        if len(values) < 20:
            return None
        for decimals in range(4):
            if np.all(np.abs(values * 10.0**decimals - np.round(values * 10.0**decimals)) < 1e-6):
                return Precision(kind="decimals", unit="", step=10.0**-decimals)
        # Values of the Hartree in use: CODATA 1986 to 2022, and common roundings.
        for name, scales in {
            "eV": (1.0,),
            "Hartree": (ENERGY_UNITS["Hartree"], 27.211386245988, 27.21138505, 27.2113845, 27.2114, 27.2107, 27.211386),
            "kcal/mol": (ENERGY_UNITS["kcal/mol"], 0.0433641, 0.043364, 0.04336),
        }.items():
            for scale in scales:
                original = values / scale
                step = np.spacing(np.abs(original).astype(np.float32)).astype(np.float64)
                off = np.abs(original - original.astype(np.float32).astype(np.float64)) / step
                # One in 25 numbers that were never float32 is this close to a float32 value.
                if np.mean(off < 0.02) > 0.97:
                    return Precision(kind="float32", unit=name, step=float(step.max()) * scale)
        return None

    def two_populations(self) -> tuple[float, float] | None:
        """Distance (per atom) between two separate sets of residuals, and fraction of the smaller; None for one set.

        Otsu's threshold (IEEE Trans. SMC 9, 62 (1979)), accepted only if the gap between the two sets is several
        times their widths and the same compositions are in both.
        """
        if len(self.sample) < 50:
            return None
        left = self.residuals()
        order = np.argsort(left)
        sorted_left = left[order]
        n = len(left)
        ranks = np.arange(1, n)
        sums = np.cumsum(sorted_left)
        between = (sums[:-1] / ranks - (sums[-1] - sums[:-1]) / (n - ranks)) ** 2 * ranks * (n - ranks)
        cut = int(between.argmax()) + 1
        smaller = min(cut, n - cut)
        if smaller < max(10, 0.03 * n):
            return None
        low, high = sorted_left[:cut], sorted_left[cut:]
        gap = float(high[0] - low[-1])
        inside = max(spread(low)[1], spread(high)[1], 1e-12)
        if gap < 4 * inside:
            return None
        kinds = [self.sample.kept[i].counts.tobytes() for i in order]
        few, many = (kinds[:cut], set(kinds[cut:])) if cut == smaller else (kinds[cut:], set(kinds[:cut]))
        if np.mean([k in many for k in few]) < 0.5:
            return None
        return float(np.median(high) - np.median(low)), smaller / n
