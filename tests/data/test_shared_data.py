"""Every real data set that lies beside the project, through everything: prepared, counted, checked, trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from shared_sets import SETS, SharedSet, go_through

from eutectic.data.datasets import qm9
from eutectic.data.splits import split

PARAMETERS = [pytest.param(s, id=s.title, marks=[pytest.mark.slow] if s.slow else []) for s in SETS]


@pytest.mark.parametrize("which", PARAMETERS)
def test_a_real_data_set(which: SharedSet, shared_data: Path, tmp_path: Path) -> None:
    if not which.place and qm9.package_folder() is None:
        pytest.skip("the package qm9pack is not installed")
    if not (shared_data / which.place).exists():
        pytest.skip(f"{which.place} is not in the folder of real data sets")
    out = go_through(which, shared_data, tmp_path)
    assert len(out.store) == which.structures
    assert not out.store.left_out
    labels = {name: which.labels.get(name, which.structures) for name in out.store.card.properties}
    assert out.store.label_counts() == labels
    assert set(out.store.published_splits()) == set(which.splits)
    made = split(out.store)
    assert len(np.unique(np.concatenate([made.train, made.validation, made.test]))) <= which.structures
    assert out.report.ok, out.report.verdict
    assert {f.code for f in out.report.findings if f.severity == "warning"} == which.findings
    assert len(out.losses) == 2
    assert np.isfinite(out.losses).all()
