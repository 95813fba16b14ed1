"""Neighbours against brute force, ties at the cap, symmetry, batches, and the sign conventions."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from ase.build import bulk, molecule
from ase.geometry import complete_cell

from eutectic.atoms import EutecticError, Structure
from eutectic.graph import Graph, GraphSettings, StructureGraph, build_graph, build_graphs, collate
from eutectic.graph.neighbours import NeighbourList, nearest, neighbour_list, symmetric
from eutectic.testing import STRUCTURES

ETHANOL = Structure.from_ase(molecule("CH3CH2OH"))
TINY_CELL = Structure(
    numbers=np.array([1]),
    positions=np.array([[0.3, 0.2, 0.1]]),
    cell=np.diag([1.1, 1.1, 1.1]),
    pbc=np.ones(3, dtype=bool),
)

TEN_HARD_CASES: dict[str, Structure] = {
    "no cell": ETHANOL,
    "dummy cell on a molecule": replace(ETHANOL, cell=np.diag([2.0, 2.0, 2.0])),
    "slab TTF, zero third vector": STRUCTURES["slab_two_periodic"],
    "slab TTF crossing z": replace(STRUCTURES["slab_across_boundary"], pbc=np.array([True, True, False])),
    "slab TTT crossing z": STRUCTURES["slab_across_boundary"],
    "primitive NaCl": STRUCTURES["sodium_chloride"],
    "left-handed": STRUCTURES["left_handed_cell"],
    "unwrapped": STRUCTURES["unwrapped"],
    "rotated TFT": STRUCTURES["slab_on_its_side"],
    "single atom": STRUCTURES["helium"],
    "far pair": STRUCTURES["two_far_atoms"],
    "1.1 Å cell": TINY_CELL,
    "very skewed": STRUCTURES["skewed_cell"],
}


def brute_force(structure: Structure, cutoff: float) -> dict[tuple[int, ...], float]:
    """(target, source, offset) → distance, over every image that could matter."""
    cell = np.asarray(complete_cell(np.where(structure.pbc[:, None], structure.cell, 0.0)))
    inverse = np.linalg.inv(cell)
    heights = 1 / np.linalg.norm(inverse, axis=0)
    fractional = structure.positions @ inverse
    spread = np.ceil(np.ptp(fractional, axis=0) + cutoff / heights).astype(int) + 1
    ranges = [range(-n, n + 1) if p else (0,) for n, p in zip(spread, structure.pbc, strict=True)]
    found = {}
    for offset in itertools.product(*ranges):
        images = structure.positions + np.array(offset) @ cell
        distance = np.linalg.norm(images[None, :] - structure.positions[:, None], axis=-1)
        for t, s in np.argwhere((distance < cutoff) & (distance > 1e-2)):
            found[(int(t), int(s), *offset)] = float(distance[t, s])
    return found


def keys(edges: NeighbourList) -> list[tuple[int, ...]]:
    table = np.column_stack([edges.target, edges.source, edges.offset])
    return [tuple(int(x) for x in row) for row in table]


@pytest.mark.parametrize("name", TEN_HARD_CASES)
@pytest.mark.parametrize("cutoff", [2.9, 5.3])
def test_neighbours_equal_brute_force(name: str, cutoff: float) -> None:
    structure = TEN_HARD_CASES[name]
    edges = neighbour_list([structure], cutoff)
    expected = brute_force(structure, cutoff)
    found = keys(edges)
    assert len(set(found)) == len(found)
    assert set(found) == set(expected)
    np.testing.assert_allclose(edges.distance, [expected[k] for k in found], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", TEN_HARD_CASES)
def test_lists_are_sorted_by_target_then_distance(name: str) -> None:
    edges = neighbour_list([TEN_HARD_CASES[name]], 5.3)
    assert (np.lexsort((edges.distance, edges.target)) == np.arange(len(edges))).all()


def test_offset_belongs_to_the_source() -> None:
    for structure in TEN_HARD_CASES.values():
        edges = neighbour_list([structure], 4.0)
        vector = (
            structure.positions[edges.source]
            + edges.offset @ np.where(structure.pbc[:, None], structure.cell, 0.0)
            - structure.positions[edges.target]
        )
        np.testing.assert_allclose(np.linalg.norm(vector, axis=1), edges.distance, atol=1e-12)


def test_a_molecule_never_sees_images() -> None:
    assert not neighbour_list([TEN_HARD_CASES["dummy cell on a molecule"]], 12.0).offset.any()


# --- the cap ---------------------------------------------------------------------------------


def line(*x: float) -> Structure:
    positions = np.zeros((len(x), 3))
    positions[:, 0] = x
    return Structure(numbers=np.ones(len(x), dtype=np.int64), positions=positions)


def test_nearest_keeps_the_cap() -> None:
    edges = neighbour_list([line(0.0, 1.0, 2.1, 3.3, 4.6)], 10.0)
    kept = edges.take(nearest(edges, 2))
    assert np.bincount(kept.target).tolist() == [2, 2, 2, 2, 2]
    assert keys(kept)[:4] == [(0, 1, 0, 0, 0), (0, 2, 0, 0, 0), (1, 0, 0, 0, 0), (1, 2, 0, 0, 0)]


def test_ties_with_the_last_are_all_kept() -> None:
    edges = neighbour_list([line(-1.0, 0.0, 1.0 + 5e-6, 3.0)], 10.0)
    kept = edges.take(nearest(edges, 1))
    assert kept.source[kept.target == 1].tolist() == [0, 2]
    apart = neighbour_list([line(-1.0, 0.0, 1.0 + 5e-5, 3.0)], 10.0)
    assert nearest(apart, 1).sum() == 4


def test_a_cap_above_the_number_of_neighbours_keeps_all() -> None:
    edges = neighbour_list([ETHANOL], 3.0)
    assert nearest(edges, 1000).all()


@pytest.mark.parametrize(("cap", "shells"), [(1, 12), (8, 12), (12, 12), (13, 18), (18, 18), (19, 42)])
def test_whole_shells_in_a_perfect_crystal(cap: int, shells: int) -> None:
    # fcc: 12, 6, 24 neighbours in the first three shells.
    graph = build_graph(Structure.from_ase(bulk("Cu", a=3.61)), GraphSettings(cutoff=5.0, max_neighbours=cap))
    assert len(graph.main) == shells


@pytest.mark.parametrize("name", ["sodium_chloride", "benzene", "unwrapped", "slab_on_its_side"])
@pytest.mark.parametrize("cap", [1, 4, 7, 15])
def test_order_of_the_atoms_does_not_matter(name: str, cap: int) -> None:
    structure = Structure.from_ase(STRUCTURES[name].to_ase())
    if structure.pbc.all():
        structure = Structure.from_ase(structure.to_ase().repeat((2, 2, 1)))
    settings = GraphSettings(cutoff=6.0, max_neighbours=cap)
    order = np.random.default_rng(0).permutation(len(structure))
    shuffled = replace(
        structure,
        numbers=structure.numbers[order],
        positions=structure.positions[order],
        tags=structure.tags[order],
        fixed=structure.fixed[order],
    )
    one, two = build_graph(structure, settings), build_graph(shuffled, settings)
    for which in ("main", "atom_atom", "atom_edge", "quadruplet"):
        renamed = {(order[t], order[s], *o) for t, s, *o in keys(getattr(two, which))}
        assert renamed == set(keys(getattr(one, which)))


# --- symmetry --------------------------------------------------------------------------------


def assert_reverse(graph: StructureGraph) -> None:
    edges, reverse = graph.main, graph.reverse
    np.testing.assert_array_equal(reverse[reverse], np.arange(len(edges)))
    assert (reverse != np.arange(len(edges))).all()
    np.testing.assert_array_equal(edges.source[reverse], edges.target)
    np.testing.assert_array_equal(edges.offset[reverse], -edges.offset)
    np.testing.assert_allclose(edges.distance[reverse], edges.distance, atol=1e-12)
    assert len(set(keys(edges))) == len(edges)
    assert (np.lexsort((edges.distance, edges.target)) == np.arange(len(edges))).all()


@pytest.mark.parametrize("rule", ["union", "lower_source"])
@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.parametrize("cap", [1, 5, 30])
def test_every_edge_has_its_reverse(name: str, rule: str, cap: int) -> None:
    graph = build_graph(
        STRUCTURES[name],
        GraphSettings(cutoff=5.0, max_neighbours=cap, symmetry=rule),  # type: ignore[arg-type]
    )
    assert_reverse(graph)


@pytest.mark.parametrize("name", STRUCTURES)
def test_union_is_the_nearest_and_their_reverses(name: str) -> None:
    everything = neighbour_list([STRUCTURES[name]], 5.0)
    kept = nearest(everything, 4)
    main, _ = symmetric(everything, kept, "union")
    wanted = {k for k, keep in zip(keys(everything), kept, strict=True) if keep}
    wanted |= {(s, t, -x, -y, -z) for t, s, x, y, z in wanted}
    assert set(keys(main)) == wanted


def test_published_rule_keeps_what_the_lower_source_sees() -> None:
    # Atom 0's nearest is 1, atom 1's is 2: as targets, 1 ← 2 has the higher source and is dropped.
    edges = neighbour_list([line(0.0, 1.0, 1.5)], 1.2)
    main, _ = symmetric(edges, nearest(edges, 1), "lower_source")
    assert set(keys(main)) == {(2, 1, 0, 0, 0), (1, 2, 0, 0, 0)}


def test_caps_follow_the_published_ratios() -> None:
    assert GraphSettings().caps == {"main": 30, "atom_edge": 20, "quadruplet": 8, "atom_atom": 1000}
    assert GraphSettings(max_neighbours=100).caps["quadruplet"] == 26
    assert GraphSettings(max_neighbours=1).caps["quadruplet"] == 1
    assert GraphSettings(quadruplet_neighbours=3).caps["quadruplet"] == 3


def test_quadruplet_edges_need_a_tag_after_the_cap() -> None:
    structure = replace(line(0.0, 1.0, 2.1, 3.3), tags=np.array([0, 0, 0, 2]))
    graph = build_graph(structure, GraphSettings(cutoff=9.0, max_neighbours=30, quadruplet_neighbours=1))
    assert set(keys(graph.quadruplet)) == {(3, 2, 0, 0, 0)}


# --- batches ---------------------------------------------------------------------------------

SETTINGS = GraphSettings(cutoff=5.0, max_neighbours=6)


def test_collate_equals_singles() -> None:
    graphs = [build_graph(s, SETTINGS) for s in STRUCTURES.values()]
    batch = collate(graphs, torch.float64)
    first_atom = first_edge = 0
    for i, graph in enumerate(graphs):
        alone = collate([graph], torch.float64)
        atoms = slice(first_atom, first_atom + len(graph.structure))
        for name in ("numbers", "tags", "positions"):
            assert torch.equal(getattr(batch, name)[atoms], getattr(alone, name))
        assert torch.equal(batch.cell[i], alone.cell[0])
        assert (batch.structure[atoms] == i).all()
        for name in ("main", "atom_atom", "atom_edge", "quadruplet"):
            some = getattr(batch, name)
            mine = (some.target >= atoms.start) & (some.target < atoms.stop)
            one = getattr(alone, name)
            assert torch.equal(some.source[mine] - first_atom, one.source)
            assert torch.equal(some.target[mine] - first_atom, one.target)
            assert torch.equal(some.offset[mine], one.offset)
        edges = slice(first_edge, first_edge + len(graph.main))
        assert torch.equal(batch.reverse[edges] - first_edge, alone.reverse)
        first_atom, first_edge = atoms.stop, edges.stop
    assert (batch.main.target.diff() >= 0).all()
    assert torch.equal(batch.structure[batch.main.source], batch.structure[batch.main.target])


@pytest.mark.parametrize("rule", ["union", "lower_source"])
@pytest.mark.parametrize("name", ["helium", "two_far_atoms"])
def test_no_edges(name: str, rule: str) -> None:
    graph = build_graph(STRUCTURES[name], GraphSettings(symmetry=rule))  # type: ignore[arg-type]
    assert len(graph.main) == len(graph.quadruplet) == len(graph.reverse) == 0
    assert graph.main.offset.shape == (0, 3)
    assert graph.counts == (len(graph.structure), 0, 0, 0)
    batch = collate([graph, graph])
    length, direction = batch.vectors(batch.main)
    assert length.shape == (0,)
    assert direction.shape == (0, 3)


def test_graph_to_changes_only_the_type_of_geometry() -> None:
    graph = collate([build_graph(STRUCTURES["sodium_chloride"], SETTINGS)], torch.float64)
    moved = graph.to("cpu", torch.float32)
    assert moved.positions.dtype == moved.cell.dtype == moved.main.offset.dtype == torch.float32
    assert moved.numbers.dtype == moved.main.source.dtype == moved.reverse.dtype == torch.int64
    assert graph.positions.dtype == torch.float64
    assert graph.to("cpu").positions.dtype == torch.float64


def test_direction_points_from_the_source_to_the_target() -> None:
    pair = replace(line(0.0, 0.0), positions=np.array([[0.0, 0, 0], [0, 0, 2.0]]))
    graph = collate([build_graph(pair, SETTINGS)], torch.float64)
    length, direction = graph.vectors(graph.main)
    assert graph.main.target.tolist() == [0, 1]
    assert length.tolist() == [2.0, 2.0]
    assert direction.tolist() == [[0, 0, -1.0], [0, 0, 1.0]]


def test_vectors_cross_the_boundary() -> None:
    # 0.2 and 3.9 Å in a cell of 4 Å: 0.3 Å apart through the wall, the source moved by one lattice vector.
    wire = Structure(
        numbers=np.array([1, 1]),
        positions=np.array([[0.2, 0, 0], [3.9, 0, 0]]),
        cell=np.diag([4.0, 0, 0]),
        pbc=np.array([True, False, False]),
    )
    graph = collate([build_graph(wire, GraphSettings(cutoff=1.0))], torch.float64)
    length, direction = graph.vectors(graph.main)
    assert graph.main.source.tolist() == [1, 0]
    assert graph.main.offset.tolist() == [[-1, 0, 0], [1, 0, 0]]
    torch.testing.assert_close(length, torch.tensor([0.3, 0.3], dtype=torch.float64))
    torch.testing.assert_close(direction[:, 0], torch.tensor([1.0, -1.0], dtype=torch.float64))


def test_vectors_agree_with_the_search_and_reverse() -> None:
    for structure in STRUCTURES.values():
        built = build_graph(structure, SETTINGS)
        graph = collate([built], torch.float64)
        length, direction = graph.vectors(graph.main)
        torch.testing.assert_close(length, torch.from_numpy(built.main.distance))
        torch.testing.assert_close(direction[graph.reverse], -direction)


def test_vectors_are_differentiable_in_positions_and_cell() -> None:
    graph = collate([build_graph(STRUCTURES["skewed_cell"], GraphSettings(cutoff=3.0))], torch.float64)

    def lengths_and_directions(positions: torch.Tensor, cell: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return graph.with_positions(positions, cell).vectors(graph.main)

    arguments = (graph.positions.clone().requires_grad_(), graph.cell.clone().requires_grad_())
    assert torch.autograd.gradcheck(lengths_and_directions, arguments)
    assert torch.autograd.gradgradcheck(lengths_and_directions, arguments)


@pytest.mark.parametrize("at_once", [1, 40, 10_000])
@pytest.mark.parametrize("settings", [SETTINGS, GraphSettings(cutoff=5.0, max_neighbours=4, smooth_cap=0.5)])
@pytest.mark.parametrize("edge_dropout", [0.0, 0.3])
def test_graphs_built_together_are_those_built_alone(
    at_once: int, settings: GraphSettings, edge_dropout: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit: which structures share a batch must not show in any of them."""
    monkeypatch.setattr("eutectic.graph.graph.AT_ONCE", at_once)
    structures = [*STRUCTURES.values(), *TEN_HARD_CASES.values(), ETHANOL]

    def rng(k: int) -> np.random.Generator:
        return np.random.default_rng((1, k))

    rngs = [rng(k) for k in range(len(structures))]
    together = build_graphs(structures, settings, edge_dropout=edge_dropout, rngs=rngs)
    assert [g.structure for g in together] == structures
    for k, graph in enumerate(together):
        alone = build_graph(structures[k], settings, edge_dropout=edge_dropout, rng=rng(k))
        assert graph.reverse.tobytes() == alone.reverse.tobytes()
        for name in ("main", "atom_atom", "atom_edge", "quadruplet"):
            one, other = getattr(graph, name), getattr(alone, name)
            for column in ("source", "target", "offset", "distance"):
                assert getattr(one, column).tobytes() == getattr(other, column).tobytes()
        if alone.smooth_cutoff is not None and graph.smooth_cutoff is not None:
            assert torch.equal(graph.smooth_cutoff.end, alone.smooth_cutoff.end)


