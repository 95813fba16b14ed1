"""QM9: the published layout, the package, and hand-computed energies."""

from __future__ import annotations

import importlib.util
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from eutectic.atoms import EutecticError, LabelledStructure
from eutectic.data.datasets import qm9

METHANE = (
    "5\n"
    "gdb 1\t157.7118\t157.70997\t157.70699\t0.\t13.21\t-0.3877\t0.1171\t0.5048\t35.3641\t0.044749\t"
    "-40.47893\t-40.476062\t-40.475117\t-40.498597\t6.469\t\n"
    "C\t-0.0126981359\t 1.0858041578\t 0.0080009958\t-0.535689\n"
    "H\t 0.002150416\t-0.0060313176\t 0.0019761204\t 0.133921\n"
    "H\t 1.0117308433\t 1.4637511618\t 2.765748*^-4\t 0.133922\n"
    "H\t-0.540815069\t 1.4475266138\t-0.8766437152\t 0.133923\n"
    "H\t-0.5238136345\t 1.4379326443\t 0.9063972942\t 0.133923\n"
    "1341.307\t1341.3284\t1341.365\t1562.6731\t1562.7453\t3038.3205\t3151.6034\t3151.6788\t3151.7078\n"
    "C\tC\t\n"
    "InChI=1S/CH4/h1H4\tInChI=1S/CH4/h1H4\n"
)


def read(source: Path) -> Iterator[LabelledStructure]:
    for piece in qm9.pieces(source, "qm9"):
        yield from qm9.read(piece, "qm9")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index in (1, 58, 61):
        text = METHANE.replace("gdb 1", f"gdb {index}")
        (tmp_path / f"dsgdb9nsd_{index:06d}.xyz").write_text(text)
    return tmp_path


def test_methane_by_hand(folder: Path) -> None:
    row = next(read(folder))
    row.check("methane")
    assert (row.id, row.group) == ("qm9-000001", "CH4/h1H4")
    assert row.structure.numbers.tolist() == [6, 1, 1, 1, 1]
    # Mathematica's way of writing 2.765748e-4.
    assert row.structure.positions[2, 2] == pytest.approx(2.765748e-4)
    # U0: −40.47893 − (−37.846772 − 4 × 0.500273) = −0.631066 Ha, × 27.21138602 eV.
    assert float(row.labels["u0"]) == pytest.approx(-17.172181, abs=2e-6)
    # H: −40.475117 + 37.844411 + 4 × 0.497912 = −0.639058 Ha; G: −40.498597 + 37.861317 + 4 × 0.510927.
    assert float(row.labels["h"]) == pytest.approx(-0.639058 * 27.21138602, abs=2e-6)
    assert float(row.labels["g"]) == pytest.approx(-0.593572 * 27.21138602, abs=2e-6)
    assert float(row.labels["u"]) == pytest.approx((-40.476062 + 37.845355 + 4 * 0.498857) * 27.21138602, abs=2e-6)
    assert float(row.labels["gap"]) == pytest.approx(0.5048 * 27.21138602)
    assert float(row.labels["homo"]) == pytest.approx(-10.549854, abs=1e-6)
    assert float(row.labels["lumo"] - row.labels["homo"]) == pytest.approx(float(row.labels["gap"]))
    assert float(row.labels["zpve"]) == pytest.approx(1.217682, abs=1e-6)
    unchanged = {"dipole_moment": 0.0, "polarizability": 13.21, "heat_capacity": 6.469}
    assert {k: float(row.labels[k]) for k in unchanged} == unchanged
    assert float(row.labels["electronic_spatial_extent"]) == 35.3641
    assert set(row.labels) == set(qm9.CARD.properties)


def test_folder_and_archive(folder: Path, tmp_path: Path) -> None:
    packed = tmp_path / "packed" / "dsgdb9nsd.xyz.tar.bz2"
    packed.parent.mkdir()
    with tarfile.open(packed, "w:bz2") as tar:
        for path in sorted(folder.glob("*.xyz")):
            tar.add(path, path.name)
    for source in (folder, packed):
        assert [m.id for m in read(source)] == ["qm9-000001", "qm9-000058", "qm9-000061"]


