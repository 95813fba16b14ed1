"""Which rows a model has seen, by its provenance."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eutectic.checkpoints.model import load_model
from eutectic.checkpoints.seen_rows import LearnedRows, merged_records, seen_rows
from eutectic.data.catalogue import open_store
from eutectic.data.splits import split
from eutectic.data.store import Store
from eutectic.testing import tiny_store


def provenance_of(*records: LearnedRows, **more: Any) -> dict[str, Any]:
    return {"pretrained_on": {"some_set": {"learned_rows": [r.to_dict() for r in records]}}, **more}


def record_of(store: Store, **asked: Any) -> LearnedRows:
    return LearnedRows.of(store, split(store, "random", **asked), **asked)


def test_the_training_part_and_nothing_else(molecules: Store, slabs: Store) -> None:
    parts = split(molecules, "random", n_validation=8)
    provenance = provenance_of(record_of(molecules, n_validation=8))
    seen = seen_rows(provenance, molecules)
    assert seen is not None
    np.testing.assert_array_equal(seen, parts.train)
    assert not np.isin(parts.test, seen).any()
    others = seen_rows(provenance, slabs)
    assert others is not None
    assert len(others) == 0


def test_several_trainings_add_up(molecules: Store) -> None:
    first, second = record_of(molecules, n_validation=8), record_of(molecules, n_validation=8, seed=1)
    expected = np.union1d(*(split(molecules, "random", n_validation=8, seed=seed).train for seed in (0, 1)))
    merged = merged_records({"learned_rows": [first.to_dict()]}, second)
    assert merged_records({"learned_rows": merged}, first) == [second.to_dict(), first.to_dict()]
    finetuned = {
        "finetuned_on": "tiny_molecules",
        "learned_rows": [second.to_dict()],
        "pretrained": provenance_of(first),
    }
    for provenance in ({"pretrained_on": {"m": {"learned_rows": merged}}}, finetuned):
        seen = seen_rows(provenance, molecules)
        assert seen is not None
        np.testing.assert_array_equal(seen, expected)


@pytest.mark.parametrize(
    "provenance",
    [
        {"pretrained_on": {"tiny_molecules": {"structures": 80, "elements": [1, 6]}}},
        {"finetuned_on": "tiny_molecules"},
        {"finetuned_on": "other", "pretrained": {"pretrained_on": {"tiny_molecules": {}}}},
    ],
)
def test_an_older_model_does_not_know(
    molecules: Store, slabs: Store, caplog: pytest.LogCaptureFixture, provenance: Mapping[str, Any]
) -> None:
    assert seen_rows(provenance, molecules) is None
    assert "errors may be too low" in caplog.text
    others = seen_rows(provenance, slabs)
    assert others is not None
    assert len(others) == 0
    # What a model learned before its training went on with a record stays unknown.
    continued = provenance_of(record_of(molecules), started_from=provenance)
    assert seen_rows(continued, molecules) is None


def test_another_version_of_the_same_data_is_unknown(molecules: Store, tmp_path: Path) -> None:
    shorter = tiny_store(tmp_path / "molecules", "molecules", 60)
    assert shorter.card.name == molecules.card.name
    assert seen_rows(provenance_of(record_of(molecules)), shorter) is None


def test_a_split_that_cannot_be_repeated_is_unknown(molecules: Store, caplog: pytest.LogCaptureFixture) -> None:
    values = record_of(molecules).to_dict()
    for change in ({"seed": 1}, {"split": "official_01"}):
        assert seen_rows(provenance_of(LearnedRows.from_dict(values | change)), molecules) is None
    assert "cannot be reproduced" in caplog.text


def test_the_model_in_the_package_learned_from_other_stores_than_the_embedded_ones() -> None:
    model = load_model("eutectic-small")
    assert seen_rows(model.provenance, open_store("molecules")) is None
    crystals = seen_rows(model.provenance, open_store("crystals"))
    assert crystals is not None
    assert len(crystals) == 0
