"""QMOF: both layouts, archives within archives, targets found by name or refcode, nothing read from outside."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eutectic.atoms import EutecticError, LabelledStructure
from eutectic.data.datasets import qmof

MATERIALS = [
    ("qmof-0000001", "ABACUF01_FSR", 1.5),
    ("qmof-0000002", "ABACUF02_FSR", None),
    ("qmof-0000003", "hypo-1", 2),
]


def structure(i: int) -> dict[str, Any]:
    return {
        "lattice": {"matrix": [[5.0 + i, 0, 0], [0, 6, 0], [0, 0, 7]]},
        "sites": [
            {"species": [{"element": "Zn", "occu": 1}], "abc": [0, 0, 0], "properties": {"pbe_ddec_charge": 0.5}},
            {"species": [{"element": "O", "occu": 1}], "abc": [0.5, 0.5, 0.5]},
        ],
    }


def tables() -> dict[str, str]:
    targets = [
        {"qmof_id": k, "name": n, "info": {"formula": "ZnO"}, "outputs": {"pbe": {"bandgap": g, "energy_total": -9}}}
        for k, n, g in MATERIALS
    ]
    structures = [{"qmof_id": k, "name": n, "structure": structure(i)} for i, (k, n, _) in enumerate(MATERIALS)]
    return {"qmof.json": json.dumps(targets), "qmof_structure_data.json": json.dumps(structures)}


def cif(a: float = 5.0, occupancy: float = 1.0) -> str:
    return f"""data_mof
_cell_length_a {a}
_cell_length_b 6
_cell_length_c 7
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
_symmetry_space_group_name_H-M 'P 1'
loop_
  _symmetry_equiv_pos_as_xyz
  'x, y, z'
loop_
  _atom_site_label
  _atom_site_occupancy
  _atom_site_fract_x
  _atom_site_fract_y
  _atom_site_fract_z
  _atom_site_type_symbol
  Zn1 1.0 0.0 0.0 0.0 Zn
  O1 {occupancy} 0.5 0.5 0.5 O
