"""Learning rate, EMA, shared gradients."""

from __future__ import annotations

import pytest
import torch

from eutectic.atoms import EutecticError
from eutectic.checkpoints.model import build_backbone
from eutectic.models.gemnet_oc import GemNetOC, GemNetOCSettings
from eutectic.models.multitask import MultitaskModel
from eutectic.train.optimisation import EMA, learning_rate, shared_gradients
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
