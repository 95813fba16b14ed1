"""Drills: units, signs and orders of numbers that files state, or do not; charges; calculations without convergence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import ase.db
import ase.io
import h5py
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from emt_frames import copper, methanol, truth
from pyg_records import write_aselmdb
from typer.testing import CliRunner

from drills import Outcome, assert_clear_error, assert_done, eutectic
from eutectic.cli.app import app
from eutectic.data.store import Store

# CODATA 2014, as in ASE: Hartree and bohr; the kilocalorie of 4184 J; e and N_A.
HARTREE, BOHR = 27.211_386_02, 0.529_177_210_67
KCAL = 4184 / (6.022_140_857e23 * 1.602_176_620_8e-19)
KJ = KCAL / 4.184
GPA = 1 / 160.217_662_08


@pytest.fixture
def cases() -> Path:
    folder = Path(__file__).resolve().parents[3] / "shared" / "cases"
    if not folder.is_dir():
        pytest.skip("the folder of cases is not beside the project")
    return folder


def here(*arguments: object) -> Outcome:
    """One command in this process: there are hundreds."""
    result = CliRunner().invoke(app, [str(word) for word in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Outcome(result.exit_code, result.stdout, result.stderr)


def prepared(source: Path, *options: object, kind: str = "ase") -> Store:
    store = source.parent / "prepared"
    assert_done(here("data", "prepare", kind, "--source", source, "--store", store, "--workers", 1, *options))
    return Store(store)


def findings(source: Path, *options: object) -> dict[str, dict]:
    outcome = here("data", "check", source, "--json", *options)
    assert outcome.code in (0, 1), outcome.errors
    return {finding["code"]: finding for finding in json.loads(outcome.output)["findings"]}


def compare(store: Store, frames: list[Atoms], labels: tuple[np.ndarray, ...], names: tuple[str, ...]) -> None:
    assert len(store) == len(frames)
    for i, row in enumerate(store):
        np.testing.assert_allclose(row.structure.positions, frames[i].positions, rtol=1e-5, atol=1e-5)
        for name in names:
            value = labels[("energy", "forces", "stress").index(name)][i]
            np.testing.assert_allclose(row.labels[name], value, rtol=1e-6, atol=1e-6, err_msg=name)


# --- units that files state -------------------------------------------------------------------------


def schnetpack(path: Path, frames: list[Atoms], e: np.ndarray, f: np.ndarray, energy: str, length: str) -> Path:
    per_energy = {"kcal/mol": KCAL, "Hartree": HARTREE, "kJ/mol": KJ, "eV": 1.0, "Ry": HARTREE / 2}[energy]
    per_length = {"Ang": 1.0, "Bohr": BOHR}[length]
    with ase.db.connect(path) as db:
        for i, atoms in enumerate(frames):
            plain = Atoms(
                atoms.numbers, atoms.positions / per_length, cell=atoms.cell.array / per_length, pbc=atoms.pbc
            )
            forces = f[i] / (per_energy / per_length)
            db.write(plain, data={"energy": np.array([e[i] / per_energy]), "forces": forces})
        units = {"energy": energy, "forces": f"{energy}/{length}"}
        db.metadata = {"_distance_unit": length, "_property_unit_dict": units, "atomrefs": {}}
    return path


@pytest.mark.parametrize("energy", ["kcal/mol", "Hartree", "kJ/mol", "eV", "Ry"])
@pytest.mark.parametrize("length", ["Ang", "Bohr"])
def test_schnetpack_databases(tmp_path: Path, energy: str, length: str) -> None:
    """units in the metadata of a SchNetPack database"""
    frames = methanol()
    labels = truth(frames)
    store = prepared(schnetpack(tmp_path / "mine.db", frames, *labels[:2], energy, length))
    compare(store, frames, labels, ("energy", "forces"))
    assert any(energy in note and "as the file says" in note for note in store.card.notes)


def extended(path: Path, frames: list[Atoms], e: np.ndarray, f: np.ndarray, info: dict[str, object]) -> Path:
    for i, atoms in enumerate(frames):
        atoms.info |= {"REF_energy": e[i], **info}
        atoms.arrays["REF_forces"] = f[i]
    ase.io.write(path, frames)
    return path


STATED: list[tuple[dict[str, object], float, float]] = [
    ({"energy_unit": "kcal/mol", "forces_unit": "kcal/mol/Ang"}, KCAL, KCAL),
    ({"energy_units": "hartree", "force_unit": "hartree/bohr"}, HARTREE, HARTREE / BOHR),
    ({"unit_energy": "kJ/mol", "unit_forces": "kJ/mol/angstrom"}, KJ, KJ),
    ({"REF_energy_unit": "Ry", "REF_forces_unit": "Ry/bohr"}, HARTREE / 2, HARTREE / 2 / BOHR),
    ({"energy_unit": "a.u.", "forces_unit": "a.u."}, HARTREE, HARTREE / BOHR),
    ({"energy_unit": "meV", "forces_unit": "meV/A"}, 1e-3, 1e-3),
    ({"units": {"energy": "Ha", "forces": "Ha/Bohr"}}, HARTREE, HARTREE / BOHR),
]


@pytest.mark.parametrize(("info", "energy", "force"), STATED)
def test_units_in_comments(tmp_path: Path, info: dict[str, object], energy: float, force: float) -> None:
    """units in the comments of extended xyz"""
    frames = methanol()
    labels = truth(frames)
    file = extended(tmp_path / "mine.xyz", frames, labels[0] / energy, labels[1] / force, info)
    compare(prepared(file), frames, labels, ("energy", "forces"))


def test_lengths_in_comments(tmp_path: Path) -> None:
    """positions in bohr, as the comment of extended xyz says"""
    frames = methanol()
    labels = truth(frames)
    wide = [Atoms(a.numbers, a.positions / BOHR) for a in frames]
    compare(
        prepared(extended(tmp_path / "mine.xyz", wide, *labels[:2], {"positions_unit": "bohr"})),
        frames,
        labels,
        ("energy",),
    )


def _ase_db(folder: Path, frames: list[Atoms], e: np.ndarray, f: np.ndarray) -> Path:
    with ase.db.connect(folder / "mine.db") as db:
        for i, atoms in enumerate(frames):
            db.write(atoms, dft_energy=e[i] / HARTREE, data={"forces": f[i] / HARTREE * BOHR})
        db.metadata = {"units": {"dft_energy": "hartree", "forces": "hartree/bohr"}}
    return folder / "mine.db"


def _described_db(folder: Path, frames: list[Atoms], e: np.ndarray, f: np.ndarray) -> Path:
    with ase.db.connect(folder / "mine.db") as db:
        for i, atoms in enumerate(frames):
            db.write(atoms, dft_energy=e[i] / KCAL, data={"forces": f[i]})
        db.metadata = {"key_descriptions": {"dft_energy": ["Energy", "Energy by DFT", "kcal/mol"]}}
    return folder / "mine.db"


def _json_db(folder: Path, frames: list[Atoms], e: np.ndarray, f: np.ndarray) -> Path:
    with ase.db.connect(folder / "mine.json") as db:
        for i, atoms in enumerate(frames):
            db.write(atoms, dft_energy=e[i] / KJ, data={"forces": f[i] / KJ})
        db.metadata = {"dft_energy_unit": "kJ/mol", "forces_unit": "kJ/mol/Å"}
    return folder / "mine.json"


def _aselmdb(folder: Path, frames: list[Atoms], e: np.ndarray, f: np.ndarray) -> Path:
    rows = [
        {
            "numbers": a.numbers.tolist(),
            "positions": a.positions.tolist(),
            "energy": e[i] / HARTREE,
            "forces": (f[i] / HARTREE * BOHR).tolist(),
            "data": {"energy_unit": "hartree", "forces_unit": "hartree/bohr"},
        }
        for i, a in enumerate(frames)
    ]
    return write_aselmdb(folder / "mine.aselmdb", rows)


@pytest.mark.parametrize("make", [_ase_db, _described_db, _json_db, _aselmdb])
def test_units_in_databases(tmp_path: Path, make: Callable[..., Path]) -> None:
    """units in the metadata or rows of ASE's databases"""
    frames = methanol()
    labels = truth(frames)
    compare(prepared(make(tmp_path, frames, *labels[:2])), frames, labels, ("energy", "forces"))


