"""Processes: started here, by torchrun, by SLURM."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from lightning_fabric.utilities.rank_zero import rank_zero_only
from runs import command_for, same, settings_for

from eutectic.atoms import EutecticError
from eutectic.data.store import Store
from eutectic.train.pretrain import pretrain
from eutectic.train.runtime import launch
from eutectic.train.settings import (
    TrainSettings,
)


def test_fsdp_needs_someone_to_share_with(molecules: Store, slabs: Store, tmp_path: Path) -> None:
    with pytest.raises(EutecticError, match="fsdp with one process"):
        pretrain(settings_for(molecules, slabs, strategy="fsdp"), tmp_path / "run")


@pytest.mark.parametrize("number", [pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGUSR1])
def test_signals_while_processes_start(molecules: Store, slabs: Store, tmp_path: Path, number: signal.Signals) -> None:
    """No traceback from a process that has only just begun to import."""
    settings = settings_for(molecules, slabs, steps=4000, processes=2, evaluate_every=4000)
    process = subprocess.Popen(
        command_for(settings, tmp_path),
        start_new_session=True,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and not (tmp_path / "run" / "tasks.json").exists():
        time.sleep(0.01)
    time.sleep(0.3)
    os.killpg(process.pid, number)  # parent and children alike, as a scheduler does
    out, err = process.communicate(timeout=600)
    assert process.returncode == 130, (out, err)
    assert "stopped" in err
    assert "Traceback" not in err


@pytest.mark.slow
def test_torchrun(plain: Path, molecules: Store, slabs: Store, tmp_path: Path) -> None:
    command = command_for(settings_for(molecules, slabs, steps=6), tmp_path)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *command[1:]]
    done = subprocess.run(torchrun, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    same(tmp_path / "run", plain)
    assert (tmp_path / "run" / "report.html").exists()


def test_who_started_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch script that calls Python by itself has SLURM's variables, but no other processes to wait for."""
    for name in list(os.environ):
        if name.startswith(("SLURM_", "TORCHELASTIC_")):
            monkeypatch.delenv(name)
    assert not launch.launched_outside()
    assert launch.is_first()
    job = {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8", "SLURM_NNODES": "2", "SLURM_JOB_NAME": "pretrain"}
    for name, value in job.items():
        monkeypatch.setenv(name, value)
    assert not launch.launched_outside()
    task = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "3", "SLURM_LOCALID": "3", "SLURM_NODEID": "0"}
    for name, value in task.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(rank_zero_only, "rank", 0)  # Fabric remembers it beyond this test otherwise
    assert launch.launched_outside()
    assert not launch.is_first()
    with pytest.raises(EutecticError, match="ntasks-per-node"):
        launch.make_fabric(TrainSettings(accelerator="cpu"))
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "4")
    fabric = launch.make_fabric(TrainSettings(accelerator="cpu", strategy="fsdp"))
    assert (fabric.world_size, fabric.global_rank) == (8, 3)
    assert launch.make_fabric(TrainSettings(accelerator="cpu"), alone=True).world_size == 1
