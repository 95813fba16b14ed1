"""Statistics of distances, cells and forces: outliers, units, and the stiffness of bonds to hydrogen."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import vesin
from ase.data import chemical_symbols, covalent_radii

from eutectic.atoms import MAX_ATOMIC_NUMBER, LabelledStructure, Structure
from eutectic.check.scales import ENERGY_UNITS, LENGTH_UNITS, Largest, Sample

REACH = 4.5
"""Cutoff of the neighbour search, in the file's unit: enough for bonds in Å and in bohr."""
ALL_PAIRS = 300
"""Up to this many atoms, all distances of a molecule are computed: faster than a neighbour search."""
RADII = np.full(MAX_ATOMIC_NUMBER + 1, 1.7)
RADII[: len(covalent_radii)] = covalent_radii[: MAX_ATOMIC_NUMBER + 1]
"""Covalent radii (Å) by atomic number (Cordero et al., Dalton Trans. 2832 (2008); estimated beyond curium)."""

STIFFNESS: dict[int, float] = {6: 31.0, 7: 41.0, 8: 48.0}
"""Force constant of a bond X–H, eV/Å² (C–H 5.0, N–H 6.5, O–H 7.7 mdyn/Å: any textbook on vibrations)."""
LEAST_BONDS = 40
SOFTER = 2.1
"""Factor by which bonds far from equilibrium may be softer or stiffer; units of energy differ by more."""


@dataclass(eq=False)
class Line:
    """Running sums of a linear regression."""

    n: int = 0
    sums: np.ndarray = field(default_factory=lambda: np.zeros(5))

    def add(self, x: np.ndarray, y: np.ndarray) -> None:
        """Add points."""
        self.n += len(x)
        self.sums += [x.sum(), y.sum(), (x * x).sum(), (x * y).sum(), (y * y).sum()]

    def slope(self) -> tuple[float, float]:
        """Slope of y against x (with an intercept), and the correlation."""
        x, y, xx, xy, yy = (self.sums / max(self.n, 1)).tolist()
        across, along, spread = xy - x * y, xx - x * x, yy - y * y
        if along <= 0 or spread <= 0:
            return 0.0, 0.0
        return across / along, across / math.sqrt(along * spread)


@dataclass(frozen=True, kw_only=True)
class BondTest:
    """Test of the forces by the stiffness of bonds to hydrogen; needs neither energies nor similar frames.

    Attributes:
        bonds: number of bonds.
        element: X of X–H.
        stiffness: restoring force / stretch, in the file's units; negative if forces have the wrong sign.
        correlation: correlation of force and length.
        expected: typical force constant of the bond, eV/Å².
        unit: best-fitting energy unit of the forces; None if none fits.
        factor: measured / expected stiffness in that unit.
    """

    bonds: int
    element: str
    stiffness: float
    correlation: float
    expected: float
    unit: str | None
    factor: float

    @property
    def conclusive(self) -> bool:
        """Whether there are enough bonds, sufficiently stretched, to determine the stiffness."""
        return self.bonds >= LEAST_BONDS and abs(self.correlation) > 0.6


