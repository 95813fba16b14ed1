"""Parts of models: their names, backbones without their last blocks, low-rank changes."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from ase.build import molecule
from torch import nn

from eutectic.atoms import EutecticError, Structure
from eutectic.graph import Graph, GraphSettings, build_graph, collate
from eutectic.models.backbone import Backbone
from eutectic.models.fewer_blocks import fewer_blocks, load_fewer_blocks, number_of_blocks
from eutectic.models.heads import HeadSettings
from eutectic.models.lora import add_low_rank, merge_low_rank, weight_matrices
from eutectic.models.multitask import MultitaskModel, TaskSlice
from eutectic.models.parts import REST, depth, part_names, part_of, parts_named
from eutectic.models.registry import BACKBONES, backbone_entry

GRAPH = GraphSettings(cutoff=5.0)


def tiny(name: str) -> Backbone:
    torch.manual_seed(0)
    entry = backbone_entry(name)
    return entry.module(entry.settings.tiny().for_graphs([GRAPH]))


def graph_for(backbone: Backbone) -> Graph:
    structures = [Structure.from_ase(molecule(name)) for name in ("CH3CH2OH", "H2O", "C6H6")]
    return collate([build_graph(s, GRAPH, lists=backbone.edge_lists) for s in structures], torch.float64)


def model_of(backbone: Backbone) -> MultitaskModel:
    heads = {"energy": HeadSettings(), "forces": HeadSettings(kind="gradient_forces")}
    return MultitaskModel(backbone, {"mine": heads}).double()


def predictions(model: MultitaskModel) -> dict[str, Any]:
    graph = graph_for(model.backbone)
    part = TaskSlice("mine", (0, 3), (0, len(graph.numbers)), (0, len(graph.main)))
    return {name: value.detach().numpy() for name, value in model.eval()(graph, [part])["mine"].items()}


@pytest.mark.parametrize("name", BACKBONES)
def test_every_parameter_is_in_one_part_of_its_own(name: str) -> None:
    backbone = tiny(name)
    n = number_of_blocks(backbone.settings)
    names = part_names(backbone)
    assert names[0] == "embedding"
    assert names[-3:] == ["blocks", "backbone", "heads"]
    assert [part for part in names if part.startswith("block_")] == [f"block_{k}" for k in range(n or 0)]
    parameters = [parameter for parameter, _ in backbone.named_parameters()]
    found = {parameter: part_of(backbone, parameter) for parameter in parameters}
    assert REST not in found.values()
    for parameter in parameters:
        beginnings = [part for part, some in backbone.parts.items() if parameter.startswith(tuple(some))]
        assert beginnings == [found[parameter]]
    assert set(found.values()) == set(names[:-3])
    assert depth(backbone, "readout") == 0
    assert [depth(backbone, f"block_{k}") for k in range(n or 0)] == list(range(n or 0, 0, -1))
    assert depth(backbone, "embedding") == (n or 0) + 1


def test_parts_by_name() -> None:
    backbone = tiny("painn")
    assert parts_named(backbone, ["blocks"], "freeze") == ("block_0", "block_1")
    assert parts_named(backbone, ["heads", "embedding"], "freeze") == ("embedding", "heads")
    assert parts_named(backbone, ["backbone"], "freeze") == ("embedding", "block_0", "block_1", "readout", REST)
    with pytest.raises(
        EutecticError, match=r"'embeddingx'.*embedding, block_0, block_1, readout, blocks, backbone, heads"
    ):
        parts_named(backbone, ["embeddingx"], "freeze")


@pytest.mark.parametrize("name", BACKBONES)
def test_fewer_blocks_have_the_weights_of_the_first(name: str) -> None:
    whole = tiny(name)
    settings = fewer_blocks(whole.settings, 1, "keep_blocks")
    small = backbone_entry(name).module(settings)
    load_fewer_blocks(small, whole)
    assert number_of_blocks(settings) == 1
    theirs = dict(whole.named_parameters())
    for parameter, value in small.named_parameters():
        full = theirs[parameter]
        assert torch.equal(value, full[tuple(slice(n) for n in value.shape)])
        assert value.shape == full.shape or "readout" in part_of(small, parameter)
    assert np.isfinite(predictions(model_of(small))["energy"]).all()


def test_fewer_blocks_of_gemnet_leave_out_the_features_of_the_others() -> None:
    """The small model gives what the whole one gives where the last output block's features are zero."""
    whole: Any = tiny("gemnet_oc")
    small: Any = backbone_entry("gemnet_oc").module(fewer_blocks(whole.settings, 1, "keep_blocks"))
    load_fewer_blocks(small, whole)
    cut = copy.deepcopy(whole)
    with torch.no_grad():
        for readout in (cut.atom_readout, cut.edge_readout):
            width = readout.dense.weight.shape[0]
            readout.dense.weight[:, 2 * width :] = 0.0
    graph = graph_for(whole)
    expected, found = cut.double()(graph), small.double()(graph)
    torch.testing.assert_close(found.atoms, expected.atoms)
    torch.testing.assert_close(found.edges, expected.edges)


