"""The loop: the same step however it is computed, runs that resume, losses by property, other optimisers."""

from __future__ import annotations

import functools
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import lightning_fabric as lf
import numpy as np
import pytest
import torch
from runs import BY_COST, command_for, journal, losses, same, settings_for

from eutectic.atoms import EutecticError, Interrupted
from eutectic.checkpoints.model import load_model
from eutectic.data.store import Store
from eutectic.train import loop
from eutectic.train.pretrain import pretrain
from eutectic.train.runtime import launch
from eutectic.train.runtime.stop import StopFlag
from eutectic.train.settings import (
    BackboneChoice,
    PretrainSettings,
)


def test_accumulated_batches_are_one_large_batch(plain: Path, molecules: Store, slabs: Store, tmp_path: Path) -> None:
    pretrain(settings_for(molecules, slabs, steps=6, batch_size=2, accumulate=4), tmp_path / "run")
    same(tmp_path / "run", plain)
    drawn = [json.loads((f / "summary.json").read_text())["drawn"] for f in (plain, tmp_path / "run")]
    assert drawn[0] == drawn[1]


def test_batches_cut_by_cost_are_accumulated_and_shared(molecules: Store, slabs: Store, tmp_path: Path) -> None:
    """Three batches to a step: a window of three is a step, and so what is in it is what it would be by count."""
    train: dict[str, Any] = {"steps": 4, "batch_size": 8, "accumulate": 3}
    settings = settings_for(molecules, slabs, **train).model_copy(update={"batching": BY_COST})
    pretrain(settings, tmp_path / "one")
    pretrain(settings_for(molecules, slabs, **train), tmp_path / "by-count")
    same(tmp_path / "one", tmp_path / "by-count")
    assert [e["structures"] for e in journal(tmp_path / "one")] == [24] * 4
    summaries = [json.loads((tmp_path / f / "summary.json").read_text()) for f in ("one", "by-count")]
    assert summaries[0]["drawn"] == summaries[1]["drawn"]
    assert sum(summaries[0]["drawn"].values()) == 96
    # Two batches to a step: steps differ in their number of structures, and a structure's weight does not.
    train |= {"accumulate": 2, "steps": 6}
    settings = settings_for(molecules, slabs, **train).model_copy(update={"batching": BY_COST})
    shared = settings_for(molecules, slabs, **train, processes=2).model_copy(update={"batching": BY_COST})
    pretrain(settings, tmp_path / "uneven")
    pretrain(shared, tmp_path / "two")
    same(tmp_path / "two", tmp_path / "uneven")
    structures = [e["structures"] for e in journal(tmp_path / "uneven")]
    assert len(set(structures)) > 1
    assert sum(structures) == 96
    assert [e["structures"] for e in journal(tmp_path / "two")] == structures


def test_activation_checkpointing_changes_nothing_but_memory(molecules: Store, slabs: Store, tmp_path: Path) -> None:
    tiny = {"blocks": 2, "atom_width": 16, "edge_width": 16, "num_radial": 8, "dihedral_epsilon": 0.03}
    gemnet = {"backbone": BackboneChoice(name="gemnet_oc", settings=tiny)}
    for name, again in (("kept", False), ("again", True)):
        settings = settings_for(molecules, slabs, steps=4, activation_checkpointing=again)
        pretrain(settings.model_copy(update=gemnet), tmp_path / name)
    same(tmp_path / "again", tmp_path / "kept")
    with pytest.raises(EutecticError, match="turn it off"):
        pretrain(settings_for(molecules, slabs, activation_checkpointing=True), tmp_path / "painn")


class _StopsAtThree(StopFlag):
    @property
    def raised(self) -> bool:
        self.calls = getattr(self, "calls", 0) + 1
        return self.calls == 3


def _stopped_early(fabric: lf.Fabric, stop: StopFlag, work: Any) -> None:
    work(fabric, _StopsAtThree())


