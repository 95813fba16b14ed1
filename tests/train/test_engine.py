"""The engine at scale: the same step however it is computed, and runs that survive what happens to them."""

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
from lightning_fabric.utilities.rank_zero import rank_zero_only
from safetensors.torch import load_file
from test_runs import journal, losses, settings_for

from eutectic.atoms import EutecticError, Interrupted, LabelledStructure
from eutectic.checkpoints.model import build_backbone, load_model
from eutectic.data.splits import split
from eutectic.data.store import Store
from eutectic.graph import GraphSettings
from eutectic.models.gemnet_oc import GemNetOC, GemNetOCSettings
from eutectic.models.multitask import MultitaskModel
from eutectic.tasks import TargetSettings, fit_task
from eutectic.train import gradient, pretrain
from eutectic.train.batches.sampler import BatchSampler, TaskDataset
from eutectic.train.checkpoint import load_checkpoint, previous, save_checkpoint
from eutectic.train.nonfinite import replay
from eutectic.train.optimisation import EMA, shared_gradients
from eutectic.train.runtime import launch
from eutectic.train.runtime.stop import StopFlag
from eutectic.train.settings import BackboneChoice, BatchingSettings, Coefficients, PretrainSettings, TrainSettings

BY_COST = BatchingSettings(by="cost", window=3, coefficients=Coefficients(atom=1.0, edge=0.05))


