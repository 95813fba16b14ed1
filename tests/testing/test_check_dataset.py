"""`check_dataset` finds stores whose card, ids or labels are wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from eutectic.atoms import LabelledStructure
from eutectic.data.store import Store, write_store
from eutectic.testing import ConformanceError, check_dataset, tiny_store


def rewritten(path: Path, **changes: object) -> Store:
    """A tiny store of molecules, written again with another card or other rows."""
    store = tiny_store(path / "right", "molecules", 4)
    rows = list(store)
    if (change := changes.pop("row", None)) is not None:
        rows = [change(row) for row in rows]  # type: ignore[operator]
    write_store(path / "wrong", replace(store.card, **changes), rows)  # type: ignore[arg-type]
    return Store(path / "wrong")


def test_an_empty_licence_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(ConformanceError, match=r"card\.licence is empty"):
        check_dataset(rewritten(tmp_path, licence=" "))


def test_a_label_without_values_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(ConformanceError, match="no structure has gap"):
        check_dataset(rewritten(tmp_path, properties=("energy", "forces", "gap")))


def test_a_repeated_id_is_noticed(tmp_path: Path) -> None:
    def same(row: LabelledStructure) -> LabelledStructure:
        return replace(row, id="one")

    with pytest.raises(ConformanceError, match="3 ids occur twice"):
        check_dataset(rewritten(tmp_path, row=same))


def test_a_net_force_is_only_advisory(tmp_path: Path) -> None:
    def pushed(row: LabelledStructure) -> LabelledStructure:
        return replace(row, labels={**row.labels, "forces": row.labels["forces"] + 0.1})

    results = check_dataset(rewritten(tmp_path, row=pushed))
    assert [r.name for r in results if not r.passed] == ["net force"]
    assert next(r for r in results if not r.passed).worst == pytest.approx(0.1, rel=1e-3)
