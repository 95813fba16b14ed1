"""GotenNet: its spherical harmonics, one layer against a plain formula, and the last neighbour that leaves."""

from __future__ import annotations

import math

import numpy as np
import torch
from ase import Atoms
from ase.build import molecule
from scipy.spatial.transform import Rotation
from torch import Tensor

from eutectic.atoms import Structure
from eutectic.graph import Graph, GraphSettings, build_graph, collate
from eutectic.models.gotennet import DEGREES, ROUNDING, GotenNet, GotenNetSettings, spherical_harmonics
from eutectic.models.heads import HeadSettings
from eutectic.models.multitask import MultitaskModel, TaskSlice

GRAPH = GraphSettings(cutoff=5.0, max_neighbours=100)


def gotennet() -> GotenNet:
    torch.manual_seed(0)
    return GotenNet(GotenNetSettings.tiny().for_graphs([GRAPH])).double()


def graph_of(atoms: Atoms) -> Graph:
    return collate([build_graph(Structure.from_ase(atoms), GRAPH)], torch.float64)


def test_spherical_harmonics_have_norm_one_and_the_legendre_polynomials_as_products() -> None:
    torch.manual_seed(0)
    u, v = torch.nn.functional.normalize(torch.randn(2, 50, 3, dtype=torch.float64), dim=-1)
    a, b = spherical_harmonics(u), spherical_harmonics(v)
    cosine = (u * v).sum(-1)
    for degree, expected in enumerate([cosine, 1.5 * cosine.square() - 0.5]):
        x, y = (s.split(DEGREES, dim=1)[degree] for s in (a, b))
        torch.testing.assert_close(x.square().sum(-1), torch.ones(50, dtype=torch.float64))
        torch.testing.assert_close((x * y).sum(-1), expected)


def test_a_layer_is_its_formula() -> None:
    """Messages, refinement and feed-forward written out for every pair, without tables, pieces or sums by index."""
    backbone, graph = gotennet(), graph_of(molecule("CH3OH"))
    layer, width, n_heads = backbone.layers[0], 16, 4
    n, edges = len(graph.numbers), graph.main
    distance, direction = graph.vectors(edges)
    _, envelope = backbone.basis(distance)
    geometry = backbone._geometry(graph, direction, envelope)
    h = torch.randn(n, width, dtype=torch.float64)
    x = torch.randn(n, 8, width, dtype=torch.float64)
    t = torch.randn(len(edges), width, dtype=torch.float64)

    harmonics = spherical_harmonics(direction)
    query, key = layer.query_and_key(h).split(width, dim=-1)
    values = layer.values(h).reshape(n, 5, width)
    new_h, new_x, new_t = h.clone(), x.clone(), t.clone()
    degree = [0] * 3 + [1] * 5
    for i in range(n):
        into = [e for e in range(len(edges)) if int(edges.target[e]) == i]
        weight = {}
        for e in into:
            product = query[i] * key[edges.source[e]] * torch.nn.functional.silu(layer.edge_attention(t[e]))
            weight[e] = torch.exp(product.reshape(n_heads, -1).sum(1)) * envelope[e]
        total = 1 + torch.stack(list(weight.values())).sum(0)
        for e in into:
            j = int(edges.source[e])
            attention = (weight[e] / total / math.sqrt(width)).repeat_interleave(width // n_heads)
            filters = layer.filters(t[e] * envelope[e]).reshape(5, width)
            o = (attention + filters) * values[j]
            # Blocks: along for degrees 1 and 2, scalars, carried for degrees 1 and 2.
            new_h[i] += o[2]
            for m in range(8):
                new_x[i, m] += o[degree[m]] * harmonics[e, m] + o[3 + degree[m]] * x[j, m]
    for e in range(len(edges)):
        i, j = int(edges.target[e]), int(edges.source[e])
        w = torch.zeros(width, dtype=torch.float64)
        for d, part in enumerate((slice(0, 3), slice(3, 8))):
            r = harmonics[e, part]
            q, k = layer.refine_query(new_x[i, part]), layer.refine_keys[d](new_x[j, part])
            q, k = (a - r[:, None] * (r[:, None] * a).sum(0) for a in (q, k))
            w = w + (q * k).sum(0)
        new_t[e] = t[e] + torch.nn.functional.silu(layer.refine_gate(t[e])) * w
    y = layer.mix(new_x)
    norm = (y.square().sum(1) + ROUNDING**2).sqrt()
    scalar, gate = layer.gates(torch.cat([new_h, norm], dim=-1)).split(width, dim=-1)
    expected = (new_h + scalar, new_x + gate[:, None] * y, new_t)

    for found, wanted in zip(layer(h, x, t, geometry), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


def energies_and_forces(atoms: list[Atoms]) -> tuple[Tensor, Tensor]:
    model = MultitaskModel(
        gotennet(), {"t": {"energy": HeadSettings(), "forces": HeadSettings(kind="gradient_forces")}}
    )
    model = model.double().eval()
    found = []
    for one in atoms:
        graph = graph_of(one)
        part = TaskSlice("t", (0, 1), (0, len(one)), (0, len(graph.main)))
        found.append(model(graph, [part])["t"])
    return torch.cat([f["energy"].detach() for f in found]), torch.stack([f["forces"].detach() for f in found])


def test_the_last_neighbour_leaves_without_a_jump() -> None:
    """A softmax alone would keep the weight of an only neighbour at one until it is gone."""
    distances = 5.0 + np.array([-2e-3, -1e-3, 1e-3, 2e-3])
    energies, forces = energies_and_forces([Atoms("NO", [[0, 0, 0], [d, 0, 0]]) for d in distances])
    near, _ = energies_and_forces([Atoms("NO", [[0, 0, 0], [1.2, 0, 0]])])
    assert abs(float(near[0] - energies[-1])) > 1e-3
    assert float(energies.max() - energies.min()) < 1e-7
    assert float(forces.abs().max()) < 1e-5


def test_a_lone_atom_is_finite() -> None:
    energies, forces = energies_and_forces([Atoms("He")])
    assert bool(energies.isfinite().all())
    assert bool((forces == 0).all())


def test_vectors_and_scalars_turn_and_stay() -> None:
    turn = Rotation.from_rotvec([0.3, -1.1, 0.7]).as_matrix()
    atoms = molecule("CH3CH2OH")
    turned = atoms.copy()
    turned.positions = atoms.positions @ turn.T
    with torch.no_grad():
        before, after = (gotennet()(graph_of(a)) for a in (atoms, turned))
    assert before.vectors is not None
    assert after.vectors is not None
    torch.testing.assert_close(before.atoms, after.atoms, rtol=1e-9, atol=1e-9)
    expected = torch.einsum("ij,ajw->aiw", torch.from_numpy(turn), before.vectors)
    torch.testing.assert_close(after.vectors, expected, rtol=1e-9, atol=1e-9)
