"""Units stated in files. Factors by hand from CODATA 2014 (as in ASE): Hartree 27.21138602 eV, bohr
0.52917721067 Å, kcal/mol 4184 J / (6.022140857e23 · 1.6021766208e-19 C) = 0.0433641043 eV."""

from __future__ import annotations

from pathlib import Path

import ase.db
import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from pyg_records import write_aselmdb

from eutectic.atoms import EutecticError
from eutectic.data import catalogue
from eutectic.data.datasets import ase_files, records
from eutectic.data.stated_units import stated, unit_of
from eutectic.data.store import Store

FORCES = np.array([[0.0, 0.0, 1.5], [0.0, 0.0, -1.5]])


@pytest.mark.parametrize(
    ("entries", "units"),
    [
        ({"energy_unit": "kcal/mol", "forces_units": "kcal/mol/Å"}, {"energy": "kcal/mol", "forces": "kcal/mol/Å"}),
        ({"unit_energy": "Ha", "units_of_forces": "Ha/bohr"}, {"energy": "Ha", "forces": "Ha/bohr"}),
        ({"_distance_unit": "Bohr", "_property_unit_dict": {"U0": "Ha"}}, {"distance": "Bohr", "u0": "Ha"}),
        ({"units": '"energy": "eV", "forces": "eV/A"'}, {"energy": "eV", "forces": "eV/A"}),
        ({"units": {"energy": np.array("hartree")}}, {"energy": "hartree"}),
        ({"unit": "hartree"}, {"": "hartree"}),
        ({"kcal/mol": True, "energy": -1.0}, {"": "kcal/mol"}),
        ({"e_unit": np.array("kcal/mol"), "r_unit": b"Ang"}, {"e": "kcal/mol", "r": "Ang"}),
        ({"key_descriptions": {"E": ["Energy", "", "Ry"], "note": ["a", "b", ""]}}, {"e": "Ry"}),
        ({"i": 0, "time": 0.0, "E": -17.1}, {"e": "hartree"}),
        ({"i": 0, "time": 0.0, "E": -17.1, "energy": 1.0}, {}),
        ({"unit_cell": "primitive", "eV": True, "formula_units": 4, "e": True}, {}),
    ],
)
def test_what_is_stated(entries: dict[str, object], units: dict[str, str]) -> None:
    assert stated(entries) == units


def test_whose_unit_it_is() -> None:
    said = {"energy": "kcal/mol", "e_dft": "hartree", "distance": "bohr"}
    assert unit_of("energy", "E_dft", {}, said) == "hartree"
    assert unit_of("energy", "REF_energy", {}, said) == "kcal/mol"
    assert unit_of("energy", "REF_energy", {"energy": "eV"}, said) == "eV"
    # The unit of an entry is not that of another one.
    assert unit_of("energy", "E_pbe", {}, said, ["energy", "E_pbe"]) is None
    assert unit_of("positions", "positions", {}, said) == "bohr"
    assert unit_of("forces", "forces", {}, said) is None
    for general, fits in (("eV", None), ("metal", None), ("bohr", None), ("angstrom", None)):
        assert unit_of("forces", "forces", {}, {"": general}) == fits
    assert unit_of("energy", "energy", {}, {"": "hartree"}) == "hartree"
    assert unit_of("energy", "energy_eV", {}, {}) is None


@pytest.mark.parametrize(
    ("entry", "said", "message"),
    [
        ("energy", {"energy": "furlong"}, "energy is in 'furlong'; expected a unit of energy, such as eV"),
        ("energy", {"energy": "eV/Å"}, "--unit energy=UNIT"),
        ("energy", {"": "real"}, "not of which numbers; .*--unit energy=eV"),
        ("energy (kcal/mol)", {}, "suggests kcal; .*--unit energy=kcal/mol"),
        ("E_Ha", {}, "--unit energy=hartree"),
    ],
)
def test_statements_that_do_not_help(entry: str, said: dict[str, str], message: str) -> None:
    with pytest.raises(EutecticError, match=message):
        unit_of("energy", entry, {}, said, where="mine.xyz")


def test_forces_are_not_in_a_unit_of_energy() -> None:
    with pytest.raises(EutecticError, match="--unit forces=eV/angstrom"):
        unit_of("forces", "forces", {}, {"": "hartree"})


