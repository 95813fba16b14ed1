"""GemNet-OC as a function: derivatives, odd structures, scale factors, switches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from eutectic.atoms import Structure
from eutectic.graph import Graph, GraphSettings, build_graph, collate
from eutectic.models import BACKBONES, Backbone
from eutectic.models.gemnet_oc import GemNetOC, GemNetOCSettings, fit_scale_factors, layers
from eutectic.models.gemnet_oc.interaction import Messages
from eutectic.models.gemnet_oc.layers import ScaleFactor, he_orthogonal_
from eutectic.models.gemnet_oc.output import OutputBlock

GRAPH = GraphSettings(cutoff=6.0, max_neighbours=6)

MINIMAL = GemNetOCSettings.tiny().model_copy(
    update={
        "atom_width": 6,
        "edge_width": 5,
        "triplet_in": 3,
        "triplet_out": 4,
        "quadruplet_in": 2,
        "quadruplet_out": 3,
        "pair_in": 2,
        "pair_out": 3,
        "radial_width": 3,
        "circular_width": 2,
        "spherical_width": 2,
        "num_radial": 5,
        "num_spherical": 3,
    }
)


def _molecule(n: int, seed: int = 0) -> Structure:
    rng = np.random.default_rng(seed)
    # A jittered grid: no two atoms too close.
    grid = np.stack(np.meshgrid(*[np.arange(3)] * 3), axis=-1).reshape(-1, 3)[rng.permutation(27)[:n]]
    return Structure(numbers=rng.integers(1, 9, n), positions=1.4 * grid + rng.uniform(-0.2, 0.2, (n, 3)))


def _crystal(seed: int = 0) -> Structure:
    rng = np.random.default_rng(seed)
    corners = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
    return Structure(
        numbers=np.array([29, 29, 79, 8]),
        positions=3.7 * corners + rng.uniform(-0.1, 0.1, (4, 3)),
        cell=3.7 * np.eye(3) + rng.uniform(-0.1, 0.1, (3, 3)),
        pbc=np.ones(3, dtype=bool),
        tags=np.array([0, 1, 2, 0]),
    )


def _graph(*structures: Structure, dtype: torch.dtype = torch.float64) -> Graph:
    return collate([build_graph(s, GRAPH) for s in structures], dtype)


def _model(settings: GemNetOCSettings = MINIMAL, dtype: torch.dtype = torch.float64) -> GemNetOC:
    torch.manual_seed(0)
    return GemNetOC(settings).to(dtype)


def test_is_in_the_table() -> None:
    entry = BACKBONES["gemnet_oc"]
    backbone = entry.module(entry.settings.model_validate(MINIMAL.model_dump()))
    assert isinstance(backbone, Backbone)
    assert (backbone.atom_width, backbone.edge_width) == (6, 5)
    with pytest.raises(ValidationError, match="atom_widht"):
        entry.settings.model_validate({"atom_widht": 3})


@pytest.mark.parametrize("structure", [_molecule(4), _crystal()], ids=["molecule", "crystal"])
def test_derivatives_of_both_orders(structure: Structure) -> None:
    backbone = _model()
    graph = _graph(structure)

    def outputs(positions: Tensor) -> tuple[Tensor, Tensor]:
        features = backbone(graph.with_positions(positions))
        assert features.edges is not None
        return features.atoms.sum(0)[:2], features.edges.sum(0)[:2]

    positions = graph.positions.clone().requires_grad_()
    assert torch.autograd.gradcheck(outputs, (positions,), fast_mode=True)
    assert torch.autograd.gradgradcheck(outputs, (positions,), fast_mode=True)


def test_forces_can_be_trained_on() -> None:
    backbone = _model()
    graph = _graph(_molecule(5), _crystal())
    weights = [backbone.bases.quadruplet_spherical, backbone.blocks[0].edge_atom.bilinear.weight]

    def loss() -> Tensor:
        positions = graph.positions.clone().requires_grad_()
        energy = backbone(graph.with_positions(positions)).atoms.pow(2).sum()
        (forces,) = torch.autograd.grad(energy, positions, create_graph=True)
        return forces.pow(2).sum()

    for weight, gradient in zip(weights, torch.autograd.grad(loss(), weights), strict=True):
        step = torch.randn_like(weight) * 1e-5
        with torch.no_grad():
            weight.add_(step)
            after = loss_value(loss)
            weight.sub_(2 * step)
            before = loss_value(loss)
            weight.add_(step)
        torch.testing.assert_close((after - before) / 2, (gradient * step).sum(), rtol=1e-4, atol=1e-12)


def loss_value(loss: object) -> Tensor:
    with torch.enable_grad():
        return loss().detach()  # type: ignore[operator]


def test_strain_has_a_derivative() -> None:
    backbone = _model()
    graph = _graph(_crystal())

    def energy(strain: Tensor) -> Tensor:
        deform = torch.eye(3, dtype=strain.dtype) + strain
        return backbone(graph.with_positions(graph.positions @ deform, graph.cell @ deform)).atoms.sum()

    strain = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(energy, (strain,))


@pytest.mark.parametrize(
    "positions",
    [
        [[0.0, 0, 0]],
        [[0.0, 0, 0], [50, 0, 0]],
        [[0.0, 0, 0], [0.74, 0, 0]],
        [[0.0, 0, -1.2], [0, 0, 0], [0, 0, 1.2]],
    ],
    ids=["one atom", "two far apart", "no triplets", "in line"],
)
def test_odd_structures(positions: list[list[float]]) -> None:
    backbone = _model()
    structure = Structure(numbers=np.full(len(positions), 6), positions=np.array(positions))
    alone = _graph(structure)
    x = alone.positions.clone().requires_grad_()
    features = backbone(alone.with_positions(x))
    assert features.edges is not None
    assert features.edges.shape == (len(alone.main), backbone.edge_width)
    (features.atoms.sum() + features.edges.sum()).backward()
    assert x.grad is None or x.grad.isfinite().all()
    # Every parameter takes part, whatever the batch (or ranks of a distributed run would wait for each other).
    assert all(p.grad is not None and p.grad.isfinite().all() for p in backbone.parameters())

    together = backbone(_graph(_molecule(5), structure, _crystal()))
    torch.testing.assert_close(together.atoms[5 : 5 + len(positions)], features.atoms, rtol=1e-10, atol=1e-10)


def test_a_batch_is_its_structures() -> None:
    backbone = _model()
    structures = [_molecule(7, 1), _crystal(1), _molecule(3, 2)]
    together = backbone(_graph(*structures))
    apart = [backbone(_graph(s)) for s in structures]
    for name in ("atoms", "edges", "directions"):
        joined = torch.cat([getattr(f, name) for f in apart])
        torch.testing.assert_close(getattr(together, name), joined, rtol=1e-10, atol=1e-10)


def test_rotation_and_order_of_atoms() -> None:
    backbone = _model()
    structure = _crystal()
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    order = np.array([2, 0, 3, 1])
    moved = Structure(
        numbers=structure.numbers[order],
        positions=structure.positions[order] @ rotation,
        cell=structure.cell @ rotation,
        pbc=structure.pbc,
        tags=structure.tags[order],
    )
    before, after = backbone(_graph(structure)), backbone(_graph(moved))
    torch.testing.assert_close(after.atoms, before.atoms[order], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("switch", ["quadruplet", "atom_edge", "edge_atom", "atom_atom", "edge_features"])
def test_each_part_can_be_left_out(switch: str) -> None:
    backbone = _model(MINIMAL.model_copy(update={switch: False}))
    features = backbone(_graph(_molecule(5)))
    assert (features.edges is None) == (switch == "edge_features")
    features.atoms.sum().backward()
    if switch == "edge_features":
        assert all(p.grad is not None for p in backbone.parameters())


def test_training_makes_up_for_dropped_edges_only_where_asked() -> None:
    plain, boosted = _model(), _model(MINIMAL.model_copy(update={"edge_dropout": 0.1}))
    graph = _graph(_molecule(5))
    torch.testing.assert_close(boosted.eval()(graph).atoms, plain(graph).atoms)
    assert not torch.allclose(boosted.train()(graph).atoms, plain(graph).atoms)


def _gradients(backbone: GemNetOC, graph: Graph) -> tuple[Tensor, dict[str, Tensor]]:
    features = backbone(graph)
    loss = features.atoms.square().sum() + features.edges.square().sum()
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in backbone.named_parameters() if p.grad is not None}
    backbone.zero_grad()
    return loss.detach(), gradients


def test_what_is_made_again_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, graph = _model(), _graph(_molecule(6), _crystal())
    kept = _gradients(backbone, graph)
    monkeypatch.setattr(layers, "SMALL", 0)
    again = _gradients(backbone, graph)
    torch.testing.assert_close(again, kept, rtol=0, atol=0)


def test_blocks_computed_twice_give_the_same() -> None:
    backbone, graph = _model(), _graph(_molecule(6), _crystal())
    loss, expected = _gradients(backbone, graph)
    backbone.checkpoint_blocks = True
    again, got = _gradients(backbone, graph)
    torch.testing.assert_close(again, loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


def _alive(backbone: GemNetOC, graph: Graph) -> int:
    """Bytes that are still there after the forward pass."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        features = backbone(graph)
    assert features.atoms.requires_grad
    return sum(event.self_cpu_memory_usage for event in profile.key_averages())


