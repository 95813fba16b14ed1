"""A teacher's predictions as a store: labels are its predictions, and name it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from eutectic.atoms import EutecticError
from eutectic.checkpoints.model import load_model
from eutectic.data.store import Store
from eutectic.predict.distillation import distil
from eutectic.predict.prediction import predict


def test_labels_are_the_teachers_predictions(molecules: Store, tmp_path: Path) -> None:
    teacher = load_model("eutectic-small")
    task = next(one.name for one in teacher.tasks if one.name == "molecules")
    written, left_out = distil(teacher, molecules.path, tmp_path / "t", name="eutectic-small", task=task)
    made = Store(tmp_path / "t")
    assert written == len(made) == len(molecules)
    assert not left_out
    assert "eutectic-small" in made.card.level_of_theory
    assert made.column("group").tolist() == molecules.column("group").tolist()
    some = [0, 40, len(molecules) - 1]
    for row, found in zip(some, predict(teacher, task, [molecules[i].structure for i in some]), strict=True):
        np.testing.assert_allclose(made[row].labels["energy"], found["energy"].reshape(()), rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(made[row].labels["forces"], found["forces"], rtol=1e-3, atol=1e-4)
    with pytest.raises(EutecticError, match="exists"):
        distil(teacher, molecules.path, tmp_path / "t", name="eutectic-small", task=task)


def test_a_property_that_the_teacher_lacks_is_refused(molecules: Store, tmp_path: Path) -> None:
    with pytest.raises(EutecticError, match="energy, forces"):
        distil(
            load_model("eutectic-small"), molecules.path, tmp_path / "t", name="x", task="molecules", properties=["gap"]
        )