def write(path: Path, **info: object) -> Path:
    atoms = Atoms("CO", positions=[[0, 0, 0], [0, 0, 2.0]], info=info)
    atoms.calc = SinglePointCalculator(atoms, energy=-1.0, forces=FORCES)
    ase.io.write(path, atoms)
    return path


def test_in_the_comment_of_extended_xyz(tmp_path: Path) -> None:
    file = write(tmp_path / "mine.xyz", energy_unit="hartree", forces_unit="hartree/bohr", positions_unit="bohr")
    store = Store(catalogue.prepare("ase", file, tmp_path / "store", workers=1))
    assert float(store[0].labels["energy"]) == pytest.approx(-27.211_386_02, rel=1e-9)
    np.testing.assert_allclose(store[0].labels["forces"], FORCES * 51.422_067, rtol=1e-7)
    np.testing.assert_allclose(store[0].structure.positions[1], [0, 0, 1.058_354_4], rtol=1e-7)
    assert "energy from 'energy' in hartree, as the file says: 1 structures" in store.card.notes
    assert "positions in bohr, as the file says: converted to Å" in store.card.notes
    found = ase_files.scan(file, units={"energy": "eV"})
    assert (
        "energy from 'energy' in eV (the file says hartree): 1 structures"
        in ase_files.card(file, found, units={"energy": "eV"}).notes
    )


def test_in_the_metadata_of_a_database(tmp_path: Path) -> None:
    with ase.db.connect(tmp_path / "mine.db") as db:
        db.write(Atoms("CO", positions=[[0, 0, 0], [0, 0, 2.0]]), data={"energy": np.array([-100.0]), "forces": FORCES})
        db.metadata = {
            "_distance_unit": "Bohr",
            "_property_unit_dict": {"energy": "kcal/mol", "forces": "kcal/mol/Bohr"},
        }
    (row,) = ase_files.read(tmp_path / "mine.db")
    assert float(row.labels["energy"]) == pytest.approx(-4.336_410_4, rel=1e-7)
    np.testing.assert_allclose(row.labels["forces"], FORCES * 0.043_364_104 / 0.529_177_21, rtol=1e-7)
    np.testing.assert_allclose(row.structure.positions[1], [0, 0, 1.058_354_4], rtol=1e-7)


def test_in_an_aselmdb(tmp_path: Path) -> None:
    row = {"numbers": [6, 8], "positions": [[0, 0, 0], [0, 0, 1.1]], "energy": -2.0, "data": {"energy_unit": "Ry"}}
    (read,) = ase_files.read(write_aselmdb(tmp_path / "mine.aselmdb", [row]))
    assert float(read.labels["energy"]) == pytest.approx(-27.211_386_02, rel=1e-9)


def test_cp2k(tmp_path: Path) -> None:
    file = tmp_path / "cp2k-pos-1.xyz"
    file.write_text("2\n i =        0, time =        0.000, E =       -17.5\n C 0.0 0.0 0.0\n O 0.0 0.0 1.1\n" * 2)
    with pytest.raises(EutecticError, match=r"there are i, time, E; .*--key energy=E --unit energy=hartree"):
        ase_files.scan(file)
    for units in ({}, {"energy": "hartree"}):
        for row in ase_files.read(file, {"energy": "E"}, units=units):
            assert float(row.labels["energy"]) == pytest.approx(-17.5 * 27.211_386_02, rel=1e-9)


def test_in_an_npz(tmp_path: Path) -> None:
    x = np.array([[[0, 0, 0], [0, 0, 2.0]]] * 3)
    np.savez(tmp_path / "mine.npz", R=x, z=[6, 8], E=np.full(3, -100.0), e_unit="kcal/mol", r_unit="bohr")
    choices = records.Choices()
    found = records.scan(tmp_path / "mine.npz", choices)
    assert found.units == {"energy": ("kcal/mol",), "positions": ("bohr",)}
    dataset = records.RecordFiles(source=tmp_path / "mine.npz", found=found, choices=choices)
    (piece,) = dataset.pieces(tmp_path / "mine.npz", "records")
    row = next(dataset.read(piece, "records"))
    assert float(row.labels["energy"]) == pytest.approx(-4.336_410_4, rel=1e-7)
    np.testing.assert_allclose(row.structure.positions[1], [0, 0, 1.058_354_4], rtol=1e-7)