def test_blocks_that_are_not_there() -> None:
    settings = tiny("painn").settings
    with pytest.raises(EutecticError, match=r"keep_blocks: 9, for a model with 2 blocks.*from 1 to 2"):
        fewer_blocks(settings, 9, "keep_blocks")
    foreign = settings.model_copy()
    object.__setattr__(foreign, "__class__", type("OtherSettings", (type(settings),), {"blocks_setting": None}))
    with pytest.raises(EutecticError, match="1 blocks of a Other"):
        fewer_blocks(foreign, 1, "keep_blocks")


@pytest.mark.parametrize("name", BACKBONES)
def test_low_rank_changes_begin_as_nothing_and_end_in_the_weights(name: str) -> None:
    model = model_of(tiny(name))
    before, weights = predictions(model), copy.deepcopy(model.state_dict())
    n = add_low_rank(model.backbone, 3)
    assert n >= 10
    after = predictions(model)
    for prop, values in before.items():
        assert np.array_equal(after[prop], values)
    trained = [parameter for parameter, p in model.backbone.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * n
    # As if trained: B is no longer zero.
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter, p in model.backbone.named_parameters():
            if parameter.endswith(".b"):
                p.normal_(0.0, 0.05)
    changed = predictions(model)
    assert np.abs(changed["energy"] - before["energy"]).max() > 1e-3
    copied = copy.deepcopy(model)
    merge_low_rank(copied.backbone)
    assert copied.state_dict().keys() == weights.keys()
    for prop, values in predictions(copied).items():
        np.testing.assert_allclose(values, changed[prop], rtol=0, atol=1e-12)
    assert all(p.requires_grad for p in copied.parameters())
    # The changes are of the rank that was asked for, and of nothing but weight matrices.
    for parameter, value in copied.state_dict().items():
        difference = value - weights[parameter]
        if difference.ndim == 2 and difference.abs().max() > 0:
            assert torch.linalg.matrix_rank(difference, rtol=1e-8) <= 3
        elif difference.ndim != 2:
            assert difference.abs().max() == 0


def test_forces_with_low_rank_changes_are_derivatives() -> None:
    model = model_of(tiny("gotennet"))
    add_low_rank(model.backbone, 2)
    with torch.no_grad():
        for parameter, p in model.backbone.named_parameters():
            if parameter.endswith(".b"):
                p.normal_(0.0, 0.1)
    atoms = molecule("CH3CH2OH")
    energies = []
    for shift in (-1e-4, 1e-4):
        moved = atoms.copy()
        moved.positions[2, 1] += shift
        graph = collate([build_graph(Structure.from_ase(moved), GRAPH, lists=("main",))], torch.float64)
        part = TaskSlice("mine", (0, 1), (0, len(graph.numbers)), (0, len(graph.main)))
        made = model.eval()(graph, [part])["mine"]
        energies.append(float(made["energy"].detach()))
    graph = collate([build_graph(Structure.from_ase(atoms), GRAPH, lists=("main",))], torch.float64)
    part = TaskSlice("mine", (0, 1), (0, len(graph.numbers)), (0, len(graph.main)))
    force = float(model(graph, [part])["mine"]["forces"][2, 1].detach())
    assert force == pytest.approx(-(energies[1] - energies[0]) / 2e-4, rel=1e-5, abs=1e-7)


def test_embeddings_get_no_low_rank_change() -> None:
    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows, self.linear = nn.Embedding(4, 3), nn.Linear(3, 2)

    assert [type(layer) for layer in weight_matrices(Small())] == [nn.Linear]
    assert list(weight_matrices(Small(), lambda name: name != "linear.weight")) == []
