"""SPICE: units stated in the file, forces against gradients, subsets, missing arrays."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from eutectic.atoms import EutecticError, LabelledStructure
from eutectic.data.datasets import spice
from eutectic.data.formats import hdf5

HARTREE, BOHR = 27.21138602, 0.52917721067  # CODATA 2014
DIPEPTIDE = "SPICE Dipeptides Single Points Dataset v1.2"
MOLECULES = {
    # Name → SMILES, subset, atomic numbers, conformations
    "[F-] [H+]": ("[F-:1].[H+:2]", "SPICE Ion Pairs Single Points Dataset v1.1", [9, 1], 2),
    "101": ("[N+:1]([H:2])([H:3])([H:4])[H:5]", DIPEPTIDE, [7, 1, 1, 1, 1], 3),
    "102": ("[O:1]([H:2])[H:3]", DIPEPTIDE, [8, 1, 1], 2),
    "103": ("[O-:1][H:2]", "SPICE PubChem Set 3 Single Points Dataset v1.2", [8, 1], 1),
}


def put(group: h5py.Group, name: str, value: np.ndarray, units: str) -> None:
    group[name] = value
    group[name].attrs["units"] = units


@pytest.fixture
def path(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    with h5py.File(tmp_path / "SPICE-1.1.4.hdf5", "w") as file:
        for name, (smiles, subset, numbers, f) in MOLECULES.items():
            n = len(numbers)
            group = file.create_group(name)
            group["smiles"], group["subset"] = [smiles], [subset]
            group["atomic_numbers"] = np.array(numbers, dtype=np.int16)
            put(group, "conformations", rng.normal(size=(f, n, 3)).astype(np.float32), "bohr")
            put(group, "dft_total_energy", rng.normal(size=f) - 100, "hartree")
            put(group, "formation_energy", rng.normal(size=f), "hartree")
            put(group, "dft_total_gradient", rng.normal(size=(f, n, 3)).astype(np.float32), "hartree/bohr")
            put(group, "scf_dipole", rng.normal(size=(f, 3)).astype(np.float32), "elementary_charge*bohr")
            put(group, "mbis_charges", rng.normal(size=(f, n, 1)).astype(np.float32), "elementary_charge")
    return tmp_path / "SPICE-1.1.4.hdf5"


def read(source: Path, name: str = "spice") -> list[LabelledStructure]:
    return [row for piece in spice.pieces(source, name) for row in spice.read(piece, name)]


def test_units_signs_and_ids(path: Path) -> None:
    rows = read(path.parent)
    assert [row.id for row in rows] == [
        *(f"101-{i:04d}" for i in range(3)),
        *(f"102-{i:04d}" for i in range(2)),
        "103-0000",
        *(f"[F-] [H+]-{i:04d}" for i in range(2)),
    ]
    charge = {"101": 1, "102": 0, "103": -1, "[F-] [H+]": 0}
    with h5py.File(path) as file:
        for row in rows:
            row.check(row.id)
            group, i = file[row.group], int(row.id[-4:])
            assert float(row.labels["charge"]) == charge[row.group]
            assert float(row.labels["energy"]) == pytest.approx(group["dft_total_energy"][i] * HARTREE, rel=1e-8)
            np.testing.assert_allclose(row.structure.positions, group["conformations"][i] * BOHR, rtol=1e-6)
            gradient = group["dft_total_gradient"][i].astype(float) * HARTREE / BOHR
            np.testing.assert_allclose(row.labels["forces"], -gradient, rtol=1e-7)
            np.testing.assert_allclose(row.labels["dipole"], group["scf_dipole"][i] * BOHR, rtol=1e-6)
            np.testing.assert_array_equal(row.labels["charges"], group["mbis_charges"][i, :, 0])


def test_subsets(path: Path) -> None:
    assert [row.id for row in read(path, "spice:dipeptides")] == [
        *(f"101-{i:04d}" for i in range(3)),
        *(f"102-{i:04d}" for i in range(2)),
    ]
    assert [row.group for row in read(path, "spice:pubchem")] == ["103"]
    assert spice.card("spice:dipeptides").name == "spice:dipeptides"
    with pytest.raises(EutecticError, match="no structure of spice:water_clusters; there are dipeptides, ion_pairs"):
        read(path, "spice:water_clusters")
    with pytest.raises(EutecticError, match="data set 'spice:waters'"):
        read(path, "spice:waters")
    with pytest.raises(EutecticError, match="data set 'spice:'"):
        read(path, "spice:")


@pytest.mark.parametrize(
    ("text", "slug"),
    [
        ("SPICE Dipeptides Single Points Dataset v1.3", "dipeptides"),
        ("SPICE Solvated Amino Acids Single Points Dataset v1.1", "solvated_amino_acids"),
        ("SPICE DES Monomers Single Points Dataset v1.1", "des_monomers"),
        ("SPICE DES370K Single Points Dataset v1.0", "des370k"),
        ("SPICE DES370K Single Points Dataset Supplement v1.1", "des370k"),
        ("SPICE PubChem Set 6 Single Points Dataset v1.2", "pubchem"),
        ("SPICE PubChem Set 10 Single Points Dataset v1.0", "pubchem"),
        ("SPICE PubChem Boron Silicon v1.0", "pubchem_boron_silicon"),
        ("SPICE Ion Pairs Single Points Dataset v1.2", "ion_pairs"),
        ("SPICE Amino Acid Ligand v1.0", "amino_acid_ligand"),
        ("SPICE Solvated PubChem Set 1 v1.0", "solvated_pubchem"),
        ("SPICE Water Clusters v1.0", "water_clusters"),
    ],
)
def test_names_of_subsets_in_the_files(text: str, slug: str) -> None:
    assert spice.subset_slug(text) == slug
    assert slug in spice.SUBSETS


@pytest.mark.parametrize(
    ("smiles", "charge"),
    [
        ("[H:1][C:2]#[N:3]", 0),
        ("[N+:9]([H:25])[H:26]", 1),
        ("[O-:1][S:2](=[O:3])(=[O:4])[O-:5]", -2),
        ("[Ca+2:1]", 2),
        ("[Ca++]", 2),
        ("[Cl-].[K+]", 0),
        ("[C@:8]([H:24])-[C@@H:1]", 0),
        ("CC-C", 0),
    ],
)
def test_formal_charges(smiles: str, charge: int) -> None:
    assert spice.formal_charge(smiles) == charge


def test_what_did_not_converge_is_absent(path: Path) -> None:
    with h5py.File(path, "a") as file:
        del file["101/mbis_charges"], file["102/mbis_charges"], file["102/scf_dipole"]
        file["102/mbis_charges"] = np.zeros(0, dtype=np.float32)
        # A molecule of version 2.0 has no conformations at all.
        del file["103/conformations"]
        file["103/conformations"] = np.zeros(0, dtype=np.float32)
    rows = read(path)
    assert [set(row.labels) for row in rows[::3]] == [
        {"energy", "forces", "charge", "dipole"},
        {"energy", "forces", "charge"},
        {"energy", "forces", "charge", "dipole", "charges"},
    ]
    assert "103" not in {row.group for row in rows}


def test_other_units(path: Path) -> None:
    before = read(path)[0]
    with h5py.File(path, "a") as file:
        group = file["101"]
        group["conformations"][...] = group["conformations"][...] * BOHR
        group["conformations"].attrs["units"] = "angstrom"
        group["dft_total_gradient"][...] = group["dft_total_gradient"][...] * HARTREE / BOHR
        group["dft_total_gradient"].attrs["units"] = "eV/angstrom"
        group["dft_total_energy"][...] = group["dft_total_energy"][...] * HARTREE
        group["dft_total_energy"].attrs["units"] = np.bytes_(b"eV")
    after = read(path)[0]
    np.testing.assert_allclose(after.structure.positions, before.structure.positions, rtol=1e-6)
    np.testing.assert_allclose(after.labels["forces"], before.labels["forces"], rtol=1e-6)
    assert float(after.labels["energy"]) == pytest.approx(float(before.labels["energy"]), rel=1e-8)


@pytest.mark.parametrize("key", ["conformations", "dft_total_energy", "dft_total_gradient", "scf_dipole"])
def test_unknown_units(path: Path, key: str) -> None:
    with h5py.File(path, "a") as file:
        file["102"][key].attrs["units"] = "kcal/mol"
    with pytest.raises(EutecticError, match=rf"/102/{key}: units 'kcal/mol'; expected units"):
        read(path)
    with h5py.File(path, "a") as file:
        del file["102"][key].attrs["units"]
    with pytest.raises(EutecticError, match=rf"/102/{key}: no attribute 'units'"):
        read(path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("conformations", np.zeros((2, 4, 3)), r"shape \(2, 4, 3\); expected shape \(2, 3, 3\)"),
        ("dft_total_gradient", np.zeros((2, 3)), r"shape \(2, 3\); expected shape \(2, 3, 3\)"),
        ("mbis_charges", np.zeros((2, 3)), r"shape \(2, 3\); expected shape \(2, 3, 1\)"),
        ("smiles", np.zeros(1), "expected text"),
        ("dft_total_energy", None, "no 'dft_total_energy' here"),
    ],
)
def test_other_arrays(path: Path, key: str, value: np.ndarray | None, message: str) -> None:
    with h5py.File(path, "a") as file:
        del file["102"][key]
        if value is not None:
            put(file["102"], key, value, "hartree/bohr" if "gradient" in key else "bohr")
    with pytest.raises(EutecticError, match=message):
        read(path)


@pytest.mark.parametrize("name", ["spice", "spice:dipeptides"])
@pytest.mark.parametrize("per_piece", [1, 3])
def test_pieces_are_the_whole(path: Path, name: str, per_piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    everything = [row.id for row in read(path, name)]
    monkeypatch.setattr(hdf5, "FRAMES_PER_PIECE", per_piece)
    assert [row.id for row in read(path, name)] == everything
    assert len(spice.pieces(path, name)) == -(-len(everything) // per_piece)


def test_both_versions_in_a_folder(path: Path, tmp_path: Path) -> None:
    (tmp_path / "SPICE-2.0.1.hdf5").write_bytes(path.read_bytes())
    assert {piece.path.name for piece in spice.pieces(tmp_path, "spice")} == {"SPICE-2.0.1.hdf5"}
    assert {piece.path.name for piece in spice.pieces(tmp_path, "spice:dipeptides")} == {"SPICE-1.1.4.hdf5"}
    assert {file.name for file in spice.files("spice:dipeptides")} == {"SPICE-1.1.4.hdf5"}
    assert {file.name for file in spice.files("spice")} == {"SPICE-2.0.1.hdf5"}


def test_files_that_are_not_it(path: Path, tmp_path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(EutecticError, match="not a readable HDF5 file"):
        read(path)
    with h5py.File(path, "w"):
        pass
    with pytest.raises(EutecticError, match="no molecules"):
        read(path)
    (tmp_path / "spice.xyz").write_text("1\nenergy=1\nH 0 0 0\n")
    with pytest.raises(EutecticError, match=r"not an HDF5 file.*prepare it as the data set `ase`"):
        read(tmp_path / "spice.xyz")
    with h5py.File(path, "w") as file:
        file["101"] = h5py.ExternalLink("other.h5", "/")
    with pytest.raises(EutecticError, match="'101' is a link to another file"):
        read(path)


def test_real_molecules(shared_data: Path) -> None:
    rows = read(shared_data / "spice" / "SPICE-1.1.4_n2.hdf5")
    assert (len(rows), {row.group for row in rows}) == (55, {"103147721", "C#C.[Na+]"})
    for row in rows:
        row.check(row.id)
        # Both carry one positive charge, by their SMILES and, where they are known, by their charges.
        assert float(row.labels["charge"]) == 1
        assert ("charges" in row.labels) == (row.group == "103147721")
        if "charges" in row.labels:
            assert row.labels["charges"].sum() == pytest.approx(1, abs=0.001)
        assert np.abs(row.labels["forces"].sum(axis=0)).max() < 0.01
    assert len(read(shared_data / "spice" / "SPICE-1.1.4_n2.hdf5", "spice:des370k")) == 5


def test_real_forces_are_the_slope_of_energies(shared_data: Path) -> None:
    """Sodium along a line from acetylene: near enough for differences of energies; the rest by its C-H bonds."""
    rows = read(shared_data / "spice" / "SPICE-1.1.4_n2.hdf5")
    line = [row for row in rows if row.group == "C#C.[Na+]"]
    dE, work = [], []
    for a in line:
        for b in line:
            step = b.structure.positions - a.structure.positions
            if 0 < np.sqrt((step**2).sum(axis=1).mean()) < 0.1:
                dE.append(float(b.labels["energy"] - a.labels["energy"]))
                work.append(-0.5 * float(((a.labels["forces"] + b.labels["forces"]) * step).sum()))
    assert len(dE) >= 8
    assert np.dot(dE, work) / np.dot(work, work) == pytest.approx(1, abs=0.1)
    assert np.corrcoef(dE, work)[0, 1] > 0.99
    stretch = []
    for row in rows:
        z, x = row.structure.numbers, row.structure.positions
        for h in np.flatnonzero(z == 1):
            distance = np.linalg.norm(x - x[h], axis=1)
            distance[h] = np.inf
            if z[c := int(distance.argmin())] == 6:
                stretch.append((distance[c], row.labels["forces"][h] @ (x[h] - x[c]) / distance[c]))
    (k, _), r = np.polyfit(*np.array(stretch).T, 1), np.corrcoef(np.array(stretch).T)[0, 1]
    assert -40 < k < -20
    assert r < -0.95


def test_real_stand_ins_of_other_formats(shared_data: Path) -> None:
    with pytest.raises(EutecticError, match="prepare it as the data set `ase`"):
        spice.pieces(shared_data / "spice" / "SPICE_small_with_charges.xyz", "spice")


@pytest.fixture
def mlip(tmp_path: Path) -> Path:
    """Two frames of a molecule and one of another, as the package mlip lays them out."""
    with h5py.File(tmp_path / "spice2.hdf5", "w") as file:
        for i, (name, numbers) in enumerate({"a_md_0": [8, 1], "a_md_1": [8, 1], "b_md_0": [1, 9]}.items()):
            group = file.create_group(name)
            group["elements"], group["positions"] = numbers, np.eye(3)[:2] * (1 + i)
            group["forces"], group["dipole"] = np.full((2, 3), 0.5 * i), np.ones(3)
            group.attrs.update({"energy": -100.0 - i, "charge": -1.0, "n_atoms": 2})
    return tmp_path / "spice2.hdf5"


def test_the_layout_of_mlip(mlip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = read(mlip)
    assert [(row.id, row.group) for row in rows] == [("a_md_0", "a"), ("a_md_1", "a"), ("b_md_0", "b")]
    last = rows[-1]
    last.check("here")
    assert last.structure.numbers.tolist() == [1, 9]
    assert last.structure.positions.tolist() == [[3, 0, 0], [0, 3, 0]]
    assert {name: value.tolist() for name, value in last.labels.items()} == {
        "energy": -102.0,
        "forces": [[1.0] * 3] * 2,
        "charge": -1.0,
    }
    monkeypatch.setattr(hdf5, "FRAMES_PER_PIECE", 2)
    assert len(spice.pieces(mlip, "spice")) == 2
    assert [row.id for row in read(mlip)] == [row.id for row in rows]
    with pytest.raises(EutecticError, match="names no subsets"):
        read(mlip, "spice:dipeptides")


@pytest.mark.parametrize("value", [None, "much", [1.0, 2.0]], ids=str)
def test_the_layout_of_mlip_without_an_energy(mlip: Path, value: object) -> None:
    with h5py.File(mlip, "a") as file:
        del file["a_md_1"].attrs["energy"]
        if value is not None:
            file["a_md_1"].attrs["energy"] = value
    with pytest.raises(EutecticError, match=r"a_md_1, attribute energy: .*expected one number"):
        read(mlip)
