"""A model of each format that was ever written, by the version that wrote it, loads and predicts what it did then."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from ase.build import molecule

import eutectic
from eutectic.checkpoints.description import FORMAT, OLDER_FORMATS
from eutectic.checkpoints.inspection import card_of, inspect_model

STORED = sorted((Path(__file__).parent / "stored_models").iterdir())


@pytest.mark.parametrize("folder", STORED, ids=lambda folder: folder.name)
def test_a_stored_model_predicts_what_it_did(folder: Path) -> None:
    expected = json.loads((folder / "expected.json").read_text())
    found = eutectic.load(folder, device="cpu").predict([molecule(name) for name in expected["molecules"]])
    for one, values in zip(found, expected["predictions"], strict=True):
        assert one.keys() == values.keys()
        for name, value in values.items():
            np.testing.assert_allclose(one[name], value, rtol=1e-5, atol=1e-5)
    assert "toy" in card_of(inspect_model(folder))


def test_every_format_is_stored() -> None:
    formats = {json.loads((folder / "model.json").read_text())["format"] for folder in STORED}
    assert formats == {FORMAT, *OLDER_FORMATS}
