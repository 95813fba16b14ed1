"""Neighbour lists that are reused while atoms move: the same graphs as from a new search in every step."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from ase.build import bulk, fcc111, molecule

from eutectic.atoms import EutecticError, Structure
from eutectic.graph import GraphSettings, ReusedNeighbours, StructureGraph, build_graph
from eutectic.graph.graph import LISTS
from eutectic.testing import STRUCTURES

CAPPED = GraphSettings(cutoff=5.0, max_neighbours=6)
SMOOTH = GraphSettings(cutoff=5.0, max_neighbours=6, smooth_cap=0.5)
WHOLE = GraphSettings(cutoff=4.0, max_neighbours=1000)


def edges_in_place(graph: StructureGraph, name: str) -> list[tuple[int, ...]]:
    """Edges with the images of the atoms as given, whichever images the graph has them in."""
    edges = getattr(graph, name)
    offset = edges.offset + graph.moves[edges.target] - graph.moves[edges.source]
    return sorted(zip(edges.source.tolist(), edges.target.tolist(), *offset.T.tolist(), strict=True))


def check_same(reused: StructureGraph, fresh: StructureGraph) -> None:
    for name in LISTS:
        assert edges_in_place(reused, name) == edges_in_place(fresh, name), name
        np.testing.assert_allclose(getattr(reused, name).distance, getattr(fresh, name).distance, atol=1e-9)
    main = reused.main
    np.testing.assert_array_equal(main.source[reused.reverse], main.target)
    vector = reused.home[main.target] - reused.home[main.source] - main.offset @ reused.structure.cell
    np.testing.assert_allclose(np.linalg.norm(vector, axis=1), main.distance, atol=1e-9)
    assert (reused.smooth_cutoff is None) == (fresh.smooth_cutoff is None)


@pytest.mark.parametrize("settings", [CAPPED, SMOOTH, WHOLE], ids=["capped", "smooth", "whole"])
@pytest.mark.parametrize("name", STRUCTURES)
def test_graphs_of_moving_atoms_are_those_of_new_searches(name: str, settings: GraphSettings) -> None:
    structure = STRUCTURES[name]
    rng = np.random.default_rng(0)
    structure = replace(structure, positions=structure.positions + rng.normal(0, 0.01, structure.positions.shape))
    velocity = rng.normal(0, 1, structure.positions.shape)
    velocity /= np.linalg.norm(velocity, axis=1).max()
    neighbours = ReusedNeighbours(settings, skin=0.6)
    for step in range(25):
        positions = structure.positions + 0.049 * step * velocity
        moved = replace(structure, positions=positions)
        check_same(neighbours.graph(moved), build_graph(moved, settings))
    # Steps of 0.049 Å of the fastest atom: the seventh after a search is the first beyond 0.3 Å.
    assert neighbours.searches == 4


def test_neighbours_change_places_at_a_cap_between_searches() -> None:
    """The cap keeps the nearest of the present positions, not of those that were searched."""
    positions = np.array([[0.0, 0, 0], [2.0, 0, 0], [-2.1, 0, 0]])
    structure = Structure(numbers=np.array([6, 1, 1]), positions=positions)
    settings = GraphSettings(cutoff=5.0, max_neighbours=1)
    neighbours = ReusedNeighbours(settings, skin=1.0)

    def nearest_of_first(x: float) -> int:
        moved = positions.copy()
        moved[2, 0] = x
        graph = neighbours.graph(replace(structure, positions=moved))
        into_first = graph.quadruplet.target == 0
        assert into_first.sum() == 1
        return int(graph.quadruplet.source[into_first][0])

    assert [nearest_of_first(x) for x in (-2.1, -1.9, -2.1)] == [1, 2, 1]
    assert neighbours.searches == 1


def test_what_makes_a_new_search() -> None:
    atoms = bulk("Cu", cubic=True)
    neighbours = ReusedNeighbours(CAPPED, skin=1.0)

    def searches() -> int:
        neighbours.graph(Structure.from_ase(atoms))
        return neighbours.searches

    assert [searches(), searches()] == [1, 1]
    atoms.positions[0, 0] += 0.5
    assert searches() == 1
    atoms.positions[0, 0] += 1e-6
    assert searches() == 2
    atoms.set_cell(atoms.cell * 1.0001)
    assert searches() == 3
    atoms.pbc = (True, True, False)
    assert searches() == 4
    atoms.numbers[0] = 47
    assert searches() == 5
    atoms.pop()
    assert searches() == 6
    # Tags select edges, but not neighbours.
    atoms.set_tags([1, 0, 0])
    assert searches() == 6


def test_tags_are_those_of_the_present_structure() -> None:
    atoms = fcc111("Cu", (2, 2, 2), vacuum=6.0)
    neighbours = ReusedNeighbours(CAPPED, skin=0.5)
    for tags in ([0] * 8, [1] * 8, [0] * 4 + [2] * 4):
        atoms.set_tags(np.array(tags) + 0)
        atoms.arrays["tags"][0] = 1  # all zeros stand for no tags
        structure = Structure.from_ase(atoms)
        check_same(neighbours.graph(structure), build_graph(structure, CAPPED))
    assert neighbours.searches == 1


def test_fragments_that_approach_over_a_shortened_gap() -> None:
    """Wide structures are pulled together along their gaps; what then comes near must be found in time."""
    one, other = molecule("H2O"), molecule("CH4")
    other.positions += [100.0, 0, 0]
    structure = Structure.from_ase(one + other)
    neighbours = ReusedNeighbours(WHOLE, skin=1.0)
    direction = np.repeat([[1.0, 0, 0], [-1.0, 0, 0]], [3, 5], axis=0)
    for distance in np.arange(0.0, 49.0, 0.49):
        moved = replace(structure, positions=structure.positions + distance * direction)
        check_same(neighbours.graph(moved), build_graph(moved, WHOLE))
    assert edges_in_place(neighbours.graph(moved), "main") != edges_in_place(build_graph(structure, WHOLE), "main")


def test_a_skin_must_make_sense() -> None:
    for skin in (-0.1, 6.0, np.nan):
        with pytest.raises(EutecticError, match=r"skin: .* Å; expected 0 to 5 Å"):
            ReusedNeighbours(CAPPED, skin=skin)