def _sgdml(folder: Path, frames: list[Atoms], e: np.ndarray, f: np.ndarray) -> Path:
    np.savez(
        folder / "mine.npz",
        R=np.array([a.positions for a in frames]) / BOHR,
        z=frames[0].numbers,
        E=e / KCAL,
        F=f / KCAL * BOHR,
        e_unit="kcal/mol",
        r_unit="bohr",
        f_unit="kcal/mol/bohr",
    )
    return folder / "mine.npz"


def _json_records(folder: Path, frames: list[Atoms], e: np.ndarray, f: np.ndarray) -> Path:
    rows = [
        {
            "numbers": a.numbers.tolist(),
            "positions": a.positions.tolist(),
            "energy": e[i] / HARTREE,
            "forces": (f[i] / HARTREE * BOHR).tolist(),
            "units": {"energy": "hartree", "forces": "hartree/bohr", "positions": "angstrom"},
        }
        for i, a in enumerate(frames)
    ]
    (folder / "mine.json").write_text(json.dumps(rows))
    return folder / "mine.json"


@pytest.mark.parametrize("make", [_sgdml, _json_records])
def test_units_in_records(tmp_path: Path, make: Callable[..., Path]) -> None:
    """units stated in npz and JSON"""
    frames = methanol()
    labels = truth(frames)
    compare(prepared(make(tmp_path, frames, *labels[:2]), kind="records"), frames, labels, ("energy", "forces"))


