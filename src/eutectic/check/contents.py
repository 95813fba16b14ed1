"""What is there at all: labels, elements, repeated structures, and what a split has on both of its sides."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from ase.data import chemical_symbols

from eutectic.atoms import MAX_ATOMIC_NUMBER, EutecticError, LabelledStructure
from eutectic.data.splits import leakage_into, split
from eutectic.data.store import Store, content_hash

MOST_HASHES = 1_000_000


@dataclass(eq=False)
class Distinct:
    """How many of a stream are different, in bounded memory: exactly up to a million, then about.

    Beyond that only hashes divisible by 2, 4, 8, … are kept, a fair sample of the structures (Wegman's adaptive
    sampling; Flajolet, Computing 43, 391 (1990)).
    """

    most: int = MOST_HASHES
    _level: int = 0
    _counted: int = 0
    _hashes: dict[int, int] = field(default_factory=dict)

    def add(self, content: bytes) -> None:
        """One more of the stream."""
        value = int.from_bytes(content[:8], "little")
        if value % (1 << self._level):
            return
        self._hashes[value] = self._hashes.get(value, 0) + 1
        while len(self._hashes) > self.most:
            self._level += 1
            self._hashes = {h: n for h, n in self._hashes.items() if not h % (1 << self._level)}

    @property
    def exact(self) -> bool:
        """Whether every structure was counted."""
        return self._level == 0

    def repeated(self) -> int:
        """How many repeat an earlier one."""
        return (sum(self._hashes.values()) - len(self._hashes)) << self._level


@dataclass(eq=False)
class Contents:
    """Counts of everything seen so far.

    Attributes:
        labels: property → structures that have it.
        least, most: property → its extreme values.
        lacking: property → the first structures without it (once it had been seen).
        structures_with, atoms_of: (119,) by atomic number.
        distinct: structures that differ.
        usable: structures in all.
    """

    labels: Counter[str] = field(default_factory=Counter)
    least: dict[str, float] = field(default_factory=dict)
    most: dict[str, float] = field(default_factory=dict)
    lacking: dict[str, list[str]] = field(default_factory=dict)
    structures_with: np.ndarray = field(default_factory=lambda: np.zeros(MAX_ATOMIC_NUMBER + 1, dtype=np.int64))
    atoms_of: np.ndarray = field(default_factory=lambda: np.zeros(MAX_ATOMIC_NUMBER + 1, dtype=np.int64))
    distinct: Distinct = field(default_factory=Distinct)
    usable: int = 0

    def add(self, row: LabelledStructure) -> None:
        """One more usable structure of the stream."""
        self.usable += 1
        for name in self.labels.keys() - row.labels.keys():
            first = self.lacking.setdefault(name, [])
            first += [row.id] * (len(first) < 10)
        for name, value in row.labels.items():
            self.labels[name] += 1
            self.least[name] = min(self.least.get(name, np.inf), float(np.min(value)))
            self.most[name] = max(self.most.get(name, -np.inf), float(np.max(value)))
        counts = np.bincount(row.structure.numbers, minlength=MAX_ATOMIC_NUMBER + 1)
        self.atoms_of += counts
        self.structures_with += counts > 0
        self.distinct.add(content_hash(row.structure))

    def constant(self) -> list[tuple[str, float]]:
        """Labels that never differ, and their value."""
        return [
            (name, self.least[name])
            for name, n in self.labels.items()
            if n >= 3 and self.least[name] == self.most[name]
        ]


@dataclass(frozen=True, kw_only=True)
class Leak:
    """What one split has on both of its sides.

    Attributes:
        split: its name.
        structures: held-out structures that are the same (to 1e-3 Å) as a training structure.
        groups: groups with structures in training and outside.
        held_out: validation and test structures.
        reserved: groups of all held-out structures.
        elements: symbols that held-out structures have and no training structure does.
    """

    split: str
    structures: int
    groups: int
    held_out: int
    reserved: int
    elements: tuple[str, ...] = ()


def leaks(store: Store) -> list[Leak]:
    """Of the default split and of each published one; a split that cannot be made is left out."""
    found = []
    for name in dict.fromkeys([store.card.default_split, *store.published_splits()]):
        try:
            parts = split(store, name)
        except EutecticError:
            continue
        outside = np.concatenate([parts.validation, parts.test])
        shared = leakage_into(store, parts.train, {"outside": outside})["outside"]
        found.append(
            Leak(
                split=name,
                structures=shared.duplicates,
                groups=shared.shared_groups,
                held_out=shared.structures,
                reserved=len(set(store.column("group")[outside])),
                elements=_only_in(store, outside, parts.train),
            )
        )
    return found


def _only_in(store: Store, rows: np.ndarray, others: np.ndarray) -> tuple[str, ...]:
    """Elements of some rows that others do not have."""
    here = np.zeros(256, dtype=bool)
    for batch in store.take(rows, "numbers"):
        here[batch.column("numbers").flatten().to_numpy()] = True
    for batch in store.take(others, "numbers"):
        if not here.any():
            break
        here[batch.column("numbers").flatten().to_numpy()] = False
    return tuple(chemical_symbols[z] for z in np.flatnonzero(here))
