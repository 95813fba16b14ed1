"""Every shared real data set: prepared, counted, checked and trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from shared_sets import NOT_SETS, SETS, NotASet, SharedSet, go_through

from eutectic.atoms import EutecticError
from eutectic.data.catalogue import prepare
from eutectic.data.datasets import qm9
from eutectic.data.splits import split

PARAMETERS = [pytest.param(s, id=s.title, marks=[pytest.mark.slow] if s.slow else []) for s in SETS]


@pytest.mark.parametrize("which", PARAMETERS)
def test_a_real_data_set(which: SharedSet, shared_data: Path, tmp_path: Path) -> None:
    if not which.place and qm9.installed() is None:
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


@pytest.mark.parametrize("which", NOT_SETS, ids=lambda which: which.place)
def test_a_real_file_nothing_can_be_learned_from(which: NotASet, shared_data: Path, tmp_path: Path) -> None:
    if not (shared_data / which.place).exists():
        pytest.skip(f"{which.place} is not in the folder of real data sets")
    with pytest.raises(EutecticError, match=which.told):
        prepare(which.name, shared_data / which.place, tmp_path / "store", progress=False)
    assert not (tmp_path / "store").exists()


def test_no_real_file_is_forgotten(shared_data: Path) -> None:
    """Each is read in some test, alone or beside others, or is known not to be a set."""
    beside = {"matbench/matbench_jdft2d.json.gz", "qmof_like/core_mof_fsr_cifs_259.tar.xz"}
    # The folder `matbench` is that of one task: a file in it has to be named.
    known = {which.place for which in (*SETS, *NOT_SETS) if which.place} - {"matbench"} | beside
    places = (path.relative_to(shared_data) for path in sorted(shared_data.rglob("*")) if path.is_file())
    forgotten = [
        place.as_posix()
        for place in places
        if not place.name.startswith(("LICENSE", "PROVENANCE"))
        if not known & {place.as_posix(), *(folder.as_posix() for folder in place.parents)}
    ]
    assert forgotten == []