@pytest.mark.parametrize(
    "info", [{"energy_unit": "furlong"}, {"energy_unit": "eV/Å"}, {"units": "hartree"}, {"units": "real"}]
)
def test_statements_that_do_not_help(tmp_path: Path, info: dict[str, object]) -> None:
    """units stated that are unknown, of another quantity, or of nobody knows what"""
    frames = methanol()
    file = extended(tmp_path / "mine.xyz", frames, *truth(frames)[:2], info)
    store = tmp_path / "store"
    assert_clear_error(eutectic("data", "prepare", "ase", "--source", file, "--store", store), "--unit ")
    assert not store.exists()
    assert_done(
        eutectic(
            *("data", "prepare", "ase", "--source", file, "--store", store),
            *("--unit", "energy=eV", "--unit", "forces=eV/angstrom"),
        )
    )


@pytest.mark.parametrize("name", ["E_hartree", "energy (kcal/mol)", "energy_Ry", "E[kJ/mol]", "total_energy_ha"])
def test_units_in_names(tmp_path: Path, name: str) -> None:
    """entries named after another unit"""
    frames = methanol()
    labels = truth(frames)
    for i, atoms in enumerate(frames):
        atoms.info[name] = labels[0][i]
    ase.io.write(tmp_path / "mine.traj", frames)
    assert_clear_error(
        eutectic(
            "data",
            "prepare",
            "ase",
            "--source",
            tmp_path / "mine.traj",
            "--store",
            tmp_path / "s",
            "--key",
            f"energy={name}",
        ),
        "--unit energy=",
    )


