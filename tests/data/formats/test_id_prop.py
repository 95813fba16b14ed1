"""Tables of labels beside files of structures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ase.io
import pytest
from ase.build import bulk

from eutectic.atoms import EutecticError
from eutectic.check.files import open_data
from eutectic.data import catalogue
from eutectic.data.datasets import ase_files
from eutectic.data.store import Store

SYMBOLS = ("Cu", "Ag", "Au", "Al")


def folder(path: Path, table: str = "", name: str = "id_prop.csv") -> Path:
    path.mkdir()
    for i, symbol in enumerate(SYMBOLS):
        ase.io.write(path / f"s{i}.{'cif' if i % 2 else 'vasp'}", bulk(symbol))
    (path / "atom_init.json").write_text("{}")
    (path / name).write_text(table or "".join(f"s{i}.{'cif' if i % 2 else 'vasp'},{i}.5\n" for i in range(4)))
    return path


def prepared(source: Path, store: Path, **options: Any) -> Store:
    return Store(catalogue.prepare("ase", source, store, workers=1, progress=False, **options))


@pytest.mark.parametrize(
    "table",
    [
        "",
        "s0,0.5\ns1,1.5\ns2,2.5\ns3,3.5\n",
        "\ufefffile, target\r\ns0.vasp, 0.5\r\ns1.cif, 1.5\r\n\r\ns2.vasp, 2.5\r\ns3.cif, 3.5",
    ],
)
def test_labels_of_a_table(tmp_path: Path, table: str) -> None:
    source = folder(tmp_path / "set", table)
    options = {"keys": {"gap": "id_prop"}, "units": {"gap": "hartree"}}
    store = prepared(source, tmp_path / "store", **options)
    assert [float(row.labels["gap"]) / 27.211386 for row in store] == pytest.approx([0.5, 1.5, 2.5, 3.5], rel=1e-6)
    assert [str(row.structure.to_ase().symbols) for row in store] == list(SYMBOLS)
    assert "not read as structures: atom_init.json" in store.card.notes
    assert len(prepared(source / "id_prop.csv", tmp_path / "other", **options)) == 4
    assert len(open_data(prepared(source, tmp_path / "third", **options).path)) == 4


def test_a_header_names_the_labels(tmp_path: Path) -> None:
    table = "id,band_gap,is_metal,ours\n" + "".join(f"s{i},{i}.5,{'true' if i else 'F'},\n" for i in range(4))
    source = folder(tmp_path / "set", table)
    store = prepared(source, tmp_path / "store", units={"band_gap": "eV"})
    assert store.label_counts() == {"band_gap": 4, "is_metal": 4}
    assert [float(row.labels["is_metal"]) for row in store] == [0, 1, 1, 1]
    with pytest.raises(EutecticError, match=r"no unit of band_gap.*--unit band_gap=eV"):
        prepared(source, tmp_path / "none")
    (source / "id_prop.csv").write_text("".join(f"s{i},{i}.5,{i}.25\n" for i in range(4)))
    store = prepared(source, tmp_path / "two", keys={"gap": "id_prop:2"}, units={"gap": "eV"})
    assert [float(row.labels["gap"]) for row in store] == [0.25, 1.25, 2.25, 3.25]


def test_a_folder_is_data_for_a_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EUTECTIC_DATA", str(tmp_path / "data"))
    source = folder(tmp_path / "set")
    options: dict[str, Any] = {"keys": {"gap": "id_prop"}, "units": {"gap": "eV"}}
    assert float(open_data(source, **options)[3].labels["gap"]) == 3.5
    (source / "id_prop.csv").write_text((source / "id_prop.csv").read_text().replace("3.5", "4.5"))
    assert float(open_data(source, **options)[3].labels["gap"]) == 4.5


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("s0,1\ns9,2\n", r"line 2: 's9', which is not there"),
        ("s0,1\n../set/s1.cif,2\n", r"line 2: '../set/s1.cif', which is not there"),
        ("s0,1\ns0.vasp,2\n", r"line 2: 's0.vasp' a second time"),
        ("s0,1\ns1\n", r"line 2: 1 columns; expected 2"),
        ("s0,1\ns1,2,3\n", r"line 2: 3 columns; expected 2"),
        ("s0\n", r"line 1: 1 columns"),
        ("", "no line"),
        ("s0,1\ns1,many\n", "structure 0, id_prop: 'many'"),
        ("s0,1\ns1,nan\n", "gap is not finite"),
    ],
)
def test_tables_that_cannot_be_read(tmp_path: Path, table: str, message: str) -> None:
    source = folder(tmp_path / "set")
    (source / "id_prop.csv").write_text(table)
    with pytest.raises(EutecticError, match=message):
        list(ase_files.read(source, {"gap": "id_prop"}))


def test_a_name_of_two_files(tmp_path: Path) -> None:
    source = folder(tmp_path / "set", "s0,1\n")
    ase.io.write(source / "s0.cif", bulk("Cu"))
    with pytest.raises(EutecticError, match="'s0', which may be s0"):
        list(ase_files.read(source))
    ase.io.write(source / "s0.xyz", [bulk("Cu"), bulk("Au")])
    (source / "id_prop.csv").write_text("s0.xyz,1\n")
    with pytest.raises(EutecticError, match="a second structure"):
        list(ase_files.read(source))