@pytest.fixture(scope="module")
def plain(molecules: Store, slabs: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process, one pass per step: what all others are compared with."""
    folder = tmp_path_factory.mktemp("engine") / "plain"
    pretrain.pretrain(settings_for(molecules, slabs, steps=6), folder)
    return folder


def same(folder: Path, other: Path, rtol: float = 2e-4) -> None:
    """Losses, gradients and final weights of two runs are the same but for rounding."""
    for key in ("loss", "gradient_norm"):
        found, expected = ([entry[key] for entry in journal(f)] for f in (folder, other))
        np.testing.assert_allclose(found, expected, rtol=rtol)
    for file in ("model", "raw"):
        weights = [load_file(f / "model" / f"{file}.safetensors") for f in (folder, other)]
        for name, value in weights[0].items():
            torch.testing.assert_close(value, weights[1][name], rtol=1e-2, atol=2e-4, msg=f"{file}, {name}")


def test_accumulated_batches_are_one_large_batch(plain: Path, molecules: Store, slabs: Store, tmp_path: Path) -> None:
    pretrain.pretrain(settings_for(molecules, slabs, steps=6, batch_size=2, accumulate=4), tmp_path / "run")
    same(tmp_path / "run", plain)
    drawn = [json.loads((f / "summary.json").read_text())["drawn"] for f in (plain, tmp_path / "run")]
    assert drawn[0] == drawn[1]


def test_batches_cut_by_cost_are_accumulated_and_shared(molecules: Store, slabs: Store, tmp_path: Path) -> None:
    """Three batches to a step: a window of three is a step, and so what is in it is what it would be by count."""
    train: dict[str, Any] = {"steps": 4, "batch_size": 8, "accumulate": 3}
    settings = settings_for(molecules, slabs, **train).model_copy(update={"batching": BY_COST})
    pretrain.pretrain(settings, tmp_path / "one")
    pretrain.pretrain(settings_for(molecules, slabs, **train), tmp_path / "by-count")
    same(tmp_path / "one", tmp_path / "by-count")
    assert [e["structures"] for e in journal(tmp_path / "one")] == [24] * 4
    summaries = [json.loads((tmp_path / f / "summary.json").read_text()) for f in ("one", "by-count")]
    assert summaries[0]["drawn"] == summaries[1]["drawn"]
    assert sum(summaries[0]["drawn"].values()) == 96
    # Two batches to a step: steps differ in their number of structures, and a structure's weight does not.
    train |= {"accumulate": 2, "steps": 6}
    settings = settings_for(molecules, slabs, **train).model_copy(update={"batching": BY_COST})
    shared = settings_for(molecules, slabs, **train, processes=2).model_copy(update={"batching": BY_COST})
    pretrain.pretrain(settings, tmp_path / "uneven")
    pretrain.pretrain(shared, tmp_path / "two")
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
        pretrain.pretrain(settings.model_copy(update=gemnet), tmp_path / name)
    same(tmp_path / "again", tmp_path / "kept")
    with pytest.raises(EutecticError, match="leave it off"):
        pretrain.pretrain(settings_for(molecules, slabs, activation_checkpointing=True), tmp_path / "painn")


def _too_small(limit: int) -> Any:
    real = gradient.target_losses

    def losses_of_few(predictions: Any, batch: Any, tasks: Any) -> Any:
        if batch.n_structures > limit:
            raise torch.OutOfMemoryError("CUDA out of memory (a test says so)")
        return real(predictions, batch, tasks)

    return losses_of_few


def test_a_batch_too_large_for_the_memory_is_halved(
    plain: Path, molecules: Store, slabs: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gradient, "target_losses", _too_small(3))
    pretrain.pretrain(settings_for(molecules, slabs, steps=6), tmp_path / "run")
    same(tmp_path / "run", plain)
    assert all(entry["passes"] >= 4 for entry in journal(tmp_path / "run"))
    with pytest.raises(EutecticError, match="does not fit"):
        pretrain.pretrain(settings_for(molecules, slabs, steps=6, out_of_memory="stop"), tmp_path / "stopped")
    monkeypatch.undo()
    monkeypatch.setattr(gradient, "target_losses", _too_small(0))
    with pytest.raises(EutecticError, match="one structure of"):
        pretrain.pretrain(settings_for(molecules, slabs, steps=6), tmp_path / "hopeless")


def _small_second_process(fabric: lf.Fabric, stop: StopFlag, work: Any) -> None:
    if fabric.global_rank == 1:
        gradient.target_losses = _too_small(2)
    work(fabric, stop)


def test_one_of_two_processes_runs_out_of_memory(
    plain: Path, molecules: Store, slabs: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = launch.launch
    monkeypatch.setattr(
        pretrain, "launch", lambda settings, work: real(settings, functools.partial(_small_second_process, work=work))
    )
    pretrain.pretrain(settings_for(molecules, slabs, steps=6, processes=2), tmp_path / "run")
    same(tmp_path / "run", plain)
    assert all(entry["passes"] > 2 for entry in journal(tmp_path / "run"))


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
    pretrain.pretrain(sharded, tmp_path / "whole")
    same(tmp_path / "whole", plain)
    real = launch.launch
    with monkeypatch.context() as patch:
        patch.setattr(
            pretrain, "launch", lambda settings, work: real(settings, functools.partial(_stopped_early, work=work))
        )
        with pytest.raises(Interrupted, match="step 3 of 6"):
            pretrain.pretrain(sharded, tmp_path / "run")
    pretrain.pretrain(settings_for(molecules, slabs, steps=6), tmp_path / "run")
    same(tmp_path / "run", plain)


def test_from_one_process_to_two_fsdp(
    plain: Path, molecules: Store, slabs: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(launch, "StopFlag", _StopsAtThree)
        with pytest.raises(Interrupted, match="step 3 of 6"):
            pretrain.pretrain(settings_for(molecules, slabs, steps=6), tmp_path / "run")
    pretrain.pretrain(settings_for(molecules, slabs, steps=6, processes=2, strategy="fsdp"), tmp_path / "run")
    same(tmp_path / "run", plain)


def test_fsdp_needs_someone_to_share_with(molecules: Store, slabs: Store, tmp_path: Path) -> None:
    with pytest.raises(EutecticError, match="fsdp with one process"):
        pretrain.pretrain(settings_for(molecules, slabs, strategy="fsdp"), tmp_path / "run")


def test_forces_as_derivatives_are_not_compiled(molecules: Store, slabs: Store, tmp_path: Path) -> None:
    settings = settings_for(molecules, slabs, compile=True).model_dump()
    heads = {"energy": {}, "forces": {"head": {"kind": "gradient_forces"}}}
    settings["sets"]["slabs"]["targets"] = heads
    with pytest.raises(EutecticError, match="cannot differentiate compiled code twice"):
        pretrain.pretrain(PretrainSettings.model_validate(settings), tmp_path / "run")


def test_batches_made_ahead_are_the_same(plain: Path, molecules: Store, slabs: Store, tmp_path: Path) -> None:
    pretrain.pretrain(settings_for(molecules, slabs, steps=6, workers=2), tmp_path / "run")
    assert losses(tmp_path / "run") == losses(plain)
    assert all(0 <= entry["data_seconds"] <= entry["step_seconds"] for entry in journal(plain))
    lossy = {"edge_dropout": 0.3, "batching": BY_COST}
    for workers in (0, 1):
        settings = settings_for(molecules, slabs, steps=6, workers=workers).model_copy(update=lossy)
        pretrain.pretrain(settings, tmp_path / f"lossy-{workers}")
    assert losses(tmp_path / "lossy-0") == losses(tmp_path / "lossy-1") != losses(plain)


@pytest.mark.parametrize(("precision", "rtol"), [("64-true", 1e-4), ("bf16-mixed", 0.05), ("16-mixed", 0.05)])
def test_precisions(plain: Path, molecules: Store, slabs: Store, tmp_path: Path, precision: str, rtol: float) -> None:
    """The norm in the journal is that of the gradient without a scaler's scale."""
    pretrain.pretrain(settings_for(molecules, slabs, steps=6, precision=precision), tmp_path / "run")
    found, expected = journal(tmp_path / "run"), journal(plain)
    assert found[0]["loss"] == pytest.approx(expected[0]["loss"], rel=rtol)
    assert found[0]["gradient_norm"] == pytest.approx(expected[0]["gradient_norm"], rel=2 * rtol)
    assert ("scale" in found[0]) == (precision == "16-mixed")


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
    pretrain.pretrain(settings, tmp_path / "run")
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
    from eutectic.train import loop

    settings = settings_for(molecules, slabs, steps=3, precision="64-true")
    settings = settings.model_copy(update={"edge_dropout": 0.3, "batching": BY_COST})
    pretrain.pretrain(settings, tmp_path / "right")
    real = loop.clip_grad_norm_
    calls = 0

    def third_is_bad(*arguments: Any, **options: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return real(*arguments, **options) * (float("nan") if calls == 3 else 1.0)

    monkeypatch.setattr(loop, "clip_grad_norm_", third_is_bad)
    pretrain.pretrain(settings, tmp_path / "run")
    found = replay(tmp_path / "run" / "nonfinite-steps" / "step-000003")
    assert found.recorded_loss == pytest.approx(losses(tmp_path / "right")[2], rel=1e-12)
    assert found.loss == pytest.approx(found.recorded_loss, rel=1e-12)
    assert found.gradient_norm == pytest.approx(journal(tmp_path / "right")[2]["gradient_norm"], rel=1e-9)
    whole = settings.model_copy(update={"edge_dropout": 0.0})
    pretrain.pretrain(whole, tmp_path / "whole")
    assert losses(tmp_path / "whole")[0] != pytest.approx(losses(tmp_path / "right")[0], rel=1e-3)


def test_dropped_edges_are_a_function_of_the_draw(molecules: Store) -> None:
    task = fit_task("m", molecules, np.arange(96), {"energy": TargetSettings()}, GraphSettings(cutoff=4.0))

    def edges(step: int, world: int, seed: int = 0) -> dict[bytes, int]:
        rows = TaskDataset(0, task, molecules, np.arange(96), keep=True, edge_dropout=0.3)
        source = BatchSampler([rows], 16, 1.0, seed)
        items = [item for rank in range(world) for item in source.items(step, rank, world)]
        return {
            i.graph.structure.positions.tobytes(): hash(
                (i.graph.atom_atom.source.tobytes(), i.graph.atom_atom.target.tobytes())
            )
            for i in items
        }

    assert edges(2, 1) == edges(2, 1) == edges(2, 3)
    everything = {k: v for step in range(6) for k, v in edges(step, 1).items()}
    again = {k: v for step in range(6, 12) for k, v in edges(step, 1).items()}
    assert everything.keys() == again.keys()
    assert sum(everything[k] == again[k] for k in everything) < 10
    full = TaskDataset(0, task, molecules, np.arange(96), edge_dropout=0.3).item(0)
    assert len(full.graph.atom_atom) == len(TaskDataset(0, task, molecules, np.arange(96)).item(0).graph.atom_atom)


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


def test_a_damaged_checkpoint_falls_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "checkpoint.pt"
    for step in (1, 2):
        save_checkpoint(path, {"step": step, "weights": torch.full((1000,), float(step))})
    whole = path.read_bytes()
    assert load_checkpoint(path)["step"] == 2  # type: ignore[index]
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    for damaged in (whole[: len(whole) // 2], bytes(flipped), b""):
        path.write_bytes(damaged)
        state = load_checkpoint(path)
        assert state is not None
        assert state["step"] == 1
        assert (state["weights"] == 1).all()
        assert "resuming from the checkpoint before it" in caplog.text
        caplog.clear()
    path.unlink()  # killed between two renames
    assert load_checkpoint(path)["step"] == 1  # type: ignore[index]
    previous(path).write_bytes(b"half")
    with pytest.raises(EutecticError, match="not a readable checkpoint"):
        load_checkpoint(path)


def command_for(settings: PretrainSettings, folder: Path) -> list[str]:
    file = folder / "settings.json"
    file.write_text(settings.model_dump_json())
    return [sys.executable, "-m", "eutectic", "pretrain", str(file), "--out", str(folder / "run")]


@pytest.mark.parametrize("kills", [1, pytest.param(6, marks=pytest.mark.slow)])
def test_killed_at_any_moment_the_losses_are_the_same(
    molecules: Store, slabs: Store, tmp_path: Path, kills: int
) -> None:
    """A checkpoint after every step: many of the kills fall into its writing. Batches by cost, without some edges."""
    settings = settings_for(molecules, slabs, steps=60, evaluate_every=60, checkpoint_every=0.0)
    settings = settings.model_copy(update={"edge_dropout": 0.1, "batching": BY_COST})
    pretrain.pretrain(settings, tmp_path / "whole")
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


@pytest.mark.slow
def test_compiled(plain: Path, molecules: Store, slabs: Store, tmp_path: Path) -> None:
    """In a process of its own: compiling under the tests' type checks is another matter."""
    settings = settings_for(molecules, slabs, steps=6, compile=True)
    done = subprocess.run(command_for(settings, tmp_path), capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(plain), rtol=1e-3)


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
