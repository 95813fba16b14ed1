"""The ladder of trainings: its rungs, when it stops, and that it resumes."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from runs import losses

from eutectic.atoms import EutecticError, Interrupted
from eutectic.checkpoints.model import load_model
from eutectic.data.store import Store
from eutectic.predict.evaluation import evaluate_model
from eutectic.predict.model import load
from eutectic.train import effort
from eutectic.train.effort import climb
from eutectic.train.finetune import finetune
from eutectic.train.finetune_preparation import split_of
from eutectic.train.finetune_result import FinetuneResult, read_result
from eutectic.train.runtime import launch
from eutectic.train.settings import FinetuneSettings
from eutectic.workflows import write_report

BOTH = {"energy": {}, "forces": {"head": {"kind": "gradient_forces"}}}
ENERGY = {"energy": {}}


def settings(store: Store, start: Path | str, targets: dict[str, Any] = ENERGY, **changes: Any) -> FinetuneSettings:
    values: dict[str, Any] = {
        "data": {"store": str(store.path), "split": "random", "train": 40, "validation": 12, "test": 8},
        "targets": targets,
        "start": str(start),
        "name": "mine",
        "train": {"batch_size": 8, "threads": 1, "accelerator": "cpu"} | changes.pop("train", {}),
    }
    if start == "scratch":
        values |= {"backbone": {"name": "painn", "settings": {"width": 16, "layers": 2, "cutoff": 4.0}}}
        values |= {"graph": {"cutoff": 4.0}, "optimiser": {"learning_rate": 1e-2}}
    return FinetuneSettings.model_validate(values | changes)


@pytest.fixture(scope="module")
def base(molecules: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    finetune(settings(molecules, "scratch", BOTH, train={"steps": 20}), folder)
    return folder / "model"


def set_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(effort, "SECONDS", {"seconds": 0.5, "minutes": 4.0, "hour": 9.0, "full": None})
    monkeypatch.setattr(effort, "SHARES", {"heads": 0.4, "lora": 0.3, "all": 0.3})


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fast ladder: seconds in place of minutes, and every rung pays."""
    set_times(monkeypatch)
    monkeypatch.setattr(effort, "PAYS", -1e9)


def outcomes(result: FinetuneResult) -> dict[str, str]:
    return {rung["name"]: rung["outcome"] for rung in result.rungs}


@pytest.mark.usefixtures("quick")
def test_every_rung_is_a_run_and_the_best_gives_the_model(molecules: Store, base: Path, tmp_path: Path) -> None:
    chosen = settings(molecules, base, effort="minutes", head_from=None)
    said = Console(width=1000, file=io.StringIO())
    result = climb(chosen, tmp_path / "run", console=said)
    rungs = {rung["name"]: rung for rung in result.rungs}
    assert list(rungs) == ["ridge", "heads", "lora", "all"]
    assert all(rung["outcome"] in ("chosen", "not chosen") for rung in rungs.values())
    scores = {name: rung["score"] for name, rung in rungs.items()}
    best = min(scores, key=scores.__getitem__)
    assert outcomes(result)[best] == "chosen"
    assert list(outcomes(result).values()).count("chosen") == 1
    folders = sorted(folder.name for folder in (tmp_path / "run" / "rungs").iterdir())
    assert folders == ["1-ridge", "2-heads", "3-lora", "4-all"]
    # The first rungs have not changed the backbone, the others have; its model is an ordinary one each time.
    before = load_model(base).module.state_dict()
    for name, folder in zip(rungs, folders, strict=True):
        place = tmp_path / "run" / "rungs" / folder
        after = load_model(place / "model").module.state_dict()
        assert {k for k in after if k.startswith("backbone.")} == {k for k in before if k.startswith("backbone.")}
        same = [torch.equal(after[k], v) for k, v in before.items() if k.startswith("backbone.layers.")]
        changed = name in ("lora", "all") and read_result(place).best_step > 0
        assert not any(same) if changed and name == "all" else all(same) != changed, name
    place = tmp_path / "run" / "rungs" / folders[list(rungs).index(best)]
    for file in ("model.safetensors", "model.json"):
        assert (tmp_path / "run" / "model" / file).read_bytes() == (place / "model" / file).read_bytes()
    # The model predicts with the errors that are told.
    rows = split_of(molecules, chosen).test
    found = evaluate_model(load(tmp_path / "run", device="cpu").trained, {"test": (molecules, rows)}).sets["test"]
    assert found["energy"].mae == pytest.approx(result.test_errors["energy"], rel=1e-4)
    assert result.model == str(base)
    assert "lora: validation energy" in said.file.getvalue()  # type: ignore[attr-defined]
    # A finished ladder is read, and a run of its folder's rungs too.
    again = climb(chosen, tmp_path / "run")
    assert again.to_dict() == result.to_dict() == read_result(tmp_path / "run").to_dict()
    page = write_report(tmp_path / "run").read_text()
    assert "What was tried" in page
    assert "linear heads in closed form" in page
    # A higher effort goes on: the ridge is read, the heads are trained for longer.
    steps = rungs["heads"]["steps"]
    higher = climb(settings(molecules, base, effort="hour", head_from=None), tmp_path / "run")
    assert {r["name"]: r for r in higher.rungs}["heads"]["steps"] > steps
    assert higher.length == "effort hour"
    with pytest.raises(EutecticError, match=r"effort minutes: a run with effort hour.*a higher one"):
        climb(chosen, tmp_path / "run")
    with pytest.raises(EutecticError, match="effort"):
        finetune(settings(molecules, base, head_from=None, train={"steps": 3}), tmp_path / "run")


