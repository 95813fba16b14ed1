"""Statistics of stresses: their size, and the order of six numbers.

A stress is a sum over neighbours, σ = 1/V Σ φ'(d)/d r⊗r for pairs, so its shear components follow those of the tensor
T = Σ g(d) r⊗r of the neighbours' positions, whatever the decay g, and change sign with them under every reflection. Six
numbers read in a wrong order follow T of another order.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import numpy as np

from eutectic.atoms import LabelledStructure
from eutectic.check.geometry import RADII, contacts
from eutectic.check.scales import Sample

SHEARS = ("yz", "xz", "xy")
ORDERS = (
    *(("xx", "yy", "zz", *shears) for shears in itertools.permutations(SHEARS)),
    ("xx", "xy", "xz", "yy", "yz", "zz"),
    ("xx", "xy", "yy", "xz", "yz", "zz"),
)
"""Orders in which six numbers are written; the first is ASE's, in which they were read."""

DECAYS = (12.0, 6.0, 3.0, 1.0)
"""Powers of the inverse distance (in sums of covalent radii) in g."""

LEAST = 8
"""Minimum number of structures with shear stress for the test of the order."""


@dataclass(frozen=True, kw_only=True)
class OrderTest:
    """Test of the order of six numbers.

    Attributes:
        structures: number of structures with shear stress.
        order: the order that fits best, if the numbers were read as xx, yy, zz, yz, xz, xy.
        explained, as_read: share of the variance of the shear stress that follows the neighbours in that order, and as
            the numbers were read.
        symmetric: number of structures whose neighbours are so symmetric that some shear stress must be zero.
        broken, broken_as_read: number of these in which it is not, in that order and as the numbers were read.
    """

    structures: int
    order: tuple[str, ...]
    explained: float
    as_read: float
    symmetric: int
    broken: int
    broken_as_read: int

    @property
    def contradicts(self) -> bool:
        """Whether another order fits, and the one as read does not."""
        if self.order == ORDERS[0]:
            return False
        follows = self.explained > 0.5 and self.as_read < 0.6 * self.explained
        return (follows and 1 - self.as_read > 2.5 * (1 - self.explained)) or self.breaks_symmetry

    @property
    def breaks_symmetry(self) -> bool:
        """Whether the order as read contradicts the symmetry of the neighbours, and the best one hardly ever does."""
        return self.broken_as_read >= max(3, 0.2 * self.symmetric) and self.broken <= 0.2 * self.broken_as_read


@dataclass(eq=False)
class Stresses:
    """Samples over the structures so far; bounded memory."""

    sizes: Sample[float] = field(default_factory=lambda: Sample(5000))
    volumes: Sample[float] = field(default_factory=lambda: Sample(5000))
    tensors: Sample[tuple[np.ndarray, np.ndarray]] = field(default_factory=lambda: Sample(1000))

    def add(self, row: LabelledStructure) -> None:
        """Add a structure."""
        stress, s = row.labels.get("stress"), row.structure
        if stress is None or not s.pbc.all():
            return
        self.sizes.add(float(np.abs(stress).max()))
        self.volumes.add(abs(float(np.linalg.det(s.cell))))
        if not self.tensors.wants():
            return
        i, j, d, vectors = contacts(s)
        if not len(d):
            return
        ratio = d / (RADII[s.numbers[i]] + RADII[s.numbers[j]])
        weights = [ratio**-power / d**2 for power in DECAYS]
        shapes = np.stack([np.einsum("p,pi,pj->ij", w, vectors, vectors) for w in weights])
        self.tensors.add((stress, shapes / np.trace(shapes, axis1=1, axis2=2)[:, None, None]))

    def order_test(self) -> OrderTest | None:
        """Compare all orders; None for too few structures with shear stress."""
        pairs = [(stress, shapes) for stress, shapes in self.tensors if np.abs(stress).max() > 0]
        if not pairs:
            return None
        # The largest stresses must not decide alone.
        stress = np.array([s / np.abs(s).max() for s, _ in pairs])
        shapes = np.array([_shears(t) for _, t in pairs])  # (structures, decays, 3)
        sheared = np.abs(_shears(stress)).max(axis=-1) > 1e-3
        if sheared.sum() < LEAST:
            return None
        stress, shapes = stress[sheared], shapes[sheared]
        # A component that symmetry forbids is zero for every decay; one that vanishes by chance is not.
        forbidden = np.abs(shapes).max(axis=1) < 1e-5
        symmetric = forbidden.any(axis=1)
        shears = {order: _reordered(stress, order) for order in ORDERS}
        broken = {order: _broken(shears[order][symmetric], forbidden[symmetric]) for order in ORDERS}
        explained = {order: _explained(shears[order], shapes) for order in ORDERS}
        best = max(ORDERS, key=lambda order: explained[order] - broken[order] / len(stress))
        return OrderTest(
            structures=len(stress),
            order=best,
            explained=explained[best],
            as_read=explained[ORDERS[0]],
            symmetric=int(symmetric.sum()),
            broken=broken[best],
            broken_as_read=broken[ORDERS[0]],
        )


def _broken(shears: np.ndarray, forbidden: np.ndarray) -> int:
    """Number of structures with a shear stress that must be zero."""
    large = np.abs(shears) > 0.1 * np.abs(shears).max(axis=1, keepdims=True, initial=0.0)
    return int((large & forbidden).any(axis=1).sum())


def _shears(tensors: np.ndarray) -> np.ndarray:
    return np.stack([tensors[..., 1, 2], tensors[..., 0, 2], tensors[..., 0, 1]], axis=-1)


def _reordered(stress: np.ndarray, order: tuple[str, ...]) -> np.ndarray:
    """(structures, 3) shears if the six numbers, read as xx, yy, zz, yz, xz, xy, are in this order."""
    six = np.stack([stress[:, 0, 0], stress[:, 1, 1], stress[:, 2, 2], *_shears(stress).T], axis=1)
    return six[:, [order.index(shear) for shear in SHEARS]]


def _explained(shears: np.ndarray, shapes: np.ndarray) -> float:
    """Share of the squares of (structures, 3) shears that is a combination of (structures, decays, 3) shapes, with the
    same coefficients for all three components."""
    a = np.swapaxes(shapes, 1, 2).reshape(-1, shapes.shape[1])
    b = shears.reshape(-1)
    total = float((b * b).sum())
    if total == 0.0 or not np.abs(a).max(initial=0.0) > 1e-6:
        return 0.0
    found, *_ = np.linalg.lstsq(a, b, rcond=1e-9)
    left = b - a @ found
    # Fewer degrees of freedom are left than numbers.
    return 1.0 - float((left * left).sum()) / total * len(b) / max(len(b) - a.shape[1], 1)