def test_uncharacterized_molecules_are_left_out(folder: Path) -> None:
    text = "3054 molecules\n   Index  SMILES\n   ------\n     58  C=C  1.0\n"
    (folder / "uncharacterized.txt").write_text(text)
    assert [m.id for m in read(folder)] == ["qm9-000001", "qm9-000061"]


def test_stereoisomers_share_a_group() -> None:
    left = "InChI=1S/C3H7NO2/c1-2(4)3(5)6/h2H,4H2,1H3,(H,5,6)/t2-/m0/s1"
    right = "InChI=1S/C3H7NO2/c1-2(4)3(5)6/h2H,4H2,1H3,(H,5,6)/t2-/m1/s1"
    assert qm9._constitution(left) == qm9._constitution(right) == "C3H7NO2/c1-2(4)3(5)6/h2H,4H2,1H3,(H,5,6)"


@pytest.mark.parametrize("keep", [0, 3, 40, 300])
def test_a_file_cut_short(folder: Path, keep: int) -> None:
    (folder / "dsgdb9nsd_000058.xyz").write_text(METHANE[:keep])
    with pytest.raises(EutecticError, match=r"dsgdb9nsd_000058\.xyz: not a readable QM9 file"):
        list(read(folder))


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(EutecticError, match="does not exist"):
        list(read(tmp_path / "absent"))
    with pytest.raises(EutecticError, match=r"no dsgdb9nsd_\*\.xyz here"):
        list(read(tmp_path))
    (tmp_path / "file.tar.bz2").write_bytes(b"BZh9 and nothing more")
    with pytest.raises(EutecticError, match="not readable"):
        list(read(tmp_path / "file.tar.bz2"))


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EutecticError, match=r"eutectic\[qm9\]"):
        qm9.package_files()
    assert qm9.installed() is None


def test_the_layout_of_the_package(folder: Path) -> None:
    head = ["Index", "InChi", "Elements", "XYZ_Ang", *qm9._PACKAGE_COLUMNS]
    numbers = METHANE.splitlines()[1].split()[2:]
    row = ["1", '"InChI=1S/CH4/h1H4"', "\"['C','H']\"", '"[[0.,0.,1.*^-3],[0.0,0.,1.09]]"', *numbers]
    (molecule,) = qm9._from_csv([",".join(head), ",".join(row)], "here")
    assert molecule.structure.numbers.tolist() == [6, 1]
    np.testing.assert_allclose(molecule.structure.positions, [[0, 0, 1e-3], [0, 0, 1.09]])
    assert float(molecule.labels["gap"]) == pytest.approx(0.5048 * 27.21138602)
    with pytest.raises(EutecticError, match="here, line 2: not a molecule of qm9pack"):
        list(qm9._from_csv([",".join(head), ",".join(row[:-1])], "here"))


@pytest.mark.skipif(importlib.util.find_spec("qm9pack") is None, reason="qm9pack is not installed")
def test_the_package_agrees_with_the_files(folder: Path) -> None:
    package = qm9.installed()
    assert package is not None
    here, there = next(read(package)), next(read(folder))
    assert (here.id, here.group, here.labels) == (there.id, there.group, there.labels)


def test_real_subset(shared_data: Path) -> None:
    """500 molecules in the published layout, against arrays made from another source."""
    archive = shared_data / "qm9" / "dsgdb9nsd_subset500.xyz.tar.bz2"
    rows = list(read(archive))
    assert len(rows) == 500
    with np.load(shared_data / "qm9" / "qm9_full.npz", allow_pickle=False) as full:
        index, n_atoms, numbers, values = (full[k] for k in ("index", "n_atoms", "Z", "properties"))
        assert tuple(full["property_names"]) == qm9.COLUMNS
    starts = np.cumsum(np.concatenate([[0], n_atoms]))
    for row in rows:
        row.check(row.id)
        at = int(np.searchsorted(index, int(row.id[4:])))
        z = numbers[starts[at] : starts[at + 1]].astype(np.int64)
        np.testing.assert_array_equal(row.structure.numbers, z)
        wanted = qm9.properties_from_row(z, values[at].tolist())
        assert {k: float(v) for k, v in row.labels.items()} == pytest.approx({k: float(v) for k, v in wanted.items()})
