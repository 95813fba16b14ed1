"""The published recipes: their sizes, and that they run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from eutectic.checkpoints.model import build_backbone
from eutectic.models.gemnet_oc import GemNetOCSettings
from eutectic.models.multitask import MultitaskModel
from eutectic.recipes import RECIPES
from eutectic.recipes.joint import jmp_s
from eutectic.train.batches.mixture import Mixture
from eutectic.train.pretrain import pretrain


@pytest.mark.parametrize(("name", "parameters"), [("jmp_s", 44_131_328), ("jmp_l", 234_267_648)])
def test_parameters_of_the_whole_model_are_the_published_ones(name: str, parameters: int) -> None:
    settings = RECIPES[name]()
    with torch.device("meta"):
        backbone, _ = build_backbone(settings.backbone.name, settings.backbone.settings)
        heads = {n: {p: t.head for p, t in s.targets.items()} for n, s in settings.sets.items()}
        model = MultitaskModel(backbone, heads)
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_steps_are_two_epochs_of_the_mixture() -> None:
    sizes = {"oc20": 100_000_000, "oc22": 8_000_000, "ani1x": 2_000_000, "transition1x": 10_000_000}
    settings = jmp_s()
    epochs = settings.train.steps * settings.train.batch_size / Mixture(sizes, settings.temperature).length
    assert epochs == pytest.approx(2.0, abs=0.01)


def test_it_runs_with_a_smaller_backbone_on_embedded_sets(tmp_path: Path) -> None:
    recipe = jmp_s()
    stores = {"oc20": "metal_slabs", "oc22": "oxide_slabs", "ani1x": "molecules", "transition1x": "reactions"}
    small = {"cutoff": 5.0, "max_neighbours": 6}
    sets = {
        name: one.model_copy(
            update={"store": stores[name], "graph": one.graph and one.graph.model_copy(update=small), "validation": 4}
        )
        for name, one in recipe.sets.items()
    }
    backbone = recipe.backbone.model_copy(update={"settings": GemNetOCSettings.tiny().model_dump()})
    train = recipe.train.model_copy(update={"steps": 2, "batch_size": 4, "evaluate_every": 2, "threads": 1})
    settings = recipe.model_copy(update={"sets": sets, "backbone": backbone, "train": train})
    summary = pretrain(settings, tmp_path / "run").summary
    assert summary["steps"] == 2
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
