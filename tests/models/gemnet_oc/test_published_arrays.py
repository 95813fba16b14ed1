"""GemNet-OC against the numbers of the published implementation.

Two sources: numbers committed here, of a full-size JMP-S with weights from a formula; and, where the fixtures are
at hand, every array of a reduced model on three batches.
"""

from __future__ import annotations

import copy
import json
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from eutectic.atoms import Structure
from eutectic.graph import Edges, Graph, GraphSettings, build_graph, collate
from eutectic.graph.padded import layout, quadruplet_list, triplet_list
from eutectic.models.gemnet_oc import GemNetOC, GemNetOCSettings, layers
from eutectic.models.gemnet_oc.published import (
    EMBEDDING,
    from_published,
    published_names,
    settings_from_published,
    shared_parameters,
)

FIXTURES = Path(__file__).parents[3].parent / "shared" / "fixtures" / "gemnet_oc"
needs_fixtures = pytest.mark.skipif(
    not FIXTURES.is_dir(), reason=f"the published implementation's arrays are not at {FIXTURES}"
)


@pytest.fixture(autouse=True)
def whatever_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reduced models take the same way through the backward pass as whole ones."""
    monkeypatch.setattr(layers, "SMALL", 0)


# --- sizes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "edge_features", "count"),
    [
        (GemNetOCSettings.small(), True, 38_842_368),
        (GemNetOCSettings.large(), True, 216_385_536),
        (GemNetOCSettings.small(), False, 28_577_792),
        (GemNetOCSettings.large(), False, 160_581_632),
    ],
    ids=["small", "large", "small without edges", "large without edges"],
)
def test_parameter_counts_are_the_published_ones(settings: GemNetOCSettings, edge_features: bool, count: int) -> None:
    with torch.device("meta"):
        backbone = GemNetOC(settings.model_copy(update={"edge_features": edge_features}))
    embedding = 120 * settings.atom_width  # not counted as backbone there
    assert sum(p.numel() for p in backbone.parameters()) == count + embedding


@pytest.mark.parametrize("settings", [GemNetOCSettings.small(), GemNetOCSettings.tiny()], ids=["small", "tiny"])
@pytest.mark.parametrize("edge_features", [True, False])
def test_every_entry_has_a_published_name(settings: GemNetOCSettings, edge_features: bool) -> None:
    settings = settings.model_copy(update={"edge_features": edge_features})
    with torch.device("meta"):
        backbone = GemNetOC(settings)
    assert set(published_names(settings).values()) == set(backbone.state_dict())
    assert set(shared_parameters(settings)) <= set(dict(backbone.named_parameters()))
    assert len(shared_parameters(settings)) == 12


@needs_fixtures
@pytest.mark.parametrize("size", ["small", "large"])
def test_published_names_come_in_the_published_order_with_the_published_shapes(size: str) -> None:
    settings = getattr(GemNetOCSettings, size)()
    keys = json.loads((FIXTURES / f"jmp_{size[0]}_keys.json").read_text())["keys"]
    theirs = [k for k in keys if k.startswith(("backbone.", "embedding.")) and "seq_energy_pre" not in k]
    names = published_names(settings)
    assert list(names) == theirs
    with torch.device("meta"):
        state = GemNetOC(settings).state_dict()
    assert {k: list(state[ours].shape) for k, ours in names.items()} == {k: keys[k] for k in theirs}


# --- numbers committed here ------------------------------------------------------------------------------------


def _value(name: str, shape: torch.Size) -> Tensor:
    """Weights from a formula of their published name."""
    j = torch.arange(1, shape.numel() + 1, dtype=torch.float64)
    u = 43758.5453123 * torch.sin(12.9898 * j + zlib.crc32(name.encode()) % 1000)
    fan = 1 if name == EMBEDDING else shape[1] if len(shape) == 2 else shape[0] * shape[1]
    return ((2 * (u - u.floor()) - 1) * (3 / fan) ** 0.5).reshape(shape)


@pytest.fixture(scope="module")
def jmp_s() -> GemNetOC:
    settings = GemNetOCSettings.small()
    with torch.device("meta"):
        backbone = GemNetOC(settings).double()
    state: dict[str, Tensor] = {}
    for theirs, ours in published_names(settings).items():
        if ours == "bases.radial.centres":
            state[ours] = torch.linspace(0, 1, 128, dtype=torch.float64)
        elif ours == "bases.radial.sharpness":
            state[ours] = torch.full((128,), 8064.5, dtype=torch.float64)
        elif theirs.endswith("scale_factor"):
            state[ours] = torch.ones((), dtype=torch.float64)
        else:
            state[ours] = _value(theirs, backbone.state_dict()[ours].shape)
    backbone.load_state_dict(state, assign=True)
    return backbone.requires_grad_(False)


def _float32(rows: list[tuple[float, float, float]]) -> np.ndarray:
    return np.array(rows, dtype=np.float32).astype(np.float64)


MOLECULE = Structure(
    numbers=np.array([6, 1, 1, 1, 1, 8]),
    positions=_float32(
        [
            (0, 0, 0),
            (0.65, 0.6, 0.62),
            (-0.63, -0.66, 0.6),
            (-0.61, 0.64, -0.67),
            (0.68, -0.62, -0.6),
            (1.9, 1.2, -1.7),
        ]
    ),
    tags=np.full(6, 2),
)

CRYSTAL = Structure(
    numbers=np.array([29, 8, 1, 6]),
    positions=_float32([(0.1, 0.2, 0.3), (1.9, 1.7, 0.4), (0.7, 2.6, 2.9), (2.8, 0.5, 3.1)]),
    cell=_float32([(4.1, 0.2, -0.1), (0.4, 4.6, 0.3), (-0.2, 0.5, 5.2)]),
    pbc=np.ones(3, dtype=bool),
    tags=np.array([0, 1, 2, 2]),
)


@pytest.mark.parametrize(
    ("structure", "settings", "edges", "atoms", "mean_atoms", "first", "edge_sum", "mean_edges", "vector"),
    [
        (
            MOLECULE,
            GraphSettings(cutoff=8, max_neighbours=30, symmetry="lower_source"),
            {"main": 30, "atom_edge": 30, "quadruplet": 30, "atom_atom": 30},
            36.0297306756,
            0.1458125424,
            (-0.1161601801, -0.1376969560, 0.1147486603, -0.1403548531),
            21.3810604503,
            0.0292038496,
            (-0.0166142323, -0.0053697249, 0.0103551770),
        ),
        (
            CRYSTAL,
            GraphSettings(
                cutoff=6,
                max_neighbours=10,
                atom_edge_neighbours=7,
                quadruplet_neighbours=4,
                atom_atom_neighbours=1000,
                symmetry="lower_source",
            ),
            {"main": 40, "atom_edge": 28, "quadruplet": 16, "atom_atom": 150},
            42.7933345295,
            0.1852127646,
            (0.8551773970, -0.3905759672, -0.0668832712, 0.0484277950),
            33.2958177953,
            0.0357376707,
            (-0.0909911993, -0.0396977990, -0.0718549841),
        ),
    ],
    ids=["molecule", "crystal"],
)
def test_jmp_s(
    jmp_s: GemNetOC,
    structure: Structure,
    settings: GraphSettings,
    edges: dict[str, int],
    atoms: float,
    mean_atoms: float,
    first: tuple[float, ...],
    edge_sum: float,
    mean_edges: float,
    vector: tuple[float, ...],
) -> None:
    graph = collate([build_graph(structure, settings)], torch.float64)
    assert {name: len(getattr(graph, name)) for name in edges} == edges

    features = jmp_s(graph)

    def close(got: Tensor, expected: object) -> None:
        torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64), rtol=2e-10, atol=2e-10)

    close(features.atoms.sum(), atoms)
    close(features.atoms.abs().mean(), mean_atoms)
    close(features.atoms[0, :4], first)
    assert features.edges is not None
    close(features.edges.sum(), edge_sum)
    close(features.edges.abs().mean(), mean_edges)
    into_first = graph.main.target == 0
    close((features.edges[into_first, :1] * features.directions[into_first]).sum(0), vector)


# --- every array of a reduced model ----------------------------------------------------------------------------


@dataclass
class Batch:
    """One fixture; `main` and so on put the fixture's edges in our order."""

    arrays: dict[str, Tensor]
    graph: Graph
    main: Tensor
    atom_edge: Tensor
    quadruplet: Tensor

    def __getitem__(self, name: str) -> Tensor:
        return self.arrays[name]


