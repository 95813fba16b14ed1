"""Graphs with only the edge lists that are wanted."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from eutectic.graph import LISTS, GraphSettings, StructureGraph, build_graphs
from eutectic.testing import STRUCTURES

SETTINGS = GraphSettings(cutoff=6.0, max_neighbours=4, smooth_cap=0.5)


def _same(a: StructureGraph, b: StructureGraph, name: str) -> bool:
    fields = ("source", "target", "offset", "distance")
    return all(np.array_equal(getattr(getattr(a, name), f), getattr(getattr(b, name), f)) for f in fields)


@pytest.mark.parametrize("wanted", [("main",), (), ("main", "quadruplet"), ("atom_edge", "atom_atom"), LISTS])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_wanted_lists_are_the_same_and_the_others_empty(wanted: tuple[str, ...], dropout: float) -> None:
    structures = list(STRUCTURES.values())

    def graphs(lists: tuple[str, ...]) -> list[StructureGraph]:
        rngs = [np.random.default_rng(i) for i in range(len(structures))]
        return build_graphs(structures, SETTINGS, lists=lists, edge_dropout=dropout, rngs=rngs)

    some_edges = False
    for full, lean in zip(graphs(LISTS), graphs(wanted), strict=True):
        for name in LISTS:
            if name == "main" or name in wanted:
                assert _same(full, lean, name)
            else:
                assert len(getattr(lean, name)) == 0
                some_edges |= len(getattr(full, name)) > 0
        assert np.array_equal(full.reverse, lean.reverse)
        assert full.smooth_cutoff is not None
        assert lean.smooth_cutoff is not None
        columns = [LISTS.index(name) for name in {"main", *wanted}]
        assert torch.equal(full.smooth_cutoff.end[:, columns], lean.smooth_cutoff.end[:, columns])
        assert lean.counts.edges == full.counts.edges
        if "quadruplet" not in wanted:
            assert lean.counts.quadruplets == 0
    assert some_edges or set(wanted) == set(LISTS)


def test_unknown_lists_are_refused() -> None:
    with pytest.raises(ValueError, match="quadruplets"):
        build_graphs([STRUCTURES["water"]], SETTINGS, lists=("quadruplets",))