def test_sharded_equals_whole_and_goes_on_in_one_process(
    plain: Path, molecules: Store, slabs: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FSDP's losses are one process's; its checkpoint, average of the weights included, is everyone's."""
    sharded = settings_for(molecules, slabs, steps=6, processes=2, strategy="fsdp", accumulate=1)
    pretrain(sharded, tmp_path / "whole")
    same(tmp_path / "whole", plain)
    real = launch.launch
    with monkeypatch.context() as patch:
        patch.setattr(
            "eutectic.train.pretrain.launch",
            lambda settings, work: real(settings, functools.partial(_stopped_early, work=work)),
        )
        with pytest.raises(Interrupted, match="step 3 of 6"):
            pretrain(sharded, tmp_path / "run")
    pretrain(settings_for(molecules, slabs, steps=6), tmp_path / "run")
    same(tmp_path / "run", plain)


def test_from_one_process_to_two_fsdp(
    plain: Path, molecules: Store, slabs: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(launch, "StopFlag", _StopsAtThree)
        with pytest.raises(Interrupted, match="step 3 of 6"):
            pretrain(settings_for(molecules, slabs, steps=6), tmp_path / "run")
    pretrain(settings_for(molecules, slabs, steps=6, processes=2, strategy="fsdp"), tmp_path / "run")
    same(tmp_path / "run", plain)


def test_forces_as_derivatives_are_not_compiled(molecules: Store, slabs: Store, tmp_path: Path) -> None:
    settings = settings_for(molecules, slabs, compile=True).model_dump()
    heads = {"energy": {}, "forces": {"head": {"kind": "gradient_forces"}}}
    settings["sets"]["slabs"]["targets"] = heads
    with pytest.raises(EutecticError, match="a backbone that can be traced"):
        pretrain(PretrainSettings.model_validate(settings), tmp_path / "run")


def test_batches_made_ahead_are_the_same(plain: Path, molecules: Store, slabs: Store, tmp_path: Path) -> None:
    pretrain(settings_for(molecules, slabs, steps=6, workers=2), tmp_path / "run")
    assert losses(tmp_path / "run") == losses(plain)
    assert all(0 <= entry["data_seconds"] <= entry["step_seconds"] for entry in journal(plain))
    lossy = {"edge_dropout": 0.3, "batching": BY_COST}
    for workers in (0, 1):
        settings = settings_for(molecules, slabs, steps=6, workers=workers).model_copy(update=lossy)
        pretrain(settings, tmp_path / f"lossy-{workers}")
    assert losses(tmp_path / "lossy-0") == losses(tmp_path / "lossy-1") != losses(plain)


@pytest.mark.parametrize(("precision", "rtol"), [("64-true", 1e-4), ("bf16-mixed", 0.05), ("16-mixed", 0.05)])
def test_precisions(molecules: Store, slabs: Store, tmp_path: Path, precision: str, rtol: float) -> None:
    """The norm in the journal is that of the gradient without a scaler's scale.

    (The seed is one of those whose first gradient is not beyond half precision at the scaler's first scale.)
    """
    for name, settings in (("run", {"precision": precision}), ("single", {})):
        pretrain(settings_for(molecules, slabs, steps=2, evaluate_every=2, seed=1, **settings), tmp_path / name)
    found, expected = journal(tmp_path / "run"), journal(tmp_path / "single")
    assert found[0]["loss"] == pytest.approx(expected[0]["loss"], rel=rtol)
    assert found[0]["gradient_norm"] == pytest.approx(expected[0]["gradient_norm"], rel=2 * rtol)
    assert ("scale" in found[0]) == (precision == "16-mixed")


@pytest.mark.parametrize("kills", [1, pytest.param(6, marks=pytest.mark.slow)])
def test_killed_at_any_moment_the_losses_are_the_same(
    molecules: Store, slabs: Store, tmp_path: Path, kills: int
) -> None:
    """A checkpoint after every step: many of the kills fall into its writing. Batches by cost, without some edges."""
    settings = settings_for(molecules, slabs, steps=60, evaluate_every=60, checkpoint_every=0.0)
    settings = settings.model_copy(update={"edge_dropout": 0.1, "batching": BY_COST})
    pretrain(settings, tmp_path / "whole")
    command, chance = command_for(settings, tmp_path), random.Random(0)
    path = tmp_path / "run" / "checkpoint.pt"
    for _ in range(kills):
        before = path.stat().st_mtime_ns if path.exists() else 0
        process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
        while process.poll() is None and (not path.exists() or path.stat().st_mtime_ns == before):
            time.sleep(0.005)
        time.sleep(chance.random() * 0.2)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


@pytest.mark.parametrize("train", [{}, {"processes": 2}, {"accumulate": 2, "batch_size": 4}])
def test_losses_by_property_add_up_to_the_set_s(
    molecules: Store, slabs: Store, tmp_path: Path, train: dict[str, Any]
) -> None:
    settings = settings_for(molecules, slabs, steps=3, evaluate_every=3, **train)
    pretrain(settings, tmp_path / "run")
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
    pretrain(settings, tmp_path / "whole")

    class StopsAtThree(launch.StopFlag):
        calls = 0

        @property
        def raised(self) -> bool:
            StopsAtThree.calls += 1
            return StopsAtThree.calls == 3

    with monkeypatch.context() as patch:
        patch.setattr(launch, "StopFlag", StopsAtThree)
        with pytest.raises(Interrupted):
            pretrain(settings, tmp_path / "run")
    pretrain(settings, tmp_path / "run")
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    assert losses(tmp_path / "whole")[-1] != losses(tmp_path / "whole")[0]

    real = loop.clip_grad_norm_
    monkeypatch.setattr(loop, "clip_grad_norm_", lambda *a, **k: real(*a, **k) * float("nan"))
    pretrain(settings, tmp_path / "skipped")
    assert all(entry["gradient_norm"] is None for entry in journal(tmp_path / "skipped"))
    checkpoint = torch.load(tmp_path / "skipped" / "checkpoint.pt", weights_only=True)
    assert checkpoint["nonfinite_steps"] == 6
    assert not checkpoint["optimiser"]["state"]
    for name, value in checkpoint["averaged"].items():
        if name != "updates":
            torch.testing.assert_close(value, checkpoint["model"][name.removeprefix("module.")], rtol=0, atol=0)


@pytest.mark.slow
def test_compiled(plain: Path, molecules: Store, slabs: Store, tmp_path: Path) -> None:
    """In a process of its own: compiling under the tests' type checks is another matter."""
    settings = settings_for(molecules, slabs, steps=6, compile=True)
    done = subprocess.run(command_for(settings, tmp_path), capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(plain), rtol=1e-3)


TWO_SETS = """
import numpy as np, torch
from eutectic.data.catalogue import open_store
from eutectic.models.gemnet_oc import GemNetOCSettings
from eutectic.recipes import demo
from eutectic.tasks import fit_task, make_batch, structure_losses
from eutectic.train.pretrain import initial_model
from eutectic.train.batches.sampler import BatchSampler, TaskDataset

settings = demo()
rows = []
for i, name in enumerate(("molecules", "metal_slabs")):
    store, some = open_store(name), np.arange(64)
    rows.append(TaskDataset(i, fit_task(name, store, some, settings.sets[name].targets, settings.graph), store, some))
tasks = tuple(r.task for r in rows)
"""
"""What a program of its own begins with: tasks and rows of molecules and slabs."""


@pytest.mark.slow
def test_to_a_compiler_the_model_is_one_graph() -> None:
    """In a process of its own: under the tests' type checks it would be many."""
    code = f"""{TWO_SETS}
model = initial_model("gemnet_oc", settings.backbone.settings, tasks, BatchSampler(rows, 4, 2.0, 0), 0)
batch = make_batch([r.item(i) for r in rows for i in range(3)], tasks)
print("breaks", torch._dynamo.explain(model)(batch.graph, batch.parts).graph_break_count)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=False)
    assert done.stdout.splitlines()[-1:] == ["breaks 0"], done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("per_task", [1, 2])
def test_compiled_as_it_is(per_task: int) -> None:
    """One structure of a task as well: Inductor's code for a CPU could not add its atoms up."""
    code = f"""{TWO_SETS}
model = initial_model("gemnet_oc", GemNetOCSettings.tiny().model_dump(), tasks, BatchSampler(rows, 4, 2.0, 0), 0)
batch = make_batch([r.item(i) for r in rows for i in range({per_task})], tasks)
found = []
for compiled in (False, True):
    model.zero_grad()
    if compiled:
        model.compile_parts()
    torch.cat(structure_losses(model(batch.graph, batch.parts), batch, tasks)).sum().backward()
    found.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
print("difference", float((found[1] - found[0]).norm() / found[0].norm()), compiled)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=900, check=False)
    assert done.stdout.startswith("difference"), done.stderr[-3000:]
    difference, compiled = map(float, done.stdout.split()[1:])
    assert difference < 1e-4
    # Of bases, embedding, two blocks, three output blocks, two readouts and four heads those that are alike once.
    assert 0 < compiled <= 7
