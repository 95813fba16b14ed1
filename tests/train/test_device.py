"""The same on a GPU: numbers, steps that never wait for it, and what only happens there."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import journal, settings_for
from test_runs import finetuning

from eutectic.atoms import Interrupted
from eutectic.checkpoints.model import load_model
from eutectic.data.store import Store
from eutectic.predict.prediction import predict
from eutectic.train import loop
from eutectic.train import pretrain as pretrain_module
from eutectic.train.finetune import finetune
from eutectic.train.pretrain import pretrain
from eutectic.train.settings import BackboneChoice, PretrainSettings

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

GEMNET = BackboneChoice(
    name="gemnet_oc",
    settings={"blocks": 2, "atom_width": 32, "edge_width": 32, "num_radial": 16, "dihedral_epsilon": 0.03},
)


def on_gpu(molecules: Store, slabs: Store, **train: Any) -> PretrainSettings:
    settings = settings_for(molecules, slabs, **{"accelerator": "cuda", "workers": 2} | train)
    return settings.model_copy(update={"backbone": GEMNET})


@pytest.fixture(scope="module")
def on_cpu(molecules: Store, slabs: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("device") / "cpu"
    pretrain(on_gpu(molecules, slabs, accelerator="cpu", workers=0, precision="64-true"), folder)
    return folder


def test_predictions_are_those_of_the_cpu(on_cpu: Path, molecules: Store, slabs: Store) -> None:
    for task, store in (("molecules", molecules), ("slabs", slabs)):
        structures = [store[i].structure for i in range(12)]
        found = []
        for device in ("cpu", "cuda"):
            model = load_model(on_cpu / "model")
            model.module.to(device, torch.float64)
            found.append(predict(model, task, structures) + predict(model, task, structures, conservative=True))
        for here, there in zip(*found, strict=True):
            assert here.keys() == there.keys()
            for name, value in here.items():
                np.testing.assert_allclose(there[name], value, rtol=1e-9, atol=1e-9, err_msg=f"{task} {name}")


def test_a_run_is_the_same_and_goes_on_on_the_other_device(
    on_cpu: Path, molecules: Store, slabs: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = loop.learning_rate

    def stops_at_four(settings: Any, step: int, steps: int) -> float:
        if step == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return real(settings, step, steps)

    monkeypatch.setattr(loop, "learning_rate", stops_at_four)
    with pytest.raises(Interrupted):
        pretrain(on_gpu(molecules, slabs, precision="64-true"), tmp_path / "run")
    monkeypatch.undo()
    pretrain(on_gpu(molecules, slabs, precision="64-true", accelerator="cpu", workers=0), tmp_path / "run")
    for key in ("loss", "gradient_norm"):
        found, expected = ([entry[key] for entry in journal(f)] for f in (tmp_path / "run", on_cpu))
        np.testing.assert_allclose(found, expected, rtol=1e-7)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_a_step_waits_for_nothing(
    molecules: Store, slabs: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    """Whatever would wait for the device is an error, but between the last step and the next validation."""
    rate, evaluate = loop.learning_rate, pretrain_module.evaluate

    def watched(settings: Any, step: int, steps: int) -> float:
        if step > 1:  # kernels are loaded in the first
            torch.cuda.set_sync_debug_mode("error")
        return rate(settings, step, steps)

    def unwatched(*args: Any, **kwargs: Any) -> Any:
        torch.cuda.set_sync_debug_mode("default")
        return evaluate(*args, **kwargs)

    monkeypatch.setattr(loop, "learning_rate", watched)
    monkeypatch.setattr(pretrain_module, "evaluate", unwatched)
    try:
        pretrain(on_gpu(molecules, slabs, precision=precision, evaluate_every=8), tmp_path / "run")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    entries = journal(tmp_path / "run")
    assert len(entries) == 8
    assert all(np.isfinite(entry["loss"]) for entry in entries)
    assert ("scale" in entries[0]) == (precision == "16-mixed")


def test_half_the_precision_is_the_same_run_but_for_rounding(
    on_cpu: Path, molecules: Store, slabs: Store, tmp_path: Path
) -> None:
    # So short a run at so high a rate soon goes its own way, in bfloat16.
    for precision, steps, tolerance in (("32-true", 8, 2e-3), ("bf16-mixed", 2, 0.02)):
        pretrain(on_gpu(molecules, slabs, precision=precision), tmp_path / precision)
        found, expected = ([entry["loss"] for entry in journal(f)[:steps]] for f in (tmp_path / precision, on_cpu))
        np.testing.assert_allclose(found, expected, rtol=tolerance)


def test_a_batch_that_does_not_fit_is_halved(molecules: Store, slabs: Store, tmp_path: Path) -> None:
    wide = BackboneChoice(name="gemnet_oc", settings=GEMNET.settings | {"atom_width": 256, "edge_width": 256})
    settings = on_gpu(molecules, slabs, batch_size=64, steps=3, evaluate_every=3).model_copy(update={"backbone": wide})
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    pretrain(settings, tmp_path / "whole")
    peak = torch.cuda.max_memory_allocated()
    torch.cuda.empty_cache()
    try:
        torch.cuda.set_per_process_memory_fraction(0.7 * peak / torch.cuda.get_device_properties(0).total_memory)
        pretrain(settings, tmp_path / "halved")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    whole, halved = journal(tmp_path / "whole"), journal(tmp_path / "halved")
    assert all(entry["passes"] > 1 for entry in halved)
    np.testing.assert_allclose([e["loss"] for e in halved], [e["loss"] for e in whole], rtol=1e-3)


def test_fine_tuning_follows(on_cpu: Path, molecules: Store, tmp_path: Path) -> None:
    train = {"steps": 6, "batch_size": 8, "evaluate_every": 3, "accelerator": "cuda"}
    settings = finetuning(molecules, str(on_cpu / "model"), on_cpu / "model", train=train)
    finetune(settings, tmp_path / "run")
    model = load_model(tmp_path / "run" / "model")
    assert all(np.isfinite(entry["loss"]) for entry in journal(tmp_path / "run"))
    assert model.tasks
