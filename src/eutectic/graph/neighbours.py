"""Neighbour lists: all pairs within a cutoff, and selection of the nearest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import vesin
from jaxtyping import Float, Int

from eutectic.atoms import EutecticError, Structure
from eutectic.atoms.home import completed
from eutectic.atoms.structure import WIDEST
from eutectic.processes import available_memory

TIE = 1e-5
"""Å. Neighbours within this distance of the last one kept are kept too, so that symmetry-equivalent neighbours stay
together and the selection does not depend on the atom order."""

BYTES_PER_PAIR, WORTH_CHECKING = 200, 1e9
"""Peak bytes of a search per pair found, and the estimate (bytes) above which available memory is checked."""

MANY_ATOMS = 2000
"""Number of atoms of a non-periodic structure below which memory is not checked."""

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
        """(n_reached,) first edge and number of edges for each atom with incoming edges."""
        first = np.ones(len(self), dtype=bool)
        first[1:] = self.target[1:] != self.target[:-1]
        starts = np.flatnonzero(first)
        return starts, np.diff(starts, append=len(self))

    def split(self, first_atom: np.ndarray) -> list[NeighbourList]:
        """Split into lists of single structures, with atom indices from 0.

        Args:
            first_atom: (n_structures,) index of the first atom of each structure.
        """
        if len(first_atom) == 1:
            return [self]
        bounds = np.append(np.searchsorted(self.target, first_atom), len(self))
        shift = np.repeat(first_atom.astype(np.int32), np.diff(bounds))
        source, target, ends = self.source - shift, self.target - shift, bounds.tolist()
        return [
            NeighbourList(source=source[a:b], target=target[a:b], offset=self.offset[a:b], distance=self.distance[a:b])
            for a, b in pairwise(ends)
        ]

    def take(self, keep: np.ndarray) -> NeighbourList:
        """The edges selected by a mask or by indices."""
        return NeighbourList(
            source=self.source[keep],
            target=self.target[keep],
            offset=self.offset[keep],
            distance=self.distance[keep],
        )


def neighbour_list(structures: Sequence[Structure], cutoff: float, closest: float = COINCIDENT) -> NeighbourList:
    """All pairs closer than `cutoff`, including periodic images and an atom's own images.

    Args:
        structures: must be near the origin (`home_positions`), but need not be wrapped into their cells. Atoms are
            numbered consecutively over all structures, so that all later steps treat them at once.
        cutoff: Å.
        closest: Å; pairs at or below this distance are left out.

    Raises:
        EutecticError: coordinates or lattice vectors for which the native search would crash or not finish; more pairs
            than fit into memory.
    """
    search = vesin.NeighborList(cutoff=cutoff, full_list=True)
    pairs, offsets, distances = [np.zeros((0, 2), np.int32)], [np.zeros((0, 3), np.int32)], [np.zeros(0)]
    first = 0
    for structure in structures:
        if (
            np.abs(structure.positions).max() > 2 * WIDEST
            or np.abs(structure.cell[structure.pbc]).max(initial=0) > WIDEST
        ):
            raise EutecticError(
                "neighbour search",
                f"coordinates up to {np.abs(structure.positions).max():.2g} Å, cell {structure.cell.tolist()}",
                f"coordinates and lattice vectors of at most {WIDEST:,.0f} Å",
                "check the structure (`Structure.check`)",
            )
        cell = structure.cell.copy()
        if structure.pbc.any() and not structure.pbc.all():
            cell = completed(cell, structure.pbc)
        elif not structure.pbc.any():
            cell = np.zeros((3, 3))
        _check_room(structure, cell, cutoff)
        # The next search overwrites these arrays (copy=False); astype below copies them first.
        pair, shift, length = search.compute(
            points=structure.positions, box=cell, periodic=structure.pbc, quantities="PSd", copy=False
        )
        pairs.append(pair.astype(np.int32) + np.int32(first))
        offsets.append(shift.astype(np.int32))
        distances.append(length.astype(np.float64))
        first += len(structure)
    target, source = np.concatenate(pairs).T
    offset, distance = np.concatenate(offsets), np.concatenate(distances)
    order = by_target_and_distance(target, distance, first)
    order = order[distance[order] > closest]
    return NeighbourList(source=source[order], target=target[order], offset=offset[order], distance=distance[order])


def _check_room(structure: Structure, cell: np.ndarray, cutoff: float) -> None:
    """Refuse a search whose pairs, estimated from the mean density, do not fit into memory."""
    n, dimensions = len(structure), int(structure.pbc.sum())
    if not dimensions:
        if n < MANY_ATOMS:
            return
        cell = np.eye(3)
    # In plain numbers, since this runs for every structure.
    (ax, ay, az), (bx, by, bz), (cx, cy, cz) = cell.tolist()
    volume = abs(ax * (by * cz - bz * cy) + ay * (bz * cx - bx * cz) + az * (bx * cy - by * cx))
    scaled = n * n * 4.19 * cutoff**3 / max(volume, 1e-9)
    pairs = scaled / cutoff ** (3 - dimensions)
    if pairs * BYTES_PER_PAIR < WORTH_CHECKING:
        return
    if dimensions < 3:
        # Along unit normals, in Å.
        extent = np.ptp(structure.positions @ np.linalg.inv(cell), axis=0)
        pairs = scaled / float(np.prod(np.maximum(extent, cutoff)[~structure.pbc]))
    if not dimensions:
        pairs = min(pairs, n * n)
    room = available_memory() if pairs * BYTES_PER_PAIR > WORTH_CHECKING else None
    if room is not None and pairs * BYTES_PER_PAIR > room:
        raise EutecticError(
            "neighbour search",
            f"about {pairs:.1e} pairs of atoms within {cutoff:g} Å, {pairs * BYTES_PER_PAIR / 1e9:.0f} GB",
            f"at most the {room / 1e9:.1f} GB that are available",
            "check the cell and its unit; a smaller structure or cutoff, or a machine with more memory",
        )


def by_target_and_distance(target: np.ndarray, distance: np.ndarray, n_atoms: int) -> np.ndarray:
    """(n_edges,) order of edges by target, then by distance.

    Equivalent to `np.lexsort((distance, target))`, but faster: small integers are radix-sorted.
    """
    order = np.argsort(distance, kind="stable")
    return order[np.argsort(target.astype(np.uint16 if n_atoms <= 2**16 else np.int64)[order], kind="stable")]


def nearest(edges: NeighbourList, cap: int) -> np.ndarray:
    """(n_edges,) mask of the `cap` nearest incoming edges of each target, including ties with the last one."""
    if len(edges) == 0:
        return np.zeros(0, dtype=bool)
    starts, counts = edges.runs
    if counts.max() <= cap:
        return np.ones(len(edges), dtype=bool)
    last = starts + np.minimum(cap, counts) - 1
    return edges.distance <= np.repeat(edges.distance[last] + TIE, counts)


def symmetric(all_edges: NeighbourList, kept: np.ndarray, rule: str) -> tuple[NeighbourList, np.ndarray]:
    """Make the main graph symmetric, so that every edge has its reverse.

    Args:
        all_edges: edges, including the reverse of each.
        kept: (n_edges,) mask of the nearest edges.
        rule: see `GraphSettings.symmetry`.

    Returns:
        The edges, sorted by (target, distance), and (n_edges,) the index of each edge's reverse.
    """
    edges = all_edges.take(kept)
    s, t, o = edges.source, edges.target, edges.offset
    # Encode each image as an integer with the sign of its first nonzero component.
    base = 2 * int(np.abs(o).max(initial=0)) + 1
    image = (o @ np.array([base * base, base, 1])).astype(np.int64)
    forward = (s < t) | ((s == t) & (image < 0))
    if rule == "union":
        # Convert every edge to its forward form, then remove duplicates.
        source, target = np.where(forward, s, t), np.where(forward, t, s)
        sign = np.where(forward, 1, -1).astype(np.int32)
        offset, image = o * sign[:, None], image * sign
        pair = source.astype(np.int64) * (int(t.max(initial=0)) + 1) + target
        # A stable sort, so that the first of an edge and its reverse is kept.
        order = np.lexsort((image, pair))
        new = np.ones(len(order), dtype=bool)
        new[1:] = (pair[order[1:]] != pair[order[:-1]]) | (image[order[1:]] != image[order[:-1]])
        unique = order[new]
        source, target, offset, distance = source[unique], target[unique], offset[unique], edges.distance[unique]
    else:
        source, target, offset, distance = s[forward], t[forward], o[forward], edges.distance[forward]
    n = len(source)
    both = NeighbourList(
        source=np.concatenate([source, target]),
        target=np.concatenate([target, source]),
        offset=np.concatenate([offset, -offset]),
        distance=np.concatenate([distance, distance]),
    )
    order = by_target_and_distance(both.target, both.distance, int(both.target.max(initial=0)) + 1)
    position = np.empty_like(order)
    position[order] = np.arange(2 * n)
    return both.take(order), position[(order + n) % (2 * n)] if n else order
