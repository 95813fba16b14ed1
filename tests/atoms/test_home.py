"""Positions near the origin: the same structure, in numbers that single precision holds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from ase.build import bulk, molecule

from eutectic.atoms import Structure
from eutectic.atoms.home import home_positions
from eutectic.graph.neighbours import neighbour_list
from eutectic.testing.structures import STRUCTURES

ETHANOL = Structure.from_ase(molecule("CH3CH2OH"))
COPPER = Structure.from_ase(bulk("Cu", cubic=True))
REACH = 7.0


def _edges(structure: Structure) -> np.ndarray:
    """Sorted (target, source, vector) of all edges within 6 Å, from positions and offsets."""
    edges = neighbour_list([structure], 6.0)
    vectors = structure.positions[edges.source] + edges.offset @ structure.cell - structure.positions[edges.target]
    rows = np.column_stack([edges.target, edges.source, np.round(vectors, 6) + 0.0])
    return rows[np.lexsort(rows.T)]


def _home(structure: Structure, reach: float = REACH) -> Structure:
    return replace(structure, positions=home_positions([structure], reach)[0])


@pytest.mark.parametrize("reach", [REACH, np.inf])
@pytest.mark.parametrize("name", STRUCTURES)
def test_edges_do_not_change(name: str, reach: float) -> None:
    np.testing.assert_allclose(_edges(_home(STRUCTURES[name], reach)), _edges(STRUCTURES[name]), atol=2e-6)


def test_many_structures_move_as_each_alone() -> None:
    together = home_positions(list(STRUCTURES.values()), REACH)
    alone = [home_positions([s], REACH) for s in STRUCTURES.values()]
    for whole, parts in zip(together, zip(*alone, strict=True), strict=True):
        np.testing.assert_array_equal(whole, np.concatenate(parts))


def test_atoms_inside_their_cell_stay() -> None:
    inside = replace(COPPER, positions=COPPER.positions + 0.3)
    np.testing.assert_array_equal(_home(inside).positions, inside.positions)


@pytest.mark.parametrize("jump", [1, 10, 1000, 10**7])
@pytest.mark.parametrize("name", ["skewed_cell", "left_handed_cell", "unwrapped", "slab_across_boundary"])
def test_atoms_many_cells_away_come_back(name: str, jump: int) -> None:
    structure = STRUCTURES[name]
    jumps = np.random.default_rng(0).integers(-jump, jump + 1, (len(structure), 3))
    far = replace(structure, positions=structure.positions + jumps @ structure.cell)
    np.testing.assert_allclose(_home(far).positions, _home(structure).positions, atol=1e-7)


def test_an_atom_in_the_wall_of_its_cell_stays_on_one_side() -> None:
    noise = 1e-9 * np.random.default_rng(0).normal(size=(8, 4, 3))
    for one in noise:
        moved = _home(replace(COPPER, positions=COPPER.positions + one)).positions
        np.testing.assert_allclose(moved, COPPER.positions, atol=1e-8)


@pytest.mark.parametrize("away", [1e2, 1e4, 1e7])
@pytest.mark.parametrize(
    "pbc", [(False, False, False), (True, True, False), (False, True, False), (True, False, True)], ids=str
)
def test_open_directions_are_centred(pbc: tuple[bool, ...], away: float) -> None:
    cell = np.array([[9.0, 0, 0], [3.0, 8.0, 0], [1.0, 2.0, 9.0]])
    home = replace(ETHANOL, cell=cell, pbc=np.array(pbc))
    far = replace(home, positions=home.positions + away * np.array([0.3, -0.8, 0.5]))
    assert np.abs(_home(far).positions).max() < 25
    np.testing.assert_allclose(_edges(_home(far)), _edges(home), atol=2e-6)


@pytest.mark.parametrize("apart", [100.0, 3e3, 1e7])
def test_parts_far_apart_come_closer_but_not_within_reach(apart: float) -> None:
    direction = np.array([[0.2, 0.5, -0.8]])
    both = Structure(
        numbers=np.concatenate([ETHANOL.numbers] * 2),
        positions=np.concatenate([ETHANOL.positions, ETHANOL.positions + apart * direction]),
    )
    moved = _home(both)
    assert np.abs(moved.positions).max() < 32
    assert len(neighbour_list([moved], REACH - 0.1)) == 2 * len(neighbour_list([ETHANOL], REACH - 0.1))
    for part in (slice(0, 9), slice(9, 18)):
        arms, kept = (x.positions[part] - x.positions[part][0] for x in (moved, both))
        np.testing.assert_allclose(arms, kept, atol=1e-7)
    unmoved = _home(both, np.inf).positions
    np.testing.assert_allclose(unmoved - unmoved[0], both.positions - both.positions[0], atol=1e-7)


@pytest.mark.parametrize("centre", [(0.0, 0.0, 0.0), (500.0, 500.0, 500.0), (999.5, 3.0, 500.0)])
def test_a_molecule_in_a_large_box_is_put_together_at_the_origin(centre: tuple[float, ...]) -> None:
    cell = 1000 * np.eye(3)
    positions = (ETHANOL.positions + centre) % 1000
    boxed = replace(ETHANOL, positions=positions, cell=cell, pbc=np.ones(3, dtype=bool))
    assert np.abs(_home(boxed).positions).max() < 5
    assert not neighbour_list([_home(boxed)], 6.0).offset.any()
    np.testing.assert_allclose(_edges(_home(boxed)), _edges(ETHANOL), atol=2e-6)