@dataclass(eq=False)
class Geometry:
    """Sums, samples and extremes over the structures so far; bounded memory."""

    lengths: Sample[float] = field(default_factory=lambda: Sample(2000))
    shortest: Largest[tuple[str, str, float]] = field(default_factory=Largest)
    forces: Sample[float] = field(default_factory=lambda: Sample(20_000))
    largest: Sample[float] = field(default_factory=lambda: Sample(5000))
    extreme_forces: Largest[str] = field(default_factory=Largest)
    net: Sample[tuple[float, float]] = field(default_factory=lambda: Sample(2000))
    torque: Sample[float] = field(default_factory=lambda: Sample(2000))
    empty: Largest[str] = field(default_factory=Largest)
    dense: Largest[str] = field(default_factory=Largest)
    volumes: Sample[float] = field(default_factory=lambda: Sample(5000))
    periodic: int = 0
    fixed_without_force: int = 0
    bonds: dict[tuple[str, int], Line] = field(default_factory=dict)
    _random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def add(self, row: LabelledStructure) -> None:
        """Add a structure."""
        s = row.structure
        forces = row.labels.get("forces")
        if len(s) > 1:
            self._distances(row.id, s, forces)
        if s.pbc.any():
            self._cell(row.id, s)
        if forces is not None:
            self._forces(row.id, s, forces)

    def _distances(self, id: str, s: Structure, forces: np.ndarray | None) -> None:
        i, j, d, vectors = contacts(s)
        if not len(d):
            return
        ratio = d / (RADII[s.numbers[i]] + RADII[s.numbers[j]])
        nearest = np.full(len(s), np.inf)
        np.minimum.at(nearest, i, ratio)
        np.minimum.at(nearest, j, ratio)
        middle = float(np.median(nearest))
        if math.isfinite(middle):
            self.lengths.add(middle)
        k = int(ratio.argmin())
        pair = f"{chemical_symbols[s.numbers[i[k]]]}–{chemical_symbols[s.numbers[j[k]]]}"
        self.shortest.add(-float(ratio[k]), (id, pair, float(d[k])))
        if forces is not None:
            self._bonds(s, forces, (i, j, d, vectors), ratio, nearest)

    def _bonds(
        self,
        s: Structure,
        forces: np.ndarray,
        pairs: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
        ratio: np.ndarray,
        nearest: np.ndarray,
    ) -> None:
        i, j, d, vectors = pairs
        z = s.numbers
        first_is_h = (z[i] == 1) & np.isin(z[j], list(STIFFNESS))
        second_is_h = (z[j] == 1) & np.isin(z[i], list(STIFFNESS))
        hydrogen, partner = np.where(first_is_h, i, j), np.where(first_is_h, j, i)
        bond = (first_is_h | second_is_h) & (ratio <= nearest[hydrogen])
        if not bond.any():
            return
        hydrogen, partner, d, ratio = hydrogen[bond], partner[bond], d[bond], ratio[bond]
        # `vectors` point from i to j; `away` from the heavy atom to hydrogen.
        away = np.where(first_is_h[bond], -1.0, 1.0)[:, None] * vectors[bond] / d[:, None]
        pull = (forces[hydrogen] * away).sum(axis=1)
        for length, scale in ((name, LENGTH_UNITS[name]) for name in ("Å", "bohr")):
            like_a_bond = (ratio * scale > 0.85) & (ratio * scale < 1.2)
            for x in STIFFNESS:
                selected = like_a_bond & (z[partner] == x)
                if selected.any():
                    self.bonds.setdefault((length, x), Line()).add(d[selected], pull[selected])

    def _cell(self, id: str, s: Structure) -> None:
        self.periodic += 1
        gap = largest_gap(s)
        self.empty.add(gap, id)
        if s.pbc.all() and gap < 8.0:
            volume = abs(float(np.linalg.det(s.cell))) / len(s)
            self.volumes.add(volume)
            self.dense.add(-volume, id)

    def _forces(self, id: str, s: Structure, forces: np.ndarray) -> None:
        sizes = np.linalg.norm(forces, axis=1)
        most = float(sizes.max())
        self.largest.add(most)
        self.extreme_forces.add(most, id)
        # A few atoms of each structure, so that large structures do not dominate the sample.
        for k in self._random.integers(len(s), size=min(4, len(s))):
            self.forces.add(float(sizes[k]))
        total = float(sizes.sum())
        if s.fixed.any():
            self.fixed_without_force += bool(not np.any(forces[s.fixed]) and total > 0)
        elif len(s) > 1 and total > 0:
            net = float(np.linalg.norm(forces.sum(axis=0)))
            self.net.add((net / total, net))
            if not s.pbc.any():
                arms = s.positions - s.positions.mean(axis=0)
                moment = float(np.linalg.norm(np.cross(arms, forces).sum(axis=0)))
                self.torque.add(moment / max(float((np.linalg.norm(arms, axis=1) * sizes).sum()), 1e-300))

    def length_unit(self) -> tuple[str, float]:
        """Unit of length in which nearest neighbours are bonded, and their median distance / sum of radii."""
        if not len(self.lengths):
            return "Å", math.nan
        middle = float(np.median(self.lengths.kept))
        unit = "Å" if 0.55 < middle < 1.6 else "bohr" if 1.6 <= middle < 2.6 else "nm" if 0.06 < middle < 0.2 else "?"
        return unit, middle

    def bond_test(self) -> BondTest | None:
        """Test of the forces by bonds to hydrogen; None if there are none."""
        length, _ = self.length_unit()
        lines = {x: line for (unit, x), line in self.bonds.items() if unit == length and line.n > 1}
        if not lines:
            return None
        x = max(lines, key=lambda e: lines[e].n)
        fall, correlation = lines[x].slope()
        scale = LENGTH_UNITS[length]
        unit, factor = None, math.nan
        if fall:
            # Per length of the coordinates; the factor of 1.89 between Å and bohr is too small to be resolved.
            ratios = {
                u: abs(fall) * value / scale**2 / STIFFNESS[x] for u, value in ENERGY_UNITS.items() if u != "Rydberg"
            }
            best = min(ratios, key=lambda u: abs(math.log(ratios[u])))
            factor = ratios[best]
            unit = best if abs(math.log(factor)) < math.log(SOFTER) else None
        return BondTest(
            bonds=lines[x].n,
            element=chemical_symbols[x],
            stiffness=-fall,
            correlation=correlation,
            expected=STIFFNESS[x],
            unit=unit,
            factor=factor,
        )


def contacts(s: Structure) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Neighbouring pairs: first atom, second atom, distance, vector from first to second (each pair once)."""
    if not s.pbc.any() and len(s) <= ALL_PAIRS:
        i, j = np.triu_indices(len(s), k=1)
        vectors = s.positions[j] - s.positions[i]
        return i, j, np.linalg.norm(vectors, axis=1), vectors
    search = vesin.NeighborList(cutoff=REACH, full_list=False, n_threads=1)
    i, j, d, vectors = search.compute(s.positions, s.cell, s.pbc, "ijdD")
    return i.astype(np.int64), j.astype(np.int64), d, vectors


def largest_gap(s: Structure) -> float:
    """Thickness of the widest empty layer along a periodic lattice vector, in the unit of the coordinates."""
    rows = s.cell[s.pbc]
    inverse = np.linalg.pinv(rows)
    ordered = np.sort((s.positions @ inverse) % 1.0, axis=0)
    widest = np.diff(np.concatenate([ordered, ordered[:1] + 1.0]), axis=0).max(axis=0)
    return float((widest / np.linalg.norm(inverse, axis=0)).max())