@pytest.mark.parametrize("comment", ["i = {i}, time = {t}, E = {e}", "i = {i}, E = {e}"])
def test_cp2k(tmp_path: Path, comment: str) -> None:
    """a trajectory of CP2K, in hartree"""
    frames = methanol()
    labels = truth(frames)
    lines = []
    for i, atoms in enumerate(frames):
        lines += [str(len(atoms)), " " + comment.format(i=i, t=0.5 * i, e=labels[0][i] / HARTREE)]
        lines += [
            f"{s} {x:.10f} {y:.10f} {z:.10f}" for s, (x, y, z) in zip(atoms.symbols, atoms.positions, strict=True)
        ]
    (tmp_path / "cp2k-pos-1.xyz").write_text("\n".join(lines) + "\n")
    plain = eutectic("data", "prepare", "ase", "--source", tmp_path / "cp2k-pos-1.xyz", "--store", tmp_path / "s")
    assert_clear_error(plain, "there are i,", "--key energy=E --unit energy=hartree")
    store = prepared(tmp_path / "cp2k-pos-1.xyz", "--key", "energy=E", "--unit", "energy=hartree")
    compare(store, frames, labels, ("energy",))


@pytest.mark.parametrize(
    ("energy", "forces", "positions", "sizes"),
    [
        ("hartree", "hartree/bohr", "bohr", (HARTREE, HARTREE / BOHR, BOHR)),
        ("kJ/mol", "-kJ/mol/nm", "nm", (KJ, -KJ / 10, 10.0)),
        ("rydberg", "rydberg/bohr", "angstrom", (HARTREE / 2, HARTREE / 2 / BOHR, 1.0)),
        ("kcal/mol", "kcal/mol/angstrom", "pm", (KCAL, KCAL, 0.01)),
        ("meV", "au", "au", (1e-3, HARTREE / BOHR, BOHR)),
    ],
)
@pytest.mark.parametrize("suffix", ["xyz", "npz", "h5"])
def test_units_that_the_user_gives(
    tmp_path: Path, suffix: str, energy: str, forces: str, positions: str, sizes: tuple[float, float, float]
) -> None:
    """--unit for every source, in prepare and in check"""
    frames = methanol(40)
    labels = truth(frames)
    e, f = labels[0] / sizes[0], labels[1] / sizes[1]
    file = tmp_path / f"mine.{suffix}"
    x = np.array([a.positions for a in frames]) / sizes[2]
    if suffix == "npz":
        np.savez(file, R=x, z=frames[0].numbers, E=e, F=f)
    elif suffix == "h5":
        with h5py.File(file, "w") as out:
            for name, value in {"coordinates": x, "species": frames[0].numbers, "energies": e, "forces": f}.items():
                out[name] = value
    else:
        extended(file, [Atoms(a.numbers, p) for a, p in zip(frames, x, strict=True)], e, f, {})
    options = [f"energy={energy}", f"forces={forces}", f"positions={positions}"]
    options = [word for option in options for word in ("--unit", option)]
    if suffix != "h5":
        compare(
            prepared(file, *options, kind="ase" if suffix == "xyz" else "records"), frames, labels, ("energy", "forces")
        )
    codes = findings(file, *options)
    assert not codes.keys() & {"length_unit", "forces_unit", "forces_sign", "forces_size", "forces_unexplained"}


@pytest.mark.parametrize("source", ["given", "stated", "database"])
def test_predictions_are_for_angstrom(tmp_path: Path, source: str) -> None:
    """predict of a file in bohr"""
    frames = methanol(3)
    labels = truth(frames)
    ase.io.write(tmp_path / "plain.xyz", frames)
    wide = [Atoms(a.numbers, a.positions / BOHR) for a in frames]
    options: list[object] = []
    if source == "database":
        file = schnetpack(tmp_path / "mine.db", frames, *labels[:2], "Hartree", "Bohr")
    elif source == "stated":
        file = extended(tmp_path / "mine.xyz", wide, *labels[:2], {"positions_unit": "bohr"})
    else:
        file, options = extended(tmp_path / "mine.xyz", wide, *labels[:2], {}), ["--unit", "positions=bohr"]
    predicted = []
    for path, more in ((tmp_path / "plain.xyz", []), (file, options)):
        done = eutectic("predict", "eutectic-small", path, "--task", "molecules", "--json", *more)
        assert_done(done)
        predicted.append([p["energy"] for p in json.loads(done.output)["predictions"]])
    np.testing.assert_allclose(predicted[1], predicted[0], atol=2e-4)


