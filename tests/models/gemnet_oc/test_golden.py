"""GemNet-OC against fairchem-core's, on the small cases of `golden/` (see `benchmarks/golden.py`)."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from golden_cases import CASES, LISTS, GoldenCase, golden_case, rows
from torch import Tensor

from eutectic.graph.padded import layout, quadruplet_list, triplet_list
from eutectic.models.gemnet_oc import GemNetOC, layers
from eutectic.models.gemnet_oc.published import from_published, published_names, settings_from_published

TOLERANCE = 1e-11
"""Relative to the largest entry of an array. Both compute in float64, only the order of sums differs: 1e-13 at most
where this was measured. A weight that is off by a millionth changes the features by 5e-9 or more."""


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> GoldenCase:
    return golden_case(request.param)


def _backbone(case: GoldenCase) -> GemNetOC:
    settings = settings_from_published(case.config)
    backbone = GemNetOC(settings).double()
    backbone.load_state_dict(from_published(case.weights, settings))
    return backbone.eval()


def _difference(got: Tensor, expected: Tensor) -> float:
    """Largest, relative to the largest entry."""
    assert got.shape == expected.shape
    return float((got.detach() - expected).abs().max() / expected.abs().max())


def _same(got: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> None:
    assert _difference(got, expected) <= tolerance


def _predictions(case: GoldenCase, backbone: GemNetOC, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Energies and direct forces of fairchem's heads, one layer each, on our features."""
    graph = case.graph.with_positions(positions)
    features = backbone(graph)
    assert features.edges is not None
    of_atoms = F.linear(features.atoms, case.weights["out_energy"])[:, 0]
    of_edges = F.linear(features.edges, case.weights["out_forces"]) * features.directions
    energies = of_atoms.new_zeros(graph.n_structures).index_add(0, graph.structure, of_atoms)
    return energies, torch.zeros_like(positions).index_add(0, graph.main.target, of_edges)


def test_what_the_cases_cover() -> None:
    cases = {name: golden_case(name) for name in CASES}
    assert len(cases["molecules"].structures) == 3
    periodic = {name for name, case in cases.items() if case["in.pbc"].all()}
    assert periodic == {"slab", "crystal"}
    # An atom that sees itself, and quadruplets across the boundary of the cell.
    source, target = cases["crystal"]["graph.main"].T[:2]
    assert (source == target).any()
    assert all(len(cases[name]["quadruplets"]) > 20 for name in ("molecules", "slab", "crystal"))
    # Tags that take quadruplets away, and caps that cut every list of the slab.
    slab, n_atoms = cases["slab"], len(cases["slab"]["in.numbers"])
    caps = slab.graph_settings.caps
    assert len(slab["graph.quadruplet"]) < n_atoms * caps["quadruplet"]
    assert len(slab["graph.atom_edge"]) == n_atoms * caps["atom_edge"]
    assert len(slab["graph.atom_atom"]) == n_atoms * caps["atom_atom"]
    kinds = ("quad_interaction", "atom_edge_interaction", "edge_atom_interaction", "atom_interaction")
    assert all(cases[name].config[kind] for kind in kinds for name in ("molecule", "molecules", "slab", "crystal"))


def test_graphs_are_the_same_sets_of_edges(case: GoldenCase) -> None:
    for name in LISTS:
        if f"graph.{name}" in case:
            expected = [tuple(row) for row in case[f"graph.{name}"].tolist()]
            got = rows(getattr(case.graph, name))
            assert len(set(expected)) == len(expected)
            assert sorted(got) == sorted(expected)
    order = case.order("main")
    distance, direction = case.graph.vectors(case.graph.main)
    _same(distance, case["graph.distance"][order])
    _same(direction, case["graph.direction"][order])


def _set(*columns: Tensor) -> set[tuple[int, ...]]:
    found = set(zip(*(column.tolist() for column in columns), strict=True))
    assert len(found) == len(columns[0])
    return found


def test_triplets_and_quadruplets_are_the_same_sets(case: GoldenCase) -> None:
    tables = layout(case.graph)
    main = case.order("main")
    out, inner = triplet_list(tables.edge_edge, tables.main, tables.main)
    assert _set(main[out], main[inner]) == _set(*case["triplets.edge_edge"].T)
    near = case.order("atom_edge")
    if "triplets.atom_edge" in case:
        out, inner = triplet_list(tables.atom_edge_table, tables.main, tables.atom_edge)
        assert _set(main[out], near[inner]) == _set(*case["triplets.atom_edge"].T)
    out, inner = triplet_list(tables.atom_edge_table.mT, tables.atom_edge, tables.main)
    assert _set(near[out], main[inner]) == _set(*case["triplets.edge_atom"].T)
    if "quadruplets" in case:
        out, between, inner = quadruplet_list(tables)
        assert _set(main[out], case.order("quadruplet")[between], main[inner]) == _set(*case["quadruplets"].T)


