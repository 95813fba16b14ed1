"""Consistency of energies with forces and stresses, from pairs of similar frames.

Between two similar geometries of the same atoms, E_b − E_a = −½(F_a + F_b)·(x_b − x_a) to third order in the
displacement, and for a strain ε of the cell + V σ:ε. So the slope of one against the other is 1 for consistent labels,
−1 if "forces" are gradients, and a ratio of units if units were mixed.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field

import numpy as np

from eutectic.atoms import LabelledStructure
from eutectic.check.scales import Sample

WINDOW = 24
"""Number of previous frames of the same atoms with which a frame is compared."""
MAX_ATOMS_KEPT = 400_000
PAIRS = 3000
LEAST_PAIRS = 10


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two similar frames.

    Attributes:
        ids: ids of the two.
        energy_change: E_b − E_a.
        work: −½(F_a + F_b)·dx, in the file's units; 0 without forces.
        curvature: |(F_b − F_a)·dx|; small compared with the work for similar frames.
        distance: root mean square displacement.
        strain_work: ½(V_a σ_a + V_b σ_b):ε; None if the cell did not change or there is no stress.
        volume: mean volume of the cells, for pairs with strain_work.
    """

    ids: tuple[str, str]
    energy_change: float
    work: float
    curvature: float
    distance: float
    strain_work: float | None = None
    volume: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Slope:
    """A weighted fit of a line through the origin.

    Attributes:
        pairs: number of pairs.
        slope, error: slope and its standard error.
        correlation: weighted correlation about the origin.
        nearness: median of work / curvature; above one, frames are similar enough for the test.
    """

    pairs: int
    slope: float
    error: float
    correlation: float
    nearness: float


@dataclass(eq=False)
class _Frame:
    id: str
    content: tuple[np.ndarray, np.ndarray]  # positions, cell
    pbc: np.ndarray
    energy: float
    forces: np.ndarray | None
    stress: np.ndarray | None


@dataclass(eq=False)
class Motion:
    """Collects pairs of similar frames, with a bounded window of frames and a bounded sample of pairs."""

    pairs: Sample[Pair] = field(default_factory=lambda: Sample(PAIRS))
    strained: Sample[Pair] = field(default_factory=lambda: Sample(PAIRS))
    _recent: OrderedDict[bytes, deque[_Frame]] = field(default_factory=OrderedDict)
    _atoms: int = 0

    def add(self, row: LabelledStructure) -> None:
        """Add a structure."""
        labels, s = row.labels, row.structure
        if "energy" not in labels or ("forces" not in labels and "stress" not in labels):
            return
        frame = _Frame(
            id=row.id,
            content=(s.positions, s.cell),
            pbc=s.pbc,
            energy=float(labels["energy"]),
            forces=labels.get("forces"),
            stress=labels.get("stress"),
        )
        key = s.numbers.tobytes() + s.pbc.tobytes() + row.group.encode()
        window = self._recent.setdefault(key, deque())
        self._recent.move_to_end(key)
        # Once the sample is full, ever fewer pairs enter it, so most need not be computed.
        if window and self.pairs.wants():
            self._compare(frame, window)
        window.append(frame)
        self._atoms += len(s)
        if len(window) > WINDOW:
            self._atoms -= len(window.popleft().content[0])
        while self._atoms > MAX_ATOMS_KEPT and len(self._recent) > 1:
            _, oldest = self._recent.popitem(last=False)
            self._atoms -= sum(len(f.content[0]) for f in oldest)

    def _compare(self, frame: _Frame, window: deque[_Frame]) -> None:
        cell = frame.content[1]
        scale = max(float(np.abs(cell).max()), 1e-12)
        strained = [f for f in window if frame.pbc.all() and np.abs(f.content[1] - cell).max() > 1e-5 * scale]
        alike = [f for f in window if not any(f is g for g in strained)]
        if alike and frame.forces is not None and any(f.forces is not None for f in alike):
            alike = [f for f in alike if f.forces is not None]
            moves, turns = (_moves_in_cell if frame.pbc.any() else _moves_of_molecule)(frame, alike)
            self._add(frame, alike, moves, turns)
        near = [f for f in strained if f.stress is not None and _strain(f, frame) is not None]
        if near and frame.stress is not None:
            sizes = [float(np.abs(f.content[1] - cell).max()) for f in near]
            self._add_strained(near[int(np.argmin(sizes))], frame)

    def _add(self, frame: _Frame, others: list[_Frame], moves: np.ndarray, turns: np.ndarray) -> None:
        distance = np.sqrt((moves**2).sum(-1).mean(-1))
        # A repeated frame carries no information.
        usable = np.flatnonzero(distance > 1e-7)
        if not len(usable):
            return
        i = usable[distance[usable].argmin()]
        assert frame.forces is not None
        other = others[i]
        assert other.forces is not None
        before, after = other.forces, frame.forces @ turns[i]
        self.pairs.add(
            Pair(
                ids=(other.id, frame.id),
                energy_change=frame.energy - other.energy,
                work=float(-0.5 * ((before + after) * moves[i]).sum()),
                curvature=float(abs(((after - before) * moves[i]).sum())),
                distance=float(distance[i]),
            )
        )

    def _add_strained(self, a: _Frame, b: _Frame) -> None:
        strain = _strain(a, b)
        assert strain is not None
        assert a.stress is not None
        assert b.stress is not None
        cell = 0.5 * (a.content[1] + b.content[1])
        shift = b.content[0] @ np.linalg.inv(b.content[1]) - a.content[0] @ np.linalg.inv(a.content[1])
        moves = (shift - np.round(shift)) @ cell
        work = curvature = 0.0
        if a.forces is not None and b.forces is not None:
            work = float(-0.5 * ((a.forces + b.forces) * moves).sum())
        volumes = [abs(float(np.linalg.det(f.content[1]))) for f in (a, b)]
        ends = [v * float((f.stress * strain).sum()) for v, f in zip(volumes, (a, b), strict=True)]
        curvature = abs(ends[1] - ends[0])
        self.strained.add(
            Pair(
                ids=(a.id, b.id),
                energy_change=b.energy - a.energy,
                work=work,
                curvature=curvature,
                distance=float(np.sqrt((moves**2).sum(-1).mean())),
                strain_work=0.5 * sum(ends),
                volume=0.5 * sum(volumes),
            )
        )