def test_fine_tuning_reads_what_the_file_states(tmp_path: Path) -> None:
    """finetune of a file in other units"""
    frames = methanol(30)
    file = schnetpack(tmp_path / "mine.db", frames, *truth(frames)[:2], "kcal/mol", "Ang")
    done = eutectic("finetune", file, "-p", "energy", "--steps", 2, "--batch-size", 2, "--out", tmp_path / "run")
    assert_done(done)
    assert "energy from 'energy' in kcal/mol, as the file says" in done.output


# --- stresses and virials ---------------------------------------------------------------------------

VOIGT = "xx,yy,zz,yz,xz,xy"


def six(tensors: np.ndarray, order: str) -> np.ndarray:
    return np.stack([tensors[:, "xyz".index(c[0]), "xyz".index(c[1])] for c in order.split(",")], axis=1)


def with_stress(folder: Path, name: str, values: np.ndarray, suffix: str = "xyz") -> tuple[Path, list[Atoms], tuple]:
    frames = copper()
    labels = truth(frames)
    volumes = np.array([a.get_volume() for a in frames])
    for i, atoms in enumerate(frames):
        atoms.info |= {"REF_energy": labels[0][i], name: values[i] if len(values) else -labels[2][i] * volumes[i]}
    file = folder / f"mine.{suffix}"
    if suffix == "db":
        with ase.db.connect(file) as db:
            for atoms in frames:
                db.write(atoms, data=dict(atoms.info))
    else:
        ase.io.write(file, frames)
    return file, frames, labels


SIGNS_AND_UNITS = [("eV", -1.0), ("-eV", 1.0), ("kcal/mol", -1 / KCAL), ("-hartree", 1 / HARTREE), ("kJ/mol", -1 / KJ)]


@pytest.mark.parametrize("suffix", ["xyz", "traj", "db"])
@pytest.mark.parametrize(("unit", "factor"), SIGNS_AND_UNITS)
@pytest.mark.parametrize("order", ["", VOIGT, "xx,yy,zz,xy,yz,zx"])
def test_virials(tmp_path: Path, suffix: str, unit: str, factor: float, order: str) -> None:
    """a virial by any name, sign, unit and order"""
    volumes = np.array([a.get_volume() for a in copper()])
    virials = truth(copper())[2] * volumes[:, None, None] * factor
    file, frames, labels = with_stress(tmp_path, "my_w", six(virials, order) if order else virials, suffix)
    key = f"virial=my_w:{order}" if order else "virial=my_w"
    compare(prepared(file, "--key", key, "--unit", f"virial={unit}"), frames, labels, ("energy", "stress"))


@pytest.mark.parametrize("name", ["virial", "virials", "REF_virial", "dft_virial", "Virial", "my-virial"])
@pytest.mark.parametrize("options", [("--key", "stress={}"), ("--key", "stress={}", "--unit", "stress=eV")])
def test_a_virial_named_as_the_stress(tmp_path: Path, name: str, options: tuple[str, ...]) -> None:
    """--key stress=virial"""
    file, frames, labels = with_stress(tmp_path, name, np.zeros(0))
    compare(prepared(file, *(o.format(name) for o in options)), frames, labels, ("stress",))