def test_what_is_cheap_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "SMALL", 0)
    backbone, graph = _model(GemNetOCSettings.tiny()), _graph(_molecule(9), _crystal())
    lean = _alive(backbone, graph)
    token = layers._SAVE_ALL.set(True)
    everything = _alive(backbone, graph)
    layers._SAVE_ALL.reset(token)
    assert 0 < lean < 0.85 * everything


@pytest.mark.parametrize("structure", [_molecule(8), _crystal()], ids=["molecule", "crystal"])
def test_matrix_products_in_bfloat16(structure: Structure) -> None:
    backbone = _model(GemNetOCSettings.tiny(), torch.float32)
    graph = _graph(structure, dtype=torch.float32)
    _, expected = _gradients(backbone, graph)
    exact = backbone(graph)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = backbone(graph)
        loss = mixed.atoms.float().square().sum() + mixed.edges.float().square().sum()
    loss.backward()
    got = {name: p.grad for name, p in backbone.named_parameters() if p.grad is not None}
    assert all(p.dtype == torch.float32 for p in got.values())
    # Geometry stays exact; eight bits of mantissa everywhere else.
    torch.testing.assert_close(mixed.directions, exact.directions)
    assert (mixed.atoms - exact.atoms).norm() < 0.03 * exact.atoms.norm()
    length = torch.stack([p.norm() for p in expected.values()]).norm()
    error = torch.stack([(got[name] - p).norm() for name, p in expected.items()]).norm()
    assert error < 0.1 * length


