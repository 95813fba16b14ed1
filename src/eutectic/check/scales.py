"""Units of published labels, energies of atoms, and bounded samples of a stream."""

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
"""Unit → eV, for units in which labels are published."""

LENGTH_UNITS = {name: convert(name, "Å") for name in ("Å", "bohr", "nm")}
"""Unit → Å."""

STRESS_UNITS = {name: convert(name, "eV/Å³") for name in ("eV/Å³", "GPa", "kbar", "Hartree/bohr³")}
"""Unit → eV/Å³."""

TOLERANCE = 0.05
"""Relative deviation within which a slope matches a ratio of units; the closest two, 1.89 and 2, are 6 % apart."""

T = TypeVar("T")


def atom_energy(number: int) -> float:
    """Total energy of a neutral atom, Hartree, from the statistical atom; within 2 % for most, 10 % for H and Li.

    E(Z) = −0.768745 Z^(7/3) + Z²/2 − 0.269900 Z^(5/3) (Schwinger, Phys. Rev. A 24, 2353 (1981); without
    relativity). Accurate enough to distinguish an all-electron energy in Hartree from one in eV, without a table.
    """
    z = float(number)
    return -0.768745 * z ** (7 / 3) + 0.5 * z**2 - 0.269900 * z ** (5 / 3)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Units consistent with a measured slope.

    Attributes:
        energy, length: units of the energies and the coordinates.
        force_energy, force_length: the forces are in `force_energy`/`force_length`.
    """

    energy: str
    length: str
    force_energy: str
    force_length: str

    @property
    def slope(self) -> float:
        """dE against −F·dx: the factor that converts the forces to the units of the energies and coordinates."""
        force = ENERGY_UNITS[self.force_energy] / LENGTH_UNITS[self.force_length]
        return force * LENGTH_UNITS[self.length] / ENERGY_UNITS[self.energy]

    @property
    def consistent(self) -> bool:
        """Whether the forces have the units of the energies and coordinates."""
        return self.energy == self.force_energy and self.length == self.force_length

    def words(self) -> str:
        """Such as "energies in Hartree, forces in Hartree/bohr, coordinates in Å"."""
        force = f"{self.force_energy}/{self.force_length}"
        return f"energies in {self.energy}, forces in {force}, coordinates in {self.length}"


def readings(
    slope: float, *, energy: str | None, length: str, force: str | None, tolerance: float = TOLERANCE
) -> list[Reading]:
    """Combinations of units that give a slope, most likely first; empty if no common units do.

    Args:
        slope: absolute value of dE against −F·dx.
        energy: unit of the energies; None if unknown.
        length: unit of the coordinates.
        force: energy unit of the forces, if known from the stiffness of bonds.
        tolerance: largest deviation of the logarithm of the slope.
    """
    matches = []
    for a, b, c in itertools.product(ENERGY_UNITS, ENERGY_UNITS, LENGTH_UNITS):
        reading = Reading(energy=a, length=length, force_energy=b, force_length=c)
        off = abs(math.log(slope / reading.slope))
        if (energy is None or a == energy) and (force is None or b == force) and off < tolerance:
            penalty = (a != b) + (c != length) + 2 * (c == "nm") + ("Rydberg" in (a, b)) + ("kJ/mol" in (a, b)) / 2
            # Forces per bohr are usually in Hartree/bohr.
            penalty += (c == "bohr") * (b != "Hartree") / 2
            # Prefer the library's own unit.
            matches.append((penalty + 5 * off + 0.1 * (a != "eV") + 0.1 * (b != "Hartree"), reading))
    return [reading for _, reading in sorted(matches, key=lambda entry: entry[0])]


class Sample(Generic[T]):
    """Uniform random sample of a stream (reservoir sampling: algorithm R of Vitter, ACM TOMS 11, 37 (1985))."""

    def __init__(self, size: int) -> None:
        self.size, self.seen = size, 0
        self.kept: list[T] = []
        # Fixed seed: the check is reproducible.
        self._random = random.Random(0)

    def __iter__(self) -> Iterator[T]:
        return iter(self.kept)

    def __len__(self) -> int:
        return len(self.kept)

    def wants(self) -> bool:
        """Whether the next item may enter the sample; call before an expensive item is computed, and add it if True."""
        return self._random.random() * (self.seen + 1) < self.size

    def add(self, item: T) -> None:
        """Add an item of the stream."""
        self.seen += 1
        if len(self.kept) < self.size:
            self.kept.append(item)
        elif (place := self._random.randrange(self.seen)) < self.size:
            self.kept[place] = item


class Largest(Generic[T]):
    """The items of a stream with the largest values."""

    def __init__(self, size: int = 200) -> None:
        self.size = size
        self._heap: list[tuple[float, int, T]] = []
        self._tie = itertools.count()

    def add(self, value: float, item: T) -> None:
        """Add an item of the stream with its value."""
        entry = (value, next(self._tie), item)
        if len(self._heap) < self.size:
            heapq.heappush(self._heap, entry)
        elif value > self._heap[0][0]:
            heapq.heapreplace(self._heap, entry)

    def items(self) -> list[tuple[float, T]]:
        """Values and items, largest first."""
        return [(value, item) for value, _, item in sorted(self._heap, key=lambda entry: (-entry[0], entry[1]))]

    def above(self, limit: float) -> list[tuple[float, T]]:
        """Values and items above a limit, largest first."""
        return [(value, item) for value, item in self.items() if value > limit]


def spread(values: np.ndarray) -> tuple[float, float]:
    """Median, and standard deviation estimated from the median absolute deviation (normal distribution)."""
    middle = float(np.median(values))
    return middle, 1.4826 * float(np.median(np.abs(values - middle)))


def number(value: float) -> str:
    """Format a number with three digits and a true minus sign."""
    text = f"{value:.3g}" if 1e-4 <= abs(value) < 1e6 or value == 0 else f"{value:.2e}"
    return (f"{value:.0f}" if "e+" in text and abs(value) < 1e6 else text).replace("-", "−")
