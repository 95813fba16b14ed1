"""Units that labels are published in, what an atom's energy should be, and samples of bounded size."""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from eutectic.atoms.units import convert

ENERGY_UNITS = {name: convert(name, "eV") for name in ("eV", "Hartree", "kcal/mol", "kJ/mol", "Rydberg")}
"""Name → eV, of the units that labels are published in."""

LENGTH_UNITS = {name: convert(name, "Å") for name in ("Å", "bohr", "nm")}
"""Name → Å."""

STRESS_UNITS = {name: convert(name, "eV/Å³") for name in ("eV/Å³", "GPa", "kbar", "Hartree/bohr³")}
"""Name → eV/Å³."""

TOLERANCE = 0.05
"""A slope this near to a ratio of units (relative) is taken for it; the nearest two, 1.89 and 2, are 6 % apart."""

T = TypeVar("T")


def atom_energy(number: int) -> float:
    """Total energy of a neutral atom, Hartree: the statistical atom, within 10 % (H, Li) and mostly 2 %.

    E(Z) = −0.768745 Z^(7/3) + Z²/2 − 0.269900 Z^(5/3) (Schwinger, Phys. Rev. A 24, 2353 (1981); without
    relativity). Enough to tell an all-electron energy in Hartree from one in eV, without a table.
    """
    z = float(number)
    return -0.768745 * z ** (7 / 3) + 0.5 * z**2 - 0.269900 * z ** (5 / 3)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Units that would explain what was measured.

    Attributes:
        energy, length: of the energies and the coordinates.
        force_energy, force_length: of the forces, one per the other.
    """

    energy: str
    length: str
    force_energy: str
    force_length: str

    @property
    def slope(self) -> float:
        """dE against −F·dx, which is the factor that makes such forces fit such energies and coordinates."""
        force = ENERGY_UNITS[self.force_energy] / LENGTH_UNITS[self.force_length]
        return force * LENGTH_UNITS[self.length] / ENERGY_UNITS[self.energy]

    @property
    def consistent(self) -> bool:
        """Whether the forces have the units of the energies and coordinates."""
        return self.energy == self.force_energy and self.length == self.force_length

    def words(self) -> str:
        """For people: "energies in Hartree, forces in Hartree/bohr, coordinates in Å"."""
        force = f"{self.force_energy}/{self.force_length}"
        return f"energies in {self.energy}, forces in {force}, coordinates in {self.length}"


def readings(
    slope: float, *, energy: str | None, length: str, force: str | None, tolerance: float = TOLERANCE
) -> list[Reading]:
    """What units give such a slope, the likeliest first; none where no common units do.

    Args:
        slope: dE against −F·dx, without its sign.
        energy: unit of the energies; None where it is not known.
        length: unit of the coordinates.
        force: unit of the energy in the forces, where the stiffness of bonds has told it.
        tolerance: how far a slope may be off, in logarithms.
    """
    found = []
    for a, b, c in itertools.product(ENERGY_UNITS, ENERGY_UNITS, LENGTH_UNITS):
        reading = Reading(energy=a, length=length, force_energy=b, force_length=c)
        off = abs(math.log(slope / reading.slope))
        if (energy is None or a == energy) and (force is None or b == force) and off < tolerance:
            strange = (a != b) + (c != length) + 2 * (c == "nm") + ("Rydberg" in (a, b)) + ("kJ/mol" in (a, b)) / 2
            # A force per bohr is of an energy in Hartree.
            strange += (c == "bohr") * (b != "Hartree") / 2
            # Nothing converted from is commoner than the library's own unit.
            found.append((strange + 5 * off + 0.1 * (a != "eV") + 0.1 * (b != "Hartree"), reading))
    return [reading for _, reading in sorted(found, key=lambda entry: entry[0])]


class Sample(Generic[T]):
    """So many of a stream, each as likely as any other (algorithm R of Vitter, ACM TOMS 11, 37 (1985))."""

    def __init__(self, size: int) -> None:
        self.size, self.seen = size, 0
        self.kept: list[T] = []
        # The same sample each time: a check that changes its mind is no check.
        self._random = random.Random(0)

    def __iter__(self) -> Iterator[T]:
        return iter(self.kept)

    def __len__(self) -> int:
        return len(self.kept)

    def wants(self) -> bool:
        """Whether the next of the stream may be kept: where making it is dear, ask first, and add it if so."""
        return self._random.random() * (self.seen + 1) < self.size

    def add(self, item: T) -> None:
        """One more of the stream."""
        self.seen += 1
        if len(self.kept) < self.size:
            self.kept.append(item)
        elif (place := self._random.randrange(self.seen)) < self.size:
            self.kept[place] = item


class Largest(Generic[T]):
    """The largest of a stream, with what they belong to."""

    def __init__(self, size: int = 200) -> None:
        self.size = size
        self._heap: list[tuple[float, int, T]] = []
        self._tie = itertools.count()

    def add(self, value: float, item: T) -> None:
        """One more of the stream."""
        entry = (value, next(self._tie), item)
        if len(self._heap) < self.size:
            heapq.heappush(self._heap, entry)
        elif value > self._heap[0][0]:
            heapq.heapreplace(self._heap, entry)

    def items(self) -> list[tuple[float, T]]:
        """Value and item, the largest first."""
        return [(value, item) for value, _, item in sorted(self._heap, key=lambda entry: (-entry[0], entry[1]))]

    def above(self, limit: float) -> list[tuple[float, T]]:
        """Those beyond a limit, the largest first."""
        return [(value, item) for value, item in self.items() if value > limit]


def spread(values: np.ndarray) -> tuple[float, float]:
    """Median, and the standard deviation that a normal distribution of this median deviation would have."""
    middle = float(np.median(values))
    return middle, 1.4826 * float(np.median(np.abs(values - middle)))


def number(value: float) -> str:
    """A measured number for people: three digits, a true minus sign."""
    text = f"{value:.3g}" if 1e-4 <= abs(value) < 1e6 or value == 0 else f"{value:.2e}"
    return (f"{value:.0f}" if "e+" in text and abs(value) < 1e6 else text).replace("-", "−")