class TestScaleFactors:
    def test_fitted_ones_keep_variance(self) -> None:
        backbone = _model(GemNetOCSettings.tiny(), torch.float32)
        graphs = [_graph(*(_molecule(9, s + 4 * b) for s in range(4)), dtype=torch.float32) for b in range(2)]
        fitted = fit_scale_factors(backbone, graphs)
        assert len(fitted) == 2 * 11 + 3 * 2
        assert all(0.1 < value < 100 for value in fitted.values())
        assert backbone.training

        ratios = {}

        def watch(module: torch.nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], out: Tensor) -> None:
            given = kwargs["reference"] if "reference" in kwargs else args[0]
            if "reference_rows" not in kwargs:
                ratios[module] = (out.var(0).mean() / given.var(0).mean()).item()

        for module in backbone.modules():
            if isinstance(module, ScaleFactor):
                module.register_forward_hook(watch, with_kwargs=True)
            elif isinstance(module, Messages):
                module.radial.register_forward_hook(watch, with_kwargs=True)
            elif isinstance(module, OutputBlock):
                module.edge_radial.register_forward_hook(watch, with_kwargs=True)
        backbone(_graph(*(_molecule(9, s) for s in range(4)), dtype=torch.float32))
        assert len(ratios) == 2 * 9 + 3 * 2
        assert all(0.5 < ratio < 2 for ratio in ratios.values())

    def test_fitting_again_gives_the_same(self) -> None:
        backbone = _model()
        graphs = [_graph(_molecule(8), _crystal())]
        assert fit_scale_factors(backbone, graphs) == fit_scale_factors(backbone, graphs)

    def test_what_nothing_reaches_stays_one(self) -> None:
        backbone = _model()
        h2 = Structure(numbers=np.ones(2, dtype=int), positions=np.array([[0.0, 0, 0], [0.74, 0, 0]]))
        fitted = fit_scale_factors(backbone, [_graph(h2)])
        assert fitted["blocks.0.quadruplet.scale_sum"] == 1
        assert all(np.isfinite(list(fitted.values())))

    def test_no_batches(self) -> None:
        with pytest.raises(ValueError, match="no batch"):
            fit_scale_factors(_model(), [])


def test_weights_start_standardised() -> None:
    weight = torch.empty(32, 64)
    he_orthogonal_(weight)
    torch.testing.assert_close(weight.mean(1), torch.zeros(32), atol=1e-6, rtol=0)
    torch.testing.assert_close(weight.var(1), torch.full((32,), 1 / 64), rtol=1e-3, atol=0)
    basis = torch.empty(16, 5, 8)
    he_orthogonal_(basis)
    torch.testing.assert_close(basis.var((0, 1)), torch.full((8,), 1 / 80), rtol=1e-3, atol=0)
