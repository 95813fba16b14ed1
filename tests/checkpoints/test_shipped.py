"""Models that come with the package."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from typer.testing import CliRunner

from eutectic import cli
from eutectic.atoms import EutecticError, Structure
from eutectic.checkpoints import shipped
from eutectic.checkpoints.model import describe_model, load_model
from eutectic.checkpoints.shipped import CARD, model_folder, shipped_models
from eutectic.predict.prediction import predict

NAMES = sorted(shipped_models())
RUNNER = CliRunner()


@pytest.fixture
def named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A shipped model called `some-model`, of which only the name is looked at."""
    folder = tmp_path / "shipped" / "some-model"
    folder.mkdir(parents=True)
    (folder / "model.json").write_text("{}")
    monkeypatch.setattr(shipped, "FOLDER", tmp_path / "shipped")
    return folder


def test_a_name_finds_the_package_and_a_path_comes_first(
    named: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert model_folder("some-model") == named
    monkeypatch.chdir(tmp_path)
    (tmp_path / "some-model").mkdir()
    assert model_folder("some-model") == Path("some-model")
    with pytest.raises(EutecticError, match="did you mean 'some-model'"):
        model_folder("some-modle")
    with pytest.raises(EutecticError, match="the folder …/model"):
        model_folder(tmp_path / "nowhere")


@pytest.mark.parametrize("name", NAMES)
def test_shipped_model_is_whole_small_and_of_clean_origin(name: str) -> None:
    folder = model_folder(name)
    assert sum(file.stat().st_size for file in folder.iterdir()) < 16e6
    assert len((folder / CARD).read_text()) > 1000
    told = describe_model(load_model(folder))
    json.dumps(told)
    pretrained_on = told["provenance"]["pretrained_on"]  # type: ignore[index]
    assert {one["licence"] for one in pretrained_on.values()} == {"CC0-1.0"}
    assert set(pretrained_on) == set(told["tasks"])  # type: ignore[call-overload]


@pytest.mark.parametrize("name", NAMES)
def test_shipped_model_knows_a_stretched_bond(name: str) -> None:
    model = load_model(name)
    water = Atoms("OH2", [(0, 0, 0), (0.96, 0, 0), (-0.24, 0.93, 0)])
    stretched = water.copy()
    stretched.positions[1, 0] += 0.3
    near, far = predict(model, "molecules", [Structure.from_ase(a) for a in (water, stretched)])
    # GFN2-xTB, a neutral closed shell: 0.3 Å cost more than half an electronvolt, and the bond pulls back by more than
    # 3 eV/Å.
    assert float(far["energy"]) - float(near["energy"]) > 0.5
    assert far["forces"][1, 0] < -3
    assert np.abs(near["forces"]).max() < 1.5


@pytest.mark.parametrize("name", NAMES)
def test_the_commands_take_its_name(name: str, tmp_path: Path) -> None:
    assert name in RUNNER.invoke(cli.app, ["models"]).output
    told = json.loads(RUNNER.invoke(cli.app, ["models", name, "--json"]).output)
    assert told["parameters"] > 0
    short = [
        "--train",
        "8",
        "--validation",
        "4",
        "--test",
        "4",
        "--steps",
        "2",
        "--batch-size",
        "4",
        "--train.threads",
        "1",
    ]
    out = tmp_path / "run"
    result = RUNNER.invoke(
        cli.app, ["finetune", "md_aspirin", "-p", "forces", "--model", name, *short, "--out", str(out)]
    )
    assert result.exit_code == 0, result.output
    assert json.loads((out / "result.json").read_text())["test_error"] > 0
    assert "<html" in (out / "report.html").read_text()
    assert load_model(out / "model").tasks[0].name == "md_aspirin"


def test_models_without_a_name(named: Path) -> None:
    # A model that cannot be read is told of, not passed over.
    result = RUNNER.invoke(cli.app, ["models"])
    assert isinstance(result.exception, EutecticError)
