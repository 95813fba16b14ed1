"""The user's own arrays: every layout, required information, and damaged or malicious files."""

from __future__ import annotations

import gzip
import json
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ase.units
import numpy as np
import pytest
import torch
from pyg_records import write_lmdb

from eutectic.atoms import PROPERTIES, EutecticError, units
from eutectic.check import check
from eutectic.data import catalogue, own_files
from eutectic.data.datasets import records
from eutectic.data.formats import archives
from eutectic.data.store import Store

UNITS = {"positions": "angstrom", "energy": "eV", "forces": "eV/angstrom"}
NUMBERS = ([8, 1, 1], [6, 8], [8, 1, 1], [1, 9])
CELL = [[4.0, 0, 0], [0, 5.0, 0], [0, 0, 6.0]]
CIF = """data_NaCl
_cell_length_a 3.0
_cell_length_b 3.0
_cell_length_c 3.0
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
_symmetry_space_group_name_H-M 'P 1'
loop_
 _atom_site_type_symbol
 _atom_site_fract_x
 _atom_site_fract_y
 _atom_site_fract_z
 Na 0.0 0.0 0.0
 Cl 0.5 0.5 0.5
"""


def positions(n: int) -> np.ndarray:
    return np.arange(3.0 * n).reshape(n, 3) ** 1.5


def rows() -> list[dict[str, Any]]:
    return [
        {
            "atomic_numbers": numbers,
            "positions": positions(len(numbers)).tolist(),
            "energy": -10.0 - i,
            "forces": np.full((len(numbers), 3), 0.5 + i).tolist(),
            "name": f"m{i % 2}",
        }
        for i, numbers in enumerate(NUMBERS)
    ]


