"""Equivalent positions as close to the origin as possible, so that single precision represents them well.

At 18,000 Å, the spacing of float32 numbers is 2e-3 Å: enough to change forces by 30 meV/Å. Moving the whole structure,
or single atoms by lattice vectors, changes no vector between neighbours, with negligible rounding in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int

if TYPE_CHECKING:
    from eutectic.atoms.structure import Structure

ON_THE_WALL = 1e-6
"""Atoms within this fraction of a lattice vector below the cell stay there, so that rounding does not move an atom on a
cell face to the opposite face."""

WIDE = 64.0
"""Å. Structures of at most this extent are rounded by at most 2e-6 Å once they are centred at the origin."""


def home_positions(
    structures: Sequence[Structure], reach: float
) -> tuple[Float[np.ndarray, "atoms 3"], Int[np.ndarray, "atoms 3"]]:
    """Positions of the atoms of several structures, concatenated and moved near the origin.

    Atoms outside the cell are moved into it by lattice vectors. Along non-periodic directions, the structure's centre
    is moved to the origin. Structures more than 64 Å wide are cut at their widest gap along periodic directions and
    centred; gaps along non-periodic directions are shortened to `reach`.

    Args:
        structures: valid structures (`Structure.check`).
        reach: Å; vectors between atoms closer than this are unchanged. If infinite, no gap is shortened.

    Returns:
        The positions, Å, and the number of lattice vectors by which each atom was moved back.
    """
    counts = np.array([len(s) for s in structures])
    first = np.cumsum(counts) - counts
    positions = np.concatenate([s.positions for s in structures])
    moves = np.zeros(positions.shape, dtype=np.int64)
    pbc = np.array([s.pbc for s in structures])
    molecules = np.logical_not(pbc.any(axis=1))
    if molecules.any():
        centre = np.add.reduceat(positions, first) / counts[:, None]
        positions -= np.repeat(np.where(molecules[:, None], centre, 0.0), counts, axis=0)
    periodic = np.flatnonzero(~molecules)
    with_cell = [structures[k] for k in periodic.tolist()]
    cells = np.array([s.cell if s.pbc.all() else completed(s.cell, s.pbc) for s in with_cell])
    if len(periodic):
        own = np.flatnonzero(np.repeat(~molecules, counts))
        which = np.repeat(np.arange(len(periodic)), counts[periodic])
        _into_cells(positions, moves, own, which, cells, pbc[periodic])
    widest = np.maximum.reduceat(np.abs(positions).max(axis=1), first)
    for k in np.flatnonzero(widest > 0.5 * WIDE).tolist():
        cell = np.eye(3) if molecules[k] else cells[np.searchsorted(periodic, k)]
        rows = slice(first[k], first[k] + counts[k])
        positions[rows], cut = _gathered(positions[rows], cell, pbc[k], reach)
        moves[rows] += cut
    return positions, moves


def completed(cell: Float[np.ndarray, "3 3"], pbc: Bool[np.ndarray, 3]) -> Float[np.ndarray, "3 3"]:
    """The cell with unit normals in place of the lattice vectors that are not periodic (and may be zero)."""
    from ase.geometry import complete_cell

    return np.asarray(complete_cell(np.where(pbc[:, None], cell, 0.0)))


def _into_cells(
    positions: np.ndarray, moves: np.ndarray, own: np.ndarray, which: np.ndarray, cells: np.ndarray, pbc: np.ndarray
) -> None:
    """Wrap and centre the atoms `own`, of the structures `which`, in place. Atoms inside their cells do not move."""
    coordinates = np.einsum("ni,nij->nj", positions[own], np.linalg.inv(cells)[which])
    steps = np.where(pbc[which], np.floor(coordinates + ON_THE_WALL), 0.0)
    moves[own] = steps
    if not pbc.all():
        ends = np.flatnonzero(np.diff(which, prepend=-1))
        middle = np.add.reduceat(coordinates, ends) / np.diff(ends, append=len(which))[:, None]
        steps += np.where(pbc, 0.0, middle)[which]
    if steps.any():
        positions[own] -= np.einsum("ni,nij->nj", steps, cells[which])


def _gathered(positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, reach: float) -> tuple[np.ndarray, np.ndarray]:
    """The atoms of one wide structure, moved closer together around the origin, and their moves by lattice vectors."""
    coordinates = positions @ np.linalg.inv(cell)
    moved, moves = coordinates.copy(), np.zeros(positions.shape, dtype=np.int64)
    for axis in range(3):
        order = np.argsort(coordinates[:, axis], kind="stable")
        along = coordinates[order, axis]
        if pbc[axis]:
            gaps = np.diff(along, append=along[0] + 1)
            # Atoms beyond the widest gap are nearer to images of the others.
            beyond = order[int(gaps.argmax()) + 1 :]
            moves[beyond, axis] = 1
            along = along - moves[order, axis]
        else:
            gaps = np.diff(along, prepend=along[0])
            along = along - np.cumsum(np.maximum(gaps - reach, 0.0))
        moved[order, axis] = along - 0.5 * (along.min() + along.max())
    return positions + (moved - coordinates) @ cell, moves
