"""Loggers of a run."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest
from runs import settings_of

from eutectic.atoms import EutecticError
from eutectic.data.store import Store
from eutectic.train.pretrain import pretrain
from eutectic.train.runtime import loggers


def test_tensorboard_is_written_beside(molecules: Store, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    pretrain(settings_of({"molecules": molecules}, loggers=None), tmp_path / "run")
    assert (tmp_path / "run" / "metrics.csv").exists()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert [e.step for e in events.Scalars("loss")] == [1, 2, 3, 4, 5, 6]
    assert [e.step for e in events.Scalars("validation/molecules/forces_mae")] == [0, 3, 6]


class _FakeRun:
    """What `wandb.init` gives, as far as it is used."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.id, self.given, self.rows, self.ended = given["id"], given, [], None

    def define_metric(self, name: str, step_metric: str) -> None:
        assert (name, step_metric) == ("*", "step")

    def log(self, row: dict[str, float]) -> None:
        self.rows.append(row)

    def finish(self, exit_code: int) -> None:
        self.ended = exit_code


def test_weights_and_biases_are_told(molecules: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[_FakeRun] = []
    fake = types.ModuleType("wandb")
    fake.init = lambda **given: runs.append(_FakeRun(given)) or runs[-1]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setattr(loggers, "installed", lambda package: True)
    pretrain(settings_of({"molecules": molecules}, loggers=("wandb",)), tmp_path / "run")
    (run,) = runs
    assert run.ended == 0
    assert run.given["name"] == "run"
    assert run.given["config"]["command"] == "pretrain"
    assert [row["step"] for row in run.rows if "loss" in row] == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in run.rows if "validation/molecules/forces_mae" in row] == [0, 3, 6]
    # Whoever resumes finds the same run.
    assert loggers.WandbLogger(tmp_path / "run").version == run.id


def test_loggers_that_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EutecticError, match="did you mean 'tensorboard'"):
        loggers.chosen(["tensorbord"])
    monkeypatch.setattr(loggers, "installed", lambda package: False)
    with pytest.raises(EutecticError, match="pip install wandb"):
        loggers.chosen(["wandb"])
    assert loggers.chosen(None) == {}
