"""Whole runs: resumed, interrupted, spread over processes, started from a model or from scratch."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from runs import journal, losses, settings_for

from eutectic.atoms import EutecticError, Interrupted
from eutectic.checkpoints.model import load_model
from eutectic.data.store import Store
from eutectic.predict.prediction import predict
from eutectic.train import gradient
from eutectic.train.finetune import finetune
from eutectic.train.finetune_preparation import split_of
from eutectic.train.pretrain import pretrain
from eutectic.train.runtime import launch
from eutectic.train.settings import FinetuneSettings


@pytest.fixture(scope="module")
def finished(molecules: Store, slabs: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    pretrain(settings_for(molecules, slabs), folder)
    return folder


def test_what_a_run_leaves(finished: Path) -> None:
    assert len(journal(finished)) == 8
    assert all(np.isfinite(losses(finished)))
    summary = json.loads((finished / "summary.json").read_text())
    assert sum(summary["drawn"].values()) == 64
    assert [v["step"] for v in summary["validation"]] == [0, 4, 8]
    model = load_model(finished / "model")
    assert [task.name for task in model.tasks] == ["molecules", "slabs"]
    assert set(model.provenance["pretrained_on"]) == {"molecules", "slabs"}  # type: ignore[call-overload]
    assert (finished / "model" / "raw.safetensors").exists()


def test_a_card_says_what_a_model_has_learned_and_how_well(finished: Path, molecules: Store, slabs: Store) -> None:
    text = (finished / "model" / "README.md").read_text()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    last = json.loads((finished / "summary.json").read_text())["validation"][-1]["by_set"]
    for name, store in (("molecules", molecules), ("slabs", slabs)):
        learned = next(row for row in rows if row[:2] == [name, "pre-training"])
        assert learned[4:] == [store.card.licence, store.fingerprint()]
        for prop, unit in (("energy", "meV/atom"), ("forces", "meV/Å")):
            expected = [f"{last[name][f'{prop}_{what}']:.4g}" for what in ("mae", "baseline")]
            assert [name, prop, *expected, unit] in rows
    assert "steps: 8; structures seen: 64" in text
    assert "Not recorded" not in text


def test_finished_run_is_not_repeated_and_others_are_refused(
    finished: Path, molecules: Store, slabs: Store, tmp_path: Path
) -> None:
    before = (finished / "journal.jsonl").stat().st_mtime_ns
    pretrain(settings_for(molecules, slabs), finished)
    assert (finished / "journal.jsonl").stat().st_mtime_ns == before
    with pytest.raises(EutecticError, match="train"):
        pretrain(settings_for(molecules, slabs, steps=9), finished)
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(EutecticError, match="not a run"):
        pretrain(settings_for(molecules, slabs), tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "precious"


def test_resume_repeats_the_losses_bit_by_bit(
    finished: Path, molecules: Store, slabs: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class StopsAt(launch.StopFlag):
        """A signal in the middle of step 3."""

        calls = 0

        @property
        def raised(self) -> bool:
            StopsAt.calls += 1
            return StopsAt.calls == 3

    monkeypatch.setattr(launch, "StopFlag", StopsAt)
    with pytest.raises(Interrupted, match="step 3 of 8"):
        pretrain(settings_for(molecules, slabs), tmp_path / "run")
    assert not (tmp_path / "run" / "model").exists()
    monkeypatch.undo()
    pretrain(settings_for(molecules, slabs), tmp_path / "run")
    assert losses(tmp_path / "run") == losses(finished)
    first, second = load_model(finished / "model"), load_model(tmp_path / "run" / "model")
    for name, value in first.module.state_dict().items():
        assert torch.equal(value, second.module.state_dict()[name]), name


def test_two_processes_train_like_one(finished: Path, molecules: Store, slabs: Store, tmp_path: Path) -> None:
    pretrain(settings_for(molecules, slabs, processes=2), tmp_path / "two")
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(finished), rtol=2e-4)
    one, two = (json.loads((f / "summary.json").read_text()) for f in (finished, tmp_path / "two"))
    assert one["drawn"] == two["drawn"]
    for a, b in zip(one["validation"], two["validation"], strict=True):
        for name, errors in a["by_set"].items():
            for key, value in errors.items():
                assert b["by_set"][name][key] == pytest.approx(value, rel=1e-2), (name, key)


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_ctrl_c_and_kill_lose_nothing(
    finished: Path, molecules: Store, slabs: Store, tmp_path: Path, processes: int
) -> None:
    """SIGINT stops a real run cleanly and the same command goes on; SIGKILL costs what came after a checkpoint."""
    settings = settings_for(molecules, slabs, steps=400, processes=processes, checkpoint_every=0.0, evaluate_every=400)
    file = tmp_path / "settings.json"
    file.write_text(settings.model_dump_json())
    command = [sys.executable, "-m", "eutectic", "pretrain", str(file), "--out", str(tmp_path / "run")]
    for blow in (signal.SIGINT, signal.SIGKILL):
        before = len(losses(tmp_path / "run")) if (tmp_path / "run" / "journal.jsonl").exists() else 0
        process = subprocess.Popen(
            command, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline and process.poll() is None:
            path = tmp_path / "run" / "journal.jsonl"
            if path.exists() and len(path.read_text().splitlines()) > before + 3:
                break
            time.sleep(0.05)
        os.killpg(process.pid, blow)
        out, err = process.communicate(timeout=60)
        if blow == signal.SIGINT:
            assert process.returncode == 130, (out, err)
            assert "resumes at step" in err, (out, err)
            assert "Traceback" not in err
        assert len(losses(tmp_path / "run")) > before
        assert not (tmp_path / "run" / "model").exists()
        assert losses(tmp_path / "run")[:1] != []
    steps = [entry["step"] for entry in journal(tmp_path / "run")]
    assert steps == list(range(1, len(steps) + 1))


@pytest.mark.slow  # drills end a study's workers in more ways
def test_interrupted_comparison_goes_on(molecules: Store, tmp_path: Path) -> None:
    """Ctrl-C in the middle of several runs at once: none is lost, and none that waited begins."""
    out = tmp_path / "run"
    command = [sys.executable, "-m", "eutectic", "compare", str(molecules.path), "-p", "energy", "--out", str(out)]
    command += ["--split", "random", "--train", "40", "--validation", "8", "--test", "8", "--start", "scratch"]
    command += ["--seeds", "4", "--workers", "2", "--steps", "150", "--backbone.name", "painn"]
    command += ["--backbone.settings", "{width: 16, layers: 1, cutoff: 4.0}", "--graph", "{cutoff: 4.0}"]
    command += ["--train.checkpoint_every", "0"]
    process = subprocess.Popen(
        command, start_new_session=True, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and process.poll() is None and not list(out.glob("runs/*/*/checkpoint.pt")):
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGINT)  # the parent alone, which passes it on
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, (stdout, stderr)
    assert "the same command resumes it" in stderr
    assert "Traceback" not in stderr
    assert len(list(out.glob("runs/*/*/result.json"))) < 4
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert len(list(out.glob("runs/*/*/result.json"))) == 4
    assert (out / "results.json").exists()


def test_bad_gradients_are_skipped_then_end_the_run(
    molecules: Store, slabs: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = gradient.target_losses

    def poisoned(*arguments: Any) -> list[dict[str, torch.Tensor]]:
        return [{k: v * float("nan") for k, v in losses.items()} for losses in real(*arguments)]

    monkeypatch.setattr(gradient, "target_losses", poisoned)
    with pytest.raises(EutecticError, match="non-finite loss"):
        pretrain(settings_for(molecules, slabs, max_nonfinite_steps=2), tmp_path / "run")
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert state["nonfinite_steps"] == 3
    assert all(torch.isfinite(v).all() for v in state["model"].values())


def finetuning(store: Store, start: str, model: Path, **changes: Any) -> FinetuneSettings:
    values: dict[str, Any] = {
        "data": {"store": str(store.path), "split": "random", "train": 40, "validation": 12, "test": 20},
        "targets": {"energy": {}, "forces": {"head": {"kind": "direct_forces", "layers": 1}}},
        "start": "scratch" if start == "scratch" else str(model),
        "architecture_from": str(model) if start == "scratch" else None,
        "train": {"steps": 12, "batch_size": 8, "evaluate_every": 4, "threads": 1, "accelerator": "cpu"},
    }
    return FinetuneSettings.model_validate(values | changes)


@pytest.mark.parametrize("start", ["pretrained", "scratch"])
def test_finetuning_from_each_start(finished: Path, molecules: Store, tmp_path: Path, start: str) -> None:
    settings = finetuning(molecules, start, finished / "model")
    console = Console(width=1000, file=io.StringIO())
    result = finetune(settings, tmp_path / "run", console=console)
    assert result.start == start
    assert result.property == "forces"
    assert result.steps == [0, 4, 8, 12]
    assert set(result.test_errors) == {"energy", "forces"}
    assert result.tested_on == 20
    assert result.scores[result.steps.index(result.best_step)] == min(result.scores)
    assert result.test_error == pytest.approx(
        np.abs(np.array(result.truth) - np.array(result.prediction)).mean(), rel=0.3
    )
    assert ("from scratch" in console.file.getvalue()) == (start == "scratch")  # type: ignore[attr-defined]
    again = finetune(settings, tmp_path / "run")
    assert again == result
    assert load_model(tmp_path / "run" / "model").tasks[0].name == "molecules"


def test_kept_heads_start_where_pretraining_ended(finished: Path, molecules: Store, tmp_path: Path) -> None:
    kept = {"energy": {"head": {"layers": 4}}, "forces": {"head": {"kind": "direct_forces", "layers": 4}}}
    fresh = finetune(finetuning(molecules, "pretrained", finished / "model", targets=kept, head_from=None), None)
    console = Console(width=1000, file=io.StringIO())
    held = finetune(
        finetuning(molecules, "pretrained", finished / "model", targets=kept, head_from="molecules"),
        None,
        console=console,
    )
    assert "kept: heads of task molecules: energy, forces; before training" in console.file.getvalue()  # type: ignore[attr-defined]
    # The judged forces, in physical units, are those of the model before, whatever this data's scale is.
    before = load_model(finished / "model")
    parts = split_of(molecules, finetuning(molecules, "scratch", finished / "model", targets=kept))
    rows = [molecules[int(i)] for i in parts.validation]
    made = predict(before, "molecules", [row.structure for row in rows])
    wrong = [np.abs(p["forces"] - row.labels["forces"]).reshape(-1) for p, row in zip(made, rows, strict=True)]
    assert held.errors[0] == pytest.approx(1000 * np.concatenate(wrong).mean(), rel=1e-4)
    assert held.errors[0] != fresh.errors[0]
    with pytest.raises(EutecticError, match="no task 'ani1x'"):
        finetune(finetuning(molecules, "pretrained", finished / "model", head_from="ani1x"), None)


def test_conservative_finetuning(finished: Path, molecules: Store) -> None:
    targets = {"energy": {}, "forces": {"head": {"kind": "gradient_forces"}, "weight": 10.0}}
    result = finetune(finetuning(molecules, "pretrained", finished / "model", targets=targets), None)
    assert min(result.errors) < result.errors[0]


def test_training_learns_something_on_exact_labels(finished: Path, molecules: Store) -> None:
    train = {"steps": 150, "batch_size": 8, "evaluate_every": 50, "threads": 1, "accelerator": "cpu"}
    optimiser = {"learning_rate": 5e-3, "warmup_steps": 5, "weight_decay": 0.0}
    result = finetune(finetuning(molecules, "scratch", finished / "model", train=train, optimiser=optimiser), None)
    assert result.test_error is not None
    assert result.baseline_error is not None
    assert result.test_error < 0.6 * result.baseline_error


def test_two_processes_and_batches_by_cost_give_the_errors_of_one(
    finished: Path, molecules: Store, tmp_path: Path
) -> None:
    one = finetuning(molecules, "pretrained", finished / "model")
    results = {}
    for name, processes in (("one", 1), ("two", 2)):
        train = one.train.model_copy(update={"processes": processes})
        results[name] = finetune(one.model_copy(update={"train": train}), tmp_path / name)
    assert results["two"].steps == results["one"].steps
    assert results["two"].errors == pytest.approx(results["one"].errors, rel=1e-3)
    assert results["two"].test_errors == pytest.approx(results["one"].test_errors, rel=1e-3)
    values = one.model_dump(mode="json")
    values["batching"] = {"by": "cost", "coefficients": {"atom": 1.0, "edge": 0.05}, "window": 3}
    by_cost = finetune(FinetuneSettings.model_validate(values), tmp_path / "cost")
    assert sum(e["structures"] for e in journal(tmp_path / "cost")) == pytest.approx(12 * 8, abs=8)
    assert by_cost.errors[0] == results["one"].errors[0]
    assert by_cost.errors[1:] != results["one"].errors[1:]


def test_without_test_structures_the_validation_error_is_the_result(
    finished: Path, molecules: Store, tmp_path: Path
) -> None:
    data = {"store": str(molecules.path), "split": "random", "train": 40, "validation": 12, "test": 0}
    result = finetune(finetuning(molecules, "pretrained", finished / "model", data=data), tmp_path / "run")
    assert result.test_error is None
    assert result.test_errors == {}
    assert set(result.curves) == {"energy", "forces"}
    assert finetune(finetuning(molecules, "pretrained", finished / "model", data=data), tmp_path / "run") == result


def test_several_processes_need_a_folder(finished: Path, molecules: Store) -> None:
    train = {"steps": 2, "batch_size": 8, "processes": 2, "accelerator": "cpu"}
    with pytest.raises(EutecticError, match="without a folder for the result"):
        finetune(finetuning(molecules, "scratch", finished / "model", train=train), None)
