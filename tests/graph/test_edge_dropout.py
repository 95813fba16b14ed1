"""Dropping edges at random when a graph is built for training."""

from __future__ import annotations

import numpy as np
import pytest

from eutectic.atoms import Structure
from eutectic.graph import GraphSettings, StructureGraph, build_graph

SETTINGS = GraphSettings(cutoff=8.0, max_neighbours=5)


def _structure() -> Structure:
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.arange(3)] * 3), axis=-1).reshape(-1, 3)
    return Structure(numbers=np.full(27, 29), positions=2.5 * grid + rng.uniform(-0.3, 0.3, (27, 3)))


def _rows(graph: StructureGraph, name: str) -> set[tuple[int, ...]]:
    edges = getattr(graph, name)
    return set(map(tuple, np.column_stack([edges.source, edges.target, edges.offset]).tolist()))


def test_drops_the_share_asked_for_and_keeps_the_rest_in_order() -> None:
    whole = build_graph(_structure(), SETTINGS)
    dropped = build_graph(_structure(), SETTINGS, edge_dropout=0.3, rng=np.random.default_rng(0))
    assert 0.6 < len(dropped.atom_atom) / len(whole.atom_atom) < 0.8
    assert _rows(dropped, "atom_atom") < _rows(whole, "atom_atom")
    for name in ("atom_edge", "quadruplet"):
        assert _rows(dropped, name) <= _rows(dropped, "atom_atom")
    for name in ("main", "atom_atom", "atom_edge", "quadruplet"):
        assert (np.diff(getattr(dropped, name).target) >= 0).all()


def test_main_edges_keep_their_reverse() -> None:
    graph = build_graph(_structure(), SETTINGS, edge_dropout=0.3, rng=np.random.default_rng(1))
    main, reverse = graph.main, graph.reverse
    assert (main.source[reverse] == main.target).all()
    assert (main.offset[reverse] == -main.offset).all()
    assert (reverse[reverse] == np.arange(len(main))).all()


def test_is_repeated_by_its_generator() -> None:
    first, second, other = (
        build_graph(_structure(), SETTINGS, edge_dropout=0.1, rng=np.random.default_rng(seed)) for seed in (3, 3, 4)
    )
    assert _rows(first, "atom_atom") == _rows(second, "atom_atom") != _rows(other, "atom_atom")


def test_needs_a_generator() -> None:
    with pytest.raises(ValueError, match="rng"):
        build_graph(_structure(), SETTINGS, edge_dropout=0.1)
