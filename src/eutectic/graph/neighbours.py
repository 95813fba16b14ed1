"""Who is near whom: one neighbour list at the largest cutoff, and the nearest few of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import vesin
from jaxtyping import Float, Int

from eutectic.atoms import Structure

TIE = 1e-5
"""Å. Neighbours this close to the last one kept are kept too, so that symmetry-equivalent neighbours stay
together and the order of the atoms in a file never decides who is dropped."""

COINCIDENT = 1e-2
"""Å. The published periodic search drops pairs with d² ≤ 1e-4 Å²."""


@dataclass(frozen=True, kw_only=True, eq=False)
class NeighbourList:
    """Directed edges source → target, sorted by (target, distance).

    Attributes:
        source, target: (n_edges,) atom indices.
        offset: (n_edges, 3) lattice vectors added to the source's position (integers).
        distance: (n_edges,) Å.
    """

    source: Int[np.ndarray, edges]
    target: Int[np.ndarray, edges]
    offset: Int[np.ndarray, "edges 3"]
    distance: Float[np.ndarray, edges]

    def __len__(self) -> int:
        return len(self.source)

    @cached_property
    def runs(self) -> tuple[np.ndarray, np.ndarray]:
        """(n_reached,) the first edge into each atom that has any, and how many there are."""
        first = np.ones(len(self), dtype=bool)
        first[1:] = self.target[1:] != self.target[:-1]
        starts = np.flatnonzero(first)
        return starts, np.diff(starts, append=len(self))

    def take(self, keep: np.ndarray) -> NeighbourList:
        """The edges selected by a mask or by indices."""
        return NeighbourList(
            source=self.source[keep],
            target=self.target[keep],
            offset=self.offset[keep],
            distance=self.distance[keep],
        )


def neighbour_list(structure: Structure, cutoff: float) -> NeighbourList:
    """Every pair closer than `cutoff`, periodic images and an atom's own images included.

    Args:
        structure: need not be wrapped into its cell.
        cutoff: Å.
    """
    search = vesin.NeighborList(cutoff=cutoff, full_list=True)
    cell = structure.cell.copy()
    if structure.pbc.any() and not structure.pbc.all():
        cell = _completed(cell, structure.pbc)
    elif not structure.pbc.any():
        cell = np.zeros((3, 3))
    target, source, offset, distance = search.compute(
        points=structure.positions, box=cell, periodic=structure.pbc, quantities="ijSd"
    )
    order = np.lexsort((distance, target))
    order = order[distance[order] > COINCIDENT]
    return NeighbourList(
        source=source[order].astype(np.int32),
        target=target[order].astype(np.int32),
        offset=offset[order].astype(np.int32),
        distance=distance[order],
    )


def _completed(cell: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """The cell with a unit normal in place of each lattice vector that is not periodic (and may be zero)."""
    from ase.geometry import complete_cell

    return np.asarray(complete_cell(np.where(pbc[:, None], cell, 0.0)))


def nearest(edges: NeighbourList, cap: int) -> np.ndarray:
    """(n_edges,) mask of the `cap` nearest incoming edges of each target, and of those that tie with the last."""
    if len(edges) == 0:
        return np.zeros(0, dtype=bool)
    starts, counts = edges.runs
    if counts.max() <= cap:
        return np.ones(len(edges), dtype=bool)
    last = starts + np.minimum(cap, counts) - 1
    return edges.distance <= np.repeat(edges.distance[last] + TIE, counts)


def beyond(edges: NeighbourList, cap: int, n_atoms: int) -> np.ndarray:
    """(n_atoms,) the edge from the first neighbour beyond `cap`; −1 where there is none."""
    counts = np.bincount(edges.target, minlength=n_atoms)
    return np.where(counts > cap, np.cumsum(counts) - counts + cap, -1)


def symmetric(all_edges: NeighbourList, kept: np.ndarray, rule: str) -> tuple[NeighbourList, np.ndarray]:
    """The main graph: every edge has its reverse.

    Args:
        all_edges: the whole list, in which an edge's reverse always exists.
        kept: (n_edges,) mask of the nearest.
        rule: see `GraphSettings.symmetry`.

    Returns:
        The edges, sorted by (target, distance), and (n_edges,) the index of each edge's reverse.
    """
    edges = all_edges.take(kept)
    s, t, o = edges.source, edges.target, edges.offset
    nonzero = o != 0
    leading = np.where(nonzero.any(1), o[np.arange(len(o)), nonzero.argmax(1)], 0)
    forward = (s < t) | ((s == t) & (leading < 0))
    if rule == "union":
        # Turn every edge into its forward form, then keep each once.
        flip = ~forward
        source, target = np.where(flip, t, s), np.where(flip, s, t)
        offset = np.where(flip[:, None], -o, o)
        pair = source.astype(np.int64) * (int(max(s.max(), t.max())) + 1 if len(s) else 1) + target
        # Stable, so that of an edge and its reverse the first counts, as in `np.unique` of all five columns.
        order = np.lexsort((*offset.T[::-1], pair))
        ordered = np.column_stack([pair, offset])[order]
        new = np.ones(len(order), dtype=bool)
        new[1:] = (ordered[1:] != ordered[:-1]).any(1)
        once = order[new]
        source, target, offset, distance = source[once], target[once], offset[once], edges.distance[once]
    else:
        source, target, offset, distance = s[forward], t[forward], o[forward], edges.distance[forward]
    n = len(source)
    both = NeighbourList(
        source=np.concatenate([source, target]),
        target=np.concatenate([target, source]),
        offset=np.concatenate([offset, -offset]),
        distance=np.concatenate([distance, distance]),
    )
    reverse = np.concatenate([np.arange(n, 2 * n), np.arange(n)])
    order = np.lexsort((both.distance, both.target))
    position = np.empty_like(order)
    position[order] = np.arange(2 * n)
    return both.take(order), position[reverse[order]]