@pytest.mark.parametrize(
    ("unit", "factor"),
    [("GPa", 1 / GPA), ("-kbar", -10 / GPA), ("hartree/bohr^3", BOHR**3 / HARTREE), ("-bar", -1e4 / GPA)],
)
@pytest.mark.parametrize("order", ["", VOIGT, "xx,yy,zz,xy,yz,zx", "xx,xy,xz,yy,yz,zz"])
@pytest.mark.parametrize("kind", ["ase", "records"])
def test_stresses(tmp_path: Path, kind: str, unit: str, factor: float, order: str) -> None:
    """a stress in any unit, sign and order"""
    stresses = truth(copper())[2] * factor
    values = six(stresses, order) if order else stresses
    file, frames, labels = with_stress(tmp_path, "press", values)
    options: list[object] = ["--key", f"stress=press:{order}" if order else "stress=press", "--unit", f"stress={unit}"]
    if kind == "records":
        rows = [
            {
                "numbers": a.numbers.tolist(),
                "positions": a.positions.tolist(),
                "cell": a.cell.array.tolist(),
                "energy": float(labels[0][i]),
                "press": values[i].tolist(),
            }
            for i, a in enumerate(frames)
        ]
        file = tmp_path / "records.json"
        file.write_text(json.dumps(rows))
        options += ["--unit", "energy=eV", "--unit", "positions=angstrom", "--pbc", "true"]
        if order:
            unordered = ["--key", "stress=press", *options[2:]]
            asked = eutectic("data", "prepare", "records", "--source", file, "--store", tmp_path / "s", *unordered)
            assert_clear_error(asked, "unknown order", "press:ORDER")
    compare(prepared(file, *options, kind=kind), frames, labels, ("energy", "stress"))


@pytest.mark.parametrize(
    "order", ["xx,yy,zz,xy,yz,xz", "xx,yy,zz,xy,xz,yz", "xx,yy,zz,xz,yz,xy", "xx,xy,xz,yy,yz,zz", VOIGT]
)
@pytest.mark.parametrize("strain", [0.0, 0.02])
def test_orders_are_found(tmp_path: Path, order: str, strain: float) -> None:
    """six numbers in an order that the neighbours contradict"""
    frames = copper(25, seed=3, strain=strain)
    labels = truth(frames)
    for i, values in enumerate(six(labels[2], order)):
        frames[i].info |= {"REF_stress": values, "REF_energy": labels[0][i]}
    ase.io.write(tmp_path / "mine.xyz", frames)
    found = findings(tmp_path / "mine.xyz")
    assert ("stress_order" in found) == (order != VOIGT)
    if order != VOIGT:
        assert order in found["stress_order"]["fix"].replace("zx", "xz")


@pytest.mark.parametrize("factor", [1.0, -1.0, 160.217_662, -1602.176_62, 2.0, 0.0])
def test_stress_and_virial_of_one_file(tmp_path: Path, factor: float) -> None:
    """stress and virial in one file that contradict each other"""
    stresses = truth(copper())[2]
    file, frames, _ = with_stress(tmp_path, "virial", np.zeros(0))
    for i, atoms in enumerate(frames):
        atoms.info["REF_stress"] = factor * stresses[i]
    ase.io.write(file, frames)
    assert ("stress_and_virial" in findings(file)) == (factor != 1.0)
    outcome = eutectic("data", "prepare", "ase", "--source", file, "--store", tmp_path / "s")
    if factor == 1.0:
        assert_done(outcome)
    else:
        assert_clear_error(outcome, "REF_stress and virial contradict each other")
        assert_done(
            eutectic("data", "prepare", "ase", "--source", file, "--store", tmp_path / "s", "--key", "virial=virial")
        )
        np.testing.assert_allclose(Store(tmp_path / "s")[0].labels["stress"], stresses[0], rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "factor", "word"),
    [
        ("REF_stress", 160.217_662, "GPa"),
        ("REF_stress", -1602.176_62, "kbar"),
        ("REF_forces", 1 / KCAL, "kcal/mol/Å"),
        ("REF_forces", 1000.0, "meV/Å"),
        ("band_gap", 1000.0, "meV"),
        ("formation_energy", 1 / KJ, "kJ/mol/atom"),
        ("log10_bulk_modulus", 140.0, "GPa"),
    ],
)
def test_sizes_that_no_structure_has(tmp_path: Path, name: str, factor: float, word: str) -> None:
    """labels of an implausible size: the unit that would fit is named"""
    frames = copper(20)
    labels = truth(frames)
    for i, atoms in enumerate(frames):
        if name == "REF_forces":
            atoms.arrays[name] = labels[1][i] * factor
        else:
            atoms.info[name] = labels[2][i] * factor if name == "REF_stress" else (1.0 + 0.02 * i) * factor
    ase.io.write(tmp_path / "mine.xyz", frames)
    assert any(word in finding["message"] for finding in findings(tmp_path / "mine.xyz").values())


