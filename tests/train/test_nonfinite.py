"""Non-finite steps: skipped, saved, replayed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import BY_COST, journal, losses, settings_for

from eutectic.atoms import EutecticError, LabelledStructure
from eutectic.checkpoints.model import load_model
from eutectic.data.splits import split
from eutectic.data.store import Store
from eutectic.train import loop
from eutectic.train.nonfinite import replay
from eutectic.train.pretrain import pretrain


def _with_bad_label(store: Store, row: int, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whenever this row is read, its energy is NaN; its id."""
    real, name = Store.__getitem__, store[row].id

    def poisoned(self: Store, index: int) -> LabelledStructure:
        found = real(self, index)
        if self.path != store.path or int(index) != row:
            return found
        labels = {**found.labels, "energy": np.asarray(np.nan)}
        return LabelledStructure(structure=found.structure, labels=labels, id=found.id, group=found.group)

    monkeypatch.setattr(Store, "__getitem__", poisoned)
    return name


def test_a_bad_label_costs_one_step_and_is_found(
    molecules: Store, slabs: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = int(split(molecules, "random", n_validation=8).train[3])
    name = _with_bad_label(molecules, row, monkeypatch)
    settings = settings_for(molecules, slabs, steps=24, evaluate_every=24, keep_nonfinite_steps=1)
    pretrain(settings, tmp_path / "run")
    bad = [entry["step"] for entry in journal(tmp_path / "run") if entry["gradient_norm"] is None]
    assert bad, "the row was never drawn"
    kept = sorted((tmp_path / "run" / "nonfinite-steps").iterdir())
    assert [folder.name for folder in kept] == [f"step-{bad[0]:06d}"]
    assert all(torch.isfinite(v).all() for v in load_model(tmp_path / "run" / "model").module.state_dict().values())

    found = replay(kept[0])
    assert (found.step, len(found.structures)) == (bad[0], 8)
    culprits = [s for s in found.structures if s.problems]
    assert [(s.task, s.id, s.problems) for s in culprits] == [("molecules", name, ["label energy is not finite"])]
    assert not np.isfinite(found.loss)
    assert all(np.isfinite(s.loss) for s in found.structures if not s.problems)
    command = [sys.executable, "-m", "eutectic", "replay", str(kept[0])]
    wide = {**os.environ, "COLUMNS": "200"}
    shown = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=wide)
    assert shown.returncode == 0, shown.stderr
    assert "label energy is not finite" in shown.stdout
    with pytest.raises(EutecticError, match="not a saved step"):
        replay(tmp_path)


def test_replay_repeats_the_step_with_its_dropped_edges(
    molecules: Store, slabs: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kept with the weights before it, a step gives the loss that training had, in double precision to the digit."""

    settings = settings_for(molecules, slabs, steps=3, precision="64-true")
    settings = settings.model_copy(update={"edge_dropout": 0.3, "batching": BY_COST})
    pretrain(settings, tmp_path / "right")
    real = loop.clip_grad_norm_
    calls = 0

    def third_is_bad(*arguments: Any, **options: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return real(*arguments, **options) * (float("nan") if calls == 3 else 1.0)

    monkeypatch.setattr(loop, "clip_grad_norm_", third_is_bad)
    pretrain(settings, tmp_path / "run")
    found = replay(tmp_path / "run" / "nonfinite-steps" / "step-000003")
    assert found.recorded_loss == pytest.approx(losses(tmp_path / "right")[2], rel=1e-12)
    assert found.loss == pytest.approx(found.recorded_loss, rel=1e-12)
    assert found.gradient_norm == pytest.approx(journal(tmp_path / "right")[2]["gradient_norm"], rel=1e-9)
    whole = settings.model_copy(update={"edge_dropout": 0.0})
    pretrain(whole, tmp_path / "whole")
    assert losses(tmp_path / "whole")[0] != pytest.approx(losses(tmp_path / "right")[0], rel=1e-3)