GRAPHS = {"main": "main", "atom_atom": "a2a", "atom_edge": "a2ee2a", "quadruplet": "qint"}


@pytest.fixture(scope="module", params=["mol", "slab", "bulk"])
def batch(request: pytest.FixtureRequest) -> Batch:
    with np.load(FIXTURES / f"reduced_{request.param}.npz") as file:
        arrays = {k: torch.from_numpy(np.asarray(file[k])) for k in file.files}
    order, lists = {}, {}
    for ours, theirs in GRAPHS.items():
        index = arrays[f"graph|{theirs}|edge_index"].long()
        order[ours] = torch.argsort(index[1], stable=True)
        source, target = index[:, order[ours]]
        offset = arrays[f"graph|{theirs}|cell_offset"][order[ours]].double()
        lists[ours] = Edges(source=source, target=target, offset=offset)
    place = torch.empty_like(order["main"])
    place[order["main"]] = torch.arange(len(place))
    graph = Graph(
        numbers=arrays["in|atomic_numbers"],
        tags=arrays["in|tags"],
        positions=arrays["in|pos"],
        cell=arrays["in|cell"],
        structure=arrays["in|batch"],
        n_atoms=arrays["in|natoms"],
        reverse=place[arrays["graph|main|id_swap"].long()[order["main"]]],
        **lists,
    )
    return Batch(arrays, graph, order["main"], order["atom_edge"], order["quadruplet"])


