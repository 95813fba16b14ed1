"""Count labels, elements and duplicates, and measure leakage between the parts of a split."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from ase.data import chemical_symbols

from eutectic.atoms import MAX_ATOMIC_NUMBER, PROPERTIES, EutecticError, LabelledStructure
from eutectic.check.scales import Sample
from eutectic.data.conditions import CONDITIONS
from eutectic.data.splits import leakage_into, split
from eutectic.data.store import Store, content_hash

MOST_HASHES = 1_000_000

TYPICAL = {
    "gap": 30.0,
    "band_gap": 30.0,
    "homo": 60.0,
    "lumo": 60.0,
    "formation_energy": 12.0,
    "log10_bulk_modulus": 4.0,
    "log10_shear_modulus": 4.0,
}
"""Property → magnitude that it hardly ever exceeds, in the library's unit (eV, eV/atom; 10⁴ GPa)."""


@dataclass(eq=False)
class Distinct:
    """Number of distinct structures of a stream, in bounded memory: exact up to a million, then estimated.

    Beyond that only hashes divisible by 2, 4, 8, … are kept, a uniform sample of the structures (Wegman's adaptive
    sampling; Flajolet, Computing 43, 391 (1990)).
    """

    most: int = MOST_HASHES
    _level: int = 0
    _hashes: dict[int, int] = field(default_factory=dict)
    _labels: dict[int, tuple[str, float]] = field(default_factory=dict)
    _others: dict[int, int] = field(default_factory=dict)
    furthest: float = 0.0
    first: tuple[str, ...] = ()

    def add(self, content: bytes, label: tuple[str, float] | None = None, tolerance: float = 0.0, id: str = "") -> None:
        """Add a structure by its content hash.

        Args:
            content: the hash.
            label: name and value of the label to compare.
            tolerance: difference of the label that the rounding of geometries allows.
            id: of the structure.
        """
        value = int.from_bytes(content[:8], "little")
        if value % (1 << self._level):
            return
        before = self._labels.get(value)
        if label is not None and before is not None and label[0] == before[0]:
            apart = abs(label[1] - before[1])
            if apart > tolerance:
                self._others[value] = self._others.get(value, 0) + 1
                self.furthest = max(self.furthest, apart)
                self.first = (*self.first, id)[:10]
        elif label is not None:
            self._labels[value] = label
        self._hashes[value] = self._hashes.get(value, 0) + 1
        while len(self._hashes) > self.most:
            self._level += 1
            for name in ("_hashes", "_labels", "_others"):
                kept = {h: n for h, n in getattr(self, name).items() if not h % (1 << self._level)}
                setattr(self, name, kept)

    @property
    def exact(self) -> bool:
        """Whether the count is exact."""
        return self._level == 0

    def repeated(self) -> int:
        """Number of structures that repeat an earlier one, with the same label."""
        return (sum(self._hashes.values()) - len(self._hashes) - sum(self._others.values())) << self._level

    def contradicting(self) -> int:
        """Number of structures with the geometry of an earlier one but another label."""
        return sum(self._others.values()) << self._level


@dataclass(eq=False)
class Contents:
    """Counts over the structures so far.

    Attributes:
        labels: property → structures that have it.
        least, most: property → smallest and largest value.
        lacking: property → first structures without it (after one with it).
        structures_with, atoms_of: (119,) structures and atoms by atomic number.
        distinct: counter of distinct structures.
        sizes: property of `TYPICAL` → absolute values.
        usable: total number of usable structures.
    """

    labels: Counter[str] = field(default_factory=Counter)
    least: dict[str, float] = field(default_factory=dict)
    most: dict[str, float] = field(default_factory=dict)
    lacking: dict[str, list[str]] = field(default_factory=dict)
    structures_with: np.ndarray = field(default_factory=lambda: np.zeros(MAX_ATOMIC_NUMBER + 1, dtype=np.int64))
    atoms_of: np.ndarray = field(default_factory=lambda: np.zeros(MAX_ATOMIC_NUMBER + 1, dtype=np.int64))
    distinct: Distinct = field(default_factory=Distinct)
    sizes: dict[str, Sample[float]] = field(default_factory=dict)
    usable: int = 0

    def add(self, row: LabelledStructure) -> None:
        """Add a usable structure."""
        self.usable += 1
        for name in self.labels.keys() - row.labels.keys():
            first = self.lacking.setdefault(name, [])
            first += [row.id] * (len(first) < 10)
        for name, value in row.labels.items():
            self.labels[name] += 1
            self.least[name] = min(self.least.get(name, np.inf), float(np.min(value)))
            self.most[name] = max(self.most.get(name, -np.inf), float(np.max(value)))
            if name in TYPICAL:
                self.sizes.setdefault(name, Sample(2000)).add(abs(float(value)))
        counts = np.bincount(row.structure.numbers, minlength=MAX_ATOMIC_NUMBER + 1)
        self.atoms_of += counts
        self.structures_with += counts > 0
        self.distinct.add(content_hash(row.structure), *_compared(row), row.id)

    def constant(self) -> list[tuple[str, float]]:
        """Labels with the same value everywhere, and the value."""
        return [
            (name, self.least[name])
            for name, n in self.labels.items()
            if n >= 3 and self.least[name] == self.most[name]
        ]


def _compared(row: LabelledStructure) -> tuple[tuple[str, float] | None, float]:
    """The label by which structures of one geometry are compared, and the difference that 1e-3 Å makes to it."""
    if "energy" in row.labels:
        forces = row.labels.get("forces")
        along = 0.05 if forces is None else 0.01 + 1e-3 * float(np.abs(forces).sum())
        return ("energy", float(row.labels["energy"])), along
    for name in sorted(row.labels.keys() - set(CONDITIONS)):
        prop = PROPERTIES[name]
        if prop.level == "structure" and prop.rank == 0:
            value = float(row.labels[name])
            return (name, value), 0.02 * abs(value) + 1e-9
    return None, 0.0


@dataclass(frozen=True, kw_only=True)
class Leak:
    """Leakage of one split.

    Attributes:
        split: its name.
        structures: validation and test structures identical (to 1e-3 Å) to a training structure.
        groups: groups both in training and in validation or test.
        held_out: number of validation and test structures.
        reserved: number of groups in validation and test.
        elements: elements (symbols) in validation or test but not in training.
    """

    split: str
    structures: int
    groups: int
    held_out: int
    reserved: int
    elements: tuple[str, ...] = ()


def leaks(store: Store) -> list[Leak]:
    """Leakage of the default split and of each published one; impossible splits are skipped."""
    results = []
    for name in dict.fromkeys([store.card.default_split, *store.published_splits()]):
        try:
            parts = split(store, name)
        except EutecticError:
            continue
        outside = np.concatenate([parts.validation, parts.test])
        shared = leakage_into(store, parts.train, {"outside": outside})["outside"]
        results.append(
            Leak(
                split=name,
                structures=shared.duplicates,
                groups=shared.shared_groups,
                held_out=shared.structures,
                reserved=len(set(store.column("group")[outside])),
                elements=_only_in(store, outside, parts.train),
            )
        )
    return results


def _only_in(store: Store, rows: np.ndarray, others: np.ndarray) -> tuple[str, ...]:
    """Elements in `rows` but not in `others`."""
    present = np.zeros(256, dtype=bool)
    for batch in store.take(rows, "numbers"):
        present[batch.column("numbers").flatten().to_numpy()] = True
    for batch in store.take(others, "numbers"):
        if not present.any():
            break
        present[batch.column("numbers").flatten().to_numpy()] = False
    return tuple(chemical_symbols[z] for z in np.flatnonzero(present))