# --- charge, spin, level of theory ------------------------------------------------------------------


@pytest.mark.parametrize(
    "conditions",
    [
        [{"charge": 0}, {"charge": 1}, {"charge": -1}],
        [{"total_charge": 0, "total_spin": 1}, {"total_charge": 1, "total_spin": 2}],
        [{"spin_multiplicity": 1}, {"spin_multiplicity": 3}],
        [{"functional": "PBE"}, {"functional": "r2SCAN"}],
        [{"solvent": "water"}, {"solvent": "none"}],
    ],
)
@pytest.mark.parametrize("as_store", [False, True])
def test_one_geometry_under_several_conditions(
    tmp_path: Path, conditions: list[dict[str, object]], as_store: bool
) -> None:
    """the same geometry at another charge, spin or level of theory"""
    frames = []
    for atoms, energy in zip(methanol(), truth(methanol())[0], strict=True):
        for k, condition in enumerate(conditions):
            copy = Atoms(atoms.numbers, atoms.positions, info=dict(condition))
            copy.calc = SinglePointCalculator(copy, energy=energy + 2.5 * k)
            frames.append(copy)
    ase.io.write(tmp_path / "mine.xyz", frames)
    source = tmp_path / "mine.xyz"
    if as_store:
        store = prepared(source)
        assert "charge" not in store.card.properties
        source = store.path
    found = findings(source)
    assert "duplicates" not in found
    assert "leaked_structures" not in found
    for name in conditions[0]:
        assert name in found["one_geometry_several_labels"]["message"]


def test_copies_are_still_copies(tmp_path: Path) -> None:
    """the same geometry with the same label"""
    frames = [a for a, _ in ((a, 0) for a in methanol())]
    labels = truth(frames)
    ase.io.write(tmp_path / "mine.xyz", frames)
    file = extended(tmp_path / "mine.xyz", frames * 2, np.tile(labels[0], 2), np.tile(labels[1], (2, 1, 1)), {})
    found = findings(file)
    assert found["duplicates"]["numbers"]["count"] == len(frames)
    assert "one_geometry_several_labels" not in found


def test_a_charge_is_learned_if_asked_for(tmp_path: Path) -> None:
    """--key charge=charge"""
    frames = methanol()
    extended(tmp_path / "mine.xyz", frames, *truth(frames)[:2], {"charge": 1})
    store = prepared(tmp_path / "mine.xyz", "--key", "charge=charge")
    assert float(store[0].labels["charge"]) == 1


# --- convergence ------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", ["converged", "is_converged", "scf_converged"])
@pytest.mark.parametrize("suffix", ["xyz", "db", "json-records"])
def test_entries_that_say_so(tmp_path: Path, entry: str, suffix: str) -> None:
    """an entry says that a calculation did not converge"""
    frames = methanol()
    labels = truth(frames)
    if suffix == "json-records":
        rows = [
            {"numbers": a.numbers.tolist(), "positions": a.positions.tolist(), "energy": e, entry: i not in (3, 7)}
            for i, (a, e) in enumerate(zip(frames, labels[0].tolist(), strict=True))
        ]
        file, kind = tmp_path / "mine.json", "records"
        file.write_text(json.dumps(rows))
        options = ["--unit", "energy=eV", "--unit", "positions=angstrom"]
    else:
        file, kind, options = tmp_path / f"mine.{suffix}", "ase", []
        for i, atoms in enumerate(frames):
            atoms.info |= {"REF_energy": labels[0][i], entry: i not in (3, 7)}
        if suffix == "db":
            with ase.db.connect(file) as db:
                for atoms in frames:
                    db.write(atoms, data=dict(atoms.info))
        else:
            ase.io.write(file, frames)
        assert findings(file)["not_converged"]["numbers"]["count"] == 2
    kept = prepared(file, *options, kind=kind)
    assert len(kept) == 10
    assert any("2 structures did not converge" in note for note in kept.card.notes)
    left = prepared(file, *options, "--skip-unconverged", "--overwrite", kind=kind)
    assert len(left) == 8
    assert any("left out" in note for note in left.card.notes)


