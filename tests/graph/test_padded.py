"""Tables of triplets and quadruplets against loops over edges."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

from eutectic.atoms import Structure
from eutectic.graph import Edges, Graph, GraphSettings, build_graph, collate
from eutectic.graph.padded import degree_stats, layout, padded_edges, quadruplet_list, reached, triplet_list

Edge = tuple[int, int, tuple[int, int, int]]


def _structure(n: int, seed: int, periodic: bool) -> Structure:
    rng = np.random.default_rng(seed)
    return Structure(
        numbers=rng.integers(1, 90, n),
        positions=rng.uniform(0, 3.5, (n, 3)),
        cell=np.eye(3) * 3.5 + rng.uniform(0, 0.3, (3, 3)) if periodic else np.zeros((3, 3)),
        pbc=np.full(3, periodic),
        tags=rng.integers(0, 3, n),
    )


def _graph(*structures: Structure, cutoff: float = 4.5, k: int = 6, symmetry: str = "union") -> Graph:
    settings = GraphSettings(
        cutoff=cutoff,
        max_neighbours=k,
        atom_edge_neighbours=4,
        quadruplet_neighbours=3,
        symmetry=symmetry,  # type: ignore[arg-type]
    )
    return collate([build_graph(s, settings) for s in structures], torch.float64)


def _edges(edges: Edges) -> list[Edge]:
    offsets = [tuple(int(x) for x in row) for row in edges.offset.tolist()]
    return list(zip(edges.source.tolist(), edges.target.tolist(), offsets, strict=True))  # type: ignore[arg-type]


def _add(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(x + y for x, y in zip(a, b, strict=True))


BATCHES = {
    "molecules": lambda: _graph(_structure(5, 0, False), _structure(2, 1, False), _structure(9, 2, False)),
    "crystals": lambda: _graph(_structure(4, 3, True), _structure(1, 4, True), _structure(3, 5, True)),
    "published rule": lambda: _graph(_structure(4, 6, True), _structure(6, 7, False), symmetry="lower_source"),
    "mixed": lambda: _graph(_structure(1, 8, False), _structure(4, 9, True), _structure(3, 10, False)),
}


@pytest.fixture(params=BATCHES.values(), ids=BATCHES.keys())
def graph(request: pytest.FixtureRequest) -> Graph:
    return request.param()


def test_triplets(graph: Graph) -> None:
    tables = layout(graph)
    main, near = _edges(graph.main), _edges(graph.atom_edge)

    def expected(out: list[Edge], inner: list[Edge], same: bool) -> list[tuple[int, int]]:
        return [
            (e, f)
            for (e, (s, t, o)), (f, (s2, t2, o2)) in product(enumerate(out), enumerate(inner))
            if t == t2 and ((e != f) if same else (s, o) != (s2, o2))
        ]

    cases = [
        (tables.edge_edge, tables.main, tables.main, expected(main, main, same=True)),
        (tables.atom_edge_table, tables.main, tables.atom_edge, expected(main, near, same=False)),
        (tables.atom_edge_table.mT, tables.atom_edge, tables.main, expected(near, main, same=False)),
    ]
    for table, outer, inner, pairs in cases:
        out, into = triplet_list(table, outer, inner)
        got = list(zip(out.tolist(), into.tolist(), strict=True))
        assert out.tolist() == sorted(out.tolist())
        assert len(got) == len(set(got))
        assert set(got) == set(pairs)
        assert pairs


def test_quadruplets(graph: Graph) -> None:
    main, middle = _edges(graph.main), _edges(graph.quadruplet)
    expected = set()
    for (e, (c, a, o_ca)), (q, (b, a2, o_ba)) in product(enumerate(main), enumerate(middle)):
        if a != a2 or (c, o_ca) == (b, o_ba):
            continue
        for f, (d, b2, o_db) in enumerate(main):
            d_from_a = (d, _add(o_db, o_ba))
            if b2 == b and d_from_a != (a, (0, 0, 0)) and d_from_a != (c, o_ca):
                expected.add((e, q, f))
    out, between, inner = quadruplet_list(layout(graph))
    got = list(zip(out.tolist(), between.tolist(), inner.tolist(), strict=True))
    assert out.tolist() == sorted(out.tolist())
    assert len(got) == len(set(got))
    assert set(got) == expected
    assert expected


def test_angles_in_do_not_come_back(graph: Graph) -> None:
    main, middle = _edges(graph.main), _edges(graph.quadruplet)
    expected = {
        (q, f)
        for (q, (b, a, o_ba)), (f, (d, b2, o_db)) in product(enumerate(middle), enumerate(main))
        if b == b2 and (d, _add(o_db, o_ba)) != (a, (0, 0, 0))
    }
    tables = layout(graph)
    q = tables.quadruplets
    assert q is not None
    row, place, slot = q.angle_in.nonzero(as_tuple=True)
    got = zip(q.middle[row, place].tolist(), tables.main.edge[q.source[row, place], slot].tolist(), strict=True)
    assert set(got) == expected


@pytest.mark.parametrize("name", ["main", "atom_atom", "atom_edge", "quadruplet"])
def test_what_is_counted_with_the_batch_is_what_is_there(graph: Graph, name: str) -> None:
    edges = getattr(graph, name)
    counts = torch.bincount(edges.target)
    assert edges.degree_stats == degree_stats(replace(edges, degree_stats=None))
    assert edges.degree_stats.most == counts.max()
    assert reached(edges).tolist() == counts.nonzero()[:, 0].tolist()


def test_slots_spread_and_collect(graph: Graph) -> None:
    slots = padded_edges(graph.main, len(graph.numbers))
    x = torch.randn(len(graph.main), 3)
    spread = slots.to_padded(x)
    torch.testing.assert_close(slots.from_padded(spread.flatten(0, 1)), x)
    torch.testing.assert_close(
        (spread * slots.filled[..., None]).sum(1),
        torch.zeros(len(graph.numbers), 3).index_add(0, graph.main.target, x),
    )


@pytest.mark.parametrize(
    "positions",
    [[[0.0, 0, 0]], [[0.0, 0, 0], [50, 0, 0]], [[0.0, 0, 0], [0.74, 0, 0]]],
    ids=["one atom", "two far apart", "H2"],
)
def test_nothing_to_see(positions: list[list[float]]) -> None:
    n = len(positions)
    graph = _graph(Structure(numbers=np.ones(n, dtype=int), positions=np.array(positions)))
    tables = layout(graph)
    assert not tables.edge_edge.any()
    assert not tables.atom_edge_table.any()
    assert quadruplet_list(tables)[0].tolist() == []


def test_no_quadruplets_if_not_asked_for(graph: Graph) -> None:
    assert layout(graph, quadruplets=False).quadruplets is None


@pytest.mark.parametrize("periodic", [False, True])
def test_counts_are_the_lists_and_what_they_leave_out(periodic: bool) -> None:
    """Counted from degrees against loops over edges, no exclusions."""
    structure = _structure(6, 11, periodic)
    built = build_graph(structure, GraphSettings(cutoff=4.5, max_neighbours=5))
    main, wider, middle = built.main, built.atom_edge, built.quadruplet
    into = [int((main.target == a).sum()) for a in range(6)]
    also = [int((wider.target == a).sum()) for a in range(6)]
    assert built.counts.atoms == 6
    assert built.counts.edges == sum(into)
    assert built.counts.triplets == sum(n * (n + m) for n, m in zip(into, also, strict=True))
    assert built.counts.quadruplets == sum(into[a] * into[b] for a, b in zip(middle.target, middle.source, strict=True))
    listed = quadruplet_list(layout(collate([built], torch.float64)))[0]
    assert 0 < len(listed) <= built.counts.quadruplets
