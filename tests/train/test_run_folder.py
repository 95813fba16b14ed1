"""The folder of a run: what it was computed from, damaged files, full disks."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import journal, settings_of

from eutectic.atoms import EutecticError
from eutectic.data.store import Store, write_store
from eutectic.train.finetune import finetune
from eutectic.train.finetune_result import read_result
from eutectic.train.pretrain import pretrain
from eutectic.train.run_folder import SETTINGS, claim_content, claim_folder, model_hash, stored_settings
from eutectic.train.settings import FinetuneSettings, PretrainSettings

PAINN = {"name": "painn", "settings": {"width": 8, "layers": 1, "cutoff": 4.0}}
TRAIN = {"steps": 2, "batch_size": 4, "evaluate_every": 2, "threads": 1, "accelerator": "cpu"}


def copied(store: Store, path: Path, scale: float = 1.0) -> Path:
    """The same store elsewhere; `scale` changes the labels and nothing else."""
    rows = [replace(row, labels={n: np.asarray(scale * v) for n, v in row.labels.items()}) for row in store]
    write_store(path, store.card, rows, overwrite=True)
    return path


def finetuning(store: Path, **changes: Any) -> FinetuneSettings:
    values: dict[str, Any] = {
        "data": {"store": str(store), "split": "random", "train": 12, "validation": 4, "test": 4},
        "targets": {"energy": {}},
        "start": "scratch",
        "backbone": PAINN,
        "graph": {"cutoff": 4.0},
        "train": TRAIN,
    }
    return FinetuneSettings.model_validate(values | changes)


def pretraining(store: Path, **changes: Any) -> PretrainSettings:
    settings = settings_of({"molecules": Store(store)}, {"steps": 2, "batch_size": 4, "evaluate_every": 2})
    return PretrainSettings.model_validate(settings.model_dump(mode="json") | changes)


def test_the_same_data_elsewhere_are_the_same_and_other_labels_are_not(molecules: Store, tmp_path: Path) -> None:
    run, data = tmp_path / "run", copied(molecules, tmp_path / "data")
    result = finetune(finetuning(data), run)
    copied(molecules, data)  # prepared again: other files, the same contents
    assert finetune(finetuning(data), run) == result
    copied(molecules, data, 2.0)
    with pytest.raises(EutecticError, match=rf"data {data} changed since it began"):
        finetune(finetuning(data), run)
    assert read_result(run) == result


def test_pretraining_is_refused_on_changed_data_too(molecules: Store, tmp_path: Path) -> None:
    data = copied(molecules, tmp_path / "data")
    pretrain(pretraining(data), tmp_path / "run")
    copied(molecules, data, 2.0)
    with pytest.raises(EutecticError, match=rf"data {data} changed since it began"):
        pretrain(pretraining(data), tmp_path / "run")


def test_a_model_that_changed_under_its_name_is_refused(molecules: Store, tmp_path: Path) -> None:
    data = copied(molecules, tmp_path / "data")
    for seed in (0, 1):
        train = {**TRAIN, "seed": seed}
        pretrain(
            PretrainSettings.model_validate({**pretraining(data).model_dump(), "train": train}), tmp_path / f"{seed}"
        )
    (tmp_path / "0" / "model").rename(tmp_path / "model")
    starts = {"backbone": None, "graph": None, "start": str(tmp_path / "model")}
    finetune(finetuning(data, **starts), tmp_path / "run")
    first = model_hash(tmp_path / "model")
    (tmp_path / "model").rename(tmp_path / "old")
    (tmp_path / "1" / "model").rename(tmp_path / "model")
    assert model_hash(tmp_path / "model") != first
    with pytest.raises(EutecticError, match=r"model .* changed since it began"):
        finetune(finetuning(data, **starts), tmp_path / "run")


def test_a_run_that_noted_no_contents_goes_on_with_a_warning(
    molecules: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = finetuning(molecules.path)
    finetune(settings, tmp_path)
    stored = stored_settings(tmp_path)
    del stored["content"]
    (tmp_path / SETTINGS).write_text(json.dumps(stored))
    with caplog.at_level(logging.WARNING):
        finetune(settings, tmp_path)
    assert "earlier version" in caplog.text
    assert stored_settings(tmp_path)["content"] == {f"data {molecules.path}": molecules.content_hash()}


@pytest.mark.parametrize("content", ["", "{", "[1]", "null", "5", '{"command": 1}', "[" * 100_000, "\udcff"])
def test_damaged_settings(molecules: Store, tmp_path: Path, content: str) -> None:
    """Where nothing was computed the folder is claimed anew; else it is left as it is."""
    settings = finetuning(molecules.path)
    (tmp_path / SETTINGS).write_bytes(content.encode(errors="surrogateescape"))
    (tmp_path / f".{SETTINGS}.writing").write_text("{")  # of a process that was killed, or whose disk was full
    claim_folder(tmp_path, settings, "finetune")
    claim_content(tmp_path, {"data": "a"})
    assert stored_settings(tmp_path)["content"] == {"data": "a"}
    (tmp_path / SETTINGS).write_bytes(content.encode(errors="surrogateescape"))
    (tmp_path / "checkpoint.pt").write_text("precious")
    with pytest.raises(EutecticError, match=r"restore this file|other settings"):
        claim_folder(tmp_path, settings, "finetune")
    assert (tmp_path / "checkpoint.pt").read_text() == "precious"


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"steps": "x"}', "[" * 100_000, "\udcff"])
def test_damaged_result(molecules: Store, tmp_path: Path, content: str) -> None:
    finetune(finetuning(molecules.path), tmp_path)
    (tmp_path / "result.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(EutecticError, match=r"result\.json.*choose another --out"):
        finetune(finetuning(molecules.path), tmp_path)


def test_damaged_summary_is_written_again_from_the_checkpoint(molecules: Store, tmp_path: Path) -> None:
    before = pretrain(pretraining(molecules.path), tmp_path).summary
    (tmp_path / "summary.json").write_text("")
    with pytest.raises(EutecticError, match="delete this file"):
        pretrain(pretraining(molecules.path), tmp_path)
    (tmp_path / "summary.json").unlink()
    after = pretrain(pretraining(molecules.path), tmp_path).summary
    assert after["validation"] == before["validation"]
    assert [entry["step"] for entry in journal(tmp_path)] == [1, 2]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"seconds": 1, "bytes": 2}'])
def test_damaged_costs(molecules: Store, tmp_path: Path, content: str) -> None:
    settings = finetuning(molecules.path, batching={"by": "cost"})
    claim_folder(tmp_path, settings, "finetune")
    (tmp_path / "cost.json").write_text(content)
    with pytest.raises(EutecticError, match="restore this file"):
        finetune(settings, tmp_path)
