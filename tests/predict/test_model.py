"""A loaded model: predictions of one structure and of many, tasks by name, a friendly description."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase.build import molecule

import eutectic
from eutectic.atoms import EutecticError, Structure
from eutectic.checkpoints.model import TrainedModel, load_model, save_model
from eutectic.predict.model import Model


@pytest.fixture(scope="module")
def model() -> Model:
    return eutectic.load("eutectic-small", device="cpu")


def test_one_structure_gives_one_prediction_and_many_a_list(model: Model) -> None:
    water = molecule("H2O")
    one = model.predict(water, task="molecules")
    many = model.predict([Structure.from_ase(water), molecule("CH4")], task="molecules")
    assert one["energy"].shape == ()
    assert one["forces"].shape == (3, 3)
    assert [p["forces"].shape for p in many] == [(3, 3), (5, 3)]
    np.testing.assert_allclose(many[0]["forces"], one["forces"], atol=1e-4)
    assert model.predict([], task="molecules") == []


def test_a_task_must_be_named_where_there_are_several(model: Model) -> None:
    with pytest.raises(EutecticError, match="name one, such as 'metal_slabs'"):
        model.predict(molecule("H2O"))
    with pytest.raises(EutecticError, match="did you mean 'molecules'"):
        model.predict(molecule("H2O"), task="molecule")


def test_the_only_task_is_taken_and_a_run_folder_is_enough(model: Model, tmp_path: Path) -> None:
    trained = load_model("eutectic-small")
    task = next(task for task in trained.tasks if task.name == "molecules")
    for name in [n for n in trained.module.heads if n != "molecules"]:
        del trained.module.heads[name]
    alone = TrainedModel(trained.module, (task,), trained.backbone, trained.backbone_settings, trained.graph)
    save_model(tmp_path / "run" / "model", alone)
    found = eutectic.load(tmp_path / "run", device="cpu").predict(molecule("H2O"))
    expected = model.predict(molecule("H2O"), task="molecules")
    np.testing.assert_allclose(found["energy"], expected["energy"], rtol=1e-6)


def test_it_describes_itself(model: Model) -> None:
    text = repr(model)
    assert "gotennet" in text
    assert "molecules: energy (eV), forces (eV/Å); GFN2-xTB" in text
    assert model.tasks["molecules"] == {"energy": "eV", "forces": "eV/Å"}
    assert {"H", "C", "O"} <= set(model.elements)
