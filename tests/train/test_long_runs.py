"""Runs of a length other than steps, lengthened runs, heads that die, and what is seen of them."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from runs import journal, losses

from eutectic.atoms import EutecticError
from eutectic.checkpoints.model import load_model
from eutectic.data.store import Store
from eutectic.models.multitask import MultitaskModel
from eutectic.train import finetune as module
from eutectic.train.batches.sampler import TaskDataset
from eutectic.train.evaluation import evaluate
from eutectic.train.finetune import finetune, prepare_run
from eutectic.train.finetune_result import FinetuneResult, read_result
from eutectic.train.optimisation import learning_rate
from eutectic.train.settings import FinetuneOptimiserSettings, FinetuneSettings

FORCES = {"head": {"kind": "direct_forces", "layers": 1}}


def settings(store: Store, targets: dict[str, Any] | None = None, **changes: Any) -> FinetuneSettings:
    train = {"batch_size": 8, "threads": 1, "accelerator": "cpu"} | changes.pop("train", {})
    values: dict[str, Any] = {
        "data": {"store": str(store.path), "split": "random", "train": 40, "validation": 12, "test": 8},
        "targets": targets or {"energy": {}},
        "start": "scratch",
        "backbone": {"name": "painn", "settings": {"width": 8, "layers": 1, "cutoff": 4.0}},
        "graph": {"cutoff": 4.0},
        "train": train,
    }
    return FinetuneSettings.model_validate(values | changes)


def test_a_finished_run_is_lengthened(molecules: Store, tmp_path: Path) -> None:
    """Steps are those that a run of the whole length has from there on; a shorter length and other settings are not
    accepted, and the same length returns the result."""
    first = finetune(settings(molecules, train={"steps": 10}), tmp_path / "run")
    before = losses(tmp_path / "run")
    longer = settings(molecules, train={"epochs": 4})  # 20 steps
    said = Console(width=1000, file=io.StringIO())
    second = finetune(longer, tmp_path / "run", console=said)
    assert "continuing from step 10: 4 epochs in total" in said.file.getvalue()  # type: ignore[attr-defined]
    assert (first.total_steps, second.total_steps, second.epochs) == (10, 20, 4.0)
    assert losses(tmp_path / "run")[:10] == before
    assert [e["step"] for e in journal(tmp_path / "run")] == list(range(1, 21))
    assert second.steps[: len(first.steps)] == first.steps
    assert second.errors[: len(first.errors)] == first.errors
    # The rates are those of a run of 20 steps.
    finetune(settings(molecules, train={"steps": 20}), tmp_path / "whole")
    rates = [[e["learning_rate"] for e in journal(tmp_path / name)] for name in ("run", "whole")]
    assert rates[0][10:] == rates[1][10:]
    assert finetune(longer, tmp_path / "run") == second
    assert read_result(tmp_path / "run") == second
    with pytest.raises(EutecticError, match=r"has already done 20 steps.*a greater length"):
        finetune(settings(molecules, train={"steps": 15}), tmp_path / "run")
    with pytest.raises(EutecticError, match=r"other settings.*different: optimiser, train"):
        finetune(settings(molecules, train={"steps": 40}, optimiser={"learning_rate": 1e-4}), tmp_path / "run")
    assert read_result(tmp_path / "run") == second
    (tmp_path / "run" / "checkpoint.pt").unlink()
    with pytest.raises(EutecticError, match=r"without its checkpoint.*--model .*/run/model"):
        finetune(settings(molecules, train={"steps": 40}), tmp_path / "run")
    assert read_result(tmp_path / "run") == second


def test_a_time_ends_a_run(molecules: Store, tmp_path: Path) -> None:
    result = finetune(settings(molecules, train={"time": "3s"}), tmp_path / "run")
    entries = journal(tmp_path / "run")
    assert result.wall_seconds + 1.0 > 2.0
    assert entries[-1]["learning_rate"] < entries[len(entries) // 2]["learning_rate"]
    assert 3 <= len(result.steps) <= 12
    assert result.length == "3s"
    longer = finetune(settings(molecules, train={"time": "4s"}), tmp_path / "run")
    assert longer.total_steps > result.total_steps


def test_a_run_until_converged_ends_and_says_so(molecules: Store, tmp_path: Path) -> None:
    # At such a rate nothing is learned, so that the first plateau begins at once.
    train = {"until_converged": True, "patience": 1, "evaluate_every": 2}
    result = finetune(settings(molecules, train=train, optimiser={"learning_rate": 1e-9}), tmp_path / "run")
    assert result.converged
    assert result.still_falling is False
    assert any("converged" in note for note in result.notes)
    # The first validation sets the mark; four more in vain.
    assert result.total_steps == 10


def captured(monkeypatch: pytest.MonkeyPatch) -> list[MultitaskModel]:
    models: list[MultitaskModel] = []
    real = module._model

    def made(*arguments: Any) -> MultitaskModel:
        models.append(real(*arguments))
        return models[-1]

    monkeypatch.setattr(module, "_model", made)
    return models


def with_a_head_killed_at(
    steps: tuple[int, ...], molecules: Store, folder: Path, monkeypatch: pytest.MonkeyPatch, **data: Any
) -> tuple[FinetuneResult, str]:
    models, said = captured(monkeypatch), Console(width=1000, file=io.StringIO())

    def kill(step: int) -> None:
        if step in steps:
            # All units of the hidden layer far in the flat part of their activation: no output and no gradient.
            with torch.no_grad():
                models[0].heads["molecules"]["energy"].perceptron[0].bias.fill_(-200.0)  # type: ignore[index, union-attr]

    chosen = settings(molecules, {"energy": {}, "forces": FORCES}, train={"steps": 12, "evaluate_every": 2})
    chosen = FinetuneSettings.model_validate(
        chosen.model_dump() | {"optimiser": {"ema_decay": 0.0}, "data": chosen.data.model_dump() | data}
    )
    result = finetune(chosen, folder, console=said, on_step=kill)
    return result, said.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("data", [{}, {"train": 96, "validation": None, "test": None}])
def test_a_dead_head_is_found_said_and_mended(
    molecules: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: dict[str, Any]
) -> None:
    result, said = with_a_head_killed_at((5,), molecules, tmp_path / "run", monkeypatch, **data)
    words = "step 6: the head of energy had died (same output for all structures); restarted from the weights of step"
    assert words in said
    assert words in (tmp_path / "run" / "log.txt").read_text()
    assert result.notes[0].startswith(words)
    rates = [entry["learning_rate"] for entry in journal(tmp_path / "run")]
    whole = [learning_rate(FinetuneOptimiserSettings(), step, 12) for step in range(12)]
    # The seventh step was begun at the old rate.
    assert rates == pytest.approx([*whole[:7], *(rate / 2 for rate in whole[7:])])
    assert result.best_step != 6
    energy = load_model(tmp_path / "run" / "model").module.heads["molecules"]["energy"]  # type: ignore[index]
    assert all(parameter.abs().max() < 100 for parameter in energy.parameters())


def test_a_head_that_dies_again_and_again_ends_the_run(
    molecules: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(EutecticError, match=r"head of energy.*4th time.*lower --learning-rate"):
        with_a_head_killed_at(tuple(range(1, 12, 2)), molecules, tmp_path / "run", monkeypatch)


def test_the_best_step_weighs_every_property(molecules: Store, tmp_path: Path) -> None:
    chosen = settings(molecules, {"energy": {}, "forces": FORCES}, train={"steps": 12, "evaluate_every": 1})
    result = finetune(chosen, tmp_path / "both")
    relative = [np.array(result.curves[name]) / result.validation_baselines[name] for name in ("energy", "forces")]
    np.testing.assert_allclose(result.scores, np.mean(relative, axis=0), rtol=1e-12)
    assert result.best_step == int(np.argmin(result.scores))
    weights = {"score_weights": {"energy": 0.0}}
    forces = finetune(FinetuneSettings.model_validate(chosen.model_dump() | weights), tmp_path / "forces")
    assert forces.best_step == int(np.argmin(forces.curves["forces"]))
    with pytest.raises(ValueError, match="score_weights of gap, which are not learned"):
        FinetuneSettings.model_validate(chosen.model_dump() | {"score_weights": {"gap": 1.0}})


def test_what_is_seen_and_kept_of_a_run(molecules: Store, tmp_path: Path) -> None:
    chosen = settings(molecules, {"energy": {}, "forces": FORCES}, train={"steps": 10, "evaluate_every": 5})
    said = Console(width=1000, file=io.StringIO())
    result = finetune(chosen, tmp_path / "run", console=said)
    lines = said.file.getvalue().splitlines()  # type: ignore[attr-defined]
    last = next(line for line in reversed(lines) if line.startswith("step 10/10"))
    assert "epoch 2.0" in last
    assert "structures/s" in last
    assert f"score {result.scores[-1]:.4f}" in last
    assert last in (tmp_path / "run" / "log.txt").read_text()
    noted = {e["step"]: e["validation"] for e in journal(tmp_path / "run") if "validation" in e}
    assert sorted(noted) == [5, 10]
    assert noted[10]["errors"]["forces"] == result.errors[-1]
    assert noted[10]["score"] == result.scores[-1]


def test_the_training_error_is_that_of_the_loss(molecules: Store, tmp_path: Path) -> None:
    """With weights that do not change, the error from the losses of an epoch is the model's mean error."""
    chosen = settings(
        molecules,
        {"energy": {}, "forces": FORCES},
        train={"epochs": 1, "batch_size": 40, "evaluate_every": 1},
        optimiser={"learning_rate": 1e-12, "weight_decay": 0.0},
    )
    said = Console(width=1000, file=io.StringIO())
    finetune(chosen, tmp_path / "run", console=said)
    line = next(x for x in said.file.getvalue().splitlines() if x.startswith("step 1/1"))  # type: ignore[attr-defined]
    found = {name: float(error) for name, error in re.findall(r"(energy|forces) \S+ \(training (\S+)\)", line)}
    prepared, model = prepare_run(chosen), load_model(tmp_path / "run" / "model")
    items = TaskDataset(0, prepared.task, prepared.store, prepared.split.train).items()
    errors = evaluate(model.module, [prepared.task], items)["molecules"]
    assert found["energy"] == pytest.approx(1000 * errors["energy"].mae, rel=0.01)
    # Of vectors an estimate, exact for random directions; and each structure counts the same there.
    assert found["forces"] == pytest.approx(1000 * errors["forces"].mae, rel=0.15)


def test_errors_that_are_unknown_are_null(molecules: Store, tmp_path: Path) -> None:
    chosen = settings(molecules, train={"steps": 2, "evaluate_every": 1})
    chosen = FinetuneSettings.model_validate(
        chosen.model_dump() | {"data": chosen.data.model_dump() | {"train": 96, "validation": None, "test": None}}
    )
    result = finetune(chosen, tmp_path / "run")

    def none(constant: str) -> float:
        raise AssertionError(f"{constant} is not JSON")

    values = json.loads((tmp_path / "run" / "result.json").read_text(), parse_constant=none)
    assert values["curves"]["energy"] == [None, None, None]
    assert json.dumps(values) == json.dumps(result.to_dict())
    assert np.isnan(read_result(tmp_path / "run").errors).all()
