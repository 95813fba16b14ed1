"""The loop: losses by property, and optimisers other than the fused AdamW."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_runs import journal, losses, settings_for

from eutectic.atoms import Interrupted
from eutectic.checkpoints.model import load_model
from eutectic.data.store import Store
from eutectic.train import loop, pretrain
from eutectic.train.runtime import launch


@pytest.mark.parametrize("train", [{}, {"processes": 2}, {"accumulate": 2, "batch_size": 4}])
def test_losses_by_property_add_up_to_the_set_s(
    molecules: Store, slabs: Store, tmp_path: Path, train: dict[str, Any]
) -> None:
    settings = settings_for(molecules, slabs, steps=3, evaluate_every=3, **train)
    pretrain.pretrain(settings, tmp_path / "run")
    weights = {
        task.name: {name: target.weight for name, target in task.targets.items()}
        for task in load_model(tmp_path / "run" / "model").tasks
    }
    for entry in journal(tmp_path / "run"):
        assert entry["loss_by_property"].keys() == entry["loss_by_set"].keys()
        for name, by_property in entry["loss_by_property"].items():
            assert by_property.keys() == {"energy", "forces"}
            whole = sum(weights[name][prop] * loss for prop, loss in by_property.items())
            assert whole == pytest.approx(entry["loss_by_set"][name], rel=1e-5)


def _plain(model: Any, settings: Any) -> torch.optim.Optimizer:
    """With momentum and weight decay, which would move the weights even without a gradient."""
    groups = [{"params": list(model.parameters()), "relative": 1.0}]
    return torch.optim.SGD(groups, lr=settings.learning_rate, momentum=0.9, weight_decay=0.1)


def test_another_optimiser(molecules: Store, slabs: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It knows nothing of flags for non-finite steps, which are skipped nevertheless; and it is resumed exactly."""
    settings = settings_for(molecules, slabs, steps=6, evaluate_every=6)
    monkeypatch.setattr(loop, "make_optimiser", _plain)
    pretrain.pretrain(settings, tmp_path / "whole")

    class StopsAtThree(launch.StopFlag):
        calls = 0

        @property
        def raised(self) -> bool:
            StopsAtThree.calls += 1
            return StopsAtThree.calls == 3

    with monkeypatch.context() as patch:
        patch.setattr(launch, "StopFlag", StopsAtThree)
        with pytest.raises(Interrupted):
            pretrain.pretrain(settings, tmp_path / "run")
    pretrain.pretrain(settings, tmp_path / "run")
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    assert losses(tmp_path / "whole")[-1] != losses(tmp_path / "whole")[0]

    real = loop.clip_grad_norm_
    monkeypatch.setattr(loop, "clip_grad_norm_", lambda *a, **k: real(*a, **k) * float("nan"))
    pretrain.pretrain(settings, tmp_path / "skipped")
    assert all(entry["gradient_norm"] is None for entry in journal(tmp_path / "skipped"))
    checkpoint = torch.load(tmp_path / "skipped" / "checkpoint.pt", weights_only=True)
    assert checkpoint["nonfinite_steps"] == 6
    assert not checkpoint["optimiser"]["state"]
    for name, value in checkpoint["averaged"].items():
        if name != "updates":
            torch.testing.assert_close(value, checkpoint["model"][name.removeprefix("module.")], rtol=0, atol=0)


def test_optimiser_state_of_any_shape_is_kept(tmp_path: Path) -> None:
    """Adafactor keeps rows and columns instead of moments: they are no shards of a parameter."""
    from eutectic.train.checkpoint import full_state, load_checkpoint, load_optimiser, save_checkpoint

    weight = torch.nn.Parameter(torch.ones(4, 3))
    made = [torch.optim.Adafactor([weight]) for _ in range(2)]
    weight.grad = torch.arange(12.0).reshape(4, 3)
    made[0].step()
    save_checkpoint(tmp_path / "checkpoint.pt", full_state(made[0].state_dict()))
    state = load_checkpoint(tmp_path / "checkpoint.pt")
    assert state is not None
    load_optimiser(made[1], state)
    before, after = (m.state_dict()["state"][0] for m in made)
    assert before.keys() == after.keys()
    assert any(isinstance(v, torch.Tensor) and v.ndim and v.shape != weight.shape for v in before.values())
    for name, value in before.items():
        np.testing.assert_array_equal(np.asarray(value), np.asarray(after[name]))