def as_json(folder: Path, made: object, name: str = "my.json") -> Path:
    text = json.dumps(made).encode()
    (folder / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    return folder / name


def as_lmdb(folder: Path, made: list[dict[str, Any]]) -> Path:
    """Tensors, as most writers have them."""
    per_atom = ("positions", "forces", "atomic_numbers")
    made = [{k: torch.tensor(v) if k in per_atom else v for k, v in row.items()} for row in made]
    return write_lmdb(folder / "my.lmdb", [pickle.dumps(row) for row in made], length=None)


def as_padded(folder: Path, made: list[dict[str, Any]], **more: np.ndarray) -> Path:
    longest = max(len(row["positions"]) for row in made)

    def filled(key: str) -> np.ndarray:
        pads = [(0, 0)] * (np.ndim(made[0][key]) - 1)
        return np.array([np.pad(row[key], [(0, longest - len(row[key])), *pads]) for row in made])

    arrays = {"z": filled("atomic_numbers"), "R": filled("positions"), "F": filled("forces")}
    np.savez(folder / "my.npz", E=np.array([[row["energy"]] for row in made]), **arrays, **more)
    return folder / "my.npz"


def as_flat(folder: Path, made: list[dict[str, Any]]) -> Path:
    per_atom = {"z": "atomic_numbers", "R": "positions", "F": "forces"}
    np.savez_compressed(
        folder / "my.npz",
        n_atoms=np.array([len(row["positions"]) for row in made], dtype=np.int16),
        properties=np.array([[1.0, row["energy"]] for row in made]),
        property_names=np.array(["A", "E"]),
        name=np.array([row["name"] for row in made]),
        **{key: np.concatenate([row[name] for row in made]) for key, name in per_atom.items()},  # type: ignore[arg-type]
    )
    return folder / "my.npz"


def prepared(source: Path, folder: Path, **options: Any) -> Store:
    options = {"units": UNITS, **options}
    return Store(catalogue.prepare("records", source, folder / "store", workers=1, progress=False, **options))


WRITERS: dict[str, tuple[Any, Mapping[str, str]]] = {
    "json": (as_json, {}),
    "json.gz": (lambda folder, made: as_json(folder, made, "my.json.gz"), {}),
    "lmdb": (as_lmdb, {}),
    "padded npz": (as_padded, {}),
    "flat npz": (as_flat, {"energy": "properties:1"}),
}


@pytest.mark.parametrize("layout", WRITERS)
def test_every_layout_gives_the_same(layout: str, tmp_path: Path) -> None:
    write, keys = WRITERS[layout]
    store = prepared(write(tmp_path, rows()), tmp_path, keys=keys)
    assert store.label_counts() == {"energy": 4, "forces": 4}
    for i, (row, numbers) in enumerate(zip(store, NUMBERS, strict=True)):
        assert row.structure.numbers.tolist() == numbers
        np.testing.assert_allclose(row.structure.positions, positions(len(numbers)), rtol=1e-6)
        assert float(row.labels["energy"]) == -10.0 - i
        assert (row.labels["forces"] == 0.5 + i).all()
        assert not row.structure.pbc.any()
    assert [row.group for row in store] == ["H2O", "CO", "H2O", "HF"]


@pytest.mark.parametrize("layout", ["json", "lmdb", "flat npz"])
def test_groups_by_a_field(layout: str, tmp_path: Path) -> None:
    write, keys = WRITERS[layout]
    source = write(tmp_path, rows())
    assert [row.group for row in prepared(source, tmp_path, keys=keys, group_key="name")] == ["m0", "m1"] * 2
    with pytest.raises(EutecticError, match="no field 'rxn'"):
        prepared(source, tmp_path / "other", keys=keys, group_key="rxn")


def test_a_range_is_a_part_of_the_whole(tmp_path: Path) -> None:
    for write, keys in WRITERS.values():
        source = write(tmp_path, rows())
        choices = records.Choices(keys=keys, units=UNITS)
        dataset = records.RecordFiles(source=source, found=records.scan(source, choices), choices=choices)
        (piece,) = dataset.pieces(source, "records")
        middle = records.Piece(path=piece.path, first=1, count=2)
        for part in (piece, middle):
            ids = [row.id for row in dataset.read(part, "records")]
            assert ids == [f"{source.name}#{i}" for i in (range(4) if part is piece else (1, 2))]


def test_what_is_not_said_is_asked_for_at_once(tmp_path: Path) -> None:
    source = as_json(tmp_path, [{**row, "cell": CELL} for row in rows()])
    with pytest.raises(EutecticError) as caught:
        prepared(source, tmp_path, units={"energy": "eV"})
    assert caught.value.given == "no unit of positions, forces, and cells of unknown periodicity"
    assert "--unit positions=angstrom --unit forces=eV/angstrom" in caught.value.fix
    assert "--pbc true" in caught.value.fix
    assert not (tmp_path / "store").exists()
    assert prepared(source, tmp_path, keys={"forces": ""}, pbc="TTF")[0].structure.pbc.tolist() == [True, True, False]


def test_units_signs_and_atoms(tmp_path: Path) -> None:
    source = as_json(tmp_path, rows())
    units = {"positions": "bohr", "energy": "eV/atom", "forces": "-hartree/bohr"}
    row = prepared(source, tmp_path, units=units)[0]
    np.testing.assert_allclose(row.structure.positions, positions(3) * ase.units.Bohr, rtol=1e-6)
    assert float(row.labels["energy"]) == -30
    np.testing.assert_allclose(row.labels["forces"], -0.5 * ase.units.Hartree / ase.units.Bohr, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "unit", "value", "converted"),
    [
        ("energy", "kcal/mol", 1.0, ase.units.kcal / ase.units.mol),
        ("stress", "-kbar", 10.0, -ase.units.GPa),
        ("stress", "EV/angstrom^3", 1.0, 1.0),
        ("formation_energy", "eV", 8.0, 2.0),
        ("exfoliation_energy", "eV/atom", 1.0, 1000.0),
        ("dipole_moment", "debye", 1.5, 1.5),
        ("dipole", "debye", 1.0, ase.units.Debye),
        ("log10_bulk_modulus", "GPa", 100.0, 2.0),
        ("log10_bulk_modulus", "log10(GPa)", 2.0, 2.0),
        ("polarizability", "angstrom^3", ase.units.Bohr**3, 1.0),
    ],
)
def test_conversions(name: str, unit: str, value: float, converted: float) -> None:
    assert PROPERTIES[name].conversion(unit)(np.asarray(value), 4) == pytest.approx(converted)


