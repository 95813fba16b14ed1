"""Fine-tuning where the split leaves nothing to validate or to test on."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from eutectic.atoms import EutecticError
from eutectic.checkpoints.model import load_model
from eutectic.cli.show import show_finetuning
from eutectic.data.store import Store, write_store
from eutectic.study.compare import run_study
from eutectic.train.finetune import finetune
from eutectic.train.settings import FinetuneSettings
from eutectic.workflows import write_report


def settings(
    store: Path, train: int | None, validation: int | None = None, test: int | None = None
) -> FinetuneSettings:
    values: dict[str, Any] = {
        "data": {"store": str(store), "split": "random", "train": train, "validation": validation, "test": test},
        "targets": {"energy": {}},
        "start": "scratch",
        "backbone": {"name": "painn", "settings": {"width": 8, "layers": 1, "cutoff": 4.0}},
        "graph": {"cutoff": 4.0},
        "train": {"steps": 3, "batch_size": 4, "evaluate_every": 1, "threads": 1, "accelerator": "cpu"},
    }
    return FinetuneSettings.model_validate(values)


@pytest.fixture
def few(molecules: Store, tmp_path: Path) -> Path:
    write_store(tmp_path / "few", molecules.card, [molecules[i] for i in range(8)])
    return tmp_path / "few"


@pytest.mark.parametrize("parts", [(8, None, None), (8, None, 0), (7, None, None), (7, 1, None)])
def test_everything_is_trained_on(few: Path, tmp_path: Path, parts: tuple[int, int | None, int | None]) -> None:
    """Without a test there is no test error; without validation the last step is kept. Both are said beforehand."""
    said = Console(width=1000, file=io.StringIO())
    result = finetune(settings(few, *parts), tmp_path / "run", console=said)
    words = said.file.getvalue()  # type: ignore[attr-defined]
    assert result.test_error is None
    assert result.tested_on == 0
    assert "no test structures: there is no test error" in words
    assert ("no validation structures: the weights of the last step are kept" in words) == (not result.validated_on)
    if not result.validated_on:
        assert result.best_step == 3
        assert "no test or validation structures" in repr(result)
        raw = load_model(tmp_path / "run" / "model").module.state_dict()
        assert any(not torch.equal(v, w) for v, w in zip(raw.values(), _untrained(few).values(), strict=True))
    show_finetuning(result)
    assert write_report(tmp_path / "run").is_file()


def _untrained(few: Path) -> dict[str, torch.Tensor]:
    from eutectic.train.batches.sampler import BatchSampler, TaskDataset
    from eutectic.train.finetune import prepare_run
    from eutectic.train.pretrain import initial_model

    prepared = prepare_run(settings(few, 8))
    data = TaskDataset(0, prepared.task, prepared.store, prepared.split.train)
    source = BatchSampler([data], 4, 1.0, 0)
    backbone = prepared.backbone
    return initial_model(backbone.name, backbone.settings, (prepared.task,), source, 0).state_dict()


def test_one_structure_is_enough(molecules: Store, tmp_path: Path) -> None:
    write_store(tmp_path / "one", molecules.card, [molecules[0]])
    assert finetune(settings(tmp_path / "one", None), tmp_path / "run").trained_on == 1


@pytest.mark.parametrize("parts", [(8, None, None), (7, None, None), (7, 1, None)])
def test_a_comparison_is_refused_before_it_trains(
    few: Path, tmp_path: Path, parts: tuple[int, int | None, int | None]
) -> None:
    with pytest.raises(EutecticError, match=r"no (validation|test) structures are left"):
        run_study(
            settings(few, *parts), tmp_path / "study", model=None, starts=("scratch",), console=Console(quiet=True)
        )
    assert not (tmp_path / "study").exists()
