"""OC22: total energies, and files of OC20 refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyg_records import CELL, FORCES, LAYOUTS, NUMBERS, POSITIONS, TAGS, frame, pickled, write_aselmdb, write_lmdb

from eutectic.atoms import EutecticError, LabelledStructure
from eutectic.data.datasets import oc22


def rows(source: Path, name: str = "oc22") -> list[LabelledStructure]:
    found = [row for piece in oc22.pieces(source, name) for row in oc22.read(piece, name)]
    for row in found:
        row.check(row.id)
    return found


def record(**changed: Any) -> dict[str, Any]:
    free = torch.zeros(4)
    return frame(**{"y": -310.5, "fixed": free, "oc22": 1, "nads": 1, "sid": 6877, **changed})


@pytest.mark.parametrize("layout", LAYOUTS)
def test_s2ef_total(tmp_path: Path, layout: str) -> None:
    for shard in range(2):
        file = tmp_path / "s2ef-total" / "train" / f"data.{shard:04d}.lmdb"
        write_lmdb(file, [pickled(record(sid=shard, fid=i), layout) for i in range(3)])
    found = rows(tmp_path)
    assert [row.id for row in found] == ["0-0", "0-1", "0-2", "1-0", "1-1", "1-2"]
    assert [row.group for row in found] == ["0"] * 3 + ["1"] * 3
    for row in found:
        assert float(row.labels["energy"]) == -310.5
        np.testing.assert_allclose(row.labels["forces"], FORCES)
        np.testing.assert_allclose(row.structure.positions, POSITIONS)
        np.testing.assert_allclose(row.structure.cell, CELL)
        assert row.structure.numbers.tolist() == NUMBERS.tolist()
        # Nothing is fixed, and what lies below the surface is told by its tags alone.
        assert row.structure.tags.tolist() == TAGS.tolist()
        assert not row.structure.fixed.any()


def test_is2re_total(tmp_path: Path) -> None:
    relaxed = POSITIONS + np.array([0, 0, 0.5])
    fields = record(y=None, fid=None, force=None, y_init=-300.0, y_relaxed=-310.5, pos_relaxed=torch.tensor(relaxed))
    file = write_lmdb(tmp_path / "data.lmdb", [pickled(fields)], None)
    (initial,), (final,) = rows(file, "oc22:is2re"), rows(file, "oc22:relaxed")
    np.testing.assert_allclose(initial.structure.positions, POSITIONS)
    np.testing.assert_allclose(final.structure.positions, relaxed)
    for row in (initial, final):
        assert (row.id, {k: float(v) for k, v in row.labels.items()}) == ("6877", {"energy": -310.5})
    with pytest.raises(EutecticError, match="name oc22:is2re"):
        rows(file)
    with pytest.raises(EutecticError, match="name oc22"):
        rows(write_lmdb(tmp_path / "s2ef" / "data.lmdb", [pickled(record())]), "oc22:relaxed")


def test_records_of_oc20_are_refused(tmp_path: Path) -> None:
    file = write_lmdb(tmp_path / "data.lmdb", [pickled(record(oc22=None))])
    with pytest.raises(EutecticError, match=r"without the field oc22.*name oc20"):
        rows(file)


def test_what_is_not_known_is_absent(tmp_path: Path) -> None:
    file = write_lmdb(
        tmp_path / "data.lmdb",
        [pickled(record(y=float("nan"))), pickled(record(y=None, force=None, oc22=None, fid=1))],
    )
    first, second = rows(file)
    assert set(first.labels) == {"forces"}
    assert second.labels == {}


def test_aselmdb(tmp_path: Path) -> None:
    row = {
        "numbers": NUMBERS.tolist(),
        "positions": POSITIONS.tolist(),
        "cell": CELL.tolist(),
        "pbc": [True] * 3,
        "tags": TAGS.tolist(),
        "energy": -310.5,
        "forces": FORCES.tolist(),
        "data": {"sid": 6877, "fid": 2},
    }
    (found,) = rows(write_aselmdb(tmp_path / "data.aselmdb", [row]))
    assert (found.id, found.group, float(found.labels["energy"])) == ("6877-2", "6877", -310.5)
    assert found.structure.tags.tolist() == TAGS.tolist()
    np.testing.assert_allclose(found.labels["forces"], FORCES)
    with pytest.raises(EutecticError, match="no entry sid"):
        rows(write_aselmdb(tmp_path / "other" / "data.aselmdb", [{**row, "data": {}}]))


def test_an_archive_is_to_be_unpacked(tmp_path: Path) -> None:
    (file,) = oc22.files("oc22")
    (tmp_path / file.name).write_bytes(b"whatever is in it")
    with pytest.raises(EutecticError, match=re.escape(f"tar -xf {tmp_path / file.name} -C {tmp_path})")):
        oc22.pieces(tmp_path, "oc22")


def test_cards_and_files() -> None:
    for name in oc22.names():
        assert oc22.card(name).name == name
        (file,) = oc22.files(name)
        assert file.url.endswith(f"/oc22/{file.name}")
        assert len(file.checksum.removeprefix("md5:")) == 32
        assert oc22.published_splits(Path("anywhere"), name) == {}
    assert oc22.card("oc22").properties == ("energy", "forces")
    assert oc22.card("oc22:is2re").properties == ("energy",)


def test_real_files_of_oc20_are_refused(shared_data: Path) -> None:
    with pytest.raises(EutecticError, match="name oc20"):
        rows(shared_data / "oc20" / "s2ef" / "val_20")