def test_no_structures_no_graphs() -> None:
    assert build_graphs([], SETTINGS) == []


# --- far from the origin ---------------------------------------------------------------------------------------


def _far(structure: Structure, cells: int, away: float) -> Structure:
    """Every atom moved by its own lattice vectors, and everything along the directions that are not periodic."""
    random = np.random.default_rng(cells)
    vectors = np.where(structure.pbc[:, None], structure.cell, 0.0)
    jumps = random.integers(-cells, cells + 1, (len(structure), 3)) @ vectors
    if structure.pbc.all():
        return replace(structure, positions=structure.positions + jumps)
    normals = np.asarray(complete_cell(vectors))[~structure.pbc]
    return replace(structure, positions=structure.positions + jumps + away * normals.sum(axis=0))


FAR_CASES = ("no cell", "slab TTF, zero third vector", "slab TTT crossing z", "unwrapped", "rotated TFT", "very skewed")


@pytest.mark.parametrize("smooth_cap", [0.0, 0.5])
@pytest.mark.parametrize("case", FAR_CASES)
def test_single_precision_does_not_see_how_far_a_structure_is(case: str, smooth_cap: float) -> None:
    settings = GraphSettings(cutoff=6.0, max_neighbours=8, smooth_cap=smooth_cap)
    home = TEN_HARD_CASES[case]
    expected = collate([build_graph(home, settings)])
    for cells, away in ((10, 30.0), (1000, 1e4), (10**6, 1e7)):
        graph = collate([build_graph(_far(home, cells, away), settings)])
        assert graph.positions.dtype == torch.float32
        for name in ("main", "atom_atom", "atom_edge", "quadruplet"):
            edges, others = (sorted(_rows(g, name)) for g in (graph, expected))
            np.testing.assert_allclose(edges, others, atol=1e-6)
        torch.testing.assert_close(graph.positions, expected.positions, atol=1e-6, rtol=0)


