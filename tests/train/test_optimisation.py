"""Learning rate, EMA, shared gradients."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from eutectic.atoms import EutecticError
from eutectic.checkpoints.model import build_backbone
from eutectic.models.gemnet_oc import GemNetOC, GemNetOCSettings
from eutectic.models.heads import HeadSettings
from eutectic.models.multitask import MultitaskModel
from eutectic.train.muon import Muon, orthogonalised
from eutectic.train.optimisation import EMA, learning_rate, make_optimiser, shared_gradients
from eutectic.train.settings import (
    OptimiserSettings,
)


def test_learning_rate_by_hand() -> None:
    settings = OptimiserSettings(learning_rate=1.0, warmup_steps=5, warmup_lr_ratio=0.2, final_lr_ratio=0.1)
    assert [learning_rate(settings, s, 16) for s in (0, 2, 4)] == pytest.approx([0.2, 0.6, 1.0])
    assert learning_rate(settings, 5, 16) == pytest.approx(1.0)
    assert learning_rate(settings, 10, 16) == pytest.approx(0.55)  # half way: (1 + 0.1) / 2
    assert learning_rate(settings, 15, 16) == pytest.approx(0.1)


def test_the_average_forgets_nothing_and_skips_bad_steps() -> None:
    backbone, _ = build_backbone("painn", {"width": 8, "layers": 1, "cutoff": 4.0})
    model = MultitaskModel(backbone, {})
    average = EMA(model, 0.9)
    average.follow(model)
    weight, mean = next(model.parameters()), next(average.module.parameters())
    expected = None
    for value, good in ((1.0, 1), (3.0, 0), (2.0, 1), (5.0, 1)):
        with torch.no_grad():
            weight.fill_(value)
        average.update(torch.tensor(float(good)))
        if good:
            expected = value if expected is None else 0.9 * expected + 0.1 * value
        torch.testing.assert_close(mean, torch.full_like(mean, expected or 0.0))


def test_shared_gradients_are_those_of_the_bases() -> None:
    settings = GemNetOCSettings.tiny()
    model = MultitaskModel(GemNetOC(settings), {})
    found = {id(parameter): uses for parameter, uses in shared_gradients(model)}
    assert len(found) == 12
    assert found[id(model.backbone.bases.output_radial)] == settings.blocks + 1
    assert found[id(model.backbone.bases.update_radial)] == settings.blocks
    backbone, _ = build_backbone("painn", {"width": 8, "layers": 1, "cutoff": 4.0})
    with pytest.raises(EutecticError, match="PaiNN"):
        shared_gradients(MultitaskModel(backbone, {}))


def test_muon_makes_singular_values_equal_and_trains_all_else_as_adamw_does() -> None:
    torch.manual_seed(0)
    matrix = torch.randn(24, 40)
    values = torch.linalg.svdvals(orthogonalised(matrix))
    assert 0.6 < values.min() <= values.max() < 1.3
    torch.testing.assert_close(orthogonalised(matrix.T), orthogonalised(matrix).T)
    bias, same = (nn.Parameter(torch.ones(5)) for _ in range(2))
    given: dict[str, Any] = {"lr": 0.1, "betas": (0.9, 0.99), "weight_decay": 0.2}
    ours, theirs = Muon([{"params": [bias]}], **given), torch.optim.AdamW([same], **given)
    for k in range(5):
        for parameter, optimiser in ((bias, ours), (same, theirs)):
            optimiser.zero_grad()
            ((parameter - k) ** 3).sum().backward()
            optimiser.step()
    torch.testing.assert_close(bias, same)


def test_muon_takes_the_matrices_of_a_model_and_resumes() -> None:
    settings = OptimiserSettings(name="muon", learning_rate=1e-2)
    backbone, _ = build_backbone("painn", {"width": 16, "layers": 1, "cutoff": 4.0})
    model = MultitaskModel(backbone, {"a": {"energy": HeadSettings()}})
    optimiser = make_optimiser(model, settings)
    taken = {id(p) for group in optimiser.param_groups if group["matrices"] for p in group["params"]}
    names = {name for name, p in model.named_parameters() if id(p) in taken}
    assert names
    assert all(model.get_parameter(name).ndim == 2 for name in names)
    assert not any("embedding" in name for name in names)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimiser.step()
    again = make_optimiser(model, settings)
    again.load_state_dict(copy.deepcopy(optimiser.state_dict()))
    before = [p.detach().clone() for p in model.parameters()]
    optimiser.step()
    after = [p.detach().clone() for p in model.parameters()]
    for parameter, value in zip(model.parameters(), before, strict=True):
        parameter.data.copy_(value)
    again.step()
    for parameter, value in zip(model.parameters(), after, strict=True):
        torch.testing.assert_close(parameter.detach(), value)