def test_every_example_is_a_unit() -> None:
    for name, prop in PROPERTIES.items():
        if own_files.unit_required(name):
            assert prop.conversion(units.as_typed(prop.unit))(np.asarray(2.0), 5) == 2.0
            for other in own_files.others(name):
                prop.conversion(other.split()[0])
    assert np.isnan(PROPERTIES["log10_shear_modulus"].conversion("GPa")(np.asarray(-1.0), 1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"units": {"energy": "hartre"}}, "unit 'hartre'.*did you mean 'hartree'"),
        ({"units": {"energy": "GPa"}}, "unit 'GPa'; expected one of eV"),
        ({"units": {"positions": "miles"}}, "unit 'miles'; expected one of angstrom"),
        ({"units": {"mass": "u"}}, "--unit: property 'mass'.*--define mass=UNIT"),
        ({"keys": {"enregy": "E"}}, "--key: property 'enregy'.*did you mean 'energy'"),
        (
            {"keys": {"energy": "total"}},
            "no 'total' for energy; expected an existing entry: atomic_numbers, positions, energy",
        ),
        ({"keys": {"positions": "x"}}, "no positions among .*--key positions=NAME"),
        ({"keys": {"energy": "name"}}, "'m0'; expected numbers"),
        ({"keys": {"energy": "forces"}}, r"shape \(3, 3\); expected shape \(\)"),
        ({"pbc": "yes"}, "--pbc: 'yes'"),
        ({"keys": {"energy": "", "forces": ""}}, "no label; the fields are"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(EutecticError, match=message):
        prepared(as_json(tmp_path, rows()), tmp_path, **options)


def test_options_of_other_sets(tmp_path: Path) -> None:
    for option, given in (("units", {"energy": "eV"}), ("pbc", "true"), ("keys", {"energy": "E"})):
        with pytest.raises(EutecticError, match="used with qm9, which defines this itself"):
            catalogue.prepare("qm9", tmp_path, tmp_path / "store", **{option: given})  # type: ignore[arg-type]


def test_fractional_positions_and_symbols(tmp_path: Path) -> None:
    made = {"symbols": ["Na", "Cl"], "coords": [[0, 0, 0], [0.5, 0.5, 0.5]], "cell": CELL, "band_gap": 5.0, "pbc": True}
    source = as_json(tmp_path, [made] * 3)
    units = {"positions": "fractional", "band_gap": "eV"}
    with pytest.raises(EutecticError, match="no unit of cell"):
        prepared(source, tmp_path, units=units, keys={"numbers": "symbols"})
    row = prepared(source, tmp_path, units={**units, "cell": "bohr"}, keys={"numbers": "symbols"})[0]
    assert row.structure.numbers.tolist() == [11, 17]
    np.testing.assert_allclose(row.structure.positions[1], np.array([2, 2.5, 3]) * ase.units.Bohr, rtol=1e-6)
    assert row.structure.pbc.all()


def test_crystals_of_pymatgen(tmp_path: Path) -> None:
    sites = [{"species": [{"element": s, "occu": 1}], "abc": [x, x, x]} for s, x in (("Na", 0.0), ("Cl", 0.5))]
    made = {"structure": {"lattice": {"matrix": CELL}, "sites": sites}, "targets": {"E": {"gap": 2.0, "form": None}}}
    options = {"keys": {"band_gap": "targets.E.gap"}, "units": {"band_gap": "eV"}}
    for source in (as_json(tmp_path, [made] * 3), as_lmdb(tmp_path, [made] * 3)):
        store = prepared(source, tmp_path / source.suffix, **options)
        assert (store.label_counts(), store[0].structure.numbers.tolist()) == ({"band_gap": 3}, [11, 17])
        assert store[0].structure.positions[1].tolist() == [2, 2.5, 3]
        with pytest.raises(EutecticError, match=r"existing entry: structure, targets\.E\.gap;"):
            prepared(source, tmp_path / "other", keys={"band_gap": "targets.gap"})


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
def test_cifs_in_a_table(suffix: str, tmp_path: Path) -> None:
    text = f'id,cif,heat\n1,"{CIF}",0.5\n2,"{CIF}",\n3,"{CIF}",1.5\n'.encode()
    source = tmp_path / f"my{suffix}"
    source.write_bytes(gzip.compress(text) if suffix.endswith("gz") else text)
    options = {"keys": {"cell_formation_energy": "heat"}, "units": {"cell_formation_energy": "eV"}}
    store = prepared(source, tmp_path, **options)
    assert store.label_counts() == {"cell_formation_energy": 2}
    assert store[0].structure.numbers.tolist() == [11, 17]
    assert store[0].structure.positions[1].tolist() == [1.5] * 3


def test_bad_records(tmp_path: Path) -> None:
    made = rows()
    made[1]["energy"] = float("nan")
    made[2]["forces"] = made[2]["forces"][:2]
    for write in (as_json, as_lmdb):
        source = write(tmp_path, made)
        with pytest.raises(EutecticError, match="energy is not finite"):
            prepared(source, tmp_path / "whole")
        store = prepared(source, tmp_path / source.suffix, skip_bad=True)
        assert [row.id for row in store] == [f"{source.name}#{i}" for i in (0, 3)]
        assert store.left_out["count"] == 2


def test_a_hostile_record_runs_nothing(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "touched",))

    source = write_lmdb(
        tmp_path / "my.lmdb", [pickle.dumps(row) for row in (*rows(), {"energy": Hostile()}, rows()[0])], length=None
    )
    with pytest.raises(EutecticError, match="none of it was run"):
        prepared(source, tmp_path)
    assert [row.id for row in prepared(source, tmp_path, skip_bad=True)] == [f"my.lmdb#{i}" for i in (0, 1, 2, 3, 5)]
    np.savez(tmp_path / "my.npz", R=np.zeros((1, 2, 3)), z=np.array([Hostile(), 1], dtype=object))
    with pytest.raises(EutecticError, match="an array of Python objects"):
        prepared(tmp_path / "my.npz", tmp_path / "other")
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("layout", WRITERS)
def test_files_cut_short(layout: str, tmp_path: Path) -> None:
    write, keys = WRITERS[layout]
    source = write(tmp_path, rows())
    whole = source.read_bytes()
    for part in (0, 1, len(whole) // 2, len(whole) - 30):
        source.write_bytes(whole[:part])
        with pytest.raises(EutecticError, match=r"not readable|could not be read"):
            prepared(source, tmp_path, keys=keys)


def test_arrays_that_do_not_fit(tmp_path: Path) -> None:
    source = as_flat(tmp_path, rows())
    with np.load(source) as held:
        arrays = dict(held)
    for changed, message in (
        ({"n_atoms": np.array([3, 2, 3, 1])}, "9 atoms; expected 10"),
        ({"n_atoms": np.array([3, 2, 6, -1])}, "atoms"),
        ({"R": np.zeros((10, 2))}, "expected positions"),
        ({"z": np.full(10, 6.5)}, "with fractions"),
    ):
        np.savez(source, **{**arrays, **changed})  # type: ignore[arg-type]
        with pytest.raises(EutecticError, match=message):
            prepared(source, tmp_path, keys={"energy": "properties:1"})
    with zipfile.ZipFile(source, "w") as bundle:
        bundle.writestr("R.npy", b"no array")
    with pytest.raises(EutecticError, match="not readable"):
        prepared(source, tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("my.json", b'{"values": [1, 2]}', "an object with 'values'"),
        ("my.json", b"[1, 2]", "a list of ints"),
        ("my.json", b"[]", "no records"),
        ("my.csv", b"", "no records"),
        ("my.csv", b"a,b\n1,2\n", "no positions among a, b"),
        ("my.csv", b"a\n" + b"x" * 300_000, "no positions among a"),
        ("my.xyz", b"1\n\nH 0 0 0\n", "a file of another kind"),
    ],
)
def test_files_that_are_not_it(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(EutecticError, match=message):
        prepared(tmp_path / name, tmp_path)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(EutecticError, match="does not exist"):
        prepared(tmp_path / "none.npz", tmp_path)
    with pytest.raises(EutecticError, match="no folder for the store"):
        catalogue.prepare("records", tmp_path)
    with pytest.raises(EutecticError, match="no source"):
        catalogue.prepare("records", store=tmp_path / "store")


def test_properties_of_ones_own(tmp_path: Path) -> None:
    made = [
        {**row, "E_ads": 23.0 + i, "stable": i > 1, "spins": [0.5] * len(row["forces"])} for i, row in enumerate(rows())
    ]
    options: dict[str, Any] = {
        "keys": {"adsorption_energy": "E_ads", "is_stable": "stable", "spin": "spins"},
        "define": ["adsorption_energy=eV,extensive", "is_stable=,class", "spin=µB,atom"],
        "units": {**UNITS, "adsorption_energy": "kcal/mol"},
    }
    for source in (as_json(tmp_path, made), as_lmdb(tmp_path, made)):
        store = prepared(source, tmp_path / source.suffix, **options)
        # CODATA 2014: 1 kcal/mol = 0.043 364 104 eV.
        energies = [float(row.labels["adsorption_energy"]) for row in store]
        np.testing.assert_allclose(energies, 0.043_364_104 * np.arange(23.0, 27.0), rtol=1e-8)
        assert [float(row.labels["is_stable"]) for row in store] == [0, 0, 1, 1]
        assert store[1].labels["spin"].tolist() == [0.5, 0.5]
        assert "adsorption_energy from 'E_ads' in kcal/mol: 4 structures" in store.card.notes
    # Its unit was stated when it was defined.
    store = prepared(source, tmp_path / "eV", **{**options, "units": UNITS})
    assert float(store[0].labels["adsorption_energy"]) == 23


@pytest.mark.parametrize(
    ("change", "definition", "message"),
    [
        ({"mine": [1.0, 2.0, 3.0]}, "mine=eV", r"shape \(3,\); .*--define mine=eV,vector"),
        ({"mine": 1.0}, "mine=eV,vector", r"shape \(\); .*--define mine=eV\)"),
        ({"mine": "fcc"}, "mine=,class", "number the classes in the file"),
        ({"mine": 0.5}, "mine=,class", "integers 0, 1"),
        ({}, "mine=eV", "no 'mine' for mine; expected an existing entry: atomic_numbers"),
    ],
)
def test_labels_that_are_not_as_defined(change: dict[str, Any], definition: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(EutecticError, match=message):
        prepared(as_json(tmp_path, [{**row, **change} for row in rows()]), tmp_path, define=[definition])


def test_true_and_false_in_a_table(tmp_path: Path) -> None:
    source = tmp_path / "my.csv"
    source.write_text(f'cif,stable\n"{CIF}",True\n"{CIF}",false\n"{CIF}",2\n"{CIF}",\n')
    store = prepared(source, tmp_path, keys={"is_stable": "stable"}, define=["is_stable=,class"], units={})
    assert [row.labels.get("is_stable") for row in store] == [1, 0, 2, None]


# --- nothing is dropped without a word ----------------------------------------------------------------


@pytest.mark.parametrize("array", ["E", "F", "z", "cell", "pbc"])
@pytest.mark.parametrize("by", [-1, 1])
def test_arrays_of_other_lengths(tmp_path: Path, array: str, by: int) -> None:
    n = 4
    arrays = {
        "R": np.arange(3.0 * n * 2).reshape(n, 2, 3),
        "z": np.full((n, 2), 6),
        "E": np.zeros(n),
        "F": np.zeros((n, 2, 3)),
        "cell": np.tile(np.eye(3) * 9, (n, 1, 1)),
        "pbc": np.ones((n, 3)),
    }
    np.savez(tmp_path / "my.npz", **arrays)
    assert prepared(tmp_path / "my.npz", tmp_path).label_counts() == {"energy": n, "forces": n}
    arrays[array] = np.concatenate([arrays[array]] * 2)[: n + by]
    np.savez(tmp_path / "my.npz", **arrays)
    with pytest.raises(EutecticError, match=rf"{array} \({n + by},|{array} of shape|atoms"):
        prepared(tmp_path / "my.npz", tmp_path / "other")


def test_one_cell_of_all_structures(tmp_path: Path) -> None:
    arrays = {"R": np.arange(24.0).reshape(4, 2, 3), "z": np.array([6, 8]), "E": np.arange(4.0), "cell": np.eye(3) * 9}
    np.savez(tmp_path / "my.npz", pbc=np.array([True, True, False]), **arrays)
    for row in prepared(tmp_path / "my.npz", tmp_path):
        assert row.structure.pbc.tolist() == [True, True, False]
        assert row.structure.cell.tolist() == (np.eye(3) * 9).tolist()


@pytest.mark.parametrize("rest", ["[{}]", "{}", "and so on", "]", "\x00"])
@pytest.mark.parametrize("name", ["my.json", "my.json.gz"])
def test_what_follows_the_last_bracket(tmp_path: Path, rest: str, name: str) -> None:
    def write(text: str) -> Path:
        content = (json.dumps(rows()) + text).encode()
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
        return tmp_path / name

    assert len(prepared(write(" \n\n"), tmp_path)) == 4
    with pytest.raises(EutecticError, match="after its last bracket"):
        prepared(write("\n" + rest), tmp_path / "other")


def test_lines_of_other_columns(tmp_path: Path) -> None:
    cif = '"' + CIF.replace('"', '""') + '"'
    lines = [f"{cif},{i}.5,{i}\n" for i in range(4)]
    (tmp_path / "my.csv").write_text("cif,gap,note\n" + "".join(lines))
    assert prepared(tmp_path / "my.csv", tmp_path, units={"gap": "eV"}).label_counts() == {"gap": 4}
    for bad, given in ((f"{cif}\n", "1 of 3 columns"), (f"{cif},1,2,3,4\n", "5 of 3 columns")):
        (tmp_path / "my.csv").write_text("cif,gap,note\n" + "".join([lines[0], bad, *lines[2:]]))
        with pytest.raises(EutecticError, match=given):
            prepared(tmp_path / "my.csv", tmp_path / "other", units={"gap": "eV"})
        store = prepared(tmp_path / "my.csv", tmp_path / given, units={"gap": "eV"}, skip_bad=True)
        assert [float(row.labels["gap"]) for row in store] == [0.5, 2.5, 3.5]
    (tmp_path / "my.csv").write_text("cif,gap,note\n" + cif + ",1," + "x" * (1 << 21) + "\n")
    with pytest.raises(EutecticError, match=r"characters|field larger"):
        prepared(tmp_path / "my.csv", tmp_path / "other", units={"gap": "eV"})


@pytest.mark.parametrize("layout", ["json", "lmdb"])
def test_labels_after_a_bad_record(tmp_path: Path, layout: str) -> None:
    made = rows()
    made[0]["positions"] = np.zeros((2, 3)).tolist()
    del made[1]["forces"]
    source = WRITERS[layout][0](tmp_path, made)
    store = prepared(source, tmp_path, skip_bad=True)
    assert store.label_counts() == {"energy": 3, "forces": 2}
    assert store.left_out["count"] == 1
    assert "energy from 'energy' in eV: 3 structures" in store.card.notes


def test_true_is_no_number(tmp_path: Path) -> None:
    made = [{**row, "energy": True} for row in rows()]
    with pytest.raises(EutecticError, match=r"energy: True.*--define energy_class"):
        prepared(as_json(tmp_path, made), tmp_path)


@pytest.mark.parametrize("lie", ["declared", "ratio"])
def test_sizes_that_cannot_be(tmp_path: Path, lie: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "my.npz"
    arrays = {"R": np.zeros((10**5, 2, 3)), "z": np.array([6, 8]), "E": np.zeros(10**5)}
    np.savez_compressed(file, **arrays)
    if lie == "ratio":
        monkeypatch.setattr(archives, "ALWAYS_UNPACKED", 1 << 20)
    else:
        with zipfile.ZipFile(file, "w") as bundle:
            for name, shape in (("R", (10**12, 2, 3)), ("z", (2,)), ("E", (10**12,))):
                with bundle.open(f"{name}.npy", "w") as handle:
                    head = {"descr": "<f8", "fortran_order": False, "shape": shape}
                    np.lib.format.write_array_header_1_0(handle, head)
                    handle.write(bytes(160))
    with pytest.raises(EutecticError, match=r"is declared in|bytes that unpack to"):
        prepared(file, tmp_path)
    with pytest.raises(EutecticError, match=r"is declared in|bytes that unpack to"):
        check(file)