def _moves_in_cell(frame: _Frame, others: list[_Frame]) -> tuple[np.ndarray, np.ndarray]:
    """(others, atoms, 3) minimum-image displacements to `frame`, and identity rotations."""
    moves = frame.content[0] - np.stack([f.content[0] for f in others])
    cell, pbc = frame.content[1], frame.pbc
    rows = cell[pbc]
    # Periodic vectors only: a slab may have no third lattice vector.
    fractions = moves @ np.linalg.pinv(rows)
    moves = moves - np.round(fractions) @ rows
    return moves, np.broadcast_to(np.eye(3), (len(others), 3, 3))


def _moves_of_molecule(frame: _Frame, others: list[_Frame]) -> tuple[np.ndarray, np.ndarray]:
    """(others, atoms, 3) displacements after superposing `frame` on each, and rotations.

    By the Kabsch algorithm (Acta Cryst. A 32, 922). Energy and work are invariant under rotation of a molecule, and
    removing it makes the pairs more similar.
    """
    before = np.stack([f.content[0] for f in others])
    before = before - before.mean(axis=1, keepdims=True)
    after = frame.content[0] - frame.content[0].mean(axis=0)
    u, _, v = np.linalg.svd(np.einsum("ni,wnj->wij", after, before))
    sign = np.sign(np.linalg.det(u @ v))
    u[:, :, -1] *= sign[:, None]
    turns = u @ v
    return after @ turns - before, turns


def _strain(a: _Frame, b: _Frame) -> np.ndarray | None:
    """Symmetric strain from a to b; None if beyond a few per cent, where linear response fails."""
    try:
        deformation = np.linalg.inv(a.content[1]) @ b.content[1] - np.eye(3)
    except np.linalg.LinAlgError:
        return None
    strain = 0.5 * (deformation + deformation.T)
    return strain if 1e-6 < np.abs(deformation).max() < 0.05 else None


def slope(change: np.ndarray, work: np.ndarray, curvature: np.ndarray) -> Slope | None:
    """Slope of energy changes against work, weighted by the similarity of the frames; None for too few pairs."""
    usable = np.isfinite(change) & np.isfinite(work)
    change, work, curvature = change[usable], work[usable], curvature[usable]
    if len(work) < LEAST_PAIRS or not np.any(work) or not np.any(change):
        return None
    # The error of the trapezoidal rule grows with the curvature; rounding adds a constant.
    doubt = 0.1 * curvature + 0.02 * np.median(np.abs(work)) + 1e-300
    weight = 1.0 / doubt**2
    keep = np.ones(len(work), dtype=bool)
    for _ in range(4):
        w, x, y = weight[keep], work[keep], change[keep]

        value = float((w * x * y).sum() / (w * x * x).sum())
        residual = np.abs(change - value * work) / (doubt * max(abs(value), 1e-12))
        keep = residual <= 5 * max(float(np.median(residual)), 1e-9)
    w, x, y = weight[keep], work[keep], change[keep]
    value = float((w * x * y).sum() / (w * x * x).sum())
    variance = float((w * (y - value * x) ** 2).sum() / max(w.sum(), 1e-300))
    effective = float(w.sum() ** 2 / (w**2).sum())
    spread_of_work = float((w * x * x).sum() / w.sum())
    # A few failed calculations may be ignored; with many, the correlation includes them.
    if keep.mean() < 0.7:
        w, x, y = weight, work, change
    correlation = float((w * x * y).sum() / np.sqrt((w * x * x).sum() * (w * y * y).sum() + 1e-300))
    return Slope(
        pairs=len(work),
        slope=value,
        error=float(np.sqrt(variance / max(spread_of_work, 1e-300) / max(effective - 1, 1))),
        correlation=correlation,
        nearness=float(np.median(np.abs(work) / (curvature + 1e-300))) + 1e-9,
    )