@pytest.mark.usefixtures("quick")
def test_a_rung_that_cannot_be_is_skipped_and_said(molecules: Store, base: Path, tmp_path: Path) -> None:
    result = climb(settings(molecules, base, BOTH, effort="seconds"), tmp_path / "run")
    assert outcomes(result) == {"ridge": "skipped", "heads": "chosen", "lora": "skipped", "all": "skipped"}
    assert result.rungs[0]["why"] == "no closed form: forces are derivatives of the energy"
    assert "heads only" in result.trained
    alone = climb(settings(molecules, base, effort="seconds"), tmp_path / "alone")
    assert outcomes(alone) == {"ridge": "chosen", "heads": "skipped", "lora": "skipped", "all": "skipped"}
    assert alone.total_steps == 0
    made = load(tmp_path / "alone", device="cpu").predict([molecules[0].structure])
    assert np.isfinite(made[0]["energy"])
    json.loads((tmp_path / "alone" / "result.json").read_text())


def test_the_ladder_ends_where_a_change_of_the_backbone_does_not_pay(
    molecules: Store, base: Path, tmp_path: Path
) -> None:
    run = climb(settings(molecules, base, effort="seconds"), tmp_path / "run")

    def result(score: float, fell: float | None) -> FinetuneResult:
        return replace(run, steps=[0], best_step=0, scores=[score], fell=fell)

    before = {"ridge": result(0.5, None), "heads": result(0.6, 0.0)}
    assert effort._why_stopped(before) == ""
    # Of the best before, 0.5, two per cent are 0.01; an error that was still falling had too little time.
    for score, fell, stops in ((0.48, 0.0, False), (0.495, 0.0, True), (0.7, 0.0, True), (0.7, 0.1, False)):
        why = effort._why_stopped({**before, "lora": result(score, fell)})
        assert bool(why) == stops, (score, fell)
    assert effort._why_stopped({**before, "lora": result(0.7, None)}) == ""
    assert "lowered the best score by 1.0%, less than 2%" in effort._why_stopped({**before, "lora": result(0.495, 0.0)})


@pytest.mark.usefixtures("quick")
def test_a_stopped_ladder_goes_on_where_it_was(
    molecules: Store, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class StopsAt(launch.StopFlag):
        calls = 0

        @property
        def raised(self) -> bool:
            StopsAt.calls += 1
            return StopsAt.calls == 3

    chosen = settings(molecules, base, effort="minutes")
    monkeypatch.setattr(launch, "StopFlag", StopsAt)
    with pytest.raises(Interrupted, match="stopped after step 3"):
        climb(chosen, tmp_path / "run")
    monkeypatch.undo()
    set_times(monkeypatch)
    before = losses(tmp_path / "run" / "rungs" / "2-heads")
    assert len(before) == 3
    assert not (tmp_path / "run" / "model").exists()
    climb(chosen, tmp_path / "run")
    after = losses(tmp_path / "run" / "rungs" / "2-heads")
    assert after[:3] == before
    assert len(after) > 3
    assert (tmp_path / "run" / "model" / "model.json").is_file()


def test_a_ladder_needs_validation_structures_and_a_trained_model(molecules: Store, base: Path, tmp_path: Path) -> None:
    data = {"store": str(molecules.path), "split": "random", "train": 96, "validation": None, "test": None}
    with pytest.raises(EutecticError, match="no validation structures, which are needed to compare trainings"):
        climb(settings(molecules, base, effort="seconds", data=data), tmp_path / "run")
    with pytest.raises(ValueError, match="this run starts from scratch"):
        settings(molecules, "scratch", effort="seconds")
    with pytest.raises(EutecticError, match="for a single training"):
        finetune(settings(molecules, base, effort="seconds"), tmp_path / "run")