def _rows(graph: Graph, name: str) -> list[tuple[float, ...]]:
    edges = getattr(graph, name)
    distance, direction = graph.vectors(edges)
    weight = graph.edge_envelope(name, distance)
    columns = [edges.source, edges.target, *edges.offset.T, distance, *direction.T]
    columns += [] if weight is None else [weight]
    return [tuple(row) for row in torch.stack([c.double() for c in columns], dim=1).tolist()]


@pytest.mark.parametrize("case", FAR_CASES)
@pytest.mark.parametrize("smooth_cap", [0.0, 0.5])
def test_in_double_precision_atoms_stay_and_edges_are_the_same(case: str, smooth_cap: float) -> None:
    settings = GraphSettings(cutoff=6.0, max_neighbours=8, smooth_cap=smooth_cap)
    structure = _far(TEN_HARD_CASES[case], 20, 500.0)
    graph = build_graph(structure, settings)
    double, single = collate([graph], torch.float64), collate([graph])
    np.testing.assert_array_equal(double.positions.numpy(), structure.positions)
    for name in ("main", "atom_atom", "atom_edge", "quadruplet"):
        rows, others = (np.array(_rows(g, name)) for g in (double, single))
        np.testing.assert_allclose(np.delete(rows, [2, 3, 4], 1), np.delete(others, [2, 3, 4], 1), atol=1e-5)
    # Offsets of thousands of cells would not be told apart.
    very_far = build_graph(_far(TEN_HARD_CASES["unwrapped"], 10**5, 0.0), settings)
    assert collate([very_far], torch.float64).main.offset.abs().max() < 10


def test_the_search_refuses_what_would_crash_it() -> None:
    for structure in (
        replace(ETHANOL, positions=ETHANOL.positions + 1e9),
        replace(STRUCTURES["sodium_chloride"], cell=STRUCTURES["sodium_chloride"].cell * 1e160),
    ):
        with pytest.raises(EutecticError, match="neighbour search"):
            neighbour_list([structure], 6.0)
