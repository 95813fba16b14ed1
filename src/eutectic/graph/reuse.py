"""Graphs of one structure that moves little between calls, as in dynamics: neighbour lists are reused."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np

from eutectic.atoms import EutecticError, Structure
from eutectic.atoms.home import home_positions
from eutectic.graph.graph import LISTS, StructureGraph, build_graph, graphs_of_neighbours
from eutectic.graph.neighbours import COINCIDENT, NeighbourList, by_target_and_distance, neighbour_list
from eutectic.graph.settings import GraphSettings


@dataclass(frozen=True, kw_only=True, eq=False)
class _Search:
    """Result of a neighbour search up to cutoff + skin.

    Attributes:
        structure: the structure at the time of the search.
        home, moves: as in `StructureGraph`.
        pairs: pairs found, sorted by target.
        shift: (n_pairs, 3) lattice translation added to each pair's source, Å.
    """

    structure: Structure
    home: np.ndarray
    moves: np.ndarray
    pairs: NeighbourList
    shift: np.ndarray


class ReusedNeighbours:
    """Builds the graphs of a moving structure, with a new neighbour search only when needed.

    The search extends to cutoff + skin (Verlet 1967, doi:10.1103/PhysRev.159.98). Two atoms that are not found are
    farther apart than the cutoff until one of them has moved by half the skin. Only the pairs are reused: distances,
    and thus the nearest neighbours that a cap keeps, are those of the current positions. The graph is therefore that of
    `build_graph`, except for rounding and the order of edges of equal length.

    Args:
        settings: cutoff and caps.
        lists: names of the edge lists to build (`Backbone.edge_lists`).
        skin: Å; 0 for a new search in every call.

    Attributes:
        searches: number of searches so far.
    """

    def __init__(self, settings: GraphSettings, *, lists: Collection[str] = LISTS, skin: float = 0.5) -> None:
        if not 0 <= skin <= settings.cutoff:
            raise EutecticError(
                "skin", f"{skin:g} Å", f"0 to {settings.cutoff:g} Å, the cutoff", "try 0.5, or 0 for no reuse"
            )
        self.settings, self.lists, self.skin = settings, tuple(lists), float(skin)
        self.searches = 0
        self._search: _Search | None = None

    def graph(self, structure: Structure) -> StructureGraph:
        """The graph of a valid structure (`Structure.check`)."""
        if not self.skin:
            self.searches += 1
            return build_graph(structure, self.settings, lists=self.lists)
        search = self._search
        if search is None or not self._is_valid(search, structure):
            search = self._search = self._new_search(structure)
        # Atoms stay in the periodic images that they had in the search.
        home = search.home + (structure.positions - search.structure.positions)
        source, target = search.pairs.source, search.pairs.target
        vector = home[target] - home[source] - search.shift
        distance = np.sqrt(np.einsum("ij,ij->i", vector, vector))
        near = np.flatnonzero((distance < self.settings.cutoff) & (distance > COINCIDENT))
        order = near[by_target_and_distance(target[near], distance[near], len(structure))]
        everything = replace(search.pairs.take(order), distance=distance[order])
        return graphs_of_neighbours([structure], [home], [search.moves], everything, self.settings, self.lists)[0]

    def _is_valid(self, search: _Search, structure: Structure) -> bool:
        """Whether no pair within the cutoff can be missing."""
        before = search.structure
        same = (
            np.array_equal(before.numbers, structure.numbers)
            and np.array_equal(before.cell, structure.cell)
            and np.array_equal(before.pbc, structure.pbc)
        )
        if not same:
            return False
        moved = structure.positions - before.positions
        return bool(np.einsum("ij,ij->i", moved, moved).max() <= (0.5 * self.skin) ** 2)

    def _new_search(self, structure: Structure) -> _Search:
        self.searches += 1
        # Gaps are shortened to this reach; atoms across a gap may approach each other by the skin.
        home, moves = home_positions([structure], self.settings.cutoff + self.skin + 1.0)
        # Including coincident pairs, which may separate.
        pairs = neighbour_list([replace(structure, positions=home)], self.settings.cutoff + self.skin, closest=-1.0)
        # The caller may change its arrays in place.
        kept = replace(
            structure,
            numbers=structure.numbers.copy(),
            positions=structure.positions.copy(),
            cell=structure.cell.copy(),
            pbc=structure.pbc.copy(),
        )
        shift = pairs.offset @ structure.cell
        return _Search(structure=kept, home=home, moves=moves, pairs=pairs, shift=shift)