def test_bases(case: GoldenCase) -> None:
    backbone = _backbone(case)
    bases = backbone.bases(case.graph, layout(case.graph, quadruplets=backbone.settings.quadruplet))
    main = case.order("main")
    _same(bases.main, case["bases.raw"][main])
    _same(bases.update, case["bases.update"][main])
    _same(bases.output, case["bases.output"][main])
    _same(bases.edge_edge.radial, case["bases.edge_edge.radial"][main])
    for name in ("quadruplet", "edge_atom", "atom_edge"):
        basis = getattr(bases, name)
        assert (basis is not None) == (f"bases.{name}.radial" in case)
        if basis is not None:
            order = case.order("atom_edge") if name == "atom_edge" else main
            _same(basis.radial, case[f"bases.{name}.radial"][order])


LAYERS = {
    "dense": "dense_ca",
    "edge_edge": "trip_interaction",
    "quadruplet": "quad_interaction",
    "atom_edge": "atom_edge_interaction",
    "edge_atom": "edge_atom_interaction",
    "atom_atom": "atom_interaction",
    "atom_update": "atom_update",
    "concat": "concat_layer",
}


def _watched(case: GoldenCase, backbone: GemNetOC) -> dict[str, Tensor]:
    """Our features under the names of the golden ones."""
    seen: dict[str, Tensor] = {}

    def watch(module: torch.nn.Module | None, *names: str) -> None:
        def keep(_module: torch.nn.Module, _given: object, result: Tensor | tuple[Tensor, ...]) -> None:
            results = result if isinstance(result, tuple) else (result,)
            # As it is now: later layers add to it in place.
            seen.update({name: value.clone() for name, value in zip(names, results, strict=True)})

        if module is not None:
            module.register_forward_hook(keep)

    watch(backbone.atom_embedding, "embedding.atoms")
    watch(backbone.edge_embedding, "embedding.edges")
    for ours, theirs in LAYERS.items():
        watch(getattr(backbone.blocks[0], ours), f"int_blocks.0.{theirs}")
    for i, block in enumerate(backbone.blocks):
        watch(block, f"int_blocks.{i}.atoms", f"int_blocks.{i}.edges")
    for i, block in enumerate(backbone.outputs):
        watch(block, f"out_blocks.{i}.atoms", f"out_blocks.{i}.edges")
    with torch.no_grad():
        features = backbone(case.graph)
    return seen | {"features.atoms": features.atoms, "features.edges": features.edges}


def test_every_layer(case: GoldenCase) -> None:
    seen = _watched(case, _backbone(case))
    compared = {n for n in case.arrays if n.startswith(("embedding.", "int_blocks.", "out_blocks.", "features."))}
    # Of the crystal, what is inside the first block was not kept.
    assert compared < set(seen) if case.name == "crystal" else compared == set(seen)
    main, n_edges = case.order("main"), len(case.graph.main)
    for name in compared:
        expected = case[name]
        _same(seen[name], expected[main] if len(expected) == n_edges else expected)


@pytest.mark.parametrize("recomputing", [False, True])
def test_energies_forces_and_gradients(case: GoldenCase, recomputing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if recomputing:
        # Small models take the same way through the backward pass as large ones.
        monkeypatch.setattr(layers, "SMALL", 0)
    backbone = _backbone(case)
    positions = case.graph.positions.clone().requires_grad_()
    energies, forces = _predictions(case, backbone, positions)
    _same(energies, case["energy"])
    _same(forces, case["forces"])
    (gradient,) = torch.autograd.grad(energies.sum(), positions, retain_graph=True)
    _same(gradient, case["energy_gradient"])

    (energies.square().sum() + forces.square().sum()).backward()
    parameters = dict(backbone.named_parameters())
    ordered = [parameters[name] for name in published_names(backbone.settings).values() if name in parameters]
    assert len(ordered) == len(parameters)
    for parameter, (length, product) in zip(ordered, case["weight_gradients"].tolist(), strict=True):
        gradient, weight = parameter.grad, parameter.detach()
        assert gradient is not None
        assert abs(float(gradient.norm()) - length) <= TOLERANCE * length
        assert abs(float((gradient * weight).sum()) - product) <= TOLERANCE * length * float(weight.norm())


def test_each_weight_that_is_off_by_a_millionth_is_seen() -> None:
    case = golden_case("omissions")  # one block, and so the quickest
    backbone = _backbone(case)
    main = case.order("main")

    def largest() -> float:
        with torch.no_grad():
            features = backbone(case.graph)
        assert features.edges is not None
        atoms = _difference(features.atoms, case["features.atoms"])
        return max(atoms, _difference(features.edges, case["features.edges"][main]))

    assert largest() <= TOLERANCE
    for name, weight in backbone.state_dict().items():
        right = weight.clone()
        weight.mul_(1 + 1e-6)
        assert largest() > 100 * TOLERANCE, name
        weight.copy_(right)
