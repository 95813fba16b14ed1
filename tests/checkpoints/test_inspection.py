"""What a model is, told in facts and as a card, and how two models differ."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from eutectic import cli
from eutectic.atoms import EutecticError
from eutectic.checkpoints.inspection import card_of, compare_models, inspect_model
from eutectic.checkpoints.model import TrainedModel, build_backbone, save_model
from eutectic.graph import GraphSettings
from eutectic.models.heads import HeadSettings
from eutectic.models.multitask import MultitaskModel
from eutectic.tasks import Normaliser, Target, TargetSettings, Task
from eutectic.tasks.references import References

GRAPH = GraphSettings(cutoff=4.0, max_neighbours=12)
ROWS = {"dataset": "water", "fingerprint": "abc123", "split": "random", "rows": 90, "digest": "d"}
PROVENANCE = {
    "eutectic": "0.1.0",
    "finetuned_on": "water",
    "structures": 90,
    "steps": 20,
    "seed": 1,
    "level_of_theory": "PBE | with a <b>bar</b>",
    "licence": "CC-BY-4.0",
    "elements": [1, 8],
    "learned_rows": [ROWS],
    "pretrained": {
        "pretrained_on": {"other": {"structures": 1000, "theory": "xTB", "licence": "CC0", "elements": [6]}}
    },
}


def model(width: int = 8, scale: float = 2.0) -> TrainedModel:
    references = References(property="energy", values={1: -13.6, 8: -2000.0})
    target = Target(TargetSettings(head=HeadSettings(layers=1)), Normaliser(references, 0.0, scale), 1.0)
    task = Task("mine", "PBE", {"energy": target}, GRAPH)
    settings = {"width": width, "layers": 1, "cutoff": 4.0}
    torch.manual_seed(0)
    module = MultitaskModel(build_backbone("painn", settings)[0], {"mine": task.heads})
    return TrainedModel(module, (task,), "painn", settings, GRAPH, PROVENANCE)


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    save_model(tmp_path / "run" / "model", model())
    errors = {"test_errors": {"energy": 4.5}, "test_baselines": {"energy": 50.0}}
    words = {"units": {"energy": "meV/atom"}, "metrics": {"energy": "mean absolute error"}}
    (tmp_path / "run" / "result.json").write_text(json.dumps(errors | words))
    return tmp_path / "run"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(one) for one in arguments], env={"COLUMNS": "240"})


def test_the_facts_of_a_model(run_folder: Path) -> None:
    facts = inspect_model(run_folder)
    assert json.loads(json.dumps(facts)) == facts
    assert facts["settings"].items() >= {"width": 8, "layers": 1, "cutoff": 4.0}.items()
    assert facts["elements"] == ["H", "C", "O"]
    assert facts["tasks"]["mine"]["predicts"]["energy"]["references"] == {"H": -13.6, "O": -2000.0}
    own, before = facts["training_data"]
    assert (own["name"], own["stage"], own["licence"], own["fingerprints"]) == (
        "water",
        "fine-tuning",
        "CC-BY-4.0",
        ["abc123"],
    )
    assert (before["name"], before["stage"], before["level_of_theory"]) == ("other", "pre-training", "xTB")
    assert facts["errors"]["energy"]["error"] == 4.5
    assert facts["bytes"] == (run_folder / "model" / "model.safetensors").stat().st_size
    assert facts["sealed"]


def test_the_shipped_model(tmp_path: Path) -> None:
    facts = inspect_model("eutectic-small")
    assert {one["name"] for one in facts["training_data"]} == set(facts["tasks"])
    assert {one["licence"] for one in facts["training_data"]} == {"CC0-1.0"}
    assert facts["errors"] is None
    assert "Not recorded" in card_of(facts)


def test_the_card_is_markdown_whatever_the_names(run_folder: Path) -> None:
    result = run("inspect", run_folder, "--card")
    assert result.exit_code == 0, result.output
    (row,) = [line for line in result.stdout.splitlines() if line.startswith("| water")]
    assert "PBE \\| with a &lt;b>bar" in row
    assert "<b>" not in result.stdout
    assert "| energy | 4.5 | 50 | meV/atom | mean absolute error |" in result.stdout
    assert inspect_model(run_folder)["sha256"]["model.safetensors"] in result.stdout


def test_the_command_inspect(run_folder: Path) -> None:
    text = run("inspect", run_folder).stdout
    for words in (
        "painn",
        "energy (eV, scalar)",
        "CC-BY-4.0",
        "abc123",
        "meV/atom",
        "width 8",
        "unchanged since written",
    ):
        assert words in text
    assert json.loads(run("inspect", run_folder, "--json").stdout) == inspect_model(run_folder)
    assert isinstance(run("inspect", run_folder, "--json", "--card").exception, EutecticError)
    assert isinstance(run("inspect", "absent").exception, EutecticError)


def test_two_models_differ_in_what_was_changed(run_folder: Path, tmp_path: Path) -> None:
    assert compare_models(run_folder, run_folder)["facts"] == {}
    other = model(scale=3.0)
    weight = other.module.backbone.embedding.weight
    with torch.no_grad():
        weight *= 1.1
    save_model(tmp_path / "other", replace(other, provenance=PROVENANCE | {"seed": 2}))
    found = compare_models(run_folder / "model", tmp_path / "other")
    assert found["facts"]["training.seed"] == [1, 2]
    assert found["facts"]["tasks.mine.predicts.energy.scale"] == [2.0, 3.0]
    assert {name.partition(".")[0] for name in found["facts"]} == {"training", "tasks", "errors"}
    weights = found["weights"]
    assert weights["changed"] == 1
    assert weights["largest_change"]["tensor"] == "backbone.embedding.weight"
    assert weights["largest_change"]["relative"] == pytest.approx(0.1, rel=1e-4)
    save_model(tmp_path / "wide", model(width=16))
    wide = compare_models(run_folder, tmp_path / "wide")
    assert wide["facts"]["settings.width"] == [8, 16]
    assert "backbone.embedding.weight" in wide["weights"]["other_shape"]
    text = " ".join(run("diff", run_folder, tmp_path / "other").stdout.split())
    assert "training.seed" in text
    assert "1 changed, by at most 10.0% (backbone.embedding.weight)" in text
    assert json.loads(run("diff", run_folder, tmp_path / "wide", "--json").stdout) == wide


@pytest.mark.parametrize("command", ["inspect", "diff"])
def test_help_of_inspection_shows_examples(command: str) -> None:
    assert f"eutectic {command}" in run(command, "--help").output
