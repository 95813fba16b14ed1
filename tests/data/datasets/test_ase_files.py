"""The user's own ASE files: every place for a label, and damaged files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import ase.db
import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms, FixCartesian, FixedLine, FixedPlane, FixScaled
from pyg_records import write_aselmdb

from eutectic.atoms import PROPERTIES, EutecticError, define, parse_definition
from eutectic.data import catalogue
from eutectic.data.datasets import ase_files
from eutectic.data.store import Store

FORCES = np.array([[0.0, 0.0, 1.5], [0.0, 0.0, -1.5]])


def dimer(energy: float | None = -1.0, **calc: object) -> Atoms:
    atoms = Atoms("CO", positions=[[0, 0, 0], [0, 0, 1.1]])
    if energy is not None:
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=FORCES, **calc)
    return atoms


def write(path: Path, *atoms: Atoms) -> Path:
    ase.io.write(path, list(atoms))
    return path


@pytest.mark.parametrize("suffix", ["xyz", "extxyz", "traj", "db", "json"])
def test_formats(tmp_path: Path, suffix: str) -> None:
    file = write(tmp_path / f"mine.{suffix}", dimer(-1.0), dimer(-2.0), dimer(-3.0))
    rows = list(ase_files.read(file))
    assert [float(r.labels["energy"]) for r in rows] == [-1, -2, -3]
    np.testing.assert_allclose(rows[0].labels["forces"], FORCES)
    assert [r.id for r in rows] == [f"mine.{suffix}#{i}" for i in range(3)]
    assert {r.group for r in rows} == {"CO"}


def test_aselmdb(tmp_path: Path) -> None:
    row = {"numbers": [6, 8], "positions": dimer().positions.tolist(), "energy": -1.0, "forces": FORCES.tolist()}
    rows = [{**row, "energy": -float(i), "data": {"sid": i // 2, "gap": 0.5 * i}} for i in range(5)]
    file = write_aselmdb(tmp_path / "mine.aselmdb", [*rows[:2], None, *rows[2:]])
    found = list(ase_files.read(file, group_key="sid"))
    assert [float(r.labels["energy"]) for r in found] == [0, -1, -2, -3, -4]
    assert [float(r.labels["gap"]) for r in found] == [0, 0.5, 1, 1.5, 2]
    assert [r.group for r in found] == ["0", "0", "1", "1", "2"]
    np.testing.assert_allclose(found[0].labels["forces"], FORCES)
    store = Store(catalogue.prepare("ase", tmp_path, tmp_path / "store", workers=1))
    assert store.label_counts() == {"energy": 5, "forces": 5, "gap": 5}
    dataset = ase_files.AseFiles(source=file, found=ase_files.scan(file))
    (piece,) = dataset.pieces(file, "ase")
    assert piece.count == 5
    middle = [r.id for r in dataset.read(replace(piece, first=1, count=2), "ase")]
    assert middle == ["mine.aselmdb#1", "mine.aselmdb#2"]
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(EutecticError, match="a complete LMDB file"):
        list(ase_files.read(file))


def test_a_trajectory_beside_isolated_atoms_is_split_at_random(tmp_path: Path) -> None:
    atoms = []
    for symbol in ("C", "O", "H"):
        atoms.append(Atoms(symbol))
        atoms[-1].calc = SinglePointCalculator(atoms[-1], energy=-1.0)
    source = write(tmp_path / "mine.xyz", *atoms, *(dimer(-float(i)) for i in range(40)))
    found = ase_files.scan(source)
    assert (found.groups, found.largest_group) == (4, 40)
    assert ase_files.card(source, found).default_split == "random"
    source = write(tmp_path / "several.xyz", *atoms, *(dimer(-float(i)) for i in range(4)))
    assert ase_files.card(source, ase_files.scan(source)).default_split == "group"


def test_prefixes_come_first_and_predictions_are_ignored(tmp_path: Path) -> None:
    atoms = dimer(-1.0)
    atoms.info.update(REF_energy=-5.0, mace_energy=-4.0, gap=2.5)
    atoms.arrays["dft_forces"] = 2 * FORCES
    atoms.arrays["mace_forces"] = 3 * FORCES
    file = write(tmp_path / "mine.xyz", atoms, dimer(-1.0))
    first, second = ase_files.read(file)
    assert (float(first.labels["energy"]), float(second.labels["energy"])) == (-5, -1)
    np.testing.assert_allclose(first.labels["forces"], 2 * FORCES)
    assert float(first.labels["gap"]) == 2.5
    found = ase_files.scan(file)
    assert found.counts == {
        "energy": {"REF_energy": 1, "energy": 1},
        "forces": {"dft_forces": 1, "forces": 1},
        "gap": {"gap": 1},
    }
    assert {"mace_energy", "mace_forces"} <= set(found.ignored)
    assert ("gap", "gap", 1, "eV") in found.rows()


def test_chosen_keys(tmp_path: Path) -> None:
    atoms = dimer(-1.0)
    atoms.info["mace_energy"] = -9.0
    file = write(tmp_path / "mine.xyz", atoms)
    (row,) = ase_files.read(file, {"energy": "mace_energy"})
    assert float(row.labels["energy"]) == -9
    with pytest.raises(EutecticError, match=r"no 'absent' for energy; expected an existing entry: the file has none"):
        ase_files.scan(write(tmp_path / "bare.xyz", dimer(None)), {"energy": "absent"})
    with pytest.raises(EutecticError, match="property 'enrgy'"):
        ase_files.scan(file, {"enrgy": "energy"})


def test_stress_and_virials(tmp_path: Path) -> None:
    stress = np.array([[1.0, 0.6, 0.5], [0.6, 2.0, 0.4], [0.5, 0.4, 3.0]])
    cell = np.diag([2.0, 3.0, 4.0])
    voigt = Atoms("He", cell=cell, pbc=True)
    voigt.calc = SinglePointCalculator(voigt, energy=0.0, stress=np.array([1.0, 2, 3, 0.4, 0.5, 0.6]))
    tensor = Atoms("He", cell=cell, pbc=True, info={"REF_stress": stress})
    virials = Atoms("He", cell=cell, pbc=True, info={"virials": -24.0 * stress})
    for row in ase_files.read(write(tmp_path / "mine.xyz", voigt, tensor, virials)):
        np.testing.assert_allclose(row.labels["stress"], stress)


def test_forces_on_fixed_atoms_are_kept(tmp_path: Path) -> None:
    for suffix in ("traj", "db", "xyz"):
        atoms = dimer()
        atoms.set_constraint(FixAtoms([0]))
        (row,) = ase_files.read(write(tmp_path / f"fixed.{suffix}", atoms))
        np.testing.assert_allclose(row.labels["forces"], FORCES)
        assert row.structure.fixed.tolist() == [True, False]


def test_key_value_pairs_of_a_database(tmp_path: Path) -> None:
    with ase.db.connect(tmp_path / "mine.db") as db:
        db.write(dimer(None), gap=1.5, group="rutile", data={"forces": FORCES})
    (row,) = ase_files.read(tmp_path / "mine.db")
    assert (float(row.labels["gap"]), row.group) == (1.5, "rutile")
    np.testing.assert_allclose(row.labels["forces"], FORCES)


def test_tags(tmp_path: Path) -> None:
    slab, layers = dimer(), dimer()
    slab.set_tags([0, 1])
    layers.set_tags([4, 3])
    first, second = ase_files.read(write(tmp_path / "mine.traj", slab, layers))
    assert first.structure.tags.tolist() == [0, 1]
    assert second.structure.tags.tolist() == [2, 2]


def test_folder_and_groups(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    write(tmp_path / "deep" / "b.traj", dimer(), dimer())
    write(tmp_path / "a.xyz", dimer())
    (tmp_path / "README.md").write_text("# how these were made")
    (tmp_path / "settings.json").write_text('{"functional": "PBE"}')
    rows = list(ase_files.read(tmp_path))
    assert [r.id for r in rows] == ["a.xyz#0", "deep/b.traj#0", "deep/b.traj#1"]
    assert [r.group for r in rows] == ["a.xyz", "deep/b.traj", "deep/b.traj"]
    found = ase_files.scan(tmp_path)
    assert (found.structures, found.files, found.groups) == (3, 2, 2)
    assert set(found.skipped) == {"README.md", "settings.json"}


def test_group_key(tmp_path: Path) -> None:
    one, two = dimer(), dimer()
    one.info["bulk"], two.info["bulk"] = "Pt", "Cu"
    file = write(tmp_path / "mine.xyz", one, two)
    assert [r.group for r in ase_files.read(file, group_key="bulk")] == ["Pt", "Cu"]
    with pytest.raises(EutecticError, match="structure 0: no entry 'mine'; expected one of bulk"):
        list(ase_files.read(file, group_key="mine"))


def test_stated_units(tmp_path: Path) -> None:
    # CODATA 2014: 1 kcal/mol = 0.043 364 104 eV, 1 bohr = 0.529 177 21 Å, 1 kbar = 0.000 624 150 91 eV/Å³.
    atoms = Atoms("CO", positions=[[0, 0, 0], [0, 0, 2.0]], cell=np.diag([10.0, 10, 20]), pbc=True)
    atoms.info.update(REF_energy=-100.0, REF_stress=-10 * np.eye(3), E_ads=-20.0)
    atoms.arrays["REF_forces"] = FORCES
    file = write(tmp_path / "mine.xyz", atoms)
    units = {"positions": "bohr", "energy": "kcal/mol", "forces": "-kcal/mol/bohr", "stress": "-kbar"}
    units["adsorption_energy"] = "kJ/mol"
    keys = {"adsorption_energy": "E_ads"}
    source = ["adsorption_energy=eV"]
    store = Store(catalogue.prepare("ase", file, tmp_path / "s", keys=keys, units=units, define=source, workers=1))
    (row,) = store
    np.testing.assert_allclose(row.structure.positions[1], [0, 0, 2 * 0.529_177_21], rtol=1e-6)
    np.testing.assert_allclose(np.diag(row.structure.cell), np.array([10, 10, 20]) * 0.529_177_21, rtol=1e-6)
    assert float(row.labels["energy"]) == pytest.approx(-4.336_410_4, rel=1e-7)
    np.testing.assert_allclose(row.labels["forces"], -FORCES * 0.043_364_104 / 0.529_177_21, rtol=1e-6)
    np.testing.assert_allclose(row.labels["stress"], 0.006_241_509_1 * np.eye(3), rtol=1e-6)
    assert float(row.labels["adsorption_energy"]) == pytest.approx(-20 / 96.485_332_9, rel=1e-8)
    assert "positions in bohr: converted to Å" in store.card.notes
    assert "energy from 'REF_energy' in kcal/mol: 1 structures" in store.card.notes


def test_what_no_unit_is_stated_for_is_noted(tmp_path: Path) -> None:
    file = write(tmp_path / "mine.xyz", dimer())
    notes = ase_files.card(file, ase_files.scan(file), units={"energy": "hartree"}).notes
    assert "energy from 'energy' in hartree: 1 structures" in notes
    assert "forces from 'forces', taken to be in eV/Å: 1 structures" in notes


def test_units_of_virials_are_of_energy(tmp_path: Path) -> None:
    virials = Atoms("He", cell=np.diag([2.0, 3.0, 4.0]), pbc=True, info={"virials": -24.0 * np.eye(3)})
    file = write(tmp_path / "mine.xyz", virials)
    (row,) = ase_files.read(file, units={"stress": "hartree"})
    np.testing.assert_allclose(row.labels["stress"], 27.211_386 * np.eye(3), rtol=1e-7)
    (row,) = ase_files.read(file, units={"positions": "nm"})
    np.testing.assert_allclose(row.labels["stress"], 1e-3 * np.eye(3), rtol=1e-7)
    with pytest.raises(EutecticError, match="where virials holds virials: unit 'GPa'; expected one of eV"):
        next(ase_files.read(file, units={"stress": "GPa"}))


@pytest.mark.parametrize(
    ("units", "message"),
    [
        ({"energy": "kcal/mole/atm"}, "--unit energy=kcal/mole/atm: unit .*did you mean 'kcal/mol/atom'"),
        ({"forces": "eV"}, "--unit forces=eV: unit 'eV'; expected one of eV/angstrom"),
        ({"stress": "eV/angstrom"}, "--unit stress=eV/angstrom"),
        ({"positions": "fractional"}, "ASE's positions are Cartesian"),
        ({"mass": "u"}, "property 'mass'"),
    ],
)
def test_units_that_do_not_fit(units: dict[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(EutecticError, match=message):
        ase_files.scan(write(tmp_path / "mine.xyz", dimer()), units=units)


def own(*values: object) -> list[Atoms]:
    made = [dimer() for _ in values]
    for atoms, value in zip(made, values, strict=True):
        atoms.info["mine"] = value
    return made


def test_classes(tmp_path: Path) -> None:
    define(parse_definition("phase=,class"))
    file = write(tmp_path / "mine.traj", *own(True, False, 2, np.int64(3), 1.0, np.bool_(True)))
    assert [float(r.labels["phase"]) for r in ase_files.read(file, {"phase": "mine"})] == [1, 0, 2, 3, 1, 1]
    (row,) = ase_files.read(write(tmp_path / "mine.xyz", *own(True)), {"phase": "mine"})
    assert float(row.labels["phase"]) == 1
    for value, message in (("fcc", "number the classes"), (0.5, "integers 0, 1"), (-1, "integers 0, 1")):
        with pytest.raises(EutecticError, match=message):
            list(ase_files.read(write(tmp_path / "bad.xyz", *own(value)), {"phase": "mine"}))


def test_shapes_of_properties_of_ones_own(tmp_path: Path) -> None:
    vector = write(tmp_path / "vector.xyz", *own(np.array([1.0, 2.0, 3.0])))
    options = {"source": vector, "keys": {"moment": "mine"}, "workers": 1}
    with pytest.raises(EutecticError, match=r"moment of shape \(3,\); .*--define moment=e Å,vector"):
        catalogue.prepare("ase", store=tmp_path / "no", define=["moment=e*angstrom"], **options)  # type: ignore[arg-type]
    PROPERTIES.pop("moment")
    made = catalogue.prepare("ase", store=tmp_path / "yes", define=["moment=e*angstrom,vector"], **options)  # type: ignore[arg-type]
    assert Store(made)[0].labels["moment"].tolist() == [1, 2, 3]
    # Three numbers for each of two atoms are not two for each of three.
    turned = dimer()
    turned.info["mine"] = np.arange(6.0).reshape(3, 2)
    with pytest.raises(EutecticError, match=r"forces of shape \(3, 2\)"):
        list(ase_files.read(write(tmp_path / "turned.traj", turned), {"forces": "mine"}))


def test_keys_and_definitions_that_find_nothing(tmp_path: Path) -> None:
    file = write(tmp_path / "mine.xyz", *own(1.0))
    with pytest.raises(EutecticError, match="no 'E_dft' for energy; expected an existing entry: mine"):
        ase_files.scan(file, {"energy": "E_dft"})
    with pytest.raises(EutecticError, match=r"no 'mime' for gap; .*did you mean --key gap=mine"):
        ase_files.scan(file, {"gap": "mime"})
    with pytest.raises(EutecticError, match=r"no 'REF_e_bind' or 'dft_e_bind' or 'e_bind' for .*--key e_bind=NAME"):
        catalogue.prepare("ase", file, tmp_path / "store", define=["e_bind=eV"])
    assert set(ase_files.scan(file, {"energy": ""}).counts) == {"forces"}


def test_card(tmp_path: Path) -> None:
    file = write(tmp_path / "mine.xyz", dimer())
    card = ase_files.card(file, ase_files.scan(file), level_of_theory="PBE")
    assert (card.properties, card.level_of_theory, card.default_split) == (("energy", "forces"), "PBE", "random")
    assert "energy from 'energy': 1 structures" in card.notes


def test_no_labels(tmp_path: Path) -> None:
    with pytest.raises(EutecticError, match="no label; expected energy"):
        ase_files.scan(write(tmp_path / "bare.xyz", dimer(None)))
    atoms = dimer(None)
    atoms.info["E_energy"] = 1.0
    with pytest.raises(EutecticError, match="there are E_energy"):
        ase_files.scan(write(tmp_path / "named.xyz", atoms))


def test_labels_that_are_no_numbers(tmp_path: Path) -> None:
    file = write(tmp_path / "nan.xyz", dimer(), dimer(), dimer(np.nan))
    with pytest.raises(EutecticError, match=r"nan\.xyz, structure 2: energy is not finite"):
        list(ase_files.read(file))
    atoms = dimer(None)
    atoms.info["REF_energy"] = "unknown"
    with pytest.raises(EutecticError, match="structure 0, REF_energy: 'unknown'"):
        list(ase_files.read(write(tmp_path / "words.xyz", atoms)))
    atoms.info["REF_energy"] = True
    with pytest.raises(EutecticError, match="a key without a value"):
        list(ase_files.read(write(tmp_path / "flag.xyz", atoms)))


def test_structures_that_cannot_be_used(tmp_path: Path) -> None:
    dummy = Atoms("XC", positions=[[0, 0, 0], [0, 0, 1]], info={"REF_energy": 1.0})
    with pytest.raises(EutecticError, match="structure 1: atom 0 has atomic number 0"):
        list(ase_files.read(write(tmp_path / "dummy.xyz", dimer(), dummy)))
    flat = dimer()
    flat.pbc = True
    with pytest.raises(EutecticError, match="which has no volume"):
        list(ase_files.read(write(tmp_path / "flat.traj", flat)))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "empty.xyz").write_text("")
    with pytest.raises(EutecticError, match="an empty file"):
        list(ase_files.read(tmp_path / "empty.xyz"))
    with pytest.raises(EutecticError, match="does not exist"):
        list(ase_files.read(tmp_path / "absent.xyz"))
    (tmp_path / "notes.md").write_text("nothing that ASE knows")
    with pytest.raises(EutecticError, match="format markdown"):
        list(ase_files.read(tmp_path / "notes.md"))
    (tmp_path / "folder").mkdir()
    with pytest.raises(EutecticError, match="no file of structures"):
        list(ase_files.read(tmp_path / "folder"))
    (tmp_path / "element.xyz").write_text("1\n\nZz 0.0 0.0 0.0\n")
    with pytest.raises(EutecticError, match="structure 0: types without elements: Zz"):
        list(ase_files.read(tmp_path / "element.xyz"))


@pytest.mark.parametrize("bad", [0, 9, 29])
@pytest.mark.parametrize("how", ["row", "count", "text", "element", "nan"])
def test_labels_after_a_bad_structure(tmp_path: Path, bad: int, how: str) -> None:
    # Forces only after the bad one; energies everywhere.
    atoms = [dimer(-float(i)) for i in range(30)]
    for one in atoms[: bad + 1]:
        one.calc.results.pop("forces")
    lines = [write(tmp_path / "one.xyz", one).read_text().splitlines() for one in atoms]
    changed = {"row": "C 0.0 0.0", "text": "and so on", "element": "Qq 0 0 0", "nan": "C 0 0 nan"}
    lines[bad][2:3] = [] if how == "count" else [changed[how]]
    file = tmp_path / "mine.xyz"
    file.write_text("\n".join("\n".join(one) for one in lines) + "\n")
    store = Store(catalogue.prepare("ase", file, tmp_path / "store", skip_bad=True, workers=1))
    assert store.left_out["count"] == 1
    assert store.label_counts() == {"energy": 29, **({"forces": 29 - bad} if bad < 29 else {})}
    assert [r.id for r in store] == [f"mine.xyz#{i}" for i in range(30) if i != bad]
    assert "energy from 'energy': 29 structures" in store.card.notes
    with pytest.raises(EutecticError, match=f"(structure |#){bad}"):
        catalogue.prepare("ase", file, tmp_path / "no", workers=1)


FIXED = {
    "FixAtoms": lambda: [FixAtoms([0])],
    "FixCartesian": lambda: [FixCartesian([0]), FixCartesian([1], mask=(True, False, True))],
    "three FixCartesian": lambda: [FixCartesian([0], mask=np.eye(3)[i] > 0) for i in range(3)],
    "FixScaled": lambda: [FixScaled([0]), FixScaled([1], mask=(True, True, False))],
    "FixedPlane and FixedLine": lambda: [FixedPlane([0], (0, 1, 1)), FixedLine([0, 1], (0, 1, 1))],
    "two FixedLine": lambda: [FixedLine([0], (0, 0, 1)), FixedLine([0, 1], (0, 1, 1))],
}


# Formats that do not have all constraints.
WRITTEN = {
    "xyz": ("FixAtoms", "FixCartesian", "three FixCartesian"),
    "vasp": ("FixAtoms", "FixScaled"),
}


FORMATS = ("xyz", "traj", "db", "json", "vasp", "aselmdb")


@pytest.mark.parametrize(("suffix", "kind"), [(s, k) for s in FORMATS for k in WRITTEN.get(s, FIXED)])
def test_atoms_without_a_direction_to_move_in_are_fixed(tmp_path: Path, kind: str, suffix: str) -> None:
    atoms = dimer()
    atoms.set_cell(np.diag([5.0, 6.0, 7.0]) + 0.1)
    atoms.pbc = True
    atoms.set_constraint(FIXED[kind]())
    file = tmp_path / f"mine.{suffix}"
    if suffix == "aselmdb":
        fields = {"numbers": [6, 8], "positions": atoms.positions.tolist(), "cell": atoms.cell.tolist()}
        write_aselmdb(file, [{**fields, "constraints": [c.todict() for c in atoms.constraints]}])
    else:
        write(file, atoms)
    ((_, _, structure),) = ase_files.structures(file)
    assert structure.fixed.tolist() == [True, False]


@pytest.mark.parametrize("number", [200, 119, 0, -5, 10**9])
def test_numbers_of_no_element(tmp_path: Path, number: int) -> None:
    file = tmp_path / "mine.xyz"
    file.write_text(f"1\nProperties=Z:I:1:pos:R:3 energy=1.0\n{number} 0 0 0\n")
    with pytest.raises(EutecticError, match=f"atomic number {number}"):
        list(ase_files.read(file))
    with pytest.raises(EutecticError, match=f"atomic number {number}"):
        catalogue.prepare("ase", file, tmp_path / "store", workers=1)


@pytest.mark.parametrize("suffix", ["xyz", "traj", "db", "json"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_truncated_files(tmp_path: Path, suffix: str, share: float) -> None:
    whole = write(tmp_path / f"mine.{suffix}", *[dimer(-float(i)) for i in range(6)]).read_bytes()
    cut = tmp_path / f"cut.{suffix}"
    # In the middle of a number, not after a whole structure.
    keep = int(share * len(whole))
    cut.write_bytes(whole[:keep])
    with pytest.raises(EutecticError, match=r"cut\.") as caught:
        list(ase_files.read(cut))
    assert caught.value.fix


def test_a_bundle_of_pickles_is_refused(tmp_path: Path) -> None:
    # A folder of this name is a "bundletrajectory" for ASE; for us it is a folder like any other.
    (tmp_path / "x.bundle").mkdir()
    (tmp_path / "x.bundle" / "frames").write_bytes(b"\x80\x04cposix\nsystem\n.")
    with pytest.raises(EutecticError):
        list(ase_files.read(tmp_path / "x.bundle"))


REAL = {
    "md17/aspirin_ccsd-test.xyz": (500, {"energy": 500, "forces": 500}),
    "mptrj/mptrj-random-1k.xyz": (1000, {"energy": 1000, "forces": 1000, "stress": 1000}),
    "oc22_like/oxides.db": (295, {"energy": 295, "forces": 295}),
    "oc20/trajs_small": (124, {"energy": 124, "forces": 124}),
    "md22_like/ECEMC.xyz": (203, {"energy": 203, "forces": 200, "stress": 200}),
}


@pytest.mark.parametrize("name", REAL)
def test_real_files(shared_data: Path, name: str) -> None:
    structures, labels = REAL[name]
    found = ase_files.scan(shared_data / name)
    assert found.structures == structures
    assert {p: sum(keys.values()) for p, keys in found.counts.items()} == labels


def test_real_forces_on_fixed_atoms(shared_data: Path) -> None:
    row = next(ase_files.read(shared_data / "oc20" / "trajs_small"))
    assert row.structure.fixed.any()
    assert np.abs(row.labels["forces"][row.structure.fixed]).max() > 0.01
