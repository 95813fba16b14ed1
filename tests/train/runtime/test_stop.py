"""Signals that stop a run."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from runs import losses, settings_for

from eutectic.atoms import Interrupted
from eutectic.checkpoints.model import load_model
from eutectic.data.store import Store
from eutectic.processes import SIGNALS
from eutectic.train import schedule
from eutectic.train.pretrain import pretrain
from eutectic.train.runtime.stop import StopFlag


@pytest.mark.parametrize("number", SIGNALS)
def test_noted_once_and_the_handlers_come_back(number: signal.Signals) -> None:
    before, stop = signal.getsignal(number), StopFlag()
    with stop.listening():
        assert not stop
        signal.raise_signal(number)
        signal.raise_signal(number)  # the second of a burst
        assert stop
    assert signal.getsignal(number) is before


def test_a_closed_terminal_stays_ignored_under_nohup() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        stop = StopFlag()
        with stop.listening():
            signal.raise_signal(signal.SIGHUP)
            assert not stop
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_a_signal_saves_and_the_run_resumes(
    molecules: Store, slabs: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    settings = settings_for(molecules, slabs, steps=5, evaluate_every=5, checkpoint_every=1e6)
    real = schedule.learning_rate

    def signalled_at_two(settings: Any, step: int, steps: int) -> float:
        if step == 2:
            os.kill(os.getpid(), number)
        return real(settings, step, steps)

    monkeypatch.setattr(schedule, "learning_rate", signalled_at_two)
    with pytest.raises(Interrupted, match="step 3 of 5"):
        pretrain(settings, tmp_path / "run")
    monkeypatch.undo()
    pretrain(settings, tmp_path / "run")
    pretrain(settings, tmp_path / "whole")
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    assert load_model(tmp_path / "run" / "model").tasks
