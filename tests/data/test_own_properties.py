"""Custom properties from the file to a prediction, defined only once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase.build import molecule
from typer.testing import CliRunner

from eutectic.atoms import PROPERTIES, EutecticError
from eutectic.check import check
from eutectic.checkpoints.model import TrainedModel, build_backbone, load_model, save_model
from eutectic.cli.app import app
from eutectic.data.catalogue import describe, open_store, prepare
from eutectic.graph import GraphSettings
from eutectic.models.multitask import MultitaskModel
from eutectic.tasks import TargetSettings, fit_task
from eutectic.train.settings import DataSettings, FinetuneSettings, PretrainSettings, parse

NAMES = ("H2O", "CH4", "C6H6", "NH3", "CO", "CH3OH", "H2CO", "C2H2")
DEFINE = "adsorption_energy=eV,extensive"
GRAPH = GraphSettings(cutoff=4.0, max_neighbours=8)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    made = []
    for i in range(24):
        atoms = molecule(NAMES[i % len(NAMES)])
        atoms.rattle(0.05, seed=i)
        atoms.info["E_ads"] = -0.1 * len(atoms) + 0.01 * random.normal()
        made.append(atoms)
    ase.io.write(tmp_path / "my.xyz", made)
    return tmp_path / "my.xyz"


@pytest.fixture
def store(source: Path, tmp_path: Path) -> Path:
    keys = {"adsorption_energy": "E_ads"}
    made = prepare("ase", source, tmp_path / "ads", keys=keys, define=[DEFINE], workers=1, progress=False)
    PROPERTIES.pop("adsorption_energy")
    return made


def elsewhere(code: str) -> str:
    """What a new process prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300)
    assert not done.returncode, done.stderr
    return done.stdout.strip()


def test_from_the_command_line(source: Path, tmp_path: Path) -> None:
    command = ["data", "prepare", "ase", "--source", str(source), "--key", "adsorption_energy=E_ads"]
    made = CliRunner().invoke(app, [*command, "--define", DEFINE, "--store", str(tmp_path / "ads")])
    assert made.exit_code == 0, made.output
    PROPERTIES.pop("adsorption_energy")
    shown = CliRunner().invoke(app, ["data", "info", str(tmp_path / "ads"), "--json"])
    assert json.loads(shown.output)["labels"] == {"adsorption_energy": {"count": 24, "unit": "eV"}}


def test_several_processes(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eutectic.data.prepare.PART_RECORDS", 8)
    keys = {"adsorption_energy": "E_ads"}
    made = prepare("ase", source, tmp_path / "ads", keys=keys, define=[DEFINE], workers=2, progress=False)
    assert open_store(made).label_counts() == {"adsorption_energy": 24}


def test_a_second_process_knows_it(store: Path) -> None:
    code = f"""
from eutectic.data.catalogue import open_store
from eutectic.atoms import PROPERTIES
store = open_store({str(store)!r})
print(PROPERTIES["adsorption_energy"].definition, float(store[0].labels["adsorption_energy"]))
"""
    definition, value = elsewhere(code).split()
    assert definition == DEFINE
    assert float(value) == pytest.approx(-0.3, abs=0.05)


def test_a_model_knows_it(store: Path, tmp_path: Path) -> None:
    opened = open_store(store)
    targets = {"adsorption_energy": TargetSettings()}
    task = fit_task("ads", opened, np.arange(16), targets, GRAPH)
    backbone, settings = build_backbone("painn", {"width": 16, "layers": 1, "cutoff": 4.0})
    module = MultitaskModel(backbone, {"ads": task.heads})
    model = TrainedModel(
        module=module.eval(),
        tasks=(task,),
        backbone="painn",
        backbone_settings=settings.model_dump(mode="json"),
        graph=GRAPH,
    )
    save_model(tmp_path / "model", model)
    PROPERTIES.pop("adsorption_energy")
    (again,) = load_model(tmp_path / "model").tasks
    assert again.property("adsorption_energy").definition == DEFINE
    assert again.to_dict() == task.to_dict()
    code = f"""
from ase.build import molecule
from eutectic.atoms import Structure
from eutectic.checkpoints.model import load_model, describe_model
from eutectic.predict.prediction import predict
model = load_model({str(tmp_path / "model")!r})
(found,) = predict(model, "ads", [Structure.from_ase(molecule("H2O"))])
print(describe_model(model)["tasks"]["ads"]["properties"], found)
"""
    assert elsewhere(code).startswith("{'adsorption_energy': 'eV'} ")


def test_settings(store: Path) -> None:
    values = {"data": {"store": str(store)}, "targets": {"adsorption_energy": {}}, "start": "scratch"}
    assert parse(FinetuneSettings, values, "settings").define == ()
    assert PROPERTIES.pop("adsorption_energy").definition == DEFINE
    with pytest.raises(EutecticError, match="'adsorption_energy': an unknown property"):
        parse(FinetuneSettings, {**values, "data": {"store": "molecules"}}, "settings")
    for define in (DEFINE, [DEFINE], (DEFINE,)):
        for given in ({"define": define}, {"data": {"store": "molecules", "define": define}}):
            parse(FinetuneSettings, {**values, "data": {"store": "molecules"}, **given}, "settings")
            assert PROPERTIES.pop("adsorption_energy").definition == DEFINE
        one = {"store": "molecules", "targets": {"adsorption_energy": {}}}
        for sets in ({"sets": {"a": one}, "define": define}, {"sets": {"a": {**one, "define": define}}}):
            parse(PretrainSettings, sets, "settings")
            PROPERTIES.pop("adsorption_energy")
    with pytest.raises(EutecticError, match=r"the option 'extensiv'.*did you mean 'extensive'"):
        DataSettings.model_validate({"store": "molecules", "define": ["e=eV,extensiv"]})
    with pytest.raises(EutecticError, match="define"):
        parse(DataSettings, {"store": "molecules", "define": 3}, "settings")


def test_check(source: Path, store: Path) -> None:
    assert check(source, keys={"adsorption_energy": "E_ads"}, define=[DEFINE]).labels == {"adsorption_energy": 24}
    with pytest.raises(EutecticError, match=r"no 'E_asd' for adsorption_energy.*--key adsorption_energy=E_ads"):
        check(source, keys={"adsorption_energy": "E_asd"})
    PROPERTIES.pop("adsorption_energy")
    assert check(store).labels == {"adsorption_energy": 24}
    assert describe(open_store(store))["labels"] == {"adsorption_energy": {"count": 24, "unit": "eV"}}