@pytest.fixture(scope="module")
def reduced() -> tuple[GemNetOC, dict[str, Tensor]]:
    config = json.loads((FIXTURES / "reduced_config.json").read_text())["backbone_config"]
    settings = settings_from_published(config)
    state = {k: v.double() for k, v in load_file(FIXTURES / "reduced_state_dict.safetensors").items()}
    backbone = GemNetOC(settings).double()
    backbone.load_state_dict(from_published(state, settings))
    return backbone, state


def _same(got: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    """Equal relative to the largest entry; to 1e-6 where the fixture is stored in single precision."""
    if expected.dtype == torch.float32:
        tolerance, expected = 1e-6, expected.double()
    assert got.shape == expected.shape
    assert (got - expected).abs().max() <= tolerance * expected.abs().max()


def _rows(*columns: Tensor) -> set[tuple[int, ...]]:
    rows = set(zip(*(c.tolist() for c in columns), strict=True))
    assert len(rows) == len(columns[0])
    return rows


@needs_fixtures
def test_graphs_built_here_are_the_published_ones(batch: Batch) -> None:
    sizes = batch["in|natoms"].tolist()
    periodic = batch["in|pbc"].bool()[:3].numpy()
    settings = GraphSettings(cutoff=12 if periodic.all() else 8, max_neighbours=30, symmetry="lower_source")
    structures = []
    for i, (numbers, positions, tags) in enumerate(
        zip(*(batch[f"in|{k}"].split(sizes) for k in ("atomic_numbers", "pos", "tags")), strict=True)
    ):
        cell = batch["in|cell"][i].numpy() if periodic.all() else np.zeros((3, 3))
        structures.append(
            Structure(
                numbers=numbers.numpy(),
                positions=positions.numpy(),
                tags=tags.numpy(),
                cell=cell,
                pbc=periodic,
            )
        )
    graph = collate([build_graph(s, settings) for s in structures], torch.float64)
    for ours in GRAPHS:
        got, expected = getattr(graph, ours), getattr(batch.graph, ours)
        ours_rows, theirs_rows = (_rows(e.source, e.target, *e.offset.T) for e in (got, expected))
        # Where the cap falls between neighbours of one length (an atom's own images come in such pairs) the
        # published rule keeps either and ours keeps both.
        assert theirs_rows <= ours_rows
        assert len(ours_rows - theirs_rows) <= 0.02 * len(theirs_rows)
        lengths = graph.vectors(got)[0].tolist()
        columns = (got.source, got.target, *got.offset.T)
        length = dict(zip(zip(*(c.tolist() for c in columns), strict=True), lengths, strict=True))
        kept = {(end, round(length[row], 4)) for row in theirs_rows for end in row[:2]}
        ties = [any((end, round(length[row], 4)) in kept for end in row[:2]) for row in ours_rows - theirs_rows]
        assert all(ties)


@needs_fixtures
def test_geometry(batch: Batch) -> None:
    for ours, theirs in GRAPHS.items():
        edges = getattr(batch.graph, ours)
        order = torch.argsort(batch[f"graph|{theirs}|edge_index"][1], stable=True)
        distance, direction = batch.graph.vectors(edges)
        _same(distance, batch[f"graph|{theirs}|distance"][order])
        _same(direction, batch[f"graph|{theirs}|vector"][order])


@needs_fixtures
def test_triplets_and_quadruplets(batch: Batch) -> None:
    tables = layout(batch.graph)
    main, atom_edge, middle = batch.main, batch.atom_edge, batch.quadruplet

    out, inner = triplet_list(tables.edge_edge, tables.main, tables.main)
    assert _rows(main[out], main[inner]) == _rows(batch["idx|e2e|out"], batch["idx|e2e|in"])
    out, inner = triplet_list(tables.atom_edge_table, tables.main, tables.atom_edge)
    assert _rows(main[out], atom_edge[inner]) == _rows(batch["idx|a2e|out"], batch["idx|a2e|in"])
    out, inner = triplet_list(tables.atom_edge_table.mT, tables.atom_edge, tables.main)
    assert _rows(atom_edge[out], main[inner]) == _rows(batch["idx|e2a|out"], batch["idx|e2a|in"])

    out, between, inner = quadruplet_list(tables)
    first = batch["idx|quad|trip_in_to_quad"].long()
    expected = (batch["idx|quad|triplet_in|out"][first], batch["idx|quad|triplet_in|in"][first])
    assert _rows(main[out], middle[between], main[inner]) == _rows(batch["idx|quad|out"], *expected)
    q = tables.quadruplets
    assert q is not None
    assert int(q.angle_in.sum()) == len(batch["idx|quad|triplet_in|in"])


@needs_fixtures
def test_bases(batch: Batch, reduced: tuple[GemNetOC, dict[str, Tensor]]) -> None:
    backbone, _ = reduced
    tables = layout(batch.graph)
    bases = backbone.bases(batch.graph, tables)
    _same(bases.main, batch["basis_raw|radial_basis"][batch.main])
    _same(bases.update, batch["basis|atom_update"][batch.main])
    _same(bases.output, batch["basis|output"][batch.main])
    _same(bases.edge_edge.radial, batch["basis|e2e|rad"][batch.main])
    _same(bases.atom_edge.radial, batch["basis|a2e|rad"][batch.atom_edge])
    _same(bases.edge_atom.radial, batch["basis|e2a|rad"][batch.main])
    _same(bases.quadruplet.radial, batch["basis|qint|rad"][batch.main])
    # Of each middle edge's incoming edges, whatever the order.
    q = tables.quadruplets
    real = q.angle_in.flatten()
    key = (batch.quadruplet[q.middle][..., None] * 10_000 + batch.main[tables.main.edge[q.source]]).flatten()[real]
    expected_key = batch["idx|quad|triplet_in|out"].long() * 10_000 + batch["idx|quad|triplet_in|in"]
    _same(
        bases.quadruplet.circular[real][key.argsort()],
        batch["basis|qint|cir"].double()[expected_key.argsort()],
        1e-6,
    )


@needs_fixtures
def test_every_block(batch: Batch, reduced: tuple[GemNetOC, dict[str, Tensor]]) -> None:
    backbone, _ = reduced
    seen: dict[str, Tensor] = {}
    hooks = []

    def watch(module: torch.nn.Module, name: str) -> None:
        def keep(_module: torch.nn.Module, _args: object, out: object) -> None:
            values = out if isinstance(out, tuple) else (out,)
            names = name.split(",")
            # As it is now: later layers add to it in place.
            seen.update({name: value.clone() for name, value in zip(names, values, strict=True)})

        hooks.append(module.register_forward_hook(keep))

    for i, block in enumerate(backbone.blocks):
        watch(block, f"int_block{i}|h,int_block{i}|m")
        for ours, theirs in {
            "dense": "dense_ca",
            "edge_edge": "trip_interaction",
            "quadruplet": "quad_interaction",
            "atom_edge": "atom_edge_interaction",
            "edge_atom": "edge_atom_interaction",
            "atom_atom": "atom_interaction",
            "atom_update": "atom_update",
            "concat": "concat_layer",
        }.items():
            watch(getattr(block, ours), f"int_block{i}|{theirs}")
    watch(backbone.edge_embedding, "basis|m0")
    watch(backbone.atom_embedding, "h0")
    features = backbone(batch.graph)
    for hook in hooks:
        hook.remove()

    assert len(seen) == 2 + 2 * 10
    for name, got in seen.items():
        expected = batch[name]
        _same(got, expected[batch.main] if len(expected) == len(batch.main) else expected)
    _same(features.atoms, batch["final|x_E"])
    _same(features.edges, batch["final|x_F"][batch.main])


def _heads(state: dict[str, Tensor], kind: str, x: Tensor) -> Tensor:
    """(rows, width) → (rows, 4 tasks), the published heads."""

    def head(task: int) -> Tensor:
        y = x
        for i in (0, 2, 4, 6):
            name = f"output.out_{kind}.{task}.{i}"
            y = F.silu(F.linear(y, state[f"{name}.weight"], state[f"{name}.bias"])) / 0.6
        return F.linear(y, state[f"output.out_{kind}.{task}.8.weight"])[:, 0]

    return torch.stack([head(task) for task in range(4)], dim=1)


@needs_fixtures
def test_single_precision(batch: Batch, reduced: tuple[GemNetOC, dict[str, Tensor]]) -> None:
    """As near to the double-precision numbers as the published implementation in single precision comes, twice over."""
    backbone = copy.deepcopy(reduced[0]).float()
    state = {name: value.float() for name, value in reduced[1].items()}
    graph = batch.graph.to("cpu", torch.float32)
    features = backbone(graph)
    atom_energies = _heads(state, "energy", features.atoms)
    energies = atom_energies.new_zeros(graph.n_structures, 4).index_add(0, graph.structure, atom_energies)
    edge_forces = _heads(state, "forces", features.edges)[:, None, :] * features.directions[:, :, None]
    forces = edge_forces.new_zeros(len(graph.numbers), 3, 4).index_add(0, graph.main.target, edge_forces)
    for name, got in (("energy", energies), ("forces", forces)):
        exact, theirs = batch[f"out|{name}"], batch[f"out32|{name}"].double()
        allowed = 2 * (theirs - exact).abs().max() + 1e-6 * exact.abs().max()
        assert (got.double() - exact).abs().max() <= allowed


@needs_fixtures
def test_energies_forces_loss_and_gradients(batch: Batch, reduced: tuple[GemNetOC, dict[str, Tensor]]) -> None:
    backbone, state = reduced
    positions = batch.graph.positions.clone().requires_grad_()
    graph = batch.graph.with_positions(positions)
    n, b = len(positions), graph.n_structures

    features = backbone(graph)
    atom_energies = _heads(state, "energy", features.atoms)
    energies = atom_energies.new_zeros(b, 4).index_add(0, graph.structure, atom_energies)
    _same(energies, batch["out|energy"])
    edge_forces = _heads(state, "forces", features.edges)[:, None, :] * features.directions[:, :, None]
    forces = edge_forces.new_zeros(n, 3, 4).index_add(0, graph.main.target, edge_forces)
    _same(forces, batch["out|forces"])
    gradients = [-torch.autograd.grad(e.sum(), positions, retain_graph=True)[0] for e in energies.unbind(1)]
    _same(torch.stack(gradients, dim=2), batch["out|neg_dE_dpos"])

    mask = batch["target|task_mask"].double()
    energy_loss = ((energies - batch["target|y"]).abs() * batch["target|y_scale"] * mask).sum() / mask.sum()
    distance = torch.linalg.vector_norm(forces - batch["target|force"] + 1e-6, dim=1)
    scale = (batch["target|force_scale"] * mask)[graph.structure]
    per_structure = energies.new_zeros(b, 4).index_add(0, graph.structure, distance * scale)
    loss = energy_loss + (per_structure / graph.n_atoms[:, None]).sum() / mask.sum()
    _same(loss, batch["out|loss"])

    backbone.zero_grad()
    loss.backward()
    names = published_names(backbone.settings)
    parameters = dict(backbone.named_parameters())
    compared = 0
    for name, expected in batch.arrays.items():
        theirs = name.removeprefix("grad|")
        if name.startswith("grad|") and theirs in names:
            _same(parameters[names[theirs]].grad, expected)
            compared += 1
    assert compared == len(parameters)
