"""Validation errors, broken down."""

from __future__ import annotations

import json
from pathlib import Path

from eutectic.data.store import Store


def test_errors_by_size_and_element_add_up(molecules_run: Path, molecules: Store) -> None:
    written = json.loads((molecules_run / "validation.json").read_text())
    whole = written["validation"][-1]["by_set"]["molecules"]
    for kind in ("size", "element"):
        errors = written["errors"][kind]["molecules"]["forces"]
        assert min(errors.values()) <= whole["forces_mae"] <= max(errors.values())
    assert set(written["errors"]["element"]["molecules"]) == {"forces"}