# --- the cases --------------------------------------------------------------------------------------


def copied(source: Path, folder: Path) -> Path:
    target = folder / source.name
    target.write_bytes(source.read_bytes())
    return target


def test_case_schnetpack(cases: Path, tmp_path: Path) -> None:
    """cases: 09"""
    store = prepared(copied(cases / "09-schnetpack.db", tmp_path))
    assert float(store[0].labels["energy"]) == pytest.approx(1.974, abs=5e-4)


def test_case_cp2k(cases: Path, tmp_path: Path) -> None:
    """cases: 06"""
    file = copied(cases / "06-cp2k-pos-1.xyz", tmp_path)
    assert_clear_error(eutectic("data", "prepare", "ase", "--source", file, "--store", tmp_path / "s"), "i, time, E")
    store = prepared(file, "--key", "energy=E", "--unit", "energy=hartree")
    assert float(store[0].labels["energy"]) == pytest.approx(-17.121_653_858_3 * HARTREE, rel=1e-8)


@pytest.mark.parametrize(
    "options",
    [
        ("--key", "stress=virial"),
        ("--key", "virial=virial"),
        ("--key", "virial=virial", "--unit", "virial=eV"),
        (),
    ],
)
def test_case_virial(cases: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    """cases: 10"""
    store = prepared(copied(cases / "10-virial.extxyz", tmp_path), *options)
    stresses = np.array([row.labels["stress"] for row in store])
    np.testing.assert_allclose(stresses, np.load(cases / "10-stress-truth.npy"), atol=1e-9)


def test_case_matpes(cases: Path, tmp_path: Path) -> None:
    """cases: 15"""
    file = copied(cases / "15-matpes-like.json", tmp_path)
    units = ["--unit", "energy=eV", "--unit", "forces=eV/angstrom", "--unit", "stress=-kbar"]
    asked = eutectic("data", "prepare", "records", "--source", file, "--store", tmp_path / "s", *units)
    assert_clear_error(asked, "unknown order")
    store = prepared(file, *units, "--key", f"stress=stress:{VOIGT}", kind="records")
    first = json.loads(file.read_text())[0]["stress"]
    row = store[0].labels["stress"]
    np.testing.assert_allclose(
        [row[0, 0], row[1, 2], row[0, 2], row[0, 1]], np.array([first[0], *first[3:]]) * -GPA / 10
    )


def test_case_ions(cases: Path) -> None:
    """cases: 16"""
    found = findings(cases / "16-ions.extxyz")
    assert "duplicates" not in found
    assert "total_charge" in found["one_geometry_several_labels"]["message"]


def test_case_vasp(cases: Path, tmp_path: Path) -> None:
    """cases: 07"""
    assert findings(cases / "07-vasp" / "vasprun.xml")["not_converged"]["numbers"]["count"] == 1
    assert len(prepared(copied(cases / "07-vasp" / "vasprun.xml", tmp_path), "--skip-unconverged")) == 5
    file = copied(cases / "07-vasp" / "truncated-vasprun.xml", tmp_path)
    assert {"unusable_structures", "not_converged"} <= findings(file).keys()
    options = ("data", "prepare", "ase", "--source", file, "--store", tmp_path / "s")
    assert_clear_error(eutectic(*options), "without </modeling>")
    assert_done(eutectic(*options, "--skip-bad", "--skip-unconverged"))
    assert len(Store(tmp_path / "s")) == 3