"""


def read(source: Path) -> list[LabelledStructure]:
    return [row for piece in qmof.pieces(source, "qmof") for row in qmof.read(piece, "qmof")]


def zipped(files: dict[str, str | bytes]) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as bundle:
        for name, content in files.items():
            bundle.writestr(name, content)
    return held.getvalue()


@pytest.mark.parametrize("layout", ["folder", "inner folder", "zip", "zip in a zip", "zip in a folder"])
def test_json(tmp_path: Path, layout: str) -> None:
    if "folder" in layout and "zip" not in layout:
        place = tmp_path / ("qmof_database" if layout == "inner folder" else ".")
        place.mkdir(exist_ok=True)
        for name, text in tables().items():
            (place / name).write_text(text)
        source = tmp_path
    else:
        inner = zipped({f"qmof_database/{name}": text for name, text in tables().items()})
        source = tmp_path / "qmof_database.zip"
        source.write_bytes(zipped({"qmof_database.zip": inner}) if layout == "zip in a zip" else inner)
        source = tmp_path if layout == "zip in a folder" else source
    rows = read(source)
    assert [r.id for r in rows] == [key for key, _, _ in MATERIALS]
    assert [r.group for r in rows] == ["ABACUF", "ABACUF", "OZn"]
    assert [dict(r.labels) for r in rows] == [{"band_gap": np.array(1.5)}, {}, {"band_gap": np.array(2.0)}]
    for row in rows:
        row.check(row.id)
    np.testing.assert_allclose(rows[1].structure.positions[1], [3.0, 3.0, 3.5])
    assert rows[0].structure.pbc.all()


def cifs(tmp_path: Path, layout: str) -> Path:
    files = {"ABACUF01_FSR.cif": cif(5), "ADODII_freeONLY.cif": cif(6), "qmof-9.cif": cif(7)}
    if layout == "folder":
        (tmp_path / "relaxed_structures").mkdir()
        for name, text in files.items():
            (tmp_path / "relaxed_structures" / name).write_text(text)
    elif layout == "zip":
        (tmp_path / "relaxed_structures.zip").write_bytes(zipped(dict(files)))
    else:
        with tarfile.open(tmp_path / "mofs.tar.xz", "w:xz") as tar:
            for name, text in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(text)
                tar.addfile(info, io.BytesIO(text.encode()))
            link = tarfile.TarInfo("outside.cif")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(link)
    return tmp_path


@pytest.mark.parametrize("layout", ["folder", "zip", "tar"])
def test_cifs(tmp_path: Path, layout: str) -> None:
    source = cifs(tmp_path, layout)
    (tmp_path / "qmof.csv").write_text(
        "qmof_id,name,outputs.pbe.bandgap\nqmof-1,ABACUF01_FSR,1.5\nqmof-2,ADODII_FSR,2.5\nqmof-9,hypo,\n"
    )
    rows = read(source)
    assert [r.group for r in rows] == ["ABACUF", "ADODII", "OZn"]
    assert [dict(r.labels) for r in rows] == [{"band_gap": np.array(1.5)}, {"band_gap": np.array(2.5)}, {}]
    assert [r.structure.cell[0, 0] for r in rows] == [5, 6, 7]
    np.testing.assert_allclose(rows[0].structure.positions[1], [2.5, 3, 3.5])
    assert rows[0].structure.pbc.all()


def test_pieces_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = cifs(tmp_path, "folder")
    (tmp_path / "targets.csv").write_text("ABACUF01_FSR,1.5\nADODII_FSR,2.5\n")
    monkeypatch.setattr(qmof, "CIFS_PER_PIECE", 2)
    assert [(p.first, p.count) for p in qmof.pieces(source, "qmof")] == [(0, 2), (2, 1)]
    assert [len(r.labels) for r in read(tmp_path / "targets.csv")] == [1, 1, 0]


def test_a_refcode_of_several_structures_names_none(tmp_path: Path) -> None:
    source = cifs(tmp_path, "folder")
    (tmp_path / "qmof.csv").write_text("ABACUF01_FSR,1.5\nADODII_FSR,2.5\nADODII_ASR,2.6\n")
    assert [len(r.labels) for r in read(source)] == [1, 0, 0]


def test_disorder(tmp_path: Path) -> None:
    (tmp_path / "A.cif").write_text(cif(occupancy=0.5))
    (tmp_path / "qmof.csv").write_text("A,1.5\n")
    with pytest.raises(EutecticError, match=r"partially occupied sites: O 0\.5"):
        read(tmp_path)


def test_links_out_of_the_folder_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret.cif").write_text(cif())
    source = tmp_path / "source"
    source.mkdir()
    (source / "qmof.csv").write_text("A,1.5\n")
    (source / "A.cif").symlink_to(tmp_path / "secret.cif")
    with pytest.raises(EutecticError, match="a link to outside"):
        read(source)


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(EutecticError, match="does not exist"):
        read(tmp_path / "absent")
    with pytest.raises(EutecticError, match="nothing of QMOF here"):
        read(tmp_path)
    with pytest.raises(EutecticError, match="data set 'qmof:1'"):
        qmof.pieces(tmp_path, "qmof:1")
    (tmp_path / "qmof.csv").write_text("A,1.5\n")
    with pytest.raises(EutecticError, match="no archives and no CIFs"):
        read(tmp_path)
    (tmp_path / "B.cif").write_text(cif())
    with pytest.raises(EutecticError, match="none of the 1 CIFs"):
        read(tmp_path)
    (tmp_path / "qmof.csv").write_text("B,wide\n")
    with pytest.raises(EutecticError, match="a name and a gap in eV") as caught:
        read(tmp_path)
    assert "line 1" in caught.value.where
    (tmp_path / "qmof.csv").write_text("B,1.5\n")
    for text in ("", "no cif", cif()[:200], cif().replace("0.5 0.5 0.5 O", "a b c O")):
        (tmp_path / "B.cif").write_text(text)
        with pytest.raises(EutecticError, match="not a CIF that ASE reads"):
            read(tmp_path)
    (tmp_path / "other.csv").write_text("B,1.5\n")
    (tmp_path / "qmof.csv").rename(tmp_path / "targets.csv")
    with pytest.raises(EutecticError, match="several tables"):
        read(tmp_path)


def test_broken_json_and_archives(tmp_path: Path) -> None:
    for name, text in tables().items():
        (tmp_path / name).write_text(text)
    for name in tables():
        for text in ("", "{", tables()[name][:-30], '[{"a": 1}]', "[1]"):
            (tmp_path / name).write_text(text)
            with pytest.raises(EutecticError, match="not readable"):
                read(tmp_path)
        (tmp_path / name).write_text(tables()[name])
    whole = zipped(dict(tables()))
    archive = tmp_path / "download.zip"
    for keep in (0, 20, len(whole) // 2):
        archive.write_bytes(whole[:keep])
        with pytest.raises(EutecticError, match="not readable"):
            read(archive)
    archive.write_bytes(zipped({"qmof.json": "[]"}))
    with pytest.raises(EutecticError, match="no qmof_structure_data"):
        read(archive)
    source = tmp_path / "tar"
    source.mkdir()
    cifs(source, "tar")
    (source / "qmof.csv").write_text("ABACUF01_FSR,1.5\n")
    packed = source / "mofs.tar.xz"
    packed.write_bytes(packed.read_bytes()[:-60])
    with pytest.raises(EutecticError, match="not readable"):
        read(source)


def test_card_and_file() -> None:
    assert qmof.names() == ("qmof",)
    assert qmof.card("qmof").properties == ("band_gap",)
    assert "13147324" in qmof.files("qmof")[0].url


def test_real_cifs(shared_data: Path) -> None:
    source = shared_data / "qmof_like" / "core_fsr_x_qmof_bandgap.csv"
    (piece,) = qmof.pieces(source, "qmof")
    rows = [row for row, _ in zip(qmof.read(piece, "qmof"), range(12), strict=False)]
    assert rows[0].id == "ACOLIP_freeONLY"
    assert rows[0].labels == {"band_gap": np.array(2.689994)}
    assert len(rows[0].structure) == 102
    # The table of all 13 058 gaps says the same, by refcode.
    gaps = qmof._csv_targets(shared_data / "qmof_like" / "qmof_13058_bandgap_targets.csv")
    for row in rows:
        row.check(row.id)
        found = qmof._find(gaps, row.id)
        assert found is not None
        assert found[1] == pytest.approx(float(row.labels["band_gap"]))


@pytest.mark.slow
def test_every_real_cif(shared_data: Path) -> None:
    rows = read(shared_data / "qmof_like" / "core_fsr_x_qmof_bandgap.csv")
    assert len(rows) == 259
    assert all("band_gap" in row.labels for row in rows)
    assert np.mean([len(row.structure) for row in rows]) == pytest.approx(94, abs=0.5)
